"""How alike in shape are 47 ligands of the kinase CDK2, which RDKit ships with coordinates."""

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rdkit import RDConfig
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from stowplan.io.molecules import read_molecules
from stowplan.recipes import overlay

FILE = Path(RDConfig.RDContribDir) / "Fastcluster" / "testdata" / "cdk2.sdf"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--small", action="store_true", help="ten ligands")
parser.add_argument("--out", type=Path, default=Path("out"))
options = parser.parse_args()

ligands = read_molecules(FILE)
points = ligands.points[: 10 if options.small else len(ligands.points)]
count = len(points)
pairs = [(i, j) for i in range(count) for j in range(i)]
found = overlay.align(points, pairs=pairs, starts=5)
print(found.plan)

alike = np.eye(count)
for (i, j), score in zip(pairs, found.score, strict=True):
    alike[i, j] = alike[j, i] = score
best = pairs[int(np.argmax(found.score))]
names = [ligands.names[i] for i in best]
print(f"most alike: {names[0]} and {names[1]}, {found.score.max():.3f}")

order = leaves_list(linkage(squareform(1 - alike, checks=False), "average"))
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
shown = left.imshow(alike[np.ix_(order, order)], cmap="viridis")
left.set(xlabel="ligands, clustered", ylabel="ligands, clustered")
figure.colorbar(shown, ax=left, label="Tanimoto index of shape")
right.hist(found.score, bins=30)
right.set(xlabel="Tanimoto index of shape", ylabel="pairs")
options.out.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out / "kinase_ligands.png", dpi=130)
