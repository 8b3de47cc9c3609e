"""Laws of HDF5: links, files in memory, files that go, and outputs that find no room."""

from __future__ import annotations

import contextlib
import gc
import io
from pathlib import Path

import numpy as np
import pytest

import stowplan as sp
from stowplan.errors import StoreError
from stowplan.stores.arrays import create_array, open_array

h5py = pytest.importorskip("h5py", reason="h5py is not installed")

COLUMN = np.arange(24.0).reshape(8, 3)
BYTES = 800_000


@pytest.fixture
def linked(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = COLUMN + 100
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["deep/real"] = COLUMN
        file["soft"] = h5py.SoftLink("/deep/real")
        file["folder"] = h5py.SoftLink("/deep")
        file["ext"] = h5py.ExternalLink("other.h5", "/x")
        file["away"] = h5py.ExternalLink("other.h5", "/")
        file["lost"] = h5py.SoftLink("/nowhere")
        file["gone"] = h5py.ExternalLink("gone.h5", "/x")
    return tmp_path / "s.h5"


def open_files(folder: Path) -> list[Path]:
    gc.collect()
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(descriptor.readlink())
    return [link for link in links if link.is_relative_to(folder)]


@contextlib.contextmanager
def largest_file(size: int):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["soft", "folder/real", "/deep/real"])
def test_a_dataset_is_read_through_a_link(linked, name):
    stored = open_array(f"{linked}::{name}", "test")
    np.testing.assert_array_equal(stored.read(2, 6), COLUMN[2:6])
    stored.close()


@pytest.mark.parametrize("name", ["ext", "away/x"])
def test_a_dataset_of_another_file_is_read_and_both_files_are_closed(linked, name):
    with h5py.File(linked.parent / "other.h5", "r") as own:
        stored = open_array(f"{linked}::{name}", "test")
        np.testing.assert_array_equal(stored.read(2, 6), COLUMN[2:6] + 100)
        assert stored.path.name == "other.h5"
        stored.close()
        np.testing.assert_array_equal(own["x"][:], COLUMN + 100)  # the caller's stays open
    assert open_files(linked.parent) == []


@pytest.mark.parametrize(("name", "leads"), [("lost", "'/nowhere'"), ("gone", "'/x' of gone.h5")])
def test_a_link_that_leads_nowhere_is_told(linked, name, leads):
    with pytest.raises(sp.DataError, match=rf"s.h5::{name} is a link to {leads}, which cannot"):
        open_array(f"{linked}::{name}", "test")
    assert open_files(linked.parent) == []


def test_what_is_no_dataset_is_told_with_those_there_are(linked):
    for name in ("deep", "nope/x", "deep/real/x"):
        with pytest.raises(sp.DataError, match=rf"has no dataset '{name}'.*there are: deep/real"):
            open_array(f"{linked}::{name}", "test")


def test_an_output_is_not_written_through_a_link_to_another_file(linked):
    before = (linked.parent / "other.h5").read_bytes()
    with pytest.raises(sp.DataError, match=r"s.h5::away is no group of this file"):
        create_array(f"{linked}::away/new", (8, 3), "f8", "test", overwrite=True)
    for name in ("ext", "lost", "gone"):
        with pytest.raises(sp.DataError, match=rf"s.h5::{name} exists"):
            create_array(f"{linked}::{name}", (8, 3), "f8", "test")
        out = create_array(f"{linked}::{name}", (8, 3), "f8", "test", overwrite=True)
        out.write(0, COLUMN)
        out.finish()
        out.close()
        np.testing.assert_array_equal(open_array(f"{linked}::{name}", "test")[:], COLUMN)
    assert (linked.parent / "other.h5").read_bytes() == before


def test_an_empty_dataset_is_told_by_name(tmp_path):
    path = tmp_path / "e.h5"
    with h5py.File(path, "w") as file:
        file["none"] = h5py.Empty("f8")
        with pytest.raises(sp.DataError, match=r"e.h5::none is an empty dataset"):
            open_array(file["none"], "test")
    with pytest.raises(sp.DataError, match=r"e.h5::none is an empty dataset"):
        open_array(f"{path}::none", "test")
    with pytest.raises(sp.DataError, match=r"e.h5::none exists"):
        create_array(f"{path}::none", (3,), "f8", "test")


