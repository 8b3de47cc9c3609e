"""Diffraction images: chunks, regions, gradients and budgets change no photon, and bad input."""

from __future__ import annotations

import functools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp
from stowplan.errors import BudgetError, DataError, FrameworkError, PlanError
from stowplan.io.reflections import StructureFactors, tabulate
from stowplan.kernels.bragg import intensity
from stowplan.recipes.bragg import (
    Beam,
    Crystal,
    Detector,
    Sources,
    estimate,
    image,
    mosaic_rotations,
    prepare,
)
from stowplan.recipes.bragg_geometry import kernel_arguments
from stowplan.runs import execution

CUBIC = (100.0, 100.0, 100.0, 90.0, 90.0, 90.0)
SMALL = (9.0, 10.5, 11.0, 75.0, 85.0, 95.0)
GRADIENTS = ["torch", "jax"]


def cosine_table(hmax):
    n = np.arange(-hmax, hmax + 1.0)
    h, k, l = np.meshgrid(n, n, n, indexing="ij")  # noqa: E741
    values = 100 + 60 * np.cos(0.7 * h) * np.cos(0.5 * k + 0.3) * np.cos(0.9 * l - 0.2)
    return StructureFactors(values, (-hmax,) * 3)


# crystal, detector, beam; the cheap one has two terms, the other a table and six
PLAIN = (
    Crystal(SMALL, cells=(3, 2, 4), misset=(15.0, 20.5, 30.25)),
    Detector((12, 10), pixel_size=2.0, distance=21.0, rotation=(5.0, -8.0, 3.0)),
    Beam(1.1, dispersion=3.0, dispersion_steps=2),
)
TABLED = (
    Crystal(
        SMALL, cells=(2, 2, 3), misset=(15.0, 20.5, 30.25), table=cosine_table(6), phi=4.0,
        oscillation=9.0, phi_steps=3, mosaic=mosaic_rotations(1.5, 2, seed=5),
    ),
    Detector((9, 8), pixel_size=2.5, distance=21.0, two_theta=10.0),
    Beam(1.2, polarization=0.7),
)  # fmt: skip


def by_hand(xp, framework, case, dtype="float64"):
    """Every pixel by one call of the kernel."""
    crystal, detector, beam = case
    like = xp.zeros((), dtype=getattr(xp, dtype))
    shared = kernel_arguments(detector, beam, crystal, like=like)
    slow, fast = (xp.asarray(axis, dtype=like.dtype) for axis in np.indices(detector.shape))

    traced = {name: value for name, value in shared.items() if name not in intensity.static}
    statics = {name: value for name, value in shared.items() if name in intensity.static}

    def call(slow, fast, traced):
        return intensity(slow, fast, **traced, **statics)

    if framework == "jax":
        import jax

        call = jax.jit(call)
    return np.asarray(call(slow, fast, traced))


def close(found, expected, ulp=4):
    """Whether two images agree but for rounding at their maximum."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    assert expected.max() > 0
    atol = ulp * float(np.spacing(expected.max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_the_reference_image_is_met_in_chunks(framework):
    """Source: nanoBragg, the C program: largest pixel and sum of a cubic crystal's image."""
    photons = np.asarray(image(Crystal(CUBIC), Detector((64, 64)), Beam(6.2), on=framework, rows=5))
    assert photons.max() == pytest.approx(154.652, abs=1e-3)
    assert photons.sum() == pytest.approx(24300.0, abs=0.1)


