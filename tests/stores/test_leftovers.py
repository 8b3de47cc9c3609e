"""Laws of `stowplan runs`: all that runs leave is found, and only what is dead goes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import stowplan as sp
from stowplan.cli import main
from stowplan.stores.arrays import create_array
from stowplan.stores.leftovers import find_leftovers, remove_leftover
from stowplan.stores.locks import Lock
from stowplan.stores.run_folder import LARGE, MANIFEST, RunFolder

MAKE = """
import sys, time
import numpy as np
from stowplan.stores.arrays import create_array
from stowplan.stores.run_folder import RunFolder
from stowplan.stores.scratch import Scratch
top = sys.argv[1]
scratch = Scratch(top, "test")
stored = scratch.save(np.ones(1000))
empty = RunFolder(top + "/empty", {}, "run", batches=5)
begun = RunFolder(top + "/begun", {}, "run", batches=5)
begun.save(2, [np.ones(100)])
part = create_array(top + "/part.npy", (100,), "f8", "test")
kept = create_array(top + "/kept.npy", (100,), "f8", "test", resumable=True)
print("made", flush=True)
time.sleep(60)
"""


@pytest.fixture
def make(tmp_path):
    """Start a process that makes one of each kind in a folder."""
    started = []

    def start(name: str) -> subprocess.Popen[bytes]:
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", MAKE, str(tmp_path / name)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        return process

    yield start
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


def names(folder: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in folder.iterdir()}


ALL = {"stowplan", "empty", "begun", "part.npy.stowplan.part", "kept.npy.stowplan.resumable"}


def test_only_what_the_dead_have_left_is_removed(tmp_path, make, capsys):
    living, dead = make("living"), make("dead")
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    (tmp_path / "dead" / "mine.npy").write_bytes(b"mine")
    found = find_leftovers(tmp_path)
    assert len(found) == 10
    for one in found:
        assert one.alive == ("living" in one.path.parts)
    run = next(one for one in found if one.path == tmp_path / "dead" / "begun")
    assert (run.kind, run.done, run.batches) == ("run", 1, 5)
    content = sum(path.stat().st_size for path in run.path.iterdir())
    assert run.bytes == content > 800
    assert main(["runs", "list", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "dead/begun  run to resume" in shown
    assert "dead, 1 of 5 batches done" in shown
    assert "10 found" in shown

    assert main(["runs", "clean", str(tmp_path), "--dry-run"]) == 0
    assert "3 to remove" in capsys.readouterr().out
    assert len(find_leftovers(tmp_path)) == 10
    assert main(["runs", "clean", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "3 removed" in shown
    assert "resume it, or remove it with --finished" in shown
    assert names(tmp_path / "living") == ALL
    assert names(tmp_path / "dead") == {"begun", "kept.npy.stowplan.resumable", "mine.npy"}
    assert main(["runs", "clean", str(tmp_path), "--finished"]) == 0
    assert names(tmp_path / "living") == ALL
    assert names(tmp_path / "dead") == {"mine.npy"}

    living.send_signal(signal.SIGKILL)
    living.wait()
    assert main(["runs", "clean", str(tmp_path), "--finished"]) == 0
    assert not find_leftovers(tmp_path)


def test_a_run_that_was_opened_after_it_was_listed_is_not_removed(tmp_path):
    RunFolder(tmp_path / "run", {}, "run").close()
    (found,) = find_leftovers(tmp_path / "run")
    assert not found.alive
    with RunFolder(tmp_path / "run", {}, "run"):
        assert not remove_leftover(found)
        assert (tmp_path / "run").is_dir()
    assert remove_leftover(found)
    assert not (tmp_path / "run").exists()
    assert remove_leftover(found)  # somebody else has done it


def test_the_list_is_given_as_json(tmp_path, capsys):
    with RunFolder(tmp_path / "run", {}, "run") as run:
        run.save(0, [np.ones(2)])
        assert main(["runs", "list", str(tmp_path), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["kind"], one["alive"], one["done"], one["batches"]) == ("run", True, 1, None)


def test_unfinished_zarr_is_found_as_a_whole(tmp_path):
    pytest.importorskip("zarr")
    out = create_array(tmp_path / "a.zarr", (4, 100), "f8", "test")
    out.write(0, np.ones((4, 100)))
    (found,) = find_leftovers(tmp_path)
    assert (found.kind, found.alive) == ("part", True)
    assert found.bytes > 3200
    out.close()
    (found,) = find_leftovers(tmp_path)
    assert not found.alive
    assert remove_leftover(found)
    assert not list(tmp_path.iterdir())


def test_other_folders_are_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.jsonl").write_text('{"format": "of somebody else"}\n')
    (tmp_path / "stowplan-scratch-notes").mkdir()
    assert not find_leftovers(tmp_path)
    with pytest.raises(sp.DataError, match="there is no such folder"):
        find_leftovers(tmp_path / "no")
    assert main(["runs", "list", str(tmp_path / "no")]) == 1
    assert "there is no such folder" in capsys.readouterr().err


def begun(folder: Path, batches: int = 1) -> Path:
    """Make the folder of a run that is over."""
    with RunFolder(folder, {}, "run") as run:
        for number in range(batches):
            run.save(number, [np.ones(2)])
    return folder


@sp.kernel("(i)->()", ragged=("i",))
def total(x):
    return x.sum(-1)


@pytest.mark.parametrize("options", [["--finished"], ["--finished", "--dry-run"]])
def test_of_the_folder_of_a_run_only_what_the_run_wrote_is_removed(tmp_path, capsys, options):
    rows = {"x": [np.ones(n) for n in (2, 3, 3)]}
    sp.run(total, rows, resume=tmp_path / "rf")
    np.save(tmp_path / "rf" / "my_results.npy", np.arange(3))
    (tmp_path / "rf" / "batch-notes.bin").write_bytes(b"mine")
    (tmp_path / "rf" / "plots").mkdir()
    before = names(tmp_path / "rf")
    assert {"plan.json", "plan.npz", "lock", MANIFEST, "batch"} < before
    assert main(["runs", "clean", str(tmp_path), *options]) == 0
    shown = capsys.readouterr().out
    assert f"the run's, {tmp_path / 'rf' / 'batch-notes.bin'} for one" in shown
    left = {path.name for path in (tmp_path / "rf").iterdir()}
    if "--dry-run" in options:
        assert names(tmp_path / "rf") == before
    else:
        assert left == {"my_results.npy", "batch-notes.bin", "plots"}
        assert not find_leftovers(tmp_path)


def test_a_run_without_finished_batches_leaves_the_files_of_others(tmp_path, capsys):
    begun(tmp_path / "rf", batches=0)
    (tmp_path / "rf" / "my_results.npy").write_bytes(b"mine")
    (found,) = find_leftovers(tmp_path)
    own = sum((tmp_path / "rf" / name).stat().st_size for name in ("lock", MANIFEST))
    assert found.bytes == own
    assert main(["runs", "clean", str(tmp_path)]) == 0
    assert "the folder stays" in capsys.readouterr().out
    assert names(tmp_path / "rf") == {"my_results.npy"}


def test_a_finished_output_in_the_folder_of_its_run_stays(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(6, 2))
    mean = sp.kernel("(i)->()")(lambda x: x.mean(-1))
    rf = tmp_path / "rf"
    rf.mkdir()
    sp.run(mean, {"x": tmp_path / "x.npy"}, out=[rf / "later.npy"], resume=rf)
    (rf / "later.npy").rename(rf / "o0.npy")
    part = create_array(rf / "o1.npy", (3,), "f8", "test")
    part.close()
    assert [one.kind for one in find_leftovers(rf)] == ["part", "run"]
    assert main(["runs", "clean", str(rf), "--finished"]) == 0
    assert names(rf) == {"o0.npy"}
    np.testing.assert_array_equal(np.load(rf / "o0.npy"), np.arange(6) * 2 + 0.5)


def test_a_run_in_the_folder_of_another_is_one_of_its_own(tmp_path, capsys):
    begun(tmp_path / "rf", batches=0)
    begun(tmp_path / "rf" / LARGE)
    assert [one.path.name for one in find_leftovers(tmp_path)] == [LARGE, "rf"]
    assert main(["runs", "clean", str(tmp_path), "--finished", "--dry-run"]) == 0
    assert "the folder stays" not in capsys.readouterr().out
    assert main(["runs", "clean", str(tmp_path)]) == 0
    assert [one.path.name for one in find_leftovers(tmp_path)] == [LARGE]
    begun(tmp_path / "rf", batches=0)
    assert main(["runs", "clean", str(tmp_path), "--finished"]) == 0
    assert not list(tmp_path.iterdir())


def test_what_a_living_run_has_in_its_folder_is_alive(tmp_path):
    with RunFolder(tmp_path / "rf", {}, "run"):
        (tmp_path / "rf" / "batch-000001.bin.stowplan.part").write_bytes(b"half")
        (tmp_path / "rf" / "o.npy.stowplan.part").write_bytes(b"half")
        found = find_leftovers(tmp_path)
        assert [(one.kind, one.alive) for one in found] == [("part", True), ("run", True)]


def test_an_array_that_was_set_aside_goes_once_another_has_its_name(tmp_path, capsys):
    old = tmp_path / "a.zarr.stowplan.old"
    old.mkdir()
    (old / "zarr.json").write_text("{}")
    (tmp_path / "mine.stowplan.old").write_text("a file is none of stowplan's")
    assert main(["runs", "list", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "a.zarr.stowplan.old  array set aside, 2 B" in shown
    assert "1 found" in shown
    for options in (["--finished", "--dry-run"], ["--finished"], []):
        assert main(["runs", "clean", str(tmp_path), *options]) == 0
        shown = capsys.readouterr().out
        assert f"{tmp_path / 'a.zarr'} is missing and this is the only copy; mv {old}" in shown
        assert "0 B" in shown.splitlines()[-1]
    (found,) = find_leftovers(tmp_path)
    assert not remove_leftover(found)
    assert (old / "zarr.json").is_file()

    (tmp_path / "a.zarr").mkdir()
    lock = Lock.take(tmp_path / "a.zarr")
    assert find_leftovers(tmp_path)[0].alive
    assert not remove_leftover(found)
    lock.release()
    assert main(["runs", "clean", str(tmp_path)]) == 0
    assert "1 removed" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"a.zarr", "mine.stowplan.old"}


def test_a_crash_between_two_renames_leaves_the_old_array(tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    for value in (1.0, 2.0):
        out = create_array(tmp_path / "a.zarr", (4,), "f8", "test", overwrite=True)
        out.write(0, np.full(4, value))
        if value == 1.0:
            out.finish()
            out.close()
    rename = Path.rename

    def crash(path, target):
        if path.name.endswith(".part"):
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            out.finish()
    assert {(one.kind, one.alive) for one in find_leftovers(tmp_path)} == {
        ("old", True), ("part", True),
    }  # fmt: skip
    out.close()
    assert main(["runs", "clean", str(tmp_path), "--finished"]) == 0
    (found,) = find_leftovers(tmp_path)
    found.path.rename(found.target)
    import zarr

    assert zarr.open_array(tmp_path / "a.zarr", mode="r")[:].tolist() == [1.0] * 4


@pytest.mark.parametrize("content", [b"", b'{"format": "stowplan ru', b"\0" * 80])
def test_a_run_whose_manifest_is_damaged_is_listed_and_goes_with_finished(
    tmp_path, capsys, content
):
    (begun(tmp_path / "rf") / MANIFEST).write_bytes(content)
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert "dead, its manifest is damaged" in capsys.readouterr().out
    assert main(["runs", "list", str(tmp_path), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["kind"], one["damaged"], one["done"]) == ("run", True, None)
    cure = f"Name another folder, or .* stowplan runs clean {tmp_path / 'rf'} --finished"
    with pytest.raises(sp.PlanError, match=f"run: .* is no manifest: .* {cure}"):
        RunFolder(tmp_path / "rf", {}, "run")
    assert main(["runs", "clean", str(tmp_path)]) == 0
    assert "its batches may be whole; remove it with --finished" in capsys.readouterr().out
    assert names(tmp_path / "rf") == {"lock", MANIFEST, "batch"}
    assert main(["runs", "clean", str(tmp_path), "--finished"]) == 0
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_with_the_name_of_a_manifest_alone_is_no_run(tmp_path):
    (tmp_path / MANIFEST).write_text("of somebody else")
    assert not find_leftovers(tmp_path)


def test_a_link_to_a_run_is_followed(tmp_path):
    begun(tmp_path / "rf")
    (tmp_path / "link").symlink_to(tmp_path / "rf", target_is_directory=True)
    assert [one.path for one in find_leftovers(tmp_path / "link")] == [tmp_path / "rf"]
    assert main(["runs", "clean", str(tmp_path / "link"), "--finished"]) == 0
    assert not (tmp_path / "rf").exists()


def test_the_folder_one_stands_in_is_cleaned(tmp_path, monkeypatch):
    monkeypatch.chdir(begun(tmp_path / "rf"))
    assert main(["runs", "clean", ".", "--finished"]) == 0
    assert not list(tmp_path.iterdir())


def test_a_file_is_told_from_a_folder_that_is_not_there(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.ones(2))
    assert main(["runs", "list", str(tmp_path / "x.npy")]) == 1
    assert "x.npy is a file, not a folder. Name the folder" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["plan.npz", "plan.json"])
def test_a_resumed_run_with_half_a_plan_is_refused_with_a_cure_or_planned_anew(tmp_path, missing):
    rows = {"x": [np.ones(n) for n in (2, 3, 3)]}
    rf = tmp_path / "rf"
    sp.run(total, rows, resume=rf)
    (rf / missing).unlink()
    if missing == "plan.json":  # as a crash between two renames leaves it
        assert sp.run(total, rows, resume=rf).tolist() == [2, 3, 3]
        return
    cure = f"name another, resume=..., or .* stowplan runs clean {rf} --finished"
    with pytest.raises(sp.PlanError, match=f"plan.npz is missing; .* {cure}"):
        sp.run(total, rows, resume=rf)
    assert main(["runs", "clean", str(rf), "--finished"]) == 0
    assert sp.run(total, rows, resume=rf).tolist() == [2, 3, 3]
