"""The figures of a report: drawn by matplotlib, as PNG, SVG or inline in a page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.extras import import_extra
from stowplan.memory import show_bytes
from stowplan.planners.batches import Plan
from stowplan.planners.shards import summarise_shards
from stowplan.planners.tables import format_seconds
from stowplan.reports.curves import Curve, occupancy_curve
from stowplan.reports.padding import Padding, measure_padding
from stowplan.reports.records import RunRecord
from stowplan.reports.schedules import schedule

__all__ = ["COLOURS", "Picture", "draw_figures"]

INK, MUTED, GRID = "#1a1c1e", "#5f6b76", "#d8dee4"
USEFUL, SLOT, ROW = "#0072b2", "#e69f00", "#cc5500"
CYCLE = ("#0073b3", "#009e73", "#cc79a7", "#56b4e9", "#d55e01", "#b8a100", "#7a68b3", "#8c6d5a")
"""After Okabe and Ito, whom the colour-blind tell apart."""
COLOURS = {
    INK: "ink", MUTED: "muted", GRID: "grid", USEFUL: "useful", SLOT: "slot", ROW: "row",
    **{colour: f"c{number}" for number, colour in enumerate(CYCLE)},
}  # fmt: skip
"""Names by which a page gives these colours, light or dark."""

WIDTH, HEIGHT = 4.4, 3.0  # inches
POINTS = 2000  # items that are drawn one by one; more are counted in bins
BINS = (44, 32)
LEVELS = 6
SHOWN_DIMS, SHOWN_PAIRS = 6, 3
SHOWN_SLOTS, SHOWN_OUTLINES = 14, 24
SHOWN_DEVICES, SHOWN_BATCHES = 24, 200
UNITS = (3600.0, 60.0, 1.0, 1e-3, 1e-6)  # of format_seconds
WIDE = 20.0  # longest / shortest from which on an axis is logarithmic


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure and what it shows.

    Attributes
    ----------
    title, caption : str
        What stands above and below it.
    figure : matplotlib.figure.Figure
        ``picture.figure.savefig("curve.svg")`` writes it, as PNG or PDF too.
    """

    title: str
    caption: str
    figure: Any


def draw_figures(
    plan: Plan | RunRecord, *, max_slots: int = 8, curve: Curve | None = None
) -> dict[str, Picture]:
    """Draw all figures that a report of a plan or of a finished run has.

    Parameters
    ----------
    plan : Plan or RunRecord
        A record adds what was measured.
    max_slots : int
        Most slots on the curve.
    curve : Curve, optional
        From `occupancy_curve`, where it is at hand.

    Returns
    -------
    dict of str to Picture
        ``"sizes: DIM"``, ``"scatter: DIM, DIM"``, ``"occupancy"``, ``"measures"``, ``"curve"``,
        ``"seconds"``, ``"memory"``, ``"timeline"`` and ``"run"``: those that the plan has data for.

    Raises
    ------
    MissingDependencyError
        Without matplotlib.

    Examples
    --------
    >>> from stowplan.planners import assign_slots
    >>> plan = assign_slots({"atoms": [2, 3, 9]}, [{"atoms": 4}, {"atoms": 9}])
    >>> pictures = draw_figures(plan)
    >>> list(pictures)
    ['sizes: atoms', 'occupancy', 'measures', 'curve', 'seconds', 'timeline']
    >>> pictures["curve"].figure.savefig("curve.svg")  # doctest: +SKIP
    """
    run = plan if isinstance(plan, RunRecord) else None
    plan = plan.plan if isinstance(plan, RunRecord) else plan
    if not len(plan.lengths):
        return {}
    curve = curve or occupancy_curve(plan, max_slots)
    found: dict[str, Picture | None] = {}
    for dim in plan.dims[:SHOWN_DIMS]:
        found[f"sizes: {dim}"] = _sizes(plan, dim)
    for x, y in _pairs(plan):
        found[f"scatter: {x}, {y}"] = _scatter(plan, x, y)
    found["occupancy"] = _occupancy(plan)
    found["measures"] = _measures(plan)
    if curve is not None:
        found["curve"] = _curve(plan, curve)
        found["seconds"] = _seconds(plan, curve)
    found["memory"] = _memory(plan)
    found["timeline"] = _timeline(plan)
    if run is not None and run.seconds is not None:
        found["run"] = _run(run)
    return {name: picture for name, picture in found.items() if picture is not None}


