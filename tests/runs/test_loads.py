"""Laws of loads: every batch is read once, no load and no peak is larger than planned."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.adapters.eager_memory import traced_peak
from stowplan.host_memory import ALIGNMENT, aligned_buffer
from stowplan.runs.columns import bind
from stowplan.runs.loads import MOST_READ, Reads, buffers_for, cut_loads
from stowplan.runs.places import find_places
from stowplan.runs.probes import make_probes
from stowplan.runs.stored_columns import ItemReader, runs_of, stand_in
from stowplan.stores.sliced import SlicedArray

ROW = 64
"""Bytes of a row of the first column."""


class Lazy:
    """Rows that are their own numbers; what is read is noted."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype, self.reads = shape, np.dtype("f8"), []

    def __getitem__(self, index: Any) -> np.ndarray:
        start, stop, _ = (index[0] if isinstance(index, tuple) else index).indices(self.shape[0])
        self.reads.append((start, stop))
        rows = np.arange(start, stop, dtype=float).reshape(-1, *[1] * (len(self.shape) - 1))
        return np.broadcast_to(rows, (stop - start, *self.shape[1:])).copy()


@sp.kernel("(n,8),(3)->(n),()", ragged="n", fill={"x": 0.0}, memory="200 * n + 50")
def summed(x, y):
    """Sums of rows, and of items."""
    rows = x.sum(axis=-1)
    return rows, rows.sum(axis=-1) + y.sum(axis=-1)


def columns_of(sizes: list[int]) -> tuple[list[Any], Any]:
    x = sp.Ragged.from_layout(SlicedArray(Lazy((sum(sizes), 8))), sp.Ragged(
        np.zeros(sum(sizes)), sizes).layout)  # fmt: skip
    data = [x, SlicedArray(Lazy((len(sizes), 3)))]
    return data, bind("run", summed, data, on_disk=True)


SETS = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any)


@settings(max_examples=80, deadline=None)
@given(
    sizes=SETS, slots=st.sampled_from([1, 2, 3, "exact"]), rows=st.integers(1, 6),
    most=st.integers(0, 4000),
)  # fmt: skip
def test_every_batch_is_in_one_load_and_no_load_is_larger_than_asked(sizes, slots, rows, most):
    data, columns = columns_of(sizes)
    plan = sp.plan(summed, data, slots=min(slots, len(set(sizes))) if slots != "exact" else slots,
                   rows=rows)  # fmt: skip
    reads = Reads(columns)
    loads = cut_loads(plan, reads, most)
    batches = [number for load in loads for number in load.batches if plan.batches[number].count]
    assert batches == [n for n, batch in enumerate(plan.batches) if batch.count]
    for load in loads:
        held = [plan.batches[n] for n in load.batches if plan.batches[n].count]
        items = sorted(i for batch in held for i in batch.items[: batch.count].tolist())
        assert load.items.tolist() == items
        assert len({batch.slot for batch in held}) == 1
        x, y = sum(sizes[i] for i in items) * ROW, len(items) * 24
        assert load.bytes == sum(math.ceil(size / ALIGNMENT) * ALIGNMENT for size in (x, y))
        alone = [reads.bytes_of(batch.items[: batch.count]) for batch in held]
        assert sum(alone) <= max(most, *alone[:1])
    for one, other in pairwise(loads):  # as few as can be
        first = plan.batches[other.batches[0]]
        together = one.bytes + reads.bytes_of(first.items[: first.count])
        same_slot = plan.batches[one.batches[0]].slot == first.slot
        assert not same_slot or together + ALIGNMENT * 2 * len(one.batches) > most


@settings(max_examples=50, deadline=None)
@given(sizes=SETS, rows=st.integers(1, 6), most=st.integers(0, 4000))
def test_what_is_read_is_what_items_hold(sizes, rows, most):
    data, columns = columns_of(sizes)
    plan = sp.plan(summed, data, rows=rows)
    reads = Reads(columns)
    starts = np.cumsum([0, *sizes])
    for load in cut_loads(plan, reads, most):
        buffer = np.full(reads.room_for(load.bytes), 255, np.uint8)
        x, y = reads.fill(load, buffer)
        wanted = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in load.items])
        np.testing.assert_array_equal(x, np.repeat(wanted[:, None], 8, axis=1))
        np.testing.assert_array_equal(y[:, 0], load.items)
        assert all(np.shares_memory(part, buffer) for part in (x, y) if part.size)
        assert not np.shares_memory(x, y)
        addresses = [part.__array_interface__["data"][0] for part in (x, y) if part.size]
        assert all((a - buffer.__array_interface__["data"][0]) % ALIGNMENT == 0 for a in addresses)


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([3, 8]), min_size=1, max_size=40), rows=st.integers(1, 9),
    most=st.integers(0, 30000),
)  # fmt: skip
def test_batches_that_lie_aligned_begin_where_they_are_said_to(sizes, rows, most):
    sizes.sort()  # so that batches of the same size lie end to end
    data, columns = columns_of(sizes)
    plan = sp.plan(summed, data, rows=rows, slots="exact")
    reads = Reads(columns)
    for load in cut_loads(plan, reads, most):
        batches = [plan.batches[number] for number in load.batches]
        held = [batch.items[: batch.count] for batch in batches]
        x, y = reads.fill(load, aligned_buffer(reads.room_for(load.bytes)))
        counts = np.asarray(sizes)[load.items]
        starts = [int(np.searchsorted(load.items, items[0])) for items in held]
        offsets = [x.ctypes.data + int(counts[:start].sum()) * ROW for start in starts]
        offsets += [y.ctypes.data + start * 24 for start in starts]
        aligned = all(offset % ALIGNMENT == 0 for offset in offsets)
        assert reads.lie_aligned(plan, load) == aligned


