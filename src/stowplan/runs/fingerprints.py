"""What the results of a run depend on, part by part, in a few letters each."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import dis
import enum
import fractions
import functools
import hashlib
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from stowplan.declaration import Kernel
from stowplan.planners.batches import Plan
from stowplan.ragged import Ragged
from stowplan.runs.columns import Columns
from stowplan.runs.tasks import Call, to_host

__all__ = ["digest", "fingerprints"]

PLAIN = (
    bool, int, float, complex, str, bytes, bytearray, type(None), range, slice, enum.Enum, np.dtype,
    datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, fractions.Fraction, PurePath,
)  # fmt: skip
"""What counts by its representation, which is the same in every process."""
CONTAINERS = (list, tuple, dict, set, frozenset, collections.deque, types.MappingProxyType)
MUTATORS = {
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem",
    "popleft", "remove", "setdefault", "update",
}  # fmt: skip
"""Methods by which a function keeps something in a container that it uses."""
DEEPEST = 40
"""Values within values that count, before the type alone does."""


def fingerprints(call: Call, columns: Columns, plan: Plan) -> dict[str, str]:
    """Give a name and a fingerprint for each: kernel, plan, framework, columns, parameters.

    The kernel's is that of its declaration, of its code and of the values that this uses, but does
    not set or fill: what it encloses, and globals of its module. The source of the module has one
    of its own, if there is a file of it; without one the functions there count, too. What other
    modules define does not count, but for the versions of the packages.
    """
    found = {
        "the kernel": digest(call.kernel),
        "the module of the kernel": digest(_source(call.kernel)),
        **{f"the version of {name}": str(_version(name)) for name in ("stowplan", "numpy")},
        "the plan": digest(
            plan.dims, plan.lengths, plan.offsets,
            [(batch.items, batch.count, batch.capacity) for batch in plan.batches],
        ),
        "the framework": digest(
            call.target[0], call.settings.get(call.target[0]), _version(call.target[0])
        ),
    }  # fmt: skip
    sources = columns.sources or (None,) * len(columns.values)
    for name, column, stored in zip(call.kernel.arguments, columns.values, sources, strict=True):
        known = column
        if stored is not None:
            known = (
                column.shapes if isinstance(column, Ragged) else column.shape,
                stored.identity(),
            )
        found[f"column {name!r}"] = digest(known)
    for dim, ids in columns.segments.items():
        found[f"the segments of {dim!r}"] = digest(ids)
    for name, value in {**call.options, **call.shared}.items():
        found[f"{name}="] = digest(value)
    return found


def digest(*values: Any) -> str:
    """Give a few letters that differ where values or their types do.

    >>> digest(1) == digest(1), digest(1) == digest(1.0)
    (True, False)
    """
    state = _State()
    for value in values:
        _feed(state, value)
    return state.hash.hexdigest()


class _State:
    """A hash, and what went into it: functions and objects that use each other go in once."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=10)
        self.functions: list[types.FunctionType] = []
        self.objects: dict[int, tuple[int, Any]] = {}  # held, so that no other gets its number
        self.depth = 0
        self.update = self.hash.update


def _source(kernel: Kernel) -> bytes | None:
    """Give the file of the module that a kernel is defined in; None where there is none."""
    path = _file(kernel.function)
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError:
        return None


def _file(function: Any) -> str | None:
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return getattr(module, "__file__", None)


def _version(package: str) -> str | None:
    return getattr(sys.modules.get(package), "__version__", None)


def _feed(state: _State, value: Any) -> None:
    """Feed a value with its type, so that 1, 1.0 and "1" differ."""
    state.update(f"<{type(value).__name__}>".encode())
    if isinstance(value, Ragged):
        packed = value.compact()
        _feed(state, packed.shapes)
        _feed(state, packed.values)
    elif isinstance(value, Kernel):
        _feed_kernel(state, value)
    elif is_array_api_obj(value):
        _feed_array(state, value)
    elif isinstance(value, Mapping):
        _feed(state, [(key, value[key]) for key in sorted(value, key=str)])
    elif isinstance(value, list | tuple):
        state.update(str(len(value)).encode())
        for part in value:
            _feed(state, part)
    elif isinstance(value, types.FunctionType):
        _feed_function(state, value)
    elif isinstance(value, types.MethodType):
        _feed(state, (value.__func__, value.__self__))
    elif isinstance(value, types.CodeType):  # of functions within it, too
        _feed(state, (value.co_code, value.co_names, value.co_consts))
    elif isinstance(value, functools.partial):
        _feed(state, (value.func, value.args, value.keywords))
    else:
        _feed_other(state, value)


