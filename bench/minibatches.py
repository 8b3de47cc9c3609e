"""Shuffled minibatches in slots: traces of a jitted step, graphs of torch, work occupancy.

``python -m bench.minibatches``: 60 minibatches of 32 of the slot example, 3200 structures of which
96 are large; 37 % of the minibatches have none of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

import stowplan as sp
from stowplan.layout import Layout

WORK = "atoms * k"
SMALL, LARGE = {"atoms": 64, "k": 4096}, {"atoms": 192, "k": 32768}
MINIBATCH, STEPS = 32, 60


@sp.kernel("(atoms),(k)->()", ragged=("atoms", "k"), work=WORK)
def strength(charges, waves, *, scale):
    """Cheap, but as ragged as an Ewald sum."""
    xp = array_namespace(charges, waves)
    return xp.sum(charges * scale, axis=-1) ** 2 * xp.sum(waves, axis=-1)


def slot_example() -> dict[str, np.ndarray]:
    """Give atoms and k-vectors of the structures, shuffled."""
    u, v = (np.arange(3104) + 0.5) / 3104, (np.arange(96) + 0.5) / 96
    k = np.floor(4096 * u ** (0.185 / 0.815))
    large = np.floor(4097 * (32768 / 4097) ** v)
    atoms = np.clip(np.round(64 * (k / 4096) ** 0.7), 2, 64)
    order = np.random.default_rng(0).permutation(3200)
    sizes = {
        "atoms": np.concatenate([atoms, np.minimum(np.round(64 + 128 * v), 192)]),
        "k": np.concatenate([k, large]),
    }
    return {name: column[order].astype(np.int64) for name, column in sizes.items()}


def columns(sizes: dict[str, np.ndarray]) -> dict[str, sp.Ragged]:
    """Give data of these sizes that share one pool of numbers."""
    pool = np.random.default_rng(1).normal(size=32768)
    starts = np.zeros(3200, np.int64)
    return {
        argument: sp.Ragged.from_layout(pool, Layout(sizes[dim], starts))
        for argument, dim in (("charges", "atoms"), ("waves", "k"))
    }


def plain_minibatches() -> np.ndarray:
    """Draw minibatches as any loader does, (60, 32)."""
    return np.random.default_rng(5).permutation(3200)[: STEPS * MINIBATCH].reshape(STEPS, -1)


def occupancy(sizes: dict[str, np.ndarray], slots: Sequence[dict[str, int]], chosen: Any) -> float:
    """Useful / padded work of minibatches, all slots in every step."""
    work = sizes["atoms"] * sizes["k"]
    padded = sum(slot["rows"] * slot["atoms"] * slot["k"] for slot in slots)
    return float(sum(work[items].sum() for items in chosen) / (padded * len(chosen)))


def count_traces(packer: sp.Packer) -> int:
    """Count traces of a jitted step over the plain minibatches."""
    import jax
    import jax.numpy as jnp

    traces = []

    @jax.jit
    @jax.value_and_grad
    def step(scale: Any, batches: Any) -> Any:
        traces.append(1)
        each = [(strength(*b.arrays, scale=scale), b.row_mask) for b in batches]
        return sum(jnp.sum(jnp.where(mask, e, 0.0)) for e, mask in each)

    for items in plain_minibatches():
        step(0.7, packer(items))
    return len(traces)


def count_graphs(packer: sp.Packer) -> int:
    """Count graphs of a compiled step over the plain minibatches."""
    import torch

    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(1)
        return graph.forward

    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    @torch.compile(backend=backend, fullgraph=True, dynamic=False)
    def loss(batches: Any) -> Any:
        each = [(strength(*b.arrays, scale=scale), b.row_mask) for b in batches]
        return sum(torch.sum(torch.where(mask, e, 0.0)) for e, mask in each)

    for items in plain_minibatches():
        loss(packer(items)).backward()
    return len(graphs)


def main() -> None:
    """Print counts and occupancies."""
    import jax

    jax.config.update("jax_enable_x64", True)
    sizes, plain = slot_example(), plain_minibatches()
    large = sizes["k"] > SMALL["k"]
    each = [int(large[items].sum()) for items in plain]
    print(f"{each.count(0)} of {STEPS} minibatches leave the large slot empty")
    safe = [{**SMALL, "rows": MINIBATCH}, {**LARGE, "rows": max(each)}]
    data = columns(sizes)
    print(f"jax: {count_traces(sp.Packer(strength, data, safe))} trace of the step")
    print(f"torch: {count_graphs(sp.Packer(strength, data, safe, on='torch'))} graph of the step")
    base = occupancy(sizes, safe, plain)
    print(f"work occupancy, two slots by hand, rows {MINIBATCH} and {max(each)}: {base:.1%}")
    lean = [{**SMALL, "rows": MINIBATCH - 1}, {**LARGE, "rows": 1}]
    drawn = list(sp.MinibatchSampler(sizes, lean, work=WORK))
    print(
        f"... rows 31 and 1, the sampler carries over: {occupancy(sizes, lean, drawn):.1%}, "
        f"{len(drawn)} steps an epoch"
    )
    for count in (2, 3, 4, 6, 8):
        slots = sp.choose_slots(sizes, count, minibatch=MINIBATCH, work=WORK)
        drawn = list(sp.MinibatchSampler(sizes, slots, work=WORK))
        found = occupancy(sizes, slots, drawn)
        print(
            f"{count} chosen slots: {found:.1%} = {found / base:.2f}x by hand, {len(drawn)} steps, "
            f"overflow {slots.overflow:.0%}"
        )


if __name__ == "__main__":
    main()
