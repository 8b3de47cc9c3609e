"""Several devices give what one gives, in input order, where the data are."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.adapters import get_adapter

EAGER = ["numpy", "torch"]


@sp.kernel("(n),(m),()->(n),(),(p)", ragged=("n", "m"), out_sizes={"p": "n + m"})
def mixed(x, y, weight, *, scale):
    from array_api_compat import array_namespace

    xp = array_namespace(x)
    total = scale * weight * (x.sum(axis=-1) + y.sum(axis=-1))
    return x * weight[..., None], total, xp.concat([x, y], axis=-1) * 3.0


@sp.kernel("(n)->(n)", ragged="n", fill={"x": 1.0})
def halved(x, *, age, state):
    return {"x": state["x"] / 2}


def small(state, mask):
    return (abs(state["x"]) * mask["n"] < 1e-2).all(axis=-1), (state["x"] > 1e3).any(axis=-1)


HALVING = {"init": lambda x: {"x": x * 1}, "until": small, "every": 2, "limit": 12, "keep": "x"}


def columns_of(lengths, xp, seed=0):
    rng = np.random.default_rng(seed)
    table = np.array(lengths, np.int64).reshape(-1, 2)
    flat = {name: rng.normal(size=counts.sum()) for name, counts in zip("xy", table.T, strict=True)}
    return {
        "x": sp.Ragged(xp.asarray(flat["x"]), table[:, 0]),
        "y": sp.Ragged(xp.asarray(flat["y"]), table[:, 1]),
        "weight": xp.asarray(rng.normal(size=len(table))),
    }


def flat(result):
    for part in result if isinstance(result, tuple) else (result,):
        yield np.asarray(part.values if isinstance(part, sp.Ragged) else part)


def assert_equal(found, expected):
    for one, other in zip(flat(found), flat(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


sizes = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=0, max_size=24)


@pytest.mark.parametrize("framework", EAGER)
@settings(max_examples=25)
@given(lengths=sizes, rows=st.integers(1, 5), devices=st.sampled_from([1, 2, 4]))
def test_workers_give_bitwise_what_one_gives(framework, load_framework, lengths, rows, devices):
    columns = columns_of(lengths, load_framework(framework))
    plan = sp.plan(mixed, columns, rows=rows, slots=2)
    whole = sp.run(mixed, columns, plan, scale=2.0)
    found = sp.run(mixed, columns, plan, devices=devices, scale=2.0)
    assert_equal(found, whole)
    assert type(found[1]) is type(whole[1])


@pytest.mark.parametrize("framework", EAGER)
@settings(max_examples=15)
@given(lengths=sizes, rows=st.integers(1, 5), devices=st.sampled_from([1, 2, 4]))
def test_an_iteration_on_workers_is_the_iteration(
    framework, load_framework, lengths, rows, devices
):
    x = columns_of(lengths, load_framework(framework))["x"].map_values(lambda x: 20 * x)
    plan = sp.plan(halved, {"x": x}, slots=2, rows=rows)
    whole = sp.iterate(halved, {"x": x}, plan, **HALVING)
    found = sp.iterate(halved, {"x": x}, plan, devices=devices, **HALVING)
    assert_equal(found.values["x"], whole.values["x"])
    for name in ("iterations", "converged", "failed"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert len(found.plan.devices) == devices


def some(xp, count=40, seed=3):
    rng = np.random.default_rng(seed)
    return columns_of(
        list(zip(rng.integers(1, 30, count), rng.integers(0, 9, count), strict=True)), xp
    )


@pytest.mark.parametrize("framework", EAGER)
def test_a_plan_for_devices_is_cut_for_all_of_them_and_run_on_them(framework, load_framework):
    columns = some(load_framework(framework))
    plan = sp.plan(mixed, columns, devices=4, costs=sp.Costs(1e-6, 1e-9))
    assert {batch.device for batch in plan.batches} == {0, 1, 2, 3}
    assert plan.devices == ("worker 0", "worker 1", "worker 2", "worker 3")
    together = threading.Barrier(4)  # which nobody passes alone

    @sp.kernel("(n)->()", ragged="n")
    def meeting(x):
        together.wait(timeout=60)
        return x.sum(axis=-1)

    x = {"x": columns["x"]}
    own = sp.plan(meeting, x, devices=4, rows=10, slots=1)
    expected = np.array([float(item.sum()) for item in x["x"]])
    np.testing.assert_allclose(np.asarray(sp.run(meeting, x, own)), expected, rtol=1e-12)


def test_a_plan_for_an_iteration_deals_items_out():
    x = {"x": some(np)["x"]}
    how = {name: HALVING[name] for name in ("init", "until", "every", "keep")}
    plan = sp.plan(halved, x, devices=2, rounds=sp.Rounds(**how))
    assert plan.shared_by == "items"
    found = sp.iterate(halved, x, plan, **HALVING)
    assert found.plan is plan


def test_each_device_has_the_budget_and_a_share_of_the_host_is_cut_up(monkeypatch):
    columns = some(np)
    monkeypatch.setattr(type(get_adapter("numpy")), "free_bytes", lambda self, device: 8 * 2**30)
    plan = sp.plan(mixed, columns, devices=4, scale=1.0, budget=0.5)
    assert plan.memory.budget.bytes == 2**30
    assert "for each of 4" in str(plan)
    assert sp.plan(mixed, columns, devices=4, scale=1.0, budget="1 MB").memory.budget.bytes == 10**6


@pytest.mark.parametrize("framework", EAGER)
def test_workers_take_one_intra_op_thread_and_what_was_set_comes_back(framework, load_framework):
    load_framework(framework)
    import threadpoolctl

    torch = pytest.importorskip("torch", reason="torch is not installed; its threads count, too")

    def count():
        if framework == "torch":
            return torch.get_num_threads()
        return max(
            [
                lib["num_threads"]
                for lib in threadpoolctl.threadpool_info()
                if lib["user_api"] == "blas"
            ]
        )

    def in_a_new_thread():
        found = []
        thread = threading.Thread(target=lambda: found.append(count()))
        thread.start()
        thread.join()
        return found[0]

    seen = []

    @sp.kernel("(n)->()", ragged="n")
    def noted(x):
        seen.append(count())
        return x.sum(axis=-1)

    before = torch.get_num_threads()
    columns = {"x": some(load_framework(framework))["x"]}
    try:
        torch.set_num_threads(3)
        with threadpoolctl.threadpool_limits(2, user_api="blas"):
            expected = (count(), in_a_new_thread())
            sp.run(noted, columns, devices=2)
            assert set(seen) == {1}
            assert (count(), in_a_new_thread()) == expected
            failing = {"x": columns["x"].map_values(lambda x: x[:, None])}
            with pytest.raises(sp.DataError):
                sp.run(noted, failing, devices=2)
            assert (count(), in_a_new_thread()) == expected
    finally:
        torch.set_num_threads(before)


def test_settings_of_the_callers_thread_hold_on_devices(load_framework):
    load_framework("torch")
    import torch

    x = {"x": some(torch)["x"]}
    seen = []

    @sp.kernel("(n)->()", ragged="n")
    def noted(x):
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return x.sum(axis=-1)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        sp.run(noted, x, devices=2)
    assert set(seen) == {(False, True)}

    @sp.kernel("(n)->()", ragged="n")
    def divided(x):
        return (x / 0).sum(axis=-1)

    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        sp.run(divided, {"x": some(np)["x"]}, devices=2)


def test_an_error_says_on_which_device_and_stops_the_others():
    counted = []

    @sp.kernel("(n)->()", ragged="n")
    def fails(x):
        counted.append(1)
        if (x == -7).any():
            raise ValueError("no such item")
        threading.Event().wait(0.02)
        return x.sum(axis=-1)

    x = sp.Ragged.from_list([np.full(7, -7.0), *[np.ones(8)] * 200])
    plan = sp.plan(fails, {"x": x}, rows=1, slots="exact")
    with pytest.raises(ValueError, match="no such item") as told:
        sp.run(fails, {"x": x}, plan, devices=2)
    assert any("This was on worker" in note for note in told.value.__notes__)
    assert len(counted) < 80  # of 101, were the other device not stopped


def test_out_of_memory_on_one_device_goes_on_in_smaller_batches(caplog):
    @sp.kernel("(n)->()", ragged="n")
    def tight(x):
        if x.shape[0] > 2:
            raise MemoryError
        return x.sum(axis=-1)

    x = {"x": some(np)["x"]}
    plan = sp.plan(tight, x, rows=4, slots=1)
    expected = np.array([item.sum() for item in x["x"]])
    np.testing.assert_allclose(sp.run(tight, x, plan, devices=2), expected, rtol=1e-12)
    assert "out of memory with 4 rows" in caplog.text


def test_data_that_require_grad_are_refused(load_framework):
    load_framework("torch")
    import torch

    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    columns = {"x": sp.Ragged(x, [1, 2])}

    @sp.kernel("(n)->()", ragged="n")
    def total(x):
        return x.sum(axis=-1)

    for call in (sp.run, sp.plan):
        with pytest.raises(
            sp.FrameworkError, match=r"no gradient\. Leave devices= out, also.*or detach"
        ):
            call(total, columns, devices=2)
    with pytest.raises(sp.FrameworkError, match="require grad"):
        sp.iterate(halved, columns, devices=2, **HALVING)

    @sp.kernel("(n)->()", ragged="n")
    def hidden(y):
        return (y * x[0]).sum(axis=-1)

    with pytest.raises(sp.FrameworkError, match="hidden uses a tensor that requires grad"):
        sp.run(hidden, {"y": sp.Ragged(x.detach(), [1, 2])}, devices=2)


def test_a_trace_is_refused(load_framework):
    load_framework("jax")
    import jax

    @sp.kernel("(n)->()", ragged="n")
    def total(x):
        return x.sum(axis=-1)

    def traced(x):
        return sp.run(total, {"x": sp.Ragged(x, [1, 2])}, devices=1)

    with pytest.raises(sp.FrameworkError, match=r"traced function.*Leave devices= out"):
        jax.jit(traced)(np.ones(3))


@pytest.mark.parametrize("devices", [0, -2, True, 1.5, "gpu", "two", {}, object()])
def test_no_devices_are_refused(devices):
    with pytest.raises(
        sp.FrameworkError, match=r"devices=.*give how many, from 1, \"all\", or a list"
    ):
        sp.run(mixed, some(np), devices=devices, scale=1.0)


def test_lists_that_are_empty_double_or_unknown_are_refused(load_framework):
    load_framework("torch")
    for devices, told in [
        ([], r"devices=\[\] names none"),
        (
            ["cpu", "cpu"],
            "names cpu twice. Name each once; workers of a host are counted, devices=2",
        ),
        (["cuda:9"], "'cuda:9' is no device of numpy"),
        ([*sp.devices(2, on="numpy"), sp.devices(1, on="numpy")[0]], "names worker 0 twice"),
        (sp.devices(2, on="torch"), "lists devices of torch, but the run is on numpy.*on='torch'"),
        (
            [*sp.devices(1, on="torch"), *sp.devices(1, on="numpy")],
            "mixes devices of numpy and torch",
        ),
    ]:
        with pytest.raises(sp.FrameworkError, match=told):
            sp.run(mixed, some(np), devices=devices, scale=1.0)


def test_a_list_of_workers_is_as_good_as_their_number():
    columns = some(np)
    plan = sp.plan(mixed, columns, rows=4)
    found = sp.run(mixed, columns, plan, devices=sp.devices(3, on="numpy"), scale=1.0)
    assert_equal(found, sp.run(mixed, columns, plan, scale=1.0))
    assert len(sp.devices(on="numpy")) == len(os.sched_getaffinity(0))


def test_platforms_do_not_mix(monkeypatch, load_framework):
    load_framework("torch")
    import torch

    here = [torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setattr(type(get_adapter("torch")), "devices", lambda self: here)
    with pytest.raises(
        sp.FrameworkError, match=r"mixes platforms: cpu is of 'cpu', cuda:1 of 'cuda'"
    ):
        sp.plan(mixed, some(torch), devices=["cpu", "cuda:1"])
    plan = sp.plan(mixed, some(torch), devices=["cuda:0", "cuda:1"], budget="1 GiB", scale=1.0)
    assert plan.devices == ("cuda:0", "cuda:1")
    with pytest.raises(
        sp.FrameworkError, match=r"3 devices are asked.*torch has 2 devices of platform"
    ):
        sp.plan(mixed, some(torch), device="cuda:0", devices=3, budget="1 GiB", scale=1.0)


JAX = Path(__file__).with_name("on_jax_devices.py")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_virtual_devices_of_jax(load_framework, count):
    load_framework("jax")
    told = subprocess.run(
        [sys.executable, JAX, str(count)], capture_output=True, text=True, check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.endswith(f"{count} devices agree\n")


def test_jax_has_started_too_early(load_framework):
    load_framework("jax")
    import jax

    held = len(jax.devices())
    with pytest.raises(sp.FrameworkError) as told:
        sp.devices(held + 1, on="jax")
    assert f"jax.config.update('jax_num_cpu_devices', {held + 1})" in str(told.value)
    assert "too late" in str(told.value)
    with pytest.raises(sp.FrameworkError, match=r"put first sp.devices\(.*on='jax'\)"):
        sp.run(mixed, some(np), on="jax", devices=held + 1, scale=1.0)


def test_xla_flags_that_say_fewer_are_told(monkeypatch, load_framework):
    load_framework("jax")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    with pytest.raises(sp.FrameworkError, match=r"XLA_FLAGS has .*=2. Take that option out"):
        sp.devices(4, on="jax")


def test_devices_do_not_load_a_framework():
    script = "import sys, stowplan as sp; sp.devices(2, on='numpy'); print('jax' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert told.stdout == "False\n"


def test_a_plan_shared_for_others_is_shared_anew():
    columns = some(np)
    plan = sp.plan(mixed, columns, rows=2, devices=4)
    whole = sp.run(mixed, columns, replace(plan, devices=()), devices=1, scale=1.0)
    assert_equal(sp.run(mixed, columns, plan, devices=3, scale=1.0), whole)
    by_rows = sp.share_devices(plan, 2, by="rows")  # NumPy has no program over devices
    assert_equal(sp.run(mixed, columns, by_rows, scale=1.0), whole)


def test_a_laptop_plans_for_devices_that_it_does_not_have(load_framework):
    load_framework("torch")
    import torch

    if torch.cuda.is_available():
        pytest.skip("this is no laptop")
    columns = some(torch)
    plan = sp.plan(
        mixed, columns, device="cuda:0", devices=4, budget="1 GiB", scale=1.0,
        costs=sp.Costs(1e-6, 1e-9),
    )  # fmt: skip
    assert len(plan.devices) == 4
    assert {batch.device for batch in plan.batches} == {0, 1, 2, 3}


@pytest.mark.parametrize("devices", [1, 2])
def test_one_bar_counts_the_batches_or_items_of_all_devices(devices, capsys):
    columns = some(np)
    plan = sp.plan(mixed, columns, rows=4, slots=2)
    sp.run(mixed, columns, plan, devices=devices, progress=True, scale=1.0)
    assert f"{len(plan.batches)}/{len(plan.batches)}" in capsys.readouterr().err
    sp.iterate(halved, {"x": columns["x"]}, devices=devices, progress=True, **HALVING)
    assert "40/40" in capsys.readouterr().err
