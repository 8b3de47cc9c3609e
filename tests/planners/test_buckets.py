"""Grids in buckets: inside, in the cheapest one that holds them, or refused by name."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import PlanError
from stowplan.planners import Costs, Plan, assign_slots, fit_buckets, split_chunks

SHAPES = [[20, 30], [60, 10], [28, 28]]


@st.composite
def grids(draw):
    """Shapes of 1 to 4 dims, and buckets in any order of which one holds everything."""
    count = draw(st.integers(1, 4))
    shape = st.tuples(*[st.integers(0, 9)] * count)
    shapes = draw(st.lists(shape, min_size=1, max_size=8))
    bucket = st.tuples(*[st.integers(1, 12)] * count)
    buckets = [*draw(st.lists(bucket, max_size=6)), (9,) * count]
    return np.array(shapes), draw(st.permutations(buckets))


def names(count):
    return tuple("abcd"[:count])


WORKS = {  # by dim, so that the cheapest is neither the first nor the smallest in every dim
    "product": (None, np.prod),
    "sum": (" + ".join, np.sum),
    "last": (lambda dims: f"{dims[-1]} ** 2", lambda row: row[-1] ** 2),
}


@settings(max_examples=200)
@given(grids(), st.sampled_from(list(WORKS)))
def test_a_grid_is_in_the_cheapest_bucket_that_holds_it(case, work):
    shapes, buckets = case
    dims = names(shapes.shape[1])
    text, cost = WORKS[work]
    plan = fit_buckets(shapes, buckets, dims=dims, work=text and text(dims))
    for shape, capacity in zip(shapes, plan.capacities.tolist(), strict=True):
        holding = [b for b in buckets if all(n <= m for n, m in zip(shape, b, strict=True))]
        assert tuple(capacity) in holding
        assert cost(np.array(capacity)) == min(cost(np.array(b)) for b in holding)


@given(grids(), st.sampled_from(["centre", "corner"]))
def test_a_grid_lies_inside_its_bucket(case, offsets):
    shapes, buckets = case
    plan = fit_buckets(shapes, buckets, dims=names(shapes.shape[1]), offsets=offsets)
    begins = np.zeros_like(shapes) if plan.offsets is None else plan.offsets
    for shape, capacity, begin in zip(shapes, plan.capacities, begins, strict=True):
        behind = capacity - shape - begin
        assert (begin >= 0).all()
        assert (behind >= 0).all()
        if offsets == "centre":
            assert ((behind - begin == 0) | (behind - begin == 1)).all()
        else:
            assert (begin == 0).all()


@given(grids())
def test_every_grid_is_in_exactly_one_batch(case):
    shapes, buckets = case
    plan = fit_buckets(shapes, buckets, dims=names(shapes.shape[1]))
    real = [int(item) for batch in plan.batches for item in batch.items[: batch.count]]
    assert sorted(real) == list(range(len(shapes)))
    for batch in plan.batches:
        assert (plan.capacities[batch.items] == batch.capacity).all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7), st.integers(1, 3))
def test_chosen_buckets_are_at_most_so_many_and_pad_least(lengths, count):
    plan = fit_buckets(np.array(lengths)[:, None], count)
    assert plan.dims == ("x",)
    assert len(plan.slots) <= count
    sizes = sorted({max(length, 1) for length in lengths})
    least = min(
        sum(min(b for b in buckets if b >= length) for length in lengths)
        for some in range(1, count + 1)
        for buckets in itertools.combinations(sizes, min(some, len(sizes)))
        if max(buckets) == max(sizes)
    )
    assert plan.padded_work() == least


def test_the_number_of_buckets_that_costs_least_is_chosen():
    shapes = np.array([[5, 5], [40, 7], [9, 80], [100, 90]])
    dear = fit_buckets(shapes, costs=Costs(1e-9, 1.0, 0.0))
    cheap = fit_buckets(shapes, costs=Costs(1.0, 1e-9, 0.0))
    assert list(dear.slots) == [{"y": 100, "x": 90}]
    assert len(cheap.slots) == 4
    assert cheap.offsets is None
    assert (dear.mode, cheap.mode) == ("one", "chosen")
    assert dear.costs == Costs(1e-9, 1.0, 0.0)
    assert str(cheap).startswith("plan (chosen): 4 items, 4 slots, 4 batches, 4 shapes")


def test_a_wide_bucket_listed_first_does_not_take_what_a_cheaper_one_holds():
    plan = fit_buckets([[3, 3], [3, 9]], [(3, 100), (10, 10)])
    assert plan.capacities.tolist() == [[10, 10], [10, 10]]
    assert plan.slots == ({"y": 10, "x": 10}, {"y": 3, "x": 100})
    wide = fit_buckets([[3, 3], [3, 9]], [(10, 10), (3, 100)], work="y")
    assert wide.capacities.tolist() == [[3, 100], [3, 100]]
    assert str(plan).startswith("plan (given): 2 items, 2 slots, 1 batches, 1 shapes")


def test_buckets_by_name_may_limit_derived_names_and_carry_rows():
    buckets = [{"area": 800}, {"y": 64, "x": 64, "rows": 2}]
    plan = fit_buckets(SHAPES, buckets, derived={"area": "y * x"})
    assert plan.slots == ({"y": 60, "x": 30}, {"y": 64, "x": 64, "rows": 2})
    assert (plan.capacities >= SHAPES).all()


def test_dims_are_the_last_of_z_y_x_or_named():
    assert fit_buckets([[3]]).dims == ("x",)
    assert fit_buckets([[3, 4]]).dims == ("y", "x")
    assert fit_buckets([[3, 4, 5]]).dims == ("z", "y", "x")
    assert fit_buckets([[3]], dims="points").dims == ("points",)
    assert fit_buckets([[1, 2, 3, 4]], dims="a b c d".split()).dims == tuple("abcd")


@pytest.mark.parametrize("shapes", [[], np.zeros((0, 2), int)])
@pytest.mark.parametrize("buckets", [None, 3, [(4, 4)]])
def test_no_grids_make_no_batches(shapes, buckets):
    plan = fit_buckets(shapes, buckets)
    assert plan.batches == ()
    assert plan.offsets is None
    assert plan.lengths.shape == plan.capacities.shape == (0, 2)
    assert fit_buckets([], dims=("a", "b", "c")).lengths.shape == (0, 3)


def test_a_grid_that_fits_no_bucket_is_named_with_the_bucket_that_would_hold_it():
    with pytest.raises(PlanError) as caught:
        fit_buckets(SHAPES, [(32, 32), (20, 50)])
    assert str(caught.value) == (
        "fit_buckets: 1 of 3 items fit no bucket. Item 1 has y=60, x=10; the largest bucket holds "
        'y=32, x=32.\nAdd a bucket that holds it: buckets=[..., {"y": 60, "x": 32}].'
    )
    cured = fit_buckets(SHAPES, [(32, 32), (20, 50), {"y": 60, "x": 32}])
    assert cured.capacities[1].tolist() == [60, 32]


@pytest.mark.parametrize(
    ("buckets", "reason"),
    [
        ([], r"buckets=\[\] holds nothing"),
        ("64", "buckets='64'; give how many"),
        ({"y": 64, "x": 64}, "give how many to choose, or a list"),
        (2.5, "buckets=2.5; give how many"),
        (0, "buckets must be at least 1, got 0"),
        (True, "buckets must be an integer, got True"),
        ([(64,)], r"bucket 0 is \(64,\), of 1 dims; the shapes have 2: \(y, x\)"),
        ([(64, 64), 32], "bucket 1 is 32; give its shape along"),
        ([(64, 64), "ab"], "bucket 1 is 'ab'; give its shape along"),
        ([(64, 0)], "bucket 0: x must be at least 1, got 0"),
        ([(64, -1)], "bucket 0: x must be at least 1, got -1"),
        ([(64, 6.5)], "bucket 0: x must be an integer, got 6.5"),
        ([{"y": 64, "q": 3}], "bucket 0 limits 'q', which is no dim"),
    ],
)
def test_buckets_that_are_no_shapes_are_refused(buckets, reason):
    with pytest.raises(PlanError, match=f"fit_buckets: .*{reason}"):
        fit_buckets(SHAPES, buckets)


@pytest.mark.parametrize(
    ("shapes", "dims", "reason"),
    [
        ([3, 4], None, r"shapes must be integers \(items, d\).*shapes\[:, None\]"),
        ([[3.0, 4.0]], None, "got float64 of shape"),
        ([[True, False]], None, "got bool of shape"),
        ([[3, 4], [5]], None, "shapes must be integers"),
        (np.zeros((2, 0), int), None, r"got int64 of shape \(2, 0\)"),
        ([[3, 4], [5, -1]], None, "item 1 has x=-1; sizes are 0 or more"),
        ([[1, 2, 3, 4]], None, r"need names: dims=\('axis0', 'axis1', 'axis2', 'axis3'\)"),
        ([[1, 2]], ("x",), r"dims=\('x',\) for shapes of 2 dims"),
        ([[1, 2]], ("x", "x"), "give each a name of its own"),
        ([[1, 2]], ("rows", "x"), "'rows' cannot name a dim"),
    ],
)
def test_shapes_that_are_none_are_refused(shapes, dims, reason):
    with pytest.raises(PlanError, match=f"fit_buckets: .*{reason}"):
        fit_buckets(shapes, dims=dims)


def test_a_padded_grid_beyond_64_bits_is_refused():
    with pytest.raises(PlanError, match="fit_buckets: a batch of rows=1, y=4294967296"):
        fit_buckets([[1, 1]], [(2**32, 2**32)])


@pytest.mark.parametrize(
    ("offsets", "reason"),
    [
        ("center", "offsets='center'; allowed are"),
        ([[0, 0]], r"offsets must be integers of shape \(3, 2\)"),
        (np.zeros((3, 2)), "got float64 of shape"),
        ([[0, 0], [0, 55], [0, 0]], r"y=60, x=10 and begins at y=0, x=55; .*0 to y=4, x=54\. .*"),
        ([[0, 0], [5, 0], [0, 0]], r"Let it begin there: offsets\[1\] = \[4, 0\]"),
        ([[0, 0], [0, 0], [-1, 0]], "Item 2 has size y=28, x=28 and begins at y=-1, x=0"),
        ([[0, 2**63 - 1], [0, 0], [0, 0]], "1 of 3 items reach beyond their batch. Item 0"),
    ],
)  # fmt: skip
def test_offsets_that_let_a_grid_reach_beyond_its_bucket_are_refused(offsets, reason):
    buckets = [(32, 32), (64, 64)]
    with pytest.raises(PlanError, match=f"fit_buckets: .*{reason}"):
        fit_buckets(SHAPES, buckets, offsets=offsets)
    plan = fit_buckets(SHAPES, buckets)
    if isinstance(offsets, list) and len(offsets) == 3:
        with pytest.raises(PlanError, match=f"Plan: .*{reason}"):
            replace(plan, offsets=np.array(offsets))


def test_offsets_at_the_far_end_are_right():
    plan = fit_buckets(SHAPES, [(64, 64)], offsets=[[44, 34], [4, 54], [36, 36]])
    assert plan.offsets.tolist() == [[44, 34], [4, 54], [36, 36]]
    assert plan.offsets.dtype == np.int64
    assert not plan.offsets.flags.writeable


def test_zeros_are_no_offsets():
    assert fit_buckets(SHAPES, [(64, 64)], offsets=np.zeros((3, 2), int)).offsets is None
    assert fit_buckets(SHAPES, [(64, 64)], offsets="corner").offsets is None
    plan = assign_slots({"n": [2, 3]}, [{"n": 4}])
    assert replace(plan, offsets=np.zeros((2, 1), int)).offsets is None


@settings(max_examples=25)
@given(grids(), st.integers(1, 3))
def test_offsets_are_kept_when_a_plan_is_split_saved_and_loaded(tmp_path, case, rows):
    shapes, buckets = case
    plan = fit_buckets(shapes, buckets, dims=names(shapes.shape[1]))
    split = split_chunks(plan, rows)
    split.save(tmp_path / "plan")
    loaded = Plan.load(tmp_path / "plan")
    for other in (split, loaded):
        assert (other.capacities == plan.capacities).all()
        if plan.offsets is None:
            assert other.offsets is None
        else:
            assert other.offsets.dtype == np.int64
            assert (other.offsets == plan.offsets).all()
    assert str(loaded) == str(split)
