r"""Fields on periodic grids: Riesz potentials, power spectra and radial sums.

A field has three axes in space, of length 1 where it has fewer, and `lines`: all others flattened,
such as three of phase and one of time, which nothing here transforms. Its transforms are "ortho",

    a_k = (x y z)^(-1/2) sum_r a_r exp(-i k.r),    k = 2 pi n / (N dx),

so that sums of squared moduli are equal (Parseval). The Riesz potential of order 2 beta solves
(mu |k|^(2 beta) + lam) a_k = s_k: Poisson's equation at beta = 1, screened where lam > 0, and
fractional else. Source: N. S. Landkof, Foundations of Modern Potential Theory (1972).

A spacing of the grid and all other numbers are real and traced: other values compile nothing new.
Numbers along an axis are made in a dtype that is named, since `fft.fftfreq` gives float32 in some
frameworks.

Cells are collected in rings: shells of |k|, or bins of the distance from a centre. Ring m holds
what is nearest to m widths; a tie, up to 4e-7, goes to the lower one, so that all frameworks agree
on it. They are numbered in float64 whatever the data are, but in JAX with x64 off: there a cell
within 1e-6 of an edge may be in the next ring. A run gives numbers in the dtype of the data, and
arrays as they are: pass spacing, centre and width as arrays of float64 where that matters.
"""

import math
from numbers import Number

from array_api_compat import array_namespace, device

from stowplan.declaration import kernel
from stowplan.fourier import filtered, power, squared
from stowplan.special import framework_of, shared_segment_sum

__all__ = [
    "inverse_symbol",
    "radial",
    "residual",
    "riesz",
    "riesz_symbol",
    "ring_count",
    "ring_numbers",
    "spectrum",
    "squares",
]

_FIELD = "(x,y,z,lines)"
_TIE = 4e-7  # of a ring's number; float32 rounds |k| by less
_SPACE = ("x", "y", "z")


def ring_count(x, y, z):
    """Give the rings of a grid, those of a width that no axis makes too narrow.

    For shells this is a width of at least 2 pi / (N dx) along each axis longer than 1; for bins
    about a centre one of at least dx.

    >>> ring_count(4, 4, 1), ring_count(1, 1, 1)
    (4, 1)
    """
    farthest = math.isqrt(sum(n * n for n in (x, y, z) if n > 1))  # twice, in widths
    return (farthest + 1) // 2 + 1


def _rings(x, y, z, lines):
    return ring_count(x, y, z)


@kernel(
    f"{_FIELD}->{_FIELD}",
    ragged=(*_SPACE, "lines"),
    exact=_SPACE,
    work="5 * (x * y * z) ** 1.15 * lines",  # ns on a CPU
    memory="8 * x * y * z * lines",
)
def riesz(source, *, spacing, mu=1.0, beta=1.0, lam=0.0):
    r"""Solve (mu |k|^(2 beta) + lam) a_k = s_k, ``(x,y,z,lines)->(x,y,z,lines)``.

    Parameters
    ----------
    source : array (..., x, y, z, lines)
        s, real or complex; padding 0. The potential is of the same dtype.
    spacing : number, or array (3,)
        Of the grid along x, y and z, > 0, in a unit of length.
    mu : number
        > 0.
    beta : number
        > 0.
    lam : number
        >= 0; with 0 the mean of the source is left out, and that of the potential is 0.

    Returns
    -------
    array (..., x, y, z, lines)
    """
    denominator = _denominator(source, spacing, mu, beta, lam)
    return filtered(source, inverse_symbol(denominator))


@kernel(
    f"{_FIELD},{_FIELD}->(),()",
    ragged=(*_SPACE, "lines"),
    exact=_SPACE,
    fill={"potential": 0, "source": 0},
    work="6 * (x * y * z) ** 1.15 * lines",
    memory="10 * x * y * z * lines",
)
def residual(potential, source, *, spacing, mu=1.0, beta=1.0, lam=0.0):
    r"""Sum |D a - s|^2 and |s|^2, ``(x,y,z,lines),(x,y,z,lines)->(),()``.

    D multiplies modes by mu |k|^(2 beta) + lam. The root of the quotient is the relative residual;
    fields cut along lines add up first.

    Parameters
    ----------
    potential, source : array (..., x, y, z, lines)
        Of one dtype; padding 0.
    spacing, mu, beta, lam : number
        Those of `riesz`.

    Returns
    -------
    off, all : array (...), real
    """
    back = filtered(potential, _denominator(potential, spacing, mu, beta, lam))
    return _square_sum(back - source), _square_sum(source)


