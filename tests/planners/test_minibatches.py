import copy
import json
import pickle
import time
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.errors import PlanError
from stowplan.planners import Costs, MinibatchSlots, Seats, choose_slots
from stowplan.planners.improve import Classes
from stowplan.planners.needs import Need, fill_rows
from stowplan.planners.seating import draw_minibatches
from stowplan.planners.sizes import size_table

HAND = [{"atoms": 64, "k": 4096}, {"atoms": 192, "k": 32768}]


def holds(slot, item, exact=()):
    """Whether a slot holds an item {dim: size}, by its words."""
    return all(
        slot[dim] == max(size, 1) if dim in exact else slot[dim] >= size
        for dim, size in item.items()
        if dim in slot
    )


def most_seated(sizes, items, slots, exact=()):
    """Most of the items that rows can hold: augmenting paths over single rows (Kuhn 1955)."""
    rows = [slot for slot in slots for _ in range(slot["rows"])]
    fits = [
        [r for r, s in enumerate(rows) if holds(s, {d: v[i] for d, v in sizes.items()}, exact)]
        for i in items
    ]
    owner = {}

    def place(number, seen):
        for row in fits[number]:
            if row not in seen:
                seen.add(row)
                if row not in owner or place(owner[row], seen):
                    owner[row] = number
                    return True
        return False

    return sum(place(number, set()) for number in range(len(items)))


def tight(slot, sizes, exact=()):
    """Whether an item that the slot holds is as long as it in each dim."""
    items = range(len(next(iter(sizes.values()))))
    held = [i for i in items if holds(slot, {d: v[i] for d, v in sizes.items()}, exact)]
    return all(slot[d] == max(1, *(int(v[i]) for i in held)) for d, v in sizes.items())


def columns(sizes):
    return {name: np.asarray(column) for name, column in sizes.items()}


@st.composite
def tables(draw, most_dims=3, most_size=30, most_items=30):
    dims = draw(st.integers(1, most_dims))
    items = draw(st.integers(1, most_items))
    row = st.lists(st.integers(0, most_size), min_size=items, max_size=items)
    return columns({name: draw(row) for name in "abc"[:dims]})


@st.composite
def seatings(draw, exact=False):
    """Sizes up to 4 and slots that hold them all, in any order, nested or not."""
    sizes = draw(tables(most_size=4))
    slot = st.fixed_dictionaries(
        {d: st.integers(1, 4) for d in sizes} | {"rows": st.integers(1, 4)}
    )
    slots = draw(st.lists(slot, min_size=0, max_size=6))
    if exact:
        for size in range(1, 5):
            slots.append(dict.fromkeys(sizes, 4) | {"a": size, "rows": draw(st.integers(1, 3))})
    else:
        slots.append(dict.fromkeys(sizes, 4) | {"rows": draw(st.integers(1, 4))})
    return sizes, draw(st.permutations(slots))


@settings(max_examples=300)
@given(seatings(), st.sampled_from([None, "a", "1", "10 - a", "a * a + 1"]))
def test_as_many_items_are_seated_as_rows_can_hold(case, work):
    sizes, slots = case
    items = range(len(sizes["a"]))
    found = Seats(sizes, slots, work=work).seat(items)
    assert (found >= 0).sum() == most_seated(sizes, items, slots)


@settings(max_examples=150)
@given(seatings(exact=True))
def test_exact_items_are_seated_at_their_own_size_and_as_many_as_rows_can_hold(case):
    sizes, slots = case
    items = range(len(sizes["a"]))
    found = Seats(sizes, slots, exact=["a"]).seat(items)
    assert (found >= 0).sum() == most_seated(sizes, items, slots, ["a"])
    for item, slot in zip(items, found, strict=True):
        assert slot < 0 or slots[slot]["a"] == max(sizes["a"][item], 1)


