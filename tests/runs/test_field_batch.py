"""FieldBatch: nothing runs out of memory, nothing is lost, the budget is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp
from stowplan.runs.budgeting import usable_bytes
from stowplan.runs.field_batch import FieldBatch
from stowplan.runs.places import find_places
from stowplan.stores.scratch import PREFIX

FRAMEWORKS = ["numpy", "torch", "jax"]
SHAPE = (16, 16, 8)
BYTES = 16 * 16 * 8 * 8


def names(folder: Path) -> list[str]:
    """Names of what a folder holds."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=FRAMEWORKS)
def on(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    if request.param == "jax":
        pytest.importorskip("jax").config.update("jax_enable_x64", True)
    return str(request.param)


def put(values: np.ndarray, on: str) -> Any:
    if on == "torch":
        import torch

        return torch.asarray(values)
    if on == "jax":
        import jax

        return jax.numpy.asarray(values)
    return values


def fields_of(count: int, shape: tuple[int, ...] = SHAPE, dtype: Any = "f8") -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    return [rng.normal(size=shape).astype(dtype) for _ in range(count)]


def centred(stack: Any) -> Any:
    """As large as the fields, with some workspace."""
    xp = array_namespace(stack)
    return stack - xp.mean(stack, axis=(-3, -2, -1), keepdims=True)


def norms(stack: Any) -> Any:
    xp = array_namespace(stack)
    return xp.sum(stack * stack, axis=(-3, -2, -1)), xp.max(stack, axis=(-3, -2, -1))


@sp.kernel("(x,y,z)->()", ragged=("x", "y", "z"), exact=("x", "y", "z"))
def energy(field, *, scale):
    return scale * array_namespace(field).sum(field * field, axis=(-3, -2, -1))


def read(found: Any) -> np.ndarray:
    return found.read(0, found.shape[0]) if hasattr(found, "read") else np.asarray(found)


def test_forty_fields_of_four_budgets_are_computed_and_the_budget_is_used(on, tmp_path):
    fields = fields_of(40)
    budget = 10 * BYTES
    with FieldBatch(budget=budget, on=on, scratch=tmp_path) as batch:
        for field in fields:
            batch.add(put(field, on))
        usage = batch.usage()
        assert usage.fields == {"device": 10, "host": 0, "disk": 30}
        assert usage.bytes == {"device": 10 * BYTES, "host": 0, "disk": 30 * BYTES}
        assert usage.utilisation == 1.0
        assert (usage.loads, usage.evictions) == (0, 0)
        sums, largest = batch.run(norms)
        np.testing.assert_allclose(read(sums), [(f * f).sum() for f in fields], rtol=1e-13)
        np.testing.assert_array_equal(read(largest), [f.max() for f in fields])
        after = batch.usage()
        assert sum(after.fields.values()) == 40
        assert after.fields["device"] == 10 - after.evictions
        assert after.evicted_bytes == after.evictions * BYTES
        assert after.loads == after.fields["disk"]  # each of them once
        assert after.loaded_bytes == after.loads * BYTES
        assert batch.plan is not None
        assert batch.plan.memory is not None
        taken = batch.plan.memory.peak_bytes + after.bytes["device"]
        assert taken <= budget
        again = batch.run(norms)
        assert batch.usage().loads == 2 * after.loads
        assert batch.usage().evictions == after.evictions
        np.testing.assert_array_equal(read(again[0]), read(sums))
    assert not names(tmp_path)


def test_batches_take_the_most_rows_that_fit_and_use_the_budget(on, tmp_path):
    budget = 40 * BYTES
    with FieldBatch(budget=budget, on=on, scratch=tmp_path) as batch:
        for field in fields_of(120):
            batch.add(put(field, on))
        batch.run(norms)
        plan, held = batch.plan, batch.usage().bytes["device"]
        assert plan is not None
        assert plan.memory is not None
        peak = plan.memory.peak_bytes
        assert 0.8 * budget <= held + peak <= budget
        (rows,) = plan.rows
        _, target = find_places("test", [put(np.zeros(1), on)], None, None)
        batch_bytes = max(plan.memory.batch_bytes)
        more = batch_bytes // rows + 2 * BYTES  # a row more that is computed, and read twice
        assert held + peak + more > usable_bytes(budget - held, target.adapter) + held
        np.testing.assert_array_equal([len(b.items) for b in plan.batches[:-1]], rows)


@pytest.mark.parametrize("out", [False, True])
def test_results_as_large_as_the_fields_go_to_disk(on, tmp_path, out):
    fields = fields_of(40)
    with FieldBatch(budget=12 * BYTES, on=on, scratch=tmp_path / "s") as batch:
        (tmp_path / "s").mkdir()
        for field in fields:
            batch.add(put(field, on))
        found = batch.run(centred, out=tmp_path / "o.npy" if out else None)
        values = read(found)
        for value, field in zip(values, fields, strict=True):
            np.testing.assert_allclose(value, field - field.mean(), rtol=0, atol=1e-13)
        again = batch.run(centred, out=tmp_path / "p.npy" if out else None)
        np.testing.assert_array_equal(read(again), values)
    assert not names(tmp_path / "s")
    assert names(tmp_path) == (["o.npy", "p.npy", "s"] if out else ["s"])


def test_memory_is_within_the_budget(tmp_path):
    import tracemalloc

    shape, count = (64, 64, 16), 40  # of 512 KiB
    budget = 10 * 64 * 64 * 16 * 8
    rng = np.random.default_rng(0)
    with FieldBatch([np.ones(shape)], budget="1 GiB") as warm:
        warm.run(centred)
    tracemalloc.start()
    with FieldBatch(budget=budget, scratch=tmp_path) as batch:
        for _ in range(count):
            batch.add(rng.normal(size=shape))
        batch.run(centred)
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one = 64 * 64 * 16 * 8  # the one that is being added is the caller's
    assert peak <= budget + 2 * one


def test_kernels_share_numbers_and_take_fields_of_several_shapes(on, tmp_path):
    shapes = [(4, 4, 4), (2, 6, 4), (8, 1, 3), (4, 4, 4), (1, 1, 1), (2, 6, 4)]
    fields = [np.random.default_rng(n).normal(size=shape) for n, shape in enumerate(shapes)]
    with FieldBatch(budget=60_000, on=on, scratch=tmp_path) as batch:
        for field in fields:
            batch.add(put(field, on))
        found = batch.run(energy, scale=2.0)
        np.testing.assert_allclose(read(found), [2 * (f * f).sum() for f in fields], rtol=1e-13)
        with pytest.raises(sp.DataError, match=r"field 1 has shape \(2, 6, 4\), field 0"):
            batch.run(norms)


def test_results_come_back_in_the_framework_of_the_fields(on):
    with FieldBatch(budget="1 MiB", on=on) as batch:
        batch.add(put(np.ones((2, 2, 2)), on))
        found = batch.run(centred)
        assert type(found) is type(put(np.ones(1), on)) or on == "jax"
        assert array_namespace(found) is array_namespace(put(np.ones(1), on))


def test_a_batch_is_used_again_after_it_was_cleared(on, tmp_path):
    def total(stack: Any) -> Any:
        return array_namespace(stack).sum(stack, axis=tuple(range(1, stack.ndim)))

    with FieldBatch(budget=8 * BYTES, on=on, scratch=tmp_path) as batch:
        for shape, dtype in ((SHAPE, "f8"), ((3, 5), "f4"), (SHAPE, "f8")):
            fields = fields_of(9, shape, dtype)
            for field in fields:
                batch.add(put(field, on))
            assert len(batch) == 9
            found = read(batch.run(total))
            np.testing.assert_allclose(found, [f.sum() for f in fields], rtol=1e-4)
            batch.clear()
            assert len(batch) == 0
            assert sum(batch.usage().bytes.values()) == 0
            assert not list(tmp_path.rglob("*.raw"))
        with pytest.raises(sp.DataError, match="no fields"):
            batch.run(total)
    assert not names(tmp_path)


def test_a_hundredth_of_a_budget_is_left_to_what_lies_beside_fields(tmp_path):
    with FieldBatch(budget="4 MiB", scratch=tmp_path) as batch:
        for _ in range(64):
            batch.add(np.ones(1 << 13))  # 64 KiB
        assert batch.usage().fields == {"device": 63, "host": 0, "disk": 1}


def test_without_scratch_what_does_not_fit_is_refused_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("STOWPLAN_SCRATCH", str(tmp_path))
    with FieldBatch(budget=3 * BYTES, scratch=None) as batch:
        for field in fields_of(3):
            batch.add(field)
        with pytest.raises(sp.BudgetError, match=r"field 3 of 16 KiB does not fit.*scratch=None"):
            batch.add(np.ones(SHAPE))
        assert len(batch) == 3
    assert not names(tmp_path)


def test_what_is_on_disk_stays_there_and_is_never_removed(tmp_path):
    fields = fields_of(6)
    for number, field in enumerate(fields):
        np.save(tmp_path / f"f{number}.npy", field)
    kept = names(tmp_path)
    with FieldBatch(budget=20 * BYTES) as batch:
        batch.add(tmp_path / "f0.npy")
        batch.add(str(tmp_path / "f1.npy"))
        batch.add(np.load(tmp_path / "f2.npy", mmap_mode="r"))
        for field in fields[3:]:
            batch.add(field)
        assert batch.usage().fields == {"device": 3, "host": 0, "disk": 3}
        found = batch.run(norms)[0]
        np.testing.assert_allclose(found, [(f * f).sum() for f in fields])
        batch.clear()
    assert names(tmp_path) == kept


@pytest.mark.parametrize("how", ["pattern", "list", "folder", "group", "path", "zarr", "memmap"])
def test_a_store_is_fields_as_it_is_for_a_solve(tmp_path, how):
    fields = fields_of(11)
    for number, field in enumerate(fields):
        np.save(tmp_path / f"f{number}.npy", field)
    paths = [tmp_path / f"f{number}.npy" for number in range(11)]
    store: Any = {"pattern": str(tmp_path / "f*.npy"), "list": paths, "folder": tmp_path,
                  "path": paths[3]}.get(how)  # fmt: skip
    if how == "memmap":
        store = np.load(paths[3], mmap_mode="r")
    if how in ("group", "zarr"):
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
        for number, field in enumerate(fields):
            group.create_array(f"f{number}", shape=SHAPE, dtype="f8")[...] = field
        store = group if how == "group" else tmp_path / "g.zarr"
    wanted = fields[3:4] if how in ("path", "memmap") else fields
    with FieldBatch(store, budget="1 MiB") as batch:
        assert len(batch) == len(wanted)
        np.testing.assert_allclose(batch.run(norms)[0], [(f * f).sum() for f in wanted])


def test_a_store_without_fields_is_refused(tmp_path):
    with pytest.raises(sp.DataError, match="no file is named like"):
        FieldBatch(str(tmp_path / "*.npy"))
    with pytest.raises(sp.DataError, match=r"no \.npy files"):
        FieldBatch(tmp_path)


def test_fields_that_are_none_are_refused_by_number(tmp_path):
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    with FieldBatch([np.ones((2, 2))], budget="1 MiB") as batch:
        for bad, message in (
            (np.ones((2, 2), "f4"), "field 1 has dtype float32, field 0 has float64"),
            (np.ones((0, 2)), r"field 1 has shape \(0, 2\)"),
            (3.0, "field 1 is a float"),
            (np.float64(3.0), "field 1 is a float64"),
            ([1.0, 2.0], "field 1 is a list"),
            (tmp_path / "nothing.npy", "nothing.npy"),
            (np.array([{}]), "field 1"),
            (torch.ones(2, dtype=torch.bfloat16), "field 1"),
        ):
            with pytest.raises(sp.DataError, match=message):
                batch.add(bad)
        with pytest.raises(sp.FrameworkError, match="field 1 requires a gradient"):
            batch.add(torch.ones((2, 2), dtype=torch.float64, requires_grad=True))
        with pytest.raises(sp.FrameworkError, match="field 1 is traced"):
            jax.jit(batch.add)(np.ones((2, 2)))
        assert len(batch) == 1
        assert batch.run(lambda s: s.sum(axis=(1, 2))).tolist() == [4.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda s: s.sum(), "no array with|float|for a stack of 1 field"),
        (lambda s: s[0], r"array of shape \(16, 16, 8\) for a stack of 1 field"),
        (lambda s: (s.sum(axis=(1, 2, 3)), 3), "int for a stack of 1 field"),
        (None, "None is no function"),
    ],
)
def test_functions_that_give_no_entry_for_each_field_are_refused(function, message):
    batch = FieldBatch(fields_of(3), budget="1 MiB")
    with pytest.raises(sp.DataError, match=message):
        batch.run(function)


