"""What every adapter can do; the loop in ``runs`` asks for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stowplan.declaration import Kernel

__all__ = [
    "Adapter",
    "Backward",
    "BatchFunction",
    "Forward",
    "GradientAdapter",
    "LossPullback",
    "Pullback",
    "StaticKey",
    "TracingAdapter",
    "Wanted",
    "Within",
    "as_tuple",
    "static_key",
]

BatchFunction = Callable[[Sequence[Any], Mapping[str, Any], Mapping[str, Any]], Any]
"""``(arguments, keywords, shared) -> outputs`` for one padded batch.

Rows lead in the arguments and in the arrays of the keywords, which are those that differ by row:
``{}``, ``{"mask": {...}}`` or ``{"mask": {...}, "segments": {...}}``.
"""

Within = Callable[[Any], AbstractContextManager[Any]]
"""``device -> context`` that a thread works in on a device."""

Wanted = tuple[tuple[bool, ...], Mapping[str, Any]]
"""Which arguments, and which parts of the shared parameters, get a gradient."""

CPU_BATCH_BYTES = 16 * 2**20
GPU_BATCH_BYTES = 2**30


class Adapter(Protocol):
    """One framework: arrays in and out, and kernels made callable on batches.

    Attributes
    ----------
    name
        Name of the framework, as ``on=`` takes it.
    compiles
        Whether each new padded shape costs a compile, so that few shapes and padded rows pay.
    in_place
        Whether gathering fills padding in place; else in a copy.
    one_core
        Whether a call computes on one core and lets others compute beside it.
    peak_probe
        What `peak_bytes` looks at: "fake" tensors of the shapes alone, a "real" call, or the
        "compiled" shape itself.
    peak_margin
        Share that a batch was measured to take beyond `peak_bytes`, at most.
    spare_share, spare_bytes
        Of a budget what is left to pages, allocators and the interpreter, as measured.
    gap_bytes
        Most that blocks of many shapes leave in the heap of a host, gaps that no other block fills.
    round_gap_bytes
        The same of the rows of an iteration, which come and go in blocks of many shapes.
    result_sets
        Arrays as large as the results that are alive in a backward pass: the results, which a
        caller or a loss keeps, their cotangents, and those staged; in JAX one more that its own
        pass through the loss still holds. 0 without gradients.
    work_seconds, launch_seconds, compile_seconds
        Shipped constants of the cost objective: a unit of work, a kernel call, a new shape.
    """

    name: str
    compiles: bool
    in_place: bool
    one_core: bool
    peak_probe: str
    peak_margin: float
    spare_share: float
    spare_bytes: int
    gap_bytes: int
    round_gap_bytes: int
    result_sets: int
    work_seconds: float
    launch_seconds: float
    compile_seconds: float

    def devices(self) -> list[Any]:
        """List the devices that this process can use; the first is the default."""

    def kind_of(self, device: Any) -> str:
        """Name the platform of a device: only devices of one share a run."""

    def alike(self, device: Any) -> list[Any] | None:
        """List the devices of the same platform; None for a host that any number of workers share.

        Such workers are threads with one intra-op thread each.
        """

    def alongside(self) -> AbstractContextManager[Within]:
        """While several devices or workers compute: give what a thread of each works in.

        What the caller has set for its own thread holds in these, too.
        """

    def batch_bytes(self, device: Any) -> int:
        """Size at which a batch is fastest where no budget asks for less: what a cache holds."""

    def host_buffer(self, size: int, device: Any) -> NDArray[np.uint8]:
        """Give bytes of host memory that is copied to the device fastest: pinned for a GPU."""

    def device_of(self, array: Any) -> Any:
        """Give the device of an array."""

    def asarray(self, array: NDArray[Any], device: Any) -> Any:
        """Move a host array to a device, with its dtype kept or an error."""

    def put(self, arrays: Sequence[NDArray[Any]], device: Any) -> list[Any]:
        """Move several host arrays of one's own at once, contiguous ones; else as ``asarray``."""

    def to_host(self, array: Any) -> NDArray[Any]:
        """Give the values of an array as NumPy, on request only."""

    def on_host(self, array: Any) -> bool:
        """Whether `to_host` reads the array where it lies, at no cost."""

    def requires_grad(self, array: Any) -> bool:
        """Whether leaving the framework would cut this array off its gradient."""

    def records(self, array: Any) -> bool:
        """Whether the framework follows what is computed from the array, for a gradient."""

    def is_traced(self, array: Any) -> bool:
        """Whether the array is a stand-in (under a user's jit, grad or vmap)."""

    def has_values(self, array: Any) -> bool:
        """Whether there are values now: also behind a stand-in that only a gradient follows."""

    def namespace(self, array: Any) -> Any:
        """Give take, where, reshape, concat, full and asarray for staged or collected arrays."""

    def shares(self, array: NDArray[Any], device: Any) -> bool:
        """Whether `stage` takes the memory of a host array as it is, else a copy."""

    def stage(self, array: Any, device: Any) -> Any:
        """Put an array of this framework, or of the host, where batches are gathered from it."""

    def number(self, value: NDArray[Any], like: Any, dtype: Any) -> Any:
        """Give a 0-d host array as one beside ``like``, in a dtype (None: its own)."""

    def index(self, index: NDArray[Any], like: Any) -> Any:
        """Put index or mask arrays beside staged values, in the dtype that indexing wants."""

    def function(
        self, kernel: Kernel, statics: Mapping[str, Any], *, device: Any, compile: bool
    ) -> BatchFunction:
        """Make a kernel callable on padded batches there; cached: nothing compiles twice.

        A tuple of devices, where a framework compiles, is one program over all of them.
        """

    def collect(self, output: Any, like: Any) -> Any:
        """Bring one output of a batch to where the rows are put together."""

    def room(self, count: int, like: Any) -> Any:
        """Give an array of so many rows like those of another; None where none can be assigned."""

    def deliver(self, array: Any, device: Any) -> Any:
        """Give a result, put together from collected outputs, to the user of this framework."""

    def synchronize(self, outputs: Any) -> None:
        """Wait until the devices have computed some outputs."""

    def find_device(self, device: Any) -> Any:
        """Give a device to count the memory of; None where it must be one of `devices`."""

    def free_bytes(self, device: Any) -> int:
        """Bytes that new arrays on a device can take."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error says that memory ran out, on the device or on the host."""

    def release(self) -> None:
        """Give back what is allocated and in use by no array."""

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
        """Bytes of one call of `function`, or of `pullback`, at its peak.

        Counted are the padded arguments, masks and segments of ``rows`` rows, shared parameters,
        temporaries and outputs; for a pullback also the cotangents of the outputs and the gradients
        of what is wanted. Not counted are columns and index arrays, the copies that gathering and
        putting away make, and workspaces of libraries. ``arguments`` and ``keywords`` are those of
        one row. What a first call imports and caches is not counted either.
        """

    def settings(self) -> dict[str, Any]:
        """Give what results depend on in this process and may be otherwise in another."""

    def adopt(self, settings: Mapping[str, Any]) -> None:
        """Take over the settings of another process."""

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
        """Bytes of a number in each output, whatever the shapes; arguments are those of one row."""


