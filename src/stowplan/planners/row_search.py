"""Items into as few rows as a search finds: greedy orders, then exchanges between a few rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from operator import le
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["fewest_rows"]

EXACT_ITEMS = 8  # so many items have at most 4140 partitions into rows
MOST_SCANS = 10**10  # free places looked at by all greedy searches, about 3 s
EXCHANGED_ROWS = (3, 6)
NOISE = 1.5

Rows = NDArray[np.intp]


def fewest_rows(lengths: NDArray[np.int64], limits: Sequence[int], bound: int, tries: int) -> Rows:
    """Give the row of each item, (items,); rows are numbered in no particular order.

    First fit in decreasing order of the largest share of a limit comes first, so that no result is
    worse. The search ends where `bound` is reached.

    Parameters
    ----------
    lengths : (items, dims)
        None above the limit of its dim.
    limits : (dims,)
    bound
        Rows that are needed whatever the order.
    tries
        Exchanges, each of a few rows.
    """
    best = _greedy(lengths, limits, bound)
    if _count(best) <= bound:
        return best
    if len(lengths) <= EXACT_ITEMS:
        return _search_all(lengths, limits, best)
    return _exchange(lengths, limits, best, bound, tries)


def _count(row: Rows) -> int:
    return int(row.max(initial=-1)) + 1


def _greedy(lengths: NDArray[np.int64], limits: Sequence[int], bound: int) -> Rows:
    """Give the best of two orders, each with first fit and best fit."""
    shares = lengths / np.asarray(limits, np.float64)
    orders = [np.argsort(-key, kind="stable") for key in (shares.max(axis=1), shares.sum(axis=1))]
    best = np.arange(len(lengths))
    scanned = 0
    for rule in ("first", "best"):
        for order in orders:
            if _count(best) <= bound or scanned > MOST_SCANS:
                return best
            row = np.empty(len(lengths), np.intp)
            row[order] = _place(lengths[order], limits, rule)
            scanned += lengths.size * _count(row) * (1 if rule == "first" else 2)
            best = min(best, row, key=_count)
    return best


def _place(
    lengths: NDArray[np.int64], limits: Sequence[int], rule: Literal["first", "best"]
) -> Rows:
    """Put items, one after the other, into the first row with room or into the fullest one."""
    items, dims = lengths.shape
    dtype = np.int32 if max(limits) < 2**31 else np.int64  # half the bytes to look through
    most = np.asarray(limits, dtype)
    columns = np.ascontiguousarray(lengths[..., None], dtype)  # (items, dims, 1)
    shares = (lengths / np.asarray(limits, np.float64)).sum(axis=1)
    free = np.empty((dims, items), dtype)
    empty = np.full(items, float(dims))  # sum of the free shares
    found = np.empty(items, np.intp)
    rows = 0
    for item in range(items):
        fits = (free[:, :rows] >= columns[item]).all(axis=0)
        row = rows
        if rows:
            least = fits if rule == "first" else np.where(fits, -empty[:rows], -np.inf)
            row = int(least.argmax())
        if row == rows or not fits[row]:
            row = rows
            free[:, row] = most
            rows += 1
        free[:, row] -= columns[item, :, 0]
        empty[row] -= shares[item]
        found[item] = row
    return found


def _search_all(lengths: NDArray[np.int64], limits: Sequence[int], best: Rows) -> Rows:
    """Find the fewest rows of a handful of items by trying all partitions."""
    order = np.argsort(-lengths.sum(axis=1), kind="stable").tolist()
    sizes = lengths.tolist()
    found = np.zeros(len(order), np.intp)

    def put(place: int, free: list[list[int]]) -> None:
        nonlocal best
        if len(free) >= _count(best):
            return
        if place == len(order):
            best = found.copy()
            return
        item = order[place]
        for number in range(len(free) + 1):
            room = free[number] if number < len(free) else list(limits)
            if all(map(le, sizes[item], room)):
                left = [have - size for have, size in zip(room, sizes[item], strict=True)]
                found[item] = number
                put(place + 1, [*free[:number], left, *free[number + 1 :]])

    put(0, [])
    return best


def _exchange(
    lengths: NDArray[np.int64], limits: Sequence[int], row: Rows, bound: int, tries: int
) -> Rows:
    """Pack the emptiest row anew with a few others, in an order with noise, again and again.

    What comes out is kept where it takes fewer rows, or fills the rows as unevenly: the sum of
    their squared fillings never falls, so that free places gather in a row until it is empty.
    """
    chance = random.Random(0)  # the same sizes give the same rows
    shares = lengths / np.asarray(limits, np.float64)
    repack = _Repack(lengths.tolist(), shares.sum(axis=1).tolist(), list(limits))
    keys = shares.max(axis=1).tolist()
    order = np.argsort(row, kind="stable")
    held = [part.tolist() for part in np.split(order, np.cumsum(np.bincount(row))[:-1])]
    filled = np.array([repack.filled(items) for items in held])
    for attempt in range(tries):
        if len(held) <= bound:
            break
        count = min(chance.randint(*EXCHANGED_ROWS), len(held))
        chosen = sorted({int(filled.argmin()), *chance.sample(range(len(held)), count - 1)})
        noisy = {item: keys[item] * (1 + NOISE * chance.random())
                 for number in chosen for item in held[number]}  # fmt: skip
        pool = sorted(noisy, key=noisy.__getitem__, reverse=True)
        new = repack(pool, len(chosen), first=attempt % 2 == 1)
        filling = np.array([repack.filled(items) for items in new])
        old = filled[chosen]
        if not new or (len(new) == len(chosen) and (filling**2).sum() < (old**2).sum()):
            continue
        for number, items in zip(chosen, new, strict=False):
            held[number] = items
        filled[chosen[: len(new)]] = filling
        for number in reversed(chosen[len(new) :]):
            held.pop(number)
        filled = np.delete(filled, chosen[len(new) :])
    found = np.empty(len(row), np.intp)
    for number, items in enumerate(held):
        found[items] = number
    return found


class _Repack:
    """A few rows packed anew; plain lists, which are faster than arrays for some thirty items."""

    def __init__(self, sizes: list[list[int]], shares: list[float], limits: list[int]) -> None:
        self.sizes = sizes
        self.shares = shares
        self.limits = limits

    def filled(self, items: list[int]) -> float:
        """Sum of the shares of the limits that items take."""
        return sum(map(self.shares.__getitem__, items))

    def __call__(self, pool: list[int], most: int, *, first: bool) -> list[list[int]]:
        """Give the items of each row, in the order of the pool; none where `most` rows are few."""
        rows: list[list[int]] = []
        free: list[list[int]] = []
        filled: list[float] = []
        for item in pool:
            size, best, fullest = self.sizes[item], -1, -1.0
            for number, room in enumerate(free):
                if filled[number] > fullest and all(map(le, size, room)):
                    best, fullest = number, filled[number]
                    if first:
                        break
            if best < 0:
                if len(rows) == most:
                    return []
                best = len(rows)
                rows.append([])
                free.append(self.limits)
                filled.append(0.0)
            rows[best].append(item)
            free[best] = [have - taken for have, taken in zip(free[best], size, strict=True)]
            filled[best] += self.shares[item]
        return rows
