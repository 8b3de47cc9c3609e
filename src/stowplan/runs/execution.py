"""``sp.run``: data and a plan checked against each other, then computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from stowplan.adapters import Adapter
from stowplan.declaration import Kernel
from stowplan.errors import FrameworkError, PlanError
from stowplan.planners.batches import Plan
from stowplan.runs.columns import Columns, bind
from stowplan.runs.jobs import Job
from stowplan.runs.places import find_places
from stowplan.runs.planning import plan_columns
from stowplan.runs.shared import check_shared, leaves

__all__ = ["check_sizes", "run"]


def run(
    kernel: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    plan: Plan | None = None,
    *,
    on: str | None = None,
    device: Any = None,
    rows: int | None = None,
    progress: bool = False,
    compile: bool = False,
    **shared: Any,
) -> Any:
    """Evaluate a kernel on every item, batch by batch, and give the results in input order.

    Parameters
    ----------
    kernel
        A function declared with ``@kernel``.
    data
        One column per positional parameter: Ragged, array with items on axis 0, list of arrays, or
        Arrow column; all of one framework, on one device.
    plan
        From ``sp.plan``, for data of these sizes; made with the defaults where it is missing.
    on, device
        Framework and device to compute on; those of the data by default.
    rows
        Rows of a batch, where no plan is given.
    progress
        Show a progress bar over batches.
    compile
        torch only: one compiled graph per padded shape.
    **shared
        The kernel's keyword-only parameters. Numbers and arrays are traced; a name in the kernel's
        ``static=`` selects code instead.

    Returns
    -------
    array, Ragged or tuple of them
        In the framework, on the device and in the dtype of the data. In JAX and torch they are
        differentiable with respect to the data and the shared parameters.

    Raises
    ------
    DataError
        Columns that are missing or disagree, shared parameters that are missing or unknown.
    FrameworkError
        Two frameworks in one call, or a dtype, device or gradient that would be lost.
    PlanError
        A plan for data of other sizes.

    Examples
    --------
    >>> import stowplan as sp
    >>> @sp.kernel("(points)->()", ragged="points", fill={"x": 0.0})
    ... def total(x, *, scale):
    ...     return scale * x.sum(axis=-1)
    >>> sp.run(total, {"x": [[1.0, 2.0], [5.0]]}, scale=2.0).tolist()
    [6.0, 10.0]
    """
    columns = bind("run", kernel, data)
    statics, traced = check_shared("run", kernel, shared)
    arrays = [*columns.arrays, *leaves(traced)]
    source, target = find_places("run", arrays, on, device)
    if plan is None:
        plan = plan_columns("run", kernel, columns, target, rows=rows)
    elif rows is not None:
        raise PlanError(
            "run: give rows= while planning, sp.plan(..., rows=...), or leave out the plan."
        )
    check_sizes("run", kernel, columns, plan)
    _refuse(target.adapter, arrays, progress=progress, compile=compile)
    job = Job("run", kernel, columns, plan, source, target)
    return job.execute(job.computation(statics, traced, compile=compile), progress=progress)


def check_sizes(where: str, kernel: Kernel, columns: Columns, plan: Plan) -> None:
    """Refuse a plan made for other sizes, naming the first item that differs."""
    if not isinstance(plan, Plan):
        raise PlanError(
            f"{where}: plan={plan!r} is no plan. Make one with sp.plan({kernel.name}, data), or "
            f"leave it out."
        )
    if plan.dims != kernel.ragged:
        raise PlanError(
            f"{where}: the plan is for dims ({', '.join(plan.dims)}), {kernel.name} has "
            f"({', '.join(kernel.ragged)}). Make one with sp.plan({kernel.name}, data)."
        )
    if len(plan.lengths) != columns.items:
        raise PlanError(
            f"{where}: the plan is for {len(plan.lengths)} items, the data have {columns.items}. "
            f"Keep its slots for other data: sp.plan({kernel.name}, data, slots=plan.slots)."
        )
    if not plan.dims or not columns.items:
        return
    given = np.stack([columns.lengths[dim] for dim in plan.dims], axis=1)
    differs = (plan.lengths != given).any(axis=1)
    if differs.any():
        item = int(np.argmax(differs))
        sizes, planned = (
            ", ".join(f"{dim}={length}" for dim, length in zip(plan.dims, row, strict=True))
            for row in (given[item].tolist(), plan.lengths[item].tolist())
        )
        raise PlanError(
            f"{where}: the plan is for other sizes: {int(differs.sum())} of {columns.items} items "
            f"differ. Item {item} has {sizes} in the data and {planned} in the plan. Keep its "
            f"slots for other data: sp.plan({kernel.name}, data, slots=plan.slots)."
        )


def _refuse(adapter: Adapter, arrays: Sequence[Any], *, progress: bool, compile: bool) -> None:
    if progress and any(is_array_api_obj(array) and adapter.is_traced(array) for array in arrays):
        raise FrameworkError(
            "run: progress=True needs values, which a traced function does not have."
        )
    if compile and adapter.name not in ("torch", "jax"):
        raise FrameworkError(
            f"run: compile=True needs torch or JAX; {adapter.name} has no compiler."
        )
