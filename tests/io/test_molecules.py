"""Molecules: what is read from SMILES and SDF, what is refused and where, and overlays written."""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from stowplan.errors import DataError, MissingDependencyError
from stowplan.io import conformers
from stowplan.io.molecule_files import iter_records
from stowplan.io.molecules import Molecules, iter_molecules, read_molecules, write_overlays

Chem = pytest.importorskip("rdkit.Chem", reason="rdkit is not installed")
from rdkit import RDConfig  # noqa: E402
from rdkit.Chem import rdDistGeom  # noqa: E402

CONTRIB = Path(RDConfig.RDContribDir)
CMET = CONTRIB / "FreeWilson/data/cmet_ligands.sdf"  # in the frame of a crystal
SMILES = ["CCO ethanol", "c1ccccc1 benzene", "CC(=O)Oc1ccccc1C(=O)O aspirin", "C methane"]


def written(folder, text, name="library.smi"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def smiles(tmp_path):
    return written(tmp_path, "\n".join(SMILES) + "\n")


def block(atoms, name="mol", flag="3D", bonds=()):
    """A V2000 block of atoms (element, x, y, z), numbers as text or float."""
    lines = [name, f"  stowplan          {flag}", ""]
    lines.append(f"{len(atoms):3d}{len(bonds):3d}  0  0  0  0  0  0  0  0999 V2000")
    for element, *place in atoms:
        texts = (x if isinstance(x, str) else f"{x:.4f}" for x in place)
        lines.append("".join(f"{x:>10}" for x in texts) + f" {element:<3} 0  0")
    lines += [f"{i:3d}{j:3d}{order:3d}  0" for i, j, order in bonds]
    return "\n".join([*lines, "M  END\n"])


CC = ((1, 2, 1),)
ETHANE = block([("C", 0.0, 0.0, 0.25), ("C", 1.5, 0.0, 0.0)], bonds=CC)


def heavy_atoms_of(path):
    """Names and heavy atoms of an SDF by the columns of its text."""
    found = []
    for text in path.read_text().split("$$$$\n"):
        lines = text.splitlines()
        if not text.strip():
            continue
        rows = [line.split() for line in lines[4 : 4 + int(lines[3][:3])]]
        points = [[float(x) for x in row[:3]] for row in rows if row[3] != "H"]
        found.append((lines[0], np.array(points, np.float32)))
    return found


def test_a_structure_keeps_the_coordinates_of_its_heavy_atoms():
    molecules = read_molecules(CMET)
    expected = heavy_atoms_of(CMET)
    assert molecules.names == tuple(name for name, _ in expected)
    for found, (_, points) in zip(molecules.points, expected, strict=True):
        np.testing.assert_array_equal(found, points)
    assert not molecules.embedded.any()
    lines = CMET.read_text().splitlines()
    assert [lines[line - 1] for line in molecules.lines.tolist()] == list(molecules.names)


def test_points_are_those_of_rdkit_from_the_seed(smiles):
    molecules = read_molecules(smiles, seed=7, dtype="float64")
    for text, found in zip(SMILES, molecules.points, strict=True):
        mol = Chem.AddHs(Chem.MolFromSmiles(text.split()[0]))
        parameters = rdDistGeom.ETKDGv3()
        parameters.randomSeed = 7
        assert rdDistGeom.EmbedMolecule(mol, parameters) == 0
        expected = Chem.RemoveHs(mol).GetConformer().GetPositions()
        np.testing.assert_array_equal(found, expected)
    assert molecules.embedded.all()


def test_embedded_molecules_have_bonds_of_chemical_length(smiles):
    _, benzene, _, methane = read_molecules(smiles).points.to_list()
    apart = np.sort(np.linalg.norm(benzene[:, None] - benzene[None], axis=2), axis=1)
    np.testing.assert_allclose(apart[:, 1:3], 1.39, atol=0.03)  # neighbours on both sides
    np.testing.assert_allclose(apart[:, 5], 2.78, atol=0.1)  # across the ring
    assert methane.shape == (1, 3)


def test_a_molecule_has_the_same_points_whatever_stands_beside_it(tmp_path, smiles):
    whole = read_molecules(smiles)
    turned = written(tmp_path, "\n".join(["C#N first", *SMILES[::-1]]), "turned.smi")
    other = read_molecules(turned, workers=3)
    chunks = list(iter_molecules(smiles, chunk=3))
    assert [len(chunk) for chunk in chunks] == [3, 1]
    in_chunks = {
        name: points
        for chunk in chunks
        for name, points in zip(chunk.names, chunk.points, strict=True)
    }
    for name, points in zip(whole.names, whole.points, strict=True):
        np.testing.assert_array_equal(other.points[other.names.index(name)], points)
        np.testing.assert_array_equal(in_chunks[name], points)
    assert [chunk.lines.tolist() for chunk in chunks] == [[1, 2, 3], [4]]


def test_another_seed_gives_another_conformer(smiles):
    one, other = (read_molecules(smiles, seed=seed).points[2] for seed in (1, 2))
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CCO\n", [(1, "line 1", "CCO")]),
        ("CCO two words\nCC\tand tab\n", [(1, "two words", "CCO"), (2, "and tab", "CC")]),
        ("# made by hand\n\nCCO  a\n\n  CC b\n", [(3, "a", "CCO"), (5, "b", "CC")]),
        ("\ufeffsmiles Name\r\nCCO a\r\n", [(2, "a", "CCO")]),
        ("smiles\tName\tsa_score\nCC\tx\t3.1\n", [(2, "x", "CC")]),
        ("id,activity,canonical_smiles\nm1,3.5,CC\n", [(2, "m1", "CC")]),
        ('SMILES,remark,compound name\nCC,nice,"a, b"\n', [(2, "a, b", "CC")]),
        ("\ufeffCCO a\nCC smiles too\n", [(1, "a", "CCO"), (2, "smiles too", "CC")]),
        ("CCO my smiles\nCC b\n", [(1, "my smiles", "CCO"), (2, "b", "CC")]),
        ("CCO\tsmiles1\nCC\tsmiles\n", [(1, "smiles1", "CCO"), (2, "smiles", "CC")]),
        ("weight\tsmiles\tlabel\n30\tCC\tx\n", [(2, "x", "CC")]),
        ("label,smiles\nx,CC\n", [(2, "x", "CC")]),
        ("SMILES\nCC\nC two words\n", [(2, "line 2", "CC"), (3, "two words", "C")]),
        ("Smiles title\nCC a b c\n", [(2, "a b c", "CC")]),
        ("*C |$R1;$| ext\n", [(1, "ext", "*C |$R1;$|")]),
    ],
)  # fmt: skip
def test_lines_give_smiles_and_names(tmp_path, text, expected):
    path = tmp_path / "a.smi"
    path.write_bytes(text.encode())
    found = [(record.line, record.name, record.text) for record in iter_records(path)]
    assert found == expected


