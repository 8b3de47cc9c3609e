"""Batches of fixed shape for a loop of one's own: packed from a plan, and unpacked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from stowplan.adapters import Adapter, framework_of, get_adapter
from stowplan.adapters.interface import as_tuple
from stowplan.declaration import Kernel
from stowplan.errors import DataError, PlanError
from stowplan.gather import select
from stowplan.planners.batches import Batch, Plan, empty_batch
from stowplan.planners.sizes import listed
from stowplan.ragged import Ragged
from stowplan.runs.columns import bind, check_indices
from stowplan.runs.indices import Indices
from stowplan.runs.jobs import Job
from stowplan.runs.matching import check_sizes
from stowplan.runs.places import Place, find_places
from stowplan.signature import CoreShape

__all__ = ["KernelPacking", "PackedBatch", "one_batch_per_slot", "refuse_surplus"]


class PackedBatch(NamedTuple):
    """Rows of one slot, padded to its capacity: a pytree in JAX and torch.

    Shapes are those of the slot, whatever the items. Call the kernel on all rows,
    ``kernel(*batch.arrays, mask=batch.mask)``, and weigh each row's result with `row_mask`.
    """

    arrays: tuple[Any, ...]
    """Padded columns in signature order, (rows, capacity, ...)."""
    mask: dict[str, Any]
    """Per ragged dim which entries are real, (rows, capacity) bool; False in rows without item."""
    row_mask: Any
    """Which rows hold an item, (rows,) bool."""
    items: Any
    """Item of each row, (rows,) integers; a row without one repeats another."""
    segments: dict[str, Any]
    """Per ragged dim the item of its row that an entry belongs to, where the kernel declares it."""

    @property
    def count(self) -> Any:
        """Rows that hold an item, a 0-d integer array."""
        xp = array_namespace(self.row_mask)
        return xp.sum(xp.astype(self.row_mask, self.items.dtype))

    @property
    def slot(self) -> dict[str, int]:
        """Capacities and rows, known from shapes alone."""
        capacities = {dim: int(mask.shape[1]) for dim, mask in self.mask.items()}
        return {**capacities, "rows": int(self.row_mask.shape[0])}

    def __repr__(self) -> str:
        return f"<PackedBatch {listed(self.slot)}>"

    def leaves(self) -> list[Any]:
        """Give all arrays, in the order of the fields."""
        return [
            *self.arrays,
            *self.mask.values(),
            self.row_mask,
            self.items,
            *self.segments.values(),
        ]

    def with_leaves(self, leaves: Iterator[Any]) -> PackedBatch:
        """Take as many arrays as there are in place of these, in the order of the fields."""
        return PackedBatch(
            tuple(next(leaves) for _ in self.arrays),
            {dim: next(leaves) for dim in self.mask},
            next(leaves),
            next(leaves),
            {dim: next(leaves) for dim in self.segments},
        )


@dataclass(frozen=True)
class KernelPacking:
    """Packs the columns of one kernel."""

    kernel: Kernel

    def pack(
        self, plan: Plan, data: Mapping[str, Any] | Sequence[Any], on: str | None, device: Any
    ) -> tuple[PackedBatch, ...]:
        """See `Plan.pack`."""
        columns = bind("pack", self.kernel, data)
        source, target = find_places("pack", columns.arrays, on, device)
        check_sizes("pack", self.kernel, columns, plan)
        check_indices("pack", self.kernel, columns)
        whole, _ = _packed(plan, columns.fixed)
        job = Job("pack", self.kernel, columns, whole, source, target, apart=True)
        return tuple(_packed_batch(job, number, target) for number in range(len(whole.batches)))

    def unpack(self, plan: Plan, outputs: Any, like: str | None) -> Any:
        """See `Plan.unpack`."""
        parts = list(outputs)
        if len(parts) != len(plan.slots):
            raise DataError(
                f"unpack: {len(parts)} results for {len(plan.slots)} slots; give one for each "
                "slot, in the order of plan.slots."
            )
        whole, fixed = _packed(plan, None)
        if like is not None:
            core = self._core(like)
            return _Unpacking(self.kernel, whole, fixed, parts).column(like, core, parts)
        if parts and all(isinstance(part, PackedBatch) for part in parts):
            unpacking = _Unpacking(self.kernel, whole, fixed, [part.arrays for part in parts])
            return {
                name: unpacking.column(name, core, [part.arrays[place] for part in parts])
                for place, (name, core) in enumerate(
                    zip(self.kernel.arguments, self.kernel.signature.inputs, strict=True)
                )
            }
        return self._outputs(whole, fixed, parts)

    def _core(self, name: str) -> CoreShape:
        arguments = self.kernel.arguments
        if name not in arguments:
            raise DataError(
                f"unpack: like={name!r} is no argument of {self.kernel.name}; "
                f"they are: {', '.join(arguments)}."
            )
        return self.kernel.signature.inputs[arguments.index(name)]

    def _outputs(self, whole: Plan, fixed: Mapping[str, int], parts: Sequence[Any]) -> Any:
        cores = self.kernel.signature.outputs
        unpacking = _Unpacking(self.kernel, whole, fixed, parts)
        for slot, part in enumerate(parts):
            if len(as_tuple(part)) != len(cores):
                raise DataError(
                    f"unpack: the result of slot {slot} has {len(as_tuple(part))} parts, "
                    f"{self.kernel.name} has {len(cores)} outputs. For arrays shaped like an "
                    "argument pass like='name'."
                )
        columns = [
            unpacking.column(f"output {place}", core, [as_tuple(part)[place] for part in parts])
            for place, core in enumerate(cores)
        ]
        if not parts or not isinstance(parts[0], tuple):
            return columns[0] if len(columns) == 1 else tuple(columns)
        kind = type(parts[0])
        return kind(*columns) if hasattr(parts[0], "_fields") else tuple(columns)


class _Unpacking:
    """Takes the real rows out of arrays that have one part per slot."""

    def __init__(
        self, kernel: Kernel, whole: Plan, fixed: Mapping[str, int], parts: Sequence[Any]
    ) -> None:
        self.kernel = kernel
        self.whole = whole
        leaves = [leaf for part in parts for leaf in as_tuple(part)]
        self.adapter: Adapter = get_adapter(framework_of(leaves) or "numpy")
        self.indices = Indices(whole, kernel, self.adapter, fixed)

    def column(self, name: str, core: CoreShape, parts: Sequence[Any]) -> Any:
        """Give one array per slot, (rows, *core), as a column in input order."""
        dims = self.kernel.ragged_dims(core)
        kept = []
        for number, (batch, part) in enumerate(zip(self.whole.batches, parts, strict=True)):
            self._check(name, core, dims, batch, part)
            places = self.indices.places(number, dims, part)
            kept.append(select(part, places, len(dims)))
        xp = array_namespace(*kept)
        flat = kept[0] if len(kept) == 1 else xp.concat(kept, axis=0)
        order = self.indices.order(dims, flat)
        if order is not None:
            flat = xp.take(flat, order, axis=0)
        return Ragged.from_layout(flat, self.indices.sizes.layout(dims)) if dims else flat

    def _check(
        self, name: str, core: CoreShape, dims: tuple[str, ...], batch: Batch, part: Any
    ) -> None:
        shape = tuple(part.shape) if is_array_api_obj(part) else ()
        leading = (len(batch.items), *self.indices.sizes.capacity(batch, dims))
        if shape[: len(leading)] != leading or len(shape) != 1 + len(core):
            raise DataError(
                f"unpack: {name} of slot {batch.slot} has shape {shape}; "
                f"({','.join(map(str, core))}) in this slot begins with {leading} and has "
                f"{1 + len(core)} axes."
            )


def one_batch_per_slot(plan: Plan) -> Plan:
    """Give a plan with exactly one batch for each slot, empty ones for slots without items."""
    refuse_surplus(plan)
    held = {batch.slot: batch for batch in plan.batches}
    batches = []
    for slot, limits in enumerate(plan.slots):
        if slot not in held and "rows" not in limits:
            raise PlanError(
                f"pack: slot {slot} ({_shown(plan, slot)}) holds no item and carries no rows, so "
                "its batch has no shape. Give it rows: slots=[{..., 'rows': 8}]."
            )
        capacity = tuple(limits[dim] for dim in plan.dims)
        rows = limits.get("rows", 0)
        batches.append(held.get(slot) or empty_batch(plan.lengths, capacity, slot, rows))
    return replace(plan, batches=tuple(batches))


def refuse_surplus(plan: Plan) -> None:
    """Raise PlanError where a slot holds more items than it has rows."""
    counts = np.zeros(len(plan.slots), np.int64)
    for batch in plan.batches:
        counts[batch.slot] += batch.count
    for slot, (count, rows) in enumerate(zip(counts.tolist(), plan.rows, strict=True)):
        if count > rows:
            raise PlanError(
                f"pack: slot {slot} ({_shown(plan, slot)}) holds {count} items, but its batch has "
                f"{rows} rows. Give the slot rows={count}, plan with rows={len(plan.lengths)}, "
                "choose slots for minibatches, sp.choose_slots(sizes, minibatch=...), and draw "
                "them with sp.MinibatchSampler, or let sp.run make a second batch."
            )


def _shown(plan: Plan, slot: int) -> str:
    return listed({dim: plan.slots[slot][dim] for dim in plan.dims})


def _packed(plan: Plan, fixed: Mapping[str, int] | None) -> tuple[Plan, Mapping[str, int]]:
    """Give the plan with one batch per slot, and the lengths of other dims when last packed."""
    whole, known = plan.cache.get("packed") or (one_batch_per_slot(plan), {})
    plan.cache["packed"] = (whole, known if fixed is None else fixed)
    found: tuple[Plan, Mapping[str, int]] = plan.cache["packed"]
    return found


def _packed_batch(job: Job, number: int, target: Place) -> PackedBatch:
    arguments, keywords = job.gather(number)
    row_mask = job.indices.row_mask(number, job.first)
    masks = job.indices.masks(number, job.first)
    batch = PackedBatch(
        tuple(arguments),
        {dim: mask & row_mask[:, None] for dim, mask in masks.items()},
        row_mask,
        job.indices.items(number, job.first),
        keywords.get("segments", {}),
    )
    deliver = target.adapter.deliver
    return batch.with_leaves(deliver(leaf, target.device) for leaf in batch.leaves())
