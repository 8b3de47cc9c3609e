"""Fields wherever they are, as one array that is read row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.adapters import framework_of, get_adapter
from stowplan.errors import DataError
from stowplan.layout import Layout
from stowplan.ragged import Ragged
from stowplan.runs.fingerprints import digest
from stowplan.stores.arrays import StoredArray

__all__ = ["FieldStack", "HeldField"]


@dataclass(slots=True)
class HeldField:
    """One field, and where it is."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    tier: str
    value: Any  # an array of a framework, or a StoredArray
    own: bool = False  # whether it was spilled here, so that its file goes with it

    def read(self, into: NDArray[Any]) -> NDArray[Any]:
        """Give the values, wherever they are."""
        if isinstance(self.value, StoredArray):
            self.value.read(0, self.shape[0], into)
        else:
            into[...] = get_adapter(framework_of([self.value]) or "numpy").to_host(self.value)
        return into

    @property
    def held(self) -> bool:
        """Whether it is in memory."""
        return self.tier != "disk"

    @property
    def bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class FieldStack:
    """Fields as one stored array: entries on axis 0, or flat rows where their dims are ragged."""

    def __init__(
        self,
        fields: Sequence[HeldField],
        ragged: int,
        count: Callable[[HeldField], None] = lambda field: None,
    ) -> None:
        self.fields = list(fields)
        self.ragged = ragged
        self.count = count
        self.name = f"{len(self.fields)} fields"
        self.dtype = self.fields[0].dtype
        tails = {field.shape[ragged:] for field in self.fields}
        if len(tails) > 1:
            raise DataError(
                f"FieldBatch.run: the fields have the shapes {sorted(tails)} along the axes that "
                "do not vary; the kernel needs one."
            )
        rows = [math.prod(field.shape[:ragged]) for field in self.fields]
        self.stops = np.cumsum(rows)
        self.shape = (int(self.stops[-1]), *self.fields[0].shape[ragged:])

    def column(self) -> Any:
        """Give the column of a run."""
        if not self.ragged:
            return self
        layout = Layout([field.shape[: self.ragged] for field in self.fields])
        return Ragged.from_layout(self, layout)

    def read(self, start: int, stop: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Give whole fields."""
        into = np.empty((stop - start, *self.shape[1:]), self.dtype) if into is None else into
        number = int(np.searchsorted(self.stops, start, side="right"))
        begin = start
        while begin < stop:
            field, end = self.fields[number], int(self.stops[number])
            rows = into[begin - start : end - start].reshape(field.shape)
            self.count(field)
            field.read(rows)
            begin, number = end, number + 1
        return into

    def stacked(self, items: NDArray[np.intp]) -> Any:
        """Give some fields where they are, if that is a device with a memory of its own."""
        fields = [self.fields[item] for item in items.tolist()]
        if any(field.tier != "device" for field in fields):
            return None
        adapter = get_adapter(framework_of([fields[0].value]) or "numpy")
        if adapter.kind_of(adapter.device_of(fields[0].value)) == "cpu":
            return None
        xp = adapter.namespace(fields[0].value)
        if not self.ragged:
            return xp.stack([field.value for field in fields])
        tail = self.shape[1:]
        return xp.concat([xp.reshape(field.value, (-1, *tail)) for field in fields])

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Refuse: fields are read."""
        raise DataError("FieldBatch: fields are read, not written.")

    def identity(self) -> tuple[Any, ...]:
        """Give what the fields are: their files, or what their values come to, one by one."""
        return tuple(
            field.value.identity()
            if isinstance(field.value, StoredArray) and not field.own
            else digest(field.read(np.empty(field.shape, field.dtype)))
            for field in self.fields
        )

    def close(self) -> None:
        """Leave the fields open: they are the batch's."""