def test_a_function_that_gives_the_wrong_number_of_entries_later_is_refused():
    batch = FieldBatch(fields_of(4), budget="1 MiB")
    with pytest.raises((sp.DataError, sp.SignatureError), match="shape"):
        batch.run(lambda s: s.sum(axis=(1, 2, 3))[:1])


def test_an_exception_of_a_function_leaves_the_fields_and_no_file(tmp_path):
    def fails(stack: np.ndarray) -> np.ndarray:
        if (stack > 1e9).any():
            raise ZeroDivisionError
        return stack + 1

    fields = fields_of(20)
    fields[13][0, 0, 0] = 1e10
    with FieldBatch(budget=8 * BYTES, scratch=tmp_path) as batch:
        for field in fields:
            batch.add(field)
        with pytest.raises(ZeroDivisionError):
            batch.run(fails)
        assert not list(tmp_path.rglob("*results*"))
        np.testing.assert_allclose(read(batch.run(norms)[1]), [f.max() for f in fields])
    with (
        FieldBatch(fields, budget=8 * BYTES, scratch=tmp_path) as batch,
        pytest.raises(ZeroDivisionError),
    ):
        batch.run(fails, out=tmp_path / "o.npy")
    assert not names(tmp_path)


def test_a_field_larger_than_the_budget_is_refused_with_the_bytes():
    with FieldBatch(budget=BYTES) as batch:
        batch.add(np.ones(SHAPE))
        with pytest.raises(sp.BudgetError, match=f"{BYTES}|16 KiB"):
            batch.run(centred)


