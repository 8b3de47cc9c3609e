"""The columns of a data set on the host, padded in NumPy to any capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.declaration import Kernel
from stowplan.gather import locate, real_places
from stowplan.layout import Layout
from stowplan.ragged import Ragged
from stowplan.runs.columns import Columns
from stowplan.runs.packing import PackedBatch

__all__ = ["HostColumns"]


@dataclass(frozen=True, slots=True)
class _Flat:
    """A ragged column whose last row is one of fill, which padding points to."""

    values: NDArray[Any]
    layout: Layout
    dims: tuple[str, ...]

    @classmethod
    def of(cls, values: NDArray[Any], layout: Layout, dims: tuple[str, ...], fill: float) -> _Flat:
        padding = np.full((1, *values.shape[1:]), fill, values.dtype)
        return cls(np.concatenate([values, padding]), layout, dims)

    @property
    def places(self) -> tuple[tuple[str, ...], Layout | None, int]:
        """What columns that are padded alike have in common."""
        return self.dims, None if self.layout.contiguous else self.layout, len(self.values)

    def rows(
        self,
        items: NDArray[np.intp],
        lengths: NDArray[np.int64],
        capacity: Sequence[int],
        offsets: NDArray[np.int64] | None,
    ) -> NDArray[np.int64]:
        """Row of the values at each place of padded items, (rows, *capacity)."""
        starts, padding = self.layout.starts[items], len(self.values) - 1
        index: NDArray[np.int64]
        if len(capacity) > 1:
            index, _ = locate(starts, lengths, capacity, padding, offsets)
            return index
        place = np.arange(capacity[0])  # half the time of what serves every framework
        if offsets is not None:
            place = place - offsets
        index = starts[:, None] + place
        np.copyto(index, padding, where=place >= lengths)
        if offsets is not None:
            np.copyto(index, padding, where=place < 0)
        return index


class HostColumns:
    """Pads chosen items: every column takes one call of NumPy, however many rows there are."""

    def __init__(
        self,
        kernel: Kernel,
        columns: Columns,
        values: Sequence[NDArray[Any]],
        *,
        centred: bool = False,
    ) -> None:
        """Keep the bound columns of a kernel, whose values are given on the host.

        ``centred`` items lie in the middle of their padding, others in its corner.
        """
        self.centred = centred
        self.dims = kernel.ragged
        self.lengths = np.stack([columns.lengths[dim] for dim in self.dims], axis=1)
        self.columns: list[_Flat | NDArray[Any]] = [
            _Flat.of(host, column.layout, kernel.ragged_dims(core), kernel.fill.get(name, 0))
            if isinstance(column, Ragged)
            else np.asarray(host, order="C")
            for name, column, core, host in zip(
                kernel.arguments, columns.values, kernel.signature.inputs, values, strict=True
            )
        ]
        self.segments = {
            dim: _Flat.of(ids.values, ids.layout, (dim,), -1)
            for dim, ids in columns.segments.items()
        }

    def pad(
        self, items: NDArray[np.intp], counts: NDArray[np.intp], capacity: Mapping[str, int]
    ) -> PackedBatch:
        """Pad the rows of several batches alike; their number leads every array.

        Parameters
        ----------
        items : (batches, rows)
            Item of each row; those past the count repeat another.
        counts : (batches,)
            Rows that hold an item.
        capacity
            Padded length along each dim. Repeated items that exceed it are all fill.
        """
        batches, rows = items.shape
        row_mask = np.arange(rows) < counts[:, None]
        lengths = self.lengths[items.reshape(-1)]
        real = np.where(row_mask.reshape(-1, 1), lengths, 0)
        padded_lengths = list(capacity.values())
        if (lengths > padded_lengths).any():
            lengths = real
        offsets = (padded_lengths - lengths) // 2 if self.centred else None
        mask = {
            dim: inside.reshape(batches, rows, length)
            for (dim, length), inside in zip(
                capacity.items(), real_places(real, padded_lengths, offsets), strict=True
            )
        }
        located: dict[Any, NDArray[np.int64]] = {}

        def padded(column: _Flat | NDArray[Any]) -> NDArray[Any]:
            if not isinstance(column, _Flat):
                return column.take(items, axis=0)
            if column.places not in located:
                axes = [self.dims.index(dim) for dim in column.dims]
                along = [capacity[dim] for dim in column.dims]
                begins = None if offsets is None else offsets[:, axes]
                index = column.rows(items.reshape(-1), lengths[:, axes], along, begins)
                located[column.places] = index.reshape(batches, rows, *along)
            return column.values.take(located[column.places], axis=0)

        arrays = tuple(padded(column) for column in self.columns)
        segments = {dim: padded(ids) for dim, ids in self.segments.items()}
        return PackedBatch(arrays, mask, row_mask, items, segments)
