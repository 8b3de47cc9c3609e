"""Laws of the PyTorch adapter: gradients, function transforms, graphs per shape."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp

torch = pytest.importorskip("torch")

SIZES = [3, 0, 5, 1, 4]


@sp.kernel("(n,2),(n)->(),(n)", ragged="n")
def energy(x, charge, *, scale):
    """A kernel whose gradients are known."""
    xp = array_namespace(x)
    each = charge * xp.sum(x**2, axis=-1)
    return scale * xp.sum(each, axis=-1), scale * each


def make_data(sizes=SIZES, grad=False):
    rng = np.random.default_rng(0)
    x = torch.asarray(rng.normal(size=(sum(sizes), 2)))
    charge = torch.asarray(rng.normal(size=sum(sizes)))
    return {"x": sp.Ragged(x.requires_grad_(grad), sizes), "charge": sp.Ragged(charge, sizes)}


def gradients(data, scale, weights):
    x, charge = data["x"].values.detach().numpy(), data["charge"].values.numpy()
    each = np.repeat(weights, SIZES)
    return 2 * scale * (each * charge)[:, None] * x, (each * charge * (x**2).sum(1)).sum()


@pytest.mark.parametrize("slots", [1, 2, "exact"])
def test_gradients_with_respect_to_items_and_shared_numbers(slots):
    data, weights = make_data(grad=True), np.arange(1.0, 6.0)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    plan = sp.plan(energy, data, slots=slots, rows=2)
    total, each = sp.run(energy, data, plan, scale=scale)
    assert total.requires_grad
    assert each.values.requires_grad
    (torch.asarray(weights) * total).sum().backward()
    by_x, by_scale = gradients(data, 1.5, weights)
    np.testing.assert_allclose(data["x"].values.grad, by_x, rtol=1e-12)
    np.testing.assert_allclose(scale.grad, by_scale, rtol=1e-12)


def test_gradients_reach_the_shared_items_of_a_view():
    data = make_data(grad=True)
    chosen = [2, 2, 0]
    view = {name: column[chosen] for name, column in data.items()}
    sp.run(energy, view, scale=1.0)[0].sum().backward()
    uses = np.array([1.0, 0, 2, 0, 0])
    np.testing.assert_allclose(data["x"].values.grad, gradients(data, 1.0, uses)[0], rtol=1e-12)


def test_a_plan_used_without_gradients_or_under_transforms_serves_gradients_later():
    plain = make_data()
    plan = sp.plan(energy, plain, slots=2)
    with torch.inference_mode():
        sp.run(energy, make_data(), plan, scale=1.0)

    def loss(values, scale):
        return sp.run(energy, {**plain, "x": sp.Ragged(values, SIZES)}, plan, scale=scale)[0].sum()

    scale = torch.tensor(1.5, dtype=torch.float64)
    found = torch.func.grad(loss, argnums=(0, 1))(plain["x"].values, scale)
    by_x, by_scale = gradients(plain, 1.5, np.ones(5))
    np.testing.assert_allclose(found[0], by_x, rtol=1e-12)
    np.testing.assert_allclose(found[1], by_scale, rtol=1e-12)
    data = make_data(grad=True)
    sp.run(energy, data, plan, scale=1.5)[0].sum().backward()
    np.testing.assert_allclose(data["x"].values.grad, by_x, rtol=1e-12)


def test_transforms_may_come_first():
    plain = make_data()
    plan = sp.plan(energy, plain, slots=2)
    scales = torch.tensor([1.0, 3.0], dtype=torch.float64)
    expected = sp.run(energy, plain, scale=1.0)[0]
    many = torch.func.vmap(lambda scale: sp.run(energy, plain, plan, scale=scale)[0])(scales)
    np.testing.assert_allclose(many, np.stack([expected, 3 * expected]), rtol=1e-12)
    values = torch.stack([plain["x"].values, 2 * plain["x"].values])
    moved = torch.func.vmap(
        lambda x: sp.run(energy, {**plain, "x": sp.Ragged(x, SIZES)}, plan, scale=1.0)[0]
    )(values)
    np.testing.assert_allclose(moved, np.stack([expected, 4 * expected]), rtol=1e-12)
    np.testing.assert_allclose(sp.run(energy, plain, plan, scale=1.0)[0], expected, rtol=1e-12)


def test_moving_data_that_require_grad_is_an_error():
    data = make_data(grad=True)
    with pytest.raises(sp.FrameworkError, match=r"on='numpy'.*gradient"):
        sp.run(energy, data, on="numpy", scale=1.0)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    with pytest.raises(sp.FrameworkError, match="gradient"):
        sp.run(energy, make_data(), on="numpy", scale=scale)


@pytest.mark.parametrize("per_item", [False, True])
def test_compiling_makes_one_graph_per_shape_however_many(per_item):
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")
    from torch._dynamo.utils import counters

    backend = "inductor"

    @sp.kernel("(n)->()", ragged="n", per_item=per_item)
    def total(x, *, scale):
        return scale * (x**2).sum(dim=-1)

    sizes = [1, 2, 3] if per_item or backend == "inductor" else list(range(1, 12))
    data = {"x": sp.Ragged(torch.arange(float(sum(sizes)), dtype=torch.float64), sizes)}
    plan = sp.plan(total, data, slots="exact")
    torch._dynamo.reset()
    counters.clear()
    expected = sp.run(total, data, plan, scale=0.5)
    for scale in (0.5, 2.0, 3.0):
        found = sp.run(total, data, plan, compile=True, scale=scale)
        np.testing.assert_allclose(found, expected * scale / 0.5, rtol=1e-13)
    assert counters["stats"]["unique_graphs"] == len(plan.shapes) == len(sizes)
    assert not counters["graph_break"]


def test_more_shapes_than_torch_keeps_of_one_function(monkeypatch):
    from torch._dynamo.utils import counters

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: compiled(*a, **{**k, "backend": "eager"}))

    @sp.kernel("(n)->()", ragged="n")
    def total(x, *, scale):
        return scale * (x**2).sum(dim=-1)

    sizes = list(range(1, 13))
    data = {"x": sp.Ragged(torch.arange(float(sum(sizes)), dtype=torch.float64), sizes)}
    plan = sp.plan(total, data, slots="exact")
    torch._dynamo.reset()
    counters.clear()
    found = sp.run(total, data, plan, compile=True, scale=2.0)
    np.testing.assert_allclose(found, sp.run(total, data, plan, scale=2.0), rtol=1e-13)
    sp.run(total, data, plan, compile=True, scale=3.0)
    assert counters["stats"]["unique_graphs"] == len(sizes)


def test_gradients_through_compiled_batches():
    pytest.importorskip("torch._dynamo")
    data, weights = make_data(grad=True), np.ones(5)
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")

    @sp.kernel("(n,2),(n)->()", ragged="n")
    def plain(x, charge, *, scale):
        return scale * (charge * (x**2).sum(dim=-1)).sum(dim=-1)

    plan = sp.plan(plain, data, slots=1)
    sp.run(plain, data, plan, compile=True, scale=1.5).sum().backward()
    np.testing.assert_allclose(data["x"].values.grad, gradients(data, 1.5, weights)[0], rtol=1e-12)


def test_read_only_and_reversed_host_arrays_may_go_to_torch():
    x = np.arange(5.0)
    x.flags.writeable = False
    flipped = np.arange(5.0)[::-1]
    total = sp.kernel("(n)->()", ragged="n")(lambda x: x.sum(axis=-1))
    for values, expected in ((x, [1.0, 9.0]), (flipped, [7.0, 3.0])):
        found = sp.run(total, {"x": sp.Ragged(values, [2, 3])}, on="torch")
        assert found.tolist() == expected


def test_a_shared_scalar_of_another_source_stays_a_scalar():
    jnp = pytest.importorskip("jax.numpy")
    seen = []

    @sp.kernel("(n)->()", ragged="n")
    def total(x, *, scale):
        seen.append(tuple(scale.shape))
        return scale * x.sum(axis=-1)

    data = {"x": sp.Ragged(jnp.arange(5.0), [2, 3])}
    sp.run(total, data, on="torch", scale=jnp.asarray(2.0))
    assert set(seen) == {()}


def test_half_precision_data_are_planned_and_run():
    total = sp.kernel("(n)->()", ragged="n")(lambda x: x.sum(axis=-1))
    data = {"x": sp.Ragged(torch.arange(5.0, dtype=torch.bfloat16), [2, 3])}
    assert sp.run(total, data).dtype == torch.bfloat16
