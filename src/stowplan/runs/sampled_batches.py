"""The batches of a plan that are timed, and the line through what was measured of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.planners.batches import Batch, Plan

__all__ = ["cheapest_batches", "line_through", "sampled_batches", "work_of"]

SHAPES, COMPILED_SHAPES = 6, 3
"""Most batches of a plan that are timed."""
LEAST_LAUNCH = 1e-6
"""Seconds."""


def sampled_batches(plan: Plan, *, compiles: bool) -> dict[Batch, int]:
    """Give batches of different shapes, and how many of a few evenly spread ones each stands for.

    Spread over all batches of the plan in the order of their work.
    """
    order = np.argsort(work_of(plan, plan.batches), kind="stable")
    count = min(COMPILED_SHAPES if compiles else SHAPES, len(order))
    places = (np.arange(count) + 0.5) * len(order) / count
    chosen = [plan.batches[number] for number in order[places.astype(np.intp)].tolist()]
    first: dict[Any, Batch] = {}
    counts: Counter[Batch] = Counter()
    for batch in chosen:
        counts[first.setdefault((len(batch.items), batch.capacity), batch)] += 1
    return dict(counts)


def cheapest_batches(plan: Plan, most: int) -> list[Batch]:
    """Give batches of one row, of the items with the least work, in the shape of the largest."""
    work = plan.measure.cost(plan.lengths) if plan.dims else np.ones(len(plan.lengths))
    items = np.argsort(work, kind="stable")[:most]
    capacity = tuple(int(length) for length in np.maximum(plan.lengths[items].max(axis=0), 1))
    return [Batch(np.array([item], np.intp), 1, capacity, 0) for item in items]


def work_of(plan: Plan, batches: Sequence[Batch]) -> NDArray[np.float64]:
    """Padded work of batches."""
    capacities = np.array([batch.capacity for batch in batches], np.int64)
    rows = np.array([len(batch.items) for batch in batches], np.float64)
    found: NDArray[np.float64] = rows * plan.measure.cost(
        capacities.reshape(len(batches), len(plan.dims))
    )
    return found


def line_through(
    small: tuple[float, float], mean: tuple[float, float], usual: float
) -> tuple[float, float]:
    """Give slope and height of the line through two points (work, seconds), both above 0.

    Where no slope is to be seen it is the usual one, or what the mean allows.

    >>> line_through((1.0, 3.0), (5.0, 5.0), 1.0)
    (0.5, 2.5)
    >>> line_through((1.0, 3.0), (1.0, 3.0), 0.25)
    (0.25, 2.75)
    """
    steep = (mean[1] - small[1]) / (mean[0] - small[0]) if mean[0] > small[0] else 0.0
    steepest = mean[1] / mean[0]
    slope = float(min(steep if steep > 0 else usual, steepest))
    return slope, float(max(mean[1] - slope * mean[0], LEAST_LAUNCH))
