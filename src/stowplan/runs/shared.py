"""Parameters that all items share: static ones split off, numbers and arrays walked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stowplan.declaration import Kernel
from stowplan.errors import DataError

__all__ = [
    "check_shared",
    "known_shared",
    "leaves",
    "map_leaves",
    "missing_shared",
    "paired_leaves",
]


def check_shared(
    where: str, kernel: Kernel, shared: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split shared parameters, defaults filled in, into static ones and traced ones."""
    if kernel.takes_state:
        raise DataError(
            f"{where}: {kernel.name} is one step of an iteration. Take as many as it needs: "
            f"sp.iterate({kernel.name}, data, init=..., until=..., every=..., limit=..., keep=...)."
        )
    missing = missing_shared(kernel, shared)
    return _split(where, kernel, shared, missing)


def known_shared(
    where: str, kernel: Kernel, shared: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split shared parameters like `check_shared`; some may be missing."""
    return _split(where, kernel, shared, ())


def missing_shared(kernel: Kernel, shared: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of parameters that are neither given nor have a default; of a step, its state, too."""
    missing = (name for name in kernel.shared if name not in shared and name not in kernel.defaults)
    return (*missing, "state") if kernel.takes_state else tuple(missing)


def _split(
    where: str, kernel: Kernel, shared: Mapping[str, Any], missing: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    unknown = [name for name in shared if name not in kernel.shared]
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


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to every part of nested shared parameters."""
    if isinstance(value, Mapping):
        return {name: map_leaves(function, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [map_leaves(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return function(value)


def paired_leaves(structure: Any, value: Any) -> Iterator[tuple[Any, Any]]:
    """Give every part of nested shared parameters with its counterpart in another such nest."""
    if isinstance(structure, Mapping):
        for name, part in structure.items():
            yield from paired_leaves(part, value[name])
    elif isinstance(structure, list | tuple):
        for part, other in zip(structure, value, strict=True):
            yield from paired_leaves(part, other)
    else:
        yield structure, value
