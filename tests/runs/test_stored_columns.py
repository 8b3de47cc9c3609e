"""Columns and outputs on disk: results are those of the same data in memory, bit for bit."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.stores.arrays import open_array
from stowplan.stores.file_arrays import FileArray

SIZES = [3, 1, 7, 2, 2, 7, 5, 4, 1, 6]
FIXED = ["npy", "fortran", "big-endian", "memmap", "zarr", "zarr array", "h5", "dataset", "pattern",
         "files", "object"]  # fmt: skip


def names(folder: Path) -> list[str]:
    """Names of what a folder holds."""
    return sorted(path.name for path in folder.iterdir())


class Sliced:
    """An object with no more than a shape, a dtype and slices."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.values[index]


def stored(values: np.ndarray, folder: Path, how: str) -> Any:
    """Put an array on disk in one of the ways that a column may come."""
    folder.mkdir(exist_ok=True)
    path = folder / "column.npy"
    if how == "fortran":
        np.save(path, np.asfortranarray(values))
    elif how == "big-endian":
        np.save(path, values.astype(values.dtype.newbyteorder(">")))
    elif how in ("npy", "memmap"):
        np.save(path, values)
        return np.load(path, mmap_mode="r") if how == "memmap" else path
    elif how in ("zarr", "zarr array"):
        zarr = pytest.importorskip("zarr")
        chunks = tuple(max(length // 2, 1) for length in values.shape)
        array = zarr.create_array(
            store=str(folder / "a.zarr"), shape=values.shape, dtype=values.dtype, chunks=chunks
        )
        array[...] = values
        return array if how == "zarr array" else folder / "a.zarr"
    elif how in ("h5", "dataset"):
        h5py = pytest.importorskip("h5py")
        with h5py.File(folder / "a.h5", "w") as file:
            file.create_dataset("deep/er", data=values, chunks=True)
        return (
            h5py.File(folder / "a.h5")["deep/er"] if how == "dataset" else f"{folder}/a.h5::deep/er"
        )
    elif how in ("pattern", "files"):
        paths = [folder / f"item{number}.npy" for number in range(len(values))]
        for part, value in zip(paths, values, strict=True):
            np.save(part, value)
        return str(folder / "item*.npy") if how == "pattern" else paths
    elif how == "object":
        return Sliced(values)
    return path


def same(found: Any, wanted: Any) -> None:
    """Refuse a single bit that differs, in values, shapes or dtypes."""
    if isinstance(wanted, tuple):
        assert type(found) is type(wanted)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other)
        return
    if isinstance(wanted, sp.Ragged):
        assert isinstance(found, sp.Ragged)
        assert np.array_equal(found.shapes, wanted.shapes)
        found, wanted = found.compact().values, wanted.compact().values
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert found.tobytes() == wanted.tobytes()


def on_disk(found: Any) -> Any:
    """Read what is stored, as it was in memory."""
    if isinstance(found, tuple):
        return (
            type(found)(*map(on_disk, found))
            if hasattr(found, "_fields")
            else tuple(map(on_disk, found))
        )
    if isinstance(found, sp.Ragged):
        return found.map_values(on_disk)
    return found.read(0, found.shape[0]) if hasattr(found, "read") else found


@pytest.mark.parametrize("how", FIXED)
def test_fixed_columns_are_read_from_every_format(tmp_path, kernels, how):
    vectors = np.random.default_rng(0).normal(size=(11, 3))
    factor = np.arange(11.0)
    wanted = sp.run(kernels.length, [vectors, factor], rows=3)
    same(sp.run(kernels.length, [stored(vectors, tmp_path, how), factor], rows=3), wanted)


@pytest.mark.parametrize("how", ["npy", "memmap", "zarr", "dataset", "object"])
@pytest.mark.parametrize("kernel", ["pull", "near", "moments", "spread", "phase"])
def test_flat_rows_of_ragged_columns_are_read(tmp_path, kernels, how, kernel):
    atoms = kernels.make_atoms(SIZES)
    links = np.concatenate([np.arange(n)[:, None] - [1, 0] for n in SIZES])
    atoms["neighbours"] = sp.Ragged(links, SIZES)
    kernel = getattr(kernels, kernel)
    names = {"pull": ["positions", "charges", "matrix"], "near": ["charges", "neighbours"]}
    data = [atoms[name] for name in names.get(kernel.name, ["charges"])]
    shared = {"scale": 0.5} if kernel.name == "pull" else {}
    given = [
        column.map_values(lambda values, n=n: stored(values, tmp_path / str(n), how))
        if isinstance(column, sp.Ragged) else stored(column, tmp_path / str(n), how)
        for n, column in enumerate(data)
    ]  # fmt: skip
    for slots in (1, 3, "exact"):
        plan = sp.plan(kernel, data, slots=slots, rows=2)
        wanted = sp.run(kernel, data, plan, **shared)
        same(sp.run(kernel, given, plan, **shared), wanted)
        same(sp.run(kernel, [data[0], *given[1:]], plan, **shared), wanted)  # and one in memory
        same(sp.run(kernel, given, sp.plan(kernel, given, slots=slots, rows=2), **shared), wanted)


def test_files_of_several_shapes_are_items(tmp_path, kernels):
    arrays = [np.random.default_rng(n).normal(size=(n, 5 - n)) for n in (3, 1, 4, 2, 2)]
    paths = [tmp_path / f"{number}.npy" for number in range(5)]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    weights = sp.Ragged.from_list([array[0] for array in arrays])
    wanted = sp.run(kernels.weigh, [arrays, weights], rows=2)
    same(sp.run(kernels.weigh, [paths, weights], rows=2), wanted)
    same(sp.run(kernels.weigh, [str(tmp_path / "*.npy"), weights], rows=2), wanted)


def test_list_columns_of_parquet_are_read(tmp_path, kernels):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lists = [np.random.default_rng(n).normal(size=n).tolist() for n in (*SIZES, 0)]
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"x": pa.array(lists)}), path, row_group_size=3)
    wanted = sp.run(kernels.total, [sp.Ragged.from_list(map(np.array, lists))], rows=2, scale=3.0)
    same(sp.run(kernels.total, [f"{path}::x"], rows=2, scale=3.0), wanted)


