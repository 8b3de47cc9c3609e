"""The sides of the Ewald benchmark: the peers and ours, one small class each.

A side has ``prepare(structures)``, which may take its time (neighbour lists, grids, padding, plans,
transfers), and ``compute(smearing)``, which is timed: from prepared data to energies (items,) and
forces (atoms, 3) as NumPy arrays in the order of the input. Frameworks are imported on
construction, so that a process that runs one side holds that side's libraries only (and torch,
which vesin imports where it is installed).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import vesin
from ase import Atoms

from bench.workers import count_compiles
from bench.workload import CUTOFF, SMEARING, VACUUM_ACCURACY, WAVELENGTH, effective_cell, grid

Result = tuple[np.ndarray, np.ndarray]


class Side(Protocol):
    """What the benchmark drives."""

    compiles: Counter[str]

    def prepare(self, structures: list[Atoms], dataset: list[Atoms]) -> None:
        """Bring a set, a part of the dataset, into the form that ``compute`` takes.

        Later sets keep the shapes of the first.
        """

    def compute(self, smearing: float = SMEARING) -> Result:
        """Energies (items,) and forces (atoms, 3)."""

    def facts(self) -> dict[str, Any]:
        """Sizes worth reporting."""


class TorchPME:
    """torch-pme, one structure after the other: half neighbour lists, forces by autograd.

    Timed: distances, k-vectors (its calculator makes them from the cell), energy and gradient.
    """

    def __init__(self) -> None:
        import torch
        import torchpme

        torch.set_num_threads(1)
        self.torch, self.torchpme = torch, torchpme
        self.compiles: Counter[str] = Counter()

    def prepare(self, structures: list[Atoms], dataset: list[Atoms]) -> None:
        self.items = [self._item(atoms) for atoms in structures]

    def _item(self, atoms: Atoms) -> dict[str, Any]:
        search = vesin.NeighborList(cutoff=CUTOFF, full_list=False)
        i, j, shifts = search.compute(
            atoms.positions, atoms.cell.array, periodic=atoms.pbc, quantities="ijS"
        )
        tensor = self.torch.from_numpy
        return {
            "charges": tensor(atoms.get_initial_charges()[:, None]),
            "cell": tensor(effective_cell(atoms)),
            "positions": tensor(atoms.positions.copy()),
            "pairs": tensor(np.stack([i, j], axis=1).astype(np.int64)),
            "shifts": tensor(shifts @ atoms.cell.array),
            "periodic": tensor(atoms.pbc.copy()),
        }

    def compute(self, smearing: float = SMEARING) -> Result:
        calculator = self.torchpme.EwaldCalculator(
            self.torchpme.CoulombPotential(smearing=smearing), lr_wavelength=WAVELENGTH
        )
        energies, forces = [], []
        for item in self.items:
            positions = item["positions"].detach().requires_grad_(True)
            pairs = item["pairs"]
            separation = positions[pairs[:, 1]] - positions[pairs[:, 0]] + item["shifts"]
            potentials = calculator(
                charges=item["charges"],
                cell=item["cell"],
                positions=positions,
                neighbor_indices=pairs,
                neighbor_distances=self.torch.linalg.norm(separation, dim=1),
                periodic=item["periodic"],
            )
            energy = (item["charges"] * potentials).sum()
            (gradient,) = self.torch.autograd.grad(energy, positions)
            energies.append(float(energy.detach()))
            forces.append(-gradient.numpy())
        return np.array(energies), np.concatenate(forces)

    def facts(self) -> dict[str, Any]:
        return {"pairs": sum(len(item["pairs"]) for item in self.items)}


class JaxPME:
    """jax-pme's batches: ``batched_mixed`` or ``batched_tiled``, ``rows`` structures a batch.

    Every batch has one shape, whose sizes are the exact maxima over the batches (its own default,
    the next powers of two, costs more). ``slots``, which jax-pme does not have, sorts the
    structures by hand into that many shapes first, to tell the gain by slots from that by kernels.
    Timed: ``jit(energy_forces)`` on arrays that are on the device.
    """

    def __init__(self, layout: str = "mixed", rows: int = 4, slots: int = 1) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)
        jax.devices()  # starts the backend
        self.jax, self.layout, self.rows, self.slots = jax, layout, rows, slots
        self.compiles = count_compiles()
        module = import_module(f"jaxpme.batched_{layout}")
        self.batching = import_module(f"jaxpme.batched_{layout}.batching")
        self.sample = import_module("jaxpme.batched_mixed.batching").prepare
        self.energy_forces = jax.jit(module.Ewald(prefactor=1.0).energy_forces)
        self.sizes: dict[int, dict[str, int]] = {}

    def prepare(self, structures: list[Atoms], dataset: list[Atoms]) -> None:
        self.counts = [len(atoms) for atoms in structures]
        samples = [
            self.sample(atoms, cutoff=CUTOFF, lr_wavelength=WAVELENGTH, smearing=SMEARING)
            for atoms in structures
        ]
        self.batches = []
        for slot, members in enumerate(self._slots(structures)):
            chunks = [members[i : i + self.rows] for i in range(0, len(members), self.rows)]
            needed = self._sizes([[samples[i] for i in chunk] for chunk in chunks])
            known = self.sizes.setdefault(slot, needed)
            known.update({key: max(known[key], n) for key, n in needed.items()})
            for chunk in chunks:
                batch = self.batching.get_batch([samples[i] for i in chunk], **known)
                self.batches.append((chunk, self.jax.device_put(batch)))

    def _slots(self, structures: list[Atoms]) -> list[list[int]]:
        if self.slots == 1:
            return [list(range(len(structures)))]
        from stowplan import assign_slots, choose_slots

        sizes = {"atoms": self.counts, "k": [int(np.prod(grid(a))) for a in structures]}
        batches = assign_slots(sizes, choose_slots(sizes, self.slots)).batches
        return [batch.items[: batch.count].tolist() for batch in batches]

    def _sizes(self, chunks: list[list[dict[str, Any]]]) -> dict[str, int]:
        atoms = [[len(sample["positions"]) for sample in chunk] for chunk in chunks]
        tile = 32
        rows = max(map(len, chunks))
        return {
            "num_structures": rows + 1,
            "num_structures_pbc": rows,
            "num_atoms": 1 + max(map(sum, atoms)),
            "num_pairs": 1 + max(sum(len(s["centers"]) for s in chunk) for chunk in chunks),
            "num_pairs_nonpbc": 1,
            "num_k": max(len(s["lr"].k_grid) for chunk in chunks for s in chunk),
            "num_atoms_pbc": max(map(max, atoms))
            if self.layout == "mixed"
            else tile + max(sum(-(-n // tile) * tile for n in counts) for counts in atoms),
        }

    def compute(self, smearing: float = SMEARING) -> Result:
        energies = np.empty(len(self.counts))
        forces: list[np.ndarray] = [np.empty(0)] * len(self.counts)
        for chunk, (charges, batch, *rest) in self.batches:
            if smearing != SMEARING:
                batch = batch._replace(smearing=np.full(batch.smearing.shape, smearing))
            energy, force = self.energy_forces(charges, batch, *rest)
            energies[chunk] = np.asarray(energy)[: len(chunk)]
            *inner, total = np.cumsum([self.counts[i] for i in chunk])
            for i, part in zip(chunk, np.split(np.asarray(force)[:total], inner), strict=True):
                forces[i] = part
        return energies, np.concatenate(forces)

    def facts(self) -> dict[str, Any]:
        shapes = [(sizes["num_k"], sizes["num_atoms_pbc"]) for sizes in self.sizes.values()]
        return {"batches": len(self.batches), "shapes (k, atoms)": shapes}


class Stowplan:
    """Ours, through ``stowplan.run`` with two ready plans, for k space and for real space.

    The slots are chosen once, from the sizes of the dataset. Timed: both runs on columns of the
    framework, gathering and scattering included, and the sum of their energies and forces.
    """

    def __init__(self, on: str, slots: int) -> None:
        import stowplan
        from stowplan.kernels import ewald as kernels
        from stowplan.recipes import ewald

        self.sp, self.on, self.slots = stowplan, on, slots
        self.columns = partial(
            ewald.columns,
            cutoff=CUTOFF,
            smearing=SMEARING,
            wavelength=WAVELENGTH,
            accuracy=VACUUM_ACCURACY,
        )
        self.kernels = (kernels.kspace_field, kernels.real_field)
        self.compiles: Counter[str] = Counter()
        self.array: Callable[[np.ndarray], Any] = np.asarray
        if on == "torch":
            import torch

            torch.set_num_threads(1)
            self.array = torch.from_numpy
        if on == "jax":
            import jax

            jax.config.update("jax_enable_x64", True)
            jax.devices()  # starts the backend
            self.array = jax.device_put
            self.compiles = count_compiles()
        self.plans: list[Any] = []

    def prepare(self, structures: list[Atoms], dataset: list[Atoms]) -> None:
        self.atoms = sum(len(atoms) for atoms in structures)
        self.data = [
            {name: self._column(values) for name, values in columns.items()}
            for columns in self.columns(structures)
        ]
        slots = [plan.slots for plan in self.plans] or self._chosen(dataset)
        self.plans = [
            self.sp.plan(kernel, data, slots=slots)
            for kernel, data, slots in zip(self.kernels, self.data, slots, strict=True)
        ]

    def _chosen(self, dataset: list[Atoms]) -> list[list[dict[str, int]]]:
        """Capacities chosen from the sizes of the dataset; rows follow from the first set."""
        plans = [
            self.sp.plan(kernel, columns, slots=self.slots)
            for kernel, columns in zip(self.kernels, self.columns(dataset), strict=True)
        ]
        return [[{d: slot[d] for d in plan.dims} for slot in plan.slots] for plan in plans]

    def _column(self, values: Any) -> Any:
        if isinstance(values, self.sp.Ragged):
            return self.sp.Ragged(self.array(values.values), values.shapes)
        return self.array(values)

    def compute(self, smearing: float = SMEARING) -> Result:
        energy, forces = 0.0, 0.0
        for kernel, data, plan in zip(self.kernels, self.data, self.plans, strict=True):
            if smearing != SMEARING:
                data = {**data, "smearing": self.array(np.full(len(data["smearing"]), smearing))}
            part, _, force, _ = self.sp.run(kernel, data, plan)
            energy, forces = energy + np.asarray(part), forces + np.asarray(force.values)
        return energy, forces

    def facts(self) -> dict[str, Any]:
        return {
            "slots": [len(plan.slots) for plan in self.plans],
            "batches": [len(plan.batches) for plan in self.plans],
            "work_occupancy": [round(float(plan.occupancy()), 3) for plan in self.plans],
        }
