"""What a plan of residency says: every load, eviction and write in order, exact in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError
from stowplan.memory import show_bytes

__all__ = ["EVENT", "KINDS", "Event", "Residency"]

KINDS = ("load", "prefetch", "evict", "write", "make")
LOAD, PREFETCH, EVICT, WRITE, MAKE = range(5)
EVENT = np.dtype(
    [
        ("step", np.int64),  # when it happens: before this step computes, or while it does
        ("needed", np.int64),  # the step it is done for; a later one: done while `step` computes
        ("kind", np.int8),  # of KINDS
        ("item", np.int64),
        ("source", np.int8),  # tier, -1 for none
        ("target", np.int8),
        ("bytes", np.int64),
    ]
)
LINES = 24
"""Steps that a printed timeline shows one by one."""
NAMED = 6
"""Items that a line names."""


class Event(NamedTuple):
    """One item that is moved, dropped or written."""

    step: int
    needed: int
    kind: str
    item: int
    source: str | None
    target: str
    bytes: int


@dataclass(frozen=True, eq=False)
class Residency:
    """Where every item is at every step, and what is moved in between.

    Made by `keep_resident`. Events stand in the order in which they are carried out, one by one,
    by one thread. Those of a step, ``before(step)``, are done before it computes. Those that are
    done for later steps, ``during(step)``, may run while it does, and touch nothing that it uses.
    """

    tiers: tuple[str, ...]  # fastest first, the disk last
    budgets: tuple[int | None, ...]  # bytes; None is unbounded
    sizes: NDArray[np.int64]  # (items,) bytes
    items: NDArray[np.int64]  # items of all steps, step by step
    starts: NDArray[np.int64]  # (steps + 1,) where a step's items begin
    first: NDArray[np.int8]  # (items,) tier where each item begins, -1 for one that is made
    on_disk: NDArray[np.bool_]  # (items,) whether the disk has it at the beginning
    events: NDArray[Any]  # (events,) of dtype EVENT, in order

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[Event]:
        """Every event in order, by name."""
        yield from self._named(self.events)

    def _named(self, events: NDArray[Any]) -> list[Event]:
        return [
            Event(
                step, needed, KINDS[kind], item, self.tiers[source] if source >= 0 else None,
                self.tiers[target], size,
            )
            for step, needed, kind, item, source, target, size in events.tolist()
        ]  # fmt: skip

    def _of(self, step: int) -> NDArray[Any]:
        if not 0 <= step < len(self):
            raise PlanError(f"Residency: step {step} is none of its {len(self)} steps.")
        first, past = np.searchsorted(self.events["step"], [step, step + 1])
        found: NDArray[Any] = self.events[first:past]
        return found

    def needs(self, step: int) -> list[int]:
        """Items that a step uses."""
        self._of(step)
        found: list[int] = self.items[self.starts[step] : self.starts[step + 1]].tolist()
        return found

    def before(self, step: int) -> list[Event]:
        """Events that must be done before a step computes, in order."""
        events = self._of(step)
        return self._named(events[events["needed"] == step])

    def during(self, step: int) -> list[Event]:
        """Events for later steps that may run while a step computes, in order."""
        events = self._of(step)
        return self._named(events[events["needed"] > step])

    @cached_property
    def resident_bytes(self) -> NDArray[np.int64]:
        """Bytes on each tier at the beginning and after every event, (events + 1, tiers).

        A move adds to its target first and is taken off its source then: both are counted while
        it lasts, and the disk keeps what is loaded from it.
        """
        events, disk = self.events, len(self.tiers) - 1
        change = np.zeros((len(events) + 1, disk + 1), np.int64)
        for tier in range(disk):
            np.add.at(change[0], tier, self.sizes[self.first == tier].sum())
        change[0, disk] = self.sizes[self.on_disk].sum()
        place = np.arange(1, len(events) + 1)
        size, kind = events["bytes"], events["kind"]
        source, target = events["source"], events["target"]
        kept = (target < disk) | (kind == WRITE)
        left = (source >= 0) & (source < disk) & (kind != WRITE)
        change[place[kept], target[kept]] += size[kept]
        change[place[left], source[left]] -= size[left]
        return np.cumsum(change, axis=0)

    @property
    def peak_bytes(self) -> dict[str, int]:
        """The most bytes that each tier ever holds."""
        return dict(zip(self.tiers, self.resident_bytes.max(axis=0).tolist(), strict=True))

    @property
    def _loaded(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.events["kind"] <= PREFETCH
        return found

    @property
    def loads(self) -> int:
        """Loads into the fastest tier, prefetched or not."""
        return int(self._loaded.sum())

    @property
    def disk_loads(self) -> int:
        """Loads that read the disk."""
        return int((self._loaded & (self.events["source"] == len(self.tiers) - 1)).sum())

    @property
    def prefetched(self) -> int:
        """Loads that are done while an earlier step computes."""
        return int((self.events["kind"] == PREFETCH).sum())

    @property
    def evictions(self) -> int:
        """Items that leave the fastest tier, each time."""
        return int(((self.events["kind"] == EVICT) & (self.events["source"] == 0)).sum())

    @property
    def writes(self) -> int:
        """Items written to the disk: each at most once."""
        return int((self.events["kind"] == WRITE).sum())

    @property
    def moved_bytes(self) -> dict[tuple[str, str], int]:
        """Bytes that go from one tier to another; what is dropped or made moves nothing."""
        kind, disk = self.events["kind"], len(self.tiers) - 1
        moved = (self._loaded | (kind == WRITE)) | (
            (kind == EVICT) & (self.events["target"] < disk)
        )
        found = {}
        for source in range(disk + 1):
            for target in range(disk + 1):
                ways = (self.events["source"] == source) & (self.events["target"] == target)
                if (ways & moved).any():
                    size = int(self.events["bytes"][ways & moved].sum())
                    found[self.tiers[source], self.tiers[target]] = size
        return found

    @property
    def summary(self) -> str:
        """Loads, evictions, bytes moved and peaks in a few words."""
        counts = (
            f"{self.loads} loads ({self.disk_loads} from {self.tiers[-1]}, {self.prefetched} "
            f"ahead), {self.evictions} evictions, {self.writes} writes"
        )
        moved = [
            f"{source} -> {target} {show_bytes(size)}"
            for (source, target), size in self.moved_bytes.items()
        ]
        peaks = [
            f"{name} {show_bytes(self.peak_bytes[name])} of {show_bytes(budget)}"
            for name, budget in zip(self.tiers, self.budgets, strict=True)
            if budget is not None
        ]
        return f"{counts}; moved: {', '.join(moved) or 'nothing'}; peak: {', '.join(peaks)}"

    def __str__(self) -> str:
        steps = len(self)
        head = f"{len(self.sizes)} items, {steps} steps on {', '.join(self.tiers)}"
        if steps <= LINES:
            lines = [self._line(step) for step in range(steps)]
        else:
            first, last = LINES * 3 // 4, LINES // 4
            hidden = self.events[np.isin(self.events["step"], np.arange(first, steps - last))]
            loads = int((hidden["kind"] <= PREFETCH).sum())
            gone = int(((hidden["kind"] == EVICT) & (hidden["source"] == 0)).sum())
            lines = [
                *(self._line(step) for step in range(first)),
                f"... {steps - first - last} steps: {loads} loads, {gone} evictions",
                *(self._line(step) for step in range(steps - last, steps)),
            ]
        return "\n".join([head, *lines, self.summary])

    def _line(self, step: int) -> str:
        parts = [f"step {step} uses {_some(self.needs(step))}"]
        events = self._of(step)
        ahead = events["needed"] > step
        before = self._moves(events[~ahead])
        if before:
            parts.append(f"first {before}")
        during = self._moves(events[ahead])
        if during:
            parts.append(f"meanwhile {during}")
        return "; ".join(parts)

    def _moves(self, events: NDArray[Any]) -> str:
        groups: dict[tuple[str, str], list[int]] = {}
        for event in self._named(events):
            if event.kind == "make":
                way = ("make", "")
            elif event.kind == "evict":
                dropped = event.target == self.tiers[-1]
                way = ("drop", f" from {event.source}") if dropped else ("move", f" {event.source}")
                way = way if dropped else (way[0], f" from {event.source} to {event.target}")
            elif event.kind == "write":
                way = ("write", f" from {event.source} to {event.target}")
            else:
                way = ("load", f" from {event.source}")
            groups.setdefault(way, []).append(event.item)
        return ", ".join(f"{verb} {_some(items)}{ways}" for (verb, ways), items in groups.items())


def _some(items: list[int]) -> str:
    named = " ".join(map(str, items[:NAMED]))
    return named if len(items) <= NAMED else f"{named} ... ({len(items)} items)"
