"""How many rows items need at least, whatever shares a row with what."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["least_rows"]


def least_rows(sizes: NDArray[np.int64], limit: int) -> int:
    """Rows that items of these sizes (items,) need along one dim; none is above the limit.

    The bound L2 of Martello and Toth: for any k up to half the limit, an item above limit - k
    shares its row with no item of at least k, and two items above half the limit share none. At
    k = 0 it is the sum over the limit, rounded up.
    Source: S. Martello and P. Toth, Discrete Appl. Math. 28, 59 (1990).

    >>> least_rows(np.array([6, 6, 6, 3]), 10), least_rows(np.array([0, 0]), 10)
    (3, 1)
    """
    if len(sizes) == 0:
        return 0
    ordered = np.sort(sizes)
    before = np.concatenate([[0], np.cumsum(ordered)])
    half = int(np.searchsorted(ordered, limit // 2, side="right"))  # larger than half from here
    k = np.unique(np.append(ordered[:half], 0))
    small = np.searchsorted(ordered, k)  # at least k from here
    alone = np.searchsorted(ordered, limit - k, side="right")  # above limit - k from here
    large = alone - half
    room = large * limit - (before[alone] - before[half])  # left beside those above a half
    rest = np.maximum(before[half] - before[small] - room, 0)
    rows = (len(ordered) - alone) + large + -(-rest // limit)
    return max(int(rows.max()), 1)