@pytest.mark.parametrize("case", [PLAIN, TABLED], ids=["plain", "tabled"])
def test_an_image_is_the_kernel_on_every_pixel(xp, framework, case):
    photons = image(*case, on=framework)
    assert array_namespace(photons) is array_namespace(xp.zeros(1))
    assert photons.shape == case[1].shape
    close(photons, by_hand(xp, framework, case))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_chunks_of_any_size_give_the_same_image(xp, framework, dtype):
    whole = by_hand(xp, framework, PLAIN, dtype)
    made = prepare(*PLAIN, on=framework, dtype=dtype)
    for pixels in (1, 7, 64, 119, 120, 240):
        plan = sp.plan(intensity, made.columns, rows=pixels, **made.shared)
        assert max(len(batch.items) for batch in plan.batches) <= pixels
        photons = made.assemble(sp.run(intensity, made.columns, plan, **made.shared))
        close(photons, whole)
    for rows in (1, 5, 11, 12, 24):
        close(image(*PLAIN, on=framework, dtype=dtype, rows=rows), whole)


def test_rows_are_those_of_the_detector(capsys):
    assert prepare(*PLAIN).chunk(3) == 3 * 10
    image(*PLAIN, rows=3, progress=True)
    assert "4/4" in capsys.readouterr().err


def test_chunks_of_one_shape_give_the_same_bits(framework):
    whole, part = (
        np.asarray(image(*PLAIN, on=framework, rows=3, region=region))
        for region in (None, np.s_[6:, :])
    )
    np.testing.assert_array_equal(part[6:], whole[6:])


SCATTERED = np.random.default_rng(0).random((12, 10)) < 0.3


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize(
    "region", [SCATTERED, np.s_[3:9, -4:], np.s_[::5, :]], ids=["mask", "block", "lines"]
)
def test_a_region_is_cut_from_the_image_and_the_rest_is_0(framework, region, rows):
    whole = np.asarray(image(*PLAIN, on=framework))
    wanted = np.zeros(whole.shape, bool)
    wanted[region] = True
    photons = image(*PLAIN, on=framework, region=region, rows=rows)
    close(photons, np.where(wanted, whole, 0.0))
    np.testing.assert_array_equal(np.asarray(photons)[~wanted], 0.0)
    made = prepare(*PLAIN, on=framework, region=region)
    assert made.pixels == wanted.sum()  # nothing else is computed


def test_a_region_may_be_an_array_of_the_framework(xp, framework):
    found = image(*PLAIN, on=framework, region=xp.asarray(SCATTERED))
    close(found, image(*PLAIN, on=framework, region=SCATTERED))


def test_the_dtype_is_that_of_the_parameters_unless_another_is_asked_for(xp, framework):
    crystal, detector, beam = PLAIN

    def dtype_of(cell, **options):
        def photons(cell):
            return image(replace(crystal, cell=cell), detector, beam, **options)

        if framework == "jax":
            import jax

            return jax.eval_shape(photons, cell).dtype
        return photons(cell).dtype

    for name in ("float32", "float64"):
        dtype = getattr(xp, name)
        cell = xp.asarray(SMALL, dtype=dtype)
        own = xp.float64 if framework == "numpy" else dtype  # NumPy's arrays are numbers
        assert dtype_of(cell) == own
        assert dtype_of(cell, dtype="float32") == xp.float32
        assert image(*PLAIN, on=framework, dtype=name).dtype == dtype
    assert image(*PLAIN, on=framework).dtype == xp.float64


def test_whole_numbers_are_as_good_as_real_ones(xp, framework):
    _, detector, beam = PLAIN
    cubic = Crystal(CUBIC)
    given = replace(cubic, cell=xp.asarray([100, 100, 100, 90, 90, 90]))
    photons = image(given, detector, beam)
    assert photons.dtype == xp.float64
    close(photons, image(cubic, detector, beam, on=framework))


def test_jax_without_64_bits_computes_in_32(load_framework):
    load_framework("jax")
    import jax

    jax.config.update("jax_enable_x64", False)
    try:
        assert image(*PLAIN, on="jax").dtype == np.float32
        with pytest.raises(FrameworkError, match=r"dtype='float64'.*jax_enable_x64"):
            image(*PLAIN, on="jax", dtype="float64")
    finally:
        jax.config.update("jax_enable_x64", True)


