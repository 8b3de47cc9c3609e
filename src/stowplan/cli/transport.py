"""`stowplan transport`: masks in, velocities and what is created or destroyed out."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stowplan.cli.arguments import (
    LENGTH_UNITS,
    from_zero,
    length,
    natural,
    naturals,
    number,
    positive,
    region,
    word,
)
from stowplan.errors import DataError

__all__ = ["add_command"]

EXAMPLE = """\
SOURCE, TARGET and STACK are files, folders or quoted patterns such as "run/*.png"; the n-th frame
of SOURCE belongs to the n-th of TARGET. Labels (--labels) belong to the same label of the other
frame; those that it lacks are left out and named.

--out DIR gets results.parquet, a row for each pair, and for each pair maps (pair0000.npz: velocity
(y, x, 2) as dy, dx; created, destroyed (y, x); box y0 y1 x0 x1 of the canvas; unit; or
pair0000.tif, four channels) and a picture, pair0000.png. Without it, standard output gets a
tab-separated line for each pair. Masses are shares of the larger mass of a pair; created and
destroyed are net, below 0 where more mass arrives or leaves than there is.

A pair that failed or did not converge is named on standard error and marked in the columns
`failed` and `converged`; all others are written, and the exit status is 1.

example:
  stowplan transport "run/*.png" --consecutive --pixel-size 0.65um --out results/
