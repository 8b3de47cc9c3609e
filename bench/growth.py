"""Time of each recipe against its number of items, over three decades.

``python -m bench.growth``; see bench/README.md. The recipe is called whole, inputs in memory (of
fields: in the page cache); a call before is not timed, which compiles and loads libraries.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.jobs import RECIPES, Side
from bench.record import at_most, save, show
from bench.workers import ONE_THREAD, Worker

STEEPEST = 1.1  # of log time over log items, in the upper two decades
ITEMS = (1, 3, 10, 30, 100, 300, 1000)
PIXELS = (1024, 3249, 10404, 32761, 103684, 327184, 1036324)  # sides of 32 to 1018
FRAMEWORKS = {
    "ewald": ("numpy", "torch"),
    "bragg": ("numpy", "torch", "jax"),
    "overlay": ("numpy",),
    "fields": ("numpy",),
    "transport": ("numpy",),
}
"""Where a thousand items take seconds, and compiling does not take longer."""
SECONDS = 1.0  # of repeats at each number of items, where one takes less
MOST_REPEATS = 5
PACKAGES = ("torch", "jax", "jaxlib", "ase", "vesin")


def numbers_of(recipe: str) -> tuple[int, ...]:
    """Numbers of items over three decades."""
    return PIXELS if recipe == "bragg" else ITEMS


def measure(recipe: str, on: str) -> list[dict[str, Any]]:
    """CPU seconds at each number of items: median, and parts."""
    found = []
    numbers = numbers_of(recipe)
    worker = Worker(f"{recipe} {on}", partial(Side, recipe, numbers[0], on, {}))
    for items in numbers:
        worker("prepare", items)
        worker("call")
        repeats: list[dict[str, float]] = []
        walls: list[float] = []
        while not repeats or (sum(walls) < SECONDS and len(repeats) < MOST_REPEATS):
            parts, (wall, _) = worker("call")
            repeats.append(parts)
            walls.append(wall)
        parts = {key: statistics.median(one[key] for one in repeats) for key in repeats[0]}
        found.append({"items": items, "wall": statistics.median(walls), **parts})
        print(f"{recipe}, {on}, {items} items: {1e3 * parts['all']:.2f} CPU-ms", flush=True)
    worker("close")
    worker.stop()
    return found


def slope(points: Sequence[dict[str, Any]]) -> float:
    """Slope of log time over log items in the upper two decades, by least squares."""
    upper = [one for one in points if one["items"] * 101 >= points[-1]["items"]]
    logs = np.log([[one["items"], one["all"]] for one in upper])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def constant(points: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Seconds that no item adds to, and seconds an item: a line, by relative errors.

    >>> constant([{"items": n, "all": 2.0 + 0.5 * n} for n in (1, 10, 100)])
    (2.0, 0.5)
    """
    items, seconds = (np.array([one[key] for one in points], float) for key in ("items", "all"))
    table = np.stack([1 / seconds, items / seconds], axis=1)
    found = np.linalg.lstsq(table, np.ones(len(items)), rcond=None)[0]
    return round(float(found[0]), 12), round(float(found[1]), 12)


def curve_of(recipe: str, on: str) -> dict[str, Any]:
    """Measure a curve, with its slope and where its constant part ends."""
    points = measure(recipe, on)
    fixed, each = constant(points)
    return {
        "recipe": recipe,
        "on": on,
        "unit": "pixels" if recipe == "bragg" else "items",
        "points": points,
        "slope": slope(points),
        "constant_seconds": fixed,
        "item_seconds": each,
        "constant_until": max(fixed, 0.0) / each,
    }


def table(curves: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown: one line per curve."""
    yield "| recipe | on | slope | constant ms | us an item | constant until | ms at the end |"
    yield "|" + "---|" * 7
    for one in curves:
        yield (
            f"| {one['recipe']} | {one['on']} | {one['slope']:.2f} | "
            f"{1e3 * one['constant_seconds']:.1f} | {1e6 * one['item_seconds']:.3g} | "
            f"{one['constant_until']:.3g} {one['unit']} | {1e3 * one['points'][-1]['all']:.0f} |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)
    curves = [curve_of(recipe, on) for recipe in options.only for on in FRAMEWORKS[recipe]]
    print("", *table(curves), "", sep="\n")
    targets = [
        at_most(f"{one['recipe']}, {one['on']}: slope of the upper two decades", one["slope"],
                STEEPEST)
        for one in curves
    ]  # fmt: skip
    show(targets)
    if options.out or set(options.only) == set(RECIPES):
        save("growth", {"curves": curves}, targets, PACKAGES, options.out)
    return int(options.check and not all(target["met"] for target in targets))


if __name__ == "__main__":
    sys.exit(main())
