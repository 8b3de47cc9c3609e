"""Rings of a grid: what they count, where they lie, and sums over them that merge exactly.

How many modes a shell has, or cells a bin, depends on no field; it is counted once in NumPy, by the
rule of the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.kernels.fields import ring_count, ring_numbers
from stowplan.recipes.fields_checks import checked_spacing

__all__ = [
    "RadialSums",
    "RingSums",
    "Rings",
    "ShellSums",
    "bins",
    "distances",
    "shells",
    "wave_numbers",
]

Shape = Sequence[int]
Spacing = float | Sequence[float] | NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Rings:
    """Shells of wave numbers, or bins of distances, of one grid.

    Attributes
    ----------
    counts : (rings,) int64
        Modes or cells in each; they sum to those of the grid.
    places : (rings,) float64
        Mean |k|, or mean distance, in each; NaN in an empty one.
    width : float
        Ring m holds what is nearest to m widths.
    shape, spacing : tuple of 3
        Of the grid.
    centre : tuple of 3, optional
        Of bins, in cells.
    """

    counts: NDArray[np.int64]
    places: NDArray[np.float64]
    width: float
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    centre: tuple[float, float, float] | None = None

    def difference(self, other: Rings) -> str | None:
        """Name what differs between two sets of rings; None where nothing does."""
        for name in ("shape", "spacing", "width", "centre"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                return f"{name} {mine} and {its}"
        return None


def wave_numbers(n: int, spacing: float, *, half: bool = False) -> NDArray[np.float64]:
    """Give 2 pi fftfreq(n, spacing) in radians per unit of length; `half` of it for real fields.

    >>> (wave_numbers(4, 0.5) / np.pi).tolist()
    [0.0, 1.0, -2.0, -1.0]
    """
    mode = np.arange(n // 2 + 1 if half else n, dtype=np.float64)
    mode[2 * mode >= n] -= n
    return mode * (2 * np.pi / n) / spacing


def shells(shape: Shape, spacing: Spacing, width: float | None = None) -> Rings:
    """Count the modes of each shell of |k|, mirror images of real fields among them.

    Parameters
    ----------
    shape : (x, y, z)
    spacing : number or three
        Of the grid.
    width : float, optional
        Of a shell. The largest 2 pi / (N dx) of an axis longer than 1 where it is not given, and no
        less: a shell then has modes in all directions.

    Raises
    ------
    DataError
        For a width below that.

    Examples
    --------
    >>> shells((4, 4, 1), spacing=1.0).counts.tolist()  # |n| is 0, 1 and 2^(1/2), 2 and 5^(1/2), 8^(1/2)
    [1, 8, 6, 1]
    """  # noqa: E501  the reason stands beside the numbers
    steps = checked_spacing("shells", spacing)
    lengths = _checked_shape("shells", shape)
    apart = [2 * np.pi / (n * step) for n, step in zip(lengths, steps, strict=True) if n > 1]
    width = _checked_width("shells", width, apart, "2 pi / (N dx)")
    axes = [np.abs(wave_numbers(n, step)) for n, step in zip(lengths, steps, strict=True)]
    return _counted(lengths, steps, width, None, axes)


def bins(
    shape: Shape,
    spacing: Spacing,
    centre: Sequence[float] | NDArray[Any] | None = None,
    width: float | None = None,
) -> Rings:
    """Count the cells in each bin of the distance from a centre, to its nearest image.

    Parameters
    ----------
    shape : (x, y, z)
    spacing : number or three
        Of the grid.
    centre : three numbers, optional
        In cells; need not be whole. The cell N // 2 of each axis where it is not given.
    width : float, optional
        Of a bin. The largest spacing of an axis longer than 1 where it is not given, and no less.

    Raises
    ------
    DataError
        For a width below that, and a centre that is not three finite numbers.

    Examples
    --------
    >>> bins((4, 1, 1), spacing=0.5).counts.tolist()
    [1, 2, 1]
    """
    steps = checked_spacing("bins", spacing)
    lengths = _checked_shape("bins", shape)
    middle = np.asarray([n // 2 for n in lengths] if centre is None else centre, np.float64)
    if middle.shape != (3,) or not np.isfinite(middle).all():
        raise DataError(
            f"bins: centre {centre!r} is not three finite numbers. Give it in cells along x, y and "
            "z: centre=(48, 48, 48)."
        )
    apart = [step for n, step in zip(lengths, steps, strict=True) if n > 1]
    width = _checked_width("bins", width, apart, "spacing")
    x, y, z = middle.tolist()
    return _counted(lengths, steps, width, (x, y, z), distances(lengths, steps, (x, y, z)))


def distances(
    shape: Shape, spacing: Sequence[float], centre: Sequence[float]
) -> list[NDArray[np.float64]]:
    """Give distances along each of three axes from a centre to its nearest image.

    >>> distances((4, 1, 1), (0.5, 1.0, 1.0), (2, 0, 0))[0].tolist()
    [1.0, 0.5, 0.0, 0.5]
    """
    axes = []
    for n, step, place in zip(shape, spacing, centre, strict=True):
        away = np.arange(n) - (place if n > 1 else 0)
        axes.append(np.abs(away - n * np.floor(away / n + 0.5)) * step)
    return axes


@dataclass(frozen=True, slots=True, eq=False)
class RingSums:
    """Sums over the rings of a grid, with what was summed: ``+`` merges parts exactly.

    Attributes
    ----------
    rings : Rings
    sums : (rings,) array
        float64 or complex128.
    lines : int
        Grids that were summed: the lengths of all axes but x, y and z, multiplied.
    """

    rings: Rings
    sums: NDArray[Any]
    lines: int

    @classmethod
    def of(cls, rings: Rings, sums: Any, lines: int) -> Self:
        """Take what a kernel gives for so many lines.

        Raises
        ------
        DataError
            If there are more or fewer sums than rings.
        """
        wide = np.asarray(sums)
        wide = wide.astype(np.complex128 if wide.dtype.kind == "c" else np.float64)
        if wide.shape != rings.counts.shape or lines < 0:
            raise DataError(
                f"{cls.__name__}.of: sums of shape {wide.shape} and {lines} lines for "
                f"{len(rings.counts)} rings. Give one sum for each ring of the same grid."
            )
        return cls(rings, wide, int(lines))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Modes or cells that were summed, (rings,)."""
        return self.rings.counts * self.lines

    @property
    def mean(self) -> NDArray[Any]:
        """Mean over each ring, NaN in an empty one."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sums / self.counts

    def __add__(self, other: Self) -> Self:
        """Merge with other lines, or another field, of the same grid."""
        if type(other) is not type(self):
            return NotImplemented
        different = self.rings.difference(other.rings)
        if different is not None:
            raise DataError(
                f"{type(self).__name__}: sums of different rings do not merge: {different}. "
                "Take all parts with the same grid, width and centre."
            )
        return replace(self, sums=self.sums + other.sums, lines=self.lines + other.lines)


class ShellSums(RingSums):
    """Power in shells of |k|; its mean is that of one mode, and its sums are Parseval's.

    >>> from stowplan.kernels import fields
    >>> waves = np.cos(np.pi / 2 * np.arange(4.0)).reshape(4, 1, 1, 1)
    >>> rings = shells((4, 1, 1), spacing=1.0)
    >>> sums = fields.spectrum(waves, spacing=1.0, width=rings.width)
    >>> (ShellSums.of(rings, sums, lines=1) + ShellSums.of(rings, sums, lines=1)).mean.round(12)
    array([0., 1., 0.])
    """

    __slots__ = ()

    @property
    def wave_numbers(self) -> NDArray[np.float64]:
        """Mean |k| of each shell."""
        return self.rings.places


class RadialSums(RingSums):
    """Values, with their sign, in bins of the distance from a centre."""

    __slots__ = ()

    @property
    def radii(self) -> NDArray[np.float64]:
        """Mean distance in each bin."""
        return self.rings.places


def _counted(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    width: float,
    centre: tuple[float, float, float] | None,
    axes: list[NDArray[np.float64]],
) -> Rings:
    key = tuple(axis.tobytes() for axis in axes)
    counts, places = _count(shape, width, key)
    return Rings(counts, places, width, shape, spacing, centre)


@lru_cache(maxsize=16)
def _count(
    shape: tuple[int, int, int], width: float, axes: tuple[bytes, ...]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count some planes at a time, so that a grid larger than memory is counted too.

    Planes across the longest axis are the smallest. As many are counted together as have the points
    of all rings: the time is that of the points, however long a line is.
    """
    x, y, z = sorted((np.frombuffer(axis) for axis in axes), key=len, reverse=True)
    rings = ring_count(*shape)
    counts, sums = np.zeros(rings, np.int64), np.zeros(rings)
    across = (y[:, None] / width) ** 2 + (z / width) ** 2
    same, times = np.unique(x, return_counts=True)  # opposite planes are alike
    step = -(-rings // across.size)
    for start in range(0, len(same), step):
        planes, often = same[start : start + step], times[start : start + step, None, None]
        numbers = ring_numbers(planes, y, z, width)
        weights = np.broadcast_to(often, numbers.shape).reshape(-1)
        away = (often * np.sqrt((planes[:, None, None] / width) ** 2 + across)).reshape(-1)
        numbers = numbers.reshape(-1)
        counts += np.bincount(numbers, weights, minlength=rings).astype(np.int64)
        sums += np.bincount(numbers, away, minlength=rings)
    with np.errstate(invalid="ignore"):
        places = sums / counts * width
    for array in (counts, places):
        array.flags.writeable = False  # it is kept for the next call
    return counts, places


def _checked_shape(where: str, shape: Shape) -> tuple[int, int, int]:
    lengths = tuple(int(n) for n in shape)
    if len(lengths) != 3 or min(lengths) < 1:
        raise DataError(
            f"{where}: {tuple(shape)} is not the shape of a grid. Give three lengths; an axis that "
            "a field lacks has length 1."
        )
    return lengths[0], lengths[1], lengths[2]


def _checked_width(where: str, width: float | None, apart: list[float], what: str) -> float:
    least = max(apart, default=1.0)
    if width is None:
        return float(least)
    if not width >= least * (1 - 1e-9) or not np.isfinite(width):
        raise DataError(
            f"{where}: width {width} is below the largest {what} of an axis, {least:.6g}: rings "
            f"would be empty, and the last ones missing. Leave it out, or give width={least:.6g} "
            "or more."
        )
    return float(width)
