"""Kernels that keep several items of a row apart, on data that have one item in each row."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp
from stowplan.kernels.ewald import real_energy
from stowplan.runs.columns import bind, check_indices
from stowplan.runs.segments import JoinedRows
from stowplan.special import segment_sum

SIZES = [3, 0, 1, 4]
VALUES = np.random.default_rng(0).normal(size=sum(SIZES))
WEIGHTS = np.array([2.0, -1.0, 0.5, 3.0])
ITEMS = np.split(VALUES, np.cumsum(SIZES)[:-1])


@sp.kernel("(n),(items)->(items),(n)", ragged=("n", "items"), segments="items")
def weighted(x, weight, *, mask, segments):
    """Sums per item and parts, each with the weight of its item."""
    xp = array_namespace(x, weight)
    ids = segments["n"]
    real = ids >= 0
    factor = xp.take_along_axis(weight, xp.where(real, ids, xp.zeros_like(ids)), axis=-1)
    parts = xp.where(real, x * factor, xp.zeros_like(x))
    return segment_sum(parts, ids, mask["items"].shape[-1]), parts


@sp.kernel("(n)->(items)", ragged=("n", "items"), segments="items", per_item=True)
def totals(x, *, mask, segments):
    """Sees one row at a time."""
    assert x.ndim == 1
    return segment_sum(x, segments["n"], mask["items"].shape[0])


def test_an_argument_per_item_is_an_array_and_an_output_a_ragged_of_one_each(put, host):
    data = put({"x": sp.Ragged(VALUES, SIZES), "weight": WEIGHTS})
    for options in ({}, {"slots": 1}, {"slots": [{"n": 6, "items": 3}], "rows": 3}):
        plan = sp.plan(weighted, data, **options)
        total, parts = sp.run(weighted, data, plan)
        assert total.shapes[:, 0].tolist() == [1] * 4
        expected = [[w * x.sum()] for w, x in zip(WEIGHTS, ITEMS, strict=True)]
        np.testing.assert_allclose(np.array(host(total)), expected, rtol=1e-14, atol=1e-15)
        for found, w, x in zip(host(parts), WEIGHTS, ITEMS, strict=True):
            np.testing.assert_allclose(found, w * x, rtol=1e-14)


@pytest.mark.parametrize("weight", [WEIGHTS.tolist(), sp.Ragged(WEIGHTS, [1, 1, 1, 1])])
def test_an_argument_per_item_may_be_a_list_or_a_ragged_of_one_each(weight):
    total, _ = sp.run(weighted, {"x": sp.Ragged(VALUES, SIZES), "weight": weight})
    np.testing.assert_allclose(
        total.values, [w * x.sum() for w, x in zip(WEIGHTS, ITEMS, strict=True)]
    )


def test_rows_of_several_items_need_to_be_joined():
    data = {"x": sp.Ragged(VALUES, [3, 5]), "weight": sp.Ragged(WEIGHTS, [1, 3])}
    with pytest.raises(sp.DataError, match=r"row 1 has items=3 in its columns, but holds 1 item\."):
        sp.run(weighted, data)


def test_by_hand_and_by_run_are_the_same(put, host, xp):
    total, parts = weighted(xp.asarray(ITEMS[3]), xp.asarray(WEIGHTS[3:]))
    data = put({"x": sp.Ragged(VALUES, SIZES), "weight": WEIGHTS})
    found = sp.run(weighted, data)
    np.testing.assert_allclose(host(total), host(found[0])[3], rtol=1e-14)
    np.testing.assert_allclose(host(parts), host(found[1])[3], rtol=1e-14)


def test_a_per_item_kernel_receives_the_segments_of_its_row(put, host):
    data = {"x": put(sp.Ragged(VALUES, SIZES))}
    plan = sp.plan(totals, data, slots=[{"n": 5, "items": 2}], rows=2)
    expected = [[x.sum()] for x in ITEMS]
    np.testing.assert_allclose(np.array(host(sp.run(totals, data, plan))), expected, atol=1e-15)


def joined(put):
    """The items of ``weighted`` in two rows: 0 and 1, then 2 and 3."""
    ids = sp.Ragged(np.array([0, 0, 0, 0, 1, 1, 1, 1]), [3, 5])
    columns = {"x": sp.Ragged(VALUES, [3, 5]), "weight": sp.Ragged(WEIGHTS, [2, 2])}
    return JoinedRows(put(columns), np.array([2, 2]), {"n": ids})


def test_rows_of_several_items_keep_them_apart(put, host):
    data = joined(put)
    plan = sp.plan(weighted, data, slots=[{"n": 7, "items": 4}], rows=3)
    total, parts = sp.run(weighted, data, plan)
    assert total.shapes[:, 0].tolist() == [2, 2]
    expected = [w * x.sum() for w, x in zip(WEIGHTS, ITEMS, strict=True)]
    np.testing.assert_allclose(np.concatenate(host(total)), expected, rtol=1e-14)
    np.testing.assert_allclose(np.concatenate(host(parts)), np.repeat(WEIGHTS, SIZES) * VALUES)


def test_verify_takes_rows_of_several_items(put):
    assert sp.verify(weighted, joined(put)).passed
    assert sp.verify(weighted, put({"x": sp.Ragged(VALUES, SIZES), "weight": WEIGHTS})).passed


def test_verify_finds_a_kernel_that_trusts_the_padding_of_segments():
    @sp.kernel("(n)->(items)", ragged=("n", "items"), segments="items")
    def careless(x, *, mask, segments):
        ids = np.where(segments["n"] < 0, 0, segments["n"])
        return segment_sum(x + 1, ids, mask["items"].shape[-1])

    assert not sp.verify(careless, {"x": sp.Ragged(VALUES, SIZES)}).passed


def test_rows_of_several_items_are_refused_by_a_kernel_that_would_mix_them(kernels):
    data = JoinedRows({"x": sp.Ragged(VALUES, [3, 5])}, np.array([2, 2]), {})
    with pytest.raises(sp.DataError, match=r"total declares no segments=.*would mix them"):
        sp.run(kernels.total, data, scale=1.0)
    with pytest.raises(sp.DataError, match=r"joined along , not 'n'\. Join the items for this"):
        sp.run(totals, data)
    data = JoinedRows(data.columns, data.counts, {"n": sp.Ragged(np.zeros(8, int), [4, 4])})
    with pytest.raises(sp.DataError, match=r"other lengths along 'n' than were joined"):
        sp.run(totals, data)


def test_no_items_give_empty_results_over_items(put, xp):
    data = put({"x": sp.Ragged(np.empty(0), []), "weight": np.empty(0)})
    total, parts = sp.run(weighted, data)
    assert len(total) == len(parts) == 0
    assert total.dtype == xp.float64


def test_segments_pass_through_a_trace():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)

    def energy(values, weight):
        total, _ = sp.run(weighted, {"x": sp.Ragged(values, SIZES), "weight": weight})
        return (total.values**2).sum()

    sums = np.array([x.sum() for x in ITEMS])
    expected = 2 * np.repeat(WEIGHTS**2 * sums, SIZES)
    values, weights = jax.numpy.asarray(VALUES), jax.numpy.asarray(WEIGHTS)
    for gradient in (jax.grad(energy), jax.jit(jax.grad(energy))):
        np.testing.assert_allclose(gradient(values, weights), expected, rtol=1e-13)


def test_torch_compiles_one_graph_for_each_number_of_items(monkeypatch):
    torch = pytest.importorskip("torch")
    graphs = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: graphs.append(function) or function)

    @sp.kernel("(n)->(items)", ragged=("n", "items"), segments="items")
    def native(x, *, mask, segments):
        ids = torch.where(segments["n"] < 0, 0, segments["n"])
        zeros = torch.zeros(mask["items"].shape, dtype=x.dtype)
        return zeros.scatter_add(-1, ids, x * mask["n"])

    data = {"x": sp.Ragged(torch.asarray(VALUES), SIZES)}
    for items in (1, 2):  # the padded argument has the same shape
        plan = sp.plan(native, data, slots=[{"n": 4, "items": items}], rows=4)
        found = sp.run(native, data, plan, compile=True)
        np.testing.assert_allclose(found.values, [x.sum() for x in ITEMS], atol=1e-15)
        sp.run(native, data, plan, compile=True)
        assert len(graphs) == items


def neighbour_columns(neighbours, sizes):
    """Columns of ``real_energy`` with a table of given width."""
    count = sum(sizes)
    shapes = [(size, 2) for size in sizes]
    return {
        "neighbours": sp.Ragged(np.asarray(neighbours).reshape(2 * count), shapes),
        "shifts": sp.Ragged(np.zeros((2 * count, 3)), shapes),
        "positions": sp.Ragged(np.random.default_rng(1).normal(size=(count, 3)), sizes),
        "charges": sp.Ragged(np.ones(count), sizes),
        "cell": np.tile(np.eye(3), (len(sizes), 1, 1)),
        "smearing": np.ones(len(sizes)),
        "periodic": np.zeros((len(sizes), 3), bool),
    }


GOOD = [[1, -1], [0, 2], [1, -1], [-1, -1], [1, -1], [0, -1]]


@pytest.mark.parametrize(
    "call",
    [
        lambda data, columns: sp.run(real_energy, data),
        lambda data, columns: check_indices("pack", real_energy, columns),
    ],
)
@pytest.mark.parametrize(("wrong", "bad"), [(3, "an index 3"), (-2, "an index -2")])
def test_an_index_outside_its_item_is_refused(put, call, wrong, bad):
    table = [list(row) for row in GOOD]
    table[1][0] = table[4][1] = wrong
    data = put(neighbour_columns(table, [3, 0, 1, 2]))
    message = (
        rf"column 'neighbours': 2 indices along 'atoms' point outside .* Item 0 has atoms=3 and "
        rf"{bad}; allowed are 0 to 2 and -1 for none. Count the atoms of every item from 0."
    )
    columns = bind("pack", real_energy, data)
    with pytest.raises(sp.DataError, match=message):
        call(data, columns)


def test_an_index_of_a_larger_item_is_refused_in_a_smaller_one(put):
    table = [list(row) for row in GOOD]
    table[4][0] = 2  # real in item 0, not in item 3
    with pytest.raises(sp.DataError, match=r"1 indices .* Item 3 has atoms=2 and an index 2"):
        sp.run(real_energy, put(neighbour_columns(table, [3, 0, 1, 2])))


def test_indices_inside_their_items_pass(put):
    for sizes in ([3, 0, 1, 2], [3, 1, 2]):
        check_indices("x", real_energy, bind("x", real_energy, put(neighbour_columns(GOOD, sizes))))
    pool = neighbour_columns(GOOD, [3, 1, 2])
    view = {name: column[[2, 0, 2]] for name, column in pool.items()}
    check_indices("x", real_energy, bind("x", real_energy, put(view)))
    nothing = bind("x", real_energy, put(neighbour_columns(np.empty((0, 2), int), [0, 0])))
    check_indices("x", real_energy, nothing)


def test_any_negative_fill_means_none(put):
    @sp.kernel("(n),(2)->()", ragged="n", fill={"ends": -7}, index={"ends": "n"})
    def bond(x, ends):
        return array_namespace(x).sum(x, axis=-1)

    def check(ends, sizes=SIZES):
        data = put({"x": sp.Ragged(np.ones(sum(sizes)), sizes), "ends": np.array(ends)})
        check_indices("x", bond, bind("x", bond, data))

    check([[0, 2], [-7, -7], [0, -7], [3, 0]])
    with pytest.raises(sp.DataError, match=r"1 indices .* Item 0 has n=3 and an index -1"):
        check([[0, -1], [0, 0]], [3, 1])
    with pytest.raises(sp.DataError, match=r"Item 1 has n=0 and an index -1; allowed is only -7 "):
        check([[0, 2], [-7, -1], [0, -7], [3, 0]])
    with pytest.raises(sp.DataError, match=r"holds indices along 'n', but has dtype float64"):
        check([[0.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])


def test_indices_under_a_trace_are_not_read():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    data = {
        name: column.map_values(jax.numpy.asarray)
        if isinstance(column, sp.Ragged)
        else jax.numpy.asarray(column)
        for name, column in neighbour_columns(GOOD, [3, 1, 2]).items()
    }

    def run(values):
        table = data["neighbours"].map_values(lambda _: values)
        return sp.run(real_energy, {**data, "neighbours": table})

    def check(values):
        table = data["neighbours"].map_values(lambda _: values)
        check_indices("x", real_energy, bind("x", real_energy, {**data, "neighbours": table}))
        return values

    wrong = jax.numpy.asarray(data["neighbours"].values).at[0].set(99)
    with pytest.raises(sp.DataError, match="point outside"):
        run(wrong)
    assert jax.jit(run)(wrong).shape == (3,)
    assert jax.jit(check)(wrong).shape == wrong.shape