@pytest.mark.parametrize("other", ["numpy", "jax"])
def test_an_image_comes_back_to_the_framework_of_the_parameters(load_framework, other):
    torch = load_framework("torch")
    load_framework(other)
    crystal, detector, beam = PLAIN
    cell = torch.tensor(SMALL, dtype=torch.float64)
    photons = image(replace(crystal, cell=cell), detector, beam, on=other, rows=5)
    assert isinstance(photons, torch.Tensor)
    close(photons, image(*PLAIN), ulp=500)
    with pytest.raises(FrameworkError, match="cuts the gradient"):
        image(replace(crystal, cell=cell.requires_grad_()), detector, beam, on=other)


NUMBERS = {
    "cell": np.array(SMALL),
    "misset": np.array([15.0, 20.5, 30.25]),
    "wavelength": np.array(1.2),
    "spread": np.array(1.5),
    "table": cosine_table(3).values,
}


def loss(values, *, region=None, **options):
    """A weighted sum of an image, from the numbers that it depends on."""
    crystal = Crystal(
        values["cell"], cells=(2, 3, 2), misset=values["misset"], interpolation="tricubic",
        mosaic=mosaic_rotations(values["spread"], 2, seed=5), table=(values["table"], (-3,) * 3),
    )  # fmt: skip
    detector = Detector((5, 4), pixel_size=3.5, distance=21.0)
    photons = image(crystal, detector, Beam(values["wavelength"]), region=region, **options)
    xp = array_namespace(photons)
    return xp.sum(photons * xp.asarray(np.random.default_rng(1).uniform(0.5, 1.5, (5, 4))))


def gradient(framework, function, values):
    """Of a function of named arrays, as NumPy."""
    if framework == "jax":
        import jax

        return {name: np.asarray(x) for name, x in jax.jit(jax.grad(function))(values).items()}
    import torch

    leaves = {name: torch.tensor(x, requires_grad=True) for name, x in values.items()}
    slopes = torch.autograd.grad(function(leaves), list(leaves.values()))
    return {name: x.numpy() for name, x in zip(leaves, slopes, strict=True)}


def difference(values, name, direction):
    """Derivative of the loss along a direction, by central differences of fourth order."""
    step = 1e-4 * max(1.0, float(np.abs(values[name]).max()))
    low, less, more, high = (
        float(loss({**values, name: values[name] + n * step * direction})) for n in (-2, -1, 1, 2)
    )
    return (8 * (more - less) - high + low) / (12 * step)


@functools.cache
def chunked_gradient(framework):
    return gradient(framework, lambda values: loss(values, rows=2), NUMBERS)


@pytest.mark.parametrize("framework", GRADIENTS)
def test_the_gradient_of_a_chunked_image_is_that_of_finite_differences(framework, load_framework):
    load_framework(framework)
    slopes = chunked_gradient(framework)
    for name, value in NUMBERS.items():
        slope = slopes[name]
        directions = np.eye(value.size).reshape(-1, *value.shape)
        if name == "table":
            assert np.count_nonzero(slope) >= 64  # the nodes of a tricubic pixel
            directions = [np.sign(slope), np.random.default_rng(1).normal(size=slope.shape)]
        scale = max(abs(float((slope * direction).sum())) for direction in directions)
        assert scale > 0
        for direction in directions:
            found = difference(NUMBERS, name, direction)
            assert found == pytest.approx((slope * direction).sum(), abs=1e-6 * scale), name


@pytest.mark.parametrize("framework", GRADIENTS)
def test_the_gradient_of_a_chunked_image_is_that_of_the_whole(framework, load_framework):
    load_framework(framework)
    whole = gradient(framework, loss, NUMBERS)
    for name, slope in chunked_gradient(framework).items():
        scale = np.abs(whole[name]).max()
        np.testing.assert_allclose(slope, whole[name], rtol=0, atol=1e-10 * scale, err_msg=name)


