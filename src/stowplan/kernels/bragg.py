r"""Diffraction from a small crystal: the intensity of one detector pixel.

A pixel is a sum of terms: sub-pixel x source x rotation, a rotation being a phi step of a mosaic
domain. Lengths are metres on the detector and angstrom in the crystal. Arrays of terms are
(rotations, sources, sub-pixels, ...), so that the pixels, the longest dim, lie next to each other
and each sum over terms adds whole rows of them.

Single precision holds by two rewritings. The lattice factor has period 1 in h, so h - round(h)
stands for h. And for a pixel at X, a distance r away, with p = X - b (b.X) across the beam b

    X/r - b = p/r - b (1 - c),    1 - c = (p/r)^2 / (1 + c),    c = b.X/r,

in which nothing cancels.

Memory of compiled code holds by two others. XLA keeps, an array of terms each, what is costly (a
division, a root) and needed by two loops, as h is: by the loop of the cells in the table and by
that of their values. So 1/(1 + c) and the offsets in a cell are worked out without dividing. And
shapes are those of the terms from the start, or else it fuses less.

Source: the equations of nanoBragg (J. M. Holton); lattice factor, R. W. James, The Optical
Principles of the Diffraction of X-rays (1962); polarisation, R. Kahn et al., J. Appl. Cryst. 15,
330 (1982).
"""

import math

from array_api_compat import array_namespace, device

from stowplan.declaration import kernel
from stowplan.special import look_up, look_up_run

__all__ = ["FLUENCE", "R_E_SQUARED", "intensity"]

R_E_SQUARED = 7.94079248018965e-30  # of the classical electron radius, m^2
FLUENCE = 1.25932015286227e29  # photons/m^2; one electron then scatters one into a steradian
_ROUND = math.sqrt(math.pi / 6)  # height of a round crystal's peaks over those of its box
_NEAR_PEAK = 1e-4  # (N u)^2 below which three terms of a series are exact to rounding
_NEAR_CENTRE = 0.25  # x^2 below which eight terms are
_EXACT = 2**21  # indices below which a quotient is exact without division, in single precision too
_SINC3 = [3 * (-1) ** k * (2 * k + 2) / math.factorial(2 * k + 3) for k in range(8)]


def _terms(shared):
    """Sub-pixels x sources x rotations."""
    waves, turns = shared["wavelengths"], shared["lattices"]
    return shared["oversample"] ** 2 * waves.shape[0] * turns.shape[0]


