"""Data bound to a kernel: every form of a column is the same column, and bad data are named."""

from __future__ import annotations

import numpy as np
import pytest

import stowplan as sp
from stowplan.errors import DataError, FrameworkError
from stowplan.ragged import Ragged
from stowplan.runs.columns import bind


@sp.kernel("(n,3),(n),()->()", ragged="n")
def pull(positions, charges, volume, *, scale=1.0):
    return volume


@sp.kernel("(y,x),(x,y,2),(c),(c,c)->()", ragged=("y", "x"))
def image(table, turned, weights, square):
    return weights


@sp.kernel("(n,n)->(n)", ragged="n")
def matrix(a):
    return a[..., 0]


@sp.kernel("(n,c),(n,c)->()", ragged="n")
def pair(one, other):
    return one


@sp.kernel("(3)->()")
def fixed(x):
    return x


@sp.kernel("(n)->()", ragged="n")
def single(x):
    return x


def good():
    """Two items with 2 and 1 points."""
    return {
        "positions": [np.arange(6.0).reshape(2, 3), np.ones((1, 3))],
        "charges": [np.array([1.0, 2.0]), np.array([3.0])],
        "volume": np.array([4.0, 5.0]),
    }


def assert_good(columns):
    """Compare with what ``good`` says, read by hand."""
    positions, charges, volume = columns.values
    assert columns.items == 2
    assert {dim: sizes.tolist() for dim, sizes in columns.lengths.items()} == {"n": [2, 1]}
    expected = [[0, 1, 2], [3, 4, 5], [1, 1, 1]]
    assert np.asarray(positions.values).tolist() == expected
    assert np.asarray(charges.values).tolist() == [1, 2, 3]
    assert np.asarray(volume).tolist() == [4, 5]
    arrays = (positions.values, charges.values, volume)
    assert all(one is other for one, other in zip(columns.arrays, arrays, strict=True))


def test_lists_of_arrays_ragged_and_sequences_are_the_same_columns(xp):
    data = {name: [xp.asarray(item) for item in column] for name, column in good().items()}
    packed = {
        "positions": Ragged.from_list(data["positions"]),
        "charges": Ragged.from_list(data["charges"]),
        "volume": xp.stack(data["volume"]),
    }
    for form in (data, packed, list(data.values()), tuple(packed.values())):
        columns = bind("run", pull, form)
        assert_good(columns)
        assert all(array.dtype == xp.float64 for array in columns.arrays)
        assert all(type(array) is type(xp.ones(1)) for array in columns.arrays)


def test_nested_lists_and_numpy_scalars_are_numpy():
    data = {name: [np.asarray(item).tolist() for item in column] for name, column in good().items()}
    assert_good(bind("run", pull, data))
    assert_good(bind("run", pull, {**data, "volume": [np.float64(4), np.int64(5)]}))
    assert_good(bind("run", pull, {**data, "volume": (4, 5)}))


@pytest.mark.parametrize("inner", ["fixed", "list"])
def test_arrow_tables_and_columns_are_data(inner):
    pa = pytest.importorskip("pyarrow")
    row = pa.list_(pa.float64(), 3) if inner == "fixed" else pa.list_(pa.float64())
    lists = {
        name: [np.asarray(item).tolist() for item in column] for name, column in good().items()
    }
    columns = {
        "positions": pa.array(lists["positions"], pa.list_(row)),
        "charges": pa.array(lists["charges"]),
        "volume": pa.array(lists["volume"]),
    }
    assert_good(bind("run", pull, columns))
    table = pa.table({**columns, "name": ["a", "b"]})  # a table may have more columns
    assert_good(bind("run", pull, table))
    assert_good(bind("run", pull, pa.concat_tables([table[:1], table[1:]])))
    empty = bind("run", pull, table[:0])
    assert empty.items == 0
    assert empty.values[0].values.shape == (0, 3)
    assert bind("run", fixed, {"x": pa.array([], row)}).values[0].shape == (0, 3)
    assert bind("run", fixed, {"x": pa.array([[1.0, 2.0, 3.0]], row)}).values[0].shape == (1, 3)
    with pytest.raises(DataError, match="run: pull lacks column 'charges'"):
        bind("run", pull, table.drop_columns(["charges"]))


