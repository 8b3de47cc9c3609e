"""Chunks of zarr that are nothing but the numbers of whole rows, read and written in place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.stores.descriptors import reserve
from stowplan.stores.file_arrays import FileArray
from stowplan.stores.regions import Region
from stowplan.stores.stored import bytes_of

__all__ = ["RowChunks"]

LITTLE = ({"name": "bytes", "configuration": {"endian": "little"}}, {"name": "bytes"})
"""How numbers are written that are neither compressed nor checked nor turned."""


class RowChunks:
    """An array of format 3 in a folder, without compression, whose chunks are whole rows."""

    def __init__(
        self, folder: Path, name: str, shape: tuple[int, ...], rows: int, dtype: np.dtype[Any]
    ) -> None:
        self.folder = folder
        self.name = name
        self.shape = shape
        self.rows = rows
        self.dtype = dtype

    @classmethod
    def of(
        cls, metadata: Any, folder: Path | None, name: str, dtype: np.dtype[Any]
    ) -> RowChunks | None:
        """Give the chunks of an array by its metadata, None where they are anything else."""
        facts = metadata.to_dict()
        if folder is None or facts["zarr_format"] != 3 or not dtype.isnative:
            return None
        grid, keys = facts["chunk_grid"], facts["chunk_key_encoding"]
        shape = tuple(map(int, facts["shape"]))
        plain = (
            [_codec(codec) for codec in facts["codecs"]] in ([LITTLE[0]], [LITTLE[1]])
            and grid["name"] == "regular"
            and keys == {"name": "default", "configuration": {"separator": "/"}}
            and not facts.get("storage_transformers")
            and not np.asarray(metadata.fill_value, dtype).tobytes().strip(b"\0")
        )
        chunks = tuple(map(int, grid["configuration"]["chunk_shape"])) if plain else ()
        if not plain or 0 in shape or chunks[1:] != shape[1:]:
            return None
        return cls(folder, name, shape, chunks[0], dtype)

    def read_region(self, region: Region, into: NDArray[Any]) -> None:
        """Read what is there; chunks that are not are zeros."""
        for chunk, within, part in self._chunks(region):
            try:
                array = self._open(chunk)
            except FileNotFoundError:
                into[part] = 0
                continue
            try:
                array.read_region((within, *self._others(region)), into[part])
            finally:
                array.close()

    def write_region(self, region: Region, values: NDArray[Any]) -> None:
        """Write in place; a chunk of nothing but zeros is not made."""
        for chunk, within, part in self._chunks(region):
            try:
                array = self._open(chunk, writable=True)
            except FileNotFoundError:
                if _all_zero(values[part]):
                    continue
                self._make(chunk)
                array = self._open(chunk, writable=True)
            try:
                array.write_region((within, *self._others(region)), values[part])
            finally:
                array.close()

    def _chunks(self, region: Region) -> Iterator[tuple[int, slice, slice]]:
        """Give each chunk with its rows of the region, counted in the chunk and in the region."""
        start, stop = region.starts[0], region.starts[0] + region.shape[0]
        for chunk in range(start // self.rows, -(-stop // self.rows)):
            first = chunk * self.rows
            begin, end = max(start, first), min(stop, first + self.rows)
            yield chunk, slice(begin - first, end - first), slice(begin - start, end - start)

    @staticmethod
    def _others(region: Region) -> list[slice]:
        pairs = zip(region.starts[1:], region.shape[1:], strict=True)
        return [slice(start, start + count) for start, count in pairs]

    def _path(self, chunk: int) -> Path:
        return self.folder.joinpath("c", str(chunk), *["0"] * (len(self.shape) - 1))

    def _open(self, chunk: int, *, writable: bool = False) -> FileArray:
        place = (chunk, *[0] * (len(self.shape) - 1))
        path, shape = self._path(chunk), (self.rows, *self.shape[1:])
        expected, found = bytes_of(shape, self.dtype), path.stat().st_size
        if found != expected:
            raise DataError(
                f"{self.name}: chunk {place} cannot be read (its file has {found} bytes, "
                f"{expected} are expected). Write it again."
            )
        name = f"{self.name}: chunk {place}"
        return FileArray(path, 0, shape, self.dtype, writable=writable, name=name)

    def _make(self, chunk: int) -> None:
        path = self._path(chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            reserve(descriptor, bytes_of((self.rows, *self.shape[1:]), self.dtype), str(path))
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(descriptor)


def _codec(codec: Any) -> dict[str, Any]:
    """Give a codec as its name and what it is set to, if anything."""
    settings = {key: value for key, value in codec.get("configuration", {}).items() if value}
    return {"name": codec["name"], **({"configuration": settings} if settings else {})}


def _all_zero(values: NDArray[Any]) -> bool:
    """Whether all bytes are 0, which those of -0.0 are not."""
    if values.reshape(-1)[:1].tobytes().strip(b"\0"):
        return False
    return not np.ascontiguousarray(values).reshape(-1).view(np.uint8).any()
