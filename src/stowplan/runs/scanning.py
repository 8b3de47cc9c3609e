"""Batches of one shape as the steps of a loop inside a traced program.

The program holds one kernel call per slot, however many batches there are, and finds the rows of
a batch by index arithmetic on its items.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
from array_api_compat import array_namespace

from stowplan.adapters.interface import TracingAdapter
from stowplan.gather import inside_all, locate, real_places
from stowplan.layout import Layout
from stowplan.planners.batches import Batch
from stowplan.runs.indices import Indices
from stowplan.runs.jobs import Job

__all__ = ["scan_batches"]

Carry = TypeVar("Carry")


class _TracedIndices(Indices):
    """The index arrays of one batch whose items are traced; its number stands for its shape."""

    def __init__(self, known: Indices, batch: Batch, items: Any, count: Any) -> None:
        self.plan = known.plan
        self.adapter: TracingAdapter = known.adapter  # type: ignore[assignment]  # only such trace
        self.sizes = known.sizes
        self._cache = {}  # what is traced belongs to one trace
        self.batch = batch
        self.traced_items = items
        xp = array_namespace(items)
        self.held = xp.arange(len(batch.items)) < count

    def gather(
        self, number: int, dims: tuple[str, ...], layout: Layout | None, like: Any
    ) -> tuple[Any, Any]:
        if not dims:
            return self.traced_items, None
        starts, shapes, offsets = self._rows(dims, layout)
        index, masks = locate(starts, shapes, self._capacity(dims), offsets=offsets)
        return index, inside_all(masks)

    def masks(self, number: int, like: Any) -> dict[str, Any]:
        found = {}
        for dim in self.plan.dims:
            _, shapes, offsets = self._rows((dim,), None)
            (found[dim],) = real_places(shapes, self._capacity((dim,)), offsets)
        return found

    def rows_or_waste(
        self, number: int, dims: tuple[str, ...], layout: Layout | None, *, waste: int, like: Any
    ) -> Any:
        xp = array_namespace(self.traced_items)
        if not dims:
            return xp.where(self.held, self.traced_items, waste)
        starts, shapes, offsets = self._rows(dims, layout)
        shapes = xp.where(self.held[:, None], shapes, 0)
        return locate(starts, shapes, self._capacity(dims), waste, offsets)[0]

    def _capacity(self, dims: tuple[str, ...]) -> tuple[int, ...]:
        return self.sizes.capacity(self.batch, dims)

    def _rows(self, dims: tuple[str, ...], layout: Layout | None) -> tuple[Any, Any, Any]:
        """Starts, shapes and offsets of the rows."""
        layout = layout or self.sizes.layout(dims)
        xp = array_namespace(self.traced_items)
        starts, shapes, offsets = (
            None
            if table is None
            else xp.take(self.adapter.constant(table), self.traced_items, axis=0)
            for table in (layout.starts, layout.shapes, self.sizes.offsets(dims))
        )
        return starts, shapes, offsets


def _inside(job: Job, adapter: TracingAdapter) -> Job:
    """Give a job whose columns are all of the program; those without a trace become constants."""

    def constant(one: Any) -> Any:
        if not isinstance(one.values, np.ndarray):
            return one
        values = adapter.constant(one.values)
        return replace(one, values=values, xp=adapter.namespace(values))

    inside = copy.copy(job)
    inside.inputs = [constant(one) for one in job.inputs]
    inside.segments = {dim: constant(one) for dim, one in job.segments.items()}
    return inside


def scan_batches(job: Job, step: Callable[[Job, int, Carry], Carry], carry: Carry) -> Carry:
    """Carry something through all batches of a traced job, in one loop per shape.

    ``step`` takes a job, the number of a batch of the shape at hand, and what is carried.
    """
    adapter = cast("TracingAdapter", job.target.adapter)
    job = _inside(job, adapter)
    alike: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for number, batch in enumerate(job.plan.batches):
        alike.setdefault((len(batch.items), batch.capacity), []).append(number)
    for numbers in alike.values():
        batches = [job.plan.batches[number] for number in numbers]
        items = np.stack([batch.items for batch in batches]).astype(np.int64)
        counts = np.array([batch.count for batch in batches], np.int64)

        def one(carry: Carry, batch: tuple[Any, Any], number: int = numbers[0]) -> Carry:
            local = copy.copy(job)
            local.indices = _TracedIndices(job.indices, job.plan.batches[number], *batch)
            local.located = {}
            return step(local, number, carry)

        places = tuple(adapter.constant(table) for table in (items, counts))
        carry = adapter.scan(one, carry, places)
    return carry
