"""Gradients through a run of many batches: right, and with the memory of one."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp

SIZES = [3, 0, 7, 2, 5, 1, 3, 8, 2, 2]


@sp.kernel("(n),(n),()->(n),()", ragged="n", fill={"x": 0.0})
def roots(x, which, weight, *, table, options):
    """Square roots, whose slope at the fill is infinite; a table by whole numbers; nested."""
    xp = array_namespace(x, table)
    rooted = xp.sqrt(x) * weight[..., None]
    flat = xp.reshape(which, (-1,))
    chosen = xp.reshape(xp.take(table, flat, axis=0), which.shape)
    each = chosen * x * options["scale"]
    return rooted, xp.sum(each, axis=-1) + options["shifts"][0] * weight


def make_roots(sizes: list[int], seed: int = 0) -> dict[str, Any]:
    """Columns of `roots` as NumPy."""
    rng = np.random.default_rng(seed)
    total = sum(sizes)
    return {
        "x": sp.Ragged(rng.uniform(1, 2, total), sizes),
        "which": sp.Ragged(rng.integers(0, 4, total), sizes),
        "weight": rng.normal(size=len(sizes)),
    }


TABLE = np.array([1.0, -2.0, 0.5, 3.0])
SCALE, SHIFT = 1.5, 0.25
SLOTS = [{"n": 3, "rows": 2}, {"n": 8, "rows": 2}]


def slow_roots(data: dict[str, Any], by_root: np.ndarray, by_sum: np.ndarray) -> dict[str, Any]:
    """Derivatives of sum(by_root * roots) + sum(by_sum * sums), one entry after the other."""
    found = {
        "x": np.zeros_like(data["x"].values),
        "weight": np.zeros_like(data["weight"]),
        "table": np.zeros(4),
        "scale": 0.0,
        "shift": 0.0,
    }
    place = 0
    for item, (xs, which) in enumerate(zip(data["x"], data["which"], strict=True)):
        weight = data["weight"][item]
        found["weight"][item] += by_sum[item] * SHIFT
        found["shift"] += by_sum[item] * weight
        for x, k in zip(xs, which, strict=True):
            found["x"][place] = by_root[place] * weight / (2 * np.sqrt(x))
            found["x"][place] += by_sum[item] * TABLE[k] * SCALE
            found["weight"][item] += by_root[place] * np.sqrt(x)
            found["table"][k] += by_sum[item] * x * SCALE
            found["scale"] += by_sum[item] * TABLE[k] * x
            place += 1
    return found


def cotangents(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the two outputs in the loss."""
    rng = np.random.default_rng(9)
    return rng.normal(size=sum(sizes)), rng.normal(size=len(sizes))


