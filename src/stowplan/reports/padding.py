"""Where the work, the rows and the bytes of a plan go, and which items make it pad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError
from stowplan.expressions import Expression
from stowplan.planners.batches import Plan
from stowplan.planners.offsets import real_items

__all__ = [
    "Carriers",
    "Causes",
    "Padding",
    "find_carriers",
    "find_causes",
    "item_padding",
    "measure_padding",
    "most_padded",
]

By: TypeAlias = Literal["work", "rows", "bytes"]
Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Padding:
    """What each slot spends on items, on padding them, and on rows without one.

    Attributes
    ----------
    useful : (slots,)
        What the items take by themselves.
    slot_padding : (slots,)
        What they take beyond that, as each is padded to the capacity of its slot.
    row_padding : (slots,)
        What rows without an item take.
    """

    useful: Array
    slot_padding: Array
    row_padding: Array

    @property
    def padded(self) -> Array:
        """All of it, (slots,)."""
        return self.useful + self.slot_padding + self.row_padding

    @property
    def occupancy(self) -> Array:
        """Useful / padded of each slot, NaN where a slot is empty."""
        padded, found = self.padded, np.full(len(self.useful), np.nan)
        np.divide(self.useful, padded, out=found, where=padded > 0)
        return found

    @property
    def total(self) -> Padding:
        """All slots together, as one."""
        parts = (self.useful, self.slot_padding, self.row_padding)
        return Padding(*(np.array([part.sum()]) for part in parts))


@dataclass(frozen=True)
class Carriers:
    """The items that are padded most: so many of them carry such a share of all padding."""

    items: int
    share: float


@dataclass(frozen=True, eq=False)
class Causes:
    """The items without which their slots could be smaller.

    Attributes
    ----------
    items : (n,)
        At most half of each slot: its largest items, from the place where to leave them out saves
        most.
    share : float
        Share of all padded-but-useless work that goes because of them.
    fits : dict
        By slot the capacity that would hold the others.
    """

    items: NDArray[np.intp]
    share: float
    fits: dict[int, dict[str, int]]


def measure_padding(plan: Plan, by: By = "work") -> Padding:
    """Split what each slot of a plan takes, by work, rows or bytes.

    Raises
    ------
    PlanError
        For bytes of a plan that does not know them.

    Examples
    --------
    >>> from stowplan.planners import assign_slots, split_chunks
    >>> plan = split_chunks(assign_slots({"atoms": [1, 3, 4]}, [{"atoms": 4}]), rows=2)
    >>> found = measure_padding(plan)
    >>> found.useful.tolist(), found.slot_padding.tolist(), found.row_padding.tolist()
    ([8.0], [4.0], [4.0])
    """
    each = _price(plan, plan.lengths, by)
    batches, slots = plan.batches, len(plan.slots)
    where = np.array([batch.slot for batch in batches], np.intp)
    counts = np.array([batch.count for batch in batches], np.int64)
    rows = np.array([len(batch.items) for batch in batches], np.int64)
    capacities = np.array([batch.capacity for batch in batches], np.int64)
    row = _price(plan, capacities.reshape(len(batches), len(plan.dims)), by)
    own = np.repeat(where, counts)
    useful: Array = np.bincount(own, each[real_items(batches)], slots).astype(np.float64)
    held: Array = np.bincount(where, counts * row, slots).astype(np.float64)
    padded: Array = np.bincount(where, rows * row, slots).astype(np.float64)
    return Padding(useful, held - useful, padded - held)


def item_padding(plan: Plan) -> Array:
    """Work of each item's capacity less its own, (items,).

    >>> from stowplan.planners import assign_slots
    >>> item_padding(assign_slots({"atoms": [1, 3]}, [{"atoms": 4}])).tolist()
    [3.0, 1.0]
    """
    return plan.measure.cost(plan.capacities) - plan.measure.cost(plan.lengths)


def most_padded(plan: Plan, count: int) -> NDArray[np.intp]:
    """Give the items that are padded by most work, those of most first."""
    padding = item_padding(plan)
    if count < len(padding):
        chosen = np.argpartition(-padding, count)[:count]
    else:
        chosen = np.arange(len(padding))
    return chosen[np.lexsort((chosen, -padding[chosen]))]


def find_carriers(plan: Plan) -> Carriers:
    """Say on how few items the padding of slots lies: where their share exceeds their number most.

    >>> from stowplan.planners import assign_slots
    >>> plan = assign_slots({"atoms": [1, 4, 4, 4, 5]}, [{"atoms": 5}])
    >>> find_carriers(plan)
    Carriers(items=1, share=0.5714...)
    """
    padding = np.sort(item_padding(plan))[::-1]
    lost = _lost(plan)
    if not len(padding) or not lost:
        return Carriers(0, 0.0)
    carried = np.cumsum(padding) / lost
    place = int((carried - np.arange(1, len(padding) + 1) / len(padding)).argmax())
    return Carriers(place + 1, float(carried[place]))


def _lost(plan: Plan) -> float:
    """Work that is padded and not useful."""
    total = measure_padding(plan).total
    return float(total.slot_padding[0] + total.row_padding[0])


def find_causes(plan: Plan) -> Causes:
    """Find the items that make their slots as large as they are.

    The items of a slot are put in order by how much of the capacity they fill, on the dim where
    they fill most. Leaving out the largest from some place on, the capacity of the others falls to
    their own; that place is taken which saves most work.

    Examples
    --------
    >>> from stowplan.planners import assign_slots
    >>> plan = assign_slots({"atoms": [2, 2, 2, 10]}, [{"atoms": 10}])
    >>> causes = find_causes(plan)
    >>> causes.items.tolist(), causes.share, causes.fits
    ([3], 1.0, {0: {'atoms': 2}})
    """
    members: dict[int, list[NDArray[np.intp]]] = {}
    for batch in plan.batches:
        members.setdefault(batch.slot, []).append(batch.items[: batch.count])
    items: list[NDArray[np.intp]] = [np.empty(0, np.intp)]
    saved, fits = 0.0, {}
    for slot, parts in members.items():
        own = np.concatenate(parts)
        gain, out, fit = _best_cut(plan, slot, own)
        if gain > 0:
            saved += gain
            items.append(out)
            fits[slot] = fit
    lost = _lost(plan)
    return Causes(np.concatenate(items), saved / lost if lost else 0.0, fits)


def _best_cut(
    plan: Plan, slot: int, own: NDArray[np.intp]
) -> tuple[float, NDArray[np.intp], dict[str, int]]:
    """Work saved, the items left out, and the capacity of the others."""
    if not len(own) or not plan.dims:
        return 0.0, own[:0], {}
    capacity = np.array([[plan.slots[slot][dim] for dim in plan.dims]], np.int64)
    lengths = np.maximum(plan.lengths[own], 1)
    order = np.argsort((lengths / capacity).max(axis=1), kind="stable")
    largest = np.maximum.accumulate(lengths[order], axis=0)
    held = np.arange(1, len(own) + 1)
    saves = held * (plan.measure.cost(capacity)[0] - plan.measure.cost(largest))
    saves[: -(-len(own) // 2) - 1] = 0.0  # the others are the half at least
    place = int(saves.argmax())
    fit = dict(zip(plan.dims, largest[place].tolist(), strict=True))
    return float(saves[place]), own[order[place + 1 :]], fit


def _price(plan: Plan, lengths: NDArray[np.int64], by: By) -> Array:
    if by == "work":
        return plan.measure.cost(lengths)
    if by == "rows":
        return np.ones(len(lengths))
    if by != "bytes":
        raise PlanError(f'measure_padding: by={by!r}; allowed are "work", "rows" and "bytes"')
    if plan.item_bytes is None:
        raise PlanError(
            "measure_padding: this plan does not know the bytes of an item. Make it with sp.plan, "
            'or say them: dataclasses.replace(plan, item_bytes="24 * atoms").'
        )
    return plan.measure.evaluate(Expression.parse(plan.item_bytes, plan.measure.names), lengths)
