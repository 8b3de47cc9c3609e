"""Laws of ``sp.iterate``: items do not feel each other, and no row works for nobody."""

from __future__ import annotations

import logging
import math
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.adapters import get_adapter

SIZES = [3, 0, 5, 1, 4, 3, 2]
EXACT = pytest.mark.parametrize("framework", ["numpy", "torch"])


@sp.kernel("(n),()->(n),()", ragged="n")
def settle(goal, rate, *, age, state, mask, scale):
    """Every value goes towards its goal, the slower the older; what is left is the maximum."""
    xp = array_namespace(goal)
    pace = rate / (1.0 + 0.01 * xp.astype(age, rate.dtype))
    value = state["value"] + pace[..., None] * (goal * scale - state["value"])
    apart = xp.abs(goal * scale - value)
    apart = xp.where(mask["n"], apart, xp.zeros_like(apart))
    return {"value": value, "left": xp.max(apart, axis=-1), "moves": state["moves"] + 1}


def begin(goal):
    xp = array_namespace(goal)
    rows, device = goal[..., 0], getattr(goal, "device", None)
    moves = xp.zeros(tuple(rows.shape), dtype=xp.int64, device=device)
    return {"value": xp.zeros_like(goal), "left": xp.full_like(rows, math.inf), "moves": moves}


def settled(state, *, tolerance):
    xp = array_namespace(state["left"])
    return state["left"] < tolerance, ~xp.isfinite(state["left"])


HOW = {"init": begin, "until": settled, "every": 3, "limit": 40, "keep": ["value", "left"]}
SHARED = {"scale": 2.0, "tolerance": 1e-3}


def make(sizes, seed=0):
    rng = np.random.default_rng(seed)
    goal = sp.Ragged(rng.normal(size=sum(sizes)), sizes)
    return {"goal": goal, "rate": rng.uniform(0.05, 0.9, size=len(sizes))}


def loop(goal, rate, every=3, limit=40, scale=2.0, tolerance=1e-3):
    """One item in plain Python."""
    value, left, age = [0.0] * len(goal), math.inf, 0
    for age in range(1, limit // every * every + 1):
        pace = rate / (1.0 + 0.01 * (age - 1))
        value = [v + pace * (g * scale - v) for v, g in zip(value, goal, strict=True)]
        parts = [abs(g * scale - v) for v, g in zip(value, goal, strict=True)]
        left = math.nan if any(map(math.isnan, parts)) else max(parts, default=0.0)
        failed = not math.isfinite(left)
        if age % every == 0 and (failed or left < tolerance):
            return value, left, age, not failed, failed
    return value, left, age, False, False


def assert_equals_the_loop(found, data, host, rtol, **how):
    values, left = host(found.values["value"]), host(found.values["left"])
    for item, (goal, rate) in enumerate(zip(data["goal"], data["rate"], strict=True)):
        expected = loop(goal.tolist(), float(rate), **how)
        np.testing.assert_allclose(values[item], expected[0], rtol=rtol, err_msg=f"item {item}")
        np.testing.assert_allclose(left[item], expected[1], rtol=1e-6, atol=rtol)
        flags = found.iterations[item], found.converged[item], found.failed[item]
        assert flags == expected[2:], item


def tolerance_of(framework):
    return 1e-9 if framework == "jax" else 1e-12


@pytest.mark.parametrize("rows", [1, 2, 5, 20])
@pytest.mark.parametrize("slots", [1, [{"n": 2}, {"n": 7}], "exact"])
def test_every_item_equals_a_loop_over_it_alone(put, host, framework, rows, slots):
    data = make(SIZES)
    given_ = put(data)
    plan = sp.plan(settle, given_, slots=slots, rows=rows, scale=2.0)
    found = sp.iterate(settle, given_, plan, **HOW, **SHARED)
    assert_equals_the_loop(found, data, host, tolerance_of(framework))
    assert found.plan is plan
    assert 0 < np.count_nonzero(found.converged) < len(SIZES)


def _in_any_company(put, host, framework, sizes, rows, seed, exact):
    data = make(sizes, seed)
    slots = [{"n": 6, "rows": rows}]

    def run(items):
        some = put({"goal": data["goal"][items], "rate": data["rate"][items]})
        plan = sp.plan(settle, some, slots=slots, scale=2.0)
        found = sp.iterate(settle, some, plan, **HOW, **SHARED)
        return found, host(found.values["value"]), host(found.values["left"])

    order = np.random.default_rng(seed).permutation(len(sizes)).tolist()
    found, values, left = run(list(range(len(sizes))))
    assert_equals_the_loop(found, data, host, tolerance_of(framework))
    for items in (order, [order[0]]):
        other, their_values, their_left = run(items)
        for place, item in enumerate(items):
            for name in ("iterations", "converged", "failed"):
                assert getattr(other, name)[place] == getattr(found, name)[item]
            atol = 0 if exact else 1e-12
            np.testing.assert_allclose(their_values[place], values[item], rtol=atol, atol=atol)
            np.testing.assert_allclose(their_left[place], left[item], rtol=1e-6 * (not exact))


sizes_ = st.lists(st.integers(0, 6), min_size=1, max_size=9)


@EXACT
@settings(max_examples=40)
@given(sizes=sizes_, rows=st.integers(1, 10), seed=st.integers(0, 99))
def test_companions_order_and_rows_change_no_bit(put, host, framework, sizes, rows, seed):
    _in_any_company(put, host, framework, sizes, rows, seed, exact=True)


@pytest.mark.parametrize("framework", ["jax", "array_api_strict"])
@settings(max_examples=15)
@given(sizes=sizes_, rows=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_companions_order_and_rows_change_roundings_at_most(
    put, host, framework, sizes, rows, seed
):
    _in_any_company(put, host, framework, sizes, rows, seed, exact=False)


@sp.kernel("()->(),()")
def count(goal, *, age, state):
    """Counts steps, and adds up what it is told of the steps before."""
    xp = array_namespace(goal)
    return {"steps": state["steps"] + 1, "ages": state["ages"] + xp.astype(age, goal.dtype)}


def at_zero(goal):
    zeros = array_namespace(goal).zeros_like(goal)
    return {"steps": zeros, "ages": zeros}


def counted(state, goal):
    return state["steps"] >= goal, goal < 0


COUNT = {"init": at_zero, "until": counted, "keep": ("steps", "ages")}


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 3])
def test_an_item_takes_the_first_multiple_of_every_at_which_until_holds(put, host, every, rows):
    goals = np.array([7.0, 1.0, 4.0, 12.0, 0.0, 5.0, 99.0])
    data = put({"goal": goals})
    found = sp.iterate(count, data, rows=rows, every=every, limit=13, **COUNT)
    most = 13 // every * every
    expected = [min(max(math.ceil(goal / every), 1) * every, most) for goal in goals]
    assert found.iterations.tolist() == expected
    assert found.converged.tolist() == [*(n >= g for n, g in zip(expected, goals, strict=True))]
    assert not found.failed.any()
    assert host(found.values["steps"]).tolist() == expected  # the state after the last round
    assert host(found.values["ages"]).tolist() == [n * (n - 1) / 2 for n in expected]


