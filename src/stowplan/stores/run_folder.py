"""The folder of a run: results of batches, so that a run that was cut off goes on."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError, PlanError
from stowplan.ragged import Ragged
from stowplan.stores.descriptors import (
    bytes_view,
    disk_error,
    read_into,
    reserve,
    sync_folder,
    write_from,
)
from stowplan.stores.locks import Lock
from stowplan.stores.stored import PART

__all__ = ["LOCK", "MANIFEST", "Record", "RunFolder", "has_records", "manifest_facts"]

_log = logging.getLogger("stowplan")

FORMAT = "stowplan run"
VERSION = 2
MANIFEST = "manifest.jsonl"
LOCK = "lock"
FIRST_MANIFEST = "manifest.json"  # of version 1
OWN = {MANIFEST, LOCK, MANIFEST + PART, "plan.json", "plan.npz"}
"""What may lie in a folder that a run is about to make its own."""
ALIGNED = 64
"""Arrays begin at multiples of this."""


@dataclass(frozen=True, slots=True)
class Record:
    """A batch that is done, as its line of the manifest says."""

    batch: int
    bytes: int
    crc32: int
    file: str | None = None  # in the folder; None where the data lie in an output
    where: Any = None  # for those, as it was recorded
    arrays: tuple[Mapping[str, Any], ...] = ()
    kind: Any = None


class RunFolder:
    """A folder with a file for each batch that is done, and a manifest with a line for each.

    A line follows its data: they are written under another name, brought to the disk, renamed, and
    only then told of. Lines and data carry a crc32. Nothing is pickled. As long as the folder is
    open, no other process opens it.

    Parameters
    ----------
    folder
        Made if it is not there.
    identity : mapping of str to str
        What the results depend on, part by part, such as ``{"plan": "5f2c..."}``.
    where
        The caller, for messages.
    batches
        How many there are in all, for people who look at the folder.

    Raises
    ------
    PlanError
        For a folder that holds batches of another run, naming the parts that differ, or other
        files; that cannot be written to; or that another process has open, naming it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RunFolder(folder, {"plan": "5f2c"}, "run") as batches:
    ...         batches.save(3, [np.arange(2.0)])
    ...     with RunFolder(folder, {"plan": "5f2c"}, "run") as again:
    ...         sorted(again.numbers()), again.load(3)
    ([3], [array([0., 1.])])
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        identity: Mapping[str, str],
        where: str,
        *,
        batches: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.where = where
        self._manifest = self.folder / MANIFEST
        self._records: dict[int, Record] = {}
        self._descriptor = -1
        self._cut_off = False
        self._writing = threading.Lock()
        self._make()
        self._lock = self._locked()
        try:
            if self._manifest.is_file():
                self._read_manifest(identity)
            else:
                self._begin(identity, batches)
            flags = os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self._manifest, flags)
            for part in self.folder.glob(f"batch-*{PART}"):
                part.unlink()  # of a run that was killed
        except PermissionError as error:
            self.close()
            raise self._unwritable(error) from error
        except BaseException:
            self.close()
            raise

    def numbers(self) -> set[int]:
        """Give the batches that are done."""
        return set(self._records)

    def records(self) -> dict[int, Record]:
        """Give what the manifest says of the batches that are done."""
        return dict(self._records)

    def save(self, number: int, outputs: Sequence[Any], kind: Sequence[str] | None = None) -> None:
        """Keep the outputs of a batch, of NumPy, and a word on their kind.

        Raises
        ------
        StoreError
            For a full disk, naming the file; what was saved before is kept.
        """
        described, pieces = [], []
        for output in outputs:
            ragged = isinstance(output, Ragged)
            packed = output.compact() if ragged else output
            arrays = [packed.values, packed.shapes] if ragged else [packed]
            for role, given in zip(("ragged", "shapes") if ragged else ("array",), arrays,
                                   strict=True):  # fmt: skip
                array = np.asarray(given)
                if array.dtype.hasobject:
                    raise DataError(
                        f"{self.where}: batch {number} gave objects ({array.dtype}), which are not "
                        "stored: pickle runs code when it reads them. Give numbers."
                    )
                described.append(
                    {"dtype": _dtype_name(array.dtype), "shape": list(array.shape), "kind": role}
                )
                pieces.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        name = f"batch-{number:06d}.bin"
        size, crc = self._write_file(self.folder / name, pieces)
        self._append(Record(number, size, crc, name, None, tuple(described), kind))

    def record(self, number: int, crc32: int, size: int, where: Any) -> None:
        """Note a batch whose data lie in an output outside of the folder, on the disk already.

        Parameters
        ----------
        where
            What finds them again, of JSON: such as ``["out.npy", 0, 64]``.
        """
        self._append(Record(number, size, crc32, None, where))

    def load(self, number: int) -> list[Any]:
        """Give the outputs of a batch back."""
        return self.read(number)[0]

    def read(self, number: int) -> tuple[list[Any], list[str] | None]:
        """Give the outputs of a batch, and the word on their kind.

        Raises
        ------
        OSError, ValueError
            Where the file is damaged, or there is none.
        """
        record = self._records[number]
        if record.file is None:
            raise ValueError(f"batch {number} lies in {record.where}, not in {self.folder}")
        content = self._read_file(record)
        outputs: list[Any] = []
        place = 0
        values: Any = None
        for one in record.arrays:
            dtype, shape = _dtype_named(one["dtype"]), tuple(one["shape"])
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            array = content[place : place + size].view(dtype).reshape(shape)
            place += size + -size % ALIGNED
            if one["kind"] == "ragged":
                values = array
            else:
                outputs.append(Ragged(values, array) if one["kind"] == "shapes" else array)
        return outputs, record.kind

    def readable(self) -> dict[int, tuple[list[Any], list[str] | None]]:
        """Give all batches that are whole; what is damaged is told, and counts as not done."""
        found = {}
        for number in sorted(self._records):
            if self._records[number].file is None:
                continue
            try:
                found[number] = self.read(number)
            except (OSError, ValueError) as error:
                _log.warning("%s: batch %d is computed again: %s", self.where, number, error)
                del self._records[number]
        return found

    def close(self) -> None:
        """Let another run have the folder."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise PlanError(
                f"{self.where}: resume={str(self.folder)!r} is no folder of a run and none can be "
                f"made there: {error}."
            ) from error
        if self._manifest.is_file():
            return
        if (self.folder / FIRST_MANIFEST).is_file():
            raise PlanError(
                f"{self.where}: {self.folder / FIRST_MANIFEST} has version 1; this stowplan reads "
                f"version {VERSION}. Name a new folder, or install the stowplan that wrote it."
            )
        strangers = sorted(path.name for path in self.folder.iterdir() if path.name not in OWN)
        if strangers:
            raise PlanError(
                f"{self.where}: resume={str(self.folder)!r} has no {MANIFEST}, but files that are "
                f"none of a run's, {strangers[0]} for one. Name the folder of a run, or a new one."
            )

    def _locked(self) -> Lock:
        """Take the folder, or say who has it."""
        path = self.folder / LOCK
        while True:
            lock = self._take(path)
            if lock.is_of(path):
                return lock
            lock.release()  # the folder was removed in between, as a leftover of a dead run
            self._make()

    def _take(self, path: Path) -> Lock:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            lock = Lock.take(path)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            if lock is None:
                owner = os.read(descriptor, 100).decode(errors="replace").strip() or "unknown"
                raise PlanError(
                    f"{self.where}: resume={str(self.folder)!r} is in use by another run, process "
                    f"{owner}. Wait until it is done, or name another folder."
                )
            if not os.access(self.folder, os.W_OK | os.X_OK):
                lock.release()
                raise self._unwritable("it is read-only")
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        finally:
            os.close(descriptor)
        return lock

    def _unwritable(self, why: object) -> PlanError:
        return PlanError(
            f"{self.where}: resume={str(self.folder)!r} cannot be written to: {why}. Nothing was "
            "computed. Name a folder that can."
        )

    def _begin(self, identity: Mapping[str, str], batches: int | None) -> None:
        header = {
            "format": FORMAT, "version": VERSION, "identity": dict(identity), "batches": batches,
        }  # fmt: skip
        part = self._manifest.with_name(MANIFEST + PART)
        try:
            with part.open("wb") as file:
                file.write(json.dumps(header).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            part.unlink(missing_ok=True)
            raise disk_error(error, str(self._manifest), 1024) from error
        part.replace(self._manifest)
        sync_folder(self.folder)

    def _read_manifest(self, identity: Mapping[str, str]) -> None:
        header, records, garbled = _parsed(self._manifest, self.where)
        _refuse_others(header, identity, self.folder, self.where)
        for line in garbled:
            _log.warning(
                "%s: line %d of %s is damaged or was cut off; its batch is computed again.",
                self.where, line, self._manifest,
            )  # fmt: skip
        self._records = records
        self._cut_off = not self._manifest.read_bytes().endswith(b"\n")

    def _append(self, record: Record) -> None:
        """Add a line to the manifest, in one piece."""
        line = _line(record)
        with self._writing:
            line = b"\n" * self._cut_off + line  # a crash or a full disk may have cut the last
            self._cut_off = True
            try:
                if os.write(self._descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, "No space left on device")
                os.fsync(self._descriptor)
            except OSError as error:
                raise disk_error(error, str(self._manifest), len(line)) from error
            self._cut_off = False
            self._records[record.batch] = record

    def _write_file(self, path: Path, pieces: Sequence[NDArray[np.uint8]]) -> tuple[int, int]:
        """Write arrays one after another under another name, then give the file its own."""
        part = path.with_name(path.name + PART)
        buffers, crc = [], 0
        for piece in pieces:
            for view in (bytes_view(piece), memoryview(bytes(-piece.size % ALIGNED))):
                buffers.append(view)
                crc = zlib.crc32(view, crc)
        size = sum(view.nbytes for view in buffers)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            reserve(descriptor, size, str(path))
            write_from(descriptor, 0, buffers, str(path))
            os.fsync(descriptor)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        part.replace(path)
        sync_folder(self.folder)
        return size, crc

    def _read_file(self, record: Record) -> NDArray[np.uint8]:
        path = self.folder / str(record.file)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            size = os.fstat(descriptor).st_size
            if size != record.bytes:
                raise ValueError(f"{path} has {size} bytes, {record.bytes} were written")
            content = np.empty(size, np.uint8)
            read_into(descriptor, 0, [bytes_view(content)])
        finally:
            os.close(descriptor)
        if zlib.crc32(bytes_view(content)) != record.crc32:
            raise ValueError(f"{path} is damaged: its crc32 is not that of what was written")
        return content


def has_records(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a run that has finished a batch.

    >>> has_records("no such folder")
    False
    """
    path = Path(folder)
    return (path / MANIFEST).is_file() and manifest_facts(path)[0] > 0


