"""What a run took, beside what its plan predicted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from stowplan.adapters import framework_of, get_adapter
from stowplan.adapters.interface import as_tuple
from stowplan.errors import PlanError
from stowplan.host_memory import resident_host_bytes
from stowplan.planners.batches import Plan

__all__ = ["RunRecord", "record"]

Results = TypeVar("Results")
SAMPLED = 0.005  # seconds between two looks at the memory of the process


@dataclass(eq=False)
class RunRecord:
    """Time and memory of one run of a plan, for ``sp.report``.

    Attributes
    ----------
    plan : Plan
        What was run.
    seconds : float, optional
        From its start to its end; None until it has ended.
    peak_bytes : int, optional
        Most that it held beside what was there before; None where nobody looked.
    memory : str
        Where `peak_bytes` comes from.

    Examples
    --------
    With what another tool has measured:

    >>> from stowplan.planners import assign_slots
    >>> plan = assign_slots({"atoms": [2, 3]}, [{"atoms": 4}])
    >>> RunRecord(plan, seconds=0.5, peak_bytes=2**20).seconds
    0.5
    """

    plan: Plan
    seconds: float | None = None
    peak_bytes: int | None = None
    memory: str = "as given"

    def wait(self, results: Results) -> Results:
        """Give the results back once they are computed, as frameworks return before that."""
        framework = framework_of(as_tuple(results))
        if framework is not None:
            get_adapter(framework).synchronize(results)
        return results


@contextmanager
def record(plan: Plan, *, peak_bytes: Callable[[], int] | None = None) -> Iterator[RunRecord]:
    """Take the time and the memory of what runs inside.

    Parameters
    ----------
    plan : Plan
        What is run.
    peak_bytes : callable, optional
        Gives the bytes at the peak when the run has ended, such as
        ``torch.cuda.max_memory_allocated``; memory of a GPU is not seen without it. By default the
        memory of this process is looked at all 5 ms, less what it held before.

    Yields
    ------
    RunRecord
        Complete when the block has ended; for ``sp.report``.

    Examples
    --------
    >>> import stowplan as sp
    >>> @sp.kernel("(points)->()", ragged="points", fill={"x": 0.0})
    ... def total(x):
    ...     return x.sum(axis=-1)
    >>> data = {"x": [[1.0, 2.0], [5.0]]}
    >>> plan = sp.plan(total, data)
    >>> with sp.record(plan) as run:
    ...     totals = run.wait(sp.run(total, data, plan))
    >>> run.seconds > 0
    True
    """
    if not isinstance(plan, Plan):
        raise PlanError(
            f"record: {type(plan).__name__} is no plan. Make one first, plan = sp.plan(kernel, "
            "data), and run it inside: with sp.record(plan) as run: sp.run(kernel, data, plan)."
        )
    made = RunRecord(plan)
    watch = _Watch() if peak_bytes is None else None
    start = time.perf_counter()
    try:
        yield made
    finally:
        made.seconds = time.perf_counter() - start
        if peak_bytes is not None:
            made.peak_bytes, made.memory = int(peak_bytes()), "by peak_bytes="
        elif watch is not None:
            found = watch.stop()
            if found is not None:
                made.peak_bytes, made.memory = found, "memory of this process beyond its start"


class _Watch:
    """A thread that looks how much memory the process holds."""

    def __init__(self) -> None:
        self.first = self.most = resident_host_bytes()
        self.mark = _high_water()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, name="stowplan-record", daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.ended.wait(SAMPLED):
            self.most = max(self.most, resident_host_bytes())

    def stop(self) -> int | None:
        """Give the most bytes beyond the first; None where the system does not say."""
        self.ended.set()
        self.thread.join()
        mark = _high_water()
        if mark > self.mark:  # higher than ever before: the system has seen it without gaps
            self.most = max(self.most, mark)
        return max(self.most, resident_host_bytes()) - self.first if self.first else None


def _high_water() -> int:
    """Most bytes that the process has ever held; 0 where the system does not say."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    lines = [line for line in text.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(lines[0].split()[1]) if lines else 0
