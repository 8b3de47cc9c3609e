"""Numbers that lie in C order in a file: rows, regions and scattered pieces, by one call each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.stores import direct
from stowplan.stores.descriptors import bytes_view, fill_rows, read_into, write_from, write_pieces
from stowplan.stores.helping import in_pieces
from stowplan.stores.read_ahead import bring, bytes_held, is_cached
from stowplan.stores.regions import Region, contiguous_from
from stowplan.stores.stored import Indexed, buffer_of_rows, bytes_of, check_part, checked_values

__all__ = ["FileArray", "file_behind", "mark_targets", "written_meanwhile"]

SMALL_BYTES = 8192
"""Pieces below this are read together and sorted out in memory: a call costs as much."""
BOUNCE_BYTES = 1 << 20
"""The most that is read together for that, or to pick numbers out of it."""
WASTE = 16
"""Bytes read for one that is wanted, at most."""
NARROW_BYTES = 4096
"""Rows up to a page are read whole, many at a time: a part of one costs as much as all of it."""

PIECE_BYTES = 1 << 21
"""Smallest piece of a read that threads share: below, they take turns for longer than they gain."""


class FileArray(Indexed):
    """An array of native dtype over a part of a file; other byte orders are turned on the way.

    Parameters
    ----------
    path, offset
        The file and the byte where the values begin.
    shape, dtype
        `dtype` as it is in the file.
    writable
        Whether the file is opened for writing, too.
    check
        Called with the array before each read; None compares the size of the file alone.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        writable: bool = False,
        descriptor: int | None = None,
        name: str | None = None,
        kind: str = "file",
        check: Callable[[FileArray, os.stat_result], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.name = str(path) if name is None else name
        self.kind = kind
        self.offset = offset
        self.shape = tuple(map(int, shape))
        self.dtype: np.dtype[Any] = dtype.newbyteorder("=") if dtype.kind != "V" else dtype
        self.swapped = dtype.kind != "V" and not dtype.isnative
        self.file_dtype = dtype
        self.writable = writable
        self.resumed = False
        self.is_target = False  # whether the run that reads the file writes to it as well
        self._check = check
        flags = (os.O_RDWR if writable else os.O_RDONLY) | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags) if descriptor is None else descriptor
        self._brought = False
        self._row_bytes = bytes_of(self.shape[1:], self.dtype)
        self._end = offset + bytes_of(self.shape, self.dtype)
        try:
            self._refuse_changed()
        except BaseException:
            if descriptor is None:
                os.close(self._descriptor)
            self._descriptor = -1  # one that was passed is closed by who opened it
            raise

    def read(self, start: int, stop: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Give rows [start, stop), read straight into where they are wanted."""
        into = buffer_of_rows(self, start, stop, into)
        if into.nbytes:
            self._read(self.place_of(start), [bytes_view(into)])
            self._turn(into)
        return into

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Write whole rows."""
        values = checked_values(self, start, values)
        self._write(self.place_of(start), [self._as_in_file(values)])

    def read_region(
        self, index: tuple[slice, ...], into: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Give a hyper-rectangle; `into` may be any view of its shape.

        What lies end to end in the file is read by one call, wherever it goes; small pieces are
        read together with what lies between them.
        """
        region = Region.of(index, self.shape, self.name)
        into = np.empty(region.shape, self.dtype) if into is None else into
        check_part(self.name, region.shape, self.dtype, into)
        if not into.size:
            return into
        self._refuse_changed()
        axis = max(region.run_axis, contiguous_from(into))
        if region.useful(axis) * self.dtype.itemsize >= SMALL_BYTES or into.ndim == 0:
            for position, pieces in self._pieces(region, into):
                self._fill(position, pieces)
            self._turn(into)
        else:
            self._read_through(region, into)
        return into

    def write_region(self, index: tuple[slice, ...], values: NDArray[Any]) -> None:
        """Write a hyper-rectangle, by one call for what lies end to end in the file."""
        region = Region.of(index, self.shape, self.name)
        values = np.asarray(values)
        check_part(self.name, region.shape, self.dtype, values)
        if not values.size:
            return
        axis = max(region.run_axis, contiguous_from(values))
        if not self.swapped and region.useful(axis) * self.dtype.itemsize >= SMALL_BYTES:
            for position, pieces in self._pieces(region, values):
                self._write(position, pieces)
            return
        if not self.swapped and values.flags.c_contiguous:
            self._write_apart(region, values)
            return
        for element, lead in region.runs(region.run_axis):
            self._write(self._byte(element), [self._as_in_file(_view(values, lead))])

    def read_scattered(self, offset_elements: int, destinations: Sequence[memoryview]) -> None:
        """Fill several places in memory, one after another, with what lies end to end.

        Parameters
        ----------
        offset_elements
            The first element, counted over the whole array.
        destinations
            Writable views of contiguous memory, whole elements each.
        """
        views = [bytes_view(np.asarray(view)) for view in destinations if view.nbytes]
        count = sum(view.nbytes for view in views)
        position = self._byte(offset_elements)
        if offset_elements < 0 or position + count > self._end:
            raise DataError(
                f"{self.name}: {count} bytes from element {offset_elements} on end beyond the "
                f"{bytes_of(self.shape, self.dtype)} bytes of {self.shape} {self.dtype}."
            )
        self._read(position, views)
        for view in views if self.swapped else ():
            np.frombuffer(view, self.dtype).byteswap(inplace=True)

    def read_ahead(self) -> None:
        """Bring the values into the system's page cache, where they are not."""
        bring(self._descriptor, self.offset, self._end)
        self._brought = True

    def is_direct(self, into: NDArray[Any]) -> bool:
        """Whether all values would be read past the page cache, if they are not there."""
        whole = into.flags.c_contiguous and into.nbytes == self._end - self.offset
        return whole and direct.possible(self._descriptor, self.offset, bytes_view(into))

    def place_of(self, row: int) -> int:
        """Byte of the file where a row begins."""
        return self.offset + row * self._row_bytes

    @property
    def ahead_bytes(self) -> int:
        """What `read_ahead` holds for two files at most."""
        return bytes_held(self._end - self.offset)

    def read_columns(self, first: int, columns: Sequence[NDArray[Any]]) -> None:
        """Fill tables (rows, n_i), which lie beside each other in the last axis of a 2-D view.

        Parameters
        ----------
        first
            Where the first table begins in a row of the array, all of whose axes but those of the
            rows are flattened.
        columns
            C-contiguous, of equally many rows; what of a row they hold lies end to end.
        """
        self._refuse_changed()
        rows, size = len(columns[0]), self.dtype.itemsize
        width = math.prod(self.shape) // rows * size
        views = [(bytes_view(table), table.shape[1] * size) for table in columns]
        together = sum(each for _, each in views)
        position = self.offset + first * size
        if len(views) == 1 and together == width:
            self._fill(position, [views[0][0]])
        elif width <= NARROW_BYTES:
            self._columns_through(position, width, rows, views)
        else:
            self._columns_by_row(position, width, rows, views)
        for table in columns:
            self._turn(table)

    def write_columns(
        self, first: int, columns: Sequence[NDArray[Any]], width: int | None = None
    ) -> None:
        """Write tables (rows, n_i) beside each other, as `read_columns` reads them.

        ``width`` is the elements of a row, where the tables belong to a part of the array.
        """
        rows, size = len(columns[0]), self.dtype.itemsize
        width = math.prod(self.shape) // rows if width is None else width
        together = sum(table.shape[1] for table in columns)
        step = max(BOUNCE_BYTES // max(together * size, 1), 1)
        for begin in range(0, rows, step):
            tables = [table[begin : begin + step] for table in columns]
            joined = tables[0] if len(tables) == 1 else np.concatenate(tables, axis=1)
            view = self._as_in_file(joined)
            position = self._byte(first + begin * width)
            if together == width:
                self._write(position, [view])
                continue
            self._refuse_read_only()
            places = range(position, position + len(joined) * width * size, width * size)
            write_pieces(self._descriptor, places, view, self.name)

    def _columns_by_row(
        self, position: int, width: int, rows: int, views: Sequence[tuple[memoryview, int]]
    ) -> None:
        """Fill each row of each table from its own place in the file."""
        together = sum(each for _, each in views)
        buffers = [
            [view[row * each : (row + 1) * each] for view, each in views] for row in range(rows)
        ]
        if together == width:
            self._fill(position, [buffer for row in buffers for buffer in row])
            return

        def fill(begin: int, end: int) -> None:
            place, part = position + begin * width, buffers[begin:end]
            fill_rows(self._descriptor, place, width, together, part, self._fill_part)

        in_pieces(fill, rows, least=max(PIECE_BYTES // together, 1))

    def _columns_through(
        self, position: int, width: int, rows: int, views: Sequence[tuple[memoryview, int]]
    ) -> None:
        """Read many rows with what lies between them, and cut them apart in memory."""
        together = sum(each for _, each in views)
        step = min(max(BOUNCE_BYTES // width, 1), rows)
        room = np.empty((step, width), np.uint8)
        tables = [np.frombuffer(view, np.uint8).reshape(rows, each) for view, each in views]
        for row in range(0, rows, step):
            count = min(step, rows - row)
            span = (count - 1) * width + together
            self._fill(position + row * width, [bytes_view(room.reshape(-1)[:span])])
            begin = 0
            for table in tables:
                table[row : row + count] = room[:count, begin : begin + table.shape[1]]
                begin += table.shape[1]

    def identity(self) -> tuple[Any, ...]:
        """Give path, form, size and time of the last change."""
        facts = os.fstat(self._descriptor)
        return (
            self.kind, str(self.path.resolve()), self.offset, self.shape, self.file_dtype.str,
            facts.st_size, facts.st_mtime_ns,
        )  # fmt: skip

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        """Close the file of an array that nobody holds any more."""
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _byte(self, element: int) -> int:
        return self.offset + element * self.dtype.itemsize

    def _pieces(
        self, region: Region, array: NDArray[Any]
    ) -> list[tuple[int, list[memoryview]]] | Any:
        """Give the place in the file of each run, and the parts of memory that it is made of."""
        inner = max(region.run_axis, contiguous_from(array))
        for element, lead in region.runs(region.run_axis):
            block = _view(array, lead)
            within = np.ndindex(*region.shape[region.run_axis : inner])
            yield self._byte(element), [bytes_view(_view(block, index)) for index in within]

    def _read_through(self, region: Region, into: NDArray[Any]) -> None:
        """Read blocks with what lies between their parts, as far as that pays."""
        size, axis = self.dtype.itemsize, region.run_axis
        while axis:
            span, useful = region.span(axis - 1), region.useful(axis - 1)
            if span * size > BOUNCE_BYTES or span > WASTE * useful:
                break
            axis -= 1
        span = region.span(axis)
        room = np.empty(span, self.dtype)
        strides = [stride * size for stride in region.strides[axis:]]
        view = as_strided(room, region.shape[axis:], strides)
        for element, lead in region.runs(axis):
            self._fill(self._byte(element), [bytes_view(room)])
            into[lead] = view
        self._turn(into)

    def _turn(self, array: NDArray[Any]) -> None:
        if self.swapped:
            array.byteswap(inplace=True)

    def _as_in_file(self, values: NDArray[Any]) -> memoryview:
        if self.swapped:
            values = values.byteswap()
        return bytes_view(np.ascontiguousarray(values))

    def _read(self, position: int, views: Sequence[memoryview]) -> None:
        self._refuse_changed()
        self._fill(position, views)

    def _fill(self, position: int, views: Sequence[memoryview]) -> None:
        if len(views) == 1:
            (view,) = views
            first, last = self._read_direct(position, view)
            if last:
                self._fill_part(position, [view[:first]])
                position, view = position + last, view[last:]

            def fill(begin: int, end: int) -> None:
                self._fill_part(position + begin, [view[begin:end]])

            in_pieces(fill, view.nbytes, least=PIECE_BYTES)
            return
        self._fill_part(position, views)

    def _fill_part(self, position: int, views: Sequence[memoryview]) -> None:
        wanted = sum(view.nbytes for view in views)
        found = read_into(self._descriptor, position, views)
        if found < wanted:
            self._refuse_changed()
            raise _changed(self.name, position + wanted, position + found)

    def _read_direct(self, position: int, view: memoryview) -> tuple[int, int]:
        """Read what can be read past the page cache, and is not there: see `read_direct`."""
        if (
            self._brought
            or not direct.possible(self._descriptor, position, view)
            or is_cached(self._descriptor, position, position + view.nbytes)
        ):
            return 0, 0
        return direct.read_direct(self._descriptor, position, view)

    def _write(self, position: int, views: Sequence[memoryview]) -> None:
        self._refuse_read_only()
        write_from(self._descriptor, position, views, self.name)

    def _write_apart(self, region: Region, values: NDArray[Any]) -> None:
        """Write small runs with as little as there can be between two calls."""
        self._refuse_read_only()
        size, view, begin = (
            region.useful(region.run_axis) * self.dtype.itemsize,
            bytes_view(values),
            0,
        )
        for places in region.places(region.run_axis):
            end = begin + len(places) * size
            positions = (self.offset + places * self.dtype.itemsize).tolist()
            write_pieces(self._descriptor, positions, view[begin:end], self.name)
            begin = end

    def _refuse_read_only(self) -> None:
        if not self.writable:
            raise DataError(
                f"{self.name}: it was opened for reading. Write to a new array: out='another.npy'."
            )

    def _refuse_changed(self) -> None:
        facts = os.fstat(self._descriptor)
        if facts.st_size < self._end:
            raise _changed(self.name, self._end, facts.st_size)
        if self._check is not None:
            self._check(self, facts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self.shape} {self.dtype})"


def mark_targets(sources: Iterable[Any], targets: Iterable[Any]) -> None:
    """Let arrays that are read in the file of an output be written to: rows that come later."""
    written = {_file_number(target) for target in targets} - {None}
    for source in sources:
        if _file_number(source) in written:
            file_behind(source).is_target = True


def file_behind(array: Any) -> Any:
    """Give the file that an array is read from by its place, as it is or turned; else None."""
    file = getattr(array, "file", array)
    return file if isinstance(file, FileArray) else None


def _file_number(array: Any) -> tuple[int, int] | None:
    file = file_behind(array)
    if file is None or file._descriptor < 0:
        return None
    facts = os.fstat(file._descriptor)
    return facts.st_dev, facts.st_ino


def written_meanwhile(name: str) -> DataError:
    """Give the error for a file that somebody has written to since it was opened for reading."""
    return DataError(
        f"{name}: it was written to after it was opened, and what was read before may be of other "
        "values: it changed while it was read. Start again once nobody writes to it."
    )


def _view(array: NDArray[Any], lead: tuple[int, ...]) -> NDArray[Any]:
    """Give what lies at a leading index, as a view even where that is one element."""
    place: Any = (*lead, ...)
    found: NDArray[Any] = array[place]
    return found


def _changed(name: str, expected: int, found: int) -> DataError:
    return DataError(
        f"{name} is too short: its values end at byte {expected}, the file at byte {found}. It "
        "was cut off, or it changed while it was read."
    )
