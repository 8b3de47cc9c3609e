"""An iterative kernel taken round by round: what one round computes, and what it takes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from array_api_compat import array_namespace

from stowplan.adapters import Adapter, get_adapter
from stowplan.adapters.interface import TracingAdapter, static_key
from stowplan.contradictions import OF_ITERATE
from stowplan.declaration import Kernel
from stowplan.errors import SignatureError

__all__ = ["RoundKernel", "Rounds", "round_kernel"]

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
    limit : int, optional
        Most steps of an item, which `measure_costs` iterates to; 1000 where none is given.

    Raises
    ------
    SignatureError
        For a number of steps below 1, and functions that do not name what they take.

    Examples
    --------
    A plan that knows what a round of Newton's square roots takes:

    >>> import numpy as np
    >>> import stowplan as sp
    >>> @sp.kernel("()->()")
    ... def better(square, *, age, state):
    ...     return {"root": 0.5 * (state["root"] + square / state["root"])}
    >>> rounds = sp.Rounds(
    ...     init=lambda square: {"root": square + 5},
    ...     until=lambda state, square: (abs(state["root"] ** 2 - square) < 1e-9, square < 0),
    ...     every=1, keep="root",
    ... )
    >>> plan = sp.plan(better, [np.asarray([2.0, 4.0])], rounds=rounds, budget="4 MB")
    >>> plan.memory.sources
    ('real better, numpy...',)
    """

    init: Callable[..., State]
    until: Callable[..., tuple[Any, Any]]
    every: int
    keep: tuple[str, ...]
    limit: int | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", _fields(self.keep))
        whole = isinstance(self.every, int | np.integer) and not isinstance(self.every, bool)
        if not whole or self.every < 1:
            raise SignatureError(
                f"iterate: every={self.every!r}; a round has a whole number of steps from 1."
            )
        _refuse_unnamed("init", self.init)
        _refuse_unnamed("until", self.until)


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
        name = _name(self.rounds.init)
        state = _call(self.rounds.init, columns)
        if not isinstance(state, dict) or not state:
            raise SignatureError(
                f"iterate: init={name} gave {type(state).__name__}; it gives the state, a dict of "
                "arrays whose first axis are rows."
            )
        missing = [field for field in self.rounds.keep if field not in state]
        if missing:
            raise SignatureError(
                f"iterate: keep names {missing[0]!r}, which is no field of the state: "
                f"{', '.join(state)}."
            )
        rows = columns[self.arguments[0]].shape[0]
        for field, part in state.items():
            if not hasattr(part, "dtype") or tuple(part.shape[:1]) != (rows,):
                raise SignatureError(
                    f"iterate: init={name} gave {field!r} as {_shown(part)} for {rows} rows; the "
                    "first axis of every field are the rows: xp.zeros_like of a column has it."
                )
        return state

    def advance(self, columns: Mapping[str, Any], age: Any, state: State) -> State:
        """Take one step; its state is checked."""
        given = [columns[name] for name in self.arguments]
        named = {**columns, "age": age, "state": state}
        found = self.step.function(*given, **{name: named[name] for name in self.step_names})
        if not isinstance(found, dict) or set(found) != set(state):
            fields = sorted(found) if isinstance(found, dict) else type(found).__name__
            raise SignatureError(
                f"iterate: {self.name} gave {fields}; it gives the state with the same "
                f"fields: {sorted(state)}."
            )
        for field, old in state.items():
            new = found[field]
            alike = hasattr(new, "dtype") and new.shape == old.shape and new.dtype == old.dtype
            if not alike:
                raise SignatureError(
                    f"iterate: {self.name} changed {field!r} from {_shown(old)} to {_shown(new)}; "
                    "a field keeps its shape and dtype, which are those that init gives it."
                )
        return found

    def look(self, columns: Mapping[str, Any], state: State) -> tuple[Any, Any]:
        """Call ``until``: done and failed, (rows,) bool each."""
        found = _call(self.rounds.until, {**columns, "state": state})
        if not isinstance(found, tuple) or len(found) != 2:
            raise SignatureError(
                f"iterate: until={_name(self.rounds.until)} gave {type(found).__name__}; it gives "
                "a tuple of two bool arrays, (done, failed)."
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

        def start(given: Any, named: Any, common: Any) -> State:
            return self.start(self.columns(given, {**named, **common, **statics}))

        operands = (tuple(arguments), dict(keywords), dict(shared))
        key = (adapter.name, static_key(statics), _shapes_of(operands))
        if key not in self.states:  # a trace takes longer than a round of small rows
            state = cast("TracingAdapter", adapter).abstract(start, *operands)
            self.states[key] = {name: (part.shape, part.dtype) for name, part in state.items()}
        rows = arguments[0].shape[0]
        return {
            **keywords,
            "state": {name: np.zeros(*like) for name, like in self.states[key].items()},
            "age": np.zeros(rows, np.int64),
            "fresh": np.ones(rows, np.bool_),
        }

    def columns(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """Give by name all that ``init``, the step and ``until`` may ask for."""
        return {**named, **dict(zip(self.arguments, arguments, strict=True))}

    @functools.cached_property
    def states(self) -> dict[Any, dict[str, tuple[tuple[int, ...], Any]]]:
        """Shapes and dtypes of states seen, by those of what they are made of."""
        return {}

    @functools.cached_property
    def step_names(self) -> tuple[str, ...]:
        """Keyword-only parameters of the step."""
        names = inspect.signature(self.step.function).parameters
        return tuple(name for name in names if name not in self.arguments)


def round_kernel(step: Kernel, rounds: Rounds, adapter: Adapter) -> RoundKernel:
    """Give the round of a step; the same one for the same functions.

    Raises
    ------
    SignatureError
        For a step without ``state``, one that is per item, and fields to keep that are not as many
        as its outputs.
    """
    where = f"iterate: {step.name}"
    if not isinstance(rounds, Rounds):
        raise SignatureError(
            f"{where}: rounds={rounds!r}; give how it is iterated: "
            "rounds=sp.Rounds(init, until, every, keep)."
        )
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
    return _round_kernel(step, rounds, adapter.name)


@functools.lru_cache(maxsize=256)
def _round_kernel(step: Kernel, rounds: Rounds, framework: str) -> RoundKernel:
    kernel = object.__new__(RoundKernel)
    kernel.__dict__.update(step.__dict__)
    kernel.step, kernel.rounds = step, rounds
    kernel.takes_state = False
    taken = [_taken(function) for function in (rounds.init, rounds.until)]
    kernel.takes_mask = step.takes_mask or any(names is None or "mask" in names for names in taken)
    shared = [
        *_shared_names(step, "init", rounds.init),
        *_shared_names(step, "until", rounds.until),
    ]
    kernel.shared = tuple(dict.fromkeys((*step.shared, *shared)))
    kernel.defaults = dict(step.defaults)
    for function in (rounds.init, rounds.until):
        for name, default in _defaults(function).items():
            known = kernel.defaults.setdefault(name, default)
            if repr(known) != repr(default):
                raise SignatureError(
                    f"iterate: {name}={default!r} by default in {_name(function)}, elsewhere "
                    f"{known!r}; all functions get one value. Give one default."
                )
    adapter = get_adapter(framework)
    make = _compiled_round if adapter.compiles else _first_round
    kernel.function = make(kernel, adapter)
    return kernel


def _compiled_round(kernel: RoundKernel, adapter: Adapter) -> Callable[..., Any]:
    rounds, scan = kernel.rounds, cast("TracingAdapter", adapter).scan

    def one_round(*arguments: Any, state: State, age: Any, fresh: Any, **named: Any) -> Any:
        xp = array_namespace(age, fresh)
        columns = kernel.columns(arguments, named)
        new = kernel.start(columns)
        state = {
            name: xp.where(fresh[(...,) + (None,) * (old.ndim - 1)], new[name], old)
            for name, old in state.items()
        }

        def advance(carry: Any, number: Any) -> Any:
            return kernel.advance(columns, age + number, carry)

        state = scan(advance, state, xp.arange(rounds.every, dtype=age.dtype))
        kept = [state[name] for name in rounds.keep]
        others = {name: part for name, part in state.items() if name not in rounds.keep}
        return (*kept, others, *kernel.look(columns, state))

    return one_round


def _first_round(kernel: RoundKernel, adapter: Adapter) -> Callable[..., Any]:
    def first_round(*arguments: Any, **named: Any) -> Any:
        columns = kernel.columns(arguments, named)
        state = kernel.start(columns)
        for column in arguments:
            _joined_to_none(column)
        for name in list(state):
            state[name] = _joined_to_none(state[name])
        first = arguments[0]
        xp, device = array_namespace(first), getattr(first, "device", None)
        age = xp.zeros((first.shape[0],), dtype=xp.int64, device=device)
        for number in range(min(kernel.rounds.every, 2)):  # more take no more
            state = kernel.advance(columns, age + number, state)
        kernel.look(columns, state)
        _put_away(kernel, state, xp, device)
        return tuple(state[name] for name in kernel.rounds.keep)

    return first_round


def _joined_to_none(array: Any) -> Any:
    """Copy an array as the loop does, which joins rows that stay to those that come."""
    return array_namespace(array).concat([array, array[:0, ...]], axis=0)


def _put_away(kernel: RoundKernel, state: State, xp: Any, device: Any) -> list[Any]:
    """Copy what is kept as the loop does where all rows are over, with the places that it needs."""
    places: dict[tuple[str, ...], Any] = {}
    real = []
    for name, core in zip(kernel.rounds.keep, kernel.signature.outputs, strict=True):
        dims, field = kernel.ragged_dims(core), state[name]
        kept = xp.take(field, xp.arange(field.shape[0], device=device), axis=0)
        if dims:
            shape = kept.shape[: 1 + len(dims)]
            if dims not in places:
                places[dims] = xp.arange(math.prod(shape), dtype=xp.int64, device=device)
            kept = xp.reshape(kept, (-1, *kept.shape[1 + len(dims) :]))
            kept = xp.take(kept, places[dims], axis=0)
        real.append(kept)
    return [*real, *(place + (place - xp.zeros_like(place)) for place in places.values())]


def _shapes_of(nest: Any) -> Any:
    """Give the shapes and dtypes of a nest of arrays, to look it up by."""
    if isinstance(nest, dict):
        return tuple((name, _shapes_of(part)) for name, part in nest.items())
    if isinstance(nest, tuple | list):
        return tuple(map(_shapes_of, nest))
    return (tuple(nest.shape), nest.dtype) if hasattr(nest, "dtype") else type(nest)


def _call(function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Call a function with what it names of all that is given."""
    names = _taken(function)
    chosen = given if names is None else {name: given[name] for name in names if name in given}
    return function(**chosen)


@functools.lru_cache(maxsize=256)
def _taken(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """Names of the parameters of a function; None where it takes all there are, ``**columns``."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return tuple(parameter.name for parameter in parameters)


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _fields(keep: Any) -> tuple[str, ...]:
    names = (keep,) if isinstance(keep, str) else keep
    fine = isinstance(names, Sequence) and names and all(isinstance(name, str) for name in names)
    if not fine or len(set(names)) < len(names):
        raise SignatureError(
            f"iterate: keep={keep!r}; give names of fields of the state, each once: keep=['x']."
        )
    return tuple(names)


def _refuse_unnamed(option: str, function: Any) -> None:
    """Refuse what is no function of named parameters."""
    where = f"iterate: {option}={_name(function)}"
    if not callable(function):
        raise SignatureError(
            f"{where} is no function. Give one that takes columns and shared parameters by name."
        )
    try:
        hash(function)  # programs are kept by it
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of some functions written in C, too
        raise SignatureError(
            f"{where} has no hash, or does not say what it takes. Wrap it: def {option}(x): ..."
        ) from None
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise SignatureError(
                f"{where} takes {parameter} by position; it gets columns and shared parameters by "
                "name."
            )


def _shared_names(step: Kernel, option: str, function: Callable[..., Any]) -> list[str]:
    """Give the shared parameters of ``init`` or ``until``, and refuse what they cannot get."""
    where = f"iterate: {option}={_name(function)} takes"
    by_row = {"mask", *(("segments",) if step.segments else ())}
    given = by_row if option == "init" else {*by_row, "state"}
    names = [name for name in _taken(function) or () if name not in (*step.arguments, *given)]
    for name in names:
        if name in ("state", "age"):
            cure = "there is none yet" if option == "init" else "let a field of the state count"
            raise SignatureError(f"{where} {name!r}: {cure}.")
        if name in OF_ITERATE:
            raise SignatureError(
                f"{where} {name!r}, a name that iterate uses itself; rename the parameter."
            )
    return names


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", repr(function)))


def _shown(value: Any) -> str:
    if not hasattr(value, "dtype"):
        return type(value).__name__
    return f"{tuple(value.shape)} {value.dtype}"
