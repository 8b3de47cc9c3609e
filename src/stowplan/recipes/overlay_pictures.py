"""A picture of a screen: how scores are distributed, and which molecules are the best hits."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.extras import import_extra
from stowplan.io.conformers import draw_structure
from stowplan.io.molecules import Molecules
from stowplan.io.whole_files import whole_file
from stowplan.recipes import pictures
from stowplan.recipes.overlay_results import ScreenResults

__all__ = ["check_picture", "draw"]

REST, HIT, TRACK, INK, FRAME = "#9DB4C8", "#D55E00", "#EDEDED", "#1A1A1A", "#9A9A9A"
WIDTH, EDGE = pictures.WIDTH, 0.2  # inches
CHART = (0.62, 0.55, 4.35, 3.1)  # left, bottom, width, height of the histogram
RANKS = (6.9, 0.48, 0.42, 3.24)  # of the bars of the best hits; names stand to their left
TITLE, STRUCTURE, CAPTION = 0.62, 1.46, 0.36  # heights
SHOWN = 12  # hits that are listed
DRAWN = 4  # hits whose structure is drawn, beside the query
LOG = 400  # molecules in the largest bin: above, the axis is logarithmic
POINTS = 72  # of an inch


def check_picture(path: Path) -> None:
    """Raise, with the cure, where matplotlib is missing or does not write such a file."""
    pictures.check_picture(path, "a picture of scores")


def draw(
    results: ScreenResults,
    path: str | os.PathLike[str],
    *,
    hits: Molecules,
    query: Molecules,
) -> None:
    """Draw a screen into a file: PNG, 1200 pixels wide, or PDF or SVG.

    A histogram of all scores, in which hits are marked; the best hits by name; and the structures
    of the query and the best four, where ``mols`` of both are kept.

    Parameters
    ----------
    results
        Of `screen`.
    path
        The suffix says the format.
    hits
        The molecules of ``results.index``, in that order.
    query
        One molecule.

    Raises
    ------
    DataError
        For hits that are not as many as those of the results, a query that is not one molecule, no
        score at all, and formats that matplotlib does not write.
    MissingDependencyError
        Without matplotlib.
    """
    path = Path(path)
    check_picture(path)
    if len(hits) != len(results) or len(query) != 1:
        raise DataError(
            f"draw: {len(hits)} hits and {len(query)} queries for a screen with {len(results)} "
            "hits. Give molecules[results.index], and one query."
        )
    count = int(np.isfinite(results.scores).sum())
    if not count:
        raise DataError(
            f"draw: none of {len(results.scores)} molecules has a score. Look at their coordinates."
        )
    figures = import_extra("pictures", "matplotlib.figure", "draw")
    structures = hits.mols is not None and query.mols is not None
    below = (STRUCTURE + CAPTION + EDGE) if structures else 0.0
    height = below + CHART[1] + CHART[3] + TITLE
    figure = figures.Figure(figsize=(WIDTH, height), dpi=pictures.DPI, facecolor="white")
    title = f"Shape overlay on {_shortened(query.names[0], 3.3, 13)}"
    _text(figure, EDGE, height - 0.28, title, fontsize=13, weight="bold")
    _text(figure, WIDTH - EDGE, height - 0.28, f"{count} molecules, {len(results)} hits",
          fontsize=11, ha="right")  # fmt: skip
    _draw_scores(figure, height, below, results)
    _draw_ranks(figure, height, below, results, hits)
    if structures:
        _draw_structures(figure, height, results, hits, query)
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix[1:].lower())


def _axes(figure: Any, height: float, place: tuple[float, ...], **options: Any) -> Any:
    left, bottom, wide, high = place
    axes = figure.add_axes((left / WIDTH, bottom / height, wide / WIDTH, high / height), **options)
    for side, spine in axes.spines.items():
        spine.set(color=FRAME, linewidth=0.6, visible=side in ("left", "bottom"))
    axes.tick_params(labelsize=10, color=FRAME, labelcolor=INK, width=0.6)
    return axes


def _text(figure: Any, x: float, y: float, text: str, **style: Any) -> None:
    """Text at a place in inches; a dollar sign in the name of a molecule is no formula."""
    style = {"fontsize": 10, "color": INK, "va": "baseline", "parse_math": False, **style}
    figure.text(x, y, text, transform=figure.dpi_scale_trans, usetex=False, **style)


def _draw_scores(figure: Any, height: float, below: float, results: ScreenResults) -> None:
    """Histogram of all scores; hits in their colour, and the score from which on one is a hit."""
    scores = np.minimum(results.scores[np.isfinite(results.scores)], 1)  # rounding may exceed 1
    edges = bin_edges(scores)
    hits = np.histogram(np.minimum(results.score, 1), edges)[0]
    counts = np.histogram(scores, edges)[0]
    axes = _axes(figure, height, (CHART[0], below + CHART[1], *CHART[2:]))
    log = bool(counts.max() > LOG)
    step = {"edgecolor": "white", "linewidth": 0.4, "align": "edge", "log": log}
    axes.bar(edges[:-1], counts, np.diff(edges), color=REST, **step)
    axes.bar(edges[:-1], hits, np.diff(edges), color=HIT, **step)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0.7 if log else 0, counts.max() * (2.5 if log else 1.12))
    axes.set_xlabel("score (Tanimoto index of the volumes)", fontsize=10, color=INK)
    axes.set_ylabel("molecules", fontsize=10, color=INK)
    least = float(np.nanmin(results.score))
    axes.axvline(least, color=HIT, linewidth=1, linestyle=(0, (4, 2)))
    right = least < (edges[0] + edges[-1]) / 2
    label = f"top {len(results)}: from {least:.3f}"
    axes.annotate(
        f" {label} ", (least, 1), xycoords=("data", "axes fraction"), va="top", fontsize=10,
        ha="left" if right else "right", color=HIT, weight="bold", parse_math=False,
    )  # fmt: skip
    median = float(np.median(scores))
    axes.plot(
        median, 0, marker="^", color=INK, markersize=6, clip_on=False, linestyle="none", zorder=5,
        transform=axes.get_xaxis_transform(), label=f"median {median:.3f}",
    )  # fmt: skip
    left = median > (edges[0] + edges[-1]) / 2
    axes.legend(
        loc="upper left" if left else "upper right", bbox_to_anchor=(0 if left else 1, 0.93),
        frameon=False, fontsize=10, handletextpad=0.2, borderpad=0,
    )  # fmt: skip


def bin_edges(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give edges of bins of a round width, at most 40 and two, that hold all scores.

    >>> bin_edges(np.array([0.31, 0.5, 0.6])).round(3).tolist()
    [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6]
    """
    least, most = float(scores.min()), float(scores.max())
    wanted = min(40, max(8, int(4 * len(scores) ** (1 / 3))))
    steps = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
    width = next((step for step in steps if (most - least) / step <= wanted), steps[-1])
    first, last = int(np.floor(least / width)), int(np.ceil(most / width))
    edges: NDArray[np.float64] = np.arange(first, max(last, first + 1) + 1) * np.float64(width)
    return edges


