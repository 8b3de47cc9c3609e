"""What solving fields takes, from their shape and dtype alone: memory, disk, and what would fit."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stowplan.adapters import get_adapter
from stowplan.errors import DataError
from stowplan.host_memory import free_host_bytes
from stowplan.memory import Budget, resolve_budget, scratch_folder, show_bytes
from stowplan.planners.pencils import plan_pencils
from stowplan.recipes.fields_checks import checked_axes
from stowplan.recipes.fields_job import block_bytes, passes_by_slabs, slab_budget
from stowplan.recipes.fields_store import is_precise
from stowplan.stores.field_blocks import count_blocks
from stowplan.stores.space import free_bytes

__all__ = ["FieldEstimate", "estimate"]


@dataclass(frozen=True)
class FieldEstimate:
    """Bytes that a solve of fields takes, and what would fit.

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype
    fields : int
    budget : Budget
    field_bytes : int
        One field.
    place_bytes : int
        All points in space at one place of the other axes.
    blocks, block_bytes : int
        Blocks of one field, and the largest; 0 where it is passed slab by slab.
    passes : int
        Times that a field is read and written.
    moved_bytes : int
        Read and written in all.
    output_bytes, output_free, scratch_bytes, scratch_free : int
        Disk space that is needed and free.
    fits : bool
        Whether the disk holds it.
    fitting : tuple of int or None
        The largest part of one field, whole in space, whose result fits on the disk; None if there
        is none.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fields: int
    budget: Budget
    field_bytes: int
    place_bytes: int
    blocks: int
    block_bytes: int
    passes: int
    moved_bytes: int
    output_bytes: int
    output_free: int
    scratch_bytes: int
    scratch_free: int
    fits: bool
    fitting: tuple[int, ...] | None

    def __str__(self) -> str:
        one = "a field" if self.fields == 1 else f"each of {self.fields} fields"
        how = (
            f"{self.blocks} blocks of at most {show_bytes(self.block_bytes)}, read and written once"
            if self.blocks
            else f"read and written {self.passes} times, slab by slab"
        )
        scratch = f", scratch {show_bytes(self.scratch_bytes)}" if self.scratch_bytes else ""
        if self.fits:
            verdict = "it fits"
        elif self.fitting is None:
            verdict = "not one place of a field would fit"
        else:
            verdict = f"{self.fitting} of one field would fit"
        return (
            f"{one} of {self.shape} {self.dtype} has {self.field_bytes} bytes "
            f"({show_bytes(self.field_bytes)}), {show_bytes(self.place_bytes)} at a place of its "
            f"other axes; budget {self.budget}: {how}; output {show_bytes(self.output_bytes)}"
            f"{scratch}, {show_bytes(self.output_free)} are free on the disk: {verdict}"
        )


def estimate(
    shape: Sequence[int],
    dtype: Any,
    *,
    fields: int = 1,
    axes: Sequence[int] = (0, 1, 2),
    budget: float | str | None = 0.8,
    out: str | os.PathLike[str] = ".",
) -> FieldEstimate:
    """Say what `solve` takes for fields of a shape and dtype, without a field.

    Parameters
    ----------
    shape, dtype
        Of each field; real or complex.
    fields : int
        How many there are.
    axes
        Those in space.
    budget
        As for `solve`; a share is of the free memory of the host.
    out
        Where results would go: the free space of its disk is looked up.

    Returns
    -------
    FieldEstimate
        Printed, it says all in one sentence.

    Raises
    ------
    DataError
        For a shape, dtype or axes that are none.
    BudgetError
        Where not even one slab of a field fits, with the bytes that would be enough.

    Examples
    --------
    >>> found = estimate((64, 64, 64, 16, 16, 16, 100), "complex128", budget="2 GiB")
    >>> found.field_bytes, found.place_bytes
    (1717986918400, 4194304)
    """
    where = "fields.estimate"
    kind, lengths, own = _checked(where, shape, dtype, fields, axes)
    limit = resolve_budget(budget, free_host_bytes, where)
    others = [length for axis, length in enumerate(lengths) if axis not in own]
    points = math.prod(lengths[axis] for axis in own)
    place, places = points * kind.itemsize, math.prod(others)
    size = place * places
    blocks, largest, scratch, moved, passes = 0, 0, 0, 2 * size, 1
    if passes_by_slabs(place, limit.bytes):
        real = kind.kind == "f"
        modes = np.result_type(kind, np.complex64).itemsize
        plan = plan_pencils(
            lengths, modes, budget=slab_budget(limit.bytes), axes=own, kind="solve", real=real
        )
        scratch, moved, passes = plan.scratch_bytes, plan.total_bytes, len(plan.passes)
    else:
        adapter = get_adapter("numpy")
        most = block_bytes(adapter, adapter.devices()[0], limit.bytes)
        blocks, lines = count_blocks(others, max(most // place, 1))
        largest = lines * place
    target, between = Path(os.fspath(out).partition("::")[0]), scratch_folder(None, where)
    free, scratch_free = free_bytes(target), free_bytes(between)
    together = _disk(target) == _disk(Path(between))
    room = free - scratch if together else free
    fits = fields * size <= room and (scratch <= scratch_free)
    return FieldEstimate(
        lengths, kind, fields, limit, size, place, blocks, largest, passes, fields * moved,
        fields * size, free, scratch, scratch_free, fits, _fitting(lengths, own, room // place),
    )  # fmt: skip


def _checked(
    where: str, shape: Sequence[int], dtype: Any, fields: int, axes: Sequence[int]
) -> tuple[np.dtype[Any], tuple[int, ...], tuple[int, ...]]:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise DataError(f"{where}: dtype={dtype!r} is none of NumPy's.") from None
    try:
        count, lengths = operator.index(fields), tuple(map(operator.index, shape))
    except TypeError:
        raise DataError(
            f"{where}: fields={fields!r} of shape {shape!r}. Give whole numbers: "
            "estimate((64, 64, 64), 'float64', fields=3)."
        ) from None
    if not is_precise(kind) or not lengths or min(lengths) < 1 or count < 1:
        raise DataError(
            f"{where}: {fields} fields of shape {lengths} and dtype {kind}. Give one or more, of a "
            "shape without zeros and a real or complex dtype of single or double precision. "
            "Others are converted: field.astype('float64')."
        )
    axes = checked_axes(where, axes)
    own = tuple(axis % len(lengths) for axis in axes)
    inside = all(-len(lengths) <= axis < len(lengths) for axis in axes)
    if not 1 <= len(own) <= 3 or len(set(own)) < len(own) or not inside:
        raise DataError(
            f"{where}: axes={tuple(axes)} for a shape of {len(lengths)} axes. Name one to three "
            f"of them, those in space: axes={tuple(range(min(len(lengths), 3)))}."
        )
    return kind, lengths, own


def _disk(path: Path) -> int:
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.stat().st_dev


def _fitting(shape: tuple[int, ...], axes: tuple[int, ...], places: int) -> tuple[int, ...] | None:
    """Cut a shape along its other axes, the slowest first, to at most so many places."""
    if places < 1:
        return None
    found = list(shape)
    for axis in range(len(shape)):
        if axis not in axes:
            rest = math.prod(n for other, n in enumerate(found) if other not in (*axes, axis))
            found[axis] = min(found[axis], max(places // rest, 1))
    return tuple(found)
