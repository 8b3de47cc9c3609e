"""Sums of exp(z - C/eps) over grids and point lists, in logarithms.

exp(-C/eps) is a matrix along y times one along x, so that applying it takes H W (H + W) products
instead of (H W)^2. Sums are taken relative to the largest summand of an item, which loses what is
``exp(-700)`` of it (``exp(-80)`` in float32): what is below `floor` is not exact. With ``tile``
above 0, so few pixels that ``sharpness * tile**2`` is below 600 (60), every tile of a line has a
scale of its own, and nothing is lost.
"""

import math

from array_api_compat import array_namespace, device

__all__ = [
    "Grid",
    "Points",
    "floor",
    "moments",
    "neighbours",
    "point_costs",
    "tiled",
    "tiled_moments",
]


class Grid:
    """log sum_j exp(z_j - C_ij/eps) on a grid."""

    def __init__(self, state, sharpness, tile):
        self.state, self.sharpness, self.tile = state, sharpness, tile

    def onto_target(self, z):
        """Give the sum at each place for z (..., y, x) on the other side."""
        if self.tile:
            return tiled(z, self.sharpness, self.tile)
        xp = array_namespace(z)
        top = xp.max(z, axis=(-2, -1), keepdims=True)
        rows, columns = self.state["rows"], self.state["columns"]
        sums = xp.matmul(rows, xp.matmul(xp.exp(z - top), columns))
        least = float(xp.finfo(z.dtype).smallest_normal)
        return xp.log(xp.maximum(sums, least * xp.ones_like(top))) + top

    onto_source = onto_target


class Points:
    """The same between points, whose costs C/eps are held, (..., n, m)."""

    def __init__(self, costs):
        self.costs = costs

    def onto_target(self, z):
        """Give the sum at each target, (..., m, 1), for z (..., n, 1)."""
        return self._sums(z - self.costs, -2)

    def onto_source(self, z):
        """Give the sum at each source, (..., n, 1), for z (..., m, 1)."""
        xp = array_namespace(z)
        return self._sums(xp.matrix_transpose(z) - self.costs, -1)

    def _sums(self, logs, axis):
        xp = array_namespace(logs)
        top = xp.max(logs, axis=axis, keepdims=True)
        sums = xp.log(xp.sum(xp.exp(logs - top), axis=axis, keepdims=True)) + top
        return sums if axis == -1 else xp.matrix_transpose(sums)


def floor(z):
    """Give the least sum of `Grid` without tiles that is exact, (..., 1, 1)."""
    xp = array_namespace(z)
    info = xp.finfo(z.dtype)
    below = math.log(float(info.smallest_normal)) - math.log(float(info.eps))
    count = z.shape[-2] * z.shape[-1]
    return xp.max(z, axis=(-2, -1), keepdims=True) + (below + math.log(count))


def point_costs(source_points, target_points, sharpness):
    """Give C/eps between points, (..., n, m)."""
    xp = array_namespace(source_points, target_points)
    apart = source_points[..., :, None, :] - target_points[..., None, :, :]
    return xp.sum(apart * apart, axis=-1) * sharpness[..., None, None]


def neighbours(sharpness, length):
    """Give exp(-C/eps) along one axis, (..., length, length)."""
    xp = array_namespace(sharpness)
    apart = _apart(xp, sharpness, length)
    return xp.exp(-(apart * apart) * sharpness[..., None, None])


def _apart(xp, like, length):
    """Give j - i, (length, length)."""
    place = xp.arange(length, dtype=like.dtype, device=device(like))
    return place[None, :] - place[:, None]


def moments(z_source, z_target, sharpness):
    """Give both spreads, and the mean step and squared step from each pixel of the source."""
    xp = array_namespace(z_source, z_target)
    height, width = z_source.shape[-2:]
    rows, columns = neighbours(sharpness, height), neighbours(sharpness, width)
    onto_target = Grid({"rows": rows, "columns": columns}, sharpness, 0).onto_target(z_source)
    top = xp.max(z_target, axis=(-2, -1), keepdims=True)
    scaled = xp.exp(z_target - top)
    along, across = xp.matmul(scaled, columns), xp.matmul(rows, scaled)
    least = float(xp.finfo(z_target.dtype).smallest_normal)
    sums = xp.maximum(xp.matmul(rows, along), least * xp.ones_like(top))
    dy, dx = _apart(xp, top, height), _apart(xp, top, width)
    moved_y = xp.matmul(rows * dy, along)
    moved_x = -xp.matmul(across, columns * dx)  # a matrix to the right is (from, to)
    squares = xp.matmul(rows * (dy * dy), along) + xp.matmul(across, columns * (dx * dx))
    steps = xp.stack([moved_y, moved_x], axis=-1) / sums[..., None]
    return onto_target, xp.log(sums) + top, steps, squares / sums


