"""The plan: which items share a batch, at which capacity, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError
from stowplan.expressions import Expression
from stowplan.peaks import Forecast
from stowplan.planners.cost import Costs, predict_seconds
from stowplan.planners.offsets import checked_offsets, padded_lengths
from stowplan.planners.sizes import Measure

__all__ = ["Batch", "Packing", "Plan", "empty_batch", "fill_batches"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows that one kernel call computes, padded to one capacity."""

    items: NDArray[np.intp]  # (rows,) item of each row; rows past `count` repeat a valid item
    count: int  # real rows
    capacity: tuple[int, ...]  # padded length of each core dim, in the order of plan.dims
    slot: int  # index into plan.slots
    device: int = 0  # index into the devices of the run


def fill_batches(
    items: NDArray[np.intp], capacity: tuple[int, ...], slot: int, rows: int
) -> list[Batch]:
    """Cut items (count,) into batches of exactly `rows` rows; the last item fills the tail."""
    count = len(items)
    short = -count % rows
    if short:
        items = np.concatenate([items, np.full(short, items[-1])])
    items.flags.writeable = False
    return [
        Batch(items[start : start + rows], min(rows, count - start), capacity, slot)
        for start in range(0, count, rows)
    ]


def empty_batch(
    lengths: NDArray[np.int64], capacity: tuple[int, ...], slot: int, rows: int
) -> Batch:
    """Give a batch without items: its rows repeat the first item that fits, else item 0.

    >>> empty_batch(np.array([[9], [2]]), (4,), slot=0, rows=2).items.tolist()
    [1, 1]
    """
    fits = np.all(lengths <= np.array(capacity, np.int64), axis=1)
    item = int(np.argmax(fits)) if len(fits) else 0
    items = np.full(rows, item, np.intp)
    items.flags.writeable = False
    return Batch(items, 0, capacity, slot)


class Packing(Protocol):
    """How the columns of a kernel become the padded batches of a plan, and back."""

    def pack(self, plan: Plan, data: Any, on: str | None, device: Any) -> tuple[Any, ...]:
        """Give one padded batch for each slot."""

    def unpack(self, plan: Plan, outputs: Any, like: str | None) -> Any:
        """Give results in input order from those of each slot."""


