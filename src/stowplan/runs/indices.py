"""The index arrays of a plan: made once for each place where arrays live, kept with the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.adapters import Adapter
from stowplan.declaration import Kernel
from stowplan.gather import input_order, locate, valid_places
from stowplan.planners.batches import Batch, Plan
from stowplan.ragged import Layout

__all__ = ["Indices", "Sizes"]


class Sizes:
    """Lengths of items and capacities of batches along any ragged dims, outputs' own included."""

    def __init__(self, plan: Plan, kernel: Kernel) -> None:
        self.plan = plan
        self.kernel = kernel
        self.layouts: dict[tuple[str, ...], Layout] = {}

    def layout(self, dims: tuple[str, ...]) -> Layout:
        """Give the layout of a contiguous column over some dims."""
        if dims not in self.layouts:
            lengths = dict(zip(self.plan.dims, self.plan.lengths.T, strict=True))
            columns = [self._length(dim, lengths) for dim in dims]
            self.layouts[dims] = Layout(np.stack(columns, axis=1))
        return self.layouts[dims]

    def capacity(self, batch: Batch, dims: Sequence[str]) -> tuple[int, ...]:
        """Give the padded lengths of a batch along some dims."""
        known = dict(zip(self.plan.dims, batch.capacity, strict=True))
        return tuple(int(self._length(dim, known)) for dim in dims)

    def _length(self, dim: str, known: Mapping[str, Any]) -> Any:
        if dim in known:
            return known[dim]
        length = self.kernel.out_length(dim, known)
        return np.asarray(length).astype(np.int64)


class Indices:
    """Index arrays of one plan, moved to where they are used and kept there."""

    def __init__(self, plan: Plan, kernel: Kernel, adapter: Adapter) -> None:
        self.plan = plan
        self.adapter = adapter
        self.sizes: Sizes = plan.cache.setdefault(("sizes", kernel), Sizes(plan, kernel))
        self._cache: dict[Any, Any] = plan.cache.setdefault(("indices", kernel, adapter.name), {})

    def gather(
        self, number: int, dims: tuple[str, ...], layout: Layout | None, like: Any
    ) -> tuple[Any, Any]:
        """Give the flat rows of a batch and where they are real (None: everywhere)."""
        packed = layout is None or layout.contiguous
        key = ("gather", number, dims, None if packed else layout)
        return self._beside(like, key, lambda: self._locate(number, dims, layout))

    def masks(self, number: int, like: Any) -> dict[str, Any]:
        """Give, per ragged dim, which places of a batch are real, (rows, capacity)."""
        return self._beside(like, ("masks", number), lambda: self._masks(number))

    def places(self, number: int, dims: tuple[str, ...], like: Any) -> Any:
        """Give the real places of a padded output of a batch."""
        return self._beside(like, ("places", number, dims), lambda: self._places(number, dims))

    def order(self, dims: tuple[str, ...], like: Any) -> Any:
        """Give the order that puts stored rows back into the order of the input."""
        return self._beside(like, ("order", dims), lambda: self._order(dims))

    def _beside(self, like: Any, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        place = (*key, type(like), str(self.adapter.device_of(like)))
        if place not in self._cache:
            if ("host", *key) not in self._cache:
                self._cache["host", *key] = make()
            self._cache[place] = _map(lambda index: self.adapter.index(index, like), self._cache["host", *key])
        return self._cache[place]

    def _locate(self, number: int, dims: tuple[str, ...], layout: Layout | None) -> tuple[Any, Any]:
        batch = self.plan.batches[number]
        if not dims:
            return batch.items.astype(np.int64), None
        layout = layout or self.sizes.layout(dims)
        starts, shapes = _of_items(layout, batch)
        index, masks = locate(starts, shapes, self.sizes.capacity(batch, dims))
        inside = _product(masks)
        return index, None if inside.all() else inside

    def _masks(self, number: int) -> dict[str, NDArray[np.bool_]]:
        batch = self.plan.batches[number]
        masks = {}
        for dim in self.plan.dims:
            starts, shapes = _of_items(self.sizes.layout((dim,)), batch)
            _, (masks[dim],) = locate(starts, shapes, self.sizes.capacity(batch, (dim,)))
        return masks

    def _places(self, number: int, dims: tuple[str, ...]) -> NDArray[np.int64]:
        batch = self.plan.batches[number]
        if not dims:
            return np.arange(batch.count, dtype=np.int64)
        starts, shapes = _of_items(self.sizes.layout(dims), batch)
        _, masks = locate(starts, shapes, self.sizes.capacity(batch, dims))
        return valid_places(masks, batch.count).astype(np.int64)

    def _order(self, dims: tuple[str, ...]) -> NDArray[np.int64] | None:
        batches = self.plan.batches
        items = np.concatenate([np.empty(0, np.intp), *(batch.items[: batch.count] for batch in batches)])
        counts = self.sizes.layout(dims).counts if dims else np.ones(len(items), np.int64)
        return input_order(items, counts)


def _of_items(layout: Layout, batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and shapes of the rows of a batch; of a plan without items, rows of size 0."""
    if len(layout.starts) == 0:
        rows = len(batch.items)
        return np.zeros(rows, np.int64), np.zeros((rows, layout.shapes.shape[1]), np.int64)
    return layout.starts[batch.items], layout.shapes[batch.items]


def _product(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    inside = masks[0]
    for mask in masks[1:]:
        inside = inside[..., None] & mask.reshape((len(mask),) + (1,) * (inside.ndim - 1) + (-1,))
    return inside


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_map(function, part) for part in value)
    if isinstance(value, dict):
        return {name: _map(function, part) for name, part in value.items()}
    return function(value)
