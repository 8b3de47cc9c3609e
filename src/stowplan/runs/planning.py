"""``sp.plan``: numbers from the data and the adapter, a plan from the planners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from stowplan.declaration import Kernel
from stowplan.errors import BudgetError, PlanError
from stowplan.expressions import Expression
from stowplan.memory import parse_bytes, show_bytes
from stowplan.planners.batches import Plan
from stowplan.planners.choose import choose_slots
from stowplan.planners.chunks import split_chunks
from stowplan.planners.cost import Costs
from stowplan.planners.slots import add_catch_all, assign_exact, assign_slots
from stowplan.ragged import Ragged
from stowplan.runs.columns import Columns, bind
from stowplan.runs.packing import KernelPacking
from stowplan.runs.places import Place, find_places

__all__ = ["plan", "plan_columns"]

Slots = int | Literal["exact"] | Sequence[Mapping[str, int]] | None


def plan(
    kernel: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    *,
    on: str | None = None,
    device: Any = None,
    slots: Slots = None,
    rows: int | Sequence[int] | None = None,
    budget: int | str | None = None,
    order: Literal["given", "cheapest"] = "given",
    overflow: Literal["error", "extend"] = "error",
    costs: Costs | None = None,
    passes: int = 1,
    headroom: float | None = None,
) -> Plan:
    """Plan which items share a batch, at which capacity, on which framework.

    Parameters
    ----------
    kernel
        A function declared with ``@kernel``.
    data
        One column per positional parameter; only the sizes are looked at.
    on, device
        Framework and device to compute on; those of the data by default.
    slots
        How many slots to choose; or the slots, as mappings from dims or derived names to limits,
        with ``"rows"`` if wanted; or ``"exact"``, one for each distinct size. By default as many as
        cost least. ``other_plan.slots`` keeps capacities and rows, so that nothing compiles again.
    rows
        Rows of a batch, by hand: one number, or one for each slot.
    budget
        Most bytes of a batch, such as ``"4 GiB"``, by the kernel's ``memory`` expression.
    order, overflow
        See `assign_slots`.
    costs
        Constants of the cost objective; those of the framework by default, see `measure_costs`.
    passes
        How often sets like this will run with these slots: each bears that share of the compiles,
        so that more passes choose more slots where a framework compiles.
    headroom
        Adds one slot, listed last, whose capacities are this many times the largest sizes: a
        catch-all with one row for the few larger items of later sets. It costs nothing while it is
        empty, but for one compile with the first run where the framework compiles.

    Raises
    ------
    PlanError
        For items that fit no slot, unknown dims and limits that are no positive integers.
    BudgetError
        Where one row exceeds the budget.

    Examples
    --------
    >>> import stowplan as sp
    >>> @sp.kernel("(points)->()", ragged="points", fill={"x": 0.0})
    ... def total(x):
    ...     return x.sum(axis=-1)
    >>> sp.plan(total, {"x": [[1.0, 2.0], [5.0]]}, slots=[{"points": 4}]).occupancy()
    0.375
    """
    columns = bind("plan", kernel, data)
    _, target = find_places("plan", columns.arrays, on, device)
    return plan_columns(
        "plan", kernel, columns, target, slots=slots, rows=rows, budget=budget, order=order,
        overflow=overflow, costs=costs, passes=passes, headroom=headroom,
    )  # fmt: skip


def plan_columns(
    where: str,
    kernel: Kernel,
    columns: Columns,
    target: Place,
    *,
    slots: Slots = None,
    rows: int | Sequence[int] | None = None,
    budget: int | str | None = None,
    order: Literal["given", "cheapest"] = "given",
    overflow: Literal["error", "extend"] = "error",
    costs: Costs | None = None,
    passes: int = 1,
    headroom: float | None = None,
) -> Plan:
    """Plan columns that are bound already."""
    costs = costs or known_costs(kernel, target)
    if not isinstance(passes, int | float | np.integer) or not 1 <= passes < np.inf:
        raise PlanError(f"{where}: passes={passes!r}; it is a number from 1: a plan runs once.")
    costs = replace(costs, compile_seconds=costs.compile_seconds / passes)
    sizes = columns.lengths
    options = kernel.pricing
    items = None if sizes else columns.items
    if isinstance(slots, str):
        if slots != "exact":
            raise PlanError(f"{where}: slots={slots!r}; the only word it takes is 'exact'.")
        made = assign_exact(sizes, items=items, **options)
    elif slots is None or isinstance(slots, int | np.integer):
        chosen = choose_slots(sizes, None if slots is None else int(slots), costs=costs, **options)
        mode = "one" if len(chosen) == 1 else "chosen"
        made = replace(assign_slots(sizes, chosen, items=items, **options), mode=mode)
    else:
        _refuse_no_list(where, slots)
        made = assign_slots(sizes, slots, order=order, overflow=overflow, items=items, **options)
    if headroom is not None:
        made = add_catch_all(made, headroom)
    item_bytes, row_values = _footprint(kernel, columns)
    made = replace(
        made, on=target.adapter.name, costs=costs, item_bytes=item_bytes,
        packing=KernelPacking(kernel),
    )  # fmt: skip
    limits = _most_rows(where, kernel, made, target, row_values, budget)
    most = limits if rows is None or budget is not None else None
    return split_chunks(made, rows, ladder=target.adapter.compiles, max_rows=most)


def _refuse_no_list(where: str, slots: object) -> None:
    if not isinstance(slots, Sequence):
        raise PlanError(
            f"{where}: slots={slots!r}; give how many to choose, 'exact', or a list of slots: "
            "slots=[{...}]."
        )


_measured: dict[tuple[Kernel, str, str], Costs] = {}


def known_costs(kernel: Kernel, place: Place) -> Costs:
    """Give measured constants for a kernel where there are some, else those shipped."""
    adapter = place.adapter
    shipped = Costs(adapter.work_seconds, adapter.launch_seconds, adapter.compile_seconds)
    return _measured.get((kernel, adapter.name, str(place.device)), shipped)


def remember_costs(kernel: Kernel, place: Place, costs: Costs) -> None:
    """Use these constants for all later plans of the kernel there."""
    _measured[kernel, place.adapter.name, str(place.device)] = costs


def _footprint(kernel: Kernel, columns: Columns) -> tuple[str, str]:
    """Bytes of an item's columns, and of what one row of a batch needs, as expressions of dims."""
    terms = []
    itemsize = 1
    for column, core in zip(columns.values, kernel.signature.inputs, strict=True):
        values = column.values if isinstance(column, Ragged) else column
        width = _item_bytes(values.dtype)
        itemsize = max(itemsize, width)
        tail = int(np.prod(values.shape[1:])) * width
        terms.append(" * ".join([*kernel.ragged_dims(core), str(tail)]))
    item_bytes = " + ".join(terms) or "1"
    if kernel.memory is None:
        return item_bytes, item_bytes
    return item_bytes, f"{itemsize} * ({kernel.memory.text})"


