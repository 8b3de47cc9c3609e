"""Tables and pictures of the documentation, from results: ``python -m bench.pages``.

Each ``results/NAME.json`` that is known here becomes ``docs/benchmarks/NAME.md``, with a picture
beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.record import RESULTS

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"

Report = Mapping[str, Any]


class Page(NamedTuple):
    """One page: what its tables and its picture show."""

    title: str
    text: str
    picture: str | None = None  # SVG
    shows: str = ""  # what the picture shows


def markdown(name: str, page: Page, report: Report) -> str:
    """Give the text of a page: tables, picture, targets, and what it ran on."""
    parts = [f"# {page.title}", page.text]
    if page.picture is not None:
        parts.append(f"![{page.shows}]({name}.svg)\n\n*{page.shows}*")
    parts += [f"Not run: {why}." for why in report.get("not_run", {}).values()]
    parts += [targets_table(report["targets"]), described(report)]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def write_pages(folder: Path) -> list[Path]:
    """Write all pages and pictures that results are there for."""
    folder.mkdir(exist_ok=True)
    written = []
    for name, make in PAGES.items():
        report = _report(name)
        if report is None:
            continue
        page = make(report)
        written.append(folder / f"{name}.md")
        written[-1].write_text(markdown(name, page, report), encoding="utf-8")
        if page.picture is not None:
            (folder / f"{name}.svg").write_text(page.picture, encoding="utf-8")
    return written


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def spread_text(spread: Mapping[str, float], digits: int = 3) -> str:
    """Median, and least and largest in brackets."""
    middle, least, largest = (_n(spread[key], digits) for key in ("median", "min", "max"))
    return f"{middle} ({least} to {largest})"


def targets_table(targets: Sequence[Mapping[str, Any]]) -> str:
    """What was asked for, and whether it was met in this run."""
    if not targets:
        return ""
    met = sum(each["met"] for each in targets)
    rows = [
        (each["target"].replace("|", "/"), _n(each["value"]), "yes" if each["met"] else "**no**")
        for each in targets
    ]
    return f"## Targets\n\n{met} of {len(targets)} were met in this run.\n\n" + table(
        ("target", "measured", "met"), rows
    )


def described(report: Report) -> str:
    """Say what it ran on."""
    host = report.get("host")
    if not isinstance(host, Mapping) or "processor" not in host:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    threads = ", ".join(f"{key}={value}" for key, value in host["threads"].items() if value)
    return (
        f"Measured {report['date']} at commit `{report['commit']}` on {host['processor']}, "
        f"{host['cores_used']} of {host['cores']} cores, {host['memory_gib']} GiB, "
        f"{host['system']}, Python {host['python']}; load before and after the last run "
        f"{host['load'][0]}. {versions}. Threads: {threads or 'as the benchmark sets them'}."
    )


def ewald(report: Report) -> Page:
    from bench.figures import ranges

    sides, load = report["sides"], report["workload"]
    rows = [
        (
            name, f"{r['cold'][1]:.2f}", spread_text(r["warm_cpu"]), _n(r["warm_wall"]["median"]),
            f"{r['peak_mb']:.0f}", sum(r["compiles"].values()), f"{r['energy_error']:.0e}",
            f"{r['force_error']:.0e}",
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
        "cold": {name: _one(r["cold"][1]) for name, r in sides.items()},
    }
    return Page("Ewald sums", text + table(head, rows), ranges(groups, "CPU s"),
                "CPU time of one pass over all structures")  # fmt: skip


def transport(report: Report) -> Page:
    from bench.figures import ranges

    sides = report["sides"]
    each = {name: _scaled(r["warm_cpu"], 1e3 / 64) for name, r in sides.items()}
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
        "cold, s": {name: _one(r["cold"][1]) for name, r in sides.items()},
    }
    return Page("Optimal transport", text, ranges(groups, "CPU"), "CPU time of 64 pairs")


def overlay(report: Report) -> Page:
    from bench.figures import ranges

    sides = report["sides"]
    rows = [
        (name, f"{r['score']:.5f}", f"{r['cold'][0]:.2f}", spread_text(r["warm"]),
         _n(r["second"]["median"]), f"{r['compiles']} + {r['compiles_second']}")
        for name, r in sides.items()
    ]  # fmt: skip
    head = ("side", "mean score", "cold, s", "warm, ms a pair", "another size", "compiles")
    text = "100 pairs of molecules, five starts each, on two cores.\n\n" + table(head, rows)
    if report.get("many"):
        lines = [(one["pairs"], f"{one['rise_mb']:.0f}", _n(one["ms_a_pair"]))
                 for one in report["many"]]  # fmt: skip
        text += "\n\n50 starts on NumPy:\n\n" + table(("pairs", "peak MiB", "ms a pair"), lines)
    groups = {
        "warm, ms a pair": {name: r["warm"] for name, r in sides.items()},
        "cold, s": {name: _one(r["cold"][0]) for name, r in sides.items()},
    }
    return Page("Overlays of molecules", text, ranges(groups, "wall"), "Wall time of 100 pairs")


def fields(report: Report) -> Page:
    from bench.figures import ranges

    sides = report["sides"]
    rows = []
    for name, r in sides.items():
        planned = r["facts"].get("planned_bytes")
        peak = max(r[state]["rise_bytes"]["max"] for state in ("warm", "cold"))
        rows.append((
            name, spread_text(r["warm"]["wall"]), _n(r["warm"]["cpu"]["median"]),
            spread_text(r["cold"]["wall"]), _n(r["cold"]["cpu"]["median"]), f"{peak / 1e6:.0f}",
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
    from bench.figures import ranges

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
        (name, _n(one["chunks"]["median"] / one["one batch"]["median"]))
        for name, one in report["ratio"]["cases"].items()
    ]
    parts.append("Time of the planned chunks over one batch of all pixels:\n\n"
                 + table(("framework, domains", "ratio"), rows))  # fmt: skip
    return Page("Diffraction images", "\n\n".join(parts), ranges(groups, "CPU s"),
                "CPU time of an image and of its gradient, one thread")  # fmt: skip


def devices(report: Report) -> Page:
    keys = ("batch_ms", "speedup_of_medians", "speedup_in_quiet", "speedup_without_waits",
            "cpu_seconds_one", "cpu_seconds_two", "cores_of_others")  # fmt: skip
    rows = [
        (on, *("" if report[on][key] is None else _n(report[on][key]) for key in keys))
        for on in ("torch", "numpy", "jax")
        if on in report
    ]
    head = ("on", "ms a batch", "2 over 1, medians", "... while others idle", "... without waits",
            "CPU s, 1", "CPU s, 2", "cores of others")  # fmt: skip
    text = "Batches of some 100 ms on one device pinned to one core and on two on two.\n\n"
    cache = report.get("compile_cache")
    if cache:
        text += table(head, rows) + (
            f"\n\nFirst run of 8 shapes on JAX: {cache['cold_seconds']:.1f} s with an empty "
            f"compile cache, {cache['warm_seconds']:.1f} s in a second process."
        )
    else:
        text += table(head, rows)
    return Page("Two devices", text)


def processes(report: Report) -> Page:
    rows = [(workers, *(_n(row[name]) for name in ("wall", "busiest", "all", "caller")))
            for workers, row in report["median"].items()]  # fmt: skip
    head = ("processes", "wall s", "CPU s of the busiest", "of all", "of the caller")
    text = f"{report['batches']} batches of some 100 ms in one process and in two.\n\n"
    return Page("Two processes", text + table(head, rows))


def memory(report: Report) -> Page:
    from bench.figures import points

    judged = [one for one in report["cases"] if one.get("batch_bytes", 0) >= 300e6]
    rows = [
        (one["kernel"], one["framework"], "gradient" if one["gradient"] else "forward",
         *(f"{one[key] / 1e6:.0f}" for key in ("batch_bytes", "predicted_bytes", "measured_bytes")),
         f"{one['predicted_bytes'] / one['measured_bytes']:.3f}")
        for one in judged
    ]  # fmt: skip
    head = ("kernel", "on", "", "batch MB", "predicted MB", "measured MB", "ratio")
    groups = {
        on: tuple([one[key] / 1e6 for one in report["cases"]
                   if one["framework"] == on and "measured_bytes" in one]
                  for key in ("measured_bytes", "predicted_bytes"))
        for on in ("numpy", "torch", "jax")
    }  # fmt: skip
    text = f"{len(report['cases'])} runs, of which those with batches of 300 MB or more:\n\n"
    return Page("Memory: predicted and measured", text + table(head, rows),
                points(groups, "measured, MB", "predicted, MB", 0.05),
                "All runs; the band is 5 percent wide on both sides")  # fmt: skip


def predecessors(report: Report) -> Page:
    occupancy, held = report["occupancy"], report["fields"]

    def shares(kind: str, *names: str) -> str:
        return ", ".join(f"{occupancy[f'{kind}: {name}']:.1%} ({name})" for name in names)

    used = held["peak_bytes"] / held["budget_bytes"]
    room = held["budget_bytes"] / held["fields_bytes"]
    chosen = ("2 chosen", "4 chosen", "8 chosen")
    rows = [
        (
            "jax-pme's slots: useful k rows, batches of 78",
            "23.5 % with one slot, 74 % with two",
            shares("rows", "one slot, the next power of two", "two slots by hand", *chosen),
        ),
        (
            "... useful work of the whole set",
            "not given",
            shares("work", "one shape", "two slots by hand", *chosen),
        ),
        (
            "nanoBragg-torch: chunks of pixels against one batch",
            "10 to 30 % more time",
            _chunk_overhead(),
        ),
        ("shepherd-score: several devices", "2.8x on 4", _two_devices()),
        (
            "a CUDA field processor: use of the memory that it may take",
            "under 10 % field by field, 80 % in batches",
            f"{used:.0%} of a budget that holds {room:.0%} of the fields",
        ),
        ("OTT-JAX: vmap on buckets against pair by pair", "2 to 3x", _over_ott()),
    ]
    head = ("predecessor and quantity", "published", "here")
    return Page("What predecessors publish, and the same here", table(head, rows))


def _chunk_overhead() -> str:
    report = _report("bragg") or {}
    ratios = [
        one["chunks"]["median"] / one["one batch"]["median"]
        for one in report.get("ratio", {}).get("cases", {}).values()
    ]
    if not ratios:
        return "not measured"
    return f"{min(ratios):.2f} to {max(ratios):.2f} times as long, by framework and domains"


def _two_devices() -> str:
    report = _report("devices") or {}
    found = [
        f"{on} {report[on]['speedup_in_quiet'] or report[on]['speedup_without_waits'] or 0:.2f}x"
        for on in ("torch", "numpy", "jax")
        if on in report and (report[on]["speedup_in_quiet"] or report[on]["speedup_without_waits"])
    ]
    return f"{', '.join(found)} on 2, the cores of this machine" if found else "not measured"


def _over_ott() -> str:
    sides = (_report("transport") or {}).get("sides", {})
    base = sides.get("OTT float32")
    if base is None:
        return "not measured"
    found = [
        f"{on} {base['warm_cpu']['median'] / sides[f'stowplan {on}']['warm_cpu']['median']:.0f}x"
        for on in ("jax", "numpy", "torch")
        if f"stowplan {on}" in sides
    ]
    return f"{', '.join(found)} over OTT pair by pair"


def _ours(name: str) -> str:
    return f"stowplan {name}" if name in ("torch", "numpy", "jax") else name


def _one(value: float) -> dict[str, float]:
    return {"median": value, "min": value, "max": value}


def _scaled(spread: Mapping[str, float], factor: float) -> dict[str, float]:
    return {key: factor * value for key, value in spread.items()}


def _n(value: Any, digits: int = 3) -> str:
    """Give a number with a few significant digits, never in powers of ten."""
    if isinstance(value, str):
        return value
    if not value:
        return "0"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text else text


def _report(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


PAGES: dict[str, Callable[[Report], Page]] = {
    "predecessors": predecessors,
    "ewald": ewald,
    "bragg": bragg,
    "overlay": overlay,
    "fields": fields,
    "transport": transport,
    "memory": memory,
    "devices": devices,
    "processes": processes,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    for path in write_pages(options.folder):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