def test_the_gradient_of_a_region_is_that_of_its_pixels(load_framework):
    load_framework("torch")
    region = np.s_[1:4, :3]

    def cropped(values):
        return loss(values, region=region, rows=1)

    def masked(values):
        crystal = Crystal(SMALL, cells=(2, 3, 2), misset=values["misset"])
        detector = Detector((5, 4), pixel_size=3.5, distance=21.0)
        return image(crystal, detector, Beam(1.2), region=region, rows=1).sum()

    def sliced(values):
        crystal = Crystal(SMALL, cells=(2, 3, 2), misset=values["misset"])
        detector = Detector((5, 4), pixel_size=3.5, distance=21.0)
        return image(crystal, detector, Beam(1.2))[region].sum()

    found, expected = (
        gradient("torch", function, {"misset": NUMBERS["misset"]})["misset"]
        for function in (masked, sliced)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert np.abs(gradient("torch", cropped, NUMBERS)["table"]).max() > 0


def test_torch_checks_the_gradient_of_a_chunked_image(load_framework):
    torch = load_framework("torch")
    names = ("cell", "misset", "wavelength", "spread", "table")
    leaves = [torch.tensor(NUMBERS[name], requires_grad=True) for name in names]

    def photons(*values):
        return loss(dict(zip(names, values, strict=True)), rows=1)

    assert torch.autograd.gradcheck(photons, leaves, fast_mode=True, rtol=1e-5)


def test_an_image_may_be_jitted(load_framework):
    load_framework("jax")
    import jax

    crystal, detector, beam = PLAIN

    def photons(cell, wavelength, **options):
        return image(
            replace(crystal, cell=cell), detector, replace(beam, wavelength=wavelength), **options
        )

    numbers = (jax.numpy.asarray(SMALL), jax.numpy.asarray(1.1))
    for options in ({}, {"rows": 5}, {"region": SCATTERED, "rows": 2}):
        jitted = jax.jit(functools.partial(photons, **options))(*numbers)
        close(jitted, photons(*numbers, **options), ulp=500)


@pytest.mark.parametrize("option", [{"progress": True}, {"budget": "1 GiB"}])
def test_what_needs_values_is_refused_under_a_trace(load_framework, option):
    load_framework("jax")
    import jax

    crystal, detector, beam = PLAIN
    (name,) = option

    def photons(cell):
        return image(replace(crystal, cell=cell), detector, beam, **option)

    with pytest.raises(FrameworkError, match=f"run: {name}="):
        jax.jit(photons)(jax.numpy.asarray(SMALL))


MANY = (
    Crystal(CUBIC, mosaic=mosaic_rotations(0.5, 8)), Detector((128, 96)), Beam(6.2),
)  # fmt: skip


def traced_peak(call):
    """Bytes that a call allocates at its peak."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_image_keeps_within_its_budget():
    image(*MANY, rows=1)  # imports and caches
    budget = 4 * 2**20
    chunked = traced_peak(lambda: image(*MANY, budget=budget))
    columns = 2 * MANY[1].shape[0] * MANY[1].shape[1] * 8  # indices of pixels, int64 and int32
    assert traced_peak(lambda: image(*MANY, rows=128)) > 2 * budget
    assert chunked <= budget + columns
    close(image(*MANY, budget=budget), image(*MANY))


def storage_peak(call):
    """Bytes of torch's storages at the peak of a call."""
    from stowplan.adapters.torch_memory import LiveStorages

    with LiveStorages() as storages:
        call()
    return storages.peak_bytes


def test_a_gradient_keeps_within_the_budget_of_its_image(load_framework):
    torch = load_framework("torch")
    crystal, detector, beam = MANY

    def backward(**options):
        cell = torch.tensor(CUBIC, dtype=torch.float64, requires_grad=True)
        image(replace(crystal, cell=cell), detector, beam, **options).sum().backward()
        return cell.grad

    budget = 6 * 2**20
    columns = 2 * 128 * 96 * 8
    assert storage_peak(lambda: backward(rows=128)) > 2 * budget
    assert storage_peak(lambda: backward(budget=budget)) <= budget + columns
    torch.testing.assert_close(backward(budget=budget), backward(rows=128), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("domains", [1, 8])
@pytest.mark.parametrize("on", ["numpy", "torch"])
def test_the_estimated_peak_of_all_pixels_at_once_is_the_real_one(load_framework, on, domains):
    load_framework(on)
    case = (replace(MANY[0], mosaic=mosaic_rotations(0.5, domains)), *MANY[1:])
    measure = storage_peak if on == "torch" else traced_peak
    image(*case, on=on, rows=1)
    made = prepare(*case, on=on)
    plan = sp.plan(intensity, made.columns, rows=made.pixels, peak=(0, 1), **made.shared)
    real = measure(lambda: sp.run(intensity, made.columns, plan, **made.shared))
    found = estimate(*case, on=on, gradient=False).image.full_bytes
    assert real <= found <= 1.1 * real


def test_the_estimated_peak_of_chunks_is_the_real_one(load_framework):
    torch = load_framework("torch")
    found = estimate(*MANY, budget="16 MiB")
    made = prepare(*MANY, on="torch")
    (forward,), (gradient,) = found.image.chunks, found.gradient.chunks
    plan = sp.plan(intensity, made.columns, rows=forward.pixels, peak=(0, 1), **made.shared)
    real = storage_peak(lambda: sp.run(intensity, made.columns, plan, **made.shared))
    assert 0.9 * real <= forward.peak_bytes <= 1.1 * real
    shared = {
        name: value.clone().requires_grad_() if isinstance(value, torch.Tensor) else value
        for name, value in made.shared.items()
    }
    plan = sp.plan(intensity, made.columns, rows=gradient.pixels, peak=(0, 1), **shared)
    real = storage_peak(lambda: sp.run(intensity, made.columns, plan, **shared).sum().backward())
    assert 0.9 * real <= gradient.peak_bytes <= 1.1 * real


@pytest.mark.parametrize("on", ["numpy", "torch", "jax"])
def test_an_estimate_gives_chunks_within_each_budget_and_fewer_of_a_larger_one(load_framework, on):
    load_framework(on)
    budgets = {"small": "3 MiB", "huge": "10 GiB"}
    found = estimate(*MANY, on=on, budget=budgets)
    assert (found.pixels, found.terms, found.detector) == (128 * 96, 8, (128, 96))
    assert (found.gradient is None) == (on == "numpy")
    kinds = list(filter(None, (found.image, found.gradient)))
    for peaks in kinds:
        assert [one.budget for one in peaks.chunks] == list(budgets)
        counts = [one.count for one in peaks.chunks]
        assert counts[0] > counts[1] or (on == "jax" and peaks is not kinds[-1])
        for one in peaks.chunks:
            assert one.pixels * one.count >= found.pixels > one.pixels * (one.count - 1)
            assert one.peak_bytes <= one.budget_bytes
            assert one.peak_bytes < peaks.full_bytes


@pytest.fixture
def planned(monkeypatch):
    """Plans that runs have made."""
    plans = []

    def keep(*args, make=execution.plan_columns, **options):
        plans.append(make(*args, **options))
        return plans[-1]

    monkeypatch.setattr(execution, "plan_columns", keep)
    return plans


def recorded(framework, function, cell):
    """Call a function of a cell whose gradient the framework records."""
    if framework == "jax":
        import jax

        return jax.vjp(function, jax.numpy.asarray(cell))[0]
    import torch

    return function(torch.tensor(cell, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("budget", ["3 MiB", "10 GiB"])
@pytest.mark.parametrize("on", ["numpy", "torch", "jax"])
def test_an_estimate_gives_the_rows_and_the_peak_that_a_plan_with_that_budget_has(
    load_framework, planned, on, budget
):
    load_framework(on)
    crystal, detector, beam = MANY
    given = []

    def both(cell, **options):
        case = (replace(crystal, cell=cell), detector, beam)
        given.append(estimate(*case, budget=budget, gradient=on != "numpy", **options))
        return image(*case, budget=budget, **options)

    both(CUBIC, on=on)
    kinds = [given[0].image]
    if on != "numpy":
        recorded(on, both, CUBIC)
        kinds.append(given[1].gradient)
    for peaks, plan in zip(kinds, planned, strict=True):
        (one,) = peaks.chunks
        assert (one.pixels,) == plan.rows
        assert one.count == len(plan.batches)
        assert one.peak_bytes == plan.memory.peak_bytes
        assert one.budget_bytes == plan.memory.budget.bytes


def test_without_a_budget_an_estimate_gives_the_rows_that_an_image_has(planned, monkeypatch):
    monkeypatch.setenv("STOWPLAN_BUDGET", "1 GiB")
    (one,) = estimate(*MANY, on="numpy").image.chunks
    image(*MANY, on="numpy")
    assert planned[0].memory.peak_bytes is None  # nobody asked, nothing is probed
    assert (one.pixels, one.count) == (planned[0].rows[0], len(planned[0].batches))
    assert one.budget_bytes == 2**30
    assert one.peak_bytes > one.pixels * 8 * 8


def test_an_estimate_computes_nothing_and_needs_no_device(load_framework):
    load_framework("torch")
    crystal = replace(MANY[0], mosaic=mosaic_rotations(0.5, 1000))
    found = estimate(
        crystal, Detector((1024, 1024), oversample=3), Beam(6.2), device="cuda", dtype="float32",
        budget=["2 GiB", "20 GiB"],
    )  # fmt: skip
    assert found.terms == 9000
    assert found.image.full_bytes > 2**38
    assert found.image.chunks[0].count < found.gradient.chunks[0].count
    assert 2**28 < found.image.chunks[1].peak_bytes <= 2**30  # what a cache of a card likes
    with pytest.raises(FrameworkError, match=r"estimate: .* free on cuda is unknown.*'20 GiB'"):
        estimate(*PLAIN, device="cuda", budget=0.5)


def test_an_estimate_of_a_region_counts_its_pixels(load_framework):
    load_framework("torch")
    found = estimate(*MANY, region=np.s_[:10, :10], gradient=False)
    assert (found.pixels, found.gradient) == (100, None)
    assert "100 pixels, 8 terms each" in str(found)


def test_an_estimate_prints_as_a_table(load_framework):
    load_framework("torch")
    lines = str(estimate(*MANY, budget={"a card": "3 MiB"})).splitlines()
    assert lines[0] == "128 x 96 pixels, 8 terms each, torch float64"
    assert "image" in lines[1]
    assert "with gradient" in lines[1]
    assert [line.split("  ")[0] for line in lines[2:]] == ["budget", "all at once", "a card"]
    assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize("call", [image, estimate])
def test_a_budget_below_one_pixel_is_told_what_it_needs(call):
    with pytest.raises(BudgetError, match=r"needs \d+ bytes.*for each.*Give at least budget=\d+"):
        call(*MANY, budget=100, on="numpy")


def test_the_least_budget_of_the_message_is_enough(load_framework):
    load_framework("torch")
    with pytest.raises(BudgetError) as caught:
        estimate(*PLAIN, budget=100, gradient=False)
    least = int(str(caught.value).partition("budget=")[2].partition("budget=")[2].partition(",")[0])
    (one,) = estimate(*PLAIN, budget=least, gradient=False).image.chunks
    assert one.pixels == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"region": np.ones((12, 9), bool)}, r"region of shape \(12, 9\).*\(12, 10\)"),
        ({"region": np.ones((12, 10))}, r"region of shape .* dtype float64; give a bool array"),
        ({"region": np.zeros((12, 10), bool)}, "region holds none of the 120 pixels"),
        ({"region": np.s_[5:5, :]}, "region holds none of the 120 pixels"),
        ({"region": np.s_[:13, :]}, "reaches to 13 along the slow axis.* has 12"),
        ({"region": np.s_[:, -11:]}, "reaches to -11 along the fast axis.* has 10"),
        ({"region": np.s_[:5]}, "two slices"),
        ({"region": (1, 2)}, "two slices"),
        ({"dmin": -1.0}, "dmin=-1.0"),
    ],
)
@pytest.mark.parametrize("call", [image, estimate])
def test_a_region_that_is_none_is_told_the_cure(call, options, reason):
    with pytest.raises(DataError, match=reason):
        call(*PLAIN, on="numpy", **options)


