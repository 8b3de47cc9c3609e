"""The peak of a batch as a line in its rows, and what a plan expects of a run."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from stowplan.errors import BudgetError
from stowplan.memory import Budget, show_bytes

__all__ = ["Forecast", "PeakModel", "fit_peak", "peak_models_by_hand"]


SHOWN = 4
"""Sources of a prediction that a table lists."""


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
        isinstance(part, numbers.Real) and not isinstance(part, bool) and math.isfinite(part)
        for part in peak
    ):
        raise BudgetError(
            f"{where}: peak={peak!r}; give two numbers, (fixed_bytes, bytes_per_row), such as "
            "(0, 4096), or what sp.calibrate returns."
        )
    fixed, each = peak
    if not isinstance(each, Fraction):
        each = float(each)  # a number of NumPy makes no fraction
    return PeakModel(math.ceil(fixed), each, "peak= by hand")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run of a plan takes at its peak beside its inputs, and what it may take.

    Attributes
    ----------
    budget : Budget
        Most bytes of a run, and who said so.
    held_bytes : int
        Index arrays, results and gradients, alive beside the batch with which they take most; 0
        where they are so few that no limit is conceivable.
    batch_bytes : tuple of int
        Peak of a batch in each slot, 0 where a slot is empty; empty where nothing was probed.
    sources : tuple of str
        Where those come from; why there are none.
    idle_bytes : int
        Index arrays and results while there is no batch: before the first, while rows are put
        away, and after the last.
    in_flight : bool
        Whether a batch that is compiled may be computed while the rows of the last are put away.
    read_bytes : int
        Most that is read from disk at once, into one of several buffers; 0 for data in memory.
    together : int
        Loads that are computed at once, each on a thread, with a batch each. `held_bytes` and
        `idle_bytes` are of all of them.
    """

    budget: Budget
    held_bytes: int
    batch_bytes: tuple[int, ...]
    sources: tuple[str, ...]
    idle_bytes: int = 0
    in_flight: bool = True
    read_bytes: int = 0
    together: int = 1

    @property
    def peak_bytes(self) -> int | None:
        """Peak of the whole run; None where no batch was probed."""
        if not self.batch_bytes:
            return None
        return max(self.held_bytes + self.together * max(self.batch_bytes), self.idle_bytes)

    def lines(self) -> list[str]:
        """What the table of a plan says of memory."""
        reasons = "; ".join(self.sources[:SHOWN])
        if len(self.sources) > SHOWN:
            reasons += f"; and {len(self.sources) - SHOWN} more"
        if self.peak_bytes is None:
            return [f"memory     {self.budget}; {reasons}"]
        largest = f"{show_bytes(max(self.batch_bytes))} a batch"
        if self.together > 1:
            largest += f", {self.together} at once"
        if self.read_bytes:
            largest = f"{show_bytes(self.read_bytes)} read ahead, {largest}"
        return [
            f"memory     {show_bytes(self.peak_bytes)} at its peak ({largest}; {reasons})",
            f"budget     {self.budget}",
        ]
