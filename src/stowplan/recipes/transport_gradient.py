"""Gradients of the objective with respect to densities, by the envelope theorem.

The coupling, the units of mass and epsilon are held fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj
from numpy.typing import NDArray

from stowplan.adapters import framework_of, get_adapter
from stowplan.adapters.interface import GradientAdapter
from stowplan.errors import DataError, FrameworkError
from stowplan.kernels.transport import density_slope
from stowplan.recipes.transport_frames import repeat_blocks
from stowplan.recipes.transport_results import TransportResults

__all__ = ["arrays_of", "density_gradients", "followed_by", "solve_followed"]

Array = NDArray[np.float64]


Solve = Callable[[Any, Any], TransportResults]


def followed_by(source: Any, target: Any) -> GradientAdapter | None:
    """Give the framework that records a gradient of densities, None if none does.

    Raises
    ------
    DataError
        For one stack with pairs of its masks.
    FrameworkError
        For densities of two frameworks, and under a trace that has no values, ``jit`` or ``vmap``.
    """
    arrays = [part for side in (source, target) for part in arrays_of(side)]
    framework = framework_of(arrays)
    adapter = None if framework is None else get_adapter(framework)
    if adapter is None or not any(map(adapter.records, arrays)):
        return None
    if target is None:
        raise DataError(
            "transport: gradients are of two lists or stacks of densities, solve(source, target); "
            "a stack with pairs= has none."
        )
    if not all(map(adapter.has_values, arrays)):
        raise FrameworkError(
            "transport: when pairs have converged depends on values, which a traced function (jit, "
            "vmap) does not have. Call it outside of jit; jax.grad alone is fine."
        )
    return cast("GradientAdapter", adapter)


def solve_followed(
    adapter: GradientAdapter, source: Any, target: Any, solve: Solve
) -> TransportResults:
    """Solve on the host, with objectives that are a function of the densities, (pairs,)."""
    sides = (arrays_of(source), arrays_of(target))
    arrays = [*sides[0], *sides[1]]
    stacked = [is_array_api_obj(side) for side in (source, target)]
    kept: list[TransportResults] = []

    def forward(parameters: Sequence[Any]) -> Sequence[Any]:
        host = [adapter.to_host(part) for part in parameters]
        first, second = host[: len(sides[0])], host[len(sides[0]) :]
        found = solve(first[0] if stacked[0] else first, second[0] if stacked[1] else second)
        kept.append(found)
        return (_beside(adapter, found.primal, parameters[0]),)

    def backward(
        parameters: Sequence[Any], cotangents: Sequence[Any], wanted: Sequence[bool]
    ) -> Sequence[Any]:
        if cotangents[0] is None:
            return [None] * len(parameters)
        weights = adapter.to_host(cotangents[0])
        found: list[Any] = []
        for side, (name, parts) in enumerate(zip(("source", "target"), sides, strict=True)):
            flags = wanted[: len(parts)] if side == 0 else wanted[len(sides[0]) :]
            if not any(flags):
                found += [None] * len(parts)
                continue
            shapes = [shape for part in parts for shape in _canvases(part)]
            slopes = density_gradients(kept[-1], name, shapes)
            slopes = [weight * slope for weight, slope in zip(weights, slopes, strict=True)]
            given = [np.stack(slopes)] if stacked[side] else slopes
            for slope, part, want in zip(given, parts, flags, strict=True):
                found.append(_beside(adapter, slope, part) if want else None)
        return found

    (primal,) = adapter.differentiable(forward, backward, arrays)
    return replace(kept[-1], primal=primal)


def density_gradients(
    results: TransportResults, side: str, shapes: Sequence[tuple[int, ...]]
) -> list[Array]:
    """Give the gradient of each pair's objective by the density of a side, "source" or "target".

    Each is (y, x) over the canvas, whose shapes are given, and 0 off the crop. With the counting
    reference it is 0 where a density is 0: its support is fixed.
    """
    other = "target" if side == "source" else "source"
    units = results.units[:, 0 if side == "source" else 1]
    found = []
    for pair, shape in enumerate(shapes):
        density = np.asarray(results.work[side][pair], np.float64)
        potential = np.asarray(results.work[f"{side}_potential"][pair], np.float64)
        total = float(results.work[other][pair].sum())
        slope = density_slope(
            density, potential, total, tau=results.tau, reference=results.reference,
            balanced=results.tau == 1,
        )  # fmt: skip
        slope = slope * results.epsilon[pair] / units[pair]
        box = results.boxes[pair].tolist()
        whole = np.zeros(shape)
        whole[slice(*box[:2]), slice(*box[2:])] = repeat_blocks(slope, box, results.pool)
        found.append(whole)
    return found


def arrays_of(side: Any) -> list[Any]:
    """Give the arrays of a side, a stack or a list; none where it is neither."""
    if side is None:
        return []
    if is_array_api_obj(side):
        return [side]
    return list(side) if isinstance(side, list | tuple) else []


def _canvases(part: Any) -> list[tuple[int, ...]]:
    """Give the shape of each density; a traced array has no more than that by now."""
    *leading, height, width = part.shape
    return [(height, width)] * (leading[0] if leading else 1)


def _beside(adapter: Any, host: Array, like: Any) -> Any:
    xp = array_namespace(like)
    found = adapter.asarray(np.asarray(host, _host_dtype(like)), adapter.device_of(like))
    return xp.astype(found, like.dtype, copy=False)


def _host_dtype(like: Any) -> str:
    return str(like.dtype).rpartition(".")[2]
