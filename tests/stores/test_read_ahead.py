"""Files that are brought into the page cache: whole, once, and without a trace left behind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from stowplan.stores import read_ahead
from stowplan.stores.file_arrays import FileArray
from stowplan.stores.npy import open_npy

if not hasattr(os, "RWF_NOWAIT"):
    pytest.skip("only Linux says what is in its page cache", allow_module_level=True)


@pytest.fixture
def cold(page_cache, tmp_path: Path) -> Path:
    path = tmp_path / "cold.npy"
    np.save(path, np.arange(6 * 2**17, dtype=float))  # 6 MiB
    page_cache.drop(path)
    if page_cache.share(path) > 0.1:
        pytest.skip("this file system keeps its files in memory")
    return path


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_cold_file_is_brought_into_memory_whole_and_once(page_cache, cold):
    before = descriptors()
    array = open_npy(cold)
    readers = read_ahead.bring(array._descriptor, array.offset, array._end)
    assert len(readers) == read_ahead.THREADS
    for reader in readers:
        reader.join()
    assert page_cache.share(cold) == 1.0
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
def test_what_could_push_out_other_files_is_left_alone(page_cache, cold, monkeypatch, most):
    monkeypatch.setattr(read_ahead, "MOST_BYTES", most)
    array = open_npy(cold)
    for reader in read_ahead.bring(array._descriptor, array.offset, array._end):
        reader.join()
    assert (page_cache.share(cold) == 1.0) == (most == 2**28)
    assert bool(array.ahead_bytes) == (most == 2**28)


def test_a_small_file_takes_no_thread(tmp_path):
    np.save(tmp_path / "small.npy", np.arange(100.0))
    array = open_npy(tmp_path / "small.npy")
    assert isinstance(array, FileArray)
    assert not read_ahead.bring(array._descriptor, array.offset, array._end)
    assert array.ahead_bytes == 0
