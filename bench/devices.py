"""Two devices against one: virtual ones of JAX, and workers of torch and NumPy.

``python -m bench.devices [--on jax torch] [--rounds 7] [--batches 24]``: batches of about 100 ms,
each device on one core with one intra-op thread. On a machine that others use, too, two figures
count: runs while others took less than a tenth of a core; and, for workers, times from which is
taken off what their threads waited for a core, as the kernel counts it. Then a process that finds
its programs compiled.
"""

from __future__ import annotations

import argparse
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
from bench.record import RESULTS, at_least, save, show
from bench.workers import ONE_THREAD, Worker

TARGET = 1.7
POSES = 12
ROWS = {"jax": 64, "torch": 8, "numpy": 12}  # of a batch of about 100 ms on one core
POINTS = 250
PACKAGES = ("torch", "jax", "jaxlib")


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
        self.whole = self.run(1)[-1]

    def run(self, devices: int) -> tuple[float, float, float, float, Any]:
        """Give seconds and results of a run on one core or two.

        Wall time, that without waits for a core, CPU time, and cores that others took meanwhile.
        """
        with on_cores(devices), noted_waits(self.on) as notes:
            main, busy = waited(), busy_seconds()
            wall, cpu = time.perf_counter(), time.process_time()
            found = sp.run(
                overlap, self.data, self.plans[devices], on=self.on,
                devices=self.devices[:devices],
            )  # fmt: skip
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            main, busy = waited() - main, busy_seconds() - busy
        slowest = max(seconds for seconds, _ in notes)
        alone = max(seconds - waits for seconds, waits in notes)
        others = max(busy - cpu, 0.0) / wall
        return wall, wall - slowest - main + alone, cpu, others, np.asarray(found)

    def compare(self, devices: int) -> tuple[float, ...]:
        """Give the times of a run whose results are those of one device."""
        *times, found = self.run(devices)
        np.testing.assert_allclose(found, self.whole, rtol=2e-5)
        return tuple(times)


def waited() -> float:
    """Seconds that this thread has waited for a core while it could run."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) * 1e-9


def busy_seconds() -> float:
    """Seconds that all cores together have worked."""
    user, nice, system, _, _, irq, soft, *_ = (
        int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


@contextmanager
def noted_waits(on: str) -> Iterator[list[tuple[float, float]]]:
    """Note for the thread of each device its wall time and how long it waited for a core."""
    adapter, notes = sp.adapters.get_adapter(on), []
    kind = type(adapter)
    alongside = kind.alongside

    @contextmanager
    def noted(self: Any) -> Iterator[Any]:
        with alongside(self) as within:

            @contextmanager
            def one(device: Any) -> Iterator[None]:
                start, wait = time.perf_counter(), waited()
                with within(device):
                    yield
                notes.append((time.perf_counter() - start, waited() - wait))

            yield one

    kind.alongside = noted
    try:
        yield notes
    finally:
        kind.alongside = alongside


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


def scaling(on: str, batches: int, rounds: int) -> dict[str, float | None]:
    """Run on one device and on two, in turns."""
    side = Worker(on, Make(on, batches))
    times: dict[int, list[tuple[float, ...]]] = {1: [], 2: []}
    for devices in (1, 2):
        side("compare", devices)  # compiles, and warms up
    for _ in range(rounds):
        for devices in (1, 2):
            times[devices].append(side("compare", devices)[0])
    side.stop()
    one, two = (list(zip(*times[devices], strict=True)) for devices in (1, 2))
    quiet = [[each[0] for each in times[devices] if each[3] < 0.1] for devices in (1, 2)]
    found: dict[str, float | None] = {
        "batch_ms": 1e3 * median(one[2]) / batches,
        "speedup_of_least": min(one[0]) / min(two[0]),
        "speedup_of_medians": median(one[0]) / median(two[0]),
        "speedup_in_quiet": median(quiet[0]) / median(quiet[1]) if all(quiet) else None,
        "quiet_rounds": len(quiet[1]),
        "speedup_without_waits": median(one[1]) / median(two[1]) if on != "jax" else None,
        "cores_of_others": median(two[3]),
        "cpu_seconds_one": median(one[2]),
        "cpu_seconds_two": median(two[2]),
    }
    print(on, {name: value and round(value, 2) for name, value in found.items()}, flush=True)
    return found


WARM = """
import sys, time
import numpy as np
import stowplan as sp
sp.compile_cache(sys.argv[1])
import jax
from collections import Counter
events = Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
from stowplan.kernels.ewald import kspace_field
from bench.packing import data_set
jax.config.update("jax_enable_x64", True)
names = kspace_field.arguments
data = {name: one for name, one in data_set(200).items() if name in names}
plan = sp.plan(kspace_field, data, on="jax", slots=8)
start, cpu = time.perf_counter(), time.process_time()
sp.run(kspace_field, data, plan, on="jax")
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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--on", nargs="*", default=["jax", "torch", "numpy"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--no-cache", action="store_true", help="leave the compile cache out")
    parser.add_argument("--check", action="store_true", help="fail if the target is missed")
    parser.add_argument("--out", type=Path, default=RESULTS / "devices.json")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)
    results: dict[str, Any] = {
        on: scaling(on, options.batches, options.rounds) for on in options.on
    }
    if not options.no_cache:
        results["compile_cache"] = warm_process(2)
    best = {
        on: results[on]["speedup_in_quiet"] or results[on]["speedup_without_waits"] or 0.0
        for on in options.on
    }
    verdicts = [at_least(f"{on}: two devices over one", best[on], TARGET) for on in options.on]
    show(verdicts)
    save("devices", results, verdicts, PACKAGES, options.out)
    return int(options.check and not all(verdict["met"] for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
