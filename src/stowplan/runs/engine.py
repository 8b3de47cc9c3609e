"""``executor=``: the batches of a run as tasks, longest first, within the budget."""

from __future__ import annotations

import logging
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from array_api_compat import is_array_api_obj

from stowplan.adapters import Adapter
from stowplan.declaration import Kernel
from stowplan.errors import (
    BudgetError,
    DataError,
    ExecutorError,
    FrameworkError,
    MissingDependencyError,
    PlanError,
    SignatureError,
)
from stowplan.memory import as_share, parse_bytes, scratch_folder, show_bytes
from stowplan.planners.batches import Plan
from stowplan.runs.budgeting import row_bytes
from stowplan.runs.columns import Columns
from stowplan.runs.fingerprints import fingerprints
from stowplan.runs.footprint import widest_input
from stowplan.runs.iteration import Iterated
from stowplan.runs.loads import Reads, cut_loads
from stowplan.runs.parts import Part, joined, joined_iterations, part_of
from stowplan.runs.places import Place
from stowplan.runs.pools import Pool, is_broken
from stowplan.runs.recovery import shown_capacity
from stowplan.runs.rounds import Rounds
from stowplan.runs.side_by_side import map_results, progress_of
from stowplan.runs.tasks import Call, Failure, Outcome, block_of, host_columns, wrapped
from stowplan.stores.run_folder import RunFolder

__all__ = [
    "Engine",
    "check_executor",
    "iterate_by_executor",
    "one_thread",
    "planned_bytes",
    "run_by_executor",
    "saved_plan",
]

Maker = Executor | Callable[[], Executor]

_log = logging.getLogger("stowplan")

MOST_STALLS = 3
"""Times that workers may be lost in a row without a batch being done in between."""
WORTH_SPLITTING_SECONDS = 1.0
"""Predicted time of a run from which on idle workers are worth a word."""
SETTLING_SECONDS = 10
"""How long a broken pool may take to tell of each of its tasks."""
SHOWN_ITEMS = 3
PLAN = "plan"
"""Name of the plan in the folder of a run."""

OWN_ERRORS = (
    BudgetError, DataError, FrameworkError, MissingDependencyError, PlanError, SignatureError,
)  # fmt: skip


