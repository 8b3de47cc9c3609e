"""What the results of a run depend on, part by part, in a few letters each."""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
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
    bool, int, float, complex, str, bytes, type(None), range, slice, frozenset, set, enum.Enum,
    types.BuiltinFunctionType, types.FunctionType, types.MethodType, functools.partial, Kernel,
)  # fmt: skip
"""Values that count as they are where a function uses them, beside arrays."""


def fingerprints(call: Call, columns: Columns, plan: Plan) -> dict[str, str]:
    """Give a name and a fingerprint for each: kernel, plan, framework, columns, parameters.

    The kernel's is that of its declaration, of its code and of the values that this uses, but does
    not set: what it encloses, and globals of its module. The source of the module has one of its
    own, if there is a file of it; without one the functions there count, too. What other modules
    define does not count, but for the versions of the packages.
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
    """A hash, and the functions that went into it: those that enclose each other go in once."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=10)
        self.functions: list[types.FunctionType] = []
        self.within: list[Any] = []  # objects whose parts are being fed
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
        host = np.ascontiguousarray(to_host(value))
        state.update(f"{host.dtype.name}{host.shape}".encode())
        state.update(host.reshape(-1).view(np.uint8).data)
    elif isinstance(value, Mapping):
        _feed(state, [(key, value[key]) for key in sorted(value, key=str)])
    elif isinstance(value, list | tuple):
        state.update(str(len(value)).encode())
        for part in value:
            _feed(state, part)
    elif isinstance(value, types.FunctionType):
        _feed_function(state, value)
    elif isinstance(value, types.MethodType):
        _feed(state, value.__func__)
        _feed_used(state, value.__self__)
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
    code = function.__code__
    _feed(state, (code, function.__defaults__, function.__kwdefaults__))
    own = set(_names_of(code, "STORE_DEREF"))
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not set yet
            continue
        if name not in own:
            _feed_used(state, value)
    has_file = _file(function) is not None
    known = function.__globals__.keys() - set(_names_of(code, "STORE_GLOBAL"))
    for name in sorted(known & set(_names_of(code, "LOAD_GLOBAL"))):
        value = function.__globals__[name]
        if isinstance(value, types.FunctionType | Kernel):
            used = value.function if isinstance(value, Kernel) else value
            if has_file or used.__module__ != function.__module__:
                continue
        _feed(state, name)
        _feed_used(state, value)


def _names_of(code: types.CodeType, operation: str) -> Iterator[str]:
    """Give the names that code, or a function within it, uses in one way."""
    for one in dis.get_instructions(code):
        if one.opname == operation:
            yield one.argval
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _names_of(const, operation)


def _feed_used(state: _State, value: Any) -> None:
    """Feed a value that a function uses: plain ones, and what others are made of.

    Of modules, classes, and objects that show no parts the name of the type counts: what they are
    differs from one process to the next, as their addresses do.
    """
    if isinstance(value, PLAIN) or is_array_api_obj(value):
        _feed(state, value)
        return
    state.update(f"<{type(value).__qualname__}>".encode())
    if isinstance(value, types.ModuleType | type):
        state.update(getattr(value, "__qualname__", value.__name__).encode())
        return
    if any(value is other for other in state.within):
        return
    state.within.append(value)
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            state.update(str(key).encode())
            _feed_used(state, value[key])
    elif isinstance(value, list | tuple):
        state.update(str(len(value)).encode())
        for part in value:
            _feed_used(state, part)
    else:
        _feed_used(state, _parts(value))
    state.within.pop()


def _parts(value: Any) -> dict[str, Any]:
    """Give the attributes of an object, those in slots as well."""
    slots = [
        name
        for base in type(value).__mro__
        for name in _names(getattr(base, "__slots__", ()))
        if hasattr(value, name)
    ]
    return {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


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
