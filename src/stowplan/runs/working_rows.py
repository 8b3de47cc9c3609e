"""The rows that an iteration works on: filled, advanced by a round, and left by what is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
from array_api_compat import is_array_api_obj
from numpy.typing import NDArray

from stowplan.adapters.interface import BatchFunction, TracingAdapter
from stowplan.errors import DataError, FrameworkError, SignatureError
from stowplan.planners.batches import Batch
from stowplan.runs.jobs import Job
from stowplan.runs.rounds import RoundKernel

__all__ = ["WorkingRows", "working_rows"]

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]


class WorkingRows(Protocol):
    """Rows of one slot.

    Attributes
    ----------
    items : (rows,) int
        The item of each row; one that is over where a row is not live.
    ages : (rows,) int
        Steps that the item took.
    live : (rows,) bool
        Whether the item is not over.
    """

    items: NDArray[np.intp]
    ages: Integers
    live: Bools

    def begin(self, slot: int, capacity: tuple[int, ...]) -> None:
        """Let go of all rows; the next ones are of this slot."""

    def fill(self, new: NDArray[np.intp], most: int) -> None:
        """Put new items beside those that are live, in ``most`` rows or fewer."""

    def advance(self) -> tuple[Bools, Bools]:
        """Take the steps of a round; give which rows are done and which have failed."""

    def kept(self, field: str, rows: NDArray[np.intp]) -> Any:
        """Give a field of some rows."""


def working_rows(
    job: Job, kernel: RoundKernel, statics: Mapping[str, Any], shared: Mapping[str, Any]
) -> WorkingRows:
    """Give rows as the framework likes them: exactly those that work, or always as many."""
    kind = _CompiledRows if job.target.adapter.compiles else _EagerRows
    return kind(job, kernel, statics, shared)


class _Rows:
    """What both kinds share."""

    def __init__(
        self,
        job: Job,
        kernel: RoundKernel,
        statics: Mapping[str, Any],
        shared: Mapping[str, Any],
    ) -> None:
        self.job = job
        self.kernel = kernel
        self.adapter = job.target.adapter
        self.statics = statics
        self.shared = shared
        self.begin(0, ())

    def begin(self, slot: int, capacity: tuple[int, ...]) -> None:
        self.slot, self.capacity = slot, capacity
        self.items = np.empty(0, np.intp)
        self.ages = np.empty(0, np.int64)
        self.live = np.empty(0, np.bool_)
        self.columns: dict[str, Any] = {}
        self.state: dict[str, Any] = {}

    def _batch(self, items: NDArray[np.intp]) -> Batch:
        return Batch(items, len(items), self.capacity, self.slot)

    def _check_kept(self, state: Mapping[str, Any], rows: int) -> None:
        """Refuse fields to keep that have not the shape of the output that they are."""
        batch = self._batch(np.zeros(rows, np.intp))
        for field, output in zip(self.kernel.rounds.keep, self.job.outputs, strict=True):
            expected, shape = self.job.padded_shape(output, batch), tuple(state[field].shape)
            if shape != expected:
                raise SignatureError(
                    f"iterate: init gives the field {field!r} to keep the shape {shape} for {rows} "
                    f"rows; the signature of {self.kernel.name}, ({','.join(map(str, output.core))}"
                    f"), wants {expected}."
                )

    def _flags(self, flags: Any) -> Bools:
        host = np.asarray(self.adapter.to_host(flags)) if is_array_api_obj(flags) else None
        rows = len(self.items)
        if host is None or host.shape != (rows,) or host.dtype != np.bool_:
            what = "" if host is None else f" of shape {host.shape}, dtype {host.dtype}"
            raise DataError(
                f"iterate: until gave {type(flags).__name__}{what} for {rows} rows; it gives two "
                f"bool arrays of shape ({rows},), (done, failed)."
            )
        return host


class _EagerRows(_Rows):
    """Calls step by step; as many rows as there are items left, up to the plan's."""

    def fill(self, new: NDArray[np.intp], most: int) -> None:
        staying = np.flatnonzero(self.live)
        if len(staying) < len(self.items):  # field by field, so that little is alive twice
            _replace(self.columns, lambda x: self._taken(x, staying))
            _replace(self.state, lambda x: self._taken(x, staying))
        if len(new):
            arguments, keywords = self.job.gather_rows(self._batch(new))
            columns = self.kernel.columns(arguments, keywords)
            del arguments, keywords
            state = self.kernel.start({**columns, **self.shared, **self.statics})
            self._check_kept(state, len(new))
            state = dict(state)  # fields are let go of here, which init may have kept
            if len(staying):
                columns = self._joined(self.columns, columns)
                state = self._joined(self.state, state)
            self.columns, self.state = columns, state
        self.items = np.concatenate([self.items[staying], new])
        self.ages = np.concatenate([self.ages[staying], np.zeros(len(new), np.int64)])
        self.live = np.ones(len(self.items), np.bool_)

    def advance(self) -> tuple[Bools, Bools]:
        columns = {**self.columns, **self.shared, **self.statics}
        age = self.adapter.index(self.ages, self.job.first)
        for number in range(self.kernel.rounds.every):
            self.state = self.kernel.advance(columns, age + number, self.state)
        self._refuse_records()
        done, failed = map(self._flags, self.kernel.look(columns, self.state))
        self.ages = self.ages + self.kernel.rounds.every
        return done, failed

    def kept(self, field: str, rows: NDArray[np.intp]) -> Any:
        return self._taken(self.state[field], rows)

    def _refuse_records(self) -> None:
        for field, part in self.state.items():
            if self.adapter.requires_grad(part):
                raise FrameworkError(
                    f"iterate: the field {field!r} requires grad after a round of "
                    f"{self.kernel.name}, which uses a tensor that does. A loop that ends by its "
                    "values has no gradient: detach that tensor."
                )

    def _taken(self, array: Any, rows: NDArray[np.intp]) -> Any:
        index = self.adapter.index(rows, array)
        return self.adapter.namespace(array).take(array, index, axis=0)

    def _joined(self, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name in list(new):
            first, second = old.pop(name), new.pop(name)
            if isinstance(first, dict):
                found[name] = self._joined(first, second)
            else:
                xp = self.adapter.namespace(first)
                found[name] = xp.concat([first, second], axis=0)
        return found


class _CompiledRows(_Rows):
    """One program for a round, of fixed shape: rows without an item go on with the one they had."""

    @cached_property
    def function(self) -> BatchFunction:
        """The program of a round."""
        return self.adapter.function(
            self.kernel, self.statics, device=self.job.target.device, compile=False
        )

    def begin(self, slot: int, capacity: tuple[int, ...]) -> None:
        super().begin(slot, capacity)
        self.arguments: list[Any] = []
        self.fresh = np.empty(0, np.bool_)

    def fill(self, new: NDArray[np.intp], most: int) -> None:
        resized = len(self.items) != most  # in the beginning, and where a smaller program pays
        if resized:
            self._resize(new, most)
        free = np.flatnonzero(~self.live)[: len(new)]
        self.items[free], self.ages[free], self.live[free] = new, 0, True
        if resized or len(new):
            self._gather()
        first = not self.state
        if first:
            by_row = self.kernel.by_row(
                self.adapter, self.arguments, self.columns, self.shared, self.statics
            )
            self.state = by_row["state"]
            self._check_kept(self.state, most)
        self.fresh = np.full(most, first)
        self.fresh[free] = True

    def advance(self) -> tuple[Bools, Bools]:
        keywords = {**self.columns, "state": self.state, "age": self.ages, "fresh": self.fresh}
        found = self.function(self.arguments, keywords, self.shared)
        names = self.kernel.rounds.keep
        *kept, others, done, failed = found
        self.state = {**dict(zip(names, kept, strict=True)), **others}
        self.ages = self.ages + self.kernel.rounds.every
        return self._flags(done), self._flags(failed)

    def kept(self, field: str, rows: NDArray[np.intp]) -> Any:
        return np.asarray(self.state[field])[rows]

    def _resize(self, new: NDArray[np.intp], most: int) -> None:
        """Keep the rows that are live, at the front; the others repeat an item."""
        staying = np.flatnonzero(self.live)
        more = most - len(staying)
        spare = new[0] if len(new) else self.items[staying[-1]]
        self.items = np.concatenate([self.items[staying], np.full(more, spare)])
        self.ages = np.concatenate([self.ages[staying], np.zeros(more, np.int64)])
        self.live = np.arange(most) < len(staying)
        rows = np.concatenate([staying, np.full(more, staying[-1] if len(staying) else 0)])
        _replace(self.state, lambda x: np.asarray(x)[rows])

    def _gather(self) -> None:
        """Put the columns of all rows where programs leave their results."""
        arguments, keywords = self.job.gather_rows(self._batch(self.items))
        adapter, device = cast("TracingAdapter", self.adapter), self.job.target.device

        self.arguments, self.columns = adapter.beside_results((arguments, keywords), device)


def _replace(nest: dict[str, Any], change: Callable[[Any], Any]) -> None:
    """Change all arrays of a nest, letting go of each as its successor is made."""
    for name, part in nest.items():
        if isinstance(part, dict):
            _replace(part, change)
        else:
            nest[name] = change(part)
