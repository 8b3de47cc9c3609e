"""What a diffraction image takes in memory, and in how many chunks it fits: nothing is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stowplan.adapters import Adapter, get_adapter
from stowplan.errors import BudgetError
from stowplan.kernels.bragg import intensity
from stowplan.memory import Budget, resolve_budget, show_bytes
from stowplan.peaks import Forecast, PeakModel
from stowplan.recipes.bragg_experiment import Beam, Crystal, Detector
from stowplan.recipes.bragg_geometry import arrays_of
from stowplan.recipes.bragg_pixels import Prepared, prepare
from stowplan.runs.calibration import calibrate
from stowplan.runs.places import find_places
from stowplan.runs.planning import plan

__all__ = ["Chunks", "Estimate", "Peaks", "estimate"]

TRIES = 8
"""Shapes that are compiled to find one that fits a budget, before a single pixel is tried."""
CAUTION = 0.9
"""Share of the budget that the next of them aims at: smaller shapes take relatively more."""
SOME = 16
"""Chunks of the plan that says what a run holds beside its chunks; their number changes little."""


@dataclass(frozen=True)
class Chunks:
    """The fewest chunks of pixels that keep an image within a budget."""

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
    """Say what an image takes in memory, and in how few chunks it keeps within a budget.

    No image is computed. In torch nothing is allocated and the device need not be there, so that a
    laptop can tell what a card will hold; JAX compiles the shapes; NumPy and CuPy compute a few
    pixels. Counted are a chunk at its peak and what a run holds beside its chunks; the pixels'
    indices and what the framework takes for itself are not. `image` may take smaller chunks, which
    a cache holds.

    Parameters
    ----------
    crystal, detector, beam, dtype, region, dmin
        As in `image`.
    on, device
        Framework and device; those of the parameters by default, torch for plain numbers.
    budget
        As in `image`; or several, in a list or by name: ``{"a card of 8 GB": "6.4 GiB"}``.
    gradient
        Whether the gradient is looked at, too; by default where the framework has one.

    Returns
    -------
    Estimate

    Raises
    ------
    BudgetError
        For a budget that a single pixel exceeds.
    FrameworkError
        For ``gradient=True`` where a framework has none.

    Examples
    --------
    >>> experiment = Crystal((100, 100, 100, 90, 90, 90)), Detector((1024, 1024)), Beam(6.2)
    >>> found = estimate(*experiment, on="numpy", budget=["64 MiB", "4 GiB"])
    >>> found.pixels, found.terms, found.image.chunks[0].count > 1, found.image.chunks[1].count
    (1048576, 1, True, 1)
    """
    if on is None and not any(True for _ in arrays_of([crystal, detector, beam, dmin])):
        on = "torch"
    made = prepare(
        crystal, detector, beam, on=on, dtype=dtype, region=region, dmin=dmin, where="estimate"
    )
    adapter = made.place.adapter if on is None else get_adapter(on)
    if gradient is None:
        gradient = adapter.peak_probe != "real"
    budgets = _budgets(budget, made, on, device)
    dtype = str(made.shared["lattices"].dtype).rpartition(".")[2]
    return Estimate(
        detector=made.detector,
        pixels=made.pixels,
        terms=intensity.count_terms({**intensity.defaults, **made.shared}),
        where=f"{adapter.name} {dtype}",
        image=_Search(made, adapter, on, device, gradient=False).peaks(budgets),
        gradient=_Search(made, adapter, on, device, gradient=True).peaks(budgets)
        if gradient
        else None,
    )


def _budgets(budget: Any, made: Prepared, on: str | None, device: Any) -> list[tuple[str, Budget]]:
    """Give budgets with their names."""
    if isinstance(budget, Mapping):
        given = list(budget.items())
    elif isinstance(budget, Sequence) and not isinstance(budget, str):
        given = [(str(one), one) for one in budget]
    else:
        given = [("", budget)]
    place = "cpu" if device is None else str(device)

    def free_bytes() -> int:
        _, target = find_places("estimate", list(made.columns.values()), on, device)
        return target.adapter.free_bytes(target.device)

    found = [
        (name, resolve_budget(one, free_bytes, "estimate", device=place)) for name, one in given
    ]
    return [(name or show_bytes(one.bytes), one) for name, one in found]


class _Search:
    """The largest chunks of an image that fit, by probes of the kernel."""

    def __init__(
        self, made: Prepared, adapter: Adapter, on: str | None, device: Any, *, gradient: bool
    ) -> None:
        self.made = made
        self.options = {"on": on, "device": device, "gradient": gradient, **made.shared}
        self.margin = 1 + adapter.peak_margin
        self.compiled = adapter.peak_probe == "compiled"
        self.pixel = {name: column[:1] for name, column in made.columns.items()}
        self.gradient = gradient
        self.held_bytes = self.forecast(-(-made.pixels // SOME), PeakModel(0, 1, "")).held_bytes

    def forecast(self, pixels: int, model: PeakModel) -> Forecast:
        """Give what a plan with chunks of so many pixels expects."""
        whole = plan(
            intensity, self.made.columns, rows=pixels, budget=2**62, peak=model,
            gradient=self.gradient, **self.made.shared,
        )  # fmt: skip
        assert whole.memory is not None
        return whole.memory

    def peaks(self, budgets: Iterable[tuple[str, Budget]]) -> Peaks:
        """Give the peak of all pixels at once, and chunks for each budget."""
        pixels = self.made.pixels
        whole = self.model(pixels)
        full = self.forecast(pixels, whole).held_bytes + self.peak(whole, pixels)
        return Peaks(full, tuple(self.chunks(name, one, whole) for name, one in budgets))

    def model(self, pixels: int) -> PeakModel:
        """Give the peak of a chunk, a line or right for so many pixels."""
        rows = pixels if self.compiled else None
        (model,) = calibrate(intensity, self.pixel, rows=rows, **self.options)
        return model

    def peak(self, model: PeakModel, pixels: int) -> int:
        """Give the peak of a chunk, with the margin that plans keep."""
        return math.ceil(self.margin * model.peak(pixels))

    def chunks(self, name: str, budget: Budget, model: PeakModel) -> Chunks:
        """Give the fewest chunks within a budget."""
        left = budget.bytes - self.held_bytes
        count = 1
        for tries in range(TRIES, -1, -1):
            pixels = -(-self.made.pixels // count)
            if self.compiled:
                model = self.model(pixels)
            if self.peak(model, pixels) <= left:
                break
            fits = model.rows(int(left / self.margin * (CAUTION if self.compiled else 1)))
            if pixels == 1 or not (self.compiled or fits):
                self._refuse(budget, model)
            count = -(-self.made.pixels // fits) if fits and tries > 1 else self.made.pixels
        peak = self.held_bytes + self.peak(model, pixels)
        return Chunks(name, budget.bytes, pixels, count, peak)

    def _refuse(self, budget: Budget, model: PeakModel) -> None:
        one = self.peak(model, 1)
        raise BudgetError(
            f"estimate: one pixel needs {one} bytes ({model.source}: "
            f"{model.fixed_bytes} and {float(model.bytes_per_row):.6g} for each pixel), results "
            f"and indices of {self.made.pixels} pixels {self.held_bytes} more; the budget is "
            f"{budget.bytes} bytes: {budget}. Give at least budget={self.held_bytes + one}, a "
            "region, fewer mosaic domains, phi steps, sources or sub-pixels, or dtype='float32'."
        )
