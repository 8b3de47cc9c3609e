"""A job of each recipe: so many items from seeded data, what it must do, and what its runs took.

All goes through the public recipe. What its calls of ``run`` and ``iterate`` take, and the plans
that they got, are seen by standing in for them inside the recipe.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest.mock import patch

import numpy as np

import stowplan as sp
from stowplan.contradictions import OF_ITERATE, RESERVED

__all__ = ["FRAMEWORKS", "RECIPES", "Job", "Side", "Step", "Work", "make", "steps_of", "timed"]

FRAMEWORKS = ("numpy", "torch", "jax")


class Work(NamedTuple):
    """What a job must do: operations, and bytes that go in and out once."""

    flops: float  # additions and multiplications
    products: float  # those of them in matrix products
    exps: float  # exponentials, logarithms, sines and cosines
    bytes: float
    dtype: str
    on_disk: bool = False  # whether the bytes are read from files


@dataclass(frozen=True)
class Step:
    """A call of ``run`` or ``iterate`` in a recipe, or of ``plan``."""

    call: str
    kernel: sp.Kernel
    data: Any
    options: dict[str, Any]  # keyword arguments, without the plan
    plan: sp.Plan
    seen: Any  # what was measured of the call
    result: Any

    @property
    def shared(self) -> dict[str, Any]:
        """Keyword-only parameters of the kernel among the options."""
        own = OF_ITERATE if self.call == "iterate" else RESERVED
        return {name: value for name, value in self.options.items() if name not in own}


class Job(ABC):
    """A recipe's work on so many items, on one framework."""

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]  # where the recipe calls plan, run and iterate
    folder: tempfile.TemporaryDirectory[str] | None = None

    def __init__(self, items: int, on: str, **options: Any) -> None:
        self.items, self.on, self.options = items, on, options
        self.make()

    @abstractmethod
    def make(self) -> None:
        """Make the inputs."""

    @abstractmethod
    def call(self) -> Any:
        """Call the recipe; results are there when it returns."""

    @abstractmethod
    def work(self, result: Any, steps: Sequence[Step]) -> Work:
        """Count what the job must do."""

    def close(self) -> None:
        """Remove files."""
        if self.folder is not None:
            self.folder.cleanup()


class Ewald(Job):
    """Structures of 8 to 64 atoms (`bench.workload`) to energies, forces and stress.

    Items of any number are spread evenly over a pool in the order of their work, so that their mean
    is that of the pool.
    """

    name = "ewald"
    modules = ("stowplan.recipes.ewald",)
    pool: ClassVar[list[Any]] = []

    def make(self) -> None:
        from bench.workload import grid, structures

        if not self.pool:
            drawn = [atoms for atoms in structures(1100, seed=3) if len(atoms) <= 64]
            self.pool.extend(sorted(drawn, key=lambda atoms: grid(atoms).prod() * len(atoms)))
        self.structures = [self.pool[i] for i in spread_evenly(self.items, len(self.pool))]

    def call(self) -> Any:
        from bench.workload import CUTOFF, SMEARING, VACUUM_ACCURACY, WAVELENGTH
        from stowplan.recipes import ewald

        return ewald.compute(
            self.structures, cutoff=CUTOFF, smearing=SMEARING, wavelength=WAVELENGTH,
            accuracy=VACUUM_ACCURACY, on=self.on, **self.options,
        )  # fmt: skip

    def work(self, result: Any, steps: Sequence[Step]) -> Work:
        """Three products of 16 n1 n2 n3 atoms flops (`stowplan.kernels.ewald`), 30 flops a pair.

        Of the three factors of a phase cosine and sine, of each k-vector one exponential; of each
        pair, once, an exponential and an error function, which counts as one. Bytes: the columns of
        both kernels and the results.
        """
        n1, n2, n3, atoms = result.plans["kspace"].lengths.T.astype(float)
        grid = n1 * n2 * n3
        columns = {name: values for step in steps for name, values in step.data.items()}
        pairs = np.count_nonzero(columns["neighbours"].values >= 0) / 2
        products = float((48 * grid * atoms).sum())
        return Work(
            flops=products + 30 * pairs,
            products=products,
            exps=float((2 * (n1 + n2 + n3) * atoms + 4 * grid).sum() + 2 * pairs),
            bytes=bytes_of(*columns.values(), *result.columns().values()),
            dtype="float64",
        )


