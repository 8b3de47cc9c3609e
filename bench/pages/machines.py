"""Pages of what is common to all recipes: memory, devices, and what predecessors publish."""

from __future__ import annotations

from bench.pages.figures import curves, points, ranges
from bench.pages.page import Page, Report, number, read_report, spread_text, table

__all__ = [
    "cuda",
    "devices",
    "floors",
    "growth",
    "memory",
    "predecessors",
    "predictions",
    "processes",
]


def devices(report: Report) -> Page:
    keys = ("batch_ms", "speedup_of_medians", "speedup_in_quiet", "speedup_without_waits",
            "cpu_seconds_one", "cpu_seconds_two", "cores_of_others")  # fmt: skip
    rows = [
        (on, *("" if report[on][key] is None else number(report[on][key]) for key in keys))
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
    rows = [(workers, *(number(row[name]) for name in ("wall", "busiest", "all", "caller")))
            for workers, row in report["median"].items()]  # fmt: skip
    head = ("processes", "wall s", "CPU s of the busiest", "of all", "of the caller")
    text = f"{report['batches']} batches of some 100 ms in one process and in two.\n\n"
    return Page("Two processes", text + table(head, rows))


def memory(report: Report) -> Page:
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


def growth(report: Report) -> Page:
    rows = [
        (one["recipe"], one["on"], number(one["slope"]), number(1e3 * one["constant_seconds"]),
         number(1e6 * one["item_seconds"]), f"{number(one['constant_until'])} {one['unit']}")
        for one in report["curves"]
    ]  # fmt: skip
    lines = {
        f"{one['recipe']}, {one['on']}": (
            [point["items"] for point in one["points"]],
            [point["all"] for point in one["points"]],
        )
        for one in report["curves"]
    }
    head = ("recipe", "on", "slope", "constant ms", "us an item", "constant part ends at")
    text = "Slopes are those of the upper two of three decades.\n\n"
    return Page("Growth", text + table(head, rows), curves(lines, "items, or pixels", "CPU s"),
                "Time of a call against its number of items")  # fmt: skip


def floors(report: Report) -> Page:
    ceilings = report["ceilings"]
    rates = [
        (on, name, number(1e-9 * rate)) for on, each in ceilings.items()
        for name, rate in each.items()
    ]  # fmt: skip
    rows = [
        (one["recipe"], one["on"], one["items"], one["bound"],
         number(1e3 * one["floor_seconds"]), number(1e3 * one["own_floor_seconds"]),
         spread_text({key: 1e3 * value for key, value in one["cpu"].items()}),
         number(one["over"]))
        for one in report["cases"]
    ]  # fmt: skip
    head = ("recipe", "on", "items", "bound by", "floor, ms", "floor of its framework, ms",
            "measured, CPU ms", "times the floor")  # fmt: skip
    text = "A floor is the largest of flops, exponentials and bytes over their ceilings.\n\n"
    text += table(head, rows)
    causes = {one["recipe"]: one["cause"] for one in report["cases"] if one.get("cause")}
    if causes:
        text += "\n\nWhat stands between a recipe and its floor, from profiles:\n\n"
        text += table(("recipe", "what"), list(causes.items()))
    text += "\n\nCeilings, 10^9 a second on one core:\n\n"
    over = {
        f"stowplan {one['recipe']}, {one['on']}": {
            key: value / one["floor_seconds"] for key, value in one["cpu"].items()
        }
        for one in report["cases"]
    }
    return Page("Distance from the floor", text + table(("on", "what", "rate"), rates),
                ranges({"times the floor": over}, "CPU"), "CPU time over the floor")  # fmt: skip


def predictions(report: Report) -> Page:
    rows = []
    groups: dict[str, tuple[list[float], list[float]]] = {}
    for one in report["cases"]:
        if "error" in one:
            rows.append((one["recipe"], one["on"], one["what"], one["error"], "", "", ""))
            continue
        unit = 1e-6 if one["what"] == "memory" else 1e3
        for step in one["steps"]:
            if step["predicted"] is None:
                continue
            rows.append((
                one["recipe"], one["on"], f"{one['what']}, {'MB' if unit < 1 else 'ms'}",
                step["kernel"], number(unit * step["predicted"]), number(unit * step["measured"]),
                f"{step['predicted'] / step['measured']:.2f}",
            ))  # fmt: skip
            at, values = groups.setdefault(f"{one['what']}, {'MB' if unit < 1 else 'ms'}", ([], []))
            at.append(unit * step["measured"])
            values.append(unit * step["predicted"])
    head = ("recipe", "on", "what", "kernel", "predicted", "measured", "ratio")
    shows = "Memory and time of all recipes; the band is 25 percent wide on both sides"
    picture = points(groups, "measured", "predicted", 0.25)
    return Page("Predicted and measured", table(head, rows), picture, shows)


def cuda(report: Report) -> Page:
    rows = [
        (name, spread_text({key: 1e3 * value for key, value in one["seconds"].items()}),
         number(1e-9 * one["flops"] / one["seconds"]["median"]), f"{one['shares']['flops']:.1%}",
         number(1e-9 * one["bytes"] / one["seconds"]["median"]), f"{one['shares']['bytes']:.1%}",
         one["dtype"], f"{one['error']:.0e}")
        for name, one in report["jobs"].items()
    ]  # fmt: skip
    head = ("job", "ms", "GFLOP/s", "of products", "GB/s", "of copies", "dtype", "error")
    rates = [(name, number(1e-9 * rate)) for name, rate in report["ceilings"].items()]
    text = f"{report['on']} on {report['device']}, data on the device.\n\n{table(head, rows)}\n\n"
    return Page(f"{report['on']} on a CUDA device",
                text + "Ceilings, 10^9 a second:\n\n" + table(("what", "rate"), rates))  # fmt: skip


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
    report = read_report("bragg") or {}
    ratios = [
        one["chunks"]["median"] / one["one batch"]["median"]
        for one in report.get("ratio", {}).get("cases", {}).values()
    ]
    if not ratios:
        return "not measured"
    return f"{min(ratios):.2f} to {max(ratios):.2f} times as long, by framework and domains"


def _two_devices() -> str:
    report = read_report("devices") or {}
    found = [
        f"{on} {report[on]['speedup_in_quiet'] or report[on]['speedup_without_waits'] or 0:.2f}x"
        for on in ("torch", "numpy", "jax")
        if on in report and (report[on]["speedup_in_quiet"] or report[on]["speedup_without_waits"])
    ]
    return f"{', '.join(found)} on 2, the cores of this machine" if found else "not measured"


def _over_ott() -> str:
    sides = (read_report("transport") or {}).get("sides", {})
    base = sides.get("OTT float32")
    if base is None:
        return "not measured"
    found = [
        f"{on} {base['warm_cpu']['median'] / sides[f'stowplan {on}']['warm_cpu']['median']:.0f}x"
        for on in ("jax", "numpy", "torch")
        if f"stowplan {on}" in sides
    ]
    return f"{', '.join(found)} over OTT pair by pair"
