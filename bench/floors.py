"""How far each recipe is from what the machine could do.

``python -m bench.floors``; see bench/README.md. First the ceilings of one core, by the best of all
frameworks; then each job, CPU time, against the largest of its flops, exponentials and bytes over
their ceilings.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.jobs import FRAMEWORKS, RECIPES, Side, Work
from bench.record import at_most, save, show
from bench.workers import ONE_THREAD, Worker, spread

FARTHEST = 5.0  # times the floor, beyond which the cause is to be known
ITEMS = {"ewald": 128, "bragg": 65536, "overlay": 100, "fields": 24, "transport": 64}
OPTIONS: dict[str, dict[str, Any]] = {"fields": {"lines": 1600}}
TRIALS, SECONDS = 5, 0.1  # of each ceiling
SQUARE, CACHED, LARGE = 1024, 1 << 14, 1 << 28  # of a matrix; numbers in a cache; bytes in memory
CHAIN = 64  # multiplications and additions of a number that XLA joins
SHOWN = 8  # functions of a profile
DTYPES = ("float64", "float32")
CAUSES = {
    "ewald": "calls: 100 to 250 operations on small arrays each; neighbour tables and columns, "
    "a third; finding slots, a fifth, is done once for a dataset",
    "bragg": "64 gathers a term, for which there is no ceiling here, and operations that each "
    "write an array (not in JAX)",
    "overlay": "products with an inner size of 4 or 5, padding, calls in the tail",
    "fields": "each product in torch, each FFT in JAX is a pass over memory, where NumPy takes "
    "lines by what a cache holds",
    "transport": "products of 20 to 70 rows, padding, sums element by element",
}
"""What was found to stand between a recipe and its floor, see bench/README.md."""
PACKAGES = ("torch", "jax", "jaxlib", "ase", "vesin")


def best(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of several rounds of calls."""
    call()
    found = []
    for _ in range(TRIALS):
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < SECONDS:
            call()
            count += 1
        found.append(elapsed / count)
    return min(found)


class Ceilings:
    """What a framework reaches on one core, a second."""

    def __init__(self, on: str) -> None:
        self.on = on
        self.compiles: Counter[str] = Counter()

    def measure(self) -> dict[str, float]:
        """Give flops of products, flops element by element in a cache, and exponentials."""
        found = {}
        for dtype in DTYPES:
            rng = np.random.default_rng(0)
            square, cached = (
                rng.uniform(0.1, 0.9, shape).astype(dtype) for shape in ((SQUARE, SQUARE), CACHED)
            )
            product, chain, exp, steps = getattr(self, f"_{self.on}")(square, cached)
            found[f"products {dtype}"] = 2 * SQUARE**3 / best(product)
            found[f"elementwise {dtype}"] = 2 * steps * CACHED / best(chain)
            found[f"exps {dtype}"] = CACHED / best(exp)
        return found

    def move(self) -> dict[str, float]:
        """Give bytes a second: copied in memory, read and written, and read from the page cache."""
        source = np.ones(LARGE, np.uint8)
        target = np.ones(LARGE, np.uint8)
        found = {"copy": 2 * LARGE / best(lambda: np.copyto(target, source))}
        with tempfile.NamedTemporaryFile() as file:
            source.tofile(file.name)
            with Path(file.name).open("rb", buffering=0) as opened:

                def read() -> None:
                    opened.seek(0)
                    part = memoryview(target[: 1 << 24])
                    while opened.readinto(part):
                        pass

                found["read"] = LARGE / best(read)
        return found

    def _numpy(self, square: Any, cached: Any) -> tuple[Any, ...]:
        out, wide = np.empty_like(cached), np.empty_like(square)

        def chain() -> None:
            np.multiply(cached, cached, out=out)
            np.add(out, cached, out=out)

        return (
            lambda: np.matmul(square, square, out=wide), chain, lambda: np.exp(cached, out=out), 1,
        )  # fmt: skip

    def _torch(self, square: Any, cached: Any) -> tuple[Any, ...]:
        import torch

        torch.set_num_threads(1)
        square, cached = torch.from_numpy(square), torch.from_numpy(cached)
        out, wide = torch.empty_like(cached), torch.empty_like(square)

        def chain() -> None:
            torch.mul(cached, cached, out=out)
            torch.add(out, cached, out=out)

        return (
            lambda: torch.matmul(square, square, out=wide), chain,
            lambda: torch.exp(cached, out=out), 1,
        )  # fmt: skip

    def _jax(self, square: Any, cached: Any) -> tuple[Any, ...]:
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", True)
        square, cached = jax.device_put(square), jax.device_put(cached)

        @jax.jit
        def chain(x: Any) -> Any:
            y = x
            for _ in range(CHAIN):
                y = y * x + x
            return y

        product, exp = jax.jit(jnp.matmul), jax.jit(jnp.exp)
        return (
            lambda: product(square, square).block_until_ready(),
            lambda: chain(cached).block_until_ready(),
            lambda: exp(cached).block_until_ready(), CHAIN,
        )  # fmt: skip


