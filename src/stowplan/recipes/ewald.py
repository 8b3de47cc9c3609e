"""Ewald sums of many structures of mixed size: crystals, slabs and molecules in one list."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.io import structures as files
from stowplan.io.neighbours import neighbour_tables
from stowplan.kernels import ewald as kernels
from stowplan.planners.batches import Plan
from stowplan.ragged import Ragged
from stowplan.recipes.ewald_accuracy import Parameters, choose_parameters, vacuum_gap
from stowplan.recipes.results import ItemResults
from stowplan.runs.execution import run
from stowplan.runs.planning import Slots, plan

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["EwaldResults", "Prepared", "columns", "compute", "energy", "grid_sizes", "prepare"]

Array = NDArray[np.float64]
MOST_VECTORS = 10**9  # of one structure: tens of GB


@dataclass(frozen=True, eq=False)
class EwaldResults(ItemResults):
    """Energies, potentials, forces and stress of many structures."""

    energy: Array  # (items,) charge^2 / length^p times the prefactor
    potentials: Ragged  # over atoms; halved: energy = sum of charges * potentials
    forces: Ragged  # over atoms, (atoms, 3)
    stress: Array  # (items, 3, 3) dE/d(strain); over the volume it is the stress tensor
    plans: dict[str, Plan]  # "kspace" and "real"

    def columns(self) -> Mapping[str, Any]:
        """Give the columns by name, in the order of a table."""
        names = ("energy", "potentials", "forces", "stress")
        return {name: getattr(self, name) for name in names}


class Prepared(NamedTuple):
    """Arrays of one structure, in the order in which `energy` takes them."""

    positions: Any  # (atoms, 3)
    charges: Any  # (atoms,)
    cell: Any  # (3, 3)
    m1: Any  # (n1,)
    m2: Any  # (n2,)
    m3: Any  # (n3,)
    neighbours: Any  # (atoms, neighbours)
    shifts: Any  # (atoms, neighbours, 3)
    smearing: Any  # ()
    periodic: Any  # (3,)


def compute(
    structures: Sequence[Atoms] | str | os.PathLike[str],
    *,
    charges: Mapping[str, float] | None = None,
    cutoff: float | None = None,
    smearing: float | None = None,
    wavelength: float | None = None,
    accuracy: float = 1e-6,
    exponent: int = 1,
    prefactor: float = 1.0,
    on: str | None = None,
    slots: Slots | Mapping[str, Slots] = None,
    rows: int | Sequence[int] | None = None,
    overflow: Literal["error", "extend"] = "error",
    budget: int | str | None = None,
    progress: bool = False,
) -> EwaldResults:
    """Compute energies, potentials, forces and stress of structures of mixed size.

    Parameters
    ----------
    structures
        Crystals, slabs (two periodic axes) and molecules (none), or a file that ASE reads.
    charges
        Charges by element, ``{"Na": 1, "Cl": -1}``; those of the structures by default.
    cutoff, smearing, wavelength
        Cutoff of the pairs, width of the Gaussians and shortest wavelength of the k-vectors, in the
        unit of the positions, for all structures. What is None is chosen to meet the accuracy.
    accuracy
        Largest error of an energy over sum q^2 / a and of a force over max(q)^2 / a^2, where a^3 is
        the volume of an atom; the vacuum of slabs is made to meet it.
    exponent
        p of 1/r^p, 1 to 6; slabs take 1 only, and p = 3 neutral cells only.
    prefactor
        Multiplies all results: 14.399645478425667 gives eV and eV/Å.
    on
        ``"numpy"`` (the default), ``"jax"``, ``"torch"`` or ``"cupy"``.
    slots, rows, overflow, budget
        As in ``sp.plan``; slots and rows steer k space, whose dims are n1, n2, n3 and atoms, with
        k = n1 (2 n2 - 1) (2 n3 - 1). ``slots={"kspace": ..., "real": ...}`` steers both; with the
        slots of another result's plans nothing compiles again.
    progress
        Show progress bars.

    Returns
    -------
    EwaldResults
        NumPy columns; a sequence of one dict per structure.

    Raises
    ------
    DataError
        For structures, charges or parameters that have no answer: which item, and the cure.

    Examples
    --------
    >>> from ase import Atoms
    >>> dimer = Atoms("NaCl", [[0, 0, 0], [0, 0, 1]])
    >>> result = compute([dimer], charges={"Na": 1, "Cl": -1})
    >>> result.energy.round(12).tolist(), result.forces[0][0].round(12).tolist()
    ([-1.0], [0.0, 0.0, 1.0])
    """
    if not math.isfinite(prefactor):
        raise DataError(f"ewald: prefactor={prefactor}; it must be finite.")
    kspace, real = columns(
        structures, charges=charges, cutoff=cutoff, smearing=smearing, wavelength=wavelength,
        accuracy=accuracy, exponent=exponent,
    )  # fmt: skip
    steered = slots if isinstance(slots, Mapping) else {"kspace": slots}
    for name in steered:
        if name not in ("kspace", "real"):
            raise DataError(
                f"ewald: slots has a key {name!r}; a mapping steers 'kspace' and 'real', and slots "
                "of one plan are a list: slots=[{...}]."
            )
    plans = {
        "kspace": plan(
            kernels.kspace_field, kspace, on=on, slots=steered.get("kspace"), rows=rows,
            overflow=overflow, budget=budget,
        ),
        "real": plan(
            kernels.real_field, real, on=on, slots=steered.get("real"), overflow=overflow,
            budget=budget,
        ),
    }  # fmt: skip
    smooth, short = (
        run(kernel, data, made, on=on, progress=progress, exponent=exponent)
        for kernel, data, made in (
            (kernels.kspace_field, kspace, plans["kspace"]),
            (kernels.real_field, real, plans["real"]),
        )
    )
    energies, potentials, forces, stress = (
        _weighted_sum(a, b, prefactor) for a, b in zip(smooth, short, strict=True)
    )
    return EwaldResults(energies, potentials, forces, stress, plans)


def energy(
    positions: Any,
    charges: Any,
    cell: Any,
    m1: Any,
    m2: Any,
    m3: Any,
    neighbours: Any,
    shifts: Any,
    smearing: Any,
    periodic: Any,
    *,
    exponent: int = 1,
    prefactor: Any = 1.0,
) -> Any:
    """Give the energy of a structure from its arrays: to jit, differentiate and train through.

    Takes what `prepare` gives, on any framework; leading dims are batch dims. For structures of
    mixed size, ``sp.run`` the kernels `kspace_energy` and `real_energy` on `columns`.

    Examples
    --------
    >>> from ase import Atoms
    >>> dimer = Atoms("NaCl", [[0, 0, 0], [0, 0, 2]])
    >>> float(energy(*prepare(dimer, charges={"Na": 1, "Cl": -1})))
    -0.5
    """
    shared = (positions, charges, cell, smearing, periodic)
    smooth = kernels.kspace_energy(m1, m2, m3, *shared, exponent=exponent)
    return prefactor * (
        smooth + kernels.real_energy(neighbours, shifts, *shared, exponent=exponent)
    )


def prepare(atoms: Atoms, **options: Any) -> Prepared:
    """Give the arrays of one structure that `energy` takes; options as in `columns`."""
    kspace, real = columns([atoms], **options)
    data = {**kspace, **real}
    return Prepared(**{name: data[name][0] for name in Prepared._fields})


def columns(
    structures: Sequence[Atoms] | str | os.PathLike[str],
    *,
    charges: Mapping[str, float] | None = None,
    cutoff: float | None = None,
    smearing: float | None = None,
    wavelength: float | None = None,
    accuracy: float = 1e-6,
    exponent: int = 1,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Turn structures into the columns of the two kernels, for ``sp.plan`` and ``sp.run``.

    The axes of each cell are sorted, so that n1 <= n2 <= n3, and slabs get the vacuum that the
    accuracy needs: results do not depend on either. Parameters as in `compute`.

    Examples
    --------
    >>> from ase import Atoms
    >>> salt = Atoms("NaCl", [[0, 0, 0], [1, 1, 1]], cell=[2, 2, 2], pbc=True)
    >>> kspace, real = columns([salt], charges={"Na": 1, "Cl": -1}, smearing=1.0, accuracy=1e-4)
    >>> list(kspace)
    ['m1', 'm2', 'm3', 'positions', 'charges', 'cell', 'smearing', 'periodic']
    """
    if isinstance(structures, str | os.PathLike):
        return columns(
            files.read(structures), charges=charges, cutoff=cutoff, smearing=smearing,
            wavelength=wavelength, accuracy=accuracy, exponent=exponent,
        )  # fmt: skip
    _check_parameters(cutoff, smearing, wavelength, accuracy, exponent)
    structures = list(structures)
    files.validate(structures)
    loads = files.charges(structures, charges)
    _check_exponent(structures, loads, exponent)
    cells = _cells(structures, accuracy)
    parameters = choose_parameters(
        np.array([len(atoms) for atoms in structures], np.float64), np.abs(np.linalg.det(cells)),
        _imbalance(loads), accuracy, cutoff=cutoff, smearing=smearing, wavelength=wavelength,
        exponent=exponent,
    )  # fmt: skip
    periodic = np.array([atoms.pbc for atoms in structures], np.float64).reshape(-1, 3)
    counts = _counts(cells, parameters, periodic)
    _refuse_grids(counts, parameters)
    order = np.argsort(counts, axis=1, kind="stable")
    counts = np.take_along_axis(counts, order, axis=1)
    neighbours, shifts = neighbour_tables(structures, parameters.cutoff)
    shared = {
        "positions": Ragged.from_list(
            [np.asarray(atoms.positions, np.float64) for atoms in structures],
            tail=(3,),
            dtype=np.float64,
        ),
        "charges": loads,
        "cell": np.take_along_axis(cells, order[:, :, None], axis=1),
        "smearing": parameters.smearing,
        "periodic": np.take_along_axis(periodic, order, axis=1),
    }
    grids = {f"m{axis + 1}": _ranges(counts[:, axis]) for axis in range(3)}
    return {**grids, **shared}, {
        "neighbours": neighbours,
        "shifts": _permuted(shifts, order),
        **shared,
    }