def test_a_plain_array_has_items_on_axis_0(xp):
    values = np.arange(24.0).reshape(2, 4, 3)
    data = {
        "positions": xp.asarray(values),
        "charges": xp.ones((2, 4), dtype=xp.float64),
        "volume": xp.ones(2, dtype=xp.float64),
    }
    columns = bind("run", pull, data)
    assert columns.lengths["n"].tolist() == [4, 4]
    assert [np.asarray(item).tolist() for item in columns.values[0]] == values.tolist()
    empty = bind("run", single, {"x": xp.ones((0, 5))})
    assert empty.items == 0
    none = bind("run", single, {"x": xp.ones((3, 0))})
    assert none.lengths["n"].tolist() == [0, 0, 0]


def test_two_ragged_dims_in_any_order_and_fixed_names_agree(xp):
    tables = [np.arange(6.0).reshape(2, 3), np.ones((1, 4))]
    turned = [np.ones((3, 2, 2)), np.ones((4, 1, 2))]
    data = {
        "table": [xp.asarray(table) for table in tables],
        "turned": [xp.asarray(table) for table in turned],
        "weights": xp.ones((2, 5)),
        "square": xp.ones((2, 5, 5)),
    }
    columns = bind("run", image, data)
    assert columns.lengths["y"].tolist() == [2, 1]
    assert columns.lengths["x"].tolist() == [3, 4]
    assert list(columns.lengths) == ["y", "x"]
    assert columns.fixed == {"c": 5}
    block = xp.reshape(xp.arange(24.0), (2, 3, 4))
    plain = bind("run", image, {**data, "table": block, "turned": xp.ones((2, 4, 3, 2))})
    assert plain.lengths["x"].tolist() == [4, 4]
    assert np.asarray(plain.values[0][1]).tolist() == np.asarray(block)[1].tolist()


def test_a_name_twice_in_one_argument_is_one_size():
    columns = bind("run", matrix, {"a": [np.eye(2), np.eye(3)]})
    assert columns.lengths["n"].tolist() == [2, 3]
    with pytest.raises(DataError, match="item 1 has n=3 in 'a' and n=4 in 'a'"):
        bind("run", matrix, {"a": [np.eye(2), np.ones((3, 4))]})


@pytest.mark.parametrize("nothing", [[], (), np.empty((0, 3))])
def test_an_empty_list_is_no_error(nothing):
    columns = bind("run", fixed, {"x": nothing})
    assert columns.items == 0
    assert columns.values[0].shape == (0, 3)
    assert columns.values[0].dtype == np.float64
    empty = bind("run", pull, {"positions": [], "charges": [], "volume": []})
    assert empty.items == 0
    assert empty.lengths["n"].shape == (0,)
    assert [array.shape for array in empty.arrays] == [(0, 3), (0,), (0,)]


def test_items_of_size_0_are_no_error():
    columns = bind("run", pull, {"positions": [[], []], "charges": [[], []], "volume": [1, 2]})
    assert columns.lengths["n"].tolist() == [0, 0]
    assert columns.arrays[0].shape == (0, 3)


def test_columns_that_disagree_name_the_item_both_columns_and_both_sizes():
    data = good()
    data["charges"] = [np.ones(2), np.ones(7)]
    with pytest.raises(DataError) as caught:
        bind("run", pull, data)
    assert str(caught.value) == (
        "run: pull: columns 'positions' and 'charges' disagree on 'n' for 1 items; "
        "item 1 has n=1 in 'positions' and n=7 in 'charges'. Give both the same length."
    )


def test_the_first_of_several_items_is_named():
    data = [np.ones((2, 2)), np.ones((3, 2)), np.ones((4, 2))]
    other = [np.ones((2, 2)), np.ones((5, 2)), np.ones((6, 2))]
    with pytest.raises(DataError, match="for 2 items; item 1 has n=3 in 'one' and n=5 in 'other'"):
        bind("run", pair, [data, other])


