"""Refine cell, orientation and mosaic spread of a crystal against its image: one loss, twice.

``python examples/refine_crystal.py [--on torch jax] [--small] [--out FOLDER]``

The image of nine mosaic domains with known parameters is the measurement; ten parameters are found
again from a start off by 2 % in the lengths, a degree in each angle and 80 % in the spread.
The loss is the user's own, and one text: of a module in torch, of a function in JAX. At once, its
gradient takes several times the budget of 64 MiB; the recipe cuts the image into chunks of pixels,
and the backward pass computes one chunk after another again.

Single precision is enough: its images are good to some 1e-5, and what is asked for is 1e-3. It
takes half the memory and about two thirds of the time.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from scipy.optimize import minimize

import stowplan as sp
from stowplan.host_memory import give_back_host, resident_host_bytes
from stowplan.kernels.bragg import intensity
from stowplan.memory import show_bytes
from stowplan.recipes import bragg

NAMES = ("a", "b", "c", "alpha", "beta", "gamma", "about x", "about y", "about z", "spread")
UNITS = ("Å",) * 3 + ("°",) * 7
TRUTH = np.array([28.0, 31.0, 34.0, 85.0, 95.0, 102.0, 12.0, -20.0, 33.0, 1.0])
START = TRUTH + np.array([0.5, -0.5, 0.5, -1.0, 1.0, 1.0, 1.0, -1.0, 1.0, 0.8])
SCALE = np.array([0.3, 0.3, 0.3, 0.6, 0.6, 0.6, 0.3, 0.3, 0.3, 0.15])  # of equal weight in a step
DOMAINS, SEED = 9, 3
BEAM = bragg.Beam(1.0)
FLOOR = 1.0  # photons, below which pixels count for little
ENOUGH = 1e-7  # loss at which to stop: the rounding of single precision leaves 1e-10
MOST = 100  # evaluations

Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Setup:
    """A detector of 25.6 mm, and the bytes that an image and its gradient may take."""

    pixels: int
    budget: str

    @property
    def detector(self) -> bragg.Detector:
        return bragg.Detector((self.pixels,) * 2, pixel_size=25.6 / self.pixels, distance=30.0)


FULL, SMALL = Setup(256, "64 MiB"), Setup(96, "24 MiB")


@dataclass
class Refinement:
    """What one framework found, and how."""

    on: str
    path: list[np.ndarray] = field(default_factory=list)  # parameters of each evaluation
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    compiles: list[int] = field(default_factory=list)  # programs, of anything in JAX
    peak_bytes: int | None = None  # rise of the resident memory during an evaluation
    found: np.ndarray = field(default_factory=lambda: START)

    @property
    def errors(self) -> np.ndarray:
        """Relative deviations from the truth."""
        return np.abs(self.found / TRUTH - 1)


def reflections() -> bragg.StructureFactors:
    """Give the table that the crystal has."""
    n = np.arange(-16.0, 17.0)
    h, k, l = np.meshgrid(n, n, n, indexing="ij")  # noqa: E741 - as reflections are named
    values = 100 + 60 * np.cos(0.7 * h) * np.cos(0.5 * k + 0.3) * np.cos(0.9 * l - 0.2)
    return bragg.StructureFactors(values, (-16, -16, -16))


def crystal(values: Any) -> bragg.Crystal:
    """Give the crystal with these ten parameters, an array of any framework."""
    return bragg.Crystal(
        values[:6],
        cells=(4, 4, 4),
        misset=values[6:9],
        mosaic=bragg.mosaic_rotations(values[9], DOMAINS, seed=SEED),
        table=reflections(),
        interpolation="tricubic",
        convention="exact",
    )


def photons(setup: Setup, values: Any) -> Any:
    """Give the image of that crystal within the budget, (slow, fast)."""
    return bragg.image(crystal(values), setup.detector, BEAM, budget=setup.budget)


def misfit(setup: Setup, measured: Any, values: Any) -> Any:
    """Mean square of log ratios: the tails lead the way, the peaks are not all that counts."""
    xp = array_namespace(measured)
    made = photons(setup, values)
    return xp.mean((xp.log(made + FLOOR) - xp.log(measured + FLOOR)) ** 2)


def gradient_torch(setup: Setup, measured: np.ndarray) -> Evaluate:
    """Give loss and gradient as a module's own."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            cell, misset, spread = np.split(START.astype(np.float32), (6, 9))
            self.cell = torch.nn.Parameter(torch.from_numpy(cell))
            self.misset = torch.nn.Parameter(torch.from_numpy(misset))
            self.spread = torch.nn.Parameter(torch.from_numpy(spread))

        def forward(self, measured: torch.Tensor) -> torch.Tensor:
            return misfit(setup, measured, torch.cat([self.cell, self.misset, self.spread]))

    model, target = Model(), torch.from_numpy(measured)

    def evaluate(values: np.ndarray) -> tuple[float, np.ndarray]:
        torch.nn.utils.vector_to_parameters(torch.from_numpy(values), model.parameters())
        model.zero_grad()
        loss = model(target)
        loss.backward()
        return float(loss.detach()), torch.cat([p.grad for p in model.parameters()]).numpy()

    return evaluate


