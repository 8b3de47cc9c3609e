"""Peaks found with small probes are those of large batches; nothing else is called a peak."""

from __future__ import annotations

import functools
import gc
import importlib.util
import logging
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp
from stowplan.adapters import get_adapter
from stowplan.runs import probes
from stowplan.runs.calibration import calibrate
from stowplan.runs.columns import bind
from stowplan.runs.jobs import Job
from stowplan.runs.places import find_places
from stowplan.runs.shared import check_shared

ATOMS = 24


@sp.kernel("(atoms)->(atoms)", ragged="atoms")
def line(x):
    """Elementwise: x, 2 x and 2 x + 1 are alive at once."""
    return 2 * x + 1


@sp.kernel("(atoms,3),(atoms)->(atoms)", ragged="atoms")
def gram(positions, charges, *, smearing):
    """A product that is larger than what goes in."""
    xp = array_namespace(positions)
    each = xp.matmul(positions, xp.matrix_transpose(positions))  # (..., atoms, atoms)
    return xp.sum(xp.exp(-smearing * each) * charges[..., None, :], axis=-1)


@sp.kernel("(atoms,3)->(),(3)", ragged="atoms")
def spread(positions, *, mask):
    """Reductions under a mask."""
    xp = array_namespace(positions)
    inside = xp.astype(mask["atoms"], positions.dtype)[..., None]
    count = xp.sum(inside, axis=(-2, -1))
    centre = xp.sum(positions * inside, axis=-2) / count[..., None]
    away = (positions - centre[..., None, :]) * inside
    return xp.sum(away**2, axis=(-2, -1)) / count, centre


def make(kernel, count, dtype=np.float64):
    rng = np.random.default_rng(count)
    sizes = np.full(count, ATOMS)
    sizes[1::2] = ATOMS - 7
    values = {
        "x": rng.normal(size=sizes.sum()),
        "charges": rng.normal(size=sizes.sum()),
        "positions": rng.normal(size=(sizes.sum(), 3)),
    }
    return {name: sp.Ragged(values[name].astype(dtype), sizes) for name in kernel.arguments}


KERNELS = {"line": line, "gram": gram, "spread": spread}
SHARED = {"gram": {"smearing": 0.1}}


@pytest.fixture(params=list(KERNELS))
def case(request):
    """A kernel and its shared parameters."""
    return KERNELS[request.param], SHARED.get(request.param, {})


@pytest.fixture(autouse=True)
def forget():
    probes._known.clear()


def template(kernel, shared, framework):
    """What `peak_bytes` takes: arguments of one row, and an adapter."""
    columns = bind("test", kernel, make(kernel, 2))
    source, target = find_places("test", columns.arrays, None, None)
    plan = sp.plan(kernel, make(kernel, 2), slots=[{"atoms": ATOMS}], rows=1)
    job = Job("test", kernel, columns, plan, source, target)
    statics, traced = check_shared("test", kernel, shared)
    arguments, keywords = job.gather(0)
    adapter = get_adapter(framework)
    device = adapter.devices()[0]

    def put(value):
        if isinstance(value, dict):
            return {name: put(part) for name, part in value.items()}
        return adapter.asarray(np.asarray(value), device)

    given = {name: job.shared(value) for name, value in traced.items()}
    inputs = [put(x) for x in arguments], put(keywords), put(given)
    wanted = (tuple(True for _ in arguments), dict.fromkeys(given, True))
    return adapter, statics, inputs, device, wanted


