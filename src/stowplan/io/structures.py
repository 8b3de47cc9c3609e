"""Atomistic structures: files, charges and checks; neighbour tables pass through."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.extras import import_extra
from stowplan.io.neighbours import neighbour_table, neighbour_tables
from stowplan.ragged import Ragged

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["charges", "neighbour_table", "neighbour_tables", "read", "validate"]

SINGULAR = 1e-8  # |det cell| over the product of the lengths of its vectors


def read(path: str | os.PathLike[str]) -> list[Atoms]:
    """Read every structure of a file that ASE can read.

    Parameters
    ----------
    path
        A file of one or many frames: extended XYZ, CIF, POSCAR, LAMMPS data, an ASE database, ...

    Returns
    -------
    list of ase.Atoms

    Raises
    ------
    DataError
        For a file that cannot be read, with its name and the reader's reason.
    MissingDependencyError
        Without ASE.

    Examples
    --------
    >>> structures = read("set.extxyz")  # doctest: +SKIP
    """
    reader = import_extra("structures", "ase.io", "read")
    try:
        return list(reader.read(os.fspath(path), index=":"))
    except Exception as error:  # the readers of ASE raise anything, AssertionError included
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise DataError(f"read: {os.fspath(path)!r} could not be read by ASE. {reason}") from error


def validate(structures: Sequence[Atoms]) -> None:
    """Check every structure before anything is computed.

    Parameters
    ----------
    structures
        Crystals (three periodic axes), slabs (two) and molecules (none; the cell is ignored).

    Raises
    ------
    DataError
        For structures without atoms, with one periodic axis, with a singular or infinite cell where
        one is needed, or with positions that are not finite: how many, the first of them, the cure.

    Examples
    --------
    >>> from ase import Atoms
    >>> validate([Atoms("NaCl", [[0, 0, 0], [2.8, 0, 0]])])
    """
    _refuse(
        structures,
        lambda item: not all(hasattr(item, name) for name in ("positions", "cell", "pbc")),
        lambda item: f"is a {type(item).__name__}, not an ase.Atoms",
        "Pass a list of structures: [atoms].",
    )
    _refuse(
        structures,
        lambda item: len(item) == 0,
        lambda item: "has no atoms",
        "Leave it out: [atoms for atoms in structures if len(atoms)].",
    )
    _refuse(
        structures,
        lambda item: not np.isfinite(item.positions).all(),
        lambda item: _first_row("positions", item.positions),
        "Positions must be finite.",
    )
    _refuse(
        structures,
        lambda item: int(np.sum(item.pbc)) == 1,
        lambda item: f"has one periodic axis, pbc={np.asarray(item.pbc).tolist()}",
        "Three, two (a slab) or none (a molecule) are allowed: atoms.pbc = (True, True, False).",
    )
    _refuse(
        structures,
        lambda item: bool(np.any(item.pbc)) and _singular(np.asarray(item.cell)),
        lambda item: (
            f"has a singular cell, {np.asarray(item.cell).tolist()}, "
            f"for pbc={np.asarray(item.pbc).tolist()}"
        ),
        "Give three independent lattice vectors (a slab needs its open one too: "
        "atoms.center(vacuum=10.0, axis=2)), or atoms.pbc = False for a molecule.",
    )


def charges(structures: Sequence[Atoms], by_element: Mapping[str, float] | None = None) -> Ragged:
    """Give the charge of every atom, from the structures or by element.

    Parameters
    ----------
    structures
        Without ``by_element`` their initial charges count, else ``charges`` of the file: a column,
        a result of a calculator, or in ``info``.
    by_element
        Charges such as ``{"Na": 1, "Cl": -1}``; replaces all that the structures say.

    Returns
    -------
    Ragged
        Charges over atoms, float64.

    Raises
    ------
    DataError
        For missing, misshapen or not finite charges, an element that the map lacks, or a key of
        the map that is no element.

    Examples
    --------
    >>> from ase import Atoms
    >>> charges([Atoms("NaCl"), Atoms("Cl")], {"Na": 1, "Cl": -1}).values.tolist()
    [1.0, -1.0, -1.0]
    """
    if by_element is None:
        columns = [_charges_of(atoms) for atoms in structures]
        _refuse(
            columns,
            lambda column: column is None,
            lambda column: "has no charges",
            "Give them by element, charges={'Na': 1, 'Cl': -1}, or by atom, "
            "atoms.set_initial_charges([...]).",
        )
        found = [np.asarray(column, np.float64) for column in columns]
    else:
        table = _charge_table(by_element)
        _refuse(
            structures,
            lambda atoms: bool(np.isnan(table[atoms.numbers]).any()),
            lambda atoms: (
                f"holds {', '.join(sorted({str(s) for s in atoms.symbols} - set(by_element)))}"
            ),
            f"The map of charges knows {', '.join(by_element) or 'no element'}: add what it lacks.",
        )
        found = [table[atoms.numbers] for atoms in structures]
    pairs = list(zip(found, structures, strict=True))
    _refuse(
        pairs,
        lambda pair: pair[0].shape != (len(pair[1]),),
        lambda pair: f"has charges of shape {pair[0].shape} for {len(pair[1])} atoms",
        "One charge per atom is needed.",
    )
    _refuse(
        found,
        lambda column: not np.isfinite(column).all(),
        lambda column: _first_row("charges", column),
        "Charges must be finite.",
    )
    return Ragged.from_list(found, dtype=np.float64)


def _charges_of(atoms: Atoms) -> NDArray[Any] | None:
    results = getattr(atoms.calc, "results", {})
    places = (
        atoms.arrays.get("initial_charges"),
        atoms.arrays.get("charges"),
        results.get("charges"),
        atoms.info.get("charges"),
    )
    numbers = (np.asarray(place) for place in places if place is not None)
    return next((column for column in numbers if column.dtype.kind in "iuf"), None)


def _charge_table(by_element: Mapping[str, float]) -> NDArray[np.float64]:
    """Charges by atomic number, NaN for elements that the map lacks."""
    numbers = import_extra("structures", "ase.data", "charges").atomic_numbers
    unknown = [str(name) for name in by_element if name not in numbers]
    if unknown:
        raise DataError(
            f"charges: {', '.join(unknown)} in the map of charges is no chemical element. "
            "Keys are symbols: {'Na': 1, 'Cl': -1}."
        )
    for name, charge in by_element.items():
        if not np.isfinite(charge):
            raise DataError(f"charges: the charge of {name} is {charge}. Charges must be finite.")
    table = np.full(max(numbers.values()) + 1, np.nan)
    table[[numbers[name] for name in by_element]] = list(by_element.values())
    return table


def _singular(cell: NDArray[np.float64]) -> bool:
    if not np.isfinite(cell).all():
        return True
    lengths = np.linalg.norm(cell, axis=1)
    return not abs(np.linalg.det(cell)) > SINGULAR * lengths.prod()


def _first_row(name: str, column: NDArray[Any]) -> str:
    finite = np.isfinite(column).reshape(len(column), -1).all(axis=1)
    row = int(np.argmin(finite))
    return f"has {name} that are not finite: atom {row} has {column[row].tolist()}"


def _refuse(
    items: Sequence[Any], wrong: Callable[[Any], bool], what: Callable[[Any], str], cure: str
) -> None:
    """Raise for items that are wrong: how many, the first one, the cure."""
    bad = [index for index, item in enumerate(items) if wrong(item)]
    if bad:
        raise DataError(
            f"structures: {len(bad)} of {len(items)} refused. "
            f"Item {bad[0]} {what(items[bad[0]])}. {cure}"
        )
