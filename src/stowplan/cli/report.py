"""`stowplan report`: sizes or saved plans in, a page of where the padding goes out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stowplan.cli.arguments import (
    add_slots,
    cost_constants,
    expression,
    html_file,
    named_expression,
    natural,
    naturals,
    number,
    positive,
    refuse_unwritable,
    word,
)
from stowplan.cli.measured_files import KINDS, Measured, kind_of, measure_files
from stowplan.cli.plan import named_dims
from stowplan.errors import BudgetError, DataError
from stowplan.host_memory import free_host_bytes
from stowplan.memory import Budget, resolve_budget
from stowplan.peaks import Forecast, PeakModel
from stowplan.planners import Costs, Plan, assign_slots, choose_slots, split_chunks
from stowplan.planners.shards import share_devices

__all__ = ["add_command"]

OF_PLANS = "work derived slots slot rows bytes budget costs devices names".split()
EXAMPLE = """\
example:
  stowplan report sizes.csv --work "atoms * k" --max-slots 8 --out report.html
  stowplan report sizes.parquet --slots 4 --names title --bytes "24*atoms + 12*k" --budget "2 GiB"
  stowplan report plan.json
  stowplan report salts.extxyz
  stowplan report library.smi --work "atoms * atoms"
  stowplan report masks/ --labels all

