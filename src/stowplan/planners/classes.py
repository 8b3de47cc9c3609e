"""Distinct sizes, and how to thin them by rounding up."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["distinct_rows"]

Lengths = NDArray[np.int64]


def _levels(column: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Distinct values of a column >= 0, ascending, and the level of each entry."""
    if len(column) and column.max() <= 4 * len(column) + 1024:
        present = np.bincount(column) > 0
        return np.flatnonzero(present), (np.cumsum(present) - 1)[column]
    values, inverse = np.unique(column, return_inverse=True)
    return values, inverse.reshape(-1)


def distinct_rows(
    lengths: Lengths,
) -> tuple[Lengths, NDArray[np.intp], NDArray[np.int64]]:
    """Distinct rows of lengths (items, dims) >= 0: rows, row of each item, items of each row.

    >>> distinct, inverse, counts = distinct_rows(np.array([[2, 5], [1, 5], [2, 5]]))
    >>> distinct.tolist(), inverse.tolist(), counts.tolist()
    ([[1, 5], [2, 5]], [1, 0, 1], [1, 2])
    """
    items, dims = lengths.shape
    key = np.zeros(items, np.int64)
    span = 1
    for axis in range(dims):
        values, level = _levels(lengths[:, axis])
        if span * len(values) >= 2**62:  # re-rank, so that the next product fits
            ranks, key = _levels(key)
            span = len(ranks)
        key = key * len(values) + level
        span *= max(len(values), 1)
    if items and span == 1:  # millions of pixels
        return lengths[:1], np.zeros(items, np.intp), np.array([items], np.int64)
    if span <= 4 * items + 1024:
        present = np.bincount(key, minlength=1)
        distinct: Any = np.flatnonzero(present)
        inverse = (np.cumsum(present > 0) - 1)[key] if items else key
        counts = present[distinct]
    else:
        distinct, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
        inverse = inverse.reshape(-1)
    first = np.empty(len(distinct), np.intp)
    first[inverse] = np.arange(items)
    return lengths[first], inverse, counts.astype(np.int64)


def thin(
    lengths: Lengths, counts: NDArray[np.int64], most: int, exact_axes: list[int]
) -> tuple[Lengths, NDArray[np.int64]]:
    """At most about `most` size classes that cover all lengths: each is rounded up.

    Exact axes are never rounded, so more classes are left where those alone have more.
    """
    free = [axis for axis in range(lengths.shape[1]) if axis not in exact_axes]
    if len(lengths) > _CELLS:  # one pass over all sizes, the rest over cells
        per_dim = max(int(_CELLS ** (1 / max(len(free), 1))), 2)
        lengths, counts = _round_up(lengths, counts, dict.fromkeys(free, per_dim))
    else:  # items often share their sizes, as the starts of a pair do
        lengths, counts = _joined(lengths, counts)
    if len(lengths) <= most:
        return lengths, counts
    low, high = 1, 1024
    while low < high:  # the most levels for all axes alike
        per_dim = (low + high + 1) // 2
        if len(_round_up(lengths, counts, dict.fromkeys(free, per_dim))[0]) <= most:
            low = per_dim
        else:
            high = per_dim - 1
    levels = dict.fromkeys(free, low)
    best = _round_up(lengths, counts, levels)
    for axis in free:  # and one more where that still fits
        finer = _round_up(lengths, counts, levels | {axis: low + 1})
        if len(best[0]) < len(finer[0]) <= most:
            best, levels = finer, levels | {axis: low + 1}
    return best


_CELLS = 1 << 17


def _round_up(
    lengths: Lengths, counts: NDArray[np.int64], levels: dict[int, int]
) -> tuple[Lengths, NDArray[np.int64]]:
    """Round axes up to so many of their own values; merge what became equal."""
    rounded = lengths.copy()
    for axis, per_dim in levels.items():
        values, level = _levels(lengths[:, axis])
        if len(values) <= per_dim:
            continue
        rows = np.bincount(level, weights=counts)
        # Levels follow the items, their share of the total length, and the logarithm alike.
        shares = [rows, rows * values, np.diff(np.log(values), prepend=0.0)]
        place = sum(np.cumsum(share) / share.sum() for share in shares) / len(shares)
        bins = np.ceil(place * per_dim - 1e-9).astype(np.intp)
        last = np.append(bins[1:] != bins[:-1], True)
        edges = values[last]
        rounded[:, axis] = edges[np.searchsorted(edges, values)][level]
    return _joined(rounded, counts)


def _joined(lengths: Lengths, counts: NDArray[np.int64]) -> tuple[Lengths, NDArray[np.int64]]:
    """Join equal rows."""
    distinct, inverse, _ = distinct_rows(lengths)
    joined = np.bincount(inverse, weights=counts, minlength=len(distinct))
    return distinct, joined.astype(np.int64)
