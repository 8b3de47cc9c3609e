"""Laws of .npy files: every part of them is what NumPy would slice, and no change goes unseen."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import stowplan as sp
from stowplan.errors import StoreError
from stowplan.stores import descriptors, file_arrays, npy
from stowplan.stores.arrays import create_array, open_array
from stowplan.stores.file_arrays import FileArray
from stowplan.stores.npy import FortranArray, NpyArray

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
)


@st.composite
def arrays_and_regions(draw):
    values = draw(hnp.arrays(DTYPES, hnp.array_shapes(max_dims=4, max_side=5, min_side=0)))
    order = draw(st.sampled_from("CF"))
    index = []
    for length in values.shape:
        start = draw(st.integers(0, length))
        index.append(slice(start, draw(st.integers(start, length))))
    return np.asarray(values, order=order), tuple(index)


@pytest.fixture(params=["pieces", "together", "turns"])
def way(request, monkeypatch):
    """Read small regions piece by piece, with what is between them, and in few bytes at a time."""
    if request.param == "pieces":
        monkeypatch.setattr(file_arrays, "SMALL_BYTES", 1)
    elif request.param == "together":
        monkeypatch.setattr(file_arrays, "SMALL_BYTES", 1 << 30)
    else:
        preadv, pwritev = descriptors._preadv, descriptors._pwritev
        monkeypatch.setattr(file_arrays, "SMALL_BYTES", 1)
        monkeypatch.setattr(descriptors, "_most_buffers", 2)
        monkeypatch.setattr(descriptors, "MOST_AT_ONCE", 7)

        def short(call):  # systems may move fewer bytes than they are asked to
            return lambda d, buffers, place: call(d, [buffers[0][:3]], place)

        monkeypatch.setattr(descriptors, "_preadv", short(preadv))
        monkeypatch.setattr(descriptors, "_pwritev", short(pwritev))
    return request.param


@settings(max_examples=60)
@given(case=arrays_and_regions(), gaps=st.booleans())
def test_rows_and_regions_are_those_that_numpy_slices(tmp_path_factory, case, gaps):
    check_regions(tmp_path_factory.mktemp("npy"), *case, gaps=gaps)


def check_regions(folder, values, index, *, gaps):
    path = folder / "values.npy"
    np.save(path, values)
    stored = open_array(path, "test")
    assert stored.dtype == values.dtype.newbyteorder("=")
    assert stored.dtype.isnative
    rows = index[0]
    found = stored.read(rows.start, rows.stop)
    np.testing.assert_array_equal(found, values[rows])
    wanted = values[index]
    room = np.zeros([n + 2 * gaps for n in wanted.shape], stored.dtype)
    into = room[tuple(slice(gaps, n + gaps) for n in wanted.shape)]
    assert stored.read_region(index, into) is into
    np.testing.assert_array_equal(into, wanted)
    assert np.count_nonzero(room) == np.count_nonzero(wanted)  # nothing beside it
    np.testing.assert_array_equal(stored.read_region(index), wanted)
    stored.close()


@pytest.mark.parametrize("dtype", ["<c16", ">c16", "<i2"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("gaps", [False, True])
def test_regions_are_read_whichever_way_the_bytes_come(tmp_path, way, field, dtype, order, gaps):
    values = np.asarray(
        (100 * field if dtype[1] == "c" else 100 * field.real).astype(dtype), order=order
    )
    for index in (
        (slice(1, 5), slice(None), slice(None), slice(None)),
        (slice(0, 6), slice(2, 5), slice(1, 3), slice(0, 2)),
        (slice(2, 3), slice(0, 5), slice(0, 4), slice(1, 2)),
        (slice(3, 3), slice(0, 5), slice(0, 4), slice(1, 2)),
    ):
        check_regions(tmp_path, values, index, gaps=gaps)


@pytest.mark.parametrize("order", ["C", "F"])
def test_regions_are_written_whichever_way_the_bytes_go(tmp_path, way, field, order):
    path = tmp_path / "out.npy"
    out = create_array(path, field.shape, field.dtype, "test")
    halves = [slice(0, 2), slice(2, 5)]
    values = np.asarray(field, order=order)
    for half in halves:
        index = (slice(None), half, slice(0, 3))
        out.write_region(index, values[index])
        index = (slice(None), half, slice(3, 4))
        out.write_region(index, values[index])
    out.finish()
    np.testing.assert_array_equal(np.load(path), field)


def test_what_lies_end_to_end_goes_to_several_places_by_one_call(tmp_path, monkeypatch):
    values = np.arange(24.0).reshape(6, 4).astype(">f8")
    np.save(tmp_path / "values.npy", values)
    stored = open_array(tmp_path / "values.npy", "test")
    calls = []
    preadv = descriptors._preadv
    monkeypatch.setattr(descriptors, "_preadv", lambda *a: calls.append(a) or preadv(*a))
    first, second = np.zeros(3), np.zeros((2, 5))
    stored.read_scattered(4, [memoryview(first), memoryview(second[1])])
    assert len(calls) == 1
    np.testing.assert_array_equal(first, [4, 5, 6])
    np.testing.assert_array_equal(second, [[0] * 5, [7, 8, 9, 10, 11]])
    np.save(tmp_path / "complex.npy", values + 1j)  # whose views have no one-letter format
    waves = np.zeros(2, complex)
    open_array(tmp_path / "complex.npy", "test").read_scattered(9, [memoryview(waves)])
    np.testing.assert_array_equal(waves, [9 + 1j, 10 + 1j])
    with pytest.raises(sp.DataError, match="end beyond the 192 bytes"):
        stored.read_scattered(20, [memoryview(second[0])])


def test_a_region_with_gaps_in_memory_alone_is_read_by_one_call_a_run(tmp_path, monkeypatch):
    values = np.arange(4 * 8 * 2048.0).reshape(4, 8, 2048)
    np.save(tmp_path / "values.npy", values)
    stored = open_array(tmp_path / "values.npy", "test")
    calls = []
    preadv = descriptors._preadv
    monkeypatch.setattr(descriptors, "_preadv", lambda *a: calls.append(a) or preadv(*a))
    room = np.zeros((4, 10, 2048))
    stored.read_region((slice(None),), room[:, 1:9])
    assert len(calls) == 1  # the file has no gaps
    np.testing.assert_array_equal(room[:, 1:9], values)
    calls.clear()
    np.testing.assert_array_equal(stored.read_region((slice(None), slice(2, 6))), values[:, 2:6])
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("shape", "index", "calls"),
    [
        ((100, 200), (slice(None), slice(0, 1)), 100),  # 200 bytes for one, read together
        ((100, 10), (slice(None), slice(0, 1)), 1),  # 10 for one
        ((400, 1000), (slice(None), slice(0, 900)), 400),  # 3.2 MB together
    ],
)
def test_small_pieces_are_read_together_where_that_pays(tmp_path, monkeypatch, shape, index, calls):
    values = np.arange(float(np.prod(shape))).reshape(shape)
    np.save(tmp_path / "values.npy", values)
    stored = open_array(tmp_path / "values.npy", "test")
    seen = []
    preadv = descriptors._preadv
    monkeypatch.setattr(descriptors, "_preadv", lambda *a: seen.append(a) or preadv(*a))
    np.testing.assert_array_equal(stored.read_region(index), values[index])
    assert len(seen) == calls


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_memory_map_is_read_by_its_file_where_it_shows_the_file(tmp_path, field, mode):
    path = tmp_path / "values.npy"
    for order, plain, strided in (("C", FileArray, None), ("F", FortranArray, None)):
        np.save(path, np.asarray(field, order=order))
        mapped = np.load(path, mmap_mode=mode)
        stored = open_array(mapped, "test")
        assert isinstance(stored, plain) == (mode != "c"), strided
        np.testing.assert_array_equal(stored.read(1, 4), field[1:4])
    np.save(path, field)
    mapped = np.load(path, mmap_mode=mode)
    np.testing.assert_array_equal(open_array(mapped[2:5], "test").read(1, 3), field[3:5])
    stored = open_array(mapped[:, 1:3], "test")  # no rows of the file
    np.testing.assert_array_equal(stored.read(1, 3), field[1:3, 1:3])
    if mode != "r+":
        return
    stored = open_array(mapped, "test")
    stored.write(0, 2 * field[:2])
    np.testing.assert_array_equal(mapped[:2], 2 * field[:2])


def test_changes_of_a_private_map_are_seen(tmp_path):
    np.save(tmp_path / "values.npy", np.zeros(5))
    mapped = np.load(tmp_path / "values.npy", mmap_mode="c")
    mapped[2] = 7
    assert open_array(mapped, "test").read(0, 5)[2] == 7


def test_a_raw_memory_map_with_an_offset_is_read(tmp_path):
    values = np.arange(5000.0)
    (tmp_path / "raw").write_bytes(b"x" * 72 + values.tobytes())
    mapped = np.memmap(tmp_path / "raw", np.float64, "r", offset=72, shape=(1250, 4))
    stored = open_array(mapped[600:], "test")
    assert isinstance(stored, FileArray)
    np.testing.assert_array_equal(stored.read(3, 9), values.reshape(1250, 4)[603:609])


def test_a_file_that_shrinks_is_told_with_what_was_expected_and_found(tmp_path):
    path = tmp_path / "values.npy"
    np.save(path, np.zeros((10, 100)))
    stored = open_array(path, "test")
    os.truncate(path, 2000)
    for read in (lambda: stored.read(0, 1), lambda: stored.read_region((slice(0, 1),))):
        with pytest.raises(sp.DataError, match=r"values.npy .*at byte 8128, the file at byte 2000"):
            read()
    with pytest.raises(sp.DataError, match=r"at byte 8128, the file at byte 2000"):
        open_array(path, "test")


def test_a_file_that_shrinks_during_the_read_itself_is_told(tmp_path, monkeypatch):
    path = tmp_path / "values.npy"
    np.save(path, np.zeros((10, 100)))
    stored = open_array(path, "test")
    monkeypatch.setattr(descriptors, "_preadv", lambda *_: 0)
    with pytest.raises(sp.DataError, match="it changed while it was read"):
        stored.read(0, 10)


def test_a_folder_and_a_file_that_cannot_be_opened_are_told(tmp_path, monkeypatch):
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(sp.DataError, match=r"folder.npy is a folder. Name a file"):
        open_array(tmp_path / "folder.npy", "test")
    np.save(tmp_path / "x.npy", np.zeros(3))

    def refused(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(npy.os, "open", refused)  # root may open anything
        with pytest.raises(sp.DataError, match=r"x.npy: it cannot be opened: Permission denied"):
            open_array(tmp_path / "x.npy", "test")


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "o.npy").mkdir()
    with pytest.raises(sp.DataError, match=r"o.npy is a folder, which no file replaces"):
        create_array(tmp_path / "o.npy", (3,), np.float64, "test", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["o.npy"]


def test_a_header_with_a_negative_length_is_told(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((10, 2)))
    content = (tmp_path / "x.npy").read_bytes().replace(b"(10, 2)", b"(-9, 2)")
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(sp.DataError, match=r"x.npy is damaged: its header tells the shape \(-9, 2"):
        open_array(tmp_path / "x.npy", "test")


def test_a_file_that_is_written_to_while_it_is_read_is_told(tmp_path):
    """Its shape is the same, so that one part would be of before and another of now."""
    path = tmp_path / "values.npy"
    np.save(path, np.zeros((10, 100)))
    stored = open_array(path, "test")
    stored.read(0, 5)
    with path.open("r+b") as file:
        np.save(file, np.ones((10, 100)))
    with pytest.raises(sp.DataError, match=r"values.npy: it was written to after it was opened"):
        stored.read(5, 10)


def test_another_array_of_the_same_size_is_told(tmp_path):
    path = tmp_path / "values.npy"
    np.save(path, np.zeros((10, 100)))
    stored = open_array(path, "test")
    content = np.zeros((20, 50))
    with path.open("r+b") as file:  # the same file, as a new one has another descriptor
        np.save(file, content)
    with pytest.raises(sp.DataError, match=r"was \(10, 100\) .* is \(20, 50\) .*it changed"):
        stored.read(0, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "no .npy file"),
        (lambda path: path.write_bytes(b"PK\3\4" * 40), "no .npy file"),
        (lambda path: np.save(path, np.array([{}], object), allow_pickle=True), "pickle"),
        (lambda path: np.save(path, np.array(["a"])), "holds no numbers"),
        (lambda path: np.save(path, np.float64(3)), "single number"),
        (lambda _: None, "no such file"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(tmp_path, make, message):
    make(tmp_path / "values.npy")
    with pytest.raises(sp.DataError, match=f"test: .*values.npy.*{message}"):
        open_array(tmp_path / "values.npy", "test")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [118, 4080, 4084, 9000])
def test_headers_of_any_length_are_read(tmp_path, version, size):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (4, 3), }".ljust(size) + b"\n"
    length = len(header).to_bytes(2 * version, "little")
    values = np.arange(12.0)
    path = tmp_path / "values.npy"
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + header + values.tobytes())
    np.testing.assert_array_equal(np.load(path), values.reshape(4, 3))
    np.testing.assert_array_equal(open_array(path, "test").read(0, 4), values.reshape(4, 3))
    with path.open("r+b") as file:
        file.truncate(10 + size // 2)
    with pytest.raises(sp.DataError, match=r"no \.npy file"):
        open_array(path, "test")


def test_an_output_has_its_name_once_it_is_whole_and_leaves_nothing_else(tmp_path, field):
    path = tmp_path / "out.npy"
    out = create_array(path, field.shape, field.dtype, "test")
    assert isinstance(out, NpyArray)
    assert not path.exists()
    (part,) = tmp_path.iterdir()
    assert part.stat().st_blocks * 512 >= field.nbytes  # all of its space is taken
    with pytest.raises(StoreError, match="is being written by another process"):
        create_array(path, field.shape, field.dtype, "test")
    out.write(3, field[3:])
    out.write(0, field[:3])
    out.finish()
    out.close()
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(np.load(path), field)
    with pytest.raises(sp.DataError, match=r"out.npy exists.*overwrite=True"):
        create_array(path, field.shape, field.dtype, "test")
    again = create_array(path, (2,), "f4", "test", overwrite=True)
    np.testing.assert_array_equal(np.load(path), field)  # until the new one is whole
    again.discard()
    assert list(tmp_path.iterdir()) == [path]
    again = create_array(path, (2,), "f4", "test", overwrite=True)
    again.write(0, np.ones(2, "f4"))
    again.finish()
    np.testing.assert_array_equal(np.load(path), np.ones(2))


def test_an_output_of_a_run_that_was_cut_off_is_gone_on_with(tmp_path, field):
    path = tmp_path / "out.npy"
    first = create_array(path, field.shape, field.dtype, "test", resumable=True)
    assert not first.resumed
    first.write(0, field[:3])
    first.close()
    second = create_array(path, field.shape, field.dtype, "test", resume=True)
    assert second.resumed
    np.testing.assert_array_equal(second.read(0, 3), field[:3])
    second.write(3, field[3:])
    second.finish()
    second.close()
    third = create_array(path, field.shape, field.dtype, "test", resume=True)
    assert third.resumed
    np.testing.assert_array_equal(third.read(0, 6), field)
    third.close()
    with pytest.raises(sp.DataError, match="exists"):
        create_array(path, (2, 2), field.dtype, "test", resume=True)


@pytest.mark.parametrize(
    ("start", "values", "message"),
    [
        (4, np.zeros((3, 2)), "rows 4 to 7 of 6"),
        (0, np.zeros((3, 3)), "no whole rows"),
        (0, np.zeros((3, 2), "f4"), "values are float32, the array is float64"),
    ],
)
def test_what_does_not_fit_an_output_is_refused(tmp_path, start, values, message):
    out = create_array(tmp_path / "out.npy", (6, 2), "f8", "test")
    with pytest.raises(sp.DataError, match=message):
        out.write(start, values)
    out.discard()
    assert not list(tmp_path.iterdir())


def test_reading_does_not_write(tmp_path):
    np.save(tmp_path / "values.npy", np.zeros(4))
    with pytest.raises(sp.DataError, match="opened for reading"):
        open_array(tmp_path / "values.npy", "test").write(0, np.ones(2))


def test_outputs_nowhere_and_of_nothing_are_refused(tmp_path):
    with pytest.raises(sp.DataError, match=r"no is no folder"):
        create_array(tmp_path / "no" / "out.npy", (3,), "f8", "test")
    with pytest.raises(sp.DataError, match="no rows to write"):
        create_array(tmp_path / "out.npy", (), "f8", "test")
    with pytest.raises(sp.DataError, match="pickle"):
        create_array(tmp_path / "out.npy", (3,), object, "test")
    with pytest.raises(sp.DataError, match=r"test: out='.*out.txt' is no array that can be made"):
        create_array(tmp_path / "out.txt", (3,), "f8", "test")


LIMITED = """
import resource, sys
import numpy as np
from stowplan.stores.arrays import create_array
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    create_array(sys.argv[1], (9000,), "f8", "solve")
except OSError as error:
    print(type(error).__name__, error)
