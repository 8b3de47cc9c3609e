"""Sides of a benchmark, each in a process of its own; only one of them computes at a time."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["ONE_THREAD", "Worker", "count_compiles", "peak_mb", "spread", "start"]

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


def peak_mb() -> float:
    """Largest resident size of this process so far, in MiB."""
    status = Path("/proc/self/status")  # ru_maxrss starts at the size of the parent there
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def serve(name: str, make: Callable[[], Any], connection: Any) -> None:
    """Make a side, then answer each call with result, times, peak and compiles."""
    try:
        side = make()
    except Exception as error:  # noqa: BLE001  # told to the parent, whatever it is
        connection.send(RuntimeError(f"{name}: {error!r}"))
        return
    connection.send(None)
    baseline = peak_mb()
    while (message := connection.recv()) is not None:
        call, arguments = message
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            answer = getattr(side, call)(*arguments)
        except Exception as error:  # noqa: BLE001  # told to the parent, whatever it is
            connection.send(RuntimeError(f"{name}: {call}{arguments}: {error!r}"))
            continue
        times = time.perf_counter() - wall, time.process_time() - cpu
        connection.send((answer, times, peak_mb() - baseline, dict(side.compiles)))


class Worker:
    """A side in its own process: what ``make`` gives, with methods and a counter ``compiles``.

    Raises
    ------
    RuntimeError
        Where it cannot be made, as when its package is not installed; see `start`.
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, make, theirs), daemon=True)
        self.process.start()
        self.peak_mb, self.compiles = 0.0, {}
        try:
            failed = self.connection.recv()
        except EOFError:
            failed = RuntimeError(f"{name}: its process ended while it was made")
        if failed is not None:
            self.process.join()
            raise failed

    def __call__(self, call: str, *arguments: Any) -> tuple[Any, tuple[float, float]]:
        """Give the answer and its (wall, CPU) seconds; counts what was compiled in it."""
        self.connection.send((call, arguments))
        reply = self.connection.recv()
        if isinstance(reply, Exception):
            raise reply
        before = sum(self.compiles.values())
        answer, times, self.peak_mb, self.compiles = reply
        self.compiled = sum(self.compiles.values()) - before
        return answer, times

    def stop(self) -> None:
        self.connection.send(None)
        self.process.join()


def start(makers: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Worker], dict[str, str]]:
    """Start sides; give those that run, and of the others, which are told, what was wrong."""
    workers, failed = {}, {}
    for name, make in makers.items():
        try:
            workers[name] = Worker(name, make)
        except RuntimeError as error:
            failed[name] = str(error)
            print(f"NOT RUN {error}", flush=True)
    return workers, failed


def spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def count_compiles() -> Counter[str]:
    """A counter, filled from now on with XLA compilations by function name."""
    import jax.monitoring

    compiles: Counter[str] = Counter()

    def listen(event: str, _: float, **tags: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiles[str(tags.get("fun_name", "?"))] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    return compiles
