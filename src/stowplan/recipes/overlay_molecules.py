"""Molecules as overlays take them: about their centres, with principal frames and self-overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.kernels.overlay import self_overlap
from stowplan.ragged import Ragged
from stowplan.recipes.known import on_host
from stowplan.recipes.overlay_poses import quaternions_of
from stowplan.runs.execution import run
from stowplan.runs.planning import plan

__all__ = ["Molecules", "read_molecules"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Molecules:
    """Heavy atoms of many molecules.

    Attributes
    ----------
    points : Ragged (n, 3), float64
        In the input frame.
    dtype
        Floating dtype to compute in.
    """

    points: Ragged
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Atoms of each molecule."""
        return self.points.shapes[:, 0]

    @cached_property
    def centres(self) -> Array:
        """Centre of each molecule, (molecules, 3)."""
        return self._sums(self.points.values) / self.counts[:, None]

    @cached_property
    def centred(self) -> Ragged:
        """Atoms about the centre of their molecule, in the dtype to compute in."""
        return self.points.map_values(lambda _: self._about_centres.astype(self.dtype))

    @cached_property
    def frames(self) -> Array:
        """Quaternion of the rotation from each molecule's principal frame, (molecules, 4).

        Axes by falling moment of inertia, the first two to the side of the larger third moment,
        so that they turn with the molecule.
        """
        x = self._about_centres
        squares = self._sums((x[:, :, None] * x[:, None, :]).reshape(-1, 9)).reshape(-1, 3, 3)
        traces = np.trace(squares, axis1=1, axis2=2)[:, None, None]
        inertia = (traces * np.eye(3) - squares) / self.counts[:, None, None]
        axes = np.linalg.eigh(inertia)[1][:, :, ::-1]
        along = np.einsum("ax,axk->ak", x, np.repeat(axes, self.counts, axis=0)[:, :, :2])
        axes = axes[:, :, :2] * np.where(self._sums(along**3) < 0, -1.0, 1.0)[:, None, :]
        third = np.cross(axes[:, :, 0], axes[:, :, 1])
        return quaternions_of(np.concatenate([axes, third[:, :, None]], axis=2))

    def some(self, chosen: NDArray[np.intp]) -> Molecules:
        """Give some of the molecules."""
        return Molecules(self.points[chosen].compact(), self.dtype)

    def self_overlaps(self, alpha: float) -> Array:
        """Overlap of each molecule with itself, Angstrom^3."""
        columns = {"points": self.points.map_values(lambda _: self._about_centres)}
        made = plan(self_overlap, columns, on="numpy", budget="256 MB", order="cheapest")
        found: Array = run(self_overlap, columns, made, on="numpy", alpha=alpha)
        return found

    @cached_property
    def _about_centres(self) -> Array:
        about: Array = self.points.values - np.repeat(self.centres, self.counts, axis=0)
        return about

    def _sums(self, values: Array) -> Array:
        """Give sums over the atoms of each molecule."""
        found: Array = np.add.reduceat(values, self.points.starts, axis=0)
        return found


def read_molecules(where: str, given: Any, dtype: Any) -> Molecules:
    """Bring molecules to the host; refuse those that have no atom or no place.

    Parameters
    ----------
    where
        Begins the messages: the function and the argument.
    given
        Ragged or a list of arrays (n, 3).
    dtype
        Widest floating dtype to compute in; float32 where all coordinates are.
    """
    if isinstance(given, Ragged):
        whole = given.compact()
        if whole.shapes.shape[1] != 1 or tuple(whole.values.shape[1:]) != (3,):
            raise DataError(f"{where}: {given!r}; molecules are Ragged of coordinates (n, 3).")
        values, counts = on_host(whole.values), whole.shapes[:, 0]
    else:
        arrays = [_one(where, index, each) for index, each in enumerate(_listed(where, given))]
        counts = np.array([len(each) for each in arrays], np.int64)
        values = np.concatenate(arrays) if arrays else np.zeros((0, 3), np.float32)
    if not len(counts):
        raise DataError(f"{where}: no molecules. Give at least one, coordinates (n, 3).")
    if not counts.all():
        raise DataError(
            f"{where}: molecule {int(np.argmin(counts))} has no atoms; each needs one or more. "
            "Leave it out."
        )
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        ends = np.cumsum(counts)
        molecule = int(np.searchsorted(ends, row, side="right"))
        atom = row - int(ends[molecule] - counts[molecule])
        raise DataError(
            f"{where}: atom {atom} of molecule {molecule} is at {values[row].tolist()}; "
            "coordinates are finite. Leave the molecule out, or embed it again."
        )
    narrow = values.dtype.itemsize <= 4
    return Molecules(
        Ragged(values.astype(np.float64), counts), np.dtype(np.float32 if narrow else dtype)
    )


def _listed(where: str, given: Any) -> Sequence[Any]:
    if isinstance(given, list | tuple):
        return given
    if is_array_api_obj(given) and given.ndim == 3:
        return list(given)
    what = f"an array {tuple(given.shape)}" if is_array_api_obj(given) else type(given).__name__
    raise DataError(
        f"{where}: {what}; give a list of arrays (n, 3) or a Ragged of them; [points] for one."
    )


def _one(where: str, index: int, given: Any) -> NDArray[Any]:
    values = on_host(given)
    if values.ndim == 2 and values.shape[1] == 3 and values.dtype.kind in "fiu":
        return values
    if values.size == 0 and values.ndim < 3:
        return np.zeros((0, 3), np.float32)
    raise DataError(
        f"{where}: molecule {index} has shape {values.shape}, dtype {values.dtype}; coordinates "
        "are real numbers (n, 3), Angstrom."
    )
