"""Structures: what is read, what is refused, and who is near whom."""

import itertools
import sys

import ase
import ase.io
import numpy as np
import pytest

from stowplan.errors import DataError, MissingDependencyError
from stowplan.io import structures

SALT = ase.Atoms("NaCl", [[0, 0, 0], [2.8, 0, 0]])
CUBE = np.diag([4.0, 5.0, 6.0])


def images(atoms, cutoff):
    """Every pair within the cutoff, (atom, neighbour, shifts), by a loop over images."""
    fractions = atoms.cell.scaled_positions(atoms.positions)
    heights = 1 / np.linalg.norm(np.linalg.inv(atoms.cell), axis=0)
    spread = np.ptp(fractions, axis=0)
    reach = np.where(atoms.pbc, np.ceil(cutoff / heights + spread), 0).astype(int)
    pairs = set()
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        moved = atoms.positions + np.array(shift) @ atoms.cell.array
        for i, j in itertools.product(range(len(atoms)), repeat=2):
            distance = np.linalg.norm(moved[j] - atoms.positions[i])
            if distance < cutoff and (i != j or any(shift)):
                pairs.add((i, j, *shift))
    return pairs


def listed(atoms, cutoff):
    """The pairs of a neighbour table; checks its dtypes and padding on the way."""
    neighbours, shifts = structures.neighbour_table(atoms, cutoff)
    assert neighbours.dtype == np.int64
    assert shifts.dtype == np.int32
    assert neighbours.shape[0] == len(atoms)
    assert shifts.shape == (*neighbours.shape, 3)
    assert not shifts[neighbours < 0].any()
    assert (np.diff((neighbours >= 0).astype(int), axis=1) <= 0).all()  # padding comes last
    rows = [
        (i, int(j), *shift.tolist())
        for i in range(len(atoms))
        for j, shift in zip(neighbours[i], shifts[i], strict=True)
        if j >= 0
    ]
    assert len(rows) == len(set(rows))
    return set(rows)


def scattered(seed, atoms, cell, pbc, spread=(0.0, 1.0)):
    rng = np.random.default_rng(seed)
    fractions = rng.uniform(*spread, (atoms, 3))
    return ase.Atoms("Na" * atoms, scaled_positions=fractions, cell=cell, pbc=pbc)


CELLS = {
    "orthogonal": CUBE,
    "sheared": [[4.0, 0, 0], [3.5, 5.0, 0], [-2.0, 3.0, 6.0]],
    "left-handed": [[0, 4.0, 0], [5.0, 0, 1.0], [0, 0, 6.0]],
    "flat": [[12.0, 0, 0], [0, 11.0, 0], [1.0, 0, 1.5]],
}


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("cutoff", [1.3, 3.1, 7.7])
def test_a_table_lists_the_pairs_of_a_loop_over_images(cell, pbc, cutoff):
    atoms = scattered(1, 5, CELLS[cell], pbc)
    assert listed(atoms, cutoff) == images(atoms, cutoff)


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 1)])
def test_atoms_outside_the_cell_keep_their_shifts(pbc):
    atoms = scattered(2, 4, CELLS["sheared"], pbc, spread=(-1.6, 2.4))
    assert listed(atoms, 5.3) == images(atoms, 5.3)


def test_an_atom_sees_its_own_images_in_a_cell_smaller_than_the_cutoff():
    atoms = ase.Atoms("Na", [[0.3, 0.2, 0.1]], cell=np.eye(3) * 2.0, pbc=True)
    assert len(listed(atoms, 2.5)) == 6
    assert listed(atoms, 7.1) == images(atoms, 7.1)


def test_a_slab_has_no_neighbours_across_its_open_axis():
    atoms = ase.Atoms("NaCl", [[0, 0, 0.1], [0, 0, 7.9]], cell=np.eye(3) * 8.0, pbc=(1, 1, 0))
    assert listed(atoms, 2.0) == set()
    atoms.pbc = True
    assert listed(atoms, 2.0) == {(0, 1, 0, 0, -1), (1, 0, 0, 0, 1)}


def test_a_molecule_pairs_all_its_atoms_whatever_the_cutoff_and_the_cell():
    atoms = scattered(3, 6, CUBE, False)
    expected = {(i, j, 0, 0, 0) for i, j in itertools.permutations(range(6), 2)}
    assert listed(atoms, 0.1) == expected
    atoms.cell = None
    assert listed(atoms, 0.1) == expected


def test_an_atom_alone_has_an_empty_row():
    assert structures.neighbour_table(ase.Atoms("Na"), 3.0)[0].shape == (1, 0)
    lonely = ase.Atoms("Na", cell=CUBE, pbc=True)
    assert structures.neighbour_table(lonely, 3.0)[1].shape == (1, 0, 3)


