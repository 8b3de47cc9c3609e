"""Whole files brought into the system's page cache in order, for who reads them in pieces.

A disk gives a third of each row of a file at half its speed, whichever hint the system gets. Two
threads that read the file from end to end, each a half of it, have it all there at the speed of the
disk, or above that of one reader, while the pieces are copied from memory.
"""

from __future__ import annotations

import os
import threading
from itertools import pairwise

__all__ = ["bring", "bytes_held", "is_cached"]

THREADS = 2
"""Readers of a file: one alone leaves the disk idle between two calls."""
BLOCK_BYTES = 1 << 18
"""What a reader asks for at a time; it is thrown away, so that a cache should hold it. After each
call it waits for its turn in the interpreter, which half of this makes a fifth slower."""
LEAST_BYTES = 1 << 22
"""Files below this are read by the system in one go."""
MOST_BYTES = 1 << 28
"""Files above this could push out of memory what is wanted first."""
PLACES = 16
"""Where a file is looked at to see whether it is in memory."""


def bytes_held(size: int) -> int:
    """Bytes that the readers of two files of this size hold."""
    return 2 * THREADS * BLOCK_BYTES if LEAST_BYTES <= size <= MOST_BYTES else 0


def bring(descriptor: int, begin: int, end: int) -> list[threading.Thread]:
    """Begin to read a part of a file into the page cache, unless it is there or too large.

    Returns
    -------
    list of Thread
        The readers that were started, which end by themselves.
    """
    size = end - begin
    if size > MOST_BYTES or not hasattr(os, "posix_fadvise"):
        return []
    if size < LEAST_BYTES or not hasattr(os, "RWF_NOWAIT"):
        os.posix_fadvise(descriptor, begin, size, os.POSIX_FADV_WILLNEED)
        return []
    if is_cached(descriptor, begin, end):
        return []
    bounds = [begin + size * part // THREADS for part in range(THREADS + 1)]
    readers = [
        threading.Thread(
            target=_read_through, args=(os.dup(descriptor), *part), name="stowplan-ahead",
            daemon=True,
        )
        for part in pairwise(bounds)
    ]  # fmt: skip
    for reader in readers:
        reader.start()
    return readers


def is_cached(descriptor: int, begin: int, end: int) -> bool:
    """Whether a few places of a file are in memory; where the system does not say, they are."""
    one = bytearray(1)
    for place in range(begin, end, -(-(end - begin) // PLACES)):
        try:
            os.preadv(descriptor, [one], place, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:  # a file system that does not know the flag
            return True
    return True


def _read_through(descriptor: int, place: int, end: int) -> None:
    """Read and throw away; what fails is said by who reads for itself."""
    room = memoryview(bytearray(BLOCK_BYTES))
    try:
        while place < end:
            found = os.preadv(descriptor, [room[: min(BLOCK_BYTES, end - place)]], place)
            if not found:
                return
            place += found
    except OSError:
        return
    finally:
        os.close(descriptor)
