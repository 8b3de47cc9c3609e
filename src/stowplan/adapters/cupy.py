"""CuPy: NumPy's calls on CUDA devices, memory from CuPy's pool, no implicit host copies."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np
from numpy.typing import NDArray

from stowplan.adapters.eager import EagerAdapter
from stowplan.adapters.interface import GPU_BATCH_BYTES

__all__ = ["adapter"]


class CupyAdapter(EagerAdapter):
    """Batches are called directly on device arrays."""

    name = "cupy"
    work_seconds = 2e-12
    launch_seconds = 1e-3

    def devices(self) -> list[Any]:
        return [cp.cuda.Device(number) for number in range(cp.cuda.runtime.getDeviceCount())]

    def batch_bytes(self, device: Any) -> int:
        return GPU_BATCH_BYTES

    def asarray(self, array: NDArray[Any], device: Any) -> Any:
        with cp.cuda.Device(device):
            return cp.asarray(array)

    def to_host(self, array: Any) -> NDArray[Any]:
        host: NDArray[Any] = np.asarray(cp.asnumpy(array))
        return host

    def on_host(self, array: Any) -> bool:
        return False

    def synchronize(self, outputs: Any) -> None:
        for device in self.devices():
            device.synchronize()


adapter = CupyAdapter()
