"""Kernels as compiled programs of JAX, one for each kernel, static arguments and padded shape."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stowplan.adapters.interface import (
    BatchFunction,
    LossPullback,
    Pullback,
    StaticKey,
    as_tuple,
)
from stowplan.adapters.intra_op import usable_cores

__all__ = [
    "Program",
    "cached_function",
    "cached_loss_pullback",
    "cached_pullback",
    "cached_shards",
    "compiler_options",
    "jitted",
    "jitted_gradient",
    "jitted_losses",
    "library_bytes",
    "traces",
    "within_a_program",
]

_COMPUTATION = re.compile(r"(?:ENTRY )?(%[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s*(ROOT )?(%[\w.-]+) = [a-z]+(\d*)\[([\d,]*)\]\S* ([\w-]+)\(([^)]*)\)")
_NAME = re.compile(r"%[\w.-]+")
_OF_LIBRARY = re.compile(r"calls=(%[\w.-]+).*__ynn_fusion")
_CONTRACTED = re.compile(r"rhs_contracting_dims=\{([\d,]*)\}")
_SUMMED = re.compile(r", dimensions=\{([\d,]*)\}")
_BATCHED = re.compile(r"rhs_batch_dims=\{([\d,]*)\}")
_READ = ("parameter", "constant", "broadcast", "bitcast")  # what a product reads where it lies
_FEW = 10  # rows for which the library copies no right operand in float64,

_ROWS = "rows"
_AUTO = (  # earlier meshes have no other axes
    {"axis_types": (jax.sharding.AxisType.Auto,)} if hasattr(jax.sharding, "AxisType") else {}
)

traces: Counter[str] = Counter()
"""Number of times each kernel was traced, by name; a compiled call does not trace again."""


class Program:
    """A jitted function whose memory is what the compiler says.

    On a CPU XLA hands sums to a library. In gradients that takes as much again as their operands,
    which its analysis does not count, so there it keeps matrix products alone; else it is twice as
    fast. Inside of a user's program the options are those of the user, and what has values
    already is computed at once, apart from it.
    """

    def __init__(self, function: Callable[..., Any], *, pulls_back: bool = False) -> None:
        self.pulls_back = pulls_back
        self.inside = jax.jit(function)
        options = compiler_options() if pulls_back else None
        self.outside = jax.jit(function, compiler_options=options)

    def __call__(self, *operands: Any, within: bool = False) -> Any:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(operands)):
            return self.inside(*operands)
        with jax.ensure_compile_time_eval() if within else nullcontext():
            return self.outside(*operands)

    def shapes(self, *operands: Any) -> Any:
        """Give shapes and dtypes of the outputs; what is traced for them is not traced again."""
        return self.outside.eval_shape(*operands)

    def peak_bytes(self, *operands: Any) -> int | None:
        """Compile for some shapes, which a later call needs not, and say what memory it takes.

        None where the compiler does not say.
        """

        def compiled() -> Any:
            return self.outside.lower(*operands).compile()

        program = _in_a_backward_pass(compiled) if self.pulls_back else compiled()
        found = program.memory_analysis()
        if found is None:
            return None
        counted = found.temp_size_in_bytes + found.output_size_in_bytes
        counted += found.argument_size_in_bytes - found.alias_size_in_bytes
        return int(counted) + (library_bytes(program.as_text()) if compiler_options() else 0)


def within_a_program() -> bool:
    """Say whether a user's program is traced now, whatever the operands are."""
    return isinstance(jax.device_put(0), jax.core.Tracer)  # which compiles nothing


def _in_a_backward_pass(call: Callable[[], Any]) -> Any:
    """Call where gradients are called from: what JAX has compiled elsewhere it compiles again."""
    found = []

    def backward(kept: None, slope: Any) -> tuple[Any]:
        found.append(call())
        return (slope,)

    same = jax.custom_vjp(lambda x: x)
    same.defvjp(lambda x: (x, None), backward)
    jax.grad(same)(0.0)
    return found[0]


