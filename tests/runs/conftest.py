"""Arrays to and from every framework, and kernels with the loops they must equal."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp


class Moments(NamedTuple):
    """Outputs of a kernel, by name."""

    total: Any
    squares: Any


@sp.kernel("(atoms,3),(atoms),(3,3)->(),(atoms,3)", ragged="atoms", memory="20 * atoms + 20")
def pull(positions, charges, matrix, *, scale, power=1):
    """Energies and forces; padding has charge 0."""
    xp = array_namespace(positions)
    turned = xp.matmul(positions, matrix)  # (..., atoms, 3)
    weight = scale * charges[..., None] ** 1
    return xp.sum(weight * turned**2, axis=(-2, -1)), weight * turned


@sp.kernel("(y,x),(x)->(y,x),(x),()", ragged=("y", "x"))
def weigh(image, weights, *, mask):
    """Two ragged dims: an image, sums over its columns, and the mean over its pixels."""
    xp = array_namespace(image)
    weighted = image * weights[..., None, :]
    inside = mask["y"][..., :, None] & mask["x"][..., None, :]
    counted = xp.astype(inside, image.dtype)
    area = xp.sum(counted, axis=(-2, -1))
    mean = xp.sum(weighted * counted, axis=(-2, -1)) / xp.where(area > 0, area, xp.ones_like(area))
    return weighted, xp.sum(weighted * counted, axis=-2), mean


@sp.kernel("(3),()->()")
def length(vector, factor):
    """No ragged dim at all."""
    return factor * array_namespace(vector).sum(vector**2, axis=-1)


@sp.kernel("(n)->(n),()", ragged="n")
def phase(angle, *, mask):
    """Complex outputs."""
    xp = array_namespace(angle)
    turned = xp.exp(1j * angle)
    return turned, xp.sum(xp.where(mask["n"], turned, xp.zeros_like(turned)), axis=-1)


@sp.kernel(
    "(atoms),(atoms,m)->(atoms)",
    ragged="atoms",
    fill={"neighbours": -1},
    index={"neighbours": "atoms"},
)
def near(charges, neighbours):
    """Charges of neighbours, by item-local indices; -1 means none."""
    xp = array_namespace(charges, neighbours)
    real = neighbours >= 0
    safe = xp.where(real, neighbours, xp.zeros_like(neighbours))
    flat = xp.reshape(safe, (*safe.shape[:-2], safe.shape[-2] * safe.shape[-1]))
    found = xp.reshape(xp.take_along_axis(charges, flat, axis=-1), safe.shape)
    return xp.sum(xp.where(real, found, xp.zeros_like(found)), axis=-1)


@sp.kernel(
    "(n)->(m),(p),(q)", ragged="n", out_sizes={"m": 4, "p": "2 * n", "q": lambda n: max(n, 2)}
)
def spread(x):
    """Output dims of their own: constant, by expression, by function."""
    xp = array_namespace(x)
    total = xp.sum(x, axis=-1)[..., None] * xp.arange(1, 5, dtype=x.dtype)
    twice = xp.stack([x, 2 * x], axis=-1)
    short = max(2 - x.shape[-1], 0)
    tail = xp.zeros((*x.shape[:-1], short), dtype=x.dtype, device=getattr(x, "device", None))
    return total, xp.reshape(twice, (*x.shape[:-1], 2 * x.shape[-1])), xp.concat([x, tail], axis=-1)


@sp.kernel("(n)->(n)", ragged="n", exact="n")
def spectrum(x):
    """Padding is not neutral along n."""
    xp = array_namespace(x)
    wide = xp.complex64 if x.dtype == xp.float32 else xp.complex128
    return xp.fft.fft(xp.astype(x, wide))


@sp.kernel("(n)->()", ragged="n", per_item=True)
def ramp(x, *, scale):
    """Takes one item, and only one."""
    xp = array_namespace(x)
    (count,) = x.shape
    return scale * xp.sum(x * xp.arange(count, dtype=x.dtype))


@sp.kernel("(n)->(),()", ragged="n")
def moments(x):
    """A NamedTuple."""
    xp = array_namespace(x)
    return Moments(xp.sum(x, axis=-1), xp.sum(x**2, axis=-1))


@sp.kernel("(n)->()", ragged="n", fill={"x": 0.0}, static=("power",))
def total(x, *, scale, power=1):
    """One bare output."""
    xp = array_namespace(x)
    return scale * xp.sum(x**power, axis=-1)


def make_atoms(sizes: list[int], dtype: Any = np.float64, seed: int = 0) -> dict[str, Any]:
    """Columns of ``pull`` as NumPy."""
    rng = np.random.default_rng(seed)
    count = sum(sizes)
    return {
        "positions": sp.Ragged(rng.normal(size=(count, 3)).astype(dtype), sizes),
        "charges": sp.Ragged(rng.normal(size=count).astype(dtype), sizes),
        "matrix": rng.normal(size=(len(sizes), 3, 3)).astype(dtype),
    }


def loop_pull(data: dict[str, Any], scale: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """What ``pull`` gives, one atom after the other."""
    energies, forces = [], []
    for positions, charges, matrix in zip(*data.values(), strict=True):
        energy, force = 0.0, np.zeros(positions.shape)
        for atom, (position, charge) in enumerate(zip(positions, charges, strict=True)):
            for j in range(3):
                turned = sum(position[i] * matrix[i, j] for i in range(3))
                energy += scale * charge * turned**2
                force[atom, j] = scale * charge * turned
        energies.append(energy)
        forces.append(force)
    return np.array(energies), forces


def to_host(array: Any) -> np.ndarray:
    """Values of an array of any framework; a strict one may be on any device."""
    if hasattr(array, "to_device") and type(array).__module__.startswith("array_api_strict"):
        import array_api_strict

        array = array.to_device(array_api_strict.Device("CPU_DEVICE"))
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    if hasattr(array, "get"):
        array = array.get()
    return np.asarray(array)


@pytest.fixture
def kernels() -> SimpleNamespace:
    """Kernels, data and slow loops."""
    return SimpleNamespace(**globals())


@pytest.fixture
def put(xp: ModuleType, framework: str) -> Callable[..., Any]:
    """Move columns of NumPy arrays to the framework."""

    def convert(value: Any, device: Any = None) -> Any:
        if isinstance(value, dict):
            return {name: convert(part, device) for name, part in value.items()}
        if isinstance(value, sp.Ragged):
            return value.map_values(lambda values: convert(values, device))
        return xp.asarray(value, device=device)

    return convert


@pytest.fixture
def host() -> Callable[[Any], Any]:
    """Bring results to NumPy: Ragged as a list of arrays."""

    def bring(value: Any) -> Any:
        if isinstance(value, sp.Ragged):
            return value.map_values(to_host).to_list()
        return to_host(value)

    return bring
