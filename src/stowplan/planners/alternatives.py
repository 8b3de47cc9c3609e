"""What other plans for the same items would take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stowplan.planners.batches import Plan
from stowplan.planners.choose import choose_slots
from stowplan.planners.chunks import split_chunks
from stowplan.planners.classes import distinct_rows
from stowplan.planners.cost import Costs
from stowplan.planners.slots import assign_slots

__all__ = ["predict_alternatives"]


def predict_alternatives(
    plan: Plan, *, chosen: bool = True, split: Callable[[Plan], Plan] = split_chunks
) -> dict[str, float]:
    """Seconds of the items one at a time, in one slot, and in chosen slots, by the plan's costs.

    Parameters
    ----------
    plan : Plan
        Gives items, work and costs.
    chosen : bool
        Also choose slots, which takes the time of `choose_slots`.
    split : function
        Gives each alternative its rows, under the same limits as the plan.

    Examples
    --------
    >>> plan = assign_slots({"atoms": [2, 3]}, [{"atoms": 4}])
    >>> plan = replace(plan, costs=Costs(1.0, 0.5, 0.25))
    >>> predict_alternatives(plan)
    {'one at a time': 6.5, 'one slot': 6.75, 'chosen': 6.5}
    """
    costs = plan.costs or Costs()
    lengths = plan.lengths.clip(1)
    alone = costs.seconds(
        float(plan.measure.cost(lengths).sum()), len(lengths), len(distinct_rows(lengths)[0])
    )
    how: dict[str, Any] = {"work": plan.work, "derived": plan.derived, "exact": plan.exact}

    def seconds(slots: list[dict[str, int]]) -> float:
        other = assign_slots(plan.sizes, slots, **how, items=len(lengths))
        return split(replace(other, costs=costs, on=plan.on)).predicted_seconds

    found = {"one at a time": alone}
    one: list[dict[str, int]] = [{}] if len(lengths) else []
    found["one slot"] = seconds(one)
    if chosen:
        found["chosen"] = seconds(choose_slots(plan.sizes, costs=costs, **how))
    return found
