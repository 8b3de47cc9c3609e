"""The pixel kernel against nanoBragg, a plain loop, Bragg's law, differences and autodiff."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import array_api_compat.numpy as npx
import mpmath
import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp
from stowplan.interpolation import _EXACT
from stowplan.io.reflections import StructureFactors
from stowplan.kernels import bragg as kernels
from stowplan.kernels.bragg import FLUENCE, R_E_SQUARED, intensity
from stowplan.recipes.bragg_experiment import Beam, Crystal, Detector, Sources
from stowplan.recipes.bragg_geometry import kernel_arguments, mosaic_rotations, pixel_columns

CUBIC = (100.0, 100.0, 100.0, 90.0, 90.0, 90.0)
TRICLINIC = (70.0, 80.0, 90.0, 75.0, 85.0, 95.0)
MISSET = (15.0, 20.5, 30.25)


def cosine_table(hmax):
    """Smooth structure factors, |h|, |k|, |l| <= hmax."""
    n = np.arange(-hmax, hmax + 1.0)
    h, k, l = np.meshgrid(n, n, n, indexing="ij")  # noqa: E741
    values = 100 + 60 * np.cos(0.7 * h) * np.cos(0.5 * k + 0.3) * np.cos(0.9 * l - 0.2)
    return StructureFactors(np.round(values, 4), (-hmax,) * 3)


def square(size, **options):
    return Detector((size, size), **options)


# Source: nanoBragg, the C program, which writes float32: largest pixel and sum of the image.
NANOBRAGG = {
    "cubic64": (square(64), Beam(6.2), Crystal(CUBIC), "154.652", "24300.0"),
    "cubic256": (square(256), Beam(6.2), Crystal(CUBIC), "154.652", "215621.6"),
    "cubic256_l1": (square(256), Beam(1.0), Crystal(CUBIC), "126.865", "71446.87"),
    "cubic256_os3": (
        square(256, oversample=3), Beam(6.2), Crystal(CUBIC), "154.186", "215606.75",
    ),
    "cubic256_nopolar": (
        square(256), Beam(6.2, polarization=None), Crystal(CUBIC), "154.652", "216341.2",
    ),
    "cubic256_phi": (
        square(256), Beam(6.2), Crystal(CUBIC, phi=5.0, oscillation=10.0, phi_steps=10),
        "154.652", "163818.75",
    ),
    "tri256_misset": (
        square(256), Beam(1.0), Crystal(TRICLINIC, misset=MISSET), "150.557", "80533.03",
    ),
    "tilt256": (
        square(256, rotation=(5.0, 3.0, 2.0), two_theta=15.0, beam_center=(15.0, 14.0)),
        Beam(6.2), Crystal(CUBIC), "152.037", "203587.5",
    ),
    "hkl_nn256": (
        square(256), Beam(6.2),
        Crystal(CUBIC, table=cosine_table(12), interpolation="nearest"), "377.220", "396396.97",
    ),
    "hkl_tri256": (
        square(256), Beam(6.2),
        Crystal(CUBIC, table=cosine_table(12), interpolation="tricubic"), "377.825", "397030.57",
    ),
    "hkl_tri_tric256": (
        square(256), Beam(3.0),
        Crystal(TRICLINIC, misset=MISSET, cells=(2, 2, 2), table=cosine_table(30)),
        "1.55926", "5908.08",
    ),
    "multisrc256": (
        square(256), Beam(6.2, dispersion=2.0, dispersion_steps=3), Crystal(CUBIC),
        "154.652", "215489.9",
    ),
}  # fmt: skip


def wide(**options):
    """A small, tilted image that reaches far off the beam."""
    tilt = {"rotation": (5.0, -8.0, 3.0), "two_theta": 20.0, "beam_center": (11.0, 6.5)}
    return Detector((7, 6), **{"pixel_size": 3.0, "distance": 21.0, **tilt, **options})


def two_sources():
    return Sources([[1.0, 0.02, -0.01], [2.0, -0.03, 0.05]], [1.1, 1.3], [1.0, 2.5])


SMALL = (9.0, 10.5, 11.0, 75.0, 85.0, 95.0)
# detector, beam, crystal, dmin: what the reference of nanoBragg has not, or not together
SLOW = {
    "all at once": (
        wide(oversample=2), Beam(sources=two_sources(), polarization=0.7),
        Crystal(
            SMALL, cells=(3, 2, 4), misset=MISSET, table=cosine_table(6), phi=4.0, oscillation=9.0,
            phi_steps=2, mosaic=mosaic_rotations(1.5, 2, seed=5), interpolation="tricubic",
        ),
        3.0,
    ),
    "round, nearest": (
        wide(point_pixel=True), Beam(1.1, dispersion=5.0, dispersion_steps=2),
        Crystal(
            SMALL, cells=(3, 5, 4), misset=MISSET, table=cosine_table(3), shape="round", fudge=1.4,
            default_factor=70.0, interpolation="nearest", mosaic=mosaic_rotations(0.8, 3, seed=2),
        ),
        0.0,
    ),
    "no table, no polarisation": (
        wide(), Beam(0.9, polarization=None, fluence=3e28),
        Crystal(SMALL, cells=(12, 7, 1), default_factor=12.5, phi=-70.0), 0.0,
    ),
    "a beam from the other side": (
        wide(), Beam(sources=Sources([[-1.0, 0.1, 0.0], [0.1, 1.0, 0.1]], [2.0, 2.5], [1.0, 1.0])),
        Crystal(SMALL, cells=(3, 3, 3), misset=MISSET), 0.0,
    ),
    "a table that ends within the image": (
        wide(two_theta=0.0, rotation=(0.0, 0.0, 0.0)), Beam(1.2, polarization=-1.0),
        Crystal(SMALL, table=StructureFactors(cosine_table(5).values[1:, :, 2:], (-4, -5, -3)),
                cells=(2, 2, 2)), 0.0,
    ),
}  # fmt: skip


def compiled(framework, function):
    """Compile in JAX, which costs less than operation by operation."""
    if framework != "jax":
        return function
    import jax

    return jax.jit(function)


def image(xp, framework, case, dtype="float64"):
    """The image of a case on a framework, as NumPy."""
    detector, beam, crystal, dmin = case
    like = xp.zeros((), dtype=getattr(xp, dtype))
    shared = kernel_arguments(detector, beam, crystal, dmin=dmin, like=like)
    columns = [xp.asarray(column, dtype=like.dtype) for column in pixel_columns(detector).values()]
    found = compiled(framework, lambda slow, fast: intensity(slow, fast, **shared))(*columns)
    assert found.dtype == like.dtype
    return np.asarray(found).reshape(detector.shape)


def rotated(vector, axis, degrees):
    """Rodrigues' formula."""
    vector, axis, angle = np.asarray(vector), np.asarray(axis), math.radians(degrees)
    return (
        vector * math.cos(angle)
        + np.cross(axis, vector) * math.sin(angle)
        + axis * (axis @ vector) * (1 - math.cos(angle))
    )