def tiled(z, sharpness, tile):
    """Give log sum_j exp(z_j - C_ij/eps) with a scale of its own for every tile."""
    xp = array_namespace(z)
    along_x, _ = _tiles_along(z, sharpness, tile)
    along_y, _ = _tiles_along(xp.matrix_transpose(along_x), sharpness, tile)
    return xp.matrix_transpose(along_y)


def tiled_moments(z, sharpness, tile):
    """Give that sum, the mean step (..., y, x, 2) and the mean squared step (..., y, x)."""
    xp = array_namespace(z)
    turn = xp.matrix_transpose
    along_x, (dx, dx2) = _tiles_along(z, sharpness, tile, ())
    carried = (turn(dx), turn(dx2))
    both, (dx, dx2, dy, dy2) = _tiles_along(turn(along_x), sharpness, tile, carried)
    return turn(both), xp.stack([turn(dy), turn(dx)], axis=-1), turn(dx2 + dy2)


def _tiles_along(z, sharpness, tile, carried=None):
    """Sum along the last axis: the logarithm, and weighted means.

    For tiles that begin d apart and places p and q in them, (d + q - p)^2 is
    d^2 - 2 d p + 2 d q + (q - p)^2. What depends on p or q alone goes to the logarithms, so that
    the matrix has no entry below exp(-sharpness tile^2).

    Means are those of the carried arrays, of the step and of its square; none if carried is None.
    """
    xp = array_namespace(z)
    length = z.shape[-1]
    count = -(-length // tile)
    lowest = -0.01 * float(xp.finfo(z.dtype).max)
    place = xp.arange(tile, dtype=z.dtype, device=device(z))
    first = tile * xp.arange(count, dtype=z.dtype, device=device(z))
    apart = first[None, :] - first[:, None]  # (to, from)
    each = sharpness[(...,) + (None,) * 4]  # (..., line, to, from, place)
    there = _in_tiles(z, tile, count, lowest)[..., None, :, :]
    there = there - 2 * apart[:, :, None] * place * each  # (..., line, to, from, q)
    top = xp.maximum(xp.max(there, axis=-1, keepdims=True), lowest * xp.ones_like(there[..., :1]))
    weights = xp.exp(there - top)
    between = neighbours(sharpness, tile)[..., None, None, :, :]
    sums = xp.matmul(weights, between)
    least = float(xp.finfo(z.dtype).smallest_normal) * xp.ones_like(top)
    bounded = xp.maximum(sums, least)
    here = (2 * apart[:, :, None] * place - apart[:, :, None] ** 2) * each
    logs = xp.log(bounded) + top + here  # (..., line, to, from, p)
    highest = xp.max(logs, axis=-2, keepdims=True)
    shares = xp.exp(logs - highest)
    total = xp.sum(shares, axis=-2, keepdims=True)
    found = _in_line(xp.log(total) + highest, length)
    if carried is None:
        return found, ()
    shares = shares / (total * bounded)
    step = _apart(xp, z, tile)  # q - p at (p, q)

    def mean(values):
        return _in_line(xp.sum(shares * values, axis=-2, keepdims=True), length)

    means = [
        mean(xp.matmul(weights * _in_tiles(part, tile, count, 0.0)[..., None, :, :], between))
        for part in carried
    ]
    once = xp.matmul(weights, between * -step)  # (q, p)
    twice = xp.matmul(weights, between * step**2)
    gap = apart[:, :, None]
    means.append(mean(gap * sums + once))
    means.append(mean(gap**2 * sums + 2 * gap * once + twice))
    return found, tuple(means)


def _in_tiles(values, tile, count, fill):
    """Cut the last axis into tiles, (..., count, tile), filled up at the end."""
    xp = array_namespace(values)
    missing = count * tile - values.shape[-1]
    if missing:
        more = xp.full(
            (*values.shape[:-1], missing), fill, dtype=values.dtype, device=device(values)
        )
        values = xp.concat([values, more], axis=-1)
    return xp.reshape(values, (*values.shape[:-1], count, tile))


def _in_line(values, length):
    """Join tiles (..., to, 1, place) to a line."""
    xp = array_namespace(values)
    *leading, count, _, tile = values.shape
    return xp.reshape(values, (*leading, count * tile))[..., :length]
