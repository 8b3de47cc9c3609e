"""The main job: Ewald sums of the shipped structures on every framework, checked and timed.

``python demo/run.py [--out FOLDER] [--on numpy jax torch]`` prints four tables (energies against
Madelung constants, parity between frameworks, occupancy, times and compiles) and draws a picture.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import stowplan as sp
from stowplan.io import structures as files
from stowplan.recipes import ewald

FILE = Path(__file__).with_name("structures.extxyz")
EV_ANGSTROM = 14.399645478425667
FINE = 1e-12  # accuracy of the comparison with the literature
USUAL = 1e-6
CHOICES: dict[str, dict[str, Any]] = {
    "one slot": {"slots": {"kspace": 1, "real": 1}},
    "8 slots": {"slots": {"kspace": 8, "real": 8}},  # pays when sets are evaluated repeatedly
    "chosen": {},
}
PLANS = ("kspace", "real")


@dataclass
class Trial:
    """One evaluation of the whole set."""

    on: str
    choice: str
    result: Any
    seconds: float  # of the first call, compiles included
    again: float  # of the second, where the framework compiles
    compiles: int


@contextmanager
def counted_compiles() -> Iterator[list[str]]:
    """Collect what XLA compiles, by its own report."""
    import jax

    events: list[str] = []
    active = [True]

    def listen(event: str, seconds: float, **_: Any) -> None:
        if active[0] and event.endswith("backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        active[0] = False


def evaluate(structures: Sequence[Any], on: str, choice: str) -> Trial:
    """Compute energies, forces and stress of all structures, and time it."""

    def once() -> tuple[Any, float]:
        start = time.perf_counter()
        result = ewald.compute(
            structures, accuracy=USUAL, prefactor=EV_ANGSTROM, on=on, **CHOICES[choice]
        )
        return result, time.perf_counter() - start

    if on != "jax":
        result, seconds = once()
        return Trial(on, choice, result, seconds, seconds, 0)
    import jax

    jax.clear_caches()  # every trial starts anew
    with counted_compiles() as events:
        result, seconds = once()
    return Trial(on, choice, result, seconds, once()[1], len(events))


def print_set(structures: Sequence[Any]) -> None:
    """Say what the set holds."""
    sizes = np.array([len(atoms) for atoms in structures])
    kinds = Counter(atoms.info["kind"] for atoms in structures)
    compounds = {atoms.info["compound"] for atoms in structures}
    print(f"{len(structures)} structures of {len(compounds)} compounds:", end=" ")
    print(", ".join(f"{count} {kind}s" for kind, count in kinds.most_common()))
    print(
        f"atoms: {sizes.min()} to {sizes.max()}, median {np.median(sizes):.0f}, "
        f"{(sizes > 100).sum()} above 100"
    )


def print_literature(structures: Sequence[Any], frameworks: Sequence[str]) -> float:
    """Compare with Madelung constants; gives the worst relative error."""
    known = [atoms for atoms in structures if "madelung" in atoms.info]
    known.sort(key=lambda atoms: (atoms.info["prototype"], atoms.info["compound"]))
    expected = -EV_ANGSTROM * np.array(
        [a.info["madelung"] * a.info["units"] / a.info["length"] for a in known]
    )
    units = np.array([atoms.symbols.formula.reduce()[1] for atoms in known])
    energies = {
        on: np.asarray(ewald.compute(known, accuracy=FINE, prefactor=EV_ANGSTROM, on=on).energy)
        for on in frameworks
    }
    errors = np.stack([np.abs(energy / expected - 1) for energy in energies.values()])
    print("\nEnergies against Madelung constants, in eV per formula unit")
    print(
        f"{'compound':9}{'structure':27}{'literature':>16}{'computed':>16}"
        + "".join(f"{on + ' error':>14}" for on in frameworks)
    )
    computed = next(iter(energies.values()))
    for row, atoms in enumerate(known):
        cluster = atoms.info["kind"] == "molecule"
        place = f"{len(atoms)} ions, closed form" if cluster else atoms.info["prototype"]
        print(
            f"{atoms.info['compound']:9}{place:27}{expected[row] / units[row]:16.9f}"
            f"{computed[row] / units[row]:16.9f}"
            + "".join(f"{error:14.1e}" for error in errors[:, row])
        )
    print(f"worst relative error of {len(known)} structures: {errors.max():.1e}")
    return float(errors.max())


def charge_scale(structures: Sequence[Any]) -> np.ndarray:
    """Sum of squared charges of each structure over 1 Å, the scale of its energy, in eV."""
    squares = [np.sum(atoms.get_initial_charges() ** 2) for atoms in structures]
    return EV_ANGSTROM * np.array(squares)


def print_parity(structures: Sequence[Any], trials: Sequence[Trial]) -> float:
    """Compare frameworks and slots with the first trial; gives the worst difference."""
    scale = charge_scale(structures)
    first = trials[-1].result
    print("\nParity: largest difference from the last row, over the scale of each structure")
    print(f"{'framework':12}{'slots':12}{'energy':>12}{'forces':>12}{'stress':>12}")
    worst = 0.0
    for trial in trials:
        energy = np.abs(np.asarray(trial.result.energy) - first.energy) / scale
        stress = np.abs(np.asarray(trial.result.stress) - first.stress).max(axis=(1, 2)) / scale
        forces = [
            np.abs(np.asarray(trial.result.forces[item]) - first.forces[item]).max() / scale[item]
            for item in range(len(structures))
        ]
        found = [float(np.max(values)) for values in (energy, forces, stress)]
        worst = max(worst, *found)
        print(f"{trial.on:12}{trial.choice:12}" + "".join(f"{value:12.1e}" for value in found))
    return worst


def print_plans(trials: Sequence[Trial]) -> None:
    """Show occupancy, time and compiles of every trial."""
    print("\nOccupancy (useful / padded work), wall time and compiles; forces and stress included")
    print(f"{'':24}{'k space':^25}{'real space':^25}{'seconds':^18}")
    columns = f"{'slots':>7}{'shapes':>8}{'work':>10}"
    print(
        f"{'framework':12}{'slots':12}{columns}{columns}{'first':>10}{'again':>8}{'compiles':>10}"
    )
    for trial in trials:
        cells = ""
        for name in PLANS:
            plan = trial.result.plans[name]
            cells += f"{len(plan.slots):7}{len(plan.shapes):8}{plan.occupancy():10.1%}"
        compiles = str(trial.compiles) if trial.on == "jax" else "-"
        times = f"{trial.seconds:10.2f}{trial.again:8.2f}"
        print(f"{trial.on:12}{trial.choice:12}{cells}{times}{compiles:>10}")
    print("NumPy and torch compile nothing, so that another slot costs one more call")


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    installed = [on for on in ("numpy", "jax", "torch") if on in sp.installed_frameworks()]
    parser.add_argument(
        "--out", type=Path, default=Path("build/demo"), help="folder of the picture"
    )
    parser.add_argument("--on", nargs="+", choices=installed, default=installed)
    return parser.parse_args()


def main() -> None:
    """Run the demo; fails if an energy or a framework is off."""
    chosen = options()
    if "jax" in chosen.on:
        import jax

        jax.config.update("jax_enable_x64", True)
    structures = files.read(FILE)
    print_set(structures)
    error = print_literature(structures, chosen.on)
    trials = [
        evaluate(structures, on, choice)
        for on in chosen.on[::-1]
        for choice in CHOICES
        if on == "jax" or choice != "8 slots"  # where nothing compiles, slots are free
    ]
    difference = print_parity(structures, trials)
    print_plans(trials)

    from picture import draw

    print(f"\nPicture: {draw(trials, chosen.out)}")
    if error > 1e-9 or difference > 1e-10:
        raise SystemExit(f"off: literature by {error:.1e}, parity by {difference:.1e}")


if __name__ == "__main__":
    main()