def _item_bytes(dtype: Any) -> int:
    known = getattr(dtype, "itemsize", None)
    return int(known or np.dtype(str(dtype).rpartition(".")[2]).itemsize)


def _most_rows(
    where: str,
    kernel: Kernel,
    made: Plan,
    target: Place,
    row_bytes: str,
    budget: int | str | None,
) -> list[int] | None:
    if not made.slots:
        return None
    if budget is not None and kernel.memory is None:
        raise PlanError(
            f"{where}: a budget needs to know what a row of {kernel.name} takes. Declare it, "
            f"@kernel(..., memory='...'), or pass rows= instead."
        )
    expression = Expression.parse(row_bytes)
    limit = parse_bytes(budget) if budget is not None else None
    most = []
    for slot in made.slots:
        known = {name: slot[name] for name in made.dims}
        known |= {name: rule.evaluate(known) for name, rule in kernel.derived.items()}
        needed = max(int(expression.evaluate(known)), 1)
        if limit is not None and needed > limit:
            shown = ", ".join(f"{name}={slot[name]}" for name in made.dims)
            raise BudgetError(
                f"{where}: one row of {kernel.name} at {shown} needs {show_bytes(needed)} "
                f"({needed} bytes), "
                f"the budget is {show_bytes(limit)}. Give at least budget={needed}."
            )
        rows = max((limit or target.adapter.batch_bytes(target.device)) // needed, 1)
        most.append(max(rows, slot.get("rows", 1)) if limit is None else rows)
    return most
