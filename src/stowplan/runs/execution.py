"""``sp.run``: data and a plan checked against each other, then computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from array_api_compat import is_array_api_obj

from stowplan.adapters import Adapter
from stowplan.adapters.interface import static_key
from stowplan.declaration import Kernel
from stowplan.errors import FrameworkError, PlanError
from stowplan.planners.batches import Plan
from stowplan.runs.budgeting import MemoryRequest
from stowplan.runs.columns import bind, check_indices
from stowplan.runs.jobs import Job, with_catch_all
from stowplan.runs.matching import check_sizes
from stowplan.runs.places import find_places
from stowplan.runs.planning import plan_columns
from stowplan.runs.shared import check_shared, leaves

if TYPE_CHECKING:
    from concurrent.futures import Executor  # 2 ms of an import

    from stowplan.runs.devices import DevicesGiven

__all__ = ["refuse_beside_plan", "run"]


def run(
    kernel: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    plan: Plan | None = None,
    *,
    on: str | None = None,
    device: Any = None,
    devices: DevicesGiven = None,
    rows: int | None = None,
    budget: float | str | None = None,
    peak: Any = None,
    progress: bool = False,
    compile: bool = False,
    executor: Executor | Callable[[], Executor] | None = None,
    resume: str | PathLike[str] | None = None,
    out: Any = None,
    overwrite: bool = False,
    **shared: Any,
) -> Any:
    """Evaluate a kernel on every item, batch by batch, and give the results in input order.

    Parameters
    ----------
    kernel
        A function declared with ``@kernel``.
    data
        One column per positional parameter: Ragged, array with items on axis 0, list of arrays, or
        Arrow column; all of one framework, on one device.
    plan
        From ``sp.plan``, for data of these sizes; made with the defaults where it is missing.
    on, device
        Framework and device to compute on; those of the data by default.
    devices
        Several devices at once: how many, ``"all"`` of the platform, or a list of them, as
        ``device=`` takes each. A CPU of NumPy and torch has as many as asked for, threads with
        one intra-op thread each. A plan made for several is run on as many by default. Nothing has
        a gradient then.
    rows, budget, peak
        Rows of a batch, most bytes of the run and the peak of a batch by hand, where no plan is
        given; see `plan`. The budget includes the gradient, if the framework records one.
    progress
        Show a progress bar over batches.
    compile
        torch only: one compiled graph per padded shape.
    executor
        A ``concurrent.futures.Executor`` that computes the batches, each a task: a pool of threads
        or processes, or `dask_executor`. Or a function that makes one, which is called again when
        workers are lost, and whose pool is shut down in the end. No more planned bytes are in
        flight than the plan's budget. There is no gradient.
    resume
        Folder of a run that was cut off, or a new one: what is done is noted there, load by load
        (with ``executor``, batch by batch), and is not computed again.
    out
        Where results go instead of memory: a path (``.npy``, ``.zarr``, ``.h5::dataset``), or a
        list with one for each output, None for one that is kept in memory.
    overwrite
        Whether outputs that are there are replaced.
    **shared
        The kernel's keyword-only parameters. Numbers and arrays are traced; a name in the kernel's
        ``static=`` selects code instead.

    Returns
    -------
    array, Ragged or tuple of them
        In the framework, on the device and in the dtype of the data. In JAX and torch they are
        differentiable with respect to the data and the shared parameters.

    Raises
    ------
    DataError
        Columns that are missing or disagree, shared parameters that are missing or unknown.
    FrameworkError
        Two frameworks in one call, or a dtype, device or gradient that would be lost.
    PlanError
        A plan for data of other sizes, and a folder of another run.
    ExecutorError
        An executor that was shut down, or that lost its workers and cannot be made anew; what was
        done is saved then, and the message says how to go on.

    Examples
    --------
    >>> import stowplan as sp
    >>> @sp.kernel("(points)->()", ragged="points", fill={"x": 0.0})
    ... def total(x, *, scale):
    ...     return scale * x.sum(axis=-1)
    >>> sp.run(total, {"x": [[1.0, 2.0], [5.0]]}, scale=2.0).tolist()
    [6.0, 10.0]

    One batch of one row for each of two threads:

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor(2) as pool:
    ...     sp.run(total, {"x": [[1.0, 2.0], [5.0]]}, rows=1, executor=pool, scale=2.0).tolist()
    [6.0, 10.0]
    """
    columns = bind("run", kernel, data, on_disk=True)
    statics, traced = check_shared("run", kernel, shared)
    arrays = [*columns.arrays, *leaves(traced)]
    source, target = find_places("run", arrays, on, device)
    on_disk = {"data on disk": columns.stored, "out=": out is not None}
    asked = {"executor=": executor is not None, "resume=": resume is not None, **on_disk}
    apart = [what for what, given in asked.items() if given]
    if apart:
        from stowplan.runs.engine import check_executor, saved_plan

        check_executor("run", apart[0], devices, source.adapter, arrays)
        if plan is None and rows is None and peak is None:
            plan = saved_plan(resume, budget)
            budget = None if plan is not None else budget
    if executor is not None and out is not None:
        raise PlanError(
            "run: out= beside executor=, whose results come back to memory. Leave one of them out."
        )
    group = None
    if executor is None and (devices is not None or getattr(plan, "devices", None)):
        from stowplan.runs.devices import find_devices, planned_devices, refuse_gradients

        group = find_devices("run", target, planned_devices(devices, device, plan))
    if group is not None:
        refuse_gradients("run", source.adapter, arrays)
        target = group.target
    if plan is None:
        memory = MemoryRequest(budget, peak, None, statics, traced)
        plan = plan_columns(
            "run", kernel, columns, source, target, memory, rows=rows, group=group,
            keep=out is None,
        )  # fmt: skip
    else:
        refuse_beside_plan("run", rows=rows, budget=budget, peak=peak)
    check_sizes("run", kernel, columns, plan)
    check_indices("run", kernel, columns, fetch=False)
    _refuse(target.adapter, arrays, progress=progress, compile=compile)
    if executor is not None and columns.items:
        from stowplan.runs.engine import run_by_executor

        return run_by_executor(
            kernel, columns, plan, source, target, {**statics, **traced}, {"compile": compile},
            executor=executor, resume=resume, progress=progress,
        )  # fmt: skip
    if apart and (columns.items or out is not None):
        from stowplan.runs.streaming import run_on_disk  # most data are in memory

        return run_on_disk(
            kernel, columns, plan, source, target, statics, traced,
            out=out, overwrite=overwrite, resume=resume, compile=compile, progress=progress,
        )  # fmt: skip
    if group is not None:
        from stowplan.runs.side_by_side import run_on_devices  # many programs have one device

        return run_on_devices(
            "run", kernel, columns, plan, source, group, statics, traced,
            compile=compile, progress=progress,
        )  # fmt: skip
    if target.adapter.compiles and plan.headroom and not _any_traced(target.adapter, arrays):
        plan = with_catch_all(plan, kernel, static_key(statics))
    followed = source.same_as(target) and any(
        source.adapter.records(array) for array in arrays if is_array_api_obj(array)
    )
    probed = plan.memory is not None and plan.memory.peak_bytes is not None
    if followed and (len(plan.batches) > 1 or (probed and target.adapter.compiles)):
        from stowplan.runs.gradients import RecomputedRun  # most runs have no gradient

        return RecomputedRun(
            kernel, columns, plan, source, statics, traced, compile=compile, progress=progress
        ).run()
    job = Job("run", kernel, columns, plan, source, target)
    return job.execute(job.computation(statics, traced, compile=compile), progress=progress)


def refuse_beside_plan(where: str, **options: Any) -> None:
    """Refuse options that a plan has settled."""
    for name, value in options.items():
        if value is not None:
            raise PlanError(
                f"{where}: give {name}= while planning, sp.plan(..., {name}=...), or leave out the "
                "plan."
            )


def _refuse(adapter: Adapter, arrays: Sequence[Any], *, progress: bool, compile: bool) -> None:
    if progress and not all(map(adapter.has_values, filter(is_array_api_obj, arrays))):
        raise FrameworkError(
            "run: progress=True needs values, which a traced function does not have. Leave it out, "
            "or call run outside of jit, vmap and grad."
        )
    if compile and adapter.name not in ("torch", "jax"):
        raise FrameworkError(
            f"run: compile=True needs torch or JAX; {adapter.name} has no compiler."
        )


def _any_traced(adapter: Adapter, arrays: Sequence[Any]) -> bool:
    return any(is_array_api_obj(array) and adapter.is_traced(array) for array in arrays)
