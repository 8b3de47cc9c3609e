"""PyTorch: batched calls on any device, differentiable, compiled on request."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stowplan.adapters.interface import BatchFunction
from stowplan.declaration import Kernel

__all__ = ["adapter"]


class TorchAdapter:
    """Batches are called directly; ``compile=True`` makes one graph per padded shape."""

    name = "torch"
    compiles = False
    work_seconds = 1e-9
    launch_seconds = 4e-4
    compile_seconds = 0.0

    def devices(self) -> list[Any]:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        cuda = [torch.device("cuda", number) for number in range(count)]
        return [torch.device("cpu"), *cuda]

    def device_of(self, array: Any) -> Any:
        return array.device

    def asarray(self, array: NDArray[Any], device: Any) -> Any:
        host = np.asarray(array)
        if not host.flags.writeable:  # torch warns of, and would let a user write to, such memory
            host = host.copy()
        return torch.from_numpy(np.ascontiguousarray(host)).to(device)

    def to_host(self, array: Any) -> NDArray[Any]:
        host: NDArray[Any] = array.detach().cpu().numpy()
        return host

    def requires_grad(self, array: Any) -> bool:
        return bool(array.requires_grad)

    def is_traced(self, array: Any) -> bool:
        return bool(torch._C._functorch.is_functorch_wrapped_tensor(array))

    def stage(self, array: Any, device: Any) -> Any:
        return array

    def number(self, value: Any, like: Any) -> Any:
        if like is None or isinstance(value, bool):
            return torch.as_tensor(value)
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)

    def index(self, index: NDArray[Any], like: Any) -> Any:
        wide = index.astype(np.int64) if index.dtype.kind == "i" else index
        return self.asarray(wide, like.device)

    def function(self, kernel: Kernel, statics: Mapping[str, Any], *, compile: bool) -> BatchFunction:
        return _function(kernel, tuple(sorted(statics.items())), compile)

    def collect(self, output: Any, like: Any) -> Any:
        return output

    def deliver(self, array: Any, device: Any) -> Any:
        return array

    def synchronize(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


@functools.lru_cache(maxsize=256)
def _function(kernel: Kernel, statics: tuple[tuple[str, Hashable], ...], compile: bool) -> BatchFunction:
    fixed = dict(statics)

    def batched(arguments: Sequence[Any], masks: Mapping[str, Any] | None, shared: Mapping[str, Any]) -> Any:
        if masks is None:
            return kernel.function(*arguments, **shared, **fixed)
        return kernel.function(*arguments, mask=masks, **shared, **fixed)

    def mapped(arguments: Sequence[Any], masks: Mapping[str, Any] | None, shared: Mapping[str, Any]) -> Any:
        return torch.func.vmap(batched, in_dims=(0, None if masks is None else 0, None))(
            tuple(arguments), masks, shared
        )

    function = mapped if kernel.per_item else batched
    return torch.compile(function, dynamic=False, fullgraph=True) if compile else function


adapter = TorchAdapter()
