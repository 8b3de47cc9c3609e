"""Put every item into a slot that holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError
from stowplan.planners.batches import Batch, Plan, fill_batches
from stowplan.planners.classes import distinct_rows
from stowplan.planners.fitting import Fitter, overflow_message, read_limits, slot_code
from stowplan.planners.sizes import (
    Sizes,
    SizeTable,
    refuse_overflow,
    size_table,
)

__all__ = ["add_catch_all", "assign_exact", "assign_slots", "assign_table"]

Slots: TypeAlias = Sequence[Mapping[str, int]]


def assign_slots(
    sizes: Sizes,
    slots: Slots,
    *,
    order: Literal["given", "cheapest"] = "given",
    overflow: Literal["error", "extend"] = "error",
    work: str | None = None,
    derived: Mapping[str, str] | None = None,
    exact: Sequence[str] = (),
    items: int | None = None,
) -> Plan:
    """Put each item into the first slot that holds it on every dim.

    Parameters
    ----------
    sizes : mapping of dim to integers (items,)
        Length of each item along each ragged dim; 0 is legal.
    slots : sequence of mappings
        Limits by dim or derived name, and optionally ``"rows"``. A dim without a limit gets
        the longest item that enters; a limit on a derived name only decides what enters. A
        slot that leaves an exact dim open becomes one slot for each of its sizes.
    order : {"given", "cheapest"}
        Try the slots as listed, or sorted by the work of one row.
    overflow : {"error", "extend"}
        "extend" adds a slot for the items that fit none, listed last, and says so.
    work, derived, exact
        As in `stowplan.kernel`.
    items : int, optional
        Number of items, where no dim is ragged.

    Returns
    -------
    Plan
        One batch per non-empty slot, or batches of exactly ``"rows"`` rows where a slot
        carries them.

    Raises
    ------
    PlanError
        For an item that fits no slot, and for limits that are no positive integers.

    Examples
    --------
    >>> sizes = {"atoms": [2, 3], "k": [9, 40]}
    >>> plan = assign_slots(sizes, [{"atoms": 4, "k": 16}, {"atoms": 4, "k": 64}])
    >>> [batch.items.tolist() for batch in plan.batches]
    [[0], [1]]
    """
    if order not in ("given", "cheapest"):
        raise PlanError(f'assign_slots: order={order!r}; allowed are "given" and "cheapest"')
    if overflow not in ("error", "extend"):
        raise PlanError(f'assign_slots: overflow={overflow!r}; allowed are "error" and "extend"')
    table = size_table("assign_slots", sizes, work, derived, exact, items)
    return assign_table("assign_slots", table, slots, order=order, overflow=overflow)


def assign_table(
    who: str,
    table: SizeTable,
    slots: Slots,
    *,
    order: Literal["given", "cheapest"],
    overflow: Literal["error", "extend"] | None = None,
    noun: str = "slot",
) -> Plan:
    """Assign sizes that are checked already; errors begin with `who` and call a slot `noun`.

    They offer to extend the slots where the caller takes `overflow`.
    """
    limits = [
        read_limits(slot, f"{who}: {noun} {index}", table.measure)
        for index, slot in enumerate(slots)
    ]
    fitter = Fitter(table)
    limits = [part for limit in limits for part in fitter.split_exact(limit)]
    costs = [fitter.row_work(limit) for limit in limits]
    warnings: list[str] = []
    if order == "cheapest":
        ranks = sorted(range(len(limits)), key=costs.__getitem__)
        limits, costs = [limits[i] for i in ranks], [costs[i] for i in ranks]
    elif any(after < before for before, after in pairwise(costs)):
        warnings += fitter.starved(limits, costs)
    choice = fitter.first_fit(limits)
    left = choice == len(limits)
    if left.any():
        if overflow != "extend":
            members, offer = fitter.counts_of(left), overflow is not None
            raise PlanError(
                overflow_message(who, table, members, limits, costs, noun=noun, extends=offer)
            )
        added = fitter.tight(left)
        choice[left] = fitter.first_fit(added, left) + len(limits)
        warnings.append(
            f"{who}: {int(fitter.weights[left].sum())} of {len(table.lengths)} items fit "
            f'no slot; overflow="extend" added {", ".join(map(slot_code, added))}'
        )
        limits += added
    resolved = [fitter.resolve(limit, choice == index) for index, limit in enumerate(limits)]
    return _build(who, table, resolved, fitter.inverse(choice), tuple(warnings), "given")


def assign_exact(
    sizes: Sizes,
    *,
    work: str | None = None,
    derived: Mapping[str, str] | None = None,
    exact: Sequence[str] = (),
    items: int | None = None,
) -> Plan:
    """Give every distinct size a slot of its own, cheapest first: nothing is padded.

    >>> plan = assign_exact({"atoms": [3, 2, 3]})
    >>> plan.slots, [batch.items.tolist() for batch in plan.batches]
    (({'atoms': 2}, {'atoms': 3}), [[1], [0, 2]])
    """
    table = size_table("assign_exact", sizes, work, derived, exact, items)
    classes, inverse, _ = distinct_rows(table.padded)
    ranks = np.argsort(table.measure.cost(classes), kind="stable")
    place = np.empty_like(ranks)
    place[ranks] = np.arange(len(ranks))
    dims = table.measure.dims
    slots = [dict(zip(dims, row, strict=True)) for row in classes[ranks].tolist()]
    return _build("assign_exact", table, slots, place[inverse], (), "exact")


def add_catch_all(plan: Plan, headroom: float) -> Plan:
    """Add an empty slot with one row, listed last, for larger items of later sets.

    Raises
    ------
    PlanError
        For headroom below 1 or not finite, and where there is no size that it could multiply.

    >>> plan = add_catch_all(assign_slots({"atoms": [2, 3]}, [{"atoms": 4}]), 1.5)
    >>> plan.slots[-1]
    {'atoms': 6, 'rows': 1}
    """
    if isinstance(headroom, bool) or not isinstance(headroom, int | float | np.number):
        raise PlanError(f"plan: headroom={headroom!r}; it is a factor on the largest sizes: 1.5")
    if not 1 <= headroom < np.inf:
        raise PlanError(f"plan: headroom={headroom}; it multiplies the largest sizes: at least 1")
    if plan.exact:
        raise PlanError(
            f"plan: headroom={headroom}, but {', '.join(plan.exact)} must be equal within a slot, "
            "so that no slot holds all sizes to come. Leave headroom out; give later sets "
            'overflow="extend".'
        )
    if not plan.slots or not plan.dims:
        missing = "ragged dims" if plan.slots else "items"
        raise PlanError(f"plan: headroom={headroom}, but there are no {missing} to give it to.")
    largest = np.array([[slot[dim] for dim in plan.dims] for slot in plan.slots]).max(axis=0)
    lengths = [math.ceil(headroom * length) for length in largest.tolist()]
    slot = dict(zip(plan.dims, lengths, strict=True))
    return replace(plan, slots=(*plan.slots, {**slot, "rows": 1}), headroom=True)


def _build(
    who: str,
    table: SizeTable,
    slots: Sequence[dict[str, int]],
    choice: NDArray[np.intp],
    warnings: tuple[str, ...],
    mode: str,
) -> Plan:
    """One batch for each slot with items, or batches of as many rows as the slot carries."""
    dims = table.measure.dims
    batches: list[Batch] = []
    for index, members in enumerate(group_items(choice, len(slots))):
        slot = slots[index]
        capacity = tuple(slot[name] for name in dims)
        rows = slot.get("rows", len(members))
        refuse_overflow(who, slot.get("rows", 1), capacity, dims)
        if len(members):
            batches += fill_batches(members, capacity, index, rows)
    return Plan(
        dims=dims,
        lengths=table.lengths,
        slots=tuple(slots),
        batches=tuple(batches),
        work=table.measure.work.text,
        derived={name: e.text for name, e in table.measure.derived.items()},
        mode=mode,
        exact=table.exact,
        warnings=warnings,
    )


def group_items(choice: NDArray[np.intp], groups: int) -> list[NDArray[np.intp]]:
    """Items of each group, in input order."""
    if groups == 1:
        return [np.arange(len(choice))]
    # NumPy's stable sort is a radix sort for 16-bit keys.
    keys = choice.astype(np.uint16) if groups <= 1 << 16 else choice
    order = np.argsort(keys, kind="stable").astype(np.intp, copy=False)
    return np.split(order, np.cumsum(np.bincount(choice, minlength=groups))[:-1]) if groups else []
