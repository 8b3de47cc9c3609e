"""Bandwidth of gather and scatter against a copy of the same bytes.

``python -m bench.gather [--check] [--rounds 9] [--on numpy torch jax]``: columns of 1, 3 and 64
float64 numbers a row, items in the order of the data and shuffled. Timed is what `run` does for a
batch with index arrays that are ready: flat rows to a padded batch, and a padded output to flat
rows of the results. Beside it ``np.copyto`` of as many bytes between warm buffers: the whole padded
batch for a gather, the real rows for a scatter.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import stowplan as sp
from bench.record import at_most, save, show
from bench.workers import ONE_THREAD, Worker
from stowplan.runs.columns import bind
from stowplan.runs.jobs import Job
from stowplan.runs.places import find_places

WIDTHS = (1, 3, 64)
COLUMN_BYTES = 2**26  # of values; a batch is 16 MiB, as `plan` makes it
SHORTEST, LONGEST = 40, 64
WITHIN = 5.0  # times a copy, at the widest rows


@sp.kernel("(n,c)->(n,c)", ragged="n")
def same(x):
    """Nothing but gather and scatter."""
    return x


class Machinery:
    """One framework: gather and scatter of all batches, and the copy."""

    def __init__(self, on: str) -> None:
        self.compiles: Counter[str] = Counter()
        self.move: Callable[[np.ndarray], Any] = np.asarray
        if on == "jax":
            import jax

            jax.config.update("jax_enable_x64", True)
            self.move = jax.device_put
        if on == "torch":
            import torch

            torch.set_num_threads(1)
            self.move = torch.asarray

    def measure(self, width: int, shuffled: bool, rounds: int) -> dict[str, Any]:
        """Give seconds of a gather, a scatter and copies, interleaved, and the bytes of each."""
        rng = np.random.default_rng(0)
        mean = (SHORTEST + LONGEST) / 2
        lengths = rng.integers(SHORTEST, LONGEST + 1, int(COLUMN_BYTES / (8 * width * mean)))
        values = rng.normal(size=(int(lengths.sum()), width))
        column = sp.Ragged(self.move(values), lengths)
        if shuffled:
            column = column[rng.permutation(len(lengths))]
        plan = sp.plan(same, {"x": column}, slots=1)
        columns = bind("run", same, {"x": column})
        source, target = find_places("run", columns.arrays, None, None)
        job = Job("run", same, columns, plan, source, target)
        numbers = range(len(plan.batches))
        batches = [job.gather(number)[0] for number in numbers]  # index arrays are made here
        padded = sum(batch.nbytes for (batch,) in batches)
        outputs = [self.move(np.asarray(batch)) for (batch,) in batches]
        for number, output in zip(numbers, outputs, strict=True):
            job.scatter(number, output)
        (result,) = job.results()
        given = np.concatenate([np.asarray(item) for item in column])
        np.testing.assert_array_equal(np.asarray(result.values), given)
        del batches, result, given
        pairs = list(zip(numbers, outputs, strict=True))
        times: dict[str, list[float]] = {"gather": [], "scatter": [], "copy": [], "results": []}
        buffers = np.ones((2, padded // len(numbers) // 8))
        kept = values.nbytes // len(numbers) // 8
        for _ in range(rounds):
            times["copy"].append(
                seconds(lambda: [np.copyto(buffers[0], buffers[1]) for _ in numbers])
            )
            times["gather"].append(seconds(lambda: deque(map(job.gather, numbers), maxlen=0)))
            times["results"].append(
                seconds(lambda: [np.copyto(buffers[0, :kept], buffers[1, :kept]) for _ in numbers])
            )
            times["scatter"].append(seconds(lambda: [job.scatter(*pair) for pair in pairs]))
            job.results()  # a new one for the next round
        median = {name: statistics.median(each) for name, each in times.items()}
        return {
            "batches": len(numbers),
            "padded_mib": padded / 2**20,
            "real_mib": values.nbytes / 2**20,
            "seconds": times,
            "gather GB/s": padded / median["gather"] / 1e9,
            "copy of a batch GB/s": padded / median["copy"] / 1e9,
            "gather over copy": median["gather"] / median["copy"],
            "scatter GB/s": values.nbytes / median["scatter"] / 1e9,
            "copy of results GB/s": values.nbytes / median["results"] / 1e9,
            "scatter over copy": median["scatter"] / median["results"],
        }


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()  # of all threads: other programs do not count
    call()
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--on", nargs="+", default=["numpy", "torch", "jax"])
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)  # for the workers, which start after this
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    figures: dict[str, Any] = {}
    targets = []
    print("                       gather GB/s  copy GB/s  ratio  scatter GB/s  copy GB/s  ratio")
    for on in options.on:
        worker = Worker(on, partial(Machinery, on))
        for width in WIDTHS:
            for shuffled in (False, True):
                name = f"{on}, {width} a row, {'shuffled' if shuffled else 'in order'}"
                one = worker("measure", width, shuffled, options.rounds)[0]
                figures[name] = one
                print(
                    f"{name:26}{one['gather GB/s']:8.2f}{one['copy of a batch GB/s']:11.2f}"
                    f"{one['gather over copy']:7.2f}{one['scatter GB/s']:14.2f}"
                    f"{one['copy of results GB/s']:11.2f}{one['scatter over copy']:7.2f}",
                    flush=True,
                )
                if width == max(WIDTHS):
                    for what in ("gather", "scatter"):
                        ratio = one[f"{what} over copy"]
                        targets.append(at_most(f"{name}: {what} over a copy", ratio, WITHIN))
        worker.stop()
    show(targets)
    if len(options.on) == 3:  # a part is no record
        save("gather", {"sides": figures}, targets, ["torch", "jax"])
    return int(options.check and not all(each["met"] for each in targets))


if __name__ == "__main__":
    raise SystemExit(main())
