"""`stowplan completion`: the line that lets a shell complete the command."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from stowplan.errors import DataError
from stowplan.extras import import_extra

__all__ = ["add_command", "complete"]

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
ASKING = "_ARGCOMPLETE"
"""Environment variable that a shell sets when it asks what may follow."""
EXAMPLE = """\
example:
  eval "$(stowplan completion bash)"            in ~/.bashrc; for zsh in ~/.zshrc
  stowplan completion fish > ~/.config/fish/completions/stowplan.fish

Needs the extra: pip install 'stowplan[completion]'. Without a name the shell is that of $SHELL.
"""


def add_command(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "completion",
        help="complete commands, options and files in a shell",
        description="Print what a shell needs to complete stowplan's commands, options and files.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=show)
    parser.add_argument("shell", nargs="?", choices=SHELLS, help="default: that of $SHELL")


def show(arguments: argparse.Namespace) -> None:
    """Print the script of a shell."""
    shell = arguments.shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise DataError(
            f"completion: $SHELL names {shell or 'no shell'}. Name one of: {', '.join(SHELLS)}."
        )
    argcomplete = import_extra("completion", "argcomplete", "completion")
    print(argcomplete.shellcode(["stowplan"], shell=shell))


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what may follow, and exit; do nothing for any other call."""
    if ASKING not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:  # nothing to say to a shell
        return
    argcomplete.autocomplete(parser)
