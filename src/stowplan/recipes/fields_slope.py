"""The slope of a power spectrum, by least squares of log power on log |k|."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from stowplan.errors import DataError
from stowplan.recipes.fields_rings import ShellSums

__all__ = ["Slope", "fit_slope", "slope_window"]

_FEWEST = 4  # shells: twice the unknowns
_DEALIASED = 2 / 3  # of the largest wave number: the rule of S. A. Orszag


@dataclass(frozen=True, slots=True, eq=False)
class Slope:
    """A fitted power law a k^p of the mean power of modes.

    Attributes
    ----------
    power : float
        p.
    interval : (float, float)
        95 % interval of p, from what the fit leaves and Student's t.
    amplitude : float
        a: the power at k = 1.
    window : (float, float)
        Wave numbers that were fitted.
    shells : int
        How many.
    scatter : float
        Root mean square of what the fit leaves of log power, shells weighing as in the fit.
    """

    power: float
    interval: tuple[float, float]
    amplitude: float
    window: tuple[float, float]
    shells: int
    scatter: float

    def curve(self, k: Any) -> NDArray[np.float64]:
        """Give the fit at wave numbers k, an array of any shape."""
        found: NDArray[np.float64] = self.amplitude * np.asarray(k, np.float64) ** self.power
        return found


def slope_window(sums: ShellSums) -> tuple[float, float]:
    """Give the window above k = 0 and below two thirds of the largest k of the coarsest axis.

    >>> from stowplan.recipes.fields_rings import shells
    >>> low, high = slope_window(ShellSums.of(shells((8, 8, 8), spacing=1.0), np.zeros(8), lines=1))
    >>> round(low / np.pi, 6), round(high / np.pi, 6)
    (0.125, 0.666667)
    """
    rings = sums.rings
    steps = [step for n, step in zip(rings.shape, rings.spacing, strict=True) if n > 1]
    if not steps:
        raise DataError("slope_window: the grid has one cell, and so no spectrum.")
    return rings.width / 2, _DEALIASED * float(np.pi) / max(steps)


def fit_slope(sums: ShellSums, window: tuple[float, float] | None = None) -> Slope:
    """Fit a k^p to the mean power of shells whose |k| lies in a window.

    A shell weighs as its modes: log of a mean over n independent modes of a Gaussian field scatters
    as n^(-1/2).

    Parameters
    ----------
    sums
        Of one field, or the total of several.
    window : (float, float), optional
        Wave numbers, in radians per unit of length; `slope_window` where it is not given.

    Raises
    ------
    DataError
        For an empty window, fewer than 4 shells in it, and power that is not positive.

    Examples
    --------
    >>> from stowplan.recipes.fields_rings import shells
    >>> rings = shells((32, 32, 32), spacing=1.0)
    >>> power = np.zeros(len(rings.counts))
    >>> power[1:] = rings.counts[1:] * rings.places[1:] ** -3
    >>> round(fit_slope(ShellSums.of(rings, power, lines=1)).power, 9)
    -3.0
    """
    low, high = slope_window(sums) if window is None else map(float, window)
    if not 0 <= low < high:
        raise DataError(
            f"fit_slope: the window {(low, high)} is empty. Give two wave numbers, the smaller "
            "first."
        )
    k = sums.wave_numbers
    inside = np.isfinite(k) & (k > low) & (k < high)
    if inside.sum() < _FEWEST:
        raise DataError(
            f"fit_slope: {inside.sum()} shells lie in the window from {low:.4g} to {high:.4g}; a "
            f"slope with an interval takes {_FEWEST} or more. Widen the window, or take a grid of "
            "more points."
        )
    power = sums.mean[inside].real
    if not (np.isfinite(power) & (power > 0)).all():
        raise DataError(
            "fit_slope: the power of a shell in the window is 0 or not finite, and has no "
            "logarithm. Take another window."
        )
    x, y = np.log(k[inside]), np.log(power)
    weights = sums.counts[inside] / sums.counts[inside].sum()
    middle, height = weights @ x, weights @ y
    spread = weights @ (x - middle) ** 2
    p = float(weights @ ((x - middle) * (y - height)) / spread)
    left = float(weights @ (y - height - p * (x - middle)) ** 2)
    freedom = len(x) - 2
    half = float(stdtrit(freedom, 0.975) * np.sqrt(left / (freedom * spread)))
    amplitude = float(np.exp(height - p * middle))
    return Slope(p, (p - half, p + half), amplitude, (low, high), len(x), float(np.sqrt(left)))
