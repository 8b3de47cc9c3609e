"""Field kernels against sums over modes and cells, plane waves, Parseval and their adjoints."""

from __future__ import annotations

import cmath
import itertools
import math
import tracemalloc

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp
from stowplan import fourier
from stowplan.kernels import fields
from stowplan.recipes.fields_rings import RadialSums, ShellSums, bins, shells

DTYPES = ["float64", "complex128", "float32", "complex64"]
ROUNDING = {"float64": 1e-13, "complex128": 1e-13, "float32": 3e-6, "complex64": 3e-6}
SPACING = (0.5, 0.8, 1.25)
# short axes (products), long ones (FFT), one that is missing, lines in more than one block
SHAPES = [(4, 3, 2, 3), (1, 5, 4, 2), (3, 1, 14, 2), (16, 2, 1, 3), (6, 1, 1, 1)]


COMPILED = {}


def call(framework, kernel, *arguments, **shared):
    """Evaluate a kernel; in JAX as one program, which costs less than operation by operation."""
    if framework != "jax":
        return kernel(*arguments, **shared)
    if kernel not in COMPILED:
        import jax

        COMPILED[kernel] = jax.jit(kernel.function)
    return COMPILED[kernel](*arguments, **shared)


def skip_in_jax(framework, unless):
    """Each shape and dtype compiles anew, and JAX has one way through a transform for all."""
    if framework == "jax" and not unless:
        pytest.skip("another case shows it in JAX")


def values(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    found = rng.normal(size=shape)
    if "complex" in dtype:
        found = found + 1j * rng.normal(size=shape)
    return found.astype(dtype)


def without_mean(a):
    return (a - a.mean(axis=(-4, -3, -2), keepdims=True)).astype(a.dtype)


def signed(mode, n):
    """-n/2 <= mode < n/2."""
    return mode - n if 2 * mode >= n else mode


def slow_modes(a):
    """Every mode by its sum over cells: a list of (mode, |k|, a_k over lines)."""
    shape, found = a.shape[:3], []
    for mode in itertools.product(*map(range, shape)):
        total = 0
        for cell in itertools.product(*map(range, shape)):
            turns = sum(m * c / n for m, c, n in zip(mode, cell, shape, strict=True))
            total = total + a[cell].astype(complex) * cmath.exp(-2j * math.pi * turns)
        waves = [
            2 * math.pi * signed(m, n) / (n * step)
            for m, n, step in zip(mode, shape, SPACING, strict=True)
        ]
        found.append((mode, math.hypot(*waves), total / math.sqrt(math.prod(shape))))
    return found


def slow_riesz(a, mu, beta, lam):
    shape, found = a.shape[:3], np.zeros(a.shape, complex)
    for mode, k, amplitude in slow_modes(a):
        if k == 0 and lam == 0:
            continue
        amplitude = amplitude / (mu * k ** (2 * beta) + lam)
        for cell in itertools.product(*map(range, shape)):
            turns = sum(m * c / n for m, c, n in zip(mode, cell, shape, strict=True))
            found[cell] += amplitude * cmath.exp(2j * math.pi * turns) / math.sqrt(math.prod(shape))
    return found


def near(found, expected, dtype, scale=1.0):
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        np.asarray(found), expected, rtol=0,
        atol=scale * ROUNDING[dtype] * max(float(np.abs(expected).max()), 1e-30),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (1, 5, 2, 2), (2, 1, 14, 1)])
def test_a_solve_is_the_sum_over_modes(xp, framework, shape, dtype):
    skip_in_jax(framework, unless=shape == (4, 3, 2, 2))
    a = without_mean(values(shape, dtype))
    for lam, beta in ((0.0, 1.0), (0.3, 0.8)):
        found = call(
            framework,
            fields.riesz,
            xp.asarray(a),
            spacing=xp.asarray(np.array(SPACING)),
            mu=2.0,
            beta=beta,
            lam=lam,
        )
        assert np.asarray(found).dtype == a.dtype
        near(found, slow_riesz(a, 2.0, beta, lam), dtype)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", [(8, 12, 6, 5), (32, 3, 20, 2)])
