"""Bytes at places of a file: read into several buffers, written from several, reserved ahead."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import StoreError
from stowplan.memory import show_bytes

__all__ = [
    "bytes_view",
    "disk_error",
    "fill_rows",
    "free_bytes",
    "read_into",
    "reserve",
    "sync_folder",
]
__all__ += ["write_from", "write_pieces"]

MOST_AT_ONCE = 1 << 30
"""Bytes of one call; systems refuse or cut what is longer than 2 GiB."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""A full disk, a full quota, and a limit on the size of files."""
UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}

_most_buffers = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16
_seek = threading.Lock()  # where a place is no part of a call


def bytes_view(array: NDArray[Any]) -> memoryview:
    """Give the bytes of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def read_into(descriptor: int, position: int, buffers: Sequence[memoryview]) -> int:
    """Fill buffers, one after another, with what lies end to end in a file.

    Returns
    -------
    int
        Bytes read: fewer than asked where the file ends.
    """
    total = 0
    waiting = _Queue(buffers)
    while waiting:
        found = _preadv(descriptor, waiting.first(), position + total)
        if found == 0:
            break
        waiting.drop(found)
        total += found
    return total


def fill_rows(
    descriptor: int,
    position: int,
    step: int,
    size: int,
    rows: Sequence[Sequence[memoryview]],
    fill: Callable[[int, Sequence[memoryview]], None],
) -> None:
    """Fill rows of buffers, each with `size` bytes that lie end to end, every `step` bytes.

    Most rows take one call; what that leaves is left to `fill`.
    """
    read = getattr(os, "preadv", None)
    for views in rows:
        if read is None or len(views) > _most_buffers or read(descriptor, views, position) != size:
            fill(position, views)
        position += step


def write_from(descriptor: int, position: int, buffers: Sequence[memoryview], name: str) -> None:
    """Write buffers end to end into a file.

    Raises
    ------
    StoreError
        For a full disk, naming the file, what was to be written and what is free.
    """
    needed = sum(buffer.nbytes for buffer in buffers)
    total = 0
    waiting = _Queue(buffers)
    try:
        while waiting:
            written = _pwritev(descriptor, waiting.first(), position + total)
            waiting.drop(written)
            total += written
    except OSError as error:
        raise disk_error(error, name, needed - total) from error


def write_pieces(descriptor: int, positions: Sequence[int], buffer: memoryview, name: str) -> None:
    """Write equal pieces of a buffer, each to its own position of a file.

    Raises
    ------
    StoreError
        For a full disk, naming the file, what was to be written and what is free.
    """
    size = buffer.nbytes // max(len(positions), 1)
    for number, position in enumerate(positions):
        piece = buffer[number * size : (number + 1) * size]
        try:
            done = _pwritev(descriptor, [piece], position) == size
        except OSError:
            done = False  # the other call says what is wrong
        if not done:
            write_from(descriptor, position, [piece], name)


def reserve(descriptor: int, size: int, name: str) -> None:
    """Take the disk space of a whole file before its first byte is written.

    Raises
    ------
    StoreError
        Where the disk, a quota or a limit on the size of files has not as much.
    """
    try:
        if size and sys.platform != "win32" and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
        os.ftruncate(descriptor, size)
    except OSError as error:
        raise disk_error(error, name, size) from error


def disk_error(error: OSError, name: str, needed: int) -> OSError:
    """Give what to raise for an error of a write: one that names bytes where the disk is full."""
    if error.errno not in FULL:
        return error
    folder = Path(name.partition("::")[0]).absolute().parent
    if error.errno == errno.EFBIG:
        why = "is larger than a file may be here (ulimit -f)"
        cure = "Raise the limit (ulimit -f unlimited)"
    else:
        why = f"finds the {'quota' if error.errno == errno.EDQUOT else 'disk'} full"
        cure = "Free some space, or name another folder"
    return StoreError(
        f"{name} {why}: {needed} bytes ({show_bytes(needed)}) are to be written, "
        f"{free_bytes(folder)} are free in {folder}. {cure}; what is finished is kept."
    )


def free_bytes(folder: str | os.PathLike[str]) -> int:
    """Bytes that this user can still write on the disk of a folder, or of the next above it.

    >>> free_bytes(".") > 0
    True
    """
    folder = Path(folder).absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if sys.platform == "win32":
        import shutil

        return shutil.disk_usage(folder).free
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Bring the names in a folder to the disk, so that a rename outlives a crash."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


class _Queue:
    """Buffers that are still to be moved."""

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._buffers = [buffer for buffer in buffers if buffer.nbytes]
        self._next = 0

    def __bool__(self) -> bool:
        return self._next < len(self._buffers)

    def first(self) -> list[memoryview]:
        """Give as many as one call takes."""
        chosen, room = [], MOST_AT_ONCE
        for buffer in self._buffers[self._next : self._next + _most_buffers]:
            chosen.append(buffer[:room])
            room -= chosen[-1].nbytes
            if not room:
                break
        return chosen

    def drop(self, count: int) -> None:
        """Take bytes off the front."""
        while count:
            buffer = self._buffers[self._next]
            if count < buffer.nbytes:
                self._buffers[self._next] = buffer[count:]
                return
            count -= buffer.nbytes
            self._next += 1


if hasattr(os, "preadv"):

    def _preadv(descriptor: int, buffers: list[memoryview], position: int) -> int:
        return os.preadv(descriptor, buffers, position)

    def _pwritev(descriptor: int, buffers: list[memoryview], position: int) -> int:
        return os.pwritev(descriptor, buffers, position)

else:  # Windows: a file has one place, which threads take turns at

    def _preadv(descriptor: int, buffers: list[memoryview], position: int) -> int:
        with _seek:
            os.lseek(descriptor, position, os.SEEK_SET)
            found = os.read(descriptor, buffers[0].nbytes)
        buffers[0][: len(found)] = found
        return len(found)

    def _pwritev(descriptor: int, buffers: list[memoryview], position: int) -> int:
        with _seek:
            os.lseek(descriptor, position, os.SEEK_SET)
            return os.write(descriptor, buffers[0])
