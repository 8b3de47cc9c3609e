"""Peak memory of a batch that is computed at once: allocations of the host, counted."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

__all__ = ["steady_peak", "traced_peak"]

LEFT_SHARE, LEFT_BYTES = 200, 1 << 11
"""What any call leaves behind in Python: one part in so many of its peak, and no more than that. A
first call that imports or caches something leaves more."""


def steady_peak(measure: Callable[[], tuple[int, int]]) -> int:
    """Bytes of a call at its peak, without what a first one imports and caches.

    ``measure`` makes the call, and gives its peak and what it leaves behind; it is called again
    where that is something.

    >>> found = iter([(900, 300), (600, 0)])
    >>> steady_peak(lambda: next(found))
    600
    """
    peak, left = measure()
    return peak if left <= min(peak // LEFT_SHARE, LEFT_BYTES) else measure()[0]


def traced_peak(call: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that a call allocates on the host at its peak, its result included, and leaves there.

    ``tracemalloc`` counts what NumPy and Python allocate, in every thread, and no buffers of a BLAS
    library.
    """
    started = tracemalloc.is_tracing()
    if not started:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        result = call()
        _, peak = tracemalloc.get_traced_memory()
        del result
        after, _ = tracemalloc.get_traced_memory()
    finally:
        if not started:
            tracemalloc.stop()
    return peak - before, after - before