@kernel(
    f"{_FIELD}->()",
    ragged=(*_SPACE, "lines"),
    exact=_SPACE,
    fill={"field": 0},
    work="2 * x * y * z * lines",
    memory="3 * x * y * z * lines",
)
def squares(field):
    """Sum |a|^2, ``(x,y,z,lines)->()``.

    Parameters
    ----------
    field : array (..., x, y, z, lines)
        Real or complex; padding 0.

    Returns
    -------
    array (...), real
    """
    return _square_sum(field)


@kernel(
    f"{_FIELD}->(shells)",
    ragged=(*_SPACE, "lines"),
    exact=_SPACE,
    fill={"field": 0},
    out_sizes={"shells": _rings},
    work="(x * y * z) ** 1.25 * lines + 30 * x * y * z",
    memory="6 * x * y * z * lines",
)
def spectrum(field, *, spacing, width):
    """Sum |a_k|^2 over the modes of each shell and over lines, ``(x,y,z,lines)->(shells)``.

    Parameters
    ----------
    field : array (..., x, y, z, lines)
        Real or complex; padding 0.
    spacing : number, or array (3,)
        Of the grid, > 0.
    width : number, or array (1,)
        Of a shell in |k|; at least the largest 2 pi / (N dx) of an axis longer than 1, or else the
        last shells are missing.

    Returns
    -------
    array (..., shells), real
        Shell m is around m widths. Their sum is that of a's squared moduli. How many modes each
        one has depends on no field: `stowplan.recipes.fields_rings` counts them.
    """
    xp = array_namespace(field)
    waves = _wave_numbers(field, spacing)
    width = _real_number(field, width, wide=True)
    return _ring_sums(xp, power(field), waves, width, field.shape[-4:-1])


@kernel(
    f"{_FIELD}->(bins)",
    ragged=(*_SPACE, "lines"),
    exact=_SPACE,
    fill={"field": 0},
    out_sizes={"bins": _rings},
    work="2 * x * y * z * lines + 30 * x * y * z",
    memory="3 * x * y * z * lines",
)
def radial(field, *, spacing, centre, width):
    """Sum values, with their sign, over distances from a centre, ``(x,y,z,lines)->(bins)``.

    Parameters
    ----------
    field : array (..., x, y, z, lines)
        Real or complex; padding 0.
    spacing : number, or array (3,)
        Of the grid, > 0.
    centre : array (3,)
        In cells from cell (0, 0, 0); need not be whole. Distances are to its nearest image.
    width : number, or array (1,)
        Of a bin; at least the largest spacing of an axis longer than 1, or else the last bins are
        missing.

    Returns
    -------
    array (..., bins)
        Sums over cells and lines, of the field's dtype; bin m is around m widths.
    """
    xp = array_namespace(field)
    steps, centre = _three(field, spacing, wide=True), _three(field, centre, wide=True)
    distances = [
        _distances(field, int(field.shape[axis - 4]), steps[axis], centre[axis])
        for axis in range(3)
    ]
    values = xp.sum(field, axis=-1)
    width = _real_number(field, width, wide=True)
    return _ring_sums(xp, values, distances, width, field.shape[-4:-1])


def ring_numbers(x, y, z, width):
    """Number the rings of a grid from three arrays along its axes, (nx), (ny), (nz), at a width.

    >>> import numpy as np
    >>> ring_numbers(np.asarray([0.0, 1.0, 2.0]), np.asarray([1.0]), np.zeros(1), 1.0).ravel()
    array([1, 1, 2])
    """
    xp = array_namespace(x)
    x, y, z = (part * ((1 - _TIE) / width) for part in (x, y, z))
    square = ((x * x)[:, None, None] + (y * y)[:, None]) + z * z
    dtype = xp.int32 if framework_of(xp) == "jax" else xp.int64
    return xp.astype(xp.sqrt(square) + 0.5, dtype)  # cut off


def _ring_sums(xp, values, axes, width, shape):
    """Sum (..., nx, ny, nz) over rings."""
    numbers = ring_numbers(*axes, width)
    leading = values.shape[:-3]
    values = xp.reshape(values, (*leading, -1))
    return shared_segment_sum(values, xp.reshape(numbers, (-1,)), ring_count(*map(int, shape)))


