"""Rows that hold several items: their columns, and which of its items each entry belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.declaration import Kernel
from stowplan.errors import DataError
from stowplan.layout import Layout
from stowplan.ragged import Ragged

__all__ = ["JoinedRows", "bind_segments", "one_each", "refuse_joined"]


@dataclass(frozen=True, eq=False)
class JoinedRows(Mapping[str, Any]):
    """Columns with one entry per row, by name: data for `plan`, `run` and `verify`.

    Attributes
    ----------
    columns : dict
        A row's values are those of its items, end to end.
    counts : (rows,) int64
        Items of each row.
    segments : dict of str to Ragged
        Per ragged dim, which of the row's items each entry belongs to: 0, 1, ...
    """

    columns: Mapping[str, Any]
    counts: NDArray[np.int64]
    segments: Mapping[str, Ragged]

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __repr__(self) -> str:
        return f"<{int(self.counts.sum())} items in {len(self.counts)} rows: {', '.join(self)}>"


def one_each(column: Any) -> Ragged:
    """Give an array with one entry per item as a Ragged of rows that hold one item."""
    return Ragged.from_layout(column, Layout(np.ones(column.shape[0], np.int64)))


def bind_segments(
    where: str, kernel: Kernel, data: Any, lengths: Mapping[str, NDArray[np.int64]], rows: int
) -> tuple[NDArray[np.int64], dict[str, Ragged]]:
    """Give the items of each row, and per ragged dim which of them every entry belongs to.

    ``lengths`` are those of the bound columns. Data that are not joined have one item per row.
    """
    dims = [dim for dim in kernel.ragged if dim != kernel.segments]
    if isinstance(data, JoinedRows):
        _check_joined(where, data, {dim: lengths[dim] for dim in dims})
        counts, segments = data.counts, {dim: data.segments[dim] for dim in dims}
    else:
        counts = np.ones(rows, np.int64)
        layouts = [Layout(lengths[dim]) for dim in dims]
        segments = {
            dim: Ragged.from_layout(np.zeros(int(layout.counts.sum()), np.int64), layout)
            for dim, layout in zip(dims, layouts, strict=True)
        }
    given = lengths.get(str(kernel.segments), counts)
    if not np.array_equal(given, counts):
        row = int(np.argmax(given != counts))
        holds = "1 item" if counts[row] == 1 else f"{counts[row]} items"
        raise DataError(
            f"{where}: row {row} has {kernel.segments}={given[row]} in its columns, but holds "
            f"{holds}. Rows of several items are made by sp.join_rows; a column with one entry per "
            "item is an array with items on axis 0."
        )
    return counts, segments


def _check_joined(where: str, data: JoinedRows, lengths: Mapping[str, NDArray[np.int64]]) -> None:
    cure = "Join the items for this kernel: sp.join_rows(kernel, data, packing)."
    for dim, expected in lengths.items():
        if dim not in data.segments:
            known = ", ".join(data.segments)
            raise DataError(f"{where}: the rows were joined along {known}, not {dim!r}. {cure}")
        found = data.segments[dim].shapes[:, 0]
        if not np.array_equal(found, expected):
            raise DataError(
                f"{where}: the columns have other lengths along {dim!r} than were joined. {cure}"
            )


def refuse_joined(where: str, data: Mapping[str, Any] | Sequence[Any]) -> None:
    """Raise DataError for rows of several items, which a kernel without segments would mix."""
    if isinstance(data, JoinedRows):
        raise DataError(
            f"{where} declares no segments=, so rows with several items would mix them. Declare "
            "the dim that counts the items of a row, @kernel(..., segments='molecules')."
        )
