"""Fields on periodic grids, larger than memory where they must be: solved, summed and fitted.

>>> import numpy as np
>>> source = np.cos(2 * np.pi * np.arange(8) / 8).reshape(8, 1, 1) * np.ones((8, 8, 8))
>>> potential = solve(source, spacing=1.0)
>>> bool(np.allclose(potential, source / (2 * np.pi / 8) ** 2))
True
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from stowplan.errors import DataError, PlanError
from stowplan.kernels import fields as kernels
from stowplan.planners.batches import Plan
from stowplan.recipes.fields_checks import (
    check_finite,
    check_mean,
    check_numbers,
    check_range,
    checked_number,
)
from stowplan.recipes.fields_estimate import FieldEstimate, estimate
from stowplan.recipes.fields_job import FieldJob
from stowplan.recipes.fields_rings import RadialSums, Rings, RingSums, ShellSums, bins, shells
from stowplan.recipes.fields_tail import Tail, fit_tail, tail_window
from stowplan.recipes.fields_targets import FieldTargets
from stowplan.stores.manifest import has_records
from stowplan.stores.run_folder import LARGE

__all__ = ["FieldEstimate", "Profiles", "estimate", "radial", "solve", "spectrum", "tail"]

Spacing = float | Sequence[float]
Grid = tuple[int, int, int]
Resume = str | PathLike[str] | None
Sums = TypeVar("Sums", bound=RingSums)


@dataclass(frozen=True)
class Profiles(Generic[Sums]):
    """Sums over rings of several fields.

    Attributes
    ----------
    each : list of ShellSums or RadialSums
        One for each field, in their order.
    names : list of str
    plan : Plan or None
        What was read and computed, in which batches; None where all fields were passed through
        slab by slab.
    """

    each: list[Sums]
    names: list[str]
    plan: Plan | None

    def __len__(self) -> int:
        return len(self.each)

    def __getitem__(self, number: int) -> Sums:
        return self.each[number]

    @property
    def total(self) -> Sums:
        """All fields together, which must have one grid."""
        return functools.reduce(lambda one, other: one + other, self.each)


def solve(
    store: Any,
    *,
    spacing: Spacing,
    beta: float = 1.0,
    mu: float = 1.0,
    lam: float = 0.0,
    axes: Sequence[int] = (0, 1, 2),
    out: Any = None,
    overwrite: bool = False,
    on: str | None = None,
    device: Any = None,
    rows: int | None = None,
    budget: float | str | None = 0.8,
    resume: Resume = None,
    check: bool = False,
    progress: bool = False,
) -> Any:
    r"""Solve (mu (-nabla^2)^beta + lam) a = s on a periodic grid, for each field s of a store.

    Parameters
    ----------
    store
        Fields: a path of one, a pattern such as ``"run/*.npy"``, a zarr group, an array, or a list
        of paths and arrays; real or complex, all of one dtype, which is kept.
    spacing : number, or one for each of `axes`
        Of the grid, > 0, in a unit of length.
    beta, mu, lam : float
        > 0, > 0 and >= 0. beta = 1 is Poisson's equation; lam = kappa^2 mu screens it. With lam = 0
        sources must have no mean, and that of a is 0.
    axes
        Those in space, three at most; along all others each place is a source of its own.
    out
        Where potentials go: a path (``.npy``, ``.zarr``, ``.h5::dataset``), whose first axis counts
        the fields unless one was given by itself; or a folder, with a file for each field. None
        keeps them in memory.
    overwrite
        Whether files that are there are replaced.
    on, device
        Framework and device to compute on; those of the fields by default, NumPy for files.
    rows
        Blocks of lines in a batch; as a cache likes it by default.
    budget
        Most bytes beside the fields and results that are in memory: a share of what is free, bytes
        or text such as "2 GiB".
    resume
        Folder of a run that was cut off, or a new one. Goes with `out`.
    check
        Whether NaN and infinity are looked for, and refused.
    progress
        Show a progress bar in bytes.

    Returns
    -------
    array, StoredArray or list of them
        Potentials with the shapes and the dtype of the fields; a list unless one field was given by
        itself.

    Raises
    ------
    DataError
        For numbers out of their range, or with which ``mu |k|^(2 beta)`` leaves that of the dtype,
        as in float32 with metres between atoms; fields of two dtypes, a source with a mean where
        lam = 0, and outputs that are there already.
    BudgetError
        Where not even one slab of a field fits, with the bytes that would be enough.

    Notes
    -----
    Fields are cut into blocks of lines. One whose points alone exceed the budget is transformed by
    pencil passes, along some of its axes at a time, through the output.

    Examples
    --------
    >>> import numpy as np
    >>> source = np.zeros((4, 4, 4))
    >>> source[0, 0, 0], source[2, 2, 2] = 1, -1
    >>> float(solve(source, spacing=0.5).sum().round(12))
    0.0
    """
    where = "fields.solve"
    mu, beta, lam = check_numbers(where, mu=mu, beta=beta, lam=lam)
    if resume is not None and out is None:
        raise DataError(
            f"{where}: resume={fspath(resume)!r} goes with out=: what is in memory is lost with "
            "the process. Name an output: out='potentials.npy'."
        )
    job = FieldJob.of(where, store, spacing, axes, budget, on, device)
    for grid in set(job.grids):
        check_range(where, job.store.dtype, grid, job.spacing, mu=mu, beta=beta, lam=lam)
    rules = [check_finite] if check else []
    rules += [check_mean] if lam == 0 else []
    targets = FieldTargets.make(
        where, job.store, lambda: job.blocks, out, overwrite=overwrite,
        resumable=resume is not None,
        resume=resume is not None and any(map(has_records, (resume, Path(resume) / LARGE))),
        back=job.given_back,
    )  # fmt: skip
    try:
        job.solve(targets.fields, rules, rows, resume, progress, mu=mu, beta=beta, lam=lam)
    except BaseException as error:
        refused = type(error) is PlanError  # a folder of another run: nothing was written
        targets.abandon(keep=resume is not None, new=not refused)
        raise
    return targets.finish()


def spectrum(
    store: Any,
    *,
    spacing: Spacing,
    axes: Sequence[int] = (0, 1, 2),
    width: float | None = None,
    on: str | None = None,
    device: Any = None,
    rows: int | None = None,
    budget: float | str | None = 0.8,
    resume: Resume = None,
    check: bool = False,
    progress: bool = False,
) -> Profiles[ShellSums]:
    """Sum the power of fields over shells of wave numbers, with how many modes each shell has.

    The power of a mode is ``|a_k|^2``, its shell that of ``|k|``.

    Parameters
    ----------
    store, spacing, axes, on, device, rows, budget, resume, check, progress
        See `solve`.
    width : float, optional
        Of a shell; the largest 2 pi / (N dx) of all axes where it is not given, and no less.

    Returns
    -------
    Profiles of ShellSums
        One for each field; ``.total`` of those on one grid.

    Examples
    --------
    >>> import numpy as np
    >>> field = np.random.default_rng(0).normal(size=(8, 8, 8, 5))
    >>> found = spectrum(field, spacing=0.1)
    >>> bool(np.isclose(found.total.sums.sum(), (field**2).sum()))  # Parseval
    True
    """
    job = FieldJob.of("fields.spectrum", store, spacing, axes, budget, on, device)
    width = _checked_width("fields.spectrum", width)
    if width is None:
        width = max(shells(grid, job.spacing).width for grid in set(job.grids))
    rings = _rings_of(job.grids, lambda grid: shells(grid, job.spacing, width))
    sums, made = job.sums(
        kernels.spectrum, check, rows, resume, progress, rings,
        width=np.asarray([rings[0].width]),
    )  # fmt: skip
    return Profiles([ShellSums.of(r, s, n) for r, s, n in sums], job.names, made)


def radial(
    store: Any,
    *,
    spacing: Spacing,
    centre: Sequence[float] | None = None,
    axes: Sequence[int] = (0, 1, 2),
    width: float | None = None,
    on: str | None = None,
    device: Any = None,
    rows: int | None = None,
    budget: float | str | None = 0.8,
    resume: Resume = None,
    check: bool = False,
    progress: bool = False,
) -> Profiles[RadialSums]:
    """Sum fields, with their sign, over bins of the distance from a centre.

    Parameters
    ----------
    store, spacing, axes, on, device, rows, budget, resume, check, progress
        See `solve`.
    centre : one number for each of `axes`, optional
        In cells; the cell N // 2 of each axis where it is not given. Distances are to its nearest
        periodic image.
    width : float, optional
        Of a bin; the largest spacing where it is not given, and no less.

    Returns
    -------
    Profiles of RadialSums
        One for each field; ``.total`` of those on one grid.

    Examples
    --------
    >>> import numpy as np
    >>> found = radial(np.ones((4, 4, 4)), spacing=0.5)
    >>> found[0].mean[:3].tolist(), found[0].radii[:2].round(3).tolist()
    ([1.0, 1.0, 1.0], [0.0, 0.638])
    """
    job = FieldJob.of("fields.radial", store, spacing, axes, budget, on, device)
    middle, width = job.padded_centre(centre), _checked_width("fields.radial", width)
    rings = _rings_of(job.grids, lambda grid: bins(grid, job.spacing, middle, width))
    if len({ring.centre for ring in rings}) > 1:
        raise DataError(
            "fields.radial: the fields have several grids, and so several middles. Give centre=, "
            "in cells."
        )
    wide = max(ring.width for ring in rings)
    rings = _rings_of(job.grids, lambda grid: bins(grid, job.spacing, middle, wide))
    sums, made = job.sums(
        kernels.radial, check, rows, resume, progress, rings,
        width=np.asarray([wide]), centre=np.asarray(rings[0].centre),
    )  # fmt: skip
    return Profiles([RadialSums.of(r, s, n) for r, s, n in sums], job.names, made)


def tail(
    store: Any,
    *,
    spacing: Spacing,
    centre: Sequence[float] | None = None,
    window: tuple[float, float] | None = None,
    axes: Sequence[int] = (0, 1, 2),
    on: str | None = None,
    device: Any = None,
    rows: int | None = None,
    budget: float | str | None = 0.8,
    resume: Resume = None,
    check: bool = False,
    progress: bool = False,
) -> list[Tail]:
    """Fit c r^p + b + d r^2 to the radial means of each field, with a 95 % interval of p.

    Parameters
    ----------
    store, spacing, centre, axes, on, device, rows, budget, resume, check, progress
        See `radial`.
    window : (float, float), optional
        Distances that are fitted, in units of length; beyond 8 and below 0.45 N cells by default.

    Returns
    -------
    list of Tail
        One for each field. Real parts of complex fields are fitted.

    Raises
    ------
    DataError
        For a window with too few points, and a field without a power-law tail in it.

    Examples
    --------
    The potential of a Gaussian of 2 cells falls as 1/r:

    >>> import numpy as np
    >>> r = (np.arange(48) - 24.0) ** 2
    >>> source = np.exp(-(r[:, None, None] + r[:, None] + r) / (2 * 2**2))
    >>> potential = solve(source - source.mean(), spacing=1.0)
    >>> (fit,) = tail(potential, spacing=1.0)
    >>> -1.1 < fit.power < -0.9
    True
    """
    window = _checked_window(window)
    found = radial(
        store, spacing=spacing, centre=centre, axes=axes, on=on, device=device, rows=rows,
        budget=budget, resume=resume, check=check, progress=progress,
    )  # fmt: skip
    return [_tail_of(*one, window) for one in zip(found.names, found.each, strict=True)]


def _tail_of(name: str, sums: RadialSums, window: tuple[float, float] | None) -> Tail:
    """Fit the tail of one field, which errors name."""
    try:
        low, high = window or tail_window(sums)
        inside = (sums.radii > low) & (sums.radii < high)
        if not np.isfinite(sums.mean[inside]).all():
            raise DataError(
                f"its means are not finite in the window {low, high}. check=True names the first "
                "value that is not; mend the field, or leave it out."
            )
        return fit_tail(sums.radii, sums.mean.real, (low, high))
    except DataError as error:
        reason = str(error).removeprefix("fit_tail: ").removeprefix("tail_window: ")
        raise DataError(f"fields.tail: {name}: {reason}") from None


def _checked_window(window: Any) -> tuple[float, float] | None:
    if window is None:
        return None
    try:
        low, high = (float(end) for end in window)
    except (TypeError, ValueError):
        raise DataError(
            f"fields.tail: window={window!r} is not two distances. Give them in units of length, "
            "the smaller first: window=(8.0, 40.0)."
        ) from None
    return low, high


def _checked_width(where: str, width: float | None) -> float | None:
    if width is None:
        return None
    return checked_number(where, "width", width, "Give that of a ring, or leave it out")


def _rings_of(grids: Sequence[Grid], make: Callable[[Grid], Rings]) -> list[Rings]:
    """Give the rings of each grid, made once for all that are the same."""
    made = {grid: make(grid) for grid in set(grids)}
    return [made[grid] for grid in grids]
