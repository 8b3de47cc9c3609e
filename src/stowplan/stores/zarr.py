"""Arrays of zarr: read into place, errors that name the chunk, new ones in format 3."""

from __future__ import annotations

import itertools
import math
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError, StoreError
from stowplan.extras import import_extra
from stowplan.memory import show_bytes
from stowplan.stores.descriptors import FULL, disk_error, free_bytes, sync_folder
from stowplan.stores.regions import Region
from stowplan.stores.sliced import SlicedArray
from stowplan.stores.stored import bytes_of, check_dtype, check_part
from stowplan.stores.unfinished import OLD, Locked, exists, lock_part, unfinished
from stowplan.stores.zarr_chunks import RowChunks

__all__ = ["ZarrArray", "create_zarr", "open_zarr", "wrap_zarr"]

METADATA = ("zarr.json", ".zarray")  # of formats 3 and 2
GROUPS = (".zgroup", ".zmetadata")  # of format 2
CHUNK_BYTES = 256 << 20
"""Chunks beyond this are cut along the first axes that are longer than 1."""
BROKEN = (ValueError, RuntimeError, TypeError, KeyError, OSError, EOFError)
"""What codecs raise for a chunk that they cannot decode."""


class ZarrArray(Locked, SlicedArray):
    """An array of zarr, of a folder or of any other store."""

    def __init__(self, source: Any, name: str) -> None:
        super().__init__(source, name)
        self.folder = _folder_of(source)
        self.chunks = tuple(map(int, source.chunks))
        self.resumed = False
        at_once = _zarr().config.get("async.concurrency") or 10
        number = math.prod(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))
        # as they are in the store, and decoded
        self.reading_bytes = 2 * bytes_of(self.chunks, self.dtype) * min(at_once, number)
        self._target: Path | None = None
        self._seen = self._metadata_time()
        self._plain = RowChunks.of(source.metadata, self.folder, name, source.dtype)
        if self._plain is not None:
            self.reading_bytes = 0

    def identity(self) -> tuple[Any, ...]:
        """Give where it lies, its metadata, and size and time of its files."""
        facts = (self.shape, self.dtype.str, self.chunks, str(self.source.metadata.to_dict()))
        if self.folder is None:
            return ("zarr", str(self.source.store_path), *facts)
        found = [path.stat() for path in self.folder.rglob("*") if path.is_file()]
        size, latest = sum(one.st_size for one in found), max(one.st_mtime_ns for one in found)
        return ("zarr", str(self.folder.resolve()), *facts, len(found), size, latest)

    def write_region(self, index: tuple[slice, ...], values: NDArray[Any]) -> None:
        """Write a hyper-rectangle."""
        if self.source.read_only:
            raise DataError(f"{self.name} was opened for reading. Open it with mode='r+'.")
        try:
            if self._plain is None:
                super().write_region(index, values)
            else:
                values = np.asarray(values)
                region = Region.of(index, self.shape, self.name)
                check_part(self.name, region.shape, self.dtype, values)
                self._plain.write_region(region, values)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise disk_error(error, self.name, np.asarray(values).nbytes) from error

    def finish(self) -> None:
        """Bring everything to the disk and give the array its name."""
        if self._target is None or self.folder is None:
            return
        for folder, _, names in os.walk(self.folder):
            for name in names:
                _sync_file(Path(folder) / name)
            sync_folder(folder)
        aside = None
        if self._target.exists():
            aside = self._target.with_name(self._target.name + OLD)
            _remove(aside)
            self._target.rename(aside)
        self.folder.rename(self._target)
        sync_folder(self._target.parent)
        if aside is not None:
            _remove(aside)
        target, self._target = self._target, None
        zarr = _zarr()
        self.source = zarr.open_array(target, mode="r+")
        self.folder = target
        self._plain = RowChunks.of(self.source.metadata, target, self.name, self.source.dtype)
        self._seen = self._metadata_time()
        self._let_go()

    def discard(self) -> None:
        """Remove what was written; nothing if it is finished."""
        if self._target is not None and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._target = None
        self._let_go()

    def close(self) -> None:
        """Let go of the lock of a new array."""
        self._let_go()

    def _get(self, index: Any) -> NDArray[Any]:
        try:
            return np.asarray(self.source[index])
        except BROKEN as error:
            self._name_chunk(index, error)

    def read_region(
        self, index: tuple[slice, ...], into: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Give a hyper-rectangle, decoded straight into where it is wanted."""
        region = Region.of(index, self.shape, self.name)
        into = np.empty(region.shape, self.dtype) if into is None else into
        check_part(self.name, region.shape, self.dtype, into)
        self._refuse_changed()
        if self._plain is not None:
            self._plain.read_region(region, into)
            return into
        if self.source.dtype != into.dtype or not into.size:
            return super().read_region(index, into)
        buffers = import_extra("zarr", "zarr.buffer", "an array of zarr")
        try:
            out = buffers.cpu.NDBuffer.from_numpy_array(into)
            self.source.get_basic_selection(index, out=out)
        except BROKEN as error:
            self._name_chunk(index, error)
        return into

    def _name_chunk(self, index: Any, error: Exception) -> NoReturn:
        """Find the first chunk of a region that cannot be read."""
        parts = index if isinstance(index, tuple) else (index,)
        region = Region.of(parts, self.shape, self.name)
        grid = [
            range(start // chunk, -(-(start + count) // chunk))
            for start, count, chunk in zip(region.starts, region.shape, self.chunks, strict=True)
        ]
        for place in itertools.product(*grid):
            corner = tuple(
                slice(i * chunk, min((i + 1) * chunk, length))
                for i, chunk, length in zip(place, self.chunks, self.shape, strict=True)
            )
            try:
                self.source[corner]
            except BROKEN as cause:
                what = f"{type(cause).__name__}: {cause}"
                raise DataError(
                    f"{self.name}: chunk {place} cannot be read ({what}). Write it again."
                ) from cause
        raise DataError(f"{self.name}: {parts} cannot be read: {error}") from error

    def _metadata_time(self) -> int:
        if self.folder is None:
            return 0
        for name in METADATA:
            if (self.folder / name).is_file():
                return (self.folder / name).stat().st_mtime_ns
        raise DataError(f"{self.name}: it is gone: it changed while it was read.")

    def _shape(self) -> tuple[int, ...]:
        folder = getattr(self, "folder", None)
        if folder is not None and self._metadata_time() != self._seen:
            found = _zarr().open_array(folder, mode="r")
            if found.dtype != self.source.dtype:
                raise DataError(
                    f"{self.name}: it was {self.source.dtype} when it was opened and is "
                    f"{found.dtype} now: it changed while it was read."
                )
            return tuple(map(int, found.shape))
        return tuple(map(int, self.source.shape))


def open_zarr(path: str, inner: str) -> ZarrArray:
    """Open an array of a folder, by name where it is one of a group.

    Raises
    ------
    DataError
        For what is not there, listing what there is.
    """
    zarr = _zarr()
    if not Path(path).exists():
        raise DataError(f"{path}: there is no such folder.")
    try:
        node = zarr.open(path, mode="r")
    except (ValueError, OSError, KeyError, zarr.errors.BaseZarrError) as error:
        raise DataError(f"{path} is no array or group of zarr: {error}") from error
    if isinstance(node, zarr.Array):
        if inner:
            raise DataError(f"{path} is an array and has no {inner!r} in it. Give {path!r}.")
        return ZarrArray(node, path)
    arrays = {n: a for n, a in node.members(max_depth=None) if isinstance(a, zarr.Array)}
    inner = inner or (next(iter(arrays)) if len(arrays) == 1 else "")
    if inner not in arrays:
        named = f"no array {inner!r}" if inner else f"{len(arrays)} arrays"
        there = ", ".join(sorted(arrays)) or "none"
        raise DataError(f"{path} has {named}. Name one, {path}::NAME; there are: {there}.")
    return ZarrArray(arrays[inner], f"{path}::{inner}")


def wrap_zarr(source: Any) -> ZarrArray:
    """Give an open array of zarr."""
    zarr = _zarr()
    if not isinstance(source, zarr.Array):
        raise DataError(f"{source!r} is no array of zarr. Choose one: group['name'].")
    return ZarrArray(source, str(_folder_of(source) or source.store_path))


def create_zarr(
    path: str,
    inner: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    overwrite: bool,
    rows_together: int,
    chunks: tuple[int, ...] | None = None,
    resumable: bool,
    resume: bool,
) -> ZarrArray:
    """Make an array of format 3 without compression, under another name until it is finished.

    Random doubles do not get smaller; a chunk of nothing but zeros is not written.

    Raises
    ------
    DataError
        For what is there already, or is of another kind.
    StoreError
        For a full disk, or where another process is writing the array.
    """
    zarr = _zarr()
    dtype = check_dtype(dtype, path)
    target = Path(path, *inner.split("/")) if inner else Path(path)
    name = f"{path}::{inner}" if inner else path
    part = unfinished(target, resumable=resumable or resume)
    _refuse_other_kind(Path(path), inner)
    if resume and target.is_dir() and not part.exists():
        array = open_zarr(path, inner)
        if (array.shape, array.dtype) == (shape, dtype):
            found = ZarrArray(zarr.open_array(target, mode="r+"), name)
            found.resumed = True
            return found
    if target.exists() and not overwrite:
        raise exists(name)
    if inner:
        group = zarr.open_group(path, mode="a")
        if "/" in inner:
            group.require_group(inner.rpartition("/")[0])
    lock = None
    while lock is None:
        part.mkdir(exist_ok=True, parents=True)
        lock = lock_part(part)
    try:
        made = _resumed(zarr, part, shape, dtype) if resume else None
        resumed = made is not None
        if made is None:
            _refuse_too_large(part, bytes_of(shape, dtype), name)
            _empty(part)  # zarr would make another folder in its place, which nobody holds
            made = zarr.create_array(
                part, shape=shape, dtype=dtype,
                chunks=chunks or _chunks(shape, dtype, rows_together), compressors=None,
                filters=None, fill_value=0, zarr_format=3,
            )  # fmt: skip
        array = ZarrArray(made, name)
    except BaseException:
        if not resume:
            shutil.rmtree(part, ignore_errors=True)
        lock.release()
        raise
    array._lock, array._target, array.resumed = lock, target, resumed
    return array


def _refuse_other_kind(path: Path, inner: str) -> None:
    """Refuse files and folders that are none of zarr, and arrays where a group is to be."""
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path.parent} is no folder. Make it first.")
    node, parts = path, [part for part in inner.split("/") if part]
    for depth in range(len(parts) + 1):
        name = f"{path}::{'/'.join(parts[:depth])}" if depth else str(path)
        if not node.exists():
            return
        if not node.is_dir():
            raise DataError(
                f"{name} is a file, not a folder of zarr. Remove it, or name another output."
            )
        if depth == len(parts):
            break
        if _is_array(node):
            raise DataError(
                f"{name} is an array and has no {'/'.join(parts[depth:])!r} in it. Name another "
                "output, such as 'other.zarr::NAME'."
            )
        node /= parts[depth]
    known = any((node / one).exists() for one in METADATA + GROUPS)
    if not known and any(node.iterdir()):
        raise DataError(
            f"{name} is a folder of something else than zarr. Remove it, or name another output."
        )


def _is_array(folder: Path) -> bool:
    zarr = _zarr()
    if not any((folder / one).is_file() for one in METADATA):
        return False
    try:
        return isinstance(zarr.open(folder, mode="r"), zarr.Array)
    except (*BROKEN, zarr.errors.BaseZarrError) as error:
        raise DataError(f"{folder} cannot be opened as zarr: {error}") from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _resumed(zarr: Any, part: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    if not (part / METADATA[0]).is_file():
        return None
    made = zarr.open_array(part, mode="r+")
    return made if (tuple(made.shape), made.dtype) == (shape, dtype) else None


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _chunks(shape: tuple[int, ...], dtype: np.dtype[Any], rows: int) -> tuple[int, ...]:
    chunks = [max(length, 1) for length in (min(rows, shape[0]), *shape[1:])]
    while math.prod(chunks) * dtype.itemsize > CHUNK_BYTES:
        axis = next(axis for axis, length in enumerate(chunks) if length > 1)
        chunks[axis] = -(-chunks[axis] // 2)
    return tuple(chunks)


def _refuse_too_large(part: Path, needed: int, name: str) -> None:
    free = free_bytes(part)
    if needed > free:
        raise StoreError(
            f"{name} takes {needed} bytes ({show_bytes(needed)}), {free} are free in "
            f"{part.absolute().parent}. Free some space, or name another folder."
        )


def _folder_of(source: Any) -> Path | None:
    """Give the folder of an array that lies in one."""
    root = getattr(source.store, "root", None)
    return Path(root) / source.path if isinstance(root, str | os.PathLike) else None


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _zarr() -> Any:
    return import_extra("zarr", "zarr", "an array of zarr")
