r"""Unbalanced entropic optimal transport between two densities on one grid, by scaling iterations.

minimise <P, C> + eps KL(P|R) + rho KL(P 1|a) + rho KL(P^T 1|b), C = |x - y|^2, with
KL(p|q) = sum p log(p/q) - p + q, tau = rho/(rho + eps), r = rho/eps. ``reference`` is
``"product"``, R = a b^T, or ``"counting"``, R = 1 on the support. Potentials have no unit:
P = a_i b_j exp(F_i + G_j - C_ij/eps). ``sharpness`` is spacing^2/eps, the cost of a step of one
pixel in units of eps, so that nothing here has a unit.

`finished` gives an item up where a sum has lost what its support needs; a ``tile`` loses nothing,
see `stowplan.kernels.transport_sums`.

Source: L. Chizat, G. Peyre, B. Schmitzer and F.-X. Vialard, Math. Comp. 87, 2563 (2018);
translation-invariant steps: T. Sejourne, F.-X. Vialard and G. Peyre, AISTATS 2022;
over-relaxation: A. Thibault, L. Chizat, C. Dossal and N. Papadakis, Algorithms 14, 143 (2021).
"""

import math
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from stowplan.declaration import kernel
from stowplan.kernels.transport_start import best_relaxation, guess_on_grid, guess_on_points
from stowplan.kernels.transport_sums import (
    Grid,
    Points,
    floor,
    moments,
    neighbours,
    point_costs,
    tiled,
    tiled_moments,
)
from stowplan.special import exp_without_underflow

__all__ = [
    "EVERY",
    "TransportMaps",
    "density_slope",
    "finished",
    "finished_points",
    "maps",
    "maps_points",
    "start",
    "start_points",
    "step",
    "step_points",
]

EVERY = 10
"""Steps between two looks at the error; part of the result."""
PLAIN_STEPS = 2
BOLDER = 0.05
"""Share of what is left to 2 that over-relaxation begins above the best one for Gaussians."""
FASTEST = 1.95
"""Largest over-relaxation that is tried; where the error grows, less and less."""

_STATIC = ("reference", "balanced")
_FILL = {"source": 0.0, "target": 0.0}
_GRID = {"ragged": ("y", "x"), "fill": _FILL}
_LISTS = {"ragged": ("n", "m"), "fill": _FILL}


class TransportMaps(NamedTuple):
    """What a pair of potentials says, all in units of eps and pixels."""

    cost: Any  # (...) sum of P times squared steps, pixel^2
    primal: Any  # (...) objective / eps
    gap: Any  # (...) (primal - dual) / eps
    mass: Any  # (...) transported
    error: Any  # (...) L1 error of both marginals
    destroyed: Any  # (..., y, x) source that is not transported
    created: Any  # (..., y, x) target that nothing is transported to
    velocity: Any  # (..., y, x, 2) mean step (dy, dx) of what leaves a pixel, in pixels


def start(
    source, target, sharpness, *, tau, relaxation, balanced=False, adaptive=True, tile=0
):  # fmt: skip
    """Give the state from which `step` goes on: a guess, logarithms, and the two matrices.

    ``relaxation`` is the weight of steps, or, where they are ``adaptive``, the largest to begin
    with. The guess is that of `stowplan.kernels.transport_start`.
    """
    tau = 1.0 if balanced else tau
    guess, theta = guess_on_grid(source, target, sharpness, tau)
    state = _beginning(source, target, guess / tau, _weight(theta, relaxation, adaptive))
    if not tile:
        state["rows"] = neighbours(sharpness, source.shape[-2])
        state["columns"] = neighbours(sharpness, source.shape[-1])
    return state


