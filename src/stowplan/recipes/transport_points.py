"""Optimal transport between pairs of weighted point lists of any size, in any dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.kernels import transport as kernels
from stowplan.planners.batches import Plan
from stowplan.ragged import Ragged
from stowplan.recipes.known import on_host, widest_float
from stowplan.recipes.results import ItemResults
from stowplan.recipes.transport_options import POTENTIALS, RELATIVE, Options
from stowplan.runs.execution import run
from stowplan.runs.iteration import iterate
from stowplan.runs.planning import Slots, plan
from stowplan.runs.rounds import Rounds

__all__ = ["PointResults", "solve_points"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PointResults(ItemResults):
    """Numbers of each pair of point lists, and what becomes of each point.

    `cost` to `error` as in `TransportResults`.
    """

    cost: Array
    primal: Array
    gap: Array
    mass: Array
    created_mass: Array
    destroyed_mass: Array
    converged: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    iterations: NDArray[np.int64]
    error: Array
    epsilon: Array
    destroyed: Ragged  # (n,) of each source
    created: Ragged  # (m,) of each target
    displacement: Ragged  # (n, d) mean step of each source point
    plans: Mapping[str, Plan]

    def columns(self) -> Mapping[str, Any]:
        """Give the columns by name, in the order of a table."""
        names = (
            "cost primal gap mass created_mass destroyed_mass converged failed iterations error "
            "epsilon destroyed created displacement"
        )
        return {name: getattr(self, name) for name in names.split()}


def solve_points(
    source: Sequence[Any],
    target: Sequence[Any],
    *,
    source_weights: Sequence[Any] | None = None,
    target_weights: Sequence[Any] | None = None,
    epsilon: float | None = None,
    relative_epsilon: float = RELATIVE,
    relaxation: float | None = None,
    tau: float = 0.99,
    reference: Literal["product", "counting"] = "product",
    mass: Literal["shared", "own"] = "shared",
    threshold: float = 1e-4,
    max_iterations: int = 5000,
    on: str | None = None,
    slots: Slots = None,
    rows: int | Sequence[int] | None = None,
    budget: float | str | None = None,
    progress: bool = False,
) -> PointResults:
    """Solve unbalanced entropic optimal transport between pairs of point lists.

    For supports that lie on no grid; the matrix of costs of a pair is held.

    Parameters
    ----------
    source, target
        Lists of arrays (n, d) and (m, d), of equal number.
    source_weights, target_weights
        Masses of the points, lists of arrays (n,) and (m,), above 0; 1 by default.
    slots
        As in ``sp.plan``; the dims are n and m.
    epsilon, relative_epsilon, relaxation, tau, reference, mass, threshold, max_iterations, on, \
