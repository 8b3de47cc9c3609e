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
