"""Transforms of three axes against NumPy's FFT of the whole array."""

from __future__ import annotations

import numpy as np
import pytest

from stowplan import fourier
from stowplan.adapters.eager_memory import traced_peak

# products, FFTs, axes that are missing, leading dims, more lines than one block holds; at last
# more planes than a cache holds, in a block that is full and one that is not
SHAPES = [
    (4, 1, 1, 3), (1, 1, 1, 5), (1, 4, 6, 9), (7, 5, 3, 200), (16, 3, 1, 4), (1, 20, 4, 3),
    (13, 14, 15, 2), (1, 1, 30, 2), (2, 4, 4, 4, 4), (2, 3, 16, 5, 1, 9), (20, 3, 1, 4),
    (6, 8, 7, 700),
]  # fmt: skip
DTYPES = ["float64", "complex128", "float32", "complex64"]
AXES = (-4, -3, -2)


def field(shape, dtype):
    rng = np.random.default_rng(0)
    found = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    return (found if "complex" in dtype else found.real).astype(dtype)


def sizes(shape):
    """|k| of each mode along the three axes, in the order of an FFT."""
    return np.meshgrid(*(abs(np.fft.fftfreq(n, 1 / n)).astype(int) for n in shape), indexing="ij")


def in_eager_frameworks(framework, shape):
    if framework == "jax" and shape not in (SHAPES[3], SHAPES[4]):
        pytest.skip("each shape compiles anew")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_modes_are_multiplied_by_their_factor(xp, framework, shape, dtype):
    in_eager_frameworks(framework, shape)
    a = field(shape, dtype)
    given = np.random.default_rng(1).normal(size=[n // 2 + 1 for n in shape[-4:-1]])
    factor = given[tuple(sizes(shape[-4:-1]))]
    modes = np.fft.fftn(a.astype(complex), axes=AXES, norm="ortho")
    expected = np.fft.ifftn(modes * factor[..., None], axes=AXES, norm="ortho")
    found = fourier.filtered(xp.asarray(a), xp.asarray(given.astype(a.real.dtype)))
    assert np.asarray(found).dtype == a.dtype
    rounding = 1e-13 if a.real.dtype == np.float64 else 1e-5
    atol = rounding * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found), expected.astype(a.dtype) if "complex" in dtype
                               else expected.real, rtol=0, atol=atol)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_power_is_summed_over_signs(xp, framework, shape, dtype):
    in_eager_frameworks(framework, shape)
    a = field(shape, dtype)
    modes = np.fft.fftn(a.astype(complex), axes=AXES, norm="ortho")
    whole = (np.abs(modes) ** 2).sum(axis=-1)
    expected = np.zeros((*shape[:-4], *(n // 2 + 1 for n in shape[-4:-1])))
    np.add.at(expected, (..., *sizes(shape[-4:-1])), whole)
    found = np.asarray(fourier.power(xp.asarray(a)))
    assert found.dtype == a.real.dtype
    rounding = 1e-13 if a.real.dtype == np.float64 else 1e-5
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding * expected.max())
    np.testing.assert_allclose(found.sum(), (np.abs(a) ** 2).sum(), rtol=10 * rounding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [SHAPES[3], SHAPES[0], SHAPES[4]])
def test_lines_that_do_not_lie_end_to_end(shape, dtype):
    whole = field((*shape[:-1], 3 * shape[-1]), dtype)
    apart, packed = whole[..., ::3], np.ascontiguousarray(whole[..., ::3])
    factor = np.random.default_rng(1).normal(size=[n // 2 + 1 for n in shape[-4:-1]])
    factor = factor.astype(packed.real.dtype)
    before = whole.copy()
    for one, other in (
        (fourier.power(apart), fourier.power(packed)),
        (fourier.filtered(apart, factor), fourier.filtered(packed, factor)),
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5 if one.dtype.char in "fF" else 1e-12)
    np.testing.assert_array_equal(whole, before)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_rows_of_short_transforms_share_their_scratch(dtype):
    """Each row adds its results and no more: forecasts take what two rows show for all."""
    a = np.ones((6, 8, 8, 8, 200), dtype)
    fourier.power(a)
    one, six = (traced_peak(lambda rows=rows: fourier.power(a[:rows]))[0] for rows in (1, 6))
    assert one > 2**19
    assert six - one < 2**18


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 3, 6, 5), (20, 3, 18, 4), (1, 20, 1, 3)])
def test_arrays_of_the_other_byte_order_have_the_same_modes(shape, dtype):
    a = field(shape, dtype)
    swapped = a.astype(a.dtype.newbyteorder())
    modes = np.fft.fftn(a.astype(complex), axes=AXES, norm="ortho")
    factor = np.random.default_rng(1).normal(size=[n // 2 + 1 for n in shape[:3]])
    wanted = np.fft.ifftn(
        modes * factor[tuple(sizes(shape[:3]))][..., None], axes=AXES, norm="ortho"
    )
    wanted = wanted if "complex" in dtype else wanted.real
    rounding = 1e-13 if a.real.dtype == np.float64 else 1e-5
    found = fourier.filtered(swapped, factor.astype(a.real.dtype))
    assert found.dtype == a.dtype
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rounding * np.abs(wanted).max())
    total = fourier.power(swapped)
    assert total.dtype == a.real.dtype
    np.testing.assert_allclose(total.sum(), (np.abs(modes) ** 2).sum(), rtol=10 * rounding)
