"""`stowplan ewald`: a file of structures in, energies or structures with their results out."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from stowplan.cli.arguments import add_slots, natural, number, pairs, positive, refuse_unwritable

__all__ = ["add_command"]

EXAMPLE = """\
example:
  stowplan ewald salts.extxyz --charges Na=1,Cl=-1 --prefactor 14.399645478425667 --out done.extxyz

Energies are charge^2 / length times --prefactor: 1 by default, 14.399645478425667 for eV.
Without --out, standard output gets one tab-separated line for each structure.
"""


def add_command(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "ewald",
        help="energies, forces and stress of the structures in a file",
        description="Ewald sums of all structures in a file that ASE reads, of mixed size.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=evaluate)
    add = parser.add_argument
    add("file", metavar="FILE", help="extended XYZ, CIF, POSCAR, ... with one or many structures")
    add("--on", choices=("numpy", "jax", "torch", "cupy"), help="framework (default: numpy)")
    add_slots(parser)
    add("--accuracy", type=positive, default=1e-6, metavar="A", help="relative (default: 1e-6)")
    add("--cutoff", type=positive, metavar="R", help="real-space cutoff, instead of --accuracy")
    add(
        "--charges",
        type=pairs(number),
        metavar="El=Q,...",
        help="charges by element, such as Na=1,Cl=-1 (default: those in FILE)",
    )
    add("--exponent", type=natural, default=1, metavar="P", help="1/r^P, 1 to 6 (default: 1)")
    add("--prefactor", type=number, default=1.0, metavar="X", help="multiplies all (default: 1)")
    add("--budget", metavar="BYTES", help='memory, such as "4 GiB"')
    add(
        "--out",
        type=Path,
        metavar="FILE.extxyz",
        help="write structures with their results, 8 decimals; FILE.parquet: results, all digits",
    )
    add("-q", "--quiet", action="store_true", help="no progress bar and no summary")


def evaluate(arguments: argparse.Namespace) -> None:
    """`stowplan ewald`: energies, forces and stress of the structures in a file."""
    if arguments.on == "jax":
        os.environ.setdefault("JAX_ENABLE_X64", "1")  # the files hold float64
    from stowplan.io import structures as files
    from stowplan.recipes.ewald import compute

    if arguments.out is not None:
        refuse_unwritable(arguments.out)
    structures = files.read(arguments.file)
    shown = not arguments.quiet and sys.stderr.isatty()
    start = time.perf_counter()
    result = compute(
        structures,
        charges=arguments.charges,
        cutoff=arguments.cutoff,
        accuracy=arguments.accuracy,
        exponent=arguments.exponent,
        prefactor=arguments.prefactor,
        on=arguments.on,
        slots=arguments.slot or arguments.slots,
        rows=arguments.rows,
        budget=arguments.budget,
        progress=shown,
    )
    seconds = time.perf_counter() - start
    if arguments.out is None:
        _print_energies(structures, result)
    else:
        _write(arguments.out, structures, result)
    if arguments.quiet:
        return
    parts = [f"{len(structures)} structures in {seconds:.2f} s"]
    for name, plan in result.plans.items():
        parts.append(f"{name}: {len(plan.slots)} slots, occupancy {plan.occupancy():.1%}")
    print("; ".join(parts), file=sys.stderr)


def _print_energies(structures: list[Any], result: Any) -> None:
    print("item", "formula", "atoms", "energy", "largest_force", sep="\t")
    for index, (atoms, energy) in enumerate(zip(structures, result.energy, strict=True)):
        force = float((result.forces[index] ** 2).sum(axis=1).max() ** 0.5)
        formula = atoms.get_chemical_formula("metal")
        print(index, formula, len(atoms), f"{float(energy):.15g}", f"{force:.6g}", sep="\t")


def _write(path: Path, structures: list[Any], result: Any) -> None:
    """Write a table of all digits (.parquet), or structures that ASE reads back; all or nothing."""
    from stowplan.io.whole_files import whole_file

    with whole_file(path) as part:
        if path.suffix == ".parquet":
            table = result.to_table()  # says how to install pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(table, part)
        else:
            _write_structures(part, structures, result)


def _write_structures(path: Path, structures: list[Any], result: Any) -> None:
    """Write extended XYZ with energy, forces, stress and potentials."""
    import ase.io
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.stress import full_3x3_to_voigt_6_stress

    frames = []
    for index, atoms in enumerate(structures):
        frame = atoms.copy()
        found = {"energy": float(result.energy[index]), "forces": result.forces[index]}
        if frame.pbc.any():
            stress = result.stress[index] / frame.get_volume()
            found["stress"] = full_3x3_to_voigt_6_stress(stress)
        frame.set_array("potentials", result.potentials[index])
        frame.calc = SinglePointCalculator(frame, **found)
        frames.append(frame)
    ase.io.write(path, frames, format="extxyz")
