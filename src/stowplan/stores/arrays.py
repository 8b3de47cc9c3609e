"""Arrays outside of memory: told apart, opened, and made, whatever their format."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from stowplan.errors import DataError
from stowplan.ragged import Ragged
from stowplan.stores.files import join_arrays, matching_paths
from stowplan.stores.memory_maps import open_memmap
from stowplan.stores.npy import create_npy, open_npy
from stowplan.stores.sliced import SlicedArray
from stowplan.stores.stored import NewArray, StoredArray

__all__ = ["NewArray", "StoredArray", "create_array", "is_stored", "open_array", "open_column"]

HDF5 = (".h5", ".hdf5", ".hdf", ".nxs")
PARQUET = (".parquet", ".pq")
KNOWN = "name.npy, name.zarr, name.h5::dataset or name.parquet::column"


def is_stored(source: Any) -> bool:
    """Whether a source lies outside of memory, so that it is read part by part.

    True for paths, memory maps, arrays of zarr and HDF5, other objects with `shape` and
    `__getitem__`, and lists of such; False for arrays of any framework and lists of arrays.

    Examples
    --------
    >>> is_stored("fields.npy"), is_stored(np.zeros(3)), is_stored([np.zeros(3)])
    (True, False, False)
    """
    package = type(source).__module__.partition(".")[0]
    if package in ("zarr", "h5py", "dask"):  # before they are asked for a shape, if they are closed
        return True
    if isinstance(source, str | os.PathLike | np.memmap | StoredArray):
        return True
    if isinstance(source, Ragged):
        return is_stored(source.values)
    if isinstance(source, list | tuple):
        return bool(source) and all(is_stored(part) for part in source)
    if is_array_api_obj(source) or package in ("pandas", "pyarrow", "scipy"):
        return False
    return hasattr(source, "shape") and hasattr(source, "__getitem__") and package != "numpy"


def open_array(source: Any, where: str) -> StoredArray:
    """Open an array outside of memory for reading.

    Parameters
    ----------
    source
        A path: ``name.npy``, ``name.zarr`` or ``name.zarr::array``, ``name.h5::dataset`` (or
        ``name.h5`` where there is but one), ``name.parquet::column``; a pattern such as
        ``fields/*.npy`` or a list of paths, one item each; a memory map; an array of zarr or h5py;
        any object with `shape` and `__getitem__`.
    where
        The caller, for messages.

    Raises
    ------
    DataError
        For what is not there, holds no numbers, or is ragged (see `open_column`).
    """
    column = open_column(source, where)
    if isinstance(column, Ragged):
        raise DataError(
            f"{where}: {column.values.name} is ragged, and one array is needed. Give items of one "
            "shape."
        )
    return column


def open_column(source: Any, where: str) -> StoredArray | Ragged:
    """Open a column outside of memory: one array, or a Ragged whose `values` is one.

    Ragged are list columns of Parquet, and files of different shapes, one item each.
    """
    try:
        return _opened(source, where)
    except DataError as error:
        if str(error).startswith(f"{where}: "):
            raise
        raise DataError(f"{where}: {error}") from error


def create_array(
    target: str | os.PathLike[str],
    shape: tuple[int, ...],
    dtype: Any,
    where: str,
    *,
    overwrite: bool = False,
    rows_together: int = 1,
    chunks: tuple[int, ...] | None = None,
    resumable: bool = False,
    resume: bool = False,
) -> NewArray:
    """Make an array to be written by rows, under another name until `finish`.

    Parameters
    ----------
    target
        ``name.npy``, ``name.zarr``, ``name.zarr::array`` or ``name.h5::dataset``.
    overwrite
        Whether what is there is replaced, once the new array is finished.
    rows_together
        Rows of one chunk, where the format has chunks.
    chunks
        Shape of a chunk instead, such as that of the regions to be written.
    resumable
        Whether a run that is cut off leaves what it has written, for another to go on with: then
        it has a name of its own, and is removed as a leftover only on request.
    resume
        Go on with what such a run has left, or with the finished array, where shape and dtype are
        those asked for (`resumed` says whether there was something). Ask for it only where a
        folder of the run says which rows are done: an older array of this name is taken, too.

    Raises
    ------
    DataError
        For a target that exists, and a format that is not known.
    StoreError
        For a full disk, or a target that another process is writing.
    """
    path, _, inner = os.fspath(target).partition("::")
    shape = tuple(int(length) for length in shape)
    suffix, kind = Path(path).suffix.lower(), np.dtype(dtype)
    how = {"overwrite": overwrite, "resumable": resumable, "resume": resume}
    try:
        if not shape:
            raise DataError(f"{target}: a single number has no rows to write.")
        if suffix == ".npy":
            return create_npy(
                path,
                shape,
                kind,
                overwrite=overwrite,
                resumable=resumable,
                resume=resume,
            )
        if suffix == ".zarr":
            from stowplan.stores.zarr import create_zarr  # zarr is optional

            return create_zarr(
                path,
                inner,
                shape,
                kind,
                rows_together=rows_together,
                chunks=chunks,
                **how,
            )
        if suffix in HDF5:
            from stowplan.stores.hdf5_outputs import create_hdf5  # h5py is optional

            return create_hdf5(
                path,
                inner,
                shape,
                kind,
                overwrite=overwrite,
                resumable=resumable,
                resume=resume,
            )
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    raise DataError(
        f"{where}: out={os.fspath(target)!r} is no array that can be made. Name it 'name.npy', "
        "'name.zarr' or 'name.h5::dataset'."
    )


def _opened(source: Any, where: str) -> StoredArray | Ragged:
    if isinstance(source, Ragged) and is_stored(source.values):
        return Ragged.from_layout(open_array(source.values, where), source.layout)
    if isinstance(source, str | os.PathLike):
        return _of_path(os.fspath(source), where)
    if isinstance(source, np.memmap):
        return open_memmap(source)
    if isinstance(source, list | tuple) and is_stored(source):
        sources = [os.fspath(s) if isinstance(s, os.PathLike) else s for s in source]
        return join_arrays(sources, partial(open_array, where=where), where)
    package = type(source).__module__.partition(".")[0]
    if package == "zarr":
        from stowplan.stores.zarr import wrap_zarr  # zarr is optional

        return wrap_zarr(source)
    if package == "h5py":
        from stowplan.stores.hdf5 import wrap_hdf5  # h5py is optional

        return wrap_hdf5(source)
    if isinstance(source, StoredArray):
        return source
    if is_stored(source):
        return SlicedArray(source)
    raise DataError(
        f"{type(source).__name__} is no array outside of memory. Give a path ({KNOWN}), a memory "
        "map, or an object with shape and slices."
    )


def _of_path(text: str, where: str) -> StoredArray | Ragged:
    path, _, inner = text.partition("::")
    suffix = Path(path).suffix.lower()
    if not inner and set(path) & set("*?["):
        return join_arrays(matching_paths(path), partial(open_array, where=where), where)
    if suffix == ".npy":
        return open_npy(path)
    if suffix == ".zarr":
        from stowplan.stores.zarr import open_zarr  # zarr is optional

        return open_zarr(path, inner)
    if suffix in HDF5:
        from stowplan.stores.hdf5 import open_hdf5  # h5py is optional

        return open_hdf5(path, inner)
    if suffix in PARQUET:
        from stowplan.stores.parquet import open_parquet  # pyarrow is optional

        return open_parquet(path, inner)
    raise DataError(f"{text!r} is no array that can be read. Give {KNOWN}.")
