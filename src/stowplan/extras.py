"""Packages that an extra of the distribution brings, imported on use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from stowplan.errors import MissingDependencyError

__all__ = ["import_extra"]


def import_extra(extra: str, module: str, what: str) -> Any:
    """Import a module of an optional package.

    Parameters
    ----------
    extra
        What brings the package: ``pip install 'stowplan[extra]'``.
    module
        Of the package, with dots.
    what
        Who needs it, for the message; its package is named by the first word of ``module``.

    Raises
    ------
    MissingDependencyError
        With the reason, and what to install.

    >>> import_extra("arrow", "no_such.package", "read")
    Traceback (most recent call last):
    stowplan.errors.MissingDependencyError: read needs no_such, which could not be imported (No module named 'no_such'). Install it: pip install 'stowplan[arrow]'.
    """  # noqa: E501  the message is shown as it is printed
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} needs {module.partition('.')[0]}, which could not be imported ({error}). "
            f"Install it: pip install 'stowplan[{extra}]'."
        ) from error
