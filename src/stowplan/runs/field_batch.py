"""Fields that are added until done: on the device, in host memory, on disk, and run in batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj
from numpy.typing import NDArray

from stowplan.adapters import framework_of, get_adapter
from stowplan.declaration import Kernel, kernel
from stowplan.errors import BudgetError, DataError
from stowplan.host_memory import free_host_bytes
from stowplan.layout import Layout
from stowplan.memory import Budget, resolve_budget, show_bytes
from stowplan.ragged import Ragged
from stowplan.runs.places import Place, find_places
from stowplan.stores.arrays import is_stored, open_column
from stowplan.stores.scratch import Scratch
from stowplan.stores.stored import StoredArray

__all__ = ["FieldBatch", "FieldUsage"]

TIERS = ("device", "host", "disk")


@dataclass(slots=True)
class _Field:
    """One field, and where it is."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    tier: str
    value: Any  # an array of a framework, or a StoredArray
    own: bool  # whether it was spilled here, so that its file goes with it

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


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

    A field stays on the device while all of them fit the budget, else in host memory, else in a
    file. On a CPU, where both are one memory, it stays there or goes to a file.

    Parameters
    ----------
    fields : iterable, optional
        First ones, see `add`.
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
        self._fields: list[_Field] = []
        self._kernels: dict[Any, Kernel] = {}
        self._place: tuple[Place, Place] | None = None
        self._budget: Budget | None = None
        self._host_budget: Budget | None = None
        self.loads = self.loaded_bytes = self.evictions = self.evicted_bytes = 0
        if isinstance(fields, str | PathLike) or is_stored(fields):
            self._add_all_of(fields)
        else:
            for field in fields:
                self.add(field)

    def __len__(self) -> int:
        return len(self._fields)

    def __enter__(self) -> FieldBatch:
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
            For what is no array, and for a dtype that the other fields have not.
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
            self._check(number, opened.shape, opened.dtype)
            self._fields.append(_Field(opened.shape, opened.dtype, "disk", opened, own=False))
            return
        if not is_array_api_obj(field) or not getattr(field, "ndim", 0):
            raise DataError(
                f"FieldBatch.add: field {number} is a {type(field).__name__}; give an array with "
                "at least one axis, or a path."
            )
        self._settle(field)
        adapter = get_adapter(framework_of([field]) or "numpy")
        dtype = np.dtype(str(field.dtype).rpartition(".")[2])
        self._check(number, tuple(field.shape), dtype)
        size = math.prod(field.shape) * dtype.itemsize
        self._fields.append(self._placed(field, adapter, tuple(field.shape), dtype, size))

    def run(self, function: Any, *, out: Any = None, resume: Any = None, **options: Any) -> Any:
        """Compute all fields, in batches as large as the budget allows.

        Parameters
        ----------
        function
            A kernel of one column; or a plain function of stacked arrays, (rows, *shape) to (rows,
            ...), in the framework of the batch. What a batch of it takes is found out with one
            field.
        out, resume
            See `run`.
        **options
            ``progress=``, ``overwrite=``, ``compile=``, and what a kernel shares.

        Returns
        -------
        array, Ragged or tuple of them
            One entry for each field, in the order in which they were added.

        Raises
        ------
        DataError
            For a batch without fields, and for fields of several shapes where one is needed.
        BudgetError
            Where one field is more than the budget holds.
        """
        from stowplan.runs.execution import run
        from stowplan.runs.planning import plan

        if not self._fields:
            raise DataError("FieldBatch.run: there are no fields. Add some: batch.add(field).")
        self._settle(None)
        assert self._place is not None
        declared = function if isinstance(function, Kernel) else self._declared(function)
        (name,) = _one_column(declared)
        ragged = len(declared.ragged_dims(declared.signature.inputs[0]))
        column = _Stack(self._fields, ragged, self._count_load).column()
        target = self._place[1]
        shared = {key: value for key, value in options.items() if key not in RUN_OPTIONS}
        budget = self._room(declared, column, name, target, shared, out)
        made = plan(
            declared, {name: column}, on=target.adapter.name, device=target.device, budget=budget,
            fill=True, keep=out is None, **shared,
        )  # fmt: skip
        found = run(
            declared, {name: column}, made, on=target.adapter.name, device=target.device, out=out,
            resume=resume, **options,
        )  # fmt: skip
        return self._given_back(found)

    def usage(self) -> FieldUsage:
        """Say what is where, and what was moved."""
        budget = self._budget or resolve_budget(self._budget_given, free_host_bytes, "FieldBatch")
        sizes = {tier: 0 for tier in TIERS}
        counts = {tier: 0 for tier in TIERS}
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

    def close(self) -> None:
        """Let go of all fields and remove their files."""
        self.clear()
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None
