"""What ``run`` costs over a loop by hand.

``python -m bench.overhead [--check] [--rounds 15] [--repeats 5] [--on numpy torch jax]``: the loop
gathers and scatters the same batches of about 1 ms with index arrays that are ready. Both sides run
in turn, each framework in processes of its own, a new one for each repeat. Freed memory stays with
the process: whether a side takes fresh pages for each batch depends on what else lies in the heap
(0.72 to 1.31 times the loop by hand), and not on its code.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace

import stowplan as sp
from bench.record import at_most, save, show
from bench.workers import ONE_THREAD, Worker, spread
from stowplan.gather import input_order, locate, valid_places

ATOMS = 48
BATCHES = 40
BATCH_SECONDS = 1e-3
WITHIN = 1.05
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}


@sp.kernel("(atoms,3),(atoms)->(),(atoms,3)", ragged="atoms", fill={"charges": 0.0})
def attract(positions, charges, *, width):
    """Gaussian pair energies and forces."""
    xp = array_namespace(positions, charges)
    square = xp.sum(positions**2, axis=-1)
    distance2 = square[..., :, None] + square[..., None, :]
    distance2 = distance2 - 2 * xp.matmul(positions, xp.matrix_transpose(positions))
    pair = charges[..., :, None] * charges[..., None, :] * xp.exp(-distance2 / width)
    pull = xp.matmul(pair, positions) - xp.sum(pair, axis=-1)[..., None] * positions
    return xp.sum(pair, axis=(-2, -1)), pull


def make_data(items: int, move: Callable[[np.ndarray], Any]) -> dict[str, sp.Ragged]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(ATOMS // 2, ATOMS + 1, size=items)
    total = int(sizes.sum())
    values = {"positions": rng.normal(size=(total, 3)), "charges": rng.normal(size=total)}
    return {name: sp.Ragged(move(column), sizes) for name, column in values.items()}


class ByHand:
    """The loop that a careful user would write for these batches."""

    def __init__(self, name: str, data: dict[str, sp.Ragged], plan: sp.Plan) -> None:
        layout = data["positions"].layout
        self.name = name
        self.batches = []
        for batch in plan.batches:
            index, (inside,) = locate(
                layout.starts[batch.items], layout.shapes[batch.items], batch.capacity
            )
            places = valid_places([inside], batch.count)
            self.batches.append((index, ~inside, places, batch.count))
        items = np.concatenate([batch.items[: batch.count] for batch in plan.batches])
        self.rows = input_order(items, layout.counts)
        self.items = input_order(items, np.ones(len(items), np.int64))
        if name == "torch":
            import torch

            def move(value: Any) -> Any:
                return torch.asarray(value) if isinstance(value, np.ndarray) else value

            self.batches = [tuple(map(move, batch)) for batch in self.batches]
            self.rows, self.items = move(self.rows), move(self.items)
        self.compiled: Any = attract.function
        if name == "jax":
            import jax

            vmapped = jax.vmap(lambda x, q, w: attract.function(x, q, width=w), (0, 0, None))
            self.compiled = jax.jit(vmapped)

    def __call__(self, data: dict[str, sp.Ragged], width: float) -> tuple[Any, Any]:
        x, q = data["positions"].values, data["charges"].values
        energies, forces = [], []
        if self.name == "torch":
            import torch

            for index, outside, places, count in self.batches:
                positions, charges = x[index], q[index]
                positions.masked_fill_(outside[..., None], 0.0)
                charges.masked_fill_(outside, 0.0)
                energy, force = attract.function(positions, charges, width=width)
                energies.append(energy[:count])
                forces.append(force.reshape(-1, 3)[places])
            energy, force = torch.cat(energies), torch.cat(forces)
            return (energy, force) if self.rows is None else (energy[self.items], force[self.rows])
        x, q = np.asarray(x), np.asarray(q)
        waiting = None
        for index, outside, places, count in self.batches:
            padded = x[index], q[index]
            for column in padded:
                column[outside] = 0.0
            if self.name == "jax":
                started = (*self.compiled(*padded, width), places, count)
            else:
                started = (*self.compiled(*padded, width=width), places, count)
            if waiting:
                put_away(waiting, energies, forces)
            waiting = started
        put_away(waiting, energies, forces)
        energy, force = np.concatenate(energies), np.concatenate(forces)
        return (energy, force) if self.rows is None else (energy[self.items], force[self.rows])


def put_away(started: Any, energies: list[Any], forces: list[Any]) -> None:
    energy, force, places, count = started
    energies.append(np.asarray(energy)[:count])
    forces.append(np.asarray(force).reshape(-1, 3)[places])


def mover(name: str) -> Callable[[np.ndarray], Any]:
    if name == "torch":
        import torch

        torch.set_num_threads(1)
        return torch.asarray
    if name == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        return jax.device_put
    return np.asarray


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()  # of all threads: other programs do not count
    call()
    return time.process_time() - start


class Sides:
    """Both loops of one framework, in one process, interleaved."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.compiles: Counter[str] = Counter()

    def compare(self, rounds: int) -> dict[str, Any]:
        """Seconds of a batch by hand and by `run`, and their ratio."""
        move = mover(self.name)
        rows = 8
        for _ in range(3):  # rows that make a batch last about 1 ms
            data = make_data(rows * BATCHES, move)
            plan = sp.plan(attract, data, slots=[{"atoms": ATOMS}], rows=rows)
            by_hand = ByHand(self.name, data, plan)
            by_hand(data, 2.0)
            per_batch = min(seconds(partial(by_hand, data, 2.0)) for _ in range(3)) / BATCHES
            rows = max(round(rows * BATCH_SECONDS / per_batch), 1)
        data = make_data(rows * BATCHES, move)
        plan = sp.plan(attract, data, slots=[{"atoms": ATOMS}], rows=rows)
        by_hand = ByHand(self.name, data, plan)
        width = move(
            np.asarray(2.0)
        )  # an array on both sides: torch divides by a number 8 % faster
        energy, forces = sp.run(attract, data, plan, width=width)
        expected = by_hand(data, width)
        np.testing.assert_allclose(energy, expected[0], rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(forces.values, expected[1], rtol=1e-10, atol=1e-10)
        ours, theirs = [], []
        for _ in range(rounds):
            theirs.append(seconds(lambda: by_hand(data, width)))
            ours.append(seconds(lambda: sp.run(attract, data, plan, width=width)))
        extra = statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
        return {
            "rows": rows,
            "by hand": spread([each / BATCHES for each in theirs]),
            "run": spread([each / BATCHES for each in ours]),
            "ratio": statistics.median(ours) / statistics.median(theirs),
            "extra_us": 1e6 * extra / BATCHES,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="passes of either side, in turn")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each framework")
    parser.add_argument("--on", nargs="+", default=["numpy", "torch", "jax"])
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD | KEPT_MEMORY)  # for the workers, which start after this
    figures: dict[str, Any] = {}
    targets = []
    for name in options.on:
        runs = []
        for _ in range(options.repeats):
            worker = Worker(name, partial(Sides, name))
            one = worker("compare", options.rounds)[0]
            worker.stop()
            runs.append(one)
            print(
                f"{name:6} {BATCHES} batches of {one['rows']} rows: by hand "
                f"{1e3 * one['by hand']['median']:.3f} ms a batch, run "
                f"{1e3 * one['run']['median']:.3f} ms, ratio {one['ratio']:.3f}, "
                f"{one['extra_us']:+.0f} us a batch",
                flush=True,
            )
        ratio = statistics.median(one["ratio"] for one in runs)
        figures[name] = {"runs": runs, "ratio": ratio}
        targets.append(at_most(f"{name}: run over a loop by hand, batches of 1 ms", ratio, WITHIN))
    show(targets)
    if len(options.on) == 3:  # a part is no record
        figures = {"batches": BATCHES, "frameworks": figures}
        save("overhead", figures, targets, ["torch", "jax"])
    return int(options.check and not all(each["met"] for each in targets))


if __name__ == "__main__":
    raise SystemExit(main())