def test_the_limit_leaves_the_state_after_whole_rounds(put, host):
    found = sp.iterate(count, put({"goal": np.array([50.0])}), every=4, limit=11, **COUNT)
    assert (found.iterations.tolist(), host(found.values["steps"]).tolist()) == ([8], [8.0])
    assert not found.converged.any()
    assert not found.failed.any()


def test_rows_that_fail_leave_and_nan_touches_no_other_row(put, host, framework):
    data = make(SIZES)
    goal = np.array(data["goal"].values)
    goal[[4, 9]] = np.nan
    data["goal"] = sp.Ragged(goal, SIZES)
    found = sp.iterate(settle, put(data), rows=3, **HOW, **SHARED)
    assert found.failed.tolist() == [False, False, True, False, True, False, False]
    assert found.iterations[[2, 4]].tolist() == [3, 3]
    assert not found.converged[[2, 4]].any()
    assert_equals_the_loop(found, data, host, tolerance_of(framework))


def test_a_row_that_is_done_and_failed_has_failed(put):
    data = put({"goal": np.array([-1.0, 1.0])})
    found = sp.iterate(count, data, every=1, limit=5, **COUNT)
    assert found.failed.tolist() == [True, False]
    assert found.converged.tolist() == [False, True]


@pytest.fixture
def rounds(framework, monkeypatch):
    """Rows of every round: of every call of ``until``, or of the program where one is compiled."""
    adapter = get_adapter(framework)
    seen = []
    if not adapter.compiles:
        return SimpleNamespace(rows=seen, until=lambda state, goal: (
            seen.append(goal.shape[0]) or counted(state, goal)
        ))  # fmt: skip
    made = adapter.function

    def function(*args, **how):
        call = made(*args, **how)

        def noted(arguments, keywords, shared):
            seen.append(arguments[0].shape[0])
            return call(arguments, keywords, shared)

        return noted

    monkeypatch.setattr(adapter, "function", function)
    return SimpleNamespace(rows=seen, until=counted)


def test_no_row_works_for_nobody(put, framework, rounds):
    goals = np.array([9.0, 2.0, 2.0, 4.0, 3.0, 1.0, 1.0, 6.0])
    how = {**COUNT, "until": rounds.until}
    found = sp.iterate(count, put({"goal": goals}), rows=3, every=2, limit=20, **how)
    needed = [math.ceil(goal / 2) for goal in goals]
    assert found.iterations.tolist() == [2 * n for n in needed]
    busy, waiting, expected = [0, 0, 0], list(needed), []  # who is free takes the next
    while waiting or any(busy):
        busy = [waiting.pop(0) if not n and waiting else n for n in busy]
        expected.append(sum(n > 0 for n in busy))
        busy = [max(n - 1, 0) for n in busy]
    if framework == "jax":
        assert rounds.rows == [3] * len(expected)
    else:
        assert rounds.rows == expected
        assert sum(rounds.rows) == sum(needed)


@pytest.fixture
def compiled():
    """Names of the programs that JAX compiles from now on."""
    jax = pytest.importorskip("jax")
    names = []

    class Note(logging.Handler):
        def emit(self, record):
            text = record.getMessage()
            if text.startswith("Finished XLA compilation of"):
                names.append(text.split()[4])

    handler, logger = Note(), logging.getLogger("jax")
    logger.addHandler(handler)
    before = jax.config.jax_log_compiles
    jax.config.update("jax_log_compiles", True)
    yield names
    jax.config.update("jax_log_compiles", before)
    logger.removeHandler(handler)


only_jax = pytest.mark.parametrize("framework", ["jax"])


@only_jax
@pytest.mark.parametrize("budget", [None, "64 MB"])
def test_each_slot_is_one_program_and_another_set_compiles_nothing(put, compiled, budget):
    def ending(state, *, tolerance):  # another function, so that nothing is compiled yet
        return settled(state, tolerance=tolerance)

    how = {**HOW, "until": ending}
    sets = make([2, 6, 5, 1, 6, 2, 2]), make([1, 1, 5, 2, 4], seed=5)
    first = put(sets[0])
    kept = sp.Rounds(begin, ending, 3, ["value", "left"])
    slots = [{"n": 2}, {"n": 6}]
    plan = sp.plan(settle, first, slots=slots, rounds=kept, budget=budget, **SHARED)
    adapter = get_adapter("jax")
    sp.iterate(settle, first, plan, **how, **SHARED)
    assert compiled.count("jit(settle)") == 2
    traced = adapter.traces["settle"]
    again = put(sets[1])
    second = sp.plan(settle, again, slots=plan.slots, scale=2.0)
    sp.iterate(settle, again, second, **how, **SHARED)
    sp.iterate(settle, again, second, **how, **{**SHARED, "scale": np.float64(3)})
    assert compiled.count("jit(settle)") == 2
    assert adapter.traces["settle"] == traced


