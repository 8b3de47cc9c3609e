"""What fields and the numbers of a solve must satisfy; each refusal says the cure."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError

__all__ = [
    "check_finite",
    "check_mean",
    "check_numbers",
    "check_range",
    "checked_axes",
    "checked_number",
    "checked_spacing",
    "refuse_mean",
]

_ROUNDING = 64  # units in the last place; a naive mean of n values is off by some n^(1/2) more


def checked_spacing(
    where: str, spacing: float | Sequence[float] | NDArray[Any]
) -> tuple[float, float, float]:
    """Give the spacing along x, y and z, from one number or three.

    >>> checked_spacing("solve", 0.5)
    (0.5, 0.5, 0.5)
    """
    try:
        given = np.asarray(spacing)
    except ValueError:  # lists of unequal lengths
        given = np.asarray(None)
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


def checked_number(where: str, name: str, value: Any, cure: str) -> float:
    """Give a float of what is one number; text is none.

    >>> checked_number("solve", "beta", "1", "1 is Poisson's equation")
    Traceback (most recent call last):
        ...
    stowplan.errors.DataError: solve: beta='1' is not a number. 1 is Poisson's equation.
    """
    try:
        if isinstance(value, str | bytes) or np.ndim(value):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {name}={value!r} is not a number. {cure}.") from None


def checked_axes(where: str, axes: Any) -> tuple[int, ...]:
    """Give what names axes as a tuple of whole numbers, not yet whether a field has them.

    >>> checked_axes("solve", [0, np.int64(2)])
    (0, 2)
    """
    try:
        return tuple(operator.index(axis) for axis in axes)
    except TypeError:
        raise DataError(
            f"{where}: axes={axes!r} are no whole numbers. Name one to three axes, those in space: "
            "axes=(0, 1, 2)."
        ) from None


def check_numbers(where: str, *, mu: Any, beta: Any, lam: Any) -> tuple[float, float, float]:
    """Give numbers as floats; refuse those with which mu |k|^(2 beta) + lam is not positive.

    >>> check_numbers("solve", mu=1.0, beta=0.0, lam=0.0)
    Traceback (most recent call last):
        ...
    stowplan.errors.DataError: solve: beta=0.0; it must be finite and > 0. ...
    """
    rules = (
        ("mu", mu, "> 0", "It scales |k|^(2 beta)"),
        ("beta", beta, "> 0", "1 is Poisson's equation"),
        ("lam", lam, ">= 0", "kappa^2 mu screens over 1/kappa, 0 does not screen"),
    )
    for name, value, rule, meaning in rules:
        number = checked_number(where, name, value, meaning)
        holds = number > 0 or (number == 0 and rule == ">= 0")
        if not holds or not math.isfinite(number):
            raise DataError(f"{where}: {name}={value}; it must be finite and {rule}. {meaning}.")
    return float(mu), float(beta), float(lam)


def check_range(
    where: str,
    dtype: np.dtype[Any],
    grid: Sequence[int],
    spacing: Sequence[float],
    *,
    mu: float,
    beta: float,
    lam: float,
) -> None:
    """Refuse numbers with which mu |k|^(2 beta) leaves the range of a dtype on a grid.

    >>> numbers = {"mu": 1.0, "beta": 1.0, "lam": 0.0}
    >>> check_range("solve", np.dtype("f4"), (8, 8, 8), (1e-9,) * 3, **numbers)
    >>> check_range("solve", np.dtype("f4"), (8, 8, 8), (1e-21,) * 3, **numbers)
    Traceback (most recent call last):
        ...
    stowplan.errors.DataError: solve: spacing=(1e-21, 1e-21, 1e-21), beta=1.0, mu=1.0: ...
    """
    most = -math.log10(float(np.finfo(dtype).tiny))  # so that 1 / x is no less exact
    units = [
        (math.log10(2 * math.pi / n) - math.log10(step), n)
        for n, step in zip(grid, spacing, strict=True) if n > 1
    ]  # fmt: skip
    least = min((unit for unit, _ in units), default=0.0)
    farthest = max((unit + math.log10(n // 2) for unit, n in units), default=0.0) + 0.24  # 3^(1/2)
    scale = math.log10(mu)
    apart = farthest - least
    powers: dict[str, tuple[float, ...]] = {
        "|k|^2": (2 * apart,), "|k|^(2 beta)": (2 * beta * apart,)
    }  # fmt: skip
    counts = lam == 0 or scale + 2 * beta * farthest > math.log10(lam) - 20  # beside lam
    if counts or least > 0:
        powers["|k|^(2 beta)"] += (2 * beta * least,)
    if counts:
        powers["mu |k|^(2 beta)"] = (scale + 2 * beta * least, scale + 2 * beta * farthest)
    given = {
        "spacing": tuple(map(math.log10, spacing)),
        "mu": (scale,),
        "lam": (math.log10(lam),) if lam > 0 else (),
    }
    for name, logs in {**given, **powers}.items():
        worst = max(logs, key=abs, default=0.0)
        if abs(worst) > most:
            wide = "complex128" if dtype.kind == "c" else "float64"
            cure = "" if dtype == wide else f"Convert the fields: field.astype({wide!r}). Or take"
            raise DataError(
                f"{where}: spacing={tuple(spacing)}, beta={beta}, mu={mu}: {name} is about "
                f"1e{worst:+.0f}, outside of what {dtype} takes, 1e-{most:.0f} to 1e+{most:.0f}. "
                f"{cure or 'Take'} a unit of length in which the spacing is near 1."
            )


def check_mean(
    where: str,
    name: str,
    field: NDArray[Any],
    begin: Sequence[int] = (),
    axes: Sequence[int] = (0, 1, 2),
) -> None:
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
    axes
        What the caller calls the first three, for the cure.

    Raises
    ------
    DataError
        Naming the field, the place and the mean.
    """
    if not field.size:
        return
    cells = math.prod(field.shape[:3])
    lines, scale = field.reshape(cells, -1), 1.0
    flat = lines.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = abs(np.vdot(flat, flat))
    if squares == 0 and not flat.any():
        return
    limits = np.finfo(field.dtype)
    if not float(limits.tiny / limits.eps) * flat.size < squares < math.inf:
        lines, scale = _scaled(lines)
        flat = lines.reshape(-1)
        squares = abs(np.vdot(flat, flat))
    wide = np.complex128 if field.dtype.kind == "c" else np.float64
    means = np.abs(lines.sum(axis=0, dtype=wide)) / cells * scale
    rms = math.sqrt(squares / flat.size) * scale
    refuse_mean(where, name, means.reshape(field.shape[3:]), rms, cells, field.dtype, begin, axes)