@pytest.mark.parametrize("rows", [0, -1, 1.5, True, "2"])
def test_rows_that_are_no_count_are_refused(rows):
    with pytest.raises(PlanError, match=r"image: rows=.*at least 1.*rows=64"):
        image(*PLAIN, rows=rows)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda: Detector((12, 10), pixel_size=0.0), "Detector: pixel_size=0.0.*above 0"),
        (lambda: Detector((12, 10), distance=-1.0), "Detector: distance=-1.0.*above 0"),
        (lambda: Detector((12, 10), oversample=0), "Detector: oversample=0.*1 or more"),
        (lambda: Detector((12, 10), rotation=(0, 90, 0)), "Turn it by less"),
        (lambda: Detector((0, 20)), r"Detector: shape=\(0, 20\)"),
        (lambda: Beam(0.0), "Beam: wavelength=0.0.*above 0"),
        (lambda: Beam(sources=Sources([[0.0, 0, 0]], [1.0])), "none may be 0"),
        (lambda: Crystal((1, 1, 1, 90, 90, 180)), "has no volume"),
        (lambda: Crystal((1, 1, 1, 30, 30, 60)), "has no volume"),
        (lambda: Crystal(CUBIC, table=(np.full((4, 4, 4), np.nan), (0, 0, 0))), "not finite"),
        (lambda: tabulate([[0, 0, 0], [0, 0, 2]], [1.0, 2.0]), "1 of the 3 reflections .* missing"),
        (lambda: tabulate([[0, 0, 0]] * 2, [1.0, 2.0]), "occur again"),
        (lambda: tabulate([[0, 0, 0]], [np.nan]), "not finite"),
    ],
)
def test_an_experiment_that_cannot_be_is_told_the_cure(change, reason):
    with pytest.raises(DataError, match=reason):
        change()


