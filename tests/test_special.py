"""Special functions against mpmath, their gradients, and what is refused."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from stowplan import special
from stowplan.errors import FrameworkError

POINTS = [1e-300, 1e-30, 1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.999, 1.0]
POINTS += [1.5, 1.999, 2.0, 2.001, 3.0, 7.0, 20.0, 80.0]
mpmath.mp.dps = 40


def check(found, exact, rtol):
    np.testing.assert_allclose(np.asarray(found), [float(value) for value in exact], rtol=rtol)


@pytest.mark.parametrize("name", ["erf", "erfc"])
def test_error_functions_are_those_of_mpmath(xp, name):
    points = [-3.0, -0.1, 0.0, 1e-8, 0.3, 1.0, 2.5, 6.0]
    check(
        getattr(special, name)(xp.asarray(points, dtype=xp.float64)),
        map(getattr(mpmath, name), points),
        3e-14,
    )


def test_the_exponential_integral_is_that_of_mpmath(xp):
    check(special.exp1(xp.asarray(POINTS, dtype=xp.float64)), map(mpmath.e1, POINTS), 3e-14)


@pytest.mark.parametrize("order", [0, 0.5, 1, 1.5, 2, 2.5])
def test_generalised_exponential_integrals_are_those_of_mpmath(xp, order):
    points = [x for x in POINTS if x > 1e-30]
    lower, upper = special.expint(order, xp.asarray(points, dtype=xp.float64))
    for s, found in ((order - 1, lower), (order, upper)):
        exact = np.array([float(mpmath.expint(s, x)) for x in points])
        x = np.array(points)
        scale = np.maximum(exact, (1 + x) * np.exp(-x))  # the recursion is exact in this sense
        assert np.max(np.abs(np.asarray(found) - exact) / scale) < 5e-14


@pytest.mark.parametrize("order", [0, 0.5, 1, 1.5, 2, 2.5])
def test_expint_is_the_incomplete_gamma_function_where_libraries_give_nan(order):
    x = 1e-3
    exact = mpmath.gammainc(1 - order, x) * mpmath.mpf(x) ** (order - 1)
    assert float(special.expint(order, np.asarray(x))[1]) == pytest.approx(float(exact), rel=1e-14)


@pytest.mark.parametrize("a", [0.5, 1, 1.5, 2, 2.5, 3])
def test_the_regularised_gamma_function_is_that_of_mpmath(xp, a):
    points = [0.0, 1e-12, 1e-3, 0.5, 1.0, 4.0, 30.0]
    exact = [mpmath.gammainc(a, x, regularized=True) for x in points]
    check(special.gammaincc(a, xp.asarray(points, dtype=xp.float64)), exact, 1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponentials_are_exact_or_nothing_beside_one(xp, framework, dtype):
    least = {"float32": -80.0, "float64": -700.0}[dtype]
    given = [0.0, 3.0, -1.5, -40.0, least + 1, least - 1, 2 * least, -1e9, -math.inf]
    found = np.asarray(special.exp_without_underflow(xp.asarray(given, dtype=getattr(xp, dtype))))
    assert found.dtype == dtype
    expected = np.array([float(mpmath.exp(value)) for value in given[:5]])
    rounding = 1e-14 if dtype == "float64" else 2e-5  # of an argument of 80, as numbers are rounded
    np.testing.assert_allclose(found[:5], expected, rtol=rounding)
    assert ((found[5:] >= 0) & (found[5:] <= math.exp(least) * (1 + rounding))).all()
    if framework == "torch" or (framework == "numpy" and dtype == "float64"):
        assert (found >= np.finfo(dtype).smallest_normal).all()  # nothing slow


def test_cosine_and_sine_keep_shape_and_dtype(xp):
    x = xp.asarray(np.linspace(-9, 9, 12).reshape(3, 4))
    for found, exact in zip(special.cos_sin(x), (np.cos, np.sin), strict=True):
        assert found.dtype == xp.float64
        np.testing.assert_allclose(np.asarray(found), exact(np.asarray(x)), rtol=0, atol=1e-15)


def gradient(framework, function, points):
    if framework == "jax":
        import jax

        return jax.grad(lambda x: function(x).sum())(jax.numpy.asarray(points))
    import torch

    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    function(x).sum().backward()
    return x.grad


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_gradients_are_the_analytic_ones(framework, request):
    pytest.importorskip(framework)
    if framework == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    points = np.array([1e-6, 1e-3, 0.7, 1.99, 2.0, 2.01, 5.0, 30.0])
    check(gradient(framework, special.exp1, points), (-mpmath.exp(-x) / x for x in points), 1e-12)
    for order in (0, 0.5, 1, 1.5, 2, 2.5):
        slope = gradient(framework, lambda x, s=order: special.expint(s, x)[1], points)
        exact = np.array([float(-mpmath.expint(order - 1, x)) for x in points])
        assert (
            np.max(np.abs(np.asarray(slope) - exact) / np.maximum(abs(exact), np.exp(-points)))
            < 1e-11
        )
    for a in (0.5, 1, 1.5, 2, 2.5, 3):
        slope = gradient(framework, lambda x, a=a: special.gammaincc(a, x), points)
        exact = -(points ** (a - 1)) * np.exp(-points) / math.gamma(a)
        np.testing.assert_allclose(np.asarray(slope), exact, rtol=1e-10, atol=1e-12)
    tables = gradient(
        framework, lambda x: special.cos_sin(x)[0] + 2 * special.cos_sin(x)[1], points
    )
    np.testing.assert_allclose(np.asarray(tables), 2 * np.cos(points) - np.sin(points), atol=1e-15)


@pytest.mark.parametrize("order", [-1, 0.3])
def test_orders_without_a_recursion_are_refused(order):
    with pytest.raises(ValueError, match=f"order {order}"):
        special.expint(order, np.asarray(1.0))
    with pytest.raises(ValueError, match="a = "):
        special.gammaincc(order, np.asarray(1.0))


def test_arrays_of_an_unknown_framework_are_refused_by_name():
    class Namespace:
        __name__ = "sparse"

    class Array:
        def __array_namespace__(self, api_version=None):
            return Namespace()

    with pytest.raises(FrameworkError, match="sparse"):
        special.erf(Array())


def test_the_small_argument_series_starts_at_minus_gamma():
    assert float(special.exp1(np.asarray(1e-20))) == pytest.approx(
        20 * math.log(10) - np.euler_gamma, rel=1e-15
    )


def slow_segment_sum(values, ids, count):
    """One entry after the other; leading dims broadcast."""
    values, ids = np.broadcast_arrays(values, ids)
    sums = np.zeros((*ids.shape[:-1], count), values.dtype)
    for place in np.ndindex(ids.shape):
        if 0 <= ids[place] < count:
            sums[(*place[:-1], ids[place])] += values[place]
    return sums


@pytest.mark.parametrize("dtype", ["float64", "complex128", "int64"])
@pytest.mark.parametrize(
    ("values", "ids", "count"),
    [((7,), (7,), 3), ((4, 7), (4, 7), 5), ((3, 4, 7), (4, 7), 2), ((2, 0), (2, 0), 3),
     ((0, 7), (7,), 3), ((2, 7), (7,), 1), ((7,), (2, 7), 0)],
)  # fmt: skip
def test_a_segment_sum_is_that_of_a_loop(xp, dtype, values, ids, count):
    rng = np.random.default_rng(3)
    numbers = (10 * rng.normal(size=values)).astype(dtype)
    if dtype == "complex128":
        numbers = numbers + 1j * rng.normal(size=values)
    places = rng.integers(-2, count + 2, ids)  # -2, -1, count and count + 1 belong nowhere
    found = special.segment_sum(xp.asarray(numbers), xp.asarray(places), count)
    assert found.dtype == xp.asarray(numbers).dtype
    expected = slow_segment_sum(numbers, places, count)
    assert tuple(found.shape) == expected.shape
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-14, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("leading", [(), (2, 3), (0,)])
def test_a_sum_over_shared_segments_is_that_of_a_loop(xp, dtype, leading):
    rng = np.random.default_rng(3)
    numbers = rng.normal(size=(*leading, 12)) + 1j * rng.normal(size=(*leading, 12))
    numbers = (numbers if "complex" in dtype else numbers.real).astype(dtype)
    places = rng.integers(0, 5, 12)
    found = special.shared_segment_sum(xp.asarray(numbers), xp.asarray(places), 6)
    assert found.dtype == xp.asarray(numbers).dtype
    shared = np.broadcast_to(places, numbers.shape)
    expected = slow_segment_sum(numbers, shared, 6)
    assert tuple(found.shape) == expected.shape
    rounding = 1e-13 if numbers.real.dtype == np.float64 else 1e-5
    np.testing.assert_allclose(np.asarray(found), expected, rtol=rounding, atol=rounding)


def test_what_belongs_to_no_segment_may_be_anything(xp):
    values = xp.asarray([1.0, float("nan"), 2.0, float("inf")])
    found = special.segment_sum(values, xp.asarray([1, -1, 1, 7]), 3)
    assert np.asarray(found).tolist() == [0.0, 3.0, 0.0]


def test_a_segment_sum_keeps_float32_and_takes_int32_ids(xp):
    found = special.segment_sum(
        xp.asarray([1.0, 2.0], dtype=xp.float32), xp.asarray([1, 1], dtype=xp.int32), 2
    )
    assert found.dtype == xp.float32
    assert np.asarray(found).tolist() == [0.0, 3.0]


IDS = np.array([[2, -1, 0, 2, 1], [0, 0, -1, 3, 1]])


def test_segment_sums_under_vmap_are_differentiable_in_jax():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    values = np.random.default_rng(0).normal(size=IDS.shape)

    def squares(values):
        sums = jax.vmap(lambda v, i: special.segment_sum(v, i, 3))(values, jax.numpy.asarray(IDS))
        return (sums**2).sum()

    sums = slow_segment_sum(values, IDS, 3)
    np.testing.assert_allclose(float(squares(values)), (sums**2).sum(), rtol=1e-14)
    real = (IDS >= 0) & (IDS < 3)
    expected = np.where(real, 2 * np.take_along_axis(sums, np.where(real, IDS, 0), axis=1), 0)
    for gradient in (jax.grad(squares), jax.jit(jax.grad(squares))):
        np.testing.assert_allclose(gradient(values), expected, rtol=1e-14)


def test_segment_sums_under_vmap_are_differentiable_in_torch():
    torch = pytest.importorskip("torch")
    ids = torch.asarray(IDS)
    values = torch.randn(IDS.shape, dtype=torch.float64, requires_grad=True)

    def sums(values):
        return torch.func.vmap(lambda v, i: special.segment_sum(v, i, 3))(values, ids)

    assert torch.autograd.gradcheck(lambda v: special.segment_sum(v, ids, 3), values)
    assert torch.autograd.gradgradcheck(lambda v: special.segment_sum(v, ids, 3) ** 2, values)
    assert torch.autograd.gradcheck(sums, values)
    expected = slow_segment_sum(values.detach().numpy(), IDS, 3)
    np.testing.assert_allclose(sums(values).detach().numpy(), expected, rtol=1e-14)