def turned(vector, angles):
    for axis, angle in zip(np.eye(3), angles, strict=True):
        vector = rotated(vector, axis, angle)
    return vector


def slow_cell(crystal):
    """Real cell vectors of an unturned crystal, by way of the reciprocal ones."""
    a, b, c, *angles = crystal.cell
    alpha, beta, gamma = map(math.radians, angles)
    s = (alpha + beta + gamma) / 2
    volume = 2 * a * b * c * math.sqrt(
        math.sin(s) * math.sin(s - alpha) * math.sin(s - beta) * math.sin(s - gamma)
    )  # fmt: skip
    a_star = b * c * math.sin(alpha) / volume
    b_star = c * a * math.sin(beta) / volume
    c_star = a * b * math.sin(gamma) / volume
    cos_alpha = (math.cos(beta) * math.cos(gamma) - math.cos(alpha)) / (
        math.sin(beta) * math.sin(gamma)
    )
    cos_beta = (math.cos(gamma) * math.cos(alpha) - math.cos(beta)) / (
        math.sin(gamma) * math.sin(alpha)
    )
    cos_gamma = (math.cos(alpha) * math.cos(beta) - math.cos(gamma)) / (
        math.sin(alpha) * math.sin(beta)
    )
    sin_gamma = math.sqrt(1 - cos_gamma**2)
    stars = [
        np.array([a_star, 0, 0]),
        np.array([b_star * cos_gamma, b_star * sin_gamma, 0]),
        np.array([
            c_star * cos_beta,
            c_star * (cos_alpha - cos_beta * cos_gamma) / sin_gamma,
            c_star * volume / (a * b * c * sin_gamma),
        ]),
    ]  # fmt: skip
    stars = [turned(star, crystal.misset) for star in stars]
    real = []
    for n, length in enumerate((a, b, c)):
        normal = np.cross(stars[(n + 1) % 3], stars[(n + 2) % 3])
        real.append(normal / np.linalg.norm(normal) * length)
    return real


