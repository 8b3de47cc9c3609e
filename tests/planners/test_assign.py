import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import PlanError
from stowplan.planners import assign_exact, assign_slots, split_chunks

SMALL, LARGE = {"atoms": 64, "k": 4096}, {"atoms": 192, "k": 32768}


def placed(plan):
    """Slot of each item; fails unless every item stands in exactly one real row."""
    slots = np.full(len(plan.lengths), -1)
    for batch in plan.batches:
        real = batch.items[: batch.count]
        assert batch.count == len(real) > 0
        assert (slots[real] == -1).all()
        assert len(np.unique(real)) == len(real)
        slots[real] = batch.slot
    assert (slots >= 0).all()
    return slots


@st.composite
def assignments(draw):
    dims = "abc"[: draw(st.integers(1, 3))]
    items = draw(st.integers(0, 30))
    numbers = st.lists(st.integers(0, 9), min_size=items, max_size=items)
    slot = st.fixed_dictionaries(
        {}, optional={**{name: st.integers(1, 12) for name in dims}, "rows": st.integers(1, 4)}
    )
    return {name: draw(numbers) for name in dims}, draw(st.lists(slot, max_size=5))


@settings(max_examples=300)
@given(assignments(), st.booleans())
def test_each_item_enters_the_first_slot_that_holds_it(case, by_loop):
    sizes, slots = case
    plan = assign_slots(sizes, slots, overflow="extend")
    found = placed(plan)
    for item, lengths in enumerate(zip(*sizes.values(), strict=True)):
        own = dict(zip(sizes, lengths, strict=True))
        fits = [all(max(own[n], 1) <= s[n] for n in sizes if n in s) for s in slots]
        assert found[item] == (fits.index(True) if any(fits) else len(slots))
    for batch in plan.batches:
        assert (plan.lengths[batch.items] <= batch.capacity).all()
        assert tuple(plan.slots[batch.slot][n] for n in plan.dims) == batch.capacity
        assert len(batch.items) == plan.slots[batch.slot].get("rows", batch.count)
        assert (np.diff(batch.items[: batch.count]) > 0).all()


@settings(max_examples=150)
@given(assignments())
def test_a_dim_without_a_limit_takes_its_longest_item(case):
    sizes, slots = case
    plan = assign_slots(sizes, slots, overflow="extend")
    found = placed(plan)
    for index, slot in enumerate(slots):
        for axis, name in enumerate(sizes):
            inside = plan.lengths[found == index, axis]
            if name in slot:
                assert plan.slots[index][name] == slot[name]
            elif len(inside):
                assert plan.slots[index][name] == max(inside.max(), 1)
            else:
                assert plan.slots[index][name] >= 1


@settings(max_examples=100)
@given(assignments())
def test_resolved_slots_give_the_same_plan_again(case):
    sizes, slots = case
    plan = split_chunks(assign_slots(sizes, slots, overflow="extend"), max_rows=4)
    again = split_chunks(assign_slots(sizes, plan.slots))
    assert again.slots == plan.slots
    assert again.shapes == plan.shapes
    for old, new in zip(plan.batches, again.batches, strict=True):
        assert old.items.tolist() == new.items.tolist()
        assert (old.count, old.capacity, old.slot) == (new.count, new.capacity, new.slot)


@settings(max_examples=100)
@given(assignments())
def test_cheapest_never_pads_more_than_the_given_order(case):
    sizes, slots = case
    dims = list(sizes)
    slots = [{name: slot.get(name, 9) for name in dims} for slot in slots]
    given_order = assign_slots(sizes, slots, overflow="extend")
    cheapest = assign_slots(sizes, slots, overflow="extend", order="cheapest")
    placed(cheapest)
    assert cheapest.padded_work() <= given_order.padded_work()
    work = [np.prod([slot[n] for n in dims]) for slot in cheapest.slots[: len(slots)]]
    assert work == sorted(work)
    if cheapest.padded_work() < given_order.padded_work():
        assert any("listed before it" in text for text in given_order.warnings)
    else:
        assert not any("listed before it" in text for text in given_order.warnings)


def test_the_slot_example_has_its_published_occupancy(structures):
    one = assign_slots(structures, [LARGE])
    two = assign_slots(structures, [SMALL, LARGE])
    wrong = assign_slots(structures, [LARGE, SMALL])
    percent = [round(100 * plan.occupancy(work), 1) for plan in (one, two) for work in ("k", None)]
    assert percent == [11.1, 3.9, 73.7, 55.3]
    assert round(100 * wrong.occupancy(), 1) == 3.9
    assert wrong.slots == (LARGE, SMALL)


