"""Budgets in bytes and the folder of temporary files: what a call says, else the environment."""

from __future__ import annotations

import numbers
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stowplan.errors import BudgetError

__all__ = [
    "Budget",
    "as_share",
    "parse_bytes",
    "resolve_budget",
    "scratch_folder",
    "show_bytes",
]

SHARE = 0.8
"""Share of the free memory that is the budget where none is given."""
VARIABLE = "STOWPLAN_BUDGET"
"""Environment variable that gives a budget where none is passed."""

SCRATCH_VARIABLE = "STOWPLAN_SCRATCH"
"""Environment variable that names the folder of temporary files."""

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[f"{_letter}IB"] = 1024**_power


def parse_bytes(budget: float | str) -> int:
    """Give a budget as a number of bytes.

    Raises
    ------
    BudgetError
        For text that does not parse, and for a budget below one byte.

    Examples
    --------
    >>> parse_bytes("4 GiB"), parse_bytes("1.5MB"), parse_bytes(4096)
    (4294967296, 1500000, 4096)
    """
    match = re.fullmatch(r"\s*(\d+)(?:\.(\d+))?\s*([A-Za-z]*)\s*", str(budget))
    if match is None or match.group(3).upper() not in _UNITS:
        raise BudgetError(
            f"budget={budget!r} is no number of bytes. Write 4096, '300 MB', '4 GiB' or the like."
        )
    decimals = match.group(2) or ""  # in integers: a float loses bytes beyond 2**53
    size: int = (
        int(match.group(1) + decimals) * _UNITS[match.group(3).upper()] // 10 ** len(decimals)
    )
    if size < 1:
        raise BudgetError(f"budget={budget!r} is less than one byte.")
    return size


def show_bytes(size: float) -> str:
    """Write a number of bytes for people.

    >>> show_bytes(4.5 * 1024**3)
    '4.5 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that a batch may take, and who said so."""

    bytes: int
    source: str  # 'budget="4 GiB"', 'STOWPLAN_BUDGET=4GiB', '0.8 of 23.1 GiB free on cpu'

    def __str__(self) -> str:
        return f"{show_bytes(self.bytes)} ({self.source})"


def resolve_budget(
    budget: float | str | None,
    free_bytes: Callable[[], int],
    where: str,
    *,
    device: str = "cpu",
    environment: Mapping[str, str] = os.environ,
) -> Budget:
    """Give the budget of a batch: as passed, else ``STOWPLAN_BUDGET``, else 0.8 of what is free.

    Parameters
    ----------
    budget
        Bytes (an integer, or text such as ``"4 GiB"``); or a share of the free memory, a float
        above 0 and up to 1. Text such as ``"0.5"``, a decimal without a unit, is a share too.
    free_bytes
        Says how much is free; called for shares only.
    where, device
        The caller and the device, for messages.
    environment
        Where the variable is looked up.

    Raises
    ------
    BudgetError
        For what is neither bytes nor a share, less than one byte, or a share of nothing.

    Examples
    --------
    >>> str(resolve_budget("4 GiB", lambda: 0, "plan"))
    '4 GiB (budget="4 GiB")'
    >>> str(resolve_budget(0.5, lambda: 3 * 2**30, "plan"))
    '1.5 GiB (0.5 of 3 GiB free on cpu)'
    """
    if budget is not None:
        name = f'budget="{budget}"' if isinstance(budget, str) else f"budget={budget!r}"
        return _resolved(budget, name, free_bytes, where, device)
    text = environment.get(VARIABLE, "").strip()
    if text:
        return _resolved(text, f"{VARIABLE}={text}", free_bytes, where, device)
    return _share(SHARE, None, free_bytes, where, device)


def _resolved(
    budget: float | str, name: str, free_bytes: Callable[[], int], where: str, device: str
) -> Budget:
    share = as_share(budget)
    if share is not None:
        return _share(share, name, free_bytes, where, device)
    try:
        return Budget(parse_bytes(budget), name)
    except BudgetError:
        raise BudgetError(
            f"{where}: {name} is no budget. Give bytes from 1 (4096, '300 MB', '4 GiB'), or a "
            "share of the free memory above 0 and up to 1 (0.8)."
        ) from None


def as_share(budget: object) -> float | None:
    """Give a share of the free memory, None for what is none; 1 is a byte, 1.0 all memory."""
    if isinstance(budget, str) and re.fullmatch(r"\s*[01]?\.\d+\s*", budget):
        budget = float(budget)
    real = isinstance(budget, numbers.Real) and not isinstance(budget, numbers.Integral)
    share = float(budget) if real else 0.0  # type: ignore[arg-type]  # a Real is a number
    return share if 0 < share <= 1 else None


def _share(
    share: float, name: str | None, free_bytes: Callable[[], int], where: str, device: str
) -> Budget:
    free = free_bytes()
    given = "" if name is None or name.startswith("budget=") else f"{name}: "
    source = f"{given}{share:g} of {show_bytes(free)} free on {device}"
    size = int(share * free)
    if size < 1:
        raise BudgetError(
            f"{where}: a budget of {source} is less than one byte. Free some memory, or give "
            "bytes: budget='300 MB'."
        )
    return Budget(size, source)


def scratch_folder(
    scratch: str | os.PathLike[str] | None,
    where: str,
    *,
    environment: Mapping[str, str] = os.environ,
) -> Path:
    """Give the folder of temporary files: as passed, else ``STOWPLAN_SCRATCH``, else the system's.

    Raises
    ------
    BudgetError
        For a folder that is not there or that nothing can be written to.

    Examples
    --------
    >>> scratch_folder(None, "plan", environment={"STOWPLAN_SCRATCH": "."})
    PosixPath('.')
    """
    named = environment.get(SCRATCH_VARIABLE, "").strip()
    name = f"scratch={str(scratch)!r}" if scratch is not None else f"{SCRATCH_VARIABLE}={named}"
    folder = Path(scratch if scratch is not None else named or tempfile.gettempdir())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise BudgetError(
            f"{where}: {name} is no folder that can be written to. Make it first, or name another."
        )
    return folder