def torch_roots(torch: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Everything `roots` is differentiable in, as leaves that require grad."""

    def leaf(values: Any) -> Any:
        return torch.tensor(values, dtype=torch.float64, requires_grad=True)

    return {
        "x": leaf(data["x"].values),
        "weight": leaf(data["weight"]),
        "table": leaf(TABLE),
        "scale": leaf(SCALE),
        "shift": leaf(SHIFT),
    }


def run_roots(data: dict[str, Any], free: dict[str, Any], which: Any, **how: Any) -> Any:
    """Run `roots` with the free arrays in place of the data's."""
    columns = {
        "x": sp.Ragged(free["x"], data["x"].shapes),
        "which": data["which"].map_values(lambda _: which),
        "weight": free["weight"],
    }
    plan = sp.plan(roots, columns, slots=SLOTS)
    assert len(plan.batches) > 2
    options = {"scale": free["scale"], "shifts": [free["shift"]]}
    return sp.run(roots, columns, plan, table=free["table"], options=options, **how)


def test_torch_gradients_of_everything_equal_a_slow_loop(
    load_framework: Callable[[str], ModuleType],
) -> None:
    load_framework("torch")
    import torch

    data = make_roots(SIZES)
    by_root, by_sum = cotangents(SIZES)
    free = torch_roots(torch, data)
    rooted, sums = run_roots(data, free, torch.from_numpy(data["which"].values))
    loss = (torch.from_numpy(by_root) * rooted.values).sum()
    (loss + (torch.from_numpy(by_sum) * sums).sum()).backward()
    for name, expected in slow_roots(data, by_root, by_sum).items():
        np.testing.assert_allclose(free[name].grad, expected, rtol=1e-12, err_msg=name)


def test_an_output_that_is_not_used_and_a_parameter_that_is_not_wanted_cost_nothing(
    load_framework: Callable[[str], ModuleType],
) -> None:
    load_framework("torch")
    import torch

    data = make_roots(SIZES)
    _, by_sum = cotangents(SIZES)
    free = torch_roots(torch, data)
    free["x"].requires_grad_(False)
    _, sums = run_roots(data, free, torch.from_numpy(data["which"].values))
    (torch.from_numpy(by_sum) * sums).sum().backward()
    expected = slow_roots(data, np.zeros(sum(SIZES)), by_sum)
    assert free["x"].grad is None
    for name in ("weight", "table", "scale", "shift"):
        np.testing.assert_allclose(free[name].grad, expected[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("compiled", [False, True])
def test_jax_gradients_of_everything_equal_a_slow_loop(
    load_framework: Callable[[str], ModuleType], compiled: bool
) -> None:
    jnp = load_framework("jax")
    import jax

    data = make_roots(SIZES)
    by_root, by_sum = cotangents(SIZES)
    which = jnp.asarray(data["which"].values)

    def loss(free: Any) -> Any:
        rooted, sums = run_roots(data, free, which)
        return (by_root * rooted.values).sum() + (by_sum * sums).sum()

    free = {
        "x": jnp.asarray(data["x"].values),
        "weight": jnp.asarray(data["weight"]),
        "table": jnp.asarray(TABLE),
        "scale": SCALE,
        "shift": SHIFT,
    }
    found = (jax.jit if compiled else lambda f: f)(jax.grad(loss))(free)
    for name, expected in slow_roots(data, by_root, by_sum).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, err_msg=name)


def test_an_eager_jax_gradient_of_another_set_compiles_nothing(
    load_framework: Callable[[str], ModuleType],
) -> None:
    jnp = load_framework("jax")
    import jax

    from stowplan.adapters.jax import adapter

    def gradient(sizes: list[int], seed: int) -> Any:
        data = make_roots(sizes, seed)
        by_root, by_sum = cotangents(sizes)
        which = jax.device_put(data["which"].values)
        free = {"table": jax.device_put(TABLE), "scale": SCALE, "shift": SHIFT}

        def loss(x: Any, weight: Any) -> Any:
            rooted, sums = run_roots(data, {**free, "x": x, "weight": weight}, which)
            return jnp.vdot(by_root, rooted.values) + jnp.vdot(by_sum, sums)

        return jax.grad(loss, argnums=(0, 1))(
            jax.device_put(data["x"].values), jax.device_put(data["weight"])
        )

    gradient(SIZES, 0)
    before = adapter.traces["roots"]
    found, _ = gradient([2, 8, 1, 1, 7, 3, 3, 4], 1)
    assert adapter.traces["roots"] == before
    data = make_roots([2, 8, 1, 1, 7, 3, 3, 4], 1)
    expected = slow_roots(data, *cotangents([2, 8, 1, 1, 7, 3, 3, 4]))
    np.testing.assert_allclose(found, expected["x"], rtol=1e-12)


def test_gradients_of_complex_outputs_are_those_of_the_framework(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    load_framework("torch")
    import torch

    angles = np.random.default_rng(3).normal(size=sum(SIZES))
    weights = np.random.default_rng(4).normal(size=len(SIZES))
    flat = torch.tensor(angles, requires_grad=True)
    plan = sp.plan(kernels.phase, {"angle": sp.Ragged(angles, SIZES)}, slots=2, rows=2)
    _, sums = sp.run(kernels.phase, {"angle": sp.Ragged(flat, SIZES)}, plan)
    (torch.from_numpy(weights) * (sums.real + 2 * sums.imag)).sum().backward()
    expected = np.repeat(weights, SIZES) * (2 * np.cos(angles) - np.sin(angles))
    np.testing.assert_allclose(flat.grad, expected, rtol=1e-12)


def test_items_that_share_rows_add_their_gradients(
    load_framework: Callable[[str], ModuleType], kernels: SimpleNamespace
) -> None:
    load_framework("torch")
    import torch

    rng = np.random.default_rng(1)
    flat = torch.tensor(rng.normal(size=9), requires_grad=True)
    chosen = [2, 0, 2, 1, 2, 0]
    pool = sp.Ragged(flat, [4, 2, 3])[chosen]
    plan = sp.plan(kernels.total, {"x": pool}, slots=1, rows=2)
    found = sp.run(kernels.total, {"x": pool}, plan, scale=2.0, power=3)
    weights = rng.normal(size=6)
    (torch.from_numpy(weights) * found).sum().backward()
    by_item = np.zeros(3)
    np.add.at(by_item, chosen, weights)
    x = flat.detach().numpy()
    np.testing.assert_allclose(flat.grad, 6 * x**2 * np.repeat(by_item, [4, 2, 3]), rtol=1e-12)


def test_torch_keeps_its_inputs_and_nothing_of_the_batches(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    load_framework("torch")
    import torch

    flat = torch.arange(1.0, 401.0, dtype=torch.float64, requires_grad=True)
    column = {"x": sp.Ragged(flat, [4] * 100)}
    plan = sp.plan(kernels.total, column, slots=1, rows=5)
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = sp.run(kernels.total, column, plan, scale=1.0, power=2)
    assert [tuple(part.shape) for part in kept] == [(400,)]
    found.sum().backward()
    np.testing.assert_allclose(flat.grad, 2 * np.arange(1.0, 401.0), rtol=1e-14)


@pytest.mark.parametrize("name", ["spread", "moments"])
def test_nothing_of_the_batches_is_alive_after_a_torch_run(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType], name: str
) -> None:
    load_framework("torch")
    import torch

    from stowplan.adapters.torch_memory import LiveStorages

    flat = torch.ones(4000, dtype=torch.float64, requires_grad=True)
    column = {"x": sp.Ragged(flat, [40] * 100)}
    kernel = getattr(kernels, name)
    plan = sp.plan(kernel, column, slots=1, rows=50)
    with LiveStorages() as storages:
        sp.run(kernel, column, plan)  # index arrays are made, and kept with the plan
        before = storages.live_bytes
        found = sp.run(kernel, column, plan)
        gc.collect()
    parts = [part.values if isinstance(part, sp.Ragged) else part for part in found]
    assert storages.live_bytes - before <= sum(part.nbytes for part in parts)


def test_second_derivatives_raise_or_are_right(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    load_framework("torch")
    import torch

    values = np.arange(1.0, 9.0)
    for rows, several in ((2, True), (4, False)):
        flat = torch.tensor(values, requires_grad=True)
        column = {"x": sp.Ragged(flat, [2, 2, 2, 2])}
        plan = sp.plan(kernels.total, column, slots=1, rows=rows)
        found = sp.run(kernels.total, column, plan, scale=1.0, power=3).sum()
        if several:
            with pytest.raises(sp.FrameworkError, match=r"second derivatives.*rows=len"):
                torch.autograd.grad(found, flat, create_graph=True)
            continue
        (first,) = torch.autograd.grad(found, flat, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), flat)
        np.testing.assert_allclose(second, 6 * values)


def test_second_derivatives_in_jax(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    jnp = load_framework("jax")
    import jax

    values = np.arange(1.0, 9.0)
    plan = sp.plan(kernels.total, {"x": sp.Ragged(values, [2] * 4)}, slots=1, rows=2)

    def loss(flat: Any) -> Any:
        return sp.run(
            kernels.total, {"x": sp.Ragged(flat, [2] * 4)}, plan, scale=1.0, power=3
        ).sum()

    second = jax.grad(lambda flat: jax.grad(loss)(flat).sum())(jnp.asarray(values))
    np.testing.assert_allclose(second, 6 * values, rtol=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
def test_jax_maps_over_gradients_and_over_cotangents(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType], compiled: bool
) -> None:
    jnp = load_framework("jax")
    import jax

    values, sizes = np.arange(1.0, 9.0), [3, 1, 2, 2]
    plan = sp.plan(kernels.total, {"x": sp.Ragged(values, sizes)}, slots=1, rows=2)
    wrap = jax.jit if compiled else lambda function: function

    def sums(flat: Any, scale: Any) -> Any:
        return sp.run(kernels.total, {"x": sp.Ragged(flat, sizes)}, plan, scale=scale, power=2)

    whose = np.repeat(np.arange(4), sizes) == np.arange(4)[:, None]  # (items, values)
    by_flat, by_scale = wrap(jax.jacrev(sums, argnums=(0, 1)))(jnp.asarray(values), 1.5)
    np.testing.assert_allclose(by_flat, 3 * values * whose, rtol=1e-13)
    np.testing.assert_allclose(by_scale, (values**2 * whose).sum(1), rtol=1e-13)
    gradient = jax.grad(lambda flat, scale: sums(flat, scale).sum())
    scales = jnp.asarray([1.0, 2.0, 5.0])
    found = wrap(jax.vmap(gradient, in_axes=(None, 0)))(jnp.asarray(values), scales)
    np.testing.assert_allclose(found, 2 * np.outer(scales, values), rtol=1e-13)


@pytest.mark.parametrize("compiled", [False, True])
def test_jax_gradients_beside_a_shared_parameter_that_is_none(
    load_framework: Callable[[str], ModuleType], compiled: bool
) -> None:
    jnp = load_framework("jax")
    import jax

    @sp.kernel("(n)->()", ragged="n")
    def total(x, *, options, spare=None):
        assert options["none"] is None
        return options["scale"] * x.sum(axis=-1)

    values = jnp.arange(1.0, 9.0)
    plan = sp.plan(total, {"x": sp.Ragged(values, [2] * 4)}, slots=1, rows=2)

    def loss(flat: Any, scale: Any) -> Any:
        options = {"scale": scale, "none": None}
        return sp.run(total, {"x": sp.Ragged(flat, [2] * 4)}, plan, options=options).sum()

    gradient = jax.grad(loss, argnums=(0, 1))
    by_flat, by_scale = (jax.jit(gradient) if compiled else gradient)(values, 1.5)
    np.testing.assert_allclose(by_flat, np.full(8, 1.5))
    np.testing.assert_allclose(by_scale, 36.0)


def test_gradcheck_passes(load_framework: Callable[[str], ModuleType]) -> None:
    load_framework("torch")
    import torch

    data = make_roots([3, 1, 2, 5, 3])
    which = torch.from_numpy(data["which"].values)
    free = torch_roots(torch, data)

    def outputs(*values: Any) -> Any:
        rooted, sums = run_roots(data, dict(zip(free, values, strict=True)), which)
        return rooted.values, sums

    assert torch.autograd.gradcheck(outputs, tuple(free.values()))


def test_nothing_is_recorded_without_grad_mode(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    load_framework("torch")
    import torch

    flat = torch.arange(8.0, requires_grad=True)
    column = {"x": sp.Ragged(flat, [2] * 4)}
    plan = sp.plan(kernels.total, column, slots=1, rows=2)
    with torch.no_grad():
        assert not sp.run(kernels.total, column, plan, scale=1.0).requires_grad
    assert sp.run(kernels.total, column, plan, scale=1.0).requires_grad


def test_a_traced_run_holds_one_kernel_call_per_shape_and_the_memory_of_one_batch(
    load_framework: Callable[[str], ModuleType],
) -> None:
    jnp = load_framework("jax")
    import jax

    from stowplan.adapters.jax import adapter

    @sp.kernel("(n)->()", ragged="n", fill={"x": 0.0})
    def waves(x, *, scale):
        xp = array_namespace(x)
        return xp.sum(xp.sin(scale * x) ** 2, axis=-1)

    items, size = 1024, 64
    values = np.random.default_rng(0).normal(size=items * size)
    column = sp.Ragged(values, [size] * items)
    plan = sp.plan(waves, {"x": column}, slots=1, rows=1)
    assert len(plan.batches) == items

    def loss(flat: Any, scale: Any) -> Any:
        return sp.run(waves, {"x": sp.Ragged(flat, column.shapes)}, plan, scale=scale).sum()

    before = adapter.traces["waves"]
    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(jnp.asarray(values), 0.7).compile()
    assert adapter.traces["waves"] - before <= 2  # forward and backward
    by_x, by_scale = program(jnp.asarray(values), 0.7)
    np.testing.assert_allclose(by_x, 0.7 * np.sin(1.4 * values), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(by_scale, (values * np.sin(1.4 * values)).sum(), rtol=1e-10)
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < 2.5 * values.nbytes  # one gradient in the making, no tape


def test_segments_masks_and_views_are_scanned_alike(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    jnp = load_framework("jax")
    import jax

    rng = np.random.default_rng(5)
    shapes = [(2, 5), (4, 3), (1, 1), (6, 2), (0, 3), (3, 4)]
    images = sp.Ragged.from_list([rng.normal(size=shape) for shape in shapes], ragged=2)
    weights = sp.Ragged.from_list([rng.normal(size=shape[1]) for shape in shapes])
    chosen = [5, 0, 3, 3, 1, 2, 4]
    data = {"image": images[chosen], "weights": weights[chosen]}
    plan = sp.plan(
        kernels.weigh, data, slots=[{"y": 4, "x": 5, "rows": 2}, {"y": 6, "x": 5, "rows": 2}]
    )
    assert len(plan.batches) > 2

    def run(image: Any, weight: Any) -> Any:
        columns = {
            "image": sp.Ragged.from_layout(image, data["image"].layout),
            "weights": sp.Ragged.from_layout(weight, data["weights"].layout),
        }
        return sp.run(kernels.weigh, columns, plan)

    found = jax.jit(run)(jnp.asarray(images.values), jnp.asarray(weights.values))
    for place, item in enumerate(chosen):
        expected = images[item] * weights[item]
        np.testing.assert_allclose(found[0][place], expected, rtol=1e-13)
        np.testing.assert_allclose(found[1][place], expected.sum(0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(
            found[2][place], expected.mean() if expected.size else 0.0, rtol=1e-12, atol=1e-14
        )
