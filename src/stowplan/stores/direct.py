"""Long reads of cold files past the system's page cache, straight to where they are wanted.

A copy in the page cache costs the system more time than a fast disk takes to deliver the bytes. A
direct read has none, but asks for places in the file and in memory that lie alike in a block of the
disk: `lead` says where values begin in a buffer for that. What a slower disk holds is left to the
page cache, where the next run finds it.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np

from stowplan.host_memory import not_inherited

__all__ = ["BLOCK_BYTES", "LEAST_BYTES", "lead", "possible", "read_direct"]

BLOCK_BYTES = 4096
"""A multiple of the blocks of disks, and of what they ask of memory."""
LEAST_BYTES = 1 << 22
"""Reads below this take turns with threads for longer than they gain."""
THREADS = 4
"""Calls in flight, which keep a disk at work between two of them."""
CALL_BYTES = 1 << 20
"""Of one call: larger ones leave the disk idle at the end of a file."""
FAST = 1e9
"""Bytes a second: what systems manage through the page cache is 0.9 to 1.6 of it."""
PATIENCE = 3
"""Reads in a row that a disk may be slower, before it is left to the page cache."""

_slow: dict[int, int] = {}  # of each disk by its number, slow reads in a row


def lead(address: int, position: int) -> int:
    """Bytes to leave before an address, so that it lies in a block as a place in a file does.

    >>> lead(0, 128), lead(4096 + 256, 8192 + 128)
    (128, 3968)
    """
    return (position - address) % BLOCK_BYTES


def possible(descriptor: int, position: int, view: memoryview) -> bool:
    """Whether a part of a file can be read directly to a place, and the disk is worth it.

    The place is memory of NumPy's own: a device or another process may know of any other.
    """
    if view.nbytes < LEAST_BYTES or not hasattr(os, "O_DIRECT"):
        return False
    array = np.frombuffer(view, np.uint8)
    return (
        not lead(array.ctypes.data, position)
        and _is_numpy_own(view)
        and _slow.get(os.fstat(descriptor).st_dev, 0) < PATIENCE
    )


def read_direct(descriptor: int, position: int, view: memoryview) -> tuple[int, int]:
    """Read the whole blocks of a part of a file; say which bytes of the view were read.

    None are where the file system does not know direct reads, or one of them fails: who reads them
    otherwise says why. The disk is timed, and left to the page cache if it is slow or fails.
    """
    disk = os.fstat(descriptor).st_dev
    first = -position % BLOCK_BYTES
    last = (position + view.nbytes) // BLOCK_BYTES * BLOCK_BYTES - position
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT)
    except OSError:
        _slow[disk] = PATIENCE
        return 0, 0
    begin = time.perf_counter()
    try:
        with not_inherited(np.frombuffer(view, np.uint8)) as safe:
            read = safe and _read(own, position + first, view[first:last])
    finally:
        os.close(own)
    if not read:
        _slow[disk] = PATIENCE
        return 0, 0
    fast = last - first >= FAST * (time.perf_counter() - begin)
    _slow[disk] = 0 if fast else _slow.get(disk, 0) + 1
    return first, last


def _read(descriptor: int, position: int, view: memoryview) -> bool:
    """Fill a view by several threads, this one among them; say whether all was there."""
    places = range(0, view.nbytes, CALL_BYTES)
    whole = [False] * THREADS

    def fill(number: int) -> None:
        try:
            for place in places[number::THREADS]:
                piece = view[place : place + CALL_BYTES]
                if os.preadv(descriptor, [piece], position + place) != piece.nbytes:
                    return
        except OSError:
            return
        whole[number] = True

    others = [
        threading.Thread(target=fill, args=(number,), name="stowplan-direct", daemon=True)
        for number in range(1, THREADS)
    ]
    for thread in others:
        thread.start()
    fill(0)
    for thread in others:
        thread.join()
    return all(whole)


def _is_numpy_own(view: memoryview) -> bool:
    owner: Any = view.obj
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return isinstance(owner, np.ndarray)
