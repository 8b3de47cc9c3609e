"""Long reads past the page cache: the same bytes, none left in the cache, and a way back."""

from __future__ import annotations

import errno
import mmap
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan.errors import DataError
from stowplan.recipes import fields
from stowplan.stores import direct
from stowplan.stores.file_arrays import FileArray
from stowplan.stores.npy import open_npy

if not hasattr(os, "O_DIRECT") or not hasattr(os, "RWF_NOWAIT"):
    pytest.skip(
        "only Linux reads past its page cache, and says what is in it", allow_module_level=True
    )


@pytest.fixture(autouse=True)
def disks_are_unknown(monkeypatch):
    monkeypatch.setattr(direct, "_slow", {})
    monkeypatch.setattr(direct, "FAST", 0)


@pytest.fixture
def cold(page_cache, tmp_path: Path) -> Path:
    path = tmp_path / "cold.npy"
    np.save(path, np.random.default_rng(0).normal(size=(6, 2**17 + 1)))  # 6 MiB and 48 bytes
    page_cache.drop(path)
    if page_cache.share(path) > 0.1:
        pytest.skip("this file system keeps its files in memory")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no direct reads")
    finally:
        os.close(descriptor)
    return path


def room_for(array: FileArray, first: int, last: int, *, off: int = 0) -> np.ndarray:
    """Give where rows can be read directly; `off` bytes beside such a place."""
    size = (last - first) * array.shape[1] * 8
    memory = np.empty(size + direct.BLOCK_BYTES + off, np.uint8)
    begin = direct.lead(memory.ctypes.data, array.place_of(first)) + off
    memory[:begin], memory[begin + size :] = 170, 170
    return memory[begin : begin + size].view(float).reshape(last - first, array.shape[1])


@given(st.integers(0, 2**48), st.integers(0, 2**48))
def test_a_lead_makes_an_address_lie_in_a_block_as_its_place_in_the_file(address, position):
    found = direct.lead(address, position)
    assert 0 <= found < direct.BLOCK_BYTES
    assert (address + found - position) % direct.BLOCK_BYTES == 0


@pytest.mark.parametrize(("first", "last"), [(0, 6), (1, 6), (1, 5)])
def test_a_long_read_of_a_cold_file_leaves_the_page_cache_alone(page_cache, cold, first, last):
    wanted = np.random.default_rng(0).normal(size=(6, 2**17 + 1))[first:last]
    array = open_npy(cold)
    into = room_for(array, first, last)
    array.read(first, last, into)
    assert np.array_equal(into, wanted)
    assert page_cache.share(cold) < 0.2  # two ends, and what the system reads ahead of these
    whole = into.base
    begin = into.ctypes.data - whole.ctypes.data
    assert (whole[:begin] == 170).all()
    assert (whole[begin + into.nbytes :] == 170).all()


@pytest.mark.parametrize("why", ["lies elsewhere", "short", "in memory", "brought", "not ours"])
def test_other_reads_go_through_the_page_cache(page_cache, cold, monkeypatch, why):
    wanted = np.load(cold)
    page_cache.drop(cold)
    array = open_npy(cold)
    monkeypatch.setattr(direct, "read_direct", lambda *_: pytest.fail("read directly"))
    into = room_for(array, 0, 6, off=64 * (why == "lies elsewhere"))
    if why == "short":
        monkeypatch.setattr(direct, "LEAST_BYTES", 2**23)
    if why == "in memory":
        cold.read_bytes()
    if why == "brought":
        array.read_ahead()
    if why == "not ours":
        memory = np.frombuffer(mmap.mmap(-1, into.nbytes + direct.BLOCK_BYTES), np.uint8)
        begin = direct.lead(memory.ctypes.data, array.offset)
        into = memory[begin : begin + into.nbytes].view(float).reshape(into.shape)
    array.read(0, 6, into)
    assert np.array_equal(into, wanted)


