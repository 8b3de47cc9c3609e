"""CuPy: NumPy's calls on CUDA devices, memory from CuPy's pool, no implicit host copies."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cupy as cp
import numpy as np
from numpy.typing import NDArray

from stowplan.adapters.eager import EagerAdapter
from stowplan.adapters.eager_memory import steady_peak
from stowplan.adapters.interface import GPU_BATCH_BYTES, Within

__all__ = ["adapter"]


class CupyAdapter(EagerAdapter):
    """Batches are called directly on device arrays."""

    name = "cupy"
    work_seconds = 2e-12
    launch_seconds = 1e-3

    def devices(self) -> list[Any]:
        return [cp.cuda.Device(number) for number in range(cp.cuda.runtime.getDeviceCount())]

    def kind_of(self, device: Any) -> str:
        return "cuda"

    def alike(self, device: Any) -> list[Any] | None:
        return self.devices()

    @contextmanager
    def alongside(self) -> Iterator[Within]:
        yield cp.cuda.Device  # of the thread that enters it

    def batch_bytes(self, device: Any) -> int:
        return GPU_BATCH_BYTES

    def host_buffer(self, size: int, device: Any) -> NDArray[np.uint8]:
        from cupyx import empty_pinned  # it comes with cupy, but not with a stand-in of it

        pinned: NDArray[np.uint8] = empty_pinned((size,), np.uint8)
        return pinned

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

    def free_bytes(self, device: Any) -> int:
        with cp.cuda.Device(device):
            free, _ = cp.cuda.runtime.memGetInfo()
            return int(free + cp.get_default_memory_pool().free_bytes())

    def is_out_of_memory(self, error: BaseException) -> bool:
        kinds = (MemoryError, cp.cuda.memory.OutOfMemoryError)
        return isinstance(error, kinds) or "cudaErrorMemoryAllocation" in str(error)

    def release(self) -> None:
        gc.collect()
        for device in self.devices():
            with device:
                cp.get_default_memory_pool().free_all_blocks()
        cp.get_default_pinned_memory_pool().free_all_blocks()

    def allocated_peak(self, call: Callable[[], Any], device: Any) -> int:
        def measure() -> tuple[int, int]:
            with cp.cuda.Device(device), LivePool() as pool:
                call()
            return pool.peak_bytes, pool.live_bytes

        return steady_peak(measure)


class LivePool(cp.cuda.MemoryHook):
    """Counts the bytes that are taken from CuPy's pool and not given back, rounded as it does.

    Counted is the calling thread; memory that was taken before is not.
    """

    name = "stowplan.LivePool"

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}

    def malloc_postprocess(self, **event: Any) -> None:
        if event["mem_ptr"]:  # 0 where the allocation failed
            self._sizes[event["pmem_id"]] = event["mem_size"]
            self.live_bytes += event["mem_size"]
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def free_postprocess(self, **event: Any) -> None:
        self.live_bytes -= self._sizes.pop(event["pmem_id"], 0)


adapter = CupyAdapter()
