"""Peak memory of a batch in torch, counted on tensors that have shapes and no values."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from stowplan.adapters.interface import GradientAdapter, Wanted, as_tuple
from stowplan.declaration import Kernel
from stowplan.errors import PlanError

__all__ = ["LiveStorages", "batch_peak", "output_widths"]

Inputs = tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]
Call = Callable[[Sequence[Any], Mapping[str, Any], Mapping[str, Any]], Any]


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, each once however many tensors share it.

    Workspaces that a library takes within one operation do not show.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}

    def hold(self, tensors: Any) -> None:
        """Count the storages of some tensors, those that are not counted yet."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live_bytes += self._sizes[key]
            weakref.finalize(storage, self._drop, key).atexit = False

    def _drop(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        outputs = function(*args, **(kwargs or {}))
        self.hold(outputs)
        return outputs


def batch_peak(
    adapter: GradientAdapter,
    kernel: Kernel,
    statics: Mapping[str, Any],
    inputs: Inputs,
    *,
    rows: int,
    device: Any,
    wanted: Wanted | None,
    fake: bool = True,
) -> int:
    """Bytes of a batch at its peak, as `Adapter.peak_bytes` counts them.

    Without ``fake`` the tensors are real, and so are the allocations.

    Raises
    ------
    PlanError
        Where the kernel reads a value, or uses a tensor that it was not given.
    """
    device = _there(device)
    call = adapter.function(kernel, statics, device=device, compile=False)
    with FakeTensorMode() if fake else nullcontext(), _reasons(kernel.name):
        made = _made(inputs, rows, device, fake)
        if wanted is not None:
            call, made = _pulling(adapter, kernel, statics, call, made, device, wanted)
        with LiveStorages() as storages:
            storages.hold(made)
            call(*made)
    return int(storages.peak_bytes)


def output_widths(
    adapter: GradientAdapter,
    kernel: Kernel,
    statics: Mapping[str, Any],
    inputs: Inputs,
    *,
    device: Any,
) -> tuple[int, ...]:
    """Bytes of a number in each output."""
    device = _there(device)
    call = adapter.function(kernel, statics, device=device, compile=False)
    with FakeTensorMode(), _reasons(kernel.name):
        outputs = call(*_made(inputs, 1, device, True))
    return tuple(part.element_size() for part in as_tuple(outputs))


def _there(device: Any) -> Any:
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        return torch.device("cpu")  # indexing and autograd ask the driver; sizes are the same
    return device


def _pulling(
    adapter: GradientAdapter,
    kernel: Kernel,
    statics: Mapping[str, Any],
    function: Call,
    made: Inputs,
    device: Any,
    wanted: Wanted,
) -> tuple[Call, Inputs]:
    """Give the pullback, whose arguments are followed by the cotangents of the outputs."""
    arguments, keywords, shared = made
    pull = adapter.pullback(kernel, statics, *wanted, device=device, compile=False)
    cotangents = [
        torch.zeros_like(part) if _is_floating(part) else None for part in as_tuple(function(*made))
    ]
    count = len(arguments)
    return (
        lambda given, by_dim, others: pull(given[:count], by_dim, others, given[count:]),
        ([*arguments, *cotangents], keywords, shared),
    )


def _made(inputs: Inputs, rows: int, device: Any, fake: bool) -> Inputs:
    def make(tensor: Any, shape: tuple[int, ...]) -> Any:
        if not isinstance(tensor, torch.Tensor):
            return tensor
        if fake:
            return torch.empty(shape, dtype=tensor.dtype, device=device)
        return tensor.detach().to(device).expand(shape).contiguous()

    arguments, keywords, shared = inputs
    return (
        [make(x, (rows, *x.shape[1:])) for x in arguments],
        tree_map(lambda x: make(x, (rows, *x.shape[1:])), dict(keywords)),
        tree_map(lambda x: make(x, getattr(x, "shape", ())), dict(shared)),
    )


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


@contextmanager
def _reasons(name: str) -> Iterator[None]:
    """Name the kernel that cannot be called without values, and why."""
    try:
        yield
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise PlanError(
            f"the peak of {name} cannot be counted without values: it {reason} ({error}). Pass "
            "what it needs as a parameter, select code with static=, or give the bytes by hand: "
            "peak=(fixed_bytes, bytes_per_row)."
        ) from error


def _reason(error: Exception) -> str | None:
    """Say why a call without values failed; None for a fault of the call itself."""
    if isinstance(error, DataDependentOutputException):
        return "reads a value, .item() or a branch on one"
    if isinstance(error, DynamicOutputShapeException):
        return "gives a shape that depends on values"
    if "convert all Tensors to FakeTensors" in str(error):
        return "uses a tensor that is none of its parameters"
    if "not supported for tensor subclasses" in str(error):
        return "leaves torch"
    return None
