"""The one container for ragged data: flat values and the shape of every item."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self, overload

import numpy as np
from array_api_compat import is_array_api_obj
from numpy.typing import ArrayLike, NDArray

from stowplan.errors import DataError, FrameworkError
from stowplan.layout import Layout
from stowplan.namespaces import namespace_of

__all__ = ["Ragged", "common_namespace", "refuse_objects", "when_loaded"]

_waiting: dict[str, Callable[[], object]] = {}


def when_loaded(framework: str, call: Callable[[], object]) -> None:
    """Ask for a call once a Ragged is made while a framework is loaded (to register it there)."""
    _waiting[framework] = call


def _call_waiting() -> None:
    for framework in [name for name in _waiting if sys.modules.get(name) is not None]:
        _waiting.pop(framework)()


class Ragged:
    """Items of different length, end to end in one flat array.

    Parameters
    ----------
    values : (total, ...) array of any framework
        All rows of all items; an item with d ragged dims is stored in C order.
    shapes : (items, d) or (items,) integers
        Lengths of the ragged leading dims of every item.

    Raises
    ------
    DataError
        When the shapes do not add up to the rows of ``values``.

    Examples
    --------
    >>> pool = Ragged.from_list([[1.0, 2.0], [3.0], []])
    >>> pool.values.tolist(), pool.shapes[:, 0].tolist()
    ([1.0, 2.0, 3.0], [2, 1, 0])
    >>> pool[[1, 1, 0]].to_list()[2].tolist()     # a view: no row is copied
    [1.0, 2.0]
    """

    __slots__ = ("layout", "values")

    def __init__(self, values: Any, shapes: ArrayLike) -> None:
        if not is_array_api_obj(values):
            values = np.asarray(values)
        refuse_objects(values)
        layout = Layout(shapes)
        total = int(layout.counts.sum())
        if values.ndim == 0 or values.shape[0] != total:
            rows = values.shape[0] if values.ndim else "no"
            raise DataError(f"Ragged: the shapes add up to {total} rows, but values has {rows}.")
        self.values = values
        self.layout = layout
        if _waiting:
            _call_waiting()

    @classmethod
    def from_layout(cls, values: Any, layout: Layout) -> Self:
        """Join values to a layout that is known to fit them (no check)."""
        ragged = cls.__new__(cls)
        ragged.values = values
        ragged.layout = layout
        return ragged

    @classmethod
    def from_list(
        cls,
        arrays: Iterable[Any],
        ragged: int = 1,
        *,
        tail: tuple[int, ...] = (),
        dtype: Any = None,
    ) -> Self:
        """Store a list of arrays end to end.

        Parameters
        ----------
        arrays
            One array (or nested list) per item; they agree on dtype and on all but the first
            ``ragged`` dims. An empty list is an item of size 0.
        ragged
            Number of ragged leading dims.
        tail, dtype
            Trailing shape and dtype where no item has any; ``dtype`` also converts nested lists.

        Raises
        ------
        DataError
            For items that disagree on dtype or trailing dims, and for what holds no numbers.
        FrameworkError
            For arrays of two frameworks.
        """
        if ragged < 1:
            raise DataError(f"Ragged.from_list: ragged={ragged}; at least one dim must be ragged.")
        given = list(arrays)
        items = {
            index: array if is_array_api_obj(array) else _nested(index, array, dtype)
            for index, array in enumerate(given)
            if not _is_empty_list(array)
        }
        shapes = np.zeros((len(given), ragged), np.int64)
        if not items:
            return cls(np.empty((0, *tail), dtype or np.float64), shapes)
        xp = common_namespace("Ragged.from_list: ", items)
        first = next((item for item in items.values() if _size(item)), next(iter(items.values())))
        one_dtype = any(is_array_api_obj(array) for array in given)  # numbers in lists may widen
        flat = []
        for index, item in items.items():
            if item.ndim < ragged or item.shape[ragged:] != first.shape[ragged:]:
                raise DataError(
                    f"Ragged.from_list: item {index} has shape {tuple(item.shape)}; the others "
                    f"have {ragged} ragged dims followed by {tuple(first.shape[ragged:])}."
                )
            if one_dtype and item.dtype != first.dtype:
                raise DataError(
                    f"Ragged.from_list: item {index} has dtype {item.dtype}, the others have "
                    f"{first.dtype}. Convert them to one dtype first."
                )
            shapes[index] = item.shape[:ragged]
            rows = math.prod(item.shape[:ragged])
            flat.append(item if ragged == 1 else xp.reshape(item, (rows, *item.shape[ragged:])))
        return cls(xp.concat(flat, axis=0), shapes)

    @classmethod
    def from_arrow(cls, array: Any, ragged: int = 1) -> Self:
        """Read an Arrow list column (or chunked array) without a copy where Arrow allows.

        Raises
        ------
        DataError
            For nulls, or where nested lists of one item differ in length.
        """
        from stowplan.arrow import read_lists  # pyarrow is optional

        return cls(*read_lists(array, ragged))

    def to_arrow(self) -> Any:
        """Give an Arrow list column; a contiguous NumPy column is not copied."""
        from stowplan.arrow import write_lists  # pyarrow is optional

        packed = self.compact()
        return write_lists(np.asarray(packed.values), packed.shapes)

    @property
    def shapes(self) -> NDArray[np.int64]:
        """Lengths of the ragged dims of every item, (items, d)."""
        return self.layout.shapes

    @property
    def starts(self) -> NDArray[np.int64]:
        """First row of every item in ``values``, (items,)."""
        return self.layout.starts

    @property
    def dtype(self) -> Any:
        """Data type of the values."""
        return self.values.dtype

    def __len__(self) -> int:
        return len(self.layout.shapes)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice | ArrayLike) -> Self: ...
    def __getitem__(self, index: Any) -> Any:
        """Give one item as an array, or a view of several items, which may repeat."""
        if isinstance(index, slice):
            chosen: Any = index
        elif isinstance(index, tuple):
            raise IndexError(f"Ragged: [{index}] has several indices; write ragged[item][row].")
        else:
            chosen = np.asarray(index)
            if chosen.ndim == 0 and chosen.dtype.kind in "iu":
                return self._item(int(chosen))
            if chosen.ndim != 1:
                raise IndexError(f"Ragged: {index!r} is no item, slice or flat list of items.")
            if chosen.size == 0:
                chosen = chosen.astype(np.intp)
        return self.from_layout(self.values, Layout(self.shapes[chosen], self.starts[chosen]))

    def _item(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"Ragged: item {index} of {len(self)}.")
        start, shape = int(self.starts[index]), self.shapes[index].tolist()
        rows = self.values[start : start + math.prod(shape), ...]
        if len(shape) == 1:
            return rows
        return namespace_of(rows).reshape(rows, (*shape, *rows.shape[1:]))

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def to_list(self) -> list[Any]:
        """Give one array per item."""
        return list(self)

    def map_values(self, function: Callable[[Any], Any]) -> Self:
        """Replace the flat values, row for row."""
        return self.from_layout(function(self.values), self.layout)

    def distinct(self) -> Self:
        """Keep only the rows that items use, each once, so that a view costs what it shows."""
        counts = self.layout.counts
        if self.layout.contiguous and int(counts.sum()) == self.values.shape[0]:
            return self
        starts, inverse = np.unique(self.starts, return_inverse=True)
        longest = np.zeros(len(starts), np.int64)
        np.maximum.at(longest, inverse, counts)
        packed = np.cumsum(longest) - longest
        rows = self._take(_ranges(starts, longest))
        return self.from_layout(rows, Layout(self.shapes, packed[inverse]))

    def compact(self) -> Self:
        """Store every item end to end; a view repeats its shared rows."""
        counts = self.layout.counts
        if self.layout.contiguous and int(counts.sum()) == self.values.shape[0]:
            return self
        return self.from_layout(self._take(_ranges(self.starts, counts)), Layout(self.shapes))

    def _take(self, rows: NDArray[np.int64]) -> Any:
        xp = namespace_of(self.values)
        index = xp.asarray(rows, device=getattr(self.values, "device", None))
        return xp.take(self.values, index, axis=0)

    def __repr__(self) -> str:
        tail = "".join(f", {length}" for length in self.values.shape[1:])
        return (
            f"Ragged({len(self)} items, values ({self.values.shape[0]}{tail}) {self.values.dtype})"
        )


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenate ``arange(start, start + count)`` of all pairs."""
    offsets = np.cumsum(counts) - counts
    within = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(offsets, counts)
    rows: NDArray[np.int64] = np.repeat(starts, counts) + within
    return rows


