"""Draw sizes, slots and occupancy of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def draw(trials: Sequence[Any], folder: Path) -> Path:
    """Write ``slots.png``: sizes by slot for one slot and several, and occupancy of all."""
    folder.mkdir(parents=True, exist_ok=True)
    compiled = [trial for trial in trials if trial.on == "jax"][:2] or trials[-2:]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    for axis, trial in zip(axes, compiled, strict=False):
        draw_slots(axis, trial.result.plans["kspace"])
        plan = trial.result.plans["kspace"]
        shown = f"slots: {len(plan.slots)}, batches: {len(plan.batches)}"
        axis.set_title(
            f"k space on {trial.on}, {shown}: {plan.occupancy():.1%} of work useful", fontsize=10
        )
    draw_occupancy(axes[2], trials)
    path = folder / "slots.png"
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path.resolve()


def sizes_of(plan: Any, lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Atoms and grid points (n1 n2 n3) of items or capacities."""
    atoms = lengths[:, plan.dims.index("atoms")]
    grid = [axis for axis, name in enumerate(plan.dims) if name != "atoms"]
    return atoms, lengths[:, grid].prod(axis=1)


def draw_slots(axis: Axes, plan: Any) -> None:
    """Show each structure in the colour of its slot, and the capacities of each slot."""
    slot = np.zeros(len(plan.lengths), int)
    for batch in plan.batches:
        slot[batch.items[: batch.count]] = batch.slot
    atoms, points = sizes_of(plan, plan.lengths)
    colours = plt.get_cmap("turbo")(np.linspace(0.08, 0.92, max(len(plan.slots), 2)))
    axis.scatter(atoms, points, s=14, color=colours[slot], alpha=0.8, linewidths=0)
    held = np.array([[limits[name] for name in plan.dims] for limits in plan.slots])
    for colour, width, height in zip(colours, *sizes_of(plan, held), strict=False):
        axis.plot([width, width, 0.1], [0.1, height, height], color=colour, linewidth=1.4)
    axis.set(xscale="log", yscale="log", xlabel="atoms", ylabel="grid points n1 n2 n3")
    axis.set(xlim=(1.5, atoms.max() * 1.5), ylim=(0.7, points.max() * 4))


def draw_occupancy(axis: Axes, trials: Sequence[Any]) -> None:
    """Show occupancy by work of both plans of every trial."""
    labels = [f"{trial.on}\n{trial.choice}" for trial in trials]
    places = np.arange(len(trials))
    for shift, name, label in ((-0.2, "kspace", "k space"), (0.2, "real", "real space")):
        shares = [100 * trial.result.plans[name].occupancy() for trial in trials]
        bars = axis.bar(places + shift, shares, 0.38, label=label)
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
    axis.set_xticks(places, labels, fontsize=8)
    axis.set(ylabel="useful / padded work (%)", ylim=(0, 112), title="Occupancy")
    axis.legend(loc="upper left", ncols=2, fontsize=8)
