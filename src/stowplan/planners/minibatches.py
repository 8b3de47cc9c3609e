"""Slots and rows for shuffled minibatches: each slot has one fixed shape in all steps."""

from __future__ import annotations

from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from stowplan.planners.candidates import Candidates
from stowplan.planners.classes import distinct_rows, thin
from stowplan.planners.cost import Costs, row_ladder
from stowplan.planners.improve import Classes, settle
from stowplan.planners.needs import Need, fill_rows, nest, virtual_rows
from stowplan.planners.seating import Seats, draw_minibatches
from stowplan.planners.sizes import Lengths, SizeTable
from stowplan.planners.tables import aligned

__all__ = ["MinibatchSlots", "choose_minibatch_slots", "shuffled"]

Counts = NDArray[np.int64]
MARGINS = (0.0, 0.25, 0.5, 1.0, 2.0)  # standard deviations of rows above their mean
CLASSES = 1 << 14
TRIED = 1000  # minibatches drawn to compare choices
TRIED_ITEMS = 1 << 15  # fewer minibatches where they have more items than that
LEAST_TRIED = 30  # ... but so many
PATIENCE = 3  # numbers of slots that may be tried without gain
MOST_EPOCHS = 64
COUNTED = 4000  # minibatches of which the share that overflows is counted
COUNTED_ITEMS = 1 << 18


class MinibatchSlots(list[dict[str, int]]):
    """Slots with rows for minibatches, as `choose_slots` gives them; they do not change.

    A list of dicts for `assign_slots`, `plan` and `MinibatchSampler`; printed, a table.

    Attributes
    ----------
    minibatch : int
        Items of a minibatch.
    overflow : float
        Share of plain shuffled minibatches of so many items that do not fit the rows. The
        sampler makes minibatches that do.
    occupancy : float
        Useful / padded work of the minibatches that the sampler makes.
    steps : float
        Minibatches of an epoch of the sampler, on average.
    """

    minibatch: int
    overflow: float
    occupancy: float
    steps: float

    def __init__(
        self,
        slots: list[dict[str, int]],
        minibatch: int,
        overflow: float,
        occupancy: float,
        steps: float,
    ) -> None:
        super().__init__(slots)
        facts = {"minibatch": minibatch, "overflow": overflow, "occupancy": occupancy}
        self.__dict__.update(facts, steps=steps)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("MinibatchSlots do not change; list(slots) gives a list that does")

    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    __setattr__ = __delattr__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        facts = (self.minibatch, self.overflow, self.occupancy, self.steps)
        return MinibatchSlots, (list(self), *facts)

    def __str__(self) -> str:
        names = list(self[0])
        rows = [["slot", *names]]
        rows += [[str(i), *(str(slot[n]) for n in names)] for i, slot in enumerate(self)]
        lines = aligned(rows)
        slots = f"{len(self)} slot{'s' * (len(self) > 1)} for minibatches of {self.minibatch}"
        lines.append(f"{slots}: {100 * self.occupancy:.1f} % of work.")
        share = f"{100 * self.overflow:.1f} % of shuffled minibatches overflow"
        lines.append(
            f"{share}; their surplus goes into the next." if self.overflow else f"{share}."
        )
        return "\n".join(lines)


def choose_minibatch_slots(
    table: SizeTable,
    minibatch: int,
    overflow: Literal["carry", "error"],
    seed: int,
    costs: Costs,
    count: int | None,
    most: int | None,
) -> MinibatchSlots:
    """Slots and rows with the fewest seconds per epoch, tried on shuffled minibatches.

    The n largest items need R(n) rows that hold them. A minibatch is then as many virtual rows
    as R grows by from one size class to the next, each as long as the classes between: slots
    are chosen for these as they are for items, for several margins of R above the mean.
    """
    items = len(table.lengths)
    minibatch = min(minibatch, items)
    search = Search(table, Trials(table, minibatch, seed), costs, count, most)
    for margin in (None,) if overflow == "error" else MARGINS:
        search.run(Need(items, minibatch, margin))
    assert search.best is not None
    slots, rows = _tight(table, search.best[0]), search.best[1]
    order = np.argsort(table.measure.cost(slots), kind="stable")
    seats = search.trials.seats(slots[order], rows[order])
    occupancy, steps = search.trials.run(seats)
    share = search.trials.overflow(seats)
    return MinibatchSlots(list(seats.slots), minibatch, share, occupancy, steps)