@settings(max_examples=150)
@given(seatings(), st.randoms(use_true_random=False))
def test_every_seat_holds_its_item_and_no_slot_seats_more_than_its_rows(case, random):
    sizes, slots = case
    items = [random.randrange(len(sizes["a"])) for _ in range(20)]  # an item may come twice
    found = Seats(sizes, slots).seat(items)
    for item, slot in zip(items, found, strict=True):
        assert slot < 0 or holds(slots[slot], {d: v[item] for d, v in sizes.items()})
    for index, slot in enumerate(slots):
        assert (found == index).sum() <= slot["rows"]


@settings(max_examples=100)
@given(seatings(), st.data())
def test_a_part_of_what_was_seated_is_seated_again_in_any_order(case, data):
    sizes, slots = case
    seats = Seats(sizes, slots)
    seated = np.flatnonzero(seats.seat(range(len(sizes["a"]))) >= 0).tolist()
    again = data.draw(st.permutations(seated))[: data.draw(st.integers(0, len(seated)))]
    assert (seats.seat(again) >= 0).all()


@settings(max_examples=150)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=25),
    st.lists(st.integers(1, 3), min_size=9, max_size=9),
    st.sets(st.integers(1, 8)),
)
def test_nested_slots_are_filled_from_the_largest_items_down_and_the_earlier_first(
    sizes, rows, capacities
):
    slots = [{"a": a, "rows": rows[a - 1]} for a in sorted(capacities | {9})]
    native = [next(i for i, slot in enumerate(slots) if slot["a"] >= size) for size in sizes]
    free = [slot["rows"] for slot in slots]
    expected = [-1] * len(sizes)
    for item in sorted(range(len(sizes)), key=lambda i: (-native[i], i)):
        for slot in range(native[item], len(slots)):
            if free[slot]:
                free[slot] -= 1
                expected[item] = slot
                break
    assert Seats({"a": sizes}, slots).seat(range(len(sizes))).tolist() == expected


@settings(max_examples=100)
@given(seatings())
def test_the_first_item_of_each_cheapest_slot_is_always_seated(case):
    sizes, slots = case
    slots = list({tuple(slot[d] for d in sizes): slot for slot in slots}.values())
    cost = [int(np.prod([slot[d] for d in sizes])) for slot in slots]
    assume(len(set(cost)) == len(cost))
    found = Seats(sizes, slots).seat(range(len(sizes["a"])))
    first = {}
    for item in range(len(sizes["a"])):
        fits = [i for i, s in enumerate(slots) if holds(s, {d: v[item] for d, v in sizes.items()})]
        first.setdefault(min(fits, key=cost.__getitem__), item)
    assert all(found[item] >= 0 for item in first.values())


def test_a_seated_item_moves_up_for_one_that_fits_nowhere_else():
    sizes = {"a": [1, 1, 3], "b": [1, 3, 1]}
    slots = [{"a": 1, "b": 3, "rows": 1}, {"a": 3, "b": 1, "rows": 1}]
    assert Seats(sizes, slots).seat([0, 1]).tolist() == [1, 0]
    assert Seats(sizes, slots).seat([0, 2]).tolist() == [0, 1]
    assert sorted(Seats(sizes, slots).seat([0, 1, 2]).tolist()) == [-1, 0, 1]


def test_a_seated_item_moves_to_a_costlier_slot_that_does_not_hold_the_others():
    sizes = {"a": [3, 2, 2], "b": [1, 2, 2]}
    slots = [{"a": 2, "b": 2, "rows": 1}, {"a": 3, "b": 2, "rows": 1}, {"a": 9, "b": 1, "rows": 1}]
    assert Seats(sizes, slots).seat([0]).tolist() == [1]
    assert Seats(sizes, slots).seat([0, 1, 2]).tolist() == [2, 0, 1]


