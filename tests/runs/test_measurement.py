"""Measured constants are those of the kernel, and later plans use them."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

import stowplan as sp
from stowplan.adapters import get_adapter
from stowplan.runs import measurement
from stowplan.runs.jobs import Job
from stowplan.runs.loads import Reads
from stowplan.runs.planning import _measured


@pytest.fixture(autouse=True)
def forget():
    yield
    _measured.clear()


@pytest.fixture
def clock(monkeypatch):
    """A clock that nothing moves on but kernels that do so themselves."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


def test_constants_are_those_of_a_kernel_of_known_cost(clock):
    @sp.kernel("(n)->()", ragged="n", work="n")
    def wait(x):
        clock.now += 2e-3 + 1e-6 * x.size
        return x.sum(axis=-1)

    data = {"x": sp.Ragged(np.zeros(8010), [10, *[1000] * 8])}
    shipped = sp.plan(wait, data).costs
    costs = sp.measure_costs(wait, data)
    assert costs.work_seconds == pytest.approx(1e-6)
    assert costs.launch_seconds == pytest.approx(2e-3)
    assert costs.compile_seconds == 0
    assert sp.plan(wait, data).costs == costs != shipped


def test_other_kernels_keep_what_is_shipped(kernels):
    data = {"x": [[1.0, 2.0], [3.0]]}
    before = sp.plan(kernels.moments, data).costs
    sp.measure_costs(kernels.total, data, scale=1.0)
    assert sp.plan(kernels.moments, data).costs == before


def test_constants_are_positive_on_every_framework(kernels, framework, put):
    data = put({"x": sp.Ragged(np.ones(1002), [2, 1000])})
    costs = sp.measure_costs(kernels.total, data, scale=2.0)
    assert costs.work_seconds > 0
    assert 0 < costs.launch_seconds < 1
    assert (costs.compile_seconds > 0) is (framework == "jax")
    assert sp.plan(kernels.total, data).costs == costs


def test_waiting_for_the_result_counts():
    jax = pytest.importorskip("jax")

    def slow(x):
        time.sleep(0.01)
        return x.sum(axis=-1)

    @sp.kernel("(n)->()", ragged="n", per_item=True)
    def wait(x):
        return jax.pure_callback(
            slow, jax.ShapeDtypeStruct((), x.dtype), x, vmap_method="sequential"
        )

    data = {"x": sp.Ragged(np.ones(12, np.float32), [2, 10])}
    costs = sp.measure_costs(wait, data, on="jax", repeats=2)
    assert costs.launch_seconds + 2 * costs.work_seconds > 0.009


def test_equal_items_give_finite_constants(kernels):
    costs = sp.measure_costs(kernels.length, {"vector": np.ones((3, 3)), "factor": np.ones(3)})
    assert np.isfinite([costs.work_seconds, costs.launch_seconds]).all()


def test_no_items_and_unknown_parameters_are_refused(kernels):
    with pytest.raises(sp.PlanError, match="at least one"):
        sp.measure_costs(kernels.moments, {"x": []})
    with pytest.raises(sp.DataError, match=r"measure_costs.*needs scale"):
        sp.measure_costs(kernels.total, {"x": [[1.0]]})


def test_a_run_takes_what_its_plan_predicts(clock):
    @sp.kernel("(n)->()", ragged="n", work="2 * n")
    def wait(x):
        clock.now += 2e-3 + 3e-6 * x.size
        return x.sum(axis=-1)

    sizes = [*range(1, 60), 400, 3000]
    data = {"x": sp.Ragged(np.zeros(sum(sizes)), sizes)}
    costs = sp.measure_costs(wait, data)
    assert costs.work_seconds == pytest.approx(1.5e-6)
    assert costs.launch_seconds == pytest.approx(2e-3)
    plan = sp.plan(wait, data)
    assert len(plan.batches) > 1
    start = clock.now
    sp.run(wait, data, plan)
    assert clock.now - start == pytest.approx(plan.predicted_seconds)


def test_terms_are_part_of_the_work_that_is_measured(clock):
    @sp.kernel("()->()", work="10", memory="1000", terms=lambda shared: len(shared["angles"]))
    def wait(x, *, angles):
        clock.now += 1e-3 + 1e-7 * x.size * len(angles)
        return x

    data, angles = {"x": np.zeros(20000)}, np.zeros(7)
    costs = sp.measure_costs(wait, data, angles=angles)
    assert costs.work_seconds == pytest.approx(1e-8)
    plan = sp.plan(wait, data, angles=angles)
    assert len(plan.batches) > 1
    start = clock.now
    sp.run(wait, data, plan, angles=angles)
    assert clock.now - start == pytest.approx(plan.predicted_seconds)


def test_reading_data_on_disk_counts(clock, monkeypatch, tmp_path):
    @sp.kernel("(8)->()", work="8")
    def wait(x):
        clock.now += 1e-3 + 1e-6 * x.size
        return x.sum(axis=-1)

    fill = Reads.fill

    def slow(self, load, buffer):
        clock.now += 1e-8 * load.bytes
        return fill(self, load, buffer)

    monkeypatch.setattr(Reads, "fill", slow)
    np.save(tmp_path / "x.npy", np.zeros((50, 8)))
    in_memory = sp.measure_costs(wait, {"x": np.zeros((50, 8))})
    costs = sp.measure_costs(wait, {"x": str(tmp_path / "x.npy")})
    assert in_memory.work_seconds == pytest.approx(1e-6)
    assert costs.work_seconds == pytest.approx(1e-6 + 8e-8)
    assert costs.launch_seconds == pytest.approx(1e-3)


