"""Memory and time that the plans of all recipes predict, against what their runs take.

``python -m bench.predictions``; see bench/README.md. Every case is a process of its own on one
core. Memory is the rise of the resident size in each run of a recipe, at its peak, against its
plan. Time is that of these runs after ``sp.measure_costs``, against plans that know what it found;
both are CPU time on one core, which other work on a machine leaves alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import stowplan as sp
from bench.jobs import FRAMEWORKS, RECIPES, Step, make, steps_of
from bench.memory import resident_rise
from bench.record import at_most, save, show
from bench.workers import ONE_THREAD
from stowplan.planners.cost import predict_seconds

JUDGED_BYTES = 200e6  # of a batch, from which on memory is judged
MEMORY_OFF, TIME_OFF = 0.05, 0.25
ROUNDS = 3  # of measuring costs and running, in turn
GENEROUS = 16 * 2**30  # bytes, more than any case takes, so that rows are those given
SPARE = {"numpy": 0.05, "torch": 0.05, "jax": 0.13}  # a little more than plans leave free
MOST_TRIES = 4
FEW = {"ewald": 4, "bragg": 256, "overlay": 2, "fields": 2, "transport": 2}
PACKAGES = ("torch", "jax", "jaxlib", "ase", "vesin")


class Case(NamedTuple):
    """A job of a recipe on a framework, whose time or memory is measured."""

    what: str  # "time" or "memory"
    recipe: str
    on: str


TIMED: dict[str, tuple[int, dict[str, Any]]] = {
    "ewald": (200, {}),
    "bragg": (65536, {}),
    "overlay": (100, {}),
    "fields": (24, {"lines": 1600}),
    "transport": (64, {}),
}
"""Items and options of a job that takes some tenths of a second."""
LARGE: dict[str, tuple[int, dict[str, Any]]] = {
    "ewald": (360, {"slots": {"kspace": 1, "real": 1}, "rows": 180}),
    "bragg": (724**2, {"rows": 362}),
    "overlay": (2000, {"slots": 1, "rows": 10000, "steps": 40}),
    "fields": (64, {"lines": 400, "rows": 32}),
    "transport": (400, {"pool": 2, "buckets": 1, "rows": 200, "max_iterations": 20}),
}
"""... whose batches have 200 MB or more in most frameworks, in steps as few as there can be."""


def cases() -> Iterator[Case]:
    """All cases."""
    for what in ("memory", "time"):
        for recipe in RECIPES:
            for on in FRAMEWORKS:
                yield Case(what, recipe, on)


def runs(steps: Sequence[Step]) -> list[Step]:
    """Leave out the plans."""
    return [step for step in steps if step.call != "plan"]


def measured_memory(case: Case, budget: int) -> list[dict[str, Any]]:
    """Bytes that each run of a recipe takes, and those that its plan predicts."""
    items, options = LARGE[case.recipe]
    options = {**options, "budget": budget}
    few = {key: value for key, value in options.items() if key != "rows"}
    small = make(case.recipe, FEW[case.recipe], case.on, **few)
    steps_of(small)  # loads libraries
    small.close()
    job = make(case.recipe, items, case.on, **options)
    if case.on == "jax":
        steps_of(job)  # compiles

    def rise(call: Any) -> tuple[Any, int]:
        found: list[Any] = []
        taken = resident_rise(lambda: found.append(call()))
        return found[0], taken

    _, steps = steps_of(job, rise)
    job.close()
    return [
        {
            "kernel": step.kernel.name,
            "rows": max(step.plan.rows),
            "batches": len(step.plan.batches),
            "batch_bytes": max(step.plan.memory.batch_bytes, default=0),
            "predicted": step.plan.memory.peak_bytes,
            "measured": step.seen,
        }
        for step in runs(steps)
    ]


def measured_time(case: Case, budget: int) -> list[dict[str, Any]]:
    """Seconds that each run of a recipe takes, and those that its plan predicts, warm."""
    items, options = TIMED[case.recipe]
    job = make(case.recipe, items, case.on, **options)
    _, steps = steps_of(job)
    found: list[list[dict[str, Any]]] = []
    for _ in range(ROUNDS):
        for step in runs(steps):
            measure(step, case.on)
        steps_of(job)  # compiles what costs have made of plans
        _, steps = steps_of(job)
        found.append([seen(step) for step in runs(steps)])
    job.close()
    return [middle(rounds) for rounds in zip(*found, strict=True)]


def measure(step: Step, on: str) -> None:
    """Measure the costs of a kernel with the data of a step."""
    rounds = None
    if step.call == "iterate":
        given = (step.options[name] for name in ("init", "until", "every", "keep", "limit"))
        rounds = sp.Rounds(*given)
    sp.measure_costs(step.kernel, step.data, on=on, rounds=rounds, **step.shared)


def seen(step: Step) -> dict[str, Any]:
    """Predicted and measured seconds of a step, without compiles."""
    plan = step.plan
    assert plan.costs is not None
    warm = replace(plan.costs, compile_seconds=0.0)
    return {
        "kernel": step.kernel.name,
        "call": step.call,
        "batches": len(plan.batches),
        "shapes": len(plan.shapes),
        "predicted": predict_seconds(plan, warm),
        "measured": step.seen[0],
        "launch_seconds": plan.costs.launch_seconds,
        "work_seconds": plan.costs.work_seconds,
        "work": plan.padded_work(),
    }


def middle(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give the round with the median of predicted over measured."""
    ranked = sorted(rounds, key=lambda one: one["predicted"] / one["measured"])
    return {
        **ranked[len(ranked) // 2],
        "ratios": [one["predicted"] / one["measured"] for one in ranked],
    }


def measure_apart(case: Case, core: int) -> dict[str, Any]:
    """Measure in a fresh process on one core; memory with a budget of little more than is planned.

    A generous budget lets the heap of an eager framework have gaps.
    """
    found = in_process(case, core, GENEROUS)
    if case.what == "memory" and isinstance(found, list):
        peaks = [step["predicted"] for step in found]
        budget = int(max(filter(None, peaks), default=GENEROUS) / (1 - SPARE[case.on])) + 2**24
        found = in_process(case, core, budget)
        for _ in range(MOST_TRIES):
            needed = re.search(r"BudgetError: .*at least budget=(\d+)", str(found))
            if needed is None:
                break
            budget = max(int(needed[1]), int(1.1 * budget))
            found = in_process(case, core, budget)
    if isinstance(found, str):
        return {**case._asdict(), "error": found}
    return {**case._asdict(), "steps": found, **total(case, found)}


def in_process(case: Case, core: int, budget: int) -> list[dict[str, Any]] | str:
    """Give what a process measured, or the last line of its error."""
    command = [sys.executable, "-m", "bench.predictions", "--case", json.dumps(case)]
    done = subprocess.run(
        [*command, "--core", str(core), "--budget", str(budget)], capture_output=True, text=True,
        check=False, env={**os.environ, **ONE_THREAD},
    )  # fmt: skip
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "Error" in line] or ["killed"]
        return errors[-1][:500]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def total(case: Case, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Predicted over measured: of times summed, of memory where a step takes most."""
    if case.what == "time":
        predicted, measured = (sum(one[key] for one in steps) for key in ("predicted", "measured"))
        return {"ratio": predicted / measured, "judged": True}
    most = max(steps, key=lambda one: one["measured"])
    known = most["predicted"] is not None
    return {
        "ratio": most["predicted"] / most["measured"] if known else None,
        "judged": known and most["batch_bytes"] >= JUDGED_BYTES,
    }


def lines_of(one: Mapping[str, Any]) -> Iterator[str]:
    """Markdown of one case, a line for each of its steps."""
    start = f"| {one['recipe']} | {one['on']} |"
    if "error" in one:
        yield f"{start} {one['error']} |"
        return
    for step in one["steps"]:
        if one["what"] == "memory":
            sizes = [step["batch_bytes"], step["predicted"] or 0, step["measured"]]
            numbers = [f"{step['rows']} x {step['batches']}", *(f"{n / 1e6:.1f}" for n in sizes)]
        else:
            numbers = [f"{step['batches']} of {step['shapes']} shapes"]
            numbers += [f"{1e3 * step[key]:.1f}" for key in ("predicted", "measured")]
        ratio = (step["predicted"] or 0) / step["measured"]
        yield f"{start} {step['kernel']} | {' | '.join(numbers)} | {ratio:.2f} |"


def judge(found: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Targets of the cases that are judged; one that failed is far off."""
    for one in found:
        off = MEMORY_OFF if one["what"] == "memory" else TIME_OFF
        if "error" not in one and not one["judged"]:
            continue
        name = f"{one['recipe']}, {one['on']}: {one['what']} predicted off measured"
        yield at_most(name, abs(one.get("ratio", 1e9) - 1), off)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    parser.add_argument("--only", nargs="+", default=[], help="recipes, frameworks, time or memory")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        os.sched_setaffinity(0, {options.core})
        case = Case(*json.loads(options.case))
        measured = measured_memory if case.what == "memory" else measured_time
        with patch("time.perf_counter", time.process_time):  # for costs, too
            print(json.dumps(measured(case, options.budget)))
        return 0
    core = min(os.sched_getaffinity(0))
    found = []
    for case in cases():
        if set(options.only) <= set(case):
            found.append(measure_apart(case, core))
            print(*lines_of(found[-1]), sep="\n", flush=True)
    targets = list(judge(found))
    show(targets)
    if options.out or not options.only:
        save("predictions", {"cases": found}, targets, PACKAGES, options.out)
    return int(options.check and not all(target["met"] for target in targets))


if __name__ == "__main__":
    sys.exit(main())
