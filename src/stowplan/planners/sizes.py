"""Sizes of items, checked once, and what expressions of them cost."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stowplan.errors import PlanError
from stowplan.expressions import Expression

__all__ = ["Measure", "SizeTable", "Sizes", "natural", "refuse_overflow", "size_table"]

Sizes = Mapping[str, ArrayLike]
Lengths = NDArray[np.int64]
LARGEST = 2**63 - 1


def listed(values: Mapping[str, Any]) -> str:
    """``{"atoms": 3, "k": 90}`` as ``atoms=3, k=90``."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def natural(value: Any, what: str, least: int = 1) -> int:
    """`value` as an int of at least `least`, or a PlanError that begins with `what`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise PlanError(f"{what} must be an integer, got {value!r}") from None
    if isinstance(value, bool | np.bool_):
        raise PlanError(f"{what} must be an integer, got {value!r}")
    if number < least:
        raise PlanError(f"{what} must be at least {least}, got {number}")
    if number > LARGEST:
        raise PlanError(f"{what} is {number}, beyond the largest 64-bit integer")
    return number


def refuse_overflow(who: str, rows: int, capacity: Sequence[int], dims: Sequence[str]) -> None:
    """Raise PlanError where rows x capacities leave int64, counted in Python integers."""
    elements = rows
    for length in capacity:
        elements *= int(length)
    if elements > LARGEST:
        shape = listed({"rows": rows, **dict(zip(dims, capacity, strict=True))})
        raise PlanError(
            f"{who}: a batch of {shape} has {elements} padded elements, beyond the largest "
            f"64-bit integer {LARGEST}. Use fewer rows (rows=...) or smaller slots."
        )


@dataclass(frozen=True)
class Measure:
    """Work and derived sizes as functions of the lengths of the core dims."""

    dims: tuple[str, ...]
    work: Expression
    derived: dict[str, Expression]

    @classmethod
    def parse(
        cls, dims: Sequence[str], work: str | None = None, derived: Mapping[str, str] | None = None
    ) -> Measure:
        """Parse both; names may be dims, and derived names given earlier."""
        known = list(dims)
        expressions = {}
        for name, text in (derived or {}).items():
            if name in known or name == "rows" or not name.isidentifier():
                raise PlanError(
                    f"derived name {name!r} is taken or no identifier: rename it to a word of "
                    f"letters, digits and _, other than {', '.join(['rows', *known])}"
                )
            expressions[name] = Expression.parse(text, known)
            known.append(name)
        text = work if work is not None else " * ".join(dims) or "1"
        return cls(tuple(dims), Expression.parse(text, known), expressions)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that a slot may limit: dims, then derived."""
        return (*self.dims, *self.derived)

    def columns(self, lengths: Lengths) -> dict[str, NDArray[Any]]:
        """Every dim and derived size of lengths (..., dims), each (...)."""
        found: dict[str, NDArray[Any]] = {
            name: lengths[..., axis] for axis, name in enumerate(self.dims)
        }
        for name, expression in self.derived.items():
            found[name] = np.broadcast_to(expression.evaluate(found), lengths.shape[:-1])
        return found

    def evaluate(self, expression: Expression, lengths: Lengths) -> NDArray[np.float64]:
        """An expression of lengths (..., dims) as float64 (...)."""
        names: set[str] = set(expression.names)
        for name in reversed(self.derived):
            if name in names:
                names |= set(self.derived[name].names)
        values: dict[str, Any] = {}
        for axis, name in enumerate(self.dims):
            if name in names:
                values[name] = lengths[..., axis].astype(np.float64)
        for name, derived in self.derived.items():
            if name in names:
                values[name] = derived.evaluate(values)
        expression.require(self.names)
        result = np.asarray(expression.evaluate(values), dtype=np.float64)
        return np.broadcast_to(result, lengths.shape[:-1])

    def cost(self, lengths: Lengths) -> NDArray[np.float64]:
        """Work of lengths (..., dims) as float64 (...); PlanError where it is negative."""
        result = self.evaluate(self.work, lengths)
        if result.size and result.min() < 0:
            worst = lengths.reshape(-1, len(self.dims))[result.argmin()]
            at = listed(dict(zip(self.dims, worst.tolist(), strict=True)))
            raise PlanError(f"work {self.work.text!r} is negative at {at}")
        return result


@dataclass(frozen=True, eq=False)
class SizeTable:
    """Lengths (items, dims) with the measure that prices them."""

    lengths: Lengths
    measure: Measure
    exact: tuple[str, ...]

    @property
    def padded(self) -> Lengths:
        """Lengths with 0 counted as 1, the least capacity."""
        return np.maximum(self.lengths, 1)

    @property
    def exact_axes(self) -> list[int]:
        """Axes that may share a slot only at equal size."""
        return [self.measure.dims.index(name) for name in self.exact]

    def item(self, index: int) -> dict[str, int]:
        """Lengths of one item by name."""
        return dict(zip(self.measure.dims, self.lengths[index].tolist(), strict=True))


def _column(who: str, name: str, values: ArrayLike) -> Lengths:
    column = np.asarray(values)
    if column.ndim != 1:
        raise PlanError(f"{who}: sizes[{name!r}] must have one axis, got shape {column.shape}")
    if column.size == 0:
        return np.zeros(0, np.int64)
    if column.dtype.kind not in "iu":
        raise PlanError(
            f"{who}: sizes[{name!r}] must be 64-bit integers, got {column.dtype}; "
            f"cast counts with numpy.asarray(values, dtype=int)"
        )
    low, high = int(column.argmin()), int(column.max())
    if column[low] < 0:
        raise PlanError(f"{who}: item {low} has {name}={column[low]}; sizes are 0 or more")
    if high > LARGEST:
        raise PlanError(f"{who}: sizes[{name!r}] holds {high}, beyond a 64-bit integer")
    return column.astype(np.int64)


def size_table(
    who: str,
    sizes: Sizes,
    work: str | None = None,
    derived: Mapping[str, str] | None = None,
    exact: Sequence[str] = (),
    items: int | None = None,
) -> SizeTable:
    """Check sizes {dim: (items,)} and parse what prices them; errors begin with `who`.

    `items` is needed only where there are no dims.
    """
    columns = {str(name): _column(who, name, values) for name, values in sizes.items()}
    for name in columns:
        if name == "rows" or not name.isidentifier():
            raise PlanError(
                f"{who}: {name!r} cannot name a dim: rename it to a word of letters, digits and _, "
                "other than rows"
            )
    counts = {name: len(column) for name, column in columns.items()}
    if items is not None:
        counts["items"] = items
    if len(set(counts.values())) > 1:
        raise PlanError(f"{who}: the sizes disagree on the number of items: {listed(counts)}")
    if not counts:
        raise PlanError(f"{who}: no dims given; say how many items there are: items=...")
    lengths = np.empty((next(iter(counts.values())), len(columns)), np.int64)
    for axis, column in enumerate(columns.values()):
        lengths[:, axis] = column
    for name in exact:
        if name not in columns:
            raise PlanError(f"{who}: exact={name!r} is no dim; dims: {', '.join(columns)}")
    lengths.flags.writeable = False
    return SizeTable(lengths, Measure.parse(tuple(columns), work, derived), tuple(exact))
