"""Laws of the PyTorch adapter: gradients, function transforms, graphs per shape."""

from __future__ import annotations

import shutil
import weakref

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


@pytest.fixture
def graphs(monkeypatch):
    """Calls of each graph that torch was asked to compile: what it returned, by weak reference.

    They run as they are.
    """
    from torch._dynamo.utils import counters

    seen = []

    def backend(graph, _):
        seen.append([])

        def call(*inputs, calls=seen[-1]):
            outputs = graph.forward(*inputs)
            calls.append([(tuple(part.shape), weakref.ref(part)) for part in outputs])
            assert not any(part() is not None for other in calls[:-1] for _, part in other)
            return outputs

        return call

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: compiled(*a, **{**k, "backend": backend}))
    torch._dynamo.reset()
    counters.clear()
    yield seen
    assert not counters["graph_break"]


def test_more_shapes_than_torch_keeps_of_one_function(graphs):
    @sp.kernel("(n)->()", ragged="n")
    def total(x, *, scale):
        return scale * (x**2).sum(dim=-1)

    sizes = list(range(1, 13))
    data = {"x": sp.Ragged(torch.arange(float(sum(sizes)), dtype=torch.float64), sizes)}
    plan = sp.plan(total, data, slots="exact")
    found = sp.run(total, data, plan, compile=True, scale=2.0)
    np.testing.assert_allclose(found, sp.run(total, data, plan, scale=2.0), rtol=1e-13)
    sp.run(total, data, plan, compile=True, scale=3.0)
    assert len(graphs) == len(sizes)
    tables = [torch.ones(count, dtype=torch.float64) for count in range(2, 14)]
    for table in tables:  # of one shape of batch
        plan = sp.plan(total, data, slots=1)
        assert sp.run(total, data, plan, compile=True, scale=table[-1:]).shape == (12,)
    assert len(graphs) == len(sizes) + 1


WAVES = [1, 2, 3, 4] * 8


def declare_waves(per_item):
    """A kernel with a mask, nested shared parameters and an output of whole numbers."""

    @sp.kernel("(n),(n,2),()->(),(n),()", ragged="n", per_item=per_item)
    def waves(x, y, weight, *, scale, options, mask):
        each = torch.sin(x * scale) * y.sum(dim=-1) * options["shifts"][0]
        each = torch.where(mask["n"], each, 0.0)
        return each.sum(dim=-1) * weight, each, (each > 0).sum(dim=-1)

    return waves


def run_waves(kernel, plan, seed, *, compile, free=("x", "weight", "scale", "shift")):
    """Outputs of `waves`, and gradients of what is free."""
    rng = np.random.default_rng(seed)
    count = sum(WAVES)
    flat = {
        "x": rng.normal(size=count), "y": rng.normal(size=(count, 2)),
        "weight": rng.normal(size=len(WAVES)), "scale": rng.uniform(1, 2), "shift": rng.normal(),
    }  # fmt: skip
    flat = {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=name in free)
        for name, value in flat.items()
    }
    data = {"x": sp.Ragged(flat["x"], WAVES), "y": sp.Ragged(flat["y"], WAVES)}
    outputs = sp.run(
        kernel, {**data, "weight": flat["weight"]}, plan, compile=compile,
        scale=flat["scale"], options={"shifts": (flat["shift"],)},
    )  # fmt: skip
    loss = (torch.arange(32.0) * outputs[0]).sum() + (outputs[1].values ** 2).sum()
    if loss.requires_grad:
        loss.backward()
    values = [outputs[0].detach(), outputs[1].values.detach(), outputs[2]]
    return values, {name: flat[name].grad for name in free}


@pytest.mark.parametrize("per_item", [False, True])
def test_compiled_gradients_take_two_graphs_per_shape_and_later_runs_none(graphs, per_item):
    kernel = declare_waves(per_item)
    columns = {"x": [[0.0] * size for size in WAVES], "y": [[[0.0, 0.0]] * size for size in WAVES]}
    plan = sp.plan(kernel, {**columns, "weight": np.zeros(32)}, slots=2, rows=4)
    assert (len(plan.batches), len(plan.shapes)) == (8, 2)
    for seed in (0, 1, 2):  # other data, and other values of what is shared
        values, slopes = run_waves(kernel, plan, seed, compile=True)
        assert len(graphs) == 4
        expected, expected_slopes = run_waves(kernel, plan, seed, compile=False)
        for found, right in zip(values, expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-13)
        for name, right in expected_slopes.items():
            np.testing.assert_allclose(slopes[name], right, rtol=1e-12, atol=1e-12, err_msg=name)
    with torch.no_grad():
        run_waves(kernel, plan, 3, compile=True)
    assert len(graphs) == 4


def test_a_compiled_gradient_of_fewer_parameters_is_a_graph_of_its_own(graphs):
    kernel = declare_waves(per_item=False)
    columns = {"x": [[0.0] * size for size in WAVES], "y": [[[0.0, 0.0]] * size for size in WAVES]}
    plan = sp.plan(kernel, {**columns, "weight": np.zeros(32)}, slots=1, rows=4)
    everything = ("x", "y", "weight", "scale", "shift")
    counts = []
    for free in (everything, everything[:1], everything[3:], ("shift",), everything):
        _, slopes = run_waves(kernel, plan, 0, compile=True, free=free)
        _, expected = run_waves(kernel, plan, 0, compile=False, free=free)
        for name, right in expected.items():
            np.testing.assert_allclose(slopes[name], right, rtol=1e-12, atol=1e-12, err_msg=name)
        counts.append(len(graphs))
    assert counts == [2, 3, 4, 5, 5]  # the forward pass is the same