@pytest.mark.parametrize("suffix", ["npy", "zarr", "h5"])
@pytest.mark.parametrize("kernel", ["pull", "moments", "spread", "phase"])
def test_outputs_on_disk_hold_what_memory_would(tmp_path, kernels, suffix, kernel):
    pytest.importorskip({"zarr": "zarr", "h5": "h5py"}.get(suffix, "numpy"))
    atoms = kernels.make_atoms(SIZES)
    kernel = getattr(kernels, kernel)
    data = list(atoms.values()) if kernel.name == "pull" else [atoms["charges"]]
    shared = {"scale": 0.5} if kernel.name == "pull" else {}
    plan = sp.plan(kernel, data, slots=2, rows=2)
    wanted = sp.run(kernel, data, plan, **shared)
    count = len(wanted)
    paths = [tmp_path / f"out{n}.{suffix}" for n in range(count)]
    found = sp.run(kernel, data, plan, out=paths, **shared)
    same(on_disk(found), wanted)
    for path, output in zip(paths, wanted, strict=True):
        flat = output.compact().values if isinstance(output, sp.Ragged) else output
        values = open_array(str(path), "test")
        assert values.read(0, values.shape[0]).tobytes() == np.asarray(flat).tobytes()
    some = [None, *(tmp_path / f"again{n}.{suffix}" for n in range(1, count))]
    found = sp.run(kernel, data, plan, out=some, **shared)
    assert not hasattr(found[0], "read")
    same(on_disk(found), wanted)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [p.name for p in paths] + [p.name for p in some[1:]]
    )