def test_a_plane_wave_is_divided_by_its_eigenvalue(xp, framework, shape, dtype):
    skip_in_jax(framework, unless=dtype == "complex128" and shape[0] == 32)
    cells = np.meshgrid(*(np.arange(n) for n in shape[:3]), indexing="ij")
    mode = (3, 1, -2)
    turns = sum(m * cell / n for m, n, cell in zip(mode, shape, cells, strict=False))
    wave = np.exp(2j * np.pi * turns)[..., None] * np.arange(1.0, shape[3] + 1)
    wave = wave if "complex" in dtype else wave.real.copy()
    k2 = sum((2 * np.pi * m / (n * d)) ** 2 for m, n, d in zip(mode, shape, SPACING, strict=False))
    found = call(
        framework,
        fields.riesz,
        xp.asarray(wave),
        spacing=xp.asarray(np.array(SPACING)),
        mu=1.5,
        beta=1.3,
        lam=0.2,
    )
    near(found, wave / (1.5 * k2**1.3 + 0.2), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_putting_a_potential_back_gives_its_source(xp, framework, shape, dtype):
    skip_in_jax(framework, unless=shape == SHAPES[0])
    a = without_mean(values((2, *shape), dtype))
    numbers = {"spacing": 0.7, "mu": 0.5, "beta": 1.0, "lam": 0.0}
    source = xp.asarray(a)
    off, whole = call(
        framework,
        fields.residual,
        call(framework, fields.riesz, source, **numbers),
        source,
        **numbers,
    )
    assert np.asarray(off).dtype == np.abs(a).dtype
    near(whole, (np.abs(a) ** 2).sum(axis=(1, 2, 3, 4)), dtype, 10)
    limit = 1e-12 if ("64" in dtype and dtype != "complex64") or dtype == "complex128" else 3e-5
    assert (np.sqrt(np.asarray(off) / np.asarray(whole)) <= limit).all()


def test_a_wrong_potential_leaves_its_residual(xp, framework):
    skip_in_jax(framework, unless=False)
    a = without_mean(values((5, 4, 3, 2), "float64"))
    source = xp.asarray(a)
    potential = call(framework, fields.riesz, source, spacing=0.7)
    off, whole = call(framework, fields.residual, 1.25 * potential, source, spacing=0.7)
    assert math.sqrt(float(off) / float(whole)) == pytest.approx(0.25, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shells_sum_to_the_squares_of_the_field(xp, framework, shape, dtype):
    """Parseval."""
    skip_in_jax(framework, unless=shape == SHAPES[0])
    a = values((2, *shape), dtype)
    rings = shells(shape[:3], SPACING)
    spacing = xp.asarray(np.array(SPACING))
    sums = call(framework, fields.spectrum, xp.asarray(a), spacing=spacing, width=rings.width)
    assert np.asarray(sums).dtype == np.abs(a).dtype
    assert sums.shape == (2, len(rings.counts))
    expected = (np.abs(a) ** 2).sum(axis=(1, 2, 3, 4))
    near(np.asarray(sums).sum(axis=1), expected, dtype, 10)
    near(call(framework, fields.squares, xp.asarray(a)), expected, dtype, 10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 3, 2, 3), (1, 5, 4, 2), (3, 1, 14, 1)])
