"""`stowplan overlay`: the numbers of the recipe, hits where they belong, what is left out."""

from __future__ import annotations

import csv
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import stowplan
from stowplan.cli import main
from stowplan.io.molecules import read_molecules
from stowplan.recipes import overlay

Chem = pytest.importorskip("rdkit.Chem", reason="rdkit is not installed")
from rdkit import RDConfig  # noqa: E402

CMET = str(Path(RDConfig.RDContribDir, "FreeWilson/data/cmet_ligands.sdf"))
HEADER = "rank name score atoms line".split()
FEW = ["--starts", "2"]
SMILES = """\
CC(=O)Oc1ccccc1C(=O)O aspirin
c1ccccc1 benzene
CC(C)Cc1ccc(cc1)C(C)C(=O)O ibuprofen
CCO ethanol
CC(=O)Nc1ccc(O)cc1 paracetamol
O=C(O)c1ccccc1O salicylic acid
"""
BROKEN = SMILES + "c1ccc open ring\n[Na+].CC(=O)[O-] salt\nC1#CC1 strained\n"


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "library.smi"
    path.write_text(SMILES)
    return str(path)


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.smi"
    path.write_text(BROKEN)
    return str(path)


@pytest.fixture
def query(tmp_path):
    path = tmp_path / "query.smi"
    path.write_text("CC(=O)Oc1ccccc1C(=O)O aspirin\n")
    return str(path)


def run(capsys, *arguments, status=0):
    """Rows of standard output, and standard error."""
    assert main(["overlay", *map(str, arguments)]) == status
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if status:
        assert out == ""
        return [], err
    header, *rows = (line.split("\t") for line in out.splitlines())
    assert header == HEADER
    return [dict(zip(header, row, strict=True)) for row in rows], err


def test_lines_are_the_numbers_of_the_recipe(query, library, capsys):
    rows, err = run(capsys, query, library, "--top", 4, *FEW)
    molecules = read_molecules(library)
    points = molecules.points
    found = overlay.screen(read_molecules(query).points[0], points, top=4, starts=2)
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4]
    assert [row["name"] for row in rows] == [molecules.names[place] for place in found.index]
    assert [float(row["score"]) for row in rows] == pytest.approx(found.score.tolist(), abs=1e-6)
    assert [int(row["atoms"]) for row in rows] == [len(points[place]) for place in found.index]
    assert [int(row["line"]) for row in rows] == (found.index + 1).tolist()
    assert (rows[0]["name"], float(rows[0]["score"])) == ("aspirin", pytest.approx(1, abs=1e-4))
    read, pairs = err.splitlines()
    assert read.startswith("6 molecules read in ")
    assert read.endswith(" s, 6 of them embedded; 0 failed and left out")
    assert pairs.startswith("6 pairs overlaid in ")
    assert pairs.endswith(
        f"; {len(found.plan.slots)} slots, occupancy {found.plan.occupancy():.1%}"
    )


def test_hits_lie_in_the_frame_of_the_query(tmp_path, query, library, capsys):
    out = tmp_path / "hits.sdf"
    rows, _ = run(capsys, query, library, "--top", 3, "--out", out, "--with-query", *FEW)
    asked, *hits = list(Chem.SDMolSupplier(str(out), removeHs=False))
    assert asked.GetProp("_Name") == "aspirin"
    found = overlay.screen(
        read_molecules(query).points[0], read_molecules(library).points, top=3, starts=2
    )
    for hit, row, aligned in zip(hits, rows, found.aligned, strict=True):
        assert (hit.GetProp("name"), hit.GetProp("rank")) == (row["name"], row["rank"])
        assert hit.GetDoubleProp("score") == pytest.approx(float(row["score"]), abs=1e-6)
        assert hit.GetNumAtoms() > hit.GetNumHeavyAtoms()  # with its hydrogens
        heavy = Chem.RemoveHs(hit).GetConformer().GetPositions()
        np.testing.assert_allclose(heavy, aligned, atol=1e-3)
    same = asked.GetConformer().GetPositions() - hits[0].GetConformer().GetPositions()
    assert np.abs(same).max() < 0.1  # the query in the library lies on itself


