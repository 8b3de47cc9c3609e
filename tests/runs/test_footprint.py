"""What a run holds beside its batches, counted by hand."""

from __future__ import annotations

import numpy as np

import stowplan as sp
from stowplan.runs.columns import bind
from stowplan.runs.footprint import measure_footprint


@sp.kernel("(n),()->(n),(),(3)", ragged="n")
def mixed(x, weight):
    """One output along n, one number, one vector."""
    return x, weight, weight[..., None] + np.zeros(3)


@sp.kernel("(n)->(n)", ragged="n")
def masked_line(x, *, mask):
    """One output along n."""
    return x * mask["n"]


@sp.kernel("(n)->()", ragged="n")
def masked(x, *, mask):
    """Takes a mask."""
    return (x * mask["n"]).sum(-1)


def footprint(
    kernel,
    sizes,
    *,
    wanted=None,
    widths=None,
    moved=False,
    in_place=False,
    straight=False,
    **options,
):
    count = len(sizes)
    data = {"x": sp.Ragged(np.zeros(sum(sizes)), sizes), "weight": np.zeros(count)}
    data = {name: data[name] for name in kernel.arguments}
    plan = sp.plan(kernel, data, **options)
    columns = bind("test", kernel, data)
    return measure_footprint(
        kernel, columns, plan, moved=moved, wanted=wanted, traced={}, widths=widths,
        in_place=in_place, straight=straight,
    )  # fmt: skip


def test_results_are_counted_once_and_indices_per_padded_place():
    found = footprint(mixed, [4] * 10, slots=1, rows=5)
    assert found.result_bytes == 8 * (40 + 10 + 30)
    # of n: row and whether it is real; of items: row. Nothing is padded, all is in order.
    assert found.index_bytes == (8 + 1) * 40 + 8 * 10
    assert found.row_inputs == (8 * (4 + 1),)
    assert found.row_outputs == (8 * (4 + 1 + 3),)
    assert found.held_bytes() == found.index_bytes + found.result_bytes
    assert found.held_beside() == [found.index_bytes, found.index_bytes + found.result_bytes // 2]
    assert found.gradient_bytes is None
    assert found.staged_bytes == 0


def test_padding_and_another_order_take_places_and_destinations():
    found = footprint(mixed, [4, 2, 4, 2], slots=[{"n": 2}, {"n": 4}], rows=2)
    padded, real = 2 * 2 + 2 * 4, 12
    order = 8 * real + 8 * 4  # of both kinds of outputs: items of a batch do not follow each other
    assert found.index_bytes == 9 * padded + 8 * 4 + order
    wide = footprint(mixed, [4, 3, 4, 4], slots=1, rows=4)
    assert wide.index_bytes == 9 * 16 + 8 * 4 + 8 * 15  # in order, but one place is padding


def test_rows_without_an_item_take_indices_too():
    found = footprint(mixed, [4] * 3, slots=1, rows=[2])
    assert found.index_bytes == 9 * 4 * 4 + 8 * 4 + 8 * (4 + 1)  # places in the second batch only


def test_masks_widths_and_moved_columns_count():
    found = footprint(masked, [4] * 6, slots=1, rows=3, moved=True)
    assert found.index_bytes == (9 + 1) * 24
    assert found.staged_bytes == 8 * 24
    assert found.result_bytes == 8 * 6
    assert footprint(masked, [4] * 6, slots=1, widths=(4,)).result_bytes == 4 * 6


def test_a_gradient_holds_results_cotangents_and_its_own():
    wanted = ((True, False), {})
    found = footprint(mixed, [4] * 10, slots=1, rows=5, wanted=wanted)
    plain = footprint(mixed, [4] * 10, slots=1, rows=5)
    assert found.gradient_bytes == 8 * 40
    assert found.index_bytes == plain.index_bytes + 8 * 40  # where rows of x are added
    assert found.held_bytes() == found.index_bytes + 8 * 40 + 3 * plain.result_bytes
    assert found.held_beside(4) == [found.index_bytes + 8 * 40 + 4 * plain.result_bytes] * 2
    first, second = found.held_beside(on_demand=True)  # zeros whose pages are not taken yet
    assert (first, second) == (found.held_bytes() - 8 * 40, found.held_bytes() - 8 * 20)


def test_pages_of_results_and_places_are_taken_as_rows_are_put_away():
    found = footprint(masked_line, [4, 3] * 4, slots=1, rows=4)
    gathered, real = (9 + 1) * 32, 14  # indices, whether they are real, a mask; rows of a batch
    assert found.index_bytes == gathered + 8 * 28
    assert found.held_beside() == [gathered, gathered + 8 * real + 8 * real]
    # the second batch: its padded outputs, its places, a copy of its real rows, all results
    assert found.idle_bytes(copied=()) == gathered + 8 * 16 + 8 * 28 + 8 * real + 8 * 28
    # with what it was computed from, which JAX has not let go of
    assert found.idle_bytes(copied=[0]) == found.idle_bytes(copied=()) + 8 * 16


def test_rows_that_nothing_pads_are_put_away_without_a_copy():
    found = footprint(masked_line, [4] * 8, slots=1, rows=4)
    assert found.idle_bytes(copied=()) == (9 + 1) * 32 + 8 * 16 + 8 * 32


def test_rows_in_order_go_straight_into_results():
    found = footprint(masked_line, [4, 3] * 4, slots=1, rows=4, straight=True)
    copied = footprint(masked_line, [4, 3] * 4, slots=1, rows=4)
    assert found.idle_bytes(copied=()) == copied.idle_bytes(copied=()) - 8 * 14
    assert found.held_beside() == copied.held_beside()
    apart = [4, 3, 3, 4] * 2
    slots = [{"n": 3}, {"n": 5}]  # neither in order, the second one padded
    found, copied = (
        footprint(masked_line, apart, slots=slots, rows=4, straight=straight)
        for straight in (True, False)
    )
    assert found.idle_bytes(copied=()) == copied.idle_bytes(copied=())


def test_gathering_in_place_takes_a_mask_of_the_padding():
    found = footprint(mixed, [4] * 10, slots=1, rows=5, in_place=True)
    assert found.row_gathered == (8 * 4 + 8,)  # a mask of x while it is filled, then the weight


def test_gathering_takes_the_last_column_twice():
    found = footprint(mixed, [4] * 10, slots=1, rows=5)
    assert found.row_gathered == (8 * 4 * 2,)  # x, then x and twice the weight: no more
