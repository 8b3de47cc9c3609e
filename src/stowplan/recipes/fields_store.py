"""Fields from paths, groups and arrays, as regions that are read and written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj
from numpy.typing import NDArray

from stowplan.adapters import framework_of, get_adapter
from stowplan.errors import DataError
from stowplan.stores.arrays import is_stored, open_array
from stowplan.stores.listing import list_arrays

__all__ = [
    "ArrayField",
    "FieldOfFile",
    "FieldOfStack",
    "FieldStore",
    "ScaledField",
    "is_precise",
    "open_fields",
]

Region = tuple[slice, ...]
_PRECISIONS = "a transform needs real or complex numbers of single or double precision."


class ArrayField:
    """A field in memory of the host, as one on disk is read and written."""

    def __init__(self, array: NDArray[Any], name: str) -> None:
        self.array = array
        self.name = name
        self.shape = array.shape
        self.dtype = array.dtype

    def read_region(self, index: Region, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Give a hyper-rectangle."""
        if into is None:
            return self.array[index]
        into[...] = self.array[index]
        return into

    def write_region(self, index: Region, values: NDArray[Any]) -> None:
        """Write a hyper-rectangle."""
        self.array[index] = values

    def identity(self) -> tuple[Any, ...]:
        """Give the values: nothing else tells two arrays apart."""
        return ("array", self.array)

    def close(self) -> None:
        """Nothing is open."""


