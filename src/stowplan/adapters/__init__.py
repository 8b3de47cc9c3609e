"""One thin object per framework, with the same few capabilities."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from typing import Any, cast

from stowplan.adapters.interface import Adapter
from stowplan.errors import FrameworkError, MissingDependencyError
from stowplan.ragged import when_loaded

__all__ = ["FRAMEWORKS", "Adapter", "framework_of", "get_adapter", "installed_frameworks"]

FRAMEWORKS = {
    "numpy": "numpy",
    "jax": "jax",
    "torch": "torch",
    "cupy": "cupy",
    "array_api_strict": "array_api_strict",
}
"""Names accepted by ``on=`` and the pip extra (or package) that brings each."""

_EXTRAS = {"jax": "stowplan[jax]", "torch": "stowplan[torch]", "cupy": "stowplan[cupy]"}


def get_adapter(name: str) -> Adapter:
    """Load the adapter of a framework.

    Raises
    ------
    FrameworkError
        For a name that is none of ``FRAMEWORKS``.
    MissingDependencyError
        Where the framework is not installed; the message gives the pip extra.
    """
    if name not in FRAMEWORKS:
        raise FrameworkError(
            f"on={name!r} is no framework; choose one of: {', '.join(FRAMEWORKS)}."
        )
    try:
        module = importlib.import_module(f"stowplan.adapters.{name}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] != name:
            raise
        package = _EXTRAS.get(name, name.replace("_", "-"))
        raise MissingDependencyError(
            f"on={name!r}: {name} is not installed. Run: pip install '{package}'"
        ) from None
    return cast("Adapter", module.adapter)


def framework_of(arrays: Iterable[Any]) -> str | None:
    """Name the framework of some arrays; None where none is an array.

    Raises
    ------
    FrameworkError
        For arrays of two frameworks, or of one that has no adapter.
    """
    found: dict[str, Any] = {}
    for array in arrays:
        name = _framework(array)
        if name is not None:
            found.setdefault(name, array)
    if len(found) > 1:
        names = " and ".join(sorted(found))
        raise FrameworkError(
            f"the arrays of one call are of two frameworks: {names}. Convert them to one first, "
            "shared arrays included; on= then moves all of them."
        )
    return next(iter(found), None)


def installed_frameworks() -> tuple[str, ...]:
    """List the frameworks whose package can be found, without importing one."""
    return tuple(name for name in FRAMEWORKS if importlib.util.find_spec(name) is not None)


when_loaded("jax", lambda: get_adapter("jax"))  # Ragged becomes a pytree


def _framework(array: Any) -> str | None:
    for kind in type(array).__mro__:
        root = kind.__module__.partition(".")[0].removesuffix("lib")
        if root in FRAMEWORKS and root in sys.modules:
            return root if hasattr(array, "ndim") else None
    return None
