"""Fields of which not even one block of lines fits the budget, on the host, slab by slab."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import BudgetError, PlanError
from stowplan.kernels.fields import ring_numbers, spectrum
from stowplan.memory import show_bytes
from stowplan.planners.pencils import PencilPlan, least_slab_bytes, plan_pencils
from stowplan.recipes.fields_checks import check_finite, check_mean, refuse_mean
from stowplan.recipes.fields_job import SLAB_SHARE, slab_budget
from stowplan.recipes.fields_pencils import RieszFactor, cut_regions, run_pencils
from stowplan.recipes.fields_rings import Rings, distances, wave_numbers
from stowplan.runs.fingerprints import digest
from stowplan.runs.side_by_side import progress_of
from stowplan.special import shared_segment_sum
from stowplan.stores.descriptors import bytes_view
from stowplan.stores.run_folder import LARGE, RunFolder
from stowplan.stores.scratch import Scratch
from stowplan.stores.space import require_space

if TYPE_CHECKING:
    from stowplan.declaration import Kernel
    from stowplan.recipes.fields_job import FieldJob, Rule

__all__ = ["solve_large", "sum_large"]

Region = tuple[slice, ...]

READ_SHARE = 4
"""What is read, with what its sums take, is one part in so many of a budget."""
SUM_BYTES = 64
"""Of sums, weights, distances and numbers of rings for each point in space of what was read."""
PART_BYTES = 1 << 20
"""Of a slab whose squares are taken at a time."""
MOST_EXPONENT = 1000
"""Of the power of two that values are multiplied by: it is finite, and so is its inverse."""


def solve_large(
    job: FieldJob,
    numbers: Sequence[int],
    targets: Sequence[Any],
    rules: Sequence[Rule],
    resume: str | PathLike[str] | None,
    *,
    progress: bool,
    mu: float,
    beta: float,
    lam: float,
) -> None:
    """Solve for some fields of a job by pencil passes, each into its target.

    With a folder to resume, fields that are done are not solved again.
    """
    plans = {number: _planned(job, number, "solve") for number in numbers}
    between = max(plan.scratch_bytes for plan in plans.values())
    with Scratch(None, job.where) if between else nullcontext() as scratch, \
            _folder(job, numbers, resume, mu, beta, lam) as folder:  # fmt: skip
        if scratch is not None:
            require_space([(scratch.folder, between, "modes between passes")], job.where)
        total = sum(plan.total_bytes for plan in plans.values())
        with progress_of(total, "B", progress=progress) as advance:
            for number, plan in plans.items():
                target = targets[number]
                if folder is not None and _is_done(folder, number, target, job):
                    advance(plan.total_bytes)
                    continue
                source = _Watched(job, number, rules)
                held = None
                if plan.scratch_bytes:
                    assert scratch is not None
                    held = scratch.create(plan.modes_shape, _complex(job.store.dtype))
                factor = RieszFactor(plan, _spacing_of(job), mu=mu, beta=beta, lam=lam)
                run_pencils(
                    plan, source, target, factor=factor, between=held,
                    done=partial(_moved, advance, source),
                )  # fmt: skip
                if held is not None and scratch is not None:
                    scratch.remove(held)
                if folder is not None:
                    size = math.prod(target.shape) * job.store.dtype.itemsize
                    folder.record(number, _checksum(target, job), size, target.name)


def _spacing_of(job: FieldJob) -> tuple[float, float, float]:
    """Give spacings in the order of the axes of a plan, which are sorted."""
    count = len(job.axes)
    paired = sorted(zip(job.axes, job.spacing[:count], strict=True))
    x, y, z = (*(step for _, step in paired), *job.spacing[count:])
    return x, y, z


def _moved(advance: Callable[[int], object], source: _Watched, size: int) -> None:
    """Note bytes that were read and written, and look at the field once all of it was read."""
    advance(size)
    source.judge()


def sum_large(
    job: FieldJob,
    numbers: Sequence[int],
    kernel: Kernel,
    rings: Sequence[Rings],
    *,
    check: bool,
    resume: str | PathLike[str] | None,
) -> dict[int, NDArray[Any]]:
    """Sum some fields of a job over shells of |k| or bins of the distance.

    With a folder to resume, fields that are done are not read again.
    """
    of_large = _spectrum_of if kernel is spectrum else _radial_of
    own = [(r.shape, r.spacing, r.width, r.centre) for r in (rings[number] for number in numbers)]
    found = {}
    with _folder(job, numbers, resume, kernel.name, own) as folder:
        done = {} if folder is None else folder.readable()
        for number in numbers:
            if number in done:
                (found[number],) = done[number][0]
                continue
            found[number] = of_large(job, number, rings[number], check)
            if folder is not None:
                folder.save(number, [found[number]])
    return found


def _spectrum_of(job: FieldJob, number: int, rings: Rings, check: bool) -> NDArray[Any]:
    """Sum the power of one field over shells, its modes on disk."""
    plan = _planned(job, number, "forward")
    size = math.prod(plan.modes_shape) * plan.itemsize
    with Scratch(None, job.where) as scratch:
        require_space([(scratch.folder, size, "the modes of a field")], job.where)
        modes = scratch.create(plan.modes_shape, _complex(job.store.dtype))
        run_pencils(plan, _Watched(job, number, [check_finite] if check else []), modes)
        shape = job.grids[number]
        halved = None if plan.halved is None else job.axes.index(plan.halved)
        waves = [
            np.abs(wave_numbers(n, step, half=axis == halved))
            for axis, (n, step) in enumerate(zip(shape, job.spacing, strict=True))
        ]
        weights = [np.ones(len(k)) for k in waves]
        if halved is not None:
            n = shape[halved]
            weights[halved][1 : (n + 1) // 2] = 2  # the other half is their mirror image
        return _summed(job, modes, rings, waves, weights, _power, float)


def _power(modes: NDArray[Any]) -> NDArray[np.float64]:
    """Give |a|^2 in float64: squares of float32 underflow below 1e-19 and overflow above 1e19."""
    power: NDArray[np.float64] = np.square(modes.real, dtype=np.float64)
    power += np.square(modes.imag, dtype=np.float64)
    return power


def _radial_of(job: FieldJob, number: int, rings: Rings, check: bool) -> NDArray[Any]:
    """Sum one field over bins of the distance."""
    assert rings.centre is not None
    away = distances(rings.shape, rings.spacing, rings.centre)
    source = _Watched(job, number, [check_finite] if check else [])
    wide = complex if job.store.dtype.kind == "c" else float
    return _summed(job, source, rings, away, [np.ones(len(a)) for a in away], np.asarray, wide)


def _summed(
    job: FieldJob,
    source: Any,
    rings: Rings,
    places: Sequence[NDArray[np.float64]],
    weights: Sequence[NDArray[np.float64]],
    values_of: Any,
    dtype: type,
) -> NDArray[Any]:
    """Sum values of all regions of an array over rings, numbered by three arrays along its axes."""
    axes = job.axes
    total: NDArray[Any] = np.zeros(len(rings.counts), dtype)
    most = job.budget.bytes // READ_SHARE
    wide = int(source.dtype.itemsize) + 2 * np.dtype(dtype).itemsize

    def size(lengths: Sequence[int]) -> int:
        points = math.prod(lengths[axis] for axis in axes)
        return wide * math.prod(lengths) + SUM_BYTES * points

    for region in cut_regions(source.shape, size, most):
        values = values_of(source.read_region(region))
        others = tuple(axis for axis in range(values.ndim) if axis not in axes)
        sums = values.sum(axis=others, dtype=dtype)
        sums = sums.transpose(np.argsort(np.argsort(axes))).reshape(
            [*[region[axis].stop - region[axis].start for axis in axes], *[1] * (3 - len(axes))]
        )
        parts = [region[axis] for axis in axes] + [slice(None)] * (3 - len(axes))
        x, y, z = (w[part] for w, part in zip(weights, parts, strict=True))
        sums = sums * (x[:, None, None] * y[:, None] * z)
        px, py, pz = (p[part] for p, part in zip(places, parts, strict=True))
        own = ring_numbers(px, py, pz, rings.width)
        total += shared_segment_sum(sums.reshape(-1), own.reshape(-1), len(total))
    return total


class _Watched:
    """A field whose regions are looked at as they are read, each of them once in a first pass."""

    def __init__(self, job: FieldJob, number: int, rules: Sequence[Rule]) -> None:
        self.job = job
        self.field = job.store.fields[number]
        self.shape, self.dtype = tuple(self.field.shape), self.field.dtype
        self.finite = check_finite in rules
        self.others = [axis for axis in range(len(self.shape)) if axis not in job.axes]
        wide = np.complex128 if self.dtype.kind == "c" else np.float64
        means = check_mean in rules
        self.sums = np.zeros([self.shape[a] for a in self.others], wide) if means else None
        self.squares, self.exponent = 0.0, -MOST_EXPONENT  # both sums are of values / 2^exponent
        self.left = math.prod(self.shape)

    def read_region(self, index: Region, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Give a hyper-rectangle of the field."""
        values: NDArray[Any] = self.field.read_region(index, into)
        begin = [part.start for part in index]
        if self.finite:
            check_finite(self.job.where, self.field.name, values, begin)
        if self.sums is not None:
            self._add(values, self.sums, [part.start for part in index])
        self.left -= values.size
        return values

    def _add(self, values: NDArray[Any], sums: NDArray[Any], begin: Sequence[int]) -> None:
        """Add values and their squares to the sums, by parts, in float64."""

        def size(lengths: Sequence[int]) -> int:
            return 2 * sums.itemsize * math.prod(lengths)

        most = min(PART_BYTES, values.nbytes // READ_SHARE)
        for index in cut_regions(values.shape, size, most):
            part = values[index]
            self._scale_to(float(np.abs(part).max()))
            place = tuple(
                slice(begin[axis] + index[axis].start, begin[axis] + index[axis].stop)
                for axis in self.others
            )
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told later
                scaled = np.multiply(part, 2.0**-self.exponent, dtype=sums.dtype)
                sums[place] += scaled.sum(axis=self.job.axes)
                flat = scaled.reshape(-1)
                self.squares += float(np.vdot(flat, flat).real)

    def _scale_to(self, peak: float) -> None:
        """Divide all sums so far by a power of two that brings a larger value near 1."""
        if not (math.isfinite(peak) and peak > 0) or self.sums is None:
            return
        exponent = min(math.frexp(peak)[1], MOST_EXPONENT)
        if exponent > self.exponent:
            less = math.ldexp(1.0, self.exponent - exponent)
            self.sums *= less
            self.squares *= less**2
            self.exponent = exponent

    def write_region(self, index: Region, values: NDArray[Any]) -> None:
        """Refuse: fields are read."""
        raise NotImplementedError(f"{self.field.name} is read, not written.")

    def judge(self) -> None:
        """Refuse a mean, once all of the field was read."""
        if self.sums is not None and self.left == 0:
            cells = math.prod(self.job.grids[self.job.store.fields.index(self.field)])
            scale = 2.0**self.exponent
            rms = math.sqrt(self.squares / math.prod(self.shape)) * scale
            means = np.abs(self.sums) / cells * scale
            refuse_mean(
                self.job.where, self.field.name, means, rms, cells, self.dtype, [], self.job.axes
            )
            self.sums = None


def _planned(job: FieldJob, number: int, kind: Any) -> PencilPlan:
    name = job.target.adapter.name
    field = job.store.fields[number]
    if name != "numpy":
        size = math.prod(job.grids[number]) * job.store.dtype.itemsize
        raise BudgetError(
            f"{job.where}: field {number} ({field.name}) has {show_bytes(size)} at each place of "
            f"its other axes, too much for the budget of {job.budget}. Give a larger one, or leave "
            f"on={name!r} out: NumPy passes through such fields slab by slab."
        )
    real = job.store.dtype.kind == "f"
    itemsize = _complex(job.store.dtype).itemsize
    try:
        return plan_pencils(
            field.shape, itemsize, budget=slab_budget(job.budget.bytes), axes=job.axes,
            kind=kind, real=real,
        )  # fmt: skip
    except BudgetError:
        least = least_slab_bytes(field.shape, itemsize, axes=job.axes, real=real) * SLAB_SHARE
        raise BudgetError(
            f"{job.where}: the budget is {job.budget}, below one slab of field {number} "
            f"({field.name}) of shape {tuple(field.shape)}, which takes {least} bytes with its "
            f"transform. Give budget={least} or more."
        ) from None


def _complex(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.result_type(dtype, np.complex64)


def _folder(
    job: FieldJob,
    numbers: Sequence[int],
    resume: str | PathLike[str] | None,
    *about: Any,
) -> Any:
    """Open the folder of what is done: beside that of the fields that are cut into blocks.

    ``about`` is what the results depend on beside fields, spacing and axes.
    """
    if resume is None:
        return nullcontext()
    parts = {f"field {number}": job.store.fields[number].identity() for number in numbers}
    parts["the numbers"] = (_spacing_of(job), tuple(sorted(job.axes)), *about)
    identity = {name: digest(value) for name, value in parts.items()}
    path = Path(resume)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise PlanError(
            f"{job.where}: resume={str(path)!r} is no folder of a run and none can be made there: "
            f"{error}."
        ) from error
    return RunFolder(path / LARGE, identity, job.where, batches=len(numbers))


def _is_done(folder: RunFolder, number: int, target: Any, job: FieldJob) -> bool:
    record = folder.records().get(number)
    return record is not None and record.crc32 == _checksum(target, job)


def _checksum(target: Any, job: FieldJob) -> int:
    total = 0

    def size(lengths: Sequence[int]) -> int:
        return int(target.dtype.itemsize) * math.prod(lengths)

    for region in cut_regions(target.shape, size, job.budget.bytes // READ_SHARE):
        values = np.ascontiguousarray(target.read_region(region))
        total = zlib.crc32(bytes_view(values), total)
    return total
