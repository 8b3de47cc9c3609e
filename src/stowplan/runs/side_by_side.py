"""A run on several devices at once: a thread for each, or one program over all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from typing import Any, TypeVar

from array_api_compat import is_array_api_obj

from stowplan.adapters import Adapter, get_adapter
from stowplan.adapters.interface import as_tuple, static_key
from stowplan.declaration import Kernel
from stowplan.errors import FrameworkError
from stowplan.planners.batches import Plan
from stowplan.planners.shards import cheapest_shares, share_devices
from stowplan.ragged import Ragged
from stowplan.runs.columns import Columns
from stowplan.runs.devices import Group
from stowplan.runs.jobs import Job, with_catch_all
from stowplan.runs.parts import Part, joined, part_of
from stowplan.runs.places import Place
from stowplan.runs.shared import map_leaves

__all__ = [
    "dealt_plan",
    "gathered_from",
    "given_back",
    "map_results",
    "on_each",
    "parts_of",
    "progress_of",
    "run_on_devices",
    "shared_plan",
]

Result = TypeVar("Result")


def shared_plan(plan: Plan, group: Group) -> Plan:
    """Give a plan shared out among devices: its own way where it has one for as many."""
    program = group.one_program
    ways = ("work", "rows") if program else ("work",)
    if len(plan.devices) == len(group.places) and plan.shared_by in ways:
        return plan
    key = ("shared", group.names, program)
    if key not in plan.cache:
        plan.cache[key] = cheapest_shares(plan, group.names, program=program)
    shared: Plan = plan.cache[key]
    return shared


def dealt_plan(plan: Plan, group: Group) -> Plan:
    """Give a plan whose items are dealt out, for an iteration."""
    if len(plan.devices) == len(group.places) and plan.shared_by == "items":
        return plan
    key = ("dealt", group.names)
    if key not in plan.cache:
        plan.cache[key] = share_devices(plan, group.names, by="items")
    dealt: Plan = plan.cache[key]
    return dealt


def gathered_from(
    columns: Columns, traced: Mapping[str, Any], source: Place, group: Group
) -> tuple[Columns, Mapping[str, Any], Place]:
    """Give data where parts are cut from them: as they lie for workers there, else on the host."""
    if all(source.same_as(place) for place in group.places) and not group.adapter.compiles:
        return columns, traced, source
    to_host = source.adapter.to_host

    def moved(column: Any) -> Any:
        if isinstance(column, Ragged):
            return column.distinct().map_values(to_host)
        return to_host(column) if is_array_api_obj(column) else column

    host = get_adapter("numpy")
    return (
        replace(columns, values=tuple(map(moved, columns.values))),
        {name: map_leaves(moved, value) for name, value in traced.items()},
        Place(host, host.devices()[0]),
    )


def run_on_devices(
    where: str,
    kernel: Kernel,
    columns: Columns,
    plan: Plan,
    source: Place,
    group: Group,
    statics: Mapping[str, Any],
    traced: Mapping[str, Any],
    *,
    compile: bool,
    progress: bool,
) -> Any:
    """Compute a plan on several devices, each its batches or its rows of all, in input order."""
    whole = shared_plan(plan, group)
    if whole.shared_by == "rows":
        return _run_one_program(
            where, kernel, columns, whole, source, group, statics, traced, progress=progress
        )
    own_columns, own_traced, place = gathered_from(columns, traced, source, group)
    parts = parts_of(kernel, own_columns, whole, group)

    with progress_of(len(whole.batches), "batch", progress=progress) as advance:

        def work(number: int, go_on: Callable[[], None]) -> Any:
            part, target = parts[number], group.places[number]
            own = part.plan
            if whole.headroom and target.adapter.compiles:
                own = with_catch_all(own, kernel, static_key(statics))
            job = Job(where, kernel, part.columns, own, place, target)
            compute = job.computation(statics, own_traced, compile=compile)

            def compute_on(batch: int) -> Any:
                go_on()
                outputs = compute(batch)
                advance(1 if job.plan.batches[batch].count else 0)
                return outputs

            return job.execute(compute_on, progress=False)

        results = on_each(group, work)
    _refuse_recorded(where, kernel, results, place.adapter)
    return map_results(lambda array: given_back(array, place, source), joined(results, parts))


def _run_one_program(
    where: str,
    kernel: Kernel,
    columns: Columns,
    plan: Plan,
    source: Place,
    group: Group,
    statics: Mapping[str, Any],
    traced: Mapping[str, Any],
    *,
    progress: bool,
) -> Any:
    """Run each batch on all devices at once: a job whose device is all of them."""
    target = replace(group.places[0], device=tuple(place.device for place in group.places))
    if plan.headroom:
        plan = with_catch_all(plan, kernel, static_key(statics))
    job = Job(where, kernel, columns, plan, source, target)
    return job.execute(job.computation(statics, traced), progress=progress)


def parts_of(kernel: Kernel, columns: Columns, plan: Plan, group: Group) -> list[Part]:
    """Give the part of each device of a shared plan."""
    numbers: list[list[int]] = [[] for _ in group.places]
    for number, batch in enumerate(plan.batches):
        numbers[batch.device].append(number)
    return [part_of(kernel, columns, plan, own) for own in numbers]


def given_back(array: Any, place: Place, source: Place) -> Any:
    """Bring a joined result to where the data are."""
    if place.same_as(source):
        return source.adapter.deliver(array, source.device)
    return source.adapter.asarray(place.adapter.to_host(array), source.device)


def map_results(change: Callable[[Any], Any], results: Any) -> Any:
    """Change the arrays of what a run gives."""
    if isinstance(results, Ragged):
        return results.map_values(change)
    if not isinstance(results, tuple):
        return change(results)
    parts = [map_results(change, part) for part in results]
    return type(results)(*parts) if hasattr(results, "_fields") else tuple(parts)


def _refuse_recorded(where: str, kernel: Kernel, results: Sequence[Any], adapter: Adapter) -> None:
    """Refuse results that a gradient follows: of a tensor that the kernel holds by itself."""
    for result in results:
        for part in as_tuple(result):
            if adapter.requires_grad(part.values if isinstance(part, Ragged) else part):
                raise FrameworkError(
                    f"{where}: {kernel.name} uses a tensor that requires grad, but a run on "
                    "several devices has no gradient. Leave devices= out, or detach that tensor."
                )


class _StoppedError(Exception):
    """Another device has failed."""


def on_each(group: Group, work: Callable[[int, Callable[[], None]], Result]) -> list[Result]:
    """Call ``work(number, go_on)`` for each device in a thread of its own, and give all results.

    It calls ``go_on`` between batches, which ends it where another device has failed. The first
    error is raised once all have ended, and says on which device it was.
    """
    stopped = threading.Event()

    def go_on() -> None:
        if stopped.is_set():
            raise _StoppedError

    with (
        group.adapter.alongside() as within,
        ThreadPoolExecutor(len(group.places), "stowplan") as pool,
    ):

        def one(number: int) -> Result:
            with within(group.places[number].device):
                return work(number, go_on)

        futures = [
            pool.submit(copy_context().run, one, number) for number in range(len(group.places))
        ]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:  # an interrupt: no device goes on with its next batch
            stopped.set()
            raise
        if any(future.done() and future.exception() for future in futures):
            stopped.set()
        errors = [
            (name, future.exception()) for name, future in zip(group.names, futures, strict=True)
        ]
    for name, error in errors:
        if error is not None and not isinstance(error, _StoppedError):
            error.add_note(f"This was on {name}, one of {len(group.places)} devices.")
            raise error
    return [future.result() for future in futures]


@contextmanager
def progress_of(total: int, unit: str, *, progress: bool) -> Iterator[Callable[[int], object]]:
    """Give what moves one bar on from any thread; none is shown without ``progress``."""
    if not progress:
        yield lambda count: None
        return
    from tqdm import tqdm  # a third of the time that importing stowplan would take

    lock = threading.Lock()
    with tqdm(total=total, unit=unit) as bar:

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        yield advance