def test_a_compiled_run_keeps_its_inputs_and_one_batch_at_a_time(graphs):
    @sp.kernel("(n)->(),(n)", ragged="n")
    def folded(x):
        for _ in range(3):
            x = torch.sin(x)
        return x.sum(dim=-1), x

    flat = torch.ones(640, dtype=torch.float64, requires_grad=True)
    data = {"x": sp.Ragged(flat, [10] * 64)}
    plan = sp.plan(folded, data, slots=1, rows=2)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        total, each = sp.run(folded, data, plan, compile=True)
    (total.sum() + each.values.sum()).backward()
    forward, backward = graphs
    assert [[shape for shape, _ in call] for call in forward] == [[(2,), (2, 10)]] * 32
    assert [[shape for shape, _ in call] for call in backward] == [[(2, 10)]] * 32
    assert [tuple(part.shape) for part in kept] == [(640,)]


def test_gradients_through_compiled_batches():
    pytest.importorskip("torch._dynamo")
    data, weights = make_data(grad=True), np.ones(5)
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")

    @sp.kernel("(n,2),(n)->()", ragged="n")
    def plain(x, charge, *, scale):
        return scale * (charge * (x**2).sum(dim=-1)).sum(dim=-1)

    plan = sp.plan(plain, data, slots=1, rows=2)
    assert len(plan.batches) > 1
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    sp.run(plain, data, plan, compile=True, scale=scale).sum().backward()
    by_x, by_scale = gradients(data, 1.5, weights)
    np.testing.assert_allclose(data["x"].values.grad, by_x, rtol=1e-12)
    np.testing.assert_allclose(scale.grad, by_scale, rtol=1e-12)


def test_batches_are_recomputed_in_the_precision_they_were_computed_in():
    seen = []

    @sp.kernel("(n,3)->()", ragged="n")
    def product(x, *, matrix):
        turned = torch.matmul(x, matrix)
        seen.append(turned.dtype)
        return turned.sum(dim=(-1, -2))

    data = {"x": sp.Ragged(torch.ones(13, 3, requires_grad=True), SIZES)}
    plan = sp.plan(product, data, slots=1, rows=2)
    for forward, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            found = sp.run(product, data, plan, matrix=torch.ones(3, 3))
        with torch.autocast("cpu", torch.bfloat16, enabled=not forward):
            found.float().sum().backward()
        assert (set(seen), len(seen)) == ({dtype}, 2 * len(plan.batches))


def test_a_jacobian_of_many_rows_at_once_is_right():
    data = make_data(grad=True)
    plan = sp.plan(energy, data, slots=1, rows=2)
    total, _ = sp.run(energy, data, plan, scale=1.5)
    one = torch.eye(5, dtype=torch.float64)
    (rows,) = torch.autograd.grad(total, data["x"].values, one, is_grads_batched=True)
    for row, weights in zip(rows, one.numpy(), strict=True):
        np.testing.assert_allclose(row, gradients(data, 1.5, weights)[0], rtol=1e-12)


def test_transforms_of_a_run_whose_other_parameters_are_followed():
    data = make_data()
    plan = sp.plan(energy, data, slots=1, rows=2)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def total(flat):
        return sp.run(energy, {**data, "x": sp.Ragged(flat, SIZES)}, plan, scale=scale)[0].sum()

    by_x = torch.func.grad(total)(data["x"].values)
    np.testing.assert_allclose(by_x.detach(), gradients(data, 1.5, np.ones(5))[0], rtol=1e-12)
    by_x.sum().backward()
    np.testing.assert_allclose(scale.grad, by_x.detach().sum() / 1.5, rtol=1e-12)


@pytest.mark.parametrize("rows", [2, 5])
def test_what_no_output_depends_on_has_no_gradient(rows):
    @sp.kernel("(n),()->()", ragged="n")
    def total(x, unused, *, scale, options):
        return scale * x.sum(dim=-1)

    def leaf(*shape):
        return torch.ones(shape, dtype=torch.float64, requires_grad=True)

    flat, column, scale, shift = leaf(13), leaf(5), leaf(), leaf()
    data = {"x": sp.Ragged(flat, SIZES), "unused": column}
    plan = sp.plan(total, data, slots=1, rows=rows)
    sp.run(total, data, plan, scale=scale, options=[shift, None]).sum().backward()
    assert column.grad is None
    assert shift.grad is None
    assert (flat.grad == 1).all()
    assert scale.grad == 13


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


@pytest.mark.parametrize("lazy", ["conj", "neg"])
def test_numbers_that_are_conjugated_or_negated_later_are_read_as_they_are(lazy):
    values = np.arange(6).reshape(3, 2) + 1j * np.arange(6, 12).reshape(3, 2)
    tensor = torch.asarray(values).conj()
    assert tensor.is_conj()
    expected = values.conj().sum(axis=1)
    if lazy == "neg":
        tensor = tensor.imag
        assert tensor.is_neg()
        expected = -values.imag.sum(axis=1)
    total = sp.kernel("(n)->()")(lambda x: x.sum(-1))
    found = sp.run(total, [tensor], on="numpy", rows=2)
    np.testing.assert_array_equal(found.resolve_conj().resolve_neg().numpy(), expected)


def test_a_dtype_that_numpy_has_not_is_refused_with_the_conversion():
    total = sp.kernel("(n)->()")(lambda x: x.sum(-1))
    tensor = torch.ones((4, 2), dtype=torch.bfloat16)
    with pytest.raises(sp.DataError, match=r"dtype torch\.bfloat16.*tensor\.float\(\)"):
        sp.run(total, [tensor], on="numpy")
    assert sp.run(total, [tensor.float()], on="numpy").tolist() == [2.0] * 4