def grid_sizes(
    structures: Sequence[Atoms], *, accuracy: float = 1e-6
) -> dict[str, NDArray[np.int64]]:
    """Give the sizes of structures in k space by the dims of its kernel, for planners and reports.

    As `columns` makes them of neutral cells; neither charges nor neighbours are looked for.

    Examples
    --------
    >>> from ase import Atoms
    >>> salt = Atoms("NaCl", [[0, 0, 0], [1, 1, 1]], cell=[2, 2, 2], pbc=True)
    >>> grid_sizes([salt], accuracy=1e-4)
    {'n1': array([4]), 'n2': array([4]), 'n3': array([4]), 'atoms': array([2])}
    """
    _check_parameters(None, None, None, accuracy, 1)
    files.validate(structures)
    cells = _cells(structures, accuracy)
    atoms = np.array([len(one) for one in structures], np.int64)
    parameters = choose_parameters(
        atoms.astype(np.float64), np.abs(np.linalg.det(cells)), np.zeros(len(atoms)), accuracy
    )
    periodic = np.array([one.pbc for one in structures], np.float64).reshape(-1, 3)
    counts = np.sort(_counts(cells, parameters, periodic), axis=1)
    return {**{f"n{axis + 1}": counts[:, axis] for axis in range(3)}, "atoms": atoms}


