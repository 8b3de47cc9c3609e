"""Capacities from the data: the slots that cost least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, overload

from stowplan.errors import PlanError
from stowplan.planners.candidates import Candidates
from stowplan.planners.classes import distinct_rows
from stowplan.planners.cost import Costs
from stowplan.planners.minibatches import MinibatchSlots, choose_minibatch_slots
from stowplan.planners.sizes import Sizes, natural, size_table

__all__ = ["SlotChoice", "choose_slots", "slot_curve"]


@dataclass(frozen=True)
class SlotChoice:
    """What a number of slots gives: one point of the curve.

    Attributes
    ----------
    slots : tuple of dict
        Capacities, cheapest first; they may be fewer than asked for.
    padded_work : float
        Items x work of the slot of each.
    occupancy : float
        Useful / padded work.
    seconds : float
        By the cost objective, with one batch in each slot.
    """

    slots: tuple[dict[str, int], ...]
    padded_work: float
    occupancy: float
    seconds: float


@overload
def choose_slots(
    sizes: Sizes,
    count: int | None = None,
    *,
    minibatch: None = None,
    overflow: Literal["carry", "error"] = "carry",
    seed: int = 0,
    work: str | None = None,
    derived: Mapping[str, str] | None = None,
    exact: Sequence[str] = (),
    costs: Costs | None = None,
    max_count: int | None = None,
) -> list[dict[str, int]]: ...


@overload
def choose_slots(
    sizes: Sizes,
    count: int | None = None,
    *,
    minibatch: int,
    overflow: Literal["carry", "error"] = "carry",
    seed: int = 0,
    work: str | None = None,
    derived: Mapping[str, str] | None = None,
    exact: Sequence[str] = (),
    costs: Costs | None = None,
    max_count: int | None = None,
) -> MinibatchSlots: ...


def choose_slots(
    sizes: Sizes,
    count: int | None = None,
    *,
    minibatch: int | None = None,
    overflow: Literal["carry", "error"] = "carry",
    seed: int = 0,
    work: str | None = None,
    derived: Mapping[str, str] | None = None,
    exact: Sequence[str] = (),
    costs: Costs | None = None,
    max_count: int | None = None,
) -> list[dict[str, int]]:
    """Choose the capacities of at most `count` slots that pad the least work.

    One dim: the optimum, by dynamic programming. Several: the best of two orders cut by
    dynamic programming, agglomerative merging, a grid and powers of two, then improved by
    exchange; never more padded work than powers of two with as many slots.

    With `minibatch`, slots for shuffled minibatches of so many items, all slots in every step.
    Each carries ``"rows"``. An item may take a row of any slot that holds it, so that slots
    share their rows, and `MinibatchSampler` makes minibatches that fit. Choices are compared on
    minibatches as the sampler makes them.

    Parameters
    ----------
    sizes : mapping of dim to integers (items,)
        Length of each item along each ragged dim.
    count : int, optional
        Most slots. By default the number with the fewest seconds by `costs`:
        padded work x work_seconds + slots x (launch_seconds + compile_seconds). For minibatches
        these are the seconds of an epoch, where every step launches each slot.
    minibatch : int, optional
        Items of a minibatch; cut to the number of items.
    overflow : {"carry", "error"}
        "carry": rows near the mean. The sampler gives what finds no row to the next minibatch.
        "error": rows for every minibatch that could ever be drawn, however rare.
    seed : int
        Of the shuffled minibatches on which choices are compared.
    work, derived, exact
        As in `stowplan.kernel`.
    costs : Costs, optional
        Constants of the objective.
    max_count : int, optional
        Most slots when `count` is not given; by default 1000, or as many as exact dims need.

    Returns
    -------
    list of dict
        Slots for `assign_slots`, cheapest first; empty if there are no items. With `minibatch` a
        `MinibatchSlots`: such a list that knows its share of overflows, occupancy and steps.

    Raises
    ------
    PlanError
        If `count` is less than the number of distinct sizes of the exact dims, for options of
        minibatches without `minibatch`, and for minibatches of no items.

    Examples
    --------
    >>> choose_slots({"atoms": [2, 3, 3, 40], "k": [9, 8, 9, 700]}, count=2)
    [{'atoms': 3, 'k': 9}, {'atoms': 40, 'k': 700}]

    Every eighth item is large. Some minibatches of 8 have none and some have several: one row
    is kept for them, which a small item may take.

    >>> sizes = {"k": [300, 300, 400, 400, 400, 500, 500, 3000] * 50}
    >>> slots = choose_slots(sizes, count=2, minibatch=8, work="k * k")
    >>> print(slots)
    slot     k  rows
       0   500     7
       1  3000     1
    2 slots for minibatches of 8: 87.6 % of work.
    27.0 % of shuffled minibatches overflow; their surplus goes into the next.
    """
    if minibatch is None and (overflow != "carry" or seed != 0):
        raise PlanError(
            "choose_slots: overflow= and seed= are for minibatches. Say of how many items: "
            "minibatch=32, or leave them out."
        )
    if overflow not in ("carry", "error"):
        raise PlanError(f'choose_slots: overflow={overflow!r}; allowed are "carry" and "error"')
    if minibatch is None and not sizes:
        return [{}]
    table = size_table("choose_slots", sizes, work, derived, exact, None if sizes else 0)
    costs = costs or Costs()
    fixed = None if count is None else natural(count, "choose_slots: count")
    most = None if max_count is None else natural(max_count, "choose_slots: max_count")
    if minibatch is not None:
        if not len(table.lengths):
            raise PlanError("choose_slots: minibatch= needs the sizes of at least one item")
        minibatch = natural(minibatch, "choose_slots: minibatch")
        seed = natural(seed, "choose_slots: seed", 0)
        return choose_minibatch_slots(table, minibatch, overflow, seed, costs, fixed, most)
    if not len(table.lengths):
        return []
    candidates = Candidates(table, "choose_slots", most if fixed is None else fixed)
    if fixed is not None:
        capacities, _ = candidates.best(fixed)
    else:
        capacities = candidates.cheapest(costs)
    return [dict(zip(table.measure.dims, row, strict=True)) for row in capacities.tolist()]


def slot_curve(
    sizes: Sizes,
    max_count: int = 8,
    *,
    work: str | None = None,
    derived: Mapping[str, str] | None = None,
    exact: Sequence[str] = (),
    costs: Costs | None = None,
) -> list[SlotChoice]:
    """What 1, 2, ..., `max_count` slots would give; starts at the fewest possible.

    Padded work never rises along it.

    >>> curve = slot_curve({"atoms": [1, 1, 4]}, 2)
    >>> [(len(point.slots), point.padded_work, point.occupancy) for point in curve]
    [(1, 12.0, 0.5), (2, 6.0, 1.0)]
    """
    if not sizes:
        raise PlanError("slot_curve: no dims given")
    table = size_table("slot_curve", sizes, work, derived, exact)
    if not len(table.lengths):
        return []
    costs = costs or Costs()
    most = natural(max_count, "slot_curve: max_count")
    useful_most = min(most, len(distinct_rows(table.padded)[0]))  # more slots stay empty
    candidates = Candidates(table, "slot_curve", useful_most)
    useful = float(table.measure.cost(table.lengths).sum())
    points: list[SlotChoice] = []
    for count in range(candidates.fewest, useful_most + 1):
        capacities, padded = candidates.best(count)
        if points and padded >= points[-1].padded_work:
            points.append(points[-1])
            continue
        slots = tuple(dict(zip(table.measure.dims, c, strict=True)) for c in capacities.tolist())
        seconds = costs.seconds(padded, len(slots), len(slots))
        occupancy = useful / padded if padded else 1.0
        points.append(SlotChoice(slots, padded, occupancy, seconds))
    return points + points[-1:] * (most - useful_most)
