"""Forecasts against what the operating system measures, in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

RISE = """
import ctypes, gc, pathlib

def status(name):
    for entry in pathlib.Path("/proc/self/status").read_text().splitlines():
        if entry.startswith(name + ":"):
            return int(entry.split()[1]) * 1024

def rise(call):
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    result = call()
    return status("VmHWM") - before
"""


MEASURE = """
import json, os, sys
from dataclasses import replace
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np, stowplan as sp
framework, gradient, several = sys.argv[1], sys.argv[2] == "gradient", sys.argv[3] == "several"
views, host = "views" in sys.argv, "host" in sys.argv
if framework == "jax":
    import jax
    jax.config.update("jax_enable_x64", True)
if framework == "torch":
    import torch
    torch.set_num_threads(1)

@sp.kernel("(n,2)->(n)", ragged="n")
def line(x):
    return 2 * x[..., 0] + x[..., 1]

def columns(count):
    sizes = np.full(count, 1000)
    sizes[1::2] -= 0 if views else 7
    values = np.random.default_rng(1).normal(size=(int(sizes.sum()), 2))
    if framework == "torch" and not host:
        values = torch.from_numpy(values)
    if framework == "jax" and not host:
        values = jax.device_put(values)
    return {"x": sp.Ragged(values, sizes)}

def perform(data, plan):
    if not gradient:
        found = sp.run(line, data, plan, on=framework)
        return jax.block_until_ready(found.values) if framework == "jax" else found
    def loss(values):
        given = {"x": sp.Ragged.from_layout(values, data["x"].layout)}
        found = sp.run(line, given, plan).values
        return (found * found).sum(), found
    if framework == "jax":
        return jax.block_until_ready(jax.grad(loss, has_aux=True)(data["x"].values))
    free = data["x"].values.requires_grad_()
    total, found = loss(free)
    return torch.autograd.grad(total, [free]), found

data = columns(8000)
rows = 3000 if several else 8000
options = dict(slots=1, rows=rows, on=framework, gradient=["x"] if gradient else False)
peak = sp.plan(line, data, budget="99 GB", **options).memory.peak_bytes
plan = sp.plan(line, data, budget=int(peak * 1.2), **options)
perform(columns(4), None)
if framework == "jax":
    perform(data, replace(plan))
if framework == "jax":
    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))  # lets go of what it was given before
taken = rise(lambda: perform(data, plan))
print(json.dumps([plan.memory.peak_bytes, taken, plan.memory.in_flight]))
"""


MEASURE_READING = """
import json, os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np, stowplan as sp
framework, path = sys.argv[1:]
if framework == "jax":
    import jax
    jax.config.update("jax_enable_x64", True)

@sp.kernel("(n)->()", ragged="n")
def total(x):
    return x.sum(-1)

length = 999_999  # so that batches end where no alignment asks for it
values = np.lib.format.open_memmap(path, "w+", np.float64, (24, length))
values[:] = 1.0
values.flush()
plan = sp.plan(total, [path], on=framework, budget="600 MB", slots=1, rows=8)
sp.run(total, [path], plan, on=framework)
if framework == "jax":
    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))  # lets go of what it was given before
found = []
taken = rise(lambda: found.append(sp.run(total, [path], plan, on=framework)))
assert (np.asarray(found[0]) == length).all()
print(json.dumps([plan.memory.peak_bytes, taken]))
"""


MEASURE_ROUNDS = """
import json, os, sys
from dataclasses import replace
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np, stowplan as sp
framework = sys.argv[1]
if framework == "jax":
    import jax
    jax.config.update("jax_enable_x64", True)
if framework == "torch":
    import torch
    torch.set_num_threads(1)

@sp.kernel("(n),()->(n)", ragged="n")
def halved(x, steps, *, age, state):
    return {"y": 0.5 * state["y"] + x, "steps": state["steps"] - 1}

rounds = dict(
    init=lambda x, steps: {"y": 0.0 * x, "steps": steps},
    until=lambda state: (state["steps"] < 1, state["steps"] > 99),
    every=2, keep="y",
)

def columns(count):
    sizes = np.full(count, 1000)
    sizes[1::2] -= 7
    x = np.random.default_rng(1).normal(size=int(sizes.sum()))
    return {"x": sp.Ragged(x, sizes), "steps": np.where(np.arange(count) % 500 == 7, 8.0, 4.0)}

def perform(data, plan, **options):
    return sp.iterate(halved, data, plan, **rounds, limit=40, on=framework, **options)

data = columns(9000)
options = dict(slots=1, rows=3000, on=framework, rounds=sp.Rounds(**rounds))
peak = sp.plan(halved, data, budget="99 GB", **options).memory.peak_bytes
plan = sp.plan(halved, data, budget=int(peak * 1.3), **options)
perform(columns(4), None)
if framework == "jax":
    perform(data, replace(plan))
    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))  # lets go of what it was given before
taken = rise(lambda: perform(data, plan))
print(json.dumps([plan.memory.peak_bytes, taken]))
"""


def measured(script: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", RISE + script, *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are read from /proc")
@pytest.mark.parametrize("batches", ["one", "several"])
@pytest.mark.parametrize(
    ("framework", "kind"),
    [
        ("numpy", "forward"),
        ("torch", "forward"),
        ("torch", "gradient"),
        ("jax", "forward"),
        ("jax", "gradient"),
    ],
)
def test_a_run_takes_what_its_plan_says(framework, kind, batches):
    pytest.importorskip(framework)
    if (framework, kind, batches) == ("torch", "gradient", "one"):
        pytest.skip("plain code of torch, which keeps the batch")
    predicted, taken, in_flight = measured(MEASURE, framework, kind, batches)
    assert predicted / taken == pytest.approx(1, abs=0.05)
    assert not in_flight  # such batches follow one another


@pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are read from /proc")
@pytest.mark.parametrize(
    ("framework", "batches", "how"),
    [
        ("numpy", "one", ["views"]),
        ("torch", "one", ["views"]),
        ("torch", "several", ["views"]),
        ("torch", "several", ["views", "host"]),
        ("torch", "several", ["host"]),
        ("jax", "one", ["host"]),
    ],
)
def test_views_and_arrays_that_a_framework_shares_count_once(framework, batches, how):
    """Rows that fill their capacity are views; NumPy arrays are taken as they are."""
    pytest.importorskip(framework)
    predicted, taken, _ = measured(MEASURE, framework, "forward", batches, *how)
    assert predicted / taken == pytest.approx(1, abs=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are read from /proc")
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_an_iteration_takes_what_its_plan_says(framework):
    """Nearly all rows leave together and not end to end, so that all index arrays are made."""
    pytest.importorskip(framework)
    predicted, taken = measured(MEASURE_ROUNDS, framework)
    assert predicted / taken == pytest.approx(1, abs=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are read from /proc")
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_what_is_read_ahead_counts_once(framework, tmp_path):
    """Buffers begin where XLA computes on them as they are, as the others do anywhere."""
    pytest.importorskip(framework)
    predicted, taken = measured(MEASURE_READING, framework, str(tmp_path / "values.npy"))
    assert predicted / taken == pytest.approx(1, abs=0.05)
