"""Ewald energies of 299 structures of 2 to 384 ions, and what the plan makes of their sizes."""

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from stowplan.io import structures as files
from stowplan.recipes import ewald

FILE = Path(__file__).parents[2] / "demo" / "structures.extxyz"
EV = 14.399645478425667  # e^2/Å in eV

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--small", action="store_true", help="forty structures")
parser.add_argument("--out", type=Path, default=Path("out"))
options = parser.parse_args()

structures = files.read(FILE)[: 40 if options.small else None]
found = ewald.compute(structures, accuracy=1e-6, prefactor=EV)
plan = found.plans["kspace"]
print(plan)

atoms = np.array([len(structure) for structure in structures])
periodic = np.array([structure.pbc.sum() for structure in structures])
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for axes, kind in ((3, "crystals"), (2, "slabs"), (0, "molecules")):
    chosen = periodic == axes
    left.semilogx(atoms[chosen], (found.energy / atoms)[chosen], "o", alpha=0.6, label=kind)
left.set(xlabel="atoms", ylabel="Coulomb energy per atom (eV)", title="formal charges")
left.legend()

padded = np.empty(len(atoms))
for batch in plan.batches:
    padded[batch.items[: batch.count]] = batch.capacity[plan.dims.index("atoms")]
right.loglog(atoms, padded, "o", alpha=0.6)
right.loglog([2, atoms.max()], [2, atoms.max()], color="0.6")
useful = f"{plan.occupancy():.0%} of the work is useful"
right.set(xlabel="atoms", ylabel="atoms of the slot", title=useful)
options.out.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out / "lattice_energies.png", dpi=130)
