"""Minibatches of one data set, packed one after the other into the same fixed shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stowplan.adapters import Adapter
from stowplan.declaration import Kernel
from stowplan.errors import DataError, FrameworkError, PlanError
from stowplan.planners.batches import Plan, empty_batch, fill_batches
from stowplan.planners.offsets import place_items
from stowplan.planners.seating import Seats
from stowplan.planners.sizes import listed
from stowplan.runs.columns import Columns, bind, check_indices
from stowplan.runs.host_columns import HostColumns
from stowplan.runs.matching import refuse_moved_targets
from stowplan.runs.packing import KernelPacking, PackedBatch
from stowplan.runs.places import find_places
from stowplan.runs.prefetching import ahead_of
from stowplan.runs.sampling import MinibatchSampler

__all__ = ["Packer"]

AT_ONCE = 64  # minibatches packed in one go: the calls of each array are shared among them
AT_ONCE_BYTES = 4 * 2**20  # ... but no more than a cache likes


class Packer:
    """Packs minibatches of one data set into batches of fixed shape, one for each slot.

    Calling it with items (a list of integers) packs these: it is a ``collate_fn`` for a torch
    ``DataLoader`` over ``range(items)``, in as many workers as wanted. `minibatches` packs all
    that a sampler draws, ahead of the loop that consumes them.

    Parameters
    ----------
    kernel
        A function declared with ``@kernel``.
    data
        One column per positional parameter of it, as for ``sp.run``: the whole data set. It is
        kept on the host.
    slots
        Capacities with ``"rows"``, from `choose_slots` with ``minibatch=`` or by hand.
    on, device
        Framework and device of the batches; the framework of the data by default, on its default
        device. In a loader's worker leave the device to the main process.
    offsets : {"corner", "centre"}
        Where items lie in their padding. Which slot an item takes depends on its company, so that
        no array can say it.

    Raises
    ------
    PlanError
        For an item larger than every slot, slots without rows and, when called, for items that
        find no free row.
    DataError
        For columns that disagree, and index columns with an entry out of range.
    FrameworkError
        For data that require grad, and for a dtype that the framework would narrow.

    Examples
    --------
    >>> import stowplan as sp
    >>> @sp.kernel("(points)->()", ragged="points", fill={"x": 0.0})
    ... def total(x):
    ...     return x.sum(axis=-1)
    >>> data = {"x": [[1.0, 2.0], [5.0], [3.0, 4.0, 5.0]]}
    >>> packer = sp.Packer(total, data, [{"points": 2, "rows": 2}, {"points": 3, "rows": 1}])
    >>> small, large = packer([2, 0])
    >>> small.row_mask.tolist(), large.items.tolist()
    ([True, False], [2])
    >>> packer.unpack([total(*small.arrays), total(*large.arrays)], [2, 0]).tolist()
    [12.0, 3.0]
    """

    def __init__(
        self,
        kernel: Kernel,
        data: Mapping[str, Any] | Sequence[Any],
        slots: Sequence[Mapping[str, int]],
        *,
        on: str | None = None,
        device: Any = None,
        offsets: Literal["corner", "centre"] = "corner",
    ) -> None:
        if not isinstance(offsets, str) or offsets not in ("corner", "centre"):
            raise PlanError(
                f'Packer: offsets={offsets!r}; allowed are "corner" and "centre". With an array '
                "use plan.pack: sp.plan(kernel, data, slots=slots, offsets=...)."
            )
        if offsets == "centre":
            refuse_moved_targets("Packer", kernel, kernel.ragged)
        self.offsets: Literal["corner", "centre"] = offsets
        columns = bind("Packer", kernel, data)
        if not kernel.ragged or not columns.items:
            missing = "items" if kernel.ragged else "ragged dims"
            raise DataError(f"Packer: {kernel.name} has no {missing} to pack.")
        check_indices("Packer", kernel, columns)
        source, self.target = find_places("Packer", columns.arrays, on, device)
        self.kernel = kernel
        values = self._on_host(columns, source.adapter)
        self.columns = HostColumns(kernel, columns, values, centred=offsets == "centre")
        self.seats = Seats(
            columns.lengths,
            slots,
            **kernel.pricing(),
            who="Packer",
        )
        self._capacities = [{dim: slot[dim] for dim in kernel.ragged} for slot in self.slots]
        self._fillers = [
            int(empty_batch(self.columns.lengths, tuple(capacity.values()), 0, 1).items[0])
            for capacity in self._capacities
        ]

    @property
    def slots(self) -> tuple[dict[str, int], ...]:
        """Capacity of every dim, and rows."""
        return self.seats.slots

    @property
    def sizes(self) -> dict[str, NDArray[np.int64]]:
        """Size of each item along each ragged dim, as `MinibatchSampler` takes them."""
        lengths = self.columns.lengths
        return {dim: lengths[:, axis] for axis, dim in enumerate(self.kernel.ragged)}

    def __repr__(self) -> str:
        slots = "; ".join(map(listed, self.slots))
        return f"<Packer of {len(self.columns.lengths)} items for {self.kernel.name}: {slots}>"

    def __call__(self, items: ArrayLike) -> tuple[PackedBatch, ...]:
        """Pack items into one batch for each slot, empty slots included."""
        return self._delivered(self._padded([self._checked(items)]), 0)

    def minibatches(
        self, sampler: MinibatchSampler | Iterable[ArrayLike], *, ahead: int = 2
    ) -> Iterator[tuple[PackedBatch, ...]]:
        """Pack what a sampler draws for the rest of its epoch, in a thread of its own.

        Parameters
        ----------
        sampler
            Advances by one step with each minibatch that is taken from here, so that its
            `state_dict` tells what was consumed, not what was packed ahead. Or any iterable of
            lists of items.
        ahead
            Minibatches that may wait, on the device already; 0 packs without a thread.

        Yields
        ------
        tuple of PackedBatch
            One for each slot.
        """
        moving = sampler if isinstance(sampler, MinibatchSampler) else None
        drawn = moving.minibatches() if moving is not None else sampler
        with ahead_of(self._all_packed(map(self._checked, drawn)), ahead) as batches:
            for batch in batches:
                if moving is not None:
                    moving.advance()
                yield batch
        if moving is not None:
            moving.set_epoch(moving.epoch + 1)

    def plan(self, items: ArrayLike) -> Plan:
        """Give the plan of a minibatch: its occupancy, and what its packing does."""
        chosen = self._checked(items)
        batches = []
        for slot, places in enumerate(self._seated(chosen)):
            if len(places):
                rows = self.slots[slot]["rows"]
                capacity = tuple(self._capacities[slot].values())
                batches += fill_batches(places, capacity, slot, rows)
        made = Plan(
            dims=self.kernel.ragged,
            lengths=self.columns.lengths[chosen],
            slots=self.slots,
            batches=tuple(batches),
            **self.kernel.pricing(),
            packing=KernelPacking(self.kernel),
        )
        return place_items("Packer", made, self.offsets)

    def unpack(self, outputs: Any, items: ArrayLike, *, like: str | None = None) -> Any:
        """Give results in the order of the items from one result per slot, as `Plan.unpack`."""
        return self.plan(items).unpack(outputs, like=like)

    def _on_host(self, columns: Columns, adapter: Adapter) -> list[NDArray[Any]]:
        found = []
        for name, array in zip(self.kernel.arguments, columns.arrays, strict=True):
            if adapter.requires_grad(array):
                raise FrameworkError(
                    f"Packer: column {name!r} requires grad, and packing on the host would cut it "
                    "off. Detach it, or pack with plan.pack."
                )
            host = adapter.to_host(array)
            self.target.adapter.asarray(host[:1], self.target.device)  # refuses to lose digits
            found.append(host)
        return found

    def _checked(self, items: ArrayLike) -> NDArray[np.intp]:
        chosen = np.asarray(items)
        if chosen.size == 0:
            return np.empty(0, np.intp)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise DataError(
                f"Packer: items have shape {chosen.shape} and dtype {chosen.dtype}; give a flat "
                "list of integers."
            )
        count = len(self.columns.lengths)
        beyond = (chosen < 0) | (chosen >= count)
        if beyond.any():
            raise DataError(
                f"Packer: item {chosen[np.argmax(beyond)]} of {count}; items are 0 to {count - 1}."
            )
        return chosen.astype(np.intp, copy=False)

    def _seated(self, items: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        """Positions in `items` of those in each slot."""
        seats = self.seats.seat(items)
        order = np.argsort(seats, kind="stable")
        ends = np.cumsum(np.bincount(seats + 1, minlength=len(self.slots) + 1))
        if ends[0]:
            item = int(items[order[0]])
            sizes = dict(zip(self.kernel.ragged, self.columns.lengths[item].tolist(), strict=True))
            raise PlanError(
                f"Packer: {ends[0]} of {len(items)} items find no free row. Item {item} has "
                f"{listed(sizes)}; the slots that hold it are full, of rows "
                f"{', '.join(str(slot['rows']) for slot in self.slots)}. "
                "Draw minibatches that fit with sp.MinibatchSampler, or give the slots more rows."
            )
        return [order[start:end] for start, end in pairwise(ends)]

    def _all_packed(
        self, minibatches: Iterator[NDArray[np.intp]]
    ) -> Iterator[tuple[PackedBatch, ...]]:
        """Pack minibatches in groups, whose size follows from the bytes of the first."""
        at_once = 1
        while group := list(islice(minibatches, at_once)):
            slots = self._padded(group)
            yield from (self._delivered(slots, number) for number in range(len(group)))
            bytes_each = sum(leaf.nbytes for batch in slots for leaf in batch.arrays) // len(group)
            at_once = int(np.clip(AT_ONCE_BYTES // max(bytes_each, 1), 1, AT_ONCE))

    def _padded(self, group: Sequence[NDArray[np.intp]]) -> list[PackedBatch]:
        """Pad several minibatches, slot by slot; their number leads every array."""
        seated = [self._seated(items) for items in group]
        slots = []
        for slot, filler in enumerate(self._fillers):
            items = np.full((len(group), self.slots[slot]["rows"]), filler)
            counts = np.array([len(places[slot]) for places in seated])
            for row, count, chosen, places in zip(items, counts, group, seated, strict=True):
                row[:count] = chosen[places[slot]]
            slots.append(self.columns.pad(items, counts, self._capacities[slot]))
        return slots

    def _delivered(self, slots: Sequence[PackedBatch], number: int) -> tuple[PackedBatch, ...]:
        """Put one of several minibatches on the device."""
        adapter, device = self.target.adapter, self.target.device
        leaves = [leaf[number] for batch in slots for leaf in batch.leaves()]
        put = iter(adapter.put(leaves, device))
        return tuple(batch.with_leaves(put) for batch in slots)