@kernel(
    "(),()->()",
    work="150",  # ns on a CPU, of one term
    memory="30",  # of one term, likewise
    terms=_terms,
    static=("oversample", "interpolation", "minima", "shape", "point_pixel", "polarized"),
)
def intensity(
    slow,
    fast,
    *,
    slow_axis,
    fast_axis,
    origin,
    pixel_size,
    close_distance,
    directions,
    wavelengths,
    shares,
    lattices,
    cells,
    table=None,
    default_factor=100.0,
    fluence=FLUENCE,
    polarization=0.0,
    dmin=0.0,
    fudge=1.0,
    oversample=1,
    interpolation="constant",
    minima=(0, 0, 0),
    shape="square",
    point_pixel=False,
    polarized=True,
):
    """Photons that a pixel counts, ``(),()->()``.

    Parameters
    ----------
    slow, fast : array (...)
        Indices of the pixel, int or real; any subset of the image in any order.
    slow_axis, fast_axis : array (3,)
        Unit vectors along which the indices grow.
    origin : array (3,)
        Outer corner of pixel (0, 0), in m from the crystal.
    pixel_size, close_distance : number
        In m; the second from the crystal to the plane of the detector.
    directions : array (sources, 3)
        Unit vectors along which the beams travel; the first one polarises.
    wavelengths : array (sources,)
        In Å.
    shares : array (sources,)
        Share of the fluence in each source; they sum to 1.
    lattices : array (rotations, 3, 3)
        Real cell vectors a, b, c as rows, in Å, for every phi step and mosaic domain.
    cells : array (3,)
        Unit cells along a, b and c; whole numbers.
    table : array (nh, nk, nl), optional
        Structure factors in electrons; entry [0, 0, 0] is the reflection `minima`.
    default_factor : number
        Structure factor where the table has none; of all reflections without a table.
    fluence : number
        Photons/m^2.
    polarization : number
        Kahn's factor K, -1 to 1, along the axis (0, 0, 1).
    dmin : number
        Finest spacing in Å; what scatters beyond is left out. 0: everything counts.
    fudge : number
        Scales the squared radius of a round crystal in reciprocal space.
    oversample : int
        Sub-pixels along each axis.
    interpolation : str
        ``"nearest"`` or ``"tricubic"`` between the reflections of the table, ``"constant"``
        without one. Tricubic needs 4 reflections along each axis.
    minima : tuple of int
        Lowest h, k and l of the table.
    shape : str
        ``"square"``, a parallelepiped, or ``"round"``, an ellipsoid in it.
    point_pixel : bool
        Leave the obliquity and the size of the pixel out of its solid angle.
    polarized : bool
        False leaves the polarisation factor out, even that of an unpolarised beam.

    Returns
    -------
    array (...)

    Raises
    ------
    ValueError
        For an unknown `interpolation` or `shape`, and for a table that is too small.

    Notes
    -----
    Solid angle and polarisation are those of the first sub-pixel. A reflection is tricubic only
    where h is at least 2 reflections from the edges of the table; elsewhere it is `default_factor`,
    decided for each term. Gradients are finite everywhere; `round` has none.
    """
    xp = array_namespace(slow, fast, lattices)
    dtype = lattices.dtype
    slow, fast = (xp.astype(index, dtype, copy=False) for index in (slow, fast))
    rays = _Rays(xp, slow, fast, slow_axis, fast_axis, origin, pixel_size, oversample)
    brightness = R_E_SQUARED * fluence * rays.solid_angle(point_pixel, close_distance)
    if polarized:
        brightness = brightness * rays.polarization(directions[0, :], polarization)
    q = rays.scattering(directions, wavelengths)
    del rays
    hkl = [_dot(_columns(lattices[:, axis, :], slow.ndim + 2), q) for axis in range(3)]
    amplitude = _structure_factor(xp, hkl, table, minima, default_factor, interpolation)
    over, under = _lattice_factor(xp, hkl, cells, shape, fudge)
    # XLA keeps what it divides, or else each of the 64 gradients of a table begins from q again;
    # it fuses all before a select, or else it keeps several arrays of terms for the sum
    amplitude = amplitude * over / under
    inside = _dot(q, q) * dmin**2 <= 1
    amplitude = xp.where(inside, amplitude, xp.zeros_like(amplitude))
    total = xp.sum(amplitude * amplitude, axis=0)  # (sources, sub-pixels, ...)
    shares = xp.reshape(shares, (-1, *(1,) * (total.ndim - 1)))
    total = xp.sum(total * shares, axis=(0, 1))
    return brightness * total / (lattices.shape[0] * oversample**2)


