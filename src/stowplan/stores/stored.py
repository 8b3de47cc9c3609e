"""What every array outside of memory gives, and the checks that all of them share."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError

__all__ = [
    "Indexed",
    "NewArray",
    "StoredArray",
    "buffer_of_rows",
    "bytes_of",
    "check_dtype",
    "check_part",
    "check_rows",
    "checked_values",
    "reading_bytes",
]


@runtime_checkable
class StoredArray(Protocol):
    """An array outside of memory whose rows, along axis 0, are read and written in runs."""

    name: str  # for messages: the path, "path::dataset", "object of type X"
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Give rows [start, stop), in `into` if that is given: C-contiguous, of their shape."""

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Write whole rows from row `start` on."""

    def identity(self) -> tuple[Any, ...]:
        """Give what a fingerprint is made of: path, shape, dtype, size, time; never the data."""

    def close(self) -> None:
        """Let go of files."""


class NewArray(StoredArray, Protocol):
    """An array that is being written, under another name until it is finished."""

    resumed: bool  # whether it holds what a run that was cut off has written

    def finish(self) -> None:
        """Bring everything to the disk and give the array its name."""

    def discard(self) -> None:
        """Remove what was written; nothing if it is finished."""


class Indexed:
    """What lets an array outside of memory be looked at like one in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    if TYPE_CHECKING:

        def read(self, start: int, stop: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
            """See `StoredArray`."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read a row or a run of rows, and what is asked for of them.

        >>> from stowplan.stores.sliced import SlicedArray
        >>> stored = SlicedArray(np.arange(12.0).reshape(4, 3), "numbers")
        >>> stored[-1].tolist(), stored[1:3, 0].tolist()
        ([9.0, 10.0, 11.0], [3.0, 6.0])
        """
        first, *others = index if isinstance(index, tuple) else (index,)
        rest = (slice(None), *others)
        if first is Ellipsis:
            first, rest = slice(None), (Ellipsis, *others)
        if isinstance(first, slice):
            start, stop, step = first.indices(len(self))
            if step != 1:
                raise IndexError(f"{self.name}: steps are 1; read the rows, then take some.")
            rows: NDArray[Any] = self.read(start, max(stop, start))[rest]
            return rows
        row = operator.index(first)
        if not -len(self) <= row < len(self):
            raise IndexError(f"{self.name}: row {row} of {len(self)}.")
        row %= len(self)
        found: NDArray[Any] = self.read(row, row + 1)[(0, *others)]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read everything."""
        if copy is False:
            raise ValueError(f"{self.name} is on disk: it becomes an array by reading it.")
        found = self.read(0, len(self))
        return found if dtype is None else found.astype(dtype, copy=False)


def check_dtype(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """Give a dtype of numbers in the byte order of this machine.

    Raises
    ------
    DataError
        For objects, which only pickle reads, and what else holds no numbers.
    """
    if dtype.kind not in "biufc":
        why = " Objects are read by pickle, which runs code." if dtype.hasobject else ""
        raise DataError(f"{name}: dtype {dtype} holds no numbers.{why} Store numbers.")
    return dtype.newbyteorder("=")


def check_rows(array: StoredArray, start: int, stop: int) -> None:
    """Refuse rows that are not there."""
    if not 0 <= start <= stop <= array.shape[0]:
        raise DataError(f"{array.name}: rows {start} to {stop} of {array.shape[0]}.")


def buffer_of_rows(
    array: StoredArray, start: int, stop: int, into: NDArray[Any] | None
) -> NDArray[Any]:
    """Give where rows are read to: a new array, or the one that was passed, once it fits."""
    check_rows(array, start, stop)
    shape = (stop - start, *array.shape[1:])
    if into is None:
        return np.empty(shape, array.dtype)
    if into.shape != shape or into.dtype != array.dtype or not into.flags.c_contiguous:
        raise DataError(
            f"{array.name}: rows {start} to {stop} are {shape} {array.dtype}; they were to be "
            f"read into {into.shape} {into.dtype}"
            f"{'' if into.flags.c_contiguous else ', which is not C-contiguous'}."
        )
    return into


def checked_values(array: StoredArray, start: int, values: NDArray[Any]) -> NDArray[Any]:
    """Give values to write as an array, once they are whole rows of the array's dtype."""
    values = np.asarray(values)
    if values.ndim != len(array.shape) or values.shape[1:] != tuple(array.shape[1:]):
        raise DataError(
            f"{array.name}: values of shape {values.shape} are no whole rows of {array.shape}."
        )
    if values.dtype != array.dtype:
        raise DataError(
            f"{array.name}: values are {values.dtype}, the array is {array.dtype}. Convert them "
            "first, or create the array with their dtype."
        )
    check_rows(array, start, start + len(values))
    return values


def check_part(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], array: NDArray[Any]
) -> None:
    """Refuse an array in memory that is not of the form of a region."""
    if array.shape != shape or array.dtype != dtype:
        raise DataError(
            f"{name}: the region is {shape} {dtype}, the array in memory {array.shape} "
            f"{array.dtype}."
        )


def bytes_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of an array, in Python's integers."""
    return math.prod(map(int, shape)) * dtype.itemsize


def reading_bytes(array: StoredArray) -> int:
    """Bytes that a read holds beside the rows it gives: of a chunk or a row group, 0 for most."""
    found: int = getattr(array, "reading_bytes", 0)
    return found
