"""``sp.value_and_grad``: a loss of a run, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from array_api_compat import array_namespace

from stowplan.adapters import framework_of
from stowplan.adapters.interface import GradientAdapter
from stowplan.declaration import Kernel
from stowplan.errors import DataError, FrameworkError
from stowplan.planners.batches import Plan
from stowplan.ragged import Ragged
from stowplan.runs.budgeting import MemoryRequest
from stowplan.runs.columns import Columns, bind, check_indices
from stowplan.runs.execution import refuse_beside_plan, run
from stowplan.runs.matching import check_sizes
from stowplan.runs.places import Place, find_places
from stowplan.runs.planning import plan_columns
from stowplan.runs.shared import check_shared, leaves

__all__ = ["value_and_grad"]


def value_and_grad(
    kernel: Kernel,
    data: Mapping[str, Any] | Sequence[Any],
    plan: Plan | None = None,
    *,
    loss: Callable[..., Any] | None = None,
    wrt: str | Sequence[str],
    budget: float | str | None = None,
    peak: Any = None,
    **shared: Any,
) -> tuple[Any, dict[str, Any]]:
    """Sum a loss over all items, and give its gradient, with the memory of one batch.

    Parameters
    ----------
    kernel, data, plan, budget, peak, **shared
        As in `run`; arrays of torch or JAX.
    loss
        Takes the outputs of `run`, in their order, and returns a loss per item, (items,). Each
        batch is computed twice then, as no loss is known before all outputs are. Without it the
        kernel's only output, ``...->()``, is the loss, and each batch is computed once.
    wrt
        Names of columns and shared parameters to differentiate by, all of floating dtype.

    Returns
    -------
    value : 0-d array
        Sum of the losses.
    gradients : dict of str to array or Ragged
        By name, each like the column or parameter itself.

    Raises
    ------
    DataError
        For a name that is neither column nor shared array, a loss of another shape, and no loss
        where the output of the kernel is not one number an item.
    FrameworkError
        For data of a framework without gradients.

    Examples
    --------
    With torch (tests run these lines where it is installed)::

        @sp.kernel("(points)->()", ragged="points")
        def total(x, *, scale):
            return scale * x.sum(-1)

        data = {"x": sp.Ragged(torch.tensor([1.0, 2.0, 5.0]), [2, 1])}
        value, by = sp.value_and_grad(
            total, data, loss=lambda sums: (sums - 1) ** 2, wrt=["x", "scale"],
            scale=torch.tensor(2.0),
        )
        # value is 106, by["x"] is [[20, 20], [36]], by["scale"] is 120
    """
    who = f"value_and_grad: {kernel.name}"
    columns = bind("value_and_grad", kernel, data)
    check_shared("value_and_grad", kernel, shared)
    source, _ = find_places("value_and_grad", [*columns.arrays, *leaves(shared)], None, None)
    if not hasattr(source.adapter, "value_and_grad"):
        raise FrameworkError(
            f"{who}: {source.adapter.name} has no gradients. Give the data as torch or JAX arrays."
        )
    names = (wrt,) if isinstance(wrt, str) else tuple(wrt)
    given = {**dict(zip(kernel.arguments, columns.values, strict=True)), **shared}
    free = [_parameter(who, name, given, source.adapter.name) for name in names]

    if loss is None:
        value, by = _of_losses(who, kernel, columns, plan, source, shared, names, budget, peak)
        return value, {name: _like(given[name], by[name]) for name in names}

    def total(parameters: Sequence[Any]) -> Any:
        changed = dict(given)
        for name, flat in zip(names, parameters, strict=True):
            old = given[name]
            changed[name] = Ragged.from_layout(flat, old.layout) if _is_ragged(old) else flat
        results = run(
            kernel,
            {name: changed[name] for name in kernel.arguments},
            plan,
            budget=budget,
            peak=peak,
            **{name: changed[name] for name in shared},
        )
        each = loss(*results) if isinstance(results, tuple) else loss(results)
        if tuple(getattr(each, "shape", ())) != (columns.items,):
            raise DataError(
                f"{who}: loss returned shape {getattr(each, 'shape', None)}; it gives one number "
                f"for each of the {columns.items} items."
            )
        return array_namespace(each).sum(each)

    value, slopes = cast("GradientAdapter", source.adapter).value_and_grad(total, free)
    return value, {
        name: _like(given[name], slope) for name, slope in zip(names, slopes, strict=True)
    }


def _of_losses(
    who: str,
    kernel: Kernel,
    columns: Columns,
    plan: Plan | None,
    place: Place,
    shared: Mapping[str, Any],
    names: Sequence[str],
    budget: float | str | None,
    peak: Any,
) -> tuple[Any, dict[str, Any]]:
    """Give the sum of what the kernel returns, and its gradients by name, in one pass."""
    from stowplan.runs.loss_runs import LossRun

    outputs = kernel.signature.outputs
    if len(outputs) != 1 or outputs[0]:
        raise DataError(
            f"{who} returns {kernel.signature.text.partition('->')[2]}; without loss= it returns "
            "the loss of an item, one number, '...->()'. Give loss=, which makes one of its "
            "outputs."
        )
    statics, traced = check_shared("value_and_grad", kernel, shared)
    if plan is None:
        memory = MemoryRequest(budget, peak, tuple(names), statics, traced)
        plan = plan_columns("value_and_grad", kernel, columns, place, place, memory)
    else:
        refuse_beside_plan("value_and_grad", budget=budget, peak=peak)
    check_sizes("value_and_grad", kernel, columns, plan)
    check_indices("value_and_grad", kernel, columns, fetch=False)
    whole = LossRun(kernel, columns, plan, place, statics, traced, compile=False, progress=False)
    return whole.value_and_gradients(names)


def _like(given: Any, slope: Any) -> Any:
    return Ragged.from_layout(slope, given.layout) if _is_ragged(given) else slope


def _is_ragged(value: Any) -> bool:
    return isinstance(value, Ragged)


def _parameter(who: str, name: str, given: Mapping[str, Any], framework: str) -> Any:
    """Give the flat array that a name stands for."""
    if name not in given:
        raise DataError(f"{who}: wrt={name!r} is nothing given; there are: {', '.join(given)}.")
    flat = given[name].values if _is_ragged(given[name]) else given[name]
    if framework_of([flat]) != framework:
        raise DataError(
            f"{who}: wrt={name!r} is of type {type(flat).__name__}; give an array of {framework}."
        )
    xp = array_namespace(flat)
    if not xp.isdtype(flat.dtype, ("real floating", "complex floating")):
        raise DataError(f"{who}: wrt={name!r} has dtype {flat.dtype}, which has no gradient.")
    return flat
