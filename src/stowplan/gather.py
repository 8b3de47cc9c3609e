"""Flat rows to padded batches and back: index arithmetic in array code, written once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.namespaces import namespace_of

if TYPE_CHECKING:
    from stowplan.planners.grids import GridIndex

__all__ = [
    "Blank",
    "EndToEnd",
    "flat_rows",
    "gather",
    "input_order",
    "inside_all",
    "locate",
    "real_places",
    "select",
    "select_into",
    "take_grid",
    "valid_places",
]


class EndToEnd(NamedTuple):
    """Rows that lie end to end in flat values, none of them padded: a batch without a copy."""

    start: int
    rows: int
    capacity: tuple[int, ...]

    def view(self, values: Any, xp: Any) -> Any:
        """Give the rows (rows, *capacity, ...) as a view of flat values (total, ...)."""
        stop = self.start + self.rows * math.prod(self.capacity)
        shape = (self.rows, *self.capacity, *values.shape[1:])
        view = xp.reshape(values[self.start : stop, ...], shape)
        if type(view) is np.ndarray:
            view.flags.writeable = False  # a kernel that writes in place would change the data
        return view

    @classmethod
    def of(cls, starts: Any, shapes: Any, capacity: Sequence[int]) -> EndToEnd | None:
        """Give rows that lie so, with starts (rows,) and shapes (rows, d); None for others."""
        if not len(starts) or (shapes != capacity).any():
            return None
        if (np.diff(starts) != math.prod(capacity)).any():
            return None
        return cls(int(starts[0]), len(starts), tuple(capacity))


class Blank(NamedTuple):
    """Rows of zeros, of the shape of a batch."""

    shape: tuple[int, ...]

    def like(self, values: Any, xp: Any) -> Any:
        """Give zeros (rows, *capacity, ...) of the kind of flat values (total, ...)."""
        shape = (*self.shape, *values.shape[1:])
        return xp.zeros(shape, dtype=values.dtype, device=_device(values))


def locate(
    starts: Any, shapes: Any, capacity: Sequence[int], padding: int = 0, offsets: Any = None
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
    offsets : (rows, d) integers, optional
        Place where each item begins along each dim; 0 by default.

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
    >>> index, _ = locate(np.array([0, 2]), np.array([[2], [1]]), (3,), -1, np.array([[1], [0]]))
    >>> index.tolist()
    [[-1, 0, 1], [2, -1, -1]]
    """
    xp = namespace_of(starts, shapes)
    ndim = len(capacity)
    masks = real_places(shapes, capacity, offsets)
    index = xp.zeros_like(starts)[(...,) + (None,) * ndim]
    for dim, length in enumerate(capacity):
        place = _places(xp, length, starts, dim, offsets)
        along = (slice(None),) + (None,) * dim + (slice(None),) + (None,) * (ndim - dim - 1)
        index = index * shapes[:, dim][(...,) + (None,) * ndim] + place[along]
    index = index + starts[(...,) + (None,) * ndim]
    elsewhere = xp.full_like(starts[:1], padding)
    return xp.where(inside_all(masks), index, elsewhere), masks


def real_places(shapes: Any, capacity: Sequence[int], offsets: Any = None) -> tuple[Any, ...]:
    """Say per dim which places of a padded batch are real: bool (rows, capacity[dim]).

    >>> real_places(np.array([[2], [1]]), (3,))[0].tolist()
    [[True, True, False], [True, False, False]]
    >>> real_places(np.array([[2], [1]]), (3,), np.array([[1], [0]]))[0].tolist()
    [[False, True, True], [True, False, False]]
    """
    xp = namespace_of(shapes)
    places = [_places(xp, length, shapes, dim, offsets) for dim, length in enumerate(capacity)]
    before_end = tuple(place < shapes[:, dim][:, None] for dim, place in enumerate(places))
    if offsets is None:
        return before_end
    return tuple((place >= 0) & held for place, held in zip(places, before_end, strict=True))


def _places(xp: Any, length: int, like: Any, dim: int, offsets: Any) -> Any:
    """Count the places along a dim from where each item begins: (1 or rows, length)."""
    place = xp.arange(length, dtype=like.dtype, device=_device(like))[None, :]
    return place if offsets is None else place - offsets[:, dim][:, None]


def inside_all(masks: Sequence[Any]) -> Any:
    """Join masks (rows, capacity) of each dim to one of all places, (rows, *capacity)."""
    inside = masks[0]
    for mask in masks[1:]:
        along = (slice(None),) + (None,) * (inside.ndim - 1) + (slice(None),)
        inside = inside[..., None] & mask[along]
    return inside