def test_two_batches_share_a_folder_and_nothing_else(tmp_path):
    one, two = fields_of(12), fields_of(13)
    with FieldBatch(budget=8 * BYTES, scratch=tmp_path) as first:
        with FieldBatch(budget=8 * BYTES, scratch=tmp_path) as second:
            for number in range(13):
                second.add(two[number])
                if number < 12:
                    first.add(one[number])
            found, other = read(first.run(centred)), read(second.run(centred))
        assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 1
        np.testing.assert_array_equal(found, centred(np.array(one)))
        np.testing.assert_array_equal(read(first.run(centred)), found)
    np.testing.assert_array_equal(other, centred(np.array(two)))
    assert not names(tmp_path)


def test_processes_share_a_folder_and_a_store_and_nothing_else(tmp_path):
    for number, field in enumerate(fields_of(12)):
        np.save(tmp_path / f"f{number}.npy", field)
    (tmp_path / "scratch").mkdir()
    code = (
        "import sys, numpy as np; from pathlib import Path; import test_field_batch as t\n"
        "f, seed = Path(sys.argv[1]), int(sys.argv[2])\n"
        "own = [np.random.default_rng(seed + n).normal(size=t.SHAPE) for n in range(12)]\n"
        "with t.FieldBatch(str(f / 'f*.npy'), budget=6 * t.BYTES, scratch=f / 'scratch') as b:\n"
        "    for field in own: b.add(field)\n"
        "    found = t.read(b.run(t.centred))\n"
        "store = [np.load(f / f'f{n}.npy') for n in range(12)]\n"
        "np.testing.assert_array_equal(found, t.centred(np.array(store + own)))\n"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(100 * n)], cwd=Path(__file__).parent,
            stderr=subprocess.PIPE, text=True,
        ) for n in range(2)
    ]  # fmt: skip
    for process in runs:
        text = process.communicate()[1]
        assert process.returncode == 0, text
    assert not names(tmp_path / "scratch")


