"""Time and memory of planning: choose 8 slots, assign, split, for 10^3 ... 10^7 items.

``python -m bench.planning [--check] [--largest 7]``: three ragged dims, of one common scale or
independent (the hardest). Each size has a process of its own, so that the peak memory is that of
its own plan; the sizes themselves are part of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

from bench.record import at_most, save, show
from bench.workers import ONE_THREAD, peak_mb

SLOPE = 1.15  # between 10^4 items and 10^7, on a log-log plot
MEMORY_GIB, MINUTES = 8, 3  # of 10^7 items
STEPS = ("choose", "assign", "split")


def sizes(items: int, *, correlated: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    if not correlated:
        return {name: rng.integers(1, 300, items) for name in "abc"}
    scale = rng.lognormal(3.0, 0.7, items)
    return {name: (scale * rng.lognormal(0.0, 0.2, items)).astype(int) + 1 for name in "abc"}


def measure(items: int, *, correlated: bool) -> dict[str, Any]:
    """Give the fastest seconds of each step, and the peak memory, of one size."""
    from stowplan.planners import assign_slots, choose_slots, split_chunks

    columns = sizes(items, correlated=correlated)
    given = peak_mb()
    best: tuple[float, ...] = (math.inf,)
    for _ in range(3 if items < 10**7 else 1):
        clock = [(time.perf_counter(), time.process_time())]
        slots = choose_slots(columns, 8)
        clock.append((time.perf_counter(), time.process_time()))
        plan = assign_slots(columns, slots)
        clock.append((time.perf_counter(), time.process_time()))
        plan = split_chunks(plan, max_rows=1024, ladder=True)
        clock.append((time.perf_counter(), time.process_time()))
        steps = [b[1] - a[1] for a, b in itertools.pairwise(clock)]
        best = min(best, (sum(steps), *steps, clock[-1][0] - clock[0][0]))
    total, *steps, wall = best
    return {
        "items": items,
        "cpu": total,
        "wall": wall,
        **dict(zip(STEPS, steps, strict=True)),
        "peak_mib": peak_mb(),
        "sizes_mib": sum(column.nbytes for column in columns.values()) / 2**20,
        "before_mib": given,
        "occupancy": plan.occupancy(),
        "batches": len(plan.batches),
    }


def curve(correlated: bool, largest: int) -> list[dict[str, Any]]:
    """Measure every size in a process of its own; slopes are against the one before."""
    print(f"\n3 ragged dims, {'correlated' if correlated else 'independent'}; 8 slots; CPU seconds")
    print("   items  choose  assign   split   total  wall s  peak MiB  useful  slope")
    found: list[dict[str, Any]] = []
    for exponent in range(3, largest + 1):
        command = [sys.executable, "-m", "bench.planning", "--measure", str(10**exponent)]
        command += ["--correlated"] * correlated
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        one = json.loads(out)
        if found:
            one["slope"] = math.log10(one["cpu"] / found[-1]["cpu"])
        found.append(one)
        steps = "  ".join(f"{one[step]:6.3f}" for step in STEPS)
        print(
            f"{one['items']:8d}  {steps}  {one['cpu']:6.3f}  {one['wall']:6.3f}"
            f"  {one['peak_mib']:8.0f}  {one['occupancy']:6.1%}  {one.get('slope', 0.0):5.2f}",
            flush=True,
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--largest", type=int, default=7, help="exponent of the most items")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--correlated", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, correlated=options.correlated)))
        return 0
    os.environ.update(ONE_THREAD)  # for the processes, which start after this
    figures: dict[str, Any] = {}
    targets = []
    for kind, correlated in (("correlated", True), ("independent", False)):
        points = curve(correlated, options.largest)
        few, many = points[1], points[-1]
        slope = math.log(many["cpu"] / few["cpu"]) / math.log(many["items"] / few["items"])
        figures[kind] = {"points": points, "slope": slope}
        name = f"{kind}: slope of seconds between 10^4 and 10^{options.largest} items"
        targets += [
            at_most(name, slope, SLOPE),
            at_most(f"{kind}: peak GiB", many["peak_mib"] / 2**10, MEMORY_GIB),
            at_most(f"{kind}: minutes", many["wall"] / 60, MINUTES),
        ]
    show(targets)
    if options.largest == 7:  # a part is no record
        save("planning", {"dims": 3, "slots": 8, "curves": figures}, targets, [])
    return int(options.check and not all(each["met"] for each in targets))


if __name__ == "__main__":
    raise SystemExit(main())
