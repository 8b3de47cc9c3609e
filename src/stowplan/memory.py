"""Budgets in bytes, the peak of a batch as a line in its rows, and what a plan expects of both."""

from __future__ import annotations

import itertools
import math
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from stowplan.errors import BudgetError

__all__ = [
    "Budget",
    "Forecast",
    "PeakModel",
    "fit_peak",
    "parse_bytes",
    "peak_models_by_hand",
    "resolve_budget",
    "show_bytes",
]

SHARE = 0.8
"""Share of the free memory that is the budget where none is given."""
VARIABLE = "STOWPLAN_BUDGET"
"""Environment variable that gives a budget where none is passed."""

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[f"{_letter}IB"] = 1024**_power


def parse_bytes(budget: float | str) -> int:
    """Give a budget as a number of bytes.

    Raises
    ------
    BudgetError
        For text that does not parse, and for a budget below one byte.

    Examples
    --------
    >>> parse_bytes("4 GiB"), parse_bytes("1.5MB"), parse_bytes(4096)
    (4294967296, 1500000, 4096)
    """
    match = re.fullmatch(r"\s*(\d+)(?:\.(\d+))?\s*([A-Za-z]*)\s*", str(budget))
    if match is None or match.group(3).upper() not in _UNITS:
        raise BudgetError(
            f"budget={budget!r} is no number of bytes. Write 4096, '300 MB', '4 GiB' or the like."
        )
    decimals = match.group(2) or ""  # in integers: a float loses bytes beyond 2**53
    size: int = (
        int(match.group(1) + decimals) * _UNITS[match.group(3).upper()] // 10 ** len(decimals)
    )
    if size < 1:
        raise BudgetError(f"budget={budget!r} is less than one byte.")
    return size


def show_bytes(size: float) -> str:
    """Write a number of bytes for people.

    >>> show_bytes(4.5 * 1024**3)
    '4.5 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that a batch may take, and who said so."""

    bytes: int
    source: str  # 'budget="4 GiB"', 'STOWPLAN_BUDGET=4GiB', '0.8 of 23.1 GiB free on cpu'

    def __str__(self) -> str:
        return f"{show_bytes(self.bytes)} ({self.source})"


def resolve_budget(
    budget: float | str | None,
    free_bytes: Callable[[], int],
    where: str,
    *,
    device: str = "cpu",
    environment: Mapping[str, str] = os.environ,
) -> Budget:
    """Give the budget of a batch: as passed, else ``STOWPLAN_BUDGET``, else 0.8 of what is free.

    Parameters
    ----------
    budget
        Bytes (an integer, or text such as ``"4 GiB"``); or a share of the free memory, a float
        above 0 and up to 1. Text such as ``"0.5"``, a decimal without a unit, is a share too.
    free_bytes
        Says how much is free; called for shares only.
    where, device
        The caller and the device, for messages.
    environment
        Where the variable is looked up.

    Raises
    ------
    BudgetError
        For what is neither bytes nor a share, less than one byte, or a share of nothing.

    Examples
    --------
    >>> str(resolve_budget("4 GiB", lambda: 0, "plan"))
    '4 GiB (budget="4 GiB")'
    >>> str(resolve_budget(0.5, lambda: 3 * 2**30, "plan"))
    '1.5 GiB (0.5 of 3 GiB free on cpu)'
    """
    if budget is not None:
        name = f'budget="{budget}"' if isinstance(budget, str) else f"budget={budget!r}"
        return _resolved(budget, name, free_bytes, where, device)
    text = environment.get(VARIABLE, "").strip()
    if text:
        return _resolved(text, f"{VARIABLE}={text}", free_bytes, where, device)
    return _share(SHARE, None, free_bytes, where, device)


def _resolved(
    budget: float | str, name: str, free_bytes: Callable[[], int], where: str, device: str
) -> Budget:
    share = _as_share(budget)
    if share is not None:
        return _share(share, name, free_bytes, where, device)
    try:
        return Budget(parse_bytes(budget), name)
    except BudgetError:
        raise BudgetError(
            f"{where}: {name} is no budget. Give bytes from 1 (4096, '300 MB', '4 GiB'), or a "
            "share of the free memory above 0 and up to 1 (0.8)."
        ) from None


def _as_share(budget: object) -> float | None:
    """Give a share of the free memory, None for what is none; 1 is a byte, 1.0 all memory."""
    if isinstance(budget, str) and re.fullmatch(r"\s*[01]?\.\d+\s*", budget):
        budget = float(budget)
    real = isinstance(budget, numbers.Real) and not isinstance(budget, numbers.Integral)
    share = float(budget) if real else 0.0  # type: ignore[arg-type]  # a Real is a number
    return share if 0 < share <= 1 else None


def _share(
    share: float, name: str | None, free_bytes: Callable[[], int], where: str, device: str
) -> Budget:
    free = free_bytes()
    given = "" if name is None or name.startswith("budget=") else f"{name}: "
    source = f"{given}{share:g} of {show_bytes(free)} free on {device}"
    size = int(share * free)
    if size < 1:
        raise BudgetError(
            f"{where}: a budget of {source} is less than one byte. Free some memory, or give "
            "bytes: budget='300 MB'."
        )
    return Budget(size, source)


