"""What an iteration holds beside its rows at work, counted by hand."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import stowplan as sp
from stowplan.runs.columns import bind
from stowplan.runs.footprint import Footprint, measure_footprint


@sp.kernel("(n),()->(n),()", ragged="n")
def both(x, weight):
    """One output along n, one number."""
    return x, weight


def footprint(sizes: list[int], *, on_demand: bool = True, **options) -> tuple[sp.Plan, Footprint]:
    data = {"x": sp.Ragged(np.zeros(sum(sizes)), sizes), "weight": np.zeros(len(sizes))}
    plan = sp.plan(both, data, **options)
    found = measure_footprint(
        both, bind("test", both, data), plan, moved=False, wanted=None, traced={},
        in_place=True, rounds=True, on_demand=on_demand,
    )  # fmt: skip
    return plan, found


def test_rows_that_come_and_go_take_indices_that_are_not_kept():
    _, found = footprint([4, 3] * 4, slots=1, rows=4)
    assert found.rounds is not None
    assert found.index_bytes == 0
    indices = (8 + 1) * 4 + 8
    assert found.rounds.row_filled == (indices + max(found.row_gathered[0], 2 * 8 * 4),)
    kept, places, going, found_on_the_way = 8 * 4 + 8, 8 * 4, 8 * 4, 8 * 4
    assert found.rounds.row_put_away == (kept + places + going + found_on_the_way,)


def test_results_take_all_pages_at_once_where_they_are_on_a_device():
    _, found = footprint([4, 3] * 4, slots=1, rows=4, on_demand=False)
    assert found.held_beside() == [found.result_bytes] * 2


@given(st.lists(st.integers(1, 6), min_size=1, max_size=7), st.integers(1, 3), st.integers(1, 2))
def test_no_choice_of_rows_at_work_leaves_more_results_put_away(sizes, rows, slots):
    """Slots are finished one after another; any items of a slot may be the last at work."""
    plan, found = footprint(sizes, slots=slots, rows=rows)
    item_bytes = [8 * size + 8 for size in sizes]
    done = 0
    for slot in range(len(plan.slots)):
        batches = [batch for batch in plan.batches if batch.slot == slot]
        items = [int(item) for batch in batches for item in batch.items[: batch.count]]
        at_work = min(max((len(batch.items) for batch in batches), default=0), len(items))
        total = sum(item_bytes[item] for item in items)
        most = max(
            total - sum(item_bytes[item] for item in chosen)
            for chosen in itertools.combinations(items, at_work)
        )
        assert found.rounds is not None
        assert found.rounds.results[slot] == done + most
        done += total
    assert done == found.result_bytes
