"""Poses, (qw, qx, qy, qz, tx, ty, tz): where overlays start, and how they turn and invert."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "fibonacci_rotations",
    "inverted",
    "principal_poses",
    "product",
    "quaternions_of",
    "rotations_of",
]

Array = NDArray[np.float64]
FLIPS = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
"""Half turns of a frame: the signs (+, +), (-, +), (+, -), (-, -) of its first two axes."""


def product(first: Array, second: Array) -> Array:
    """Give quaternions (..., 4) of the rotation by `second` and then by `first`."""
    w, x, y, z = np.moveaxis(first, -1, 0)
    a, b, c, d = np.moveaxis(second, -1, 0)
    return np.stack(
        [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ],
        axis=-1,
    )


def rotations_of(quaternions: Array) -> Array:
    """Give rotation matrices (..., 3, 3) of quaternions (..., 4) of any length.

    >>> rotations_of(np.array([2.0, 0, 0, 2])).round(12).tolist()        # 90 degrees about z
    [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    unit = quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True)
    w, x, y, z = np.moveaxis(unit, -1, 0)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    found: Array = np.stack(entries, axis=-1).reshape(*unit.shape[:-1], 3, 3)
    return found


def quaternions_of(rotations: Array) -> Array:
    """Give unit quaternions (..., 4) of rotation matrices (..., 3, 3).

    Of the four forms that follow from the squares of the components, the one that divides by the
    largest is taken.

    >>> quaternions_of(np.diag([1.0, -1, -1])).tolist()
    [0.0, 1.0, 0.0, 0.0]
    """
    r = rotations
    a, b, c = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    yz, zx, xy = (r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0],
                  r[..., 1, 0] - r[..., 0, 1])  # fmt: skip
    sums = [r[..., i, j] + r[..., j, i] for i, j in ((0, 1), (0, 2), (1, 2))]
    forms = np.stack(
        [
            np.stack([1 + a + b + c, yz, zx, xy], axis=-1),
            np.stack([yz, 1 + a - b - c, sums[0], sums[1]], axis=-1),
            np.stack([zx, sums[0], 1 - a + b - c, sums[2]], axis=-1),
            np.stack([xy, sums[1], sums[2], 1 - a - b + c], axis=-1),
        ],
        axis=-2,
    )
    largest = np.argmax(np.diagonal(forms, axis1=-2, axis2=-1), axis=-1)
    found = np.take_along_axis(forms, largest[..., None, None], axis=-2)[..., 0, :]
    unit: Array = found / np.linalg.norm(found, axis=-1, keepdims=True)
    return unit


def fibonacci_rotations(count: int) -> Array:
    """Give quaternions (count, 4) that take (1, 0, 0) to points spread evenly over a sphere.

    >>> fibonacci_rotations(1).tolist()
    [[1.0, 0.0, 0.0, 0.0]]
    """
    i = np.arange(count)
    y = (2 * i / count - 1) + 1 / count
    angle = (i + 1) % count * np.pi * (3 - np.sqrt(5))
    radius = np.sqrt(1 - y * y)
    x, z = np.cos(angle) * radius, np.sin(angle) * radius
    turns = np.stack([1 + x, np.zeros(count), -z, y], axis=-1)
    turns[1 + x < 1e-12] = [0, 0, 1, 0]  # to the opposite point any half turn does
    unit: Array = turns / np.linalg.norm(turns, axis=-1, keepdims=True)
    return unit


def principal_poses(reference: Array, fit: Array, count: int) -> Array:
    """Give `count` poses of each pair with centres aligned, (pairs, count, 7).

    The first leaves the molecule as it is; four put the principal axes of both onto each other; the
    others turn it evenly about all directions, in the principal frames of both.

    Parameters
    ----------
    reference, fit
        Quaternions of the principal frames, (pairs, 4).
    count
        Poses of a pair, at least 1.
    """
    turns = np.concatenate([FLIPS, fibonacci_rotations(max(count - 5, 1))])[: count - 1]
    poses = np.zeros((len(reference), count, 7))
    poses[:, 0, 0] = 1
    poses[:, 1:, :4] = between_frames(reference, turns, fit)
    return poses


def between_frames(reference: Array, turns: Array, fit: Array) -> Array:
    """Give the rotations (pairs, turns, 4) that are `turns` in the frames of both molecules."""
    back = fit * [1, -1, -1, -1]
    return product(product(reference[:, None, :], turns[None, :, :]), back[:, None, :])


def inverted(poses: Array) -> Array:
    """Give the poses that undo poses (..., 7): a = R^-1 (b - t)."""
    unit = poses[..., :4] / np.linalg.norm(poses[..., :4], axis=-1, keepdims=True)
    back = unit * [1, -1, -1, -1]
    shift = -np.einsum("...ij,...j->...i", rotations_of(back), poses[..., 4:])
    return np.concatenate([back, shift], axis=-1)