@dataclass(frozen=True, eq=False)
class Plan:
    """All batches of one set of items; made by the planners, never changed.

    Attributes
    ----------
    dims : tuple of str
        Core ragged dims.
    lengths : array (items, dims), int64
        Size of each item, as given (0 is legal).
    slots : tuple of dict
        Capacity of every dim and, once chunked, ``"rows"``; an empty slot has no batch.
    batches : tuple of Batch
        In order of execution.
    work : str
        Cost of an item, an expression of dims and derived names.
    derived : dict
        Named expressions of dims.
    mode : str
        How the slots came about: "given", "chosen", "exact" or "one".
    exact : tuple of str
        Dims that share a slot only at equal size.
    on : str, optional
        Framework the plan was made for.
    costs : Costs, optional
        Constants that `predicted_seconds` uses.
    item_bytes : str, optional
        Bytes of an item, an expression like `work`; adds occupancy by bytes to the table.
    alternatives : dict
        Predicted seconds of other plans for the same items, by name.
    warnings : tuple of str
        What the planners would do otherwise, each with its cure.
    headroom : bool
        Whether the last slot is a catch-all for items of later sets, which compiling frameworks
        compile with the first run.
    offsets : array (items, dims), int64, optional
        Where each item begins in its padded batch; None, also in place of zeros, in its corner.
    memory : Forecast, optional
        Bytes that a run takes at its peak, the budget, and where both come from.
    kernels : int
        Kernels that run on these shapes, each of which compiles them where a framework compiles.
    devices : tuple of str
        Names of the devices that the batches are shared out among; empty where they are not.
    shared_by : str, optional
        How they are, see `share_devices`.
    packing : Packing, optional
        What `pack` and `unpack` do for the kernel that the plan was made for; never saved.
    cache : dict
        Index arrays made by runs; starts empty in every plan and is never saved.
    """

    dims: tuple[str, ...]
    lengths: NDArray[np.int64]
    slots: tuple[dict[str, int], ...]
    batches: tuple[Batch, ...]
    work: str
    derived: dict[str, str] = field(default_factory=dict)
    mode: str = "given"
    exact: tuple[str, ...] = ()
    on: str | None = None
    costs: Costs | None = None
    item_bytes: str | None = None
    alternatives: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    headroom: bool = False
    offsets: NDArray[np.int64] | None = None
    memory: Forecast | None = None
    kernels: int = 1
    devices: tuple[str, ...] = ()
    shared_by: str | None = None
    packing: Packing | None = field(default=None, repr=False)
    # Outside __init__, so that dataclasses.replace never shares it between plans.
    cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.offsets is not None:
            found = checked_offsets("Plan", self.offsets, self.dims, self.lengths, self.batches)
            object.__setattr__(self, "offsets", found)

    @cached_property
    def measure(self) -> Measure:
        """Work and derived sizes, parsed."""
        return Measure.parse(self.dims, self.work, self.derived)

    @property
    def sizes(self) -> dict[str, NDArray[np.int64]]:
        """Size of each item by dim, as the planners take them."""
        return {name: self.lengths[:, axis] for axis, name in enumerate(self.dims)}

    @cached_property
    def capacities(self) -> NDArray[np.int64]:
        """Padded length of each item along each dim, (items, dims)."""
        return padded_lengths(self.batches, self.lengths)

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of a batch in each slot; 0 for an empty slot that carries none."""
        found = [slot.get("rows", 0) for slot in self.slots]
        for batch in self.batches:
            found[batch.slot] = len(batch.items)
        return tuple(found)

    @property
    def shapes(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Distinct (rows, capacity), which are the compile keys, in order of appearance."""
        return tuple(dict.fromkeys((len(batch.items), batch.capacity) for batch in self.batches))

    @property
    def rows_occupancy(self) -> float:
        """Items / rows of all batches."""
        rows = sum(len(batch.items) for batch in self.batches)
        return len(self.lengths) / rows if rows else 1.0

    @property
    def predicted_seconds(self) -> float:
        """Seconds by the plan's costs, see `predict_seconds`; of devices, those of the last one."""
        if not self.devices:
            return predict_seconds(self)
        from stowplan.planners.shards import summarise_shards

        return float(summarise_shards(self).seconds.max())

    def padded_work(self, work: str | None = None) -> float:
        """Sum of rows x work(capacity) over all batches."""
        rows: dict[tuple[int, ...], int] = {}
        for batch in self.batches:
            rows[batch.capacity] = rows.get(batch.capacity, 0) + len(batch.items)
        if not rows:
            return 0.0
        capacities = np.array(list(rows), np.int64).reshape(len(rows), len(self.dims))
        return float(self._evaluate(work, capacities) @ np.array(list(rows.values()), float))

    def occupancy(self, work: str | None = None) -> float:
        """Useful / padded `work`, an expression of dims and derived names (the plan's own).

        >>> from stowplan.planners import assign_slots
        >>> plan = assign_slots({"atoms": [1, 3], "k": [8, 8]}, [{"atoms": 4, "k": 8}])
        >>> plan.occupancy(), plan.occupancy("k")
        (0.5, 1.0)
        """
        padded = self.padded_work(work)
        useful = float(self._evaluate(work, self.lengths).sum())
        return useful / padded if padded else 1.0

    def _evaluate(self, work: str | None, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        if work is None:
            return self.measure.cost(lengths)
        return self.measure.evaluate(Expression.parse(work, self.measure.names), lengths)

    def pack(self, data: Any, *, on: str | None = None, device: Any = None) -> tuple[Any, ...]:
        """Pad the items into one batch of fixed shape for each slot, empty slots included.

        For loops of one's own: a function of these batches is compiled once, whatever the items.

        Parameters
        ----------
        data : mapping or sequence
            One column per positional parameter of the kernel, as for ``sp.run``.
        on, device
            Framework and device of the batches; those of the data by default.

        Returns
        -------
        tuple of PackedBatch
            One for each of `slots`, in their order. A row without an item repeats another; in its
            `mask` and `row_mask` nothing is True.

        Raises
        ------
        PlanError
            For more items in a slot than it has rows, data of other sizes, and a plan that no
            kernel was given to (made by `assign_slots`, or loaded).
        DataError
            For an index column with an entry out of range.

        Examples
        --------
        >>> import stowplan as sp
        >>> @sp.kernel("(points)->()", ragged="points", fill={"x": 0.0})
        ... def total(x):
        ...     return x.sum(axis=-1)
        >>> data = {"x": [[1.0, 2.0], [5.0]]}
        >>> plan = sp.plan(total, data, slots=[{"points": 3, "rows": 4}])
        >>> (batch,) = plan.pack(data)
        >>> batch.arrays[0].shape, batch.mask["points"].shape, batch.row_mask.tolist()
        ((4, 3), (4, 3), [True, True, False, False])
        >>> plan.unpack([total(*batch.arrays)]).tolist()
        [3.0, 5.0]
        """
        return self._packing("pack").pack(self, data, on, device)

    def unpack(self, outputs: Any, *, like: str | None = None) -> Any:
        """Give results in input order from one result per slot: the inverse of `pack`.

        Parameters
        ----------
        outputs : sequence
            For each slot what the kernel returned for its batch, in the order of `slots`; or the
            packed batches themselves, which gives their columns back, by name.
        like : str, optional
            Name of the argument whose shape the arrays have instead, such as a gradient with
            respect to it.

        Returns
        -------
        array, Ragged or tuple of them
            As from ``sp.run``; padding and rows without an item are left out.

        Raises
        ------
        DataError
            For outputs of another number or shape than the slots have.
        """
        return self._packing("unpack").unpack(self, outputs, like)

    def _packing(self, who: str) -> Packing:
        if self.packing is None:
            raise PlanError(
                f"{who}: this plan knows sizes, but no kernel to {who} for. Make it with "
                "sp.plan(kernel, data, slots=plan.slots)."
            )
        return self.packing

    def save(self, path: str | PathLike[str]) -> None:
        """Write `path`.json and `path`.npz; `load` gives the same plan back."""
        from stowplan.planners.saved import save_plan

        save_plan(self, path)

    @staticmethod
    def load(path: str | PathLike[str]) -> Plan:
        """Read what `save` wrote; `path` as given there, or either file."""
        from stowplan.planners.saved import load_plan

        return load_plan(path)

    def summary(self) -> Mapping[str, Any]:
        """What the table prints, as plain values for JSON."""
        from stowplan.planners.tables import summarise

        return summarise(self)

    def __str__(self) -> str:
        from stowplan.planners.tables import table

        return table(self)

    def _repr_html_(self) -> str:
        from stowplan.planners.notebooks import html_table

        return html_table(self)

    def __repr__(self) -> str:
        return (
            f"<Plan {self.mode}: {len(self.lengths)} items, {len(self.slots)} slots, "
            f"{len(self.batches)} batches, occupancy {self.occupancy():.1%}>"
        )