def library_bytes(program: str, cores: int | None = None) -> int:
    r"""Bytes that XLA's library of fused sums takes in a compiled program.

    XLA does not count them. Of sums the library keeps what is summed along the first axes, whole,
    and nothing along others. It copies the whole right operand of a product that ends its
    fusion, columns rounded up to whole tiles; not where more is computed of the product, a tile at
    a time, nor in float64 where the left operand has few rows and the right one is not transposed.
    An operand that the fusion computes first is whole, too. Other products copy nothing. Each core
    may compute a fusion at a time: as many of them count, the largest.

    >>> library_bytes(
    ...     "%fused (a: f64[2,30], b: f64[3,30]) -> f64[2,3] {\n"
    ...     "  %a = f64[2,30] parameter(0)\n  %b = f64[3,30] parameter(1)\n"
    ...     "  ROOT %c = f64[2,3] dot(%a, %b), rhs_contracting_dims={1}\n}\n"
    ...     "  %d = f64[2,3] fusion(%x, %y), calls=%fused, config={\"__ynn_fusion\"}"
    ... )
    960
    """
    ours = set(_OF_LIBRARY.findall(program))
    taken: dict[str, int] = dict.fromkeys(ours, 0)
    within = ""
    made: dict[str, _Array] = {}
    for line in program.splitlines():
        opened = _COMPUTATION.match(line)
        if opened is not None:
            within, made = opened[1], {}
        found = _INSTRUCTION.match(line) if within in ours else None
        if found is None:
            continue
        root, name, bits, shape, operation, operands = found.groups()
        lengths = tuple(int(length) for length in shape.split(",") if length)
        made[name] = _Array(lengths, max(int(bits or 8) // 8, 1), operation)
        if operation == "dot":
            left, right = (made[each] for each in _NAME.findall(operands))
            taken[within] += _product_bytes(left, right, line, ends=root is not None)
        if operation == "reduce":
            summed = made[_NAME.findall(operands)[0]]
            along = _axes(_SUMMED, line)
            if along == list(range(len(along))) and len(along) < len(summed.lengths):
                taken[within] += summed.width * math.prod(summed.lengths)
    return sum(sorted(taken.values())[-(cores or usable_cores()) :])


class _Array(NamedTuple):
    """An array of a fusion, and the operation that gives it."""

    lengths: tuple[int, ...]
    width: int
    operation: str

    @property
    def computed_bytes(self) -> int:
        """Bytes of an operand that is computed for its product."""
        return 0 if self.operation in _READ else self.width * math.prod(self.lengths)


def _product_bytes(left: _Array, right: _Array, line: str, *, ends: bool) -> int:
    """Bytes of what the library copies and computes for one product."""
    size = left.computed_bytes + right.computed_bytes
    if not ends:
        return size
    contracted, batched = _axes(_CONTRACTED, line), _axes(_BATCHED, line)
    depth = math.prod(right.lengths[axis] for axis in contracted)
    repeated = math.prod(right.lengths[axis] for axis in batched)
    columns = math.prod(right.lengths) // max(depth * repeated, 1)
    rows = math.prod(left.lengths) // max(depth * repeated, 1)
    transposed = contracted[-1:] == [len(right.lengths) - 1]
    if right.width == 8 and rows <= _FEW and not transposed:
        return size
    tile = 4 if right.width < 8 or columns <= 4 else 8
    return size + right.width * depth * repeated * (-(-columns // tile) * tile)


def _axes(pattern: re.Pattern[str], line: str) -> list[int]:
    """Give the axes that an instruction names."""
    return [int(axis) for text in pattern.findall(line) for axis in text.split(",") if axis]


@functools.cache
def compiler_options() -> dict[str, str]:
    """Give the options of gradients of our own, those that this version of XLA knows."""
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # other versions of XLA know no such option
        return {}
    return options


def _batched(
    kernel: Callable[..., Any], name: str, per_item: bool, statics: StaticKey
) -> BatchFunction:
    """Give a kernel on batches: it broadcasts itself, in the order of loops that it was written in.

    ``vmap`` would make the rows the outermost axis of all that it computes.
    """
    fixed = {name: value for name, _, value in statics}

    def batched(
        arguments: Sequence[Any], keywords: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> Any:
        traces[name] += 1  # runs while tracing only

        def one(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
            return kernel(*arguments, **keywords, **shared, **fixed)

        with jax.default_matmul_precision("highest"):  # a GPU would round float32 to 10 bits
            call = jax.vmap(one) if per_item else one
            if any(array.size != 1 for array in arguments):
                return call(tuple(arguments), keywords)
            # XLA compiles a program of single numbers by other rules of rounding
            twice = [jnp.concatenate([array, array]) for array in arguments]
            masks = jax.tree.map(lambda mask: jnp.concatenate([mask, mask]), dict(keywords))
            found = call(tuple(twice), masks)
            return jax.tree.map(lambda part: part[:1] if getattr(part, "ndim", 0) else part, found)

    batched.__name__ = name  # what compile logs and profiles show
    return batched


@functools.lru_cache(maxsize=256)
def jitted(kernel: Callable[..., Any], name: str, per_item: bool, statics: StaticKey) -> Program:
    """Give the program of a kernel: ``(arguments, keywords, shared) -> outputs``."""
    return Program(_batched(kernel, name, per_item, statics))


@functools.lru_cache(maxsize=256)
def cached_function(
    kernel: Callable[..., Any], name: str, per_item: bool, statics: StaticKey, within: bool
) -> BatchFunction:
    """Give a kernel as the loop over batches calls it, ``within`` a user's program or not."""
    compiled = jitted(kernel, name, per_item, statics)

    def call(
        arguments: Sequence[Any], keywords: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> Any:
        return compiled(tuple(arguments), keywords, dict(shared), within=within)

    return call


@functools.lru_cache(maxsize=256)
def cached_shards(
    kernel: Callable[..., Any],
    name: str,
    per_item: bool,
    statics: StaticKey,
    devices: tuple[Any, ...],
) -> BatchFunction:
    """Give a kernel as one program over devices, each of which computes as many of the rows.

    Every JAX function wants lengths that the devices divide: of other rows the last one is
    repeated, and the repetitions are left out again.
    """
    mesh = Mesh(np.array(devices), (_ROWS,), **_AUTO)
    by_row, everywhere = PartitionSpec(_ROWS), PartitionSpec()
    specs = (by_row, by_row, everywhere)
    shards = _shard_map(
        _batched(kernel, name, per_item, statics), mesh=mesh, in_specs=specs, out_specs=by_row
    )
    places = tuple(NamedSharding(mesh, spec) for spec in specs)
    program = jax.jit(shards, in_shardings=places)

    def call(
        arguments: Sequence[Any], keywords: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> Any:
        given, rows = (tuple(arguments), dict(keywords)), arguments[0].shape[0]
        short = -rows % len(devices)
        if short:
            given = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], short, 0)]), given)
        found = program(*given, dict(shared))
        return jax.tree.map(lambda part: part[:rows], found) if short else found

    return call


def _shard_map(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Map over a mesh; what varies along it is not checked, which loops of kernels would fail."""
    mapped: Callable[..., Any]
    if hasattr(jax, "shard_map"):
        mapped = jax.shard_map(function, check_vma=False, **options)
    else:  # before JAX 0.7
        from jax.experimental.shard_map import shard_map

        mapped = shard_map(function, check_rep=False, **options)
    return mapped


@functools.lru_cache(maxsize=256)
def jitted_gradient(
    kernel: Callable[..., Any],
    name: str,
    per_item: bool,
    statics: StaticKey,
    wanted: tuple[bool, ...],
    shared_wanted: tuple[bool, ...],
) -> Program:
    """Give the program that pulls cotangents back, the last of its four operands."""
    batched = _batched(kernel, name, per_item, statics)
    flags = (*wanted, *shared_wanted)

    def gradient(
        arguments: Sequence[Any], keywords: Any, shared: Any, cotangents: Sequence[Any]
    ) -> Any:
        results, free, nested = _of_wanted(batched, (arguments, keywords, shared), flags)

        def outputs(*free: Any) -> list[Any]:
            pairs = zip(results(*free), cotangents, strict=True)
            return [part for part, slope in pairs if slope is not None]

        _, pull = jax.vjp(outputs, *free)
        return nested(pull([slope for slope in cotangents if slope is not None]))

    gradient.__name__ = f"gradient of {name}"
    return Program(gradient, pulls_back=True)


def _of_wanted(
    batched: BatchFunction, operands: tuple[Any, Any, Any], flags: Sequence[bool]
) -> tuple[Callable[..., tuple[Any, ...]], list[Any], Callable[[Sequence[Any]], tuple[Any, Any]]]:
    """Give the outputs as a function of what is wanted, its values, and how gradients nest."""
    arguments, keywords, shared = operands
    leaves, nest = jax.tree.flatten(shared, is_leaf=lambda x: x is None)
    inputs = [*arguments, *leaves]

    def outputs(*free: Any) -> tuple[Any, ...]:
        found = iter(free)
        merged = [next(found) if want else x for x, want in zip(inputs, flags, strict=True)]
        others = jax.tree.unflatten(nest, merged[len(arguments) :])
        return as_tuple(batched(merged[: len(arguments)], keywords, others))

    def nested(slopes: Sequence[Any]) -> tuple[Any, Any]:
        found = iter(slopes)
        every = [next(found) if want else None for want in flags]
        return every[: len(arguments)], jax.tree.unflatten(nest, every[len(arguments) :])

    return outputs, [x for x, want in zip(inputs, flags, strict=True) if want], nested


@functools.lru_cache(maxsize=256)
def jitted_losses(
    kernel: Callable[..., Any],
    name: str,
    per_item: bool,
    statics: StaticKey,
    wanted: tuple[bool, ...],
    shared_wanted: tuple[bool, ...],
    counted: bool,
) -> Program:
    """Give the program of losses and their gradient, weighed by the last of its four operands.

    Where nobody counts its memory, which is far from any limit then, the library keeps all sums.
    """
    batched = _batched(kernel, name, per_item, statics)
    flags = (*wanted, *shared_wanted)

    def losses(arguments: Sequence[Any], keywords: Any, shared: Any, weights: Any) -> Any:
        outputs, free, nested = _of_wanted(batched, (arguments, keywords, shared), flags)
        parts, pull = jax.vjp(lambda *free: tuple(outputs(*free)), *free)
        first = parts[0]
        floating = jnp.issubdtype(first.dtype, jnp.floating)
        if len(parts) != 1 or first.shape != weights.shape or not floating:
            return parts, None
        return parts, nested(pull((weights.astype(first.dtype),)))

    losses.__name__ = f"loss and gradient of {name}"
    return Program(losses, pulls_back=counted)


@functools.lru_cache(maxsize=256)
def cached_loss_pullback(
    kernel: Callable[..., Any],
    name: str,
    per_item: bool,
    statics: StaticKey,
    wanted: tuple[bool, ...],
    shared_wanted: tuple[bool, ...],
    counted: bool,
    within: bool,
) -> LossPullback:
    """Give losses and their gradient as the loop over batches calls them, likewise."""
    compiled = jitted_losses(kernel, name, per_item, statics, wanted, shared_wanted, counted)

    def call(
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        shared: Mapping[str, Any],
        weights: Any,
    ) -> Any:
        return compiled(tuple(arguments), keywords, dict(shared), weights, within=within)

    return call


@functools.lru_cache(maxsize=256)
def cached_pullback(
    kernel: Callable[..., Any],
    name: str,
    per_item: bool,
    statics: StaticKey,
    wanted: tuple[bool, ...],
    shared_wanted: tuple[bool, ...],
    within: bool,
) -> Pullback:
    """Give the gradient of a kernel as the loop over batches calls it, likewise."""
    compiled = jitted_gradient(kernel, name, per_item, statics, wanted, shared_wanted)

    def call(
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        shared: Mapping[str, Any],
        cotangents: Sequence[Any],
    ) -> Any:
        operands = (tuple(arguments), keywords, dict(shared), list(cotangents))
        return compiled(*operands, within=within)

    return call
