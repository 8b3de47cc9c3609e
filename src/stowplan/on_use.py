"""Public names whose modules are imported when they are first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["names_on_use"]


def names_on_use(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Give the ``__getattr__`` of a package: each name by the module that it is in.

    >>> names_on_use("stowplan", {"tables": "planners.tables"})("no_name")
    Traceback (most recent call last):
    AttributeError: module 'stowplan' has no attribute 'no_name'
    """

    def found(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"stowplan.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return found