def test_shells_hold_the_modes_that_are_nearest(xp, framework, shape, dtype):
    skip_in_jax(framework, unless=dtype == "complex128" and shape == (4, 3, 2, 3))
    a = values(shape, dtype)
    rings = shells(shape[:3], SPACING)
    expected = np.zeros(len(rings.counts))
    counts, places = np.zeros(len(expected), int), np.zeros(len(expected))
    for _, k, amplitude in slow_modes(a):
        shell = math.ceil(k / rings.width * (1 - 4e-7) - 0.5) if k else 0
        expected[shell] += (abs(amplitude) ** 2).sum()
        counts[shell] += 1
        places[shell] += k
    spacing = xp.asarray(np.array(SPACING))
    found = call(framework, fields.spectrum, xp.asarray(a), spacing=spacing, width=rings.width)
    near(found, expected, dtype, 10)
    assert rings.counts.tolist() == counts.tolist()
    full = counts > 0
    np.testing.assert_allclose(rings.places[full], places[full] / counts[full], rtol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "centre"),
    [
        ((4, 3, 2, 3), (2, 1, 1)),
        ((5, 1, 4, 2), (0.5, 0.3, -3.0)),
        ((1, 1, 9, 1), (0, 0, 8.5)),
        ((5, 1, 1, 2), (0, 0.45, 0.3)),
    ],
)
def test_radial_sums_are_over_the_nearest_images(xp, framework, shape, centre, dtype):
    skip_in_jax(framework, unless=shape == (5, 1, 4, 2))
    a = values(shape, dtype)
    rings = bins(shape[:3], SPACING, centre)
    expected = np.zeros(len(rings.counts), complex)
    counts = np.zeros(len(expected), int)
    for cell in itertools.product(*map(range, shape[:3])):
        square = 0.0
        for c, m, n, step in zip(cell, centre, shape, SPACING, strict=False):
            images = (-3, -2, -1, 0, 1, 2, 3)
            square += min((c - m + n * image) ** 2 for image in images) * step**2 if n > 1 else 0.0
        ring = max(math.ceil(math.sqrt(square) / rings.width * (1 - 4e-7) - 0.5), 0)
        expected[ring] += a[cell].sum()
        counts[ring] += 1
    found = call(framework, fields.radial, xp.asarray(a), spacing=xp.asarray(np.array(SPACING)),
        centre=xp.asarray(np.array(centre, float)), width=rings.width,
    )  # fmt: skip
    assert np.asarray(found).dtype == a.dtype
    near(found, expected if "complex" in dtype else expected.real, dtype, 10)
    assert rings.counts.tolist() == counts.tolist()


