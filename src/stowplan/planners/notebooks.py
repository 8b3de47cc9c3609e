"""A plan as a small HTML table, which notebooks show."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from stowplan.memory import show_bytes
from stowplan.planners.tables import SHOWN_SLOTS, format_seconds, slot_facts

if TYPE_CHECKING:
    from stowplan.planners.batches import Plan

__all__ = ["html_table"]

CELL = "padding:.15em .7em;text-align:right"
BAR = (
    "display:inline-block;width:5em;height:.6em;margin-right:.5em;border:1px solid currentColor;"
    "background:linear-gradient(to right,#0072b2 {0:.0f}%,transparent {0:.0f}%)"
)


def html_table(plan: Plan) -> str:
    """Give slots with their occupancy, and what the plan takes, in any colour scheme.

    Other plans are not tried, unlike in ``print(plan)``, so that it is shown at once.

    >>> from stowplan.planners import assign_slots
    >>> page = html_table(assign_slots({"atoms": [1, 3]}, [{"atoms": 4}]))
    >>> "2 items in 1 slots and 1 batches" in page, "50.0 %" in page
    (True, True)
    """
    slots = slot_facts(plan)
    head = (
        f"<strong>plan</strong> ({escape(plan.mode)}): {len(plan.lengths)} items in {len(slots)} "
        f"slots and {len(plan.batches)} batches"
    )
    names = [*plan.dims, "rows", "batches", "items"]
    lines = [_row(["slot", *names, "occupancy"], "th")]
    for index, slot in enumerate(slots[:SHOWN_SLOTS]):
        share = slot["occupancy"]
        told = "-" if share is None else f"<span style='{BAR.format(100 * share)}'></span>"
        told += "" if share is None else f"{100 * share:.1f} %"
        lines.append(_row([index, *(slot[name] for name in names), told], "td"))
    foot = [
        f"{100 * plan.occupancy():.1f} % of work ({escape(plan.work)})",
        f"{100 * plan.rows_occupancy:.1f} % of rows",
        f"{format_seconds(plan.predicted_seconds)} predicted",
    ]
    if plan.item_bytes:
        foot.insert(2, f"{100 * plan.occupancy(plan.item_bytes):.1f} % of bytes")
    if plan.memory is not None and plan.memory.peak_bytes is not None:
        budget = show_bytes(plan.memory.budget.bytes)
        foot.append(f"{show_bytes(plan.memory.peak_bytes)} at its peak of {budget}")
    if len(slots) > SHOWN_SLOTS:
        foot.insert(0, f"{len(slots) - SHOWN_SLOTS} more slots")
    warnings = "".join(f"<div>warning: {escape(warning)}</div>" for warning in plan.warnings)
    return (
        f"<div><div>{head}</div><table style='border-collapse:collapse'>{''.join(lines)}</table>"
        f"<div>{'; '.join(foot)}</div>{warnings}</div>"
    )


def _row(cells: list[Any], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag} style='{CELL}'>{cell}</{tag}>" for cell in cells) + "</tr>"