def test_outputs_go_to_arrays_that_are_there(tmp_path, kernels):
    data = [np.random.default_rng(0).normal(size=(9, 3)), np.arange(9.0)]
    wanted = sp.run(kernels.length, data)
    zarr, h5py = pytest.importorskip("zarr"), pytest.importorskip("h5py")
    array = zarr.create_array(store=str(tmp_path / "a.zarr"), shape=(9,), dtype="f8", chunks=(2,))
    sp.run(kernels.length, data, rows=2, out=array)
    same(array[...], wanted)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("x", shape=(9,), dtype="f8")
        sp.run(kernels.length, data, rows=2, out=made)
        same(made[...], wanted)
        with pytest.raises(sp.DataError, match=r"\(9,\).*float64"):
            sp.run(kernels.length, data, out=file.create_dataset("y", shape=(9,), dtype="f4"))
        with pytest.raises(sp.DataError, match=r"\(8,\).*\(9,\)"):
            sp.run(kernels.length, data, out=file.create_dataset("z", shape=(8,), dtype="f8"))


def test_items_of_one_shape_keep_their_axes_in_an_output(tmp_path, kernels):
    images = [np.random.default_rng(n).normal(size=(3, 2)) for n in range(5)]
    weights = [image[0] for image in images]
    wanted = sp.run(kernels.weigh, [images, weights], rows=2)
    out = [tmp_path / "a.npy", tmp_path / "b.npy", tmp_path / "c.npy"]
    sp.run(kernels.weigh, [images, weights], rows=2, out=out)
    assert np.load(out[0]).shape == (5, 3, 2)
    assert np.load(out[1]).shape == (5, 2)
    for path, output in zip(out, wanted, strict=True):
        assert (
            np.load(path).ravel().tobytes()
            == np.asarray(
                output.compact().values if isinstance(output, sp.Ragged) else output
            ).tobytes()
        )


def test_no_items_give_empty_results(tmp_path, kernels):
    np.save(tmp_path / "empty.npy", np.zeros((0, 3)))
    data = [tmp_path / "empty.npy", np.zeros(0)]
    assert sp.run(kernels.length, data).shape == (0,)
    found = sp.run(kernels.length, data, out=tmp_path / "out.npy")
    assert found.shape == (0,)
    assert np.load(tmp_path / "out.npy").shape == (0,)
    none = sp.Ragged(np.zeros(0), np.zeros(0, int))
    found = sp.run(kernels.phase, [none], out=[tmp_path / "a.npy", None])
    assert len(found[0]) == 0
    assert found[1].shape == (0,)


def test_items_without_rows_are_read_beside_others(tmp_path, kernels):
    sizes = [0, 3, 0, 0, 2, 0]
    column = sp.Ragged(np.arange(5.0), sizes)
    kept = column.map_values(lambda values: stored(values, tmp_path, "npy"))
    wanted = sp.run(kernels.phase, [column], rows=2)
    same(sp.run(kernels.phase, [kept], rows=2), wanted)
    same(on_disk(sp.run(kernels.phase, [kept], rows=2, out=[tmp_path / "o.npy", None])), wanted)


@pytest.mark.parametrize("on", ["torch", "jax"])
@pytest.mark.parametrize("kernel", ["pull", "weigh"])
def test_other_frameworks_compute_what_lies_on_disk(tmp_path, kernels, on, kernel):
    pytest.importorskip(on)
    if on == "jax":
        pytest.importorskip("jax").config.update("jax_enable_x64", True)
    kernel = getattr(kernels, kernel)
    if kernel.name == "pull":
        data, shared = list(kernels.make_atoms(SIZES).values()), {"scale": 0.5}
    else:
        images = [np.random.default_rng(n).normal(size=(n, 2)) for n in SIZES]
        data = [sp.Ragged.from_list(images, 2), sp.Ragged.from_list([i[0] for i in images])]
        shared = {}
    kept = [
        c.map_values(lambda v, n=n: stored(v, tmp_path / f"{n}", "npy"))
        if isinstance(c, sp.Ragged) else stored(c, tmp_path / f"{n}", "npy")
        for n, c in enumerate(data)
    ]  # fmt: skip
    plan = sp.plan(kernel, data, on=on, slots=2, rows=2)
    wanted = sp.run(kernel, data, plan, on=on, **shared)
    found = sp.run(kernel, kept, plan, on=on, **shared)
    out = [tmp_path / f"out{n}.npy" for n in range(len(wanted))]
    written = on_disk(sp.run(kernel, kept, plan, on=on, out=out, **shared))
    for one, put, other in zip(found, written, wanted, strict=True):
        flat = [
            np.asarray(c.compact().values if isinstance(c, sp.Ragged) else c).ravel()
            for c in (one, put, other)
        ]
        np.testing.assert_allclose(flat[0], flat[2], rtol=1e-13)
        np.testing.assert_array_equal(flat[0], flat[1])
        if on == "torch":
            same(one, other)


