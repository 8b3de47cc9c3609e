"""Structures for the Ewald benchmark: real crystals, strained and rattled, and slabs in vacuum."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from ase import Atoms

CUTOFF = 5.0
WAVELENGTH = CUTOFF / 8
SMEARING = CUTOFF / 4
# at which stowplan gives slabs the vacuum that the peers do, 1.5 times their longest side
VACUUM_ACCURACY = 4 * np.pi * np.exp(-3 * np.pi)

_FCC = [(0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0)]


def _fcc(*offsets: tuple[float, float, float]) -> list[tuple[float, ...]]:
    return [
        tuple((x + y) % 1.0 for x, y in zip(site, offset, strict=True))
        for offset in offsets
        for site in _FCC
    ]


# name: lengths of an orthogonal cell in A, symbols, charges in e, fractional positions
CRYSTALS = {
    "NaCl": ((5.640,) * 3, "Na4Cl4", [1] * 4 + [-1] * 4, _fcc((0, 0, 0), (0.5, 0.5, 0.5))),
    "MgO": ((4.212,) * 3, "Mg4O4", [2] * 4 + [-2] * 4, _fcc((0, 0, 0), (0.5, 0.5, 0.5))),
    "LiF": ((4.026,) * 3, "Li4F4", [1] * 4 + [-1] * 4, _fcc((0, 0, 0), (0.5, 0.5, 0.5))),
    "ZnS": ((5.409,) * 3, "Zn4S4", [2] * 4 + [-2] * 4, _fcc((0, 0, 0), (0.25, 0.25, 0.25))),
    "CaF2": (
        (5.463,) * 3,
        "Ca4F8",
        [2] * 4 + [-1] * 8,
        _fcc((0, 0, 0), (0.25, 0.25, 0.25), (0.75, 0.75, 0.75)),
    ),
    "CsCl": ((4.123,) * 3, "CsCl", [1, -1], [(0, 0, 0), (0.5, 0.5, 0.5)]),
    "SrTiO3": (
        (3.905,) * 3,
        "SrTiO3",
        [2, 4, -2, -2, -2],
        [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)],
    ),
    "TiO2": (
        (4.594, 4.594, 2.959),
        "Ti2O4",
        [4] * 2 + [-2] * 4,
        [
            (0, 0, 0),
            (0.5, 0.5, 0.5),
            (0.305, 0.305, 0),
            (0.695, 0.695, 0),
            (0.195, 0.805, 0.5),
            (0.805, 0.195, 0.5),
        ],
    ),
}


def _crystal(name: str, repeats: tuple[int, int, int], vacuum: float = 0.0) -> Atoms:
    lengths, symbols, charges, fractional = CRYSTALS[name]
    atoms = Atoms(symbols, scaled_positions=fractional, cell=lengths, pbc=True)
    atoms.set_initial_charges(charges)
    atoms = atoms.repeat(repeats)
    if vacuum:
        cell = atoms.cell.array.copy()
        cell[2, 2] += vacuum
        atoms.set_cell(cell)
        atoms.set_pbc((True, True, False))
    return atoms


def _disturb(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Strain by 2 % (in the plane for a slab) and displace by 0.05 A."""
    strain = rng.normal(scale=0.02, size=(3, 3))
    if not atoms.pbc.all():
        strain[2, :] = strain[:, 2] = 0.0
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
    atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    return atoms


def _supercells(smallest: int, largest: int, deepest: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, (_, _, charges, _) in CRYSTALS.items():
        for repeats in product(range(1, 5), range(1, 5), range(1, deepest + 1)):
            near_cubic = max(repeats) <= 2 * min(repeats) + 1
            if near_cubic and smallest <= len(charges) * int(np.prod(repeats)) <= largest:
                yield name, repeats


def structures(count: int, seed: int) -> list[Atoms]:
    """``count`` structures: 97 % of 8 to 64 atoms (a tenth of them slabs), 3 % of 96 to 192.

    Of the large ones, every other is a slab in vacuum, which needs the most k-vectors. The order
    is shuffled. Charges are formal charges in e, lengths in A.
    """
    rng = np.random.default_rng(seed)
    outliers = max(1, round(0.03 * count))
    bulk, films = list(_supercells(8, 64, 4)), list(_supercells(8, 64, 1))
    large = list(_supercells(96, 192, 4))
    large_films = [(name, n) for name, n in _supercells(96, 192, 2) if n[0] == n[1]]

    def pick(choices: list, vacuum: float = 0.0) -> Atoms:
        name, repeats = choices[rng.integers(len(choices))]
        return _disturb(_crystal(name, repeats, vacuum), rng)

    items = [
        pick(films, rng.uniform(40, 80)) if i % 10 == 0 else pick(bulk)
        for i in range(count - outliers)
    ]
    items += [
        pick(large_films, rng.uniform(40, 80)) if i % 2 else pick(large) for i in range(outliers)
    ]
    return [items[i] for i in rng.permutation(count)]


def effective_cell(atoms: Atoms) -> np.ndarray:
    """The cell that counts k-vectors: a slab's vacuum shrunk to 1.5 times its longest side."""
    cell = atoms.cell.array.copy()
    if not atoms.pbc.all():
        z = atoms.positions[:, 2]
        height = z.max() - z.min() + 1.5 * np.linalg.norm(cell[:2], axis=1).max()
        cell[2] *= min(1.0, height / abs(cell[2, 2]))
    return cell


def grid(atoms: Atoms) -> np.ndarray:
    """Numbers of k-vectors along the three axes, ``ceil(length / wavelength)``."""
    return np.ceil(np.linalg.norm(effective_cell(atoms), axis=1) / WAVELENGTH).astype(int)