Forward = Callable[[Sequence[Any]], Sequence[Any]]
"""``parameters -> outputs``, flat arrays."""
Backward = Callable[[Sequence[Any], Sequence[Any], Sequence[bool]], Sequence[Any]]
"""``(parameters, cotangents of the outputs, which are wanted) -> gradients``; None for none."""
Pullback = Callable[
    [Sequence[Any], Mapping[str, Any], Mapping[str, Any], Sequence[Any]], tuple[Sequence[Any], Any]
]
"""``(arguments, keywords, shared, cotangents) -> gradients of arguments and of shared``."""
LossPullback = Callable[
    [Sequence[Any], Mapping[str, Any], Mapping[str, Any], Any],
    tuple[Sequence[Any], tuple[Sequence[Any], Any] | None],
]
"""``(arguments, keywords, shared, weights) -> outputs, gradients as of a `Pullback```.

The only output is a loss for each row, (rows,), and weights are what each counts in their sum. None
instead of gradients where the outputs are not that.
"""


class GradientAdapter(Adapter, Protocol):
    """A framework with gradients."""

    def differentiable(
        self, forward: Forward, backward: Backward, parameters: Sequence[Any]
    ) -> Sequence[Any]:
        """Call ``forward`` as one operation whose gradient ``backward`` gives."""

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
        """Make the gradient of a kernel callable on padded batches; cached like ``function``."""

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
        """Make losses and their gradient callable in one pass, likewise.

        ``counted`` says that a plan has predicted their peak from that of `pullback`.
        """

    def unrecorded(self) -> AbstractContextManager[None]:
        """Record no gradients of what is computed within."""

    def value_and_grad(
        self, function: Callable[[Sequence[Any]], Any], parameters: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        """Give a scalar function of parameters, and its gradient with respect to each."""

    def zeros(self, shape: Sequence[int], like: Any) -> Any:
        """Give zeros in the dtype and beside a staged array."""

    def add_rows(self, total: Any, rows: Any, values: Any) -> Any:
        """Add values (*rows.shape, ...) to rows of a total, in place where that is possible."""

    def cast(self, array: Any, like: Any) -> Any:
        """Give an array in the dtype of another."""


class TracingAdapter(GradientAdapter, Protocol):
    """A framework that traces a user's function into one program."""

    def arrange(self, count: int) -> bool:
        """Arrange for so many virtual devices of the host; False where it is too late for more."""

    def keep_compiled(self, folder: Path, name: str) -> None:
        """Keep compiled programs in a folder for later processes; errors say who named it."""

    def scan(self, step: Callable[[Any, Any], Any], carry: Any, batches: Any) -> Any:
        """Carry something through a step for each of the batches, arrays with one more axis."""

    def program(self, function: Callable[..., Any], *statics: Hashable) -> Callable[[Any], Any]:
        """Make ``function(arrays, *statics)`` one program of the arrays, kept for other values."""

    def constant(self, array: NDArray[Any]) -> Any:
        """Give a host array as a constant of the program that is traced."""

    def beside_results(self, nest: Any, device: Any) -> Any:
        """Move host arrays to where programs leave theirs: each takes both without a compile."""

    def set_rows(self, total: Any, rows: Any, values: Any) -> Any:
        """Put values (*rows.shape, ...) into rows of a total."""

    def abstract(self, function: Callable[..., Any], *operands: Any) -> Any:
        """Give shapes and dtypes of what a function returns, without computing it."""


StaticKey = tuple[tuple[str, type, Hashable], ...]


def static_key(statics: Mapping[str, Any]) -> StaticKey:
    """Give static parameters as a key; 1, 1.0 and True are three values."""
    return tuple((name, type(value), value) for name, value in sorted(statics.items()))


def as_tuple(outputs: Any) -> tuple[Any, ...]:
    """Give the outputs of a kernel as a tuple, NamedTuples kept."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
