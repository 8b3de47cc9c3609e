"""A loss of a run, and its gradient."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import stowplan as sp

SIZES = [3, 0, 7, 2, 5]


def arrays(xp: Any, value: Any) -> Any:
    """Columns as arrays of a framework."""
    if isinstance(value, sp.Ragged):
        return value.map_values(xp.asarray)
    return xp.asarray(value)


@pytest.mark.parametrize("on", ["torch", "jax"])
@pytest.mark.parametrize("rows", [2, 5])
def test_value_and_gradients_equal_a_slow_loop(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType], on: str, rows: int
) -> None:
    xp = load_framework(on)
    host = kernels.make_atoms(SIZES)
    data = {name: arrays(xp, column) for name, column in host.items()}
    plan = sp.plan(kernels.pull, data, slots=1, rows=rows)
    value, by = sp.value_and_grad(
        kernels.pull,
        data,
        plan,
        loss=lambda energies, forces: energies**2 + 0 * forces.values.sum(),
        wrt=["charges", "matrix", "scale"],
        scale=xp.asarray(0.7, dtype=xp.float64),
    )
    energies, _ = kernels.loop_pull(host, 0.7)
    np.testing.assert_allclose(float(value), (energies**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(float(by["scale"]), 2 * (energies**2).sum() / 0.7, rtol=1e-12)
    assert isinstance(by["charges"], sp.Ragged)
    for item, (positions, charges, matrix) in enumerate(zip(*host.values(), strict=True)):
        turned = positions @ matrix
        expected = 2 * energies[item] * 0.7 * (turned**2).sum(1)
        np.testing.assert_allclose(by["charges"][item], expected, rtol=1e-11)
        by_matrix = 4 * energies[item] * 0.7 * positions.T @ (charges[:, None] * turned)
        np.testing.assert_allclose(by["matrix"][item], by_matrix, rtol=1e-11, atol=1e-13)


def test_the_data_keep_no_gradient_of_their_own(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    load_framework("torch")
    import torch

    flat = torch.arange(1.0, 5.0)
    value, by = sp.value_and_grad(
        kernels.total, {"x": sp.Ragged(flat, [2, 2])}, loss=lambda sums: sums, wrt="x", scale=2.0
    )
    assert by["x"].values.tolist() == [2.0] * 4
    assert not flat.requires_grad
    assert flat.grad is None
    assert not value.requires_grad


def test_what_cannot_be_differentiated_is_named(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    load_framework("torch")
    import torch

    data = {"x": sp.Ragged(torch.arange(1.0, 5.0), [2, 2])}

    def call(wrt: Any, loss: Any = lambda sums: sums, columns: Any = data, scale: Any = 2.0) -> Any:
        return sp.value_and_grad(kernels.total, columns, loss=loss, wrt=wrt, scale=scale)

    with pytest.raises(sp.DataError, match=r"wrt='y' is nothing given; there are: x, scale"):
        call("y")
    with pytest.raises(sp.DataError, match=r"wrt='scale' is of type float; give an array of torch"):
        call("scale")
    with pytest.raises(sp.DataError, match=r"wrt='x' has dtype torch.int64"):
        call("x", columns={"x": sp.Ragged(torch.arange(4), [2, 2])})
    with pytest.raises(sp.DataError, match=r"loss returned shape torch.Size\(\[\]\).*2 items"):
        call("x", loss=lambda sums: sums.sum())
    with pytest.raises(sp.FrameworkError, match="numpy has no gradients"):
        call("x", columns={"x": sp.Ragged(np.ones(4), [2, 2])})


def test_the_example_runs(load_framework: Callable[[str], ModuleType]) -> None:
    load_framework("torch")
    import torch

    text = sp.value_and_grad.__doc__ or ""
    block = textwrap.dedent(text[text.index("@sp.kernel") - 8 :])
    names: dict[str, Any] = {"sp": sp, "torch": torch}
    exec(block, names)
    by = names["by"]
    assert float(names["value"]) == 106.0  # (2*3 - 1)^2 + (2*5 - 1)^2
    assert [part.tolist() for part in by["x"]] == [[20.0, 20.0], [36.0]]
    assert float(by["scale"]) == 120.0


@sp.kernel("(atoms,3),(atoms),()->()", ragged="atoms", fill={"charges": 0.0})
def squared(positions, charges, target, *, scale, unused=None):
    """Squared error of `scale * sum q |x|^2`; items lie in the last axes."""
    found = scale * (charges * (positions**2).sum(-1)).sum(-1)
    return (found - target) ** 2


def squared_data(xp: Any, kernels: SimpleNamespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns on the host, and as arrays of a framework."""
    atoms = kernels.make_atoms(SIZES)
    host = {"positions": atoms["positions"], "charges": atoms["charges"]}
    host["target"] = np.linspace(-1, 2, len(SIZES))
    return host, {name: arrays(xp, column) for name, column in host.items()}


