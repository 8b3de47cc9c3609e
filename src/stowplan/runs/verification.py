"""``sp.verify``: does padding leak? Items again: alone, with more padding, with other fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.adapters import framework_of, get_adapter
from stowplan.adapters.interface import as_tuple
from stowplan.declaration import Kernel
from stowplan.errors import DataError
from stowplan.planners.batches import Batch, Plan
from stowplan.planners.slots import assign_exact
from stowplan.ragged import Ragged
from stowplan.runs.columns import bind
from stowplan.runs.execution import run
from stowplan.runs.matching import check_sizes
from stowplan.runs.planning import plan as make_plan
from stowplan.runs.segments import JoinedRows

__all__ = ["Verification", "verify"]

MORE_PADDING = 3


@dataclass(frozen=True, slots=True)
class Verification:
    """Worst differences per output, relative to the largest value of that output.

    Attributes
    ----------
    items : tuple of int
        The items that were computed again.
    alone, padded : dict of str to float
        Against each item alone and unpadded; against each with more padding than the plan has.
    fills : dict of str to dict of str to float
        Per argument without a declared fill: against other padding values.
    tolerance : float
        What counts as equal.
    """

    items: tuple[int, ...]
    alone: dict[str, float]
    padded: dict[str, float]
    fills: dict[str, dict[str, float]]
    tolerance: float

    @property
    def worst(self) -> float:
        """The largest of all differences; infinite for NaN on one side only."""
        tables = [self.alone, self.padded, *self.fills.values()]
        return max((value for table in tables for value in table.values()), default=0.0)

    @property
    def passed(self) -> bool:
        """Whether no difference exceeds the tolerance."""
        return self.worst <= self.tolerance

    def __str__(self) -> str:
        names = list(self.alone)
        tests = {"alone": self.alone, "more padding": self.padded}
        tests |= {f"other fill of {name}": table for name, table in self.fills.items()}
        width = max(map(len, tests))
        lines = [f"{'':{width}}  " + "  ".join(f"{name:>10}" for name in names)]
        for test, table in tests.items():
            lines.append(f"{test:{width}}  " + "  ".join(f"{table[name]:10.1e}" for name in names))
        if self.passed:
            lines.append(f"passed: nothing above {self.tolerance:.0e} in {len(self.items)} items")
        else:
            lines.append(
                f"FAILED: padding changes the result by {self.worst:.1e} (allowed "
                f"{self.tolerance:.0e}). "
                "Give the padded entries no weight through mask, or declare the fill that is "
                "neutral."
            )
        return "\n".join(lines)


def verify(
    kernel: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    plan: Plan | None = None,
    *,
    items: int | Sequence[int] = 8,
    tolerance: float | None = None,
    on: str | None = None,
    device: Any = None,
    **shared: Any,
) -> Verification:
    """Compute some items again, alone and with other padding, and compare.

    Parameters
    ----------
    kernel, data, plan, on, device
        As in `run`.
    items
        Which items, or how many: the smallest, the largest and some evenly spaced between.
    tolerance
        Largest difference that counts as equal, relative to the largest value of an output over the
        chosen items; by default 1000 roundings of the outputs' dtype.
    **shared
        The kernel's keyword-only parameters.

    Returns
    -------
    Verification
        Its ``passed`` says whether the kernel ignores padding; print it for the table.

    Examples
    --------
    >>> import stowplan as sp
    >>> @sp.kernel("(points)->()", ragged="points")
    ... def mean(x):                                  # forgets that the tail is padding
    ...     return x.mean(axis=-1)
    >>> sp.verify(mean, {"x": [[1.0, 2.0], [5.0]]}).passed
    False
    """
    columns = bind("verify", kernel, data)
    plan = plan or make_plan(kernel, data, on=on, device=device)
    check_sizes("verify", kernel, columns, plan)
    chosen = _choose(plan, columns.items, items)
    some: Mapping[str, Any] = {
        name: value[chosen] if isinstance(value, Ragged) else _rows(value, chosen)
        for name, value in zip(kernel.arguments, columns.values, strict=True)
    }
    if isinstance(data, JoinedRows):
        ids = {dim: column[chosen] for dim, column in data.segments.items()}
        some = JoinedRows(some, data.counts[chosen], ids)
    everything = run(kernel, data, plan, on=on, device=device, **shared)
    expected = [_pick(part, chosen) for part in as_tuple(everything)]
    names = _names(everything)

    def differences(function: Kernel, batches: Plan) -> dict[str, float]:
        found = as_tuple(run(function, some, batches, on=on, device=device, **shared))
        values = [
            _difference(a, _pick(b, range(len(chosen))))
            for a, b in zip(expected, found, strict=True)
        ]
        return dict(zip(names, values, strict=True))

    sizes = {dim: plan.lengths[chosen, axis] for axis, dim in enumerate(plan.dims)}
    options: dict[str, Any] = {"work": plan.work, "derived": plan.derived, "exact": kernel.exact}
    exact = assign_exact(sizes, items=None if sizes else len(chosen), **options)
    alone = replace(
        exact, batches=tuple(_alone(exact, item, 0, kernel) for item in range(len(chosen)))
    )
    padded = replace(
        exact,
        batches=tuple(_alone(exact, item, MORE_PADDING, kernel) for item in range(len(chosen))),
        offsets=_in_front(plan, len(chosen)),
    )
    other_fills = {
        name: _other_fills(value.values)
        for name, value in zip(kernel.arguments, columns.values, strict=True)
        if isinstance(value, Ragged) and name not in kernel.fill
    }
    fills = {
        name: _worst(differences(kernel.refilled(name, fill), padded) for fill in others)
        for name, others in other_fills.items()
    }
    return Verification(
        tuple(chosen),
        differences(kernel, alone),
        differences(kernel, padded),
        fills,
        tolerance if tolerance is not None else 1000 * _rounding(expected),
    )


def _choose(plan: Plan, count: int, items: int | Sequence[int]) -> list[int]:
    if not isinstance(items, int | np.integer):
        chosen = [int(item) for item in items]
        if not chosen:
            raise DataError("verify: items=[] names no item; leave it out to check eight of them.")
        outside = [item for item in chosen if not 0 <= item < count]
        if outside:
            raise DataError(f"verify: item {outside[0]} of {count}; items are numbered from 0.")
        return chosen
    order = (
        np.argsort(plan.measure.cost(plan.lengths), kind="stable")
        if plan.dims
        else np.arange(count)
    )
    spaced = np.linspace(0, count - 1, min(max(items, 1), count)).astype(int)
    return [int(item) for item in order[np.unique(spaced)]]


def _alone(plan: Plan, item: int, more: int, kernel: Kernel) -> Batch:
    lengths = zip(plan.dims, np.maximum(plan.lengths[item], 1).tolist(), strict=True)
    capacity = tuple(length + (0 if dim in kernel.exact else more) for dim, length in lengths)
    return Batch(np.array([item], np.intp), 1, capacity, 0)


def _in_front(plan: Plan, items: int) -> NDArray[np.int64] | None:
    """Put padding in front of items, too, along the dims along which the plan does."""
    if plan.offsets is None:
        return None
    return np.tile(plan.offsets.any(axis=0) * (MORE_PADDING // 2), (items, 1))


def _rows(array: Any, rows: Sequence[int]) -> Any:
    adapter = get_adapter(framework_of([array]) or "numpy")
    return adapter.asarray(adapter.to_host(array)[list(rows)], adapter.device_of(array))


def _pick(result: Any, rows: Sequence[int]) -> list[NDArray[Any]]:
    values = result.values if isinstance(result, Ragged) else result
    adapter = get_adapter(framework_of([values]) or "numpy")
    host = adapter.to_host(values)
    ragged = Ragged.from_layout(host, result.layout) if isinstance(result, Ragged) else host
    return [np.asarray(ragged[int(row)]) for row in rows]


def _difference(expected: list[NDArray[Any]], found: list[NDArray[Any]]) -> float:
    finite = [np.abs(a[np.isfinite(a)]) for a in map(_inexact, expected)]
    scale = max((float(a.max(initial=0.0)) for a in finite), default=0.0) or 1.0
    worst = 0.0
    for a, b in zip(map(_inexact, expected), map(_inexact, found), strict=True):
        if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
            return float("inf")
        if a.size:
            apart = np.abs(np.subtract(a, b, out=np.zeros_like(a), where=(a != b) & ~np.isnan(a)))
            worst = max(worst, float(apart.max()) / scale)
    return worst


def _inexact(values: NDArray[Any]) -> NDArray[Any]:
    """Flags and integers as floats, which subtract without wrapping round."""
    return values if values.dtype.kind in "fc" else values.astype(np.float64)


def _other_fills(values: Any) -> tuple[float, ...]:
    """Padding that a kernel would notice: beyond the data on both sides, or small integers."""
    host = get_adapter(framework_of([values]) or "numpy").to_host(values)
    if host.dtype.kind in "biu":  # they may be indices, so they stay small
        return {"b": (1,), "i": (1, -2), "u": (1, 2)}[host.dtype.kind]
    size = np.abs(host[np.isfinite(host)])
    beyond = 1.0 + 1.5 * float(size.max(initial=0.0))
    return (beyond, -beyond - 1.5)


def _rounding(expected: Sequence[Sequence[NDArray[Any]]]) -> float:
    dtypes = [part.dtype for output in expected for part in output if part.dtype.kind in "fc"]
    return max((float(np.finfo(dtype).eps) for dtype in dtypes), default=0.0)


def _names(outputs: Any) -> list[str]:
    if hasattr(outputs, "_fields"):
        return list(outputs._fields)
    return [f"output {number}" for number in range(len(as_tuple(outputs)))]


def _worst(tables: Any) -> dict[str, float]:
    tables = list(tables)
    return {name: max(table[name] for table in tables) for name in tables[0]}
