"""Memory of runs that read from disk: within what is planned, and that within the budget."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stowplan as sp
from stowplan.runs import load_budgets, streaming

MIB = 1 << 20


def names(folder: Path) -> list[str]:
    """Names of what a folder holds."""
    return sorted(path.name for path in folder.iterdir())


@sp.kernel("(x,y,z,lines)->()", ragged=("x", "y", "z", "lines"), exact=("x", "y", "z", "lines"))
def power(field):
    """Sum of the squares of a transform."""
    modes = np.fft.fftn(field, axes=(-4, -3, -2), norm="ortho")
    return (modes.real**2 + modes.imag**2).sum(axis=(-4, -3, -2, -1))


@sp.kernel("(k)->(k)")
def turned(x):
    """As large as its input."""
    return x[..., ::-1] * 2


@sp.kernel("(n)->(n)", ragged="n", fill={"x": 0.0})
def doubled(x):
    """As large as its input, and ragged."""
    return 2 * x


def make(folder: Path, job: str) -> tuple[Any, list[Any], dict[str, Any]]:
    """Give a kernel, columns on disk and the outputs of a job of 32 MiB."""
    path = folder / "x.npy"
    rng = np.random.default_rng(0)
    if job == "fields":
        np.save(path, rng.normal(size=(64 * 8 * 8 * 8 * 128,)).view(np.complex128))
        shapes = np.full((32, 4), (8, 8, 8, 128))
        layout = sp.Ragged(np.zeros(32 * 512 * 128, np.int8), shapes).layout
        return power, [sp.Ragged.from_layout(path, layout)], {}
    if job == "ragged":
        sizes = rng.integers(100, 9000, 900)
        np.save(path, rng.normal(size=sizes.sum()))
        layout = sp.Ragged(np.zeros(sizes.sum(), np.int8), sizes).layout
        return doubled, [sp.Ragged.from_layout(path, layout)], {"out": folder / "o.npy"}
    np.save(path, rng.normal(size=(1024, 4096)))
    return turned, [path], {"out": folder / "o.npy"} if job == "out" else {}


@pytest.mark.parametrize("job", ["fields", "ragged", "out"])
@pytest.mark.parametrize("budget", [10 * MIB, 24 * MIB])
def test_measured_memory_is_within_what_is_planned_and_that_within_the_budget(
    tmp_path, job, budget
):
    kernel, data, out = make(tmp_path, job)
    plan = sp.plan(kernel, data, budget=budget, on_disk=bool(out))
    assert plan.memory is not None
    planned = plan.memory.peak_bytes
    assert planned <= budget
    sp.run(kernel, data, plan, **out)  # imports what a run needs
    if out:
        out["out"].unlink()
    tracemalloc.start()
    sp.run(kernel, data, plan, **out)
    measured = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert measured <= planned
    assert job != "fields" or planned <= 1.25 * measured


CHILD = """
import resource, sys, threading, time
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
import stowplan as sp
import test_streaming as t
import stowplan.runs.streaming, stowplan.runs.load_budgets, stowplan.stores.arrays, numpy.fft

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

folder, budget = Path(sys.argv[2]), int(sys.argv[3])
path = folder / "x.npy"
layout = sp.Ragged(np.zeros(32 * 512 * 128, np.int8), np.full((32, 4), (8, 8, 8, 128))).layout
data = [sp.Ragged.from_layout(path, layout)]
sp.run(t.turned, [np.ones((4, 4))])
plan = sp.plan(t.power, data, budget=budget)
np.fft.fftn(np.ones((2, 2)))
base, peak, over = resident(), [0], []

def watch():
    while not over:
        peak[0] = max(peak[0], resident())
        time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
sp.run(t.power, data, plan)
over.append(True)
watcher.join()
print(plan.memory.peak_bytes, peak[0] - base)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read there")
def test_resident_memory_of_a_process_stays_within_the_budget(tmp_path):
    make(tmp_path, "fields")
    for budget in (10 * MIB, 24 * MIB):
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path), str(budget)],
            check=False, capture_output=True, text=True,
            env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        planned, measured = map(int, done.stdout.split())
        assert planned <= budget
        assert measured <= budget


def test_a_budget_below_one_item_is_refused_with_the_bytes_that_are_needed(tmp_path):
    kernel, data, _ = make(tmp_path, "fields")
    with pytest.raises(
        sp.BudgetError, match=r"the budget is .*1 MiB.*Buffers of one row take 2097152"
    ):
        sp.plan(kernel, data, budget=MIB)


