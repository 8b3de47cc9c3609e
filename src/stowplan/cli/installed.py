"""What is installed of the packages that stowplan's extras bring, read without importing any."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

__all__ = ["Requirement", "extras", "version_of"]

# as the wheel writes them: jax>=0.5; extra == 'jax'
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)\s*(?:\[[^\]]*\])?\s*(?:>=\s*(?P<least>[\d.]+))?[^;]*"
    r"(?:;\s*extra\s*==\s*['\"](?P<extra>[\w-]+)['\"])?\s*"
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package that an extra asks for, its least version, and the version that is there."""

    name: str
    least: str
    version: str | None

    @property
    def met(self) -> bool:
        """Whether it is installed, and new enough."""
        return self.version is not None and _release(self.version) >= _release(self.least)

    def __str__(self) -> str:
        if self.version is None:
            return f"{self.name} is missing"
        older = "" if self.met else f", older than {self.least}"
        return f"{self.name} {self.version}{older}"


def version_of(package: str) -> str | None:
    """Give the version of an installed package, None where there is none.

    >>> version_of("no-such-package") is None
    True
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def extras(lines: Iterable[str] | None = None) -> dict[str, list[Requirement]]:
    """List what each extra of stowplan asks for; under ``""`` what every installation does.

    Extras that only name others, such as ``all-cpu``, are left out.

    Parameters
    ----------
    lines
        ``Requires-Dist`` of a distribution; by default that of stowplan.

    >>> extras(["numpy>=1.0", "no-such>=2; extra == 'jax'"])
    {'': [Requirement(name='numpy', ...)], 'jax': [Requirement(name='no-such', least='2', version=None)]}
    """  # noqa: E501  the result is shown as it is printed
    if lines is None:
        lines = metadata.requires("stowplan") or []
    found: dict[str, list[Requirement]] = {}
    for line in lines:
        match = _REQUIREMENT.fullmatch(line)
        if match is None or match["name"] == "stowplan" or match["extra"] == "all-cpu":
            continue
        one = Requirement(match["name"], match["least"] or "0", version_of(match["name"]))
        found.setdefault(match["extra"] or "", []).append(one)
    return found


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version up to its first letter, ``2.13.0+cpu`` as (2, 13); zeros end it."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