def slow_factor(crystal, hkl):
    """Structure factor at real h, k, l."""
    if crystal.table is None:
        return crystal.default_factor
    values, minima = crystal.table
    maxima = [low + n - 1 for low, n in zip(minima, values.shape, strict=True)]
    if crystal.resolved_interpolation() == "nearest":
        nodes = [math.ceil(h - 0.5) for h in hkl]
        if any(not low <= n <= top for n, low, top in zip(nodes, minima, maxima, strict=True)):
            return crystal.default_factor
        return values[tuple(n - low for n, low in zip(nodes, minima, strict=True))]
    for h, low, top in zip(hkl, minima, maxima, strict=True):
        if h - low + 3 > top - low + 1 or h - 2 < low:
            return crystal.default_factor
    total = 0.0
    for steps in itertools.product((-1, 0, 1, 2), repeat=3):
        weight, place = 1.0, []
        for h, step, low in zip(hkl, steps, minima, strict=True):
            for other in (-1, 0, 1, 2):
                if other != step:
                    weight *= (h - math.floor(h) - other) / (step - other)
            place.append(math.floor(h) + step - low)
        total += weight * values[tuple(place)]
    return total


def slow_lattice_factor(crystal, hkl):
    cells = crystal.cells
    if crystal.shape == "round":
        square = sum((n * (h - round(h))) ** 2 for n, h in zip(cells, hkl, strict=True))
        x = math.pi * math.sqrt(crystal.fudge * square)
        height = cells[0] * cells[1] * cells[2] * 0.723601254558268
        return height * 3 * (math.sin(x) / x - math.cos(x)) / x**2
    factor = 1.0
    for n, h in zip(cells, hkl, strict=True):
        factor *= math.sin(math.pi * n * h) / math.sin(math.pi * h)
    return factor


def slow_sources(beam):
    """Direction, wavelength and share of each source."""
    if beam.sources is not None:
        directions, wavelengths, weights = beam.sources
        return [
            (np.array(b) / np.linalg.norm(b), wavelength, weight / sum(weights))
            for b, wavelength, weight in zip(directions, wavelengths, weights, strict=True)
        ]
    steps, width = beam.dispersion_steps, beam.dispersion / 100
    along = np.array([1.0, 0.0, 0.0])
    if steps == 1:
        return [(along, beam.wavelength, 1.0)]
    return [
        (along, beam.wavelength * (1 + width / (steps - 1) * j - width / 2), 1 / steps)
        for j in range(steps)
    ]


def slow_frame(detector):
    """Fast, slow, corner of the first pixel and distance of the plane, in m."""
    p, distance = detector.pixel_size / 1000, detector.distance / 1000
    x_beam, y_beam = (x / 1000 for x in detector.beam_center)
    fast, slow, normal = (
        turned(axis, detector.rotation) for axis in ([0, 0, 1], [0, -1, 0], [1, 0, 0])
    )
    beam = np.array([1.0, 0.0, 0.0])
    ratio = beam @ normal
    close = abs(ratio * distance)
    fast, slow, normal = (
        rotated(axis, [0.0, 0.0, -1.0], detector.two_theta) for axis in (fast, slow, normal)
    )
    corner = -(y_beam + p / 2) * fast - (x_beam + p / 2) * slow + close / ratio * beam
    return fast, slow, corner, corner @ normal


