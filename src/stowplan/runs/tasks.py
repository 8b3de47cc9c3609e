"""What goes to a worker and comes back: the call that all batches share, and blocks of NumPy."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_array_api_obj

from stowplan.adapters import framework_of, get_adapter
from stowplan.adapters.interface import as_tuple
from stowplan.declaration import Kernel
from stowplan.planners.batches import Plan
from stowplan.ragged import Ragged
from stowplan.runs.columns import Columns
from stowplan.runs.parts import Part
from stowplan.runs.places import Place
from stowplan.runs.segments import JoinedRows
from stowplan.runs.sending import loads
from stowplan.runs.shared import map_leaves

__all__ = [
    "Block",
    "Call",
    "Failure",
    "Outcome",
    "Sealed",
    "block_of",
    "compute",
    "host_columns",
    "to_host",
    "wrapped",
]

KEPT_CALLS = 8
"""Calls that a worker process keeps open, with the programs that were compiled for them."""


@dataclass(frozen=True, slots=True)
class Call:
    """What all batches of a run share: the kernel, and everything that is passed beside the data.

    Attributes
    ----------
    where : str
        "run" or "iterate".
    kernel : Kernel
    options : dict
        Other keywords of that function.
    shared : dict
        Shared parameters, with NumPy in place of arrays.
    source, target : (str, str)
        Framework and device of the data, and of the computation.
    settings : dict
        Of both frameworks, what the results depend on.
    process : int
        Of the caller.
    """

    where: str
    kernel: Kernel
    options: Mapping[str, Any]
    shared: Mapping[str, Any]
    source: tuple[str, str]
    target: tuple[str, str]
    settings: Mapping[str, Mapping[str, Any]]
    process: int = field(default_factory=os.getpid)

    @classmethod
    def make(
        cls,
        where: str,
        kernel: Kernel,
        source: Place,
        target: Place,
        shared: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Call:
        """Describe a call of ``run`` or ``iterate``."""
        adapters = {place.adapter.name: place.adapter for place in (source, target)}
        return cls(
            where,
            kernel,
            options,
            map_leaves(to_host, shared),
            (source.adapter.name, str(source.device)),
            (target.adapter.name, str(target.device)),
            {name: adapter.settings() for name, adapter in adapters.items()},
        )


@dataclass(frozen=True, slots=True)
class Sealed:
    """A call in bytes, or the file that holds them; a worker opens it once."""

    digest: str
    content: bytes | None = field(repr=False)
    path: str | None = None

    @classmethod
    def of(cls, content: bytes) -> Sealed:
        """Seal the bytes of a call."""
        return cls(hashlib.blake2b(content, digest_size=16).hexdigest(), content)

    def open(self) -> Call:
        """Give the call; the same one for every batch, so that nothing is compiled twice."""
        with _opening:
            if self.digest not in _opened:
                content = self.content if self.path is None else Path(self.path).read_bytes()
                assert content is not None
                _opened[self.digest] = loads(content)
                while len(_opened) > KEPT_CALLS:
                    _opened.popitem(last=False)
            _opened.move_to_end(self.digest)
            call: Call = _opened[self.digest]
            return call


_opened: OrderedDict[str, Call] = OrderedDict()
_opening = threading.Lock()


@dataclass(frozen=True, slots=True)
class Block:
    """One batch: the columns of its items in NumPy, and the plan of that batch alone."""

    data: Mapping[str, Any]
    plan: Plan


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outputs of a batch in NumPy, and what wraps them.

    ``kind`` is None for a bare output, [] for a tuple, and else module, name and fields of a
    NamedTuple.
    """

    outputs: list[Any]
    kind: list[str] | None


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a batch in bytes, since those that a pool cannot read break it."""

    error: bytes | None
    text: str
    trace: str

    def cause(self) -> BaseException:
        """Give the error, with the traceback of the worker as a note."""
        found = None
        if self.error is not None:
            try:
                found = loads(self.error)
            except Exception:  # noqa: BLE001  any class may refuse to be read back: its text is left
                found = None
        if not isinstance(found, BaseException):
            found = RuntimeError(self.text)
        found.add_note(f"In the worker:\n{self.trace}")
        return found


def host_columns(columns: Columns) -> Columns:
    """Give columns in NumPy."""
    return replace(
        columns,
        values=tuple(map(_column_to_host, columns.values)),
        segments={dim: ids.map_values(to_host) for dim, ids in columns.segments.items()},
    )


def block_of(part: Part) -> Block:
    """Give what a worker needs of a part; views are cut to the rows that they show."""
    return Block(part.data, replace(part.plan, packing=None))  # and its cache is empty


def compute(call: Call | Sealed, block: Block) -> Outcome | Failure:
    """Compute one batch in a worker."""
    try:
        opened = call.open() if isinstance(call, Sealed) else call
        return _computed(opened, block)
    except Exception as error:  # noqa: BLE001  it is raised where the caller is
        return _failure(error)


def _computed(call: Call, block: Block) -> Outcome:
    from stowplan.runs.execution import run
    from stowplan.runs.iteration import iterate

    if call.process != os.getpid():
        for name, settings in call.settings.items():
            get_adapter(name).adopt(settings)
    place = _placing(*call.source)
    data = _with_arrays(block.data, place)
    shared = map_leaves(lambda part: place(part) if is_array_api_obj(part) else part, call.shared)
    on, device = call.target
    given = {**call.options, **shared, "on": on, "device": device}
    if call.where == "run":
        found = run(call.kernel, data, block.plan, **given)
        return Outcome([_column_to_host(part) for part in as_tuple(found)], _kind(found))
    ended = iterate(call.kernel, data, block.plan, **given)
    outputs = [_column_to_host(part) for part in ended.values.values()]
    return Outcome([*outputs, ended.iterations, ended.converged, ended.failed], [])


def _placing(framework: str, device: str) -> Callable[[Any], Any]:
    """Give what puts host arrays where the caller had them."""
    adapter = get_adapter(framework)
    found = next((here for here in adapter.devices() if str(here) == device), None)
    if found is None:
        raise RuntimeError(
            f"the data are on {device} of {framework}, which this worker has not; it has "
            f"{', '.join(map(str, adapter.devices()))}. Bring the data to one that all have."
        )
    return lambda array: adapter.asarray(np.asarray(array), found)


def _with_arrays(data: Mapping[str, Any], place: Callable[[Any], Any]) -> Mapping[str, Any]:
    columns = {
        name: column.map_values(place) if isinstance(column, Ragged) else place(column)
        for name, column in data.items()
    }
    if type(data) is dict:
        return columns
    assert isinstance(data, JoinedRows)
    segments = {dim: ids.map_values(place) for dim, ids in data.segments.items()}
    return replace(data, columns=columns, segments=segments)


def to_host(array: Any) -> Any:
    """Give an array of any framework as NumPy; what is none as it is."""
    if not is_array_api_obj(array) or isinstance(array, np.ndarray | np.generic):
        return array
    return np.asarray(get_adapter(framework_of([array]) or "numpy").to_host(array))


def _column_to_host(column: Any) -> Any:
    return column.map_values(to_host) if isinstance(column, Ragged) else to_host(column)


def _kind(found: Any) -> list[str] | None:
    if not isinstance(found, tuple):
        return None
    if not hasattr(found, "_fields"):
        return []
    kind = type(found)
    return [kind.__module__, kind.__qualname__, *found._fields]


def _failure(error: Exception) -> Failure:
    try:
        content: bytes | None = pickle.dumps(error)
    except Exception:  # noqa: BLE001  an error of any class may refuse to be written: its text is left
        content = None
    text = f"{type(error).__name__}: {error}"
    return Failure(content, text, "".join(traceback.format_exception(error)))


def wrapped(outputs: Sequence[Any], kind: Sequence[str] | None) -> Any:
    """Wrap outputs as the kernel did: bare, a tuple, or its NamedTuple if that can be found."""
    if kind is None:
        return outputs[0]
    if not kind:
        return tuple(outputs)
    module, name, *fields = kind
    try:
        found: Any = reduce(getattr, name.split("."), sys.modules[module])
    except (KeyError, AttributeError):  # made in a function, or of a module not imported here
        found = None
    if getattr(found, "_fields", None) != tuple(fields):
        made: Any = NamedTuple
        found = made(name.rpartition(".")[2], [(field, Any) for field in fields])
    return found(*outputs)