def test_indices_on_disk_are_checked_as_those_in_memory(tmp_path, kernels):
    charges = sp.Ragged(np.arange(5.0), [2, 3])
    links = sp.Ragged(np.array([[0], [1], [0], [3], [1]]), [2, 3])
    with pytest.raises(sp.DataError, match="point outside") as wanted:
        sp.run(kernels.near, [charges, links], rows=1)
    kept = links.map_values(lambda values: stored(values, tmp_path, "npy"))
    with pytest.raises(sp.DataError, match="point outside") as found:
        sp.run(kernels.near, [charges, kept], rows=1)
    assert "an index 3" in str(wanted.value)
    assert "an index 3" in str(found.value)
    assert "Item 1 " in str(wanted.value)
    assert "Item 1 " in str(found.value)


@sp.kernel("(n),(m)->()", ragged=("n", "m"), fill={"x": 0.0, "at": -1}, index={"at": "n"})
def picked(x, at):
    """Sum what indices name."""
    safe = np.where(at >= 0, at, 0)
    found = np.take_along_axis(np.concatenate([x, np.zeros((*x.shape[:-1], 1))], -1), safe, -1)
    return np.where(at >= 0, found, 0.0).sum(axis=-1)


def test_an_item_without_what_its_indices_count_may_have_fill_indices(tmp_path):
    x, at = sp.Ragged(np.arange(3.0), [0, 3]), sp.Ragged(np.array([-1, 2, 0]), [1, 2])
    wanted = sp.run(picked, [x, at])
    assert wanted.tolist() == [0.0, 2.0]
    same(sp.run(picked, [x, at.map_values(lambda v: stored(v, tmp_path, "npy"))]), wanted)


def test_devices_beside_data_on_disk_or_out_are_refused(tmp_path, kernels):
    data = [stored(np.ones((4, 3)), tmp_path, "npy"), np.ones(4)]
    with pytest.raises(sp.PlanError, match="devices=2 beside data on disk"):
        sp.run(kernels.length, data, devices=2)
    with pytest.raises(sp.PlanError, match="devices=2 beside out="):
        sp.run(kernels.length, [np.ones((4, 3)), np.ones(4)], devices=2, out=tmp_path / "o.npy")
    assert not (tmp_path / "o.npy").exists()