def _draw_ranks(
    figure: Any, height: float, below: float, results: ScreenResults, hits: Molecules
) -> None:
    """The best hits: rank, name, and score as a bar on its way to 1, which equal shapes have."""
    shown = min(SHOWN, len(results))
    place = (RANKS[0], below + RANKS[1], *RANKS[2:])
    axes = _axes(figure, height, place, xlim=(0, 1), ylim=(SHOWN - 0.5, -0.5), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=False)
    bars = np.arange(shown)
    scores = results.score[:shown]
    axes.barh(bars, np.ones(shown), 0.5, color=TRACK)
    axes.barh(bars, scores, 0.5, color=HIT)
    row = RANKS[3] / SHOWN
    for rank, (score, name) in enumerate(zip(scores.tolist(), hits.names, strict=False), 1):
        y = place[1] + RANKS[3] - (rank - 0.5) * row
        style = {"va": "center_baseline"}
        _text(figure, RANKS[0] - 1.42, y, str(rank), ha="right", color=HIT, weight="bold", **style)
        _text(figure, RANKS[0] - 1.34, y, _shortened(name, 1.27, 9), fontsize=9, **style)
        _text(figure, WIDTH - EDGE, y, f"{score:.3f}", ha="right", **style)


def _draw_structures(
    figure: Any, height: float, results: ScreenResults, hits: Molecules, query: Molecules
) -> None:
    """The query and the best hits, side by side."""
    image = import_extra("pictures", "matplotlib.image", "draw")
    assert hits.mols is not None
    assert query.mols is not None
    shown = [(query.mols[0], "query", INK, query.names[0])]
    for rank, (mol, name) in enumerate(zip(hits.mols[:DRAWN], hits.names, strict=False), 1):
        shown.append((mol, f"{rank}   {results.score[rank - 1]:.3f}", HIT, name))
    room = (WIDTH - 2 * EDGE) / (DRAWN + 1)
    for place, (mol, head, colour, name) in enumerate(shown):
        left, wide = EDGE + place * room + 0.04, room - 0.08
        picture = draw_structure(
            mol, round(2 * pictures.DPI * wide), round(2 * pictures.DPI * STRUCTURE)
        )
        axes = _axes(figure, height, (left, EDGE / 2, wide, STRUCTURE), xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=True, color=colour if place == 0 else FRAME)
        axes.imshow(image.imread(io.BytesIO(picture)), aspect="auto", interpolation="antialiased")
        y = EDGE / 2 + STRUCTURE + 0.08
        _text(figure, left, y + 0.17, head, color=colour, weight="bold")
        _text(figure, left, y, _shortened(name, wide, 9), fontsize=9)


def _shortened(name: str, inches: float, size: float) -> str:
    """Give a name with as much of its middle left out as it takes to be no wider."""
    fonts = import_extra("pictures", "matplotlib.font_manager", "draw")
    paths = import_extra("pictures", "matplotlib.textpath", "draw").text_to_path
    font = fonts.FontProperties(size=size)

    def wide(text: str) -> float:
        return float(paths.get_text_width_height_descent(text, font, False)[0]) / POINTS

    short, kept = name, min(len(name), 60)
    while wide(short) > inches and kept > 2:
        kept -= 1
        front = (kept + 1) // 2
        short = f"{name[:front]}…{name[len(name) - kept + front :]}"
    return short
