"""The table of backends is true: what it says of kernels and frameworks is run, or refused."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import stowplan as sp
from stowplan.adapters import framework_of, get_adapter
from stowplan.adapters.interface import as_tuple
from stowplan.recipes import bragg, ewald, overlay, transport
from stowplan.runs.columns import bind

DOCS = Path(__file__).parents[2] / "docs"


def _table() -> Any:
    spec = importlib.util.spec_from_file_location("backend_table", DOCS / "backend_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = _table()
CAPABILITIES = TABLE.capabilities()
ITERATED = [name for name, modes in CAPABILITIES.items() if not modes["grad"]]
RUN = [name for name in CAPABILITIES if name not in ITERATED]


class Example(NamedTuple):
    kernel: Any
    data: dict[str, Any]
    shared: dict[str, Any]
    wrt: str  # what the gradient is taken by


def _found(name: str) -> Any:
    module, function = name.split(".")
    return getattr(importlib.import_module(f"stowplan.kernels.{module}"), function)


@functools.cache
def example(name: str) -> Example:
    """A few items of mixed size."""
    rng = np.random.default_rng(0)
    kernel, module = _found(name), name.partition(".")[0]
    if module == "ewald":
        from ase import Atoms

        items = [
            Atoms("NaCl" * n, rng.uniform(0, 4, (2 * n, 3)), cell=np.eye(3) * 4, pbc=True)
            for n in (1, 3)
        ]
        charges = {"Na": 1, "Cl": -1}
        kspace, real = ewald.columns(items, charges=charges, cutoff=3.0, accuracy=1e-3)
        return Example(kernel, kspace if "kspace" in name else real, {}, "positions")
    if module == "bragg":
        crystal = bragg.Crystal((70, 80, 90, 75, 85, 95), misset=(10, 20, 30))
        made = bragg.prepare(crystal, bragg.Detector((3, 4), pixel_size=4.0), bragg.Beam(3.0))
        return Example(kernel, made.columns, made.shared, "lattices")
    if module == "fields":
        fields = [rng.normal(size=(4, 3, 2, lines)) for lines in (1, 3)]
        fields = [field - field.mean(axis=(0, 1, 2)) for field in fields]
        spacing = np.array([1.0, 0.9, 0.8])
        shared = {
            "riesz": {"spacing": spacing}, "residual": {"spacing": spacing}, "squares": {},
            "spectrum": {"spacing": spacing, "width": 4.0},
            "radial": {"spacing": spacing, "width": 1.1, "centre": np.array([2.0, 1.0, 1.0])},
        }[name.partition(".")[2]]  # fmt: skip
        first = kernel.arguments[0]
        return Example(kernel, dict.fromkeys(kernel.arguments, fields), shared, first)
    if name == "overlay.self_overlap":
        points = [rng.normal(size=(n, 3)) for n in (3, 5)]
        return Example(kernel, {"points": points}, {"alpha": 0.81}, "points")
    data = _densities(rng, points=name.endswith("points"))
    return Example(kernel, data, {"tau": 0.9}, "source_potential")


def _densities(rng: np.random.Generator, *, points: bool) -> dict[str, Any]:
    """Densities and potentials, such as `maps` and `maps_points` take."""
    shapes = [(3,), (5,)] if points else [(3, 4), (4, 2)]
    pull = [(*shape, 1) if points else shape for shape in shapes]

    def draws(of: list[tuple[int, ...]]) -> list[Any]:
        return [rng.uniform(0.1, 1, shape) for shape in of]

    data = {"source": draws(shapes), "target": draws(shapes)}
    data |= {"source_potential": draws(pull), "target_potential": draws(pull)}
    if points:
        where = [(*shape, 2) for shape in shapes]
        data |= {"source_points": draws(where), "target_points": draws(where)}
    return {**data, "sharpness": np.array([0.3, 0.4])}


def parts(results: Any) -> list[Any]:
    """Values of all outputs."""
    return [part.values if isinstance(part, sp.Ragged) else part for part in as_tuple(results)]


def on_host(value: Any) -> Any:
    framework = framework_of([value])
    return np.asarray(get_adapter(framework).to_host(value) if framework else value)


def close(found: Any, expected: Any) -> None:
    """Equal within a share of the largest number of each output."""
    for a, b in zip(map(on_host, parts(found)), map(on_host, parts(expected)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max(initial=0))


@functools.cache
def by_numpy(name: str) -> Any:
    kernel, data, shared, _ = example(name)
    return sp.run(kernel, data, **shared)


def moved(value: Any, framework: str) -> Any:
    """An array or Ragged in a framework."""
    place = {"torch": "torch.from_numpy", "jax": "jax.numpy.asarray", "numpy": "numpy.asarray"}
    module, _, function = place[framework].rpartition(".")
    convert = getattr(importlib.import_module(module), function)

    def there(array: Any) -> Any:
        return convert(np.array(array))

    return value.map_values(there) if isinstance(value, sp.Ragged) else there(value)


def columns_in(name: str, framework: str) -> dict[str, Any]:
    kernel, data, _, _ = example(name)
    bound = zip(kernel.arguments, bind("test", kernel, data).values, strict=True)
    return {argument: moved(value, framework) for argument, value in bound}


def shared_in(name: str, framework: str) -> dict[str, Any]:
    """Shared parameters as `run` hands them over: arrays, but for those that select code."""
    kernel, _, shared, _ = example(name)
    return {
        key: value if key in kernel.static or value is None else moved(value, framework)
        for key, value in shared.items()
    }


def test_the_table_lists_every_kernel_of_the_package() -> None:
    declared = set()
    for module in ("ewald", "bragg", "fields", "overlay", "transport"):
        found = vars(importlib.import_module(f"stowplan.kernels.{module}"))
        declared |= {f"{module}.{n}" for n, value in found.items() if isinstance(value, sp.Kernel)}
    assert declared == set(CAPABILITIES)
    assert all(set(modes) == set(TABLE.MODES) for modes in CAPABILITIES.values())


@pytest.mark.parametrize("name", RUN)
def test_a_kernel_gives_what_it_gives_on_numpy(framework: str, name: str) -> None:
    assert framework in CAPABILITIES[name]["eager"]
    kernel, data, shared, _ = example(name)
    close(sp.run(kernel, data, on=framework, **shared), by_numpy(name))


def iterated(name: str, on: str) -> Any:
    rng = np.random.default_rng(1)
    if name == "overlay.step":
        points = [rng.normal(size=(n, 3)) for n in (4, 6)]
        return overlay.align(points, points[::-1], starts=1, steps=20, on=on).score
    if name == "transport.step":
        masks = np.zeros((2, 12, 16), bool)
        masks[0, 3:8, 2:7] = masks[1, 4:9, 5:11] = True
        return transport.solve(masks, pairs="consecutive", pool=1, padding=2, on=on).cost
    clouds = [rng.normal(size=(n, 2)) for n in (4, 6)]
    return transport.solve_points(clouds, clouds[::-1], on=on).cost


@functools.cache
def iterated_by_numpy(name: str) -> Any:
    return iterated(name, "numpy")


@pytest.mark.parametrize("name", ITERATED)
def test_a_step_ends_where_it_ends_on_numpy(framework: str, name: str) -> None:
    assert framework in CAPABILITIES[name]["eager"]
    np.testing.assert_allclose(iterated(name, framework), iterated_by_numpy(name), rtol=1e-9)


@pytest.mark.parametrize("name", RUN)
def test_a_run_is_traced(load_framework: Callable[[str], Any], name: str) -> None:
    load_framework("jax")
    import jax

    assert CAPABILITIES[name]["jit"] == ["jax"]
    kernel, shared = _found(name), shared_in(name, "jax")
    program = jax.jit(lambda columns: sp.run(kernel, columns, **shared))
    close(program(columns_in(name, "jax")), by_numpy(name))


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("name", RUN)
def test_vmap_over_rows_gives_the_batch(
    load_framework: Callable[[str], Any], framework: str, name: str
) -> None:
    load_framework(framework)
    assert framework in CAPABILITIES[name]["vmap"]
    kernel, data, _, _ = example(name)
    shared = shared_in(name, framework)
    vmap, jit = importlib.import_module(framework).vmap, lambda function: function
    if framework == "jax":  # operation by operation takes ten times as long
        jit = importlib.import_module("jax").jit
    batch = sp.plan(kernel, data, slots=1).pack(data, on=framework)[0]
    if kernel.takes_mask:

        def one(arrays: Any, mask: Any) -> Any:
            return kernel(*arrays, mask=mask, **shared)

        found, together = (f(batch.arrays, batch.mask) for f in (jit(vmap(one)), jit(one)))
    else:

        def one(arrays: Any) -> Any:
            return kernel(*arrays, **shared)

        found, together = (f(batch.arrays) for f in (jit(vmap(one)), jit(one)))
    close(found, together)


def halves_of_squares(results: Any) -> Any:
    return sum((part**2).sum() for part in parts(results)) / 2


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("name", RUN)
def test_the_gradient_is_a_central_difference(
    load_framework: Callable[[str], Any], framework: str, name: str
) -> None:
    load_framework(framework)
    assert framework in CAPABILITIES[name]["grad"]
    kernel, _, _, wrt = example(name)

    def total(values: Any, on: str) -> Any:
        columns, shared = columns_in(name, on), shared_in(name, on)
        where = columns if wrt in columns else shared
        old = where[wrt]
        where[wrt] = (
            sp.Ragged.from_layout(values, old.layout) if isinstance(old, sp.Ragged) else values
        )
        return halves_of_squares(sp.run(kernel, columns, **shared))

    start = parts(({**columns_in(name, "numpy"), **shared_in(name, "numpy")}[wrt],))[0]
    if framework == "torch":
        import torch

        free = torch.tensor(start, requires_grad=True)
        total(free, "torch").backward()
        slope = free.grad.numpy()
    else:
        import jax

        slope = np.asarray(jax.jit(jax.grad(lambda v: total(v, "jax")))(jax.numpy.asarray(start)))
    direction = np.random.default_rng(2).normal(size=start.shape)
    step = 1e-5
    ahead, behind = (total(start + sign * step * direction, "numpy") for sign in (1, -1))
    assert np.sum(slope * direction) == pytest.approx((ahead - behind) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("name", RUN)
def test_a_batch_is_one_graph_of_torch(
    load_framework: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The graph is captured as for a compiler, and run without one."""
    load_framework("torch")
    import torch

    assert CAPABILITIES[name]["compile"] == ["torch"]
    kernel, data, shared, _ = example(name)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    close(sp.run(kernel, data, on="torch", compile=True, **shared), by_numpy(name))
