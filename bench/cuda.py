"""Recipes on a CUDA device: absolute times, and their share of what the device could do.

``python -m bench.cuda [--on torch jax cupy]``; see bench/README.md. Data are on the device
before, and each pass ends when the device has ended. Ceilings are measured first: products of
matrices, and copies. The last run of each framework stays in `results/cuda_NAME.json`. ``--cpu``
takes the first device there is, whichever it is, and keeps nothing: it shows that the jobs run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

import stowplan as sp
from bench.record import save, show
from bench.workers import spread
from stowplan.adapters import get_adapter

FRAMEWORKS = ("torch", "jax", "cupy")
SQUARE, LARGE = 4096, 1 << 28  # of a matrix; numbers that are copied
PASSES = 7
SMALLER = 16  # times, of everything, with --cpu
ACCURACY = 1e-9  # of float64 results, from those of NumPy


class Pass(NamedTuple):
    """One job: what is timed, what it must do, and how to look at its result."""

    call: Callable[[], Any]
    flops: float
    bytes: float
    dtype: str
    check: Callable[[Any], float]  # gives an error relative to the largest result


def device_of(on: str, *, any_device: bool) -> tuple[Any, str] | None:
    """Give a CUDA device of a framework and its name, None where there is none."""
    try:
        adapter = get_adapter(on)
        devices = adapter.devices()
    except Exception as error:  # noqa: BLE001  # not installed, or no driver: it is said
        print(f"NOT RUN {on}: {error}")
        return None
    cuda = [d for d in devices if adapter.kind_of(d) in ("cuda", "gpu")]
    if not cuda and not any_device:
        print(f"NOT RUN {on}: there is no CUDA device")
        return None
    device = (cuda or devices)[0]
    if on == "torch" and cuda:
        import torch

        return device, torch.cuda.get_device_name(device)
    if on == "cupy":
        import cupy

        return device, cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    return device, getattr(device, "device_kind", str(device))


def timed(on: str, call: Callable[[], Any]) -> list[float]:
    """Wall seconds of passes, the first of which does not count."""
    adapter, seconds = get_adapter(on), []
    for number in range(PASSES + 1):
        start = time.perf_counter()
        adapter.synchronize(call())
        if number:
            seconds.append(time.perf_counter() - start)
    return seconds


def ceilings(on: str, device: Any, smaller: int) -> dict[str, float]:
    """Flops a second of products, and bytes a second of copies, read and written."""
    adapter, found = get_adapter(on), {}
    side = SQUARE // smaller
    for dtype in ("float64", "float32"):
        square = np.random.default_rng(0).normal(size=(side, side)).astype(dtype)
        placed = adapter.asarray(square, device)
        xp = array_namespace(placed)
        seconds = min(timed(on, lambda a=placed, xp=xp: xp.matmul(a, a)))
        found[f"flops {dtype}"] = 2 * side**3 / seconds
    numbers = adapter.asarray(np.ones(LARGE // smaller, np.float32), device)
    seconds = min(timed(on, lambda: numbers + 1))
    found["bytes"] = 2 * 4 * (LARGE // smaller) / seconds
    return found


def jobs(on: str, device: Any, smaller: int) -> dict[str, Pass]:
    """Give all jobs with their data on the device."""
    return {
        "overlaps": overlaps(on, device, smaller),
        "spectra": spectra(on, device, smaller),
        "ewald": ewald(on, device, smaller),
        "image": image(on, device, smaller),
    }


def run_pass(
    on: str, device: Any, kernel: sp.Kernel, data: dict[str, Any], shared: dict[str, Any]
) -> tuple[Callable[[], Any], Callable[[Any], float]]:
    """Give the call of a ready plan, and what compares its results with those of NumPy."""
    place = get_adapter(on).asarray

    def placed(one: Any) -> Any:
        if isinstance(one, sp.Ragged):
            return one.map_values(lambda values: place(values, device))
        return place(one, device)

    columns = {name: placed(one) for name, one in data.items()}
    numbers = {name: place(np.asarray(one), device) for name, one in shared.items()}
    plan = sp.plan(kernel, columns, **numbers)

    def check(found: Any) -> float:
        right = sp.run(kernel, data, **shared)
        pairs = zip(_tuple(found), _tuple(right), strict=True)
        errors = []
        for ours, theirs in pairs:
            theirs = _flat(theirs)
            ours = get_adapter(on).to_host(ours)
            errors.append(float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
        return max(errors)

    return lambda: _values(sp.run(kernel, columns, plan, **numbers)), check


def overlaps(on: str, device: Any, smaller: int) -> Pass:
    """Gaussian overlaps of 250 x 250 points in 12 poses: 16 flops a pair, an exp counted as 8."""
    from bench.devices import POINTS, POSES, overlap, point_sets

    items = 4096 // smaller**2
    call, check = run_pass(on, device, overlap, point_sets(items), {})
    pairs = items * POINTS**2 * POSES
    return Pass(call, 16.0 * pairs, 0.0, "float32", check)


def spectra(on: str, device: Any, smaller: int) -> Pass:
    """Power spectra of fields 32 x 32 x 32 x 64, complex: bytes read once."""
    from stowplan.kernels.fields import spectrum

    items, shape = max(64 // smaller, 2), (32, 32, 32, 64)
    shared = {"spacing": 0.1, "width": 2 * np.pi / 3.2}
    parts = np.random.default_rng(1).normal(size=(*shape, 2)).view(np.complex128)[..., 0]
    fields = sp.Ragged.from_list([parts * (1 + number) for number in range(items)], ragged=4)
    call, check = run_pass(on, device, spectrum, {"field": fields}, shared)
    return Pass(call, (5 * 15 + 4.0) * parts.size * items, 16.0 * parts.size * items, "float64",
                check)  # fmt: skip


def ewald(on: str, device: Any, smaller: int) -> Pass:
    """Energies and forces in k space: 48 flops for each k-vector and atom."""
    from bench.workload import CUTOFF, SMEARING, VACUUM_ACCURACY, WAVELENGTH, grid, structures
    from stowplan.kernels.ewald import kspace_field
    from stowplan.recipes.ewald import columns

    items = structures(2048 // smaller**2, seed=0)
    kspace, _ = columns(
        items, cutoff=CUTOFF, smearing=SMEARING, wavelength=WAVELENGTH, accuracy=VACUUM_ACCURACY
    )
    call, check = run_pass(on, device, kspace_field, dict(kspace), {})
    pairs = sum(float(np.prod(grid(one))) * len(one) for one in items)
    return Pass(call, 48.0 * pairs, 0.0, "float64", check)


def image(on: str, device: Any, smaller: int) -> Pass:
    """A diffraction image with 9 domains, tricubic: 250 flops a term."""
    from bench.bragg import experiment
    from stowplan.recipes import bragg

    side = 2048 // smaller
    given = experiment(side, 9)
    right = bragg.image(*given, on="numpy", dtype="float64", region=(slice(0, 8), slice(0, side)))

    def check(found: Any) -> float:
        rows = get_adapter(on).to_host(found).reshape(side, side)[:8]
        return float(np.abs(rows - np.asarray(right)[:8]).max() / np.abs(right).max())

    return Pass(
        lambda: bragg.image(*given, on=on, device=device, dtype="float32"),
        250.0 * 9 * side**2, 0.0, "float32", check,
    )  # fmt: skip


def measure(on: str, device: Any, smaller: int) -> dict[str, Any]:
    """Check and time all jobs of one framework."""
    found = ceilings(on, device, smaller)
    print(f"{on}: " + ", ".join(f"{name} {1e-9 * rate:.0f} G/s" for name, rate in found.items()))
    records = {}
    for name, job in jobs(on, device, smaller).items():
        error = job.check(job.call())
        limit = ACCURACY if job.dtype == "float64" else 1e-4
        if not error <= limit:
            raise SystemExit(f"{on}, {name}: off by {error:.1e}, more than {limit:g}")
        seconds = timed(on, job.call)
        middle = statistics.median(seconds)
        shares = {
            "flops": job.flops / middle / found[f"flops {job.dtype}"],
            "bytes": job.bytes / middle / found["bytes"],
        }
        records[name] = {
            "seconds": spread(seconds), "error": error, "flops": job.flops, "bytes": job.bytes,
            "dtype": job.dtype, "shares": shares,
        }  # fmt: skip
        print(
            f"{on}, {name}: {1e3 * middle:.2f} ms, {1e-9 * job.flops / middle:.0f} GFLOP/s "
            f"({shares['flops']:.1%} of products), {1e-9 * job.bytes / middle:.0f} GB/s "
            f"({shares['bytes']:.1%} of copies), error {error:.0e}",
            flush=True,
        )
    return {"ceilings": found, "jobs": records}


def _tuple(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


def _values(found: Any) -> tuple[Any, ...]:
    return tuple(map(_flat, _tuple(found)))


def _flat(one: Any) -> Any:
    return one.values if isinstance(one, sp.Ragged) else one


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--on", nargs="+", default=list(FRAMEWORKS), choices=FRAMEWORKS)
    parser.add_argument("--cpu", action="store_true", help="smaller, on any device, kept nowhere")
    parser.add_argument("--check", action="store_true", help="fail if no framework has a device")
    options = parser.parse_args()
    if "jax" in options.on:
        import jax

        jax.config.update("jax_enable_x64", True)
    ran = 0
    for on in options.on:
        place = device_of(on, any_device=options.cpu)
        if place is None:
            continue
        device, name = place
        print(f"{on} on {name}", flush=True)
        found = measure(on, device, SMALLER if options.cpu else 1)
        ran += 1
        if not options.cpu:
            figures = {"on": on, "device": name, **found}
            show(())
            print(save(f"cuda_{on}", figures, (), (on,)))
    return int(options.check and not ran)


if __name__ == "__main__":
    sys.exit(main())
