"""A plan in plain words: what is useful, what pads, what would be cheaper."""

from __future__ import annotations

from stowplan.memory import show_bytes
from stowplan.planners.batches import Plan
from stowplan.planners.cost import Costs
from stowplan.planners.shards import summarise_shards
from stowplan.planners.tables import format_seconds
from stowplan.reports.curves import Curve
from stowplan.reports.padding import find_carriers, find_causes, measure_padding
from stowplan.reports.records import RunRecord

__all__ = ["count", "percent", "sentences"]

GAIN = 1.1  # less is no reason to change a plan
LEAST = 0.05  # by which a share of the padding exceeds that of its items, to be worth a sentence


def percent(share: float) -> str:
    """Three digits at most, and never 100 % for less.

    >>> percent(0.0390), percent(0.5), percent(0.9996), percent(1.0)
    ('3.9 %', '50 %', '99.9 %', '100 %')
    """
    value = 100 * share
    if value < 100:
        value = min(value, 99.9)
    return f"{value:.1f}".removesuffix(".0") + " %"


def count(number: int, noun: str, plural: str | None = None) -> str:
    r"""A number with thousands apart, and its noun.

    >>> count(1, "slot"), count(3200, "item"), count(2, "batch", "batches")
    ('1 slot', '3\xa0200 items', '2 batches')
    """
    digits = f"{number:,}".replace(",", "\N{NO-BREAK SPACE}")
    return f"{digits} {noun if number == 1 else plural or noun + 's'}"


def sentences(plan: Plan, curve: Curve | None = None, run: RunRecord | None = None) -> list[str]:
    """Give the summary on top of a report, a sentence or two for each matter.

    >>> from stowplan.planners import assign_slots
    >>> from stowplan.reports.curves import occupancy_curve
    >>> plan = assign_slots({"atoms": [2, 2, 2, 10]}, [{"atoms": 10}])
    >>> for sentence in sentences(plan, occupancy_curve(plan)):
    ...     print(sentence)
    40 % of the work of 4 items in 1 slot and 1 batch is useful.
    1 item (25 % of all) causes 100 % of the padding: without it the others would fit a slot of atoms=2.
    2 slots would compute 2.5x less work, at 100 % occupancy; by the costs of this plan ...
    """  # noqa: E501  sentences are shown as they are
    if not len(plan.lengths):
        return ["This plan has no items."]
    used = sum(1 for rows in plan.rows if rows)
    held = f"{count(used, 'slot')} and {count(len(plan.batches), 'batch', 'batches')}"
    items = count(len(plan.lengths), "item")
    told = [f"{percent(plan.occupancy())} of the work of {items} in {held} is useful."]
    told += _padding(plan)
    if curve is not None:
        told += _other_counts(plan, curve, used)
    told += _memory(plan) + _devices(plan) + _run(run)
    return told


def _padding(plan: Plan) -> list[str]:
    total = measure_padding(plan).total
    slot, row = float(total.slot_padding[0]), float(total.row_padding[0])
    if slot + row <= 0:
        return ["Nothing is padded."]
    told = []
    causes, carriers = find_causes(plan), find_carriers(plan)
    few = len(causes.items) / len(plan.lengths)
    if causes.share - few >= max(carriers.share - carriers.items / len(plan.lengths), LEAST):
        several = len(causes.items) != 1
        sentence = (
            f"{_some(plan, len(causes.items))} {'cause' if several else 'causes'} "
            f"{percent(causes.share)} of the padding"
        )
        if len(causes.fits) == 1:
            (fit,) = causes.fits.values()
            size = ", ".join(f"{name}={length}" for name, length in fit.items())
            without = "them" if several else "it"
            sentence += f": without {without} the others would fit a slot of {size}"
        told.append(sentence + ".")
    elif carriers.share - carriers.items / len(plan.lengths) >= LEAST:
        verb = "carry" if carriers.items != 1 else "carries"
        told.append(
            f"{_some(plan, carriers.items)} {verb} {percent(carriers.share)} of the padding."
        )
    if row >= 0.05 * (slot + row):
        share = percent(row / (slot + row))
        told.append(f"{share} of the padding is rows without an item.")
    return told


def _some(plan: Plan, items: int) -> str:
    return f"{count(items, 'item')} ({percent(items / len(plan.lengths))} of all)"


def _other_counts(plan: Plan, curve: Curve, used: int) -> list[str]:
    """Say what the cheapest number of slots would gain, and else that none does."""
    costs = plan.costs or Costs()
    best = curve.cheapest
    slots = count(int(curve.counts[best]), "slot")
    padded, other = plan.padded_work(), float(curve.padded_work[best])
    own = costs.seconds(padded, used, used)
    gain = own / float(curve.seconds[best]) if curve.seconds[best] else 1.0
    if gain >= GAIN:
        compiles = "" if not costs.compile_seconds else " and compiles"
        told = (
            f"{slots} would be {gain:.2g}x cheaper by the costs of this plan, launches{compiles} "
        )
        share = percent(curve.occupancy[best])
        return [told + f"included: {_times(padded, other)} at {share} occupancy."]
    knee = curve.knee
    if padded >= GAIN * float(curve.padded_work[knee]):
        slots, other = count(int(curve.counts[knee]), "slot"), float(curve.padded_work[knee])
        told = (
            f"{slots} would compute {_times(padded, other)}, at {percent(curve.occupancy[knee])} "
        )
        told += "occupancy; by the costs of this plan their launches and compiles take as long."
        return [told]
    return [f"No number of slots up to {int(curve.counts[-1])} would be a tenth cheaper."]


def _times(padded: float, other: float) -> str:
    if padded >= other:
        return f"{padded / other:.2g}x less work" if other else "no work"
    return f"{other / padded:.2g}x more work"


def _memory(plan: Plan) -> list[str]:
    forecast = plan.memory
    if forecast is None or forecast.peak_bytes is None:
        return []
    peak, budget = forecast.peak_bytes, forecast.budget.bytes
    share, limit = percent(peak / budget), show_bytes(budget)
    told = f"The run is predicted to take {show_bytes(peak)} at its peak, {share} of its budget "
    return [told + f"of {limit}."]


def _devices(plan: Plan) -> list[str]:
    if len(plan.devices) < 2:
        return []
    shards = summarise_shards(plan)
    idle = int((shards.batches == 0).sum())
    devices = count(len(plan.devices), "device")
    if shards.imbalance < 1.05:
        return [f"All {devices} are done at about the same time."]
    told = f"The last of {devices} is done {shards.imbalance:.2f} times as late as all on average"
    return [
        told + (f"; {idle} of them {'has' if idle == 1 else 'have'} no batch." if idle else ".")
    ]


def _run(run: RunRecord | None) -> list[str]:
    if run is None or run.seconds is None:
        return []
    predicted = run.plan.predicted_seconds
    told = f"The run took {format_seconds(run.seconds)}; {format_seconds(predicted)} were predicted"
    if predicted and not 1 / 3 <= run.seconds / predicted <= 3:
        told += ", by costs that sp.measure_costs can make better"
    return [told + "."]
