"""Slopes of power spectra: exact laws, another least squares, and how often intervals cover."""

from __future__ import annotations

import numpy as np
import pytest

from stowplan.errors import DataError
from stowplan.recipes.fields_rings import ShellSums, shells
from stowplan.recipes.fields_slope import fit_slope, slope_window

RINGS = shells((24, 24, 24), spacing=0.5)


def sums_of(mean):
    return ShellSums.of(RINGS, np.nan_to_num(mean * RINGS.counts), lines=1)


def law(power, amplitude=1.0):
    with np.errstate(divide="ignore"):
        return np.where(RINGS.places > 0, amplitude * RINGS.places**power, 1.0)


@pytest.mark.parametrize("power", [-4.0, -5 / 3, 0.0, 1.5])
def test_an_exact_power_law_is_found(power):
    slope = fit_slope(sums_of(law(power, 3.0)))
    assert slope.power == pytest.approx(power, abs=1e-12)
    assert slope.amplitude == pytest.approx(3.0)
    assert slope.interval == pytest.approx((power, power), abs=1e-6)
    np.testing.assert_allclose(slope.curve([1.0, 2.0]), [3.0, 3.0 * 2.0**power])


def test_slope_and_interval_are_those_of_weighted_polyfit():
    rng = np.random.default_rng(0)
    mean = law(-3.0) * rng.gamma(RINGS.counts / 2, 2 / RINGS.counts)
    slope = fit_slope(sums_of(mean), (0.9, 5.0))
    inside = (RINGS.places > 0.9) & (RINGS.places < 5.0)
    x, y = np.log(RINGS.places[inside]), np.log(mean[inside])
    (p, _), covariance = np.polyfit(x, y, 1, w=np.sqrt(RINGS.counts[inside]), cov=True)
    from scipy.stats import t

    half = t(inside.sum() - 2).ppf(0.975) * np.sqrt(covariance[0, 0])
    assert slope.shells == inside.sum()
    assert slope.power == pytest.approx(p)
    assert slope.interval == pytest.approx((p - half, p + half))


def test_intervals_cover_the_slope_of_gaussian_fields_as_often_as_they_say():
    rng = np.random.default_rng(1)
    found = [
        fit_slope(sums_of(law(-11 / 3) * rng.gamma(RINGS.counts / 2, 2 / RINGS.counts)))
        for _ in range(400)
    ]
    covered = np.mean([slope.interval[0] < -11 / 3 < slope.interval[1] for slope in found])
    assert 0.91 < covered < 0.98  # 0.95 within 3.5 errors of 400 draws


def test_the_window_ends_at_two_thirds_of_the_coarsest_axis():
    sums = ShellSums.of(shells((16, 16, 1), (1.0, 0.5, 9.0)), np.ones(12), lines=1)
    assert slope_window(sums)[1] == pytest.approx(2 / 3 * np.pi)


@pytest.mark.parametrize(
    ("mean", "window", "message"),
    [
        (law(-2.0), (3.0, 2.0), "is empty. Give two wave numbers"),
        (law(-2.0), (0.6, 1.0), "1 shells lie in the window from 0.6 to 1;"),
        (np.where(RINGS.places > 2, 0.0, law(-2.0)), None, "is 0 or not finite"),
    ],
)
def test_what_has_no_slope_is_told(mean, window, message):
    with pytest.raises(DataError, match=message):
        fit_slope(sums_of(mean), window)
