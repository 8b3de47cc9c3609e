""".npy files: read in place by their header, written whole under another name."""

from __future__ import annotations

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.stores.descriptors import read_into, reserve, sync_folder, write_from
from stowplan.stores.file_arrays import FileArray, written_meanwhile
from stowplan.stores.locks import Lock
from stowplan.stores.stored import Indexed, buffer_of_rows, bytes_of, check_dtype, checked_values
from stowplan.stores.unfinished import Locked, exists, lock_part, unfinished

__all__ = ["FortranArray", "NpyArray", "create_npy", "open_npy"]

FIRST_BYTES, MOST_BYTES = 1 << 12, 1 << 16
"""Read of a file that is opened, and the most that a header may have."""
PIECE_BYTES = 4 << 20
"""What of an array in Fortran order is turned at a time."""


Header = tuple[int, tuple[int, ...], bool, np.dtype[Any]]
"""Offset of the values, shape, whether in Fortran order, dtype."""


class NpyArray(Locked, FileArray):
    """A `.npy` file in C order.

    One that is read must not change meanwhile. The header of one that is written is read again
    after each change, so that another array of the same size is not taken for it.
    """

    def __init__(self, path: Path, header: Header, **more: Any) -> None:
        self._header = header
        self._target: Path | None = None
        self._seen = -1
        offset, shape, fortran, dtype = header
        shape = shape[::-1] if fortran else shape
        super().__init__(path, offset, shape, dtype, kind="npy", check=_same_header, **more)

    def finish(self) -> None:
        """Bring everything to the disk and give the file its name."""
        os.fsync(self._descriptor)
        if self._target is not None:
            self.path.replace(self._target)
            self.path, self._target = self._target, None
            sync_folder(self.path.parent)
        self._let_go()

    def close(self) -> None:
        """Close the file; what is not finished stays for another run to go on with."""
        super().close()
        self._let_go()

    def discard(self) -> None:
        """Remove what was written; nothing if it is finished."""
        if self._target is not None:
            self.path.unlink(missing_ok=True)  # before the lock goes: nobody else's is removed
            self._target = None
        self.close()


