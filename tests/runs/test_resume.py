"""Runs that are cut off go on: at most what was in flight is computed again, bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import stowplan as sp
from stowplan.adapters.intra_op import usable_cores
from stowplan.recipes import fields
from stowplan.runs import load_budgets, streaming
from stowplan.runs.execution import run
from stowplan.runs.loads import MOST_TOGETHER
from stowplan.stores.manifest import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS: list[list[int]] = []
"""Items of each part that was computed."""


def names(folder: Path) -> list[str]:
    """Names of what a folder holds."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def computed(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    own = streaming._Stream._computed

    def logged(self: Any, part: Any) -> Any:
        if len(part.items):
            CALLS.append(part.items.tolist())
        return own(self, part)

    monkeypatch.setattr(streaming._Stream, "_computed", logged)
    CALLS.clear()
    return CALLS


@sp.kernel("(n,2),()->(n),()", ragged="n", fill={"x": 0.0}, static=("power",))
def weighed(x, weight, *, scale=1.0, power=1):
    """Rows, and their norm."""
    rows = scale * (x * weight[..., None, None]).sum(axis=-1) ** power
    return rows, np.sqrt((rows * rows).sum(axis=-1))


SIZES = [3, 1, 4, 1, 5, 2, 6, 2]


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Any]:
    """A run of 8 parts of one item each, in a folder, with both outputs in memory or on disk."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(sum(SIZES), 2)))
    weight = rng.normal(size=len(SIZES))

    def go(out: bool = False, kernel: Any = weighed, **how: Any) -> list[np.ndarray]:
        x = sp.Ragged(np.load(tmp_path / "x.npy"), SIZES).map_values(lambda _: tmp_path / "x.npy")
        where = [tmp_path / "rows.npy", tmp_path / "norms.npy"] if out else None
        how = {"rows": 1, "resume": tmp_path / "run", "out": where, **how}
        rows, norms = run(kernel, [x, how.pop("weight", weight)], **how)
        values = rows.compact().values
        return [v.read(0, v.shape[0]) if hasattr(v, "read") else v for v in (values, norms)]

    return go


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="children are waited for by descriptor")
@pytest.mark.parametrize(
    ("name", "kills", "parts", "each"),
    [
        ("memory", 30, 90, 1), ("files", 30, 90, 1), ("iterate", 12, 40, 4), ("batch", 12, 24, 1),
        ("solve_one_by_one", 12, 24, 1), ("solve", 12, 24, 1),
    ],
)  # fmt: skip
def test_a_job_that_is_killed_at_random_moments_is_finished_bit_for_bit(
    tmp_path, name, kills, parts, each
):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "killed_jobs.py"), name, str(tmp_path),
         str(kills), str(kills)], check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    killed = int(done.stdout)
    assert killed >= kills // 2
    with np.load(tmp_path / "found.npz") as found, np.load(tmp_path / "wanted.npz") as wanted:
        same([found[key] for key in wanted], [wanted[key] for key in wanted])
    calls = Counter((tmp_path / "log").read_text().split())
    items = {int(item) for line in calls for item in line.split(",")}
    assert len(items) >= parts
    assert min(calls.values()) >= each
    again = sum(calls.values()) - each * len(calls)
    # solves are planned with a budget, which has room for a load on each core
    computed = min(usable_cores(), MOST_TOGETHER) if name == "solve" else 1
    assert again <= (computed + 1) * each * killed  # one more is being written
    assert not list(tmp_path.glob("*.stowplan.*"))
    assert not list(tmp_path.glob("stowplan-*[0-9]-*/*"))


@pytest.mark.parametrize("out", [False, True])
def test_a_run_that_is_done_computes_nothing_again(job, out):
    first = job(out)
    assert len(CALLS) == 8
    CALLS.clear()
    same(job(out), first)
    assert not CALLS


@pytest.mark.parametrize("out", [False, True])
def test_a_run_that_fails_goes_on_where_it_was(job, tmp_path, out, monkeypatch):
    monkeypatch.setattr(load_budgets, "most_together", lambda *_: 1)  # none beside the one
    wanted = job(False, resume=None)
    own = streaming.Reads.fill
    monkeypatch.setattr(
        streaming.Reads, "fill",
        lambda self, load, buffer: 1 / 0 if 5 in load.items else own(self, load, buffer),
    )  # fmt: skip
    CALLS.clear()
    with pytest.raises(ZeroDivisionError) as caught:
        job(out)
    assert "5 parts were, and they are kept in" in caught.value.__notes__[0]
    assert len(CALLS) == 5
    monkeypatch.setattr(streaming.Reads, "fill", own)
    CALLS.clear()
    same(job(out), wanted)
    assert [item for part in CALLS for item in part] == [5, 6, 7]
    left = {"x.npy", "run", *(["rows.npy", "norms.npy"] if out else [])}
    assert set(names(tmp_path)) == left


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def test_a_flipped_byte_in_a_result_in_memory_is_found(job, tmp_path):
    wanted = job()
    for number, path in enumerate(sorted((tmp_path / "run").glob("batch-*.bin"))):
        size = path.stat().st_size
        for place in {0, 7, size // 2, size - 1}:
            flip(path, place)
            CALLS.clear()
            same(job(), wanted)
            assert [[number]] == CALLS


@pytest.mark.parametrize("finished", [True, False])
def test_a_flipped_byte_in_an_output_is_found(job, tmp_path, finished, monkeypatch):
    wanted = job(True)
    starts = np.cumsum([0, *SIZES])
    for place in range(0, 8 * sum(SIZES), 13):
        path = tmp_path / "rows.npy"
        if not finished:
            for name in ("rows.npy", "norms.npy"):
                (tmp_path / name).rename(tmp_path / f"{name}.stowplan.resumable")
            path = tmp_path / "rows.npy.stowplan.resumable"
        flip(path, 128 + place)
        CALLS.clear()
        same(job(True), wanted)
        assert [[int(np.searchsorted(starts, place // 8, side="right")) - 1]] == CALLS
    flip(tmp_path / "norms.npy", 128 + 8 * 6)
    CALLS.clear()
    same(job(True), wanted)
    assert CALLS == [[6]]


def test_an_output_that_was_removed_is_computed_again(job, tmp_path):
    wanted = job(True)
    (tmp_path / "norms.npy").unlink()
    CALLS.clear()
    same(job(True), wanted)
    assert len(CALLS) == 8


@pytest.mark.parametrize("cut", [1, 2, 9, 40])
def test_a_manifest_that_is_cut_off_loses_a_batch(job, tmp_path, cut):
    wanted = job()
    path = tmp_path / "run" / MANIFEST
    path.write_bytes(path.read_bytes()[:-cut])
    CALLS.clear()
    same(job(), wanted)
    assert ([[7]] if cut > 1 else []) == CALLS  # a line that lacks its end alone is whole
    CALLS.clear()
    same(job(), wanted)
    assert not CALLS


def test_a_line_of_a_manifest_that_is_damaged_loses_its_batch(job, tmp_path):
    wanted = job()
    path = tmp_path / "run" / MANIFEST
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(1, 9):
        path.write_bytes(b"".join([*lines[:number], b"\0" * 30 + b"\n", *lines[number + 1 :]]))
        CALLS.clear()
        same(job(), wanted)
        assert [[number - 1]] == CALLS


@sp.kernel("(n,2),()->(n),()", ragged="n", fill={"x": 0.0}, static=("power",))
def other(x, weight, *, scale=1.0, power=1):
    """Rows, and their norm, otherwise."""
    rows = scale * (x * weight[..., None, None]).sum(axis=-1) ** power
    return rows, np.sqrt((rows * rows).sum(axis=-1) + 0)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rows": 2}, "the plan"),
        ({"scale": 2.0}, "scale="),
        ({"power": 2}, "power="),
        ({"weight": np.ones(8)}, "column 'weight'"),
        ({"kernel": other}, "the kernel"),
        ({"out": True}, "out="),
        ({"on": "torch"}, "the framework"),
    ],
)
def test_another_run_is_refused_with_what_differs(job, tmp_path, change, what):
    if "on" in change:
        pytest.importorskip(change["on"])
    first = job()
    plan = None if "rows" in change else {}
    if plan is None:
        change = {**change, "rows": None, "plan": _plan(tmp_path, 2)}
    with pytest.raises(sp.PlanError, match=rf"another run: .*{what}.* differ") as caught:
        job(**change)
    assert "Give what that run had, or name a new folder" in str(caught.value)
    CALLS.clear()
    same(job(), first)
    assert not CALLS


def _plan(folder: Path, rows: int) -> Any:
    x = sp.Ragged(np.load(folder / "x.npy"), SIZES)
    return sp.plan(weighed, [x, np.ones(8)], rows=rows)


def test_another_file_of_data_is_refused(job, tmp_path):
    job()
    np.save(tmp_path / "x.npy", np.ones((sum(SIZES), 2)))
    with pytest.raises(sp.PlanError, match="column 'x' differs"):
        job()


def test_numbers_of_a_run_with_outputs_on_disk_are_no_results(job):
    """The folder of such a run holds a crc32 in place of each part."""
    job(True)
    with pytest.raises(sp.PlanError, match="out= differs"):
        job(False)


def test_a_folder_of_data_is_no_folder_of_a_run(job, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("")
    with pytest.raises(sp.PlanError, match=r"precious\.txt"):
        job()


def test_a_folder_in_use_is_refused_by_a_second_process(job, tmp_path):
    job()
    code = (
        "import sys, time; from stowplan.stores.locks import Lock; "
        "lock = Lock.take(sys.argv[1]); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run" / "lock")], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        with pytest.raises(sp.PlanError, match="in use by another run"):
            job()
        holder.kill()
    job()


@pytest.mark.parametrize("out", [False, True])
def test_a_run_directory_that_cannot_be_written_is_refused_before_anything(
    job, tmp_path, out, monkeypatch
):
    (tmp_path / "run").mkdir()
    writable = os.access
    monkeypatch.setattr(
        os, "access",
        lambda path, mode, **how: Path(path) != tmp_path / "run" and writable(path, mode, **how),
    )  # fmt: skip
    with pytest.raises(sp.PlanError, match=r"read-only.*Nothing was computed"):
        job(out)
    assert not CALLS
    assert set(names(tmp_path)) == {"run", "x.npy"}


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
import stowplan as sp

@sp.kernel("(k)->(k)")
def twice(x):
    return 2 * x

folder, limit, mode = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    out = folder / "o.npy" if mode == "out" else None
    found = sp.run(twice, [folder / "x.npy"], rows=4, out=out, resume=folder / "run")
except sp.StoreError as error:
    print(error)
    sys.exit(3)
np.save(folder / "found.npy", found.read(0, 64) if out else found)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE")
@pytest.mark.parametrize("mode", ["out", "memory"])
def test_a_full_disk_is_told_and_what_is_done_is_kept(tmp_path, mode):
    x = np.random.default_rng(0).normal(size=(64, 256))
    np.save(tmp_path / "x.npy", x)
    script = tmp_path / "full.py"
    script.write_text(textwrap.dedent(FULL))

    def go(limit: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(script), str(tmp_path), str(limit), mode],
            check=False, capture_output=True, text=True,
        )  # fmt: skip

    limit = 100_000 if mode == "out" else 7_000  # of an output of 131 kB; of parts of 8 kB
    full = go(limit)
    assert full.returncode == 3, full.stdout + full.stderr
    needed = 64 * 256 * 8 + 128 if mode == "out" else 4 * 256 * 8
    assert f"{needed} bytes" in full.stdout
    assert "are free" in full.stdout
    assert ("o.npy" if mode == "out" else "batch-000000.bin") in full.stdout
    assert not (tmp_path / "o.npy").exists()
    done = go(1 << 30)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "found.npy").tobytes() == (2 * x).tobytes()
    left = {"x.npy", "full.py", "run", "found.npy", *(["o.npy"] if mode == "out" else [])}
    assert set(names(tmp_path)) == left


def test_a_disk_that_fills_up_in_the_middle_keeps_what_is_done(job, tmp_path, monkeypatch):
    from stowplan.stores import run_folder

    wanted = job(resume=None)
    own, written = run_folder.write_batch, []

    def write(path: Path, outputs: Any, where: str) -> Any:
        if len(written) == 3:
            raise sp.StoreError(f"{path} finds the disk full: 64 bytes are to be written")
        written.append(path)
        return own(path, outputs, where)

    monkeypatch.setattr(run_folder, "write_batch", write)
    with pytest.raises(sp.StoreError, match="disk full"):
        job()
    monkeypatch.setattr(run_folder, "write_batch", own)
    CALLS.clear()
    same(job(), wanted)
    assert [item for part in CALLS for item in part] == [3, 4, 5, 6, 7]


def test_a_solve_goes_on_and_is_refused_where_it_is_another(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for number in range(6):
        np.save(tmp_path / f"s{number}.npy", rng.normal(size=(4, 4, 4)))
    store = [tmp_path / f"s{number}.npy" for number in range(6)]
    how: dict[str, Any] = {"spacing": 0.5, "lam": 1.0, "rows": 1}
    wanted = fields.solve(store, out=tmp_path / "whole.npy", **how).read(0, 6)
    how.update(out=tmp_path / "o.npy", resume=tmp_path / "run")
    own = streaming.Reads.fill
    monkeypatch.setattr(
        streaming.Reads, "fill",
        lambda self, load, buffer: 1 / 0 if 3 in load.items else own(self, load, buffer),
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        fields.solve(store, **how)
    monkeypatch.setattr(streaming.Reads, "fill", own)
    assert not (tmp_path / "o.npy").exists()
    for change, what in (
        ({"lam": 2.0}, "lam="),
        ({"beta": 0.9}, "beta="),
        ({"spacing": 0.25}, "spacing="),
        ({"out": tmp_path / "p.npy"}, "out="),
    ):
        with pytest.raises(sp.PlanError, match=what):
            fields.solve(store, **{**how, **change})
    CALLS.clear()
    found = fields.solve(store, **how)
    assert sorted(item for part in CALLS for item in part) == [3, 4, 5]  # on two threads
    assert found.read(0, 6).tobytes() == wanted.tobytes()
    left = {"whole.npy", "o.npy", "run", *(path.name for path in store)}
    assert set(names(tmp_path)) == left


def test_sums_of_fields_go_on(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "s.npy", rng.normal(size=(8, 8, 8, 30)))
    how: dict[str, Any] = {"spacing": 0.5, "rows": 1, "budget": "300 KiB"}
    wanted = fields.spectrum(tmp_path / "s.npy", **how)
    CALLS.clear()
    first = fields.spectrum(tmp_path / "s.npy", resume=tmp_path / "run", **how)
    parts = len(CALLS)
    assert parts > 3
    path = sorted((tmp_path / "run").glob("batch-*.bin"))[1]
    flip(path, 3)
    CALLS.clear()
    again = fields.spectrum(tmp_path / "s.npy", resume=tmp_path / "run", **how)
    assert len(CALLS) == 1
    for found in (first, again):
        assert found[0].sums.tobytes() == wanted[0].sums.tobytes()
    shutil.rmtree(tmp_path / "run")


def test_functions_of_a_batch_of_fields_are_told_apart(tmp_path):
    with sp.FieldBatch(budget="1 MiB") as batch:
        for number in range(4):
            batch.add(np.full((2, 2), float(number)))
        once = batch.run(lambda fields: fields.sum(axis=(1, 2)), resume=tmp_path / "run")
        assert once.tolist() == [0, 4, 8, 12]
        with pytest.raises(sp.PlanError, match="the kernel"):
            batch.run(lambda fields: fields.max(axis=(1, 2)), resume=tmp_path / "run")
