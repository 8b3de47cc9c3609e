"""Laws of the JAX adapter: what compiles, what is differentiable, what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp

jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402  # after the skip

from stowplan.adapters.jax import adapter  # noqa: E402  # after the skip
from stowplan.adapters.jax_programs import compiler_options  # noqa: E402  # after the skip

compiler_options()  # compiles once per process

SIZES = [3, 0, 5, 1, 4]
X64_OFF = jax.enable_x64(False) if hasattr(jax, "enable_x64") else jax.experimental.disable_x64()


def make_kernel():
    """A fresh kernel, so that nothing is cached; its gradients are known."""

    @sp.kernel("(n,2),(n)->(),(n)", ragged="n", static="power")
    def energy(x, charge, *, scale, power=2):
        xp = array_namespace(x)
        each = charge * xp.sum(x**power, axis=-1)
        return scale * xp.sum(each, axis=-1), scale * each

    return energy


def make_data(sizes, seed=0):
    rng = np.random.default_rng(seed)
    count = sum(sizes)
    return {
        "x": sp.Ragged(jax.device_put(rng.normal(size=(count, 2))), sizes),
        "charge": sp.Ragged(jax.device_put(rng.normal(size=count)), sizes),
    }


COMPILES = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **tags: COMPILES.append(tags) if "backend_compile" in event else None
)


def traced(call):
    """Traces of kernels, which are all that XLA compiled."""
    before, compiled = adapter.traces.total(), len(COMPILES)
    call()
    traces = adapter.traces.total() - before
    assert len(COMPILES) - compiled == traces
    return traces


@pytest.mark.parametrize("on_host", [True, False])
def test_another_set_in_the_same_slots_compiles_nothing(on_host):
    kernel = make_kernel()

    def run(sizes, slots):
        data = make_data(sizes)
        if on_host:
            data = {name: column.map_values(np.asarray) for name, column in data.items()}
        plan = sp.plan(kernel, data, on="jax", slots=slots)
        sp.run(kernel, data, plan, on="jax", scale=1.0)
        return plan

    plans = []
    slots = [{"n": 5, "rows": 4}, {"n": 9, "rows": 2}]
    assert traced(lambda: plans.append(run([3, 0, 5, 1, 4, 8, 9], slots))) == 2
    assert traced(lambda: run([1, 1, 6, 2, 2, 5, 5, 5, 5, 0, 9, 9, 7], plans[0].slots)) == 0


def test_a_new_value_of_a_shared_number_compiles_nothing_but_a_static_one_does():
    kernel, data = make_kernel(), make_data(SIZES)
    plan = sp.plan(kernel, data, slots=2)
    values = [
        1,
        2.0,
        np.float64(3),
        np.float32(4),
        np.asarray(5.0),
        jnp.asarray(6.0),
        jnp.float32(7),
    ]
    assert traced(lambda: sp.run(kernel, data, plan, scale=0.5)) == len(plan.slots)
    results = []
    for value in values:
        assert (
            traced(lambda value=value: results.append(sp.run(kernel, data, plan, scale=value)[0]))
            == 0
        )
    for result, value in zip(results, values, strict=True):
        np.testing.assert_allclose(result, results[0] * float(value), rtol=1e-14)
    assert traced(lambda: sp.run(kernel, data, plan, scale=0.5, power=3)) == len(plan.slots)
    assert traced(lambda: sp.run(kernel, data, plan, scale=0.7, power=3)) == 0


def slow(data, scale, sizes=SIZES):
    x, charge = np.asarray(data["x"].values), np.asarray(data["charge"].values)
    each = charge * (x**2).sum(1) * scale
    return np.array([part.sum() for part in np.split(each, np.cumsum(sizes)[:-1])]), each


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_with_respect_to_items_and_shared_numbers(compiled):
    kernel, data = make_kernel(), make_data(SIZES)
    plan = sp.plan(kernel, data, slots=2, rows=2)
    weights = jnp.arange(1.0, len(SIZES) + 1)

    def loss(values, scale):
        columns = {**data, "x": sp.Ragged(values, SIZES)}
        return (weights * sp.run(kernel, columns, plan, scale=scale)[0]).sum()

    wrap = jax.jit if compiled else lambda function: function
    by_x, by_scale = wrap(jax.grad(loss, argnums=(0, 1)))(data["x"].values, 1.5)
    x, charge = np.asarray(data["x"].values), np.asarray(data["charge"].values)
    each = np.repeat(np.asarray(weights), SIZES)
    np.testing.assert_allclose(by_x, 2 * 1.5 * (each * charge)[:, None] * x, rtol=1e-12)
    np.testing.assert_allclose(by_scale, (each * charge * (x**2).sum(1)).sum(), rtol=1e-12)
    only_scale = wrap(jax.grad(lambda scale: loss(data["x"].values, scale)))(1.5)
    np.testing.assert_allclose(only_scale, by_scale, rtol=1e-12)


def test_gradients_reach_the_shared_items_of_a_view():
    kernel, data = make_kernel(), make_data(SIZES)
    chosen = [2, 2, 0]

    def loss(values):
        pool = sp.Ragged(values, SIZES)
        return sp.run(kernel, {"x": pool[chosen], "charge": data["charge"][chosen]}, scale=1.0)[
            0
        ].sum()

    found = jax.grad(loss)(data["x"].values)
    uses = np.repeat([1, 0, 2, 0, 0], SIZES)
    x, charge = np.asarray(data["x"].values), np.asarray(data["charge"].values)
    np.testing.assert_allclose(found, 2 * (uses * charge)[:, None] * x, rtol=1e-12)


def test_jit_and_vmap_of_run_equal_the_loop():
    kernel, data = make_kernel(), make_data(SIZES)
    plan = sp.plan(kernel, data, slots=2)
    energies, each = slow(data, 1.0)
    jitted = jax.jit(lambda columns, scale: sp.run(kernel, columns, plan, scale=scale))
    total, parts = jitted(data, 2.0)  # a Ragged is a pytree
    np.testing.assert_allclose(total, 2 * energies, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(parts.values, 2 * each, rtol=1e-12)
    assert parts.shapes[:, 0].tolist() == SIZES
    scales = jnp.asarray([1.0, 3.0])
    many = jax.vmap(lambda scale: sp.run(kernel, data, plan, scale=scale)[0])(scales)
    np.testing.assert_allclose(many, [energies, 3 * energies], rtol=1e-12, atol=1e-14)
    values = jnp.stack([data["x"].values, 2 * data["x"].values])
    moved = jax.vmap(
        lambda x: sp.run(kernel, {**data, "x": sp.Ragged(x, SIZES)}, plan, scale=1.0)[0]
    )(values)
    np.testing.assert_allclose(moved, [energies, 4 * energies], rtol=1e-12, atol=1e-14)


def test_a_plan_used_under_jit_is_not_spoilt_by_it():
    kernel, data = make_kernel(), make_data(SIZES)
    plan = sp.plan(kernel, data, slots=2)
    for _ in range(2):
        jax.jit(lambda columns: sp.run(kernel, columns, plan, scale=1.0)[0])(data)
        np.testing.assert_allclose(
            sp.run(kernel, data, plan, scale=1.0)[0], slow(data, 1.0)[0], atol=1e-13
        )
        jax.jit(lambda columns: sp.run(kernel, columns, plan, scale=2.0)[0])(data)


@pytest.mark.parametrize("options", [{}, {"rows": 1}, {"rows": 2}, {"budget": "40 MB"}])
@pytest.mark.parametrize("where", ["numpy", "jax"])
def test_data_that_are_constants_of_a_users_program_are_computed_as_without_it(where, options):
    @sp.kernel("(n)->(n)", ragged="n")
    def squares(x, *, scale):
        return scale * x * x

    values = np.arange(10.0)
    constant = jnp.asarray(values)
    data = {"x": sp.Ragged(values if where == "numpy" else constant, [1, 2, 3, 4])}

    def scaled(factor):
        return factor * sp.run(squares, data, on="jax", scale=3.0, **options).values

    def slope(factor):
        def summed(x):
            column = {"x": sp.Ragged(x, [1, 2, 3, 4])}
            return sp.run(squares, column, scale=3.0, **options).values.sum()

        return factor * jax.grad(summed)(constant)

    np.testing.assert_allclose(jax.jit(scaled)(2.0), 6 * values**2)
    np.testing.assert_allclose(jax.jit(slope)(2.0), 12 * values)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda f: scaled(f).sum()))(2.0), 3 * 285)


def test_no_items_under_a_trace():
    kernel, data = make_kernel(), make_data([])
    found = jax.jit(lambda columns: sp.run(kernel, columns, scale=1.0))(data)
    assert found[0].shape == (0,)
    by_x = jax.grad(lambda x: sp.run(kernel, {**data, "x": sp.Ragged(x, [])}, scale=1.0)[0].sum())
    assert by_x(data["x"].values).shape == (0, 2)


def test_progress_under_a_trace_is_refused():
    kernel, data = make_kernel(), make_data(SIZES)
    plan = sp.plan(kernel, data)
    with pytest.raises(sp.FrameworkError, match="progress"):
        jax.jit(lambda columns: sp.run(kernel, columns, plan, progress=True, scale=1.0))(data)
    slope = jax.grad(lambda s: sp.run(kernel, data, plan, progress=True, scale=s)[0].sum())(1.0)
    assert float(slope) != 0  # a gradient alone leaves the values there


def test_traced_data_cannot_leave_jax():
    kernel, data = make_kernel(), make_data(SIZES)
    with pytest.raises(sp.FrameworkError, match="gradient"):
        jax.jit(lambda columns: sp.run(kernel, columns, on="numpy", scale=1.0))(data)


def test_float64_without_x64_is_an_error_with_the_cure():
    kernel, data = make_kernel(), make_data(SIZES)
    host = {name: column.map_values(np.asarray) for name, column in data.items()}
    with X64_OFF, pytest.raises(sp.FrameworkError, match="jax_enable_x64"):
        sp.run(kernel, host, on="jax", scale=1.0)


def test_float32_and_int64_indices_are_fine_without_x64():
    code = """
