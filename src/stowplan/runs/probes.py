"""Dry and small runs of a kernel that tell what a batch takes at its peak."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from stowplan.adapters import Adapter, framework_of
from stowplan.adapters.interface import Wanted, static_key
from stowplan.declaration import Kernel
from stowplan.errors import FrameworkError, PlanError
from stowplan.peaks import PeakModel, fit_peak
from stowplan.planners.batches import Batch, Plan, empty_batch
from stowplan.ragged import Ragged
from stowplan.runs.columns import Columns
from stowplan.runs.footprint import array_bytes, filling_bytes
from stowplan.runs.jobs import Job
from stowplan.runs.places import Place
from stowplan.runs.rounds import RoundKernel
from stowplan.runs.shared import leaves, map_leaves

__all__ = ["Gradient", "Probe", "make_probes", "wanted_parts"]

Gradient = bool | str | Sequence[str] | None

DRY_ROWS = 256
"""Rows of the first probe where a probe allocates nothing."""
REUSED_BYTES = 2**18
"""Size from which on NumPy reuses temporaries, so that smaller batches take relatively more."""
PROBED_BYTES = 4 * REUSED_BYTES
"""Size of the largest argument in a probe with real arrays."""
REAL_BYTES = 2**26
"""Most that the first probe with real arrays may take, one row excepted."""


def wanted_parts(
    where: str,
    kernel: Kernel,
    adapter: Adapter,
    columns: Columns,
    traced: Mapping[str, Any],
    *,
    gradient: Gradient,
) -> Wanted | None:
    """Say which columns and shared parameters get a gradient; None for a run without one.

    Those are the arrays that the framework records; or those named; with ``gradient=True`` and none
    recorded all floating arrays and numbers.

    Raises
    ------
    PlanError
        For a name that is neither column nor shared parameter.
    """
    if gradient is False:
        return None
    if gradient is not None and gradient is not True:
        names = _names(where, gradient)
        known = (*kernel.arguments, *traced)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise PlanError(
                f"{where}: gradient names {unknown[0]!r}, which {kernel.name} does not take; it "
                f"can name: {', '.join(known)}."
            )
        for name, array in zip(kernel.arguments, columns.arrays, strict=True):
            if name in names and not _is_floating(array):
                raise PlanError(
                    f"{where}: gradient names {name!r}, which is {array.dtype} and has none. Leave "
                    "it out, or give it in a floating dtype."
                )
        if not names:
            return None
        return tuple(name in names for name in kernel.arguments), {
            name: map_leaves(_is_floating if name in names else _is_nothing, value)
            for name, value in traced.items()
        }

    def recorded(value: Any) -> bool:
        own = framework_of([value]) == adapter.name
        return own and _is_floating(value) and adapter.records(value)

    found = (tuple(map(recorded, columns.arrays)), map_leaves(recorded, traced))
    if any(found[0]) or any(leaves(found[1])):
        return found
    if gradient is None:
        return None
    return tuple(map(_is_floating, columns.arrays)), map_leaves(_is_floating, traced)


def make_probes(
    where: str,
    kernel: Kernel,
    columns: Columns,
    plan: Plan,
    source: Place,
    target: Place,
    statics: Mapping[str, Any],
    traced: Mapping[str, Any],
    wanted: Wanted | None,
) -> list[Probe]:
    """Give a probe for each slot of a plan, with an item of the slot if it has one.

    Raises
    ------
    FrameworkError
        For a gradient of a framework that has none.
    """
    if wanted is not None and target.adapter.peak_probe == "real":
        raise FrameworkError(
            f"{where}: gradient=True needs torch or JAX; {target.adapter.name} has no gradients."
        )

    def stand_in(array: Any) -> Any:
        traced = is_array_api_obj(array) and source.adapter.is_traced(array)
        return np.zeros(array.shape, array.dtype) if traced else array

    columns = replace(
        columns,
        values=tuple(
            column.map_values(stand_in) if isinstance(column, Ragged) else stand_in(column)
            for column in columns.values
        ),
    )
    job = Job(
        where, kernel, columns, _one_row_each(plan), source, source, apart=True,
        blank=source.adapter.name == "numpy",
    )  # fmt: skip
    shared = _moved(map_leaves(lambda part: job.shared(stand_in(part)), traced), source, target)
    probes = []
    for slot in range(len(plan.slots)):
        arguments, keywords = _moved(job.gather(slot), source, target)
        if isinstance(kernel, RoundKernel):
            keywords = kernel.by_row(target.adapter, arguments, keywords, shared, statics)
        capacity = ", ".join(f"{dim}={plan.slots[slot][dim]}" for dim in plan.dims)
        probes.append(
            Probe(where, kernel, target, capacity, statics, arguments, keywords, shared, wanted)
        )
    job.plan.cache.clear()  # refers to the plan, so that index arrays would stay for a while
    return probes


_known: dict[Any, int] = {}
_known_widths: dict[Any, tuple[int, ...]] = {}


def _forget_some(known: dict[Any, Any]) -> None:
    if len(known) > 1024:
        known.pop(next(iter(known)))


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A kernel, arguments of one row at some capacity, and where they are computed."""

    where: str
    kernel: Kernel
    target: Place
    capacity: str
    statics: Mapping[str, Any]
    arguments: Sequence[Any]
    keywords: Mapping[str, Any]
    shared: Mapping[str, Any]
    wanted: Wanted | None

    def model(
        self,
        rows: int | None = None,
        *,
        most_bytes: int | None = None,
        most_rows: int | None = None,
        gathering: bool = True,
    ) -> PeakModel:
        """Give the peak as a line in the rows, or where shapes are compiled for these rows.

        What was found for a kernel, its static arguments, shapes, dtypes and place is kept.

        Parameters
        ----------
        rows
            Of the smallest probe, or of the compiled shape.
        most_bytes
            What probes that allocate may take.
        most_rows
            Of a batch: probes that allocate take no more.
        gathering
            Give no less than gathering the arguments takes.

        Raises
        ------
        PlanError
            In torch for a kernel that reads values or uses other tensors than its parameters.
        """
        try:
            found = self._probed(rows, most_bytes, most_rows)
        except PlanError as error:
            raise type(error)(f"{self.where}: {error}") from error
        least = self._gathered_bytes() if gathering else 0
        return replace(found, bytes_per_row=max(found.bytes_per_row, least))

    def output_widths(self) -> tuple[int, ...]:
        """Bytes of a number in each output, which depend on dtypes and on no shape."""
        known = self._key(_kind)
        if known not in _known_widths:
            _known_widths[known] = self.target.adapter.output_widths(
                self.kernel, self.statics, self.arguments, self.keywords, self.shared,
                device=self.target.device,
            )[: len(self.kernel.signature.outputs)]  # fmt: skip
            _forget_some(_known_widths)
        return _known_widths[known]

    def _key(self, spec: Callable[[Any], Any]) -> tuple[Any, ...]:
        """Everything that the peak depends on, and each argument by what it says of it."""
        given = map_leaves(spec, [list(self.arguments), self.keywords, self.shared])
        place = (self.target.adapter.name, str(self.target.device))
        return self.kernel, static_key(self.statics), repr(given), *place, repr(self.wanted)

    def _probed(self, rows: int | None, most_bytes: int | None, most_rows: int | None) -> PeakModel:
        how = self.target.adapter.peak_probe
        at = f" at {self.capacity}" if self.capacity else ""
        what = "gradient of " if self.wanted is not None else ""
        place = f"{what}{self.kernel.name}{at}, {self.target.adapter.name}"
        if how == "compiled":
            rows = rows or 1
            share = Fraction(self._peak(rows), rows)
            return PeakModel(0, share, f"compiled {place}, rows={rows}", rows)
        if how == "fake":
            least = rows or DRY_ROWS
            return self._line([least, 2 * least, 3 * least], f"fake {place}")
        return self._real_line(rows, most_bytes, most_rows, f"real {place}")

    def _line(self, counts: Sequence[int], source: str, smaller: Sequence[int] = ()) -> PeakModel:
        peaks = [self._peak(count) for count in counts]
        if len(counts) == 1:
            return PeakModel(0, Fraction(peaks[0], counts[0]), source)
        return fit_peak(counts, peaks, source, smaller={n: self._peak(n) for n in smaller})

    def _real_line(
        self, rows: int | None, most_bytes: int | None, most_rows: int | None, source: str
    ) -> PeakModel:
        one = self._peak(1)
        least = rows or self._real_rows(one)
        if most_bytes is not None:
            fitting = max(most_bytes // (3 * one), 1)
            if fitting < least:  # in powers of two: budgets that are alike see the same probes
                least = 1 << (fitting.bit_length() - 1)
        if most_rows is not None:
            least = max(min(least, most_rows), 1)
        counts = [
            count
            for count in (least, 2 * least, 3 * least)
            if count == least
            or (
                (most_bytes is None or count * one <= most_bytes)
                and (most_rows is None or count <= most_rows)
            )
        ]
        return self._line(counts, source, self._fewer(least))

    def _peak(self, rows: int) -> int:
        """Bytes of a batch of so many rows."""
        known = *self._key(_spec), rows
        if known not in _known:
            _known[known] = self.target.adapter.peak_bytes(
                self.kernel, self.statics, self.arguments, self.keywords, self.shared,
                rows=rows, device=self.target.device, wanted=self.wanted,
            )  # fmt: skip
            _forget_some(_known)
        return _known[known]

    def _fewer(self, rows: int) -> list[int]:
        """Rows of small batches: few, and the most whose temporaries are not reused."""
        most = (REUSED_BYTES - 1) // max(self._widest(), 1)
        return sorted({count for count in (-(-rows // 16), most) if 0 < count < rows})

    def _real_rows(self, one: int) -> int:
        """Rows at which allocations are those of a large batch, if that is not much."""
        enough = -(-PROBED_BYTES // max(self._widest(), 1))
        most = min(REAL_BYTES // one, 64 if self.kernel.per_item else enough)
        return max(min(enough, most), 1)

    def _widest(self) -> int:
        return max(map(array_bytes, self.arguments))

    def _gathered_bytes(self) -> int:
        """Bytes of a row while its last arguments are gathered: taken, then filled."""
        in_place = self.target.adapter.in_place
        taken, most = 0, 0
        for array, core in zip(self.arguments, self.kernel.signature.inputs, strict=True):
            ragged = len(self.kernel.ragged_dims(core))
            places = max(math.prod(array.shape[: 1 + ragged]), 1)
            each = filling_bytes(
                array_bytes(array) // places, ragged=ragged > 0,
                several=len(array.shape) > 1 + ragged, in_place=in_place,
            )  # fmt: skip
            taken += array_bytes(array)
            most = max(most, taken + each * places)
        return most


def _one_row_each(plan: Plan) -> Plan:
    """Give the plan one batch of one row for each slot, with an item of the slot if it has one."""
    held = {batch.slot: batch for batch in reversed(plan.batches) if batch.count}
    batches = []
    for slot, sizes in enumerate(plan.slots):
        capacity = tuple(sizes[dim] for dim in plan.dims)
        if slot in held:
            batches.append(Batch(held[slot].items[:1], 1, capacity, slot))
        else:
            batches.append(empty_batch(plan.lengths, capacity, slot, 1))
    return replace(plan, batches=tuple(batches))


def _moved(value: Any, source: Place, target: Place) -> Any:
    """Give arrays of one row as the target's; where no device is needed, on its first one."""
    fake = target.adapter.peak_probe == "fake"
    if source.adapter is target.adapter and (fake or source.same_as(target)):
        return value
    device = target.adapter.devices()[0] if fake else target.device

    def move(array: Any) -> Any:
        if not hasattr(array, "ndim"):
            return array
        return target.adapter.asarray(source.adapter.to_host(array), device)

    return map_leaves(move, value)


def _spec(value: Any) -> Any:
    return (tuple(value.shape), str(value.dtype)) if hasattr(value, "ndim") else value


def _kind(value: Any) -> str:
    return str(value.dtype) if hasattr(value, "ndim") else type(value).__name__


def _names(where: str, gradient: Any) -> tuple[str, ...]:
    """Give the names of what gets a gradient."""
    names = (gradient,) if isinstance(gradient, str) else gradient
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise PlanError(
            f"{where}: gradient={gradient!r}; give True, False, or names of columns and shared "
            "parameters: gradient=['x']."
        )
    return tuple(names)


def _is_nothing(value: Any) -> bool:
    return False


def _is_floating(value: Any) -> bool:
    kind = str(getattr(value, "dtype", ""))
    return isinstance(value, float | complex) or "float" in kind or "complex" in kind
