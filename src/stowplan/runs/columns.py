"""A user's data bound to the arguments of a kernel, every size checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj
from numpy.typing import NDArray

from stowplan.arrow import is_arrow, read_values
from stowplan.declaration import Kernel
from stowplan.errors import DataError, FrameworkError
from stowplan.ragged import Ragged
from stowplan.signature import CoreShape

__all__ = ["Columns", "bind"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Per-item data in signature order: a Ragged where dims are ragged, else items on axis 0."""

    values: tuple[Any, ...]
    items: int
    lengths: dict[str, NDArray[np.int64]]  # ragged dim -> (items,)
    fixed: dict[str, int]  # other named dim -> length

    @property
    def arrays(self) -> list[Any]:
        """The arrays behind the columns."""
        return [column.values if isinstance(column, Ragged) else column for column in self.values]


def bind(where: str, kernel: Kernel, data: Mapping[str, Any] | Sequence[Any]) -> Columns:
    """Check data against a kernel's signature.

    Raises
    ------
    DataError
        For missing or surplus columns, and for columns that disagree on a size.
    """
    where = f"{where}: {kernel.name}"
    given = _by_name(where, kernel, data)
    values, lengths, fixed = [], {}, {}
    known: dict[str, tuple[str, NDArray[np.int64]]] = {}
    items: tuple[str, int] | None = None
    for name, core in zip(kernel.arguments, kernel.signature.inputs, strict=True):
        leading = kernel.ragged_dims(core)
        column = _column(where, name, given[name], core, len(leading))
        if items is None:
            items = (name, len(column))
        elif len(column) != items[1]:
            raise DataError(
                f"{where}: column {name!r} has {len(column)} items, column {items[0]!r} has {items[1]}."
            )
        tail = (column.values if isinstance(column, Ragged) else column).shape[1:]
        shapes = column.shapes if isinstance(column, Ragged) else np.empty((len(column), 0), np.int64)
        for position, dim in enumerate(core):
            ragged = position < len(leading)
            length = shapes[:, position] if ragged else tail[position - len(leading)]
            if isinstance(dim, int):
                _same_fixed(where, name, dim, length, ("the signature", dim))
            elif ragged:
                _same_lengths(where, name, dim, length, known.setdefault(dim, (name, length)))
                lengths[dim] = length
            else:
                _same_fixed(where, name, dim, length, (f"column {name!r}", fixed.setdefault(dim, length)))
        values.append(column)
    count = items[1] if items else 0
    return Columns(tuple(values), count, {dim: lengths[dim] for dim in kernel.ragged}, fixed)


def _by_name(where: str, kernel: Kernel, data: Any) -> Mapping[str, Any]:
    if hasattr(data, "column_names"):  # an Arrow table
        data = {name: data[name] for name in data.column_names if name in kernel.arguments}
    if not isinstance(data, Mapping):
        if len(data) != len(kernel.arguments):
            raise DataError(
                f"{where} takes {len(kernel.arguments)} columns ({', '.join(kernel.arguments)}), got {len(data)}."
            )
        data = dict(zip(kernel.arguments, data, strict=True))
    missing = [name for name in kernel.arguments if name not in data]
    surplus = [str(name) for name in data if name not in kernel.arguments]
    if missing or surplus:
        what = f"lacks column {missing[0]!r}" if missing else f"has no column {surplus[0]!r}"
        hint = "" if missing or surplus[0] not in kernel.shared else "; pass it by keyword instead"
        raise DataError(f"{where} {what}; its columns are: {', '.join(kernel.arguments)}{hint}.")
    return data


def _column(where: str, name: str, given: Any, core: CoreShape, ragged: int) -> Any:
    """Bring one column into standard form and check its number of dims."""
    tail = tuple(dim if isinstance(dim, int) else 0 for dim in core[ragged:])
    try:
        column = _standard_form(given, ragged, tail)
    except (DataError, FrameworkError) as error:
        raise type(error)(f"{where}: column {name!r}: {error}") from None
    if ragged == 0 and isinstance(column, Ragged):
        raise DataError(f"{where}: column {name!r} is Ragged, but ({_text(core)}) has no ragged dim.")
    shape = (column.values if isinstance(column, Ragged) else column).shape
    dims = ragged + len(shape) - 1 if isinstance(column, Ragged) else len(shape) - 1
    if dims != len(core) or (isinstance(column, Ragged) and column.shapes.shape[1] != ragged):
        raise DataError(
            f"{where}: an item of column {name!r} has {dims} dims, the signature has ({_text(core)})."
        )
    return column


def _standard_form(given: Any, ragged: int, tail: tuple[int, ...]) -> Any:
    if isinstance(given, Ragged):
        return given
    if is_arrow(given):
        return Ragged.from_arrow(given, ragged) if ragged else read_values(given)
    if not is_array_api_obj(given):
        if ragged:
            return Ragged.from_list(given, ragged, tail=tail)
        parts = list(given) if isinstance(given, list | tuple) else None
        if parts and all(is_array_api_obj(part) for part in parts):
            return array_namespace(*parts).stack(parts)
        given = np.asarray(given, dtype=np.float64) if parts == [] else np.asarray(given)
        if given.dtype.kind not in "biufc":
            raise DataError(f"dtype {given.dtype} holds no numbers.")
        return given.reshape((0, *tail)) if given.shape == (0,) else given
    if ragged == 0 or given.ndim <= ragged:
        return given
    shapes = np.tile(np.asarray(given.shape[1 : ragged + 1], np.int64), (given.shape[0], 1))
    return Ragged(given.reshape((-1, *given.shape[ragged + 1 :])), shapes)


def _same_lengths(
    where: str, name: str, dim: str, length: NDArray[np.int64], first: tuple[str, NDArray[np.int64]]
) -> None:
    other, expected = first
    if length is not expected and not np.array_equal(length, expected):
        item = int(np.argmax(length != expected))
        raise DataError(
            f"{where}: columns {other!r} and {name!r} disagree on {dim!r} for "
            f"{int((length != expected).sum())} items; item {item} has {dim}={expected[item]} in "
            f"{other!r} and {dim}={length[item]} in {name!r}."
        )


def _same_fixed(where: str, name: str, dim: str | int, length: Any, first: tuple[str, int]) -> None:
    source, expected = first
    unequal = np.atleast_1d(np.asarray(length) != expected)
    if unequal.any():
        got = int(np.atleast_1d(length)[np.argmax(unequal)])
        raise DataError(
            f"{where}: column {name!r} has length {got} along dim {dim!r}, {source} has {expected}."
        )


def _text(core: CoreShape) -> str:
    return ",".join(map(str, core))
