"""Laws of outputs of zarr: what is of another kind is refused before anything is computed."""

from __future__ import annotations

import numpy as np
import pytest

import stowplan as sp
from stowplan.stores.arrays import create_array, open_array

zarr = pytest.importorskip("zarr", reason="zarr is not installed")

COLUMN = np.arange(24.0).reshape(8, 3)


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_within_an_array_is_refused(tmp_path, form, overwrite):
    array = zarr.create_array(tmp_path / "arr.zarr", shape=(3,), dtype="f8", zarr_format=form)
    array[:] = 5
    group = zarr.open_group(tmp_path / "g.zarr", mode="w", zarr_format=form)
    group.create_array("a", shape=(3,), dtype="f8")
    for target, named in (
        ("arr.zarr::a", "arr.zarr is an array and has no 'a' in it"),
        ("g.zarr::a/b", "g.zarr::a is an array and has no 'b' in it"),
        ("g.zarr::a/b/c", "g.zarr::a is an array and has no 'b/c' in it"),
    ):
        with pytest.raises(sp.DataError, match=named):
            create_array(tmp_path / target, (3,), "f8", "test", overwrite=overwrite)
    np.testing.assert_array_equal(open_array(tmp_path / "arr.zarr", "test")[:], [5, 5, 5])


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("inner", ["", "::q", "::q/r"])
def test_a_plain_file_is_not_replaced_by_a_folder(tmp_path, overwrite, inner):
    path = tmp_path / "z.zarr"
    path.write_text("a text")
    calls = []
    kernel = sp.kernel("(3)->(3)")(lambda row: calls.append(1) or 2 * row)
    with pytest.raises(sp.DataError, match=r"z.zarr is a file, not a folder of zarr. Remove it"):
        sp.run(kernel, [COLUMN], out=f"{path}{inner}", overwrite=overwrite)
    assert len(calls) <= 1  # the batch of padding that tells the dtype
    assert path.read_text() == "a text"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_within_a_group_and_a_folder_of_other_things_are_not_replaced(tmp_path):
    zarr.open_group(tmp_path / "g.zarr", mode="w")
    (tmp_path / "g.zarr" / "notes").write_text("a text")
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.tex").write_text("a text")
    for target, named in (
        ("g.zarr::notes", "g.zarr::notes is a file"),
        ("g.zarr::notes/x", "g.zarr::notes is a file"),
        ("mine.zarr", "mine.zarr is a folder of something else"),
    ):
        with pytest.raises(sp.DataError, match=named):
            create_array(tmp_path / target, (3,), "f8", "test", overwrite=True)
    assert (tmp_path / "mine.zarr" / "thesis.tex").read_text() == "a text"


@pytest.mark.parametrize("target", ["o.zarr", "o.zarr::q", "o.zarr::q/r"])
def test_a_folder_that_is_not_there_is_not_made(tmp_path, target, double):
    with pytest.raises(sp.DataError, match=r"nofolder is no folder. Make it first"):
        sp.run(double, [COLUMN], out=tmp_path / "nofolder" / target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_came_meanwhile_is_replaced_and_nothing_is_left_of_it(tmp_path, kind):
    path, own = tmp_path / "z.zarr", tmp_path / "own"
    own.mkdir()
    (own / "notes").write_text("a text")
    out = create_array(path, COLUMN.shape, COLUMN.dtype, "test", overwrite=True)
    out.write(0, COLUMN)
    if kind == "file":
        path.write_text("a text")
    elif kind == "link":
        path.symlink_to(own, target_is_directory=True)
    else:
        path.mkdir()
    out.finish()
    out.close()
    np.testing.assert_array_equal(open_array(path, "test")[:], COLUMN)
    assert sorted(tmp_path.iterdir()) == [own, path]
    assert (own / "notes").read_text() == "a text"


@pytest.mark.parametrize(
    "out",
    [
        ("o.npy", "o.npy"),
        ("o.npy", "../{}/o.npy"),
        ("o.zarr", "o.zarr"),
        ("o.zarr::a", "o.zarr::/a"),
        ("o.zarr::a/b", "o.zarr::a"),
        ("o.zarr", "o.zarr::a"),
    ],
)
def test_two_outputs_in_one_array_are_refused_by_name(tmp_path, twice, out):
    paths = [f"{tmp_path}/{name.format(tmp_path.name)}" for name in out]
    with pytest.raises(sp.PlanError, match=r"for output 0 and .*output 1 are one file.*Give one"):
        sp.run(twice, [COLUMN], out=paths)
    assert list(tmp_path.iterdir()) == []


def test_two_outputs_in_one_group_are_written(tmp_path, twice):
    out = [f"{tmp_path}/o.zarr::a", f"{tmp_path}/o.zarr::ab"]
    for found, factor in zip(sp.run(twice, [COLUMN], out=out), (2, 3), strict=True):
        np.testing.assert_array_equal(found[:], factor * COLUMN)
    found = sp.run(twice, [COLUMN], out=[None, tmp_path / "x.npy"])
    np.testing.assert_array_equal(found[0], 2 * COLUMN)
