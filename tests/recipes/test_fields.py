"""The recipe of fields on every kind of store: the same results, within the budget, or a reason."""

from __future__ import annotations

import math
import os
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import stowplan as sp
from stowplan.kernels import fields as kernels
from stowplan.planners.pencils import plan_pencils
from stowplan.recipes import fields
from stowplan.recipes.fields_job import FieldJob, passes_by_slabs
from stowplan.stores.field_blocks import cut_fields

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (6, 5, 4, 3)
HOW: dict[str, Any] = {"spacing": (0.5, 0.4, 0.3), "mu": 2.0, "beta": 0.8, "lam": 0.7}


def names(folder: Path) -> list[str]:
    """Names of what a folder holds."""
    return sorted(path.name for path in folder.iterdir())


def made(count: int = 3, shape: tuple[int, ...] = SHAPE, dtype: Any = "f8") -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(count):
        field = rng.normal(size=shape)
        if np.dtype(dtype).kind == "c":
            field = field + 1j * rng.normal(size=shape)
        found.append(field.astype(dtype))
    return found


def slow(field: np.ndarray, spacing: Any, mu: float, beta: float, lam: float) -> np.ndarray:
    """Solve by sums over all modes, one axis after the other, as matrices."""
    found = field.astype(complex)
    square = np.zeros(field.shape[:3])
    for axis in range(3):
        n = field.shape[axis]
        j = np.arange(n)
        matrix = np.exp(-2j * np.pi * np.outer(j, j) / n)
        found = np.moveaxis(np.tensordot(matrix, found, (1, axis)), 0, axis)
        k = 2 * np.pi * np.where(j < (n + 1) // 2, j, j - n) / (n * spacing[axis])
        square = square + (k**2).reshape([-1 if a == axis else 1 for a in range(3)])
    found = found / (mu * square**beta + lam)[..., None]
    for axis in range(3):
        n = field.shape[axis]
        matrix = np.exp(2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) / n
        found = np.moveaxis(np.tensordot(matrix, found, (1, axis)), 0, axis)
    return found if field.dtype.kind == "c" else found.real


def store_of(values: list[np.ndarray], folder: Path, how: str) -> Any:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"s{number}.npy" for number in range(len(values))]
    if how in ("pattern", "folder", "paths", "memmaps", "mixed"):
        for path, value in zip(paths, values, strict=True):
            np.save(path, value)
    if how == "mixed":
        return [paths[0], values[1], np.load(paths[2], mmap_mode="r")]
    if how == "memmaps":
        return [np.load(path, mmap_mode="r") for path in paths]
    if how in ("group", "zarr"):
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(str(folder / "g.zarr"), mode="w")
        for number, value in enumerate(values):
            array = group.create_array(f"s{number}", shape=value.shape, dtype=value.dtype)
            array[...] = value
        return group if how == "group" else str(folder / "g.zarr")
    if how == "hdf5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(folder / "a.h5", "w") as file:
            for number, value in enumerate(values):
                file.create_dataset(f"s{number}", data=value)
        return [f"{folder}/a.h5::s{number}" for number in range(len(values))]
    if how in ("torch", "jax"):
        framework = pytest.importorskip(how)
        if how == "jax":
            framework.config.update("jax_enable_x64", True)
        asarray = framework.asarray if how == "torch" else framework.numpy.asarray
        return [asarray(value) for value in values]
    return {"pattern": str(folder / "s*.npy"), "folder": folder, "paths": paths}.get(how, values)


STORES = ["arrays", "paths", "pattern", "folder", "memmaps", "mixed", "group", "zarr", "hdf5",
          "torch", "jax"]  # fmt: skip


@pytest.mark.parametrize("how", STORES)
@pytest.mark.parametrize("dtype", ["f8", "c16", "f4", "c8"])
def test_a_solve_of_any_store_is_that_of_sums_over_modes(tmp_path, how, dtype):
    values = made(dtype=dtype)
    found = fields.solve(store_of(values, tmp_path, how), **HOW)
    assert len(found) == 3
    for one, value in zip(found, values, strict=True):
        assert str(one.dtype).endswith(np.dtype(dtype).name)
        assert tuple(one.shape) == SHAPE
        wide = value.astype(np.result_type(dtype, "f8"))
        wanted = slow(wide, **HOW)
        bound = 1e-13 if np.dtype(dtype).itemsize in (8, 16) and dtype != "c8" else 2e-6
        assert np.abs(np.asarray(one) - wanted).max() <= bound * np.abs(wanted).max() * 10