def test_one_load_is_read_while_another_is_computed_and_a_third_is_written(tmp_path, monkeypatch):
    kernel, data, out = make(tmp_path, "out")
    monkeypatch.setattr(load_budgets, "most_together", lambda *_: 1)
    plan = sp.plan(kernel, data, budget=8 * MIB, on_disk=True)
    calls = {"read": 0, "compute": 0, "write": 0}
    threads: dict[str, set[int]] = {name: set() for name in calls}
    moved = threading.Condition()

    def noted(name: str, own: Any, wait: Callable[[int], bool] = lambda _: True) -> Any:
        def call(*args: Any) -> Any:
            with moved:
                number, calls[name] = calls[name], calls[name] + 1
                threads[name].add(threading.get_ident())
                moved.notify_all()
                assert moved.wait_for(lambda: wait(number), timeout=20), f"{name} {number} waits"
            return own(*args)

        return call

    cut, loads = streaming.cut_loads, []

    def noted_loads(*args: Any) -> list[Any]:
        loads[:] = cut(*args)
        return list(loads)

    def is_read_ahead(number: int) -> bool:  # call 0 has no items
        return calls["read"] >= min(number + 1, len(loads)) or number == 0

    own = streaming._Stream._computed
    monkeypatch.setattr(streaming, "cut_loads", noted_loads)
    monkeypatch.setattr(streaming.Reads, "fill", noted("read", streaming.Reads.fill))
    monkeypatch.setattr(streaming, "_put_away", noted("write", streaming._put_away))
    monkeypatch.setattr(streaming._Stream, "_computed", noted("compute", own, is_read_ahead))
    sp.run(kernel, data, plan, **out)
    assert len(threads["read"]) == len(threads["write"]) == 1
    assert threads["compute"] == {threading.get_ident()}
    assert calls["compute"] - 1 == calls["read"] == calls["write"] == len(loads) > 4


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("kept", [True, False])
def test_results_are_no_views_of_buffers_that_are_read_into_again(
    tmp_path, monkeypatch, load_framework, framework, kept
):
    """A writer that falls behind finds what was computed, though a kernel gives what it got."""
    load_framework(framework)
    own = streaming._put_away

    def late(*args: Any) -> None:
        time.sleep(0.02)
        own(*args)

    monkeypatch.setattr(streaming, "_put_away", late)
    values = np.random.default_rng(3).normal(size=(6, 2**20))
    np.save(tmp_path / "x.npy", values)
    out = None if kept else tmp_path / "o.npy"
    kernel = sp.kernel("(n)->(n)", ragged="n", fill={"x": 0.0})(lambda x: x)
    found = sp.run(kernel, [tmp_path / "x.npy"], on=framework, out=out, budget=120 * MIB)
    found = np.load(out) if out else np.stack([np.asarray(item) for item in found])
    np.testing.assert_array_equal(found.reshape(values.shape), values)


def test_an_error_of_the_reader_and_of_the_writer_reaches_the_caller(tmp_path, monkeypatch):
    kernel, data, out = make(tmp_path, "out")
    plan = sp.plan(kernel, data, budget=8 * MIB, on_disk=True)

    def fails(*args: Any) -> None:
        raise RuntimeError("of all things")

    for name in ("_put_away", "Reads.fill"):
        with monkeypatch.context() as patch:
            patch.setattr(f"stowplan.runs.streaming.{name}", fails)
            with pytest.raises(RuntimeError, match="of all things") as caught:
                sp.run(kernel, data, plan, **out)
        assert any("part 0 of" in note for note in caught.value.__notes__)
        assert names(tmp_path) == ["x.npy"]
    assert not [t for t in threading.enumerate() if t.name.startswith("stowplan-")]


def test_an_interrupt_ends_the_run_and_all_of_its_threads(tmp_path, monkeypatch):
    kernel, data, out = make(tmp_path, "out")
    plan = sp.plan(kernel, data, budget=8 * MIB, on_disk=True)
    waited = []

    def interrupted(futures: Any) -> None:
        waited.append(futures)
        if len(waited) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sp.run(kernel, data, plan, **out)
    assert names(tmp_path) == ["x.npy"]
    assert not [t for t in threading.enumerate() if t.name.startswith("stowplan-")]


def test_two_processes_that_write_one_output_are_told_apart(tmp_path):
    code = (
        "import sys, numpy as np, stowplan as sp, test_streaming as t; from pathlib import Path; "
        "f = Path(sys.argv[1])\n"
        "try:\n"
        "    sp.run(t.turned, [f / 'x.npy'], rows=64, out=f / 'o.npy', overwrite=True)\n"
        "except sp.StoreError as error:\n"
        "    print('refused', error)\n"
    )
    make(tmp_path, "out")
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent,
                         stdout=subprocess.PIPE, text=True, env=own) for _ in range(3)
    ]  # fmt: skip
    texts = [process.communicate()[0] for process in runs]
    assert all(process.returncode == 0 for process in runs)
    assert all(not text or "being written by another process" in text for text in texts)
    x = np.load(tmp_path / "x.npy")
    assert np.load(tmp_path / "o.npy").tobytes() == (x[:, ::-1] * 2).tobytes()
    assert names(tmp_path) == ["o.npy", "x.npy"]


def test_progress_counts_bytes(tmp_path, capsys):
    pytest.importorskip("tqdm")
    kernel, data, out = make(tmp_path, "out")
    sp.run(kernel, data, rows=64, progress=True, **out)
    assert "32.0M/32.0M" in capsys.readouterr().err