@only_jax
@pytest.mark.parametrize(("compile_seconds", "fewer"), [(0.05, True), (0.2, False), (5.0, False)])
def test_the_tail_gets_a_smaller_program_once_idle_rows_cost_as_much(
    put, host, rounds, compile_seconds, fewer
):
    goals = np.array([1.0] * 7 + [40.0])
    data = put({"goal": goals})
    plan = sp.plan(
        count, data, rows=8, costs=sp.Costs(work_seconds=0.01, compile_seconds=compile_seconds)
    )
    found = sp.iterate(count, data, plan, every=1, limit=60, **COUNT)
    assert found.iterations.tolist() == goals.tolist()
    assert host(found.values["steps"]).tolist() == goals.tolist()
    idle = 7 * 0.01  # an item that is over took one round
    full = 1 + math.floor(compile_seconds / idle) + 1
    if compile_seconds == 5.0:
        assert rounds.rows == [8] * 40
    else:
        assert rounds.rows == [8] * full + [1] * (40 - full)
        assert fewer == (full < 3)


@only_jax
def test_several_rows_go_on_in_the_smaller_program_with_what_they_had(put, host, rounds):
    goals = np.array([9.0, 1.0, 14.0, 2.0, 1.0, 1.0, 3.0, 1.0, 20.0, 17.0, 1.0])
    data = put({"goal": goals})
    plan = sp.plan(count, data, rows=8, costs=sp.Costs(work_seconds=1.0, compile_seconds=0.0))
    found = sp.iterate(count, data, plan, every=1, limit=60, **COUNT)
    assert found.iterations.tolist() == goals.tolist()
    assert host(found.values["steps"]).tolist() == goals.tolist()
    assert host(found.values["ages"]).tolist() == [n * (n - 1) / 2 for n in goals]
    assert {8, 4, 3, 2, 1} == set(rounds.rows)


def test_items_lie_in_the_middle_of_their_padding_with_masks(put, host, framework):
    data = make(SIZES)
    given_ = put(data)
    plan = sp.plan(settle, given_, slots=[{"n": 9}], rows=2, offsets="centre", scale=2.0)
    assert plan.offsets.any()
    found = sp.iterate(settle, given_, plan, **HOW, **SHARED)
    assert_equals_the_loop(found, data, host, tolerance_of(framework))


@sp.kernel("(y,x),(x)->(y,x),(x)", ragged=("y", "x"), static="way")
def spread_out(image, weights, *, state, table, way, mask):
    """Two ragged dims, a static parameter, a shared array, and no age."""
    xp = array_namespace(image)
    inside = mask["y"][..., :, None] & mask["x"][..., None, :]
    grown = state["image"] + table[0] * image if way == "add" else state["image"] * table[1]
    grown = xp.where(inside, grown, xp.zeros_like(grown))
    return {"image": grown, "columns": xp.sum(grown, axis=-2) * weights}


@pytest.mark.parametrize("way", ["add", "times"])
def test_ragged_state_statics_and_shared_arrays(put, host, xp, way):
    rng = np.random.default_rng(4)
    images = [rng.uniform(1, 2, size=shape) for shape in [(2, 3), (1, 4), (0, 2), (3, 1), (2, 0)]]
    weights = [rng.normal(size=image.shape[1]) for image in images]
    data = {"image": sp.Ragged.from_list(images, 2), "weights": sp.Ragged.from_list(weights)}

    def unchanged(image, weights, **others):
        return {"image": image + 0, "columns": weights + 0}

    def bright(state, image, *, most):
        total = array_namespace(image).sum(state["image"], axis=(-2, -1))
        return total > most, total < 0

    found = sp.iterate(
        spread_out, put(data), rows=2, init=unchanged, until=bright, every=2, limit=8,
        keep=["image", "columns"], table=xp.asarray([0.5, 1.5]), way=way, most=25.0,
    )  # fmt: skip
    grown, columns = host(found.values["image"]), host(found.values["columns"])
    for item, (image, weight) in enumerate(zip(images, weights, strict=True)):
        expected, steps = image, 0
        while steps < 8 and not (steps and expected.sum() > 25.0):
            for _ in range(2):
                expected = expected + 0.5 * image if way == "add" else expected * 1.5
            steps += 2
        assert found.iterations[item] == steps
        np.testing.assert_allclose(grown[item], expected, rtol=1e-12)
        np.testing.assert_allclose(columns[item], expected.sum(0) * weight, rtol=1e-12)


def test_no_items_give_empty_fields_of_the_right_shape_and_dtype(put, xp):
    for data in (make([]), {"goal": sp.Ragged(np.empty(0, np.float32), []), "rate": np.empty(0)}):
        found = sp.iterate(settle, put(data), **HOW, **SHARED)
        assert tuple(found.values["value"].values.shape) == (0,)
        assert tuple(found.values["left"].shape) == (0,)
        assert found.values["value"].values.dtype == put(data)["goal"].values.dtype
        assert found.values["left"].dtype in (xp.float64, xp.float32)
        assert found.iterations.shape == found.converged.shape == found.failed.shape == (0,)


@pytest.mark.parametrize("sizes", [[4], [0], [0, 0, 0], [1]])
def test_one_item_and_items_of_size_zero(put, host, framework, sizes):
    data = make(sizes)
    found = sp.iterate(settle, put(data), **HOW, **SHARED)
    assert_equals_the_loop(found, data, host, tolerance_of(framework))


