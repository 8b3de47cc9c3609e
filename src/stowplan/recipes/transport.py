"""Optimal transport between pairs of masks: costs, velocity, and what is created and destroyed.

>>> before, after = np.zeros((2, 40, 60), np.bool_)
>>> before[10:20, 10:30] = after[10:20, 16:36] = True
>>> found = solve([before], [after], pool=2, tau=1)        # all mass moves
>>> bool(found.converged[0]), found.mean_velocity.round(2).tolist()
(True, [[0.0, 6.0]])
>>> found.velocity[0].shape, found.boxes.tolist()          # 16 pixels around both, in the canvas
((36, 52, 2), [[0, 36, 0, 52]])
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stowplan.adapters import framework_of, get_adapter
from stowplan.errors import BudgetError, DataError, PlanError
from stowplan.kernels import transport as kernels
from stowplan.memory import resolve_budget
from stowplan.planners.batches import Plan
from stowplan.ragged import Ragged
from stowplan.recipes.known import is_count, refuse_numbers, widest_float
from stowplan.recipes.transport_frames import Density, Frames, crop_bytes, read_frames
from stowplan.recipes.transport_gradient import arrays_of, followed_by, solve_followed
from stowplan.recipes.transport_options import POTENTIALS, RELATIVE, Options
from stowplan.recipes.transport_points import PointResults, solve_points
from stowplan.recipes.transport_results import Coupling, TransportResults
from stowplan.runs.execution import run
from stowplan.runs.iteration import Iterated, iterate
from stowplan.runs.planning import Slots, plan
from stowplan.runs.rounds import Rounds

__all__ = ["Coupling", "PointResults", "TransportResults", "solve", "solve_points"]

Array = NDArray[np.float64]
Buckets = int | Sequence[Sequence[int] | Mapping[str, int]] | None
_log = logging.getLogger("stowplan.transport")  # of what is said of pairs


def solve(
    source: Any,
    target: Any = None,
    *,
    pairs: Any = None,
    coord_scale: float | None = None,
    pixel_size: float | None = None,
    epsilon: float | None = None,
    relative_epsilon: float = RELATIVE,
    relaxation: float | None = None,
    tau: float = 0.99,
    reference: Literal["product", "counting"] = "product",
    mass: Literal["shared", "own"] = "shared",
    crop: Any = "union",
    padding: int = 16,
    pool: int = 4,
    density: Density = "uniform",
    buckets: Buckets = None,
    offsets: Any = "centre",
    threshold: float = 1e-4,
    max_iterations: int = 5000,
    on: str | None = None,
    rows: int | Sequence[int] | None = None,
    budget: float | str | None = None,
    progress: bool = False,
) -> TransportResults:
    r"""Solve unbalanced entropic optimal transport between many pairs of masks.

    Minimises <P, C> + eps KL(P|R) + rho KL(P 1|a) + rho KL(P^T 1|b) for each pair, where C is the
    squared distance of scaled coordinates and tau = rho/(rho + eps).

    Parameters
    ----------
    source, target
        Masks of equal number, lists of bool arrays (y, x) or stacks (t, y, x). Both masks of a pair
        are on one canvas; canvases of pairs may differ.
    pairs
        For one stack in `source`: which of its masks are the source and the target of each pair,
        ``[(0, 1), (0, 2)]`` or ``"consecutive"``. Each mask is held once.
    coord_scale
        Length of a pixel in the coordinates of the cost; 1/width of the canvas by default.
    pixel_size
        Length of a pixel in your unit: velocities are in that unit. In pixels by default.
    epsilon, relative_epsilon
        Blur eps in the unit of C; or as a share of each pair's mean cost, where `epsilon` is None.
    relaxation
        Over-relaxation in [1, 2) of all steps but the first; by default 1.7 to begin with, adapted
        to each pair.
    tau
        In (0, 1]. 1 forbids creation and destruction; then both masses are equal.
    reference
        ``"product"``, R = a b^T: results do not depend on the resolution. ``"counting"``, R = 1 on
        the support, as other programs have it: mass grows with the number of pixels.
    mass
        The unit of mass: ``"shared"``, the larger mass of a pair, so that differences count as
        created or destroyed; ``"own"``, each mask's own.
    crop, padding
        ``"union"``: the box around both masks and so many pixels more; or a box of your own,
        (y0, y1, x0, x1), half-open.
    pool
        Pixels along the side of a block that is summed; pairs are solved on these work grids.
    density
        ``"uniform"``; ``"boundary"``, a band of 4 pixels inside the outline, or ``("boundary",
        pixels)``; ``"distance"``, the distance to the background; ``"given"``: `source` and
        `target` hold masses from 0 in place of masks. Then `primal` is differentiable in torch
        tensors that require grad, and under ``jax.grad``.
    buckets
        Padded shapes of work grids that pairs share: how many to choose, or their (height, width).
        By default as many as cost least. With ``other.plan.slots`` nothing compiles again.
    offsets
        Where a work grid lies in its bucket, see ``sp.plan``.
    threshold, max_iterations
        A pair has converged when the summed error of both marginals, looked at after every 10
        steps, is below the threshold; one that has not after so many steps is given back as it is.
    on
        ``"numpy"``, ``"jax"``, ``"torch"`` or ``"cupy"``; by default that of the densities given,
        else NumPy. float64, but for JAX without 64 bits.
    rows
        As in ``sp.plan``.
    budget
        Most bytes beside the masks, as in ``sp.plan``; `TransportResults.peak_bytes` predicts them.
    progress
        Show a progress bar over pairs.

    Returns
    -------
    TransportResults
        NumPy arrays by pair, maps in pixels of the canvas, and the plan.

    Raises
    ------
    DataError
        For masks and parameters that have no answer: which pair, which side, and the cure.
    PlanError
        For a pair that fits no bucket.

    Notes
    -----
    A pair that cannot be solved is marked as `failed`, its numbers are NaN, and the log says so;
    the others are not touched.

    Source: see `stowplan.kernels.transport`.

    Examples
    --------
    >>> disk = np.hypot(*(np.mgrid[:64, :64] - 32)) < 10
    >>> stack = np.stack([np.roll(disk, step, axis=1) for step in (0, 2, 8)])
    >>> found = solve(stack, pairs="consecutive", pool=2)
    >>> bool(found.converged.all()), bool(found.cost[1] > found.cost[0])
    (True, True)
    >>> sums = found.mass + found.destroyed_mass, found.mass + found.created_mass
    >>> [total.round(12).tolist() for total in sums]
    [[1.0, 1.0], [1.0, 1.0]]
    """
    options = Options(
        epsilon, relative_epsilon, relaxation, tau, reference, mass, threshold, max_iterations
    )
    _check_grid(coord_scale, pixel_size, pool)
    if on is None and density == "given":
        on = framework_of([*arrays_of(source), *arrays_of(target)])
    recording = followed_by(source, target) if density == "given" else None
    if recording is not None:
        return solve_followed(
            recording, source, target,
            lambda first, second: solve(
                first, second, coord_scale=coord_scale, pixel_size=pixel_size, epsilon=epsilon,
                relative_epsilon=relative_epsilon, relaxation=relaxation, tau=tau,
                reference=reference, mass=mass, crop=crop, padding=padding, pool=pool,
                density=density, buckets=buckets, offsets=offsets, threshold=threshold,
                max_iterations=max_iterations, on=on or recording.name, rows=rows, budget=budget,
                progress=progress,
            ),
        )  # fmt: skip
    frames = read_frames(source, target, pairs, crop=crop, padding=padding, density=density)
    problem = _Problem(frames, pool, coord_scale, options, widest_float(on))
    shared = options.shared()
    data = problem.columns
    slots = _read_buckets(buckets, problem.shapes)
    crop = crop_bytes(frames.boxes)
    held = [sides * problem.side_bytes + crop for sides in (4, 2)]
    left_last, left = (_left(budget, on, each) for each in held)  # of maps, of rounds
    first = _round_plan(data, on, slots, rows, left, offsets, shared)
    found = _iterate(data, first, on, max_iterations, shared, progress)
    found, retried, tile = _with_tiles(
        found, data, on, max_iterations, shared, problem.sharpness, left_last, progress
    )
    steered = {**options.fixed(), "tile": 0}
    if len(retried) and get_adapter(on or "numpy").compiles:  # one program of maps, not two
        steered["tile"] = _tile(problem.sharpness.max(), problem.sharpness.dtype)
    maps, last = _maps(data, found, first, np.arange(len(frames)), on, left_last, steered)
    if len(retried) and not steered["tile"]:
        steered["tile"] = tile
        more, _ = _maps(data, found, first, retried, on, left_last, steered)
        columns = zip(maps, more, strict=True)
        maps = kernels.TransportMaps(*(_replaced(*column, retried) for column in columns))
    results = problem.results(maps, found, {"rounds": first, "maps": last}, pixel_size)
    _say(results)
    return results


def _left(budget: float | str | None, on: str | None, held: int) -> int | None:
    """Give what a budget leaves beside work grids that are held; None where none is asked for."""
    if budget is None:
        return None
    adapter = get_adapter(on or "numpy")
    device = adapter.devices()[0]
    given = resolve_budget(
        budget, lambda: adapter.free_bytes(device), "transport", device=str(device)
    )
    if given.bytes <= held:
        raise BudgetError(
            f"transport: the densities and potentials of all pairs take {held} bytes; the budget "
            f"is {given.bytes} bytes: {given}. Give more, fewer pairs at once, or a larger pool."
        )
    return given.bytes - held


@np.errstate(all="ignore")  # a probe has no mass
def _round_plan(
    data: Mapping[str, Any],
    on: str | None,
    slots: Slots,
    rows: int | Sequence[int] | None,
    budget: float | str | None,
    offsets: Any,
    shared: Mapping[str, Any],
) -> Plan:
    rounds = Rounds(kernels.start, kernels.finished, kernels.EVERY, POTENTIALS)
    made = plan(
        kernels.step, data, on=on, slots=slots, rows=rows, budget=budget, order="cheapest",
        offsets=offsets, rounds=rounds, **{"tile": 0, **shared},
    )  # fmt: skip
    return replace(made, kernels=3)  # rounds, maps, and rounds with tiles where they are needed


@np.errstate(all="ignore")  # pairs that fail are flagged
def _iterate(
    data: Mapping[str, Any],
    made: Plan,
    on: str | None,
    limit: int,
    shared: Mapping[str, Any],
    progress: bool,
) -> Iterated:
    return iterate(
        kernels.step, data, made, init=kernels.start, until=kernels.finished, every=kernels.EVERY,
        limit=limit, keep=POTENTIALS, on=on, progress=progress, **{"tile": 0, **shared},
    )  # fmt: skip


def _with_tiles(
    found: Iterated,
    data: Mapping[str, Any],
    on: str | None,
    limit: int,
    shared: Mapping[str, Any],
    sharpness: Array,
    budget: float | str | None,
    progress: bool,
) -> tuple[Iterated, NDArray[np.intp], int]:
    """Solve the pairs that failed once more, with sums that lose nothing; give which, and tile."""
    again = np.flatnonzero(found.failed)
    if not len(again):
        return found, again, 0
    tile = _tile(sharpness[again].max(), data["sharpness"].dtype)
    steered = {**shared, "tile": tile}
    some, slots = _items(data, again), _same_slots(found.plan, budget)
    made = _round_plan(some, on, slots, None, budget, _offsets(found.plan, again), steered)
    more = _iterate(some, made, on, limit, steered, progress)
    values = {name: _replaced(found.values[name], more.values[name], again) for name in POTENTIALS}
    merged = replace(found, values=values)
    for name in ("iterations", "converged", "failed"):
        getattr(merged, name)[again] = getattr(more, name)
    return merged, again, tile


def _items(columns: Mapping[str, Any], chosen: NDArray[np.intp]) -> dict[str, Any]:
    return {name: column[chosen] for name, column in columns.items()}


def _offsets(made: Plan, chosen: NDArray[np.intp]) -> Any:
    return "corner" if made.offsets is None else made.offsets[chosen]


def _same_slots(made: Plan, budget: float | str | None) -> list[Mapping[str, int]]:
    """Give the buckets of a plan: with their rows where the next set then compiles nothing."""
    if get_adapter(made.on or "numpy").compiles and budget is None:
        return list(made.slots)
    return [{dim: slot[dim] for dim in made.dims} for slot in made.slots]


def _replaced(column: Any, new: Any, items: NDArray[np.intp]) -> Any:
    """Give a column with other values for some items."""
    if not isinstance(column, Ragged):
        changed = np.array(column)
        changed[items] = new
        return changed
    values = np.array(column.values)
    for place, item in enumerate(items.tolist()):
        start, count = int(column.starts[item]), int(column.shapes[item].prod())
        values[start : start + count] = new[place].reshape(count, *values.shape[1:])
    return column.map_values(lambda _: values)


def _tile(sharpness: float, dtype: Any) -> int:
    """Give the longest tile, a power of two, along which no summand gets lost."""
    most = 600.0 if np.dtype(dtype) == np.float64 else 60.0
    exponent = int(math.log2(max(math.sqrt(most / sharpness) + 1, 1)))
    return 1 << exponent


@np.errstate(all="ignore")  # numbers of pairs that failed are put aside
def _maps(
    data: Mapping[str, Any],
    found: Iterated,
    first: Plan,
    chosen: NDArray[np.intp],
    on: str | None,
    budget: float | str | None,
    steered: Mapping[str, Any],
) -> tuple[kernels.TransportMaps, Plan]:
    columns = _items(
        {
            "source": data["source"], "target": data["target"], **found.values,
            "sharpness": data["sharpness"],
        },
        chosen,
    )  # fmt: skip
    made = plan(
        kernels.maps, columns, on=on, slots=_same_slots(first, budget), budget=budget,
        order="cheapest", offsets=_offsets(first, chosen), **steered,
    )  # fmt: skip
    maps: kernels.TransportMaps = run(kernels.maps, columns, made, on=on, **steered)
    return maps, made


class _Problem:
    """All pairs on their work grids, in units of their masses and epsilons."""

    def __init__(
        self,
        frames: Frames,
        pool: int,
        coord_scale: float | None,
        options: Options,
        dtype: Any,
    ) -> None:
        self.frames = frames
        self.pool = pool
        self.options = options
        count = len(frames)
        self.units = np.empty((count, 2))  # of mass, source and target
        self.masses = np.empty((count, 2))
        self.epsilon = np.empty(count)
        self.spacing = np.empty(count)
        self.shapes = frames.work_shapes(pool)
        self.source, self.target = (
            Ragged(np.empty(int(self.shapes.prod(axis=1).sum()), dtype), self.shapes)
            for _ in range(2)
        )
        for pair, (a, b) in enumerate(frames.work_grids(pool)):
            masses = np.array([a.sum(), b.sum()])
            for side, total in zip(("source", "target"), masses.tolist(), strict=True):
                if not 0 < total < math.inf:
                    raise DataError(
                        f"transport: the {side} of pair {pair} has mass {total:g} in its crop "
                        f"{frames.boxes[pair].tolist()}; it must be above 0 and finite. Give a "
                        'larger crop, or crop="union".'
                    )
            self.masses[pair], self.units[pair] = options.in_units(pair, a, b)
            scale = 1 / frames.canvas(pair)[1] if coord_scale is None else coord_scale
            self.spacing[pair] = scale * pool
            apart = _mean_square(a, b) * self.spacing[pair] ** 2
            self.epsilon[pair] = options.blur(apart, self.spacing[pair])
            self.source[pair][...] = a
            self.target[pair][...] = b
        self.sharpness: Array = (self.spacing**2 / self.epsilon).astype(dtype)

    @property
    def columns(self) -> dict[str, Any]:
        """What the kernels take."""
        return {"source": self.source, "target": self.target, "sharpness": self.sharpness}

    @property
    def side_bytes(self) -> int:
        """Bytes of the densities of one side, which a potential takes, too."""
        return int(self.source.values.nbytes)

    def results(
        self,
        maps: kernels.TransportMaps,
        found: Iterated,
        plans: Mapping[str, Plan],
        pixel_size: float | None,
    ) -> TransportResults:
        """Give results in the units of the cost, failed pairs as NaN."""
        wrong = found.failed

        def numbers(values: Any, factor: Any = 1.0) -> Array:
            return np.where(wrong, np.nan, np.asarray(values, np.float64) * factor)

        mass = numbers(maps.mass)
        return TransportResults(
            cost=numbers(maps.cost, self.spacing**2),
            primal=numbers(maps.primal, self.epsilon),
            gap=numbers(maps.gap, self.epsilon),
            mass=mass,
            created_mass=self.masses[:, 1] - mass,
            destroyed_mass=self.masses[:, 0] - mass,
            source_mass=self.masses[:, 0],
            target_mass=self.masses[:, 1],
            converged=found.converged,
            failed=wrong,
            iterations=found.iterations,
            error=numbers(maps.error),
            epsilon=self.epsilon,
            units=self.units,
            boxes=self.frames.boxes,
            plans=plans,
            pool=self.pool,
            pixel_size=1.0 if pixel_size is None else float(pixel_size),
            spacing=self.spacing,
            work={
                "source": self.source,
                "target": self.target,
                **{name: found.values[name] for name in POTENTIALS},
                "velocity": maps.velocity,
                "created": maps.created,
                "destroyed": maps.destroyed,
            },
            tau=float(self.options.tau),
            reference=self.options.reference,
        )


def _mean_square(a: Array, b: Array) -> float:
    """Give the mean squared distance of two densities, in pixels of the work grid."""
    means, squares = [], []
    for density in (a, b):
        share = density / density.sum()
        lines = [(share.sum(axis=1 - axis), np.arange(share.shape[axis])) for axis in (0, 1)]
        means.append([float(line @ place) for line, place in lines])
        squares.append(sum(float(line @ place**2) for line, place in lines))
    apart = sum(squares) - 2 * sum(x * y for x, y in zip(*means, strict=True))
    return max(apart, 0.0) if apart > 1e-9 else 0.0


def _read_buckets(buckets: Any, shapes: NDArray[np.int64]) -> Any:
    if buckets is None or is_count(buckets):
        return buckets
    given = buckets
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray) or not len(given):
        raise PlanError(
            f"transport: buckets={buckets!r}; give how many to choose, or a list of shapes: "
            "buckets=[(32, 64), (64, 128)]."
        )
    slots = [_read_bucket(bucket) for bucket in given]
    sides = np.array([[slot["y"], slot["x"]] for slot in slots])
    inside = np.all(np.less_equal(shapes[:, None, :], sides), axis=2)
    fits: NDArray[np.bool_] = np.any(inside, axis=1)
    if not fits.all():
        pair = int(np.argmin(fits))
        height, width = shapes[pair].tolist()
        largest = sides[np.argmax(sides.prod(axis=1) * sides.sum(axis=1))].tolist()
        raise PlanError(
            f"transport: {int((~fits).sum())} of {len(fits)} pairs fit no bucket. Pair {pair} "
            f"has a work grid of {(height, width)}; the largest bucket is {tuple(largest)}. Add "
            f"buckets=[..., {(height, width)}], or raise pool."
        )
    return slots


def _read_bucket(bucket: Any) -> Mapping[str, int]:
    listed = isinstance(bucket, Sequence | np.ndarray) and len(bucket) == 2
    slot = dict(zip("yx", bucket, strict=True)) if listed else bucket
    if not (
        isinstance(slot, Mapping)
        and {"y", "x"} <= set(slot) <= {"y", "x", "rows"}
        and all(map(is_count, slot.values()))
    ):
        raise PlanError(
            f"transport: bucket {bucket!r} is no shape (height, width) of whole pixels from 1."
        )
    return slot


def _say(results: TransportResults) -> None:
    for pair, message in enumerate(results.messages):
        if message:
            _log.warning("transport: pair %d: %s", pair, message)


def _check_grid(coord_scale: Any, pixel_size: Any, pool: Any) -> None:
    for name, value in (("coord_scale", coord_scale), ("pixel_size", pixel_size)):
        if value is not None:
            refuse_numbers("transport", name, value, (), cure="Give one positive number.", low=0)
    if not is_count(pool):
        raise DataError(f"transport: pool={pool!r}; it counts pixels, from 1.")
