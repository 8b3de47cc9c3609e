"""An iterative kernel taken round by round: what one round computes, and what it takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from array_api_compat import array_namespace

from stowplan.adapters import Adapter
from stowplan.adapters.interface import TracingAdapter
from stowplan.declaration import Kernel
from stowplan.errors import SignatureError

__all__ = ["Rounds", "RoundKernel", "round_kernel"]

State = dict[str, Any]


@dataclass(frozen=True)
class Rounds:
    """How an iterative kernel starts, ends and is looked at, see `iterate`.

    Attributes
    ----------
    init : callable
        Gives the state of rows from their columns.
    until : callable
        Says which rows are done, and which have failed, from their state.
    every : int
        Steps of a round.
    keep : tuple of str
        Fields of the state that are the step's outputs, in the order of its signature.
    """

    init: Callable[..., State]
    until: Callable[..., tuple[Any, Any]]
    every: int
    keep: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", _named(self.keep))
        whole = isinstance(self.every, int | np.integer) and not isinstance(self.every, bool)
        if not whole or self.every < 1:
            raise SignatureError(
                f"iterate: every={self.every!r}; a round has a whole number of steps from 1."
            )
        for name in ("init", "until"):
            if not callable(getattr(self, name)):
                raise SignatureError(
                    f"iterate: {name}={getattr(self, name)!r} is no function. Give one that takes "
                    "columns and shared parameters by name."
                )


def _named(keep: Any) -> tuple[str, ...]:
    names = (keep,) if isinstance(keep, str) else tuple(keep)
    if not names or not all(isinstance(name, str) for name in names):
        raise SignatureError(f"iterate: keep={keep!r}; give names of fields of the state.")
    return names


class RoundKernel(Kernel):
    """A kernel like the step, whose function computes a round of it.

    Where shapes are compiled that is the program that runs: rows that are fresh start from
    ``init``, all take the steps of a round, and ``until`` looks at them. Elsewhere it is what the
    loop does in the beginning, with fresh rows alone, for those who count its memory.
    """

    step: Kernel
    rounds: Rounds

    def start(self, columns: Mapping[str, Any]) -> State:
        """Call ``init``; its state is checked."""
        state = _call(self.rounds.init, columns)
        if not isinstance(state, dict) or not state:
            raise SignatureError(
                f"iterate: init={_name(self.rounds.init)} gave {type(state).__name__}; it gives "
                "the state, a dict of arrays whose first axis are rows."
            )
        missing = [name for name in self.rounds.keep if name not in state]
        if missing:
            raise SignatureError(
                f"iterate: keep names {missing[0]!r}, which is no field of the state: "
                f"{', '.join(state)}."
            )
        return state

    def advance(self, columns: Mapping[str, Any], age: Any, state: State) -> State:
        """Take one step; its state is checked."""
        found = _call(self.step.function, {**columns, "age": age, "state": state})
        if not isinstance(found, dict) or set(found) != set(state):
            fields = sorted(found) if isinstance(found, dict) else type(found).__name__
            raise SignatureError(
                f"iterate: {self.step.name} gave {fields}; it gives the state with the same "
                f"fields: {sorted(state)}."
            )
        return found

    def look(self, columns: Mapping[str, Any], state: State) -> tuple[Any, Any]:
        """Call ``until``: done and failed, (rows,) bool each."""
        found = _call(self.rounds.until, {**columns, "state": state})
        if not isinstance(found, tuple) or len(found) != 2:
            raise SignatureError(
                f"iterate: until={_name(self.rounds.until)} gave {type(found).__name__}; it gives "
                "two bool arrays, (done, failed)."
            )
        return found

    def by_row(
        self,
        adapter: Adapter,
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        shared: Mapping[str, Any],
        statics: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Give the arrays by row that a round takes in the beginning, beside the columns.

        Where shapes are compiled these are a state of zeros, ages of 0, and that all are fresh.
        """
        if not adapter.compiles:
            return dict(keywords)
        tracing = cast("TracingAdapter", adapter)

        def start(given: Any, named: Any, common: Any) -> State:
            return self.start(self.columns(given, named, {**common, **statics}))

        state = tracing.abstract(start, tuple(arguments), dict(keywords), dict(shared))
        rows = arguments[0].shape[0]
        return {
            **keywords,
            "state": {name: np.zeros(part.shape, part.dtype) for name, part in state.items()},
            "age": np.zeros(rows, np.int64),
            "fresh": np.ones(rows, np.bool_),
        }

    def columns(
        self, arguments: Sequence[Any], keywords: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Give by name all that ``init``, the step and ``until`` may ask for."""
        return {**dict(zip(self.arguments, arguments, strict=True)), **keywords, **shared}


def round_kernel(step: Kernel, rounds: Rounds, adapter: Adapter) -> RoundKernel:
    """Give the round of a step; the same one for the same functions.

    Raises
    ------
    SignatureError
        For a step without ``state``, one that is per item, and fields to keep that are not as many
        as its outputs.
    """
    found: RoundKernel = _round_kernel(step, rounds, cast("Hashable", adapter))
    return found


@functools.lru_cache(maxsize=256)
def _round_kernel(step: Kernel, rounds: Rounds, adapter: Any) -> RoundKernel:
    where = f"iterate: {step.name}"
    if not step.takes_state:
        raise SignatureError(
            f"{where} takes no state. Declare it: def {step.name}({', '.join(step.arguments)}, *, "
            "age, state): return the state after one more step."
        )
    if step.per_item:
        raise SignatureError(f"{where} is declared per_item=True; a step broadcasts over rows.")
    outputs = len(step.signature.outputs)
    if len(rounds.keep) != outputs:
        raise SignatureError(
            f"{where} has {outputs} outputs, but keep names {len(rounds.keep)} fields: "
            f"{', '.join(rounds.keep)}. Name one field for each output."
        )
    kernel = object.__new__(RoundKernel)
    kernel.__dict__.update(step.__dict__)
    kernel.step, kernel.rounds = step, rounds
    known = (*step.arguments, "mask", "segments", "age", "state")
    taken = dict.fromkeys(step.shared)
    for function in (rounds.init, rounds.until):
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name in known or parameter.kind is parameter.VAR_KEYWORD:
                continue
            taken[parameter.name] = None
            if parameter.default is not parameter.empty:
                kernel.defaults = {**kernel.defaults, parameter.name: parameter.default}
    kernel.shared = tuple(taken)
    kernel.defaults = {**kernel.defaults, **step.defaults}
    functions = (step.function, rounds.init, rounds.until)
    kernel.takes_mask = any("mask" in _names(function) for function in functions)
    kernel.takes_segments = any("segments" in _names(function) for function in functions)
    kernel.takes_state = False
    kernel.function = _compiled_round(kernel, adapter) if adapter.compiles else _first_round(kernel)
    return kernel


def _compiled_round(kernel: RoundKernel, adapter: TracingAdapter) -> Callable[..., Any]:
    rounds = kernel.rounds

    def one_round(*arguments: Any, state: State, age: Any, fresh: Any, **named: Any) -> Any:
        xp = array_namespace(age, fresh)
        columns = kernel.columns(arguments, {}, named)
        new = kernel.start(columns)
        state = {
            name: xp.where(fresh[(...,) + (None,) * (old.ndim - 1)], new[name], old)
            for name, old in state.items()
        }

        def advance(carry: Any, number: Any) -> Any:
            return kernel.advance(columns, age + number, carry)

        state = adapter.scan(advance, state, xp.arange(rounds.every, dtype=age.dtype))
        kept = [state[name] for name in rounds.keep]
        others = {name: part for name, part in state.items() if name not in rounds.keep}
        return (*kept, others, *kernel.look(columns, state))

    return one_round


def _first_round(kernel: RoundKernel) -> Callable[..., Any]:
    def first_round(*arguments: Any, **named: Any) -> Any:
        columns = kernel.columns(arguments, {}, named)
        state = kernel.start(columns)
        for name in list(state):  # rows that stay are joined to those that come
            xp = array_namespace(state[name])
            state[name] = xp.concat([state[name], state[name][:0, ...]], axis=0)
        xp = array_namespace(arguments[0])
        age = xp.zeros((arguments[0].shape[0],), dtype=xp.int64, device=_device(arguments[0]))
        for number in range(min(kernel.rounds.every, 2)):
            state = kernel.advance(columns, age + number, state)
        kernel.look(columns, state)
        return tuple(state[name] for name in kernel.rounds.keep)

    return first_round


def _device(array: Any) -> Any:
    return getattr(array, "device", None)


def _call(function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Call a function with what it names of all that is given."""
    names = _names(function)
    chosen = given if names is None else {name: given[name] for name in names if name in given}
    return function(**chosen)


@functools.lru_cache(maxsize=256)
def _parameters(function: Callable[..., Any]) -> tuple[str, ...] | None:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return tuple(parameter.name for parameter in parameters)


def _names(function: Callable[..., Any]) -> Any:
    return _parameters(function)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
