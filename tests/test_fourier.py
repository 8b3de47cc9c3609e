"""Transforms of three axes against NumPy's FFT of the whole array."""

from __future__ import annotations

import numpy as np
import pytest

from stowplan import fourier

# products, FFTs, axes that are missing, leading dims, more lines than one block holds
SHAPES = [
    (4, 1, 1, 3), (1, 1, 1, 5), (1, 4, 6, 9), (7, 5, 3, 200), (16, 3, 1, 4), (1, 20, 4, 3),
    (13, 14, 15, 2), (1, 1, 30, 2), (2, 4, 4, 4, 4), (2, 3, 16, 5, 1, 9),
]  # fmt: skip
DTYPES = ["float64", "complex128", "float32", "complex64"]
AXES = (-4, -3, -2)


def field(shape, dtype):
    rng = np.random.default_rng(0)
    found = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    return (found if "complex" in dtype else found.real).astype(dtype)


def even(factor):
    """The factor of a mode and of its opposite are one."""
    opposite = factor[np.ix_(*(-np.arange(n) % n for n in factor.shape))]
    return (factor + opposite) / 2


def in_eager_frameworks(framework, shape):
    if framework == "jax" and shape not in (SHAPES[3], SHAPES[4]):
        pytest.skip("each shape compiles anew")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_modes_are_multiplied_by_their_factor(xp, framework, shape, dtype):
    in_eager_frameworks(framework, shape)
    a = field(shape, dtype)
    factor = np.random.default_rng(1).normal(size=shape[-4:-1])
    factor = factor if "complex" in dtype else even(factor)
    modes = np.fft.fftn(a.astype(complex), axes=AXES, norm="ortho")
    expected = np.fft.ifftn(modes * factor[..., None], axes=AXES, norm="ortho")
    half = factor[: fourier.half_length(a)].astype(a.real.dtype)
    found = fourier.filtered(xp.asarray(a), xp.asarray(half))
    assert np.asarray(found).dtype == a.dtype
    rounding = 1e-13 if a.real.dtype == np.float64 else 1e-5
    atol = rounding * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found), expected.astype(a.dtype) if "complex" in dtype
                               else expected.real, rtol=0, atol=atol)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_power_is_that_of_half_of_the_modes(xp, framework, shape, dtype):
    in_eager_frameworks(framework, shape)
    a = field(shape, dtype)
    modes = np.fft.fftn(a.astype(complex), axes=AXES, norm="ortho")
    whole = (np.abs(modes) ** 2).sum(axis=-1)
    given = xp.asarray(a)
    found, weights = fourier.power(given), np.asarray(fourier.mode_weights(given))
    assert np.asarray(found).dtype == weights.dtype == a.real.dtype
    rounding = 1e-13 if a.real.dtype == np.float64 else 1e-5
    half = whole[..., : fourier.half_length(a), :, :]
    np.testing.assert_allclose(np.asarray(found), half, rtol=0, atol=rounding * whole.max())
    total = (np.asarray(found) * weights[:, None, None]).sum(axis=(-3, -2, -1))
    np.testing.assert_allclose(total, whole.sum(axis=(-3, -2, -1)), rtol=10 * rounding)
