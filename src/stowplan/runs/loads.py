"""Batches whose data are read together, and a budget shared out between reading and computing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.adapters.intra_op import usable_cores
from stowplan.declaration import Kernel
from stowplan.planners.batches import Plan
from stowplan.planners.cost import Costs
from stowplan.runs.columns import Columns, check_indices
from stowplan.runs.pace import worth_at_once
from stowplan.runs.parts import Part, part_of
from stowplan.runs.places import Place
from stowplan.runs.stored_columns import ItemReader, stand_in
from stowplan.stores.direct import BLOCK_BYTES, LEAST_BYTES

__all__ = [
    "MOST_READ",
    "READ_SECONDS",
    "Load",
    "Reads",
    "buffers_for",
    "cut_loads",
    "most_together",
    "row_seconds",
]

MOST_READ = 2**26
"""Bytes that are read together at most: larger reads are no faster."""
MOST_SECONDS = 1.0
"""Predicted time of what is read together."""
READ_SECONDS = 2e-10
"""Of a byte, from memory where the system holds the file."""
MOST_TOGETHER = 4
"""Loads that are computed at once at most: more are done sooner than they are read."""


def buffers_for(together: int) -> int:
    """Count the buffers for so many loads computed at once: one more is filled meanwhile."""
    return together + 1


def most_together(target: Place, slowness: float) -> int:
    """Say how many loads may be computed at once: one for each core, up to a few.

    Computing takes `slowness` times as long as reading, see `worth_at_once`. Most frameworks have
    threads, or a device, of their own.
    """
    if not target.adapter.one_core:
        return 1
    return worth_at_once(min(usable_cores(), MOST_TOGETHER), slowness, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """Consecutive batches of a plan, all of one slot, whose data are read together."""

    batches: range
    items: NDArray[np.intp]  # rising
    bytes: int


class Reads:
    """What of each column is read from where; columns in memory take no bytes."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        sources = columns.sources or (None,) * len(columns.values)
        self.readers = [
            None if source is None else ItemReader(source, column)
            for source, column in zip(sources, columns.values, strict=True)
        ]

    def bytes_of(self, items: NDArray[np.intp]) -> int:
        """Bytes of some items in a buffer."""
        return sum(reader.bytes_of(items) for reader in self.readers if reader is not None)

    def room_for(self, size: int) -> int:
        """Bytes of a buffer for items of so many, each column where its file is read fastest."""
        if size < LEAST_BYTES:
            return size
        return size + BLOCK_BYTES * sum(reader is not None for reader in self.readers)

    def lie_aligned(self, plan: Plan, load: Load) -> bool:
        """Whether batches of a load that lie end to end all begin at a multiple of `ALIGNMENT`."""
        batches = [plan.batches[number] for number in load.batches[:-1]]
        return all(
            reader is not None
            and all(reader.ends_aligned(batch.items[: batch.count]) for batch in batches)
            for reader in self.readers
        )

    @property
    def beside(self) -> int:
        """Bytes that a read takes beside the rows that are asked for, such as a chunk."""
        from stowplan.stores.stored import reading_bytes

        return sum(reading_bytes(r.source) for r in self.readers if r is not None)

    def fill(self, load: Load, buffer: NDArray[np.uint8]) -> list[Any]:
        """Read the items of a load into a buffer; give the flat rows of each stored column."""
        found: list[Any] = []
        place = 0
        for reader in self.readers:
            values = None if reader is None else reader.where_it_is(load.items)
            if reader is not None and values is None:
                place += reader.lead(load.items, buffer[place:])
                values = reader.view(load.items, buffer[place:])
                reader.read(load.items, values)
                place += reader.bytes_of(load.items)
            found.append(values)
        return found

    def part(self, kernel: Kernel, plan: Plan, load: Load, values: Sequence[Any]) -> Part:
        """Give a load as a run of its own, with what was read in place of stored columns.

        Raises
        ------
        DataError
            For indices that point outside their item.
        """
        part = self._part(kernel, plan, load, values)
        if any(self.readers[kernel.arguments.index(name)] is not None for name in kernel.index):
            check_indices("run", kernel, part.columns, items=part.items)
        return part

    def part_without_data(self, kernel: Kernel, plan: Plan, load: Load) -> Part:
        """Give a load as it is planned: by shapes and dtypes, in no memory."""
        values = [
            None if reader is None else stand_in(reader.shape_of(load.items), reader.source.dtype)
            for reader in self.readers
        ]
        return self._part(kernel, plan, load, values)

    def _part(self, kernel: Kernel, plan: Plan, load: Load, values: Sequence[Any]) -> Part:
        def of_items(place: int, items: NDArray[np.intp]) -> Any:
            reader = self.readers[place]
            return None if reader is None else reader.shown(items, values[place])

        return part_of(kernel, self.columns, plan, load.batches, of_items)


def cut_loads(
    plan: Plan, reads: Reads, most_bytes: int, numbers: Sequence[int] | None = None
) -> list[Load]:
    """Join batches of a plan, or some of them, to loads of at most so many bytes, or of one batch.

    A load is predicted to take no more than a second, since a run that is cut off loses it.

    Where nothing is read, each batch is a load: what is kept of a run is kept batch by batch.
    """
    loads: list[Load] = []
    held: list[NDArray[np.intp]] = []
    first = total = 0
    seconds = 0.0
    each = row_seconds(plan)

    def close(stop: int) -> None:
        if held:
            items = np.sort(np.concatenate(held)).astype(np.intp)
            loads.append(Load(range(first, stop), items, reads.bytes_of(items)))

    last = -1
    for number in range(len(plan.batches)) if numbers is None else numbers:
        batch = plan.batches[number]
        items = batch.items[: batch.count]
        size = reads.bytes_of(items)
        if held and (
            not size
            or total + size > most_bytes
            or batch.slot != plan.batches[first].slot
            or seconds + each[batch.slot] * len(batch.items) > MOST_SECONDS
        ):
            close(number)
            held = []
        if not batch.count:
            continue
        if not held:
            first, total, seconds = number, 0, 0.0
        held.append(items)
        total += size
        seconds += each[batch.slot] * len(batch.items)
        last = number
    close(last + 1)
    return loads


def row_seconds(plan: Plan) -> list[float]:
    """Give the predicted time of a row in each slot."""
    if not plan.slots:
        return []
    capacities = np.array([[slot[dim] for dim in plan.dims] for slot in plan.slots], np.int64)
    work = plan.measure.cost(capacities.reshape(len(plan.slots), len(plan.dims)))
    seconds: list[float] = (work * (plan.costs or Costs()).work_seconds).tolist()
    return seconds