@kernel(
    "(y,x),(y,x),()->(y,x),(y,x)",
    **_GRID,
    static=(*_STATIC, "adaptive", "tile"),
    work="y * x * (24 * (y + x) + 1500)",  # ns on a CPU of some 60 steps
    memory="16 * y * x + 2 * (y * y + x * x)",
)
def step(
    source,
    target,
    sharpness,
    *,
    age,
    state,
    tau,
    reference="product",
    balanced=False,
    adaptive=True,
    tile=0,
):
    """Improve both potentials once, ``(y,x),(y,x),()->(y,x),(y,x)``; for ``sp.iterate``.

    Parameters
    ----------
    source, target : array (..., y, x)
        Densities a and b, padding 0.
    sharpness : array (...)
        spacing^2/eps.
    age : int array (...)
        Steps taken before.
    state : dict
        From `start`, or the last step.
    tau : number
        rho/(rho + eps) in (0, 1); ignored where `balanced`, which is tau = 1.
    reference, balanced, tile
        See the module.
    adaptive : bool
        Whether over-relaxation follows the error.
    """
    terms = _Terms(tau, reference, balanced)
    return _step(source, age, state, terms, Grid(state, sharpness, tile), adaptive)


def finished(
    state, source, target, *, tau, threshold, reference="product", balanced=False, tile=0
):  # fmt: skip
    """Say which rows have converged, and which cannot: (...) bool each.

    A row has failed where its state is not finite, and where a sum has lost what the support needs.
    """
    terms = _Terms(tau, reference, balanced)
    return _finished(source, target, state, terms, threshold, lossless=bool(tile))


def start_points(
    source,
    target,
    source_points,
    target_points,
    sharpness,
    *,
    tau,
    relaxation,
    balanced=False,
    adaptive=True,
):
    """Give the state from which `step_points` goes on, as `start`, with the matrix of C/eps."""
    tau = 1.0 if balanced else tau
    given = source, target, source_points, target_points, sharpness
    guess, theta = guess_on_points(*given, tau)
    weight = _weight(theta, relaxation, adaptive)
    state = _beginning(source[..., None], target[..., None], guess[..., None] / tau, weight)
    state["cost"] = point_costs(source_points, target_points, sharpness)
    return state


@kernel(
    "(n),(m),(n,d),(m,d),()->(n,1),(m,1)",
    **_LISTS,
    static=(*_STATIC, "adaptive"),
    work="1500 * n * m",  # ns on a CPU of some 60 steps
    memory="5 * n * m",
)
def step_points(
    source,
    target,
    source_points,
    target_points,
    sharpness,
    *,
    age,
    state,
    tau,
    reference="product",
    balanced=False,
    adaptive=True,
):
    """Improve both potentials of weighted points once, ``(n),(m),(n,d),(m,d),()->(n,1),(m,1)``.

    As `step`, with densities source (..., n) and target (..., m), padding 0, anywhere:
    source_points (..., n, d) and target_points (..., m, d), any padding. sharpness is 1/eps.
    """
    terms = _Terms(tau, reference, balanced)
    return _step(source[..., None], age, state, terms, Points(state["cost"]), adaptive)


def finished_points(state, source, target, *, tau, threshold, reference="product", balanced=False):
    """Say which rows have converged and which have failed, as `finished`."""
    terms = _Terms(tau, reference, balanced)
    a, b = source[..., None], target[..., None]
    return _finished(a, b, state, terms, threshold, lossless=True)


@kernel(
    "(y,x),(y,x),(y,x),(y,x),()->(),(),(),(),(),(y,x),(y,x),(y,x,2)",
    **_GRID,
    static=(*_STATIC, "tile"),
    work="y * x * (2.4 * (y + x) + 150)",
    memory="24 * y * x + 6 * (y * y + x * x)",
)
def maps(
    source,
    target,
    source_potential,
    target_potential,
    sharpness,
    *,
    tau,
    reference="product",
    balanced=False,
    tile=0,
):
    """Give costs, masses, velocity, destroyed and created mass,
    ``(y,x),(y,x),(y,x),(y,x),()->(),(),(),(),(),(y,x),(y,x),(y,x,2)``.

    Parameters as in `step`, with its two potentials (..., y, x). Returns `TransportMaps`; the
    velocity is 0 where the source is.
    """
    f, g = source_potential, target_potential
    z_source, z_target = _log_density(source) + f, _log_density(target) + g
    if tile:
        onto_target = tiled(z_source, sharpness, tile)
        onto_source, steps, squares = tiled_moments(z_target, sharpness, tile)
    else:
        onto_target, onto_source, steps, squares = moments(z_source, z_target, sharpness)
    terms = _Terms(tau, reference, balanced)
    return _maps(source, target, f, g, onto_source, onto_target, steps, squares, terms)


