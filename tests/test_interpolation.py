"""Entries of tables at real places against plain loops, closed forms and differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from stowplan import interpolation
from stowplan.interpolation import nearest, tricubic
from stowplan.vectors import vector

RNG = np.random.default_rng(8)
TABLE = RNG.normal(size=(6, 5, 7))
# within the table, on its nodes, in the cells at its edges and far beyond
PLACES = np.concatenate(
    [
        RNG.uniform(1.0, 3.0, size=(3, 20)),
        [[1.0, 2.0, 3.0, 4.0, 0.2, -9.0], [1.0, 2.0, 3.0, 1.5, 3.9, 40.0], [1, 5, 2, 4.5, 5.9, 0]],
    ],
    axis=1,
)


def slow_tricubic(table, place):
    """Lagrange's formula; outside of the table it continues the last four entries."""
    windows = [
        range(low, low + 4)
        for low in (
            min(max(math.floor(x) - 1, 0), length - 4)
            for x, length in zip(place, table.shape, strict=True)
        )
    ]
    total = 0.0
    for node in itertools.product(*windows):
        weight = 1.0
        for x, own, window in zip(place, node, windows, strict=True):
            for other in window:
                if other != own:
                    weight *= (x - other) / (own - other)
        total += weight * table[node]
    return total


def as_vector(xp, places):
    return vector(xp, xp.asarray(places), places.shape[1:])


def test_a_window_is_summed_as_lagrange_has_it(xp):
    found = np.asarray(tricubic(xp.asarray(TABLE), as_vector(xp, PLACES)))
    expected = [slow_tricubic(TABLE, place) for place in PLACES.T]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_the_nearest_entry_is_that_of_rounded_places(xp):
    found = np.asarray(nearest(xp.asarray(TABLE), as_vector(xp, PLACES)))
    expected = [
        TABLE[tuple(np.clip(np.round(place).astype(int), 0, np.array(TABLE.shape) - 1))]
        for place in PLACES.T
    ]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_no_number_reads_an_entry_and_not_beyond(xp):
    places = np.full((3, 2), np.nan)
    places[:, 1] = [np.inf, -np.inf, 1e30]
    assert nearest(xp.asarray(TABLE), as_vector(xp, places)).shape == (2,)
    assert not np.isfinite(np.asarray(tricubic(xp.asarray(TABLE), as_vector(xp, places)))).any()


def gradients(framework, xp, function, arrays):
    arrays = [xp.asarray(array) for array in arrays]
    if framework == "jax":
        import jax

        return jax.jit(jax.grad(function, tuple(range(len(arrays)))))(*arrays)
    import torch

    for array in arrays:
        array.requires_grad_()
    return torch.autograd.grad(function(*arrays), arrays)


@pytest.mark.parametrize("blocks", [1, 7])
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_gradients_are_weights_and_differences(framework, blocks, load_framework, monkeypatch):
    """By an entry: what the place gives for a table that is 1 there; by a place: differences."""
    monkeypatch.setattr(interpolation, "_BLOCK", 1)
    monkeypatch.setattr(interpolation, "_BLOCKS", blocks)
    xp = load_framework(framework)
    places = PLACES[:, :20] + 0.01
    weights = RNG.normal(size=20)

    def loss(table, places):
        return xp.sum(xp.asarray(weights) * tricubic(table, vector(xp, places, (20,))))

    by_table, by_places = gradients(framework, xp, loss, [TABLE, places])
    entries = np.zeros_like(TABLE)
    for node in np.ndindex(TABLE.shape):
        unit = np.zeros_like(TABLE)
        unit[node] = 1.0
        entries[node] = sum(
            w * slow_tricubic(unit, place)
            for w, place in zip(weights, places.T, strict=True)
            if all(abs(n - x) < 3 for n, x in zip(node, place, strict=True))
        )
    np.testing.assert_allclose(np.asarray(by_table), entries, rtol=1e-10, atol=1e-12)
    step = 1e-6
    for axis in range(3):
        aside = step * np.eye(3)[axis][:, None]
        slopes = [
            (slow_tricubic(TABLE, ahead) - slow_tricubic(TABLE, behind)) / (2 * step)
            for ahead, behind in zip((places + aside).T, (places - aside).T, strict=True)
        ]
        np.testing.assert_allclose(np.asarray(by_places)[axis], weights * slopes, atol=1e-7)


def test_torch_reads_the_same_with_a_gradient_recorded_as_without(load_framework):
    xp = load_framework("torch")
    table, places = xp.asarray(TABLE), xp.asarray(PLACES)
    without = tricubic(table, places)
    recorded = tricubic(table.requires_grad_(), places)
    np.testing.assert_array_equal(recorded.detach().numpy(), without.numpy())


def test_jax_differentiates_gradients_in_reverse_and_refuses_forward_mode(load_framework):
    xp = load_framework("jax")
    jax = pytest.importorskip("jax")
    places = PLACES[:, :3] + 0.01

    def slope(x):
        moved = xp.asarray(places).at[0, 0].set(x)
        return jax.grad(lambda p: xp.sum(tricubic(xp.asarray(TABLE), vector(xp, p, (3,)))))(moved)[
            1, 0
        ]

    x, step = places[0, 0], 1e-6
    difference = (slope(x + step) - slope(x - step)) / (2 * step)
    assert float(jax.grad(slope)(x)) == pytest.approx(float(difference), rel=1e-6)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda p: tricubic(xp.asarray(TABLE), vector(xp, p, (3,))), (places,), (places,))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_jax_loops_over_blocks_of_any_number_of_places(count, load_framework):
    """A loop of one step is none to XLA, which then works out each gradient from the beginning."""
    xp = load_framework("jax")
    jax = pytest.importorskip("jax")

    def loss(table):
        return xp.sum(tricubic(table, vector(xp, xp.asarray(PLACES[:, :count]), (count,))))

    program = jax.jit(jax.grad(loss)).lower(xp.asarray(TABLE))
    assert "while" in program.compile().as_text()
    expected = jax.jit(
        jax.grad(
            lambda table: jax.vmap(lambda place: tricubic(table, vector(xp, place, ())), in_axes=1)(
                xp.asarray(PLACES[:, :count])
            ).sum()
        )
    )(xp.asarray(TABLE))
    np.testing.assert_allclose(program.compile()(xp.asarray(TABLE)), expected, atol=1e-12)


def test_torch_traces_values_and_gradients_as_one_graph(load_framework):
    """What ``compile=True`` needs: no call of another library, no branch on values."""
    xp = load_framework("torch")
    torch = pytest.importorskip("torch")
    arrays = [xp.asarray(TABLE), xp.asarray(PLACES)]

    def total(table, places):
        return xp.sum(tricubic(table, places) ** 2)

    def slopes(table, places):
        _, pull = torch.func.vjp(total, table, places)
        return pull(torch.ones((), dtype=torch.float64))

    plain = slopes(*arrays)
    traced = torch.compile(slopes, backend="eager", fullgraph=True)(*arrays)
    for found, expected in zip(traced, plain, strict=True):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-12, atol=1e-12)