def test_an_iteration_is_measured_round_by_round(clock):
    @sp.kernel("(n),()->()", ragged="n", work="5 * n")
    def countdown(x, steps, *, age, state):
        clock.now += 1e-3 + 1e-6 * x.size
        return {"left": state["left"] - 1}

    sizes = [2] * 3 + [30] * 5
    data = {"x": sp.Ragged(np.zeros(sum(sizes)), sizes), "steps": np.full(8, 10.0)}
    rounds = sp.Rounds(
        init=lambda steps: {"left": steps},
        until=lambda state: (state["left"] <= 0, state["left"] < -100), every=4, keep="left",
    )  # fmt: skip
    costs = sp.measure_costs(countdown, data, rounds=rounds)
    assert costs.rounds == 3  # 10 steps in rounds of 4
    assert costs.launch_seconds == pytest.approx(12 * 1e-3)
    assert costs.work_seconds == pytest.approx(12 * 1e-6 / 5)
    assert sp.plan(countdown, data, rounds=rounds).costs == costs
    limited = sp.measure_costs(countdown, data, rounds=replace(rounds, limit=8))
    assert limited.rounds == 2
    assert limited.launch_seconds == pytest.approx(8 * 1e-3)


def test_measured_iterations_predict_what_they_take(clock):
    @sp.kernel("(n),()->()", ragged="n", work="n", memory="2000000")
    def countdown(x, steps, *, age, state):
        clock.now += 1e-3 + 1e-6 * x.size
        return {"left": state["left"] - 1}

    rng = np.random.default_rng(0)
    sizes = rng.integers(400, 500, 80)
    data = {
        "x": sp.Ragged(np.zeros(sizes.sum()), sizes),
        "steps": rng.integers(8, 20, 80).astype(float),
    }
    how = {
        "init": lambda steps: {"left": steps},
        "until": lambda state: (state["left"] <= 0, state["left"] < -100),
        "every": 2, "keep": "left",
    }  # fmt: skip
    rounds = sp.Rounds(**how)
    sp.measure_costs(countdown, data, rounds=rounds)
    plan = sp.plan(countdown, data, rounds=rounds, slots=1)
    assert len(plan.batches) > 20
    start = clock.now
    sp.iterate(countdown, data, plan, limit=100, **how)
    assert clock.now - start == pytest.approx(plan.predicted_seconds, rel=0.1)


def test_compiles_that_were_made_before_are_not_forgotten(kernels):
    pytest.importorskip("jax")
    data = {"x": sp.Ragged(np.ones(1002, np.float32), [2, 1000])}
    first = sp.measure_costs(kernels.total, data, on="jax", scale=2.0)
    assert first.compile_seconds > 0
    assert sp.measure_costs(kernels.total, data, on="jax", scale=2.0).compile_seconds > 0


def test_rounds_measure_items_in_memory_only(tmp_path):
    @sp.kernel("()->()")
    def better(square, *, age, state):
        return state

    np.save(tmp_path / "x.npy", np.ones(3))
    rounds = sp.Rounds(lambda square: {"root": square}, lambda state: (1, 0), 1, "root")
    with pytest.raises(sp.DataError, match="measure_costs"):
        sp.measure_costs(better, {"square": str(tmp_path / "x.npy")}, rounds=rounds)


def test_what_a_run_takes_once_is_no_launch(clock, monkeypatch):
    @sp.kernel("(n)->()", ragged="n", work="n")
    def wait(x):
        clock.now += 2e-4 + 1e-6 * x.size
        return x.sum(axis=-1)

    execute = Job.execute

    def slow(self, *given, **how):
        clock.now += 1e-3
        return execute(self, *given, **how)

    monkeypatch.setattr(Job, "execute", slow)
    data = {"x": sp.Ragged(np.zeros(8080), [10] * 8 + [1000] * 8)}
    costs = sp.measure_costs(wait, data)
    assert costs.launch_seconds == pytest.approx(2e-4)
    assert costs.work_seconds == pytest.approx(1e-6)


def test_the_first_compile_of_all_is_not_the_usual_one(clock, monkeypatch):
    monkeypatch.setattr(measurement, "traced_programs", lambda target: clock.traced)
    clock.traced, sizes = 0, set()

    @sp.kernel("(n)->()", ragged="n", work="n")
    def wait(x):
        if x.shape not in sizes:
            clock.now += 0.1 if sizes else 5.0
            clock.traced += 1
            sizes.add(x.shape)
        clock.now += 1e-3 + 1e-6 * x.size
        return x.sum(axis=-1)

    monkeypatch.setattr(type(get_adapter("numpy")), "compiles", True)
    sizes_of_items = [*range(10, 20), 300, 400, 1500, 3000]
    data = {"x": sp.Ragged(np.zeros(sum(sizes_of_items)), sizes_of_items)}
    assert sp.measure_costs(wait, data).compile_seconds == pytest.approx(0.1)