@kernel(
    "(n),(m),(n,1),(m,1),(n,d),(m,d),()->(),(),(),(),(),(n),(m),(n,d)",
    **_LISTS,
    static=_STATIC,
    work="100 * n * m",
    memory="8 * n * m",
)
def maps_points(
    source,
    target,
    source_potential,
    target_potential,
    source_points,
    target_points,
    sharpness,
    *,
    tau,
    reference="product",
    balanced=False,
):
    """Give what `maps` gives, of weighted points,
    ``(n),(m),(n,1),(m,1),(n,d),(m,d),()->(),(),(),(),(),(n),(m),(n,d)``.

    Parameters as in `step_points`. Returns `TransportMaps` in the unit of the points, with
    destroyed (..., n), created (..., m) and velocity (..., n, d), the mean step of each point.
    """
    xp = array_namespace(source, target)
    a, b, f, g = source[..., None], target[..., None], source_potential, target_potential
    costs = point_costs(source_points, target_points, sharpness)
    spreading = Points(costs)
    onto_target = spreading.onto_target(_log_density(a) + f)
    z_target = _log_density(b) + g
    onto_source = spreading.onto_source(z_target)
    shares = xp.exp(xp.matrix_transpose(z_target) - costs - onto_source)  # (..., n, m)
    apart = target_points[..., None, :, :] - source_points[..., :, None, :]
    steps = xp.sum(shares[..., None] * apart, axis=-2)
    squares = xp.sum(shares * xp.sum(apart * apart, axis=-1), axis=-1)[..., None]
    terms = _Terms(tau, reference, balanced)
    found = _maps(a, b, f, g, onto_source, onto_target, steps[..., None, :], squares, terms)
    return found._replace(
        destroyed=found.destroyed[..., 0],
        created=found.created[..., 0],
        velocity=found.velocity[..., 0, :],
    )


def density_slope(density, potential, total, *, tau, reference="product", balanced=False):
    """Give the gradient of the objective over eps by a density, the coupling fixed, (..., y, x).

    With e = exp(-F/r) it is total - e + r (1 - e) for the product reference, where ``total`` (...)
    is the mass of the other side, and r (1 - e) for the counting one, F being the potential with
    log a; there it is 0 where the density is 0, whose support is fixed.
    """
    xp = array_namespace(density, potential)
    terms = _Terms(tau, reference, balanced)
    f = terms.potential(potential, _log_density(density))
    if balanced:  # r (1 - e) tends to F
        slope = f if terms.counting else f + total - 1
    else:
        shrunk = -xp.expm1(-f / terms.r)  # 1 - e
        slope = terms.r * shrunk if terms.counting else terms.r * shrunk + total - 1 + shrunk
    if terms.counting:
        slope = xp.where(density > 0, slope, xp.zeros_like(slope))
    return slope


def _weight(theta, relaxation, adaptive):
    """Give the over-relaxation of the first steps, (...)."""
    xp = array_namespace(theta)
    given = relaxation * xp.ones_like(theta)
    if not adaptive:
        return given
    best = best_relaxation(theta)
    return xp.minimum(best + BOLDER * (2 - best), given)


def _beginning(source, target, goal, weight):
    """Give the state whose first step begins with a goal for the target's potential, over tau."""
    xp = array_namespace(source, target)
    return {
        "source_potential": xp.zeros_like(source),
        "target_potential": xp.zeros_like(target),
        "onto_source": xp.zeros_like(source),
        "onto_target": -goal,
        "log_source": _log_density(source),
        "log_target": _log_density(target),
        "relaxation": weight,
        "fastest": xp.full_like(weight, FASTEST),
        "change": xp.full_like(weight, math.inf),
    }


