"""What runs have left on disk: who is alive, what can be resumed, what can go."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stowplan.errors import DataError, PlanError
from stowplan.stores.locks import Lock, is_held
from stowplan.stores.manifest import MANIFEST, manifest_facts
from stowplan.stores.run_folder import LOCK
from stowplan.stores.scratch import PREFIX
from stowplan.stores.unfinished import KEPT, PART

__all__ = ["Leftover", "find_leftovers", "remove_leftover"]

SCRATCH = re.compile(re.escape(PREFIX) + r"\d+-\w+")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A folder or file of a run.

    Attributes
    ----------
    kind
        ``"run"`` (a folder to resume), ``"scratch"``, ``"part"`` (an output that was not finished)
        or ``"output"`` (one that can be resumed).
    modified : float
        When it was changed last, in seconds since 1970.
    alive : bool
        Whether a process holds its lock.
    done, batches : int or None
        Batches that are finished, and all of them, for a run.
    """

    path: Path
    kind: Literal["run", "scratch", "part", "output"]
    bytes: int
    modified: float
    alive: bool
    done: int | None = None
    batches: int | None = None

    @property
    def has_results(self) -> bool:
        """Whether a run could go on from it."""
        return self.kind == "output" or bool(self.done)


def find_leftovers(path: str | os.PathLike[str]) -> list[Leftover]:
    """Find the folders of runs, scratch folders and unfinished outputs at or below a folder.

    Raises
    ------
    DataError
        Where there is no such folder.
    """
    top = Path(path)
    if not top.is_dir():
        raise DataError(f"{top}: there is no such folder.")
    return sorted(_below(top), key=lambda found: found.path)


def remove_leftover(found: Leftover) -> bool:
    """Remove what no living process holds; False where one does now."""
    key = found.path / LOCK if found.kind == "run" else found.path
    try:
        lock = Lock.take(key)
    except FileNotFoundError:
        if not found.path.exists():
            return True
        lock = None
        if found.kind == "run":  # without a lock file nobody has it open
            shutil.rmtree(found.path)
            return True
    if lock is None:
        return False
    try:
        if found.path.is_dir():
            shutil.rmtree(found.path)
        else:
            found.path.unlink()
    finally:
        lock.release()
    return True


def _below(folder: Path) -> Iterator[Leftover]:
    found = _of(folder)
    if found is not None:
        yield found
        return
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _below(path)
        elif entry.is_file(follow_symlinks=False):
            one = _of(path)
            if one is not None:
                yield one


def _of(path: Path) -> Leftover | None:
    """Give what a path is, if it is a run's."""
    if path.name.endswith((PART, KEPT)):
        kind: Literal["part", "output"] = "part" if path.name.endswith(PART) else "output"
        return Leftover(path, kind, *_facts(path), is_held(path))
    if not path.is_dir():
        return None
    if SCRATCH.fullmatch(path.name):
        return Leftover(path, "scratch", *_facts(path), is_held(path))
    if (path / MANIFEST).is_file():
        try:
            done, batches = manifest_facts(path)
        except (PlanError, OSError):
            return None
        return Leftover(path, "run", *_facts(path), is_held(path / LOCK), done, batches)
    return None


def _facts(path: Path) -> tuple[int, float]:
    """Give the bytes on disk and the last change of a file, or of all in a folder."""
    files: Iterable[Path] = [path, *path.rglob("*")] if path.is_dir() else [path]
    size, latest = 0, 0.0
    for file in files:
        try:
            facts = file.lstat()
        except FileNotFoundError:  # of a run that is alive
            continue
        size += facts.st_size if not file.is_dir() else 0
        latest = max(latest, facts.st_mtime)
    return size, latest
