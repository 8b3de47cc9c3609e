"""Fields whose values, squares or wave numbers leave the range of their dtype: right or refused."""

from __future__ import annotations

import os
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import stowplan as sp
from stowplan.recipes import fields
from stowplan.recipes.fields_rings import shells


def noise(n: int = 12, lines: int = 1) -> np.ndarray:
    found = np.random.default_rng(0).normal(size=(n, n, n, lines))
    return found - found.mean(axis=(0, 1, 2))


def solved_by_fft(a: np.ndarray, step: float, beta: float) -> np.ndarray:
    axes = [2 * np.pi * np.fft.fftfreq(n, step) for n in a.shape[:3]]
    k = np.sqrt(sum(k**2 for k in np.meshgrid(*axes, indexing="ij")))
    k[0, 0, 0] = np.inf
    modes = np.fft.fftn(a, axes=(0, 1, 2)) / (k ** (2 * beta))[..., None]
    return np.fft.ifftn(modes, axes=(0, 1, 2)).real


def shells_by_fft(a: np.ndarray, step: float) -> np.ndarray:
    """Sum power over shells, mode by mode in float64."""
    rings = shells(a.shape[:3], step)
    axes = [2 * np.pi * np.fft.fftfreq(n, step) for n in a.shape[:3]]
    k = np.sqrt(sum(k**2 for k in np.meshgrid(*axes, indexing="ij")))
    ring = np.ceil(k / rings.width * (1 - 4e-7) - 0.5).clip(0).astype(int)
    power = (np.abs(np.fft.fftn(a, axes=(0, 1, 2), norm="ortho")) ** 2).sum(axis=-1)
    return np.bincount(ring.reshape(-1), power.reshape(-1), minlength=len(rings.counts))


@pytest.mark.parametrize(("n", "dtype"), [(8, ">f8"), (20, ">f8"), (20, ">c8"), (20, ">f4")])
def test_a_field_in_memory_of_the_other_byte_order_is_that_of_this_machine(n, dtype):
    field = noise(n).astype(dtype)
    native = field.astype(field.dtype.newbyteorder("="))
    found = fields.solve(field, spacing=1.0)
    assert found.dtype == native.dtype
    assert found.tobytes() == fields.solve(native, spacing=1.0).tobytes()
    sums = fields.spectrum(field, spacing=1.0).total.sums
    wanted = shells_by_fft(native.astype(complex), 1.0)
    np.testing.assert_allclose(sums, wanted, rtol=1e-4, atol=1e-9 * wanted.max())


SCALES = [(1e-23, "f4"), (1e20, "f4"), (1e-30, "c8"), (1e-170, "f8"), (1e160, "f8")]


@pytest.mark.parametrize(("scale", "dtype"), SCALES)
def test_a_mean_is_judged_whatever_the_unit_of_a_source(scale, dtype):
    field = noise()
    found = fields.solve((field * scale).astype(dtype), spacing=1.0)
    wanted = solved_by_fft(field, 1.0, 1.0) * scale
    np.testing.assert_allclose(found.real, wanted, rtol=0, atol=3e-6 * np.abs(wanted).max())
    with pytest.raises(sp.DataError, match="has the mean 1e"):
        fields.solve(((field + 1) * scale).astype(dtype), spacing=1.0)


@pytest.mark.parametrize("scale", [1e-40, 1e-26, 1e-13, 1e20, 1e37])
@pytest.mark.parametrize("n", [8, 20])
@pytest.mark.parametrize("budget", ["64 MiB", "60 KiB"])
def test_powers_of_float32_may_leave_its_range(tmp_path, n, scale, budget):
    field = ((noise(n, 2) + 0.3) * scale).astype("f4")
    wanted = shells_by_fft(field.astype("f8"), 0.5)
    np.save(tmp_path / "a.npy", field)
    for store in (field, tmp_path / "a.npy", [field[..., 0] * 0, field]):
        found = fields.spectrum(store, spacing=0.5, budget=budget)
        np.testing.assert_allclose(found.each[-1].sums, wanted, rtol=1e-4)
    assert field.tobytes() == np.load(tmp_path / "a.npy").tobytes()


@pytest.mark.parametrize("on", ["torch", "jax"])
def test_powers_of_float32_may_leave_its_range_in_other_frameworks(on):
    pytest.importorskip(on)
    field = ((noise(8) + 0.3) * 1e-26).astype("f4")
    found = fields.spectrum(field, spacing=0.5, on=on)
    np.testing.assert_allclose(found[0].sums, shells_by_fft(field.astype("f8"), 0.5), rtol=1e-4)


def test_powers_below_float64_are_0_beside_those_of_other_fields():
    """As exactly as float64 has it: a snapshot that has died away spoils no others."""
    found = fields.spectrum([noise(), noise() * 1e-170], spacing=1.0)
    np.testing.assert_allclose(found[0].sums, fields.spectrum(noise(), spacing=1.0)[0].sums)
    assert (found[1].sums <= np.finfo(float).tiny).all()


def test_powers_that_float64_does_not_hold_are_refused():
    with pytest.raises(sp.DataError, match=r"field 0 .*range of float64. Scale it"):
        fields.spectrum(noise() * 1e160, spacing=1.0)


def test_a_field_of_zeros_has_no_power_and_one_that_is_not_finite_no_sums():
    field = np.zeros((4, 4, 4), "f4")
    assert not fields.spectrum(field, spacing=1.0)[0].sums.any()
    field[1, 2, 3] = np.nan
    assert np.isnan(fields.spectrum(field, spacing=1.0)[0].sums).any()
    assert np.isnan(fields.radial(field, spacing=1.0)[0].sums).any()


