"""Batches shared out among devices: all of them, once, and nearly as well as possible."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.planners.shards import cheapest_shares, summarise_shards

WORK = sp.Costs(work_seconds=1.0, launch_seconds=0.0)
COMPILED = sp.Costs(work_seconds=1.0, launch_seconds=0.5, compile_seconds=40.0)

lengths = st.lists(st.integers(0, 30), min_size=1, max_size=40)
rows = st.integers(1, 6)
counts = st.integers(1, 5)


def planned(sizes, slots, rows, costs=WORK):
    limits = sorted({max(sizes), *(max(sizes) * k // slots + 1 for k in range(1, slots))})
    plan = sp.assign_slots({"n": sizes}, [{"n": max(limit, 1)} for limit in limits])
    return sp.split_chunks(replace(plan, costs=costs), rows)


def items_of(batches):
    return sorted(item for batch in batches for item in batch.items[: batch.count].tolist())


def seconds_of(plan, costs):
    """A slow loop: when each device is done; compiles take turns."""
    found = [0.0] * len(plan.devices)
    shapes = [set() for _ in plan.devices]
    for batch in plan.batches:
        found[batch.device] += len(batch.items) * batch.capacity[0] * costs.work_seconds
        found[batch.device] += costs.launch_seconds
        shapes[batch.device].add((len(batch.items), batch.capacity))
    return [seconds + costs.compile_seconds * sum(map(len, shapes)) for seconds in found]


@settings(max_examples=60)
@given(lengths, st.integers(1, 4), rows, counts, st.sampled_from([WORK, COMPILED]))
def test_by_work_keeps_batches_and_gives_each_one_device(sizes, slots, rows, devices, costs):
    plan = planned(sizes, slots, rows, costs)
    shared = sp.share_devices(plan, devices)
    assert len(shared.devices) == devices
    for batch, before in zip(shared.batches, plan.batches, strict=True):
        assert 0 <= batch.device < devices
        assert batch.items is before.items
        assert (batch.count, batch.capacity, batch.slot) == (
            before.count, before.capacity, before.slot,
        )  # fmt: skip
    np.testing.assert_allclose(summarise_shards(shared).seconds, seconds_of(shared, costs))
    assert shared.predicted_seconds == pytest.approx(max(seconds_of(shared, costs)))


@settings(max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 3))
def test_longest_first_keeps_grahams_bound(sizes, devices):
    """R. L. Graham, SIAM J. Appl. Math. 17, 416 (1969), against all ways there are."""
    plan = sp.split_chunks(
        replace(sp.assign_slots({"n": sizes}, [{"n": n} for n in range(1, 31)]), costs=WORK), 1
    )
    shared = sp.share_devices(plan, devices)
    best = min(
        max(sum(n for n, d in zip(sizes, where, strict=True) if d == k) for k in range(devices))
        for where in itertools.product(range(devices), repeat=len(sizes))
    )
    assert shared.predicted_seconds <= (4 / 3 - 1 / (3 * devices)) * best + 1e-9


def test_the_worst_case_of_longest_first_is_reached():
    """Graham's example for two devices: 3, 3, 2, 2, 2 end at 7, where 6 is possible."""
    sizes = [3, 3, 2, 2, 2]
    plan = replace(sp.assign_slots({"n": sizes}, [{"n": 2}, {"n": 3}]), costs=WORK)
    shared = sp.share_devices(sp.split_chunks(plan, 1), 2)
    assert shared.predicted_seconds == 7
    assert summarise_shards(shared).imbalance == pytest.approx(7 / 6)


@settings(max_examples=60)
@given(lengths, st.integers(1, 4), rows, counts)
def test_with_compiles_sharing_is_no_worse_than_without_regard_to_them(sizes, slots, rows, devices):
    plan = planned(sizes, slots, rows, COMPILED)
    aware = max(seconds_of(sp.share_devices(plan, devices), COMPILED))
    blind = sp.share_devices(replace(plan, costs=replace(COMPILED, compile_seconds=0.0)), devices)
    assert aware <= max(seconds_of(blind, COMPILED)) + 1e-9


def test_devices_keep_to_their_shapes_where_compiles_are_dear():
    plan = planned([10] * 12 + [20] * 6, 2, 1, replace(COMPILED, compile_seconds=1000.0))
    shared = sp.share_devices(plan, 2)
    where = {(batch.capacity, batch.device) for batch in shared.batches}
    assert len(where) == 2


@settings(max_examples=60)
@given(lengths, st.integers(1, 4), rows, counts)
def test_by_rows_pads_to_a_multiple_and_loses_no_item(sizes, slots, rows, devices):
    plan = planned(sizes, slots, rows)
    shared = sp.share_devices(plan, devices, by="rows")
    assert items_of(shared.batches) == items_of(plan.batches) == list(range(len(sizes)))
    for batch in shared.batches:
        assert len(batch.items) % devices == 0
        assert len(batch.items) == shared.slots[batch.slot]["rows"]
        assert set(batch.items.tolist()) == set(batch.items[: batch.count].tolist())
    for batch, before in zip(plan.rows, shared.rows, strict=True):
        assert batch <= before < batch + devices
    assert len(shared.batches) <= len(plan.batches)
    assert len(shared.shapes) == len(plan.shapes)