class FieldOfStack:
    """One entry of an array whose first axis counts fields."""

    def __init__(self, stack: Any, number: int) -> None:
        self.stack = stack
        self.number = number
        self.name = f"field {number} of {stack.name}"
        self.shape = tuple(stack.shape[1:])
        self.dtype = stack.dtype

    def read_region(self, index: Region, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Give a hyper-rectangle."""
        whole = self._whole(index)
        if into is None:
            found: NDArray[Any] = self.stack.read_region(whole)[0]
            return found
        self.stack.read_region(whole, into[None])
        return into

    def write_region(self, index: Region, values: NDArray[Any]) -> None:
        """Write a hyper-rectangle."""
        self.stack.write_region(self._whole(index), values[None])

    def identity(self) -> tuple[Any, ...]:
        """Give what the array gives, and which entry it is."""
        return (self.number, *self.stack.identity())

    def close(self) -> None:
        """Close the array."""
        self.stack.close()

    def _whole(self, index: Region) -> Region:
        return (slice(self.number, self.number + 1), *index)


class FieldOfFile(FieldOfStack):
    """An entry of such an array in a plain file, where neighbouring blocks go out together."""

    def write_columns(self, first: int, columns: Sequence[NDArray[Any]]) -> None:
        """Write tables (points, lines) beside each other, see `FileArray`."""
        size = math.prod(self.shape)
        self.stack.write_columns(self.number * size + first, columns, size // len(columns[0]))


class ScaledField:
    """A field times a power of two, which rounds nothing that counts beside its peak."""

    def __init__(self, field: Any, exponent: int) -> None:
        self.field = field
        self.exponent = exponent
        self.name = field.name
        self.shape = tuple(field.shape)
        self.dtype = field.dtype

    def read_region(self, index: Region, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Give a hyper-rectangle."""
        if into is None:
            into = np.empty([part.stop - part.start for part in index], self.dtype)
        self.field.read_region(index, into)
        half = self.exponent // 2  # all at once may leave the range of the dtype
        into *= math.ldexp(1.0, half)
        into *= math.ldexp(1.0, self.exponent - half)
        return into

    def identity(self) -> tuple[Any, ...]:
        """Give what the field gives, and the scale."""
        return (self.exponent, *self.field.identity())

    def close(self) -> None:
        """Close the field."""
        self.field.close()


class FieldStore:
    """Fields to be read, by number.

    Attributes
    ----------
    fields : list
        Each with `name`, `shape`, `dtype`, `read_region` and `identity`.
    single : bool
        Whether one field was given, rather than a list of one.
    framework, device
        Of fields in memory; None for those on disk.
    """

    def __init__(
        self, fields: Sequence[Any], *, single: bool, framework: str | None, device: Any
    ) -> None:
        self.fields = list(fields)
        self.single = single
        self.framework = framework
        self.device = device

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of all fields."""
        dtype: np.dtype[Any] = self.fields[0].dtype
        return dtype

    def close(self) -> None:
        """Close all files."""
        for field in self.fields:
            field.close()


def is_precise(dtype: np.dtype[Any]) -> bool:
    """Whether numbers are real or complex, of single or double precision.

    >>> [is_precise(np.dtype(name)) for name in ("f2", "f4", "c16", "i8")]
    [False, True, True, False]
    """
    return dtype.itemsize in {"f": (4, 8), "c": (8, 16)}.get(dtype.kind, ())


def open_fields(store: Any, where: str) -> FieldStore:
    """Open fields for reading.

    Parameters
    ----------
    store
        A path of one field (``.npy``, ``.zarr``, ``.h5::dataset``), a pattern such as
        ``"run/*.npy"``, a folder of ``.npy`` files, a zarr group or the path of one, whose arrays
        are fields in the natural order of their names; an array, which is one field; or a list of
        paths and arrays.
    where
        The caller, for messages.

    Raises
    ------
    DataError
        For a store without fields, one that is no array of numbers, a masked array, fields of two
        dtypes, and one that is neither of single nor of double precision.
    """
    parts, single = list_arrays(store, where)
    if not parts:
        raise DataError(f"{where}: there are no fields in {store!r}. Give paths or arrays.")
    fields: list[Any] = []
    places = set()
    for number, part in enumerate(parts):
        if isinstance(part, np.ma.MaskedArray):
            raise DataError(
                f"{where}: field {number} is a masked array, and a transform takes all values. "
                "Say what the masked ones are: field.filled(0)."
            )
        if is_array_api_obj(part) and not isinstance(part, np.memmap):
            adapter = get_adapter(framework_of([part]) or "numpy")
            if adapter.requires_grad(part):
                raise DataError(
                    f"{where}: field {number} requires a gradient, which is not followed here. "
                    "Detach it, or run the kernel: sp.run(stowplan.kernels.fields.riesz, ...)."
                )
            places.add((adapter.name, str(adapter.device_of(part)), adapter.device_of(part)))
            fields.append(ArrayField(_on_host(where, adapter, part, number), f"field {number}"))
        elif is_stored(part):
            fields.append(open_array(part, where))
        else:
            raise DataError(
                f"{where}: field {number} is a {type(part).__name__}; give an array or a path."
            )
    _refuse_mixed(where, fields)
    if len({place[:2] for place in places}) > 1:
        names = " and ".join(sorted(f"{name} ({device})" for name, device, _ in places)[:2])
        raise DataError(f"{where}: the fields are of two frameworks or devices: {names}.")
    framework, device = (None, None)
    if places:
        framework, _, device = places.pop()
    return FieldStore(fields, single=single, framework=framework, device=device)


def _on_host(where: str, adapter: Any, part: Any, number: int) -> NDArray[Any]:
    """Give an array of any framework in NumPy, in the byte order of the machine."""
    try:
        found = np.asarray(adapter.to_host(part))
    except DataError as error:  # a dtype that NumPy has not
        raise DataError(f"{where}: field {number}: {error}") from None
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _refuse_mixed(where: str, fields: Sequence[Any]) -> None:
    first = fields[0]
    for number, field in enumerate(fields):
        if field.dtype != first.dtype:
            raise DataError(
                f"{where}: field {number} ({field.name}) has dtype {field.dtype}, field 0 "
                f"({first.name}) has {first.dtype}. Convert them to one first."
            )
        if not is_precise(field.dtype):
            wide = "complex128" if field.dtype.kind == "c" else "float64"
            raise DataError(
                f"{where}: field {number} ({field.name}) has dtype {field.dtype}; {_PRECISIONS} "
                f"Convert it: field.astype({wide!r})."
            )
        if 0 in field.shape:
            raise DataError(
                f"{where}: field {number} ({field.name}) has shape {field.shape}, and no values."
            )
