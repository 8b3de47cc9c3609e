"""Flat rows to padded batches and back, against loops over every place."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.adapters import get_adapter
from stowplan.errors import DataError
from stowplan.gather import gather, input_order, locate, select, take_grid, valid_places
from stowplan.planners.grids import crop, pad, unpad
from stowplan.ragged import Ragged

FILL = -7


@st.composite
def batches(draw, dims=(1, 2, 3)):
    """Items in any order, how many of them are real, and a capacity that holds them."""
    ndim = draw(st.sampled_from(dims))
    shapes = draw(st.lists(st.tuples(*[st.integers(0, 3)] * ndim), min_size=1, max_size=5))
    items = draw(st.permutations(range(len(shapes))))
    extra = draw(st.lists(st.sampled_from(items), max_size=2))
    slack = draw(st.tuples(*[st.integers(0, 2)] * ndim))
    longest = [max(shape[dim] for shape in shapes) for dim in range(ndim)]
    capacity = tuple(max(1, length + more) for length, more in zip(longest, slack, strict=True))
    tail = draw(st.sampled_from([(), (2,), (2, 1)]))
    return shapes, [*items, *extra], len(items), capacity, tail


@st.composite
def moved_batches(draw):
    """A batch, and where each of its rows begins."""
    case = draw(batches())
    shapes, items, _, capacity, _ = case
    begin = [
        [draw(st.integers(0, most - n)) for most, n in zip(capacity, shapes[item], strict=True)]
        for item in items
    ]
    return case, np.array(begin)


def hold(framework, law, *strategies):
    """Check a law by examples; JAX compiles every shape anew, so it gets few."""
    few = settings(max_examples=4 if framework == "jax" else 40)
    few(given(*strategies)(law))()


def numbered(shapes, tail=()):
    """Items whose every number differs, none of them 0."""
    count = itertools.count(1)
    size = [int(np.prod((*shape, *tail))) for shape in shapes]
    return [
        np.array([float(next(count)) for _ in range(n)]).reshape((*shape, *tail))
        for n, shape in zip(size, shapes, strict=True)
    ]


def padded(items, capacity, tail, fill=FILL):
    """Stack items into one block, the slow way."""
    block = np.full((len(items), *capacity, *tail), float(fill))
    for row, item in enumerate(items):
        for place in np.ndindex(*item.shape[: len(capacity)]):
            block[(row, *place)] = item[place]
    return block


def padded_at(items, capacity, tail, offsets, fill=FILL):
    """Stack items into one block, each from its offset on, the slow way."""
    block = np.full((len(items), *capacity, *tail), float(fill))
    for row, (item, begin) in enumerate(zip(items, offsets, strict=True)):
        for place in np.ndindex(*item.shape[: len(capacity)]):
            block[(row, *np.add(place, begin))] = item[place]
    return block


def product(masks):
    """Places that are real along every dim, the slow way."""
    lengths = [mask.shape[1] for mask in masks]
    inside = np.zeros((len(masks[0]), *lengths), bool)
    for row, *place in np.ndindex(*inside.shape):
        inside[(row, *place)] = all(m[row, at] for m, at in zip(masks, place, strict=True))
    return inside


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_what_is_filled_in_place_is_what_is_filled_in_a_copy(framework, xp):
    adapter = get_adapter(framework)
    assert adapter.in_place

    def law(case):
        shapes, items, _, capacity, tail = case
        arrays = numbered(shapes, tail)
        ragged = Ragged.from_list(arrays, len(capacity))
        index, masks = locate(ragged.starts[items], ragged.shapes[items], capacity)
        values = xp.asarray(ragged.values.copy())
        inside = xp.asarray(product(masks))
        namespace = adapter.namespace(values)
        found = gather(values, xp.asarray(index), inside, FILL, namespace, in_place=True)
        expected = padded([arrays[item] for item in items], capacity, tail)
        np.testing.assert_array_equal(np.asarray(found), expected)
        np.testing.assert_array_equal(np.asarray(values), ragged.values)

    hold(framework, law, batches())


def test_a_gathered_batch_is_every_item_padded(framework, xp):
    def law(case):
        shapes, items, _, capacity, tail = case
        arrays = numbered(shapes, tail)
        ragged = Ragged.from_list(arrays, len(capacity))
        index, masks = locate(ragged.starts[items], ragged.shapes[items], capacity)
        expected = padded([arrays[item] for item in items], capacity, tail)
        inside = product(masks)
        block = gather(xp.asarray(ragged.values), xp.asarray(index), xp.asarray(inside), FILL)
        assert block.dtype == xp.float64
        np.testing.assert_array_equal(np.asarray(block), expected)

    hold(framework, law, batches())


def test_locate_runs_on_every_framework(framework, xp):
    def law(case):
        shapes, items, _, capacity, _ = case
        ragged = Ragged.from_list(numbered(shapes), len(capacity))
        host = locate(ragged.starts[items], ragged.shapes[items], capacity)
        index, masks = locate(
            xp.asarray(ragged.starts[items]), xp.asarray(ragged.shapes[items]), capacity
        )
        assert index.dtype == xp.int64
        np.testing.assert_array_equal(np.asarray(index), host[0])
        for mask, other in zip(masks, host[1], strict=True):
            assert mask.dtype == xp.bool
            np.testing.assert_array_equal(np.asarray(mask), other)

    hold(framework, law, batches())


def test_gather_select_and_input_order_give_the_data_back(framework, xp):
    def law(case, split):
        shapes, items, count, capacity, tail = case
        arrays = numbered(shapes, tail)
        ragged = Ragged.from_list(arrays, len(capacity))
        parts = []
        for start in range(0, count, split):
            real = items[start : min(start + split, count)]
            rows = [*real, *items[count:]]  # padding rows repeat items
            index, masks = locate(ragged.starts[rows], ragged.shapes[rows], capacity)
            inside = xp.asarray(product(masks))
            block = gather(xp.asarray(ragged.values), xp.asarray(index), inside, FILL)
            places = xp.asarray(valid_places(masks, len(real)))
            parts.append(np.asarray(select(block, places, len(capacity))))
        flat = np.concatenate(parts)
        order = input_order(np.asarray(items[:count]), ragged.layout.counts)
        flat = flat if order is None else flat[order]
        np.testing.assert_array_equal(flat, ragged.values)

    hold(framework, law, batches(), st.integers(1, 4))


@given(batches())
def test_no_index_is_out_of_range_and_padding_points_at_row_0(case):
    shapes, items, _, capacity, _ = case
    ragged = Ragged.from_list(numbered(shapes), len(capacity))
    index, masks = locate(ragged.starts[items], ragged.shapes[items], capacity)
    inside = product(masks)
    assert index.shape == (len(items), *capacity)
    assert (index >= 0).all()
    assert (index[~inside] == 0).all()
    assert (index < max(1, len(ragged.values))).all()
    for row, item in enumerate(items):
        for dim, mask in enumerate(masks):
            expected = [place < shapes[item][dim] for place in range(capacity[dim])]
            assert mask[row].tolist() == expected


@given(batches())
def test_valid_places_count_row_by_row_and_leave_out_padding_rows(case):
    shapes, items, count, capacity, _ = case
    masks = [
        np.array([[place < shapes[item][dim] for place in range(length)] for item in items])
        for dim, length in enumerate(capacity)
    ]
    expected, number = [], 0
    for row, item in enumerate(items):
        for place in np.ndindex(*capacity):
            real = all(at < length for at, length in zip(place, shapes[item], strict=True))
            if row < count and real:
                expected.append(number)
            number += 1
    assert valid_places(masks, count).tolist() == expected


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_input_order_sorts_rows_stored_item_by_item(counts, data):
    items = data.draw(st.permutations(range(len(counts))))
    stored = [(item, row) for item in items for row in range(counts[item])]
    order = input_order(np.array(items), np.array(counts))
    if items == sorted(items):
        assert order is None
    else:
        assert [stored[row] for row in order] == sorted(stored)


def test_the_order_of_no_items_is_right_already():
    assert input_order(np.empty(0, np.intp), np.empty(0, np.int64)) is None


def test_a_batch_by_hand(xp):
    """Items [[1, 2, 3], [4, 5, 6]], [] of shape (0, 2), [[7], [8]] in capacity (2, 3)."""
    starts, shapes = xp.asarray([0, 6, 6]), xp.asarray([[2, 3], [0, 2], [2, 1]])
    index, (tall, wide) = locate(starts, shapes, (2, 3))
    assert np.asarray(index).tolist() == [
        [[0, 1, 2], [3, 4, 5]],
        [[0, 0, 0], [0, 0, 0]],
        [[6, 0, 0], [7, 0, 0]],
    ]
    assert np.asarray(tall).tolist() == [[True, True], [False, False], [True, True]]
    assert np.asarray(wide).tolist() == [[True] * 3, [True, True, False], [True, False, False]]


def test_indices_keep_the_dtype_they_are_computed_from():
    for dtype in (np.int32, np.int64):
        index, _ = locate(np.array([0, 2], dtype), np.array([[2], [1]], dtype), (3,))
        assert index.dtype == dtype


def test_without_padding_no_mask_is_needed(xp):
    values = xp.asarray([1.0, 2.0, 3.0, 4.0])
    block = gather(values, xp.asarray([[2, 3], [0, 1]]), None, FILL)
    assert np.asarray(block).tolist() == [[3.0, 4.0], [1.0, 2.0]]


def test_plain_columns_are_gathered_by_item(xp):
    values = xp.asarray([[1.0, 2.0], [3.0, 4.0]])
    block = gather(values, xp.asarray([1, 0, 1]), None, FILL)
    assert np.asarray(block).tolist() == [[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float32", "float64", "complex128"])
@pytest.mark.parametrize("total", [0, 2])
def test_the_fill_takes_the_dtype_of_the_data(xp, dtype, total):
    values = xp.ones((total, 2), dtype=getattr(xp, dtype))
    index, inside = xp.asarray([[0, 0]]), xp.asarray([[total > 0, False]])
    for fill in (0, 1, 0.0):
        block = gather(values, index, inside, fill)
        assert block.dtype == values.dtype
        assert np.asarray(block)[0, 1].tolist() == [fill, fill]


@pytest.mark.parametrize("total", [0, 1])
def test_the_fill_may_be_an_array_beside_its_namespace(xp, total):
    values = xp.ones((total, 2), dtype=xp.float32)
    inside = xp.asarray([[total > 0, False]])
    fill = xp.asarray(FILL, dtype=xp.float32)
    block = gather(values, xp.asarray([[0, 0]]), inside, fill, xp)
    assert block.dtype == xp.float32
    assert np.asarray(block).tolist() == [[[1.0 if total else FILL] * 2, [FILL] * 2]]


def test_of_no_rows_at_all_a_batch_is_fill(xp):
    values = xp.zeros((0, 3), dtype=xp.float32)
    for inside in (None, xp.zeros((2, 1, 4), dtype=xp.bool)):
        block = gather(values, xp.zeros((2, 1, 4), dtype=xp.int64), inside, 2.5)
        assert block.dtype == xp.float32
        assert block.shape == (2, 1, 4, 3)
        assert (np.asarray(block) == 2.5).all()


def test_select_takes_rows_of_the_leading_axes(xp):
    output = xp.reshape(xp.arange(24), (2, 3, 4))
    assert np.asarray(select(output, xp.asarray([1]), 0)).shape == (1, 3, 4)
    found = np.asarray(select(output, xp.asarray([1, 5]), 1)).tolist()
    assert found == [[4, 5, 6, 7], [20, 21, 22, 23]]
    assert np.asarray(select(output, xp.asarray([0, 23]), 2)).tolist() == [0, 23]


def test_select_keeps_axes_of_length_0(xp):
    assert select(xp.zeros((2, 3, 0)), xp.asarray([0, 4]), 1).shape == (2, 0)


def test_everything_stays_on_its_device():
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")

    def put(value):
        return strict.asarray(value, device=device)

    index, (mask,) = locate(put([0, 2]), put([[2], [1]]), (3,))
    for values in (put([1.0, 2.0, 3.0]), strict.zeros((0,), device=device)):
        block = gather(values, index, mask, 9.0)
        assert block.device == device
        assert select(block, put([0, 1]), 1).device == device


def test_items_begin_at_their_offsets_and_come_back(framework, xp):
    def law(case):
        (shapes, items, count, capacity, tail), offsets = case
        arrays = numbered(shapes, tail)
        ragged = Ragged.from_list(arrays, len(capacity))
        starts, lengths = ragged.starts[items], ragged.shapes[items]
        index, masks = locate(
            xp.asarray(starts), xp.asarray(lengths), capacity, 0, xp.asarray(offsets)
        )
        host, host_masks = locate(starts, lengths, capacity, 0, offsets)
        np.testing.assert_array_equal(np.asarray(index), host)
        assert ((host >= 0) & (host < max(len(ragged.values), 1))).all()
        for mask, other in zip(masks, host_masks, strict=True):
            np.testing.assert_array_equal(np.asarray(mask), other)
        inside = xp.asarray(product(host_masks))
        block = gather(xp.asarray(ragged.values), index, inside, FILL)
        expected = padded_at([arrays[item] for item in items], capacity, tail, offsets)
        np.testing.assert_array_equal(np.asarray(block), expected)
        places = xp.asarray(valid_places(host_masks, count))
        flat = np.asarray(select(block, places, len(capacity)))
        stored = [arrays[item].reshape(-1, *tail) for item in items[:count]]
        np.testing.assert_array_equal(flat, np.concatenate(stored))

    hold(framework, law, moved_batches())


@given(moved_batches())
def test_places_in_front_of_an_item_point_at_the_padding_row(case):
    (shapes, items, _, capacity, _), offsets = case
    ragged = Ragged.from_list(numbered(shapes), len(capacity))
    args = ragged.starts[items], ragged.shapes[items], capacity
    index, masks = locate(*args, 99, offsets)
    assert (index[~product(masks)] == 99).all()
    zeros, _ = locate(*args, 99, np.zeros_like(offsets))
    np.testing.assert_array_equal(zeros, locate(*args, 99)[0])


@st.composite
def windows(draw):
    """A grid of 1 to 3 dims with trailing axes, a capacity that holds it, and an offset."""
    count = draw(st.integers(1, 3))
    shape, offset, behind = (draw(st.tuples(*[st.integers(0, most)] * count)) for most in (3, 2, 2))
    capacity = tuple(max(sum(parts), 1) for parts in zip(shape, offset, behind, strict=True))
    return shape, capacity, offset, draw(st.sampled_from([(), (2,), (3, 1), (0,)]))


def test_an_unpadded_grid_is_the_one_that_was_padded(framework, xp):
    def law(case):
        shape, capacity, offset, tail = case
        array = np.arange(1.0, np.prod((*shape, *tail)) + 1).reshape(*shape, *tail)
        given = xp.asarray(array, dtype=xp.float32)
        padded = take_grid(given, pad(shape, capacity, offset), FILL)
        behind = [c - n - o for c, n, o in zip(capacity, shape, offset, strict=True)]
        margins = [*zip(offset, behind, strict=True), *[(0, 0)] * len(tail)]
        expected = np.pad(array, margins, constant_values=FILL)
        np.testing.assert_array_equal(np.asarray(padded), expected)
        back = take_grid(padded, unpad(capacity, shape, offset))
        box = [(first, first + length) for first, length in zip(offset, shape, strict=True)]
        cut = take_grid(padded, crop(capacity, box))
        for found in (back, cut):
            assert found.dtype == padded.dtype == xp.float32
            np.testing.assert_array_equal(np.asarray(found), array)

    hold(framework, law, windows())


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float32", "float64", "complex128"])
def test_a_grid_keeps_its_dtype_whatever_the_fill(xp, dtype):
    array = xp.ones((2,), dtype=getattr(xp, dtype))
    for fill, value in ((0, 0), (1, 1), (np.int32(1), 1), (xp.zeros((), dtype=array.dtype), 0)):
        made = take_grid(array, pad((2,), (4,), (1,)), fill)
        assert made.dtype == array.dtype
        assert np.asarray(made).tolist() == [value, 1, 1, value]


def test_a_grid_of_another_shape_is_refused(xp):
    for shape in ((3, 2), (2,), (2, 4)):
        with pytest.raises(DataError, match=r"take_grid: the array has shape .*\(2, 3\)"):
            take_grid(xp.zeros(shape), pad((2, 3), (4, 4)))


def test_a_grid_is_taken_on_its_device():
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")
    made = take_grid(strict.ones((2,), device=device), pad((2,), (4,), (1,)), 9.0)
    assert made.device == device


def test_gradients_pass_through_a_grid(load_framework):
    into, out = pad((2,), (4,), (1,)), unpad((4,), (2,), (1,))
    weights = np.array([5.0, 7.0, 11.0, 13.0])
    load_framework("torch")
    import torch

    flat = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    loss = (torch.from_numpy(weights) * take_grid(flat, into) ** 2).sum()
    (loss + take_grid(take_grid(flat, into), out).sum()).backward()
    assert flat.grad.tolist() == [2 * 7 + 1, 4 * 11 + 1]
    jnp = load_framework("jax")
    import jax

    def total(flat):
        padded = take_grid(flat, into)
        return (weights * padded**2).sum() + take_grid(padded, out).sum()

    for wrap in (lambda function: function, jax.jit):
        assert wrap(jax.grad(total))(jnp.asarray([1.0, 2.0])).tolist() == [15, 45]
    many = jax.jit(jax.vmap(lambda one: take_grid(one, into)))(jnp.ones((3, 2)))
    assert many.tolist() == [[0, 1, 1, 0]] * 3
