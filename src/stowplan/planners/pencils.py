"""Transforms of one field larger than the budget: passes over slabs, each along some of its axes.

A pass reads slabs that are whole along the axes that it transforms, and writes them back. As many
axes as a slab allows go into one pass, since a pass costs the disk the whole field twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Literal

from stowplan.errors import BudgetError, PlanError
from stowplan.memory import show_bytes

__all__ = ["PencilPass", "PencilPlan", "least_slab_bytes", "plan_pencils"]

Region = tuple[slice, ...]
Kind = Literal["forward", "inverse", "solve"]
_MOST_AXES = 4
_PIECE_BYTES = 1 << 13  # what a seek is worth: 8 kB take a disk of 2 GB/s 4 us


@dataclass(frozen=True)
class PencilPass:
    """One pass over a field: every slab is read, transformed and written once.

    Attributes
    ----------
    forward, inverse : tuple of int
        Axes that are transformed there and then back; both where a solve turns round, between
        which the modes are multiplied by their factor.
    shape : tuple of int
        Of the field in modes: of a real one half of an axis is kept.
    slab : tuple of int
        Shape of the largest slab, in modes.
    real_in, real_out : bool
        Whether real values are read, or written.
    slab_bytes : int
        Memory of a slab: its modes, and where values are real these too.
    bytes_read, bytes_written : int
        Of the whole pass.
    pieces : int
        Contiguous pieces that are read; as many are written.
    """

    forward: tuple[int, ...]
    inverse: tuple[int, ...]
    shape: tuple[int, ...]
    slab: tuple[int, ...]
    real_in: bool
    real_out: bool
    slab_bytes: int
    bytes_read: int
    bytes_written: int
    pieces: int

    @property
    def turns(self) -> bool:
        """Whether it transforms there and back."""
        return bool(self.forward and self.inverse)

    @property
    def slabs(self) -> int:
        """Number of slabs."""
        return math.prod(-(-n // m) for n, m in zip(self.shape, self.slab, strict=True))

    def regions(self) -> Iterator[Region]:
        """Give every slab, in modes, in the order of the array; all of nearly one size."""
        cuts = [_even(n, m) for n, m in zip(self.shape, self.slab, strict=True)]
        yield from product(*cuts)


@dataclass(frozen=True)
class PencilPlan:
    """Passes that transform, or solve for, one field within a budget.

    Attributes
    ----------
    kind : str
        ``"forward"``, ``"inverse"`` or ``"solve"``: there, times a factor, and back.
    shape, axes : tuple of int
        Of the field, and those that are transformed, sorted whatever order they were given in.
    real : bool
        Whether the field is real; then half of axis `halved` is kept of its modes.
    halved : int or None
    itemsize : int
        Bytes of one complex number.
    passes : tuple of PencilPass
    """

    kind: Kind
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    real: bool
    halved: int | None
    itemsize: int
    passes: tuple[PencilPass, ...]

    @cached_property
    def modes_shape(self) -> tuple[int, ...]:
        """Shape of the modes: that of the field, of a real one half along `halved`."""
        return _in_modes(self.shape, self.halved)

    @property
    def slab_bytes(self) -> int:
        """Memory of the largest slab of all passes."""
        return max(one.slab_bytes for one in self.passes)

    @property
    def total_bytes(self) -> int:
        """Bytes read and written."""
        return sum(one.bytes_read + one.bytes_written for one in self.passes)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of modes that lie between passes, beside the result; 0 where none do."""
        if not self.real or self.kind != "solve" or len(self.passes) == 1:
            return 0
        return math.prod(self.modes_shape) * self.itemsize

    def __str__(self) -> str:
        """List the passes.

        >>> print(plan_pencils((256, 256, 256), 16, budget=2**26))
        solve of (256, 256, 256) along 0, 1, 2: 3 passes, 1.5 GiB read and written
          there along 1 | 4 slabs of (64, 256, 256), 64 MiB, in 4 pieces
          there and back along 0, 2 | 4 slabs of (256, 64, 256), 64 MiB, in 1024 pieces
          back along 1 | 4 slabs of (64, 256, 256), 64 MiB, in 4 pieces
        """
        along = ", ".join(map(str, self.axes))
        count = len(self.passes)
        lines = [
            (
                f"{self.kind} of {self.shape} along {along}: {count} pass{'es' * (count > 1)}, "
                f"{show_bytes(self.total_bytes)} read and written"
            )
        ]
        for one in self.passes:
            way = "there and back" if one.turns else "there" if one.forward else "back"
            axes = ", ".join(map(str, one.forward or one.inverse))
            lines.append(
                f"  {way} along {axes} | {one.slabs} slabs of {one.slab}, "
                f"{show_bytes(one.slab_bytes)}, in {one.pieces} pieces"
            )
        return "\n".join(lines)


