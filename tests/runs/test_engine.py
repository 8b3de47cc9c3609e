"""Laws of ``executor=``: same numbers, longest first, within the budget, and nothing done twice."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.memory import Budget
from stowplan.peaks import Forecast

cloudpickle = pytest.importorskip("cloudpickle")  # what tests define, no module has


def spawning(workers: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    """Two workers that many tests share."""
    with spawning() as pool:
        yield pool


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(autouse=True)
def kernels_by_value(kernels: Any) -> Iterator[None]:
    """Workers need not find the tests."""
    import sys

    module = sys.modules[kernels.pull.__module__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def noting() -> Any:
    """A kernel that leaves a file for each batch that it begins, and takes a tenth of a second."""

    @sp.kernel("(n)->(),(n)", ragged="n", static=("folder", "seconds"))
    def double(x, *, scale, folder=None, seconds=0.1):
        import os
        import time
        import uuid

        if folder is not None:
            name = f"{float(x[0, 0])}_{uuid.uuid4().hex}_{os.getpid()}"
            open(os.path.join(folder, name), "w").close()  # noqa: PTH118, PTH123
            time.sleep(seconds)
        return scale * x.sum(axis=-1), 2 * x

    return double


def begun(folder: Path) -> Counter[str]:
    """How often each batch was begun."""
    return Counter(path.name.partition("_")[0] for path in folder.iterdir())


def some_rows(count: int = 40, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"x": sp.Ragged.from_list([rng.normal(size=n) for n in rng.integers(1, 50, count)])}


def assert_same(found: Any, expected: Any) -> None:
    """Bitwise, and of the same kind."""
    assert type(found) is type(expected)
    if isinstance(found, tuple):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(found, sp.Ragged):
        np.testing.assert_array_equal(found.shapes, expected.shapes)
        assert_same(found.values, expected.values)
    else:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def kill_one(folder: Path, after: int) -> threading.Thread:
    """Kill a worker by SIGKILL while it computes, once so many batches were begun."""

    def kill() -> None:
        while len(list(folder.iterdir())) < after:
            time.sleep(0.01)
        last = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.kill(int(last.name.rpartition("_")[2]), signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


class Recorder(ThreadPoolExecutor):
    """Threads that note what they are given, in which order, and what is under way then."""

    def __init__(self, workers: int = 2) -> None:
        super().__init__(workers)
        self.blocks: list[Any] = []
        self.under_way: list[Any] = []
        self.seen: list[list[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        block = args[1]
        self.blocks.append(block)
        self.under_way.append(block)
        self.seen.append(list(self.under_way))

        def compute() -> Any:
            time.sleep(0.002)  # so that the next ones are submitted meanwhile, if they are
            try:
                return fn(*args, **kwargs)
            finally:
                self.under_way.remove(block)

        return super().submit(compute)


# The same numbers


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_an_executor_gives_what_a_run_here_gives_bit_by_bit(kind, request, kernels, put, framework):
    pool = request.getfixturevalue(kind)
    data = put(kernels.make_atoms([3, 1, 0, 7, 4, 2, 5, 5]))
    plan = sp.plan(kernels.pull, data, slots=2, rows=2)
    expected = sp.run(kernels.pull, data, plan, scale=2.0)
    found = sp.run(kernels.pull, data, plan, scale=2.0, executor=pool)
    assert len(plan.batches) > 3
    for one, other in zip(found, expected, strict=True):
        kind_of = one.values if isinstance(one, sp.Ragged) else one
        other_kind = other.values if isinstance(other, sp.Ragged) else other
        assert type(kind_of) is type(other_kind)
        assert kind_of.dtype == other_kind.dtype
        np.testing.assert_array_equal(kernels.to_host(kind_of), kernels.to_host(other_kind))


def test_on_names_what_workers_compute_with(processes, kernels, load_framework):
    load_framework("torch")
    data = kernels.make_atoms([3, 1, 7, 4])
    expected = sp.run(kernels.pull, data, on="torch", rows=1, scale=2.0)
    found = sp.run(kernels.pull, data, on="torch", rows=1, scale=2.0, executor=processes)
    assert_same(found, expected)  # in NumPy, as the data


def test_named_outputs_keep_their_names(processes, kernels):
    data = some_rows(6)
    expected = sp.run(kernels.moments, data, rows=2)
    found = sp.run(kernels.moments, data, rows=2, executor=processes)
    assert found._fields == ("total", "squares")
    assert_same(tuple(found), tuple(expected))


@pytest.mark.parametrize("name", ["weigh", "phase", "near", "spread", "spectrum", "ramp", "length"])
def test_every_kind_of_kernel_goes_to_workers(name, threads, kernels):
    rng = np.random.default_rng(1)
    sizes = [4, 2, 5, 3, 1]
    flat = {"n": [rng.normal(size=n) for n in sizes]}
    data: Any = {
        "weigh": (
            [rng.normal(size=(n, 6 - n)) for n in sizes],
            [rng.normal(size=6 - n) for n in sizes],
        ),
        "near": (flat["n"], [rng.integers(-1, n, (n, 3)) for n in sizes]),
        "length": (rng.normal(size=(5, 3)), rng.normal(size=5)),
    }.get(name, (flat["n"],))  # fmt: skip
    kernel = getattr(kernels, name)
    shared = {"scale": 0.5} if name == "ramp" else {}
    plan = sp.plan(kernel, data, rows=2, **shared)
    expected = sp.run(kernel, data, plan, **shared)
    assert_same(sp.run(kernel, data, plan, executor=threads, **shared), expected)


def test_shared_items_and_joined_rows_go_to_workers(threads):
    @sp.kernel(
        "(atoms),(molecules)->(molecules)", ragged=("atoms", "molecules"), segments="molecules"
    )
    def sums(x, weight, *, segments, mask):  # fmt: skip
        of = segments["atoms"][..., None, :] == np.arange(weight.shape[-1])[:, None]
        return weight * (of * x[..., None, :]).sum(-1)

    rng = np.random.default_rng(2)
    pool = sp.Ragged.from_list([rng.normal(size=n) for n in (3, 1, 4)])
    data = {"x": pool[[0, 2, 2, 1, 0, 1, 1]], "weight": rng.normal(size=7)}
    joined = sp.join_rows(sums, data, sp.pack_rows({"atoms": [3, 4, 4, 1, 3, 1, 1]}, {"atoms": 5}))
    plan = sp.plan(sums, joined, rows=1)
    assert len(plan.batches) > 2
    assert_same(sp.run(sums, joined, plan, executor=threads), sp.run(sums, joined, plan))

    double = noting()
    views = {"x": data["x"]}
    expected = sp.run(double, views, rows=2, scale=1.0)
    assert_same(sp.run(double, views, rows=2, scale=1.0, executor=threads), expected)


def test_no_items_give_empty_outputs(threads, kernels):
    found = sp.run(kernels.pull, kernels.make_atoms([]), scale=1.0, executor=threads)
    assert found[0].shape == (0,)
    assert len(found[1]) == 0


def test_an_iteration_by_an_executor_is_that_of_each_batch(processes, threads):
    @sp.kernel("(n)->(n)", ragged="n")
    def halve(x, *, age, state):
        return {"left": state["left"] / 2, "steps": state["steps"] + 1}

    def init(x):
        return {"left": abs(x) + 0, "steps": x[..., 0] * 0}

    def until(state, tolerance):
        done = (state["left"] < tolerance).all(-1)
        return done, state["steps"] < 0

    data = some_rows(9)
    asked = {
        "init": init,
        "until": until,
        "every": 2,
        "limit": 12,
        "keep": "left",
        "tolerance": 0.05,
    }
    plan = sp.plan(halve, data, rows=2)
    expected = sp.iterate(halve, data, plan, **asked)
    assert len(set(expected.iterations.tolist())) > 1
    for pool in (processes, threads):
        found = sp.iterate(halve, data, plan, executor=pool, **asked)
        assert_same(found.values["left"], expected.values["left"])
        for name in ("iterations", "converged", "failed"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert found.plan is plan


def test_a_kernel_of_the_package_goes_by_its_import_path(processes):
    from stowplan.kernels import transport
    from stowplan.runs.sending import dumps, is_importable

    own = [value for value in vars(transport).values() if isinstance(value, sp.Kernel)]
    assert own
    assert all(is_importable(kernel) for kernel in own)
    assert len(dumps("run", "", own[0], {})) < 200
    assert not is_importable(noting())
    other = own[0].refilled(own[0].arguments[0], 7.0)  # of the same name, but not that kernel
    assert not is_importable(other)
    assert pickle.loads(dumps("run", "", other, {})).fill == other.fill


def test_what_all_tasks_share_is_read_once_from_a_file_if_it_is_large(
    processes, tmp_path, monkeypatch
):
    monkeypatch.setenv("STOWPLAN_SCRATCH", str(tmp_path))
    seen: set[str] = set()

    @sp.kernel("(n),()->()", ragged="n")
    def picked(x, place, *, table):
        return x.sum(axis=-1) + table[place]

    data = {"x": some_rows(6)["x"], "place": np.arange(6)}
    table = np.arange(300_000.0)
    expected = sp.run(picked, data, rows=1, table=table)

    class Watched(ProcessPoolExecutor):
        def submit(self, fn, /, *args, **kwargs):
            seen.update(path.name for path in tmp_path.iterdir())
            assert args[0].rest is None  # a path
            return processes.submit(fn, *args, **kwargs)

    with Watched(2, mp_context=get_context("spawn")) as pool:
        assert_same(sp.run(picked, data, rows=1, table=table, executor=pool), expected)
    assert len(seen) == 1
    assert not list(tmp_path.iterdir())  # nothing is left


def test_a_worker_compiles_a_kernel_once_for_all_calls(load_framework):
    jnp = load_framework("jax")

    @sp.kernel("(n)->(),()", ragged="n", per_item=True)
    def traced(x, *, scale):
        import os

        os.environ["STOWPLAN_TRACES"] = str(int(os.environ.get("STOWPLAN_TRACES", "0")) + 1)
        return scale * x.sum(), x[0] * 0 + int(os.environ["STOWPLAN_TRACES"])

    data = {"x": jnp.ones((4, 3))}
    plan = sp.plan(traced, data, rows=1, scale=1.0)
    with spawning(1) as pool:
        for scale in (1.0, 2.0, 3.0):
            total, traces = sp.run(traced, data, plan, scale=scale, executor=pool)
            assert total.tolist() == [3.0 * scale] * 4
            assert traces.tolist() == [1.0] * 4
    assert "STOWPLAN_TRACES" not in os.environ


# Order and budget


def test_the_longest_batches_are_submitted_first():
    data = some_rows(30)
    double = noting()
    plan = sp.plan(double, data, slots=4, rows=3, scale=1.0)
    pool = Recorder()
    sp.run(double, data, plan, scale=1.0, executor=pool)
    work = [block.plan.padded_work() for block in pool.blocks]
    assert len(work) == len(plan.batches)
    assert work == sorted(work, reverse=True)
    assert len(set(work)) > 1


def test_a_task_carries_the_rows_of_its_items_alone():
    data = some_rows(30)
    double = noting()
    pool = Recorder()
    sp.run(double, data, rows=3, scale=1.0, executor=pool)
    carried = [block.data["x"].values.shape[0] for block in pool.blocks]
    assert sum(carried) == data["x"].values.shape[0]


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    each=st.integers(1, 50),
    times=st.integers(1, 4),
    workers=st.integers(1, 3),
)
def test_planned_bytes_in_flight_never_exceed_the_budget(sizes, each, times, workers):
    double = noting()
    data = {"x": [np.ones(n) for n in sizes]}
    plan = sp.plan(double, data, slots="exact", rows=1, scale=1.0)
    batch_bytes = tuple(each * slot["n"] for slot in plan.slots)
    most = times * max(batch_bytes)
    plan = replace(plan, memory=Forecast(Budget(most, "by hand"), 0, batch_bytes, ("by hand",)))
    pool = Recorder(workers)
    found = sp.run(double, data, plan, scale=1.0, executor=pool)
    np.testing.assert_array_equal(found[0], [float(n) for n in sizes])
    bytes_of = {slot["n"]: size for slot, size in zip(plan.slots, batch_bytes, strict=True)}
    for blocks in pool.seen:
        taken = [bytes_of[block.plan.batches[0].capacity[0]] for block in blocks]
        assert sum(taken) <= most
        assert len(taken) <= 2 * workers


def test_a_batch_that_alone_exceeds_the_budget_is_refused_before_any_is_submitted():
    double = noting()
    data = some_rows(6)
    plan = sp.plan(double, data, slots=1, rows=2, scale=1.0)
    plan = replace(plan, memory=Forecast(Budget(99, 'budget="99"'), 0, (100,), ("by hand",)))
    pool = Recorder()
    with pytest.raises(sp.BudgetError, match=r"batch 0 of 3 \(2 items .* takes 100 B, the budget"):
        sp.run(double, data, plan, scale=1.0, executor=pool)
    assert not pool.blocks


@pytest.mark.parametrize(("rows", "told"), [(8, True), (1, False)])
def test_workers_that_would_have_nothing_to_do_are_told(threads, caplog, rows, told):
    double, data = noting(), some_rows(8)
    slow = sp.Costs(work_seconds=1.0)
    plan = sp.plan(double, data, slots=1, rows=rows, costs=slow, scale=1.0)
    sp.run(double, data, plan, scale=1.0, executor=threads)
    assert ("1 batches for 2 workers" in caplog.text) == told


# Lost workers


def test_a_killed_worker_costs_no_batch_that_is_done(tmp_path):
    double, data = noting(), some_rows(40)
    plan = sp.plan(double, data, slots=1, rows=2, scale=1.0)
    assert len(plan.batches) == 20
    expected = sp.run(double, data, plan, scale=2.0)
    pools = []

    def make() -> Executor:
        pools.append(spawning())
        return pools[-1]

    killer = kill_one(tmp_path, after=8)
    found = sp.run(double, data, plan, scale=2.0, folder=str(tmp_path), executor=make)
    killer.join()
    assert_same(found, expected)
    assert len(pools) == 2
    counts = begun(tmp_path)
    assert len(counts) == 20
    again = [name for name, times in counts.items() if times > 1]
    assert 1 <= len(again) <= 2  # one for each worker
    with pytest.raises(RuntimeError):
        pools[-1].submit(int)  # what was made here is shut down


def test_what_was_done_before_a_given_pool_broke_is_kept_and_resumed(tmp_path, monkeypatch):
    scratch, notes = tmp_path / "scratch", tmp_path / "notes"
    scratch.mkdir()
    notes.mkdir()
    monkeypatch.setenv("STOWPLAN_SCRATCH", str(scratch))
    double, data = noting(), some_rows(40)
    asked = {"scale": 2.0, "folder": str(notes)}
    plan = sp.plan(double, data, slots=1, rows=2, **asked)
    expected = sp.run(double, data, plan, scale=2.0)
    killer = kill_one(notes, after=8)
    with spawning() as pool, pytest.raises(sp.ExecutorError, match="cannot be made anew") as caught:
        sp.run(double, data, plan, executor=pool, **asked)
    killer.join()
    (folder,) = scratch.iterdir()
    assert f"resume={str(folder)!r}" in str(caught.value)
    done = len(list(folder.glob("batch-*.bin")))
    assert 0 < done < 20
    assert f"{done} of 20 batches are done" in str(caught.value)
    before = begun(notes)
    # Without a plan: that of the folder is taken.
    found = sp.run(double, data, executor=spawning, resume=folder, **asked)
    assert_same(found, expected)
    assert sum((begun(notes) - before).values()) == 20 - done
    assert len(list(folder.glob("batch-*.bin"))) == 20

    class None_(Executor):
        def submit(self, *args, **kwargs):
            raise AssertionError("all are done")

    assert_same(sp.run(double, data, executor=None_(), resume=folder, **asked), expected)


def test_a_batch_that_kills_every_worker_ends_the_run_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("STOWPLAN_SCRATCH", str(tmp_path))

    @sp.kernel("(n)->()", ragged="n")
    def fatal(x):
        import os

        if (x == 13).any():
            os._exit(1)
        return x.sum(axis=-1)

    data = {"x": np.arange(8.0)[:, None] + 8}
    made = []

    def make() -> Executor:
        made.append(spawning(1))
        return made[-1]

    with pytest.raises(sp.ExecutorError, match=r"over batch 5 of 8 \(1 items .* 5\)") as caught:
        sp.run(fatal, data, rows=1, executor=make)
    assert 4 <= len(made) <= 6
    assert "in a row" in str(caught.value)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("batch-*.bin"))) >= 4


# Errors of tasks


def test_an_error_of_a_kernel_names_the_batch_and_keeps_the_cause(processes, threads):
    @sp.kernel("(n)->()", ragged="n")
    def picky(x):
        if (x == 5).any():
            raise ZeroDivisionError("five")
        return x.sum(axis=-1)

    data = {"x": np.arange(8.0)[:, None]}
    for pool in (processes, threads):
        with pytest.raises(
            sp.ExecutorError, match=r"batch 2 of 4 \(2 items in 2 rows at n=1: 4, 5"
        ) as caught:
            sp.run(picky, data, rows=2, executor=pool)
        assert "ZeroDivisionError: five" in str(caught.value)
        cause = caught.value.__cause__
        assert isinstance(cause, ZeroDivisionError)
        text = "".join(traceback.format_exception(cause))
        assert text.count("in picky") == 1  # where it was raised, in whichever process


def test_errors_of_the_package_keep_their_type(threads):
    @sp.kernel("(n)->()", ragged="n")
    def wrong(x):
        return x

    with pytest.raises(sp.DataError, match=r"batch 0 of 1.*wants"):
        sp.run(wrong, {"x": np.ones((2, 3))}, executor=threads)


def test_an_error_that_cannot_be_sent_is_told_all_the_same(processes):
    @sp.kernel("(n)->()", ragged="n")
    def odd(x):
        class OddError(Exception):
            def __init__(self, one, two):
                super().__init__(one + two)

        raise OddError("both ", "words")

    data = {"x": np.ones((2, 3))}
    with pytest.raises(sp.ExecutorError, match="both words"):
        sp.run(odd, data, executor=processes)
    assert processes.submit(int).result() == 0  # the pool lives


def test_an_interrupt_cancels_what_waits():
    class Interrupted(Executor):
        _max_workers = 2

        def __init__(self):
            self.futures = []

        def submit(self, fn, /, *args, **kwargs):
            if len(self.futures) == 3:
                raise KeyboardInterrupt
            self.futures.append(Future())
            return self.futures[-1]

    pool = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        sp.run(noting(), some_rows(8), rows=1, scale=1.0, executor=pool)
    assert [future.cancelled() for future in pool.futures] == [True] * 3


# Bad input


def test_what_is_no_executor_is_refused():
    data, double = some_rows(4), noting()
    with pytest.raises(sp.ExecutorError, match=r"executor=3 is no concurrent.futures.Executor"):
        sp.run(double, data, scale=1.0, executor=3)
    with pytest.raises(sp.ExecutorError, match=r"gave None, which is no"):
        sp.run(double, data, scale=1.0, executor=lambda: None)


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(1), lambda: spawning(1)])
def test_an_executor_that_was_shut_down_is_refused_before_anything_is_computed(make, tmp_path):
    pool = make()
    pool.shutdown()
    with pytest.raises(sp.ExecutorError, match="was shut down"):
        sp.run(noting(), some_rows(4), scale=1.0, folder=str(tmp_path), executor=pool)
    assert not list(tmp_path.iterdir())


def test_an_executor_of_another_make_that_takes_no_tasks_is_told():
    class Closed(Executor):
        def submit(self, *args, **kwargs):
            raise RuntimeError("closed")

    with pytest.raises(sp.ExecutorError, match="the executor takes no tasks: closed"):
        sp.run(noting(), some_rows(4), scale=1.0, executor=Closed())


def test_a_kernel_that_cannot_be_sent_is_refused_and_the_cure_is_told(processes, threads):
    lock = threading.Lock()

    @sp.kernel("(n)->()", ragged="n")
    def locked(x):
        with lock:
            return x.sum(axis=-1)

    data = some_rows(4)
    with pytest.raises(sp.SignatureError, match=r"run: locked cannot be sent.*lock.*top level"):
        sp.run(locked, data, executor=processes)
    assert_same(sp.run(locked, data, executor=threads), sp.run(locked, data))


def test_without_cloudpickle_the_cure_is_to_install_it(processes, monkeypatch):
    from stowplan.runs import sending

    monkeypatch.setattr(sending, "_cloudpickle", lambda: None)
    with pytest.raises(sp.SignatureError, match=r"pip install 'stowplan\[executor\]'"):
        sp.run(noting(), some_rows(4), scale=1.0, executor=processes)


def test_gradients_and_traces_are_refused(threads, load_framework, kernels):
    torch = load_framework("torch")
    x = torch.ones((2, 3), requires_grad=True)
    with pytest.raises(sp.FrameworkError, match="cuts the gradient"):
        sp.run(kernels.total, {"x": x}, scale=1.0, executor=threads)
    jnp = load_framework("jax")
    import jax

    def traced(x):
        return sp.run(kernels.total, {"x": x}, scale=1.0, executor=threads).sum()

    for change in (jax.jit, jax.grad):
        with pytest.raises(sp.FrameworkError, match=r"executor= goes with values"):
            change(traced)(jnp.ones((2, 3)))


def test_forked_workers_are_refused_beside_jax(load_framework, kernels):
    load_framework("jax")
    pool = ProcessPoolExecutor(1, mp_context=get_context("fork"))
    with pool, pytest.raises(sp.ExecutorError, match=r"forks its workers.*spawn"):
        sp.run(kernels.total, some_rows(4), scale=1.0, executor=pool)


# Resume


@pytest.fixture
def folder(tmp_path: Path, threads: Executor) -> Path:
    """Of a run that is done."""
    sp.run(noting(), some_rows(8), rows=2, scale=2.0, executor=threads, resume=tmp_path / "run")
    return tmp_path / "run"


def test_resume_without_an_executor_keeps_batches_and_computes_none_again(tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    call = {"scale": 1.0, "rows": 1, "folder": str(notes), "seconds": 0.0}
    first, second = (
        sp.run(noting(), some_rows(4), resume=tmp_path / "run", **call) for _ in range(2)
    )
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1].values, second[1].values)
    assert sum(begun(notes).values()) == 4


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("column 'x' differs", lambda call: call.update(data=some_rows(8, seed=1))),
        ("scale= differs", lambda call: call.update(scale=2)),
        ("the plan differs", lambda call: call.update(rows=4)),
        ("seconds= differs", lambda call: call.update(seconds=0.2)),
        ("the framework differs", lambda call: call.update(on="array_api_strict")),
        ("the kernel differs", lambda call: call.update(kernel=None)),
    ],
)
def test_batches_of_another_run_are_refused_and_what_differs_is_told(folder, threads, what, change):
    if what.startswith("the framework"):
        pytest.importorskip("array_api_strict")
    call: dict[str, Any] = {"data": some_rows(8), "kernel": noting(), "scale": 2.0}
    change(call)
    kernel, data = call.pop("kernel"), call.pop("data")
    if kernel is None:

        @sp.kernel("(n)->(),(n)", ragged="n", static=("folder", "seconds"))
        def double(x, *, scale, folder=None, seconds=0.1):
            return scale * x.sum(axis=-1), 3 * x

        kernel = double
    # Other data have other sizes, too: with a plan of their own.
    if what.startswith("column"):
        data = {"x": some_rows(8)["x"].map_values(lambda values: values + 1)}
    with pytest.raises(sp.PlanError, match=what):
        sp.run(kernel, data, executor=threads, resume=folder, **call)


def test_a_damaged_batch_is_computed_again(folder, caplog):
    path = sorted(folder.glob("batch-*.bin"))[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))
    pool = Recorder()
    data, double = some_rows(8), noting()
    found = sp.run(double, data, scale=2.0, executor=pool, resume=folder)
    assert len(pool.blocks) == 1
    assert "batch 1 is computed again" in caplog.text
    assert_same(found, sp.run(double, data, rows=2, scale=2.0))


def test_batches_are_saved_as_they_are_done(tmp_path, threads, kernels):
    data = {"x": np.arange(8.0)[:, None]}
    broken = tmp_path / "broken"
    broken.touch()

    @sp.kernel("(n)->(),()", ragged="n")
    def sometimes(x):
        if (x == 7).any() and broken.exists():
            raise ValueError("not yet")
        return kernels.Moments(x.sum(axis=-1), (x**2).sum(axis=-1))

    with pytest.raises(sp.ExecutorError, match="not yet"):
        sp.run(sometimes, data, rows=1, executor=Recorder(), resume=tmp_path / "run")
    saved = len(list((tmp_path / "run").glob("batch-*.bin")))
    assert saved >= 4
    broken.unlink()
    pool = Recorder()
    found = sp.run(sometimes, data, executor=pool, resume=tmp_path / "run")
    assert len(pool.blocks) == 8 - saved
    assert type(found) is kernels.Moments
    np.testing.assert_array_equal(found.squares, np.arange(8.0) ** 2)


def test_an_iteration_is_resumed(tmp_path, threads):
    @sp.kernel("()->()")
    def better(square, *, age, state):
        return {"root": 0.5 * (state["root"] + square / state["root"])}

    asked: dict[str, Any] = {
        "init": lambda square: {"root": square + 5},
        "until": lambda state, square: (abs(state["root"] ** 2 - square) < 1e-9, square < 0),
        "every": 1, "limit": 50, "keep": "root",
    }  # fmt: skip
    data = [np.arange(1.0, 9.0)]
    first = sp.iterate(better, data, rows=2, executor=threads, resume=tmp_path / "run", **asked)
    (tmp_path / "run" / "batch-000002.bin").unlink()
    pool = Recorder()
    again = sp.iterate(better, data, executor=pool, resume=tmp_path / "run", **asked)
    assert len(pool.blocks) == 1
    np.testing.assert_array_equal(again.values["root"], first.values["root"])
    np.testing.assert_allclose(again.values["root"], np.sqrt(data[0]))
    np.testing.assert_array_equal(again.iterations, first.iterations)
    asked["every"] = 2
    with pytest.raises(sp.PlanError, match="every= differs"):
        sp.iterate(better, data, executor=pool, resume=tmp_path / "run", **asked)


def test_a_folder_of_other_files_is_refused(tmp_path, threads):
    np.savez(tmp_path / "mine.npz", x=np.ones(2))
    with pytest.raises(sp.PlanError, match=r"mine\.npz"):
        sp.run(noting(), some_rows(4), scale=1.0, executor=threads, resume=tmp_path)
    with pytest.raises(sp.PlanError, match="none can be made there"):
        sp.run(noting(), some_rows(4), scale=1.0, executor=threads, resume=tmp_path / "no" / "such")
