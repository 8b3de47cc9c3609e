"""Which sizes a slot holds, and what it must be to hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError
from stowplan.planners.classes import distinct_rows
from stowplan.planners.sizes import Measure, SizeTable, listed, natural

__all__ = ["Fitter", "Limits", "overflow_message", "read_limits", "slot_code"]

Limits = dict[str, int]


def slot_code(slot: Mapping[str, int]) -> str:
    """The slot as Python, for the cure in a message."""
    return "{" + ", ".join(f'"{name}": {value}' for name, value in slot.items()) + "}"


def bare(limit: Limits) -> Limits:
    return {name: value for name, value in limit.items() if name != "rows"}


class Fitter:
    """Which of the distinct sizes a slot holds, and what it must be to hold them."""

    def __init__(self, table: SizeTable) -> None:
        self.table = table
        self.sizes, self._inverse, self.weights = distinct_rows(table.padded)
        self.columns = table.measure.columns(self.sizes)

    def holds(self, limit: Limits) -> NDArray[np.bool_]:
        """Distinct sizes that a slot admits."""
        held = np.ones(len(self.sizes), bool)
        for name, most in bare(limit).items():
            column = self.columns[name]
            held &= column == most if name in self.table.exact else column <= most
        return held

    def first_fit(
        self, limits: Sequence[Limits], only: NDArray[np.bool_] | None = None
    ) -> NDArray[np.intp]:
        """Index of the first slot that admits each distinct size; len(limits) for none."""
        left = np.flatnonzero(only) if only is not None else np.arange(len(self.sizes))
        choice = np.full(len(left), len(limits), np.intp)
        place = np.arange(len(left))
        columns = {name: column[left] for name, column in self.columns.items()}
        for index, limit in enumerate(limits):
            held = np.ones(len(place), bool)
            for name, most in bare(limit).items():
                exact = name in self.table.exact
                held &= columns[name] == most if exact else columns[name] <= most
            choice[place[held]] = index
            place = place[~held]
            columns = {name: column[~held] for name, column in columns.items()}
        return choice

    def resolve(self, limit: Limits, members: NDArray[np.bool_]) -> Limits:
        """Capacities of every core dim: the limit, or the longest member."""
        dims = self.table.measure.dims
        if all(name in limit for name in dims):
            slot = {name: limit[name] for name in dims}
        else:
            if not members.any():
                members = self.holds(limit)
            longest = self.sizes[members].max(axis=0, initial=1).tolist()
            slot = {n: limit.get(n, most) for n, most in zip(dims, longest, strict=True)}
        return slot | ({"rows": limit["rows"]} if "rows" in limit else {})

    def row_work(self, limit: Limits) -> float:
        """Work of one row, if all that a slot admits entered it."""
        slot = self.resolve(limit, np.zeros(len(self.sizes), bool))
        capacity = np.array([[slot[name] for name in self.table.measure.dims]], np.int64)
        return float(self.table.measure.cost(capacity)[0])

    def split_exact(self, limit: Limits) -> list[Limits]:
        """The slot once for each size of the exact dims that it leaves open."""
        free = [name for name in self.table.exact if name not in limit]
        if not free:
            return [limit]
        axes = [self.table.measure.dims.index(name) for name in free]
        groups = np.unique(self.sizes[self.holds(limit)][:, axes], axis=0).tolist()
        return [limit | dict(zip(free, group, strict=True)) for group in groups] or [limit]

    def tight(self, members: NDArray[np.bool_]) -> list[Limits]:
        """Smallest slots that hold the members: one, or one for each exact size."""
        dims = self.table.measure.dims
        sizes = self.sizes[members]
        axes = self.table.exact_axes
        groups, inverse, _ = distinct_rows(sizes[:, axes])
        longest = np.ones((len(groups), len(dims)), np.int64)
        np.maximum.at(longest, inverse, sizes)
        return [dict(zip(dims, row, strict=True)) for row in longest.tolist()]

    def starved(self, limits: Sequence[Limits], costs: Sequence[float]) -> list[str]:
        """A warning for each slot whose items an earlier, costlier slot takes."""
        choice = self.first_fit(limits)
        paid = np.append(costs, -1.0)[choice]
        ranks = sorted(range(len(limits)), key=costs.__getitem__)
        cure = ", ".join(slot_code(limits[i]) for i in ranks)
        found = []
        for index, limit in enumerate(limits):
            lost = self.holds(limit) & (choice < index) & (paid > costs[index])
            if not lost.any():
                continue
            by = int(choice[lost][np.argmax(paid[lost])])
            could = int(self.weights[self.holds(limit)].sum())
            found.append(
                f"assign_slots: slot {index} ({listed(bare(limit))}) loses "
                f"{int(self.weights[lost].sum())} of the {could} items it holds to larger slots "
                f"listed before it, such as slot {by} ({listed(bare(limits[by]))}). "
                f'List slots by work: slots=[{cure}], or pass order="cheapest".'
            )
        return found

    def counts_of(self, members: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Items whose distinct size is a member, ascending."""
        return np.flatnonzero(members[self._inverse])

    def inverse(self, choice: NDArray[np.intp]) -> NDArray[np.intp]:
        """Choices of distinct sizes as choices of items."""
        return choice[self._inverse]