def test_arrays_of_two_frameworks_are_refused(load_framework):
    torch, jnp = load_framework("torch"), load_framework("jax")
    crystal, detector, _ = PLAIN
    cell = torch.asarray(SMALL)
    with pytest.raises(FrameworkError, match=r"image: .*two frameworks: jax and torch"):
        image(replace(crystal, cell=cell), detector, Beam(jnp.asarray(1.1)))


def test_arrays_on_two_devices_are_refused(load_framework):
    strict = load_framework("array_api_strict")
    crystal, detector, _ = PLAIN
    cell = strict.asarray(SMALL, device=strict.Device("device1"))
    with pytest.raises(FrameworkError, match=r"two devices: .*'device1'.* and .*'CPU_DEVICE'"):
        image(replace(crystal, cell=cell), detector, Beam(strict.asarray(1.1)))
    region = strict.asarray(SCATTERED, device=strict.Device("device1"))
    photons = image(replace(crystal, cell=cell), detector, Beam(1.1), rows=5, region=region)
    assert photons.device == strict.Device("device1")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"on": "excel"}, "on='excel' is no framework"),
        ({"device": "gpu:7"}, "device='gpu:7' is no device of numpy"),
        ({"dtype": "float16"}, "dtype='float16'.*Give 'float32' or 'float64'"),
        ({"compile": True}, "compile=True needs torch or JAX"),
    ],
)
def test_a_framework_that_cannot_is_named(options, reason):
    with pytest.raises(FrameworkError, match=reason):
        image(*PLAIN, **options)


def test_a_gradient_of_numpy_is_refused():
    with pytest.raises(FrameworkError, match="gradient=True needs torch or JAX; numpy"):
        estimate(*PLAIN, on="numpy", gradient=True)
