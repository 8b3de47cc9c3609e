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
from stowplan.runs.sending import dumps, loads
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
    "kind_of",
    "to_host",
    "wrapped",
]


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
    """A call in bytes: its functions, and the rest or the file that holds it.

    A worker opens either once. The functions of another call with the same kernel are the same
    objects there, so that nothing is compiled twice.
    """

    functions: bytes = field(repr=False)
    digest: str
    rest: bytes | None = field(repr=False)
    path: str | None = None

    @classmethod
    def of(cls, call: Call) -> Sealed:
        """Put a call into bytes.

        Raises
        ------
        SignatureError
            For what cannot be sent, saying what to do.
        """
        functions, options = _split(call.options)
        selectors, shared = _split(call.shared)
        own = (call.kernel, functions, selectors)
        named = {call.kernel.name: call.kernel}
        named |= {f"{name}=": value for name, value in {**functions, **selectors}.items()}
        first = dumps(call.where, call.kernel.name, own, named)
        named = {f"{name}=": value for name, value in {**options, **shared}.items()}
        left = (options, shared, call.source, call.target, call.settings, call.process)
        rest = dumps(call.where, call.kernel.name, (call.where, left), named)
        return cls(first, _digest(rest), rest)

    def by_path(self, path: str) -> Sealed:
        """Give the same with the rest in a file."""
        return replace(self, rest=None, path=path)

    def open(self) -> Call:
        """Give the call."""
        with _opening:
            kernel, functions, selectors = _functions.get(
                _digest(self.functions), lambda: loads(self.functions)
            )
            where, left = _rests.get(self.digest, self._read)
        options, shared, *others = left
        return Call(where, kernel, {**options, **functions}, {**shared, **selectors}, *others)

    def _read(self) -> Any:
        content = self.rest if self.path is None else Path(self.path).read_bytes()
        assert content is not None
        return loads(content)


class _Kept:
    """What was opened last, by digest."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.found: OrderedDict[str, Any] = OrderedDict()

    def get(self, digest: str, open: Callable[[], Any]) -> Any:
        if digest not in self.found:
            self.found[digest] = open()
            while len(self.found) > self.most:
                self.found.popitem(last=False)
        self.found.move_to_end(digest)
        return self.found[digest]


_functions = _Kept(64)
_rests = _Kept(2)  # they may be large
_opening = threading.Lock()


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give what is code, and what is not."""
    code = {name: value for name, value in values.items() if callable(value)}
    return code, {name: value for name, value in values.items() if name not in code}


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Block:
    """One batch: the columns of its items in NumPy, and the plan of that batch alone."""

    data: Mapping[str, Any]
    plan: Plan

    def __reduce__(self) -> Any:
        return Block, (self.data, replace(self.plan, packing=None))  # and without index arrays


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
    """An error of a batch: in bytes from another process, since one that is no pickle breaks pools.

    ``error`` is None where it can neither be kept nor be sent; its text is left.
    """

    error: BaseException | bytes | None
    text: str
    trace: str

    @classmethod
    def of(cls, error: Exception, *, here: bool) -> Failure:
        """Keep an error."""
        kept: BaseException | bytes | None = error
        if not here:
            try:
                kept = pickle.dumps(error)
            except Exception:  # noqa: BLE001  any class may refuse to be written
                kept = None
        trace = "".join(traceback.format_exception(error))
        return cls(kept, f"{type(error).__name__}: {error}", trace)

    def cause(self) -> BaseException:
        """Give the error, with the traceback of the worker as a note."""
        if isinstance(self.error, BaseException):
            return self.error
        try:
            found = None if self.error is None else pickle.loads(self.error)
        except Exception:  # noqa: BLE001  any class may refuse to be read back
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
    """Give what a worker needs of a part."""
    return Block(part.data, part.plan)


def compute(call: Call | Sealed, block: Block) -> Outcome | Failure:
    """Compute one batch in a worker."""
    try:
        opened = call.open() if isinstance(call, Sealed) else call
        return _computed(opened, block)
    except Exception as error:  # noqa: BLE001  it is raised where the caller is
        return Failure.of(error, here=isinstance(call, Call))


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
        return Outcome([_column_to_host(part) for part in as_tuple(found)], kind_of(found))
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


def kind_of(found: Any) -> list[str] | None:
    """Say how outputs are wrapped: see `Outcome`."""
    if not isinstance(found, tuple):
        return None
    if not hasattr(found, "_fields"):
        return []
    kind = type(found)
    return [kind.__module__, kind.__qualname__, *found._fields]


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
