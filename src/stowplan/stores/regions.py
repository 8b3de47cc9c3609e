"""Where the parts of a hyper-rectangle lie in a C-ordered array on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError

__all__ = ["Region", "contiguous_from"]


@dataclass(frozen=True, slots=True)
class Region:
    """One slice of step 1 of each axis of an array.

    Examples
    --------
    >>> region = Region.of((slice(1, 3), slice(None), slice(0, 2)), (4, 5, 6), "array")
    >>> region.shape, region.run_axis, list(region.runs(region.run_axis))[:2]
    ((2, 5, 2), 2, [(30, (0, 0)), (36, (0, 1))])
    """

    starts: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # of the array, in elements
    run_axis: int  # from here on, the axes of the region lie end to end

    @classmethod
    def of(cls, index: tuple[slice, ...], shape: tuple[int, ...], name: str) -> Region:
        """Resolve slices.

        Raises
        ------
        DataError
            For what is no slice, has a step, or more slices than axes.
        """
        if len(index) > len(shape) or not all(isinstance(part, slice) for part in index):
            raise DataError(f"{name}: {index} is no slice for each axis of {shape}.")
        parts = (*index, *[slice(None)] * (len(shape) - len(index)))
        bounds = [part.indices(length) for part, length in zip(parts, shape, strict=True)]
        if any(step != 1 for _, _, step in bounds):
            raise DataError(f"{name}: {index} has a step; read it whole and take every nth.")
        starts = tuple(start for start, _, _ in bounds)
        counts = tuple(max(stop - start, 0) for start, stop, _ in bounds)
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        run_axis = len(shape)
        while run_axis and counts[run_axis:] == tuple(shape[run_axis:]):
            run_axis -= 1  # all behind it are whole: this axis may be cut
        return cls(starts, counts, strides, run_axis)

    def runs(self, axis: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Give the first element and the leading index of each block of the axes from one on."""
        first = sum(s * stride for s, stride in zip(self.starts, self.strides, strict=True))
        for index in np.ndindex(*self.shape[:axis]):
            yield first + sum(i * s for i, s in zip(index, self.strides, strict=False)), index

    def places(self, axis: int) -> Iterator[NDArray[np.int64]]:
        """Give the first elements of these blocks alone, for one index of the first axis each time.

        >>> region = Region.of((slice(1, 3), slice(None), slice(0, 2)), (4, 5, 6), "array")
        >>> [places.tolist() for places in region.places(2)]
        [[30, 36, 42, 48, 54], [60, 66, 72, 78, 84]]
        """
        first = sum(s * stride for s, stride in zip(self.starts, self.strides, strict=True))
        rest = np.zeros(1, np.int64)
        for count, stride in zip(self.shape[1:axis], self.strides[1:axis], strict=True):
            rest = (rest[:, None] + np.arange(count) * stride).reshape(-1)
        for number in range(self.shape[0] if axis else 1):
            yield first + number * (self.strides[0] if axis else 0) + rest

    def useful(self, axis: int) -> int:
        """Elements of the region in a block of the axes from one on."""
        return math.prod(self.shape[axis:])

    def span(self, axis: int) -> int:
        """Elements of the array from the first to the last of such a block."""
        pairs = zip(self.shape[axis:], self.strides[axis:], strict=True)
        return 1 + sum((count - 1) * stride for count, stride in pairs)


def contiguous_from(array: NDArray[Any]) -> int:
    """Give the first axis from which on an array in memory is contiguous."""
    expected = array.itemsize
    for axis in reversed(range(array.ndim)):
        if array.shape[axis] > 1 and array.strides[axis] != expected:
            return axis + 1
        expected *= array.shape[axis]
    return 0
