"""A plan as a table: what it costs, where it pads, and what else would cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from stowplan.planners.batches import Plan

__all__ = ["aligned", "format_seconds", "slot_facts", "summarise", "table"]

SHOWN_SLOTS = 16


def format_seconds(seconds: float) -> str:
    """Three digits and a unit.

    >>> format_seconds(0.00234), format_seconds(81.2), format_seconds(7300)
    ('2.34 ms', '81.2 s', '2.03 h')
    """
    for unit, size in (("h", 3600.0), ("min", 120.0), ("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / (60.0 if unit == 'min' else size):.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells, each column as wide as its widest.

    >>> aligned([["slot", "k"], ["0", "4096"]])
    ['slot     k', '   0  4096']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def slot_facts(plan: Plan) -> list[dict[str, Any]]:
    """Capacities, rows, batches, items and occupancy of each slot."""
    useful = plan.measure.cost(plan.lengths)
    slots: list[dict[str, Any]] = [
        {**slot, "rows": rows, "batches": 0, "items": 0, "useful": 0.0, "padded": 0.0}
        for slot, rows in zip(plan.slots, plan.rows, strict=True)
    ]
    for batch in plan.batches:
        slot = slots[batch.slot]
        slot["batches"] += 1
        slot["items"] += batch.count
        slot["useful"] += float(useful[batch.items[: batch.count]].sum())
        capacity = np.array([batch.capacity], np.int64)
        slot["padded"] += len(batch.items) * float(plan.measure.cost(capacity)[0])
    for slot in slots:
        spent, padded = slot.pop("useful"), slot.pop("padded")
        slot["occupancy"] = spent / padded if padded else None
    return slots


def summarise(plan: Plan) -> dict[str, Any]:
    """Numbers of the table as plain values: fit for JSON."""
    from stowplan.planners.alternatives import predict_alternatives

    found = {
        "mode": plan.mode,
        "on": plan.on,
        "work": plan.work,
        "items": len(plan.lengths),
        "slots": slot_facts(plan),
        "batches": len(plan.batches),
        "shapes": len(plan.shapes),
        "occupancy": plan.occupancy(),
        "rows_occupancy": plan.rows_occupancy,
        "bytes_occupancy": plan.occupancy(plan.item_bytes) if plan.item_bytes else None,
        "predicted_seconds": plan.predicted_seconds,
        "predicted_bytes": plan.memory.peak_bytes if plan.memory else None,
        "budget_bytes": plan.memory.budget.bytes if plan.memory else None,
        "alternatives": plan.alternatives
        or predict_alternatives(plan, chosen=plan.mode != "chosen"),
        "warnings": list(plan.warnings),
    }
    return {**found, **_shared(plan)} if plan.devices else found


def _shared(plan: Plan) -> dict[str, Any]:
    """What each device of a shared plan does, when it is done, and what else would take."""
    from stowplan.planners.shards import share_devices, summarise_shards

    shards = summarise_shards(plan)
    columns = (shards.batches, shards.items, shards.shapes, shards.seconds)
    names = ("batches", "items", "shapes", "predicted_seconds")
    rows = zip(plan.devices, *(column.tolist() for column in columns), strict=True)
    other = {"work": "rows", "rows": "work"}.get(str(plan.shared_by))
    found: dict[str, Any] = {
        "shared_by": plan.shared_by,
        "devices": [{"device": d, **dict(zip(names, row, strict=True))} for d, *row in rows],
        "imbalance": shards.imbalance,
    }
    if other is not None and plan.costs is not None and plan.costs.compile_seconds:
        shared = share_devices(plan, plan.devices, by=other)  # type: ignore[arg-type]  # one of By
        found["shared_otherwise"] = {other: shared.predicted_seconds}
    return found


def table(plan: Plan) -> str:
    """The table that ``print(plan)`` shows."""
    facts = summarise(plan)
    on = f" on {plan.on}" if plan.on else ""
    head = f"plan ({facts['mode']}{on}): {facts['items']} items, {len(plan.slots)} slots, "
    lines = [head + f"{facts['batches']} batches, {facts['shapes']} shapes"]
    if plan.slots:
        lines += _slot_lines(facts["slots"], plan.dims)
    parts = [f"{_percent(facts['occupancy'])} of work ({plan.work})"]
    parts.append(f"{_percent(facts['rows_occupancy'])} of rows")
    if facts["bytes_occupancy"] is not None:
        parts.append(f"{_percent(facts['bytes_occupancy'])} of bytes")
    lines.append("occupancy  " + ", ".join(parts))
    lines.append(f"predicted  {format_seconds(facts['predicted_seconds'])}")
    if plan.costs is not None and plan.costs.compile_seconds:
        most = plan.kernels * facts["shapes"]
        each = f"{plan.kernels} kernels x {facts['shapes']} shapes"
        lines.append(f"compiles   {f'at most {most}, {each}' if plan.kernels > 1 else most}")
    if plan.memory is not None:
        lines += plan.memory.lines()
    if plan.devices:
        lines += _device_lines(facts)
    others = [f"{name} {format_seconds(s)}" for name, s in facts["alternatives"].items()]
    lines.append("instead    " + ", ".join(others))
    lines += [f"warning    {warning}" for warning in facts["warnings"]]
    return "\n".join(lines)


def _slot_lines(slots: list[dict[str, Any]], dims: tuple[str, ...]) -> list[str]:
    head = ["slot", *dims, "rows", "batches", "items", "occupancy"]
    rows = [head]
    for index, slot in enumerate(slots):
        cells = [str(slot[name]) for name in head[1:-1]]
        share = slot["occupancy"]
        rows.append([str(index), *cells, "-" if share is None else _percent(share)])
    hidden = len(slots) - SHOWN_SLOTS
    if hidden > 0:
        rows = rows[: 1 + SHOWN_SLOTS // 2] + rows[-SHOWN_SLOTS // 2 :]
    lines = aligned(rows)
    if hidden > 0:
        lines.insert(1 + SHOWN_SLOTS // 2, f"... {hidden} more slots")
    return lines


def _device_lines(facts: dict[str, Any]) -> list[str]:
    """Per device what it computes and when it is done; how they share, and what else would take."""
    from stowplan.planners.shards import HOW

    devices = facts["devices"]
    head = ["device", "batches", "items", "shapes", "done in"]
    cells = [
        [*(str(one[name]) for name in head[:-1]), format_seconds(one["predicted_seconds"])]
        for one in devices[:SHOWN_SLOTS]
    ]
    line = f"shared     {len(devices)} devices, {HOW[facts['shared_by']]}; imbalance "
    line += f"{facts['imbalance']:.2f} (last / mean)"
    for by, seconds in facts.get("shared_otherwise", {}).items():
        line += f"; instead {HOW[by]}: {format_seconds(seconds)}"
    hidden = len(devices) - len(cells)
    more = [f"... {hidden} more devices"] if hidden else []
    return [line, *aligned([head, *cells]), *more]