@pytest.mark.parametrize("target", ["new.h5", "new.h5::deep/er"])
@pytest.mark.parametrize("limit", [500, 1000, 300_000])
def test_a_new_file_that_finds_no_room_is_told_and_leaves_nothing(tmp_path, target, limit):
    with (
        largest_file(limit),
        pytest.raises(StoreError, match=rf"{target}.* larger than a file.* bytes \(.* are free in"),
    ):
        create_array(tmp_path / target, (BYTES // 8,), "f8", "test")
    assert list(tmp_path.iterdir()) == []
    out = create_array(tmp_path / target, (BYTES // 8,), "f8", "test")
    out.discard()


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("limit", [1000, 300_000])
def test_a_file_that_finds_no_room_for_another_dataset_stays_as_it_was(tmp_path, name, limit):
    path = tmp_path / "r.h5"
    with h5py.File(path, "w") as file:
        file["a"] = COLUMN
    before = path.read_bytes()
    with largest_file(limit), pytest.raises(StoreError, match=rf"r.h5::{name} is larger than"):
        create_array(f"{path}::{name}", (BYTES // 8,), "f8", "test", overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_in_a_file_that_is_none_of_hdf5_is_refused(tmp_path, overwrite):
    path = tmp_path / "text.h5"
    path.write_text("a text")
    with pytest.raises(sp.DataError, match=r"text.h5 cannot be opened as HDF5.*Remove it, or name"):
        create_array(f"{path}::x", (3,), "f8", "test", overwrite=overwrite)
    assert path.read_text() == "a text"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("inner", ["", "::x"])
def test_a_folder_is_not_replaced_by_a_file(tmp_path, overwrite, inner, double):
    path = tmp_path / "folder.h5"
    path.mkdir()
    with pytest.raises(sp.DataError, match=r"folder.h5 is a folder, not a file. Remove it"):
        sp.run(double, [COLUMN], out=f"{path}{inner}", overwrite=overwrite)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["chunked", "group", "big"])
def test_what_is_there_is_not_replaced_unasked(tmp_path, name):
    path = tmp_path / "r.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("chunked", data=COLUMN, chunks=(2, 3))
        file.create_dataset("big", data=COLUMN, dtype=">f8")
        file["group/within"] = COLUMN
    with pytest.raises(sp.DataError, match=rf"r.h5::{name} exists.*overwrite=True"):
        create_array(f"{path}::{name}", (8, 3), "f8", "test")
    with pytest.raises(sp.DataError, match=r"r.h5::chunked is no group"):
        create_array(f"{path}::chunked/x", (8, 3), "f8", "test", overwrite=True)


@pytest.mark.parametrize("driver", ["core", "fileobj"])
def test_a_dataset_in_memory_is_known_by_its_values(tmp_path, driver, double, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("m.npy", COLUMN)
    Path("m.npy").rename("m.h5")  # a file of that name says nothing of the one in memory
    core = {"driver": "core", "backing_store": False}
    where = {"core": ("m.h5", core), "fileobj": (io.BytesIO(), {})}[driver]
    with h5py.File(where[0], "w", **where[1]) as file:
        file["x"] = COLUMN
        known = open_array(file["x"], "test").identity()
        found = sp.run(double, [file["x"]], resume="run")
        np.testing.assert_array_equal(found, 2 * COLUMN)
        np.testing.assert_array_equal(sp.run(double, [file["x"]], resume="run"), 2 * COLUMN)
        file["x"][5, 1] += 1
        assert open_array(file["x"], "test").identity() != known
        with pytest.raises(sp.PlanError, match="column"):
            sp.run(double, [file["x"]], resume="run")


def test_a_chunked_file_that_is_removed_while_it_is_open_is_read_on(tmp_path):
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=COLUMN, chunks=(2, 3))
    stored = open_array(f"{path}::x", "test")
    known = stored.identity()
    path.unlink()
    np.testing.assert_array_equal(stored.read(1, 7), COLUMN[1:7])
    assert stored.identity() == known
    stored.close()


def test_a_dataset_is_read_from_the_file_that_is_open_not_from_one_of_its_name(tmp_path):
    path = tmp_path / "c.h5"
    for name, values in ((path, COLUMN), (tmp_path / "new.h5", COLUMN + 1)):
        with h5py.File(name, "w") as file:
            file["x"] = values
    with h5py.File(path, "r") as file:
        (tmp_path / "new.h5").replace(path)
        stored = open_array(file["x"], "test")
        np.testing.assert_array_equal(stored.read(0, 8), COLUMN)
        replaced = stored.identity()
    assert open_array(path, "test").identity() != replaced


@pytest.mark.parametrize("chunks", [None, (2, 3)])
def test_a_dataset_whose_file_is_closed_is_told(tmp_path, chunks):
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("x", data=COLUMN, chunks=chunks)
        dataset = file["x"]
        stored = open_array(dataset, "test")
    with pytest.raises(sp.DataError, match=r"test: .*its file is closed. Open it again"):
        open_array(dataset, "test")
    for use in (
        lambda: stored.read(0, 2),
        stored.identity,
        lambda: stored.write(0, COLUMN[:1]),
    ):
        with pytest.raises(sp.DataError, match=r"c.h5::x: its file is closed. Open it again"):
            use()
    stored.close()


@pytest.mark.parametrize("there", [False, True])
def test_two_outputs_in_one_file_are_refused_by_name(tmp_path, twice, there):
    path = tmp_path / "r.h5"
    if there:
        with h5py.File(path, "w") as file:
            file["a"] = COLUMN
    before = sorted(tmp_path.iterdir())
    other = tmp_path / ".." / tmp_path.name / "r.h5"
    with pytest.raises(
        sp.PlanError, match=r"r.h5::energy' .*r.h5::forces' .*one file.*'name.zarr::a'"
    ):
        sp.run(twice, [COLUMN], out=[f"{path}::energy", f"{other}::forces"])
    assert sorted(tmp_path.iterdir()) == before
    out = [tmp_path / "one.h5", f"{tmp_path}/two.h5::x"]
    for found, factor in zip(sp.run(twice, [COLUMN], out=out), (2, 3), strict=True):
        np.testing.assert_array_equal(found[:], factor * COLUMN)
