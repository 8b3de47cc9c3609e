"""Buckets: slots for grids, each item in the cheapest one that holds it, with offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stowplan.errors import PlanError
from stowplan.planners.batches import Plan
from stowplan.planners.choose import choose_slots
from stowplan.planners.cost import Costs
from stowplan.planners.offsets import Offsets, place_items
from stowplan.planners.sizes import natural, size_table
from stowplan.planners.slots import assign_table

__all__ = ["fit_buckets"]

Bucket = Mapping[str, int] | Sequence[int]
AXES = ("z", "y", "x")


def fit_buckets(
    shapes: ArrayLike,
    buckets: int | Sequence[Bucket] | None = None,
    *,
    dims: Sequence[str] | str | None = None,
    work: str | None = None,
    derived: Mapping[str, str] | None = None,
    offsets: Offsets = "centre",
    costs: Costs | None = None,
) -> Plan:
    """Put grids into padded shapes that they share, each into the cheapest one that holds it.

    Parameters
    ----------
    shapes : integers (items, d)
        Shape of each grid; lengths of 0 are legal.
    buckets : int or sequence, optional
        How many shapes to choose, at most, by padded work; or the shapes, as tuples or as limits by
        dim or derived name, optionally with ``"rows"``. By default as many as cost least.
    dims : sequence of str, optional
        Names of the d axes; the last of ``("z", "y", "x")`` by default.
    work : str, optional
        Cost of a padded grid, an expression of dims and derived names; the product of all dims by
        default. The cheapest bucket is the one where it is least.
    derived : mapping, optional
        Named expressions of dims.
    offsets : {"centre", "corner"} or integers (items, d)
        Where each grid begins in its bucket; ``"centre"`` leaves half of the padding, rounded down,
        in front.
    costs : Costs, optional
        Constants of the objective that chooses.

    Returns
    -------
    Plan
        One batch for each bucket in use, cheapest first; `split_chunks` cuts them. ``sp.run`` takes
        it for a kernel that is ragged along `dims`, and `item_grids` gives the way of one item.

    Raises
    ------
    PlanError
        For a grid that fits no bucket, shapes and buckets that are no lengths, and offsets that let
        a grid reach beyond its bucket.

    Examples
    --------
    >>> plan = fit_buckets([[20, 30], [60, 10], [28, 28]], buckets=[(64, 64), (32, 32)])
    >>> plan.slots, plan.capacities.tolist()
    (({'y': 32, 'x': 32}, {'y': 64, 'x': 64}), [[32, 32], [64, 64], [32, 32]])
    >>> plan.offsets.tolist()
    [[6, 1], [2, 27], [2, 2]]
    """
    lengths, names = _read_shapes(shapes, dims)
    table = size_table("fit_buckets", dict(zip(names, lengths.T, strict=True)), work, derived)
    chosen = buckets is None or isinstance(buckets, int | np.integer)
    if chosen:
        count = None if buckets is None else natural(buckets, "fit_buckets: buckets")
        sizes = {name: table.lengths[:, axis] for axis, name in enumerate(names)}
        slots: Sequence[Mapping[str, int]] = choose_slots(
            sizes, count, work=work, derived=derived, costs=costs
        )
    else:
        slots = [_read_bucket(bucket, place, names) for place, bucket in _listed(buckets)]
    plan = assign_table("fit_buckets", table, slots, order="cheapest", noun="bucket")
    mode = "given" if not chosen else "one" if len(slots) == 1 else "chosen"
    return place_items("fit_buckets", replace(plan, mode=mode, costs=costs), offsets)


def _read_shapes(
    shapes: ArrayLike, dims: Sequence[str] | str | None
) -> tuple[NDArray[Any], tuple[str, ...]]:
    names = (dims,) if isinstance(dims, str) else None if dims is None else tuple(dims)
    try:
        given: NDArray[Any] = np.asarray(shapes)
    except ValueError as error:
        raise PlanError(f"fit_buckets: shapes must be integers (items, d): {error}") from None
    if given.shape == (0,):
        given = np.zeros((0, 2 if names is None else len(names)), np.int64)
    if given.ndim != 2 or not given.shape[1] or (given.size and given.dtype.kind not in "iu"):
        column = " One dim takes lengths as a column, shapes[:, None]." if given.ndim == 1 else ""
        raise PlanError(
            "fit_buckets: shapes must be integers (items, d), one row for each grid; got "
            f"{given.dtype} of shape {given.shape}.{column}"
        )
    count = given.shape[1]
    if names is None:
        if count > len(AXES):
            named = tuple(f"axis{axis}" for axis in range(count))
            raise PlanError(
                f"fit_buckets: shapes have {count} dims, which need names: dims={named}"
            )
        names = AXES[-count:]
    if len(names) != count or len(set(names)) != count:
        raise PlanError(
            f"fit_buckets: dims={names} for shapes of {count} dims; give each a name of its own."
        )
    return given, names


def _listed(buckets: Any) -> enumerate[Any]:
    if isinstance(buckets, str | Mapping) or not isinstance(buckets, Sequence | np.ndarray):
        raise PlanError(
            f"fit_buckets: buckets={buckets!r}; give how many to choose, or a list of shapes: "
            "buckets=[(64, 64), (128, 96)]."
        )
    if not len(buckets):
        raise PlanError(
            "fit_buckets: buckets=[] holds nothing; list shapes, buckets=[(64, 64)], or leave it "
            "out to have them chosen."
        )
    return enumerate(buckets)


def _read_bucket(bucket: Any, place: int, names: tuple[str, ...]) -> Mapping[str, int]:
    if isinstance(bucket, Mapping):
        return bucket
    if isinstance(bucket, str) or not isinstance(bucket, Sequence | np.ndarray):
        raise PlanError(
            f"fit_buckets: bucket {place} is {bucket!r}; give its shape along "
            f"({', '.join(names)}) as a tuple, or limits by name."
        )
    if len(bucket) != len(names):
        raise PlanError(
            f"fit_buckets: bucket {place} is {tuple(bucket)}, of {len(bucket)} dims; the shapes "
            f"have {len(names)}: ({', '.join(names)})."
        )
    return dict(zip(names, bucket, strict=True))
