"""``@kernel``: a function of arrays with its signature, ragged dims, fills and cost."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any

from array_api_compat import array_namespace, device

from stowplan.errors import PlanError, SignatureError
from stowplan.expressions import Expression
from stowplan.signature import CoreShape, Signature, parse_signature

__all__ = ["RESERVED", "Kernel", "kernel"]

RESERVED = frozenset(
    "kernel data plan on device devices rows slots budget headroom order overflow costs progress "
    "compile passes executor resume out loss wrt items tolerance repeats".split()
)


class Kernel:
    """Physics with its declaration; call it on plain arrays like the function it wraps.

    Attributes
    ----------
    signature : Signature
    arguments : tuple of str
        Names of the per-item (positional) parameters, in signature order.
    shared : tuple of str
        Names of the keyword-only parameters that all items share, without ``mask``.
    ragged, exact : tuple of str
        Dims that vary over items; those of them that share a batch only at equal size.
    work : Expression
        Cost of one item in terms of ragged dims and derived names.
    memory : Expression or None
        Numbers that one row keeps alive at once.
    derived : dict of str to Expression
    static : tuple of str
        Shared parameters that select code: hashable, part of the compile key.
    fill : dict of str to float
        Declared padding value of arguments; 0 where none is declared.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        signature: Signature,
        *,
        ragged: tuple[str, ...],
        exact: tuple[str, ...],
        work: str | None,
        memory: str | None,
        derived: Mapping[str, str],
        static: tuple[str, ...],
        fill: Mapping[str, float],
        out_sizes: Mapping[str, str | int | Callable[..., int]],
        per_item: bool,
    ) -> None:
        if not hasattr(function, "__name__"):
            raise SignatureError(f"kernel: {function!r} has no name; declare a def instead.")
        functools.update_wrapper(self, function)
        self.name: str = function.__name__
        self.function = function
        self.signature = signature
        self.per_item = per_item
        self.arguments, keyword_only, self.defaults = _parameters(function)
        self.takes_mask = "mask" in keyword_only
        self.shared = tuple(name for name in keyword_only if name != "mask")
        self.ragged = ragged
        self.exact = exact
        self.static = static
        self.fill = dict(fill)
        _subset(f"kernel {self.name}", "ragged", ragged, signature.dims)
        self.derived = {
            name: self._parse(f"derived {name!r}", text) for name, text in derived.items()
        }
        cost = " * ".join(ragged) or "1" if work is None else work
        self.work = self._parse("work", cost)
        self.memory = None if memory is None else self._parse("memory", memory)
        self.out_sizes = {
            dim: rule if callable(rule) else self._parse(f"out_sizes {dim!r}", rule)
            for dim, rule in out_sizes.items()
        }
        self._check()

    def __call__(self, *args: Any, **shared: Any) -> Any:
        """Evaluate on plain arrays; without a mask, every entry counts."""
        if self.takes_mask and shared.get("mask") is None:
            shared["mask"] = self._all_valid(
                {**dict(zip(self.arguments, args, strict=False)), **shared}
            )
        return self.function(*args, **shared)

    def __reduce__(self) -> str:
        return str(self.__dict__["__qualname__"])  # pickled by name, as functions are

    def __repr__(self) -> str:
        return f"<kernel {self.name} {self.signature.text}>"

    def refilled(self, argument: str, fill: float) -> Kernel:
        """Give the same kernel with another padding value of one argument."""
        other = object.__new__(Kernel)  # copy.copy would follow __reduce__ and give this one
        other.__dict__.update(self.__dict__)
        other.fill = {**self.fill, argument: fill}
        return other

    def ragged_dims(self, core: CoreShape) -> tuple[str, ...]:
        """Give the ragged dims that lead a core shape."""
        return tuple(dim for dim in core if dim in self._all_ragged)

    def out_length(self, dim: str, lengths: Mapping[str, Any]) -> Any:
        """Give the length of an output dim that no input has, from those of the input dims."""
        rule = self.out_sizes[dim]
        values = {name: expr.evaluate(lengths) for name, expr in self.derived.items()}
        known = {**lengths, **values}
        return rule.evaluate(known) if isinstance(rule, Expression) else rule(**lengths)

    @functools.cached_property
    def _all_ragged(self) -> frozenset[str]:
        """Ragged dims of the inputs, and output dims computed from one."""
        new = {
            dim
            for dim, rule in self.out_sizes.items()
            if not isinstance(rule, Expression)
            or any(name in self.ragged or name in self.derived for name in rule.names)
        }
        return frozenset(self.ragged) | new

    def _all_valid(self, given: Mapping[str, Any]) -> dict[str, Any]:
        mask: dict[str, Any] = {}
        for name, core in zip(self.arguments, self.signature.inputs, strict=True):
            if name not in given:
                continue  # Python itself says best what a call lacks
            array = given[name]
            lengths = array.shape[array.ndim - len(core) :]
            for dim, length in zip(core, lengths, strict=True):
                if dim in self.ragged and dim not in mask:
                    xp = array_namespace(array)
                    mask[str(dim)] = xp.ones((length,), dtype=xp.bool, device=device(array))
        return mask

    def _check(self) -> None:
        where = f"kernel {self.name}"
        inputs = self.signature.inputs
        if len(self.arguments) != len(inputs):
            raise SignatureError(
                f"{where}: the signature has {len(inputs)} inputs, the function has "
                f"{len(self.arguments)} positional parameters: {', '.join(self.arguments)}. "
                "Put a * before the parameters that all items share."
            )
        taken = sorted(RESERVED.intersection(self.shared))
        if taken:
            raise SignatureError(
                f"{where}: run uses the name {taken[0]!r} itself; rename the parameter."
            )
        if "rows" in (*self.signature.dims, *self.signature.new_dims):
            raise SignatureError(f"{where}: slots use the name 'rows' themselves; rename the dim.")
        _subset(where, "exact", self.exact, self.ragged)
        _subset(where, "static", self.static, self.shared)
        _subset(where, "fill", self.fill, self.arguments)
        for name, fill in self.fill.items():
            if not isinstance(fill, Number):
                raise SignatureError(f"{where}: fill of {name!r} is {fill!r}; give a number.")
        _subset(where, "out_sizes", self.out_sizes, self.signature.new_dims)
        for name, core in zip(self.arguments, inputs, strict=True):
            self._check_leading(f"{where}: argument {name}", core)
        for core in self.signature.outputs:
            self._check_leading(f"{where}: an output", core)
        self._check_new_dims(where)
        self._check_expressions(where)

    def _check_new_dims(self, where: str) -> None:
        missing = [dim for dim in self.signature.new_dims if dim not in self.out_sizes]
        if missing:
            raise SignatureError(
                f"{where}: no input has the output dim {missing[0]!r}; "
                f"give its length: out_sizes={{{missing[0]!r}: '...'}}."
            )
        varying = (*self.ragged, *self.derived)
        for dim, rule in self.out_sizes.items():
            if isinstance(rule, Expression):
                ragged = any(name in varying for name in rule.names)
                allowed = varying if ragged else (*varying, *self.signature.dims)
                _subset(where, f"out_sizes {dim!r}", rule.names, tuple(dict.fromkeys(allowed)))
            else:
                _check_takes(f"{where}: out_sizes {dim!r}", rule, self.ragged)

    def _check_leading(self, where: str, core: CoreShape) -> None:
        leading = self.ragged_dims(core)
        if core[: len(leading)] != leading:
            raise SignatureError(
                f"{where} has core shape ({', '.join(map(str, core))}): "
                f"the ragged dims ({', '.join(leading)}) must lead."
            )

    def _check_expressions(self, where: str) -> None:
        clash = sorted(set(self.derived).intersection(self.signature.dims))
        if clash:
            raise SignatureError(f"{where}: {clash[0]!r} is a dim, so it cannot be derived.")
        for name in self.derived:
            if name == "rows" or not name.isidentifier():
                raise SignatureError(
                    f"{where}: {name!r} cannot name a derived size; take a word other than rows."
                )
        for name, expression in self.derived.items():
            _subset(where, f"derived {name!r}", expression.names, self.ragged)
        _subset(where, "work", self.work.names, (*self.ragged, *self.derived))
        if self.memory is not None:
            _subset(where, "memory", self.memory.names, (*self.ragged, *self.derived))

    def _parse(self, option: str, text: Any) -> Expression:
        try:
            return Expression.parse(str(text) if isinstance(text, int) else text)
        except PlanError as error:
            raise SignatureError(f"kernel {self.name}: {option}: {error}") from None


