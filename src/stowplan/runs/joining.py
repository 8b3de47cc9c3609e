"""``sp.join_rows`` and ``sp.split_rows``: several small items in one row, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from stowplan.adapters import framework_of, get_adapter
from stowplan.adapters.interface import as_tuple
from stowplan.declaration import Kernel
from stowplan.errors import DataError, PlanError, SignatureError
from stowplan.layout import Layout
from stowplan.planners.row_packing import RowPacking
from stowplan.ragged import Ragged
from stowplan.runs.columns import Columns, bind, check_indices
from stowplan.runs.segments import JoinedRows
from stowplan.signature import CoreShape

__all__ = ["join_rows", "split_rows"]


def join_rows(
    kernel: Kernel, data: Mapping[str, Any] | Sequence[Any], packing: RowPacking
) -> JoinedRows:
    """Put items end to end into the rows of a packing.

    Parameters
    ----------
    kernel
        Declared with ``segments=``; each argument has one ragged dim, or the one that counts items.
    data
        One entry per item, as `run` takes it.
    packing
        From `pack_rows`, for items of these sizes.

    Returns
    -------
    JoinedRows
        Data with one entry per row, for `plan`, `run` and `verify`: values end to end, indices
        counted from the start of the row. Differentiable in JAX and torch. A plan with
        ``slots=[packing.limits]`` has one shape for all sets.

    Raises
    ------
    SignatureError
        For a kernel that would mix the items of a row, or with a column that cannot be joined.
    DataError
        For other sizes than those of the packing, and indices that point outside their item.

    Examples
    --------
    >>> import stowplan as sp
    >>> from stowplan.special import segment_sum
    >>> @sp.kernel("(atoms)->(items)", ragged=("atoms", "items"), segments="items")
    ... def total(x, *, mask, segments):
    ...     return segment_sum(x, segments["atoms"], mask["items"].shape[-1])
    >>> packing = sp.pack_rows({"atoms": [2, 3, 1]}, {"atoms": 4})
    >>> rows = sp.join_rows(total, {"x": [[1.0, 2.0], [1.0, 1.0, 1.0], [5.0]]}, packing)
    >>> rows
    <3 items in 2 rows: x>
    >>> sp.split_rows(total, sp.run(total, rows), packing).tolist()
    [3.0, 3.0, 5.0]
    """
    _check_kernel("join_rows", kernel)
    _check_packing("join_rows", packing)
    if isinstance(data, JoinedRows):
        raise DataError(f"join_rows: {kernel.name}: the data are rows already; give the items.")
    columns = bind("join_rows", kernel, data)
    check_indices("join_rows", kernel, columns)
    _check_items(f"join_rows: {kernel.name}", columns, packing)
    joined = {
        name: _joined(kernel, name, core, column, columns.lengths, packing)
        for name, core, column in zip(
            kernel.arguments, kernel.signature.inputs, columns.values, strict=True
        )
    }
    within = _starts_in_row(np.ones(columns.items, np.int64), packing)
    segments = {}
    for dim in columns.segments:
        lengths = columns.lengths[dim]
        ids = np.repeat(within, lengths[packing.order])
        segments[dim] = Ragged(ids, _row_totals(lengths, packing))
    return JoinedRows(joined, packing.counts, segments)


def split_rows(kernel: Kernel, outputs: Any, packing: RowPacking) -> Any:
    """Give the results of rows as those of their items, in the order of the items.

    Parameters
    ----------
    kernel
        The kernel that was run.
    outputs
        What `run` gave for the rows of `join_rows`.
    packing
        The packing of these rows; it has a limit on every dim that an output has.

    Returns
    -------
    array, Ragged or tuple of them
        Arrays (items, ...) for outputs along the dim that counts items, Ragged for outputs along
        another. Differentiable in JAX and torch.

    Raises
    ------
    SignatureError
        For an output with one value per row, or along several ragged dims.
    DataError
        For outputs that are not those of the rows of this packing.
    """
    _check_kernel("split_rows", kernel)
    _check_packing("split_rows", packing)
    parts, cores = as_tuple(outputs), kernel.signature.outputs
    if len(parts) != len(cores):
        raise DataError(
            f"split_rows: {len(parts)} outputs, but {kernel.name} has {len(cores)}; give all that "
            "run gave."
        )
    found = [
        _split(kernel, f"output {number}", core, part, packing)
        for number, (core, part) in enumerate(zip(cores, parts, strict=True))
    ]
    if not isinstance(outputs, tuple):
        return found[0]
    return type(outputs)(*found) if hasattr(outputs, "_fields") else tuple(found)


def _joined(
    kernel: Kernel,
    name: str,
    core: CoreShape,
    column: Any,
    lengths: Mapping[str, NDArray[np.int64]],
    packing: RowPacking,
) -> Ragged:
    dim = _only_dim("join_rows", kernel, f"argument {name!r}", core)
    shift = None
    if name in kernel.index and column.values.shape[0]:
        along = lengths[kernel.index[name]]
        _refuse_narrow(kernel, name, column.values, _row_totals(along, packing))
        shift = np.repeat(_starts_in_row(along, packing), lengths[dim][packing.order])

    def end_to_end(values: Any) -> Any:
        packed = column.map_values(lambda _: values)[packing.order].compact().values
        return packed if shift is None else _shifted(packed, shift, kernel.fill[name])

    values = _rearranged(column.values, end_to_end)
    return Ragged.from_layout(values, Layout(_row_totals(lengths[dim], packing)))


def _starts_in_row(lengths: NDArray[np.int64], packing: RowPacking) -> NDArray[np.int64]:
    """Give the place in its row where each item of ``packing.order`` begins."""
    held = lengths[packing.order]
    starts = np.cumsum(held) - held
    first = np.cumsum(packing.counts) - packing.counts
    inside: NDArray[np.int64] = starts - np.repeat(starts[first], packing.counts)
    return inside


def _rearranged(values: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function in NumPy where memory is shared: JAX would compile it for every total."""
    adapter = get_adapter(framework_of([values]) or "numpy")
    device = adapter.device_of(values)
    return adapter.deliver(function(adapter.stage(values, device)), device)