def _scaled(values: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """Give values in double precision over their peak, whose squares are in range, and the peak."""
    wide = values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)
    peak = max(float(np.abs(wide.real).max()), float(np.abs(wide.imag).max()))
    if peak == 0 or not math.isfinite(peak):
        return wide, 1.0
    wide /= peak
    return wide, peak


def refuse_mean(
    where: str,
    name: str,
    means: NDArray[Any],
    rms: float,
    cells: int,
    dtype: np.dtype[Any],
    begin: Sequence[int],
    axes: Sequence[int] = (0, 1, 2),
) -> None:
    """Refuse means over so many cells that rounding does not explain, given the rms of values."""
    limits = np.finfo(dtype if dtype.kind in "fc" else np.float64)
    worst = int(np.argmax(means))
    worst_mean = float(means.reshape(-1)[worst])
    place_value = max(float(limits.eps) * rms, float(limits.smallest_subnormal))
    limit = (_ROUNDING + 2 * math.sqrt(cells)) * place_value
    if not math.isfinite(worst_mean):
        raise DataError(
            f"{where}: {name} has values that are not finite, and no mean. check=True names the "
            "first; mend the field, or leave it out."
        )
    if worst_mean > limit:
        place = _place(worst, means.shape, begin)
        at = f" at {place} of its other axes" if place else ""
        own = tuple(axes)
        raise DataError(
            f"{where}: {name} has the mean {worst_mean:.6g}{at}, and rounding explains "
            f"{limit:.2g}. With lam = 0 a source must have none. Subtract it over the axes in "
            f"space, field - field.mean(axis={own}, keepdims=True), or pass lam > 0."
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
