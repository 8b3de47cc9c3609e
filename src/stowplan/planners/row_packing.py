"""Many small items in one row: as few rows as several limits allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError
from stowplan.planners.fitting import slot_code
from stowplan.planners.row_bounds import least_rows
from stowplan.planners.row_search import fewest_rows
from stowplan.planners.sizes import Sizes, listed, natural, size_table
from stowplan.planners.tables import aligned

__all__ = ["RowPacking", "pack_rows"]


@dataclass(frozen=True, eq=False)
class RowPacking:
    """Which items share a row; made by `pack_rows`, never changed.

    Attributes
    ----------
    dims : tuple of str
        What the limits are on, in their order.
    lengths : (items, dims) int64
        Size of each item; 1 along a dim that only counts items.
    limits : dict of str to int
        Most that a row holds.
    row : (items,) intp
        Row of each item; rows are numbered by their first item.
    bounds : dict of str to int
        Rows that each limit alone makes necessary.
    """

    dims: tuple[str, ...]
    lengths: NDArray[np.int64]
    limits: dict[str, int]
    row: NDArray[np.intp]
    bounds: dict[str, int]

    def __len__(self) -> int:
        return int(self.row.max(initial=-1)) + 1

    @property
    def lower_bound(self) -> int:
        """Rows that are needed, however they are packed."""
        return max(self.bounds.values())

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Items of each row, (rows,)."""
        return np.bincount(self.row, minlength=len(self)).astype(np.int64)

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """The items row by row, (items,); those of a row ascend."""
        return np.argsort(self.row, kind="stable")

    @cached_property
    def rows(self) -> tuple[NDArray[np.intp], ...]:
        """The items of each row, in order."""
        return tuple(np.split(self.order, np.cumsum(self.counts)[:-1])) if len(self) else ()

    @cached_property
    def sizes(self) -> dict[str, NDArray[np.int64]]:
        """Length of each row, (rows,), by dim."""
        totals = np.zeros((len(self), len(self.dims)), np.int64)
        np.add.at(totals, self.row, self.lengths)
        return {dim: totals[:, axis] for axis, dim in enumerate(self.dims)}

    @property
    def fill(self) -> dict[str, float]:
        """Share of the rows' capacity that is used, by dim."""
        return {
            dim: int(total.sum()) / (self.limits[dim] * len(self)) if len(self) else 1.0
            for dim, total in self.sizes.items()
        }

    def __str__(self) -> str:
        head = f"{len(self.row)} items in {len(self)} rows; at least {self.lower_bound} are needed"
        table = [("", "limit", "at least", "filled")]
        for dim, share in self.fill.items():
            cells = (f"{self.limits[dim]}", f"{self.bounds[dim]}", f"{100 * share:.1f} %")
            table.append((dim, *cells))
        return "\n".join([head, *aligned(table)])

    def __repr__(self) -> str:
        return f"<RowPacking: {len(self.row)} items in {len(self)} rows>"


def pack_rows(sizes: Sizes, limits: Mapping[str, int], *, tries: int = 2000) -> RowPacking:
    """Put items into as few rows as a search finds, none above a limit.

    First fit and best fit in decreasing order, the largest share of a limit or the sum of shares
    first, then exchanges between rows until `lower_bound` is met. Never more rows than first fit in
    decreasing order of the largest share; the fewest for up to 8 items. The same sizes give the
    same rows.

    Parameters
    ----------
    sizes
        Size of each item, (items,), by dim; 0 is legal.
    limits
        Most that a row holds along each of these dims. One more name counts the items of a row,
        such as ``{"atoms": 500, "molecules": 64}``: the kernel's ``segments=``.
    tries
        Exchanges of a few rows each while more rows are used than the lower bound; 2000 take about
        0.1 s.

    Raises
    ------
    PlanError
        For an item above a limit, a dim without limit, and limits that are no positive integers.

    Examples
    --------
    >>> packing = pack_rows({"atoms": [3, 9, 6, 1]}, {"atoms": 10, "molecules": 2})
    >>> [items.tolist() for items in packing.rows]
    [[0, 2], [1, 3]]
    >>> print(packing)
    4 items in 2 rows; at least 2 are needed
               limit  at least  filled
        atoms     10         2  95.0 %
    molecules      2         2  100.0 %
    """
    checked = _checked_limits(sizes, limits)
    ones = np.ones(np.asarray(next(iter(sizes.values()))).size, np.int64)
    lengths = size_table("pack_rows", {name: sizes.get(name, ones) for name in checked}).lengths
    _refuse_large(lengths, checked)
    bounds = {
        name: least_rows(lengths[:, axis], limit)
        for axis, (name, limit) in enumerate(checked.items())
    }
    most = max(bounds.values())
    tries = natural(tries, "pack_rows: tries", least=0)
    row = _by_first_item(fewest_rows(lengths, list(checked.values()), most, tries))
    row.flags.writeable = False
    return RowPacking(tuple(checked), lengths, checked, row, bounds)


def _checked_limits(sizes: Any, limits: Any) -> dict[str, int]:
    for name, given in (("sizes", sizes), ("limits", limits)):
        if not isinstance(given, Mapping) or not given:
            raise PlanError(
                f"pack_rows: {name}={given!r} names no dim; write "
                "pack_rows({'atoms': [3, 5]}, {'atoms': 500})."
            )
    open_ = [name for name in sizes if name not in limits]
    if open_:
        raise PlanError(
            f"pack_rows: no limit for {open_[0]!r}; limits names: {', '.join(map(str, limits))}. "
            f"Give one, limits={{..., {open_[0]!r}: 500}}, or leave the dim out of sizes."
        )
    more = [str(name) for name in limits if name not in sizes]
    if len(more) > 1:
        raise PlanError(
            f"pack_rows: limits names {' and '.join(map(repr, more))}, which sizes does not. One "
            f"such name counts the items of a row; the dims are: {', '.join(map(str, sizes))}."
        )
    return {
        str(name): natural(limit, f"pack_rows: limits[{name!r}]") for name, limit in limits.items()
    }


def _refuse_large(lengths: NDArray[np.int64], limits: Mapping[str, int]) -> None:
    if float(lengths.sum(axis=0, dtype=np.float64).max(initial=0.0)) >= 2.0**62:
        raise PlanError("pack_rows: the sizes add up to more than a 64-bit integer counts.")
    above = lengths > np.asarray(list(limits.values()))
    if above.any():
        large = np.flatnonzero(above.any(axis=1))
        names = [name for name, column in zip(limits, above[large[0]], strict=True) if column]
        item = dict(zip(limits, lengths[large[0]].tolist(), strict=True))
        longest = dict(zip(limits, lengths.max(axis=0).tolist(), strict=True))
        enough = {name: max(limit, longest[name]) for name, limit in limits.items()}
        raise PlanError(
            f"pack_rows: {len(large)} of {len(lengths)} items exceed a limit. Item {large[0]} has "
            f"{listed({name: item[name] for name in names})}; a row holds "
            f"{listed({name: limits[name] for name in names})}. Raise the limits, "
            f"limits={slot_code(enough)}, or compute such items by themselves."
        )


def _by_first_item(row: NDArray[np.intp]) -> NDArray[np.intp]:
    """Number rows by the first item of each."""
    _, first, inverse = np.unique(row, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.intp)
    number[np.argsort(first)] = np.arange(len(first))
    return number[inverse]
