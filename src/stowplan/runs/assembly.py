"""Real rows of the batches put together in the order of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from stowplan.adapters import Adapter
from stowplan.gather import flat_rows, select, select_into
from stowplan.runs.indices import Indices

__all__ = ["Assembly"]


class Assembly:
    """One output of a run: the rows of each batch are written where they belong.

    Where a framework cannot write in place, parts are kept, joined and reordered at the end, which
    takes the memory of the result twice.
    """

    def __init__(self, adapter: Adapter, dims: tuple[str, ...]) -> None:
        self.adapter = adapter
        self.dims = dims
        self.parts: list[Any] = []
        self.total: Any = None
        self._type: type | None = None
        self._xp: Any = None  # namespace of that type

    def ready(self, indices: Indices, number: int, part: Any) -> Callable[[], None]:
        """Give a call that puts the real rows of a padded output where they belong.

        What may find no memory is done before it, so that all outputs are put away or none. Rows
        that stay in order are taken straight into the results, others by a copy.
        """
        xp = self._namespace(part)
        places, where = indices.landing(number, self.dims, part)
        straight = type(part) is np.ndarray or hasattr(xp, "take_into")
        if straight and places is not None and isinstance(where, slice):
            flat = flat_rows(part, len(self.dims), xp)
            self._make_room(indices, flat)
            if self.total is not None and flat.dtype == self.total.dtype:
                return lambda: select_into(self.total[where], flat, places, xp)
        rows = select(part, places, len(self.dims), xp)
        return lambda: self.keep(indices, number, rows)

    def real_rows(self, indices: Indices, number: int, part: Any) -> Any:
        """Give the rows of a padded output that are of an item, flat."""
        places = indices.places(number, self.dims, part)
        return select(part, places, len(self.dims), self._namespace(part))

    def keep(self, indices: Indices, number: int, rows: Any) -> None:
        """Put the real rows of a batch away."""
        self._make_room(indices, rows)
        if self.total is None:
            self.parts.append(rows)
        else:
            if rows.dtype != self.total.dtype:  # NumPy's eigenvalues are complex where they must
                self._widen(rows.dtype)
            self.total[indices.destination(number, self.dims, rows)] = rows

    def _make_room(self, indices: Indices, rows: Any) -> None:
        if self.total is None and not self.parts:
            self.total = self.adapter.room(indices.sizes.total(self.dims), rows)

    def _namespace(self, part: Any) -> Any:
        if type(part) is not self._type:
            self._type, self._xp = type(part), self.adapter.namespace(part)
        return self._xp

    def _widen(self, dtype: Any) -> None:
        """Let the total hold numbers of another dtype, as joined parts would."""
        xp = array_namespace(self.total)
        self.total = xp.astype(self.total, xp.result_type(self.total.dtype, dtype), copy=False)

    def whole(self, indices: Indices) -> Any:
        """Give all rows in input order; nothing is kept of them here."""
        total, parts = self.total, self.parts
        self.total, self.parts = None, []
        if total is not None:
            return total
        xp = self.adapter.namespace(parts[0])
        flat = parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
        del parts  # or else they are alive while the whole is reordered
        order = indices.order(self.dims, flat)
        return flat if order is None else xp.take(flat, order, axis=0)
