"""The most that a run can take beside the temporaries of its batches, told at once from sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stowplan.declaration import Kernel
from stowplan.planners.batches import Plan
from stowplan.runs.columns import Columns
from stowplan.runs.footprint import array_bytes, dtype_bytes
from stowplan.runs.indices import Sizes
from stowplan.runs.shared import leaves

__all__ = ["largest_batch_bytes", "most_held_bytes"]

INDEX_SHARE = 32
"""Bytes of index arrays, masks and results for each padded byte of inputs and outputs, at most.

An index and whether it is real of each place of an input (9), one more where a gradient is added
(8), a mask (1); of each place of an output where rows are added from (8), two orders (16), and
results, cotangents and their copies (4).
"""


def largest_batch_bytes(
    kernel: Kernel, columns: Columns, plan: Plan, width: int
) -> tuple[int, int]:
    """Give the inputs and outputs of the largest batch in bytes, and of all batches together.

    Numbers of outputs are taken to be ``width`` bytes wide; what is empty to take one byte.
    """
    widths = [dtype_bytes(array.dtype) for array in columns.arrays]
    widths += [width] * len(kernel.signature.outputs)
    cores = (*kernel.signature.inputs, *kernel.signature.outputs)
    sizes = Sizes(plan, kernel, columns.fixed)
    batches = [0] * len(plan.slots)
    for batch in plan.batches:
        batches[batch.slot] += 1
    largest = together = 0
    for slot, count in zip(plan.slots, batches, strict=True):
        known = {**columns.fixed, **slot}
        if kernel.new_dims:
            capacity = tuple(slot[dim] for dim in plan.dims)
            known |= zip(kernel.new_dims, sizes.capacity_of(capacity, kernel.new_dims), strict=True)
        lengths = (
            math.prod(known[dim] if isinstance(dim, str) else dim for dim in core) for core in cores
        )
        row = sum(max(size * length, 1) for size, length in zip(widths, lengths, strict=True))
        largest = max(largest, row * slot.get("rows", 0))
        together += row * slot.get("rows", 0) * count
    return largest, together


def most_held_bytes(columns: Columns, traced: Mapping[str, Any], together: int) -> int:
    """Give no less than a footprint holds, gradients of everything and columns moved included."""
    arrays = sum(map(array_bytes, columns.arrays)) + sum(map(array_bytes, leaves(traced)))
    return INDEX_SHARE * together + 2 * arrays