def slow_pixel(s, f, detector, beam, crystal, dmin):
    """Photons of a pixel, term by term."""
    p, n = detector.pixel_size / 1000, detector.oversample
    fast, slow, corner, close = slow_frame(detector)
    sources, cell = slow_sources(beam), slow_cell(crystal)
    domains = [np.eye(3)] if crystal.mosaic is None else list(crystal.mosaic)
    total = 0.0
    for i, j, (b, wavelength, share) in itertools.product(range(n), range(n), sources):
        place = (p / n) * ((n * f + j + 0.5) * fast + (n * s + i + 0.5) * slow) + corner
        q = (place / np.linalg.norm(place) - b) / wavelength
        if dmin > 0 and np.linalg.norm(q) / 2 > 0.5 / dmin:
            continue
        for step, domain in itertools.product(range(crystal.phi_steps), domains):
            phi = crystal.phi + crystal.oscillation / crystal.phi_steps * step
            hkl = [float(domain @ rotated(a, [0.0, 0.0, 1.0], phi) @ q) for a in cell]
            amplitude = slow_factor(crystal, hkl) * slow_lattice_factor(crystal, hkl)
            total += share * amplitude**2
    total /= n * n * crystal.phi_steps * len(domains)
    first = (p / n) * ((n * f + 0.5) * fast + (n * s + 0.5) * slow) + corner
    r = np.linalg.norm(first)
    solid_angle = 1 / r**2 if detector.point_pixel else p**2 / r**2 * close / r
    return 7.94079248018965e-30 * beam.fluence * slow_kahn(first / r, beam) * solid_angle * total


def slow_kahn(direction, beam):
    if beam.polarization is None:
        return 1.0
    b = slow_sources(beam)[0][0]
    across = np.cross([0.0, 0.0, 1.0], b)
    across /= np.linalg.norm(across)
    along = np.cross(b, across)
    e, p, c = direction @ along, direction @ across, direction @ b
    double = (e**2 - p**2) / (e**2 + p**2)
    return 0.5 * (1 + c**2 - beam.polarization * double * (1 - c**2))


@functools.cache
def slow_image(name):
    detector, beam, crystal, dmin = SLOW[name]
    rows, columns = detector.shape
    return np.array([
        [slow_pixel(s, f, detector, beam, crystal, dmin) for f in range(columns)]
        for s in range(rows)
    ])  # fmt: skip


@pytest.mark.parametrize("name", NANOBRAGG)
def test_the_reference_images_are_met_to_their_printed_digits(xp, framework, name):
    detector, beam, crystal, largest, total = NANOBRAGG[name]
    if framework == "array_api_strict" and name not in ("cubic64", "hkl_tri256"):
        pytest.skip("its arrays are NumPy's, and slow")
    found = image(xp, framework, (detector, beam, crystal, 0.0))
    for value, printed in ((found.max(), largest), (found.sum(), total)):
        digit = 10.0 ** -len(printed.partition(".")[2])
        assert value == pytest.approx(float(printed), abs=digit)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-7), ("float32", 5e-5)])
@pytest.mark.parametrize("name", SLOW)
def test_small_images_are_those_of_a_slow_loop(xp, framework, name, dtype, tolerance):
    slow = slow_image(name)
    found = image(xp, framework, SLOW[name], dtype)
    np.testing.assert_allclose(found, slow, rtol=0, atol=tolerance * slow.max())


def test_the_slow_loop_reads_the_table_and_its_surroundings():
    """The reference is only as good as what it exercises."""
    for name in ("round, nearest", "a table that ends within the image"):
        detector, beam, crystal, dmin = SLOW[name]
        other = (detector, beam, replace(crystal, default_factor=90.0), dmin)
        changed = image(npx, "numpy", other) != image(npx, "numpy", SLOW[name])
        assert 0 < changed.sum() < changed.size
    dark = image(npx, "numpy", SLOW["all at once"]) == 0
    assert 0 < dark.sum() < dark.size  # beyond dmin


def bragg_condition(shape="square", polarization=0.4):
    """A pixel at exactly the reflection (0, 1, 0), in the plane of the detector's slow axis."""
    distance, pixel, a = 50.0, 0.5, 37.0
    steps = 13  # pixels from the beam
    two_theta = math.atan2(steps * pixel, distance)
    wavelength = 2 * a * math.sin(two_theta / 2)
    # the beam hits the centre of pixel (20, 3); y falls along the slow axis
    detector = Detector(
        (24, 6), pixel_size=pixel, distance=distance, beam_center=(20 * pixel, 3 * pixel)
    )
    crystal = Crystal(
        (a, a, a, 90.0, 90.0, 90.0), cells=(4, 5, 3), misset=(0, 0, math.degrees(two_theta / 2)),
        table=cosine_table(5), shape=shape, interpolation="tricubic",
    )  # fmt: skip
    return detector, Beam(wavelength, polarization=polarization), crystal, two_theta