@pytest.mark.parametrize("how", ["paths", "memmaps", "mixed", "group", "hdf5"])
@pytest.mark.parametrize("out", ["o.npy", "o.zarr", "o.h5::deep/er", "folder"])
def test_results_on_disk_are_those_in_memory(tmp_path, how, out):
    pytest.importorskip({"zarr": "zarr", "h5::deep/er": "h5py"}.get(out.partition(".")[2], "numpy"))
    values = made()
    store = store_of(values, tmp_path / "in", how)
    wanted = fields.solve(values, **HOW)
    found = fields.solve(store, out=tmp_path / out, **HOW)
    if out == "folder":
        assert len(names(tmp_path / "folder")) == 3
        found = [one.read(0, SHAPE[0]) for one in found]
    else:
        found = list(found.read(0, 3))
    for one, other in zip(found, wanted, strict=True):
        assert one.tobytes() == np.asarray(other).tobytes()
    with pytest.raises(sp.DataError, match="overwrite=True"):
        fields.solve(store, out=tmp_path / out, **HOW)
    fields.solve(store, out=tmp_path / out, overwrite=True, **HOW)
    left = [p.name for p in tmp_path.rglob("*") if "stowplan" in p.name]
    assert not left


@pytest.mark.parametrize("on", ["torch", "jax"])
def test_another_framework_solves_what_is_on_disk(tmp_path, on):
    pytest.importorskip(on)
    if on == "jax":
        pytest.importorskip("jax").config.update("jax_enable_x64", True)
    values = made()
    found = fields.solve(store_of(values, tmp_path, "paths"), on=on, **HOW)
    for one, other in zip(found, fields.solve(values, **HOW), strict=True):
        np.testing.assert_allclose(np.asarray(one), other, rtol=0, atol=1e-14)


def test_one_field_gives_one_result(tmp_path):
    (value,) = made(1)
    np.save(tmp_path / "s.npy", value)
    wanted = fields.solve(value, **HOW)
    assert wanted.shape == SHAPE
    assert fields.solve(tmp_path / "s.npy", **HOW).tobytes() == wanted.tobytes()
    found = fields.solve(tmp_path / "s.npy", out=tmp_path / "o.npy", **HOW)
    assert found.shape == SHAPE
    assert np.load(tmp_path / "o.npy").tobytes() == wanted.tobytes()


@pytest.mark.parametrize("budget", ["300 KiB", "60 KiB", "12 KiB"])
@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_chunked_sums_and_solves_equal_unchunked_ones(tmp_path, budget, dtype):
    values = made(2, (8, 6, 5, 4, 7), dtype)
    store = store_of(values, tmp_path, "paths")
    whole = fields.spectrum(values, spacing=0.5)
    parts = fields.spectrum(store, spacing=0.5, budget=budget)
    for one, other in zip(parts.each, whole.each, strict=True):
        np.testing.assert_allclose(one.sums, other.sums, rtol=1e-13)
        np.testing.assert_array_equal(one.counts, other.counts)
    for value, one in zip(values, parts.each, strict=True):  # Parseval
        assert one.sums.sum() == pytest.approx((np.abs(value) ** 2).sum(), rel=1e-13)
    whole, parts = (fields.radial(s, spacing=0.5, budget=b)
                    for s, b in ((values, 0.8), (store, budget)))  # fmt: skip
    for one, other in zip(parts.each, whole.each, strict=True):
        scale = np.abs(other.sums).max()
        np.testing.assert_allclose(one.sums, other.sums, rtol=0, atol=1e-13 * scale)
    wanted = fields.solve(values, spacing=0.5, lam=1.0)
    found = fields.solve(store, spacing=0.5, lam=1.0, budget=budget)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)


