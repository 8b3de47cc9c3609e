"""The one objective of all planning: seconds of work, of launches and of compiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from stowplan.planners.batches import Plan

__all__ = ["Costs", "predict_seconds"]

ROUNDS, FEWEST_IN_TURN = 5, 32


@dataclass(frozen=True)
class Costs:
    """Constants of one framework on one device.

    Attributes
    ----------
    work_seconds : float
        Seconds for one unit of a kernel's work expression.
    launch_seconds : float
        Seconds that each batch takes however small it is; of an iteration in all its rounds.
    compile_seconds : float
        Seconds for each distinct (rows, capacity); 0 where nothing compiles.
    rounds : float
        Rounds that an item of an iteration takes; 0 for what is not iterated, or not measured.
    """

    work_seconds: float = 1e-9
    launch_seconds: float = 5e-4
    compile_seconds: float = 0.0
    rounds: float = 0.0

    def seconds(self, work: float, batches: float, shapes: float) -> float:
        """Seconds for so much padded work in so many batches and shapes.

        >>> Costs(1e-9, 1e-3, 0.5).seconds(work=1e9, batches=10, shapes=2)
        2.01
        """
        return (
            work * self.work_seconds + batches * self.launch_seconds + shapes * self.compile_seconds
        )


def predict_seconds(plan: Plan, costs: Costs | None = None) -> float:
    """Seconds that a plan should take: rows x work(capacity), launches and compiles.

    `costs` defaults to those of the plan, then to ``Costs()``. In an iteration that was measured
    each shape has a tail, in which nothing waits: it launches as often as one batch more, and
    where shapes are compiled, rows without an item are computed as well.

    >>> from stowplan.planners import assign_slots
    >>> plan = assign_slots({"atoms": [2, 3]}, [{"atoms": 4}])
    >>> predict_seconds(plan, Costs(work_seconds=1.0, launch_seconds=0.5, compile_seconds=0.25))
    8.75
    """
    costs = costs or plan.costs or Costs()
    work, batches, shapes = plan.padded_work(), len(plan.batches), len(plan.shapes)
    if costs.rounds:
        batches += shapes
        if costs.compile_seconds:
            capacities = np.array([capacity for _, capacity in plan.shapes], np.int64)
            each = plan.measure.cost(capacities.reshape(shapes, len(plan.dims)))
            work += float(each @ np.array([rows for rows, _ in plan.shapes], np.float64))
    return costs.seconds(work, batches, shapes)


def row_ladder(largest: int) -> list[int]:
    """Row counts 1, 2, 3, 4, 6, 8, 12, ... up to the first that reaches `largest`.

    >>> row_ladder(10)
    [1, 2, 3, 4, 6, 8, 12]
    """
    steps = [1, 2]
    while steps[-1] < largest:
        steps.append(3 * steps[-1] // 2 if len(steps) % 2 == 0 else 4 * steps[-1] // 3)
    return steps[: int(np.searchsorted(steps, largest)) + 1]


def rows_in_turn(
    count: int, item_seconds: float, launch_seconds: float, rounds: float = ROUNDS
) -> int:
    """Most rows for an iteration over `count` items, in which rows that end make room for others.

    With r rows, items of s seconds in m rounds each, and launches of c seconds, it takes
    (count / r + 1) m launches, where the 1 is the tail in which nothing waits, and count s + r s
    of computing, as rows of the tail are computed without an item. The best r is
    sqrt(count m c / s), with m = 5 rounds where none were measured; but `FEWEST_IN_TURN`, below
    which programs gain little.

    >>> rows_in_turn(240, 1.3e-4, 5e-4), rows_in_turn(64, 6e-3, 5e-4)
    (96, 32)
    """
    if not item_seconds:
        return max(count, 1)
    best = math.sqrt(count * rounds * launch_seconds / item_seconds)
    return row_ladder(max(math.ceil(min(best, count)), FEWEST_IN_TURN))[-1]


def cheapest_rows(count: int, row_work: float, costs: Costs, most: int | None, ladder: bool) -> int:
    """Rows per batch for `count` rows, all batches alike: cheapest by the objective.

    Off the ladder a slot is split no further than twice the fewest batches.
    """
    most = min(most or count, count) if not ladder else most or 2 * count
    candidates: Sequence[int]
    if ladder:
        candidates = [rows for rows in row_ladder(count) if rows <= most]
    else:
        fewest = -(-count // most)
        batches = np.arange(fewest, min(2 * fewest, count) + 1)
        candidates = np.unique(-(-count // batches)).tolist()

    def seconds(rows: int) -> float:
        batches = -(-count // rows)
        return costs.seconds(batches * rows * row_work, batches, 1)

    return min(reversed(candidates), key=seconds)
