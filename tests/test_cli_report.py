"""`stowplan report`: from all kinds of files to a page, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import stowplan as sp
from stowplan.cli import main

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("jinja2", reason="Jinja2 is not installed")

TABLE = "name,atoms,k\nwater,2,9\nozone,3,40\nquartz,64,4096\nclay,192,32768\n"
WORK = ["--work", "atoms * k"]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "sizes.csv"
    path.write_text(TABLE)
    return str(path)


@pytest.fixture
def drawn(monkeypatch):
    """Plans and options of pages that are not drawn, which takes the time."""
    pages = []

    def report(plans, path, **options):
        pages.append((plans, options))
        Path(path).write_text("page")

    monkeypatch.setattr("stowplan.reports.page.report", report)
    return pages


def page_of(tmp_path, *arguments):
    out = tmp_path / "page.html"
    assert main(["report", *arguments, "--out", str(out)]) == 0
    return out.read_text(encoding="utf-8").replace("\xa0", " ")


def error_of(capsys, tmp_path, *arguments, status=1):
    """The message of a call that fails and leaves no page."""
    out = tmp_path / "none.html"
    capsys.readouterr()
    assert main(["report", *arguments, "--out", str(out)]) == status
    assert not out.exists()
    printed, err = capsys.readouterr()
    assert printed == ""
    assert "Traceback" not in err
    return err


def test_a_table_becomes_a_page_with_names(table, tmp_path, capsys):
    text = page_of(tmp_path, table, *WORK, "--slots", "2", "--names", "name", "--title", "My set")
    useful = 2 * 9 + 3 * 40 + 64 * 4096 + 192 * 32768
    padded = 3 * 64 * 4096 + 192 * 32768
    share = f"{100 * useful / padded:.1f} %"
    assert f"{share} of the work of 4 items in 2 slots" in text
    assert "<h1>My set</h1>" in text
    assert {"water", "ozone"} <= set(re.findall(r">(\w+)</td>", text))
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"sizes: {useful / padded:.1%} of the work of 4 items is useful",
        str(tmp_path / "page.html"),
    ]
    assert err == ""


def test_a_saved_plan_is_reported_as_it_is(tmp_path, drawn):
    plan = sp.assign_slots({"atoms": [3, 9, 9]}, [{"atoms": 4}, {"atoms": 9}])
    plan.save(tmp_path / "plan.json")
    page_of(tmp_path, str(tmp_path / "plan.json"))
    page_of(tmp_path, str(tmp_path / "plan.npz"))
    for plans, _ in drawn:
        assert plans["plan"].slots == plan.slots
        assert plans["plan"].occupancy() == plan.occupancy()


def test_several_files_become_one_page(table, tmp_path, drawn):
    other = tmp_path / "other.csv"
    other.write_text("atoms,k\n5,7\n")
    page_of(tmp_path, table, str(other), *WORK)
    ((plans, _),) = drawn
    assert list(plans) == ["sizes", "other"]


def test_a_parquet_table_is_read(tmp_path, drawn):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "sizes.parquet"
    parquet.write_table(pa.table({"title": ["a", "b"], "n": [3, 4]}), path)
    page_of(tmp_path, str(path), "--names", "title")
    ((plans, options),) = drawn
    assert plans["sizes"].sizes["n"].tolist() == [3, 4]
    assert options["names"] == {"sizes": ["a", "b"]}


def test_structures_are_measured_in_k_space_as_their_kernel_does(tmp_path, drawn):
    pytest.importorskip("ase", reason="ase is not installed")
    pytest.importorskip("vesin", reason="vesin is not installed")
    from ase.build import bulk, molecule
    from ase.io import write

    from stowplan.recipes.ewald import columns

    cell = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    slab = cell.copy()
    slab.pbc = (True, True, False)
    structures = [cell, cell * (3, 1, 2), slab, molecule("H2O")]
    write(tmp_path / "set.extxyz", structures)
    page_of(tmp_path, str(tmp_path / "set.extxyz"))
    ((plans, options),) = drawn
    kspace, _ = columns(structures[:3], charges={"Na": 1, "Cl": -1})  # neutral
    sizes = plans["set"].sizes
    for axis in (1, 2, 3):
        assert sizes[f"n{axis}"].tolist()[:3] == kspace[f"m{axis}"].shapes[:, 0].tolist()
    assert sizes["atoms"].tolist() == [8, 48, 8, 3]
    assert plans["set"].work == "atoms * k"
    assert options["names"]["set"][3] == "3 H2O"


def test_molecules_are_counted_by_their_heavy_atoms(tmp_path, drawn, capsys):
    pytest.importorskip("rdkit", reason="rdkit is not installed")
    path = tmp_path / "set.smi"
    path.write_text("CCO ethanol\nc1ccccc1 benzene\nCC( broken\n[NH4+] ammonium\n*CC linked\n")
    assert "line 3, broken" in error_of(capsys, tmp_path, str(path))
    page_of(tmp_path, str(path), "--skip-failed")
    ((plans, options),) = drawn
    assert plans["set"].sizes["atoms"].tolist() == [3, 6, 1, 2]
    assert options["names"] == {"set": ["ethanol", "benzene", "ammonium", "linked"]}


def test_masks_are_measured_by_the_box_around_them(tmp_path, drawn):
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 4:9, 2:20] = True
    masks[1, [3, 12], [5, 7]] = True
    np.save(tmp_path / "cells.npy", masks)
    page_of(tmp_path, str(tmp_path / "cells.npy"))
    folder = tmp_path / "masks"
    folder.mkdir()
    np.save(folder / "cells.npy", masks)
    page_of(tmp_path, str(folder))
    labels = np.zeros((6, 6), int)
    labels[1:3, 1:5], labels[4, 4] = 7, 2
    np.save(tmp_path / "labels.npy", labels)
    page_of(tmp_path, str(tmp_path / "labels.npy"), "--labels", "all")
    sizes = [next(iter(plans.values())).lengths.tolist() for plans, _ in drawn]
    assert sizes == [[[5, 18], [10, 3], [0, 0]]] * 2 + [[[1, 1], [2, 4]]]


def test_rows_stay_within_a_budget(table, tmp_path, drawn, capsys):
    each = 24 * 64 + 12 * 4096
    many = tmp_path / "many.csv"
    many.write_text("atoms,k\n" + "64,4096\n" * 50)
    extra = ["--bytes", "24*atoms + 12*k", "--budget", f"{10 * each}"]
    page_of(tmp_path, str(many), *WORK, *extra)
    ((plans, _),) = drawn
    plan = plans["many"]
    assert max(len(batch.items) for batch in plan.batches) <= 10
    (peak,) = plan.memory.batch_bytes
    assert peak == len(plan.batches[0].items) * each <= plan.memory.budget.bytes == 10 * each
    few = error_of(capsys, tmp_path, str(many), *WORK, *extra[:3], "9 kB")
    assert f"holds {each} bytes, more than the budget" in few
    assert "--budget needs --bytes" in error_of(capsys, tmp_path, table, "--budget", "1 GB")


def test_devices_costs_and_slots_by_hand_are_those_of_the_plan(table, tmp_path, drawn):
    page_of(
        tmp_path, table, *WORK, "--slot", "atoms=64,k=4096", "--slot", "atoms=192,k=32768",
        "--devices", "3", "--costs", "compile=0.5", "--max-slots", "5", "--derived", "m=2*k",
    )  # fmt: skip
    ((plans, options),) = drawn
    plan = plans["sizes"]
    assert plan.slots[0]["k"] == 4096
    assert len(plan.devices) == 3
    assert plan.costs.compile_seconds == 0.5
    assert plan.derived == {"m": "2 * k"} or plan.derived == {"m": "2*k"}
    assert options["max_slots"] == 5


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (TABLE, ["--work", "atoms * q"], "no column 'q'; the file has name, atoms, k"),
        (TABLE, [*WORK, "--names", "title"], "no column 'title'; the file has name, atoms, k"),
        (TABLE, [], "line 3 has 'ozone', line 4 has 'quartz' and 1 more"),
        ("atoms,k\n2,9\n-3,9\n", WORK, "1 of 2 entries are no size; line 3 has '-3'"),
        ("atoms,k\n2,9\n3,9.5\n4,1\n5,0.1\n", WORK, "line 3 has '9.5', line 5 has '0.1'"),
        ("atoms,k\n,9\n3,9\n", WORK, "line 2 is empty"),
        (
            TABLE,
            [*WORK, "--slot", "atoms=64,k=9"],
            "3 of 4 items fit no slot. Item 1 has atoms=3, k=40",
        ),
    ],
)
def test_sizes_that_are_none_are_refused_with_their_lines(
    text, arguments, message, tmp_path, capsys
):
    path = tmp_path / "sizes.csv"
    path.write_text(text)
    assert message in error_of(capsys, tmp_path, str(path), *arguments)


def test_expressions_are_parsed_and_never_evaluated(table, tmp_path, capsys):
    work = f"__import__('pathlib').Path('{tmp_path}/hacked').touch()"
    err = error_of(capsys, tmp_path, table, "--work", work, status=2)
    assert "function calls are not allowed" in err
    assert not (tmp_path / "hacked").exists()
    err = error_of(capsys, tmp_path, table, *WORK, "--bytes", "atoms * z")
    assert "no column 'z'; the file has name, atoms, k" in err
    np.save(tmp_path / "cells.npy", np.ones((1, 4, 4), bool))
    for option in ("--work", "--bytes"):
        err = error_of(capsys, tmp_path, str(tmp_path / "cells.npy"), option, "y * z")
        assert "unknown name 'z'; known: y, x" in err


def test_a_plan_of_a_newer_version_is_refused(tmp_path, capsys):
    sp.assign_slots({"atoms": [3]}, [{"atoms": 4}]).save(tmp_path / "plan.json")
    header = json.loads((tmp_path / "plan.json").read_text())
    header["version"] += 1
    (tmp_path / "plan.json").write_text(json.dumps(header))
    err = error_of(capsys, tmp_path, str(tmp_path / "plan.json"))
    assert "has version 2; this stowplan reads version 1" in err
    assert "pip install --upgrade stowplan" in err


def test_a_plan_has_its_own_work_and_slots(tmp_path, capsys):
    sp.assign_slots({"atoms": [3]}, [{"atoms": 4}]).save(tmp_path / "plan.json")
    err = error_of(capsys, tmp_path, str(tmp_path / "plan.json"), *WORK, "--slots", "3")
    assert "leave out --work, --slots" in err


def test_files_that_are_not_there_and_folders_that_are_not_are_named(table, tmp_path, capsys):
    for name in ("sizes.csv", "plan.json", "set.smi", "cells.png", "set.extxyz"):
        assert name in error_of(capsys, tmp_path, str(tmp_path / "missing" / name))
    assert main(["report", table, *WORK, "--out", str(tmp_path / "no" / "r.html")]) == 1
    assert f"there is no folder {tmp_path}/no. Make it first: mkdir -p" in capsys.readouterr().err
    assert main(["report", table, *WORK, "--out", str(tmp_path / "r.pdf")]) == 2
    assert "does not end in .html" in capsys.readouterr().err
    assert "is given twice" in error_of(capsys, tmp_path, table, table, *WORK)


def test_the_help_shows_examples_of_all_files(capsys):
    assert main(["report", "--help"]) == 0
    out = capsys.readouterr().out
    for name in (
        "sizes.csv",
        "sizes.parquet",
        "plan.json",
        "salts.extxyz",
        "library.smi",
        "masks/",
    ):
        assert f"stowplan report {name}" in out
