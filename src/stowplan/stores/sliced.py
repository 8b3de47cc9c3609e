"""Any object that gives slices of itself as an array that is read by rows."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.stores.regions import Region
from stowplan.stores.stored import Indexed, buffer_of_rows, check_dtype, check_part, checked_values

__all__ = ["SlicedArray"]


class SlicedArray(Indexed):
    """Rows of an object with `shape` and `__getitem__`; its dtype, where it tells none, is row 0's.

    Examples
    --------
    >>> SlicedArray(np.arange(12.0).reshape(4, 3), "numbers").read(1, 3).tolist()
    [[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]
    """

    def __init__(self, source: Any, name: str | None = None) -> None:
        self.source = source
        self.name = f"object of type {type(source).__name__}" if name is None else name
        self.shape = self._shape()
        if not self.shape:
            raise DataError(f"{self.name} holds a single number, which has no rows.")
        dtype = getattr(source, "dtype", None)
        if dtype is None:
            dtype = np.asarray(source[0:1]).dtype
        self.dtype = check_dtype(np.dtype(dtype), self.name)

    def read(self, start: int, stop: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Give rows [start, stop)."""
        into = buffer_of_rows(self, start, stop, into)
        return self.read_region((slice(start, stop),), into)

    def read_region(
        self, index: tuple[slice, ...], into: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Give a hyper-rectangle."""
        self._refuse_changed()
        region = Region.of(index, self.shape, self.name)
        if into is None:
            into = np.empty(region.shape, self.dtype)
        check_part(self.name, region.shape, self.dtype, into)
        if into.size:
            found = self._get(index if len(index) > 1 else index[0])
            if found.shape != into.shape or found.dtype.newbyteorder("=") != self.dtype:
                raise DataError(
                    f"{self.name}: {index} gave {found.shape} {found.dtype}; expected "
                    f"{into.shape} {self.dtype}. It changed while it was read, or its slices are "
                    "not those of an array."
                )
            into[...] = found
        return into

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Write whole rows, where the object takes them."""
        values = checked_values(self, start, values)
        self.write_region((slice(start, start + len(values)),), values)

    def write_region(self, index: tuple[slice, ...], values: NDArray[Any]) -> None:
        """Write a hyper-rectangle, where the object takes it."""
        writable = getattr(getattr(self.source, "flags", None), "writeable", True)
        if not writable or not hasattr(self.source, "__setitem__"):
            raise DataError(f"{self.name} is read-only. Write to a new array: out='another.npy'.")
        if np.size(values):
            self.source[index if len(index) > 1 else index[0]] = values

    def identity(self) -> tuple[Any, ...]:
        """Give its type, shape and dtype, and three rows: of others it does not tell the values."""
        kind = type(self.source)
        name = f"{kind.__module__}.{kind.__qualname__}"
        return ("object", name, self.shape, self.dtype.str, self._sample())

    def _sample(self) -> str:
        """Give a digest of the first row, the middle one and the last."""
        state, rows = hashlib.blake2b(digest_size=10), self.shape[0]
        for row in sorted({0, rows // 2, rows - 1}) if rows else ():
            state.update(self.read(row, row + 1).reshape(-1).view(np.uint8).data)
        return state.hexdigest()

    def close(self) -> None:
        """Nothing: the object is the caller's."""

    def _get(self, index: Any) -> NDArray[Any]:
        return np.asarray(self.source[index])

    def _shape(self) -> tuple[int, ...]:
        return tuple(int(length) for length in self.source.shape)

    def _refuse_changed(self) -> None:
        found = self._shape()
        if found != self.shape:
            raise DataError(
                f"{self.name}: it was {self.shape} when it was opened and is {found} now: it "
                "changed while it was read."
            )