def _axes(height: float = HEIGHT, columns: int = 1) -> tuple[Any, Any]:
    """Give a figure and its axes in the one look that all have."""
    made = import_extra("report", "matplotlib.figure", "report")
    figure = made.Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for one in axes:
        for side, spine in one.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GRID)
        one.tick_params(which="both", colors=MUTED, labelsize=9, length=3, color=GRID)
        one.grid(axis="y", color=GRID, linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes[0] if columns == 1 else axes


def _label(axes: Any, x: str = "", y: str = "") -> None:
    axes.set_xlabel(x, color=INK, fontsize=9.5)
    axes.set_ylabel(y, color=INK, fontsize=9.5)


def _legend(figure: Any, columns: int = 3) -> None:
    """Put the legend below the axes, where it hides nothing."""
    figure.legend(
        loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=INK,
        handlelength=1.2, columnspacing=1.2, borderpad=0.2,
    )  # fmt: skip


def _percents(axis: Any) -> None:
    """Show shares of one."""
    ticker = import_extra("report", "matplotlib.ticker", "report")
    axis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(ticker.FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))


def _time_ticks(axes: Any, which: str, top: float) -> None:
    """Put ticks at round numbers of the unit that the longest time is shown in."""
    unit = next((unit for unit in UNITS if top >= unit), UNITS[-1])
    step = 10.0 ** math.floor(math.log10(top / unit / 2)) if top > 0 else 1.0
    step *= next((times for times in (1, 2, 5) if top / unit <= 5 * times * step), 10)
    steps = np.arange(0, top, step * unit).tolist()
    names = [format_seconds(value) if value else "0" for value in steps]
    getattr(axes, f"set_{which}ticks")(steps, names)


