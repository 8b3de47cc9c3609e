"""Laws of ``sp.run`` that hold on every framework."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace, is_array_api_obj
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp

SIZES = [3, 0, 5, 1, 4, 3, 2]


def assert_items(found, expected, rtol=1e-12):
    assert len(found) == len(expected)
    for item, (a, b) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol, err_msg=f"item {item}")
        assert a.shape == b.shape


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_equal_the_loop_in_order_framework_and_dtype(
    kernels, put, host, framework, xp, dtype
):
    data = kernels.make_atoms(SIZES, dtype)
    energy, forces = sp.run(kernels.pull, put(data), scale=1.5)
    wanted_energy, wanted_forces = kernels.loop_pull(data, 1.5)
    rtol = 1e-12 if dtype == "float64" else 1e-5
    for result in (energy, forces.values):
        assert array_namespace(result) is array_namespace(xp.asarray(1.0))
        assert result.dtype == getattr(xp, dtype)
    assert isinstance(forces, sp.Ragged)
    assert forces.shapes[:, 0].tolist() == SIZES
    np.testing.assert_allclose(host(energy), wanted_energy, rtol=rtol, atol=rtol)
    assert_items(host(forces), wanted_forces, rtol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_data_come_back_as_numpy_whatever_computes_them(kernels, framework, dtype):
    data = kernels.make_atoms(SIZES, dtype)
    energy, forces = sp.run(kernels.pull, data, on=framework, scale=1.5)
    assert type(energy) is np.ndarray
    assert type(forces.values) is np.ndarray
    assert energy.dtype == forces.values.dtype == dtype
    wanted_energy, wanted_forces = kernels.loop_pull(data, 1.5)
    rtol = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(energy, wanted_energy, rtol=rtol, atol=rtol)
    assert_items(forces.to_list(), wanted_forces, rtol)


def test_data_of_a_framework_come_back_to_it_from_numpy(kernels, put, host, xp):
    data = kernels.make_atoms(SIZES)
    energy, forces = sp.run(kernels.pull, put(data), on="numpy", scale=xp.asarray(1.5))
    assert array_namespace(energy, forces.values) is array_namespace(xp.asarray(1.0))
    np.testing.assert_allclose(
        host(energy), kernels.loop_pull(data, 1.5)[0], rtol=1e-12, atol=1e-12
    )


def test_lists_are_read_as_numpy(kernels, framework):
    result = sp.run(kernels.total, {"x": [[1.0, 2.0], [], [5.0]]}, on=framework, scale=2)
    assert type(result) is np.ndarray
    assert result.tolist() == [6.0, 0.0, 10.0]


def test_views_of_a_pool_are_columns(kernels, put, host):
    data = kernels.make_atoms(SIZES)
    chosen = [2, 2, 0, 1, 6]
    view = {
        "positions": put(data["positions"])[chosen],
        "charges": put(data["charges"])[chosen],
        "matrix": put(data["matrix"][chosen]),
    }
    energy, forces = sp.run(kernels.pull, view, scale=1.5)
    wanted_energy, wanted_forces = kernels.loop_pull(data, 1.5)
    np.testing.assert_allclose(host(energy), wanted_energy[chosen], rtol=1e-12, atol=1e-12)
    assert_items(host(forces), [wanted_forces[item] for item in chosen])


def test_a_view_beside_a_packed_column_of_the_same_sizes(kernels, put, host):
    rng = np.random.default_rng(3)
    pool = sp.Ragged(rng.normal(size=9), [4, 5])
    images = [rng.normal(size=(2, n)) for n in (5, 4, 5)]
    data = {"image": put(sp.Ragged.from_list(images, 2)), "weights": put(pool)[[1, 0, 1]]}
    weighted, _, _ = sp.run(kernels.weigh, data, rows=2)
    assert_items(host(weighted), [i * pool[j] for i, j in zip(images, (1, 0, 1), strict=True)])


@pytest.mark.parametrize("slots", [1, 2, "exact", None])
def test_two_ragged_dims(kernels, put, host, slots):
    rng = np.random.default_rng(1)
    shapes = [(2, 3), (1, 4), (0, 2), (3, 1), (2, 0), (2, 3)]
    images = [rng.normal(size=shape) for shape in shapes]
    weights = [rng.normal(size=shape[1]) for shape in shapes]
    data = {"image": sp.Ragged.from_list(images, 2), "weights": sp.Ragged.from_list(weights)}
    data = put(data)
    weighted, columns, mean = sp.run(kernels.weigh, data, sp.plan(kernels.weigh, data, slots=slots))
    expected = [
        np.array([[image[y, x] * w[x] for x in range(len(w))] for y in range(len(image))])
        for image, w in zip(images, weights, strict=True)
    ]
    expected = [e.reshape(s) for e, s in zip(expected, shapes, strict=True)]
    assert_items(host(weighted), expected)
    assert_items(host(columns), [e.sum(0) for e in expected])
    np.testing.assert_allclose(
        host(mean), [e.mean() if e.size else 0 for e in expected], rtol=1e-12
    )


def test_no_ragged_dim(kernels, put, host):
    rng = np.random.default_rng(1)
    vectors, factors = rng.normal(size=(5, 3)), rng.normal(size=5)
    expected = [f * sum(c**2 for c in v) for v, f in zip(vectors, factors, strict=True)]
    data = put({"vector": vectors, "factor": factors})
    for plan in (
        None,
        sp.plan(kernels.length, data, rows=2),
        sp.plan(kernels.length, data, slots="exact"),
    ):
        np.testing.assert_allclose(host(sp.run(kernels.length, data, plan)), expected, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "wanted"), [("float32", "complex64"), ("float64", "complex128")])
def test_complex_outputs(kernels, put, host, xp, dtype, wanted):
    angles = np.linspace(-3, 3, 9).astype(dtype)
    turned, total = sp.run(kernels.phase, {"angle": put(sp.Ragged(angles, [4, 0, 5]))}, rows=2)
    assert turned.values.dtype == total.dtype == getattr(xp, wanted)
    rtol = 1e-6 if dtype == "float32" else 1e-14
    expected = np.cos(angles) + 1j * np.sin(angles)
    assert_items(host(turned), np.split(expected, [4, 4]), rtol)
    np.testing.assert_allclose(
        host(total), [sum(expected[:4]), 0, sum(expected[4:])], atol=10 * rtol
    )


def test_a_complex_shared_number_is_not_cut(put, host):
    @sp.kernel("(n)->(n)", ragged="n")
    def turn(x, *, by):
        return x * by

    result = sp.run(turn, {"x": put(sp.Ragged(np.array([1.0, 2.0]), [1, 1]))}, by=2j)
    assert [part.tolist() for part in host(result)] == [[2j], [4j]]


def test_index_columns_keep_their_integers_and_fill(kernels, put, host):
    charges = sp.Ragged(np.array([1.0, 2.0, 4.0, 8.0, 16.0]), [2, 3])
    tables = sp.Ragged(np.array([[1, -1], [0, 0], [1, 2], [0, -1], [-1, -1]]), [2, 3])
    expected = [
        [sum(charges[item][j] for j in row if j >= 0) for row in tables[item]] for item in range(2)
    ]
    data = put({"charges": charges, "neighbours": tables})
    for plan in (None, sp.plan(kernels.near, data, slots=[{"atoms": 7}], rows=2)):
        assert [part.tolist() for part in host(sp.run(kernels.near, data, plan))] == expected


def test_integer_results_stay_integers(put, host, xp):
    @sp.kernel("(n)->(n),()", ragged="n")
    def count(x):
        return x + 1, array_namespace(x).sum(x, axis=-1, dtype=x.dtype)

    data = {"x": put(sp.Ragged(np.arange(6, dtype=np.int32), [1, 5]))}
    plus, total = sp.run(count, data)
    assert plus.values.dtype == total.dtype == xp.int32
    assert host(total).tolist() == [0, 15]


def test_output_dims_of_their_own(kernels, put, host):
    items = [np.array([1.0, 2.0]), np.array([3.0]), np.empty(0), np.array([1.0, 1.0, 1.0])]
    data = {"x": put(sp.Ragged.from_list(items))}
    for plan in (
        sp.plan(kernels.spread, data, slots=1),
        sp.plan(kernels.spread, data, slots="exact"),
    ):
        total, twice, longer = sp.run(kernels.spread, data, plan)
        np.testing.assert_allclose(
            host(total), [[k * x.sum() for k in (1, 2, 3, 4)] for x in items]
        )
        assert_items(host(twice), [np.array([f * v for v in x for f in (1, 2)]) for x in items])
        wanted = [np.concatenate([x, np.zeros(max(2 - len(x), 0))]) for x in items]
        assert_items(host(longer), wanted)


def test_an_output_dim_may_depend_on_a_dim_that_is_not_ragged(put, host):
    @sp.kernel("(n,c)->(n,d)", ragged="n", out_sizes={"d": "2 * c"})
    def double(x):
        xp = array_namespace(x)
        return xp.concat([x, x], axis=-1)

    x = np.arange(6.0).reshape(3, 2)
    result = sp.run(double, {"x": put(sp.Ragged(x, [1, 2]))})
    assert_items(host(result), [np.hstack([x, x])[:1], np.hstack([x, x])[1:]])


def test_an_output_that_shrinks_where_its_input_grows_is_refused():
    @sp.kernel("(n)->(p)", ragged="n", out_sizes={"p": lambda n: 5 - n})
    def left(x):
        return np.zeros((len(x), 5 - x.shape[-1]))

    data = {"x": [[1.0], [1.0, 2.0]]}
    plan = sp.plan(left, data, slots=1)
    with pytest.raises(sp.DataError, match=r"item 0 an output of \[4\]"):
        sp.run(left, data, plan)


@pytest.mark.parametrize("slots", [None, 3, "exact", [{}], [{"n": 2}, {}]])
def test_exact_dims_are_never_padded(kernels, put, host, slots):
    rng = np.random.default_rng(5)
    items = [rng.normal(size=n) for n in (4, 2, 3, 2, 4)]
    data = {"x": put(sp.Ragged.from_list(items))}
    result = host(sp.run(kernels.spectrum, data, sp.plan(kernels.spectrum, data, slots=slots)))
    waves = [np.exp(-2j * np.pi * np.outer(range(len(x)), range(len(x))) / len(x)) for x in items]
    assert_items(result, [w @ x for w, x in zip(waves, items, strict=True)], 1e-13)


def test_a_per_item_kernel_sees_one_item_at_a_time(kernels, put, host):
    items = [[1.0, 2.0, 3.0], [], [5.0], [1.0, 1.0]]
    data = {"x": put(sp.Ragged.from_list(items))}
    result = sp.run(kernels.ramp, data, sp.plan(kernels.ramp, data, slots=1, rows=3), scale=2)
    assert host(result).tolist() == [2.0 * sum(i * v for i, v in enumerate(x)) for x in items]


def test_a_per_item_kernel_may_take_a_mask_and_give_a_tuple(put, host):
    @sp.kernel("(n)->(),(n)", ragged="n", per_item=True)
    def mean(x, *, mask):
        xp = array_namespace(x)
        assert x.ndim == 1
        inside = xp.astype(mask["n"], x.dtype)
        return xp.sum(x * inside) / xp.sum(inside), x + 1

    data = {"x": put(sp.Ragged.from_list([[1.0, 2.0], [5.0]]))}
    average, plus = sp.run(mean, data, sp.plan(mean, data, slots=[{"n": 4}], rows=2))
    assert host(average).tolist() == [1.5, 5.0]
    assert_items(host(plus), [np.array([2.0, 3.0]), np.array([6.0])])


def test_a_named_tuple_is_kept_and_a_single_output_is_bare(kernels, put, host):
    data = {"x": put(sp.Ragged.from_list([[1.0, 2.0], [5.0]]))}
    result = sp.run(kernels.moments, data)
    assert type(result) is kernels.Moments
    assert host(result.total).tolist() == [3.0, 5.0]
    assert host(result.squares).tolist() == [5.0, 25.0]
    assert is_array_api_obj(sp.run(kernels.total, data, scale=1.0))


def test_a_limit_on_a_derived_size_decides_what_enters(put, host):
    @sp.kernel("(a),(b)->()", ragged=("a", "b"), derived={"pairs": "a * b"}, work="pairs")
    def pairs(x, y):
        xp = array_namespace(x, y)
        return xp.sum(x, axis=-1) * xp.sum(y, axis=-1)

    x, y = [[1.0, 2.0], [3.0], [1.0]], [[1.0], [2.0], [1.0, 1.0, 4.0]]
    data = put({"x": sp.Ragged.from_list(x), "y": sp.Ragged.from_list(y)})
    plan = sp.plan(pairs, data, slots=[{"pairs": 2}, {"pairs": 3}])
    assert [batch.items.tolist() for batch in plan.batches] == [[0, 1], [2]]
    assert host(sp.run(pairs, data, plan)).tolist() == [3.0, 6.0, 6.0]


def test_no_items_give_empty_results_of_the_right_shape_and_dtype(kernels, put, xp):
    energy, forces = sp.run(kernels.pull, put(kernels.make_atoms([], "float32")), scale=1.0)
    assert tuple(energy.shape) == (0,)
    assert tuple(forces.values.shape) == (0, 3)
    assert forces.shapes.shape == (0, 1)
    assert energy.dtype == forces.values.dtype == xp.float32
    turned, total = sp.run(kernels.phase, {"angle": put(sp.Ragged(np.empty(0), []))})
    assert turned.dtype == total.dtype == xp.complex128
    image = {
        "image": sp.Ragged(np.empty(0), np.empty((0, 2), int)),
        "weights": sp.Ragged(np.empty(0), []),
    }
    weighted, columns, mean = sp.run(kernels.weigh, put(image))
    assert weighted.shapes.shape == (0, 2)
    assert columns.shapes.shape == (0, 1)
    assert tuple(mean.shape) == (0,)
    table = {
        "charges": sp.Ragged(np.empty(0), []),
        "neighbours": sp.Ragged(np.empty((0, 2), int), []),
    }
    assert sp.run(kernels.near, put(table)).dtype == xp.float64
    assert tuple(sp.run(kernels.spread, {"x": put(sp.Ragged(np.empty(0), []))})[0].shape) == (0, 4)
    empty = put({"vector": np.empty((0, 3)), "factor": np.empty(0)})
    assert tuple(sp.run(kernels.length, empty).shape) == (0,)


def test_an_empty_list_gives_an_empty_result(kernels, framework):
    result = sp.run(kernels.total, {"x": []}, on=framework, scale=1.0)
    assert type(result) is np.ndarray
    assert result.shape == (0,)


def test_items_of_size_zero_alone(kernels, put, host):
    energy, forces = sp.run(kernels.pull, put(kernels.make_atoms([0, 0])), scale=1.0)
    assert host(energy).tolist() == [0.0, 0.0]
    assert [part.shape for part in host(forces)] == [(0, 3), (0, 3)]


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
@pytest.mark.parametrize("slots", [1, "exact", [{"atoms": 9}], [{"atoms": 3}, {"atoms": 6}]])
def test_results_do_not_depend_on_slots_or_rows(kernels, put, host, slots, rows):
    data = kernels.make_atoms(SIZES)
    given = put(data)
    plan = sp.plan(kernels.pull, given, slots=slots, rows=rows)
    energy, forces = sp.run(kernels.pull, given, plan, scale=0.5)
    assert forces.values.shape[0] == sum(SIZES)
    wanted_energy, wanted_forces = kernels.loop_pull(data, 0.5)
    np.testing.assert_allclose(host(energy), wanted_energy, rtol=1e-12, atol=1e-12)
    assert_items(host(forces), wanted_forces)


sizes = st.lists(st.integers(0, 6), min_size=1, max_size=9)


@settings(max_examples=60)
@given(
    sizes=sizes,
    capacity=st.integers(6, 9),
    rows=st.integers(1, 10),
    cut=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_results_do_not_depend_on_slots_rows_order_or_company(
    kernels, sizes, capacity, rows, cut, seed
):
    data = kernels.make_atoms(sizes, seed=seed)
    order = np.random.default_rng(seed).permutation(len(sizes))
    slots = [{"atoms": cut}, {"atoms": capacity}]
    plan = sp.plan(kernels.pull, data, slots=slots, rows=rows)
    energy, forces = sp.run(kernels.pull, data, plan, scale=0.5)
    wanted_energy, wanted_forces = kernels.loop_pull(data, 0.5)
    np.testing.assert_allclose(energy, wanted_energy, rtol=1e-11, atol=1e-11)
    assert_items(forces.to_list(), wanted_forces, 1e-11)
    other = {name: column[order] for name, column in data.items()}
    moved, pulled = sp.run(
        kernels.pull, other, sp.plan(kernels.pull, other, slots=plan.slots), scale=0.5
    )
    np.testing.assert_allclose(moved, energy[order], rtol=1e-11, atol=1e-11)
    assert_items(pulled.to_list(), [forces[item] for item in order], 1e-11)


def test_exact_slots_with_one_row_are_the_sequential_loop(framework, put, host):
    seen = []

    @sp.kernel("(n)->()", ragged="n")
    def watch(x):
        seen.append(tuple(x.shape))
        return array_namespace(x).sum(x, axis=-1)

    data = {"x": put(sp.Ragged(np.arange(7.0), [3, 1, 2, 1]))}
    plan = sp.plan(watch, data, slots="exact", rows=1)
    assert sorted(int(batch.items[0]) for batch in plan.batches) == [0, 1, 2, 3]
    assert plan.occupancy() == 1.0
    assert host(sp.run(watch, data, plan)).tolist() == [3.0, 3.0, 9.0, 6.0]
    if framework != "jax":  # which sees a shape once, without the row
        assert sorted(seen) == [(1, 1), (1, 1), (1, 2), (1, 3)]


def test_a_plan_serves_many_runs_and_both_kernels_of_its_dims(kernels, put, host):
    data = {"x": put(sp.Ragged.from_list([[1.0, 2.0], [5.0]]))}
    plan = sp.plan(kernels.total, data)
    for scale in (1.0, 2.0):
        assert host(sp.run(kernels.total, data, plan, scale=scale)).tolist() == [
            3 * scale,
            5 * scale,
        ]
    assert host(sp.run(kernels.moments, data, plan).squares).tolist() == [5.0, 25.0]
    other = {"x": put(sp.Ragged.from_list([[7.0, 2.0], [1.0]]))}
    assert host(sp.run(kernels.total, other, plan, scale=1.0)).tolist() == [9.0, 1.0]


def test_fixed_dims_of_other_length_may_reuse_a_plan(put, host):
    @sp.kernel("(n,c)->(d)", ragged="n", out_sizes={"d": "c + 1"})
    def widen(x):
        xp = array_namespace(x)
        total = xp.sum(x, axis=-2)
        return xp.concat([total, total[..., :1]], axis=-1)

    plan = sp.plan(widen, {"x": put(sp.Ragged(np.ones((3, 2)), [1, 2]))})
    for width in (2, 4):
        result = sp.run(widen, {"x": put(sp.Ragged(np.ones((3, width)), [1, 2]))}, plan)
        assert host(result).tolist() == [[1.0] * (width + 1), [2.0] * (width + 1)]


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2), np.float32(2), np.asarray(2.0), "own"])
def test_a_shared_number_takes_the_dtype_of_the_data(kernels, put, host, xp, number):
    if isinstance(number, str):
        number = xp.asarray(2.0, dtype=xp.float64)
    data = {"x": put(sp.Ragged(np.ones(3, np.float32), [1, 2]))}
    result = sp.run(kernels.total, data, scale=number)
    assert result.dtype == xp.float32
    assert host(result).tolist() == [2.0, 4.0]


def test_shared_values_may_be_arrays_flags_none_and_nested(put, host, xp):
    @sp.kernel("(n)->()", ragged="n")
    def combine(x, *, table, flag, nothing, pair):
        xp = array_namespace(x)
        assert nothing is None
        first, rest = pair
        scaled = xp.sum(x, axis=-1) * xp.sum(table) * first * rest["b"]
        return xp.where(flag, scaled, xp.zeros_like(scaled))

    data = {"x": put(sp.Ragged(np.ones(3), [1, 2]))}
    shared = {"table": xp.asarray([1.0, 2.0]), "nothing": None, "pair": (2.0, {"b": 5})}
    for flag, expected in ((True, [30.0, 60.0]), (np.bool_(False), [0.0, 0.0])):
        assert host(sp.run(combine, data, flag=flag, **shared)).tolist() == expected


def test_shared_numbers_go_with_integer_data(put, host):
    @sp.kernel("(n)->()", ragged="n")
    def shift(x, *, by):
        xp = array_namespace(x)
        return xp.sum(xp.astype(x, xp.float64), axis=-1) + by

    data = {"x": put(sp.Ragged(np.arange(3), [1, 2]))}
    assert host(sp.run(shift, data, by=0.5)).tolist() == [0.5, 3.5]


def test_static_values_of_equal_hash_are_told_apart(put, host):
    @sp.kernel("(n)->()", ragged="n", static="kind")
    def kinds(x, *, kind):
        return array_namespace(x).sum(x, axis=-1) * {int: 1.0, float: 2.0, bool: 3.0}[type(kind)]

    data = {"x": put(sp.Ragged(np.ones(1), [1]))}
    for kind, expected in ((1, 1.0), (1.0, 2.0), (True, 3.0)):
        assert host(sp.run(kinds, data, kind=kind)).tolist() == [expected]


def test_flags_are_data_too(put, host):
    @sp.kernel("(n)->(n)", ragged="n")
    def invert(x):
        return ~x

    result = sp.run(invert, {"x": put(sp.Ragged(np.array([True, False, True]), [1, 2]))})
    assert [part.tolist() for part in host(result)] == [[False], [True, False]]


def test_progress_shows_every_batch_and_changes_nothing(kernels, put, host, capsys):
    data = {"x": put(sp.Ragged.from_list([[1.0, 2.0], [5.0]]))}
    plan = sp.plan(kernels.total, data, rows=1)
    assert host(sp.run(kernels.total, data, plan, progress=True, scale=1.0)).tolist() == [3.0, 5.0]
    assert "2/2" in capsys.readouterr().err


def test_the_data_are_not_changed(kernels):
    data = kernels.make_atoms(SIZES)
    before = [np.copy(getattr(column, "values", column)) for column in data.values()]
    energy, forces = sp.run(kernels.pull, data, scale=1.0)
    energy[:] = forces.values[:] = 7
    for column, old in zip(data.values(), before, strict=True):
        assert np.array_equal(getattr(column, "values", column), old)
