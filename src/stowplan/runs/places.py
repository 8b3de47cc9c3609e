"""Where data are and where they are computed: a framework and one of its devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stowplan.adapters import Adapter, framework_of, get_adapter
from stowplan.errors import FrameworkError, MissingDependencyError

__all__ = ["Place", "find_device", "find_places"]


@dataclass(frozen=True, slots=True)
class Place:
    """A framework and a device of it; the device of a traced array is None."""

    adapter: Adapter
    device: Any
    here: bool = True
    """Whether this process can use the device."""
    sharers: int = 1
    """Devices or workers of one run that share the memory there."""

    def same_as(self, other: Place) -> bool:
        """Whether arrays need no move between the two."""
        return self.adapter is other.adapter and (
            self.device is None or self.device == other.device
        )

    def free_bytes(self, where: str) -> int:
        """Bytes that new arrays on the device can take: its share where several have one memory.

        Raises
        ------
        FrameworkError
            For a device that is not here.
        """
        if not self.here:
            raise FrameworkError(
                f"{where}: how much is free on {self.device} is unknown, for {self.adapter.name} "
                "has no such device here. Give bytes: budget='20 GiB'."
            )
        return self.adapter.free_bytes(self.device) // self.sharers


def find_places(
    where: str, arrays: Sequence[Any], on: str | None, device: Any, *, absent: bool = False
) -> tuple[Place, Place]:
    """Give the place of the data, and the one that ``on=`` and ``device=`` ask for.

    With ``absent`` the device need not be here, if the framework counts memory without one.

    Raises
    ------
    FrameworkError
        For arrays of two frameworks or on two devices, and for an unknown framework or device.
    """
    try:
        framework = framework_of(arrays) or "numpy"
        target = get_adapter(on or framework)
    except (FrameworkError, MissingDependencyError) as error:
        raise type(error)(f"{where}: {error}") from None
    adapter = get_adapter(framework)
    placed = [adapter.device_of(array) for array in arrays if framework_of([array])]
    known = [place for place in placed if place is not None]
    for place in known:
        if place != known[0]:
            raise FrameworkError(
                f"{where}: the arrays of one call are on two devices: {known[0]} and {place}. "
                "Move them to one first."
            )
    source = Place(adapter, known[0] if known else None if placed else adapter.devices()[0])
    if (on is None or on == framework) and device is None:
        return source, source
    try:
        return source, Place(target, find_device(where, target, device))
    except FrameworkError:
        elsewhere = target.find_device(device) if absent else None
        if elsewhere is None:
            raise
        return source, Place(target, elsewhere, here=False)


def find_device(where: str, adapter: Adapter, device: Any) -> Any:
    """Give a device of a framework by itself, its number or its name; the first one for None."""
    devices = adapter.devices()
    if device is None:
        return devices[0]
    if isinstance(device, int) and 0 <= device < len(devices):
        return devices[device]
    for candidate in devices:
        if device == candidate or str(device) == str(candidate):
            return candidate
    raise FrameworkError(
        f"{where}: device={device!r} is no device of {adapter.name} here; it has: "
        f"{', '.join(map(str, devices))}."
    )
