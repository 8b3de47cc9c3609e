"""Datasets of HDF5; one that lies in a single piece of the file is read without HDF5."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError, StoreError
from stowplan.extras import import_extra
from stowplan.stores.descriptors import reserve, sync_folder
from stowplan.stores.file_arrays import FileArray
from stowplan.stores.locks import is_held
from stowplan.stores.regions import Region
from stowplan.stores.sliced import SlicedArray
from stowplan.stores.stored import bytes_of, check_dtype
from stowplan.stores.unfinished import PART, Locked, exists, lock_part, unfinished

__all__ = ["Hdf5Array", "NewHdf5Array", "create_hdf5", "open_hdf5", "wrap_hdf5"]

DATASET = "data"
"""Name of the dataset of a new file where none is given."""


class Hdf5Array(SlicedArray):
    """A dataset, read through HDF5 or, where it lies in one piece, by its place in the file."""

    def __init__(self, source: Any, name: str, *, owned: bool = False) -> None:
        super().__init__(source, name)
        self.path = Path(os.fsdecode(source.file.filename))
        self.reading_bytes = bytes_of(source.chunks, self.dtype) if source.chunks else 0
        self._owned = owned
        self._size = self.path.stat().st_size if self.path.is_file() else 0
        self._plain = _in_one_piece(source, self.path, name)

    def read(self, start: int, stop: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Give rows [start, stop)."""
        if self._plain is None:
            return super().read(start, stop, into)
        return self._plain.read(start, stop, into)

    def read_region(
        self, index: tuple[slice, ...], into: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Give a hyper-rectangle."""
        if self._plain is not None:
            return self._plain.read_region(index, into)
        self._refuse_changed()
        region = Region.of(index, self.shape, self.name)
        into = np.empty(region.shape, self.dtype) if into is None else into
        fits = into.shape == region.shape and into.dtype == self.dtype
        if not (fits and into.size and into.flags.c_contiguous):
            return super().read_region(index, into)
        try:
            self.source.read_direct(into, index)
        except OSError as error:
            raise self._unreadable(index, error) from error
        return into

    def write_region(self, index: tuple[slice, ...], values: NDArray[Any]) -> None:
        """Write a hyper-rectangle."""
        if self.source.file.mode == "r":
            raise DataError(f"{self.name} was opened for reading. Open its file with mode 'r+'.")
        super().write_region(index, values)

    def identity(self) -> tuple[Any, ...]:
        """Give file and dataset, form, size and time of the last change."""
        facts = self.path.stat()
        return (
            "hdf5", str(self.path.resolve()), self.source.name, self.shape, self.dtype.str,
            facts.st_size, facts.st_mtime_ns,
        )  # fmt: skip

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._plain is not None:
            self._plain.close()
        if self._owned:
            self.source.file.close()

    def _get(self, index: Any) -> NDArray[Any]:
        try:
            return np.asarray(self.source[index])
        except OSError as error:
            raise self._unreadable(index, error) from error

    def _unreadable(self, index: Any, error: OSError) -> DataError:
        return DataError(
            f"{self.name}: {index} cannot be read: {error}. A chunk of it is damaged, or the file "
            "changed while it was read."
        )

    def _refuse_changed(self) -> None:
        super()._refuse_changed()
        size = self.path.stat().st_size if self._size else 0
        if size < self._size and self.source.file.mode == "r":
            raise DataError(
                f"{self.name}: the file had {self._size} bytes when it was opened and has {size} "
                "now: it changed while it was read."
            )


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
            with _h5py().File(self.path, "r+") as file:
                if inner in file:
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
                with _h5py().File(self.path, "r+") as file:
                    del file[self._inner]
            self._target = None
        self.close()


def open_hdf5(path: str, inner: str) -> Hdf5Array:
    """Open a dataset, by name where there are several.

    Raises
    ------
    DataError
        For what is not there, listing what there is.
    """
    h5py = _h5py()
    if not Path(path).is_file():
        raise DataError(f"{path}: there is no such file.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} cannot be opened as HDF5: {error}") from error
    try:
        names = _datasets(file)
        inner = inner.strip("/") or (names[0] if len(names) == 1 else "")
        if inner not in names:
            named = f"no dataset {inner!r}" if inner else f"{len(names)} datasets"
            there = ", ".join(names) or "none"
            raise DataError(f"{path} has {named}. Name one, {path}::NAME; there are: {there}.")
        return Hdf5Array(file[inner], f"{path}::{inner}", owned=True)
    except BaseException:
        file.close()
        raise


def wrap_hdf5(source: Any) -> Hdf5Array:
    """Give a dataset of a file that the caller keeps open."""
    if not isinstance(source, _h5py().Dataset):
        raise DataError(f"{source!r} is no dataset of HDF5. Choose one: file['name'].")
    return Hdf5Array(source, f"{os.fsdecode(source.file.filename)}::{source.name.strip('/')}")


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
    """
    dtype = check_dtype(dtype, path)
    target, name = Path(path), inner.strip("/") or DATASET
    added = target.is_file() and bool(inner)
    part = unfinished(target, resumable=resumable or resume)
    file = target if added else part
    shown = f"{path}::{name}"
    if not target.absolute().parent.is_dir():
        raise DataError(f"{target.parent} is no folder. Make it first.")
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
    if added and not overwrite and _place(target, name) is not None:
        raise exists(shown)
    own = name + PART if added else name
    found = _place(file, own) if file.is_file() else None
    resumed = resume and found is not None and found[:2] == (shape, dtype)
    if not resumed:
        _make(file, own, shape, dtype, fresh=not added)
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


def _make(
    file: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, fresh: bool
) -> None:
    h5py = _h5py()
    with h5py.File(file, "w" if fresh else "r+") as open_file:
        if name in open_file:
            del open_file[name]
        folder, _, last = name.rpartition("/")
        group = open_file.require_group(folder) if folder else open_file
        form = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        form.set_layout(h5py.h5d.CONTIGUOUS)
        form.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        form.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        kind = h5py.h5t.py_create(dtype, logical=True)
        h5py.h5d.create(group.id, last.encode(), kind, h5py.h5s.create_simple(shape), form)


def _place(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int] | None:
    """Give shape, dtype and first byte of a dataset in one piece; None for anything else."""
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            dataset = file.get(name)
            if not isinstance(dataset, h5py.Dataset) or not dataset.dtype.isnative:
                return None
            offset = dataset.id.get_offset()
            empty = 0 in dataset.shape
            if offset is None and not empty:
                return None
            return tuple(map(int, dataset.shape)), dataset.dtype, int(offset or 0)
    except OSError:
        return None


def _in_one_piece(dataset: Any, path: Path, name: str) -> FileArray | None:
    """Give a dataset by its place in the file, where it is nothing but the numbers."""
    file = dataset.file
    plain = not dataset.external and not dataset.is_virtual
    if not (plain and file.mode == "r" and file.driver == "sec2" and file.userblock_size == 0):
        return None
    offset = dataset.id.get_offset()
    width = dataset.id.get_type().get_size()
    if offset is None or width != dataset.dtype.itemsize or not path.is_file():
        return None
    return FileArray(path, offset, dataset.shape, dataset.dtype, name=name, kind="hdf5")


def _datasets(file: Any) -> list[str]:
    found: list[str] = []
    dataset = _h5py().Dataset

    def note(name: str, node: Any) -> None:
        if isinstance(node, dataset):
            found.append(name)

    file.visititems(note)
    return found


def _h5py() -> Any:
    return import_extra("hdf5", "h5py", "a dataset of HDF5")