def _cells(structures: Sequence[Atoms], accuracy: float) -> Array:
    """Cells as the kernels want them: a slab's vacuum as needed, a molecule's regular."""
    cells = np.array([np.asarray(atoms.cell, np.float64) for atoms in structures]).reshape(-1, 3, 3)
    for cell, atoms in zip(cells, structures, strict=True):
        if not atoms.pbc.any():
            cell[...] = np.eye(3) * max(np.ptp(atoms.positions), 1.0)
        elif not atoms.pbc.all():
            c = int(np.argmin(atoms.pbc))
            plane = cell[[(c + 1) % 3, (c + 2) % 3]]
            normal = np.cross(*plane)
            normal /= np.linalg.norm(normal)
            spacing = np.linalg.norm(plane, axis=1).max(keepdims=True)
            # nothing repeats along the open axis, so its length and tilt are free
            cell[c] = normal * (np.ptp(atoms.positions @ normal) + vacuum_gap(spacing, accuracy))
    return cells


def _counts(cells: Array, parameters: Parameters, periodic: Array) -> NDArray[np.int64]:
    """Grid indices 0, 1, ... along each lattice vector, (items, 3)."""
    full = np.ceil(np.linalg.norm(cells, axis=2) / parameters.wavelength[:, None])
    halves = (np.minimum(full, 2.0**40).astype(np.int64) - 1) // 2 + 1
    return np.where(periodic.any(axis=1, keepdims=True), halves, 1)


