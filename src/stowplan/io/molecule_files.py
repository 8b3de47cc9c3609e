"""Records of molecule files: one line of SMILES or one block of an SDF each, with its line."""

from __future__ import annotations

import csv
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from stowplan.errors import DataError

__all__ = ["MoleculeRecord", "iter_records"]

SMILES_SUFFIXES = (".smi", ".smiles", ".txt", ".csv", ".tsv")
BLOCK_SUFFIXES = (".sdf", ".sd", ".mol")
NAMES = ("name", "title", "id", "molecule", "compound")  # a column of names has one in its own
HEADER = re.compile(r"\w*smiles(_\w+)?")  # canonical_smiles, SMILES_2d
EXTENDED = re.compile(r"(\S+\s+\|[^|]*\|)\s*(.*)")  # SMILES with ChemAxon's extension, name


class MoleculeRecord(NamedTuple):
    """What a file says of one molecule."""

    line: int  # where it begins, from 1
    name: str
    text: str
    is_block: bool  # of an SDF; else SMILES


def iter_records(path: str | os.PathLike[str]) -> Iterator[MoleculeRecord]:
    r"""Give the records of a file, one after the other, without their chemistry.

    Parameters
    ----------
    path
        ``.smi``, ``.smiles``, ``.txt``, ``.csv``, ``.tsv``: a molecule a line, SMILES first, then
        its name. Blank lines and those that begin with ``#`` are skipped. A first line may be a
        header: one of its columns is called smiles or the like (the first one, if spaces separate
        them). Names stand in the first column called so (name, title, id, ...), else beside the
        SMILES. Columns are separated by tabs; where there are none, by commas if the header has
        some, else by spaces.
        ``.sdf``, ``.sd``, ``.mol``: blocks up to ``$$$$``, named by their first line. All may be
        packed: ``.sdf.gz``. What has no name is called by its line.

    Raises
    ------
    DataError
        For another suffix, and a file that cannot be unpacked.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.smi").write_text("smiles name\nCCO ethanol\n\nc1ccccc1\n")
    ...     for record in iter_records(Path(folder, "a.smi")):
    ...         print(record.line, record.name, record.text, sep=", ")
    2, ethanol, CCO
    4, line 4, c1ccccc1
    """
    path = Path(path)
    packed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    if suffix not in (*SMILES_SUFFIXES, *BLOCK_SUFFIXES):
        raise DataError(
            f"read_molecules: {os.fspath(path)!r} ends in {path.suffix or 'no suffix'!r}. SMILES "
            f"are read from {', '.join(SMILES_SUFFIXES)}, structures from "
            f"{', '.join(BLOCK_SUFFIXES)}, each also packed, with .gz behind."
        )
    return _open(path, packed, _blocks if suffix in BLOCK_SUFFIXES else _lines)


def _open(
    path: Path, packed: bool, split: Callable[[TextIO], Iterator[MoleculeRecord]]
) -> Iterator[MoleculeRecord]:
    opened = gzip.open if packed else open
    try:
        # A name in another encoding is no reason to refuse a molecule.
        with opened(path, "rt", encoding="utf-8-sig", errors="replace") as file:
            yield from split(file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"read_molecules: {os.fspath(path)!r} could not be unpacked. {error}"
        ) from error


def _blocks(file: TextIO) -> Iterator[MoleculeRecord]:
    start, block = 1, list[str]()
    for number, line in enumerate(file, 1):
        if not line.startswith("$$$$"):
            block.append(line)
            continue
        yield _block(start, block)
        start, block = number + 1, []
    if any(line.strip() for line in block):
        yield _block(start, block)


def _block(start: int, block: list[str]) -> MoleculeRecord:
    name = block[0].strip() if block else ""
    return MoleculeRecord(start, name or f"line {start}", "".join(block), True)


def _lines(file: TextIO) -> Iterator[MoleculeRecord]:
    columns = _Columns()
    first = True
    for number, line in enumerate(file, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        header = _Columns.of(line) if first else None
        if header is not None:
            columns = header
        else:
            smiles, name = columns.take(line)
            yield MoleculeRecord(number, name or f"line {number}", smiles, False)
        first = False


class _Columns(NamedTuple):
    """Where SMILES and names stand in a line."""

    smiles: int = 0
    name: int = 1
    separator: str = ""  # tabs, else spaces
    width: int = 2  # columns in all

    @classmethod
    def of(cls, header: str) -> _Columns | None:
        """Read a header, if it is one; of a molecule called smiles it is none."""
        separator = next((mark for mark in ("\t", ",") if mark in header), " ")
        words = [word.strip().lower() for word in _split(header, separator)]
        said = [place for place, word in enumerate(words) if HEADER.fullmatch(word)]
        if not said or (separator == " " and said[0] > 0):
            return None
        smiles = said[0]
        others = [place for place in range(len(words)) if place != smiles]
        called = [
            place for place in others if any(re.search(rf"{x}\b", words[place]) for x in NAMES)
        ]
        beside = [place for place in others if place > smiles] or others or [smiles + 1]
        return cls(smiles, (called or beside)[0], separator, max(len(words), 2))

    def take(self, line: str) -> tuple[str, str]:
        """Give SMILES and name; a column that is missing is empty."""
        extended = EXTENDED.fullmatch(line)
        if extended and self.smiles == 0 and self.separator in ("", " "):
            return extended[1], extended[2]
        parts = _split(line, self.separator or ("\t" if "\t" in line else " "), self.width)
        return tuple(
            parts[place].strip() if place < len(parts) else "" for place in (self.smiles, self.name)
        )  # type: ignore[return-value]  # of two


def _split(line: str, separator: str, count: int = 0) -> list[str]:
    """Split into words; the last of ``count`` columns may hold spaces."""
    if separator == ",":
        return next(csv.reader([line]))
    if separator == "\t":
        return line.split("\t")
    return line.split(None, count - 1) if count else line.split()
