from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import PlanError
from stowplan.planners import Costs, assign_slots, choose_slots, slot_curve
from stowplan.planners.candidates import Candidates, power_slots
from stowplan.planners.classes import distinct_rows, thin
from stowplan.planners.sizes import size_table


def padded(sizes, slots, **how):
    return assign_slots(sizes, slots, order="cheapest", **how).padded_work()


def brute_force(sizes, count, work):
    """Least padded work of all sets of at most `count` capacities."""
    values = sorted(set(sizes))
    cost = {v: work(v) for v in values}
    best = np.inf
    for slots in combinations(values, min(count, len(values))):
        if slots[-1] == values[-1]:
            best = min(best, sum(min(cost[s] for s in slots if s >= size) for size in sizes))
    return best


@st.composite
def tables(draw, most_dims=3, most_size=80):
    dims = draw(st.integers(1, most_dims))
    items = draw(st.integers(1, 40))
    row = st.lists(st.integers(0, most_size), min_size=items, max_size=items)
    return {name: draw(row) for name in "abc"[:dims]}


@settings(max_examples=300)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=14), st.integers(1, 6))
def test_one_dim_is_the_optimum_of_all_sets_of_slots(sizes, count):
    for text, work in (("a", lambda a: a), ("a * a + 7", lambda a: a * a + 7)):
        slots = choose_slots({"a": sizes}, count, work=text)
        assert len(slots) == min(count, len(set(sizes)))
        assert padded({"a": sizes}, slots, work=text) == brute_force(sizes, count, work)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=120))
def test_one_dim_curve_equals_a_plain_dynamic_program(sizes):
    values, counts = np.unique(sizes, return_counts=True)
    best = np.append(0.0, np.full(len(values), np.inf))
    expected = []
    for _ in range(min(12, len(values))):
        new = np.full(len(values) + 1, np.inf)
        for j in range(1, len(values) + 1):
            new[j] = min(best[i] + counts[i:j].sum() * values[j - 1] for i in range(j))
        best = new
        expected.append(best[-1])
    curve = slot_curve({"a": sizes}, len(expected))
    assert [point.padded_work for point in curve] == expected


