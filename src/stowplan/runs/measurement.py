"""``sp.measure_costs``: the constants of the cost objective, from real batches of a kernel."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from stowplan.runs.columns import bind
from stowplan.runs.jobs import Job
from stowplan.runs.parts import part_of
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

    Batches of the plan for these data are run one at a time, gathered, computed and put away. The
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
    columns = bind("measure_costs", kernel, data)
    if repeats < 1:
        raise PlanError(f"measure_costs: repeats={repeats}; a median needs at least 1.")
    if columns.items == 0:
        raise PlanError("measure_costs: no item to measure on; give at least one.")
    statics, traced = check_shared("measure_costs", kernel, shared)
    source, target = find_places("measure_costs", [*columns.arrays, *leaves(traced)], on, device)
    memory = MemoryRequest(statics=statics, traced=traced)  # for the terms of a kernel
    plan = plan_columns("measure_costs", kernel, columns, source, target, memory)
    compiles = target.adapter.compiles
    known = known_costs(kernel, target)

    def timed(batch: Batch) -> tuple[float, float]:
        """Give the median seconds of a batch, and those that a compile took before."""
        part = part_of(kernel, columns, replace(plan, batches=(batch,)), [0])

        def run() -> float:
            own = replace(part.plan)  # with index arrays of its own, which a run makes anew
            job = Job("measure_costs", kernel, part.columns, own, source, target)
            compute = job.computation(statics, traced)
            return _seconds(lambda: _wait(target, job.execute(compute, progress=False)))

        traces = _traces(target)
        first = run()
        compiled = _traces(target) > traces
        median = float(np.median([run() for _ in range(repeats)]))
        return median, max(first - median, 0.0) if compiled else 0.0

    sampled = _sampled(plan, COMPILED_SHAPES if compiles else SHAPES)
    small = _cheapest(plan)
    times = {batch: timed(batch) for batch in (small, *sampled)}
    work = _work(plan, [small, *sampled])
    counts = np.array(list(sampled.values()), np.float64)
    seconds = np.array([times[batch][0] for batch in (small, *sampled)])
    compile_seconds = max(compiled for _, compiled in times.values())
    slope, launch = _line(
        (work[0], seconds[0]),
        (float(counts @ work[1:] / counts.sum()), float(counts @ seconds[1:] / counts.sum())),
        target.adapter.work_seconds,
    )
    costs = Costs(slope, launch, (compile_seconds or known.compile_seconds) if compiles else 0.0)
    remember_costs(kernel, target, costs)
    return costs


def _sampled(plan: Plan, most: int) -> dict[Batch, int]:
    """Give batches of different shapes, and how many of a few evenly spread ones each stands for.

    Spread over all batches of the plan in the order of their work.
    """
    order = np.argsort(_work(plan, plan.batches), kind="stable")
    places = ((np.arange(min(most, len(order))) + 0.5) * len(order) / min(most, len(order))).astype(
        np.intp
    )
    chosen = [plan.batches[number] for number in order[places].tolist()]
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
    slope = min(steep if steep > 0 else usual, steepest)
    return slope, max(mean[1] - slope * mean[0], LEAST_LAUNCH)


def _traces(place: Place) -> int:
    """Programs that were traced so far."""
    return sum(getattr(place.adapter, "traces", Counter()).values())


def _wait(place: Place, results: Any) -> None:
    """Wait until results are there."""
    arrays = (one.values if isinstance(one, Ragged) else one for one in as_tuple(results))
    place.adapter.synchronize(list(arrays))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
