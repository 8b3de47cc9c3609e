"""Laws of ``sp.plan``: limits are kept, and what cannot be planned is named."""

from __future__ import annotations

import numpy as np
import pytest

import stowplan as sp
from stowplan.planners.cost import Costs

SIZES = [3, 0, 5, 1, 4, 3, 2]


def rows_of(plan):
    return sorted(int(item) for batch in plan.batches for item in batch.items[: batch.count])


@pytest.mark.parametrize("slots", [None, 1, 3, "exact", [{"atoms": 2}, {"atoms": 9, "rows": 3}]])
def test_every_item_is_in_one_batch_that_holds_it(kernels, put, framework, slots):
    data = put(kernels.make_atoms(SIZES))
    plan = sp.plan(kernels.pull, data, slots=slots)
    assert rows_of(plan) == list(range(len(SIZES)))
    assert plan.on == framework
    for batch in plan.batches:
        assert max(SIZES[item] for item in batch.items) <= batch.capacity[0]
        assert min(batch.capacity) >= 1


def test_another_frameworks_plan_names_it(kernels, framework):
    plan = sp.plan(kernels.pull, kernels.make_atoms(SIZES), on=framework)
    assert plan.on == framework


def test_slots_of_a_plan_keep_capacities_and_rows(kernels):
    plan = sp.plan(kernels.pull, kernels.make_atoms(SIZES), slots=2, rows=2)
    other = sp.plan(kernels.pull, kernels.make_atoms([1, 5, 5, 5, 2]), slots=plan.slots)
    assert other.slots == plan.slots
    assert set(other.shapes) <= set(plan.shapes)


@pytest.mark.parametrize("capacity", [0, -3, 2.5, True, None, "4"])
def test_capacities_are_positive_integers(kernels, capacity):
    with pytest.raises(sp.PlanError, match="slot 0: atoms"):
        sp.plan(kernels.pull, kernels.make_atoms([4]), slots=[{"atoms": capacity}])


@pytest.mark.parametrize("rows", [0, -1, 1.5, [1, 2], [0]])
def test_rows_are_positive_integers_one_for_each_slot(kernels, rows):
    with pytest.raises(sp.PlanError, match="rows"):
        sp.plan(kernels.pull, kernels.make_atoms([4, 4]), slots=1, rows=rows)


@pytest.mark.parametrize("slots", [0, -2, "exakt", {"atoms": 4}, [4]])
def test_slots_are_a_count_or_mappings_or_exact(kernels, slots):
    with pytest.raises(sp.PlanError, match=r"slot|count"):
        sp.plan(kernels.pull, kernels.make_atoms([4, 4]), slots=slots)


def test_an_unknown_slot_dim_lists_the_dims(kernels):
    with pytest.raises(sp.PlanError, match=r"'atom'.*Dims: atoms"):
        sp.plan(kernels.pull, kernels.make_atoms([4]), slots=[{"atom": 4}])


def test_an_item_that_fits_no_slot_is_named_with_the_cure(kernels):
    data = kernels.make_atoms([2, 7])
    with pytest.raises(
        sp.PlanError, match=r"1 of 2 items.*Item 1 has atoms=7.*\n.*overflow=\"extend\""
    ):
        sp.plan(kernels.pull, data, slots=[{"atoms": 4}])
    plan = sp.plan(kernels.pull, data, slots=[{"atoms": 4}], overflow="extend")
    assert rows_of(plan) == [0, 1]
    assert "atoms" in plan.warnings[0]


def test_padded_counts_beyond_64_bits_are_refused_before_allocation(kernels):
    data = {
        "image": sp.Ragged.from_list([np.ones((1, 1))], 2),
        "weights": sp.Ragged.from_list([np.ones(1)]),
    }
    huge = 2**32
    with pytest.raises(sp.PlanError, match="64-bit"):
        sp.plan(kernels.weigh, data, slots=[{"y": huge, "x": huge}])
    with pytest.raises(sp.PlanError, match="64-bit"):
        sp.plan(kernels.weigh, data, slots=[{"y": 2**30, "x": 2**30, "rows": 2**4}])


def test_costs_given_decide(kernels):
    data = kernels.make_atoms([1, 2, 3, 40, 41, 42])
    dear_work = sp.plan(kernels.pull, data, costs=Costs(1.0, 1e-9, 0.0))
    dear_launches = sp.plan(kernels.pull, data, costs=Costs(1e-9, 1.0, 1.0))
    assert len(dear_work.slots) == 6
    assert len(dear_launches.slots) == 1
    assert dear_work.costs == Costs(1.0, 1e-9, 0.0)


def test_errors_of_run_name_run(kernels):
    with pytest.raises(sp.DataError, match="run: total"):
        sp.run(kernels.total, {"y": [[1.0]]}, scale=1.0)
    with pytest.raises(sp.DataError, match="plan: total"):
        sp.plan(kernels.total, {"y": [[1.0]]})


def test_no_items_are_planned(kernels):
    for slots in (None, 2, "exact", [{"atoms": 4}]):
        plan = sp.plan(kernels.pull, kernels.make_atoms([]), slots=slots)
        assert plan.batches == ()
    plan = sp.plan(
        kernels.pull, kernels.make_atoms([]), slots=[{"atoms": 4, "rows": 2}], budget="1 MiB"
    )
    assert plan.slots == ({"atoms": 4, "rows": 2},)


def test_headroom_adds_one_empty_slot_for_larger_items(kernels):
    data = kernels.make_atoms(SIZES)
    tight = sp.plan(kernels.pull, data, slots=2)
    plan = sp.plan(kernels.pull, data, slots=2, headroom=1.3)
    assert plan.slots == (*tight.slots, {"atoms": 7, "rows": 1})  # 1.3 times 5, rounded up
    assert plan.occupancy() == tight.occupancy()
    assert [batch.items.tolist() for batch in plan.batches] == [
        batch.items.tolist() for batch in tight.batches
    ]
    later = sp.plan(kernels.pull, kernels.make_atoms([6, 2, 7]), slots=plan.slots)
    assert [batch.items.tolist() for batch in later.batches if batch.slot == 2] == [[0], [2]]
    assert later.slots == plan.slots


@pytest.mark.parametrize(
    ("headroom", "message"),
    [
        (0.9, "headroom=0.9; it multiplies the largest sizes: at least 1"),
        (np.inf, "headroom=inf"),
        (np.nan, "headroom=nan"),
        (True, "headroom=True; it is a factor"),
        ("2", "headroom='2'; it is a factor"),
    ],
)
def test_headroom_is_a_factor_of_at_least_one(kernels, headroom, message):
    with pytest.raises(sp.PlanError, match=message):
        sp.plan(kernels.pull, kernels.make_atoms(SIZES), headroom=headroom)


def test_headroom_that_nothing_can_use_is_refused(kernels):
    with pytest.raises(sp.PlanError, match="n must be equal within a slot"):
        sp.plan(kernels.spectrum, {"x": [[1.0], [2.0, 3.0]]}, headroom=2)
    with pytest.raises(sp.PlanError, match="no items"):
        sp.plan(kernels.pull, kernels.make_atoms([]), headroom=2)
    with pytest.raises(sp.PlanError, match="no ragged dims"):
        sp.plan(kernels.length, {"vector": np.ones((2, 3)), "factor": np.ones(2)}, headroom=2)


def test_headroom_is_saved(kernels, tmp_path):
    plan = sp.plan(kernels.pull, kernels.make_atoms(SIZES), headroom=2)
    plan.save(tmp_path / "plan")
    assert sp.Plan.load(tmp_path / "plan").headroom is True
