"""`stowplan doctor`: what this installation has, what its settings say, and what is wrong."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import stowplan
from stowplan.adapters import FRAMEWORKS, Adapter, get_adapter, installed_frameworks
from stowplan.adapters.compile_cache import VARIABLE as CACHE_VARIABLE
from stowplan.cli.installed import extras, version_of
from stowplan.errors import BudgetError, DataError, FrameworkError
from stowplan.host_memory import free_host_bytes
from stowplan.memory import SCRATCH_VARIABLE, resolve_budget, scratch_folder, show_bytes
from stowplan.memory import VARIABLE as BUDGET_VARIABLE
from stowplan.stores.descriptors import free_bytes

__all__ = ["add_command"]

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SHOWN = [name for name in FRAMEWORKS if name != "array_api_strict"]  # which is for tests
DISTRIBUTIONS = {"cupy": ("cupy-cuda12x", "cupy-cuda13x", "cupy")}  # of other names
EXAMPLE = """\
example:
  stowplan doctor
  stowplan doctor --quick
  stowplan doctor --json > doctor.json

Installed frameworks are imported, which shows whether they start and what devices they see;
--quick imports none. The exit status is 1 where something is wrong, 0 where it is only missing.
"""


def add_command(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "doctor",
        help="what is installed, which devices there are, what the settings say",
        description="Show frameworks, devices, settings and extras, and what is wrong.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=examine)
    parser.add_argument("--quick", action="store_true", help="import no framework: versions alone")
    parser.add_argument("--json", action="store_true", help="as JSON")


def examine(arguments: argparse.Namespace) -> None:
    """Print all, then complain about what is wrong."""
    problems: list[str] = []
    found = {
        "versions": _versions(problems),
        "frameworks": [_framework(name, arguments.quick, problems) for name in SHOWN],
        "settings": _settings(problems),
        "extras": _extras(problems),
        "problems": problems,
    }
    print(json.dumps(found, indent=1) if arguments.json else _page(found))
    if problems:
        more = "" if len(problems) == 1 else f" (and {len(problems) - 1} more, above)"
        raise DataError(f"doctor: {problems[0]}{more}")


def _versions(problems: list[str]) -> dict[str, str]:
    found = {
        "stowplan": stowplan.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    for one in extras().get("", []):
        found[one.name] = one.version or "missing"
        if not one.met:
            problems.append(f"{one}. Run: pip install --upgrade '{one.name}>={one.least}'")
    return found


def _framework(name: str, quick: bool, problems: list[str]) -> dict[str, Any]:
    """Version, free bytes of each device, and whether 64 bits are on; or how to get it."""
    versions = map(version_of, DISTRIBUTIONS.get(name, (FRAMEWORKS[name],)))
    found: dict[str, Any] = {
        "name": name, "version": next(filter(None, versions), None), "devices": {}, "note": "",
    }  # fmt: skip
    if name not in installed_frameworks():
        return found | {"note": f"not installed: pip install 'stowplan[{name}]'"}
    if quick:
        return found | {"note": "not imported (--quick)"}
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapter = get_adapter(name)
            devices = {str(one): adapter.free_bytes(one) for one in adapter.devices()}
            bits = _bits(adapter)
    except Exception as error:  # noqa: BLE001  a broken installation may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if name == "cupy":  # which is often installed where there is no GPU
            return found | {"note": f"no GPU ({reason})"}
        problems.append(f"{name} does not start ({reason}). Reinstall it.")
        return found | {"note": f"does not start: {reason}"}
    problems += [str(one.message) for one in said if CACHE_VARIABLE in str(one.message)]
    return found | {"devices": devices, "note": bits}


def _bits(adapter: Adapter) -> str:
    """Whether 64-bit numbers can be used, and how to switch them on."""
    try:
        adapter.asarray(np.zeros(1), adapter.devices()[0])
    except FrameworkError:  # of JAX, which would make them 32-bit ones
        return "32 bits (x64 off: set JAX_ENABLE_X64=1)"
    return "64 bits"


def _settings(problems: list[str]) -> dict[str, str]:
    """What holds where a call says nothing."""
    cache = os.environ.get(CACHE_VARIABLE, "").strip()
    threads = [f"{name}={os.environ[name]}" for name in THREADS if name in os.environ]
    return {
        "free memory": f"{show_bytes(free_host_bytes())} on the host",
        "budget": _or_problem(
            lambda: str(resolve_budget(None, free_host_bytes, "doctor")), problems, BUDGET_VARIABLE
        ),
        "scratch": _or_problem(_scratch, problems, SCRATCH_VARIABLE),
        "compile cache": f"{cache} ({CACHE_VARIABLE})" if cache else f"none ({CACHE_VARIABLE})",
        "threads": " ".join(threads) or f"as many as cores ({THREADS[0]} is not set)",
    }


def _scratch() -> str:
    folder = scratch_folder(None, "doctor")
    source = SCRATCH_VARIABLE if os.environ.get(SCRATCH_VARIABLE) else "the system's"
    with tempfile.TemporaryFile(dir=folder):
        return f"{folder}, {show_bytes(free_bytes(folder))} free ({source})"


def _or_problem(look: Callable[[], str], problems: list[str], variable: str) -> str:
    try:
        return look()
    except (BudgetError, OSError) as error:
        problems.append(str(error).removeprefix("doctor: "))
        return f"cannot be used ({variable}={os.environ.get(variable, '')})"


def _extras(problems: list[str]) -> dict[str, str]:
    """What each extra has brought, or how to get it."""
    found = {}
    for extra, wanted in extras().items():
        if not extra:
            continue
        found[extra] = ", ".join(map(str, wanted))
        old = [one for one in wanted if one.version is not None and not one.met]
        problems += [f"{one}. Run: pip install --upgrade 'stowplan[{extra}]'" for one in old]
        if not all(one.met for one in wanted):
            found[extra] += f": pip install 'stowplan[{extra}]'"
    return found


def _page(found: dict[str, Any]) -> str:
    """Sections of aligned lines, a blank one between two."""
    frameworks = {}
    for one in found["frameworks"]:
        devices = [f"{name}, {show_bytes(free)} free" for name, free in one["devices"].items()]
        frameworks[one["name"]] = "; ".join(filter(None, [one["version"], *devices, one["note"]]))
    sections = [found["versions"], frameworks, found["settings"], found["extras"]]
    width = max(len(name) for section in sections for name in section)
    parts = [
        "\n".join(f"{name:{width}}  {value}" for name, value in section.items())
        for section in sections
    ]
    if found["problems"]:
        parts.append("\n".join(f"problem: {problem}" for problem in found["problems"]))
    return "\n\n".join(parts)
