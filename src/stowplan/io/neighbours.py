"""Neighbour tables of atomistic structures: who is near whom, from both sides of each pair."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stowplan.errors import DataError
from stowplan.extras import import_extra
from stowplan.ragged import Ragged

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["neighbour_table", "neighbour_tables"]

COINCIDENT = 1e-10  # distance over the cutoff
MOST_PAIRS = 10**9  # of one structure: tens of GB


def neighbour_table(atoms: Atoms, cutoff: float) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """List the neighbours of every atom, from both sides of each pair.

    A molecule (no periodic axis) pairs all its atoms, whatever the cutoff.

    Returns
    -------
    neighbours : (atoms, neighbours) int64
        Atom at the other end, -1 past the last one.
    shifts : (atoms, neighbours, 3) int32
        Lattice vectors to add: ``r = positions[neighbour] - positions[atom] + shift @ cell``; 0 for
        padding and along open axes.

    Raises
    ------
    DataError
        Where two atoms coincide.

    Examples
    --------
    >>> from ase import Atoms
    >>> neighbour_table(Atoms("H3", [[0, 0, 0], [0, 0, 1], [0, 0, 2]]), 1.0)[0].tolist()
    [[1, 2], [0, 2], [0, 1]]
    """
    neighbours, shifts = neighbour_tables([atoms], cutoff)
    return neighbours[0], shifts[0]


def neighbour_tables(structures: Sequence[Atoms], cutoff: ArrayLike) -> tuple[Ragged, Ragged]:
    """Give the neighbour table of every structure, ragged over atoms and neighbours.

    Parameters
    ----------
    structures
        Structures that passed `validate`.
    cutoff
        Longest distance of a pair, one for all or one per structure, in the unit of the positions.

    Returns
    -------
    neighbours, shifts : Ragged
        Two ragged dims, (atoms, neighbours) and (atoms, neighbours, 3), as `neighbour_table` gives.

    Raises
    ------
    DataError
        For a cutoff that is not positive and finite, where two atoms coincide, or for a structure
        with more pairs than any memory holds.
    MissingDependencyError
        Without vesin.
    """
    reach = np.asarray(cutoff, np.float64)
    if reach.ndim > 1 or (reach.ndim == 1 and len(reach) != len(structures)):
        raise DataError(
            f"neighbour_tables: cutoff of shape {reach.shape} for {len(structures)} structures; "
            "give one number, or one per structure."
        )
    reach = np.broadcast_to(reach, (len(structures),))
    wrong = np.nonzero(~(np.isfinite(reach) & (reach > 0)))[0]
    if len(wrong):
        raise DataError(
            f"neighbour_tables: item {wrong[0]} has cutoff {reach[wrong[0]]}; "
            "a cutoff is positive and finite."
        )
    tables = list(_tables(structures, reach))
    return (
        Ragged.from_list([table for table, _ in tables], ragged=2, dtype=np.int64),
        Ragged.from_list([shift for _, shift in tables], ragged=2, tail=(3,), dtype=np.int32),
    )


def _tables(
    structures: Sequence[Atoms], reach: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
    searches: dict[float, Any] = {}
    for item, (atoms, cutoff) in enumerate(zip(structures, reach.tolist(), strict=True)):
        positions = np.ascontiguousarray(atoms.positions, np.float64)
        _refuse_many(item, atoms, cutoff)
        if not np.any(atoms.pbc):
            _refuse_coincident(item, _coincident_points(positions))
            yield _all_pairs(len(positions))
            continue
        # in a unit near the cutoff, for vesin refuses small ones; a power of two rounds nothing
        reach_in_units, power = math.frexp(cutoff)
        if reach_in_units not in searches:
            searches[reach_in_units] = _search(reach_in_units)
        i, j, shift, distance = searches[reach_in_units].compute(
            np.ldexp(positions, -power),
            np.ldexp(np.asarray(atoms.cell, np.float64), -power),
            np.asarray(atoms.pbc),
            "ijSd",
        )
        close = distance < COINCIDENT * reach_in_units
        _refuse_coincident(item, np.stack([i[close], j[close]], axis=-1)[:1])
        yield _rectangular(i.astype(np.int64), j.astype(np.int64), shift, len(positions))


def _search(cutoff: float) -> Any:
    vesin = import_extra("structures", "vesin", "neighbour_tables")
    # one thread: structures are many and small, and the order of pairs never varies
    return vesin.NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=1)


def _rectangular(
    i: NDArray[np.int64], j: NDArray[np.int64], shift: NDArray[np.int32], atoms: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Turn pairs sorted by ``i`` into a padded table."""
    counts = np.bincount(i, minlength=atoms)
    width = int(counts.max())
    column = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    neighbours = np.full((atoms, width), -1, np.int64)
    neighbours[i, column] = j
    shifts = np.zeros((atoms, width, 3), np.int32)
    shifts[i, column] = shift
    return neighbours, shifts


def _all_pairs(atoms: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    others = np.arange(atoms - 1)[None, :]
    neighbours = others + (others >= np.arange(atoms)[:, None])  # skips the atom itself
    return neighbours, np.zeros((atoms, atoms - 1, 3), np.int32)


def _coincident_points(positions: NDArray[np.float64]) -> NDArray[np.int64]:
    """First pair of equal rows, (1, 2), or (0, 2)."""
    order = np.lexsort(positions.T)
    same = np.nonzero((positions[order[1:]] == positions[order[:-1]]).all(axis=1))[0][:1]
    return np.stack([order[same], order[same + 1]], axis=-1)


def _refuse_many(item: int, atoms: Atoms, cutoff: float) -> None:
    """Refuse, before anything is allocated, a table that no memory holds."""
    count, cell = len(atoms), np.asarray(atoms.cell, np.float64)
    periodic = int(np.sum(atoms.pbc))
    if periodic == 3:
        near = 4 / 3 * math.pi * cutoff**3 / abs(float(np.linalg.det(cell)))
    elif periodic:
        c = int(np.argmin(atoms.pbc))
        area = float(np.linalg.norm(np.cross(cell[(c + 1) % 3], cell[(c + 2) % 3])))
        near = math.pi * cutoff**2 / area
    else:
        near = 1.0
    pairs = count * (count * near)
    if pairs > MOST_PAIRS:
        cure = (
            f"a cutoff below {cutoff:.3g}"
            if periodic
            else "fewer atoms: a molecule pairs all of its own, whatever the cutoff"
        )
        raise DataError(
            f"neighbour_tables: item {item} has about {pairs:.1e} pairs of its {count} atoms, more "
            f"than the {MOST_PAIRS:.0e} of one table. Take {cure}."
        )


def _refuse_coincident(item: int, pairs: NDArray[Any]) -> None:
    if len(pairs):
        first, second = sorted(pairs[0].tolist())
        raise DataError(
            f"neighbour_tables: atoms {first} and {second} of item {item} are at the same place "
            "(or at that of a periodic image). Delete one: ase.geometry.get_duplicate_atoms(atoms, "
            "delete=True)."
        )
