"""``sp.iterate``: rows that finish at different times, each replaced by one that waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_array_api_obj
from numpy.typing import NDArray

from stowplan.declaration import Kernel
from stowplan.errors import DataError, FrameworkError, PlanError, SignatureError
from stowplan.planners.batches import Batch, Plan
from stowplan.planners.cost import Costs, row_ladder
from stowplan.runs.budgeting import MemoryRequest
from stowplan.runs.columns import bind, check_indices
from stowplan.runs.jobs import Job
from stowplan.runs.matching import check_sizes
from stowplan.runs.places import find_places
from stowplan.runs.planning import plan_columns
from stowplan.runs.recovery import attempt
from stowplan.runs.rounds import RoundKernel, Rounds, round_kernel
from stowplan.runs.shared import check_shared, leaves, map_leaves

__all__ = ["Iterated", "iterate"]

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Iterated:
    """What an iteration gave, item by item.

    Attributes
    ----------
    values : dict
        The kept fields by name, array or Ragged in input order.
    iterations : (items,) int64
        Steps that each item took.
    converged : (items,) bool
        Whether ``until`` said that it was done. Where not, it failed or reached the limit.
    failed : (items,) bool
        Whether ``until`` gave it up. Its values are those of the state that was left.
    plan : Plan
        With the rows that were worked on at a time.
    """

    values: dict[str, Any]
    iterations: Integers
    converged: Bools
    failed: Bools
    plan: Plan


def iterate(
    step: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    plan: Plan | None = None,
    *,
    init: Callable[..., dict[str, Any]],
    until: Callable[..., tuple[Any, Any]],
    every: int,
    limit: int,
    keep: str | Sequence[str],
    on: str | None = None,
    device: Any = None,
    rows: int | None = None,
    budget: float | str | None = None,
    progress: bool = False,
    **shared: Any,
) -> Iterated:
    """Repeat a step on every item until it is done; rows that are done make room for others.

    Items are worked on in rows of few shapes. After each round of `every` steps the rows that have
    finished leave, and items that wait take their places, so that no row runs for another's sake.
    An item's result depends on the item and its capacity alone.

    Parameters
    ----------
    step : Kernel
        Declared with ``@kernel``, with keyword-only parameters ``age``, the steps that each row
        took before, int (rows,), and ``state``, a dict of arrays (rows, ...). Returns the state
        after one more step, with the same fields, shapes and dtypes. The outputs of its signature
        are the fields to keep. Batched array code, as ``init`` and ``until`` are.
    data
        One column per positional parameter of the step, as for `run`.
    plan
        From ``sp.plan(step, data)``; made with the defaults where it is missing. The bytes that
        it predicts are those of a round if it got ``rounds=Rounds(init, until, every, keep)``.
    init, until : callable
        ``init`` gives the state of rows at the start; ``until``, read after each round, two bool
        arrays (rows,), done and failed. Both name what they need of the columns, the shared
        parameters and ``mask``; ``until`` of ``state``, too.
    every : int
        Steps of a round. Part of the result: a row can finish after whole rounds only.
    limit : int
        Most steps of an item; those left then have not converged.
    keep
        Names of the fields that are wanted, one for each output of the step, in their order.
    on, device, rows, budget, progress
        As in `run`; the bar counts items.
    **shared
        Keyword-only parameters of the step, ``init`` and ``until``; those that the step declares
        static select code.

    Returns
    -------
    Iterated
        Kept fields, iterations, and which items converged or failed. Nothing of it has a gradient.

    Raises
    ------
    SignatureError
        For functions and fields that do not match each other.
    DataError
        For columns and shared parameters, as in `run`.
    PlanError
        For a plan for other sizes, and a limit of less than one round.
    FrameworkError
        Under a trace, and for tensors that require grad: a loop that ends by its values has no
        gradient.

    Examples
    --------
    Newton's square roots; 2 needs six steps from there, 4 only five:

    >>> import numpy as np
    >>> import stowplan as sp
    >>> @sp.kernel("()->()")
    ... def better(square, *, age, state):
    ...     return {"root": 0.5 * (state["root"] + square / state["root"])}
    >>> found = sp.iterate(
    ...     better, [np.asarray([2.0, 4.0])],
    ...     init=lambda square: {"root": square + 5},
    ...     until=lambda state, square: (abs(state["root"] ** 2 - square) < 1e-9, square < 0),
    ...     every=1, limit=50, keep="root",
    ... )
    >>> found.values["root"].round(6).tolist(), found.iterations.tolist()
    ([1.414214, 2.0], [6, 6])
    """
    if not isinstance(step, Kernel):
        raise SignatureError(
            f"iterate: {step!r} is no kernel. Declare the step: @sp.kernel('(n)->(n)', ragged='n')."
        )
    columns = bind("iterate", step, data)
    rounds = Rounds(init, until, every, keep)  # type: ignore[arg-type]  # names are checked there
    arrays = [*columns.arrays, *leaves(list(shared.values()))]
    source, target = find_places("iterate", arrays, on, device)
    kernel = round_kernel(step, rounds, target.adapter)
    statics, traced = check_shared("iterate", kernel, shared)
    _refuse_gradients(source.adapter, arrays)
    most_rounds = _most_rounds(limit, rounds.every)
    if plan is None:
        memory = MemoryRequest(budget, None, False, statics, traced)
        plan = plan_columns("iterate", kernel, columns, source, target, memory, rows=rows)
    elif rows is not None or budget is not None:
        name = "rows" if rows is not None else "budget"
        raise PlanError(
            f"iterate: give {name}= while planning, sp.plan(..., {name}=...), or leave out the "
            "plan."
        )
    check_sizes("iterate", step, columns, plan)
    check_indices("iterate", step, columns)
    job = Job("iterate", kernel, columns, plan, source, target)
    loop = _Loop(job, kernel, statics, map_leaves(job.shared, traced), most_rounds)
    with _bar(columns.items, progress) as advance, job.heap.around_batches():
        for slot in range(len(plan.slots)):
            loop.finish_slot(slot, advance)
    values = loop.values()
    return Iterated(
        dict(zip(rounds.keep, values, strict=True)),
        loop.iterations,
        loop.converged,
        loop.failed,
        plan,
    )


def _refuse_gradients(adapter: Any, arrays: Sequence[Any]) -> None:
    for array in arrays:
        if not is_array_api_obj(array):
            continue
        if adapter.is_traced(array):
            raise FrameworkError(
                "iterate: when rows finish depends on values, which a traced function (jit, grad, "
                "vmap) does not have. Call it outside of the trace."
            )
        if adapter.requires_grad(array):
            raise FrameworkError(
                "iterate: the data require grad, but a loop that ends by its values has none. "
                "Detach them, and differentiate at the solution."
            )


def _most_rounds(limit: Any, every: int) -> int:
    whole = isinstance(limit, int | np.integer) and not isinstance(limit, bool)
    if not whole or limit < every:
        raise PlanError(
            f"iterate: limit={limit!r}; an item takes whole rounds of every={every} steps. Give "
            f"limit={every} or more."
        )
    return int(limit) // every


@contextmanager
def _bar(items: int, progress: bool) -> Iterator[Callable[[int], object]]:
    if not progress:
        yield lambda count: None
        return
    from tqdm import tqdm  # a third of the time that importing stowplan would take

    with tqdm(total=items, unit="item") as bar:
        yield bar.update


class _Rows(NamedTuple):
    """The rows that are worked on."""

    items: NDArray[np.intp]  # item of each row
    ages: Integers
    live: Bools  # whether a row has an item that is not done


class _Loop:
    """Rounds over the rows of one slot after another."""

    def __init__(
        self,
        job: Job,
        kernel: RoundKernel,
        statics: Mapping[str, Any],
        shared: Mapping[str, Any],
        most_rounds: int,
    ) -> None:
        self.job = job
        self.kernel = kernel
        self.every = kernel.rounds.every
        self.most_age = most_rounds * self.every
        adapter = job.target.adapter
        kind = _CompiledRounds if adapter.compiles else _EagerRounds
        self.driver = kind(job, kernel, statics, shared)
        items = job.columns.items
        self.iterations = np.zeros(items, np.int64)
        self.converged = np.zeros(items, np.bool_)
        self.failed = np.zeros(items, np.bool_)

    def finish_slot(self, slot: int, advance: Callable[[int], object]) -> None:
        """Take every item of a slot to its end; where memory runs out, in fewer rows."""
        plan = self.job.plan
        batches = [batch for batch in plan.batches if batch.slot == slot]
        if not batches:
            return
        rows = len(batches[0].items)
        waiting = deque(
            int(item) for batch in batches for item in batch.items[: batch.count].tolist()
        )
        left = set(waiting)

        def work() -> None:
            self._work(slot, batches[0].capacity, rows, waiting, left, advance)

        _, error = attempt(self.job.target.adapter, work)
        while error is not None:
            if rows == 1:
                raise MemoryError(
                    f"iterate: out of memory with one row of {self.kernel.name} at "
                    f"{plan.slots[slot]}: {error}"
                )
            self.driver.clear()
            self.job.target.adapter.release()
            rows //= 2
            waiting = deque(sorted(left))
            _, error = attempt(self.job.target.adapter, work)

    def _work(
        self,
        slot: int,
        capacity: tuple[int, ...],
        most: int,
        waiting: deque[int],
        left: set[int],
        advance: Callable[[int], object],
    ) -> None:
        rows = _Rows(np.empty(0, np.intp), np.empty(0, np.int64), np.empty(0, np.bool_))
        started = 0.0
        while waiting or rows.live.any():
            most = self._fewer(most, capacity, rows, waiting, started)
            rows = self._filled(slot, capacity, most, rows, waiting)
            done, failed = self.driver.advance(rows.ages)
            ages = rows.ages + self.every
            over = rows.live & (done | failed | (ages >= self.most_age))
            if over.any():
                items = rows.items[over]
                self.iterations[items] = ages[over]
                self.converged[items] = done[over] & ~failed[over]
                self.failed[items] = failed[over]
                self._keep(Batch(items, len(items), capacity, slot), np.flatnonzero(over))
                left.difference_update(items.tolist())
                started = float(np.mean(self.iterations[items]))
                advance(len(items))
            rows = _Rows(rows.items, ages, rows.live & ~over)
        self.driver.clear()

    def _filled(
        self,
        slot: int,
        capacity: tuple[int, ...],
        most: int,
        rows: _Rows,
        waiting: deque[int],
    ) -> _Rows:
        """Put waiting items into rows that are free."""
        staying = np.flatnonzero(rows.live)
        count = min(most - len(staying), len(waiting))
        new = np.array([waiting.popleft() for _ in range(count)], np.intp)
        self.job.heap.before_batch(0)
        return self.driver.fill(slot, capacity, most, rows, staying, new)

    def _fewer(
        self,
        most: int,
        capacity: tuple[int, ...],
        rows: _Rows,
        waiting: deque[int],
        steps: float,
    ) -> int:
        """Give the rows to go on with: fewer in the end, where compiling them is worth it."""
        adapter = self.job.target.adapter
        if not adapter.compiles or waiting or not len(rows.items):
            return most
        live = int(rows.live.sum())
        fewer = next(count for count in row_ladder(live) if count >= live)
        if fewer >= most:
            return most
        costs = self.job.plan.costs or Costs()
        work = float(self.job.plan.measure.cost(np.array([capacity], np.int64))[0])
        to_come = max(steps - float(rows.ages[rows.live].mean()), 0.0) / max(steps, 1.0)
        saved = (most - fewer) * work * costs.work_seconds * to_come
        return fewer if saved > costs.compile_seconds else most

    def _keep(self, batch: Batch, places: NDArray[np.intp]) -> None:
        indices = self.job.indices_of(batch)
        parts = self.driver.kept(places)
        for output, part in zip(self.job.outputs, parts, strict=True):
            self.job.check_shape(output, part, batch)
        real = [
            assembly.real_rows(indices, 0, part)
            for assembly, part in zip(self.job.assemblies, parts, strict=True)
        ]
        for assembly, flat in zip(self.job.assemblies, real, strict=True):
            assembly.keep(indices, 0, flat)

    def values(self) -> list[Any]:
        """Give the kept fields in input order."""
        if not self.job.columns.items:
            return self._no_values()
        return [
            self.job.result(output, assembly)
            for output, assembly in zip(self.job.outputs, self.job.assemblies, strict=True)
        ]

    def _no_values(self) -> list[Any]:
        """Give kept fields of no items: those of one row of padding, which is dropped."""
        batch = self.job.plan.batches[0]
        rows = _Rows(np.empty(0, np.intp), np.empty(0, np.int64), np.empty(0, np.bool_))
        with np.errstate(all="ignore"):
            self.driver.fill(0, batch.capacity, 1, rows, np.empty(0, np.intp), batch.items[:1])
        self._keep(Batch(batch.items[:0], 0, batch.capacity, 0), np.empty(0, np.intp))
        self.driver.clear()
        return [
            self.job.result(output, assembly)
            for output, assembly in zip(self.job.outputs, self.job.assemblies, strict=True)
        ]


class _EagerRounds:
    """Calls step by step; as many rows as there are items left, up to the plan's."""

    def __init__(
        self,
        job: Job,
        kernel: RoundKernel,
        statics: Mapping[str, Any],
        shared: Mapping[str, Any],
    ) -> None:
        self.job = job
        self.kernel = kernel
        self.common = {**shared, **statics}
        self.xp = None
        self.clear()

    def clear(self) -> None:
        """Let go of all rows."""
        self.columns: dict[str, Any] = {}
        self.state: dict[str, Any] = {}

    def fill(
        self,
        slot: int,
        capacity: tuple[int, ...],
        most: int,
        rows: _Rows,
        staying: NDArray[np.intp],
        new: NDArray[np.intp],
    ) -> _Rows:
        if len(staying) < len(rows.items):  # field by field, so that little is alive twice
            self.columns = _mapped(self.columns, lambda x: self._take(x, staying))
            self.state = _mapped(self.state, lambda x: self._take(x, staying))
        if len(new):
            arguments, keywords = self.job.gather_rows(Batch(new, len(new), capacity, slot))
            columns = self.kernel.columns(arguments, keywords, {})
            state = self.kernel.start({**columns, **self.common})
            if len(staying):
                columns = self._joined(self.columns, columns)
                state = self._joined(self.state, state)
            self.columns, self.state = columns, state
        items = np.concatenate([rows.items[staying], new])
        ages = np.concatenate([rows.ages[staying], np.zeros(len(new), np.int64)])
        return _Rows(items, ages, np.ones(len(items), np.bool_))

    def advance(self, ages: Integers) -> tuple[Bools, Bools]:
        """Take the steps of a round; give which rows are done and which have failed."""
        columns = {**self.columns, **self.common}
        age = self.job.target.adapter.index(ages, self.job.first)
        for number in range(self.kernel.rounds.every):
            self.state = self.kernel.advance(columns, age + number, self.state)
        flags = self.kernel.look(columns, self.state)
        done, failed = (_flags(self.job, flag, len(ages)) for flag in flags)
        return done, failed

    def kept(self, places: NDArray[np.intp]) -> list[Any]:
        """Give the kept fields of some rows."""
        return [self._take(self.state[name], places) for name in self.kernel.rounds.keep]

    def _take(self, array: Any, places: NDArray[np.intp]) -> Any:
        adapter = self.job.target.adapter
        return adapter.namespace(array).take(array, adapter.index(places, array), axis=0)

    def _joined(self, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name in list(old):
            first, second = old.pop(name), new.pop(name)
            if isinstance(first, dict):
                found[name] = self._joined(first, second)
            else:
                xp = self.job.target.adapter.namespace(first)
                found[name] = xp.concat([first, second], axis=0)
        return found


class _CompiledRounds:
    """One program for a round, of fixed shape: rows without an item go on with the one they had."""

    def __init__(
        self,
        job: Job,
        kernel: RoundKernel,
        statics: Mapping[str, Any],
        shared: Mapping[str, Any],
    ) -> None:
        self.job = job
        self.kernel = kernel
        self.statics = statics
        self.shared = shared
        self.function = job.target.adapter.function(
            kernel, statics, device=job.target.device, compile=False
        )
        self.clear()

    def clear(self) -> None:
        """Let go of all rows."""
        self.arguments: list[Any] = []
        self.keywords: dict[str, Any] = {}
        self.by_row: dict[str, Any] = {}

    def fill(
        self,
        slot: int,
        capacity: tuple[int, ...],
        most: int,
        rows: _Rows,
        staying: NDArray[np.intp],
        new: NDArray[np.intp],
    ) -> _Rows:
        device = self.job.target.device
        put = self.job.target.adapter.asarray

        def there(x: Any) -> Any:
            return put(x, device) if isinstance(x, np.ndarray) else x

        if len(rows.items) == most:
            free = np.flatnonzero(~rows.live)
            items, ages, live = rows.items.copy(), rows.ages.copy(), rows.live.copy()
        else:  # in the beginning, and where a smaller program pays
            self.keywords = {}
            if len(staying):
                state = {name: np.asarray(x)[staying] for name, x in self.by_row["state"].items()}
                more = most - len(staying)
                self.by_row["state"] = {
                    name: there(np.concatenate([x, np.repeat(x[-1:], more, axis=0)]))
                    for name, x in state.items()
                }
            repeated = np.concatenate([rows.items[staying], new])
            items = np.concatenate([repeated, np.full(most - len(repeated), repeated[-1])])
            ages = np.concatenate([rows.ages[staying], np.zeros(most - len(staying), np.int64)])
            live = np.arange(most) < len(staying)
            free = np.arange(len(staying), most)
        places = free[: len(new)]
        items[places], ages[places], live[places] = new, 0, True
        fresh = np.zeros(most, np.bool_)
        fresh[places] = True
        if not len(rows.items):
            fresh[:] = True
        if len(new) or not self.keywords:
            arguments, keywords = self.job.gather_rows(Batch(items, most, capacity, slot))
            self.arguments = [there(x) for x in arguments]
            self.keywords = {"masks": _mapped(keywords, there)}
        if not self.by_row:
            by_row = self.kernel.by_row(
                self.job.target.adapter, self.arguments, self.keywords["masks"], self.shared,
                self.statics,
            )  # fmt: skip
            self.by_row = _mapped(by_row, there)  # where later states are: a compile key
        self.by_row["fresh"] = fresh
        return _Rows(items, ages, live)

    def advance(self, ages: Integers) -> tuple[Bools, Bools]:
        """Take the steps of a round; give which rows are done and which have failed."""
        keywords = {
            **self.keywords["masks"],
            "state": self.by_row["state"],
            "age": ages,
            "fresh": self.by_row["fresh"],
        }
        found = self.function(self.arguments, keywords, self.shared)
        count = len(self.kernel.rounds.keep)
        *kept, others, done, failed = found
        names = self.kernel.rounds.keep
        self.by_row["state"] = {**dict(zip(names, kept[:count], strict=True)), **others}
        return _flags(self.job, done, len(ages)), _flags(self.job, failed, len(ages))

    def kept(self, places: NDArray[np.intp]) -> list[Any]:
        """Give the kept fields of some rows, on the host."""
        state = self.by_row["state"]
        return [np.asarray(state[name])[places] for name in self.kernel.rounds.keep]


def _mapped(value: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Change all arrays of a nest, letting go of each as its successor is made."""
    found = {}
    for name in list(value):
        part = value.pop(name)
        found[name] = _mapped(part, change) if isinstance(part, dict) else change(part)
    return found


def _flags(job: Job, flags: Any, rows: int) -> Bools:
    host = np.asarray(job.target.adapter.to_host(flags)) if is_array_api_obj(flags) else None
    if host is None or host.shape != (rows,) or host.dtype != np.bool_:
        what = type(flags).__name__ if host is None else f"shape {host.shape}, dtype {host.dtype}"
        raise DataError(
            f"iterate: until gave {what} for {rows} rows; it gives two bool arrays of shape "
            f"({rows},), (done, failed)."
        )
    return host