@settings(max_examples=80)
@given(tables())
def test_never_worse_than_powers_of_two_with_as_many_slots(sizes):
    lengths = np.maximum(np.array(list(sizes.values())).T, 1)
    powers = distinct_rows(power_slots(lengths, []))[0]
    slots = [dict(zip(sizes, row, strict=True)) for row in powers.tolist()]
    chosen = choose_slots(sizes, len(powers))
    assert len(chosen) <= len(powers)
    assert padded(sizes, chosen) <= padded(sizes, slots) * (1 + 1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_never_worse_than_powers_of_two_for_many_items(dims):
    rng = np.random.default_rng(dims)
    common = rng.lognormal(3, 0.7, 20_000)
    sizes = {d: (common * rng.lognormal(0, 0.2, 20_000)).astype(int) for d in "abc"[:dims]}
    lengths = np.maximum(np.array(list(sizes.values())).T, 1)
    powers = distinct_rows(power_slots(lengths, []))[0]
    slots = [dict(zip(sizes, row, strict=True)) for row in powers.tolist()]
    chosen = choose_slots(sizes, len(powers))
    assert len(chosen) <= len(powers)
    assert padded(sizes, chosen) <= padded(sizes, slots)


@settings(max_examples=60)
@given(tables(), st.integers(1, 6))
def test_chosen_slots_hold_every_item_and_are_tight_and_sorted_by_work(sizes, count):
    slots = choose_slots(sizes, count)
    assert 1 <= len(slots) <= count
    plan = assign_slots(sizes, slots)
    work = [np.prod(list(slot.values())) for slot in plan.slots]
    assert work == sorted(work)
    assert {batch.slot for batch in plan.batches} == set(range(len(slots)))
    for batch in plan.batches:
        longest = plan.lengths[batch.items].max(axis=0).clip(1)
        assert longest.tolist() == list(batch.capacity)


@settings(max_examples=40)
@given(tables())
def test_more_slots_never_pad_more(sizes):
    work = [point.padded_work for point in slot_curve(sizes, 6)]
    assert work == sorted(work, reverse=True)
    assert len(work) == 6


@settings(max_examples=30)
@given(tables(most_size=6))
def test_as_many_slots_as_sizes_pad_nothing(sizes):
    lengths = np.maximum(np.array(list(sizes.values())).T, 1)
    distinct = len(np.unique(lengths, axis=0))
    assert padded(sizes, choose_slots(sizes, distinct)) == lengths.prod(axis=1).sum()


def test_the_slot_example_is_reached_and_surpassed(structures):
    sizes = structures
    by_hand = assign_slots(sizes, [{"atoms": 64, "k": 4096}, {"atoms": 192, "k": 32768}])
    chosen = assign_slots(sizes, choose_slots(sizes, 2))
    assert chosen.occupancy() >= by_hand.occupancy()
    curve = slot_curve(sizes, 8)
    assert [len(point.slots) for point in curve] == list(range(1, 9))
    assert curve[3].occupancy >= 0.73
    assert curve[5].occupancy >= 0.80
    assert curve[7].occupancy >= 0.84


def test_a_compile_price_makes_slots_few_and_none_makes_them_many(structures):
    sizes = structures
    dear = choose_slots(sizes, costs=Costs(1e-9, 5e-4, 0.5))
    cheap = choose_slots(sizes, costs=Costs(1e-9, 1e-6, 0.0))
    assert len(dear) <= 3
    assert len(cheap) >= 200
    assert assign_slots(sizes, cheap).occupancy() > 0.99
    assert len(choose_slots(sizes, costs=Costs(1e-9, 1e-6, 0.0), max_count=5)) <= 5


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("price", [1e-6, 1e-3, 1e-1])
def test_the_count_by_costs_is_no_worse_than_any_fixed_count(dims, price):
    rng = np.random.default_rng(5)
    sizes = {d: rng.integers(1, 60, 300) for d in "ab"[:dims]}
    costs = Costs(1e-6, price, 0.0)
    chosen = choose_slots(sizes, costs=costs)
    seconds = costs.seconds(padded(sizes, chosen), len(chosen), 0)
    for point in slot_curve(sizes, 20, costs=costs):
        assert seconds <= point.seconds * (1 + 1e-9 if dims == 1 else 1.01)


@settings(max_examples=40)
@given(tables(most_dims=2, most_size=30), st.floats(0.05, 1.5))
def test_one_slot_is_taken_without_a_search_only_where_no_other_count_is_cheaper(sizes, share):
    useless = padded(sizes, choose_slots(sizes, 1)) - padded(sizes, choose_slots(sizes, 40))
    costs = Costs(launch_seconds=0.0, compile_seconds=share * useless, work_seconds=1.0)
    chosen = choose_slots(sizes, costs=costs)
    seconds = costs.seconds(padded(sizes, chosen), len(chosen), len(chosen))
    best = min(point.seconds for point in slot_curve(sizes, 6, costs=costs))
    assert len(chosen) > 1 or seconds <= best * (1 + 1e-12)


def test_free_slots_pad_nothing_and_free_work_takes_one_slot():
    sizes = {"a": [1, 2, 3, 9], "b": [4, 4, 2, 1]}
    assert len(choose_slots(sizes, costs=Costs(1.0, 0.0, 0.0))) == 4
    assert len(choose_slots(sizes, costs=Costs(0.0, 1.0, 0.0))) == 1
    assert len(choose_slots({"a": [1, 2, 3]}, costs=Costs(0.0, 1.0, 0.0))) == 1
    assert len(choose_slots({"a": [1, 2, 3]}, costs=Costs(1.0, 0.0, 0.0))) == 3


def test_one_dim_with_many_sizes_and_many_slots_ends_soon():
    sizes = {"a": np.random.default_rng(0).permutation(200_000) + 1}
    slots = choose_slots(sizes, costs=Costs(1e-9, 1e-6, 0.0))
    assert 100 < len(slots) <= 1000
    assert assign_slots(sizes, slots).occupancy() > 0.99


@settings(max_examples=60)
@given(tables(most_size=9), st.integers(0, 5))
def test_items_of_unequal_exact_size_never_share_a_slot(sizes, more):
    groups = len(set(np.maximum(sizes["a"], 1).tolist()))
    slots = choose_slots(sizes, groups + more, exact=("a",))
    assert groups <= len(slots) <= groups + more
    plan = assign_slots(sizes, slots, exact=("a",))
    for batch in plan.batches:
        assert (plan.lengths[batch.items, 0].clip(1) == batch.capacity[0]).all()
    assert len(choose_slots(sizes, exact=("a",))) >= groups


def test_fewer_slots_than_exact_sizes_are_refused_with_the_number_needed():
    with pytest.raises(PlanError, match=r"choose_slots: at most 2 slots, but a .* 3 different"):
        choose_slots({"a": [1, 2, 3, 3], "b": [1, 1, 1, 9]}, 2, exact=("a",))
    with pytest.raises(PlanError, match="slot_curve"):
        slot_curve({"a": [1, 2, 3]}, 2, exact=("a",))


def test_more_exact_sizes_than_classes_get_one_slot_each():
    sizes = {"n": np.arange(1, 1301).repeat(2), "b": np.tile([3, 5], 1300)}
    for slots in (choose_slots(sizes, exact=("n",)), choose_slots(sizes, 1300, exact=("n",))):
        assert sorted((slot["n"], slot["b"]) for slot in slots) == [(n, 5) for n in range(1, 1301)]


def test_derived_sizes_price_the_slots():
    sizes = {"n1": [1, 8, 2], "n2": [8, 1, 2]}
    how = {"work": "k", "derived": {"k": "n1 * n2"}}
    assert len(choose_slots(sizes, 3, **how)) == 3
    assert choose_slots(sizes, 1, **how) == [{"n1": 8, "n2": 8}]


def test_no_items_need_no_slot():
    assert choose_slots({"a": []}) == []
    assert slot_curve({"a": [], "b": []}) == []
    assert choose_slots({}) == [{}]
    with pytest.raises(PlanError, match="no dims"):
        slot_curve({})


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "2"])
def test_a_count_that_is_no_positive_integer_is_refused(count):
    with pytest.raises(PlanError, match="choose_slots: count must be"):
        choose_slots({"a": [1, 2]}, count)
    with pytest.raises(PlanError, match="choose_slots: max_count must be"):
        choose_slots({"a": [1, 2]}, max_count=count)