def test_limits_on_derived_sizes_and_open_dims_count():
    seats = Seats(
        {"n": [2, 2, 3], "m": [5, 1, 2]},
        [{"k": 9, "rows": 2}, {"n": 2, "rows": 1}],
        derived={"k": "n * m"},
        exact=["n"],
    )
    assert seats.slots == (
        {"n": 2, "m": 1, "rows": 2},
        {"n": 3, "m": 2, "rows": 2},
        {"n": 2, "m": 5, "rows": 1},
    )
    assert seats.rows == (2, 2, 1)
    assert seats.seat([0, 1, 2]).tolist() == [2, 0, 1]


def test_seats_of_no_items_and_of_empty_minibatches():
    assert Seats({"a": []}, []).seat([]).tolist() == []
    assert Seats({"a": [1]}, [{"a": 1, "rows": 1}]).seat([]).tolist() == []


@pytest.mark.timed
def test_a_minibatch_of_32_is_seated_in_less_than_100_microseconds(structures):
    seats = Seats(structures, [slot | {"rows": 16} for slot in HAND])
    items = np.arange(0, 3200, 100)
    took = []
    for _ in range(200):
        start = time.perf_counter()
        seats.seat(items)
        took.append(time.perf_counter() - start)
    assert min(took) < 1e-4


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([{"a": 3}], r"loader: slot 0 \(a=3\) carries no rows.*\"rows\": 8.*minibatch="),
        ([{"a": 3, "rows": 1}], r"loader: 1 of 3 items fit no slot. Item 1 has a=9; .* holds a=3"),
        ([], r"loader: 3 of 3 items fit no slot. Item 0 has a=1; there are no slots"),
        ([{"z": 3, "rows": 1}], r"loader: slot 0 limits 'z', which is no dim"),
        ([{"a": 9, "rows": 0}], r"loader: slot 0: rows must be at least 1"),
        ([(9, 1)], r"loader: slot 0 must map dims to limits"),
        ([{"a": 2**62, "rows": 4}], r"loader: a batch of rows=4"),
    ],
)
def test_slots_that_seat_nothing_sensible_are_refused_by_name(slots, message):
    with pytest.raises(PlanError, match=message):
        Seats({"a": [1, 9, 2]}, slots, who="loader")


@settings(max_examples=100)
@given(
    st.integers(1, 300), st.integers(1, 300), st.sampled_from([None, 0.0, 0.25, 0.5, 1.0, 2.0, 5.0])
)
def test_more_items_never_need_fewer_rows_and_all_need_a_minibatch(items, minibatch, margin):
    minibatch = min(items, minibatch)
    rows = Need(items, minibatch, margin)(np.arange(items + 1))
    assert rows[0] == 0
    assert rows[-1] == minibatch
    assert (np.diff(rows) >= 0).all()
    n = np.arange(items + 1)
    assert (rows * items >= np.minimum(n * minibatch, items * minibatch)).all()
    if margin is None:
        assert (rows == np.minimum(n, minibatch)).all()


@settings(max_examples=60)
@given(
    tables(),
    st.integers(1, 40),
    st.none() | st.integers(1, 5),
    st.sampled_from(["carry", "error"]),
)
def test_slots_for_minibatches_hold_every_item_and_have_rows_enough(
    sizes, minibatch, count, overflow
):
    slots = choose_slots(sizes, count, minibatch=minibatch, overflow=overflow)
    items = len(sizes["a"])
    assert slots.minibatch == min(minibatch, items)
    assert 1 <= len(slots) <= (count or 1000)
    assert sum(slot["rows"] for slot in slots) >= slots.minibatch
    for item in range(items):
        size = {d: v[item] for d, v in sizes.items()}
        assert any(holds(slot, size) for slot in slots)
    for slot in slots:
        assert tight(slot, sizes)
    work = [np.prod([slot[d] for d in sizes]) for slot in slots]
    assert work == sorted(work)
    assert slots.steps >= items / slots.minibatch - 1e-9
    assert 0 <= slots.occupancy <= 1


