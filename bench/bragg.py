"""Diffraction images in chunks of pixels, against one evaluation of all terms in torch.

``python -m bench.bragg``; see bench/README.md. Times are CPU times of one thread, memory is the
rise of the resident size at its peak in a process of its own, or what torch allocates and XLA says.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import stowplan as sp
from bench.memory import resident_rise
from bench.record import RESULTS, at_least, at_most, save, show
from bench.workers import ONE_THREAD
from stowplan.kernels.bragg import FLUENCE, R_E_SQUARED, intensity
from stowplan.recipes import bragg
from stowplan.recipes.bragg_geometry import kernel_arguments

PACKAGES = ("torch", "jax", "jaxlib")
HMAX = 12
DOMAINS = (1, 3, 9)
PARTS = 16  # batches of the gradient in chunks
FINER = 32  # ... of an image of 512 x 512, half as large as a forward pass likes them
ACCURACY = 5e-5  # of the largest pixel, float32 against double precision
GRADIENT_ACCURACY = 2e-3  # of the largest entry of each gradient, likewise
ONE_SHOT = "one-shot torch"
COMPILED = "torch compiled"  # compile=True


def structure_factors() -> np.ndarray:
    """Give smooth structure factors, |h|, |k|, |l| <= HMAX."""
    n = np.arange(-HMAX, HMAX + 1.0)
    h, k, l = np.meshgrid(n, n, n, indexing="ij")  # noqa: E741 - as crystallographers write it
    return 100 + 60 * np.cos(0.7 * h) * np.cos(0.5 * k + 0.3) * np.cos(0.9 * l - 0.2)


NUMBERS: dict[str, Any] = {
    "cell": np.array([100.0, 100.0, 100.0, 90.0, 90.0, 90.0]),
    "misset": np.array([1.0, 2.0, 3.0]),
    "spread": np.array(0.5),
    "table": structure_factors(),
}
"""What gradients are taken by."""


def array(framework: str, values: Any, dtype: str = "float32") -> Any:
    """Give an array of a framework."""
    if framework == "numpy":
        return np.asarray(values, dtype)
    if framework == "torch":
        import torch

        torch.set_num_threads(1)
        return torch.asarray(np.asarray(values, dtype))
    import jax.numpy as jnp

    return jnp.asarray(np.asarray(values, dtype))


def framework_of(side: str) -> str:
    """Name the framework that a side computes in."""
    return side if side in ("numpy", "jax") else "torch"


def experiment(size: int, domains: int, numbers: Mapping[str, Any] = NUMBERS) -> tuple[Any, ...]:
    """Give crystal, detector and beam."""
    crystal = bragg.Crystal(
        numbers["cell"], cells=(5, 5, 5), misset=numbers["misset"], interpolation="tricubic",
        table=bragg.StructureFactors(numbers["table"], (-HMAX,) * 3),
        mosaic=bragg.mosaic_rotations(numbers["spread"], domains),
    )  # fmt: skip
    return crystal, bragg.Detector((size, size)), bragg.Beam(6.2)


def problem(
    side: str, size: int, domains: int, dtype: str = "float32"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the pixels of an image and what they share."""
    made = bragg.prepare(*experiment(size, domains), on=framework_of(side), dtype=dtype)
    return made.columns, made.shared


