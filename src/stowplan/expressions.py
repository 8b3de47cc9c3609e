"""Arithmetic of dims, such as ``n1 * n2 * n3 + 2 * atoms``: parsed once, never run by Python."""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError

__all__ = ["Expression"]

Number = int | float
LONGEST_TEXT = 1000
DEEPEST = 100
LARGEST_BITS = 4096  # a power beyond this is a typing error, and would never end
ALLOWED = "allowed are names, numbers, + - * / ** and parentheses"
OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
}


def _fault(text: str, offset: int, reason: str) -> PlanError:
    return PlanError(f"expression {text!r}: {reason}\n  {text}\n  {' ' * offset}^")


def _column(text: str, node: ast.AST) -> int:
    """Character at which a node starts (ast counts UTF-8 bytes)."""
    return len(text.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))


def _check(text: str, node: ast.AST, depth: int, names: dict[str, int]) -> None:
    """Refuse every node that is not plain arithmetic; collect names with their column."""
    at = _column(text, node)
    if depth > DEEPEST:
        raise _fault(text, at, f"nested deeper than {DEEPEST} levels")
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            if type(op) not in OPERATORS:
                raise _fault(text, at, f"this operator is not allowed; {ALLOWED}")
            _check(text, left, depth + 1, names)
            _check(text, right, depth + 1, names)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _check(text, operand, depth + 1, names)
        case ast.Name(id=name):
            names.setdefault(name, at)
        case ast.Constant(value=value) if type(value) in (int, float):
            pass
        case ast.Call():
            raise _fault(text, at, f"function calls are not allowed; {ALLOWED}")
        case _:
            raise _fault(text, at, f"{type(node).__name__} is not allowed; {ALLOWED}")


def _power(text: str, base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int):
        if abs(base) > 1 and exponent * base.bit_length() > LARGEST_BITS:
            raise PlanError(f"expression {text!r}: {base} ** {exponent} is too large")
    result = base**exponent
    if isinstance(result, complex):
        raise PlanError(f"expression {text!r}: {base} ** {exponent} is not a real number")
    return result


def _value(text: str, node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(text, left, values), _value(text, right, values)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
                case _:
                    return _power(text, a, b)
        case ast.UnaryOp(operand=operand):
            return -_value(text, operand, values)
        case ast.Name(id=name):
            return values[name]
        case _:
            assert isinstance(node, ast.Constant)
            return node.value


@dataclass(frozen=True)
class Expression:
    """A parsed work or size expression.

    Attributes
    ----------
    text : str
        The expression, with single spaces.
    names : tuple of str
        Names in it, in order of appearance.

    Examples
    --------
    >>> work = Expression.parse("n1 * n2 + 2 * atoms")
    >>> work.names
    ('n1', 'n2', 'atoms')
    >>> work.evaluate({"n1": 10**12, "n2": 10**12, "atoms": 1})
    1000000000000000000000002
    >>> Expression.parse("n1 * sqrt(n2)")
    Traceback (most recent call last):
        ...
    stowplan.errors.PlanError: expression 'n1 * sqrt(n2)': function calls are not allowed; allowed are names, numbers, + - * / ** and parentheses
      n1 * sqrt(n2)
           ^
    """  # noqa: E501  the message is shown as it is printed

    text: str
    names: tuple[str, ...]
    columns: tuple[int, ...] = field(repr=False, compare=False)
    node: ast.expr = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, known: Iterable[str] | None = None) -> Expression:
        """Parse `text`; with `known`, refuse every name that is not in it.

        Raises
        ------
        PlanError
            At a character that is no arithmetic, or at an unknown name.
        """
        if not isinstance(text, str):
            raise PlanError(f"expression: expected text such as 'atoms * k', got {text!r}")
        expression = _parsed(" ".join(text.split()))
        if known is not None:
            expression.require(known)
        return expression

    def require(self, known: Iterable[str]) -> None:
        """Raise PlanError at the first name that is not in `known`."""
        known = tuple(known)
        for name, at in zip(self.names, self.columns, strict=True):
            if name not in known:
                listed = ", ".join(known) or "none"
                raise _fault(self.text, at, f"unknown name {name!r}; known: {listed}")

    def evaluate(self, values: Mapping[str, Number | NDArray[Any]]) -> Any:
        """Value for numbers (Python arithmetic, exact for ints) or arrays (float64).

        Raises
        ------
        PlanError
            For a missing name, or a value that is no finite real number.
        """
        self.require(values)
        used: dict[str, Any] = {}
        for name in self.names:
            value = values[name]
            if isinstance(value, np.ndarray):
                used[name] = value.astype(np.float64)
            else:
                used[name] = value.item() if isinstance(value, np.generic) else value
        try:
            with np.errstate(all="ignore"):
                result = _value(self.text, self.node, used)
        except (ZeroDivisionError, OverflowError) as error:
            raise PlanError(f"expression {self.text!r}: {error} at {used}") from None
        finite = np.isfinite(result).all() if isinstance(result, np.ndarray) else True
        if isinstance(result, float):
            finite = math.isfinite(result)
        if not finite:
            raise PlanError(f"expression {self.text!r}: not finite for the sizes given")
        return result


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> Expression:
    """Parse text with single spaces; each plan parses what it did before."""
    if not text:
        raise PlanError("expression: empty; write something like 'atoms * k'")
    if len(text) > LONGEST_TEXT:
        raise PlanError(f"expression of {len(text)} characters; at most {LONGEST_TEXT}")
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        at = error.offset - 1 if error.offset else len(text)
        raise _fault(text, at, f"{error.msg}; {ALLOWED}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise PlanError(f"expression {text!r}: {error}; {ALLOWED}") from None
    names: dict[str, int] = {}
    _check(text, node, 0, names)
    return Expression(text, tuple(names), tuple(names.values()), node)
