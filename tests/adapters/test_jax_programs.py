"""What XLA's library of fused sums takes beside what XLA says, read from compiled programs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("jax")

from stowplan.adapters.jax_programs import compiler_options, library_bytes

MEASURE = """
import ctypes, gc, json, os, pathlib, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one fusion at a time
libc = ctypes.CDLL("libc.so.6")
libc.mallopt(-3, 2**16)  # large blocks come and go, so that none is taken from what was freed
import jax, jax.numpy as jnp, numpy as np
from stowplan.adapters.jax_programs import compiler_options, library_bytes
jax.config.update("jax_enable_x64", True)

def status(name):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024

def product(contracted):
    return lambda a, b: jnp.einsum(contracted, a, b)

def reduced(a, b):
    return jnp.exp(jnp.einsum("rik,rjk->rij", a, b)).sum(-1)

def over_the_first(a):
    return jnp.exp(a).sum(0)

def over_the_last(a):
    return jnp.exp(a).sum(-1)

def computed(a, b):
    return jnp.einsum("rik,rjk->rij", 2 * a, jnp.exp(b))

cases = {
    "transposed": (product("rik,rjk->rij"), (900, 16, 64), (900, 24, 64), {}),
    "padded columns": (product("rik,rjk->rij"), (900, 16, 512), (900, 3, 512), {}),
    "many rows": (product("rik,rkj->rij"), (300, 96, 64), (300, 64, 64), {}),
    "few rows": (product("rik,rkj->rij"), (900, 8, 64), (900, 64, 24), {}),
    "a few columns of much": (product("ik,kj->ij"), (8, 8), (8, 2000000), {}),
    "summed": (reduced, (900, 16, 64), (900, 24, 64), {}),
    "over the first axis": (over_the_first, (9, 300000), {}),
    "over the last axis": (over_the_last, (3000, 16, 64), {}),
    "computed": (computed, (900, 16, 64), (900, 24, 64), compiler_options()),
}
found = {}
for name, (function, *shapes, options) in cases.items():
    given = [jax.device_put(np.ones(shape)) for shape in shapes]
    with jax.default_matmul_precision("highest"):
        program = jax.jit(function, compiler_options=options).lower(*given).compile()
    said = program.memory_analysis()
    rises = []
    for _ in range(3):
        gc.collect()
        libc.malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        result = jax.block_until_ready(program(*given))
        rises.append(status("VmHWM") - before)
        del result
    beyond = sorted(rises)[1] - said.temp_size_in_bytes - said.output_size_in_bytes
    right = given[-1].nbytes
    found[name] = (library_bytes(program.as_text(), cores=1) / right, beyond / right)
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are read from /proc")
def test_what_is_read_of_a_program_is_what_the_process_takes_beyond_what_xla_says():
    if not compiler_options():
        pytest.skip("this XLA has no such library")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, (said, measured) in json.loads(done.stdout).items():
        most = 0.35 if name == "computed" else 0.08  # its copy may be a part, tile by tile
        assert measured - 0.08 < said < measured + most, name


def product(root, left="parameter(0)", *, dot="rhs_contracting_dims={1}", width=64):
    """A fusion of (2, 30) and (3, 30), or of what is computed of them."""
    return (
        f"%fused (p: f{width}[2,30], q: f{width}[3,30]) -> f{width}[2,3] {{\n"
        f"  %p = f{width}[2,30]{{1,0}} {left}\n"
        f"  %q = f{width}[3,30]{{1,0}} parameter(1)\n"
        f"  {root}%r = f{width}[2,3]{{1,0}} dot(%p, %q), lhs_contracting_dims={{1}}, {dot}\n"
        "}\n"
    )


CALL = '  %f = f64[2,3] fusion(%a, %b), kind=kCustom, calls=%fused, config={"__ynn_fusion"}\n'


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (product("ROOT ") + CALL, 8 * 4 * 30),  # three columns become four
        (product("ROOT ", width=32) + CALL, 4 * 4 * 30),
        (product("") + CALL, 0),  # more is computed of it
        (product("", "exponential(%z)") + CALL, 8 * 2 * 30),  # a left operand, kept
        (product("ROOT "), 0),  # of no call of the library
    ],
)
def test_copies_counted_by_hand(program, expected):
    assert library_bytes(program, cores=1) == expected


@pytest.mark.parametrize(
    ("axes", "expected"), [("0", 8 * 70), ("0,1", 8 * 70), ("1", 0), ("0,2", 0), ("0,1,2", 0)]
)
def test_what_is_summed_along_the_first_axes_counts(axes, expected):
    summed = (
        "%fused (p: f64[2,5,7]) -> f64[7] {\n"
        "  %p = f64[2,5,7]{2,1,0} parameter(0)\n"
        f"  ROOT %r = f64[7]{{0}} reduce(%p, %zero), dimensions={{{axes}}}, to_apply=%add\n"
        "}\n"
    )
    assert library_bytes(summed + CALL, cores=1) == expected


def test_as_many_products_count_as_there_are_cores():
    one = product("ROOT ") + CALL
    two = one.replace("%fused", "%other").replace("3,30", "7,30").replace("%f ", "%g ")
    assert library_bytes(one + two, cores=1) == 8 * 8 * 30
    assert library_bytes(one + two, cores=2) == library_bytes(one + two, cores=3) == 8 * 12 * 30
