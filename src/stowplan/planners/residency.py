"""Which items stay in memory while known steps use them: Belady's eviction over tiers."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stowplan.errors import BudgetError, PlanError
from stowplan.memory import show_bytes
from stowplan.planners.accesses import (
    bytes_of_items,
    dirty_items,
    first_tiers,
    named_tiers,
    refuse_large_steps,
    used_items,
)
from stowplan.planners.sizes import natural
from stowplan.planners.timeline import EVENT, EVICT, LOAD, MAKE, PREFETCH, WRITE, Residency

__all__ = ["keep_resident"]

Farness = tuple[int, bool, int, int]
"""Sorts items, farthest next use first; equal ones: on disk first, then longest unused."""
NEVER = np.iinfo(np.int64).max
MOST_UNUSED = 10**8
"""Items that may have a size and no use, by one size for all; each takes tens of bytes here."""


def keep_resident(
    accesses: Iterable[Any],
    sizes: ArrayLike,
    budgets: Mapping[str, Any] | Sequence[Any],
    *,
    prefetch: int = 1,
    start: Any = None,
    dirty: Iterable[int] = (),
) -> Residency:
    """Plan what is loaded and evicted, and when, so that every step finds its items.

    What has to go is what is used farthest in the future (Belady). What leaves a tier goes to the
    next one if that has room, or holds something used later still, which goes in its place; else
    it is dropped, since the disk has it. An item is on one memory tier at a time.

    Parameters
    ----------
    accesses
        The steps in order. Each is an item, or the items that are needed together: a pair, a
        batch. An array (steps,) or (steps, k), or a sequence.
    sizes : int or (items,) array of int
        Bytes of each item.
    budgets
        Bytes of each tier, fastest first: ``{"device": "1 GiB", "host": "8 GiB"}``, pairs of the
        same, or a sequence of one or two budgets, which are those tiers. The disk comes last, and
        is unbounded unless it is given (``"disk": "1 TB"``).
    prefetch
        How many steps ahead of its step an item may be loaded, while earlier ones compute. Loads
        of the same plan are done sooner, as far as nothing must make room that is used before:
        prefetching adds no load and no byte. 0: every load waits for its step.
    start
        Tier where each item begins, by name: one for all, or one an item. The disk by default.
    dirty
        Items that the disk does not have. They begin on a memory tier (`start`); those that do not
        are made by the first step that uses them. They are written once, where they leave memory.

    Returns
    -------
    Residency
        All events in order; ``print`` shows a timeline.

    Raises
    ------
    PlanError
        For items without a size, negative sizes, tiers that are not there.
    BudgetError
        For a budget of less than one byte, for a step whose items exceed the fastest budget
        together, for items that exceed the tier they begin on, and where the disk overflows.

    Notes
    -----
    Items of one size: no plan has fewer loads (L. A. Belady, IBM Syst. J. 5, 78 (1966)). Of
    several sizes that question is NP-hard: the farthest are evicted until there is room, and
    those that need not have gone stay, the soonest used first. Next uses are known from one
    backwards pass and evictions come off a heap: O(accesses log items).

    Between two memory tiers an item that comes up keeps its place below until it is there, while
    what makes room for it goes down: full tiers do not swap in place.

    Examples
    --------
    >>> from stowplan import keep_resident
    >>> plan = keep_resident([(0, 1), (0, 2), (0, 3), (1, 2)], 100, {"device": 300})
    >>> print(plan)
    4 items, 4 steps on device, disk
    step 0 uses 0 1; first load 0 1 from disk; meanwhile load 2 from disk
    step 1 uses 0 2; meanwhile drop 1 from device, load 3 from disk
    step 2 uses 0 3
    step 3 uses 1 2; first drop 0 from device, load 1 from disk
    5 loads (5 from disk, 2 ahead), 2 evictions, 0 writes; moved: disk -> device 500 B;
    peak: device 300 B of 300 B
    """
    names, limits = named_tiers(budgets)
    ahead = natural(prefetch, "keep_resident: prefetch", 0)
    _refuse_single("accesses", accesses, "steps in order, each an item or several: [0, (0, 3)]")
    _refuse_single("dirty", dirty, "a sequence of items: dirty=[0, 3]")
    if start is not None:
        wanted = f"a tier for all items or one an item, of {', '.join(names)}: start={names[0]!r}"
        _refuse_single("start", start, wanted)
    items, starts = used_items(accesses)
    _refuse_gaps(sizes, items)
    item_bytes = bytes_of_items(sizes, items)
    unsaved = dirty_items(dirty, len(item_bytes))
    first = first_tiers(start, unsaved, names, len(item_bytes))
    refuse_large_steps(items, starts, item_bytes, names, limits)
    saved = np.ones(len(item_bytes), bool)
    saved[list(unsaved)] = False
    tiers = _Tiers(names, limits, item_bytes, first, saved)
    tiers.play(items, starts)
    events = _ahead(np.array(tiers.events, EVENT), np.array(tiers.free_from, np.int64), ahead)
    for array in (items, starts, item_bytes, first, saved, events):
        array.flags.writeable = False
    return Residency(names, limits, item_bytes, items, starts, first, saved, events)


def _refuse_single(name: str, given: Any, wanted: str) -> None:
    """Refuse what cannot be iterated where several are asked for."""
    try:
        iter(given)
    except TypeError:
        raise PlanError(f"keep_resident: {name}={given!r}; give {wanted}.") from None


def _refuse_gaps(sizes: ArrayLike, items: NDArray[np.int64]) -> None:
    """Refuse one size for far more items than are used."""
    count = int(items.max(initial=-1)) + 1
    if np.ndim(sizes) == 0 and count > len(items) + MOST_UNUSED:
        raise PlanError(
            f"keep_resident: accesses use item {count - 1}, and sizes={sizes!r} is the size of "
            f"all {count} items up to it, of which at most {len(items)} are used. Number those "
            "from 0: numpy.unique(accesses, return_inverse=True)."
        )


class _Tiers:
    """Items on tiers while the steps go by, and the events that have brought them there."""

    def __init__(
        self,
        names: tuple[str, ...],
        limits: tuple[int | None, ...],
        sizes: NDArray[np.int64],
        first: NDArray[np.int8],
        saved: NDArray[np.bool_],
    ) -> None:
        self.names, self.limits = names, limits
        self.sizes: list[int] = sizes.tolist()
        self.tier: list[int] = first.tolist()
        self.unsaved = set(np.flatnonzero(~saved).tolist())
        self.disk = len(names) - 1
        self.free = [math.inf if limit is None else limit for limit in limits]
        for tier in range(self.disk):
            self.free[tier] -= sum(sizes[first == tier].tolist())
        self.free[-1] -= sum(sizes[saved].tolist())
        self.due = [int(NEVER)] * len(self.sizes)  # step of the next use
        self.last = [-1] * len(self.sizes)  # step of the last one
        self.heaps: list[list[Farness]] = [[] for _ in range(self.disk)]
        self.events: list[tuple[int, int, int, int, int, int, int]] = []
        self.free_from: list[int] = []  # first step at which the event may happen
        self.step = 0
        for tier, (name, free) in enumerate(zip(names, self.free, strict=True)):
            if free < 0:
                raise BudgetError(
                    f"keep_resident: the items that begin on {name} take {-free} bytes more than "
                    f"its budget of {limits[tier]} bytes ({show_bytes(limits[tier] or 0)}). Begin "
                    "with fewer there (start=...), or raise its budget."
                )

    def play(self, items: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        """Go through all steps."""
        for item, step in _first_uses(items, starts):
            self.due[item] = step
        for item, tier in enumerate(self.tier):
            if 0 <= tier < self.disk:
                self._rank(item)
        following = _next_uses(items, starts)
        used, bounds = items.tolist(), starts.tolist()
        for self.step in range(len(bounds) - 1):
            first, past = bounds[self.step], bounds[self.step + 1]
            for item in used[first:past]:
                if self.tier[item]:
                    self._fetch(item)
            for item, step in zip(used[first:past], following[first:past], strict=True):
                self.due[item], self.last[item] = step, self.step
                self._rank(item)

    def _farness(self, item: int) -> Farness:
        return -self.due[item], item in self.unsaved, self.last[item], item

    def _rank(self, item: int) -> None:
        if self.sizes[item]:  # no bytes: nothing is gained where it goes
            heapq.heappush(self.heaps[self.tier[item]], self._farness(item))

    def _record(self, kind: int, item: int, source: int, target: int, free_from: int) -> None:
        size = self.sizes[item]
        self.events.append((self.step, self.step, kind, item, source, target, size))
        self.free_from.append(free_from)

    def _fetch(self, item: int) -> None:
        """Bring an item of this step to the fastest tier."""
        for victim in self._victims(0, self.sizes[item]) or ():
            self._evict(victim)
        source = self.tier[item]
        if source < 0:
            self._record(MAKE, item, source, 0, self.step)
        else:
            self._record(LOAD, item, source, 0, 0)
        self.tier[item] = 0
        self.free[0] -= self.sizes[item]
        if 0 < source < self.disk:
            self.free[source] += self.sizes[item]

    def _victims(self, tier: int, size: int, nearer: Farness | None = None) -> list[int] | None:
        """Items that make room for `size` bytes, the farthest first; none used before `nearer`.

        None where there is not as much room.
        """
        heap, chosen = self.heaps[tier], []
        missing = size - self.free[tier]
        while missing > 0 and heap and (nearer is None or heap[0] < nearer):
            # Entries that are out of date were due by now: all that may go is farther than they.
            item = heapq.heappop(heap)[-1]
            chosen.append(item)
            missing -= self.sizes[item]
        if missing > 0:
            for item in chosen:
                self._rank(item)
            return None
        for item in chosen[::-1]:
            if missing + self.sizes[item] <= 0:  # the larger ones farther off are enough
                missing += self.sizes[item]
                chosen.remove(item)
                self._rank(item)
        return chosen

    def _evict(self, item: int) -> None:
        """Send an item down: to the first tier that is better off with it, else off memory."""
        source, size = self.tier[item], self.sizes[item]
        # No step between its last use and this one needs it where it is.
        free_from = self.last[item] + 1 if source == 0 else 0
        wanted = self.due[item] != NEVER or item in self.unsaved
        for target in range(source + 1, self.disk if wanted else 0):
            if size > (self.limits[target] or 0):
                continue
            victims = self._victims(target, size, self._farness(item))
            if victims is not None:
                for victim in victims:
                    self._evict(victim)
                self._record(EVICT, item, source, target, free_from)
                self.free[source] += size
                self.free[target] -= size
                self.tier[item] = target
                self._rank(item)
                return
        if item in self.unsaved:
            self._save(item, free_from)
        self._record(EVICT, item, source, self.disk, free_from)
        self.free[source] += size
        self.tier[item] = self.disk

    def _save(self, item: int, free_from: int) -> None:
        if self.sizes[item] > self.free[-1]:
            raise BudgetError(
                f"keep_resident: at step {self.step} item {item} leaves memory and is written, "
                f"{self.sizes[item]} bytes, where {self.names[-1]} has {self.free[-1]} bytes left "
                f"of {self.limits[-1]}. Raise the budget of {self.names[-1]}, or that of a tier "
                "of memory."
            )
        self._record(WRITE, item, self.tier[item], self.disk, free_from)
        self.free[-1] -= self.sizes[item]
        self.unsaved.remove(item)


def _ahead(events: NDArray[Any], free_from: NDArray[np.int64], ahead: int) -> NDArray[Any]:
    """Let every event happen as early as `ahead` and the steps between allow, in the same order.

    The order is kept, so that what is resident after each event, and every byte, is as it was.
    """
    if len(events):
        earliest = np.maximum(events["needed"] - ahead, free_from)
        events["step"] = np.maximum.accumulate(earliest)
        events["kind"][(events["kind"] == LOAD) & (events["step"] < events["needed"])] = PREFETCH
    return events


def _next_uses(items: NDArray[np.int64], starts: NDArray[np.int64]) -> list[int]:
    """Step at which each item of each step is used next, NEVER for none."""
    following = np.full(len(items), NEVER)
    steps = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.argsort(items, kind="stable")
    same = items[order][1:] == items[order][:-1]
    following[order[:-1][same]] = steps[order[1:][same]]
    found: list[int] = following.tolist()
    return found


def _first_uses(items: NDArray[np.int64], starts: NDArray[np.int64]) -> list[tuple[int, int]]:
    found, places = np.unique(items, return_index=True)
    steps = np.searchsorted(starts, places, side="right") - 1
    return list(zip(found.tolist(), steps.tolist(), strict=True))
