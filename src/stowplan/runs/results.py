"""Where the results of a run that is computed in parts come to lie: in memory, or on disk."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stowplan.layout import Layout
from stowplan.ragged import Ragged
from stowplan.runs.stored_columns import runs_of, runs_of_items
from stowplan.runs.tasks import to_host
from stowplan.stores.descriptors import bytes_view

if TYPE_CHECKING:
    from stowplan.stores.arrays import NewArray, StoredArray

__all__ = ["InMemory", "OnDisk", "Result", "checksum_of", "flat_values"]


class Result:
    """One output of a run: flat rows of all items, filled part by part.

    Parameters
    ----------
    layout : Layout, optional
        Where items lie in the flat rows of a ragged output; None for one row an item.
    """

    def __init__(self, layout: Layout | None) -> None:
        self.layout = layout

    def runs(self, items: NDArray[np.intp]) -> list[tuple[int, int, int]]:
        """Give runs of the flat rows of some rising items: see `runs_of`."""
        return runs_of(items) if self.layout is None else runs_of_items(self.layout, items)

    def keep(self, items: NDArray[np.intp], values: NDArray[Any]) -> None:
        """Put flat rows of some items where they belong."""
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
        All flat rows; dtype and trailing shape are those of the first part, or of `like`.
    back
        Brings an array of NumPy to where the data are.
    """

    def __init__(
        self,
        layout: Layout | None,
        rows: int,
        back: Callable[[NDArray[Any]], Any],
        like: NDArray[Any] | None = None,
    ) -> None:
        super().__init__(layout)
        self.rows = rows
        self.back = back
        self.total: NDArray[Any] | None = None
        if like is not None:
            self.total = np.empty((rows, *like.shape[1:]), like.dtype)

    def keep(self, items: NDArray[np.intp], values: NDArray[Any]) -> None:
        """Copy flat rows of some items into the whole."""
        if self.total is None:
            self.total = np.empty((self.rows, *values.shape[1:]), values.dtype)
        if self.total.dtype != values.dtype:  # eigenvalues are complex where they must
            self.total = self.total.astype(np.result_type(self.total, values), copy=False)
        for start, stop, first in self.runs(items):
            self.total[start:stop] = values[first : first + stop - start]

    def whole(self) -> Any:
        """Give the output of all items, where the data are."""
        assert self.total is not None
        total = self.back(self.total)
        return total if self.layout is None else Ragged.from_layout(total, self.layout)


class OnDisk(Result):
    """An output in an array on disk.

    Parameters
    ----------
    layout
        See `Result`.
    target : StoredArray
        Items on axis 0 where all have one shape, else flat rows.
    made : bool
        Whether the array is new: it gets its name when all is written.
    by_items : bool
        Whether axis 0 counts items, else flat rows.
    """

    def __init__(
        self, layout: Layout | None, target: StoredArray, *, made: bool, by_items: bool
    ) -> None:
        super().__init__(layout)
        self.target = target
        self.made = made
        self.by_items = by_items
        rows = target.shape[0] if layout is None else int(layout.counts.sum())
        self.rows_each = rows // target.shape[0] if target.shape[0] else 1

    def keep(self, items: NDArray[np.intp], values: NDArray[Any]) -> None:
        """Write flat rows of some items."""
        each = self.rows_each
        for start, stop, first in self.runs(items):
            rows = values[first : first + stop - start]
            shape = ((stop - start) // each, *self.target.shape[1:])
            self.target.write(start // each, np.ascontiguousarray(rows).reshape(shape))

    def compare(self, items: NDArray[np.intp], expected: int) -> None:
        """Refuse what lies on disk of some items if its crc32 is another.

        Raises
        ------
        ValueError
            Naming the array.
        """
        total = 0
        for start, stop, _ in self.runs(items):
            each = self.rows_each
            total = zlib.crc32(bytes_view(self.target.read(start // each, stop // each)), total)
        if total != expected:
            raise ValueError(
                f"items {items[0]} to {items[-1]} of {self.target.name} are not as they were "
                "written"
            )

    def whole(self) -> Any:
        """Give the array, or a Ragged of its rows."""
        if self.layout is None or self.by_items:
            return self.target
        return Ragged.from_layout(self.target, self.layout)

    def finish(self) -> None:
        """Bring everything to the disk; give a new array its name."""
        if self.made:
            new: NewArray = self.target  # type: ignore[assignment]  # `made` says so
            new.finish()

    def abandon(self, *, keep: bool) -> None:
        """Let go of a new array that is not finished; remove it unless it is to be kept."""
        if self.made:
            new: NewArray = self.target  # type: ignore[assignment]  # `made` says so
            if keep:
                new.close()
            else:
                new.discard()


def flat_values(output: Any) -> NDArray[Any]:
    """Give the flat rows of what a part gave, on the host."""
    values = output.compact().values if isinstance(output, Ragged) else output
    return np.asarray(to_host(values))


def checksum_of(values: NDArray[Any]) -> int:
    """Give the crc32 of flat rows, which is that of the same rows on disk."""
    return zlib.crc32(bytes_view(np.ascontiguousarray(values)))
