"""``sp.measure_costs``: the constants of the cost objective, from real batches of a kernel."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stowplan.declaration import Kernel
from stowplan.errors import PlanError
from stowplan.planners.batches import Batch, Plan
from stowplan.planners.cost import Costs
from stowplan.runs.columns import Columns, bind
from stowplan.runs.jobs import Job
from stowplan.runs.places import find_places
from stowplan.runs.planning import plan_columns, remember_costs
from stowplan.runs.shared import check_shared, leaves

__all__ = ["measure_costs"]


def measure_costs(
    kernel: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    *,
    on: str | None = None,
    device: Any = None,
    repeats: int = 5,
    **shared: Any,
) -> Costs:
    """Time the kernel on batches of one small and of several large items.

    A line through the medians gives the seconds of a unit of work and of a launch; where the
    framework compiles, a first call less a later one gives those of a compile. Later plans for the
    kernel on this framework and device use what was measured.

    Parameters
    ----------
    kernel, data, on, device
        As in `run`; at least one item.
    repeats
        Calls of each batch; their median counts.
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
    plan = _probe(
        kernel,
        columns,
        plan_columns("measure_costs", kernel, columns, source, target, slots="exact", rows=1),
    )
    job = Job("measure_costs", kernel, columns, plan, source, target)
    compute = job.computation(statics, traced)
    first, medians = [], []
    for number in range(len(plan.batches)):

        def call(number: int = number) -> None:
            target.adapter.synchronize(compute(number))

        first.append(_seconds(call))
        medians.append(float(np.median([_seconds(call) for _ in range(repeats)])))
    work = np.array(
        [
            len(b.items) * plan.measure.cost(np.array([b.capacity], np.int64))[0]
            for b in plan.batches
        ]
    )
    spread = float(work.max() - work.min())
    slope = (medians[-1] - medians[0]) / spread if spread else 0.0
    slope = slope if slope > 0 else target.adapter.work_seconds
    costs = Costs(
        work_seconds=slope,
        launch_seconds=max(medians[0] - slope * float(work[0]), 1e-6),
        compile_seconds=max(first[-1] - medians[-1], 0.0) if target.adapter.compiles else 0.0,
    )
    remember_costs(kernel, target, costs)
    return costs


def _probe(kernel: Kernel, columns: Columns, plan: Plan) -> Plan:
    """Two batches: the cheapest item alone, and up to eight rows of the dearest."""
    work = plan.measure.cost(plan.lengths) if plan.dims else np.ones(columns.items)
    small, large = int(np.argmin(work)), int(np.argmax(work))
    rows = 8

    def batch(item: int, rows: int) -> Batch:
        capacity = tuple(int(length) for length in np.maximum(plan.lengths[item], 1))
        return Batch(np.full(rows, item, np.intp), rows, capacity, 0)

    return replace(plan, batches=(batch(small, 1), batch(large, rows)))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