def _step(source, age, state, terms, spreading, adaptive):
    xp = array_namespace(source)
    log_a, log_b = state["log_source"], state["log_target"]
    one = xp.ones_like(state["relaxation"])
    weight = xp.where(age < PLAIN_STEPS, one, state["relaxation"])[..., None, None]
    g = state["target_potential"]
    g = g + weight * (terms.goal(state["onto_target"], log_b) - g)
    onto_source = spreading.onto_source(log_b + g)
    f = state["source_potential"]
    move = terms.goal(onto_source, log_a) - f
    f = f + weight * move
    if not terms.balanced:
        shift = terms.shift(f, g, log_a, log_b)
        f, g, onto_source = f + shift, g - shift, onto_source - shift
    onto_target = spreading.onto_target(log_a + f)
    found = {
        **state,
        "source_potential": f,
        "target_potential": g,
        "onto_source": onto_source,
        "onto_target": onto_target,
    }
    if not adaptive:
        return found
    looks = (age + 1) % EVERY == 0
    change = _total(source * xp.abs(move))
    adapted, fastest = _relaxed(state["relaxation"], state["fastest"], change, state["change"])
    return {
        **found,
        "relaxation": xp.where(looks, adapted, state["relaxation"]),
        "fastest": xp.where(looks, fastest, state["fastest"]),
        "change": xp.where(looks, change, state["change"]),
    }


def _finished(source, target, state, terms, threshold, *, lossless):
    xp = array_namespace(source, target)
    log_a, log_b = state["log_source"], state["log_target"]
    f, g = state["source_potential"], state["target_potential"]
    error = 0.0
    for density, log_density, potential, spread, z_other in (
        (source, log_a, f, state["onto_source"], log_b + g),
        (target, log_b, g, state["onto_target"], log_a + f),
    ):
        found, wanted = terms.marginals(potential, log_density, spread)
        each = xp.abs(found - wanted)
        if not lossless:
            lost = (density > 0) & (spread < floor(z_other))
            each = xp.where(lost, math.inf * xp.ones_like(each), each)
        error = error + _total(each)
    return error < threshold, ~xp.isfinite(error)


def _maps(source, target, f, g, onto_source, onto_target, steps, squares, terms):
    xp = array_namespace(source, target)
    log_a, log_b = _log_density(source), _log_density(target)
    at_source = terms.marginals(f, log_a, onto_source)
    at_target = terms.marginals(g, log_b, onto_target)
    left, arrived = at_source[0], at_target[0]
    mass = _total(left)
    reference = terms.reference_mass(source, target)
    potentials = terms.potential(f, log_a), terms.potential(g, log_b)
    primal = _total(left * potentials[0]) + _total(arrived * potentials[1]) + reference - mass
    primal = primal + terms.divergence(left, source) + terms.divergence(arrived, target)
    dual = terms.dual(potentials[0], source) + terms.dual(potentials[1], target)
    none = xp.zeros_like(source[..., :1, :1])
    return TransportMaps(
        _total(left * squares),
        primal,
        primal - dual - reference + mass,
        mass,
        _marginal_error(at_source, at_target),
        xp.maximum(source - left, none),
        xp.maximum(target - arrived, none),
        xp.where((source > 0)[..., None], steps, xp.zeros_like(steps)),
    )


