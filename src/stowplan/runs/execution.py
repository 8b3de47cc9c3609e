"""``sp.run``: one loop over the batches of a plan, on any framework."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj
from numpy.typing import NDArray
from tqdm import tqdm

from stowplan.adapters import Adapter
from stowplan.adapters.interface import as_tuple
from stowplan.declaration import Kernel
from stowplan.errors import DataError, FrameworkError, PlanError
from stowplan.gather import gather, select
from stowplan.planners.batches import Batch, Plan
from stowplan.ragged import Layout, Ragged
from stowplan.runs.columns import Columns, bind
from stowplan.runs.indices import Indices
from stowplan.runs.places import Place, find_places
from stowplan.runs.planning import plan_columns
from stowplan.signature import CoreShape

__all__ = ["Job", "check_shared", "check_sizes", "leaves", "run"]


def run(
    kernel: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    plan: Plan | None = None,
    *,
    on: str | None = None,
    device: Any = None,
    rows: int | None = None,
    progress: bool = False,
    compile: bool = False,
    **shared: Any,
) -> Any:
    """Evaluate a kernel on every item, batch by batch, and give the results in input order.

    Parameters
    ----------
    kernel
        A function declared with ``@kernel``.
    data
        One column per positional parameter: Ragged, array with items on axis 0, list of arrays, or
        Arrow column; all of one framework, on one device.
    plan
        From ``sp.plan``, for data of these sizes; made with the defaults where it is missing.
    on, device
        Framework and device to compute on; those of the data by default.
    rows
        Rows of a batch, where no plan is given.
    progress
        Show a progress bar over batches.
    compile
        torch only: one compiled graph per padded shape.
    **shared
        The kernel's keyword-only parameters. Numbers and arrays are traced; a name in the kernel's
        ``static=`` selects code instead.

    Returns
    -------
    array, Ragged or tuple of them
        In the framework, on the device and in the dtype of the data. In JAX and torch they are
        differentiable with respect to the data and the shared parameters.

    Raises
    ------
    DataError
        Columns that are missing or disagree, shared parameters that are missing or unknown.
    FrameworkError
        Two frameworks in one call, or a dtype, device or gradient that would be lost.
    PlanError
        A plan for data of other sizes.

    Examples
    --------
    >>> import stowplan as sp
    >>> @sp.kernel("(points)->()", ragged="points", fill={"x": 0.0})
    ... def total(x, *, scale):
    ...     return scale * x.sum(axis=-1)
    >>> sp.run(total, {"x": [[1.0, 2.0], [5.0]]}, scale=2.0).tolist()
    [6.0, 10.0]
    """
    columns = bind("run", kernel, data)
    statics, traced = check_shared("run", kernel, shared)
    arrays = [*columns.arrays, *leaves(traced)]
    source, target = find_places("run", arrays, on, device)
    if plan is None:
        plan = plan_columns("run", kernel, columns, target, rows=rows)
    elif rows is not None:
        raise PlanError(
            "run: give rows= while planning, sp.plan(..., rows=...), or leave out the plan."
        )
    check_sizes("run", kernel, columns, plan)
    _refuse(target.adapter, arrays, progress=progress, compile=compile)
    job = Job("run", kernel, columns, plan, source, target)
    return job.execute(job.computation(statics, traced, compile=compile), progress=progress)


def check_shared(
    where: str, kernel: Kernel, shared: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split shared parameters, defaults filled in, into static ones and traced ones."""
    unknown = [name for name in shared if name not in kernel.shared]
    missing = [name for name in kernel.shared if name not in shared and name not in kernel.defaults]
    if unknown or missing:
        what = f"has no shared parameter {unknown[0]!r}" if unknown else f"needs {missing[0]}=..."
        known = ", ".join(kernel.shared) or "none"
        raise DataError(f"{where}: {kernel.name} {what}; its shared parameters are: {known}.")
    values = {
        **{name: kernel.defaults[name] for name in kernel.shared if name in kernel.defaults},
        **shared,
    }
    statics = {name: value for name, value in values.items() if name in kernel.static}
    for name, value in statics.items():
        try:
            hash(value)
        except TypeError:
            raise DataError(
                f"{where}: {kernel.name}: {name}={value!r} is static, so it must be hashable."
            ) from None
    return statics, {name: value for name, value in values.items() if name not in kernel.static}


def check_sizes(where: str, kernel: Kernel, columns: Columns, plan: Plan) -> None:
    """Refuse a plan made for other sizes, naming the first item that differs."""
    if plan.dims != kernel.ragged:
        raise PlanError(
            f"{where}: the plan is for dims ({', '.join(plan.dims)}), {kernel.name} has "
            f"({', '.join(kernel.ragged)}). Make one with sp.plan({kernel.name}, data)."
        )
    if len(plan.lengths) != columns.items:
        raise PlanError(
            f"{where}: the plan is for {len(plan.lengths)} items, the data have {columns.items}. "
            f"Keep its slots for other data: sp.plan({kernel.name}, data, slots=plan.slots)."
        )
    if not plan.dims or not columns.items:
        return
    given = np.stack([columns.lengths[dim] for dim in plan.dims], axis=1)
    differs = (plan.lengths != given).any(axis=1)
    if differs.any():
        item = int(np.argmax(differs))
        sizes, planned = (
            ", ".join(f"{dim}={length}" for dim, length in zip(plan.dims, row, strict=True))
            for row in (given[item].tolist(), plan.lengths[item].tolist())
        )
        raise PlanError(
            f"{where}: the plan is for other sizes: {int(differs.sum())} of {columns.items} "
            "items differ. "
            f"Item {item} has {sizes} in the data and {planned} in the plan. Keep its slots "
            "for other "
            f"data: sp.plan({kernel.name}, data, slots=plan.slots)."
        )