def plan_pencils(
    shape: Sequence[int],
    itemsize: int,
    *,
    budget: int,
    axes: Sequence[int] = (0, 1, 2),
    kind: Kind = "solve",
    real: bool = False,
) -> PencilPlan:
    """Plan the passes over one field that move least, with slabs that fit a budget.

    These are the fewest passes, unless their slabs would lie in so many contiguous pieces that
    seeking takes longer than another pass: each piece counts as 8 KiB.

    Parameters
    ----------
    shape : sequence of int
        Of the field, with all its axes.
    itemsize : int
        Bytes of one complex number: 16 or 8; of a real field, of one of its modes.
    budget : int
        Bytes for one slab; buffers to read ahead into are the caller's.
    axes : sequence of int
        Those to transform, 4 at most; those of length 1 are left alone.
    kind : {"solve", "forward", "inverse"}
        A solve multiplies by a factor between there and back, within one pass.
    real : bool
        Whether the field is real.

    Returns
    -------
    PencilPlan

    Raises
    ------
    BudgetError
        If no slab fits that is whole along one axis; with the bytes that are needed.
    PlanError
        For a shape, axes or a kind that are none.

    Examples
    --------
    >>> plan = plan_pencils((64, 64, 64, 100), 16, budget=2**24, kind="forward")
    >>> [(one.forward, one.slab) for one in plan.passes]
    [((1,), (2, 64, 64, 100)), ((0, 2), (64, 2, 64, 100))]
    """
    lengths, along = _checked(shape, axes, itemsize, budget, kind)
    used = tuple(axis for axis in along if lengths[axis] > 1) or along[:1]
    plans = []
    for groups in _partitions(used):
        for order in _orders(groups, real):
            passes = _passes(lengths, itemsize, order, kind, real, budget)
            if passes is not None:
                halved = order[0][0] if real else None
                plans.append(PencilPlan(kind, lengths, along, real, halved, itemsize, passes))
    if not plans:
        raise BudgetError(_too_small(lengths, itemsize, used, real, budget))
    return min(plans, key=_cost)


def _cost(plan: PencilPlan) -> int:
    pieces = sum(one.pieces for one in plan.passes)
    return plan.total_bytes + 2 * pieces * _PIECE_BYTES


def _passes(
    shape: tuple[int, ...],
    itemsize: int,
    groups: Sequence[tuple[int, ...]],
    kind: Kind,
    real: bool,
    budget: int,
) -> tuple[PencilPass, ...] | None:
    """Make the passes over groups of axes, ordered as on the way there; None if one has no slab."""
    there = [(group, ()) for group in groups]
    back = [((), group) for group in reversed(groups)]
    steps: list[tuple[tuple[int, ...], tuple[int, ...]]]
    if kind == "solve":
        steps = [*there[:-1], (groups[-1], groups[-1]), *back[1:]]
    else:
        steps = [*(there if kind == "forward" else back)]
    halved = groups[0][0] if real else None
    passes = []
    for place, (forward, inverse) in enumerate(steps):
        real_in = real and place == 0 and bool(forward)
        real_out = real and place == len(steps) - 1 and bool(inverse)
        one = _pass(shape, itemsize, halved, forward, inverse, real_in, real_out, budget)
        if one is None:
            return None
        passes.append(one)
    return tuple(passes)


