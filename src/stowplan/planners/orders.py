"""Orders of pairs and windows that keep what is in memory in use as long as it is there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError
from stowplan.planners.sizes import natural

__all__ = ["order_pairs", "order_products", "order_windows"]

Pairs = NDArray[np.int64]


def order_pairs(n: int, resident: int, *, diagonal: bool = False) -> Pairs:
    """Order all pairs of n items so that few loads serve them where `resident` items fit.

    A block of ``resident - 1`` items is held, and each other item passes by once and meets them
    all; then the block is done with, and the rest are the same problem. The item that passed last
    begins the next block, so that it need not be loaded again.

    Parameters
    ----------
    n : int
        How many items there are.
    resident : int
        How many fit into memory together, at least 2. With one less than fit, the next item is
        loaded while the last one is computed (`keep_resident`).
    diagonal : bool
        Also the pairs (i, i).

    Returns
    -------
    (pairs, 2) array of int64
        Every pair i < j once; with `diagonal` i <= j.

    Raises
    ------
    PlanError
        For counts that are no integers, and fewer than 2 items resident.

    Notes
    -----
    With b = resident - 1, Belady's eviction needs at most n + sum over s = 1, 2, ... of
    (n - s b - 1) loads, as long as 2 or more items remain. No order can do with fewer than
    resident + ceil((n (n - 1) / 2 - resident (resident - 1) / 2) / b): a load lets an item meet b
    others at most. Loads for all pairs by Belady's eviction, both items of a pair together:

    ===  ========  =========  ==========  ===========
    n    resident  row-major  this order  lower bound
    ===  ========  =========  ==========  ===========
    48   16        585        99          84
    100  16        3715       379         338
    200  16        17351      1422        1335
    ===  ========  =========  ==========  ===========

    Examples
    --------
    >>> order_pairs(4, 3).tolist()
    [[0, 1], [0, 2], [1, 2], [0, 3], [1, 3], [2, 3]]
    >>> from stowplan import keep_resident
    >>> keep_resident(order_pairs(48, 16), 1, [16]).loads
    99
    """
    n, resident = _counts("order_pairs", "n", n, resident)
    block = resident - 1
    left = np.arange(n)
    found = []
    while len(left):
        held, others = left[:block], left[block:]
        if n <= resident:
            held, others = left, left[:0]
        late, early = np.tril_indices(len(held), 0 if diagonal else -1)
        found.append(np.stack([held[early], held[late]], axis=1))
        passing = np.repeat(others, len(held))
        found.append(np.stack([np.tile(held, len(others)), passing], axis=1))
        left = others[::-1]
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *found])
    pairs.sort(axis=1)
    return pairs


def order_products(n: int, m: int, resident: int) -> Pairs:
    """Order all pairs of one of n items with one of m others, where `resident` items fit.

    Blocks of one kind are held in turn, and the other kind passes by, to and fro, so that what
    passed last is there when the next block is.

    Returns
    -------
    (n * m, 2) array of int64
        Every pair (i, n + j) once: the others are numbered on, from n to n + m - 1.

    Raises
    ------
    PlanError
        For counts that are no integers, and fewer than 2 items resident.

    Notes
    -----
    No order can do with fewer than n + m loads, nor than
    resident + ceil((n m - floor(resident^2 / 4)) / (resident - 1)). For 48 x 48 items of which 16
    are resident that is 166; this order takes 228, row-major order with Belady's eviction 1680.

    Examples
    --------
    >>> order_products(2, 3, 3).tolist()
    [[0, 2], [1, 2], [0, 3], [1, 3], [0, 4], [1, 4]]
    """
    n, resident = _counts("order_products", "n", n, resident)
    m = natural(m, "order_products: m", 0)
    ways = ((_passes(n, m, resident), False), (_passes(m, n, resident), True))
    (_, blocks), swapped = min(ways, key=lambda way: way[0][0])
    held_all, passing_all = np.arange(n), np.arange(n, n + m)
    if swapped:
        held_all, passing_all = passing_all, held_all
    found = [np.zeros((0, 2), np.int64)]
    for held in np.array_split(held_all, blocks):
        passing = np.repeat(passing_all, len(held))
        found.append(np.stack([np.tile(held, len(passing_all)), passing], axis=1))
        passing_all = passing_all[::-1]
    pairs = np.concatenate(found)
    pairs.sort(axis=1)
    return pairs


def _passes(held: int, passing: int, resident: int) -> tuple[int, int]:
    """Loads where the first kind is held, and in how many blocks."""
    if not held:
        return passing, 1
    blocks = math.ceil(held / (resident - 1))
    kept = resident - math.ceil(held / blocks)
    return held + passing + (blocks - 1) * max(passing - kept, 0), blocks


def order_windows(
    shape: int | Sequence[int], reach: int | Sequence[int], resident: int
) -> list[tuple[int, ...]]:
    """Order the windows of a grid of items, each with its neighbours, where `resident` items fit.

    For stencils, convolutions and halos: a field is cut into blocks, and to compute one takes
    those around it. The grid is swept along its first axis, in strips that are as wide as
    `resident` allows; what two strips share is loaded twice.

    Parameters
    ----------
    shape : int or sequence of int
        Items along each axis of the grid; they are numbered in C order.
    reach : int or sequence of int
        Neighbours on either side of an item, along every axis or for each. There are none past
        the ends.
    resident : int
        How many items fit into memory together.

    Returns
    -------
    list of tuple of int
        One window an item: the item itself first, then its neighbours.

    Raises
    ------
    PlanError
        Where a window has more items than are resident.

    Notes
    -----
    Every item is loaded at least once. Where all rows that a window spans fit, each is loaded once
    and this is row-major order. For 64 x 64 items, reach 1, and 60 resident, row-major order takes
    8778 loads by Belady's eviction, this one 4411.

    Examples
    --------
    >>> order_windows(4, 1, 3)
    [(0, 1), (1, 0, 2), (2, 1, 3), (3, 2)]
    """
    lengths = _along("shape", shape, None)
    reaches = _along("reach", reach, len(lengths))
    resident = natural(resident, "order_windows: resident", 1)
    spans = [min(2 * far + 1, length) for far, length in zip(reaches, lengths, strict=True)]
    if all(lengths) and math.prod(spans) > resident:
        raise PlanError(
            f"order_windows: a window has {' x '.join(map(str, spans))} = {math.prod(spans)} "
            f"items, and {resident} fit into memory. Make the items smaller, so that more fit."
        )
    strides = [math.prod(lengths[axis + 1 :]) for axis in range(len(lengths))]
    width = _strip(lengths, reaches, resident)
    cuts = [range(0, length, width) for length in lengths[1:]]
    windows: list[tuple[int, ...]] = []
    forth = True
    for corner in itertools.product(*cuts):
        strip = [
            range(begin, min(begin + width, length))
            for begin, length in zip(corner, lengths[1:], strict=True)
        ]
        sweep = range(lengths[0]) if forth else range(lengths[0] - 1, -1, -1)
        forth = not forth
        windows.extend(
            tuple(_window(centre, lengths, reaches, strides))
            for centre in itertools.product(sweep, *strip)
        )
    return windows


def _strip(lengths: list[int], reaches: list[int], resident: int) -> int:
    """The widest strip whose rows, as many as a window spans, fit; at least 1."""

    def taken(width: int) -> int:
        across = [
            min(width + 2 * far, length)
            for far, length in zip(reaches[1:], lengths[1:], strict=True)
        ]
        return min(2 * reaches[0] + 1, lengths[0]) * math.prod(across)

    width = max([1, *lengths[1:]])
    while width > 1 and taken(width) > resident:
        width -= 1
    return width


def _window(
    centre: tuple[int, ...], lengths: list[int], reaches: list[int], strides: list[int]
) -> Iterator[int]:
    own = sum(place * stride for place, stride in zip(centre, strides, strict=True))
    yield own
    around = [
        range(max(place - far, 0), min(place + far + 1, length))
        for place, far, length in zip(centre, reaches, lengths, strict=True)
    ]
    for places in itertools.product(*around):
        item = sum(place * stride for place, stride in zip(places, strides, strict=True))
        if item != own:
            yield item


def _along(name: str, values: int | Sequence[int], axes: int | None) -> list[int]:
    given = list(values) if isinstance(values, Sequence) else [values] * (axes or 1)
    if not given or (axes is not None and len(given) != axes):
        raise PlanError(f"order_windows: {name}={values!r} needs one number for each axis of shape")
    return [natural(each, f"order_windows: {name}", 0) for each in given]


def _counts(who: str, name: str, n: int, resident: int) -> tuple[int, int]:
    n = natural(n, f"{who}: {name}", 0)
    resident = natural(resident, f"{who}: resident (a pair is two items)", 2)
    return n, resident