def _refuse_grids(counts: NDArray[np.int64], parameters: Parameters) -> None:
    """Refuse, before anything is allocated, a grid of k-vectors that no memory holds."""
    vectors = 4.0 * counts.astype(np.float64).prod(axis=1)
    if len(vectors) and vectors.max() > MOST_VECTORS:
        item = int(np.argmax(vectors))
        raise DataError(
            f"ewald: item {item} needs {vectors[item]:.1e} k-vectors at wavelength "
            f"{parameters.wavelength[item]:.3g} and smearing {parameters.smearing[item]:.3g}, more "
            f"than the {MOST_VECTORS:.0e} of one structure. Raise the cutoff, the smearing or the "
            "wavelength, or leave them to accuracy=."
        )


def _imbalance(loads: Ragged) -> Array:
    """Q^2 / (N sum q^2), 0 where all charges are 0."""
    totals = np.array([q.sum() ** 2 for q in loads])
    squares = np.array([len(q) * (q @ q) for q in loads])
    result: Array = totals / np.where(squares > 0, squares, 1.0)
    return result


def _ranges(counts: NDArray[np.int64]) -> Ragged:
    return Ragged.from_list([np.arange(n, dtype=np.float64) for n in counts], dtype=np.float64)


def _permuted(shifts: Ragged, order: NDArray[np.int64]) -> Ragged:
    """Shifts by lattice vectors in the new order."""
    entries = np.repeat(np.arange(len(order)), shifts.shapes.prod(axis=1))
    return Ragged(np.take_along_axis(shifts.values, order[entries], axis=1), shifts.shapes)


def _weighted_sum(a: Any, b: Any, factor: float) -> Any:
    if isinstance(a, Ragged):
        return Ragged(factor * (a.values + b.values), a.shapes)
    return factor * (a + b)


def _check_parameters(
    cutoff: float | None,
    smearing: float | None,
    wavelength: float | None,
    accuracy: float,
    exponent: int,
) -> None:
    given = {"cutoff": cutoff, "smearing": smearing, "wavelength": wavelength}
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise DataError(f"ewald: {name}={value}; it must be positive and finite, or None.")
    if not 1e-14 <= accuracy < 1:
        raise DataError(f"ewald: accuracy={accuracy}; it must be from 1e-14 to below 1.")
    if exponent not in range(1, 7):
        raise DataError(f"ewald: exponent={exponent}; it must be 1, 2, 3, 4, 5 or 6.")


def _check_exponent(structures: Sequence[Atoms], loads: Ragged, exponent: int) -> None:
    if exponent == 1:
        return
    slabs = [index for index, atoms in enumerate(structures) if 0 < atoms.pbc.sum() < 3]
    if slabs:
        raise DataError(
            f"ewald: {len(slabs)} of {len(structures)} structures are slabs, whose correction is "
            f"for exponent=1, not {exponent}. First item {slabs[0]}. Give it three periodic axes "
            "and enough vacuum: atoms.pbc = True."
        )
    if exponent != 3:
        return
    for index, (atoms, q) in enumerate(zip(structures, loads, strict=True)):
        if atoms.pbc.any() and abs(q.sum()) > 1e-9 * np.abs(q).sum():
            raise DataError(
                f"ewald: item {index} has total charge {q.sum():g}; the sum of 1/r^3 diverges "
                "unless it is 0. Subtract the mean charge."
            )
