"""Kernel signatures such as ``(atoms,3),(k,3)->()``, parsed once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from stowplan.errors import SignatureError

__all__ = ["CoreShape", "Signature", "parse_signature"]

_DIM_RULE = "a dim is a name (atoms) or a positive integer (3)"
_TOKEN = re.compile(r"\s*(->|[(),]|[A-Za-z_]\w*|\d+)")

CoreShape = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """Core shapes of a kernel's inputs and outputs.

    Attributes
    ----------
    text
        The signature as it was written.
    inputs, outputs
        One tuple of dims per argument or result; a dim is a name or a positive integer.
    """

    text: str
    inputs: tuple[CoreShape, ...]
    outputs: tuple[CoreShape, ...]

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the input dims, in order of first appearance."""
        return _names(self.inputs)

    @property
    def new_dims(self) -> tuple[str, ...]:
        """Names of the output dims that no input has."""
        return tuple(name for name in _names(self.outputs) if name not in self.dims)


@lru_cache(maxsize=1024)
def parse_signature(text: str) -> Signature:
    """Parse a gufunc-style signature; spaces and a trailing comma are fine.

    Raises
    ------
    SignatureError
        With a caret under the first character that cannot be read.

    Examples
    --------
    >>> parse_signature("(atoms, 3), (k, 3) -> ()").inputs
    (('atoms', 3), ('k', 3))
    """
    return _Reader(text).signature()


class _Reader:
    """A cursor over the tokens of one signature."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def signature(self) -> Signature:
        inputs = self.shapes()
        if not inputs:
            self.fail("expected at least one input, such as (atoms,3)")
        self.take("->")
        outputs = self.shapes()
        if self.rest():
            self.fail("expected the end of the signature")
        if not outputs:
            self.fail("expected at least one output, such as ()")
        return Signature(self.text, inputs, outputs)

    def shapes(self) -> tuple[CoreShape, ...]:
        shapes: list[CoreShape] = []
        while self.peek() == "(":
            shapes.append(self.shape())
            if self.peek() != ",":
                break
            self.take(",")
        return tuple(shapes)

    def shape(self) -> CoreShape:
        dims: list[str | int] = []
        self.take("(")
        while self.peek() != ")":
            dims.append(self.dim())
            if self.peek() != ",":
                break
            self.take(",")
        self.take(")")
        return tuple(dims)

    def dim(self) -> str | int:
        token = self.peek()
        if token is None or not (token[0].isalnum() or token[0] == "_"):
            self.fail(_DIM_RULE)
        start = self.position
        self.take(token)
        if token.isdigit():
            following = self.text[self.position : self.position + 1]
            if int(token) == 0 or following.isalpha() or following == "_":
                self.position = start
                self.fail(_DIM_RULE)
            return int(token)
        return token

    def rest(self) -> str:
        return self.text[self.position :].strip()

    def peek(self) -> str | None:
        match = _TOKEN.match(self.text, self.position)
        return match.group(1) if match else None

    def take(self, expected: str) -> None:
        match = _TOKEN.match(self.text, self.position)
        if match is None or match.group(1) != expected:
            self.fail(f"expected {expected!r}")
        self.position = match.end()

    def fail(self, reason: str) -> NoReturn:
        rest = self.text[self.position :]
        column = self.position + len(rest) - len(rest.lstrip())
        raise SignatureError(
            f"signature: {reason}, at character {column}:\n  {self.text}\n  {' ' * column}^\n"
            "A signature reads like '(atoms,3),(k,3)->(),(atoms,3)'."
        )


def _names(shapes: tuple[CoreShape, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(dim for shape in shapes for dim in shape if isinstance(dim, str)))