def test_a_molecule_that_was_turned_and_moved_comes_back(tmp_path, capsys):
    (ligand,) = read_molecules(CMET, lines=[1], keep_mols=True).mols
    turn = np.array([[0.0, 0.6, 0.8], [0.0, 0.8, -0.6], [-1.0, 0.0, 0.0]])
    away = Chem.Mol(ligand)
    away.GetConformer().SetPositions(ligand.GetConformer().GetPositions() @ turn.T + 30)
    with Chem.SDWriter(str(tmp_path / "away.sdf")) as writer:
        writer.write(away)
    out = tmp_path / "hits.sdf"
    rows, _ = run(capsys, CMET, tmp_path / "away.sdf", "--query-index", 1, "--out", out)
    assert float(rows[0]["score"]) == pytest.approx(1, abs=1e-3)
    (hit,) = Chem.SDMolSupplier(str(out), removeHs=False)
    apart = hit.GetConformer().GetPositions() - ligand.GetConformer().GetPositions()
    assert np.abs(apart).max() < 0.1


def test_chunks_change_nothing(query, library, capsys):
    whole, _ = run(capsys, query, library, *FEW)
    chunks, _ = run(capsys, query, library, *FEW, "--chunk", 2, "--workers", 1)
    assert [row["name"] for row in chunks] == [row["name"] for row in whole]
    assert [float(row["score"]) for row in chunks] == pytest.approx(
        [float(row["score"]) for row in whole], abs=1e-4
    )


def test_of_several_queries_the_first_is_taken_with_a_notice(library, capsys):
    names = read_molecules(CMET).names
    first, err = run(capsys, CMET, library, *FEW)
    assert f"{CMET} holds 24 molecules; the query is the first, {names[0]} (--query-index" in err
    third, err = run(capsys, CMET, library, *FEW, "--query-index", 3)
    assert "holds 24" not in err
    named, err = run(capsys, CMET, library, *FEW, "--query-name", names[2])
    assert "holds 24" not in err
    assert named == third != first


def test_a_query_that_is_not_there_is_an_error(tmp_path, library, capsys):
    _, err = run(capsys, CMET, library, "--query-index", 25, status=1)
    assert f"--query-index 25; {CMET} holds 24, from 1." in err
    _, err = run(capsys, CMET, library, "--query-name", "x", status=1)
    assert "0 of 24 molecules" in err
    (tmp_path / "twice.smi").write_text("CC a\nCCC a\n")
    _, err = run(capsys, tmp_path / "twice.smi", library, "--query-name", "a", status=1)
    assert "2 of 2 molecules" in err
    _, err = run(capsys, tmp_path / "none.smi", library, status=1)
    assert "none.smi" in err


def test_what_cannot_be_used_ends_the_run_with_its_lines(query, broken, capsys):
    _, err = run(capsys, query, broken, status=1)
    assert "2 of 9 molecules" in err
    assert "line 7, open ring: unclosed ring" in err
    assert "line 8, salt: it has 2 fragments" in err
    assert "skip_failed" in err


def test_what_cannot_be_used_is_left_out_on_request_named_and_counted(query, broken, capsys):
    rows, err = run(capsys, query, broken, *FEW, "--skip-failed", "-q")
    assert len(rows) == 6
    told = err.splitlines()
    assert [line.split(":")[:2] for line in told] == [
        ["stowplan", " left out"]] * 3  # fmt: skip
    assert "line 7, open ring: unclosed ring" in told[0]
    assert "line 9, strained: RDKit cannot embed it" in told[2]
    rows, err = run(capsys, query, broken, *FEW, "--skip-failed", "--fragments", "largest")
    assert {row["name"] for row in rows} >= {"salt"}
    assert "7 molecules read in " in err
    assert "; 2 failed and left out" in err


