"""What fields and the numbers of a solve must satisfy; each refusal says the cure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError

__all__ = ["check_finite", "check_mean", "check_numbers", "checked_spacing", "refuse_mean"]

_ROUNDING = 64  # units in the last place; a naive mean of n values is off by some n^(1/2) more


def checked_spacing(
    where: str, spacing: float | Sequence[float] | NDArray[Any]
) -> tuple[float, float, float]:
    """Give the spacing along x, y and z, from one number or three.

    >>> checked_spacing("solve", 0.5)
    (0.5, 0.5, 0.5)
    """
    given = np.asarray(spacing)
    steps = np.broadcast_to(given, (3,)) if given.shape in ((), (1,), (3,)) else None
    if steps is None or given.dtype.kind not in "fiu":
        raise DataError(
            f"{where}: spacing {spacing!r} is neither a number nor three. Give that of the grid "
            "along x, y and z: spacing=0.1, or spacing=(0.1, 0.1, 0.2)."
        )
    if not (np.isfinite(steps) & (steps > 0)).all():
        axis = "xyz"[int(np.argmin(np.isfinite(steps) & (steps > 0)))]
        raise DataError(
            f"{where}: spacing {spacing!r} is not positive and finite along {axis}. Give the "
            "distance of neighbouring grid points, in a unit of length."
        )
    x, y, z = (float(step) for step in steps)
    return x, y, z


def check_numbers(where: str, *, mu: float, beta: float, lam: float) -> None:
    """Refuse numbers with which (mu |k|^(2 beta) + lam) is no positive operator.

    >>> check_numbers("solve", mu=1.0, beta=0.0, lam=0.0)
    Traceback (most recent call last):
        ...
    stowplan.errors.DataError: solve: beta=0.0; it must be finite and > 0. ...
    """
    rules = (
        ("mu", mu, mu > 0, "> 0", "It scales |k|^(2 beta)"),
        ("beta", beta, beta > 0, "> 0", "1 is Poisson's equation"),
        ("lam", lam, lam >= 0, ">= 0", "kappa^2 mu screens over 1/kappa, 0 does not screen"),
    )
    for name, value, holds, rule, meaning in rules:
        if not holds or not math.isfinite(value):
            raise DataError(f"{where}: {name}={value}; it must be finite and {rule}. {meaning}.")


def check_mean(where: str, name: str, field: NDArray[Any], begin: Sequence[int] = ()) -> None:
    """Refuse a source that has a mean over its first three axes where nothing screens (lam = 0).

    Parameters
    ----------
    where, name : str
        The function, and what the field is called.
    field : array (x, y, z, ...)
        Each place of the other axes is a source of its own. A mean counts if it exceeds what
        rounding leaves of one that was subtracted: 64 + 2 n^(1/2) units in the last place of the
        field's root mean square, for n cells.
    begin
        Place of the first entry along the other axes, where the field is a part of one.

    Raises
    ------
    DataError
        Naming the field, the place and the mean.
    """
    if not field.size:
        return
    cells = math.prod(field.shape[:3])
    lines = field.reshape(cells, -1)
    wide = np.complex128 if field.dtype.kind == "c" else np.float64
    means = np.abs(lines.sum(axis=0, dtype=wide)) / cells
    flat = lines.reshape(-1)
    rms = math.sqrt(abs(np.vdot(flat, flat)) / flat.size)
    refuse_mean(where, name, means.reshape(field.shape[3:]), rms, cells, field.dtype, begin)


def refuse_mean(
    where: str,
    name: str,
    means: NDArray[Any],
    rms: float,
    cells: int,
    dtype: np.dtype[Any],
    begin: Sequence[int],
) -> None:
    """Refuse means over so many cells that rounding does not explain, given the rms of values."""
    epsilon = np.finfo(dtype).eps if dtype.kind in "fc" else np.finfo(np.float64).eps
    worst = int(np.argmax(means))
    worst_mean = float(means.reshape(-1)[worst])
    limit = (_ROUNDING + 2 * math.sqrt(cells)) * float(epsilon) * rms
    if not math.isfinite(worst_mean):
        raise DataError(
            f"{where}: {name} has values that are not finite, and no mean. check=True names the "
            "first; mend the field, or leave it out."
        )
    if worst_mean > limit:
        place = _place(worst, means.shape, begin)
        at = f" at {place} of its other axes" if place else ""
        if not math.isfinite(worst_mean):
            raise DataError(
                f"{where}: {name} has values that are not finite: its mean is {worst_mean}{at}. "
                "check=True says where the first one is. Mend the field, or leave it out."
            )
        raise DataError(
            f"{where}: {name} has the mean {worst_mean:.6g}{at}, and rounding explains "
            f"{limit:.2g}. With lam = 0 a source must have none. Subtract it over x, y and z, "
            "field - field.mean(axis=(0, 1, 2), keepdims=True), or pass lam > 0."
        )


def check_finite(where: str, name: str, field: NDArray[Any], begin: Sequence[int] = ()) -> None:
    """Refuse NaN and infinity, naming the field and the index of the first.

    ``begin`` is where the field begins, if it is a part of one.

    >>> check_finite("solve", "density.npy", np.array([[1.0, 2.0], [np.nan, 3.0]]))
    Traceback (most recent call last):
        ...
    stowplan.errors.DataError: solve: density.npy is nan at (1, 0); 1 of 4 values is not finite. ...
    """
    with np.errstate(all="ignore"):
        total = field.sum()  # whatever is not finite stays so in a sum, and nothing is allocated
    if np.isfinite(total):
        return
    broken = ~np.isfinite(field)
    count = int(broken.sum())
    if not count:
        return
    first = int(np.argmax(broken))
    value = field[np.unravel_index(first, field.shape)]
    part = " of the part that was read" if begin else ""
    verb = "is" if count == 1 else "are"
    raise DataError(
        f"{where}: {name} is {value} at {_place(first, field.shape, begin)}; {count} of "
        f"{field.size} values{part} {verb} not finite. Mend the field, or leave it out."
    )


def _place(number: int, shape: Sequence[int], begin: Sequence[int]) -> tuple[int, ...]:
    """Give the index of an entry, counted from where a part begins."""
    index = np.unravel_index(number, tuple(shape))
    return tuple(int(i) + first for i, first in zip(index, begin or [0] * len(index), strict=True))
