"""Many pairs at once: company, buckets and budgets change nothing, and sets converge."""

from __future__ import annotations

import functools
import logging
import re

import numpy as np
import pytest
from bench.silhouettes import coins, ellipse_pairs

from stowplan.errors import BudgetError
from stowplan.kernels import transport as kernels
from stowplan.recipes.transport import solve

NUMBERS = ("cost", "primal", "mass", "created_mass", "destroyed_mass", "mean_velocity")
MAPS = ("velocity", "created", "destroyed")


@pytest.fixture(scope="module")
def ellipses():
    return ellipse_pairs()


@pytest.fixture(scope="module")
def small():
    """Six pairs of several sizes, on canvases of which some differ."""
    sources, targets = ellipse_pairs(6, canvas=None, seed=11)
    return [mask[::3, ::3] for mask in sources], [mask[::3, ::3] for mask in targets]


def tolerance(framework):
    return 1e-9 if framework == "jax" else 1e-12


def assert_same(found, expected, order=None, tolerance=1e-12):
    """Whether results are those of some pairs of others, in an order."""
    order = list(range(len(expected))) if order is None else order
    np.testing.assert_array_equal(found.iterations, expected.iterations[order])
    np.testing.assert_array_equal(found.converged, expected.converged[order])
    np.testing.assert_array_equal(found.boxes, expected.boxes[order])
    for name in NUMBERS:
        left, right = getattr(found, name), getattr(expected, name)[order]
        scale = np.abs(right).max()
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * scale, err_msg=name)
    for name in MAPS:
        left, right = getattr(found, name), getattr(expected, name)
        for pair, same in enumerate(order):
            scale = max(np.abs(right[same]).max(), 1.0)
            np.testing.assert_allclose(
                left[pair], right[same], rtol=0, atol=tolerance * scale, err_msg=name
            )


# company


def test_order_company_and_rows_change_nothing(framework, small):
    if framework == "array_api_strict":
        pytest.skip("slow, and the same code as NumPy's")
    sources, targets = small
    bucket = {"buckets": 1, "on": framework}
    expected = solve(sources, targets, **bucket)
    order = [3, 1, 5, 0, 4, 2]
    shuffled = solve([sources[i] for i in order], [targets[i] for i in order], **bucket)
    assert_same(shuffled, expected, order, tolerance(framework))
    some = solve(sources[2:4], targets[2:4], **{**bucket, "buckets": expected.plan.slots})
    assert_same(some, expected, [2, 3], tolerance(framework))
    for rows in (1, 2):
        assert_same(solve(sources, targets, rows=rows, **bucket), expected, None,
                    tolerance(framework))  # fmt: skip


@pytest.mark.parametrize(
    "buckets", [None, 4, [(24, 48), (48, 90)], [{"y": 60, "x": 101}], [(200, 170)]]
)
def test_buckets_change_nothing(framework, small, buckets):
    if framework == "array_api_strict" or (framework == "jax" and buckets in (None, 4)):
        pytest.skip("slow, and the same code as for others")
    expected = solve(*small, buckets=1, on=framework)
    found = solve(*small, buckets=buckets, on=framework)
    assert_same(found, expected, None, tolerance(framework))


@pytest.mark.parametrize("offsets", ["corner", "random"])
@pytest.mark.parametrize("reference", ["product", "counting"])
def test_where_work_grids_lie_in_their_buckets_changes_nothing(
    framework, small, offsets, reference
):
    if framework == "array_api_strict":
        pytest.skip("slow, and the same code as NumPy's")
    # the bucket of a test above, for which JAX has compiled
    steering = {"buckets": [(60, 101)], "on": framework, "reference": reference}
    expected = solve(*small, **steering)
    if offsets == "random":
        free = np.array([60, 101]) - expected.plan.lengths
        offsets = np.random.default_rng(0).integers(0, free + 1)
    found = solve(*small, offsets=offsets, **steering)
    assert found.plan.offsets is None or (found.plan.offsets != expected.plan.offsets).any()
    assert_same(found, expected, None, tolerance(framework))


# pairs of one stack


def test_pairs_of_a_stack_are_two_lists_of_its_masks(small):
    stack = np.stack([small[0][0], small[1][0], np.roll(small[0][0], 3, axis=1)])
    chosen = [(0, 1), (2, 0), (0, 2), (1, 1)]
    found = solve(stack, pairs=chosen)
    sides = [[stack[pair[side]] for pair in chosen] for side in (0, 1)]
    assert_same(found, solve(*sides), tolerance=0)
    consecutive = solve(stack, pairs="consecutive")
    assert_same(consecutive, solve(stack[:-1], stack[1:]), tolerance=0)
    assert_same(consecutive, solve(list(stack), pairs=np.array([[0, 1], [1, 2]])), tolerance=0)


