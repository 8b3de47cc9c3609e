"""A plan matched with the data that it is used for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from stowplan.declaration import Kernel
from stowplan.errors import PlanError
from stowplan.planners.batches import Plan
from stowplan.runs.columns import Columns

__all__ = ["check_sizes", "moved_dims", "refuse_moved_targets"]


def check_sizes(where: str, kernel: Kernel, columns: Columns, plan: Plan) -> None:
    """Refuse a plan made for other sizes, naming the first item that differs.

    Offsets are refused along dims that a column counts from the beginning of its item.
    """
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
    refuse_moved_targets(where, kernel, moved_dims(plan))


def moved_dims(plan: Plan) -> list[str]:
    """Dims along which an item begins elsewhere than in the corner."""
    if plan.offsets is None:
        return []
    return [dim for dim, offsets in zip(plan.dims, plan.offsets.T, strict=True) if offsets.any()]


def refuse_moved_targets(where: str, kernel: Kernel, moved: Iterable[str]) -> None:
    """Refuse offsets along a dim that a column counts from the beginning of its item."""
    counting = {dim: f"column {name!r} holds indices" for name, dim in kernel.index.items()}
    if kernel.segments is not None:
        counting[kernel.segments] = "segments count items"
    for dim in moved:
        if dim in counting:
            raise PlanError(
                f"{where}: {kernel.name}: items have offsets along {dim!r}, but {counting[dim]} "
                f"along it from the first of an item. Leave items in the corner: "
                'sp.plan(..., offsets="corner").'
            )