class Bragg(Job):
    """Square images of about so many pixels: tricubic, 9 mosaic domains, float32."""

    name = "bragg"
    modules = ("stowplan.recipes.bragg",)

    def make(self) -> None:
        from bench.bragg import experiment

        self.side = max(round(self.items**0.5), 1)
        self.given = experiment(self.side, 9)

    def call(self) -> Any:
        from stowplan.recipes import bragg

        found = bragg.image(*self.given, on=self.on, dtype="float32", **self.options)
        return found.block_until_ready() if self.on == "jax" else found

    def work(self, result: Any, steps: Sequence[Step]) -> Work:
        """250 flops and 6 sines a term (`stowplan.kernels.bragg`).

        Of a term: 15 for h, k and l; 42 for three times four weights; 168 for 64 + 16 + 4 products
        and sums; 25 for the rest. Bytes: indices of pixels, and the image.
        """
        terms = 9.0 * self.side**2
        return Work(250 * terms, 0.0, 6 * terms, 8.0 * self.side**2, "float32")


class Overlay(Job):
    """Pairs of random molecules of 8 to 50 atoms, five starts each, float32."""

    name = "overlay"
    modules = ("stowplan.recipes.overlay",)

    def make(self) -> None:
        rng = np.random.default_rng(5)
        counts = rng.integers(8, 51, (1000, 2))[spread_evenly(self.items, 1000)]
        self.reference, self.fit = ([cloud(rng, int(count)) for count in side] for side in counts.T)

    def call(self) -> Any:
        from stowplan.recipes import overlay

        options = {"starts": 5, **self.options}
        return overlay.align(self.reference, self.fit, on=self.on, **options)

    def work(self, result: Any, steps: Sequence[Step]) -> Work:
        """18 n m flops and n m exponentials a step: products of inner size 5 and 4.

        Steps are those that the starts took. Bytes: coordinates, scores and poses.
        """
        pairs = zip(self.reference, self.fit, strict=True)
        each = np.array([len(a) * len(b) for a, b in pairs], float)
        entries = float((each * result.all_steps).sum())
        given = bytes_of(*self.reference, *self.fit)
        return Work(18 * entries, 18 * entries, entries, given + 17 * 8.0 * self.items, "float32")