# whole sets


@pytest.mark.parametrize(
    ("relative_epsilon", "tau", "most"),
    [(0.01, 0.99, 60), (0.01, 0.999, 120), (0.0018, 0.99999, 600)],
)
@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_all_bent_ellipses_converge(name, ellipses, load_framework, relative_epsilon, tau, most):
    load_framework(name)
    every = 1 if name == "numpy" else 4
    sides = (side[::every] for side in ellipses)
    found = solve(
        *sides, crop=(0, 256, 0, 576), pool=8, relative_epsilon=relative_epsilon, tau=tau, on=name,
    )  # fmt: skip
    assert found.converged.all()
    assert not found.failed.any()
    assert found.messages == ("",) * len(found)
    assert found.iterations.mean() <= most
    assert (found.error < 1e-4).all()
    assert (found.gap >= -1e-12).all()
    assert (found.gap < 1e-3 * np.abs(found.primal)).all()


@pytest.mark.parametrize(
    ("relative_epsilon", "tau"), [(0.01, 0.99), (0.01, 0.999), (0.0018, 0.99999)]
)
def test_all_pairs_of_coins_converge(relative_epsilon, tau):
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    found = solve(coins(), pairs="consecutive", relative_epsilon=relative_epsilon, tau=tau)
    assert len(found) == 21
    assert found.converged.all()
    assert found.iterations.mean() <= 600


def test_four_buckets_waste_at_most_three_quarters_where_three_by_hand_waste_four_times_as_much():
    steering = {"pool": 4, "max_iterations": 10, "relative_epsilon": 0.1, "tau": 0.9}
    pairs = ellipse_pairs(256)
    work = "y*x*(y+x)"
    chosen = solve(*pairs, buckets=4, **steering).plan
    assert len(chosen.slots) <= 4
    assert chosen.occupancy(work) >= 1 / 1.75
    by_hand = solve(*pairs, buckets=[(32, 64), (64, 128), (128, 256)], **steering).plan
    assert 1 / by_hand.occupancy(work) == pytest.approx(5.2, abs=0.3)


# compiling


def test_rounds_and_maps_compile_once_a_bucket_and_nothing_for_another_set(small, load_framework):
    load_framework("jax")
    from stowplan.adapters.jax import adapter

    before = adapter.traces.total()
    sources, targets = small
    first = solve(sources, targets, on="jax", buckets=2)
    made = adapter.traces.total() - before
    assert 0 < made <= 3 * len(first.plan.slots)
    assert "compiles" in str(first.plan)
    again = solve(
        [*targets, *sources[:3]], [*sources, *targets[:3]], on="jax", buckets=first.plan.slots
    )
    assert adapter.traces.total() - before == made
    assert again.converged.all()
    solve(sources, targets, on="jax", buckets=first.plan.slots, tau=0.95, threshold=1e-3)
    assert adapter.traces.total() - before == made


# failures


def giving_up(monkeypatch, marked):
    """Let the error of pairs with a source of some mass never be finite."""
    finished = kernels.finished

    @functools.wraps(finished)
    def gives_up(state, source, *others, **options):
        done, failed = finished(state, source, *others, **options)
        wrong = abs(source.sum(axis=(-2, -1)) - marked) < 1e-12
        return done & ~wrong, failed | wrong

    monkeypatch.setattr(kernels, "finished", gives_up)


def test_a_pair_that_fails_leaves_the_others_as_they_are(small, monkeypatch, caplog):
    expected = solve(*small, buckets=1)
    giving_up(monkeypatch, expected.source_mass[2])
    with caplog.at_level(logging.WARNING, logger="stowplan"):
        found = solve(*small, buckets=1)
    assert found.failed.tolist() == [False, False, True, False, False, False]
    assert not found.converged[2]
    for name in ("cost", "primal", "gap", "mass", "created_mass", "destroyed_mass", "error"):
        values = getattr(found, name)
        assert np.isnan(values[2]), name
        np.testing.assert_array_equal(np.delete(values, 2), np.delete(getattr(expected, name), 2))
    for name in MAPS:
        values = getattr(found, name)
        assert np.isnan(values[2]).all(), name
        for pair in (0, 1, 3, 4, 5):
            np.testing.assert_array_equal(values[pair], getattr(expected, name)[pair])
    assert np.isnan(found.mean_velocity[2]).all()
    assert np.isnan(found.maps(2)["created"]).all()
    assert "failed after 10 iterations" in found.messages[2]
    assert [record.getMessage() for record in caplog.records] == [
        f"transport: pair 2: {found.messages[2]}"
    ]


