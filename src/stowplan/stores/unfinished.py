"""Outputs until they are finished: their names, and who writes them."""

from __future__ import annotations

from pathlib import Path

from stowplan.errors import DataError, StoreError
from stowplan.stores.locks import Lock

__all__ = ["KEPT", "OLD", "PART", "Locked", "exists", "lock_part", "unfinished"]

PART = ".stowplan.part"
"""What the name of an output ends with until it is finished."""
KEPT = ".stowplan.resumable"
"""The same for an output of a run that can be resumed."""
OLD = ".stowplan.old"
"""What the name of an array ends with while another takes its place."""


class Locked:
    """An output that this process alone writes, for as long as it holds the lock."""

    _lock: Lock | None = None

    def _let_go(self) -> None:
        """Let another process have it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def unfinished(target: Path, *, resumable: bool) -> Path:
    """Give the name of an output until it is finished."""
    return target.with_name(target.name + (KEPT if resumable else PART))


def exists(target: object) -> DataError:
    """Give the error for an output that is there already."""
    return DataError(f"{target} exists. Name another output, or replace it: overwrite=True.")


def lock_part(part: Path) -> Lock | None:
    """Lock an output that is not finished; None where it has just got its name, or was removed.

    Raises
    ------
    StoreError
        Where another process is writing it.
    """
    try:
        lock = Lock.take(part)
    except FileNotFoundError:
        return None
    if lock is None:
        raise StoreError(f"{part} is being written by another process. Name another output.")
    if not lock.is_of(part):
        lock.release()
        return None
    return lock
