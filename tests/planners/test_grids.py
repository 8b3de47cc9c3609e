"""Index plans of one grid against NumPy's own padding and slices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan.errors import PlanError
from stowplan.planners import crop, fit_buckets, item_grids, pad, unpad


@st.composite
def windows(draw, most=4):
    """A shape, a capacity that holds it, and an offset, of 1 to 4 dims."""
    count = draw(st.integers(1, 4))
    shape = draw(st.tuples(*[st.integers(0, most)] * count))
    offset = draw(st.tuples(*[st.integers(0, 2)] * count))
    behind = draw(st.tuples(*[st.integers(0, 2)] * count))
    capacity = tuple(max(sum(parts), 1) for parts in zip(shape, offset, behind, strict=True))
    return shape, capacity, offset


def numbers(shape):
    return np.arange(1, np.prod(shape, dtype=int) + 1).reshape(shape)


def taken(array, grid, fill=0):
    """What an index says, one place after the other."""
    assert grid.source == array.shape
    made = np.full(grid.shape, fill, array.dtype)
    for place in np.ndindex(*grid.shape):
        if grid.inside is None or grid.inside[place]:
            made[place] = array.reshape(-1)[grid.index[place]]
    return made


@given(windows())
def test_pad_puts_a_grid_where_numpy_does(case):
    shape, capacity, offset = case
    grid, array = pad(shape, capacity, offset), numbers(shape)
    behind = [c - n - o for c, n, o in zip(capacity, shape, offset, strict=True)]
    expected = np.pad(array, list(zip(offset, behind, strict=True)), constant_values=-1)
    np.testing.assert_array_equal(taken(array, grid, -1), expected)
    assert grid.shape == capacity
    assert (grid.index >= 0).all()
    assert (grid.index < max(array.size, 1)).all()


@given(windows())
def test_unpad_undoes_pad(case):
    shape, capacity, offset = case
    array = numbers(shape)
    padded = taken(array, pad(shape, capacity, offset), -1)
    np.testing.assert_array_equal(taken(padded, unpad(capacity, shape, offset)), array)
    both = pad(shape, capacity, offset).then(unpad(capacity, shape, offset))
    assert both.inside is None
    np.testing.assert_array_equal(both.index, np.arange(array.size).reshape(shape))


@given(windows())
def test_crop_is_a_slice(case):
    shape, capacity, offset = case
    box = [(first, first + length) for first, length in zip(offset, shape, strict=True)]
    array = numbers(capacity)
    cut = array[tuple(slice(*pair) for pair in box)]
    np.testing.assert_array_equal(taken(array, crop(capacity, box)), cut)
    assert crop(capacity, np.array(box)).inside is None


@given(windows(most=3), st.data())
def test_then_is_one_after_the_other(case, data):
    shape, capacity, offset = case
    box = [tuple(sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in capacity]
    first, second = pad(shape, capacity, offset), crop(capacity, box)
    third = pad(second.shape, [n + 2 for n in second.shape], [1] * len(shape))
    array = numbers(shape)
    slow = taken(taken(taken(array, first, -1), second, -1), third, -1)
    for whole in (first.then(second).then(third), first.then(second.then(third))):
        np.testing.assert_array_equal(taken(array, whole, -1), slow)


def test_the_corner_is_where_a_grid_begins_by_default():
    assert pad((1, 2), (2, 3)).index.tolist() == pad((1, 2), (2, 3), (0, 0)).index.tolist()
    assert unpad((2, 3), (1, 2)).index.tolist() == [[0, 1]]


def test_indices_are_not_written_to():
    grid = pad((2,), (4,), (1,))
    for array in (grid.index, grid.inside):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize("offsets", ["corner", "centre", [[1, 0], [0, 0], [2, 3]]])
def test_items_of_a_plan_go_where_the_plan_says(offsets):
    shapes = [[2, 3], [4, 4], [0, 2]]
    plan = fit_buckets(shapes, [(4, 5), (6, 6)], work="y", offsets=offsets)
    for item, shape in enumerate(shapes):
        into, out = item_grids(plan, item)
        array = numbers(shape)
        begin = [0, 0] if plan.offsets is None else plan.offsets[item].tolist()
        padded = taken(array, into, -1)
        assert padded.shape == (4, 5)
        where = tuple(slice(b, b + n) for b, n in zip(begin, shape, strict=True))
        np.testing.assert_array_equal(padded[where], array)
        assert (padded == -1).sum() == 20 - array.size
        np.testing.assert_array_equal(taken(padded, out), array)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: pad((2, 3), (2, 2)), "pad: along axis 1 a length of 3 from offset 0 reaches"),
        (lambda: pad((2, 3), (2, 2)), r"none fits\. Make capacity\[1\] at least 3"),
        (lambda: pad((2,), (4,), (3,)), r"the most is 2\. Make capacity\[0\] at least 5"),
        (lambda: unpad((4,), (2,), (3,)), "unpad: along axis 0 a length of 2 from offset 3"),
        (lambda: pad((2,), (4,), (-1,)), r"pad: offset\[0\] must be at least 0, got -1"),
        (lambda: pad((2,), (0,)), r"pad: capacity\[0\] must be at least 1, got 0"),
        (lambda: pad((2.5,), (4,)), r"pad: shape\[0\] must be an integer, got 2.5"),
        (lambda: pad((2, 3), (4,)), "differ in their number of axes"),
        (lambda: pad(3, (4,)), "pad: shape=3; give one integer for each axis"),
        (lambda: pad((), ()), r"pad: shape=\(\); give one integer"),
        (lambda: pad((1, 1), (2**32, 2**32)), "beyond the largest 64-bit integer"),
        (lambda: crop((3, 4), (0, 1, 0, 1)), r"crop: box=\(0, 1, 0, 1\); give \(first, end\)"),
        (lambda: crop((3, 4), [(0, 1)]), "for each of the 2 axes"),
        (lambda: crop((3,), [(0, 1, 2)]), "for each of the 1 axes"),
        (lambda: crop((3,), [(1, 4)]), r"box\[0\]=\(1, 4\) is not within 0 to 3"),
        (lambda: crop((3,), [(2, 1)]), r"box\[0\]=\(2, 1\) is not within 0 to 3"),
        (lambda: crop((3,), [(-1, 2)]), r"crop: first of box\[0\] must be at least 0"),
        (lambda: pad((2,), (4,)).then(crop((5,), [(0, 1)])), r"makes a grid of \(4,\), the second"),
        (lambda: item_grids(fit_buckets([[2, 3]]), 1), "item 1 of 1; items are numbered from 0"),
        (lambda: item_grids(fit_buckets([[2, 3]]), -1), "item must be at least 0, got -1"),
    ],
)  # fmt: skip
def test_what_is_no_window_of_a_grid_is_refused(make, reason):
    with pytest.raises(PlanError, match=reason):
        make()