def shuffled(items: int, seed: int, epoch: int) -> NDArray[np.intp]:
    """The order of the items in one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(items)


class Search:
    """The best slots and rows so far, and ways to better ones."""

    def __init__(
        self, table: SizeTable, trials: Trials, costs: Costs, count: int | None, most: int | None
    ) -> None:
        lengths, _, counts = distinct_rows(table.padded)
        lengths, counts = thin(lengths, counts, CLASSES, table.exact_axes)
        groups = distinct_rows(lengths[:, table.exact_axes])[1]
        self.classes = Classes(lengths, counts, groups, table.exact_axes, table.measure)
        self.table, self.trials = table, trials
        self.costs = costs if count is None else Costs(1.0, 0.0, 0.0)  # the least padded work
        self.count, self.most = count, most
        self.best: tuple[Lengths, Counts] | None = None
        self.seconds = np.inf  # of an epoch
        self._by_items: Candidates | None = None

    def run(self, need: Need) -> None:
        """Try slots for rows that grow so with the number of items."""
        lengths, rows, ordered = virtual_rows(self.classes, need)
        searches = [self._candidates(lengths, rows)]
        if not ordered:  # rows along one order are longer than they need be
            if self._by_items is None:
                self._by_items = self._candidates(self.classes.lengths, self.classes.counts)
            searches.append(self._by_items)
        ideal = float(rows @ self.table.measure.cost(lengths)) if ordered else 0.0
        least, idle = np.inf, 0
        for number in self._numbers(searches[0]):
            if self._epoch(ideal, number, need.least_steps) >= self.seconds:
                return
            bounds = []
            for search in searches:
                slots = settle(self.classes, search.best(number)[0], rounds=2)[0]
                bounds += [self._try(slots, need)]
                if not ordered:
                    bounds += [self._try(nest(self.classes, slots), need)]
            idle = 0 if min(bounds) < least else idle + 1
            least = min(least, *bounds)
            if idle == PATIENCE:
                return

    def _candidates(self, lengths: Lengths, counts: Counts) -> Candidates:
        table = SizeTable(lengths, self.table.measure, self.table.exact)
        return Candidates(table, "choose_slots", self.count or self.most, counts)

    def _numbers(self, candidates: Candidates) -> list[int]:
        fewest = candidates.fewest
        limit = min(candidates.most, len(self.classes.lengths))
        numbers = [fewest, *(n for n in row_ladder(limit) if fewest < n <= limit)]
        return numbers if self.count is None else [limit, *reversed(numbers)]

    def _epoch(self, work: float, slots: int, steps: float) -> float:
        return self.costs.seconds(work * steps, slots * steps, slots)

    def _try(self, slots: Lengths, need: Need) -> float:
        """Seconds of an epoch if every minibatch were full; keep slots that are the best."""
        slots, rows = fill_rows(self.classes, slots, need)
        if self.count is not None and len(slots) > self.count:
            return np.inf
        work = float(rows @ self.table.measure.cost(slots))
        bound = self._epoch(work, len(slots), need.least_steps)
        if bound < self.seconds:
            steps = self.trials.run(self.trials.seats(slots, rows))[1]
            seconds = self._epoch(work, len(slots), steps)
            if seconds < self.seconds:
                self.best, self.seconds = (slots, rows), seconds
        return bound


def _tight(table: SizeTable, slots: Lengths) -> Lengths:
    """Slots no longer than the longest item that they hold."""
    sizes = distinct_rows(table.padded)[0]
    tight = np.empty_like(slots)
    for index, slot in enumerate(slots):
        held = (sizes <= slot).all(axis=1)
        for axis in table.exact_axes:
            held &= sizes[:, axis] == slot[axis]
        tight[index] = sizes[held].max(axis=0)
    return tight


class Trials:
    """Shuffled minibatches by which choices are compared: of some items where there are many."""

    def __init__(self, table: SizeTable, minibatch: int, seed: int) -> None:
        items = len(table.lengths)
        most = min(TRIED * minibatch, max(TRIED_ITEMS, LEAST_TRIED * minibatch))
        order = shuffled(items, seed, 0)
        lengths = table.lengths[order[:most]] if items > most else table.lengths
        self.table = SizeTable(lengths, table.measure, table.exact)
        self.items, self.minibatch, self.seed = items, minibatch, seed
        self.whole = items <= most
        self.orders = [np.arange(most)]
        if self.whole:
            epochs = min(most // items, MOST_EPOCHS)
            self.orders = [shuffled(items, seed, epoch) for epoch in range(epochs)]
        self.work = table.measure.cost(lengths)

    def seats(self, slots: Lengths, rows: Counts) -> Seats:
        """The seats of so many rows of slots."""
        measure = self.table.measure
        names = [*measure.dims, "rows"]
        listed = [
            dict(zip(names, slot, strict=True)) for slot in np.column_stack([slots, rows]).tolist()
        ]
        sizes = {name: self.table.lengths[:, axis] for axis, name in enumerate(measure.dims)}
        derived = {name: e.text for name, e in measure.derived.items()}
        how: dict[str, Any] = {"work": measure.work.text, "derived": derived}
        return Seats(sizes, listed, exact=self.table.exact, who="choose_slots", **how)

    def run(self, seats: Seats) -> tuple[float, float]:
        """Work occupancy of the sampler's minibatches, and their number in an epoch."""
        steps, seated, useful = 0, 0, 0.0
        for order in self.orders:
            for items, ran_out in draw_minibatches(seats, order, self.minibatch):
                if ran_out and not self.whole:
                    break
                steps += 1
                seated += len(items)
                useful += float(self.work[items].sum())
        padded = steps * float(np.dot(seats.rows, seats.costs))
        return useful / padded if padded else 1.0, steps * self.items / seated

    def overflow(self, seats: Seats) -> float:
        """Share of plain shuffled minibatches that leave an item over."""
        each = len(self.work) // self.minibatch
        counted = min(COUNTED, max(COUNTED_ITEMS // self.minibatch, LEAST_TRIED))
        if self.minibatch == len(self.work):
            counted = 1  # there is no other minibatch
        rng = np.random.default_rng(self.seed)
        found: list[bool] = []
        while len(found) < counted:
            order = rng.permutation(len(self.work))[: each * self.minibatch]
            found += [bool((seats.seat(part) < 0).any()) for part in order.reshape(each, -1)]
        return float(np.mean(found))
