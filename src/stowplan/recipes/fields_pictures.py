"""Pictures of fields: spectra with their slope, radial means with their tail, memory over time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.extras import import_extra
from stowplan.io.whole_files import whole_file
from stowplan.memory import show_bytes
from stowplan.recipes.fields import Profiles
from stowplan.recipes.fields_rings import RadialSums, ShellSums
from stowplan.recipes.fields_slope import Slope
from stowplan.recipes.fields_tail import Tail
from stowplan.recipes.pictures import DPI, WIDTH, check_picture
from stowplan.runs.memory_trace import MemoryTrace

__all__ = ["draw_memory", "draw_radial", "draw_spectrum"]

Picture = str | os.PathLike[str]
Array = NDArray[np.float64]

EACH, MEAN, FIT, SHADE, INK = "#7FA6C4", "#0B3C5D", "#D55E00", "#F3E3D3", "#1A1A1A"
STRIP = 1.75  # inches, of memory over time
FAR = 6  # a budget of so many peaks is written, not drawn
MINUTE, HOUR = 60.0, 3600.0
SMALL = 9.5  # points


def draw_memory(
    path: Picture, trace: MemoryTrace, *, budget: int | None = None, title: str = ""
) -> None:
    """Draw memory over time into a file, against a budget in bytes.

    Parameters
    ----------
    path
        The suffix says the format: PNG, 1200 pixels wide, PDF or SVG.
    trace
        Of the run, memory above that at its start.
    budget
        In bytes; not drawn where it is None.
    title
        Of the picture.

    Raises
    ------
    DataError
        For formats that matplotlib does not write.
    MissingDependencyError
        Without matplotlib.
    """
    figure, (strip,) = _figure(path, [STRIP + 1.1], title)
    _draw_memory(strip, trace, budget)
    _save(figure, path)


def draw_spectrum(
    path: Picture,
    found: Profiles[ShellSums],
    trace: MemoryTrace,
    *,
    slope: Slope | None = None,
    budget: int | None = None,
    unit: str | None = None,
    real: bool = False,
    title: str = "",
) -> None:
    """Draw isotropic power spectra, their mean and its slope, and memory over time.

    The band around the mean is how single fields scatter about it whose modes are independent and
    Gaussian: a share n^(-1/2) of the mean of n modes, twice as many for real fields, whose modes
    come in pairs.

    Parameters
    ----------
    path, trace, budget, title
        See `draw_memory`.
    found
        Of `spectrum`; a mean is drawn where all fields have one grid.
    slope
        Of the mean.
    unit
        Of length.
    real
        Whether the fields are real.
    """
    figure, (chart, strip) = _figure(path, [4.6, STRIP], title)
    for number, sums in enumerate(found.each):
        k, power, _ = _positive(sums)
        label = "single fields" if number == 0 and len(found) > 1 else None
        _thin(chart, k, power, len(found), label)
    if len(found) == 1 or same_grid(found.each):
        k, power, inside = _positive(found.total)
        modes = found.total.counts[inside] / len(found) / (2 if real else 1)
        scatter = 1 / np.sqrt(modes)
        chart.fill_between(
            k, power * np.maximum(1 - scatter, 0), power * (1 + scatter), color=EACH, alpha=0.45,
            linewidth=0, label="scatter of one field by its number of modes",
        )  # fmt: skip
        name = "power" if len(found) == 1 else f"mean of {len(found)} fields"
        chart.plot(k, power, color=MEAN, linewidth=2.2, label=name)
    chart.set(xscale="log", yscale="log")
    lowest, highest = _limits([_positive(sums)[1] for sums in found.each])
    chart.set_ylim(lowest / 2, highest * 2)
    if slope is not None:
        _draw_slope(chart, slope, found.each)
    length = unit or "unit of length"
    chart.set_xlabel(f"wave number |k| (rad per {length})", fontsize=10, color=INK)
    chart.set_ylabel("power per mode, mean $|a(k)|^2$ of a shell", fontsize=10, color=INK)
    _legend(chart, "lower left" if _falls(found.each) else "upper left")
    _draw_memory(strip, trace, budget)
    _save(figure, path)


def draw_radial(
    path: Picture,
    found: Profiles[RadialSums],
    trace: MemoryTrace,
    *,
    tails: Sequence[Tail | None] | None = None,
    budget: int | None = None,
    unit: str | None = None,
    title: str = "",
) -> None:
    """Draw radial means, with tails in their window if there are any, and memory over time.

    With tails there is a second chart: what is left without background and bend, over its
    amplitude, on log axes, where c r^p is a straight line.

    Parameters
    ----------
    path, trace, budget, title
        See `draw_memory`.
    found
        Of `radial`.
    tails
        Of `tail`: one for each field, None where there is no tail.
    unit
        Of length.
    """
    fitted = [tail for tail in tails or [] if tail is not None]
    heights = [4.2, STRIP]
    figure, axes = _figure(path, heights, title, columns=2 if fitted else 1)
    chart, strip = axes[0], axes[-1]
    _draw_means(chart, found)
    for number, tail in enumerate(fitted):
        _draw_tail(chart, tail, number == 0)
    if fitted:
        _draw_power(axes[1], fitted, unit)
    chart.set_xlabel(f"distance r ({unit or 'unit of length'})", fontsize=10, color=INK)
    chart.set_ylabel("mean of the field in a bin of r", fontsize=10, color=INK)
    _legend(chart, "best")
    _draw_memory(strip, trace, budget)
    _save(figure, path)


def same_grid(each: Sequence[Any]) -> bool:
    """Whether all sums are over the rings of one grid."""
    return all(each[0].rings.difference(sums.rings) is None for sums in each)


def _figure(path: Picture, heights: list[float], title: str, columns: int = 1) -> tuple[Any, Any]:
    """Give a figure and its axes: those of the first row, then one for each other row."""
    check_picture(Path(path), "a picture of fields")
    figures = import_extra("pictures", "matplotlib.figure", "a picture of fields")
    size = (WIDTH, sum(heights) + 0.3)
    figure = figures.Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    cells = [grid[0, n] for n in range(columns)] if len(heights) > 1 else []
    axes = [figure.add_subplot(cell) for cell in [*cells, grid[len(heights) - 1, :]]]
    figure.suptitle(title, fontsize=12, weight="bold", color=INK, x=0.01, ha="left",
                    parse_math=False)  # fmt: skip
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=SMALL, labelcolor=INK, width=0.6)
    return figure, axes


def _save(figure: Any, path: Picture) -> None:
    with whole_file(path) as part:
        figure.savefig(part, format=Path(path).suffix[1:].lower())


def _legend(chart: Any, place: str) -> None:
    if chart.get_legend_handles_labels()[0]:
        chart.legend(loc=place, fontsize=SMALL, frameon=True, framealpha=0.85, edgecolor="none")


def _thin(chart: Any, x: Any, y: Any, count: int, label: str | None) -> None:
    if count > 1:
        opacity = max(0.15, min(0.8, 8 / count))
        chart.plot(x, y, color=EACH, linewidth=0.8, alpha=opacity, label=label)


def _positive(sums: ShellSums) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Give |k| and mean power of shells that a log axis has, and which these are."""
    k, power = sums.wave_numbers, sums.mean.real
    inside = np.isfinite(k) & (k > 0) & np.isfinite(power) & (power > 0)
    if not inside.any():
        raise DataError("draw: no shell has power beyond k = 0: the fields are constant.")
    return k[inside], power[inside], inside


