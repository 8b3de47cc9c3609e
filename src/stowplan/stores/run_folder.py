"""The folder of a run: results of batches, so that a run that was cut off goes on."""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from stowplan.errors import PlanError
from stowplan.stores.batch_files import read_batch, write_batch
from stowplan.stores.descriptors import (
    disk_error,
    sync_folder,
)
from stowplan.stores.locks import Lock
from stowplan.stores.manifest import (
    MANIFEST,
    VERSION,
    Record,
    header_line,
    line_of,
    parse_manifest,
    refuse_others,
)
from stowplan.stores.unfinished import PART

__all__ = ["LARGE", "LOCK", "MANIFEST", "Record", "RunFolder", "run_files"]

_log = logging.getLogger("stowplan")

LOCK = "lock"
FIRST_MANIFEST = "manifest.json"  # of version 1
LARGE = "large"
"""Within it, the folder of items that are too large for batches."""
PLANS = {"plan.json", "plan.npz"}
OWN = {MANIFEST, LOCK, MANIFEST + PART, *PLANS, LARGE}
"""What may lie in a folder that a run is about to make its own."""
WRITTEN = {MANIFEST, MANIFEST + PART, *PLANS, *(name + ".part" for name in PLANS), LOCK}
"""What a run writes there beside its batches."""
BATCH = re.compile(rf"batch-\d{{6,}}\.bin({re.escape(PART)})?")


def run_files(folder: Path) -> list[Path]:
    """Give the files that a run itself has written to its folder: batches first, the lock last.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     RunFolder(folder, {"plan": "5f2c"}, "run").close()
    ...     _ = Path(folder, "thesis.tex").write_text("mine")
    ...     [path.name for path in run_files(Path(folder))]
    ['manifest.jsonl', 'lock']
    """
    found = [
        Path(entry.path)
        for entry in os.scandir(folder)
        if (entry.name in WRITTEN or BATCH.fullmatch(entry.name))
        and not entry.is_dir(follow_symlinks=False)
    ]
    return sorted(found, key=lambda path: (path.name == LOCK, path.name == MANIFEST, path.name))


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
    >>> import numpy as np
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
        name = f"batch-{number:06d}.bin"
        size, crc, arrays = write_batch(
            self.folder / name, outputs, f"{self.where}: batch {number}"
        )
        self._append(Record(number, size, crc, name, None, arrays, kind))

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
        return read_batch(self.folder / record.file, record), record.kind

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
            if lock is not None and lock.is_of(path):
                return lock
            if lock is not None:
                lock.release()
            self._make()  # it was removed in between, as a leftover of a dead run

    def _take(self, path: Path) -> Lock | None:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            lock = Lock.take(path)
        except FileNotFoundError:
            return None
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
        part = self._manifest.with_name(MANIFEST + PART)
        try:
            with part.open("wb") as file:
                file.write(header_line(identity, batches))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            part.unlink(missing_ok=True)
            raise disk_error(error, str(self._manifest), 1024) from error
        part.replace(self._manifest)
        sync_folder(self.folder)

    def _read_manifest(self, identity: Mapping[str, str]) -> None:
        header, records, garbled = parse_manifest(self._manifest, self.where)
        refuse_others(header, identity, self.folder, self.where)
        for line in garbled:
            _log.warning(
                "%s: line %d of %s is damaged or was cut off; its batch is computed again.",
                self.where, line, self._manifest,
            )  # fmt: skip
        self._records = records
        self._cut_off = not self._manifest.read_bytes().endswith(b"\n")

    def _append(self, record: Record) -> None:
        """Add a line to the manifest, in one piece."""
        line = line_of(record)
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
