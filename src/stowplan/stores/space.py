"""Whether the disk holds what is about to be written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from stowplan.errors import StoreError
from stowplan.memory import show_bytes
from stowplan.stores.descriptors import free_bytes

__all__ = ["free_bytes", "require_space"]

_Need = tuple[str | os.PathLike[str], int, str]


def require_space(needs: Iterable[_Need], where: str) -> None:
    """Refuse what does not fit, before its first byte is written.

    Parameters
    ----------
    needs
        Folder, bytes and what they are for; what goes to one disk is added up.
    where
        The caller, for messages.

    Raises
    ------
    StoreError
        Naming the bytes needed, what they are for, and those that are free.

    Examples
    --------
    >>> require_space([(".", 100, "scratch"), (".", 100, "output")], "solve")
    >>> require_space([(".", 10**15, "output out.npy")], "solve")
    Traceback (most recent call last):
    stowplan.errors.StoreError: solve: 1000000000000000 bytes (909.5 TiB) are needed in ...
    """
    disks: dict[int, list[tuple[Path, int, str]]] = {}
    for folder, size, what in needs:
        there = Path(folder).absolute()
        while not there.exists() and there != there.parent:
            there = there.parent
        disks.setdefault(there.stat().st_dev, []).append((there, size, what))
    for wanted in disks.values():
        needed = sum(size for _, size, _ in wanted)
        folder = wanted[0][0]
        free = free_bytes(folder)
        if needed > free:
            parts = ", ".join(f"{what}: {show_bytes(size)}" for _, size, what in wanted)
            raise StoreError(
                f"{where}: {needed} bytes ({show_bytes(needed)}) are needed in {folder} ({parts}), "
                f"{free} bytes ({show_bytes(free)}) are free. Free some, name another folder, or "
                "give less at a time."
            )
