"""Peak memory that plans predict against what the operating system measures.

``python -m bench.memory``; see bench/README.md. Each case is a process of its own. Counted is the
rise of the resident size during a run, at its peak, beside inputs, plan, libraries and compiled
programs, which are there before.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

import stowplan as sp
from bench.record import RESULTS, at_most, save, show
from stowplan.memory import parse_bytes

PACKAGES = ("torch", "jax", "jaxlib")
FRAMEWORKS = ("numpy", "torch", "jax")
KERNELS = ("line", "gram", "bragg", "tricubic", "ewald")
BUDGETS = ("96 MiB", "400 MiB", "2 GiB")
TIGHT = "tight"  # rows by hand, and a budget of little more than the plan predicts
TIGHT_BYTES = 400 * 2**20  # of a batch there
JUDGED_BYTES = 300e6  # batches from which on predictions are held to ACCURACY
ACCURACY = 0.05
COLUMNS = ("budget", "batch", "held", "predicted", "measured")  # of the table, in MB


class Case(NamedTuple):
    """One line of the table."""

    kernel: str
    framework: str
    gradient: bool
    budget: str


@dataclass(frozen=True)
class Problem:
    """A kernel with columns and shared parameters in a framework."""

    kernel: sp.Kernel
    data: dict[str, Any]
    shared: dict[str, Any]

    @property
    def wanted(self) -> list[str]:
        """What gradients are taken by: of diffraction what a crystal has, else all columns."""
        crystal = [name for name in ("lattices", "table") if self.shared.get(name) is not None]
        return crystal or list(self.data)


@sp.kernel("(atoms)->(atoms)", ragged="atoms")
def line(x):
    """Result as large as what goes in, ``(atoms)->(atoms)``."""
    return 2 * x + 1


@sp.kernel("(atoms,3),(atoms)->(atoms)", ragged="atoms")
def gram(positions, charges, *, smearing):
    """Pairs of atoms, far more than what goes in, ``(atoms,3),(atoms)->(atoms)``."""
    xp = array_namespace(positions)
    products = xp.matmul(positions, xp.matrix_transpose(positions))  # (..., atoms, atoms)
    return xp.sum(xp.exp(-smearing * products) * charges[..., None, :], axis=-1)


def cases() -> Iterator[Case]:
    """Budgets that leave the rows to the plan, and a tight one."""
    for kernel in KERNELS:
        for framework in FRAMEWORKS:
            for gradient in (False, True):
                if gradient and (framework == "numpy" or kernel == "ewald"):
                    continue
                for budget in (*BUDGETS, TIGHT):
                    yield Case(kernel, framework, gradient, budget)


def array(framework: str, values: Any) -> Any:
    """Give an array of a framework."""
    if framework == "torch":
        import torch

        return torch.from_numpy(values.copy())
    if framework == "jax":
        import jax

        return jax.device_put(values)
    return values


def problem(case: Case, items: int | None = None) -> Problem:
    """Give a problem, of its usual size or with a few items to load libraries by.

    Its usual size has a large batch: in XLA pairs take 27 kB a row, elsewhere half a megabyte.
    """
    tight = case.budget == TIGHT
    if case.kernel == "ewald":
        return salt_crystals(case.framework, items or (500 if tight else 300))
    if case.kernel in ("bragg", "tricubic"):
        return diffraction(case, 1024 if items is None else 4)
    rng = np.random.default_rng(7)
    atoms, count = 256, 15000 if tight and case.framework == "jax" else 1500
    if case.kernel == "line":
        atoms, count = 2000, 20000 if tight else 1500
    sizes = np.full(items or count, atoms)
    sizes[1::2] -= 7
    total = int(sizes.sum())

    def ragged(*shape: int) -> sp.Ragged:
        return sp.Ragged(array(case.framework, rng.normal(size=(total, *shape))), sizes)

    if case.kernel == "line":
        return Problem(line, {"x": ragged()}, {})
    return Problem(gram, {"positions": ragged(3), "charges": ragged()}, {"smearing": 0.1})


def diffraction(case: Case, side: int) -> Problem:
    """Square images with 9 mosaic domains in float32, without a table or with 25^3 reflections."""
    from stowplan.kernels.bragg import intensity
    from stowplan.recipes import bragg

    table = None
    if case.kernel == "tricubic":
        n = np.arange(-12, 13.0)
        values = 100 + 60 * np.cos(0.7 * n)[:, None, None] * np.cos(0.5 * n)[:, None] * n
        table = bragg.StructureFactors(values, (-12, -12, -12))
    crystal = bragg.Crystal(
        (100, 100, 100, 90, 90, 90), mosaic=bragg.mosaic_rotations(0.5, 9, seed=1), table=table,
        interpolation="auto" if table is None else "tricubic",
    )  # fmt: skip
    made = bragg.prepare(
        crystal, bragg.Detector((side, side), oversample=1), bragg.Beam(6.2),
        on=case.framework, dtype="float32",
    )  # fmt: skip
    return Problem(intensity, made.columns, made.shared)


def salt_crystals(framework: str, items: int) -> Problem:
    """Sums in k space of supercells of rock salt, 32 to 96 atoms."""
    from ase.build import bulk

    from stowplan.kernels.ewald import kspace_field
    from stowplan.recipes import ewald

    salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    structures = [salt.repeat((2, 2, 1 + number % 3)) for number in range(items)]
    columns, _ = ewald.columns(structures, charges={"Na": 1, "Cl": -1}, accuracy=1e-6)

    def convert(column: Any) -> Any:
        if isinstance(column, sp.Ragged):
            return column.map_values(lambda values: array(framework, values))
        return array(framework, column)

    data = {name: convert(column) for name, column in columns.items()}
    return Problem(kspace_field, data, {"exponent": 1})


def run(given: Problem, plan: sp.Plan | None) -> Any:
    """Run a problem, until its results are there."""
    result = sp.run(given.kernel, given.data, plan, **given.shared)
    if any("jax" in type(values).__module__ for values in flat_values(result)):
        import jax

        jax.block_until_ready(result)
    return result


def flat_values(result: Any) -> list[Any]:
    """Give the arrays of a result."""
    parts = result if isinstance(result, tuple) else (result,)
    return [part.values if isinstance(part, sp.Ragged) else part for part in parts]


def pull_back(given: Problem, plan: sp.Plan | None, framework: str) -> Any:
    """Take the gradient of the sum of squares of the first output, and keep the results.

    A caller has them until its step is done, so that plans count them.
    """

    def loss(wanted: Mapping[str, Any]) -> tuple[Any, Any]:
        data = {name: wanted.get(name, column) for name, column in given.data.items()}
        shared = {name: wanted.get(name, value) for name, value in given.shared.items()}
        result = sp.run(given.kernel, data, plan, **shared)
        values, *_ = flat_values(result)
        return (values * values).sum(), result

    every = {**given.data, **given.shared}
    wanted = {name: every[name] for name in given.wanted}
    if framework == "jax":
        import jax

        return jax.block_until_ready(jax.grad(loss, has_aux=True)(wanted))
    import torch

    leaves = []

    def leaf(values: Any) -> Any:
        leaves.append(values.detach().requires_grad_())
        return leaves[-1]

    tracked = {
        name: value.map_values(leaf) if isinstance(value, sp.Ragged) else leaf(value)
        for name, value in wanted.items()
    }
    total, result = loss(tracked)
    return torch.autograd.grad(total, leaves), result


def planned(given: Problem, case: Case) -> sp.Plan:
    """Plan for a budget; for a tight one large batches, and little more than they ask for."""
    gradient = given.wanted if case.gradient else False
    slots = 1 if given.kernel.ragged else None

    def plan(budget: float | str, rows: int | None = None) -> sp.Plan:
        return sp.plan(
            given.kernel, given.data, slots=slots, budget=budget, rows=rows, gradient=gradient,
            **given.shared,
        )  # fmt: skip

    if case.budget != TIGHT:
        return plan(case.budget)
    probe, *_ = sp.calibrate(
        given.kernel, given.data, rows=64, gradient=gradient, **given.shared
    )  # fmt: skip
    rows = max(int(TIGHT_BYTES / float(probe.bytes_per_row)), 1)
    generous = plan("99 GiB", rows)
    spare = 0.13 if case.framework == "jax" else 0.05  # a little more than plans leave free
    try:
        return plan(int(generous.memory.peak_bytes / (1 - spare)) + 2**24, rows)
    except sp.BudgetError as error:  # of less than 180 MB plans in JAX leave more free
        enough = re.search(r"at least budget=(\d+)", str(error))
        assert enough is not None
        return plan(int(enough[1]), rows)


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith(name + ":"):
            return int(entry.split()[1]) * 1024
    raise LookupError(name)


def resident_rise(call: Callable[[], Any]) -> int:
    """Bytes by which the resident size rises during a call, at its peak.

    Before it freed memory is given back to the system, and the peak so far is forgotten. JAX lets
    go of arrays of NumPy at its next call only.
    """
    if "jax" in sys.modules:
        jax = sys.modules["jax"]
        jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    result = call()
    rise = status("VmHWM") - before
    del result
    return rise


def measure(case: Case) -> dict[str, Any]:
    """Bytes that a plan predicts, and those of its first run, in this process."""
    if case.framework == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    if case.framework == "torch":
        import torch

        torch.set_num_threads(1)

    def perform(given: Problem, plan: sp.Plan | None) -> Any:
        return pull_back(given, plan, case.framework) if case.gradient else run(given, plan)

    given = problem(case)
    plan = planned(given, case)
    perform(problem(case, 4), None)  # what libraries load and keep
    if case.framework == "jax":
        perform(given, replace(plan))  # compiles; a copy, whose index arrays are not kept
    rise = resident_rise(lambda: perform(given, plan))
    memory = plan.memory
    return {
        **case._asdict(),
        "rows": max(plan.rows),
        "batches": len(plan.batches),
        "budget_bytes": memory.budget.bytes,
        "batch_bytes": max(memory.batch_bytes),
        "held_bytes": memory.held_bytes,
        "predicted_bytes": memory.peak_bytes,
        "measured_bytes": rise,
    }


def measure_apart(case: Case, core: int) -> dict[str, Any]:
    """Measure in a fresh process on one core; a refused budget says which one would be enough."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", "--case", json.dumps(case), "--core", str(core)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    needed = re.search(r"BudgetError: .*at least budget=(\d+)", done.stderr)
    if needed and int(needed[1]) > parse_bytes(case.budget):
        return {**case._asdict(), "refused_below_bytes": int(needed[1])}
    return {**case._asdict(), "error": (done.stderr.strip().splitlines() or ["killed"])[-1][:300]}