rows, budget, progress
        As in `solve`; C is the squared distance of the points as they are.

    Returns
    -------
    PointResults

    Raises
    ------
    DataError
        For points and weights that have no answer: which pair, which side, and the cure.

    Examples
    --------
    >>> corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> found = solve_points([corners], [corners + 0.25], epsilon=0.001, tau=1.0)
    >>> found.displacement[0].round(3).tolist(), found.cost.round(3).tolist()
    ([[0.25, 0.25], [0.25, 0.25], [0.25, 0.25]], [0.125])
    """
    options = Options(
        epsilon, relative_epsilon, relaxation, tau, reference, mass, threshold, max_iterations
    )
    sides = [_points(source, "source"), _points(target, "target")]
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"transport: {len(sides[0])} sources, but {len(sides[1])} targets; give one target "
            "for each source."
        )
    weights = [
        _weights(given, points, side)
        for given, points, side in zip(
            (source_weights, target_weights), sides, ("source", "target"), strict=True
        )
    ]
    count = len(sides[0])
    masses, epsilons = np.empty((count, 2)), np.empty(count)
    for pair, (x, y, a, b) in enumerate(zip(*sides, *weights, strict=True)):
        first = sides[0][0].shape[1]
        if not x.shape[1] == y.shape[1] == first:
            raise DataError(
                f"transport: pair {pair}: the source's points have {x.shape[1]} coordinates, the "
                f"target's {y.shape[1]}; those of the first pair have {first}. Solve pairs of one "
                "space at a time."
            )
        masses[pair], _ = options.in_units(pair, a, b)
        epsilons[pair] = options.blur(_mean_square(x, y, a, b), 1.0)
    dtype = widest_float(on)
    data = {
        "source": Ragged.from_list(weights[0], dtype=dtype),
        "target": Ragged.from_list(weights[1], dtype=dtype),
        "source_points": _ragged(sides[0], dtype),
        "target_points": _ragged(sides[1], dtype),
        "sharpness": (1 / epsilons).astype(dtype),
    }
    shared = options.shared()
    rounds = Rounds(kernels.start_points, kernels.finished_points, kernels.EVERY, POTENTIALS)
    first = plan(
        kernels.step_points, data, on=on, slots=slots, rows=rows, budget=budget, rounds=rounds,
        order="cheapest", **shared,
    )  # fmt: skip
    found = iterate(
        kernels.step_points, data, first, init=rounds.init, until=rounds.until, every=rounds.every,
        limit=max_iterations, keep=rounds.keep, on=on, progress=progress, **shared,
    )  # fmt: skip
    columns = {
        "source": data["source"], "target": data["target"], **found.values,
        **{name: data[name] for name in ("source_points", "target_points", "sharpness")},
    }  # fmt: skip
    steered = options.fixed()
    last = plan(
        kernels.maps_points, columns, on=on, slots=list(first.slots), budget=budget,
        order="cheapest", **steered,
    )  # fmt: skip
    maps = run(kernels.maps_points, columns, last, on=on, **steered)

    def numbers(values: Any, factor: Any = 1.0) -> Array:
        return np.where(found.failed, np.nan, np.asarray(values, np.float64) * factor)

    moved = numbers(maps.mass)
    return PointResults(
        numbers(maps.cost), numbers(maps.primal, epsilons), numbers(maps.gap, epsilons), moved,
        masses[:, 1] - moved, masses[:, 0] - moved, found.converged, found.failed,
        found.iterations, numbers(maps.error), epsilons, maps.destroyed, maps.created,
        maps.velocity, {"rounds": first, "maps": last},
    )  # fmt: skip


def _points(given: Any, side: str) -> list[Array]:
    if isinstance(given, str | bytes) or not hasattr(given, "__len__"):
        raise DataError(
            f"transport: the {side} is of type {type(given).__name__}; give a list of arrays "
            "(points, coordinates)."
        )
    found = []
    for pair in range(len(given)):
        points = on_host(given[pair])
        if points.ndim != 2 or 0 in points.shape or points.dtype.kind not in "iuf":
            raise DataError(
                f"transport: the {side} of pair {pair} has shape {points.shape} and dtype "
                f"{points.dtype}; points are numbers (points, coordinates), at least one."
            )
        if not np.isfinite(points).all():
            raise DataError(
                f"transport: the {side} of pair {pair} has a coordinate that is not finite."
            )
        found.append(points.astype(np.float64))
    return found


def _weights(given: Any, points: Sequence[Array], side: str) -> list[Array]:
    if given is None:
        return [np.ones(len(each)) for each in points]
    if not hasattr(given, "__len__") or len(given) != len(points):
        raise DataError(f"transport: {side}_weights must be a list of {len(points)} arrays.")
    found = []
    for pair, each in enumerate(points):
        weights = on_host(given[pair])
        if weights.shape != (len(each),) or weights.dtype.kind not in "iuf":
            raise DataError(
                f"transport: {side}_weights of pair {pair} have shape {weights.shape} and dtype "
                f"{weights.dtype}; give a number for each of its {len(each)} points."
            )
        if not (np.isfinite(weights) & (weights > 0)).all():
            raise DataError(
                f"transport: {side}_weights of pair {pair} must be finite and above 0. Leave out "
                "points without mass."
            )
        found.append(weights.astype(np.float64))
    return found


def _mean_square(x: Array, y: Array, a: Array, b: Array) -> float:
    """Give the mean squared distance of two weighted lists, about the middle of the first."""
    middle = a @ x / a.sum()
    squares = [((points - middle) ** 2).sum(axis=1) for points in (x, y)]
    return float(a @ squares[0] / a.sum() + b @ squares[1] / b.sum())


def _ragged(points: Sequence[Array], dtype: Any) -> Ragged:
    width = points[0].shape[1] if points else 1
    return Ragged.from_list([each.astype(dtype) for each in points], tail=(width,), dtype=dtype)