@settings(max_examples=60)
@given(tables(), st.integers(1, 12), st.none() | st.integers(1, 5), st.data())
def test_with_overflow_error_no_minibatch_overflows_not_even_the_largest_items(
    sizes, minibatch, count, data
):
    slots = choose_slots(sizes, count, minibatch=minibatch, overflow="error")
    assert slots.overflow == 0
    work = np.prod(list(sizes.values()), axis=0)
    orders = [np.argsort(-column, kind="stable") for column in [*sizes.values(), work]]
    orders += [np.argsort(column, kind="stable") for column in [*sizes.values(), work]]
    orders += [np.array(data.draw(st.permutations(range(len(work))))) for _ in range(3)]
    for order in orders:
        items = order[: slots.minibatch].tolist()
        assert most_seated(sizes, items, slots) == len(items)
        assert (Seats(sizes, slots).seat(items) >= 0).all()


@settings(max_examples=40)
@given(tables(most_size=4), st.integers(1, 8), st.sampled_from(["carry", "error"]), st.data())
def test_exact_dims_get_slots_of_their_own_that_never_overflow_with_error(
    sizes, minibatch, overflow, data
):
    slots = choose_slots(sizes, minibatch=minibatch, overflow=overflow, exact=["a"])
    for slot in slots:
        assert tight(slot, sizes, ["a"])
    assert {slot["a"] for slot in slots} == set(np.maximum(sizes["a"], 1).tolist())
    order = data.draw(st.permutations(range(len(sizes["a"]))))
    by_size = sorted(order, key=lambda i: sizes["a"][i])  # many of one size
    for items in (by_size[: slots.minibatch], order[: slots.minibatch]):
        seated = most_seated(sizes, items, slots, ["a"])
        assert seated == len(items) or overflow == "carry"


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_no_drawn_minibatch_of_many_structures_overflows_with_error(dims):
    rng = np.random.default_rng(dims)
    common = rng.lognormal(2, 0.6, 2000)
    sizes = {d: (common * rng.lognormal(0, 0.4, 2000)).astype(int) + 1 for d in "abc"[:dims]}
    slots = choose_slots(sizes, 4, minibatch=16, overflow="error")
    seats = Seats(sizes, slots)
    for column in sizes.values():
        assert (seats.seat(np.argsort(-column)[:16]) >= 0).all()
        top = np.argsort(-column)[:40]  # and any 16 of the largest
        for _ in range(200):
            assert (seats.seat(rng.permutation(top)[:16]) >= 0).all()


@pytest.mark.parametrize("count", [2, 4])
def test_the_share_of_overflows_is_that_of_plain_shuffled_minibatches(structures, count):
    slots = choose_slots(structures, count, minibatch=32)
    rng = np.random.default_rng(12345)
    sizes = np.array(list(structures.values())).T
    capacities = np.array([[slot["atoms"], slot["k"]] for slot in slots])
    rows = np.array([slot["rows"] for slot in slots])
    assert (np.diff(capacities, axis=0) >= 0).all()  # nested, so that counting is enough
    native = (sizes[:, None] <= capacities).all(axis=2).argmax(axis=1)
    over = []
    for _ in range(60):
        drawn = native[rng.permutation(3200)].reshape(100, 32)
        above = (drawn[:, :, None] >= np.arange(count)).sum(axis=1)  # (minibatches, slots)
        over += (above > np.cumsum(rows[::-1])[::-1]).any(axis=1).tolist()
    share = np.mean(over)
    assert abs(slots.overflow - share) < 4 * np.sqrt(share * (1 - share) * (1 / 4000 + 1 / 6000))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_occupancy_and_steps_are_those_of_a_plain_loop_over_the_sampler(dims):
    rng = np.random.default_rng(dims)
    sizes = {d: rng.integers(1, 60, 1000) for d in "abc"[:dims]}
    slots = choose_slots(sizes, 4, minibatch=20, seed=5)
    sampler = sp.MinibatchSampler(sizes, slots, seed=6)
    work = np.prod(list(sizes.values()), axis=0)
    useful, padded, steps = 0.0, 0.0, 0
    for _ in range(20):
        for items in sampler:
            useful += work[items].sum()
            padded += sum(np.prod(list(slot.values())) for slot in slots)
            steps += 1
    assert slots.occupancy == pytest.approx(useful / padded, rel=0.02)
    assert slots.steps == pytest.approx(steps / 20, rel=0.02)


