"""Datasets of HDF5; one that lies in a single piece of the file is read without HDF5."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError, StoreError
from stowplan.extras import import_extra
from stowplan.stores.descriptors import FULL, bytes_view, disk_error, reserve, sync_folder
from stowplan.stores.file_arrays import FileArray
from stowplan.stores.locks import is_held
from stowplan.stores.regions import Region
from stowplan.stores.sliced import SlicedArray
from stowplan.stores.stored import bytes_of, check_dtype
from stowplan.stores.unfinished import PART, Locked, exists, lock_part, unfinished

__all__ = ["Hdf5Array", "NewHdf5Array", "create_hdf5", "open_hdf5", "wrap_hdf5"]

DATASET = "data"
"""Name of the dataset of a new file where none is given."""
SPARE_BYTES = 1 << 16
"""Room for what HDF5 writes of a new dataset beside its values."""
DIGEST_BYTES = 4 << 20
"""Read at a time of a dataset that is known by its values."""
IN_MEMORY = ("core", "fileobj")
"""Drivers of files whose name says nothing of what is in them."""


class Hdf5Array(SlicedArray):
    """A dataset, read through HDF5 or, where it lies in one piece, by its place in the file."""

    def __init__(self, source: Any, name: str, *, owned: Any = None) -> None:
        if not source:
            raise _closed(name)
        super().__init__(source, name)
        self.path = Path(os.fsdecode(source.file.filename))
        self.reading_bytes = bytes_of(source.chunks, self.dtype) if source.chunks else 0
        self._owned = owned  # the file that was opened here: a link may lead to another one
        self._driver = source.file.driver
        self._descriptor = _descriptor_of(source.file)
        facts = self._facts()
        self._size = 0 if facts is None else facts.st_size
        self._plain = _in_one_piece(source, self.path, facts, name)

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
        if not self.source:
            raise _closed(self.name)
        if self.source.file.mode == "r":
            raise DataError(f"{self.name} was opened for reading. Open its file with mode 'r+'.")
        super().write_region(index, values)

    def identity(self) -> tuple[Any, ...]:
        """Give file and dataset, form, size and time of the last change; or what the values are.

        Those count where there is no file that the system knows, as for one in memory.
        """
        if not self.source:
            raise _closed(self.name)
        form = (self.source.name, self.shape, self.dtype.str)
        facts = self._facts()
        if facts is None:
            return ("hdf5 values", *form, self._digest())
        return ("hdf5", str(self.path.resolve()), *form, facts.st_size, facts.st_mtime_ns)

    def close(self) -> None:
        """Close the files that were opened here."""
        if self._plain is not None:
            self._plain.close()
        if self._owned is not None:
            if self.source:
                self.source.file.close()
            self._owned.close()

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
        if not self.source:
            raise _closed(self.name)
        super()._refuse_changed()
        facts = self._facts() if self._size else None
        size = self._size if facts is None else facts.st_size
        if size < self._size and self.source.file.mode == "r":
            raise DataError(
                f"{self.name}: the file had {self._size} bytes when it was opened and has {size} "
                "now: it changed while it was read."
            )

    def _shape(self) -> tuple[int, ...]:
        if self.source.shape is None:
            raise DataError(
                f"{self.name} is an empty dataset (h5py.Empty), which has no rows. Store an array, "
                "if only one of no rows."
            )
        return super()._shape()

    def _facts(self) -> os.stat_result | None:
        """Give what the system says of the open file, whatever has its name by now."""
        if self._descriptor is not None:
            return os.fstat(self._descriptor)
        known = self._driver not in IN_MEMORY and self.path.is_file()
        return self.path.stat() if known else None

    def _digest(self) -> str:
        found = hashlib.blake2b(digest_size=10)
        rows = max(DIGEST_BYTES // max(bytes_of(self.shape[1:], self.dtype), 1), 1)
        for start in range(0, self.shape[0], rows):
            found.update(bytes_view(self.read(start, min(start + rows, self.shape[0]))))
        return found.hexdigest()


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
                if _link(file, inner) is not None:
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
        inner = inner.strip("/")
        names = [] if inner else _datasets(file)
        if len(names) == 1:
            inner = names[0]
        found = _node(file, inner) if inner else None
        if not isinstance(found, h5py.Dataset):
            raise _no_dataset(file, path, inner)
        return Hdf5Array(found, f"{path}::{inner}", owned=file)
    except BaseException:
        file.close()
        raise


def wrap_hdf5(source: Any) -> Hdf5Array:
    """Give a dataset of a file that the caller keeps open."""
    if not isinstance(source, _h5py().Dataset):
        raise DataError(f"{source!r} is no dataset of HDF5. Choose one: file['name'].")
    if not source:
        raise _closed("a dataset of h5py")
    inner = (source.name or "a dataset without a name").strip("/")
    return Hdf5Array(source, f"{os.fsdecode(source.file.filename)}::{inner}")


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
    h5py = _h5py()
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
            if _link(file, above) is None:
                break
            group = _node(file, above)
            if not isinstance(group, h5py.Group) or group.file.filename != file.filename:
                raise DataError(
                    f"{target}::{above} is no group of this file, and {shown} is to be in it. "
                    "Name another dataset."
                )
        if not overwrite and _link(file, name) is not None:
            raise exists(shown)


def _make(
    file: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], shown: str, *, fresh: bool
) -> None:
    """Make a dataset; a file in which there is no room for it stays as it was, or is removed."""
    h5py = _h5py()
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
    h5py = _h5py()
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
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            dataset = _node(file, name)
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


def _in_one_piece(
    dataset: Any, path: Path, facts: os.stat_result | None, name: str
) -> FileArray | None:
    """Give a dataset by its place in the file, where it is nothing but the numbers."""
    file = dataset.file
    plain = not dataset.external and not dataset.is_virtual
    if not (plain and file.mode == "r" and file.driver == "sec2" and file.userblock_size == 0):
        return None
    offset = dataset.id.get_offset()
    width = dataset.id.get_type().get_size()
    if offset is None or width != dataset.dtype.itemsize:
        return None
    if facts is None or not path.is_file() or not os.path.samestat(facts, path.stat()):
        return None  # another file has its name by now
    return FileArray(path, offset, dataset.shape, dataset.dtype, name=name, kind="hdf5")


def _descriptor_of(file: Any) -> int | None:
    """Give the descriptor by which HDF5 reads a file, where it has one that Python knows."""
    if file.driver != "sec2" or sys.platform == "win32":
        return None
    return int(file.id.get_vfd_handle())


def _node(file: Any, name: str) -> Any:
    """Give a group or dataset, by links of any kind; None where they lead to nothing."""
    try:
        return file.get(name)
    except (KeyError, OSError, RuntimeError, ValueError):
        return None


def _link(file: Any, name: str) -> Any:
    """Give what a name is in a file, be it a link that leads to nothing; None where it is not."""
    try:
        return file.get(name, getlink=True)
    except (KeyError, OSError, RuntimeError, ValueError):
        return None


def _no_dataset(file: Any, path: str, inner: str) -> DataError:
    h5py = _h5py()
    link = _link(file, inner) if inner else None
    if isinstance(link, h5py.ExternalLink | h5py.SoftLink) and _node(file, inner) is None:
        where = f" of {link.filename}" if isinstance(link, h5py.ExternalLink) else ""
        return DataError(
            f"{path}::{inner} is a link to {link.path!r}{where}, which cannot be opened. Put it "
            "there, or name another dataset."
        )
    names = _datasets(file)
    named = f"no dataset {inner!r}" if inner else f"{len(names)} datasets"
    there = ", ".join(names) or "none"
    return DataError(f"{path} has {named}. Name one, {path}::NAME; there are: {there}.")


def _closed(name: str) -> DataError:
    return DataError(f"{name}: its file is closed. Open it again, or give the path of the dataset.")


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
