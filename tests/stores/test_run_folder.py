"""Laws of the folder of a run: what is saved comes back, whole, and only to its own run."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import stowplan as sp
from stowplan.errors import StoreError
from stowplan.stores import descriptors
from stowplan.stores.run_folder import MANIFEST, RunFolder


@pytest.fixture
def no_waiting(monkeypatch):
    """Leave out what makes a file outlive a crash of the machine, where hundreds are written."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


SELF = {"the plan": "a", "column 'x'": "b"}


def open_run(folder: Path, **changed: str) -> RunFolder:
    return RunFolder(folder, {**SELF, **changed}, "run")


@given(
    values=hnp.arrays(
        st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.complex_number_dtypes()),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    number=st.integers(0, 10**7),
)
def test_outputs_come_back_bit_by_bit(tmp_path_factory, values, number):
    folder = tmp_path_factory.mktemp("run")
    with open_run(folder) as batches:
        batches.save(number, [values, np.arange(3), values], ["module", "Name", "one"])
    with open_run(folder) as batches:
        assert batches.numbers() == {number}
        (found, three, again), kind = batches.read(number)
    assert kind == ["module", "Name", "one"]
    np.testing.assert_array_equal(three, np.arange(3))
    for one in (found, again):
        assert (one.dtype, one.shape) == (values.dtype, values.shape)
        assert one.tobytes() == values.tobytes()  # NaN and -0.0, too


def test_ragged_outputs_come_back_with_their_shapes(tmp_path):
    pool = sp.Ragged.from_list([np.ones((2, 3)), np.zeros((1, 3)), np.full((0, 3), 2.0)])
    view = pool[[1, 0, 0]]
    with open_run(tmp_path / "run") as batches:
        batches.save(0, [view, np.arange(3)])
        found, plain = batches.load(0)
    np.testing.assert_array_equal(found.shapes, view.shapes)
    for one, other in zip(found, view, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(plain, np.arange(3))


def test_numbers_that_numpy_does_not_know_by_itself_keep_their_dtype(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.arange(3).astype(ml_dtypes.bfloat16)
    with open_run(tmp_path / "run") as batches:
        batches.save(0, [values])
        assert batches.load(0)[0].dtype == values.dtype
        np.testing.assert_array_equal(batches.load(0)[0], values)


def test_objects_are_refused(tmp_path):
    with open_run(tmp_path / "run") as batches:
        with pytest.raises(sp.DataError, match=r"batch 2 gave objects .* pickle"):
            batches.save(2, [np.array([{}, 1], object)])
        assert not batches.numbers()


def test_a_batch_that_was_not_written_to_its_end_does_not_count(tmp_path):
    with open_run(tmp_path / "run") as batches:
        batches.save(2, [np.ones(3)])
    for name in ("batch-000005.bin.stowplan.part", "batch-000006.bin"):
        (tmp_path / "run" / name).write_bytes(b"12")  # before the rename, and before the line
    with open_run(tmp_path / "run") as batches:
        assert batches.numbers() == {2}
    assert not list((tmp_path / "run").glob("*.part"))


def test_every_flipped_byte_of_a_batch_is_found_and_no_other_batch_is_lost(tmp_path, caplog):
    folder = tmp_path / "run"
    with open_run(folder) as batches:
        for number in (0, 1):
            batches.save(number, [np.arange(5.0), sp.Ragged.from_list([np.ones(2)])])
    path = folder / "batch-000001.bin"
    content = path.read_bytes()
    for place in range(len(content)):
        broken = bytearray(content)
        broken[place] ^= 1 << place % 8
        path.write_bytes(bytes(broken))
        with open_run(folder) as batches:
            assert list(batches.readable()) == [0], place
            assert batches.numbers() == {0}
    assert caplog.text.count("run: batch 1 is computed again") == len(content)
    for cut in (content[:-1], content + b"\0", b""):
        path.write_bytes(cut)
        with open_run(folder) as batches:
            assert list(batches.readable()) == [0]
    with open_run(folder) as batches:  # and once it is computed again, it counts
        batches.save(1, [np.arange(5.0)])
    with open_run(folder) as batches:
        assert list(batches.readable()) == [0, 1]


def test_a_manifest_cut_anywhere_behind_its_header_keeps_the_lines_before(
    tmp_path, caplog, no_waiting
):
    folder = tmp_path / "run"
    with open_run(folder) as batches:
        for number in (0, 1, 2):
            batches.save(number, [np.arange(float(number))])
    content = (folder / MANIFEST).read_bytes()
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))  # of 4 lines
    cuts = {*range(int(ends[0]) + 1, len(content), 11), *ends[1:], *(ends[1:] - 1), *(ends[:3] + 1)}
    for cut in sorted(map(int, cuts)):
        (folder / MANIFEST).write_bytes(content[:cut])
        whole = {n for n in (0, 1, 2) if cut >= ends[n + 1]}  # a missing line end loses nothing
        with open_run(folder) as batches:
            assert batches.numbers() == whole
            batches.save(7, [np.ones(2)])
        with open_run(folder) as batches:  # the new line is not glued to the old one
            assert batches.numbers() == {*whole, 7}
    assert "was cut off" in caplog.text


