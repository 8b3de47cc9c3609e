"""Cutoff, smearing and wavelength of an Ewald sum that meet an accuracy at the least cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Parameters", "choose_parameters", "vacuum_gap"]

Array = NDArray[np.float64]

COST_RATIO = 1 / 30  # seconds per k-vector and atom over seconds per pair, measured with NumPy
SAFETY = 4.0  # from the root mean square that the formulas give to the largest error


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """Parameters by structure, in the unit of length of the positions."""

    cutoff: Array  # (items,)
    smearing: Array  # (items,)
    wavelength: Array  # (items,)


def choose_parameters(
    atoms: Array,
    volume: Array,
    imbalance: Array,
    accuracy: float,
    *,
    cutoff: float | None = None,
    smearing: float | None = None,
    wavelength: float | None = None,
    exponent: int = 1,
) -> Parameters:
    r"""Choose what is None so that the errors stay below the accuracy.

    Both sums end where exp(-eta^2) is left of them: cutoff = sqrt(2) eta sigma, and the largest k,
    pi / wavelength, = sqrt(2) eta / sigma. The cutoff that costs least grows as atoms^(1/6).

    Parameters
    ----------
    atoms, volume : array (items,)
        Number of atoms and volume of each cell.
    imbalance : array (items,)
        Q^2 / (N sum q^2): 0 for a neutral cell, 1 where all charges are equal. Their tails add up.
    accuracy
        Error of an energy over sum q^2 / a^p and of a force over max(q)^2 / a^(p+1), where a is
        (volume / atoms)^(1/3).
    cutoff, smearing, wavelength
        Fixed values for all structures.
    exponent
        p of 1/r^p.

    Notes
    -----
    Prefactors of exp(-eta^2) from J. Kolafa and J. W. Perram, Mol. Simul. 9, 351 (1992), and from
    the mean of \|S\|^2 for the energy; both sums of 1/r^p are longer by the same factor,
    sqrt(pi) (a / sqrt(2) sigma)^(p-1) / Gamma(p/2).

    >>> import numpy as np
    >>> one = np.ones(1)
    >>> choose_parameters(8 * one, 8 * one, 0 * one, 1e-6, smearing=0.5).cutoff.round(1).tolist()
    [2.8]
    """
    spacing = (volume / atoms) ** (1 / 3)
    short = smooth = np.full(len(atoms), math.sqrt(max(-math.log(accuracy), 1.0)))
    for _ in range(12):
        if cutoff is not None:
            reach = np.full(len(atoms), cutoff)
        elif smearing is not None:
            reach = math.sqrt(2) * short * smearing
        elif wavelength is not None:
            reach = 2 * short * smooth * wavelength / math.pi
        else:
            balance = (3 / math.pi * COST_RATIO) ** (1 / 6) / math.sqrt(math.pi)
            reach = balance * smooth * atoms ** (1 / 6) * spacing
        width = (
            np.full(len(atoms), smearing) if smearing is not None else reach / short / math.sqrt(2)
        )
        rate = spacing / (math.sqrt(2) * width)
        longer = math.sqrt(math.pi) / math.gamma(exponent / 2) * rate ** (exponent - 1)
        far = reach / spacing
        force = 2 / np.sqrt(far)
        energy = np.sqrt(far / 2) / short**2 + imbalance * math.sqrt(math.pi) * (far / short) ** 2
        short = _eta(np.maximum(force, energy) * longer, accuracy)
        force = np.sqrt(8 * rate / (math.pi * smooth))
        energy = rate / (math.pi * smooth)
        smooth = _eta(np.maximum(force, energy) * longer, accuracy)
    if wavelength is None:
        waves = math.pi * width / (math.sqrt(2) * smooth)
    else:
        waves = np.full(len(atoms), wavelength)
    return Parameters(reach, width, waves)


def vacuum_gap(spacing: Array, accuracy: float) -> Array:
    """Give the gap between a slab and its images beyond which they matter less than the accuracy.

    What the slab correction leaves decays as exp(-2 pi gap / spacing), where `spacing` is the
    longer of the two periodic lattice vectors.
    """
    return spacing * (math.log(SAFETY * math.pi / accuracy)) / (2 * math.pi)


def _eta(prefactor: Array, accuracy: float) -> Array:
    return np.sqrt(np.maximum(np.log(SAFETY * prefactor / accuracy), 1.0))