def gather(
    values: Any, index: Any, inside: Any, fill: Any, xp: Any = None, *, in_place: bool = False
) -> Any:
    """Copy flat rows (total, ...) into a padded batch (rows, *capacity, ...).

    ``inside`` is None where nothing is padding; ``fill`` goes where it is False, ``in_place`` if
    the framework has that. Rows that lie end to end are a view. A caller with many batches passes
    ``fill`` as a 0-d array and the namespace.
    """
    if isinstance(index, EndToEnd):
        return index.view(values, xp or namespace_of(values))
    shape = (*index.shape, *values.shape[1:])
    on_host = isinstance(values, np.ndarray) and isinstance(index, np.ndarray)
    if on_host and len(values) and (in_place or inside is None):
        return _gathered_on_host(values, index, inside, fill, shape)
    xp = xp or namespace_of(values, index)
    if values.shape[0] == 0:
        full = namespace_of(values)  # a caller's may know no more than take, where and reshape
        return full.broadcast_to(_beside(fill, values, full), shape)
    flat = xp.take(values, xp.reshape(index, (-1,)), axis=0)
    if inside is not None:
        inside, fill = xp.reshape(inside, (-1,)), _beside(fill, values, xp)
        if in_place:
            flat = xp.filled(flat, inside, fill)
        else:
            flat = xp.where(inside[(...,) + (None,) * (flat.ndim - 1)], flat, fill)
    return xp.reshape(flat, shape)


def _gathered_on_host(
    values: NDArray[Any], index: Any, inside: Any, fill: Any, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Gather by methods of arrays: a small batch takes less time than functions of NumPy do.

    To fill padding in place takes at most half the time of a copy.
    """
    flat: NDArray[Any] = values.take(index.reshape(-1), axis=0)
    if inside is not None:
        flat[~inside.reshape(-1)] = fill
    return flat.reshape(shape)


def take_grid(array: Any, grid: GridIndex, fill: Any = 0) -> Any:
    """Copy an array into another grid: padded, unpadded or cropped, as an index says.

    Parameters
    ----------
    array : of shape ``(*grid.source, ...)``
        Of any framework; trailing axes are kept, and so is the dtype.
    grid
        From `pad`, `unpad`, `crop` or `item_grids`.
    fill
        Where the new grid holds nothing of the array.

    Returns
    -------
    array of shape ``(*grid.shape, ...)``

    Raises
    ------
    DataError
        For an array that does not begin with the axes of ``grid.source``.

    Examples
    --------
    >>> from stowplan.planners.grids import pad, unpad
    >>> padded = take_grid(np.array([[1, 2]]), pad((1, 2), (2, 4), (0, 1)), fill=9)
    >>> padded.tolist()
    [[9, 1, 2, 9], [9, 9, 9, 9]]
    >>> take_grid(padded, unpad((2, 4), (1, 2), (0, 1))).tolist()
    [[1, 2]]
    """
    xp, ndim = namespace_of(array), len(grid.source)
    if tuple(array.shape[:ndim]) != grid.source:
        raise DataError(
            f"take_grid: the array has shape {tuple(array.shape)}, the index reads a grid of "
            f"{grid.source} along the first {ndim} axes. Make the index for it: "
            f"pad({tuple(array.shape[:ndim])}, capacity)."
        )
    device = _device(array)
    copy = None if isinstance(array, np.ndarray) else True  # torch shares no read-only memory
    index = xp.asarray(grid.index, device=device, copy=copy)
    if math.prod(grid.source) > xp.iinfo(index.dtype).max:
        raise DataError(
            f"take_grid: a grid of {grid.source} has more places than {index.dtype} counts. In "
            'JAX switch on x64: jax.config.update("jax_enable_x64", True).'
        )
    inside = None if grid.inside is None else xp.asarray(grid.inside, device=device, copy=copy)
    flat = xp.reshape(array, (math.prod(grid.source), *array.shape[ndim:]))
    return gather(flat, index, inside, xp.asarray(fill, dtype=array.dtype, device=device), xp)


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
    xp = xp or namespace_of(output)
    flat = flat_rows(output, core_dims, xp)
    if places is None:
        return flat
    return flat.take(places, axis=0) if type(flat) is np.ndarray else xp.take(flat, places, axis=0)


def flat_rows(output: Any, core_dims: int, xp: Any) -> Any:
    """Give a padded output with its leading ``1 + core_dims`` axes as one."""
    rows = math.prod(output.shape[: 1 + core_dims])
    shape = (rows, *output.shape[1 + core_dims :])
    return output.reshape(shape) if type(output) is np.ndarray else xp.reshape(output, shape)


def select_into(total: Any, flat: Any, places: Any, xp: Any) -> None:
    """Write some of flat rows into as many rows of a total, without a copy first.

    >>> total = np.zeros(2)
    >>> select_into(total, np.array([1.0, 0.0, 2.0, 0.0]), np.array([0, 2]), np)
    >>> total.tolist()
    [1.0, 2.0]
    """
    if type(total) is np.ndarray:
        flat.take(places, axis=0, out=total, mode="clip")  # to raise it would make a copy
    else:
        xp.take_into(total, flat, places)


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