def test_memory_of_a_solve_stays_within_the_budget(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        np.save(tmp_path / f"s{number}.npy", rng.normal(size=(8, 8, 8, 1024)))  # 4 MiB
    store = str(tmp_path / "s*.npy")
    how: dict[str, Any] = {"spacing": 1.0, "lam": 1.0, "overwrite": True, "out": tmp_path / "o.npy"}
    fields.solve(store, budget="8 MiB", **how)
    for budget in (3 << 20, 8 << 20):
        tracemalloc.start()
        fields.solve(store, budget=budget, **how)
        fields.spectrum(store, spacing=1.0, budget=budget)
        measured = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert measured <= budget


def test_fields_passed_slab_by_slab_go_on_and_lie_beside_smaller_ones(tmp_path, monkeypatch):
    from stowplan.recipes import fields_large

    rng = np.random.default_rng(0)
    shapes = [(32, 32, 32), (8, 8, 8), (32, 32, 32)]
    values = [rng.normal(size=shape) for shape in shapes]
    store = store_of(values, tmp_path / "in", "paths")
    how: dict[str, Any] = {"spacing": 0.5, "lam": 1.0, "budget": "300 KiB"}
    assert passes_by_slabs(32**3 * 8, 300 << 10)
    assert not passes_by_slabs(8**3 * 8, 300 << 10)
    wanted = fields.solve(values, spacing=0.5, lam=1.0)
    done: list[Any] = []
    own = fields_large.run_pencils

    def solved(*args: Any, **more: Any) -> None:
        done.append(args)
        if len(done) == 2:
            raise KeyboardInterrupt
        own(*args, **more)

    monkeypatch.setattr(fields_large, "run_pencils", solved)
    how.update(out=tmp_path / "out", resume=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        fields.solve(store, **how)
    found = fields.solve(store, **how)
    assert len(done) == 3  # the first large field was not solved again
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.read(0, one.shape[0]), other, rtol=0, atol=1e-13)
    assert names(tmp_path) == ["in", "out", "run"]


def test_a_field_that_no_slab_of_fits_is_refused_with_the_bytes(tmp_path):
    np.save(tmp_path / "s.npy", np.zeros((64, 64, 64)))
    with pytest.raises(sp.BudgetError, match=r"the budget is .*1 KiB.*bytes"):
        fields.solve(tmp_path / "s.npy", spacing=1.0, lam=1.0, budget="1 KiB")


BIG = (64, 64, 64, 16, 16, 16, 100)


def test_a_field_of_terabytes_is_answered_from_shape_and_dtype_in_a_second(tmp_path):
    for budget in ("2 GiB", "100 MB", "20 MB"):
        begin = time.perf_counter()
        found = fields.estimate(BIG, "complex128", budget=budget, out=tmp_path / "o.npy")
        text = str(found)
        assert time.perf_counter() - begin < 1
        assert found.field_bytes == 1_717_986_918_400 == found.output_bytes
        assert found.place_bytes == 64**3 * 16
        assert "1717986918400 bytes (1.562 TiB)" in text
        if found.output_free < found.output_bytes:
            assert not found.fits
            assert found.fitting is not None
            size = np.prod(found.fitting, dtype=object) * 16
            assert size <= found.output_free
            assert found.fitting[:3] == (64, 64, 64)
            assert f"{found.fitting} of one field would fit" in text


@pytest.mark.skipif(os.name == "nt", reason="sparse files")
def test_a_solve_of_a_field_of_terabytes_is_refused_before_its_first_byte(tmp_path):
    path = tmp_path / "s.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<c16", "fortran_order": False, "shape": BIG}
        )
        try:
            file.truncate(file.tell() + 1_717_986_918_400)
        except OSError as error:
            pytest.skip(f"the file system has no such files: {error}")
    begin = time.perf_counter()
    with pytest.raises(sp.StoreError, match=r"1717986918400 bytes .*are needed.*are free"):
        fields.solve(path, spacing=1.0, lam=1.0, out=tmp_path / "o.npy", budget="1 GiB")
    assert time.perf_counter() - begin < 2
    assert names(tmp_path) == ["s.npy"]


