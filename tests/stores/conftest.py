from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

import stowplan as sp
from stowplan.declaration import Kernel


@pytest.fixture
def field() -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.standard_normal((6, 5, 4, 3)) + 1j * rng.standard_normal((6, 5, 4, 3))


@pytest.fixture
def double() -> Kernel:
    """Rows of three numbers, twice."""
    return sp.kernel("(3)->(3)")(lambda row: 2 * row)


@pytest.fixture
def twice() -> Kernel:
    """The same with two outputs."""
    return sp.kernel("(3)->(3),(3)")(lambda row: (2 * row, 3 * row))


class PageCache:
    """What of files the system holds in memory."""

    def share(self, path: Path) -> float:
        """Give the share of pages that are in memory, without asking for them."""
        libc = ctypes.CDLL("libc.so.6", use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        size = path.stat().st_size
        with path.open("rb") as file:
            address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        flags = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        known = libc.mincore(
            ctypes.c_void_p(address), ctypes.c_size_t(size), flags.ctypes.data_as(ctypes.c_void_p)
        )
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
        assert known == 0
        return float((flags & 1).mean())

    def drop(self, path: Path) -> None:
        """Bring a file to the disk, and let the system forget it."""
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@pytest.fixture
def page_cache() -> PageCache:
    return PageCache()
