"""Measured constants are those of the kernel, and later plans use them."""

from __future__ import annotations

import time

import numpy as np
import pytest

import stowplan as sp
from stowplan.runs.planning import _measured


@pytest.fixture(autouse=True)
def forget():
    yield
    _measured.clear()


def test_constants_are_those_of_a_kernel_of_known_cost():
    @sp.kernel("(n)->()", ragged="n", work="n")
    def wait(x):
        time.sleep(2e-3 + 1e-6 * x.size)
        return x.sum(axis=-1)

    data = {"x": sp.Ragged(np.zeros(8010), [10, *[1000] * 8])}
    shipped = sp.plan(wait, data).costs
    costs = sp.measure_costs(wait, data)
    assert 0.8e-6 < costs.work_seconds < 1.6e-6
    assert 2e-3 < costs.launch_seconds < 4e-3
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
