"""Several ways to slots of several dims; the best of them wins."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError
from stowplan.planners.classes import distinct_rows, thin
from stowplan.planners.cost import Costs, row_ladder
from stowplan.planners.improve import Classes, Found, exchange, settle
from stowplan.planners.merging import Merges
from stowplan.planners.partition import cut_line, cut_order
from stowplan.planners.sizes import LARGEST, Lengths, SizeTable

__all__ = ["Candidates", "power_slots"]

CLASSES = 1000
LINE_CLASSES = 2000
MERGED_CLASSES = 300  # merging is quadratic in memory and about cubic in time
MOST_CUTS = 64  # beyond that many slots only merging is tried
MOST_GRIDS = 256
QUICK_SECONDS = 0.5
IMPROVED_COUNTS = 3  # of all the counts compared, those that are improved before one is chosen


def power_slots(lengths: Lengths, exact_axes: list[int]) -> Lengths:
    """Lengths >= 1 rounded up to powers of two, but for exact axes.

    >>> power_slots(np.array([[3, 5], [4, 6]]), [1]).tolist()
    [[4, 5], [4, 6]]
    """
    _, exponents = np.frexp((lengths - 1).astype(np.float64))
    rounded = np.left_shift(np.int64(1), np.minimum(exponents, 62).astype(np.int64))
    rounded[exponents > 62] = LARGEST  # 2^63 is no int64
    rounded[:, exact_axes] = lengths[:, exact_axes]
    return rounded


def cuts_of_dim(classes: Classes, axis: int, most: int) -> list[NDArray[np.int64]]:
    """Levels of one dim, for 1, 2, ... of them, that round up the least work."""
    column = classes.lengths[:, axis]
    values, level = np.unique(column, return_inverse=True)
    share = classes.counts * classes.measure.cost(classes.lengths) / column
    weights = np.bincount(level.reshape(-1), weights=share)
    cuts = cut_line(weights, values.astype(np.float64), most)
    return [values[ends - 1] for ends in cuts]


class Candidates:
    """Slots for one table of sizes, for any count up to `most` (1000, or what exact dims need).

    `counts` says how many items each line of the table stands for, one by default.
    """

    def __init__(
        self,
        table: SizeTable,
        who: str,
        most: int | None = None,
        counts: NDArray[np.int64] | None = None,
    ) -> None:
        self.measure = table.measure
        self.exact_axes = table.exact_axes
        lengths = table.padded
        if counts is None:
            counts = np.ones(len(lengths), np.int64)
        self.items = self._classes(lengths, counts)
        self.fewest = int(self.items.groups.max()) + 1
        self.most = most = max(CLASSES, self.fewest) if most is None else most
        if most < self.fewest:
            names = ", ".join(table.exact)
            raise PlanError(
                f"{who}: at most {most} slots, but {names} must be equal within a slot and has "
                f"{self.fewest} different sizes. Pass count={self.fewest} or more."
            )
        if lengths.shape[1] == 1:
            lengths, level, _ = distinct_rows(lengths)
            counts = np.bincount(level, weights=counts).astype(np.int64)
        else:
            lengths, counts = thin(lengths, counts, CLASSES, self.exact_axes)
        self.classes = self._classes(lengths, counts)
        self._proposed: dict[int, Found] = {}

    def _classes(self, lengths: Lengths, counts: NDArray[np.int64]) -> Classes:
        groups = distinct_rows(lengths[:, self.exact_axes])[1]
        return Classes(lengths, counts, groups, self.exact_axes, self.measure)

    def best(self, count: int) -> Found:
        """Capacities (slots, dims) of at most `count` slots, and their padded work."""
        if self._on_a_line:
            cuts = self._line
            slots = self.classes.lengths[cuts[min(count, len(cuts)) - 1] - 1]
            return slots, self.items.padded(*self.items.fit(slots))
        found = self._finish(self._propose(count)[0])
        if len(self.powers) <= count:
            found = min(found, self._finish(self.powers), key=lambda slots: slots[1])
        return found

    def cheapest(self, costs: Costs) -> Lengths:
        """Capacities at the count with the fewest seconds: work, launches and compiles."""
        price = costs.launch_seconds + costs.compile_seconds
        few, padded = self._fewest_slots
        if (padded - self._useful) * costs.work_seconds <= price:  # not even no padding pays more
            return few
        if self._on_a_line:
            stop = price / costs.work_seconds if costs.work_seconds else np.inf
            c = self.classes
            sizes, rows = thin(c.lengths, c.counts, LINE_CLASSES, [])
            ends = cut_line(rows, self.measure.cost(sizes), self.most, stop)[-1]
            if len(ends) <= MOST_CUTS:  # few enough to be exact
                sizes = c.lengths
                ends = cut_line(c.counts, self.measure.cost(sizes), len(ends))[-1]
            return sizes[ends - 1]
        if self.fewest > CLASSES:
            return self.best(self.fewest)[0]
        merges = self._merges(self.most)
        counts = np.arange(len(merges.lengths), merges.fewest - 1, -1)
        allowed = counts <= self.most
        seconds = np.array(merges.work) * costs.work_seconds + counts * price
        guess = int(counts[allowed][seconds[allowed].argmin()])
        if seconds[allowed].min() < QUICK_SECONDS:  # less than a longer search would take
            return self._finish(settle(self.classes, merges.slots(guess))[0])[0]
        tried = {guess, guess * 3 // 4, guess * 5 // 4, *row_ladder(2 * guess), self.fewest}
        tried = {n for n in tried if self.fewest <= n <= self.most and n > guess // 4}

        def seconds_of(found: Found) -> float:
            return found[1] * costs.work_seconds + len(found[0]) * price

        rough = {count: seconds_of(self._settled(count)[0]) for count in sorted(tried)}
        closest = sorted(rough, key=rough.__getitem__)[:IMPROVED_COUNTS]
        fine = {count: seconds_of(self._propose(count)) for count in closest}
        return self.best(min(fine, key=fine.__getitem__))[0]

    @property
    def _fewest_slots(self) -> Found:
        slots = self.items.longest(self.items.groups, self.fewest)
        return slots, self.items.padded(slots, self.items.groups)

    @property
    def _useful(self) -> float:
        return float(self.items.counts @ self.measure.cost(self.items.lengths))

    @property
    def _on_a_line(self) -> bool:
        return self.classes.lengths.shape[1] == 1 and not self.exact_axes

    @cached_property
    def _line(self) -> list[NDArray[np.intp]]:
        work = self.measure.cost(self.classes.lengths)
        return cut_line(self.classes.counts, work, self.most)

    @cached_property
    def powers(self) -> Lengths:
        """The distinct powers of two that cover all items."""
        return distinct_rows(power_slots(self.items.lengths, self.exact_axes))[0]

    def _finish(self, slots: Lengths) -> Found:
        return settle(self.items, slots, rounds=2)

    def _settled(self, count: int) -> list[Found]:
        """Slots for the thinned classes by each of the ways, best first."""
        found = [settle(self.classes, slots) for slots in self._starts(count)]
        return sorted(found, key=lambda slots: slots[1])

    def _propose(self, count: int) -> Found:
        """Best slots for the thinned classes, improved where that is quick."""
        if count not in self._proposed:
            found = self._settled(count)
            if count <= MOST_CUTS:
                found = [exchange(self.classes, slots, count) for slots in found[:2]]
            self._proposed[count] = min(found, key=lambda slots: slots[1])
        return self._proposed[count]

    def _starts(self, count: int) -> Iterator[Lengths]:
        if self.fewest > CLASSES:  # one slot for each exact size; finer would take too long
            yield self.classes.longest(self.classes.groups, self.fewest)
            return
        merges = self._merges(count)
        yield merges.slots(min(count, len(merges.lengths)))
        if count <= MOST_CUTS:
            for order, cuts in self._orders:
                ends = cuts[min(count - self.fewest, len(cuts) - 1)]
                starts = np.concatenate([[0], ends[:-1]])
                yield np.maximum.reduceat(self.classes.lengths[order], starts, axis=0)
            grids = [grid for grid in self._grids if len(grid[0]) <= count]
            if grids:
                yield min(grids, key=lambda grid: grid[1])[0]

    def _merges(self, count: int) -> Merges:
        return self._few_merges if count <= MOST_CUTS else self._many_merges

    @cached_property
    def _few_merges(self) -> Merges:
        c = self.classes
        thinned = self._classes(*thin(c.lengths, c.counts, MERGED_CLASSES, self.exact_axes))
        return Merges(thinned.lengths, thinned.counts, thinned.groups, self.measure)

    @cached_property
    def _many_merges(self) -> Merges:
        c = self.classes
        return Merges(c.lengths, c.counts, c.groups, self.measure)

    @cached_property
    def _orders(self) -> list[tuple[NDArray[np.intp], list[NDArray[np.intp]]]]:
        """Cuts along the orders max_d size_d / median_d and work, groups apart."""
        c = self.classes
        found = []
        for key in (
            (c.lengths / np.median(c.lengths, axis=0)).max(axis=1),
            self.measure.cost(c.lengths),
        ):
            order = np.lexsort([key, c.groups])
            line = c.lengths[order]
            m = len(line)
            ahead = np.arange(m) >= np.arange(m)[:, None]
            runs = np.where(ahead[..., None], line[None], line[:, None])  # (m, m, dims)
            np.maximum.accumulate(runs, axis=1, out=runs)
            work = self.measure.cost(runs)
            cuts = cut_order(c.counts[order], work, c.groups[order], min(self.most, MOST_CUTS))
            found.append((order, cuts))
        return found

    @cached_property
    def _grids(self) -> list[Found]:
        """Slots of grids with a few levels in each dim, and their padded work."""
        c = self.classes
        most = min(self.most, MOST_CUTS)
        dims = c.lengths.shape[1]
        levels = []
        for axis in range(dims):
            if axis in self.exact_axes:
                levels.append([np.unique(c.lengths[:, axis])])
            else:
                levels.append(cuts_of_dim(c, axis, most))
        shapes = _shapes([len(cuts) for cuts in levels], 2 * most)
        grids = []
        for shape in shapes:
            cell = np.empty_like(c.lengths)
            for axis, number in enumerate(shape):
                edges = levels[axis][number - 1]
                cell[:, axis] = np.searchsorted(edges, c.lengths[:, axis])
            cells, choice, _ = distinct_rows(cell)
            if len(cells) <= most:
                grids.append(c.longest(choice, len(cells)))
        return [(grid, c.padded(*c.fit(grid))) for grid in grids]


def _shapes(most: list[int], cells: int) -> list[tuple[int, ...]]:
    """Levels per dim with at most so many cells; the fewest dropped where there are many."""
    ladder = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    options = [[n for n in ladder if n <= m] for m in most]
    while prod(map(len, options)) > 8 * MOST_GRIDS:
        max(options, key=len).pop()
    shapes = [shape for shape in product(*options) if prod(shape) <= cells]
    return sorted(shapes, key=prod, reverse=True)[:MOST_GRIDS]