def test_occupancy_and_steps_count_minibatches_that_are_not_full():
    slots = choose_slots({"a": [1, 2, 3, 4, 5]}, 1, minibatch=4)
    assert slots == [{"a": 5, "rows": 4}]
    assert slots.steps == 2
    assert slots.occupancy == pytest.approx(15 / (2 * 4 * 5))


@pytest.mark.parametrize("minibatch", [16, 1000])
def test_occupancy_and_steps_of_many_items_are_told_from_some(minibatch):
    rng = np.random.default_rng(0)
    sizes = {"a": rng.integers(1, 100, 200_000), "b": rng.integers(1, 10, 200_000)}
    slots = choose_slots(sizes, 3, minibatch=minibatch)
    sampler = sp.MinibatchSampler(sizes, slots)
    assert slots.steps == pytest.approx(len(sampler), rel=0.01)
    padded = len(sampler) * sum(slot["a"] * slot["b"] * slot["rows"] for slot in slots)
    useful = (sizes["a"] * sizes["b"]).sum()
    assert slots.occupancy == pytest.approx(useful / padded, rel=0.02)


def test_carried_minibatches_reach_twice_the_occupancy_of_slots_set_by_hand(structures):
    rng = np.random.default_rng(7)
    large = structures["k"] > 4096
    most = np.array([0, 0])  # the fewest rows that hold each of 60 shuffled minibatches
    for _ in range(60):
        drawn = large[rng.permutation(3200)[:32]].sum()
        most = np.maximum(most, [32 - drawn, drawn])
    padded = most[0] * 64 * 4096 + most[1] * 192 * 32768
    by_hand = 32 * (structures["atoms"] * structures["k"]).mean() / padded
    for count in (2, 4, 8):
        assert choose_slots(structures, count, minibatch=32).occupancy >= 1.5 * by_hand
    assert choose_slots(structures, 4, minibatch=32).occupancy >= 1.9 * by_hand


@settings(max_examples=150)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=14), st.integers(1, 9), st.integers(1, 5))
def test_one_dim_with_overflow_error_is_the_optimum_for_the_largest_items(sizes, minibatch, count):
    slots = choose_slots({"a": sizes}, count, minibatch=minibatch, overflow="error")
    largest = sorted(sizes)[-minibatch:]
    values = sorted(set(largest))
    best = min(
        sum(min(cap for cap in caps if cap >= size) for size in largest)
        for caps in combinations(values, min(count, len(values)))
        if caps[-1] == values[-1]
    )
    assert sum(slot["rows"] * slot["a"] for slot in slots) == best


def test_one_dim_weighs_the_rows_of_each_size():
    sizes = {"a": [4] * 80 + [6] * 10 + [9] * 10}
    slots = choose_slots(sizes, 2, minibatch=10, costs=Costs(1.0, 0.0))
    assert slots == [{"a": 4, "rows": 8}, {"a": 9, "rows": 2}]


