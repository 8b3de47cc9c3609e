"""Long reads cut into pieces, of which a thread that has nothing else to do takes some.

A thread that reads ahead and one that computes are seldom equally quick. While the one is waited
for, a third helps it, so that no core idles, and no further buffer is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["Helping", "in_pieces"]

SHARE = 2
"""A piece is one part in so many of what is left. Each takes a turn in the interpreter, for which
who computes waits too, so that there are few; the last ones are small, so that all end together."""

Work = Callable[[int, int], object]
"""What does the piece [begin, end)."""

_offered: ContextVar[Helping | None] = ContextVar("offered", default=None)


class Helping:
    """Work of one thread at a time, offered to others.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> helping, found = Helping(), []
    >>> def read():
    ...     with helping.offered():
    ...         in_pieces(lambda begin, end: found.extend(range(begin, end)), 10, least=2)
    >>> with ThreadPoolExecutor(1) as reader:
    ...     helping.until(reader.submit(read))
    >>> sorted(found)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pieces: _Pieces | None = None

    @contextmanager
    def offered(self) -> Iterator[None]:
        """Offer what this thread does in pieces."""
        token = _offered.set(self)
        try:
            yield
        finally:
            _offered.reset(token)

    def until(self, future: Future[Any]) -> None:
        """Take pieces of what is offered until something is done; wait where none is left.

        For a thread that gets no signals: after an interrupt in here a read may wait for ever.
        """
        future.add_done_callback(self._wake)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: future.done() or self._is_left())
                pieces = self._pieces
            if future.done() or pieces is None:
                return
            self._take(pieces)

    def share(self, pieces: _Pieces) -> None:
        """Do all pieces, in this thread and in those that help."""
        token = _offered.set(None)  # a piece is not cut again
        with self._changed:
            self._pieces = pieces
            self._changed.notify_all()
        try:
            while self._take(pieces):
                pass
        finally:
            _offered.reset(token)
            with self._changed:
                self._pieces = None
                self._changed.wait_for(lambda: not pieces.under_way)
        if pieces.error is not None:
            raise pieces.error

    def _take(self, pieces: _Pieces) -> bool:
        """Do a piece, if one is left; who offers them raises what fails."""
        begin = end = 0
        try:
            with self._changed:
                begin, end = pieces.next()
                pieces.under_way += end > begin
            if end > begin:
                pieces.work(begin, end)
        except BaseException as error:  # noqa: BLE001  # raised by who offers
            pieces.error = error
        finally:
            with self._changed:
                pieces.under_way -= end > begin
                self._changed.notify_all()
        return end > begin

    def _is_left(self) -> bool:
        pieces = self._pieces
        return pieces is not None and pieces.error is None and pieces.begin < pieces.count

    def _wake(self, future: Future[Any]) -> None:
        with self._changed:
            self._changed.notify_all()


class _Pieces:
    """What is left of some work, and how many pieces of it are under way."""

    def __init__(self, work: Work, count: int, least: int) -> None:
        self.work = work
        self.count = count
        self.least = least
        self.begin = 0
        self.under_way = 0
        self.error: BaseException | None = None

    def next(self) -> tuple[int, int]:
        """Take a piece; an empty one where none is left, or one has failed."""
        begin = self.begin
        if self.error is not None:
            return begin, begin
        left = self.count - begin
        self.begin += min(max(left // SHARE, self.least), left)
        return begin, self.begin


def in_pieces(work: Work, count: int, *, least: int) -> None:
    """Do work for [0, count): in one, or in pieces of no less than `least` where it is offered.

    Raises
    ------
    BaseException
        What the work raised for one of the pieces; not all of the others are done then.
    """
    helping = _offered.get()
    if helping is None or count <= least:
        work(0, count)
    else:
        helping.share(_Pieces(work, count, least))
