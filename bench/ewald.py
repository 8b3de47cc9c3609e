"""Ewald sums of 128 mixed structures: stowplan, jax-pme and torch-pme on one thread.

``nox -s bench`` or ``python -m bench.ewald``; see bench/README.md. Each side lives in a process of
its own; only one of them computes at a time.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.record import RESULTS, at_least, at_most, save, show
from bench.sides import JaxPME, Result, Side, Stowplan, TorchPME
from bench.workers import ONE_THREAD, Worker, spread, start
from bench.workload import CUTOFF, SMEARING, WAVELENGTH, grid, structures

COUNT, SECOND_COUNT = 128, 96
NEW_SMEARING = 1.1 * SMEARING
SIDES: dict[str, Callable[[], Side]] = {
    "torch-pme": TorchPME,
    "jax-pme": partial(JaxPME, "mixed", rows=4),
    "jax-pme, 16 rows": partial(JaxPME, "mixed", rows=16),
    "jax-pme tiled": partial(JaxPME, "tiled", rows=16),
    "jax-pme, 8 slots by hand": partial(JaxPME, "mixed", rows=128, slots=8),
    "stowplan numpy": partial(Stowplan, "numpy", slots=16),
    "stowplan torch": partial(Stowplan, "torch", slots=16),
    "stowplan jax": partial(Stowplan, "jax", slots=8),
}
OURS = tuple(name for name in SIDES if name.startswith("stowplan"))
SLOW = {"jax-pme": 3, "jax-pme, 16 rows": 1, "jax-pme tiled": 3}
"""Warm passes of sides that take many seconds each."""
AGREEMENT = 1e-9
PACKAGES = ("jax-pme", "torch-pme", "scipy", "torch", "jax", "jaxlib")
# (what, side to compare with, quantity, least ratio, sides of ours)
TARGETS = (
    ("CPU time", "jax-pme", "warm_cpu", 10, OURS),
    ("CPU time", "torch-pme", "warm_cpu", 8, ("stowplan numpy", "stowplan torch")),
    ("CPU time", "torch-pme", "warm_cpu", 6, ("stowplan jax",)),
    ("peak memory", "jax-pme", "peak_mb", 4, OURS),
)


class Served:
    """A side with its two sets of structures, as a worker drives it."""

    def __init__(self, name: str) -> None:
        self.sets = [structures(COUNT, seed=0), structures(SECOND_COUNT, seed=1)]
        self.side = SIDES[name]()
        self.compiles = self.side.compiles
        self.compute, self.facts = self.side.compute, self.side.facts

    def prepare(self, number: int) -> None:
        self.side.prepare(self.sets[number], self.sets[0] + self.sets[1])


def measure(names: list[str], rounds: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Cold pass of every side, warm passes in turn, then the second set and a new smearing."""
    workers, failed = start({name: partial(Served, name) for name in names})
    records: dict[str, dict[str, Any]] = {name: {"warm": []} for name in workers}
    results: dict[str, Result] = {}
    for name, worker in workers.items():
        record = records[name]
        _, record["prepare"] = worker("prepare", 0)
        results[name], record["cold"] = worker("compute")
        record["compiles"] = worker.compiles
        record["facts"], _ = worker("facts")
        print(f"{name}: cold {record['cold'][1]:.2f} CPU-s, {record['facts']}", flush=True)
    expected = next(iter(results.values()))
    for name, result in results.items():
        records[name] |= errors(result, expected)
    for turn in range(rounds):
        for name, worker in workers.items():
            if turn < SLOW.get(name, rounds):
                records[name]["warm"].append(worker("compute")[1])
    for name, worker in workers.items():
        record = records[name]
        record["peak_mb"] = worker.peak_mb
        wall, cpu = zip(*record["warm"], strict=True)
        record["warm_wall"], record["warm_cpu"] = spread(wall), spread(cpu)
    for name, worker in workers.items():
        if name in OURS:
            records[name] |= reuse(worker, workers.get("torch-pme"))
    for worker in workers.values():
        worker.stop()
    return records, failed