import numpy as np, stowplan as sp
from array_api_compat import array_namespace
@sp.kernel("(n),(n)->()", ragged="n", fill={"index": -1})
def pick(x, index):
    xp = array_namespace(x)
    safe = xp.where(index < 0, xp.zeros_like(index), index)
    found = xp.take_along_axis(x, safe, axis=-1)
    return xp.sum(xp.where(index < 0, xp.zeros_like(found), found), axis=-1)
x = sp.Ragged(np.array([1, 2, 4, 8, 16], np.float32), [2, 3])
index = sp.Ragged(np.array([1, 1, 0, -1, 2]), [2, 3])
assert index.dtype == np.int64
found = sp.run(pick, {"x": x, "index": index}, on="jax")
assert found.dtype == np.float32 and found.tolist() == [4.0, 20.0], found
import jax.numpy as jnp
moved = sp.run(pick, {"x": x.map_values(jnp.asarray), "index": index.map_values(jnp.asarray)})
assert moved.tolist() == [4.0, 20.0]
total = sp.run(pick, {"x": x[[1, 0, 1]], "index": index[[1, 0, 1]]}, on="jax")
assert total.tolist() == [20.0, 4.0, 20.0]
def refused(data, text):
    try:
        sp.run(pick, data, on="jax")
    except sp.FrameworkError as error:
        assert text in str(error), error
    else:
        raise AssertionError(text)
