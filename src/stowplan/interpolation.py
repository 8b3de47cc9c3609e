"""Entries of a table at real places: the nearest one, or a sum over the 64 around.

Where each operation is a call, few calls count: torch and CuPy gather many neighbours at once.
Elsewhere few numbers alive: one neighbour at a time, each sum runs as it is gathered, and where
XLA fuses loops the 64 values of a place never exist together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, cast

from array_api_compat import array_namespace, device

from stowplan.special import framework_of
from stowplan.vectors import each, parts, vector

__all__ = ["nearest", "tricubic"]

_NODES = 4
_BLOCK, _BLOCKS = 1024, 64  # least windows in a block, most blocks
_EXACT = 2**21  # indices below which a quotient is exact without division, in single precision too


def nearest(table: Any, places: Any) -> Any:
    """Give the entries of a table nearest to real places, ``(m,n,p),(3,...)->(...)``.

    `places` is a vector of `stowplan.vectors`. One outside gives an entry at the edge; halves go to
    the even neighbour.

    >>> import numpy as np
    >>> table = np.arange(24.0).reshape(2, 3, 4)
    >>> float(nearest(table, np.asarray([0.8, 1.6, 9.0])))
    23.0
    """
    xp = array_namespace(table)
    nodes = _within(xp, each(xp.round, places), 0, [length - 1 for length in table.shape])
    return _look_up(xp, xp.reshape(table, (-1,)), _flat(xp, nodes, table.shape))


def tricubic(table: Any, places: Any) -> Any:
    """Interpolate a table by four-point Lagrange weights, ``(m,n,p),(3,...)->(...)``.

    Parameters
    ----------
    table : array (m, n, p)
        At least 4 entries along each axis.
    places : vector (3, ...)
        Real indices, a vector of `stowplan.vectors`. Those less than 1 from the edges of the table
        are extrapolated from the last four entries.

    Returns
    -------
    array (...)
        Exact for products of cubic polynomials. Differentiable in table and places.

    >>> import numpy as np
    >>> n = np.arange(5.0)
    >>> table = n[:, None, None] ** 3 + n[:, None] * n
    >>> float(tricubic(table, np.asarray([1.5, 2.0, 2.5])))
    8.375
    """
    xp = array_namespace(table)
    nodes = _within(xp, places, 1, [length - 3 for length in table.shape])
    _, n, p = table.shape
    strides = (n * p, p, 1)
    index = _flat(xp, nodes, table.shape) - sum(strides)
    framework = framework_of(xp)
    if framework == "jax":
        nodes = _nodes(xp, index, table.shape, table.dtype)
        offsets = each(lambda x, node: x - node, places, nodes)
        return _window_sum(strides)(table, index, offsets)
    weights = each(lambda x, node: _weights(x - xp.astype(node, x.dtype)), places, nodes)
    del nodes  # as many numbers as weights along one axis
    flat = xp.reshape(table, (-1,))
    if framework in ("torch", "cupy"):
        weights = xp.stack(weights, axis=1)
        return _sum_of_windows(xp, flat, index, strides, parts(xp, weights))
    return _sum_of_entries(
        xp, flat, index, strides, zip(*(parts(xp, each) for each in weights), strict=True)
    )


def _sum_of_windows(
    xp: Any, flat: Any, index: Any, strides: Sequence[int], weights: Sequence[Any]
) -> Any:
    """Gather many neighbours at a time; weights are (4, ...) along each axis.

    All 64 where torch records a gradient, for which it keeps them in any case, else 8.
    """
    first, middle, last = weights
    along_first, along_middle, along_last = (
        [i * stride for i in range(_NODES)] for stride in strides
    )
    steps = [[[i + j + k for k in along_last] for j in along_middle] for i in along_first]
    steps = xp.reshape(
        xp.asarray(steps, dtype=index.dtype, device=device(index)),
        (_NODES, _NODES, _NODES, *(1,) * index.ndim),
    )

    def lines(steps: Any) -> Any:
        return xp.sum(_look_up(xp, flat, index + steps) * last, axis=-1 - index.ndim)

    def plane(steps: Any) -> Any:
        halves = [lines(steps[:2, ...]), lines(steps[2:, ...])]
        return xp.sum(xp.concat(halves) * middle, axis=0)

    if any(getattr(array, "requires_grad", False) for array in (flat, first)):
        planes = xp.sum(lines(steps) * middle, axis=1)
    else:
        planes = xp.stack([plane(steps[i, ...]) for i in range(_NODES)])
    return xp.sum(planes * first, axis=0)


def _sum_of_entries(
    xp: Any, flat: Any, index: Any, strides: Sequence[int], weights: Iterable[Sequence[Any]]
) -> Any:
    """Gather one neighbour at a time; weights are four arrays along each axis."""
    first, middle, last = weights
    total = 0.0
    for i, along_first in enumerate(first):
        plane = 0.0
        for j, along_middle in enumerate(middle):
            line, start = 0.0, index + (i * strides[0] + j * strides[1])
            for k, weight in enumerate(last):
                line = line + weight * _look_up(xp, flat, start + k)
            plane = plane + along_middle * line
        total = total + along_first * plane
    return total


@lru_cache
def _window_sum(strides: Sequence[int]) -> Callable[[Any, Any, Sequence[Any]], Any]:
    """Give the sum over windows in JAX, with a gradient of its own: (table, index, offsets)->(...).

    XLA would scatter the 64 gradients of a window one by one, and work out each from the beginning.
    Here windows are scattered as a whole, in a loop over blocks of them, since what goes into a
    loop is worked out once. Again differentiable in reverse.
    """
    jax = import_module("jax")
    xp = jax.numpy
    cubes = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3),
        inserted_window_dims=(),
        scatter_dims_to_operand_dims=(0, 1, 2),
    )

    def entries(table: Any, index: Any, weights: Iterable[Sequence[Any]]) -> Any:
        return _sum_of_entries(xp, xp.reshape(table, (-1,)), index, strides, weights)

    def forward(table: Any, index: Any, offsets: Sequence[Any]) -> Any:
        return entries(table, index, map(_weights, offsets)), (table, index, offsets)

    def backward(kept: Any, slope: Any) -> Any:
        table, index, offsets = kept

        def step(by_table: Any, block: Sequence[Any]) -> Any:
            index, slope, *offsets = block
            weights, slopes = ([each(t) for t in offsets] for each in (_weights, _slopes))
            by_offsets = tuple(
                slope * entries(table, index, [*weights[:axis], slopes[axis], *weights[axis + 1 :]])
                for axis in range(3)
            )
            first, middle, last = (xp.stack(each, axis=-1) for each in weights)  # (windows, 4)
            window = first[:, :, None, None] * middle[:, None, :, None] * last[:, None, None, :]
            start = xp.stack(xp.unravel_index(index, table.shape), axis=-1)
            window = slope[:, None, None, None] * window
            return (
                jax.lax.scatter_add(by_table, start, window, cubes, mode="promise_in_bounds"),
                by_offsets,
            )

        count = max(_BLOCK, -(-index.size // _BLOCKS))
        count = min(count, -(-index.size // 2))  # a loop of one step would be none
        blocks = max(-(-index.size // max(count, 1)), 2)

        def split(part: Any) -> Any:
            padded = xp.pad(xp.reshape(part, (-1,)), (0, blocks * count - part.size))
            return xp.reshape(padded, (blocks, count))

        by_table, by_offsets = jax.lax.scan(
            step, xp.zeros_like(table), [split(part) for part in (index, slope, *offsets)]
        )
        whole = (xp.reshape(part, (-1,))[: index.size] for part in by_offsets)
        return by_table, None, tuple(xp.reshape(part, index.shape) for part in whole)

    total = jax.custom_vjp(lambda *operands: forward(*operands)[0])
    total.defvjp(forward, backward)
    return cast("Callable[[Any, Any, Sequence[Any]], Any]", total)


def _nodes(xp: Any, index: Any, lengths: Sequence[int], dtype: Any) -> tuple[Any, Any, Any]:
    """Second node along each axis of a window that starts at a flat index.

    Read off the index, not off the place: XLA computes a place anew in each loop that needs it, and
    where it is a whole number the last bit, which may differ, decides what lies below it. And XLA
    keeps an array of terms each for what is costly and needed by two loops: no division.
    """
    _, n, p = lengths
    if math.prod(lengths) < _EXACT:
        index = xp.astype(index, dtype)
        row = xp.floor((index + 0.5) * (1 / p))
        plane = xp.floor((row + 0.5) * (1 / n))
    else:
        row = index // p
        plane = row // n
    nodes = (plane + 1, row - plane * n + 1, index - row * p + 1)
    return tuple(xp.astype(node, dtype) for node in nodes)


def _weights(t: Any) -> tuple[Any, Any, Any, Any]:
    """Lagrange weights of the nodes -1, 0, 1, 2 at 0 <= t <= 1."""
    before, after, beyond = 1 + t, 1 - t, 2 - t
    ends, middle = t * after * (-1 / 6), before * beyond * 0.5
    return ends * beyond, middle * after, middle * t, ends * before


def _slopes(t: Any) -> tuple[Any, Any, Any, Any]:
    """Derivatives of the weights."""
    square = t * t
    return (
        t - 1 / 3 - 0.5 * square, 1.5 * square - 2 * t - 0.5,
        1 + t - 1.5 * square, 0.5 * square - 1 / 6,
    )  # fmt: skip


def _within(xp: Any, places: Any, least: int, most: Sequence[int]) -> Any:
    """Whole part of places, in int32 and within limits."""
    place = parts(xp, places)[0]
    top = vector(xp, xp.asarray(most, dtype=xp.int32, device=device(place)), (1,) * place.ndim)

    def within(place: Any, most: Any) -> Any:
        return xp.minimum(xp.clip(xp.astype(place, xp.int32), least), most)

    return each(within, places, top)


def _flat(xp: Any, nodes: Any, lengths: Sequence[int]) -> Any:
    """Index in the flat table."""
    h, k, l = parts(xp, nodes)  # noqa: E741 - as crystallographers write it
    return (h * lengths[1] + k) * lengths[2] + l


def _look_up(xp: Any, table: Any, index: Any) -> Any:
    """Entries of a flat table; torch's compatible ``take`` looks for negative indices first."""
    places = xp.reshape(index, (-1,))
    if framework_of(xp) == "torch":
        return xp.reshape(xp.index_select(table, 0, places), index.shape)
    return xp.reshape(xp.take(table, places, axis=0), index.shape)
