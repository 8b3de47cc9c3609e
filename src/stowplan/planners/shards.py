"""The batches of a plan shared out among devices: whole batches, rows of each, or items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError
from stowplan.planners.batches import Batch, Plan, empty_batch, fill_batches
from stowplan.planners.cost import Costs, row_ladder
from stowplan.planners.sizes import refuse_overflow

__all__ = ["By", "Shards", "cheapest_shares", "share_devices", "summarise_shards"]

By: TypeAlias = Literal["work", "rows", "items"]
Shape: TypeAlias = tuple[int, tuple[int, ...]]  # rows and capacity of a batch

HOW = {
    "work": "each batch on one, longest first",
    "rows": "one program over all, equal rows of every batch on each",
    "items": "items or slots dealt out by work",
}
"""What a table says of each way to share."""


@dataclass(frozen=True)
class Shards:
    """What a shared plan expects of its devices.

    Attributes
    ----------
    seconds : (devices,)
        When each device is done: work, launches, and all compiles. Each device compiles the shapes
        that it meets, and these compiles take turns on the host.
    batches, items, shapes : (devices,)
        What each computes; by rows every device has a part of every batch.
    """

    seconds: NDArray[np.float64]
    batches: NDArray[np.int64]
    items: NDArray[np.int64]
    shapes: NDArray[np.int64]

    @property
    def imbalance(self) -> float:
        """Seconds of the last device over the mean: 1 where all are done at once."""
        mean = float(self.seconds.mean()) if len(self.seconds) else 0.0
        return float(self.seconds.max()) / mean if mean else 1.0


def share_devices(
    plan: Plan, devices: int | Sequence[str], by: By = "work", *, keep_rows: bool = False
) -> Plan:
    """Share a plan out among devices of equal speed.

    Parameters
    ----------
    plan : Plan
        Shared already or not.
    devices : int or sequence of str
        How many, or their names, for the table.
    by : {"work", "rows", "items"}
        ``"work"``: each batch is computed by one device. The longest come first, each on the device
        that is done with it first. With shapes to compile, which each device does for itself,
        devices keep to the shapes they have, where that is done sooner. ``"rows"``: every
        device computes as many rows of every batch, in one program. Rows become a multiple of the
        number of devices; those past the items repeat one. ``"items"``, for `iterate`: the items
        of each slot are dealt out, and each device works on its own; or each slot is a device's
        alone, where that is done sooner: it is compiled once, and ends in one tail of few rows.
    keep_rows : bool
        By items, keep the rows of a slot, also where a device has fewer items.

    Returns
    -------
    Plan
        Every batch carries its ``device``; by rows, where all have a part of it, 0.

    Raises
    ------
    PlanError
        For fewer than one device, a device named twice, and another word for ``by``.

    Notes
    -----
    Without compiles, longest first ends at most 4/3 - 1/(3 m) times later than the best possible
    way for m devices (R. L. Graham, SIAM J. Appl. Math. 17, 416 (1969)).

    Examples
    --------
    >>> import stowplan as sp
    >>> plan = sp.assign_slots({"atoms": [3, 4, 7, 8, 20]}, [{"atoms": n} for n in (4, 8, 20)])
    >>> shared = sp.share_devices(plan, 2)
    >>> [batch.device for batch in shared.batches]
    [1, 1, 0]
    >>> [len(batch.items) for batch in sp.share_devices(plan, 2, by="rows").batches]
    [2, 2, 2]
    """
    names = _names(devices)
    if by not in HOW:
        raise PlanError(
            f'share_devices: by={by!r}; allowed are "work" (whole batches), "rows" (a part of each '
            'batch) and "items" (for iterate).'
        )
    if by == "rows":
        made = _by_rows(plan, len(names))
    elif by == "items":
        dealt = [
            replace(_by_items(plan, len(names), keep_rows, whole), devices=names, shared_by=by)
            for whole in (False, True)
        ]
        made = min(dealt, key=lambda each: float(summarise_shards(each).seconds.max()))
    else:
        made = _by_work(plan, len(names))
    return replace(made, devices=names, shared_by=by)


def cheapest_shares(plan: Plan, devices: int | Sequence[str], *, program: bool) -> Plan:
    """Share by work, or by rows where one program can run on all devices and is done sooner.

    One program is compiled once for each shape, and pads rows; devices of their own compile each.
    """
    shared = share_devices(plan, devices)
    if not program:
        return shared
    one = share_devices(plan, devices, by="rows")
    return one if one.predicted_seconds < shared.predicted_seconds else shared


def summarise_shards(plan: Plan) -> Shards:
    """Say what each device of a shared plan does, and when it is done, by the plan's costs.

    >>> from stowplan.planners import assign_slots
    >>> plan = assign_slots({"atoms": [3, 9]}, [{"atoms": 3}, {"atoms": 9}])
    >>> plan = replace(plan, costs=Costs(work_seconds=1.0, launch_seconds=0.0))
    >>> shards = summarise_shards(share_devices(plan, 2))
    >>> shards.seconds.tolist(), shards.imbalance
    ([9.0, 3.0], 1.5)
    """
    count = max(len(plan.devices), 1)
    costs = plan.costs or Costs()
    counts = np.array([batch.count for batch in plan.batches], np.int64)
    if plan.shared_by == "rows":
        each = costs.seconds(plan.padded_work() / count, len(plan.batches), len(plan.shapes))
        return Shards(
            np.full(count, each),
            np.full(count, len(plan.batches)),
            np.array([len(part) for part in np.array_split(np.arange(counts.sum()), count)]),
            np.full(count, len(plan.shapes)),
        )
    where = np.array([batch.device for batch in plan.batches], np.intp)
    met = {*zip(where.tolist(), _shapes(plan), strict=True)}
    shapes = np.bincount(np.array([device for device, _ in met], np.intp), minlength=count)
    seconds = np.bincount(where, _batch_seconds(plan), count) + shapes.sum() * costs.compile_seconds
    batches = np.bincount(where, minlength=count)
    return Shards(seconds, batches, np.bincount(where, counts, count).astype(np.int64), shapes)


def _names(devices: int | Sequence[str]) -> tuple[str, ...]:
    whole = isinstance(devices, int | np.integer) and not isinstance(devices, bool)
    if whole and int(devices) >= 1:  # type: ignore[arg-type]  # no sequence is whole
        return tuple(str(number) for number in range(int(devices)))  # type: ignore[arg-type]
    if whole or isinstance(devices, str | bool) or not isinstance(devices, Sequence) or not devices:
        raise PlanError(
            f"share_devices: devices={devices!r}; give how many, from 1, or their names."
        )
    names = tuple(str(name) for name in devices)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise PlanError(f"share_devices: device {twice[0]} is named twice; name each once.")
    return names


def _by_work(plan: Plan, devices: int) -> Plan:
    seconds, shapes = _batch_seconds(plan), _shapes(plan)
    compile_seconds = (plan.costs or Costs()).compile_seconds
    tries = [_longest_first(seconds, shapes, devices, 0.0, devices)]
    if compile_seconds and devices > 1:
        fewer = [step for step in row_ladder(devices) if step <= devices]
        tries += [_longest_first(seconds, shapes, devices, compile_seconds, most) for most in fewer]
    found = min(tries, key=lambda where: _last_done(where, seconds, shapes, compile_seconds))
    batches = tuple(
        replace(batch, device=device) for batch, device in zip(plan.batches, found, strict=True)
    )
    return replace(plan, batches=batches)


def _longest_first(
    seconds: NDArray[np.float64],
    shapes: Sequence[Shape],
    devices: int,
    compile_seconds: float,
    most: int,
) -> list[int]:
    """Give the device of each batch: the one that is done first with what it has and this.

    A shape is compiled by ``most`` devices at most; if not by all, the shape of most work is first.
    """
    busy = np.zeros(devices)
    compiled = {shape: np.zeros(devices, np.bool_) for shape in shapes}
    together = dict.fromkeys(shapes, 0.0)
    for shape, each in zip(shapes, seconds.tolist(), strict=True):
        together[shape] += each
    first = np.array([-together[shape] if most < devices else 0.0 for shape in shapes], np.float64)
    found = [0] * len(seconds)
    for batch in np.lexsort((-seconds, first)).tolist():
        known = compiled[shapes[batch]]
        done = busy + np.where(known, 0.0, compile_seconds)
        if np.count_nonzero(known) >= most:
            done = np.where(known, done, np.inf)
        device = int(np.argmin(done))
        busy[device] = done[device] + seconds[batch]
        known[device] = True
        found[batch] = device
    return found


def _last_done(
    where: Sequence[int],
    seconds: NDArray[np.float64],
    shapes: Sequence[Shape],
    compile_seconds: float,
) -> float:
    if not len(seconds):
        return 0.0
    compiles = len({*zip(where, shapes, strict=True)})
    return float(np.bincount(np.array(where, np.intp), seconds).max() + compiles * compile_seconds)


def _by_rows(plan: Plan, devices: int) -> Plan:
    """Cut the batches of a slot anew, with rows that all devices have alike."""
    slots = [dict(slot) for slot in plan.slots]
    batches: list[Batch] = []
    for (slot, capacity), group in _groups(plan).items():
        rows = -(-len(group[0].items) // devices) * devices
        refuse_overflow("share_devices", rows, capacity, plan.dims)
        if "rows" in slots[slot]:
            slots[slot]["rows"] = rows
        items = _items(group)
        if len(items):
            batches += fill_batches(items, capacity, slot, rows)
        else:
            batches.append(empty_batch(plan.lengths, capacity, slot, rows))
    return replace(plan, slots=tuple(slots), batches=tuple(batches))


def _by_items(plan: Plan, devices: int, keep_rows: bool, whole: bool) -> Plan:
    """Deal the items of each slot out, or each slot as a whole, those of most work first.

    As a whole slots go by what their rows say of it, count s = (r s)^2 / (m c) in the terms of
    `rows_in_turn`: the next set, whose rows are the same, finds each where it was compiled.
    """
    slots = [dict(slot) for slot in plan.slots]
    ladder = bool((plan.costs or Costs()).compile_seconds)
    groups = _groups(plan)
    work = {key: _row_work(plan, key[1]) for key in groups}
    busy = np.zeros(devices)
    dealt: dict[tuple[int, tuple[int, ...]], list[Batch]] = {}
    wholes = {key: (work[key] * len(groups[key][0].items)) ** 2 for key in groups}
    given = {key: work[key] * len(_items(groups[key])) for key in groups}
    weights = wholes if whole else given
    for key in sorted(groups, key=lambda key: -weights[key]):
        (slot, capacity), group = key, groups[key]
        items, rows = _items(group), len(group[0].items)
        most = max(len(items) if whole else -(-len(items) // devices), 1)
        if not keep_rows:
            rows = min(rows, row_ladder(most)[-1] if ladder else most)
            if "rows" in slots[slot]:
                slots[slot]["rows"] = rows
        order = np.argsort(busy, kind="stable").tolist()  # who has least gets one more
        takers = order[:1] if whole else order
        dealt[key] = [] if len(items) else list(group)
        for place, device in enumerate(takers):
            own = items[place :: len(takers)]
            busy[device] += wholes[key] if whole else work[key] * len(own)
            filled = fill_batches(own, capacity, slot, rows) if len(own) else []
            dealt[key] += [replace(batch, device=device) for batch in filled]
    batches = tuple(batch for key in groups for batch in dealt[key])
    return replace(plan, slots=tuple(slots), batches=batches)


def _groups(plan: Plan) -> dict[tuple[int, tuple[int, ...]], list[Batch]]:
    groups: dict[tuple[int, tuple[int, ...]], list[Batch]] = {}
    for batch in plan.batches:
        groups.setdefault((batch.slot, batch.capacity), []).append(batch)
    return groups


def _items(group: Sequence[Batch]) -> NDArray[np.intp]:
    return np.concatenate([batch.items[: batch.count] for batch in group])


def _shapes(plan: Plan) -> list[Shape]:
    return [(len(batch.items), batch.capacity) for batch in plan.batches]


def _batch_seconds(plan: Plan) -> NDArray[np.float64]:
    costs = plan.costs or Costs()
    work = {capacity: _row_work(plan, capacity) for _, capacity in plan.shapes}
    return np.array(
        [costs.seconds(len(b.items) * work[b.capacity], 1, 0) for b in plan.batches], np.float64
    )


def _row_work(plan: Plan, capacity: tuple[int, ...]) -> float:
    return float(plan.measure.cost(np.array([capacity], np.int64))[0])