refused({"x": x, "index": index.map_values(lambda v: v + 2**40)}, "needs 64 bits")
refused({"x": x.map_values(np.float64), "index": index}, "jax_enable_x64")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_computing_happens_on_the_device_asked_for():
    code = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, numpy as np, stowplan as sp
jax.config.update("jax_enable_x64", True)
first, second = jax.devices()
seen = []
@sp.kernel("(n)->()", ragged="n")
def total(x):
    jax.debug.callback(lambda: None)
    return x.sum(axis=-1)
from stowplan.adapters.jax import adapter
collect = adapter.collect
adapter.collect = lambda output, like: (seen.append(output.devices()), collect(output, like))[1]
data = {"x": sp.Ragged(np.arange(5.0), [2, 3])}
for device in (second, 1, str(second)):
    result = sp.run(total, data, on="jax", device=device)
    assert type(result) is np.ndarray and result.tolist() == [1.0, 9.0]
there = {"x": data["x"].map_values(lambda v: jax.device_put(v, second))}
result = sp.run(total, there)
assert result.devices() == {second}, result.devices()
assert result.tolist() == [1.0, 9.0]
assert all(devices == {second} for devices in seen), seen
here = {"x": data["x"].map_values(lambda v: jax.device_put(v, first))}
assert sp.run(total, here, device=second).devices() == {first}
assert seen[-1] == {second}
try:
    sp.run(total, data, on="jax", device=2)
