"""Packing shuffled minibatches: against a loop of np.pad and stack, and against steps of 1 ms.

``python -m bench.packing [--items 10000] [--minibatch 32]``: columns as the smooth Ewald kernel
takes them, five ragged and three not; one thread.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

import stowplan as sp
from stowplan.kernels.ewald import kspace_energy

SEED = 0
ROUNDS = 5


def data_set(items: int) -> dict[str, Any]:
    """Random columns for structures of 2 to 200 atoms, most of them small."""
    rng = np.random.default_rng(SEED)
    atoms = np.clip(rng.lognormal(2.7, 0.8, items), 2, 200).astype(int)
    grids = np.clip(rng.lognormal(2.3, 0.35, (items, 3)), 3, 40).astype(int)
    grids.sort(axis=1)
    total = int(atoms.sum())
    return {
        **{
            f"m{axis + 1}": sp.Ragged(
                np.concatenate([np.arange(n) for n in grids[:, axis]]), grids[:, axis]
            )
            for axis in range(3)
        },
        "positions": sp.Ragged(rng.normal(size=(total, 3)), atoms),
        "charges": sp.Ragged(rng.normal(size=total), atoms),
        "cell": rng.normal(size=(items, 3, 3)),
        "smearing": rng.uniform(1, 2, items),
        "periodic": np.ones((items, 3)),
    }


def pad_and_stack(
    lists: dict[str, list[Any]], packer: sp.Packer, items: list[int]
) -> list[list[Any]]:
    """Pad a minibatch item by item with np.pad, into the same slots."""
    seats = packer.seats.seat(np.asarray(items))
    batches = []
    for slot, limits in enumerate(packer.slots):
        inside = [item for item, seat in zip(items, seats, strict=True) if seat == slot]
        lengths = dict(
            zip(("m1", "m2", "m3", "positions", "charges"),
                [*(limits[f"n{axis}"] for axis in (1, 2, 3)), limits["atoms"], limits["atoms"]],
                strict=True)
        )  # fmt: skip
        columns = []
        for name, arrays in lists.items():
            rows = [arrays[item] for item in inside]
            if name in lengths:
                widths = [(0, 0)] * (arrays[0].ndim - 1)
                rows = [np.pad(row, [(0, lengths[name] - len(row)), *widths]) for row in rows]
            while rows and len(rows) < limits["rows"]:
                rows.append(rows[-1])
            if not rows:
                shape = (
                    (lengths[name], *arrays[0].shape[1:]) if name in lengths else arrays[0].shape
                )
                rows = [np.zeros(shape)] * limits["rows"]
            columns.append(np.stack(rows))
        batches.append(columns)
    return batches


def drawn_sampler(packer: sp.Packer, slots: Any) -> sp.MinibatchSampler:
    """Give a sampler whose epoch is drawn already: what is timed is packing."""
    sampler = sp.MinibatchSampler(packer.sizes, slots, work=kspace_energy.work.text)
    len(sampler)
    return sampler


def epoch_seconds(packer: sp.Packer, slots: Any) -> float:
    """Time one epoch packed without a thread."""
    sampler = drawn_sampler(packer, slots)
    return seconds(lambda: deque(packer.minibatches(sampler, ahead=0), maxlen=0))


def seconds(call: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print microseconds of a minibatch and ratios, interleaved, medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--minibatch", type=int, default=32)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--on", nargs="+", default=["numpy", "torch", "jax"])
    options = parser.parse_args()
    data = data_set(options.items)
    sizes = sp.plan(kspace_energy, data, slots=1).sizes
    start = time.perf_counter()
    slots = sp.choose_slots(
        sizes, options.slots, minibatch=options.minibatch, work=kspace_energy.work.text
    )
    print(slots)
    print(f"slots chosen in {time.perf_counter() - start:.2f} s")
    packer = sp.Packer(kspace_energy, data, slots)
    start = time.perf_counter()
    sampler = drawn_sampler(packer, slots)
    print(f"epoch drawn in {time.perf_counter() - start:.3f} s")
    drawn = list(sampler.minibatches())
    lists = {name: list(column) for name, column in data.items()}
    few = drawn[:: max(len(drawn) // 50, 1)]
    for items in few:  # the same arrays first
        for batch, columns in zip(packer(items), pad_and_stack(lists, packer, items), strict=True):
            real = batch.row_mask  # what else rows repeat is free
            for ours, theirs in zip(batch.arrays, columns, strict=True):
                assert np.array_equal(ours[real], theirs[real])
    loops, ones, epochs = [], [], []
    for _ in range(ROUNDS):
        loops.append(seconds(lambda: [pad_and_stack(lists, packer, items) for items in few]))
        ones.append(seconds(lambda: [packer(items) for items in few]))
        epochs.append(epoch_seconds(packer, slots))
    loop, one = median(loops) / len(few), median(ones) / len(few)
    epoch = median(epochs) / len(drawn)
    print(f"{len(drawn)} minibatches of {options.minibatch}, microseconds each:")
    print(f"np.pad and stack {1e6 * loop:8.0f}")
    print(f"packer(items)    {1e6 * one:8.0f}  {loop / one:5.1f}x")
    print(f"a whole epoch    {1e6 * epoch:8.0f}  {loop / epoch:5.1f}x")
    for on in options.on:
        if on == "jax":
            import jax

            jax.config.update("jax_enable_x64", True)
        there = sp.Packer(kspace_energy, data, slots, on=on)
        epoch_seconds(there, slots)
        plain = median(epoch_seconds(there, slots) for _ in range(3))
        waited = median(waiting(there, slots) for _ in range(3))
        print(
            f"on {on:<6} {1e6 * plain / len(drawn):8.0f} without a thread; a loop of 1 ms steps "
            f"waits {1e6 * waited / len(drawn):.0f} a step"
        )


def waiting(packer: sp.Packer, slots: Any) -> float:
    """Seconds that a loop of 1 ms steps waits for its minibatches, two packed ahead."""
    sampler = drawn_sampler(packer, slots)
    waited = 0.0
    start = time.perf_counter()
    for _ in packer.minibatches(sampler, ahead=2):
        now = time.perf_counter()
        waited += now - start
        time.sleep(1e-3)  # a device at work
        start = time.perf_counter()
    return waited


if __name__ == "__main__":
    main()
