"""``@kernel``: a function of arrays with its signature, ragged dims, fills and cost."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

from stowplan.by_hand import all_of_one_item, all_real
from stowplan.contradictions import refuse_contradictions
from stowplan.errors import DataError, PlanError, SignatureError
from stowplan.expressions import Expression
from stowplan.options import names, parameters, refuse_unknown, table
from stowplan.signature import CoreShape, Signature, parse_signature

__all__ = ["Kernel", "kernel"]


class Kernel:
    """Physics with its declaration; call it on plain arrays like the function it wraps.

    Attributes
    ----------
    signature : Signature
    arguments : tuple of str
        Names of the per-item (positional) parameters, in signature order.
    shared : tuple of str
        Names of the keyword-only parameters that all items share, without ``mask`` and
        ``segments``, and without the ``age`` and ``state`` of a step.
    ragged, exact : tuple of str
        Dims that vary over items; those of them that share a batch only at equal size.
    work : Expression
        Cost of one item in terms of ragged dims and derived names.
    knows_work : bool
        Whether it was declared; else it is the product of ragged dims.
    memory : Expression or None
        Numbers that one row keeps alive at once.
    derived : dict of str to Expression
    static : tuple of str
        Shared parameters that select code: hashable, part of the compile key.
    fill : dict of str to float
        Declared padding value of arguments; 0 where none is declared.
    index : dict of str to str
        Arguments whose entries are item-local indices, and the dim that they point along.
    segments : str or None
        The ragged dim that counts the items lying in one row.
    terms : callable or None
        Terms that each item sums, from the shared parameters.
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
        index: Mapping[str, str],
        segments: str | None,
        terms: Callable[[Mapping[str, Any]], int] | None,
    ) -> None:
        if not hasattr(function, "__name__"):
            raise SignatureError(f"kernel: {function!r} has no name; declare a def instead.")
        functools.update_wrapper(self, function)
        self.name: str = function.__name__
        self.function = function
        self.signature = signature
        self.per_item = per_item
        self.arguments, keyword_only, self.defaults = parameters(function)
        self.takes_mask = "mask" in keyword_only
        self.takes_segments = "segments" in keyword_only
        self.takes_state = "state" in keyword_only
        by_row = ("mask", "segments", *(("state", "age") if self.takes_state else ()))
        self.shared = tuple(name for name in keyword_only if name not in by_row)
        self.ragged = ragged
        self.exact = exact
        self.static = static
        self.fill = dict(fill)
        self.index = dict(index)
        self.segments = segments
        self.terms = terms
        where = f"kernel {self.name}"
        if not isinstance(segments, str | None):
            raise SignatureError(f"{where}: segments={segments!r}; give the name of one dim.")
        counting = () if segments is None else (segments,)
        refuse_unknown(where, "ragged", ragged, (*signature.dims, *counting))
        refuse_unknown(where, "segments", counting, ragged)
        self.derived = {
            name: self._parse(f"derived {name!r}", text) for name, text in derived.items()
        }
        each = " * ".join(dim for dim in ragged if dim != segments) or "1"
        self.knows_work = work is not None
        cost = each if work is None else work
        self.work = self._parse("work", cost)
        self.memory = None if memory is None else self._parse("memory", memory)
        self.out_sizes = {
            dim: rule if callable(rule) else self._parse(f"out_sizes {dim!r}", rule)
            for dim, rule in out_sizes.items()
        }
        refuse_contradictions(self)

    def __call__(self, *args: Any, **shared: Any) -> Any:
        """Evaluate on plain arrays; without mask and segments, every entry is real, of one item."""
        if self.takes_mask or self.takes_segments:
            shared |= self._left_out({**dict(zip(self.arguments, args, strict=False)), **shared})
        return self.function(*args, **shared)

    def __reduce__(self) -> str:
        return str(self.__dict__["__qualname__"])  # pickled by name, as functions are

    def __repr__(self) -> str:
        return f"<kernel {self.name} {self.signature.text}>"

    def pricing(self, terms: int = 1) -> dict[str, Any]:
        """Work of so many terms, derived sizes and exact dims, as the planners take them."""
        derived = {name: rule.text for name, rule in self.derived.items()}
        work = self.work.text if terms == 1 else f"{terms} * ({self.work.text})"
        return {"work": work, "derived": derived, "exact": self.exact}

    def count_terms(self, shared: Mapping[str, Any]) -> int:
        """Give the terms of an item; 1 where a shared parameter is missing."""
        if self.terms is None or any(name not in shared for name in self.shared):
            return 1
        count = self.terms(shared)
        if not isinstance(count, Integral) or count < 1:
            raise SignatureError(
                f"kernel {self.name}: terms gave {count!r}; it gives a whole number from 1."
            )
        return int(count)

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

    def _left_out(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Make the mask and the segments that a call by hand does not give."""
        mask, segments = given.get("mask"), given.get("segments")
        arrays = [given[name] for name in self.arguments if name in given]
        if len(arrays) < len(self.arguments):
            return {}  # Python itself says best what a call lacks
        if mask is None:
            mask = all_real(arrays, self.signature.inputs, self.ragged)
        if self.segments and segments is None:
            mask, segments = all_of_one_item(self.name, mask, self.segments)
        elif self.segments and self.takes_mask and self.segments not in mask:
            raise DataError(
                f"{self.name}: segments= without mask= leaves open how many {self.segments} a row "
                f"holds. Pass mask={{..., {self.segments!r}: bool (..., count)}} too."
            )
        made = {"mask": mask, "segments": segments}
        taken = {"mask": self.takes_mask, "segments": self.takes_segments}
        return {name: value for name, value in made.items() if taken[name]}

    @property
    def new_dims(self) -> tuple[str, ...]:
        """Output dims that no input has, without the one that counts items."""
        return tuple(dim for dim in self.signature.new_dims if dim != self.segments)

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
    index: Mapping[str, str] | None = None,
    segments: str | None = None,
    terms: Callable[[Mapping[str, Any]], int] | None = None,
) -> Callable[[Callable[..., Any]], Kernel]:
    """Declare a function of arrays as a kernel that plans can batch.

    The function acts on the trailing core dims of its positional parameters, broadcasts over
    leading ones and is written against the array API. Keyword-only parameters are shared by all
    items; one named ``mask`` receives ``{dim: bool (..., capacity)}``, True where an entry is real.
    One named ``state`` makes it a step of an iteration, see `iterate`: with ``age`` (...), the
    steps taken before, it gives the state after one more; the outputs of its signature are the
    fields that are kept.

    Parameters
    ----------
    signature
        Core shapes, such as ``"(atoms,3),(atoms)->(),(atoms,3)"``.
    ragged
        Dims whose length varies over items; they lead in every argument.
    exact
        Those of them that share a batch only at equal length (an FFT axis, an eigenproblem).
    work
        Cost of one item, such as ``"atoms * k"``; the product of the ragged dims by default,
        without the one that counts items. That of a step is all steps that an item takes.
    memory
        Numbers that one row keeps alive at once (columns, scratch, outputs), an expression like
        ``work``: how large a batch stays in a cache, and the budget where nothing can be probed.
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
    index
        Arguments whose entries are item-local indices, and the ragged dim that they point along,
        such as ``{"neighbours": "atoms"}``; "none" is their declared fill, a negative integer.
    segments
        The ragged dim that counts the items in a row, for a kernel that keeps them apart: several
        small items may then share a row. The keyword-only parameter ``segments`` receives, for
        every other ragged dim, ``{dim: int (..., capacity)}``: which of the row's items an entry
        belongs to, padding -1. An argument or output of core shape ``(molecules, ...)`` holds one
        entry per item; which of them are real says ``mask["molecules"]``.
    terms
        A function from all shared parameters, by name, to how many terms each item sums: it
        multiplies ``work`` and ``memory``, which are then those of one term.

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
            ragged=names("ragged", ragged),
            exact=names("exact", exact),
            work=work,
            memory=memory,
            derived=table("derived", derived),
            static=names("static", static),
            fill=table("fill", fill),
            out_sizes=table("out_sizes", out_sizes),
            per_item=per_item,
            index=table("index", index),
            segments=segments,
            terms=terms,
        )

    return declare
