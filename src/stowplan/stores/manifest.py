"""The manifest of a run: a header, and a line of JSON for each batch that is done."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stowplan.errors import PlanError

__all__ = [
    "MANIFEST",
    "Record",
    "VERSION",
    "has_records",
    "header_line",
    "is_damaged",
    "line_of",
    "manifest_facts",
    "parse_manifest",
    "refuse_others",
]

FORMAT = "stowplan run"
VERSION = 2
MANIFEST = "manifest.jsonl"


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


def header_line(identity: Mapping[str, str], batches: int | None) -> bytes:
    """Give the first line: what the results depend on, part by part."""
    header = {
        "format": FORMAT, "version": VERSION, "identity": dict(identity), "batches": batches,
    }  # fmt: skip
    return json.dumps(header).encode() + b"\n"


def manifest_facts(folder: Path) -> tuple[int, int | None]:
    """Give how many batches of a run are done, and how many there are, if that is known.

    Raises
    ------
    PlanError
        For what is no folder of a run.
    """
    header, records, _ = parse_manifest(folder / MANIFEST, "runs")
    return len(records), header.get("batches")


def is_damaged(folder: Path) -> bool:
    """Whether the first line of a manifest cannot be read, so that nobody knows what is done."""
    try:
        json.loads((folder / MANIFEST).read_bytes().partition(b"\n")[0])
    except ValueError:
        return True
    return False


def has_records(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a run that has finished a batch.

    >>> has_records("no such folder")
    False
    """
    path = Path(folder)
    return (path / MANIFEST).is_file() and manifest_facts(path)[0] > 0


def parse_manifest(path: Path, where: str) -> tuple[dict[str, Any], dict[int, Record], list[int]]:
    """Give header, records and the numbers of lines that do not count."""
    first, *lines = path.read_bytes().split(b"\n")
    try:
        header = json.loads(first)
    except ValueError as error:
        raise PlanError(
            f"{where}: {path} is no manifest: it was damaged or cut off ({error}), so that nobody "
            "knows which batches are done. Name another folder, or remove what the run has left "
            f"in this one: stowplan runs clean {path.parent} --finished"
        ) from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PlanError(
            f'{where}: {path}: "format" is not {FORMAT!r}. Name the folder of a run, or a new one.'
        )
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


def refuse_others(
    header: Mapping[str, Any], identity: Mapping[str, str], folder: Path, where: str
) -> None:
    """Refuse a folder of another run, naming the parts that differ."""
    saved = header.get("identity", {})
    names = dict.fromkeys([*identity, *saved])
    others = [name for name in names if identity.get(name) != saved.get(name)]
    if others:
        raise PlanError(
            f"{where}: resume={str(folder)!r} holds batches of another run: {', '.join(others)} "
            f"differ{'s' if len(others) == 1 else ''}. Give what that run had, or name a new "
            "folder."
        )


def line_of(record: Record) -> bytes:
    """Give the line of a batch, with a crc32 of its own."""
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
