"""Detector, beam and crystal of a diffraction image, checked as far as their values are known.

Every number may be a Python float, an array of any framework or a traced value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from stowplan.errors import DataError
from stowplan.io.reflections import MOST_ENTRIES, StructureFactors
from stowplan.kernels.bragg import FLUENCE
from stowplan.recipes.known import is_count, known_values, refuse_numbers

__all__ = ["Beam", "Crystal", "Detector", "Sources"]

GRAZING = 1e-6  # cosine between beam and normal below which nothing is hit
FLAT = 1e-6  # volume of a cell over the product of its lengths


@dataclass(frozen=True, eq=False)
class Detector:
    """A flat detector, turned about the spot that the beam hits.

    Parameters
    ----------
    shape : (int, int)
        Pixels along the slow and the fast axis: those of the image.
    pixel_size, distance : number
        In mm; the distance is along the beam.
    rotation : array (3,)
        Turns about x, then y, then z, in degrees.
    two_theta : number
        Turn about (0, 0, -1) after those, in degrees.
    beam_center : array (2,), optional
        (Xbeam, Ybeam) in mm, where the beam hits: X along the slow axis, Y along the fast one, each
        half a pixel less than the distance from the edge. The middle by default.
    oversample : int or "auto"
        Sub-pixels along each axis; ``"auto"`` as `auto_oversample` says.
    point_pixel : bool
        Solid angle 1/r^2, without the size and the obliquity of the pixel.

    Raises
    ------
    DataError
        For sizes that are not positive and for a detector that the beam runs along or hits from
        behind, as far as the values are known.

    Examples
    --------
    >>> Detector((256, 256), distance=80.0).pixel_size
    0.1
    """

    shape: tuple[int, int]
    pixel_size: Any = 0.1
    distance: Any = 100.0
    rotation: Any = (0.0, 0.0, 0.0)
    two_theta: Any = 0.0
    beam_center: Any = None
    oversample: int | Literal["auto"] = 1
    point_pixel: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or not all(is_count(n) for n in self.shape):
            raise DataError(
                f"Detector: shape={self.shape!r}; two positive integers are needed, the pixels "
                "along the slow and the fast axis: shape=(1024, 1024)."
            )
        refuse_numbers("Detector", "pixel_size", self.pixel_size, (), low=0, cure="Give mm: 0.1.")
        refuse_numbers("Detector", "distance", self.distance, (), low=0, cure="Give mm: 100.0.")
        refuse_numbers("Detector", "rotation", self.rotation, (3,), cure="Give degrees.")
        refuse_numbers("Detector", "two_theta", self.two_theta, (), cure="Give degrees.")
        if self.beam_center is not None:
            refuse_numbers(
                "Detector", "beam_center", self.beam_center, (2,),
                cure="Give (Xbeam, Ybeam) in mm, or None for the middle.",
            )  # fmt: skip
        if self.oversample != "auto" and not is_count(self.oversample):
            raise DataError(
                f"Detector: oversample={self.oversample!r}; it must be an integer of 1 or more, or "
                "'auto'."
            )
        self._refuse_grazing()

    def _refuse_grazing(self) -> None:
        rotation, two_theta = known_values(self.rotation), known_values(self.two_theta)
        if rotation is None or two_theta is None:
            return
        _, about_y, about_z = np.radians(rotation)
        before = math.cos(about_y) * math.cos(about_z)  # beam . normal
        after = math.cos(about_y) * math.cos(about_z - math.radians(two_theta))
        if abs(before) < GRAZING or after * math.copysign(1.0, before) < GRAZING:
            raise DataError(
                f"Detector: rotation={rotation.tolist()} and two_theta={float(two_theta):g} "
                f"degrees leave cosines of {before:.3g} and {after:.3g} between the beam and the "
                "normal, without and with two_theta; both must have one sign and not be 0, else "
                "the beam runs along the detector or hits its back. Turn it by less."
            )


class Sources(NamedTuple):
    """Beams of their own direction and wavelength."""

    directions: Any  # (sources, 3) along which they travel, of any length
    wavelengths: Any  # (sources,) in Å
    weights: Any = None  # (sources,) relative; alike by default


@dataclass(frozen=True, eq=False)
class Beam:
    """The incoming beam.

    Parameters
    ----------
    wavelength : number, optional
        In Å; None where `sources` has them.
    polarization : number or None
        Kahn's factor K from -1 to 1, 1 being fully along the spindle and 0 unpolarised; None
        switches the polarisation factor off.
    fluence : number
        Photons/m^2, of all sources together.
    dispersion : number
        Width of the spectrum in percent of the wavelength, in `dispersion_steps` equal steps.
    dispersion_steps : int
        Wavelengths; their mean is `wavelength`.
    sources : Sources, optional
        Directions (sources, 3), wavelengths (sources,) and weights (sources,) instead.

    Raises
    ------
    DataError
        For wavelengths that are not positive, and parameters that contradict each other.

    Examples
    --------
    >>> Beam(6.2, dispersion=2.0, dispersion_steps=3).wavelength
    6.2
    """

    wavelength: Any = None
    polarization: Any = 0.0
    fluence: Any = FLUENCE
    dispersion: Any = 0.0
    dispersion_steps: int = 1
    sources: Sources | tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        cure = "Give Å: 1.0."
        if (self.wavelength is None) == (self.sources is None):
            raise DataError(
                f"Beam: wavelength={self.wavelength!r} and sources={self.sources!r}; exactly one "
                "of them is needed: Beam(1.0), or Beam(sources=Sources(directions, wavelengths))."
            )
        if not is_count(self.dispersion_steps):
            raise DataError(
                f"Beam: dispersion_steps={self.dispersion_steps!r}; it must be a positive integer."
            )
        refuse_numbers("Beam", "fluence", self.fluence, (), low=0, cure="Give photons/m^2.")
        refuse_numbers("Beam", "dispersion", self.dispersion, (), cure="Give percent: 1.0.")
        if self.polarization is not None:
            refuse_numbers("Beam", "polarization", self.polarization, (), cure="Give -1 to 1.")
            factor = known_values(self.polarization)
            if factor is not None and abs(factor) > 1:
                raise DataError(
                    f"Beam: polarization={float(factor):g}; Kahn's factor is from -1 to 1, or None "
                    "for no polarisation factor."
                )
        if self.wavelength is not None:
            refuse_numbers("Beam", "wavelength", self.wavelength, (), low=0, cure=cure)
        self._refuse_spectrum()
        if self.sources is not None:
            self._refuse_sources(cure)

    def _refuse_spectrum(self) -> None:
        width = known_values(self.dispersion)
        unspread = self.dispersion_steps == 1 or self.sources is not None
        if width is not None and width != 0 and unspread:
            have = "sources= have" if self.sources is not None else "dispersion_steps=1 has"
            raise DataError(
                f"Beam: dispersion={float(width):g} percent, but {have} no steps to spread it "
                "over. Take dispersion_steps=3 or more and one wavelength, or leave it out."
            )
        if width is not None and not 0 <= width < 200:
            raise DataError(
                f"Beam: dispersion={float(width):g} percent; it must be from 0 to below 200, "
                "where the shortest wavelength is 0."
            )

    def _refuse_sources(self, cure: str) -> None:
        assert self.sources is not None
        directions, wavelengths, weights = Sources(*self.sources)
        count = _length(wavelengths)
        refuse_numbers("Beam", "sources.wavelengths", wavelengths, (count,), low=0, cure=cure)
        refuse_numbers(
            "Beam", "sources.directions", directions, (count, 3),
            cure="Give one vector per wavelength.",
        )  # fmt: skip
        known = known_values(directions)
        if known is not None:
            lengths = np.linalg.norm(known, axis=1)
            slant = np.linalg.norm(known[:1, :2], axis=1)
            if count == 0 or not lengths.all() or slant[0] < GRAZING * lengths[0]:
                raise DataError(
                    f"Beam: sources.directions={known.tolist()}; at least one is needed, none may "
                    "be 0, and the first not along the polarisation axis (0, 0, 1)."
                )
        if weights is not None:
            refuse_numbers(
                "Beam", "sources.weights", weights, (count,), least=0,
                cure="Give one per wavelength, or None.",
            )  # fmt: skip
            heavy = known_values(weights)
            if heavy is not None and not heavy.sum() > 0:
                raise DataError("Beam: sources.weights are all 0; at least one must not be.")


@dataclass(frozen=True, eq=False)
class Crystal:
    """A crystal, its orientation and its structure factors.

    Parameters
    ----------
    cell : array (6,)
        a, b, c in Å and alpha, beta, gamma in degrees.
    cells : array (3,)
        Unit cells along a, b and c; whole numbers.
    misset : array (3,)
        Turns about x, then y, then z, in degrees, from a* along x and b* in the xy plane.
    table : StructureFactors or (values, minima), optional
        Structure factors in electrons, (nh, nk, nl), and the lowest h, k and l.
    default_factor : number
        Structure factor where the table has none; of all reflections without a table.
    mosaic : array (domains, 3, 3), optional
        Rotations of the mosaic domains, as `mosaic_rotations` makes them.
    phi, oscillation : number
        Start and width of the turn about the spindle, in degrees.
    phi_steps : int
        Steps, at phi + oscillation * (0, 1, ...) / steps.
    interpolation : str
        ``"nearest"``, ``"tricubic"``, or ``"constant"``, which reads no table. ``"auto"`` is
        constant without a table, tricubic where 1 or 2 cells along some axis make reflections
        broader than their spacing, and nearest else: the rule of nanoBragg.
    shape : str
        ``"square"`` or ``"round"``.
    fudge : number
        Scales the squared radius of a round crystal in reciprocal space.
    convention : str
        ``"nanobragg"``, the default, puts c* where that program does: its height over a* and b*
        takes V / (a b c) for the like ratio of the reciprocal cell. Cells with two right angles
        come out exactly; in others the angles are off, by 0.04 degrees at 75, 85, 95 and by 2 at
        60, 60, 60. ``"exact"`` has the angles of `cell`.

    Raises
    ------
    DataError
        For a degenerate cell, counts that are not positive integers, a table that holds NaN or is
        too small, and words that are none of those above, as far as the values are known.

    Examples
    --------
    >>> Crystal((100, 100, 100, 90, 90, 90)).resolved_interpolation()
    'constant'
    """

    cell: Any
    cells: Any = (5, 5, 5)
    misset: Any = (0.0, 0.0, 0.0)
    table: StructureFactors | tuple[Any, Any] | None = None
    default_factor: Any = 100.0
    mosaic: Any = None
    phi: Any = 0.0
    oscillation: Any = 0.0
    phi_steps: int = 1
    interpolation: Literal["auto", "nearest", "tricubic", "constant"] = "auto"
    shape: Literal["square", "round"] = "square"
    fudge: Any = 1.0
    convention: Literal["nanobragg", "exact"] = "nanobragg"

    def __post_init__(self) -> None:
        where = "Crystal"
        _refuse_cell(self.cell)
        refuse_numbers(where, "cells", self.cells, (3,), least=1, cure="Give (5, 5, 5).")
        counts = known_values(self.cells)
        if counts is not None and (counts != np.round(counts)).any():
            raise DataError(
                f"{where}: cells={counts.tolist()}; unit cells are whole numbers: round them."
            )
        for name, shape in (
            ("misset", (3,)), ("default_factor", ()), ("phi", ()), ("oscillation", ()),
        ):  # fmt: skip
            refuse_numbers(where, name, getattr(self, name), shape, cure="It must be finite.")
        refuse_numbers(where, "fudge", self.fudge, (), low=0, cure="1.0 changes nothing.")
        if not is_count(self.phi_steps):
            raise DataError(
                f"{where}: phi_steps={self.phi_steps!r}; it must be a positive integer."
            )
        if self.mosaic is not None:
            refuse_numbers(
                where, "mosaic", self.mosaic, (_length(self.mosaic), 3, 3),
                cure="Give rotation matrices (domains, 3, 3): mosaic_rotations(0.5, 10, seed=0).",
            )  # fmt: skip
            if _length(self.mosaic) == 0:
                raise DataError(f"{where}: mosaic has no domain. Give at least one, or None.")
        words = {
            "interpolation": ("auto", "nearest", "tricubic", "constant"),
            "shape": ("square", "round"),
            "convention": ("nanobragg", "exact"),
        }
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise DataError(
                    f"{where}: {name}={getattr(self, name)!r}; it must be one of {known}."
                )
        self._refuse_table()

    def resolved_interpolation(self) -> str:
        """Give the interpolation that ``"auto"`` stands for."""
        word = self._chosen_interpolation()
        if word == "tricubic" and self.table is not None and min(self.table[0].shape) < 4:
            raise DataError(
                f"Crystal: a table of {tuple(self.table[0].shape)} reflections is too small for "
                "interpolation='tricubic', which takes 4 along each axis. Use 'nearest'."
            )
        return word

    def _chosen_interpolation(self) -> str:
        if self.interpolation != "auto":
            return self.interpolation
        if self.table is None:
            return "constant"
        counts = known_values(self.cells)
        if counts is None:
            raise DataError(
                "Crystal: cells= are traced, so interpolation='auto' cannot read them. Name it: "
                "interpolation='nearest' or 'tricubic'."
            )
        return "tricubic" if bool((counts <= 2).any()) else "nearest"

    def _refuse_table(self) -> None:
        if self.table is None:
            if self.interpolation in ("nearest", "tricubic"):
                raise DataError(
                    f"Crystal: interpolation={self.interpolation!r} needs structure factors: "
                    "table=StructureFactors(values, minima), or interpolation='constant'."
                )
            return
        values, minima = self.table
        shape = tuple(getattr(values, "shape", ()))
        if len(shape) != 3 or 0 in shape or math.prod(shape) > MOST_ENTRIES:
            raise DataError(
                f"Crystal: the table has shape {shape}; (nh, nk, nl) is needed, all positive and "
                f"at most {MOST_ENTRIES} entries: StructureFactors(values, minima)."
            )
        if len(minima) != 3 or any(int(low) != low for low in minima):
            raise DataError(
                f"Crystal: the table has minima={minima!r}; three integers are needed, the lowest "
                "h, k and l."
            )
        known = known_values(values)
        if known is not None and not np.isfinite(known).all():
            wrong = np.argwhere(~np.isfinite(known))
            first = tuple(int(n) + int(low) for n, low in zip(wrong[0], minima, strict=True))
            raise DataError(
                f"Crystal: {len(wrong)} of {known.size} structure factors are not finite, first "
                f"that of {first}. Fill holes: values = np.nan_to_num(values, nan=0.0)."
            )


def _length(value: Any) -> int:
    shape = getattr(value, "shape", None)
    if shape is None:
        return len(value)
    return int(shape[0]) if shape else 0


def _refuse_cell(cell: Any) -> None:
    cure = "Give a, b, c in Å and alpha, beta, gamma in degrees: (100, 100, 100, 90, 90, 90)."
    refuse_numbers("Crystal", "cell", cell, (6,), low=0, cure=cure)
    known = known_values(cell)
    if known is None:
        return
    angles = np.radians(known[3:])
    half = angles.sum() / 2
    square = np.sin(half) * np.prod(np.sin(half - angles))
    if (known[3:] >= 180).any() or not 2 * math.sqrt(max(square, 0.0)) > FLAT:
        raise DataError(
            f"Crystal: cell={known.tolist()} has no volume: each angle must be less than the sum "
            f"of the other two, and all of them less than 360 degrees together. {cure}"
        )