@settings(max_examples=30)
@given(st.integers(2, 5), st.integers(20, 400), st.integers(0, 2**32 - 1))
def test_thinned_classes_cover_all_items_and_keep_their_number(dims, most, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 1000, (3000, dims))
    sizes, counts = thin(lengths, np.ones(3000, np.int64), most, [])
    assert len(sizes) <= most
    assert counts.sum() == 3000
    assert (np.sort(lengths.max(axis=0)) <= np.sort(sizes.max(axis=0))).all()
    for size in (0.2, 0.5, 0.9):  # rounded up: never more items below a bound than there were
        bound = np.quantile(lengths, size, axis=0)
        assert counts[(sizes <= bound).all(axis=1)].sum() <= (lengths <= bound).all(axis=1).sum()


def test_exact_axes_are_not_thinned():
    lengths = np.random.default_rng(0).integers(1, 50, (5000, 3))
    sizes, counts = thin(lengths, np.ones(5000, np.int64), 200, [1])
    assert counts.sum() == 5000
    assert set(sizes[:, 1]) == set(lengths[:, 1])
    kept = np.bincount(sizes[:, 1], weights=counts)
    assert (kept == np.bincount(lengths[:, 1])).all()


def test_distinct_rows_stay_distinct_beyond_64_bits_of_combinations():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 2**62, (300, 9))
    lengths = np.concatenate([lengths, lengths[::3]])
    rows, inverse, counts = distinct_rows(lengths)
    assert len(rows) == 300
    assert (rows[inverse] == lengths).all()
    assert (counts == np.bincount(inverse)).all()


def test_many_items_are_settled_on_their_own_sizes():
    rng = np.random.default_rng(3)
    sizes = {d: rng.integers(1, 300, 150_000) for d in "abc"}
    plan = assign_slots(sizes, choose_slots(sizes, 4))
    for batch in plan.batches:
        assert (plan.lengths[batch.items].max(axis=0) == batch.capacity).all()


def test_a_curve_starts_at_the_number_of_exact_sizes():
    table = size_table("t", {"n": [1, 2, 2], "b": [3, 4, 9]}, exact=("n",))
    assert Candidates(table, "t").fewest == 2
    curve = slot_curve({"n": [1, 2, 2], "b": [3, 4, 9]}, 3, exact=("n",))
    assert [len(point.slots) for point in curve] == [2, 3]


def test_rows_that_differ_in_their_first_dim_alone_stay_distinct_in_70_dims():
    lengths = np.random.default_rng(0).integers(0, 2, (40, 70))
    lengths = np.concatenate([lengths, lengths])
    lengths[40:, 0] = 1 - lengths[40:, 0]
    rows, inverse, _ = distinct_rows(lengths)
    assert len(rows) == 80
    assert (rows[inverse] == lengths).all()


@pytest.mark.parametrize("largest", [2**62 + 1, 2**63 - 1])
def test_slots_hold_sizes_beyond_the_largest_power_of_two(largest):
    sizes = {"a": [largest, 4], "b": [1, 4]}
    assert choose_slots(sizes, 2) == [{"a": 4, "b": 4}, {"a": largest, "b": 1}]
    assert power_slots(np.array([[largest]]), []).tolist() == [[2**63 - 1]]


def test_a_curve_beyond_the_distinct_sizes_takes_no_longer_and_stays_level():
    curve = slot_curve({"a": [1, 2, 2], "b": [4, 3, 3]}, 100_000)
    assert len(curve) == 100_000
    assert curve[1:] == [curve[1]] * 99_999


def test_items_of_equal_sizes_are_one_class():
    """Five starts of each pair: the merges are those of the pairs, and so are the slots."""
    rng = np.random.default_rng(3)
    pairs = {"n": rng.integers(8, 50, 300), "m": rng.integers(8, 50, 300)}
    starts = {dim: np.repeat(lengths, 5) for dim, lengths in pairs.items()}
    lengths = np.stack(list(starts.values()), axis=1)
    sizes, counts = thin(lengths, np.ones(1500, np.int64), 1000, [])
    assert len(sizes) == len(np.unique(lengths, axis=0))
    assert counts.sum() == 1500
    for cost in (1e-5, 1e-3):
        own = choose_slots(pairs, work="n * m", costs=Costs(5e-9, cost, 0.0))
        assert choose_slots(starts, work="n * m", costs=Costs(1e-9, cost, 0.0)) == own
