"""Laws of all formats: what was written is read, rows and regions, and what is wrong is named."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.errors import StoreError
from stowplan.stores import descriptors
from stowplan.stores.arrays import (
    NewArray,
    StoredArray,
    create_array,
    is_stored,
    open_array,
    open_column,
)
from stowplan.stores.stored import reading_bytes

TARGETS = ["a.npy", "a.zarr", "group.zarr::deep/er", "a.h5", "file.h5::one", "file.h5::deep/er"]


def need(target: str) -> None:
    packages = {"zarr": "zarr", "h5": "h5py", "parquet": "pyarrow"}
    for package in [package for part, package in packages.items() if part in target]:
        pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 3)),
    dtype=st.sampled_from(["f8", "f4", "c16", "c8", "i2", "u1", "?"]),
    together=st.integers(1, 4),
    data=st.data(),
)
def test_what_is_written_by_rows_is_read(tmp_path_factory, target, shape, dtype, together, data):
    need(target)
    rng = np.random.default_rng(3)
    values = rng.integers(0, 100, shape).astype(dtype)
    path = str(tmp_path_factory.mktemp("out") / target)
    cut = data.draw(st.integers(0, shape[0]))
    out = create_array(path, shape, dtype, "test", rows_together=together)
    out.write(cut, values[cut:])
    out.write(0, values[:cut])
    np.testing.assert_array_equal(out.read(0, shape[0]), values)
    out.finish()
    out.close()
    stored = open_array(path, "test")
    assert isinstance(stored, StoredArray)
    assert (stored.shape, stored.dtype) == (shape, np.dtype(dtype))
    start = data.draw(st.integers(0, shape[0]))
    stop = data.draw(st.integers(start, shape[0]))
    into = np.empty((stop - start, *shape[1:]), dtype)
    assert stored.read(start, stop, into) is into
    np.testing.assert_array_equal(into, values[start:stop])
    index = (slice(start, stop), slice(1, shape[1]), slice(0, 1))
    np.testing.assert_array_equal(stored.read_region(index), values[index])
    room = np.zeros((stop - start, *shape[1:]), dtype)[:, 1:, :1]
    stored.read_region(index, room)
    np.testing.assert_array_equal(room, values[index])
    stored.close()


@pytest.mark.parametrize("target", TARGETS)
def test_an_output_appears_when_it_is_finished_and_leaves_nothing_when_it_is_not(
    tmp_path, target, field
):
    need(target)
    path = str(tmp_path / target)
    out = create_array(path, field.shape, field.dtype, "test")
    assert isinstance(out, NewArray)
    with pytest.raises(sp.DataError):
        open_array(path, "test")
    with pytest.raises(StoreError, match="another process"):
        create_array(path, field.shape, field.dtype, "test")
    out.write(0, field)
    out.discard()
    left = [found for found in tmp_path.rglob("*") if "zarr.json" not in found.name]
    assert [found.name for found in left if "stowplan" in found.name] == []
    out = create_array(path, field.shape, field.dtype, "test")
    out.write(0, field)
    out.finish()
    out.close()
    with pytest.raises(sp.DataError, match=r"exists.*overwrite=True"):
        create_array(path, field.shape, field.dtype, "test")
    out = create_array(path, (3, 2), "f8", "test", overwrite=True)
    out.write(0, np.ones((3, 2)))
    out.finish()
    out.close()
    np.testing.assert_array_equal(open_array(path, "test").read(0, 3), np.ones((3, 2)))
    assert not [found for found in tmp_path.rglob("*") if "stowplan" in found.name]


@pytest.mark.parametrize("target", TARGETS)
def test_an_output_that_was_cut_off_is_gone_on_with(tmp_path, target, field):
    need(target)
    path = str(tmp_path / target)
    out = create_array(path, field.shape, field.dtype, "test", resumable=True)
    out.write(0, field[:2])
    out.close()
    out = create_array(path, field.shape, field.dtype, "test", resume=True)
    assert out.resumed
    np.testing.assert_array_equal(out.read(0, 2), field[:2])
    out.write(2, field[2:])
    out.finish()
    out.close()
    out = create_array(path, field.shape, field.dtype, "test", resume=True)
    assert out.resumed
    np.testing.assert_array_equal(out.read(0, 6), field)
    out.close()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("resumable", [False, True])
def test_what_a_killed_run_has_left_is_not_mixed_with_a_new_output(
    tmp_path, target, field, resumable
):
    need(target)
    path = str(tmp_path / target)
    out = create_array(path, field.shape, field.dtype, "test", resumable=resumable)
    out.write(0, field)
    out.close()
    for shape in (field.shape, (2, 3)):
        out = create_array(path, shape, "f8", "test", resumable=resumable)
        assert not out.resumed
        assert not out.read(0, shape[0]).any()
        out.close()
    out = create_array(path, field.shape, field.dtype, "test", resume=resumable)
    assert not out.resumed  # it is of another form
    out.discard()


@pytest.mark.parametrize("target", TARGETS)
def test_a_disk_that_is_full_is_told_and_what_was_written_before_stays(
    tmp_path, target, field, monkeypatch
):
    need(target)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = str(tmp_path / target)
    out = create_array(path, field.shape, field.dtype, "test", resumable=True)
    out.write(0, field[:3])
    with monkeypatch.context() as patch:
        patch.setattr(descriptors, "_pwritev", full)
        with pytest.raises(
            StoreError, match=r"(a\.|group|file).* finds the disk full: .*are free in"
        ):
            out.write(3, field[3:])
    np.testing.assert_array_equal(out.read(0, 3), field[:3])
    out.write(3, field[3:])  # once there is space again
    out.finish()
    out.close()
    np.testing.assert_array_equal(open_array(path, "test").read(0, 6), field)


@pytest.mark.parametrize("target", TARGETS)
def test_space_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path, target, field, monkeypatch
):
    need(target)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    if "zarr" in target:
        from stowplan.stores import zarr

        monkeypatch.setattr(zarr, "free_bytes", lambda _: 1000)
    with pytest.raises(StoreError, match=r"bytes \(.* free"):
        create_array(tmp_path / target, field.shape, field.dtype, "test")
    assert not [path for path in tmp_path.rglob("*") if "stowplan" in path.name]


def test_two_datasets_of_a_file_are_named_and_one_need_not_be(tmp_path, field):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "fields.h5"
    with h5py.File(path, "w") as file:
        file["a/b"] = field
    np.testing.assert_array_equal(open_array(path, "test").read(1, 3), field[1:3])
    with h5py.File(path, "r+") as file:
        file["c"] = field
    with pytest.raises(sp.DataError, match=r"has 2 datasets. Name one, .*there are: a/b, c"):
        open_array(path, "test")
    with pytest.raises(sp.DataError, match=r"has no dataset 'd'.*there are: a/b, c"):
        open_array(f"{path}::d", "test")


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize(
    "how", [{}, {"chunks": (2, 5, 2, 3), "compression": "gzip"}, {"dtype": ">c16"}]
)
def test_a_dataset_is_read_however_it_is_stored(tmp_path, field, how, mode):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "fields.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=field, **how)
    with h5py.File(path, mode) as file:
        stored = open_array(file["a"], "test")
        assert stored.dtype.isnative
        assert (stored._plain is not None) == (mode == "r" and "chunks" not in how)
        np.testing.assert_array_equal(stored.read(1, 5), field[1:5])
        if mode == "r":
            with pytest.raises(sp.DataError, match="opened for reading"):
                stored.write(0, field[:1])
            return
        stored.write(0, 2 * field[:1])
        np.testing.assert_array_equal(stored.read(0, 2), [2 * field[0], field[1]])
        if "chunks" in how:
            file["a"].resize((5, 5, 4, 3))
            with pytest.raises(sp.DataError, match=r"is \(5, 5, 4, 3\) now: it changed"):
                stored.read(0, 1)


def test_a_dataset_whose_file_shrinks_is_told(tmp_path, field):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "fields.h5"
    for chunks in (None, (1, 5, 4, 3)):
        with h5py.File(path, "w") as file:
            file.create_dataset("a", data=field, chunks=chunks)
        stored = open_array(path, "test")
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(size - 600)
        with pytest.raises(sp.DataError, match=r"fields.h5::a.* changed while it was read"):
            stored.read(0, 6)
        stored.close()


@pytest.mark.parametrize("codec", ["zstd", "none", "crc32c"])
def test_a_corrupt_chunk_is_named(tmp_path, codec):
    zarr = pytest.importorskip("zarr")
    from zarr.codecs import Crc32cCodec

    how = {"zstd": {}, "none": {"compressors": None}, "crc32c": {"compressors": Crc32cCodec()}}
    values = np.random.default_rng(1).standard_normal((8, 4))
    path = tmp_path / "a.zarr"
    array = zarr.create_array(path, shape=(8, 4), dtype="f8", chunks=(2, 2), **how[codec])
    array[:] = values
    chunk = path / "c" / "2" / "1"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 255
    chunk.write_bytes(content[:-3] if codec != "crc32c" else content)
    stored = open_array(path, "test")
    np.testing.assert_array_equal(stored.read(0, 4), values[:4])
    for read in (lambda: stored.read(3, 8), lambda: stored.read_region((slice(5, 6), slice(1, 3)))):
        with pytest.raises(sp.DataError, match=r"a.zarr: chunk \(2, 1\) cannot be read"):
            read()


def test_an_array_of_zarr_that_changes_its_shape_or_goes_is_told(tmp_path, field):
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "a.zarr"
    array = zarr.create_array(path, shape=field.shape, dtype=field.dtype)
    array[:] = field
    stored = open_array(path, "test")
    other = zarr.open_array(path, mode="r+")
    other.resize((5, 5, 4, 3))
    with pytest.raises(sp.DataError, match=r"is \(5, 5, 4, 3\) now: it changed while it was read"):
        stored.read(0, 2)
    zarr.create_array(path, shape=field.shape, dtype="f8", overwrite=True)
    with pytest.raises(sp.DataError, match=r"it was complex128 .* is float64 now"):
        stored.read(0, 2)
    (path / "zarr.json").unlink()
    with pytest.raises(sp.DataError, match="it is gone"):
        stored.read(0, 2)


def test_arrays_of_zarr_in_memory_and_of_format_2_are_read(tmp_path, field):
    zarr = pytest.importorskip("zarr")
    for store in (zarr.storage.MemoryStore(), tmp_path / "two.zarr"):
        how = {"zarr_format": 2} if store == tmp_path / "two.zarr" else {}
        array = zarr.create_array(store, shape=field.shape, dtype=field.dtype, **how)
        array[:] = field
        stored = open_array(array, "test")
        np.testing.assert_array_equal(stored.read(1, 4), field[1:4])
        assert stored.identity() == open_array(array, "test").identity()
    with pytest.raises(sp.DataError, match="opened for reading"):
        open_array(tmp_path / "two.zarr", "test").write(0, field[:1])


def test_our_arrays_of_zarr_have_chunks_of_rows_and_no_compression(tmp_path, field):
    zarr = pytest.importorskip("zarr")
    out = create_array(tmp_path / "a.zarr", field.shape, field.dtype, "test", rows_together=2)
    out.write(0, np.where(np.arange(6)[:, None, None, None] < 2, 0, field))
    out.finish()
    array = zarr.open_array(tmp_path / "a.zarr", mode="r")
    assert (array.metadata.zarr_format, array.chunks) == (3, (2, 5, 4, 3))
    assert array.compressors == ()
    names = {str(path.relative_to(tmp_path / "a.zarr" / "c")) for path in
             (tmp_path / "a.zarr" / "c").rglob("*") if path.is_file()}  # fmt: skip
    assert names == {"1/0/0/0", "2/0/0/0"}  # nothing is written for zeros
    stored = open_array(tmp_path / "a.zarr", "test")
    np.testing.assert_array_equal(stored.read(1, 5)[1:], field[2:5])
    assert not stored.read(0, 2).any()
    np.testing.assert_array_equal(array[2:5], field[2:5])
    assert reading_bytes(stored) == 0
    out.write(3, field[:1])  # part of a chunk
    np.testing.assert_array_equal(array[2:5], field[[2, 0, 4]])


def test_the_sign_of_zeros_is_written(tmp_path):
    zarr = pytest.importorskip("zarr")
    out = create_array(tmp_path / "a.zarr", (2, 3), "f8", "test")
    out.write(0, np.array([[0.0] * 3, [0.0, -0.0, 0.0]]))
    out.finish()
    assert np.signbit(zarr.open_array(tmp_path / "a.zarr", mode="r")[:]).sum() == 1


@pytest.mark.parametrize("how", ["zstd", "columns", "fill", "big", "format 2", "plain"])
def test_arrays_of_zarr_are_read_and_written_whatever_their_chunks(tmp_path, field, how):
    zarr = pytest.importorskip("zarr")
    more = {
        "zstd": {"chunks": (4, 5, 4, 3)},
        "columns": {"chunks": (4, 2, 4, 3), "compressors": None},
        "fill": {"chunks": (4, 5, 4, 3), "compressors": None, "fill_value": 3},
        "big": {"chunks": (4, 5, 4, 3), "compressors": None, "dtype": ">c16"},
        "format 2": {"chunks": (4, 5, 4, 3), "compressors": None, "zarr_format": 2},
        "plain": {"chunks": (4, 5, 4, 3), "compressors": None},
    }[how]
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=field.shape, **{"dtype": field.dtype, **more}
    )
    array[:3] = field[:3]
    stored = open_array(array, "test")
    expected = np.asarray(array)
    assert (stored._plain is not None) == (how == "plain")
    assert (reading_bytes(stored) > 0) == (how != "plain")
    np.testing.assert_array_equal(stored.read(1, 6), expected[1:])
    stored.write(3, field[3:5])
    index = (slice(5, 6), slice(1, 3))
    stored.write_region(index, field[index])
    expected[3:5] = field[3:5]
    expected[index] = field[index]
    np.testing.assert_array_equal(stored.read(0, 6), expected)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr", mode="r")[:], expected)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=7),
    group=st.integers(1, 4),
    tail=st.sampled_from([(), (3,), (2, 3)]),
    data=st.data(),
)
def test_list_columns_of_parquet_are_flat_rows(tmp_path_factory, lengths, group, tail, data):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    rng = np.random.default_rng(2)
    ragged = sp.Ragged.from_list(
        [rng.standard_normal((n, *tail)) for n in lengths], tail=tail, dtype="f8"
    )
    path = tmp_path_factory.mktemp("table") / "x.parquet"
    pq.write_table(pa.table({"x": ragged.to_arrow()}), path, row_group_size=group)
    column = open_column(f"{path}::x", "test")
    assert isinstance(column, sp.Ragged)
    assert is_stored(column)
    np.testing.assert_array_equal(column.shapes, ragged.shapes)
    total = len(ragged.values)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    column.values.read(0, 0)
    decoded = []
    decode = column.values._decode
    column.values._decode = lambda group: decoded.append(group) or decode(group)
    found = column.values.read(start, stop)
    ends = [0, *column.values.ends]
    needed = [g for g, end in enumerate(ends[1:]) if max(start, ends[g]) < min(stop, end)]
    assert set(needed) <= set(decoded) <= set(range(needed[0], needed[-1] + 1) if needed else [])
    assert len(decoded) == len(set(decoded))
    np.testing.assert_array_equal(found, ragged.values[start:stop])
    column.values.close()


def test_nested_lists_of_parquet_have_two_ragged_dims_and_plain_columns_none(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    ragged = sp.Ragged.from_list([np.ones((2, 3)), np.zeros((0, 0)), np.full((1, 4), 2.0)], 2)
    table = pa.table({"x": ragged.to_arrow(), "t": pa.array([1, 2, 3], pa.int16())})
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=2)
    column = open_column(f"{path}::x", "test")
    np.testing.assert_array_equal(column.shapes, [[2, 3], [0, 0], [1, 4]])
    np.testing.assert_array_equal(column.values.read(0, 10), ragged.values)
    plain = open_array(f"{path}::t", "test")
    np.testing.assert_array_equal(plain.read(1, 3), [2, 3])
    assert plain.dtype == np.int16
    with pytest.raises(sp.DataError, match="is ragged, and one array is needed"):
        open_array(f"{path}::x", "test")
    with pytest.raises(sp.DataError, match=r"has no column 'y'.*there are: x, t"):
        open_column(f"{path}::y", "test")
    with pytest.raises(sp.DataError, match="read-only"):
        plain.write(0, np.ones(1, np.int16))
    pq.write_table(table.slice(0, 1), path)
    with pytest.raises(sp.DataError, match="changed while it was read"):
        plain.read(0, 1)


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 3), st.just(2)), min_size=1, max_size=5
    ),
    data=st.data(),
)
def test_files_are_items_on_axis_0_or_flat_rows(tmp_path_factory, shapes, data):
    folder = tmp_path_factory.mktemp("files")
    values = [np.random.default_rng(n).standard_normal(shape) for n, shape in enumerate(shapes)]
    for number, one in enumerate(values):
        np.save(folder / f"field{number}.npy", one)
    column = open_column(str(folder / "*.npy"), "test")
    if len(set(shapes)) == 1:
        flat, stored = np.stack(values), column
    else:
        assert isinstance(column, sp.Ragged)
        ragged = 2 if len({shape[1] for shape in shapes}) > 1 else 1
        np.testing.assert_array_equal(column.shapes, [shape[:ragged] for shape in shapes])
        flat = np.concatenate([one.reshape(-1, *one.shape[ragged:]) for one in values])
        stored = column.values
    assert stored.shape == flat.shape
    start = data.draw(st.integers(0, len(flat)))
    stop = data.draw(st.integers(start, len(flat)))
    np.testing.assert_array_equal(stored.read(start, stop), flat[start:stop])
    stored.close()


def test_many_files_are_not_open_at_once_and_lie_in_natural_order(tmp_path, monkeypatch):
    from stowplan.stores import files

    monkeypatch.setattr(files, "OPEN_FILES", 3)
    for number in range(12):
        np.save(tmp_path / f"field{number}.npy", np.full(2, number))
    stored = open_array(tmp_path / "*.npy", "test")
    np.testing.assert_array_equal(stored.read(0, 12)[:, 0], np.arange(12))
    assert len(stored._open) == 3
    np.save(tmp_path / "field2.npy", np.full(3, 2))
    with pytest.raises(sp.DataError, match=r"field2.npy: it was \(2,\) .* is \(3,\)"):
        stored.read(0, 12)


def test_items_of_several_dtypes_or_axes_are_named(tmp_path):
    for name, value in (("a", np.ones(3)), ("b", np.ones(3, "f4")), ("c", np.ones((3, 1)))):
        np.save(tmp_path / f"{name}.npy", value)
    for other in "bc":
        with pytest.raises(sp.DataError, match=rf"test: item 1 \(.*{other}.npy\) is .*item 0"):
            open_array([tmp_path / "a.npy", tmp_path / f"{other}.npy"], "test")
    with pytest.raises(sp.DataError, match="no such file"):
        open_array(tmp_path / "z*.npy", "test")


class Slices:
    """What a reader of one's own gives."""

    def __init__(self, values, *, dtype=True):
        self.values = values
        self.shape = values.shape
        if dtype:
            self.dtype = values.dtype

    def __getitem__(self, index):
        return self.values[index]


