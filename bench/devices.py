"""Two devices against one: virtual ones of JAX, and workers of torch and NumPy.

``python -m bench.devices [--on jax torch] [--rounds 7] [--batches 24]``: batches of about 100 ms,
each device on one core with one intra-op thread. Then a process that finds its programs compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from array_api_compat import array_namespace

import stowplan as sp
from bench.workers import ONE_THREAD, Worker

TARGET = 1.7
POSES = 12
ROWS = {"jax": 64, "torch": 8, "numpy": 12}  # of a batch of about 100 ms on one core
POINTS = 250
RESULTS = Path(__file__).with_name("results") / "devices.json"


@sp.kernel("(n,3),(m,3)->()", ragged=("n", "m"), work="12 * n * m")
def overlap(fixed: Any, moved: Any, *, mask: Any) -> Any:
    """Sum of Gaussian overlaps of two point sets in several poses: arithmetic, and little memory.

    Signature: ``(n,3),(m,3)->()``.
    """
    xp = array_namespace(fixed, moved)
    weight = xp.astype(mask["n"], fixed.dtype)
    other = xp.astype(mask["m"], moved.dtype)
    own = xp.sum(fixed * fixed, axis=-1)
    its = xp.sum(moved * moved, axis=-1)
    total = xp.zeros_like(fixed[..., 0, 0])
    for pose in range(POSES):
        turned = moved * (1.0 + 0.01 * pose)
        product = xp.matmul(fixed, xp.matrix_transpose(turned))
        square = own[..., :, None] + ((1.0 + 0.01 * pose) ** 2 * its)[..., None, :] - 2 * product
        near = xp.exp(-0.8 * square) * other[..., None, :]
        total = total + xp.sum(xp.sum(near, axis=-1) * weight, axis=-1)
    return total


def point_sets(items: int) -> dict[str, sp.Ragged]:
    """Random points, 245 to 255 of them (seeded)."""
    rng = np.random.default_rng(0)
    found = {}
    for name in ("fixed", "moved"):
        sizes = rng.integers(POINTS - 5, POINTS + 6, items)
        found[name] = sp.Ragged(rng.normal(size=(sizes.sum(), 3)).astype("f4") * 3, sizes)
    return found


class Side:
    """One framework in a process of its own, with two devices."""

    def __init__(self, on: str, batches: int) -> None:
        self.compiles: dict[str, int] = {}
        self.on = on
        self.data = point_sets(batches * ROWS[on])
        if on == "torch":
            import torch

            torch.set_num_threads(1)
            self.data = {name: one.map_values(torch.asarray) for name, one in self.data.items()}
        self.devices = sp.devices(2, on=on)
        slots = [{"n": POINTS + 5, "m": POINTS + 5}]
        self.plan = sp.plan(overlap, self.data, on=on, slots=slots, rows=ROWS[on])
        self.plans = {n: sp.share_devices(self.plan, n) for n in (1, 2)}
        self.whole = self.run(1)[2]

    def run(self, devices: int) -> tuple[float, float, Any]:
        """Give (wall, CPU) seconds of a run on one core or two, and its results."""
        with on_cores(devices):
            wall, cpu = time.perf_counter(), time.process_time()
            found = sp.run(
                overlap, self.data, self.plans[devices], on=self.on,
                devices=self.devices[:devices],
            )  # fmt: skip
            times = time.perf_counter() - wall, time.process_time() - cpu
        return *times, np.asarray(found)

    def compare(self, devices: int) -> tuple[float, float]:
        """Give the times of a run whose results are those of one device."""
        wall, cpu, found = self.run(devices)
        np.testing.assert_allclose(found, self.whole, rtol=2e-5)
        return wall, cpu


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Keep all threads of this process on the first cores that it may use."""
    every = sorted(os.sched_getaffinity(0))
    if len(every) < 2:
        raise SystemExit("bench.devices needs two cores")
    pin(every[:count])
    try:
        yield
    finally:
        pin(every)


def pin(cores: list[int]) -> None:
    for task in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:  # it has ended
            continue


class Make:
    """Makes a side in another process."""

    def __init__(self, on: str, batches: int) -> None:
        self.on, self.batches = on, batches

    def __call__(self) -> Side:
        return Side(self.on, self.batches)


