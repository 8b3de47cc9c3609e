"""Sizes and names of items from any file that the commands read: tables, structures, molecules."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.io.sizes import read_names, read_sizes

__all__ = ["KINDS", "Measured", "kind_of", "measure_files"]

KINDS = ("sizes", "plan", "structures", "molecules", "masks")
TABLES = (".csv", ".tsv", ".txt", ".parquet", ".pq")
MOLECULES = (".smi", ".smiles", ".sdf", ".sd", ".mol")
PICTURES = (".png", ".tif", ".tiff", ".npy", ".npz", ".bmp", ".gif", ".jpg", ".jpeg", ".pgm")
GRID = "n1 * (2 * n2 - 1) * (2 * n3 - 1)"  # k-vectors of a half space


@dataclass(frozen=True, eq=False)
class Measured:
    """Items of a file.

    Attributes
    ----------
    sizes : dict of dim to int (items,)
    names : sequence of str, optional
    derived : dict
        Sizes that follow from the dims, for work and slots.
    work : str, optional
        Where it is not the product of the dims.
    """

    sizes: dict[str, NDArray[np.int64]]
    names: Sequence[str] | None = None
    derived: dict[str, str] = field(default_factory=dict)
    work: str | None = None


def kind_of(path: str) -> str:
    """Say what a file holds, by its suffix; a folder holds masks.

    >>> kind_of("sizes.csv"), kind_of("set.extxyz"), kind_of("library.sdf.gz"), kind_of("plan.json")
    ('sizes', 'structures', 'molecules', 'plan')
    """
    file = Path(path)
    suffix = Path(file.stem if file.suffix == ".gz" else file.name).suffix.lower()
    if path == "-" or suffix in TABLES:
        return "sizes"
    if suffix == ".json" or (suffix == ".npz" and file.with_suffix(".json").exists()):
        return "plan"
    if suffix in MOLECULES:
        return "molecules"
    if suffix in PICTURES or file.is_dir() or any(sign in path for sign in "*?["):
        return "masks"
    return "structures"


def measure_files(
    path: str,
    kind: str,
    *,
    dims: Sequence[str] | None = None,
    names: str | None = None,
    labels: Any = None,
    threshold: float | None = None,
    accuracy: float = 1e-6,
    skip_failed: bool = False,
) -> Measured:
    """Read the sizes of what is in a file.

    Parameters
    ----------
    path
        A file, ``-`` for a table on standard input, or for masks a folder or a pattern.
    kind
        One of `KINDS` but "plan".
    dims, names
        Of a table: columns of sizes (all by default), and the column of names.
    labels, threshold
        Of masks, as `stowplan.io.masks.read` takes them.
    accuracy
        Of Ewald sums, which decides on the k-vectors of structures.
    skip_failed
        Leave out molecules that cannot be read.
    """
    if kind == "sizes":
        return _table(path, dims, names)
    if names is not None:
        raise DataError(f"--names is for tables; {path!r} holds {kind}, which bring their own.")
    if kind == "structures":
        return _structures(path, accuracy)
    if kind == "molecules":
        from stowplan.io.molecules import count_atoms

        found, atoms = count_atoms(path, skip_failed=skip_failed)
        return Measured({"atoms": atoms}, found, work="atoms * atoms")
    return _masks(path, labels, threshold)


def _table(path: str, dims: Sequence[str] | None, names: str | None) -> Measured:
    if path == "-":
        if names is not None:
            raise DataError("--names needs a file; standard input is read once.")
        return Measured(read_sizes(sys.stdin, dims))
    if names is None:
        return Measured(read_sizes(path, dims))
    called = read_names(path, names)
    return Measured(read_sizes(path, dims, leave_out=[names]), called)


def _structures(path: str, accuracy: float) -> Measured:
    from stowplan.io import structures as files
    from stowplan.recipes.ewald import grid_sizes

    structures = files.read(path)
    sizes = grid_sizes(structures, accuracy=accuracy)
    names = [
        f"{number} {atoms.get_chemical_formula('metal')}" for number, atoms in enumerate(structures)
    ]
    return Measured(sizes, names, {"k": GRID}, "atoms * k")


def _masks(path: str, labels: Any, threshold: float | None) -> Measured:
    from stowplan.cli.mask_pairs import mask_names
    from stowplan.io.masks import read_with_places

    found = read_with_places(path, labels=labels, threshold=threshold)
    spans = [[_span(np.any(mask, axis=1 - axis)) for axis in (0, 1)] for _, mask in found]
    lengths = np.array(spans, np.int64).reshape(-1, 2)
    return Measured({"y": lengths[:, 0], "x": lengths[:, 1]}, mask_names([p for p, _ in found]))


def _span(filled: NDArray[np.bool_] | np.bool_) -> int:
    """Length from the first filled line to the last."""
    places = np.flatnonzero(filled)
    return int(places[-1] - places[0] + 1) if len(places) else 0