def test_the_slot_example_has_its_published_occupancy_in_batches_of_78(structures):
    order = np.random.default_rng(0).permutation(3200)
    one, two = [], []
    for start in range(0, 3200, 78):
        sizes = {name: column[order[start : start + 78]] for name, column in structures.items()}
        power = {"k": 1 << int(sizes["k"].max() - 1).bit_length()}
        one.append(assign_slots(sizes, [power]).occupancy("k"))
        two.append(assign_slots(sizes, [SMALL, LARGE]).occupancy("k"))
    assert [round(100 * np.mean(share), 1) for share in (one, two)] == [23.2, 74.2]


def test_a_large_slot_without_items_has_no_batch_and_keeps_its_capacity(structures):
    small = {name: column[:10] for name, column in structures.items()}
    plan = assign_slots(small, [SMALL, {**LARGE, "rows": 4}])
    assert [batch.slot for batch in plan.batches] == [0]
    assert plan.slots[1] == {**LARGE, "rows": 4}
    assert split_chunks(plan, max_rows=8).slots[1] == {**LARGE, "rows": 4}
    assert plan.rows == (10, 4)


def test_an_item_larger_than_every_slot_is_named_in_the_error_with_the_cure():
    slots = [{"atoms": 4, "k": 16}, {"atoms": 4, "k": 64}]
    with pytest.raises(PlanError) as caught:
        assign_slots({"atoms": [2, 3], "k": [9, 90]}, slots)
    assert str(caught.value) == (
        "assign_slots: 1 of 2 items fit no slot. Item 1 has atoms=3, k=90; "
        "the largest slot holds atoms=4, k=64.\n"
        'Add a slot that holds it: slots=[..., {"atoms": 4, "k": 90}], '
        'or pass overflow="extend".'
    )
    cured = [*slots, {"atoms": 4, "k": 90}]
    assert placed(assign_slots({"atoms": [2, 3], "k": [9, 90]}, cured)).tolist() == [0, 2]


def test_the_cure_holds_all_items_that_overflow():
    with pytest.raises(PlanError, match=r"3 of 3 items .*there are no slots") as caught:
        assign_slots({"a": [5, 1, 2], "b": [1, 7, 2]}, [])
    assert 'holds them: slots=[{"a": 5, "b": 7}], or' in str(caught.value)
    how = {"derived": {"k": "a * b"}}
    with pytest.raises(PlanError, match=r"Item 0 has a=5, b=2, k=10; .* holds k=8") as caught:
        assign_slots({"a": [5, 1, 3], "b": [2, 7, 4]}, [{"k": 8}], **how)
    assert 'slots=[..., {"k": 12}]' in str(caught.value)


def test_overflow_extend_adds_one_tight_slot_listed_last_and_says_so():
    sizes = {"a": [2, 30, 5, 40], "b": [1, 2, 9, 1]}
    plan = assign_slots(sizes, [{"a": 5, "b": 9}], overflow="extend")
    assert plan.slots == ({"a": 5, "b": 9}, {"a": 40, "b": 2})
    assert placed(plan).tolist() == [0, 1, 0, 1]
    assert len(plan.warnings) == 1
    assert '2 of 4 items fit no slot; overflow="extend" added {"a": 40, "b": 2}' in plan.warnings[0]


def test_a_starved_slot_is_warned_of_with_a_cure_that_works():
    sizes = {"atoms": [2, 3, 100], "k": [9, 40, 50]}
    plan = assign_slots(sizes, [LARGE, SMALL])
    (warning,) = plan.warnings
    assert "slot 1 (atoms=64, k=4096) loses 2 of the 2 items it holds" in warning
    assert "such as slot 0 (atoms=192, k=32768)" in warning
    cure = 'slots=[{"atoms": 64, "k": 4096}, {"atoms": 192, "k": 32768}], or pass order="cheapest"'
    assert cure in warning
    assert assign_slots(sizes, [SMALL, LARGE]).warnings == ()
    assert assign_slots(sizes, [LARGE, SMALL], order="cheapest").warnings == ()
    assert assign_slots({"atoms": [100], "k": [50]}, [LARGE, SMALL]).warnings == ()
    assert assign_slots({"a": [2]}, [{"a": 2}, {"a": 2}, {"a": 1}]).warnings == ()


