"""The command `stowplan`: data on standard output, progress and messages on standard error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from stowplan import __version__
from stowplan.cli import (
    bragg,
    completion,
    doctor,
    ewald,
    fields,
    overlay,
    plan,
    report,
    runs,
    transport,
)
from stowplan.errors import DataError, FrameworkError, MissingDependencyError, PlanError

__all__ = ["main"]

OK, BAD_DATA, INTERRUPTED, BROKEN_PIPE = 0, 1, 130, 141  # argparse itself exits with 2
EXPECTED = (DataError, PlanError, FrameworkError, MissingDependencyError, OSError, MemoryError)
EXAMPLE = """\
examples:
  stowplan plan sizes.csv --work "atoms * k"      what 1, 2, ... slots would give
  stowplan ewald salts.extxyz --charges Na=1,Cl=-1
  stowplan doctor                                 what is installed, and what is wrong
  eval "$(stowplan completion bash)"              complete commands and options in this shell

COMMAND --help has an example of each. Exit status: 0 done, 1 for data that cannot be used, 2 for a
wrong call.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit status.

    Parameters
    ----------
    argv
        Arguments, ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        0 done, 1 for data that cannot be used, 2 for a wrong call, 130 after Ctrl-C, 141 when the
        reader of standard output has gone.

    Examples
    --------
    >>> main(["--version"])
    stowplan ...
    0
    """
    try:
        parser = _parser()
        completion.complete(parser)
        arguments = parser.parse_args(argv)
        arguments.command(arguments)
        if sys.stdout is not None:  # None where the caller has closed it
            sys.stdout.flush()
    except SystemExit as stop:  # argparse has said what was wrong
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Python flushes standard output once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except EXPECTED as error:
        return _complain(f"error: {_reason(error)}", BAD_DATA)
    return OK


def _reason(error: BaseException) -> str:
    """What an error says, without the numbers of the system."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _complain(message: str, status: int) -> int:
    print(f"stowplan: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stowplan",
        description="Plan ragged batches once, run them on any array framework.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"stowplan {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    bragg.add_command(commands)
    completion.add_command(commands)
    doctor.add_command(commands)
    ewald.add_command(commands)
    fields.add_command(commands)
    overlay.add_command(commands)
    plan.add_command(commands)
    report.add_command(commands)
    runs.add_command(commands)
    transport.add_command(commands)
    return parser
