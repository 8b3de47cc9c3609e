"""Occupancy and seconds against the number of slots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stowplan.planners.batches import Plan
from stowplan.planners.choose import slot_curve
from stowplan.planners.classes import distinct_rows
from stowplan.planners.cost import Costs

__all__ = ["Curve", "find_knee", "occupancy_curve"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """What each number of slots would give, with one batch in each.

    Attributes
    ----------
    slots : tuple of tuples of dict
        Capacities at each point.
    padded_work, occupancy : (points,)
        Rows x work of their capacity; useful / padded work.
    work_seconds, launch_seconds, compile_seconds : (points,)
        Parts of the predicted time, by the plan's costs.
    knee : int
        Point from which on another slot brings little.
    """

    slots: tuple[tuple[dict[str, int], ...], ...]
    padded_work: Array
    occupancy: Array
    work_seconds: Array
    launch_seconds: Array
    compile_seconds: Array
    knee: int

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of slots at each point."""
        return np.array([len(slots) for slots in self.slots], np.int64)

    @property
    def seconds(self) -> Array:
        """Predicted time at each point."""
        return self.work_seconds + self.launch_seconds + self.compile_seconds

    @property
    def cheapest(self) -> int:
        """The point with the fewest seconds."""
        return int(self.seconds.argmin())


def find_knee(counts: Array, occupancy: Array) -> int:
    """Give the point farthest above the line from the first to the last.

    Source: V. Satopaa et al., Finding a "Kneedle" in a Haystack, ICDCSW 2011, p. 166.

    >>> find_knee(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.1, 0.7, 0.75, 0.8]))
    1
    """
    if len(counts) < 2 or occupancy[-1] <= occupancy[0]:
        return 0
    along = (counts - counts[0]) / (counts[-1] - counts[0])
    risen = (occupancy - occupancy[0]) / (occupancy[-1] - occupancy[0])
    above = risen - along
    return int(above.argmax()) if above.max() > 0 else len(counts) - 1


def occupancy_curve(plan: Plan, max_count: int = 8) -> Curve | None:
    """Give what 1, 2, ..., `max_count` slots would, for the items and costs of a plan.

    It begins at the fewest slots that the exact dims need. None where there are no items, or none
    of different size.

    >>> from stowplan.planners import assign_slots
    >>> curve = occupancy_curve(assign_slots({"atoms": [1, 1, 4]}, [{"atoms": 4}]))
    >>> curve.counts.tolist(), curve.occupancy.tolist()
    ([1, 2], [0.5, 1.0])
    """
    if not plan.dims or not len(plan.lengths):
        return None
    costs = plan.costs or Costs()
    axes = [plan.dims.index(name) for name in plan.exact]
    fewest = len(distinct_rows(np.maximum(plan.lengths, 1)[:, axes])[0]) if axes else 1
    points = slot_curve(
        plan.sizes, max(max_count, fewest), work=plan.work, derived=plan.derived,
        exact=plan.exact, costs=costs,
    )  # fmt: skip
    points = list({len(point.slots): point for point in points}.values())
    counts = np.array([len(point.slots) for point in points], np.float64)
    padded = np.array([point.padded_work for point in points])
    occupancy = np.array([point.occupancy for point in points])
    return Curve(
        tuple(point.slots for point in points), padded, occupancy, padded * costs.work_seconds,
        counts * costs.launch_seconds, counts * costs.compile_seconds,
        find_knee(counts, occupancy),
    )  # fmt: skip
