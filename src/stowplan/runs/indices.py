"""The index arrays of a plan: made once for each place where arrays live, kept with the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.adapters import Adapter
from stowplan.declaration import Kernel
from stowplan.errors import DataError
from stowplan.expressions import Expression
from stowplan.gather import (
    EndToEnd,
    input_order,
    inside_all,
    locate,
    real_places,
    valid_places,
)
from stowplan.layout import Layout
from stowplan.planners.batches import Batch, Plan
from stowplan.signature import CoreShape

__all__ = ["Indices", "Sizes"]


class Sizes:
    """Lengths of items and capacities of batches along any dims, outputs' own included."""

    def __init__(self, plan: Plan, kernel: Kernel, fixed: Mapping[str, int]) -> None:
        self.plan = plan
        self.kernel = kernel
        self.fixed = dict(fixed)  # dims that do not vary over items
        self._layouts: dict[tuple[str, ...], Layout] = {}
        self._capacities: dict[tuple[Any, ...], tuple[int, ...]] = {}
        self._offsets: dict[tuple[str, ...], NDArray[np.int64] | None] = {}

    def layout(self, dims: tuple[str, ...]) -> Layout:
        """Give the layout of a contiguous column over some dims."""
        if dims not in self._layouts:
            columns = [self._length(dim, self.plan.lengths) for dim in dims]
            self._layouts[dims] = Layout(np.stack(columns, axis=1))
        return self._layouts[dims]

    def offsets(self, dims: tuple[str, ...]) -> NDArray[np.int64] | None:
        """Give where items begin along some dims, (items, dims); None in the corner.

        Along a dim that no input has, outputs begin at 0.
        """
        given = self.plan.offsets
        if given is None:
            return None
        if dims not in self._offsets:
            known = dict(zip(self.plan.dims, given.T, strict=True))
            nothing = np.zeros(len(given), np.int64)
            table = np.stack([known.get(dim, nothing) for dim in dims], axis=1)
            self._offsets[dims] = table if table.any() else None
        return self._offsets[dims]

    def total(self, dims: tuple[str, ...]) -> int:
        """Give the flat rows of all items along some dims."""
        return int(self.layout(dims).counts.sum()) if dims else len(self.plan.lengths)

    def capacity(self, batch: Batch, dims: tuple[str, ...]) -> tuple[int, ...]:
        """Give the padded lengths of a batch along some dims."""
        return self.capacity_of(batch.capacity, dims)

    def capacity_of(self, capacity: tuple[int, ...], dims: tuple[str, ...]) -> tuple[int, ...]:
        """Give the padded lengths along some dims from those along the plan's."""
        key = (capacity, dims)
        if key not in self._capacities:
            padded = np.array([capacity], np.int64)
            self._capacities[key] = tuple(int(self._length(dim, padded)[0]) for dim in dims)
        return self._capacities[key]

    def padded_shape(
        self, batch: Batch, dims: tuple[str, ...], tail: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Give the shape of an output of a batch: ragged dims, then others of lengths ``tail``."""
        return (len(batch.items), *self.capacity(batch, dims), *tail)

    def tail(self, core: CoreShape) -> tuple[int, ...]:
        """Give the lengths of the dims of a core shape that are not ragged."""
        nothing = np.zeros((1, len(self.plan.dims)), np.int64)
        ragged = self.kernel.ragged_dims(core)
        lengths = (self._length(dim, nothing)[0] for dim in core if dim not in ragged)
        return tuple(int(length) for length in lengths)

    def _length(self, dim: str | int, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Length along any dim, (rows,), from those along the ragged dims, (rows, dims)."""
        rows = len(lengths)
        if dim in self.plan.dims:
            return lengths[:, self.plan.dims.index(str(dim))]
        if isinstance(dim, int) or dim in self.fixed:
            return np.full(rows, dim if isinstance(dim, int) else self.fixed[dim])
        rule = self.kernel.out_sizes[dim]
        if isinstance(rule, Expression):
            known = {**self.fixed, **dict(zip(self.plan.dims, lengths.T, strict=True))}
            given = np.broadcast_to(self.kernel.out_length(dim, known), (rows,))
        else:
            given = np.array(
                [rule(**dict(zip(self.plan.dims, row, strict=True))) for row in lengths.tolist()]
            )
        return np.maximum(given.astype(np.int64), 0)


class Indices:
    """Index arrays of one plan, moved to where they are used and kept there."""

    def __init__(
        self, plan: Plan, kernel: Kernel, adapter: Adapter, fixed: Mapping[str, int]
    ) -> None:
        self.plan = plan
        self.adapter = adapter
        key = (kernel, tuple(sorted(fixed.items())))
        self.sizes: Sizes = plan.cache.setdefault(("sizes", *key), Sizes(plan, kernel, fixed))
        self._cache: dict[Any, Any] = plan.cache.setdefault(("indices", *key, adapter.name), {})

    def located(
        self, columns: Sequence[tuple[Any, Layout | None]], *, apart: bool
    ) -> dict[Any, Any]:
        """Give a cache for what belongs to columns at these places, by batch."""
        places = tuple(
            (None if layout is None or layout.contiguous else layout, *self._place(values))
            for values, layout in columns
        )
        found: dict[Any, Any] = self._cache.setdefault(("located", places, apart), {})
        return found

    def gather(
        self, number: int, dims: tuple[str, ...], layout: Layout | None, like: Any
    ) -> tuple[Any, Any]:
        """Give the flat rows of a batch and where they are real (None: everywhere)."""
        packed = layout is None or layout.contiguous
        key = ("gather", number, dims, None if packed else layout)
        found: tuple[Any, Any] = self._beside(like, key, lambda: self._locate(number, dims, layout))
        return found

    def end_to_end(
        self, number: int, dims: tuple[str, ...], layout: Layout | None, like: Any
    ) -> EndToEnd | None:
        """Give where the rows of a batch lie if they need no copy, as in a slice of arrays.

        Slices of a compiling framework are programs of their own.
        """
        if self.adapter.compiles and not isinstance(like, np.ndarray):
            return None
        batch = self.plan.batches[number]
        if not batch.count:
            return None
        if not dims:
            rows = np.zeros((len(batch.items), 0), np.int64)
            return EndToEnd.of(batch.items, rows, ())
        layout = layout or self.sizes.layout(dims)
        if not len(layout.starts):
            return None
        starts, shapes = layout.starts[batch.items], layout.shapes[batch.items]
        return EndToEnd.of(starts, shapes, self.sizes.capacity(batch, dims))

    def masks(self, number: int, like: Any) -> dict[str, Any]:
        """Give, per ragged dim, which places of a batch are real, (rows, capacity)."""
        masks: dict[str, Any] = self._beside(like, ("masks", number), lambda: self._masks(number))
        return masks

    def rows_or_waste(
        self, number: int, dims: tuple[str, ...], layout: Layout | None, *, waste: int, like: Any
    ) -> Any:
        """Give the flat row of each place of a batch, ``waste`` where it holds nothing of an item.

        A row without an item holds nothing.
        """
        batch = self.plan.batches[number]
        if not dims and batch.count == len(batch.items):
            return self.gather(number, dims, None, like)[0]  # nothing is wasted: the same array
        packed = layout is None or layout.contiguous
        key = ("rows", number, dims, None if packed else layout, waste)
        return self._beside(like, key, lambda: self._rows_or_waste(number, dims, layout, waste))

    def row_mask(self, number: int, like: Any) -> Any:
        """Give which rows of a batch hold an item, (rows,)."""
        batch = self.plan.batches[number]
        return self._beside(
            like, ("row_mask", number), lambda: np.arange(len(batch.items)) < batch.count
        )

    def items(self, number: int, like: Any) -> Any:
        """Give the item of each row of a batch, (rows,)."""
        items = self.plan.batches[number].items
        return self._beside(like, ("items", number), lambda: items.astype(np.int64))

    def places(self, number: int, dims: tuple[str, ...], like: Any) -> Any:
        """Give the real places of a padded output of a batch, None where all are."""
        return self._beside(like, ("places", number, dims), lambda: self._places(number, dims))

    def destination(self, number: int, dims: tuple[str, ...], like: Any) -> Any:
        """Give the flat rows, in input order, of the real places of a batch: indices or a slice."""
        key = ("destination", number, dims)
        if ("host", *key) not in self._cache:
            self._cache["host", *key] = self._destination(number, dims)
        found = self._cache["host", *key]
        return found if isinstance(found, slice) else self._beside(like, key, lambda: found)

    def landing(self, number: int, dims: tuple[str, ...], like: Any) -> tuple[Any, Any]:
        """Give the real places of a padded output of a batch, and where they belong, in one."""
        key = ("landing", number, dims, *self._place(like))
        if key not in self._cache:
            self._cache[key] = self.places(number, dims, like), self.destination(number, dims, like)
        found: tuple[Any, Any] = self._cache[key]
        return found

    def padded_shape(
        self, number: int, dims: tuple[str, ...], tail: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Give the same as `Sizes.padded_shape`, worked out once."""
        key = ("shape", number, dims, tail)
        if key not in self._cache:
            self._cache[key] = self.sizes.padded_shape(self.plan.batches[number], dims, tail)
        found: tuple[int, ...] = self._cache[key]
        return found

    def order(self, dims: tuple[str, ...], like: Any) -> Any:
        """Give the order that puts stored rows back into the order of the input."""
        return self._beside(like, ("order", dims), lambda: self._order(dims))

    def _beside(self, like: Any, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        place = (*key, *self._place(like))
        if place not in self._cache:
            if ("host", *key) not in self._cache:
                self._cache["host", *key] = make()
            self._cache[place] = _map(
                lambda index: self.adapter.index(index, like), self._cache["host", *key]
            )
        return self._cache[place]

    def _place(self, like: Any) -> tuple[type, str]:
        return type(like), str(self.adapter.device_of(like))

    def _locate(self, number: int, dims: tuple[str, ...], layout: Layout | None) -> tuple[Any, Any]:
        batch = self.plan.batches[number]
        if not dims:
            return batch.items.astype(np.int64, copy=False), None
        layout = layout or self.sizes.layout(dims)
        starts, shapes, offsets = self._of_items(layout, batch, dims)
        index, masks = locate(starts, shapes, self.sizes.capacity(batch, dims), offsets=offsets)
        inside = inside_all(masks)
        return index, None if inside.all() else inside

    def _rows_or_waste(
        self, number: int, dims: tuple[str, ...], layout: Layout | None, waste: int
    ) -> NDArray[np.int64]:
        batch = self.plan.batches[number]
        held = np.arange(len(batch.items)) < batch.count
        if not dims:
            return np.where(held, batch.items, waste).astype(np.int64)
        layout = layout or self.sizes.layout(dims)
        starts, shapes, offsets = self._of_items(layout, batch, dims)
        shapes = np.where(held[:, None], shapes, 0)
        capacity = self.sizes.capacity(batch, dims)
        rows: NDArray[np.int64] = locate(starts, shapes, capacity, waste, offsets)[0]
        return rows

    def _masks(self, number: int) -> dict[str, NDArray[np.bool_]]:
        batch = self.plan.batches[number]
        masks = {}
        for dim in self.plan.dims:
            _, shapes, offsets = self._of_items(self.sizes.layout((dim,)), batch, (dim,))
            (masks[dim],) = real_places(shapes, self.sizes.capacity(batch, (dim,)), offsets)
        return masks

    def _destination(self, number: int, dims: tuple[str, ...]) -> slice | NDArray[np.int64]:
        batch = self.plan.batches[number]
        items = batch.items[: batch.count]
        if not dims:
            starts, counts = items.astype(np.int64), np.ones(len(items), np.int64)
        else:
            layout = self.sizes.layout(dims)
            starts, counts = layout.starts[items], layout.counts[items]
        if not len(items):
            return slice(0, 0)
        ends = starts + counts
        if np.array_equal(starts[1:], ends[:-1]):
            return slice(int(starts[0]), int(ends[-1]))
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        rows: NDArray[np.int64] = np.repeat(starts, counts) + within
        return rows

    def _places(self, number: int, dims: tuple[str, ...]) -> NDArray[np.int64] | None:
        batch = self.plan.batches[number]
        full = batch.count == len(batch.items)
        if not dims:
            return None if full else np.arange(batch.count, dtype=np.int64)
        _, shapes, offsets = self._of_items(self.sizes.layout(dims), batch, dims)
        capacity = self.sizes.capacity(batch, dims)
        beyond = (shapes > capacity).any(axis=1)
        if beyond.any():
            row = int(np.argmax(beyond))
            raise DataError(
                f"run: out_sizes of {self.sizes.kernel.name} give item {batch.items[row]} an "
                "output of "
                f"{shapes[row].tolist()} along {dims}, but {list(capacity)} to the capacity "
                f"{batch.capacity} "
                "that holds it. Lengths of outputs must not fall where those of inputs grow; "
                "declare exact= dims."
            )
        if full and (shapes == np.array(capacity)).all():
            return None
        masks = real_places(shapes, capacity, offsets)
        return valid_places(masks, batch.count).astype(np.int64, copy=False)

    def _order(self, dims: tuple[str, ...]) -> NDArray[np.int64] | None:
        batches = self.plan.batches
        items = np.concatenate(
            [np.empty(0, np.intp), *(batch.items[: batch.count] for batch in batches)]
        )
        counts = self.sizes.layout(dims).counts if dims else np.ones(len(items), np.int64)
        return input_order(items, counts)

    def _of_items(
        self, layout: Layout, batch: Batch, dims: tuple[str, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
        """Starts, shapes and offsets of the rows of a batch; size 0 where no item can fill them.

        A batch without items begins in the corner: its rows repeat an item of another batch.
        """
        rows = len(batch.items)
        if len(layout.starts) == 0:
            none = np.zeros((rows, layout.shapes.shape[1]), np.int64)
            return np.zeros(rows, np.int64), none, None
        starts, shapes = layout.starts[batch.items], layout.shapes[batch.items]
        if batch.count == 0:
            capacity = np.array(batch.capacity, np.int64)
            fits = np.all(self.plan.lengths[batch.items] <= capacity, axis=1)
            return starts, np.where(fits[:, None], shapes, 0), None
        offsets = self.sizes.offsets(dims)
        return starts, shapes, None if offsets is None else offsets[batch.items]


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_map(function, part) for part in value)
    if isinstance(value, dict):
        return {name: _map(function, part) for name, part in value.items()}
    return function(value)
