"""Peak memory of a batch that is computed at once: allocations of the host, counted."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

__all__ = ["traced_peak"]


def traced_peak(call: Callable[[], Any]) -> int:
    """Bytes that a call allocates on the host at its peak, its result included.

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
    finally:
        if not started:
            tracemalloc.stop()
    return peak - before