except sp.FrameworkError as error:
    assert "device=2" in str(error)
else:
    raise AssertionError
product = sp.kernel("(n),(n)->()", ragged="n")(lambda x, y: (x * y).sum(-1))
try:
    sp.run(product, {"x": there["x"], "y": here["x"]})
except sp.FrameworkError as error:
    assert "two devices" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_random_keys_may_be_a_column():
    @sp.kernel("(2)->()")
    def draw(key):
        return jax.random.normal(key)

    keys = jax.random.split(jax.random.PRNGKey(0), 5)
    expected = [float(jax.random.normal(key)) for key in keys]
    np.testing.assert_allclose(
        sp.run(sp.kernel("(2)->()", per_item=True)(draw.function), [keys]), expected
    )


def test_an_empty_set_with_the_slots_of_another_compiles_nothing():
    energy = make_kernel()
    data = make_data(SIZES)
    plan = sp.plan(energy, data, slots=2)
    sp.run(energy, data, plan, scale=1.0)
    before = adapter.traces["energy"]
    empty = make_data([])
    found, each = sp.run(energy, empty, sp.plan(energy, empty, slots=plan.slots), scale=1.0)
    assert adapter.traces["energy"] == before
    assert (found.shape, len(each), each.values.shape) == ((0,), 0, (0,))


def test_a_smaller_set_with_a_larger_item_compiles_nothing_where_there_is_headroom():
    kernel = make_kernel()
    rng = np.random.default_rng(3)
    first, second = rng.integers(1, 40, 100).tolist(), rng.integers(1, 40, 96).tolist() + [45]
    data = make_data(first)
    plan = sp.plan(kernel, data, slots=3, headroom=1.25)
    assert traced(lambda: sp.run(kernel, data, plan, scale=1.0)) == 4
    assert traced(lambda: sp.run(kernel, data, plan, scale=1.0)) == 0

    other = make_data(second, seed=1)
    found = []

    def run_again():
        again = sp.plan(kernel, other, slots=plan.slots)
        found.append(sp.run(kernel, other, again, scale=1.0)[0])

    assert traced(run_again) == 0
    x, charge = (column.map_values(np.asarray) for column in other.values())
    slow = [(q[:, None] * each**2).sum() for each, q in zip(x, charge, strict=True)]
    np.testing.assert_allclose(found[0], slow, rtol=1e-12)


def test_headroom_under_a_trace_adds_nothing():
    kernel = make_kernel()
    data = make_data(SIZES)
    plan = sp.plan(kernel, data, slots=1, headroom=2)
    before = adapter.traces.total()
    jax.jit(lambda data: sp.run(kernel, data, plan, scale=1.0))(data)
    assert adapter.traces.total() - before == 1


def test_headroom_is_computed_once_and_free_from_then_on(capsys):
    kernel = make_kernel()
    data = make_data(SIZES)
    plan = sp.plan(kernel, data, slots=1, headroom=2)
    shown = []
    for _ in range(2):
        sp.run(kernel, data, plan, scale=1.0, progress=True)
        shown.append(capsys.readouterr().err)
    assert "2/2" in shown[0]
    assert "1/1" in shown[1]


@pytest.mark.parametrize(
    ("text", "is_memory"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 20 bytes", True),
        # a run limited by RLIMIT_AS: the library prints "allocate of <6> failed." besides
        ("INTERNAL: YNNPACK operation failed: error", True),
        ("INVALID_ARGUMENT: Executable expected shape f32[2]", False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(text, is_memory):
    error = jax.errors.JaxRuntimeError(text)
    assert adapter.is_out_of_memory(error) == is_memory