def riesz_symbol(square, mu, beta, lam):
    """Give mu |k|^(2 beta) + lam of |k|^2, an array of any shape.

    >>> import numpy as np
    >>> riesz_symbol(np.asarray([0.0, 4.0]), 2.0, 0.5, 1.0).tolist()
    [1.0, 5.0]
    """
    xp = array_namespace(square)
    away = square > 0
    one = xp.ones_like(square)
    powers = xp.pow(xp.where(away, square, one), beta)
    return mu * xp.where(away, powers, xp.zeros_like(square)) + lam


def inverse_symbol(denominator):
    """Give 1 / (mu |k|^(2 beta) + lam), and 0 where that is 0: a mean that nothing screens.

    >>> import numpy as np
    >>> inverse_symbol(np.asarray([0.0, 4.0])).tolist()
    [0.0, 0.25]
    """
    xp = array_namespace(denominator)
    nonzero = denominator > 0
    one = xp.ones_like(denominator)
    return xp.where(nonzero, one / xp.where(nonzero, denominator, one), xp.zeros_like(one))


def _denominator(field, spacing, mu, beta, lam):
    """Give the symbol for each |k| of a field, (kx, ky, kz) as `fourier` counts them.

    It is mu k0^(2 beta) (|k| / k0)^(2 beta) + lam, k0 being the least |k| > 0 along an axis: the
    square of |k| itself leaves float32 where lengths are in metres.
    """
    xp = array_namespace(field)
    mu, beta, lam = (_real_number(field, number) for number in (mu, beta, lam))
    units = _wave_units(field, _three(field, spacing))
    long = [unit for unit, n in zip(units, field.shape[-4:-1], strict=True) if n > 1]
    least = xp.min(xp.stack(long)) if long else xp.ones_like(mu)
    apart = [
        unit / least if n > 1 else xp.ones_like(mu)
        for unit, n in zip(units, field.shape[-4:-1], strict=True)
    ]
    x, y, z = (k * k for k in _multiples(field, apart))
    square = x[:, None, None] + y[:, None] + z  # at least 1, but for the zero mode
    return riesz_symbol(square, mu * xp.pow(least, 2 * beta), beta, lam)


def _wave_numbers(field, spacing):
    """Give |k| along the three axes of a spectrum, radians per unit of length."""
    return _multiples(field, _wave_units(field, _three(field, spacing, wide=True)))


def _wave_units(field, steps):
    """Give the least |k| > 0 along each axis."""
    return [2 * math.pi / n / steps[axis] for axis, n in enumerate(map(int, field.shape[-4:-1]))]


def _multiples(field, units):
    """Give the multiples of a unit along each axis of a spectrum, three arrays (n // 2 + 1)."""
    xp = array_namespace(field)
    lengths = [int(n) // 2 + 1 for n in field.shape[-4:-1]]
    return [
        xp.arange(n, dtype=unit.dtype, device=device(field)) * unit
        for n, unit in zip(lengths, units, strict=True)
    ]


def _distances(field, n, step, centre):
    """Give the distance of each cell along an axis from the nearest image of a centre."""
    xp = array_namespace(field)
    away = xp.arange(n, dtype=step.dtype, device=device(field)) - centre
    if n == 1:  # the field has no such axis
        return xp.zeros_like(away)
    away = away - n * xp.floor(away / n + 0.5)
    return xp.abs(away) * step


def _three(field, value, *, wide=False):
    """Give a number, or three, as an array (3,) of the real dtype of a field, or the widest."""
    xp = array_namespace(field)
    value = _real_number(field, value, wide=wide)
    return value * xp.ones((3,), dtype=value.dtype, device=device(field))


def _real_number(field, value, *, wide=False):
    """Give a number or an array in the real dtype of a field; complex data made it complex.

    What rings are numbered by is ``wide``, since they are counted in float64: rounded to float32 a
    cell near the edge of a ring is in the next one. JAX has float64 only where x64 is on.
    """
    xp = array_namespace(field)
    dtype = _real_dtype(xp, field)
    if wide:
        dtype = xp.asarray(0.0).dtype if framework_of(xp) == "jax" else xp.float64
    if isinstance(value, Number):
        return xp.asarray(value, dtype=dtype, device=device(field))
    if xp.isdtype(value.dtype, "complex floating"):
        value = xp.real(value)
    return xp.astype(value, dtype, copy=False)


def _real_dtype(xp, field):
    if not xp.isdtype(field.dtype, "complex floating"):
        return field.dtype
    return xp.float32 if field.dtype == xp.complex64 else xp.float64


def _square_sum(a):
    xp = array_namespace(a)
    return xp.sum(squared(a), axis=(-3, -2, -1))
