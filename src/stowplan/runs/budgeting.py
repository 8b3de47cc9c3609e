"""Rows of a batch by bytes: what a cache holds, and no more than a budget leaves."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, NoReturn

import numpy as np
from array_api_compat import is_array_api_obj

from stowplan.adapters import Adapter
from stowplan.declaration import Kernel
from stowplan.errors import BudgetError, FrameworkError, PlanError
from stowplan.expressions import Expression
from stowplan.memory import Budget, resolve_budget, show_bytes
from stowplan.peaks import Forecast, PeakModel, peak_models_by_hand
from stowplan.planners.batches import Plan
from stowplan.planners.chunks import split_chunks
from stowplan.planners.cost import ROUNDS, Costs, row_ladder, rows_in_turn
from stowplan.planners.sizes import listed
from stowplan.runs.columns import Columns
from stowplan.runs.footprint import Footprint, array_bytes, measure_footprint, widest_input
from stowplan.runs.places import Place
from stowplan.runs.probes import Gradient, Probe, make_probes, wanted_parts
from stowplan.runs.round_bytes import RoundBytes
from stowplan.runs.rounds import RoundKernel
from stowplan.runs.shared import leaves
from stowplan.runs.upper_bounds import largest_batch_bytes, most_held_bytes

__all__ = ["MemoryRequest", "fit_rows", "resolved_budget", "usable_bytes"]

CONCEIVABLE = 64
"""A batch is probed unasked if this many times its inputs and outputs exceed the budget."""
GAPS = 3
"""Times that a batch of an eager framework fits, so that gaps in the heap need no care."""
NOT_GIVEN = "not probed: shared parameters were not given"
MOST_PROBED = 12
"""Slots that are probed where nothing is compiled: others count as the next larger of these."""
TRIES = 3
"""Shapes that are compiled to find one that fits, before a single row is tried."""

IN_FLIGHT = 4
"""Times what a cache holds that a compiled batch may take, so that two of them may be alive."""

Rows = int | Sequence[int] | None


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """What a caller says of memory, and the shared parameters that probes need."""

    budget: float | str | None = None
    peak: Any = None
    gradient: Gradient = None
    statics: Mapping[str, Any] = field(default_factory=dict)
    traced: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    buffered: bool = False
    """Whether columns are read into buffers, which frameworks of the host share."""
    aligned: bool = False
    """Whether these begin, in each batch, where XLA takes host memory as it is."""

    @property
    def shared(self) -> dict[str, Any]:
        """All shared parameters that are known."""
        return {**self.statics, **self.traced}


def fit_rows(
    where: str,
    kernel: Kernel,
    columns: Columns,
    made: Plan,
    source: Place,
    target: Place,
    request: MemoryRequest | None,
    *,
    rows: Rows,
    terms: int,
    devices: int = 1,
    share: Callable[[Plan], Plan] | None = None,
) -> Plan:
    """Split a plan into rows that a cache likes and the budget allows, with a forecast of bytes.

    For several devices batches are cut so that all have some, if ``share`` is then done sooner.

    Raises
    ------
    BudgetError
        Where one row, or rows by hand, exceed the budget.
    FrameworkError
        For a budget in a traced program.
    """
    width = widest_input(columns, {} if request is None else request.traced)
    declared = row_bytes(kernel, made, width, terms)
    cached = None if rows is not None else _cached_rows(kernel, made, target, declared)
    split = split_chunks(made, rows, ladder=target.adapter.compiles, max_rows=cached)
    if share is not None and cached is not None:
        few = _cached_rows(kernel, made, target, declared, devices)
        finer = split_chunks(made, ladder=target.adapter.compiles, max_rows=few)
        if share(finer).predicted_seconds < share(split).predicted_seconds:
            split, cached = finer, few
        else:
            devices = 1
    if request is None:
        return split
    arrays = [*columns.arrays, *leaves(request.traced)]
    blind = [a for a in arrays if is_array_api_obj(a) and not source.adapter.has_values(a)]
    if blind:
        if request.budget is not None:
            raise FrameworkError(
                f"{where}: budget={request.budget!r} is asked for in a traced program (jit, vmap), "
                "where nothing can be measured. Plan outside of it, sp.plan(..., budget=...), and "
                "pass the plan; or pass rows=."
            )
        return split
    if not made.slots or not columns.items:
        if request.budget is not None:
            resolved_budget(where, target, request)  # wrong ones are told, whatever the data
        return split
    if request.budget is None and request.peak is None and request.gradient is None:
        budget = resolved_budget(where, target, request)
        reason = _far_from(budget, kernel, columns, split, target, request, width)
        if reason is not None:
            return replace(split, memory=Forecast(budget, 0, (), (reason,)))
    fit = _Fit(
        where, kernel, columns, made, source, target, request, declared, devices,
        alone=share is None,
    )  # fmt: skip
    return fit.fitted(split, cached)


def resolved_budget(where: str, target: Place, request: MemoryRequest) -> Budget:
    """Give the budget of a request, else of the environment, else a share of what is free."""
    return resolve_budget(
        request.budget,
        lambda: target.free_bytes(where),
        where,
        device=str(target.device)
        + (f", for each of {target.sharers}" if target.sharers > 1 else ""),
    )


def _far_from(
    budget: Budget,
    kernel: Kernel,
    columns: Columns,
    split: Plan,
    target: Place,
    request: MemoryRequest,
    width: int,
) -> str | None:
    """Say why a plan need not be probed where that is seen at once, as most are; else None."""
    if request.missing:
        return NOT_GIVEN
    largest, together = largest_batch_bytes(kernel, columns, split, width)
    most = largest * CONCEIVABLE + most_held_bytes(columns, request.traced, together)
    return _too_small(largest) if most <= usable_bytes(budget.bytes, target.adapter) else None


def usable_bytes(budget: int, adapter: Adapter) -> int:
    """Bytes of a budget without what is left to others."""
    kept = min(adapter.spare_bytes, budget // 8)
    return int(budget * (1 - _exact(adapter.spare_share))) - kept


@functools.cache
def _exact(share: float) -> Fraction:
    return Fraction(share).limit_denominator(100)


def _too_small(largest: int) -> str:
    return f"not probed: inputs and outputs of a batch take {show_bytes(largest)}"


class _Fit:
    """One plan with its budget."""

    def __init__(
        self,
        where: str,
        kernel: Kernel,
        columns: Columns,
        made: Plan,
        source: Place,
        target: Place,
        request: MemoryRequest,
        declared: Sequence[int],
        devices: int,
        *,
        alone: bool,
    ) -> None:
        self.where = where
        self.kernel = kernel
        self.columns = columns
        self.made = made
        self.source = source
        self.target = target
        self.request = request
        self.declared = declared
        self.devices = devices
        self.alone = alone  # the target is no group of devices, which may pad rows by copies
        self.wanted = wanted_parts(
            where, kernel, source.adapter, columns, request.traced, gradient=request.gradient
        )
        self.budget = resolved_budget(where, target, request)
        self.result_sets = target.adapter.result_sets
        self.spare = _exact(target.adapter.spare_share)
        self.usable_bytes = usable_bytes(self.budget.bytes, target.adapter)
        self.widths: tuple[int, ...] | None = None
        self.of_views: tuple[PeakModel, ...] | None = None
        self.state_bytes = [0] * len(made.slots)  # of a row of an iteration that is compiled
        self.footprint = self._footprint(made)

    def fitted(self, split: Plan, cached: Sequence[int] | None) -> Plan:
        """Give the plan within the budget."""
        if self.request.peak is not None:
            models = peak_models_by_hand(self.request.peak, len(self.made.slots), self.where)
            return self._by_models(split, cached, models, margin=0.0)
        reason = self._reason_not_to_probe(split)
        if reason is None:
            return self._probed(split, cached)
        if self.request.budget is None:
            return self._unprobed(split, reason)
        if self.kernel.takes_state and self.kernel.memory is None:
            raise PlanError(
                f"{self.where}: {self.kernel.name} is one step of an iteration, so that a budget "
                "needs to know the others: sp.plan(..., rounds=sp.Rounds(init, until, every, "
                "keep))."
            )
        if self.kernel.memory is None:
            missing = ", ".join(f"{name}=..." for name in self.request.missing)
            raise PlanError(
                f"{self.where}: a budget needs to call {self.kernel.name}, which takes {missing} "
                f"too. Pass what it shares, sp.plan(..., {missing}), or give the bytes by hand: "
                "peak=(fixed_bytes, bytes_per_row)."
            )
        source = f"memory= of {self.kernel.name}"
        models = tuple(PeakModel(0, size, source) for size in self.declared)
        return self._by_models(split, cached, models, margin=0.0)

    def _reason_not_to_probe(self, split: Plan) -> str | None:
        if self.request.missing:
            return NOT_GIVEN
        if self.request.budget is not None:
            return None
        largest = max(
            rows * (inputs + outputs)
            for rows, inputs, outputs in zip(
                split.rows, self.footprint.row_inputs, self.footprint.row_outputs, strict=True
            )
        )
        if largest * CONCEIVABLE + self._held_bytes() > self.usable_bytes:
            return None
        return _too_small(largest)

    def _unprobed(self, split: Plan, reason: str) -> Plan:
        held = self._held_bytes()
        return replace(split, memory=Forecast(self.budget, held, (), (reason,)))

    def _refuse_padding_beyond_memory(self) -> None:
        """Refuse slots of which not even one row could be made to be looked at."""
        for slot, row_bytes in zip(self.made.slots, self.footprint.row_inputs, strict=True):
            capacity = tuple(slot[dim] for dim in self.made.dims)
            # an item that fills its slot may be a view of the data, which are there already
            if row_bytes > self.usable_bytes and not (self.made.lengths == capacity).all(1).any():
                shape = ", ".join(f"{dim}={slot[dim]}" for dim in self.made.dims)
                raise BudgetError(
                    f"{self.where}: one row of {self.kernel.name} at {shape} is padded to "
                    f"{show_bytes(row_bytes)}; the budget is {self.budget}. Make the slot smaller, "
                    "slots=[...], or let them be chosen, slots=2."
                )

    def _probed(self, split: Plan, cached: Sequence[int] | None) -> Plan:
        self._refuse_padding_beyond_memory()
        try:
            probes = make_probes(
                self.where, self.kernel, self.columns, self.made, self.source, self.target,
                self.request.statics, self.request.traced, self.wanted,
            )  # fmt: skip
            self.widths = probes[0].output_widths()
            self.state_bytes = [
                sum(map(array_bytes, probe.keywords.get("state", {}).values())) for probe in probes
            ]
            self.footprint = self._footprint(self.made)
            margin = self.target.adapter.peak_margin
            if self.target.adapter.peak_probe == "compiled":
                return self._by_shapes(split, probes, margin, free=cached is not None)
            left = max(self.usable_bytes - self._held_bytes(), 1)
            known = cached is None or self.kernel.memory is not None  # rows only become fewer
            models = tuple(
                probes[slot].model(most_bytes=left, most_rows=split.rows[slot] if known else None)
                for slot in _probed_for(self.declared)
            )
            self.of_views = self._models_of_views(probes, left, split if known else None, margin)
        except PlanError as error:
            if isinstance(error, BudgetError) or str(error).startswith(f"{self.where}: "):
                raise
            if self.request.budget is not None:
                raise PlanError(f"{self.where}: {error}") from error
            return self._unprobed(split, f"not probed: {error}")
        return self._by_models(split, cached, models, margin=margin)

    def _models_of_views(
        self, probes: Sequence[Probe], left: int, split: Plan | None, margin: float
    ) -> tuple[PeakModel, ...]:
        """Give the peaks of batches whose arguments are views of the data, which are no copies."""
        models = []
        for slot in _probed_for(self.declared):
            most = None if split is None else split.rows[slot]
            model = probes[slot].model(most_bytes=left, most_rows=most, gathering=False)
            each = Fraction(model.bytes_per_row) - self.footprint.row_inputs[slot]
            models.append(_widened(replace(model, bytes_per_row=max(each, Fraction(1))), margin))
        return tuple(models)

    def _by_models(
        self,
        split: Plan,
        cached: Sequence[int] | None,
        models: Sequence[PeakModel],
        *,
        margin: float,
    ) -> Plan:
        """Split where lines say how many rows fit."""
        models = [_widened(model, margin) for model in models]
        left = self.usable_bytes - self._held_bytes()
        share = 1 if cached is None else GAPS  # rows by hand may take it all
        most = []
        for slot, model in enumerate(models):
            each = Fraction(model.bytes_per_row) + self._beside(slot)
            most.append(max(math.floor((left / share - model.fixed_bytes) / each), 1))
        if cached is not None:
            if self.kernel.memory is None:
                sizes = [math.ceil(model.bytes_per_row) for model in models]
                cached = _cached_rows(self.kernel, self.made, self.target, sizes, self.devices)
            most = [min(pair) for pair in zip(most, cached, strict=True)]
            split = self._split_at_most(most)
        planned = self._with_forecast(split, models)
        while self._excess(planned) and cached is not None and self._can_shrink(planned):
            most = [
                max(min(n, rows) * 9 // 10, 1) for n, rows in zip(most, split.rows, strict=True)
            ]
            split = self._split_at_most(most)  # rows are not even, so that some are padding
            planned = self._with_forecast(split, models)
        if self._excess(planned):
            self._refuse(planned, models, most)
        return planned

    def _can_shrink(self, planned: Plan) -> bool:
        """Whether a slot without rows of its own has more than one."""
        pairs = zip(self.made.slots, planned.rows, strict=True)
        return any(rows > 1 and "rows" not in slot for slot, rows in pairs)

    def _split_at_most(self, most: Sequence[int]) -> Plan:
        ladder = self.target.adapter.compiles
        carried = [slot.get("rows", 1) for slot in self.made.slots]
        limits = [max(pair) for pair in zip(most, carried, strict=True)]
        return split_chunks(self.made, ladder=ladder, max_rows=limits)

    def _by_shapes(
        self, split: Plan, probes: Sequence[Probe], margin: float, *, free: bool
    ) -> Plan:
        """Split where each shape is compiled to see what it takes, at most a few of them."""
        excess = 0
        while True:
            self.footprint = self._footprint(split)
            left = self.usable_bytes - self._held_bytes() - excess
            slots, models = [], []
            for slot, (rows, probe) in enumerate(zip(split.rows, probes, strict=True)):
                model = PeakModel(0, 1, "")
                if rows:
                    own = free and "rows" not in self.made.slots[slot]
                    model = self._compiled(slot, rows, probe, left, margin, free=own)
                    rows = model.measured_rows or rows
                slots.append({**split.slots[slot], **({"rows": rows} if rows else {})})
                models.append(model)
            planned = self._with_forecast(
                split_chunks(replace(self.made, slots=tuple(slots))), models
            )
            excess += self._excess(planned)
            if not self._excess(planned):
                return planned
            if not (free and self._can_shrink(planned)):
                self._refuse(planned, models, [1] * len(models))
            split = planned

    def _compiled(
        self, slot: int, rows: int, probe: Probe, left: int, margin: float, *, free: bool
    ) -> PeakModel:
        """Compile rows until they fit, or are one; give their peak."""
        for attempt in range(TRIES + 1):
            model = _widened(probe.model(rows, gathering=False), margin)
            needed = self._batch_peak(slot, rows, model)
            if needed <= left or rows == 1 or not free:
                break
            share = rows * max(left, 0) * 0.9 / needed
            fewer = [step for step in row_ladder(rows) if step <= share]
            rows = fewer[-1] if fewer and attempt < TRIES - 1 else 1
        return model

    def _with_forecast(self, split: Plan, models: Sequence[PeakModel]) -> Plan:
        self.footprint = self._footprint(split)
        if self.of_views is not None:
            pairs = enumerate(zip(models, self.of_views, strict=True))
            viewed = self.footprint.viewed
            models = [own if slot in viewed else model for slot, (model, own) in pairs]
        used = [0] * len(split.slots)
        for batch in split.batches:
            used[batch.slot] = len(batch.items)
        compiles = self.target.adapter.compiles
        catch_all = split.headroom and compiles
        if catch_all:
            used[-1] = split.rows[-1]
        single = len(split.batches) == 1 and not catch_all
        taken = [model.peak(rows) if rows else 0 for rows, model in zip(used, models, strict=True)]
        in_flight = self._may_overlap(max(taken))
        peaks = tuple(
            self._batch_peak(slot, rows, model, in_flight=in_flight, single=single) if rows else 0
            for slot, (rows, model) in enumerate(zip(used, models, strict=True))
        )
        sources = tuple(
            dict.fromkeys(m.source for m, rows in zip(models, used, strict=True) if rows)
        )
        beside = self.footprint.held_beside(self.result_sets, on_demand=compiles)  # in NumPy
        together = [
            held + peaks[batch.slot] for held, batch in zip(beside, split.batches, strict=True)
        ]
        if catch_all:
            together.append(self._held_bytes() + peaks[-1])
        held = max(together) - max(peaks)
        held += self._gap_bytes(peaks, self.usable_bytes - held - max(peaks))
        idle = self.footprint.idle_bytes(
            self.result_sets, copied=self._copied_slots(), delivered=self.source.adapter.compiles
        )
        return replace(split, memory=Forecast(self.budget, held, peaks, sources, idle, in_flight))

    def _gap_bytes(self, peaks: Sequence[int], left: int) -> int:
        """Bytes that blocks of some shapes leave and those of others do not fill, if many are left.

        Where a budget has no room for them they are given back; where it has not even room for one
        more batch large blocks lie apart (`HeapLimit`), and there are none.
        """
        if not self._on_host() or left < max(peaks):
            return 0
        adapter = self.target.adapter
        most = adapter.gap_bytes if self.footprint.rounds is None else adapter.round_gap_bytes
        return min(most, sum(peaks) - max(peaks), left)

    def _held_bytes(self) -> int:
        return self.footprint.held_bytes(self.result_sets)

    def _may_overlap(self, peak: int) -> bool:
        """Whether compiled batches that take so much may be alive by two."""
        return peak <= IN_FLIGHT * self.target.adapter.batch_bytes(self.target.device)

    def _beside(self, slot: int) -> int:
        """Bytes of a row beside its batch, at most, where calls are compiled."""
        if not self.target.adapter.compiles:
            return 0
        inputs, outputs = self.footprint.row_inputs[slot], self.footprint.row_outputs[slot]
        if self.wanted is not None:
            return inputs + outputs
        copied = inputs if slot in self._copied_slots() else 0  # by JAX, for the next batch
        gathered = 0 if slot in self.footprint.viewed else self.footprint.row_gathered[slot]
        return copied + max(gathered, 2 * outputs)

    def _batch_peak(
        self,
        slot: int,
        rows: int,
        model: PeakModel,
        *,
        in_flight: bool | None = None,
        single: bool = False,
    ) -> int:
        """Bytes of a batch at its peak, with what is alive on the host where it is compiled.

        JAX copies what it is given, columns and cotangents, unless it begins at a multiple of 64
        bytes on the host, and lets go of it at its next call.
        While a batch is in flight the next one is gathered, or the rows of the last are put away:
        its outputs and a copy of them.
        """
        peak = model.peak(rows)
        if self.footprint.rounds is not None:
            return self._rounds_peak(slot, rows, peak, self.footprint.rounds)
        if not self.target.adapter.compiles:
            return peak
        if in_flight is None:
            in_flight = self._may_overlap(peak)
        gathered = rows * self.footprint.row_gathered[slot]
        inputs = rows * self.footprint.row_inputs[slot]
        if slot in self.footprint.viewed and self.wanted is None:
            peak -= 0 if slot in self._copied_slots() else inputs
            gathered = inputs = 0  # of views only JAX's own copy is there, which is in the peak
        if single and (self.wanted is None or self._goes_straight()):
            return max(peak + inputs, gathered)
        if self.wanted is not None or in_flight:
            return peak + rows * self._beside(slot)
        return inputs + max(peak, gathered)

    def _rounds_peak(self, slot: int, rows: int, peak: int, beside: RoundBytes) -> int:
        """Bytes of rows at work: in a round, while they are gathered, or while they are put away.

        Where rounds are compiled columns lie on the host, too, and gathering meets those that were
        there before and the state; eager rows that are over have left by then.
        """
        inputs, outputs = self.footprint.row_inputs[slot], self.footprint.row_outputs[slot]
        filled, put_away = beside.row_filled[slot], beside.row_put_away[slot]
        if not self.target.adapter.compiles:
            return max(peak, rows * max(filled, inputs + outputs + put_away))
        there = inputs + self.state_bytes[slot]
        return max(peak + rows * inputs, rows * (there + max(filled, put_away)))

    def _enough(self, peak: int) -> int:
        """Give the least budget whose usable bytes are so many, or hardly more."""
        few = math.ceil(peak / (1 - self.spare - Fraction(1, 8))) + 2
        many = math.ceil((peak + self.target.adapter.spare_bytes) / (1 - self.spare)) + 2
        return min(few, many)

    def _footprint(self, plan: Plan) -> Footprint:
        return measure_footprint(
            self.kernel,
            self.columns,
            plan,
            moved=self._moved_columns(),
            wanted=self.wanted,
            traced=self.request.traced,
            widths=self.widths,
            views=self._takes_views(),
            in_place=self.target.adapter.in_place,
            straight=self._goes_straight(),
            rounds=isinstance(self.kernel, RoundKernel),
            on_demand=self._on_host(),
        )

    def _goes_straight(self) -> bool:
        """Whether rows in order are taken straight into the results, which may be NumPy's."""
        adapter, device = self.target.adapter, self.target.device
        return adapter.in_place or (adapter.compiles and adapter.kind_of(device) == "cpu")

    def _on_host(self) -> bool:
        return self.target.adapter.kind_of(self.target.device) == "cpu"

    def _moved_columns(self) -> list[bool]:
        """Say of each column whether it counts again where it is computed.

        Not what is read into buffers, nor host arrays that a framework takes as they are.
        """
        arrays, source, target = self.columns.arrays, self.source.adapter, self.target
        if self.source.same_as(target) or (self._on_host() and self.request.buffered):
            return [False] * len(arrays)
        return [
            not source.on_host(array)
            or not target.adapter.shares(source.to_host(array), target.device)
            for array in arrays
        ]

    def _takes_views(self) -> bool:
        """Whether batches without padding are views where they are computed.

        Rows of an iteration come and go, so that theirs are copies.
        """
        if isinstance(self.kernel, RoundKernel):
            return False
        return not self.target.adapter.compiles or (self.alone and self._on_host())

    def _copied_slots(self) -> frozenset[int]:
        """Give the slots whose batches JAX copies before it computes on them."""
        if not self.target.adapter.compiles:
            return frozenset()
        taken = self.footprint.viewed if self.request.aligned else frozenset()
        return frozenset(range(len(self.made.slots))) - taken

    def _excess(self, planned: Plan) -> int:
        """Bytes by which a plan exceeds the budget."""
        assert planned.memory is not None
        return max((planned.memory.peak_bytes or 0) - self.usable_bytes, 0)

    def _refuse(self, planned: Plan, models: Sequence[PeakModel], most: Sequence[int]) -> NoReturn:
        """Say what the largest batch of a plan needs, and how it would fit."""
        memory = planned.memory
        assert memory is not None
        slot = int(np.argmax(memory.batch_bytes))
        rows, model = planned.rows[slot], models[slot]
        shape = listed({dim: planned.slots[slot][dim] for dim in planned.dims})
        which = "one row" if rows == 1 else f"a batch of rows={rows}"
        cure = "fewer items at once, a smaller dtype, or items cut into smaller ones"
        if rows > 1:
            fewer = max(min(most[slot], rows - 1), 1)
            cure = f"fewer rows, such as rows={fewer}, or leave rows out"
            if planned.rows[slot] == self.made.slots[slot].get("rows"):
                cure = f'slots with fewer rows, such as "rows": {fewer}, or without "rows"'
        enough = self._enough(memory.peak_bytes or 0)
        needs = (
            f"{which} of {self.kernel.name}{f' at {shape}' if shape else ''} needs "
            f"{memory.batch_bytes[slot]} bytes ({model.source}: {model.fixed_bytes} and "
            f"{float(model.bytes_per_row):.6g} for each row), results and indices of "
            f"{self.columns.items} items {max(memory.held_bytes, memory.idle_bytes)} more"
        )
        error = BudgetError(
            f"{self.where}: {needs}; the budget is {self.budget.bytes} bytes: {self.budget}. Give "
            f"at least budget={enough}, {cure}."
        )
        error.needs, error.missing = needs, enough - self.budget.bytes
        raise error


