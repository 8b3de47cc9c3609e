"""One run: columns staged, batches gathered, computed and put away, results in input order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj
from numpy.typing import NDArray

from stowplan.adapters.interface import StaticKey, as_tuple
from stowplan.declaration import Kernel
from stowplan.errors import DataError, FrameworkError
from stowplan.gather import Blank, gather
from stowplan.layout import Layout
from stowplan.namespaces import namespace_of
from stowplan.planners.batches import Batch, Plan, empty_batch
from stowplan.ragged import Ragged
from stowplan.runs.assembly import Assembly
from stowplan.runs.columns import Columns
from stowplan.runs.heap import HeapLimit
from stowplan.runs.indices import Indices
from stowplan.runs.places import Place
from stowplan.runs.recovery import attempt, halve_batches
from stowplan.runs.shared import map_leaves
from stowplan.runs.stored_columns import is_stand_in
from stowplan.signature import CoreShape

__all__ = ["Job", "with_catch_all"]


@dataclass(frozen=True, slots=True)
class _Output:
    """One output of a kernel: its core shape and the ragged dims that lead it."""

    core: CoreShape
    dims: tuple[str, ...]
    tail: tuple[int, ...]  # lengths of the other dims


@dataclass(frozen=True, slots=True)
class _Input:
    """A staged column: flat values, where its items lie, and what pads them."""

    values: Any
    layout: Layout | None
    dims: tuple[str, ...]
    fill: Any
    xp: Any


class Job:
    """One run: staged columns, the plan's index arrays, and the parts of the results.

    ``apart`` says that batches are arrays of their own, and never views of the data; ``blank`` that
    they are zeros, and nothing is gathered, where columns of NumPy stand in for what lies on disk.
    """

    def __init__(
        self,
        where: str,
        kernel: Kernel,
        columns: Columns,
        plan: Plan,
        source: Place,
        target: Place,
        *,
        apart: bool = False,
        blank: bool = False,
    ) -> None:
        self.where = where
        self.apart = apart
        self.blank = blank
        self.kernel = kernel
        self.columns = columns
        self.source = source
        self.target = target
        self.staged = [self._stage(column) for column in columns.values]
        first = self.staged[0]
        self.first = first.values if isinstance(first, Ragged) else first
        self.inputs = [
            self._input(column, kernel.ragged_dims(core), kernel.fill.get(name, 0))
            for name, column, core in zip(
                kernel.arguments, self.staged, kernel.signature.inputs, strict=True
            )
        ]
        self.segments = {
            dim: self._input(ids.distinct().map_values(self._staged), (dim,), -1)
            for dim, ids in columns.segments.items()
        }
        self.use(plan if plan.batches else _one_empty_batch(plan, target.adapter.compiles))
        self.outputs = [
            _Output(core, kernel.ragged_dims(core), self.indices.sizes.tail(core))
            for core in kernel.signature.outputs
        ]
        self.assemblies = [Assembly(target.adapter, output.dims) for output in self.outputs]
        self.heap = HeapLimit(self.plan, target.adapter, self.first)
        self.done = 0  # batches whose rows are kept
        self.wrapped: Callable[[Sequence[Any]], Any] = tuple

    def shared(self, value: Any) -> Any:
        """Bring a shared number or array to where the batches are."""
        if value is None:
            return None
        number = isinstance(value, np.ndarray) and value.ndim == 0
        if number or isinstance(value, bool | int | float | complex | np.generic):
            return self.number(np.asarray(value))
        if is_array_api_obj(value):
            array = self._staged(self._moved(value))
            return self._scalar(array) if array.ndim == 0 else array
        raise DataError(
            f"{self.where}: {self.kernel.name}: a shared value of type {type(value).__name__} is "
            "neither number nor array; a parameter that selects code is declared with static=."
        )

    def number(self, value: NDArray[Any]) -> Any:
        """Give a number in the floating dtype of the data, so that its type is no compile key."""
        like = self._floating()
        if like is None or value.dtype.kind == "b":
            return self.target.adapter.number(value, self.first, None)
        dtype = like.dtype
        if value.dtype.kind == "c" and namespace_of(like).isdtype(dtype, "real floating"):
            dtype = (like[:0] * 1j).dtype
        return self.target.adapter.number(value, like, dtype)

    def _scalar(self, array: Any) -> Any:
        """Give a 0-d array in the floating dtype of the data, its gradient kept."""
        if isinstance(array, np.ndarray):
            return self.number(array)
        xp, like = namespace_of(array), self._floating()
        if like is None or not xp.isdtype(array.dtype, "real floating"):
            return array
        return xp.astype(array, like.dtype, copy=False)

    def computation(
        self, statics: Mapping[str, Any], traced: Mapping[str, Any], *, compile: bool = False
    ) -> Callable[[int], Any]:
        """Give a function that computes the padded outputs of a batch, by its number."""
        function = self.target.adapter.function(
            self.kernel, statics, device=self.target.device, compile=compile
        )
        shared = map_leaves(self.shared, traced)

        def compute(number: int) -> Any:
            arguments, keywords = self.gather(number)
            if self.plan.batches[number].count:
                return function(arguments, keywords, shared)
            with np.errstate(all="ignore"):  # nothing but padding: whatever comes out is dropped
                return function(arguments, keywords, shared)

        return compute

    def execute(self, compute: Callable[[int], Any], *, progress: bool) -> Any:
        """Compute every batch; where memory runs out, what is left goes on in smaller ones."""
        with self.heap.around_batches():
            error = self._advance(compute, progress)
            while error is not None:  # outside of the except block, whose traceback keeps arrays
                self.target.adapter.release()
                self.use(halve_batches(self.where, self.kernel, self.plan, self.done, error))
                error = self._advance(compute, progress)
        return self.wrapped(self.results())

    def _advance(self, compute: Callable[[int], Any], progress: bool) -> str | None:
        """Compute the batches not kept yet; give the error of one that found no memory.

        If compiled, one is in flight while the last one's rows are kept, unless batches are so
        large that the memory of two counts.
        """
        memory = self.plan.memory
        apart = memory is not None and not memory.in_flight
        in_flight = 1 if self.target.adapter.compiles and not apart else 0
        waiting: deque[tuple[int, Any]] = deque()
        numbers = range(self.done, len(self.plan.batches))
        if not self.target.adapter.compiles:
            for number in numbers:  # what stays lies apart from what batches take and give back
                self._locate(number)

        def compute_all() -> None:
            for number in _with_bar(numbers) if progress else numbers:
                self.heap.before_batch(number)
                waiting.append((number, compute(number)))
                if len(waiting) > in_flight:
                    self.scatter(*waiting.popleft())

        def put_away() -> None:  # what was computed before the one that failed, if any did
            while waiting:
                self.scatter(*waiting.popleft())

        _, failed = attempt(self.target.adapter, compute_all)
        _, found = attempt(self.target.adapter, put_away)
        return failed or found

    def use(self, plan: Plan) -> None:
        """Go on with a plan whose first batches are those that are kept."""
        self.plan = plan
        self.indices = Indices(plan, self.kernel, self.target.adapter, self.columns.fixed)
        self.located = self.indices.located(
            [(one.values, one.layout) for one in (*self.inputs, *self.segments.values())],
            apart=self.apart,
        )

    def gather(self, number: int) -> tuple[list[Any], dict[str, Any]]:
        """Give the padded arguments of a batch, and its masks and segments if the kernel has any.

        Both are as `BatchFunction` takes them.
        """
        places, hidden, keywords = self._locate(number)
        arguments = [
            self._padded(one, index, inside)
            for one, (index, inside) in zip(self.inputs, places, strict=True)
        ]
        if not hidden:
            return arguments, keywords
        segments = {}
        for dim, one in self.segments.items():
            index, inside = hidden[dim]
            segments[dim] = self._padded(one, index, inside)
        return arguments, {**keywords, "segments": segments}

    def gather_rows(self, batch: Batch) -> tuple[list[Any], dict[str, Any]]:
        """Give the same for rows that are in no batch of the plan; nothing of them is kept."""
        indices = self.indices_of(batch)

        def padded(one: _Input) -> Any:
            index, inside = indices.gather(0, one.dims, one.layout, one.values)
            return self._padded(one, index, inside)

        keywords: dict[str, Any] = {}
        if self.kernel.takes_mask:
            keywords["mask"] = indices.masks(0, self.first)
        if self.segments:
            keywords["segments"] = {dim: padded(one) for dim, one in self.segments.items()}
        return [padded(one) for one in self.inputs], keywords

    def _padded(self, one: _Input, index: Any, inside: Any) -> Any:
        if isinstance(index, Blank):
            return index.like(one.values, one.xp)
        in_place = self.target.adapter.in_place
        return gather(one.values, index, inside, one.fill, one.xp, in_place=in_place)

    def indices_of(self, batch: Batch) -> Indices:
        """Give the index arrays of one batch, which may be none of the plan's."""
        plan = replace(self.plan, batches=(batch,))
        plan.cache.update(  # lengths of items, which all batches share
            {key: found for key, found in self.plan.cache.items() if key[0] == "sizes"}
        )
        return Indices(plan, self.kernel, self.target.adapter, self.columns.fixed)

    def _locate(self, number: int) -> Any:
        """Give the places of the arguments and segments of a batch, and its masks."""
        if number not in self.located:
            masks = self.indices.masks(number, self.first) if self.kernel.takes_mask else None
            self.located[number] = (
                [self._places(number, one) for one in self.inputs],
                {dim: self._places(number, one) for dim, one in self.segments.items()},
                {} if masks is None else {"mask": masks},
            )
        return self.located[number]

    def checked(self, number: int, outputs: Any) -> tuple[Any, ...]:
        """Give the outputs of a batch as a tuple, and note how the kernel wraps them."""
        parts = as_tuple(outputs)
        if len(parts) != len(self.outputs):
            raise DataError(
                f"{self.where}: {self.kernel.name} returned {len(parts)} outputs, its signature "
                f"has {len(self.outputs)}."
            )
        if not isinstance(outputs, tuple):
            self.wrapped = lambda results: results[0]
        elif hasattr(outputs, "_fields"):
            kind = type(outputs)  # the outputs themselves are not to be kept
            self.wrapped = lambda results: kind(*results)
        for output, part in zip(self.outputs, parts, strict=True):
            expected = self.indices.padded_shape(number, output.dims, output.tail)
            self._check_shape(output, part, expected)
        return parts

    def scatter(self, number: int, outputs: Any) -> None:
        """Keep the real rows of the outputs of a batch."""
        parts = self.checked(number, outputs)
        collect = self.target.adapter.collect
        ready = [
            assembly.ready(self.indices, number, collect(part, self.first))
            for assembly, part in zip(self.assemblies, parts, strict=True)
        ]
        for put_away in ready:
            put_away()
        self.done = number + 1  # of all outputs, or of none

    def results(self) -> list[Any]:
        """Give the outputs in input order, in the user's framework."""
        pairs = zip(self.outputs, self.assemblies, strict=True)
        return [self._result(output, assembly) for output, assembly in pairs]

    def _result(self, output: _Output, assembly: Assembly) -> Any:
        flat = self._given_back(assembly.whole(self.indices))
        if not output.dims:
            return flat
        return Ragged.from_layout(flat, self.indices.sizes.layout(output.dims))

    def _places(self, number: int, one: _Input) -> tuple[Any, Any]:
        if self.blank and is_stand_in(one.values) and not one.fill:
            batch = self.plan.batches[number]
            capacity = self.indices.sizes.capacity(batch, one.dims)
            return Blank((len(batch.items), *capacity)), None
        straight = None
        if not self.apart:
            straight = self.indices.end_to_end(number, one.dims, one.layout, one.values)
        if straight is not None:
            return straight, None
        return self.indices.gather(number, one.dims, one.layout, one.values)

    def _input(self, column: Any, dims: tuple[str, ...], fill: Any) -> _Input:
        ragged = isinstance(column, Ragged)
        values = column.values if ragged else column
        xp = self.target.adapter.namespace(values)
        if values.shape[0]:
            fill = xp.asarray(fill, dtype=values.dtype, device=getattr(values, "device", None))
        return _Input(values, column.layout if ragged else None, dims, fill, xp)

    def _stage(self, column: Any) -> Any:
        def stage(array: Any) -> Any:
            if self.blank and is_stand_in(array):
                return array  # of no values, however large
            return self._staged(self._moved(array))

        return column.distinct().map_values(stage) if isinstance(column, Ragged) else stage(column)

    def _staged(self, array: Any) -> Any:
        """Put an array of the target, or of the host, where batches are gathered from it."""
        return self.target.adapter.stage(array, self.target.device)

    def _moved(self, array: Any) -> Any:
        """Give an array as the target can stage it: its own, or one on the host."""
        if self.source.same_as(self.target):
            return array
        if self.source.adapter.requires_grad(array) or self.source.adapter.is_traced(array):
            raise FrameworkError(
                f"{self.where}: on={self.target.adapter.name!r}, device='{self.target.device}' "
                "moves the data, which cuts the gradient that they require. Leave on= and device= "
                "out, or detach them first."
            )
        return self.source.adapter.to_host(array)

    def _given_back(self, array: Any) -> Any:
        adapter = self.target.adapter
        if self.source.same_as(self.target):
            return adapter.deliver(array, self.target.device)
        host = array if isinstance(array, np.ndarray) else adapter.to_host(array)
        return self.source.adapter.asarray(host, self.source.device)

    def _floating(self) -> Any:
        """Give a staged array of the data's floating dtype, or None."""
        arrays = [column.values if isinstance(column, Ragged) else column for column in self.staged]
        for kind in ("real floating", "complex floating"):
            for array in arrays:
                if namespace_of(array).isdtype(array.dtype, kind):
                    return array
        return None

    def padded_shape(self, output: _Output, batch: Batch) -> tuple[int, ...]:
        """Give the shape that an output of a batch has."""
        return self.indices.sizes.padded_shape(batch, output.dims, output.tail)

    def _check_shape(self, output: _Output, part: Any, expected: tuple[int, ...]) -> None:
        shape = getattr(part, "shape", None)
        if shape is not None and tuple(shape) == expected:
            return
        what = f"no array ({type(part).__name__})" if shape is None else f"shape {tuple(shape)}"
        raise DataError(
            f"{self.where}: {self.kernel.name} returned an output of {what} for a batch of "
            f"{expected[0]} rows; its signature ({','.join(map(str, output.core))}) wants "
            f"{expected}. A kernel broadcasts over leading dims, or is declared per_item=True."
        )


