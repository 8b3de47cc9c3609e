"""Fourier transforms of three axes in front of one that stays, as a framework does them fastest.

All are "ortho". The spectrum of a real array is that of half of the first axis: the other half is
its mirror image. Axes of length 1 are left alone. No array here is written into by its caller.

A short transform costs passes over memory rather than arithmetic. NumPy therefore takes as many
lines at a time as a cache holds, and where all axes are short multiplies by their matrices, in real
arithmetic: layouts are chosen so that the two components of a number stand in front of the axis
that is transformed next, and so no pass is spent on turning the array round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from stowplan.special import framework_of

__all__ = ["filtered", "half_length", "mode_weights", "power", "squared"]

_SHORT = 12  # up to here products with the matrix of an axis are faster, on a CPU
_CACHED_BYTES = 3 << 17  # of lines that go through all products together
_SCRATCH_BYTES = 1 << 23  # of lines whose power is taken together by FFT
_AXES = (-4, -3, -2)


def half_length(a: Any) -> int:
    """Give the length that the first of the four last axes has in the spectrum.

    >>> import numpy as np
    >>> half_length(np.zeros((6, 4, 1, 2))), half_length(np.zeros((6, 4, 1, 2), complex))
    (4, 6)
    """
    x = int(a.shape[-4])
    return x if _is_complex(a) else x // 2 + 1


def mode_weights(a: Any) -> Any:
    """Say how often each plane of a spectrum counts, (half,) of a's real dtype: 1 or 2.

    >>> import numpy as np
    >>> mode_weights(np.zeros((6, 4, 1, 2))).tolist()
    [1.0, 2.0, 2.0, 1.0]
    """
    xp = array_namespace(a)
    dtype = xp.real(a).dtype if _is_complex(a) else a.dtype
    n, half = int(a.shape[-4]), half_length(a)
    plane = xp.arange(half, dtype=dtype, device=device(a))
    alone = (plane == 0) | (2 * plane == n) if half < n else plane >= 0
    one = xp.ones_like(plane)
    return xp.where(alone, one, 2 * one)


def filtered(a: Any, factor: Any) -> Any:
    """Multiply every mode by a real factor, ``(x,y,z,lines),(half,y,z)->(x,y,z,lines)``.

    Parameters
    ----------
    a : array (..., x, y, z, lines)
        Real or complex; so is the result, of the same dtype.
    factor : array (half, y, z)
        Of a's real dtype, the same for all leading dims; `half` as `half_length` gives it. For a
        real `a` the factor of a mode is that of its opposite.

    >>> import numpy as np
    >>> a = np.arange(4.0).reshape(4, 1, 1, 1)
    >>> mean = filtered(a, np.array([1.0, 0.0, 0.0]).reshape(3, 1, 1))  # mode 0 alone
    >>> mean.ravel().tolist()
    [1.5, 1.5, 1.5, 1.5]
    """
    xp = array_namespace(a)
    if framework_of(xp) == "numpy":
        return _filtered_on_host(np.asarray(a), np.asarray(factor))
    modes = _modes(xp, a) * factor[..., None]
    if _is_complex(a):
        return _along(xp, modes, _AXES, forward=False)
    modes = _along(xp, modes, _AXES[1:], forward=False)
    x = int(a.shape[-4])
    return xp.real(modes) if x == 1 else xp.fft.irfft(modes, n=x, axis=-4, norm="ortho")


def power(a: Any) -> Any:
    """Sum the squared moduli of all modes over lines, ``(x,y,z,lines)->(half,y,z)``.

    Parameters
    ----------
    a : array (..., x, y, z, lines)

    Returns
    -------
    array (..., half, y, z), real
        Times `mode_weights` along `half` and summed it is the sum of a's squared moduli.

    >>> import numpy as np
    >>> a = np.arange(4.0).reshape(4, 1, 1, 1)
    >>> (power(a).ravel() @ mode_weights(a)).round(12) == (a**2).sum()
    np.True_
    """
    xp = array_namespace(a)
    if framework_of(xp) == "numpy":
        return _power_on_host(np.asarray(a))
    return squared(_modes(xp, a))


def squared(a: Any) -> Any:
    """Sum squared moduli along the last axis, ``(lines)->()``; in NumPy nothing is kept beside.

    >>> import numpy as np
    >>> float(squared(np.asarray([3.0, 4j])))
    25.0
    """
    xp = array_namespace(a)
    if framework_of(xp) == "numpy":
        return np.real(np.vecdot(a, a))
    if not _is_complex(a):
        return xp.sum(a * a, axis=-1)
    real, imaginary = xp.real(a), xp.imag(a)
    return xp.sum(real * real + imaginary * imaginary, axis=-1)


def _is_complex(a: Any) -> bool:
    return bool(array_namespace(a).isdtype(a.dtype, "complex floating"))


def _modes(xp: Any, a: Any) -> Any:
    """Transform all three axes, of a real array half of the first."""
    if _is_complex(a):
        return _along(xp, a, _AXES, forward=True)
    if a.shape[-4] > 1:
        a = xp.fft.rfft(a, axis=-4, norm="ortho")
    else:
        a = xp.astype(a, xp.complex64 if a.dtype == xp.float32 else xp.complex128)
    return _along(xp, a, _AXES[1:], forward=True)


def _along(xp: Any, a: Any, axes: tuple[int, ...], *, forward: bool) -> Any:
    axes = tuple(axis for axis in axes if a.shape[axis] > 1)
    lengths = [int(a.shape[axis]) for axis in axes]
    if not axes:
        return a
    if framework_of(xp) == "torch" and device(a).type == "cpu" and max(lengths) <= _SHORT:
        for axis, n in zip(axes, lengths, strict=True):
            matrix = xp.asarray(_matrix(n, forward), dtype=a.dtype, device=device(a))
            rows = xp.reshape(a, (*a.shape[: axis + 1], -1))
            a = xp.reshape(xp.matmul(matrix, rows), a.shape)
        return a
    transform = xp.fft.fftn if forward else xp.fft.ifftn
    return transform(a, axes=axes, norm="ortho")


@lru_cache(maxsize=64)
def _matrix(n: int, forward: bool = True) -> NDArray[np.complex128]:
    """Give the matrix of a transform of n points, (k, x); angles are reduced before a cosine."""
    steps = np.arange(n, dtype=np.float64)  # a compiler of torch would divide integers in float32
    turns = np.outer(steps, steps) % n / n
    matrix: NDArray[np.complex128] = np.exp((-2j if forward else 2j) * np.pi * turns)
    return matrix / math.sqrt(n)


@lru_cache(maxsize=64)
def _products(n: int, real: bool, dtype: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give the matrices of an axis there and back: (k c, c x) and (c x, k c), c the components.

    There and back are transposed. Of real numbers one component and half of the modes are left, of
    which those that stand for their mirror images count twice on the way back.
    """
    w = _matrix(n)
    there = np.stack([np.stack([w.real, w.imag], 1), np.stack([-w.imag, w.real], 1)], 2)
    there = there[: n // 2 + 1, :, :1] if real else there  # (k, c, c, x)
    back = there.copy()
    if real:
        back[1 : (n + 1) // 2] *= 2
    there, back = (part.reshape(2 * len(part), -1) for part in (there, back))
    return there.astype(dtype), np.ascontiguousarray(back.T, dtype)


def _filtered_on_host(a: NDArray[Any], factor: NDArray[Any]) -> NDArray[Any]:
    found = np.empty(a.shape, a.dtype)
    for row, place in zip(_rows(a), _rows(found), strict=True):
        if _is_short(row):
            for block, *scratch in _blocks(row):
                modes = _to_modes(row[..., block], scratch)
                modes *= factor[..., None]
                _from_modes(modes, scratch, place[..., block])
        else:
            _filtered_by_fft(row, factor, place)
    return found


def _filtered_by_fft(row: NDArray[Any], factor: NDArray[Any], place: NDArray[Any]) -> None:
    """Fill a place; complex numbers are transformed within it, so that nothing else is needed."""
    real = row.dtype.kind == "f"
    modes = _fft(row, None if real else place)
    modes *= factor[..., None]
    for axis in (2, 1) if real else (2, 1, 0):
        if modes.shape[axis] > 1:
            np.fft.ifft(modes, axis=axis, norm="ortho", out=modes)
    if real:
        np.fft.irfft(modes, n=row.shape[0], axis=0, norm="ortho", out=place)


def _power_on_host(a: NDArray[Any]) -> NDArray[Any]:
    half = _half_on_host(a)
    found = np.zeros((*a.shape[:-4], half, *a.shape[-3:-1]), a.real.dtype)
    rows = found.reshape(-1, *found.shape[-3:])
    for row, total in zip(_rows(a), rows, strict=True):
        if _is_short(row):
            for block, *scratch in _blocks(row):
                modes = _to_modes(row[..., block], scratch)
                total += np.vecdot(modes, modes)
        else:
            _add_power_by_fft(row, total)
    return found


def _add_power_by_fft(row: NDArray[Any], total: NDArray[Any]) -> None:
    lines, real = row.shape[-1], row.real.dtype
    step = min(lines, max(1, _SCRATCH_BYTES // (2 * real.itemsize * total.size)))
    scratch = np.empty((*total.shape, step), np.result_type(real, np.complex64))
    for start in range(0, lines, step):
        part = row[..., start : start + step]
        modes = _fft(part, scratch[..., : part.shape[-1]])
        if part.shape[-1] < step:
            modes = np.ascontiguousarray(modes)
        components = modes.view(real)
        total += np.vecdot(components, components)


def _half_on_host(a: NDArray[Any]) -> int:
    """Give `half_length` of an array of NumPy, whose namespace need not be looked for."""
    x = int(a.shape[-4])
    return x if a.dtype.kind == "c" else x // 2 + 1


def _rows(a: NDArray[Any]) -> NDArray[Any]:
    return a.reshape(-1, *a.shape[-4:])


def _is_short(row: NDArray[Any]) -> bool:
    return bool(max(row.shape[:3]) <= _SHORT)


def _fft(a: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """Transform three axes of one row (x, y, z, lines) within a single array."""
    first = 0
    if a.dtype.kind == "f":
        out = np.fft.rfft(a, axis=0, norm="ortho", out=out)
    else:
        first = next(axis for axis in range(3) if a.shape[axis] > 1)
        out = np.fft.fft(a, axis=first, norm="ortho", out=out)
    for axis in range(first + 1, 3):
        if a.shape[axis] > 1:
            np.fft.fft(out, axis=axis, norm="ortho", out=out)
    return out


def _blocks(row: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any], NDArray[Any]]]:
    """Cut one row (x, y, z, lines) into lines that a cache holds, with two scratch arrays."""
    x, y, z, lines = row.shape
    dtype = row.real.dtype
    numbers = max(x if row.dtype.kind == "f" else 0, 2 * _half_on_host(row)) * y * z  # of a line
    step = min(lines, max(8, _CACHED_BYTES // (numbers * dtype.itemsize)))
    one, other = np.empty(numbers * step, dtype), np.empty(numbers * step, dtype)
    for start in range(0, lines, step):
        yield slice(start, min(start + step, lines)), one, other


def _stages(
    a: NDArray[Any], half: int, dtype: Any, *, real: bool
) -> list[tuple[int, NDArray[Any], NDArray[Any]]]:
    """List how many matrices each axis multiplies, and its products; none of length 1."""
    y, z = a.shape[1:3]
    x = a.shape[0]
    axes = ((1, x, real), (half, y, False), (half * y, z, False))
    return [(rows, *_products(n, alone, dtype)) for rows, n, alone in axes if n > 1 or alone]


def _multiplied(
    a: NDArray[Any], rows: int, matrix: NDArray[Any], scratch: list[NDArray[Any]]
) -> NDArray[Any]:
    """Multiply into the second scratch array, which becomes the first one."""
    a = a.reshape(rows, matrix.shape[1], -1)
    made = scratch[1][: rows * matrix.shape[0] * a.shape[-1]]
    scratch.reverse()
    return np.matmul(matrix, a, out=made.reshape(rows, matrix.shape[0], -1))


def _to_modes(a: NDArray[Any], scratch: list[NDArray[Any]]) -> NDArray[Any]:
    """Transform lines (x, y, z, l) into (half, y, z, 2 l): re and im of each mode in turn."""
    x, y, z, l = a.shape  # noqa: E741  lines, beside their number
    real, half = a.dtype.kind == "f", _half_on_host(a)
    found = scratch[0][: (1 if real else 2) * a.size].reshape(-1, x, y, z, l)
    found[0] = a.real
    if not real:
        found[1] = a.imag
    for rows, there, _ in _stages(a, half, a.real.dtype, real=real):
        found = _multiplied(found, rows, there, scratch)
    return found.reshape(half, y, z, 2 * l)


def _from_modes(modes: NDArray[Any], scratch: list[NDArray[Any]], place: NDArray[Any]) -> None:
    """Transform (half, y, z, 2 l) back into lines (x, y, z, l) of a place."""
    real = place.dtype.kind == "f"
    for rows, _, back in reversed(_stages(place, len(modes), modes.dtype, real=real)):
        modes = _multiplied(modes, rows, back, scratch)
    parts = modes.reshape(-1, *place.shape)  # (c, x, y, z, l)
    if real:
        place[...] = parts[0]
    else:
        place.real, place.imag = parts[0], parts[1]
