"""Memory maps of NumPy, read by the descriptor of the file behind them where they show it whole."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from stowplan.stores.file_arrays import BOUNCE_BYTES, FileArray, written_meanwhile
from stowplan.stores.npy import FortranArray
from stowplan.stores.regions import Region
from stowplan.stores.sliced import SlicedArray
from stowplan.stores.stored import bytes_of, check_dtype, check_part

__all__ = ["MappedArray", "looking_once", "open_memmap"]

DIGEST_BYTES = 4 << 20
"""Taken at a time of a map that is known by its values."""

_inodes: WeakKeyDictionary[mmap.mmap, int | None] = WeakKeyDictionary()


class _Look(threading.local):
    once = False
    table: list[tuple[int, int]] | None = None


_look = _Look()


class MappedArray(SlicedArray):
    """A map that is no plain view of its file: strided, with private changes, or of a file gone.

    A strided view is read from the file, some MiB at a time with what lies between its numbers,
    since a file that is cut off ends a process that reads it through a map. The others are read
    through the map, which shows the values that its owner sees.
    """

    def __init__(self, source: np.memmap[Any, Any]) -> None:
        super().__init__(source, f"memory map of {source.filename}")
        facts = None if source.mode == "c" else _facts_behind(source)
        self.file = None if facts is None else _file_of(source, facts, 0, _bytes_of(facts))
        self.reading_bytes = 0 if facts is None else min(BOUNCE_BYTES, facts.st_size)

    def read_region(
        self, index: tuple[slice, ...], into: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Give a hyper-rectangle."""
        if self.file is None:
            return super().read_region(index, into)
        region = Region.of(index, self.shape, self.name)
        into = np.empty(region.shape, self.dtype) if into is None else into
        check_part(self.name, region.shape, self.dtype, into)
        if into.size:
            steps = zip(region.starts, self.source.strides, strict=True)
            self._take(_offset(self.source) + sum(start * step for start, step in steps), into)
        return into

    def write_region(self, index: tuple[slice, ...], values: Any) -> None:
        """Write a hyper-rectangle."""
        if self.file is not None:
            self.file.read(0, 1)  # tells whether the file was cut off
        super().write_region(index, values)

    def identity(self) -> tuple[Any, ...]:
        """Give the file, its size and time of the last change, and the view; else the values."""
        if self.file is None:
            return ("memory map", self.shape, self.dtype.str, _digest(self.source))
        view = (_offset(self.source), self.source.strides, self.shape, self.dtype.str)
        return ("memory map", *self.file.identity(), *view)

    def close(self) -> None:
        """Close the file; the map is the caller's."""
        if self.file is not None:
            self.file.close()

    def _take(self, place: int, into: NDArray[Any]) -> None:
        """Read a part whose first number begins at a byte of the file."""
        assert self.file is not None
        strides, kind = self.source.strides, self.source.dtype
        reach = [(n - 1) * step for n, step in zip(into.shape, strides, strict=True)]
        axis = int(np.argmax(np.abs(reach)))
        size = sum(map(abs, reach)) + kind.itemsize
        if size > BOUNCE_BYTES and into.shape[axis] > 1:
            half, lead = into.shape[axis] // 2, (slice(None),) * axis
            self._take(place, into[(*lead, slice(half))])
            self._take(place + half * strides[axis], into[(*lead, slice(half, None))])
            return
        low = place + sum(min(one, 0) for one in reach)
        room = self.file.read(low, low + size)
        into[...] = np.ndarray(into.shape, kind, room.data, place - low, strides)


def open_memmap(array: np.memmap[Any, Any]) -> FileArray | FortranArray | MappedArray:
    """Open a memory map: the file behind it, or else the map itself."""
    if array.ndim > 1 and array.flags.f_contiguous and not array.flags.c_contiguous:
        turned = open_memmap(array.T)
        return FortranArray(turned) if isinstance(turned, FileArray) else MappedArray(array)
    facts = _facts_behind(array)
    plain = array.flags.c_contiguous and array.ndim and array.mode in ("r", "r+", "w+")
    if facts is None or not plain:
        return MappedArray(array)
    check_dtype(array.dtype, str(array.filename))
    opened = _file_of(array, facts, _offset(array), (array.shape, array.dtype))
    return MappedArray(array) if opened is None else opened


def _file_of(
    array: np.memmap[Any, Any],
    facts: os.stat_result,
    offset: int,
    values: tuple[tuple[int, ...], np.dtype[Any]],
) -> FileArray | None:
    """Open the file behind a map; None where another one has just taken its name."""
    writable = array.mode != "r"

    def check(opened: FileArray, found: os.stat_result) -> None:
        if not (writable or opened.is_target) and found.st_mtime_ns != facts.st_mtime_ns:
            raise written_meanwhile(opened.name)

    name = str(array.filename)
    opened = FileArray(name, offset, *values, writable=writable, check=check)
    if os.fstat(opened._descriptor).st_ino == facts.st_ino:
        return opened
    opened.close()
    return None


def _bytes_of(facts: os.stat_result) -> tuple[tuple[int, ...], np.dtype[Any]]:
    return (facts.st_size,), np.dtype(np.uint8)


def _facts_behind(array: np.memmap[Any, Any]) -> os.stat_result | None:
    """Give what the system says of the file that a map shows; None where it is not there any more.

    Another file may have its name by now, or it is unknown.
    """
    base, name = array._mmap, array.filename  # type: ignore[attr-defined]  # documented by NumPy
    if base is None or name is None:
        return None
    try:
        facts = Path(name).stat()
    except OSError:
        return None
    return facts if _inode_of(base) in (facts.st_ino, None) else None


@contextmanager
def looking_once() -> Iterator[None]:
    """Ask the system but once what is mapped where, for maps that all are there already."""
    _look.once, _look.table = True, None
    try:
        yield
    finally:
        _look.once, _look.table = False, None


def _inode_of(base: mmap.mmap) -> int | None:
    """Give the inode of the file behind a mapping, which stays the same; None if it is unknown."""
    if base not in _inodes:
        table = _look.table or _mappings()
        _look.table = table if _look.once else None
        place = bisect_right(table, (_address(base), math.inf)) - 1
        _inodes[base] = table[place][1] if place >= 0 and table[place][1] else None
    return _inodes[base]


def _mappings() -> list[tuple[int, int]]:
    """Give where each mapping begins and its inode, rising; nothing where no system tells."""
    try:
        lines = Path("/proc/self/maps").read_bytes().splitlines()
    except OSError:
        return []
    parts = (line.split(maxsplit=5) for line in lines)
    return [(int(part[0].partition(b"-")[0], 16), int(part[4])) for part in parts]


def _offset(array: np.memmap[Any, Any]) -> int:
    """Give the byte of the file that the first value of a map is."""
    first: int = array.__array_interface__["data"][0]
    begin = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    return begin + first - _address(array._mmap)  # type: ignore[attr-defined]


def _address(base: mmap.mmap) -> int:
    address: int = np.frombuffer(base, np.uint8).__array_interface__["data"][0]
    return address


def _digest(array: np.memmap[Any, Any]) -> str:
    state = hashlib.blake2b(digest_size=10)
    rows = max(DIGEST_BYTES // max(bytes_of(array.shape[1:], array.dtype), 1), 1)
    for start in range(0, len(array), rows):
        part = np.ascontiguousarray(array[start : start + rows])
        state.update(part.reshape(-1).view(np.uint8).data)
    return state.hexdigest()
