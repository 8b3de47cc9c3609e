"""Files of finished batches: arrays end to end, told apart by their line of the manifest."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.ragged import Ragged
from stowplan.stores.descriptors import bytes_view, read_into, reserve, sync_folder, write_from
from stowplan.stores.manifest import Record
from stowplan.stores.unfinished import PART

__all__ = ["read_batch", "write_batch"]

ALIGNED = 64
"""Arrays begin at multiples of this."""


def write_batch(
    path: Path, outputs: Sequence[Any], where: str
) -> tuple[int, int, tuple[Mapping[str, Any], ...]]:
    """Write the outputs of a batch under another name, then give the file its own.

    Returns
    -------
    size, crc32, arrays
        Of the file; dtype, shape and kind of each array in it. A Ragged output is two: its values
        (``"ragged"``) and their ``"shapes"``.

    Raises
    ------
    DataError
        For objects.
    StoreError
        For a full disk; nothing is left of the file.
    """
    described, buffers, crc = [], [], 0
    for kind, array in _arrays(outputs):
        if array.dtype.hasobject:
            raise DataError(
                f"{where} gave objects ({array.dtype}), which are not stored: pickle runs code "
                "when it reads them. Give numbers."
            )
        described.append({"dtype": _name(array.dtype), "shape": list(array.shape), "kind": kind})
        for view in (
            bytes_view(np.ascontiguousarray(array)), memoryview(bytes(-array.nbytes % ALIGNED)),
        ):  # fmt: skip
            buffers.append(view)
            crc = zlib.crc32(view, crc)
    size = sum(view.nbytes for view in buffers)
    part = path.with_name(path.name + PART)
    descriptor = os.open(
        part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666
    )
    try:
        reserve(descriptor, size, str(path))
        write_from(descriptor, 0, buffers, str(path))
        os.fsync(descriptor)  # or else a name may outlive its content
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    part.replace(path)
    sync_folder(path.parent)
    return size, crc, tuple(described)


def read_batch(path: Path, record: Record) -> list[Any]:
    """Give the outputs of a batch, once the bytes are those that were written.

    Raises
    ------
    OSError, ValueError
        Where they are not.
    """
    content = _content(path, record)
    outputs: list[Any] = []
    place = 0
    values: Any = None
    for one in record.arrays:
        dtype, shape = _named(one["dtype"]), tuple(one["shape"])
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        array = content[place : place + size].view(dtype).reshape(shape)
        place += size + -size % ALIGNED
        if one["kind"] == "ragged":
            values = array
        else:
            outputs.append(Ragged(values, array) if one["kind"] == "shapes" else array)
    return outputs


def _arrays(outputs: Sequence[Any]) -> list[tuple[str, NDArray[Any]]]:
    found = []
    for output in outputs:
        if isinstance(output, Ragged):
            packed = output.compact()
            found += [("ragged", np.asarray(packed.values)), ("shapes", packed.shapes)]
        else:
            found.append(("array", np.asarray(output)))
    return found


def _content(path: Path, record: Record) -> NDArray[np.uint8]:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        size = os.fstat(descriptor).st_size
        if size != record.bytes:
            raise ValueError(f"{path} has {size} bytes, {record.bytes} were written")
        content = np.empty(size, np.uint8)
        read_into(descriptor, 0, [bytes_view(content)])
    finally:
        os.close(descriptor)
    if zlib.crc32(bytes_view(content)) != record.crc32:
        raise ValueError(f"{path} is damaged: its crc32 is not that of what was written")
    return content


def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name if dtype.kind == "V" else dtype.str


def _named(name: str) -> np.dtype[Any]:
    """Give a dtype; bfloat16 and its kin are known by another package."""
    try:
        found = np.dtype(name)
    except TypeError:
        found = np.dtype(getattr(import_module("ml_dtypes"), name))
    return found
