"""Transforms, and solves, of one field larger than memory, by the passes of a pencil plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.kernels.fields import inverse_symbol, riesz_symbol
from stowplan.planners.pencils import PencilPass, PencilPlan
from stowplan.recipes.fields_checks import check_numbers, checked_spacing
from stowplan.recipes.fields_rings import Spacing, wave_numbers

__all__ = ["Regions", "RieszFactor", "cut_regions", "run_pencils"]

Region = tuple[slice, ...]
_FACTOR_BYTES = 1 << 20  # of the factor that exists at a time, with what it is computed from
_FACTOR_POINT_BYTES = 64  # |k|^2, its power, the symbol, its inverse, masks, and what casts hold
_FACTOR_SHARE = 4  # and it is no more than this part of a slab


class Regions(Protocol):
    """An array outside of memory whose rectangular regions are read and written."""

    def read_region(self, index: Region, into: NDArray[Any]) -> Any:
        """Fill a contiguous array with a region."""

    def write_region(self, index: Region, values: NDArray[Any]) -> None:
        """Store a region."""


class RieszFactor:
    """1/(mu |k|^(2 beta) + lam) on any region of the modes of a field; 0 where k and lam are.

    Parameters
    ----------
    plan : PencilPlan
        Its axes, three at most, are those of space; of a real field half of one is kept.
    spacing : number or three
        Along these axes, in the order of the plan: from the first axis of the field to the last.
    mu, beta, lam : float
        As of `stowplan.kernels.fields.riesz`.

    Examples
    --------
    >>> from stowplan.planners.pencils import plan_pencils
    >>> factor = RieszFactor(plan_pencils((4,), 16, budget=64, axes=(0,)), spacing=0.5 * np.pi)
    >>> factor((slice(0, 4),)).tolist()
    [0.0, 1.0, 0.25, 1.0]
    """

    def __init__(
        self,
        plan: PencilPlan,
        spacing: Spacing,
        *,
        mu: float = 1.0,
        beta: float = 1.0,
        lam: float = 0.0,
    ) -> None:
        mu, self.beta, self.lam = check_numbers("RieszFactor", mu=mu, beta=beta, lam=lam)
        if len(plan.axes) > 3:
            raise DataError(
                f"RieszFactor: a plan along {len(plan.axes)} axes, and space has 3. Plan with "
                "axes=(0, 1, 2)."
            )
        waves = [
            wave_numbers(plan.shape[axis], step, half=axis == plan.halved)
            for axis, step in zip(plan.axes, checked_spacing("RieszFactor", spacing), strict=False)
        ]
        least = min((float(np.abs(k[1])) for k in waves if len(k) > 1), default=1.0)
        self.squares = [(k / least) ** 2 for k in waves]  # of k itself they may leave the range
        self.mu = mu * least ** (2 * self.beta)
        self.axes, self.dims = plan.axes, len(plan.shape)

    def __call__(self, region: Region) -> NDArray[np.float64]:
        """Give the factor of a region, with length 1 along the other axes."""
        square: NDArray[np.float64] = np.zeros((1,) * self.dims)
        for axis, values in zip(self.axes, self.squares, strict=True):
            along = [1] * self.dims
            along[axis] = -1
            square = square + values[region[axis]].reshape(along)
        found: NDArray[np.float64] = inverse_symbol(
            riesz_symbol(square, self.mu, self.beta, self.lam)
        )
        return found


def run_pencils(
    plan: PencilPlan,
    source: Regions,
    target: Regions,
    *,
    factor: Callable[[Region], NDArray[Any]] | None = None,
    between: Regions | None = None,
    done: Callable[[int], None] | None = None,
) -> None:
    """Carry out a plan: transform a field, or solve for it, slab by slab.

    Parameters
    ----------
    plan : PencilPlan
    source : Regions
        The field, of the plan's shape; or its modes where the plan is of kind ``"inverse"``.
    target : Regions
        Where the result goes; it may be `source` itself where both have one shape and dtype.
        Modes lie in it between passes, unless it is to hold real values.
    factor : callable, optional
        From a region of the modes, a tuple of slices, to a real array that broadcasts to it, such
        as `RieszFactor`: modes are multiplied by it. Needed by a solve, and by nothing else.
    between : Regions, optional
        Complex, of shape ``plan.modes_shape``: where the modes of a real field lie between the
        passes of a solve, and of an inverse transform; this one may be `source`, which it
        overwrites.
    done : callable, optional
        Called with the bytes that were read and written, after each slab.

    Raises
    ------
    DataError
        If `factor` is given to a transform or not to a solve, and without a needed `between`.

    Notes
    -----
    One slab is in memory at a time, in arrays that all passes share: ``plan.slab_bytes``, and at
    most 1 MiB of the factor. All transforms are "ortho".
    """
    if (factor is not None) != (plan.kind == "solve"):
        raise DataError(
            f"run_pencils: a plan of kind {plan.kind!r} "
            + ("needs factor=." if factor is None else "takes no factor=; plan a solve.")
        )
    last = len(plan.passes) - 1
    lies_between = plan.real and plan.passes[last].real_out and last > 0
    if lies_between and between is None:
        raise DataError(
            f"run_pencils: {last + 1} passes end in real values, and complex modes lie between "
            f"them. Pass between=, an array of shape {plan.modes_shape}."
        )
    held = between if lies_between and between is not None else target
    slabs = _Slabs(plan)
    for place, one in enumerate(plan.passes):
        origin = source if place == 0 else held
        goal = target if place == last else held
        for region in one.regions():
            moved = slabs.carry(one, region, origin, goal, factor)
            if done is not None:
                done(moved)


class _Slabs:
    """Memory that holds the slabs of all passes: of each its modes, and behind them real values."""

    def __init__(self, plan: PencilPlan) -> None:
        self.plan = plan
        self.dtype = np.dtype(np.complex128 if plan.itemsize == 16 else np.complex64)
        real = np.dtype(np.float64 if plan.itemsize == 16 else np.float32)
        self.held = np.empty(plan.slab_bytes // real.itemsize, real)

    def carry(
        self,
        one: PencilPass,
        region: Region,
        origin: Regions,
        goal: Regions,
        factor: Callable[[Region], NDArray[Any]] | None,
    ) -> int:
        """Read, transform and write one slab; give the bytes moved."""
        shape = tuple(part.stop - part.start for part in region)
        ends = 2 * math.prod(shape)
        modes = self.held[:ends].view(self.dtype).reshape(shape)
        values, in_values = None, region
        if one.real_in or one.real_out:
            whole = self._real_shape(shape)
            values = self.held[ends : ends + math.prod(whole)].reshape(whole)
            in_values = tuple(
                slice(0, n) if axis == self.plan.halved else part
                for axis, (n, part) in enumerate(zip(whole, region, strict=True))
            )
        if one.real_in and values is not None:
            origin.read_region(in_values, values)
            np.fft.rfft(values, axis=self.plan.halved or 0, norm="ortho", out=modes)
        else:
            origin.read_region(region, modes)
        for axis in self._complex_axes(one.forward, one.real_in):
            np.fft.fft(modes, axis=axis, norm="ortho", out=modes)
        if one.turns and factor is not None:
            for part in _factor_parts(shape, self.plan.axes, modes.nbytes):
                modes[part] *= factor(_moved_by(region, part))
        for axis in reversed(list(self._complex_axes(one.inverse, one.real_out))):
            np.fft.ifft(modes, axis=axis, norm="ortho", out=modes)
        if not (one.real_out and values is not None):
            goal.write_region(region, modes)
            return modes.nbytes + (values if one.real_in and values is not None else modes).nbytes
        halved = self.plan.halved or 0
        np.fft.irfft(modes, n=values.shape[halved], axis=halved, norm="ortho", out=values)
        goal.write_region(in_values, values)
        return values.nbytes + (values if one.real_in else modes).nbytes

    def _complex_axes(self, axes: tuple[int, ...], halves: bool) -> Iterator[int]:
        for axis in axes:
            if self.plan.shape[axis] > 1 and not (halves and axis == self.plan.halved):
                yield axis

    def _real_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        lengths = enumerate(zip(shape, self.plan.shape, strict=True))
        return tuple(n if axis == self.plan.halved else m for axis, (m, n) in lengths)


def cut_regions(
    shape: Sequence[int],
    size: Callable[[Sequence[int]], int],
    most: int,
    axes: Sequence[int] | None = None,
) -> Iterator[Region]:
    """Cut an array into regions of at most so many bytes, or of one number, in its order.

    Parameters
    ----------
    shape : sequence of int
    size : callable
        From the shape of a region to its bytes, which grow no faster than any length.
    most : int
        Bytes of a region.
    axes : sequence of int, optional
        Those to cut, the first as far as it must be before the next; all from the first on by
        default, so that regions are contiguous.

    Examples
    --------
    >>> [part[1] for part in cut_regions((1, 5), lambda region: 8 * region[0] * region[1], 16)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    lengths = list(shape)
    for axis in range(len(shape)) if axes is None else axes:
        if size(lengths) <= most:
            break
        lengths[axis] = 1
        lengths[axis] = min(shape[axis], max(1, most // max(size(lengths), 1)))
    yield from product(
        *(
            [slice(start, min(start + step, n)) for start in range(0, n, step)]
            for n, step in zip(shape, lengths, strict=True)
        )
    )


def _factor_parts(shape: Sequence[int], axes: Sequence[int], slab_bytes: int) -> Iterator[Region]:
    """Cut a slab along axes in space: each part has its own factor, which all its lines share."""

    def size(lengths: Sequence[int]) -> int:
        return _FACTOR_POINT_BYTES * math.prod(lengths[axis] for axis in axes)

    return cut_regions(shape, size, min(_FACTOR_BYTES, slab_bytes // _FACTOR_SHARE), axes)


def _moved_by(region: Region, part: Region) -> Region:
    """Give the place in the modes of a part of a slab."""
    return tuple(
        slice(whole.start + own.start, whole.start + own.stop)
        for whole, own in zip(region, part, strict=True)
    )