def reuse(worker: Worker, reference: Worker | None) -> dict[str, Any]:
    """What another smearing and another set compile, and whether they are right."""
    smeared, _ = worker("compute", NEW_SMEARING)
    found: dict[str, Any] = {"compiles_new_smearing": worker.compiled}
    worker("prepare", 1)
    prepared = worker.compiled
    second, _ = worker("compute")
    found["compiles_second_set"] = prepared + worker.compiled
    if reference is not None:
        reference("prepare", 0)
        found["new_smearing"] = errors(smeared, reference("compute", NEW_SMEARING)[0])
        reference("prepare", 1)
        found["second_set"] = errors(second, reference("compute")[0])
    return found


def errors(result: Result, expected: Result) -> dict[str, float]:
    """Largest difference of an energy, relative, and of a force, over the largest force."""
    (energies, forces), (right_energies, right_forces) = result, expected
    found = {
        "energy_error": np.max(np.abs(energies - right_energies) / np.abs(right_energies)),
        "force_error": np.max(np.abs(forces - right_forces)) / np.max(np.abs(right_forces)),
    }
    if max(found.values()) > AGREEMENT:
        raise SystemExit(f"the sides disagree by more than {AGREEMENT}: {found}")
    return {key: float(value) for key, value in found.items()}


def judge(records: dict[str, Any]) -> list[dict[str, Any]]:
    """Ratios to the peers beside their targets, and the counts of compiles."""
    verdicts = []

    def value(name: str, quantity: str) -> float:
        found = records[name][quantity]
        return float(found["median"] if isinstance(found, dict) else found)

    for what, peer, quantity, least, sides in TARGETS:
        for name in sides:
            if name in records and peer in records:
                ratio = value(peer, quantity) / value(name, quantity)
                verdicts.append(at_least(f"{what} of {peer} over {name}", ratio, least))
    for name in OURS:
        if name in records:
            record = records[name]
            slots, compiles = sum(record["facts"]["slots"]), sum(record["compiles"].values())
            for claim, count, most in (
                (f"{name}: compiles, one a slot", compiles, slots),
                (f"{name}: compiles for a new smearing", record["compiles_new_smearing"], 0),
                (f"{name}: compiles for a second set", record["compiles_second_set"], 0),
            ):
                verdicts.append(at_most(claim, count, most))
    return verdicts


def describe() -> dict[str, Any]:
    """The workload."""
    items = structures(COUNT, seed=0)
    atoms, k = np.array([len(a) for a in items]), np.array([np.prod(grid(a)) for a in items])
    return {
        "structures": COUNT,
        "atoms": [int(atoms.min()), int(np.median(atoms)), int(atoms.max())],
        "k_vectors": [int(k.min()), int(np.median(k)), int(k.max())],
        "k_times_atoms": int((k * atoms).sum()),
        "one_shape_occupancy": float((k * atoms).sum() / (k.max() * atoms.max() * COUNT)),
        "cutoff": CUTOFF,
        "smearing": SMEARING,
        "wavelength": WAVELENGTH,
    }


def table(records: dict[str, Any]) -> str:
    """Markdown: one line per side."""
    head = "side|cold CPU s|warm CPU s: median (min-max)|warm wall s|peak MiB|compiles|dE/E|dF"
    lines = [f"| {head.replace('|', ' | ')} |", "|" + "---|" * 8]
    for name, r in records.items():
        cpu, wall = r["warm_cpu"], r["warm_wall"]
        cells = (
            name,
            f"{r['cold'][1]:.2f}",
            f"{cpu['median']:.3f} ({cpu['min']:.3f}-{cpu['max']:.3f})",
            f"{wall['median']:.3f}",
            f"{r['peak_mb']:.0f}",
            str(sum(r["compiles"].values())),
            f"{r['energy_error']:.0e}",
            f"{r['force_error']:.0e}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="warm passes of each fast side")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--out", type=Path, default=RESULTS / "ewald.json")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    records, failed = measure(options.sides, options.rounds)
    verdicts = judge(records)
    print("\n" + table(records) + "\n")
    show(verdicts)
    figures = {"workload": describe(), "sides": records, "not_run": failed}
    save("ewald", figures, verdicts, PACKAGES, options.out)
    return int(options.check and not all(verdict["met"] for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
