"""PyTorch: batched calls on any device, differentiable, compiled on request."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from stowplan.adapters.interface import (
    CPU_BATCH_BYTES,
    GPU_BATCH_BYTES,
    Backward,
    BatchFunction,
    Forward,
    LossPullback,
    Pullback,
    StaticKey,
    Wanted,
    Within,
    as_tuple,
    static_key,
)
from stowplan.adapters.intra_op import Shared
from stowplan.adapters.torch_compiled import compiled_pullback, one_graph_per_shape
from stowplan.adapters.torch_memory import batch_peak, output_widths
from stowplan.declaration import Kernel
from stowplan.errors import DataError, FrameworkError
from stowplan.host_memory import free_host_bytes

__all__ = ["adapter"]

LARGE_PAGES = 2**22
"""Bytes from which NumPy asks for large pages, and torch does not: touching them takes half."""
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",  # the allocator of the host, and that of Windows
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class TorchAdapter:
    """Batches are called directly; ``compile=True`` makes one graph per padded shape.

    A gradient makes another one, of forward and backward pass together.
    """

    name = "torch"
    compiles = False
    in_place = True
    one_core = False
    peak_probe = "fake"
    peak_margin = 0.02
    spare_share = 0.04
    spare_bytes = 2**21
    gap_bytes = round_gap_bytes = 20 << 20  # blocks are aligned for vector units
    result_sets = 3
    work_seconds = 1e-9
    launch_seconds = 8e-4
    compile_seconds = 0.0

    def devices(self) -> list[Any]:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        cuda = [torch.device("cuda", number) for number in range(count)]
        return [torch.device("cpu"), *cuda]

    def kind_of(self, device: Any) -> str:
        return str(device.type)

    def alike(self, device: Any) -> list[Any] | None:
        if device.type == "cpu":
            return None
        return [one for one in self.devices() if one.type == device.type]

    @contextmanager
    def alongside(self) -> Iterator[Within]:
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        casts = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in ("cpu", "cuda")
        ]

        @contextmanager
        def within(device: Any) -> Iterator[None]:
            with ExitStack() as stack:
                if device.type == "cpu":
                    torch.set_num_threads(1)  # of this thread, and of those that begin later
                else:
                    stack.enter_context(torch.cuda.device(device))
                stack.enter_context(torch.inference_mode(inference))
                stack.enter_context(torch.set_grad_enabled(grad))
                for cast in casts:
                    stack.enter_context(torch.autocast(*cast))
                yield

        with _new_threads.held():
            yield within

    def batch_bytes(self, device: Any) -> int:
        return CPU_BATCH_BYTES if device is None or device.type == "cpu" else GPU_BATCH_BYTES

    def host_buffer(self, size: int, device: Any) -> NDArray[np.uint8]:
        if device is None or device.type != "cuda":
            return np.empty(size, np.uint8)
        pinned: NDArray[np.uint8] = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        return pinned

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
        try:
            host: NDArray[Any] = array.detach().resolve_conj().resolve_neg().cpu().numpy()
        except TypeError:
            raise DataError(
                f"torch: a tensor of shape {tuple(array.shape)} has dtype {array.dtype}, which "
                "NumPy and files have not. Convert it first: tensor.float()."
            ) from None
        return host

    def on_host(self, array: Any) -> bool:
        return bool(array.device.type == "cpu")

    def settings(self) -> dict[str, Any]:
        return {"precision": torch.get_float32_matmul_precision()}

    def adopt(self, settings: Mapping[str, Any]) -> None:
        torch.set_float32_matmul_precision(settings["precision"])

    def requires_grad(self, array: Any) -> bool:
        return bool(array.requires_grad)

    def records(self, array: Any) -> bool:
        return torch.is_grad_enabled() and bool(array.requires_grad) and not self.is_traced(array)

    def is_traced(self, array: Any) -> bool:
        return bool(torch._C._functorch.is_functorch_wrapped_tensor(array))

    def has_values(self, array: Any) -> bool:
        return not self.is_traced(array)

    def namespace(self, array: Any) -> Any:
        return _Direct

    def shares(self, array: NDArray[Any], device: Any) -> bool:
        flags = array.flags
        return bool(device.type == "cpu" and flags.writeable and flags.c_contiguous)

    def stage(self, array: Any, device: Any) -> Any:
        return self.asarray(array, device) if isinstance(array, np.ndarray) else array

    def number(self, value: NDArray[Any], like: Any, dtype: Any) -> Any:
        return torch.asarray(value.item(), dtype=dtype or _dtype(value), device=like.device)

    def index(self, index: NDArray[Any], like: Any) -> Any:
        wide = index.astype(np.int64, copy=False) if index.dtype.kind == "i" else index
        return self.asarray(wide, like.device)

    def function(
        self, kernel: Kernel, statics: Mapping[str, Any], *, device: Any, compile: bool
    ) -> BatchFunction:
        return _function(kernel.function, kernel.per_item, static_key(statics), compile)

    def differentiable(
        self, forward: Forward, backward: Backward, parameters: Sequence[Any]
    ) -> Sequence[Any]:
        if any(map(self.is_traced, parameters)):  # torch.func differentiates plain code alone
            return forward(parameters)
        outputs: Sequence[Any] = _Operation.apply(forward, backward, *parameters)
        return outputs

    def pullback(
        self,
        kernel: Kernel,
        statics: Mapping[str, Any],
        wanted: tuple[bool, ...],
        shared_wanted: Mapping[str, Any],
        *,
        device: Any,
        compile: bool,
    ) -> Pullback:
        flags = tuple(tree_leaves(shared_wanted))
        if compile:
            return _compiled_pullback(
                kernel.function, kernel.per_item, static_key(statics), wanted, flags
            )
        function = self.function(kernel, statics, device=device, compile=False)

        def pull(
            arguments: Sequence[Any],
            keywords: Mapping[str, Any],
            shared: Mapping[str, Any],
            cotangents: Sequence[Any],
        ) -> tuple[Sequence[Any], Any]:
            outputs, slopes = _recorded(function, (arguments, keywords, shared), wanted, flags)
            return slopes(outputs, cotangents)

        return pull

    def loss_pullback(
        self,
        kernel: Kernel,
        statics: Mapping[str, Any],
        wanted: tuple[bool, ...],
        shared_wanted: Mapping[str, Any],
        *,
        device: Any,
        counted: bool,
    ) -> LossPullback:
        function = self.function(kernel, statics, device=device, compile=False)
        flags = tuple(tree_leaves(shared_wanted))

        def pull(
            arguments: Sequence[Any],
            keywords: Mapping[str, Any],
            shared: Mapping[str, Any],
            weights: Any,
        ) -> tuple[Sequence[Any], tuple[Sequence[Any], Any] | None]:
            outputs, slopes = _recorded(function, (arguments, keywords, shared), wanted, flags)
            losses = outputs[0]
            found = None
            if len(outputs) == 1 and losses.shape == weights.shape and losses.is_floating_point():
                found = slopes(outputs, [weights.to(losses.dtype)])
            return tuple(part.detach() for part in outputs), found

        return pull

    def unrecorded(self) -> AbstractContextManager[None]:
        quiet: AbstractContextManager[None] = torch.no_grad()
        return quiet

    def value_and_grad(
        self, function: Callable[[Sequence[Any]], Any], parameters: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        with torch.enable_grad():
            free = [_free(array, True) for array in parameters]
            value = function(free)
        if not value.requires_grad:
            return value, [torch.zeros_like(array) for array in parameters]
        slopes = torch.autograd.grad(value, free, allow_unused=True, materialize_grads=True)
        return value.detach(), slopes

    def zeros(self, shape: Sequence[int], like: Any) -> Any:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def add_rows(self, total: Any, rows: Any, values: Any) -> Any:
        flat = values.reshape(rows.numel(), *total.shape[1:])
        if torch._C._functorch.is_legacy_batchedtensor(values):  # of is_grads_batched=True
            return total.index_add(0, rows.reshape(-1), flat)
        return total.index_add_(0, rows.reshape(-1), flat)

    def cast(self, array: Any, like: Any) -> Any:
        return array.to(like.dtype)

    def collect(self, output: Any, like: Any) -> Any:
        return output

    def room(self, count: int, like: Any) -> Any:
        if like.requires_grad or self.is_traced(like):
            return None
        shape = (count, *like.shape[1:])
        size = count * like[:1].numel() * like.element_size()
        if like.device.type != "cpu" or size < LARGE_PAGES:
            return like.new_empty(shape)
        return torch.from_numpy(np.empty(size, np.uint8)).view(like.dtype).view(shape)

    def deliver(self, array: Any, device: Any) -> Any:
        return array

    def synchronize(self, outputs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def find_device(self, device: Any) -> Any:
        try:
            return torch.device(device)  # peaks are counted for one that is not here, too
        except (RuntimeError, TypeError):
            return None

    def free_bytes(self, device: Any) -> int:
        if device is None or torch.device(device).type != "cuda":
            return free_host_bytes()
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)

    def is_out_of_memory(self, error: BaseException) -> bool:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)

    def release(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

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
        inputs = (arguments, keywords, shared)
        return batch_peak(self, kernel, statics, inputs, rows=rows, device=device, wanted=wanted)

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
        return output_widths(self, kernel, statics, (arguments, keywords, shared), device=device)


class _Operation(torch.autograd.Function):
    """A forward pass that keeps its inputs alone, and a backward pass that recomputes."""

    @staticmethod
    def forward(ctx: Any, forward: Forward, backward: Backward, *parameters: Any) -> Any:
        ctx.save_for_backward(*parameters)
        ctx.gradients = backward
        kind = parameters[0].device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.set_materialize_grads(False)
        outputs = tuple(forward(parameters))
        flat = [part for part in outputs if not (part.is_floating_point() or part.is_complex())]
        ctx.mark_non_differentiable(*flat)
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        if torch.is_grad_enabled():
            raise FrameworkError(
                "run: second derivatives (create_graph=True) are not available through a run of "
                "several batches, whose gradient is recomputed batch by batch. Run one batch, "
                "rows=len(data), or take first derivatives in the kernel."
            )
        with torch.autocast(*ctx.autocast):  # batches are recomputed as they were computed
            found = ctx.gradients(ctx.saved_tensors, cotangents, ctx.needs_input_grad[2:])
        return (None, None, *found)


def _keep_new_threads() -> Callable[[], Any]:
    """Note the intra-op threads of threads that begin now, which one that sets its own changes."""

    def in_a_new_thread(call: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(call).result()

    count = in_a_new_thread(torch.get_num_threads)
    return lambda: in_a_new_thread(lambda: torch.set_num_threads(count))


_new_threads = Shared(_keep_new_threads)


def _free(array: Any, wanted: bool) -> Any:
    return array.detach().requires_grad_() if wanted else array


def _recorded(
    function: BatchFunction,
    operands: tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]],
    wanted: Sequence[bool],
    shared_wanted: Sequence[bool],
) -> tuple[tuple[Any, ...], Callable[[Sequence[Any], Sequence[Any]], tuple[Sequence[Any], Any]]]:
    """Give the outputs of a batch, recorded, and how cotangents of them are pulled back."""
    arguments, keywords, shared = operands
    leaves, nest = tree_flatten(shared)
    with torch.enable_grad():
        items = [_free(array, want) for array, want in zip(arguments, wanted, strict=True)]
        others = [_free(leaf, want) for leaf, want in zip(leaves, shared_wanted, strict=True)]
        outputs = as_tuple(function(items, keywords, tree_unflatten(others, nest)))

    def slopes(outputs: Sequence[Any], cotangents: Sequence[Any]) -> tuple[Sequence[Any], Any]:
        found = _slopes(outputs, cotangents, [*items, *others], [*wanted, *shared_wanted])
        return found[: len(items)], tree_unflatten(found[len(items) :], nest)

    return outputs, slopes


def _slopes(
    outputs: Sequence[Any], cotangents: Sequence[Any], inputs: Sequence[Any], wanted: Sequence[bool]
) -> list[Any]:
    """Gradients of the inputs that are wanted, None for the others and where none depends."""
    pairs = [
        (output, slope)
        for output, slope in zip(outputs, cotangents, strict=True)
        if slope is not None and output.requires_grad
    ]
    free = [array for array, want in zip(inputs, wanted, strict=True) if want]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs], free, [slope for _, slope in pairs], allow_unused=True
        )
        if pairs
        else [None] * len(free)
    )
    return [next(found) if want else None for want in wanted]


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

    @staticmethod
    def take_into(total: Any, values: Any, index: Any) -> None:
        torch.index_select(values, 0, index, out=total)

    @staticmethod
    def filled(rows: Any, inside: Any, fill: Any) -> Any:
        """Fill rows that are not inside, in place; a transform of a user gets a copy."""
        mask = inside[(...,) + (None,) * (rows.ndim - 1)]
        if torch._C._functorch.is_functorch_wrapped_tensor(rows):
            return torch.where(mask, rows, fill)
        if rows.ndim > 1 and rows.device.type == "cpu":  # a GPU would have to wait for a count
            return rows.index_fill_(0, torch.nonzero(~inside).view(-1), fill)
        return rows.masked_fill_(~mask, fill)


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
    return one_graph_per_shape(function) if compile else function


@functools.lru_cache(maxsize=256)
def _compiled_pullback(
    kernel: Callable[..., Any],
    per_item: bool,
    statics: StaticKey,
    wanted: tuple[bool, ...],
    shared_wanted: tuple[bool, ...],
) -> Pullback:
    function = _function(kernel, per_item, statics, compile=False)
    return compiled_pullback(function, wanted, shared_wanted)


def _dtype(value: NDArray[Any]) -> Any:
    return torch.from_numpy(np.empty(0, value.dtype)).dtype


adapter = TorchAdapter()