class Profiled(Side):
    """A side that also says which functions take its time."""

    def profile(self) -> list[dict[str, Any]]:
        """Give the functions whose own time is longest."""
        profile = cProfile.Profile()
        profile.runcall(self.job.call)
        stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
        ranked = sorted(stats.items(), key=lambda entry: -entry[1][2])[:SHOWN]
        total = sum(entry[2] for entry in stats.values())
        return [
            {
                "function": f"{Path(file).name}:{line} {name}" if line else name,
                "calls": counts[1],
                "share": round(counts[2] / total, 3),
            }
            for (file, line, name), counts in ranked
        ]


def ceilings() -> dict[str, Any]:
    """Measure the ceilings in each framework, each in a process of its own."""
    found: dict[str, Any] = {}
    for on in FRAMEWORKS:
        worker = Worker(f"ceilings {on}", partial(Ceilings, on))
        found[on], _ = worker("measure")
        if on == "numpy":
            found["memory"], _ = worker("move")
        worker.stop()
    return found


def floor(work: Work, found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Seconds that the work takes at the best ceilings: by flops, exponentials and bytes."""

    def most(kind: str) -> float:
        return max(found[on][f"{kind} {work.dtype}"] for on in FRAMEWORKS)

    moved = found["memory"]["read" if work.on_disk else "copy"]
    return {
        "flops": work.flops / most("products"),
        "exps": work.exps / most("exps"),
        "bytes": work.bytes / moved,
    }


def own_floor(work: Work, found: Mapping[str, float], moved: float) -> float:
    """Seconds by the ceilings of one framework, one kind of operation after the other."""
    return (
        work.products / found[f"products {work.dtype}"]
        + (work.flops - work.products) / found[f"elementwise {work.dtype}"]
        + work.exps / found[f"exps {work.dtype}"]
        + work.bytes / moved
    )


def measure(recipe: str, rounds: int, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Time a job on all frameworks in turn, against its floors."""
    options = OPTIONS.get(recipe, {})
    workers = {
        on: Worker(f"{recipe} {on}", partial(Profiled, recipe, ITEMS[recipe], on, options))
        for on in FRAMEWORKS
    }
    calls: dict[str, list[dict[str, float]]] = {on: [] for on in FRAMEWORKS}
    for turn in range(rounds + 1):  # the first compiles
        for on, worker in workers.items():
            parts, _ = worker("call")
            if turn:
                calls[on].append(parts)
    for on, worker in workers.items():
        work: Work = worker("work")[0]
        at_best = floor(work, found)
        least, bound = max((seconds, kind) for kind, seconds in at_best.items())
        parts = {key: statistics.median(one[key] for one in calls[on]) for key in calls[on][0]}
        moved = found["memory"]["read" if work.on_disk else "copy"]
        one = {
            "recipe": recipe, "on": on, "items": ITEMS[recipe], "work": work._asdict(),
            "floor_seconds": least, "bound": bound, "floors": at_best,
            "own_floor_seconds": own_floor(work, found[on], moved),
            "cpu": spread([parts["all"] for parts in calls[on]]), "parts": parts,
            "over": parts["all"] / least,
        }  # fmt: skip
        if one["over"] > FARTHEST:
            one["profile"], _ = worker("profile")
            one["cause"] = CAUSES.get(recipe, "")
        worker("close")
        worker.stop()
        yield one


def judged(one: Mapping[str, Any]) -> dict[str, Any]:
    return at_most(f"{one['recipe']}, {one['on']}: times the floor", one["over"], FARTHEST)


def table(cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: one line per recipe and framework."""
    yield (
        "| recipe | on | floor ms | bound by | CPU ms: median (min-max) | over | plan, run, rest "
        "ms | own floor ms | run over it |"
    )
    yield "|" + "---|" * 9
    for one in cases:
        cpu = {key: 1e3 * seconds for key, seconds in one["cpu"].items()}
        parts, own = one["parts"], 1e3 * one["own_floor_seconds"]
        yield (
            f"| {one['recipe']} | {one['on']} | {1e3 * one['floor_seconds']:.1f} | "
            f"{one['bound']} | {cpu['median']:.0f} ({cpu['min']:.0f}-{cpu['max']:.0f}) | "
            f"{one['over']:.1f}x | "
            f"{', '.join(f'{1e3 * parts[key]:.0f}' for key in ('plan', 'run', 'rest'))} | "
            f"{own:.0f} | {1e3 * parts['run'] / own:.1f}x |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--rounds", type=int, default=5, help="passes of each side")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)
    found = ceilings()
    for on, each in found.items():
        shown = ", ".join(f"{name} {1e-9 * rate:.2f}" for name, rate in each.items())
        print(f"{on}, 10^9 a second: {shown}", flush=True)
    cases = [one for recipe in options.only for one in measure(recipe, options.rounds, found)]
    print("", *table(cases), "", sep="\n")
    for one in cases:
        for entry in one.get("profile", ()):
            print(f"{one['recipe']}, {one['on']}: {100 * entry['share']:.0f} % in "
                  f"{entry['function']}, {entry['calls']} calls")  # fmt: skip
    targets = [judged(one) for one in cases]
    show(targets)
    if options.out or set(options.only) == set(RECIPES):
        save("floors", {"ceilings": found, "cases": cases}, targets, PACKAGES, options.out)
    return int(options.check and not all(target["met"] for target in targets))


if __name__ == "__main__":
    sys.exit(main())
