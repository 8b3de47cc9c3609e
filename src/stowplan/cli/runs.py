"""`stowplan runs`: what runs have left on disk, listed and removed."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from stowplan.memory import show_bytes
from stowplan.stores.leftovers import (
    Leftover,
    find_leftovers,
    remove_leftover,
    strange_file,
)

__all__ = ["add_command"]

KINDS = {
    "run": "run to resume",
    "scratch": "scratch folder",
    "part": "unfinished output",
    "output": "output to resume",
    "old": "array set aside",
}
EXAMPLE = """\
example:
  stowplan runs list /scratch
  stowplan runs clean /scratch --dry-run
  stowplan runs clean /scratch/run-12 --finished

Of a living process nothing is removed. What a run could go on from, its folder with finished
batches and its output, is removed with --finished alone. Of the folder of a run only what the run
wrote is removed: other files stay, and the folder with them.
"""


def add_command(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "runs",
        help="what runs have left on disk: list it, remove it",
        description="Find folders of runs, scratch folders and unfinished outputs below a folder.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(required=True, metavar="list|clean")
    listing = actions.add_parser(
        "list",
        help="show bytes, age, finished batches, alive or dead",
        description="Show what runs have left below a folder: bytes, age, finished batches.",
        epilog="example: stowplan runs list /scratch --json",
    )
    listing.set_defaults(command=show)
    listing.add_argument("path", metavar="PATH", help="folder to look in")
    listing.add_argument("--json", action="store_true", help="as JSON")
    cleaning = actions.add_parser(
        "clean",
        help="remove leftovers of dead runs",
        description="Remove what dead runs have left below a folder.",
        epilog="example: stowplan runs clean /scratch --dry-run",
    )
    cleaning.set_defaults(command=clean)
    cleaning.add_argument("path", metavar="PATH", help="folder to look in")
    cleaning.add_argument(
        "--finished", action="store_true", help="also what a run could be resumed from"
    )
    cleaning.add_argument(
        "--dry-run", action="store_true", help="say what would be removed, and remove nothing"
    )


def show(arguments: argparse.Namespace) -> None:
    """Print what there is."""
    found = find_leftovers(arguments.path)
    if arguments.json:
        print(json.dumps([_as_json(one) for one in found], indent=1))
        return
    for one in found:
        print(_line(one))
    print(f"{len(found)} found, {show_bytes(sum(one.bytes for one in found))}")


def clean(arguments: argparse.Namespace) -> None:
    """Remove what is left of dead runs, and say what stays and why."""
    removed, total = 0, 0
    gone: set[Path] = set()
    for one in find_leftovers(arguments.path):
        reason = _reason_to_stay(one, finished=arguments.finished)
        if reason is None and not (arguments.dry_run or remove_leftover(one)):
            reason = ": a process has opened it just now"
        if reason is not None:
            print(f"kept     {_line(one)}{reason}")
            continue
        strange = strange_file(one, gone)
        if strange is None:
            gone.add(one.path)
            folder = ""
        else:
            folder = f": the folder stays, it holds what is not the run's, {strange} for one"
        print(f"{'would go' if arguments.dry_run else 'removed '} {_line(one)}{folder}")
        removed, total = removed + 1, total + one.bytes
    print(f"{removed} {'to remove' if arguments.dry_run else 'removed'}, {show_bytes(total)}")


def _reason_to_stay(one: Leftover, *, finished: bool) -> str | None:
    """Say why something is not to be removed; None where it is."""
    if one.alive:
        return ""
    if one.is_only_copy:
        return f": {one.target} is missing and this is the only copy; mv {one.path} {one.target}"
    if one.damaged and not finished:
        return ": its batches may be whole; remove it with --finished"
    if one.has_results and not finished:
        return ": resume it, or remove it with --finished"
    return None


def _line(one: Leftover) -> str:
    done = ", its manifest is damaged" if one.damaged else ""
    if one.done is not None:
        done = f", {one.done}{'' if one.batches is None else f' of {one.batches}'} batches done"
    state = "alive" if one.alive else "dead"
    return f"{one.path}  {KINDS[one.kind]}, {show_bytes(one.bytes)}, {_age(one)}, {state}{done}"


def _age(one: Leftover) -> str:
    seconds = max(time.time() - one.modified, 0)
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {name} old"
    return f"{seconds:.0f} s old"


def _as_json(one: Leftover) -> dict[str, Any]:
    return {
        "path": str(one.path), "kind": one.kind, "bytes": one.bytes, "modified": one.modified,
        "alive": one.alive, "done": one.done, "batches": one.batches, "damaged": one.damaged,
    }  # fmt: skip
