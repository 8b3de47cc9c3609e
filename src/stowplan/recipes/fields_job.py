"""One call on fields: cut into blocks that a kernel takes, or passed along one axis at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.adapters import Adapter, get_adapter
from stowplan.declaration import Kernel
from stowplan.errors import DataError, FrameworkError
from stowplan.fourier import is_short
from stowplan.kernels import fields as kernels
from stowplan.memory import Budget, resolve_budget
from stowplan.planners.batches import Plan
from stowplan.ragged import Ragged
from stowplan.recipes.fields_checks import (
    check_finite,
    check_mean,
    checked_axes,
    checked_spacing,
)
from stowplan.recipes.fields_rings import Rings
from stowplan.recipes.fields_store import FieldStore, ScaledField, open_fields
from stowplan.runs.engine import saved_plan
from stowplan.runs.execution import run
from stowplan.runs.places import Place, find_places
from stowplan.runs.planning import plan
from stowplan.stores.field_blocks import Block, FieldBlocks, cut_fields

__all__ = ["FieldJob", "SLAB_SHARE", "block_bytes", "passes_by_slabs", "slab_budget"]

Rule = Callable[..., None]
"""Refuses values that it is given, with where, name, field and where the field begins."""

HOST_BLOCK_BYTES = 1 << 26
"""Of a block for NumPy, whose transform takes as many lines at a time as a cache holds."""
CACHED_PARTS = 4
"""Blocks that make what a cache likes of a batch, for others, whose transforms take it all."""
BLOCKS, SUMMED_BLOCKS = 16, 8
"""Blocks are cut so that a budget holds as many; the second where NumPy has sums alone to keep."""
READ_SHARE, BESIDE_BYTES = 0.95, 8 << 20
"""Of a budget, for blocks whose sums are done as soon as they are read, and what is left of that
to all else."""
SLAB_SHARE = 2
"""A slab takes one part in so many of a budget."""
LEAST_BLOCKS = 14
"""A budget with fewer blocks of one line has no room for them: two are read, some computed."""


class FieldJob:
    """Fields of a store with their grids, and the blocks that they are cut into.

    Attributes
    ----------
    store : FieldStore
    blocks : list of Block
    spacing : (float, float, float)
    grids : list of (int, int, int)
        Points along x, y and z of each field; 1 where there is no such axis.
    names : list of str
    """

    def __init__(
        self,
        where: str,
        store: FieldStore,
        spacing: tuple[float, float, float],
        axes: tuple[int, ...],
        target: Place,
        budget: Budget,
        given: float | str | None,
    ) -> None:
        self.where = where
        self.store = store
        self.spacing = spacing
        self.axes = axes
        self.target = target
        self.budget = budget
        self.given = given
        self.plan: Plan | None = None
        self.names = [field.name for field in store.fields]
        shapes = [tuple(field.shape) for field in store.fields]
        self.grids = [_grid(shape, axes) for shape in shapes]

    @functools.cached_property
    def blocks(self) -> list[Block]:
        """What the fields are cut into where results are as large: for terabytes some 100 000."""
        return self._cut(block_bytes(self.target.adapter, self.target.device, self.budget.bytes))

    def _cut_to_sum(self, kernel: Kernel, rows: int | None) -> list[Block]:
        """Cut the fields where no more than sums comes out, for so many rows, or as it is best.

        In NumPy reading is what takes the time unless transforms are long. So fields are read
        whole where there is room for two, and else in pieces that are as large as they can be.
        """
        adapter, budget = self.target.adapter, self.budget.bytes
        most = block_bytes(adapter, self.target.device, budget, summed=True)
        read = kernel is kernels.radial or all(map(is_short, self.grids))
        if adapter.name == "numpy" and read and rows is None:
            room = int(budget * READ_SHARE) - BESIDE_BYTES
            whole = max(math.prod(field.shape) for field in self.store.fields)
            whole *= self.store.dtype.itemsize
            most = whole if whole <= room // 2 else max(most, room // 4)
            most = min(most, HOST_BLOCK_BYTES)
        return self._cut(most)

    def _cut(self, most_bytes: int) -> list[Block]:
        """Cut the fields; where blocks of a grid differ some are padded copies, which have room."""
        shapes = [tuple(field.shape) for field in self.store.fields]
        itemsize = self.store.dtype.itemsize
        few = block_bytes(self.target.adapter, self.target.device, self.budget.bytes)
        blocks = cut_fields(shapes, self.axes, itemsize, most_bytes)
        if most_bytes <= few or self._are_alike(blocks):
            return blocks
        return cut_fields(shapes, self.axes, itemsize, few)

    def _are_alike(self, blocks: Sequence[Block]) -> bool:
        """Whether blocks of fields on one grid have as many lines."""
        lines: dict[tuple[int, ...], int] = {}
        for block in blocks:
            points = math.prod(part.stop - part.start for part in block.index)
            if lines.setdefault(self.grids[block.field], points) != points:
                return False
        return True

    @classmethod
    def of(
        cls,
        where: str,
        store: Any,
        spacing: float | Sequence[float],
        axes: Sequence[int],
        budget: float | str | None,
        on: str | None,
        device: Any,
    ) -> FieldJob:
        """Open a store and see what is to be computed where."""
        opened = open_fields(store, where)
        own = _checked_axes(where, axes, opened)
        steps = _three(where, spacing, own)
        source = get_adapter(opened.framework or "numpy")
        like = source.asarray(
            np.zeros(1, _real_dtype(opened.dtype)), opened.device or source.devices()[0]
        )
        _, target = find_places(where, [like], on, device)
        limit = resolve_budget(
            budget, lambda: target.free_bytes(where), where, device=str(target.device)
        )
        return cls(where, opened, steps, own, target, limit, budget)

    def given_back(self, array: NDArray[Any]) -> Any:
        """Bring a result to where the fields are."""
        if self.store.framework in (None, "numpy"):
            return array
        return get_adapter(self.store.framework).asarray(array, self.store.device)

    def padded_centre(self, centre: Sequence[float] | None) -> Sequence[float] | None:
        """Give a centre along x, y and z, from one number for each axis in space."""
        if centre is None:
            return None
        try:
            given = np.asarray(centre, np.float64)
        except (TypeError, ValueError):
            given = np.asarray(np.nan)
        if given.shape != (len(self.axes),):
            raise DataError(
                f"{self.where}: centre={centre!r}; give {len(self.axes)} numbers in cells, one for "
                f"each of axes={self.axes}."
            )
        padded: list[float] = [*given.tolist(), *[0.0] * (3 - len(self.axes))]
        return padded

    def solve(
        self,
        targets: Sequence[Any],
        rules: Sequence[Rule],
        rows: int | None,
        resume: str | PathLike[str] | None,
        progress: bool,
        **numbers: float,
    ) -> None:
        """Solve for each field into its target."""
        large = self._larger_than_budget()
        if large:
            from stowplan.recipes.fields_large import solve_large

            solve_large(self, large, targets, rules, resume, progress=progress, **numbers)
        blocks = [block for block in self.blocks if block.field not in large]
        if not blocks:
            return
        out = FieldBlocks(targets, blocks, self.axes)
        self._run(kernels.riesz, blocks, rules, rows, resume, progress, out=out, **numbers)

    def sums(
        self,
        kernel: Kernel,
        check: bool,
        rows: int | None,
        resume: str | PathLike[str] | None,
        progress: bool,
        rings: Sequence[Rings],
        *,
        scaled: bool = True,
        **shared: Any,
    ) -> tuple[list[tuple[Rings, NDArray[Any], int]], Plan | None]:
        """Sum each field over its rings; give these, the sums and the lines that were summed.

        Where sums are out of range a field is summed again, ``scaled``.
        """
        wide = np.complex128 if kernel is kernels.radial and self.store.dtype.kind == "c" else float
        sums = [np.zeros(len(ring.counts), wide) for ring in rings]
        large = self._larger_than_budget()
        with np.errstate(over="ignore", invalid="ignore"):  # what is out of range is made again
            if large:
                from stowplan.recipes.fields_large import sum_large  # most fields are small

                found = sum_large(self, large, kernel, rings, check=check, resume=resume)
                for number, part in found.items():
                    sums[number] += part
            blocks = [block for block in self._cut_to_sum(kernel, rows) if block.field not in large]
            rules = [check_finite] if check else []
            if blocks:
                parts = self._run(kernel, blocks, rules, rows, resume, progress, **shared)
                for block, part in zip(blocks, parts, strict=True):
                    sums[block.field] += part
        if scaled:
            for number in range(len(sums)):
                sums[number] = self._in_range(number, kernel, sums[number], rings[number], shared)
        lines = [
            math.prod(field.shape) // math.prod(grid)
            for field, grid in zip(self.store.fields, self.grids, strict=True)
        ]
        return list(zip(rings, sums, lines, strict=True)), self.plan

    def _in_range(
        self,
        number: int,
        kernel: Kernel,
        sums: NDArray[Any],
        rings: Rings,
        shared: dict[str, Any],
    ) -> NDArray[Any]:
        """Sum a field anew, scaled by a power of two, where its sums left the range of its dtype.

        Powers are squares: those of float32 leave it above 1e19, and lose digits below 1e-12.
        """
        field, power = self.store.fields[number], 2 if kernel is kernels.spectrum else 1
        limits = np.finfo(field.dtype)
        least = float(limits.tiny) / float(limits.eps) ** 2 * math.prod(field.shape)
        if np.isfinite(sums).all() and (power == 1 or sums.sum() > least):
            return sums
        peak = self._peak(field)
        if peak == 0 or not math.isfinite(peak):
            return sums
        exponent = math.frexp(peak)[1]
        if power == 1:  # only too much is out of range
            exponent += math.prod(field.shape).bit_length()
        again = FieldJob(
            self.where,
            FieldStore([ScaledField(field, -exponent)], single=True,
                       framework=self.store.framework, device=self.store.device),
            self.spacing, self.axes, self.target, self.budget, self.given,
        )  # fmt: skip
        found = again.sums(kernel, False, None, None, False, [rings], scaled=False, **shared)
        with np.errstate(over="ignore", under="ignore"):
            sums = found[0][0][1]
            for _ in range(power):
                for part in (exponent // 2, exponent - exponent // 2):
                    sums = sums * math.ldexp(1.0, part)
        if not np.isfinite(sums).all():
            raise DataError(
                f"{self.where}: field {number} ({field.name}) has values up to {peak:.3g}, and its "
                f"sums leave the range of float64. Scale it, field / {peak:.1g}, and the sums back."
            )
        return sums

    def _peak(self, field: Any) -> float:
        """Give the largest modulus of real and imaginary parts; inf where one is not finite."""
        peak = 0.0
        shape = tuple(field.shape)
        most = min(HOST_BLOCK_BYTES, self.budget.bytes // BLOCKS)
        for block in cut_fields([shape], (), field.dtype.itemsize, most):
            values = np.asarray(field.read_region(block.index))
            for part in (values.real, values.imag) if values.dtype.kind == "c" else (values,):
                one = float(np.abs(part).max())
                peak = max(peak, one if math.isfinite(one) else math.inf)
        return peak

    def _run(
        self,
        kernel: Kernel,
        blocks: Sequence[Block],
        rules: Sequence[Rule],
        rows: int | None,
        resume: str | PathLike[str] | None,
        progress: bool,
        out: Any = None,
        **shared: Any,
    ) -> Any:
        check = self._check(rules, resume)
        source = FieldBlocks(self.store.fields, blocks, self.axes, check)
        source.read_ahead()
        name = kernel.arguments[0]
        data = {name: Ragged.from_layout(source, source.layout)}
        place = {"on": self.target.adapter.name, "device": self.target.device}
        shared = {**shared, "spacing": np.asarray(self.spacing)}
        dtype = self._dtype_of_numbers()
        shared = {
            name: value.astype(dtype) if isinstance(value, np.ndarray) else value
            for name, value in shared.items()
        }
        self.plan = saved_plan(resume, self.given)
        if self.plan is None:
            self.plan = plan(
                kernel, data, **place, rows=rows, budget=self.given, on_disk=out is not None,
                **shared,
            )  # fmt: skip
        return run(
            kernel, data, self.plan, **place, out=out, resume=resume, progress=progress, **shared
        )

    def _dtype_of_numbers(self) -> np.dtype[Any]:
        """Give float64 where the framework has it, or else the real dtype of the fields."""
        wide = np.dtype(np.float64)
        try:
            self.target.adapter.asarray(np.zeros(1, wide), self.target.device)
        except (FrameworkError, TypeError):
            return _real_dtype(self.store.dtype)
        return wide

    def _check(
        self, rules: Sequence[Rule], resume: str | PathLike[str] | None
    ) -> Callable[[Any, Block, NDArray[Any]], None] | None:
        """Give what looks at each block that was read."""
        if not rules:
            return None

        def check(field: Any, block: Block, values: NDArray[Any]) -> None:
            begin = [part.start for part in block.index]
            try:
                for rule in rules:
                    if rule is check_mean:
                        turned, others = self._in_space_first(values)
                        places = [begin[axis] for axis in others]
                        rule(self.where, field.name, turned, places, self.axes)
                    else:
                        rule(self.where, field.name, values, begin)
            except DataError as error:
                if resume is None:
                    raise
                raise DataError(
                    f"{error} Mended fields are other data, and no run goes on with them: name "
                    "another folder, resume='new-folder'."
                ) from None

        return check

    def _in_space_first(self, values: NDArray[Any]) -> tuple[NDArray[Any], list[int]]:
        """Give values of a field with three axes in space in front of the others, and these."""
        others = [axis for axis in range(values.ndim) if axis not in self.axes]
        turned = values.transpose([*self.axes, *others])
        lengths, rest = turned.shape[: len(self.axes)], turned.shape[len(self.axes) :]
        return turned.reshape([*lengths, *[1] * (3 - len(lengths)), *rest]), others

    def _larger_than_budget(self) -> list[int]:
        """Number the fields of which not even a few blocks of one line fit."""
        size = self.store.dtype.itemsize
        return [
            number
            for number, grid in enumerate(self.grids)
            if passes_by_slabs(math.prod(grid) * size, self.budget.bytes)
        ]


def block_bytes(adapter: Adapter, device: Any, budget: int, *, summed: bool = False) -> int:
    """Bytes of a block that are liked, of which a budget holds several; `summed` if none go out."""
    if adapter.name == "numpy":
        return min(HOST_BLOCK_BYTES, budget // (SUMMED_BLOCKS if summed else BLOCKS))
    return min(adapter.batch_bytes(device) // CACHED_PARTS, budget // BLOCKS)


def passes_by_slabs(place_bytes: int, budget: int) -> bool:
    """Whether the points at one place of the other axes are too much for blocks in a budget."""
    return place_bytes * LEAST_BLOCKS > budget


def slab_budget(budget: int) -> int:
    """Bytes of a slab: transforms need room of their own."""
    return max(budget // SLAB_SHARE, 1)


def _real_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.empty(0, dtype).real.dtype.newbyteorder("=")


def _grid(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*(shape[axis] for axis in axes), *[1] * (3 - len(axes)))
    return x, y, z


def _checked_axes(where: str, axes: Sequence[int], store: FieldStore) -> tuple[int, ...]:
    """Give axes from 0, the same for all fields."""
    given = checked_axes(where, axes)
    first: tuple[int, ...] | None = None
    for number, field in enumerate(store.fields):
        ndim = len(field.shape)
        if not 1 <= len(given) <= 3 or any(not -ndim <= axis < ndim for axis in given):
            raise DataError(
                f"{where}: axes={given} for field {number} ({field.name}) of shape "
                f"{tuple(field.shape)}. Name one to three of its axes, those in space: "
                f"axes={tuple(range(min(ndim, 3)))}."
            )
        own = tuple(axis % ndim for axis in given)
        if len(set(own)) < len(own):
            raise DataError(f"{where}: axes={given} names an axis twice.")
        if first is not None and own != first:
            raise DataError(
                f"{where}: axes={given} are {own} in field {number} and {first} in field 0, "
                "which has another number of axes. Count them from the front."
            )
        first = own
    assert first is not None
    return first


def _three(
    where: str, spacing: float | Sequence[float], axes: tuple[int, ...]
) -> tuple[float, float, float]:
    """Give the spacing along x, y and z, from a number or one for each axis in space."""
    try:
        given = np.asarray(spacing)
    except ValueError:  # lists of unequal lengths: refused below
        return checked_spacing(where, spacing)
    if given.shape == (len(axes),):
        given = np.concatenate([given, np.ones(3 - len(axes), given.dtype)])
    elif given.ndim:
        raise DataError(
            f"{where}: spacing={spacing!r}; give one number, or {len(axes)}, one for each of "
            f"axes={axes}."
        )
    return checked_spacing(where, given.item() if given.ndim == 0 else given)
