"""Shuffled minibatches that fit their slots, the same on every rank and after a restart."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError
from stowplan.planners.minibatches import MinibatchSlots, shuffled
from stowplan.planners.seating import Seats, draw_minibatches
from stowplan.planners.sizes import Sizes, natural

__all__ = ["MinibatchSampler"]


class MinibatchSampler:
    """Shuffled minibatches of items that all find a row in the slots.

    Items are drawn in an order that depends on seed and epoch alone, until a minibatch has as
    many as the slots were chosen for (the sum of their rows, where they do not say). An item that
    finds no free row waits, and is offered first to the next; a minibatch for which as many wait
    as it may have goes with fewer. Every item comes once in an epoch. A loop over the sampler is
    one epoch: it goes on at the current step and ends at the start of the next epoch. As the
    ``batch_sampler`` of a torch ``DataLoader`` it needs no other option.

    Every rank makes all minibatches, takes each `world`-th, and has as many steps as the others.
    For that the largest minibatches are halved as far as needed; only where all have one item
    do some ranks get an empty list in the last step.

    Parameters
    ----------
    sizes : mapping of dim to integers (items,)
        Length of each item along each ragged dim.
    slots : sequence of mappings
        Limits of each slot with ``"rows"``: ``choose_slots(sizes, minibatch=...)``.
    seed, epoch : int
        Of the order; 0 or more.
    rank, world : int
        This process, and how many there are.
    drop_last : bool
        Leave out minibatches with fewer items than asked that were made after the order had run
        out, then the last ones beyond a multiple of `world`. Items then come at most once.
    shuffle : bool
        False draws the items in their own order.
    work, derived, exact
        As in `stowplan.kernel`.

    Attributes
    ----------
    seed, epoch, rank, world : int
        As given; `epoch` is the current one.
    step : int
        Minibatches of the epoch that this rank has had.
    minibatch : int
        Items asked of each minibatch.

    Raises
    ------
    PlanError
        For no items, an item that fits no slot, a slot without rows, and more ranks than items.

    Examples
    --------
    >>> sizes = {"atoms": [3, 4, 40, 4, 40, 3]}
    >>> slots = [{"atoms": 4, "rows": 2}, {"atoms": 40, "rows": 1}]
    >>> sampler = MinibatchSampler(sizes, slots, seed=1)
    >>> [sorted(sizes["atoms"][item] for item in items) for items in sampler]
    [[3, 4, 40], [3, 4, 40]]
    >>> sampler.epoch, sampler.step
    (1, 0)

    A run that was stopped goes on with what it has not had yet:

    >>> first = next(iter(sampler))
    >>> other = MinibatchSampler(sizes, slots, seed=1)
    >>> other.load_state_dict(sampler.state_dict())
    >>> sorted(first + list(other)[0])
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(
        self,
        sizes: Sizes,
        slots: Sequence[Mapping[str, int]],
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        *,
        shuffle: bool = True,
        work: str | None = None,
        derived: Mapping[str, str] | None = None,
        exact: Sequence[str] = (),
    ) -> None:
        who = "MinibatchSampler"
        self._seats = Seats(sizes, slots, work=work, derived=derived, exact=exact, who=who)
        self._items = len(self._seats.kinds)
        self.minibatch = sum(self._seats.rows)
        if isinstance(slots, MinibatchSlots):
            self.minibatch = slots.minibatch
        self.seed = natural(seed, f"{who}: seed", 0)
        self.epoch = natural(epoch, f"{who}: epoch", 0)
        self.rank = natural(rank, f"{who}: rank", 0)
        self.world = natural(world, f"{who}: world")
        self.step = 0
        self.drop_last = bool(drop_last)
        self.shuffle = bool(shuffle)
        self._deals: dict[int, Deal] = {}
        self._check_ranks()

    def _check_ranks(self) -> None:
        if not self._items:
            raise PlanError("MinibatchSampler: no items. Pass the sizes of at least one.")
        if self.rank >= self.world:
            raise PlanError(
                f"MinibatchSampler: rank={self.rank} of world={self.world}; "
                f"ranks are 0 to {self.world - 1}."
            )
        if self.world > self._items:
            raise PlanError(
                f"MinibatchSampler: world={self.world} ranks for {self._items} items; at most one "
                f"rank for each item. Pass world={self._items} or less."
            )

    def __len__(self) -> int:
        """Steps of the current epoch, the same on every rank."""
        return self._deal(self.epoch).steps

    def __iter__(self) -> Iterator[list[int]]:
        """Minibatches from the current step to the end of the epoch, as lists of items.

        Each counts as consumed when it is given.
        """
        epoch = self.epoch
        deal = self._deal(epoch)
        while self.epoch == epoch and self.step < deal.steps:
            items = deal.minibatch(self.step, self.rank)
            self.step += 1
            yield items
        if self.epoch == epoch:  # not moved from within the loop
            self.set_epoch(epoch + 1)

    def minibatches(self) -> Iterator[list[int]]:
        """What is left of the epoch for this rank; the sampler stays where it is.

        For loaders that run ahead: they call `advance` for each minibatch that is consumed.
        """
        deal = self._deal(self.epoch)
        return (deal.minibatch(step, self.rank) for step in range(self.step, deal.steps))

    def advance(self) -> None:
        """Count one more minibatch of the epoch as consumed."""
        if self.step >= len(self):
            raise PlanError(
                f"MinibatchSampler.advance: all {self.step} steps of epoch {self.epoch} are "
                f"consumed. Go on to the next: sampler.set_epoch({self.epoch + 1})."
            )
        self.step += 1

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; in the current one the step stays, as after a restart."""
        epoch = natural(epoch, "MinibatchSampler.set_epoch: epoch", 0)
        if epoch != self.epoch:
            self.epoch, self.step = epoch, 0

    def state_dict(self, step: int | None = None, epoch: int | None = None) -> dict[str, int]:
        """Where the sampler stands: plain numbers for JSON, the same on every rank.

        Parameters
        ----------
        step, epoch : int, optional
            Minibatches that were really consumed, and of which epoch: for a ``DataLoader``, whose
            workers draw minibatches ahead of the training.
        """
        who = "MinibatchSampler.state_dict"
        epoch = self.epoch if epoch is None else natural(epoch, f"{who}: epoch", 0)
        step = self.step if step is None else natural(step, f"{who}: step", 0)
        self._check_step(who, epoch, step)
        return {"epoch": epoch, "step": step, **self._identity(epoch)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to where a sampler of the same items, slots, seed and number of ranks stood.

        Raises
        ------
        PlanError
            For the state of a sampler that would not draw the same minibatches.
        """
        who = "MinibatchSampler.load_state_dict"
        names = ("epoch", "step", *CURES)
        if not isinstance(state, Mapping) or set(state) != set(names):
            raise PlanError(
                f"{who}: expected what state_dict() gives, {', '.join(names)}; got {state!r}"
            )
        epoch = natural(state["epoch"], f"{who}: epoch", 0)
        step = natural(state["step"], f"{who}: step", 0)
        here = self._identity(epoch)
        differ = [name for name in CURES if state[name] != here[name]]
        if differ != ["order"]:  # which follows from the others
            differ = [name for name in differ if name != "order"]
        if differ:
            found = ", ".join(f"{name}={state[name]!r}, here {here[name]!r}" for name in differ)
            cures = "; ".join(CURES[name].format(state[name]) for name in differ)
            raise PlanError(f"{who}: the state is of another sampler: {found}. {cures}.")
        self._check_step(who, epoch, step)
        self.epoch, self.step = epoch, step

    def _identity(self, epoch: int) -> dict[str, int]:
        """What decides the minibatches of an epoch, and a fingerprint of them."""
        seats = self._seats
        ranks = np.argsort(seats.costs, kind="stable").tolist()
        dims = repr(seats.table.measure.dims).encode()
        lengths = seats.table.lengths.astype("<i8").tobytes()
        return {
            "seed": self.seed,
            "world": self.world,
            "drop_last": self.drop_last,
            "shuffle": self.shuffle,
            "sizes": crc32(dims + lengths),
            "slots": crc32(repr((self.minibatch, seats.slots, ranks)).encode()),
            "order": self._deal(epoch).fingerprint,
        }

    def _check_step(self, who: str, epoch: int, step: int) -> None:
        steps = self._deal(epoch).steps
        if step > steps:
            raise PlanError(f"{who}: step={step}, but epoch {epoch} has {steps} steps.")

    def _deal(self, epoch: int) -> Deal:
        """The minibatches of an epoch, made once; the last two epochs are kept."""
        if epoch not in self._deals:
            order = np.arange(self._items)
            if self.shuffle:
                order = shuffled(self._items, self.seed, epoch)
            drawn = list(draw_minibatches(self._seats, order, self.minibatch))
            if self.drop_last:
                drawn = [d for d in drawn if len(d[0]) == self.minibatch or not d[1]]
                drawn = drawn[: len(drawn) - len(drawn) % self.world]
            if not drawn:
                raise PlanError(
                    f"MinibatchSampler: drop_last=True leaves no minibatch of {self.minibatch} "
                    f"items for each of {self.world} ranks in epoch {epoch}. Pass drop_last=False."
                )
            self._deals = dict([*self._deals.items()][-1:])
            self._deals[epoch] = deal_out([items for items, _ in drawn], self.world)
        return self._deals[epoch]


