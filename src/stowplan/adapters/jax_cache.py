"""JAX's persistent cache: programs that one process has compiled are read by the next."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import jax

from stowplan.adapters.compile_cache import VARIABLE
from stowplan.errors import FrameworkError

__all__ = ["keep_compiled", "keep_compiled_by_environment"]


def keep_compiled(folder: Path, name: str) -> None:
    """Keep every program that is compiled from now on in a folder, and look for it there first.

    Raises
    ------
    FrameworkError
        For a folder that cannot be made or written to; ``name`` says who asked for it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FrameworkError(
            f"compile_cache: {name} cannot be written to: {error.strerror or error}. Programs "
            "would be compiled anew in each process. Name a folder that can."
        ) from None
    jax.config.update("jax_compilation_cache_dir", str(folder.resolve()))
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small ones count, too
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()  # one that is open already is of another folder


def keep_compiled_by_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Do so where the environment names a folder; warn where that cannot be written to."""
    folder = environment.get(VARIABLE, "").strip()
    if not folder:
        return
    try:
        keep_compiled(Path(folder).expanduser(), f"{VARIABLE}={folder}")
    except FrameworkError as error:
        warnings.warn(str(error), stacklevel=2)
