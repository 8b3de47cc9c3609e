"""A user's data bound to the arguments of a kernel, every size checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import is_array_api_obj
from numpy.typing import NDArray

from stowplan.adapters import framework_of, get_adapter
from stowplan.arrow import is_arrow, read_values
from stowplan.declaration import Kernel
from stowplan.errors import DataError, FrameworkError, SignatureError
from stowplan.namespaces import namespace_of
from stowplan.ragged import Ragged, common_namespace, refuse_objects
from stowplan.runs.segments import bind_segments, one_each, refuse_joined
from stowplan.runs.stored_columns import bound, may_be_stored
from stowplan.signature import CoreShape

if TYPE_CHECKING:
    from stowplan.stores.arrays import StoredArray

__all__ = ["Columns", "bind", "check_indices"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Per-item data in signature order: a Ragged where dims are ragged, else items on axis 0."""

    values: tuple[Any, ...]
    items: int
    lengths: dict[str, NDArray[np.int64]]  # ragged dim -> (items,)
    fixed: dict[str, int]  # other named dim -> length
    segments: dict[str, Ragged] = field(default_factory=dict)  # dim -> item within its row
    sources: tuple[StoredArray | None, ...] = ()  # of columns on disk, whose values are stand-ins

    @property
    def stored(self) -> bool:
        """Whether a column lies on disk."""
        return any(source is not None for source in self.sources)

    @property
    def arrays(self) -> list[Any]:
        """The arrays behind the columns."""
        return [column.values if isinstance(column, Ragged) else column for column in self.values]


def bind(
    where: str,
    kernel: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    *,
    on_disk: bool = False,
) -> Columns:
    """Check data against a kernel's signature.

    ``on_disk`` says that the caller reads columns outside of memory; others refuse them.

    Raises
    ------
    DataError
        For missing or surplus columns, and for columns that disagree on a size.
    """
    if not isinstance(kernel, Kernel):
        raise SignatureError(
            f"{where}: {kernel!r} is no kernel. Declare it: @sp.kernel('(n)->()', ragged='n')."
        )
    where = f"{where}: {kernel.name}"
    given = _by_name(where, kernel, data)
    values: list[Any] = []
    known: dict[str, tuple[str, NDArray[np.int64]]] = {}
    fixed: dict[str, tuple[str, int]] = {}
    count = 0
    given, sources = _opened(where, kernel, given, on_disk)
    for name, core in zip(kernel.arguments, kernel.signature.inputs, strict=True):
        leading = kernel.ragged_dims(core)
        if kernel.segments in leading and not isinstance(given[name], Ragged):
            column = one_each(_column(where, name, given[name], core[1:], 0))
        else:
            column = _column(where, name, given[name], core, len(leading))
        found = len(column) if isinstance(column, Ragged) else column.shape[0]
        if not values:
            count = found
        elif found != count:
            raise DataError(
                f"{where}: column {name!r} has {found} items, "
                f"column {kernel.arguments[0]!r} has {count}."
            )
        if isinstance(column, Ragged):
            for ragged, sizes in zip(leading, column.shapes.T, strict=True):
                _same_lengths(where, name, ragged, sizes, known.setdefault(ragged, (name, sizes)))
        tail = (column.values if isinstance(column, Ragged) else column).shape[1:]
        for dim, length in zip(core[len(leading) :], tail, strict=True):
            if isinstance(dim, str):
                _same_fixed(where, name, dim, length, fixed.setdefault(dim, (name, length)))
            elif length != dim:
                raise DataError(
                    f"{where}: column {name!r} has length {length} along axis {dim!r} of "
                    f"({','.join(map(str, core))}); the signature wants {dim}."
                )
        values.append(column)
    lengths = {dim: known[dim][1] for dim in kernel.ragged if dim in known}
    segments: dict[str, Ragged] = {}
    if kernel.segments is None:
        refuse_joined(where, data)
    else:
        lengths[kernel.segments], segments = bind_segments(where, kernel, data, lengths, count)
    values = _adopt_empty([given[name] for name in kernel.arguments], values)
    lengths_fixed = {dim: fixed[dim][1] for dim in fixed}
    return Columns(tuple(values), count, lengths, lengths_fixed, segments, sources)


def check_indices(
    where: str,
    kernel: Kernel,
    columns: Columns,
    *,
    fetch: bool = True,
    items: NDArray[np.intp] | None = None,
) -> None:
    """Refuse item-local indices that point outside their item; those of a trace have no values.

    With ``fetch=False`` those that the host would have to fetch from a device are not read. Those
    on disk are looked at once they are read, as part of a run whose ``items`` are given.

    Raises
    ------
    DataError
        Naming how many, the first item, its index and what is allowed.
    """
    for name, dim in kernel.index.items():
        place = kernel.arguments.index(name)
        if columns.sources and columns.sources[place] is not None:
            continue
        column = columns.values[place]
        column = column if isinstance(column, Ragged) else one_each(column)
        adapter = get_adapter(framework_of([column.values]) or "numpy")
        readable = not adapter.is_traced(column.values)
        if readable and (fetch or adapter.on_host(column.values)):
            host = column.map_values(adapter.to_host).compact()
            what = f"{where}: {kernel.name}: column {name!r}"
            _refuse_outside(what, host, dim, columns.lengths[dim], kernel.fill[name], items)