def test_any_object_with_shape_and_slices_is_read(field):
    for dtype in (True, False):
        source = Slices(field, dtype=dtype)
        stored = open_array(source, "test")
        assert stored.dtype == field.dtype
        assert stored.name == "object of type Slices"
        np.testing.assert_array_equal(stored.read(2, 5), field[2:5])
        index = (slice(1, 3), slice(0, 2))
        np.testing.assert_array_equal(stored.read_region(index), field[index])
        with pytest.raises(sp.DataError, match="read-only"):
            stored.write(0, field[:1])
    source.shape = (5, 5, 4, 3)
    with pytest.raises(sp.DataError, match=r"was \(6, 5, 4, 3\) .* changed while it was read"):
        stored.read(0, 2)
    source.shape, source.values = field.shape, field[:1]
    with pytest.raises(sp.DataError, match=r"gave \(1, 5, 4, 3\)"):
        stored.read(0, 2)


def test_only_what_lies_outside_of_memory_is_stored(tmp_path):
    stored = ["a.npy", tmp_path / "a.zarr", ["a.npy", "b.npy"], Slices(np.ones(3))]
    np.save(tmp_path / "a.npy", np.ones(4))
    stored.append(np.load(tmp_path / "a.npy", mmap_mode="r"))
    stored.append(open_array(tmp_path / "a.npy", "test"))
    assert all(map(is_stored, stored))
    memory = [np.ones(3), [np.ones(3)], [], [1.0, 2.0], 3.0, None, sp.Ragged.from_list([[1.0]])]
    assert not any(map(is_stored, memory))
    for source in memory[:2]:
        with pytest.raises(sp.DataError, match=r"test: .* is no array outside of memory"):
            open_array(source, "test")


