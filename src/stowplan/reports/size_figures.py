"""Figures of sizes, with the slots drawn on them."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.extras import import_extra
from stowplan.planners.batches import Plan
from stowplan.reports.axes import (
    GRID,
    SLOT,
    USEFUL,
    Picture,
    add_legend,
    label_axes,
    new_axes,
    scale_sizes,
    show_counts,
)

__all__ = [
    "draw_scatter",
    "draw_sizes",
    "spread_pairs",
]

POINTS = 2000  # items that are drawn one by one; more are counted in bins
BINS = (44, 32)
LEVELS = 6
SHOWN_PAIRS, SHOWN_OUTLINES = 3, 24


def draw_sizes(plan: Plan, dim: str) -> Picture:
    """Draw how many items have which size, and the capacities of slots."""
    lengths = np.maximum(plan.sizes[dim], 1)
    capacities = sorted({slot[dim] for slot in used_slots(plan)})
    figure, axes = new_axes()
    log = scale_sizes(axes, "x", lengths, max(capacities, default=1))
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
    show_counts(axes)
    label_axes(axes, dim, "items")
    add_legend(figure)
    middle = f"{int(np.median(plan.sizes[dim])):,}".replace(",", "\N{NO-BREAK SPACE}")
    longest = f"{int(plan.sizes[dim].max()):,}".replace(",", "\N{NO-BREAK SPACE}")
    caption = f"Half of the items have at most {middle}; the longest has {longest}."
    return Picture(f"Sizes: {dim}", caption, figure)


def spread_pairs(plan: Plan) -> list[tuple[str, str]]:
    """Pairs of the dims that differ most between items."""
    lengths = np.maximum(plan.lengths, 1)
    spread = np.log(lengths).std(axis=0)
    dims = sorted(np.argsort(-spread, kind="stable")[:SHOWN_PAIRS].tolist())
    return [(plan.dims[x], plan.dims[y]) for x, y in combinations(dims, 2)]


def draw_scatter(plan: Plan, x: str, y: str) -> Picture:
    """Draw items by two dims, and slots as the corners below which they lie."""
    lengths = [np.maximum(plan.sizes[dim], 1) for dim in (x, y)]
    slots = used_slots(plan)
    figure, axes = new_axes(3.4)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    logs = [
        scale_sizes(axes, which, values, max(slot[dim] for slot in slots))
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
    label_axes(axes, x, y)
    add_legend(figure)
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


def _bins(low: float, high: float, log: bool, most: int) -> NDArray[np.float64]:
    """Edges of bins; each holds as many whole numbers as its neighbours where they are few."""
    if log:
        edges = np.geomspace(max(low, 1) - 0.5, high + 0.5, most + 1)
        whole = np.unique(np.round(edges - 0.5) + 0.5)
        return whole if len(whole) > 1 else edges
    step = max(-(-int(high - low + 1) // most), 1)
    return np.arange(low - 0.5, high + step + 0.5, step)


def _line(count: int) -> float:
    """Width of a line among so many, which hide what is below them."""
    return max(1.3 * min(1.0, 8 / max(count, 1)), 0.35)


def used_slots(plan: Plan) -> list[dict[str, int]]:
    """Slots that hold something."""
    return [slot for slot, rows in zip(plan.slots, plan.rows, strict=True) if rows]