def test_a_library_of_which_nothing_can_be_used_is_an_error(tmp_path, query, capsys):
    (tmp_path / "all.smi").write_text("c1ccc open\nC( torn\n")
    _, err = run(capsys, query, tmp_path / "all.smi", "--skip-failed", status=1)
    assert "none of 2 molecules" in err
    assert "line 1, open: unclosed ring" in err


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_table_has_a_row_for_every_molecule(tmp_path, query, broken, suffix, capsys):
    path = tmp_path / f"scores.{suffix}"
    if suffix == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    rows, _ = run(capsys, query, broken, "--skip-failed", "--top", 2, "--scores", path, *FEW)
    if suffix == "csv":
        with path.open(newline="") as file:
            table = list(csv.DictReader(file))
    else:
        table = parquet.read_table(path).to_pylist()
    assert [int(row["line"]) for row in table] == list(range(1, 10))
    assert [row["name"] for row in table][5:] == ["salicylic acid", "open ring", "salt", "strained"]
    used, failed = table[:6], table[6:]
    assert [int(row["atoms"]) for row in used] == [13, 6, 15, 3, 11, 10]
    assert all(Chem.CanonSmiles(row["smiles"]) == row["smiles"] for row in used)
    by_rank = sorted(used, key=lambda row: int(row["rank"]))
    assert [int(row["rank"]) for row in by_rank] == [1, 2, 3, 4, 5, 6]
    scores = [float(row["score"]) for row in by_rank]
    assert scores == sorted(scores, reverse=True)
    assert [row["name"] for row in by_rank[:2]] == [row["name"] for row in rows]
    assert all(row["score"] in (None, "") and row["failure"] for row in failed)
    assert all(row["failure"] in (None, "") for row in used)


def test_the_picture_is_written(tmp_path, query, library, capsys):
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "scores.png"
    run(capsys, query, library, "--picture", path, "--top", 2, *FEW)
    assert image.open(path).size[0] == 1200


def test_options_are_passed_on(query, library, capsys, monkeypatch):
    seen = {}
    screen = overlay.screen

    def spy(*arguments, **options):
        seen.update(options)
        return screen(*arguments, starts=1)

    monkeypatch.setattr(overlay, "screen", spy)
    monkeypatch.setattr(stowplan, "dask_executor", lambda client: ("pool", client))
    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(Client=nullcontext))
    options = "--starts atoms --steps 7 --tolerance none --alpha 0.9 --on numpy --devices 2"
    run(capsys, query, library, *options.split(), "--budget", "2GiB", "--dask", "tcp://host:1")
    assert [str(device) for device in seen.pop("devices")] == ["worker 0", "worker 1"]
    assert seen == {
        "starts": "atoms", "steps": 7, "tolerance": None, "alpha": 0.9, "on": "numpy",
        "budget": "2GiB", "executor": ("pool", "tcp://host:1"),
    }  # fmt: skip
    seen.clear()
    run(capsys, query, library)
    assert seen == {}  # the recipe has the defaults


def test_workers_of_dask_give_the_same_lines(query, library, capsys):
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    alone, _ = run(capsys, query, library, *FEW)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        spread, _ = run(capsys, query, library, *FEW, "--dask", cluster.scheduler_address)
    assert spread == alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "hits.pdb"], "does not end in .sdf"),
        (["--scores", "table.txt"], "does not end in .parquet or .csv"),
        (["--picture", "scores.doc"], "a picture is one of"),
        (["--out", "missing/hits.sdf"], "there is no folder missing"),
        (["--scores", "a.csv", "--picture", "a.csv"], "are one file"),
    ],
)
def test_outputs_are_checked_before_anything_is_read(
    arguments, message, capsys, monkeypatch, tmp_path
):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.chdir(tmp_path)
    _, err = run(capsys, "no-query.smi", "no-library.smi", *arguments, status=1)
    assert message in err
    assert "no-query" not in err


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("rdkit.Chem", [], "molecules"),
        ("pyarrow.parquet", ["--scores", "a.parquet"], "arrow"),
        ("matplotlib.backends.backend_agg", ["--picture", "a.png"], "pictures"),
        ("distributed", ["--dask", "tcp://host:1"], "dask"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    module, arguments, extra, query, library, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    _, err = run(capsys, query, library, *arguments, status=1)
    assert f"pip install 'stowplan[{extra}]'" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--top", "0"],
        ["--starts", "many"],
        ["--tolerance", "-1"],
        ["--devices", "none"],
        ["--query-index", "1", "--query-name", "a"],
        ["--fragments", "first"],
    ],
)
def test_a_wrong_call_has_status_2(arguments, query, library, capsys):
    run(capsys, query, library, *arguments, status=2)


def test_the_command_is_listed_and_explains_itself(capsys):
    assert main(["--help"]) == 0
    assert "overlay" in capsys.readouterr().out
    assert main(["overlay", "--help"]) == 0
    out = capsys.readouterr().out
    assert "stowplan overlay query.sdf library.smi --top 50 --out hits.sdf" in out
