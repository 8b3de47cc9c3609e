"""What a diffraction image takes in memory and in which chunks: planned, and not computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stowplan.kernels.bragg import intensity
from stowplan.memory import show_bytes
from stowplan.planners.batches import Plan
from stowplan.recipes.bragg_experiment import Beam, Crystal, Detector
from stowplan.recipes.bragg_geometry import arrays_of
from stowplan.recipes.bragg_pixels import Prepared, prepare
from stowplan.runs.budgeting import MemoryRequest
from stowplan.runs.columns import bind
from stowplan.runs.places import Place, find_places
from stowplan.runs.planning import plan_columns
from stowplan.runs.shared import check_shared

__all__ = ["Chunks", "Estimate", "Peaks", "estimate"]

NO_LIMIT = 2**62
"""Bytes of a budget that holds everything."""

Given = tuple[str, float | str | None]
"""A budget with its name."""


@dataclass(frozen=True)
class Chunks:
    """The chunks of pixels that `image` takes within a budget."""

    budget: str  # its name, or bytes for people
    budget_bytes: int
    pixels: int  # of a chunk
    count: int
    peak_bytes: int


@dataclass(frozen=True)
class Peaks:
    """Bytes of all pixels at once, and the chunks of each budget."""

    full_bytes: int
    chunks: tuple[Chunks, ...]


@dataclass(frozen=True)
class Estimate:
    """Memory of an image, by itself and with its gradient; prints as a table."""

    detector: tuple[int, int]  # pixels along the slow and the fast axis
    pixels: int  # that are computed
    terms: int  # of a pixel: sub-pixels x sources x phi steps x mosaic domains
    where: str  # framework and dtype
    image: Peaks
    gradient: Peaks | None  # None where the framework has none, or it was not asked for

    def detector_rows(self, pixels: int) -> float:
        """Give pixels in rows of the detector."""
        return pixels / self.detector[1]

    def __str__(self) -> str:
        slow, fast = self.detector
        count = f"{slow} x {fast}" if self.pixels == slow * fast else f"{self.pixels}"
        kinds = {"image": self.image, "with gradient": self.gradient}
        given = {name: peaks for name, peaks in kinds.items() if peaks is not None}
        titles = ["budget", *["chunks", "pixels", "rows", "peak"] * len(given)]
        table = [titles, ["all at once", *self._cells(given.values())]]
        for place, one in enumerate(self.image.chunks):
            table.append([one.budget, *self._cells(given.values(), place)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                [line[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            )
            for line in table
        ]
        groups = [sum(widths[first : first + 4]) + 6 for first in range(1, len(widths), 4)]
        bars = [f"-- {name} ".ljust(g, "-") for name, g in zip(given, groups, strict=True)]
        over = "  ".join([" " * widths[0], *bars])
        term = f"{self.terms} term{'s' if self.terms > 1 else ''} each"
        return "\n".join([f"{count} pixels, {term}, {self.where}", over, *lines])

    def _cells(self, kinds: Iterable[Peaks], place: int | None = None) -> list[str]:
        cells = []
        for peaks in kinds:
            pixels, count, peak = self.pixels, 1, peaks.full_bytes
            if place is not None:
                one = peaks.chunks[place]
                pixels, count, peak = one.pixels, one.count, one.peak_bytes
            rows = self.detector_rows(pixels)
            cells += [f"{count}", f"{pixels}", f"{rows:.4g}", show_bytes(peak)]
        return cells


def estimate(
    crystal: Crystal,
    detector: Detector,
    beam: Beam,
    *,
    on: str | None = None,
    device: Any = None,
    dtype: str | None = None,
    budget: float | str | Sequence[float | str] | Mapping[str, float | str] | None = None,
    region: Any = None,
    dmin: Any = 0.0,
    gradient: bool | None = None,
) -> Estimate:
    """Say what an image takes in memory, and the chunks that `image` computes within a budget.

    No image is computed: it is planned as `image` plans it. In torch nothing is allocated and the
    device need not be there, so that a laptop can tell what a card will hold; JAX compiles the
    shapes; NumPy and CuPy compute a few pixels. Counted is the run beside the pixels' indices; not
    what the framework takes for itself. A chunk is no larger than a cache of the device likes it,
    however large the budget.

    Parameters
    ----------
    crystal, detector, beam, dtype, region, dmin
        As in `image`.
    on, device
        Framework and device; those of the parameters by default, torch for plain numbers.
    budget
        As in `image`; or several, in a list or by name: ``{"a card of 8 GB": "6.4 GiB"}``.
    gradient
        Whether the gradient is looked at, too, of the arrays that the framework records or else of
        everything; by default where the framework has one.

    Returns
    -------
    Estimate

    Raises
    ------
    BudgetError
        For a budget that a single pixel exceeds.
    FrameworkError
        For ``gradient=True`` where a framework has none, and for a device that is not there without
        a budget in bytes.

    Examples
    --------
    >>> experiment = Crystal((100, 100, 100, 90, 90, 90)), Detector((1024, 1024)), Beam(6.2)
    >>> found = estimate(*experiment, on="numpy", budget=["64 MiB", "4 GiB"])
    >>> found.pixels, found.terms
    (1048576, 1)
    >>> [chunks.count > 1 and chunks.peak_bytes < 2**26 for chunks in found.image.chunks]
    [True, True]
    """
    given = list(arrays_of([crystal, detector, beam, dmin]))
    if on is None and not given:
        on = "torch"
    _, target = find_places("estimate", given, on, device, absent=True)
    made = prepare(
        crystal, detector, beam, on=on, device=device if target.here else None, dtype=dtype,
        region=region, dmin=dmin, where="estimate",
    )  # fmt: skip
    source = made.place if given or target.here else target  # plain numbers are made there
    if gradient is None:
        gradient = target.adapter.peak_probe != "real"
    dtype = str(made.shared["lattices"].dtype).rpartition(".")[2]
    budgets = _budgets(budget)
    image, slopes = (_Planned(made, source, target, gradient=kind) for kind in (False, True))
    return Estimate(
        detector=made.detector,
        pixels=made.pixels,
        terms=intensity.count_terms({**intensity.defaults, **made.shared}),
        where=f"{target.adapter.name} {dtype}",
        image=image.peaks(budgets),
        gradient=slopes.peaks(budgets) if gradient else None,
    )


def _budgets(budget: Any) -> list[Given]:
    """Give budgets with their names."""
    if isinstance(budget, Mapping):
        return list(budget.items())
    if isinstance(budget, Sequence) and not isinstance(budget, str):
        return [(str(one), one) for one in budget]
    return [("", budget)]


class _Planned:
    """Plans of one image, or of its gradient."""

    def __init__(self, made: Prepared, source: Place, target: Place, *, gradient: bool) -> None:
        self.columns = bind("estimate", intensity, made.columns)
        self.shared = check_shared("estimate", intensity, made.shared)
        self.places = source, target
        self.gradient = gradient

    def plan(self, budget: float | str | None, rows: Any = None) -> Plan:
        """Give the plan that `image` makes for a budget, or for rows by hand."""
        memory = MemoryRequest(budget, None, self.gradient, *self.shared)
        return plan_columns("estimate", intensity, self.columns, *self.places, memory, rows=rows)

    def peaks(self, budgets: Iterable[Given]) -> Peaks:
        """Give the peak of all pixels at once, and chunks for each budget."""
        chunks = tuple(self.chunks(*one) for one in budgets)
        return Peaks(self.peak_bytes(self.plan(NO_LIMIT, self.columns.items)), chunks)

    def chunks(self, name: str, budget: float | str | None) -> Chunks:
        """Give the chunks of a budget."""
        planned = self.plan(budget)
        assert planned.memory is not None
        size = planned.memory.budget.bytes
        peak = self.peak_bytes(planned)
        (pixels,) = planned.rows
        return Chunks(name or show_bytes(size), size, pixels, len(planned.batches), peak)

    def peak_bytes(self, planned: Plan) -> int:
        """Give the peak of a plan, which is probed now if it was not."""
        assert planned.memory is not None
        peak = planned.memory.peak_bytes
        return self.peak_bytes(self.plan(NO_LIMIT, planned.rows)) if peak is None else peak