def one_shot(
    slow: Any,
    fast: Any,
    *,
    slow_axis: Any,
    fast_axis: Any,
    origin: Any,
    pixel_size: Any,
    close_distance: Any,
    directions: Any,
    wavelengths: Any,
    lattices: Any,
    cells: Any,
    table: Any,
    minima: tuple[int, int, int],
    default_factor: Any,
    **_: Any,
) -> Any:
    """Evaluate all terms at once in torch, the 64 neighbours of each as (terms, 4, 4, 4).

    One source, no oversampling. Range reduction and the difference of directions are those of the
    kernel, so that both are equally accurate. Three small `einsum` calls were 1.4 to 3 times
    faster than products and sums, and broadcast indices faster than flat ones and `torch.take`.
    """
    import torch

    place = origin + pixel_size * ((slow + 0.5)[:, None] * slow_axis)
    place = place + pixel_size * ((fast + 0.5)[:, None] * fast_axis)
    r = torch.sqrt((place * place).sum(-1))
    towards, beam = place / r[:, None], directions[0]
    c, cosine = torch.linalg.cross(towards, beam.expand_as(towards)), towards @ beam
    shortfall = (c * c).sum(-1) / (1 + cosine)
    across = torch.linalg.cross(beam.expand_as(c), c)
    q = (across - beam * shortfall[:, None]) / wavelengths[0]
    hkl = torch.einsum("dij,pj->ipd", lattices, q).reshape(3, -1)  # (3, terms)
    low = torch.floor(hkl)
    t = hkl - low
    weights = torch.stack(
        [-t * (t - 1) * (t - 2) / 6, (t + 1) * (t - 1) * (t - 2) / 2,
         -(t + 1) * t * (t - 2) / 2, (t + 1) * t * (t - 1) / 6], dim=-1,
    )  # fmt: skip
    nodes = low.long()[..., None] + torch.arange(-1, 3)
    h, k, l = (  # noqa: E741 - as crystallographers write it
        (node - least).clamp(0, length - 1)
        for node, least, length in zip(nodes, minima, table.shape, strict=True)
    )
    around = table[h[:, :, None, None], k[:, None, :, None], l[:, None, None, :]]
    factor = torch.einsum("bijk,bk->bij", around, weights[2])
    factor = torch.einsum("bij,bj->bi", factor, weights[1])
    factor = torch.einsum("bi,bi->b", factor, weights[0])
    least = torch.tensor(minima)[:, None]
    most = least + torch.tensor(table.shape)[:, None] - 1
    inside = ((hkl >= least + 2) & (hkl <= most - 2)).all(dim=0)
    factor = torch.where(inside, factor, default_factor)
    delta = math.pi * (hkl - torch.round(hkl))
    sine = torch.sin(delta)
    near = sine.abs() < 1e-6
    ratio = torch.sin(cells[:, None] * delta) / torch.where(near, 1.0, sine)
    lattice = torch.where(near, cells[:, None], ratio).prod(dim=0)
    total = ((factor * lattice) ** 2).reshape(len(slow), -1).sum(-1) / len(lattices)
    brightness = pixel_size**2 * close_distance / r**3 * (1 + cosine**2) / 2
    return R_E_SQUARED * FLUENCE * brightness * total


def forward(side: str, size: int, domains: int, parts: int | None = None) -> Callable[[], Any]:
    """Give a call that computes an image.

    In one batch for ``parts=1``, in so many equal ones for more, as planned by default for None.
    """
    columns, shared = problem(side, size, domains)
    if side == ONE_SHOT:
        return lambda: one_shot(**columns, **shared)
    plan = planned(columns, shared, parts)

    def call() -> Any:
        found = sp.run(intensity, columns, plan, **shared)
        return found.block_until_ready() if side == "jax" else found

    return call