def test_columns_in_memory_lie_anywhere():
    sizes = [8, 8, 8]
    (x, _), _ = columns_of(sizes)
    data = [x, np.zeros((3, 3))]
    plan = sp.plan(summed, data, rows=3)
    reads = Reads(bind("run", summed, data, on_disk=True))
    (load,) = cut_loads(plan, reads, MOST_READ)
    assert not reads.lie_aligned(plan, load)


@settings(max_examples=30, deadline=None)
@given(sizes=SETS, slots=st.sampled_from([1, 2]), kilobytes=st.integers(8, 200), keep=st.booleans())
def test_a_plan_stays_within_its_budget_or_is_refused_with_one_that_is_enough(
    sizes, slots, kilobytes, keep
):
    data, columns = columns_of(sizes)
    budget = kilobytes * 1024
    how: dict[str, Any] = {"slots": min(slots, len(set(sizes))), "on_disk": not keep}
    try:
        plan = sp.plan(summed, data, budget=budget, peak=(512, 40 * 64), **how)
    except sp.BudgetError:
        sp.plan(summed, data, budget=budget * 64, peak=(512, 40 * 64), **how)
        return
    memory = plan.memory
    assert memory is not None
    assert memory.peak_bytes is not None
    assert memory.peak_bytes <= budget
    reads = Reads(columns)
    loads = cut_loads(plan, reads, memory.read_bytes)
    largest = max(load.bytes for load in loads)
    assert all(load.bytes <= memory.read_bytes for load in loads if len(load.batches) > 1)
    rest = max(memory.batch_bytes)
    kept = sum(sizes) * 8 + 8 * len(sizes) if keep else 0
    buffers, at_once = buffers_for(memory.together), memory.together
    assert buffers * largest + at_once * rest + kept <= memory.peak_bytes


def test_batches_of_nothing_that_is_read_are_loads_of_their_own():
    data = [sp.Ragged(np.zeros((6, 8)), [1, 2, 3]), np.zeros((3, 3))]
    plan = sp.plan(summed, data, rows=1)
    loads = cut_loads(plan, Reads(bind("run", summed, data, on_disk=True)), MOST_READ)
    assert [load.bytes for load in loads] == [0] * 3


def test_a_load_takes_no_more_than_a_second_as_predicted():
    sizes = [4] * 12
    data, columns = columns_of(sizes)
    slow = sp.Costs(work_seconds=0.3 / summed_work(4), launch_seconds=0, compile_seconds=0)
    plan = sp.plan(summed, data, rows=1, costs=slow)
    loads = cut_loads(plan, Reads(columns), MOST_READ)
    assert [len(load.items) for load in loads] == [3] * 4


def summed_work(n: int) -> float:
    data, _ = columns_of([n])
    plan = sp.plan(summed, data)
    return float(plan.measure.cost(np.array([[n]], np.int64))[0])


def test_some_batches_alone_are_cut_to_loads_of_these():
    data, columns = columns_of([2] * 9)
    plan = sp.plan(summed, data, rows=1)
    (load,) = cut_loads(plan, Reads(columns), 0, [4])
    assert load.items.tolist() == [4]
    assert load.batches == range(4, 5)


def test_items_that_lie_end_to_end_are_read_at_once():
    source = Lazy((20, 8))
    stored = SlicedArray(source)
    sizes = [3, 0, 2, 5, 4, 6]
    column = sp.Ragged.from_layout(stand_in((20, 8), "f8"), sp.Ragged(np.zeros(20), sizes).layout)
    reader = ItemReader(stored, column)
    into = np.empty((12, 8))
    reader.read(np.array([0, 1, 2, 3]), into[:10])
    assert source.reads == [(0, 10)]
    source.reads.clear()
    reader.read(np.array([0, 2, 5]), np.empty((11, 8)))
    assert source.reads == [(0, 5), (14, 20)]  # an item without rows is no gap


@given(places=st.lists(st.integers(0, 60), unique=True).map(sorted))
def test_runs_are_consecutive_places(places):
    runs = runs_of(np.array(places, np.int64))
    assert [place for start, stop, _ in runs for place in range(start, stop)] == places
    assert all(places[first] == start for start, _, first in runs)
    assert all(one[1] < other[0] for one, other in pairwise(runs))


