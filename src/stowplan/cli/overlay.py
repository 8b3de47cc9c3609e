"""`stowplan overlay`: a query and a library of molecules in, ranked hits in its frame out."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stowplan.cli.arguments import add_devices, arranged_devices, from_zero, natural, positive, word
from stowplan.errors import DataError
from stowplan.extras import import_extra

if TYPE_CHECKING:
    from stowplan.cli.overlay_files import Library
    from stowplan.io.molecules import Molecules

__all__ = ["add_command"]

EXAMPLE = """\
QUERY and LIBRARY are SMILES with names (.smi, .smiles, .txt, .csv, .tsv) or structures (.sdf,
.mol), packed (.gz) or not. SMILES, and structures without coordinates in space, get one conformer
by RDKit's ETKDGv3, from the same seed each. The library is read in chunks: it may be larger than
memory.

Standard output gets a tab-separated line for each hit: rank, name, score (Tanimoto index of the
Gaussian volumes, 1 for equal shapes), heavy atoms, and the line of LIBRARY where it stands.
--out FILE gets the hits in the frame of the query, all atoms, with properties score, rank and name.

What cannot be used (broken lines, no heavy atoms, no conformer, salts and mixtures) ends the run
with exit status 1 and its lines, broken lines before anything is computed; with --skip-failed it is
left out, named on standard error and counted.

example:
  stowplan overlay query.sdf library.smi --top 50 --out hits.sdf --picture scores.png
"""


def add_command(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "overlay",
        help="shape overlay of a library of molecules on a query",
        description="Rank the molecules of a library by how well their shape overlays a query.",
        usage="%(prog)s QUERY LIBRARY [--top N] [--out hits.sdf] [options]",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=evaluate)
    add = parser.add_argument
    add("query", type=Path, metavar="QUERY", help="file of the molecule that is looked for")
    add("library", type=Path, metavar="LIBRARY", help="file of molecules that are ranked")
    add("--top", type=natural, default=100, metavar="N", help="hits (default: 100)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--query-index", type=natural, metavar="N", help="molecule of QUERY, from 1 (default: 1)"
    )
    which.add_argument("--query-name", metavar="NAME", help="molecule of QUERY, by name")
    _add_reading(parser.add_argument_group("molecules"))
    _add_computation(parser.add_argument_group("computation"))
    _add_output(parser.add_argument_group("output"))


def _add_reading(group: Any) -> None:
    add = group.add_argument
    add("--skip-failed", action="store_true", help="leave out what cannot be used, and say so")
    add(
        "--fragments",
        choices=("refuse", "largest", "all"),
        default="refuse",
        help="of salts and mixtures: a failure (default), the largest, or all as they lie",
    )
    add("--seed", type=from_zero, metavar="N", help="of conformers (default: 61453)")
    add("--workers", type=natural, metavar="N", help="threads that embed (default: all cores)")
    add("--chunk", type=natural, default=2000, metavar="N", help="molecules read at once (2000)")


def _add_computation(group: Any) -> None:
    add = group.add_argument
    add(
        "--starts",
        type=word("atoms", otherwise=natural),
        metavar="N|atoms",
        help="poses that each molecule starts from (default: 50)",
    )
    add("--steps", type=natural, metavar="N", help="most steps of a start (default: 200)")
    add(
        "--tolerance",
        type=word("none", otherwise=positive),
        metavar="X|none",
        help="change of the score at which a start ends (default: 1e-5); none: all steps",
    )
    add("--alpha", type=positive, metavar="X", help="exponent of the Gaussians in 1/Å^2 (0.81)")
    add("--on", choices=("numpy", "jax", "torch", "cupy"), help="framework (default: numpy)")
    add_devices(group)
    add("--dask", metavar="ADDRESS", help="scheduler of Dask whose workers compute")
    add("--budget", metavar="BYTES", help='memory, such as "2 GiB"')


def _add_output(group: Any) -> None:
    add = group.add_argument
    add("--out", type=Path, metavar="FILE", help="hits.sdf or .sdf.gz, in the frame of the query")
    add("--with-query", action="store_true", help="the query is the first record of --out")
    add("--scores", type=Path, metavar="FILE", help="all molecules: table.parquet or .csv")
    add("--picture", type=Path, metavar="FILE", help="scores.png: distribution and best hits")
    add("-q", "--quiet", action="store_true", help="no progress bar and no summary")


def evaluate(arguments: argparse.Namespace) -> None:
    """`stowplan overlay`: the molecules of a library that are shaped like a query."""
    from stowplan.cli import overlay_files as files
    from stowplan.io.molecules import read_molecules, write_overlays
    from stowplan.recipes import overlay

    files.check_outputs(arguments.out, arguments.scores, arguments.picture)
    options = {
        "fragments": arguments.fragments,
        "workers": arguments.workers or os.cpu_count() or 1,
        **({} if arguments.seed is None else {"seed": arguments.seed}),
    }
    steering = _options(arguments)
    query = _query(arguments, options)
    shown = not arguments.quiet and sys.stderr.isatty()
    library = files.Library(
        arguments.library, arguments.chunk, shown, skip_failed=arguments.skip_failed, **options
    )
    start = time.perf_counter()
    with _cluster(arguments.dask) as workers:
        found = overlay.screen(query.points[0], library, arguments.top, **steering, **workers)
    seconds = time.perf_counter() - start
    lines = library.lines[found.index].tolist()
    hits = read_molecules(arguments.library, lines=lines, keep_mols=True, **options)
    place = {line: index for index, line in enumerate(hits.lines.tolist())}
    hits = hits[[place[line] for line in lines]]
    _print_hits(found.score.tolist(), hits)
    if arguments.out is not None:
        write_overlays(
            arguments.out, hits, found.transform, found.score,
            query=query if arguments.with_query else None,
        )  # fmt: skip
    if arguments.scores is not None:
        files.write_scores(arguments.scores, library, found.scores)
    if arguments.picture is not None:
        from stowplan.recipes.overlay_pictures import draw

        draw(found, arguments.picture, hits=hits, query=query)
    _say(arguments, library, found, seconds)


def _query(arguments: argparse.Namespace, options: dict[str, Any]) -> Molecules:
    """Read the molecule that is asked for, or the first one with a notice if there are others."""
    from stowplan.io.molecule_files import iter_records
    from stowplan.io.molecules import read_molecules

    path = arguments.query
    records = [(record.line, record.name) for record in iter_records(path)]
    if not records:
        raise DataError(f"overlay: {path} holds no molecules.")
    place = (arguments.query_index or 1) - 1
    if arguments.query_name is not None:
        named = [n for n, (_, name) in enumerate(records) if name == arguments.query_name]
        if len(named) != 1:
            raise DataError(
                f"overlay: {len(named)} of {len(records)} molecules of {path} are called "
                f"{arguments.query_name!r}. Give the place of one: --query-index N, from 1."
            )
        place = named[0]
    elif place >= len(records):
        raise DataError(f"overlay: --query-index {place + 1}; {path} holds {len(records)}, from 1.")
    line, name = records[place]
    query = read_molecules(path, lines=[line], keep_mols=True, **options)
    if len(records) > 1 and arguments.query_index is None and arguments.query_name is None:
        print(
            f"stowplan: {path} holds {len(records)} molecules; the query is the first, {name} "
            "(--query-index or --query-name takes another)",
            file=sys.stderr,
        )
    return query


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given to steer `screen`, which has the defaults."""
    names = "starts steps tolerance alpha on budget".split()
    given = {name: getattr(arguments, name) for name in names}
    found = {name: value for name, value in given.items() if value is not None}
    if arguments.tolerance == "none":
        found["tolerance"] = None
    devices = arranged_devices(arguments.devices, arguments.on or "numpy")
    if devices is not None:
        found["devices"] = devices
    return found


