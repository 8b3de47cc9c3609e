"""Memory maps: what they show is what is read, whatever has become of their files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.stores import memory_maps
from stowplan.stores.arrays import open_array
from stowplan.stores.file_arrays import FileArray
from stowplan.stores.memory_maps import MappedArray

CUTS = st.builds(
    slice,
    st.one_of(st.none(), st.integers(-8, 8)),
    st.one_of(st.none(), st.integers(-8, 8)),
    st.sampled_from([None, 1, 2, 3, -1, -2]),
)


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(), shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    dtype=st.sampled_from(["<f8", ">f8", "<c8", "i2"]), lead=st.integers(0, 9),
    bounce=st.sampled_from([1, 40, 200, 1 << 20]),
)  # fmt: skip
def test_any_view_of_a_map_is_read_as_it_shows(tmp_path_factory, data, shape, dtype, bounce, lead):
    path = tmp_path_factory.mktemp("maps") / "raw"
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    path.write_bytes(b"x" * lead + values.tobytes())
    view: Any = np.memmap(path, dtype, "r", offset=lead, shape=tuple(shape))
    axes = data.draw(st.permutations(range(len(shape))))
    cuts = tuple(data.draw(CUTS) for _ in shape)
    view, values = view.transpose(axes)[cuts], values.transpose(axes)[cuts]
    assume(isinstance(view, np.memmap))  # of nothing NumPy gives another kind
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_maps, "BOUNCE_BYTES", bounce)
        stored = open_array(view, "test")
        assert stored.dtype == values.dtype.newbyteorder("=")
        start, stop = sorted(data.draw(st.integers(0, len(values))) for _ in range(2))
        np.testing.assert_array_equal(stored.read(start, stop), values[start:stop])
        region = tuple(
            slice(*sorted(data.draw(st.integers(0, length)) for _ in range(2)))
            for length in values.shape
        )
        np.testing.assert_array_equal(stored.read_region(region), values[region])
    stored.close()


def test_no_more_is_read_together_than_pays(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.arange(8000.0).reshape(40, 200))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    own, sizes = FileArray.read, []

    def noted(self: Any, start: int, stop: int, into: Any = None) -> Any:
        sizes.append(stop - start)
        return own(self, start, stop, into)

    monkeypatch.setattr(memory_maps, "BOUNCE_BYTES", 2000)
    stored = open_array(mapped[:, ::2], "test")
    monkeypatch.setattr(FileArray, "read", noted)
    np.testing.assert_array_equal(stored.read(0, 40), mapped[:, ::2])
    assert max(sizes) <= 2000
    assert sum(sizes) <= 40 * 200 * 8


@pytest.mark.parametrize("cut", [np.s_[:], np.s_[::-1], np.s_[:, :3], np.s_[3:]])
@pytest.mark.parametrize("moved", [True, False])
def test_a_map_whose_file_was_replaced_shows_the_old_one(tmp_path, cut, moved):
    path, values = tmp_path / "x.npy", np.arange(60.0).reshape(12, 5)
    np.save(path, values)
    mapped = np.load(path, mmap_mode="r")[cut]
    if moved:
        path.rename(tmp_path / "aside.npy")
        np.save(path, -values)
    else:
        np.save(tmp_path / "other.npy", -values)
        (tmp_path / "other.npy").replace(path)
    stored = open_array(mapped, "test")
    assert isinstance(stored, MappedArray)
    np.testing.assert_array_equal(stored.read(0, len(mapped)), values[cut])


def test_a_map_whose_file_is_gone_is_read(tmp_path):
    path, values = tmp_path / "x.npy", np.arange(60.0).reshape(12, 5)
    np.save(path, values)
    mapped = np.load(path, mmap_mode="r")
    path.unlink()
    np.testing.assert_array_equal(open_array(mapped, "test").read(2, 5), values[2:5])


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("cut", [np.s_[:], np.s_[::-1], np.s_[::2], np.s_[:, :3], np.s_[3:]])
def test_maps_of_other_values_are_told_apart(tmp_path, mode, cut):
    values = np.arange(60.0).reshape(12, 5)
    for name, content in (("one.npy", values), ("other.npy", values + 1)):
        np.save(tmp_path / name, content)
    one, again, other = (
        open_array(np.load(tmp_path / name, mmap_mode=mode)[cut], "test").identity()
        for name in ("one.npy", "one.npy", "other.npy")
    )
    assert one == again != other


def test_views_of_one_file_are_told_apart(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(60.0).reshape(12, 5))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    views = (mapped[::2], mapped[1::2], mapped[:6, ::-1], mapped[:6], mapped[6:])
    assert len({open_array(view, "test").identity() for view in views}) == len(views)


def test_private_changes_count(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(60.0).reshape(12, 5))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")
    before = open_array(mapped, "test").identity()
    mapped[3, 2] = 7
    assert open_array(mapped, "test").identity() != before


@pytest.mark.parametrize("cut", [np.s_[:], np.s_[:, ::2]])
def test_a_file_that_is_cut_off_is_told(tmp_path, cut):
    np.save(tmp_path / "x.npy", np.zeros((100, 200)))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")[cut]
    stored = open_array(mapped, "test")
    os.truncate(tmp_path / "x.npy", 4096)
    with pytest.raises(sp.DataError, match=r"x.npy is too short: .*the file at byte 4096"):
        stored.read(90, 100)


@pytest.mark.parametrize("cut", [np.s_[:], np.s_[:, ::2]])
def test_a_file_that_is_written_to_meanwhile_is_told_where_it_is_only_read(tmp_path, cut):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((100, 200)))
    for mode in ("r", "r+"):
        stored = open_array(np.load(path, mmap_mode=mode)[cut], "test")
        stored.read(0, 1)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1000))
        if mode == "r+":  # its owner may be the one who writes
            stored.read(0, 1)
            continue
        with pytest.raises(sp.DataError, match=r"x.npy: it was written to after it was opened"):
            stored.read(0, 1)


def test_a_strided_map_is_written_to(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((10, 6)))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r+")
    open_array(mapped[:, ::2], "test").write(4, np.ones((2, 3)))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy").sum(axis=1), mapped.sum(axis=1))
    assert mapped.sum() == mapped[4:6, ::2].sum() == 6


@pytest.mark.parametrize("source", ["path", "map", "strided map"])
def test_an_array_is_replaced_by_results_in_place(tmp_path, source):
    """Rows that are read come before those that are written, and it is the run that writes."""
    path, values = tmp_path / "x.npy", np.arange(1600000.0).reshape(4000, 400)
    np.save(path, values)
    given = str(path) if source == "path" else np.load(path, mmap_mode="r")
    target = np.load(path, mmap_mode="r+")
    if source == "strided map":
        given, target = given[:, ::2], target[:, ::2]
    doubled = sp.kernel("(d)->(d)")(lambda x: 2 * x)
    sp.run(doubled, {"x": given}, out=target, budget="3 MiB")
    step = 2 if source == "strided map" else 1
    values[:, ::step] *= 2
    np.testing.assert_array_equal(np.load(path), values)


def test_many_maps_hold_no_files_open_and_are_opened_in_no_time(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(3, 4))
    maps = [np.load(tmp_path / "x.npy", mmap_mode="r")[:, ::step] for step in (1, 2) * 100]
    looks = []
    own = memory_maps._mappings
    monkeypatch.setattr(memory_maps, "_mappings", lambda: looks.append(1) or own())
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    stored = [open_array(maps[step::2], "test") for step in (0, 1)]
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before
    assert len(looks) == 2
    for step, one in enumerate(stored):
        np.testing.assert_array_equal(one.read(7, 90), np.stack(maps[step::2])[7:90])
        one.close()


def test_a_system_that_does_not_tell_what_is_mapped_is_trusted(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.arange(60.0).reshape(12, 5))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr(memory_maps, "_mappings", list)
    stored = open_array(mapped, "test")
    assert isinstance(stored, FileArray)
    np.testing.assert_array_equal(stored.read(2, 5), mapped[2:5])
