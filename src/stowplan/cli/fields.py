"""`stowplan fields`: fields larger than memory, solved, summed over rings, and fitted."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stowplan.cli.arguments import lengths, natural, number, numbers, positive, window
from stowplan.errors import DataError, PlanError, StoreError

if TYPE_CHECKING:
    from stowplan.cli.fields_files import Report

__all__ = ["add_command"]

EXAMPLE = """\
example:
  stowplan fields solve "run/*.npy" --spacing 0.1 --budget 2GiB --out potentials.zarr --resume run1
  stowplan fields spectrum potentials.zarr --axes 1,2,3 --spacing 0.1 --out spectrum.csv
  stowplan fields tail "run/*.npy" --spacing 0.1um --window 0.8,4.3 --out tails.parquet

COMMAND --help says what is computed and written.
"""
STORE = """\
STORE is the path of a field (.npy, .zarr, .h5::dataset), a folder of .npy files, a zarr group, a
quoted pattern such as "run/*.npy", or several paths of fields; all of one dtype, real or complex.
One array is one field: where its first axis counts fields, --axes 1,2,3 names those in space.
"""
TABLE = """\
--out gets a table, .csv or .parquet, and a picture beside it, of the same name and .png. Without
--out, standard output gets the table, tab-separated.
"""
FORMS = (
    r"\b(spacing|axes|centre|width|window|budget|out|on|rows|resume)="
    r"(\([^()]*\)|\[[^\]]*\]|'[^']*'|(?!\.(?:\s|$))[^\s,;]+)?"
)
"""Cures as the recipes write them, with a value or without."""


def add_command(commands: Any) -> None:
    """Add the command and its actions."""
    parser = commands.add_parser(
        "fields",
        help="fields larger than memory: solve, spectra, radial means, tails",
        description="Fields on periodic grids, in batches within a budget of memory.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(required=True, metavar="solve|spectrum|radial|tail")
    _add_solve(actions)
    _add_spectrum(actions)
    _add_radial(actions)
    _add_tail(actions)


def _add_solve(actions: Any) -> None:
    parser = _action(
        actions, "solve", solve, "(mu (-nabla^2)^beta + lam) a = s for each field s",
        "--out OUT [--beta B] [--lam L] [--resume RUN] [options]",
        f"{STORE}\nOUT is an array (.npy, .zarr, .h5::dataset), whose first axis counts the fields "
        "unless one is\ngiven by its path; or a folder, with a file for each field. Beside it, "
        "OUT.png shows memory over\ntime against the budget.",
        "potentials.zarr --budget 2GiB --resume run1",
    )  # fmt: skip
    group = parser.add_argument_group("equation")
    group.add_argument("--beta", type=positive, metavar="B", help="1 (default): Poisson's")
    group.add_argument("--mu", type=positive, metavar="M", help="default: 1")
    group.add_argument(
        "--lam", type=_from_zero, metavar="L",
        help="kappa^2 mu: screening. 0 (default): none, and sources must have no mean",
    )  # fmt: skip
    _add_common(parser)


def _add_spectrum(actions: Any) -> None:
    parser = _action(
        actions, "spectrum", spectrum, "isotropic power spectrum of each field",
        "[--out TABLE] [options]",
        f"{STORE}\nThe power |a(k)|^2 (orthonormal transform) is summed over shells of |k|, 2 pi / "
        "(N dx) wide. The\ntable has a row for each field and shell: |k| in radians per unit of "
        "length, sum of the power, number\nof modes, mean. The slope p of |k|^p of the mean "
        "spectrum, with its 95 % interval, is a least-squares\nfit of log power by log |k| in a "
        "window, in which a shell weighs as its modes; without --window, |k| > 0\nup to 2/3 of the "
        f"largest of the coarsest axis, and a curve that is no power law has none.\n\n{TABLE}",
        "spectrum.csv",
    )  # fmt: skip
    group = parser.add_argument_group("shells")
    group.add_argument("--width", type=positive, metavar="DK", help="of a shell of |k|")
    group.add_argument("--window", type=window, metavar="LOW,HIGH", help="of |k|, for the slope")
    _add_common(parser)


def _add_radial(actions: Any) -> None:
    parser = _action(
        actions, "radial", radial, "mean of each field over bins of the distance from a centre",
        "[--out TABLE] [--centre X,Y,Z] [options]",
        f"{STORE}\nThe table has a row for each field and bin: mean distance r, sum, cells, mean; "
        "sum and mean of complex\nfields have two columns each.\n\n" + TABLE,
        "radial.csv --centre 48,48,48",
    )  # fmt: skip
    group = parser.add_argument_group("bins")
    _add_centre(group)
    group.add_argument("--width", type=positive, metavar="DR", help="of a bin of r")
    _add_common(parser)


def _add_tail(actions: Any) -> None:
    parser = _action(
        actions, "tail", tail, "power law of the radial mean of each field, c r^p + b + d r^2",
        "[--out TABLE] [--window LOW,HIGH] [options]",
        f"{STORE}\nLeast squares of c r^p + b + d r^2, a power law in a periodic box, to radial "
        "means in a window;\nreal parts of complex fields are fitted. The table has a row for each "
        "field: p with its 95 % interval,\nc, b, d, the window, its points, root mean square of "
        "what is left, and why a field has no tail. Such\nfields are named on standard error, and "
        f"the exit status is 1.\n\n{TABLE}",
        "tails.csv --window 0.8,4.3",
    )  # fmt: skip
    group = parser.add_argument_group("fit")
    _add_centre(group)
    group.add_argument(
        "--window", type=window, metavar="LOW,HIGH",
        help="of r; default: beyond 8 and below 0.45 N cells",
    )  # fmt: skip
    _add_common(parser)


def _action(
    actions: Any,
    name: str,
    command: Callable[..., None],
    what: str,
    usage: str,
    text: str,
    rest: str,
) -> Any:
    example = f'\nexample:\n  stowplan fields {name} "run/*.npy" --spacing 0.1 --out {rest}\n'
    parser = actions.add_parser(
        name, help=what, description=what[0].upper() + what[1:] + ".",
        usage=f"%(prog)s STORE [STORE ...] --spacing DX {usage}",
        epilog=f"{text}\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(command=command, where=f"fields.{name}")
    add = parser.add_argument
    add("store", nargs="+", metavar="STORE", help="fields: path, folder, group, quoted pattern")
    add(
        "--spacing", type=lengths, required=True, metavar="DX[,DY,DZ]",
        help="of the grid, such as 0.1 or 0.1,0.1,0.2um; the unit is shown with the results",
    )  # fmt: skip
    add("--axes", type=numbers(_whole), metavar="0,1,2", help="axes in space (default: 0,1,2)")
    return parser


def _add_centre(group: Any) -> None:
    group.add_argument(
        "--centre", type=numbers(number), metavar="X,Y,Z",
        help="in cells, one for each of --axes (default: the middle)",
    )  # fmt: skip


def _add_common(parser: Any) -> None:
    add = parser.add_argument_group("computation").add_argument
    add("--on", choices=("numpy", "jax", "torch", "cupy"), help="framework (default: numpy)")
    add("--rows", type=natural, metavar="N", help="blocks of a batch")
    add("--budget", metavar="BYTES", help="memory, such as 2GiB, or a share of what is free (0.8)")
    add("--resume", metavar="RUN", help="folder to keep what is done in, and to go on from")
    add("--check", action="store_true", help="look for NaN and infinity, and refuse them")
    add = parser.add_argument_group("output").add_argument
    add("--out", metavar="OUT", help="where results go")
    add("--overwrite", action="store_true", help="replace outputs that are there")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--picture", type=Path, metavar="FILE", help="of another name: .png, .pdf, .svg"
    )
    which.add_argument("--no-picture", action="store_true", help="none beside OUT")
    add("-q", "--quiet", action="store_true", help="no progress bar and no summary")


def solve(arguments: argparse.Namespace) -> None:
    """`stowplan fields solve`: potentials of sources."""
    if arguments.out is None:
        raise DataError(
            "fields.solve: potentials need a place. Name one: --out potentials.zarr, a .npy or "
            ".h5::dataset, or a folder."
        )
    with _job(arguments) as (report, options):
        from stowplan.recipes import fields
        from stowplan.recipes.fields_pictures import draw_memory

        given = _given(arguments, "beta", "mu", "lam")
        with report.measured():
            fields.solve(
                report.store, **options, **given, out=arguments.out, overwrite=arguments.overwrite
            )
        if report.picture is not None:
            title = f"Memory of solve: {report.described}"
            draw_memory(report.picture, report.trace, budget=report.budget, title=title)


def spectrum(arguments: argparse.Namespace) -> None:
    """`stowplan fields spectrum`: power over shells of |k|."""
    with _job(arguments) as (report, options):
        from stowplan.cli import fields_files as files
        from stowplan.recipes import fields
        from stowplan.recipes.fields_pictures import draw_spectrum

        with report.measured():
            found = fields.spectrum(report.store, **options, **_given(arguments, "width"))
        files.write_table(arguments.out, files.spectrum_columns(found), report.metadata)
        files.leave_out_picture(report, found)
        slope = files.slope_of(found, arguments.window, report.say)
        if report.picture is not None:
            draw_spectrum(
                report.picture, found, report.trace, slope=slope, budget=report.budget,
                unit=report.shown_unit, real=report.real,
                title=f"Power spectra: {report.described}",
            )  # fmt: skip


def radial(arguments: argparse.Namespace) -> None:
    """`stowplan fields radial`: means over bins of the distance."""
    with _job(arguments) as (report, options):
        from stowplan.cli import fields_files as files
        from stowplan.recipes import fields
        from stowplan.recipes.fields_pictures import draw_radial

        with report.measured():
            found = fields.radial(report.store, **options, **_given(arguments, "centre", "width"))
        files.write_table(arguments.out, files.radial_columns(found), report.metadata)
        if report.picture is not None:
            draw_radial(
                report.picture, found, report.trace, budget=report.budget, unit=report.shown_unit,
                title=f"Radial means: {report.described}",
            )  # fmt: skip


def tail(arguments: argparse.Namespace) -> None:
    """`stowplan fields tail`: power laws of radial means."""
    with _job(arguments) as (report, options):
        from stowplan.cli import fields_files as files
        from stowplan.recipes import fields
        from stowplan.recipes.fields_pictures import draw_radial

        with report.measured():
            found = fields.radial(report.store, **options, **_given(arguments, "centre"))
        tails, failures = files.fitted_tails(found, arguments.window)
        columns = files.tail_columns(found.names, tails, failures)
        files.write_table(arguments.out, columns, report.metadata)
        if report.picture is not None:
            draw_radial(
                report.picture, found, report.trace, tails=tails, budget=report.budget,
                unit=report.shown_unit, title=f"Radial means and tails: {report.described}",
            )  # fmt: skip
        for name, tail in zip(found.names, tails, strict=True):
            if tail is not None and len(found) == 1:
                low, high = tail.interval
                report.say(f"{name}: p = {tail.power:.6g}, 95 % from {low:.6g} to {high:.6g}")
    wrong = [(name, text) for name, text in zip(found.names, failures, strict=True) if text]
    for name, text in wrong:
        print(f"stowplan: {name}: {text}", file=sys.stderr)
    if wrong:
        raise DataError(f"{len(wrong)} of {len(found)} fields without a tail, see above")


@contextmanager
def _job(arguments: argparse.Namespace) -> Iterator[tuple[Report, dict[str, Any]]]:
    """Check what is asked for, give what all recipes take, and say at the end what was done."""
    if arguments.on == "jax":
        os.environ.setdefault("JAX_ENABLE_X64", "1")  # the dtype of fields is kept
    from stowplan.cli.fields_files import Report

    with _told_as_options(arguments):
        report = Report.open(arguments, sys.stderr.isatty() and not arguments.quiet)
        (steps, _), one = arguments.spacing, len(arguments.spacing[0]) == 1
        options = {
            "spacing": steps[0] if one else steps,
            "budget": arguments.budget,
            "check": arguments.check,
            "progress": report.bar,
            **_given(arguments, "axes", "on", "rows", "resume"),
        }
        yield report, options
        report.finish()


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """What was given; the recipes have the defaults."""
    found = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def _told_as_options(arguments: argparse.Namespace) -> Iterator[None]:
    """Write cures as options of the command, and say where what is done has been kept."""
    try:
        yield
    except KeyboardInterrupt:
        if kept := _kept(arguments):
            print(f"stowplan:{kept}", file=sys.stderr)
        raise
    except (DataError, PlanError, StoreError) as error:
        text = re.sub(r"\b(overwrite|check)=True", r"--\1", str(error))
        text = re.sub(FORMS, _as_option, text.replace("lam > 0", "--lam above 0"))
        begun = getattr(error, "__notes__", None)  # a part was read, or computed
        text = " ".join(text.split()) + (_kept(arguments) if begun else "")
        raise type(error)(text) from error


def _kept(arguments: argparse.Namespace) -> str:
    from stowplan.stores.manifest import has_records

    if arguments.resume is None or not has_records(arguments.resume):
        return ""
    return f" What is done is kept in {arguments.resume}: the same call goes on from there."


def _as_option(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    if value is None:
        return f"--{name}"
    if value[0] in "([":
        value = value.strip("()[]").replace(", ", ",")
    return f"--{name} {value if ' ' in value else value.strip(chr(39))}"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _from_zero(text: str) -> float:
    """A finite number from 0."""
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0")
    return value
