"""Optimal transport between 64 pairs of silhouettes: stowplan, OTT-JAX and POT on one thread.

``python -m bench.transport``; see bench/README.md. All sides stop at the same error of the
marginals, which is checked, and give cost, mass, velocity, created and destroyed mass.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.record import RESULTS, at_least, at_most, save, show
from bench.silhouettes import ellipse_pairs
from bench.workers import ONE_THREAD, spread, start

TAU, RELATIVE = 0.99, 0.01
ERROR = 1e-4  # of the marginals, at which OTT and ours stop
ACCURACY = 2e-4  # of costs and masses against solutions to 1e-11, in every side
COUNT, POOL, WIDTH = 64, 8, 576


class Pair(NamedTuple):
    """A problem as the peers take it: points on the support, in scaled coordinates."""

    source: np.ndarray  # (n, 2)
    target: np.ndarray  # (m, 2)
    a: np.ndarray  # (n,)
    b: np.ndarray  # (m,)
    epsilon: float


Answer = tuple[np.ndarray, np.ndarray]
"""Cost and mass of each pair."""


def masks(number: int) -> tuple[list[Any], list[Any]]:
    """Give a set of silhouettes: two sets of other shapes."""
    return ellipse_pairs(COUNT, seed=(4, 5)[number])


def pairs_of(number: int) -> list[Pair]:
    """Give the problems of a set, whose densities and blur are those of ours."""
    from stowplan.recipes import transport

    found = transport.solve(*masks(number), pool=POOL, tau=TAU, relative_epsilon=RELATIVE)
    pairs = []
    for pair in range(COUNT):
        c = found.coupling(pair)
        points = c.source_points / WIDTH, c.target_points / WIDTH
        pairs.append(Pair(*points, c.source_density, c.target_density, float(found.epsilon[pair])))
    return pairs


def maps_of(plan: np.ndarray, pair: Pair) -> tuple[float, float]:
    """Give cost and mass of a dense plan; velocity, created and destroyed are worked out, too."""
    left, arrived = plan.sum(axis=1), plan.sum(axis=0)
    velocity = plan @ pair.target / np.maximum(left, 1e-300)[:, None] - pair.source
    destroyed, created = np.maximum(pair.a - left, 0), np.maximum(pair.b - arrived, 0)
    squares = (pair.source**2).sum(1) @ left + (pair.target**2).sum(1) @ arrived
    cost = squares - 2 * ((plan @ pair.target) * pair.source).sum()
    assert len(velocity) == len(destroyed) and len(created) == len(pair.b)  # noqa: PT018
    return float(cost), float(left.sum())


class OTT:
    """OTT-JAX, pair after pair, a program for each shape; counting reference, as it has it."""

    def __init__(self, dtype: str) -> None:
        import jax
        from ott.geometry import pointcloud
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn

        jax.config.update("jax_enable_x64", dtype == "float64")
        self.dtype = dtype
        self.compiles: Counter[str] = Counter()

        @jax.jit
        def solve(source: Any, target: Any, a: Any, b: Any, epsilon: Any) -> Any:
            self.compiles["sinkhorn"] += 1
            cloud = pointcloud.PointCloud(source, target, epsilon=epsilon)
            problem = linear_problem.LinearProblem(cloud, a=a, b=b, tau_a=TAU, tau_b=TAU)
            solver = sinkhorn.Sinkhorn(threshold=ERROR, max_iterations=5000, inner_iterations=10)
            return solver(problem).matrix

        self.solve = solve

    def prepare(self, number: int) -> None:
        self.pairs = pairs_of(number)
        self.given = [
            [np.asarray(part, self.dtype) for part in pair] for pair in self.pairs
        ]  # fmt: skip

    def compute(self, count: int = COUNT) -> Answer:
        answers = []
        for pair, given in zip(self.pairs[:count], self.given, strict=False):
            plan = np.asarray(self.solve(*given), np.float64)
            answers.append(maps_of(plan, pair))
        return tuple(np.array(answers).T)  # type: ignore[return-value]


class POT:
    """POT, pair after pair, in float64: the quickest of its methods that stops at the error."""

    def __init__(self, reference: str, method: str, stop: float) -> None:
        import ot

        self.ot, self.reference, self.method, self.stop = ot, reference, method, stop
        self.compiles: Counter[str] = Counter()

    def prepare(self, number: int) -> None:
        self.pairs = pairs_of(number)

    def compute(self, count: int = COUNT) -> Answer:
        import warnings

        answers = []
        for pair in self.pairs[:count]:
            costs = self.ot.dist(pair.source, pair.target)
            rho = pair.epsilon * TAU / (1 - TAU)
            kind = "kl" if self.reference == "product" else "entropy"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plan = self.ot.unbalanced.sinkhorn_unbalanced(
                    pair.a, pair.b, costs, pair.epsilon, rho, method=self.method, reg_type=kind,
                    stopThr=self.stop, numItermax=5000,
                )  # fmt: skip
            answers.append(maps_of(plan, pair))
        return tuple(np.array(answers).T)  # type: ignore[return-value]


class Stowplan:
    """Ours, from masks to maps on the canvas."""

    def __init__(self, on: str, reference: str, buckets: int | None = None) -> None:
        if on == "jax":
            import jax

            jax.config.update("jax_enable_x64", True)
            from stowplan.adapters.jax import adapter

            self.compiles = adapter.traces
        else:
            self.compiles: Counter[str] = Counter()
        if on == "torch":
            import torch

            torch.set_num_threads(1)
        from stowplan.recipes import transport

        self.transport = transport
        self.options = {"on": on, "reference": reference, "buckets": buckets}
        self.slots: Any = None

    def prepare(self, number: int) -> None:
        self.masks = masks(number)

    def compute(self, count: int = COUNT) -> Answer:
        options = dict(self.options)
        if self.slots is not None:
            options["buckets"] = self.slots
        found = self.transport.solve(
            *(side[:count] for side in self.masks), pool=POOL, tau=TAU, relative_epsilon=RELATIVE,
            threshold=ERROR, **options,
        )  # fmt: skip
        maps = found.velocity, found.created, found.destroyed
        assert all(len(each) == count for each in maps)
        self.found = found
        return found.cost, found.mass

    def keep_slots(self) -> None:
        """Solve what comes with the buckets of the last set."""
        self.slots = self.found.plan.slots

    def facts(self) -> dict[str, Any]:
        plan = self.found.plan
        return {
            "buckets": len(plan.slots),
            "waste": 1 / plan.occupancy("y * x * (y + x)"),
            "iterations": float(self.found.iterations.mean()),
            "converged": int(self.found.converged.sum()),
            "plan": str(plan),
        }


SIDES: dict[str, Callable[[], Any]] = {
    "OTT float32": partial(OTT, "float32"),
    "OTT float64": partial(OTT, "float64"),
    "POT": partial(POT, "product", "sinkhorn", 1e-5),
    "POT, translation-invariant": partial(POT, "product", "sinkhorn_translation_invariant", 1e-5),
    "stowplan numpy": partial(Stowplan, "numpy", "product"),
    "stowplan torch": partial(Stowplan, "torch", "product"),
    "stowplan jax": partial(Stowplan, "jax", "product"),
    "stowplan jax, counting": partial(Stowplan, "jax", "counting"),
    "stowplan jax, 4 buckets": partial(Stowplan, "jax", "product", 4),
}
OURS = tuple(name for name in SIDES if name.startswith("stowplan"))
AGAINST_OTT = ("stowplan numpy", "stowplan jax, counting", "stowplan jax")
SLOW = {"OTT float32": 3, "OTT float64": 1}
"""Warm passes of sides that take many seconds each."""
PACKAGES = ("torch", "jax", "jaxlib", "ott-jax", "POT")
# (what, side to compare with, quantity, least ratio, sides of ours)
TARGETS = (
    ("warm time", "OTT float32", "warm_cpu", 20, AGAINST_OTT),
    ("cold time", "OTT float32", "cold", 30, AGAINST_OTT),
    ("warm time", "POT", "warm_cpu", 5, OURS),
)
MOST_WASTE = 1.75
BUDGET = 2**30


def reference(side: str) -> str:
    """Name the reference that a side solves with."""
    return "counting" if "OTT" in side or "counting" in side else "product"


def solutions() -> dict[str, Answer]:
    """Give costs and masses of the first set, to 1e-11."""
    from stowplan.recipes import transport

    found = {}
    for name in ("product", "counting"):
        one = transport.solve(
            *masks(0), pool=POOL, tau=TAU, relative_epsilon=RELATIVE, reference=name,
            threshold=1e-11, max_iterations=20000,
        )  # fmt: skip
        found[name] = (one.cost, one.mass)
    return found


def check(name: str, answer: Answer, solution: Answer) -> float:
    """Give the largest relative error of a cost or mass; stop where it is too large."""
    error = max(
        float(np.abs(part / right[: len(part)] - 1).max())
        for part, right in zip(answer, solution, strict=True)
    )
    if not error <= ACCURACY:
        raise SystemExit(f"{name} is off by {error:.1e}, more than {ACCURACY}")
    return error


def measure(names: list[str], rounds: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Cold pass of every side, warm passes in turn, then another set in the same buckets."""
    solved = solutions()
    workers, failed = start({name: SIDES[name] for name in names})
    records: dict[str, dict[str, Any]] = {name: {"warm": []} for name in workers}
    for name, worker in workers.items():
        record = records[name]
        worker("prepare", 0)
        answer, record["cold"] = worker("compute")
        record["error"] = check(name, answer, solved[reference(name)])
        record["compiles"] = worker.compiles
        print(
            f"{name}: cold {record['cold'][1]:.2f} CPU-s, error {record['error']:.1e}", flush=True
        )
    for turn in range(rounds):
        for name, worker in workers.items():
            if turn < SLOW.get(name, rounds):
                records[name]["warm"].append(worker("compute")[1])
    for name, worker in workers.items():
        record = records[name]
        record["peak_mb"] = worker.peak_mb
        wall, cpu = zip(*record["warm"], strict=True)
        record["warm_wall"], record["warm_cpu"] = spread(wall), spread(cpu)
        if name in OURS:
            record["facts"], _ = worker("facts")
            worker("keep_slots")
            worker("prepare", 1)
            worker("compute")
            record["compiles_second_set"] = worker.compiled
        worker.stop()
    return records, failed


