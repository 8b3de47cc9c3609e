"""Gradients with the memory of one batch: the backward pass recomputes batches one by one.

To the framework a run is one operation. It keeps its inputs and nothing of the batches; each is
gathered again, pulled back, and added in place to one gradient per input. In a traced program both
passes are loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any, cast

import numpy as np

from stowplan.adapters import framework_of
from stowplan.adapters.interface import GradientAdapter, TracingAdapter, as_tuple
from stowplan.declaration import Kernel
from stowplan.errors import BudgetError
from stowplan.planners.batches import Plan
from stowplan.ragged import Ragged
from stowplan.runs.columns import Columns
from stowplan.runs.heap import HeapLimit
from stowplan.runs.jobs import Job
from stowplan.runs.places import Place, find_places
from stowplan.runs.recovery import attempt, halve_batches
from stowplan.runs.scanning import scan_batches
from stowplan.runs.shared import map_leaves, paired_leaves

__all__ = ["RecomputedRun"]

Sums = tuple[list[Any], list[Any]]
"""Gradients so far of the columns, with a row of waste each, and of the shared parameters."""
Additions = tuple[list[tuple[int, Any, Any]], list[Any]]
"""What one batch adds: (column, rows, values), and the new gradients of shared parameters."""
Pulled = tuple[Sequence[Any], Any, list[Any]]
"""What one batch gives: gradients of its arguments and of shared parameters, other numbers."""
Prepare = Callable[[Job, int, list[Any]], Additions]


class RecomputedRun:
    """One run, with a gradient with respect to its columns and shared arrays: its parameters."""

    where = "run, backward pass"  # what errors and logs call it

    def __init__(
        self,
        kernel: Kernel,
        columns: Columns,
        plan: Plan,
        place: Place,
        statics: Mapping[str, Any],
        traced: Mapping[str, Any],
        *,
        compile: bool,
        progress: bool,
    ) -> None:
        self.kernel = kernel
        self.columns = columns
        self.plan = plan
        self.adapter = cast("GradientAdapter", place.adapter)
        self.statics = statics
        self.traced = traced
        pairs = paired_leaves(traced, traced)
        self.are_parameters = [self._is_parameter(leaf) for leaf, _ in pairs]
        self.compile = compile
        self.progress = progress
        self.assemble: Callable[[Sequence[Any]], Any] = tuple  # set by the forward pass
        self.heap: HeapLimit | None = None  # likewise

    def run(self) -> Any:
        """Compute the results; their gradients are recomputed when asked for."""
        parameters = [*self.columns.arrays, *self._parameters_in(self.traced)]
        flat = self.adapter.differentiable(self.forward, self.backward, parameters)
        return self.assemble(flat)

    def forward(self, parameters: Sequence[Any]) -> list[Any]:
        """Give the flat values of all outputs."""
        job, traced = self._job(parameters)
        if self._is_traced(parameters):
            flat = self._scanned(job, traced)
        else:
            compute = job.computation(self.statics, traced, compile=self.compile)
            results = as_tuple(job.execute(compute, progress=self.progress))
            self.plan = job.plan  # memory may have asked for smaller batches
            flat = [part.values if isinstance(part, Ragged) else part for part in results]
        self.assemble = _assembly(job)
        self.heap = job.heap
        return flat

    def backward(
        self, parameters: Sequence[Any], cotangents: Sequence[Any], wanted: Sequence[bool]
    ) -> list[Any]:
        """Give the gradient of each parameter, None where it is not wanted.

        ``cotangents`` are those of the flat outputs, None where nothing depends on one.
        """
        job, traced = self._job(parameters)
        pull = self.adapter.pullback(
            self.kernel,
            self.statics,
            *self._flags(wanted),
            device=job.target.device,
            compile=self.compile,
        )
        shared = map_leaves(job.shared, traced)
        scanned = self._is_traced([*parameters, *(part for part in cotangents if part is not None)])
        slopes = [self._with_waste(job, part, scanned) for part in cotangents]

        def pulled(job: Job, number: int) -> Pulled:
            arguments, keywords = job.gather(number)
            padded = self._padded(job, number, slopes)
            return *pull(arguments, keywords, shared, padded), []

        gradients, _ = self._added_up(job, parameters, wanted, shared, pulled, [], scanned=scanned)
        return gradients

    def _flags(self, wanted: Sequence[bool]) -> tuple[tuple[bool, ...], Any]:
        """Split what is wanted of the parameters into columns and shared ones."""
        columns = len(self.columns.values)
        flags = iter(wanted[columns:])
        of_shared = map_leaves(lambda leaf: self._is_parameter(leaf) and next(flags), self.traced)
        return tuple(wanted[:columns]), of_shared

    def _added_up(
        self,
        job: Job,
        parameters: Sequence[Any],
        wanted: Sequence[bool],
        shared: Any,
        pulled: Callable[[Job, int], Pulled],
        others: list[Any],
        *,
        scanned: bool,
    ) -> tuple[list[Any], list[Any]]:
        """Add up what all batches give: a gradient of each parameter, and other numbers."""
        columns = len(job.inputs)
        sums = [
            self.adapter.zeros((given.shape[0] + 1, *given.shape[1:]), one.values) if want else None
            for given, one, want in zip(parameters, job.inputs, wanted, strict=False)
        ]
        totals = [
            self._collected(job, self.adapter.zeros(leaf.shape, leaf)) if want else None
            for leaf, want in zip(self._parameters_in(shared), wanted[columns:], strict=True)
        ]
        used: set[int] = set()  # parameters that an output depends on

        def prepare(job: Job, number: int, totals: list[Any]) -> Additions:
            by_column, by_shared, numbers = pulled(job, number)
            by_total = self._parameters_in(by_shared)
            found = enumerate([*by_column, *by_total])
            used.update(place for place, slope in found if slope is not None)
            added = self._added(job, totals, [*by_total, *numbers])
            return self._placed(job, number, sums, by_column), added

        def step(job: Job, number: int, carry: Sums) -> Sums:
            additions, totals = prepare(job, number, carry[1])
            return self._add(carry[0], additions), totals

        begun = sums, [*totals, *others]
        if scanned:
            sums, every = scan_batches(job, step, begun)
        else:
            with job.heap.around_batches():
                sums, every = self._accumulated(job, parameters, prepare, begun)
        found = [None if part is None else part[:-1, ...] for part in sums]
        found += every[: len(totals)]
        gradients = [
            self._delivered(job, part, like) if place in used else None
            for place, (part, like) in enumerate(zip(found, parameters, strict=True))
        ]
        return gradients, every[len(totals) :]

    def _accumulated(
        self, job: Job, parameters: Sequence[Any], prepare: Prepare, sums: Sums
    ) -> Sums:
        """Add up what batches give; where memory runs out, what is left goes on in smaller ones."""
        done = 0
        while done < len(job.plan.batches):
            job.heap.before_batch(done)
            sums, error = self._advanced(job, done, prepare, sums)
            if error is None:
                done += 1
                continue
            self.adapter.release()
            self.plan = halve_batches(self.where, self.kernel, job.plan, done, error)
            job, _ = self._job(parameters)
        return sums

    def _advanced(
        self, job: Job, number: int, prepare: Prepare, sums: Sums
    ) -> tuple[Sums, str | None]:
        """Add what a batch gives, or nothing of it and the error that says that memory ran out."""
        by_column, totals = sums
        found, error = attempt(self.adapter, lambda: prepare(job, number, totals))
        if found is None:
            return sums, error
        additions, totals = found
        return (self._add(by_column, additions), totals), None

    def _scanned(self, job: Job, traced: Mapping[str, Any]) -> list[Any]:
        """Compute the outputs of a traced run, one loop per shape."""
        adapter = cast("TracingAdapter", self.adapter)
        function = adapter.function(
            self.kernel, self.statics, device=job.target.device, compile=self.compile
        )
        shared = map_leaves(job.shared, traced)

        def compute(job: Job, number: int) -> Any:
            arguments, keywords = job.gather(number)
            return function(arguments, keywords, shared)

        kinds = job.checked(0, adapter.abstract(lambda: compute(job, 0)))
        counts = [job.indices.sizes.total(output.dims) for output in job.outputs]

        def step(job: Job, number: int, totals: list[Any]) -> list[Any]:
            parts = job.checked(number, compute(job, number))
            return [
                adapter.set_rows(
                    total,
                    job.indices.rows_or_waste(number, output.dims, None, waste=count, like=total),
                    part,
                )
                for total, part, output, count in zip(
                    totals, parts, job.outputs, counts, strict=True
                )
            ]

        empty = [
            adapter.zeros((count + 1, *kind.shape[1 + len(output.dims) :]), kind)
            for count, kind, output in zip(counts, kinds, job.outputs, strict=True)
        ]
        return [total[:-1, ...] for total in scan_batches(job, step, empty)]

    def _is_traced(self, parameters: Sequence[Any]) -> bool:
        return hasattr(self.adapter, "scan") and any(map(self.adapter.is_traced, parameters))

    def _is_parameter(self, leaf: Any) -> bool:
        return framework_of([leaf]) == self.adapter.name

    def _parameters_in(self, shared: Any) -> list[Any]:
        """Give what stands in place of the shared parameters, in their order."""
        parts = (part for _, part in paired_leaves(self.traced, shared))
        return list(compress(parts, self.are_parameters))

    def _job(self, parameters: Sequence[Any]) -> tuple[Job, Any]:
        """Set up a run of other parameters, and the shared ones among them."""
        count = len(self.columns.values)
        values = tuple(
            Ragged.from_layout(flat, column.layout) if isinstance(column, Ragged) else flat
            for column, flat in zip(self.columns.values, parameters, strict=False)
        )
        rest = iter(parameters[count:])
        traced = map_leaves(
            lambda leaf: next(rest) if self._is_parameter(leaf) else leaf, self.traced
        )
        _, place = find_places("run", parameters, None, None)
        columns = replace(self.columns, values=values)
        job = Job("run", self.kernel, columns, self.plan, place, place)
        job.heap = self.heap or job.heap
        return job, traced

    def _with_waste(self, job: Job, cotangent: Any, scanned: bool) -> Any:
        """Stage a cotangent, with one row of zeros for the places that hold nothing."""
        if cotangent is None:
            return None
        staged = self.adapter.stage(cotangent, job.target.device)
        if scanned and isinstance(staged, np.ndarray):
            staged = cast("TracingAdapter", self.adapter).constant(staged)
        xp = self.adapter.namespace(staged)
        return xp.concat([staged, self.adapter.zeros((1, *staged.shape[1:]), staged)], axis=0)

    def _padded(self, job: Job, number: int, slopes: Sequence[Any]) -> list[Any]:
        """Give the cotangents of the padded outputs of a batch."""
        padded: list[Any] = []
        for slope, output in zip(slopes, job.outputs, strict=True):
            if slope is None:
                padded.append(None)
                continue
            xp = self.adapter.namespace(slope)
            rows = job.indices.rows_or_waste(
                number, output.dims, None, waste=slope.shape[0] - 1, like=slope
            )
            flat = xp.take(slope, xp.reshape(rows, (-1,)), axis=0)
            padded.append(xp.reshape(flat, (*rows.shape, *slope.shape[1:])))
        return padded

    def _placed(
        self, job: Job, number: int, sums: Sequence[Any], slopes: Sequence[Any]
    ) -> list[tuple[int, Any, Any]]:
        """Give the gradients of padded arguments, and to which rows of the columns they add."""
        placed = []
        for place, (total, slope) in enumerate(zip(sums, slopes, strict=True)):
            if slope is None:
                continue
            column = self.columns.values[place]
            layout = column.layout if isinstance(column, Ragged) else None
            rows = job.indices.rows_or_waste(
                number, job.inputs[place].dims, layout, waste=total.shape[0] - 1, like=total
            )
            placed.append((place, rows, self.adapter.collect(slope, total)))
        return placed

    def _add(self, sums: Sequence[Any], additions: Sequence[tuple[int, Any, Any]]) -> list[Any]:
        """Add to the gradients of the columns, in place."""
        added = list(sums)
        for place, rows, values in additions:
            added[place] = self._add_rows(added[place], rows, values)
        return added

    def _add_rows(self, total: Any, rows: Any, values: Any) -> Any:
        """Add values to rows of a total; where memory runs out, in two halves.

        What is in place already cannot be taken back, so a batch begun is added to its end.
        """
        added, error = attempt(self.adapter, lambda: self.adapter.add_rows(total, rows, values))
        if error is None:
            return added
        self.adapter.release()
        half = rows.shape[0] // 2
        if not half:
            raise BudgetError(
                f"{self.where}: no memory to add the gradient of one row of "
                f"{self.kernel.name}: {error}. Use a device with more memory."
            )
        total = self._add_rows(total, rows[:half, ...], values[:half, ...])
        return self._add_rows(total, rows[half:, ...], values[half:, ...])

    def _added(self, job: Job, totals: Sequence[Any], slopes: Sequence[Any]) -> list[Any]:
        """Add the gradients of shared parameters to those of earlier batches."""
        return [
            total if slope is None else total + self._collected(job, slope)
            for total, slope in zip(totals, slopes, strict=True)
        ]

    def _collected(self, job: Job, slope: Any) -> Any:
        """Give a gradient of a shared parameter where batches are put away and sums are made."""
        return self.adapter.collect(slope, job.first)

    def _delivered(self, job: Job, gradient: Any, like: Any) -> Any:
        gradient = self.adapter.deliver(gradient, job.target.device)
        return self.adapter.cast(gradient, like)


def _assembly(job: Job) -> Callable[[Sequence[Any]], Any]:
    """Give the function that wraps flat outputs as the user's; it keeps no array of the job."""
    outputs, layout, wrapped = job.outputs, job.indices.sizes.layout, job.wrapped

    def assemble(flat: Sequence[Any]) -> Any:
        return wrapped(
            [
                Ragged.from_layout(values, layout(output.dims)) if output.dims else values
                for output, values in zip(outputs, flat, strict=True)
            ]
        )

    return assemble
