"""Pictures of transport between two masks: where mass goes, what is destroyed and created."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.extras import import_extra
from stowplan.io.whole_files import whole_file
from stowplan.recipes.transport_frames import lift_density, work_grid
from stowplan.recipes.transport_results import TransportResults

__all__ = ["check_matplotlib", "draw"]

Array = NDArray[np.float64]
SOURCE, TARGET, INK, FRAME = "#D55E00", "#0072B2", "#1A1A1A", "#9A9A9A"
"""Vermilion and blue of Okabe and Ito, which the colour-blind tell apart."""
WIDTH, EDGE, HEAD, STRIP, CAPTION, GAP = 8.0, 0.2, 0.68, 0.42, 0.26, 0.2  # inches
FILL = 0.3  # opacity
FAINT = 0.1  # least share that has the full colour
DPI = 150  # 1200 pixels wide
ARROWS = 26  # along the longer side
SHOWN_MASS = 0.1  # arrows stand where more than this share of the source's mass is moved
SHORT = 0.05  # of the longer side: if all arrows are shorter they are drawn longer, and it is said


class _Layout(NamedTuple):
    """Where two panels stand, in inches from the bottom left."""

    height: float  # of the figure
    panels: tuple[tuple[float, float, float, float], ...]  # left, bottom, width, height
    columns: tuple[tuple[float, float], ...]  # left, width of what is written above and below
    inches: float  # of a pixel


class _Arrows(NamedTuple):
    """In pixels of the crop."""

    places: Array  # (n, 2), (y, x)
    steps: Array  # (n, 2), (dy, dx)

    @property
    def longest(self) -> float:
        return float(np.hypot(*self.steps.T).max(initial=0.0))


def check_matplotlib(what: str = "draw") -> None:
    """Raise, saying how to install it, where matplotlib is missing."""
    import_extra("pictures", "matplotlib.figure", what)


def draw(
    results: TransportResults,
    pair: int,
    source: Any,
    target: Any,
    path: str | os.PathLike[str],
    *,
    unit: str | None = None,
    title: str | None = None,
) -> None:
    """Draw one pair into a file: PNG, 1200 pixels wide, or PDF or SVG.

    One panel has the source, filled, the outline of the target and the velocity as arrows, to scale
    where that can be seen; the other one destroyed and created mass, as shares of the unit of mass;
    where both are, their colours mix to grey. A full pixel is the densest one of both masks.

    Parameters
    ----------
    results
        Of `solve`; lengths are in its ``pixel_size``.
    pair
        Its place in the results.
    source, target : bool array (y, x)
        Masks of this pair, on the canvas.
    path
        The suffix says the format.
    unit
        Of the pixel size, such as ``"µm"``; by default ``"px"``, or ``"units"`` where there is a
        pixel size.
    title
        Of the picture; the number of the pair by default.

    Raises
    ------
    DataError
        For masks that do not hold the crop of the pair, and formats that matplotlib does not write.
    MissingDependencyError
        Without matplotlib.
    """
    figures = import_extra("pictures", "matplotlib.figure", "draw")
    agg = import_extra("pictures", "matplotlib.backends.backend_agg", "draw")
    path = Path(path)
    place = range(len(results))[pair]
    masks = [
        _cropped(results, place, side, mask)
        for side, mask in (("source", source), ("target", target))
    ]
    layout = _arrange(*masks[0].shape)
    figure = figures.Figure(figsize=(WIDTH, layout.height), dpi=DPI, facecolor="white")
    formats = agg.FigureCanvasAgg(figure).get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise DataError(
            f"draw: {os.fspath(path)!r} ends in {path.suffix or 'no suffix'!r}; a picture is one "
            f"of {', '.join(f'.{name}' for name in formats)}."
        )
    unit = unit or ("px" if results.pixel_size == 1 else "units")
    _write_title(figure, layout, results, place, title or f"pair {place}", unit)
    _draw_velocity(figure, layout, results, place, masks, unit)
    _draw_changes(figure, layout, results, place, masks)
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix[1:].lower())


def _cropped(results: TransportResults, pair: int, side: str, mask: Any) -> NDArray[np.bool_]:
    y0, y1, x0, x1 = results.boxes[pair].tolist()
    inside: NDArray[np.bool_] = np.asarray(mask)[y0:y1, x0:x1] > 0
    if inside.shape != (y1 - y0, x1 - x0):
        raise DataError(
            f"draw: the {side} has shape {np.shape(mask)}, but pair {pair} was cropped to "
            f"{(y0, y1, x0, x1)}. Give the masks of this pair, on the whole canvas."
        )
    return inside


def _arrange(height: int, width: int) -> _Layout:
    """Put wide panels one above the other, and others side by side."""
    room = WIDTH - 2 * EDGE
    half, below = (room - GAP) / 2, STRIP + CAPTION
    if width > 1.3 * height:
        inches = min(room / width, 4.2 / height)
        wide, high = width * inches, height * inches
        left = (WIDTH - wide) / 2
        total = HEAD + 2 * (high + below) + GAP + EDGE / 2
        lower = EDGE / 2 + STRIP
        panels = ((left, lower + high + below + GAP, wide, high), (left, lower, wide, high))
        columns = (((WIDTH - max(wide, half)) / 2, max(wide, half)),) * 2
        return _Layout(total, panels, columns, inches)
    inches = min(half / width, 6.5 / height)
    wide, high = width * inches, height * inches
    bottom, shift = EDGE / 2 + STRIP, (half - wide) / 2
    columns = ((EDGE, half), (EDGE + half + GAP, half))
    first, second = ((left + shift, bottom, wide, high) for left, _ in columns)
    return _Layout(HEAD + high + below + EDGE / 2, (first, second), columns, inches)


def _panel(
    figure: Any, layout: _Layout, number: int, shape: tuple[int, ...], *captions: tuple[str, str]
) -> Any:
    """Axes in pixels of the crop, the first row uppermost."""
    left, bottom, wide, high = layout.panels[number]
    axes = figure.add_axes(
        (left / WIDTH, bottom / layout.height, wide / WIDTH, high / layout.height),
        xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5), xticks=[], yticks=[],
    )  # fmt: skip
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.6)
    for place, (text, colour) in enumerate(captions):
        x = layout.columns[number][0] + 1.6 * place
        _text(figure, x, bottom + high + 0.08, text, color=colour, weight="bold")
    return axes


def _text(figure: Any, x: float, y: float, text: str, **style: Any) -> None:
    """Text at a place in inches; a dollar sign in the name of a file is no formula."""
    style = {"fontsize": 10, "color": INK, "va": "baseline", "parse_math": False, **style}
    figure.text(x, y, text, transform=figure.dpi_scale_trans, usetex=False, **style)


def _write_title(
    figure: Any, layout: _Layout, results: TransportResults, pair: int, title: str, unit: str
) -> None:
    style = {"ha": "center", "va": "top"}
    middle, top = WIDTH / 2, layout.height - 0.12
    if len(title) > 85:
        title = f"{title[:41]} … {title[-41:]}"
    _text(figure, middle, top, title, fontsize=12, weight="bold", **style)
    if results.failed[pair]:
        text, colour = "failed: there are no numbers", SOURCE
    else:
        whose = "larger " if np.ptp(results.units[pair]) == 0 else ""
        step = math.hypot(*results.mean_velocity[pair].tolist())
        text = (
            f"{_percent(float(results.mass[pair]))} of the {whose}mass transported"
            f"     cost {results.cost[pair]:.3g}     mean shift {step:.3g} {unit}"
        )
        colour = INK
        if not results.converged[pair]:
            text, colour = f"not converged     {text}", SOURCE
    _text(figure, middle, top - 0.26, text, color=colour, fontsize=11, **style)


def _draw_velocity(
    figure: Any,
    layout: _Layout,
    results: TransportResults,
    pair: int,
    masks: list[NDArray[np.bool_]],
    unit: str,
) -> None:
    arrows = None if results.failed[pair] else _arrows(results, pair)
    factor = 1.0 if arrows is None else _stretch(arrows, max(masks[0].shape))
    stretched = f" (arrows drawn {factor:g} × as long)" if factor > 1 else ""
    axes = _panel(figure, layout, 0, masks[0].shape, (f"Velocity{stretched}", INK))
    _fill(axes, masks[0])
    _outline(axes, masks[1], TARGET)
    left, wide = layout.columns[0]
    middle = layout.panels[0][1] - STRIP / 2 - 0.02
    _box(figure, left, middle - 0.06, 0.22, 0.13, facecolor=SOURCE, alpha=FILL)
    _text(figure, left + 0.28, middle, "source", va="center")
    _box(
        figure, left + 0.88, middle - 0.06, 0.22, 0.13, facecolor="none", edgecolor=TARGET,
        linewidth=1.3,
    )  # fmt: skip
    _text(figure, left + 1.16, middle, "target", va="center")
    pixel = results.pixel_size
    length = _round_number(0.16 * wide / layout.inches * pixel)
    bar, end = length / pixel * layout.inches, left + wide
    _box(figure, end - bar, middle - 0.09, bar, 0.04, facecolor=INK)
    _text(figure, end - bar / 2, middle - 0.02, f"{length:g} {unit}", ha="center")
    if arrows is None or not arrows.longest:
        return
    quiver = axes.quiver(
        arrows.places[:, 1], arrows.places[:, 0], arrows.steps[:, 1], arrows.steps[:, 0],
        angles="xy", units="inches", scale_units="inches", scale=1 / (layout.inches * factor),
        width=0.014, headwidth=4, headlength=4.5, headaxislength=4, minlength=0.5, color=INK,
    )  # fmt: skip
    key = _round_number(min(arrows.longest, 0.1 * wide / layout.inches / factor) * pixel)
    tip = left + 1.8 + key / pixel * factor * layout.inches
    axes.quiverkey(
        quiver, tip, middle, key / pixel, f"{key:g} {unit}", coordinates="inches", labelpos="E",
        labelsep=0.08, fontproperties={"size": 10}, color=INK,
    )  # fmt: skip


def _draw_changes(
    figure: Any,
    layout: _Layout,
    results: TransportResults,
    pair: int,
    masks: list[NDArray[np.bool_]],
) -> None:
    destroyed, created = (np.zeros(mask.shape) for mask in masks)
    names, most = ["Destroyed", "Created"], 0.0
    if not results.failed[pair]:
        maps = results.maps(pair)
        found = [maps[name] for name in ("destroyed", "created")]
        box = results.boxes[pair].tolist()
        full = max(
            float(lift_density(_work(results, side, pair), box, results.pool).max())
            for side in ("source", "target")
        )
        destroyed, created = (np.clip(part / full, 0, 1) for part in found)
        totals = (_percent(float(part.sum())) for part in found)
        names = [f"{name} {total}" for name, total in zip(names, totals, strict=True)]
        most = max(FAINT, float(destroyed.max()), float(created.max()))
    captions = zip(names, (SOURCE, TARGET), strict=True)
    axes = _panel(figure, layout, 1, masks[0].shape, *captions)
    axes.imshow(_blend(destroyed, created, most or 1.0), interpolation="nearest", aspect="auto")
    for mask, colour in zip(masks, (SOURCE, TARGET), strict=True):
        _outline(axes, mask, colour)
    if most > 0:
        _colour_bar(figure, layout, most)


def _colour_bar(figure: Any, layout: _Layout, most: float) -> None:
    """From all destroyed over nothing to all created, under the second panel."""
    left, wide = layout.columns[1]
    middle, length = layout.panels[1][1] - STRIP / 2 - 0.02, min(0.34 * wide, 2.4)
    start = left + 0.6
    ramp = np.linspace(-1, 1, 201)[None]
    bar = figure.add_axes(
        (start / WIDTH, (middle - 0.07) / layout.height, length / WIDTH, 0.14 / layout.height),
        xticks=[], yticks=[],
    )  # fmt: skip
    bar.imshow(_blend(np.clip(-ramp, 0, 1), np.clip(ramp, 0, 1), 1.0), aspect="auto")
    for spine in bar.spines.values():
        spine.set(color=FRAME, linewidth=0.6)
    share = _percent(most)
    _text(figure, start - 0.08, middle, share, ha="right", va="center")
    _text(figure, start + length + 0.08, middle, f"{share} of a full pixel", va="center")


def _arrows(results: TransportResults, pair: int) -> _Arrows:
    """Average the velocity of the moved mass over square cells, each at the centre of its mass."""
    box = results.boxes[pair].tolist()
    density = _work(results, "source", pair)
    moved = density - _work(results, "destroyed", pair)
    density, moved = (lift_density(part, box, results.pool) for part in (density, moved))
    velocity = results.maps(pair)["velocity"] / results.pixel_size
    cell = max(1, round(max(moved.shape) / ARROWS))
    y, x = np.indices(moved.shape, np.float64)
    mass = work_grid(moved, cell)
    shown = (mass > SHOWN_MASS * work_grid(density, cell)) & (mass > SHOWN_MASS * mass.max())
    means = [
        work_grid(moved * part, cell)[shown] / mass[shown]
        for part in (y, x, velocity[..., 0], velocity[..., 1])
    ]
    return _Arrows(np.stack(means[:2], axis=1), np.stack(means[2:], axis=1))


def _work(results: TransportResults, name: str, pair: int) -> Array:
    return np.asarray(results.work[name][pair], np.float64)


def _fill(axes: Any, mask: NDArray[np.bool_]) -> None:
    if mask.any():
        axes.contourf(*_framed(mask), levels=[0.5, 1.5], colors=[SOURCE], alpha=FILL)


def _outline(axes: Any, mask: NDArray[np.bool_], colour: str) -> None:
    if mask.any():
        axes.contour(*_framed(mask), levels=[0.5], colors=[colour], linewidths=1.3)


def _framed(mask: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """Give x, y and values with a border of background, which closes the outline."""
    y, x = (np.arange(-1.0, length + 1) for length in mask.shape)
    return x, y, np.pad(mask.astype(np.float64), 1)


def _blend(destroyed: Array, created: Array, most: float) -> Array:
    """Colour shares on white, (y, x, 3); where both are, their colours mix to grey."""
    inks = np.array(
        [[int(ink[place : place + 2], 16) / 255 for place in (1, 3, 5)] for ink in (SOURCE, TARGET)]
    )
    shares = np.stack([destroyed, created], axis=-1) / most
    mixed = shares @ inks / np.maximum(shares.sum(axis=-1, keepdims=True), 1e-12)
    picture: Array = 1 - shares.max(axis=-1, keepdims=True) * (1 - mixed)
    return picture


def _box(figure: Any, left: float, bottom: float, wide: float, high: float, **style: Any) -> None:
    patches = import_extra("pictures", "matplotlib.patches", "draw")
    figure.add_artist(
        patches.Rectangle((left, bottom), wide, high, transform=figure.dpi_scale_trans, **style)
    )


def _stretch(arrows: _Arrows, side: int) -> float:
    """Give the factor by which arrows are drawn too long, so that they are seen."""
    if arrows.longest < 1e-3:
        return 1.0
    return max(1.0, _round_number(SHORT * side / arrows.longest))


def _round_number(value: float) -> float:
    """Give the largest of 1, 2, 5, 10, 20, ... that is no larger.

    >>> [_round_number(value) for value in (0.3, 7, 99)]
    [0.2, 5.0, 50.0]
    """
    power = 10.0 ** math.floor(math.log10(value))
    most = max(step for step in (1, 2, 5) if step * power <= value * (1 + 1e-9))
    return float(f"{most * power:.1g}")


def _percent(share: float) -> str:
    return f"{100 * round(share, 3) + 0.0:.1f} %"