def test_branches_below_one_slot_have_a_row_for_every_item_of_a_minibatch():
    lengths = np.array([[1, 9], [4, 4], [9, 1], [9, 9]])
    counts = np.array([29, 39, 31, 1])
    measure = size_table("t", {"a": [1], "b": [1]}).measure
    classes = Classes(lengths, counts, np.zeros(4, np.intp), [], measure)
    slots, rows = fill_rows(classes, lengths, Need(100, 10, 0.0))
    assert slots.tolist() == [[1, 9], [9, 1], [4, 4], [9, 9]]
    assert rows.sum() == 10
    assert (rows[:3] >= [2, 3, 3]).all()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_no_worse_than_slots_for_items_with_rows_for_the_mean_of_each(dims):
    rng = np.random.default_rng(dims)
    sizes = {d: rng.integers(1, 200, 2000) for d in "abc"[:dims]}
    plain = choose_slots(sizes, 6)
    for index, items in enumerate(sp.assign_slots(sizes, plain).batches):
        plain[index]["rows"] = -(-32 * items.count // 2000)
    plain = MinibatchSlots(plain, 32, 0.0, 0.0, 0.0)
    steps = np.mean([len(sp.MinibatchSampler(sizes, plain, epoch=e)) for e in range(10)])
    padded = steps * sum(np.prod(list(slot.values())) for slot in plain)
    useful = np.prod(list(sizes.values()), axis=0).sum()
    assert choose_slots(sizes, 6, minibatch=32).occupancy >= 0.99 * useful / padded


@pytest.fixture(scope="module")
def by_count(structures):
    """Slots of each number for minibatches, whatever they cost."""
    return [choose_slots(structures, count, minibatch=32) for count in range(1, 10)]


def test_more_slots_pad_less_of_the_slot_example(by_count):
    found = [by_count[count - 1] for count in (1, 2, 4, 8)]
    occupancy = [slots.occupancy for slots in found]
    assert occupancy == sorted(occupancy)
    assert occupancy[2] > 0.55


@pytest.mark.parametrize("launch", [1e-5, 5e-4, 1e-2])
@pytest.mark.parametrize("compiling", [0.0, 0.5])
def test_the_number_of_slots_by_costs_is_about_as_good_as_any_other(
    structures, by_count, launch, compiling
):
    costs = Costs(1e-9, launch, compiling)

    def seconds(slots):
        work = sum(slot["rows"] * slot["atoms"] * slot["k"] for slot in slots)
        return costs.seconds(work * slots.steps, len(slots) * slots.steps, len(slots))

    chosen = choose_slots(structures, minibatch=32, costs=costs)
    assert seconds(chosen) <= 1.03 * min(map(seconds, by_count))
    assert choose_slots(structures, 4, minibatch=32, costs=costs) == by_count[3]
    assert len(choose_slots(structures, minibatch=32, costs=costs, max_count=3)) <= 3


def test_slots_that_do_not_hold_one_another_serve_a_loop_of_minibatches():
    rng = np.random.default_rng(1)
    long, high = rng.integers(1, 6, 300), rng.integers(40, 60, 300)
    sizes = {"a": np.concatenate([long, high]), "b": np.concatenate([high, long])}
    slots = choose_slots(sizes, 2, minibatch=8, costs=Costs(1e-3, 1e-6))
    shapes = sorted((slot["a"], slot["b"]) for slot in slots)
    assert shapes == [(5, 59), (59, 5)]  # one square slot would hold 4 % of useful work
    order = rng.permutation(600)
    drawn = [items for items, _ in draw_minibatches(Seats(sizes, slots), order, 8)]
    assert sorted(chain(*drawn)) == list(range(600))
    for items in drawn:
        assert most_seated(sizes, items, slots) == len(items)


def test_a_minibatch_is_cut_to_the_items_and_then_nothing_is_left_over():
    slots = choose_slots({"a": [3, 1, 2]}, minibatch=32, costs=Costs(1.0, 0.0))
    assert slots == [{"a": a, "rows": 1} for a in (1, 2, 3)]
    assert (slots.minibatch, slots.overflow, slots.occupancy, slots.steps) == (3, 0, 1, 1)


def test_work_that_is_nothing_counts_as_no_padding():
    slots = choose_slots({"a": [1, 2]}, minibatch=1, work="0 * a")
    assert slots.occupancy == 1


def test_derived_work_prices_minibatches():
    sizes = {"n1": [1, 8, 2] * 9, "n2": [8, 1, 2] * 9}
    how = {"work": "k", "derived": {"k": "n1 * n2"}, "costs": Costs(1.0, 0.0)}
    assert len(choose_slots(sizes, minibatch=9, **how)) == 3


def test_the_same_seed_gives_the_same_slots(structures):
    first = choose_slots(structures, 3, minibatch=32, seed=2)
    again = choose_slots(structures, 3, minibatch=32, seed=2)
    assert first == again
    assert vars(first) == vars(again)


def test_slots_for_minibatches_do_not_change_and_travel_whole():
    slots = choose_slots({"a": [1, 2, 9] * 20}, 2, minibatch=4, work="a * 1e6")
    for change in (
        lambda: slots.append({}),
        slots.pop,
        slots.sort,
        lambda: slots.__setitem__(0, {}),
        lambda: slots.__iadd__([{}]),
        lambda: setattr(slots, "minibatch", 9),
    ):
        with pytest.raises(TypeError, match=r"list\(slots\)"):
            change()
    for other in (pickle.loads(pickle.dumps(slots)), copy.copy(slots), copy.deepcopy(slots)):
        assert isinstance(other, MinibatchSlots)
        assert other == slots
        assert vars(other) == vars(slots)
    assert json.loads(json.dumps(slots)) == list(slots)
    assert sp.assign_slots({"a": [1, 9]}, slots).slots == tuple(slots)


def test_the_table_says_how_many_rows_and_what_becomes_of_the_surplus():
    slots = MinibatchSlots([{"a": 4, "rows": 31}, {"a": 64, "rows": 1}], 32, 0.264, 0.581, 101.5)
    assert str(slots).splitlines() == [
        "slot   a  rows",
        "   0   4    31",
        "   1  64     1",
        "2 slots for minibatches of 32: 58.1 % of work.",
        "26.4 % of shuffled minibatches overflow; their surplus goes into the next.",
    ]
    tight = MinibatchSlots([{"a": 4, "rows": 32}], 32, 0.0, 1.0, 100.0)
    assert str(tight).splitlines()[2:] == [
        "1 slot for minibatches of 32: 100.0 % of work.",
        "0.0 % of shuffled minibatches overflow.",
    ]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"overflow": "error"}, r"overflow= and seed= are for minibatches.*minibatch=32"),
        ({"seed": 1}, r"overflow= and seed= are for minibatches"),
        ({"minibatch": 2, "overflow": "drop"}, r"overflow='drop'; allowed are \"carry\" and"),
        ({"minibatch": 0}, r"choose_slots: minibatch must be at least 1"),
        ({"minibatch": 2.0}, r"choose_slots: minibatch must be an integer"),
        ({"minibatch": 2, "seed": -1}, r"choose_slots: seed must be at least 0"),
        ({"minibatch": 2, "count": 1, "exact": ["a"]}, r"choose_slots: at most 1 slots, but a"),
    ],
)
def test_options_that_make_no_minibatch_are_refused(how, message):
    with pytest.raises(PlanError, match=message):
        choose_slots({"a": [1, 2]}, **how)


@pytest.mark.parametrize("sizes", [{}, {"a": []}])
def test_minibatches_of_no_items_are_refused(sizes):
    with pytest.raises(PlanError, match="minibatch= needs the sizes of at least one item"):
        choose_slots(sizes, minibatch=4)


@pytest.mark.timed
def test_slots_for_minibatches_of_many_items_are_chosen_soon(structures):
    rng = np.random.default_rng(0)
    common = rng.lognormal(4, 0.8, 500_000)
    many = {d: (common * rng.lognormal(0, 0.3, 500_000)).astype(int) + 1 for d in "ab"}
    for sizes, seconds in ((structures, 1.0), (many, 5.0)):
        start = time.process_time()
        choose_slots(sizes, minibatch=32)
        assert time.process_time() - start < seconds
