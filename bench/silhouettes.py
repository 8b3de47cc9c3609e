"""Silhouettes: pairs of bent ellipses, the same for the same seed, and coins of scikit-image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ellipse", "coins", "ellipse_pairs"]

Mask = NDArray[np.bool_]
CANVAS = (256, 576)


class Ellipse(NamedTuple):
    """An ellipse along an arc: lengths in pixels, the curvature of its axis in 1/pixels."""

    centre: tuple[float, float]
    length: float
    width: float
    curvature: float
    tilt: float

    def mask(self, canvas: tuple[int, int]) -> Mask:
        """Draw it, (y, x)."""
        y, x = np.mgrid[: canvas[0], : canvas[1]].astype(float)
        y, x = y - self.centre[0], x - self.centre[1]
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        u, v = x * cos + y * sin, y * cos - x * sin
        if self.curvature:
            radius = 1 / self.curvature
            sign = np.sign(radius)
            along = radius * np.arctan2(sign * u, sign * (radius - v))
            across = radius - sign * np.hypot(u, radius - v)
        else:
            along, across = u, v
        inside: Mask = (2 * along / self.length) ** 2 + (across / self.width) ** 2 <= 1
        return inside


def ellipse_pairs(
    count: int = 64, canvas: tuple[int, int] | None = CANVAS, seed: int = 4
) -> tuple[list[Mask], list[Mask]]:
    """Draw sources and targets: the target is longer, bent, turned and shifted by a little.

    Without a canvas those of the pairs differ, from 128 x 256 to 512 x 1024.
    """
    rng = np.random.default_rng(seed)
    sources, targets = [], []
    for _ in range(count):
        shape = canvas
        if shape is None:
            factor = 2 ** rng.uniform(-1, 1)
            shape = (round(256 * factor), round(512 * factor))
        size = shape[1] / CANVAS[1]
        length, width = size * rng.uniform(160, 480), size * rng.uniform(24, 62)
        curvature, tilt = rng.uniform(-0.9, 0.9) / length, rng.uniform(-0.12, 0.12)
        centre = (
            shape[0] / 2 + size * rng.uniform(-20, 20),
            shape[1] / 2 + size * rng.uniform(-30, 30),
        )
        source = Ellipse(centre, length, width, curvature, tilt)
        target = Ellipse(
            (centre[0] + size * rng.uniform(-12, 12), centre[1] + size * rng.uniform(-25, 25)),
            length * rng.uniform(0.9, 1.2),
            width * rng.uniform(0.85, 1.15),
            curvature + rng.uniform(-0.6, 0.6) / length,
            tilt + rng.uniform(-0.15, 0.15),
        )
        sources.append(source.mask(shape))
        targets.append(target.mask(shape))
    return sources, targets


def coins() -> NDArray[np.bool_]:
    """Give the masks of the 22 coins that scikit-image ships, (22, y, x)."""
    from skimage import data, filters, measure, morphology, segmentation

    image = data.coins()
    bright = image > filters.threshold_otsu(image)
    closed = morphology.closing(bright, morphology.footprint_rectangle((3, 3)))
    labels = measure.label(segmentation.clear_border(closed))
    large = [region.label for region in measure.regionprops(labels) if region.area > 300]
    return np.stack([labels == label for label in large])