def assert_squares(value: Any, by: Any, host: dict[str, Any], scale: float) -> None:
    """Compare the sum of squared errors and its gradients with one item after the other."""
    total, by_scale = 0.0, 0.0
    for item, (positions, charges, target) in enumerate(zip(*host.values(), strict=True)):
        weighted = (charges * (positions**2).sum(1)).sum()
        error = scale * weighted - target
        total += error**2
        by_scale += 2 * error * weighted
        expected = 4 * error * scale * charges[:, None] * positions
        np.testing.assert_allclose(by["positions"][item], expected, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(by["target"][item], -2 * error, rtol=1e-11)
    np.testing.assert_allclose(float(value), total, rtol=1e-12)
    np.testing.assert_allclose(float(by["scale"]), by_scale, rtol=1e-12)


SQUARED = ["positions", "scale", "target"]


@pytest.mark.parametrize("on", ["torch", "jax"])
@pytest.mark.parametrize("rows", [2, 5])
def test_losses_of_the_kernel_and_their_gradients_equal_a_slow_loop(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType], on: str, rows: int
) -> None:
    xp = load_framework(on)
    host, data = squared_data(xp, kernels)
    scale = xp.asarray(0.7, dtype=xp.float64)
    plan = sp.plan(squared, data, slots=1, rows=rows)  # of 5 items, the last of which fills 6 rows
    value, by = sp.value_and_grad(squared, data, plan, wrt=SQUARED, scale=scale)
    assert_squares(value, by, host, 0.7)
    value, by = sp.value_and_grad(squared, data, budget="8 MiB", wrt=SQUARED, scale=scale)
    assert_squares(value, by, host, 0.7)