def test_a_flipped_byte_of_a_line_costs_that_batch_alone(tmp_path):
    folder = tmp_path / "run"
    with open_run(folder) as batches:
        for number in (0, 1, 2):
            batches.record(number, 5, 9, ["out.npy", number])
    content = (folder / MANIFEST).read_bytes()
    lines = content.split(b"\n")
    first = len(lines[0]) + len(lines[1]) + 2
    for place in range(first, first + len(lines[2])):
        broken = bytearray(content)
        broken[place] ^= 4
        (folder / MANIFEST).write_bytes(bytes(broken))
        with open_run(folder) as batches:
            assert batches.numbers() == {0, 2}, place


def test_batches_in_an_output_outside_are_noted_with_where_they_are(tmp_path):
    values = np.arange(6.0)
    with open_run(tmp_path / "run") as batches:
        batches.record(4, zlib.crc32(values), values.nbytes, ["out.npy", 0, 6])
    with open_run(tmp_path / "run") as batches:
        record = batches.records()[4]
        assert (record.crc32, record.bytes) == (zlib.crc32(values), 48)
        assert (record.file, record.where) == (None, ["out.npy", 0, 6])
        assert batches.readable() == {}
        assert batches.numbers() == {4}
        with pytest.raises(ValueError, match=r"lies in \['out.npy', 0, 6\]"):
            batches.read(4)


def test_a_folder_of_another_run_is_refused_naming_what_differs(tmp_path):
    open_run(tmp_path / "run").close()
    open_run(tmp_path / "run").close()
    with pytest.raises(sp.PlanError, match=r"another run: column 'x' differs\."):
        open_run(tmp_path / "run", **{"column 'x'": "c"})
    with pytest.raises(sp.PlanError, match=r"column 'y', column 'x' differ\."):
        RunFolder(tmp_path / "run", {"the plan": "a", "column 'y'": "b"}, "run")
    open_run(tmp_path / "run").close()  # a refusal holds nothing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no manifest.* Name another folder, or .*stowplan runs clean .* --finished"),
        ("[]", '"format" is not .* Name the folder of a run, or a new one'),
        (json.dumps({"format": "stowplan run", "version": 9}), "has version 9"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(sp.PlanError, match=message):
        open_run(tmp_path)


def test_a_folder_of_the_first_version_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": "stowplan finished batches", "version": 1}')
    with pytest.raises(sp.PlanError, match="has version 1; this stowplan reads version 2"):
        open_run(tmp_path)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(sp.PlanError, match=r"none of a run's, thesis\.tex for one"):
        open_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o500)
    else:  # nothing is read-only to root but a file system
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(sp.PlanError, match=r"cannot be written to.*Nothing was computed"):
        open_run(folder)
    folder.chmod(0o700)
    monkeypatch.undo()
    open_run(folder).close()


HOLD = """
import sys, time
from stowplan.stores.run_folder import RunFolder
run = RunFolder(sys.argv[1], {"the plan": "a", "column 'x'": "b"}, "run")
print("open", flush=True)
time.sleep(60)
"""