@pytest.mark.filterwarnings("ignore:overflow")
def test_radial_sums_of_float32_may_leave_its_range():
    field = np.full((6, 6, 6), 2e38, "f4")
    found = fields.radial(field, spacing=1.0)[0]
    np.testing.assert_allclose(found.mean, float(field[0, 0, 0]), rtol=1e-6)


@pytest.mark.parametrize("n", [8, 24])
@pytest.mark.parametrize("step", [3.086e22, 1e-21])
def test_a_solve_in_float32_takes_lengths_in_any_unit(n, step):
    field = noise(n).astype("f4")
    found = fields.solve(field, spacing=step, beta=0.5)
    wanted = solved_by_fft(field.astype("f8"), step, 0.5)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "numbers",
    [{"spacing": 1e-21}, {"spacing": 3.086e22}, {"spacing": 1e-39}, {"spacing": 1.0, "mu": 1e40},
     {"spacing": 1.0, "lam": 1e-42}, {"spacing": (1.0, 1.0, 1e22)},
     {"spacing": (1.0, 1.0, 1e22), "lam": 1e30}],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["f4", "c8"])
def test_a_symbol_that_float32_does_not_hold_is_refused_and_float64_holds_it(numbers, dtype):
    field = noise(8)
    wide = "complex128" if dtype == "c8" else "float64"
    with pytest.raises(sp.DataError, match=rf"spacing=.*beta=1.0.*1e-38 to .*astype\('{wide}'\)"):
        fields.solve(field.astype(dtype), **numbers)
    assert np.isfinite(fields.solve(field, **numbers)).all()


def test_a_symbol_that_vanishes_beside_lam_is_not_refused():
    field = noise(4).astype("f4")
    np.testing.assert_allclose(fields.solve(field, spacing=1e30, lam=2.0), field / 2, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_radial_means_of_ones_in_float32_are_1(seed):
    rng = np.random.default_rng(seed)
    centre = (29.84786601, 39.83959898, 10.88925384) if seed == 0 else rng.uniform(0, 48, 3)
    field = np.ones((64 if seed == 0 else 48,) * 3, "f4")
    found = fields.radial(field, spacing=0.37, centre=centre)[0]
    assert (found.mean[found.counts > 0] == 1).all()


WITHOUT_X64 = """
import jax.numpy as jnp, numpy as np
from stowplan.recipes import fields
field = np.random.default_rng(0).normal(size=(8, 8, 8)).astype("f4")
wanted = fields.solve(field, spacing=0.7, lam=1.0)
for given, on in ((jnp.asarray(field), None), (field, "jax")):
    found = fields.solve(given, spacing=0.7, lam=1.0, on=on)
    assert found.dtype == "float32"
    assert abs(np.asarray(found) - wanted).max() < 3e-6 * abs(wanted).max()
    sums = fields.spectrum(given, spacing=0.7, on=on)[0].sums.sum()
    assert abs(sums / (field.astype("f8") ** 2).sum() - 1) < 1e-5
    means = fields.radial(given + 1, spacing=0.7, centre=(1, 2, 3.5), on=on)[0].sums.sum()
    assert abs(means / (field.astype("f8") + 1).sum() - 1) < 1e-5
try:
    fields.solve(field.astype("f8"), spacing=0.7, lam=1.0, on="jax")
except Exception as error:
    assert "x64 is off" in str(error)
else:
    raise AssertionError("float64 was rounded")
"""


def test_jax_without_x64_takes_float32():
    pytest.importorskip("jax")
    environment: dict[str, Any] = {**os.environ, "JAX_ENABLE_X64": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:stowplan", "-c", WITHOUT_X64],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("dtype", "how"),
    [
        ("f4", {"spacing": 1e-7, "mu": 1e-30, "beta": 3.0, "lam": 1e37}),
        ("f4", {"spacing": 1e-20, "mu": 1e-37, "beta": 1.0, "lam": 1e30}),
        ("f8", {"spacing": 1e-60, "mu": 1e-300, "beta": 3.0, "lam": 1e100}),
    ],
)
def test_a_power_of_wave_numbers_out_of_range_is_refused_though_it_is_small_beside_lam(dtype, how):
    with pytest.raises(sp.DataError, match=r"\|k\|\^\(2 beta\) is about 1e"):
        fields.solve(noise().astype(dtype), **how)


@pytest.mark.parametrize("spacing", [1e170, 1e-170])
def test_wave_numbers_whose_squares_leave_float64_are_taken_slab_by_slab_too(spacing):
    """With beta = 1/2 the potential is that of spacing 1, times the spacing."""
    field = np.random.default_rng(3).normal(size=(16, 16, 16))
    field -= field.mean()
    wanted = fields.solve(field, spacing=1.0, beta=0.5) * spacing
    for budget in ("1 GiB", "150 kB"):
        found = fields.solve(field, spacing=spacing, beta=0.5, budget=budget)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12 * spacing)
    sums = fields.spectrum(field, spacing=spacing)[0]
    unit = fields.spectrum(field, spacing=1.0)[0]
    np.testing.assert_allclose(sums.wave_numbers, unit.wave_numbers / spacing, rtol=1e-12)


def test_numbers_of_any_kind_are_taken_as_floats():
    wanted = fields.solve(noise(), spacing=1.0, beta=0.5, lam=2.0)
    for budget in ("1 GiB", "20 kB"):
        found = fields.solve(
            noise(), spacing=1.0, beta=Decimal("0.5"), lam=Fraction(2), budget=budget
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)