def with_catch_all(plan: Plan, kernel: Kernel, statics: StaticKey) -> Plan:
    """Add an empty batch of the catch-all slot, once: it is compiled before an item needs it."""
    last = len(plan.slots) - 1
    key = ("catch-all", kernel, statics)
    if key in plan.cache or any(batch.slot == last for batch in plan.batches):
        return plan
    plan.cache[key] = True
    slot = plan.slots[last]
    capacity = tuple(slot[dim] for dim in plan.dims)
    empty = empty_batch(plan.lengths, capacity, last, slot["rows"])
    return replace(plan, batches=(*plan.batches, empty))


def _with_bar(numbers: Sequence[int]) -> Iterable[int]:
    from tqdm import tqdm  # a third of the time that importing stowplan would take

    bar: Iterable[int] = tqdm(numbers, unit="batch")
    return bar


def _one_empty_batch(plan: Plan, compiles: bool) -> Plan:
    """Give a plan without items one batch of padding: its outputs have the right dtypes.

    Where shapes are compiled it takes the shape of a slot, which may have been compiled already.
    """
    slot = next((slot for slot in plan.slots if compiles and "rows" in slot), {})
    capacity = tuple(slot.get(dim, 1) for dim in plan.dims)
    empty = Batch(np.zeros(slot.get("rows", 1), np.intp), 0, capacity, 0)
    return replace(plan, batches=(empty,))
