"""Where the items of a ragged column lie in its flat values."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stowplan.errors import DataError

__all__ = ["Layout"]


class Layout:
    """Shapes and first rows of the items of a ragged column; hashable, so that it can key caches.

    Attributes
    ----------
    shapes : (items, d) int64
        Lengths of the d ragged leading dims of every item.
    starts : (items,) int64
        First row of every item in the flat values.
    contiguous : bool
        Whether the items lie end to end, in order.
    """

    __slots__ = ("_key", "contiguous", "shapes", "starts")

    def __init__(self, shapes: ArrayLike, starts: ArrayLike | None = None) -> None:
        table = _integers(shapes, "shapes")
        if table.ndim == 1:
            table = table[:, None]
        if table.ndim != 2 or table.shape[1] == 0:
            raise DataError(f"Ragged: shapes must be (items, d) with d >= 1, got {table.shape}.")
        if table.size and table.min() < 0:
            item = int(np.argmax((table < 0).any(axis=1)))
            raise DataError(f"Ragged: item {item} has a negative size: {table[item].tolist()}.")
        if table.astype(np.float64).prod(axis=1).sum() >= 2.0**62:
            raise DataError("Ragged: the shapes add up to more rows than a 64-bit integer counts.")
        counts = table.prod(axis=1)
        packed = np.cumsum(counts) - counts
        self.shapes: NDArray[np.int64] = table
        self.starts: NDArray[np.int64] = packed if starts is None else _integers(starts, "starts")
        if self.starts.shape != packed.shape:
            raise DataError(
                f"Ragged: {len(packed)} shapes, but starts of shape {self.starts.shape}."
            )
        self.shapes.flags.writeable = self.starts.flags.writeable = False  # keys of caches
        self.contiguous = starts is None or np.array_equal(self.starts, packed)
        self._key: tuple[int, bytes, bytes] | None = None

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of the flat values that each item takes, (items,)."""
        counts: NDArray[np.int64] = self.shapes.prod(axis=1)
        return counts

    @property
    def key(self) -> tuple[int, bytes, bytes]:
        """What makes two layouts equal."""
        if self._key is None:
            starts = b"" if self.contiguous else self.starts.tobytes()
            self._key = (self.shapes.shape[1], self.shapes.tobytes(), starts)
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _integers(values: ArrayLike, name: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise DataError(f"Ragged: {name} must be integers, got dtype {array.dtype}.")
    return array.astype(np.int64)