class Fields(Job):
    """Power spectra of complex fields (8, 8, 8, lines) in .npy files, in the page cache."""

    name = "fields"
    modules = ("stowplan.recipes.fields_job",)
    lines: ClassVar[int] = 64

    def __init__(self, items: int, on: str, *, lines: int | None = None, **options: Any) -> None:
        self.lines_here = lines or self.lines
        super().__init__(items, on, **options)

    def make(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        place = Path(self.folder.name)
        rng = np.random.default_rng(6)
        parts = rng.normal(size=(8, 8, 8, self.lines_here, 2))
        field = parts.view(np.complex128)[..., 0]
        for number in range(self.items):
            np.save(place / f"{number:05d}.npy", field)

    def call(self) -> Any:
        from stowplan.recipes import fields

        assert self.folder is not None
        options = {"budget": "1 GB", **self.options}
        return fields.spectrum(f"{self.folder.name}/*.npy", spacing=0.1, on=self.on, **options)

    def work(self, result: Any, steps: Sequence[Step]) -> Work:
        """5 N log2 N flops of a complex transform of N points, and 4 of each squared modulus.

        M. Frigo and S. G. Johnson, Proc. IEEE 93, 216 (2005). They count as matrix products, which
        transforms of 8 points are here. Bytes: the files, once.
        """
        points = 512.0 * self.lines_here * self.items
        flops = (5 * 9 + 4) * points
        return Work(flops, flops, 0.0, 16 * points, "float64", on_disk=True)


class Transport(Job):
    """Pairs of bent ellipses on 128 x 288 pixels, blocks of 4; eps 0.01 of the mean cost."""

    name = "transport"
    modules = ("stowplan.recipes.transport",)
    pool: ClassVar[list[tuple[Any, Any]]] = []

    def make(self) -> None:
        from bench.silhouettes import ellipse_pairs

        if not self.pool:
            pairs = zip(*ellipse_pairs(250, canvas=(128, 288)), strict=True)
            self.pool.extend(sorted(pairs, key=lambda pair: int((pair[0] | pair[1]).sum())))
        chosen = [self.pool[i] for i in spread_evenly(self.items, len(self.pool))]
        self.source, self.target = map(list, zip(*chosen, strict=True))

    def call(self) -> Any:
        from stowplan.recipes import transport

        options = {"pool": 4, **self.options}
        found = transport.solve(self.source, self.target, on=self.on, **options)
        assert len(found.velocity) == self.items
        return found

    def work(self, result: Any, steps: Sequence[Step]) -> Work:
        """2 y x (y + x) flops for a sum over a grid (`stowplan.kernels.transport_sums`).

        Two sums a step and six for the maps; a sum takes an exponential and a logarithm of each
        place, a step 20 flops more. Steps are those that pairs took. Bytes: masks, and maps on the
        work grids.
        """
        y, x = result.plans["rounds"].lengths.T.astype(float)
        sums = 2 * result.iterations + 6
        products = float((2 * y * x * (y + x) * sums).sum())
        flops = products + float((20 * y * x * result.iterations).sum())
        maps = (y * x).sum() * 4 * 8
        return Work(
            flops, products, float((2 * y * x * sums).sum()),
            bytes_of(*self.source, *self.target) + float(maps), "float64",
        )  # fmt: skip


RECIPES: dict[str, type[Job]] = {
    kind.name: kind for kind in (Ewald, Bragg, Overlay, Fields, Transport)
}


def make(recipe: str, items: int, on: str, **options: Any) -> Job:
    """Make a job; in JAX with 64 bits, in torch on one thread."""
    if on == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    if on == "torch":
        import torch

        torch.set_num_threads(1)
    return RECIPES[recipe](items, on, **options)


def spread_evenly(count: int, pool: int) -> list[int]:
    """Give so many places of a pool, evenly spread and each as often as the others.

    >>> spread_evenly(2, 10), spread_evenly(4, 2)
    ([2, 7], [0, 0, 1, 1])
    """
    return [int((number + 0.5) * pool / count) for number in range(count)]


def cloud(rng: np.random.Generator, count: int) -> np.ndarray:
    """Give points as dense as heavy atoms are, one in 18 A^3 of an ellipsoid, float32."""
    axes = np.array([1.6, 1.0, 0.625]) * (18 * count / 4.19) ** (1 / 3)
    points = rng.normal(size=(count, 3))
    points *= rng.uniform(size=(count, 1)) ** (1 / 3) / np.linalg.norm(points, axis=1)[:, None]
    return (axes * points).astype(np.float32)


def bytes_of(*arrays: Any) -> float:
    """Bytes of arrays and Ragged."""
    flat = (one.values if isinstance(one, sp.Ragged) else np.asarray(one) for one in arrays)
    return float(sum(one.nbytes for one in flat))


Measure = Callable[[Callable[[], Any]], tuple[Any, Any]]
"""Calls something; gives its result, and what was seen."""


def timed(call: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """Give the result of a call, and its (wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def steps_of(job: Job, measure: Measure = timed) -> tuple[Any, list[Step]]:
    """Call a job; give its result, and what was seen of the runs and plans in it."""
    steps: list[Step] = []
    with _watched(job, measure, steps):
        result = job.call()
    return result, steps


@contextmanager
def _watched(job: Job, measure: Measure, steps: list[Step]) -> Iterator[None]:
    def runner(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(kernel: Any, data: Any, plan: Any = None, **options: Any) -> Any:
            if plan is None:  # as run does by itself, but seen
                given = {key: options.pop(key) for key in ("rows", "budget") if key in options}
                kept = {key: value for key, value in options.items() if key in _PLANNED}
                shared = {key: value for key, value in options.items() if key in kernel.shared}
                plan = sp.plan(kernel, data, **given, **kept, **shared)
            result, seen = measure(lambda: original(kernel, data, plan, **options))
            steps.append(Step(name, kernel, data, options, plan, seen, result))
            return result

        return call

    def planner(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(kernel: Any, data: Any, **options: Any) -> Any:
            made, seen = timed(lambda: original(kernel, data, **options))
            steps.append(Step("plan", kernel, data, options, made, seen, made))
            return made

        return call

    with ExitStack() as stack:
        for module in map(importlib.import_module, job.modules):
            for name in ("run", "iterate"):
                if hasattr(module, name):
                    stood_in = runner(name, getattr(module, name))
                    stack.enter_context(patch.object(module, name, stood_in))
            if hasattr(module, "plan"):
                stack.enter_context(patch.object(module, "plan", planner(module.plan)))
        yield


_PLANNED = ("on", "device")


class Side:
    """A job in a process of its own, for `bench.workers`."""

    def __init__(self, recipe: str, items: int, on: str, options: dict[str, Any]) -> None:
        self.compiles: Counter[str] = Counter()
        self.recipe, self.on, self.options = recipe, on, options
        self.job = make(recipe, items, on, **options)

    def prepare(self, items: int) -> None:
        """Go on with another number of items."""
        self.close()
        self.job = make(self.recipe, items, self.on, **self.options)

    def call(self) -> dict[str, float]:
        """Give CPU seconds by part: plans, runs, and all."""
        (_, steps), (_, cpu) = timed(lambda: steps_of(self.job))
        self.steps = steps
        parts = {"plan": 0.0, "run": 0.0}
        for step in steps:
            parts["plan" if step.call == "plan" else "run"] += step.seen[1]
        return {**parts, "rest": cpu - sum(parts.values()), "all": cpu}

    def work(self) -> Work:
        result, steps = steps_of(self.job)
        return self.job.work(result, [step for step in steps if step.call != "plan"])

    def close(self) -> None:
        self.job.close()
