"""A private folder for arrays that memory has no room for, gone when it is closed."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.memory import scratch_folder
from stowplan.stores.descriptors import reserve
from stowplan.stores.file_arrays import FileArray
from stowplan.stores.locks import Lock
from stowplan.stores.stored import bytes_of

__all__ = ["PREFIX", "Scratch"]

PREFIX = "stowplan-scratch-"
"""What the name of a scratch folder begins with; the process and some letters follow."""


class Scratch:
    """Arrays in a folder of their own, which no other process or instance shares.

    The folder is removed by `close`, when nobody holds the object any more, and when Python ends;
    what a killed process leaves has no lock, and `stowplan runs clean` removes it.

    Parameters
    ----------
    folder
        Where the folder is made; None for ``STOWPLAN_SCRATCH`` or the system's.
    where
        The caller, for messages.

    Raises
    ------
    BudgetError
        For a folder that is not there or that nothing can be written to.

    Examples
    --------
    >>> with Scratch(None, "spill") as scratch:
    ...     stored = scratch.save(np.arange(6.0).reshape(3, 2))
    ...     print(stored.read(1, 3).tolist(), scratch.bytes)
    ...     scratch.remove(stored)
    [[2.0, 3.0], [4.0, 5.0]] 48
    """

    def __init__(self, folder: str | os.PathLike[str] | None, where: str) -> None:
        self.where = where
        parent = scratch_folder(folder, where)
        lock = None
        while lock is None:
            self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
            lock = Lock.take(self.folder)
            if lock is not None and not lock.is_of(self.folder):
                lock.release()  # it was taken for a leftover before it was locked
                lock = None
        self._arrays: dict[Path, FileArray] = {}
        self._count = 0
        self._changing = threading.Lock()
        self._close = weakref.finalize(self, _remove, self.folder, lock, os.getpid())

    @property
    def bytes(self) -> int:
        """Bytes of the arrays that are there."""
        return sum(bytes_of(array.shape, array.dtype) for array in self._arrays.values())

    def create(self, shape: tuple[int, ...], dtype: Any) -> FileArray:
        """Make an array to be written, with its disk space taken.

        Raises
        ------
        StoreError
            For a full disk, naming the file, the bytes needed and those that are free.
        """
        dtype = np.dtype(dtype)
        if dtype.hasobject or not shape:
            raise DataError(
                f"{self.where}: an array of shape {shape} and dtype {dtype} has no rows of numbers "
                "to put on disk."
            )
        with self._changing:
            if not self._close.alive:
                raise DataError(f"{self.where}: {self.folder} is closed. Make another Scratch.")
            path = self.folder / f"{self._count:06d}.raw"
            self._count += 1
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600
        )
        try:
            reserve(descriptor, bytes_of(shape, dtype), str(path))
            array = FileArray(
                path, 0, shape, dtype, descriptor=descriptor, writable=True, kind="scratch"
            )
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        self._arrays[path] = array
        return array

    def save(self, values: NDArray[Any]) -> FileArray:
        """Write an array of NumPy; nothing of it is left if that fails."""
        values = np.asarray(values)
        native = values.dtype.newbyteorder("=") if values.dtype.kind != "V" else values.dtype
        array = self.create(values.shape, native)
        try:
            array.write(0, values.astype(native, copy=False))
        except BaseException:
            self.remove(array)
            raise
        return array

    def remove(self, stored: FileArray) -> None:
        """Remove one array and give its space back."""
        if self._arrays.pop(stored.path, None) is None:
            raise DataError(f"{self.where}: {stored.name} is no array of {self.folder}.")
        stored.close()
        stored.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all arrays and the folder; nothing the second time."""
        for array in self._arrays.values():
            array.close()
        self._arrays.clear()
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _remove(folder: Path, lock: Lock, process: int) -> None:
    if os.getpid() == process:  # a process that was forked off owns nothing of it
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