def test_pairs_that_reach_the_limit_are_given_back_as_they_are(framework, small, caplog):
    if framework == "array_api_strict":
        pytest.skip("slow, and the same code as NumPy's")
    with caplog.at_level(logging.WARNING, logger="stowplan"):
        found = solve(*small, max_iterations=25, threshold=1e-12, buckets=1, on=framework)
    assert not found.converged.any()
    assert not found.failed.any()
    assert (found.iterations == 20).all()  # whole rounds of 10
    for name in (*NUMBERS, "gap", "error"):
        assert np.isfinite(getattr(found, name)).all(), name
    for pair, message in enumerate(found.messages):
        assert message.startswith("not converged after 20 iterations: error ")
        assert f"{found.error[pair]:.2e}" in message
    assert "pair 5: not converged" in caplog.text


# memory


@pytest.mark.parametrize("on", ["numpy", "torch"])
def test_a_budget_changes_nothing_but_the_rows(small, on, load_framework):
    load_framework(on)
    sources, targets = (side * 4 for side in small)
    free = solve(sources, targets, buckets=1, pool=1, on=on)
    tight = solve(sources, targets, buckets=1, pool=1, budget="16 MB", on=on)
    assert max(tight.plan.rows) < max(free.plan.rows)
    assert_same(tight, free)
    densities, potentials = (
        sum(tight.work[f"{side}{kind}"].values.nbytes for side in ("source", "target"))
        for kind in ("", "_potential")
    )
    for name, held in (("rounds", densities), ("maps", densities + potentials)):
        plan = tight.plans[name]
        assert re.search(r"memory  .* at its peak .*\nbudget  .*budget=", str(plan))
        assert plan.memory.budget.bytes + held <= 16e6  # work grids that are held beside it
        assert 0 < plan.memory.peak_bytes <= plan.memory.budget.bytes


def test_a_budget_that_holds_no_pair_is_refused_with_the_bytes_that_are_needed(small):
    with pytest.raises(
        BudgetError, match=r"transport: .*all pairs take (\d+) bytes; .*larger pool"
    ) as no:
        solve(*small, budget="20 kB")
    held = int(re.search(r"take (\d+) bytes", str(no.value))[1])
    with pytest.raises(BudgetError, match=r"one row of step at y=.* needs .*Give at least budget="):
        solve(*small, budget=held + 1000)


# results


def test_results_are_a_sequence_and_a_table(small):
    found = solve(*small)
    assert len(found) == len(list(found)) == 6
    assert found[-1]["cost"] == found.cost[5]
    assert repr(found).startswith("<TransportResults: 6 pairs, 6 converged, ")
    with pytest.raises(IndexError, match="6 of 6"):
        found[6]
    for call in (found.maps, found.coupling):
        with pytest.raises(IndexError, match="pair 6 of 6"):
            call(6)
    for name, values in found.maps(-1).items():
        np.testing.assert_array_equal(values, getattr(found, name)[5])
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = found.to_table()
    assert table.num_rows == 6
    assert table["cost"].to_pylist() == found.cost.tolist()
    assert table["boxes"][2].as_py() == found.boxes[2].tolist()
    assert table["converged"].to_pylist() == [True] * 6


def test_no_pairs_give_results_of_no_pairs(framework):
    found = solve([], [], on=framework)
    assert len(found) == 0
    assert found.cost.shape == found.mass.shape == (0,)
    assert found.boxes.shape == (0, 4)
    assert found.mean_velocity.shape == (0, 2)
    assert len(found.velocity) == len(found.created) == 0
    assert found.messages == ()
    assert set(found.columns()) >= {"cost", "iterations", "mean_velocity"}


def test_a_coupling_gives_rows_products_and_the_matrix(small):
    coupling = solve(*small).coupling(1)
    dense = coupling.dense()
    n, m = len(coupling.source_points), len(coupling.target_points)
    assert dense.shape == (n, m)
    np.testing.assert_array_equal(coupling.rows(3, 9), dense[3:9])
    np.testing.assert_array_equal(coupling.rows(n - 2), dense[-2:])
    for values in (np.ones(m), np.arange(2.0 * m).reshape(m, 2)):
        for block in (7, 256):
            found = coupling.apply(values, block=block)
            np.testing.assert_allclose(found, dense @ values, rtol=1e-12)
    with pytest.raises(ValueError, match=rf"takes {8 * n * m} bytes, more than most_bytes=100"):
        coupling.dense(most_bytes=100)
    with pytest.raises(ValueError, match=rf"shape \(2,\).*{m} target pixels"):
        coupling.apply([1.0, 2.0])
