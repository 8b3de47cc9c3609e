"""Where work, rows and bytes go, against loops over rows and items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.errors import PlanError
from stowplan.reports.padding import (
    find_carriers,
    find_causes,
    item_padding,
    measure_padding,
    most_padded,
)

ONE = [{"atoms": 192, "k": 32768}]
TWO = [{"atoms": 64, "k": 4096}, {"atoms": 192, "k": 32768}]


@st.composite
def plans(draw):
    items = draw(st.integers(1, 30))
    length = st.integers(0, 9)
    atoms = draw(st.lists(length, min_size=items, max_size=items))
    k = draw(st.lists(length, min_size=items, max_size=items))
    slots = [{"atoms": draw(st.integers(1, 9)), "k": draw(st.integers(1, 9))}]
    plan = sp.assign_slots(
        {"atoms": atoms, "k": k}, [*slots, {"atoms": 9, "k": 9}], work="atoms * k + 1"
    )
    plan = replace(plan, item_bytes="8 * atoms + 4")
    return sp.split_chunks(plan, rows=draw(st.integers(1, 7)))


def work(lengths):
    return lengths[0] * lengths[1] + 1


PRICES = {"work": work, "rows": lambda lengths: 1, "bytes": lambda lengths: 8 * lengths[0] + 4}


@given(plans(), st.sampled_from(["work", "rows", "bytes"]))
@settings(max_examples=60, deadline=None)
def test_useful_slot_padding_and_row_padding_are_those_of_a_loop_over_rows(plan, by):
    price = PRICES[by]
    useful, slot_padding, row_padding = np.zeros((3, len(plan.slots)))
    for batch in plan.batches:
        for row, item in enumerate(batch.items.tolist()):
            if row < batch.count:
                useful[batch.slot] += price(plan.lengths[item])
                slot_padding[batch.slot] += price(batch.capacity) - price(plan.lengths[item])
            else:
                row_padding[batch.slot] += price(batch.capacity)
    found = measure_padding(plan, by)
    np.testing.assert_allclose(found.useful, useful)
    np.testing.assert_allclose(found.slot_padding, slot_padding)
    np.testing.assert_allclose(found.row_padding, row_padding)


@given(plans())
@settings(max_examples=30, deadline=None)
def test_all_slots_together_have_the_occupancy_of_the_plan(plan):
    assert measure_padding(plan).total.occupancy[0] == pytest.approx(plan.occupancy())
    assert measure_padding(plan, "rows").total.occupancy[0] == pytest.approx(plan.rows_occupancy)


def test_the_structures_of_the_slot_example_have_the_published_occupancy(sizes):
    useful = sum(atoms * k for atoms, k in zip(*(sizes[d].tolist() for d in sizes), strict=True))
    one, two = (measure_padding(sp.assign_slots(sizes, slots)) for slots in (ONE, TWO))
    assert one.total.occupancy[0] == pytest.approx(useful / (3200 * 192 * 32768), rel=1e-12)
    padded = 3104 * 64 * 4096 + 96 * 192 * 32768
    assert two.total.occupancy[0] == pytest.approx(useful / padded, rel=1e-12)
    assert round(100 * one.total.occupancy[0], 1) == 3.9
    assert round(100 * two.total.occupancy[0], 1) == 55.3


def test_an_empty_slot_has_no_occupancy():
    found = measure_padding(sp.assign_slots({"atoms": [9]}, [{"atoms": 3}, {"atoms": 9}]))
    assert np.isnan(found.occupancy[0])
    assert found.occupancy[1] == 1


@given(plans())
@settings(max_examples=40, deadline=None)
def test_items_are_listed_by_what_they_are_padded(plan):
    loop = {}
    for batch in plan.batches:
        for item in batch.items[: batch.count].tolist():
            loop[item] = work(batch.capacity) - work(plan.lengths[item])
    order = sorted(loop, key=lambda item: (-loop[item], item))
    np.testing.assert_allclose(item_padding(plan), [loop[item] for item in range(len(loop))])
    few = most_padded(plan, 3).tolist()
    assert [loop[item] for item in few] == [loop[item] for item in order[:3]]
    assert most_padded(plan, len(loop)).tolist() == order


@given(plans())
@settings(max_examples=60, deadline=None)
def test_what_the_largest_items_cause_is_saved_when_the_others_are_planned_alone(plan):
    found = find_causes(plan)
    total = measure_padding(plan).total
    lost = float(total.slot_padding[0] + total.row_padding[0])
    saved = 0.0
    for slot, fit in found.fits.items():
        members = [i for b in plan.batches if b.slot == slot for i in b.items[: b.count].tolist()]
        left = [item for item in members if item not in set(found.items.tolist())]
        assert 2 * len(left) >= len(members)
        tight = np.maximum(plan.lengths[left], 1).max(axis=0)
        assert list(fit.values()) == tight.tolist()
        capacity = [plan.slots[slot][dim] for dim in plan.dims]
        saved += len(left) * (work(capacity) - work(tight))
    assert found.share == pytest.approx(saved / lost if lost else 0.0)


@given(plans())
@settings(max_examples=60, deadline=None)
def test_no_other_cut_of_a_slot_saves_more(plan):
    found = find_causes(plan)
    total = measure_padding(plan).total
    lost = float(total.slot_padding[0] + total.row_padding[0])
    best = 0.0
    for slot in range(len(plan.slots)):
        members = [i for b in plan.batches if b.slot == slot for i in b.items[: b.count].tolist()]
        capacity = np.array([plan.slots[slot][dim] for dim in plan.dims])
        lengths = {item: np.maximum(plan.lengths[item], 1) for item in members}
        order = sorted(members, key=lambda item: (lengths[item] / capacity).max())
        gains = [0.0]
        for count in range(max(-(-len(order) // 2), 1), len(order) + 1):
            tight = np.max([lengths[item] for item in order[:count]], axis=0)
            gains.append(count * (work(capacity) - work(tight)))
        best += max(gains)
    assert found.share == pytest.approx(best / lost if lost else 0.0)


def test_the_96_large_structures_cause_the_padding_of_a_single_slot(sizes):
    found = find_causes(sp.assign_slots(sizes, ONE))
    assert sorted(found.items.tolist()) == np.flatnonzero(sizes["k"] > 4096).tolist()
    assert found.fits == {0: {"atoms": 64, "k": int(sizes["k"][sizes["k"] <= 4096].max())}}


@given(plans())
@settings(max_examples=40, deadline=None)
def test_the_few_items_that_carry_the_padding_are_the_place_of_most_contrast(plan):
    found = find_carriers(plan)
    total = measure_padding(plan).total
    lost = float(total.slot_padding[0] + total.row_padding[0])
    if not lost:
        assert found.items == 0
        return
    falling = sorted(item_padding(plan).tolist(), reverse=True)
    contrast = [
        sum(falling[:count]) / lost - count / len(falling) for count in range(1, len(falling) + 1)
    ]
    assert found.share - found.items / len(falling) == pytest.approx(max(contrast))
    assert found.share == pytest.approx(sum(falling[: found.items]) / lost)


def test_bytes_of_a_plan_that_does_not_know_them_are_refused():
    plan = sp.assign_slots({"atoms": [1]}, [{"atoms": 4}])
    with pytest.raises(PlanError, match=r"does not know the bytes.*item_bytes="):
        measure_padding(plan, "bytes")
    with pytest.raises(PlanError, match='"work", "rows" and "bytes"'):
        measure_padding(plan, "seconds")
