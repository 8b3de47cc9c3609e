"""Make the structures of the demo from published crystals: ``python demo/structures.py``.

Perfect crystals, thermal supercells, slabs with 20 to 100 Å of vacuum, and clusters cut from the
crystals; a few are much larger than the rest, as in the data sets that people have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

import numpy as np
from compounds import (
    CENTRES,
    COMPOUNDS,
    MADELUNG,
    PRIMITIVE,
    Compound,
    conventional_cell,
    prototype,
)
from numpy.typing import NDArray

PATH = Path(__file__).with_name("structures.extxyz")
SEED = 20
VACUUM = (20.0, 30.0, 45.0, 70.0, 100.0)  # Å
REPEATS = (
    *((1, 1, 1), (1, 1, 2), (2, 1, 1), (1, 2, 2), (1, 1, 4), (2, 2, 2), (2, 3, 2), (3, 3, 2)),
    *((1, 6, 1), (3, 3, 3)),
)
SMALL = 64  # atoms
BLOCKS = ((1, 1, 2), (2, 2, 1), (2, 2, 2), (2, 3, 2), (1, 1, 6), (4, 2, 3), (4, 4, 2), (4, 3, 4))
LARGE = {  # repeats of the conventional cell, or ions of a block
    "supercell": {"NaCl": (3, 3, 4), "CaF2": (3, 3, 3), "SrTiO3": (4, 4, 4), "CsI": (5, 5, 7)},
    "slab": {"MgO": (3, 3, 4), "KBr": (3, 3, 2)},
    "molecule": {"KCl": (6, 8, 8), "LiF": (6, 6, 6)},
}
CUBE = 12 - 12 / sqrt(2) + 4 / sqrt(3)  # eight ions at the corners: edges, face and body diagonals


@dataclass
class Frame:
    """One structure as it is written."""

    compound: Compound
    kind: str
    cell: NDArray[np.float64]
    species: NDArray[np.intp]
    positions: NDArray[np.float64]  # (atoms, 3) in Å
    pbc: str = "T T T"
    digits: int = 4
    info: dict[str, str | float] = field(default_factory=dict)


def unit_cell(compound: Compound, primitive: bool = False) -> Frame:
    """Give the perfect crystal."""
    kind = prototype(compound)
    cell = conventional_cell(compound)
    centres = CENTRES["P" if primitive else kind.centring]
    fractions = (centres[:, None] + kind.sites).reshape(-1, 3)
    species = np.tile(np.array(kind.species), len(centres))
    if primitive:
        return Frame(
            compound, "crystal", PRIMITIVE[kind.centring] @ cell, species, fractions @ cell
        )
    return Frame(compound, "crystal", cell, species, (fractions % 1) @ cell)


def supercell(unit: Frame, matrix: NDArray[np.int64]) -> Frame:
    """Fill the cell whose lattice vectors are integer rows of the old ones."""
    reach = np.abs(matrix).sum(axis=0)
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1)
    inside = grid.reshape(-1, 3) @ np.linalg.inv(matrix)
    shifts = grid.reshape(-1, 3)[((inside > -1e-9) & (inside < 1 - 1e-9)).all(axis=1)]
    cell = matrix @ unit.cell
    positions = (shifts[:, None] @ unit.cell + unit.positions).reshape(-1, 3)
    fractions = positions @ np.linalg.inv(cell)
    fractions -= np.floor(fractions + 1e-9)
    return Frame(
        unit.compound, "supercell", cell, np.tile(unit.species, len(shifts)), fractions @ cell
    )


def slab(compound: Compound, repeats: tuple[int, int, int], vacuum: float) -> Frame:
    """Cut a neutral surface and leave vacuum along the last axis."""
    surface = prototype(compound).slab
    assert surface is not None
    made = supercell(unit_cell(compound), np.diag(repeats) @ np.array(surface))
    lengths = np.linalg.norm(made.cell, axis=1)  # the three vectors are at right angles
    positions = made.positions @ np.linalg.inv(made.cell) * lengths
    height = np.ptp(positions[:, 2]) + vacuum
    positions[:, 2] += vacuum / 2 - positions[:, 2].min()
    cell = np.diag([lengths[0], lengths[1], height])
    return Frame(compound, "slab", cell, made.species, positions, "T T F", info={"vacuum": vacuum})


def block(compound: Compound, ions: tuple[int, int, int]) -> Frame:
    """Cut a block of ions from rock salt: neutral when one of its edges is even."""
    steps = np.stack(np.meshgrid(*map(np.arange, ions), indexing="ij"), axis=-1).reshape(-1, 3)
    positions = steps * compound.a / 2
    return Frame(compound, "molecule", np.zeros((3, 3)), steps.sum(axis=1) % 2, positions, "F F F")


def cluster(compound: Compound, repeats: tuple[int, int, int]) -> Frame:
    """Take whole cells out of a crystal."""
    made = supercell(unit_cell(compound), np.diag(repeats))
    empty = np.zeros((3, 3))
    return Frame(compound, "molecule", empty, made.species, made.positions, "F F F")


def shaken(frame: Frame, rng: np.random.Generator) -> Frame:
    """Displace every atom: 0.09 Å along each axis for ions of charge 1, 0.05 Å for the others."""
    amplitude = np.where(np.abs(charges(frame)) == 1, 0.09, 0.05)
    frame.positions = frame.positions + amplitude[:, None] * rng.normal(size=frame.positions.shape)
    return frame


def charges(frame: Frame) -> NDArray[np.int64]:
    """Formal charge of every atom."""
    return np.array([charge for _, charge in frame.compound.ions])[frame.species]


def with_reference(frame: Frame, constant: float, length: float, units: int) -> Frame:
    """Add what the literature says: E = -constant * units * charge^2 / length."""
    unit = min(abs(charge) for _, charge in frame.compound.ions)
    frame.info |= {"madelung": constant, "length": length, "units": units * unit**2}
    frame.digits = 12
    return frame


def crystals() -> Iterator[Frame]:
    """One perfect crystal of each compound; every other centred one by its primitive cell."""
    for index, compound in enumerate(COMPOUNDS):
        frame = unit_cell(compound, primitive=index % 2 == 1)
        frame.info["source"] = compound.source
        frame.digits = 12
        if compound.prototype in MADELUNG:
            constant, length = MADELUNG[compound.prototype]
            single = np.bincount(frame.species).min()  # of AB and A2B alike
            frame = with_reference(frame, constant, length * compound.a, int(single))
        yield frame


def supercells(rng: np.random.Generator) -> Iterator[Frame]:
    """Three of each compound, of any shape up to a size."""
    for compound in COMPOUNDS:
        for primitive in (False, True, False):
            unit = unit_cell(compound, primitive)
            room = [n for n in REPEATS if np.prod(n) * len(unit.species) <= SMALL]
            repeats = room[rng.integers(len(room))]
            yield shaken(supercell(unit, np.diag(repeats)), rng)


def slabs(rng: np.random.Generator) -> Iterator[Frame]:
    """One or two of each compound that has a neutral surface."""
    for index, compound in enumerate(COMPOUNDS):
        if prototype(compound).slab is not None:
            for layers in (1, 2)[: 1 + index % 2]:
                vacuum = VACUUM[rng.integers(len(VACUUM))]
                yield shaken(slab(compound, (1, 1 + index % 2, layers), vacuum), rng)


def molecules(rng: np.random.Generator) -> Iterator[Frame]:
    """Clusters: two undisplaced ones with energies in closed form, then the rest."""
    salts = [compound for compound in COMPOUNDS if compound.prototype == "rocksalt"]
    for compound in salts[:2]:
        yield with_reference(block(compound, (1, 1, 2)), 1.0, compound.a / 2, 1)
        yield with_reference(block(compound, (2, 2, 2)), CUBE, compound.a / 2, 1)
    for compound in salts:
        for ions in rng.permutation(np.array(BLOCKS))[:2].tolist():
            yield shaken(block(compound, (ions[0], ions[1], ions[2])), rng)
    for compound in COMPOUNDS:
        if compound.prototype != "rocksalt":
            cells = (1, 1, 1 + int(rng.integers(2)))
            yield shaken(cluster(compound, cells), rng)


def large(rng: np.random.Generator) -> Iterator[Frame]:
    """The few that make one padded shape wasteful."""
    known = {compound.formula: compound for compound in COMPOUNDS}
    for formula, repeats in LARGE["supercell"].items():
        yield shaken(supercell(unit_cell(known[formula]), np.diag(repeats)), rng)
    for (formula, repeats), vacuum in zip(LARGE["slab"].items(), (30.0, 70.0), strict=True):
        yield shaken(slab(known[formula], repeats, vacuum), rng)
    for formula, repeats in LARGE["molecule"].items():
        yield shaken(block(known[formula], repeats), rng)


def extended_xyz(frame: Frame) -> str:
    """Write one frame; positions of perfect structures in full, displaced ones to 0.1 mÅ."""
    info = {"compound": frame.compound.formula, "prototype": frame.compound.prototype}
    info |= {"kind": frame.kind, **frame.info}
    head = [
        f'{name}="{value}"' if isinstance(value, str) else f"{name}={value!r}"
        for name, value in info.items()
    ]
    if frame.cell.any():
        head.insert(0, f'Lattice="{" ".join(map(_short, frame.cell.ravel().tolist()))}"')
    head += [f'pbc="{frame.pbc}"', "Properties=species:S:1:pos:R:3:initial_charges:R:1"]
    names = [name for name, _ in frame.compound.ions]
    rows = zip(frame.species.tolist(), frame.positions.tolist(), charges(frame), strict=True)
    atoms = [
        f"{names[kind]} {' '.join(_short(x, frame.digits) for x in place)} {charge}"
        for kind, place, charge in rows
    ]
    return "\n".join([str(len(atoms)), " ".join(head), *atoms, ""])


def _short(number: float, digits: int = 12) -> str:
    text = f"{number:.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def generate() -> str:
    """Give the text of the whole set; the order is mixed, as in data that people have."""
    rng = np.random.default_rng(SEED)
    frames = [*crystals(), *supercells(rng), *slabs(rng), *molecules(rng), *large(rng)]
    return "".join(extended_xyz(frames[index]) for index in rng.permutation(len(frames)))


if __name__ == "__main__":
    PATH.write_text(generate())
    print(f"{PATH}: {PATH.stat().st_size / 1e3:.0f} kB")
