"""Kernels in bytes: by import path where they stand in a module, else by value."""

from __future__ import annotations

import importlib
import io
import pickle
import sys
from collections.abc import Mapping
from functools import reduce
from types import ModuleType
from typing import Any

from stowplan.declaration import Kernel
from stowplan.errors import SignatureError

__all__ = ["dumps", "is_importable", "loads"]


def is_importable(kernel: Kernel) -> bool:
    """Whether another process finds the kernel by module and name.

    One of ``__main__`` it does not find, nor one of a module that was registered with
    ``cloudpickle.register_pickle_by_value``.
    """
    names = vars(kernel)
    module, name = names["__module__"], names["__qualname__"]
    if module == "__main__" or module not in sys.modules:
        return False
    cloudpickle = sys.modules.get("cloudpickle")
    if cloudpickle is not None:
        parents = module.split(".")
        by_value = cloudpickle.list_registry_pickle_by_value()
        if any(".".join(parents[: n + 1]) in by_value for n in range(len(parents))):
            return False
    try:
        found: Any = reduce(getattr, name.split("."), sys.modules[module])
    except AttributeError:
        return False
    return found is kernel


def dumps(where: str, name: str, sent: Any, parts: Mapping[str, Any]) -> bytes:
    """Give an object in bytes.

    Parameters
    ----------
    where, name
        The caller and its kernel, for messages.
    sent
        What refers to the kernel.
    parts
        Pieces of it by name, to say which one cannot be sent.

    Raises
    ------
    SignatureError
        For what cannot be sent, saying what to do.
    """
    try:
        return _dumps(sent)
    except Exception as error:  # noqa: BLE001  whatever a class raises where it is not to be pickled
        culprit, reason = name, error
        for part, value in parts.items():
            try:
                _dumps(value)
            except Exception as found:  # noqa: BLE001  as above
                culprit, reason = part, found
                break
        raise SignatureError(
            f"{where}: {culprit} cannot be sent to another process: {type(reason).__name__}: "
            f"{reason}. {_cure()}"
        ) from reason


def loads(content: bytes) -> Any:
    """Read what `dumps` gave, in a process that has the modules it names.

    Raises
    ------
    SignatureError
        Where a module is missing there.
    """
    try:
        return pickle.loads(content)
    except (ImportError, AttributeError) as error:
        raise SignatureError(
            f"a worker does not find what the kernel needs: {error}. Install that module where "
            "the workers run, or put its folder on their PYTHONPATH; or send it by value: "
            "cloudpickle.register_pickle_by_value(module)."
        ) from error


def _cloudpickle() -> ModuleType | None:
    try:
        return importlib.import_module("cloudpickle")
    except ImportError:
        return None


def _cure() -> str:
    if _cloudpickle() is None:
        return (
            "What stands at the top level of a module is sent by its import path; all else, as in "
            "__main__ or within a function, needs cloudpickle: pip install 'stowplan[executor]'."
        )
    return (
        "Define the kernel at the top level of a module that the workers can import; or keep locks,"
        " open files and connections out of the variables that it refers to; or use threads: "
        "executor=ThreadPoolExecutor(2)."
    )


def _empty(kind: type[Kernel]) -> Kernel:
    return object.__new__(kind)


def _dumps(sent: Any) -> bytes:
    module = _cloudpickle()
    base: Any = pickle.Pickler if module is None else module.CloudPickler

    class Pickler(base):
        """Sends kernels that no module has by value, those that other kernels call, too."""

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, Kernel) and not is_importable(obj):
                return _empty, (type(obj),), dict(vars(obj))
            return NotImplemented if module is None else super().reducer_override(obj)

    stream = io.BytesIO()
    Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(sent)
    return stream.getvalue()
