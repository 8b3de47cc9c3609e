"""The structures of the demo are what the demo says they are."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from stowplan.io import structures

DEMO = Path(__file__).parents[1] / "demo"


@pytest.fixture(scope="module")
def generator():
    sys.path.insert(0, str(DEMO))
    try:
        import compounds
        import structures as generator
    finally:
        sys.path.remove(str(DEMO))
    yield generator
    for module in (generator, compounds):
        sys.modules.pop(module.__name__)


@pytest.fixture(scope="module")
def frames():
    return structures.read(DEMO / "structures.extxyz")


def shortest(atoms):
    """Shortest distance of two atoms or images."""
    neighbours, shifts = structures.neighbour_table(atoms, 4.5)
    other = np.where(neighbours < 0, np.arange(len(atoms))[:, None], neighbours)
    steps = atoms.positions[other] - atoms.positions[:, None] + shifts @ atoms.cell.array
    return np.linalg.norm(steps, axis=-1)[neighbours >= 0].min()


def test_the_file_is_what_the_generator_makes(generator):
    assert generator.generate() == generator.PATH.read_text()


def test_there_are_enough_structures_of_every_kind(frames):
    kinds = Counter(atoms.info["kind"] for atoms in frames)
    assert set(kinds) == {"crystal", "supercell", "slab", "molecule"}
    assert len(frames) >= 200
    assert kinds["slab"] >= 40
    assert kinds["molecule"] >= 40
    assert len({atoms.info["compound"] for atoms in frames}) >= 30


def test_sizes_are_mixed_with_few_large_ones(frames):
    sizes = np.array([len(atoms) for atoms in frames])
    assert sizes.min() == 2
    assert 300 < sizes.max() <= 400
    assert 0.01 < (sizes > 100).mean() < 0.05


def test_every_structure_is_valid_and_neutral(frames):
    structures.validate(frames)
    column = structures.charges(frames)
    assert all(charge.sum() == 0 for charge in column.to_list())
    assert all(np.abs(charge).min() >= 1 for charge in column.to_list())


def test_slabs_have_20_to_100_angstrom_of_vacuum_along_their_open_axis(frames):
    for atoms in frames:
        periodic = {"slab": [True, True, False], "molecule": [False] * 3}
        assert atoms.pbc.tolist() == periodic.get(atoms.info["kind"], [True] * 3)
        if atoms.info["kind"] == "slab":
            vacuum = atoms.cell[2, 2] - np.ptp(atoms.positions[:, 2])
            assert 19 < vacuum < 101


def test_no_two_ions_come_too_close(frames):
    perfect = {a.info["compound"]: shortest(a) for a in frames if a.info["kind"] == "crystal"}
    assert min(perfect.values()) > 1.6
    for atoms in frames:
        assert shortest(atoms) > 0.75 * perfect[atoms.info["compound"]]


def test_every_compound_cites_its_source(generator, frames):
    for compound in generator.COMPOUNDS:
        assert any(year in compound.source for year in map(str, range(1950, 2020)))
    cited = {a.info["compound"]: a.info["source"] for a in frames if a.info["kind"] == "crystal"}
    assert cited == {compound.formula: compound.source for compound in generator.COMPOUNDS}


def test_every_compound_is_neutral_and_has_the_formula_it_says(generator):
    for compound in generator.COMPOUNDS:
        frame = generator.unit_cell(compound)
        counts = np.bincount(frame.species)
        counts //= np.gcd.reduce(counts)
        expected = {symbol: count for (symbol, _), count in zip(compound.ions, counts, strict=True)}
        assert Counter(Atoms(compound.formula).get_chemical_symbols()) == expected
        assert generator.charges(frame).sum() == 0


# Ions of other kind around each kind of ion, from the descriptions of the structure types.
COORDINATION = {
    "rocksalt": (6, 6),
    "caesium chloride": (8, 8),
    "zincblende": (4, 4),
    "wurtzite": (4, 4),
    "wurtzite, ideal": (4, 4),
    "fluorite": (8, 4),
    "antifluorite": (8, 4),
    "cuprite": (2, 4),
    "rutile": (6, 3),
    "corundum": (6, 4),
}


def test_ions_have_the_coordination_of_their_structure_type(generator, frames):
    ions = {compound.formula: compound.ions for compound in generator.COMPOUNDS}
    for atoms in frames:
        if atoms.info["kind"] != "crystal" or atoms.info["prototype"] == "perovskite":
            continue
        neighbours, _ = structures.neighbour_table(atoms, 1.2 * shortest(atoms))
        other = atoms.numbers[neighbours] != atoms.numbers[:, None]
        around = ((neighbours >= 0) & other).sum(axis=1)
        symbols = np.array(atoms.get_chemical_symbols())
        for (symbol, _), expected in zip(
            ions[atoms.info["compound"]], COORDINATION[atoms.info["prototype"]], strict=True
        ):
            assert set(around[symbols == symbol].tolist()) == {expected}


def test_literature_energies_are_given_for_most_crystals_and_closed_forms_for_clusters(frames):
    given = Counter(a.info["kind"] for a in frames if "madelung" in a.info)
    assert given["crystal"] >= 30
    assert given["molecule"] >= 4
    for atoms in frames:
        if atoms.info["kind"] == "molecule" and "madelung" in atoms.info:
            charges, distances = atoms.get_initial_charges(), atoms.get_all_distances()
            np.fill_diagonal(distances, np.inf)
            energy = charges @ (1 / distances) @ charges / 2
            expected = -atoms.info["madelung"] * atoms.info["units"] / atoms.info["length"]
            assert energy == pytest.approx(expected, rel=1e-10)