def read_limits(slot: Mapping[str, int], where: str, measure: Measure) -> Limits:
    """The limits of a slot, rows included, checked; errors begin with `where`."""
    if not isinstance(slot, Mapping):
        raise PlanError(f"{where} must map dims to limits, got {slot!r}")
    for name in slot:
        if name not in (*measure.names, "rows"):
            derived = f"; derived: {', '.join(measure.derived)}" if measure.derived else ""
            raise PlanError(
                f"{where} limits {name!r}, which is no dim. "
                f"Dims: {', '.join(measure.dims)}{derived}."
            )
    return {name: natural(value, f"{where}: {name}") for name, value in slot.items()}


def overflow_message(
    who: str,
    table: SizeTable,
    items: NDArray[np.intp],
    limits: Sequence[Limits],
    costs: Sequence[float],
    *,
    noun: str = "slot",
    with_rows: bool = False,
    extends: bool = False,
) -> str:
    """The error for items that fit no slot: which, how large, and the slot that holds them.

    `with_rows` says that slots carry rows, `extends` that the caller may have one added.
    """
    item = table.item(int(items[0]))
    columns = table.measure.columns(table.padded[items])
    shown = dict(item)
    for name in table.measure.derived:
        if any(name in limit for limit in limits):
            shown[name] = columns[name][0].astype(int).item()
    head = (
        f"{who}: {len(items)} of {len(table.lengths)} items fit no {noun}. "
        f"Item {items[0]} has {listed(shown)}; "
    )
    if not limits:
        largest: Limits = {}
        head += f"there are no {noun}s.\n"
    else:
        largest = bare(limits[int(np.argmax(costs))])
        head += f"the largest {noun} holds {listed(largest)}.\n"
    names = list(largest) or list(table.measure.dims)
    needed = {name: max(largest.get(name, 1), _ceil(columns[name].max())) for name in names}
    several = table.exact and len(np.unique(table.padded[items][:, table.exact_axes], axis=0)) > 1
    for name in table.exact:
        needed[name] = max(item[name], 1)
    what = f"Add a {noun} that holds {'it' if len(items) == 1 else 'them'}"
    if several:
        what = f"Add a {noun} for each exact size, such as"
    dots = "..., " if limits else ""
    if with_rows:
        needed["rows"] = 1
    cure = f"{head}{what}: {noun}s=[{dots}{slot_code(needed)}]"
    return f'{cure}, or pass overflow="extend".' if extends else f"{cure}."


def _ceil(value: Any) -> int:
    return int(np.ceil(value))
