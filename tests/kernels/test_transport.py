"""Transport kernels against slow dense loops: potentials, maps, sums; what rows must not see."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

import stowplan as sp
from stowplan.kernels import transport as kernels
from stowplan.kernels.transport_sums import Grid, floor, neighbours, tiled, tiled_moments

KEEP = ("source_potential", "target_potential")
TIGHT = 1e-13


def blobs(shape, seed):
    """Two densities with holes, of unequal mass."""
    rng = np.random.default_rng(seed)
    source, target = rng.uniform(0.1, 1, size=(2, *shape))
    source[rng.uniform(size=shape) < 0.4] = 0
    target[rng.uniform(size=shape) < 0.4] = 0
    source[0, 0] = target[-1, -1] = 0.5
    return source / source.sum(), 0.8 * target / target.sum()


def grid_costs(shape):
    """Squared distances of all pairs of pixels, (n, n)."""
    places = np.argwhere(np.ones(shape))
    return ((places[:, None] - places[None]) ** 2).sum(-1).astype(float)


def dense_plan(a, b, costs, tau, reference, steps=30000):
    """P of flat densities by plain scaling in logarithms, without any acceleration."""
    rows, columns = np.flatnonzero(a > 0), np.flatnonzero(b > 0)
    log_a, log_b, c = np.log(a[rows]), np.log(b[columns]), costs[np.ix_(rows, columns)]
    prior = log_a[:, None] + log_b if reference == "product" else np.zeros_like(c)
    logs = prior - c
    u, v = np.zeros(len(rows)), np.zeros(len(columns))
    for _ in range(steps):
        last = u
        v = tau * (log_b - logsumexp(u[:, None] + logs, axis=0))
        u = tau * (log_a - logsumexp(v + logs, axis=1))
        if np.abs(u - last).max() < 1e-15:
            break
    plan = np.zeros(costs.shape)
    plan[np.ix_(rows, columns)] = np.exp(u[:, None] + v + logs)
    return plan


def divergence(p, q):
    """Sum of p log(p/q) - p + q."""
    real = p > 0
    return (p[real] * np.log(p[real] / q[real])).sum() - p.sum() + q.sum()


def objective(plan, a, b, costs, tau, reference):
    """The objective over eps; without the marginals where tau is 1."""
    inside = (a[:, None] > 0) & (b > 0)
    prior = a[:, None] * b if reference == "product" else np.ones_like(plan)
    value = (plan * costs).sum() + divergence(plan[inside], prior[inside])
    if tau < 1:
        r = tau / (1 - tau)
        value += r * (divergence(plan.sum(1), a) + divergence(plan.sum(0), b))
    return value


def solved(xp, sources, targets, sharpness, **options):
    """Maps of pairs on grids, by the kernels, as NumPy."""
    steered = {"tau": 0.9, "threshold": TIGHT, "relaxation": 1.5, "adaptive": True, **options}
    offsets = steered.pop("offsets", "corner")
    slots = steered.pop("slots", None)
    data = {
        "source": sp.Ragged.from_list([xp.asarray(x) for x in sources], 2),
        "target": sp.Ragged.from_list([xp.asarray(x) for x in targets], 2),
        "sharpness": xp.asarray(np.asarray(sharpness, sources[0].dtype)),
    }
    plan = sp.plan(kernels.step, data, slots=slots, order="cheapest", offsets=offsets)
    found = sp.iterate(
        kernels.step, data, plan, init=kernels.start, until=kernels.finished, every=kernels.EVERY,
        limit=20000, keep=KEEP, **steered,
    )  # fmt: skip
    fixed = {name: steered[name] for name in ("tau", "reference", "balanced", "tile")
             if name in steered}  # fmt: skip
    columns = {**{name: data[name] for name in ("source", "target")}, **found.values,
               "sharpness": data["sharpness"]}  # fmt: skip
    maps = sp.run(kernels.maps, columns, **fixed)
    return found, maps


def host(value):
    return np.asarray(value)


@pytest.mark.parametrize("reference", ["product", "counting"])
@pytest.mark.parametrize("tau", [0.5, 0.97, 1.0])
def test_the_grid_gives_what_a_dense_loop_over_all_pairs_of_pixels_gives(xp, reference, tau):
    shape, sharpness = (6, 9), 0.7
    a, b = blobs(shape, 1)
    if tau == 1:
        b = b / b.sum()
    costs = sharpness * grid_costs(shape)
    plan = dense_plan(a.ravel(), b.ravel(), costs, tau, reference)
    found, maps = solved(xp, [a], [b], [sharpness], tau=tau, balanced=tau == 1, reference=reference)
    assert bool(found.converged[0])
    pixels = np.argwhere(np.ones(shape)).astype(float)
    left, arrived = plan.sum(1), plan.sum(0)
    moved = plan @ pixels / np.where(left > 0, left, 1)[:, None] - pixels
    moved[a.ravel() == 0] = 0
    close = {"rtol": 1e-9, "atol": 1e-11}
    assert np.allclose(host(maps.cost)[0], (plan * costs).sum() / sharpness, **close)
    assert np.allclose(host(maps.mass)[0], plan.sum(), **close)
    expected = objective(plan, a.ravel(), b.ravel(), costs, tau, reference)
    assert np.allclose(host(maps.primal)[0], expected, **close)
    assert abs(host(maps.gap)[0]) < 1e-10
    assert host(maps.error)[0] < TIGHT * 1.01 + 1e-15
    assert np.allclose(host(maps.destroyed[0]).ravel(), np.maximum(a.ravel() - left, 0), **close)
    assert np.allclose(host(maps.created[0]).ravel(), np.maximum(b.ravel() - arrived, 0), **close)
    assert np.allclose(host(maps.velocity[0]).reshape(-1, 2), moved, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("tile", [1, 2, 4])
def test_tiles_give_what_the_two_matrices_give(xp, tile):
    a, b = blobs((6, 9), 2)
    _, plain = solved(xp, [a], [b], [0.7])
    _, tiles = solved(xp, [a], [b], [0.7], tile=tile)
    for name in ("cost", "primal", "mass"):
        assert np.allclose(host(getattr(tiles, name)), host(getattr(plain, name)), rtol=1e-11)
    for name in ("velocity", "created", "destroyed"):
        first, second = (host(getattr(maps, name).values) for maps in (tiles, plain))
        assert np.allclose(first, second, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tiles_lose_nothing_where_sums_relative_to_the_largest_underflow(xp, dtype):
    rng = np.random.default_rng(3)
    shape, sharpness = (5, 12), 30.0  # 30 * 11^2 = 3630 is far below exp's reach
    z = rng.normal(size=shape) * 50
    z[rng.uniform(size=shape) < 0.3] = -np.inf
    z[:, 7:] = -np.inf
    costs = sharpness * grid_costs(shape)
    expected = logsumexp(z.ravel()[None] - costs, axis=1).reshape(shape)
    tile = 2 if dtype == "float32" else 4
    given = xp.asarray(z.astype(dtype))[None, ...]
    sharp = xp.asarray(np.array([sharpness], dtype))
    close = {"rtol": 3e-6, "atol": 1e-4} if dtype == "float32" else {"rtol": 1e-13, "atol": 1e-10}
    assert np.allclose(host(tiled(given, sharp, tile))[0], expected, **close)
    sums, steps, squares = tiled_moments(given, sharp, tile)
    assert np.allclose(host(sums)[0], expected, **close)
    weights = np.exp(z.ravel()[None] - costs - expected.ravel()[:, None])
    pixels = np.argwhere(np.ones(shape)).astype(float)
    apart = pixels[None] - pixels[:, None]
    moments = {"rtol": 1e-3, "atol": 1e-3} if dtype == "float32" else {"rtol": 1e-9, "atol": 1e-9}
    mean = np.einsum("ij,ijd->id", weights, apart).reshape(*shape, 2)
    assert np.allclose(host(steps)[0], mean, **moments)
    square = np.einsum("ij,ij->i", weights, (apart**2).sum(-1)).reshape(shape)
    assert np.allclose(host(squares)[0], square, **moments)


def test_a_sum_below_its_floor_is_not_exact_and_one_above_is(xp):
    z = np.full((1, 1, 40), -np.inf)
    z[0, 0, 0], z[0, 0, 20] = 0.0, -800.0  # the second underflows beside the first
    sharp = xp.asarray(np.array([2.0]))
    state = {"rows": neighbours(sharp, 1), "columns": neighbours(sharp, 40)}
    sums, least = Grid(state, sharp, 0).onto_target(xp.asarray(z)), floor(xp.asarray(z))
    place = np.arange(40)
    exact = logsumexp(z[0, 0] - 2.0 * (place[:, None] - place) ** 2, axis=1)
    wrong = ~np.isclose(host(sums)[0, 0], exact, rtol=1e-12, atol=1e-12)
    flagged = host(sums)[0, 0] < host(least)[0, 0, 0]
    assert wrong.any()
    assert (flagged | ~wrong).all()
    assert not flagged[:15].any()


def test_a_row_whose_sums_lost_what_its_support_needs_is_given_up(xp):
    a, b = np.zeros((2, 1, 60))
    a[0, 0], b[0, 59] = 1.0, 1.0  # 2 * 59^2 is beyond exp
    near = np.roll(a, 3)
    found, _ = solved(xp, [a, a], [b, near], [2.0, 2.0], tau=0.9)
    assert found.failed.tolist() == [True, False]
    assert found.converged.tolist() == [False, True]
    better, maps = solved(xp, [a, a], [b, near], [2.0, 2.0], tau=0.9, tile=16)
    assert better.converged.tolist() == [True, True]
    costs = 2.0 * grid_costs((1, 60))
    for pair, target in enumerate((b, near)):
        plan = dense_plan(a.ravel(), target.ravel(), costs, 0.9, "product")
        assert np.isclose(np.log(host(maps.mass)[pair]), np.log(plan.sum()), rtol=1e-9)


def same_alone_and_together(xp, shapes, more, offsets):
    """Compare pairs in one padded batch with each of them by itself."""
    pairs = [blobs(shape, seed) for seed, shape in enumerate(shapes)]
    sharpness = [0.5 + 0.1 * pair for pair in range(len(pairs))]
    sources, targets = zip(*pairs, strict=True)
    height, width = (int(length) for length in np.max(shapes, axis=0) + more)
    options = {"threshold": 1e-6, "slots": [{"y": height, "x": width}]}
    found, together = solved(xp, sources, targets, sharpness, offsets=offsets, **options)
    for pair, (a, b) in enumerate(pairs):
        one, alone = solved(xp, [a], [b], [sharpness[pair]], threshold=1e-6)
        assert found.iterations[pair] == one.iterations[0]
        for name in ("cost", "primal", "mass"):
            first, second = (host(getattr(maps, name)) for maps in (together, alone))
            assert np.allclose(first[pair], second[0], rtol=1e-9, atol=1e-13)
        first, second = host(together.velocity[pair]), host(alone.velocity[0])
        assert np.allclose(first, second, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("offsets", ["corner", "centre"])
def test_company_padding_and_offsets_change_nothing(xp, offsets):
    same_alone_and_together(xp, [(5, 7), (2, 8), (7, 3)], (2, 1), offsets)


@settings(max_examples=20)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 8)), min_size=1, max_size=5),
    more=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    offsets=st.sampled_from(["corner", "centre"]),
)
def test_nor_do_they_for_pairs_of_any_shapes(shapes, more, offsets):
    import array_api_compat.numpy as xp

    same_alone_and_together(xp, shapes, more, offsets)


@pytest.mark.parametrize("reference", ["product", "counting"])
def test_points_on_a_grid_give_what_the_grid_gives(xp, reference):
    shape, sharpness = (4, 6), 0.9
    a, b = blobs(shape, 5)
    _, maps = solved(xp, [a], [b], [sharpness], reference=reference)
    x, y = np.argwhere(a > 0), np.argwhere(b > 0)
    data = {
        "source": [xp.asarray(a[a > 0])], "target": [xp.asarray(b[b > 0])],
        "source_points": [xp.asarray(x.astype(float))],
        "target_points": [xp.asarray(y.astype(float))],
        "sharpness": xp.asarray(np.array([sharpness])),
    }  # fmt: skip
    steered = {"tau": 0.9, "reference": reference}
    found = sp.iterate(
        kernels.step_points, data, init=kernels.start_points, until=kernels.finished_points,
        every=kernels.EVERY, limit=5000, keep=KEEP, threshold=TIGHT, relaxation=1.5, **steered,
    )  # fmt: skip
    columns = {
        "source": data["source"], "target": data["target"], **found.values,
        **{name: data[name] for name in ("source_points", "target_points", "sharpness")},
    }  # fmt: skip
    points = sp.run(kernels.maps_points, columns, **steered)
    for name in ("cost", "primal", "mass"):
        assert np.allclose(host(getattr(points, name)), host(getattr(maps, name)), rtol=1e-10)
    on_grid = host(maps.velocity[0])[a > 0]
    assert np.allclose(host(points.velocity[0]), on_grid, rtol=1e-8, atol=1e-9)
    assert np.allclose(host(points.created[0]), host(maps.created[0])[b > 0], atol=1e-11)


def test_over_relaxation_needs_fewer_steps_and_ends_at_the_same_plan(xp):
    place = np.arange(40)[None]
    a, b = ((place < length) / length for length in (20, 38))  # stretched
    options = {"tau": 0.9999, "threshold": 1e-6}
    plain, slow = solved(xp, [a], [b], [0.3], relaxation=1.0, adaptive=False, **options)
    adapted, fast = solved(xp, [a], [b], [0.3], relaxation=1.7, **options)
    assert bool(plain.converged[0])
    assert bool(adapted.converged[0])
    assert adapted.iterations[0] < 0.5 * plain.iterations[0]
    assert np.allclose(host(fast.cost), host(slow.cost), rtol=1e-5)
    assert np.allclose(host(fast.mass), host(slow.mass), rtol=1e-5)
