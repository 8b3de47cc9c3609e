"""Where the results of a run that is computed in parts come to lie: in memory, or on disk."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stowplan.layout import Layout
from stowplan.ragged import Ragged
from stowplan.runs.parts import flat_rows_of

if TYPE_CHECKING:
    from stowplan.stores.arrays import StoredArray

__all__ = ["InMemory", "OnDisk", "Result"]


class Result:
    """One output of a run: flat rows of all items, filled part by part.

    Parameters
    ----------
    layout : Layout, optional
        Where items lie in the flat rows of a ragged output; None for one row an item.
    """

    def __init__(self, layout: Layout | None) -> None:
        self.layout = layout

    def places(self, items: NDArray[np.intp]) -> NDArray[np.int64]:
        """Flat rows of some rising items."""
        if self.layout is None:
            return items.astype(np.int64)
        return flat_rows_of(self.layout, items)

    def keep(self, items: NDArray[np.intp], output: Any) -> None:
        """Put what a part gave for its items where it belongs."""
        values = output.compact().values if isinstance(output, Ragged) else output
        self.write(self.places(items), np.asarray(values))

    def write(self, places: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Put rows where they belong."""
        raise NotImplementedError

    def whole(self) -> Any:
        """Give the output of all items."""
        raise NotImplementedError


class InMemory(Result):
    """An output in memory, given back where the data are.

    Parameters
    ----------
    layout
        See `Result`.
    rows : int
        All flat rows.
    back
        Brings an array of NumPy to where the data are.
    """

    def __init__(
        self, layout: Layout | None, rows: int, back: Callable[[NDArray[Any]], Any]
    ) -> None:
        super().__init__(layout)
        self.rows = rows
        self.back = back
        self.total: NDArray[Any] | None = None

    def write(self, places: NDArray[np.int64], values: NDArray[Any]) -> None:
        if self.total is None:
            self.total = np.empty((self.rows, *values.shape[1:]), values.dtype)
        if self.total.dtype != values.dtype:  # eigenvalues are complex where they must
            self.total = self.total.astype(np.result_type(self.total, values), copy=False)
        self.total[places] = values

    def whole(self) -> Any:
        assert self.total is not None
        total = self.back(self.total)
        return total if self.layout is None else Ragged.from_layout(total, self.layout)


class OnDisk(Result):
    """An output in an array on disk."""

    def __init__(self, layout: Layout | None, target: StoredArray) -> None:
        super().__init__(layout)
        self.target = target

    def write(self, places: NDArray[np.int64], values: NDArray[Any]) -> None:
        for start, stop, first in _runs(places):
            self.target.write(start, values[first : first + stop - start])

    def checksum(self, items: NDArray[np.intp]) -> int:
        """Give the crc32 of what lies on disk of some items."""
        total = 0
        for start, stop, _ in _runs(self.places(items)):
            total = zlib.crc32(np.ascontiguousarray(self.target.read(start, stop)), total)
        return total

    def whole(self) -> Any:
        return self.target if self.layout is None else Ragged.from_layout(self.target, self.layout)


def checksum_of(output: Any) -> int:
    """Give the crc32 of what a part gave, which is that of its rows on disk."""
    values = output.compact().values if isinstance(output, Ragged) else output
    return zlib.crc32(np.ascontiguousarray(values))


def _runs(places: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Give runs of consecutive places: first, one past the last, and the row it begins with."""
    if not len(places):
        return []
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    first = np.concatenate([[0], breaks])
    last = np.concatenate([breaks, [len(places)]]) - 1
    columns = (places[first], places[last] + 1, first)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def kinds(outputs: Sequence[Any]) -> list[str]:
    """Name what outputs are, for messages."""
    return ["Ragged" if isinstance(output, Ragged) else "array" for output in outputs]
