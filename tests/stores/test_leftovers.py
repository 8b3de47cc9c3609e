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
from stowplan.stores.run_folder import RunFolder

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
