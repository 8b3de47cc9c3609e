"""What overlays give: scores and poses by pair, and the hits of a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stowplan.planners.batches import Plan
from stowplan.ragged import Ragged
from stowplan.recipes.results import ItemResults

__all__ = ["OverlayResults", "ScreenResults"]

Array = NDArray[np.float64]
COLUMNS = ("score", "transform", "aligned", "best_start", "steps", "converged")


@dataclass(frozen=True, eq=False)
class OverlayResults(ItemResults):
    """The best overlay of each pair.

    Attributes
    ----------
    score : (pairs,)
        Tanimoto index of the volumes, at most 1; NaN where no start has one.
    transform : (pairs, 4, 4)
        Brings the moved molecule onto its reference, in the input frame:
        ``x @ transform[i, :3, :3].T + transform[i, :3, 3]``.
    best_start : (pairs,) int
        Which start the best pose came from.
    steps, all_steps : (pairs,) int
        Steps of that start, and of all starts together.
    converged : (pairs,) bool
        Whether that start ended by the tolerance, not by the number of steps.
    failed : (pairs,) bool
        Whether no start has a finite score.
    plan : Plan
        Of the starts; with several blocks of pairs, of the first.
    fit : Ragged
        The moved molecules as they were given.
    """

    score: Array
    transform: Array
    best_start: NDArray[np.int64]
    steps: NDArray[np.int64]
    all_steps: NDArray[np.int64]
    converged: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    plan: Plan
    fit: Ragged

    @cached_property
    def aligned(self) -> Ragged:
        """The moved molecules on their references, (n, 3)."""
        whole = self.fit.compact()
        counts = whole.shapes[:, 0]
        turns = np.repeat(self.transform[:, :3, :3], counts, axis=0)
        shifts = np.repeat(self.transform[:, :3, 3], counts, axis=0)
        return whole.map_values(lambda x: np.einsum("aij,aj->ai", turns, x) + shifts)

    def columns(self) -> Mapping[str, Any]:
        """Give score, transform, aligned, best_start, steps and converged."""
        return {name: getattr(self, name) for name in COLUMNS}


@dataclass(frozen=True, eq=False)
class ScreenResults(ItemResults):
    """The hits of a screen, by falling score.

    Attributes
    ----------
    index : (hits,) int
        Place of each hit in the library.
    score, transform, aligned, best_start, steps, converged
        As in `OverlayResults`, of the hits.
    scores : (library,)
        Scores of all molecules, in the order of the library.
    plan : Plan
        Of the first chunk.
    """

    index: NDArray[np.int64]
    score: Array
    transform: Array
    aligned: Ragged
    best_start: NDArray[np.int64]
    steps: NDArray[np.int64]
    converged: NDArray[np.bool_]
    scores: Array
    plan: Plan

    @classmethod
    def of(
        cls, ranked: Sequence[tuple[float, int, Mapping[str, Any]]], scores: Array, plan: Plan
    ) -> Self:
        """Join hits, (score, minus the place in the library, columns) each."""
        hits = [hit for _, _, hit in ranked]

        def column(name: str) -> NDArray[Any]:
            return np.asarray([hit[name] for hit in hits])

        return cls(
            index=np.asarray([-place for _, place, _ in ranked], np.int64),
            score=column("score"),
            transform=column("transform"),
            aligned=Ragged.from_list([hit["aligned"] for hit in hits]),
            best_start=column("best_start"),
            steps=column("steps"),
            converged=column("converged"),
            scores=scores,
            plan=plan,
        )

    def columns(self) -> Mapping[str, Any]:
        """Give index, score, transform, aligned, best_start, steps and converged."""
        return {name: getattr(self, name) for name in ("index", *COLUMNS)}
