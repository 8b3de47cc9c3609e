"""What every benchmark notes beside its figures, and where: host, versions, commit, targets."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "THREADS", "at_least", "at_most", "save", "show", "versions"]

RESULTS = Path(__file__).parent / "results"
THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS", "JAX_PLATFORMS",
)  # fmt: skip


def at_least(target: str, value: float, least: float) -> dict[str, Any]:
    """What was asked for, and whether it is so."""
    return {"target": f"{target} >= {least:g}", "value": float(value), "met": bool(value >= least)}


def at_most(target: str, value: float, most: float) -> dict[str, Any]:
    """What was asked for, and whether it is so."""
    return {"target": f"{target} <= {most:g}", "value": float(value), "met": bool(value <= most)}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Give installed versions; a peer that is not there is said to be so."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def show(targets: Sequence[Mapping[str, Any]]) -> None:
    """Print targets, a line each."""
    for each in targets:
        print(f"{'met   ' if each['met'] else 'MISSED'} {each['target']}: {each['value']:.4g}")


def save(
    name: str,
    figures: Mapping[str, Any],
    targets: Sequence[Mapping[str, Any]],
    packages: Iterable[str],
    out: Path | None = None,
) -> Path:
    """Write `results/name.json`, and give its path.

    Parameters
    ----------
    figures
        What was measured, as JSON takes it.
    targets
        From `at_least` and `at_most`.
    packages
        Those whose versions matter, peers among them.
    """
    report = {
        "host": _host(),
        "versions": versions(["stowplan", "numpy", *packages]),
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **figures,
        "targets": list(targets),
    }
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


def _host() -> dict[str, Any]:
    """Say what it runs on: processor, cores, memory, threads, load."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "cores_used": cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": {key: os.environ.get(key, "") for key in THREADS},
        "load": [round(each, 2) for each in os.getloadavg()],
    }


def _commit() -> str:
    """Give the commit that was measured, with a + where files differ from it."""
    here = Path(__file__).parent
    asked = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=10"]
    try:
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not in a repository"
