"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import os
import sys
import time
import weakref
from pathlib import Path

__all__ = ["Lock", "is_held"]

WAITS = (0.005, 0.02, 0.05, 0.0)
"""Seconds between tries."""

_held: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """The lock of a file or folder; `take` gives one, or None where another holds it.

    A process that is forked off does not hold it, so that workers left behind keep nothing alive.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        _held.add(self)

    @classmethod
    def take(cls, path: str | os.PathLike[str]) -> Lock | None:
        """Lock what is there until the lock is released or the process ends."""
        flags = os.O_RDONLY if Path(path).is_dir() or sys.platform != "win32" else os.O_RDWR
        descriptor = os.open(path, flags)
        for wait in WAITS:
            if _hold(descriptor):
                return cls(descriptor)
            time.sleep(wait)  # somebody may only look whether it is held
        os.close(descriptor)
        return None

    def is_of(self, path: str | os.PathLike[str]) -> bool:
        """Whether it is the lock of what has this name now."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._descriptor))  # noqa: PTH116
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_held(path: str | os.PathLike[str]) -> bool:
    """Whether a living process holds the lock of a file or folder; False if it is not there."""
    try:
        lock = Lock.take(path)
    except FileNotFoundError:
        return False
    except OSError:  # nobody can say: it is taken for alive
        return True
    if lock is None:
        return True
    lock.release()
    return False


def _hold(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # a byte that nothing is written to
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _forget_all() -> None:
    for lock in list(_held):
        lock.release()  # closes this process's copy alone: the parent keeps the lock


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