def manifest_facts(folder: Path) -> tuple[int, int | None]:
    """Give how many batches of a run are done, and how many there are, if that is known.

    Raises
    ------
    PlanError
        For what is no folder of a run.
    """
    header, records, _ = _parsed(folder / MANIFEST, "runs")
    return len(records), header.get("batches")


def _parsed(path: Path, where: str) -> tuple[dict[str, Any], dict[int, Record], list[int]]:
    """Give header, records and the numbers of lines that do not count."""
    first, *lines = path.read_bytes().split(b"\n")
    try:
        header = json.loads(first)
    except ValueError as error:
        raise PlanError(f"{where}: {path} is no manifest: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PlanError(f'{where}: {path}: "format" is not {FORMAT!r}.')
    if header.get("version") != VERSION:
        raise PlanError(
            f"{where}: {path} has version {header.get('version')!r}; this stowplan reads version "
            f"{VERSION}. Name a new folder, or install the stowplan that wrote it."
        )
    records, garbled = {}, []
    for number, line in enumerate(lines, start=2):
        if not line:
            continue
        record = _record(line)
        if record is None:
            garbled.append(number)
        else:
            records[record.batch] = record
    return header, records, garbled


def _refuse_others(
    header: Mapping[str, Any], identity: Mapping[str, str], folder: Path, where: str
) -> None:
    saved = header.get("identity", {})
    names = dict.fromkeys([*identity, *saved])
    others = [name for name in names if identity.get(name) != saved.get(name)]
    if others:
        raise PlanError(
            f"{where}: resume={str(folder)!r} holds batches of another run: {', '.join(others)} "
            f"differ{'s' if len(others) == 1 else ''}. Give what that run had, or name a new "
            "folder."
        )


def _line(record: Record) -> bytes:
    facts = {
        "batch": record.batch, "file": record.file, "bytes": record.bytes, "crc32": record.crc32,
        "where": record.where, "arrays": list(record.arrays), "kind": record.kind,
    }  # fmt: skip
    text = json.dumps(facts)
    return f'{text[:-1]}, "line": {zlib.crc32(text.encode())}}}\n'.encode()


def _record(line: bytes) -> Record | None:
    """Give what a line says; None where it is not as it was written."""
    body, _, end = line.rpartition(b', "line": ')
    try:
        if end[-1:] != b"}" or zlib.crc32(body + b"}") != int(end[:-1]):
            return None
        facts = json.loads(body + b"}")
    except ValueError:
        return None
    return Record(**{**facts, "arrays": tuple(facts["arrays"])})


def _dtype_name(dtype: np.dtype[Any]) -> str:
    return dtype.name if dtype.kind == "V" else dtype.str


def _dtype_named(name: str) -> np.dtype[Any]:
    """Give a dtype; bfloat16 and its kin are known by another package."""
    try:
        found = np.dtype(name)
    except TypeError:
        found = np.dtype(getattr(import_module("ml_dtypes"), name))
    return found
