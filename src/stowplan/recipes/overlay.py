"""Shape overlay of molecules: how alike two are, and the pose that shows it; one against many.

>>> rng = np.random.default_rng(0)
>>> molecule = rng.normal(size=(12, 3)) * 2
>>> turned = molecule @ np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]) + 5
>>> found = align([molecule], [turned], starts=5)
>>> found.score.round(3).tolist(), bool(np.allclose(found.aligned[0], molecule, atol=0.05))
([1.0], True)
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj
from numpy.typing import NDArray

from stowplan.adapters import framework_of
from stowplan.errors import DataError
from stowplan.kernels import overlay as kernels
from stowplan.planners.batches import Plan
from stowplan.ragged import Ragged
from stowplan.recipes.known import is_count, known_values, refuse_numbers, widest_float
from stowplan.recipes.overlay_molecules import Molecules, read_molecules
from stowplan.recipes.overlay_poses import (
    between_frames,
    fibonacci_rotations,
    inverted,
    principal_poses,
    rotations_of,
)
from stowplan.recipes.overlay_results import OverlayResults, ScreenResults
from stowplan.runs.devices import DevicesGiven
from stowplan.runs.iteration import Iterated, iterate
from stowplan.runs.planning import Slots, plan
from stowplan.runs.rounds import Rounds

__all__ = ["OverlayResults", "ScreenResults", "align", "screen"]

Array = NDArray[np.float64]
BLOCK = 50_000
"""Starts that are on the host at once: what they take there does not grow with the pairs."""
ROTATIONS_PER_ATOM = 10
_log = logging.getLogger("stowplan.overlay")


def align(
    reference: Any,
    fit: Any = None,
    *,
    pairs: Any = None,
    starts: int | str | Any = 50,
    steps: int = 200,
    tolerance: float | None = 1e-5,
    alpha: float = 0.81,
    learning_rate: float = 0.1,
    on: str | None = None,
    rows: int | Sequence[int] | None = None,
    devices: DevicesGiven = None,
    slots: Slots = None,
    budget: float | str | None = None,
    executor: Executor | Callable[[], Executor] | None = None,
    progress: bool = False,
) -> OverlayResults:
    """Rotate and move molecules onto others until their Gaussian volumes overlap most.

    Parameters
    ----------
    reference, fit
        Heavy atoms of equally many molecules, Angstrom: lists of arrays (n, 3), or Ragged. `fit`
        is moved.
    pairs
        For one pool in `reference`: which molecule is the reference and which is moved in each
        pair, int (pairs, 2). Each molecule is held once.
    starts
        How many poses each pair starts from: 1 aligns the centres, 5 the principal axes too, more
        turn the molecule evenly in all directions. ``"atoms"`` puts the centre of the moved
        molecule on each atom of the reference, in 10 rotations. Or poses of your own, (R, 7) or
        (pairs, R, 7): a quaternion (w, x, y, z) about the centre of the moved molecule, then a
        shift.
    steps, tolerance
        Most steps of a start. One ends where its score has changed by at most the tolerance for
        more than 10 steps; None takes all steps.
    alpha
        Exponent of the Gaussians, 1/Angstrom^2.
    learning_rate
        Of Adam.
    on
        ``"numpy"``, ``"jax"``, ``"torch"`` or ``"cupy"``; by default that of the coordinates.
        Computed in float32 where all coordinates are float32, or JAX has no 64 bits; else in
        float64.
    rows, devices, slots, budget
        As in ``sp.plan``; an item is a start. With ``slots=other.plan.slots`` nothing compiles
        again, but for pairs that fit none of them.
    executor
        As in ``sp.run``: batches of starts are its tasks.
    progress
        Show a progress bar over starts.

    Returns
    -------
    OverlayResults
        NumPy arrays by pair, and the plan.

    Raises
    ------
    DataError
        For molecules without atoms or with coordinates that are not finite (which molecule, which
        atom), and parameters that have no answer.

    Notes
    -----
    The larger molecule of a pair is held still, whichever is moved in the result, so that a score
    does not depend on the order of the two; nor does it on where they lie, and on how they are
    turned by the first start alone.

    Source: see `stowplan.kernels.overlay`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> pool = [rng.normal(size=(n, 3)) * 2 for n in (8, 12, 9)]
    >>> found = align(pool, pairs=[(0, 1), (2, 2)], starts=5)
    >>> float(found.score[1].round(2)), found.transform.shape        # a molecule on itself
    (1.0, (2, 4, 4))
    """
    options = _Options(starts, steps, tolerance, alpha, learning_rate)
    on = on or framework_of(_arrays(reference, fit))
    wide = widest_float(on)
    first = read_molecules("overlay.align: reference", reference, wide)
    if pairs is None:
        if fit is None:
            raise DataError(
                "overlay.align: give fit=, as many molecules as in reference, or pairs=[(0, 1)] of "
                "one pool."
            )
        second = read_molecules("overlay.align: fit", fit, wide)
        if len(first) != len(second):
            raise DataError(
                f"overlay.align: {len(first)} reference molecules, but {len(second)} to fit. Give "
                "as many, or pairs= of one pool."
            )
        pool = _joined(first, second)
        chosen = np.arange(2 * len(first)).reshape(2, -1).T
    elif fit is not None:
        raise DataError("overlay.align: pairs= are of one pool; leave out fit=.")
    else:
        used, chosen = np.unique(_read_pairs(pairs, len(first)), return_inverse=True)
        pool, chosen = first.some(used), chosen.reshape(-1, 2)
    job = _Job(pool, options, on, rows, devices, budget, executor, progress)
    return job.align(chosen, slots)


def screen(
    query: Any,
    library: Any,
    top: int = 100,
    *,
    starts: int | str | Any = 50,
    steps: int = 200,
    tolerance: float | None = 1e-5,
    alpha: float = 0.81,
    learning_rate: float = 0.1,
    on: str | None = None,
    rows: int | Sequence[int] | None = None,
    devices: DevicesGiven = None,
    slots: Slots = None,
    budget: float | str | None = None,
    executor: Executor | Callable[[], Executor] | None = None,
    progress: bool = False,
) -> ScreenResults:
    """Rank the molecules of a library by how well each overlays a query.

    Parameters
    ----------
    query
        Heavy atoms of one molecule, (n, 3), Angstrom. The hits are moved onto it.
    library
        Molecules as for `align`; or an iterator of such chunks, which are read one after the other,
        so that a library may be larger than memory.
    top
        How many hits are kept with their poses. Scores are kept of all.
    starts, steps, tolerance, alpha, learning_rate
        As for `align`; poses are (R, 7).
    on, rows, devices, slots, budget, executor, progress
        As for `align`.

    Returns
    -------
    ScreenResults
        Hits by falling score, equal ones in the order of the library.

    Raises
    ------
    DataError
        As `align`; molecules are counted from the beginning of the library.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> library = [rng.normal(size=(n, 3)) * 2 for n in (8, 12, 9, 30)]
    >>> found = screen(library[2] + 7, iter([library[:2], library[2:]]), top=2, starts=5)
    >>> int(found.index[0]), float(found.score[0].round(2)), len(found.scores)
    (2, 1.0, 4)
    """
    options = _Options(starts, steps, tolerance, alpha, learning_rate)
    if not is_count(top):
        raise DataError(f"overlay.screen: top={top!r}; it counts hits, from 1.")
    if options.given is not None and options.given.ndim == 3:
        raise DataError("overlay.screen: starts= of each pair; give poses for all, (R, 7).")
    on = on or framework_of(_arrays([query]))
    wide = widest_float(on)
    asked = read_molecules("overlay.screen: query", [query], wide)
    hits: list[tuple[float, int, dict[str, Any]]] = []
    scores: list[Array] = []
    made: list[Plan] = []
    done = 0
    for chunk in _chunks(library):
        begins = f", from molecule {done} on" if done else ""
        read = read_molecules(f"overlay.screen: library{begins}", chunk, wide)
        job = _Job(_joined(asked, read), options, on, rows, devices, budget, executor, progress)
        pairs = np.stack([np.zeros(len(read), np.int64), 1 + np.arange(len(read))], axis=1)
        found = job.align(pairs, made[0].slots if made else slots)
        made = made or [found.plan]
        scores.append(found.score)
        order = np.argsort(-found.score, kind="stable")  # what has no score comes last
        for index in order[: min(int(top), int(np.isfinite(found.score).sum()))].tolist():
            # of equal scores the earlier one is the greater, so that the later one is dropped
            entry = (float(found.score[index]), -(done + index), found[index])
            (heapq.heappush if len(hits) < int(top) else heapq.heappushpop)(hits, entry)
        done += len(read)
    if not made:
        raise DataError("overlay.screen: the library has no molecules.")
    ranked = sorted(hits, key=lambda entry: entry[:2], reverse=True)
    return ScreenResults.of(ranked, np.concatenate(scores), made[0])


class _Options:
    """What steers an overlay, checked."""

    def __init__(
        self, starts: Any, steps: Any, tolerance: Any, alpha: Any, learning_rate: Any
    ) -> None:
        self.starts = starts
        self.given: Array | None = None
        if isinstance(starts, str):
            if starts != "atoms":
                raise DataError(f'overlay: starts={starts!r}; give a count, "atoms", or poses.')
        elif not is_count(starts):
            self.given = _read_poses(starts)
        if not is_count(steps):
            raise DataError(f"overlay: steps={steps!r}; it counts steps, from 1.")
        for name, value in (("alpha", alpha), ("learning_rate", learning_rate)):
            refuse_numbers("overlay", name, value, (), cure="Give one positive number.", low=0)
        if tolerance is not None:
            refuse_numbers(
                "overlay", "tolerance", tolerance, (), cure="Give None for all steps.", least=0
            )
        self.steps = int(steps)
        self.alpha = float(alpha)
        self.shared: dict[str, Any] = {
            "alpha": self.alpha,
            "least_change": -1.0 if tolerance is None else float(tolerance),
            "most_steps": float(steps),
            "learning_rate": float(learning_rate),
        }

    @property
    def limit(self) -> int:
        """Whole rounds that hold all steps; rows stand still after the last one."""
        return -(-self.steps // kernels.EVERY) * kernels.EVERY


class _Job:
    """One pool of molecules, whose pairs are aligned block by block."""

    def __init__(
        self,
        pool: Molecules,
        options: _Options,
        on: str | None,
        rows: int | Sequence[int] | None,
        devices: DevicesGiven,
        budget: float | str | None,
        executor: Executor | Callable[[], Executor] | None,
        progress: bool,
    ) -> None:
        self.pool = pool
        self.options = options
        self.on = on
        self.rows = rows
        self.devices = devices
        self.budget = budget
        self.executor = executor
        self.progress = progress
        self.overlaps = pool.self_overlaps(options.alpha)
        self.rounds = Rounds(
            kernels.start, kernels.finished, kernels.EVERY, kernels.KEEP, options.limit
        )

    def align(self, pairs: NDArray[np.int64], slots: Slots) -> OverlayResults:
        """Align pairs (pairs, 2) of the pool; later blocks take the slots of the first."""
        swapped = self._swapped(pairs)
        roles = np.where(swapped[:, None], pairs[:, ::-1], pairs)
        counts = self._start_counts(pairs)
        ends = np.cumsum(counts)
        blocks: list[dict[str, NDArray[Any]]] = []
        first_plan: Plan | None = None
        begin = 0
        while begin < len(pairs):
            before = int(ends[begin - 1]) if begin else 0
            end = max(int(np.searchsorted(ends, before + BLOCK, side="right")), begin + 1)
            block = slice(begin, end)
            poses = self._starts(pairs[block], roles[block], swapped[block], begin)
            found, made = self._climb(roles[block], poses, counts[block], first_plan, slots)
            first_plan = first_plan or made
            blocks.append(_best(found, counts[block]))
            begin = end
        assert first_plan is not None
        best = {name: np.concatenate([each[name] for each in blocks]) for name in blocks[0]}
        if best["failed"].any():
            _log.warning("overlay: no start of pairs %s has a finite score.",
                         np.flatnonzero(best["failed"])[:10].tolist())  # fmt: skip
        return OverlayResults(
            score=best["score"],
            transform=self._transforms(pairs, swapped, best["pose"]),
            best_start=best["start"],
            steps=best["steps"],
            converged=best["converged"],
            failed=best["failed"],
            all_steps=best["all_steps"],
            plan=first_plan,
            fit=self.pool.points[pairs[:, 1]],
        )

    def _swapped(self, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say where the moved molecule is the larger one, by atoms, then by self-overlap."""
        n, size = self.pool.counts[pairs], self.overlaps[pairs]
        tie = (n[:, 0] == n[:, 1]) & (size[:, 1] > size[:, 0])
        found: NDArray[np.bool_] = (n[:, 1] > n[:, 0]) | tie
        return found

    def _start_counts(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        options = self.options
        if options.given is not None:
            if options.given.ndim == 3 and len(options.given) != len(pairs):
                raise DataError(
                    f"overlay: starts= has poses of {len(options.given)} pairs; there are "
                    f"{len(pairs)}. Give (pairs, R, 7), or (R, 7) for all."
                )
            return np.full(len(pairs), options.given.shape[-2], np.int64)
        if options.starts == "atoms":
            return ROTATIONS_PER_ATOM * self.pool.counts[pairs[:, 0]]
        return np.full(len(pairs), int(options.starts), np.int64)

    def _starts(
        self,
        pairs: NDArray[np.int64],
        roles: NDArray[np.int64],
        swapped: NDArray[np.bool_],
        begin: int,
    ) -> Array:
        """Poses of a block about the centres of both molecules, of the one that moves in it."""
        options, pool = self.options, self.pool
        if options.given is not None:
            given = options.given
            mine = given[begin : begin + len(pairs)] if given.ndim == 3 else given[None]
            poses = np.broadcast_to(mine, (len(pairs), *mine.shape[1:])).copy()
            poses[..., 4:] += (pool.centres[pairs[:, 1]] - pool.centres[pairs[:, 0]])[:, None, :]
            poses[swapped] = inverted(poses[swapped])
            return poses.reshape(-1, 7)
        frames = pool.frames
        if options.starts != "atoms":
            poses = principal_poses(frames[roles[:, 0]], frames[roles[:, 1]], int(options.starts))
            return poses.reshape(-1, 7)
        atoms = pool.centred[pairs[:, 0]].compact()
        turns = between_frames(
            frames[pairs[:, 0]], fibonacci_rotations(ROTATIONS_PER_ATOM), frames[pairs[:, 1]]
        )
        poses = np.empty((len(atoms.values), ROTATIONS_PER_ATOM, 7))
        pair = np.repeat(np.arange(len(pairs)), atoms.shapes[:, 0])
        poses[..., :4] = turns[pair]
        poses[..., 4:] = atoms.values[:, None, :]
        poses[swapped[pair]] = inverted(poses[swapped[pair]])
        return poses.reshape(-1, 7)

    def _climb(
        self,
        roles: NDArray[np.int64],
        poses: Array,
        counts: NDArray[np.int64],
        before: Plan | None,
        slots: Slots,
    ) -> tuple[Iterated, Plan]:
        pool, dtype = self.pool, self.pool.dtype
        pair = np.repeat(np.arange(len(roles)), counts)
        data = {
            "reference": pool.centred[roles[pair, 0]],
            "fit": pool.centred[roles[pair, 1]],
            "pose": poses.astype(dtype),
            "overlaps": self.overlaps[roles].sum(axis=1)[pair].astype(dtype),
        }
        shared = self.options.shared
        given = before is not None or not (slots is None or is_count(slots))
        made = plan(
            kernels.step, data, on=self.on, devices=self.devices,
            slots=slots if before is None else before.slots,
            rows=self.rows if before is None else None, budget=self.budget, rounds=self.rounds,
            order="cheapest", overflow="extend" if given else "error", **shared,
        )  # fmt: skip
        found = iterate(
            kernels.step, data, made, init=kernels.start, until=kernels.finished,
            every=kernels.EVERY, limit=self.options.limit, keep=kernels.KEEP, on=self.on,
            devices=self.devices, executor=self.executor,
            progress=self.progress, **shared,
        )  # fmt: skip
        return found, made

    def _transforms(
        self, pairs: NDArray[np.int64], swapped: NDArray[np.bool_], poses: Array
    ) -> Array:
        """Matrices (pairs, 4, 4) that bring the molecule to move onto its reference."""
        poses = poses.copy()
        poses[swapped] = inverted(poses[swapped])
        turns = rotations_of(poses[:, :4])
        to, by = self.pool.centres[pairs[:, 0]], self.pool.centres[pairs[:, 1]]
        found = np.zeros((len(pairs), 4, 4))
        found[:, :3, :3] = turns
        found[:, :3, 3] = to + poses[:, 4:] - np.einsum("pij,pj->pi", turns, by)
        found[:, 3, 3] = 1
        return found


def _best(found: Iterated, counts: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Take the best start of each pair, the first of equal ones."""
    score = np.asarray(found.values["best_score"], np.float64)
    score = np.where(found.failed, -np.inf, score)
    ends = np.cumsum(counts)
    first = ends - counts
    highest = np.maximum.reduceat(score, first)
    at_best = np.flatnonzero(score == np.repeat(highest, counts))
    row = at_best[np.searchsorted(at_best, first)]
    steps = np.asarray(found.values["steps"]).astype(np.int64)
    failed = np.isneginf(highest)
    return {
        "score": np.where(failed, np.nan, highest),
        "pose": np.asarray(found.values["best_pose"], np.float64)[row],
        "start": row - first,
        "steps": steps[row],
        "all_steps": np.add.reduceat(steps, first),
        "converged": found.converged[row],
        "failed": failed,
    }


def _read_pairs(pairs: Any, count: int) -> NDArray[np.int64]:
    try:
        table = np.asarray(pairs)
    except ValueError:
        table = np.empty(0)
    if table.ndim != 2 or table.shape[1] != 2 or table.dtype.kind not in "iu" or not len(table):
        raise DataError("overlay.align: pairs= is a list of (reference, fit), int (pairs, 2).")
    outside = (table < 0) | (table >= count)
    if outside.any():
        pair = int(np.argmax(outside.any(axis=1)))
        raise DataError(
            f"overlay.align: pair {pair} is {tuple(table[pair].tolist())}; there are {count} "
            "molecules, counted from 0."
        )
    return table.astype(np.int64)


def _read_poses(starts: Any) -> Array:
    what = 'a count, "atoms", or poses (R, 7) or (pairs, R, 7)'
    try:
        poses = known_values(starts)
    except (TypeError, ValueError):
        poses = None
    if poses is None or poses.ndim not in (2, 3) or poses.shape[-1] != 7 or not poses.size:
        raise DataError(f"overlay: starts={starts!r}; give {what}.")
    lengths = np.linalg.norm(poses[..., :4], axis=-1)
    if not np.isfinite(poses).all() or not lengths.all():
        bad = np.argwhere(~np.isfinite(poses).all(axis=-1) | (lengths == 0))[0].tolist()
        raise DataError(
            f"overlay: pose {bad} in starts= is not finite, or its quaternion is 0; a pose that "
            "leaves the molecule as it is is (1, 0, 0, 0, 0, 0, 0)."
        )
    return poses


def _joined(first: Molecules, second: Molecules) -> Molecules:
    values = np.concatenate([first.points.values, second.points.values])
    dtype = np.result_type(first.dtype, second.dtype)
    return Molecules(Ragged(values, np.concatenate([first.counts, second.counts])), dtype)


def _chunks(library: Any) -> Iterator[Any]:
    """Give the library in chunks: itself, or what it iterates over."""
    listed = isinstance(library, Ragged | list | tuple) or is_array_api_obj(library)
    if listed or not isinstance(library, Iterable):
        yield library
        return
    for chunk in library:
        if len(chunk):
            yield chunk


def _arrays(*given: Any) -> list[Any]:
    found: list[Any] = []
    for each in given:
        if isinstance(each, Ragged):
            found.append(each.values)
        elif isinstance(each, list | tuple):
            found.extend(part for part in each if is_array_api_obj(part))
        elif is_array_api_obj(each):
            found.append(each)
    return found
