"""New datasets of HDF5, in one piece of a file: written by their place, without HDF5."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stowplan.errors import DataError, StoreError
from stowplan.stores.descriptors import FULL, disk_error, reserve, sync_folder
from stowplan.stores.file_arrays import FileArray
from stowplan.stores.hdf5 import h5py_library, link_at, node_at
from stowplan.stores.locks import is_held
from stowplan.stores.stored import bytes_of, check_dtype
from stowplan.stores.unfinished import PART, Locked, exists, lock_part, unfinished

__all__ = ["NewHdf5Array", "create_hdf5"]

DATASET = "data"
"""Name of the dataset of a new file where none is given."""
SPARE_BYTES = 1 << 16
"""Room for what HDF5 writes of a new dataset beside its values."""


class NewHdf5Array(Locked, FileArray):
    """A dataset in one piece of a file, written by its place while HDF5 has the file closed."""

    def __init__(self, path: Path, inner: str, target: tuple[Path, str], **more: Any) -> None:
        super().__init__(path, **more, kind="hdf5", writable=True)
        self._inner = inner
        self._target: tuple[Path, str] | None = target

    def finish(self) -> None:
        """Bring everything to the disk and give the dataset its name."""
        if self._target is None:
            return
        os.fsync(self._descriptor)
        target, inner = self._target
        if self._inner != inner:  # in a file with other datasets
            self.close()  # or else its lock would keep HDF5 out
            with h5py_library().File(self.path, "r+") as file:
                if link_at(file, inner) is not None:
                    del file[inner]
                file.move(self._inner, inner)
            self._descriptor = os.open(self.path, os.O_RDWR)
            os.fsync(self._descriptor)
        if self.path != target:
            self.path.replace(target)
            self.path = target
            sync_folder(target.parent)
        self._target = None
        self._let_go()

    def close(self) -> None:
        """Close the file; what is not finished stays for another run to go on with."""
        super().close()
        self._let_go()

    def discard(self) -> None:
        """Remove what was written; nothing if it is finished."""
        if self._target is not None:
            target, inner = self._target
            if self.path != target:
                self.path.unlink(missing_ok=True)
            elif self._inner != inner:
                self.close()
                with h5py_library().File(self.path, "r+") as file:
                    del file[self._inner]
            self._target = None
        self.close()


def create_hdf5(
    path: str,
    inner: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    overwrite: bool,
    resumable: bool,
    resume: bool,
) -> NewHdf5Array:
    """Make a dataset in one piece, its space reserved, under another name until it is finished.

    In a file that is not there, or is to be replaced, the file has another name; in one with other
    datasets the dataset.

    Raises
    ------
    DataError
        For what is there already, or is of another kind.
    StoreError
        For a full disk, or a file that somebody has open.
    """
    dtype = check_dtype(dtype, path)
    target, name = Path(path), inner.strip("/") or DATASET
    added = target.is_file() and bool(inner)
    part = unfinished(target, resumable=resumable or resume)
    file = target if added else part
    shown = f"{path}::{name}"
    if not target.absolute().parent.is_dir():
        raise DataError(f"{target.parent} is no folder. Make it first.")
    if target.is_dir():
        raise DataError(f"{target} is a folder, not a file. Remove it, or name another output.")
    if is_held(file):
        raise StoreError(
            f"{file} is open, in this or another process, and HDF5 writes to what nobody else has "
            "open. Close it, or name another file for the output."
        )
    if target.is_file() and not part.is_file():
        finished = _place(target, name)
        if resume and finished is not None and finished[:2] == (shape, dtype):
            return _new(target, name, target, name, shape, dtype, shown, resumed=True)
    if target.exists() and not added and not overwrite:
        raise exists(path)
    if added:
        _refuse_no_room_for(target, name, shown, overwrite=overwrite)
    own = name + PART if added else name
    found = _place(file, own) if file.is_file() else None
    resumed = resume and found is not None and found[:2] == (shape, dtype)
    if not resumed:
        _make(file, own, shape, dtype, shown, fresh=not added)
    return _new(file, own, target, name, shape, dtype, shown, resumed=resumed)


def _new(
    file: Path,
    own: str,
    target: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    shown: str,
    *,
    resumed: bool,
) -> NewHdf5Array:
    place = _place(file, own)
    assert place is not None
    array = NewHdf5Array(
        file, own, (target, name), offset=place[2], shape=shape, dtype=dtype, name=shown
    )
    try:
        array._lock = lock_part(file)
    except StoreError:
        array.close()
        raise
    array.resumed = resumed
    if not resumed:
        try:
            reserve(array._descriptor, os.fstat(array._descriptor).st_size, shown)
        except BaseException:
            array.discard()
            raise
    return array


def _refuse_no_room_for(target: Path, name: str, shown: str, *, overwrite: bool) -> None:
    """Refuse a file that is none of HDF5, or that has something else where a dataset is to be."""
    h5py = h5py_library()
    try:
        opened = h5py.File(target, "r")
    except OSError as error:
        raise DataError(
            f"{target} cannot be opened as HDF5: {error}. Remove it, or name another file for the "
            "output."
        ) from error
    with opened as file:
        parts = name.split("/")
        for above in ("/".join(parts[:depth]) for depth in range(1, len(parts))):
            if link_at(file, above) is None:
                break
            group = node_at(file, above)
            if not isinstance(group, h5py.Group) or group.file.filename != file.filename:
                raise DataError(
                    f"{target}::{above} is no group of this file, and {shown} is to be in it. "
                    "Name another dataset."
                )
        if not overwrite and link_at(file, name) is not None:
            raise exists(shown)


def _make(
    file: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], shown: str, *, fresh: bool
) -> None:
    """Make a dataset; a file in which there is no room for it stays as it was, or is removed."""
    h5py = h5py_library()
    needed = bytes_of(shape, dtype) + SPARE_BYTES
    try:
        with _naming_full_disks(shown, needed):
            if fresh:
                h5py.File(file, "w").close()
            _make_longer(file, needed, shown)  # HDF5 leaves a broken file where it finds no room
            with h5py.File(file, "r+") as open_file:
                _add(open_file, name, shape, dtype)
    except BaseException as error:
        if fresh and not isinstance(error, BlockingIOError):  # that is of another process
            file.unlink(missing_ok=True)
        raise


def _add(file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    h5py = h5py_library()
    if name in file:
        del file[name]
    folder, _, last = name.rpartition("/")
    group = file.require_group(folder) if folder else file
    form = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    form.set_layout(h5py.h5d.CONTIGUOUS)
    form.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    form.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind = h5py.h5t.py_create(dtype, logical=True)
    h5py.h5d.create(group.id, last.encode(), kind, h5py.h5s.create_simple(shape), form)


def _make_longer(file: Path, needed: int, shown: str) -> None:
    """Reserve space behind the end of a file, which HDF5 takes or cuts off."""
    descriptor = os.open(file, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        size = os.fstat(descriptor).st_size
        try:
            reserve(descriptor, size + needed, shown)
        except BaseException:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _naming_full_disks(shown: str, needed: int) -> Iterator[None]:
    """Raise what is raised for a full disk where HDF5 finds one, which it tells in words."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        told = re.search(r"errno = (\d+)", str(error))
        number = getattr(error, "errno", None) or (int(told[1]) if told else None)
        if number not in FULL:
            raise
        raise disk_error(OSError(number, str(error)), shown, needed) from error


def _place(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int] | None:
    """Give shape, dtype and first byte of a dataset in one piece; None for anything else."""
    h5py = h5py_library()
    try:
        with h5py.File(path, "r") as file:
            dataset = node_at(file, name)
            if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
                return None
            if not dataset.dtype.isnative or dataset.file.filename != file.filename:
                return None
            offset = dataset.id.get_offset()
            empty = 0 in dataset.shape
            if offset is None and not empty:
                return None
            return tuple(map(int, dataset.shape)), dataset.dtype, int(offset or 0)
    except OSError:
        return None
