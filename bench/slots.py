"""Slots against no slots, and how near the planner's own number of slots is to the best.

``python -m bench.slots [--check] [--rounds 15] [--on numpy torch jax]``: 500 items of lognormal
sizes, 3 % of them outliers; a sum over waves of each structure, ragged in both, and a sum over
pairs, whose work is quadratic. 1 to 24 slots, exact shapes, and what ``sp.plan`` takes by itself:
by the constants that are shipped, and by those of `measure_costs`. Each framework has a process
of its own. Cold is the first pass of a kernel and a plan: whatever is compiled is compiled in it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import types
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace

import stowplan as sp
from bench.record import at_most, save, show
from bench.workers import ONE_THREAD, Worker, count_compiles

ITEMS, OUTLIERS = 500, 15
COUNTS = (*range(1, 13), 16, 24)
PASSES = 100_000  # of sets like this: warm passes alone count, as a compile is not in their time
WARM_WITHIN, COLD_WITHIN = 1.10, 1.25
COLD_ROUNDS = {"numpy": 5, "torch": 5, "jax": 2}
ONCE = 2.0  # seconds beyond which a side has one cold pass
OF_ALL, CLOSE = 5, 1.4  # warm passes of all sides, and of how many times the best all that follow

Times = tuple[float, float]  # wall and CPU


def scattering(positions, charges, waves, weights):
    """Weighted power of the structure factor, cosines and sines of each (atom, wave)."""
    xp = array_namespace(positions, charges, waves, weights)
    phase = xp.matmul(waves, xp.matrix_transpose(positions))
    real = xp.matmul(xp.cos(phase), charges[..., None])[..., 0]
    imaginary = xp.matmul(xp.sin(phase), charges[..., None])[..., 0]
    return xp.sum(weights * (real**2 + imaginary**2), axis=-1)


def attraction(positions, charges):
    """Gaussian pair energies and forces."""
    xp = array_namespace(positions, charges)
    square = xp.sum(positions**2, axis=-1)
    distance2 = square[..., :, None] + square[..., None, :]
    distance2 = distance2 - 2 * xp.matmul(positions, xp.matrix_transpose(positions))
    pair = charges[..., :, None] * charges[..., None, :] * xp.exp(-distance2 / 2.0)
    pull = xp.matmul(pair, positions) - xp.sum(pair, axis=-1)[..., None] * positions
    return xp.sum(pair, axis=(-2, -1)), pull


def sizes() -> dict[str, np.ndarray]:
    """Give atoms and waves: lognormal, and 3 % of them several times as large."""
    rng = np.random.default_rng(0)
    scale = rng.lognormal(0.0, 0.45, ITEMS)
    scale[rng.permutation(ITEMS)[:OUTLIERS]] *= 5
    atoms = np.clip(np.round(16 * scale), 2, 160)
    waves = np.clip(np.round(50 * scale * rng.lognormal(0.0, 0.25, ITEMS)), 4, 640)
    return {"atoms": atoms.astype(np.int64), "waves": waves.astype(np.int64)}


def scattering_data() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng, found = np.random.default_rng(1), sizes()
    atoms, waves = found["atoms"], found["waves"]
    return {
        "positions": (rng.normal(size=(atoms.sum(), 3)), atoms),
        "charges": (rng.normal(size=atoms.sum()), atoms),
        "waves": (rng.normal(size=(waves.sum(), 3)), waves),
        "weights": (rng.uniform(size=waves.sum()), waves),
    }


def attraction_data() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng, atoms = np.random.default_rng(2), 2 * sizes()["atoms"]
    return {
        "positions": (rng.normal(size=(atoms.sum(), 3)), atoms),
        "charges": (rng.normal(size=atoms.sum()), atoms),
    }


WORKLOADS: dict[str, tuple[Any, Any, Callable[[], dict[str, tuple[np.ndarray, np.ndarray]]]]] = {
    "atoms x waves": (
        sp.kernel(
            "(atoms,3),(atoms),(k,3),(k)->()", ragged=("atoms", "k"),
            work="20 * atoms * k", memory="4 * atoms * k",
        ), scattering, scattering_data,
    ),
    "pairs of atoms": (
        sp.kernel(
            "(atoms,3),(atoms)->(),(atoms,3)", ragged="atoms",
            work="20 * atoms * atoms", memory="4 * atoms * atoms",
        ), attraction, attraction_data,
    ),
}  # fmt: skip


class Side:
    """One framework and one workload; what the parent calls."""

    def __init__(self, on: str, workload: str) -> None:
        self.on = on
        self.compiles: Counter[str] = Counter()
        if on == "jax":
            import jax

            jax.config.update("jax_enable_x64", True)
            self.compiles = count_compiles()
            move: Callable[[np.ndarray], Any] = jax.device_put
        elif on == "torch":
            import torch

            torch.set_num_threads(1)
            move = torch.asarray
        else:
            move = np.asarray
        self.declare, self.function, make = WORKLOADS[workload]
        self.kernel = self.declare(self.function)
        self.data = {name: sp.Ragged(move(x), counts) for name, (x, counts) in make().items()}
        self.kernels: dict[str, Any] = {}
        self.plans: dict[str, sp.Plan] = {}

    def choose(self, label: str, slots: Any, passes: int) -> dict[str, Any]:
        """Plan, and say what came out."""
        start = time.process_time()
        plan = sp.plan(self.kernel, self.data, slots=slots, passes=passes)
        seconds = time.process_time() - start
        self.plans[label] = plan
        return {
            "slots": len(plan.slots),
            "batches": len(plan.batches),
            "shapes": len(plan.shapes),
            "occupancy": plan.occupancy(),
            "plan_seconds": seconds,
            "rows": repr(plan.slots),
            "predicted_seconds": plan.predicted_seconds,
        }

    def measure_costs(self) -> dict[str, float]:
        """Measure the constants of the objective, which later plans use."""
        found = sp.measure_costs(self.kernel, self.data)
        return {name: getattr(found, name) for name in found.__dataclass_fields__}

    def renew(self, label: str) -> None:
        """Take a kernel that nothing was compiled for, and forget the index arrays of a plan."""
        code, names = self.function.__code__, self.function.__globals__
        self.kernels[label] = self.declare(types.FunctionType(code, names))
        self.plans[label].cache.clear()

    def run(self, label: str) -> None:
        """One pass; results are on the host, so that nothing is pending."""
        results = sp.run(self.kernels[label], self.data, self.plans[label])
        for part in results if isinstance(results, tuple) else (results,):
            np.asarray(part.values if isinstance(part, sp.Ragged) else part)

    def results(self, label: str) -> list[np.ndarray]:
        """Give results, for comparison with those of other slots."""
        results = sp.run(self.kernels[label], self.data, self.plans[label])
        parts = results if isinstance(results, tuple) else (results,)
        return [np.asarray(p.values if isinstance(p, sp.Ragged) else p) for p in parts]


def measure(on: str, workload: str, rounds: int) -> dict[str, Any]:
    """Time every side of a framework, warm and cold."""
    worker = Worker(f"{on} {workload}", partial(Side, on, workload))
    sides: dict[str, Any] = {}
    for when, passes in (("cold", 1), ("warm", PASSES)):
        sides[f"shipped {when}"] = worker("choose", f"shipped {when}", None, passes)[0]
    costs = worker("measure_costs")[0]
    for when, passes in (("cold", 1), ("warm", PASSES)):
        sides[f"measured {when}"] = worker("choose", f"measured {when}", None, passes)[0]
    for slots in (*COUNTS, "exact"):
        sides[str(slots)] = worker("choose", str(slots), slots, 1)[0]
    same = first_alike(sides)
    labels = [label for label in sides if same[label] == label]
    cold, compiles = cold_passes(worker, labels, COLD_ROUNDS[on])
    warm = warm_passes(worker, labels, rounds)
    for label, one in sides.items():
        one["compiles"] = compiles[same[label]]
        one["cold"], one["warm"] = summary(cold[same[label]]), summary(warm[same[label]])
        del one["rows"]
    peak = worker.peak_mb
    worker.stop()
    return {"costs": costs, "sides": sides, "ratios": ratios(sides), "peak_mib": peak}


def cold_passes(
    worker: Worker, labels: list[str], rounds: int
) -> tuple[dict[str, list[Times]], dict[str, int]]:
    """Time first passes in turn, and compare results of all sides in the first of them."""
    times: dict[str, list[Times]] = {label: [] for label in labels}
    compiles: dict[str, int] = {}
    first: list[np.ndarray] | None = None
    for number in range(rounds):
        for label in in_turn(labels, number):
            if number and (label.endswith("warm") or times[label][0][1] > ONCE):
                continue
            worker("renew", label)
            times[label].append(worker("run", label)[1])
            compiles[label] = worker.compiled
            if not number:
                found = worker("results", label)[0]
                first = first or found
                for ours, others in zip(found, first, strict=True):
                    largest = abs(others).max()
                    np.testing.assert_allclose(ours, others, rtol=1e-9, atol=1e-9 * largest)
    return times, compiles


def warm_passes(worker: Worker, labels: list[str], rounds: int) -> dict[str, list[Times]]:
    """Time passes in turn: some of every side, and the rest of those that may be the best.

    The best of many medians of few passes is what noise left alone, and not what is fastest.
    """
    times: dict[str, list[Times]] = {label: [] for label in labels}
    for number in range(rounds):
        for label in in_turn(labels, number):
            times[label].append(worker("run", label)[1])
        if number + 1 == OF_ALL:
            median = {label: summary(each)["cpu"] for label, each in times.items()}
            labels = [label for label in labels if median[label] < CLOSE * min(median.values())]
    return times


def in_turn(labels: list[str], number: int) -> list[str]:
    """Give the order of a round, none fixed: a pass after one that emptied caches is slower."""
    order = np.random.default_rng(number).permutation(len(labels))
    return [labels[place] for place in order]


def first_alike(sides: dict[str, Any]) -> dict[str, str]:
    """Give for each side the one that is timed for it: plans that are the same are timed once.

    A pass after one of the same plan is faster, since blocks of its sizes lie ready.
    """
    first: dict[str, str] = {}
    for label in sorted(sides, key=lambda label: label.endswith("warm")):
        first.setdefault(sides[label]["rows"], label)
    return {label: first[one["rows"]] for label, one in sides.items()}


def summary(times: list[Times]) -> dict[str, float]:
    """Medians with min and max, CPU beside wall."""
    wall, cpu = zip(*times, strict=True)
    return {
        "cpu": statistics.median(cpu), "cpu_min": min(cpu), "cpu_max": max(cpu),
        "wall": statistics.median(wall), "wall_min": min(wall), "wall_max": max(wall),
        "passes": len(times),
    }  # fmt: skip


def ratios(sides: dict[str, Any]) -> dict[str, Any]:
    """Say how the planner's own counts compare with the best, and slots with none."""
    found: dict[str, Any] = {}
    for when in ("warm", "cold"):
        best = min(sides, key=lambda label: sides[label][when]["cpu"])
        least = sides[best][when]["cpu"]
        found[f"best {when}"] = best
        found[f"best {when} slots"] = sides[best]["slots"]
        for costs in ("shipped", "measured"):
            found[f"{costs} {when}"] = sides[f"{costs} {when}"][when]["cpu"] / least
            found[f"{costs} {when} wall"] = sides[f"{costs} {when}"][when]["wall"] / min(
                side[when]["wall"] for side in sides.values()
            )
        found[f"no slots {when}"] = sides["1"][when]["cpu"] / least
        found[f"exact {when}"] = sides["exact"][when]["cpu"] / least
    return found


