"""JAX: ``jit(vmap(kernel))``, one executable per kernel, static arguments and padded shape."""

from __future__ import annotations

import functools
import gc
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from numpy.typing import NDArray

from stowplan.adapters.interface import (
    CPU_BATCH_BYTES,
    GPU_BATCH_BYTES,
    Backward,
    BatchFunction,
    Forward,
    LossPullback,
    Pullback,
    Wanted,
    Within,
    as_tuple,
    static_key,
)
from stowplan.adapters.jax_cache import keep_compiled, keep_compiled_by_environment
from stowplan.adapters.jax_programs import (
    cached_function,
    cached_loss_pullback,
    cached_pullback,
    cached_shards,
    jitted,
    jitted_gradient,
    traces,
    within_a_program,
)
from stowplan.declaration import Kernel
from stowplan.errors import FrameworkError, PlanError
from stowplan.host_memory import aligned_buffer, free_host_bytes
from stowplan.layout import Layout
from stowplan.ragged import Ragged

__all__ = ["adapter"]

_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision")
"""What results depend on beside the data."""
_WIDE = {"float64": "float32", "complex128": "complex64"}
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "YNNPACK operation failed")
"""XLA's word for no memory, and that of its library of sums on a CPU, which names no reason."""


_FORCED = "xla_force_host_platform_device_count"
"""The option of XLA that says how many devices the host has, in place of JAX's own."""