def test_a_slot_without_items_is_passed_over(put, host, framework):
    data = make(SIZES)
    given_ = put(data)
    slots = [{"n": 5}, {"n": 8, "rows": 4}]
    plan = sp.plan(settle, given_, slots=slots, headroom=2, scale=2.0)
    found = sp.iterate(settle, given_, plan, **HOW, **SHARED)
    assert_equals_the_loop(found, data, host, tolerance_of(framework))


def test_numpy_data_come_back_as_numpy_whatever_computes_them(host, framework):
    data = make(SIZES)
    found = sp.iterate(settle, data, on=framework, **HOW, **SHARED)
    assert type(found.values["value"].values) is np.ndarray
    assert type(found.values["left"]) is np.ndarray
    assert_equals_the_loop(found, data, host, tolerance_of(framework))


def test_data_of_a_framework_come_back_to_it_from_numpy(put, host, framework, xp):
    data = make(SIZES)
    found = sp.iterate(settle, put(data), on="numpy", rows=3, **HOW, **SHARED)
    namespace = array_namespace(found.values["value"].values, found.values["left"])
    assert namespace is array_namespace(xp.asarray(1.0))
    assert_equals_the_loop(found, data, host, 1e-12)


def test_float32_data_stay_float32(put, host, xp):
    data = make(SIZES)
    data = {"goal": data["goal"].map_values(np.float32), "rate": data["rate"].astype(np.float32)}
    found = sp.iterate(settle, put(data), rows=2, **HOW, **SHARED)
    assert found.values["value"].values.dtype == xp.float32
    assert found.values["left"].dtype == xp.float32
    assert host(found.values["left"])[found.converged].max() < 1e-3


def test_a_saved_plan_iterates_the_same(put, host, framework, tmp_path):
    data = make(SIZES)
    kept = sp.Rounds(begin, settled, 3, ["value", "left"])
    plan = sp.plan(settle, put(data), rows=2, rounds=kept, **SHARED)
    plan.save(tmp_path / "plan")
    found = sp.iterate(settle, put(data), sp.Plan.load(tmp_path / "plan"), **HOW, **SHARED)
    assert_equals_the_loop(found, data, host, tolerance_of(framework))


def test_progress_counts_items_and_changes_nothing(put, host, framework, capsys):
    data = make(SIZES)
    found = sp.iterate(settle, put(data), rows=2, progress=True, **HOW, **SHARED)
    assert_equals_the_loop(found, data, host, tolerance_of(framework))
    shown = capsys.readouterr().err
    assert "7/7" in shown
    assert "item" in shown


def test_the_data_are_not_changed():
    data = make(SIZES)
    goal, rate = np.copy(data["goal"].values), np.copy(data["rate"])
    found = sp.iterate(settle, data, **HOW, **SHARED)
    found.values["value"].values[:] = 7
    assert np.array_equal(data["goal"].values, goal)
    assert np.array_equal(data["rate"], rate)


def test_init_may_give_columns_themselves_as_state(put, host):
    @sp.kernel("()->()")
    def halve(x, *, state):
        return {"x": state["x"] / 2}

    found = sp.iterate(
        halve, put({"x": np.array([8.0, 1.0, 64.0])}), rows=2, init=lambda x: {"x": x},
        until=lambda state: (state["x"] <= 1, state["x"] < 0), every=1, limit=9, keep="x",
    )  # fmt: skip
    assert host(found.values["x"]).tolist() == [1.0, 0.5, 1.0]
    assert found.iterations.tolist() == [3, 1, 6]


def test_joined_rows_have_their_segments(put, host):
    @sp.kernel("(atoms),(molecules)->(molecules)", ragged=("atoms", "molecules"),
               segments="molecules")  # fmt: skip
    def gather_mass(mass, wanted, *, state, segments, mask):
        xp = array_namespace(mass)
        number = xp.arange(wanted.shape[-1], dtype=segments["atoms"].dtype)
        own = segments["atoms"][..., None, :] == number[:, None]
        each = mass[..., None, :]
        each = xp.where(own, each, xp.zeros_like(each))
        return {"total": state["total"] + xp.sum(each, axis=-1)}

    def enough(state, wanted, mask):
        xp = array_namespace(wanted)
        done = (state["total"] >= wanted) | ~mask["molecules"]
        return xp.all(done, axis=-1), xp.any(wanted < 0, axis=-1)

    sizes = [2, 3, 1, 2]
    mass = sp.Ragged(np.arange(1.0, 9.0), sizes)
    wanted = np.array([5.0, 30.0, 1.0, 20.0])
    packing = sp.pack_rows({"atoms": sizes}, {"atoms": 5, "molecules": 2})
    data = put({"mass": mass, "wanted": wanted})
    joined = sp.join_rows(gather_mass, data, packing)
    found = sp.iterate(
        gather_mass, joined, init=lambda wanted: {"total": 0 * wanted}, until=enough, every=1,
        limit=9, keep="total",
    )  # fmt: skip
    split = host(sp.split_rows(gather_mass, found.values["total"], packing))
    whole = np.array([sum(part) for part in mass])
    needed = np.ceil(wanted / whole)
    for row, items in enumerate(packing.rows):
        assert found.iterations[row] == needed[items].max()  # of all items that lie in it
    np.testing.assert_allclose(split, whole * found.iterations[packing.row])


# --- memory ------------------------------------------------------------------------------------


@sp.kernel("(n)->(n),()", ragged="n")
def wander(x, *, age, state):
    """Takes scratch, unlike what it keeps."""
    xp = array_namespace(x)
    square = x[..., :, None] * state["x"][..., None, :]
    moved = 0.9 * state["x"] + 0.0 * xp.sum(square, axis=-1)
    return {"x": moved, "size": xp.max(xp.abs(moved), axis=-1)}