@settings(max_examples=60)
@given(lengths, st.integers(1, 4), rows, counts, st.booleans())
def test_by_items_slots_are_dealt_out_evenly_or_each_to_one_device(
    sizes, slots, rows, devices, keep
):
    plan = planned(sizes, slots, rows)
    shared = sp.share_devices(plan, devices, by="items", keep_rows=keep)
    assert items_of(shared.batches) == list(range(len(sizes)))
    evenly, whole = [], []
    for slot in range(len(plan.slots)):
        batches = [batch for batch in shared.batches if batch.slot == slot]
        held = [sum(b.count for b in batches if b.device == k) for k in range(devices)]
        evenly.append(max(held) - min(held) <= 1)
        whole.append(np.count_nonzero(held) <= 1)
        for batch in batches:
            assert batch.capacity == (plan.slots[slot]["n"],)
            most = plan.rows[slot] if keep else min(plan.rows[slot], max(held))
            assert len(batch.items) == most
    assert all(evenly) or all(whole)


def test_an_iteration_deals_a_slot_out_and_keeps_slots_whole_where_compiles_are_dear():
    cheap = sp.share_devices(planned([10] * 8 + [20] * 8, 2, 4), 2, by="items")
    assert {(batch.slot, batch.device) for batch in cheap.batches} == {*np.ndindex(2, 2)}
    dear = sp.share_devices(planned([10] * 8 + [20] * 8, 2, 4, COMPILED), 2, by="items")
    assert len({(batch.slot, batch.device) for batch in dear.batches}) == 2


def test_one_program_is_chosen_where_it_saves_compiles_and_not_where_it_pads():
    many = planned([20] * 32, 1, 4, COMPILED)
    assert cheapest_shares(many, 4, program=True).shared_by == "rows"
    assert cheapest_shares(many, 4, program=False).shared_by == "work"
    padded = planned([500, 1000], 2, 1, replace(COMPILED, compile_seconds=1.0))
    assert cheapest_shares(padded, 2, program=True).shared_by == "work"


def test_the_table_shows_each_device_and_the_imbalance():
    plan = sp.assign_slots({"n": [10, 10, 20]}, [{"n": 10}, {"n": 20}])
    plan = sp.share_devices(sp.split_chunks(replace(plan, costs=WORK), 1), ["cuda:0", "cuda:1"])
    text = str(plan)
    assert "shared     2 devices, each batch on one, longest first; imbalance 1.00" in text
    assert "cuda:0        1      1       1     20 s" in text
    assert "cuda:1        2      2       1     20 s" in text
    facts = plan.summary()
    assert [one["items"] for one in facts["devices"]] == [1, 2]
    assert "devices" not in planned([3], 1, 1).summary()


def test_the_table_says_what_the_other_way_would_take():
    plan = sp.share_devices(planned([10, 20] * 4, 2, 2, COMPILED), 2, by="rows")
    assert "instead each batch on one, longest first" in str(plan)


def test_shares_are_saved_and_loaded(tmp_path):
    plan = sp.share_devices(planned([3, 7, 9, 9, 12], 3, 2), ["a", "b"])
    plan.save(tmp_path / "plan")
    found = sp.Plan.load(tmp_path / "plan")
    assert (found.devices, found.shared_by) == (("a", "b"), "work")
    assert [b.device for b in found.batches] == [b.device for b in plan.batches]
    assert str(found) == str(plan)


def test_a_plan_without_items_is_shared():
    plan = sp.assign_slots({"n": []}, [{"n": 4}])
    for by in ("work", "rows", "items"):
        assert sp.share_devices(plan, 3, by=by).batches == ()
        assert summarise_shards(sp.share_devices(plan, 3, by=by)).imbalance == 1


@pytest.mark.parametrize("devices", [0, -1, True, 1.5, [], "2", None])
def test_no_number_of_devices_is_refused(devices):
    with pytest.raises(sp.PlanError, match=r"devices=.*give how many, from 1, or their names"):
        sp.share_devices(planned([3], 1, 1), devices)


def test_a_name_twice_and_another_way_are_refused():
    with pytest.raises(sp.PlanError, match="device a is named twice"):
        sp.share_devices(planned([3], 1, 1), ["a", "b", "a"])
    with pytest.raises(sp.PlanError, match="by='size'; allowed are \"work\""):
        sp.share_devices(planned([3], 1, 1), 2, by="size")


@given(st.lists(st.integers(33, 400), min_size=3, max_size=6), st.integers(2, 3), st.data())
def test_another_set_finds_each_whole_slot_where_it_was_compiled(counts, devices, data):
    costs = sp.Costs(work_seconds=1e-6, launch_seconds=1e-4, compile_seconds=1.0)
    slots = [{"n": 10 * (k + 1), "rows": 8 * (k + 1)} for k in range(len(counts))]
    where = []
    for _ in range(2):
        sizes = np.repeat([slot["n"] for slot in slots], counts)
        plan = replace(sp.split_chunks(sp.assign_slots({"n": sizes}, slots)), costs=costs)
        shared = sp.share_devices(plan, devices, by="items", keep_rows=True)
        assert items_of(shared.batches) == list(range(len(sizes)))
        where.append({(batch.slot, batch.device) for batch in shared.batches})
        counts = [data.draw(st.integers(1, 500)) for _ in counts]
    if all(len(each) == len(slots) for each in where):  # both whole
        assert where[0] == where[1]
