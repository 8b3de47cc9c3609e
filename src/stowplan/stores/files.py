"""Several arrays outside of memory as one: an item each."""

from __future__ import annotations

import glob
import math
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.layout import Layout
from stowplan.ragged import Ragged
from stowplan.stores.file_arrays import file_behind, written_meanwhile
from stowplan.stores.memory_maps import looking_once
from stowplan.stores.stored import Indexed, StoredArray, buffer_of_rows, reading_bytes

__all__ = ["ManyArrays", "join_arrays", "matching_paths", "natural"]

OPEN_FILES = 32
"""Files that are open at a time; systems allow some hundreds."""


class ManyArrays(Indexed):
    """Arrays end to end along their first `depth` axes, or as items on a new axis 0 (depth 0).

    Parameters
    ----------
    sources
        What `opener` opens, one at a time, for as long as there are no more than 32.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        opener: Callable[[Any], StoredArray],
        facts: Sequence[StoredArray | _Facts],
        depth: int,
    ) -> None:
        self.sources = list(sources)
        self.facts = [_Facts.of(fact) for fact in facts]
        self.depth = depth
        self.name = f"{len(self.sources)} arrays ({self.facts[0].name}, ...)"
        self.dtype = self.facts[0].dtype
        rows = [math.prod(fact.shape[:depth]) for fact in self.facts]
        self.ends = np.cumsum(rows)
        self.shape = (int(self.ends[-1]), *self.facts[0].shape[depth:])
        self.reading_bytes = max(fact.reading_bytes for fact in self.facts)
        self._opener = opener
        self._open: dict[int, StoredArray] = {}
        self._lock = threading.Lock()

    def read(self, start: int, stop: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Give rows [start, stop)."""
        into = buffer_of_rows(self, start, stop, into)
        with self._lock:
            item = int(np.searchsorted(self.ends, start, side="right"))
            place = start
            while place < stop:
                end = min(stop, int(self.ends[item]))
                first = int(self.ends[item - 1]) if item else 0
                rows = into[place - start : end - start]
                if end > place:
                    self._read_item(item, place - first, end - first, rows)
                place, item = end, item + 1
        return into

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Refuse: outputs are one array."""
        raise DataError(f"{self.name} are read-only. Write to a new array: out='another.npy'.")

    def identity(self) -> tuple[Any, ...]:
        """Give those of all arrays; of files as they were opened."""
        return ("arrays", self.depth, *[fact.identity for fact in self.facts])

    def close(self) -> None:
        """Close all that are open."""
        with self._lock:
            for array in self._open.values():
                array.close()
            self._open.clear()

    def _read_item(self, item: int, start: int, stop: int, into: NDArray[Any]) -> None:
        """Read rows of one array, whose leading axes may count together."""
        array, shape = self._array(item), self.facts[item].shape
        if self.depth == 0:
            array.read(0, shape[0], into.reshape(shape))
            return
        width = math.prod(shape[1 : self.depth])
        whole, end = -(-start // width), stop // width  # leading rows that are wanted whole
        if whole <= end:
            middle = into[whole * width - start : end * width - start]
            array.read(whole, end, middle.reshape(end - whole, *shape[1:]))
            pieces = [(start, whole * width), (end * width, stop)]
        else:
            pieces = [(start, stop)]
        for first, last in pieces:
            if first < last:
                lead = first // width
                row = array.read(lead, lead + 1).reshape(width, *self.shape[1:])
                into[first - start : last - start] = row[first - lead * width : last - lead * width]

    def _array(self, item: int) -> StoredArray:
        array = self._open.pop(item, None)
        if array is None:
            array = self._opener(self.sources[item])
            fact = self.facts[item]
            if (tuple(array.shape), array.dtype) != (fact.shape, fact.dtype):
                raise DataError(
                    f"{fact.name}: it was {fact.shape} {fact.dtype} when it was opened and is "
                    f"{array.shape} {array.dtype} now: it changed while it was read."
                )
            file = file_behind(array)
            if file is not None and not file.writable and array.identity() != fact.identity:
                raise written_meanwhile(fact.name)
            while len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
        self._open[item] = array  # the one used last stands last
        return array


def join_arrays(
    sources: Sequence[Any], opener: Callable[[Any], StoredArray], where: str
) -> StoredArray | Ragged:
    """Join arrays, an item each: items on axis 0 where all have one shape, else a Ragged.

    A Ragged has as many ragged dims as lead up to the last axis that differs.

    Raises
    ------
    DataError
        For no arrays, and for dtypes or numbers of axes that differ, naming two.
    """
    if not len(sources):
        raise DataError(f"{where}: there are no arrays.")
    facts = []
    with looking_once():
        for source in sources:
            array = opener(source)
            facts.append(_Facts.of(array))
            mapped = isinstance(source, np.memmap) and file_behind(array) is not None
            if isinstance(source, str) or mapped:
                facts[-1].let_go()
                array.close()
    first = facts[0]
    for item, fact in enumerate(facts):
        if fact.dtype != first.dtype or len(fact.shape) != len(first.shape):
            raise DataError(
                f"{where}: item {item} ({fact.name}) is {fact.shape} {fact.dtype}, item 0 "
                f"({first.name}) is {first.shape} {first.dtype}. Give arrays of one dtype with as "
                "many axes."
            )
    shapes = np.array([fact.shape for fact in facts], np.int64)
    differing = np.flatnonzero((shapes != shapes[0]).any(axis=0))
    depth = int(differing[-1]) + 1 if len(differing) else 0
    values = ManyArrays(sources, opener, facts, depth)
    return Ragged.from_layout(values, Layout(shapes[:, :depth])) if depth else values


def matching_paths(pattern: str) -> list[str]:
    """Give what a pattern matches, with numbers in their natural order.

    Raises
    ------
    DataError
        Where nothing matches.
    """
    found = glob.glob(pattern)  # noqa: PTH207 - patterns may be absolute
    if not found:
        raise DataError(f"{pattern}: there is no such file.")
    return sorted(found, key=natural)


def natural(text: str) -> list[tuple[int, str]]:
    """Give what names are sorted by, so that numbers in them count as numbers."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


class _Facts:
    """What is kept of an array; its identity is asked for late, as some are read for it."""

    __slots__ = ("_array", "_identity", "dtype", "name", "reading_bytes", "shape")

    def __init__(self, array: StoredArray) -> None:
        self.name = array.name
        self.shape = tuple(map(int, array.shape))
        self.dtype = array.dtype
        self.reading_bytes = reading_bytes(array)
        self._array: StoredArray | None = array
        self._identity: tuple[Any, ...] = ()

    @classmethod
    def of(cls, array: StoredArray | _Facts) -> _Facts:
        return array if isinstance(array, _Facts) else cls(array)

    @property
    def identity(self) -> tuple[Any, ...]:
        """Of the array as it is, or was when it was closed."""
        return self._identity if self._array is None else self._array.identity()

    def let_go(self) -> None:
        """Keep what it is now, of an array that will be closed."""
        self._identity, self._array = self.identity, None
