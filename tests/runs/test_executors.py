"""Executors of other makes: loky, executorlib and Dask, each with a worker killed on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stowplan as sp

pytest.importorskip("cloudpickle")


def double_slowly() -> Any:
    """A kernel that leaves a file for each batch that it begins, and takes a fifth of a second."""

    @sp.kernel("(n)->(),(n)", ragged="n", static=("folder",))
    def double(x, *, scale, folder=None):
        import os
        import time
        import uuid

        if folder is not None:
            name = f"{float(x[0, 0])}_{uuid.uuid4().hex}_{os.getpid()}"
            open(os.path.join(folder, name), "w").close()  # noqa: PTH118, PTH123
            time.sleep(0.2)  # far longer than a lost worker goes unnoticed
        return scale * x.sum(axis=-1), 2 * x

    return double


@pytest.fixture
def data() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"x": sp.Ragged.from_list([rng.normal(size=n) for n in rng.integers(1, 50, 40)])}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two Dask workers that declare 1 GB each."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", resources={"MEM": 1e9}
    ) as workers:
        yield workers


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.Client(cluster, set_as_default=False) as connected:
        connected.wait_for_workers(2)
        yield connected


def begun(folder: Path) -> Counter[str]:
    return Counter(path.name.partition("_")[0] for path in folder.iterdir())


def kill(folder: Path, after: int, everyone: bool = False) -> threading.Thread:
    """Kill one worker by SIGKILL while it computes, or all of them."""

    def work() -> None:
        while len(begun(folder)) < after:
            time.sleep(0.01)
        newest = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        workers = list(dict.fromkeys(int(path.name.rpartition("_")[2]) for path in newest[::-1]))
        for worker in workers if everyone else workers[:1]:
            os.kill(worker, signal.SIGKILL)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def assert_same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1].shapes, expected[1].shapes)
    np.testing.assert_array_equal(found[1].values, expected[1].values)


def loky() -> Executor:
    return pytest.importorskip("loky").ProcessPoolExecutor(2)


def executorlib() -> Executor:
    module = pytest.importorskip("executorlib")
    return module.SingleNodeExecutor(max_workers=2, block_allocation=True)


def forkserver() -> Executor:
    return ProcessPoolExecutor(2, mp_context=get_context("forkserver"))


@pytest.mark.parametrize("make", [loky, executorlib, forkserver])
def test_a_killed_worker_changes_no_result(make: Callable[[], Executor], data, tmp_path):
    double = double_slowly()
    plan = sp.plan(double, data, slots=1, rows=2, scale=1.0)
    expected = sp.run(double, data, plan, scale=2.0)
    killer = kill(tmp_path, after=8)
    found = sp.run(double, data, plan, scale=2.0, folder=str(tmp_path), executor=make)
    killer.join()
    assert_same(found, expected)
    counts = begun(tmp_path)
    assert len(counts) == len(plan.batches) == 20
    assert 1 <= sum(times > 1 for times in counts.values()) <= 3  # two workers, one task ahead


def test_a_killed_worker_of_dask_changes_no_result(client, data, tmp_path):
    double = double_slowly()
    plan = sp.plan(double, data, slots=1, rows=2, scale=1.0)
    expected = sp.run(double, data, plan, scale=2.0)
    killer = kill(tmp_path, after=8)
    found = sp.run(
        double, data, plan, scale=2.0, folder=str(tmp_path), executor=sp.dask_executor(client)
    )
    killer.join()
    assert_same(found, expected)
    counts = begun(tmp_path)
    assert len(counts) == len(plan.batches) == 20
    assert sum(times > 1 for times in counts.values()) >= 1


def test_what_was_scattered_is_scattered_again_after_all_workers_were_lost(client, tmp_path):
    @sp.kernel("(n),()->()", ragged="n", static=("folder",))
    def picked(x, place, *, table, folder=None):
        import os
        import time
        import uuid

        if folder is not None:
            name = f"{int(place[0])}_{uuid.uuid4().hex}_{os.getpid()}"
            open(os.path.join(folder, name), "w").close()  # noqa: PTH118, PTH123
            time.sleep(0.1)
        return x.sum(axis=-1) + table[place]

    data = {"x": np.ones((12, 3)), "place": np.arange(12)}
    table = np.arange(300_000.0)
    killer = kill(tmp_path, after=5, everyone=True)
    found = sp.run(
        picked, data, rows=1, table=table, folder=str(tmp_path), executor=sp.dask_executor(client)
    )
    killer.join()
    np.testing.assert_array_equal(found, np.arange(12) + 3.0)


def test_a_batch_larger_than_any_worker_is_refused_at_once(client, data, tmp_path):
    double = double_slowly()
    plan = sp.plan(double, data, rows=2, peak=(2 * 10**9, 10), budget="8 GB", scale=1.0)
    start = time.monotonic()
    with pytest.raises(sp.ExecutorError, match=r"20 of 20 batches fit no worker. batch .* 953\.7"):
        sp.run(
            double, data, plan, scale=2.0, folder=str(tmp_path), executor=sp.dask_executor(client)
        )
    assert time.monotonic() - start < 1
    assert not list(tmp_path.iterdir())


def test_a_task_asks_for_its_planned_bytes(client, data, monkeypatch):
    double = double_slowly()
    plan = sp.plan(double, data, slots=1, rows=20, peak=(10**8, 10**7), budget="8 GB", scale=1.0)
    asked = []
    submit = client.submit

    def noted(*args, **kwargs):
        asked.append(kwargs["resources"])
        return submit(*args, **kwargs)

    monkeypatch.setattr(client, "submit", noted)
    sp.run(double, data, plan, scale=2.0, executor=sp.dask_executor(client))
    assert asked == [{"MEM": 10**8 + 20 * 10**7}] * 2


def test_workers_that_declare_nothing_are_measured_by_their_memory_limit(client, data):
    executor = sp.dask_executor(client, resource="OTHER")
    limit = min(
        worker["memory_limit"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()
    )
    assert not executor.declared
    assert executor.largest_bytes == limit
    double = double_slowly()
    expected = sp.run(double, data, rows=10, scale=2.0)
    assert_same(sp.run(double, data, rows=10, scale=2.0, executor=executor), expected)


def test_a_batch_that_kills_every_dask_worker_is_named_and_the_rest_is_saved(
    client, tmp_path, monkeypatch
):
    monkeypatch.setenv("STOWPLAN_SCRATCH", str(tmp_path))
    client.run_on_scheduler(_allow_failures)

    @sp.kernel("(n)->()", ragged="n")
    def fatal(x):
        import os

        if (x == 2).any():
            os._exit(1)
        return x.sum(axis=-1)

    data = {"x": np.arange(4.0)[:, None]}
    try:
        with pytest.raises(sp.ExecutorError, match=r"KilledWorker.* batch 2 of 4"):
            sp.run(fatal, data, rows=1, executor=sp.dask_executor(client))
    finally:
        client.run_on_scheduler(_allow_failures, failures=3)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("batch-*.bin"))) == 3


def _allow_failures(dask_scheduler: Any, failures: int = 0) -> None:
    dask_scheduler.allowed_failures = failures


def test_an_error_in_a_dask_task_names_its_batch(client):
    @sp.kernel("(n)->()", ragged="n")
    def picky(x):
        raise ZeroDivisionError("never")

    with pytest.raises(sp.ExecutorError, match=r"batch \d of 2 .*ZeroDivisionError: never"):
        sp.run(picky, {"x": np.ones((2, 3))}, rows=1, executor=sp.dask_executor(client))


def test_what_is_no_client_and_clusters_without_workers_are_refused(client, data):
    distributed = pytest.importorskip("distributed")
    with pytest.raises(sp.ExecutorError, match=r"is no distributed.Client"):
        sp.dask_executor("tcp://somewhere:8786")
    with pytest.raises(sp.ExecutorError, match=r"executor=sp.dask_executor\(client\)"):
        sp.run(double_slowly(), data, scale=1.0, executor=client)
    executor = sp.dask_executor(client)
    executor.shutdown()
    with pytest.raises(sp.ExecutorError, match="was shut down"):
        sp.run(double_slowly(), data, scale=1.0, executor=executor)
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0", processes=False) as empty:  # noqa: SIM117
        with distributed.Client(empty, set_as_default=False) as lonely:
            with pytest.raises(sp.ExecutorError, match="no workers yet"):
                sp.dask_executor(lonely)
            assert sp.dask_executor(lonely, worker_bytes="1 GiB").largest_bytes == 2**30
            lonely.close()
            with pytest.raises(sp.ExecutorError, match="is closed"):
                sp.dask_executor(lonely)


def test_an_executor_of_dask_computes_any_function(client):
    with sp.dask_executor(client) as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result()
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)
