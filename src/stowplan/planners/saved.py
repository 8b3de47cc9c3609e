"""Plans on disk: a header in JSON, index arrays in npz beside it; nothing is pickled."""

from __future__ import annotations

import errno
import json
import zipfile
import zlib
from contextlib import suppress
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import PlanError, StoreError
from stowplan.memory import Budget, show_bytes
from stowplan.peaks import Forecast
from stowplan.planners.batches import Batch, Plan
from stowplan.planners.cost import Costs

__all__ = ["load_plan", "save_plan"]

FORMAT = "stowplan plan"
VERSION = 1
PLAIN = tuple(
    "dims slots work derived mode exact on item_bytes alternatives headroom kernels".split()
)
LATER = {"devices": (), "shared_by": None}
"""Fields that plans saved before have not, and what they mean there."""
FULL = {
    errno.EFBIG: (
        "is larger than a file may be here (ulimit -f)", "Raise the limit (ulimit -f unlimited)"
    ),
    errno.ENOSPC: ("finds the disk full", "Free some space, or name another folder"),
    errno.EDQUOT: ("finds the quota full", "Free some space, or name another folder"),
}  # fmt: skip


def _paths(path: str | PathLike[str]) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".json", ".npz") else path
    return stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".npz")


def _checksum(arrays: dict[str, NDArray[Any]]) -> int:
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), total)
    return total


def save_plan(plan: Plan, path: str | PathLike[str]) -> None:
    """Write a plan to `path`.json and `path`.npz, each replaced at once.

    Raises
    ------
    StoreError
        For a full disk, a full quota and a limit on the size of files, naming the file; nothing is
        left of what was begun.

    Examples
    --------
    >>> import tempfile
    >>> from stowplan.planners import assign_slots
    >>> plan = assign_slots({"atoms": [2, 3]}, [{"atoms": 4}])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plan.save(f"{folder}/plan")
    ...     Plan.load(f"{folder}/plan").slots == plan.slots
    True
    """
    batches = plan.batches
    shape = (len(batches), len(plan.dims))
    arrays: dict[str, NDArray[Any]] = {
        "lengths": plan.lengths,
        "items": np.concatenate([np.zeros(0, np.int64), *(b.items for b in batches)]),
        "rows": np.array([len(batch.items) for batch in batches], np.int64),
        "counts": np.array([batch.count for batch in batches], np.int64),
        "capacities": np.array([batch.capacity for batch in batches], np.int64).reshape(shape),
        "slots": np.array([batch.slot for batch in batches], np.int64),
        "devices": np.array([batch.device for batch in batches], np.int64),
    }
    if plan.offsets is not None:
        arrays["offsets"] = plan.offsets
    header = {
        "format": FORMAT,
        "version": VERSION,
        **{name: getattr(plan, name) for name in (*PLAIN, *LATER)},
        "costs": asdict(plan.costs) if plan.costs else None,
        "memory": asdict(plan.memory) if plan.memory else None,
        "warnings": plan.warnings,
        "checksum": _checksum(arrays),
    }
    text = json.dumps(header, indent=1)
    header_path, arrays_path = _paths(path)
    header_part = header_path.with_name(header_path.name + ".part")
    arrays_part = arrays_path.with_name(arrays_path.name + ".part")
    target, needed = arrays_path, sum(array.nbytes for array in arrays.values())
    try:
        with arrays_part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy 2.1 has no allow_pickle=
        target, needed = header_path, len(text)
        header_part.write_text(text + "\n", encoding="utf-8")
        arrays_part.replace(arrays_path)
        header_part.replace(header_path)
    except BaseException as error:
        for part in (arrays_part, header_part):
            with suppress(OSError):
                part.unlink()
        if isinstance(error, OSError):
            raise _named(error, target, needed) from error
        raise


def _named(error: OSError, path: Path, needed: int) -> OSError:
    """Give what to raise for an error of a write: one that names the file."""
    if error.errno in FULL:
        why, cure = FULL[error.errno]
        return StoreError(
            f"save: {path} {why}: {needed} bytes ({show_bytes(needed)}) are to be written. {cure}."
        )
    return error if error.filename else OSError(error.errno, error.strerror, str(path))


def _header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PlanError(f"load: {path} is no saved plan: {error}. {_cure(path)}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PlanError(f'load: {path} is no saved plan: "format" is not {FORMAT!r}. {_cure(path)}')
    version = header.get("version")
    if version != VERSION:
        raise PlanError(
            f"load: {path} has version {version!r}; this stowplan reads version {VERSION}. "
            f"Install a newer stowplan: pip install --upgrade stowplan"
        )
    return header


def _cure(path: Path) -> str:
    return (
        "Save the plan again: plan.save(...). If this is the folder of a run, name another, "
        f"resume=..., or remove what the run has left: stowplan runs clean {path.parent} "
        "--finished"
    )


def _refuse_half(header_path: Path, arrays_path: Path) -> None:
    """Say which of the two files is missing, where the other one is there."""
    for missing, other in ((header_path, arrays_path), (arrays_path, header_path)):
        if other.exists() and not missing.exists():
            raise PlanError(
                f"load: {missing} is missing; a plan is two files, and {other.name} is there "
                f"alone. {_cure(missing)}"
            )


def load_plan(path: str | PathLike[str]) -> Plan:
    """Read a plan that `save_plan` wrote; `path` as given there, or either file.

    Raises
    ------
    FileNotFoundError
        If both files are missing.
    PlanError
        If one file is missing, is no plan, is damaged, or comes from a newer version.
    """
    header_path, arrays_path = _paths(path)
    _refuse_half(header_path, arrays_path)
    header = _header(header_path)
    try:
        with np.load(arrays_path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise PlanError(
            f"load: {arrays_path} holds no arrays of a plan: {error}. {_cure(arrays_path)}"
        ) from None
    if _checksum(arrays) != header.get("checksum"):
        raise PlanError(
            f"load: {arrays_path} is damaged, or not the twin of {header_path.name}. "
            f"{_cure(arrays_path)}"
        )
    for array in (arrays["lengths"], arrays["items"]):
        array.flags.writeable = False
    stops = np.cumsum(arrays["rows"])
    columns = zip(
        np.split(arrays["items"].astype(np.intp, copy=False), stops[:-1]),
        arrays["counts"].tolist(),
        arrays["capacities"].tolist(),
        arrays["slots"].tolist(),
        arrays["devices"].tolist(),
        strict=False,  # split gives one empty part where there is no batch
    )
    try:
        fields = {name: header[name] for name in PLAIN}
        fields |= {name: header.get(name, default) for name, default in LATER.items()}
        costs = Costs(**header["costs"]) if header["costs"] else None
        memory = _forecast(header.get("memory"))
        warnings = tuple(header["warnings"])
    except (KeyError, TypeError) as error:
        raise PlanError(
            f"load: {header_path} is no complete plan: {error}. {_cure(header_path)}"
        ) from None
    fields |= {name: tuple(fields[name]) for name in ("dims", "slots", "exact", "devices")}
    batches = tuple(Batch(i, n, tuple(c), s, d) for i, n, c, s, d in columns)
    return Plan(
        **fields, lengths=arrays["lengths"], batches=batches, costs=costs, memory=memory,
        warnings=warnings, offsets=arrays.get("offsets"),
    )  # fmt: skip


def _forecast(saved: Any) -> Forecast | None:
    if not saved:
        return None
    fields = {name: tuple(saved[name]) for name in ("batch_bytes", "sources")}
    return Forecast(**{**saved, **fields, "budget": Budget(**saved["budget"])})
