"""Arrow list columns: offsets and flat values in, offsets and flat values out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.extras import import_extra

__all__ = ["arrow_table", "is_arrow", "read_lists", "read_values", "write_lists"]


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
            raise DataError(
                f"Ragged.from_arrow: level {level} is {array.type}, not a list; "
                f"{ragged} ragged dims need {ragged} list levels."
            )
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
    """Give a column of numbers, or of lists of equal length of numbers, as one array."""
    pa = _pyarrow()
    array = _one_chunk(pa, array)
    shape = [len(array)]
    while not (pa.types.is_primitive(array.type) or pa.types.is_null(array.type)):
        shape.append(_width(pa, array))
        array = array.flatten()
    if pa.types.is_null(array.type) and not len(array):  # [] was written without a type
        return np.empty(shape)
    _refuse_nulls(array)
    number = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
    if not (number or pa.types.is_boolean(array.type)):
        raise _no_numbers(array)
    flat: NDArray[Any] = array.to_numpy(zero_copy_only=number)
    return flat.reshape(shape)


def write_lists(values: NDArray[Any], shapes: NDArray[np.int64]) -> Any:
    """Nest flat values (total, ...) into a large-list column with one list level per ragged dim."""
    pa = _pyarrow()
    if values.dtype.kind == "c" or 0 in values.shape[1:]:
        what = "no complex numbers" if values.dtype.kind == "c" else "no lists of fixed length 0"
        raise DataError(f"Ragged.to_arrow: Arrow has {what}. Write .real and .imag, or other axes.")
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    for width in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, width)
    for level in reversed(range(shapes.shape[1])):
        lengths = np.repeat(shapes[:, level], shapes[:, :level].prod(axis=1))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        column = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), column)
    return column


def arrow_table(columns: dict[str, Any]) -> Any:
    """Join Arrow columns to a table."""
    return _pyarrow().table(columns)


def _width(pa: Any, array: Any) -> int:
    """Length that all lists of a level share."""
    if pa.types.is_fixed_size_list(array.type):
        _refuse_nulls(array)
        return int(array.type.list_size)
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise _no_numbers(array)
    _refuse_nulls(array)
    widths = np.diff(np.asarray(array.offsets))
    if len(widths) and (widths != widths[0]).any():
        entry = int(np.argmax(widths != widths[0]))
        raise DataError(
            f"Ragged.from_arrow: entry {entry} is a list of {widths[entry]}, entry 0 of {widths[0]}"
            "; along a dim that is not ragged all have one length."
        )
    return int(widths[0]) if len(widths) else 0


def _no_numbers(array: Any) -> DataError:
    return DataError(
        f"Ragged.from_arrow: a column of {array.type} holds no numbers; cast it to float64 first."
    )


def _one_chunk(pa: Any, array: Any) -> Any:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _refuse_nulls(array: Any) -> None:
    if array.null_count:
        missing = int(np.argmax(np.asarray(array.is_null())))
        raise DataError(f"Ragged.from_arrow: entry {missing} is null. Drop or fill nulls first.")


def _pyarrow() -> Any:
    return import_extra("arrow", "pyarrow", "a column of Arrow")