def test_a_derived_limit_decides_what_enters_and_the_slot_lists_core_dims():
    sizes = {"n1": [2, 8, 3], "n2": [8, 2, 9], "atoms": [3, 5, 7]}
    slots = [{"k": 16, "atoms": 64}, {"k": 27}]
    plan = assign_slots(sizes, slots, derived={"k": "n1 * n2"}, work="k * atoms")
    assert placed(plan).tolist() == [0, 0, 1]
    assert plan.slots == ({"n1": 8, "n2": 8, "atoms": 64}, {"n1": 3, "n2": 9, "atoms": 7})
    assert plan.padded_work() == 2 * 64 * 64 + 27 * 7
    empty = assign_slots(sizes, [{"k": 100}, {"k": 16}], derived={"k": "n1 * n2"})
    assert empty.slots[1] == {"n1": 8, "n2": 8, "atoms": 5}


def test_derived_sizes_may_build_on_each_other():
    how = {"derived": {"plane": "a * b", "box": "plane * b"}, "work": "box + 1"}
    plan = assign_slots({"a": [2], "b": [3]}, [{"box": 18}], **how)
    assert plan.padded_work() == 19
    assert plan.occupancy("plane") == 1.0


def test_an_exact_dim_enters_only_at_equal_size():
    sizes = {"n": [4, 8, 4, 0], "b": [1, 2, 3, 1]}
    plan = assign_slots(sizes, [{"n": 8, "b": 9}, {"n": 4}, {"n": 1}], exact=("n",))
    assert placed(plan).tolist() == [1, 0, 1, 2]
    with pytest.raises(PlanError, match=r"1 of 4 items") as caught:
        assign_slots(sizes, [{"n": 8}, {"n": 4}], exact=("n",))
    assert '{"n": 1}' in str(caught.value)
    with pytest.raises(PlanError, match="Add a slot for each exact size, such as: slots"):
        assign_slots(sizes, [{"n": 8}], exact=("n",))
    added = assign_slots(sizes, [{"n": 8}], exact=("n",), overflow="extend")
    assert added.slots[1:] == ({"n": 1, "b": 1}, {"n": 4, "b": 3})
    assert placed(added).tolist() == [2, 0, 2, 1]


def test_a_slot_that_leaves_an_exact_dim_open_becomes_one_slot_for_each_size():
    sizes = {"n": [4, 8, 4], "b": [1, 2, 3]}
    plan = assign_slots(sizes, [{"b": 2, "rows": 5}, {}], exact=("n",))
    assert plan.slots == (
        {"n": 4, "b": 2, "rows": 5},
        {"n": 8, "b": 2, "rows": 5},
        {"n": 4, "b": 3},
        {"n": 8, "b": 2},
    )
    assert placed(plan).tolist() == [0, 1, 2]
    assert assign_slots(sizes, [{"b": 9}, {"b": 0 + 1}], exact=("n",)).slots[-1]["n"] == 4
    assert assign_slots({"n": [], "b": []}, [{"b": 9}], exact=("n",)).slots == ({"n": 1, "b": 9},)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=30))
def test_exact_mode_pads_nothing(sizes):
    columns = {"a": [a for a, _ in sizes], "b": [b for _, b in sizes]}
    plan = assign_exact(columns)
    placed(plan)
    assert plan.mode == "exact"
    assert len(plan.slots) == len({(max(a, 1), max(b, 1)) for a, b in sizes})
    for batch in plan.batches:
        assert (plan.lengths[batch.items].clip(1) == batch.capacity).all()
        assert batch.count == len(batch.items)
    loop = split_chunks(plan, rows=1)
    assert len(loop.batches) == len(sizes)


def test_size_zero_is_legal_and_takes_capacity_one():
    plan = assign_slots({"a": [0, 0]}, [{}])
    assert plan.slots == ({"a": 1},)
    assert plan.occupancy() == 0.0
    assert plan.lengths.tolist() == [[0], [0]]


def test_no_items_make_a_plan_without_batches():
    for plan in (assign_slots({"a": [], "b": []}, [{"a": 3}]), assign_exact({"a": [], "b": []})):
        assert plan.batches == ()
        assert plan.lengths.shape == (0, 2)
        assert plan.occupancy() == plan.rows_occupancy == 1.0
        assert plan.predicted_seconds == 0.0
        assert split_chunks(plan, max_rows=3).batches == ()
        assert str(plan)
    assert assign_slots({"a": []}, []).slots == ()


