"""Executors of many makes as one: tasks go in, and a broken one is made anew where it can be."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path
from typing import Any

from stowplan.errors import ExecutorError
from stowplan.memory import scratch_folder, show_bytes
from stowplan.runs.tasks import Block, Call, Sealed, compute

__all__ = ["Pool", "is_broken"]

BY_PATH_BYTES = 2**20
"""Size from which on processes of this machine read a call from a file, once each."""
QUEUED = 2
"""Tasks for each worker that are submitted and not done: one that it computes, and the next."""

_BROKEN = frozenset({"KilledWorker", "ExecutorlibSocketError"})
"""Errors of executors that do not derive from BrokenExecutor, by name."""


def is_broken(error: BaseException) -> bool:
    """Whether an error says that a worker is lost, and not that the task is wrong.

    >>> is_broken(BrokenExecutor("a worker died")), is_broken(ValueError("no"))
    (True, False)
    """
    if isinstance(error, BrokenExecutor | CancelledError):
        return True
    return any(kind.__name__ in _BROKEN for kind in type(error).__mro__)


class Pool:
    """An executor, or a function that makes one.

    Parameters
    ----------
    where
        The caller, for messages.
    executor
        Of ``concurrent.futures``, or a function without arguments that gives one. What it gives is
        shut down in the end; an executor that is given is not.

    Raises
    ------
    ExecutorError
        For what is neither, and for an executor that was shut down or that is broken.
    """

    def __init__(self, where: str, executor: Executor | Callable[[], Executor]) -> None:
        self.where = where
        self.factory: Callable[[], Executor] | None = None
        self._files: list[Path] = []
        if not isinstance(executor, Executor):
            if not callable(executor):
                raise ExecutorError(
                    f"{where}: executor={executor!r} is no concurrent.futures.Executor. Give one, "
                    "or a function that makes one: executor=lambda: ProcessPoolExecutor(2)."
                    f"{_hint(executor)}"
                )
            self.factory = executor
            executor = self._made()
        self.executor = executor
        self._check()

    @property
    def renewable(self) -> bool:
        """Whether it can go on after a worker was lost."""
        return self.factory is not None or self.outlives_workers

    @property
    def outlives_workers(self) -> bool:
        """Whether the executor itself goes on, so that only the task that was lost is gone."""
        return bool(getattr(self.executor, "outlives_workers", False))

    @property
    def largest_bytes(self) -> int | None:
        """Most bytes of a task, by the largest worker; None where nothing is known of them."""
        return getattr(self.executor, "largest_bytes", None)

    @property
    def workers(self) -> int:
        """How many tasks are computed at a time; where that is not told, the cores here."""
        workers = getattr(self.executor, "_max_workers", None)
        return workers if isinstance(workers, int) else os.cpu_count() or 1

    @property
    def most_in_flight(self) -> int:
        """Tasks that are submitted and not done, at most."""
        return QUEUED * self.workers

    def share(self, call: Call) -> Any:
        """Bring what all tasks share to where each gets it: once, however many there are."""
        if isinstance(self.executor, ThreadPoolExecutor):
            return call
        sealed = Sealed.of(call)
        share = getattr(self.executor, "share", None)
        if share is not None:
            return share(sealed)
        assert sealed.rest is not None
        if len(sealed.rest) < BY_PATH_BYTES or not self._on_this_machine():
            return sealed
        folder = scratch_folder(None, self.where)
        handle, name = tempfile.mkstemp(prefix="stowplan-", suffix=".call", dir=folder)
        self._files.append(Path(name))
        with os.fdopen(handle, "wb") as file:
            file.write(sealed.rest)
        return sealed.by_path(name)

    def submit(self, shared: Any, block: Block, size: int) -> Future[Any]:
        """Begin with one batch of so many planned bytes."""
        sized = getattr(self.executor, "submit_sized", None)
        try:
            if sized is not None:
                future: Future[Any] = sized(size, compute, shared, block)
                return future
            return self.executor.submit(compute, shared, block)
        except RuntimeError as error:
            if is_broken(error):
                raise
            raise ExecutorError(f"{self.where}: the executor takes no tasks: {error}.") from error

    def renew(self) -> None:
        """Go on after workers were lost."""
        if self.factory is None:
            return
        _shut_down(self.executor, wait=False)
        self.executor = self._made()
        self._check()

    def close(self, *, wait: bool) -> None:
        """Remove what was made here."""
        for path in self._files:
            path.unlink(missing_ok=True)
        if self.factory is not None:
            _shut_down(self.executor, wait=wait)

    def refuse_larger(self, sizes: dict[int, int], names: Callable[[int], str]) -> None:
        """Refuse tasks that no worker can hold.

        Raises
        ------
        ExecutorError
            Naming the largest, what it takes, and what the largest worker has.
        """
        most = self.largest_bytes
        too_large = [number for number, size in sizes.items() if most is not None and size > most]
        if most is None or not too_large:
            return
        worst = max(too_large, key=sizes.__getitem__)
        raise ExecutorError(
            f"{self.where}: {len(too_large)} of {len(sizes)} batches fit no worker. {names(worst)} "
            f"takes {show_bytes(sizes[worst])}; the largest worker has {show_bytes(most)}. Plan "
            f"smaller batches, sp.plan(..., budget={show_bytes(most)!r}) or rows=, or start larger "
            "workers."
        )

    def _made(self) -> Executor:
        assert self.factory is not None
        made = self.factory()
        if not isinstance(made, Executor):
            raise ExecutorError(
                f"{self.where}: executor={self.factory!r} gave {made!r}, which is no "
                f"concurrent.futures.Executor. Let the function return one.{_hint(made)}"
            )
        return made

    def _check(self) -> None:
        if _is_shut_down(self.executor):
            raise ExecutorError(
                f"{self.where}: executor={self.executor!r} was shut down. Make a new one, or call "
                f"{self.where} within its with block."
            )
        if getattr(self.executor, "_broken", False):
            raise ExecutorError(
                f"{self.where}: executor={self.executor!r} is broken: one of its workers died. "
                "Make a new one."
            )
        if self._forks() and "jax" in sys.modules:
            raise ExecutorError(
                f"{self.where}: executor={self.executor!r} forks its workers from a process that "
                "runs JAX, whose threads they would wait for for ever. Start new ones: "
                "ProcessPoolExecutor(..., mp_context=multiprocessing.get_context('spawn'))."
            )

    def _forks(self) -> bool:
        context: Any = getattr(self.executor, "_mp_context", None)
        return isinstance(self.executor, ProcessPoolExecutor) and (
            context.get_start_method() == "fork"
        )

    def _on_this_machine(self) -> bool:
        kinds = (f"{kind.__module__}.{kind.__name__}" for kind in type(self.executor).__mro__)
        known = ("concurrent.futures.process.", "loky.process_executor.")
        return any(kind.startswith(known) for kind in kinds)


def _shut_down(executor: Executor, *, wait: bool) -> None:
    try:
        executor.shutdown(wait=wait, cancel_futures=True)
    except TypeError:  # loky's cannot cancel, but all that was not done is cancelled already
        executor.shutdown(wait=wait)


def _is_shut_down(executor: Executor) -> bool:
    if getattr(executor, "_shutdown", False) or getattr(executor, "_shutdown_thread", False):
        return True
    return bool(getattr(getattr(executor, "_flags", None), "shutdown", False))  # loky


def _hint(given: object) -> str:
    if type(given).__module__.partition(".")[0] in ("distributed", "dask"):
        return " For Dask: executor=sp.dask_executor(client)."
    return ""
