"""``sp.iterate``: rows that finish at different times, each replaced by one that waits."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj
from numpy.typing import NDArray

from stowplan.declaration import Kernel
from stowplan.errors import FrameworkError, PlanError, SignatureError
from stowplan.planners.batches import Batch, Plan
from stowplan.planners.cost import Costs, row_ladder
from stowplan.runs.budgeting import MemoryRequest
from stowplan.runs.columns import bind, check_indices
from stowplan.runs.devices import DevicesGiven, find_devices, planned_devices
from stowplan.runs.jobs import Job
from stowplan.runs.matching import check_sizes
from stowplan.runs.parts import joined_iterations
from stowplan.runs.places import find_places
from stowplan.runs.planning import plan_columns
from stowplan.runs.recovery import attempt, shown_capacity, too_large_a_row
from stowplan.runs.rounds import RoundKernel, Rounds, round_kernel
from stowplan.runs.shared import check_shared, leaves, map_leaves
from stowplan.runs.side_by_side import (
    dealt_plan,
    gathered_from,
    given_back,
    map_results,
    on_each,
    parts_of,
    progress_of,
)
from stowplan.runs.working_rows import WorkingRows, working_rows

__all__ = ["Iterated", "iterate"]

_log = logging.getLogger("stowplan")

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]
Advance = Callable[[int], object]
"""Moves the bar on by so many items."""
GoOn = Callable[[], None]
"""Called before each round: ends it where another device has failed."""


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
    devices: DevicesGiven = None,
    rows: int | None = None,
    budget: float | str | None = None,
    progress: bool = False,
    executor: Executor | Callable[[], Executor] | None = None,
    resume: str | PathLike[str] | None = None,
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
    on, device, devices, rows, budget, progress
        As in `run`; the bar counts items. On several devices the items of a slot are dealt out,
        and each works on its own.
    executor, resume
        As in `run`: each batch of the plan is iterated on its own, which changes no result, and
        the bar counts batches.
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
    columns = bind("iterate", step, data, on_disk=True)
    rounds = Rounds(init, until, every, keep)  # type: ignore[arg-type]  # names are checked there
    arrays = [*columns.arrays, *leaves(list(shared.values()))]
    source, target = find_places("iterate", arrays, on, device)
    wanted = None if executor is not None else planned_devices(devices, device, plan)
    group = find_devices("iterate", target, wanted)
    target = target if group is None else group.target
    kernel = round_kernel(step, rounds, target.adapter)
    statics, traced = check_shared("iterate", kernel, shared)
    _refuse_gradients(source.adapter, arrays)
    most_age = _most_rounds(limit, rounds.every) * rounds.every
    asked = {"executor=": executor, "resume=": resume, "data on disk": columns.stored or None}
    apart = [what for what, given in asked.items() if given is not None]
    if apart:
        from stowplan.runs.engine import check_executor, one_thread, saved_plan

        check_executor("iterate", apart[0], devices, source.adapter, arrays)
        executor = one_thread if executor is None else executor
        if plan is None and rows is None:
            plan = saved_plan(resume, budget)
            budget = None if plan is not None else budget
    if plan is None:
        memory = MemoryRequest(budget, None, False, statics, traced)
        plan = plan_columns(
            "iterate", kernel, columns, source, target, memory, rows=rows, group=group
        )
    elif rows is not None or budget is not None:
        name = "rows" if rows is not None else "budget"
        raise PlanError(
            f"iterate: give {name}= while planning, sp.plan(..., {name}=...), or leave out the "
            "plan."
        )
    check_sizes("iterate", step, columns, plan)
    check_indices("iterate", step, columns)
    if executor is not None and columns.items:
        from stowplan.runs.engine import iterate_by_executor

        return iterate_by_executor(
            step, columns, plan, source, target, {**statics, **traced}, rounds, limit,
            executor=executor, resume=resume, progress=progress,
        )  # fmt: skip

    def finish(job: Job, given: Mapping[str, Any], advance: Advance, go_on: GoOn) -> Iterated:
        rows_at_work = working_rows(job, kernel, statics, map_leaves(job.shared, given))
        with job.heap.around_batches():
            loop = _Loop(job, kernel, rows_at_work, most_age, advance, go_on)
            for slot in range(len(job.plan.slots)):
                loop.finish_slot(slot)
        return loop.iterated()

    with progress_of(columns.items, "item", progress=progress) as advance:
        if group is None:
            job = Job("iterate", kernel, columns, plan, source, target)
            return finish(job, traced, advance, lambda: None)
        plan = dealt_plan(plan, group)
        own, given, place = gathered_from(columns, traced, source, group)
        parts = parts_of(kernel, own, plan, group)

        def work(number: int, go_on: GoOn) -> Iterated:
            part = parts[number]
            target = group.places[number]
            job = Job("iterate", kernel, part.columns, part.plan, place, target)
            return finish(job, given, advance, go_on)

        found = joined_iterations(on_each(group, work), parts, plan)
    values = {
        name: map_results(lambda array: given_back(array, place, source), value)
        for name, value in found.values.items()
    }
    return replace(found, values=values)


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


class _Loop:
    """Rounds over the rows of one slot after another."""

    def __init__(
        self,
        job: Job,
        kernel: RoundKernel,
        rows: WorkingRows,
        most_age: int,
        advance: Advance,
        go_on: GoOn,
    ) -> None:
        self.job = job
        self.kernel = kernel
        self.rows = rows
        self.most_age = most_age
        self.advance = advance
        self.go_on = go_on
        items = job.columns.items
        self.iterations = np.zeros(items, np.int64)  # 0 until an item is over
        self.converged = np.zeros(items, np.bool_)
        self.failed = np.zeros(items, np.bool_)
        self.over: list[Batch] = []  # in the order in which items were put away

    def finish_slot(self, slot: int) -> None:
        """Take every item of a slot to its end; where memory runs out, in fewer rows."""
        plan, adapter = self.job.plan, self.job.target.adapter
        batches = [batch for batch in plan.batches if batch.slot == slot]
        if not batches:
            return
        items = np.concatenate([batch.items[: batch.count] for batch in batches])
        capacity, most = batches[0].capacity, len(batches[0].items)

        def work() -> None:
            left = items[self.iterations[items] == 0]
            self._work(slot, capacity, most, deque(left.tolist()))

        _, error = attempt(adapter, work)
        while error is not None:  # outside of the except block, whose traceback keeps arrays
            self.rows.begin(slot, capacity)
            adapter.release()
            if most == 1:
                raise too_large_a_row("iterate", self.kernel, plan, capacity, error)
            _log.warning(
                "iterate: out of memory with %d rows of %s%s; going on with %d rows. %d of %d "
                "items are over and kept. A smaller budget= avoids the attempt.",
                most, self.kernel.name, shown_capacity(plan, capacity), most // 2,
                np.count_nonzero(self.iterations), len(self.iterations),
            )  # fmt: skip
            most //= 2
            _, error = attempt(adapter, work)

    def _work(self, slot: int, capacity: tuple[int, ...], most: int, waiting: deque[int]) -> None:
        rows = self.rows
        rows.begin(slot, capacity)
        tail = _Tail(self.job, capacity, self.kernel.rounds.every)
        while waiting or rows.live.any():
            self.go_on()
            live = int(np.count_nonzero(rows.live))
            if not waiting:
                most = tail.rows(live, most, self.iterations)
            count = min(most - live, len(waiting))
            new = np.array([waiting.popleft() for _ in range(count)], np.intp)
            self.job.heap.before_batch(0)
            rows.fill(new, most)
            done, failed = rows.advance()
            over = rows.live & (done | failed | (rows.ages >= self.most_age))
            if over.any():
                self._put_away(slot, capacity, over, done, failed)
            rows.live = rows.live & ~over
        rows.begin(slot, capacity)

    def _put_away(
        self, slot: int, capacity: tuple[int, ...], over: Bools, done: Bools, failed: Bools
    ) -> None:
        items = self.rows.items[over]
        self._keep(Batch(items, len(items), capacity, slot), np.flatnonzero(over))
        self.converged[items] = done[over] & ~failed[over]
        self.failed[items] = failed[over]
        self.iterations[items] = self.rows.ages[over]
        self.advance(len(items))

    def _keep(self, batch: Batch, rows: NDArray[np.intp]) -> None:
        indices = self.job.indices_of(batch)
        fields, assemblies = self.kernel.rounds.keep, self.job.assemblies
        real = [
            assembly.real_rows(indices, 0, self.rows.kept(field, rows))
            for field, assembly in zip(fields, assemblies, strict=True)
        ]
        for assembly, flat in zip(assemblies, real, strict=True):
            assembly.keep(indices, 0, flat)
        self.over.append(batch)  # with all fields, or with none

    def iterated(self) -> Iterated:
        """Give what came of all items, once all slots are finished."""
        plan = self.job.plan
        values = dict(zip(self.kernel.rounds.keep, self.values(), strict=True))
        return Iterated(values, self.iterations, self.converged, self.failed, plan)

    def values(self) -> list[Any]:
        """Give the kept fields in input order; of no items, those of a row of padding, dropped."""
        if not self.job.columns.items:
            batch = self.job.plan.batches[0]
            self.rows.begin(0, batch.capacity)
            with np.errstate(all="ignore"):
                self.rows.fill(batch.items[:1], 1)
            self._keep(Batch(batch.items[:0], 0, batch.capacity, 0), np.empty(0, np.intp))
        self.job.use(replace(self.job.plan, batches=tuple(self.over)))
        return self.job.results()


class _Tail:
    """When nothing waits any more: whether fewer rows are worth a compile.

    How long the last items take is unknown. Fewer rows are taken once the idle ones have cost as
    much as the compile costs, so that both together are at most twice what was necessary.
    """

    def __init__(self, job: Job, capacity: tuple[int, ...], every: int) -> None:
        self.compiles = job.target.adapter.compiles
        self.costs = job.plan.costs or Costs()
        work = float(job.plan.measure.cost(np.array([capacity], np.int64))[0])
        self.item_seconds = work * self.costs.work_seconds
        self.every = every
        self.idle_seconds = 0.0

    def rows(self, live: int, most: int, iterations: Integers) -> int:
        """Give the rows to go on with, from the steps that items took which are over."""
        if not self.compiles or not live:
            return most
        over = iterations[iterations > 0]
        fewer = row_ladder(live)[-1]
        if not len(over) or fewer >= most:
            return most
        share = self.every / float(over.mean())  # of the work of an item that is done in a round
        if self.idle_seconds > self.costs.compile_seconds:
            self.idle_seconds = 0.0
            return fewer
        self.idle_seconds += (most - fewer) * self.item_seconds * share
        return most