def gradient_jax(setup: Setup, measured: np.ndarray) -> Evaluate:
    """Give loss and gradient of a plain function."""
    import jax
    import jax.numpy as jnp

    target = jnp.asarray(measured)
    loss_and_slope = jax.value_and_grad(lambda values: misfit(setup, target, values))

    def evaluate(values: np.ndarray) -> tuple[float, np.ndarray]:
        loss, slope = loss_and_slope(jnp.asarray(values))
        return float(loss), np.asarray(slope)

    return evaluate


GRADIENTS = {"torch": gradient_torch, "jax": gradient_jax}


def refine(on: str, setup: Setup, measured: np.ndarray) -> Refinement:
    """Find the parameters by L-BFGS: SciPy's, so that both frameworks take the same path."""
    done = Refinement(on)
    evaluate = GRADIENTS[on](setup, measured.astype(np.float32))
    compiled = count_compiles() if on == "jax" else lambda: 0

    def step(x: np.ndarray) -> tuple[float, np.ndarray]:
        values = START + SCALE * x
        before, start = compiled(), time.perf_counter()
        loss, slope = evaluate(values.astype(np.float32))
        done.seconds.append(time.perf_counter() - start)
        done.compiles.append(compiled() - before)
        done.path.append(values)
        done.losses.append(loss)
        return loss, SCALE * slope

    def stop(intermediate_result: Any) -> None:
        if intermediate_result.fun < ENOUGH:
            raise StopIteration

    found = minimize(
        step,
        np.zeros(len(START)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None)] * 9 + [(-START[9] / SCALE[9], None)],  # no spread below 0
        callback=stop,
        options={"maxfun": MOST, "ftol": 0, "gtol": 0},
    )
    done.found = START + SCALE * found.x
    done.peak_bytes = rise(lambda: evaluate(done.found.astype(np.float32)))
    return done


def count_compiles() -> Callable[[], int]:
    """Count what JAX compiles from now on."""
    import jax

    seen: list[str] = []

    def listen(event: str, seconds: float, **about: Any) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: len(seen)


def rise(call: Callable[[], Any]) -> int | None:
    """Bytes by which the resident memory rises during a call, at its peak; on Linux alone."""
    gc.collect()
    give_back_host()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the last peak
    except OSError:
        return None
    before = resident_host_bytes()
    call()
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 - before


def in_framework(on: str, values: np.ndarray) -> Any:
    """Give parameters as an array in single precision."""
    if on == "jax":
        import jax.numpy as jnp

        return jnp.asarray(values, jnp.float32)
    import torch

    return torch.from_numpy(values.astype(np.float32)).requires_grad_()


def planned(on: str, setup: Setup) -> sp.Plan:
    """Give the plan of the image and its gradient, as the recipe makes it."""
    made = bragg.prepare(crystal(in_framework(on, START)), setup.detector, BEAM)
    return sp.plan(intensity, made.columns, budget=setup.budget, gradient="lattices", **made.shared)


def forecast(on: str, setup: Setup) -> bragg.Estimate:
    """Say what the image takes at once, and in how few chunks it fits."""
    found = crystal(in_framework(on, START))
    return bragg.estimate(found, setup.detector, BEAM, budget=setup.budget)