def print_one(title: str, one: dict[str, Any]) -> None:
    costs = ", ".join(f"{name} {value:.3g}" for name, value in one["costs"].items())
    print(f"\n{title}: {costs}")
    print("          slots  batches  useful  compiles  cold ms   warm ms (min-max)")
    for label, side in one["sides"].items():
        warm, cold = side["warm"], side["cold"]
        print(
            f"{label:14} {side['slots']:4d} {side['batches']:6d} {side['occupancy']:8.1%}"
            f"{side['compiles']:7d} {1e3 * cold['cpu']:10.1f} {1e3 * warm['cpu']:9.2f} "
            f"({1e3 * warm['cpu_min']:.2f}-{1e3 * warm['cpu_max']:.2f})"
        )
    each = {k: v if isinstance(v, str | int) else round(v, 3) for k, v in one["ratios"].items()}
    print(each, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=45, help="warm passes of the best sides")
    parser.add_argument("--on", nargs="+", default=["numpy", "torch", "jax"])
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)  # for the workers, which start after this
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    figures: dict[str, Any] = {}
    targets = []
    for workload in options.workloads:
        figures[workload] = {}
        for on in options.on:
            one = measure(on, workload, options.rounds)
            print_one(f"{workload}, {on}", one)
            figures[workload][on] = one
            for costs in ("shipped", "measured"):
                for when, most in (("warm", WARM_WITHIN), ("cold", COLD_WITHIN)):
                    name = f"{workload}, {on}, {when}, {costs} constants: own slots over the best"
                    targets.append(at_most(name, one["ratios"][f"{costs} {when}"], most))
    show(targets)
    if len(targets) == 4 * 3 * len(WORKLOADS):  # a part is no record
        save("slots", {"items": ITEMS, "workloads": figures}, targets, ["torch", "jax"])
    return int(options.check and not all(each["met"] for each in targets))


if __name__ == "__main__":
    raise SystemExit(main())