def planned(columns: Mapping[str, Any], shared: Mapping[str, Any], parts: int | None) -> Any:
    """Plan batches of the default size, or so many equal ones."""
    if parts is None:
        return sp.plan(intensity, columns, **shared)
    return sp.plan(intensity, columns, rows=-(-len(columns["slow"]) // parts))


def weights_of(size: int) -> np.ndarray:
    """Give the weights of the pixels in the loss."""
    return np.random.default_rng(0).uniform(0.5, 1.5, size * size)


def gradient(
    side: str, size: int, domains: int, parts: int | None = None, dtype: str = "float32"
) -> Callable[[], list[Any]]:
    """Give a call that computes the gradient of a weighted image by all of NUMBERS."""
    framework = framework_of(side)
    columns, shared = problem(side, size, domains, dtype)
    plan = planned(columns, shared, parts)
    weights = array(framework, weights_of(size), dtype)
    leaves = {name: array(framework, value, dtype) for name, value in NUMBERS.items()}

    def loss(leaves: Mapping[str, Any]) -> Any:
        crystal, detector, beam = experiment(size, domains, leaves)
        shared = kernel_arguments(detector, beam, crystal, like=weights)
        if side == ONE_SHOT:
            found = one_shot(**columns, **shared)
        else:
            found = sp.run(intensity, columns, plan, compile=side == COMPILED, **shared)
        return (found * weights).sum()

    if framework == "torch":
        import torch

        for leaf in leaves.values():
            leaf.requires_grad_()
        return lambda: list(torch.autograd.grad(loss(leaves), list(leaves.values())))
    import jax

    return lambda: jax.block_until_ready(list(jax.grad(loss)(leaves).values()))


CALLS = {"forward": forward, "gradient": gradient}


def cpu_seconds(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    look: Callable[[str, Any], Any] = lambda name, result: None,
) -> dict[str, dict[str, float]]:
    """CPU seconds of some calls that take turns, after a first one each that is looked at."""
    for name, call in calls.items():
        look(name, call())
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            gc.collect()
            start = time.process_time()
            call()
            found[name].append(time.process_time() - start)
    return {
        name: {"median": statistics.median(each), "min": min(each), "max": max(each)}
        for name, each in found.items()
    }


def rise_here(kind: str, side: str, size: int, domains: int, parts: int | None) -> int:
    """Bytes by which the resident size rises during a call, in this process.

    A small image is computed first, with all that libraries load and keep, and the call itself
    where it compiles: that takes more than the arrays.
    """
    CALLS[kind](side, 16, domains)()
    call = CALLS[kind](side, size, domains, parts)
    if side in ("jax", COMPILED):
        call()
    return resident_rise(call)


def rise(kind: str, side: str, size: int, domains: int, parts: int | None = None) -> int:
    """Bytes by which the resident size rises during a call, in a fresh process."""
    command = [sys.executable, "-m", "bench.bragg", "--rise", kind, side, str(size), str(domains)]
    command += [] if parts is None else [str(parts)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def largest_error(found: Any, expected: Any) -> float:
    """Largest difference over the largest entry."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check(error: float, most: float, what: str) -> float:
    """Stop where something is not accurate."""
    if not error <= most:
        raise SystemExit(f"{what} is off by {error:.1e}, more than {most:g}")
    return error


def measure_forward(size: int, domains: int, rounds: int) -> dict[str, Any]:
    """Time and memory of an image, ours in three frameworks against the one shot."""
    columns, shared = problem("numpy", size, domains, "float64")
    exact = sp.run(intensity, columns, **shared)
    calls = {side: forward(side, size, domains) for side in (ONE_SHOT, "torch", "numpy", "jax")}
    errors = {}

    def look(side: str, found: Any) -> None:
        errors[side] = check(largest_error(found, exact), ACCURACY, side)

    seconds = cpu_seconds(calls, rounds, look)
    return {
        side: {
            "error": errors[side],
            "cpu": seconds[side],
            "rise_bytes": rise("forward", side, size, domains),
        }
        for side in calls
    }


def measure_gradient(size: int, domains: int, rounds: int) -> dict[str, Any]:
    """Time and memory of a gradient, ours in two frameworks against the one shot."""
    exact = [np.asarray(part) for part in gradient("torch", size, domains, dtype="float64")()]
    sides = (ONE_SHOT, "torch", "jax")
    parts = {ONE_SHOT: None, "torch": FINER, "jax": FINER}
    calls = {side: gradient(side, size, domains, parts[side]) for side in sides}
    errors = {}

    def look(side: str, found: Any) -> None:
        each = [largest_error(part, right) for part, right in zip(found, exact, strict=True)]
        errors[side] = check(max(each), GRADIENT_ACCURACY, f"gradient of {side}")

    seconds = cpu_seconds(calls, rounds, look)
    return {
        side: {
            "error": errors[side],
            "cpu": seconds[side],
            "rise_bytes": rise("gradient", side, size, domains, parts[side]),
        }
        for side in sides
    }


def live_peak(call: Callable[[], Any]) -> int:
    """Most bytes in torch's storages during a call, inputs included."""
    from stowplan.adapters.torch_memory import LiveStorages

    with LiveStorages() as storages:
        call()
    return int(storages.peak_bytes)


def allocated_peak(call: Callable[[], Any]) -> int:
    """Most bytes that torch has allocated during a call, in compiled graphs as elsewhere."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(changes).max())


def compiled_peak(size: int, domains: int, parts: int, *, gradient: bool) -> int:
    """Bytes of one batch in JAX: arguments, temporaries and outputs."""
    columns, shared = problem("jax", size, domains)
    plan = planned(columns, shared, parts)
    (model,) = sp.calibrate(intensity, columns, plan, gradient=gradient, **shared)
    return model.peak(plan.slots[0]["rows"])


def measure_chunks(side: str, domains: int, rounds: int, size: int = 256) -> dict[str, Any]:
    """Bytes of a term; peak and time of a gradient in chunks against one batch."""
    terms = size * size * domains
    if side == "torch":
        one_batch = live_peak(forward(side, size, domains, 1))
    else:
        one_batch = compiled_peak(size, domains, 1, gradient=False)
    found: dict[str, Any] = {
        "forward_bytes_per_term": one_batch / terms,
        "table_bytes_per_term": 4 * NUMBERS["table"].size / terms,
    }
    calls = {str(parts): gradient(side, size, domains, parts) for parts in (1, PARTS)}
    cpu = cpu_seconds(calls, rounds)
    if side == "torch":
        peaks = {name: allocated_peak(call) for name, call in calls.items()}
        found["gradient_rise_bytes"] = {
            name: rise("gradient", side, size, domains, int(name)) for name in calls
        }
    else:
        peaks = {name: compiled_peak(size, domains, int(name), gradient=True) for name in calls}
    return {**found, "gradient_peak_bytes": peaks, "gradient_cpu": cpu}


def measure_compiled(domains: int, rounds: int, size: int = 256) -> dict[str, Any]:
    """Peak and time of a compiled gradient in chunks against one batch, and of its compiles."""
    calls = {str(parts): gradient(COMPILED, size, domains, parts) for parts in (1, PARTS)}
    compile_seconds = {}
    for name, call in calls.items():
        start = time.perf_counter()
        call()
        compile_seconds[name] = time.perf_counter() - start
    plain = {f"{name}, not compiled": gradient("torch", size, domains, int(name)) for name in calls}
    return {
        "compile_seconds": compile_seconds,
        "gradient_cpu": cpu_seconds({**calls, **plain}, rounds),
        "gradient_peak_bytes": {name: allocated_peak(call) for name, call in calls.items()},
        "gradient_rise_bytes": {
            name: rise("gradient", COMPILED, size, domains, int(name)) for name in calls
        },
    }


def measure_all_chunks(rounds: int, *, compiled: bool) -> dict[str, Any]:
    """Measure chunks of torch and JAX, and of torch with ``compile=True``."""
    found = {
        f"{side}, {domains}": measure_chunks(side, domains, rounds)
        for side in ("torch", "jax")
        for domains in DOMAINS
    }
    if compiled:
        for domains in DOMAINS[:2]:
            found[f"{COMPILED}, {domains}"] = measure_compiled(domains, rounds)
    return found


def measure_ratio(size: int, rounds: int) -> dict[str, Any]:
    """Time of the planned batches and of one batch of all pixels, same kernel."""
    found: dict[str, Any] = {}
    for side in ("torch", "numpy", "jax"):
        for domains in DOMAINS:
            calls = {
                "chunks": forward(side, size, domains),
                "one batch": forward(side, size, domains, 1),
            }
            found[f"{side}, {domains}"] = cpu_seconds(calls, rounds)
    return found


def judge(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Targets, and what was measured."""

    for kind, least in (("forward", 3.0), ("gradient", 1.0)):
        sides = report[kind]["sides"]
        base, ours = sides[ONE_SHOT], sides["torch"]
        faster = base["cpu"]["median"] / ours["cpu"]["median"]
        share = ours["rise_bytes"] / base["rise_bytes"]
        yield at_least(f"{kind}, torch: times faster", faster, least)
        yield at_most(f"{kind}, torch: share of its memory", share, 0.1)
    for case, one in report["chunks"]["cases"].items():
        if "forward_bytes_per_term" in one:
            most = 200 if case.startswith("torch") else 20
            yield at_most(f"{case} domains: bytes a term", one["forward_bytes_per_term"], most)
        if "gradient_cpu" not in one:
            continue
        peaks, cpu = one["gradient_peak_bytes"], one["gradient_cpu"]
        share = peaks[str(PARTS)] / peaks["1"]
        yield at_most(f"{case} domains: share of the gradient's peak", share, 0.1)
        slower = cpu[str(PARTS)]["median"] / cpu["1"]["median"]
        yield at_most(f"{case} domains: gradient's time", slower, 1.5)
    for case, cpu in report["ratio"]["cases"].items():
        slower = cpu["chunks"]["median"] / cpu["one batch"]["median"]
        yield at_most(f"{case} domains: time in chunks", slower, 1.1)


def table(sides: Mapping[str, Any], terms: int) -> str:
    """Markdown: one line per side."""
    lines = ["| side | CPU s | ns a term | rise MiB | bytes a term | error |", "|" + "---|" * 6]
    for name, one in sides.items():
        cpu, peak = one["cpu"], one["rise_bytes"]
        lines.append(
            f"| {name} | {cpu['median']:.2f} ({cpu['min']:.2f}-{cpu['max']:.2f}) | "
            f"{cpu['median'] / terms * 1e9:.0f} | {peak / 2**20:.0f} | {peak / terms:.1f} | "
            f"{one['error']:.0e} |"
        )
    return "\n".join(lines)


def chunk_table(cases: Mapping[str, Any]) -> str:
    """Markdown: one line per framework and number of domains."""
    head = "| | forward, bytes a term | of these the table | gradient's peak | CPU ms | time |"
    lines = [head, "|" + "---|" * 6]
    for name, one in cases.items():
        each, share = (
            f"{one[key]:.1f}" if key in one else ""
            for key in ("forward_bytes_per_term", "table_bytes_per_term")
        )
        peaks = [one["gradient_peak_bytes"][parts] / 2**20 for parts in (str(PARTS), "1")]
        times = [one["gradient_cpu"][parts]["median"] * 1e3 for parts in (str(PARTS), "1")]
        lines.append(
            f"| {name} | {each} | {share} | {peaks[0]:.1f} / {peaks[1]:.1f} MiB = "
            f"{peaks[0] / peaks[1]:.1%} | {times[0]:.0f} / {times[1]:.0f} | "
            f"{times[0] / times[1]:.2f}x |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", default=["forward", "gradient", "chunks", "ratio"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True,
                        help="measure compile=True, too, a minute for each graph")  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS / "bragg.json")
    parser.add_argument("--rise", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)
    if options.rise:
        kind, side, *numbers = options.rise
        size, domains, *parts = map(int, numbers)
        print(rise_here(kind, side, size, domains, parts[0] if parts else None))
        return 0
    cache = tempfile.TemporaryDirectory()  # compiled here for the first time, read by --rise
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache.name)
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    measures: dict[str, tuple[dict[str, int], Callable[[], Any]]] = {
        "forward": ({"size": 1024, "domains": 9}, partial(measure_forward, 1024, 9, 3)),
        "gradient": ({"size": 512, "domains": 9}, partial(measure_gradient, 512, 9, 3)),
        "chunks": (
            {"size": 256},
            partial(measure_all_chunks, options.rounds, compiled=options.compile),
        ),
        "ratio": ({"size": 1024}, partial(measure_ratio, 1024, options.rounds)),
    }
    report = {part: known[part] for part in measures if part in known}  # of earlier runs
    for part in options.parts:
        case, measure = measures[part]
        start = time.perf_counter()
        found = measure()
        report[part] = {**case, "sides" if "domains" in case else "cases": found}
        print(f"{part}: {time.perf_counter() - start:.0f} s", flush=True)
        if part == "chunks":
            print(chunk_table(found), flush=True)
        if "domains" in case:
            print(table(found, case["size"] ** 2 * case["domains"]), flush=True)
    verdicts = list(judge(report)) if all(part in report for part in measures) else []
    show(verdicts)
    save("bragg", report, verdicts, PACKAGES, options.out)
    return int(options.check and not all(one["met"] for one in verdicts))


if __name__ == "__main__":
    sys.exit(main())