def test_gradients_and_traces_beside_data_on_disk_or_out_are_refused(tmp_path, kernels):
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    vectors = stored(np.ones((4, 3)), tmp_path, "npy")
    factor = torch.ones(4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(sp.FrameworkError, match="two frameworks: numpy and torch"):
        sp.run(kernels.length, [vectors, factor])
    data = [torch.ones((4, 3), dtype=torch.float64), factor]
    with pytest.raises(sp.FrameworkError, match=r"out=.*gradient"):
        sp.run(kernels.length, data, out=tmp_path / "o.npy")
    with pytest.raises(sp.FrameworkError, match="two frameworks: jax and numpy"):
        jax.jit(lambda f: sp.run(kernels.length, [vectors, f]))(np.ones(4))
    with pytest.raises(sp.FrameworkError, match=r"out=.*trace"):
        jax.grad(
            lambda f: sp.run(
                kernels.length, [jax.numpy.ones((4, 3)), f], out=tmp_path / "o.npy"
            ).sum()
        )(jax.numpy.ones(4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["column.npy"]


@pytest.mark.parametrize("kernel", ["pull", "moments"])
def test_an_executor_reads_per_batch_and_gives_the_same(tmp_path, kernels, kernel):
    from concurrent.futures import ThreadPoolExecutor

    kernel = getattr(kernels, kernel)
    atoms = kernels.make_atoms(SIZES)
    data = list(atoms.values()) if kernel.name == "pull" else [atoms["charges"]]
    shared = {"scale": 0.5} if kernel.name == "pull" else {}
    kept = [
        c.map_values(lambda v, n=n: stored(v, tmp_path / f"{n}", "npy"))
        if isinstance(c, sp.Ragged) else stored(c, tmp_path / f"{n}", "npy")
        for n, c in enumerate(data)
    ]  # fmt: skip
    plan = sp.plan(kernel, data, slots=2, rows=2)
    wanted = sp.run(kernel, data, plan, **shared)
    with ThreadPoolExecutor(2) as pool:
        same(sp.run(kernel, kept, plan, executor=pool, **shared), wanted)
        with pytest.raises(sp.PlanError, match="out= beside executor="):
            sp.run(kernel, kept, plan, executor=pool, out=tmp_path / "o.npy", **shared)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    slots=st.sampled_from([1, 2, "exact"]),
    rows=st.integers(1, 4),
    kept=st.tuples(st.booleans(), st.booleans()),
    out=st.booleans(),
)
def test_any_mixture_of_places_gives_the_same(tmp_path_factory, sizes, slots, rows, kept, out):
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(len(sizes))
    x = sp.Ragged(rng.normal(size=(sum(sizes), 2)), sizes)
    y = rng.normal(size=(len(sizes), 2))
    if max(sizes) == 0:
        return
    plan = sp.plan(scaled, [x, y], slots=slots, rows=rows)
    wanted = sp.run(scaled, [x, y], plan)
    data = [
        x.map_values(lambda v: stored(v, folder / "x", "npy")) if kept[0] else x,
        stored(y, folder / "y", "object") if kept[1] else y,
    ]
    where = [folder / "o.npy", None] if out else None
    found = on_disk(sp.run(scaled, data, plan, out=where))
    if out:  # items of one shape have it on disk
        alike = len(set(sizes)) == 1
        assert alike or isinstance(found[0], sp.Ragged)
        flat = found[0].reshape(-1) if alike else found[0].compact().values
        wanted = (wanted[0].compact().values, wanted[1])
        found = (flat, found[1])
    same(found, wanted)


@sp.kernel("(n,2),(2)->(n),()", ragged="n", fill={"x": 0.0})
def scaled(x, y):
    """Rows scaled, and their sum."""
    rows = (x * y[..., None, :]).sum(axis=-1)
    return rows, rows.sum(axis=-1)


@pytest.mark.parametrize("bad", ["nothing.npy", "text.txt", "objects.npy"])
def test_columns_that_cannot_be_read_are_named(tmp_path, kernels, bad):
    (tmp_path / "text.txt").write_text("1 2 3")
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(sp.DataError, match=f"run: length: column 'vector'.*{bad}"):
        sp.run(kernels.length, [tmp_path / bad, np.ones(2)])


def test_an_output_that_exists_is_kept_unless_it_may_be_replaced(tmp_path, kernels):
    data = [np.ones((4, 3)), np.arange(4.0)]
    out = tmp_path / "o.npy"
    out.write_bytes(b"precious")
    with pytest.raises(sp.DataError, match="overwrite=True"):
        sp.run(kernels.length, data, out=out)
    assert out.read_bytes() == b"precious"
    sp.run(kernels.length, data, out=out, overwrite=True)
    np.testing.assert_array_equal(np.load(out), [0, 3, 6, 9])
    assert names(tmp_path) == ["o.npy"]


@pytest.mark.parametrize("bad", [3, ["a.npy"], "a.txt", np.zeros(4)])
def test_outputs_that_are_no_arrays_are_refused(tmp_path, kernels, bad, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = kernels.make_atoms([2, 3])
    with pytest.raises((sp.DataError, sp.PlanError), match="out="):
        sp.run(kernels.pull, data, scale=1.0, out=bad if isinstance(bad, list) else [bad, None])
    assert not names(tmp_path)


@pytest.mark.parametrize("on", ["numpy", "torch", "jax"])
def test_an_output_that_is_its_input_is_written_before_that_is_read_over(tmp_path, monkeypatch, on):
    pytest.importorskip(on)
    if on == "jax":
        pytest.importorskip("jax").config.update("jax_enable_x64", True)

    @sp.kernel("(n)->(n)", ragged="n", exact="n")
    def same_again(x):
        return x

    def slow(self, start, values, own=FileArray.write):
        time.sleep(0.02)
        own(self, start, values)

    x = np.random.default_rng(0).normal(size=(16, 512))
    rows = sp.Ragged(x.ravel(), [512] * 16).map_values(lambda v: stored(v, tmp_path, "npy"))
    plan = sp.plan(same_again, [rows], on=on, rows=1, peak=(0, 4096), budget="64 KiB", on_disk=True)
    monkeypatch.setattr(FileArray, "write", slow)
    sp.run(same_again, [rows], plan, on=on, out=tmp_path / "o.npy")
    same(np.load(tmp_path / "o.npy"), x)


def test_a_kernel_that_fails_leaves_no_file_and_says_which_part(tmp_path):
    calls = []

    @sp.kernel("(3)->()")
    def fails(x):
        if len(x) and x[0, 0] >= 4:
            raise ZeroDivisionError("of all things")
        calls.append(len(x))
        return x.sum(axis=-1)

    x = np.repeat(np.arange(8.0), 3).reshape(8, 3)
    with pytest.raises(ZeroDivisionError) as caught:
        sp.run(fails, [x], rows=1, out=tmp_path / "o.npy")
    assert any("items 4 to 4" in note and "4 parts were" in note for note in caught.value.__notes__)
    assert not names(tmp_path)


def test_a_store_that_shrinks_while_it_is_read_is_told(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.ones((64, 8192)))

    @sp.kernel("(k)->()")
    def cuts(x):
        if len(x):
            os.truncate(path, 4096)
        return x.sum(axis=-1)

    plan = sp.plan(cuts, [path], rows=2, peak=(0, 1 << 16), budget="2 MiB")
    with pytest.raises(sp.DataError, match=r"x\.npy.*(changed|cut off)"):
        sp.run(cuts, [path], plan, out=tmp_path / "o.npy")
    assert names(tmp_path) == ["x.npy"]


def test_a_store_that_becomes_another_array_is_told(tmp_path):
    path = tmp_path / "x.npy"
    other = np.ones((8192, 64))
    np.save(path, np.ones((64, 8192)))

    @sp.kernel("(k)->()")
    def changes(x):
        if len(x):
            with path.open("r+b") as file:
                np.lib.format.write_array(file, other)
        return x.sum(axis=-1)

    plan = sp.plan(changes, [path], rows=2, peak=(0, 1 << 16), budget="2 MiB")
    with pytest.raises(sp.DataError, match=r"x\.npy.*changed"):
        sp.run(changes, [path], plan)


def test_no_file_stays_open(tmp_path, kernels):
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("the system does not list open files")
    data = [stored(np.ones((9, 3)), tmp_path, "npy"), np.ones(9)]
    sp.run(kernels.length, data, out=tmp_path / "first.npy")
    gc.collect()
    before = len(names(folder))
    for number in range(5):
        sp.run(kernels.length, data, rows=2, out=tmp_path / f"{number}.npy", resume=tmp_path / "r")
        for path in (tmp_path / "r").iterdir():
            path.unlink()
    gc.collect()
    assert len(names(folder)) <= before