def test_an_estimate_is_how_the_job_is_cut():
    for shape, axes, budget in (
        ((8, 8, 8, 4, 4, 100), (0, 1, 2), 1 << 20), ((8, 6, 4, 5), (2, 0), 1 << 16),
        ((32, 32, 32, 2), (0, 1, 2), 1 << 20),
    ):  # fmt: skip
        found = fields.estimate(shape, "f8", axes=axes, budget=budget, fields=3)
        place = 8 * np.prod([shape[axis] for axis in axes])
        assert found.output_bytes == 3 * 8 * np.prod(shape)
        if passes_by_slabs(place, budget):
            plan = plan_pencils(shape, 16, budget=budget // 2, axes=axes, real=True)
            assert (found.passes, found.scratch_bytes) == (len(plan.passes), plan.scratch_bytes)
            assert found.moved_bytes == 3 * plan.total_bytes
            assert found.blocks == 0
        else:
            blocks = cut_fields([shape], axes, 8, budget // 16)
            assert found.blocks == len(blocks)
            assert found.passes == 1
            assert found.block_bytes <= max(budget // 16, place)


@pytest.mark.parametrize(
    ("grid", "size", "budget", "blocks"),  # MiB
    [
        ((8, 8, 8), 3, 16, 1),  # two have room beside 8 MiB
        ((8, 8, 8), 3, 12, 2),  # they have not: an eighth of the budget
        ((8, 8, 8), 24, 44, 3),  # or a quarter of what is left beside 8 MiB, if that is more
        ((32, 16, 1), 3, 16, 2),  # long transforms take longer than reading does: an eighth
    ],
)
def test_fields_to_be_summed_are_read_whole_where_two_fit(tmp_path, grid, size, budget, blocks):
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", np.ones((*grid, size * 128), complex))
    found = fields.spectrum(str(tmp_path / "*.npy"), spacing=1.0, budget=budget << 20)
    assert len(found.plan.lengths) == 2 * blocks


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"dtype": "int32"}, "real or complex"),
        ({"dtype": "nonsense"}, "nonsense"),
        ({"shape": (4, 0, 4)}, "shape without zeros"),
        ({"fields": 0}, "0 fields"),
        ({"axes": (0, 0)}, "axes"),
        ({"axes": (0, 5)}, "axes"),
    ],
)
def test_an_estimate_of_nothing_is_refused(how, message):
    with pytest.raises(sp.DataError, match=message):
        fields.estimate(**{"shape": (4, 4, 4), "dtype": "f8", **how})


@pytest.mark.parametrize("function", [fields.solve, fields.spectrum, fields.radial])
@pytest.mark.parametrize("spacing", [0.0, -1.0, np.nan, np.inf, (1.0, 2.0), "1"])
def test_a_spacing_that_is_none_is_refused(function, spacing):
    with pytest.raises(sp.DataError, match="spacing"):
        function(np.zeros((4, 4, 4)), spacing=spacing)


def test_a_mean_with_lam_0_is_refused_naming_field_and_place(tmp_path):
    values = made(3)
    values = [v - v.mean(axis=(0, 1, 2), keepdims=True) for v in values]
    fields.solve(values, spacing=1.0)
    values[1][..., 2] += 1.0
    store = store_of(values, tmp_path, "paths")
    with pytest.raises(sp.DataError, match=r"s1\.npy.* mean .*\(2,\)"):
        fields.solve(store, spacing=1.0, out=tmp_path / "o.npy")
    assert not (tmp_path / "o.npy").exists()
    fields.solve(store, spacing=1.0, lam=0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("budget", ["2 MiB", "8 KiB"])
def test_what_is_not_finite_is_named_by_field_and_index(tmp_path, value, budget):
    values = made(3)
    values[2][3, 1, 2, 1] = value
    store = store_of(values, tmp_path, "paths")
    for function, more in (
        (fields.solve, {"lam": 1.0, "out": tmp_path / "o.npy"}), (fields.spectrum, {}),
        (fields.radial, {}),
    ):  # fmt: skip
        with pytest.raises(sp.DataError, match=r"s2\.npy.*3, 1, 2, 1"):
            function(store, spacing=1.0, check=True, budget=budget, **more)
    assert not (tmp_path / "o.npy").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: [v[0], v[1].astype("f4"), v[2]], "field 1 .* dtype float32, field 0"),
        (lambda v: [v[0], v[1].astype("i4")], "field 1 .* dtype int32"),
        (lambda v: [v[0].astype(bool)], "field 0 .* bool"),
        (lambda v: [v[0], v[1][:0]], "field 1 .* no values"),
        (lambda v: [v[0], "nothing.npy"], "nothing.npy"),
        (lambda v: [], "no fields"),
        (lambda v: [v[0], 3], "field 1 is a int"),
    ],
)
def test_stores_of_mixed_fields_are_refused_by_number(change, message):
    with pytest.raises(sp.DataError, match=message):
        fields.solve(change(made()), spacing=1.0, lam=1.0)


