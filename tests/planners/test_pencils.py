"""Pencil plans: every cell once per pass, slabs within the budget, the fewest passes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan.errors import BudgetError, PlanError
from stowplan.planners.pencils import plan_pencils

LENGTHS = st.lists(st.integers(1, 9), min_size=3, max_size=5)


@given(
    LENGTHS, st.integers(1, 4000), st.booleans(), st.sampled_from(["solve", "forward", "inverse"])
)
def test_every_mode_is_in_one_slab_of_each_pass_and_every_slab_fits(shape, numbers, real, kind):
    try:
        plan = plan_pencils(shape, 16, budget=16 * numbers, kind=kind, real=real)
    except BudgetError as error:
        least = int(str(error).split("budget=")[1].split()[0])
        assert least > 16 * numbers
        assert plan_pencils(shape, 16, budget=least, kind=kind, real=real).slab_bytes <= least
        with pytest.raises(BudgetError):
            plan_pencils(shape, 16, budget=least - 1, kind=kind, real=real)
        return
    for one in plan.passes:
        seen = np.zeros(plan.modes_shape, int)
        slabs = 0
        for region in one.regions():
            part = seen[region]
            part += 1
            slabs += 1
            for axis in (*one.forward, *one.inverse):
                assert part.shape[axis] == plan.modes_shape[axis]
            assert all(n <= m for n, m in zip(part.shape, one.slab, strict=True))
        assert (seen == 1).all()
        assert slabs == one.slabs
        values = math.prod(
            n if a == plan.halved else m
            for a, (n, m) in enumerate(zip(shape, one.slab, strict=True))
        )
        ends = 8 * values if one.real_in or one.real_out else 0
        assert one.slab_bytes == 16 * math.prod(one.slab) + ends <= 16 * numbers
    long = sorted(axis for axis in (0, 1, 2) if shape[axis] > 1)
    for way in ("forward", "inverse"):
        along = sorted(itertools.chain.from_iterable(getattr(one, way) for one in plan.passes))
        wanted = kind in (way, "solve")
        assert along == ((long or [0]) if wanted else [])
    assert plan.passes[0].real_in == (real and kind != "inverse")
    assert plan.passes[-1].real_out == (real and kind != "forward")
    assert sum(one.turns for one in plan.passes) == (kind == "solve")


@given(LENGTHS, st.integers(1, 4000))
def test_pieces_are_the_contiguous_runs_of_the_slabs(shape, numbers):
    try:
        plan = plan_pencils(shape, 16, budget=16 * numbers)
    except BudgetError:
        return
    places = np.arange(math.prod(shape)).reshape(shape)
    for one in plan.passes:
        pieces = 0
        for region in one.regions():
            flat = places[region].ravel()
            pieces += 1 + int((np.diff(flat) != 1).sum())
        assert pieces == one.pieces


def test_a_field_that_fits_is_solved_in_one_pass():
    plan = plan_pencils((64, 64, 64), 16, budget=16 * 64**3)
    assert len(plan.passes) == 1
    assert plan.total_bytes == 2 * 16 * 64**3


def test_a_cube_of_four_budgets_is_transformed_in_two_passes_and_solved_in_three():
    size = 16 * 64**3
    forward = plan_pencils((64, 64, 64), 16, budget=size // 4, kind="forward")
    assert [len(one.forward) for one in forward.passes] in ([1, 2], [2, 1])
    solve = plan_pencils((64, 64, 64), 16, budget=size // 4)
    assert len(solve.passes) == 3
    assert solve.total_bytes == 6 * size
    assert solve.slab_bytes <= size // 4


def test_lines_that_are_long_are_cut_and_the_field_is_read_once():
    plan = plan_pencils((16, 16, 16, 100_000), 16, budget=2**27)
    assert len(plan.passes) == 1
    assert plan.passes[0].slab[:3] == (16, 16, 16)


def test_seeking_that_takes_longer_than_a_pass_is_avoided():
    """64 bytes in a piece would be 13 million pieces."""
    plan = plan_pencils((64, 64, 64, 100), 16, budget=2**24, kind="forward")
    assert len(plan.passes) == 2
    assert sum(one.pieces for one in plan.passes) < 10_000


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"budget": 63}, BudgetError, "takes 64. Pass budget=64 or more"),
        ({"budget": 0}, BudgetError, "positive"),
        ({"axes": (0, 0)}, PlanError, "different"),
        ({"axes": ()}, PlanError, "different"),
        ({"axes": (0, 3)}, PlanError, "count from 0"),
        ({"axes": (-1,)}, PlanError, "count from 0"),
        ({"kind": "back"}, PlanError, "back"),
        ({"itemsize": 4}, PlanError, "8 or 16"),
        ({"shape": (4, 0, 4)}, PlanError, "no cells"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused(arguments, error, message):
    given = {"shape": (4, 4, 4), "itemsize": 16, "budget": 10**6, **arguments}
    shape, itemsize = given.pop("shape"), given.pop("itemsize")
    with pytest.raises(error, match=message):
        plan_pencils(shape, itemsize, **given)