class FortranArray(Indexed):
    """A file in Fortran order: rows are strided regions, turned in pieces of some MiB."""

    def __init__(self, turned: FileArray) -> None:
        self.file = turned
        self.name = turned.name
        self.dtype = turned.dtype
        self.shape = turned.shape[::-1]
        slab = bytes_of(self.shape[:-1], self.dtype)  # of all rows
        self.reading_bytes = min(max(PIECE_BYTES, slab), bytes_of(self.shape, self.dtype))

    def read(self, start: int, stop: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Give rows [start, stop)."""
        into = buffer_of_rows(self, start, stop, into)
        rows = slice(start, stop)
        for piece in self._pieces(max(stop - start, 1)):
            lead: tuple[slice, ...] = (piece, *[slice(None)] * (len(self.shape) - 2), rows)
            into[..., piece] = self.file.read_region(lead).T
        return into

    def read_region(
        self, index: tuple[slice, ...], into: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Give a hyper-rectangle."""
        whole = (*index, *[slice(None)] * (len(self.shape) - len(index)))
        if into is not None:
            self.file.read_region(whole[::-1], into.T)
            return into
        return np.ascontiguousarray(self.file.read_region(whole[::-1]).T)

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Write whole rows."""
        values = checked_values(self, start, values)
        rows = slice(start, start + len(values))
        self.write_region((rows, *[slice(None)] * (len(self.shape) - 1)), values)

    def write_region(self, index: tuple[slice, ...], values: NDArray[Any]) -> None:
        """Write a hyper-rectangle."""
        whole = (*index, *[slice(None)] * (len(self.shape) - len(index)))
        self.file.write_region(whole[::-1], np.asarray(values).T)

    def identity(self) -> tuple[Any, ...]:
        """Give path, form, size and time of the last change."""
        return ("fortran", *self.file.identity())

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _pieces(self, rows: int) -> list[slice]:
        """Cut the last axis, the slowest one of the file."""
        last = self.shape[-1]
        each = bytes_of((rows, *self.shape[1:-1]), self.dtype)
        step = max(PIECE_BYTES // max(each, 1), 1)
        return [slice(first, min(first + step, last)) for first in range(0, last, step)]


def open_npy(path: str | os.PathLike[str], *, writable: bool = False) -> NpyArray | FortranArray:
    """Open a `.npy` file.

    Raises
    ------
    DataError
        For a file that cannot be opened, is none of NumPy's, holds objects or is too short.
    """
    path = Path(path)
    try:
        descriptor = os.open(
            path, (os.O_RDWR if writable else os.O_RDONLY) | getattr(os, "O_BINARY", 0)
        )
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise DataError(f"{path}: it cannot be opened: {error.strerror}.") from None
    try:
        array = NpyArray(path, _header(descriptor, str(path)), descriptor=descriptor)
        array.writable = writable
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, IsADirectoryError):
            raise DataError(f"{path} is a folder. Name a file, or all in it: *.npy.") from None
        raise
    return FortranArray(array) if array._header[2] and len(array.shape) > 1 else array


def create_npy(
    target: str | os.PathLike[str],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    overwrite: bool = False,
    resumable: bool = False,
    resume: bool = False,
) -> NpyArray:
    """Make a `.npy` file under another name, with all its space reserved, for `finish` to rename.

    Parameters
    ----------
    resume
        Go on with what a run that was cut off has left, or with the finished file, where shape and
        dtype are those asked for.

    Raises
    ------
    StoreError
        For a full disk, or where another process is writing the same file.
    """
    target = Path(target)
    dtype = check_dtype(dtype, str(target))
    part = unfinished(target, resumable=resumable or resume)
    if resume and target.is_file() and not part.is_file():
        array = open_npy(target, writable=True)
        if isinstance(array, NpyArray) and (array.shape, array.file_dtype) == (shape, dtype):
            array.resumed = True
            return array
        array.close()
    if target.exists() and not overwrite:
        raise exists(target)
    if target.is_dir():
        raise DataError(f"{target} is a folder, which no file replaces. Name another output.")
    descriptor, lock = _open_part(part)
    header = _written_header(shape, dtype)
    size = len(header) + bytes_of(shape, dtype)
    try:
        resumed = resume and _holds(descriptor, header, size)
        if not resumed:
            os.ftruncate(descriptor, 0)
            reserve(descriptor, size, str(target))
            write_from(descriptor, 0, [memoryview(header)], str(target))
        facts = (len(header), shape, False, dtype)
        array = NpyArray(part, facts, descriptor=descriptor, name=str(target))
    except BaseException:
        part.unlink(missing_ok=True)
        os.close(descriptor)
        lock.release()
        raise
    array.writable, array.resumed, array._target, array._lock = True, resumed, target, lock
    return array


def _open_part(part: Path) -> tuple[int, Lock]:
    """Open a file for writing and lock it, which no two processes do."""
    while True:
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except FileNotFoundError:
            raise DataError(f"{part.parent} is no folder. Make it first.") from None
        except PermissionError as error:
            raise DataError(f"{part.parent} cannot be written to: {error}.") from None
        lock = lock_part(part)
        if lock is not None:
            return descriptor, lock
        os.close(descriptor)  # it was finished or removed in between


def _header(descriptor: int, name: str) -> Header:
    """Read what a file says of itself."""
    try:
        header = _parsed(_header_bytes(descriptor))
    except ValueError as error:
        raise DataError(f"{name} is no .npy file of numbers: {error}.") from None
    check_dtype(header[3], name)
    if not header[1]:
        raise DataError(f"{name} holds a single number, which has no rows.")
    if min(header[1]) < 0:
        raise DataError(f"{name} is damaged: its header tells the shape {header[1]}.")
    return header


def _header_bytes(descriptor: int) -> bytes:
    """Read a file up to its values, in one call for all but the longest headers."""
    first = _first_bytes(descriptor, FIRST_BYTES)
    counted = 10 if first[6:7] == b"\1" else 12  # where the length of the rest has been told
    end = counted + int.from_bytes(first[8:counted], "little")
    return first[:end] if end <= FIRST_BYTES else _first_bytes(descriptor, min(end, MOST_BYTES))


def _first_bytes(descriptor: int, size: int) -> bytes:
    room = bytearray(size)
    return bytes(room[: read_into(descriptor, 0, [memoryview(room)])])


@lru_cache(maxsize=64)
def _parsed(header: bytes) -> Header:
    """Give what a header says: files of one shape have the same."""
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} is for tables with names")
    return file.tell(), shape, fortran, dtype


def _same_header(array: FileArray, facts: os.stat_result) -> None:
    """Refuse a file that was written to since it was opened, unless it was opened for that."""
    assert isinstance(array, NpyArray)
    if facts.st_mtime_ns == array._seen:
        return
    found = _header(array._descriptor, array.name)
    if found != array._header:
        raise DataError(
            f"{array.name}: it was {array._header[1]} {array._header[3]} when it was opened and is "
            f"{found[1]} {found[3]} now: it changed while it was read."
        )
    if array._seen >= 0 and not (array.writable or array.is_target):
        raise written_meanwhile(array.name)
    array._seen = facts.st_mtime_ns


def _written_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    facts = {"descr": descr, "fortran_order": False, "shape": tuple(map(int, shape))}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()


def _holds(descriptor: int, header: bytes, size: int) -> bool:
    if os.fstat(descriptor).st_size != size:
        return False
    found = bytearray(len(header))
    read_into(descriptor, 0, [memoryview(found)])
    return found == header
