"""What holds for the package as a whole: a light import, true names, arrows that point down."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import stowplan

HEAVY = ("torch", "jax", "jaxlib", "cupy", "cupyx", "array_api_strict", "scipy", "pyarrow", "ase")
HEAVY += ("zarr", "h5py")
PACKAGE = Path(stowplan.__file__).parent
ROOT = Path(__file__).parents[1]


def fresh(code: str) -> str:
    """Standard output of code run by a new interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_import_loads_no_framework_and_no_scipy():
    loaded = json.loads(fresh("import stowplan, sys, json; print(json.dumps(list(sys.modules)))"))
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(HEAVY)


@pytest.mark.timed
def test_the_import_takes_less_than_150_ms_beyond_numpy():
    code = (
        "import numpy, time; start = time.process_time(); "  # other programs do not count
        "import stowplan; print(time.process_time() - start)"
    )
    assert min(float(fresh(code)) for _ in range(5)) < 0.15


def test_every_public_name_exists_and_is_listed_once():
    assert len(set(stowplan.__all__)) == len(stowplan.__all__)
    missing = [name for name in stowplan.__all__ if not hasattr(stowplan, name)]
    assert not missing


def test_every_public_name_says_what_it_gives():
    silent = [
        name
        for name in stowplan.__all__
        if callable(getattr(stowplan, name)) and not getattr(stowplan, name).__doc__
    ]
    assert not silent


def test_the_version_is_said_once():
    assert metadata.version("stowplan") == stowplan.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", stowplan.__version__)


def test_the_package_tells_type_checkers_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_no_module_has_a_name_that_says_nothing():
    empty = {"utils", "util", "misc", "helpers", "helper", "common", "core", "base", "_misc"}
    named = {part for path in PACKAGE.rglob("*.py") for part in (path.stem, path.parent.name)}
    assert named.isdisjoint(empty)


def test_imports_between_modules_follow_the_layout():
    code = (
        "import sys; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(config_filename=sys.argv[1], no_cache=True))"
    )
    config = str(ROOT / "pyproject.toml")  # in a process of its own: it disables all loggers
    done = subprocess.run([sys.executable, "-c", code, config], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()
