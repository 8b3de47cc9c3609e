"""How many loads are worth computing at once, as reading and computing turn out to take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from stowplan.adapters.intra_op import usable_cores

__all__ = ["Pace", "worth_at_once"]

P = ParamSpec("P")
T = TypeVar("T")

SLOWER = 2.0
"""Computing takes so many times as long as reading where it is worth the core of the reader, whose
work then takes turns with it."""


def worth_at_once(most: int, computing: float, reading: float) -> int:
    """Count the loads to compute at once, of so many at most, by the seconds that one takes.

    >>> worth_at_once(1, 1.0, 1.0)
    1
    """
    if computing > SLOWER * reading:
        return most
    return max(min(most, usable_cores() - 1), 1)


class Pace:
    """Threads that compute loads, of which one core is left to the reader unless it idles.

    Parameters
    ----------
    most : int
        Loads that have room to be computed at once.

    >>> pace = Pace(1)
    >>> pace.at_once
    1
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.reading = self.computing = 0.0  # seconds of the last load

    @property
    def at_once(self) -> int:
        """Loads to compute at once, by what the last ones took."""
        return worth_at_once(self.most, self.computing, self.reading)

    def read(self, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        """Call what reads a load."""
        found, self.reading = _timed(function, *arguments, **keywords)
        return found

    def compute(self, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        """Call what computes a load."""
        found, self.computing = _timed(function, *arguments, **keywords)
        return found


def _timed(function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> tuple[T, float]:
    begin = time.perf_counter()
    found = function(*arguments, **keywords)
    return found, time.perf_counter() - begin
