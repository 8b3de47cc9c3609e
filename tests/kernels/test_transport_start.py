"""The guess before the first step: potentials of two Gaussians, in closed form."""

import numpy as np
import pytest
from scipy.special import logsumexp

from stowplan.kernels.transport_start import best_relaxation, guess_on_grid, guess_on_points


def host(array):
    return np.asarray(array)


def gaussian(shape, mean, deviation):
    y, x = np.mgrid[: shape[0], : shape[1]]
    (my, mx), (sy, sx) = mean, deviation
    density = np.exp(-(((y - my) / sy) ** 2) / 2 - ((x - mx) / sx) ** 2 / 2)
    return density / density.sum()


SHAPE = (40, 48)
A = gaussian(SHAPE, (17, 22), (3.0, 4.0))
B = 0.8 * gaussian(SHAPE, (21, 25), (2.5, 5.0))
PIXELS = np.argwhere(np.ones(SHAPE)).astype(float)
SHARPNESS = 0.07


def both_steps(g, tau):
    """One plain step by dense sums: from G over F to the next G."""
    apart = PIXELS[:, None] - PIXELS[None]
    costs = SHARPNESS * (apart**2).sum(-1)
    f = -tau * logsumexp(np.log(B.ravel()) + g.ravel() - costs, axis=1)
    return -tau * logsumexp(np.log(A.ravel()) + f - costs, axis=1).reshape(SHAPE)


PEAK = B.max()
INSIDE = B > 1e-6 * PEAK


@pytest.mark.parametrize("tau", [1.0, 0.95, 0.6])
def test_a_step_leaves_the_guess_of_two_gaussians_as_it_is_but_for_a_constant(xp, tau):
    given = [xp.asarray(part) for part in (A, B, np.array(SHARPNESS))]
    guess = host(guess_on_grid(*given, tau)[0])
    moved = (both_steps(guess, tau) - guess)[INSIDE]
    assert np.ptp(guess[INSIDE]) > 1
    assert np.ptp(moved) < 1e-3 * np.ptp(guess[INSIDE])


@pytest.mark.parametrize("tau", [1.0, 0.95, 0.6])
def test_a_step_brings_a_shift_down_by_the_slower_axis_theta(xp, tau):
    given = [xp.asarray(part) for part in (A, B, np.array(SHARPNESS))]
    guess, theta = map(host, guess_on_grid(*given, tau))
    falls = []
    for axis in (0, 1):
        places = PIXELS[:, axis].reshape(SHAPE)
        change = (both_steps(guess + 0.01 * places, tau) - both_steps(guess, tau)) / 0.01
        falls.append(np.polyfit(places[INSIDE], change[INSIDE], 1)[0])
    assert np.isclose(float(theta), max(falls), rtol=1e-3)


def test_a_list_of_points_gives_what_the_grid_gives_but_for_a_constant(xp):
    grid, slow = guess_on_grid(xp.asarray(A), xp.asarray(B), xp.asarray(SHARPNESS), 0.9)
    places = xp.asarray(PIXELS)
    lists = [xp.asarray(part.ravel()) for part in (A, B)]
    points, theta = guess_on_points(*lists, places, places, xp.asarray(SHARPNESS), 0.9)
    assert np.ptp(host(points) - host(grid).ravel()) < 1e-5 * np.ptp(host(grid))
    assert np.isclose(float(theta), float(slow), rtol=1e-5)


@pytest.mark.parametrize("tau", [1.0, 0.9])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_single_pixels_and_none_at_all_have_a_finite_guess(xp, dtype, tau):
    one, other, none = np.zeros((3, 1, 5, 9))
    one[0, 1, 2] = other[0, 4, 8] = 1.0
    sharp = xp.asarray(np.array([3.0], dtype))
    for a, b in ((one, other), (one, one), (one, none), (none, one)):
        guess, theta = guess_on_grid(
            xp.asarray(a.astype(dtype)), xp.asarray(b.astype(dtype)), sharp, tau
        )
        assert np.isfinite(host(guess)).all()
        assert 0 <= float(theta[0]) <= 1


def test_the_best_weight_makes_both_modes_fall_alike(xp):
    theta = np.array([0.0, 0.5, 0.9])
    weight = host(best_relaxation(xp.asarray(theta)))
    for fall, w in zip(theta, weight, strict=True):  # (rate + w - 1)^2 = rate w^2 theta
        rates = np.roots([1, 2 * (w - 1) - w**2 * fall, (w - 1) ** 2])
        assert np.allclose(np.abs(rates), w - 1, atol=1e-6)


def test_padding_changes_no_bit_of_the_guess(xp):
    rng = np.random.default_rng(2)
    a, b = rng.uniform(size=(2, 3, 9, 14))
    sharp = xp.asarray(np.array([0.1, 0.4, 2.0]))
    around = ((0, 0), (5, 8), (4, 21))
    alone, theta = guess_on_grid(xp.asarray(a), xp.asarray(b), sharp, 0.99)
    wide = (xp.asarray(np.pad(part, around)) for part in (a, b))
    padded, same = guess_on_grid(*wide, sharp, 0.99)
    assert np.array_equal(host(padded)[:, 5:-8, 4:-21], host(alone))
    assert np.array_equal(host(same), host(theta))