def _limits(values: Sequence[Array]) -> tuple[float, float]:
    return min(float(v.min()) for v in values), max(float(v.max()) for v in values)


def _falls(each: Sequence[ShellSums]) -> bool:
    power = _positive(each[0])[1]
    return bool(power[0] > power[-1])


def _draw_slope(chart: Any, slope: Slope, each: Sequence[ShellSums]) -> None:
    low, high = slope.window
    k = np.concatenate([_positive(sums)[0] for sums in each])
    inside = k[(k > low) & (k < high)]
    line = np.geomspace(inside.min(), inside.max(), 50)
    half = (slope.interval[1] - slope.interval[0]) / 2
    chart.axvspan(max(low, k.min() / 1.1), min(high, k.max() * 1.1), color=SHADE, alpha=0.5, lw=0,
                  label=f"window of the fit, {low:.3g} < |k| < {high:.3g}")  # fmt: skip
    chart.plot(
        line, slope.curve(line), color=FIT, linewidth=1.8, linestyle=(0, (5, 2)),
        label=f"fit $|k|^p$, p = {_with_error(slope.power, half)} (95 %)",
    )  # fmt: skip


def _draw_means(chart: Any, found: Profiles[RadialSums]) -> None:
    """Means of all fields, real parts solid and imaginary ones dotted."""
    parts = ["real", "imag"] if found.each[0].sums.dtype.kind == "c" else ["real"]
    names = {"real": ", real part" if len(parts) > 1 else "", "imag": ", imaginary part"}
    together = len(found) == 1 or same_grid(found.each)
    for part in parts:
        style = "-" if part == "real" else ":"
        for number, sums in enumerate(found.each):
            r, mean = _finite(sums.radii, getattr(sums.mean, part))
            _thin(chart, r, mean, len(found),
                  f"single fields{names[part]}" if number == 0 else None)  # fmt: skip
        if together:
            r, mean = _finite(found.total.radii, getattr(found.total.mean, part))
            whose = "radial mean" if len(found) == 1 else f"mean of {len(found)} fields"
            chart.plot(r, mean, color=MEAN, linewidth=2.2, linestyle=style,
                       label=f"{whose}{names[part]}")  # fmt: skip
    chart.axhline(0, color=INK, linewidth=0.5)


