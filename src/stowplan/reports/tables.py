"""The tables of a report: what stands in each cell, and by what it is sorted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stowplan.memory import show_bytes
from stowplan.planners.batches import Plan
from stowplan.planners.cost import Costs
from stowplan.planners.shards import summarise_shards
from stowplan.planners.tables import format_seconds
from stowplan.reports.curves import Curve
from stowplan.reports.padding import item_padding, measure_padding, most_padded
from stowplan.reports.summaries import percent

__all__ = [
    "Cell",
    "Table",
    "batch_table",
    "curve_table",
    "device_table",
    "item_table",
    "slot_table",
]

SHOWN_ROWS = 200


class Cell(NamedTuple):
    """A text, and the number that it is sorted by; None sorts by the text."""

    text: str
    value: float | None = None

    @property
    def key(self) -> str:
        """The number in digits, where the text is none."""
        if self.value is None or self.text.replace("\N{NO-BREAK SPACE}", "").isdecimal():
            return ""
        return f"{self.value:.6g}"


@dataclass(frozen=True)
class Table:
    """Columns and rows of a table, with a note on what it leaves out."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def slot_table(plan: Plan) -> Table:
    """Give capacities, rows and occupancy of each slot."""
    work = measure_padding(plan)
    rows_share = measure_padding(plan, "rows").occupancy
    held = measure_padding(plan, "bytes") if plan.item_bytes else None
    total = float(work.padded.sum()) or 1.0
    batches = np.bincount([batch.slot for batch in plan.batches], minlength=len(plan.slots))
    items = np.bincount(
        [batch.slot for batch in plan.batches],
        [batch.count for batch in plan.batches],
        len(plan.slots),
    )
    rows = []
    for index, slot in enumerate(plan.slots):
        cells = [_number(index), *(_number(slot[dim]) for dim in plan.dims)]
        cells += [_number(plan.rows[index]), _number(batches[index]), _number(int(items[index]))]
        cells += [_share(work.occupancy[index]), _share(rows_share[index])]
        cells += [_share(held.occupancy[index])] if held else []
        cells += [_share(part[index] / total) for part in (work.slot_padding, work.row_padding)]
        rows.append(tuple(cells))
    columns = ["slot", *plan.dims, "rows", "batches", "items", "work used", "rows used"]
    columns += ["bytes used"] if held else []
    columns += ["slot padding", "row padding"]
    note = "Paddings are shares of the padded work of all slots."
    return _cut("Slots", columns, rows, note)


def item_table(plan: Plan, names: Sequence[str] | None, most: int = SHOWN_ROWS) -> Table:
    """Give the items that are padded by most work, by name."""
    chosen = most_padded(plan, most)
    padding, own = item_padding(plan), plan.measure.cost(plan.lengths)
    total = float(padding.sum()) or 1.0
    slot_of = np.full(len(plan.lengths), -1)
    for batch in plan.batches:
        slot_of[batch.items[: batch.count]] = batch.slot
    rows = []
    for item in chosen.tolist():
        cells = [] if names is None else [Cell(str(names[item]))]
        cells += [_number(item), *map(_number, plan.lengths[item].tolist())]
        cells += [_number(int(slot_of[item])), _short(own[item]), _short(own[item] + padding[item])]
        cells += [_short(padding[item]), _share(padding[item] / total)]
        rows.append(tuple(cells))
    columns = [*([] if names is None else ["name"]), "item", *plan.dims, "slot"]
    columns += ["work", "padded", "padding", "of all"]
    note = ""
    if len(chosen) < len(plan.lengths):
        note = f"The first {len(chosen)} of {len(plan.lengths)} items."
    return Table("Items that are padded most", tuple(columns), tuple(rows), note)