def kernel(
    signature: str,
    *,
    ragged: Sequence[str] | str = (),
    exact: Sequence[str] | str = (),
    work: str | None = None,
    memory: str | None = None,
    derived: Mapping[str, str] | None = None,
    static: Sequence[str] | str = (),
    fill: Mapping[str, float] | None = None,
    out_sizes: Mapping[str, str | int | Callable[..., int]] | None = None,
    per_item: bool = False,
) -> Callable[[Callable[..., Any]], Kernel]:
    """Declare a function of arrays as a kernel that plans can batch.

    The function acts on the trailing core dims of its positional parameters, broadcasts over
    leading ones and is written against the array API. Keyword-only parameters are shared by all
    items; one named ``mask`` receives ``{dim: bool (..., capacity)}``, True where an entry is real.

    Parameters
    ----------
    signature
        Core shapes, such as ``"(atoms,3),(atoms)->(),(atoms,3)"``.
    ragged
        Dims whose length varies over items; they lead in every argument.
    exact
        Those of them that share a batch only at equal length (an FFT axis, an eigenproblem).
    work
        Cost of one item, such as ``"atoms * k"``; the product of the ragged dims by default.
    memory
        Numbers that one row keeps alive at once (columns, scratch, outputs), an expression like
        ``work``; budgets need it.
    derived
        Named expressions of ragged dims, usable in ``work`` and as slot limits.
    static
        Shared parameters that select code. They must be hashable; a new value compiles again.
    fill
        Padding value per argument, 0 by default. A declared fill is one that the kernel relies on.
    out_sizes
        Length of each output dim that no input has: an expression of dims, or a function of them.
    per_item
        The function does not broadcast over leading dims; it is mapped over items instead.

    Raises
    ------
    SignatureError
        For a declaration that contradicts itself or the function.

    Examples
    --------
    >>> import numpy as np
    >>> @kernel("(atoms,3),(atoms)->()", ragged="atoms")
    ... def dipole_square(positions, charges):
    ...     moment = (charges[..., None] * positions).sum(-2)
    ...     return (moment**2).sum(-1)
    >>> float(dipole_square(np.eye(3), np.array([1.0, 2.0, 0.0])))
    5.0
    """
    if not isinstance(signature, str):
        raise SignatureError(
            f"kernel: the signature comes first, as text, not {signature!r}. "
            'Write @kernel("(atoms,3)->()", ragged="atoms").'
        )

    def declare(function: Callable[..., Any]) -> Kernel:
        return Kernel(
            function,
            parse_signature(signature),
            ragged=_names("ragged", ragged),
            exact=_names("exact", exact),
            work=work,
            memory=memory,
            derived=_table("derived", derived),
            static=_names("static", static),
            fill=_table("fill", fill),
            out_sizes=_table("out_sizes", out_sizes),
            per_item=per_item,
        )

    return declare


