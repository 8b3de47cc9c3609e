"""What optimal transport between masks gives: numbers by pair, maps in canvas pixels, couplings."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.adapters import get_adapter
from stowplan.errors import DataError
from stowplan.planners.batches import Plan
from stowplan.ragged import Ragged
from stowplan.recipes.results import ItemResults
from stowplan.recipes.transport_frames import (
    box_shapes,
    crop_bytes,
    lift_density,
    lift_vectors,
)

__all__ = ["Coupling", "TransportResults"]

Array = NDArray[np.float64]
NOTHING = 1e-9  # mass below which nothing is transported


@dataclass(frozen=True, eq=False)
class TransportResults(ItemResults):
    """Numbers of each pair; maps are made when they are asked for.

    Masses are in units of the larger mass of the pair (of each mask's own with ``mass="own"``);
    costs in those of C times mass.

    Attributes
    ----------
    cost, primal, gap : (pairs,)
        Linear cost <P, C>; the objective; the objective minus its dual. `primal` is an array of the
        framework of the densities where they have a gradient.
    mass, created_mass, destroyed_mass : (pairs,)
        Transported mass; target mass minus it; source mass minus it. They are negative where more
        leaves, or arrives, than there is: the maps show the positive part alone.
    source_mass, target_mass : (pairs,)
    converged, failed : (pairs,) bool
        Neither where the limit of iterations was reached.
    iterations : (pairs,) int
    error : (pairs,)
        Summed L1 error of both marginals.
    epsilon : (pairs,)
    units : (pairs, 2)
        Unit of mass of source and target, in the sum of their densities.
    boxes : (pairs, 4) int
        Crop of each pair, (y0, y1, x0, x1); its maps cover this box.
    plans : dict of Plan
        "rounds", of the iteration, and "maps".
    """

    cost: Array
    primal: Any
    gap: Array
    mass: Array
    created_mass: Array
    destroyed_mass: Array
    source_mass: Array
    target_mass: Array
    converged: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    iterations: NDArray[np.int64]
    error: Array
    epsilon: Array
    units: Array
    boxes: NDArray[np.int64]
    plans: Mapping[str, Plan]
    pool: int
    pixel_size: float
    spacing: Array  # of the work grid, in coordinates
    work: Mapping[str, Ragged]  # on work grids: densities, potentials, maps
    tau: float
    reference: str

    def __len__(self) -> int:
        return len(self.boxes)

    def columns(self) -> Mapping[str, Any]:
        """Give the numbers by name, in the order of a table."""
        names = (
            "cost primal gap mass created_mass destroyed_mass source_mass target_mass converged "
            "failed iterations error epsilon boxes mean_velocity"
        )
        return {name: getattr(self, name) for name in names.split()}

    @property
    def plan(self) -> Plan:
        """The plan of the iteration; its slots keep another set from compiling."""
        return self.plans["rounds"]

    @property
    def peak_bytes(self) -> int | None:
        """Predicted bytes at the peak of `solve`, maps on work grids included; None if unknown.

        With what the host's allocator keeps beside arrays. Probes and compiles of its plans, which
        are made once, are no part of it.
        """
        side = int(self.work["source"].values.nbytes)  # of densities, and of potentials
        held = {"rounds": 2 * side, "maps": 4 * side}
        peaks = [
            None if plan.memory is None else plan.memory.peak_bytes for plan in self.plans.values()
        ]
        known = [peak + held[name] for name, peak in zip(self.plans, peaks, strict=True) if peak]
        if len(known) < len(held):
            return None
        peak = max(known) + crop_bytes(self.boxes)
        adapter = get_adapter(self.plans["rounds"].on or "numpy")
        if adapter.compiles:  # whose forecasts are above what they take
            return peak
        return math.ceil(peak / (1 - adapter.spare_share)) + adapter.spare_bytes

    @property
    def velocity(self) -> Ragged:
        """(y, x, 2) over the box of each pair: where mass goes, (dy, dx), 0 off the source.

        In pixels of the canvas, or in the unit of ``pixel_size``.
        """
        return self._lifted("velocity")

    @property
    def created(self) -> Ragged:
        """(y, x) over the box of each pair: target density that nothing is transported to."""
        return self._lifted("created")

    @property
    def destroyed(self) -> Ragged:
        """(y, x) over the box of each pair: source density that is not transported."""
        return self._lifted("destroyed")

    @cached_property
    def mean_velocity(self) -> Array:
        """(pairs, 2): mean (dy, dx) of the source's mass."""
        found = np.empty((len(self), 2))
        for pair in range(len(self)):
            share = self.work["source"][pair] - self.work["destroyed"][pair]
            step = np.einsum("yx,yxd->d", np.asarray(share, float), self.work["velocity"][pair])
            found[pair] = step / max(float(share.sum()), 1e-300) * self.pool * self.pixel_size
        return np.where(self.failed[:, None], np.nan, found)

    @cached_property
    def messages(self) -> tuple[str, ...]:
        """What is to be said of each pair; empty where all is well."""
        return tuple(self._message(pair) for pair in range(len(self)))

    def maps(self, pair: int) -> dict[str, Array]:
        """Give velocity, created and destroyed of one pair alone."""
        place = self._place(pair)
        return {name: self._lift(name, place) for name in ("velocity", "created", "destroyed")}

    def coupling(self, pair: int) -> Coupling:
        """Give the plan P between the pixels of one pair's work grids, held as its potentials."""
        place = self._place(pair)
        parts = {name: np.asarray(self.work[name][place], np.float64) for name in _COUPLED}
        y0, _, x0, _ = self.boxes[place].tolist()
        centre = (self.pool - 1) / 2
        sides = []
        for side in ("source", "target"):
            where = np.argwhere(parts[side] > 0)
            inside = tuple(where.T)
            points = where * self.pool + np.array([y0, x0]) + centre
            sides.append((points, parts[side][inside], parts[f"{side}_potential"][inside]))
        sharpness = float(self.spacing[place] ** 2 / self.epsilon[place] / self.pool**2)
        return Coupling(*sides[0], *sides[1], sharpness)

    def __repr__(self) -> str:
        done = int(self.converged.sum())
        return f"<TransportResults: {len(self)} pairs, {done} converged, {self.plan!r}>"

    def _place(self, pair: int) -> int:
        place = operator.index(pair)
        if not -len(self) <= place < len(self):
            raise IndexError(f"pair {place} of {len(self)}")
        return place % len(self)

    def _message(self, pair: int) -> str:
        if self.failed[pair]:
            return (
                f"failed after {int(self.iterations[pair])} iterations: its potentials are no "
                "finite numbers. Raise epsilon, lower relaxation, or use float64."
            )
        if self.mass[pair] < NOTHING:
            return (
                "nothing is transported: destroying and creating the mass costs less than moving "
                f"it. Raise tau ({self.tau:g}) or epsilon ({self.epsilon[pair]:.3g})."
            )
        if not self.converged[pair]:
            return (
                f"not converged after {int(self.iterations[pair])} iterations: error "
                f"{self.error[pair]:.2e}. Raise max_iterations or epsilon."
            )
        return ""

    def _lifted(self, name: str) -> Ragged:
        shapes, tail = box_shapes(self.boxes), self.work[name].values.shape[1:]
        values = np.empty((int(shapes.prod(axis=1).sum()), *tail))
        start = 0
        for pair, count in enumerate(shapes.prod(axis=1).tolist()):
            values[start : start + count] = self._lift(name, pair).reshape(count, *tail)
            start += count
        return Ragged(values, shapes)

    def _lift(self, name: str, pair: int) -> Array:
        values = np.asarray(self.work[name][pair], np.float64)
        box = self.boxes[pair].tolist()
        if self.failed[pair]:
            values = np.full_like(values, np.nan)
        if name == "velocity":
            return lift_vectors(self.pixel_size * values, box, self.pool)
        return lift_density(values, box, self.pool)


_COUPLED = ("source", "target", "source_potential", "target_potential")


@dataclass(frozen=True, eq=False)
class Coupling:
    """How much of each source pixel goes to each target pixel, not held as a matrix.

    Attributes
    ----------
    source_points, target_points : (n, 2), (m, 2)
        Centres of the blocks on the support, (y, x) in pixels of the canvas.
    source_density, target_density : (n,), (m,)
    source_potential, target_potential : (n,), (m,)
        F and G of ``P = a_i b_j exp(F_i + G_j - sharpness |x_i - y_j|^2)``.
    sharpness : float
        1/epsilon in pixels^-2.
    """

    source_points: Array
    source_density: Array
    source_potential: Array
    target_points: Array
    target_density: Array
    target_potential: Array
    sharpness: float

    def rows(self, first: int = 0, last: int | None = None) -> Array:
        """Give rows of the matrix P, (last - first, m)."""
        chosen = slice(first, last)
        points = self.source_points[chosen]
        apart = ((points[:, None, :] - self.target_points[None, :, :]) ** 2).sum(axis=2)
        logs = self.source_potential[chosen, None] + self.target_potential - self.sharpness * apart
        found: Array = self.source_density[chosen, None] * self.target_density * np.exp(logs)
        return found

    def dense(self, *, most_bytes: float = 2**30) -> Array:
        """Give the matrix P, (n, m).

        Raises
        ------
        DataError
            Where it takes more than ``most_bytes``.
        """
        size = 8 * len(self.source_points) * len(self.target_points)
        if size > most_bytes:
            raise DataError(
                f"coupling: the matrix takes {size} bytes, more than most_bytes={most_bytes:g}. "
                "Use apply, rows(first, last), or a larger pool."
            )
        return self.rows()

    def apply(self, values: Any, *, block: int = 256) -> Array:
        """Give P @ values: for numbers (m,) or (m, k) at the target, sums at the source."""
        given = np.asarray(values, np.float64)
        if given.ndim not in (1, 2) or len(given) != len(self.target_points):
            raise DataError(
                f"coupling: values have shape {given.shape}; give one or more numbers for each of "
                f"the {len(self.target_points)} target pixels."
            )
        starts: Sequence[int] = range(0, len(self.source_points), block)
        return np.concatenate([self.rows(start, start + block) @ given for start in starts])