@contextmanager
def _cluster(address: str | None) -> Iterator[dict[str, Any]]:
    """Give the workers of a scheduler as ``executor=``, where there is one; then let go of it."""
    if address is None:
        yield {}
        return
    import stowplan as sp

    with import_extra("dask", "distributed", "--dask").Client(address) as client:
        yield {"executor": sp.dask_executor(client)}


def _print_hits(scores: list[float], hits: Molecules) -> None:
    print("rank", "name", "score", "atoms", "line", sep="\t")
    atoms, lines = hits.points.shapes[:, 0].tolist(), hits.lines.tolist()
    rows = zip(hits.names, scores, atoms, lines, strict=True)
    for rank, (name, score, count, line) in enumerate(rows, 1):
        print(rank, " ".join(name.split()), f"{score:.6f}", count, line, sep="\t")


def _say(arguments: argparse.Namespace, library: Library, found: Any, seconds: float) -> None:
    """Name what was left out; then, unless it shall be quiet, sums."""
    for failure in library.failed:
        print(f"stowplan: left out: {failure}", file=sys.stderr)
    if arguments.quiet:
        return
    count, left = len(library.lines), len(library.failed)
    made = int(library.embedded.sum())
    embedded = f", {made} of them embedded" if made else ""
    pairs = count / max(seconds - library.seconds, 1e-9)
    print(
        f"{count} molecules read in {library.seconds:.2f} s{embedded}; {left} failed and left out\n"
        f"{count} pairs overlaid in {seconds - library.seconds:.2f} s, {pairs:.4g} pairs/s; "
        f"{len(found.plan.slots)} slots, occupancy {found.plan.occupancy():.1%}",
        file=sys.stderr,
    )
