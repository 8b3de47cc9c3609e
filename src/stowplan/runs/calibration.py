"""What a batch takes at its peak, from probes of the kernel itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stowplan.declaration import Kernel
from stowplan.errors import PlanError
from stowplan.peaks import PeakModel
from stowplan.planners.batches import Plan
from stowplan.runs.columns import bind
from stowplan.runs.matching import check_sizes
from stowplan.runs.places import find_places
from stowplan.runs.planning import plan_columns
from stowplan.runs.probes import Gradient, make_probes, wanted_parts
from stowplan.runs.shared import check_shared, leaves

__all__ = ["calibrate"]


def calibrate(
    kernel: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    plan: Plan | None = None,
    *,
    on: str | None = None,
    device: Any = None,
    rows: int | None = None,
    gradient: Gradient = False,
    **shared: Any,
) -> tuple[PeakModel, ...]:
    """Say how many bytes a batch takes at its peak, for each slot of a plan.

    Counted are the padded arguments, masks and segments, shared parameters, temporaries and
    outputs of one call, and no less than gathering the arguments takes; not the columns, results
    and index arrays of the whole run, nor workspaces that a library takes within one operation.

    Torch is probed without values, so that nothing is allocated and the device need not be there;
    NumPy and CuPy with small real batches; three numbers of rows give a line. JAX compiles the
    planned shape and reads what XLA says of it: no line, but right for these rows, and the run
    that follows compiles nothing.

    Parameters
    ----------
    kernel, data, plan, on, device
        As in `run`; at least one item.
    rows
        Rows of the smallest probe; in JAX those of the compiled shape, by default the plan's.
    gradient
        Count one batch of the backward pass instead, which calls the kernel again: cotangents of
        the outputs, and gradients of the columns and shared parameters that are named, or with True
        of all floating ones. torch and JAX.
    **shared
        The kernel's keyword-only parameters.

    Returns
    -------
    tuple of PeakModel
        One for each of ``plan.slots``, in their order.

    Raises
    ------
    PlanError
        For no items, and in torch for a kernel that reads values or uses other tensors than its
        parameters.
    FrameworkError
        For ``gradient=True`` where a framework has none.

    Examples
    --------
    >>> import stowplan as sp
    >>> from stowplan.runs.calibration import calibrate
    >>> @sp.kernel("(points)->(points)", ragged="points", fill={"x": 0.0})
    ... def twice(x):
    ...     return 2 * x
    >>> (model,) = calibrate(twice, {"x": [[1.0] * 1000] * 3})
    >>> round(model.bytes_per_row / 8)
    2000
    """
    columns = bind("calibrate", kernel, data, on_disk=True)
    if columns.items == 0:
        raise PlanError("calibrate: no item to probe with; give at least one.")
    if rows is not None and rows < 1:
        raise PlanError(f"calibrate: rows={rows}; a probe needs at least 1.")
    statics, traced = check_shared("calibrate", kernel, shared)
    arrays = [*columns.arrays, *leaves(traced)]
    source, target = find_places("calibrate", arrays, on, device, absent=True)
    if plan is None:
        plan = plan_columns("calibrate", kernel, columns, source, target)
    check_sizes("calibrate", kernel, columns, plan)
    wanted = wanted_parts("calibrate", kernel, source.adapter, columns, traced, gradient=gradient)
    probes = make_probes(
        "calibrate", kernel, columns, plan, source, target, statics, traced, wanted
    )
    compiled = target.adapter.peak_probe == "compiled"
    return tuple(
        probe.model(rows or (max(planned, 1) if compiled else None))
        for probe, planned in zip(probes, plan.rows, strict=True)
    )
