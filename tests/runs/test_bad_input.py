"""Bad input to ``run`` gets an error that names the item, what it was, and the cure."""

from __future__ import annotations

import numpy as np
import pytest

import stowplan as sp


@pytest.fixture
def data():
    return {"x": [[1.0, 2.0], [5.0], [1.0, 1.0]]}


def test_a_plan_for_other_sizes_names_the_first_item_that_differs(kernels, data):
    plan = sp.plan(kernels.total, data)
    other = {"x": [[1.0, 2.0], [5.0, 6.0, 7.0], [1.0]]}
    with pytest.raises(
        sp.PlanError,
        match=r"2 of 3 items.*Item 1 has n=3 in the data and n=1 in.*slots=plan.slots",
    ):
        sp.run(kernels.total, other, plan, scale=1.0)


def test_the_first_item_counts_over_all_dims(kernels):
    def images(shapes):
        return {
            "image": sp.Ragged.from_list([np.ones(shape) for shape in shapes], 2),
            "weights": sp.Ragged.from_list([np.ones(shape[1]) for shape in shapes]),
        }

    plan = sp.plan(kernels.weigh, images([(2, 3), (2, 3), (2, 3)]))
    with pytest.raises(
        sp.PlanError, match=r"Item 0 has y=2, x=4 in the data and y=2, x=3 in the plan"
    ):
        sp.run(kernels.weigh, images([(2, 4), (3, 3), (2, 3)]), plan)


def test_a_plan_for_another_number_of_items_or_other_dims(kernels, data):
    plan = sp.plan(kernels.total, data)
    with pytest.raises(sp.PlanError, match=r"for 3 items, the data have 1"):
        sp.run(kernels.total, {"x": [[1.0]]}, plan, scale=1.0)
    with pytest.raises(sp.PlanError, match=r"for dims \(n\), pull has \(atoms\)"):
        sp.run(kernels.pull, kernels.make_atoms([1, 2, 3]), plan, scale=1.0)


@pytest.mark.parametrize("capacity", [2**45, 2**61])
@pytest.mark.parametrize("budget", [None, "1 GiB"])
def test_a_slot_whose_padding_exceeds_memory_is_refused_before_a_row_is_made(
    kernels, data, capacity, budget
):
    with pytest.raises(
        sp.BudgetError, match=rf"plan: one row of total at n={capacity} is padded to .*TiB; .*slots"
    ):
        sp.plan(kernels.total, data, slots=[{"n": capacity}], budget=budget, scale=1.0)


def test_an_item_larger_than_the_budget_that_fills_its_slot_is_refused_by_the_model(kernels):
    with pytest.raises(sp.BudgetError, match=r"plan: one row of total at n=4000 needs"):
        sp.plan(kernels.total, {"x": [np.ones(4000)]}, budget=10000, scale=1.0)


def test_columns_that_disagree_are_told_the_cure(kernels):
    with pytest.raises(sp.DataError, match=r"item 1 has .* Give both the same length\."):
        sp.run(kernels.pull, {**kernels.make_atoms([1, 2]), "charges": [[1.0], [1.0]]}, scale=1.0)


def test_rows_beside_a_plan_are_refused(kernels, data):
    with pytest.raises(sp.PlanError, match=r"rows="):
        sp.run(kernels.total, data, sp.plan(kernels.total, data), rows=2, scale=1.0)


@pytest.mark.parametrize(
    ("shared", "text"),
    [
        ({}, r"total needs scale=.*: scale, power"),
        ({"scale": 1.0, "scael": 2.0}, r"no shared parameter 'scael'.*: scale, power"),
        ({"scale": 1.0, "power": [2]}, r"power=\[2\] is static.*hashable"),
        ({"scale": "1.0"}, r"type str is neither number nor array.*static="),
        ({"scale": object()}, r"type object is neither"),
    ],
)
def test_shared_parameters_are_checked(kernels, data, shared, text):
    with pytest.raises(sp.DataError, match=f"run: .*{text}"):
        sp.run(kernels.total, data, **shared)


@pytest.mark.parametrize("on", ["numpy", "jax", "torch"])
@pytest.mark.parametrize(
    ("signature", "function", "text"),
    [
        ("(n)->()", lambda x: x, r"shape \(3, 2\).*wants \(3,\)"),
        ("(n)->(n)", lambda x: x[..., :1], r"shape \(3, 1\).*wants \(3, 2\)"),
        ("(n)->(n,3)", lambda x: x[..., None], r"shape \(3, 2, 1\).*wants \(3, 2, 3\)"),
        ("(n)->(),()", lambda x: x.sum(-1), r"returned 1 outputs, its signature has 2"),
        ("(n)->()", lambda x: (x.sum(-1), x), r"returned 2 outputs, its signature has 1"),
    ],
)
def test_outputs_that_break_the_signature(load_framework, data, on, signature, function, text):
    load_framework(on)
    kernel = sp.kernel(signature, ragged="n")(function)
    with pytest.raises(sp.DataError, match=f"run: .*{text}"):
        sp.run(kernel, data, sp.plan(kernel, data, slots=1, rows=3), on=on)


@pytest.mark.parametrize("value", [1.0, None, "text"])
def test_an_output_that_is_no_array(data, value):
    kernel = sp.kernel("(n)->()", ragged="n")(lambda x: value)
    with pytest.raises(sp.DataError, match=f"no array \\({type(value).__name__}\\)"):
        sp.run(kernel, data)


def test_a_kernel_that_sums_over_rows_is_caught(data):
    kernel = sp.kernel("(n)->()", ragged="n")(lambda x: x.sum())
    with pytest.raises(sp.DataError, match="broadcasts over leading dims"):
        sp.run(kernel, data)


def test_compiling_needs_a_framework_that_compiles(kernels, data):
    with pytest.raises(sp.FrameworkError, match=r"compile=True needs torch or JAX; numpy"):
        sp.run(kernels.total, data, compile=True, scale=1.0)


def test_an_error_inside_the_kernel_is_the_kernels_own(data):
    def fail(x):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        sp.run(sp.kernel("(n)->()", ragged="n")(fail), data)


def test_a_plan_that_is_none_is_named(kernels, data):
    with pytest.raises(sp.PlanError, match=r"plan='jax' is no plan. Make one with sp.plan\(total"):
        sp.run(kernels.total, data, "jax", scale=1.0)


@pytest.mark.parametrize("slots", [2.0, {"n": 4}])
def test_slots_that_are_no_list_are_told_their_form(kernels, data, slots):
    with pytest.raises(sp.PlanError, match=r"slots=.*a list of slots"):
        sp.plan(kernels.total, data, slots=slots)


@pytest.mark.parametrize("passes", [0, "2", float("nan"), float("inf")])
def test_passes_that_are_no_number_from_1_are_refused(kernels, data, passes):
    with pytest.raises(sp.PlanError, match=r"passes=.*a number from 1"):
        sp.plan(kernels.total, data, passes=passes)


def test_measuring_without_a_repeat_is_refused(kernels, data):
    with pytest.raises(sp.PlanError, match="repeats=0; a median needs at least 1"):
        sp.measure_costs(kernels.total, data, repeats=0, scale=1.0)