def at_x(x):
    return {"x": x + 0, "size": array_namespace(x).max(x, axis=-1)}


def small(state, *, least):
    return state["size"] < least, state["size"] < 0


WANDER = {"init": at_x, "until": small, "every": 2, "keep": ("x", "size")}


def crowd(items, n=40):
    rng = np.random.default_rng(1)
    sizes = np.repeat(np.geomspace(0.2, 20.0, items), n)  # so that they end one after the other
    return {"x": sp.Ragged(rng.uniform(0.5, 1.0, size=items * n) * sizes, [n] * items)}


@sp.kernel("(n,30)->(n)", ragged="n", exact="n")
def multiply(matrix, *, state):
    """Takes next to nothing beside its column and a field that it hands on."""
    product = array_namespace(matrix).matmul(matrix, state["x"][..., None])
    return {**state, "x": product[..., 0] / 9}


@pytest.mark.parametrize("budget", ["1.5 MB", "3 MB", "12 MB"])
def test_a_plan_predicts_no_less_than_is_taken(budget):
    data = crowd(200)
    kept = sp.Rounds(**WANDER)
    plan = sp.plan(wander, data, budget=budget, rounds=kept, least=0.1)
    tight = sp.plan(wander, data, budget=budget, rounds=kept, rows=plan.rows[0], least=0.1)
    assert plan.memory.peak_bytes <= plan.memory.budget.bytes
    assert plan.memory.sources[0].startswith("real wander at n=40, numpy")
    for made in (plan, tight):
        sp.iterate(wander, crowd(2), limit=50, least=0.1, **WANDER)  # what is imported on use
        tracemalloc.start()
        found = sp.iterate(wander, data, made, limit=50, least=0.1, **WANDER)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(set(found.iterations.tolist())) > 3
        assert peak <= made.memory.peak_bytes + 100_000  # objects of Python


@pytest.mark.parametrize("width", [20, 60])
def test_the_joining_of_columns_and_fields_is_foreseen(width):
    n, items = 30, 300
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(items, n * n)) * np.geomspace(0.7, 2.0, items)[:, None]
    data = {"matrix": sp.Ragged(values.reshape(-1, n), [n] * items)}

    def ones(matrix):
        handed_on = np.zeros((*matrix.shape[:-1], width))
        return {"x": matrix[..., 0] + 1.0, "handed_on": handed_on}

    how = {
        "init": ones, "every": 1, "keep": "x",
        "until": lambda state: (state["x"][..., 0] > 9.0, state["x"][..., 0] < 0),
    }  # fmt: skip
    plan = sp.plan(multiply, data, budget="20 MB", rounds=sp.Rounds(**how))
    assert len(plan.batches) > 1
    sp.iterate(multiply, data, rows=1, limit=3, **how)
    tracemalloc.start()
    found = sp.iterate(multiply, data, plan, limit=30, **how)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(found.iterations.tolist())) > 3
    assert peak <= plan.memory.peak_bytes + 100_000


def test_what_cannot_fit_is_refused_while_planning(put):
    data = put(crowd(20))
    kept = sp.Rounds(**WANDER)
    with pytest.raises(sp.BudgetError, match=r"plan: one row of wander at n=40 needs .*budget="):
        sp.plan(wander, data, budget=4000, rounds=kept, least=0.1)
    with pytest.raises(sp.BudgetError, match=r"iterate: one row of wander at n=40 needs"):
        sp.iterate(wander, data, budget=4000, limit=50, least=0.1, **WANDER)


