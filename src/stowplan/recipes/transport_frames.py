"""Masks of a canvas as densities on work grids, and maps on work grids back in canvas pixels.

canonical mask -> crop of the pair -> padded to whole blocks -> summed over blocks -> work grid. A
box is half-open, (y0, y1, x0, x1), in pixels of the canvas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from array_api_compat import is_array_api_obj
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.recipes.known import is_count, on_host

__all__ = [
    "Density",
    "Frames",
    "box_shapes",
    "crop_bytes",
    "lift_density",
    "lift_vectors",
    "read_frames",
    "repeat_blocks",
    "work_grid",
]

Array = NDArray[np.float64]
Box = tuple[int, int, int, int]
Density = Literal["uniform", "boundary", "distance", "given"] | tuple[Literal["boundary"], float]
BAND = 4.0  # pixels of the boundary band


@dataclass(frozen=True, eq=False)
class Frames:
    """Masks, each held once, and the pairs of them.

    Attributes
    ----------
    masks : list of arrays (y, x)
        bool, or float64 densities.
    pairs : (pairs, 2) int
        Source and target of each pair, as places in `masks`.
    boxes : (pairs, 4) int
        Crop of each pair.
    density : str or tuple
        What makes a density of a mask.
    """

    masks: list[NDArray[Any]]
    pairs: NDArray[np.intp]
    boxes: NDArray[np.int64]
    density: Density

    def __len__(self) -> int:
        return len(self.pairs)

    def canvas(self, pair: int) -> tuple[int, int]:
        """Give the canvas of a pair, (height, width)."""
        height, width = self.masks[self.pairs[pair, 0]].shape
        return height, width

    def work_shapes(self, pool: int) -> NDArray[np.int64]:
        """Give the shape of each pair's work grid, (pairs, 2)."""
        return -(-box_shapes(self.boxes) // pool)

    def work_grids(self, pool: int) -> Iterator[tuple[Array, Array]]:
        """Give the densities of each pair on its work grid."""
        for (first, second), box in zip(self.pairs.tolist(), self.boxes.tolist(), strict=True):
            yield self._work_grid(first, box, pool), self._work_grid(second, box, pool)

    def _work_grid(self, place: int, box: Sequence[int], pool: int) -> Array:
        y0, y1, x0, x1 = box
        mask = self.masks[place]
        if self.density in ("uniform", "given"):
            return work_grid(mask[y0:y1, x0:x1], pool)
        whole = np.zeros((y1 - y0, x1 - x0))
        values, (t0, t1, l0, l1) = _depth(mask), _tight(mask)
        if self.density != "distance":
            width = BAND if self.density == "boundary" else float(self.density[1])
            values = np.where(values <= width, np.minimum(values, 1.0), 0.0)
        top, bottom, left, right = max(y0, t0), min(y1, t1), max(x0, l0), min(x1, l1)
        if top < bottom and left < right:
            part = values[top - t0 : bottom - t0, left - l0 : right - l0]
            whole[top - y0 : bottom - y0, left - x0 : right - x0] = part
        return work_grid(whole, pool)


def read_frames(
    source: Any,
    target: Any,
    pairs: Any,
    *,
    crop: Any,
    padding: int,
    density: Density,
) -> Frames:
    """Check masks and pair them, and give the crop of each pair.

    Raises
    ------
    DataError
        Naming the pair and the side: for masks of another type or shape, empty ones, canvases that
        differ within a pair, and pairs that there are not.
    """
    _check_density(density)
    if not (is_count(padding) or padding == 0) or isinstance(padding, bool):
        raise DataError(f"transport: padding={padding!r}; it counts pixels, from 0.")
    masks, chosen = _paired(source, target, pairs)
    given = density == "given"
    sides = _first_use(chosen)
    masks = [
        _mask(mask, sides.get(place, f"mask {place}"), given) for place, mask in enumerate(masks)
    ]
    for pair, (first, second) in enumerate(chosen.tolist()):
        if masks[first].shape != masks[second].shape:
            raise DataError(
                f"transport: pair {pair}: the source's canvas is {masks[first].shape}, the "
                f"target's {masks[second].shape}. Draw both on one canvas (y, x)."
            )
    tight = {}
    for place in sorted(set(chosen.reshape(-1).tolist())):
        edges = _edges(masks[place])
        if edges is None:
            raise DataError(
                f"transport: {sides[place]} is empty: there is nothing to transport. Leave the "
                "pair out."
            )
        tight[place] = edges
    boxes = [
        _box(crop, padding, masks[first].shape, tight[first], tight[second], pair)
        for pair, (first, second) in enumerate(chosen.tolist())
    ]
    return Frames(masks, chosen, np.array(boxes, np.int64).reshape(-1, 4), density)


def box_shapes(boxes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give heights and widths of boxes, (pairs, 2).

    >>> box_shapes(np.array([[0, 3, 10, 15]])).tolist()
    [[3, 5]]
    """
    sides: NDArray[np.int64] = boxes[:, 1::2] - boxes[:, ::2]
    return sides


def crop_bytes(boxes: NDArray[np.int64]) -> int:
    """Bytes that the largest crop takes while it is summed over blocks, twice in float64."""
    return 2 * 8 * int(box_shapes(boxes).prod(axis=1).max(initial=0))


def work_grid(values: NDArray[Any], pool: int) -> Array:
    """Sum blocks of pool x pool pixels; the bottom and the right are filled up with zeros.

    >>> work_grid(np.ones((3, 2)), 2).tolist()
    [[4.0], [2.0]]
    """
    height, width = values.shape
    rows, columns = -(-height // pool), -(-width // pool)
    whole = np.zeros((rows * pool, columns * pool))
    whole[:height, :width] = values
    lines = whole.reshape(rows, pool, columns * pool).sum(axis=1)  # along x, where numbers lie
    found: Array = lines.reshape(rows, columns, pool).sum(axis=2)
    return found


def lift_density(values: Array, box: Sequence[int], pool: int) -> Array:
    """Share each block's mass among its pixels in the box, (y1 - y0, x1 - x0).

    >>> lift_density(np.array([[4.0], [2.0]]), (0, 3, 0, 2), 2).tolist()
    [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    sides = (box[1] - box[0], box[3] - box[2])
    heights, widths = (
        np.minimum(pool, side - pool * np.arange(-(-side // pool))) for side in sides
    )
    return repeat_blocks(values / (heights[:, None] * widths), box, pool)


def lift_vectors(values: Array, box: Sequence[int], pool: int) -> Array:
    """Give every pixel of the box the vector of its block, in pixels, (y1 - y0, x1 - x0, 2)."""
    return repeat_blocks(pool * values, box, pool)


def repeat_blocks(values: Array, box: Sequence[int], pool: int) -> Array:
    """Give every pixel of the box the value of its block."""
    height, width = box[1] - box[0], box[3] - box[2]
    wide = np.repeat(values, pool, axis=1)[:, :width]
    return wide.take(np.arange(height) // pool, axis=0)  # whole rows: the one large copy


def _paired(source: Any, target: Any, pairs: Any) -> tuple[list[Any], NDArray[np.intp]]:
    """Give all masks, and which of them are source and target of each pair."""
    if target is not None:
        if pairs is not None:
            raise DataError(
                "transport: pairs= chooses from one stack. Give a stack alone, solve(stack, "
                "pairs=...), or two lists of masks without pairs."
            )
        first, second = _listed(source, "source"), _listed(target, "target")
        if len(first) != len(second):
            raise DataError(
                f"transport: {len(first)} sources, but {len(second)} targets; give one target for "
                "each source."
            )
        places = np.arange(len(first), dtype=np.intp)
        return first + second, np.stack([places, places + len(first)], axis=1)
    if pairs is None:
        raise DataError(
            "transport: there is no target. Give two lists of masks, or say which masks of one "
            'stack belong together: pairs=[(0, 1), ...] or pairs="consecutive".'
        )
    masks = _listed(source, "source")
    if isinstance(pairs, str):
        if pairs != "consecutive":
            raise DataError(f'transport: pairs={pairs!r}; the only word it takes is "consecutive".')
        if len(masks) < 2:
            raise DataError(f"transport: consecutive pairs need two masks, not {len(masks)}.")
        return masks, np.array(list(pairwise(range(len(masks)))), np.intp)
    try:
        table = np.asarray(pairs)
    except ValueError:
        table = np.empty(0)
    if table.ndim != 2 or table.shape[1:] != (2,) or table.dtype.kind not in "iu":
        raise DataError(f"transport: pairs={pairs!r}; give places of masks, [(0, 1), (1, 2)].")
    outside = (table < 0) | (table >= len(masks))
    if outside.any():
        pair = int(np.argmax(outside.any(axis=1)))
        raise DataError(
            f"transport: pair {pair} is {tuple(table[pair].tolist())}, but the stack holds masks "
            f"0 to {len(masks) - 1}."
        )
    return masks, table.astype(np.intp)


def _listed(masks: Any, side: str) -> list[Any]:
    if isinstance(masks, str | bytes) or not hasattr(masks, "__len__"):
        raise DataError(
            f"transport: the {side} is of type {type(masks).__name__}; give a list of masks (y, x) "
            "or a stack (t, y, x). stowplan.io.masks.read reads files."
        )
    if is_array_api_obj(masks) and len(masks.shape) != 3:
        raise DataError(
            f"transport: the {side} is an array of shape {tuple(masks.shape)}; a stack is "
            "(t, y, x), and one mask is a list of it: [mask]."
        )
    return [masks[place] for place in range(len(masks))]


def _first_use(pairs: NDArray[np.intp]) -> dict[int, str]:
    """Name each mask by the pair and the side that use it first."""
    names: dict[int, str] = {}
    for pair, (first, second) in enumerate(pairs.tolist()):
        names.setdefault(first, f"the source of pair {pair}")
        names.setdefault(second, f"the target of pair {pair}")
    return names


def _mask(mask: Any, name: str, given: bool) -> NDArray[Any]:
    """Give a mask on the host, or a density."""
    host = on_host(mask)
    if host.ndim != 2 or 0 in host.shape:
        raise DataError(
            f"transport: {name} has shape {host.shape}; a mask is (y, x). "
            "Give one for each pair: a stack is a list of masks, list(stack)."
        )
    if not given:
        if host.dtype != np.bool_:
            raise DataError(
                f"transport: {name} is {host.dtype}; a mask is bool. Say what is inside, mask > 0, "
                'or pass its values as masses, density="given".'
            )
        return host
    if host.dtype.kind not in "biuf":
        raise DataError(f"transport: {name} is {host.dtype}; densities are real numbers.")
    wrong = ~(np.isfinite(host) & (host >= 0)) if host.dtype.kind == "f" else host < 0
    if wrong.any():
        y, x = (int(place) for place in np.argwhere(wrong)[0])
        raise DataError(
            f"transport: {name} has {int(wrong.sum())} densities that are negative or not finite, "
            f"first {host[y, x]} at {(y, x)}. Masses are numbers from 0."
        )
    return host.astype(np.float64, copy=False)


def _tight(mask: NDArray[Any]) -> Box:
    """Give the least box of a mask that is not empty."""
    edges = _edges(mask)
    assert edges is not None
    return edges


def _edges(mask: NDArray[Any]) -> Box | None:
    """Give the least box of what is above 0; None where nothing is."""
    inside = mask if mask.dtype == np.bool_ else mask > 0
    rows = np.flatnonzero(inside.any(axis=1))
    if not len(rows):
        return None
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(inside[y0:y1].any(axis=0))
    return y0, y1, int(columns[0]), int(columns[-1]) + 1


def _box(
    crop: Any, padding: int, canvas: tuple[int, ...], first: Box, second: Box, pair: int
) -> list[int]:
    """Give the crop of a pair, clamped to the canvas."""
    height, width = canvas
    if isinstance(crop, str):
        if crop != "union":
            raise DataError(f'transport: crop={crop!r}; give "union" or a box (y0, y1, x0, x1).')
        y0, y1 = min(first[0], second[0]) - padding, max(first[1], second[1]) + padding
        x0, x1 = min(first[2], second[2]) - padding, max(first[3], second[3]) + padding
    else:
        try:
            y0, y1, x0, x1 = (int(edge) for edge in crop)
            whole = all(int(edge) == edge for edge in crop)
        except (TypeError, ValueError):
            whole = False
        if not whole:
            raise DataError(f"transport: crop={crop!r}; a box is four pixels (y0, y1, x0, x1).")
    found = [max(y0, 0), min(y1, height), max(x0, 0), min(x1, width)]
    if found[0] >= found[1] or found[2] >= found[3]:
        raise DataError(
            f"transport: crop={crop!r} holds no pixel of the canvas {canvas} of pair {pair}; a "
            "box is half-open, (y0, y1, x0, x1)."
        )
    return found


def _depth(mask: NDArray[Any]) -> Array:
    """Give each pixel's distance to the background, which begins at the edge of the canvas."""
    from scipy.ndimage import distance_transform_edt  # 0.1 s to import

    y0, y1, x0, x1 = _tight(mask)
    framed = np.pad(mask[y0:y1, x0:x1], 1)
    depth: Array = distance_transform_edt(framed)[1:-1, 1:-1]
    return depth


def _check_density(density: Any) -> None:
    if isinstance(density, str) and density in ("uniform", "boundary", "distance", "given"):
        return
    if isinstance(density, tuple) and len(density) == 2 and density[0] == "boundary":
        width = density[1]
        number = isinstance(width, int | float | np.number) and not isinstance(width, bool)
        if number and 0 < width < math.inf:
            return
    plain = isinstance(density, str | tuple | float | int)
    shown = f"density={density!r}" if plain else f"density is of type {type(density).__name__}"
    raise DataError(
        f'transport: {shown}; give "uniform", "boundary" or ("boundary", pixels), '
        '"distance", or "given" for densities in place of masks.'
    )