class _Rays:
    """From the crystal to the sub-pixels: places in m, three (1, 1, sub-pixels, ...), and 1/r."""

    def __init__(self, xp, slow, fast, slow_axis, fast_axis, origin, pixel_size, oversample):
        steps = [(step + 0.5) / oversample for step in range(oversample)]
        shape = (1, 1, oversample**2, *(1,) * slow.ndim)
        along_slow, along_fast = (
            xp.reshape(xp.asarray(column, dtype=slow.dtype, device=device(slow)), shape)
            for column in zip(*((s, f) for s in steps for f in steps), strict=True)
        )
        slow, fast = (xp.reshape(index, (1, 1, 1, *slow.shape)) for index in (slow, fast))
        v = pixel_size * (slow + along_slow)
        u = pixel_size * (fast + along_fast)
        self.places = [
            origin[axis] + v * slow_axis[axis] + u * fast_axis[axis] for axis in range(3)
        ]
        self.xp, self.pixel_size = xp, pixel_size
        self.inverse = 1 / xp.sqrt(_dot(self.places, self.places))

    def solid_angle(self, point_pixel, close_distance):
        """Of the first sub-pixel, (...)."""
        inverse = self.inverse[0, 0, 0, ...]
        if point_pixel:
            return inverse * inverse
        return inverse * inverse * inverse * (self.pixel_size**2 * close_distance)

    def polarization(self, beam, factor):
        """Kahn's factor of the first sub-pixel, (...): 1 - ((1 + K) e^2 + (1 - K) p^2)/2.

        That is (1 + c^2 - K cos 2psi (1 - c^2))/2, as e^2 + p^2 = 1 - c^2: e and p are the
        components along and across the axis.
        """
        xp = self.xp
        length = xp.sqrt(beam[0] * beam[0] + beam[1] * beam[1])
        across = [-beam[1] / length, beam[0] / length, 0 * length]  # axis x b
        along = _cross([beam[axis] for axis in range(3)], across)
        pixel = [(x * self.inverse)[0, 0, 0, ...] for x in self.places]
        e, p = _dot(pixel, along), _dot(pixel, across)
        return 1 - ((1 + factor) * (e * e) + (1 - factor) * (p * p)) / 2

    def scattering(self, directions, wavelengths):
        """Vectors (X/r - b) / wavelength, three (1, sources, sub-pixels, ...)."""
        xp, inverse = self.xp, self.inverse
        shape = (1, -1, *(1,) * (inverse.ndim - 2))
        beams = [xp.reshape(directions[:, axis], shape) for axis in range(3)]
        distance = _dot(self.places, beams)
        across = [(x - b * distance) * inverse for x, b in zip(self.places, beams, strict=True)]
        cosine = distance * inverse
        forward = cosine > 0
        safe = xp.where(forward, cosine, xp.ones_like(cosine))
        shortfall = xp.where(forward, _dot(across, across) * _half(safe), 1 - cosine)
        numbers = xp.reshape(1 / wavelengths, shape)
        return [(x - b * shortfall) * numbers for x, b in zip(across, beams, strict=True)]


def _half(c):
    """1/(1 + c) for 0 < c <= 1: Newton's division by d = (1 + c)/2, from 1/17 off to 2e-20."""
    d = 0.5 + 0.5 * c
    y = 48 / 17 - 32 / 17 * d
    for _ in range(4):
        y = y * (2 - d * y)
    return 0.5 * y


def _lattice_factor(xp, hkl, cells, shape, fudge):
    """Sum of the phases of all unit cells, as a numerator and a denominator."""
    deltas = [h - xp.round(h) for h in hkl]
    counts = [cells[axis] for axis in range(3)]
    if shape == "round":
        square = _dot(*([n * delta for n, delta in zip(counts, deltas, strict=True)],) * 2)
        over, under = _sinc3(xp, (math.pi**2 * fudge) * square)
        return (_ROUND * counts[0] * counts[1] * counts[2]) * over, under
    if shape != "square":
        raise ValueError(f"intensity: shape={shape!r}; it must be 'square' or 'round'.")
    over = under = 1.0
    for delta, n in zip(deltas, counts, strict=True):
        wave, base = _sincg(xp, math.pi * delta, n)
        over, under = over * wave, under * base
    return over, under


def _sincg(xp, u, n):
    """Parts of sin(n u) / sin(u): a series over 1 near u = 0, where slopes lose their digits."""
    y = u * u
    m = n * n
    near = m * y < _NEAR_PEAK
    series = n * (1 + (m - 1) / 6 * y * ((3 * m - 7) / 60 * y - 1))
    return xp.where(near, series, xp.sin(n * u)), xp.where(near, xp.ones_like(u), xp.sin(u))


def _sinc3(xp, y):
    """Parts of 3 (sin x / x - cos x) / x^2 at y = x^2: a series over 1 near 0, where it cancels."""
    near = y < _NEAR_CENTRE
    one = xp.ones_like(y)
    low = xp.where(near, y, xp.zeros_like(y))
    series = xp.zeros_like(y)
    for coefficient in reversed(_SINC3):
        series = coefficient + low * series
    y = xp.where(near, one, y)
    x = xp.sqrt(y)
    return xp.where(near, series, 3 * (xp.sin(x) / x - xp.cos(x))), y


