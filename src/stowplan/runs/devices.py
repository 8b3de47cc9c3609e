"""The devices of one run: counted, listed, and checked to be of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import numpy as np
from array_api_compat import is_array_api_obj

from stowplan.adapters import FRAMEWORKS, Adapter, get_adapter
from stowplan.adapters.interface import TracingAdapter
from stowplan.adapters.intra_op import usable_cores
from stowplan.errors import FrameworkError, MissingDependencyError
from stowplan.runs.places import Place, find_device

__all__ = [
    "DevicesGiven",
    "Group",
    "Worker",
    "devices",
    "find_devices",
    "planned_devices",
    "refuse_gradients",
]

DevicesGiven: TypeAlias = int | str | Sequence[Any] | None


@dataclass(frozen=True, slots=True)
class Worker:
    """A thread of the host that computes with one intra-op thread; counts as a device there."""

    framework: str
    number: int

    def __str__(self) -> str:
        return f"worker {self.number}"


@dataclass(frozen=True, slots=True)
class Group:
    """The devices of one run, of one framework and platform, each once."""

    places: tuple[Place, ...]
    names: tuple[str, ...]

    @property
    def adapter(self) -> Adapter:
        """What all of them are of."""
        return self.places[0].adapter

    @property
    def one_program(self) -> bool:
        """Whether one compiled program may run on all of them."""
        return self.adapter.compiles and len(self.places) > 1

    @property
    def target(self) -> Place:
        """The place that a plan is made for: budgets are of one device."""
        on_host = self.adapter.kind_of(self.places[0].device) == "cpu"
        return replace(self.places[0], sharers=len(self.places) if on_host else 1)


def devices(count: int | str = "all", *, on: str) -> list[Any]:
    """List devices of a framework, as ``devices=`` of `plan`, `run` and `iterate` takes them.

    Parameters
    ----------
    count
        How many, or ``"all"``. In JAX this many virtual devices of the host are arranged for, where
        it has no others: only until JAX first looks for devices, so call this before anything else
        uses JAX.
    on
        The framework. Where it computes on the host and has no devices there, these are workers,
        threads with one intra-op thread each.

    Raises
    ------
    FrameworkError
        For fewer devices than asked; with the line to put first where that would give them.

    Examples
    --------
    >>> import stowplan as sp
    >>> [str(device) for device in sp.devices(2, on="numpy")]
    ['worker 0', 'worker 1']
    """
    where = "devices"
    try:
        adapter = get_adapter(on)
    except (FrameworkError, MissingDependencyError) as error:
        raise type(error)(f"{where}: {error}") from None
    _check_count(where, count)
    in_time = True
    if adapter.compiles and not isinstance(count, str):
        in_time = cast("TracingAdapter", adapter).arrange(int(count))
    return _count(where, adapter, _first_device(adapter), count, in_time=in_time)


def find_devices(where: str, target: Place, given: DevicesGiven) -> Group | None:
    """Give the devices that ``devices=`` asks for; None where it is None.

    ``target`` is where the run would be without it.

    Raises
    ------
    FrameworkError
        For fewer devices than asked, none, one twice, a mixture, and what names no devices.
    """
    if given is None:
        return None
    if isinstance(given, int | str | np.integer):
        _check_count(where, given)
        if not target.here and not isinstance(given, str):  # a plan for devices elsewhere
            return Group((target,) * int(given), tuple(map(str, range(int(given)))))
        found = _count(where, target.adapter, target.device, given)
    else:
        found = _listed(where, target.adapter, given)
    places = [
        replace(target, device=_first_device(target.adapter) if _is_worker(one) else one)
        for one in found
    ]
    return Group(tuple(places), tuple(map(str, found)))


def planned_devices(given: DevicesGiven, device: Any, plan: Any) -> DevicesGiven:
    """Give ``devices=`` of a call; where nothing is said, as many as its plan is shared among."""
    count = len(getattr(plan, "devices", ()))
    return count if given is None and device is None and count > 1 else given


def _first_device(adapter: Adapter) -> Any:
    return adapter.devices()[0]


def _is_worker(device: Any) -> bool:
    return isinstance(device, Worker)


def _check_count(where: str, given: Any) -> None:
    fine = given == "all" if isinstance(given, str) else not isinstance(given, bool) and given >= 1
    if not fine:
        raise FrameworkError(
            f'{where}: devices={given!r}; give how many, from 1, "all", or a list of devices.'
        )


def _count(
    where: str, adapter: Adapter, like: Any, count: int | str, *, in_time: bool = True
) -> list[Any]:
    """Give so many devices of the platform of one."""
    alike = adapter.alike(like)
    if alike is None:
        workers = usable_cores() if count == "all" else int(count)
        return [Worker(adapter.name, number) for number in range(workers)]
    if count == "all":
        return alike
    if int(count) <= len(alike):
        return alike[: int(count)]
    kind = adapter.kind_of(alike[0])
    cure = f'Ask for {len(alike)} or fewer, or devices="all".'
    if adapter.compiles and kind == "cpu":
        line = f"jax.config.update('jax_num_cpu_devices', {count})"
        cure = (
            f"Virtual ones are arranged before JAX starts: put first sp.devices({count}, "
            f"on={adapter.name!r}), or {line}."
        )
        if not in_time:
            cure = f"It is too late for virtual ones, as JAX has started. Put first: {line}."
    held = "1 device" if len(alike) == 1 else f"{len(alike)} devices"
    raise FrameworkError(
        f"{where}: {count} devices are asked for, but {adapter.name} has {held} of platform "
        f"{kind!r} here. {cure}"
    )


def _listed(where: str, adapter: Adapter, given: Any) -> list[Any]:
    if not isinstance(given, Sequence | np.ndarray):
        raise FrameworkError(
            f'{where}: devices={given!r}; give how many, from 1, "all", or a list of devices.'
        )
    if not len(given):
        raise FrameworkError(
            f"{where}: devices=[] names none. List some, or leave devices= out: it is one then."
        )
    frameworks = {name for name in map(_framework, given) if name is not None}
    if len(frameworks) > 1:
        raise FrameworkError(
            f"{where}: devices= mixes devices of {' and '.join(sorted(frameworks))}. A run is on "
            "one framework: list devices of one."
        )
    other = frameworks - {adapter.name}
    if other:
        (name,) = other
        raise FrameworkError(
            f"{where}: devices= lists devices of {name}, but the run is on {adapter.name}. Say "
            f"where: on={name!r}."
        )
    found = [one if _is_worker(one) else find_device(where, adapter, one) for one in given]
    for place, one in enumerate(found):
        if one in found[:place]:
            raise FrameworkError(
                f"{where}: devices= names {one} twice. Name each once"
                + ("; workers of a host are counted, devices=2." if _on_host(adapter, one) else ".")
            )
    kinds = {"cpu" if _is_worker(one) else adapter.kind_of(one): str(one) for one in found}
    if len(kinds) > 1:
        (first, one), (second, two), *_ = kinds.items()
        raise FrameworkError(
            f"{where}: devices= mixes platforms: {one} is of {first!r}, {two} of {second!r}. "
            "Batches are as large as one kind of device likes them: list devices of one."
        )
    return found


def _on_host(adapter: Adapter, device: Any) -> bool:
    return not _is_worker(device) and adapter.alike(device) is None


def _framework(device: Any) -> str | None:
    """Name the framework that a device is of; None for names and numbers."""
    if _is_worker(device):
        return str(device.framework)
    root = type(device).__module__.partition(".")[0].removesuffix("lib")
    return root if root in FRAMEWORKS else None


def refuse_gradients(where: str, adapter: Adapter, arrays: Sequence[Any]) -> None:
    """Refuse arrays whose gradient would be cut off, or that have no values yet."""
    for array in arrays:
        if not is_array_api_obj(array):
            continue
        if adapter.is_traced(array):
            raise FrameworkError(
                f"{where}: devices= computes values now, which a traced function (jit, grad, vmap) "
                "does not have. Leave devices= out there, or call it outside of the trace."
            )
        if adapter.requires_grad(array):
            raise FrameworkError(
                f"{where}: the data or shared parameters require grad, but a run on several "
                "devices has no gradient. Leave devices= out, also while planning, or detach them."
            )
