"""Best cuts of a sorted line of size classes into consecutive runs, for every count at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["cut_line", "cut_order"]

Floats = NDArray[np.float64]
Ends = NDArray[np.intp]  # one past the last class of each run


def cut_line(counts: NDArray[np.int64], work: Floats, most: int, stop: float = 0.0) -> list[Ends]:
    """Cuts into 1, 2, ..., `most` runs where a run costs its items x the work of its last class.

    Classes stand in ascending work (m,). rows x work is Monge, so the best last cut never moves
    back as the line grows, and divide and conquer finds a layer in m log m (Yao 1980; Aggarwal
    et al. 1987). Ends early once a further run saves less than `stop`: savings only shrink.

    >>> [ends.tolist() for ends in cut_line(np.array([5, 1, 1]), np.array([1.0, 9.0, 10.0]), 3)]
    [[3], [1, 3], [1, 2, 3]]
    """
    m = len(counts)
    before = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)  # (m + 1,)
    best = before[1:] * work
    best = np.concatenate([[0.0], best])  # best[j]: the first j classes
    choices: list[Ends] = []
    cuts = [np.array([m], np.intp)]
    for runs in range(2, min(most, m) + 1):
        new, choice = _layer(best, before, work, runs)
        if best[m] - new[m] < stop:
            break
        best = new
        choices.append(choice)
        cuts.append(_trace(choices, m))
    return cuts


def _layer(best: Floats, before: Floats, work: Floats, runs: int) -> tuple[Floats, Ends]:
    """Cost and last cut of the first j classes in `runs` runs, from those in one less."""
    m = len(work)
    choice = np.full(m + 1, m, np.intp)
    new = np.full(m + 1, np.inf)
    first = runs  # fewer classes than runs have no cut
    span = m + 1 - first
    step = 1 << max(span - 1, 0).bit_length()
    while step:
        ends = np.arange(first + step - 1, m + 1, 2 * step)
        left, right = ends - step, ends + step
        low = np.where(left >= first, choice[np.maximum(left, 0)], runs - 1)
        high = np.where(right <= m, choice[np.minimum(right, m)], m)
        high = np.minimum(high, ends - 1)
        if len(ends):
            new[ends], choice[ends] = _best_cuts(best, before, work, ends, low, high)
        step //= 2
    return new, choice


def _best_cuts(
    best: Floats, before: Floats, work: Floats, ends: Ends, low: Ends, high: Ends
) -> tuple[Floats, Ends]:
    """For each end the cheapest last cut in low..high, all ends in one pass."""
    widths = high - low + 1
    starts = np.cumsum(widths) - widths
    cut = np.arange(int(widths.sum())) + np.repeat(low - starts, widths)
    price = work[ends - 1]
    cost = best[cut] + (np.repeat(before[ends], widths) - before[cut]) * np.repeat(price, widths)
    least = np.minimum.reduceat(cost, starts)
    hits = np.flatnonzero(cost == np.repeat(least, widths))
    return least, cut[hits[np.searchsorted(hits, starts)]]


def cut_order(
    counts: NDArray[np.int64],
    run_work: Floats,
    groups: NDArray[np.intp],
    most: int,
) -> list[Ends]:
    """Cuts into as few runs as there are groups, ..., `most`, any cost of a run.

    Parameters
    ----------
    counts : array (m,)
        Items of each class, in the order to be cut.
    run_work : array (m, m)
        Work of a row that holds classes i..j; only i <= j is read.
    groups : array (m,)
        Consecutive labels; no run crosses from one to another.
    most : int
        Most runs.

    Returns
    -------
    list of arrays
        The cuts, for each number of runs that is possible.
    """
    m = len(counts)
    before = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
    cost = (before[None, 1:] - before[:-1, None]) * run_work
    cost[np.tri(m, k=-1, dtype=bool) | (groups[:, None] != groups)] = np.inf
    best = np.concatenate([[0.0], np.full(m, np.inf)])
    choices: list[Ends] = []
    cuts: list[Ends] = []
    for runs in range(1, min(most, m) + 1):
        total = best[:-1, None] + cost  # (cut, last class)
        choice = np.concatenate([[0], total.argmin(axis=0)])
        best = np.concatenate([[np.inf], total[choice[1:], np.arange(m)]])
        if runs > 1:
            choices.append(choice)
        if np.isfinite(best[m]):
            cuts.append(_trace(choices, m))
    return cuts


def _trace(choices: Sequence[Ends], m: int) -> Ends:
    ends = [m]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    return np.array(ends[::-1], np.intp)
