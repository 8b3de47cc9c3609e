"""A rotation image of a lysozyme crystal, in chunks of pixels within 256 MiB."""

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from stowplan.recipes import bragg

CELL = (79.1, 79.1, 37.9, 90, 90, 90)  # hen egg-white lysozyme, P 43 21 2

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--small", action="store_true", help="an eighth of the pixels along each axis")
parser.add_argument("--out", type=Path, default=Path("out"))
options = parser.parse_args()

pixels = 128 if options.small else 1024
detector = bragg.Detector((pixels, pixels), distance=120, pixel_size=102.4 / pixels)
beam = bragg.Beam(1.0, dispersion=0.5, dispersion_steps=3)
crystal = bragg.Crystal(
    CELL,
    cells=(12, 12, 24),
    misset=(12, 35, 20),
    phi=0,
    oscillation=0.5,
    phi_steps=5,
    mosaic=bragg.mosaic_rotations(0.2, 5, seed=0),
)
print(bragg.estimate(crystal, detector, beam, budget="256 MiB"))
photons = bragg.image(crystal, detector, beam, budget="256 MiB", progress=not options.small)
print(f"{photons.sum():.6g} photons, {photons.max():.4g} in the brightest pixel")

figure, axis = plt.subplots(figsize=(7, 6), layout="constrained")
shown = axis.imshow(photons + 1e-3, norm="log", cmap="gray_r", vmin=photons.max() * 1e-4)
axis.set(xlabel="fast axis (pixels)", ylabel="slow axis (pixels)", title="lysozyme, 0.5 degrees")
figure.colorbar(shown, label="photons")
options.out.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out / "lysozyme_image.png", dpi=130)
