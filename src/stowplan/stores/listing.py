"""Which arrays a store holds: the files of a pattern or folder, the arrays of a zarr group."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stowplan.errors import DataError
from stowplan.extras import import_extra
from stowplan.stores.files import matching_paths, natural

__all__ = ["list_arrays"]


def list_arrays(store: Any, where: str) -> tuple[list[Any], bool]:
    """Give the arrays of a store in the natural order of their names, and whether it is but one.

    Parameters
    ----------
    store
        A path, a pattern such as ``"run/*.npy"``, a folder of ``.npy`` files, a zarr group or the
        path of one; a list, whose entries are given back; anything else is one array.
    where
        The caller, for messages.

    Raises
    ------
    DataError
        For a pattern, folder or group without arrays.

    Examples
    --------
    >>> list_arrays("field.npy", "solve"), list_arrays(["a.npy", "b.npy"], "solve")
    ((['field.npy'], True), (['a.npy', 'b.npy'], False))
    """
    if isinstance(store, list | tuple):
        return list(store), False
    if isinstance(store, str | os.PathLike):
        return _of_path(os.fspath(store), where)
    if hasattr(store, "arrays") and callable(store.arrays):
        return _of_group(store.arrays(), str(store), where), False
    return [store], True


def _of_path(text: str, where: str) -> tuple[list[Any], bool]:
    path = Path(text)
    if set(text.partition("::")[0]) & set("*?[") and not path.exists():
        try:
            return list(matching_paths(text)), False
        except DataError:
            raise DataError(
                f"{where}: no file is named like {text!r}. Give another pattern."
            ) from None
    if path.suffix.lower() == ".zarr" and path.is_dir():
        zarr = import_extra("zarr", "zarr", f"{where}: {text}")
        opened = zarr.open(text, mode="r")
        if hasattr(opened, "arrays"):
            return _of_group(opened.arrays(), text, where), False
        return [opened], True
    if path.is_dir():
        found = sorted(map(str, path.glob("*.npy")), key=natural)
        if not found:
            raise DataError(
                f"{where}: the folder {text} holds no .npy files. Give the path of a field, a "
                "pattern, or a zarr group."
            )
        return list(found), False
    return [text], True


def _of_group(arrays: Iterable[tuple[str, Any]], name: str, where: str) -> list[Any]:
    named = dict(arrays)
    if not named:
        raise DataError(f"{where}: the group {name} holds no arrays.")
    return [named[key] for key in sorted(named, key=natural)]