def test_arrays_of_frameworks_are_in_memory():
    strict = pytest.importorskip("array_api_strict")
    assert not is_stored(strict.ones(3))


@pytest.mark.parametrize("name", ["a.txt", "a", "a.npz"])
def test_formats_that_are_not_known_are_refused_with_those_that_are(name):
    with pytest.raises(sp.DataError, match=r"test: .*name.npy, name.zarr, name.h5::dataset or"):
        open_array(name, "test")


@pytest.mark.parametrize("name", ["a.zarr", "a.h5", "a.parquet", "a.npy"])
def test_what_is_not_there_or_of_another_kind_is_told(tmp_path, name):
    need(name)
    path = tmp_path / name
    with pytest.raises(sp.DataError, match="there is no such"):
        open_array(path, "test")
    if name == "a.zarr":
        path.mkdir()
    else:
        path.write_bytes(b"something else " * 100)
    with pytest.raises(sp.DataError, match=r"test: .*a\.\w+ (is no|cannot be opened as)"):
        open_array(path, "test")


def test_rows_that_are_not_there_and_buffers_that_do_not_fit_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 2)))
    stored = open_array(tmp_path / "a.npy", "test")
    for start, stop in ((0, 5), (3, 2), (-1, 2)):
        with pytest.raises(sp.DataError, match=f"rows {start} to {stop} of 4"):
            stored.read(start, stop)
    for into in (np.ones((2, 3)), np.ones((2, 2), "f4"), np.ones((2, 4))[:, ::2]):
        with pytest.raises(sp.DataError, match="they were to be read into"):
            stored.read(0, 2, into)


