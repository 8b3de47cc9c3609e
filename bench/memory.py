"""Peak memory that plans predict against what the operating system measures.

``python -m bench.memory`` prints the table and writes ``results/memory.json``. Each line is a fresh
process: data and plan are made, libraries and compiled shapes loaded by another run, freed memory
given back; counted is then the rise of the resident memory during the run, at its peak (VmHWM).
Lines with a "tight" budget have batches of 400 MiB by hand, and what their plan predicts as budget.
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
from dataclasses import replace
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "memory.json"
FRAMEWORKS = ("numpy", "torch", "jax")
KERNELS = ("line", "gram", "bragg", "tricubic", "ewald")
BUDGETS = ("96 MiB", "400 MiB", "2 GiB")
LARGE = 400 * 2**20  # bytes of a batch that is meant to be large


def cases(quick: bool) -> list[dict[str, object]]:
    """Budgets with rows left to the plan, and large batches by hand."""
    found = []
    for kernel in KERNELS[:3] if quick else KERNELS:
        for framework in FRAMEWORKS:
            for gradient in (False, True):
                if gradient and framework == "numpy":
                    continue
                base = {"kernel": kernel, "on": framework, "gradient": gradient}
                if kernel == "ewald" and gradient:
                    continue
                for budget in BUDGETS[1:2] if quick else BUDGETS:
                    found += [{**base, "budget": budget}]
                found.append({**base, "budget": "99 GiB", "large": True})
    return found


def resolve(budget: str) -> int:
    from stowplan.memory import parse_bytes

    return parse_bytes(budget)


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def settle() -> int:
    """Give freed memory back, forget the last peak, and say what is resident."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def workload(name: str, on: str, count: int | None, large: bool = False):
    """Kernel, data of some items in a framework, and shared parameters."""
    import numpy as np
    from array_api_compat import array_namespace

    import stowplan as sp

    rng = np.random.default_rng(7)
    if name in ("bragg", "tricubic"):
        from stowplan.io.reflections import StructureFactors
        from stowplan.kernels.bragg import intensity
        from stowplan.recipes import bragg_geometry as geometry
        from stowplan.recipes.bragg_experiment import Beam, Crystal, Detector

        side = 1024 if count is None else 4
        detector = Detector((side, side), oversample=1)
        like = put(np.zeros(1, np.float32), on)
        mosaic = geometry.mosaic_rotations(like[0] + 0.5, 9, seed=1)
        table = None
        if name == "tricubic":
            n = np.arange(-12, 13.0)
            values = 100 + 60 * np.cos(0.7 * n)[:, None, None] * np.cos(0.5 * n)[:, None] * n
            table = StructureFactors(put(values.astype(np.float32), on), (-12, -12, -12))
        crystal = Crystal(
            (100.0, 100.0, 100.0, 90.0, 90.0, 90.0), mosaic=mosaic, table=table,
            interpolation="tricubic" if table else "auto",
        )  # fmt: skip
        shared = geometry.kernel_arguments(detector, Beam(6.2), crystal, like=like)
        columns = geometry.pixel_columns(detector)
        return intensity, {n: put(c.astype(np.float32), on) for n, c in columns.items()}, shared
    if name == "ewald":
        from ase.build import bulk

        from stowplan.kernels.ewald import kspace_field
        from stowplan.recipes import ewald

        salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
        made = [salt.repeat((2, 2, 1 + i % 3)) for i in range(count or 300)]
        kspace, _ = ewald.columns(made, charges={"Na": 1, "Cl": -1}, accuracy=1e-6)
        data = {
            key: column.map_values(lambda v: put(v, on))
            if hasattr(column, "map_values")
            else put(column, on)
            for key, column in kspace.items()
        }
        return kspace_field, data, {"exponent": 1}

    @sp.kernel("(atoms)->(atoms)", ragged="atoms")
    def line(x):
        """Elementwise."""
        return 2 * x + 1

    @sp.kernel("(atoms,3),(atoms)->(atoms)", ragged="atoms")
    def gram(positions, charges, *, smearing):
        """A product larger than what goes in."""
        xp = array_namespace(positions)
        each = xp.matmul(positions, xp.matrix_transpose(positions))
        return xp.sum(xp.exp(-smearing * each) * charges[..., None, :], axis=-1)

    atoms = 2000 if name == "line" else 256
    count = count or (20000 if large and name == "line" else 1500)
    sizes = np.full(count, atoms)
    sizes[1::2] -= 7
    total = int(sizes.sum())
    if name == "line":
        return line, {"x": sp.Ragged(put(rng.normal(size=total), on), sizes)}, {}
    values = {
        "positions": sp.Ragged(put(rng.normal(size=(total, 3)), on), sizes),
        "charges": sp.Ragged(put(rng.normal(size=total), on), sizes),
    }
    return gram, values, {"smearing": 0.1}


def put(array, on: str):
    """A host array in a framework."""
    if on == "torch":
        import torch

        return torch.from_numpy(array.copy())
    if on == "jax":
        import jax

        return jax.device_put(array)
    return array