"""


def test_a_file_that_may_not_be_as_large_is_refused_before_its_first_byte(tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "out.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("StoreError ")
    assert "out.npy is larger than a file may be here" in done.stdout
    assert "72128 bytes" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<c16"])
@pytest.mark.parametrize("wide", [1, 3, 9, 700])
@pytest.mark.parametrize("cut", [(0, [1.0]), (0, [0.3, 0.7]), (1, [0.5]), (0, [0.5, 0.2])])
def test_columns_of_any_width_are_read_beside_each_other(tmp_path, dtype, wide, cut):
    rows = 300 if wide < 100 else 5
    flat = np.random.default_rng(0).normal(size=(rows, wide)).astype(dtype)
    np.save(tmp_path / "a.npy", flat)
    first, shares = cut
    first = min(first, wide - 1)
    widths = [max(int(share * (wide - first)), 1) for share in shares][: wide - first]
    stored = open_array(tmp_path / "a.npy", "test")
    tables = [np.empty((rows, width), stored.dtype) for width in widths]
    stored.read_columns(first, tables)
    for table, width in zip(tables, widths, strict=True):
        np.testing.assert_array_equal(table, flat[:, first : first + width])
        first += width


@pytest.mark.parametrize(
    "index",
    [
        np.s_[:, :, 1:3], np.s_[1:4, 2:5, :2], np.s_[2:3, :, 0:1], np.s_[:, 1:2, 1:], np.s_[1:, :],
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["f4", "c16"])
def test_small_runs_are_written_where_they_belong(tmp_path, index, dtype):
    rng = np.random.default_rng(0)
    wanted = np.zeros((5, 7, 4), dtype)
    out = create_array(tmp_path / "a.npy", wanted.shape, wanted.dtype, "test")
    out.write(0, wanted)
    wanted[index] = rng.normal(size=wanted[index].shape).astype(dtype)
    out.write_region(index, np.ascontiguousarray(wanted[index]))
    out.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), wanted)
