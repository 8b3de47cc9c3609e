"""Pages of the recipes beside their peers."""

from __future__ import annotations

from typing import Any

from bench.pages.figures import ranges
from bench.pages.page import Page, Report, number, scaled, single, spread_text, table

__all__ = ["bragg", "ewald", "fields", "overlay", "transport"]


def ewald(report: Report) -> Page:
    sides, load = report["sides"], report["workload"]
    rows = [
        (
            name, f"{r['cold'][1]:.2f}", spread_text(r["warm_cpu"]),
            number(r["warm_wall"]["median"]), f"{r['peak_mb']:.0f}", sum(r["compiles"].values()),
            f"{r['energy_error']:.0e}", f"{r['force_error']:.0e}",
        )
        for name, r in sides.items()
    ]  # fmt: skip
    text = (
        f"Energies and forces of {load['structures']} crystals and slabs of {load['atoms'][0]} to "
        f"{load['atoms'][2]} atoms in float64, on one thread. In one padded shape "
        f"{load['one_shape_occupancy']:.1%} of the work would be useful.\n\n"
    )
    head = ("side", "cold, CPU s", "warm, CPU s", "warm, wall s", "peak MiB", "compiles", "dE/E",
            "dF")  # fmt: skip
    groups = {
        "warm": {name: r["warm_cpu"] for name, r in sides.items()},
        "cold": {name: single(r["cold"][1]) for name, r in sides.items()},
    }
    return Page("Ewald sums", text + table(head, rows), ranges(groups, "CPU s"),
                "CPU time of one pass over all structures")  # fmt: skip


def transport(report: Report) -> Page:
    sides = report["sides"]
    each = {name: scaled(r["warm_cpu"], 1e3 / 64) for name, r in sides.items()}
    rows = [
        (name, f"{r['cold'][1]:.2f}", spread_text(each[name]), sum(r["compiles"].values()),
         f"{r['peak_mb']:.0f}", f"{r['error']:.0e}")
        for name, r in sides.items()
    ]  # fmt: skip
    text = table(("side", "cold, CPU s", "warm, CPU ms a pair", "compiles", "peak MiB",
                  "largest error"), rows)  # fmt: skip
    text = "64 pairs of silhouettes, each of its own shape, on one thread.\n\n" + text
    if "budget" in report:
        lines = [
            (one["on"], f"{one['predicted'] / 2**20:.0f}", f"{one['measured'] / 2**20:.0f}")
            for one in report["budget"]
        ]
        text += "\n\n256 pairs on canvases of 128 x 256 to 512 x 1024 within 1 GiB, MiB:\n\n"
        text += table(("on", "predicted", "measured"), lines)
    groups = {
        "warm, ms a pair": each,
        "cold, s": {name: single(r["cold"][1]) for name, r in sides.items()},
    }
    return Page("Optimal transport", text, ranges(groups, "CPU"), "CPU time of 64 pairs")


def overlay(report: Report) -> Page:
    sides = report["sides"]
    rows = [
        (name, f"{r['score']:.5f}", f"{r['cold'][0]:.2f}", spread_text(r["warm"]),
         number(r["second"]["median"]), f"{r['compiles']} + {r['compiles_second']}")
        for name, r in sides.items()
    ]  # fmt: skip
    head = ("side", "mean score", "cold, s", "warm, ms a pair", "another size", "compiles")
    text = "100 pairs of molecules, five starts each, on two cores.\n\n" + table(head, rows)
    if report.get("many"):
        lines = [(one["pairs"], f"{one['rise_mb']:.0f}", number(one["ms_a_pair"]))
                 for one in report["many"]]  # fmt: skip
        text += "\n\n50 starts on NumPy:\n\n" + table(("pairs", "peak MiB", "ms a pair"), lines)
    groups = {
        "warm, ms a pair": {name: r["warm"] for name, r in sides.items()},
        "cold, s": {name: single(r["cold"][0]) for name, r in sides.items()},
    }
    return Page("Overlays of molecules", text, ranges(groups, "wall"), "Wall time of 100 pairs")


def fields(report: Report) -> Page:
    sides = report["sides"]
    rows = []
    for name, r in sides.items():
        planned = r["facts"].get("planned_bytes")
        peak = max(r[state]["rise_bytes"]["max"] for state in ("warm", "cold"))
        rows.append((
            name, spread_text(r["warm"]["wall"]), number(r["warm"]["cpu"]["median"]),
            spread_text(r["cold"]["wall"]), number(r["cold"]["cpu"]["median"]), f"{peak / 1e6:.0f}",
            "" if planned is None else f"{planned / 1e6:.0f}",
        ))  # fmt: skip
    head = ("side", "warm, s", "CPU s", "cold, s", "CPU s", "peak MB", "planned MB")
    text = "Power spectra of 48 complex fields on disk, 2.5 GB, on two cores.\n\n"
    groups = {
        state: {name: r[state]["wall"] for name, r in sides.items()} for state in ("warm", "cold")
    }
    return Page("Fields larger than memory", text + table(head, rows), ranges(groups, "wall s"),
                "Wall time, files in the page cache (warm) or dropped from it (cold)")  # fmt: skip


def bragg(report: Report) -> Page:
    parts = []
    groups: dict[str, dict[str, Any]] = {}
    names = list(dict.fromkeys(
        name for kind in ("forward", "gradient") for name in report[kind]["sides"]
    ))  # fmt: skip
    for kind in ("forward", "gradient"):
        case = report[kind]
        terms = case["size"] ** 2 * case["domains"]
        rows = [
            (name, spread_text(r["cpu"]), f"{r['cpu']['median'] / terms * 1e9:.0f}",
             f"{r['rise_bytes'] / 2**20:.0f}", f"{r['rise_bytes'] / terms:.1f}",
             f"{r['error']:.0e}")
            for name, r in case["sides"].items()
        ]  # fmt: skip
        head = ("side", "CPU s", "ns a term", "peak MiB", "bytes a term", "error")
        parts.append(f"{kind.capitalize()}, {case['size']} x {case['size']} pixels, "
                     f"{case['domains']} mosaic domains:\n\n{table(head, rows)}")  # fmt: skip
        sides = {_ours(name): r["cpu"] for name, r in case["sides"].items()}
        groups[kind] = {_ours(name): sides.get(_ours(name)) for name in names}
    rows = [
        (name, number(one["chunks"]["median"] / one["one batch"]["median"]))
        for name, one in report["ratio"]["cases"].items()
    ]
    parts.append("Time of the planned chunks over one batch of all pixels:\n\n"
                 + table(("framework, domains", "ratio"), rows))  # fmt: skip
    return Page("Diffraction images", "\n\n".join(parts), ranges(groups, "CPU s"),
                "CPU time of an image and of its gradient, one thread")  # fmt: skip


def _ours(name: str) -> str:
    return f"stowplan {name}" if name in ("torch", "numpy", "jax") else name