def _whole(value: float) -> str:
    """Show 4096 as it is and a million in short."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= max(size, 1e5):
            return f"{value / size:.3g}{letter}"
    return f"{value:.5g}"


def _size_axis(axes: Any, which: str, lengths: NDArray[np.int64], capacity: int) -> bool:
    """Scale an axis for sizes up to a capacity; say whether it is logarithmic."""
    ticker = import_extra("report", "matplotlib.ticker", "report")
    low, high = int(lengths.min(initial=capacity)), max(int(lengths.max(initial=1)), capacity)
    axis = getattr(axes, f"{which}axis")
    set_limits = getattr(axes, f"set_{which}lim")
    log = high > WIDE * low
    if log:
        getattr(axes, f"set_{which}scale")("log", base=2 if high < 2**9 * low else 10)
        set_limits(low / 1.3, high * 1.3)
        axis.set_minor_locator(ticker.NullLocator())
    else:
        edge = max(0.06 * (high - low), 0.6)
        set_limits(max(low - edge, 0), high + edge)
        axis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _whole(value)))
    return log


def _bins(low: float, high: float, log: bool, most: int) -> NDArray[np.float64]:
    """Edges of bins; each holds as many whole numbers as its neighbours where they are few."""
    if log:
        edges = np.geomspace(max(low, 1) - 0.5, high + 0.5, most + 1)
        whole = np.unique(np.round(edges - 0.5) + 0.5)
        return whole if len(whole) > 1 else edges
    step = max(-(-int(high - low + 1) // most), 1)
    return np.arange(low - 0.5, high + step + 0.5, step)


def _shown_slots(plan: Plan) -> list[dict[str, int]]:
    """Slots that hold something."""
    return [slot for slot, rows in zip(plan.slots, plan.rows, strict=True) if rows]


def _line(count: int) -> float:
    """Width of a line among so many, which hide what is below them."""
    return max(1.3 * min(1.0, 8 / max(count, 1)), 0.35)


def _sizes(plan: Plan, dim: str) -> Picture:
    lengths = np.maximum(plan.sizes[dim], 1)
    capacities = sorted({slot[dim] for slot in _shown_slots(plan)})
    figure, axes = _axes()
    log = _size_axis(axes, "x", lengths, max(capacities, default=1))
    edges = _bins(float(lengths.min()), float(lengths.max()), log, 40)
    counts, edges = np.histogram(lengths, edges)
    axes.stairs(counts, edges, fill=True, color=USEFUL, label="items")
    filled = counts[counts > 0]
    if filled.max() > 40 * filled.min():
        axes.set_yscale("log")
        axes.set_ylim(0.7, 1.6 * counts.max())
    for number, capacity in enumerate(capacities):
        axes.axvline(
            capacity, color=SLOT, linewidth=_line(len(capacities)), linestyle=(0, (4, 2)),
            label="capacities of slots" if not number else None,
        )  # fmt: skip
    _shown_counts(axes)
    _label(axes, dim, "items")
    _legend(figure)
    middle = f"{int(np.median(plan.sizes[dim])):,}".replace(",", "\N{NO-BREAK SPACE}")
    longest = f"{int(plan.sizes[dim].max()):,}".replace(",", "\N{NO-BREAK SPACE}")
    caption = f"Half of the items have at most {middle}; the longest has {longest}."
    return Picture(f"Sizes: {dim}", caption, figure)


def _shown_counts(axes: Any) -> None:
    ticker = import_extra("report", "matplotlib.ticker", "report")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _whole(value)))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _pairs(plan: Plan) -> list[tuple[str, str]]:
    """Pairs of the dims that differ most between items."""
    lengths = np.maximum(plan.lengths, 1)
    spread = np.log(lengths).std(axis=0)
    dims = sorted(np.argsort(-spread, kind="stable")[:SHOWN_PAIRS].tolist())
    return [(plan.dims[x], plan.dims[y]) for x, y in combinations(dims, 2)]


def _scatter(plan: Plan, x: str, y: str) -> Picture:
    lengths = [np.maximum(plan.sizes[dim], 1) for dim in (x, y)]
    slots = _shown_slots(plan)
    figure, axes = _axes(3.4)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    logs = [
        _size_axis(axes, which, values, max(slot[dim] for slot in slots))
        for which, values, dim in zip("xy", lengths, (x, y), strict=True)
    ]
    if len(plan.lengths) <= POINTS:
        axes.plot(
            *lengths, linestyle="none", marker="o", markersize=4, color=USEFUL, alpha=0.6,
            markeredgewidth=0, label="items", zorder=3,
        )  # fmt: skip
        caption = "Each point is an item; "
    else:
        _density(axes, lengths, logs)
        caption = "The stronger the colour, the more items, on a logarithmic scale; "
    (left, _), (bottom, _) = axes.get_xlim(), axes.get_ylim()
    outlines = slots if len(slots) <= SHOWN_OUTLINES else slots[:: -(-len(slots) // SHOWN_OUTLINES)]
    for number, slot in enumerate(outlines):
        axes.plot(
            [left, slot[x], slot[x]], [slot[y], slot[y], bottom],
            color=SLOT, linewidth=_line(len(outlines)),
            label="slots" if not number else None, solid_joinstyle="miter",
        )  # fmt: skip
    _label(axes, x, y)
    _legend(figure)
    caption += "a slot holds what lies below and left of its corner."
    if len(outlines) < len(slots):
        caption += f" {len(outlines)} of {len(slots)} slots are drawn."
    return Picture(f"Items and slots: {x}, {y}", caption, figure)


def _density(axes: Any, lengths: list[NDArray[np.int64]], logs: list[bool]) -> None:
    """Count items in bins, and fill those of like count by one path."""
    paths = import_extra("report", "matplotlib.path", "report")
    patches = import_extra("report", "matplotlib.patches", "report")
    edges = [
        _bins(float(values.min()), float(values.max()), log, most)
        for values, log, most in zip(lengths, logs, BINS, strict=True)
    ]
    counts, *_ = np.histogramdd(np.stack(lengths, axis=1), bins=edges)
    level = np.ceil(LEVELS * np.log1p(counts) / np.log1p(counts.max())).astype(int)
    for number in range(1, LEVELS + 1):
        places = np.argwhere(level == number)
        if not len(places):
            continue
        i, j = places.T
        x0, x1, y0, y1 = edges[0][i], edges[0][i + 1], edges[1][j], edges[1][j + 1]
        corners = np.stack([x0, y0, x1, y0, x1, y1, x0, y1, x0, y0], axis=1).reshape(-1, 2)
        codes = np.tile([1, 2, 2, 2, 79], len(places)).astype(np.uint8)  # move, lines, close
        patch = patches.PathPatch(
            paths.Path(corners, codes), facecolor=USEFUL, linewidth=0,
            alpha=0.15 + 0.85 * (number - 1) / (LEVELS - 1),
            label="items" if number == LEVELS else None,
        )  # fmt: skip
        axes.add_patch(patch)


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


def _occupancy(plan: Plan) -> Picture:
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
    figure, axes = _axes(1.1 + 0.22 * max(len(names), 4))
    _bars(axes, np.arange(len(names)), Padding(*parts), max(float(padded.sum()), 1e-300))
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_xlim(0, None)
    _percents(axes.xaxis)
    _label(axes, f"share of all padded work ({_short(plan.work)})")
    _legend(figure)
    caption = (
        "Slot padding: items are shorter than the capacity of their slot. Row padding: rows of a "
        "batch that no item needed."
    )
    return Picture("Where the work goes", caption, figure)


def _short(text: str) -> str:
    return text if len(text) <= 28 else text[:26] + " …"


def _measures(plan: Plan) -> Picture:
    names = ["work", "rows", *(["bytes"] if plan.item_bytes else [])]
    totals = [measure_padding(plan, name).total for name in names]  # type: ignore[arg-type]  # one of By
    parts = [
        np.array([float(getattr(total, part)[0] / (total.padded[0] or 1.0)) for total in totals])
        for part in ("useful", "slot_padding", "row_padding")
    ]
    figure, axes = _axes(1.1 + 0.3 * max(len(names), 3))
    _bars(axes, np.arange(len(names)), Padding(*parts), 1.0)
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_xlim(0, 1)
    _percents(axes.xaxis)
    _legend(figure)
    caption = "Work is what costs time; rows count items alone"
    caption += ", bytes what is held." if plan.item_bytes else "."
    return Picture("Occupancy in all", caption, figure)


def _curve(plan: Plan, curve: Curve) -> Picture:
    figure, axes = _axes()
    axes.plot(curve.counts, curve.occupancy, color=USEFUL, marker="o", markersize=4, linewidth=1.6,
              label="best slots")  # fmt: skip
    knee = curve.knee
    axes.plot(curve.counts[knee], curve.occupancy[knee], linestyle="none", marker="o",
              markersize=10, markerfacecolor="none", markeredgecolor=ROW, markeredgewidth=1.6,
              label=f"knee: {curve.counts[knee]}")  # fmt: skip
    used = len(_shown_slots(plan))
    own = {"linestyle": "none", "marker": "D", "markersize": 6, "color": SLOT}
    beyond = used > 2 * int(curve.counts[-1])
    if beyond:
        axes.axhline(plan.occupancy(), color=SLOT, linewidth=1.4, linestyle=(0, (4, 2)),
                     label=f"this plan: {used}")  # fmt: skip
    else:
        axes.plot(used, plan.occupancy(), label=f"this plan: {used}", **own)
    _whole_ticks(axes, int(curve.counts[0]), max(int(curve.counts[-1]), 0 if beyond else used))
    axes.set_ylim(0, 1.04)
    _percents(axes.yaxis)
    _label(axes, "slots", "occupancy by work")
    _legend(figure)
    caption = "Useful / padded work of the best slots of each number; past the knee another slot "
    caption += "brings little."
    return Picture("Occupancy and number of slots", caption, figure)


def _whole_ticks(axes: Any, first: int, last: int) -> None:
    ticker = import_extra("report", "matplotlib.ticker", "report")
    axes.set_xlim(first - 0.6, max(last, first) + 0.6)
    axes.xaxis.set_major_locator(
        ticker.FixedLocator(range(first, last + 1))
        if last - first < 12
        else ticker.MaxNLocator(8, integer=True, min_n_ticks=1)
    )


def _seconds(plan: Plan, curve: Curve) -> Picture:
    figure, axes = _axes()
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
    _whole_ticks(axes, int(curve.counts[0]), int(curve.counts[-1]))
    if bottom.max() > 0:
        axes.set_ylim(0, 1.08 * bottom.max())
    _time_ticks(axes, "y", 1.08 * float(bottom.max()))
    _label(axes, "slots", "predicted time")
    _legend(figure)
    best = int(curve.counts[curve.cheapest])
    caption = f"Cheapest with {best}, with one batch in each slot. "
    compiles = plan.costs is not None and plan.costs.compile_seconds
    caption += (
        f"Each slot compiles once, {format_seconds(plan.costs.compile_seconds)}."
        if compiles and plan.costs is not None
        else "Nothing compiles by the costs of this plan."
    )
    return Picture("Cost and number of slots", caption, figure)


def _memory(plan: Plan) -> Picture | None:
    forecast = plan.memory
    if forecast is None or not forecast.batch_bytes or not plan.batches:
        return None
    peaks = np.array([forecast.batch_bytes[batch.slot] for batch in plan.batches], np.float64)
    figure, axes = _axes()
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
    _whole_ticks(axes, 0, len(peaks) - 1)
    _label(axes, "batch", "predicted bytes")
    _legend(figure)
    caption += f" From {'; '.join(forecast.sources[:2])}."
    return Picture("Memory of each batch", caption, figure)


def _timeline(plan: Plan) -> Picture:
    spans = schedule(plan)
    devices = max(len(plan.devices), 1)
    shown = min(devices, SHOWN_DEVICES)
    figure, axes = _axes(1.2 + 0.24 * max(shown, 2))
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
    _time_ticks(axes, "x", last * 1.02)
    _label(axes, "predicted time")
    if axes.get_legend_handles_labels()[0]:
        _legend(figure, 4)
    caption = f"Done in {format_seconds(last)}"
    if devices > 1:
        imbalance = summarise_shards(plan).imbalance
        caption += f"; imbalance {imbalance:.2f}, the last device's time over the mean"
    caption += ". Colours are slots."
    if shown < devices:
        caption += f" {shown} of {devices} devices are drawn."
    return Picture("Timeline" + (" of devices" if devices > 1 else ""), caption, figure)


def _short_name(name: str) -> str:
    return name if len(name) <= 14 else "…" + name[-13:]


def _run(run: RunRecord) -> Picture:
    forecast = run.plan.memory
    peak = forecast.peak_bytes if forecast is not None else None
    pairs: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("time", run.plan.predicted_seconds, run.seconds or 0.0, format_seconds)
    ]
    if run.peak_bytes is not None:
        pairs.append(("memory", float(peak or 0), float(run.peak_bytes), show_bytes))
    figure, axes = _axes(2.5, len(pairs))
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
