"""``sp.calibrate``: what a batch takes at its peak, from probes of the kernel itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from stowplan.adapters.interface import static_key
from stowplan.declaration import Kernel
from stowplan.errors import FrameworkError, PlanError
from stowplan.memory import PeakModel, fit_peak
from stowplan.planners.batches import Batch, Plan, empty_batch
from stowplan.runs.columns import Columns, bind
from stowplan.runs.jobs import Job
from stowplan.runs.matching import check_sizes
from stowplan.runs.places import Place, find_places
from stowplan.runs.planning import plan_columns
from stowplan.runs.shared import check_shared, leaves, map_leaves

__all__ = ["calibrate", "peak_models"]

DRY_ROWS = 256
"""Rows of the first probe where a probe allocates nothing."""
REUSED_BYTES = 2**18
"""Size from which on NumPy reuses temporaries, so that smaller batches take relatively more."""
PROBED_BYTES = 4 * REUSED_BYTES
"""Size of the largest argument in a probe with real arrays."""
REAL_BYTES = 2**26
"""Most that the first probe with real arrays may take, one row excepted."""


def calibrate(
    kernel: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    plan: Plan | None = None,
    *,
    on: str | None = None,
    device: Any = None,
    rows: int | None = None,
    gradient: bool = False,
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
        the outputs, and gradients of all floating columns and shared parameters. torch and JAX.
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
    columns = bind("calibrate", kernel, data)
    if columns.items == 0:
        raise PlanError("calibrate: no item to probe with; give at least one.")
    if rows is not None and rows < 1:
        raise PlanError(f"calibrate: rows={rows}; a probe needs at least 1.")
    statics, traced = check_shared("calibrate", kernel, shared)
    source, target = _places([*columns.arrays, *leaves(traced)], on, device)
    if plan is None:
        plan = plan_columns("calibrate", kernel, columns, target)
    check_sizes("calibrate", kernel, columns, plan)
    return peak_models(
        "calibrate", kernel, columns, plan, source, target, statics, traced,
        rows=rows, gradient=gradient,
    )  # fmt: skip


def peak_models(
    where: str,
    kernel: Kernel,
    columns: Columns,
    plan: Plan,
    source: Place,
    target: Place,
    statics: Mapping[str, Any],
    traced: Mapping[str, Any],
    *,
    rows: int | None = None,
    gradient: bool = False,
) -> tuple[PeakModel, ...]:
    """Give the peak of each slot of a plan for columns that are bound already.

    What was found for a kernel, its static arguments, capacity, dtypes and place is kept.
    """
    if gradient and target.adapter.peak_probe == "real":
        raise FrameworkError(
            f"{where}: gradient=True needs torch or JAX; {target.adapter.name} has no gradients."
        )
    job = Job(where, kernel, columns, _one_row_each(plan), source, source)
    shared = _moved(map_leaves(job.shared, traced), source, target)
    models = []
    for slot, planned in enumerate(plan.rows):
        arguments, keywords = _moved(job.gather(slot), source, target)
        probe = _Probe(kernel, target, statics, arguments, keywords, shared, gradient)
        compiled = target.adapter.peak_probe == "compiled"
        least = rows or (max(planned, 1) if compiled else None)
        known = probe.key(least)
        if known not in _known:
            capacity = ", ".join(f"{dim}={plan.slots[slot][dim]}" for dim in plan.dims)
            try:
                _known[known] = probe.model(f" at {capacity}" if capacity else "", least)
            except PlanError as error:
                raise type(error)(f"{where}: {error}") from error
            if len(_known) > 1024:
                _known.pop(next(iter(_known)))
        models.append(_known[known])
    return tuple(models)


_known: dict[Any, PeakModel] = {}


@dataclass(frozen=True, slots=True, eq=False)
class _Probe:
    """What is called: a kernel, arguments of one row, and where."""

    kernel: Kernel
    target: Place
    statics: Mapping[str, Any]
    arguments: Sequence[Any]
    keywords: Mapping[str, Any]
    shared: Mapping[str, Any]
    gradient: bool

    def key(self, rows: int | None) -> tuple[Any, ...]:
        """Everything that the peak depends on."""
        given = map_leaves(_spec, [list(self.arguments), self.keywords, self.shared])
        place = (self.target.adapter.name, str(self.target.device))
        return (self.kernel, static_key(self.statics), repr(given), *place, self.gradient, rows)

    def model(self, capacity: str, rows: int | None) -> PeakModel:
        """Probe, and give the peak as a line, or in JAX for these rows."""
        how = self.target.adapter.peak_probe
        what = "gradient of " if self.gradient else ""
        place = f"{what}{self.kernel.name}{capacity}, {self.target.adapter.name}"
        if how == "compiled":
            rows = rows or 1
            found = PeakModel(
                0, Fraction(self.peak(rows), rows), f"compiled {place}, rows={rows}", rows
            )
        else:
            least = rows or (DRY_ROWS if how == "fake" else self._real_rows())
            counts = [least, 2 * least, 3 * least]
            found = fit_peak(
                counts,
                [self.peak(count) for count in counts],
                f"{how} {place}",
                smaller={n: self.peak(n) for n in self._fewer(least)} if how == "real" else {},
            )
        return replace(found, bytes_per_row=max(found.bytes_per_row, self._gathered_bytes()))

    def peak(self, rows: int) -> int:
        """Bytes of a batch of so many rows."""
        return self.target.adapter.peak_bytes(
            self.kernel, self.statics, self.arguments, self.keywords, self.shared,
            rows=rows, device=self.target.device, gradient=self.gradient,
        )  # fmt: skip

    def _fewer(self, rows: int) -> set[int]:
        """Rows of small batches: few, and the most whose temporaries are not reused."""
        most = (REUSED_BYTES - 1) // max(self._widest(), 1)
        return {count for count in (-(-rows // 16), most) if 0 < count < rows}

    def _real_rows(self) -> int:
        """Rows at which allocations are those of a large batch, if that is not much."""
        enough = -(-PROBED_BYTES // max(self._widest(), 1))
        most = min(REAL_BYTES // self.peak(1), 64 if self.kernel.per_item else enough)
        return max(min(enough, most), 1)

    def _widest(self) -> int:
        return max(map(_bytes, self.arguments))

    def _gathered_bytes(self) -> int:
        """Bytes of a row while its last arguments are gathered: taken, then filled into a copy."""
        sizes = [_bytes(array) for array in self.arguments]
        return max(sum(sizes[:place]) + 2 * size for place, size in enumerate(sizes))


def _places(arrays: Sequence[Any], on: str | None, device: Any) -> tuple[Place, Place]:
    """Find the places of a run; the target need not exist where probes need no device."""
    try:
        return find_places("calibrate", arrays, on, device)
    except FrameworkError:
        source, target = find_places("calibrate", arrays, on, None)
        found = target.adapter.find_device(device)
        if found is None:
            raise
        return source, Place(target.adapter, found)


def _one_row_each(plan: Plan) -> Plan:
    """Give the plan one batch of one row for each slot, with an item of the slot if it has one."""
    held = {batch.slot: batch for batch in reversed(plan.batches) if batch.count}
    batches = []
    for slot, sizes in enumerate(plan.slots):
        capacity = tuple(sizes[dim] for dim in plan.dims)
        if slot in held:
            batches.append(Batch(held[slot].items[:1], 1, capacity, slot))
        else:
            batches.append(empty_batch(plan.lengths, capacity, slot, 1))
    return replace(plan, batches=tuple(batches))


def _moved(value: Any, source: Place, target: Place) -> Any:
    """Give arrays of one row as the target's; where no device is needed, on its first one."""
    fake = target.adapter.peak_probe == "fake"
    if source.adapter is target.adapter and (fake or source.same_as(target)):
        return value
    device = target.adapter.devices()[0] if fake else target.device

    def move(array: Any) -> Any:
        if not hasattr(array, "ndim"):
            return array
        return target.adapter.asarray(source.adapter.to_host(array), device)

    return map_leaves(move, value)


def _spec(value: Any) -> Any:
    return (tuple(value.shape), str(value.dtype)) if hasattr(value, "ndim") else value


def _bytes(array: Any) -> int:
    width = getattr(array.dtype, "itemsize", None)
    name = str(array.dtype).rpartition(".")[2]
    return int(np.prod(array.shape, dtype=np.int64)) * int(width or np.dtype(name).itemsize)