def test_fields_of_several_shapes_go_to_a_folder(tmp_path):
    values = [made(1, shape)[0] for shape in ((4, 4, 4), (6, 4, 2, 3), (4, 4, 4))]
    wanted = [fields.solve(v, spacing=1.0, lam=1.0) for v in values]
    with pytest.raises(sp.DataError, match=r"field 1 has shape.*Name a folder"):
        fields.solve(values, spacing=1.0, lam=1.0, out=tmp_path / "o.npy")
    found = fields.solve(values, spacing=1.0, lam=1.0, out=tmp_path / "o")
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.read(0, one.shape[0]), other, rtol=0, atol=1e-14)


def test_an_output_that_is_an_input_is_refused(tmp_path):
    values = made()
    store = store_of(values, tmp_path, "paths")
    with pytest.raises(sp.DataError, match="is read"):
        fields.solve(store, out=store[1], overwrite=True, **HOW)
    with pytest.raises(sp.DataError, match="is read"):
        fields.solve(store, out=tmp_path, overwrite=True, **HOW)
    assert np.load(store[1]).tobytes() == values[1].tobytes()


def test_resume_without_an_output_of_a_solve_is_refused(tmp_path):
    with pytest.raises(sp.DataError, match="goes with out="):
        fields.solve(made(), resume=tmp_path / "run", **HOW)
    assert not names(tmp_path)


def test_tensors_that_require_a_gradient_and_traced_arrays_are_refused():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    with pytest.raises(sp.DataError, match="field 0 requires a gradient"):
        fields.solve([torch.zeros((4, 4, 4), requires_grad=True)], spacing=1.0)
    with pytest.raises((sp.FrameworkError, sp.DataError), match="trace"):
        jax.jit(lambda x: fields.solve(x, spacing=1.0))(np.zeros((4, 4, 4)))


def test_a_corrupt_chunk_is_named(tmp_path):
    pytest.importorskip("zarr")
    values = made()
    store = store_of(values, tmp_path, "zarr")
    chunk = next(p for p in (tmp_path / "g.zarr" / "s1" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    with pytest.raises(sp.DataError, match=r"g\.zarr.*s1"):
        fields.solve(store, out=tmp_path / "o.npy", **HOW)
    assert not (tmp_path / "o.npy").exists()


def test_fields_are_in_the_natural_order_of_their_names(tmp_path):
    for number in range(11):
        np.save(tmp_path / f"s{number}.npy", np.full((2, 2, 2), float(number)))
    for store in (str(tmp_path / "s*.npy"), tmp_path):
        found = fields.radial(store, spacing=1.0)
        assert [one.mean[0].real for one in found.each] == list(range(11))


def test_blocks_are_equal_where_they_can_be_and_finer_where_not(tmp_path):
    """Blocks that differ are padded copies: a budget has room for them if they are small."""
    where = "spectrum"

    def lines(shape, budget):
        np.save(tmp_path / "a.npy", np.zeros(shape))
        job = FieldJob.of(where, str(tmp_path / "a.npy"), 1.0, (0, 1, 2), budget, "numpy", None)
        size = math.prod(shape[:3])
        found = [
            math.prod(part.stop - part.start for part in block.index) // size
            for block in job._cut_to_sum(kernels.spectrum, None)
        ]
        assert sum(found) == math.prod(shape[3:])
        return found

    budget = 1 << 20  # an eighth of it has 32 lines of 8 x 8 x 8, a sixteenth 16
    assert set(lines((8, 8, 8, 1024), budget)) == {32}
    assert set(lines((8, 8, 8, 31 * 33), budget)) == {31}
    assert max(lines((8, 8, 8, 1021), budget)) <= 16  # a prime
