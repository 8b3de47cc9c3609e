"""array-api-strict: the reference backend, with several devices that refuse implicit copies."""

from __future__ import annotations

from typing import Any

import array_api_strict as xp
import numpy as np
from numpy.typing import NDArray

from stowplan.adapters.eager import EagerAdapter

__all__ = ["adapter"]


class StrictAdapter(EagerAdapter):
    """Nothing beyond the array API standard works here."""

    name = "array_api_strict"

    def devices(self) -> list[Any]:
        return list(xp.__array_namespace_info__().devices())

    def asarray(self, array: NDArray[Any], device: Any) -> Any:
        return xp.asarray(np.asarray(array), device=device)

    def room(self, count: int, like: Any) -> Any:
        return None  # the standard has no assignment to indices

    def to_host(self, array: Any) -> NDArray[Any]:
        return np.asarray(array.to_device(xp.Device("CPU_DEVICE")))


adapter = StrictAdapter()