def measure_all(wanted: Iterable[Case]) -> Iterator[dict[str, Any]]:
    """Measure cases in their order, as many at a time as there are cores, each on its own."""
    free: SimpleQueue[int] = SimpleQueue()
    cores = os.sched_getaffinity(0)
    for core in cores:
        free.put(core)

    def measure_on_a_core(case: Case) -> dict[str, Any]:
        core = free.get()
        try:
            return measure_apart(case, core)
        finally:
            free.put(core)

    with ThreadPoolExecutor(len(cores)) as pool:
        yield from pool.map(measure_on_a_core, wanted)


def is_kept(one: Mapping[str, Any]) -> bool:
    """Say whether a run stayed within its budget; one that was refused did."""
    if "measured_bytes" in one:
        return bool(one["measured_bytes"] <= one["budget_bytes"])
    return "refused_below_bytes" in one


def ratio(one: Mapping[str, Any]) -> float:
    """Give predicted over measured bytes."""
    return float(one["predicted_bytes"] / one["measured_bytes"])


def is_large(one: Mapping[str, Any]) -> bool:
    """Say whether the prediction of a case is judged."""
    return bool(one.get("batch_bytes", 0) >= JUDGED_BYTES)


def table_line(one: Mapping[str, Any]) -> str:
    """Markdown of one case."""
    kind = "gradient" if one["gradient"] else "forward"
    start = f"| {one['kernel']} | {one['framework']} | {kind} | {one['budget']} |"
    if "measured_bytes" not in one:
        reason = one.get("error") or f"refused, needs {one['refused_below_bytes'] / 1e6:.1f} MB"
        return f"{start} {reason} |"
    sizes = (f"{one[f'{name}_bytes'] / 1e6:.1f}" for name in COLUMNS)
    kept = "yes" if is_kept(one) else "NO"
    off = is_large(one) and abs(ratio(one) - 1) > ACCURACY
    return (
        f"{start} {one['rows']} x {one['batches']} | {' | '.join(sizes)} | "
        f"{ratio(one):.3f}{' OFF' if off else ''} | {kept} |"
    )


