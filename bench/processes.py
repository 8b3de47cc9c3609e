"""What a second process brings to batches of 100 ms: ``python -m bench.processes``.

Each process is pinned to a core and has one intra-op thread. Beside wall times stand CPU times,
which tell what the engine costs on a machine that is shared: those of the busiest worker.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import stowplan as sp
from bench.record import RESULTS, at_least, save, show
from bench.workers import ONE_THREAD

BATCHES = 40
BATCH_SECONDS = 0.1
SIZE = 192
TARGET = 1.7
TICK = os.sysconf("SC_CLK_TCK")


@sp.kernel("(n,n)->(n),()", ragged="n", static=("times",), work="n * n * n")
def multiply(matrix, *, times):
    """Powers of a matrix, as many as a batch needs to take its time."""
    power = matrix
    for _ in range(times):
        power = power @ matrix
        power = power / abs(power).max(axis=(-2, -1), keepdims=True)
    return power.sum(axis=-1), power.sum(axis=(-2, -1))


def take_core(cores: Any) -> None:
    """Pin a worker to the next core."""
    os.sched_setaffinity(0, {cores.get()})


@contextmanager
def pinned(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes with a core each, which are up."""
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in sorted(os.sched_getaffinity(0))[:workers]:
        cores.put(core)
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=take_core, initargs=(cores,)
    ) as pool:
        list(pool.map(time.sleep, [0.2] * workers))
        yield pool


def cpu_seconds(pool: ProcessPoolExecutor) -> dict[int, float]:
    """CPU time of each worker so far."""
    found = {}
    for process in pool._processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        found[process] = (int(fields[11]) + int(fields[12])) / TICK
    return found


def measure(pool: ProcessPoolExecutor, data: Any, plan: sp.Plan, times: int) -> dict[str, float]:
    """Wall and CPU seconds of one run."""
    before, own, start = cpu_seconds(pool), time.process_time(), time.perf_counter()
    sp.run(multiply, data, plan, times=times, executor=pool)
    wall, own = time.perf_counter() - start, time.process_time() - own
    after = cpu_seconds(pool)
    spent = [after[process] - before[process] for process in after]
    return {"wall": wall, "busiest": max(spent), "all": sum(spent), "caller": own}


def steps_of() -> int:
    """How many products a batch of 100 ms has, by CPU time in this process."""
    matrices = np.random.default_rng(0).normal(size=(2, SIZE, SIZE))
    taken = []
    for _ in range(5):
        start = time.process_time()
        sp.run(multiply, {"matrix": matrices}, rows=2, times=32)
        taken.append(time.process_time() - start)
    return round(BATCH_SECONDS / (min(taken) / 32))


def main() -> int:
    """Print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "processes.json")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)  # for the workers, which start after this
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(2 * BATCHES, SIZE, SIZE))
    data = {"matrix": matrices}
    plan = sp.plan(multiply, data, rows=2, times=1)
    few = {"matrix": matrices[:8]}
    taken: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    with pinned(1) as one, pinned(2) as two:
        times = one.submit(steps_of).result()
        expected = sp.run(multiply, few, times=times, rows=2)
        for pool in (one, two):  # the first run imports
            found = sp.run(multiply, few, times=times, rows=2, executor=pool)
            assert all(
                np.array_equal(a, b) for a, b in zip(_flat(found), _flat(expected), strict=True)
            )
        for _ in range(options.rounds):
            for workers, pool in ((1, one), (2, two)):
                taken[workers].append(measure(pool, data, plan, times))
    figures = {
        workers: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for workers, runs in taken.items()
    }
    walls = sorted(a["wall"] / b["wall"] for a, b in zip(taken[1], taken[2], strict=True))
    by_cpu = figures[1]["busiest"] / figures[2]["busiest"]
    print(f"{BATCHES} batches, {figures[1]['all'] / BATCHES * 1e3:.0f} ms of CPU each")
    print("| processes | wall s | CPU s of the busiest | CPU s of all | CPU s of the caller |")
    print("|---|---|---|---|---|")
    for workers, row in figures.items():
        cells = " | ".join(f"{row[name]:.2f}" for name in ("wall", "busiest", "all", "caller"))
        print(f"| {workers} | {cells} |")
    print(
        f"1 -> 2 processes: {statistics.median(walls):.2f}x by wall time "
        f"({walls[0]:.2f}-{walls[-1]:.2f}), {by_cpu:.2f}x by CPU time; target {TARGET}x"
    )
    record = {"batches": BATCHES, "median": figures, "wall_ratios": walls, "cpu_ratio": by_cpu}
    verdicts = [
        at_least("two processes over one, by wall time", statistics.median(walls), TARGET),
        at_least("two processes over one, by CPU time", by_cpu, TARGET),
    ]
    show(verdicts)
    save("processes", record, verdicts, (), options.out)
    return int(options.check and not all(verdict["met"] for verdict in verdicts))


def _flat(found: Any) -> list[Any]:
    return [getattr(output, "values", output) for output in found]


if __name__ == "__main__":
    sys.exit(main())
