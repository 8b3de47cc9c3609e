"""Fourier transforms of three axes in front of one that stays, as a framework does them fastest.

All are "ortho". Modes that differ by the signs of k along the axes are taken together: a filter
does the same to all of them, and their power is added up. Of an axis of n points n // 2 + 1 are
left, with |k| rising. Axes of length 1 are left alone. No array here is written into by its caller.

A short transform costs passes over memory rather than arithmetic. NumPy therefore takes as many
lines at a time as a cache holds. Where all axes are short it multiplies by their matrices, as torch
does on a CPU. These are real: the cosines and sines of all |k| are an orthonormal basis as well,
and those of one |k| span what its modes of both signs span. So a complex number is two real ones,
which costs half of the arithmetic, and no pass turns the array round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from stowplan.special import framework_of

__all__ = ["filtered", "is_short", "power", "squared"]

_SHORT = 16  # up to here products with the matrix of an axis are faster, on a CPU
_CACHED_BYTES = 1 << 19  # of lines that go through all products together
_SCRATCH_BYTES = 1 << 23  # of lines whose power is taken together by FFT
_AXES = (-4, -3, -2)


def filtered(a: Any, factor: Any) -> Any:
    """Multiply every mode by a real factor, ``(x,y,z,lines),(kx,ky,kz)->(x,y,z,lines)``.

    Parameters
    ----------
    a : array (..., x, y, z, lines)
        Real or complex; so is the result, of the same dtype.
    factor : array (x // 2 + 1, y // 2 + 1, z // 2 + 1)
        Of a's real dtype; the same for all leading dims and all signs of k.

    >>> import numpy as np
    >>> a = np.arange(4.0).reshape(4, 1, 1, 1)
    >>> mean = filtered(a, np.array([1.0, 0.0, 0.0]).reshape(3, 1, 1))  # mode 0 alone
    >>> mean.ravel().tolist()
    [1.5, 1.5, 1.5, 1.5]
    """
    xp = array_namespace(a)
    if framework_of(xp) == "numpy":
        return _filtered_on_host(np.asarray(a), np.asarray(factor))
    x, *_ = lengths = _lengths(a)
    if _is_short_in_torch(xp, a):
        parts = _in_basis(xp, _components(xp, a)) * _unfolded(xp, factor, lengths)[..., None]
        parts = _in_basis(xp, parts, back=True)
        if not _is_complex(a):
            return parts
        return xp.view_as_complex(xp.reshape(parts, (*a.shape, 2)))
    if _is_complex(a):
        modes = _along(xp, a, _AXES, forward=True) * _unfolded(xp, factor, lengths)[..., None]
        return _along(xp, modes, _AXES, forward=False)
    modes = _half_of_modes(xp, a) * _unfolded(xp, factor, (1, *lengths[1:]))[..., None]
    modes = _along(xp, modes, _AXES[1:], forward=False)
    return xp.real(modes) if x == 1 else xp.fft.irfft(modes, n=x, axis=-4, norm="ortho")


def power(a: Any) -> Any:
    """Sum the squared moduli of modes over signs of k and lines, ``(x,y,z,lines)->(kx,ky,kz)``.

    Parameters
    ----------
    a : array (..., x, y, z, lines)

    Returns
    -------
    array (..., x // 2 + 1, y // 2 + 1, z // 2 + 1), real
        Their sum is that of a's squared moduli.

    >>> import numpy as np
    >>> a = np.arange(4.0).reshape(4, 1, 1, 1)
    >>> power(a).ravel().round(12).tolist()  # 0; 1 and -1; 2
    [9.0, 4.0, 1.0]
    """
    xp = array_namespace(a)
    if framework_of(xp) == "numpy":
        return _power_on_host(np.asarray(a))
    x, y, z = _lengths(a)
    if _is_short_in_torch(xp, a):
        return _folded(xp, squared(_in_basis(xp, _components(xp, a))), (x, y, z))
    if _is_complex(a):
        return _folded(xp, squared(_along(xp, a, _AXES, forward=True)), (x, y, z))
    half = _folded(xp, squared(_half_of_modes(xp, a)), (1, y, z))
    once, twice = half[..., :1, :, :], half[..., 1 : (x + 1) // 2, :, :]
    return xp.concat([once, 2 * twice, half[..., (x + 1) // 2 :, :, :]], axis=-3) if x > 1 else half


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


def is_short(lengths: Sequence[int]) -> bool:
    """Say whether products with matrices transform axes of such lengths faster than FFTs, on a CPU.

    They take little longer than the array takes to be read.
    """
    return max(lengths) <= _SHORT


def _is_complex(a: Any) -> bool:
    return bool(array_namespace(a).isdtype(a.dtype, "complex floating"))


def _lengths(a: Any) -> tuple[int, int, int]:
    x, y, z = map(int, a.shape[-4:-1])
    return x, y, z


def _is_short_in_torch(xp: Any, a: Any) -> bool:
    """Say whether products with matrices are faster than FFTs; in XLA they are not."""
    if framework_of(xp) != "torch" or not is_short(_lengths(a)):
        return False
    return bool(device(a).type == "cpu")


def _components(xp: Any, a: Any) -> Any:
    """Give real and imaginary parts as twice as many lines, a view."""
    if not _is_complex(a):
        return a
    return xp.reshape(xp.view_as_real(xp.resolve_conj(a)), (*a.shape[:-1], 2 * a.shape[-1]))


def _in_basis(xp: Any, a: Any, *, back: bool = False) -> Any:
    """Multiply real lines by the matrices of all axes, there or back."""
    for axis, n in zip(_AXES, _lengths(a), strict=True):
        if n > 1:
            basis = _basis(n, np.float64)
            matrix = xp.asarray(basis.T if back else basis, dtype=a.dtype, device=device(a))
            rows = xp.reshape(a, (*a.shape[: axis + 1], -1))
            a = xp.reshape(xp.matmul(matrix, rows), a.shape)
    return a


def _half_of_modes(xp: Any, a: Any) -> Any:
    """Transform all three axes of a real array, the first to half of its modes."""
    if a.shape[-4] > 1:
        a = xp.fft.rfft(a, axis=-4, norm="ortho")
    else:
        a = xp.astype(a, xp.complex64 if a.dtype == xp.float32 else xp.complex128)
    return _along(xp, a, _AXES[1:], forward=True)


def _along(xp: Any, a: Any, axes: tuple[int, ...], *, forward: bool) -> Any:
    axes = tuple(axis for axis in axes if a.shape[axis] > 1)
    if not axes:
        return a
    transform = xp.fft.fftn if forward else xp.fft.ifftn
    return transform(a, axes=axes, norm="ortho")


def _unfolded(xp: Any, factor: Any, lengths: Sequence[int]) -> Any:
    """Give the factor of each mode in the order of an FFT, from those of |k|, (kx, ky, kz)."""
    for axis, n in enumerate(lengths):
        if n > 2:
            mode = np.arange(n)
            places = xp.asarray(np.minimum(mode, n - mode), device=device(factor))
            factor = xp.take(factor, places, axis=axis)
    return factor


def _folded(xp: Any, values: Any, lengths: Sequence[int]) -> Any:
    """Add up values (..., nx, ny, nz) in the order of an FFT that differ by signs of k."""
    for axis, n in zip((-3, -2, -1), lengths, strict=True):
        if n > 2:
            pairs, half = (n + 1) // 2, n // 2 + 1
            behind = (slice(None),) * (-axis - 1)
            once, rising, middle, falling = (
                values[(..., cut, *behind)]
                for cut in (slice(1), slice(1, pairs), slice(pairs, half), slice(half, n))
            )
            values = xp.concat([once, rising + xp.flip(falling, axis=axis), middle], axis=axis)
    return values


@lru_cache(maxsize=64)
def _basis(n: int, dtype: Any) -> NDArray[Any]:
    """Give cosines and sines as rows (k, x), orthonormal; |k| is in the order of an FFT.

    Angles are reduced before a cosine is taken.
    """
    mode = place = np.arange(n, dtype=np.float64)  # a compiler of torch divides integers in float32
    angles = 2 * math.pi * (np.outer(np.minimum(mode, n - mode), place) % n / n)
    rows = np.where(2 * mode[:, None] <= n, np.cos(angles), np.sin(angles))
    found: NDArray[Any] = rows / np.sqrt(np.sum(rows * rows, axis=1, keepdims=True))
    return found.astype(dtype)


def _filtered_on_host(a: NDArray[Any], factor: NDArray[Any]) -> NDArray[Any]:
    found = np.empty(a.shape, a.dtype)
    x, y, z = lengths = _lengths(a)
    short = is_short(lengths)
    halved = a.dtype.kind == "f" and not short
    factor = _unfolded(np, factor, (1 if halved else x, y, z))[..., None]
    for row, place in zip(_rows(a), _rows(found), strict=True):
        (_filtered_by_products if short else _filtered_by_fft)(row, factor, place)
    return found


def _filtered_by_products(row: NDArray[Any], factor: NDArray[Any], place: NDArray[Any]) -> None:
    there, back = _real_lines(row), _real_lines(place)
    for block, scratch in _blocks(there):
        modes = _products(there[..., block], scratch)
        modes *= factor
        _products_back(modes, scratch, back[..., block])


def _filtered_by_fft(row: NDArray[Any], factor: NDArray[Any], place: NDArray[Any]) -> None:
    """Fill a place; complex numbers are transformed within it, so that nothing else is needed."""
    real = row.dtype.kind == "f"
    modes = _fft(row, None if real else place)
    modes *= factor
    for axis in (2, 1) if real else (2, 1, 0):
        if modes.shape[axis] > 1:
            np.fft.ifft(modes, axis=axis, norm="ortho", out=modes)
    if real:
        np.fft.irfft(modes, n=row.shape[0], axis=0, norm="ortho", out=place)


def _power_on_host(a: NDArray[Any]) -> NDArray[Any]:
    x, y, z = lengths = _lengths(a)
    short = is_short(lengths)
    halved = a.dtype.kind == "f" and not short
    found = np.zeros((*a.shape[:-4], x // 2 + 1 if halved else x, y, z), a.real.dtype)
    for row, total in zip(_rows(a), found.reshape(-1, *found.shape[-3:]), strict=True):
        (_add_power_by_products if short else _add_power_by_fft)(row, total)
    if halved:
        found[..., 1 : (x + 1) // 2, :, :] *= 2
    return np.asarray(_folded(np, found, (1 if halved else x, y, z)))


def _add_power_by_products(row: NDArray[Any], total: NDArray[Any]) -> None:
    lines = _real_lines(row)
    for block, scratch in _blocks(lines):
        modes = _products(lines[..., block], scratch)
        total += np.vecdot(modes, modes)


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


def _rows(a: NDArray[Any]) -> NDArray[Any]:
    return a.reshape(-1, *a.shape[-4:])


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


def _real_lines(row: NDArray[Any]) -> NDArray[Any]:
    """Give real and imaginary parts of one row as twice as many lines, a view where it can be."""
    if row.strides[-1] != row.itemsize:  # libraries of products take no other lines
        row = np.ascontiguousarray(row)
    return row.view(row.real.dtype)


def _blocks(row: NDArray[Any]) -> Iterator[tuple[slice, list[NDArray[Any]]]]:
    """Cut one row (x, y, z, lines) into lines that a cache holds, with two scratch arrays."""
    x, y, z, lines = row.shape
    step = min(lines, max(8, _CACHED_BYTES // (x * y * z * row.itemsize)))
    scratch = [np.empty(x * y * z * step, row.dtype) for _ in range(2)]
    for start in range(0, lines, step):
        yield slice(start, min(start + step, lines)), scratch


def _products(a: NDArray[Any], scratch: list[NDArray[Any]]) -> NDArray[Any]:
    """Multiply lines (x, y, z, lines) by the matrices of all axes, within the scratch arrays."""
    axes = _long_axes(a)
    for axis in reversed(axes):
        out = scratch[1][: a.size].reshape(a.shape)
        scratch.reverse()
        a = _product(_basis(a.shape[axis], a.dtype), a, axis, out)
    return a if axes else a.copy()


def _products_back(modes: NDArray[Any], scratch: list[NDArray[Any]], place: NDArray[Any]) -> None:
    """Multiply by the matrices of all axes, transposed, into a place (x, y, z, lines)."""
    axes = _long_axes(modes)
    for axis in axes:
        out = place if axis == axes[-1] else scratch[1][: modes.size].reshape(modes.shape)
        scratch.reverse()
        modes = _product(_basis(modes.shape[axis], modes.dtype).T, modes, axis, out)
    if not axes:
        place[...] = modes


def _long_axes(a: NDArray[Any]) -> list[int]:
    return [axis for axis in range(3) if a.shape[axis] > 1]


def _product(matrix: NDArray[Any], a: NDArray[Any], axis: int, out: NDArray[Any]) -> NDArray[Any]:
    """Multiply along one axis. Of cut lines, this is the last axis longer than 1: all are views."""
    shape = a.shape if axis == 2 else (math.prod(a.shape[:axis]), a.shape[axis], -1)
    np.matmul(matrix, a.reshape(shape), out=out.reshape(shape))
    return out