def _pass(
    shape: tuple[int, ...],
    itemsize: int,
    halved: int | None,
    forward: tuple[int, ...],
    inverse: tuple[int, ...],
    real_in: bool,
    real_out: bool,
    budget: int,
) -> PencilPass | None:
    modes = _in_modes(shape, halved)
    slab = list(modes)

    def size(slab: Sequence[int]) -> int:
        return _slab_bytes(shape, slab, itemsize, halved, real_in or real_out)

    for axis in range(len(shape)):  # outermost first, so that pieces stay long
        if axis in forward or axis in inverse:
            continue
        if size(slab) <= budget:
            break
        slab[axis] = 1
        slab[axis] = min(modes[axis], max(1, budget // size(slab)))
    if size(slab) > budget:
        return None
    slab = [-(-n // -(-n // m)) for n, m in zip(modes, slab, strict=True)]  # slabs of even size
    complex_bytes, real_bytes = math.prod(modes) * itemsize, math.prod(shape) * itemsize // 2
    cut = [axis for axis in range(len(shape)) if slab[axis] < modes[axis]]
    last = cut[-1] if cut else 0  # behind it pieces are whole
    pieces = math.prod(modes[:last]) * -(-modes[last] // slab[last])
    return PencilPass(
        forward, inverse, modes, tuple(slab), real_in, real_out, size(slab),
        real_bytes if real_in else complex_bytes, real_bytes if real_out else complex_bytes, pieces,
    )  # fmt: skip


def _slab_bytes(
    shape: tuple[int, ...], slab: Sequence[int], itemsize: int, halved: int | None, real: bool
) -> int:
    """Memory of a slab in modes, and of its real values where a pass reads or writes such."""
    modes = math.prod(slab) * itemsize
    if not real or halved is None:
        return modes
    values = [shape[axis] if axis == halved else n for axis, n in enumerate(slab)]
    return modes + math.prod(values) * itemsize // 2


def _in_modes(shape: tuple[int, ...], halved: int | None) -> tuple[int, ...]:
    return tuple(n // 2 + 1 if axis == halved else n for axis, n in enumerate(shape))


def _partitions(axes: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    """Give all ways to put axes into groups, the fewest groups first."""
    found: list[list[tuple[int, ...]]] = [[]]
    for axis in axes:
        grown = []
        for groups in found:
            grown.append([*groups, (axis,)])
            for place, group in enumerate(groups):
                grown.append([*groups[:place], (*group, axis), *groups[place + 1 :]])
        found = grown
    return sorted(found, key=len)


def _orders(groups: list[tuple[int, ...]], real: bool) -> Iterator[list[tuple[int, ...]]]:
    """Give orders of the groups: which one is first, of a real field, or last counts."""
    for last in range(len(groups)):
        others = groups[:last] + groups[last + 1 :]
        for first in range(len(others) if real else min(len(others), 1)):
            yield [others[first], *others[:first], *others[first + 1 :], groups[last]]
        if not others:
            yield [groups[last]]


def _even(n: int, most: int) -> list[slice]:
    count = -(-n // most)
    ends = [n * part // count for part in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _checked(
    shape: Sequence[int], axes: Sequence[int], itemsize: int, budget: int, kind: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    lengths = tuple(int(n) for n in shape)
    if not lengths or min(lengths) < 1:
        raise PlanError(f"plan_pencils: shape {tuple(shape)} has no cells. Give lengths from 1.")
    along = tuple(sorted({int(axis) for axis in axes}))
    if len(along) != len(axes) or not 1 <= len(along) <= _MOST_AXES:
        raise PlanError(
            f"plan_pencils: axes {tuple(axes)}; give 1 to {_MOST_AXES} different ones, "
            "such as axes=(0, 1, 2)."
        )
    if along[0] < 0 or along[-1] >= len(lengths):
        raise PlanError(
            f"plan_pencils: axes {tuple(axes)} of a field with {len(lengths)}. They count from 0."
        )
    if kind not in ("forward", "inverse", "solve"):
        raise PlanError(f'plan_pencils: kind={kind!r} is not "solve", "forward" or "inverse".')
    if itemsize not in (8, 16):
        raise PlanError(f"plan_pencils: itemsize={itemsize}; one complex number has 8 or 16 bytes.")
    if budget < 1:
        raise BudgetError(f"plan_pencils: budget={budget} bytes; it must be positive.")
    return lengths, along


def _too_small(
    shape: tuple[int, ...],
    itemsize: int,
    axes: tuple[int, ...],
    real: bool,
    budget: int,
) -> str:
    """Say what would be enough."""
    least = least_slab_bytes(shape, itemsize, axes=axes, real=real)
    return (
        f"plan_pencils: no slab of a field {shape} fits into {budget} bytes: one line along each "
        f"of the axes {axes} takes {least}. Pass budget={least} or more."
    )


def least_slab_bytes(
    shape: Sequence[int], itemsize: int, *, axes: Sequence[int] = (0, 1, 2), real: bool = False
) -> int:
    """Bytes of the longest line of a field, whichever axis a real one halves: a slab needs them.

    >>> least_slab_bytes((8, 4, 4), 16)
    128
    """
    lengths, along = tuple(map(int, shape)), tuple(map(int, axes))
    return min(
        max(
            _slab_bytes(
                lengths, [m if axis in group else 1 for axis, m in enumerate(modes)], itemsize,
                group[0] if real else None, real and group is order[0],
            )
            for group in order
        )
        for order in _orders([(axis,) for axis in along], real)
        for modes in [_in_modes(lengths, order[0][0] if real else None)]
    )  # fmt: skip
