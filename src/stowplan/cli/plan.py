"""`stowplan plan`: a table of sizes in, what 1, 2, ... slots would give out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stowplan.cli.arguments import (
    add_slots,
    cost_constants,
    expression,
    json_file,
    named_expression,
    natural,
    refuse_unwritable,
)
from stowplan.expressions import Expression
from stowplan.io.sizes import read_sizes
from stowplan.planners import Costs, assign_slots, split_chunks
from stowplan.planners.choose import SlotChoice, choose_slots, slot_curve
from stowplan.planners.shards import share_devices
from stowplan.planners.tables import format_seconds

__all__ = ["add_command", "named_dims"]

CURVE = 8  # slot counts that the report compares
EXAMPLE = """\
example:
  stowplan plan sizes.csv --work "atoms * k" --slots 4
  stowplan plan sizes.parquet --work "atoms * k" --derived "k=n1*n2*n3" --json > report.json

SIZES is a table with a named column for each dim and a row for each item; - reads CSV from
standard input. The report compares 1, 2, ... slots by occupancy, useful / padded work.
"""


def add_command(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "plan",
        help="occupancy of 1, 2, ... slots for a table of sizes",
        description="Report what slots would give for the sizes in a CSV or Parquet table.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=report)
    add = parser.add_argument
    add("file", metavar="SIZES", help="CSV or Parquet file, or - for CSV on standard input")
    add(
        "--work",
        type=expression,
        metavar="EXPR",
        help='work of an item, such as "atoms * k" (default: the product of all columns)',
    )
    add(
        "--derived",
        type=named_expression,
        action="append",
        default=[],
        metavar="NAME=EXPR",
        help='a derived size for --work and --slot, such as "k=n1*n2*n3"; repeatable',
    )
    add_slots(parser)
    add(
        "--overflow",
        choices=("error", "extend"),
        default="error",
        help="what to do with items that no --slot holds: refuse (default), or add a slot",
    )
    add(
        "--costs",
        type=cost_constants,
        default={},
        metavar="work=S,launch=S,compile=S",
        help="seconds for a unit of work, a batch and a compiled shape",
    )
    add("--devices", type=natural, metavar="N", help="share the batches out among N devices")
    add("--json", action="store_true", help="print the report as JSON")
    add("--out", type=json_file, metavar="PLAN.json", help="save the plan, with PLAN.npz beside it")


def report(arguments: argparse.Namespace) -> None:
    """`stowplan plan`: what slots would give for a table of sizes."""
    if arguments.out is not None:
        refuse_unwritable(arguments.out)
    derived: dict[str, str] = dict(arguments.derived)
    used = [] if arguments.work is None else [arguments.work]
    source = sys.stdin if arguments.file == "-" else arguments.file
    sizes = read_sizes(source, named_dims(used, derived, arguments.slot or []))
    terms: dict[str, Any] = {
        "work": arguments.work.text if arguments.work else " * ".join(sizes),
        "derived": derived,
    }
    costs = Costs(**arguments.costs)
    most = arguments.slots or CURVE
    curve = _distinct(slot_curve(sizes, most, costs=costs, **terms))
    slots = arguments.slot or choose_slots(sizes, arguments.slots, costs=costs, **terms)
    made = assign_slots(sizes, slots, overflow=arguments.overflow, **terms)
    made = replace(made, mode="given" if arguments.slot else "chosen", costs=costs)
    made = split_chunks(made, rows=arguments.rows)
    if arguments.devices is not None:
        made = share_devices(made, arguments.devices)
    if arguments.out is not None:
        made.save(arguments.out)
    if arguments.json:
        print(json.dumps({"plan": dict(made.summary()), "curve": _points(curve)}, indent=2))
    else:
        print(made)
        print()
        print(_curve_table(curve))


def named_dims(
    used: Sequence[Expression], formulas: dict[str, str], slots: Sequence[Mapping[str, int]]
) -> list[str] | None:
    """Give the columns that expressions and slots speak of; None for all."""
    if not used:
        return None
    named = [name for expression in used for name in expression.names]
    named = [*named, *(name for slot in slots for name in slot if name != "rows")]
    for name in reversed(formulas):  # a formula uses those given before it
        if name in named:
            named += Expression.parse(formulas[name]).names
    return [name for name in dict.fromkeys(named) if name not in formulas] or None


def _distinct(curve: Sequence[SlotChoice]) -> list[SlotChoice]:
    """The points where another slot still gains."""
    return list({len(point.slots): point for point in curve}.values())


def _points(curve: Sequence[SlotChoice]) -> list[dict[str, Any]]:
    return [
        {
            "count": len(point.slots),
            "occupancy": point.occupancy,
            "seconds": point.seconds,
            "slots": list(point.slots),
        }
        for point in curve
    ]


def _curve_table(curve: Sequence[SlotChoice]) -> str:
    """Occupancy against the number of slots, one line a point."""
    dims = " x ".join(curve[0].slots[0]) if curve else ""
    lines = [f"slots  occupancy  predicted  {dims}"]
    for point in curve:
        shapes = ", ".join("x".join(map(str, slot.values())) for slot in point.slots)
        count, share = len(point.slots), f"{100 * point.occupancy:.1f} %"
        lines.append(f"{count:5}  {share:>9}  {format_seconds(point.seconds):>9}  {shapes}")
    return "\n".join(lines)