def test_a_run_that_goes_on_counts_no_loads_for_its_fingerprint(tmp_path):
    (tmp_path / "s").mkdir()
    with FieldBatch(budget=8 * BYTES, scratch=tmp_path / "s") as batch:
        for field in fields_of(12):
            batch.add(field)
        first = batch.run(norms, resume=tmp_path / "run")
        usage = batch.usage()
        assert usage.loads == usage.fields["disk"]
        again = batch.run(norms, resume=tmp_path / "run")
        assert batch.usage().loads == usage.loads  # all of it was done
        np.testing.assert_array_equal(first[0], again[0])
        with pytest.raises(sp.BudgetError, match=r"out='results\.npy'"):
            batch.run(centred, resume=tmp_path / "other")
        batch.run(centred, resume=tmp_path / "other", out=tmp_path / "o.npy")


def test_usage_is_said_in_a_line(tmp_path):
    with FieldBatch(budget=4 * BYTES, scratch=tmp_path) as batch:
        assert "fields none" in str(batch.usage())
        for field in fields_of(6):
            batch.add(field)
        text = str(batch.usage())
        assert "4 on the device (64 KiB)" in text
        assert "2 on the disk (32 KiB)" in text
        assert "100 % used" in text
        assert "0 loads" in text


def test_what_is_added_is_a_copy(on):
    values = np.ones((2, 2, 2))
    with FieldBatch(budget="1 MiB", on=on) as batch:
        given = put(values, on)
        batch.add(given)
        if on != "jax":
            given[...] = 0
        assert float(read(batch.run(norms)[0])[0]) == 8.0
