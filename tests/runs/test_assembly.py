"""Rows of batches put in place: in input order, with the dtype that all of them need."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp
from stowplan.runs.columns import bind
from stowplan.runs.jobs import Job
from stowplan.runs.places import find_places


@sp.kernel("(n)->(n),()", ragged="n")
def turned(x, *, mask):
    """Complex where the capacity is large, as eigenvalues are where they must."""
    xp = array_namespace(x)
    total = xp.sum(xp.where(mask["n"], x, xp.zeros_like(x)), axis=-1)
    return (x if x.shape[-1] < 4 else x * (1 + 1j)), total


@sp.kernel("(3,3)->(3)")
def eigenvalues(matrix):
    return np.linalg.eigvals(matrix)


def test_eigenvalues_that_turn_complex_in_a_later_batch_are_kept():
    matrices = np.stack([np.diag([1.0, 2, 3]), np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])])
    found = sp.run(eigenvalues, {"matrix": matrices}, rows=1)
    np.testing.assert_array_equal(found, np.linalg.eigvals(matrices))


@pytest.mark.parametrize("sizes", [[2, 4, 1, 3, 4], [4, 2, 3, 1]])
def test_outputs_take_the_dtype_that_holds_those_of_all_batches(sizes, framework, put, host):
    values = np.arange(1.0, sum(sizes) + 1)
    data = {"x": sp.Ragged(values, sizes)}
    plan = sp.plan(turned, put(data), slots=[{"n": 2}, {"n": 4}], rows=2)
    found, total = map(host, sp.run(turned, put(data), plan))
    assert total.dtype == np.float64
    for item, result in zip(data["x"], found, strict=True):
        factor = 1 if len(item) <= 2 else 1 + 1j
        assert result.dtype == np.complex128
        np.testing.assert_array_equal(result, item * factor)


@pytest.mark.parametrize("framework", ["numpy", "torch", "array_api_strict"])
@pytest.mark.parametrize("slots", [1, 3, "exact"])
def test_shared_items_are_in_place_though_memory_runs_out_between(slots, framework, put, host):
    rng = np.random.default_rng(5)
    sizes = rng.integers(0, 20, 30)
    most = [10**9]

    @sp.kernel("(n)->(n),()", ragged="n")
    def scaled(x, *, mask):
        if x.shape[0] * x.shape[1] > most[0]:
            raise MemoryError("planted")
        xp = array_namespace(x)
        return 2 * x, xp.sum(xp.where(mask["n"], x, xp.zeros_like(x)), axis=-1)

    pool = put({"x": sp.Ragged(rng.normal(size=int(sizes.sum())), sizes)})["x"]
    data = {"x": pool[rng.integers(0, 30, 50)]}
    plan = sp.plan(scaled, data, slots=slots, rows=7)
    most[0] = 40
    found, totals = map(host, sp.run(scaled, data, plan))
    for item, result, total in zip(host(data["x"]), found, totals, strict=True):
        np.testing.assert_array_equal(result, 2 * item)
        np.testing.assert_allclose(total, item.sum(), atol=1e-13)


@pytest.mark.parametrize(("order", "copies"), [("kept", 0), ("turned round", 1)])
def test_padded_rows_in_order_are_no_copies_on_their_way(order, copies):
    @sp.kernel("(n)->(n)", ragged="n")
    def twice(x):
        return 2 * x

    sizes = np.full(400, 1000)
    sizes[1::2] -= 7
    data = {"x": sp.Ragged(np.arange(float(sizes.sum())), sizes)}
    columns = bind("test", twice, data)
    source, target = find_places("test", columns.arrays, None, None)
    slots = [{"n": 1000}] if order == "kept" else [{"n": 993}, {"n": 1001}]
    plan = sp.plan(twice, data, slots=slots, rows=400)
    job = Job("test", twice, columns, plan, source, target)
    last = len(plan.batches) - 1
    for number in range(last + 1):  # room for results, and index arrays, are there
        job.scatter(number, 2 * job.gather(number)[0][0])
    output = 2 * job.gather(last)[0][0]
    gc.collect()
    tracemalloc.start()
    job.scatter(last, output)
    _, measured = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    rows = 8 * int(sizes[plan.batches[last].items[: plan.batches[last].count]].sum())
    assert copies * rows <= measured < copies * rows + 10_000
    (found,) = job.results()
    np.testing.assert_array_equal(found.values, 2 * data["x"].values)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "complex64", "int64", "bool"])
def test_large_results_of_torch_keep_their_dtype(dtype):
    torch = pytest.importorskip("torch")

    @sp.kernel("(n,3)->(n,3)", ragged="n")
    def same(x):
        return x.clone()

    sizes = np.full(600, 2000)
    sizes[::2] -= 9
    kind = getattr(torch, dtype)
    values = torch.arange(int(sizes.sum()) * 3).remainder(7).reshape(-1, 3).to(kind)
    assert values.numel() * values.element_size() > 2**21
    found = sp.run(same, {"x": sp.Ragged(values, sizes)}, rows=100).values
    assert found.dtype is kind
    assert torch.equal(found, values)
    assert not found.is_inference()
    with torch.inference_mode():
        assert torch.equal(sp.run(same, {"x": sp.Ragged(values, sizes)}, rows=100).values, values)
