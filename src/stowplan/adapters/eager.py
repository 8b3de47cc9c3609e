"""The capabilities that NumPy, CuPy and the strict reference share: batches are called directly."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from stowplan.adapters.eager_memory import steady_peak, traced_peak
from stowplan.adapters.interface import CPU_BATCH_BYTES, BatchFunction, Wanted, Within, as_tuple
from stowplan.adapters.intra_op import one_blas_thread
from stowplan.declaration import Kernel
from stowplan.errors import FrameworkError
from stowplan.host_memory import free_host_bytes

__all__ = ["EagerAdapter"]


class EagerAdapter:
    """A framework that computes at once, has no gradients and compiles nothing per shape."""

    name: str
    compiles = False
    in_place = False
    one_core = False
    peak_probe = "real"
    peak_margin = 0.02
    spare_share = 0.04
    spare_bytes = 2**21
    gap_bytes = 0
    round_gap_bytes = 12 << 20
    result_sets = 0
    work_seconds = 1e-9
    launch_seconds = 4e-4
    compile_seconds = 0.0

    def devices(self) -> list[Any]:
        raise NotImplementedError  # each framework names its own

    def kind_of(self, device: Any) -> str:
        return "cpu"

    def alike(self, device: Any) -> list[Any] | None:
        return None

    @contextmanager
    def alongside(self) -> Iterator[Within]:
        with one_blas_thread():
            yield nullcontext

    def batch_bytes(self, device: Any) -> int:
        return CPU_BATCH_BYTES

    def host_buffer(self, size: int, device: Any) -> NDArray[np.uint8]:
        return np.empty(size, np.uint8)

    def device_of(self, array: Any) -> Any:
        return array.device

    def asarray(self, array: NDArray[Any], device: Any) -> Any:
        raise NotImplementedError  # each framework has its own

    def put(self, arrays: Sequence[NDArray[Any]], device: Any) -> list[Any]:
        return [self.asarray(array, device) for array in arrays]

    def to_host(self, array: Any) -> NDArray[Any]:
        return np.asarray(array)

    def on_host(self, array: Any) -> bool:
        return True

    def settings(self) -> dict[str, Any]:
        return {}

    def adopt(self, settings: Mapping[str, Any]) -> None:
        pass

    def requires_grad(self, array: Any) -> bool:
        return False

    def records(self, array: Any) -> bool:
        return False

    def is_traced(self, array: Any) -> bool:
        return False

    def has_values(self, array: Any) -> bool:
        return True

    def namespace(self, array: Any) -> Any:
        return array_namespace(array)

    def shares(self, array: NDArray[Any], device: Any) -> bool:
        return False

    def stage(self, array: Any, device: Any) -> Any:
        return self.asarray(array, device) if isinstance(array, np.ndarray) else array

    def number(self, value: NDArray[Any], like: Any, dtype: Any) -> Any:
        xp, device = array_namespace(like), getattr(like, "device", None)
        if dtype is None:  # its own
            dtype = xp.asarray(value).dtype
        return xp.asarray(value.item(), dtype=dtype, device=device)

    def index(self, index: NDArray[Any], like: Any) -> Any:
        return self.asarray(index, self.device_of(like))

    def function(
        self, kernel: Kernel, statics: Mapping[str, Any], *, device: Any, compile: bool
    ) -> BatchFunction:
        call = _one_by_one if kernel.per_item else _batched

        def compute(
            arguments: Sequence[Any], keywords: Mapping[str, Any], shared: Mapping[str, Any]
        ) -> Any:
            return call(kernel, arguments, keywords, {**shared, **statics})

        return compute

    def collect(self, output: Any, like: Any) -> Any:
        return output

    def room(self, count: int, like: Any) -> Any:
        xp = array_namespace(like)
        shape = (count, *like.shape[1:])
        return xp.empty(shape, dtype=like.dtype, device=self.device_of(like))

    def deliver(self, array: Any, device: Any) -> Any:
        return array

    def synchronize(self, outputs: Any) -> None:
        return None

    def find_device(self, device: Any) -> Any:
        return None

    def free_bytes(self, device: Any) -> int:
        return free_host_bytes()

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)

    def release(self) -> None:
        gc.collect()

    def allocated_peak(self, call: Callable[[], Any], device: Any) -> int:
        """Bytes that a call allocates at its peak, its result included, as if made before."""
        return steady_peak(lambda: traced_peak(call))

    def peak_bytes(
        self,
        kernel: Kernel,
        statics: Mapping[str, Any],
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        shared: Mapping[str, Any],
        *,
        rows: int,
        device: Any,
        wanted: Wanted | None,
    ) -> int:
        if wanted is not None:
            raise FrameworkError(f"{self.name} has no gradients, whose memory could be counted.")
        function = self.function(kernel, statics, device=device, compile=False)

        def repeat(array: Any) -> Any:
            return array if rows == 1 else array_namespace(array).repeat(array, rows, axis=0)

        repeated, masks = _mapped(repeat, arguments), _mapped(repeat, keywords)
        held = sum(map(self._bytes, _arrays([repeated, masks, shared])))
        return held + self.allocated_peak(lambda: function(repeated, masks, shared), device)

    def output_widths(
        self,
        kernel: Kernel,
        statics: Mapping[str, Any],
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        shared: Mapping[str, Any],
        *,
        device: Any,
    ) -> tuple[int, ...]:
        function = self.function(kernel, statics, device=device, compile=False)
        outputs = as_tuple(function(arguments, keywords, shared))
        return tuple(self._bytes(_one_like(part)) for part in outputs)

    def _bytes(self, array: Any) -> int:
        found = getattr(array, "nbytes", None)
        return int(self.to_host(array).nbytes if found is None else found)


def _one_like(array: Any) -> Any:
    """Give a number of the same dtype, which even an empty array has."""
    return array_namespace(array).zeros((1,), dtype=array.dtype)


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _mapped(change, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(change, part) for part in value]
    return change(value)


def _arrays(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _arrays(part)
    elif hasattr(value, "ndim"):
        yield value


def _batched(
    kernel: Kernel,
    arguments: Sequence[Any],
    keywords: Mapping[str, Any],
    shared: Mapping[str, Any],
) -> Any:
    return kernel.function(*arguments, **keywords, **shared)


def _one_by_one(
    kernel: Kernel,
    arguments: Sequence[Any],
    keywords: Mapping[str, Mapping[str, Any]],
    shared: Mapping[str, Any],
) -> Any:
    rows = []
    for row in range(arguments[0].shape[0]):
        given = [column[row, ...] for column in arguments]
        named = {
            name: {dim: values[row, ...] for dim, values in table.items()}
            for name, table in keywords.items()
        }
        rows.append(_batched(kernel, given, named, shared))
    xp = array_namespace(*arguments)
    stacked = [
        xp.stack([xp.asarray(part) for part in parts])
        for parts in zip(*map(as_tuple, rows), strict=True)
    ]
    if not isinstance(rows[0], tuple):
        return stacked[0]
    return type(rows[0])(*stacked) if hasattr(rows[0], "_fields") else tuple(stacked)
