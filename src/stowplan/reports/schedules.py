"""When each device computes which batches, by the costs of a plan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from stowplan.planners.batches import Plan
from stowplan.planners.cost import Costs
from stowplan.planners.shards import summarise_shards

__all__ = ["Span", "schedule"]

MOST_SPANS = 300


class Span(NamedTuple):
    """Something that a device does from one second to another."""

    device: int
    start: float
    stop: float
    slot: int | None  # None while it compiles, or waits for others to
    batches: int = 0


def schedule(plan: Plan, most: int = MOST_SPANS) -> list[Span]:
    """Give what each device does, in order of time.

    Devices are done as `summarise_shards` says. Compiles take turns on the host, and stand first.
    Where there are more than `most` spans, batches of a slot that follow each other are one; then
    all batches of a slot on a device.

    Examples
    --------
    >>> from stowplan.planners import Costs, assign_slots
    >>> from dataclasses import replace
    >>> plan = assign_slots({"atoms": [3, 9]}, [{"atoms": 3}, {"atoms": 9}])
    >>> plan = replace(plan, costs=Costs(work_seconds=1.0, launch_seconds=0.5, compile_seconds=2.0))
    >>> [(span.start, span.stop, span.slot) for span in schedule(plan)]
    [(0.0, 4.0, None), (4.0, 7.5, 0), (7.5, 17.0, 1)]
    """
    costs = plan.costs or Costs()
    devices = max(len(plan.devices), 1)
    shared = plan.shared_by == "rows"
    shapes = len(plan.shapes) if shared else int(summarise_shards(plan).shapes.sum())
    compiling = shapes * costs.compile_seconds
    now = np.full(devices, compiling)
    spans = [Span(device, 0.0, compiling, None) for device in range(devices) if compiling]
    work = {
        capacity: float(plan.measure.cost(np.array([capacity], np.int64))[0])
        for _, capacity in plan.shapes
    }
    for batch in plan.batches:
        rows = len(batch.items) / (devices if shared else 1)
        seconds = costs.seconds(rows * work[batch.capacity], 1, 0)
        for device in range(devices) if shared else (batch.device,):
            start = float(now[device])
            now[device] = start + seconds
            spans.append(Span(device, start, float(now[device]), batch.slot, 1))
    if len(spans) > most:
        spans = _joined(spans)
    if len(spans) > most:
        spans = _by_slot(spans, compiling)
    return spans


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Join what a device does with one slot without a break."""
    found: list[Span] = []
    for span in sorted(spans):
        last = found[-1] if found else None
        if last is not None and (last.device, last.slot) == (span.device, span.slot):
            found[-1] = last._replace(stop=span.stop, batches=last.batches + span.batches)
        else:
            found.append(span)
    return found


def _by_slot(spans: Iterable[Span], compiling: float) -> list[Span]:
    """Put all batches of a slot on a device together, slots in order."""
    taken: dict[tuple[int, int], tuple[float, int]] = {}
    found = []
    for span in spans:
        if span.slot is None:
            found.append(span)
            continue
        seconds, batches = taken.get((span.device, span.slot), (0.0, 0))
        taken[span.device, span.slot] = (
            seconds + span.stop - span.start,
            batches + span.batches,
        )
    now: dict[int, float] = {}
    for (device, slot), (seconds, batches) in sorted(taken.items()):
        start = now.get(device, compiling)
        now[device] = start + seconds
        found.append(Span(device, start, now[device], slot, batches))
    return found
