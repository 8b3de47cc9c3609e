"""Bytes that a run takes beside the temporaries of its batches, from sizes and dtypes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from stowplan.adapters.interface import Wanted
from stowplan.declaration import Kernel
from stowplan.planners.batches import Plan
from stowplan.runs.columns import Columns
from stowplan.runs.indices import Sizes
from stowplan.runs.shared import leaves, paired_leaves

__all__ = ["Footprint", "array_bytes", "dtype_bytes", "measure_footprint", "widest_input"]

INDEX_BYTES = 8
MASK_BYTES = 1
Dims = tuple[str, ...]


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
    gradient_bytes
        Gradients of columns and shared parameters; 0 without a gradient.
    row_inputs, row_outputs, row_masks
        Of one row in each slot: columns, outputs, and which places of the latter are real.
    """

    index_bytes: int
    locating_bytes: int
    result_bytes: int
    staged_bytes: int
    gradient_bytes: int
    row_inputs: tuple[int, ...]
    row_outputs: tuple[int, ...]
    row_masks: tuple[int, ...]

    def held_bytes(self, put_away: float = 1.0) -> int:
        """Alive beside a batch when so large a share of the results is put away."""
        own = self.index_bytes + self.staged_bytes
        if self.gradient_bytes:  # the caller's results, their cotangents, and those staged
            return own + self.gradient_bytes + 3 * self.result_bytes
        return own + math.ceil(self.result_bytes * put_away)

    def idle_bytes(self, plan: Plan, *, copied: bool) -> int:
        """Most that is alive while no batch is computed: before, after, or while rows are put away.

        A result is an array whose pages are taken as they are written to; ``copied`` says that it
        is copied once more in the end.
        """
        most = max(self.locating_bytes, (2 if copied else 1) * self.result_bytes)
        share = self.result_bytes / max(len(plan.lengths), 1)
        done = 0
        for batch in plan.batches:
            done += batch.count
            each = self.row_outputs[batch.slot] + 2 * self.row_masks[batch.slot]
            most = max(most, math.ceil(share * (done + batch.count)) + len(batch.items) * each)
        return self.index_bytes + self.staged_bytes + most


def measure_footprint(
    kernel: Kernel,
    columns: Columns,
    plan: Plan,
    *,
    moved: bool,
    wanted: Wanted | None,
    traced: Mapping[str, Any],
    widths: Sequence[int] | None = None,
) -> Footprint:
    """Add up what a run of a plan takes.

    ``widths`` are the bytes of a number in each output; without them that of the widest input.
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
    for batch in plan.batches:
        rows, capacity = len(batch.items), batch.capacity
        index += sum(_entry_bytes(dims) * rows * padded(dims, capacity) for dims in gathered)
        shared = batch.count == rows  # indices of items serve both ways
        index += sum(
            INDEX_BYTES * rows * padded(dims, capacity)
            for dims in set(scattered)
            if dims or not shared or dims not in gathered
        )
        index += MASK_BYTES * rows * sum(capacity) if kernel.takes_mask else 0
        locating = max(locating, INDEX_BYTES * rows * max(padded(d, capacity) for d in gathered))
    for dims in set(outputs):
        places = sum(len(batch.items) * padded(dims, batch.capacity) for batch in plan.batches)
        arrays = (places != sizes.total(dims)) + (not _in_order(plan))
        index += arrays * INDEX_BYTES * sizes.total(dims)
    results = sum(
        size * sizes.total(dims) for size, dims in zip(output_bytes, outputs, strict=True)
    )
    return Footprint(
        index_bytes=index,
        locating_bytes=locating,
        result_bytes=results,
        staged_bytes=sum(map(array_bytes, columns.arrays)) if moved else 0,
        gradient_bytes=0 if wanted is None else _wanted_bytes(columns.arrays, traced, wanted),
        row_inputs=of_rows(inputs, input_bytes),
        row_outputs=of_rows(outputs, output_bytes),
        row_masks=of_rows(outputs, [MASK_BYTES] * len(outputs)),
    )


def widest_input(columns: Columns, traced: Mapping[str, Any]) -> int:
    """Bytes of a number in the widest of all columns and shared arrays."""
    arrays = [*columns.arrays, *filter(is_array_api_obj, leaves(traced))]
    return max(dtype_bytes(array.dtype) for array in arrays)


def _wanted_bytes(arrays: Sequence[Any], traced: Mapping[str, Any], wanted: Wanted) -> int:
    flags, nest = wanted
    pairs = [*zip(flags, arrays, strict=True), *((f, a) for a, f in paired_leaves(traced, nest))]
    return sum(array_bytes(array) for flag, array in pairs if flag)


def _entry_bytes(dims: Dims) -> int:
    """Of the index of a place, and of whether it is real."""
    return INDEX_BYTES + MASK_BYTES if dims else INDEX_BYTES


def _in_order(plan: Plan) -> bool:
    """Whether the items of each batch follow each other, so that a slice says where they go."""
    return all(bool((np.diff(batch.items[: batch.count]) == 1).all()) for batch in plan.batches)


def array_bytes(array: Any) -> int:
    """Bytes of an array of any framework; 0 of what is none."""
    if not is_array_api_obj(array):
        return 0
    return dtype_bytes(array.dtype) * int(math.prod(array.shape))


def dtype_bytes(dtype: Any) -> int:
    """Bytes of a number of a dtype of any framework."""
    known = getattr(dtype, "itemsize", None)
    return int(known or np.dtype(str(dtype).rpartition(".")[2]).itemsize)