def condensed(found: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: one line per framework, forward and gradient."""
    yield "| | large batches | predicted / measured | within 5 % | kept, of all |"
    yield "|" + "---|" * 5
    for framework in FRAMEWORKS:
        for gradient in (False, True):
            mine = [one for one in found
                    if (one["framework"], one["gradient"]) == (framework, gradient)]  # fmt: skip
            ratios = [ratio(one) for one in mine if is_large(one)]
            if not ratios:
                continue
            near = sum(abs(each - 1) <= ACCURACY for each in ratios)
            yield (
                f"| {framework}, {'gradient' if gradient else 'forward'} | {len(ratios)} | "
                f"{min(ratios):.3f}-{max(ratios):.3f} | {near} | "
                f"{sum(map(is_kept, mine))} of {len(mine)} |"
            )


def judge(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Targets beside what was measured."""
    off = [abs(ratio(one) - 1) for one in found if is_large(one)]
    return [
        at_most("runs beyond their budget", sum(not is_kept(one) for one in found), 0),
        at_most(f"largest error of {len(off)} predictions", max(off, default=0), ACCURACY),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    parser.add_argument("--only", nargs="+", default=[], help="kernels, frameworks or budgets")
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        os.sched_setaffinity(0, {options.core})
        print(json.dumps(measure(Case(*json.loads(options.case)))))
        return 0
    print(
        f"| kernel | framework | | given | rows x batches | {' | '.join(COLUMNS)} | ratio | kept |"
    )
    print("|" + "---|" * 12, flush=True)
    wanted = [case for case in cases() if set(options.only) <= {str(part) for part in case}]
    found = []
    for one in measure_all(wanted):
        found.append(one)
        print(table_line(one), flush=True)
    print("", *condensed(found), sep="\n")
    verdicts = judge(found)
    show(verdicts)
    if not options.only:
        save("memory", {"cases": found}, verdicts, PACKAGES, options.out)
    return int(options.check and not all(verdict["met"] for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
