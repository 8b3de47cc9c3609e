"""``sp.measure_costs``: the constants of the cost objective, from real batches of a kernel."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stowplan.adapters.interface import as_tuple
from stowplan.declaration import Kernel
from stowplan.errors import PlanError
from stowplan.planners.batches import Batch, Plan
from stowplan.planners.cost import Costs
from stowplan.planners.offsets import real_items
from stowplan.ragged import Ragged
from stowplan.runs.budgeting import MemoryRequest
from stowplan.runs.columns import Columns, bind
from stowplan.runs.jobs import Job
from stowplan.runs.loads import Load, Reads
from stowplan.runs.parts import Part, part_of
from stowplan.runs.places import Place, find_places
from stowplan.runs.planning import known_costs, plan_columns, remember_costs
from stowplan.runs.round_times import MOST_STEPS, line_of_rounds, time_rounds, traced_programs
from stowplan.runs.rounds import RoundKernel, Rounds, round_kernel
from stowplan.runs.sampled_batches import (
    cheapest_batches,
    line_through,
    sampled_batches,
    work_of,
)
from stowplan.runs.shared import check_shared, leaves

__all__ = ["measure_costs"]

FEW, MORE = 2, 8
"""Batches of a run, and those that another one has more: they tell what both take beside them."""
CHEAP = 4
"""Times the work of each of them that the batches of a plan have, or only one of them is timed."""
SHORT = 5e-3
"""Seconds below which a batch is timed more often, and what a run takes beside it counts."""
OFTEN = 3
"""Times as often as others."""


def measure_costs(
    kernel: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    *,
    on: str | None = None,
    device: Any = None,
    repeats: int = 5,
    rounds: Rounds | None = None,
    **shared: Any,
) -> Costs:
    """Time the kernel on real batches: of its plan, and of one row of the cheapest item.

    Batches of the plan for these data are run one at a time: gathered, or read from disk, computed
    and put away. The line through the smallest one and the mean of the others gives the seconds of
    a unit of work and of a launch, so that the batches of the plan together take what is predicted;
    what a run takes once, however many batches it has, is left out. Where the framework compiles, a
    first call less a later one gives the seconds of a compile. Later plans for the kernel on this
    framework and device use what was measured.

    Parameters
    ----------
    kernel, data, on, device
        As in `run`; at least one item. Data like those to come: their sizes say which batches.
    repeats
        Runs of each batch, three times as many of short ones; their median counts.
    rounds
        How a step is iterated, if the kernel is one: batches are then iterated to their end, or to
        ``rounds.limit`` steps, and what an item takes is that of the rounds of these items.
    **shared
        The kernel's keyword-only parameters.

    Returns
    -------
    Costs

    Examples
    --------
    >>> import stowplan as sp
    >>> @sp.kernel("(points)->()", ragged="points", fill={"x": 0.0})
    ... def total(x):
    ...     return x.sum(axis=-1)
    >>> sp.measure_costs(total, {"x": [[1.0] * 10, [5.0] * 500]}).launch_seconds > 0
    True
    """
    columns = bind("measure_costs", kernel, data, on_disk=rounds is None)
    if repeats < 1:
        raise PlanError(f"measure_costs: repeats={repeats}; a median needs at least 1.")
    if columns.items == 0:
        raise PlanError("measure_costs: no item to measure on; give at least one.")
    arrays = [*columns.arrays, *leaves(list(shared.values()))]
    source, target = find_places("measure_costs", arrays, on, device)
    if rounds is not None:
        kernel = round_kernel(kernel, rounds, target.adapter)
    limit = MOST_STEPS if rounds is None else rounds.limit or MOST_STEPS
    statics, traced = check_shared("measure_costs", kernel, shared)
    gradient = False if rounds is not None else None
    memory = MemoryRequest(gradient=gradient, statics=statics, traced=traced)  # terms, too
    plan = plan_columns("measure_costs", kernel, columns, source, target, memory)
    compiles = target.adapter.compiles
    sampled = sampled_batches(plan, compiles=compiles)
    shares = np.array(list(sampled.values()), np.float64) / sum(sampled.values())
    cheapest = cheapest_batches(plan, FEW + MORE)
    if CHEAP * work_of(plan, cheapest)[0] > shares @ work_of(plan, list(sampled)):
        cheapest = cheapest_batches(plan, 1)
    batches = [cheapest[0], *sampled]
    usual = target.adapter.work_seconds
    if isinstance(kernel, RoundKernel):
        turns = [
            time_rounds(kernel, columns, replace(plan, batches=(batch,)), source, target, statics,
                        traced, limit)
            for batch in batches
        ]  # fmt: skip
        slope, launch, mean_rounds = line_of_rounds(turns, shares, usual)
        firsts = np.array([one.compile_seconds for one in turns])
    else:
        stopwatch = _Stopwatch(kernel, columns, plan, source, target, statics, traced, repeats)
        seconds, firsts = np.array([stopwatch.of_batch(batch) for batch in batches]).T
        if seconds[0] < SHORT and len(cheapest) > FEW:  # else a run's own seconds are nothing
            seconds -= min(stopwatch.beside(cheapest), 0.5 * float(seconds.min()))
        work, mean_rounds = work_of(plan, batches), 0.0
        mean = float(shares @ work[1:]), float(shares @ seconds[1:])
        slope, launch = line_through((work[0], seconds[0]), mean, usual)
    later = firsts[1:][firsts[1:] > 0]  # the first of all wakes the compiler, too
    compiled = float(np.median(later)) if len(later) else float(firsts[0])
    compiled = compiled or known_costs(kernel, target).compile_seconds  # if all were there before
    costs = Costs(slope, launch, compiled if compiles else 0.0, mean_rounds)
    remember_costs(kernel, target, costs)
    return costs


@dataclass
class _Stopwatch:
    """Times batches as runs of their own."""

    kernel: Kernel
    columns: Columns
    plan: Plan
    source: Place
    target: Place
    statics: Mapping[str, Any]
    traced: Mapping[str, Any]
    repeats: int

    def of_batch(self, batch: Batch) -> tuple[float, float]:
        """Give the median seconds of a batch, and those of a compile before or 0."""
        taken = self._taken([batch])
        traces = traced_programs(self.target)
        first = self._seconds(taken)
        compiled = traced_programs(self.target) > traces
        median = self._median(taken)
        return median, max(first - median, 0.0) if compiled else 0.0

    def beside(self, batches: Sequence[Batch]) -> float:
        """Give what a run of batches, all alike, takes beside them: the same for fewer of them."""
        few, many = (self._median(self._taken(those)) for those in (batches[:FEW], batches))
        return max(few - FEW * (many - few) / (len(batches) - FEW), 0.0)

    def _taken(self, batches: Sequence[Batch]) -> Callable[[], Part]:
        """Give what gives the data of batches: those on disk are read each time."""
        plan = replace(self.plan, batches=tuple(batches))
        return self._reader(plan) if self.columns.stored else self._holder(plan)

    def _median(self, taken: Callable[[], Part]) -> float:
        seconds = [self._seconds(taken) for _ in range(self.repeats)]
        if seconds[-1] < SHORT:  # the first ones find nothing in caches
            seconds = [self._seconds(taken) for _ in range(OFTEN * self.repeats)]
        return float(np.median(seconds))

    def _holder(self, plan: Plan) -> Callable[[], Part]:
        part = part_of(self.kernel, self.columns, plan, range(len(plan.batches)))
        return lambda: part

    def _reader(self, plan: Plan) -> Callable[[], Part]:
        items = np.sort(real_items(plan.batches))
        reads = Reads(self.columns)
        load = Load(range(len(plan.batches)), items, reads.bytes_of(items))
        buffer = self.target.adapter.host_buffer(reads.room_for(load.bytes), self.target.device)
        return lambda: reads.part(self.kernel, plan, load, reads.fill(load, buffer))

    def _seconds(self, take: Callable[[], Part]) -> float:
        """Time a run with index arrays of its own, which each run makes anew."""
        start = time.perf_counter()
        part = take()
        reading = time.perf_counter() - start
        read = all(isinstance(array, np.ndarray) for array in part.columns.arrays)
        source = self.source if read or not self.columns.stored else self.target
        own = replace(part.plan)
        job = Job("measure_costs", self.kernel, part.columns, own, source, self.target)
        compute = job.computation(self.statics, self.traced)
        start = time.perf_counter()
        results = as_tuple(job.execute(compute, progress=False))
        arrays = [one.values if isinstance(one, Ragged) else one for one in results]
        self.target.adapter.synchronize(arrays)
        return reading + time.perf_counter() - start
