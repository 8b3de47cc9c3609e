"""Memory over time: what is held is seen, while it is held, in a bounded number of samples."""

from __future__ import annotations

import mmap
import time

import numpy as np
import pytest

from stowplan.host_memory import resident_host_bytes
from stowplan.runs import memory_trace
from stowplan.runs.memory_trace import MemoryTrace

pytestmark = pytest.mark.skipif(not resident_host_bytes(), reason="the system does not say")
MIB = 2**20


def test_what_is_held_is_seen_while_it_is_held():
    with MemoryTrace(every=0.005) as trace:
        time.sleep(0.05)
        held = mmap.mmap(-1, 64 * MIB)  # of the system: an allocator may keep what is freed
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        time.sleep(0.05)
        held.close()
        time.sleep(0.05)
    assert 62 * MIB < trace.peak_bytes < 80 * MIB
    assert trace.bytes[0] < 8 * MIB
    assert trace.bytes[-1] < 32 * MIB
    assert (np.diff(trace.seconds) >= 0).all()
    assert trace.bytes.max() > 62 * MIB


@pytest.mark.parametrize("place", [1, 10, 15, 16, 40])
def test_samples_are_thinned_and_keep_the_peak(monkeypatch, place):
    held = iter([100, *[100] * place, 700, *[100] * 90])  # the peak is seen once
    monkeypatch.setattr(memory_trace, "MOST_SAMPLES", 16)
    monkeypatch.setattr(memory_trace, "resident_host_bytes", lambda: next(held))
    with MemoryTrace(every=60.0) as trace:
        for _ in range(90):
            trace._sample()
    assert len(trace.seconds) <= 17
    assert trace.every > 60 * 2**3
    assert trace.bytes.max() == 600


def test_an_exception_ends_the_thread():
    with pytest.raises(ValueError, match="stop"), MemoryTrace() as trace:
        raise ValueError("stop")
    assert not trace._thread.is_alive()
