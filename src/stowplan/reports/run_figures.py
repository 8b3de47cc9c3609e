"""Figures of a run: memory of its batches, devices in time, predicted against measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from stowplan.memory import show_bytes
from stowplan.planners.batches import Plan
from stowplan.planners.shards import summarise_shards
from stowplan.planners.tables import format_seconds
from stowplan.reports.axes import (
    CYCLE,
    GRID,
    INK,
    ROW,
    SLOT,
    USEFUL,
    Picture,
    add_legend,
    label_axes,
    new_axes,
    time_ticks,
    whole_ticks,
)
from stowplan.reports.records import RunRecord
from stowplan.reports.schedules import schedule

__all__ = [
    "draw_memory",
    "draw_run",
    "draw_timeline",
]

SHOWN_DEVICES, SHOWN_BATCHES = 24, 200


def draw_memory(plan: Plan) -> Picture | None:
    """Draw the predicted peak of each batch and the budget; None where nothing was predicted."""
    forecast = plan.memory
    if forecast is None or not forecast.batch_bytes or not plan.batches:
        return None
    peaks = np.array([forecast.batch_bytes[batch.slot] for batch in plan.batches], np.float64)
    figure, axes = new_axes()
    many = len(peaks) > SHOWN_BATCHES
    held = np.full(len(peaks), float(forecast.held_bytes))
    edges = np.arange(len(peaks) + 1) - 0.5
    if many:  # one outline instead of hundreds of bars
        axes.stairs(held, edges, fill=True, color=SLOT, label="held beside it")
        axes.stairs(held + peaks, edges, baseline=held, fill=True, color=USEFUL, label="batch")
    else:
        axes.bar(np.arange(len(peaks)), peaks, bottom=held, color=USEFUL, width=0.8, label="batch")
        if held.any():
            axes.bar(np.arange(len(peaks)), held, color=SLOT, width=0.8, label="held beside it")
    budget, top = forecast.budget.bytes, float((held + peaks).max())
    if budget <= 20 * top:
        axes.axhline(budget, color=ROW, linewidth=1.5, linestyle=(0, (4, 2)), label="budget")
        caption = "Peak of each batch against the budget."
    else:
        caption = f"The budget, {show_bytes(budget)}, is {budget / top:.0f} times the highest bar."
    top = max(top, budget if budget <= 20 * top else 0)
    step = 2 ** max(math.ceil(math.log2(max(top, 1) / 5)), 0)
    steps = np.arange(0, 1.1 * top, step).tolist()
    axes.set_yticks(steps, [show_bytes(value) if value else "0" for value in steps])
    axes.set_ylim(0, 1.1 * top)
    whole_ticks(axes, 0, len(peaks) - 1)
    label_axes(axes, "batch", "predicted bytes")
    add_legend(figure)
    caption += f" From {'; '.join(forecast.sources[:2])}."
    return Picture("Memory of each batch", caption, figure)


def draw_timeline(plan: Plan) -> Picture:
    """Draw what each device does when."""
    spans = schedule(plan)
    devices = max(len(plan.devices), 1)
    shown = min(devices, SHOWN_DEVICES)
    figure, axes = new_axes(1.2 + 0.24 * max(shown, 2))
    slots = sorted({span.slot for span in spans if span.slot is not None})
    groups: dict[int | None, list[Any]] = {}
    for span in spans:
        if span.device < shown:
            groups.setdefault(span.slot, []).append(span)
    for slot, group in sorted(
        groups.items(), key=lambda entry: -1 if entry[0] is None else entry[0]
    ):
        colour = GRID if slot is None else CYCLE[slot % len(CYCLE)]
        label = "compiling" if slot is None else f"slot {slot}" if len(slots) <= 6 else None
        stops = np.array([[span.device, span.start, span.stop] for span in group])
        axes.barh(
            stops[:, 0], stops[:, 2] - stops[:, 1], left=stops[:, 1], height=0.7, color=colour,
            label=label, edgecolor="none", linewidth=0,
        )  # fmt: skip
    last = max((span.stop for span in spans), default=0.0)
    names = list(plan.devices) or [plan.on or "device"]
    axes.set_yticks(np.arange(shown), [_short_name(name) for name in names[:shown]])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_xlim(0, last * 1.02 or 1.0)
    time_ticks(axes, "x", last * 1.02)
    label_axes(axes, "predicted time")
    if axes.get_legend_handles_labels()[0]:
        add_legend(figure, 4)
    caption = f"Done in {format_seconds(last)}"
    if devices > 1:
        imbalance = summarise_shards(plan).imbalance
        caption += f"; imbalance {imbalance:.2f}, the last device's time over the mean"
    caption += ". Colours are slots."
    if shown < devices:
        caption += f" {shown} of {devices} devices are drawn."
    return Picture("Timeline" + (" of devices" if devices > 1 else ""), caption, figure)


def draw_run(run: RunRecord) -> Picture:
    """Draw predicted beside measured time and memory."""
    forecast = run.plan.memory
    peak = forecast.peak_bytes if forecast is not None else None
    pairs: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("time", run.plan.predicted_seconds, run.seconds or 0.0, format_seconds)
    ]
    if run.peak_bytes is not None:
        pairs.append(("memory", float(peak or 0), float(run.peak_bytes), show_bytes))
    figure, axes = new_axes(2.5, len(pairs))
    for one, (name, predicted, measured, show) in zip(np.atleast_1d(axes), pairs, strict=True):
        bars = one.bar([0, 1], [predicted, measured], color=[USEFUL, SLOT], width=0.6)
        told = [show(predicted) if predicted else "not known", show(measured)]
        one.bar_label(bars, told, color=INK, fontsize=8.5, padding=2)
        one.set_xticks([0, 1], ["predicted", "measured"])
        one.set_xlim(-0.6, 1.6)
        one.set_ylim(0, 1.2 * max(predicted, measured) or 1.0)
        one.set_yticks([])
        one.set_title(name, fontsize=9, color=INK)
        one.grid(visible=False)
    caption = "Predicted by the costs of the plan, and measured."
    if run.peak_bytes is not None:
        caption += f" Memory: {run.memory}."
    return Picture("Predicted and measured", caption, figure)


def _short_name(name: str) -> str:
    return name if len(name) <= 14 else "…" + name[-13:]
