"""PyTorch: batched calls on any device, differentiable, compiled on request."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import FunctionType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from stowplan.adapters.interface import (
    CPU_BATCH_BYTES,
    GPU_BATCH_BYTES,
    BatchFunction,
    StaticKey,
    static_key,
)
from stowplan.declaration import Kernel

__all__ = ["adapter"]


class TorchAdapter:
    """Batches are called directly; ``compile=True`` makes one graph per padded shape."""

    name = "torch"
    compiles = False
    work_seconds = 1e-9
    launch_seconds = 8e-4
    compile_seconds = 0.0

    def devices(self) -> list[Any]:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        cuda = [torch.device("cuda", number) for number in range(count)]
        return [torch.device("cpu"), *cuda]

    def batch_bytes(self, device: Any) -> int:
        return CPU_BATCH_BYTES if device is None or device.type == "cpu" else GPU_BATCH_BYTES

    def device_of(self, array: Any) -> Any:
        return array.device

    def asarray(self, array: NDArray[Any], device: Any) -> Any:
        host = np.asarray(array)
        if not host.flags.writeable:  # torch warns of, and would let a user write to, such memory
            host = host.copy()
        with torch.inference_mode(False):  # a cached index must serve autograd later
            return torch.from_numpy(np.asarray(host, order="C")).to(device)

    def put(self, arrays: Sequence[NDArray[Any]], device: Any) -> list[Any]:
        with torch.inference_mode(False):
            return [torch.from_numpy(array).to(device) for array in arrays]

    def to_host(self, array: Any) -> NDArray[Any]:
        host: NDArray[Any] = array.detach().cpu().numpy()
        return host

    def on_host(self, array: Any) -> bool:
        return bool(array.device.type == "cpu")

    def requires_grad(self, array: Any) -> bool:
        return bool(array.requires_grad)

    def is_traced(self, array: Any) -> bool:
        return bool(torch._C._functorch.is_functorch_wrapped_tensor(array))

    def namespace(self, array: Any) -> Any:
        return _Direct

    def stage(self, array: Any, device: Any) -> Any:
        return self.asarray(array, device) if isinstance(array, np.ndarray) else array

    def number(self, value: NDArray[Any], like: Any, dtype: Any) -> Any:
        return torch.asarray(value.item(), dtype=dtype or _dtype(value), device=like.device)

    def index(self, index: NDArray[Any], like: Any) -> Any:
        wide = index.astype(np.int64) if index.dtype.kind == "i" else index
        return self.asarray(wide, like.device)

    def function(
        self, kernel: Kernel, statics: Mapping[str, Any], *, device: Any, compile: bool
    ) -> BatchFunction:
        return _function(kernel.function, kernel.per_item, static_key(statics), compile)

    def collect(self, output: Any, like: Any) -> Any:
        return output

    def deliver(self, array: Any, device: Any) -> Any:
        return array

    def synchronize(self, outputs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


class _Direct:
    """What the loop calls, without a compatibility layer that takes longer than a small batch."""

    where = staticmethod(torch.where)
    reshape = staticmethod(torch.reshape)
    concat = staticmethod(torch.cat)
    full = staticmethod(torch.full)
    asarray = staticmethod(torch.asarray)

    @staticmethod
    def take(values: Any, index: Any, axis: int) -> Any:
        return torch.index_select(values, axis, index)


@functools.lru_cache(maxsize=256)
def _function(
    kernel: Callable[..., Any], per_item: bool, statics: StaticKey, compile: bool
) -> BatchFunction:
    fixed = {name: value for name, _, value in statics}

    def batched(
        arguments: Sequence[Any], keywords: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> Any:
        return kernel(*arguments, **keywords, **shared, **fixed)

    def mapped(
        arguments: Sequence[Any], keywords: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> Any:
        return torch.func.vmap(batched, in_dims=(0, 0 if keywords else None, None))(
            tuple(arguments), keywords, shared
        )

    function = mapped if per_item else batched
    return _one_graph_per_shape(cast("FunctionType", function)) if compile else function


def _one_graph_per_shape(function: FunctionType) -> BatchFunction:
    """Compile a copy of the function for each shape: of one, torch compiles 8 shapes at most."""
    graphs: dict[Hashable, BatchFunction] = {}

    def call(
        arguments: Sequence[Any], keywords: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> Any:
        by_dim = (array for table in keywords.values() for array in table.values())
        shapes = tuple(array.shape for array in (*arguments, *by_dim))
        if shapes not in graphs:
            code = function.__code__.replace()
            copy = FunctionType(code, function.__globals__, closure=function.__closure__)
            graphs[shapes] = torch.compile(copy, dynamic=False, fullgraph=True)
        return graphs[shapes](arguments, keywords, shared)

    return call


def _dtype(value: NDArray[Any]) -> Any:
    return torch.from_numpy(np.empty(0, value.dtype)).dtype


adapter = TorchAdapter()