class Engine:
    """One run whose batches are computed by an executor.

    Parameters
    ----------
    call : Call
        What all batches share.
    columns : Columns
    plan : Plan
    sizes : sequence of int
        Planned bytes of each batch.
    """

    def __init__(self, call: Call, columns: Columns, plan: Plan, sizes: Sequence[int]) -> None:
        self.call = call
        self.where = call.where
        self.kernel = call.kernel
        self.columns = host_columns(columns)
        self.plan = plan
        self.numbers = [number for number, batch in enumerate(plan.batches) if batch.count]
        self.sizes = {number: sizes[number] for number in self.numbers}
        self.store: RunFolder | None = None
        self.done: dict[int, Outcome] = {}

    @classmethod
    def of(
        cls,
        where: str,
        kernel: Kernel,
        columns: Columns,
        plan: Plan,
        source: Place,
        target: Place,
        shared: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Engine:
        """Make one for a call of ``run`` or ``iterate``."""
        call = Call.make(where, kernel, source, target, shared, options)
        return cls(call, columns, plan, planned_bytes(kernel, columns, plan, call.shared))

    def compute(
        self,
        executor: Maker,
        resume: str | PathLike[str] | None,
        *,
        progress: bool,
    ) -> tuple[list[Outcome], list[Part]]:
        """Give outcomes and parts of all batches, in the order of the plan."""
        pool = Pool(self.where, executor)
        finished = False
        try:
            budget = self._budget()
            pool.refuse_larger(self.sizes, self.name)
            self._warn_of_idle_workers(pool)
            if resume is not None:
                self._open(resume)
            with progress_of(len(self.numbers), "batch", progress=progress) as advance:
                advance(len(self.done))
                _Flight(self, pool, budget, advance).land()
            finished = True
        finally:
            pool.close(wait=finished)
            if self.store is not None:
                self.store.close()
        outcomes = [self.done[number] for number in self.numbers]
        return outcomes, [self._place(number) for number in self.numbers]

    def part(self, number: int) -> Part:
        """Give one batch as a run of its own, its data read where they lie on disk."""
        if self.columns.stored:
            reads = Reads(self.columns)
            (load,) = cut_loads(self.plan, reads, 0, [number])
            values = reads.fill(load, np.empty(reads.room_for(load.bytes), np.uint8))
            return reads.part(self.kernel, self.plan, load, values)
        return part_of(self.kernel, self.columns, self.plan, [number])

    def longest_first(self) -> list[int]:
        """Give the batches that are not done, those with most work first."""
        batches = [self.plan.batches[number] for number in self.numbers]
        capacities = np.array([batch.capacity for batch in batches], np.int64)
        rows = np.array([len(batch.items) for batch in batches])
        shape = (len(batches), len(self.plan.dims))
        work = rows * self.plan.measure.cost(capacities.reshape(shape))
        order = np.argsort(-work, kind="stable")
        return [self.numbers[place] for place in order if self.numbers[place] not in self.done]

    def keep(self, number: int, outcome: Outcome) -> None:
        """Keep what a batch gave, on disk as well if that is asked for."""
        self.done[number] = outcome
        if self.store is not None:
            self.store.save(number, outcome.outputs, outcome.kind)

    def name(self, number: int) -> str:
        """Name a batch by number, shape and items."""
        batch = self.plan.batches[number]
        items = batch.items[: min(batch.count, SHOWN_ITEMS)].tolist()
        more = ", ..." if batch.count > SHOWN_ITEMS else ""
        return (
            f"batch {number} of {len(self.plan.batches)} ({batch.count} items in "
            f"{len(batch.items)} rows{shown_capacity(self.plan, batch.capacity)}: "
            f"{', '.join(map(str, items))}{more})"
        )

    def save(self) -> Path:
        """Write what is done to a folder, unless it is there already."""
        if self.store is None:
            scratch = scratch_folder(None, self.where)
            self._create(tempfile.mkdtemp(prefix="stowplan-", dir=scratch))
            assert self.store is not None
            for number, outcome in self.done.items():
                self.store.save(number, outcome.outputs, outcome.kind)
        return self.store.folder

    def _warn_of_idle_workers(self, pool: Pool) -> None:
        batches, seconds = len(self.numbers), self.plan.predicted_seconds
        if seconds > WORTH_SPLITTING_SECONDS and batches < pool.workers:
            _log.warning(
                "%s: the plan has %d batches for %d workers, so that some have nothing to do. Plan "
                "smaller ones: sp.plan(..., rows=...).", self.where, batches, pool.workers,
            )  # fmt: skip

    def _place(self, number: int) -> Part:
        """Give a part that is done: where its items are, and no data any more."""
        batch = self.plan.batches[number]
        return Part(np.sort(batch.items[: batch.count]), self.columns, {}, self.plan)

    def _open(self, resume: str | PathLike[str]) -> None:
        self._create(resume)
        assert self.store is not None
        found = self.store.readable()
        self.done = {
            number: Outcome(outputs, kind)
            for number, (outputs, kind) in found.items()
            if number in self.sizes
        }
        _log.info("%s: %d of %d batches are done.", self.where, len(self.done), len(self.numbers))

    def _create(self, folder: str | PathLike[str]) -> None:
        identity = fingerprints(self.call, self.columns, self.plan)
        batches = len(self.numbers)
        self.store = RunFolder(folder, identity, self.where, batches=batches)
        if saved_plan(folder) is None:
            self.plan.save(self.store.folder / PLAN)

    def _budget(self) -> int | None:
        """Give the most planned bytes at once; refuse a batch that alone takes more."""
        memory = self.plan.memory
        if memory is None or not memory.batch_bytes:
            return None
        budget = memory.budget
        worst = max(self.numbers, key=self.sizes.__getitem__, default=None)
        if worst is not None and self.sizes[worst] > budget.bytes:
            raise BudgetError(
                f"{self.where}: {self.name(worst)} takes {show_bytes(self.sizes[worst])}, the "
                f"budget is {budget}. Plan smaller batches: sp.plan(..., budget=...) or rows=."
            )
        return budget.bytes


class _Flight:
    """Tasks on their way, from the first that is submitted to the last that is done."""

    def __init__(
        self, engine: Engine, pool: Pool, budget: int | None, advance: Callable[[int], object]
    ) -> None:
        self.engine = engine
        self.pool = pool
        self.budget = budget
        self.advance = advance
        self.waiting = deque(engine.longest_first())
        self.running: dict[Future[Any], int] = {}
        self.submitted = False
        self.stalls = 0  # times in a row that workers were lost and nothing was done
        self.done_before = len(engine.done)  # when they were lost last
        self.shared: Any = None

    def land(self) -> None:
        """Have all batches computed."""
        if not self.waiting:
            return
        try:
            self.shared = self.pool.share(self.engine.call)
            while self.waiting or self.running:
                lost = self._fill() or self._collect()
                if lost is not None:
                    self._recover(lost)
        finally:
            for future in self.running:
                future.cancel()

    def _fill(self) -> BaseException | None:
        """Submit what may be in flight; give the error of a pool that is broken."""
        while self.waiting and self._has_room(self.waiting[0]):
            number = self.waiting[0]
            block = block_of(self.engine.part(number))
            try:
                future = self.pool.submit(self.shared, block, self.engine.sizes[number])
            except RuntimeError as error:
                if not (is_broken(error) or self.submitted):
                    raise
                return error
            self.submitted = True
            self.running[future] = self.waiting.popleft()
        return None

    def _has_room(self, number: int) -> bool:
        """Whether a batch may be submitted; one at a time after workers were lost for nothing."""
        if not self.running:
            return True
        if self.stalls or len(self.running) >= self.pool.most_in_flight:
            return False
        sizes = self.engine.sizes
        taken = sum(sizes[other] for other in self.running.values())
        return self.budget is None or taken + sizes[number] <= self.budget

    def _collect(self) -> BaseException | None:
        """Wait for a task and keep what is done; give the error of one whose worker is lost."""
        wait(self.running, return_when=FIRST_COMPLETED)
        lost = None
        for future in [future for future in self.running if future.done()]:
            lost = self._take(future) or lost
        return lost

    def _take(self, future: Future[Any]) -> BaseException | None:
        number = self.running[future]
        try:
            outcome = future.result()
        except BaseException as error:
            if is_broken(error):
                return error  # it stays among those that run, until the pool is renewed
            if not isinstance(error, Exception):
                raise
            self._fail(number, error)
        del self.running[future]
        if isinstance(outcome, Failure):
            self._fail(number, outcome.cause())
        self.engine.keep(number, outcome)
        self.stalls = 0
        self.advance(1)
        return None

    def _recover(self, lost: BaseException) -> None:
        """Go on after a worker was lost, with the batches that are not done."""
        if not self.pool.outlives_workers:
            wait(self.running, timeout=SETTLING_SECONDS)
        for future in [future for future in self.running if future.done()]:
            self._take(future)
        gone = [
            number
            for future, number in self.running.items()
            if future.done() or not self.pool.outlives_workers
        ]
        for future in [future for future, number in self.running.items() if number in gone]:
            future.cancel()
            del self.running[future]
        done = len(self.engine.done)
        self.stalls = self.stalls + 1 if done == self.done_before else 0
        self.done_before = done
        if not self.pool.renewable or self.stalls > MOST_STALLS:
            self._give_up(gone, lost)
        _log.warning(
            "%s: a worker was lost (%s). %d of %d batches are done and kept; those that are not "
            "are submitted again.", self.engine.where, _first_line(lost),
            done, len(self.engine.numbers),
        )  # fmt: skip
        left = {*self.waiting, *gone}
        self.waiting = deque(n for n in self.engine.longest_first() if n in left)
        self.pool.renew()
        self.shared = self.pool.share(self.engine.call)

    def _give_up(self, gone: Sequence[int], lost: BaseException) -> NoReturn:
        engine = self.engine
        folder = engine.save()
        again = f"sp.{engine.where}(..., executor=..., resume={str(folder)!r})"
        if self.pool.renewable:
            why = (
                f"{MOST_STALLS + 1} workers in a row were lost before they were done with it; it "
                "may take more memory than there is"
            )
            how = f"With smaller batches or larger workers begin anew; with the same plan: {again}"
        else:
            why = "an executor that was given cannot be made anew"
            how = (
                f"Go on with a new one: {again}. A function that makes one is called again by "
                "itself: executor=lambda: ProcessPoolExecutor(2)"
            )
        raise ExecutorError(
            f"{engine.where}: the executor broke ({_first_line(lost)}) over "
            f"{self._named(gone)}, and {why}. {len(engine.done)} of {len(engine.numbers)} batches "
            f"are done and saved, with the plan, in {folder}. {how}."
        ) from lost

    def _named(self, gone: Sequence[int]) -> str:
        if len(gone) < 2:
            return next(map(self.engine.name, gone), "a task that it did not take")
        return f"batches {', '.join(map(str, gone))} of {len(self.engine.plan.batches)}"

    def _fail(self, number: int, cause: BaseException) -> NoReturn:
        kind = next((kind for kind in OWN_ERRORS if type(cause) is kind), ExecutorError)
        what = str(cause) if kind is not ExecutorError else f"{type(cause).__name__}: {cause}"
        raise kind(f"{self.engine.where}: {self.engine.name(number)} failed: {what}") from cause


def planned_bytes(
    kernel: Kernel, columns: Columns, plan: Plan, shared: Mapping[str, Any]
) -> list[int]:
    """Give the bytes of each batch: as forecast, else by ``memory=``, else of its columns."""
    memory = plan.memory
    if memory is not None and memory.batch_bytes:
        return [memory.batch_bytes[batch.slot] for batch in plan.batches]
    width = widest_input(columns, shared)
    each = row_bytes(kernel, plan, width, kernel.count_terms(shared))
    return [each[batch.slot] * len(batch.items) for batch in plan.batches]


def run_by_executor(
    kernel: Kernel,
    columns: Columns,
    plan: Plan,
    source: Place,
    target: Place,
    shared: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    executor: Maker,
    resume: str | PathLike[str] | None,
    progress: bool,
) -> Any:
    """Give what `run` gives, computed by workers."""
    engine = Engine.of("run", kernel, columns, plan, source, target, shared, options)
    outcomes, parts = engine.compute(executor, resume, progress=progress)
    found = [wrapped(outcome.outputs, outcome.kind) for outcome in outcomes]
    return _given_back(source, joined(found, parts))


def iterate_by_executor(
    step: Kernel,
    columns: Columns,
    plan: Plan,
    source: Place,
    target: Place,
    shared: Mapping[str, Any],
    rounds: Rounds,
    limit: int,
    *,
    executor: Maker,
    resume: str | PathLike[str] | None,
    progress: bool,
) -> Iterated:
    """Give what `iterate` gives, each batch iterated on its own by a worker."""
    options = {
        "init": rounds.init, "until": rounds.until, "every": rounds.every, "keep": rounds.keep,
        "limit": limit,
    }  # fmt: skip
    engine = Engine.of("iterate", step, columns, plan, source, target, shared, options)
    outcomes, parts = engine.compute(executor, resume, progress=progress)
    found = []
    for outcome in outcomes:
        *values, iterations, converged, failed = outcome.outputs
        named = dict(zip(rounds.keep, values, strict=True))
        found.append(Iterated(named, iterations, converged, failed, plan))
    whole = joined_iterations(found, parts, plan)
    kept = {name: _given_back(source, value) for name, value in whole.values.items()}
    return replace(whole, values=kept)


def one_thread() -> Executor:
    """Give an executor that computes one batch at a time, here."""
    return ThreadPoolExecutor(1, "stowplan")


def check_executor(
    where: str, what: str, devices: object, adapter: Adapter, arrays: Sequence[Any]
) -> None:
    """Refuse what cannot be computed batch by batch, by others or with results on disk.

    ``what`` is the keyword that asks for it, or what does: "executor=", "data on disk".

    Raises
    ------
    PlanError
        For several devices beside it.
    FrameworkError
        For arrays whose gradient would be cut, and those of a trace.
    """
    if devices is not None:
        raise PlanError(
            f"{where}: devices={devices!r} beside {what}, where each batch has one device. "
            "Leave one of them out."
        )
    for array in filter(is_array_api_obj, arrays):
        if adapter.is_traced(array):
            raise FrameworkError(
                f"{where}: {what} goes with values, which a traced function (jit, grad, vmap) "
                "does not have. Call it outside of the trace."
            )
        if adapter.requires_grad(array):
            raise FrameworkError(
                f"{where}: {what} takes values out of the framework, which cuts the gradient that "
                "the data require. Detach them, or leave it out."
            )


def saved_plan(
    resume: str | PathLike[str] | None, budget: float | str | None = None
) -> Plan | None:
    """Give the plan of a run that is to go on, where there is one for this budget.

    A share of the free memory is whatever it was when the plan was made.
    """
    path = None if resume is None else Path(resume) / PLAN
    if path is None or not path.with_suffix(".json").is_file():
        return None
    plan = Plan.load(path)
    if budget is None or plan.memory is None or as_share(budget) is not None:
        return plan
    return plan if parse_bytes(budget) == plan.memory.budget.bytes else None


def _given_back(source: Place, outputs: Any) -> Any:
    """Bring host results, one or a nest of them, to where the data are."""

    def back(array: Any) -> Any:
        return source.adapter.asarray(np.asarray(array), source.device)

    return map_results(back, outputs)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0].rstrip('.')}"
