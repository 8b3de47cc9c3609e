"""Out of memory all the same: smaller batches for what is left of a plan."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from stowplan.declaration import Kernel
from stowplan.errors import BudgetError
from stowplan.planners.batches import Batch, Plan, fill_batches
from stowplan.planners.sizes import listed

__all__ = ["halve_batches"]

_log = logging.getLogger("stowplan")


def halve_batches(where: str, kernel: Kernel, plan: Plan, done: int, error: str) -> Plan:
    """Split the batches after the first ``done`` ones, so that none needs half of the next.

    Those done keep their numbers and rows. The next batch had no memory: its slot gets half of
    the rows, every other slot as many as hold no more padded work than that.

    Raises
    ------
    BudgetError
        Where the next batch has one row already.
    """
    failed = plan.batches[done]
    shape = listed(dict(zip(plan.dims, failed.capacity, strict=True)))
    at = f" at {shape}" if shape else ""
    rows = len(failed.items)
    if rows == 1:
        raise BudgetError(
            f"{where}: out of memory with one row of {kernel.name}{at}: {error}. Use a device "
            "with more memory, a smaller dtype, or items cut into smaller ones."
        )
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
    return replace(plan, batches=tuple(batches))


def _row_work(plan: Plan, batch: Batch) -> float:
    return float(plan.measure.cost(np.array([batch.capacity], np.int64))[0])
