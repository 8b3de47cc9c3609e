"""Options of a declaration: read from what was written, and refused where they name nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stowplan.errors import SignatureError

__all__ = ["names", "parameters", "refuse_unknown", "table", "takes_dims"]


def names(option: str, given: Sequence[str] | str) -> tuple[str, ...]:
    """Give one name or several as a tuple.

    >>> names("ragged", "atoms"), names("ragged", ["atoms", "k"])
    (('atoms',), ('atoms', 'k'))
    """
    found = (given,) if isinstance(given, str) else tuple(given or ())
    if len(set(found)) < len(found):
        raise SignatureError(f"kernel: {option}={given!r} names one thing twice.")
    return found


def table(option: str, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Give a mapping, which may have been left out."""
    if given is None or isinstance(given, Mapping):
        return given or {}
    raise SignatureError(
        f"kernel: {option}={given!r} is no mapping; write {option}={{'name': ...}}."
    )


def refuse_unknown(where: str, option: str, given: Any, allowed: Sequence[str]) -> None:
    """Raise SignatureError where an option names something that is not there."""
    unknown = [name for name in given if name not in allowed]
    if unknown:
        known = ", ".join(allowed) or "none"
        raise SignatureError(f"{where}: {option} names {unknown[0]!r}; it can name: {known}.")


def takes_dims(where: str, rule: Callable[..., int], dims: Sequence[str]) -> None:
    """Raise SignatureError unless a function can be called with these dims by name."""
    try:
        inspect.signature(rule).bind(**dict.fromkeys(dims))
    except TypeError as error:
        raise SignatureError(
            f"{where}: the function is called with the ragged dims ({', '.join(dims)}) "
            f"by name: {error}."
        ) from None


def parameters(
    function: Callable[..., Any],
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]:
    """Give positional and keyword-only parameters of a function, and defaults of the latter."""
    positional: list[str] = []
    keyword_only: list[str] = []
    defaults: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise SignatureError(
                f"kernel {function.__name__}: name every parameter instead of {parameter}."
            )
        keyword = parameter.kind is parameter.KEYWORD_ONLY
        (keyword_only if keyword else positional).append(parameter.name)
        if keyword and parameter.default is not parameter.empty:
            defaults[parameter.name] = parameter.default
    return tuple(positional), tuple(keyword_only), defaults
