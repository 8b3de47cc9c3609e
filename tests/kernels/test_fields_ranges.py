"""Kernels of fields in float32, where squares of numbers leave its range or rounding counts."""

from __future__ import annotations

import numpy as np
import pytest

from stowplan.kernels import fields
from stowplan.recipes.fields_rings import bins, shells


def by_fft(a, spacing, mu, beta, lam):
    """Solve by NumPy's FFT in float64; lam = 0 leaves the mean out."""
    waves = np.meshgrid(
        *(2 * np.pi * np.fft.fftfreq(n, d) for n, d in zip(a.shape[:3], spacing, strict=True)),
        indexing="ij",
    )
    away = np.sqrt(sum(k**2 for k in waves)) ** (2 * beta)
    below = mu * away + lam
    factor = np.divide(1.0, below, out=np.zeros_like(below), where=below > 0)
    modes = np.fft.fftn(a.astype(complex), axes=(0, 1, 2)) * factor[..., None]
    return np.fft.ifftn(modes, axes=(0, 1, 2)).real


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("step", [3.086e22, 1e-21])
@pytest.mark.parametrize("shape", [(8, 6, 5, 2), (20, 1, 6, 2)])
def test_squares_of_wave_numbers_may_leave_float32(xp, framework, shape, step, lam):
    if framework == "jax" and (lam or shape[0] == 20):
        pytest.skip("each case compiles anew")
    a = np.random.default_rng(0).normal(size=shape)
    a = (a - a.mean(axis=(0, 1, 2))).astype("f4")
    spacing = np.array([step, 2 * step, 0.5 * step])
    lam *= 1 / step
    given = xp.asarray(spacing.astype("f4"))
    found = np.asarray(fields.riesz(xp.asarray(a), spacing=given, beta=0.5, lam=lam))
    wanted = by_fft(a, spacing, 1.0, 0.5, lam)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-6 * np.abs(wanted).max())


def test_float32_is_put_into_the_rings_that_are_counted_in_float64(xp, framework):
    """Every cell is 1; cells lie within 1e-7 of an edge."""
    shape, spacing = (64, 64, 64), 0.37
    middle = (29.84786601, 39.83959898, 10.88925384)
    rings = bins(shape, spacing, middle)
    found = fields.radial(
        xp.ones((*shape, 1), dtype=xp.float32), spacing=xp.asarray(np.full(3, spacing)),
        centre=xp.asarray(np.array(middle)), width=xp.asarray(np.array([rings.width])),
    )  # fmt: skip
    assert np.asarray(found).tolist() == rings.counts.tolist()


def test_power_of_float32_is_in_the_shells_that_are_counted_in_float64(xp, framework):
    """Every mode of a delta has the same power; the steps put modes near an edge."""
    shape = (24, 20, 18)
    for seed in range(3):
        spacing = np.random.default_rng(seed).uniform(0.2, 0.5, 3)
        delta = np.zeros((*shape, 1), "f4")
        delta[0, 0, 0] = np.sqrt(np.prod(shape))
        rings = shells(shape, spacing)
        found = fields.spectrum(
            xp.asarray(delta), spacing=xp.asarray(spacing),
            width=xp.asarray(np.array([rings.width])),
        )  # fmt: skip
        np.testing.assert_allclose(np.asarray(found), rings.counts, rtol=0, atol=0.05)
