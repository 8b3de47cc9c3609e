"""Columns that lie on disk: bound by shape and dtype, read item by item into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import is_array_api_obj
from numpy.typing import NDArray

from stowplan.host_memory import ALIGNMENT
from stowplan.layout import Layout
from stowplan.ragged import Ragged
from stowplan.stores.direct import LEAST_BYTES, lead

if TYPE_CHECKING:
    from stowplan.stores.arrays import StoredArray  # most runs read nothing

__all__ = ["ItemReader", "bound", "may_be_stored", "runs_of", "runs_of_items"]
__all__ += ["is_stand_in", "stand_in"]


def may_be_stored(given: Any) -> bool:
    """Whether a column may lie on disk, seen without importing what reads it."""
    if type(given) is np.ndarray or isinstance(given, list | tuple):
        return isinstance(given, list | tuple) and _names_files(given)
    if isinstance(given, Ragged):
        return may_be_stored(given.values)
    return isinstance(given, str | PathLike | np.memmap) or _is_outside(given)


def bound(given: Any, where: str) -> tuple[Any, StoredArray] | None:
    """Open a column on disk: what stands in for it while sizes are checked, and its flat rows.

    None where the column is in memory.
    """
    from stowplan.stores.arrays import is_stored, open_array, open_column

    if isinstance(given, Ragged):
        if not is_stored(given.values):
            return None
        opened = open_array(given.values, where)
        return given.map_values(lambda _: stand_in(opened.shape, opened.dtype)), opened
    if not is_stored(given):
        return None
    found = open_column(given, where)
    if isinstance(found, Ragged):
        values: StoredArray = found.values
        return found.map_values(lambda _: stand_in(values.shape, values.dtype)), values
    return stand_in(found.shape, found.dtype), found


def stand_in(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """Give an array of zeros that takes no memory.

    >>> stand_in((1000, 1000, 1000), np.float64).strides
    (0, 0, 0)
    """
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def is_stand_in(array: Any) -> bool:
    """Whether an array is one of these, zeros that need not be read.

    >>> is_stand_in(stand_in((2, 3), np.float64)), is_stand_in(np.zeros((2, 3)))
    (True, False)
    """
    if type(array) is not np.ndarray or array.size < 2 or any(array.strides):
        return False
    return not array.flat[0]


class ItemReader:
    """Items of one stored column, read from its file into a buffer.

    Parameters
    ----------
    source : StoredArray
        Flat rows, or items whose leading dims the column counts as flat rows.
    column : Ragged or array
        What stands in for it.
    """

    def __init__(self, source: StoredArray, column: Any) -> None:
        self.source = source
        self.column = column
        self.rows = column.values.shape if isinstance(column, Ragged) else column.shape
        self.rows_each = self.rows[0] // source.shape[0] if source.shape[0] else 1
        self.row_bytes = math.prod(self.rows[1:]) * source.dtype.itemsize

    def bytes_of(self, items: NDArray[np.intp]) -> int:
        """Bytes of some items in a buffer."""
        return -(-self._own_bytes(items) // ALIGNMENT) * ALIGNMENT

    def ends_aligned(self, items: NDArray[np.intp]) -> bool:
        """Whether what follows some items in a buffer begins where `ALIGNMENT` asks for it."""
        return self._own_bytes(items) % ALIGNMENT == 0

    def shown(self, items: NDArray[np.intp], values: NDArray[Any]) -> Any:
        """Give flat rows of some items as a column of these alone."""
        if not isinstance(self.column, Ragged):
            return values
        return Ragged.from_layout(values, Layout(self.column.shapes[items]))

    def shape_of(self, items: NDArray[np.intp]) -> tuple[int, ...]:
        """Shape of the flat rows of some items."""
        return (self._counts(items), *self.rows[1:])

    def view(self, items: NDArray[np.intp], buffer: NDArray[np.uint8]) -> NDArray[Any]:
        """Give the beginning of a buffer as flat rows of some items."""
        shape = self.shape_of(items)
        return buffer[: shape[0] * self.row_bytes].view(self.source.dtype).reshape(shape)

    def lead(self, items: NDArray[np.intp], buffer: NDArray[np.uint8]) -> int:
        """Bytes of a buffer to leave free before some items, so that they can be read directly."""
        place_of = getattr(self.source, "place_of", lambda row: 0)
        runs = self._runs(items)
        if not runs or self.bytes_of(items) < LEAST_BYTES:
            return 0
        found = lead(buffer.ctypes.data, place_of(runs[0][0] // self.rows_each))
        return found if (buffer.ctypes.data + found) % ALIGNMENT == 0 else 0

    def where_it_is(self, items: NDArray[np.intp]) -> Any:
        """Give some items that are on a device already; None for those that are to be read."""
        given = getattr(self.source, "stacked", None)
        return None if given is None else given(items)

    def read(self, items: NDArray[np.intp], into: NDArray[Any]) -> None:
        """Read some items, rising, into flat rows; those that lie end to end at once."""
        place = 0
        for start, stop in self._runs(items):
            rows = into[place : place + stop - start]
            whole = rows.reshape(((stop - start) // self.rows_each, *self.source.shape[1:]))
            self.source.read(start // self.rows_each, stop // self.rows_each, whole)
            place += stop - start

    def _runs(self, items: NDArray[np.intp]) -> list[tuple[int, int]]:
        """Give the flat rows of rising items, first and one past the last of each run."""
        if not isinstance(self.column, Ragged):
            return [(start, stop) for start, stop, _ in runs_of(items)]
        return [(start, stop) for start, stop, _ in runs_of_items(self.column.layout, items)]

    def _own_bytes(self, items: NDArray[np.intp]) -> int:
        size: int = self._counts(items) * self.row_bytes
        return size

    def _counts(self, items: NDArray[np.intp]) -> int:
        if not isinstance(self.column, Ragged):
            return int(items.size)
        layout: Layout = self.column.layout
        return int(layout.counts[items].sum())


def runs_of(places: NDArray[Any]) -> list[tuple[int, int, int]]:
    """Give runs of consecutive places: first, one past the last, and the row it begins with.

    >>> runs_of(np.array([4, 5, 6, 9]))
    [(4, 7, 0), (9, 10, 3)]
    """
    first, last = _ends(np.flatnonzero(np.diff(places) != 1) + 1, len(places))
    columns = (places[first], places[last] + 1, first)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def runs_of_items(layout: Layout, items: NDArray[np.intp]) -> list[tuple[int, int, int]]:
    """Give runs of consecutive flat rows of some items: see `runs_of`.

    >>> runs_of_items(Layout([2, 1, 3, 1]), np.array([0, 1, 3]))
    [(0, 3, 0), (6, 7, 3)]
    """
    starts = layout.starts[items]
    stops = starts + layout.counts[items]
    held = stops > starts
    starts, stops = starts[held], stops[held]
    rows = np.cumsum(stops - starts) - (stops - starts)
    first, last = _ends(np.flatnonzero(starts[1:] != stops[:-1]) + 1, len(starts))
    columns = (starts[first], stops[last], rows[first])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _ends(breaks: NDArray[np.intp], count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Give the first and the last row of each run."""
    if not count:
        return breaks, breaks
    return np.concatenate([[0], breaks]), np.concatenate([breaks, [count]]) - 1


def _names_files(given: Sequence[Any]) -> bool:
    return len(given) > 0 and isinstance(given[0], str | PathLike)


def _is_outside(values: Any) -> bool:
    """Whether something with a shape is no array of a framework, or one that is mapped."""
    if is_array_api_obj(values):
        return isinstance(values, np.memmap)
    if type(values).__module__.partition(".")[0] == "h5py":  # a closed one has no shape
        return True
    tabular = hasattr(values, "__array_priority__")  # columns of pandas are in memory
    readable = hasattr(values, "__getitem__") or hasattr(values, "identity")
    return hasattr(values, "shape") and readable and not tabular