def test_what_an_array_is_known_by_changes_with_its_file(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 2)))
    first = open_array(tmp_path / "a.npy", "test").identity()
    assert first == open_array(tmp_path / ".." / tmp_path.name / "a.npy", "test").identity()
    np.save(tmp_path / "a.npy", np.zeros((4, 2)))
    assert first != open_array(tmp_path / "a.npy", "test").identity()


def test_objects_of_other_values_are_told_apart_by_three_rows():
    """The first, the middle and the last one; what else there is they do not tell."""

    class Plain:
        def __init__(self, values: np.ndarray) -> None:
            self.values, self.shape = values, values.shape

        def __getitem__(self, index: slice) -> np.ndarray:
            return self.values[index]

    values = np.arange(21.0).reshape(7, 3)
    known = open_array(Plain(values), "test").identity()
    assert open_array(Plain(values.copy()), "test").identity() == known
    for row in (0, 3, 6):
        other = values.copy()
        other[row, 1] = -1
        assert open_array(Plain(other), "test").identity() != known
    assert open_array(Plain(values[:0]), "test").identity() != known


def test_files_of_a_list_that_change_before_they_are_read_are_told(tmp_path):
    paths = [tmp_path / f"{number}.npy" for number in range(3)]
    for path in paths:
        np.save(path, np.zeros((4, 5)))
    stored = open_array(paths, "test")
    np.save(paths[1], np.ones((4, 5)))
    stored.read(0, 1)
    with pytest.raises(sp.DataError, match=r"1.npy: it was written to after it was opened"):
        stored.read(0, 3)
