"""Gradients of transport's objective are finite differences of it, in every way they are asked."""

from __future__ import annotations

import numpy as np
import pytest

from stowplan.errors import DataError, FrameworkError
from stowplan.recipes.transport import solve

CANVAS = (18, 26)
FIXED = {
    "density": "given", "epsilon": 0.02, "tau": 0.9, "threshold": 1e-12, "padding": 2,
    "buckets": [{"y": 18, "x": 26, "rows": 2}],
}  # fmt: skip
GRADIENTS = ["torch", "jax"]


def blob(y, x, radius, seed):
    """A density that differs from pixel to pixel, 0 off a disk."""
    rows, columns = np.mgrid[: CANVAS[0], : CANVAS[1]]
    values = np.random.default_rng(seed).uniform(0.5, 1.5, CANVAS)
    return np.where(np.hypot(rows - y, columns - x) < radius, values, 0.0)


def pairs():
    """Two pairs whose sources are lighter than their targets, which set the unit of mass."""
    return [blob(7, 8, 4, 0), blob(9, 9, 3, 1)], [blob(10, 14, 6, 2), blob(8, 15, 5, 3)]


def slopes(framework, sources, targets, weights, load, stacked=False, **options):
    """The gradient of a weighted sum of objectives by all densities."""
    load(framework)

    def total(first, second):
        return solve(first, second, on=framework, **FIXED, **options).primal

    if framework == "torch":
        import torch

        sides = [[torch.tensor(part, requires_grad=True) for part in side]
                 for side in (sources, targets)]  # fmt: skip
        given = [torch.stack(side) for side in sides] if stacked else sides
        (total(*given) * torch.tensor(weights)).sum().backward()
        return [[part.grad.numpy() for part in side] for side in sides]
    import jax

    def loss(first, second):
        return (total(first, second) * jax.numpy.asarray(weights)).sum()

    given = [
        jax.numpy.stack(side) if stacked else [jax.numpy.asarray(part) for part in side]
        for side in (sources, targets)
    ]
    found = jax.grad(loss, argnums=(0, 1))(*given)
    return [[np.asarray(part) for part in side] for side in found]


@pytest.mark.parametrize("framework", GRADIENTS)
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("reference", ["product", "counting"])
def test_gradients_are_central_differences_at_fixed_epsilon_and_unit(
    framework, reference, pool, load_framework
):
    sources, targets = pairs()
    weights = [1.0, -0.7]
    found, _ = slopes(
        framework, sources, targets, weights, load_framework, reference=reference, pool=pool
    )
    for pair, (y, x) in ((0, (7, 8)), (0, (5, 10)), (1, (10, 8))):
        step = 1e-4
        ends = []
        for sign in (1, -1):
            moved = [part.copy() for part in sources]
            moved[pair][y, x] += sign * step
            primal = solve(moved, targets, reference=reference, pool=pool, **FIXED).primal
            ends.append(primal @ weights)
        expected = (ends[0] - ends[1]) / (2 * step)
        assert found[pair][y, x] == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("framework", GRADIENTS)