def test_fixed_names_that_disagree_name_both_columns_and_both_sizes():
    message = (
        "columns 'one' and 'other' disagree on 'c'; every item has c=2 in 'one' and c=4 in 'oth"
    )
    with pytest.raises(DataError, match=message):
        bind("run", pair, [np.ones((1, 3, 2)), np.ones((1, 3, 4))])
    with pytest.raises(DataError, match="every item has c=4 in 'one' and c=2 in 'other'"):
        bind("run", pair, [np.ones((1, 3, 4)), np.ones((1, 3, 2))])
    data = {
        "table": np.ones((1, 1, 1)),
        "turned": np.ones((1, 1, 1, 2)),
        "weights": np.ones((1, 5)),
        "square": np.ones((1, 5, 6)),
    }
    with pytest.raises(DataError, match="every item has c=5 in 'weights' and c=6 in 'square'"):
        bind("run", image, data)


def change(**columns):
    """Change some good columns, or drop them (None)."""
    data = {**good(), **columns}
    return {name: column for name, column in data.items() if column is not None}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            change(charges=None),
            "lacks column 'charges'; its columns are: positions, charges, volume.",
        ),
        ({}, "lacks column 'positions'"),
        (change(mass=[1, 2]), "has no column 'mass'; its columns are: positions, charges, volume."),
        (change(scale=2.0), "has no column 'scale'; .*; pass it by keyword instead."),
        (change(charges=None, scale=2.0), "lacks column 'charges'; its columns are: [a-z, ]*\\."),
        ([1, 2], "takes 3 columns .positions, charges, volume., got 2"),
        (None, "data is of type NoneType; give columns by name: {'positions': ...}"),
        (np.ones(3), "data is of type ndarray; give columns by name"),
        (Ragged(np.ones(3), [1, 2]), "data is of type Ragged; give columns by name"),
        ("abc", "data is of type str"),
        (change(volume=[1.0]), "column 'volume' has 1 items, column 'positions' has 2"),
        (change(charges=[[1.0]]), "column 'charges' has 1 items, column 'positions' has 2"),
        (change(volume=4.0), "column 'volume': a column of type float; give a Ragged"),
        (change(volume=np.array(4.0)), "column 'volume' is a single number; give one entry"),
        (change(charges=5), "column 'charges': a column of type int"),
        (change(charges="ab"), "column 'charges': 'ab' is no array that can be read"),
        (change(charges={"a": 1}), "column 'charges': a column of type dict"),
        (change(charges=(c for c in "ab")), "column 'charges': a column of type generator"),
        (change(volume=[None, 1]), "column 'volume': dtype object holds no numbers"),
        (change(volume=["a", "b"]), "column 'volume': 'a' is no array that can be read"),
        (change(volume=np.array(["a", "b"])), "column 'volume': dtype <U1 holds no numbers"),
        (change(volume=np.array(["2020", "2021"], "M8[Y]")), "column 'volume': dtype datetime64"),
        (change(volume=np.array([1, 2], object)), "column 'volume': dtype object holds no"),
        (change(charges=[["a"], [1]]), "column 'charges': Ragged.from_list: item 0 is no block"),
        (change(charges=[[1.0, 2.0], [[1.0], [1, 2]]]), "item 1 is no block of numbers"),
        (change(volume=[[1], [1, 2]]), "column 'volume': no block of numbers, and no dim is rag"),
        (change(volume=[np.ones(1), np.ones(2)]), r"'volume': item 1 has shape \(2,\) and dtype"),
        (change(volume=[np.array(1.0), 2.0]), "item 1 is a float, item 0 is an array"),
        (change(volume=Ragged(np.ones(3), [1, 2])), r"'volume': an item has 1 dim, .* has \(\)"),
        (change(volume=np.ones((2, 1))), r"'volume': an item has 1 dim, the signature has \(\)"),
        (change(charges=np.ones(2)), r"'charges': an item has 0 dims, the signature has \(n\)"),
        (change(charges=np.ones((2, 1, 3))), r"an item has 2 dims, the signature has \(n\)"),
        (change(charges=[[[1.0]], [[2.0]]]), r"'charges': an item has 2 dims, .* \(n\)"),
        (change(positions=[np.ones(2), np.ones(1)]), r"'positions': an item has 1 dim, .*\(n,3\)"),
        (
            change(positions=Ragged(np.ones(9), [[2, 3], [1, 3]])),
            r"'positions' is Ragged along 2 dims; the signature has \(n,3\), of which 1 ragged",
        ),
        (
            change(positions=[np.ones((2, 2)), np.ones((1, 2))]),
            r"'positions' has length 2 along axis 3 of \(n,3\); the signature wants 3",
        ),
        (
            change(charges=[np.ones(2), np.ones(1, np.float32)]),
            "column 'charges': Ragged.from_list: item 1 has dtype float32",
        ),
    ],
)
def test_bad_data_are_refused_by_name(data, message):
    with pytest.raises(DataError, match=f"^run: pull:? .*{message}"):
        bind("run", pull, data)


