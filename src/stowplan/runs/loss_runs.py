"""A run whose results are losses: value and gradient in one pass over the batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from stowplan.adapters.interface import TracingAdapter
from stowplan.errors import DataError
from stowplan.runs.gradients import Pulled, RecomputedRun
from stowplan.runs.jobs import Job
from stowplan.runs.shared import map_leaves

__all__ = ["LossRun"]


class LossRun(RecomputedRun):
    """A run whose only output is a loss of each item; no batch is computed twice."""

    where = "value_and_grad"

    def value_and_gradients(self, names: Sequence[str]) -> tuple[Any, dict[str, Any]]:
        """Give the sum of the losses, and gradients by columns and shared parameters of a name."""
        parameters = [*self.columns.arrays, *self._parameters_in(self.traced)]
        named = {name: _filled(value, name) for name, value in self.traced.items()}
        known = [*self.kernel.arguments, *self._parameters_in(named)]
        wanted = [name in names for name in known]
        with self.adapter.unrecorded():
            value, found = self._in_one_pass(parameters, wanted)
        by_name = dict(zip(known, zip(found, parameters, strict=True), strict=True))
        return value, {
            name: self.adapter.zeros(like.shape, like) if slope is None else slope
            for name, (slope, like) in ((name, by_name[name]) for name in names)
        }

    def _in_one_pass(
        self, parameters: Sequence[Any], wanted: Sequence[bool]
    ) -> tuple[Any, list[Any]]:
        job, traced = self._job(parameters)
        memory = self.plan.memory
        pull = self.adapter.loss_pullback(
            self.kernel,
            self.statics,
            *self._flags(wanted),
            device=job.target.device,
            counted=memory is not None and memory.peak_bytes is not None,
        )
        shared = map_leaves(job.shared, traced)
        scanned = self._is_traced(parameters)
        ones = self.adapter.zeros((self.columns.items,), job.first) + 1
        weights = self._with_waste(job, ones, scanned)

        def pulled(job: Job, number: int) -> Pulled:
            arguments, keywords = job.gather(number)
            (padded,) = self._padded(job, number, [weights])
            outputs, slopes = pull(arguments, keywords, shared, padded)
            (losses,) = job.checked(number, outputs)
            if slopes is None:
                raise DataError(
                    f"{self.where}: {self.kernel.name} returned losses of dtype {losses.dtype}, "
                    "which have no gradient. Return real floating numbers, or give loss=."
                )
            losses = self._collected(job, losses)
            held = self.adapter.namespace(losses).where(padded != 0, losses, 0)
            return *slopes, [held.sum()]

        value: Any = 0.0
        if scanned:
            tracing = cast("TracingAdapter", self.adapter)
            (kind,) = tracing.abstract(lambda: pulled(job, 0)[2])
            value = tracing.zeros((), kind)
        gradients, (value,) = self._added_up(
            job, parameters, wanted, shared, pulled, [value], scanned=scanned
        )
        return self.adapter.deliver(value, job.target.device), gradients


def _filled(nest: Any, name: str) -> Any:
    """Give a nest with a name in place of every part."""
    return map_leaves(lambda _: name, nest)
