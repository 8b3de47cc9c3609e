"""Curves of slots, and when devices are done."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.planners.shards import summarise_shards
from stowplan.reports.curves import find_knee, occupancy_curve
from stowplan.reports.schedules import schedule


def test_each_point_has_the_padded_work_of_its_slots(sizes):
    costs = sp.Costs(2e-9, 1e-3, 0.5)
    plan = replace(sp.assign_slots(sizes, [{}]), costs=costs)
    curve = occupancy_curve(plan, 4)
    assert curve.counts.tolist() == [1, 2, 3, 4]
    for point, slots in enumerate(curve.slots):
        other = sp.assign_slots(sizes, slots)
        assert curve.padded_work[point] == other.padded_work()
        assert curve.occupancy[point] == pytest.approx(other.occupancy())
        own = costs.seconds(other.padded_work(), len(slots), len(slots))
        assert curve.seconds[point] == pytest.approx(own)
    assert curve.cheapest == curve.seconds.tolist().index(min(curve.seconds))


def test_a_curve_begins_at_the_sizes_of_exact_dims():
    plan = sp.assign_slots({"n": [3, 4, 5], "m": [1, 9, 9]}, [{}], exact=["n"])
    assert occupancy_curve(plan, 2).counts.tolist() == [3]


def test_there_is_no_curve_without_items_or_dims():
    assert occupancy_curve(sp.assign_slots({"n": []}, [{"n": 1}])) is None
    assert occupancy_curve(sp.assign_slots({}, [{}], items=3)) is None


@given(st.integers(2, 12), st.integers(3, 20))
def test_the_knee_of_two_lines_is_where_they_meet(bend, more):
    counts = np.arange(1.0, bend + more)
    occupancy = np.where(counts <= bend, 0.8 * counts / bend, 0.8 + 0.001 * (counts - bend))
    assert counts[find_knee(counts, occupancy)] == bend


def test_a_curve_that_does_not_rise_has_its_knee_at_the_first_point():
    assert find_knee(np.array([1.0, 2.0]), np.array([0.5, 0.5])) == 0
    assert find_knee(np.array([3.0]), np.array([0.5])) == 0


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=25), st.integers(1, 4),
    st.sampled_from(["work", "rows", "items"]), st.sampled_from([0.0, 3.0]),
    st.sampled_from([400, 6, 1]),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_devices_are_done_when_the_planner_says(lengths, devices, by, compile_seconds, most):
    costs = sp.Costs(1.0, 0.5, compile_seconds)
    slots = [{"n": 8}, {"n": 40}]
    plan = replace(sp.assign_slots({"n": lengths}, slots), costs=costs)
    plan = sp.share_devices(sp.split_chunks(plan, rows=3), devices, by)
    spans = schedule(plan, most)
    done = np.zeros(devices)
    for device in range(devices):
        own = sorted(span for span in spans if span.device == device)
        assert all(a.stop == pytest.approx(b.start) for a, b in itertools.pairwise(own))
        done[device] = own[-1].stop if own else 0.0
    np.testing.assert_allclose(done, summarise_shards(plan).seconds)
    batches = sum(span.batches for span in spans)
    assert batches == len(plan.batches) * (devices if by == "rows" else 1)


def test_many_spans_become_one_for_each_slot_and_device():
    plan = sp.assign_slots({"n": [1, 9] * 50}, [{"n": 1}, {"n": 9}])
    plan = sp.share_devices(sp.split_chunks(plan, rows=1), 2)
    assert len(schedule(plan, 1)) == 4
