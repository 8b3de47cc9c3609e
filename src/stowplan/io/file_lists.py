"""Files that a path, a pattern, a folder or a list of them means, in one order."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from stowplan.errors import DataError

__all__ = ["list_files"]

StrPath = str | os.PathLike[str]


def list_files(paths: StrPath | Iterable[StrPath]) -> list[Path]:
    """List the files that are meant.

    Parameters
    ----------
    paths
        A file; a folder, which means the files in it; a pattern such as ``"run/*.png"`` (``**``
        reaches into folders below); or an iterable of these, whose order is kept. A name that
        exists is no pattern. Hidden files count only where they are named.

    Returns
    -------
    list of Path
        Files of one folder or pattern are in natural order: whole numbers in names count as
        numbers, so that ``frame2`` comes before ``frame10``.

    Raises
    ------
    DataError
        For what means no file, names of equal order such as ``frame1`` and ``frame01``, and a
        folder that holds files of several suffixes.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number in (1, 10, 2):
    ...         Path(folder, f"frame{number}.png").touch()
    ...     [path.name for path in list_files(f"{folder}/*.png")]
    ['frame1.png', 'frame2.png', 'frame10.png']
    """
    if isinstance(paths, (str, os.PathLike)):
        return _files_of(paths)
    if not isinstance(paths, Iterable) or isinstance(paths, bytes):
        raise DataError(f"read: {paths!r} is no path; give text, a Path, or a list of them.")
    entries = list(paths)
    if not entries:
        raise DataError("read: the list of paths is empty. Give at least one.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, (str, os.PathLike)):
            raise DataError(f"read: entry {number} of the list, {entry!r}, is no path.")
    return [file for entry in entries for file in _files_of(entry)]


def _files_of(entry: StrPath) -> list[Path]:
    name = os.fspath(entry)
    path = Path(name)
    if name and path.is_dir():
        return _in_order(name, _files_in(path))
    if name and path.exists():
        return [path]
    if not any(character in name for character in "*?["):
        raise DataError(f"read: {name!r} is no file.")
    matches = glob.glob(name, recursive=True)  # noqa: PTH207 - it takes absolute patterns
    files = [Path(match) for match in matches if Path(match).is_file()]
    if not files:
        raise DataError(f"read: no file matches {name!r}, seen from {os.fspath(Path.cwd())!r}.")
    return _in_order(name, files)


def _files_in(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    if not files:
        raise DataError(f"read: {os.fspath(folder)!r} is a folder without files.")
    counts = Counter(path.suffix for path in sorted(files))
    if len(counts) > 1:
        kinds = ", ".join(f"{n} of {suffix or 'no suffix'!r}" for suffix, n in counts.items())
        pattern = os.fspath(folder / f"*{counts.most_common(1)[0][0]}")
        raise DataError(
            f"read: {os.fspath(folder)!r} holds files of several suffixes: {kinds}. Say which are "
            f"meant: {pattern!r}."
        )
    return files


def _in_order(name: str, files: list[Path]) -> list[Path]:
    ordered = sorted(files, key=_natural)
    for one, other in pairwise(ordered):
        if _natural(one) == _natural(other):
            raise DataError(
                f"read: {name!r} has no natural order: {os.fspath(one)!r} and "
                f"{os.fspath(other)!r} hold the same numbers. Give a list of paths in your order."
            )
    return ordered


def _natural(path: Path) -> list[list[str | int]]:
    """Texts and numbers in turn, part by part: like is compared with like."""
    return [
        [int(word) if word.isdecimal() else word for word in re.split("([0-9]+)", part)]
        for part in path.parts
    ]
