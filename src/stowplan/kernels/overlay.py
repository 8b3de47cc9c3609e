r"""Gaussian volume overlay of two molecules: one is rotated and moved until both overlap most.

O = sum_ab K exp(-alpha/2 |r_a - r_b|^2), K = (pi / (2 alpha))^(3/2), over the heavy atoms of both,
and the score is the Tanimoto index S = O_AB / (O_AA + O_BB - O_AB). An item is a pair with a pose
to start from, (qw, qx, qy, qz, tx, ty, tz): x = R(q/|q|) b + t. Both molecules are given about
their own centres. The gradient is analytic, so that every framework climbs; the climber is Adam.

Padded atoms lie so far away, `APART`, that they overlap with nothing.

Source: J. A. Grant, M. A. Gallardo and B. T. Pickup, J. Comput. Chem. 17, 1653 (1996); Adam:
D. P. Kingma and J. Ba, ICLR 2015.
"""

import math

from array_api_compat import array_namespace, device

from stowplan.declaration import kernel
from stowplan.special import exp_without_underflow

__all__ = ["APART", "EVERY", "KEEP", "PATIENCE", "finished", "self_overlap", "start", "step"]

EVERY = 20
"""Steps of a round; no part of the result, since a row stands still once it has stopped."""
KEEP = ("best_pose", "best_score", "steps")
PATIENCE = 10
"""Steps in a row with a change of at most the least_change, after which one more stops."""
APART = {"reference": 1e4, "fit": 5e4}
"""Coordinates of padded atoms, Angstrom."""

_DECAY, _DECAY_SQUARES, _TINY = 0.9, 0.999, 1e-8


@kernel("(n,3)->()", ragged="n", work="n * n", memory="3 * n * n")
def self_overlap(points, *, mask, alpha):
    """Give the overlap of a molecule with itself, Angstrom^3, ``(n,3)->()``.

    Parameters
    ----------
    points : array (..., n, 3)
        Heavy atoms, Angstrom; any padding.
    mask : dict
        ``mask["n"]``, bool (..., n).
    alpha : number
        Exponent of a Gaussian, 1/Angstrom^2.
    """
    xp = array_namespace(points)
    squares = 0.0  # one coordinate after the other: sums over a last axis of 3 are slow
    for axis in range(3):
        apart = points[..., :, None, axis] - points[..., None, :, axis]
        squares = squares + apart * apart
    real = mask["n"][..., :, None] & mask["n"][..., None, :]
    each = xp.exp(-0.5 * alpha * squares)
    return _unit(alpha) * xp.sum(xp.where(real, each, xp.zeros_like(each)), axis=(-2, -1))


def start(reference, fit, pose, *, alpha):
    """Give the state from which `step` goes on, with what a row needs of its atoms, once."""
    xp = array_namespace(reference, fit, pose)
    one = xp.ones_like(reference[..., :1])
    squares = -0.5 * alpha * xp.sum(reference * reference, axis=-1, keepdims=True)
    factors = xp.concat([alpha * reference, -0.5 * alpha * one, squares], axis=-1)
    fit = xp.concat([fit, xp.ones_like(fit[..., :1])], axis=-1)
    nothing, count = xp.zeros_like(pose), xp.zeros_like(pose[..., 0])
    return {  # matrices as products take them: XLA is slow where it has to transpose
        "factors": _transposed(factors),  # (5, n)
        "reference": xp.concat([reference, one], axis=-1),  # (n, 4)
        "fit": fit,  # (m, 4)
        "fit_columns": _transposed(fit),
        "pose": pose,
        "mean": nothing,
        "mean_square": nothing,
        "best_pose": pose,
        "best_score": count - 1,
        "last_score": count + math.inf,
        "still": count,  # steps in a row without a change
        "steps": count,
    }


