"""Make given slots better: move items to the cheapest, shrink, split one, merge two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stowplan.planners.sizes import Lengths, Measure

__all__ = ["Classes", "Found", "exchange", "settle"]

Found = tuple[Lengths, float]  # capacities (slots, dims), cheapest first, and their padded work
ROUNDS = 30
AT_ONCE = 1 << 20  # comparisons; more are made slot by slot
ENOUGH = 1 - 1e-9  # a gain smaller than this is rounding


@dataclass(frozen=True, eq=False)
class Classes:
    """Size classes with the number of items in each."""

    lengths: Lengths  # (m, dims)
    counts: NDArray[np.int64]  # (m,)
    groups: NDArray[np.intp]  # (m,) classes of different groups never share a slot
    exact_axes: list[int]
    measure: Measure

    def fit(self, slots: Lengths) -> tuple[Lengths, NDArray[np.intp]]:
        """Slots by work, and the first of them that holds each class (one must)."""
        slots = slots[np.argsort(self.measure.cost(slots), kind="stable")]
        if self.lengths.size * len(slots) <= AT_ONCE:
            held: NDArray[np.bool_] = self.lengths[:, None] <= slots
            for axis in self.exact_axes:
                held[..., axis] = self.lengths[:, None, axis] == slots[:, axis]
            held = np.all(held, axis=-1)
            assert np.any(held, axis=1).all(), "a size class fits no slot"
            return slots, np.argmax(held, axis=1)
        choice = np.zeros(len(self.lengths), np.intp)
        left = np.arange(len(self.lengths))
        columns = [self.lengths[:, axis] for axis in range(self.lengths.shape[1])]
        for index, slot in enumerate(slots):
            fit = np.ones(len(left), bool)
            for axis, column in enumerate(columns):
                fit &= column == slot[axis] if axis in self.exact_axes else column <= slot[axis]
            choice[left[fit]] = index
            left = left[~fit]
            columns = [column[~fit] for column in columns]
        assert not len(left), "a size class fits no slot"
        return slots, choice

    def longest(self, choice: NDArray[np.intp], slots: int) -> Lengths:
        """Tight capacities (slots, dims) of the classes in each slot; 0 for an empty one."""
        found = np.zeros((slots, self.lengths.shape[1]), np.int64)
        for axis in range(found.shape[1]):
            np.maximum.at(found[:, axis], choice, self.lengths[:, axis])
        return found

    def padded(self, slots: Lengths, choice: NDArray[np.intp]) -> float:
        """Padded work of a choice."""
        rows = np.bincount(choice, weights=self.counts, minlength=len(slots))
        return float(rows @ self.measure.cost(slots))


def settle(classes: Classes, slots: Lengths, rounds: int = ROUNDS) -> Found:
    """Move each class to the cheapest slot that holds it, shrink the slots, until nothing moves.

    Empty slots are dropped.
    """
    cost = np.inf
    for _ in range(rounds):
        slots, choice = classes.fit(slots)
        used, choice = np.unique(choice, return_inverse=True)
        slots = classes.longest(choice.reshape(-1), len(used))
        new = classes.padded(slots, choice.reshape(-1))
        if new >= cost * ENOUGH:
            break
        cost = new
    return slots[np.argsort(classes.measure.cost(slots), kind="stable")], min(cost, new)


def _split(classes: Classes, slots: Lengths) -> Lengths | None:
    """The slots with the one cut in two that saves most; None if nothing does."""
    slots, choice = classes.fit(slots)
    measure = classes.measure
    work = measure.cost(classes.lengths)
    owners, lowers, uppers, belows, aboves = [], [], [], [], []
    for index in range(len(slots)):
        members = np.flatnonzero(choice == index)
        if len(members) < 2:
            continue
        lengths, counts = classes.lengths[members], classes.counts[members].astype(float)
        for key in [*lengths.T, work[members]]:
            order = np.argsort(key, kind="stable")
            lowers.append(np.maximum.accumulate(lengths[order], axis=0)[:-1])
            uppers.append(np.maximum.accumulate(lengths[order[::-1]], axis=0)[::-1][1:])
            rows = np.cumsum(counts[order])
            belows.append(rows[:-1])
            aboves.append(rows[-1] - rows[:-1])
            owners.append(np.full(len(rows) - 1, index))
    if not owners:
        return None
    owner, lower, upper = np.concatenate(owners), np.concatenate(lowers), np.concatenate(uppers)
    below, above = np.concatenate(belows), np.concatenate(aboves)
    saved = (below + above) * measure.cost(slots)[owner]
    saved -= below * measure.cost(lower) + above * measure.cost(upper)
    cut = int(saved.argmax())
    if saved[cut] <= 0:
        return None
    others = np.delete(slots, owner[cut], axis=0)
    return np.concatenate([others, lower[cut : cut + 1], upper[cut : cut + 1]])


def _merge(classes: Classes, slots: Lengths) -> Lengths:
    """The slots with the two joined that cost least to join."""
    slots, choice = classes.fit(slots)
    rows = np.bincount(choice, weights=classes.counts, minlength=len(slots))
    cost = rows * classes.measure.cost(slots)
    union = np.maximum(slots[:, None], slots)  # (slots, slots, dims)
    rise = (rows[:, None] + rows) * classes.measure.cost(union) - cost[:, None] - cost
    exact = slots[:, classes.exact_axes]
    rise[(exact[:, None] != exact).any(axis=-1) | np.tri(len(slots), dtype=bool)] = np.inf
    a, b = np.unravel_index(int(rise.argmin()), rise.shape)
    return np.concatenate([np.delete(slots, [a, b], axis=0), union[a, b][None]])


def exchange(classes: Classes, found: Found, count: int) -> Found:
    """Split the slot that gains most and merge the two that lose least, while it pays."""
    slots, cost = found
    while len(slots) < count:
        more = _split(classes, slots)
        if more is None:
            break
        slots, cost = settle(classes, more)
    for _ in range(ROUNDS):
        more = _split(classes, slots)
        if more is None:
            break
        other, new = settle(classes, more)
        while len(other) > count:
            other, new = settle(classes, _merge(classes, other))
        if new >= cost * ENOUGH:
            break
        slots, cost = other, new
    return slots, cost