def _shifted(values: Any, shift: NDArray[np.int64], fill: float) -> Any:
    """Add (total,) to indices (total, ...) that are not the fill."""
    xp = array_namespace(values)
    offset = xp.asarray(shift, dtype=values.dtype, device=getattr(values, "device", None))
    offset = offset[(...,) + (None,) * (values.ndim - 1)]
    return xp.where(values == fill, values, values + offset)


def _refuse_narrow(kernel: Kernel, name: str, values: Any, totals: NDArray[np.int64]) -> None:
    longest = int(totals.max(initial=0))
    most = int(array_namespace(values).iinfo(values.dtype).max)
    if longest - 1 > most:
        raise DataError(
            f"join_rows: {kernel.name}: column {name!r} has dtype {values.dtype}, which counts to "
            f"{most}; the longest row has {longest} {kernel.index[name]}. Convert it to int32."
        )


def _split(kernel: Kernel, what: str, core: CoreShape, part: Any, packing: RowPacking) -> Any:
    dim = _only_dim("split_rows", kernel, what, core)
    where = f"split_rows: {kernel.name}: {what}"
    order = packing.order
    if dim == kernel.segments:
        lengths = np.ones(len(order), np.int64)
    elif dim in packing.dims:
        lengths = packing.lengths[:, packing.dims.index(dim)]
    else:
        raise DataError(
            f"{where} is along {dim!r}, of which the packing says nothing; give it a limit, "
            f"sp.pack_rows({{..., {dim!r}: sizes}}, {{..., {dim!r}: limit}})."
        )
    _check_rows(where, dim, part, _row_totals(lengths, packing))
    starts = np.empty(len(order), np.int64)
    starts[order] = np.cumsum(lengths[order]) - lengths[order]
    inside = Layout(lengths, starts)

    def by_item(values: Any) -> Any:
        packed = part.map_values(lambda _: values).compact()
        return Ragged.from_layout(packed.values, inside).compact().values

    values = _rearranged(part.values, by_item)
    return values if dim == kernel.segments else Ragged.from_layout(values, Layout(lengths))


