"""One field by slabs: transforms and solves equal those in memory, and bytes are as planned."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from stowplan.errors import DataError
from stowplan.kernels import fields
from stowplan.planners.pencils import plan_pencils
from stowplan.recipes.fields_pencils import RieszFactor, run_pencils

SPACING = (0.5, 1.0, 0.7)
NUMBERS = {"mu": 2.0, "beta": 0.8, "lam": 0.3}


class InMemory:
    """An array whose regions are read and written, with a count of bytes."""

    def __init__(self, array):
        self.array, self.moved = array, 0

    def read_region(self, index, into):
        assert into.flags.c_contiguous
        assert into.dtype == self.array.dtype
        assert into.shape == self.array[index].shape
        into[...] = self.array[index]
        self.moved += into.nbytes

    def write_region(self, index, values):
        assert values.dtype == self.array.dtype
        self.array[index] = values
        self.moved += values.nbytes


def field(shape, dtype):
    rng = np.random.default_rng(0)
    found = rng.normal(size=shape)
    return (found + 1j * rng.normal(size=shape) if "complex" in dtype else found).astype(dtype)


CASES = [
    ((16, 12, 20), 4), ((16, 12, 20), 16), ((15, 9, 7, 6), 4), ((12, 1, 16, 3), 8),
    ((1, 1, 30, 4), 3), ((8, 8, 8, 100), 1), ((5, 7, 9), 30), ((6, 4, 8, 2, 3), 40),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["complex128", "float64"])
@pytest.mark.parametrize(("shape", "times"), CASES)
def test_a_solve_by_slabs_equals_that_in_memory(shape, times, dtype):
    a = field(shape, dtype)
    whole = 16 * math.prod(shape)
    plan = plan_pencils(shape, 16, budget=whole // times, real=dtype == "float64")
    between = InMemory(np.zeros(plan.modes_shape, complex))
    stores = [InMemory(a.copy()), InMemory(np.zeros_like(a)), between]
    moved = []
    run_pencils(
        plan, *stores[:2], factor=RieszFactor(plan, SPACING, **NUMBERS), between=stores[2],
        done=moved.append,
    )  # fmt: skip
    lines = a.reshape(*shape[:3], -1)
    expected = fields.riesz(lines, spacing=np.array(SPACING), **NUMBERS).reshape(shape)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(stores[1].array, expected, rtol=0, atol=1e-13 * scale)
    assert plan.total_bytes == sum(moved) == sum(store.moved for store in stores)
    assert (stores[0].array == a).all()


@pytest.mark.parametrize("dtype", ["complex128", "float64", "complex64"])
@pytest.mark.parametrize(("shape", "times"), CASES)
def test_there_and_back_by_slabs_equals_that_in_memory(shape, times, dtype):
    a = field(shape, dtype)
    itemsize = 8 if dtype == "complex64" else 16
    budget, real = itemsize * math.prod(shape) // times, dtype == "float64"
    forward = plan_pencils(shape, itemsize, budget=budget, kind="forward", real=real)
    modes = InMemory(np.zeros(forward.modes_shape, np.result_type(a, np.complex64)))
    run_pencils(forward, InMemory(a), modes)
    expected = np.fft.fftn(a, axes=(0, 1, 2), norm="ortho")
    half = tuple(slice(0, n) for n in forward.modes_shape)
    scale = np.abs(expected).max() * (1e7 if dtype == "complex64" else 1)
    np.testing.assert_allclose(modes.array, expected[half], rtol=0, atol=1e-13 * scale)
    back = plan_pencils(shape, itemsize, budget=budget, kind="inverse", real=real)
    half = tuple(slice(0, n) for n in back.modes_shape)
    found = InMemory(np.zeros_like(a))
    modes = InMemory(expected[half].copy())
    run_pencils(back, modes, found, between=modes)
    np.testing.assert_allclose(found.array, a, rtol=0, atol=1e-13 * scale)


@pytest.mark.parametrize("axes", [(1,), (0, 3), (1, 2, 3)])
def test_any_axes_are_transformed(axes):
    a = field((5, 6, 4, 7), "complex128")
    plan = plan_pencils(a.shape, 16, budget=16 * 200, axes=axes, kind="forward")
    found = InMemory(np.zeros_like(a))
    run_pencils(plan, InMemory(a), found)
    expected = np.fft.fftn(a, axes=axes, norm="ortho")
    np.testing.assert_allclose(found.array, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_a_field_is_solved_in_place_and_its_mean_is_left_out():
    a = field((12, 10, 8), "complex128")
    a -= a.mean()
    plan = plan_pencils(a.shape, 16, budget=a.nbytes // 4)
    store = InMemory(a.copy())
    run_pencils(plan, store, store, factor=RieszFactor(plan, 0.4))
    expected = fields.riesz(a[..., None], spacing=0.4)[..., 0]
    np.testing.assert_allclose(store.array, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["complex128", "float64"])
def test_memory_is_that_of_one_slab(dtype):
    a = field((64, 64, 64, 4), dtype)
    plan = plan_pencils(a.shape, 16, budget=2**22, real=dtype == "float64")
    stores = [
        InMemory(a),
        InMemory(np.zeros_like(a)),
        InMemory(np.zeros(plan.modes_shape, complex)),
    ]
    factor = RieszFactor(plan, 0.4, lam=0.1)
    tracemalloc.start()
    run_pencils(plan, *stores[:2], factor=factor, between=stores[2])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.slab_bytes <= peak <= plan.slab_bytes + 2**20  # of the factor


def test_what_a_plan_lacks_is_said():
    plan = plan_pencils((8, 8, 8), 16, budget=4096, real=True)
    store = InMemory(np.zeros((8, 8, 8)))
    with pytest.raises(DataError, match="needs factor="):
        run_pencils(plan, store, store)
    with pytest.raises(DataError, match=r"Pass between=, an array of shape"):
        run_pencils(plan, store, store, factor=RieszFactor(plan, 1.0))
    forward = plan_pencils((8, 8, 8), 16, budget=4096, kind="forward")
    with pytest.raises(DataError, match="takes no factor="):
        run_pencils(forward, store, store, factor=RieszFactor(forward, 1.0))
    with pytest.raises(DataError, match="space has 3"):
        RieszFactor(plan_pencils((2, 2, 2, 2), 16, budget=4096, axes=(0, 1, 2, 3)), 1.0)
