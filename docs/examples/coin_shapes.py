"""Optimal transport from each coin of a photograph to the next: how far shapes differ."""

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage
from skimage import data, filters

from stowplan.recipes import transport

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--small", action="store_true", help="six coins")
parser.add_argument("--out", type=Path, default=Path("out"))
options = parser.parse_args()

photo = data.coins()
bright = ndimage.binary_closing(photo > filters.threshold_otsu(photo), iterations=2)
labels, _ = ndimage.label(ndimage.binary_fill_holes(bright))
boxes = [
    (number, box)
    for number, box in enumerate(ndimage.find_objects(labels), start=1)
    if 300 < (labels[box] == number).sum() < 6000 and box[0].start > 0 and box[1].start > 0
][: 6 if options.small else None]


def centred(number: int, box: tuple[slice, slice]) -> np.ndarray:
    canvas, coin = np.zeros((96, 96), bool), labels[box] == number
    y, x = ((96 - n) // 2 for n in coin.shape)
    canvas[y : y + coin.shape[0], x : x + coin.shape[1]] = coin
    return canvas


coins = np.stack([centred(*box) for box in boxes])
found = transport.solve(coins, pairs="consecutive", pool=2, padding=8)
print(found.plan)
print("created less destroyed:", (found.created_mass - found.destroyed_mass).round(3))

most = int(np.argmax(np.abs(found.created_mass - found.destroyed_mass)))
maps, (y0, y1, x0, x1) = found.maps(most), found.boxes[most]
change = maps["created"] - maps["destroyed"]
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
left.imshow(photo, cmap="gray")
left.set(title=f"{len(coins)} coins", xticks=[], yticks=[])
middle.imshow(coins[most][y0:y1, x0:x1] + 2 * coins[most + 1][y0:y1, x0:x1], cmap="Pastel1_r")
middle.set(title=f"coins {most} and {most + 1}", xticks=[], yticks=[])
shown = right.imshow(change, cmap="RdBu_r", vmin=-abs(change).max(), vmax=abs(change).max())
right.set(title="created less destroyed", xticks=[], yticks=[])
figure.colorbar(shown)
options.out.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out / "coin_shapes.png", dpi=130)
