"""``sp.compile_cache``: a folder of compiled programs that later processes read."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import cast

from stowplan.adapters import get_adapter
from stowplan.adapters.interface import TracingAdapter
from stowplan.errors import FrameworkError, MissingDependencyError

__all__ = ["VARIABLE", "compile_cache"]

VARIABLE = "STOWPLAN_COMPILE_CACHE"
"""Environment variable that names the folder."""


def compile_cache(folder: str | PathLike[str]) -> Path:
    """Keep what JAX compiles in a folder, so that another process compiles nothing again.

    It holds for all programs of JAX in this process from now on. ``STOWPLAN_COMPILE_CACHE=folder``
    in the environment does the same once stowplan first uses JAX. A program is found again by its
    text, its options, JAX's version and the kind of device; each device of several has its own.

    Parameters
    ----------
    folder
        Made where it is missing; safe to share between processes and to delete.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FrameworkError
        For a folder that cannot be written to. From the environment that is a warning.
    MissingDependencyError
        Where JAX is not installed.

    Examples
    --------
    >>> import tempfile
    >>> import stowplan as sp
    >>> folder = sp.compile_cache(tempfile.mkdtemp())    # doctest: +SKIP
    """
    path = Path(folder).expanduser()
    try:
        adapter = cast("TracingAdapter", get_adapter("jax"))
    except (FrameworkError, MissingDependencyError) as error:
        raise type(error)(f"compile_cache: {error}") from None
    adapter.keep_compiled(path, f"folder={str(folder)!r}")
    return path