What a file holds follows from its suffix, or from --as. Tables have a named column for each dim and
a row for each item; structures are measured in k space (atoms, n1, n2, n3 and the derived k),
molecules by heavy atoms, masks by the box around them (y, x).
"""


def add_command(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "report",
        help="a page of where the padding goes, and what other slots would give",
        description="Write one self-contained HTML page about the padding of plans.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=write)
    add = parser.add_argument
    add("files", metavar="FILE", nargs="+", help="sizes, a plan, structures, molecules or masks")
    add(
        "--out", type=html_file, default=Path("report.html"), metavar="REPORT.html", help="the page"
    )
    add("--title", default="Occupancy report", help="heading of the page")
    add("--as", dest="kind", choices=KINDS, help="what the files hold (default: by suffix)")
    add(
        "--max-slots", type=natural, default=8, metavar="N", help="most slots compared (default: 8)"
    )
    planning = parser.add_argument_group("planning (of sizes, not of a saved plan)")
    add_slots(planning)
    add = planning.add_argument
    add("--work", type=expression, metavar="EXPR", help='work of an item, such as "atoms * k"')
    add(
        "--derived",
        type=named_expression,
        action="append",
        default=[],
        metavar="NAME=EXPR",
        help='a derived size for --work and --slot, such as "k=n1*n2*n3"; repeatable',
    )
    add("--bytes", type=expression, metavar="EXPR", help="bytes of an item, such as 24*atoms+12*k")
    add("--budget", metavar="BYTES", help='most bytes of a batch, such as "2 GiB"; needs --bytes')
    add(
        "--costs",
        type=cost_constants,
        default={},
        metavar="work=S,launch=S,compile=S",
        help="seconds for a unit of work, a batch and a compiled shape",
    )
    add("--devices", type=natural, metavar="N", help="share the batches out among N devices")
    reading = parser.add_argument_group("reading")
    add = reading.add_argument
    add("--names", metavar="COLUMN", help="column of a table that names its items")
    add("--labels", type=word("all", otherwise=naturals), metavar="all|N,...",
        help="masks: values are labels, 0 is background")  # fmt: skip
    add("--grey", type=number, metavar="X", help="masks: values are grey, a mask is above X")
    add("--accuracy", type=positive, default=1e-6, metavar="A",
        help="structures: of their Ewald sums (default: 1e-6)")  # fmt: skip
    add("--skip-failed", action="store_true", help="molecules: leave out what cannot be read")


def write(arguments: argparse.Namespace) -> None:
    """`stowplan report`: write the page."""
    from stowplan.reports.page import report  # says how to install what it needs

    refuse_unwritable(arguments.out)
    if arguments.budget is not None and arguments.bytes is None:
        raise DataError('--budget needs --bytes, the bytes of an item: --bytes "24*atoms + 12*k"')
    twice = [path for path in arguments.files if arguments.files.count(path) > 1]
    if twice:
        raise DataError(f"{twice[0]!r} is given twice")
    plans: dict[str, Plan] = {}
    names: dict[str, Sequence[str]] = {}
    for path in arguments.files:
        name = _name(path, plans)
        kind = arguments.kind or kind_of(path)
        if kind == "plan":
            plans[name] = _saved(path, arguments)
            continue
        found = _measured(path, kind, arguments)
        plans[name] = _planned(found, arguments)
        if found.names is not None:
            names[name] = found.names
    report(plans, arguments.out, names=names, title=arguments.title, max_slots=arguments.max_slots)
    for name, plan in plans.items():
        print(f"{name}: {plan.occupancy():.1%} of the work of {len(plan.lengths)} items is useful")
    print(arguments.out)


def _name(path: str, taken: dict[str, Plan]) -> str:
    """Name a plan by its file, and by its path where two are called alike."""
    name = "standard input" if path == "-" else Path(path).stem or path
    return path if name in taken else name


def _saved(path: str, arguments: argparse.Namespace) -> Plan:
    given = [name for name in OF_PLANS if getattr(arguments, name)]
    if given:
        options = ", ".join(f"--{name}" for name in given)
        raise DataError(
            f"{path!r} is a plan, which has its own slots, work and costs: leave out {options}, or "
            "give the sizes that it was made from."
        )
    if not Path(path).exists():
        raise DataError(f"{path!r}: no such file")
    return Plan.load(path)


def _measured(path: str, kind: str, arguments: argparse.Namespace) -> Measured:
    used = [one for one in (arguments.work, arguments.bytes) if one is not None]
    derived = dict(arguments.derived)
    dims = named_dims(used, derived, arguments.slot or []) if arguments.work else None
    return measure_files(
        path, kind, dims=dims, names=arguments.names, labels=arguments.labels,
        threshold=arguments.grey, accuracy=arguments.accuracy, skip_failed=arguments.skip_failed,
    )  # fmt: skip


def _planned(found: Measured, arguments: argparse.Namespace) -> Plan:
    derived = {**found.derived, **dict(arguments.derived)}
    work = arguments.work.text if arguments.work else found.work or " * ".join(found.sizes)
    terms: dict[str, Any] = {"work": work, "derived": derived}
    costs = Costs(**arguments.costs)
    slots = arguments.slot
    if not slots:
        most = None if arguments.slots else arguments.max_slots
        slots = choose_slots(found.sizes, arguments.slots, costs=costs, max_count=most, **terms)
    made = assign_slots(found.sizes, slots, order="given", **terms)
    made = replace(made, mode="given" if arguments.slot else "chosen", costs=costs)
    if arguments.bytes is not None:
        arguments.bytes.require(made.measure.names)
        made = replace(made, item_bytes=arguments.bytes.text)
    if arguments.budget is None:
        made = split_chunks(made, rows=arguments.rows)
    else:
        made = _within(made, resolve_budget(arguments.budget, free_host_bytes, "report"), arguments)
    return made if arguments.devices is None else share_devices(made, arguments.devices)


def _within(plan: Plan, budget: Budget, arguments: argparse.Namespace) -> Plan:
    """Give the batches so many rows that what they hold of columns stays within a budget."""
    capacities = np.array([[slot[dim] for dim in plan.dims] for slot in plan.slots], np.int64)
    each = plan.measure.evaluate(
        arguments.bytes, capacities.reshape(len(plan.slots), len(plan.dims))
    )
    models = [PeakModel(0, float(size), "--bytes") for size in each.tolist()]
    most = [model.rows(budget.bytes) for model in models]
    if most and min(most) < 1:
        slot = int(np.argmin(most))
        raise BudgetError(
            f"report: one row of slot {slot}, {dict(plan.slots[slot])}, holds {each[slot]:.0f} "
            f"bytes, more than the budget of {budget}. Give {each[slot]:.0f} bytes or more."
        )
    made = split_chunks(plan, rows=arguments.rows, max_rows=most)
    peaks = tuple(
        model.peak(rows) if rows else 0 for model, rows in zip(models, made.rows, strict=True)
    )
    return replace(made, memory=Forecast(budget, 0, peaks, ("padded columns by --bytes",)))