def test_tables_of_a_list_are_ragged_over_atoms_and_neighbours():
    items = [scattered(4, 3, CUBE, True), SALT, scattered(5, 2, CUBE, (1, 1, 0))]
    neighbours, shifts = structures.neighbour_tables(items, [4.0, 1.0, 6.0])
    assert neighbours.shapes.shape == (3, 2)
    assert neighbours.shapes.tolist() == shifts.shapes.tolist()
    for item, (atoms, cutoff) in enumerate(zip(items, [4.0, 1.0, 6.0], strict=True)):
        table, shift = structures.neighbour_table(atoms, cutoff)
        assert np.array_equal(neighbours[item], table)
        assert np.array_equal(shifts[item], shift)


def test_an_empty_list_gives_empty_columns_of_the_right_shapes():
    neighbours, shifts = structures.neighbour_tables([], 3.0)
    assert neighbours.shapes.shape == (0, 2)
    assert (neighbours.dtype, shifts.dtype) == (np.int64, np.int32)
    assert shifts.values.shape == (0, 3)
    assert structures.charges([]).values.dtype == np.float64
    assert structures.charges([], {"Na": 1}).values.shape == (0,)
    structures.validate([])


@pytest.mark.parametrize("pbc", [True, False, (1, 1, 0)])
def test_coincident_atoms_are_named(pbc):
    atoms = scattered(6, 5, CUBE, pbc)
    atoms.positions[4] = atoms.positions[2]
    with pytest.raises(DataError, match="atoms 2 and 4 of item 1"):
        structures.neighbour_tables([SALT, atoms], 3.0)


def test_an_atom_on_the_image_of_another_is_named():
    atoms = ase.Atoms("Na2", [[0, 0, 0], [4, 0, 0]], cell=CUBE, pbc=True)
    with pytest.raises(DataError, match="atoms 0 and 1 of item 0"):
        structures.neighbour_table(atoms, 3.0)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, np.nan, np.inf, [3.0, 0.0]])
def test_a_cutoff_is_positive_and_finite(cutoff):
    with pytest.raises(DataError, match=r"item \d has cutoff"):
        structures.neighbour_tables([SALT, SALT], cutoff)


def test_cutoffs_that_are_not_one_per_structure_are_refused():
    with pytest.raises(DataError, match="for 2 structures"):
        structures.neighbour_tables([SALT, SALT], [1.0, 2.0, 3.0])


def broken(**changes):
    atoms = scattered(7, 3, CUBE, True)
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


