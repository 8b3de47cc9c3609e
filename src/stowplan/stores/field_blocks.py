"""Fields cut into blocks: all of the axes that are transformed, some of the others."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.layout import Layout
from stowplan.stores.file_arrays import FileArray

__all__ = ["Block", "FieldBlocks", "count_blocks", "cut_fields"]


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a field: whole along some axes, one index or a range along the others.

    Attributes
    ----------
    field : int
    index : tuple of slice
        One for each axis of the field.
    """

    field: int
    index: tuple[slice, ...]


class FieldBlocks:
    """Blocks of fields as flat rows of one stored array, each in the order (x, y, z, lines).

    Parameters
    ----------
    fields : sequence of StoredArray
        With `read_region` and, to be written, `write_region`; all of one dtype.
    blocks : sequence of Block
    axes
        Axes that lead in a block; the others are its lines.
    check : callable, optional
        Called with each block that was read: its field, the block, and the values, with the axes
        of the field.

    Attributes
    ----------
    layout : Layout
        Shapes (blocks, 4) and first rows.
    """

    def __init__(
        self,
        fields: Sequence[Any],
        blocks: Sequence[Block],
        axes: Sequence[int],
        check: Callable[[Any, Block, NDArray[Any]], None] | None = None,
    ) -> None:
        self.check = check
        self.fields = fields
        self.blocks = blocks
        self.axes = tuple(axes)
        shapes = [_block_shape(block, fields[block.field].shape, self.axes) for block in blocks]
        self.layout = Layout(np.array(shapes, np.int64).reshape(len(blocks), 4))
        counts = self.layout.counts
        self._stops = np.cumsum(counts)
        self.shape = (int(counts.sum()),)
        self.dtype = fields[0].dtype
        names = [fields[0].name, *([f"and {len(fields) - 1} more"] if len(fields) > 1 else [])]
        self.name = " ".join(names)
        self._announced: set[int] = set()
        self.reading_bytes = max(
            (field.ahead_bytes for field in fields if isinstance(field, FileArray)), default=0
        )
        self._leading = self.axes == tuple(range(len(self.axes)))

    def read(self, start: int, stop: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Give the flat rows of whole blocks."""
        into = np.empty(stop - start, self.dtype) if into is None else into
        for group in self._groups(start, stop):
            places = [into[first - start : last - start] for _, first, last in group]
            self._read_group([block for block, _, _ in group], places)
            if self.check is not None:
                for (block, _, _), flat in zip(group, places, strict=True):
                    self.check(self.fields[block.field], block, self._as_in_field(block, flat))
        return into

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Write the flat rows of whole blocks."""
        for group in self._groups(start, start + len(values)):
            field = self.fields[group[0][0].field]
            blocks = [block for block, _, _ in group]
            places = [values[first - start : last - start] for _, first, last in group]
            if self._leading and hasattr(field, "write_columns"):
                for first, tables in self._neighbours(field, blocks, places):
                    field.write_columns(first, tables)
                continue
            for block, flat in zip(blocks, places, strict=True):
                field.write_region(block.index, self._as_in_field(block, flat))

    def read_ahead(self) -> None:
        """Have the first two fields read into the system's page cache, while others plan."""
        if self.blocks:
            self._announce(self.blocks[0].field)

    def identity(self) -> tuple[Any, ...]:
        """Give what the fields give, and how they are cut."""
        cuts = [(b.field, *((part.start, part.stop) for part in b.index)) for b in self.blocks]
        return ("blocks", self.axes, cuts, *(field.identity() for field in self.fields))

    def close(self) -> None:
        """Close all fields."""
        for field in self.fields:
            field.close()

    def _groups(self, start: int, stop: int) -> Iterator[list[tuple[Block, int, int]]]:
        """Give the blocks between two rows, those of one field together."""
        item = int(np.searchsorted(self._stops, start, side="right"))
        group: list[tuple[Block, int, int]] = []
        while start < stop:
            block, last = self.blocks[item], int(self._stops[item])
            if self.layout.starts[item] != start or last > stop:
                raise DataError(f"{self.name}: rows {start} to {stop} are no whole blocks.")
            if group and group[-1][0].field != block.field:
                yield group
                group = []
            group.append((block, start, last))
            start, item = last, item + 1
        if group:
            yield group

    def _read_group(self, blocks: Sequence[Block], places: Sequence[NDArray[Any]]) -> None:
        field = self.fields[blocks[0].field]
        if not self._is_direct(field, places):
            self._announce(blocks[0].field)
        if self._leading and isinstance(field, FileArray):
            self._scatter(field, blocks, places)
            return
        for block, flat in zip(blocks, places, strict=True):
            into = self._as_in_field(block, flat)
            if into.flags.c_contiguous or isinstance(field, FileArray):
                field.read_region(block.index, into)
            else:
                into[...] = field.read_region(block.index, None)

    def place_of(self, row: int) -> int:
        """Byte of its file where the field of a row begins, which is read whole or in pieces."""
        field = self.fields[self.blocks[int(np.searchsorted(self._stops, row, side="right"))].field]
        return field.offset if isinstance(field, FileArray) else 0

    def _is_direct(self, field: Any, places: Sequence[NDArray[Any]]) -> bool:
        """Whether a field is read as a whole, past the page cache."""
        return len(places) == 1 and isinstance(field, FileArray) and field.is_direct(places[0])

    def _announce(self, number: int) -> None:
        """Have a field that is begun read from end to end, and the next one meanwhile."""
        for ahead in (number, number + 1):
            if ahead < len(self.fields) and ahead not in self._announced:
                self._announced.add(ahead)
                if isinstance(self.fields[ahead], FileArray):
                    self.fields[ahead].read_ahead()

    def _scatter(
        self, field: FileArray, blocks: Sequence[Block], places: Sequence[NDArray[Any]]
    ) -> None:
        """Read, point by point, what lies end to end in the file into several blocks."""
        for first, tables in self._neighbours(field, blocks, places):
            field.read_columns(first, tables)

    def _neighbours(
        self, field: Any, blocks: Sequence[Block], places: Sequence[NDArray[Any]]
    ) -> Iterator[tuple[int, list[NDArray[Any]]]]:
        """Give runs of blocks whose lines follow each other: first line and (points, lines)."""
        points = math.prod(field.shape[: len(self.axes)])
        firsts = [self._first_line(block, field.shape) for block in blocks]
        tables = [flat.reshape(points, -1) for flat in places]
        begin = 0
        for end in range(1, len(blocks) + 1):
            if end < len(blocks) and firsts[end] == firsts[end - 1] + tables[end - 1].shape[1]:
                continue
            yield firsts[begin], tables[begin:end]
            begin = end

    def _first_line(self, block: Block, shape: Sequence[int]) -> int:
        first = 0
        for part, length in zip(
            block.index[len(self.axes) :], shape[len(self.axes) :], strict=True
        ):
            first = first * length + (part.start or 0)
        return first

    def _as_in_field(self, block: Block, flat: NDArray[Any]) -> NDArray[Any]:
        """Give flat rows of a block as a view with the axes of its field."""
        shape = [part.stop - part.start for part in block.index]
        others = [axis for axis in range(len(shape)) if axis not in self.axes]
        order = [*self.axes, *others]
        return flat.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def cut_fields(
    shapes: Sequence[Sequence[int]], axes: Sequence[int], itemsize: int, most_bytes: int
) -> list[Block]:
    """Cut fields into blocks of at most so many bytes, or of one line.

    A line is one place along all axes that are not transformed. Blocks are runs of lines: one
    index along the first of these axes, a range along one, the whole of the others.

    >>> [block.index for block in cut_fields([(8, 4, 6)], (0,), 8, 8 * 8 * 12)]
    [(slice(0, 8, None), slice(0, 2, None), slice(0, 6, None)), (slice(0, 8, None), slice(2, 4, None), slice(0, 6, None))]
    """  # noqa: E501  the result is shown as it is printed
    blocks = []
    for number, shape in enumerate(shapes):
        others = [axis for axis in range(len(shape)) if axis not in axes]
        points = math.prod(shape[axis] for axis in axes)
        lines = max(most_bytes // max(points * itemsize, 1), 1)
        whole = [slice(0, length) for length in shape]
        for parts in _line_ranges([shape[axis] for axis in others], lines):
            index = list(whole)
            for axis, part in zip(others, parts, strict=True):
                index[axis] = part
            blocks.append(Block(number, tuple(index)))
    return blocks


def _line_ranges(lengths: Sequence[int], most: int) -> Iterator[tuple[slice, ...]]:
    """Cut a box into runs of at most so many places, or of one, each itself a box."""
    if not lengths or math.prod(lengths) <= most:
        yield tuple(slice(0, length) for length in lengths)
        return
    inner = math.prod(lengths[1:])
    if inner > most:
        for first in range(lengths[0]):
            for rest in _line_ranges(lengths[1:], most):
                yield (slice(first, first + 1), *rest)
        return
    step = _step(lengths[0], inner, most)
    for first in range(0, lengths[0], step):
        last = min(first + step, lengths[0])
        yield (slice(first, last), *(slice(0, length) for length in lengths[1:]))


def count_blocks(lengths: Sequence[int], lines: int) -> tuple[int, int]:
    """Count the blocks that axes of lines are cut into, and the lines of the largest.

    >>> count_blocks((4, 6), 12), count_blocks((16, 16, 16, 100), 10**4)
    ((2, 12), (64, 6400))
    """
    if not lengths or math.prod(lengths) <= lines:
        return 1, math.prod(lengths)
    inner = math.prod(lengths[1:])
    if inner > lines:
        blocks, largest = count_blocks(lengths[1:], lines)
        return lengths[0] * blocks, largest
    step = _step(lengths[0], inner, lines)
    return -(-lengths[0] // step), step * inner


@functools.lru_cache(maxsize=256)
def _step(length: int, inner: int, lines: int) -> int:
    """Places along an axis that a block takes: as many in all blocks, or fewer in the last.

    Blocks that are equal are computed where they were read, others are padded copies.
    """
    most = max(lines // max(inner, 1), 1)
    for step in range(min(most, length), most // 2, -1):
        if length % step == 0:
            return step
    return -(-length // -(-length // most))


def _block_shape(block: Block, shape: Sequence[int], axes: Sequence[int]) -> list[int]:
    lengths = [part.stop - part.start for part in block.index]
    leading = [lengths[axis] for axis in axes]
    lines = math.prod(length for axis, length in enumerate(lengths) if axis not in axes)
    return [*leading, *[1] * (3 - len(leading)), lines]
