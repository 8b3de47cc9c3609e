"""The power law of a periodic field's tail, by least squares of c r^p + b + d r^2.

A periodic potential is not its free-space one: the neutralising background bends it (d r^2) and
its mean is 0 (b). Without these two terms a fit of log a by log r fails (R^2 of 0.2 to 0.4 for
Poisson's equation), so there is none here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import stdtrit

from stowplan.errors import DataError
from stowplan.recipes.fields_rings import RadialSums

__all__ = ["Tail", "fit_tail", "tail_window"]

Array = NDArray[np.float64]
_UNKNOWNS = 4
_LOWEST, _HIGHEST = -8.0, -0.02  # at 0 the power is b, at 2 it is d r^2
_STEPS = 200
_FEWEST = 8  # points: twice the unknowns


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """A fitted tail c r^p + b + d r^2.

    Attributes
    ----------
    power : float
        p.
    interval : (float, float)
        95 % interval of p, from the curvature of the squares at their minimum and Student's t.
    amplitude : float
        c: what the power law is at r = 1 unit of length.
    background, bend : float
        b and d.
    window : (float, float)
        Distances that were fitted, in units of length.
    radii, values : (points,) float64
        What was fitted.
    """

    power: float
    interval: tuple[float, float]
    amplitude: float
    background: float
    bend: float
    window: tuple[float, float]
    radii: Array
    values: Array

    def curve(self, r: Any) -> Array:
        """Give the fit at distances r, an array of any shape."""
        r = np.asarray(r, np.float64)
        found: Array = self.amplitude * r**self.power + self.background + self.bend * r**2
        return found

    @property
    def rms(self) -> float:
        """Root mean square of what the fit leaves."""
        return float(np.sqrt(np.mean((self.curve(self.radii) - self.values) ** 2)))


def tail_window(sums: RadialSums) -> tuple[float, float]:
    """Give the window of distances beyond 8 and below 0.45 N cells, of the shortest axis.

    >>> from stowplan.recipes.fields_rings import bins
    >>> rings = bins((96, 96, 96), spacing=0.5)
    >>> low, high = tail_window(RadialSums.of(rings, np.zeros(84), lines=1))
    >>> round(low, 6), round(high, 6)
    (4.0, 21.6)
    """
    axes = zip(sums.rings.shape, sums.rings.spacing, strict=True)
    long = [(n * step, step) for n, step in axes if n > 1]
    if not long:
        raise DataError("tail_window: the grid has one cell, and so no tail.")
    return 8 * max(step for _, step in long), 0.45 * min(length for length, _ in long)


def fit_tail(
    radii: Sequence[float] | NDArray[Any],
    values: Sequence[float] | NDArray[Any],
    window: tuple[float, float],
) -> Tail:
    r"""Fit c r^p + b + d r^2 to means over distances, p being negative.

    For each p the other three follow from linear least squares (variable projection); p is found by
    a scan and a bounded search.
    Source: G. H. Golub and V. Pereyra, SIAM J. Numer. Anal. 10, 413 (1973).

    Parameters
    ----------
    radii, values : (points,) real
        Points that are not finite (empty bins) are left out.
    window : (float, float)
        Points with low < r < high are fitted.

    Raises
    ------
    DataError
        If the values are complex, the window is none, fewer than 8 points lie in it, the power runs
        to an end of (-8, -0.02), or the tail has no sign: the interval of c covers 0.

    Examples
    --------
    >>> r = np.arange(8.0, 40.0)
    >>> tail = fit_tail(r, 3 * r**-1.2 - 0.1 + 1e-5 * r**2, window=(8, 40))
    >>> round(tail.power, 6), round(tail.amplitude, 6)
    (-1.2, 3.0)
    """
    r, y = _points(radii, values, window)
    unit = float(np.sqrt(r[0] * r[-1]))  # columns are near 1
    x = r / unit
    powers = np.linspace(_LOWEST, _HIGHEST, _STEPS)
    left = np.array([_squares_left(p, x, y) for p in powers])
    best = int(np.argmin(left))
    low, high = powers[max(best - 1, 0)], powers[min(best + 1, _STEPS - 1)]
    search = minimize_scalar(
        lambda p: np.log(_squares_left(p, x, y) + _floor(y)),
        bounds=(low, high), method="bounded", options={"xatol": 1e-12},
    )  # fmt: skip
    power = float(search.x)
    if not _LOWEST + 1e-3 < power < _HIGHEST - 1e-3:
        raise DataError(
            f"fit_tail: the power runs to {power:.3g}, an end of ({_LOWEST}, {_HIGHEST}), in the "
            f"window {window} of {len(r)} points. Such values have no power-law tail there; take "
            "another window, or more grid points."
        )
    (c, b, d), errors = _with_errors(power, x, y)
    if not abs(c) > errors[1]:
        raise DataError(
            f"fit_tail: the tail has no sign: its amplitude is {c:.3g} +- {errors[1]:.2g} (95 %) "
            f"at r = {unit:.3g}. The window {window} shows background only; take another one."
        )
    return Tail(
        power, (power - float(errors[0]), power + float(errors[0])),
        float(c * unit**-power), float(b), float(d / unit**2), window, r, y,
    )  # fmt: skip


def _points(radii: Any, values: Any, window: tuple[float, float]) -> tuple[Array, Array]:
    r, y = np.asarray(radii), np.asarray(values)
    if y.dtype.kind == "c":
        raise DataError(
            "fit_tail: the values are complex. Fit their real and imaginary parts one at a time: "
            "fit_tail(radii, values.real, window)."
        )
    if r.shape != y.shape or r.ndim != 1:
        raise DataError(
            f"fit_tail: radii {r.shape} and values {y.shape}. Give one value for each distance."
        )
    low, high = (float(end) for end in window)
    if not 0 <= low < high:
        raise DataError(
            f"fit_tail: the window {window} is empty. Give two distances, the smaller first. By "
            "default it reaches from 8 to 0.45 N cells, which are none below N = 18."
        )
    inside = (r > low) & (r < high) & np.isfinite(r) & np.isfinite(y)
    if inside.sum() < _FEWEST:
        raise DataError(
            f"fit_tail: {inside.sum()} points lie in the window {window}; a fit of {_UNKNOWNS} "
            f"numbers with an interval takes {_FEWEST} or more. Widen the window, or take a grid "
            "of more points."
        )
    order = np.argsort(r[inside])
    return r[inside][order].astype(np.float64), y[inside][order].astype(np.float64)


def _columns(p: float, x: Array) -> Array:
    return np.stack([x**p, np.ones_like(x), x**2], axis=1)


def _squares_left(p: float, x: Array, y: Array) -> float:
    columns = _columns(p, x)
    found = np.linalg.lstsq(columns, y, rcond=None)[0]
    left = y - columns @ found
    return float(left @ left)


def _floor(y: Array) -> float:
    """Give what rounding leaves of the squares, so that their logarithm is finite."""
    return float((np.finfo(np.float64).eps ** 2) * (y @ y)) + float(np.finfo(np.float64).tiny)


def _with_errors(p: float, x: Array, y: Array) -> tuple[Array, Array]:
    """Give (c, b, d), and half widths of the 95 % intervals of p, c, b and d."""
    columns = _columns(p, x)
    found = np.asarray(np.linalg.lstsq(columns, y, rcond=None)[0], np.float64)
    slopes = np.concatenate([(found[0] * x**p * np.log(x))[:, None], columns], axis=1)
    freedom = len(x) - _UNKNOWNS
    variance = _squares_left(p, x, y) / freedom
    scale = np.maximum(np.linalg.norm(slopes, axis=0), np.finfo(np.float64).tiny)
    inverse = np.linalg.pinv(slopes / scale)
    errors: Array = np.sqrt(variance * (inverse**2).sum(axis=1)) / scale
    return found, errors * float(stdtrit(freedom, 0.975))
