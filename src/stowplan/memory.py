"""Budgets in bytes."""

from __future__ import annotations

import re

from stowplan.errors import BudgetError

__all__ = ["parse_bytes", "show_bytes"]

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[f"{_letter}IB"] = 1024**_power


def parse_bytes(budget: int | str) -> int:
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
