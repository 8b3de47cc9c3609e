"""Work done ahead, in a thread, of the loop that consumes it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from stowplan.planners.sizes import natural

__all__ = ["ahead_of"]

T = TypeVar("T")
POLL_SECONDS = 0.05  # how soon a producer that waits for room notices that nobody listens


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


_END = object()


@contextmanager
def ahead_of(items: Iterable[T], ahead: int) -> Iterator[Iterator[T]]:
    """Let a thread make up to ``ahead`` items before they are asked for; 0 makes them on demand.

    What the thread raises is raised where the item would have come. The thread ends with the block.

    >>> with ahead_of((n * n for n in range(4)), ahead=2) as squares:
    ...     list(squares)
    [0, 1, 4, 9]
    """
    if natural(ahead, "minibatches: ahead", least=0) == 0:
        yield iter(items)
        return
    waiting: queue.Queue[object] = queue.Queue(maxsize=ahead)
    left = threading.Event()

    def offer(item: object) -> None:
        while not left.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=POLL_SECONDS)
                return

    def produce() -> None:
        try:
            for item in items:
                offer(item)
                if left.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised again by the consumer
            offer(_Failure(error))
        else:
            offer(_END)

    thread = threading.Thread(target=produce, name="stowplan-prefetch", daemon=True)
    thread.start()
    try:
        yield _taken(waiting)
    finally:
        left.set()
        thread.join()


def _taken(waiting: queue.Queue[Any]) -> Iterator[Any]:
    while (item := waiting.get()) is not _END:
        if isinstance(item, _Failure):
            raise item.error
        yield item