def test_a_kernel_without_ragged_dims_is_planned_by_its_number_of_items():
    plan = split_chunks(assign_slots({}, [{}], items=5), max_rows=2)
    assert plan.lengths.shape == (5, 0)
    assert [batch.items.tolist() for batch in plan.batches] == [[0, 1], [2, 3], [4, 4]]
    assert plan.padded_work() == 6
    assert assign_exact({}, items=3).padded_work() == 3
    with pytest.raises(PlanError, match="say how many items"):
        assign_slots({}, [{}])


def test_a_plan_cannot_be_changed():
    plan = assign_slots({"a": [1, 2, 3]}, [{"rows": 2}])
    with pytest.raises(ValueError, match="read-only"):
        plan.lengths[0] = 3
    with pytest.raises(ValueError, match="read-only"):
        plan.batches[0].items[0] = 3


@pytest.mark.parametrize(
    ("slot", "reason"),
    [
        ({"a": 0}, "slot 0: a must be at least 1, got 0"),
        ({"a": -4}, "slot 0: a must be at least 1, got -4"),
        ({"a": 1.5}, r"slot 0: a must be an integer, got 1\.5"),
        ({"a": 4.0}, "must be an integer"),
        ({"a": True}, "must be an integer"),
        ({"a": "4"}, "must be an integer"),
        ({"a": 2**63}, "beyond the largest 64-bit integer"),
        ({"a": 4, "rows": 0}, "slot 0: rows must be at least 1"),
        ({"q": 4}, r"slot 0 limits 'q', .* Dims: a, b; derived: k\."),
        (4, "slot 0 must map dims to limits, got 4"),
    ],
)
def test_a_limit_that_is_no_positive_integer_or_no_dim_is_refused(slot, reason):
    with pytest.raises(PlanError, match=f"assign_slots: {reason}" if "slot" in reason else reason):
        assign_slots({"a": [1], "b": [1]}, [slot], derived={"k": "a * b"})


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"a": [1, -1]}, "item 1 has a=-1"),
        ({"a": [1.0, 2.0]}, "must be 64-bit integers, got float64"),
        ({"a": [True]}, "must be 64-bit integers, got bool"),
        ({"a": [2**70]}, "must be 64-bit integers, got object"),
        ({"a": np.array([2**63], np.uint64)}, "beyond a 64-bit integer"),
        ({"a": [[1]]}, "one axis"),
        ({"a": [1, 2], "b": [1]}, "disagree on the number of items: a=2, b=1"),
        ({"rows": [1]}, "'rows' cannot name a dim"),
        ({"a b": [1]}, "cannot name a dim"),
    ],
)
def test_sizes_that_are_no_counts_are_refused(sizes, reason):
    with pytest.raises(PlanError, match=f"assign_slots: .*{reason}"):
        assign_slots(sizes, [{}])


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"work": "a * q"}, "unknown name 'q'; known: a, k"),
        ({"work": "a - 5"}, "work 'a - 5' is negative at a=1"),
        ({"exact": ("q",)}, "exact='q' is no dim; dims: a"),
        ({"derived": {"a": "2 * a"}}, "derived name 'a' is taken"),
        ({"derived": {"rows": "2 * a"}}, "derived name 'rows' is taken"),
        ({"derived": {"k l": "2 * a"}}, "no identifier"),
        ({"order": "largest"}, "order='largest'; allowed"),
        ({"overflow": "drop"}, "overflow='drop'; allowed"),
        ({"items": 7}, "disagree on the number of items"),
    ],
)
def test_what_contradicts_the_dims_is_refused(how, reason):
    how = {"derived": {"k": "2 * a"}, **how}
    with pytest.raises(PlanError, match=reason):
        assign_slots({"a": [1, 2]}, [{"a": 1}, {"a": 2}], **how).padded_work()


def test_padded_elements_beyond_64_bits_are_refused():
    sizes = {"a": [1], "b": [1], "c": [1]}
    with pytest.raises(PlanError, match="padded elements, beyond the largest 64-bit"):
        assign_slots(sizes, [{"a": 2**21, "b": 2**21, "c": 2**21}])
    assign_slots(sizes, [{"a": 2**21, "b": 2**21, "c": 2**21 - 1}])
    with pytest.raises(PlanError, match="rows=2, a="):
        assign_slots(sizes, [{"a": 2**21, "b": 2**21, "c": 2**20, "rows": 2}])