@pytest.mark.parametrize("shape", [(16, 16, 16), (15, 16, 1), (40, 4, 40), (7, 7, 7)])
@pytest.mark.parametrize("spacing", [1.0, 0.1, (0.1, 1.0, 0.1), (0.1, 0.3, 0.7)])
def test_kernels_put_into_rings_what_is_counted_there_in_either_precision(
    xp, framework, shape, spacing
):
    """Ties of unequal axes among them; every mode has power 1, and every cell the number 1."""
    skip_in_jax(framework, unless=shape == (15, 16, 1) and spacing in (0.1, (0.1, 0.3, 0.7)))
    if np.shape(spacing) == (3,):
        spacing = np.array(spacing)
    for dtype in ("float32", "float64"):

        def given(number, dtype=dtype):
            return xp.asarray(np.asarray(number, dtype))

        delta = np.zeros((*shape, 1), dtype)
        delta[0, 0, 0] = math.sqrt(math.prod(shape))  # every mode is 1
        rings = shells(shape, spacing)
        step = given(spacing)
        found = call(framework, fields.spectrum, xp.asarray(delta), spacing=step, width=rings.width)
        np.testing.assert_allclose(np.asarray(found), rings.counts, atol=0.02)
        ones = np.ones((*shape, 1), dtype)
        rings = bins(shape, spacing)
        middle = given([n // 2 for n in shape])
        found = call(
            framework,
            fields.radial,
            xp.asarray(ones),
            spacing=step,
            centre=middle,
            width=rings.width,
        )
        assert np.asarray(found).tolist() == rings.counts.tolist()


def of_items(xp, dtype):
    shapes = [(4, 4, 2, 3), (4, 4, 2, 7), (16, 1, 3, 2), (4, 4, 2, 5), (4, 4, 2, 3)]
    items = [values(shape, dtype, seed) for seed, shape in enumerate(shapes)]
    return [xp.asarray(item) for item in items]


def calls(xp):
    centre = xp.asarray(np.array([1.0, 2.0, 0.0]))
    numbers = {"spacing": 0.5, "beta": 0.8, "lam": 0.2}
    return {
        fields.riesz: numbers,
        fields.residual: numbers,
        fields.squares: {},
        fields.spectrum: {"spacing": 0.5, "width": 2 * math.pi},
        fields.radial: {"spacing": 0.5, "width": 0.5, "centre": centre},
    }


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("name", ["riesz", "residual", "squares", "spectrum", "radial"])
def test_a_batch_equals_its_items_one_at_a_time(xp, framework, name, dtype):
    skip_in_jax(framework, unless=dtype == "complex64")
    kernel = getattr(fields, name)
    shared, items = calls(xp)[kernel], of_items(xp, dtype)
    columns = {argument: sp.Ragged.from_list(items, ragged=4) for argument in kernel.arguments}
    plan = sp.plan(kernel, columns, **shared)
    found = sp.run(kernel, columns, plan, **shared)
    assert len(plan.batches) < len(items)
    found = found if isinstance(found, tuple) else (found,)
    for place, item in enumerate(items):
        alone = call(framework, kernel, *(item for _ in kernel.arguments), **shared)
        for whole, expected in zip(
            found, alone if isinstance(alone, tuple) else (alone,), strict=True
        ):
            near(whole[place], expected, dtype, 10)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_padded_lines_change_nothing(xp, framework, dtype):
    skip_in_jax(framework, unless=dtype == "complex128")
    for kernel, shared in calls(xp).items():
        if framework == "jax" and kernel is not fields.radial:
            continue
        data = sp.Ragged.from_list(of_items(xp, dtype), ragged=4)
        columns = dict.fromkeys(kernel.arguments, data)
        report = sp.verify(kernel, columns, sp.plan(kernel, columns, **shared), **shared)
        assert report.passed, report


def test_a_budget_is_planned_for_every_kernel(xp, framework):
    for kernel, shared in calls(xp).items():
        if framework == "jax" and kernel is not fields.spectrum:
            continue
        items = [xp.asarray(values((4, 4, 4, 16), "complex128", seed)) for seed in range(12)]
        columns = {argument: sp.Ragged.from_list(items, ragged=4) for argument in kernel.arguments}
        plan = sp.plan(kernel, columns, budget="64 MiB", **shared)
        found = sp.run(kernel, columns, plan, **shared)
        for one in each(found):
            assert (len(one) if isinstance(one, sp.Ragged) else one.shape[0]) == 12


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_vmap_equals_leading_dims(framework, load_framework):
    xp = load_framework(framework)
    a = xp.asarray(values((3, 4, 3, 2, 2), "complex128"))
    for kernel, shared in calls(xp).items():
        if framework == "jax" and kernel is not fields.spectrum:
            continue
        arguments = (a,) * len(kernel.arguments)

        def one_item(*arguments, kernel=kernel, shared=shared):
            return call(framework, kernel, *arguments, **shared)

        if framework == "torch":
            import torch

            mapped = torch.vmap(one_item)(*arguments)
        else:
            import jax

            mapped = jax.vmap(one_item)(*arguments)
        for one, other in zip(each(mapped), each(one_item(*arguments)), strict=True):
            near(one, np.asarray(other), "complex128", 10)


def each(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (14, 1, 3, 2)])
def test_the_gradient_of_a_solve_is_a_solve(framework, load_framework, dtype, shape):
    """d/ds of Re <w, R s> is R w, since R is its own adjoint."""
    xp = load_framework(framework)
    source, weight = values(shape, dtype), xp.asarray(values(shape, dtype, 1))
    numbers = {"spacing": 0.5, "mu": 1.5, "beta": 0.7, "lam": 0.0}

    def loss(source):
        potential = fields.riesz(source, **numbers)
        product = potential * (xp.conj(weight) if "complex" in dtype else weight)
        return xp.sum(xp.real(product) if "complex" in dtype else product)

    expected = np.asarray(call(framework, fields.riesz, weight, **numbers))
    if framework == "jax":
        import jax

        found = np.asarray(
            jax.jit(jax.grad(loss))(xp.asarray(source))
        ).conj()  # JAX gives the conjugate
    else:
        import torch

        leaf = torch.tensor(source, requires_grad=True)
        found = torch.autograd.grad(loss(leaf), leaf)[0].numpy()
    near(found, expected, dtype)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_gradients_by_the_numbers_are_finite_at_the_zero_mode(framework, load_framework):
    load_framework(framework)
    source, given = without_mean(values((4, 3, 2, 2), "float64")), (1.5, 0.7, 0.0, 0.5)

    def loss(mu, beta, lam, spacing):
        xp = array_namespace(mu)
        found = fields.riesz(xp.asarray(source), mu=mu, beta=beta, lam=lam, spacing=spacing)
        return xp.sum(found * found)

    if framework == "jax":
        import jax

        loss = jax.jit(loss)
        slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 3)))(*(jax.numpy.asarray(v) for v in given))
    else:
        import torch

        leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in given]
        slopes = torch.autograd.grad(loss(*leaves), [leaves[0], leaves[1], leaves[3]])
    for slope, place in zip(slopes, (0, 1, 3), strict=True):
        ends = []
        for sign in (-1, 1):
            moved = [np.asarray(v) for v in given]
            moved[place] = moved[place] + sign * 1e-5
            ends.append(float(loss(*moved)))
        assert float(slope) == pytest.approx((ends[1] - ends[0]) / 2e-5, rel=1e-6)