@pytest.mark.parametrize("shape", ["square", "round"])
def test_a_reflection_in_bragg_condition_has_its_closed_form(xp, framework, shape):
    detector, beam, crystal, two_theta = bragg_condition(shape)
    found = image(xp, framework, (detector, beam, crystal, 0.0))[20 - 13, 3]
    height = 60.0 * (1.0 if shape == "square" else 0.723601254558268)
    factor = crystal.table.values[5, 6, 5]
    cosine = math.cos(two_theta)
    # scattered across the axis (0, 0, 1) of the polarisation: cos 2psi = -1
    kahn = (1 + cosine**2 + 0.4 * (1 - cosine**2)) / 2
    solid_angle = 0.5**2 / 50.0**2 * cosine**3
    exact = R_E_SQUARED * FLUENCE * kahn * solid_angle * (height * factor) ** 2
    assert found == pytest.approx(exact, rel=1e-10)


def test_the_direct_beam_scatters_in_phase_from_all_cells(xp, framework):
    detector, beam, crystal, _ = bragg_condition()
    exact = R_E_SQUARED * FLUENCE * 1e-4 * (60.0 * crystal.table.values[5, 5, 5]) ** 2
    for interpolation in ("nearest", "tricubic"):
        case = (detector, beam, replace(crystal, interpolation=interpolation), 0.0)
        assert image(xp, framework, case)[20, 3] == pytest.approx(exact, rel=1e-12)


def test_one_unit_cell_scatters_its_structure_factor_everywhere(xp, framework):
    """Nothing interferes: what is left is the solid angle."""
    crystal = Crystal(SMALL, cells=(1, 1, 1), misset=MISSET, default_factor=7.0)
    beam = Beam(1.0, polarization=None)
    detector = Detector((9, 9), pixel_size=5.0, distance=20.0, point_pixel=True)
    found = image(xp, framework, (detector, beam, crystal, 0.0))
    steps = (np.arange(9) - 5) * 5e-3  # nanoBragg's middle is a pixel further
    r2 = 0.02**2 + steps[:, None] ** 2 + steps**2
    np.testing.assert_allclose(found, R_E_SQUARED * FLUENCE * 49.0 / r2, rtol=1e-12)


def test_a_cubic_polynomial_is_interpolated_exactly(xp, framework):
    """Four nodes per axis reproduce degree 3, so the intensity of one cell is its square."""
    n = np.arange(-6.0, 7.0)

    def polynomial(h, k, l):  # noqa: E741
        return 50 + 3 * h - 2 * k * l + 0.3 * h**3 + 0.1 * h * k**2 * l**3

    values = polynomial(*np.meshgrid(n, n, n, indexing="ij"))
    crystal = Crystal(
        SMALL, cells=(1, 1, 1), table=StructureFactors(values, (-6, -6, -6)),
        interpolation="tricubic",
    )  # fmt: skip
    case = (wide(), Beam(1.3, polarization=None), crystal, 0.0)
    found = image(xp, framework, case)
    flat = (
        *case[:2],
        replace(crystal, table=None, interpolation="constant", default_factor=1.0),
        0.0,
    )
    fast, slow, corner, _ = slow_frame(case[0])
    expected = np.empty_like(found)
    for s, f in np.ndindex(found.shape):
        place = 3e-3 * ((f + 0.5) * fast + (s + 0.5) * slow) + corner
        q = (place / np.linalg.norm(place) - [1.0, 0.0, 0.0]) / 1.3
        expected[s, f] = polynomial(*(a @ q for a in slow_cell(crystal))) ** 2
    np.testing.assert_allclose(found / image(xp, framework, flat), expected, rtol=1e-10)


def batches(xp, case, shape):
    """Columns of the first pixels in some shape, and the shared arguments."""
    detector, beam, crystal, dmin = case
    like = xp.zeros((), dtype=xp.float64)
    shared = kernel_arguments(detector, beam, crystal, dmin=dmin, like=like)
    count = math.prod(shape)
    columns = [
        xp.reshape(xp.asarray(column[:count]), shape) for column in pixel_columns(detector).values()
    ]
    return columns, shared


