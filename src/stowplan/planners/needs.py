"""How many rows minibatches need, and of which slots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stowplan.planners.classes import distinct_rows
from stowplan.planners.improve import Classes
from stowplan.planners.sizes import Lengths

__all__ = ["Need", "fill_rows", "nest", "virtual_rows"]

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Need:
    """Rows that minibatches need for any n of all items.

    The mean, and `margin` standard deviations of the hypergeometric distribution; with no
    margin given, as many as there could ever be.

    >>> Need(items=100, minibatch=10, margin=0.0)(np.array([1, 10, 11, 100])).tolist()
    [1, 1, 2, 10]
    >>> Need(items=100, minibatch=10, margin=None)(np.array([1, 10, 11, 100])).tolist()
    [1, 10, 10, 10]
    """

    items: int
    minibatch: int
    margin: float | None

    @property
    def least_steps(self) -> float:
        """Minibatches of an epoch if all are full."""
        return self.items / self.minibatch

    def __call__(self, n: Counts) -> Counts:
        """Rows for `n` of the items."""
        if self.margin is None:
            return np.minimum(n, self.minibatch)
        share = n / self.items
        unseen = (self.items - self.minibatch) / max(self.items - 1, 1)
        spread = np.sqrt(self.minibatch * share * (1 - share) * unseen)
        rows = np.ceil(self.minibatch * share + self.margin * spread - 1e-9)
        return np.minimum(rows, self.minibatch).astype(np.int64)


def virtual_rows(classes: Classes, need: Need) -> tuple[Lengths, Counts, bool]:
    """Sizes and numbers of the rows of a minibatch, were every row its own slot.

    Also whether in every group each class holds all before it.
    """
    work = classes.measure.cost(classes.lengths)
    order = np.lexsort([np.log(classes.lengths).sum(axis=1), work, classes.groups])
    lengths, groups = classes.lengths[order], classes.groups[order]
    last = np.append(groups[1:] != groups[:-1], True)
    total = np.cumsum(classes.counts[order])
    above = total[last][groups] - total + classes.counts[order]  # items from a class up
    rows = need(above)
    rise = rows - np.where(last, 0, np.append(rows[1:], 0))
    tops = np.flatnonzero(rise)
    runs = np.maximum.reduceat(lengths, np.concatenate([[0], tops[:-1] + 1]), axis=0)
    ordered = bool(((lengths[1:] >= lengths[:-1]).all(axis=1) | last[:-1]).all())
    return runs, rise[tops], ordered


def fill_rows(classes: Classes, slots: Lengths, need: Need) -> tuple[Lengths, Counts]:
    """Rows of each slot, and the slots that have any, cheapest first.

    Items may move up into the slots that hold theirs: a slot, its cheapest holder, the
    cheapest holder of that and so on together have R(items that they are native to) rows. R is
    concave, so that branches which share holders never need more together (Hall's theorem).
    """
    while True:
        slots, native = classes.fit(slots)
        used, native = np.unique(native, return_inverse=True)
        slots = slots[used]
        items = np.bincount(native.reshape(-1), weights=classes.counts).astype(np.int64)
        rows = need(items)
        path = items.copy()  # natives of a slot and of its holders
        for index in reversed(range(len(slots))):
            holds = (slots[index] <= slots[index + 1 :]).all(axis=1)
            for axis in classes.exact_axes:
                holds &= slots[index, axis] == slots[index + 1 :, axis]
            if holds.any():
                holder = index + 1 + int(holds.argmax())
                path[index] += path[holder]
                rows[index] = need(path[index]) - need(path[holder])
        if need.margin is not None:
            mean = items * (need.minibatch / need.items)
            for _ in range(need.minibatch - int(rows.sum())):
                rows[(mean - rows).argmax()] += 1
        if (rows > 0).all():
            return slots, rows
        slots = slots[rows > 0]


def nest(classes: Classes, slots: Lengths) -> Lengths:
    """Slots that hold all those cheaper, of equal exact size."""
    slots = slots[np.argsort(classes.measure.cost(slots), kind="stable")]
    groups = distinct_rows(slots[:, classes.exact_axes])[1]
    for group in np.unique(groups):
        slots[groups == group] = np.maximum.accumulate(slots[groups == group], axis=0)
    return slots
