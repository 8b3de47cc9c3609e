"""``sp.measure_costs``: the constants of the cost objective, from real batches of a kernel."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.adapters.interface import as_tuple
from stowplan.declaration import Kernel
from stowplan.errors import PlanError
from stowplan.planners.batches import Batch, Plan
from stowplan.planners.cost import Costs
from stowplan.ragged import Ragged
from stowplan.runs.budgeting import MemoryRequest
from stowplan.runs.columns import Columns, bind
from stowplan.runs.jobs import Job
from stowplan.runs.loads import Load, Reads
from stowplan.runs.parts import Part, part_of
from stowplan.runs.places import Place, find_places
from stowplan.runs.planning import known_costs, plan_columns, remember_costs
from stowplan.runs.shared import check_shared, leaves

__all__ = ["measure_costs"]

SHAPES, COMPILED_SHAPES = 6, 3
"""Most batches of a plan that are timed."""
LEAST_LAUNCH = 1e-6


def measure_costs(
    kernel: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    *,
    on: str | None = None,
    device: Any = None,
    repeats: int = 5,
    **shared: Any,
) -> Costs:
    """Time the kernel on real batches: of its plan, and of one row of the cheapest item.

    Batches of the plan for these data are run one at a time: gathered, or read from disk, computed
    and put away. The
    line through the smallest one and the mean of the others gives the seconds of a unit of work and
    of a launch, so that the batches of the plan together take what is predicted; where the
    framework compiles, a first call less a later one gives those of a compile. Later plans for the
    kernel on this framework and device use what was measured.

    Parameters
    ----------
    kernel, data, on, device
        As in `run`; at least one item. Data like those to come: their sizes say which batches.
    repeats
        Runs of each batch; their median counts.
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
    columns = bind("measure_costs", kernel, data, on_disk=True)
    if repeats < 1:
        raise PlanError(f"measure_costs: repeats={repeats}; a median needs at least 1.")
    if columns.items == 0:
        raise PlanError("measure_costs: no item to measure on; give at least one.")
    statics, traced = check_shared("measure_costs", kernel, shared)
    source, target = find_places("measure_costs", [*columns.arrays, *leaves(traced)], on, device)
    memory = MemoryRequest(statics=statics, traced=traced)  # for the terms of a kernel
    plan = plan_columns("measure_costs", kernel, columns, source, target, memory)
    stopwatch = _Stopwatch(kernel, columns, plan, source, target, statics, traced, repeats)
    compiles = target.adapter.compiles
    sampled = _sampled(plan, COMPILED_SHAPES if compiles else SHAPES)
    small = _cheapest(plan)
    times = [stopwatch.of_batch(batch) for batch in (small, *sampled)]
    seconds, compiled = np.array(times).T
    work = _work(plan, [small, *sampled])
    shares = np.array(list(sampled.values()), np.float64) / sum(sampled.values())
    mean = float(shares @ work[1:]), float(shares @ seconds[1:])
    slope, launch = _line((work[0], seconds[0]), mean, target.adapter.work_seconds)
    known = known_costs(kernel, target).compile_seconds  # where all was compiled before
    costs = Costs(slope, launch, (float(compiled.max()) or known) if compiles else 0.0)
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
        """Give the median seconds of a batch, and those of a compile before; 0 if there was none.

        Data on disk are read each time, those in memory lie ready.
        """
        plan = replace(self.plan, batches=(batch,))
        taken = self._reader(plan) if self.columns.stored else self._holder(plan)
        traces = self._traces()
        first = self._seconds(taken)
        compiled = self._traces() > traces
        median = float(np.median([self._seconds(taken) for _ in range(self.repeats)]))
        return median, max(first - median, 0.0) if compiled else 0.0

    def _holder(self, plan: Plan) -> Callable[[], Part]:
        part = part_of(self.kernel, self.columns, plan, [0])
        return lambda: part

    def _reader(self, plan: Plan) -> Callable[[], Part]:
        (batch,) = plan.batches
        items = np.sort(batch.items[: batch.count])
        reads = Reads(self.columns)
        load = Load(range(1), items, reads.bytes_of(items))
        buffer = self.target.adapter.host_buffer(load.bytes, self.target.device)
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

    def _traces(self) -> int:
        """Programs that were traced so far."""
        return sum(getattr(self.target.adapter, "traces", Counter()).values())


def _sampled(plan: Plan, most: int) -> dict[Batch, int]:
    """Give batches of different shapes, and how many of a few evenly spread ones each stands for.

    Spread over all batches of the plan in the order of their work.
    """
    order = np.argsort(_work(plan, plan.batches), kind="stable")
    count = min(most, len(order))
    places = (np.arange(count) + 0.5) * len(order) / count
    chosen = [plan.batches[number] for number in order[places.astype(np.intp)].tolist()]
    first: dict[Any, Batch] = {}
    counts: Counter[Batch] = Counter()
    for batch in chosen:
        counts[first.setdefault((len(batch.items), batch.capacity), batch)] += 1
    return dict(counts)


def _cheapest(plan: Plan) -> Batch:
    """Give a batch of one row, of the item that takes the least work, unpadded."""
    work = plan.measure.cost(plan.lengths) if plan.dims else np.ones(len(plan.lengths))
    item = int(np.argmin(work))
    capacity = tuple(int(length) for length in np.maximum(plan.lengths[item], 1))
    return Batch(np.array([item], np.intp), 1, capacity, 0)


def _work(plan: Plan, batches: Sequence[Batch]) -> NDArray[np.float64]:
    """Padded work of batches."""
    capacities = np.array([batch.capacity for batch in batches], np.int64)
    rows = np.array([len(batch.items) for batch in batches], np.float64)
    found: NDArray[np.float64] = rows * plan.measure.cost(
        capacities.reshape(len(batches), len(plan.dims))
    )
    return found


def _line(
    small: tuple[float, float], mean: tuple[float, float], usual: float
) -> tuple[float, float]:
    """Give slope and height of the line through two points (work, seconds), both above 0.

    Where no slope is to be seen it is the usual one, or what the mean allows.

    >>> _line((1.0, 3.0), (5.0, 5.0), 1.0)
    (0.5, 2.5)
    >>> _line((1.0, 3.0), (1.0, 3.0), 0.25)
    (0.25, 2.75)
    """
    steep = (mean[1] - small[1]) / (mean[0] - small[0]) if mean[0] > small[0] else 0.0
    steepest = mean[1] / mean[0]
    slope = float(min(steep if steep > 0 else usual, steepest))
    return slope, float(max(mean[1] - slope * mean[0], LEAST_LAUNCH))
