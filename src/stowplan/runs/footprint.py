"""Bytes that a run takes beside the temporaries of its batches, from sizes and dtypes alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from stowplan.adapters.interface import Wanted
from stowplan.declaration import Kernel
from stowplan.planners.batches import Batch, Plan
from stowplan.ragged import Ragged
from stowplan.runs.columns import Columns
from stowplan.runs.indices import Sizes
from stowplan.runs.round_bytes import (
    INDEX_BYTES,
    MASK_BYTES,
    RoundBytes,
    entry_bytes,
    measure_rounds,
)
from stowplan.runs.shared import leaves, paired_leaves

__all__ = [
    "Footprint",
    "array_bytes",
    "dtype_bytes",
    "filling_bytes",
    "measure_footprint",
    "widest_input",
]

Dims = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PutAway:
    """Bytes that putting the rows of one batch away takes.

    Attributes
    ----------
    slot, rows, items
        Of the batch; rows past the items are padding.
    index_bytes
        Where real rows are and where they go, found then and kept.
    row_bytes
        Of the real rows, in the results.
    taken_bytes
        Of the copy of them that is made first where there is padding and none are in order.
    """

    slot: int
    rows: int
    items: int
    index_bytes: int
    row_bytes: int
    taken_bytes: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """What is alive beside the batches, and the padded columns and outputs of one row.

    Attributes
    ----------
    index_bytes
        All index arrays and masks.
    locating_bytes
        What making those of the largest batch takes beside them.
    result_bytes, staged_bytes
        All outputs, once; columns where they are computed, if they are moved there.
    gradient_bytes, column_gradient_bytes
        Gradients of columns and shared parameters, None without a gradient; those of columns.
    put_away
        Of each batch, in their order.
    row_inputs, row_outputs, row_masks
        Of one row in each slot: columns, outputs, and which places of the latter are real.
    row_gathered
        Of one row in each slot while its last columns are gathered: taken, then filled.
    viewed
        Slots all of whose batches are views of the data.
    rounds
        Of an iteration, which makes index arrays for the rows that come and go, and keeps none.
    """

    index_bytes: int
    locating_bytes: int
    result_bytes: int
    staged_bytes: int
    gradient_bytes: int | None
    column_gradient_bytes: int
    put_away: tuple[PutAway, ...]
    row_inputs: tuple[int, ...]
    row_outputs: tuple[int, ...]
    row_masks: tuple[int, ...]
    row_gathered: tuple[int, ...]
    viewed: frozenset[int] = frozenset()
    rounds: RoundBytes | None = None

    def held_bytes(self, result_sets: int = 3) -> int:
        """Alive beside a batch once all is put away.

        Of a gradient ``result_sets`` arrays are as large as the results: those themselves, which
        the caller keeps, their cotangents, these as they are staged, and what a framework keeps.
        """
        own = self.index_bytes + self.staged_bytes
        if self.gradient_bytes is None:
            return own + self.result_bytes
        return own + self.gradient_bytes + result_sets * self.result_bytes

    def held_beside(self, result_sets: int = 3, *, on_demand: bool = False) -> list[int]:
        """Alive beside each batch: pages of results are taken as rows are put away.

        ``on_demand`` says that those of the gradients of columns are taken likewise.
        """
        if self.rounds is not None:
            return [self.staged_bytes + self.rounds.results[batch.slot] for batch in self.put_away]
        if self.gradient_bytes is None:
            return self._before_putting_away()
        held = self.held_bytes(result_sets)
        counts = [batch.items for batch in self.put_away]
        pages = self.column_gradient_bytes if on_demand else 0
        total = max(sum(counts), 1)
        done = list(itertools.accumulate(counts, initial=0))[:-1]
        return [held - pages + math.ceil(pages * items / total) for items in done]

    def idle_bytes(
        self, result_sets: int = 3, *, copied: Collection[int], delivered: bool = False
    ) -> int:
        """Most that is alive while no batch is computed: before, after, or while rows are put away.

        ``copied`` are slots whose batches are computed on copies of their columns, which then are
        alive until the next one; ``delivered`` says that results and gradients are copied once more
        in the end.
        """
        own = self.index_bytes + self.staged_bytes
        copies = 2 if delivered else 1
        most = own + max(self.locating_bytes, copies * self.result_bytes)
        if self.rounds is not None:
            return most
        for held, batch in zip(self._before_putting_away(), self.put_away, strict=True):
            inputs = self.row_inputs[batch.slot] if batch.slot in copied else 0
            each = self.row_outputs[batch.slot] + inputs
            found = held + batch.rows * each + batch.index_bytes
            finding = 2 * batch.rows * self.row_masks[batch.slot]
            most = max(most, found + max(batch.taken_bytes + batch.row_bytes, finding))
        if self.gradient_bytes is not None:
            most = max(most, self.held_bytes(result_sets) + (copies - 1) * self.gradient_bytes)
        return most

    def _before_putting_away(self) -> list[int]:
        """Alive beside each batch of a forward pass, before its own rows are put away."""
        own = self.index_bytes + self.staged_bytes
        own -= sum(batch.index_bytes for batch in self.put_away)
        sizes = (batch.index_bytes + batch.row_bytes for batch in self.put_away)
        return list(itertools.accumulate(sizes, initial=own))[:-1]


def measure_footprint(
    kernel: Kernel,
    columns: Columns,
    plan: Plan,
    *,
    moved: bool | Sequence[bool],
    wanted: Wanted | None,
    traced: Mapping[str, Any],
    widths: Sequence[int] | None = None,
    views: bool = False,
    in_place: bool = False,
    straight: bool = False,
    rounds: bool = False,
    on_demand: bool = True,
) -> Footprint:
    """Add up what a run of a plan takes.

    ``moved`` says of all columns, or of each, that they count again where they are computed.
    ``widths`` are the bytes of a number in each output; without them that of the widest input.
    ``views`` says that batches without padding are no copies, which need no indices; ``in_place``
    that padding is filled in place, ``straight`` that rows in order are no copies on their way to
    the results. ``rounds`` says that rows are iterated; ``on_demand`` that their results take pages
    as rows are put away, else all at once.
    """
    sizes = Sizes(plan, kernel, columns.fixed)
    own = [dtype_bytes(array.dtype) for array in columns.arrays]
    inputs = [kernel.ragged_dims(core) for core in kernel.signature.inputs]
    outputs = [kernel.ragged_dims(core) for core in kernel.signature.outputs]
    widths = widths or [widest_input(columns, traced)] * len(outputs)
    input_bytes = [
        width * math.prod(array.shape[1:]) for width, array in zip(own, columns.arrays, strict=True)
    ]
    output_bytes = [
        width * math.prod(sizes.tail(core))
        for width, core in zip(widths, kernel.signature.outputs, strict=True)
    ]

    def padded(dims: Dims, capacity: tuple[int, ...]) -> int:
        return math.prod(sizes.capacity_of(capacity, dims))

    def of_rows(groups: Sequence[Dims], each: Sequence[int]) -> tuple[int, ...]:
        return tuple(
            sum(
                size * padded(dims, tuple(slot[dim] for dim in plan.dims))
                for dims, size in zip(groups, each, strict=True)
            )
            for slot in plan.slots
        )

    flags = (False,) * len(inputs) if wanted is None else wanted[0]
    scattered = [dims for dims, want in zip(inputs, flags, strict=True) if want]
    scattered += outputs if wanted is not None else []
    gathered = {*inputs, *((dim,) for dim in columns.segments)}
    index = locating = 0
    copying = set()
    for batch in plan.batches:
        rows, capacity = len(batch.items), batch.capacity
        found = _end_to_end(batch, plan, columns, inputs) if views else {}
        copied = [dims for dims in gathered if not found.get(dims, False)]
        index += sum(entry_bytes(dims) * rows * padded(dims, capacity) for dims in copied)
        shared = batch.count == rows  # indices of items serve both ways
        index += sum(
            INDEX_BYTES * rows * padded(dims, capacity)
            for dims in set(scattered)
            if dims or not shared or dims not in gathered
        )
        index += MASK_BYTES * rows * sum(capacity) if kernel.takes_mask else 0
        if copied:
            copying.add(batch.slot)
            most = max(padded(dims, capacity) for dims in copied)
            locating = max(locating, INDEX_BYTES * rows * most)
    put_away = tuple(
        _put_away(batch, sizes, list(zip(outputs, output_bytes, strict=True)), straight)
        for batch in plan.batches
    )
    index += sum(batch.index_bytes for batch in put_away)
    results = sum(
        size * sizes.total(dims) for size, dims in zip(output_bytes, outputs, strict=True)
    )
    taken_and_filled = []
    for place, (size, dims) in enumerate(zip(input_bytes, inputs, strict=True)):
        several = columns.arrays[place].ndim > 1
        filling = filling_bytes(size, ragged=bool(dims), several=several, in_place=in_place)
        taken_and_filled.append(
            of_rows(inputs[: place + 1], [*input_bytes[:place], size + filling])
        )
    counted = [moved] * len(inputs) if isinstance(moved, bool) else moved
    row_gathered = tuple(map(max, zip(*taken_and_filled, strict=True)))
    return Footprint(
        index_bytes=0 if rounds else index,
        locating_bytes=0 if rounds else locating,
        result_bytes=results,
        staged_bytes=sum(
            array_bytes(array) for array, flag in zip(columns.arrays, counted, strict=True) if flag
        ),
        gradient_bytes=None if wanted is None else _wanted_bytes(columns.arrays, traced, wanted),
        column_gradient_bytes=0 if wanted is None else _wanted_bytes(columns.arrays, {}, wanted),
        put_away=put_away,
        row_inputs=of_rows(inputs, input_bytes),
        row_outputs=of_rows(outputs, output_bytes),
        row_masks=of_rows(outputs, [MASK_BYTES] * len(outputs)),
        row_gathered=row_gathered,
        viewed=frozenset(batch.slot for batch in plan.batches) - copying,
        rounds=measure_rounds(
            plan,
            sizes,
            list(zip(outputs, output_bytes, strict=True)),
            list(gathered),
            row_gathered,
            on_demand=on_demand,
        )
        if rounds
        else None,
    )


def _end_to_end(
    batch: Batch, plan: Plan, columns: Columns, inputs: Sequence[Dims]
) -> dict[Dims, bool]:
    """Say along which dims all columns of a batch are views, which need no indices."""
    items = batch.items
    if not batch.count or (np.diff(items) != 1).any():
        return {}
    full = bool((plan.lengths[items] == batch.capacity).all())
    found: dict[Dims, bool] = {}
    for dims, column in zip(inputs, columns.values, strict=True):
        packed = not isinstance(column, Ragged) or column.layout.contiguous
        found[dims] = found.get(dims, True) and packed and (full or not dims)
    return found


def _put_away(
    batch: Batch, sizes: Sizes, outputs: Sequence[tuple[Dims, int]], straight: bool
) -> PutAway:
    """Count what the rows of a batch take as they are put away."""
    items, places = batch.items[: batch.count], len(batch.items)
    in_order = bool((np.diff(items) == 1).all())  # then a slice says where they go
    index, row_bytes, taken = {}, 0, 0
    for dims, size in outputs:
        real = int(sizes.layout(dims).counts[items].sum()) if dims else batch.count
        padding = places * math.prod(sizes.capacity(batch, dims)) - real
        index[dims] = INDEX_BYTES * real * ((padding > 0) + (not in_order))
        row_bytes += size * real
        taken += size * real if padding and not (straight and in_order) else 0
    return PutAway(batch.slot, places, batch.count, sum(index.values()), row_bytes, taken)


def filling_bytes(size: int, *, ragged: bool, several: bool, in_place: bool) -> int:
    """Bytes that filling a column takes for each place of ``size`` bytes, at most.

    A copy; in place the mask of what is padding and, if a place has several numbers, its indices.
    """
    if not in_place:
        return size
    if not ragged:
        return 0
    return min(size, MASK_BYTES + INDEX_BYTES) if several else MASK_BYTES


def widest_input(columns: Columns, traced: Mapping[str, Any]) -> int:
    """Bytes of a number in the widest of all columns and shared arrays."""
    arrays = [*columns.arrays, *filter(is_array_api_obj, leaves(traced))]
    return max(dtype_bytes(array.dtype) for array in arrays)


def _wanted_bytes(arrays: Sequence[Any], traced: Mapping[str, Any], wanted: Wanted) -> int:
    flags, nest = wanted
    pairs = [*zip(flags, arrays, strict=True)]
    if traced:
        pairs += [(flag, array) for array, flag in paired_leaves(traced, nest)]
    return sum(array_bytes(array) for flag, array in pairs if flag)


def array_bytes(array: Any) -> int:
    """Bytes of an array of any framework; 0 of what is none."""
    if not is_array_api_obj(array):
        return 0
    return dtype_bytes(array.dtype) * int(math.prod(array.shape))


def dtype_bytes(dtype: Any) -> int:
    """Bytes of a number of a dtype of any framework."""
    known = getattr(dtype, "itemsize", None)
    return int(known or np.dtype(str(dtype).rpartition(".")[2]).itemsize)
