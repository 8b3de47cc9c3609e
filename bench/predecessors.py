"""What each predecessor publishes, and the same quantity here: ``python -m bench.predecessors``.

Occupancies are counts. The share of a memory budget that is used is measured in a process of its
own; times are those of the other benchmarks, and stand in their results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.minibatches import LARGE, SMALL, WORK, slot_example
from bench.record import RESULTS, at_least, save, show
from bench.workers import ONE_THREAD

BATCH = 78  # structures, as published for the slots of jax-pme
FIELD, FIELDS = (64, 64, 16), 240  # complex128: 1 MiB each
BUDGET = "60 MiB"  # a quarter of all fields


def row_occupancy(k: np.ndarray, capacities: list[int] | None) -> float:
    """Mean over batches of sum k / sum padded k, rows exact; None pads to the next power of two."""
    found = []
    for first in range(0, len(k), BATCH):
        part = k[first : first + BATCH]
        bounds = np.array(capacities or [2 ** int(np.ceil(np.log2(part.max())))])
        padded = np.sort(bounds)[np.searchsorted(np.sort(bounds), part)]
        found.append(part.sum() / padded.sum())
    return float(np.mean(found))


def occupancies() -> dict[str, float]:
    """Occupancy of the k rows in batches of 78, and of the work of the whole set."""
    import stowplan as sp

    sizes = slot_example()
    k, found = sizes["k"], {}
    found["rows: one slot, the next power of two"] = row_occupancy(k, None)
    found["rows: two slots by hand"] = row_occupancy(k, [SMALL["k"], LARGE["k"]])
    for count in (2, 4, 8):
        slots = sp.choose_slots({"k": k}, count)
        found[f"rows: {count} chosen"] = row_occupancy(k, [slot["k"] for slot in slots])
    hand = [{**slot} for slot in (SMALL, LARGE)]
    one = [{"atoms": LARGE["atoms"], "k": LARGE["k"]}]
    for name, slots in (("one shape", one), ("two slots by hand", hand)):
        plan = sp.assign_slots(sizes, slots, work=WORK)
        found[f"work: {name}"] = float(plan.occupancy())
    for count in (2, 4, 8):
        plan = sp.assign_slots(sizes, sp.choose_slots(sizes, count, work=WORK), work=WORK)
        found[f"work: {count} chosen"] = float(plan.occupancy())
    return found


def share_of_budget() -> dict[str, float]:
    """Add fields of four times the budget, compute them, and measure what was in memory.

    The field that is being added belongs to the caller.
    """
    from bench.memory import resident_rise
    from stowplan import FieldBatch
    from stowplan.memory import parse_bytes

    field = np.random.default_rng(0).normal(size=(*FIELD, 2)).view(np.complex128)[..., 0]

    def spectra(fields: np.ndarray) -> np.ndarray:
        modes = np.fft.fftn(fields, axes=(1, 2, 3), norm="ortho")
        return (modes.real**2 + modes.imag**2).sum(axis=(1, 2, 3))

    def job(fields: int) -> None:
        with FieldBatch(budget=BUDGET) as batch:
            for number in range(fields):
                batch.add(field * number)
            powers = batch.run(spectra)
        squares = np.arange(fields) ** 2 * (abs(field) ** 2).sum()  # Parseval
        np.testing.assert_allclose(powers, squares, rtol=1e-12)

    job(2)  # loads libraries
    return {
        "budget_bytes": parse_bytes(BUDGET),
        "fields_bytes": FIELDS * field.nbytes,
        "peak_bytes": resident_rise(lambda: job(FIELDS)) - field.nbytes,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    parser.add_argument("--out", type=Path, default=RESULTS / "predecessors.json")
    parser.add_argument("--share", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)
    if options.share:
        print(json.dumps(share_of_budget()))
        return 0
    found = occupancies()
    for name, value in found.items():
        print(f"{name}: {value:.1%}")
    command = [sys.executable, "-m", "bench.predecessors", "--share"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    fields = json.loads(done.stdout.splitlines()[-1])
    share = fields["peak_bytes"] / fields["budget_bytes"]
    verdicts = [
        at_least("rows of 4 chosen slots, occupancy", found["rows: 4 chosen"], 0.74),
        at_least("share of the budget that fields take", share, 0.8),
        {"target": "... and no more than it", "value": share, "met": share <= 1},
    ]
    show(verdicts)
    save("predecessors", {"occupancy": found, "fields": fields}, verdicts, (), options.out)
    return int(options.check and not all(verdict["met"] for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
