"""A budget shared out between what is read, what is computed and what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from stowplan.declaration import Kernel
from stowplan.errors import BudgetError
from stowplan.memory import Budget, show_bytes
from stowplan.peaks import Forecast
from stowplan.planners.batches import Plan
from stowplan.planners.chunks import split_chunks
from stowplan.runs.budgeting import MemoryRequest, resolved_budget, usable_bytes
from stowplan.runs.columns import Columns
from stowplan.runs.footprint import measure_footprint
from stowplan.runs.loads import (
    MOST_READ,
    READ_SECONDS,
    Load,
    Reads,
    buffers_for,
    cut_loads,
    most_together,
    row_seconds,
)
from stowplan.runs.places import Place

__all__ = ["fit_loads"]

READ_SHARE = 2
"""All buffers take at most one part in so many of a budget, so that most is left to batches."""
WIDE_SHARE = 1.15
"""... and up to this where batches need no more than that leaves: larger reads are fewer pieces."""
LEAST_LOADS = 16
"""Data are read in as many loads, unless they are small, so that reading and computing overlap."""
SMALL_READ = 2**22
"""A load of so many bytes is not cut for that."""
THREAD_BYTES = 5 * 2**17
"""Stack and heap of each thread that reads, computes or writes, unless the budget is small."""
BATCH_BYTES = 2**10
"""A batch in a plan: indices, views, futures; likewise."""
SMALL_SHARE = 64
"""Each of these takes no more than one part in so many of a budget."""
LOOSE_SHARES = 4
"""Such parts, at most, where one batch is computed at once: three threads, and a plan."""
TRIES = 4
"""Times that rows are cut for one size of buffers."""

FitPart = Callable[[Columns, Plan, MemoryRequest | None, Any], Plan]
"""Gives a plan the rows that a cache likes and a budget allows, or rows by hand."""


def fit_loads(
    where: str,
    kernel: Kernel,
    columns: Columns,
    made: Plan,
    target: Place,
    request: MemoryRequest | None,
    fit_part: FitPart,
    *,
    rows: Any,
    keep: bool,
    fill: bool,
) -> Plan:
    """Give a plan whose data are read load by load, all within the budget.

    Parameters
    ----------
    made
        Slots and items; rows are chosen here.
    rows
        By hand: one number, or one for each slot.
    keep
        Whether results are kept in memory, else on disk.
    fill
        Whether batches take as many rows as the budget allows, not as a cache likes.

    Raises
    ------
    BudgetError
        Where one row that is read, computed and put away exceeds the budget.
    """
    split = fit_part(columns, made, None, rows)
    if request is None or not columns.items or not split.batches:
        return split
    budget = resolved_budget(where, target, request)
    usable = usable_bytes(budget.bytes, target.adapter)
    fit = _Fit(where, kernel, columns, made, split, request, target, budget, fit_part, rows, keep)
    return fit.filled(usable) if fill else fit.cached(usable)


def loose_bytes(budget: int, together: int, batches: int) -> int:
    """Bytes that threads and plans take beside arrays, in a budget that gives them so much.

    >>> loose_bytes(2**30, 2, 100), loose_bytes(64, 2, 100)
    (2723840, 5)
    """
    most = budget // SMALL_SHARE
    threads = together + 2  # one reads, one writes
    return min(THREAD_BYTES, most) * threads + min(BATCH_BYTES * batches, most)


class _Fitted(NamedTuple):
    """The largest load of a slot, planned as a run of its own."""

    slot: int
    plan: Plan
    written: int  # bytes of its results while they are put on disk
    rows: int  # that it is to have

    @property
    def plan_rows(self) -> int:
        """Rows that it has within the budget."""
        return max(self.plan.rows)


@dataclass
class _Fit:
    """One plan, its budget, and what is read of it."""

    where: str
    kernel: Kernel
    columns: Columns
    made: Plan
    split: Plan
    request: MemoryRequest
    target: Place
    budget: Budget
    fit_part: FitPart
    rows: Any
    keep: bool

    def __post_init__(self) -> None:
        self.reads = Reads(self.columns)
        self.row_bytes = [_largest_read(self.reads, self.split, slot) for slot in self._slots()]
        self.kept_bytes = self._results(self.columns, self.split) if self.keep else 0
        kind = self.target.adapter.kind_of(self.target.device)
        self.on_host = kind == "cpu"
        self.together = 1

    @property
    def buffers(self) -> int:
        """Buffers that count: those of other devices take memory of the host alone."""
        return buffers_for(self.together) if self.on_host else 0

    @property
    def loose_bytes(self) -> int:
        return loose_bytes(self.budget.bytes, self.together, len(self.split.batches))

    def cached(self, usable: int) -> Plan:
        """Plan batches that a cache likes, read in loads of many, as many at once as fit."""
        for together in range(most_together(self.target, self._slowness()), 1, -1):
            self.together = together
            try:
                return self._cached(usable)
            except BudgetError:
                continue
        self.together = 1
        return self._cached(usable)

    def _cached(self, usable: int) -> Plan:
        all_bytes = self.reads.bytes_of(np.arange(self.columns.items))
        liked = min(MOST_READ, max(all_bytes // LEAST_LOADS, SMALL_READ))
        each = max((usable - self.kept_bytes) // buffers_for(self.together), 1)
        plan = self._halved(min(liked, max(each // READ_SHARE, 1)))
        wide = min(liked, int(each / WIDE_SHARE))
        if plan.memory is None or wide <= plan.memory.read_bytes:
            return plan
        if wide < 2 * min(self.row_bytes) and self._is_one_by_one(plan, wide):
            return plan  # a second row is too many: nothing would be wider
        try:
            wider = self._planned(wide)
        except BudgetError:
            return plan
        return wider if len(wider.batches) <= len(plan.batches) else plan

    def _slowness(self) -> float:
        """How many times as long as reading the computation is predicted to take."""
        if not self.kernel.knows_work and self.split.costs is None:
            return math.inf
        each = row_seconds(self.split)
        computing = sum(each[batch.slot] * batch.count for batch in self.split.batches)
        read = self.reads.bytes_of(np.arange(self.columns.items)) * READ_SECONDS
        return computing / read if read else math.inf

    def _is_one_by_one(self, plan: Plan, most: int) -> bool:
        """Whether loads of so many bytes hold one item each."""
        items = self.columns.items
        return len(plan.batches) == items == len(cut_loads(plan, self.reads, most))

    def _halved(self, most: int) -> Plan:
        """Plan loads of so many bytes, or of half as many as often as needed."""
        least = max(self.row_bytes)
        while True:
            try:
                return self._planned(max(most, 1))
            except BudgetError as error:
                if most <= least:
                    raise self._refusal(error) from None
            most = max(most // 2, min(most, least))

    def filled(self, usable: int) -> Plan:
        """Plan batches of as many rows as fit, each read by itself."""
        ones = [1] * len(self.made.slots)
        try:
            first = self._exactly(ones)
        except BudgetError as error:
            raise self._refusal(error) from None
        counts = [0] * len(ones)
        for batch in self.split.batches:
            counts[batch.slot] += batch.count
        found = list(ones)
        for slot, count in enumerate(counts):
            if count > 1:
                found[slot] = self._most_rows(slot, count, first, usable)
        plan = self._exactly(found)
        if self.target.adapter.compiles:
            return plan
        batches = tuple(replace(batch, items=batch.items[: batch.count]) for batch in plan.batches)
        return replace(plan, batches=batches)

    def _most_rows(self, slot: int, count: int, first: Plan, usable: int) -> int:
        """Find the most rows of a slot that fit, beginning with where a line would lead."""

        def tried(rows: int) -> int | None:
            limits = [1] * len(self.made.slots)
            limits[slot] = rows
            try:
                memory = self._exactly(limits).memory
            except BudgetError:
                return None
            return memory.peak_bytes if memory is not None else 0

        one = (first.memory.peak_bytes if first.memory is not None else None) or 0
        two = tried(2)
        if two is None:
            return 1
        low, high = 2, count
        guess = low + max(usable - two, 0) // max(two - one, 1)
        failed = count + 1
        while low < high and low + 1 < failed:
            guess = min(max(guess, low + 1), high, failed - 1)
            if tried(guess) is None:
                failed, guess = guess, max(low + (guess - low) // 2, guess - 1)
            else:
                low, guess = guess, guess + 1
        return low

    def _slots(self) -> range:
        return range(len(self.split.slots))

    def _planned(self, most: int) -> Plan:
        """Plan loads of so many bytes: the largest of each slot is fitted beside the buffers."""
        limits = [
            max(min(most // max(size, 1), rows), slot.get("rows", 1))
            for size, rows, slot in zip(
                self.row_bytes, self.split.rows, self.made.slots, strict=True
            )
        ]
        for _ in range(TRIES):
            split = self.split
            if self.rows is None:
                ladder = self.target.adapter.compiles
                split = split_chunks(self.made, ladder=ladder, max_rows=limits)
            found, largest = self._fitted(split, most, None)
            if self.rows is not None or all(one.plan_rows >= one.rows for one in found):
                return self._with_forecast(split, most, largest, found)
            for one in found:
                if one.plan_rows < one.rows:
                    carried = self.made.slots[one.slot].get("rows", 1)
                    limits[one.slot] = max(min(limits[one.slot], one.plan_rows), carried)
        raise BudgetError("no number of rows was found that fits")

    def _exactly(self, rows: Sequence[int]) -> Plan:
        """Plan batches of so many rows in each slot, each read by itself."""
        split = split_chunks(self.made, rows=list(rows))
        found, largest = self._fitted(split, 0, rows)
        return self._with_forecast(split, largest, largest, found)

    def _fitted(
        self, split: Plan, most: int, rows: Sequence[int] | None
    ) -> tuple[list[_Fitted], int]:
        """Fit the largest load of each slot; give also the bytes of the largest of all.

        Batches that are full may be views of what was read, others are copies, so that the largest
        load with one of these counts, too.
        """
        by_hand = self.rows is not None or rows is not None
        largest: dict[tuple[int, bool], Load] = {}
        loads = cut_loads(split, self.reads, most)
        for load in loads:
            key = split.batches[load.batches[0]].slot, _is_copied(split, load)
            if key not in largest or load.bytes > largest[key].bytes:
                largest[key] = load
        most_read = max(load.bytes for load in loads)
        read = self._read_bytes(most_read)
        found = []
        for (slot, copied), load in largest.items():
            other = largest.get((slot, not copied))
            wanted = split.rows[slot]
            if other is not None and other.bytes >= load.bytes:
                wanted = max(len(split.batches[number].items) for number in load.batches)
            plan, written = self._fitted_load(split, load, read, by_hand=by_hand)
            found.append(_Fitted(slot, plan, written, wanted))
        return found, most_read

    def _read_bytes(self, largest: int) -> int:
        """Bytes of the buffers, and of what stores hold beside the rows that they give."""
        return self.buffers * self.reads.room_for(largest) + self.reads.beside

    def _fitted_load(
        self, split: Plan, load: Load, read: int, *, by_hand: bool
    ) -> tuple[Plan, int]:
        """Fit the batches of a load beside what is read and kept; give what writing takes, too."""
        part = self.reads.part_without_data(self.kernel, split, load)
        (slot,) = {batch.slot for batch in part.plan.batches}
        own = replace(
            part.plan,
            slots=(self.made.slots[slot],),
            batches=tuple(replace(batch, slot=0) for batch in part.plan.batches),
        )
        written = 0 if self.keep else self._results(part.columns, own)
        left = self.budget.bytes - read - self.kept_bytes - written - self.loose_bytes
        if left < 1:
            raise BudgetError("nothing is left")
        given = self.request.budget is not None or self.request.peak is not None
        left //= self.together
        aligned = self.reads.lie_aligned(split, load)
        request = replace(self.request, buffered=True, aligned=aligned)
        if given:
            request = replace(request, budget=left)
        exactly = [len(split.batches[load.batches[0]].items)] if by_hand else None
        return self.fit_part(part.columns, own, request, exactly), written

    def _with_forecast(
        self, split: Plan, most: int, largest: int, found: Sequence[_Fitted]
    ) -> Plan:
        memories = {
            one.slot: one.plan.memory for one in sorted(found, key=_peak) if one.plan.memory
        }
        written = max(one.written for one in found)
        beside = self._read_bytes(largest) + self.kept_bytes + written + self.loose_bytes
        peaks: tuple[int, ...] = ()
        if all(memory.batch_bytes for memory in memories.values()):
            peaks = tuple(
                max(memories[slot].batch_bytes) if slot in memories else 0 for slot in self._slots()
            )
        sources = tuple(dict.fromkeys(s for memory in memories.values() for s in memory.sources))
        held = self.together * max((memory.held_bytes for memory in memories.values()), default=0)
        idle = self.together * max((memory.idle_bytes for memory in memories.values()), default=0)
        in_flight = all(memory.in_flight for memory in memories.values())
        memory = Forecast(
            self.budget, beside + held, peaks, sources, beside + idle, in_flight, max(most, 1),
            self.together,
        )  # fmt: skip
        return replace(split, memory=memory)

    def _refusal(self, error: BudgetError) -> BudgetError:
        """Say what one row takes that is read ahead, computed and put away."""
        read = self.buffers * max(self.row_bytes)
        kept = f", all results {show_bytes(self.kept_bytes)}" if self.kept_bytes else ""
        planned = "plan with on_disk=True and " if self.where == "plan" else ""
        cure = f"{planned}keep results on disk with out=, " if self.kept_bytes else ""
        advice = "Give a larger budget"
        if error.missing:  # what lies loose grows with the budget: see `loose_bytes`
            missing = -(
                -error.missing * self.together * SMALL_SHARE // (SMALL_SHARE - LOOSE_SHARES)
            )
            advice = f"Give at least budget={self.budget.bytes + missing}"
        return BudgetError(
            f"{self.where}: the budget is {self.budget}. Buffers of one row take {read} "
            f"bytes{kept}, and beside these {error.needs or error}. {advice}, {cure}or cut items "
            "into smaller ones."
        )

    def _results(self, columns: Columns, plan: Plan) -> int:
        return measure_footprint(
            self.kernel, columns, plan, moved=False, wanted=None, traced=self.request.traced
        ).result_bytes


def _peak(load: _Fitted) -> int:
    """Peak of a load in bytes; 0 where it was not probed."""
    return (load.plan.memory.peak_bytes if load.plan.memory is not None else None) or 0


def _is_copied(plan: Plan, load: Load) -> bool:
    """Whether a batch of a load has padding, or takes items in another order than they are read."""
    batches = [plan.batches[number] for number in load.batches]
    if any(batch.count < len(batch.items) for batch in batches):
        return True
    items = np.concatenate([batch.items for batch in batches])
    full = (plan.lengths[items] == batches[0].capacity).all()
    return not full or bool((np.diff(items) < 1).any())


def _largest_read(reads: Reads, plan: Plan, slot: int) -> int:
    """Bytes of the item of a slot with most padded rows, 0 where there is none."""
    items = [batch.items[: batch.count] for batch in plan.batches if batch.slot == slot]
    if not items:
        return 0
    held = np.concatenate(items)
    sizes = [math.prod(lengths) for lengths in plan.lengths[held].tolist()]
    return reads.bytes_of(held[[int(np.argmax(sizes))]])
