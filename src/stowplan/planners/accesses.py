"""Steps, sizes and tiers of residency as a user gives them: checked, and as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stowplan.errors import BudgetError, PlanError
from stowplan.memory import parse_bytes, show_bytes
from stowplan.planners.sizes import LARGEST, natural

__all__ = [
    "bytes_of_items",
    "dirty_items",
    "first_tiers",
    "named_tiers",
    "refuse_large_steps",
    "used_items",
]

UNNAMED = ("device", "host")
DISK = "disk"


def named_tiers(budgets: Any) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    """Names and bytes of all tiers, the disk last."""
    if isinstance(budgets, str) or not isinstance(budgets, Mapping | Sequence):
        raise PlanError(
            f"keep_resident: budgets={budgets!r} names no tiers. Give them fastest first: "
            'budgets={"device": "1 GiB", "host": "8 GiB"}.'
        )
    if not isinstance(budgets, Mapping) and all(isinstance(tier, tuple) for tier in budgets):
        budgets = dict(budgets)
    if not isinstance(budgets, Mapping):
        if len(budgets) > len(UNNAMED):
            raise PlanError(
                f"keep_resident: {len(budgets)} budgets without names; one or two are those of "
                f'{" and ".join(UNNAMED)}. Name them: budgets={{"device": ..., "host": ...}}.'
            )
        budgets = dict(zip(UNNAMED, budgets, strict=False))
    given = dict(budgets)
    disk = given.pop(DISK, None)
    if not given:
        raise PlanError(
            "keep_resident: no tier of memory in budgets. Give one: budgets={'device': '1 GiB'}."
        )
    if DISK in budgets and next(reversed(list(budgets))) != DISK:
        raise PlanError(
            f"keep_resident: the tiers are {', '.join(budgets)}; the disk comes last: list it so."
        )
    limits = [_tier_bytes(tier, limit) for tier, limit in given.items()]
    return (*given, DISK), (*limits, None if disk is None else _tier_bytes(DISK, disk))


def _tier_bytes(tier: str, limit: Any) -> int:
    """Give the bytes of a tier; say of which tier the budget is none."""
    try:
        return parse_bytes(limit)
    except BudgetError as error:
        raise BudgetError(
            f"keep_resident: budgets: the tier {tier} has {limit!r}: {error} Give it one byte or "
            f"more, budgets={{{tier!r}: '1 GiB'}}, or leave {tier} out."
        ) from error


def used_items(accesses: Iterable[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Items of all steps, each once a step, and where a step's begin."""
    if isinstance(accesses, np.ndarray) and accesses.ndim not in (1, 2):
        raise PlanError(
            f"keep_resident: accesses has shape {accesses.shape}; give (steps,) or (steps, k)."
        )
    rows = accesses.tolist() if isinstance(accesses, np.ndarray) else accesses
    flat: list[int] = []
    starts = [0]
    for step, needed in enumerate(rows):
        if type(needed) is int:
            flat.append(_item(needed, step))
        elif isinstance(needed, Iterable) and not isinstance(needed, str):
            flat.extend(dict.fromkeys(_item(item, step) for item in needed))
        else:
            flat.append(_item(needed, step))
        starts.append(len(flat))
    return np.array(flat, np.int64), np.array(starts, np.int64)


def _item(item: Any, step: int) -> int:
    if type(item) is int and 0 <= item < LARGEST:
        return item
    return natural(item, f"keep_resident: an item of step {step}", 0)


def bytes_of_items(sizes: ArrayLike, items: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes of every item, checked; all items have one."""
    given = np.asarray(sizes)
    largest = int(items.max(initial=-1))
    if given.ndim > 1 or (given.size and given.dtype.kind not in "iu"):
        raise PlanError(
            f"keep_resident: sizes must be integers, one for all items or one each, got "
            f"{given.dtype} of shape {given.shape}; cast with numpy.asarray(sizes, dtype=int)."
        )
    if given.ndim == 0:
        given = np.full(largest + 1, given)
    if largest >= len(given):
        raise PlanError(
            f"keep_resident: item {largest} is used, and sizes has {len(given)} items. Give the "
            f"bytes of all {largest + 1}."
        )
    if given.size and (given < 0).any():
        item = int(given.argmin())
        raise PlanError(f"keep_resident: item {item} has {given[item]} bytes; sizes are 0 or more.")
    if sum(map(int, given.tolist())) > LARGEST:
        raise PlanError("keep_resident: all items together exceed a 64-bit integer of bytes.")
    return given.astype(np.int64)


def dirty_items(dirty: Iterable[int], count: int) -> set[int]:
    """Items that the disk does not have, checked."""
    found = {natural(item, "keep_resident: an item of dirty", 0) for item in dirty}
    if found and max(found) >= count:
        raise PlanError(f"keep_resident: dirty names item {max(found)} of {count} items.")
    return found


def first_tiers(
    start: Any, unsaved: set[int], names: tuple[str, ...], count: int
) -> NDArray[np.int8]:
    """Tier where each item begins, -1 for those that are made."""
    disk = len(names) - 1
    given = [start] * count if start is None or isinstance(start, str) else list(start)
    if len(given) != count:
        raise PlanError(
            f"keep_resident: start has {len(given)} tiers, sizes {count} items: one tier an item."
        )
    first = np.empty(count, np.int8)
    for item, name in enumerate(given):
        if name is not None and name not in names:
            raise PlanError(
                f"keep_resident: item {item} begins on {name!r}; tiers: {', '.join(names)}."
            )
        first[item] = disk if name is None else names.index(name)
        if item in unsaved and first[item] == disk:
            if name is not None and not isinstance(start, str):
                raise PlanError(
                    f"keep_resident: item {item} begins on {name} and is dirty, which says that "
                    f"the {name} does not have it. Take it off dirty, or leave its start None."
                )
            first[item] = -1
    return first


def refuse_large_steps(
    items: NDArray[np.int64],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    names: tuple[str, ...],
    limits: tuple[int | None, ...],
) -> None:
    """Raise BudgetError for the step that takes most, where the fastest tier cannot hold it."""
    sums = np.concatenate([[0], np.cumsum(sizes[items])])
    taken = sums[starts[1:]] - sums[starts[:-1]]
    limit = limits[0] or 0
    if taken.max(initial=0) <= limit:
        return
    step = int(taken.argmax())
    needed = items[starts[step] : starts[step + 1]]
    largest = int(needed[sizes[needed].argmax()])
    raise BudgetError(
        f"keep_resident: step {step} needs {len(needed)} items together, {taken[step]} bytes "
        f"({show_bytes(taken[step])}), the largest of which is item {largest} of {sizes[largest]} "
        f"bytes; the budget of {names[0]} is {limit} bytes ({show_bytes(limit)}). Give it "
        f"{taken[step]} bytes or more, or cut the items or the step into smaller ones."
    )