def test_a_file_system_without_direct_reads_is_asked_once(page_cache, cold, monkeypatch):
    wanted = np.load(cold)
    page_cache.drop(cold)
    array = open_npy(cold)
    into = room_for(array, 0, 6)
    own, asked = os.open, []

    def refusing(path, flags, *rest, **others):
        if flags & os.O_DIRECT:
            asked.append(path)
            raise OSError(errno.EINVAL, "no direct reads here")
        return own(path, flags, *rest, **others)

    monkeypatch.setattr(os, "open", refusing)
    for _ in range(2):
        array.read(0, 6, into)
        assert np.array_equal(into, wanted)
        into[...] = 0
        page_cache.drop(cold)
    assert len(asked) == 1


def test_what_a_direct_read_does_not_find_is_said_by_an_error(cold):
    array = open_npy(cold)
    into = room_for(array, 0, 6)
    os.truncate(cold, 5 * 2**20)
    assert direct.read_direct(
        array._descriptor, array.offset, into.reshape(-1).view(np.uint8).data
    ) == (0, 0)
    with pytest.raises(DataError, match=re.escape(str(cold))):
        array.read(0, 6, into)


def test_a_disk_that_is_slow_several_times_in_a_row_is_left_to_the_page_cache(cold, monkeypatch):
    array = open_npy(cold)
    into = room_for(array, 0, 6)
    view = into.reshape(-1).view(np.uint8).data

    def read(rate: float) -> None:
        monkeypatch.setattr(direct, "FAST", rate)
        assert direct.read_direct(array._descriptor, array.offset, view)[1]

    for rate in [np.inf] * (direct.PATIENCE - 1) + [0] + [np.inf] * (direct.PATIENCE - 1):
        read(rate)
        assert array.is_direct(into)
    read(np.inf)
    assert not array.is_direct(into)


def flags_of(array: np.ndarray) -> set[str]:
    """Give what the system says of the mapping that holds the middle of an array."""
    address = array.ctypes.data + array.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds:
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError("no mapping")


def test_pages_that_a_disk_writes_into_are_not_shared_with_processes_forked_meanwhile(
    cold, monkeypatch
):
    array = open_npy(cold)
    into = room_for(array, 0, 6)
    seen = []
    own = direct._read

    def read(*arguments):
        seen.append("dc" in flags_of(into))  # "do not copy on fork"
        return own(*arguments)

    monkeypatch.setattr(direct, "_read", read)
    array.read(0, 6, into)
    assert seen == [True]
    assert "dc" not in flags_of(into)


@pytest.mark.parametrize("budget", ["64 MB", "24 MB"])
def test_whole_fields_are_read_past_the_page_cache_and_pieces_through_it(
    page_cache, tmp_path, monkeypatch, budget
):
    rng = np.random.default_rng(1)
    held = rng.normal(size=(6, 8, 8, 8, 2048))  # 8 MiB each
    paths = [tmp_path / f"{number}.npy" for number in range(len(held))]
    for path, field in zip(paths, held, strict=True):
        np.save(path, field)
        page_cache.drop(path)
    if page_cache.share(paths[0]) > 0.1:
        pytest.skip("this file system keeps its files in memory")
    calls = []
    own = direct.read_direct

    def counted(*arguments):
        calls.append(arguments)
        return own(*arguments)

    monkeypatch.setattr(direct, "read_direct", counted)
    found = fields.spectrum(
        [str(path) for path in paths], spacing=0.5, axes=(0, 1, 2), budget=budget
    )
    power = np.abs(np.fft.fftn(held, axes=(1, 2, 3), norm="ortho")) ** 2
    for each, mine in zip(found.each, power, strict=True):
        assert float(each.sums.sum()) == pytest.approx(float(mine.sum()), rel=1e-12)
    whole = len(found.plan.batches) == len(held)
    assert len(calls) == (len(held) - 2 if whole else 0)  # two are brought while it is planned
    assert [page_cache.share(path) > 0.9 for path in paths] == [True, True, *[not whole] * 4]
