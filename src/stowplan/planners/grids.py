"""Index plans of one grid: padded, unpadded or cropped, whatever axes trail it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError
from stowplan.planners.sizes import natural, refuse_overflow

if TYPE_CHECKING:
    from stowplan.planners.batches import Plan

__all__ = ["GridIndex", "crop", "item_grids", "pad", "unpad"]

Lengths = Sequence[int]


@dataclass(frozen=True, slots=True, eq=False)
class GridIndex:
    """Which place of a grid each place of another one reads; `take_grid` carries it out.

    Attributes
    ----------
    source : tuple of int
        Shape of the grid that is read.
    index : int64 array, of the new grid
        Flat place that is read, 0 where none is.
    inside : bool array likewise, optional
        Whether one is; None where all are.
    """

    source: tuple[int, ...]
    index: NDArray[np.int64]
    inside: NDArray[np.bool_] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the grid that is made."""
        return self.index.shape

    def then(self, other: GridIndex) -> GridIndex:
        """Do this and then the other, in one step.

        >>> pad((2,), (4,), (1,)).then(crop((4,), [(0, 2)])).index.tolist()
        [0, 0]
        """
        if other.source != self.shape:
            raise PlanError(
                f"GridIndex.then: the first makes a grid of {self.shape}, the second reads one of "
                f"{other.source}. Make the second for {self.shape}."
            )
        if not self.index.size:  # the second reads nothing either
            return _index(self.source, np.zeros_like(other.index), np.zeros(other.shape, bool))
        inside = np.ones(other.shape, bool) if other.inside is None else other.inside
        if self.inside is not None:
            inside = inside & self.inside.reshape(-1)[other.index]
        return _index(self.source, self.index.reshape(-1)[other.index], inside)

    def __repr__(self) -> str:
        return f"<GridIndex {self.source} -> {self.shape}>"


def pad(shape: Lengths, capacity: Lengths, offset: Lengths | None = None) -> GridIndex:
    """Put a grid of a shape into one of a capacity, beginning at an offset (its corner).

    Raises
    ------
    PlanError
        For numbers that are no lengths, and a grid that reaches beyond the capacity.

    >>> grid = pad((2,), (4,), (1,))
    >>> grid.index.tolist(), grid.inside.tolist()
    ([0, 0, 1, 0], [False, True, True, False])
    """
    shape, capacity, offset = _checked("pad", shape, capacity, offset)
    starts = [-first for first in offset]
    return _window(shape, starts, [n + first for n, first in zip(capacity, starts, strict=True)])


def unpad(capacity: Lengths, shape: Lengths, offset: Lengths | None = None) -> GridIndex:
    """Take a grid of a shape out of one of a capacity: the inverse of `pad`.

    Raises
    ------
    PlanError
        As `pad`.

    >>> unpad((4,), (2,), (1,)).index.tolist()
    [1, 2]
    """
    shape, capacity, offset = _checked("unpad", shape, capacity, offset)
    return _window(capacity, offset, [n + first for n, first in zip(shape, offset, strict=True)])


def crop(shape: Lengths, box: Sequence[tuple[int, int]]) -> GridIndex:
    """Take a box out of a grid: ``((y0, y1), (x0, x1))``, from each first to before each second.

    Raises
    ------
    PlanError
        For a box that is not inside the grid.

    >>> crop((3, 4), ((1, 2), (0, 3))).index.tolist()
    [[4, 5, 6]]
    """
    shape = _lengths("crop", "shape", shape, 0)
    pairs = [tuple(pair) if isinstance(pair, Sequence | np.ndarray) else () for pair in box]
    if len(pairs) != len(shape) or any(len(pair) != 2 for pair in pairs):
        raise PlanError(
            f"crop: box={box!r}; give (first, end) for each of the {len(shape)} axes of "
            f"shape={shape}, such as box={tuple((0, length) for length in shape)}."
        )
    starts = _lengths("crop", "first of box", [first for first, _ in pairs], 0)
    stops = _lengths("crop", "end of box", [end for _, end in pairs], 0)
    for axis, (first, end, length) in enumerate(zip(starts, stops, shape, strict=True)):
        if not first <= end <= length:
            raise PlanError(
                f"crop: box[{axis}]={(first, end)} is not within 0 to {length} of axis {axis} in "
                f"shape={shape}. Cut it to the grid, box[{axis}]="
                f"{(min(first, length), min(max(first, end), length))}, or pad the grid first."
            )
    return _window(shape, starts, stops)


def item_grids(plan: Plan, item: int) -> tuple[GridIndex, GridIndex]:
    """Give the way of one item of a plan into its padded batch, and the way out.

    Raises
    ------
    PlanError
        For an item that the plan does not have.

    >>> from stowplan.planners import fit_buckets
    >>> into, out = item_grids(fit_buckets([[2, 3], [4, 4]], buckets=[(4, 5)]), 0)
    >>> into, out
    (<GridIndex (2, 3) -> (4, 5)>, <GridIndex (4, 5) -> (2, 3)>)
    """
    item, count = natural(item, "item_grids: item", 0), len(plan.lengths)
    if item >= count:
        raise PlanError(f"item_grids: item {item} of {count}; items are numbered from 0.")
    shape, capacity = plan.lengths[item].tolist(), plan.capacities[item].tolist()
    offset = None if plan.offsets is None else plan.offsets[item].tolist()
    return pad(shape, capacity, offset), unpad(capacity, shape, offset)


def _window(source: Lengths, starts: Lengths, stops: Lengths) -> GridIndex:
    """Read a grid from `starts` to before `stops`; what lies outside of it is none of it."""
    index, inside = np.zeros((), np.int64), np.ones((), bool)
    for length, start, stop in zip(source, starts, stops, strict=True):
        place = np.arange(start, stop, dtype=np.int64)
        index = index[..., None] * length + place
        inside = inside[..., None] & (place >= 0) & (place < length)
    return _index(tuple(source), np.where(inside, index, 0), inside)


def _index(
    source: tuple[int, ...], index: NDArray[np.int64], inside: NDArray[np.bool_]
) -> GridIndex:
    index.flags.writeable = inside.flags.writeable = False
    return GridIndex(source, index, None if inside.all() else inside)


def _lengths(who: str, name: str, values: Lengths, least: int) -> tuple[int, ...]:
    given = np.asarray(values)
    if given.ndim != 1 or not len(given):
        raise PlanError(f"{who}: {name}={values!r}; give one integer for each axis, (64, 48).")
    found = [natural(value, f"{who}: {name}[{axis}]", least) for axis, value in enumerate(values)]
    refuse_overflow(who, 1, found, [f"axis {axis}" for axis in range(len(found))])
    return tuple(found)


def _checked(
    who: str, shape: Lengths, capacity: Lengths, offset: Lengths | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    shape = _lengths(who, "shape", shape, 0)
    capacity = _lengths(who, "capacity", capacity, 1)
    offset = (0,) * len(shape) if offset is None else _lengths(who, "offset", offset, 0)
    if not len(shape) == len(capacity) == len(offset):
        raise PlanError(
            f"{who}: shape={shape}, capacity={capacity} and offset={offset} differ in their "
            "number of axes; give one number for each axis."
        )
    for axis, (length, most, first) in enumerate(zip(shape, capacity, offset, strict=True)):
        if first + length > most:
            room = f"the most is {most - length}" if length <= most else "none fits"
            raise PlanError(
                f"{who}: along axis {axis} a length of {length} from offset {first} reaches beyond "
                f"the capacity {most}; of offsets {room}. Make capacity[{axis}] at least "
                f"{first + length}."
            )
    return shape, capacity, offset