def row_bytes(kernel: Kernel, plan: Plan, width: int, terms: int) -> list[int]:
    """Bytes of a row by the kernel's ``memory`` in numbers so wide, else those of its columns."""
    text = plan.item_bytes or "1"
    if kernel.memory is not None:
        text = f"{width * terms} * ({kernel.memory.text})"
    expression = Expression.parse(text)
    sizes = []
    for slot in plan.slots:
        known = {name: slot[name] for name in plan.dims}
        known |= {name: rule.evaluate(known) for name, rule in kernel.derived.items()}
        sizes.append(max(int(expression.evaluate(known)), 1))
    return sizes


def _probed_for(sizes: Sequence[int]) -> list[int]:
    """Give for each slot the one that is probed for it: itself, or of many the next larger.

    >>> _probed_for([30, 10, 20])
    [0, 1, 2]
    """
    order = np.argsort(np.asarray(sizes, np.float64), kind="stable")
    count = len(order)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_PROBED)).round().astype(np.intp))
    found = np.empty(count, np.intp)
    found[order] = order[chosen[np.searchsorted(chosen, np.arange(count))]]
    slots: list[int] = found.tolist()
    return slots


def _cached_rows(
    kernel: Kernel, plan: Plan, target: Place, sizes: Sequence[int], devices: int = 1
) -> list[int]:
    """Rows of each slot that a cache holds, and no fewer than it carries.

    Nor more than a device has items, where several share those of a slot, nor so many that
    compiled rounds end with most rows idle.
    """
    room = target.adapter.batch_bytes(target.device)
    counts = [0] * len(plan.slots)
    for batch in plan.batches:
        counts[batch.slot] += batch.count
    most = [room // size for size in sizes]
    if devices > 1:
        most = [min(rows, -(-count // devices)) for rows, count in zip(most, counts, strict=True)]
    if isinstance(kernel, RoundKernel) and target.adapter.compiles:
        costs = plan.costs or Costs()
        for slot, capacity in {batch.slot: batch.capacity for batch in plan.batches}.items():
            work = float(plan.measure.cost(np.array([capacity], np.int64))[0])
            turns = costs.rounds or ROUNDS
            # measured launches are those of all rounds
            launch = costs.launch_seconds / (costs.rounds or 1.0)
            few = rows_in_turn(counts[slot], work * costs.work_seconds, launch, turns)
            most[slot] = min(most[slot], few)
    return [max(rows, slot.get("rows", 1), 1) for slot, rows in zip(plan.slots, most, strict=True)]


def _widened(model: PeakModel, margin: float) -> PeakModel:
    """Give the model with a margin, in exact fractions."""
    factor = 1 + Fraction(margin).limit_denominator(1000)
    return replace(
        model,
        fixed_bytes=math.ceil(model.fixed_bytes * factor),
        bytes_per_row=Fraction(model.bytes_per_row) * factor,
    )