def common_namespace(where: str, items: Mapping[int, Any]) -> Any:
    """Give the array namespace that all items share, or name two that differ."""
    try:
        return namespace_of(*items.values())
    except TypeError:
        kinds = {index: namespace_of(item) for index, item in items.items()}
        (first, xp), *others = kinds.items()
        other = next(index for index, kind in others if kind is not xp)
        names = " and ".join(_framework_name(items[index]) for index in (first, other))
        raise FrameworkError(
            f"{where}items {first} and {other} are of two frameworks: {names}. "
            "Convert them to one first."
        ) from None


def refuse_objects(values: Any) -> None:
    """Raise DataError for a NumPy array of objects, text or dates."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "OSUMm":
        raise DataError(f"dtype {values.dtype} holds no numbers; give numbers or a list of arrays.")


def _framework_name(array: Any) -> str:
    return type(array).__module__.partition(".")[0].removesuffix("lib")


def _is_empty_list(array: Any) -> bool:
    return isinstance(array, list | tuple) and len(array) == 0


def _nested(index: int, array: Any, dtype: Any) -> NDArray[Any]:
    try:
        item = np.asarray(array, dtype)
        refuse_objects(item)
    except (TypeError, ValueError) as error:
        raise DataError(f"Ragged.from_list: item {index} is no block of numbers: {error}") from None
    return item


def _size(array: Any) -> int:
    return math.prod(array.shape)