# What decides the minibatches, and how to have the same.
CURES = {
    "seed": "Pass seed={}",
    "world": "Start as many ranks and pass world={}",
    "drop_last": "Pass drop_last={}",
    "shuffle": "Pass shuffle={}",
    "sizes": "Give the same items in the same order (their sizes have another fingerprint)",
    "slots": "Give the slots that it was saved with (they have another fingerprint): keep them",
    "order": "This release of stowplan or NumPy draws others from that seed: use the former",
}


@dataclass(frozen=True)
class Deal:
    """The minibatches of one epoch, dealt out to the ranks in turn."""

    items: NDArray[np.intp]  # of all minibatches
    spans: list[tuple[int, int]]  # first and one past the last of each
    world: int

    @property
    def steps(self) -> int:
        """Minibatches of each rank."""
        return len(self.spans) // self.world

    @property
    def fingerprint(self) -> int:
        """A number that other minibatches hardly share."""
        spans = np.array(self.spans, "<i8").tobytes()
        return crc32(spans, crc32(self.items.astype("<i8").tobytes()))

    def minibatch(self, step: int, rank: int) -> list[int]:
        """Items of one rank in one step."""
        start, stop = self.spans[step * self.world + rank]
        items: list[int] = self.items[start:stop].tolist()
        return items


def deal_out(minibatches: Sequence[Sequence[int]], world: int) -> Deal:
    """As many minibatches for each rank: the largest are halved, the second half comes last.

    >>> deal = deal_out([[5, 1, 2], [0, 3, 4, 6], [7]], world=2)
    >>> [[deal.minibatch(step, rank) for rank in range(2)] for step in range(deal.steps)]
    [[[5, 1, 2], [0, 3]], [[7], [4, 6]]]
    """
    counts = [len(items) for items in minibatches]
    stops = np.cumsum(counts).tolist()
    spans = [(stop - count, stop) for count, stop in zip(counts, stops, strict=True)]
    largest = [(-count, place) for place, count in enumerate(counts)]
    heapq.heapify(largest)
    for _ in range(-len(spans) % world):
        _, place = heapq.heappop(largest)
        start, stop = spans[place]
        middle = (start + stop + 1) // 2
        for span, where in (((start, middle), place), ((middle, stop), len(spans))):
            heapq.heappush(largest, (span[0] - span[1], where))
        spans[place] = (start, middle)
        spans.append((middle, stop))
    return Deal(np.fromiter(chain(*minibatches), np.intp, stops[-1]), spans, world)