@dataclass(frozen=True, slots=True)
class PeakModel:
    """Peak bytes of one batch at one capacity, a line in its rows.

    Examples
    --------
    >>> model = PeakModel(1000, 24, "by hand")
    >>> model.peak(10), model.rows(1240), model.rows(1000)
    (1240, 10, 0)
    """

    fixed_bytes: int
    bytes_per_row: float | Fraction
    source: str
    measured_rows: int | None = None
    """Rows whose shape was compiled: the peak of any others is a guess in proportion."""

    def __post_init__(self) -> None:
        if not (0 <= self.fixed_bytes < math.inf and 0 < self.bytes_per_row < math.inf):
            raise BudgetError(
                f"a peak of {self.fixed_bytes} bytes and {self.bytes_per_row} for each row "
                f"({self.source}) is none; write peak=(fixed_bytes, bytes_per_row), such as "
                "(0, 4096)."
            )

    def peak(self, rows: int) -> int:
        """Bytes that a batch of so many rows takes at its peak, rounded up."""
        return self.fixed_bytes + math.ceil(rows * Fraction(self.bytes_per_row))

    def rows(self, budget: int) -> int:
        """Give the most rows of a batch within so many bytes; 0 where not even one fits."""
        return max(math.floor((budget - self.fixed_bytes) / Fraction(self.bytes_per_row)), 0)


def fit_peak(
    rows: Sequence[int],
    peaks: Sequence[int],
    source: str,
    *,
    smaller: Mapping[int, int] = MappingProxyType({}),
) -> PeakModel:
    """Put a line through peaks at rising numbers of rows, never below one of them.

    The slope is that of the steepest step: the largest of several lines, which a peak is where
    other parts of a kernel take over, is followed from above. ``smaller`` holds peaks of fewer
    rows, which lift the line and turn it not. Where the peaks are off the line through the first
    two by more than 1 %, ``source`` says so.

    >>> fit_peak([1, 2, 3], [110, 120, 130], "probes of f")
    PeakModel(fixed_bytes=100, bytes_per_row=Fraction(10, 1), source='probes of f', ...)
    """
    points = list(zip(rows, peaks, strict=True))
    slopes = [
        Fraction(high - low, more - less)
        for (less, low), (more, high) in itertools.pairwise(points)
    ]
    slope = max(slopes)
    every = [*points, *smaller.items()]
    fixed = max(0, *(math.ceil(peak - slope * count) for count, peak in every))
    (first, start), *_ = points
    off = max(abs(start + slopes[0] * (count - first) - peak) / peak for count, peak in points)
    note = f", off a line by {float(off):.1%}" if off > 0.01 else ""
    return PeakModel(fixed, slope, source + note)


def peak_models_by_hand(peak: Any, slots: int, where: str) -> tuple[PeakModel, ...]:
    """Read ``peak=``: one pair or model for all slots, or a sequence of one for each.

    >>> peak_models_by_hand((1000, 24), 2, "plan")[1].peak(10)
    1240
    """
    models = list(peak) if _are_models(peak) else [peak] * slots
    if len(models) != slots:
        raise BudgetError(
            f"{where}: peak= has {len(models)} entries for {slots} slots; give one for all, "
            "peak=(fixed_bytes, bytes_per_row), or one for each."
        )
    return tuple(_model_by_hand(model, where) for model in models)


def _are_models(peak: Any) -> bool:
    return isinstance(peak, Sequence) and any(
        isinstance(part, PeakModel | Sequence) and not isinstance(part, str) for part in peak
    )


def _model_by_hand(peak: Any, where: str) -> PeakModel:
    if isinstance(peak, PeakModel):
        return peak
    numbers_given = isinstance(peak, Sequence) and len(peak) == 2
    if not numbers_given or not all(
        isinstance(part, numbers.Real) and not isinstance(part, bool) for part in peak
    ):
        raise BudgetError(
            f"{where}: peak={peak!r}; give two numbers, (fixed_bytes, bytes_per_row), such as "
            "(0, 4096), or what sp.calibrate returns."
        )
    return PeakModel(math.ceil(peak[0]), peak[1], "peak= by hand")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run of a plan takes at its peak beside its inputs, and what it may take.

    Attributes
    ----------
    budget : Budget
        Most bytes of a run, and who said so.
    held_bytes : int
        Index arrays, results and gradients, alive beside the last batch.
    batch_bytes : tuple of int
        Peak of a batch in each slot, 0 where a slot is empty; empty where nothing was probed.
    sources : tuple of str
        Where those come from; why there are none.
    idle_bytes : int
        Index arrays and results while there is no batch: before the first and after the last.
    """

    budget: Budget
    held_bytes: int
    batch_bytes: tuple[int, ...]
    sources: tuple[str, ...]
    idle_bytes: int = 0

    @property
    def peak_bytes(self) -> int | None:
        """Peak of the whole run; None where no batch was probed."""
        if not self.batch_bytes:
            return None
        return max(self.held_bytes + max(self.batch_bytes), self.idle_bytes)

    def lines(self) -> list[str]:
        """What the table of a plan says of memory."""
        reasons = "; ".join(self.sources)
        if self.peak_bytes is None:
            return [f"memory     {self.budget}; {reasons}"]
        largest = f"{show_bytes(max(self.batch_bytes))} a batch"
        return [
            f"memory     {show_bytes(self.peak_bytes)} at its peak ({largest}; {reasons})",
            f"budget     {self.budget}",
        ]