def batch_table(plan: Plan) -> Table:
    """Give what each batch computes, and its bytes against the budget."""
    costs, forecast = plan.costs or Costs(), plan.memory
    own = plan.measure.cost(plan.lengths)
    rows = []
    for number, batch in enumerate(plan.batches[:SHOWN_ROWS]):
        each = float(plan.measure.cost(np.array([batch.capacity], np.int64))[0])
        padded = each * len(batch.items)
        useful = float(own[batch.items[: batch.count]].sum())
        cells = [_number(number), _number(batch.slot)]
        if plan.devices:
            shared = plan.shared_by == "rows"
            cells.append(Cell("all" if shared else plan.devices[batch.device]))
        cells += [_number(len(batch.items)), _number(batch.count)]
        cells += [_share(useful / padded if padded else 1.0)]
        seconds = costs.seconds(padded, 1, 0)
        cells.append(Cell(format_seconds(seconds), seconds))
        if forecast is not None and forecast.batch_bytes:
            peak = forecast.batch_bytes[batch.slot] + forecast.held_bytes
            cells += [Cell(show_bytes(peak), peak), _share(peak / forecast.budget.bytes)]
        rows.append(tuple(cells))
    columns = ["batch", "slot", *(["device"] if plan.devices else []), "rows", "items"]
    columns += ["work used", "predicted"]
    if forecast is not None and forecast.batch_bytes:
        columns += ["peak", "of budget"]
    hidden = len(plan.batches) - len(rows)
    note = f"The first {len(rows)} of {len(plan.batches)} batches." if hidden else ""
    return Table("Batches", tuple(columns), tuple(rows), note)


def device_table(plan: Plan) -> Table:
    """Give what each device computes and when it is done."""
    shards = summarise_shards(plan)
    last = float(shards.seconds.max(initial=0.0)) or 1.0
    columns = zip(
        plan.devices, shards.batches.tolist(), shards.items.tolist(), shards.shapes.tolist(),
        shards.seconds.tolist(), strict=True,
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for name, *counts, seconds in columns:
        done = Cell(format_seconds(seconds), seconds)
        rows.append((Cell(name), *map(_number, counts), done, _share(1 - seconds / last)))
    return _cut("Devices", ["device", "batches", "items", "shapes", "done in", "idle"], rows, "")


def curve_table(curve: Curve, dims: Sequence[str]) -> Table:
    """Give capacities and predicted time of each number of slots."""
    rows = []
    for point, slots in enumerate(curve.slots):
        shapes = ["x".join(str(slot[dim]) for dim in dims) for slot in slots]
        text = ", ".join(shapes[:8]) + (f", and {len(shapes) - 8} more" if len(shapes) > 8 else "")
        parts = (curve.work_seconds, curve.launch_seconds, curve.compile_seconds, curve.seconds)
        cells = [_number(len(slots)), _share(curve.occupancy[point])]
        cells += [Cell(format_seconds(part[point]) if part[point] else "0", part[point])
                  for part in parts]  # fmt: skip
        rows.append((*cells, Cell(text)))
    columns = ["slots", "occupancy", "work", "launches", "compiles", "in all", " x ".join(dims)]
    return Table("Other numbers of slots", tuple(columns), tuple(rows))


def _cut(title: str, columns: Sequence[str], rows: list[tuple[Cell, ...]], note: str) -> Table:
    if len(rows) > SHOWN_ROWS:
        note = f"The first {SHOWN_ROWS} of {len(rows)}. {note}".strip()
    return Table(title, tuple(columns), tuple(rows[:SHOWN_ROWS]), note)


def _number(value: float) -> Cell:
    return Cell(f"{int(value):,}".replace(",", "\N{NO-BREAK SPACE}"), float(value))


def _short(value: float) -> Cell:
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= max(size, 1e5):
            return Cell(f"{value / size:.4g} {letter}", float(value))
    return Cell(f"{value:.5g}", float(value))


def _share(share: float) -> Cell:
    return Cell("-", -1.0) if math.isnan(share) else Cell(percent(share), float(share))
