"""What every recipe gives back: arrays and Ragged columns by item, a sequence, an Arrow table."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stowplan.arrow import write_lists
from stowplan.extras import import_extra
from stowplan.ragged import Ragged

__all__ = ["ItemResults"]


class ItemResults:
    """Results of many items, held as columns.

    A subclass holds columns (arrays with items on axis 0, or Ragged) and names them in `columns`.
    """

    def columns(self) -> Mapping[str, Any]:
        """Give the columns by name, in the order of a table."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(next(iter(self.columns().values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        count = len(self)
        place = operator.index(index)
        if not -count <= place < count:
            raise IndexError(f"result {place} of {count}")
        return {name: column[place % count] for name, column in self.columns().items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def to_table(self) -> Any:
        """Give an Arrow table with one row per item; ragged columns are lists.

        Raises
        ------
        MissingDependencyError
            Without pyarrow.
        """
        pyarrow = import_extra("arrow", "pyarrow", "to_table")
        flat = np.empty((len(self), 0), np.int64)
        return pyarrow.table(
            {
                name: column.to_arrow()
                if isinstance(column, Ragged)
                else write_lists(np.asarray(column), flat)
                for name, column in self.columns().items()
            }
        )