@kernel(
    "(n,3),(m,3),(7),()->(7),(),()",
    ragged=("n", "m"),
    fill=APART,
    work="150 * n * m + 500 * (n + m)",  # ns on a CPU of some 85 steps
    memory="5 * n * m + 40 * (n + m) + 100",
)
def step(
    reference, fit, pose, overlaps, *, age, state, alpha, least_change, most_steps, learning_rate
):
    """Climb once, ``(n,3),(m,3),(7),()->(7),(),()``; for ``sp.iterate``.

    Parameters
    ----------
    reference, fit : array (..., n, 3), (..., m, 3)
        Heavy atoms about the centre of their molecule, Angstrom, padding `APART`.
    pose : array (..., 7)
        Where the row starts: quaternion (w, x, y, z) of any length, and shift.
    overlaps : array (...)
        O_AA + O_BB.
    age : int array (...)
        Steps taken before; the state counts those before the row stopped.
    state : dict
        From `start`, or the last step.
    alpha : number
        Exponent of a Gaussian, 1/Angstrom^2.
    least_change : number
        A score that changes by it or less for more than `PATIENCE` steps stops the row; negative:
        none does.
    most_steps : number
        Steps after which a row stands still in any case.
    learning_rate : number
        Of Adam.
    """
    xp = array_namespace(reference, fit)
    pose = state["pose"]
    length = xp.sqrt(xp.sum(pose[..., :4] ** 2, axis=-1, keepdims=True))
    u = pose[..., :4] / length
    overlap, turning, shifting = _overlap_and_slopes(state, u, pose[..., 4:], alpha)
    score = overlap / (overlaps - overlap)
    turning = (turning - u * xp.sum(u * turning, axis=-1, keepdims=True)) / length
    steepness = (overlaps / (overlaps - overlap) ** 2)[..., None]
    slope = steepness * xp.concat([turning, shifting], axis=-1)

    going = (state["still"] <= PATIENCE) & (state["steps"] < most_steps)
    better = going & (score > state["best_score"])
    still = xp.abs(score - state["last_score"]) <= least_change
    mean = _DECAY * state["mean"] + (1 - _DECAY) * slope
    mean_square = _DECAY_SQUARES * state["mean_square"] + (1 - _DECAY_SQUARES) * slope**2
    count = state["steps"][..., None] + 1
    size = xp.sqrt(mean_square / (1 - _DECAY_SQUARES**count)) + _TINY
    climbed = pose + learning_rate * mean / ((1 - _DECAY**count) * size)

    def gone(new, old):
        return xp.where(going[..., None] if new.ndim > going.ndim else going, new, old)

    zero = xp.zeros_like(score)
    return {
        **state,
        "pose": gone(climbed, pose),
        "mean": gone(mean, state["mean"]),
        "mean_square": gone(mean_square, state["mean_square"]),
        "best_pose": xp.where(better[..., None], pose, state["best_pose"]),
        "best_score": xp.where(better, score, state["best_score"]),
        "last_score": gone(score, state["last_score"]),
        "still": gone(xp.where(still, state["still"] + 1, zero), state["still"]),
        "steps": gone(state["steps"] + 1, state["steps"]),
    }


def finished(state):
    """Say which rows have stopped changing, and which have no finite score: (...) bool each."""
    xp = array_namespace(state["best_score"])
    failed = ~xp.isfinite(state["last_score"])
    return (state["still"] > PATIENCE) & ~failed, failed


def _overlap_and_slopes(state, u, shift, alpha):
    """Give the overlap and its slopes by the unit quaternion and the shift.

    A squared distance is a product of five numbers of each atom, (x, |x|^2, 1) and those in
    ``factors``; what an atom is pulled by is a product of its row of the (m, n) matrix too.
    """
    xp = array_namespace(u)
    forms = xp.asarray(_FORMS, dtype=u.dtype, device=device(u))  # (16, 9)
    squares = xp.reshape(u[..., :, None] * u[..., None, :], (*u.shape[:-1], 16))
    turn = xp.reshape(xp.matmul(squares, forms), (*u.shape[:-1], 3, 3))
    x = xp.matmul(state["fit"], xp.concat([turn, shift[..., None, :]], axis=-2))  # (m, 3)
    square = xp.sum(x * x, axis=-1, keepdims=True)
    x5 = xp.concat([x, square, xp.ones_like(square)], axis=-1)
    each = exp_without_underflow(xp.matmul(x5, state["factors"]))  # (m, n)
    sums = xp.matmul(each, state["reference"])  # (m, 4): sum of E a, and of E
    pulls = sums[..., :3] - sums[..., 3:] * x
    by_motion = xp.matmul(state["fit_columns"], pulls)  # (4, 3), as turn above shift
    by_turn = xp.reshape(by_motion[..., :3, :], (*u.shape[:-1], 9))
    by_squares = xp.matmul(by_turn, xp.matrix_transpose(forms))
    by_u = xp.sum(xp.reshape(by_squares, (*u.shape[:-1], 4, 4)) * u[..., None, :], axis=-1)
    unit = _unit(alpha)
    overlap = unit * xp.sum(sums[..., 3], axis=-1)
    return overlap, 2 * alpha * unit * by_u, alpha * unit * by_motion[..., 3, :]


def _transposed(matrix):
    """Give a transposed copy, not a view."""
    xp = array_namespace(matrix)
    return xp.asarray(xp.matrix_transpose(matrix), copy=True)


def _unit(alpha):
    """Give the overlap of two atoms at one place."""
    return (math.pi / (2 * alpha)) ** 1.5


def _rotation_forms():
    """Give the transposed rotation of a unit quaternion as nine symmetric forms, (16, 9)."""
    entries = {  # R_ij = sum of factors of u_k u_m, halved between (k, m) and (m, k)
        (0, 0): ((0, 0, 1), (1, 1, 1), (2, 2, -1), (3, 3, -1)),
        (1, 1): ((0, 0, 1), (1, 1, -1), (2, 2, 1), (3, 3, -1)),
        (2, 2): ((0, 0, 1), (1, 1, -1), (2, 2, -1), (3, 3, 1)),
        (0, 1): ((1, 2, 2), (0, 3, -2)),
        (0, 2): ((1, 3, 2), (0, 2, 2)),
        (1, 0): ((1, 2, 2), (0, 3, 2)),
        (1, 2): ((2, 3, 2), (0, 1, -2)),
        (2, 0): ((1, 3, 2), (0, 2, -2)),
        (2, 1): ((2, 3, 2), (0, 1, 2)),
    }
    forms = [[0.0] * 9 for _ in range(16)]
    for (i, j), terms in entries.items():
        for k, m, factor in terms:
            forms[4 * k + m][3 * j + i] += factor / 2
            forms[4 * m + k][3 * j + i] += factor / 2
    return tuple(map(tuple, forms))


_FORMS = _rotation_forms()