def _feed_function(state: _State, function: types.FunctionType) -> None:
    """Feed what a function does, with the functions and values that it uses.

    What it sets itself, such as a count of its calls, is no value that it depends on.
    """
    if any(function is other for other in state.functions):
        return
    state.functions.append(function)
    code, module = function.__code__, function.__module__
    _feed(state, (code, function.__defaults__, function.__kwdefaults__))
    stored, filled = _names_set(code)
    used: dict[str, Any] = {}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            used[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    has_file = _file(function) is not None
    for name in sorted(function.__globals__.keys() & set(_names_of(code, "LOAD_GLOBAL"))):
        value = function.__globals__[name]
        if isinstance(value, types.FunctionType | Kernel):
            own = value.function if isinstance(value, Kernel) else value
            if has_file or own.__module__ != module:
                continue
        used.setdefault(name, value)
    for name, value in used.items():
        if name in stored or (name in filled and isinstance(value, CONTAINERS)):
            continue
        _feed(state, name)
        _feed_used(state, value, module)


def _names_set(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Give the names that code, or a function within it, sets, and those of what it may fill."""
    stored = {*_names_of(code, "STORE_GLOBAL"), *_names_of(code, "STORE_DEREF")}
    filled: set[str] = set()
    for own in _codes(code):
        line: list[str] = []  # names that were read in a line
        number, before = None, ""
        for one in dis.get_instructions(own):
            at = one.positions.lineno if one.positions is not None else None
            if at != number:
                number, line = at, []
            if one.opname in ("LOAD_GLOBAL", "LOAD_DEREF"):
                line.append(one.argval)
                before = one.argval
                continue
            if one.opname in ("LOAD_METHOD", "LOAD_ATTR") and one.argval in MUTATORS and before:
                filled.add(before)
            if one.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
                filled.update(line)
            before = ""
    return stored, filled


def _names_of(code: types.CodeType, operation: str) -> Iterator[str]:
    """Give the names that code, or a function within it, uses in one way."""
    for own in _codes(code):
        for one in dis.get_instructions(own):
            if one.opname == operation:
                yield one.argval


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


def _feed_used(state: _State, value: Any, module: str | None) -> None:
    """Feed a value that a function of a module uses.

    Numbers, arrays, functions, containers and dataclasses count, and objects of classes of that
    module by their attributes; of others the type does. A logger or a compiled network has much
    that differs from one process to the next and changes no result.
    """
    state.update(f"<{type(value).__module__}.{type(value).__qualname__}>".encode())
    if is_array_api_obj(value):
        _feed_array(state, value)
    elif isinstance(value, PLAIN) or _is_dtype(value):
        state.update(repr(value).encode())
    elif isinstance(value, types.MethodType):
        _feed(state, value.__func__)
        _feed_used(state, value.__self__, module)
    elif isinstance(value, functools.partial):
        _feed_used(state, (value.func, value.args, value.keywords), module)
    elif isinstance(value, types.FunctionType | types.BuiltinFunctionType | Kernel):
        _feed(state, value)
    elif isinstance(value, types.ModuleType | type):
        state.update(getattr(value, "__qualname__", value.__name__).encode())
    elif isinstance(value, CONTAINERS) or _is_walked(value, module):
        _feed_parts(state, value, module)


def _feed_parts(state: _State, value: Any, module: str | None) -> None:
    """Feed what an object or a container holds; one that was fed before by its number alone."""
    if id(value) in state.objects:
        state.update(f"#{state.objects[id(value)][0]}".encode())
        return
    state.objects[id(value)] = len(state.objects), value
    if state.depth == DEEPEST:
        return
    state.depth += 1
    if isinstance(value, set | frozenset):
        if all(isinstance(part, PLAIN) for part in value):
            state.update(str(sorted(map(repr, value))).encode())
    elif isinstance(value, list | tuple | collections.deque):
        state.update(str(len(value)).encode())
        if all(type(part) in PLAIN for part in value):  # at once, as there may be many
            state.update(repr(list(value)).encode())
        else:
            for part in value:
                _feed_used(state, part, module)
    elif isinstance(value, dict | types.MappingProxyType):
        plain = all(isinstance(key, PLAIN) for key in value)
        for key in sorted(value, key=repr) if plain else value:
            _feed_used(state, key, module)
            _feed_used(state, value[key], module)
    else:
        for name, part in _attributes(value).items():
            state.update(name.encode())
            _feed_used(state, part, module)
    state.depth -= 1


def _is_walked(value: Any, module: str | None) -> bool:
    own = type(value).__module__
    return dataclasses.is_dataclass(value) or (own is not None and own == module)


def _is_dtype(value: Any) -> bool:
    return type(value).__name__ in ("dtype", "device") and type(value).__module__ == "torch"


def _attributes(value: Any) -> dict[str, Any]:
    """Give the attributes of an object, those in slots as well, but for what is only kept there."""
    kind = type(value)
    slots = [name for base in kind.__mro__ for name in _slots(base) if hasattr(value, name)]
    found = {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}
    return {
        name: part
        for name, part in found.items()
        if not isinstance(getattr(kind, name, None), functools.cached_property)
    }


def _slots(kind: type) -> tuple[str, ...]:
    own = kind.__dict__.get("__slots__", ())
    return (own,) if isinstance(own, str) else tuple(own)


def _feed_array(state: _State, value: Any) -> None:
    """Feed an array; of one that NumPy cannot show, what it is like."""
    try:
        host = np.ascontiguousarray(to_host(value))
        plain = host.dtype.kind not in "OT"
    except (TypeError, ValueError, RuntimeError):
        plain = False
    if plain:
        state.update(f"{host.dtype.name}{host.shape}".encode())
        state.update(host.reshape(-1).view(np.uint8).data)
    else:
        state.update(f"{getattr(value, 'dtype', None)}{getattr(value, 'shape', None)}".encode())


def _feed_other(state: _State, value: Any) -> None:
    if isinstance(value, frozenset | set):
        text = str(sorted(map(repr, value)))
    elif callable(value) and hasattr(value, "__qualname__"):
        text = f"{value.__module__}.{value.__qualname__}"
    elif getattr(type(value), "__repr__", None) is object.__repr__:  # which shows where it lies
        _feed(state, getattr(value, "__dict__", {}))
        return
    else:
        text = repr(value)
    state.update(text.encode())


def _feed_kernel(state: _State, kernel: Kernel) -> None:
    declared = {
        "name": kernel.name,
        "signature": kernel.signature.text,
        "ragged": kernel.ragged,
        "exact": kernel.exact,
        "static": kernel.static,
        "fill": kernel.fill,
        "index": kernel.index,
        "segments": kernel.segments,
        "per_item": kernel.per_item,
        "out_sizes": {dim: getattr(rule, "text", rule) for dim, rule in kernel.out_sizes.items()},
        "function": kernel.function,
    }
    _feed(state, declared)
