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
from stowplan.interpolation import nearest, tricubic
from stowplan.special import reciprocal
from stowplan.vectors import dot, each, parts, turned, vector

__all__ = ["FLUENCE", "R_E_SQUARED", "intensity"]

R_E_SQUARED = 7.94079248018965e-30  # of the classical electron radius, m^2
FLUENCE = 1.25932015286227e29  # photons/m^2; one electron then scatters one into a steradian
_ROUND = math.sqrt(math.pi / 6)  # height of a round crystal's peaks over those of its box
_NEAR_PEAK = 1e-4  # (N u)^2 below which three terms of a series are exact to rounding
_NEAR_CENTRE = 0.25  # x^2 below which eight terms are
_MARGINS = {"nearest": 0, "tricubic": 2}  # reflections between those that count and the edges
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
    polarization_axis=None,
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
        Kahn's factor K, -1 to 1.
    polarization_axis : array (3,)
        Unit vector across the first beam, along which K counts; not needed if not `polarized`.
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
    dtype, shape_of_pixels = lattices.dtype, slow.shape
    slow, fast = (
        xp.reshape(xp.astype(index, dtype, copy=False), (1, 1, 1, -1)) for index in (slow, fast)
    )
    rays = _Rays(xp, slow, fast, slow_axis, fast_axis, origin, pixel_size, oversample)
    brightness = R_E_SQUARED * fluence * rays.solid_angle(point_pixel, close_distance)
    if polarized:
        factor = rays.polarization(directions[0, :], polarization_axis, polarization)
        brightness = brightness * factor
    q = rays.scattering(directions, wavelengths)
    del rays
    inside = dot(xp, q, q) * dmin**2 <= 1
    hkl = turned(xp, lattices, q)
    del q
    amplitude = _structure_factor(xp, hkl, table, minima, default_factor, interpolation)
    over, under = _lattice_factor(xp, hkl, cells, shape, fudge)
    # XLA keeps what it divides, or else each of the 64 gradients of a table begins from q again;
    # it fuses all before a select, or else it keeps several arrays of terms for the sum
    amplitude = amplitude * over / under
    amplitude = xp.where(inside, amplitude, xp.zeros_like(amplitude))
    total = xp.sum(amplitude * amplitude, axis=0)  # (sources, sub-pixels, pixels)
    total = xp.sum(total * xp.reshape(shares, (-1, 1, 1)), axis=(0, 1))
    total = brightness * total / (lattices.shape[0] * oversample**2)
    return xp.reshape(total, shape_of_pixels)


class _Rays:
    """From the crystal to the sub-pixels: places in m, vectors (1, 1, sub-pixels, ...), and 1/r."""

    def __init__(self, xp, slow, fast, slow_axis, fast_axis, origin, pixel_size, oversample):
        steps = [(step + 0.5) / oversample for step in range(oversample)]
        along_slow, along_fast = (
            xp.reshape(xp.asarray(column, dtype=slow.dtype, device=device(slow)), (1, 1, -1, 1))
            for column in zip(*((s, f) for s in steps for f in steps), strict=True)
        )
        v = pixel_size * (slow + along_slow)
        u = pixel_size * (fast + along_fast)
        axes = (vector(xp, axis, (1, 1, 1, 1)) for axis in (origin, slow_axis, fast_axis))
        self.places = each(lambda start, slow, fast: start + v * slow + u * fast, *axes)
        self.xp, self.pixel_size = xp, pixel_size
        self.inverse = 1 / xp.sqrt(dot(xp, self.places, self.places))

    def solid_angle(self, point_pixel, close_distance):
        """Of the first sub-pixel, (1, 1, 1, pixels)."""
        inverse = _first_subpixel(self.inverse)
        if point_pixel:
            return inverse * inverse
        return inverse * inverse * inverse * (self.pixel_size**2 * close_distance)

    def polarization(self, beam, axis, factor):
        """Kahn's factor of the first sub-pixel: (1 + c^2 - K (2 e^2 + c^2 - 1))/2.

        That is (1 + c^2 - K cos 2psi (1 - c^2))/2; c is the component along the beam, e along the
        axis.
        """
        xp = self.xp
        places, inverse = each(_first_subpixel, self.places), _first_subpixel(self.inverse)
        c, e = (
            dot(xp, places, vector(xp, along, (1, 1, 1, 1))) * inverse for along in (beam, axis)
        )
        half = 0.5 * factor + 0.5
        return half + (1 - half) * (c * c) - factor * (e * e)

    def scattering(self, directions, wavelengths):
        """Vectors (X/r - b) / wavelength, (1, sources, sub-pixels, pixels)."""
        xp, inverse = self.xp, self.inverse
        beams = vector(xp, xp.matrix_transpose(directions), (1, -1, 1, 1))
        distance = dot(xp, self.places, beams)
        cosine = distance * inverse
        across = each(lambda x, b: (x - b * distance) * inverse, self.places, beams)
        near = dot(xp, across, across) * reciprocal(1 + xp.abs(cosine))
        shortfall = xp.where(cosine > 0, near, 1 - cosine)
        numbers = xp.reshape(1 / wavelengths, (1, -1, 1, 1))
        return each(lambda x, b: (x - b * shortfall) * numbers, across, beams)


def _first_subpixel(values):
    return values if values.shape[-2] == 1 else values[..., :1, :]


def _lattice_factor(xp, hkl, cells, shape, fudge):
    """Sum of the phases of all unit cells, as a numerator and a denominator."""
    deltas = each(lambda h: h - xp.round(h), hkl)
    counts = vector(xp, cells, (1, 1, 1, 1))
    if shape == "round":
        along = each(lambda n, delta: n * delta, counts, deltas)
        over, under = _sinc3(xp, (math.pi**2 * fudge) * dot(xp, along, along))
        return (_ROUND * cells[0] * cells[1] * cells[2]) * over, under
    if shape != "square":
        raise ValueError(f"intensity: shape={shape!r}; it must be 'square' or 'round'.")
    waves = each(lambda delta, n: _sincg(xp, math.pi * delta, n), deltas, counts)
    return (x * y * z for x, y, z in (parts(xp, wave) for wave in waves))


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
    """Structure factors at real h, k, l."""
    if interpolation == "constant":
        return default_factor
    if interpolation not in _MARGINS:
        raise ValueError(
            f"intensity: interpolation={interpolation!r}; it must be 'nearest', 'tricubic' or "
            "'constant'."
        )
    if interpolation == "tricubic" and min(table.shape) < 4:
        raise ValueError(
            f"intensity: a table of {tuple(table.shape)} reflections is too small for "
            "interpolation='tricubic', which takes 4 along each axis. Use 'nearest'."
        )
    margin = _MARGINS[interpolation]
    low, last = (
        vector(xp, xp.asarray(ends, dtype=table.dtype, device=device(table)), (1, 1, 1, 1))
        for ends in (minima, [length - 1 - margin for length in table.shape])
    )
    places = each(lambda h, low: h - low, hkl, low)
    if interpolation == "nearest":
        places = each(xp.round, places)
        found = nearest(table, places)
    else:
        found = tricubic(table, places)
    within = each(lambda place, last: (place >= margin) & (place <= last), places, last)
    h, k, l = parts(xp, within)  # noqa: E741 - as crystallographers write it
    return xp.where(h & k & l, found, default_factor)