class _Terms:
    """What tau and the reference make of potentials."""

    def __init__(self, tau, reference, balanced):
        self.tau = 1.0 if balanced else tau
        self.counting = reference == "counting"
        self.balanced = balanced
        self.r = None if balanced else tau / (1 - tau)

    def potential(self, f, log_density):
        """Give F, or with the counting reference F + log a, off the support F."""
        return f + _on_support(log_density) if self.counting else f

    def goal(self, spread, log_density):
        """Give the potential whose marginal is right for what the other side spreads."""
        goal = -self.tau * spread
        if self.counting and not self.balanced:
            goal = goal - (1 - self.tau) * _on_support(log_density)
        return goal

    def shift(self, f, g, log_a, log_b):
        """Give the best constant to add to f and take from g."""
        r = self.r
        masses = [
            _log_total(log_density - self.potential(potential, log_density) / r)
            for potential, log_density in ((f, log_a), (g, log_b))
        ]
        return 0.5 * r * (masses[0] - masses[1])

    def marginals(self, f, log_density, spread):
        """Give the marginal of the plan, and what it is at the optimum."""
        xp = array_namespace(f)
        wanted = log_density
        if not self.balanced:
            wanted = log_density - self.potential(f, log_density) / self.r
        return xp.exp(log_density + f + spread), xp.exp(wanted)

    def reference_mass(self, source, target):
        """Give the mass of R."""
        if not self.counting:
            return _total(source) * _total(target)
        xp = array_namespace(source, target)
        counts = [_total(xp.astype(part > 0, part.dtype)) for part in (source, target)]
        return counts[0] * counts[1]

    def divergence(self, marginal, density):
        """Give r KL(marginal|density), 0 where balanced."""
        xp = array_namespace(marginal)
        if self.balanced:
            return 0.0 * _total(marginal)
        real = density > 0
        one = xp.ones_like(density)
        excess = xp.where(real, marginal / xp.where(real, density, one) - 1, 0 * one)
        log = xp.log1p(xp.where(excess > -1, excess, 0 * one))
        each = density * ((1 + excess) * log - excess)
        return self.r * _total(each)

    def dual(self, potential, density):
        """Give the dual's term of one side."""
        xp = array_namespace(potential)
        if self.balanced:
            return _total(density * potential)
        return -self.r * _total(density * xp.expm1(-potential / self.r))


def _relaxed(weight, fastest, change, last):
    """Raise over-relaxation where errors fall more slowly than it allows; drop it if they grow.

    An iteration whose plain error falls by theta a step falls by rate with
    (rate + w - 1)^2 = rate w^2 theta, which gives the best w. Where errors grow, the largest
    weight to come is lowered, too, so that none goes on between two weights for ever.
    Source: L. A. Hageman and D. M. Young, Applied Iterative Methods (1981), chapter 9.
    """
    xp = array_namespace(weight, change)
    one = xp.ones_like(change)
    known = xp.isfinite(last) & (last > 0) & (change > 0)
    ratio = xp.where(known, change / xp.where(known, last, one), one)
    rate = ratio ** (1 / EVERY)
    best = best_relaxation((rate + weight - 1) ** 2 / (rate * weight**2))
    slow = (rate < 1) & (rate > weight - 1 + 0.04)
    raised = xp.where(slow, xp.maximum(weight + 0.7 * (best - weight), weight), weight)
    adapted = xp.where(ratio > 2, 1 + 0.7 * (weight - 1), raised)
    fastest = xp.where(ratio > 1, 1 + 0.985 * (fastest - 1), fastest)
    return xp.minimum(adapted, fastest), fastest


def _log_density(density):
    """Give log a, -inf where there is none."""
    xp = array_namespace(density)
    real = density > 0
    one = xp.ones_like(density)
    return xp.where(real, xp.log(xp.where(real, density, one)), -math.inf * one)


def _on_support(log_density):
    xp = array_namespace(log_density)
    return xp.where(log_density > -math.inf, log_density, xp.zeros_like(log_density))


def _log_total(z):
    """Give log sum exp over both axes, (..., 1, 1)."""
    xp = array_namespace(z)
    top = xp.max(z, axis=(-2, -1), keepdims=True)
    shares = exp_without_underflow(z - top)
    return xp.log(xp.sum(shares, axis=(-2, -1), keepdims=True)) + top


def _total(values):
    xp = array_namespace(values)
    return xp.sum(values, axis=(-2, -1))


def _marginal_error(at_source, at_target):
    xp = array_namespace(at_source[0])
    return _total(xp.abs(at_source[0] - at_source[1])) + _total(xp.abs(at_target[0] - at_target[1]))