def test_gradients_by_the_target_are_those_of_the_pair_turned_round(framework, load_framework):
    sources, targets = pairs()
    weights = [1.0, 2.0]
    first = slopes(framework, sources, targets, weights, load_framework, pool=2)
    turned = slopes(framework, targets, sources, weights, load_framework, pool=2)
    for side, other in ((0, 1), (1, 0)):
        for one, same in zip(first[side], turned[other], strict=True):
            np.testing.assert_allclose(one, same, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("framework", GRADIENTS)
@pytest.mark.parametrize("reference", ["product", "counting"])
def test_gradients_are_finite_off_the_masks_and_zero_off_the_crop(
    framework, reference, load_framework
):
    sources, targets = pairs()
    crop = (2, 17, 1, 24)
    found = slopes(
        framework, sources, targets, [1.0, 1.0], load_framework, reference=reference, crop=crop,
        pool=2,
    )  # fmt: skip
    outside = np.ones(CANVAS, np.bool_)
    outside[2:17, 1:24] = False
    for side in found:
        for slope in side:
            assert slope.shape == CANVAS
            assert np.isfinite(slope).all()
            assert (slope[outside] == 0).all()
            assert (slope[~outside] != 0).any()


@pytest.mark.parametrize("framework", GRADIENTS)
def test_mass_that_is_added_off_a_mask_changes_the_objective_as_its_gradient_says(
    framework, load_framework
):
    sources, targets = pairs()
    found, _ = slopes(framework, sources, targets, [1.0, 1.0], load_framework, pool=1)
    y, x, step = 13, 8, 1e-4  # off the source, in the crop
    assert sources[0][y, x] == 0
    ends = []
    for size in (0, 1, 2):
        moved = [part.copy() for part in sources]
        moved[0][y, x] += size * step
        ends.append(solve(moved, targets, pool=1, **FIXED).primal[0])
    expected = (-3 * ends[0] + 4 * ends[1] - ends[2]) / (2 * step)  # one-sided, second order
    assert found[0][y, x] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("framework", GRADIENTS)
def test_stacks_have_the_gradients_of_lists(framework, load_framework):
    sources, targets = pairs()
    weights = [0.5, 2.0]
    listed = slopes(framework, sources, targets, weights, load_framework, pool=2)
    stacked = slopes(framework, sources, targets, weights, load_framework, True, pool=2)
    np.testing.assert_array_equal(np.stack(stacked[0]), np.stack(listed[0]))
    np.testing.assert_array_equal(np.stack(stacked[1]), np.stack(listed[1]))


def test_balanced_gradients_are_potentials_that_differ_by_a_constant(load_framework):
    load_framework("torch")
    sources, targets = pairs()
    equal = [target * (source.sum() / target.sum())
             for source, target in zip(sources, targets, strict=True)]  # fmt: skip
    options = {**FIXED, "tau": 1, "pool": 1, "threshold": 1e-11}
    import torch

    given = [torch.tensor(part, requires_grad=True) for part in sources]
    solve(given, [torch.asarray(part) for part in equal], **options).primal.sum().backward()
    step, ends = 1e-4, []
    for sign in (1, -1):  # mass from one pixel to another keeps the problem balanced
        moved = [part.copy() for part in sources]
        moved[0][7, 8] += sign * step
        moved[0][8, 6] -= sign * step
        ends.append(solve(moved, equal, **options).primal[0])
    slope = given[0].grad
    assert float(slope[7, 8] - slope[8, 6]) == pytest.approx(
        (ends[0] - ends[1]) / (2 * step), rel=1e-5
    )


def test_one_side_alone_can_be_followed(load_framework):
    torch = load_framework("torch")
    sources, targets = pairs()
    both, _ = slopes("torch", sources, targets, [1.0, 1.0], load_framework, pool=2)
    given = [torch.asarray(part).requires_grad_() for part in sources[:1]]
    found = solve(given, [torch.asarray(targets[0])], pool=2, **FIXED)
    found.primal.sum().backward()
    np.testing.assert_allclose(given[0].grad.numpy(), both[0], rtol=1e-9)
    assert not any(hasattr(value, "requires_grad") for value in (found.cost, found.mass))


def test_densities_of_a_framework_are_solved_on_it(framework, xp):
    sources, targets = pairs()
    given = [[xp.asarray(part) for part in side] for side in (sources, targets)]
    found = solve(*given, pool=2, **FIXED)
    assert found.plan.on == framework
    expected = solve(sources, targets, pool=2, **FIXED)
    assert expected.plan.on == "numpy"
    np.testing.assert_allclose(found.primal, expected.primal, rtol=1e-9)


def test_gradients_that_there_are_not_are_refused_by_name(load_framework):
    load_framework("torch")
    import torch

    stack = torch.tensor(np.stack(pairs()[0]), requires_grad=True)
    with pytest.raises(DataError, match=r"transport: gradients are of two lists .*pairs="):
        solve(stack, pairs="consecutive", **FIXED)
    load_framework("jax")
    import jax

    sources, targets = (jax.numpy.asarray(np.stack(side)) for side in pairs())
    with pytest.raises(FrameworkError, match=r"transport: .*jit.*outside of jit; jax.grad alone"):
        jax.jit(lambda first: solve(first, targets, **FIXED).primal)(sources)
