"""Numbers that may be traced: what is known of them is checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj
from numpy.typing import NDArray

from stowplan.adapters import framework_of, get_adapter
from stowplan.errors import DataError

__all__ = ["is_count", "known_values", "on_host", "refuse_numbers", "widest", "widest_float"]


def known_values(value: Any) -> NDArray[np.float64] | None:
    """Give values on the host, or None where they are traced.

    >>> known_values((1, 2.5))
    array([1. , 2.5])
    """
    if isinstance(value, list | tuple):
        parts = [known_values(part) for part in value]
        return None if any(part is None for part in parts) else np.asarray(parts, np.float64)
    if not is_array_api_obj(value):
        return np.asarray(value, np.float64)
    try:
        return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, np.float64)
    except Exception:  # noqa: BLE001 - each framework has its own for a value that is not there yet
        return None


def on_host(values: Any) -> NDArray[Any]:
    """Give an array of any framework, or nested numbers, as NumPy.

    >>> on_host([1, 2]).tolist()
    [1, 2]
    """
    if type(values) is np.ndarray:  # one of hundreds of masks or molecules
        return values
    return np.asarray(get_adapter(framework_of([values]) or "numpy").to_host(values))


def widest(xp: Any) -> str:
    """Name the widest floating dtype that a framework has: JAX may have no float64."""
    known = xp.__array_namespace_info__().dtypes(kind="real floating")
    return "float64" if "float64" in known else "float32"


def widest_float(on: str | None) -> Any:
    """Give the widest floating dtype that a framework computes in."""
    adapter = get_adapter(on or "numpy")
    narrow = adapter.asarray(np.zeros((), np.float32), adapter.devices()[0])
    if hasattr(
        narrow, "__array_namespace__"
    ):  # for which array_namespace compiles a program in JAX
        return np.dtype(widest(narrow.__array_namespace__()))
    return np.dtype(widest(array_namespace(narrow)))


def is_count(value: Any) -> bool:
    """Whether a value is an integer of 1 or more; True is none.

    >>> is_count(3), is_count(np.int32(1)), is_count(True), is_count(2.0)
    (True, True, False, False)
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 1


def refuse_numbers(
    where: str,
    name: str,
    value: Any,
    shape: tuple[int, ...],
    *,
    cure: str,
    low: float = -math.inf,
    least: float = -math.inf,
) -> None:
    """Refuse known values that are of another shape, not finite, or out of bounds.

    Parameters
    ----------
    where, name
        What the message begins with, and what the values are called there.
    value
        A number, a sequence or an array; a traced one passes.
    shape
        The shape that it must have.
    cure
        What the message ends with.
    low, least
        Values must be above the first and at least the second.

    Raises
    ------
    DataError

    >>> refuse_numbers("Beam", "wavelength", -1.0, (), cure="Give Å: 1.0.", low=0)
    Traceback (most recent call last):
    stowplan.errors.DataError: Beam: wavelength=-1.0; it must be finite and above 0. Give Å: 1.0.
    """
    try:
        known = known_values(value)
    except (TypeError, ValueError):
        raise DataError(
            f"{where}: {name}={value!r} is no number or array of them. {cure}"
        ) from None
    if known is None:
        return
    if known.shape != shape:
        raise DataError(
            f"{where}: {name} has shape {known.shape}; {shape or 'one number'} is needed. {cure}"
        )
    if not (np.isfinite(known).all() and (known > low).all() and (known >= least).all()):
        allowed = "finite"
        if low > -math.inf:
            allowed += f" and above {low:g}"
        if least > -math.inf:
            allowed += f" and at least {least:g}"
        raise DataError(f"{where}: {name}={known.tolist()}; it must be {allowed}. {cure}")