def test_packed_files_read_as_the_plain_ones(tmp_path):
    path = tmp_path / "cmet.sdf.gz"
    path.write_bytes(gzip.compress(CMET.read_bytes()))
    plain, packed = read_molecules(CMET), read_molecules(path)
    np.testing.assert_array_equal(packed.points.values, plain.points.values)
    assert packed.smiles == plain.smiles


def test_a_file_that_cannot_be_unpacked_is_named(tmp_path):
    whole = gzip.compress(CMET.read_bytes())
    for name, held in (("torn.sdf.gz", whole[: len(whole) // 2]), ("no.sdf.gz", b"mol\n")):
        (tmp_path / name).write_bytes(held)
        with pytest.raises(DataError, match=f"{name}.*could not be unpacked"):
            read_molecules(tmp_path / name)


def test_the_molecules_that_ship_with_rdkit_have_names_of_their_header():
    path = CONTRIB / "SA_Score/data/zim.100.txt"
    molecules = read_molecules(path, lines=range(2, 12), workers=2)
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:11]]
    assert molecules.names == tuple(row[1] for row in rows)
    expected = [Chem.MolFromSmiles(row[0]).GetNumHeavyAtoms() for row in rows]
    assert molecules.points.shapes[:, 0].tolist() == expected
    assert molecules.smiles == tuple(Chem.CanonSmiles(row[0]) for row in rows)


FLAT = [("C", 0.0, 0.0, 0.0), ("C", 1.5, 0.0, 0.0)]


@pytest.mark.parametrize(
    ("atoms", "flag", "embedded"),
    [
        (FLAT, "2D", True),
        (FLAT, "  ", True),
        (FLAT, "3D", False),  # a planar molecule may lie so
        ([("C", 0.0, 0.0, 0.0)] * 2, "3D", True),
        ([("C", 0.0, 0.0, 0.5), ("C", 1.5, 0.0, 0.0)], "2D", False),
    ],
)
def test_a_structure_without_places_in_space_is_embedded(tmp_path, atoms, flag, embedded, capfd):
    molecules = read_molecules(written(tmp_path, block(atoms, flag=flag, bonds=CC), "a.sdf"))
    assert molecules.embedded.tolist() == [embedded]
    assert capfd.readouterr() == ("", "")  # RDKit warns of 2D with z
    first, second = molecules.points[0]
    assert np.linalg.norm(first - second) == pytest.approx(1.52, abs=0.07)
    if not embedded:
        np.testing.assert_allclose(molecules.points[0], [atom[1:] for atom in atoms])


def test_one_heavy_atom_lies_where_its_record_says(tmp_path):
    path = written(tmp_path, block([("C", 0.0, 0.0, 0.0)], flag="2D"), "a.mol")
    molecules = read_molecules(path)
    assert molecules.points[0].tolist() == [[0, 0, 0]]
    assert not molecules.embedded[0]


BROKEN_SMILES = """\
CCO fine
c1ccc open ring

CC(
C(C)(C)(C)(C)C five bonds
c1cccc1 aromatic
[H][H] hydrogen
* dummy
[Na+].CC(=O)[O-] salt
C1#CC1 strained
CC fine too
"""
BROKEN_LINES = {
    2: ("open ring", "unclosed ring for input: 'c1ccc'"),
    4: ("line 4", "syntax error while parsing: CC("),
    5: ("five bonds", "Explicit valence for atom # 0 C, 5, is greater than permitted"),
    6: ("aromatic", "Can't kekulize mol"),
    7: ("hydrogen", "it has no heavy atoms"),
    8: ("dummy", "it has no heavy atoms"),
    9: ("salt", "it has 2 fragments, of 1, 4 heavy atoms"),
    10: ("strained", "RDKit cannot embed it: ETKDGv3 found no conformer"),
}


def test_lines_that_cannot_be_used_are_listed_and_nothing_is_printed(tmp_path, capfd):
    molecules = read_molecules(written(tmp_path, BROKEN_SMILES), skip_failed=True, workers=2)
    assert molecules.names == ("fine", "fine too")
    assert molecules.lines.tolist() == [1, 11]
    assert {line: name for line, name, _ in molecules.failed} == {
        line: name for line, (name, _) in BROKEN_LINES.items()
    }
    for line, _, reason in molecules.failed:
        assert reason.startswith(BROKEN_LINES[line][1])
    assert capfd.readouterr() == ("", "")


def test_rdkit_speaks_again_after_a_file_was_read(smiles, capfd):
    read_molecules(smiles)
    assert Chem.MolFromSmiles("c1ccc") is None
    assert "unclosed ring" in capfd.readouterr().err


ONE = block([("C", 0.0, 0.0, 0.0)])
BROKEN_BLOCKS = {
    "short": (ONE.replace("  1  0", "  2  0"), "Atom line too short.* on line 6"),
    "nan": (ONE.replace("    0.0000", "       nan"), "Cannot process coordinates on line 5"),
    "empty": (block([]), "it has no heavy atoms"),
    "unknown": (ONE.replace(" C ", " Xx"), "Element 'Xx' not found"),
    "prose": ("prose\n", "RDKit cannot read it"),
    "blank": ("\n", "the record is empty"),
    "torn": (ONE.replace("M  END\n", ""), "Problems encountered .* on line 6"),
}


@pytest.mark.parametrize("kind", list(BROKEN_BLOCKS))
def test_a_broken_record_is_named_with_its_lines_and_the_others_are_read(tmp_path, kind, capfd):
    text, reason = BROKEN_BLOCKS[kind]
    before = ETHANE.count("\n") + 1
    path = written(tmp_path, f"{ETHANE}$$$$\n{text}$$$$\n{ETHANE}$$$$\n", "a.sdf")
    molecules = read_molecules(path, skip_failed=True)
    assert molecules.lines.tolist() == [1, before + text.count("\n") + 2]
    (failure,) = molecules.failed
    assert failure.line == before + 1
    words, _, line = reason.partition(" on line ")
    if line:
        words += f" on line {int(line) + before}$"
    assert re.match(words, failure.reason)
    assert capfd.readouterr() == ("", "")


LONG = """lost
  stowplan          3D

  0  0  0     0  0            999 V3000
M  V30 BEGIN CTAB
M  V30 COUNTS 1 0 0 0 0
M  V30 BEGIN ATOM
M  V30 1 C {} 0 1 0
M  V30 END ATOM
M  V30 END CTAB
M  END
"""


@pytest.mark.parametrize("number", ["nan", "inf", "1e999"])
def test_coordinates_that_are_not_finite_are_refused(tmp_path, number):
    assert read_molecules(written(tmp_path, LONG.format("2"), "a.sdf")).points[0][0, 0] == 2
    for text in (LONG.format(number), block([("C", number, 0.0, 1.0)], name="lost")):
        with pytest.raises(DataError, match=r"line 1, lost: "):
            read_molecules(written(tmp_path, text, "a.sdf"))


def test_failures_are_an_error_with_their_lines_and_the_cure(tmp_path):
    path = written(tmp_path, BROKEN_SMILES)
    with pytest.raises(DataError) as error:
        read_molecules(path)
    text = str(error.value)
    assert text.startswith(f"read_molecules: 7 of 10 molecules of '{path}' cannot be used. line 2,")
    assert "; line 4: syntax error" in text
    assert text.endswith("Correct them, or leave them out: skip_failed=True.")
    assert "strained" not in text  # nothing is embedded before all is parsed


def test_a_molecule_that_cannot_be_embedded_is_named(tmp_path):
    with pytest.raises(DataError, match=r"1 of 2 .* line 2, strained: RDKit cannot embed it"):
        read_molecules(written(tmp_path, "CC ethane\nC1#CC1 strained\n"))


def test_a_broken_line_at_the_end_is_told_of_before_the_first_chunk(tmp_path, monkeypatch):
    path = written(tmp_path, "CC a\nCCC b\nC( c\n")
    monkeypatch.setattr(conformers, "embed", lambda *_: pytest.fail("embedded"))
    with pytest.raises(DataError, match=r"1 of 3 molecules .* line 3, c: "):
        iter_molecules(path, chunk=1)


def test_chunks_go_on_past_what_is_skipped(tmp_path):
    path = written(tmp_path, BROKEN_SMILES)
    chunks = list(iter_molecules(path, chunk=4, skip_failed=True))
    assert [len(chunk) for chunk in chunks] == [1, 0, 1]
    assert sum(len(chunk.failed) for chunk in chunks) == len(BROKEN_LINES)
    assert chunks[1].points.values.shape == (0, 3)


@pytest.mark.parametrize(
    ("fragments", "atoms"), [("largest", 4), ("all", 5)]
)  # fmt: skip
def test_fragments_are_taken_as_asked(tmp_path, fragments, atoms):
    path = written(tmp_path, "[Na+].CC(=O)[O-] salt\n")
    molecules = read_molecules(path, fragments=fragments)
    assert molecules.points.shapes[:, 0].tolist() == [atoms]
    assert molecules.smiles == (
        ("CC(=O)[O-]",) if fragments == "largest" else ("CC(=O)[O-].[Na+]",)
    )


def test_a_proton_beside_a_molecule_is_no_fragment(tmp_path):
    molecules = read_molecules(written(tmp_path, "CC(=O)[O-].[H+] acid\n"))
    assert molecules.points.shapes[:, 0].tolist() == [4]


def test_the_largest_fragment_of_a_structure_keeps_its_place_and_properties(tmp_path):
    atoms = [("Cl", 9.0, 9.0, 9.0), ("C", 1.0, 2.0, 3.0), ("C", 2.5, 2.0, 3.0)]
    text = block(atoms, bonds=((2, 3, 1),)) + ">  <activity>\n7.5\n\n$$$$\n"
    path = written(tmp_path, text, "salt.sdf")
    molecules = read_molecules(path, fragments="largest", keep_mols=True)
    np.testing.assert_allclose(molecules.points[0], [atom[1:] for atom in atoms[1:]])
    assert molecules.mols[0].GetProp("activity") == "7.5"


def test_hydrogens_count_on_request_and_dummies_never(tmp_path):
    path = written(tmp_path, "C methane\n*CO capped\n")
    assert read_molecules(path).points.shapes[:, 0].tolist() == [1, 2]
    assert read_molecules(path, heavy_only=False).points.shapes[:, 0].tolist() == [5, 5]


def test_some_lines_are_read_alone(smiles):
    whole = read_molecules(smiles)
    some = read_molecules(smiles, lines=[4, 2])
    assert some.names == ("benzene", "methane")
    np.testing.assert_array_equal(some.points[0], whole.points[1])
    with pytest.raises(DataError, match=r"no molecule of .* begins in lines 9, 12"):
        read_molecules(smiles, lines=[2, 9, 12])


def test_some_molecules_are_taken_in_the_order_of_the_index(smiles):
    whole = read_molecules(smiles, keep_mols=True)
    some = whole[[3, 0]]
    assert isinstance(some, Molecules)
    assert some.names == ("methane", "ethanol")
    assert some.lines.tolist() == [4, 1]
    np.testing.assert_array_equal(some.points[1], whole.points[0])
    assert some.mols[0] is whole.mols[3]
    assert whole[1:3].names == ("benzene", "aspirin")


def turned(seed):
    """A random rotation and shift, (4, 4)."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.linalg.det(turn)
    matrix[:3, 3] = rng.normal(size=3) * 20
    return matrix


@pytest.mark.parametrize("name", ["hits.sdf", "hits.sdf.gz"])
def test_overlays_read_back_where_the_matrices_put_them(tmp_path, smiles, name):
    molecules = read_molecules(smiles, keep_mols=True)
    matrices = np.stack([turned(seed) for seed in range(4)])
    scores = [0.9, 0.8, 0.75, 0.5]
    path = tmp_path / name
    write_overlays(path, molecules, matrices, scores, query=molecules[2])
    text = (
        gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()
    ).decode()
    supplier = Chem.SDMolSupplier()
    supplier.SetData(text, removeHs=False)
    query, *hits = list(supplier)
    assert (query.GetProp("_Name"), query.GetProp("rank")) == ("aspirin", "0")
    assert not query.HasProp("score")
    for rank, (hit, mol, matrix) in enumerate(zip(hits, molecules.mols, matrices, strict=True), 1):
        assert hit.GetNumAtoms() == mol.GetNumAtoms() > mol.GetNumHeavyAtoms()
        places = mol.GetConformer().GetPositions()
        expected = [(matrix @ [*place, 1])[:3] for place in places]
        np.testing.assert_allclose(hit.GetConformer().GetPositions(), expected, atol=6e-5)
        assert hit.GetConformer().Is3D()
        assert hit.GetProp("_Name") == hit.GetProp("name") == molecules.names[rank - 1]
        assert hit.GetIntProp("rank") == rank
        assert hit.GetDoubleProp("score") == pytest.approx(scores[rank - 1])
    again = read_molecules(path)
    assert not again.embedded.any()
    assert [found.name for found in tmp_path.iterdir() if found.suffix == ".part"] == []


def test_properties_of_the_input_stay_beside_those_of_the_overlay(tmp_path):
    text = f"{ETHANE}>  <score>\n7\n\n>  <activity>\n3.5\n\n$$$$\n"
    molecules = read_molecules(written(tmp_path, text, "a.sdf"), keep_mols=True)
    write_overlays(tmp_path / "b.sdf", molecules, [np.eye(4)], [0.25], ranks=[17])
    (hit,) = Chem.SDMolSupplier(str(tmp_path / "b.sdf"))
    assert hit.GetPropsAsDict() == {
        "score": 0.25, "rank": 17, "name": "mol", "library_score": 7, "activity": 3.5
    }  # fmt: skip
    assert not molecules.mols[0].HasProp("rank")  # a copy was written


MIRROR = np.diag([1.0, 1.0, -1.0, 1.0])
STRETCHED = np.diag([1.0, 1.1, 1.0, 1.0])
LOST = np.where(np.eye(4) > 0, np.nan, 0.0)
AWAY = np.eye(4)
AWAY[1, 3] = np.inf


@pytest.mark.parametrize("matrix", [MIRROR, STRETCHED, LOST, AWAY, turned(0).T])
def test_a_matrix_that_bends_or_mirrors_is_refused(tmp_path, smiles, matrix):
    molecules = read_molecules(smiles, keep_mols=True)[:2]
    with pytest.raises(DataError, match=r"1 of 2 transforms .* That of benzene"):
        write_overlays(tmp_path / "a.sdf", molecules, [np.eye(4), matrix], [1, 1])
    assert not (tmp_path / "a.sdf").exists()


def test_overlays_that_do_not_match_their_molecules_are_refused(tmp_path, smiles):
    molecules = read_molecules(smiles, keep_mols=True)
    matrices = np.stack([np.eye(4)] * 4)
    out = tmp_path / "a.sdf"
    for arguments, options, match in (
        ((out, molecules, matrices[:3], np.ones(4)), {}, r"transforms has shape \(3, 4, 4\)"),
        ((out, molecules, matrices, np.ones(3)), {}, r"scores has shape \(3,\)"),
        ((out, molecules, matrices, np.ones(4), [1]), {}, r"ranks has shape \(1,\)"),
        ((tmp_path / "a.pdb", molecules, matrices, np.ones(4)), {}, "does not end in .sdf"),
        ((out, molecules, matrices, np.ones(4)), {"query": molecules}, "query holds 4"),
        ((out, read_molecules(smiles), matrices, np.ones(4)), {}, "keep_mols=True"),
    ):
        with pytest.raises(DataError, match=match):
            write_overlays(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fragments": "first"}, "fragments='first'"),
        ({"seed": -1}, "seed=-1"),
        ({"dtype": "int32"}, "dtype='int32'"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_an_option_that_is_not_allowed_is_named(smiles, options, match):
    with pytest.raises(DataError, match=match):
        read_molecules(smiles, **options)


def test_files_of_no_molecules_and_other_kinds_are_refused(tmp_path, smiles):
    for read in (read_molecules, lambda path: list(iter_molecules(path))):
        with pytest.raises(DataError, match="holds no molecules"):
            read(written(tmp_path, "# nothing\n\n", "none.smi"))
        with pytest.raises(DataError, match=r"ends in '.pdb'. SMILES are read from .smi"):
            read(written(tmp_path, "ATOM", "a.pdb"))
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing.smi")
    with pytest.raises(DataError, match="chunk=0"):
        iter_molecules(smiles, chunk=0)


def test_without_rdkit_the_extra_is_named(smiles, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit.Chem", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stowplan\[molecules\]'"):
        read_molecules(smiles)