def _only_dim(who: str, kernel: Kernel, what: str, core: CoreShape) -> str:
    """Give the one ragged dim of an argument or output; others cannot be joined or split."""
    dims = kernel.ragged_dims(core)
    text = f"({','.join(map(str, core))})"
    if not dims:
        given = ",".join(map(str, (kernel.segments, *core)))
        raise SignatureError(
            f"{who}: {what} of {kernel.name} has the core shape {text}, one for a row; a row holds "
            f"several items. Declare one for each: ({given})."
        )
    if len(dims) > 1:
        raise SignatureError(
            f"{who}: {what} of {kernel.name} has the core shape {text}; items end to end along "
            f"{' and '.join(dims)} at once are no block. Declare a flat list, such as (pairs,2) "
            "with index= instead of a table."
        )
    if dims[0] not in kernel.ragged:
        raise SignatureError(
            f"{who}: {what} of {kernel.name} has the core shape {text}; out_sizes gives the length "
            f"of {dims[0]!r} for a row, not for its items. Use a dim of an argument."
        )
    return dims[0]


def _row_totals(lengths: NDArray[np.int64], packing: RowPacking) -> NDArray[np.int64]:
    """Add up what each row holds, (rows,)."""
    totals = np.zeros(len(packing), np.int64)
    np.add.at(totals, packing.row, lengths)
    return totals


def _check_kernel(who: str, kernel: Kernel) -> None:
    if not isinstance(kernel, Kernel):
        raise SignatureError(
            f"{who}: {kernel!r} is no kernel. Declare it: @sp.kernel(..., segments='molecules')."
        )
    if kernel.segments is None:
        raise SignatureError(
            f"{who}: {kernel.name} does not declare segments=, so rows with several items would "
            "mix them. Name the dim that counts the items, @sp.kernel(..., segments='molecules'), "
            "and keep them apart in the function."
        )


def _check_packing(who: str, packing: RowPacking) -> None:
    if not isinstance(packing, RowPacking):
        raise PlanError(
            f"{who}: packing={packing!r} is no packing. Make one with sp.pack_rows(sizes, limits)."
        )


def _check_items(where: str, columns: Columns, packing: RowPacking) -> None:
    cure = "Pack these items: sp.pack_rows(sizes, packing.limits)."
    if columns.items != len(packing.row):
        raise DataError(
            f"{where}: the packing is for {len(packing.row)} items, the data have {columns.items}. "
            f"{cure}"
        )
    for dim, packed in zip(packing.dims, packing.lengths.T, strict=True):
        given = columns.lengths.get(dim, packed)
        differs = given != packed
        if differs.any():
            item = int(np.argmax(differs))
            raise DataError(
                f"{where}: the packing is for other sizes: {int(differs.sum())} of {columns.items} "
                f"items differ. Item {item} has {dim}={given[item]} in the data and "
                f"{dim}={packed[item]} in the packing. {cure}"
            )


def _check_rows(where: str, dim: str, part: Any, totals: NDArray[np.int64]) -> None:
    if not isinstance(part, Ragged) or part.shapes.shape != (len(totals), 1):
        raise DataError(
            f"{where}: expected a Ragged of {len(totals)} rows along {dim!r}, got {part!r}. Give "
            "what run gave for the rows of this packing."
        )
    differs = part.shapes[:, 0] != totals
    if differs.any():
        row = int(np.argmax(differs))
        raise DataError(
            f"{where}: row {row} has {dim}={part.shapes[row, 0]}, in the packing it has "
            f"{dim}={totals[row]}. Give what run gave for the rows of this packing."
        )
