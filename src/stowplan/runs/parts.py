"""A run cut into independent runs of some of its batches, and their results joined again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from stowplan.adapters import framework_of, get_adapter
from stowplan.adapters.interface import as_tuple
from stowplan.declaration import Kernel
from stowplan.layout import Layout
from stowplan.planners.batches import Batch, Plan, empty_batch
from stowplan.planners.offsets import real_items
from stowplan.ragged import Ragged
from stowplan.runs.columns import Columns
from stowplan.runs.segments import JoinedRows

if TYPE_CHECKING:
    from stowplan.runs.iteration import Iterated

__all__ = ["Part", "flat_rows_of", "joined", "joined_iterations", "part_of"]


@dataclass(frozen=True, eq=False)
class Part:
    """Some batches of a plan as a run of their own.

    Attributes
    ----------
    items : (items,) int
        Items of the whole that the part holds, rising.
    columns : Columns
        Their data alone, and no others.
    data : mapping
        The same by name, as `run` and `iterate` take it.
    plan : Plan
        The batches with the items counted anew: same shapes, same rows, same order.
    """

    items: NDArray[np.intp]
    columns: Columns
    data: Mapping[str, Any]
    plan: Plan


def part_of(
    kernel: Kernel,
    columns: Columns,
    plan: Plan,
    numbers: Sequence[int],
    read: Callable[[int, NDArray[np.intp]], Any] | None = None,
) -> Part:
    """Cut out batches of a plan, by number, with the data of their items.

    Values that lie end to end are a view; others are copied, each row once. The part of an empty
    list of batches has no items. ``read`` gives some items of a column, by its place, or None for
    one in memory; nothing is kept with the plan then.
    """
    key = ("part", *numbers)
    if read is not None or key not in plan.cache:  # with its own cache of index arrays
        made = _part_plan(plan, [plan.batches[number] for number in numbers])
        items, own = made
        if read is None:
            plan.cache[key] = made
    else:
        items, own = plan.cache[key]
    found = [None if read is None else read(place, items) for place in range(len(columns.values))]
    cut = replace(
        columns,
        values=tuple(
            _of_items(column, items) if given is None else given
            for given, column in zip(found, columns.values, strict=True)
        ),
        sources=(),
        items=len(items),
        lengths={dim: lengths[items] for dim, lengths in columns.lengths.items()},
        segments={dim: _of_items(ids, items) for dim, ids in columns.segments.items()},
    )
    data: Mapping[str, Any] = dict(zip(kernel.arguments, cut.values, strict=True))
    if kernel.segments is not None:
        data = JoinedRows(data, cut.lengths[kernel.segments], cut.segments)
    return Part(items, cut, data, own)


def joined(results: Sequence[Any], parts: Sequence[Part]) -> Any:
    """Give in input order what `run` gave for parts that hold every item once.

    ``results`` are arrays, Ragged, or tuples of them, of any one framework.
    """
    tuples = [as_tuple(result) for result in results]
    found = [_joined_output(outputs, parts) for outputs in zip(*tuples, strict=True)]
    if not isinstance(results[0], tuple):
        return found[0]
    kind = type(results[0])
    return kind(*found) if hasattr(kind, "_fields") else tuple(found)


def joined_iterations(results: Sequence[Iterated], parts: Sequence[Part], plan: Plan) -> Iterated:
    """Give what `iterate` gave for parts that hold every item once as one, with the whole plan."""
    values = {
        name: _joined_output([result.values[name] for result in results], parts)
        for name in results[0].values
    }
    flags = {
        name: _joined_rows([getattr(result, name) for result in results], _places(parts))
        for name in ("iterations", "converged", "failed")
    }
    return replace(results[0], values=values, plan=plan, **flags)


def _part_plan(plan: Plan, batches: Sequence[Batch]) -> tuple[NDArray[np.intp], Plan]:
    items = np.sort(real_items(batches))
    lengths = plan.lengths[items]
    lengths.flags.writeable = False
    own = replace(
        plan,
        lengths=lengths,
        batches=tuple(_renumbered(batch, items, lengths) for batch in batches),
        offsets=None if plan.offsets is None else plan.offsets[items],
        headroom=False,  # once for the whole, not once for each part
        alternatives={},
        warnings=(),
    )
    return items, own


def _renumbered(batch: Batch, items: NDArray[np.intp], lengths: NDArray[np.int64]) -> Batch:
    rows = len(batch.items)
    if not batch.count:
        empty = empty_batch(lengths, batch.capacity, batch.slot, rows)
        return replace(empty, device=batch.device)
    real = batch.items[: batch.count]
    if batch.count < rows:  # repeated ones of this batch, in any case
        repeated = batch.items[batch.count :]
        repeated = np.where(np.isin(repeated, real), repeated, real[-1])
        real = np.concatenate([real, repeated])
    found = np.searchsorted(items, real).astype(np.intp, copy=False)
    found.flags.writeable = False
    return replace(batch, items=found)


def _of_items(column: Any, items: NDArray[np.intp]) -> Any:
    """Give rising items of a column, Ragged or with items on axis 0."""
    whole = _as_slice(items)
    if not isinstance(column, Ragged):
        return column[whole, ...] if whole is not None else _taken(column, items)
    if whole is None or not column.layout.contiguous:
        return column[items].distinct()
    starts, counts = column.starts[whole], column.layout.counts[whole]
    first = int(starts[0]) if len(items) else 0
    values = column.values[first : first + int(counts.sum()), ...]
    return Ragged.from_layout(values, Layout(column.shapes[whole]))


def _taken(array: Any, items: NDArray[np.intp]) -> Any:
    adapter = get_adapter(framework_of([array]) or "numpy")
    return adapter.namespace(array).take(array, adapter.index(items, array), axis=0)


def _as_slice(rows: NDArray[Any]) -> slice | None:
    """Give rising rows as a slice if none is left out between them."""
    if not len(rows):
        return slice(0, 0)
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else None


def _joined_output(outputs: Sequence[Any], parts: Sequence[Part]) -> Any:
    if not isinstance(outputs[0], Ragged):
        return _joined_rows(outputs, _places(parts))
    packed = [output.compact() for output in outputs]
    shapes = _joined_rows([output.shapes for output in packed], _places(parts))
    layout = Layout(shapes)
    places = [flat_rows_of(layout, part.items) for part in parts]
    return Ragged.from_layout(_joined_rows([output.values for output in packed], places), layout)


def _places(parts: Sequence[Part]) -> list[NDArray[Any]]:
    return [part.items for part in parts]


def flat_rows_of(layout: Layout, items: NDArray[np.intp]) -> NDArray[np.int64]:
    """List the flat rows of some items, item by item."""
    starts, counts = layout.starts[items], layout.counts[items]
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    rows: NDArray[np.int64] = np.repeat(starts, counts) + within
    return rows


def _joined_rows(flats: Sequence[Any], places: Sequence[NDArray[Any]]) -> Any:
    """Put the rows of each array where they belong in the whole."""
    if len(flats) == 1:
        return flats[0]  # rising, hence in order
    adapter = get_adapter(framework_of(flats) or "numpy")
    rows = sum(map(len, places))
    followed = any(map(adapter.requires_grad, flats))
    total = None if followed else adapter.room(rows, _widest(flats))
    if total is None:
        order = np.empty(rows, np.int64)
        order[np.concatenate(places)] = np.arange(rows)
        xp = adapter.namespace(flats[0])
        flat = xp.concat(list(flats), axis=0)
        return xp.take(flat, adapter.index(order, flat), axis=0)
    for flat, rows_of_part in zip(flats, places, strict=True):
        place = _as_slice(rows_of_part)
        total[adapter.index(rows_of_part, flat) if place is None else place] = flat
    return total


def _widest(flats: Sequence[Any]) -> Any:
    """Give an array of the dtype that holds them all: eigenvalues are complex where they must."""
    first = flats[0]
    if all(flat.dtype == first.dtype for flat in flats):
        return first
    xp = array_namespace(*flats)
    return xp.astype(first, xp.result_type(*flats))
