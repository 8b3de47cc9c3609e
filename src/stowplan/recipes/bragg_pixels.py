"""Detector, beam and crystal as the columns and shared parameters of the kernel `bragg`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from stowplan.errors import DataError, FrameworkError, PlanError
from stowplan.recipes.bragg_experiment import Beam, Crystal, Detector
from stowplan.recipes.bragg_geometry import (
    arrays_of,
    first_floating,
    kernel_arguments,
    pixel_columns,
)
from stowplan.recipes.known import is_count, on_host, widest
from stowplan.runs.places import Place, find_places

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What ``sp.plan`` and ``sp.run`` take for the kernel `intensity`, and where pixels belong."""

    columns: dict[str, Any]  # slow and fast index of each pixel, int16 where that holds them
    shared: dict[str, Any]  # arrays and static parameters
    detector: tuple[int, int]  # pixels along the slow and the fast axis
    region: NDArray[np.bool_] | None  # (slow, fast) pixels that are computed; None for all
    place: Place

    @property
    def pixels(self) -> int:
        """Number of pixels that are computed."""
        return int(self.columns["slow"].shape[0])

    def chunk(self, rows: int | None) -> int | None:
        """Give the pixels of a chunk of so many detector rows."""
        if rows is None:
            return None
        if not is_count(rows):
            raise PlanError(
                f"image: rows={rows!r}; a chunk has a whole number of detector rows, at least 1. "
                "Give rows=64, or leave it to the budget."
            )
        return int(rows) * self.detector[1]

    def assemble(self, values: Any) -> Any:
        """Put one value per computed pixel into an image, 0 elsewhere."""
        adapter = self.place.adapter
        xp = array_namespace(values)
        if self.region is None:
            return xp.reshape(values, self.detector)
        zero = xp.zeros((1,), dtype=values.dtype, device=adapter.device_of(values))
        places = np.full(self.detector, self.pixels, np.int64)
        places[self.region] = np.arange(self.pixels)
        places = adapter.index(places.reshape(-1), values)
        return xp.reshape(xp.take(xp.concat([values, zero]), places, axis=0), self.detector)


def prepare(
    crystal: Crystal,
    detector: Detector,
    beam: Beam,
    *,
    on: str | None = None,
    device: Any = None,
    dtype: str | None = None,
    region: Any = None,
    dmin: Any = 0.0,
    where: str = "image",
) -> Prepared:
    """Turn an experiment into columns and shared parameters of the kernel, for ``sp.run``.

    Parameters as in `image`; ``where`` is what messages begin with.

    Examples
    --------
    >>> import stowplan as sp
    >>> from stowplan.kernels.bragg import intensity
    >>> made = prepare(Crystal((100, 100, 100, 90, 90, 90)), Detector((4, 6)), Beam(1.0))
    >>> made.assemble(sp.run(intensity, made.columns, **made.shared)).shape
    (4, 6)
    """
    given = list(arrays_of([crystal, detector, beam, dmin]))
    source, target = find_places(where, given, on, device)
    place = source if given else target
    mask = None if region is None else _mask(where, detector.shape, region)
    shared = kernel_arguments(
        detector, beam, crystal, dmin=dmin, like=_like(where, given, place, dtype)
    )
    indices = pixel_columns(detector, mask)
    narrow = np.int16 if max(detector.shape) <= np.iinfo(np.int16).max else np.int32
    columns = {
        name: place.adapter.asarray(column.astype(narrow), place.device)
        for name, column in indices.items()
    }
    slow, fast = detector.shape
    return Prepared(columns, shared, (int(slow), int(fast)), mask, place)


def _like(where: str, given: list[Any], place: Place, dtype: str | None) -> Any:
    """Give an array of the framework, the dtype and the device of the image."""
    like = first_floating(given)
    if not given:
        zero = place.adapter.asarray(np.zeros((), np.float32), place.device)
        wide = np.zeros((), widest(array_namespace(zero)))
        like = place.adapter.asarray(wide, place.device)
    if dtype is None:
        return like
    xp = array_namespace(like)
    if dtype not in ("float32", widest(xp)):
        cure = "Give 'float32' or 'float64'."
        if dtype == "float64":
            cure = "JAX has it after jax.config.update('jax_enable_x64', True)."
        raise FrameworkError(
            f"{where}: dtype={dtype!r} is none that {place.adapter.name} computes images in. {cure}"
        )
    return xp.astype(like, getattr(xp, dtype))


def _mask(where: str, shape: tuple[int, int], region: Any) -> NDArray[np.bool_]:
    """Give a region as a mask of the detector."""
    if isinstance(region, tuple) and len(region) == 2 and _all_slices(region):
        for part, pixels, axis in zip(region, shape, ("slow", "fast"), strict=True):
            beyond = [n for n in (part.start, part.stop) if n is not None and abs(n) > pixels]
            if beyond:
                raise DataError(
                    f"{where}: region={region} reaches to {beyond[0]} along the {axis} axis; the "
                    f"detector has {pixels} pixels there. Give slices within it: "
                    f"np.s_[:{shape[0]}, :{shape[1]}]."
                )
        mask = np.zeros(shape, np.bool_)
        mask[region] = True
    else:
        mask = on_host(region)
        if mask.shape != tuple(shape) or mask.dtype != np.bool_:
            raise DataError(
                f"{where}: region of shape {mask.shape} and dtype {mask.dtype}; give a bool array "
                f"of the detector's shape, {tuple(shape)}, or two slices: np.s_[100:200, :50]."
            )
    if not mask.any():
        raise DataError(
            f"{where}: region holds none of the {mask.size} pixels. Leave it out for all of them: "
            "region=None."
        )
    return mask


def _all_slices(region: tuple[Any, ...]) -> bool:
    return all(isinstance(part, slice) for part in region)
