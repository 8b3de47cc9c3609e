r"""What is known of a pair of densities before the first step: those of two Gaussians.

Along each axis both densities count as Gaussians, of variances s^2 and t^2 and d = mean of the
source - mean of the target. With k = 1/eps, places y from the mean of the target,
u = 1/(2 s^2) + (1 - tau) k and v = 1/(2 t^2) + (1 - tau) k, the fixed point of the scaling is

    G(y) = tau (k - k^2/A) y^2 - tau k d B / (s^2 (h^2 - tau^2 k^2)) y + a constant,
    h = sqrt(u v)/2 + sqrt(u v/4 + tau k^2),  A = h sqrt(u/v),  B = h sqrt(v/u),

and plain steps bring means together by theta = tau^2 k^2 / h^2 a step, which says how much
over-relaxation is best.

Source: H. Janati, B. Muzellec, G. Peyre and M. Cuturi, NeurIPS 2020 (the closed form);
L. A. Hageman and D. M. Young, Applied Iterative Methods (1981), chapter 9 (over-relaxation).
"""

from array_api_compat import array_namespace, device

__all__ = ["best_relaxation", "guess_on_grid", "guess_on_points"]

NARROWEST = 1e-6
"""Least variance in units of eps: a point has one, too."""


def guess_on_grid(source, target, sharpness, tau):
    """Give G of two densities (..., y, x) on one grid, (..., y, x), and the slower theta (...)."""
    xp = array_namespace(source, target)
    height, width = source.shape[-2:]
    y, x = (_centred(xp, source, length) for length in (height, width))
    y, x = y[:, None] + 0 * x, 0 * y[:, None] + x
    powers = xp.reshape(xp.stack([0 * x + 1, y, x, y * y, x * x], axis=-1), (-1, 5))
    lists = (xp.reshape(part, (*part.shape[:-2], 1, -1)) for part in (source, target))
    sums = xp.concat([xp.matmul(part, powers) for part in lists], axis=-2)  # (..., 2, 5)
    least = float(xp.finfo(sums.dtype).smallest_normal)
    sums = sums / xp.maximum(sums[..., :1], least * xp.ones_like(sums[..., :1]))
    means = sums[..., 1:3]
    variances = xp.maximum(_rounded(sums[..., 3:] - means * means), xp.zeros_like(means))
    means = _rounded(means)
    square, line, theta = _potential(means, variances, sharpness[..., None, None], tau)
    y, x = y - means[..., 1:, :1], x - means[..., 1:, 1:]
    along_y = (square[..., :1] * y + line[..., :1]) * y
    return along_y + (square[..., 1:] * x + line[..., 1:]) * x, theta


def guess_on_points(source, target, source_points, target_points, sharpness, tau):
    """Give G of weighted points, (..., m) at the targets (..., m, d), and the slowest theta."""
    xp = array_namespace(source, target)
    start, _, s2 = _gaussian(source, source_points)
    end, places, t2 = _gaussian(target, target_points)
    means, variances = (xp.concat(both, axis=-2) for both in ((start, end), (s2, t2)))
    square, line, theta = _potential(means, variances, sharpness[..., None, None], tau)
    return xp.sum((square * places + line) * places, axis=-1), theta


def best_relaxation(theta):
    """Give the best weight for plain steps whose error falls by theta, 2/(1 + sqrt(1 - theta))."""
    xp = array_namespace(theta)
    return 2 / (1 + xp.sqrt(xp.maximum(1 - theta, 1e-4 * xp.ones_like(theta))))


def _potential(means, variances, k, tau):
    """Give the coefficients of G in y^2 and y, (..., 1, d), and the largest theta, (...).

    Means and variances are those of source and target along each axis, (..., 2, d).
    """
    xp = array_namespace(means, variances)
    pull = tau * k
    variances = variances + NARROWEST / k
    narrow = 0.5 / variances + (1 - tau) * k  # u and v
    u, v = narrow[..., :1, :], narrow[..., 1:, :]
    root = xp.sqrt(u * v)
    h = root / 2 + xp.sqrt(root * root / 4 + tau * k * k)
    step = (means[..., 1:, :] - means[..., :1, :]) / variances[..., :1, :]
    line = pull * step * v * h / (root * (h * h - pull * pull))
    theta = xp.max((pull / h) ** 2, axis=(-2, -1))
    return pull * (1 - k * root / (u * h)), line, theta


def _gaussian(weights, points):
    """Give the mean of weighted points (..., n, d), places from there, and the variances."""
    xp = array_namespace(weights)
    total = xp.sum(weights, axis=-1, keepdims=True)
    least = float(xp.finfo(weights.dtype).smallest_normal)
    shares = (weights / xp.maximum(total, least * xp.ones_like(total)))[..., None, :]
    mean = xp.matmul(shares, points)
    apart = points - mean
    return mean, apart, xp.matmul(shares, apart * apart)


def _rounded(values):
    """Give multiples of 2^-20: padding, which changes the order of sums, then changes no bit."""
    xp = array_namespace(values)
    return xp.round(values * 2**20) / 2**20


def _centred(xp, like, length):
    """Give places along an axis from its middle."""
    return xp.arange(length, dtype=like.dtype, device=device(like)) - (length - 1) / 2
