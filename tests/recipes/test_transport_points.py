"""Transport between point lists: the grid's answers, POT's, lists of mixed sizes, and bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from stowplan.errors import DataError, PlanError
from stowplan.recipes.transport import solve, solve_points

NUMBERS = ("cost", "primal", "mass", "created_mass", "destroyed_mass")


def clouds(seed=0, sizes=((9, 14), (20, 6), (5, 5), (17, 23)), dimensions=3):
    """Weighted clouds, sources lighter than targets or not."""
    rng = np.random.default_rng(seed)
    sides = [[rng.normal(size=(pair[side], dimensions)) + side for pair in sizes]
             for side in (0, 1)]  # fmt: skip
    weights = [[rng.uniform(0.2, 1.5, pair[side]) for pair in sizes] for side in (0, 1)]
    return {
        "source": sides[0], "target": sides[1], "source_weights": weights[0],
        "target_weights": weights[1],
    }  # fmt: skip


def assert_same(found, expected, order, tolerance=1e-12):
    np.testing.assert_array_equal(found.iterations, expected.iterations[order])
    for name in NUMBERS:
        left, right = getattr(found, name), getattr(expected, name)[order]
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance, err_msg=name)
    for name in ("destroyed", "created", "displacement"):
        for pair, same in enumerate(order):
            left, right = getattr(found, name)[pair], getattr(expected, name)[same]
            np.testing.assert_allclose(left, right, rtol=0, atol=10 * tolerance, err_msg=name)


@pytest.mark.parametrize("reference", ["product", "counting"])
def test_pixels_as_points_have_the_answer_of_their_grid(framework, reference):
    rows, columns = np.mgrid[:20, :30]
    masks = [
        np.hypot(rows - y, columns - x) < radius
        for y, x, radius in ((8, 9, 5), (10, 17, 6), (9, 10, 3.5))
    ]
    sides = [masks[0], masks[1]], [masks[1], masks[2]]
    steering = {"reference": reference, "tau": 0.95, "threshold": 1e-10, "on": framework}
    grid = solve(*sides, pool=1, epsilon=0.01, **steering)
    points = [[np.argwhere(mask) / 30 for mask in side] for side in sides]
    slots = [{"n": 128, "m": 128, "rows": 2}]
    found = solve_points(*points, epsilon=0.01, slots=slots, **steering)
    for name in NUMBERS:
        np.testing.assert_allclose(
            getattr(found, name), getattr(grid, name), rtol=1e-9, atol=1e-12, err_msg=name
        )
    for pair in range(2):
        y0, y1, x0, x1 = grid.boxes[pair]
        for side, name in enumerate(("destroyed", "created")):
            inside = sides[side][pair][y0:y1, x0:x1]
            on_grid = getattr(grid, name)[pair][inside]
            np.testing.assert_allclose(getattr(found, name)[pair], on_grid, atol=1e-11)
        inside = sides[0][pair][y0:y1, x0:x1]
        np.testing.assert_allclose(
            30 * found.displacement[pair], grid.velocity[pair][inside], atol=1e-7
        )


@pytest.mark.parametrize(("reference", "kind"), [("product", "kl"), ("counting", "entropy")])
def test_weighted_points_in_space_have_the_answers_of_pot(framework, reference, kind):
    ot = pytest.importorskip("ot", reason="POT is not installed")
    data = clouds()
    found = solve_points(
        **data, reference=reference, tau=0.9, relative_epsilon=0.1, threshold=1e-13, on=framework,
        slots=[{"n": 20, "m": 23, "rows": 4}],
    )  # fmt: skip
    assert found.converged.all()
    for pair, (x, y, a, b) in enumerate(zip(*data.values(), strict=True)):
        unit = max(a.sum(), b.sum())
        cost = ((x[:, None] - y[None]) ** 2).sum(axis=2)
        mean = (a / a.sum()) @ cost @ (b / b.sum())
        assert found.epsilon[pair] == pytest.approx(0.1 * mean, rel=1e-12)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = ot.unbalanced.sinkhorn_unbalanced(
                a / unit, b / unit, cost, 0.1 * mean, 0.9 * mean, reg_type=kind, stopThr=1e-16,
                numItermax=100000,
            )  # fmt: skip
        left, arrived = expected.sum(axis=1), expected.sum(axis=0)
        assert found.mass[pair] == pytest.approx(expected.sum(), rel=1e-9)
        assert found.cost[pair] == pytest.approx((expected * cost).sum(), rel=1e-9)
        np.testing.assert_allclose(
            found.displacement[pair], expected @ y / left[:, None] - x, rtol=0, atol=1e-9
        )
        for name, lost in (("destroyed", a / unit - left), ("created", b / unit - arrived)):
            np.testing.assert_allclose(
                getattr(found, name)[pair], np.maximum(lost, 0), rtol=0, atol=1e-10
            )
        assert found.mass[pair] + found.destroyed_mass[pair] == pytest.approx(a.sum() / unit)
        assert found.mass[pair] + found.created_mass[pair] == pytest.approx(b.sum() / unit)


def test_order_company_and_slots_change_nothing(framework):
    if framework == "array_api_strict":
        pytest.skip("slow, and the same code as NumPy's")
    tolerance = 1e-9 if framework == "jax" else 1e-12
    data = clouds(3)
    expected = solve_points(**data, on=framework, slots=1)
    order = [2, 0, 3, 1]
    shuffled = {name: [column[pair] for pair in order] for name, column in data.items()}
    assert_same(
        solve_points(**shuffled, on=framework, slots=expected.plans["rounds"].slots), expected,
        order, tolerance,
    )  # fmt: skip
    for steering in ({"slots": [{"n": 40, "m": 50}]}, {"slots": 2, "rows": 1}):
        found = solve_points(**data, on=framework, **steering)
        assert_same(found, expected, range(4), tolerance)


def test_units_of_weights_and_of_lengths_leave_the_answer(framework):
    if framework == "array_api_strict":
        pytest.skip("slow, and the same code as NumPy's")
    data = clouds(1)
    slots = [{"n": 20, "m": 23, "rows": 4}]
    expected = solve_points(**data, on=framework, slots=slots)
    scaled = {
        name: [(1e3 if "weights" in name else 1e-4) * part for part in column]
        for name, column in data.items()
    }
    found = solve_points(**scaled, on=framework, slots=slots)
    np.testing.assert_allclose(found.mass, expected.mass, rtol=1e-9)
    np.testing.assert_allclose(found.cost, 1e-8 * expected.cost, rtol=1e-9)


def test_results_are_a_sequence_and_a_table():
    found = solve_points(**clouds())
    assert len(found) == len(list(found)) == 4
    np.testing.assert_array_equal(found[-1]["displacement"], found.displacement[3])
    with pytest.raises(IndexError, match="4 of 4"):
        found[4]
    assert len(solve_points([], [])) == 0
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = found.to_table()
    assert table.num_rows == 4
    assert np.array(table["displacement"][1].as_py()).shape == (20, 3)


def test_points_that_are_far_apart_for_their_blur_lose_no_sum(framework):
    if framework == "array_api_strict":
        pytest.skip("slow, and the same code as NumPy's")
    x = np.array([[0.0], [1.0]])
    found = solve_points(
        [x], [x + 40], epsilon=1.0, tau=1.0, on=framework, threshold=1e-10,
        slots=[{"n": 2, "m": 2, "rows": 1}],
    )  # fmt: skip
    # exp(-1600); order is kept: swapped pairs cost 39^2 + 41^2 - 2 40^2 = 2 more
    stays = 1 / (1 + np.exp(-1.0))
    expected = [[39 + 0 + 1 + 1 - stays], [39 + stays]]
    np.testing.assert_allclose(found.displacement[0], expected, atol=1e-8)
    assert found.mass[0] == pytest.approx(1, abs=1e-9)


X, Y, Z = np.ones((3, 2)), np.zeros((4, 2)), np.ones((4, 3))


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (([X], []), {}, "1 sources, but 0 targets; give one target for each source"),
        ((3, [X]), {}, "the source is of type int; give a list"),
        (([X, X[0]], [Y, Y]), {}, r"the source of pair 1 has shape \(2,\).*\(points, coord"),
        (([X], [["a", "b"]]), {}, "the target of pair 0 has shape .*points are numbers"),
        (([X], [X[:0]]), {}, r"the target of pair 0 has shape \(0, 2\).*at least one"),
        (([X], [X * np.inf]), {}, "the target of pair 0 has a coordinate that is not finite"),
        (([X, X], [Y, Z]), {}, "pair 1: the source's points have 2 coordinates, the target's 3"),
        (([X, Z], [Y, Z]), {}, "pair 1: .*3 coordinates.*first pair have 2"),
        (([X], [Y]), {"source_weights": 3}, "source_weights must be a list of 1 arrays"),
        (([X], [Y]), {"target_weights": [np.ones(3)]},
         r"target_weights of pair 0 have shape \(3,\).*each of its 4 points"),
        (([X], [Y]), {"target_weights": [np.array([1, 1, 0, 1.0])]},
         "target_weights of pair 0 must be finite and above 0. Leave out points without mass"),
        (([X], [Y]), {"tau": 1}, r"tau=1 .*pair 0 is 3 at the source and 4 .*mass=\"own\""),
        (([X], [Y]), {"tau": 0}, "tau=0"),
        (([X], [Y]), {"max_iterations": 9}, "max_iterations=9; .*max_iterations=10 or more"),
        (([X], [Y]), {"epsilon": -1}, "epsilon=-1"),
    ],
)  # fmt: skip
def test_bad_points_and_weights_are_named(given, options, message):
    with pytest.raises(DataError, match=f"transport: .*{message}"):
        solve_points(*given, **options)


def test_slots_that_hold_no_pair_are_named():
    with pytest.raises(PlanError, match=r"Item 0 has n=3, m=4; the largest slot holds n=2, m=9"):
        solve_points([X], [Y], slots=[{"n": 2, "m": 9}])
