"""Fields that are added until done: on the device, in host memory, on disk, and run in batches."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from types import MethodType
from typing import Any, Self

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from stowplan.adapters import framework_of, get_adapter
from stowplan.adapters.interface import as_tuple
from stowplan.declaration import Kernel, kernel
from stowplan.errors import BudgetError, DataError, FrameworkError
from stowplan.host_memory import free_host_bytes
from stowplan.memory import Budget, resolve_budget, show_bytes
from stowplan.planners.batches import Plan
from stowplan.ragged import Ragged
from stowplan.runs.budgeting import MemoryRequest
from stowplan.runs.columns import bind
from stowplan.runs.engine import saved_plan
from stowplan.runs.execution import run
from stowplan.runs.field_stacks import FieldStack, HeldField
from stowplan.runs.places import Place, find_places
from stowplan.runs.planning import plan_columns
from stowplan.runs.shared import check_shared
from stowplan.runs.side_by_side import map_results
from stowplan.stores.arrays import is_stored, open_column
from stowplan.stores.listing import list_arrays
from stowplan.stores.scratch import Scratch

__all__ = ["FieldBatch", "FieldUsage"]

TIERS = ("device", "host", "disk")
ROOM_SHARE = 4
"""Part of a budget that is left to batches, unless less is what a cache likes."""
LOOSE_PARTS, PAGE_BYTES = 100, 4096
"""Part of a budget that fields do not fill, in pages: each takes whole ones, and objects beside."""


@dataclass(frozen=True, slots=True)
class FieldUsage:
    """What a `FieldBatch` holds, and what it has moved.

    Attributes
    ----------
    fields, bytes : dict of str to int
        By tier: "device", "host" and "disk".
    budget : Budget
        Most bytes on the device.
    utilisation : float
        Bytes on the device over the budget.
    loads, loaded_bytes : int
        Fields that runs read from a slower tier, and their bytes.
    evictions, evicted_bytes : int
        Fields that were moved to a slower tier after they were added.
    """

    fields: dict[str, int]
    bytes: dict[str, int]
    budget: Budget
    utilisation: float
    loads: int
    loaded_bytes: int
    evictions: int
    evicted_bytes: int

    def __str__(self) -> str:
        tiers = ", ".join(
            f"{self.fields[tier]} on the {tier} ({show_bytes(self.bytes[tier])})"
            for tier in TIERS
            if self.fields[tier]
        )
        return (
            f"fields {tiers or 'none'}; budget {self.budget}, {100 * self.utilisation:.0f} % used; "
            f"{self.loads} loads ({show_bytes(self.loaded_bytes)}), {self.evictions} evictions"
        )


class FieldBatch:
    """Fields of one shape that are collected, whatever they take, and computed in batches.

    A field stays on the device while all of them fit the budget, a hundredth of which is left to
    pages, else in host memory, else in a file. On a CPU, where both are one memory, it stays there
    or goes to a file.

    Parameters
    ----------
    fields : optional
        First ones: a list or another iterable of them, see `add`; or what is on disk, a path of one
        field, a pattern such as ``"run/*.npy"``, a folder of ``.npy`` files, a zarr group.
    budget
        Most bytes on the device: fields, and the batches of a run. Bytes, text or a share of what
        is free; 0.8 by default.
    host_budget
        Most bytes of fields in host memory beside a GPU; half of what is free by default.
    on, device
        Framework and device to compute on; those of the first field by default.
    scratch
        Folder of spilled fields: a path, ``"default"`` for ``STOWPLAN_SCRATCH`` or the system's, or
        None, which forbids files.

    Attributes
    ----------
    plan : Plan or None
        That of the last run.

    Examples
    --------
    >>> import numpy as np
    >>> with FieldBatch(budget="64 MiB") as batch:
    ...     for number in range(3):
    ...         batch.add(np.full((4, 4), float(number)))
    ...     batch.run(lambda fields: fields.sum(axis=(1, 2))).tolist()
    [0.0, 16.0, 32.0]
    """

    def __init__(
        self,
        fields: Iterable[Any] = (),
        *,
        budget: float | str | None = None,
        host_budget: float | str = 0.5,
        on: str | None = None,
        device: Any = None,
        scratch: str | PathLike[str] | None = "default",
    ) -> None:
        self._budget_given = budget
        self._host_given = host_budget
        self._on = on
        self._device = device
        self._scratch_given = scratch
        self._scratch: Scratch | None = None
        self._fields: list[HeldField] = []
        self._declared: _Declared | None = None
        self._place: tuple[Place, Place] | None = None
        self._budget: Budget | None = None
        self._host_budget: Budget | None = None
        self._runs = 0
        self.plan: Plan | None = None
        self.loads = self.loaded_bytes = self.evictions = self.evicted_bytes = 0
        if isinstance(fields, str | PathLike) or is_stored(fields):
            fields, _ = list_arrays(fields, "FieldBatch")
        for field in fields:
            self.add(field)

    def __len__(self) -> int:
        return len(self._fields)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, field: Any) -> None:
        """Add one field.

        Parameters
        ----------
        field
            An array of any framework, which is copied; or one outside of memory, which is read when
            it is needed: a path (``.npy``, ``.zarr``, ``.h5::dataset``), a memory map, an array of
            zarr or h5py, an object with `shape` and `__getitem__`.

        Raises
        ------
        DataError
            For what is no array, for a masked one, and for a dtype that the other fields have not.
        BudgetError
            For a field that fits nowhere.
        """
        number = len(self._fields)
        if is_stored(field):
            opened = open_column(field, f"FieldBatch.add: field {number}")
            if isinstance(opened, Ragged):
                raise DataError(
                    f"FieldBatch.add: field {number} is a list of fields of several shapes. Add "
                    "them one by one."
                )
            self._check(opened.shape, opened.dtype)
            self._fields.append(HeldField(opened.shape, opened.dtype, "disk", opened))
            return
        if not is_array_api_obj(field) or not getattr(field, "ndim", 0):
            raise DataError(
                f"FieldBatch.add: field {number} is a {type(field).__name__}; give an array with "
                "at least one axis, or a path."
            )
        if isinstance(field, np.ma.MaskedArray):
            raise DataError(
                f"FieldBatch.add: field {number} is a masked array, whose mask is not kept. Say "
                "what stands there: batch.add(field.filled(0))."
            )
        adapter = get_adapter(framework_of([field]) or "numpy")
        if adapter.is_traced(field) or adapter.requires_grad(field):
            why = (
                "is traced (jit, grad, vmap)" if adapter.is_traced(field) else "requires a gradient"
            )
            raise FrameworkError(
                f"FieldBatch.add: field {number} {why}, which is not followed here. Detach it, or "
                "run the kernel outside of the trace."
            )
        try:
            dtype = np.dtype(str(field.dtype).rpartition(".")[2]).newbyteorder("=")
        except TypeError:
            raise DataError(
                f"FieldBatch.add: field {number} has dtype {field.dtype}, which no file of NumPy "
                "holds. Convert it first."
            ) from None
        self._check(tuple(field.shape), dtype)
        self._put(field, tuple(field.shape), dtype)

    def run(
        self,
        function: Any,
        *,
        out: Any = None,
        overwrite: bool = False,
        resume: str | PathLike[str] | None = None,
        progress: bool = False,
        **shared: Any,
    ) -> Any:
        """Compute all fields, in batches as large as the budget allows.

        Parameters
        ----------
        function
            A kernel of one column; or a plain function of stacked arrays, ``(rows, *shape)`` to
            ``(rows, ...)``, in the framework of the batch. What a batch of it takes is found out
            with one field.
        out, overwrite, resume, progress
            See `run`. Without `out`, results that do not fit the budget go to the folder of spilled
            fields, and are there until the batch is closed.
        **shared
            What a kernel shares; a plain function takes none.

        Returns
        -------
        array, Ragged or tuple of them
            One entry for each field, in the order in which they were added; those on disk are
            StoredArray.

        Raises
        ------
        DataError
            For a batch without fields, for fields of several shapes where one is needed, and for a
            plain function that does not give one entry for each field.
        BudgetError
            Where one field is more than the budget holds.
        """
        if not self._fields:
            raise DataError("FieldBatch.run: there are no fields. Add some: batch.add(field).")
        target = self._places()[1]
        plain = None if isinstance(function, Kernel) else self._plain(function, shared)
        declared = function if plain is None else plain.kernel
        if len(declared.arguments) != 1:
            raise DataError(
                f"FieldBatch.run: {declared.name} takes {len(declared.arguments)} columns, a field "
                "is one. Use sp.run for others."
            )
        ragged = len(declared.ragged_dims(declared.signature.inputs[0]))
        column = FieldStack(self._fields, ragged, self._count_load).column()
        data = {declared.arguments[0]: column}
        self.plan, out = self._planned(declared, data, target, shared, out, resume)
        found = run(
            declared, data, self.plan, on=target.adapter.name, device=target.device, out=out,
            overwrite=overwrite, resume=resume, progress=progress, **shared,
        )  # fmt: skip
        return map_results(self._given_back, found)

    def usage(self) -> FieldUsage:
        """Say what is where, and what was moved."""
        budget = self._limit()
        sizes = dict.fromkeys(TIERS, 0)
        counts = dict.fromkeys(TIERS, 0)
        for field in self._fields:
            sizes[field.tier] += field.bytes
            counts[field.tier] += 1
        return FieldUsage(
            counts, sizes, budget, sizes["device"] / budget.bytes, self.loads, self.loaded_bytes,
            self.evictions, self.evicted_bytes,
        )  # fmt: skip

    def clear(self) -> None:
        """Let go of all fields; others can be added."""
        for field in self._fields:
            if field.own and self._scratch is not None:
                self._scratch.remove(field.value)
        self._fields.clear()
        self._declared = self._place = self._budget = None

    def close(self) -> None:
        """Let go of all fields and remove their files."""
        self.clear()
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def _places(self, field: Any = None) -> tuple[Place, Place]:
        """Say where fields are and where they are computed: by the first one, or as asked."""
        if self._place is not None:
            return self._place
        arrays = [field] if field is not None else [f.value for f in self._fields if f.held]
        places = find_places("FieldBatch", arrays[:1], self._on, self._device)
        if arrays or self._fields:  # else the first field is yet to come
            self._place = places
        return places

    def _limit(self) -> Budget:
        """Give the budget of the device, as it was when it was first asked for."""
        if self._budget is not None:
            return self._budget
        target = self._places()[1]
        budget = resolve_budget(
            self._budget_given, lambda: target.free_bytes("FieldBatch"), "FieldBatch",
            device=str(target.device),
        )  # fmt: skip
        if self._place is not None:
            self._budget = budget
        return budget

    def _check(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Refuse a field of another dtype than the first, and one without values."""
        number = len(self._fields)
        if 0 in shape:
            raise DataError(f"FieldBatch.add: field {number} has shape {shape}, and no values.")
        if self._fields and dtype != self._fields[0].dtype:
            raise DataError(
                f"FieldBatch.add: field {number} has dtype {dtype}, field 0 has "
                f"{self._fields[0].dtype}. Convert it first."
            )

    def _held(self, tier: str) -> int:
        return sum(field.bytes for field in self._fields if field.tier == tier)

    def _put(self, field: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Copy an array to the fastest tier that has room for it."""
        if isinstance(field, np.ndarray):
            field = field.astype(dtype, copy=False)  # in the byte order of the machine
        source, target = self._places(field)
        own = get_adapter(framework_of([field]) or "numpy")
        size = math.prod(shape) * dtype.itemsize
        limit = self._limit()
        loose = limit.bytes // LOOSE_PARTS // PAGE_BYTES * PAGE_BYTES
        if self._held("device") + size <= limit.bytes - loose:
            host = own is not target.adapter or not source.same_as(target)
            kept = target.adapter.asarray(own.to_host(field), target.device) if host else field
            kept = array_namespace(kept).asarray(kept, copy=True)
            self._fields.append(HeldField(shape, dtype, "device", kept))
            return
        values = np.asarray(own.to_host(field))
        if self._beside() and self._held("host") + size <= self._host_limit().bytes:
            self._fields.append(HeldField(shape, dtype, "host", values.copy()))
            return
        what = f"field {len(self._fields)} of {show_bytes(size)}"
        self._fields.append(
            HeldField(shape, dtype, "disk", self._files(what).save(values), own=True)
        )

    def _beside(self) -> bool:
        """Whether the host has a memory of its own beside that of the device."""
        target = self._places()[1]
        return target.adapter.kind_of(target.device) != "cpu"

    def _host_limit(self) -> Budget:
        if self._host_budget is None:
            self._host_budget = resolve_budget(
                self._host_given, free_host_bytes, "FieldBatch: host_budget"
            )
        return self._host_budget

    def _files(self, what: str) -> Scratch:
        """Give the folder of spilled fields, unless files are forbidden."""
        if self._scratch_given is None:
            raise BudgetError(
                f"FieldBatch: {what} does not fit beside {show_bytes(self._held('device'))} in the "
                f"budget of {self._limit()}, and scratch=None forbids files. Raise budget=, name a "
                "folder, scratch='folder', or name the output: out='results.npy'."
            )
        if self._scratch is None:
            folder = None if self._scratch_given == "default" else self._scratch_given
            self._scratch = Scratch(folder, "FieldBatch")
        return self._scratch

    def _evict(self) -> bool:
        """Move the last field that is on the device to a slower tier; False if there is none.

        Fields are read in turn, so that the first ones stay: each run then reads what it must.
        """
        for field in reversed(self._fields):
            if field.tier == "device":
                break
        else:
            return False
        host = np.asarray(self._places()[1].adapter.to_host(field.value))
        if self._beside() and self._held("host") + field.bytes <= self._host_limit().bytes:
            field.value, field.tier = host.copy(), "host"
        else:
            field.value = self._files(f"a field of {show_bytes(field.bytes)}").save(host)
            field.tier, field.own = "disk", True
        self.evictions += 1
        self.evicted_bytes += field.bytes
        return True

    def _count_load(self, field: HeldField) -> None:
        if field.tier != "device":
            self.loads += 1
            self.loaded_bytes += field.bytes

    def _planned(
        self,
        declared: Kernel,
        data: Mapping[str, Any],
        target: Place,
        shared: Mapping[str, Any],
        out: Any,
        resume: str | PathLike[str] | None,
    ) -> tuple[Plan, Any]:
        """Plan beside what stays on the device; what leaves no room for a batch goes.

        A run that goes on keeps its plan, as long as that fits the budget.
        """
        budget = self._limit().bytes
        saved = saved_plan(resume)
        if saved is not None and saved.memory is not None:
            peak = saved.memory.peak_bytes or 0
            while peak <= budget and budget - self._held("device") < peak and self._evict():
                pass
            if budget - self._held("device") >= peak:
                return saved, out
        room = min(target.adapter.batch_bytes(target.device), budget // ROOM_SHARE)
        while budget - self._held("device") < room and self._evict():
            pass
        while True:
            left = budget - self._held("device")
            try:
                return self._plan(declared, data, target, shared, left, out), out
            except BudgetError as error:
                refusal = error
            if out is None and resume is None:
                try:
                    made = self._plan(declared, data, target, shared, left, "disk")
                except BudgetError as error:
                    refusal = error
                else:
                    return made, self._result_files(declared)
            if not self._evict():
                if out is None and resume is not None:
                    raise BudgetError(
                        f"{refusal} With resume= results without a file are kept in memory: name "
                        "one, out='results.npy'."
                    ) from None
                raise refusal from None

    def _plan(
        self,
        declared: Kernel,
        data: Mapping[str, Any],
        target: Place,
        shared: Mapping[str, Any],
        left: int,
        out: Any,
    ) -> Plan:
        if left < 1:
            raise BudgetError(f"FieldBatch.run: nothing is left of {self._limit()}.")
        where = "FieldBatch.run"
        columns = bind(where, declared, data, on_disk=True)
        statics, traced = check_shared(where, declared, shared)
        source = find_places(where, [], None, None)[0]
        memory = MemoryRequest(left, None, False, statics, traced)
        return plan_columns(
            where, declared, columns, source, target, memory, keep=out is None, fill=True
        )

    def _given_back(self, result: Any) -> Any:
        """Bring results to where the fields are; what is on disk stays there."""
        source = self._places()[0]
        if not isinstance(result, np.ndarray):
            return result
        return source.adapter.asarray(result, source.device)

    def _result_files(self, declared: Kernel) -> list[str]:
        """Name files for results among those of spilled fields."""
        folder = self._files("the results of a run").folder
        self._runs += 1
        count = len(declared.signature.outputs)
        return [str(folder / f"results-{self._runs}-{place}.npy") for place in range(count)]

    def _plain(self, function: Callable[[Any], Any], shared: Mapping[str, Any]) -> _Declared:
        """Declare a plain function of stacked fields, after it was called with one of them."""
        if not callable(function):
            raise DataError(
                f"FieldBatch.run: {function!r} is no function; give a kernel, or a function of "
                "stacked fields (rows, *shape)."
            )
        if shared:
            given = ", ".join(f"{name}=" for name in shared)
            raise DataError(
                f"FieldBatch.run: {_name(function)} is a plain function, which takes the stacked "
                f"fields alone; {given} is given. Bind it, functools.partial(function, "
                f"{next(iter(shared))}=...), or declare a kernel: @sp.kernel(...)."
            )
        shapes = {field.shape for field in self._fields}
        if len(shapes) > 1:
            other = next(n for n, f in enumerate(self._fields) if f.shape != self._fields[0].shape)
            raise DataError(
                f"FieldBatch.run: field {other} has shape {self._fields[other].shape}, field 0 "
                f"{self._fields[0].shape}; a function of stacked fields needs one shape. Declare a "
                "kernel with exact= dims, or take one batch for each shape."
            )
        if self._declared is None or not self._declared.is_of(function):
            self._declared = None  # what it encloses may be large
            self._declared = _Declared(function, self._signature(function))
        return self._declared

    def _signature(self, function: Callable[[Any], Any]) -> str:
        """Give the signature of a function of stacked fields, from what it gives for one."""
        target = self._places()[1]
        first = self._fields[0]
        need = 3 * first.bytes  # the field, and about as much for what is made of it
        while self._held("device") + need > self._limit().bytes and self._evict():
            pass
        stack = target.adapter.asarray(FieldStack(self._fields, 0).read(0, 1), target.device)
        name, shape = _name(function), tuple(stack.shape)
        try:
            found = function(stack)
        except Exception as error:
            error.add_note(
                f"FieldBatch.run: {name} was called with field 0 alone, a stack {shape}, to see "
                "what it gives."
            )
            raise
        outputs = as_tuple(found)
        if not outputs:
            raise DataError(
                f"FieldBatch.run: {name} gave {found!r} for a stack {shape}; let it return an "
                "array, or a tuple of arrays."
            )
        for output in outputs:
            _check_output(name, shape, output)
        cores = [",".join(map(str, output.shape[1:])) for output in outputs]
        return f"({','.join(map(str, first.shape))})->" + ",".join(f"({core})" for core in cores)


class _Declared:
    """A plain function as a kernel, and let go of when this goes.

    Frameworks keep what they have called, so that the kernel has the function in a list, which is
    emptied then.
    """

    def __init__(self, function: Callable[[Any], Any], signature: str) -> None:
        self._held = held = [function]
        name = _name(function)

        def call(fields: Any) -> Any:
            found = held[0](fields)
            for output in as_tuple(found):
                _refuse_masked(name, output)
            return found

        call.__name__ = call.__qualname__ = name
        call.__module__ = getattr(function, "__module__", None) or __name__
        self.kernel = kernel(signature)(call)
        weakref.finalize(self, held.clear).atexit = False

    def is_of(self, function: Callable[[Any], Any]) -> bool:
        """Whether it is of this very function, or method of an object."""
        own = self._held[0]
        if isinstance(own, MethodType) and isinstance(function, MethodType):
            return own.__self__ is function.__self__ and own.__func__ is function.__func__
        return own is function


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _check_output(name: str, stack: tuple[int, ...], output: Any) -> None:
    """Refuse what is not one entry, with values, for the one field of a stack."""
    _refuse_masked(name, output)
    shape = tuple(getattr(output, "shape", ()))
    if not shape or shape[0] != 1:
        raise DataError(
            f"FieldBatch.run: {name} gave "
            f"{f'an array of shape {shape}' if shape else type(output).__name__} for a stack of 1 "
            f"field {stack}; each output has one entry for each field on its first axis."
        )
    if 0 in shape:
        raise DataError(
            f"FieldBatch.run: {name} gave an array of shape {shape} for a stack of 1 field "
            f"{stack}, and no values. Leave that output out, or give it values."
        )


def _refuse_masked(name: str, output: Any) -> None:
    if isinstance(output, np.ma.MaskedArray):
        raise DataError(
            f"FieldBatch.run: {name} gave a masked array, whose mask is not kept. Let it say what "
            "stands there: return result.filled(0)."
        )
