"""Runs of data that lie on disk, or whose results do: read ahead, computed, put away."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.adapters.interface import as_tuple
from stowplan.adapters.intra_op import one_blas_thread
from stowplan.declaration import Kernel
from stowplan.errors import DataError, PlanError
from stowplan.host_memory import give_back_host
from stowplan.layout import Layout
from stowplan.planners.batches import Plan
from stowplan.runs.columns import Columns
from stowplan.runs.engine import PLAN, saved_plan
from stowplan.runs.fingerprints import digest, fingerprints
from stowplan.runs.indices import Sizes
from stowplan.runs.jobs import Job
from stowplan.runs.loads import MOST_READ, Load, Reads, buffers_for, cut_loads
from stowplan.runs.pace import Pace
from stowplan.runs.parts import Part
from stowplan.runs.places import Place
from stowplan.runs.results import InMemory, OnDisk, Result, checksum_of, flat_values
from stowplan.runs.tasks import Call, kind_of, wrapped
from stowplan.stores.arrays import create_array, is_stored, open_array
from stowplan.stores.file_arrays import mark_targets
from stowplan.stores.helping import Helping
from stowplan.stores.run_folder import RunFolder

__all__ = ["run_on_disk"]

_log = logging.getLogger("stowplan")

LEAST_PARTS = 64
"""A run that can be resumed is kept in as many parts, if it has the batches."""

Outputs = list[NDArray[Any]]

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
    resume: str | PathLike[str] | None = None,
    compile: bool = False,
    progress: bool = False,
) -> Any:
    """Give what `run` gives, reading one part of the data while another is computed."""
    resumable = resume is not None
    stream = _Stream(kernel, columns, plan, source, target, statics, traced, compile, resumable)
    with _opened(stream, resume, out) as folder:
        results = stream.results(out, overwrite, folder)
        try:
            sources = [reader.source for reader in stream.reads.readers if reader is not None]
            targets = [result.target for result in results if isinstance(result, OnDisk)]
            mark_targets(sources, targets)
            with _bar(stream.loads, progress=progress) as advance:
                stream.compute(results, folder, advance)
            for result in results:
                if isinstance(result, OnDisk):
                    result.finish()
        except BaseException:
            for result in results:
                if isinstance(result, OnDisk):
                    result.abandon(keep=folder is not None)
            raise
        return wrapped([result.whole() for result in results], stream.kind)


@contextmanager
def _opened(
    stream: _Stream, resume: str | PathLike[str] | None, out: Out
) -> Iterator[RunFolder | None]:
    """Hold the folder of a run while it is computed."""
    if resume is None:
        yield None
        return
    with RunFolder(resume, stream.identity(out), "run", batches=len(stream.loads)) as folder:
        if saved_plan(resume) is None:
            stream.plan.save(folder.folder / PLAN)
        yield folder


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
    resumable: bool

    def __post_init__(self) -> None:
        self.reads = Reads(self.columns)
        memory = self.plan.memory
        most = memory.read_bytes if memory is not None and memory.read_bytes else MOST_READ
        if self.resumable:
            most = min(most, self.reads.bytes_of(np.arange(self.columns.items)) // LEAST_PARTS)
        self.loads = cut_loads(self.plan, self.reads, most)
        self.kind: Any = None  # how the kernel wraps its outputs, once that is known

    def identity(self, out: Out) -> dict[str, str]:
        """Give what the results depend on, part by part."""
        options = {"compile": self.compile}
        shared = {**self.statics, **self.traced}
        call = Call.make("run", self.kernel, self.source, self.target, shared, options)
        bounds = [load.batches for load in self.loads]
        targets = [_name(given) for given in _per_output(out, len(self.kernel.signature.outputs))]
        own = {"the parts": digest(bounds), "out=": digest(targets)}
        return {**fingerprints(call, self.columns, self.plan), **own}

    def results(self, out: Out, overwrite: bool, folder: RunFolder | None) -> list[Result]:
        """Make room for all outputs; a batch of padding tells the dtype of those on disk.

        Raises
        ------
        DataError, StoreError
            For an output that is there already, of another shape, or larger than the disk.
        """
        cores = self.kernel.signature.outputs
        targets = _per_output(out, len(cores))
        outputs: list[Any] = [None] * len(cores)
        if any(given is not None for given in targets):
            outputs = self._computed(self._part_without_items())
        sizes = Sizes(self.plan, self.kernel, self.columns.fixed)
        found: list[Result] = []
        try:
            for core, like, given in zip(cores, outputs, targets, strict=True):
                dims = self.kernel.ragged_dims(core)
                layout = sizes.layout(dims) if dims else None
                rows = sizes.total(dims)
                if given is None:
                    found.append(InMemory(layout, rows, self._back, like))
                else:
                    found.append(_on_disk(given, layout, like, rows, overwrite, folder))
        except BaseException:
            for result in found:
                if isinstance(result, OnDisk):
                    result.abandon(keep=folder is not None)
            raise
        return found

    def compute(
        self,
        results: Sequence[Result],
        folder: RunFolder | None,
        advance: Callable[[int], object],
    ) -> None:
        """Read, compute and put away all loads: one is read, one or more computed, one written."""
        done = set() if folder is None else self._done(results, folder)
        advance(sum(self.loads[number].bytes for number in done))
        waiting = [number for number in range(len(self.loads)) if number not in done]
        if folder is not None:
            _log.info("run: %d of %d parts are done.", len(done), len(self.loads))
        most = max((self.loads[number].bytes for number in waiting), default=0)
        together = 1 if self.plan.memory is None else self.plan.memory.together
        give_back_host()  # what planning left in the heap
        room, buffer_of = self.reads.room_for(most), self.target.adapter.host_buffer
        count = min(buffers_for(together), len(waiting))
        buffers = [buffer_of(room, self.target.device) for _ in range(count)]
        computing: deque[tuple[int, Future[Outputs]]] = deque()
        written: list[tuple[int, Future[None]]] = []
        kept = len(done)

        def settle() -> None:
            nonlocal kept
            for number, future in written:
                with self._noted(number, kept, folder):
                    future.result()
                kept += 1
            written.clear()

        def finish() -> None:
            number, outputs = computing.popleft()
            with self._noted(number, kept + len(written), folder):
                found = outputs.result()
            settle()
            load = self.loads[number]
            future = writer.submit(_put_away, results, number, load.items, found, folder, self.kind)
            written.append((number, future))
            advance(load.bytes)

        with (
            ThreadPoolExecutor(1, "stowplan-read") as reader,
            ThreadPoolExecutor(1, "stowplan-help") as helper,
            ThreadPoolExecutor(1, "stowplan-write") as writer,
            _threads(together) as submit,
        ):
            reading: deque[Future[list[Any]]] = deque()
            pace, helping = Pace(together), Helping()

            def read_ahead(place: int) -> None:
                """Read on into the buffers that are free while a load is computed, or several."""
                held = len(computing) + (place > 0)
                for later in range(place + len(reading), len(waiting)):
                    if held + len(reading) == len(buffers):
                        return
                    load, buffer = self.loads[waiting[later]], buffers[later % len(buffers)]
                    reading.append(reader.submit(pace.read, self._filled, helping, load, buffer))

            read_ahead(0)
            for place, number in enumerate(waiting):
                values = reading.popleft()
                if not computing:
                    helper.submit(helping.until, values)  # not here, where interrupts arrive
                wait([values])
                read_ahead(place + 1)
                computing.append((number, submit(pace.compute, self._outputs, number, values)))
                del values
                while len(computing) >= pace.at_once:
                    finish()
            while computing:
                finish()
            settle()

    def _filled(self, helping: Helping, load: Load, buffer: NDArray[np.uint8]) -> list[Any]:
        """Read a load, with the help of who is free."""
        with helping.offered():
            return self.reads.fill(load, buffer)

    def _outputs(self, number: int, values: Future[list[Any]]) -> Outputs:
        """Compute a load that was read."""
        part = self.reads.part(self.kernel, self.plan, self.loads[number], values.result())
        return self._computed(part)

    def _done(self, results: Sequence[Result], folder: RunFolder) -> set[int]:
        """Take up what is kept of a run that was cut off; what is damaged counts as not done."""
        done = set()
        for number in sorted(folder.numbers()):
            items = self.loads[number].items
            try:
                saved, self.kind = folder.read(number)
                for result, values in zip(results, saved, strict=True):
                    if isinstance(result, OnDisk):
                        result.compare(items, int(values[0]))
                    else:
                        result.keep(items, flat_values(values))
            except (OSError, ValueError) as error:
                _log.warning("run: part %d is computed again: %s", number, error)
            else:
                done.add(number)
        return done

    @contextmanager
    def _noted(self, number: int, done: int, folder: RunFolder | None) -> Iterator[None]:
        """Say with an error which part it was, and what is done."""
        try:
            yield
        except Exception as error:
            error.add_note(self._note(number, done, folder))
            raise

    def _note(self, number: int, done: int, folder: RunFolder | None) -> str:
        items = self.loads[number].items
        kept = (
            f"they are kept in {folder.folder}: the same call goes on from there"
            if folder is not None
            else "resume='folder' keeps them"
        )
        return (
            f"run: part {number} of {len(self.loads)} (items {items[0]} to {items[-1]}) was not "
            f"done; {done} parts were, and {kept}."
        )

    def _computed(self, part: Part) -> list[NDArray[Any]]:
        """Give the flat rows of all outputs of a part."""
        own = all(isinstance(array, np.ndarray) for array in part.columns.arrays)
        source = self.source if own or not self.columns.stored else self.target
        job = Job("run", self.kernel, part.columns, part.plan, source, self.target)
        compute = job.computation(self.statics, self.traced, compile=self.compile)
        try:
            found = job.execute(compute, progress=False)
        finally:
            part.plan.cache.clear()  # its index arrays refer to the plan, which refers to them
        self.kind = kind_of(found)
        return [flat_values(output) for output in as_tuple(found)]

    def _part_without_items(self) -> Part:
        load = Load(range(0), np.zeros(0, np.intp), 0)
        return self.reads.part_without_data(self.kernel, self.plan, load)

    def _back(self, array: NDArray[Any]) -> Any:
        return self.source.adapter.asarray(array, self.source.device)


@contextmanager
def _threads(together: int) -> Iterator[Callable[..., Future[Outputs]]]:
    """Give what computes a load: this thread, or one of several with one intra-op thread each."""
    if together > 1:
        with ThreadPoolExecutor(together, "stowplan-compute") as pool, one_blas_thread():

            def on_a_thread(function: Callable[..., Outputs], *arguments: Any) -> Future[Outputs]:
                return pool.submit(copy_context().run, function, *arguments)

            yield on_a_thread
        return

    def here(function: Callable[..., Outputs], *arguments: Any) -> Future[Outputs]:
        done: Future[Outputs] = Future()
        try:
            done.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001  # raised by who asks for the result
            done.set_exception(error)
        return done

    yield here


def _put_away(
    results: Sequence[Result],
    number: int,
    items: NDArray[np.intp],
    outputs: Sequence[NDArray[Any]],
    folder: RunFolder | None,
    kind: Any,
) -> None:
    """Put the results of a load where they belong; note in the folder what lies on disk."""
    for result, values in zip(results, outputs, strict=True):
        result.keep(items, values)
    if folder is not None:
        folder.save(
            number,
            [
                np.array([checksum_of(values)], np.int64) if isinstance(result, OnDisk) else values
                for result, values in zip(results, outputs, strict=True)
            ],
            kind,
        )


def _name(given: Any) -> str | None:
    """Name where an output goes, as it is for one process and another; None for memory."""
    if given is None:
        return None
    if isinstance(given, str | PathLike):
        return str(Path(given).absolute())
    return open_array(given, "run").name if is_stored(given) else type(given).__name__


def _per_output(out: Out, outputs: int) -> list[Any]:
    """Give one target for each output, None for memory."""
    if out is None or (outputs == 1 and not isinstance(out, list | tuple)):
        return [out] * outputs
    if not isinstance(out, list | tuple) or len(out) != outputs:
        shown = len(out) if isinstance(out, list | tuple) else 1
        raise PlanError(
            f"run: out= names {shown} arrays, the kernel has {outputs} outputs. Give a list with "
            "one for each, None for one that is kept in memory."
        )
    _refuse_shared_files(out)
    return list(out)


def _refuse_shared_files(out: Sequence[Any]) -> None:
    """Refuse two outputs in one file, or one array within another."""
    found: list[tuple[int, Path]] = []
    for number, given in enumerate(out):
        if not isinstance(given, str | PathLike):
            continue
        file = _file_of(given)
        for other, earlier in found:
            if file.is_relative_to(earlier) or earlier.is_relative_to(file):
                raise PlanError(
                    f"run: out={fspath(out[other])!r} for output {other} and {fspath(given)!r} for "
                    f"output {number} are one file, which takes one output at a time. Give one "
                    "file for each output, or one group of zarr: 'name.zarr::a', 'name.zarr::b'."
                )
        found.append((number, file))


def _file_of(given: str | PathLike[str]) -> Path:
    """Give what an output is written to: a whole file, or the folder of an array of zarr."""
    path, _, inner = fspath(given).partition("::")
    folders = inner.split("/") if Path(path).suffix.lower() == ".zarr" else []
    return Path(path, *folders).resolve()


def _on_disk(
    given: Any,
    layout: Layout | None,
    like: NDArray[Any],
    rows: int,
    overwrite: bool,
    folder: RunFolder | None,
) -> OnDisk:
    """Make an array for one output, or take the one that is given."""
    shape = (rows, *like.shape[1:])
    if layout is not None and len(layout.shapes) and (layout.shapes == layout.shapes[0]).all():
        shape = (len(layout.shapes), *layout.shapes[0].tolist(), *like.shape[1:])
    if isinstance(given, str | PathLike):
        made = create_array(
            given, shape, like.dtype, "run", overwrite=overwrite, resumable=folder is not None,
            resume=folder is not None and bool(folder.numbers()),
        )  # fmt: skip
        return OnDisk(layout, made, made=True, by_items=len(shape) > like.ndim)
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
    return OnDisk(layout, array, made=False, by_items=len(array.shape) > like.ndim)


@contextmanager
def _bar(loads: Sequence[Load], *, progress: bool) -> Iterator[Callable[[int], object]]:
    """Show bytes that were read, and how many a second."""
    if not progress:
        yield lambda size: None
        return
    from tqdm import tqdm  # a third of the time that importing stowplan would take

    total = sum(load.bytes for load in loads)
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        yield bar.update
