"""A budget shared out between what is read, what is computed and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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
from stowplan.runs.loads import BUFFERS, MOST_READ, Load, Reads, cut_loads
from stowplan.runs.places import Place

__all__ = ["fit_loads"]

READ_SHARE = 6
"""A buffer takes at most one part in so many of a budget, so that most is left to batches."""
TRIES = 4
"""Times that rows are cut for one size of buffers."""

FitPart = Callable[[Columns, Plan, MemoryRequest | None, int | None], Plan]
"""Of a plan with all slots, or with one of them, by its number."""


def fit_loads(
    where: str,
    kernel: Kernel,
    columns: Columns,
    made: Plan,
    target: Place,
    request: MemoryRequest | None,
    fit_part: FitPart,
    *,
    rows_by_hand: bool,
    keep: bool,
) -> Plan:
    """Give a plan whose data are read load by load, all within the budget.

    Parameters
    ----------
    made
        Slots and items; rows are chosen here.
    fit_part
        Gives a plan the rows that a cache likes and a budget allows.
    rows_by_hand
        Whether these are given.
    keep
        Whether results are kept in memory, else on disk.

    Raises
    ------
    BudgetError
        Where one row that is read, computed and put away exceeds the budget.
    """
    split = fit_part(columns, made, None, None)
    if request is None or not columns.items or not split.batches:
        return split
    budget = resolved_budget(where, target, request)
    fit = _Fit(where, kernel, columns, made, split, request, budget, fit_part, rows_by_hand, keep)
    usable = usable_bytes(budget.bytes, target.adapter)
    most = min(MOST_READ, max((usable - fit.kept_bytes) // READ_SHARE, 1))
    least = max(fit.row_bytes)
    while True:
        try:
            return fit.planned(max(most, 1), ladder=target.adapter.compiles)
        except BudgetError as error:
            if most <= least:
                raise fit.refusal(error) from None
        most = max(most // 2, min(most, least))


@dataclass
class _Fit:
    """One plan, its budget, and what is read of it."""

    where: str
    kernel: Kernel
    columns: Columns
    made: Plan
    split: Plan
    request: MemoryRequest
    budget: Budget
    fit_part: FitPart
    rows_by_hand: bool
    keep: bool

    def __post_init__(self) -> None:
        self.reads = Reads(self.columns)
        sizes = [
            max((self.reads.bytes_of(np.array([item])) for item in _largest(self.split, slot)), default=0)
            for slot in range(len(self.split.slots))
        ]
        self.row_bytes = sizes
        self.kept_bytes = self._results(self.columns, self.split) if self.keep else 0

    def planned(self, most: int, *, ladder: bool) -> Plan:
        """Plan loads of so many bytes: the largest of each slot is fitted beside the buffers."""
        limits = [
            max(min(most // max(size, 1), rows), 1)
            for size, rows in zip(self.row_bytes, self.split.rows, strict=True)
        ]
        for _ in range(TRIES):
            limits = [
                max(limit, slot.get("rows", 1))
                for limit, slot in zip(limits, self.made.slots, strict=True)
            ]
            split = self.split
            if not self.rows_by_hand:
                split = split_chunks(self.made, ladder=ladder, max_rows=limits)
            loads = cut_loads(split, self.reads, most)
            largest: dict[int, Load] = {}
            for load in loads:
                slot = split.batches[load.batches[0]].slot
                if slot not in largest or load.bytes > largest[slot].bytes:
                    largest[slot] = load
            read = BUFFERS * max(load.bytes for load in loads)
            found = {slot: self._fitted(split, load, read) for slot, load in largest.items()}
            rows = {slot: max(plan.rows) for slot, (plan, _) in found.items()}
            if self.rows_by_hand or all(count >= split.rows[slot] for slot, count in rows.items()):
                return self._with_forecast(split, read, most, found)
            for slot, count in rows.items():
                limits[slot] = min(limits[slot], count)
        raise BudgetError("no number of rows was found that fits")

    def _fitted(self, split: Plan, load: Load, read: int) -> tuple[Plan, int]:
        """Fit the batches of a load beside what is read and kept; give what writing takes, too."""
        part = self.reads.part_without_data(self.kernel, split, load)
        (slot,) = {batch.slot for batch in part.plan.batches}
        own = replace(
            part.plan,
            slots=(self.made.slots[slot],),
            batches=tuple(replace(batch, slot=0) for batch in part.plan.batches),
        )
        written = 0 if self.keep else self._results(part.columns, own)
        left = self.budget.bytes - read - self.kept_bytes - written
        if left < 1:
            raise BudgetError(f"nothing is left beside {show_bytes(read)} that are read")
        given = self.request.budget is not None or self.request.peak is not None
        request = replace(self.request, budget=left) if given else self.request
        return self.fit_part(part.columns, own, request, slot), written

    def _with_forecast(
        self, split: Plan, read: int, most: int, found: dict[int, tuple[Plan, int]]
    ) -> Plan:
        memories = {slot: plan.memory for slot, (plan, _) in found.items() if plan.memory}
        written = max(size for _, size in found.values())
        beside = read + self.kept_bytes + written
        peaks: tuple[int, ...] = ()
        if all(memory.batch_bytes for memory in memories.values()):
            peaks = tuple(
                max(memories[slot].batch_bytes) if slot in memories else 0
                for slot in range(len(split.slots))
            )
        sources = tuple(dict.fromkeys(s for memory in memories.values() for s in memory.sources))
        held = max((memory.held_bytes for memory in memories.values()), default=0)
        idle = max((memory.idle_bytes for memory in memories.values()), default=0)
        in_flight = all(memory.in_flight for memory in memories.values())
        memory = Forecast(
            self.budget, beside + held, peaks, sources, beside + idle, in_flight, most
        )
        return replace(split, memory=memory)

    def refusal(self, error: BudgetError) -> BudgetError:
        """Say what one row takes that is read twice, computed and put away."""
        read = BUFFERS * max(self.row_bytes)
        kept = f", {show_bytes(self.kept_bytes)} for all results" if self.kept_bytes else ""
        cure = "keep results on disk with out=, " if self.kept_bytes else ""
        return BudgetError(
            f"{self.where}: the budget is {self.budget}. Reading one row ahead of another takes "
            f"{read} bytes{kept}, and beside these: {error} Give a larger budget, {cure}or cut "
            "items into smaller ones."
        )

    def _results(self, columns: Columns, plan: Plan) -> int:
        return measure_footprint(
            self.kernel, columns, plan, moved=False, wanted=None, traced=self.request.traced
        ).result_bytes


def _largest(plan: Plan, slot: int) -> list[int]:
    """Give the item of a slot with most padded rows, if it has any."""
    items = [batch.items[: batch.count] for batch in plan.batches if batch.slot == slot]
    if not items:
        return []
    held = np.concatenate(items)
    sizes = plan.lengths[held].astype(np.float64).prod(axis=1)
    return [int(held[np.argmax(sizes)])]
