"""What runs have left on disk: who is alive, what can be resumed, what can go."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stowplan.errors import DataError, PlanError
from stowplan.stores.locks import Lock, is_held
from stowplan.stores.manifest import MANIFEST, is_damaged, manifest_facts
from stowplan.stores.run_folder import LOCK, run_files
from stowplan.stores.scratch import PREFIX
from stowplan.stores.unfinished import KEPT, OLD, PART, unfinished

__all__ = ["Leftover", "find_leftovers", "remove_leftover", "strange_file"]

SCRATCH = re.compile(re.escape(PREFIX) + r"\d+-\w+")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A folder or file of a run.

    Attributes
    ----------
    kind
        ``"run"`` (a folder to resume), ``"scratch"``, ``"part"`` (an output that was not finished),
        ``"output"`` (one that can be resumed) or ``"old"`` (an array that another was to replace).
    bytes
        Of a run: of the files that it has written to its folder.
    modified : float
        When it was changed last, in seconds since 1970.
    alive : bool
        Whether a process holds its lock.
    done, batches : int or None
        Batches that are finished, and all of them, for a run.
    damaged : bool
        Whether the manifest of a run cannot be read, so that nobody knows what is finished.
    """

    path: Path
    kind: Literal["run", "scratch", "part", "output", "old"]
    bytes: int
    modified: float
    alive: bool
    done: int | None = None
    batches: int | None = None
    damaged: bool = False

    @property
    def has_results(self) -> bool:
        """Whether a run could go on from it, or may have finished batches there."""
        return self.kind == "output" or bool(self.done) or self.damaged

    @property
    def target(self) -> Path:
        """What an array that was set aside is a copy of."""
        return self.path.with_name(self.path.name.removesuffix(OLD))

    @property
    def is_only_copy(self) -> bool:
        """Whether it is an array that was set aside, and none has taken its place."""
        return self.kind == "old" and not self.target.exists()


def find_leftovers(path: str | os.PathLike[str]) -> list[Leftover]:
    """Find the folders of runs, scratch folders and unfinished outputs at or below a folder.

    What lies in the folder of a run comes before that. A link to a folder is followed, links below
    it are not.

    Raises
    ------
    DataError
        Where there is no such folder.
    """
    top = Path(path)
    if top.is_file():
        raise DataError(f"{top} is a file, not a folder. Name the folder that it lies in.")
    if not top.is_dir():
        raise DataError(f"{top}: there is no such folder.")
    return list(_below(top.resolve() if top.is_symlink() else top))


def remove_leftover(found: Leftover) -> bool:
    """Remove what no living process holds; False where one does now.

    Of the folder of a run the run's own files are removed, and the folder once it is empty. An
    array that was set aside stays as long as nothing has taken its place.
    """
    if not found.path.exists():
        return True
    if found.is_only_copy:
        return False
    with ExitStack() as held:
        for path in _locked_by(found):
            try:
                lock = Lock.take(path)
            except FileNotFoundError:  # without a lock file nobody has it open
                continue
            if lock is None:
                return False
            held.callback(lock.release)
        if found.kind == "run":
            _remove_run(found.path)
        elif found.is_only_copy:  # another run has taken it away since
            return False
        elif found.path.is_dir():
            shutil.rmtree(found.path)
        else:
            found.path.unlink(missing_ok=True)
    return True


def strange_file(found: Leftover, gone: Collection[Path] = ()) -> Path | None:
    """Give the first of what lies in a run's folder and is not the run's, so that the folder stays.

    Parameters
    ----------
    gone
        Other leftovers, which do not count.
    """
    if found.kind != "run" or not found.path.is_dir():
        return None
    known = {*run_files(found.path), *gone}
    return min((path for path in found.path.iterdir() if path not in known), default=None)


def _remove_run(folder: Path) -> None:
    for path in run_files(folder):
        path.unlink(missing_ok=True)
    try:
        folder.resolve().rmdir()  # the system does not remove "."
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _locked_by(found: Leftover) -> list[Path]:
    """Give what is locked by those who use it."""
    if found.kind == "run":
        return [found.path / LOCK]
    if found.kind == "old":  # the lock of a new array goes with it when it gets its name
        target = found.target
        return [target, *(unfinished(target, resumable=kept) for kept in (False, True))]
    return [found.path]


def _below(folder: Path, *, alive: bool = False) -> Iterator[Leftover]:
    found = _of(folder)
    own: set[Path] = set()
    if found is not None:
        found = replace(found, alive=found.alive or alive)
        if found.kind != "run":
            yield found
            return
        own, alive = set(run_files(folder)), found.alive
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError:
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _below(path, alive=alive)
        elif entry.is_file(follow_symlinks=False) and path not in own:
            one = _of(path)
            if one is not None:
                yield replace(one, alive=one.alive or alive)
    if found is not None:
        yield found


def _of(path: Path) -> Leftover | None:
    """Give what a path is, if it is a run's."""
    if path.name.endswith((PART, KEPT)):
        kind: Literal["part", "output"] = "part" if path.name.endswith(PART) else "output"
        return Leftover(path, kind, *_facts(path), is_held(path))
    if not path.is_dir():
        return None
    if SCRATCH.fullmatch(path.name):
        return Leftover(path, "scratch", *_facts(path), is_held(path))
    if path.name.endswith(OLD):
        found = Leftover(path, "old", *_facts(path), alive=False)
        return replace(found, alive=any(map(is_held, _locked_by(found))))
    if (path / MANIFEST).is_file():
        return _of_run(path)
    return None


def _of_run(folder: Path) -> Leftover | None:
    try:
        files = run_files(folder)
        done, batches, damaged = *manifest_facts(folder), False
    except PlanError:
        # Another program's file of this name has none of a run's beside it.
        if files == [folder / MANIFEST] or not is_damaged(folder):
            return None
        done, batches, damaged = None, None, True
    except OSError:
        return None
    facts = _facts(folder, files)
    return Leftover(folder, "run", *facts, is_held(folder / LOCK), done, batches, damaged)


def _facts(path: Path, files: Iterable[Path] | None = None) -> tuple[int, float]:
    """Give the bytes on disk and the last change of a file, of a folder with some or all files."""
    if files is None:
        files = path.rglob("*") if path.is_dir() else ()
    size, latest = 0, 0.0
    for file in (path, *files):
        try:
            facts = file.lstat()
        except FileNotFoundError:  # of a run that is alive
            continue
        size += facts.st_size if not file.is_dir() else 0
        latest = max(latest, facts.st_mtime)
    return size, latest