def test_numpy_a_batch_50_times_as_large_takes_what_was_predicted(case):
    kernel, shared = case
    (model,) = calibrate(kernel, make(kernel, 4), **shared)
    probed = -(-(2**20) // (ATOMS * 8 * (1 if kernel is line else 3)))
    rows = 50 * probed if kernel is not gram else 10 * probed
    data = make(kernel, rows)
    columns = bind("test", kernel, data)
    source, target = find_places("test", columns.arrays, None, None)
    plan = sp.plan(kernel, data, slots=1, rows=rows)
    job = Job("test", kernel, columns, plan, source, target)
    compute = job.computation({}, shared)
    job.gather(0)  # index arrays are made once for a plan
    gc.collect()
    tracemalloc.start()
    output = compute(0)
    _, measured = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del output
    assert model.peak(rows) == pytest.approx(measured, rel=0.01)
    assert "off a line" not in model.source


def test_numpy_peaks_known_by_hand():
    """x and 2 x + 1, which reuses 2 x from 256 KiB on; and twice x while it is gathered."""
    (model,) = calibrate(line, make(line, 4))
    assert model.bytes_per_row == pytest.approx(2 * ATOMS * 8, rel=1e-3)
    assert model.fixed_bytes == pytest.approx(2**18, rel=0.02)  # 2 x of a batch just below that
    assert model.source == f"real line at atoms={ATOMS}, numpy"


def test_masks_count_on_every_framework_that_computes_at_once(framework, put):
    """x, its mask, zeros, and what is chosen of them."""
    if framework == "jax":
        pytest.skip("compiled: what is fused takes nothing")

    @sp.kernel("(atoms)->()", ragged="atoms")
    def kept(x, *, mask):
        xp = array_namespace(x)
        return xp.sum(xp.where(mask["atoms"], x, xp.zeros_like(x)), axis=-1)

    (model,) = calibrate(kept, put(make(line, 4)), sp.plan(kept, make(line, 4), slots=1))
    assert float(model.bytes_per_row) == pytest.approx((8 + 1 + 8 + 8) * ATOMS, rel=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_torch_peaks_known_by_hand(load_framework, dtype):
    load_framework("torch")
    width = np.dtype(dtype).itemsize
    (model,) = calibrate(line, make(line, 4, dtype), on="torch")
    assert (model.fixed_bytes, model.bytes_per_row) == (0, 3 * ATOMS * width)
    (model,) = calibrate(gram, make(gram, 4, dtype), on="torch", smearing=0.1)
    square, charges, positions = ATOMS**2 * width, ATOMS * width, 3 * ATOMS * width
    # positions, charges, the product, -smearing, its multiple and then the exponential
    assert model.bytes_per_row == positions + charges + 3 * square
    assert model.fixed_bytes == width  # smearing
    assert model.source == f"fake gram at atoms={ATOMS}, torch"


def test_torch_gradients_known_by_hand(load_framework):
    """x, 2 x and 2 x + 1 of the forward pass, the cotangent, and the gradient twice that."""
    load_framework("torch")
    (model,) = calibrate(line, make(line, 4), on="torch", gradient=True)
    assert (model.fixed_bytes, model.bytes_per_row) == (0, 4 * ATOMS * 8)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("rows", [1, 7])
def test_torch_counts_the_same_without_values_as_with(case, gradient, rows, load_framework):
    load_framework("torch")
    from stowplan.adapters.torch_memory import batch_peak

    kernel, shared = case
    adapter, statics, inputs, device, wanted = template(kernel, shared, "torch")
    wanted = wanted if gradient else None
    found = [
        batch_peak(
            adapter, kernel, statics, inputs, rows=rows, device=device, wanted=wanted, fake=fake
        )
        for fake in (True, False)
    ]
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("gradient", [False, True])
def test_torch_predicts_any_number_of_rows_exactly(case, gradient, load_framework):
    load_framework("torch")
    kernel, shared = case
    (model,) = calibrate(kernel, make(kernel, 4), on="torch", gradient=gradient, **shared)
    adapter, statics, inputs, device, wanted = template(kernel, shared, "torch")
    wanted = wanted if gradient else None
    rows = 12_345
    exact = adapter.peak_bytes(kernel, statics, *inputs, rows=rows, device=device, wanted=wanted)
    assert model.peak(rows) == exact


@pytest.mark.parametrize("gradient", [False, True])
def test_torch_needs_neither_memory_nor_the_device(case, gradient, load_framework):
    torch = load_framework("torch")
    kernel, shared = case
    here = calibrate(kernel, make(kernel, 4), on="torch", gradient=gradient, **shared)
    there = calibrate(
        kernel, make(kernel, 4), on="torch", device="cuda:3", rows=10**9, gradient=gradient,
        **shared,
    )  # fmt: skip
    assert [(m.fixed_bytes, m.bytes_per_row) for m in here] == [
        (m.fixed_bytes, m.bytes_per_row) for m in there
    ]
    assert not torch.cuda.is_initialized() or torch.cuda.is_available()


@pytest.mark.parametrize("gradient", [False, True])
def test_jax_says_what_the_compiler_says(case, gradient, load_framework):
    load_framework("jax")
    jax = importlib.import_module("jax")
    kernel, shared = case
    rows = 9
    (model,) = calibrate(kernel, make(kernel, 4), on="jax", rows=rows, gradient=gradient, **shared)

    def batched(arguments, keywords, shared):
        with jax.default_matmul_precision("highest"):
            return jax.vmap(lambda a, k: kernel.function(*a, **k, **shared))(arguments, keywords)

    def spec(*shape, dtype=np.float64):
        return jax.ShapeDtypeStruct(shape, dtype)

    shapes = {"x": (), "charges": (), "positions": (3,)}
    arguments = tuple(spec(rows, ATOMS, *shapes[name]) for name in kernel.arguments)
    keywords = {"mask": {"atoms": spec(rows, ATOMS, dtype=bool)}} if kernel.takes_mask else {}
    others = {name: spec() for name in shared}
    given = (arguments, keywords, others)
    function = batched
    if gradient:
        cotangents = jax.eval_shape(batched, *given)

        def function(arguments, keywords, others, cotangents):
            _, pull = jax.vjp(lambda a, o: batched(a, keywords, o), arguments, others)
            return pull(cotangents)

        given = (*given, cotangents)
    programs = importlib.import_module("stowplan.adapters.jax_programs")
    options = programs.compiler_options() if gradient else None
    jitted = jax.jit(function, compiler_options=options)
    compiled = jitted.lower(*given).compile()
    stats = compiled.memory_analysis()
    by_hand = stats.temp_size_in_bytes + stats.output_size_in_bytes + stats.argument_size_in_bytes
    by_hand += programs.library_bytes(compiled.as_text())
    gathered = rows * ATOMS * 8 * {"line": 2, "gram": 6, "spread": 6}[kernel.name]
    assert model.peak(rows) == max(by_hand, gathered)
    assert model.measured_rows == rows


def test_jax_computes_the_calibrated_shape_without_compiling_it_again(load_framework, caplog):
    load_framework("jax")
    jax = importlib.import_module("jax")

    @sp.kernel("(atoms)->(atoms)", ragged="atoms")
    def cubed(x, *, scale):
        return scale * x**3

    data = make(line, 6)
    plan = sp.plan(cubed, data, on="jax", slots=1, rows=3)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        (model,) = calibrate(cubed, data, plan, on="jax", scale=2.0)
        assert "compilation of jit(cubed)" in caplog.text
        caplog.clear()
        sp.run(cubed, data, plan, on="jax", scale=3.0)
        assert "compilation of jit(cubed)" not in caplog.text
        again = calibrate(cubed, data, plan, on="jax", rows=4, scale=2.0)
        assert "compilation of jit(cubed)" in caplog.text
    assert model.measured_rows == 3
    assert again[0].measured_rows == 4


def test_every_framework_gives_a_model_for_each_slot(framework, put, case):
    kernel, shared = case
    data = put(make(kernel, 6))
    plan = sp.plan(kernel, data, slots=[{"atoms": ATOMS - 7}, {"atoms": ATOMS}, {"atoms": 40}])
    small, large, unused = calibrate(kernel, data, plan, **shared)
    assert small.bytes_per_row < large.bytes_per_row < unused.bytes_per_row
    inputs = ATOMS * 8 * (1 if kernel is line else 3)
    assert inputs < large.bytes_per_row < 40 * ATOMS * inputs
    assert large.rows(large.peak(5)) == 5


def test_per_item_kernels_and_index_columns_are_probed(framework, put, kernels):
    data = put({"x": sp.Ragged(np.ones(12), [2, 10])})
    (model,) = calibrate(kernels.ramp, data, sp.plan(kernels.ramp, data, slots=1), scale=2.0)
    assert model.bytes_per_row >= 80
    table = np.array([[1, -1], [0, 1], [1, 0], [-1, -1]])
    data = put({"charges": sp.Ragged(np.ones(4), [2, 2]), "neighbours": sp.Ragged(table, [2, 2])})
    for model in calibrate(kernels.near, data):
        assert model.bytes_per_row > 48


def test_what_gathering_takes_is_the_least():
    @sp.kernel("(n)->()", ragged="n")
    def first(x):
        return x[..., 0] * 1

    (model,) = calibrate(first, {"x": [[1.0] * 100] * 3})
    assert model.bytes_per_row == 800 + 100  # x, and which of its places are padding
    assert model.peak(10) >= 9_000


def test_what_gathering_a_wide_column_takes_holds_for_one_that_is_half_padding():
    """The column once, and where its padding is: as NumPy takes it, and no more than counted."""

    @sp.kernel("(n,5)->()", ragged="n")
    def first(x):
        return x[..., 0, 0] * 1

    count, size = 200, 100
    sizes = np.array([size, 1] * (count // 2))
    data = {"x": sp.Ragged(np.ones((int(sizes.sum()), 5)), sizes)}
    (model,) = calibrate(first, data)
    assert model.bytes_per_row == size * (5 * 8 + 9)
    columns = bind("test", first, data)
    source, target = find_places("test", columns.arrays, None, None)
    plan = sp.plan(first, data, slots=1, rows=count)
    job = Job("test", first, columns, plan, source, target)
    job.gather(0)
    gc.collect()
    tracemalloc.start()
    job.gather(0)
    _, measured = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.85 * model.peak(count) < measured <= model.peak(count)


def test_a_probe_is_made_once(monkeypatch, framework, put):
    data = put(make(gram, 4))
    adapter = get_adapter(framework)
    calls = []
    probe = adapter.peak_bytes

    def counted(*given, **named):
        calls.append(named["rows"])
        return probe(*given, **named)

    monkeypatch.setattr(adapter, "peak_bytes", counted, raising=False)
    first = calibrate(gram, data, smearing=0.1)
    made = len(calls)
    assert made > 0
    assert calibrate(gram, data, smearing=0.3) == first
    assert len(calls) == made
    small = put(make(gram, 4, np.float32))
    calibrate(gram, small, smearing=0.3)
    assert len(calls) > made


def test_what_a_first_call_keeps_is_no_part_of_a_batch_and_a_second_is_made_for_that_alone():
    kept: dict[int, np.ndarray] = {}
    calls = []

    @sp.kernel("(n)->(n)", ragged="n", exact="n")
    def keeps(x):
        calls.append(x.shape)
        size = x.shape[-1]
        if size % 16 and size not in kept:
            kept[size] = np.ones(2**18)  # 2 MiB, like a library or a table
        return 2 * x

    def peak(size: int) -> int:
        calls.clear()
        (model,) = calibrate(keeps, [np.ones((1, size))], rows=1)
        return model.peak(1)

    even = peak(2**17)
    assert [rows for rows, _ in calls] == [1, 2, 3]
    assert abs(peak(2**17 - 8) - even) < 2**12
    assert [rows for rows, _ in calls] == [1, 1, 2, 3]


def test_a_small_table_that_took_much_to_make_is_no_part_of_a_batch():
    @functools.cache
    def nodes(count):
        return np.linalg.eigvalsh(np.eye(count))  # 8 bytes a node kept, 16 a pair taken

    @sp.kernel("(n)->()", ragged="n", exact="n")
    def weighted(x):
        return (x * nodes(x.shape[-1])).sum(axis=-1)

    for count in (400, 402):  # the first one imports
        (model,) = calibrate(weighted, [np.ones((1, count))], rows=1)
    assert model.peak(1) < 64 * 402


def test_results_that_are_empty_tell_their_width():
    @sp.kernel("(n),(n,m)->(m)")
    def copied(x, y):
        return y.sum(axis=-2) + x.sum(axis=-1)[..., None]

    sp.plan(copied, [np.ones((4, 3)), np.ones((4, 3, 0))], budget="12 MB")
    data = [np.ones((2000, 3)), np.broadcast_to(1.0, (2000, 3, 1000))]
    with pytest.raises(sp.BudgetError):  # results take 16 MB
        sp.plan(copied, data, budget="12 MB")


def test_static_parameters_capacities_and_gradients_have_peaks_of_their_own(load_framework):
    load_framework("torch")

    @sp.kernel("(atoms)->(atoms)", ragged="atoms", static=("count",))
    def powers(x, *, count):
        terms = [x * (power + 2) for power in range(count)]
        return sum(terms)

    data = make(line, 4)
    plans = [sp.plan(powers, data, slots=[{"atoms": size}]) for size in (ATOMS, 2 * ATOMS)]

    def each(plan, **options):
        (model,) = calibrate(powers, data, plan, on="torch", **options)
        return model.bytes_per_row / (ATOMS * 8)

    # x, the terms, 0 + the first and the second sum
    assert each(plans[0], count=3) == 6
    assert each(plans[0], count=5) == 8
    assert each(plans[1], count=3) == 12
    assert each(plans[0], count=3, gradient=True) > 6


@pytest.mark.parametrize("tracing", [False, True])
def test_a_probe_leaves_the_tracing_of_others_as_it_was(tracing):
    (before,) = calibrate(gram, make(gram, 4), smearing=0.1)
    probes._known.clear()
    if tracing:
        tracemalloc.start()
    held = np.ones(10**6)
    try:
        (model,) = calibrate(gram, make(gram, 4), smearing=0.1)
        assert tracemalloc.is_tracing() is tracing
    finally:
        tracemalloc.stop()
    assert float(model.bytes_per_row) == pytest.approx(float(before.bytes_per_row), rel=1e-3)
    assert model.fixed_bytes == pytest.approx(before.fixed_bytes, abs=20_000)
    del held


def test_a_kernel_that_needs_values_is_named_with_the_way_out(load_framework):
    load_framework("torch")
    torch = importlib.import_module("torch")
    outside = torch.ones(ATOMS, dtype=torch.float64)

    @sp.kernel("(atoms)->(atoms)", ragged="atoms")
    def reads(x):
        return x * x.max().item()

    @sp.kernel("(atoms)->(atoms)", ragged="atoms")
    def branches(x):
        return x if x.sum() > 0 else -x

    @sp.kernel("(atoms)->(atoms)", ragged="atoms")
    def chooses(x):
        return x[x > 0]

    @sp.kernel("(atoms)->(atoms)", ragged="atoms")
    def encloses(x):
        return x * outside

    for kernel, reason in [
        (reads, "reads a value"), (branches, "reads a value"),
        (chooses, "shape that depends on values"), (encloses, "none of its parameters"),
    ]:  # fmt: skip
        for gradient in (False, True):
            with pytest.raises(sp.PlanError, match=reason) as caught:
                calibrate(kernel, make(line, 4), on="torch", gradient=gradient)
            text = str(caught.value)
            assert text.startswith(f"calibrate: the peak of {kernel.name} cannot be counted")
            assert "peak=(fixed_bytes, bytes_per_row)" in text


def test_a_fault_of_the_kernel_is_not_hidden(framework, put):
    @sp.kernel("(atoms)->(atoms)", ragged="atoms")
    def broken(x):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        calibrate(broken, put(make(line, 4)))


def test_what_cannot_be_calibrated_is_refused(kernels):
    with pytest.raises(sp.PlanError, match=r"^calibrate: no item"):
        calibrate(kernels.moments, {"x": []})
    with pytest.raises(sp.PlanError, match=r"^calibrate: rows=0"):
        calibrate(line, make(line, 2), rows=0)
    with pytest.raises(sp.DataError, match=r"^calibrate: .*needs smearing"):
        calibrate(gram, make(gram, 2))
    with pytest.raises(sp.FrameworkError, match=r"gradient=True needs torch or JAX; numpy has no"):
        calibrate(line, make(line, 2), gradient=True)
    with pytest.raises(sp.FrameworkError, match=r"^calibrate: device='moon' is no device of numpy"):
        calibrate(line, make(line, 2), device="moon")
    with pytest.raises(sp.PlanError, match="calibrate"):
        calibrate(line, make(line, 2), sp.plan(line, make(line, 4)))


def allocate(framework):
    """Ask for more than any machine has."""
    if framework == "torch":
        torch = importlib.import_module("torch")
        torch.empty(2**60, dtype=torch.uint8)
    elif framework == "jax":
        jnp = importlib.import_module("jax.numpy")
        jnp.zeros((2**20, 2**20, 2**15), np.uint8).block_until_ready()
    else:
        importlib.import_module("cupy" if framework == "cupy" else "numpy").empty(2**60, np.uint8)


def test_an_error_for_want_of_memory_is_known(framework):
    adapter = get_adapter(framework)
    device = adapter.devices()[0]
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate(framework)
    assert adapter.is_out_of_memory(caught.value)
    for error in (ValueError("out of memory"), RuntimeError("no such kernel"), KeyError("memory")):
        assert not adapter.is_out_of_memory(error)
    assert adapter.is_out_of_memory(MemoryError())
    adapter.release()
    assert 2**20 < adapter.free_bytes(device) < 2**50


@pytest.fixture
def cupy_adapter(monkeypatch):
    """The adapter of CuPy beside a stand-in for CuPy."""
    stub = ModuleType("cupy")
    pool = SimpleNamespace(free_bytes=lambda: 24, free_all_blocks=lambda: None)

    class Device:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    class Hook:
        active = None

        def __enter__(self):
            Hook.active = self
            return self

        def __exit__(self, *_):
            Hook.active = None

    class OutOfMemoryError(MemoryError):
        pass

    stub.cuda = SimpleNamespace(
        MemoryHook=Hook, Device=Device, memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=SimpleNamespace(memGetInfo=lambda: (1000, 9000), getDeviceCount=lambda: 1),
    )  # fmt: skip
    stub.get_default_memory_pool = lambda: pool
    stub.get_default_pinned_memory_pool = lambda: pool
    monkeypatch.setitem(sys.modules, "cupy", stub)
    path = Path(probes.__file__).parents[1] / "adapters" / "cupy.py"
    spec = importlib.util.spec_from_file_location("stand_in_for_cupy_adapter", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.adapter, Hook


def test_cupy_counts_what_leaves_its_pool(cupy_adapter):
    adapter, hook = cupy_adapter

    def call():
        seen = hook.active
        seen.free_postprocess(device_id=0, mem_size=512, mem_ptr=9, pmem_id=99)  # older than it
        for place, size in enumerate([512, 1024]):
            seen.malloc_postprocess(
                device_id=0, size=1, mem_size=size, mem_ptr=1 + place, pmem_id=place
            )
        seen.free_postprocess(device_id=0, mem_size=1024, mem_ptr=2, pmem_id=1)
        seen.malloc_postprocess(device_id=0, size=1, mem_size=2048, mem_ptr=0, pmem_id=7)  # failed
        seen.malloc_postprocess(device_id=0, size=1, mem_size=512, mem_ptr=2, pmem_id=1)

    assert adapter.allocated_peak(call, adapter.devices()[0]) == 1536
    assert adapter.free_bytes(adapter.devices()[0]) == 1024
    adapter.release()
    assert adapter.is_out_of_memory(MemoryError())
    assert adapter.is_out_of_memory(RuntimeError("cudaErrorMemoryAllocation: out of memory"))
    assert not adapter.is_out_of_memory(RuntimeError("cudaErrorInvalidValue"))
