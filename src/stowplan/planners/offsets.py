"""Where items begin in their padded batches: in the corner, in the middle, or where one says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stowplan.errors import PlanError
from stowplan.planners.sizes import listed

if TYPE_CHECKING:
    from stowplan.planners.batches import Batch, Plan

__all__ = ["Offsets", "checked_offsets", "padded_lengths", "place_items"]

Offsets: TypeAlias = Literal["corner", "centre"] | ArrayLike


def place_items(who: str, plan: Plan, offsets: Offsets) -> Plan:
    """Let the items of a plan begin in the corner, in the middle, or where (items, dims) says.

    Raises
    ------
    PlanError
        For another word, and for an item that would reach beyond its batch.

    >>> from stowplan.planners import assign_slots
    >>> plan = assign_slots({"y": [2, 4], "x": [3, 5]}, [{"y": 4, "x": 6}])
    >>> place_items("plan", plan, "centre").offsets.tolist()
    [[1, 1], [0, 0]]
    """
    if isinstance(offsets, str):
        if offsets not in ("corner", "centre"):
            raise PlanError(
                f'{who}: offsets={offsets!r}; allowed are "corner", "centre" and an array '
                "(items, dims) of integers"
            )
        if offsets == "corner":
            return replace(plan, offsets=None)
        offsets = (plan.capacities - plan.lengths) // 2
    table = checked_offsets(who, offsets, plan.dims, plan.lengths, plan.batches)
    return replace(plan, offsets=table)


def checked_offsets(
    who: str,
    offsets: ArrayLike,
    dims: Sequence[str],
    lengths: NDArray[np.int64],
    batches: Sequence[Batch],
) -> NDArray[np.int64] | None:
    """Offsets (items, dims) that keep every item inside its batch; None where all are 0."""
    given: NDArray[Any] = np.asarray(offsets)
    if given.shape != lengths.shape or (given.size and given.dtype.kind not in "iu"):
        raise PlanError(
            f"{who}: offsets must be integers of shape {lengths.shape}, one for each item and "
            f"each of ({', '.join(dims)}); got {given.dtype} of shape {given.shape}"
        )
    table = given.astype(np.int64)
    if not table.any():
        return None
    items = real_items(batches)
    most = padded_lengths(batches, lengths)[items] - lengths[items]
    outside = ((table[items] < 0) | (table[items] > most)).any(axis=1)
    if outside.any():
        row = int(np.flatnonzero(outside)[np.argmin(items[outside])])  # of the first such item
        item = int(items[row])

        def named(values: NDArray[np.int64]) -> str:
            return listed(dict(zip(dims, values.tolist(), strict=True)))

        raise PlanError(
            f"{who}: {int(outside.sum())} of {len(lengths)} items reach beyond their batch. Item "
            f"{item} has size {named(lengths[item])} and begins at {named(table[item])}; in its "
            f"batch of {named(most[row] + lengths[item])} it may begin at 0 to {named(most[row])}. "
            f"Let it begin there: offsets[{item}] = "
            f"{np.clip(table[item], 0, most[row]).tolist()}, or leave the choice to "
            'offsets="centre".'
        )
    table.flags.writeable = False
    return table


def real_items(batches: Sequence[Batch]) -> NDArray[np.intp]:
    """Items of all batches in their order, without rows that repeat one."""
    return np.concatenate([np.empty(0, np.intp), *(b.items[: b.count] for b in batches)])


def padded_lengths(batches: Sequence[Batch], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Capacity of the batch of each item, (items, dims); its own lengths where it is in none."""
    found = lengths.copy()
    capacities = np.array([batch.capacity for batch in batches], np.int64)
    counts = [batch.count for batch in batches]
    if counts:
        found[real_items(batches)] = np.repeat(capacities, counts, axis=0)
    found.flags.writeable = False
    return found
