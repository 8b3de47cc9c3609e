"""Cores of a host; one intra-op thread for each worker, and what was set before when all end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Shared", "one_blas_thread", "usable_cores"]


def usable_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


class Shared:
    """A setting of the process that several callers hold at a time: set by the first of them.

    The last one that lets go restores it, so that callers in several threads do not restore what
    another one has set.
    """

    def __init__(self, hold: Callable[[], Callable[[], Any]]) -> None:
        self._hold = hold  # sets, and gives what restores
        self._restore: Callable[[], Any] = tuple
        self._holders = 0
        self._lock = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the setting."""
        with self._lock:
            if not self._holders:
                self._restore = self._hold()
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._restore()


def _limit_blas() -> Callable[[], Any]:
    import threadpoolctl  # on use, as it looks through all libraries that are loaded

    limits = threadpoolctl.threadpool_limits(limits=1, user_api="blas")
    restore: Callable[[], Any] = limits.restore_original_limits
    return restore


_blas = Shared(_limit_blas)
one_blas_thread = _blas.held
"""While it is held, products and decompositions of NumPy and SciPy take one thread each."""