NAN = np.array([[0, 0, 0], [1, 1, 1], [1, np.nan, 0]])
REFUSED = {
    "has no atoms": ase.Atoms(cell=CUBE, pbc=True),
    "has one periodic axis, pbc=\\[False, True, False\\]": broken(pbc=(0, 1, 0)),
    "not finite: atom 2 has \\[1.0, nan, 0.0\\]": broken(positions=NAN),
    "not finite: atom 2 has \\[1.0, inf": broken(positions=np.where(np.isnan(NAN), np.inf, NAN)),
    "singular cell, .*pbc=\\[True, True, True\\]": broken(cell=[[1, 0, 0], [0, 1, 0], [1, 1, 0]]),
    "atoms.center\\(vacuum": broken(cell=[4, 5, 0], pbc=(1, 1, 0)),
    "singular cell, \\[\\[nan": broken(cell=[np.nan, 1, 1]),
    "is a str, not an ase.Atoms": "NaCl",
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_structure_that_is_refused_is_named(message):
    with pytest.raises(DataError, match=f"2 of 4 refused. Item 1 .*{message}"):
        structures.validate([SALT, REFUSED[message], SALT, REFUSED[message]])


def test_molecules_need_no_cell():
    structures.validate([SALT, broken(cell=[0, 0, 0], pbc=False), broken(cell=CUBE, pbc=False)])


def test_one_structure_in_place_of_a_list_is_refused():
    with pytest.raises(DataError, match=r"Pass a list of structures: \[atoms\]"):
        structures.validate(SALT)


def test_charges_come_from_initial_charges_first():
    atoms = SALT.copy()
    atoms.info["charges"] = [0.5, -0.5]
    assert structures.charges([atoms]).values.tolist() == [0.5, -0.5]
    atoms.arrays["charges"] = np.array([2.0, -2.0])
    assert structures.charges([atoms]).values.tolist() == [2.0, -2.0]
    atoms.set_initial_charges([1, -1])
    column = structures.charges([atoms, atoms[:1]])
    assert column.to_list()[1].tolist() == [1.0]
    assert column.dtype == np.float64


def test_charges_by_element_replace_those_of_the_file():
    atoms = SALT.copy()
    atoms.set_initial_charges([1, -1])
    assert structures.charges([atoms], {"Na": 0.8, "Cl": -0.8}).values.tolist() == [0.8, -0.8]


def test_a_structure_without_charges_is_named_with_the_cure():
    charged = SALT.copy()
    charged.set_initial_charges([1, -1])
    with pytest.raises(DataError, match=r"1 of 2 refused. Item 1 has no charges.*set_initial"):
        structures.charges([charged, SALT])
    noted = SALT.copy()
    noted.info["charges"] = "none"
    with pytest.raises(DataError, match="has no charges"):
        structures.charges([noted])


def test_an_element_that_the_map_lacks_is_named():
    with pytest.raises(DataError, match=r"2 of 3 refused. Item 0 holds Cl\. .*knows Na"):
        structures.charges([SALT, ase.Atoms("Na"), SALT], {"Na": 1})


def test_a_key_of_the_map_that_is_no_element_is_named():
    with pytest.raises(DataError, match="na, Foo in the map of charges is no chemical element"):
        structures.charges([SALT], {"na": 1, "Cl": -1, "Foo": 2})


def test_charges_that_are_not_finite_are_named():
    atoms = SALT.copy()
    atoms.set_initial_charges([1, np.nan])
    with pytest.raises(DataError, match="Item 0 has charges that are not finite: atom 1 has nan"):
        structures.charges([atoms])
    with pytest.raises(DataError, match="the charge of Cl is nan"):
        structures.charges([SALT], {"Na": 1, "Cl": np.nan})


def test_charges_of_another_shape_are_named():
    atoms = SALT.copy()
    atoms.info["charges"] = [1.0, -1.0, 0.0]
    with pytest.raises(DataError, match=r"Item 0 has charges of shape \(3,\) for 2 atoms"):
        structures.charges([atoms])


@pytest.mark.parametrize("name", ["set.extxyz", "set.traj", "set.json"])
def test_every_frame_of_a_file_is_read_with_its_charges(tmp_path, name):
    crystal = scattered(8, 4, CUBE, (1, 1, 0))
    crystal.set_initial_charges([1, -1, 2, -2])
    molecule = SALT.copy()
    molecule.set_initial_charges([1, -1])
    ase.io.write(tmp_path / name, [crystal, molecule])
    frames = structures.read(tmp_path / name)
    assert [len(frame) for frame in frames] == [4, 2]
    assert frames[0].pbc.tolist() == [True, True, False]
    assert structures.charges(frames).values.tolist() == [1, -1, 2, -2, 1, -1]
    assert len(structures.read(str(tmp_path / name))) == 2


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("short.xyz", "3\nwater\nH 0 0 0\n", "1 atoms, expected 3"),
        ("empty.extxyz", "", "Empty file"),
        ("what.foo", "bar", "UnknownFileTypeError"),
        ("missing.xyz", None, "No such file"),
    ],
)
def test_an_unreadable_file_is_named_with_the_reason_of_the_reader(tmp_path, name, text, reason):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}.*{reason}"):
        structures.read(tmp_path / name)


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("ase.io", lambda: structures.read("set.xyz")),
        ("ase.data", lambda: structures.charges([SALT], {"Na": 1})),
        ("vesin", lambda: structures.neighbour_table(scattered(9, 2, CUBE, True), 3.0)),
    ],
)
def test_a_missing_package_gives_the_extra_to_install(monkeypatch, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stowplan\[structures\]'"):
        call()


@pytest.mark.parametrize("unit", [1e-30, 1e-10, 1e8])
def test_pairs_do_not_depend_on_the_unit_of_length(unit):
    atoms = ase.Atoms("Na3", [[0, 0, 0], [1, 2, 3], [3.5, 0.2, -9]], cell=CUBE, pbc=(1, 1, 0))
    scaled = atoms.copy()
    scaled.set_cell(atoms.cell.array * unit, scale_atoms=True)
    for table, other in zip(
        structures.neighbour_table(atoms, 6.1),
        structures.neighbour_table(scaled, 6.1 * unit),
        strict=True,
    ):
        np.testing.assert_array_equal(table, other)


@pytest.mark.parametrize("pbc", [True, (True, False, True)])
def test_more_pairs_than_memory_are_refused_before_they_are_listed(pbc):
    atoms = ase.Atoms("Na", cell=CUBE, pbc=pbc)
    with pytest.raises(DataError, match=r"item 1 has about .* pairs of its 1 atoms.*cutoff below"):
        structures.neighbour_tables([SALT, atoms], 1e6)


def test_a_molecule_of_more_pairs_than_memory_is_refused():
    with pytest.raises(DataError, match=r"item 0 has about 1.6e\+09 pairs.*fewer atoms"):
        structures.neighbour_table(ase.Atoms(positions=np.zeros((40000, 3))), 1.0)