def _refuse(adapter: Adapter, arrays: Sequence[Any], *, progress: bool, compile: bool) -> None:
    if progress and any(is_array_api_obj(array) and adapter.is_traced(array) for array in arrays):
        raise FrameworkError(
            "run: progress=True needs values, which a traced function does not have."
        )
    if compile and adapter.name not in ("torch", "jax"):
        raise FrameworkError(
            f"run: compile=True needs torch or JAX; {adapter.name} has no compiler."
        )


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
    """One run: staged columns, the plan's index arrays, and the parts of the results."""

    def __init__(
        self,
        where: str,
        kernel: Kernel,
        columns: Columns,
        plan: Plan,
        source: Place,
        target: Place,
    ) -> None:
        self.where = where
        self.kernel = kernel
        self.columns = columns
        self.source = source
        self.target = target
        self.plan = plan if plan.batches else _one_empty_batch(plan)
        self.indices = Indices(self.plan, kernel, target.adapter, columns.fixed)
        self.staged = [self._stage(column) for column in columns.values]
        first = self.staged[0]
        self.first = first.values if isinstance(first, Ragged) else first
        self.inputs = [
            self._input(name, column, kernel.ragged_dims(core))
            for name, column, core in zip(
                kernel.arguments, self.staged, kernel.signature.inputs, strict=True
            )
        ]
        self.located = self.indices.located([(one.values, one.layout) for one in self.inputs])
        self.outputs = [
            _Output(core, kernel.ragged_dims(core), self.indices.sizes.tail(core))
            for core in kernel.signature.outputs
        ]
        self.parts: list[list[Any]] = [[] for _ in self.outputs]
        self.wrapped: Callable[[Sequence[Any]], Any] = tuple
        self._type: type | None = None
        self._xp: Any = None  # namespace of that type

    def shared(self, value: Any) -> Any:
        """Bring a shared number or array to where the batches are."""
        if value is None:
            return None
        number = isinstance(value, np.ndarray) and value.ndim == 0
        if number or isinstance(value, bool | int | float | complex | np.generic):
            return self.number(np.asarray(value))
        if is_array_api_obj(value):
            array = self.target.adapter.stage(self._moved(value), self.target.device)
            return self._scalar(array) if array.ndim == 0 else array
        raise DataError(
            f"{self.where}: {self.kernel.name}: a shared value of type {type(value).__name__} "
            "is neither number "
            "nor array; a parameter that selects code is declared with static=."
        )

    def number(self, value: NDArray[Any]) -> Any:
        """Give a number in the floating dtype of the data, so that its type is no compile key."""
        like = self._floating()
        if like is None or value.dtype.kind == "b":
            return self.target.adapter.number(value, self.first, None)
        dtype = like.dtype
        if value.dtype.kind == "c" and array_namespace(like).isdtype(dtype, "real floating"):
            dtype = (like[:0] * 1j).dtype
        return self.target.adapter.number(value, like, dtype)

    def _scalar(self, array: Any) -> Any:
        """Give a 0-d array in the floating dtype of the data, its gradient kept."""
        if isinstance(array, np.ndarray):
            return self.number(array)
        xp, like = array_namespace(array), self._floating()
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
        shared = _map_leaves(self.shared, traced)

        def compute(number: int) -> Any:
            arguments, masks = self.gather(number)
            if self.plan.batches[number].count:
                return function(arguments, masks, shared)
            with np.errstate(all="ignore"):  # nothing but padding: whatever comes out is dropped
                return function(arguments, masks, shared)

        return compute

    def execute(self, compute: Callable[[int], Any], *, progress: bool) -> Any:
        """Compute every batch; if compiled, one is in flight while the last one's rows are kept."""
        in_flight = 1 if self.target.adapter.compiles else 0
        waiting: deque[tuple[int, Any]] = deque()
        numbers = range(len(self.plan.batches))
        for number in tqdm(numbers, unit="batch") if progress else numbers:
            waiting.append((number, compute(number)))
            if len(waiting) > in_flight:
                self.scatter(*waiting.popleft())
        while waiting:
            self.scatter(*waiting.popleft())
        results = [
            self.result(output, parts)
            for output, parts in zip(self.outputs, self.parts, strict=True)
        ]
        return self.wrapped(results)

    def gather(self, number: int) -> tuple[list[Any], dict[str, Any] | None]:
        """Give the padded arguments of a batch, and its masks if the kernel takes them."""
        if number not in self.located:
            self.located[number] = (
                [
                    self.indices.gather(number, one.dims, one.layout, one.values)
                    for one in self.inputs
                ],
                self.indices.masks(number, self.first) if self.kernel.takes_mask else None,
            )
        indices, masks = self.located[number]
        arguments = [
            gather(one.values, index, inside, one.fill, one.xp)
            for one, (index, inside) in zip(self.inputs, indices, strict=True)
        ]
        return arguments, masks

    def scatter(self, number: int, outputs: Any) -> None:
        """Keep the real rows of the outputs of a batch."""
        batch = self.plan.batches[number]
        parts = as_tuple(outputs)
        if len(parts) != len(self.outputs):
            raise DataError(
                f"{self.where}: {self.kernel.name} returned {len(parts)} outputs, its "
                f"signature has {len(self.outputs)}."
            )
        if not isinstance(outputs, tuple):
            self.wrapped = lambda results: results[0]
        elif hasattr(outputs, "_fields"):
            self.wrapped = lambda results: type(outputs)(*results)
        for output, part, kept in zip(self.outputs, parts, self.parts, strict=True):
            self._check_shape(output, part, batch)
            part = self.target.adapter.collect(part, self.first)
            key = (number, output.dims, type(part))
            if key not in self.located:
                self.located[key] = self.indices.places(number, output.dims, part)
            if type(part) is not self._type:
                self._type, self._xp = type(part), self.target.adapter.namespace(part)
            kept.append(select(part, self.located[key], len(output.dims), self._xp))

    def result(self, output: _Output, parts: Sequence[Any]) -> Any:
        """Put the rows of one output into input order and give them back to the user's "
        "framework.
        """
        xp = self.target.adapter.namespace(parts[0])
        flat = parts[0] if len(parts) == 1 else xp.concat(list(parts), axis=0)
        order = self.indices.order(output.dims, flat)
        if order is not None:
            flat = xp.take(flat, order, axis=0)
        flat = self._given_back(flat)
        return (
            Ragged.from_layout(flat, self.indices.sizes.layout(output.dims))
            if output.dims
            else flat
        )

    def _input(self, name: str, column: Any, dims: tuple[str, ...]) -> _Input:
        ragged = isinstance(column, Ragged)
        values = column.values if ragged else column
        xp = self.target.adapter.namespace(values)
        fill = self.kernel.fill.get(name, 0)
        if values.shape[0]:
            fill = xp.asarray(fill, dtype=values.dtype, device=getattr(values, "device", None))
        return _Input(values, column.layout if ragged else None, dims, fill, xp)

    def _stage(self, column: Any) -> Any:
        def stage(array: Any) -> Any:
            return self.target.adapter.stage(self._moved(array), self.target.device)

        if not isinstance(column, Ragged):
            return stage(column)
        return (
            column.map_values(stage)
            if column.layout.contiguous
            else column.distinct().map_values(stage)
        )

    def _moved(self, array: Any) -> Any:
        """Move an array of the source to the target's framework and device."""
        if self.source.same_as(self.target):
            return array
        if self.source.adapter.requires_grad(array) or self.source.adapter.is_traced(array):
            raise FrameworkError(
                f"{self.where}: on={self.target.adapter.name!r}, "
                f"device={str(self.target.device)!r} moves the data, "
                "which cuts the gradient that they require. Leave on= and device= out, or "
                "detach them first."
            )
        host = self.source.adapter.to_host(array)
        if self.target.adapter.name == "jax":
            return host  # gathered on the host; checked for x64 when staged
        return self.target.adapter.asarray(host, self.target.device)

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
                if array_namespace(array).isdtype(array.dtype, kind):
                    return array
        return None

    def _check_shape(self, output: _Output, part: Any, batch: Batch) -> None:
        expected = (
            len(batch.items),
            *self.indices.sizes.capacity(batch, output.dims),
            *output.tail,
        )
        shape = getattr(part, "shape", None)
        if shape is not None and tuple(shape) == expected:
            return
        what = f"no array ({type(part).__name__})" if shape is None else f"shape {tuple(shape)}"
        raise DataError(
            f"{self.where}: {self.kernel.name} returned an output of {what} for a batch of "
            f"{len(batch.items)} rows; its signature ({','.join(map(str, output.core))}) wants "
            f"{expected}. "
            "A kernel broadcasts over leading dims, or is declared per_item=True."
        )


def _one_empty_batch(plan: Plan) -> Plan:
    """Give a plan without items one batch of padding: its outputs have the right dtypes."""
    empty = Batch(np.zeros(1, np.intp), 0, (1,) * len(plan.dims), 0)
    return replace(plan, batches=(empty,))


def leaves(value: Any) -> Iterable[Any]:
    """Give the parts of nested shared parameters, numbers left out that any framework takes."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    elif not isinstance(value, np.generic) and not (
        isinstance(value, np.ndarray) and value.ndim == 0
    ):
        yield value


def _map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _map_leaves(function, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_map_leaves(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return function(value)
