"""List columns of Parquet: flat values read by row groups, and the shape of every item."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.arrow import read_lists, read_values
from stowplan.errors import DataError
from stowplan.extras import import_extra
from stowplan.layout import Layout
from stowplan.ragged import Ragged
from stowplan.stores.stored import Indexed, buffer_of_rows, check_dtype

__all__ = ["ParquetValues", "open_parquet"]


class ParquetValues(Indexed):
    """Flat rows of a column; the row group that was read last is kept."""

    def __init__(self, path: Path, column: str, ragged: int) -> None:
        self.path = path
        self.column = column
        self.name = f"{path}::{column}"
        self._ragged = ragged
        self._facts = _facts(path)
        self._file = _parquet().ParquetFile(path)
        self._lock = threading.Lock()
        self._last: tuple[int, NDArray[Any]] | None = None
        counts, tail = self._survey()
        if tail is None:
            raise DataError(f"{self.name}: the column is empty, and of no known type.")
        self.ends = np.cumsum(counts)
        self.shape = (int(self.ends[-1]), *tail[0])
        self.dtype = check_dtype(tail[1], self.name)
        largest = max(counts, default=0)
        self.reading_bytes = (
            2 * largest * int(np.prod(tail[0], dtype=np.int64)) * (self.dtype.itemsize)
        )  # a row group as decoded, and as numbers

    def read(self, start: int, stop: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Give rows [start, stop)."""
        into = buffer_of_rows(self, start, stop, into)
        with self._lock:
            if _facts(self.path) != self._facts:
                raise DataError(f"{self.name}: the file changed while it was read.")
            group = int(np.searchsorted(self.ends, start, side="right"))
            place = start
            while place < stop:
                values = self._group(group)
                first = int(self.ends[group]) - len(values)
                end = min(stop, int(self.ends[group]))
                into[place - start : end - start] = values[place - first : end - first]
                place, group = end, group + 1
        return into

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Refuse: a Parquet file is written as a whole."""
        raise DataError(f"{self.name} is read-only. Write to a new array: out='another.npy'.")

    def identity(self) -> tuple[Any, ...]:
        """Give file and column, form, size and time of the last change."""
        return ("parquet", str(self.path.resolve()), self.column, self.shape, self.dtype.str,
                *self._facts)  # fmt: skip

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._last = None

    def _survey(self) -> tuple[list[int], tuple[tuple[int, ...], np.dtype[Any]] | None]:
        """Count the rows of each row group; those of lists only their offsets tell."""
        shapes, counts, tail = [], [], None
        for group in range(self._file.num_row_groups):
            if tail is not None and not self._ragged:
                counts.append(self._file.metadata.row_group(group).num_rows)
                continue
            values, lengths = self._decode(group)
            shapes.append(lengths)
            counts.append(len(values))
            if not len(values) and tail is not None:
                continue
            if tail is not None and any(counts[:-1]) and tail != _tail(values):
                raise DataError(
                    f"{self.name}: row group {group} has {values.shape[1:]} {values.dtype} behind "
                    f"its rows, those before have {tail[0]} {tail[1]}."
                )
            tail = _tail(values)
        self.shapes = np.concatenate(shapes) if shapes else np.empty((0, self._ragged), np.int64)
        return counts, tail

    def _group(self, group: int) -> NDArray[Any]:
        if self._last is None or self._last[0] != group:
            self._last = None  # two at once would be one too many
            self._last = (group, self._decode(group)[0])
        return self._last[1]

    def _decode(self, group: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        try:
            table = self._file.read_row_group(group, columns=[self.column], use_threads=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.name}: row group {group} cannot be read: {error}") from error
        column = table.column(0)
        if self._ragged:
            return read_lists(column, self._ragged)
        values = read_values(column)
        return values, np.empty((len(values), 0), np.int64)


def open_parquet(path: str, column: str) -> ParquetValues | Ragged:
    """Open a column: lists of any length are ragged dims, of fixed length trailing axes.

    Raises
    ------
    DataError
        For what is not there, listing what there is, and for nulls.
    """
    parquet = _parquet()
    if not Path(path).is_file():
        raise DataError(f"{path}: there is no such file.")
    try:
        schema = parquet.read_schema(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be opened as Parquet: {error}") from error
    column = column or (schema.names[0] if len(schema.names) == 1 else "")
    if column not in schema.names:
        named = f"no column {column!r}" if column else f"{len(schema.names)} columns"
        there = ", ".join(schema.names) or "none"
        raise DataError(f"{path} has {named}. Name one, {path}::NAME; there are: {there}.")
    ragged = _list_levels(schema.field(column).type)
    values = ParquetValues(Path(path), column, ragged)
    return Ragged.from_layout(values, Layout(values.shapes)) if ragged else values


def _list_levels(kind: Any) -> int:
    pa = import_extra("arrow", "pyarrow", "a column of Parquet")
    levels = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        levels += 1
        kind = kind.value_type
    return levels


def _tail(values: NDArray[Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    return values.shape[1:], values.dtype


def _facts(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _parquet() -> Any:
    return import_extra("arrow", "pyarrow.parquet", "a column of Parquet")
