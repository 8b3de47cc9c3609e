"""Diffraction images: detector, beam and crystal in, an image out, chunk by chunk of its pixels.

>>> crystal = Crystal((100, 100, 100, 90, 90, 90), cells=(5, 5, 5))
>>> photons = image(crystal, Detector((64, 64)), Beam(6.2))
>>> photons.shape, float(photons.max().round(3))
((64, 64), 154.652)
"""

from __future__ import annotations

from typing import Any

from stowplan.io.reflections import StructureFactors
from stowplan.kernels.bragg import intensity
from stowplan.recipes.bragg_estimate import Estimate, estimate
from stowplan.recipes.bragg_experiment import Beam, Crystal, Detector, Sources
from stowplan.recipes.bragg_geometry import mosaic_rotations
from stowplan.recipes.bragg_pixels import Prepared, prepare
from stowplan.runs.execution import run

__all__ = [
    "Beam",
    "Crystal",
    "Detector",
    "Estimate",
    "Prepared",
    "Sources",
    "StructureFactors",
    "estimate",
    "image",
    "mosaic_rotations",
    "prepare",
]


def image(
    crystal: Crystal,
    detector: Detector,
    beam: Beam,
    *,
    on: str | None = None,
    device: Any = None,
    dtype: str | None = None,
    budget: float | str | None = None,
    rows: int | None = None,
    region: Any = None,
    dmin: Any = 0.0,
    compile: bool = False,
    progress: bool = False,
) -> Any:
    """Compute a diffraction image within a budget of memory.

    Any number in the parameters may be a tensor that requires grad or a traced value. The image is
    differentiable in all of them, and its backward pass recomputes one chunk of pixels at a time:
    it stays within the budget, too.

    Parameters
    ----------
    crystal, detector, beam
        What is imaged. Arrays among their numbers are of one framework and on one device; those
        of NumPy go with any.
    on, device
        Framework and device to compute on, by default those of the parameters. The image is an
        array of the parameters' framework; of `on`, or of NumPy, where they are plain numbers and
        NumPy arrays.
    dtype
        ``"float64"`` or ``"float32"``; that of the first array by default, float64 for plain
        numbers and NumPy arrays (float32 in JAX without 64 bits).
    budget
        Most bytes that the image and its gradient, if one is recorded, take at their peak:
        ``"2 GiB"``, or a share of the free memory, 0.5; as in ``sp.plan``. A chunk may be less than
        a row of the detector.
    rows
        Chunks by hand: as many pixels as so many detector rows have.
    region
        Pixels that are wanted, a bool array of the detector's shape or two slices,
        ``np.s_[100:200, :50]``. The others are 0, and cost neither time nor memory of a chunk.
    dmin
        Leave out what scatters beyond this spacing in Å; 0 leaves out nothing.
    compile
        torch only: one compiled graph for each size of a chunk.
    progress
        Show a progress bar over chunks.

    Returns
    -------
    array (slow, fast)
        Photons of each pixel.

    Raises
    ------
    DataError
        For a region of another shape or dtype, or without pixels, and as in `kernel_arguments`.
    PlanError, BudgetError
        For `rows` below 1, and for a budget that not even one pixel satisfies.
    FrameworkError
        For arrays of two frameworks or on two devices, another dtype, `progress` or a `budget`
        under a trace, and tensors that require grad on another framework or device.

    Examples
    --------
    >>> import numpy as np
    >>> crystal = Crystal((100, 100, 100, 90, 90, 90), mosaic=mosaic_rotations(0.3, 10))
    >>> photons = image(crystal, Detector((64, 64)), Beam(6.2), budget="1 MiB")
    >>> cut = image(crystal, Detector((64, 64)), Beam(6.2), region=np.s_[:, 10:20])
    >>> bool(np.allclose(cut[:, 10:20], photons[:, 10:20])), float(cut[:, :10].max())
    (True, 0.0)
    """
    made = prepare(
        crystal, detector, beam, on=on, device=device, dtype=dtype, region=region, dmin=dmin
    )
    values = run(
        intensity, made.columns, on=on, device=device, rows=made.chunk(rows), progress=progress,
        budget=budget, compile=compile, **made.shared,
    )  # fmt: skip
    return made.assemble(values)
