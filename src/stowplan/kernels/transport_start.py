r"""What is known of a pair of densities before the first step: those of two Gaussians.

Along each axis both densities count as Gaussians, of variances s^2 and t^2 and d = mean of the
source - mean of the target. With k = 1/eps, places y from the mean of the target,
u = 1/(2 s^2) + (1 - tau) k and v = 1/(2 t^2) + (1 - tau) k, the fixed point of the scaling is

    G(y) = tau (k - k^2/A) y^2 - tau k d B / (s^2 (A B - tau^2 k^2)) y + a constant,
    A = u/2 + sqrt(u^2/4 + tau k^2 u/v),  B = A v/u,

and plain steps bring means together by theta = tau^2 k^2 / (A B) a step, which says how much
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
    lines = []
    for axis in (-1, -2):
        a, b = xp.sum(source, axis=axis), xp.sum(target, axis=axis)
        places = xp.arange(a.shape[-1], dtype=a.dtype, device=device(a))
        lines.append(_along(a, b, places, places, sharpness, tau))
    (along_y, of_y), (along_x, of_x) = lines
    return along_y[..., :, None] + along_x[..., None, :], xp.maximum(of_y, of_x)


def guess_on_points(source, target, source_points, target_points, sharpness, tau):
    """Give G of weighted points, (..., m) at the targets (..., m, d), and the slowest theta."""
    xp = array_namespace(source, target)
    guess, slowest = xp.zeros_like(target), xp.zeros_like(sharpness)
    for axis in range(target_points.shape[-1]):
        places = source_points[..., axis], target_points[..., axis]
        along, theta = _along(source, target, *places, sharpness, tau)
        guess, slowest = guess + along, xp.maximum(slowest, theta)
    return guess, slowest


def best_relaxation(theta):
    """Give the best weight for plain steps whose error falls by theta, 2/(1 + sqrt(1 - theta))."""
    xp = array_namespace(theta)
    return 2 / (1 + xp.sqrt(xp.maximum(1 - theta, 1e-4 * xp.ones_like(theta))))


def _along(source, target, source_places, target_places, sharpness, tau):
    """Give G at the places of the target, (..., m), and theta (...), along one axis."""
    xp = array_namespace(source, target)
    k = sharpness[..., None]
    start, s2 = _mean_and_variance(source, source_places, k)
    end, t2 = _mean_and_variance(target, target_places, k)
    u, v = 0.5 / s2 + (1 - tau) * k, 0.5 / t2 + (1 - tau) * k
    first = u / 2 + xp.sqrt(u * u / 4 + tau * k * k * u / v)  # A
    second = first * v / u  # B
    both = first * second
    slope = tau * k * (start - end) * second / (s2 * (both - (tau * k) ** 2))
    y = target_places - end
    theta = (tau * k) ** 2 / both
    return (tau * (k - k * k / first) * y - slope) * y, theta[..., 0]


def _mean_and_variance(weights, places, k):
    """Give both of weighted places (..., n), (..., 1) each."""
    xp = array_namespace(weights)
    total = xp.sum(weights, axis=-1, keepdims=True)
    least = float(xp.finfo(weights.dtype).smallest_normal)
    shares = weights / xp.maximum(total, least * xp.ones_like(total))
    mean = xp.sum(shares * places, axis=-1, keepdims=True)
    apart = places - mean
    return mean, xp.sum(shares * apart * apart, axis=-1, keepdims=True) + NARROWEST / k