def value(record: dict[str, Any], quantity: str) -> float:
    found = record[quantity]
    return float(found["median"] if isinstance(found, dict) else found[1])


def judge(records: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Ratios to the peers beside their targets, compiles and padding."""
    for what, peer, quantity, least, sides in TARGETS:
        for name in sides:
            if name in records and peer in records:
                ratio = value(records[peer], quantity) / value(records[name], quantity)
                yield at_least(f"{what} of {peer} over {name}", ratio, least)
    for name in OURS:
        if name not in records:
            continue
        record = records[name]
        facts, compiles = record["facts"], sum(record["compiles"].values())
        yield at_most(f"{name}: compiles, 3 x buckets", compiles, 3 * facts["buckets"])
        yield at_most(f"{name}: compiles for a second set", record["compiles_second_set"], 0)
        yield at_most(f"{name}: pairs left", COUNT - facts["converged"], 0)
        if "4 buckets" in name:
            yield at_most(f"{name}: padded over useful work", facts["waste"], MOST_WASTE)


def within_budget(on: str) -> dict[str, Any]:
    """Solve 256 pairs on canvases of many sizes in 1 GiB; the rise of the resident size."""
    from bench.memory import resident_rise
    from stowplan.recipes import transport

    sources, targets = ellipse_pairs(256, canvas=None)
    options = {"on": on, "pool": 4, "tau": TAU, "relative_epsilon": RELATIVE, "budget": BUDGET}
    if on == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    transport.solve(sources, targets, **options)  # probes and compiles are no part of a run
    found = []
    start = time.perf_counter()
    rise = resident_rise(lambda: found.append(transport.solve(sources, targets, **options)))
    predicted = found[0].peak_bytes
    return {
        "on": on, "budget": BUDGET, "predicted": predicted, "measured": rise,
        "seconds": time.perf_counter() - start, "converged": int(found[0].converged.sum()),
        "met": rise <= predicted <= BUDGET and bool(found[0].converged.all()),
    }  # fmt: skip


def table(records: dict[str, Any]) -> str:
    """Markdown: one line per side."""
    head = "side|reference|cold CPU s|warm CPU ms a pair: median (min-max)|compiles|error"
    lines = [f"| {head.replace('|', ' | ')} |", "|" + "---|" * 6]
    for name, r in records.items():
        each = {key: 1e3 * seconds / COUNT for key, seconds in r["warm_cpu"].items()}
        cells = (
            name,
            reference(name),
            f"{r['cold'][1]:.2f}",
            f"{each['median']:.2f} ({each['min']:.2f}-{each['max']:.2f})",
            str(sum(r["compiles"].values())),
            f"{r['error']:.0e}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="warm passes of each fast side")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--budget", choices=("numpy", "torch", "jax"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "transport.json")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)
    if options.budget:
        print(json.dumps(within_budget(options.budget)))
        return 0
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    records, failed = measure(options.sides, options.rounds)
    verdicts, within = list(judge(records)), []
    for on in ("numpy", "torch", "jax"):
        command = [sys.executable, "-m", "bench.transport", "--budget", on]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        one = json.loads(done.stdout)
        within.append(one)
        share = one["measured"] / one["predicted"]
        verdict = at_most(f"{on}: 256 pairs in 1 GiB: measured over predicted", share, 1)
        verdicts.append({**verdict, "met": one["met"]})
    print("\n" + table(records) + "\n")
    show(verdicts)
    figures = {"sides": records, "budget": within, "not_run": failed}
    save("transport", figures, verdicts, PACKAGES, options.out)
    return int(options.check and not all(verdict["met"] for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
