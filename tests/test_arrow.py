"""Arrow list columns in and out: nested Python lists are the reference."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stowplan.arrow import is_arrow, read_values
from stowplan.errors import DataError, MissingDependencyError
from stowplan.ragged import Ragged

pa = pytest.importorskip("pyarrow")

DTYPES = [np.float64, np.float32, np.float16, np.int8, np.uint16, np.int64, np.uint64, np.bool_]


@st.composite
def blocks(draw, ragged=(1, 2, 3), least=0):
    """A list of arrays that share a dtype and the trailing dims, and the number of ragged dims."""
    count = draw(st.sampled_from(ragged))
    tail = draw(st.sampled_from([(), (2,), (1, 3)]))
    dtype = draw(st.sampled_from(DTYPES))
    shapes = st.tuples(*[st.integers(least, 3)] * count)
    lengths = draw(st.lists(shapes, min_size=1, max_size=5))
    return [draw(hnp.arrays(dtype, (*shape, *tail))) for shape in lengths], count


@given(blocks(least=1))
def test_arrow_gives_back_what_it_was_given(case):
    arrays, ragged = case
    column = Ragged.from_list(arrays, ragged).to_arrow()
    np.testing.assert_equal(column.to_pylist(), [array.tolist() for array in arrays])
    back = Ragged.from_arrow(column, ragged).to_list()
    for array, other in zip(arrays, back, strict=True):
        assert other.dtype == array.dtype
        np.testing.assert_array_equal(other, array)


@given(blocks())
def test_items_of_size_0_survive_arrow(case):
    arrays, ragged = case
    column = Ragged.from_list(arrays, ragged).to_arrow()
    np.testing.assert_equal(column.to_pylist(), [array.tolist() for array in arrays])
    back = Ragged.from_arrow(column, ragged)
    for array, shape in zip(arrays, back.shapes.tolist(), strict=True):
        kept, lists = [], 1  # a list of no lists does not tell their length
        for length in array.shape[:ragged]:
            kept.append(length if lists else 0)
            lists *= kept[-1]
        assert shape == kept


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_slices_and_chunks_are_read_from_where_they_start(kind):
    lists = [[9.0], [1.0, 2.0], [], [3.0]]
    column = pa.array(lists, kind(pa.float64()))
    assert [a.tolist() for a in Ragged.from_arrow(column[1:3])] == lists[1:3]
    assert [a.tolist() for a in Ragged.from_arrow(column[3:])] == lists[3:]
    chunks = pa.chunked_array([column[1:], column[:1], column[2:2]])
    assert [a.tolist() for a in Ragged.from_arrow(chunks)] == [*lists[1:], lists[0]]


def test_slices_of_nested_lists_are_read_from_where_they_start():
    lists = [[[1, 2, 3]], [[4], [5], [6]], [], [[7, 8], [9, 10]]]
    column = pa.array(lists)
    found = Ragged.from_arrow(column[1:], ragged=2)
    assert [a.tolist() for a in found] == lists[1:]
    assert found.shapes.tolist() == [[3, 1], [0, 0], [2, 2]]
    assert found.values.tolist() == [4, 5, 6, 7, 8, 9, 10]


def test_numbers_are_shared_with_arrow_both_ways():
    values = np.arange(6.0)
    column = Ragged(values, [2, 4]).to_arrow()
    assert np.shares_memory(column.values.to_numpy(), values)
    back = Ragged.from_arrow(column)
    assert np.shares_memory(back.values, values)


def test_a_view_is_written_as_what_it_shows():
    pool = Ragged.from_list([[1.0], [2.0, 3.0]])
    assert pool[[1, 1, 0]].to_arrow().to_pylist() == [[2.0, 3.0], [2.0, 3.0], [1.0]]
    assert pool[:1].to_arrow().to_pylist() == [[1.0]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([], pa.list_(pa.float64())),
        pa.array([[1.0]])[1:],
        pa.chunked_array([], pa.list_(pa.float64())),
    ],
)
def test_a_column_of_no_items_is_read(column):
    assert len(Ragged.from_arrow(column)) == 0


def test_empty_lists_without_a_type_are_read():
    found = Ragged.from_arrow(pa.array([[], []]))
    assert found.shapes.tolist() == [[0], [0]]
    assert found.dtype == np.float64


def test_fixed_dims_may_be_fixed_size_or_equally_long_lists():
    rows = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    for kind in (pa.list_(pa.float64(), 3), pa.list_(pa.float64()), pa.large_list(pa.float64())):
        assert read_values(pa.array([[0.0] * 3, *rows], kind)[1:]).tolist() == rows
        nested = Ragged.from_arrow(pa.array([rows, [], rows[:1]], pa.list_(kind)))
        assert [a.tolist() for a in nested] == [rows, [], rows[:1]]
    assert read_values(pa.array([[[1], [2]], [[3], [4]]])).shape == (2, 2, 1)
    assert read_values(pa.array([], pa.list_(pa.float64()))).shape == (0, 0)


@pytest.mark.parametrize(
    ("column", "ragged", "message"),
    [
        (pa.array([[1.0], None]), 1, "entry 1 is null"),
        (pa.array([[1.0, None]]), 1, "entry 1 is null"),
        (pa.array([[[1.0], None]]), 2, "entry 1 is null"),
        (pa.array([None, None]), 0, "entry 0 is null"),
        (pa.array([None, [1.0]], pa.list_(pa.float64(), 1)), 0, "entry 0 is null"),
        (pa.array([[1.0], None]), 0, "entry 1 is null"),
        (pa.array([1.0]), 1, "level 0 is double, not a list; 1 ragged dims need 1 list levels"),
        (pa.array([[1.0]]), 2, "level 1 is double, not a list; 2 ragged dims need 2 list levels"),
        (pa.array([[[1], [2]], [[1], [2, 3]]]), 2, "item 1 has inner lists of different length"),
        (pa.array([[], [[1], [2, 3]]]), 2, "item 1 has inner lists of different length"),
        (pa.array([[1, 2], [3]]), 0, "entry 1 is a list of 1, entry 0 of 2"),
        (pa.array([["a"]]), 1, "column of string holds no numbers"),
        (pa.array([[{"a": 1}]]), 1, "holds no numbers"),
        (pa.array([[0]], pa.list_(pa.timestamp("s"))), 1, "holds no numbers"),
    ],
)
def test_what_is_no_full_block_of_numbers_is_refused(column, ragged, message):
    with pytest.raises(DataError, match=message):
        Ragged.from_arrow(column, ragged) if ragged else read_values(column)


@pytest.mark.parametrize(
    ("values", "message"), [(np.ones(2, complex), "no complex"), (np.ones((2, 0)), "length 0")]
)
def test_what_arrow_cannot_hold_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        Ragged(values, [2]).to_arrow()


def test_only_pyarrow_objects_count_as_arrow():
    assert is_arrow(pa.array([1]))
    assert is_arrow(pa.chunked_array([[1]]))
    assert not is_arrow(np.ones(1))
    assert not is_arrow([1])


def test_without_pyarrow_the_error_gives_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stowplan\[arrow\]'"):
        Ragged.from_list([[1.0]]).to_arrow()
