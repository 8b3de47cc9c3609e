"""Ragged: what goes in comes out, views share rows, and wrong shapes are named."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import stowplan.ragged as ragged_module
from stowplan.errors import DataError, FrameworkError
from stowplan.layout import Layout
from stowplan.ragged import Ragged, when_loaded


@st.composite
def columns(draw, most=3):
    """Arrays of one dtype and tail, and the number of their ragged dims."""
    ragged = draw(st.integers(1, most))
    tail = draw(st.sampled_from([(), (2,), (1, 3), (0,)]))
    dtype = draw(st.sampled_from([np.float64, np.float32, np.int64, np.complex128, np.bool_]))
    shapes = draw(st.lists(st.tuples(*[st.integers(0, 3)] * ragged), min_size=1, max_size=6))
    elements = hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_subnormal=False)
    return [draw(hnp.arrays(dtype, (*s, *tail), elements=elements)) for s in shapes], ragged


def hold(framework, law, *strategies):
    """Check a law by examples; JAX compiles every shape anew, so it gets few."""
    few = settings(max_examples=4 if framework == "jax" else 40)
    few(given(*strategies)(law))()


def assert_items(found, expected):
    """Compare item by item, shapes and values."""
    found = list(found)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert tuple(one.shape) == other.shape
        np.testing.assert_array_equal(np.asarray(one), other)


def test_a_list_survives_the_round_trip(framework, xp):
    def law(case):
        arrays, ragged = case
        given_arrays = [xp.asarray(array) for array in arrays]
        column = Ragged.from_list(given_arrays, ragged)
        assert column.dtype == given_arrays[0].dtype
        assert column.shapes.tolist() == [list(array.shape[:ragged]) for array in arrays]
        assert len(column) == len(arrays)
        assert_items(column.to_list(), arrays)
        assert_items([column[-1]], arrays[-1:])

    hold(framework, law, columns())


def test_a_view_equals_the_chosen_items_before_and_after_compacting(framework, xp):
    def law(case, data):
        arrays, ragged = case
        pool = Ragged.from_list([xp.asarray(array) for array in arrays], ragged)
        items = st.lists(st.integers(-len(arrays), len(arrays) - 1), max_size=8)
        chosen = data.draw(items)
        view = pool[chosen]
        assert view.values is pool.values
        expected = [arrays[item] for item in chosen]
        assert_items(view, expected)
        compact = view.compact()
        assert_items(compact, expected)
        assert compact.layout.contiguous
        assert compact.values.shape[0] == compact.layout.counts.sum()
        assert_items(view.distinct(), expected)

    hold(framework, law, columns(), st.data())


@given(columns(), st.data())
def test_distinct_stores_each_used_row_once(case, data):
    arrays, ragged = case
    shapes = [array.shape[:ragged] for array in arrays]
    total = sum(int(np.prod(shape)) for shape in shapes)
    pool = Ragged(np.arange(total), shapes)  # every row differs
    chosen = data.draw(st.lists(st.integers(0, len(arrays) - 1), max_size=8))
    rows = sorted(row for item in set(chosen) for row in pool[item].reshape(-1).tolist())
    assert sorted(pool[chosen].distinct().values.tolist()) == rows


@given(columns(), st.data())
def test_views_of_views_choose_twice(case, data):
    arrays, ragged = case
    pool = Ragged.from_list(arrays, ragged)
    first = data.draw(st.lists(st.integers(0, len(arrays) - 1), min_size=1, max_size=6))
    second = data.draw(st.lists(st.integers(0, len(first) - 1), max_size=6))
    assert_items(pool[first][second], [arrays[first[item]] for item in second])


def test_slices_masks_and_numbers_choose_items():
    arrays = [np.arange(float(n)) for n in (2, 0, 3, 1)]
    pool = Ragged.from_list(arrays)
    assert_items(pool[1:3], arrays[1:3])
    assert_items(pool[::-1], arrays[::-1])
    assert_items(pool[np.array([True, False, False, True])], [arrays[0], arrays[3]])
    assert_items(pool[[]], [])
    assert_items([pool[np.int32(2)], pool[np.array(2)], pool[-2]], [arrays[2]] * 3)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (4, "item 4 of 4"),
        (-5, "item -5 of 4"),
        ([0, 4], "out of bounds"),
        ([0.5], "integer"),
        ((0, 1), r"several indices; write ragged\[item\]\[row\]"),
        ([[0, 1]], "no item, slice or flat list"),
        (True, "no item, slice or flat list"),
        (None, "no item, slice or flat list"),
        ("x", "no item, slice or flat list"),
        ([True], "boolean"),
    ],
)
def test_an_index_that_names_no_item_is_refused(index, message):
    with pytest.raises(IndexError, match=message):
        Ragged(np.ones(4), [1, 1, 1, 1])[index]


def test_what_is_complete_already_is_not_copied():
    pool = Ragged(np.arange(3), [2, 1])
    assert pool.compact() is pool
    assert pool.distinct() is pool
    shorter = pool[:1]  # contiguous, but not all rows
    assert shorter.layout.contiguous
    assert shorter.compact().values.tolist() == [0, 1]
    assert shorter.distinct().values.tolist() == [0, 1]


def test_values_are_not_copied_and_shapes_may_be_a_table():
    values = np.arange(10.0)
    assert Ragged(values, [3, 7]).values is values
    assert Ragged(values, [[2, 2], [3, 2]])[1].tolist() == [[4.0, 5.0], [6.0, 7.0], [8.0, 9.0]]
    assert Ragged([1, 2], [1, 1]).values.tolist() == [1, 2]
    assert Ragged([], []).shapes.shape == (0, 1)


def test_starts_are_where_items_begin():
    assert Ragged(np.ones(9), [[2, 3], [0, 5], [3, 1]]).starts.tolist() == [0, 6, 6]
    assert Ragged(np.ones(3), [1, 0, 2])[[2, 0, 1]].starts.tolist() == [1, 0, 1]


def test_shapes_and_starts_cannot_change_under_a_cache():
    shapes = np.array([1, 2])
    pool = Ragged(np.ones(3), shapes)
    shapes[:] = 0
    assert pool.shapes.tolist() == [[1], [2]]
    for table in (pool.shapes, pool.starts):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 5


def test_map_values_keeps_the_layout():
    pool = Ragged(np.arange(3.0), [1, 2])[[1, 0]]
    twice = pool.map_values(lambda values: 2 * values)
    assert twice.layout is pool.layout
    assert [item.tolist() for item in twice] == [[2.0, 4.0], [0.0]]


def test_a_ragged_shows_its_size_and_is_copied_and_pickled():
    pool = Ragged(np.ones((3, 2)), [1, 2])
    assert repr(pool) == "Ragged(2 items, values (3, 2) float64)"
    for other in (pickle.loads(pickle.dumps(pool)), copy.deepcopy(pool)):
        assert_items(other, pool.to_list())


@pytest.mark.parametrize(
    ("values", "shapes", "message"),
    [
        (np.ones(3), [1, 1], "add up to 2 rows, but values has 3"),
        (np.ones(3), [1, 3], "add up to 4 rows, but values has 3"),
        (np.ones((4, 2)), [[2, 4]], "add up to 8 rows, but values has 4"),
        (np.array(1.0), [1], "add up to 1 rows, but values has no"),
        (np.ones(1), [2, -1], "item 1 has a negative size"),
        (np.ones(2), [[1, 1], [-1, -1]], "item 1 has a negative size"),
        (np.ones(2), [1.0, 1.0], "must be integers, got dtype float64"),
        (np.ones(2), [True, True], "must be integers, got dtype bool"),
        (np.ones(2), [[[1], [1]]], r"must be \(items, d\) with d >= 1, got \(1, 2, 1\)"),
        (np.ones(2), 2, r"must be \(items, d\) with d >= 1, got \(\)"),
        (np.ones(0), np.ones((3, 0), int), r"must be \(items, d\) with d >= 1, got \(3, 0\)"),
        (np.empty(0), [[2**32, 2**32]], "more rows than a 64-bit integer"),
        (np.empty(0), [2**61, 2**61, 2**61, 2**61, 2**61], "more rows than a 64-bit integer"),
        (np.array(["a"]), [1], "dtype <U1 holds no numbers"),
        ([None], [1], "dtype object holds no numbers"),
        (np.array(["2020"], "M8[Y]"), [1], "holds no numbers"),
    ],
)
def test_shapes_and_values_that_do_not_fit_are_refused(values, shapes, message):
    with pytest.raises(DataError, match=message):
        Ragged(values, shapes)


def test_a_layout_has_one_start_per_item():
    with pytest.raises(DataError, match=r"2 shapes, but starts of shape \(3,\)"):
        Layout([1, 1], [0, 1, 2])
    with pytest.raises(DataError, match="starts must be integers"):
        Layout([1], [0.5])


def test_layouts_are_equal_where_items_lie_at_the_same_rows():
    packed = Layout([2, 1])
    assert packed == Layout([[2], [1]], [0, 2])
    assert hash(packed) == hash(Layout([[2], [1]], [0, 2]))
    assert Layout([2, 1], [0, 2]).contiguous
    for other in (Layout([1, 2]), Layout([2, 1], [1, 0]), Layout([[2, 1]]), Layout([2, 1, 0])):
        assert packed != other
    assert not Layout([2, 1], [1, 0]).contiguous
    assert packed != "layout"


class TestFromList:
    def test_nested_lists_are_read_as_numpy(self):
        column = Ragged.from_list([[[1, 2], [3, 4]], [], [[5.5, 6]]])
        assert column.values.tolist() == [[1, 2], [3, 4], [5.5, 6]]
        assert column.shapes.tolist() == [[2], [0], [1]]
        assert Ragged.from_list([[1], [2]], dtype=np.float32).dtype == np.float32
        assert Ragged.from_list(iter([[1], [2]])).values.tolist() == [1, 2]

    def test_rows_of_an_array_are_items(self):
        assert_items(Ragged.from_list(np.eye(2)), list(np.eye(2)))

    @pytest.mark.parametrize("ragged", [1, 2])
    def test_an_empty_list_is_an_item_of_size_0(self, xp, ragged):
        block = xp.ones((2,) * ragged + (3,))
        column = Ragged.from_list([[], block, ()], ragged)
        assert column.shapes.tolist() == [[0] * ragged, [2] * ragged, [0] * ragged]
        assert column[0].shape == (0,) * ragged + (3,)
        assert column.dtype == block.dtype

    @pytest.mark.parametrize("arrays", [[], [[], []]])
    def test_where_no_item_has_a_shape_the_tail_and_dtype_are_as_asked(self, arrays):
        column = Ragged.from_list(arrays, 2, tail=(3,), dtype=np.int32)
        assert column.values.shape == (0, 3)
        assert column.dtype == np.int32
        assert column.shapes.tolist() == [[0, 0]] * len(arrays)
        assert Ragged.from_list(arrays).dtype == np.float64

    def test_items_without_rows_do_not_set_the_tail_of_others(self):
        with pytest.raises(DataError, match=r"item 0 has shape \(0, 2\).*followed by \(3,\)"):
            Ragged.from_list([np.empty((0, 2)), np.ones((1, 3))])

    @pytest.mark.parametrize(
        ("arrays", "ragged", "message"),
        [
            ([[1.0]], 0, "ragged=0; at least one dim"),
            ([1.0, 2.0], 1, r"item 0 has shape \(\)"),
            ([[1.0]], 2, r"item 0 has shape \(1,\)"),
            ([[[1, 2]], [[1, 2, 3]]], 1, r"item 1 has shape \(1, 3\).*1 ragged dims.*\(2,\)"),
            ([[1.0], [[1.0]]], 1, r"item 1 has shape \(1, 1\)"),
            ([[1.0], [[1.0], [1.0, 2.0]]], 1, "item 1 is no block of numbers"),
            ([[1.0], ["a"]], 1, "item 1 is no block of numbers: dtype <U1"),
            ([[1.0], None], 1, "item 1 is no block of numbers: dtype object"),
            ([[1.0], {"a": 1}], 1, "item 1 is no block of numbers: dtype object"),
            ([np.ones(1), np.ones(1, np.float32)], 1, "item 1 has dtype float32, the others"),
            ([[1.0], np.ones(1, np.float32)], 1, "item 1 has dtype float32, the others"),
            ([np.ones(1, np.float32), [1.0]], 1, "item 1 has dtype float64, the others"),
        ],
    )
    def test_items_that_do_not_fit_are_named(self, arrays, ragged, message):
        with pytest.raises(DataError, match=message):
            Ragged.from_list(arrays, ragged)

    def test_items_of_two_frameworks_are_named(self, xp, framework):
        if framework == "numpy":
            pytest.skip("needs another framework beside NumPy")
        message = f"items 0 and 3 are of two frameworks: {framework} and numpy"
        with pytest.raises(FrameworkError, match=message):
            Ragged.from_list([xp.ones(2), [], xp.ones(1), np.ones(2)])


class TestJax:
    @pytest.fixture(autouse=True)
    def _jax(self):
        self.jax = pytest.importorskip("jax")
        self.jax.config.update("jax_enable_x64", True)

    @settings(max_examples=6)
    @given(columns())
    def test_a_ragged_is_a_pytree(self, case):
        arrays, ragged = case
        column = Ragged.from_list([self.jax.numpy.asarray(a) for a in arrays], ragged)
        leaves, tree = self.jax.tree_util.tree_flatten(column)
        assert len(leaves) == 1
        assert leaves[0] is column.values
        assert_items(self.jax.tree_util.tree_unflatten(tree, leaves), arrays)

    def test_jit_takes_and_gives_ragged(self):
        traced = []

        @self.jax.jit
        def double(column):
            traced.append(type(column))
            views = column[[1, 0, 1]]
            return column.map_values(lambda v: 2 * v), views, views.compact()

        arrays = [np.array([1.0, 2.0]), np.array([3.0])]
        for scale in (1.0, 10.0):
            column = Ragged(self.jax.numpy.asarray([1.0, 2.0, 3.0]) * scale, [2, 1])
            twice, view, compact = double(column)
            assert_items(twice, [2 * scale * array for array in arrays])
            for result in (view, compact):
                assert_items(result, [scale * arrays[item] for item in (1, 0, 1)])
        assert len(traced) == 1  # an equal layout is the same program
        double(Ragged(self.jax.numpy.ones(3), [1, 2]))
        assert len(traced) == 2

    def test_gradients_come_back_as_ragged(self):
        column = Ragged(self.jax.numpy.asarray([1.0, 2.0, 3.0]), [2, 1])
        slopes = self.jax.grad(lambda c: (c[0] ** 2).sum() + 5 * c[1].sum())(column)
        assert [item.tolist() for item in slopes] == [[2.0, 4.0], [5.0]]

    def test_vmap_runs_over_values(self):
        column = Ragged(self.jax.numpy.arange(3.0), [2, 1])
        assert self.jax.vmap(lambda v: v + 1)(column.values).tolist() == [1.0, 2.0, 3.0]


def test_what_waits_for_a_framework_is_called_once_when_it_is_loaded(monkeypatch):
    calls = []
    monkeypatch.setattr(ragged_module, "_waiting", {})
    monkeypatch.setattr(ragged_module.sys, "modules", dict(ragged_module.sys.modules))
    when_loaded("some_framework", lambda: calls.append("made"))
    Ragged(np.ones(1), [1])
    assert calls == []
    ragged_module.sys.modules["some_framework"] = SimpleNamespace()
    Ragged(np.ones(1), [1])
    Ragged(np.ones(1), [1])
    assert calls == ["made"]
