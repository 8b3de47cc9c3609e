"""``sp.verify`` finds kernels that let padding leak, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp


def masked(x, mask, other):
    xp = array_namespace(x)
    return xp.where(mask["n"], x, other * xp.ones_like(x))


def mean_leak(x):
    return array_namespace(x).mean(x, axis=-1)


def exp_leak(x):
    xp = array_namespace(x)
    return xp.sum(xp.exp(x), axis=-1)


def softmax_leak(x):
    xp = array_namespace(x)
    weight = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return weight / xp.sum(weight, axis=-1, keepdims=True)


def max_leak(x):
    return array_namespace(x).max(x, axis=-1)


def min_leak(x):
    return array_namespace(x).min(x, axis=-1)


def last_leak(x):
    return x[..., -1]


def count_leak(x):
    xp = array_namespace(x)
    return xp.sum(xp.ones_like(x), axis=-1)


def tiny_leak(x, *, mask):
    xp = array_namespace(x)
    inside = xp.astype(mask["n"], x.dtype)
    return xp.sum(inside * x + 1e-9 * x, axis=-1)


def company_leak(x):
    xp = array_namespace(x)
    return xp.sum(x, axis=-1) + 0 * xp.sum(x, axis=-1) + (xp.max(x) if x.ndim > 1 else 0)


def nan_leak(x, *, mask):
    xp = array_namespace(x)
    inside = xp.astype(mask["n"], x.dtype)
    return xp.sum(inside * xp.sqrt(x), axis=-1)  # NaN times zero


def mean_right(x, *, mask):
    xp = array_namespace(x)
    inside = xp.astype(mask["n"], x.dtype)
    return xp.sum(masked(x, mask, 0.0), axis=-1) / xp.sum(inside, axis=-1)


def exp_right(x, *, mask):
    xp = array_namespace(x)
    return xp.sum(xp.where(mask["n"], xp.exp(masked(x, mask, 0.0)), xp.zeros_like(x)), axis=-1)


def softmax_right(x, *, mask):
    return softmax_leak(masked(x, mask, -float("inf")))


def max_right(x, *, mask):
    return array_namespace(x).max(masked(x, mask, -float("inf")), axis=-1)


def sum_right(x):
    return array_namespace(x).sum(x, axis=-1)


VALUES = {
    "normal": np.random.default_rng(0).normal(size=12),
    "positive": 2 + np.random.default_rng(1).uniform(size=12),
    "negative": -2 - np.random.default_rng(2).uniform(size=12),
}
SIZES = {"mixed": [3, 1, 5, 3], "equal": [3, 3, 3, 3]}  # equal sizes: a plan without padding


def declare(function):
    shape = "(n)" if "softmax" in function.__name__ else "()"
    return sp.kernel(f"(n)->{shape}", ragged="n")(function)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(
    "function",
    [mean_leak, exp_leak, softmax_leak, max_leak, min_leak, last_leak, count_leak, tiny_leak],
)
def test_a_planted_leak_is_caught(function, values, sizes):
    data = {"x": sp.Ragged(VALUES[values], SIZES[sizes])}
    found = sp.verify(declare(function), data)
    assert not found.passed
    assert found.worst > 1e-10
    assert "FAILED" in str(found)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_leak_of_nan_is_caught():
    found = sp.verify(declare(nan_leak), {"x": sp.Ragged(VALUES["positive"], SIZES["equal"])})
    assert not found.passed
    assert found.worst == float("inf")


def test_a_kernel_that_looks_at_its_company_is_caught():
    data = {"x": sp.Ragged(VALUES["normal"], SIZES["equal"])}
    assert not sp.verify(
        declare(company_leak), data, sp.plan(declare(company_leak), data, slots=1)
    ).passed


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("function", [mean_right, exp_right, softmax_right, max_right])
def test_a_right_kernel_passes(function, values, sizes):
    data = {"x": sp.Ragged(VALUES[values], SIZES[sizes])}
    found = sp.verify(declare(function), data)
    assert found.passed, str(found)
    assert "passed" in str(found)


@pytest.mark.parametrize(("function", "passes"), [(exp_leak, False), (exp_right, True)])
def test_verify_works_on_every_framework(framework, put, function, passes):
    data = {"x": put(sp.Ragged(VALUES["normal"], SIZES["mixed"]))}
    kernel = declare(function)
    assert sp.verify(kernel, data).passed is passes
    host = {"x": sp.Ragged(VALUES["normal"], SIZES["mixed"])}
    assert sp.verify(kernel, host, on=framework, items=2).passed is passes


def test_a_declared_fill_is_relied_on_and_other_columns_are_not():
    fill = sp.kernel("(n)->()", ragged="n", fill={"x": 0.0})(sum_right)
    data = {"x": sp.Ragged(VALUES["normal"], SIZES["mixed"])}
    assert sp.verify(fill, data).passed
    assert sp.verify(fill, data).fills == {}
    assert not sp.verify(declare(sum_right), data).passed


def test_the_ewald_kind_of_kernel_passes(kernels):
    data = kernels.make_atoms([3, 0, 5, 1])
    found = sp.verify(kernels.pull, data, scale=1.0)
    assert set(found.fills) == {"positions", "charges"}
    assert found.passed  # each column's zeros take the weight from the other's padding
    assert found.worst < 1e-13


def test_named_outputs_and_chosen_items(kernels):
    data = {"x": [[1.0], [2.0, 3.0], [4.0]]}
    found = sp.verify(kernels.moments, data, items=[2, 0])
    assert found.items == (2, 0)
    assert set(found.alone) == {"total", "squares"}
    with pytest.raises(sp.DataError, match="item 3 of 3"):
        sp.verify(kernels.moments, data, items=[0, 3])


def test_integer_flag_and_complex_outputs_are_compared(kernels):
    @sp.kernel("(n)->(),()", ragged="n")
    def signs(x, *, mask):
        return ((x > 0) & mask["n"]).any(axis=-1), (x[..., 0] > 0).astype(np.uint8)

    @sp.kernel("(n)->(),()", ragged="n")
    def leaky(x):
        return (x == 0).any(axis=-1), (x > 0).sum(axis=-1)

    data = {"x": sp.Ragged(VALUES["normal"], SIZES["mixed"])}
    assert sp.verify(signs, data).passed
    assert not sp.verify(leaky, data).passed
    assert sp.verify(kernels.phase, {"angle": data["x"]}).passed


def test_index_columns_get_fills_that_stay_indices(kernels):
    @sp.kernel("(n),(n)->()", ragged="n", fill={"x": 0.0})
    def pick(x, index, *, mask):
        found = np.take_along_axis(x, np.where(mask["n"], index, 0), axis=-1)
        return np.where(mask["n"], found, 0.0).sum(axis=-1)

    data = {"x": [[1.0, 2.0], [5.0]], "index": [[1, 1], [0]]}
    assert sp.verify(pick, data).passed


def test_infinite_results_do_not_hide_a_leak():
    @sp.kernel("(n)->(),()", ragged="n")
    def both(x):
        return np.where(x[..., 0] > 0, np.inf, 1.0), np.where(
            x[..., 0] > 0, np.inf, x.mean(axis=-1)
        )

    found = sp.verify(both, {"x": [[1.0, 2.0], [-5.0, 3.0, 1.0]]})
    assert found.alone["output 0"] == 0.0
    assert not found.passed


def test_exact_dims_are_not_padded_by_verify(kernels):
    data = {"x": [[1.0, 2.0, 3.0], [4.0]]}
    assert sp.verify(kernels.spectrum, data).padded == {"output 0": 0.0}


def test_a_count_of_items_may_be_a_numpy_integer_and_no_item_is_refused(kernels):
    data = kernels.make_atoms([2, 3, 1])
    assert len(sp.verify(kernels.pull, data, items=np.int64(2), scale=1.0).items) == 2
    with pytest.raises(sp.DataError, match=r"items=\[\] names no item"):
        sp.verify(kernels.pull, data, items=[], scale=1.0)


def test_no_items_pass(kernels):
    assert sp.verify(kernels.pull, kernels.make_atoms([]), scale=1.0).passed


def test_a_plan_for_other_sizes_is_refused(kernels):
    plan = sp.plan(kernels.moments, {"x": [[1.0]]})
    with pytest.raises(sp.PlanError, match="verify"):
        sp.verify(kernels.moments, {"x": [[1.0, 2.0]]}, plan)
