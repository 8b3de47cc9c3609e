"""One page: tables, a picture, targets and what it ran on, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.record import RESULTS

__all__ = ["Page", "Report", "markdown", "number", "read_report", "scaled", "single"]
__all__ += ["spread_text", "table"]

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


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def spread_text(spread: Mapping[str, float], digits: int = 3) -> str:
    """Median, and least and largest in brackets."""
    middle, least, largest = (number(spread[key], digits) for key in ("median", "min", "max"))
    return f"{middle} ({least} to {largest})"


def targets_table(targets: Sequence[Mapping[str, Any]]) -> str:
    """What was asked for, and whether it was met in this run."""
    if not targets:
        return ""
    met = sum(each["met"] for each in targets)
    rows = [
        (each["target"], number(each["value"]), "yes" if each["met"] else "**no**")
        for each in targets
    ]
    head = ("target", "measured", "met")
    return f"## Targets\n\n{met} of {len(targets)} were met in this run.\n\n" + table(head, rows)


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


def single(value: float) -> dict[str, float]:
    return {"median": value, "min": value, "max": value}


def scaled(spread: Mapping[str, float], factor: float) -> dict[str, float]:
    return {key: factor * value for key, value in spread.items()}


def number(value: Any, digits: int = 3) -> str:
    """Give a number with a few significant digits, never in powers of ten."""
    if isinstance(value, str):
        return value
    if not value:
        return "0"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text else text


def read_report(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