def draw(refined: list[Refinement], setup: Setup, measured: np.ndarray, folder: Path) -> Path:
    """Write ``refine_crystal.png``: images before and after, differences, and the way there."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import colors
    from matplotlib import pyplot as plt

    start, found = photons(setup, START), photons(setup, refined[0].found)
    figure, axes = plt.subplots(2, 3, figsize=(12, 9), layout="constrained")
    shades = colors.LogNorm(0.1, measured.max(), clip=True)
    for axis, image, title in zip(
        axes[0], (measured, start, found), ("measured", "start", "refined"), strict=True
    ):
        shown = axis.imshow(image, norm=shades, cmap="magma")
        axis.set(title=title, xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes[0], label="photons", location="bottom", aspect=60)
    signs = colors.SymLogNorm(0.1, vmin=-measured.max(), vmax=measured.max())
    for axis, image, title in zip(axes[1], (start, found), ("start", "refined"), strict=False):
        apart = image - measured
        shown = axis.imshow(apart, norm=signs, cmap="RdBu_r")
        most = f"{title} less measured: at most {np.abs(apart).max():.3g}"
        axis.set(title=most, xticks=[], yticks=[])
    ticks = [-100, -10, -1, 0, 1, 10, 100]
    figure.colorbar(
        shown, ax=axes[1, :2], label="photons", location="bottom", aspect=40, ticks=ticks
    )
    _draw_errors(axes[1, 2], refined)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "refine_crystal.png"
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path.resolve()


def _draw_errors(axis: Any, refined: list[Refinement]) -> None:
    """Relative errors of each kind of parameter, by evaluation."""
    kinds = {"cell lengths": np.s_[:3], "cell angles": np.s_[3:6], "misset": np.s_[6:9],
             "mosaic spread": np.s_[9:]}  # fmt: skip
    for line, done in zip(("-", "--"), refined, strict=False):
        errors = np.abs(np.array(done.path) / TRUTH - 1)
        for number, (kind, part) in enumerate(kinds.items()):
            label = f"{kind}, {done.on}" if line == "-" else None
            axis.semilogy(errors[:, part].max(axis=1), line, color=f"C{number}", label=label)
    if len(refined) > 1:
        axis.plot([], [], "--", color="0.4", label=f"the same, {refined[1].on}")
    axis.axhline(1e-3, color="0.6", linewidth=1)
    axis.set(xlabel="evaluation", ylabel="largest relative error", title="Way to the truth")
    axis.legend(fontsize="small")


def report(refined: list[Refinement]) -> None:
    """Print parameters, errors, and what they cost."""
    print("parameter      truth     start" + "".join(f"{done.on:>12}  error" for done in refined))
    for n, name in enumerate(NAMES):
        values = "".join(f"{done.found[n]:12.6f}  {done.errors[n]:.0e}" for done in refined)
        print(f"{name:<8} {UNITS[n]:<2} {TRUTH[n]:9.2f} {START[n]:9.2f}{values}")
    for done in refined:
        first, *later = done.seconds
        line = (
            f"{done.on}: loss {done.losses[0]:.2g} to {done.losses[-1]:.1e} in {len(later) + 1} "
            f"evaluations, the first in {first:.1f} s, the others in {np.median(later):.2f} s"
        )
        if done.on == "jax":
            line += f"; programs compiled in the first {done.compiles[0]}, later "
            line += f"{sum(done.compiles[1:])}"
        if done.peak_bytes is not None:
            line += f"; resident memory rises by {show_bytes(done.peak_bytes)}"
        print(line)
    if len(refined) == 2:
        apart = np.abs(refined[0].found / refined[1].found - 1).max()
        print(f"largest relative difference between the two: {apart:.1e}")


def main() -> None:
    """Say what fits, refine with each framework, print what was found, and draw it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--on", nargs="+", choices=list(GRADIENTS), default=list(GRADIENTS))
    parser.add_argument("--small", action="store_true", help="fewer pixels, and no estimates")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    setup = SMALL if options.small else FULL
    measured = photons(setup, TRUTH)
    refined = []
    for on in options.on:
        if not options.small:
            print(forecast(on, setup))
        plan = planned(on, setup)
        assert plan.memory is not None
        print(f"{on}: {len(plan.batches)} chunks of at most {max(plan.rows)} pixels")
        print("\n".join(plan.memory.lines()))
        refined.append(refine(on, setup, measured))
    report(refined)
    print(f"images: {draw(refined, setup, measured, options.out)}")


if __name__ == "__main__":
    main()
