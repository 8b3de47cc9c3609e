"""``compile=True`` in torch: one graph per padded shape, and one that pulls back through it.

The graph of a gradient holds forward and backward pass of a batch together, so that a compiler
sees what need not be kept between them, and returns nothing but gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from types import FunctionType
from typing import Any, cast

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from stowplan.adapters.interface import BatchFunction, Pullback, as_tuple

__all__ = ["compiled_pullback", "one_graph_per_shape"]


def one_graph_per_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a copy of a function for each kind of operands: of one, torch compiles 8 at most."""
    graphs: dict[Hashable, Callable[..., Any]] = {}
    original = cast("FunctionType", function)

    def call(*operands: Any) -> Any:
        if not torch.is_grad_enabled():  # what would be recorded elsewhere is no reason to compile
            operands = tree_map(_detached, operands)
        leaves, nest = tree_flatten(operands)
        key = (torch.is_grad_enabled(), nest, *map(_kind, leaves))
        if key not in graphs:
            code = original.__code__.replace()
            copy = FunctionType(code, original.__globals__, closure=original.__closure__)
            graphs[key] = torch.compile(copy, dynamic=False, fullgraph=True)
        return graphs[key](*operands)

    return call


def compiled_pullback(
    function: BatchFunction, wanted: Sequence[bool], shared_wanted: Sequence[bool]
) -> Pullback:
    """Make the gradient of a function on batches, as `GradientAdapter.pullback` does, compiled.

    ``shared_wanted`` are the flags of the leaves of the shared parameters.
    """
    flags = (*wanted, *shared_wanted)

    def gradient(
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        shared: Mapping[str, Any],
        cotangents: Sequence[Any],
    ) -> tuple[Sequence[Any], Any]:
        leaves, nest = tree_flatten(shared)
        inputs = [*arguments, *leaves]
        count = len(arguments)

        def outputs(*free: Any) -> list[Any]:
            found = iter(free)
            given = [next(found) if want else x for x, want in zip(inputs, flags, strict=True)]
            parts = as_tuple(function(given[:count], keywords, tree_unflatten(given[count:], nest)))
            return [
                part for part, slope in zip(parts, cotangents, strict=True) if slope is not None
            ]

        _, pull = torch.func.vjp(
            outputs, *(x for x, want in zip(inputs, flags, strict=True) if want)
        )
        slopes = iter(pull([slope for slope in cotangents if slope is not None]))
        every = [next(slopes) if want else None for want in flags]
        return every[:count], tree_unflatten(every[count:], nest)

    return one_graph_per_shape(gradient)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) and value.requires_grad else value


def _kind(value: Any) -> Hashable:
    """Give what a graph is bound to: all of a tensor but its values."""
    if not isinstance(value, torch.Tensor):
        return cast("Hashable", value)
    return value.shape, value.stride(), value.dtype, value.device, value.requires_grad