def _refuse_outside(
    where: str,
    column: Ragged,
    dim: str,
    sizes: NDArray[np.int64],
    fill: float,
    items: NDArray[np.intp] | None,
) -> None:
    values, counts = column.values, column.layout.counts
    if values.size == 0:
        return
    if values.dtype.kind not in "iu":
        raise DataError(f"{where} holds indices along {dim!r}, but has dtype {values.dtype}.")
    table = values.reshape(len(values), -1)
    held = counts > 0
    most = np.maximum.reduceat(table.reshape(-1), column.starts[held] * table.shape[1])
    if fill == -1 and table.min() >= -1 and (most < sizes[held]).all():
        return
    limits = np.repeat(sizes, counts)[:, None]
    outside = (table >= limits) | ((table < 0) & (table != fill))
    if outside.any():
        row, entry = (int(place) for place in np.argwhere(outside)[0])
        item = int(np.searchsorted(np.cumsum(counts), row, side="right"))
        allowed = f"are 0 to {sizes[item] - 1} and" if sizes[item] else "is only"
        raise DataError(
            f"{where}: {int(outside.sum())} indices along {dim!r} point outside their item. Item "
            f"{item if items is None else items[item]} has {dim}={sizes[item]} and an index "
            f"{table[row, entry]}; allowed {allowed} "
            f"{fill} for none. Count the {dim} of every item from 0."
        )


def _by_name(where: str, kernel: Kernel, data: Any) -> Mapping[str, Any]:
    known = ", ".join(kernel.arguments)
    if hasattr(data, "column_names"):  # an Arrow table
        data = {name: data[name] for name in data.column_names if name in kernel.arguments}
    if not isinstance(data, Mapping | list | tuple):
        raise DataError(
            f"{where}: data is of type {type(data).__name__}; give columns by name: "
            f"{{{kernel.arguments[0]!r}: ...}}. The columns are: {known}."
        )
    if not isinstance(data, Mapping):
        if len(data) != len(kernel.arguments):
            raise DataError(
                f"{where} takes {len(kernel.arguments)} columns ({known}), got {len(data)}."
            )
        return dict(zip(kernel.arguments, data, strict=True))
    missing = [name for name in kernel.arguments if name not in data]
    surplus = [str(name) for name in data if name not in kernel.arguments]
    if missing or surplus:
        what = f"lacks column {missing[0]!r}" if missing else f"has no column {surplus[0]!r}"
        shared = not missing and surplus[0] in kernel.shared
        hint = "; pass it by keyword instead" if shared else ""
        raise DataError(f"{where} {what}; its columns are: {known}{hint}.")
    return data


def _opened(
    where: str, kernel: Kernel, given: Mapping[str, Any], on_disk: bool
) -> tuple[Mapping[str, Any], tuple[StoredArray | None, ...]]:
    """Replace columns on disk by stand-ins without memory, and give what reads them."""
    if not any(may_be_stored(given[name]) for name in kernel.arguments):
        return given, ()
    columns = dict(given)
    sources: list[StoredArray | None] = []
    for name in kernel.arguments:
        source = None
        if may_be_stored(given[name]) and (on_disk or not isinstance(given[name], np.memmap)):
            what = f"{where}: column {name!r}"
            found = bound(given[name], what)
            if found is not None and not on_disk:
                raise DataError(
                    f"{what} is on disk, in {found[1].name}, and is read by plan, run and iterate "
                    "alone. Read it first: np.asarray(...) of what fits."
                )
            if found is not None:
                columns[name], source = found
        sources.append(source)
    return columns, tuple(sources)


def _column(where: str, name: str, given: Any, core: CoreShape, ragged: int) -> Any:
    """Bring one column into standard form and check its number of dims."""
    where = f"{where}: column {name!r}"
    tail = tuple(dim if isinstance(dim, int) else 0 for dim in core[ragged:])
    try:
        column = _standard_form(given, ragged, tail)
        refuse_objects(column.values if isinstance(column, Ragged) else column)
    except (DataError, FrameworkError) as error:
        raise type(error)(f"{where}: {error}") from None
    text = f"({','.join(map(str, core))})"
    if isinstance(column, Ragged):
        varying = column.shapes.shape[1]
        dims = varying + len(column.values.shape) - 1
    else:
        varying, dims = 0, len(column.shape) - 1
    if dims < 0:
        raise DataError(f"{where} is a single number; give one entry {text} per item.")
    if dims != len(core):
        raise DataError(
            f"{where}: an item has {_count(dims, 'dim')}, the signature has {text}; "
            "items are on axis 0 of an array."
        )
    if varying != ragged:
        raise DataError(
            f"{where} is Ragged along {_count(varying, 'dim')}; "
            f"the signature has {text}, of which {ragged} ragged."
        )
    return column


