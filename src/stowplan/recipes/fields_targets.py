"""Where solved fields go: memory, one array for all, or a folder with a file for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.recipes.fields_store import ArrayField, FieldOfFile, FieldOfStack, FieldStore
from stowplan.stores.arrays import create_array, is_stored, open_array
from stowplan.stores.field_blocks import Block
from stowplan.stores.file_arrays import FileArray, mark_targets
from stowplan.stores.space import require_space

__all__ = ["ONE_FILE", "FieldTargets"]

ONE_FILE = (".npy", ".zarr", ".h5", ".hdf5")
OTHER_FILES = (
    ".bin", ".csv", ".dat", ".fits", ".hdf", ".json", ".mat", ".nc", ".npz", ".parquet", ".pkl",
    ".png", ".pt", ".raw", ".tif", ".tiff", ".txt",
)  # fmt: skip
"""Names of files that nobody means as folders."""


class FieldTargets:
    """Room for one result of each field, of its shape and dtype.

    Parameters
    ----------
    fields : list
        Regions to write to, one for each field.
    made : list
        New arrays, which get their names when all is written.
    found : callable
        Gives what the caller gets.
    folder : Path or None
        One that was made for the arrays, and goes with them.
    """

    def __init__(
        self,
        fields: Sequence[Any],
        made: Sequence[Any],
        found: Callable[[], Any],
        folder: Path | None = None,
    ) -> None:
        self.fields = list(fields)
        self.made = list(made)
        self.found = found
        self.folder = folder

    @classmethod
    def make(
        cls,
        where: str,
        store: FieldStore,
        blocks: Callable[[], Sequence[Block]],
        out: Any,
        *,
        overwrite: bool,
        resumable: bool,
        resume: bool,
        back: Callable[[NDArray[Any]], Any],
    ) -> FieldTargets:
        """Make room for the results of a store; disk space is taken before anything is computed.

        Raises
        ------
        DataError
            For an output that is there already, is read from, or holds no such fields.
        StoreError
            For a disk without as much space, with the bytes that are needed and free.
        """
        shapes = [tuple(field.shape) for field in store.fields]
        if out is None:
            arrays = [np.empty(shape, store.dtype) for shape in shapes]
            fields = [ArrayField(array, "the result") for array in arrays]
            return cls(fields, [], lambda: _one(store, [back(array) for array in arrays]))
        how = {"overwrite": overwrite, "resumable": resumable, "resume": resume}
        if not isinstance(out, str | PathLike):
            if not is_stored(out):
                raise DataError(
                    f"{where}: out= is of type {type(out).__name__}; give a path, or an array of "
                    "zarr or h5py."
                )
            return cls._into(where, store, shapes, open_array(out, where))
        path = _checked_path(where, fspath(out))
        _refuse_inputs(where, store, path)
        size = sum(_bytes(shape, store.dtype) for shape in shapes)
        require_space([(path.parent, size, f"output {out}")], where)
        if path.suffix.lower() not in ONE_FILE:
            return cls._folder(where, store, shapes, blocks(), path, how)
        if store.single:
            made = create_array(
                out, shapes[0], store.dtype, where, chunks=_chunk(blocks(), 0), **how
            )
            return cls([made], [made], lambda: made)
        if len(set(shapes)) > 1:
            other = next(n for n, shape in enumerate(shapes) if shape != shapes[0])
            raise DataError(
                f"{where}: out={fspath(out)!r} is one array, but field {other} has shape "
                f"{shapes[other]} and field 0 {shapes[0]}. Name a folder: out='results', which "
                "gets a file for each."
            )
        made = create_array(
            out, (len(shapes), *shapes[0]), store.dtype, where, chunks=(1, *_chunk(blocks(), 0)),
            **how,
        )  # fmt: skip
        return cls(_entries(made, len(shapes)), [made], lambda: made)

    @classmethod
    def _folder(
        cls,
        where: str,
        store: FieldStore,
        shapes: Sequence[tuple[int, ...]],
        blocks: Sequence[Block],
        folder: Path,
        how: dict[str, bool],
    ) -> FieldTargets:
        new = None if folder.is_dir() else folder
        folder.mkdir(exist_ok=True)
        made: list[Any] = []
        try:
            for number, (name, shape) in enumerate(zip(_names(store), shapes, strict=True)):
                chunk = _chunk(blocks, number)
                path = folder / f"{name}.npy"
                made.append(create_array(path, shape, store.dtype, where, chunks=chunk, **how))
        except BaseException:
            for array in made:
                array.close() if how["resumable"] else array.discard()
            _remove_empty(new)
            raise
        return cls(made, made, lambda: _one(store, made), new)

    @classmethod
    def _into(
        cls, where: str, store: FieldStore, shapes: Sequence[tuple[int, ...]], array: Any
    ) -> FieldTargets:
        """Take an array that is there and open."""
        wanted = shapes[0] if store.single else (len(shapes), *shapes[0])
        if array.shape != wanted or array.dtype != store.dtype or len(set(shapes)) > 1:
            raise DataError(
                f"{where}: out= is {array.name} with shape {array.shape} and dtype {array.dtype}; "
                f"the fields need {wanted} and {store.dtype}."
            )
        mark_targets([getattr(field, "stack", field) for field in store.fields], [array])
        if store.single:
            return cls([array], [], lambda: array)
        return cls(_entries(array, len(shapes)), [], lambda: array)

    def finish(self) -> Any:
        """Bring everything to the disk, under its name; give what the caller gets."""
        for array in self.made:
            array.finish()
        return self.found()

    def abandon(self, *, keep: bool, new: bool = True) -> None:
        """Let go of what is not finished; remove it unless it is to be kept, what is new, too."""
        for array in self.made:
            if keep and (new or array.resumed):
                array.close()
            else:
                array.discard()
        _remove_empty(self.folder)


def _remove_empty(folder: Path | None) -> None:
    """Remove a folder that was made here, unless something lies in it."""
    if folder is not None and not any(folder.iterdir()):
        folder.rmdir()


def _checked_path(where: str, out: str) -> Path:
    """Give the path of an output: a file of one array, or a folder."""
    name, inside, inner = out.partition("::")
    path = Path(name)
    suffix = path.suffix.lower()
    if inside and suffix not in ONE_FILE[1:]:
        raise DataError(
            f"{where}: out={out!r} names {inner!r} within {name}, which holds one array, or a file "
            f"for each field. Leave it out, out={name!r}, or take 'name.h5::dataset'."
        )
    if suffix in OTHER_FILES and not path.is_dir():
        raise DataError(
            f"{where}: out={out!r} is no kind of file that can be made. Name it 'name.npy', "
            "'name.zarr' or 'name.h5::dataset', or a folder."
        )
    if not path.absolute().parent.is_dir():
        raise DataError(f"{where}: {path.parent} is no folder. Make it first.")
    return path


def _entries(array: Any, count: int) -> list[FieldOfStack]:
    """Give the entries of an array whose first axis counts fields."""
    kind = FieldOfFile if isinstance(array, FileArray) else FieldOfStack
    return [kind(array, number) for number in range(count)]


def _one(store: FieldStore, results: list[Any]) -> Any:
    return results[0] if store.single else results


def _chunk(blocks: Sequence[Block], field: int) -> tuple[int, ...]:
    """Shape of the first block of a field, the largest."""
    first = next(block for block in blocks if block.field == field)
    return tuple(part.stop - part.start for part in first.index)


def _names(store: FieldStore) -> list[str]:
    """Name files like those of the fields, if their names differ, else by number."""
    names = [Path(field.name.partition("::")[0]).stem for field in store.fields]
    digits = len(str(len(names) - 1))
    if len(set(names)) < len(names) or any(isinstance(f, ArrayField) for f in store.fields):
        return [f"field-{number:0{digits}d}" for number in range(len(names))]
    return names


def _refuse_inputs(where: str, store: FieldStore, path: Path) -> None:
    for number, field in enumerate(store.fields):
        if isinstance(field, ArrayField):  # its name is no path
            continue
        own = Path(field.name.partition("::")[0])
        same = own.exists() and path.exists() and own.samefile(path)
        if same or (path.is_dir() and own.parent.exists() and own.parent.samefile(path)):
            raise DataError(
                f"{where}: out={str(path)!r} holds field {number}, which is read. Name another "
                "output."
            )


def _bytes(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    size = dtype.itemsize
    for length in shape:
        size *= int(length)
    return size
