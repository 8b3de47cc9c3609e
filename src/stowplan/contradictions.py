"""Declarations of kernels that contradict themselves or their function."""

from __future__ import annotations

from numbers import Integral, Number
from typing import TYPE_CHECKING

from stowplan.errors import SignatureError
from stowplan.expressions import Expression
from stowplan.options import refuse_unknown, takes_dims
from stowplan.signature import CoreShape

if TYPE_CHECKING:
    from stowplan.declaration import Kernel

__all__ = ["OF_ITERATE", "RESERVED", "refuse_contradictions"]

RESERVED = frozenset(
    "kernel data plan on device devices rows slots budget headroom order overflow costs progress "
    "compile passes executor resume out loss wrt peak gradient items tolerance repeats rounds "
    "offsets overwrite on_disk".split()
)
OF_ITERATE = frozenset(
    "step data plan init until every limit keep on device devices slots rows budget peak gradient "
    "rounds order overflow costs passes headroom offsets progress executor resume kernel "
    "fresh on_disk".split()
)
"""Names that the functions of an iteration cannot take: ``iterate``, ``plan`` and rounds do."""


def refuse_contradictions(kernel: Kernel) -> None:
    """Raise SignatureError where signature, function and options do not agree."""
    where = f"kernel {kernel.name}"
    inputs = kernel.signature.inputs
    if len(kernel.arguments) != len(inputs):
        raise SignatureError(
            f"{where}: the signature has {len(inputs)} inputs, the function has "
            f"{len(kernel.arguments)} positional parameters: {', '.join(kernel.arguments)}. "
            "Put a * before the parameters that all items share."
        )
    taken = sorted(RESERVED.intersection(kernel.shared))
    if taken:
        raise SignatureError(
            f"{where}: run uses the name {taken[0]!r} itself; rename the parameter."
        )
    taken = sorted(OF_ITERATE.intersection(kernel.shared)) if kernel.takes_state else []
    if taken:
        raise SignatureError(
            f"{where}: iterate uses the name {taken[0]!r} itself; rename the parameter."
        )
    if "rows" in (*kernel.signature.dims, *kernel.signature.new_dims):
        raise SignatureError(f"{where}: slots use the name 'rows' themselves; rename the dim.")
    refuse_unknown(where, "exact", kernel.exact, kernel.ragged)
    refuse_unknown(where, "static", kernel.static, kernel.shared)
    refuse_unknown(where, "fill", kernel.fill, kernel.arguments)
    for name, fill in kernel.fill.items():
        if not isinstance(fill, Number):
            raise SignatureError(f"{where}: fill of {name!r} is {fill!r}; give a number.")
    refuse_unknown(where, "out_sizes", kernel.out_sizes, kernel.new_dims)
    for name, core in zip(kernel.arguments, inputs, strict=True):
        _check_leading(kernel, f"{where}: argument {name}", core)
    for core in kernel.signature.outputs:
        _check_leading(kernel, f"{where}: an output", core)
    _check_new_dims(kernel, where)
    _check_expressions(kernel, where)
    _check_index(kernel, where)
    _check_segments(kernel, where)


def _check_index(kernel: Kernel, where: str) -> None:
    refuse_unknown(where, "index", kernel.index, kernel.arguments)
    for name, dim in kernel.index.items():
        refuse_unknown(where, f"index {name!r}", (dim,), kernel.ragged)
        fill = kernel.fill.get(name)
        if not isinstance(fill, Integral) or fill >= 0:
            raise SignatureError(
                f"{where}: index names {name!r}, whose padding must be told from an index; "
                f"declare a negative integer: fill={{{name!r}: -1}}."
            )


def _check_segments(kernel: Kernel, where: str) -> None:
    if kernel.segments is None and not kernel.takes_segments:
        return
    if kernel.segments is None:
        raise SignatureError(
            f"{where}: the parameter segments says which item of a row each entry belongs to; "
            "declare the dim that counts the items, segments='molecules', or rename it."
        )
    if not kernel.takes_segments:
        raise SignatureError(
            f"{where}: segments={kernel.segments!r} puts several items into a row, so the "
            f"function must tell them apart: def {kernel.name}(..., *, segments)."
        )
    if len(kernel.ragged) == 1:
        raise SignatureError(
            f"{where}: nothing is ragged beside {kernel.segments!r}, so there is nothing to join."
        )
    for core in (*kernel.signature.inputs, *kernel.signature.outputs):
        if kernel.segments in core and kernel.ragged_dims(core) != (kernel.segments,):
            raise SignatureError(
                f"{where}: the core shape ({', '.join(map(str, core))}) has "
                f"{kernel.segments!r} beside another ragged dim; per-item values have it alone."
            )


def _check_new_dims(kernel: Kernel, where: str) -> None:
    missing = [dim for dim in kernel.new_dims if dim not in kernel.out_sizes]
    if missing:
        raise SignatureError(
            f"{where}: no input has the output dim {missing[0]!r}; "
            f"give its length: out_sizes={{{missing[0]!r}: '...'}}."
        )
    varying = (*kernel.ragged, *kernel.derived)
    for dim, rule in kernel.out_sizes.items():
        if isinstance(rule, Expression):
            ragged = any(name in varying for name in rule.names)
            allowed = varying if ragged else (*varying, *kernel.signature.dims)
            refuse_unknown(where, f"out_sizes {dim!r}", rule.names, tuple(dict.fromkeys(allowed)))
        else:
            takes_dims(f"{where}: out_sizes {dim!r}", rule, kernel.ragged)


def _check_leading(kernel: Kernel, where: str, core: CoreShape) -> None:
    leading = kernel.ragged_dims(core)
    if core[: len(leading)] != leading:
        raise SignatureError(
            f"{where} has core shape ({', '.join(map(str, core))}): "
            f"the ragged dims ({', '.join(leading)}) must lead."
        )


def _check_expressions(kernel: Kernel, where: str) -> None:
    clash = sorted(set(kernel.derived).intersection(kernel.signature.dims))
    if clash:
        raise SignatureError(f"{where}: {clash[0]!r} is a dim, so it cannot be derived.")
    for name in kernel.derived:
        if name == "rows" or not name.isidentifier():
            raise SignatureError(
                f"{where}: {name!r} cannot name a derived size; take a word other than rows."
            )
    for name, expression in kernel.derived.items():
        refuse_unknown(where, f"derived {name!r}", expression.names, kernel.ragged)
    refuse_unknown(where, "work", kernel.work.names, (*kernel.ragged, *kernel.derived))
    if kernel.memory is not None:
        refuse_unknown(where, "memory", kernel.memory.names, (*kernel.ragged, *kernel.derived))
