import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.planners.candidates import Candidates, power_slots
from stowplan.planners.improve import Classes, exchange, settle
from stowplan.planners.sizes import Measure, size_table


def classes(seed, items, dims):
    rng = np.random.default_rng(seed)
    lengths = np.unique(rng.integers(1, 40, (items, dims)), axis=0)
    counts = rng.integers(1, 9, len(lengths))
    groups = np.zeros(len(lengths), np.intp)
    return Classes(lengths, counts, groups, [], Measure.parse("abc"[:dims]))


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(2, 20), st.integers(1, 3))
def test_one_slot_is_split_at_least_as_well_as_by_any_bound_of_one_dim(seed, items, dims):
    c = classes(seed, items, dims)
    whole = c.lengths.max(axis=0)[None]
    best = c.counts.sum() * whole.prod()
    for axis in range(dims):
        for bound in np.unique(c.lengths[:, axis])[:-1]:
            low = c.lengths[:, axis] <= bound
            parts = [(c.counts[p].sum(), c.lengths[p].max(axis=0)) for p in (low, ~low)]
            best = min(best, sum(rows * slot.prod() for rows, slot in parts))
    slots, cost = exchange(c, settle(c, whole), 2)
    assert len(slots) <= 2
    assert cost <= best * (1 + 1e-9)
    assert cost == c.padded(*c.fit(slots))


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(2, 20), st.integers(1, 3))
def test_settling_never_pads_more_and_ends_tight(seed, items, dims):
    c = classes(seed, items, dims)
    rng = np.random.default_rng(seed + 1)
    start = np.concatenate([rng.integers(1, 50, (4, dims)), np.full((1, dims), 60)])
    before = c.padded(*c.fit(start))
    slots, cost = settle(c, start)
    assert cost <= before
    assert cost == c.padded(*c.fit(slots))
    ordered, choice = c.fit(slots)
    assert (c.longest(choice, len(ordered)) == ordered).all()


def test_lengths_are_rounded_up_to_powers_of_two():
    lengths = np.array([[1], [2], [3], [4], [5], [1023], [1024], [1025]])
    assert power_slots(lengths, [])[:, 0].tolist() == [1, 2, 4, 4, 8, 1024, 1024, 2048]


def test_powers_of_two_win_where_nothing_else_is_as_good():
    rng = np.random.default_rng(0)
    candidates = Candidates(size_table("t", {d: rng.integers(1, 99, 50) for d in "ab"}), "t")
    worst = candidates.items.lengths.max(axis=0)[None]
    candidates._propose = lambda count: (worst, 0.0)
    count = len(candidates.powers)
    powers = candidates.items.padded(*candidates.items.fit(candidates.powers))
    assert candidates.best(count)[1] <= powers < candidates.best(count - 1)[1]
