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
_CACHED_BYTES = 1 << 18  # of lines that go through two products together
_ROW_BYTES = 1 << 13  # of lines read in one piece; of shorter ones memory is slow
_SCRATCH_BYTES = 1 << 23  # of lines whose power is taken together by FFT
_AXES = (-4, -3, -2)


def filtered(a: Any, factor: Any) -> Any:
    """Multiply every mode by a real factor, ``(x,y,z,lines),(kx,ky,kz)->(x,y,z,lines)``.

    Parameters
    ----------
    a : array (..., x, y, z, lines)
        Real or complex; so is the result, of the same dtype, in the byte order of the machine.
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
        return _filtered_on_host(_native(a), np.asarray(factor))
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
        with np.errstate(over="ignore", invalid="ignore"):  # inf says it, as in other frameworks
            return _power_on_host(_native(a))
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


def _native(a: Any) -> NDArray[Any]:
    """Give an array of NumPy in the byte order of the machine, which views of its bytes take."""
    found: NDArray[Any] = np.asarray(a)
    return found.astype(found.dtype.newbyteorder("="), copy=False)


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
    a, found, factor = map(_ordered, (_real_lines(row), _real_lines(place), factor))
    for lines, products in _blocks(a):
        products.filter(a[..., lines], factor, found[..., lines])


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
    a, total = map(_ordered, (_real_lines(row), total[..., None]))
    for lines, products in _blocks(a):
        products.add_power(a[..., lines], total[..., 0])


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


def _ordered(a: NDArray[Any]) -> NDArray[Any]:
    """Put axes of length 1 into z, then into x: all products have y, most have x. A view."""
    long = [n for n in a.shape[:-1] if n > 1]
    lengths = [1] * (2 - len(long)) + long
    return a.reshape(*lengths, *[1] * (3 - len(lengths)), a.shape[-1])


def _blocks(a: NDArray[Any]) -> Iterator[tuple[slice, _Products]]:
    """Cut (x, y, z, lines) into lines, with what multiplies so many.

    A cache holds all of a block, or else a plane of it, so that rows are not read in short pieces.
    """
    x, y, z, lines = a.shape
    of_planes = min(_ROW_BYTES // a.itemsize, _CACHED_BYTES // (max(x, y) * z * a.itemsize))
    step = min(lines, max(8, of_planes, _CACHED_BYTES // (x * y * z * a.itemsize)))
    whole, part = x * y * z * step, max(_CACHED_BYTES // a.itemsize, max(x, y) * z * step)
    scratch = np.empty(whole, a.dtype), np.empty(min(whole, part), a.dtype)
    products = _Products((x, y, z, step), scratch)
    for start in range(0, lines - step + 1, step):
        yield slice(start, start + step), products
    if rest := lines % step:
        yield slice(lines - rest, lines), _Products((x, y, z, rest), scratch)


class _Products:
    """Products of blocks (x, y, z, lines) with the matrices of all axes, in scratch.

    Those of z and y are made for some planes after another, as many as a cache holds, then that of
    x for some columns. Their views are made once, since they take as long as a small product.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], scratch: tuple[NDArray[Any], NDArray[Any]]
    ) -> None:
        x, y, z, lines = shape
        whole, part = scratch
        modes = _shaped(whole, shape)
        self.x, self.z = (_basis(n, modes.dtype) if n > 1 else None for n in (x, z))
        self.y = _basis(y, modes.dtype)
        self.planes: list[tuple[slice, NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        self.columns: list[tuple[slice, NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        for cut in _cut(x, modes[:1].nbytes):
            planes = modes[cut]
            within, rows = _shaped(part, planes.shape), (len(planes), y, z * lines)
            self.planes.append((cut, within, within.reshape(rows), planes.reshape(rows)))
        for cut in _cut(y, modes[:, :1].nbytes):
            columns = modes[:, cut]
            room = _shaped(part, columns.shape) if x > 1 else columns
            self.columns.append((cut, columns.reshape(x, -1), room.reshape(x, -1), room))

    def add_power(self, a: NDArray[Any], total: NDArray[Any]) -> None:
        """Add the sum of squares over lines, (x, y, z)."""
        self._forward(a)
        for y, modes, rows, column in self.columns:
            if self.x is not None:
                np.matmul(self.x, modes, out=rows)
            total[:, y] += np.vecdot(column, column)

    def filter(self, a: NDArray[Any], factor: NDArray[Any], found: NDArray[Any]) -> None:
        """Multiply modes by a factor (x, y, z, 1), and put the block into its place."""
        self._forward(a)
        for y, modes, rows, column in self.columns:
            if self.x is not None:
                np.matmul(self.x, modes, out=rows)
            column *= factor[:, y]
            if self.x is not None:
                np.matmul(self.x.T, rows, out=modes)
        for x, within, rows, modes in self.planes:
            if self.z is None:
                np.matmul(self.y.T, modes, out=found[x, :, 0])
            else:
                np.matmul(self.y.T, modes, out=rows)
                np.matmul(self.z.T, within, out=found[x])

    def _forward(self, a: NDArray[Any]) -> None:
        """Multiply by the matrices of z and y."""
        for x, within, rows, modes in self.planes:
            if self.z is None:
                np.matmul(self.y, a[x, :, 0], out=modes)
            else:
                np.matmul(self.z, a[x], out=within)
                np.matmul(self.y, rows, out=modes)


def _cut(count: int, each: int) -> Iterator[slice]:
    """Cut planes of so many bytes into as many as a cache holds."""
    step = max(1, _CACHED_BYTES // each)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _shaped(scratch: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return scratch[: math.prod(shape)].reshape(shape)
