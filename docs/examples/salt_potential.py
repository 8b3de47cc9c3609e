"""Madelung's constant of rock salt from Poisson's equation on a grid, and its potential."""

import argparse
import itertools
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk

from stowplan.recipes import fields

MADELUNG = 1.747564594633
SIGMA = 0.25  # Å: narrow beside the 2.82 Å between ions

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--small", action="store_true", help="a coarser grid")
parser.add_argument("--out", type=Path, default=Path("out"))
options = parser.parse_args()

salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
cells = 48 if options.small else 128
spacing = 5.64 / cells
axis = np.arange(cells) * spacing
density = np.zeros((cells, cells, cells))
for atom in salt:
    charge = 1.0 if atom.symbol == "Na" else -1.0
    x, y, z = (
        sum(np.exp(-((axis - place + 5.64 * n) ** 2) / (2 * SIGMA**2)) for n in (-1, 0, 1))
        for place in atom.position
    )
    density += charge * np.einsum("x,y,z->xyz", x, y, z) / (2 * np.pi * SIGMA**2) ** 1.5
density -= density.mean()  # rounding
potential = fields.solve(4 * np.pi * density, spacing=spacing, budget="1 GiB")

own = np.sqrt(2 / np.pi) / SIGMA  # of a Gaussian at its own centre
at_ion = potential[0, 0, 0] - own  # the first ion is Na, at the origin
print(f"Madelung's constant {-at_ion * 5.64 / 2:.9f}, literature {MADELUNG:.9f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
shown = left.imshow(potential[:, :, 0].T, origin="lower", extent=(0, 5.64, 0, 5.64), cmap="RdBu_r")
left.set(xlabel="x (Å)", ylabel="y (Å)", title="potential in the plane z = 0 (e/Å)")
figure.colorbar(shown)
for name, direction in itertools.zip_longest(("[100]", "[110]", "[111]"), range(3)):
    line = [potential[(n,) * (direction + 1) + (0,) * (2 - direction)] for n in range(cells)]
    right.plot(axis * np.sqrt(direction + 1), line, label=name)
right.set(xlabel="distance from Na (Å)", ylabel="potential (e/Å)")
right.legend()
options.out.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out / "salt_potential.png", dpi=130)
