"""The command line: exit codes, what goes to which stream, and the numbers in between."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from stowplan import Plan
from stowplan.cli import main
from stowplan.cli.arguments import add_devices, arranged_devices

TABLE = "atoms,k,name\n2,9,a\n3,40,b\n64,4096,c\n192,32768,d\n"
RUN = "import sys; from stowplan.cli import main; sys.exit(main())"
NACL = 1.747564594633  # Madelung constant, nearest neighbour 1


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "sizes.csv"
    path.write_text(TABLE)
    return str(path)


@pytest.fixture
def salts(tmp_path):
    """Rock salt in three sizes, nearest neighbours 1 apart."""
    pytest.importorskip("ase", reason="ase is not installed")
    pytest.importorskip("vesin", reason="vesin is not installed")
    from ase.build import bulk
    from ase.io import write

    cell = bulk("NaCl", "rocksalt", a=2.0, cubic=True)
    path = tmp_path / "salts.extxyz"
    write(path, [cell, cell * (1, 1, 2), bulk("NaCl", "rocksalt", a=2.0)])
    return str(path)


def error_of(capsys, arguments, status):
    """The message of a call that fails with nothing on standard output and no traceback."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_the_report_shows_the_plan_and_the_curve(table, capsys):
    assert main(["plan", table, "--work", "atoms * k", "--slots", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "plan (chosen): 4 items, 2 slots" in out
    useful = 2 * 9 + 3 * 40 + 64 * 4096 + 192 * 32768
    assert f"{100 * useful / (4 * 192 * 32768):.1f} %" in out
    assert f"{100 * useful / (3 * 64 * 4096 + 192 * 32768):.1f} %" in out


def test_the_plan_is_shared_out_among_devices(table, capsys):
    assert main(["plan", table, "--work", "atoms * k", "--rows", "1", "--devices", "2"]) == 0
    assert "shared     2 devices, each batch on one, longest first" in capsys.readouterr().out
    assert main(["plan", table, "--work", "k", "--rows", "1", "--devices", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sum(device["items"] for device in report["plan"]["devices"]) == 4
    assert "whole number from 1" in error_of(capsys, ["plan", table, "--devices", "0"], 2)


def test_devices_of_a_command_are_a_number_or_all():
    parser = argparse.ArgumentParser()
    add_devices(parser)
    assert parser.parse_args([]).devices is None
    assert parser.parse_args(["--devices", "all"]).devices == "all"
    assert len(arranged_devices(parser.parse_args(["--devices", "3"]).devices, "numpy")) == 3
    assert arranged_devices(None, "jax") is None


def test_the_json_report_holds_every_number_of_the_table(table, capsys):
    assert main(["plan", table, "--work", "atoms * k", "--slots", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["plan"]["occupancy"] == report["curve"][-1]["occupancy"]
    assert [point["count"] for point in report["curve"]] == [1, 2, 3]
    assert report["curve"][0]["slots"] == [{"atoms": 192, "k": 32768}]


def test_slots_by_hand_are_kept(table, capsys):
    slots = ["--slot", "atoms=64,k=4096", "--slot", "atoms=192,k=32768,rows=2"]
    assert main(["plan", table, "--work", "atoms * k", *slots, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["plan"]["slots"]
    assert [(slot["atoms"], slot["k"], slot["items"]) for slot in found] == [
        (64, 4096, 3),
        (192, 32768, 1),
    ]
    assert found[1]["rows"] == 2


def test_derived_sizes_serve_work_and_slots(tmp_path, capsys):
    path = tmp_path / "grids.csv"
    path.write_text("n1,n2,atoms\n2,3,4\n5,6,7\n")
    derived = ["--derived", "k=n1*n2", "--work", "k * atoms", "--slot", "k=6", "--slot", "k=30"]
    assert main(["plan", str(path), *derived, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert [slot["n2"] for slot in plan["slots"]] == [3, 6]
    assert plan["occupancy"] == 1.0


def test_the_saved_plan_is_the_reported_one(table, tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert main(["plan", table, "--work", "k", "--rows", "1", "--json", "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)["plan"]
    plan = Plan.load(out)
    assert plan.occupancy() == report["occupancy"]
    assert len(plan.batches) == report["batches"] == 4


def test_a_dash_reads_standard_input(capsys, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("atoms\n3\n4\n"))
    assert main(["plan", "-", "--slots", "1"]) == 0
    assert "87.5 %" in capsys.readouterr().out


def test_a_table_of_no_items_is_no_error(tmp_path, capsys):
    path = tmp_path / "empty.csv"
    path.write_text("atoms,k\n")
    assert main(["plan", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["curve"] == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "COMMAND"),
        (["plan"], "SIZES"),
        (["plan", "x.csv", "--slots", "0"], "'0' is no whole number from 1"),
        (["plan", "x.csv", "--slots", "2", "--slot", "k=3"], "not allowed with"),
        (["plan", "x.csv", "--slot", "k"], "'k' is not of the form NAME=VALUE"),
        (["plan", "x.csv", "--slot", "k=1,k=2"], "k is given twice"),
        (["plan", "x.csv", "--slot", "k=-1"], "'-1' is no whole number from 1"),
        (["plan", "x.csv", "--work", "open('x')"], "function calls are not allowed"),
        (["plan", "x.csv", "--derived", "2k=n"], "NAME=EXPR"),
        (["plan", "x.csv", "--costs", "work=1,play=2"], "allowed are work, launch and compile"),
        (["plan", "x.csv", "--out", "plan.txt"], "does not end in .json"),
        (["ewald", "x.xyz", "--on", "excel"], "invalid choice"),
        (["ewald", "x.xyz", "--accuracy", "0"], "'0' is not positive"),
        (["ewald", "x.xyz", "--charges", "Na=one"], "'one' is no finite number"),
    ],
)
def test_a_wrong_call_exits_with_2_and_says_why(arguments, reason, capsys):
    err = error_of(capsys, arguments, 2)
    assert err.startswith("usage: stowplan")
    assert reason in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--work", "atoms * q"], "no column 'q'; the file has atoms, k, name"),
        (
            ["--slot", "atoms=64", "--work", "atoms"],
            "1 of 4 items fit no slot. Item 3 has atoms=192",
        ),
        ([], "column 'name': 4 of 4 entries are no size; line 2 has 'a'"),
        (["--work", "atoms", "--out", "/nowhere/plan.json"], "there is no folder /nowhere"),
    ],
)
def test_data_that_cannot_be_used_exits_with_1_and_one_message(table, arguments, reason, capsys):
    err = error_of(capsys, ["plan", table, *arguments], 1)
    assert err.startswith("stowplan: error: ")
    assert reason in err


def test_wrong_sizes_are_shown_with_their_lines(tmp_path, capsys):
    path = tmp_path / "wrong.csv"
    path.write_text("atoms\n2\n-1\n2.5\n\nx\n3\n7e\n")
    assert (
        "4 of 6 entries are no size; line 3 has '-1', line 4 has '2.5', line 6 has 'x' and 1 more."
    ) in error_of(capsys, ["plan", str(path)], 1)


def test_a_file_of_molecules_that_is_missing_is_named_without_numbers_of_the_system(capsys):
    pytest.importorskip("rdkit", reason="rdkit is not installed")
    message = "stowplan: error: nowhere.sdf: No such file or directory\n"
    assert error_of(capsys, ["overlay", "nowhere.sdf", "nowhere.smi"], 1) == message


def test_a_missing_file_exits_with_1_and_names_it(tmp_path, capsys):
    assert "nowhere.csv" in error_of(capsys, ["plan", str(tmp_path / "nowhere.csv")], 1)


def test_ctrl_c_exits_with_130(table, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("stowplan.cli.plan.read_sizes", interrupt)
    assert error_of(capsys, ["plan", table], 130) == "stowplan: interrupted\n"


def test_a_reader_that_goes_away_ends_the_command_quietly(table):
    command = [sys.executable, "-c", RUN, "plan", table, "--work", "k"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize("command", [[], ["plan"], ["ewald"]])
def test_help_goes_to_standard_output(command, capsys):
    assert main([*command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert not command or "example:" in out


def test_energies_are_one_line_a_structure(salts, capsys):
    assert main(["ewald", salts, "--charges", "Na=1,Cl=-1", "--accuracy", "1e-9"]) == 0
    out, err = capsys.readouterr()
    header, *lines = (line.split("\t") for line in out.splitlines())
    assert header == ["item", "formula", "atoms", "energy", "largest_force"]
    assert [line[:3] for line in lines] == [
        ["0", "Na4Cl4", "8"],
        ["1", "Na8Cl8", "16"],
        ["2", "NaCl", "2"],
    ]
    for line in lines:
        assert float(line[3]) / (int(line[2]) / 2) == pytest.approx(-NACL, rel=1e-8)
    assert "3 structures in" in err


def test_results_are_written_where_ase_reads_them(salts, tmp_path, capsys):
    from ase.io import read

    out = tmp_path / "done.extxyz"
    arguments = ["ewald", salts, "--charges", "Na=1,Cl=-1", "--prefactor", "2", "--out", str(out)]
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    small = read(out, index=2)
    assert small.get_potential_energy() == pytest.approx(-2 * NACL, rel=1e-5)
    assert abs(small.get_forces()).max() < 1e-6
    # E ~ 1 / length, so that the trace of dE/dstrain is -E.
    assert small.get_stress()[:3].sum() * small.get_volume() == pytest.approx(2 * NACL, rel=1e-5)
    assert small.arrays["potentials"].shape == (2,)
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_a_parquet_table_keeps_all_digits(salts, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    out = tmp_path / "done.parquet"
    arguments = ["ewald", salts, "--charges", "Na=1,Cl=-1", "--quiet"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert main([*arguments, "--out", str(out)]) == 0
    energies = parquet.read_table(out)["energy"].to_pylist()
    assert energies == pytest.approx([float(line.split("\t")[3]) for line in lines], rel=1e-14)


@pytest.mark.parametrize(
    "steer", [["--slots", "1"], ["--slot", "atoms=16,k=100000"], ["--rows", "1"]]
)
def test_slots_and_rows_change_no_energy(salts, steer, capsys):
    call = ["ewald", salts, "--charges", "Na=1,Cl=-1", "--quiet"]
    energies = []
    for extra in ([], steer):
        assert main([*call, *extra]) == 0
        lines = capsys.readouterr().out.splitlines()[1:]
        energies.append([float(line.split("\t")[3]) for line in lines])
    assert energies[0] == pytest.approx(energies[1], rel=1e-12)


def test_the_command_runs_on_every_framework(salts, framework, capsys, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")  # the command sets it
    if framework == "array_api_strict":
        pytest.skip("array_api_strict is no framework of the command")
    call = ["ewald", salts, "--charges", "Na=1,Cl=-1", "--accuracy", "1e-9", "--on", framework]
    assert main(call) == 0
    energy = float(capsys.readouterr().out.splitlines()[3].split("\t")[3])
    assert energy == pytest.approx(-NACL, rel=1e-8)


def test_structures_without_charges_are_told_how_to_give_them(salts, capsys):
    assert "has no charges" in error_of(capsys, ["ewald", salts], 1)


def test_an_element_without_charge_is_named(salts, capsys):
    assert "Cl" in error_of(capsys, ["ewald", salts, "--charges", "Na=1"], 1)


def test_a_file_that_is_no_structure_gives_its_name_and_the_reason(salts, table, capsys):
    assert "sizes.csv" in error_of(capsys, ["ewald", table], 1)


def test_standard_input_may_begin_with_a_byte_order_mark():
    told = subprocess.run(
        [sys.executable, "-c", RUN, "plan", "-", "--work", "atoms"],
        input=b"\xef\xbb\xbfatoms\n3\n",
        capture_output=True,
        check=False,
    )
    assert (told.returncode, told.stderr) == (0, b"")


def test_a_closed_standard_output_is_no_error(table):
    call = f'{sys.executable} -c "{RUN}" plan {table} --work atoms >&-'
    told = subprocess.run(call, shell=True, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")


def test_constant_work_counts_all_columns(tmp_path, capsys):
    path = tmp_path / "sizes.csv"
    path.write_text("atoms\n2\n3\n")
    assert main(["plan", str(path), "--work", "5"]) == 0
    assert "2 items" in capsys.readouterr().out


def test_a_column_that_cannot_name_a_dim_is_told_the_cure(tmp_path, capsys):
    path = tmp_path / "sizes.csv"
    path.write_text("n atoms\n2\n")
    assert "'n atoms' cannot name a dim: rename it" in error_of(capsys, ["plan", str(path)], 1)
