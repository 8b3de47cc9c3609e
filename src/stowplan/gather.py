"""Flat rows to padded batches and back: index arithmetic in array code, written once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

__all__ = [
    "gather",
    "input_order",
    "inside_all",
    "locate",
    "real_places",
    "select",
    "valid_places",
]


def locate(
    starts: Any, shapes: Any, capacity: Sequence[int], padding: int = 0
) -> tuple[Any, tuple[Any, ...]]:
    """Find the flat row of every place of a padded batch.

    Parameters
    ----------
    starts : (rows,) integers
        First flat row of each item.
    shapes : (rows, d) integers
        Length of each item along d ragged dims.
    capacity
        Padded length of each of the d dims.
    padding
        Flat row that places without a real one point to.

    Returns
    -------
    index : (rows, *capacity) integers
        Flat row of each real place, and ``padding`` elsewhere, so that none is out of range.
    masks : tuple of (rows, capacity[dim]) bool
        Per dim, whether a place is real.

    Examples
    --------
    >>> index, (mask,) = locate(np.array([0, 2]), np.array([[2], [1]]), (3,))
    >>> index.tolist()
    [[0, 1, 0], [2, 0, 0]]
    """
    xp = array_namespace(starts, shapes)
    ndim = len(capacity)
    masks = real_places(shapes, capacity)
    index = xp.zeros_like(starts)[(...,) + (None,) * ndim]
    for dim, length in enumerate(capacity):
        place = xp.arange(length, dtype=starts.dtype, device=_device(starts))
        along = (None,) * (dim + 1) + (slice(None),) + (None,) * (ndim - dim - 1)
        index = index * shapes[:, dim][(...,) + (None,) * ndim] + place[along]
    index = index + starts[(...,) + (None,) * ndim]
    elsewhere = xp.full_like(starts[:1], padding)
    return xp.where(inside_all(masks), index, elsewhere), masks


def real_places(shapes: Any, capacity: Sequence[int]) -> tuple[Any, ...]:
    """Say per dim which places of a padded batch are real: bool (rows, capacity[dim]).

    >>> real_places(np.array([[2], [1]]), (3,))[0].tolist()
    [[True, True, False], [True, False, False]]
    """
    xp = array_namespace(shapes)
    return tuple(
        xp.arange(length, dtype=shapes.dtype, device=_device(shapes))[None, :]
        < shapes[:, dim][:, None]
        for dim, length in enumerate(capacity)
    )


def inside_all(masks: Sequence[Any]) -> Any:
    """Join masks (rows, capacity) of each dim to one of all places, (rows, *capacity)."""
    inside = masks[0]
    for mask in masks[1:]:
        along = (slice(None),) + (None,) * (inside.ndim - 1) + (slice(None),)
        inside = inside[..., None] & mask[along]
    return inside


def gather(values: Any, index: Any, inside: Any, fill: Any, xp: Any = None) -> Any:
    """Copy flat rows (total, ...) into a padded batch (rows, *capacity, ...).

    ``inside`` is None where nothing is padding; ``fill`` goes where it is False. A caller with many
    batches passes ``fill`` as a 0-d array and the namespace.
    """
    xp = xp or array_namespace(values, index)
    shape = (*index.shape, *values.shape[1:])
    if values.shape[0] == 0:
        full = array_namespace(values)  # a caller's may know no more than take, where and reshape
        return full.broadcast_to(_beside(fill, values, full), shape)
    padded = xp.reshape(xp.take(values, xp.reshape(index, (-1,)), axis=0), shape)
    if inside is None:
        return padded
    if inside.ndim < padded.ndim:
        inside = inside[(...,) + (None,) * (padded.ndim - inside.ndim)]
    return xp.where(inside, padded, _beside(fill, values, xp))


def valid_places(masks: Sequence[NDArray[np.bool_]], count: int) -> NDArray[np.intp]:
    """List the places of a padded output (rows * capacity) that are real, row by row.

    >>> valid_places([np.array([[True, True, False], [True, False, False]])], count=2).tolist()
    [0, 1, 3]
    """
    return np.flatnonzero(inside_all([mask[:count] for mask in masks]))


def select(output: Any, places: Any, core_dims: int, xp: Any = None) -> Any:
    """Keep the real rows of a padded output; the leading ``1 + core_dims`` axes become one.

    ``places`` is None where all rows are real.
    """
    xp = xp or array_namespace(output)
    rows = math.prod(output.shape[: 1 + core_dims])
    flat = xp.reshape(output, (rows, *output.shape[1 + core_dims :]))
    return flat if places is None else xp.take(flat, places, axis=0)


def input_order(items: NDArray[np.intp], counts: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Order flat rows, stored item by item as in ``items``, back to the order of the input.

    ``counts`` are rows per item in input order. None means that the order is right already.

    >>> input_order(np.array([1, 0]), np.array([1, 2])).tolist()
    [2, 0, 1]
    """
    if np.array_equal(items, np.arange(len(items))):
        return None
    stored = counts[items]
    offsets = np.empty(len(items), np.int64)
    offsets[items] = np.cumsum(stored) - stored
    total = int(counts.sum())
    within = np.arange(total, dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    rows: NDArray[np.int64] = np.repeat(offsets, counts) + within
    return rows


def _beside(fill: Any, values: Any, xp: Any) -> Any:
    if isinstance(fill, int | float | complex):
        return xp.asarray(fill, dtype=values.dtype, device=_device(values))
    return fill


def _device(values: Any) -> Any:
    return getattr(values, "device", None)