def _finite(x: Array, y: Array) -> tuple[Array, Array]:
    inside = np.isfinite(x) & np.isfinite(y)
    return x[inside], y[inside]


def _draw_tail(chart: Any, tail: Tail, first: bool) -> None:
    line = np.linspace(*tail.window, 200)
    if first:
        low, high = tail.window
        chart.axvspan(low, high, color=SHADE, alpha=0.5, lw=0,
                      label=f"window of the fit, {low:.3g} < r < {high:.3g}")  # fmt: skip
    chart.plot(line, tail.curve(line), color=FIT, linewidth=1.4, linestyle=(0, (5, 2)), zorder=4,
               label="fit $c\\,r^p + b + d\\,r^2$" if first else None)  # fmt: skip


def _draw_power(chart: Any, tails: Sequence[Tail], unit: str | None) -> None:
    """What the fit leaves to the power law, over c: a straight line r^p."""
    for number, tail in enumerate(tails):
        r, held = tail.radii, tail.values - tail.background - tail.bend * tail.radii**2
        line = np.geomspace(r[0], r[-1], 50)
        ratio = held / tail.amplitude
        shown = ratio > 0
        chart.plot(r[shown], ratio[shown], "o", color=MEAN, markersize=3, alpha=0.7,
                   label="(mean $-\\ b - d\\,r^2) / c$" if number == 0 else None)  # fmt: skip
        half = (tail.interval[1] - tail.interval[0]) / 2
        name = f"$r^p$, p = {_with_error(tail.power, half)} (95 %)"
        if len(tails) > 1:
            powers = [t.power for t in tails]
            name = f"$r^p$, {len(tails)} fits, p from {min(powers):.4g} to {max(powers):.4g}"
        chart.plot(line, line**tail.power, color=FIT, linewidth=1.4, linestyle=(0, (5, 2)),
                   label=name if number == 0 else None)  # fmt: skip
    chart.set(xscale="log", yscale="log")
    ticker = import_extra("pictures", "matplotlib.ticker", "a picture of fields")
    for axis in (chart.xaxis, chart.yaxis):
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5), numticks=20))
        axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.set_minor_formatter(ticker.NullFormatter())
    chart.set_xlabel(f"distance r ({unit or 'unit of length'})", fontsize=10, color=INK)
    chart.set_ylabel("power law alone, over its amplitude", fontsize=10, color=INK)
    _legend(chart, "lower left")


def _with_error(value: float, half: float) -> str:
    """Write a number with the digits that its error leaves.

    >>> _with_error(-1.00512, 0.00312), _with_error(-3.0, 0.0)
    ('-1.0051 ± 0.0031', '-3 ± 0')
    """
    if not half > 1e-12:
        return f"{value:.6g} ± {half:.1g}"
    digits = max(1 - int(np.floor(np.log10(half))), 0)
    return f"{value:.{digits}f} ± {half:.{digits}f}"


def _draw_memory(strip: Any, trace: MemoryTrace, budget: int | None) -> None:
    """Memory above the start, filled; the budget as a line unless it is far above."""
    peak = max(trace.peak_bytes, 1)
    drawn = budget is not None and budget <= FAR * peak
    top = max(peak, budget if drawn and budget is not None else 0)
    power = max(min(int(np.log2(top) // 10), 4), 0)
    unit, size = ("B", "KiB", "MiB", "GiB", "TiB")[power], 1024.0**power
    seconds, held = trace.seconds, trace.bytes / size
    last = float(seconds[-1])
    name, length = ("h", HOUR) if last > 3 * HOUR else ("min", MINUTE) if last > 300 else ("s", 1.0)
    strip.fill_between(seconds / length, held, color=EACH, alpha=0.4, linewidth=0)
    strip.plot(seconds / length, held, color=MEAN, linewidth=1.2, label="memory above the start")
    strip.axhline(peak / size, color=MEAN, linewidth=0.8, linestyle=":",
                  label=f"peak {show_bytes(peak)}")  # fmt: skip
    if budget is not None:
        label = f"budget {show_bytes(budget)}"
        if drawn:
            strip.axhline(budget / size, color=FIT, linewidth=1.4, label=label)
        else:
            strip.plot([], [], color=FIT, label=f"{label}, beyond the axis")
    strip.set_xlim(0, max(last / length, 1e-3))
    strip.set_ylim(0, top / size * 1.45)
    strip.set_xlabel(f"time ({name})", fontsize=10, color=INK)
    strip.set_ylabel(f"memory ({unit})", fontsize=10, color=INK)
    strip.legend(loc="upper left", ncols=3, fontsize=SMALL, frameon=False, borderpad=0)
