"""Slots from below: merge the two size classes whose union costs least, again and again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stowplan.planners.sizes import Lengths, Measure

__all__ = ["Merges"]

Floats = NDArray[np.float64]


class Merges:
    """The order in which classes merge, and the padded work after each merge.

    Parameters
    ----------
    lengths : array (m, dims)
        Size classes, distinct.
    counts : array (m,)
        Items of each.
    groups : array (m,)
        Classes of different groups never merge.
    """

    def __init__(
        self,
        lengths: Lengths,
        counts: NDArray[np.int64],
        groups: NDArray[np.intp],
        measure: Measure,
    ) -> None:
        self.lengths = lengths
        self._pairs: list[tuple[int, int]] = []
        cost = counts * measure.cost(lengths)
        self.work = [float(cost.sum())]  # padded work with m, m - 1, ... slots
        if len(lengths) > 1:
            self._merge_all(counts.astype(np.float64), cost, groups, measure)

    def _merge_all(
        self, rows: Floats, cost: Floats, groups: NDArray[np.intp], measure: Measure
    ) -> None:
        caps = self.lengths.copy()
        union = np.maximum(caps[:, None], caps)  # (m, m, dims)
        rise = (rows[:, None] + rows) * measure.cost(union) - cost[:, None] - cost
        rise[groups[:, None] != groups] = np.inf
        np.fill_diagonal(rise, np.inf)
        partner = rise.argmin(axis=1)
        least = rise[np.arange(len(rise)), partner]
        alive = np.ones(len(rise), bool)
        while True:
            a = int(least.argmin())
            b = int(partner[a])
            if not np.isfinite(least[a]):
                return
            self._pairs.append((a, b))
            self.work.append(self.work[-1] + float(least[a]))
            caps[a] = np.maximum(caps[a], caps[b])
            rows[a] += rows[b]
            cost[a] = rows[a] * measure.cost(caps[a][None])[0]
            alive[b] = False
            rise[b], rise[:, b], least[b] = np.inf, np.inf, np.inf
            row = (rows + rows[a]) * measure.cost(np.maximum(caps, caps[a])) - cost - cost[a]
            row[~alive | (groups != groups[a])] = np.inf
            row[a] = np.inf
            rise[a], rise[:, a] = row, row
            closer = row < least
            partner[closer], least[closer] = a, row[closer]
            stale = np.flatnonzero(alive & ~closer & ((partner == a) | (partner == b)))
            stale = np.union1d(stale, a)
            partner[stale] = rise[stale].argmin(axis=1)
            least[stale] = rise[stale, partner[stale]]

    @property
    def fewest(self) -> int:
        """Slots left when nothing more may merge."""
        return len(self.lengths) - len(self._pairs)

    def slots(self, count: int) -> Lengths:
        """Capacities (count, dims) at which `count` slots are left."""
        caps = self.lengths.copy()
        alive = np.ones(len(caps), bool)
        for a, b in self._pairs[: len(caps) - count]:
            caps[a] = np.maximum(caps[a], caps[b])
            alive[b] = False
        return caps[alive]