def _structure_factor(xp, hkl, table, minima, default_factor, interpolation):
    """Structure factors at real h, k, l; one flat gather for each reflection that counts."""
    if interpolation == "constant":
        return default_factor
    if interpolation == "tricubic":
        return _tricubic(xp, hkl, table, minima, default_factor)
    if interpolation != "nearest":
        raise ValueError(
            f"intensity: interpolation={interpolation!r}; it must be 'nearest', 'tricubic' or "
            "'constant'."
        )
    nodes = [xp.round(h) for h in hkl]
    place = _index(xp, nodes, minima, table.shape, 1)
    found = look_up(xp.reshape(table, (-1,)), place)
    return xp.where(_inside(nodes, minima, table.shape, 0), found, default_factor)


def _tricubic(xp, hkl, table, minima, default_factor):
    """Products of four-point Lagrange weights; 16 gathers of four neighbours along l.

    Each sum runs as it is gathered: the 64 values of a term never exist together, and where the
    framework fuses loops no array of terms does.
    """
    if min(table.shape) < 4:
        raise ValueError(
            f"intensity: a table of {tuple(table.shape)} reflections is too small for "
            "interpolation='tricubic', which takes 4 along each axis. Use 'nearest'."
        )
    _, nk, nl = table.shape
    index = _index(xp, [xp.floor(h) - 1 for h in hkl], minima, table.shape, 4)
    first, middle, last = _offsets(xp, hkl, index, minima, table.shape)
    first, middle, last = (_weights(t - 1) for t in (first, middle, last))
    flat = xp.reshape(table, (-1,))
    factor = 0.0
    for i, along_h in enumerate(first):
        plane = 0.0
        for j, along_k in enumerate(middle):
            line = look_up_run(flat, index + (i * nk + j) * nl, last)
            plane = plane + along_k * line
        factor = factor + along_h * plane
    return xp.where(_inside(hkl, minima, table.shape, 2), factor, default_factor)


def _offsets(xp, hkl, index, minima, lengths):
    """Distances of h, k and l from the node of a flat index.

    Read off the index, not off h: XLA computes h anew in each loop that needs it, and where h is a
    whole number the last bit, which may differ, decides what lies below it.
    """
    _, nk, nl = lengths
    dtype = hkl[0].dtype
    if math.prod(lengths) < _EXACT:
        index = xp.astype(index, dtype)
        row = xp.floor((index + 0.5) * (1 / nl))
        plane = xp.floor((row + 0.5) * (1 / nk))
    else:
        row = index // nl
        plane = row // nk
    nodes = (plane, row - plane * nk, index - row * nl)
    return [
        h - low - xp.astype(node, dtype, copy=False)
        for h, low, node in zip(hkl, minima, nodes, strict=True)
    ]


def _weights(t):
    """Lagrange weights of the nodes -1, 0, 1, 2 at 0 <= t <= 1."""
    before, after, beyond = t + 1, t - 1, t - 2
    ends, middle = t * after, before * beyond
    return [
        ends * beyond * (-1 / 6), middle * after * 0.5, middle * t * (-0.5), ends * before * (1 / 6)
    ]  # fmt: skip


def _inside(hkl, minima, lengths, margin):
    """Whether h, k and l are in the table, `margin` reflections from its edges."""
    inside = True
    for h, low, length in zip(hkl, minima, lengths, strict=True):
        inside = inside & (h >= low + margin) & (h <= low + length - 1 - margin)
    return inside


def _index(xp, nodes, minima, lengths, width):
    """Flat index of a node, moved where `width` nodes from it on would leave the table."""
    index = 0
    for node, low, length in zip(nodes, minima, lengths, strict=True):
        own = xp.clip(xp.astype(node, xp.int32) - low, 0, length - width)
        index = index * length + own
    return index


def _columns(vectors, rank):
    """Components of vectors (n, 3), each (n, 1, ..., 1) with `rank` ones."""
    ones = (None,) * rank
    return [vectors[(slice(None), axis, *ones)] for axis in range(3)]


def _dot(u, v):
    return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]


def _cross(u, v):
    return [
        u[1] * v[2] - u[2] * v[1],
        u[2] * v[0] - u[0] * v[2],
        u[0] * v[1] - u[1] * v[0],
    ]
