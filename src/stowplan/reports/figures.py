"""The figures of a report: drawn by matplotlib, as PNG, SVG or inline in a page."""

from __future__ import annotations

from stowplan.planners.batches import Plan
from stowplan.reports.axes import Picture
from stowplan.reports.cost_figures import draw_curve, draw_measures, draw_occupancy, draw_seconds
from stowplan.reports.curves import Curve, occupancy_curve
from stowplan.reports.records import RunRecord
from stowplan.reports.run_figures import draw_memory, draw_run, draw_timeline
from stowplan.reports.size_figures import draw_scatter, draw_sizes, spread_pairs

__all__ = [
    "draw_figures",
    "Picture",
]

SHOWN_DIMS = 6


def draw_figures(
    plan: Plan | RunRecord, *, max_slots: int = 8, curve: Curve | None = None
) -> dict[str, Picture]:
    """Draw all figures that a report of a plan or of a finished run has.

    Parameters
    ----------
    plan : Plan or RunRecord
        A record adds what was measured.
    max_slots : int
        Most slots on the curve.
    curve : Curve, optional
        From `occupancy_curve`, where it is at hand.

    Returns
    -------
    dict of str to Picture
        ``"sizes: DIM"``, ``"scatter: DIM, DIM"``, ``"occupancy"``, ``"measures"``, ``"curve"``,
        ``"seconds"``, ``"memory"``, ``"timeline"`` and ``"run"``: those that the plan has data for.

    Raises
    ------
    MissingDependencyError
        Without matplotlib.

    Examples
    --------
    >>> from stowplan.planners import assign_slots
    >>> plan = assign_slots({"atoms": [2, 3, 9]}, [{"atoms": 4}, {"atoms": 9}])
    >>> pictures = draw_figures(plan)
    >>> list(pictures)
    ['sizes: atoms', 'occupancy', 'measures', 'curve', 'seconds', 'timeline']
    >>> pictures["curve"].figure.savefig("curve.svg")  # doctest: +SKIP
    """
    run = plan if isinstance(plan, RunRecord) else None
    plan = plan.plan if isinstance(plan, RunRecord) else plan
    if not len(plan.lengths):
        return {}
    curve = curve or occupancy_curve(plan, max_slots)
    found: dict[str, Picture | None] = {}
    for dim in plan.dims[:SHOWN_DIMS]:
        found[f"sizes: {dim}"] = draw_sizes(plan, dim)
    for x, y in spread_pairs(plan):
        found[f"scatter: {x}, {y}"] = draw_scatter(plan, x, y)
    found["occupancy"] = draw_occupancy(plan)
    found["measures"] = draw_measures(plan)
    if curve is not None:
        found["curve"] = draw_curve(plan, curve)
        found["seconds"] = draw_seconds(plan, curve)
    found["memory"] = draw_memory(plan)
    found["timeline"] = draw_timeline(plan)
    if run is not None and run.seconds is not None:
        found["run"] = draw_run(run)
    return {name: picture for name, picture in found.items() if picture is not None}
