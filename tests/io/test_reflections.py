"""Tables of structure factors: what is read, what symmetry adds, what is refused."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from stowplan.errors import DataError, MissingDependencyError
from stowplan.io.reflections import StructureFactors, read, tabulate

TEXT = """# h k l F
0 0 0  30.5
0 0 1  12.25   # strong

 1 0 0 -4e-1
1.0 0 1 7
"""


def written(tmp_path, text, name="table.hkl"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_text_file_is_read_as_it_stands(tmp_path):
    for path in (written(tmp_path, TEXT), str(written(tmp_path, TEXT, "no_suffix"))):
        table = read(path)
        assert isinstance(table, StructureFactors)
        assert table.minima == (0, 0, 0)
        np.testing.assert_array_equal(table.values, [[[30.5, 12.25]], [[-0.4, 7.0]]])


def test_a_table_holds_each_reflection_at_its_place():
    rng = np.random.default_rng(0)
    hkl = np.stack(np.meshgrid([-2, -1, 0], [3, 4], [-1, 0, 1, 2], indexing="ij"), -1)
    hkl = rng.permutation(hkl.reshape(-1, 3))
    factors = rng.uniform(1, 9, len(hkl))
    table = tabulate(hkl, factors)
    assert table.minima == (-2, 3, -1)
    assert table.values.shape == (3, 2, 4)
    for (h, k, l), factor in zip(hkl, factors, strict=True):  # noqa: E741
        assert table.values[h + 2, k - 3, l + 1] == factor


def test_holes_are_filled_on_request_alone():
    hkl = [[0, 0, 0], [1, 1, 1], [0, 1, 0]]
    words = r"5 of the 8 .* to \(1, 1, 1\) are missing, first \(0, 0, 1\).*default=0\.0"
    with pytest.raises(DataError, match=words):
        tabulate(hkl, [1.0, 2.0, 3.0])
    table = tabulate(hkl, [1.0, 2.0, 3.0], default=-5.0)
    assert (table.values == -5.0).sum() == 5
    assert table.values[1, 1, 1] == 2.0


def test_a_reflection_may_be_repeated_but_not_contradicted():
    assert tabulate([[1, 2, 3]] * 2, [4.0, 4.0]).values.tolist() == [[[4.0]]]
    with pytest.raises(DataError, match=r"1 reflections occur again .* \(1, 2, 3\) with 4 and 5"):
        tabulate([[1, 2, 3]] * 2, [4.0, 5.0])


@pytest.mark.parametrize(
    ("hkl", "factors", "words"),
    [
        ([[0, 0, 0]], [np.nan], "1 of 1 structure factors are not finite, first that of (0, 0, 0)"),
        ([[0, 0, 0]], [np.inf], "inf"),
        ([[0, 0]], [1.0], "indices have shape (1, 2)"),
        ([[0, 0, 0]], [1.0, 2.0], "factors (2,)"),
        (np.zeros((0, 3), int), [], "n at least 1"),
        ([[0.0, 0.0, 0.0]], [1.0], "integers are needed"),
        ([[0, 0, 0], [4000, 4000, 4000]], [1.0, 2.0], "span 6.4e+10 entries"),
    ],
)
def test_lists_without_a_table_are_refused(hkl, factors, words):
    with pytest.raises(DataError, match=re.escape(words)):
        tabulate(hkl, factors)
    with pytest.raises(DataError, match="default=nan"):
        tabulate([[0, 0, 0]], [1.0], default=np.nan)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 0 0 1\n0 0 1\n", "line 2: '0 0 1' is not 'h k l F'"),
        ("0 0 0 1\n\n# comment\n0 0 x 1", "line 4: '0 0 x 1' is not"),
        ("0 0 0 1 5", "line 1: '0 0 0 1 5' is not"),
        ("0.5 0 0 1", "line 1: '0.5 0 0 1' is not"),
        ("inf 0 0 1", "line 1: 'inf 0 0 1' is not"),
        ("nan 0 0 1", "line 1: 'nan 0 0 1' is not"),
        ("99999999999 0 0 1", "is not 'h k l F'"),
        ("0 0 0 1\n0 0 1 nan", "line 2: '0 0 1 nan' has a structure factor that is not finite"),
        ("# nothing\n\n", "has no reflections"),
        ("0 0 0 1\n0 0 2 1", "1 of the 3 reflections from (0, 0, 0) to (0, 0, 2) are missing"),
        ("0 0 0 1\n0 0 0 2", "1 reflections occur again"),
    ],
)
def test_text_that_is_no_table_is_named_with_file_and_line(tmp_path, text, words):
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*" + re.escape(words)):
        read(path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.hkl' is no file"):
        read(tmp_path / "nothing.hkl")
    binary = tmp_path / "binary.hkl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="could not be read as text"):
        read(binary)


@pytest.mark.parametrize("suffix", [".mtz", ".cif"])
def test_without_gemmi_the_error_says_how_to_install_it(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "gemmi", None)
    path = written(tmp_path, "", "table" + suffix)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stowplan\[reflections\]'"):
        read(path)


def unique_reflections(gemmi, group, hmax=4):
    """Reflections of the asymmetric unit that the group allows, with a factor each."""
    operations, unit = group.operations(), gemmi.ReciprocalAsu(group)
    n = range(-hmax, hmax + 1)
    hkl = [
        [h, k, l] for h in n for k in n for l in n  # noqa: E741
        if unit.is_in([h, k, l]) and not operations.is_systematically_absent([h, k, l])
        and (h, k, l) != (0, 0, 0) and h * h + k * k + l * l <= hmax**2
    ]  # fmt: skip
    factors = np.random.default_rng(0).uniform(1, 100, len(hkl)).astype(np.float32)
    return np.array(hkl), factors


def cell_of(group):
    """The cell tells R 3 on hexagonal axes from R 3 on its own."""
    hexagonal = group.crystal_system_str() in ("trigonal", "hexagonal")
    return (50, 50, 70, 90, 90, 120) if hexagonal else (50, 60, 70, 90, 90, 90)


def write_mtz(gemmi, path, group, hkl, factors, label="FP"):
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = group
    mtz.set_cell_for_all(gemmi.UnitCell(*cell_of(group)))
    mtz.add_dataset("data")
    mtz.add_column("SIGFP", "Q")
    mtz.add_column(label, "F")
    mtz.set_data(np.column_stack([hkl, np.ones(len(hkl)), factors]).astype(np.float32))
    mtz.write_to_file(str(path))
    return mtz


def write_cif(path, group, hkl, factors, label="_refln.F_meas_au"):
    separator = "." if "." in label else "_"
    symmetry = f"_symmetry{separator}space_group_name_H-M '{group.hm}'"
    keys = (*(f"length_{axis}" for axis in "abc"), "angle_alpha", "angle_beta", "angle_gamma")
    cell = [
        f"_cell{separator}{key} {value}" for key, value in zip(keys, cell_of(group), strict=True)
    ]
    names = [f"_refln{separator}index_{axis}" for axis in "hkl"]
    rows = "\n".join(f"{' '.join(map(str, n))} {f}" for n, f in zip(hkl, factors, strict=True))
    path.write_text("\n".join(["data_x", *cell, symmetry, "loop_", *names, label, rows, ""]))


@pytest.mark.parametrize("name", ["P 1", "P 21 21 21", "C 1 2 1", "P 61 2 2", "R 3:H"])
def test_mtz_and_cif_files_are_expanded_by_their_symmetry(tmp_path, name):
    gemmi = pytest.importorskip("gemmi")
    group = gemmi.SpaceGroup(name)
    hkl, factors = unique_reflections(gemmi, group)
    mtz = write_mtz(gemmi, tmp_path / "data.mtz", group, hkl, factors)
    write_cif(tmp_path / "data.cif", group, hkl, factors)
    table = read(tmp_path / "data.mtz", default=-1.0)
    known = {}
    mtz.expand_to_p1()  # gemmi's own expansion
    for row in mtz.array:
        known[tuple(int(n) for n in row[:3])] = row[4]
        known[tuple(-int(n) for n in row[:3])] = row[4]
    assert len(known) > 100
    for place in np.ndindex(table.values.shape):
        reflection = tuple(int(n) for n in np.add(place, table.minima))
        absent = group.operations().is_systematically_absent(list(reflection))
        assert table.values[place] == known.get(reflection, 0.0 if absent else -1.0)
    other = read(tmp_path / "data.cif", default=-1.0)
    assert other.minima == table.minima
    np.testing.assert_allclose(other.values, table.values, rtol=1e-6)


def test_reflections_that_were_not_measured_are_holes(tmp_path):
    gemmi = pytest.importorskip("gemmi")
    group = gemmi.SpaceGroup("P 1")
    write_mtz(gemmi, tmp_path / "a.mtz", group, [[0, 0, 1], [0, 0, 2]], [3.0, np.nan])
    with pytest.raises(DataError, match=r"1 of the 3 .* missing, first \(0, 0, 0\)"):
        read(tmp_path / "a.mtz")
    assert read(tmp_path / "a.mtz", default=9.0).values.tolist() == [[[3.0, 9.0, 3.0]]]
    write_mtz(gemmi, tmp_path / "b.mtz", group, [[0, 0, 1]], [np.nan])
    with pytest.raises(DataError, match="no reflection has a structure factor"):
        read(tmp_path / "b.mtz")


def test_amplitudes_are_found_by_their_label(tmp_path):
    gemmi = pytest.importorskip("gemmi")
    group = gemmi.SpaceGroup("P 1")
    hkl, factors = [[0, 0, 1]], [3.0]
    path = tmp_path / "a.mtz"
    write_mtz(gemmi, path, group, hkl, factors, label="odd")
    assert read(path, default=0.0).values.max() == 3.0
    assert read(path, default=0.0, column="SIGFP").values.max() == 1.0
    with pytest.raises(DataError, match=r"no column 'FC'; its columns are H, K, L, SIGFP, odd"):
        read(path, default=0.0, column="FC")
    path = tmp_path / "a.cif"
    write_cif(path, group, hkl, factors, label="_refln.intensity_meas")
    with pytest.raises(DataError, match=r"no column .* amplitudes.*column='intensity_meas'"):
        read(path, default=0.0)
    assert read(path, default=0.0, column="intensity_meas").values.max() == 3.0


def test_a_small_molecule_cif_is_read_too(tmp_path):
    gemmi = pytest.importorskip("gemmi")
    path = tmp_path / "a.cif"
    write_cif(path, gemmi.SpaceGroup("P 1"), [[0, 0, 1]], [3.0], label="_refln_F_meas")
    assert read(path, default=0.0).values.tolist() == [[[3.0, 0.0, 3.0]]]


def test_files_that_gemmi_cannot_read_are_named(tmp_path):
    pytest.importorskip("gemmi")
    for name in ("a.mtz", "a.cif"):
        path = written(tmp_path, "loop_ nonsense", name)
        with pytest.raises(DataError, match=re.escape(name) + ".*could not be read by gemmi"):
            read(path)
    path = written(tmp_path, "data_x\n_cell.length_a 5\n", "b.cif")
    with pytest.raises(DataError, match="no loop of reflections"):
        read(path)
    names = "".join(f"_refln.{name}\n" for name in ("index_h", "index_k", "index_l", "F_meas_au"))
    path = written(tmp_path, f"data_x\nloop_\n{names}0 0 1 3\n", "c.cif")
    with pytest.raises(DataError, match="no space group"):
        read(path)
