"""The words on top of a report."""

from __future__ import annotations

from dataclasses import replace

import stowplan as sp
from stowplan.reports.curves import occupancy_curve
from stowplan.reports.summaries import sentences


def told(plan, **options):
    return "\n".join(sentences(plan, occupancy_curve(plan), **options)).replace("\xa0", " ")


def test_the_few_that_make_a_slot_large_are_counted(sizes):
    plan = sp.assign_slots(sizes, [{"atoms": 192, "k": 32768}])
    text = told(plan)
    saved = 3104 * (192 * 32768 - 64 * int(sizes["k"][sizes["k"] <= 4096].max()))
    lost = plan.padded_work() - float((sizes["atoms"] * sizes["k"]).sum())
    assert "3.9 % of the work of 3 200 items in 1 slot and 1 batch is useful." in text
    assert f"96 items (3 % of all) cause {100 * saved / lost:.1f} % of the padding" in text
    assert "the others would fit a slot of atoms=64, k=4095." in text


def test_the_cheapest_number_of_slots_is_named_with_its_gain():
    plan = sp.assign_slots({"n": [1] * 90 + [10] * 10}, [{"n": 10}])
    plan = replace(plan, costs=sp.Costs(1.0, 100.0, 0.0))
    # padded 1000 and a launch of 100 against 90 + 100 and two launches
    assert f"2 slots would be {1100 / 390:.2g}x cheaper" in told(plan)
    assert f"{1000 / 190:.2g}x less work at 100 % occupancy" in told(plan)
    dear = replace(plan, costs=sp.Costs(1.0, 0.0, 5000.0))
    assert "2 slots would compute 5.3x less work" in told(dear)
    best = sp.assign_slots({"n": [1, 10]}, [{"n": 1}, {"n": 10}])
    best = replace(best, costs=sp.Costs(1.0, 0.1, 0.0))
    assert "Nothing is padded." in told(best)
    assert "No number of slots up to 2 would be a tenth cheaper." in told(best)


def test_rows_without_an_item_have_a_sentence_of_their_own():
    plan = sp.split_chunks(sp.assign_slots({"n": [4] * 5}, [{"n": 4}]), rows=4)
    assert "100 % of the padding is rows without an item." in told(plan)


def test_memory_devices_and_the_run_are_told(finished):
    text = told(finished.plan, run=finished)
    assert "720 MiB at its peak, 70.3 % of its budget of 1 GiB" in text
    assert "2 of them have no batch" in text
    assert "The run took 14.3 s" in text
    assert "sp.measure_costs" in text


def test_a_plan_without_items_says_so():
    assert sentences(sp.assign_slots({"n": []}, [{"n": 2}])) == ["This plan has no items."]