@pytest.mark.parametrize("shape", [(0,), (5,), (2, 0, 3), (10**6, 10**6)])
def test_stand_ins_take_no_memory(shape):
    found = stand_in(shape, np.complex64)
    assert (found.shape, found.dtype) == (shape, np.complex64)
    assert not any(found.strides) or not found.size


def test_rows_to_spare_are_copies_of_what_was_read(tmp_path):
    """Five items in rows of three: the second load has a row to spare, and is no view."""

    @sp.kernel("(4096)->()")
    def first(x):
        return x[..., 0]

    np.save(tmp_path / "x.npy", np.zeros((5, 4096)))
    size = 4096 * 8
    spare, full = (
        sp.plan(first, {"x": str(tmp_path / "x.npy")}, rows=rows, budget="1 GB") for rows in (3, 5)
    )
    assert spare.memory is not None
    assert full.memory is not None
    assert max(spare.memory.batch_bytes) >= 3 * size
    assert max(full.memory.batch_bytes) < size


@sp.kernel("(n,8),(n),(3)->(n)", ragged="n", fill={"x": 0.0, "w": 2.0})
def weighed(x, w, y):
    """Rows by weight."""
    return x.sum(axis=-1) * w + y.sum(axis=-1)[..., None]


@pytest.mark.parametrize("sizes", [[5, 9], [9, 9]])
def test_what_lies_on_disk_is_probed_like_zeros_in_memory(sizes):
    total, items = sum(sizes), len(sizes)
    layout = sp.Ragged(np.zeros(total), sizes).layout
    shapes = {"x": (total, 8), "w": (total,), "y": (items, 3)}

    def probed(make):
        data = {
            name: make(shape) if name == "y" else sp.Ragged.from_layout(make(shape), layout)
            for name, shape in shapes.items()
        }
        columns = bind("plan", weighed, data, on_disk=True)
        made = sp.plan(weighed, data, slots=1, rows=2)
        place, _ = find_places("plan", [np.zeros(1)], None, None)
        (probe,) = make_probes("plan", weighed, columns, made, place, place, {}, {}, None)
        return probe.arguments

    on_disk = probed(lambda shape: SlicedArray(Lazy(shape)))
    twos = probed(lambda shape: np.broadcast_to(2.0, shape))  # no stand-ins, though of no memory
    assert twos[0].max() == twos[0][0, 0, 0] == 2
    for found, wanted in zip(on_disk, probed(np.zeros), strict=True):
        np.testing.assert_array_equal(found, wanted, strict=True)
        assert found.flags.c_contiguous


def test_a_probe_of_what_lies_on_disk_holds_one_item_and_no_index_of_it():
    rows = 1 << 18  # of 64 bytes
    column = sp.Ragged.from_layout(
        SlicedArray(Lazy((4 * rows, 8))), sp.Ragged(np.zeros(4 * rows), [rows] * 4).layout
    )

    @sp.kernel("(n,8)->()", ragged="n", fill={"x": 0.0})
    def largest(x):
        return x.max(axis=(-2, -1))

    peak, _ = traced_peak(lambda: sp.plan(largest, [column], rows=1, budget="1 GB"))
    assert rows * 64 <= peak < 1.1 * rows * 64


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_views_of_what_was_read_count_in_its_buffers(tmp_path, framework, load_framework):
    """Beside the buffers there is no copy; where there is padding JAX has two, others one."""
    load_framework(framework)

    @sp.kernel("(n)->()")
    def first(x):
        return x[..., 0]

    size = 2**24  # JAX computes no two batches of so much at once
    shape = (10, size // 4)
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape)  # takes no disk
    spare, full = (
        sp.plan(first, {"x": str(tmp_path / "x.npy")}, rows=rows, budget="4 GB", on=framework)
        for rows in (3, 5)
    )
    assert spare.memory is not None
    assert full.memory is not None
    assert max(full.memory.batch_bytes) < size
    assert max(spare.memory.batch_bytes) >= (6 if framework == "jax" else 3) * size


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_small_load_of_copies_counts_beside_a_large_one_of_views(
    tmp_path, framework, load_framework
):
    load_framework(framework)

    @sp.kernel("(n)->()", ragged="n")
    def first(x):
        return x[..., 0]

    sizes = [2**20] * 8 + [2**20 - 1] * 4  # full ones, then a load that reads less and is padded
    np.save(tmp_path / "x.npy", np.zeros(sum(sizes)))
    column = sp.Ragged.from_layout(np.load(tmp_path / "x.npy", mmap_mode="r"), sp.Ragged(
        np.zeros(sum(sizes), np.int8), sizes).layout)  # fmt: skip
    plan = sp.plan(first, {"x": column}, slots=1, rows=4, budget="4 GB", on=framework)
    assert plan.memory is not None
    assert max(plan.memory.batch_bytes) >= 4 * 2**23