def perform(kernel, data, plan, shared, on: str, gradient: bool):
    """Run, or take the gradient of the sum of squares of the first output."""
    import stowplan as sp

    if not gradient:
        result = sp.run(kernel, data, plan, **shared)
        return synchronised(result, on)
    names = differentiable(data, shared)

    def run(values):
        mine = {**data, **{k: v for k, v in values.items() if k in data}}
        others = {**shared, **{k: v for k, v in values.items() if k in shared}}
        out = sp.run(kernel, mine, plan, **others)
        out = out[0] if isinstance(out, tuple) else out
        flat = out.values if isinstance(out, sp.Ragged) else out
        return (flat * flat).sum()

    if on == "torch":
        import torch

        leaves = {}
        values = {}
        for name in names:
            given = {**data, **shared}[name]
            flat = given.values if isinstance(given, sp.Ragged) else given
            leaves[name] = flat.detach().requires_grad_()
            values[name] = (
                sp.Ragged.from_layout(leaves[name], given.layout)
                if isinstance(given, sp.Ragged)
                else leaves[name]
            )
        loss = run(values)
        return torch.autograd.grad(loss, list(leaves.values()))
    import jax

    return synchronised(jax.grad(run)({name: {**data, **shared}[name] for name in names}), on)


def differentiable(data, shared) -> list[str]:
    names = ["lattices", "table"] if "lattices" in shared else list(data)
    return [name for name in names if {**data, **shared}.get(name) is not None]


def synchronised(result, on: str):
    if on == "jax":
        import jax

        jax.block_until_ready(result)
    return result


def measure(case: dict[str, object]) -> dict[str, object]:
    """One line of the table, in this process."""
    on = str(case["on"])
    if on == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    if on == "torch":
        import torch

        torch.set_num_threads(1)
    import stowplan as sp

    gradient = bool(case["gradient"])
    kernel, data, shared = workload(str(case["kernel"]), on, None, bool(case.get("large")))
    wanted = {}
    if gradient:
        wanted = {"gradient": differentiable(data, shared)}
    options = {"budget": case["budget"], **wanted, **shared}
    if case.get("large"):
        names = differentiable(data, shared) if gradient else False
        probe = sp.calibrate(kernel, data, None, gradient=names, rows=64, **shared)
        rows = max(int(LARGE / float(probe[0].bytes_per_row)), 1)
        options["rows"] = rows
    slots = 1 if kernel.ragged else None
    plan = sp.plan(kernel, data, slots=slots, **options)
    if case.get("large"):  # no more than it asks for
        options["budget"] = int(plan.memory.peak_bytes / 0.95) + 2**24
        plan = sp.plan(kernel, data, slots=slots, **options)
    tiny, few, others = workload(str(case["kernel"]), on, 4)
    perform(tiny, few, None, others, on, gradient)
    if on == "jax":  # compiles what the probe did not, forward before backward
        perform(kernel, data, replace(plan), shared, on, gradient)
    before = settle()
    result = perform(kernel, data, plan, shared, on, gradient)
    peak = status("VmHWM") - before
    del result
    assert plan.memory is not None
    return {
        **case,
        "rows": max(plan.rows),
        "batches": len(plan.batches),
        "batch_bytes": max(plan.memory.batch_bytes),
        "held_bytes": plan.memory.held_bytes,
        "predicted": plan.memory.peak_bytes,
        "measured": peak,
        "budget_bytes": plan.memory.budget.bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help="one case, as JSON; used by the parent process")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="words that a case must hold")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case))))
        return
    rows = []
    print(f"{'kernel':9}{'on':7}{'grad':6}{'budget':>9}{'rows':>9}{'batches':>8}{'batch MB':>9}"
          f"{'held MB':>9}{'predicted':>10}{'measured':>9}{'ratio':>7}{'kept':>6}")  # fmt: skip
    for case in cases(arguments.quick):
        text = json.dumps(case)
        if not all(word in text for word in arguments.only.split()):
            continue
        done = subprocess.run(
            [sys.executable, "-m", "bench.memory", "--case", text],
            capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
        if "BudgetError" in done.stderr:
            needed = int(re.search(r"at least budget=(\d+)", done.stderr)[1])
            assert needed > resolve(str(case["budget"])), done.stderr[-900:]
            rows.append({**case, "refused": needed})
            print(f"{case['kernel']!s:9}{case['on']!s:7}{case['gradient']!s:6}{case['budget']!s:>9}"
                  f" refused, needs {needed / 1e6:.1f} MB")  # fmt: skip
            continue
        if done.returncode:
            print(text, "failed:", done.stderr.strip().splitlines()[-1][:300])
            rows.append({**case, "error": done.stderr.strip().splitlines()[-1]})
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"{row['kernel']:9}{row['on']:7}{row['gradient']!s:6}{row['budget']:>9}{row['rows']:>9}"
            f"{row['batches']:>8}{row['batch_bytes'] / 1e6:>9.1f}{row['held_bytes'] / 1e6:>9.1f}"
            f"{row['predicted'] / 1e6:>10.1f}{row['measured'] / 1e6:>9.1f}"
            f"{row['predicted'] / row['measured']:>7.3f}"
            f"{'yes' if row['measured'] <= row['budget_bytes'] else 'NO':>6}",
            flush=True,
        )  # fmt: skip
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