def _names(option: str, names: Sequence[str] | str) -> tuple[str, ...]:
    given = (names,) if isinstance(names, str) else tuple(names or ())
    if len(set(given)) < len(given):
        raise SignatureError(f"kernel: {option}={names!r} names one thing twice.")
    return given


def _table(option: str, table: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if table is None or isinstance(table, Mapping):
        return table or {}
    raise SignatureError(
        f"kernel: {option}={table!r} is no mapping; write {option}={{'name': ...}}."
    )


def _check_takes(where: str, rule: Callable[..., int], dims: Sequence[str]) -> None:
    try:
        inspect.signature(rule).bind(**dict.fromkeys(dims))
    except TypeError as error:
        raise SignatureError(
            f"{where}: the function is called with the ragged dims ({', '.join(dims)}) "
            f"by name: {error}."
        ) from None


def _parameters(
    function: Callable[..., Any],
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]:
    positional: list[str] = []
    keyword_only: list[str] = []
    defaults: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise SignatureError(
                f"kernel {function.__name__}: name every parameter instead of {parameter}."
            )
        keyword = parameter.kind is parameter.KEYWORD_ONLY
        (keyword_only if keyword else positional).append(parameter.name)
        if keyword and parameter.default is not parameter.empty:
            defaults[parameter.name] = parameter.default
    return tuple(positional), tuple(keyword_only), defaults


def _subset(where: str, option: str, names: Any, allowed: Sequence[str]) -> None:
    unknown = [name for name in names if name not in allowed]
    if unknown:
        known = ", ".join(allowed) or "none"
        raise SignatureError(f"{where}: {option} names {unknown[0]!r}; it can name: {known}.")
