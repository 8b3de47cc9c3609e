"""``sp.dask_executor``: workers of a Dask cluster, each batch sent where its bytes are free."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

from stowplan.errors import ExecutorError
from stowplan.extras import import_extra
from stowplan.memory import parse_bytes, show_bytes
from stowplan.runs.tasks import Sealed

__all__ = ["DaskExecutor", "dask_executor"]

SCATTERED_BYTES = 2**20
"""Size from which on what all tasks share is scattered; below it each task carries it.

What a task carries Dask sends again after a worker was lost; what was scattered, the caller does.
"""


def dask_executor(
    client: Any, *, resource: str = "MEM", worker_bytes: float | str | None = None
) -> DaskExecutor:
    """Give the workers of a Dask cluster as an executor for `run` and `iterate`.

    Each batch asks for its planned bytes of the resource that workers declare, such as
    ``dask worker --resources "MEM=16e9"``, so that those which a worker computes at a time fit it
    together. Where none declares it, the memory limits of the workers are what batches are
    compared with, and as many run at a time as a worker has threads. A batch that no worker can
    hold is refused before anything is submitted; Dask would wait for such a worker for ever.
    Batches of a worker that is lost are computed by others.

    Parameters
    ----------
    client : distributed.Client
        It stays open; the cluster is the caller's.
    resource
        Name of the workers' resource of bytes.
    worker_bytes
        Bytes of the largest worker to come, where there are none yet, as in a cluster that
        grows on demand: 16e9 or "16 GiB".

    Returns
    -------
    DaskExecutor
        A ``concurrent.futures.Executor``.

    Raises
    ------
    MissingDependencyError
        Where Dask is not installed: ``pip install 'stowplan[dask]'``.
    ExecutorError
        For what is no client, one that is closed, and a cluster without workers.

    Examples
    --------
    >>> import stowplan as sp
    >>> @sp.kernel("(points)->()", ragged="points", fill={"x": 0.0})
    ... def total(x):
    ...     return x.sum(axis=-1)
    >>> from distributed import Client                                          # doctest: +SKIP
    >>> client = Client("tcp://scheduler:8786")                                 # doctest: +SKIP
    >>> sp.run(total, data, plan, executor=sp.dask_executor(client))            # doctest: +SKIP
    """
    distributed = import_extra("dask", "distributed", "dask_executor")
    if not isinstance(client, distributed.Client):
        raise ExecutorError(
            f"dask_executor: {client!r} is no distributed.Client. Connect one: "
            "sp.dask_executor(Client(address_or_cluster))."
        )
    return DaskExecutor(client, resource, worker_bytes)


class DaskExecutor(Executor):
    """Workers of a Dask cluster; see `dask_executor`.

    Attributes
    ----------
    client : distributed.Client
    resource : str
        Resource of bytes that workers declare.
    declared : bool
        Whether any does.
    largest_bytes : int or None
        Of the largest worker; None where none has a limit.
    """

    outlives_workers = True

    def __init__(self, client: Any, resource: str, worker_bytes: float | str | None) -> None:
        self.client = client
        self.resource = resource
        self._closed = False
        self._numbers = itertools.count()
        self._name = f"stowplan-{uuid.uuid4().hex[:12]}"
        self._pending: dict[Future[Any], Any] = {}
        if self._shutdown:
            raise ExecutorError(
                f"dask_executor: {client!r} is closed. Connect a new one: Client(address)."
            )
        workers = self._workers()
        if not workers and worker_bytes is None:
            raise ExecutorError(
                "dask_executor: the cluster has no workers yet, so that nothing is known of their "
                "memory. Wait for one, client.wait_for_workers(1), or say it: worker_bytes='16 "
                "GiB'."
            )
        self._threads = sum(worker["nthreads"] for worker in workers) or 1
        limits = [worker["resources"][resource] for worker in workers if _has(worker, resource)]
        self.declared = bool(limits)
        if not limits:
            limits = [worker["memory_limit"] or 0 for worker in workers]
            limits = limits if all(limits) else []
        if worker_bytes is not None:
            limits.append(
                parse_bytes(worker_bytes if isinstance(worker_bytes, str) else int(worker_bytes))
            )
        self.largest_bytes = int(max(limits)) if limits else None

    @property
    def _shutdown(self) -> bool:
        return self._closed or self.client.status in ("closed", "closing")

    @property
    def _max_workers(self) -> int:
        """Threads of all workers, or of those that there were in the beginning."""
        found = sum(worker["nthreads"] for worker in self._workers())
        self._threads = found or self._threads
        return self._threads

    def share(self, sealed: Sealed) -> Any:
        """Bring what all tasks share to every worker once, if it is large."""
        assert sealed.rest is not None
        if len(sealed.rest) < SCATTERED_BYTES:
            return sealed
        return self.client.scatter(sealed, broadcast=True, hash=False)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Compute a function on a worker."""
        return self._submitted({}, fn, *args, **kwargs)

    def submit_sized(self, size: int, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Compute a function on a worker that has so many bytes free."""
        return self._submitted({self.resource: size} if self.declared else {}, fn, *args)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; client and cluster stay as they are."""
        self._closed = True
        pending = list(self._pending)
        if cancel_futures:
            for future in pending:
                future.cancel()
        if wait:
            for future in pending:
                if not future.cancelled():
                    future.exception()

    def _submitted(
        self, resources: dict[str, int], fn: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Future[Any]:
        if self._shutdown:
            raise RuntimeError("cannot schedule new futures after shutdown")
        from dask import config

        # Blocks of data travel with their task on purpose: a lost worker costs nobody else's data.
        with config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            there = self.client.submit(
                fn, *args, **kwargs, key=f"{self._name}-{next(self._numbers)}", pure=False,
                resources=resources or None,
            )  # fmt: skip
        here: Future[Any] = Future()
        self._pending[here] = there
        here.add_done_callback(self._forget)
        there.add_done_callback(lambda done: _hand_over(done, here))
        return here

    def _forget(self, here: Future[Any]) -> None:
        there = self._pending.pop(here, None)
        if there is not None and here.cancelled():
            there.cancel()

    def _workers(self) -> list[dict[str, Any]]:
        info = self.client.scheduler_info(n_workers=-1)
        return list(info["workers"].values())

    def __repr__(self) -> str:
        size = (
            "any size" if self.largest_bytes is None else f"up to {show_bytes(self.largest_bytes)}"
        )
        return f"<DaskExecutor of {self._threads} threads, tasks of {size}>"


def _has(worker: dict[str, Any], resource: str) -> bool:
    return resource in (worker["resources"] or {})


def _hand_over(there: Any, here: Future[Any]) -> None:
    """Give the outcome of a Dask future to one of the standard library."""
    if not here.set_running_or_notify_cancel():
        return
    try:
        if there.status not in ("finished", "error"):
            raise BrokenExecutor(f"Dask lost the task: {there.status}")
        result = there.result()
    except BaseException as error:  # noqa: BLE001  it is raised where the caller is
        here.set_exception(error)
    else:
        here.set_result(result)
