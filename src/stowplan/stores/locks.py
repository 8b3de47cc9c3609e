"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["hold", "is_held"]


def hold(descriptor: int) -> bool:
    """Lock an open file or folder for as long as it is open; False where another holds it."""
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


def is_held(path: str | os.PathLike[str]) -> bool:
    """Whether a living process holds the lock of a file or folder; False if it is not there."""
    flags = os.O_RDONLY if Path(path).is_dir() or sys.platform != "win32" else os.O_RDWR
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return False
    except OSError:  # nobody can say: it is taken for alive
        return True
    try:
        return not hold(descriptor)
    finally:
        os.close(descriptor)
