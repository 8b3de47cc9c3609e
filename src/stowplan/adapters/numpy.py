"""NumPy: the host itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.adapters.eager import EagerAdapter

__all__ = ["adapter"]


class NumpyAdapter(EagerAdapter):
    """Batches are called directly on host arrays."""

    name = "numpy"
    one_core = True
    in_place = True

    def devices(self) -> list[Any]:
        return ["cpu"]

    def device_of(self, array: Any) -> Any:
        return "cpu"

    def shares(self, array: NDArray[Any], device: Any) -> bool:
        return array.flags.c_contiguous

    def stage(self, array: Any, device: Any) -> Any:
        return np.asarray(array, order="C")  # take copies all of any other order, for each batch

    def put(self, arrays: Sequence[NDArray[Any]], device: Any) -> list[Any]:
        return list(arrays)

    def asarray(self, array: NDArray[Any], device: Any) -> Any:
        return np.asarray(array)


adapter = NumpyAdapter()
