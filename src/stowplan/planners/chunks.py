"""Split the batches of a plan into rows that fit, all rows of a slot alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError
from stowplan.planners.batches import Batch, Plan, fill_batches
from stowplan.planners.cost import Costs, cheapest_rows
from stowplan.planners.sizes import natural, refuse_overflow

__all__ = ["split_chunks"]

Rows = int | Sequence[int] | NDArray[np.integer[Any]] | None


def split_chunks(
    plan: Plan, rows: Rows = None, *, ladder: bool = False, max_rows: Rows = None
) -> Plan:
    """Give all batches of a slot the same number of rows: no full chunks plus a tail.

    Parameters
    ----------
    plan : Plan
        Batches of it are joined by slot and split anew.
    rows : int or sequence, optional
        Rows by hand. One number: no slot gets more rows than it has items. One for each slot:
        exactly those. Without it, a slot that carries ``"rows"`` keeps them exactly (surplus
        becomes another batch), and the others get the rows that cost least.
    ladder : bool
        Take rows from 1, 2, 3, 4, 6, 8, 12, 16, 24, ..., so that other sets compile less.
    max_rows : int or sequence, optional
        Most rows of a batch, in all slots or in each.

    Returns
    -------
    Plan
        The same items in the same slots; rows past the items repeat the last one.

    Raises
    ------
    PlanError
        For rows that are no positive integers, exceed `max_rows`, or make a batch whose
        padded elements overflow 64 bits.

    Examples
    --------
    >>> from stowplan.planners import assign_slots
    >>> plan = assign_slots({"atoms": [3] * 10}, [{"atoms": 4}])
    >>> [batch.items.tolist() for batch in split_chunks(plan, max_rows=4).batches]
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    """
    by_hand = _per_slot(plan, rows, "rows")
    most = _per_slot(plan, max_rows, "max_rows")
    exactly = isinstance(rows, Sequence | np.ndarray)
    costs = plan.costs or Costs()
    groups: list[list[Batch]] = [[] for _ in plan.slots]
    for batch in plan.batches:
        groups[batch.slot].append(batch)
    slots: list[dict[str, int]] = []
    batches: list[Batch] = []
    for index, (slot, group) in enumerate(zip(plan.slots, groups, strict=True)):
        capacity = tuple(slot[name] for name in plan.dims)
        count = sum(batch.count for batch in group)
        chosen = by_hand[index]
        if chosen is not None and not exactly and count:
            chosen = min(chosen, count)
        elif chosen is None:
            chosen = slot.get("rows")
        if chosen is None and count:
            row_work = float(plan.measure.cost(np.array([capacity], np.int64))[0])
            chosen = cheapest_rows(count, row_work, costs, most[index], ladder)
        if chosen is None:
            slots.append(dict(slot))
            continue
        limit = most[index]
        if limit is not None and chosen > limit:
            raise PlanError(
                f"split_chunks: slot {index} has rows={chosen}, but max_rows={limit}. "
                f'Pass rows={limit}, or take "rows" out of the slot.'
            )
        refuse_overflow("split_chunks", chosen, capacity, plan.dims)
        slots.append({**slot, "rows": chosen})
        if count:
            items = np.concatenate([batch.items[: batch.count] for batch in group])
            batches += fill_batches(items, capacity, index, chosen)
    return replace(plan, slots=tuple(slots), batches=tuple(batches))


def _per_slot(plan: Plan, rows: Rows, name: str) -> list[int | None]:
    """One number or one for each slot, checked."""
    if rows is None:
        return [None] * len(plan.slots)
    if not isinstance(rows, Sequence | np.ndarray):
        return [natural(rows, f"split_chunks: {name}")] * len(plan.slots)
    values = list(rows)
    if len(values) != len(plan.slots):
        raise PlanError(
            f"split_chunks: {name} has {len(values)} entries for {len(plan.slots)} slots; "
            f"give one number, or one for each slot"
        )
    return [natural(value, f"split_chunks: {name}[{i}]") for i, value in enumerate(values)]