@pytest.mark.parametrize("name", ["all at once", "round, nearest"])
def test_a_batch_equals_its_pixels_one_at_a_time(xp, framework, name):
    (slow, fast), shared = batches(xp, SLOW[name], (2, 3))
    call = compiled(framework, lambda slow, fast: intensity(slow, fast, **shared))
    batch = np.asarray(call(slow, fast))
    alone = [[float(call(slow[i, j], fast[i, j])) for j in range(3)] for i in range(2)]
    # XLA contracts the loop of a single number in another way
    tolerance = (500 if framework == "jax" else 4) * np.spacing(batch.max())
    np.testing.assert_allclose(batch, alone, rtol=0, atol=tolerance)
    if framework in ("jax", "torch"):
        vmap = pytest.importorskip(framework).vmap
        mapped = compiled(framework, vmap(vmap(lambda *pixel: intensity(*pixel, **shared))))
        np.testing.assert_allclose(mapped(slow, fast), batch, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("name", ["round, nearest", "a table that ends within the image"])
def test_chunks_of_any_size_give_the_same_image(xp, name, rows):
    (slow, fast), shared = batches(xp, SLOW[name], (42,))
    data = {"slow": slow, "fast": fast}
    chunks, whole = (
        np.asarray(sp.run(intensity, data, sp.plan(intensity, data, rows=count), **shared))
        for count in (rows, 42)
    )
    np.testing.assert_allclose(chunks, whole, rtol=0, atol=4 * np.spacing(whole.max()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_table_of_millions_of_reflections_is_read_as_its_middle_is(xp, framework, dtype):
    shape = (129, 128, 130)
    assert math.prod(shape) > _EXACT
    middle = cosine_table(12)
    values = np.zeros(shape)
    corner = (104, 2, 105)  # far behind in flat order
    values[tuple(slice(n, n + 25) for n in corner)] = middle.values
    minima = tuple(-12 - n for n in corner)
    case = SLOW["all at once"]
    small, large = (
        image(xp, framework, (*case[:2], replace(case[2], table=table), 0.9), dtype)
        for table in (middle, StructureFactors(values, minima))
    )
    close = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(large, small, rtol=0, atol=close * small.max())


def test_pixels_may_be_integers(xp):
    (slow, fast), shared = batches(xp, SLOW["no table, no polarisation"], (4,))
    whole = intensity(*(xp.astype(index, xp.int32) for index in (slow, fast)), **shared)
    assert whole.dtype == xp.float64
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(intensity(slow, fast, **shared)))


def test_a_table_too_small_for_four_nodes_and_unknown_words_are_refused(xp):
    (slow, fast), shared = batches(xp, SLOW["a table that ends within the image"], (4,))
    with pytest.raises(ValueError, match="takes 4 along each axis"):
        intensity(slow, fast, **{**shared, "table": shared["table"][:3, :, :]})
    with pytest.raises(ValueError, match="interpolation='cubic'"):
        intensity(slow, fast, **{**shared, "interpolation": "cubic"})
    with pytest.raises(ValueError, match="shape='gauss'"):
        intensity(slow, fast, **{**shared, "shape": "gauss"})


PARAMETERS = {
    "cell": np.array(SMALL),
    "misset": np.array(MISSET),
    "wavelength": np.array(1.2),
    "dispersion": np.array(3.0),
    "spread": np.array(1.3),
    "phi": np.array(3.0),
    "oscillation": np.array(5.0),
    "table": cosine_table(4).values,
    "default_factor": np.array(70.0),
    "fudge": np.array(1.3),
    "polarization": np.array(0.3),
    "fluence": np.array(1e29),
    "distance": np.array(21.0),
    "pixel_size": np.array(3.0),
    "rotation": np.array([5.0, -8.0, 3.0]),
    "two_theta": np.array(20.0),
    "beam_center": np.array([11.0, 6.5]),
}
DETECTOR = ("distance", "pixel_size", "rotation", "two_theta", "beam_center")


def loss(shape, interpolation, *, pixels=(7, 6), **values):
    """A weighted sum of an image, from every number that it depends on."""
    values = {**PARAMETERS, **values}
    detector = Detector(pixels, **{name: values[name] for name in DETECTOR})
    beam = Beam(
        values["wavelength"], dispersion=values["dispersion"], dispersion_steps=2,
        fluence=values["fluence"], polarization=values["polarization"],
    )  # fmt: skip
    crystal = Crystal(
        values["cell"], cells=(3, 2, 4), misset=values["misset"], shape=shape,
        mosaic=mosaic_rotations(values["spread"], 2, seed=3), phi=values["phi"],
        oscillation=values["oscillation"], phi_steps=2, fudge=values["fudge"],
        table=(values["table"], (-4, -4, -4)), default_factor=values["default_factor"],
        interpolation=interpolation,
    )  # fmt: skip
    shared = kernel_arguments(detector, beam, crystal)
    xp = array_namespace(shared["lattices"])
    columns = [xp.asarray(column) for column in pixel_columns(detector).values()]
    weights = xp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, math.prod(pixels)))
    return xp.sum(weights * intensity(*columns, **shared))


