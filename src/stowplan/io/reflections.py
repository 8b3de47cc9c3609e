"""Tables of structure factors: text, MTZ and CIF files in, one dense array out."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stowplan.errors import DataError
from stowplan.extras import import_extra

__all__ = ["StructureFactors", "read", "tabulate"]

MOST_ENTRIES = 2**31 - 1  # of a table: the kernel's indices are 32-bit
AMPLITUDES = (
    "FP F FOBS F-obs FC "  # MTZ, before the first column of type F
    "F_meas_au F_meas F_calc_au F_calc pdbx_F_calc_with_solvent"  # CIF
).split()


class StructureFactors(NamedTuple):
    """Structure factors of all reflections in a box of h, k and l."""

    values: Any  # (nh, nk, nl) in electrons
    minima: tuple[int, int, int]  # h, k and l of values[0, 0, 0]


def read(
    path: str | os.PathLike[str], *, default: float | None = None, column: str | None = None
) -> StructureFactors:
    r"""Read a table of structure factors.

    Parameters
    ----------
    path
        ``.mtz`` and ``.cif`` (also ``.ent`` and gzipped) through gemmi; anything else is text of
        lines ``h k l F``, where blank lines and what follows a ``#`` count for nothing.
    default
        Structure factor of the reflections that the box holds and the file lacks; without it they
        are an error. F(000) and the corners of the box are in no measured file.
    column
        Label of the amplitudes in an MTZ or CIF file; by default the first that is known as such.

    Returns
    -------
    StructureFactors
        Of the box that just holds the file's reflections. Those of MTZ and CIF files are expanded
        by the symmetry of the space group, Friedel mates are equal, and what the symmetry forbids
        is 0; text is taken as it stands.

    Raises
    ------
    DataError
        For a file that cannot be read, with its name, line and content, and as in `tabulate`.
    MissingDependencyError
        For MTZ and CIF without gemmi.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "data.hkl")
    ...     _ = path.write_text("0 0 1 10.5  # strong\n0 0 2 3.0\n")
    ...     table = read(path)
    >>> table.values.shape, table.minima
    ((1, 1, 2), (0, 0, 1))
    """
    path = Path(path)
    where = f"read: {os.fspath(path)!r}"
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if not path.is_file():
        raise DataError(f"{where} is no file.")
    if kind not in (".mtz", ".cif", ".mmcif", ".ent"):
        indices, factors = _read_text(where, path)
    else:
        reader = _read_mtz if kind == ".mtz" else _read_cif
        indices, factors = _expand(where, *reader(where, path, column))
    return tabulate(indices, factors, default=default, where=where)


def tabulate(
    indices: ArrayLike, factors: ArrayLike, *, default: float | None = None, where: str = "tabulate"
) -> StructureFactors:
    """Put a list of reflections into a dense table.

    Parameters
    ----------
    indices : int array (reflections, 3)
        h, k and l in any order. A reflection may occur again with the same structure factor.
    factors : array (reflections,)
        Structure factors in electrons.
    default
        Structure factor of what the list lacks in its box; without it that is an error.
    where
        What an error message begins with.

    Returns
    -------
    StructureFactors

    Raises
    ------
    DataError
        For no reflections, factors that are not finite, a reflection with two factors, holes
        without a default, and a box too large for a table: how many, the first of them, the cure.

    Examples
    --------
    >>> table = tabulate([[0, 0, 0], [0, 0, 1]], [30.0, 12.5])
    >>> table.values.tolist(), table.minima
    ([[[30.0, 12.5]]], (0, 0, 0))
    """
    hkl, values = np.asarray(indices), np.asarray(factors, np.float64)
    if hkl.ndim != 2 or hkl.shape[1] != 3 or hkl.shape[:1] != values.shape or not len(hkl):
        raise DataError(
            f"{where}: indices have shape {hkl.shape} and factors {values.shape}; (n, 3) and (n,) "
            "are needed, n at least 1."
        )
    if hkl.dtype.kind not in "iu":
        raise DataError(f"{where}: indices are {hkl.dtype}; integers are needed.")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise DataError(
            f"{where}: {len(wrong)} of {len(values)} structure factors are not finite, first that "
            f"of {_name(hkl[wrong[0]])}, {values[wrong[0]]}. Leave those reflections out."
        )
    if default is not None and not math.isfinite(default):
        raise DataError(f"{where}: default={default}; it must be finite, or None.")
    lowest, lengths = _box(where, hkl)
    size = math.prod(lengths)
    flat = _flat(hkl, lowest, lengths)
    table = np.full(size, np.nan)
    table[flat] = values
    again = np.flatnonzero(table[flat] != values)
    if len(again):
        index = int(again[0])
        raise DataError(
            f"{where}: {len(again)} reflections occur again with another structure factor, first "
            f"{_name(hkl[index])} with {values[index]:g} and {table[flat[index]]:g}. Merge them."
        )
    holes = np.flatnonzero(np.isnan(table))
    if len(holes) and default is None:
        first = np.array(np.unravel_index(holes[0], lengths)) + lowest
        raise DataError(
            f"{where}: {len(holes)} of the {size} reflections from {_name(lowest)} to "
            f"{_name(hkl.max(axis=0))} are missing, first {_name(first)}. Say what they are: "
            "default=0.0."
        )
    table[holes] = 0.0 if default is None else default
    return StructureFactors(table.reshape(lengths), (lowest[0], lowest[1], lowest[2]))


def _read_text(where: str, path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Reflections of lines ``h k l F``."""
    indices, factors = [], []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{where} could not be read as text. {type(error).__name__}: {error}"
        ) from error
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            *three, factor = words
            h, k, l = map(_whole, three)  # noqa: E741 - as crystallographers say
            indices.append((h, k, l))
            factors.append(float(factor))
        except (ValueError, OverflowError):
            raise DataError(
                f"{where}, line {number}: {line.strip()!r} is not 'h k l F', three whole numbers "
                "and a structure factor."
            ) from None
        if not math.isfinite(factors[-1]):
            raise DataError(
                f"{where}, line {number}: {line.strip()!r} has a structure factor that is not "
                "finite. Leave the line out."
            )
    if not indices:
        raise DataError(f"{where} has no reflections: no line reads 'h k l F'.")
    return np.array(indices, np.int64), np.array(factors)


