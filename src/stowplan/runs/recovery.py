"""Out of memory all the same: smaller batches for what is left of a plan."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from stowplan.adapters import Adapter
from stowplan.declaration import Kernel
from stowplan.errors import BudgetError
from stowplan.memory import show_bytes
from stowplan.planners.batches import Batch, Plan, empty_batch, fill_batches
from stowplan.planners.sizes import Measure, listed

__all__ = ["attempt", "halve_batches", "shown_capacity", "too_large_a_row"]

_log = logging.getLogger("stowplan")

Result = TypeVar("Result")


def attempt(
    adapter: Adapter, compute: Callable[[], Result]
) -> tuple[Result, None] | tuple[None, str]:
    """Give what a function computes, or the text of the error that says that memory ran out.

    The error itself is gone then, and with it its traceback, which keeps arrays.
    """
    try:
        return compute(), None
    except Exception as error:
        if not adapter.is_out_of_memory(error):
            raise
        return None, f"{type(error).__name__}: {error}"


def halve_batches(where: str, kernel: Kernel, plan: Plan, done: int, error: str) -> Plan:
    """Split the batches after the first ``done`` ones, so that none needs half of the next.

    Those done keep their numbers and rows. The next batch had no memory: its slot gets half of
    the rows, every other slot as many as hold no more padded work than that. If it is empty,
    there for its shape alone, it is left out.

    Raises
    ------
    BudgetError
        Where the next batch has one row already.
    """
    failed = plan.batches[done]
    at = shown_capacity(plan, failed.capacity)
    rows = len(failed.items)
    if not failed.count and len(plan.batches) > 1:
        _log.warning(
            "%s: out of memory with an empty batch of %s%s, which no item needs; going on "
            "without it.", where, kernel.name, at,
        )  # fmt: skip
        return replace(plan, batches=plan.batches[:done] + plan.batches[done + 1 :])
    if rows == 1:
        raise too_large_a_row(where, kernel, plan, failed.capacity, error)
    most = rows // 2
    _log.warning(
        "%s: out of memory with %d rows of %s%s; going on with %d rows. %d of %d batches are done "
        "and kept. A smaller budget= avoids the attempt.",
        where, rows, kernel.name, at, most, done, len(plan.batches),
    )  # fmt: skip
    limit = most * _row_work(plan, failed)
    left: dict[tuple[int, tuple[int, ...]], list[Batch]] = {}
    for batch in plan.batches[done:]:
        left.setdefault((batch.slot, batch.capacity), []).append(batch)
    batches = list(plan.batches[:done])
    for (slot, capacity), group in left.items():
        items = np.concatenate([batch.items[: batch.count] for batch in group])
        fits = int(max(limit // max(_row_work(plan, group[0]), 1e-300), 1))
        fewer = min(len(group[0].items), most if slot == failed.slot else fits)
        batches += fill_batches(items, capacity, slot, fewer) if len(items) else []
    if not batches:
        batches.append(empty_batch(plan.lengths, failed.capacity, failed.slot, most))
    return replace(plan, batches=tuple(batches))


def too_large_a_row(
    where: str, kernel: Kernel, plan: Plan, capacity: tuple[int, ...], error: str
) -> BudgetError:
    """Give the error that says that memory ran out with one row."""
    return BudgetError(
        f"{where}: out of memory with one row of {kernel.name}{shown_capacity(plan, capacity)}: "
        f"{error}. {_row_needs(kernel, plan, capacity)}Use a device with more memory, a smaller "
        "dtype, or items cut into smaller ones."
    )


def shown_capacity(plan: Plan, capacity: tuple[int, ...]) -> str:
    """Say where in a plan something is, such as ``" at atoms=4"``; nothing without ragged dims."""
    shape = listed(dict(zip(plan.dims, capacity, strict=True)))
    return f" at {shape}" if shape else ""


def _row_needs(kernel: Kernel, plan: Plan, padded: tuple[int, ...]) -> str:
    """Say what is known of the memory of one row."""
    capacity = np.array([padded], np.int64)
    known = []
    if plan.item_bytes is not None:
        row_bytes = Measure.parse(plan.dims, plan.item_bytes, plan.derived).cost(capacity)
        known.append(f"its padded columns take {show_bytes(float(row_bytes[0]))}")
    if kernel.memory is not None:
        numbers = plan.measure.evaluate(kernel.memory, capacity)
        known.append(f"by memory= it keeps {float(numbers[0]):.4g} numbers")
    return f"A row needs more than that: {' and '.join(known)}. " if known else ""


def _row_work(plan: Plan, batch: Batch) -> float:
    return float(plan.measure.cost(np.array([batch.capacity], np.int64))[0])