"""


def add_command(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "transport",
        help="optimal transport between pairs of masks",
        description="Unbalanced optimal transport between pairs of masks of any size.",
        usage="%(prog)s SOURCE TARGET | STACK --consecutive [--out DIR] [options]",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=evaluate, refuse=parser.error)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="masks that are transported")
    add("target", nargs="?", metavar="TARGET", help="masks that they are transported to")
    add("--consecutive", action="store_true", help="of one STACK, each mask to the next")
    values = parser.add_mutually_exclusive_group()
    values.add_argument(
        "--labels",
        type=word("all", otherwise=naturals),
        metavar="all|3,7",
        help="the files hold labels: all of them, or these",
    )
    values.add_argument(
        "--grey", type=number, metavar="X", help="the files hold grey values, masks are above X"
    )
    _add_physics(parser.add_argument_group("transport"))
    _add_computation(parser.add_argument_group("computation"))
    _add_output(parser.add_argument_group("output"))


def _add_physics(group: Any) -> None:
    add = group.add_argument
    add("--tau", type=_share, help="1: nothing is created or destroyed (default: 0.99)")
    blur = group.add_mutually_exclusive_group()
    blur.add_argument("--epsilon", type=positive, metavar="E", help="blur, in the unit of the cost")
    blur.add_argument(
        "--relative-epsilon",
        type=positive,
        metavar="E",
        help="blur as a share of each pair's mean cost (default: 0.01)",
    )
    add("--reference", choices=("product", "counting"), help="default: product")
    add(
        "--density",
        type=word("uniform", "boundary", "distance", otherwise=_boundary),
        metavar="uniform|boundary[:PX]|distance",
        help="mass of the pixels of a mask (default: uniform; a boundary of 4 pixels)",
    )
    add(
        "--crop",
        type=word("union", otherwise=region),
        metavar="union|Y0:Y1,X0:X1",
        help="box that is computed (default: union, the box around both masks)",
    )
    add("--padding", type=from_zero, metavar="PX", help="pixels around the union (default: 16)")
    add("--pool", type=natural, metavar="N", help="N x N pixels are one of the work grid (4)")
    add("--threshold", type=positive, metavar="X", help="error of the marginals (default: 1e-4)")
    add("--max-iterations", type=natural, metavar="N", help="default: 5000")


def _add_computation(group: Any) -> None:
    add = group.add_argument
    add("--on", choices=("numpy", "jax", "torch", "cupy"), help="framework (default: numpy)")
    add(
        "--buckets",
        type=_buckets,
        metavar="N|HxW,HxW",
        help="padded shapes of work grids: how many to choose, or these",
    )
    add("--rows", type=natural, metavar="N", help="pairs of a batch")
    add("--budget", metavar="BYTES", help='memory, such as "4 GiB"')


def _add_output(group: Any) -> None:
    add = group.add_argument
    add("--out", type=Path, metavar="DIR", help="folder for results; it is made if missing")
    add(
        "--pixel-size",
        type=length,
        metavar="LENGTH",
        help=f"such as 0.65um, in {', '.join(LENGTH_UNITS)} or without one: velocities are in it",
    )
    add("--maps", choices=("npz", "tiff", "none"), help="files of maps (default: npz)")
    add("--no-pictures", action="store_true", help="no picture of each pair")
    add("-q", "--quiet", action="store_true", help="no progress bar and no summary")


def evaluate(arguments: argparse.Namespace) -> None:
    """`stowplan transport`: costs, velocity and what was created or destroyed, pair by pair."""
    _check_call(arguments)
    if arguments.on == "jax":
        os.environ.setdefault(
            "JAX_ENABLE_X64", "1"
        )  # float32 loses summands where epsilon is small
    from stowplan.cli import transport_files as files
    from stowplan.cli.mask_pairs import read_pairs
    from stowplan.recipes.transport import solve

    out, pictures = arguments.out, not arguments.no_pictures
    maps: files.Maps = arguments.maps or "npz"
    if out is not None:
        files.check_packages(maps, pictures)
    masks = read_pairs(
        arguments.source, arguments.target, labels=arguments.labels, threshold=arguments.grey
    )
    if masks.alone:
        left = f"{len(masks.alone)} labels lack a partner in another frame"
        print(f"stowplan: {left}: {masks.listed(masks.alone)}", file=sys.stderr)
    if out is not None:
        files.open_folder(out, len(masks), maps, pictures)
    options = _options(arguments)
    pixel, unit = arguments.pixel_size or (None, "px")
    shown = not arguments.quiet and sys.stderr.isatty()
    start = time.perf_counter()
    with _log_disabled():
        results = solve(masks.masks, pairs=masks.pairs, pixel_size=pixel, progress=shown, **options)
    seconds = time.perf_counter() - start
    for pair, message in enumerate(results.messages):
        if message:
            print(f"stowplan: pair {pair}, {masks.name(pair)}: {message}", file=sys.stderr)
    if out is None:
        _print_pairs(results, masks)
    else:
        files.write_table(out, results, masks, unit, {"pixel_size": pixel, **options})
        pairs = files.write_pairs(out, results, masks, unit, maps, pictures)
        _exhaust(pairs, len(masks), shown)
    if not arguments.quiet:
        plan = results.plan
        print(
            f"{len(masks)} pairs in {seconds:.2f} s; {len(plan.slots)} buckets, occupancy "
            f"{plan.occupancy():.1%}",
            file=sys.stderr,
        )
    wrong = int((~results.converged).sum())
    if wrong:
        raise DataError(f"{wrong} of {len(masks)} pairs failed or did not converge, see above")


def _check_call(arguments: argparse.Namespace) -> None:
    if arguments.consecutive == (arguments.target is not None):
        arguments.refuse("give SOURCE and TARGET, or one STACK and --consecutive")
    if arguments.out is None and (arguments.maps is not None or arguments.no_pictures):
        arguments.refuse("--maps and --no-pictures need --out")


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given to steer `solve`, which has the defaults."""
    names = (
        "tau epsilon relative_epsilon reference density crop padding pool threshold max_iterations "
        "on buckets rows budget"
    )
    given = {name: getattr(arguments, name) for name in names.split()}
    if isinstance(given["crop"], tuple):
        given["crop"] = tuple(
            edge
            for side in given["crop"]
            for edge in (side.start or 0, sys.maxsize if side.stop is None else side.stop)
        )
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def _log_disabled() -> Iterator[None]:
    """The command says itself, with names, what the recipe's log says of pairs."""
    log = logging.getLogger("stowplan.transport")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _print_pairs(results: Any, masks: Any) -> None:
    header = "pair cost mass created destroyed dy dx iterations converged source target"
    print(*header.split(), sep="\t")
    for pair, (source, target) in enumerate(masks.pairs):
        row = results[pair]
        names = ("cost", "mass", "created_mass", "destroyed_mass")
        numbers = [row[name] for name in names] + row["mean_velocity"].tolist()
        print(
            pair, *(f"{float(value):.9g}" for value in numbers), int(row["iterations"]),
            "yes" if row["converged"] else "no", masks.names[source], masks.names[target], sep="\t",
        )  # fmt: skip


def _exhaust(pairs: Iterator[int], count: int, shown: bool) -> None:
    from tqdm import tqdm

    for _ in tqdm(pairs, total=count, desc="writing", disable=not shown):
        pass


def _share(text: str) -> float:
    """A number above 0 and up to 1."""
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is above 1")
    return value


def _boundary(text: str) -> tuple[str, float]:
    """``boundary:PX``."""
    name, colon, width = text.partition(":")
    if name != "boundary" or not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is none of uniform, boundary[:PX], distance")
    return name, positive(width)


def _buckets(text: str) -> int | list[tuple[int, int]]:
    """A number of buckets, or ``HxW,HxW``."""
    if "x" not in text.lower():
        return natural(text)
    shapes = []
    for part in text.lower().split(","):
        height, cross, width = part.partition("x")
        if not cross:
            raise argparse.ArgumentTypeError(f"{part!r} is not of the form HxW, such as 32x64")
        shapes.append((natural(height), natural(width)))
    return shapes