class JaxAdapter:
    """Batches are compiled calls; host data are gathered in NumPy, so that totals are no key.

    Attributes
    ----------
    traces : Counter
        Number of times each kernel was traced, by name; a compiled call does not trace again.
    """

    name = "jax"
    traces = traces
    compiles = True
    in_place = False  # a batch gathered so fast meets arrays that XLA has not let go of
    one_core = False
    peak_probe = "compiled"
    peak_margin = 0.02
    spare_share = 0.12
    spare_bytes = 2**24
    gap_bytes = round_gap_bytes = 20 << 20  # blocks are aligned for vector units
    result_sets = 4
    work_seconds = 1e-9
    launch_seconds = 5e-4
    compile_seconds = 0.6

    def devices(self) -> list[Any]:
        return list(jax.devices())

    def kind_of(self, device: Any) -> str:
        if device is None:  # of a traced array
            return str(jax.default_backend())
        every = getattr(device, "device_set", {device})  # of an array that lies on several
        return str(next(iter(every)).platform)

    def alike(self, device: Any) -> list[Any] | None:
        return list(jax.local_devices(backend=self.kind_of(device)))

    @contextmanager
    def alongside(self) -> Iterator[Within]:
        wide = jax.config.jax_enable_x64  # which a caller may have set for its own thread
        yield lambda device: _enable_x64(wide)

    def arrange(self, count: int) -> bool:
        forced = re.search(rf"{_FORCED}=(\d+)", os.environ.get("XLA_FLAGS", ""))
        if forced is not None and int(forced[1]) < count:
            raise FrameworkError(
                f"devices: {count} devices are asked for, but XLA_FLAGS has {forced[0]}. Take that "
                f"option out, or write {_FORCED}={count}."
            )
        if forced is not None or count < 2 or jax.config.jax_num_cpu_devices >= count:
            return True
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError:  # the backend has started
            return False
        return True

    def batch_bytes(self, device: Any) -> int:
        cpu = device is None or getattr(device, "platform", "") == "cpu"
        return CPU_BATCH_BYTES if cpu else GPU_BATCH_BYTES

    def host_buffer(self, size: int, device: Any) -> NDArray[np.uint8]:
        return aligned_buffer(size)

    def device_of(self, array: Any) -> Any:
        if self.is_traced(array):
            return None
        if isinstance(array, np.ndarray):
            return "host"
        devices = array.devices()
        return next(iter(devices)) if len(devices) == 1 else array.sharding

    def asarray(self, array: NDArray[Any], device: Any) -> Any:
        return jax.device_put(self._checked(array), device)

    def put(self, arrays: Sequence[NDArray[Any]], device: Any) -> list[Any]:
        checked = [self._checked(array) for array in arrays]
        return list(jax.device_put(checked, device))  # one call: each takes 15 us

    def to_host(self, array: Any) -> NDArray[Any]:
        return np.asarray(array)

    def on_host(self, array: Any) -> bool:
        device = self.device_of(array)
        return device == "host" or getattr(device, "platform", None) == "cpu"

    def settings(self) -> dict[str, Any]:
        return {name: getattr(jax.config, name) for name in _SETTINGS}

    def adopt(self, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            jax.config.update(name, value)

    def requires_grad(self, array: Any) -> bool:
        return self.is_traced(array)

    def records(self, array: Any) -> bool:
        return self.is_traced(array)

    def is_traced(self, array: Any) -> bool:
        return isinstance(array, jax.core.Tracer)

    def has_values(self, array: Any) -> bool:
        while isinstance(array, jax.core.Tracer):  # one of a gradient holds what it follows
            array = getattr(array, "primal", None)
        return array is not None

    def namespace(self, array: Any) -> Any:
        return np if isinstance(array, np.ndarray) else jnp

    def shares(self, array: NDArray[Any], device: Any) -> bool:
        wide = array.dtype.kind in "iu" and array.dtype.itemsize > 4
        return array.flags.c_contiguous and (jax.config.jax_enable_x64 or not wide)

    def stage(self, array: Any, device: Any) -> Any:
        if isinstance(array, np.ndarray):
            return self._checked(np.asarray(array, order="C"))
        if not self.is_traced(array) and getattr(device, "platform", None) == "cpu":
            return np.asarray(array)  # shares memory
        return array

    def number(self, value: NDArray[Any], like: Any, dtype: Any) -> Any:
        return value if dtype is None else value.astype(dtype)

    def index(self, index: NDArray[Any], like: Any) -> Any:
        if isinstance(like, np.ndarray):
            return index
        with jax.ensure_compile_time_eval():  # a constant, also where a user's jit traces
            return jnp.asarray(_narrow(index) if index.dtype.kind == "i" else index)

    def function(
        self, kernel: Kernel, statics: Mapping[str, Any], *, device: Any, compile: bool
    ) -> BatchFunction:
        if isinstance(device, tuple):
            return cached_shards(
                kernel.function, kernel.name, kernel.per_item, static_key(statics), device
            )
        compiled = cached_function(
            kernel.function, kernel.name, kernel.per_item, static_key(statics), within_a_program()
        )
        if device is None or device == _default_device():
            return compiled

        def call(*operands: Any) -> Any:
            with jax.default_device(device):  # host operands go there
                return compiled(*operands)

        return call

    def differentiable(
        self, forward: Forward, backward: Backward, parameters: Sequence[Any]
    ) -> Sequence[Any]:
        def first(*primals: Any) -> tuple[Any, Any]:
            values = [_as_array(primal.value) for primal in primals]
            # None or (): no leaf, but structure that tells which gradients are wanted
            wanted = tuple(() if primal.perturbed else None for primal in primals)
            return tuple(forward(values)), (values, wanted)

        def second(kept: Any, cotangents: Sequence[Any]) -> tuple[Any, ...]:
            values, flags = kept
            wanted = [
                flag is not None and jnp.issubdtype(value.dtype, jnp.inexact)
                for flag, value in zip(flags, values, strict=True)
            ]
            return tuple(backward(values, [_or_none(part) for part in cotangents], wanted))

        call = jax.custom_vjp(lambda *values: tuple(forward(values)))
        call.defvjp(first, second, symbolic_zeros=True)
        outputs: Sequence[Any] = call(*parameters)
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
        flags = tuple(jax.tree.leaves(shared_wanted))
        return cached_pullback(
            kernel.function, kernel.name, kernel.per_item, static_key(statics), wanted, flags,
            within_a_program(),
        )  # fmt: skip

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
        flags = tuple(jax.tree.leaves(shared_wanted))
        return cached_loss_pullback(
            kernel.function, kernel.name, kernel.per_item, static_key(statics), wanted, flags,
            counted, within_a_program(),
        )  # fmt: skip

    def unrecorded(self) -> AbstractContextManager[None]:
        return nullcontext()  # what is recorded is asked for, by tracing

    def value_and_grad(
        self, function: Callable[[Sequence[Any]], Any], parameters: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        value, slopes = jax.value_and_grad(function)(list(parameters))
        return value, slopes

    def zeros(self, shape: Sequence[int], like: Any) -> Any:
        xp = np if isinstance(like, np.ndarray) else jnp
        return xp.zeros(tuple(shape), dtype=like.dtype)

    def add_rows(self, total: Any, rows: Any, values: Any) -> Any:
        if not isinstance(total, np.ndarray):
            return total.at[rows].add(values)
        np.add.at(total, rows, values)
        return total

    def cast(self, array: Any, like: Any) -> Any:
        return array.astype(like.dtype)

    def keep_compiled(self, folder: Path, name: str) -> None:
        keep_compiled(folder, name)

    def scan(self, step: Callable[[Any, Any], Any], carry: Any, batches: Any) -> Any:
        return jax.lax.scan(lambda carry, batch: (step(carry, batch), None), carry, batches)[0]

    def program(self, function: Callable[..., Any], *statics: Hashable) -> Callable[[Any], Any]:
        program: Callable[[Any], Any] = _program(function, statics)
        return program

    def constant(self, array: NDArray[Any]) -> Any:
        with jax.ensure_compile_time_eval():
            return jnp.asarray(self._checked(array))

    def beside_results(self, nest: Any, device: Any) -> Any:
        checked = jax.tree.map(lambda x: self._checked(x) if isinstance(x, np.ndarray) else x, nest)
        if getattr(device, "platform", None) == "cpu":
            return checked
        with jax.default_device(device):  # to name it would commit the arrays to it
            return jax.device_put(checked)  # one call: each takes as long as a small gather

    def set_rows(self, total: Any, rows: Any, values: Any) -> Any:
        return total.at[rows].set(values)

    def abstract(self, function: Callable[..., Any], *operands: Any) -> Any:
        return jax.eval_shape(function, *operands)

    def collect(self, output: Any, like: Any) -> Any:
        if isinstance(like, np.ndarray) and not self.is_traced(output):
            return np.asarray(output)
        return output

    def room(self, count: int, like: Any) -> Any:
        if not isinstance(like, np.ndarray):
            return None
        return np.empty((count, *like.shape[1:]), like.dtype)

    def deliver(self, array: Any, device: Any) -> Any:
        return (
            jax.device_put(array, device) if isinstance(array, np.ndarray | np.generic) else array
        )

    def synchronize(self, outputs: Any) -> None:
        jax.block_until_ready(outputs)

    def find_device(self, device: Any) -> Any:
        return None

    def free_bytes(self, device: Any) -> int:
        of_device = getattr(device, "memory_stats", None)
        stats = of_device() if of_device else None
        if not stats or "bytes_limit" not in stats:
            return free_host_bytes()
        return int(stats["bytes_limit"] - stats["bytes_in_use"])

    def is_out_of_memory(self, error: BaseException) -> bool:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return any(text in str(error) for text in _NO_MEMORY)
        return isinstance(error, MemoryError)

    def release(self) -> None:
        gc.collect()

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
        """Compile this shape and read its analysis; a later run of it compiles nothing."""
        there = None if device is None or device == _default_device() else device
        with nullcontext() if there is None else jax.default_device(there):
            inputs = (
                *_of_rows((tuple(arguments), dict(keywords)), rows),
                jax.tree.map(lambda x: _shape(x, x.shape), dict(shared)),
            )
            program = jitted(kernel.function, kernel.name, kernel.per_item, static_key(statics))
            if wanted is not None:
                slopes = [
                    part if _is_floating(part) else None
                    for part in as_tuple(program.shapes(*inputs))
                ]
                inputs = (*inputs, slopes)
                program = jitted_gradient(
                    kernel.function, kernel.name, kernel.per_item, static_key(statics), wanted[0],
                    tuple(jax.tree.leaves(wanted[1])),
                )  # fmt: skip
            found = program.peak_bytes(*inputs)
        if found is None:
            raise PlanError(
                f"JAX does not say how much memory a compiled shape takes on {device}. Give the "
                "bytes by hand: peak=(fixed_bytes, bytes_per_row)."
            )
        return found

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
        program = jitted(kernel.function, kernel.name, kernel.per_item, static_key(statics))
        given = _of_rows((tuple(arguments), dict(keywords)), 1)
        outputs = program.shapes(*given, dict(shared))
        return tuple(part.dtype.itemsize for part in jax.tree.leaves(as_tuple(outputs)))

    def _checked(self, array: NDArray[Any]) -> NDArray[Any]:
        if jax.config.jax_enable_x64:
            return array
        if array.dtype.name in _WIDE:
            raise FrameworkError(
                f"jax: the data are {array.dtype}, but x64 is off and JAX would round them to "
                f"{_WIDE[array.dtype.name]}. Switch it on first, "
                "jax.config.update('jax_enable_x64', True), or convert the data."
            )
        return _narrow(array) if array.dtype.kind in "iu" else array


@functools.lru_cache(maxsize=256)
def _program(function: Callable[..., Any], statics: tuple[Hashable, ...]) -> Callable[[Any], Any]:
    def program(arrays: Any) -> Any:
        return function(arrays, *statics)

    jitted: Callable[[Any], Any] = jax.jit(program)
    return jitted


def _default_device() -> Any:
    return jax.config.jax_default_device or jax.local_devices()[0]


def _enable_x64(wide: bool) -> AbstractContextManager[Any]:
    if hasattr(jax, "enable_x64"):
        found: AbstractContextManager[Any] = jax.enable_x64(wide)
        return found
    from jax.experimental import enable_x64  # where it was before JAX 0.8

    earlier: AbstractContextManager[Any] = enable_x64(wide)
    return earlier


def _narrow(index: NDArray[Any]) -> NDArray[Any]:
    """Give integers in JAX's own width, after a range check."""
    if jax.config.jax_enable_x64 or index.dtype.itemsize <= 4:
        return index
    limit = np.iinfo(np.int32)
    if index.size and (index.max() > limit.max or index.min() < limit.min):
        raise FrameworkError(
            f"jax: an integer of {int(np.abs(index).max())} needs 64 bits, but x64 is off. "
            "Switch it on first: jax.config.update('jax_enable_x64', True)."
        )
    return index.astype(np.int32)


def _of_rows(value: Any, rows: int) -> Any:
    return jax.tree.map(lambda x: _shape(x, (rows, *x.shape[1:])), value)


def _shape(array: Any, shape: tuple[int, ...]) -> Any:
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(array.dtype))


def _is_floating(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


def _as_array(value: Any) -> Any:
    return value if hasattr(value, "ndim") else jnp.asarray(value)  # a number, outside of jit


def _or_none(cotangent: Any) -> Any:
    """Give None where a cotangent is known to be zero."""
    zero = isinstance(cotangent, SymbolicZero)
    return None if zero or cotangent.dtype == jax.dtypes.float0 else cotangent


jax.tree_util.register_pytree_node(
    Ragged,
    lambda ragged: ((ragged.values,), ragged.layout),
    lambda layout, leaves: Ragged.from_layout(leaves[0], _as_layout(layout)),
)


def _as_layout(layout: Any) -> Layout:
    assert isinstance(layout, Layout)
    return layout


keep_compiled_by_environment()
adapter = JaxAdapter()