def test_a_budget_makes_fewer_rows_and_changes_nothing(put, host, framework):
    data = put(crowd(60))
    free = sp.iterate(wander, data, limit=50, least=0.1, **WANDER)
    budget = "40 MB" if framework == "jax" else "1.6 MB"
    found = sp.iterate(wander, data, budget=budget, limit=50, least=0.1, **WANDER)
    assert found.plan.memory.budget.source == f'budget="{budget}"'
    assert found.plan.memory.peak_bytes <= found.plan.memory.budget.bytes
    if framework != "jax":
        assert found.plan.rows[0] < 60
    assert found.iterations.tolist() == free.iterations.tolist()
    for a, b in zip(host(found.values["x"]), host(free.values["x"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_where_memory_runs_out_fewer_rows_go_on_and_what_is_over_is_kept(
    put, host, framework, caplog
):
    goals = np.arange(1.0, 17.0)
    seen = []
    compiles = get_adapter(framework).compiles

    @sp.kernel("()->(),()")
    def hungry(goal, *, age, state):
        rows = goal.shape[0]
        if rows > 4 and (compiles or len(seen) >= 6):
            raise MemoryError("planted")
        if not compiles:
            seen.append(host(goal).tolist())
        return {"steps": state["steps"] + 1, "ages": state["ages"] + age}

    def at_rest(goal):
        xp = array_namespace(goal)
        return {"steps": xp.zeros_like(goal), "ages": xp.astype(0 * goal, xp.int64)}

    how = {**COUNT, "init": at_rest}
    with caplog.at_level(logging.WARNING, "stowplan"):
        found = sp.iterate(hungry, put({"goal": goals}), rows=16, every=2, limit=40, **how)
    expected = [2 * math.ceil(goal / 2) for goal in goals]
    assert found.iterations.tolist() == expected
    assert host(found.values["steps"]).tolist() == expected
    assert found.converged.all()
    text = [record.message for record in caplog.records]
    assert "iterate: out of memory with 16 rows of hungry; going on with 8 rows." in text[0]
    if compiles:
        assert "0 of 16 items are over and kept" in text[0]
        assert len(text) == 2
    else:
        assert "6 of 16 items are over and kept" in text[0]
        later = {goal for batch in seen[6:] for goal in batch}
        assert later.isdisjoint({1.0, 2.0, 3.0, 4.0, 5.0, 6.0})


def test_memory_that_does_not_hold_one_row_says_so(put):
    @sp.kernel("(n)->(n)", ragged="n")
    def greedy(x, *, state):
        raise MemoryError("planted")

    def never(state):
        return state["x"][..., 0] > 1, state["x"][..., 0] > 1

    with pytest.raises(
        sp.BudgetError, match=r"iterate: out of memory with one row of greedy at n=40: .*planted"
    ):
        sp.iterate(
            greedy, put(crowd(3)), init=lambda x: {"x": x}, until=never, every=1, limit=1, keep="x"
        )


# --- an optimiser --------------------------------------------------------------------------------


@sp.kernel("(points,3),(points,3),(3)->(3),()", ragged="points")
def climb(reference, probe, start, *, age, state, mask, pace, width):
    """Shift a probe so that it overlaps its reference best: ascent with momentum of each row."""
    score, slope = overlap(reference, probe, state["shift"], mask["points"], width)
    momentum = 0.8 * state["momentum"] + pace * slope
    better = score - state["score"]
    return {
        "shift": state["shift"] + momentum, "momentum": momentum, "score": score, "gain": better,
    }  # fmt: skip


def overlap(reference, probe, shift, real, width):
    """Gaussian overlap of pairs of points, and its gradient with respect to the shift."""
    xp = array_namespace(reference)
    apart = reference[..., :, None, :] - probe[..., None, :, :] - shift[..., None, None, :]
    both = real[..., :, None] & real[..., None, :]
    close = xp.exp(-xp.sum(apart**2, axis=-1) / (2 * width**2))
    close = xp.where(both, close, xp.zeros_like(close))
    slope = xp.sum(close[..., None] * apart, axis=(-3, -2)) / width**2
    return xp.sum(close, axis=(-2, -1)), slope


def test_an_overlay_optimiser_with_several_starts_for_each_item(put, host):
    rng = np.random.default_rng(0)
    sizes, starts = [4, 6, 3], 5
    shapes = [rng.normal(size=(n, 3)) for n in sizes]
    moved = rng.normal(size=(3, 3))
    references = sp.Ragged.from_list([s + m for s, m in zip(shapes, moved, strict=True)])
    probes = sp.Ragged.from_list(shapes)
    items = np.repeat(np.arange(3), starts)  # rows of one item share its points
    first = (
        moved[items] + rng.normal(size=(len(items), 3)) * np.tile([0.1, 0.3, 0.6, 1, 4], 3)[:, None]
    )
    data = {
        "reference": put(references)[items], "probe": put(probes)[items], "start": put(first)
    }  # fmt: skip

    def at_start(start, reference):
        xp = array_namespace(start)
        none = xp.full_like(start[..., 0], -1.0)
        return {"shift": start, "momentum": 0 * start, "score": none, "gain": none}

    def flat(state, *, gain):
        xp = array_namespace(state["gain"])
        return xp.abs(state["gain"]) < gain, ~xp.isfinite(state["score"])

    found = sp.iterate(
        climb, data, rows=4, init=at_start, until=flat, every=10, limit=2000,
        keep=["shift", "score"], pace=0.02, width=0.7, gain=1e-13,
    )  # fmt: skip
    assert found.converged.all()
    assert len(np.unique(found.iterations)) > 3  # each row stops by itself
    scores = host(found.values["score"]).reshape(3, starts)
    shifts = host(found.values["shift"]).reshape(3, starts, 3)
    for item, best in enumerate(scores.argmax(axis=1).tolist()):
        real = np.ones(sizes[item], bool)
        reference, probe = shapes[item] + moved[item], shapes[item]
        at_truth, _ = overlap(reference, probe, moved[item], real, 0.7)
        there, slope = overlap(reference, probe, shifts[item, best], real, 0.7)
        assert there >= at_truth - 1e-9  # the shift that made it is a lower bound of the best
        assert abs(slope).max() < 1e-4
        np.testing.assert_allclose(scores[item, best], there, rtol=1e-9)


# --- bad input ---------------------------------------------------------------------------------


def iterate_count(**changes):
    how = {**COUNT, "every": 1, "limit": 5, **changes}
    step = how.pop("step", count)
    data = how.pop("data", {"goal": np.array([1.0, 2.0])})
    return sp.iterate(step, data, **how)


@sp.kernel("()->()")
def stateless(goal):
    return goal


@sp.kernel("()->(),()", per_item=True)
def single(goal, *, state):
    return state


@sp.kernel("()->(),()")
def counts_on(goal, *, state, start):
    return {"steps": state["steps"] + start, "ages": state["ages"]}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"step": lambda x: x}, r"iterate: <function.*is no kernel.*@sp.kernel"),
        ({"step": stateless}, r"iterate: stateless takes no state.*def stateless\(goal, \*, age"),
        ({"step": single}, r"iterate: single is declared per_item=True"),
        ({"keep": ["steps"]}, r"count has 2 outputs, but keep names 1 fields: steps"),
        ({"keep": ["steps", "age"]}, r"keep names 'age', which is no field.*steps, ages"),
        ({"keep": []}, r"keep=\[\]; give names"),
        ({"keep": 3}, r"keep=3; give names"),
        ({"keep": ["steps", "steps"]}, r"each once"),
        ({"every": 0}, r"every=0; a round has a whole number of steps from 1"),
        ({"every": True}, r"every=True"),
        ({"every": 1.0}, r"every=1.0"),
        ({"init": None}, r"init=None is no function"),
        ({"init": lambda goal: goal}, r"init=<lambda> gave ndarray; it gives the state, a dict"),
        ({"init": lambda goal: {}}, r"init=<lambda> gave dict"),
        (
            {"init": lambda goal: {"steps": goal, "ages": goal.sum()}},
            r"gave 'ages' as \(\) float64 for 2 rows.*first axis",
        ),
        ({"init": lambda goal: {"steps": 0.0, "ages": goal}}, r"gave 'steps' as float for 2 rows"),
        (
            {"init": lambda goal: {"steps": goal[:, None], "ages": goal}},
            r"field 'steps' to keep the shape \(2, 1\) for 2 rows; the signature of count.*\(2,\)",
        ),
        ({"init": lambda goal, state: state}, r"init=<lambda> takes 'state': there is none yet"),
        ({"until": lambda state, age: age}, r"until=<lambda> takes 'age': let a field"),
        ({"init": lambda *columns: columns}, r"init=<lambda> takes \*columns by position"),
        ({"until": lambda state: state["steps"] > 1}, r"until=<lambda> gave ndarray.*\(done, fail"),
        ({"until": lambda state, rows: state}, r"until=<lambda> takes 'rows', a name that iterate"),
    ],
)  # fmt: skip
def test_functions_and_fields_that_do_not_match_are_refused(changes, text):
    with pytest.raises(sp.SignatureError, match=text):
        iterate_count(**changes)


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        (
            lambda state: (state["steps"][:1] > 1, state["steps"] > 9),
            r"of shape \(1,\), dtype bool",
        ),
        (lambda state: (state["steps"], state["steps"] > 9), r"of shape \(2,\), dtype float64"),
        (lambda state: (state["steps"] > 1, False), r"until gave bool for 2 rows"),
    ],
)
def test_flags_are_two_bool_arrays_of_the_rows(given_, text):
    with pytest.raises(sp.DataError, match=text + r".*shape \(2,\), \(done, failed\)|" + text):
        iterate_count(until=given_)


