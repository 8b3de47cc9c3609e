"""Sizes of items from a table: CSV or Parquet in, one column of integers per dim out."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.extras import import_extra

__all__ = ["read_names", "read_sizes"]

DELIMITERS = ",;\t"
LARGEST = 2**63 - 1
EXACT = 2**53  # whole numbers in float64
SHOWN = 3  # of the cells that are no size

Column = tuple[Sequence[Any], Sequence[int]]  # cells, and the line or row each stands in


def read_sizes(
    source: str | Path | TextIO,
    dims: Sequence[str] | None = None,
    *,
    leave_out: Sequence[str] = (),
) -> dict[str, NDArray[np.int64]]:
    r"""Read the sizes of items, one row an item, from a CSV or Parquet file.

    Parameters
    ----------
    source
        A path, or an open text file that holds CSV. CSV begins with a line of column names and
        separates by comma, semicolon or tab.
    dims
        Columns to read; all by default.
    leave_out
        Columns that are no sizes, where all others are read.

    Returns
    -------
    dict of dim to int64 array (items,)

    Raises
    ------
    DataError
        For an unreadable file, a column that it lacks, and sizes that are missing, negative or
        fractional: how many, and the lines (CSV) or rows (Parquet), counted from 1, of the first.
    MissingDependencyError
        For Parquet without pyarrow.

    Examples
    --------
    >>> from io import StringIO
    >>> read_sizes(StringIO("atoms,k\n2,9\n3,40\n"))
    {'atoms': array([2, 3]), 'k': array([ 9, 40])}
    """
    name, columns, unit = _columns(source, dims, leave_out)
    return {dim: _integers(column, f"{name}: column {dim!r}", unit) for dim, column in columns}


def read_names(source: str | Path, column: str) -> list[str]:
    r"""Read the names of items from a column of the table that `read_sizes` reads.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.csv").write_text("atoms,name\n2,water\n3,ozone\n")
    ...     read_names(Path(folder, "a.csv"), "name")
    ['water', 'ozone']
    """
    _, ((_, (cells, _)),), _ = _columns(source, [column], ())
    return ["" if cell is None else str(cell).strip() for cell in cells]


def _columns(
    source: str | Path | TextIO, dims: Sequence[str] | None, leave_out: Sequence[str]
) -> tuple[str, list[tuple[str, Column]], str]:
    """Name of the source, its columns, and what a place in them is called."""
    name = str(source) if isinstance(source, (str, Path)) else getattr(source, "name", "the table")
    unit = "line"
    with _reading(name):
        if not isinstance(source, (str, Path)):
            columns = _csv_columns(source, name, dims, leave_out)
        elif _is_parquet(Path(source)):
            columns, unit = _parquet_columns(source, name, dims, leave_out), "row"
        else:
            with Path(source).open(newline="", encoding="utf-8-sig") as file:
                columns = _csv_columns(file, name, dims, leave_out)
    return name, columns, unit


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what a reader raises into a DataError with the name of the file and the reason."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: neither CSV nor Parquet: {error}") from error


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _csv_columns(
    file: Iterable[str], name: str, dims: Sequence[str] | None, leave_out: Sequence[str]
) -> list[tuple[str, Column]]:
    lines = iter(file)
    header = next(lines, "").removeprefix("\ufeff")  # standard input keeps the mark of UTF-8
    delimiter = max(DELIMITERS, key=header.count)
    names = [cell.strip() for cell in next(csv.reader([header], delimiter=delimiter), [])]
    wanted = _wanted(name, names, dims, leave_out)
    reader = csv.reader(lines, delimiter=delimiter)
    rows: list[list[str]] = []
    places: list[int] = []
    for row in reader:
        if any(cell.strip() for cell in row):
            rows.append(row)
            places.append(reader.line_num + 1)
    found: list[tuple[str, Column]] = []
    for dim in wanted:
        axis = names.index(dim)
        found.append((dim, ([row[axis] if axis < len(row) else "" for row in rows], places)))
    return found


def _parquet_columns(
    path: str | Path, name: str, dims: Sequence[str] | None, leave_out: Sequence[str]
) -> list[tuple[str, Column]]:
    pyarrow, parquet = (
        import_extra("arrow", module, f"{name}, a Parquet file,")
        for module in ("pyarrow", "pyarrow.parquet")
    )
    try:
        wanted = _wanted(name, parquet.read_schema(path).names, dims, leave_out)
        table = parquet.read_table(path, columns=list(wanted))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: unreadable Parquet file: {error}") from error
    places = range(1, table.num_rows + 1)
    return [(dim, (table[dim].to_pylist(), places)) for dim in wanted]


def _wanted(
    name: str, names: Sequence[str], dims: Sequence[str] | None, leave_out: Sequence[str]
) -> Sequence[str]:
    """The columns to read, once the file proves to have each of them once."""
    if not any(names):
        raise DataError(f"{name}: empty; the first line must name the columns, such as atoms,k")
    twice = next((column for column in names if names.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{name}: two columns are named {twice!r}")
    missing = [dim for dim in dims or () if dim not in names]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise DataError(
            f"{name}: no column{plural} {', '.join(map(repr, missing))}; "
            f"the file has {', '.join(names)}. Name one of these."
        )
    if dims is None:
        return [column for column in names if column not in leave_out]
    return list(dict.fromkeys(dims))


def _integers(column: Column, name: str, unit: str) -> NDArray[np.int64]:
    cells, places = column
    sizes = [_size(cell) for cell in cells]
    if None in sizes:
        wrong = [place for place, size in enumerate(sizes) if size is None]
        shown = ", ".join(f"{unit} {places[i]} {_content(cells[i])}" for i in wrong[:SHOWN])
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise DataError(
            f"{name}: {len(wrong)} of {len(sizes)} entries are no size; {shown}{more}. "
            "A size is a whole number from 0."
            + (
                " Is the column one of sizes? Name those that are."
                if len(wrong) == len(sizes)
                else ""
            )
        )
    return np.array(sizes, np.int64)


def _content(cell: Any) -> str:
    return "is empty" if cell is None or not str(cell).strip() else f"has {cell!r}"


def _size(cell: Any) -> int | None:
    """The size in a cell, None for what is none; 64.0 is 64."""
    if isinstance(cell, str | int) and not isinstance(cell, bool):
        try:
            size = int(cell)
            return size if 0 <= size <= LARGEST else None
        except ValueError:
            pass
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    exact = value.is_integer() and 0 <= value <= EXACT and not isinstance(cell, bool)
    return int(value) if exact else None
