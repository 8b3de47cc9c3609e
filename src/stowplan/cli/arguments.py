"""Readers of arguments: text in, value out, or a message that argparse shows with the usage."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stowplan.errors import DataError, PlanError
from stowplan.expressions import Expression

__all__ = [
    "add_devices",
    "add_slots",
    "arranged_devices",
    "cost_constants",
    "expression",
    "from_zero",
    "json_file",
    "named_expression",
    "natural",
    "number",
    "pairs",
    "positive",
    "refuse_unwritable",
    "region",
    "word",
]


def add_slots(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that steer slots and rows."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--slots", type=natural, metavar="N", help="number of slots to choose")
    which.add_argument(
        "--slot",
        type=pairs(natural),
        action="append",
        metavar="DIM=SIZE,...",
        help="a slot by hand, such as atoms=64,k=4096; repeatable, the first that fits is taken",
    )
    parser.add_argument("--rows", type=natural, metavar="N", help="rows of a batch")


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Add the argument that says on how many devices a command computes."""
    parser.add_argument(
        "--devices",
        type=word("all", otherwise=natural),
        metavar="N|all",
        help="devices to compute on at once; on a CPU virtual ones (jax) or workers of one thread",
    )


def arranged_devices(count: int | str | None, on: str) -> list[Any] | None:
    """Give what ``devices=`` takes; virtual devices of JAX are arranged before JAX starts."""
    if count is None:
        return None
    from stowplan.runs.devices import devices

    return devices(count, on=on)


def natural(text: str) -> int:
    """A whole number from 1."""
    return _whole(text, 1)


def from_zero(text: str) -> int:
    """A whole number from 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
    return value


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return value


def positive(text: str) -> float:
    """A finite number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not positive")
    return value


def pairs(read: Callable[[str], Any]) -> Callable[[str], dict[str, Any]]:
    """A reader of ``name=value,name=value``."""

    def pairs(text: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not (name and equals):
                raise argparse.ArgumentTypeError(f"{part!r} is not of the form NAME=VALUE")
            if name in found:
                raise argparse.ArgumentTypeError(f"{name} is given twice")
            found[name] = read(value)
        return found

    return pairs


def word(*allowed: str, otherwise: Callable[[str], Any] | None = None) -> Callable[[str], Any]:
    """A reader of words; of what another one reads, too."""

    def read(text: str) -> Any:
        if text in allowed:
            return text
        if otherwise is not None:
            return otherwise(text)
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(allowed)}")

    return read


def region(text: str) -> tuple[slice, slice]:
    """``Y0:Y1,X0:X1`` as slices; what is left out is the edge."""
    try:
        found = []
        for part in text.split(","):
            start, colon, stop = part.partition(":")
            if not colon:
                raise ValueError(part)
            found.append(slice(*(int(end) if end.strip() else None for end in (start, stop))))
        slow, fast = found
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form Y0:Y1,X0:X1") from None
    return slow, fast


def cost_constants(text: str) -> dict[str, float]:
    """``work=1e-9,launch=5e-4`` as keywords of Costs."""
    found = pairs(number)(text)
    unknown = sorted(set(found) - {"work", "launch", "compile"})
    if unknown or min(found.values()) < 0:
        raise argparse.ArgumentTypeError(
            f"{text!r}: allowed are work, launch and compile, seconds from 0"
        )
    return {f"{name}_seconds": value for name, value in found.items()}


def expression(text: str) -> Expression:
    """Arithmetic of dims."""
    try:
        return Expression.parse(text)
    except PlanError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def named_expression(text: str) -> tuple[str, str]:
    """``k=n1*n2*n3`` as name and expression."""
    name, _, formula = (piece.strip() for piece in text.partition("="))
    if not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=EXPR")
    return name, expression(formula).text


def json_file(text: str) -> Path:
    """A path that ends in .json."""
    path = Path(text)
    if path.suffix != ".json":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .json")
    return path


def refuse_unwritable(path: Path) -> None:
    """Raise before anything is computed for a path that cannot be written."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; --out needs a file")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}. Make it first.")
