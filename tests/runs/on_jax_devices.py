"""Run by test_devices.py in a process of its own, which has as many devices as it starts with."""

from __future__ import annotations

import sys
import threading

import numpy as np

import stowplan as sp

COUNT = int(sys.argv[1])
assert "jax" not in sys.modules
found = sp.devices(COUNT, on="jax")
assert len(found) == COUNT

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

assert found == jax.devices()


@sp.kernel("(n),(n,m),()->(n),()", ragged=("n", "m"))
def mixed(x, y, weight, *, mask, scale):
    inside = mask["n"][..., :, None] & mask["m"][..., None, :]
    rows = jnp.where(inside, y, 0.0).sum(axis=-1)
    return x * rows * weight[..., None], scale["by"] * (x * rows).sum(axis=-1)


@sp.kernel("(n)->(n)", ragged="n", fill={"x": 1.0})
def halved(x, *, age, state):
    return {"x": state["x"] / 2}


def small(state, mask):
    return (abs(state["x"]) * mask["n"] < 1e-2).all(axis=-1), (state["x"] > 1e3).any(axis=-1)


def assert_close(one, other):
    for a, b in zip(one, other, strict=True):
        a, b = (part.values if isinstance(part, sp.Ragged) else part for part in (a, b))
        assert a.devices() == b.devices() == {jax.devices()[0]}
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


rng = np.random.default_rng(0)
shapes = np.stack([rng.integers(0, 12, 37), rng.integers(1, 5, 37)], axis=1)
data = {
    "x": sp.Ragged(jnp.asarray(rng.normal(size=shapes[:, 0].sum()).astype("f4")), shapes[:, 0]),
    "y": sp.Ragged(jnp.asarray(rng.normal(size=shapes.prod(1).sum()).astype("f4")), shapes),
    "weight": jnp.asarray(rng.normal(size=37).astype("f4")),
}
scale = {"by": jnp.asarray(2.0)}
plan = sp.plan(mixed, data, slots=2, rows=3, scale=scale)
whole = sp.run(mixed, data, plan, scale=scale)
by_work = sp.share_devices(plan, COUNT)
assert_close(sp.run(mixed, data, by_work, devices=COUNT, scale=scale), whole)
assert_close(sp.run(mixed, data, by_work, devices=found, scale=scale), whole)

traced = len(sp.devices(on="jax")) and sp.adapters.get_adapter("jax").traces
before = traced["mixed"]
by_rows = sp.share_devices(plan, COUNT, by="rows")
assert_close(sp.run(mixed, data, by_rows, devices="all", scale=scale), whole)
programs = traced["mixed"] - before
assert programs <= len(by_rows.shapes), (programs, by_rows.shapes)  # one for all devices
assert_close(sp.run(mixed, data, by_rows, devices="all", scale=scale), whole)
assert traced["mixed"] - before == programs

host = {
    name: np.asarray(one) if name == "weight" else one.map_values(np.asarray)
    for name, one in data.items()
}
from_host = sp.run(mixed, host, by_work, on="jax", devices=COUNT, scale={"by": np.float32(2.0)})
assert isinstance(from_host[1], np.ndarray)
np.testing.assert_allclose(from_host[1], whole[1], rtol=1e-6, atol=1e-6)

iterated = {"init": lambda x: {"x": x * 1}, "until": small, "every": 2, "limit": 12, "keep": "x"}
x = {"x": data["x"].map_values(lambda x: 20 * x)}
one = sp.iterate(halved, x, **iterated)
many = sp.iterate(halved, x, devices=COUNT, **iterated)
assert_close([many.values["x"]], [one.values["x"]])
np.testing.assert_array_equal(many.iterations, one.iterations)
assert len(many.plan.devices) == COUNT

with_room = sp.plan(mixed, data, slots=2, headroom=1.5, devices=COUNT, scale=scale)
assert_close(sp.run(mixed, data, with_room, scale=scale), whole)


@sp.kernel("(n)->()", ragged="n", per_item=True)
def looped(x):
    """A loop that begins with a constant, the same on all devices."""
    return jax.lax.fori_loop(0, 3, lambda step, total: total + x.sum() * step, 0.0)


own = {"x": data["x"]}
rows = sp.share_devices(sp.plan(looped, own, slots=1, rows=5), COUNT, by="rows")
assert_close(
    [sp.run(looped, own, rows, devices=COUNT)], [sp.run(looped, own, sp.plan(looped, own, slots=1))]
)

wide = {"x": sp.Ragged(np.ones(9), [4, 5])}  # float64, where x64 is on for this thread alone


@sp.kernel("(n)->()", ragged="n")
def total(x):
    return x.sum(axis=-1)


context = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
with context(True):
    assert sp.run(total, wide, on="jax", devices=COUNT).dtype == np.float64
assert threading.active_count() < 40
print(COUNT, "devices agree")
