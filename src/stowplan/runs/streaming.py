"""Runs of data that lie on disk, or whose results do: read ahead, computed, put away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.adapters.interface import as_tuple
from stowplan.declaration import Kernel
from stowplan.errors import DataError, PlanError
from stowplan.layout import Layout
from stowplan.memory import show_bytes
from stowplan.planners.batches import Plan
from stowplan.runs.columns import Columns
from stowplan.runs.indices import Sizes
from stowplan.runs.jobs import Job
from stowplan.runs.loads import BUFFERS, MOST_READ, Load, Reads, cut_loads
from stowplan.runs.parts import Part
from stowplan.runs.places import Place
from stowplan.runs.results import InMemory, OnDisk, Result, flat_values
from stowplan.runs.tasks import kind_of, wrapped
from stowplan.stores.arrays import create_array, is_stored, open_array

__all__ = ["run_on_disk"]

Out = Any
"""A path or an array on disk; several outputs take a sequence of these, None for memory."""


def run_on_disk(
    kernel: Kernel,
    columns: Columns,
    plan: Plan,
    source: Place,
    target: Place,
    statics: Mapping[str, Any],
    traced: Mapping[str, Any],
    *,
    out: Out = None,
    overwrite: bool = False,
    compile: bool = False,
    progress: bool = False,
) -> Any:
    """Give what `run` gives, reading one part of the data while another is computed."""
    stream = _Stream(kernel, columns, plan, source, target, statics, traced, compile)
    results, kind = stream.results(out, overwrite)
    try:
        with _bar(stream.loads, results, progress=progress) as advance:
            stream.compute(results, advance)
        for result in results:
            if isinstance(result, OnDisk):
                result.finish()
    except BaseException:
        for result in results:
            if isinstance(result, OnDisk):
                result.discard()
        raise
    return wrapped([result.whole() for result in results], kind)


@dataclass
class _Stream:
    """One run whose data are read load by load."""

    kernel: Kernel
    columns: Columns
    plan: Plan
    source: Place
    target: Place
    statics: Mapping[str, Any]
    traced: Mapping[str, Any]
    compile: bool

    def __post_init__(self) -> None:
        self.reads = Reads(self.columns)
        memory = self.plan.memory
        most = memory.read_bytes if memory is not None and memory.read_bytes else MOST_READ
        self.loads = cut_loads(self.plan, self.reads, most)

    def results(self, out: Out, overwrite: bool) -> tuple[list[Result], Any]:
        """Make room for all outputs, as large and of the dtype that they are known to have.

        Raises
        ------
        DataError, StoreError
            For an output that is there already, of another shape, or larger than the disk.
        """
        nothing = self._computed(self._part_without_items())
        outputs, kind = [flat_values(o) for o in as_tuple(nothing)], kind_of(nothing)
        targets = _per_output(out, len(outputs))
        sizes = Sizes(self.plan, self.kernel, self.columns.fixed)
        found: list[Result] = []
        try:
            for core, like, given in zip(
                self.kernel.signature.outputs, outputs, targets, strict=True
            ):
                dims = self.kernel.ragged_dims(core)
                layout = sizes.layout(dims) if dims else None
                rows = sizes.total(dims)
                if given is None:
                    found.append(InMemory(layout, like, rows, self._back))
                else:
                    found.append(_on_disk(given, layout, like, rows, overwrite))
        except BaseException:
            for result in found:
                if isinstance(result, OnDisk):
                    result.discard()
            raise
        return found, kind

    def compute(self, results: Sequence[Result], advance: Callable[[int], object]) -> None:
        """Read, compute and put away all loads: three at a time, one of each."""
        most = max((load.bytes for load in self.loads), default=0)
        buffers = [np.empty(most if most else 0, np.uint8) for _ in range(BUFFERS)]
        written: Future[None] | None = None
        with (
            ThreadPoolExecutor(1, "stowplan-read") as reader,
            ThreadPoolExecutor(1, "stowplan-write") as writer,
        ):
            ahead: Future[list[Any]] | None = None
            for number, load in enumerate(self.loads):
                values = self._read(number, reader, buffers, ahead)
                ahead = self._read_ahead(number + 1, reader, buffers)
                part = self.reads.part(self.kernel, self.plan, load, values)
                outputs = [flat_values(output) for output in as_tuple(self._computed(part))]
                if written is not None:
                    written.result()
                written = writer.submit(_put_away, results, part.items, outputs)
                del outputs
                advance(load.bytes)
            if written is not None:
                written.result()

    def _read_ahead(
        self, number: int, reader: ThreadPoolExecutor, buffers: Sequence[NDArray[np.uint8]]
    ) -> Future[list[Any]] | None:
        if number >= len(self.loads) or not self.columns.stored:
            return None
        load = self.loads[number]
        return reader.submit(self.reads.fill, load, buffers[number % len(buffers)])

    def _read(
        self,
        number: int,
        reader: ThreadPoolExecutor,
        buffers: Sequence[NDArray[np.uint8]],
        ahead: Future[list[Any]] | None,
    ) -> list[Any]:
        if not self.columns.stored:
            return [None] * len(self.columns.values)
        ahead = ahead or self._read_ahead(number, reader, buffers)
        assert ahead is not None
        return ahead.result()

    def _computed(self, part: Part) -> Any:
        job = Job("run", self.kernel, part.columns, part.plan, self.source, self.target)
        compute = job.computation(self.statics, self.traced, compile=self.compile)
        return job.execute(compute, progress=False)

    def _part_without_items(self) -> Part:
        load = Load(range(0), np.zeros(0, np.intp), 0)
        return self.reads.part_without_data(self.kernel, self.plan, load)

    def _back(self, array: NDArray[Any]) -> Any:
        return self.source.adapter.asarray(array, self.source.device)


def _put_away(
    results: Sequence[Result], items: NDArray[np.intp], outputs: Sequence[NDArray[Any]]
) -> None:
    for result, values in zip(results, outputs, strict=True):
        result.keep(items, values)


def _per_output(out: Out, outputs: int) -> list[Any]:
    """Give one target for each output, None for memory."""
    if out is None or outputs == 1 and not isinstance(out, list | tuple):
        return [out] * outputs
    if not isinstance(out, list | tuple) or len(out) != outputs:
        shown = len(out) if isinstance(out, list | tuple) else 1
        raise PlanError(
            f"run: out= names {shown} arrays, the kernel has {outputs} outputs. Give a list with "
            "one for each, None for one that is kept in memory."
        )
    return list(out)


def _on_disk(
    given: Any, layout: Layout | None, like: NDArray[Any], rows: int, overwrite: bool
) -> OnDisk:
    """Make an array for one output, or take the one that is given."""
    shape = (rows, *like.shape[1:])
    if layout is not None and len(layout.shapes) and (layout.shapes == layout.shapes[0]).all():
        shape = (len(layout.shapes), *layout.shapes[0].tolist(), *like.shape[1:])
    if isinstance(given, str | PathLike):
        made = create_array(given, shape, like.dtype, "run", overwrite=overwrite)
        return OnDisk(layout, made, made=True)
    if not is_stored(given):
        raise DataError(
            f"run: out={type(given).__name__} is no array on disk. Give a path, or an array of "
            "zarr or h5py of the right shape."
        )
    array = open_array(given, "run")
    if array.shape not in (shape, (rows, *like.shape[1:])) or array.dtype != like.dtype:
        raise DataError(
            f"run: out= is {array.name} with shape {array.shape} and dtype {array.dtype}; the "
            f"output has {shape} and {like.dtype}."
        )
    return OnDisk(layout, array, made=False)


@contextmanager
def _bar(
    loads: Sequence[Load], results: Sequence[Result], *, progress: bool
) -> Iterator[Callable[[int], object]]:
    """Show bytes that were read, and how many a second."""
    if not progress:
        yield lambda size: None
        return
    from tqdm import tqdm  # a third of the time that importing stowplan would take

    total = sum(load.bytes for load in loads)
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        yield bar.update
