"""Error and gamma functions, sums by segment, tables: a framework's own, or array code."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from stowplan.errors import FrameworkError

__all__ = [
    "cos_sin",
    "erf",
    "erfc",
    "exp1",
    "exp_without_underflow",
    "expint",
    "gammaincc",
    "framework_of",
    "reciprocal",
    "segment_sum",
    "shared_segment_sum",
]

_MODULES = {
    "numpy": "scipy.special",
    "jax": "jax.scipy.special",
    "torch": "torch.special",
    "cupy": "cupyx.scipy.special",
    "array_api_strict": "scipy.special",
}
_SERIES_TERMS = 26  # 2^26 / (26 26!) = 6e-21
_FRACTION_TERMS = 48  # relative error 2e-16 at x = 2
_SPLIT = 2.0


def cos_sin(x: Any) -> tuple[Any, Any]:
    """Give the cosine and the sine, evaluated once, ``()->(),()``.

    On a CPU, XLA fuses a cosine into each loop that reads it and evaluates it anew for every
    element there, which makes an Ewald sum three times slower. Its ``optimization_barrier`` is
    gone by then; a product with the identity stays.

    >>> import numpy as np
    >>> [float(value) for value in cos_sin(np.asarray(0.0))]
    [1.0, 0.0]
    """
    xp = array_namespace(x)
    cos, sin = xp.cos(x), xp.sin(x)
    if framework_of(xp) != "jax":
        return cos, sin
    tables = xp.stack([xp.reshape(cos, (-1,)), xp.reshape(sin, (-1,))])
    tables = xp.matmul(xp.eye(2, dtype=x.dtype), tables, precision="highest")
    return xp.reshape(tables[0], x.shape), xp.reshape(tables[1], x.shape)


def reciprocal(x: Any) -> Any:
    """Give 1/x for 1 <= x <= 2, ``()->()``.

    XLA keeps a quotient that two loops need, one array more, where it would compute products anew;
    so there it is Newton's iteration, from 1/17 off to 2e-20.

    >>> import numpy as np
    >>> float(reciprocal(np.asarray(1.6)))
    0.625
    """
    if framework_of(array_namespace(x)) != "jax":
        return 1 / x
    x = 0.5 * x
    y = 48 / 17 - 32 / 17 * x
    for _ in range(4):
        y = y * (2 - x * y)
    return 0.5 * y


def erf(x: Any) -> Any:
    """Give the error function of a real array, ``()->()``.

    >>> import numpy as np
    >>> float(erf(np.asarray(0.5)).round(12))
    0.520499877813
    """
    return _own("erf", x)(x)


def erfc(x: Any) -> Any:
    """Give 1 - erf(x) without cancellation, ``()->()``.

    >>> import numpy as np
    >>> float(erfc(np.asarray(5.0)).round(20))
    1.53746e-12
    """
    return _own("erfc", x)(x)


def exp_without_underflow(x: Any) -> Any:
    """Give exp(x), or what cannot be told from 0 beside 1 where that would underflow, ``()->()``.

    Libraries for CPUs take 4 to 50 times as long for a result that underflows. Those get exp(-700)
    instead, in float32 exp(-80), and so does what is smaller.

    >>> import numpy as np
    >>> exp_without_underflow(np.asarray([0.0, -1e9])).tolist() == [1.0, math.exp(-700)]
    True
    """
    xp = array_namespace(x)
    double, framework = x.dtype == xp.float64, framework_of(xp)
    least = -700.0 if double else -80.0
    if framework == "numpy" and double:
        x = np.maximum(x, least)
    elif framework == "torch" and device(x).type == "cpu":
        x = xp.clamp(x, min=least)
    return xp.exp(x)


def exp1(x: Any) -> Any:
    """Give the exponential integral E1(x) of x > 0, ``()->()``.

    A power series up to x = 2 and a continued fraction above, where the framework has no E1 or
    only one that costs more (JAX's is a loop).
    Source: Abramowitz and Stegun 5.1.11 and 5.1.22.

    >>> import numpy as np
    >>> float(exp1(np.asarray(1.0)).round(12))
    0.219383934396
    """
    xp = array_namespace(x)
    if framework_of(xp) in ("torch", "jax"):
        return _exp1(xp, x)
    return _own("exp1", x)(x)


def expint(order: float, x: Any) -> tuple[Any, Any]:
    r"""Give E_{order-1}(x) and E_order(x), where E_s(x) = x^(s-1) Gamma(1-s, x), ``()->(),()``.

    The first is minus the derivative of the second.

    Parameters
    ----------
    order : float
        0, 1/2, 1, 3/2, 2, 5/2, ...; known to Python, not traced.
    x : array (...), > 0
        A denormal or zero gives infinity.

    Raises
    ------
    ValueError
        If `order` is negative or no multiple of 1/2.

    Notes
    -----
    Upwards from E_0, E_1 or E_{1/2} by (s-1) E_s = exp(-x) - x E_{s-1}: exact to rounding in
    absolute terms, and relative to exp(-x) where x is small. Gamma(a, x) itself is NaN at
    a = 0, -1/2, -1, ... in SciPy, PyTorch and JAX.
    Source: Abramowitz and Stegun 5.1.14 and 6.5.9.

    >>> import numpy as np
    >>> [float(value.round(12)) for value in expint(2, np.asarray(1.0))]
    [0.219383934396, 0.148495506776]
    """
    twice = round(2 * order)
    if twice < 0 or twice != 2 * order:
        raise ValueError(f"expint: order {order} is not one of 0, 1/2, 1, 3/2, ...")
    xp = array_namespace(x)
    decay = xp.exp(-x)
    if twice == 0:
        upper = decay / x
        return (decay + upper) / x, upper
    if twice == 1:
        root = xp.sqrt(x)
        upper = math.sqrt(math.pi) * erfc(root) / root
        return (decay + 0.5 * upper) / x, upper
    lower, upper = (decay / x, exp1(x)) if twice % 2 == 0 else expint(0.5, x)
    for s in range(4 if twice % 2 == 0 else 3, twice + 1, 2):
        lower, upper = upper, (decay - x * upper) / (s / 2 - 1)
    return lower, upper


def gammaincc(a: float, x: Any) -> Any:
    """Give the regularised upper incomplete gamma function Q(a, x) at x >= 0, ``()->()``.

    `a` is 1/2, 1, 3/2, ...; known to Python, not traced. Closed forms, so gradients are exact;
    the gradient at x = 0 is infinite for a = 1/2. Raises ValueError for other `a`.
    Source: Abramowitz and Stegun 6.5.13 and 6.5.17.

    >>> import numpy as np
    >>> float(gammaincc(1.5, np.asarray(0.5)).round(12))
    0.801251956901
    """
    twice = round(2 * a)
    if twice < 1 or twice != 2 * a:
        raise ValueError(f"gammaincc: a = {a} is not one of 1/2, 1, 3/2, ...")
    xp = array_namespace(x)
    decay = xp.exp(-x)
    if twice % 2 == 0:
        term = total = decay
        start = 1.0
    else:
        root = xp.sqrt(x)
        total = erfc(root)
        term = decay * root * (2 / math.sqrt(math.pi))
        start = 1.5
        if twice > 1:
            total = total + term
    for step in range((twice - 2) // 2 if twice % 2 == 0 else (twice - 3) // 2):
        term = term * x / (start + step)
        total = total + term
    return total


def segment_sum(values: Any, ids: Any, count: int) -> Any:
    """Sum the values of each segment, ``(n),(n)->(count)``.

    Entries whose id is none of 0, ..., count - 1 are left out, so that padding has id -1 and any
    value. Differentiable in JAX and torch; on a GPU the order of a sum, and so its rounding, may
    change from call to call.

    Parameters
    ----------
    values : array (..., n)
        Numbers; vectors have their components in front, (3, ..., n).
    ids : int array (..., n)
        Segment of each entry, in any order.
    count : int
        Number of segments; known to Python, not traced.

    Returns
    -------
    array (..., count)

    >>> import numpy as np
    >>> segment_sum(np.asarray([1.0, 2.0, 4.0, 8.0]), np.asarray([0, 2, 0, -1]), 3).tolist()
    [5.0, 0.0, 2.0]
    """
    xp = array_namespace(values, ids)
    values, ids = xp.broadcast_arrays(values, ids)
    add = _ADD_INTO.get(framework_of(xp))
    if add is None:
        same = ids[..., None] == xp.arange(count, dtype=ids.dtype, device=device(ids))
        each = xp.where(same, values[..., None], xp.zeros_like(values)[..., None])
        return xp.sum(each, axis=-2, dtype=values.dtype)
    leading = ids.shape[:-1]
    rows = math.prod(leading)
    place = xp.where((ids >= 0) & (ids < count), ids, xp.full_like(ids, count))  # (..., n)
    first = (count + 1) * xp.arange(rows, dtype=ids.dtype, device=device(ids))
    place = place + xp.reshape(first, (*leading, 1))
    sums = xp.zeros((rows * (count + 1),), dtype=values.dtype, device=device(values))
    sums = add(sums, xp.reshape(place, (-1,)), xp.reshape(values, (-1,)))
    return xp.reshape(sums, (*leading, count + 1))[..., :count]


def shared_segment_sum(values: Any, ids: Any, count: int) -> Any:
    """Sum the values of segments that all rows share, ``(n)->(count)``.

    Like `segment_sum`, with no id out of range. NumPy counts, in float64, without index arrays.

    Parameters
    ----------
    values : array (..., n)
        Real or complex.
    ids : int array (n,)
        0, ..., count - 1, in any order.
    count : int

    Returns
    -------
    array (..., count)

    >>> import numpy as np
    >>> shared_segment_sum(np.asarray([[1.0, 2.0, 4.0]]), np.asarray([0, 2, 0]), 3).tolist()
    [[5.0, 0.0, 2.0]]
    """
    xp = array_namespace(values, ids)
    if framework_of(xp) != "numpy":
        return segment_sum(values, ids, count)
    sums = np.empty((*values.shape[:-1], count), values.dtype)
    for row, place in zip(
        values.reshape(-1, values.shape[-1]), sums.reshape(-1, count), strict=True
    ):
        place.real = np.bincount(ids, row.real, count)
        if row.dtype.kind == "c":
            place.imag = np.bincount(ids, row.imag, count)
    return sums


def _add_at(sums: Any, place: Any, values: Any) -> Any:
    array_namespace(sums).add.at(sums, place, values)
    return sums


_ADD_INTO: dict[str, Callable[[Any, Any, Any], Any]] = {
    "numpy": _add_at,
    "cupy": _add_at,
    "torch": lambda sums, place, values: sums.scatter_add(0, place, values),
    "jax": lambda sums, place, values: sums.at[place].add(values),
}


def _exp1(xp: Any, x: Any) -> Any:
    """E1 in array code; each branch sees only arguments at which it is finite."""
    small = x <= _SPLIT
    split = xp.full_like(x, _SPLIT)
    low = xp.where(small, x, split)
    series = xp.zeros_like(x)
    for k in range(_SERIES_TERMS, 0, -1):  # Horner in -x of sum_k (-x)^k / (k k!)
        series = (1 / (k * _FACTORIALS[k]) + series) * -low
    high = xp.where(small, split, x)
    fraction = high + (2 * _FRACTION_TERMS + 1)
    for k in range(_FRACTION_TERMS, 0, -1):
        fraction = high + (2 * k - 1) - k * k / fraction
    return xp.where(small, -series - xp.log(low) - float(np.euler_gamma), xp.exp(-high) / fraction)


_FACTORIALS = [math.factorial(k) for k in range(_SERIES_TERMS + 1)]


@lru_cache
def framework_of(xp: Any) -> str:
    """Name the framework of an array namespace."""
    parts = xp.__name__.split(".")
    return str(parts[1] if parts[0] == "array_api_compat" else parts[0])


def _own(name: str, x: Any) -> Callable[[Any], Any]:
    xp = array_namespace(x)
    framework = framework_of(xp)
    if framework == "torch":  # by attributes, which its compiler follows
        function: Callable[[Any], Any] = getattr(xp.special, name)
        return function
    return _lookup(name, framework, xp)


@lru_cache
def _lookup(name: str, framework: str, xp: Any) -> Callable[[Any], Any]:
    """Find a special function of a framework; chosen once."""
    if framework not in _MODULES:
        raise FrameworkError(
            f"{name}: no special functions known for {framework} arrays; known: {list(_MODULES)}."
        )
    function: Callable[[Any], Any] = getattr(import_module(_MODULES[framework]), name)
    if framework != "array_api_strict":
        return function

    def through_numpy(x: Any) -> Any:
        host = np.asarray(x.to_device(xp.Device("CPU_DEVICE")))
        return xp.asarray(function(host), dtype=x.dtype, device=x.device)

    return through_numpy
