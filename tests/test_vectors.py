"""Vectors of three components on every framework."""

from __future__ import annotations

import numpy as np
import pytest

from stowplan.vectors import dot, each, parts, turned, vector

RNG = np.random.default_rng(3)
MATRICES = RNG.normal(size=(2, 3, 3))
POINTS = RNG.normal(size=(3, 1, 5))


def test_a_vector_is_taken_apart_into_what_it_was_made_of(xp):
    array = xp.asarray(RNG.normal(size=(3, 4)))
    made = vector(xp, array, (-1, 1))
    assert [part.shape for part in parts(xp, made)] == [(4, 1)] * 3
    for part, row in zip(parts(xp, made), np.asarray(array), strict=True):
        np.testing.assert_array_equal(np.asarray(part)[:, 0], row)


def test_a_function_of_components_may_give_several_vectors(xp):
    made = vector(xp, xp.asarray(POINTS), (1, 5))
    double, square = each(lambda x: (2 * x, x * x), made)
    for found, expected in ((double, 2 * POINTS), (square, POINTS**2)):
        np.testing.assert_array_equal(np.stack([np.asarray(x) for x in parts(xp, found)]), expected)


def test_dot_products_are_those_of_einsum(xp):
    u, v = (vector(xp, xp.asarray(array), (1, 5)) for array in (POINTS, POINTS[::-1].copy()))
    expected = np.einsum("i...,i...->...", POINTS, POINTS[::-1])
    np.testing.assert_allclose(np.asarray(dot(xp, u, v)), expected, rtol=1e-14)


def test_turned_vectors_are_products_with_each_matrix(xp):
    found = turned(xp, xp.asarray(MATRICES), vector(xp, xp.asarray(POINTS), (1, 5)))
    expected = np.einsum("nij,jap->inp", MATRICES, POINTS)
    np.testing.assert_allclose(
        np.stack([np.asarray(part) for part in parts(xp, found)]), expected, rtol=1e-13
    )


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_gradients_of_turned_vectors_are_those_of_the_product(framework, load_framework):
    """Of sum(w . (A v)): by A the outer products w v, by v the products A^T w."""
    xp = load_framework(framework)
    weights = RNG.normal(size=(3, 2, 5))

    def loss(matrices, points):
        found = parts(xp, turned(xp, matrices, vector(xp, points, (1, 5))))
        return sum(xp.sum(xp.asarray(w) * x) for w, x in zip(weights, found, strict=True))

    arrays = [xp.asarray(array) for array in (MATRICES, POINTS)]
    if framework == "torch":
        for array in arrays:
            array.requires_grad_()
        slopes = pytest.importorskip("torch").autograd.grad(loss(*arrays), arrays)
    else:
        slopes = pytest.importorskip("jax").grad(loss, (0, 1))(*arrays)
    expected = [
        np.einsum("inp,jap->nij", weights, POINTS),
        np.einsum("nij,inp->jp", MATRICES, weights)[:, None],
    ]
    for found, right in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(np.asarray(found), right, rtol=1e-12, atol=1e-14)