def _standard_form(given: Any, ragged: int, tail: tuple[int, ...]) -> Any:
    if isinstance(given, Ragged):
        return given
    if is_arrow(given):
        return _from_arrow(given, ragged, tail)
    if is_array_api_obj(given):
        return _blocks(given, ragged)
    if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__len__"):
        raise DataError(
            f"a column of type {type(given).__name__}; give a Ragged, an array with items on axis "
            "0 or a list with one entry per item."
        )
    return Ragged.from_list(given, ragged, tail=tail) if ragged else _stack(given, tail)


def _from_arrow(given: Any, ragged: int, tail: tuple[int, ...]) -> Any:
    column = Ragged.from_arrow(given, ragged) if ragged else read_values(given)
    values = column.values if isinstance(column, Ragged) else column
    if len(values) or not tail:
        return column
    values = values.reshape((0, *tail))  # Arrow's inner lists have no length where there is none
    return column.map_values(lambda _: values) if isinstance(column, Ragged) else values


def _blocks(given: Any, ragged: int) -> Any:
    """Give an array (items, n, ...) as a Ragged whose items happen to be equally long."""
    if ragged == 0 or given.ndim <= ragged:
        return given
    items, *lengths = given.shape[: ragged + 1]
    shapes = np.tile(np.asarray(lengths, np.int64), (items, 1))
    rows = (math.prod(given.shape[: ragged + 1]), *given.shape[ragged + 1 :])
    return Ragged(namespace_of(given).reshape(given, rows), shapes)


def _stack(given: Sequence[Any], tail: tuple[int, ...]) -> Any:
    """Put items of one shape on axis 0 of an array."""
    parts = list(given)
    arrays = [is_array_api_obj(part) and not isinstance(part, np.generic) for part in parts]
    if not any(arrays):
        try:
            values = np.asarray(parts, dtype=None if parts else np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"no block of numbers, and no dim is ragged: {error}") from None
        return values if parts else values.reshape((0, *tail))
    first = arrays.index(True)
    for item, (part, array) in enumerate(zip(parts, arrays, strict=True)):
        if not array:
            raise DataError(f"item {item} is a {type(part).__name__}, item {first} is an array.")
    xp = common_namespace("", dict(enumerate(parts)))
    for item, part in enumerate(parts):
        if part.shape != parts[0].shape or part.dtype != parts[0].dtype:
            raise DataError(
                f"item {item} has shape {tuple(part.shape)} and dtype {part.dtype}, item 0 has "
                f"{tuple(parts[0].shape)} and {parts[0].dtype}; no dim of this argument is ragged."
            )
    return xp.stack(parts)


def _adopt_empty(given: Sequence[Any], columns: Sequence[Any]) -> list[Any]:
    """Give lists that hold no value the framework, device and dtype of the other columns."""
    told = [
        column.values if isinstance(column, Ragged) else column
        for source, column in zip(given, columns, strict=True)
        if not _tells_nothing(source)
    ]
    if not told or len(told) == len(columns):
        return list(columns)
    xp = namespace_of(told[0])
    floating = (a for a in told if namespace_of(a).isdtype(a.dtype, "real floating"))
    like = next(floating, None)
    nothing = told[0][:0, ...] * 1.0 if like is None else like[:0, ...]

    def adopted(values: Any) -> Any:
        return xp.reshape(nothing, values.shape)

    return [
        column
        if not _tells_nothing(source)
        else column.map_values(adopted)
        if isinstance(column, Ragged)
        else adopted(column)
        for source, column in zip(given, columns, strict=True)
    ]


def _tells_nothing(given: Any) -> bool:
    """Whether a column is a list without items, or whose items are all empty lists."""
    return isinstance(given, list | tuple) and all(
        isinstance(item, list | tuple) and len(item) == 0 for item in given
    )


def _same_lengths(
    where: str, name: str, dim: str, length: NDArray[np.int64], first: tuple[str, NDArray[np.int64]]
) -> None:
    other, expected = first
    if length is not expected and not np.array_equal(length, expected):
        item = int(np.argmax(length != expected))
        raise DataError(
            f"{where}: columns {other!r} and {name!r} disagree on {dim!r} for "
            f"{int((length != expected).sum())} items; item {item} has {dim}={expected[item]} in "
            f"{other!r} and {dim}={length[item]} in {name!r}. "
            "Give both the same length."
        )


def _same_fixed(where: str, name: str, dim: str, length: int, first: tuple[str, int]) -> None:
    other, expected = first
    if length != expected:
        raise DataError(
            f"{where}: columns {other!r} and {name!r} disagree on {dim!r}; every item has "
            f"{dim}={expected} in {other!r} and {dim}={length} in {name!r}."
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