def test_other_numbers_compile_nothing(load_framework):
    load_framework("jax")
    import jax

    traced = []

    def solve(source, **numbers):
        traced.append(1)
        return fields.riesz(source, **numbers)

    source = jax.numpy.asarray(values((4, 3, 2, 2), "complex64"))
    compiled = jax.jit(solve)
    for spacing, beta, lam in ((0.5, 1.0, 0.0), (0.1, 0.8, 0.3), (2.0, 1.2, 1.0)):
        compiled(source, spacing=spacing, mu=1.0, beta=beta, lam=lam)
    assert len(traced) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 8, 8, 200), (13, 4, 16, 40)])
def test_fields_cut_along_lines_merge_exactly(xp, framework, shape, dtype):
    skip_in_jax(framework, unless=dtype == "float32" and shape[0] == 13)
    a = values(shape, dtype)
    rings, around = shells(shape[:3], 0.5), bins(shape[:3], 0.5)
    middle = xp.asarray(np.array([n // 2 for n in shape[:3]], float))

    def summed(part):
        lines, part = part.shape[3], xp.asarray(part)
        power = call(framework, fields.spectrum, part, spacing=0.5, width=rings.width)
        along = call(framework, fields.radial, part, spacing=0.5, centre=middle, width=around.width)
        return ShellSums.of(rings, power, lines), RadialSums.of(around, along, lines)

    whole = summed(a)
    cuts = [0, 3, 17, 30, shape[3]]
    parts = [summed(a[..., start:stop].copy()) for start, stop in itertools.pairwise(cuts)]
    for place, expected in enumerate(whole):
        merged = parts[0][place]
        for part in parts[1:]:
            merged = merged + part[place]
        assert merged.counts.tolist() == expected.counts.tolist()
        full = expected.counts > 0
        near(merged.mean[full], expected.mean[full], dtype, 20)


@pytest.mark.parametrize("dtype", ["complex128", "complex64", "float64"])
@pytest.mark.parametrize("shape", [(8, 8, 8, 512), (32, 32, 32, 8)])
def test_workspace_on_the_host_is_small(shape, dtype):
    """A solve takes its result; a spectrum takes blocks of lines. Real fields have modes beside."""
    a = values(shape, dtype)
    tracemalloc.start()
    fields.riesz(a, spacing=0.5)
    solved = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    fields.spectrum(a, spacing=0.5, width=10.0)
    summed = tracemalloc.get_traced_memory()[1] - tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    small = 3 * 2**20
    assert solved < (2.2 if dtype == "float64" else 1) * a.nbytes + small
    assert summed < 2 * fourier._SCRATCH_BYTES


def test_the_input_is_left_as_it_is(xp, framework):
    skip_in_jax(framework, unless=False)
    for shape in SHAPES:
        for dtype in DTYPES:
            a = values(shape, dtype)
            given = xp.asarray(a.copy())
            for kernel, shared in calls(xp).items():
                kernel(*(given,) * len(kernel.arguments), **shared)
            assert (np.asarray(given) == a).all()


def test_strided_arrays_are_read_as_they_lie():
    a = values((6, 8, 10, 12), "complex128")
    turned = a.transpose(1, 0, 3, 2)[:, ::-1, :, ::2]
    found = fields.riesz(turned, spacing=0.5, lam=0.1)
    near(found, fields.riesz(turned.copy(), spacing=0.5, lam=0.1), "complex128")
