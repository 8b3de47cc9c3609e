"""Pictures of benchmarks as SVG: sides beside each other, curves, points against a line."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt  # after the backend
from matplotlib.ticker import NullFormatter

__all__ = ["curves", "points", "ranges"]

OURS, PEERS, FLOOR = "#1f6f8b", "#b0a392", "#6b8f3c"
LINES = ("#1f6f8b", "#d1495b", "#6b8f3c", "#8a5aa5", "#c98b2b", "#444444")
STYLE = {
    "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "stowplan", "axes.spines.top": False,
    "axes.spines.right": False, "figure.facecolor": "white", "savefig.facecolor": "white",
    "font.family": "sans-serif",
}  # fmt: skip

Spread = Mapping[str, float]
"""Median, least and largest."""


def ranges(groups: Mapping[str, Mapping[str, Spread | None]], unit: str) -> str:
    """Draw medians and ranges on a logarithmic axis, a panel a group, sides from top to bottom."""
    sides = list(next(iter(groups.values())))
    height = 0.9 + 0.27 * len(sides)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            1,
            len(groups),
            figsize=(max(8.2, 2.4 + 2.2 * len(groups)), height),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, (name, group) in zip(axes[0], groups.items(), strict=True):
            known = {side: group[side] for side in sides if group.get(side)}
            smallest = min(spread["min"] for spread in known.values())
            largest = max(spread["max"] for spread in known.values())
            for place, side in enumerate(sides):
                spread = known.get(side)
                if spread is None:
                    continue
                middle = spread["median"]
                color = _color(side)
                axis.hlines(place, smallest / 2, middle, color="#e5e1da", lw=1)
                axis.hlines(place, spread["min"], spread["max"], color=color, lw=3, alpha=0.5)
                axis.plot(middle, place, "o", ms=6, color=color)
                axis.annotate(
                    f"{middle:.0f}" if middle >= 1000 else f"{middle:.3g}",
                    (max(middle, spread["max"]), place), xytext=(7, 0),
                    textcoords="offset points", va="center", fontsize=8,
                )  # fmt: skip
            axis.set_xscale("log")
            axis.set_xlim(smallest / 2, largest * 4)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_xlabel(f"{name}\n({unit})")
        axes[0][0].set_yticks(range(len(sides)), sides)
        axes[0][0].invert_yaxis()
        return _svg(figure)


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    *,
    marks: Mapping[str, tuple[float, float]] | None = None,
    log: str = "xy",
) -> str:
    """Draw lines with points, their names in a legend; `marks` are ringed."""
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.6, 3.9), layout="constrained")
        for number, (name, (at, values)) in enumerate(lines.items()):
            color = LINES[number % len(LINES)]
            dashes = "-" if number < len(LINES) else "--"
            axis.plot(at, values, dashes, marker="o", ms=3.5, lw=1.3, color=color, label=name)
            if marks and name in marks:
                axis.plot(*marks[name], "o", ms=10, mfc="none", color=color)
        if "x" in log:
            axis.set_xscale("log")
        if "y" in log:
            axis.set_yscale("log")
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.grid(which="major", color="#e5e1da", lw=0.6)
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return _svg(figure)


def points(
    groups: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    within: float,
) -> str:
    """Draw points on logarithmic axes, the line where both agree, and a band about it."""
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.6, 4.0), layout="constrained")
        every = [value for pair in groups.values() for values in pair for value in values]
        ends = [min(every) / 1.5, max(every) * 1.5]
        axis.plot(ends, ends, color="#222222", lw=0.8)
        axis.fill_between(
            ends, [end * (1 - within) for end in ends], [end * (1 + within) for end in ends],
            color="#e5e1da", lw=0,
        )  # fmt: skip
        for number, (name, (at, values)) in enumerate(groups.items()):
            axis.plot(at, values, "o", ms=4, color=LINES[number % len(LINES)], label=name)
        axis.set(xscale="log", yscale="log", xlabel=x, ylabel=y, xlim=ends, ylim=ends)
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return _svg(figure)


def _color(side: str) -> str:
    if side.startswith("floor"):
        return FLOOR
    return OURS if side.startswith("stowplan") else PEERS


def _svg(figure: Any) -> str:
    """Give the text of a picture, the same for the same figures."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