def test_losses_of_the_kernel_inside_of_a_program_of_the_user(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    xp = load_framework("jax")
    import jax

    host, data = squared_data(xp, kernels)
    plan = sp.plan(squared, data, slots=2, rows=2)

    def both(data: Any, scale: Any) -> Any:
        return sp.value_and_grad(squared, data, plan, wrt=SQUARED, scale=scale)

    scale = xp.asarray(0.7, dtype=xp.float64)
    value, by = jax.jit(both)(data, scale)
    assert_squares(value, by, host, 0.7)
    again = jax.grad(lambda scale: both(data, scale)[0])(scale)
    np.testing.assert_allclose(again, by["scale"], rtol=1e-12)
    slope = jax.grad(lambda scale: both(data, scale)[1]["scale"])(scale)
    weighted = [(q * (x**2).sum(1)).sum() for x, q, _ in zip(*host.values(), strict=True)]
    np.testing.assert_allclose(slope, 2 * np.square(weighted).sum(), rtol=1e-12)


def test_losses_of_the_kernel_are_computed_once_and_kept_by_nothing(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    xp = load_framework("torch")
    calls: list[int] = []

    @sp.kernel("(points)->()", ragged="points", fill={"x": 0.0})
    def square(x, *, scale, unused):
        calls.append(len(x))
        return scale * (x * x).sum(-1)

    values = xp.arange(1.0, 5.0).requires_grad_()
    data = {"x": sp.Ragged(values, [1, 1, 1, 1])}
    scale, unused = xp.asarray(3.0).requires_grad_(), xp.ones(2)
    plan = sp.plan(square, data, slots=1, rows=2)
    value, by = sp.value_and_grad(
        square, data, plan, wrt=["x", "scale", "unused"], scale=scale, unused=unused
    )
    assert calls == [2, 2]
    assert float(value) == 90
    assert (by["x"].values.tolist(), float(by["scale"])) == ([6.0, 12.0, 18.0, 24.0], 30)
    assert by["unused"].tolist() == [0.0, 0.0]
    assert not any(array.requires_grad for array in (value, by["x"].values, by["scale"]))
    assert values.grad is None


@pytest.mark.parametrize("on", ["torch", "jax"])
def test_losses_go_on_in_smaller_batches_where_memory_runs_out(
    kernels: SimpleNamespace,
    load_framework: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    on: str,
) -> None:
    from stowplan.adapters import get_adapter

    xp = load_framework(on)
    host, data = squared_data(xp, kernels)
    made, seen = get_adapter(on).loss_pullback, []  # type: ignore[attr-defined]

    def loss_pullback(*args: Any, **how: Any) -> Any:
        call = made(*args, **how)

        def planted(arguments: Any, *rest: Any) -> Any:
            seen.append(len(arguments[0]))
            if seen[0] == 2 and len(seen) > 2 and len(arguments[0]) > 1:
                raise MemoryError("planted")
            return call(arguments, *rest)

        return planted

    monkeypatch.setattr(get_adapter(on), "loss_pullback", loss_pullback)
    plan = sp.plan(squared, data, slots=1, rows=2)
    scale = xp.asarray(0.7, dtype=xp.float64)
    value, by = sp.value_and_grad(squared, data, plan, wrt=SQUARED, scale=scale)
    assert seen == [2, 2, 2, 1]
    assert caplog.messages[0].startswith("value_and_grad: out of memory with 2 rows of squared")
    assert_squares(value, by, host, 0.7)


@pytest.mark.parametrize("on", ["torch", "jax"])
def test_a_kernel_whose_output_is_no_loss_is_named(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType], on: str
) -> None:
    xp = load_framework(on)
    data = {"x": sp.Ragged(xp.asarray([1.0, 2.0, 3.0, 4.0]), [2, 2])}

    def refused(signature: str, function: Callable[[Any], Any], match: str, **how: Any) -> None:
        kernel = sp.kernel(signature, ragged="points")(function)
        with pytest.raises((sp.DataError, sp.PlanError), match=match):
            sp.value_and_grad(kernel, data, wrt="x", **how)

    def two(x):
        return x.sum(-1), x.sum(-1)

    def same(x):
        return x

    def whole(x):
        return x.sum(-1).astype("int64") if on == "jax" else x.sum(-1).long()

    def total(x):
        return x.sum(-1)

    refused("(points)->(),()", two, r"two returns \(\),\(\); without loss=.*Give loss=")
    refused("(points)->(points)", same, r"same returns \(points\); without loss=")
    refused("(points)->()", two, "two returned 2 outputs, its signature has 1")
    refused("(points)->()", same, r"same.*shape")
    refused("(points)->()", whole, r"whole returned losses of dtype .*int64.*Return real floating")
    plan = sp.plan(sp.kernel("(points)->()", ragged="points")(total), data)
    refused("(points)->()", total, "value_and_grad: give budget= while planning", plan=plan,
            budget="1 MiB")  # fmt: skip


def test_memory_of_losses_is_left_to_the_compiler_where_a_plan_has_predicted_it(
    kernels: SimpleNamespace,
    load_framework: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from stowplan.adapters import get_adapter

    xp = load_framework("jax")
    _, data = squared_data(xp, kernels)
    made, counted = get_adapter("jax").loss_pullback, []  # type: ignore[attr-defined]

    def loss_pullback(*args: Any, **how: Any) -> Any:
        counted.append(how["counted"])
        return made(*args, **how)

    monkeypatch.setattr(get_adapter("jax"), "loss_pullback", loss_pullback)
    scale = xp.asarray(0.7, dtype=xp.float64)
    values = [
        sp.value_and_grad(squared, data, wrt=SQUARED, scale=scale, **how)[0]
        for how in ({}, {"budget": "99 MiB"})
    ]
    assert counted == [False, True]
    np.testing.assert_allclose(*values, rtol=1e-13)
