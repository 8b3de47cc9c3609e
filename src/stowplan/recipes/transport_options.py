"""What all transport problems are told: blur, penalties, units of mass, when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.kernels.transport import EVERY
from stowplan.recipes.known import is_count, refuse_numbers

__all__ = ["POTENTIALS", "RELATIVE", "Options"]

Array = NDArray[np.float64]
POTENTIALS = ("source_potential", "target_potential")
RELATIVE = 0.01
RELAXATION = 1.8
"""Largest over-relaxation to begin with."""
EQUAL = 1e-9  # relative difference of masses that are equal


@dataclass(frozen=True)
class Options:
    """Checked options of `solve` and `solve_points`, where they are described."""

    epsilon: float | None
    relative_epsilon: float
    relaxation: float | None
    tau: float
    reference: str
    mass: str
    threshold: float
    max_iterations: int

    def __post_init__(self) -> None:
        for name in ("epsilon", "relative_epsilon", "threshold"):
            value = getattr(self, name)
            if value is not None:
                cure = "Give one positive number."
                refuse_numbers("transport", name, value, (), cure=cure, low=0)
        if self.epsilon is not None and self.relative_epsilon != RELATIVE:
            raise DataError(
                f"transport: epsilon={self.epsilon} and relative_epsilon={self.relative_epsilon} "
                "exclude one another; leave one out."
            )
        cure = "tau is rho/(rho + eps), in (0, 1]."
        refuse_numbers("transport", "tau", self.tau, (), cure=cure, low=0)
        if self.tau > 1:
            raise DataError(f"transport: tau={self.tau}; it must not be above 1. {cure}")
        if self.relaxation is not None:
            cure = "Over-relaxation is from 1 to below 2."
            refuse_numbers("transport", "relaxation", self.relaxation, (), cure=cure, least=1)
            if self.relaxation >= 2:
                raise DataError(f"transport: relaxation={self.relaxation}. {cure}")
        if not is_count(self.max_iterations) or self.max_iterations < EVERY:
            raise DataError(
                f"transport: max_iterations={self.max_iterations!r}; errors are looked at after "
                f"every {EVERY} steps. Give max_iterations={EVERY} or more."
            )
        if self.reference not in ("product", "counting"):
            raise DataError(
                f'transport: reference={self.reference!r}; give "product" or "counting".'
            )
        if self.mass not in ("shared", "own"):
            raise DataError(f'transport: mass={self.mass!r}; give "shared" or "own".')

    def fixed(self) -> dict[str, Any]:
        """Give what every kernel shares."""
        return {"tau": float(self.tau), "reference": self.reference, "balanced": self.tau == 1}

    def shared(self) -> dict[str, Any]:
        """Give what an iteration shares."""
        return {
            **self.fixed(),
            "threshold": float(self.threshold),
            "relaxation": float(self.relaxation or RELAXATION),
            "adaptive": self.relaxation is None,
        }

    def in_units(self, pair: int, source: Array, target: Array) -> tuple[Array, Array]:
        """Bring the densities of a pair to their units, in place; give masses and units, (2,)."""
        totals = np.array([source.sum(), target.sum()])
        if self.tau == 1 and self.mass == "shared":
            if abs(totals[0] - totals[1]) > EQUAL * totals.max():
                raise DataError(
                    f"transport: tau=1 transports all mass, but that of pair {pair} is "
                    f"{totals[0]:g} at the source and {totals[1]:g} at the target. Give each its "
                    'own unit, mass="own", or tau below 1.'
                )
        units: Array = np.full(2, totals.max()) if self.mass == "shared" else totals
        source /= units[0]
        target /= units[1]
        masses: Array = totals / units
        return masses, units

    def blur(self, mean_cost: float, spacing: float) -> float:
        """Give epsilon, from the mean cost of a pair; two single points have the spacing squared.

        Raises
        ------
        DataError
            Where it is 0 in float64.
        """
        if self.epsilon is not None:
            return float(self.epsilon)
        found = self.relative_epsilon * (mean_cost if mean_cost > 0 else spacing**2)
        if not 0 < found < math.inf:
            raise DataError(f"transport: relative_epsilon={self.relative_epsilon} gives {found}.")
        return found