def gradient(framework, function, values, *, jit=True):
    """Of a function of named arrays, as NumPy."""
    if framework == "jax":
        import jax

        slopes = jax.grad(lambda given: function(**given))
        slopes = (jax.jit(slopes) if jit else slopes)(values)
    else:
        import torch

        leaves = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
        found = torch.autograd.grad(
            function(**leaves), list(leaves.values()), materialize_grads=True
        )
        slopes = dict(zip(leaves, found, strict=True))
    return {name: np.asarray(slope) for name, slope in slopes.items()}


def difference(function, values, name, direction):
    """Derivative along a direction, by central differences of fourth order."""
    step = 1e-5 * max(1.0, float(np.abs(values[name]).max()))
    found = {
        sign: float(function(**{**values, name: values[name] + sign * step * direction}))
        for sign in (-2, -1, 1, 2)
    }
    return (8 * (found[1] - found[-1]) - found[2] + found[-2]) / (12 * step)


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize(("shape", "interpolation"), [("square", "tricubic"), ("round", "nearest")])
def test_gradients_by_numbers_are_central_differences(
    framework, load_framework, shape, interpolation
):
    load_framework(framework)
    function = functools.partial(loss, shape, interpolation)
    values = {name: value for name, value in PARAMETERS.items() if name != "table"}
    slopes = gradient(framework, function, values)
    for name, value in values.items():
        directions = np.eye(value.size).reshape(-1, *value.shape)
        found = [difference(function, values, name, direction) for direction in directions]
        scale = np.abs(slopes[name]).max()
        assert scale > 0 or (name == "fudge" and shape == "square")
        np.testing.assert_allclose(
            found, slopes[name].reshape(-1), rtol=0, atol=1e-7 * scale, err_msg=name
        )


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("interpolation", ["tricubic", "nearest"])
def test_gradients_by_the_table_are_central_differences(framework, load_framework, interpolation):
    load_framework(framework)
    function = functools.partial(loss, "square", interpolation, pixels=(3, 2))
    values = {"table": PARAMETERS["table"]}
    # JAX takes longer to compile 64 scatters than to do them one by one
    slope = gradient(framework, function, values, jit=False)["table"]
    assert np.count_nonzero(slope) >= (64 if interpolation == "tricubic" else 4)
    entry = np.zeros_like(slope)
    entry[np.unravel_index(np.argmax(np.abs(slope)), slope.shape)] = 1
    for direction in (entry, np.random.default_rng(1).normal(size=slope.shape)):
        found = difference(function, values, "table", direction)
        assert float((slope * direction).sum()) == pytest.approx(found, rel=1e-7)


