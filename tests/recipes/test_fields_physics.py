"""Physics of fields: Coulomb and Yukawa sums, slopes of tails, rings that merge, refusals."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest

from stowplan.errors import DataError
from stowplan.kernels import fields
from stowplan.recipes.fields_checks import (
    check_finite,
    check_mean,
    check_numbers,
    checked_spacing,
)
from stowplan.recipes.fields_rings import RadialSums, ShellSums, bins, shells, wave_numbers
from stowplan.recipes.fields_tail import fit_tail, tail_window


def gaussian(n, sigma, spacing=1.0):
    """A periodic Gaussian charge of 1, at the middle cell: summed over images."""
    x = (np.arange(n) - n // 2) * spacing
    line = sum(np.exp(-((x + m * n * spacing) ** 2) / (2 * sigma**2)) for m in range(-3, 4))
    line /= line.sum() * spacing
    return (line[:, None, None] * line[:, None] * line)[..., None]


def ewald_potential(place, length, sigma):
    """Potential of a Gaussian charge, its images and a neutralising background: 4 pi rho = source.

    The short part by images, erfc; what is left by plane waves, with another width: Ewald's sum, so
    that it shares no transform with what is tested. Solves -laplace a = rho.
    """
    alpha = 4.0 / length
    total = 0.0
    for image in itertools.product(range(-3, 4), repeat=3):
        r = math.dist(place, [length * m for m in image])
        near = math.erf(r / (math.sqrt(2) * sigma)) - math.erf(alpha * r)
        total += (
            near / r if r > 0 else math.sqrt(2 / math.pi) / sigma - 2 * alpha / math.sqrt(math.pi)
        )
    for mode in itertools.product(range(-8, 9), repeat=3):
        k = [2 * math.pi * m / length for m in mode]
        square = sum(part * part for part in k)
        if square:
            phase = sum(part * x for part, x in zip(k, place, strict=True))
            wave = 4 * math.pi / square * math.exp(-square / (4 * alpha**2)) / length**3
            total += wave * math.cos(phase)
    # both narrow charges have a mean potential of their own
    total -= math.pi / (alpha**2 * length**3)
    total += 2 * math.pi * sigma**2 / length**3
    return total / (4 * math.pi)


def test_a_gaussian_charge_has_its_coulomb_potential():
    n, spacing, sigma = 32, 0.5, 1.0
    charge = gaussian(n, sigma, spacing)
    a = fields.riesz(charge - charge.mean(), spacing=spacing)[..., 0]
    for cell in ((16, 16, 16), (17, 16, 16), (20, 18, 13), (0, 0, 0), (3, 16, 29)):
        place = [(c - n // 2) * spacing for c in cell]
        assert a[cell] == pytest.approx(ewald_potential(place, n * spacing, sigma), abs=2e-9)


def yukawa(r, kappa, sigma):
    """Of a Gaussian charge in free space: exp(-kappa r)/(4 pi r) smeared."""
    lift = math.exp((kappa * sigma) ** 2 / 2)
    u, w = kappa * sigma / math.sqrt(2), r / (math.sqrt(2) * sigma)
    both = math.exp(-kappa * r) * math.erfc(u - w) - math.exp(kappa * r) * math.erfc(u + w)
    return lift * both / (8 * math.pi * r)


def test_a_screened_charge_has_yukawas_potential_summed_over_images():
    n, spacing, sigma, kappa, mu = 40, 0.5, 0.9, 0.8, 1.7
    charge = gaussian(n, sigma, spacing)
    a = fields.riesz(charge, spacing=spacing, mu=mu, lam=mu * kappa**2)[..., 0]
    for cell in ((21, 20, 20), (25, 18, 20), (0, 20, 20), (0, 0, 0), (33, 7, 28)):
        place = [(c - n // 2) * spacing for c in cell]
        total = sum(
            yukawa(math.dist(place, [n * spacing * m for m in image]), kappa, sigma)
            for image in itertools.product(range(-2, 3), repeat=3)
        )
        assert a[cell] == pytest.approx(total / mu, rel=1e-7)
    far = a[32, 20, 20] * mu  # where smearing is only a factor
    alone = [
        math.dist((6, 0, 0), [20 * m for m in i]) for i in itertools.product((-1, 0, 1), repeat=3)
    ]
    plain = sum(math.exp(-kappa * r) / (4 * math.pi * r) for r in alone)
    assert far == pytest.approx(plain * math.exp((kappa * sigma) ** 2 / 2), rel=1e-5)


def solved(n, beta):
    source = gaussian(n, 2.0)
    source = source - source.mean()
    a = fields.riesz(source, spacing=1.0, beta=beta)
    off, whole = fields.residual(a, source, spacing=1.0, beta=beta)
    assert math.sqrt(off / whole) <= 1e-12
    rings = bins((n, n, n), 1.0)
    sums = fields.radial(a, spacing=1.0, centre=np.full(3, n // 2), width=rings.width)
    return RadialSums.of(rings, sums, lines=1)


@pytest.mark.parametrize(
    ("n", "beta", "slope", "within"),
    [(96, 1.0, -1.005, 0.02), (96, 0.8, 2 * 0.8 - 3, 0.05), (96, 1.2, 2 * 1.2 - 3, 0.05),
     (64, 1.0, -1.0, 0.02)],
)  # fmt: skip
def test_a_tail_falls_by_its_power(n, beta, slope, within):
    """Source: |r|^(2 beta - 3) is the kernel of the Riesz potential in three dimensions."""
    sums = solved(n, beta)
    tail = fit_tail(sums.radii, sums.mean, tail_window(sums))
    assert tail.power == pytest.approx(slope, abs=within)
    assert tail.interval[0] < tail.power < tail.interval[1]
    assert tail.amplitude > 0


def test_the_amplitude_of_a_coulomb_tail_is_the_charge():
    sums = solved(96, 1.0)
    tail = fit_tail(sums.radii, sums.mean, tail_window(sums))
    at = 12.0
    assert tail.amplitude * at**tail.power == pytest.approx(1 / (4 * math.pi * at), rel=0.02)
    assert tail.bend == pytest.approx(1 / (6 * 96**3), rel=0.05)  # laplace of the background


@pytest.mark.parametrize("power", [-0.3, -0.6, -1.0, -2.4, -5.0])
@pytest.mark.parametrize("amplitude", [3.0, -3.0])
def test_an_exact_tail_is_found_exactly(power, amplitude):
    r = np.linspace(8.0, 45.0, 60)
    tail = fit_tail(r, amplitude * (r / 15) ** power - 0.2 + 1e-4 * r**2, (7.0, 50.0))
    assert tail.power == pytest.approx(power, abs=1e-6)
    assert tail.amplitude * 15**tail.power == pytest.approx(amplitude, rel=1e-5)
    np.testing.assert_allclose(tail.curve(r), tail.values, atol=1e-8)


def test_the_interval_covers_the_power_in_95_of_100_noisy_tails():
    rng, r = np.random.default_rng(3), np.linspace(8.0, 45.0, 40)
    clean = 5 * r**-1.0 - 0.1 + 1e-5 * r**2
    hits = 0
    for _ in range(300):
        low, high = fit_tail(r, clean + rng.normal(0, 1e-4, r.size), (7.0, 50.0)).interval
        hits += low <= -1.0 <= high
    assert 0.92 <= hits / 300 <= 0.98


R = np.arange(1.0, 41.0)
TAIL = R**-1.0


@pytest.mark.parametrize(
    ("r", "y", "window", "message"),
    [
        (R, TAIL, (30.0, 36.0), "5 points lie in the window"),
        (R, TAIL, (20.0, 20.0), r"window \(20.0, 20.0\) is empty"),
        (R, TAIL, (8.0, 7.2), "none below N = 18"),
        (R, TAIL + 0j, (8.0, 40.0), "complex"),
        (R, TAIL[:-1], (8.0, 40.0), "one value for each distance"),
        (R, np.where(R > 0, np.nan, 0), (8.0, 40.0), "0 points"),
        (R, np.sin(37.0 * R**2), (8.0, 40.0), "no sign|no power-law tail"),
        (R, 1e-3 * R**2 + 2, (8.0, 40.0), "no sign|no power-law tail"),
        (R, np.full(40, 0.1), (8.0, 40.0), "no sign|no power-law tail"),
        (R, np.zeros(40), (8.0, 40.0), "no sign|no power-law tail"),
    ],
)  # fmt: skip
def test_what_has_no_tail_is_refused(r, y, window, message):
    with pytest.raises(DataError, match=message):
        fit_tail(r, y, window)


def test_a_plane_of_modes_of_a_size_one_axis_counts_once():
    rings = shells((6, 1, 6), 0.5)
    expected = np.zeros(len(rings.counts), int)
    for n, m in itertools.product((-3, -2, -1, 0, 1, 2), repeat=2):
        expected[round(math.hypot(n, m))] += 1  # no tie: a half squared is no whole number
    assert rings.counts.tolist() == expected.tolist()
    assert rings.width == pytest.approx(2 * math.pi / 3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 1), (4, 6, 1), (9, 8, 7), (2, 2, 2)])
@pytest.mark.parametrize("centre", [None, (0.25, 3.5, -8.0), (-0.5, 0.5, 100.0)])
def test_rings_count_every_cell_and_mode(shape, centre):
    for rings in (shells(shape, (1.0, 0.4, 2.5)), bins(shape, (1.0, 0.4, 2.5), centre)):
        assert rings.counts.sum() == math.prod(shape)
        full = rings.counts > 0
        assert (np.abs(rings.places[full] / rings.width - np.flatnonzero(full)) <= 0.5 + 1e-6).all()


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("half", [False, True])
def test_wave_numbers_are_those_of_numpy(n, half):
    expected = 2 * np.pi * (np.fft.rfftfreq(n, 0.3) if half else np.fft.fftfreq(n, 0.3))
    found = wave_numbers(n, 0.3, half=half)
    np.testing.assert_allclose(np.abs(found) if half else found, expected, rtol=1e-14)


def test_sums_of_other_rings_do_not_merge():
    one = ShellSums.of(shells((4, 4, 4), 1.0), np.ones(4), 2)
    for other in (shells((4, 4, 4), 0.5), shells((4, 4, 5), 1.0), shells((4, 4, 4), 1.0, 3.0)):
        with pytest.raises(DataError, match="do not merge"):
            _ = one + ShellSums.of(other, np.ones(len(other.counts)), 1)
    with pytest.raises(TypeError):
        _ = one + RadialSums.of(bins((4, 4, 4), 1.0), np.ones(4), 1)
    with pytest.raises(DataError, match="one sum for each ring"):
        ShellSums.of(shells((4, 4, 4), 1.0), np.ones(5), 1)


def test_merged_means_are_weighted_by_counts():
    rings = bins((4, 1, 1), 1.0)
    merged = RadialSums.of(rings, [1.0, 4.0, 3.0], 1) + RadialSums.of(rings, [2.0, 0.0, 6.0], 2)
    assert merged.counts.tolist() == [3, 6, 3]
    assert merged.mean.tolist() == [1.0, 4 / 6, 3.0]
    empty = RadialSums.of(bins((7, 7, 7), 1.0), np.zeros(len(bins((7, 7, 7), 1.0).counts)), 1)
    assert np.isnan(empty.mean[empty.counts == 0]).all()


@pytest.mark.parametrize(
    "bad", [0, -0.1, float("nan"), float("inf"), (1, 2), "0.1", (1, -1, 1), 1j]
)
def test_a_spacing_that_is_none_is_refused(bad):
    with pytest.raises(DataError, match="spacing"):
        checked_spacing("solve", bad)


def test_narrow_rings_are_refused():
    with pytest.raises(DataError, match="below the largest spacing"):
        bins((4, 4, 4), (1.0, 1.0, 2.0), width=1.0)
    with pytest.raises(DataError, match="below the largest 2 pi"):
        shells((4, 8, 8), 1.0, width=1.0)
    with pytest.raises(DataError, match="centre"):
        bins((4, 4, 4), 1.0, centre=(1, 2))
    with pytest.raises(DataError, match="shape of a grid"):
        bins((4, 4), 1.0)


@pytest.mark.parametrize(
    "numbers",
    [{"mu": 0.0}, {"mu": -1.0}, {"beta": 0.0}, {"beta": -1.0}, {"lam": -1e-9},
     {"mu": float("nan")}, {"beta": float("inf")}, {"lam": float("nan")}],
)  # fmt: skip
def test_numbers_that_give_no_positive_operator_are_refused(numbers):
    (name,) = numbers
    with pytest.raises(DataError, match=f"solve: {name}="):
        check_numbers("solve", **{"mu": 1.0, "beta": 1.0, "lam": 0.0, **numbers})


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_a_mean_is_told_from_its_rounding(dtype):
    rng = np.random.default_rng(0)
    field = (5 + rng.normal(size=(16, 12, 10, 3, 2))).astype(dtype)
    with pytest.raises(DataError, match=r"rho has the mean .* at \(\d, \d\) of its other axes"):
        check_mean("solve", "rho", field)
    clean = field - field.mean(axis=(0, 1, 2), keepdims=True)
    check_mean("solve", "rho", clean.astype(dtype))
    bad = clean.copy()
    bad[..., 2, 1] += 1e-3
    with pytest.raises(DataError, match=r"at \(2, 1\)"):
        check_mean("solve", "rho", bad)
    check_mean("solve", "rho", np.zeros((4, 4, 4), dtype))
    check_mean("solve", "rho", np.zeros((4, 4, 4, 0), dtype))


@pytest.mark.parametrize("dtype", ["float32", "complex128", "int64"])
def test_what_is_not_finite_is_named(dtype):
    field = np.ones((3, 4, 2), dtype)
    check_finite("solve", "rho.npy", field)
    check_finite("solve", "rho.npy", field[:0])
    if dtype == "int64":
        return
    check_finite("solve", "rho.npy", field * np.finfo(dtype).max)  # sums overflow, values do not
    for bad in (np.nan, np.inf, -np.inf):
        broken = field.copy()
        broken[1, 3, 0] = broken[2, 0, 1] = bad
        with pytest.raises(DataError, match=r"rho.npy is .* at \(1, 3, 0\); 2 of 24 values are"):
            check_finite("solve", "rho.npy", broken)


def test_long_arithmetic_agrees_with_the_erfc_form_of_yukawa():
    """The reference of this file against its integral over the charge."""
    kappa, sigma, r = 0.8, 0.9, 2.3

    def shell(s):
        near = mpmath.exp(-kappa * abs(r - s)) - mpmath.exp(-kappa * (r + s))
        density = mpmath.exp(-(s**2) / (2 * sigma**2)) / (2 * mpmath.pi * sigma**2) ** 1.5
        return density * s * near / (2 * kappa * r)

    expected = mpmath.quad(shell, [0, r, 12])
    assert yukawa(r, kappa, sigma) == pytest.approx(float(expected), rel=1e-10)
