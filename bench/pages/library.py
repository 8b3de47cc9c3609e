"""Pages of planning, batches and gradients by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.pages.figures import curves, ranges
from bench.pages.page import Page, Report, number, single, spread_text, table

__all__ = ["chunked_gradients", "gather", "overhead", "planning", "recovery", "slots"]


def slots(report: Report) -> Page:
    parts, lines, marks = [], {}, {}
    for workload, frameworks in report["workloads"].items():
        rows = []
        for on, one in frameworks.items():
            sides, found = one["sides"], one["ratios"]
            counts = [label for label in sides if label.isdigit()]
            rows.append((
                on, f"{1e3 * sides[found['best warm']]['warm']['cpu']:.1f}",
                found["best warm slots"],
                *(number(found[f"{costs} warm"]) for costs in ("shipped", "measured")),
                number(found["no slots warm"]), number(found["exact warm"]),
                found["best cold slots"],
                *(number(found[f"{costs} cold"]) for costs in ("shipped", "measured")),
                number(found["no slots cold"]), number(found["exact cold"]),
            ))  # fmt: skip
            name = f"{workload}, {on}"
            lines[name] = (
                [sides[label]["slots"] for label in counts],
                [1e3 * sides[label]["warm"]["cpu"] for label in counts],
            )
            own = sides["shipped warm"]
            marks[name] = (own["slots"], 1e3 * own["warm"]["cpu"])
        head = ("on", "best, warm ms", "its slots", "own", "own, measured costs", "one shape",
                "exact shapes", "best slots, cold", "own", "own, measured costs", "one shape",
                "exact shapes")  # fmt: skip
        parts.append(f"{workload}, times over the best of all numbers of slots:\n\n"
                     + table(head, rows))  # fmt: skip
    text = f"{report['items']} items of lognormal sizes, 3 percent of them outliers.\n\n"
    picture = curves(lines, "slots", "one pass, warm, ms", marks=marks, log="y")
    return Page("Slots against no slots", text + "\n\n".join(parts), picture,
                "CPU time of a warm pass; rings are what the planner takes by itself")  # fmt: skip


def overhead(report: Report) -> Page:
    rows = [
        (name, one["runs"][0]["rows"], number(one["ratio"]),
         ", ".join(number(run["ratio"]) for run in one["runs"]),
         ", ".join(f"{run['extra_us']:+.0f}" for run in one["runs"]))
        for name, one in report["frameworks"].items()
    ]  # fmt: skip
    head = ("on", "rows of a batch", "run over the loop, median", "of each process",
            "us a batch")  # fmt: skip
    text = f"{report['batches']} batches of 1 ms, against a loop by hand.\n\n"
    return Page("Overhead of run", text + table(head, rows))


def planning(report: Report) -> Page:
    parts, lines = [], {}
    for kind, one in report["curves"].items():
        rows = [
            (f"{point['items']:,}".replace(",", " "), number(point["cpu"]), number(point["wall"]),
             f"{point['peak_mib']:.0f}", f"{point['occupancy']:.1%}")
            for point in one["points"]
        ]  # fmt: skip
        parts.append(f"{report['dims']} ragged dims, {kind}; {report['slots']} slots; slope "
                     f"{one['slope']:.2f}:\n\n"
                     + table(("items", "CPU s", "wall s", "peak MiB", "useful"), rows))  # fmt: skip
        lines[kind] = ([p["items"] for p in one["points"]], [p["cpu"] for p in one["points"]])
    return Page("Planning", "\n\n".join(parts), curves(lines, "items", "CPU s"),
                "Time to choose slots, assign items and split them into batches")  # fmt: skip


def gather(report: Report) -> Page:
    keys = ("gather GB/s", "copy of a batch GB/s", "gather over copy", "scatter GB/s",
            "copy of results GB/s", "scatter over copy")  # fmt: skip
    rows = [(name, *(number(one[key]) for key in keys)) for name, one in report["sides"].items()]
    text = "Flat rows to padded batches and back, against a copy of as many bytes.\n\n"
    return Page("Gather and scatter", text + table(("columns", *keys), rows))


def chunked_gradients(report: Report) -> Page:
    parts = []
    groups: dict[str, dict[str, Any]] = {}
    for name, sides in report["sides"].items():
        timed = {side: one for side, one in sides.items() if "wall" in one}
        rows = [
            (side, spread_text(_ms(one["wall"])), spread_text(_ms(one["cpu"])),
             number(one["cold_seconds"]["wall"]), f"{one['rise_bytes'] / 2**20:.1f}",
             one["compiles"], f"{one['error']:.0e}")
            for side, one in timed.items()
        ]  # fmt: skip
        head = ("side", "warm, wall ms", "CPU ms", "cold, s", "peak MiB", "compiles", "error")
        parts.append(f"Items of {name} sizes:\n\n{table(head, rows)}")
        groups[f"{name} sizes, warm ms"] = {side: _ms(one["cpu"]) for side, one in timed.items()}
        groups[f"{name} sizes, peak MiB"] = {
            side: single(max(one["rise_bytes"], 2**16) / 2**20) for side, one in timed.items()
        }
    load = report["workload"]
    text = f"{load['items']} items, chunks of {load['chunk']}.\n\n" + "\n\n".join(parts)
    return Page("Gradients in chunks", text, ranges(groups, "median"),
                "CPU time and peak memory of a value and its gradient")  # fmt: skip


def recovery(report: Report) -> Page:
    keys = ("computed", "in_vain", "every", "failures", "fill")
    rows = [
        (case, side, *([one[key] for key in keys] if "computed" in one else [one["error"]] * 5))
        for case, sides in report["cases"].items()
        for side, one in sides.items()
    ]
    head = ("case", "side", "items computed", "in vain", "in all calls", "calls that failed",
            "rows to fill up")  # fmt: skip
    text = f"Items processed for a job of {report['job']['items']} when memory runs out.\n\n"
    return Page("Recovery when memory runs out", text + table(head, rows))


def _ms(spread: Mapping[str, float]) -> dict[str, float]:
    return {key: 1e3 * value for key, value in spread.items()}