def test_torch_checks_the_gradient_of_the_kernel(load_framework):
    torch = load_framework("torch")
    shared = kernel_arguments(*SLOW["all at once"][:3], like=torch.zeros((), dtype=torch.float64))
    pixels = torch.tensor([2.0, 5.0], dtype=torch.float64), torch.tensor([3.0, 1.0])
    names = ("lattices", "wavelengths", "directions", "shares", "polarization", "default_factor")
    block = shared["table"][3:10, 2:8, 2:9].contiguous()  # fewer numbers to move

    def pixel(table, *values):
        given = dict(zip(names, values, strict=True))
        return intensity(*pixels, **{**shared, **given, "table": table, "minima": (-3, -4, -4)})

    leaves = [value.clone().requires_grad_() for value in (block, *(shared[n] for n in names))]
    assert torch.autograd.gradcheck(pixel, leaves, fast_mode=True, rtol=1e-6)


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize(
    ("dtype", "shape", "interpolation"),
    [("float32", "square", "tricubic"), ("float64", "round", "nearest")],
)
def test_gradients_are_finite_at_the_direct_beam_and_in_bragg_condition(
    framework, load_framework, dtype, shape, interpolation
):
    load_framework(framework)
    detector, beam, crystal, _ = bragg_condition(shape)
    crystal = replace(crystal, interpolation=interpolation)

    def pixels(cell, misset, wavelength, center):
        shared = kernel_arguments(
            replace(detector, beam_center=center),
            replace(beam, wavelength=wavelength),
            replace(crystal, cell=cell, misset=misset),
        )
        xp = array_namespace(cell)
        assert shared["lattices"].dtype == cell.dtype
        columns = (xp.asarray(column, dtype=cell.dtype) for column in ([7, 20], [3, 3]))
        return xp.sum(intensity(*columns, **shared) ** 0.5)

    values = {
        "cell": crystal.cell, "misset": crystal.misset, "wavelength": beam.wavelength,
        "center": detector.beam_center,
    }  # fmt: skip
    values = {name: np.asarray(value, dtype) for name, value in values.items()}
    for name, slope in gradient(framework, pixels, values).items():
        assert np.isfinite(slope).all(), name
        assert slope.dtype == dtype
        assert (np.abs(slope) > 0).any()


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_gradients_are_finite_behind_the_crystal_and_far_from_peaks(framework, load_framework):
    """Where a branch that is not taken divides by 0 or overflows."""
    load_framework(framework)
    detector, _, crystal, _ = bragg_condition("round")
    crystal = replace(crystal, table=None, interpolation="constant", cells=(99999, 99999, 99999))

    def pixels(directions, cell):
        beam = Beam(sources=Sources(directions, [2.2]))
        shared = kernel_arguments(detector, beam, replace(crystal, cell=cell))
        xp = array_namespace(cell)
        columns = (xp.asarray(column, dtype=cell.dtype) for column in ([7, 20], [3, 3]))
        return xp.sum(intensity(*columns, **shared))

    values = {"directions": [[-1.0, 0.0, 0.0]], "cell": crystal.cell}
    values = {name: np.asarray(value, np.float32) for name, value in values.items()}
    for name, slope in gradient(framework, pixels, values).items():
        assert np.isfinite(slope).all(), name


@pytest.mark.parametrize("x", [0.0, 1e-12, 5e-4, 2e-3, 0.15, -0.3])
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_lattice_factors_and_two_derivatives_are_those_of_long_arithmetic(
    framework, load_framework, x
):
    """Through Bragg's peak, in the reflection's offset h."""
    load_framework(framework)
    for function, exact in (
        (lambda xp, h: ratio(kernels._sincg(xp, math.pi * h, 5)),
         lambda h: mpmath.chebyu(4, mpmath.cos(mpmath.pi * h))),
        (lambda xp, h: ratio(kernels._sinc3(xp, (math.pi * h) ** 2)),
         lambda h: mpmath.hyp0f1(2.5, -((mpmath.pi * h) ** 2) / 4)),
    ):  # fmt: skip
        with mpmath.workdps(40):
            expected = mpmath.taylor(exact, mpmath.mpf(x), 2)
        found = taylor(framework, function, x)
        for order in range(3):
            scale = 5.0 * (5 * math.pi) ** order
            assert found[order] == pytest.approx(float(expected[order]), abs=1e-11 * scale)


def ratio(parts):
    return parts[0] / parts[1]


def taylor(framework, function, x):
    """Value, slope and half the curvature at a point."""
    if framework == "jax":
        import jax

        call = functools.partial(function, jax.numpy)
        slope = jax.grad(call)
        return [float(call(x)), float(slope(x)), float(jax.grad(slope)(x)) / 2]
    import array_api_compat.torch as xp
    import torch

    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = function(xp, point)
    (slope,) = torch.autograd.grad(value, point, create_graph=True)
    (curve,) = torch.autograd.grad(slope, point)
    return [value.item(), slope.item(), curve.item() / 2]
