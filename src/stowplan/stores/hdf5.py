"""Datasets of HDF5; one that lies in a single piece of the file is read without HDF5."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.extras import import_extra
from stowplan.stores.descriptors import bytes_view
from stowplan.stores.file_arrays import FileArray
from stowplan.stores.regions import Region
from stowplan.stores.sliced import SlicedArray
from stowplan.stores.stored import bytes_of

__all__ = ["Hdf5Array", "h5py_library", "link_at", "node_at", "open_hdf5", "wrap_hdf5"]

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


def open_hdf5(path: str, inner: str) -> Hdf5Array:
    """Open a dataset, by name where there are several.

    Raises
    ------
    DataError
        For what is not there, listing what there is.
    """
    h5py = h5py_library()
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
        found = node_at(file, inner) if inner else None
        if not isinstance(found, h5py.Dataset):
            raise _no_dataset(file, path, inner)
        return Hdf5Array(found, f"{path}::{inner}", owned=file)
    except BaseException:
        file.close()
        raise


def wrap_hdf5(source: Any) -> Hdf5Array:
    """Give a dataset of a file that the caller keeps open."""
    if not isinstance(source, h5py_library().Dataset):
        raise DataError(f"{source!r} is no dataset of HDF5. Choose one: file['name'].")
    if not source:
        raise _closed("a dataset of h5py")
    inner = (source.name or "a dataset without a name").strip("/")
    return Hdf5Array(source, f"{os.fsdecode(source.file.filename)}::{inner}")


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


def node_at(file: Any, name: str) -> Any:
    """Give a group or dataset, by links of any kind; None where they lead to nothing."""
    try:
        return file.get(name)
    except (KeyError, OSError, RuntimeError, ValueError):
        return None


def link_at(file: Any, name: str) -> Any:
    """Give what a name is in a file, be it a link that leads to nothing; None where it is not."""
    try:
        return file.get(name, getlink=True)
    except (KeyError, OSError, RuntimeError, ValueError):
        return None


def _no_dataset(file: Any, path: str, inner: str) -> DataError:
    h5py = h5py_library()
    link = link_at(file, inner) if inner else None
    if isinstance(link, h5py.ExternalLink | h5py.SoftLink) and node_at(file, inner) is None:
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
    dataset = h5py_library().Dataset

    def note(name: str, node: Any) -> None:
        if isinstance(node, dataset):
            found.append(name)

    file.visititems(note)
    return found


def h5py_library() -> Any:
    """Give h5py, or say which extra has it."""
    return import_extra("hdf5", "h5py", "a dataset of HDF5")