def test_a_step_that_gives_other_fields_shapes_or_dtypes_is_refused(put, xp):
    def refuse(found, text):
        @sp.kernel("()->(),()")
        def faulty(goal, *, state):
            return found(state)

        with pytest.raises(sp.SignatureError, match=text):
            iterate_count(step=faulty, data=put({"goal": np.array([1.0, 2.0])}))

    refuse(lambda s: {"steps": s["steps"]}, r"faulty gave \['steps'\]; .*\['ages', 'steps'\]")
    refuse(lambda s: s["steps"], r"faulty gave .*; it gives the state with the same fields")
    single = array_namespace(xp.asarray(1.0)).float32
    refuse(
        lambda s: {**s, "ages": array_namespace(s["ages"]).astype(s["ages"], single)},
        r"faulty changed 'ages' from \(2,\) .*float64 to \(2,\) .*float32",
    )
    refuse(
        lambda s: {**s, "ages": s["ages"][:, None]},
        r"changed 'ages' from \(2,\) .*float64 to \(2, 1\)",
    )


@pytest.mark.parametrize("limit", [0, 2, True, 4.0, None])
def test_a_limit_of_less_than_one_round_is_refused(limit):
    with pytest.raises(sp.PlanError, match=rf"limit={limit}; .*every=3 steps. Give limit=3"):
        iterate_count(every=3, limit=limit)


def test_shared_parameters_are_those_of_all_three_functions(put, host):
    def from_start(goal, start, more=2.0):
        return {"steps": 0 * goal + start * more, "ages": 0 * goal}

    def far(state, goal, *, factor=1.0):
        return state["steps"] >= goal * factor, goal < 0

    how = {"step": counts_on, "init": from_start, "until": far, "limit": 50}
    data = put({"goal": np.array([10.0, 4.0])})
    found = iterate_count(**how, data=data, start=1.0)
    assert host(found.values["steps"]).tolist() == [10.0, 4.0]
    found = iterate_count(**how, data=data, start=1.0, more=0.0, factor=2.0)
    assert found.iterations.tolist() == [20, 8]
    with pytest.raises(sp.DataError, match=r"iterate: counts_on needs start=.*: start, more, fact"):
        iterate_count(**how, data=data)
    with pytest.raises(sp.DataError, match=r"counts_on has no shared parameter 'stat'"):
        iterate_count(**how, data=data, start=1.0, stat=1)


def test_functions_may_take_all_there_is(put):
    def begin_with(**columns):
        assert set(columns) == {"x", "mask", "least"}
        assert set(columns["mask"]) == {"n"}
        return at_x(columns["x"])

    data = put(crowd(3))
    found = sp.iterate(wander, data, limit=50, least=0.1, **{**WANDER, "init": begin_with})
    wanted = sp.iterate(wander, data, limit=50, least=0.1, **WANDER)
    assert found.iterations.tolist() == wanted.iterations.tolist()


def test_one_parameter_has_one_default():
    def differs(state, goal, more=3.0):
        return state["steps"] > more, goal < 0

    def begins(goal, more=2.0):
        return {"steps": goal, "ages": goal}

    with pytest.raises(sp.SignatureError, match=r"more=3.0 by default in differs, elsewhere 2.0"):
        iterate_count(init=begins, until=differs)


def test_functions_without_a_hash_are_refused():
    class Unhashable:
        __hash__ = None

        def __call__(self, goal):
            return {"steps": goal, "ages": goal}

    with pytest.raises(sp.SignatureError, match=r"has no hash.*Wrap it: def init"):
        iterate_count(init=Unhashable())


@pytest.mark.parametrize("name", ["init", "until", "every", "limit", "keep", "step"])
def test_a_step_cannot_take_names_that_iterate_uses(name):
    scope = {}
    exec(f"def function(x, *, state, {name}): return x", scope)
    with pytest.raises(sp.SignatureError, match=f"iterate uses the name '{name}' itself; rename"):
        sp.kernel("(n)->()", ragged="n")(scope["function"])


