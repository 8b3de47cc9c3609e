"""Time and memory of planning: choose 8 slots, assign, chunk, for 10^3 ... 10^6 items.

Run it: ``python bench/planning.py [largest exponent, 6 by default]``. Each size has a process of
its own, so that the peak memory is that of its own plan.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

REPEATS = 3


def sizes(items: int, correlated: bool):
    """Three ragged dims: of one common scale, or independent (the hardest)."""
    import numpy as np

    rng = np.random.default_rng(0)
    if not correlated:
        return {name: rng.integers(1, 300, items) for name in "abc"}
    scale = rng.lognormal(3.0, 0.7, items)
    return {name: (scale * rng.lognormal(0.0, 0.2, items)).astype(int) + 1 for name in "abc"}


def measure(items: int, correlated: bool) -> None:
    """Print the fastest seconds of each step, and the peak memory, of one size."""
    import resource

    from stowplan.planners import assign_slots, choose_slots, split_chunks

    columns = sizes(items, correlated)
    best: tuple[float, ...] = (float("inf"),)
    for _ in range(REPEATS):
        clock = [time.perf_counter()]
        slots = choose_slots(columns, 8)
        clock.append(time.perf_counter())
        plan = assign_slots(columns, slots)
        clock.append(time.perf_counter())
        plan = split_chunks(plan, max_rows=1024, ladder=True)
        clock.append(time.perf_counter())
        steps = tuple(b - a for a, b in itertools.pairwise(clock))
        best = min(best, (sum(steps), *steps))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(*best, peak, plan.occupancy())


def main() -> None:
    """The curve as a table, with the slope between neighbours: 1 is linear."""
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    for correlated in (True, False):
        print(f"\n3 ragged dims, {'correlated' if correlated else 'independent'}; 8 slots")
        print("   items  choose s  assign s  chunk s  total s  peak MiB  occupancy  slope")
        before = 0.0
        for exponent in range(3, largest + 1):
            command = [sys.executable, __file__, "--measure", str(10**exponent), str(correlated)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            total, choose, assign, chunk, peak, occupancy = map(float, out.split())
            slope = "" if not before else f"{math.log10(total / before):6.2f}"
            before = total
            print(
                f"{10**exponent:8d}  {choose:8.3f}  {assign:8.3f}  {chunk:7.3f}  {total:7.3f}"
                f"  {peak:8.0f}  {occupancy:8.1%}  {slope}"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(int(sys.argv[2]), sys.argv[3] == "True")
    else:
        main()
