"""Laws of shared reads: every piece is done once, by whom it may, and no fault goes unseen."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import DataError
from stowplan.stores import file_arrays
from stowplan.stores.arrays import open_array
from stowplan.stores.helping import Helping, in_pieces

WAIT = 20  # seconds until a test that hangs fails


@settings(max_examples=100, deadline=None)
@given(count=st.integers(0, 200), least=st.integers(1, 50), helpers=st.integers(0, 2))
def test_every_place_is_done_once_however_many_help(count, least, helpers):
    helping, done = Helping(), []

    def read() -> None:
        with helping.offered():
            in_pieces(lambda begin, end: done.append((begin, end)), count, least=least)

    with ThreadPoolExecutor(1 + helpers) as pool:
        reading = pool.submit(read)
        for _ in range(helpers):
            pool.submit(helping.until, reading)
        reading.result(WAIT)
    done.sort()
    assert [place for piece in done for place in range(*piece)] == list(range(count))
    sizes = [end - begin for begin, end in done]
    assert all(size >= least for size in sizes[:-1])
    assert sizes == sorted(sizes, reverse=True)


def test_who_waits_takes_pieces_and_goes_when_the_read_is_done():
    helping = Helping()
    by: dict[str, int] = {}
    both = threading.Barrier(2, timeout=WAIT)

    def work(begin: int, end: int) -> None:
        name = threading.current_thread().name
        if name not in by:
            by[name] = 0
            both.wait()  # so that each thread has one
        by[name] += end - begin

    def read() -> None:
        with helping.offered():
            in_pieces(work, 100, least=10)

    with ThreadPoolExecutor(1, "reader") as reader:
        first = reader.submit(read)
        helping.until(first)
        assert first.done()
        helping.until(first)  # there is nothing left: it does not wait
    assert sum(by.values()) == 100
    assert len(by) == 2


def test_who_waits_for_what_is_done_takes_no_piece_of_the_next():
    helping, on = Helping(), threading.Event()
    by: set[str] = set()

    def work(begin: int, end: int) -> None:
        by.add(threading.current_thread().name)
        on.wait(WAIT)

    def read() -> None:
        with helping.offered():
            in_pieces(work, 64, least=4)

    with ThreadPoolExecutor(1, "reader") as reader:
        first = reader.submit(int)
        second = reader.submit(read)
        while not by:
            time.sleep(0.001)
        helping.until(first)
        assert not second.done()
        on.set()
    assert by == {"reader_0"}


def test_without_an_offer_it_is_one_piece():
    helping, done = Helping(), []
    in_pieces(lambda *piece: done.append(piece), 100, least=10)
    with helping.offered():
        in_pieces(lambda *piece: done.append(piece), 10, least=10)  # no smaller ones
    in_pieces(lambda *piece: done.append(piece), 50, least=10)
    assert done == [(0, 100), (0, 10), (0, 50)]


def test_a_piece_is_not_cut_again():
    done = []

    def within(begin: int, end: int) -> None:
        in_pieces(lambda *piece: done.append(piece), end - begin, least=1)

    with Helping().offered():
        in_pieces(within, 64, least=8)
        in_pieces(within, 8, least=4)
    assert done == [(0, 32), (0, 16), (0, 8), (0, 8), (0, 4), (0, 4)]


@pytest.mark.parametrize("of_helper", [False, True])
def test_what_fails_is_raised_by_who_offers_once_nothing_is_under_way(of_helper):
    helping = Helping()
    both = threading.Barrier(2, timeout=WAIT)
    taken: list[int] = []
    ended: list[int] = []
    main = threading.current_thread()

    def work(begin: int, end: int) -> None:
        taken.append(begin)
        both.wait()
        if (threading.current_thread() is main) == of_helper:
            raise OSError("of all disks")
        time.sleep(0.05)
        ended.append(begin)

    def read() -> None:
        with helping.offered():
            try:
                in_pieces(work, 64, least=1)
            finally:
                ended.append(-1)

    with ThreadPoolExecutor(1) as reader:
        reading: Future[None] = reader.submit(read)
        helping.until(reading)
        with pytest.raises(OSError, match="of all disks"):
            reading.result(WAIT)
    assert len(ended) == 2
    assert ended[-1] == -1  # after the slow one
    assert sorted(taken) == [0, 32]  # and none after the fault


def test_no_read_passes_for_whole_whatever_ends_a_piece():
    helping = Helping()
    both = threading.Barrier(2, timeout=WAIT)
    main = threading.current_thread()

    def work(begin: int, end: int) -> None:
        if end - begin >= 4:
            both.wait()
            if threading.current_thread() is main:
                raise SystemExit

    def read() -> None:
        with helping.offered():
            in_pieces(work, 16, least=4)

    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read)
        helping.until(reading)
        assert isinstance(reading.exception(WAIT), SystemExit)


def test_who_waits_for_the_last_piece_sleeps():
    helping = Helping()
    both = threading.Barrier(2, timeout=WAIT)
    main = threading.current_thread()

    def work(begin: int, end: int) -> None:
        both.wait()
        if threading.current_thread() is main:
            raise OSError("of all disks")
        time.sleep(0.5)

    def read() -> None:
        with helping.offered():
            in_pieces(work, 64, least=1)

    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read)
        before = time.thread_time()
        helping.until(reading)
        assert time.thread_time() - before < 0.2
        assert isinstance(reading.exception(WAIT), OSError)


@pytest.mark.parametrize("cut", [None, 7])
def test_files_are_read_in_pieces_whole_or_by_columns(tmp_path, monkeypatch, cut):
    monkeypatch.setattr(file_arrays, "PIECE_BYTES", 1 << 10)
    values = np.random.default_rng(0).normal(size=(96, 9, 100))
    np.save(tmp_path / "x.npy", values)
    array = open_array(tmp_path / "x.npy", "test")
    helping = Helping()

    def read() -> list[np.ndarray]:
        with helping.offered():
            if cut is None:
                return [array.read(0, 96)]
            tables = [np.empty((96, width)) for width in (cut, 893)]
            array.read_columns(0, tables)
            return tables

    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read)
        helping.until(reading)
    found = np.concatenate([part.reshape(96, -1) for part in reading.result()], axis=1)
    np.testing.assert_array_equal(found, values.reshape(96, -1))


def test_a_file_that_shrinks_while_it_is_read_in_pieces_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(file_arrays, "PIECE_BYTES", 1 << 10)
    np.save(tmp_path / "x.npy", np.zeros((96, 900)))
    array = open_array(tmp_path / "x.npy", "test")
    own = file_arrays.read_into

    def shrinks(*given):
        with (tmp_path / "x.npy").open("r+b") as file:
            file.truncate(5000)
        return own(*given)

    monkeypatch.setattr(file_arrays, "read_into", shrinks)
    with Helping().offered(), pytest.raises(DataError, match="is too short"):
        array.read(0, 96)
