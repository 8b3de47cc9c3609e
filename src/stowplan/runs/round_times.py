"""How long the rounds of an iteration take, and how many an item needs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.planners.batches import Plan
from stowplan.runs.columns import Columns
from stowplan.runs.jobs import Job
from stowplan.runs.parts import part_of
from stowplan.runs.places import Place
from stowplan.runs.rounds import RoundKernel
from stowplan.runs.sampled_batches import line_through
from stowplan.runs.shared import map_leaves
from stowplan.runs.working_rows import working_rows

__all__ = ["MOST_STEPS", "RoundTimes", "line_of_rounds", "time_rounds", "traced_programs"]

MOST_STEPS = 1000
"""Steps after which items that are not over count as such, where no limit is given."""


@dataclass(frozen=True)
class RoundTimes:
    """The rounds of one batch of items that begin together.

    Attributes
    ----------
    seconds, rows : (rounds,)
        Of each round.
    rounds : (items,)
        That each item took.
    item_work : float
        Work of a row, from its beginning to its end.
    compile_seconds : float
        0 if nothing was compiled.
    """

    seconds: NDArray[np.float64]
    rows: NDArray[np.float64]
    rounds: NDArray[np.float64]
    item_work: float
    compile_seconds: float


def time_rounds(
    kernel: RoundKernel,
    columns: Columns,
    plan: Plan,
    source: Place,
    target: Place,
    statics: Mapping[str, Any],
    traced: Mapping[str, Any],
    limit: int,
) -> RoundTimes:
    """Iterate the one batch of a plan to its end, after a round that is not counted."""
    part = part_of(kernel, columns, plan, [0])

    def rounds(most: int) -> tuple[list[float], list[int], list[int]]:
        job = Job("measure_costs", kernel, part.columns, replace(part.plan), source, target)
        (batch,) = job.plan.batches
        rows = working_rows(job, kernel, statics, map_leaves(job.shared, traced))
        rows.begin(batch.slot, batch.capacity)
        new = batch.items[: batch.count]
        seconds: list[float] = []
        taken: list[int] = []
        ages: list[int] = []
        while len(new) or (rows.live.any() and len(seconds) < most):
            start = time.perf_counter()
            rows.fill(new, len(batch.items))
            done, failed = rows.advance()
            seconds.append(time.perf_counter() - start)
            taken.append(len(rows.items))
            over = rows.live & (done | failed | (rows.ages >= limit))
            ages.extend(rows.ages[over].tolist())
            rows.live = rows.live & ~over
            new = new[:0]
        return seconds, taken, ages

    traces = traced_programs(target)
    (first,), *_ = rounds(1)
    compiled = traced_programs(target) > traces
    every = kernel.rounds.every
    seconds, taken, ages = rounds(max(limit // every, 1))
    (batch,) = plan.batches
    return RoundTimes(
        np.array(seconds),
        np.array(taken, np.float64),
        np.array(ages) / every,
        float(plan.measure.cost(np.array([batch.capacity], np.int64))[0]),
        max(first - float(np.median(seconds)), 0.0) if compiled else 0.0,
    )


def line_of_rounds(
    turns: Sequence[RoundTimes], shares: NDArray[np.float64], usual: float
) -> tuple[float, float, float]:
    """Give seconds of a unit of work, those of all launches of an item, and rounds of an item.

    The first of the turns is the cheapest item alone; the others count by their shares.

    >>> one, two = (
    ...     RoundTimes(0.5 + 0.25 * rows, rows, np.array([2.0]), 1.0, 0.0)
    ...     for rows in (np.ones(2), np.full(2, 9.0))
    ... )
    >>> line_of_rounds([one, two], np.ones(1), 1.0)  # 0.25 s a row and round, 2 rounds
    (0.5, 1.0, 2.0)
    """
    small, *others = turns
    rounds = float(shares @ np.array([turn.rounds.mean() for turn in others]))
    count = float(shares @ np.array([len(turn.seconds) for turn in others]))
    seconds = float(shares @ np.array([turn.seconds.sum() for turn in others])) / count
    done = float(shares @ np.array([turn.rows.sum() * turn.item_work for turn in others])) / count
    slope, launch = line_through(
        (small.item_work / rounds, float(np.median(small.seconds))), (done / rounds, seconds), usual
    )
    return slope, launch * rounds, rounds


def traced_programs(place: Place) -> int:
    """Programs that a framework has traced so far; 0 where it compiles nothing."""
    return sum(getattr(place.adapter, "traces", Counter()).values())
