"""Files that are brought into the page cache: whole, once, and without a trace left behind."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from stowplan.stores import read_ahead
from stowplan.stores.file_arrays import FileArray
from stowplan.stores.npy import open_npy

if not hasattr(os, "RWF_NOWAIT"):
    pytest.skip("only Linux says what is in its page cache", allow_module_level=True)


def cached_pages(path: Path) -> float:
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


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    path = tmp_path / "cold.npy"
    np.save(path, np.arange(6 * 2**17, dtype=float))  # 6 MiB
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    if cached_pages(path) > 0.1:
        pytest.skip("this file system keeps its files in memory")
    return path


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_cold_file_is_brought_into_memory_whole_and_once(cold):
    before = descriptors()
    array = open_npy(cold)
    readers = read_ahead.bring(array._descriptor, array.offset, array._end)
    assert len(readers) == read_ahead.THREADS
    for reader in readers:
        reader.join()
    assert cached_pages(cold) == 1.0
    assert not read_ahead.bring(array._descriptor, array.offset, array._end)
    array.close()
    assert descriptors() == before


def test_a_file_that_is_closed_or_cut_off_meanwhile_harms_nobody(cold):
    array = open_npy(cold)
    readers = read_ahead.bring(array._descriptor, array.offset, array._end)
    array.close()
    os.truncate(cold, 2**20)
    for reader in readers:
        reader.join()
    assert readers


@pytest.mark.parametrize("most", [2**20, 2**28])
def test_what_could_push_out_other_files_is_left_alone(cold, monkeypatch, most):
    monkeypatch.setattr(read_ahead, "MOST_BYTES", most)
    array = open_npy(cold)
    for reader in read_ahead.bring(array._descriptor, array.offset, array._end):
        reader.join()
    assert (cached_pages(cold) == 1.0) == (most == 2**28)
    assert bool(array.ahead_bytes) == (most == 2**28)


def test_a_small_file_takes_no_thread(tmp_path):
    np.save(tmp_path / "small.npy", np.arange(100.0))
    array = open_npy(tmp_path / "small.npy")
    assert isinstance(array, FileArray)
    assert not read_ahead.bring(array._descriptor, array.offset, array._end)
    assert array.ahead_bytes == 0