def test_a_folder_is_open_in_one_process_at_a_time_and_free_once_that_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(sp.PlanError, match=f"in use by another run, process {other.pid}"):
            open_run(tmp_path / "run")
        other.send_signal(signal.SIGKILL)
    with open_run(tmp_path / "run"), pytest.raises(sp.PlanError, match=f"process {os.getpid()}"):
        open_run(tmp_path / "run")


def test_a_child_that_outlives_its_parent_does_not_hold_the_folder(tmp_path):
    batches = open_run(tmp_path / "run")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, b"begun")
        time.sleep(60)
        os._exit(0)
    try:
        assert os.read(reader, 5) == b"begun"
        batches.close()
        open_run(tmp_path / "run").close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_run_that_is_killed_at_any_moment_goes_on_with_whole_batches(tmp_path):
    rng = np.random.default_rng(11)

    def outputs(number):
        return [np.full(20_000, number), sp.Ragged.from_list([np.arange(float(number))])]

    def compute():
        with open_run(tmp_path / "run") as batches:
            done = batches.readable()
            for number in (n for n in range(40) if n not in done):
                batches.save(number, outputs(number))

    seen = 0
    for _ in range(15):
        child = os.fork()
        if not child:
            compute()
            os._exit(0)
        time.sleep(rng.uniform(0.001, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if (tmp_path / "run" / MANIFEST).is_file():
            with open_run(tmp_path / "run") as batches:
                found = batches.readable()
            assert len(found) >= seen  # what was done stays done
            seen = len(found)
    compute()
    with open_run(tmp_path / "run") as batches:
        found = batches.readable()
    assert sorted(found) == list(range(40))
    for number, ((plain, ragged), _) in found.items():
        expected = outputs(number)
        np.testing.assert_array_equal(plain, expected[0])
        np.testing.assert_array_equal(ragged.values, expected[1].values)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"lock", MANIFEST, *[f"batch-{n:06d}.bin" for n in range(40)]}


def test_a_full_disk_is_told_and_leaves_what_is_finished(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    values = np.arange(1000.0)
    with open_run(tmp_path / "run") as batches:
        batches.save(0, [values])
        with monkeypatch.context() as patch:
            patch.setattr(descriptors, "_pwritev", full)
            with pytest.raises(StoreError, match=r"batch-000001\.bin finds the disk full: 8000"):
                batches.save(1, [values])
        assert {path.name for path in batches.folder.iterdir()} == {
            "lock", MANIFEST, "batch-000000.bin",
        }  # fmt: skip
        batches.save(2, [values])
        assert list(batches.readable()) == [0, 2]


LIMITED = """
import resource, signal, sys
import numpy as np
import stowplan as sp
from stowplan.stores.run_folder import RunFolder
assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
run = RunFolder(sys.argv[1], {"the plan": "a", "column 'x'": "b"}, "run")
run.save(0, [np.arange(5000.0)])
try:
    run.save(1, [np.arange(9000.0)])
except OSError as error:
    print(type(error).__name__, error)
"""


def test_a_limit_on_the_size_of_files_is_an_error_and_kills_nobody(tmp_path):
    assert resource.RLIM_INFINITY
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("StoreError ")
    assert "batch-000001.bin is larger than a file may be here" in done.stdout
    assert "72000 bytes" in done.stdout
    with open_run(tmp_path / "run") as batches:
        np.testing.assert_array_equal(batches.readable()[0][0][0], np.arange(5000.0))
        batches.save(1, [np.arange(9000.0)])


def test_a_manifest_that_finds_the_disk_full_goes_on_when_there_is_space(tmp_path, monkeypatch):
    write = os.write

    def short(descriptor, content):
        return write(descriptor, content[:20])

    with open_run(tmp_path / "run") as batches:
        batches.record(0, 1, 1, "x")
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", short)
            with pytest.raises(StoreError, match=r"manifest\.jsonl finds the disk full"):
                batches.record(1, 1, 1, "x")
        assert batches.numbers() == {0}
        batches.record(2, 1, 1, "x")
    with open_run(tmp_path / "run") as batches:
        assert batches.numbers() == {0, 2}
