"""Laws of plans on disk: half a plan is no plan, and a failed save leaves nothing."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import stowplan as sp
from stowplan.planners import Plan, assign_slots

CURE = "Save the plan again: .* resume=..., or .*: stowplan runs clean .* --finished"


@pytest.mark.parametrize(
    ("missing", "there"), [("p.npz", r"p\.json"), ("p.json", r"p\.npz")]
)  # fmt: skip
def test_half_a_plan_is_named_with_a_cure(tmp_path, missing, there):
    assign_slots({"a": [1, 2]}, [{}]).save(tmp_path / "p")
    (tmp_path / missing).unlink()
    with pytest.raises(sp.PlanError, match=f"{missing} is missing; .*{there} is there .*{CURE}"):
        Plan.load(tmp_path / "p")


def test_no_plan_at_all_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Plan.load(tmp_path / "p")


@pytest.mark.parametrize("name", ["p.json", "p.npz"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_plan_that_was_cut_off_is_refused_with_a_cure(tmp_path, name, share):
    assign_slots({"a": [1, 2]}, [{}]).save(tmp_path / "p")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(sp.PlanError, match=f"load: .*{name} .*{CURE}"):
        Plan.load(tmp_path / "p")


LIMITED = """
import resource, sys
import numpy as np
import stowplan as sp
from stowplan.planners import assign_slots
plan = assign_slots({"a": np.ones(20_000, int)}, [{"a": 1}])
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    plan.save(sys.argv[1])
except OSError as error:
    print(type(error).__name__, error)
"""


def test_a_limit_on_the_size_of_files_names_the_plan_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "plan")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"StoreError save: {tmp_path / 'plan.npz'} is larger than a file")
    assert "Raise the limit (ulimit -f unlimited)" in done.stdout
    assert not done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, sp.StoreError, r"plan\.json finds the disk full: .* bytes .* Free some"),
        (errno.EIO, OSError, r"plan\.json"),
    ],
)
def test_a_failed_save_keeps_the_plan_that_was_there(tmp_path, monkeypatch, number, kind, message):
    before = assign_slots({"a": [1, 2]}, [{}])
    before.save(tmp_path / "plan")

    def fail(*_, **__):
        raise OSError(number, "of the disk")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(kind, match=message):
            assign_slots({"a": [1, 2, 3]}, [{}]).save(tmp_path / "plan")
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "plan.npz"}
    np.testing.assert_array_equal(Plan.load(tmp_path / "plan").lengths, before.lengths)
