"""What a run took."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

import stowplan as sp
from stowplan.errors import PlanError

PLAN = sp.assign_slots({"atoms": [2, 3]}, [{"atoms": 4}])


def test_a_record_has_the_time_of_its_block():
    start = time.perf_counter()
    with sp.record(PLAN) as run:
        assert run.seconds is None
        time.sleep(0.02)
    assert 0.02 <= run.seconds <= time.perf_counter() - start
    assert run.plan is PLAN


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process holds")
def test_a_record_has_the_memory_that_was_held_for_a_while():
    size = 80 * 2**20
    np.ones(3 * size, np.uint8)  # more was held before, so that the most of all says nothing
    with sp.record(PLAN) as run:
        held = np.ones(size, np.uint8)
        time.sleep(0.05)
        del held
    assert 0.9 * size <= run.peak_bytes <= 1.3 * size


def test_what_another_tool_has_measured_counts_instead():
    with sp.record(PLAN, peak_bytes=lambda: 12345) as run:
        pass
    assert (run.peak_bytes, run.memory) == (12345, "by peak_bytes=")


def test_a_block_that_fails_raises_and_leaves_no_thread():
    import threading

    with pytest.raises(ZeroDivisionError), sp.record(PLAN):
        _ = 1 / 0
    assert "stowplan-record" not in {thread.name for thread in threading.enumerate()}


def test_results_are_waited_for_and_given_back():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    results = (jax.numpy.arange(3), jax.numpy.ones(2))
    with sp.record(PLAN) as run:
        assert run.wait(results) is results
        assert run.wait(None) is None


def test_a_record_of_no_plan_is_refused():
    with (
        pytest.raises(PlanError, match=r"record: list is no plan.*sp\.record\(plan\)"),
        sp.record([]),
    ):
        pass