def scaling(on: str, batches: int, rounds: int) -> dict[str, float]:
    """Run on one device and on two, in turns."""
    side = Worker(on, Make(on, batches))
    times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for devices in (1, 2):
        side("compare", devices)  # compiles, and warms up
    for _ in range(rounds):
        for devices in (1, 2):
            times[devices].append(side("compare", devices)[0])
    side.stop()
    one, two = ([wall for wall, _ in times[devices]] for devices in (1, 2))
    cpu_one, cpu_two = (min(cpu for _, cpu in times[devices]) for devices in (1, 2))
    found = {
        "batch_ms": 1e3 * min(one) / batches,
        "speedup_of_least": min(one) / min(two),
        "speedup_of_medians": median(one) / median(two),
        "best_pair": max(a / b for a, b in zip(one, two, strict=True)),
        "cpu_seconds_one": cpu_one,
        "cpu_seconds_two": cpu_two,
    }
    print(
        f"{on:<6} {found['batch_ms']:6.0f} ms a batch, {batches} batches: 1 device "
        f"{min(one):.2f} s ({median(one):.2f}), 2 devices {min(two):.2f} s ({median(two):.2f}): "
        f"{found['speedup_of_least']:.2f}x by the least, {found['speedup_of_medians']:.2f}x by the "
        f"median; CPU {cpu_one:.2f} and {cpu_two:.2f} s; target {TARGET}x",
        flush=True,
    )
    return found


WARM = """
import sys, time
import numpy as np
import stowplan as sp
from bench.devices import Side
sp.compile_cache(sys.argv[1])
import jax
from collections import Counter
events = Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
from stowplan.kernels.ewald import kspace_energy_forces
from bench.packing import data_set
jax.config.update("jax_enable_x64", True)
names = kspace_energy_forces.arguments
data = {name: one for name, one in data_set(200).items() if name in names}
plan = sp.plan(kspace_energy_forces, data, on="jax", slots=8)
start, cpu = time.perf_counter(), time.process_time()
sp.run(kspace_energy_forces, data, plan, on="jax")
times = time.perf_counter() - start, time.process_time() - cpu
prefix = "/jax/compilation_cache/cache_"
print(*times, events[prefix + "hits"], events[prefix + "misses"])
"""


def warm_process(rounds: int) -> dict[str, float]:
    """First run of a kernel with 8 shapes, in a process with an empty cache and in a later one."""
    found: dict[str, list[list[float]]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for times in found.values():
                told = subprocess.run(
                    [sys.executable, "-c", WARM, folder], capture_output=True, text=True,
                    check=True, env={**os.environ, **ONE_THREAD},
                )  # fmt: skip
                times.append([float(x) for x in told.stdout.split()])
    cold, warm = (min(found[name]) for name in ("cold", "warm"))
    print(
        f"first run of 8 shapes on JAX: {cold[0]:.2f} s (CPU {cold[1]:.2f}) with an empty compile "
        f"cache, {int(cold[3])} programs compiled; {warm[0]:.2f} s (CPU {warm[1]:.2f}) in a second "
        f"process, {int(warm[2])} read, {int(warm[3])} compiled: {cold[0] / warm[0]:.1f}x"
    )
    return {
        "cold_seconds": cold[0], "cold_cpu_seconds": cold[1], "compiled": cold[3],
        "warm_seconds": warm[0], "warm_cpu_seconds": warm[1], "read": warm[2],
        "compiled_again": warm[3],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--on", nargs="*", default=["jax", "torch", "numpy"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--no-cache", action="store_true", help="leave the compile cache out")
    parser.add_argument("--check", action="store_true", help="fail if the target is missed")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)
    results: dict[str, Any] = {
        on: scaling(on, options.batches, options.rounds) for on in options.on
    }
    if not options.no_cache:
        results["compile_cache"] = warm_process(2)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    missed = [on for on in options.on if results[on]["speedup_of_least"] < TARGET]
    if options.check and missed:
        raise SystemExit(f"below {TARGET}x: {', '.join(missed)}")


if __name__ == "__main__":
    main()
