"""Bytes that an iteration takes beside the columns and the state of the rows at work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stowplan.planners.batches import Plan
from stowplan.runs.indices import Sizes

__all__ = ["INDEX_BYTES", "MASK_BYTES", "RoundBytes", "entry_bytes", "measure_rounds"]

INDEX_BYTES = 8
MASK_BYTES = 1
LOCATED, SENT = 2, 1
"""Index arrays that are alive beside one while it is worked out: where rows are, where they go."""

Dims = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RoundBytes:
    """What rows take as they come and go. Index arrays are made for them then, and not kept.

    Attributes
    ----------
    row_filled
        Of one row in each slot while its columns are gathered, with its index arrays.
    row_put_away
        Of one row in each slot while it is put away, beside its columns and its state: what is
        kept of it, where its real places are, and where they go.
    results
        Most that may be put away while as many rows of a slot are at work as its batches have:
        all results but those of its smallest items.
    """

    row_filled: tuple[int, ...]
    row_put_away: tuple[int, ...]
    results: tuple[int, ...]


def measure_rounds(
    plan: Plan,
    sizes: Sizes,
    outputs: Sequence[tuple[Dims, int]],
    gathered: Sequence[Dims],
    row_gathered: Sequence[int],
    *,
    on_demand: bool,
) -> RoundBytes:
    """Add up what rows take as they come and go.

    Parameters
    ----------
    outputs
        Ragged dims of each, and bytes at each place.
    gathered
        Ragged dims that columns are gathered along.
    row_gathered
        Bytes of a row of columns in each slot while the last one is gathered.
    on_demand
        Whether results take pages as rows are put away, else all at once.
    """
    slots = [tuple(slot[dim] for dim in plan.dims) for slot in plan.slots]

    def places(dims: Dims, capacity: tuple[int, ...]) -> int:
        return math.prod(sizes.capacity_of(capacity, dims))

    def filled(capacity: tuple[int, ...], columns: int) -> int:
        index = sum(entry_bytes(dims) * places(dims, capacity) for dims in gathered)
        widest = max(places(dims, capacity) for dims in gathered)
        return index + max(columns, LOCATED * INDEX_BYTES * widest)

    def put_away(capacity: tuple[int, ...]) -> int:
        fields = [size * places(dims, capacity) for dims, size in outputs]
        counts = [places(dims, capacity) for dims in {dims for dims, _ in outputs if dims}]
        index = INDEX_BYTES * sum(counts)
        going = index + SENT * INDEX_BYTES * max(counts, default=0)
        return sum(fields) + index + max(*fields, going)

    every = sum(size * sizes.total(dims) for dims, size in outputs)
    return RoundBytes(
        tuple(map(filled, slots, row_gathered)),
        tuple(map(put_away, slots)),
        _put_away_before(plan, sizes, outputs) if on_demand else (every,) * len(slots),
    )


def _put_away_before(
    plan: Plan, sizes: Sizes, outputs: Sequence[tuple[Dims, int]]
) -> tuple[int, ...]:
    """Count results that may be put away while rows of each slot are at work."""
    item_bytes = np.zeros(len(plan.lengths), np.int64)
    for dims, size in outputs:
        item_bytes += size * (sizes.layout(dims).counts if dims else 1)
    items: list[list[int]] = [[] for _ in plan.slots]
    rows = [0] * len(plan.slots)
    for batch in plan.batches:
        items[batch.slot].extend(batch.items[: batch.count].tolist())
        rows[batch.slot] = max(rows[batch.slot], len(batch.items))
    found, done = [], 0
    for own, count in zip(items, rows, strict=True):
        each = np.sort(item_bytes[np.asarray(own, np.intp)])
        found.append(done + int(each[count:].sum()))
        done += int(each.sum())
    return tuple(found)


def entry_bytes(dims: Dims) -> int:
    """Bytes of the index of a place, and of whether it is real."""
    return INDEX_BYTES + MASK_BYTES if dims else INDEX_BYTES
