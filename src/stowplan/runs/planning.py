"""``sp.plan``: numbers from the data and the adapter, a plan from the planners."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stowplan.declaration import Kernel
from stowplan.errors import PlanError
from stowplan.planners.batches import Plan
from stowplan.planners.choose import choose_slots
from stowplan.planners.cost import Costs
from stowplan.planners.offsets import Offsets, place_items
from stowplan.planners.slots import add_catch_all, assign_exact, assign_slots
from stowplan.runs.budgeting import MemoryRequest, fit_rows
from stowplan.runs.columns import Columns, bind
from stowplan.runs.footprint import dtype_bytes
from stowplan.runs.matching import moved_dims, refuse_moved_targets
from stowplan.runs.places import Place, find_places
from stowplan.runs.probes import Gradient
from stowplan.runs.rounds import RoundKernel, Rounds, round_kernel
from stowplan.runs.shared import known_shared, leaves, missing_shared

if TYPE_CHECKING:
    from stowplan.runs.devices import DevicesGiven, Group

__all__ = ["plan", "plan_columns"]

Slots = int | Literal["exact"] | Sequence[Mapping[str, int]] | None


def plan(
    kernel: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    *,
    on: str | None = None,
    device: Any = None,
    devices: DevicesGiven = None,
    slots: Slots = None,
    rows: int | Sequence[int] | None = None,
    budget: float | str | None = None,
    peak: Any = None,
    gradient: Gradient = None,
    rounds: Rounds | None = None,
    order: Literal["given", "cheapest"] = "given",
    overflow: Literal["error", "extend"] = "error",
    costs: Costs | None = None,
    passes: int = 1,
    headroom: float | None = None,
    offsets: Offsets = "corner",
    on_disk: bool = False,
    **shared: Any,
) -> Plan:
    """Plan which items share a batch, at which capacity, on which framework.

    Parameters
    ----------
    kernel
        A function declared with ``@kernel``.
    data
        One column per positional parameter; only the sizes are looked at.
    on, device
        Framework and device to compute on; those of the data by default. In torch the device need
        not be there, so that a laptop can plan for a card, with a budget in bytes.
    devices
        Several devices that compute at once, as for `run`: batches are cut so that all of them have
        some, where that is done sooner, and shared out. ``budget`` is for each; a share of the free
        memory of a host is cut up between them.
    slots
        How many slots to choose; or the slots, as mappings from dims or derived names to limits,
        with ``"rows"`` if wanted; or ``"exact"``, one for each distinct size. By default as many as
        cost least. ``other_plan.slots`` keeps capacities and rows, so that nothing compiles again.
    rows
        Rows of a batch, by hand: one number, or one for each slot.
    budget
        Most bytes of a run beside its inputs: ``"4 GiB"``, a number of bytes, or a share of the
        free memory (0.8). By default ``STOWPLAN_BUDGET``, else 0.8; then the kernel is probed only
        where its inputs and outputs alone make that limit conceivable.
    peak
        ``(fixed_bytes, bytes_per_row)`` of a batch by hand instead of a probe: one for all slots or
        one for each, or what ``sp.calibrate`` returns.
    gradient
        Whether the memory is that of a run with a gradient, or the names of the columns and shared
        parameters that get one; by default those that the framework records.
    rounds
        How a step is iterated, if the kernel is one: the memory is then that of a round.
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
    offsets
        Where items lie in their padding: ``"corner"``, ``"centre"``, or an array (items, dims) of
        the place where each begins. Columns and outputs lie alike; a dim of an output that no input
        has begins at 0.
    on_disk
        Whether all results go to disk, ``run(..., out=)``, so that they take no memory. Data on
        disk are seen by themselves.
    **shared
        The kernel's keyword-only parameters as in `run`, which probes and ``terms`` need. They may
        be left out where no budget is given.

    Raises
    ------
    PlanError
        For items that fit no slot, unknown dims, limits that are no positive integers, and offsets
        that let an item reach beyond its batch or lie along a dim that ``index=`` or ``segments=``
        of the kernel counts.
    BudgetError
        Where one row, or ``rows`` by hand, exceed the budget.
    FrameworkError
        For a budget under a user's ``jit`` or ``vmap``, for a device that is not there without
        a budget in bytes, and for ``devices`` that are not there or not of one platform.

    Examples
    --------
    >>> import stowplan as sp
    >>> @sp.kernel("(points)->()", ragged="points", fill={"x": 0.0})
    ... def total(x):
    ...     return x.sum(axis=-1)
    >>> sp.plan(total, {"x": [[1.0, 2.0], [5.0]]}, slots=[{"points": 4}]).occupancy()
    0.375
    """
    columns = bind("plan", kernel, data, on_disk=True)
    arrays = [*columns.arrays, *leaves(list(shared.values()))]
    source, target = find_places("plan", arrays, on, device, absent=True)
    group = None
    if devices is not None:
        from stowplan.runs.devices import find_devices, refuse_gradients  # most plans have one

        group = find_devices("plan", target, devices)
    if group is not None:
        refuse_gradients("plan", source.adapter, arrays)
        target = group.target
    if rounds is not None:
        kernel = round_kernel(kernel, rounds, target.adapter)
        if gradient:
            raise PlanError(
                f"plan: gradient={gradient!r} beside rounds=, but a loop that ends by its values "
                "has none. Leave it out."
            )
        gradient = False
    statics, traced = known_shared("plan", kernel, shared)
    missing = missing_shared(kernel, shared)
    memory = MemoryRequest(budget, peak, gradient, statics, traced, missing)
    return plan_columns(
        "plan", kernel, columns, source, target, memory, slots=slots, rows=rows, order=order,
        overflow=overflow, costs=costs, passes=passes, headroom=headroom, offsets=offsets,
        group=group, keep=not on_disk,
    )  # fmt: skip


def plan_columns(
    where: str,
    kernel: Kernel,
    columns: Columns,
    source: Place,
    target: Place,
    memory: MemoryRequest | None = None,
    *,
    slots: Slots = None,
    rows: int | Sequence[int] | None = None,
    order: Literal["given", "cheapest"] = "given",
    overflow: Literal["error", "extend"] = "error",
    costs: Costs | None = None,
    passes: int = 1,
    headroom: float | None = None,
    offsets: Offsets = "corner",
    group: Group | None = None,
    keep: bool = True,
    fill: bool = False,
) -> Plan:
    """Plan columns that are bound already; without a request for memory none is looked at."""
    costs = costs or _own_costs(kernel, target)
    if not isinstance(passes, int | float | np.integer) or not 1 <= passes < np.inf:
        raise PlanError(f"{where}: passes={passes!r}; it is a number from 1: a plan runs once.")
    costs = replace(costs, compile_seconds=costs.compile_seconds / passes)
    sizes = columns.lengths
    terms = 1 if memory is None or memory.missing else kernel.count_terms(memory.shared)
    options = kernel.pricing(terms)
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
    made = place_items(where, made, offsets)
    refuse_moved_targets(where, kernel, moved_dims(made))
    from stowplan.runs.packing import KernelPacking  # planning needs it, importing does not

    made = replace(
        made, on=target.adapter.name, costs=costs, item_bytes=_item_bytes(kernel, columns),
        packing=KernelPacking(kernel),
    )  # fmt: skip
    if columns.stored:
        from stowplan.runs.load_budgets import fit_loads  # most data are in memory

        def fit_part(part: Columns, own: Plan, memory: MemoryRequest | None, by_hand: Any) -> Plan:
            return fit_rows(
                where, kernel, part, own, source, target, memory, rows=by_hand, terms=terms
            )

        return fit_loads(
            where, kernel, columns, made, target, memory, fit_part,
            rows=rows, keep=keep, fill=fill,
        )  # fmt: skip
    share = None if group is None else functools.partial(_shared, kernel, group)
    fitted = fit_rows(
        where, kernel, columns, made, source, target, memory, rows=rows, terms=terms,
        devices=1 if group is None else len(group.places), share=share,
    )  # fmt: skip
    return fitted if share is None else share(fitted)


def _shared(kernel: Kernel, group: Group, plan: Plan) -> Plan:
    """Share a plan out among devices as its run or iteration does; rows of slots are kept."""
    from stowplan.planners.shards import cheapest_shares, share_devices  # many have one device

    if isinstance(kernel, RoundKernel):
        return share_devices(plan, group.names, by="items", keep_rows=True)
    return cheapest_shares(plan, group.names, program=group.one_program)


def _refuse_no_list(where: str, slots: object) -> None:
    if not isinstance(slots, Sequence):
        raise PlanError(
            f"{where}: slots={slots!r}; give how many to choose, 'exact', or a list of slots: "
            "slots=[{...}]."
        )


def _own_costs(kernel: Kernel, place: Place) -> Costs:
    """Give the constants of a kernel; a batch of an eager iteration launches a round at least."""
    costs = known_costs(kernel, place)
    if place.adapter.compiles or costs.rounds or not isinstance(kernel, RoundKernel):
        return costs
    return replace(costs, launch_seconds=costs.launch_seconds * kernel.rounds.every)


_measured: dict[tuple[Kernel, str, str], Costs] = {}


def known_costs(kernel: Kernel, place: Place) -> Costs:
    """Give measured constants for a kernel where there are some, else those shipped."""
    adapter = place.adapter
    shipped = Costs(adapter.work_seconds, adapter.launch_seconds, adapter.compile_seconds)
    return _measured.get((_key(kernel), adapter.name, str(place.device)), shipped)


def remember_costs(kernel: Kernel, place: Place, costs: Costs) -> None:
    """Use these constants for all later plans of the kernel there."""
    _measured[_key(kernel), place.adapter.name, str(place.device)] = costs


def _key(kernel: Kernel) -> Kernel:
    """Give the kernel that costs are kept for: of a round its step."""
    return kernel.step if isinstance(kernel, RoundKernel) else kernel


def _item_bytes(kernel: Kernel, columns: Columns) -> str:
    """Bytes of an item's columns, an expression of dims."""
    terms = []
    for array, core in zip(columns.arrays, kernel.signature.inputs, strict=True):
        tail = math.prod(array.shape[1:]) * dtype_bytes(array.dtype)
        terms.append(" * ".join([*kernel.ragged_dims(core), str(tail)]))
    return " + ".join(terms) or "1"
