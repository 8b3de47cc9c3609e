"""Arrow list columns: offsets and flat values in, offsets and flat values out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError, MissingDependencyError

__all__ = ["is_arrow", "read_lists", "read_values", "write_lists"]


def is_arrow(column: Any) -> bool:
    """Whether a column is an Arrow array (asked without importing pyarrow)."""
    return type(column).__module__.partition(".")[0] == "pyarrow"


def read_lists(array: Any, ragged: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Split a list column into flat values (total, ...) and shapes (items, ragged)."""
    pa = _pyarrow()
    array = _one_chunk(pa, array)
    items = len(array)
    shapes = np.empty((items, ragged), np.int64)
    counts = np.ones(items, np.int64)  # lists of the current level, per item
    for level in range(ragged):
        if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
            raise DataError(f"Ragged.from_arrow: level {level} is {array.type}, not a list.")
        _refuse_nulls(array)
        offsets = np.asarray(array.offsets).astype(np.int64)
        lengths = np.diff(offsets)
        owner = np.repeat(np.arange(items), counts)
        first = np.cumsum(counts) - counts
        shapes[:, level] = 0
        filled = counts > 0
        shapes[filled, level] = lengths[first[filled]]
        unequal = lengths != shapes[owner, level]
        if unequal.any():
            item = int(owner[np.argmax(unequal)])
            raise DataError(
                f"Ragged.from_arrow: item {item} has inner lists of different length; "
                f"{ragged} ragged dims need a full block per item."
            )
        counts = counts * shapes[:, level]
        array = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    return read_values(array), shapes


def read_values(array: Any) -> NDArray[Any]:
    """Give a column of numbers, or of fixed-size lists of numbers, as one array."""
    pa = _pyarrow()
    array = _one_chunk(pa, array)
    tail = []
    while pa.types.is_fixed_size_list(array.type):
        _refuse_nulls(array)
        width = array.type.list_size
        tail.append(width)
        array = array.flatten()
    _refuse_nulls(array)
    try:
        flat: NDArray[Any] = array.to_numpy(zero_copy_only=not pa.types.is_boolean(array.type))
    except pa.ArrowInvalid as error:
        raise DataError(f"Ragged.from_arrow: a column of {array.type} holds no numbers: {error}") from None
    return flat.reshape((-1, *tail))


def write_lists(values: NDArray[Any], shapes: NDArray[np.int64]) -> Any:
    """Nest flat values (total, ...) into a large-list column with one list level per ragged dim."""
    pa = _pyarrow()
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    for width in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, width)
    for level in reversed(range(shapes.shape[1])):
        lengths = np.repeat(shapes[:, level], shapes[:, :level].prod(axis=1))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        column = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), column)
    return column


def _one_chunk(pa: Any, array: Any) -> Any:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _refuse_nulls(array: Any) -> None:
    if array.null_count:
        missing = int(np.argmax(np.asarray(array.is_null())))
        raise DataError(f"Ragged.from_arrow: entry {missing} is null. Drop or fill nulls first.")


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise MissingDependencyError(
            "Arrow columns need pyarrow: pip install 'stowplan[arrow]'"
        ) from None
    return pyarrow
