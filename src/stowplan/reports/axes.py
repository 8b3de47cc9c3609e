"""The one look of all figures: colours, axes, ticks and legends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.extras import import_extra
from stowplan.planners.tables import format_seconds

__all__ = [
    "COLOURS",
    "CYCLE",
    "GRID",
    "INK",
    "MUTED",
    "ROW",
    "SLOT",
    "USEFUL",
    "add_legend",
    "label_axes",
    "new_axes",
    "scale_sizes",
    "show_counts",
    "show_percents",
    "time_ticks",
    "whole_ticks",
    "Picture",
]

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


def new_axes(height: float = HEIGHT, columns: int = 1) -> tuple[Any, Any]:
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


def label_axes(axes: Any, x: str = "", y: str = "") -> None:
    """Name what the axes show."""
    axes.set_xlabel(x, color=INK, fontsize=9.5)
    axes.set_ylabel(y, color=INK, fontsize=9.5)


def add_legend(figure: Any, columns: int = 3) -> None:
    """Put the legend below the axes, where it hides nothing."""
    figure.legend(
        loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=INK,
        handlelength=1.2, columnspacing=1.2, borderpad=0.2,
    )  # fmt: skip


def show_percents(axis: Any) -> None:
    """Show shares of one."""
    ticker = import_extra("report", "matplotlib.ticker", "report")
    axis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(ticker.FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))


def time_ticks(axes: Any, which: str, top: float) -> None:
    """Put ticks at round numbers of the unit that the longest time is shown in."""
    unit = next((unit for unit in UNITS if top >= unit), UNITS[-1])
    step = 10.0 ** math.floor(math.log10(top / unit / 2)) if top > 0 else 1.0
    step *= next((times for times in (1, 2, 5) if top / unit <= 5 * times * step), 10)
    steps = np.arange(0, top, step * unit).tolist()
    names = [format_seconds(value) if value else "0" for value in steps]
    getattr(axes, f"set_{which}ticks")(steps, names)


def short_number(value: float) -> str:
    """Show 4096 as it is and a million in short."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= max(size, 1e5):
            return f"{value / size:.3g}{letter}"
    return f"{value:.5g}"


def scale_sizes(axes: Any, which: str, lengths: NDArray[np.int64], capacity: int) -> bool:
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
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: short_number(value)))
    return log


def show_counts(axes: Any) -> None:
    """Write counts in short along the vertical axis."""
    ticker = import_extra("report", "matplotlib.ticker", "report")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: short_number(value)))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def whole_ticks(axes: Any, first: int, last: int) -> None:
    """Put ticks at whole numbers."""
    ticker = import_extra("report", "matplotlib.ticker", "report")
    axes.set_xlim(first - 0.6, max(last, first) + 0.6)
    axes.xaxis.set_major_locator(
        ticker.FixedLocator(range(first, last + 1))
        if last - first < 12
        else ticker.MaxNLocator(8, integer=True, min_n_ticks=1)
    )
