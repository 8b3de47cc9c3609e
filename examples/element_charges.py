"""Learn the charge of each element from energies and forces: one training loop, twice.

``python examples/element_charges.py [--on jax torch] [--steps 600] [--out FOLDER]``

The shipped structures that hold ten elements only have 2 to 64 atoms: crystals, slabs, clusters.
Their energies and forces by Ewald sums of the formal charges are the data, the charges are what is
learnt, and charge neutrality is part of the loss. The loop is the user's own: an optimiser of
optax in JAX, of torch in torch. Minibatches are shuffled, yet the step is compiled once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

import stowplan as sp
from stowplan.io import structures as files
from stowplan.kernels import ewald as kernels
from stowplan.recipes import ewald

FILE = Path(__file__).parents[1] / "demo" / "structures.extxyz"
CHARGES = {  # the truth, in e
    "Li": 1.0, "Na": 1.0, "K": 1.0, "Mg": 2.0, "Ca": 2.0,
    "F": -1.0, "Cl": -1.0, "Br": -1.0, "I": -1.0, "O": -2.0,
}  # fmt: skip
MOST_ATOMS = 64
SLOTS = 4  # each compiles for seconds in JAX, gradients of forces as it has
MINIBATCH = 16
SEED = 7
RATE = 0.05
MISFIT_WORK = f"3 * ({kernels.kspace_field.work.text} + {kernels.real_field.work.text})"


@sp.kernel(
    "(n1),(n2),(n3),(atoms,neighbours),(atoms,neighbours,3),(atoms,3),(atoms),(3,3),(),(3),"
    "(),(atoms,3)->()",
    ragged=("n1", "n2", "n3", "atoms", "neighbours"),
    fill={"species": -1, "neighbours": -1},
    index={"neighbours": "atoms"},
    work=MISFIT_WORK,
)
def misfit(
    m1, m2, m3, neighbours, shifts, positions, species, cell, smearing, periodic, energy, forces,
    *, charges, mask,
):  # fmt: skip
    """Mean square error of a structure: energy per atom, forces, and charge neutrality."""
    xp = array_namespace(positions, charges)
    elements = xp.arange(charges.shape[0], dtype=species.dtype)
    chosen = xp.astype(species[..., None] == elements, charges.dtype)  # none for padding
    own = xp.matmul(chosen, charges[:, None])[..., 0]
    shared = (positions, own, cell, smearing, periodic)
    smooth = kernels.kspace_field(m1, m2, m3, *shared, mask=mask)
    short = kernels.real_field(neighbours, shifts, *shared)
    real = xp.astype(mask["atoms"], charges.dtype)
    atoms = xp.sum(real, axis=-1)
    atoms = xp.where(atoms > 0, atoms, xp.ones_like(atoms))  # a row without item has none
    apart = (smooth[2] + short[2] - forces) * real[..., None]
    return (
        ((smooth[0] + short[0] - energy) / atoms) ** 2
        + xp.sum(apart**2, axis=(-2, -1)) / atoms
        + (xp.sum(own, axis=-1) / atoms) ** 2
    )


@dataclass
class Training:
    """What one framework learnt, and how."""

    on: str
    charges: dict[str, float] = field(default_factory=dict)  # in e
    losses: list[float] = field(default_factory=list)  # mean over each epoch
    seconds: float = 0.0
    traces: int = 0  # of the compiled step

    @property
    def error(self) -> float:
        """Largest deviation from the truth."""
        return max(abs(self.charges[name] - CHARGES[name]) for name in CHARGES)


def columns() -> dict[str, Any]:
    """Give the columns of `misfit` for the shipped structures."""
    structures = [
        atoms
        for atoms in files.read(FILE)
        if set(atoms.symbols) <= set(CHARGES) and len(atoms) <= MOST_ATOMS
    ]
    kspace, real = ewald.columns(structures, charges=CHARGES, accuracy=1e-6)
    smooth = sp.run(kernels.kspace_field, kspace)
    short = sp.run(kernels.real_field, real)
    names = {name: number for number, name in enumerate(CHARGES)}
    data = {**kspace, **real}
    del data["charges"]
    return data | {
        "species": sp.Ragged.from_list(
            [np.array([names[symbol] for symbol in atoms.symbols]) for atoms in structures]
        ),
        "energy": smooth[0] + short[0],
        "forces": smooth[2].map_values(lambda forces: forces + short[2].values),
    }


def guess() -> np.ndarray:
    """Start from the sign of the charge alone: energies do not know it."""
    return np.sign(list(CHARGES.values())) * 0.5


def mean_misfit(xp: Any, charges: Any, batches: Iterable[sp.PackedBatch]) -> Any:
    """Give the loss of a minibatch: rows without item count for nothing."""
    total, count = 0.0, 0
    for batch in batches:
        each = misfit(*batch.arrays, charges=charges, mask=batch.mask)
        total = total + xp.sum(xp.where(batch.row_mask, each, xp.zeros_like(each)))
        count = count + batch.count
    return total / count


def train_jax(packer: sp.Packer, sampler: sp.MinibatchSampler, steps: int) -> Training:
    """Train with optax; the step is traced once."""
    import jax
    import jax.numpy as jnp
    import optax

    done = Training("jax")
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    @jax.jit
    def step(charges: Any, state: Any, batches: Any) -> Any:
        done.traces += 1  # runs while tracing only
        loss, slope = jax.value_and_grad(lambda q: mean_misfit(jnp, q, batches))(charges)
        updates, state = optimiser.update(slope, state)
        return optax.apply_updates(charges, updates), state, loss

    charges = jnp.asarray(guess())
    state = optimiser.init(charges)

    def advance(batches: Any) -> float:
        nonlocal charges, state
        charges, state, loss = step(charges, state, batches)
        return float(loss)

    train(done, packer, sampler, steps, advance)
    done.charges = dict(zip(CHARGES, charges.tolist(), strict=True))
    return done


def train_torch(packer: sp.Packer, sampler: sp.MinibatchSampler, steps: int) -> Training:
    """Train with torch's own Adam."""
    import torch

    done = Training("torch")
    charges = torch.from_numpy(guess()).requires_grad_()
    optimiser = torch.optim.Adam([charges], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    def advance(batches: Any) -> float:
        optimiser.zero_grad()
        loss = mean_misfit(torch, charges, batches)
        loss.backward()
        optimiser.step()
        schedule.step()
        return float(loss.detach())

    train(done, packer, sampler, steps, advance)
    done.charges = dict(zip(CHARGES, charges.tolist(), strict=True))
    return done


def train(
    done: Training,
    packer: sp.Packer,
    sampler: sp.MinibatchSampler,
    steps: int,
    advance: Callable[[Any], float],
) -> None:
    """Take so many steps, epoch after epoch; packing runs ahead in a thread."""
    start = time.perf_counter()
    while steps > 0:
        losses = []
        for batches in packer.minibatches(sampler):
            losses.append(advance(batches))
            steps -= 1
            if steps == 0:
                break
        done.losses.append(float(np.mean(losses)))
    done.seconds = time.perf_counter() - start


TRAINERS = {"jax": train_jax, "torch": train_torch}


def learn(on: str, data: dict[str, Any], slots: sp.MinibatchSlots, steps: int) -> Training:
    """Learn the charges with one framework; every framework sees the same minibatches."""
    if on == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    packer = sp.Packer(misfit, data, slots, on=on)
    sampler = sp.MinibatchSampler(packer.sizes, slots, seed=SEED, work=misfit.work.text)
    return TRAINERS[on](packer, sampler, steps)


def draw(trained: list[Training], folder: Path) -> Path:
    """Write ``element_charges.png``: the loss of each epoch, and the error of each charge."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for line, done in zip(("-", "--"), trained, strict=False):
        left.semilogy(range(1, len(done.losses) + 1), done.losses, line, label=done.on)
        errors = [abs(done.charges[name] - CHARGES[name]) for name in CHARGES]
        right.semilogy(list(CHARGES), errors, "o" if line == "-" else "x", label=done.on)
    left.set(xlabel="epoch", ylabel="mean loss (e⁴/Å²)", title="Loss")
    right.axhline(1e-6, color="0.6", linewidth=1)
    right.set(ylabel="error of the charge (e)", title="Learnt charges against the truth")
    left.legend()
    right.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "element_charges.png"
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path.resolve()


def main() -> None:
    """Train on each framework, print what was learnt, and draw the losses."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--on", nargs="+", choices=list(TRAINERS), default=list(TRAINERS))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    data = columns()
    plan = sp.plan(misfit, data)
    slots = sp.choose_slots(plan.sizes, SLOTS, minibatch=MINIBATCH, work=plan.work)
    print(slots)
    trained = [learn(on, data, slots, options.steps) for on in options.on]
    print("element    truth" + "".join(f"{done.on:>14}" for done in trained))
    for name, truth in CHARGES.items():
        learnt = "".join(f"{done.charges[name]:14.9f}" for done in trained)
        print(f"{name:<8} {truth:+8.1f}{learnt}")
    for done in trained:
        print(
            f"{done.on}: largest error {done.error:.1e} e, last loss {done.losses[-1]:.1e}, "
            f"{done.seconds:.1f} s" + f", {done.traces} traces of the step" * (done.traces > 0)
        )
    if len(trained) == 2:
        first, second = (np.array(list(done.charges.values())) for done in trained)
        print(f"largest difference between the two: {np.abs(first - second).max():.1e} e")
    print(f"losses: {draw(trained, options.out)}")


if __name__ == "__main__":
    main()