def _whole(word: str) -> int:
    """A whole number, also one written 3.0."""
    value = float(word)
    if value != int(value) or abs(value) > 2**31:
        raise ValueError(word)
    return int(value)


def _read_mtz(where: str, path: Path, column: str | None) -> tuple[Any, Any, Any]:
    """Indices, amplitudes and space group of an MTZ file."""
    gemmi = import_extra("reflections", "gemmi", "read of MTZ and CIF files")
    try:
        mtz = gemmi.read_mtz_file(os.fspath(path))
    except Exception as error:  # RuntimeError, ValueError and gemmi's own
        raise _unreadable(where, error) from error
    labels = [one.label for one in mtz.columns]
    amplitudes = [one.label for one in mtz.columns if one.type == "F"]
    label = _choose(where, labels, column, amplitudes)
    factors = np.array(mtz.column_with_label(label), np.float64)
    return np.array(mtz.make_miller_array(), np.int64), factors, mtz.spacegroup


def _read_cif(where: str, path: Path, column: str | None) -> tuple[Any, Any, Any]:
    """Indices, amplitudes and space group of the first block of a CIF file with reflections."""
    gemmi = import_extra("reflections", "gemmi", "read of MTZ and CIF files")
    try:
        blocks = list(gemmi.as_refln_blocks(gemmi.cif.read(os.fspath(path))))
        small = gemmi.cif.read(os.fspath(path))  # the line above emptied the first
        blocks += [gemmi.hkl_cif_as_refln_block(block) for block in small]
        block = next((one for one in blocks if one and one.default_loop is not None), None)
    except Exception as error:
        raise _unreadable(where, error) from error
    if block is None:
        raise DataError(f"{where} has no loop of reflections.")
    labels = list(block.column_labels())
    label = _choose(where, labels, column, [name for name in AMPLITUDES if name in labels])
    factors = np.array(block.make_float_array(label, math.nan), np.float64)
    return np.array(block.make_miller_array(), np.int64), factors, block.spacegroup


def _choose(
    where: str, labels: Sequence[str], column: str | None, amplitudes: Sequence[str]
) -> str:
    """Label of the amplitudes."""
    shown = ", ".join(labels)
    if column is None and not amplitudes:
        raise DataError(
            f"{where} has no column that is known to hold amplitudes; its columns are {shown}. "
            f"Name one: column={labels[-1]!r}."
        )
    if column is None:
        return next((name for name in AMPLITUDES if name in amplitudes), amplitudes[0])
    if column not in labels:
        raise DataError(f"{where} has no column {column!r}; its columns are {shown}.")
    return column


def _expand(where: str, indices: Any, factors: Any, group: Any) -> tuple[Any, Any]:
    """Reflections that symmetry and Friedel's law make equal, and 0 for those that it forbids."""
    given = ~np.isnan(factors)  # the others were not measured
    indices, factors = indices[given], factors[given]
    if not len(indices):
        raise DataError(f"{where}: no reflection has a structure factor.")
    if group is None:
        raise DataError(
            f"{where}: the file names no space group, so equal reflections are not known. Read its "
            "columns with gemmi, expand them to P1 and use tabulate(indices, factors)."
        )
    operations = group.operations()
    turns = [np.array(one.rot, np.int64) // one.DEN for one in operations.sym_ops]
    images = np.concatenate([indices @ turn for turn in turns])
    images = np.concatenate([images, -images])
    lowest, lengths = _box(where, images)
    absent = _flat(images, lowest, lengths)
    absent = np.delete(np.arange(math.prod(lengths)), np.unique(absent))
    others = np.stack(np.unravel_index(absent, lengths), axis=1) + lowest
    others = others[operations.systematic_absences(others.astype(np.int32))]
    values = [*[factors] * (2 * len(turns)), np.zeros(len(others))]
    return np.concatenate([images, others]), np.concatenate(values)


def _box(where: str, hkl: Any) -> tuple[list[int], list[int]]:
    """Lowest h, k and l and the lengths of the box that just holds the reflections."""
    lowest, highest = hkl.min(axis=0).tolist(), hkl.max(axis=0).tolist()
    lengths = [high - low + 1 for low, high in zip(lowest, highest, strict=True)]
    size = math.prod(lengths)
    if size > MOST_ENTRIES:
        raise DataError(
            f"{where}: reflections from {tuple(lowest)} to {tuple(highest)} span {size:.1e} "
            f"entries, more than the {MOST_ENTRIES:.1e} of a table. Leave the outermost ones out."
        )
    return lowest, lengths


def _flat(hkl: Any, lowest: Sequence[int], lengths: Sequence[int]) -> Any:
    return np.ravel_multi_index(tuple((hkl - np.asarray(lowest)).T), tuple(lengths))


def _name(hkl: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in hkl)


def _unreadable(where: str, error: Exception) -> DataError:
    return DataError(f"{where} could not be read by gemmi. {type(error).__name__}: {error}")