def test_columns_are_given_by_position_whatever_their_names(put, host):
    @sp.kernel("(),()->()")
    def drift(age, rows, /, *, state):
        return {"x": state["x"] + age}

    data = put({"age": np.array([1.0, 5.0]), "rows": np.array([3.0, 6.0])})
    found = sp.iterate(
        drift, data, init=lambda age: {"x": 0 * age},
        until=lambda state, rows: (state["x"] >= rows, rows < 0), every=1, limit=9, keep="x",
    )  # fmt: skip
    assert host(found.values["x"]).tolist() == [3.0, 10.0]


def test_a_plan_for_other_sizes_or_beside_its_own_options_is_refused():
    data = make(SIZES)
    plan = sp.plan(settle, data)
    how = {**HOW, **SHARED}
    with pytest.raises(sp.PlanError, match=r"iterate: the plan is for 7 items, the data have 2"):
        sp.iterate(settle, make([1, 2]), plan, **how)
    with pytest.raises(sp.PlanError, match=r"iterate: the plan is for other sizes: 2 of 7"):
        sp.iterate(settle, make([0, 3, *SIZES[2:]]), plan, **how)
    for name, value in {"rows": 3, "budget": "1 GB"}.items():
        with pytest.raises(sp.PlanError, match=rf"iterate: give {name}= while planning"):
            sp.iterate(settle, data, plan, **how, **{name: value})
    with pytest.raises(sp.PlanError, match=r"iterate: plan=3 is no plan"):
        sp.iterate(settle, data, 3, **how)


@pytest.mark.parametrize(
    "call",
    [
        sp.run, sp.verify, sp.measure_costs, sp.calibrate,
        lambda *given_: sp.value_and_grad(*given_, loss=lambda x: x, wrt=["goal"]),
    ],
)  # fmt: skip
def test_calls_that_do_not_iterate_say_which_does(call):
    pytest.importorskip("torch")
    import torch

    with pytest.raises(sp.DataError, match=r"count is one step of an iteration.*sp.iterate\(count"):
        call(count, {"goal": torch.ones(2, dtype=torch.float64)})


def test_a_budget_for_a_step_asks_for_its_rounds():
    data = {"goal": np.ones(2)}
    with pytest.raises(sp.PlanError, match=r"count is one step of an iteration.*rounds=sp.Rounds"):
        sp.plan(count, data, budget="1 MB")
    with pytest.raises(sp.SignatureError, match=r"iterate: count: rounds=7; give how"):
        sp.plan(count, data, rounds=7)
    kept = sp.Rounds(at_zero, counted, 1, ["steps", "ages"])
    with pytest.raises(sp.PlanError, match=r"gradient=True beside rounds="):
        sp.plan(count, data, rounds=kept, gradient=True)


def test_tensors_that_require_grad_are_refused():
    torch = pytest.importorskip("torch")
    data = {"goal": torch.ones(2, dtype=torch.float64, requires_grad=True)}
    with pytest.raises(sp.FrameworkError, match=r"iterate: the data require grad.*Detach"):
        iterate_count(data=data)
    data = {"goal": torch.ones(2, dtype=torch.float64)}
    start = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(sp.FrameworkError, match=r"iterate: the data require grad"):
        iterate_count(step=counts_on, data=data, start=start)

    @sp.kernel("()->(),()")
    def secret(goal, *, state):
        return {"steps": state["steps"] + start, "ages": state["ages"]}

    with pytest.raises(sp.FrameworkError, match=r"field 'steps' requires grad after a round of"):
        iterate_count(step=secret, data=data)


def test_a_step_may_differentiate_within_itself():
    torch = pytest.importorskip("torch")

    @sp.kernel("()->(),()")
    def newton(goal, *, state):
        with torch.enable_grad():
            x = state["steps"].detach().requires_grad_()
            value = x**3 - goal
            (slope,) = torch.autograd.grad(value.sum(), x)
        return {"steps": (x - value / slope).detach(), "ages": value.detach()}

    found = iterate_count(
        step=newton, data={"goal": torch.tensor([8.0, 27.0], dtype=torch.float64)}, limit=50,
        init=lambda goal: {"steps": goal, "ages": goal},
        until=lambda state: (abs(state["ages"]) < 1e-10, state["ages"].isnan()),
    )  # fmt: skip
    np.testing.assert_allclose(found.values["steps"], [2.0, 3.0], rtol=1e-12)


@only_jax
def test_a_traced_program_has_no_values_to_stop_by(xp, framework):
    jax = pytest.importorskip("jax")
    with pytest.raises(sp.FrameworkError, match=r"iterate: when rows finish depends on values"):
        jax.jit(lambda goal: iterate_count(data={"goal": goal}).values["steps"])(xp.ones(3))
    with pytest.raises(sp.FrameworkError, match=r"iterate: when rows finish"):
        jax.grad(lambda goal: iterate_count(data={"goal": goal}).values["steps"].sum())(xp.ones(3))


@only_jax
def test_values_that_a_trace_does_not_follow_are_iterated_within_it(xp, framework):
    jax = pytest.importorskip("jax")

    def function(x):
        return x + iterate_count(data={"goal": np.array([2.0, 3.0])}).values["steps"].sum()

    assert float(jax.jit(function)(1.0)) == 6.0


def test_compiled_rounds_have_items_waiting_and_eager_ones_need_none(load_framework):
    """Of 4000 items a program has a few hundred rows, whose places are taken again."""
    load_framework("jax")
    data = [np.linspace(1, 9, 4000)]
    rounds = sp.Rounds(lambda square: {"root": square}, lambda root: root, 4, "root")

    @sp.kernel("()->()", work="100000")
    def better(square, *, age, state):
        return state

    compiled = sp.plan(better, data, on="jax", rounds=rounds)
    eager = sp.plan(better, data, on="numpy", rounds=rounds)
    assert compiled.rows[0] <= 1000
    assert len(compiled.batches) >= 4
    assert eager.rows[0] >= 4 * compiled.rows[0]
