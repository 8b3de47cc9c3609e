"""Memory of a run over time, sampled by a thread."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stowplan.host_memory import give_back_host, resident_host_bytes

__all__ = ["MemoryTrace"]

MOST_SAMPLES = 4096
"""Beyond, neighbours are merged into the larger one, and samples are taken half as often."""


class MemoryTrace:
    """Resident bytes of this process above those at the start, from ``with`` to its end.

    Attributes
    ----------
    start_bytes : int
        Resident at the start, interpreter and modules among them.
    every : float
        Seconds between two samples.

    Examples
    --------
    >>> with MemoryTrace() as trace:
    ...     ones = np.ones(2**23)  # more than a heap keeps in store
    >>> trace.peak_bytes >= 2**25, len(trace.seconds) == len(trace.bytes)
    (True, True)
    """

    def __init__(self, every: float = 0.02) -> None:
        self.every = every
        self.start_bytes = 0
        self._samples: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._most_before = 0
        self._most_after = 0

    def __enter__(self) -> Self:
        give_back_host()
        self._samples, self._over = [], threading.Event()
        self.start_bytes = resident_host_bytes()
        self._most_before = self._most_after = _most_resident()
        self._began = time.perf_counter()
        self._sample()
        self._thread = threading.Thread(target=self._watch, name="stowplan-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._sample()
        self._most_after = _most_resident()

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Times of samples since the start."""
        return np.array([at for at, _ in self._samples], np.float64)

    @property
    def bytes(self) -> NDArray[np.int64]:
        """Bytes above those at the start, one for each sample."""
        return np.array([size for _, size in self._samples], np.int64)

    @property
    def peak_bytes(self) -> int:
        """Most bytes above the start: as the system counted them where it has, else as sampled."""
        sampled = max((size for _, size in self._samples), default=0)
        if self._most_after > self._most_before:
            return max(sampled, self._most_after - self.start_bytes)
        return sampled

    def _watch(self) -> None:
        while not self._over.wait(self.every):
            self._sample()

    def _sample(self) -> None:
        size = max(resident_host_bytes() - self.start_bytes, 0)
        self._samples.append((time.perf_counter() - self._began, size))
        if len(self._samples) > MOST_SAMPLES:
            pairs = [self._samples[n : n + 2] for n in range(0, len(self._samples), 2)]
            self._samples = [max(pair, key=lambda sample: sample[1]) for pair in pairs]
            self.every *= 2


def _most_resident() -> int:
    """Give the most bytes that this process has held, 0 where the system does not say."""
    try:
        import resource  # not on every system
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
