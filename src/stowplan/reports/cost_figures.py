"""Figures of where the work goes, and of what other numbers of slots would give."""

from __future__ import annotations

from typing import Any

import numpy as np

from stowplan.planners.batches import Plan
from stowplan.planners.tables import format_seconds
from stowplan.reports.axes import (
    GRID,
    ROW,
    SLOT,
    USEFUL,
    Picture,
    add_legend,
    label_axes,
    new_axes,
    show_percents,
    time_ticks,
    whole_ticks,
)
from stowplan.reports.curves import Curve
from stowplan.reports.padding import Padding, measure_padding

__all__ = [
    "draw_curve",
    "draw_measures",
    "draw_occupancy",
    "draw_seconds",
]

SHOWN_SLOTS = 14


def draw_occupancy(plan: Plan) -> Picture:
    """Draw what each slot spends on items, on padding them and on empty rows."""
    found = measure_padding(plan)
    padded = found.padded
    used = np.flatnonzero(padded > 0)
    order = used[np.argsort(-padded[used], kind="stable")]
    shown = np.sort(order[:SHOWN_SLOTS]) if len(order) > SHOWN_SLOTS else used
    rest = np.setdiff1d(used, shown)
    parts = [
        np.append(part[shown], [part[rest].sum()] if len(rest) else [])
        for part in (found.useful, found.slot_padding, found.row_padding)
    ]
    names = [f"slot {slot}" for slot in shown.tolist()]
    names += [f"{len(rest)} others"] if len(rest) else []
    figure, axes = new_axes(1.1 + 0.22 * max(len(names), 4))
    _bars(axes, np.arange(len(names)), Padding(*parts), max(float(padded.sum()), 1e-300))
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_xlim(0, None)
    show_percents(axes.xaxis)
    label_axes(axes, f"share of all padded work ({_short(plan.work)})")
    add_legend(figure)
    caption = (
        "Slot padding: items are shorter than the capacity of their slot. Row padding: rows of a "
        "batch that no item needed."
    )
    return Picture("Where the work goes", caption, figure)


def draw_measures(plan: Plan) -> Picture:
    """Draw occupancy of the plan by work, rows and bytes."""
    names = ["work", "rows", *(["bytes"] if plan.item_bytes else [])]
    totals = [measure_padding(plan, name).total for name in names]  # type: ignore[arg-type]  # one of By
    parts = [
        np.array([float(getattr(total, part)[0] / (total.padded[0] or 1.0)) for total in totals])
        for part in ("useful", "slot_padding", "row_padding")
    ]
    figure, axes = new_axes(1.1 + 0.3 * max(len(names), 3))
    _bars(axes, np.arange(len(names)), Padding(*parts), 1.0)
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_xlim(0, 1)
    show_percents(axes.xaxis)
    add_legend(figure)
    caption = "Work is what costs time; rows count items alone"
    caption += ", bytes what is held." if plan.item_bytes else "."
    return Picture("Occupancy in all", caption, figure)


def draw_curve(plan: Plan, curve: Curve) -> Picture:
    """Draw occupancy against the number of slots, with the knee and the plan."""
    figure, axes = new_axes()
    axes.plot(curve.counts, curve.occupancy, color=USEFUL, marker="o", markersize=4, linewidth=1.6,
              label="best slots")  # fmt: skip
    knee = curve.knee
    axes.plot(curve.counts[knee], curve.occupancy[knee], linestyle="none", marker="o",
              markersize=10, markerfacecolor="none", markeredgecolor=ROW, markeredgewidth=1.6,
              label=f"knee: {curve.counts[knee]}")  # fmt: skip
    used = sum(1 for rows in plan.rows if rows)
    own = {"linestyle": "none", "marker": "D", "markersize": 6, "color": SLOT}
    beyond = used > 2 * int(curve.counts[-1])
    if beyond:
        axes.axhline(plan.occupancy(), color=SLOT, linewidth=1.4, linestyle=(0, (4, 2)),
                     label=f"this plan: {used}")  # fmt: skip
    else:
        axes.plot(used, plan.occupancy(), label=f"this plan: {used}", **own)
    whole_ticks(axes, int(curve.counts[0]), max(int(curve.counts[-1]), 0 if beyond else used))
    axes.set_ylim(0, 1.04)
    show_percents(axes.yaxis)
    label_axes(axes, "slots", "occupancy by work")
    add_legend(figure)
    caption = "Useful / padded work of the best slots of each number; past the knee another slot "
    caption += "brings little."
    return Picture("Occupancy and number of slots", caption, figure)


def draw_seconds(plan: Plan, curve: Curve) -> Picture:
    """Draw predicted time against the number of slots: work, launches, compiles."""
    figure, axes = new_axes()
    bottom = np.zeros(len(curve.counts))
    parts = [
        (curve.work_seconds, USEFUL, "padded work"),
        (curve.launch_seconds, SLOT, "launches"),
        (curve.compile_seconds, ROW, "compiles"),
    ]
    for part, colour, label in parts:
        if part.any():
            axes.bar(curve.counts, part, bottom=bottom, color=colour, width=0.7, label=label)
            bottom = bottom + part
    whole_ticks(axes, int(curve.counts[0]), int(curve.counts[-1]))
    if bottom.max() > 0:
        axes.set_ylim(0, 1.08 * bottom.max())
    time_ticks(axes, "y", 1.08 * float(bottom.max()))
    label_axes(axes, "slots", "predicted time")
    add_legend(figure)
    best = int(curve.counts[curve.cheapest])
    caption = f"Cheapest with {best}, with one batch in each slot. "
    compiles = plan.costs is not None and plan.costs.compile_seconds
    caption += (
        f"Each slot compiles once, {format_seconds(plan.costs.compile_seconds)}."
        if compiles and plan.costs is not None
        else "Nothing compiles by the costs of this plan."
    )
    return Picture("Cost and number of slots", caption, figure)


def _bars(axes: Any, places: Any, found: Padding, scale: float) -> None:
    """Stack what is useful, slot padding and row padding."""
    left = np.zeros(len(found.useful))
    for part, colour, label in (
        (found.useful, USEFUL, "useful"),
        (found.slot_padding, SLOT, "slot padding"),
        (found.row_padding, ROW, "row padding"),
    ):
        share = np.maximum(part, 0.0) / scale
        axes.barh(places, share, left=left, color=colour, height=0.7, label=label)
        left = left + share


def _short(text: str) -> str:
    return text if len(text) <= 28 else text[:26] + " …"
