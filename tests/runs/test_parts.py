"""A run in parts is the run: the same values, in the same order, bit for bit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.runs.columns import bind
from stowplan.runs.parts import joined, joined_iterations, part_of


class Found(NamedTuple):
    centred: object
    total: object
    pairs: object


@sp.kernel(
    "(n),(m,2),()->(n),(),(p)",
    ragged=("n", "m"),
    fill={"x": 0.0, "y": 0.0},
    out_sizes={"p": "n + m"},
)
def mixed(x, y, weight, *, scale):
    from array_api_compat import array_namespace

    xp = array_namespace(x)
    column = y[..., 0] * y[..., 1]
    total = scale * weight * (x.sum(axis=-1) + column.sum(axis=-1))
    return Found(x * weight[..., None], total, xp.concat([x, column], axis=-1) * 3.0)


@sp.kernel("(n)->(n)", ragged="n", fill={"x": 1.0})
def halved(x, *, age, state):
    return {"x": state["x"] / 2}


HALVING = {
    "init": lambda x: {"x": x},
    "until": lambda state, mask: (
        (abs(state["x"]) * mask["n"] < 1e-2).all(axis=-1),
        (state["x"] * mask["n"] > 1e3).any(axis=-1),
    ),
    "every": 2,
    "limit": 12,
    "keep": "x",
}


def data_of(lengths, seed, xp):
    rng = np.random.default_rng(seed)
    x = [xp.asarray(rng.normal(size=n)) for n, _ in lengths]
    y = [xp.asarray(rng.normal(size=(m, 2))) for _, m in lengths]
    weight = xp.asarray(rng.normal(size=len(lengths)))
    return {"x": sp.Ragged.from_list(x), "y": sp.Ragged.from_list(y), "weight": weight}


def arrays_of(result):
    for part in result if isinstance(result, tuple) else (result,):
        if isinstance(part, sp.Ragged):
            yield np.asarray(part.shapes)
            part = part.compact().values
        yield np.asarray(part)


def assert_equal(found, expected):
    assert type(found) is type(expected)
    for one, other in zip(arrays_of(found), arrays_of(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def random_parts(draw, batches, most):
    where = draw(st.lists(st.integers(0, most - 1), min_size=batches, max_size=batches))
    return [[number for number, part in enumerate(where) if part == k] for k in range(most)]


sizes = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=24)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@settings(max_examples=40)
@given(data=st.data(), lengths=sizes, seed=st.integers(0, 99), rows=st.integers(1, 5))
def test_parts_joined_are_bitwise_the_run(framework, load_framework, data, lengths, seed, rows):
    xp = load_framework(framework)
    columns = data_of(lengths, seed, xp)
    where = data.draw(st.sampled_from(["corner", "centre"]))
    plan = sp.plan(mixed, columns, slots=data.draw(st.integers(1, 3)), rows=rows, offsets=where)
    whole = sp.run(mixed, columns, plan, scale=2.0)
    bound = bind("run", mixed, columns)
    chosen = random_parts(data.draw, len(plan.batches), data.draw(st.integers(1, 4)))
    parts = [part_of(mixed, bound, plan, numbers) for numbers in chosen]
    found = joined([sp.run(mixed, one.data, one.plan, scale=2.0) for one in parts], parts)
    assert_equal(found, whole)


@settings(max_examples=25)
@given(data=st.data(), lengths=sizes, rows=st.integers(1, 5))
def test_an_iteration_in_parts_is_the_iteration(data, lengths, rows):
    columns = {"x": data_of(lengths, 0, np)["x"].map_values(lambda x: 20 * x)}
    plan = sp.plan(halved, columns, slots=2, rows=rows)
    whole = sp.iterate(halved, columns, plan, **HALVING)
    bound = bind("iterate", halved, columns)
    chosen = random_parts(data.draw, len(plan.batches), 3)
    parts = [part_of(halved, bound, plan, numbers) for numbers in chosen]
    each = [sp.iterate(halved, one.data, one.plan, **HALVING) for one in parts]
    found = joined_iterations(each, parts, plan)
    assert_equal(found.values["x"], whole.values["x"])
    for name in ("iterations", "converged", "failed"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert found.plan is plan


@settings(max_examples=25)
@given(data=st.data(), lengths=sizes, rows=st.integers(1, 5))
def test_a_part_keeps_shapes_rows_and_items_of_its_batches(data, lengths, rows):
    columns = bind("run", mixed, data_of(lengths, 0, np))
    plan = sp.plan(mixed, data_of(lengths, 0, np), rows=rows)
    numbers = data.draw(st.lists(st.sampled_from(range(len(plan.batches))), unique=True))
    part = part_of(mixed, columns, plan, numbers)
    assert len(part.plan.batches) == len(numbers)
    for number, own in zip(numbers, part.plan.batches, strict=True):
        whole = plan.batches[number]
        assert (own.count, own.capacity, own.slot) == (whole.count, whole.capacity, whole.slot)
        np.testing.assert_array_equal(part.items[own.items], whole.items)
    assert (np.diff(part.items) > 0).all()


def test_a_part_of_neighbouring_items_is_a_view():
    columns = {"x": sp.Ragged.from_list([np.ones(n) for n in (2, 2, 3, 3)])}

    @sp.kernel("(n)->()", ragged="n", fill={"x": 0.0})
    def total(x):
        return x.sum(axis=-1)

    plan = sp.plan(total, columns, slots="exact", rows=2)
    part = part_of(total, bind("run", total, columns), plan, [1])
    assert np.shares_memory(part.data["x"].values, columns["x"].values)
    assert part.items.tolist() == [2, 3]


def test_a_part_holds_shared_rows_once_and_no_others():
    pool = sp.Ragged.from_list([np.full(n, 1.0 * n) for n in (3, 4, 5)])

    @sp.kernel("(n)->()", ragged="n", fill={"x": 0.0})
    def total(x):
        return x.sum(axis=-1)

    columns = {"x": pool[[0, 2, 0, 2, 1]]}
    plan = sp.plan(total, columns, slots="exact", rows=1)
    bound = bind("run", total, columns)
    of_three = [n for n, batch in enumerate(plan.batches) if batch.capacity == (3,)]
    part = part_of(total, bound, plan, of_three)
    assert part.data["x"].values.shape == (3,)
    assert sp.run(total, part.data, part.plan).tolist() == [9.0, 9.0]


def test_joined_rows_stay_joined_in_parts():
    @sp.kernel(
        "(atoms),(molecules)->(molecules)", ragged=("atoms", "molecules"), segments="molecules",
        fill={"x": 0.0, "scale": 0.0},
    )  # fmt: skip
    def sums(x, scale, *, segments):
        from array_api_compat import array_namespace

        xp = array_namespace(x, scale)
        count = xp.arange(scale.shape[-1], dtype=segments["atoms"].dtype)
        inside = segments["atoms"][..., None, :] == count[:, None]
        return scale * xp.where(inside, x[..., None, :], xp.zeros_like(x[..., None, :])).sum(-1)

    lengths = [2, 5, 1, 4, 3, 2]
    data = {
        "x": [np.arange(n) + 1.0 for n in lengths],
        "scale": np.arange(6.0) + 1,
    }
    packing = sp.pack_rows({"atoms": lengths}, {"atoms": 6})
    rows = sp.join_rows(sums, data, packing)
    plan = sp.plan(sums, rows, rows=1)
    whole = sp.run(sums, rows, plan)
    bound = bind("run", sums, rows)
    parts = [part_of(sums, bound, plan, [n]) for n in reversed(range(len(plan.batches)))]
    assert len(parts) > 1
    found = joined([sp.run(sums, one.data, one.plan) for one in parts], parts)
    assert_equal(found, whole)


def test_parts_of_two_dtypes_join_as_the_wider():
    """Eigenvalues that NumPy gives as complex numbers in one part alone."""

    @sp.kernel("(3,3)->(3)")
    def eigenvalues(matrix):
        return np.linalg.eigvals(matrix)

    turned = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    matrices = np.stack([np.diag([1.0, 2, 3]), turned])
    plan = sp.plan(eigenvalues, [matrices], rows=1)
    bound = bind("run", eigenvalues, [matrices])
    parts = [part_of(eigenvalues, bound, plan, [n]) for n in (0, 1)]
    each = [sp.run(eigenvalues, one.data, one.plan) for one in parts]
    assert [part.dtype.kind for part in each] == ["f", "c"]
    assert_equal(joined(each, parts), sp.run(eigenvalues, [matrices], plan))


def test_gradients_pass_through_joined_parts(load_framework):
    load_framework("torch")
    import torch

    x = torch.arange(6.0, dtype=torch.float64, requires_grad=True)
    columns = {"x": sp.Ragged(x, [1, 3, 2])}

    @sp.kernel("(n)->(n)", ragged="n", fill={"x": 0.0})
    def squares(x):
        return x * x

    plan = sp.plan(squares, columns, rows=1, slots="exact")
    bound = bind("run", squares, columns)
    parts = [part_of(squares, bound, plan, [n]) for n in (2, 0, 1)]
    found = joined([sp.run(squares, one.data, one.plan) for one in parts], parts)
    found.values.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * np.arange(6.0))
