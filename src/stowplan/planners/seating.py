"""Which row of which slot each item of a minibatch takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError
from stowplan.planners.classes import distinct_rows
from stowplan.planners.fitting import (
    Fitter,
    Limits,
    overflow_message,
    read_limits,
    slot_code,
)
from stowplan.planners.sizes import Measure, Sizes, listed, refuse_overflow, size_table

__all__ = ["Seats", "draw_minibatches"]


class Seats:
    """Slots with rows, and which of them hold each of many items.

    Parameters
    ----------
    sizes : mapping of dim to integers (items,)
        Length of each item along each ragged dim.
    slots : sequence of mappings
        Limits as in `assign_slots`, each with ``"rows"``; in any order, and the same slot may
        come twice. One that leaves an exact dim open becomes one slot for each of its sizes.
    work, derived, exact
        As in `stowplan.kernel`.
    who : str
        Begins the errors.

    Attributes
    ----------
    slots : tuple of dict
        Capacity of every dim and ``"rows"``, in the order given.
    rows : tuple of int
        Rows of each slot.
    costs : tuple of float
        Work of one row of each slot.

    Raises
    ------
    PlanError
        For an item that fits no slot, and for a slot without rows.

    Examples
    --------
    >>> seats = Seats({"k": [3, 9, 2, 4]}, [{"k": 4, "rows": 2}, {"k": 9, "rows": 1}])
    >>> seats.seat([0, 2, 3]).tolist()  # the third takes the row of the larger slot
    [0, 0, 1]
    >>> seats.seat([0, 1, 2, 3]).tolist()  # which item 1 needs itself
    [0, 1, 0, -1]
    """

    def __init__(
        self,
        sizes: Sizes,
        slots: Sequence[Mapping[str, int]],
        *,
        work: str | None = None,
        derived: Mapping[str, str] | None = None,
        exact: Sequence[str] = (),
        who: str = "Seats",
    ) -> None:
        _refuse_types(who, sizes, slots)
        fitter = Fitter(size_table(who, sizes, work, derived, exact, None if sizes else 0))
        measure = fitter.table.measure
        read = [_read(slot, f"{who}: slot {index}", measure) for index, slot in enumerate(slots)]
        limits = [part for limit in read for part in fitter.split_exact(limit)]
        holds = np.array([fitter.holds(limit) for limit in limits], bool)
        holds = holds.reshape(len(limits), len(fitter.sizes)).T  # (distinct sizes, slots)
        homeless = fitter.counts_of(np.asarray(~holds.any(axis=1)))
        if len(homeless):
            costs = [fitter.row_work(limit) for limit in limits]
            raise PlanError(
                overflow_message(who, fitter.table, homeless, limits, costs, with_rows=True)
            )
        none = np.zeros(len(fitter.sizes), bool)
        self.slots = tuple(fitter.resolve(limit, none) for limit in limits)
        self.rows = tuple(slot["rows"] for slot in self.slots)
        for slot in self.slots:
            refuse_overflow(who, slot["rows"], [slot[n] for n in measure.dims], measure.dims)
        self.costs = tuple(fitter.row_work(slot) for slot in self.slots)
        self.table = fitter.table
        # The cheapest first; of equals the one that holds the other comes last.
        elements = [np.log([slot[n] for n in measure.dims]).sum() for slot in self.slots]
        ranked = np.lexsort([elements, self.costs])
        self._classify(holds[:, ranked], ranked)
        self.kinds = fitter.inverse(self._kind)

    def _classify(self, holds: NDArray[np.bool_], ranked: NDArray[np.intp]) -> None:
        """Number the sets of slots that hold a size, the costliest cheapest slot first."""
        packed = np.packbits(holds, axis=1).astype(np.int64)
        sets, kind, _ = distinct_rows(packed)
        member = np.unpackbits(sets.astype(np.uint8), axis=1)[:, : len(ranked)].astype(bool)
        native = member.argmax(axis=1) if len(ranked) else np.zeros(len(sets), np.intp)
        order = np.lexsort([member.sum(axis=1), -native])
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        self._kind = place[kind]
        member, native = member[order], native[order]
        self.choices = [tuple(ranked[np.flatnonzero(row)].tolist()) for row in member]
        self.turns: list[int] = (-native).tolist()
        self.nested = _nested(member, native)

    def seat(self, items: NDArray[np.intp] | Sequence[int]) -> NDArray[np.intp]:
        """Slot of each item, -1 for those left over; as many are seated as is possible.

        The native slot of an item is the cheapest that holds it. Items take rows from the
        costliest native slot down, the earlier first where it is the same: each the cheapest free
        row that holds it. Where slots do not hold one another, those seated move up for others.
        """
        kinds: list[int] = self.kinds[np.asarray(items, np.intp)].tolist()
        turns = self.turns
        order = sorted(range(len(kinds)), key=[turns[kind] for kind in kinds].__getitem__)
        rows = OpenRows(self)
        seated = [place for place in order if rows.take(kinds[place])]
        found = np.full(len(kinds), -1, np.intp)
        found[seated] = rows.slots
        return found


class OpenRows:
    """The rows of one minibatch while items take them."""

    __slots__ = ("choices", "free", "full", "kinds", "left", "nested", "slots")

    def __init__(self, seats: Seats) -> None:
        self.choices = seats.choices
        self.nested = seats.nested
        self.free = list(seats.rows)
        self.left = sum(seats.rows)
        self.full: set[int] = set()  # kinds for which there is no row any more
        self.kinds: list[int] = []  # of those seated, in order
        self.slots: list[int] = []

    def take(self, kind: int) -> bool:
        """Give a row to an item of a kind, if there is one."""
        free = self.free
        for slot in self.choices[kind]:
            if free[slot]:
                self._give(kind, slot)
                return True
        if self.nested or not self.left or kind in self.full:
            return False
        slot = self._vacate(kind)
        if slot < 0:
            self.full.add(kind)
            return False
        self._give(kind, slot)
        return True

    def _give(self, kind: int, slot: int) -> None:
        self.free[slot] -= 1
        self.left -= 1
        self.kinds.append(kind)
        self.slots.append(slot)

    def _vacate(self, kind: int) -> int:
        """Free a row by moving items along the shortest chain to a free one; the slot, or -1.

        Such a chain exists where any other seating holds more items (Berge 1957).
        """
        reached = list(self.choices[kind])
        mover: dict[int, int] = {}  # slot: place among those seated of the item to move there
        for slot in reached:  # grows on the way
            for place, taken in enumerate(self.slots):
                if taken != slot:
                    continue
                for other in self.choices[self.kinds[place]]:
                    if other in reached:
                        continue
                    reached.append(other)
                    mover[other] = place
                    if self.free[other]:
                        return self._move(mover, other)
        return -1

    def _move(self, mover: dict[int, int], slot: int) -> int:
        self.free[slot] -= 1
        while slot in mover:
            place = mover[slot]
            slot, self.slots[place] = self.slots[place], slot
        self.free[slot] += 1
        return slot


def draw_minibatches(
    seats: Seats, order: NDArray[np.intp], minibatch: int
) -> Iterator[tuple[list[int], bool]]:
    """Minibatches of items that all find rows, and whether the order had run out.

    Each draws items in order until it has `minibatch` of them. What finds no row waits, and is
    offered first to the next; where as many as a minibatch wait, it goes with fewer.

    >>> seats = Seats({"k": [9, 9, 2, 2]}, [{"k": 2, "rows": 1}, {"k": 9, "rows": 1}])
    >>> [items for items, _ in draw_minibatches(seats, np.arange(4), 2)]
    [[0, 2], [1, 3]]
    """
    items: list[int] = order.tolist()
    kinds: list[int] = seats.kinds[order].tolist()
    turns = [seats.turns[kind] for kind in kinds]
    drawn = 0
    waiting: list[int] = []  # places in the order
    while drawn < len(items) or waiting:
        stop = min(drawn + minibatch - len(waiting), len(items))
        offer = [*waiting, *range(drawn, stop)]
        drawn = stop
        rows = OpenRows(seats)
        taken: list[int] = []
        waiting = []
        for place in sorted(offer, key=turns.__getitem__):
            (taken if rows.take(kinds[place]) else waiting).append(place)
        taken.sort()
        waiting.sort()
        while len(taken) < minibatch > len(waiting) and rows.left and drawn < len(items):
            (taken if rows.take(kinds[drawn]) else waiting).append(drawn)
            drawn += 1
        yield [items[place] for place in taken], drawn == len(items)


def _nested(member: NDArray[np.bool_], native: NDArray[np.intp]) -> bool:
    """Whether of two sets (kinds, slots) that share a slot the earlier is part of the later.

    Then it never matters which row an item takes, as long as it takes its turn: so no two sets
    have the same native slot.
    """
    kinds, slots = member.shape
    if kinds > slots or len(np.unique(native)) < kinds:
        return False
    shared = member.astype(np.int64) @ member.T
    part = (shared == 0) | (shared == member.sum(axis=1)[:, None])
    return bool(part[np.triu_indices(kinds, 1)].all())


def _refuse_types(who: str, sizes: object, slots: object) -> None:
    if not isinstance(sizes, Mapping):
        raise PlanError(
            f"{who}: sizes are of type {type(sizes).__name__}; give the lengths of all items by "
            "dim: {'atoms': [3, 5]}."
        )
    if isinstance(slots, str | Mapping) or not isinstance(slots, Sequence):
        raise PlanError(
            f"{who}: slots={slots!r}; give a list of slots with rows, such as "
            "choose_slots(sizes, minibatch=...) gives."
        )


def _read(slot: Mapping[str, int], where: str, measure: Measure) -> Limits:
    limits = read_limits(slot, where, measure)
    if "rows" not in limits:
        raise PlanError(
            f"{where} ({listed(slot)}) carries no rows. Say how many items of a minibatch "
            f"it takes: {slot_code({**slot, 'rows': 8})}, or take the slots of "
            "choose_slots(sizes, minibatch=...)."
        )
    return limits