def test_a_single_ragged_item_is_never_taken_for_a_column():
    with pytest.raises(DataError, match="data is of type Ragged"):
        bind("run", single, Ragged(np.ones(3), [3]))


def test_integer_dims_are_enforced(xp):
    with pytest.raises(DataError, match=r"column 'x' has length 4 along axis 3 of \(3\)"):
        bind("run", fixed, {"x": xp.ones((2, 4))})
    assert bind("run", fixed, {"x": xp.ones((2, 3))}).items == 2


def test_items_of_two_frameworks_name_the_column_and_the_items(xp, framework):
    if framework == "numpy":
        pytest.skip("needs another framework beside NumPy")
    mixed = f"items 0 and 1 are of two frameworks: {framework} and numpy"
    with pytest.raises(FrameworkError, match=f"run: single: column 'x': Ragged.from_list: {mixed}"):
        bind("run", single, {"x": [xp.ones(2), np.ones(2)]})
    with pytest.raises(FrameworkError, match=f"run: fixed: column 'x': {mixed}"):
        bind("run", fixed, {"x": [xp.ones(3), np.ones(3)]})


def test_items_with_fixed_dims_keep_dtype_and_framework(xp):
    found = bind("run", fixed, {"x": [xp.ones(3, dtype=xp.float32)] * 2}).values[0]
    assert type(found) is type(xp.ones(1))
    assert found.dtype == xp.float32
    assert found.shape == (2, 3)
    with pytest.raises(DataError, match=r"item 1 has shape .3,. and dtype .*float64, item 0 has"):
        bind("run", fixed, {"x": [xp.ones(3, dtype=xp.float32), xp.ones(3, dtype=xp.float64)]})


def test_ragged_columns_of_a_view_are_bound_without_a_copy():
    pool = Ragged.from_list([[1.0, 2.0], [3.0]])
    columns = bind("run", single, {"x": pool[[1, 1, 0]]})
    assert columns.arrays[0] is pool.values
    assert columns.lengths["n"].tolist() == [1, 1, 2]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_empty_lists_take_the_framework_and_dtype_of_the_other_columns(xp, dtype):
    dtype = getattr(xp, dtype)
    none = {"positions": [], "charges": [], "volume": xp.zeros((0,), dtype=dtype)}
    hollow = {"positions": [[], []], "charges": [[], []], "volume": xp.ones((2,), dtype=dtype)}
    for data in (none, hollow):
        found = sp.run(pull, data)
        assert type(found) is type(data["volume"])
        assert found.dtype == dtype
        assert all(array.dtype == dtype for array in bind("test", pull, data).arrays)


def test_a_plain_function_is_told_to_be_declared():
    with pytest.raises(sp.SignatureError, match=r"run: .* is no kernel. Declare it"):
        sp.run(pull.function, {})
