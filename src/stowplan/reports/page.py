"""``sp.report``: plans and finished runs as one page that needs nothing beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from stowplan.errors import DataError, PlanError
from stowplan.extras import import_extra
from stowplan.io.whole_files import whole_file
from stowplan.memory import show_bytes
from stowplan.planners.batches import Plan
from stowplan.planners.shards import summarise_shards
from stowplan.planners.tables import format_seconds
from stowplan.reports.curves import occupancy_curve
from stowplan.reports.figures import draw_figures
from stowplan.reports.inline import inline_svg
from stowplan.reports.padding import measure_padding
from stowplan.reports.records import RunRecord
from stowplan.reports.summaries import count, percent, sentences
from stowplan.reports.tables import (
    Cell,
    Table,
    batch_table,
    curve_table,
    device_table,
    item_table,
    slot_table,
)

__all__ = ["report"]

Reported: TypeAlias = Plan | RunRecord
Names: TypeAlias = Sequence[str] | Mapping[str, Sequence[str]] | None

HERE = Path(__file__).parent
MOST_PLANS = 4  # a page stays below 2 MB


class _Tile(NamedTuple):
    name: str
    value: str
    note: str = ""


class _Inline(NamedTuple):
    key: str
    title: str
    caption: str
    svg: Any


class _Section(NamedTuple):
    """What the page says of one plan."""

    key: str
    name: str
    facts: str
    summary: list[str]
    warnings: list[str]
    tiles: list[_Tile]
    pictures: list[_Inline]
    tables: list[Table]


def report(
    plan: Reported | Sequence[Reported] | Mapping[str, Reported],
    path: str | os.PathLike[str] = "report.html",
    *,
    names: Names = None,
    title: str = "Occupancy report",
    max_slots: int = 8,
) -> Path:
    """Write where the padding of a plan goes, and what another would give, as one HTML page.

    The page needs no network and no other file. It has a summary in words, the sizes with the
    slots drawn on them, occupancy by work, rows and bytes, what other numbers of slots would give,
    the memory of each batch against the budget, a timeline of devices, and the items that are
    padded most. ``stowplan.reports.figures.draw_figures`` gives its figures one by one.

    Parameters
    ----------
    plan : Plan, RunRecord, or a sequence or mapping of them
        What `plan`, `assign_slots` and the like return; a `RunRecord` adds what a run took. A
        mapping names each: ``{"kspace": ..., "real": ...}``, such as the ``plans`` of results.
    path : str or path
        File to write, whole or not at all.
    names : sequence of str, optional
        Name of each item. For several plans of different items, a mapping by their names.
    title : str
        Heading of the page.
    max_slots : int
        Most slots on the curve of occupancy.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    DataError
        For a path whose folder is not there, and names that are not one for each item.
    PlanError
        For no plan, more than four, and what is no plan.
    MissingDependencyError
        Without Jinja2 or matplotlib: ``pip install 'stowplan[report]'``.

    Examples
    --------
    >>> import stowplan as sp
    >>> plan = sp.assign_slots({"atoms": [2, 3, 9]}, [{"atoms": 4}, {"atoms": 9}])
    >>> sp.report(plan, "report.html", names=["water", "ammonia", "ethanol"])  # doctest: +SKIP
    PosixPath('report.html')
    """
    path = Path(path)
    plans = _named(plan)
    labels = {key: _item_names(key, one, names, len(plans)) for key, one in plans.items()}
    _refuse_unwritable(path)
    jinja = import_extra("report", "jinja2", "report")
    safe = import_extra("report", "markupsafe", "report").Markup
    sections = [
        _section(f"plan{number}", name, one, labels[name], max_slots, safe)
        for number, (name, one) in enumerate(plans.items())
    ]
    environment = jinja.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja.StrictUndefined
    )
    from stowplan import __version__

    page = environment.from_string(_text("page.html")).render(
        title=title, version=__version__, sections=sections, comparison=_comparison(plans),
        css=safe(_text("page.css")), js=safe(_text("page.js")),
    )  # fmt: skip
    with whole_file(path) as part:
        part.write_text(page.lstrip(), encoding="utf-8")
    return path


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _named(plan: Any) -> dict[str, Reported]:
    if isinstance(plan, Plan | RunRecord):
        plans = {"plan": plan}
    elif isinstance(plan, Mapping):
        plans = {str(name): one for name, one in plan.items()}
    elif isinstance(plan, Sequence) and not isinstance(plan, str):
        plans = {f"plan {number}": one for number, one in enumerate(plan, 1)}
    else:
        plans = {"plan": plan}
    for name, one in plans.items():
        if not isinstance(one, Plan | RunRecord):
            raise PlanError(
                f"report: {name} is a {type(one).__name__}; give what sp.plan, sp.assign_slots or "
                "sp.record returns, or Plan.load('plan.json')."
            )
    if not 1 <= len(plans) <= MOST_PLANS:
        raise PlanError(
            f"report: {len(plans)} plans; a page holds 1 to {MOST_PLANS}. Write several pages."
        )
    return plans


def _plan_of(one: Reported) -> Plan:
    return one.plan if isinstance(one, RunRecord) else one


def _item_names(key: str, one: Reported, names: Names, plans: int) -> Sequence[str] | None:
    found = names.get(key) if isinstance(names, Mapping) else names
    items = len(_plan_of(one).lengths)
    if found is not None and len(found) != items:
        cure = (
            f"Give a mapping, names={{{key!r}: [...]}}." if plans > 1 else "Give one for each item."
        )
        raise DataError(f"report: {len(found)} names for the {items} items of {key}. {cure}")
    return found


def _refuse_unwritable(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"report: {str(path)!r} is a folder; give a file in it: 'report.html'.")
    if not path.parent.is_dir():
        folder = str(path.parent)
        raise DataError(
            f"report: there is no folder {folder!r} for {path.name!r}. Make it first: "
            f"mkdir -p {folder}"
        )


def _section(
    key: str, name: str, one: Reported, names: Sequence[str] | None, max_slots: int, safe: Any
) -> _Section:
    plan, run = _plan_of(one), one if isinstance(one, RunRecord) else None
    curve = occupancy_curve(plan, max_slots)
    pictures = []
    for place, picture in enumerate(draw_figures(one, curve=curve).values()):
        own = f"{key}-figure{place}"
        svg = safe(inline_svg(picture.figure, own, picture.title))
        pictures.append(_Inline(own, picture.title, picture.caption, svg))
    tables = []
    if len(plan.lengths):
        tables = [slot_table(plan), item_table(plan, names)]
        tables += [curve_table(curve, plan.dims)] if curve is not None else []
        tables += [batch_table(plan)]
        tables += [device_table(plan)] if plan.devices else []
    return _Section(
        key, name, _facts(plan), sentences(plan, curve, run), list(plan.warnings),
        _tiles(plan, run), pictures, tables,
    )  # fmt: skip


def _facts(plan: Plan) -> str:
    parts = [f"dims {', '.join(plan.dims) or 'none'}", f"work {plan.work}"]
    parts += [f"{name} = {text}" for name, text in plan.derived.items()]
    parts += [f"exact {', '.join(plan.exact)}"] if plan.exact else []
    parts += [f"slots {plan.mode}"]
    parts += [f"for {plan.on}"] if plan.on else []
    return "; ".join(parts)


def _tiles(plan: Plan, run: RunRecord | None) -> list[_Tile]:
    if not len(plan.lengths):
        return []
    work = measure_padding(plan).total
    useful, padded = float(work.useful[0]), float(work.padded[0])
    tiles = [
        _Tile("Work used", percent(useful / padded if padded else 1.0), plan.work),
        _Tile("Slot padding", percent(float(work.slot_padding[0]) / (padded or 1.0)), "of work"),
        _Tile("Row padding", percent(float(work.row_padding[0]) / (padded or 1.0)), "of work"),
        _Tile(
            "Rows used",
            percent(plan.rows_occupancy),
            count(sum(len(b.items) for b in plan.batches), "row"),
        ),
    ]
    if plan.item_bytes:
        held = measure_padding(plan, "bytes").total
        size = float(held.padded[0])
        used = percent(float(held.useful[0]) / size if size else 1.0)
        tiles.append(_Tile("Bytes used", used, f"of {show_bytes(size)}"))
    shapes = len(plan.shapes)
    tiles.append(_Tile("Predicted", format_seconds(plan.predicted_seconds), count(shapes, "shape")))
    if plan.devices:
        imbalance = summarise_shards(plan).imbalance
        tiles.append(_Tile("Imbalance", f"{imbalance:.2f}", count(len(plan.devices), "device")))
    if plan.memory is not None and plan.memory.peak_bytes is not None:
        budget = f"of {show_bytes(plan.memory.budget.bytes)}"
        tiles.append(_Tile("Peak", show_bytes(plan.memory.peak_bytes), budget))
    if run is not None and run.seconds is not None:
        tiles.append(_Tile("Measured", format_seconds(run.seconds), "by the run"))
    if run is not None and run.peak_bytes is not None:
        tiles.append(_Tile("Peak measured", show_bytes(run.peak_bytes), run.memory))
    return tiles


def _comparison(plans: Mapping[str, Reported]) -> Table:
    columns = ["plan", "items", "slots", "batches", "work used", "rows used", "bytes used"]
    columns += ["predicted", "peak", "measured"]
    rows = []
    for name, one in plans.items():
        plan, run = _plan_of(one), one if isinstance(one, RunRecord) else RunRecord(_plan_of(one))
        held = plan.occupancy(plan.item_bytes) if plan.item_bytes else None
        peak = plan.memory.peak_bytes if plan.memory is not None else None
        seconds = plan.predicted_seconds
        numbers = (len(plan.lengths), np.count_nonzero(plan.rows), len(plan.batches))
        cells = [Cell(name), *(Cell(str(number), float(number)) for number in numbers)]
        cells += [
            Cell("-", -1.0) if share is None else Cell(percent(share), share)
            for share in (plan.occupancy(), plan.rows_occupancy, held)
        ]
        cells += [Cell(format_seconds(seconds), seconds)]
        cells += [Cell("-", -1.0) if peak is None else Cell(show_bytes(peak), float(peak))]
        cells += [
            Cell("-", -1.0)
            if run.seconds is None
            else Cell(format_seconds(run.seconds), run.seconds)
        ]
        rows.append(tuple(cells))
    shown = [
        axis
        for axis in range(len(columns))
        if axis < 4 or any(row[axis].text != "-" for row in rows)
    ]  # what no plan knows is left out
    return Table(
        "Plans",
        tuple(columns[axis] for axis in shown),
        tuple(tuple(row[axis] for axis in shown) for row in rows),
    )
