"""Fixtures that put every test on every framework that is installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Generator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

settings.register_profile(
    "stowplan", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("stowplan")

NAMESPACES = {
    "numpy": "array_api_compat.numpy",
    "array_api_strict": "array_api_strict",
    "torch": "array_api_compat.torch",
    "jax": "jax.numpy",
    "cupy": "array_api_compat.cupy",
}


collect_ignore = ["runs/on_jax_devices.py"]  # a program that test_devices.py starts


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[Any], list[Any]]:
    """Leave tests to the collector of tests: that of doctests skips what it cannot import."""
    found = yield
    return [each for each in found if type(each).__name__ != "DoctestModule"]


def namespace(name: str) -> ModuleType:
    """Load a framework, or skip the test with the reason."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    if name == "cupy":
        cupy = importlib.import_module("cupy")
        if not cupy.cuda.is_available():
            pytest.skip("cupy is installed, but there is no GPU")
    if name == "jax":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    if name == "torch":
        importlib.import_module("torch").set_num_threads(1)
    return importlib.import_module(NAMESPACES[name])


@pytest.fixture(autouse=True, scope="module")
def environment() -> Generator[None]:
    """Take back what a library leaves in the environment: Dask sets when malloc gives back."""
    before = set(os.environ)
    yield
    for name in os.environ.keys() - before:
        del os.environ[name]


@pytest.fixture(params=list(NAMESPACES))
def framework(request: pytest.FixtureRequest) -> str:
    """Name of a framework, as ``on=`` takes it."""
    namespace(request.param)
    return str(request.param)


@pytest.fixture
def xp(framework: str) -> ModuleType:
    """Array API namespace of the framework."""
    return namespace(framework)


@pytest.fixture
def load_framework() -> Callable[[str], ModuleType]:
    """Load a framework by name, as the other fixtures do."""
    return namespace


# Their tests start programs and share nothing: two processes may take one each.
APART = ("test_readme.py", "test_examples.py", "test_cli_doctor.py", "test_compile_cache.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file in one process, where compiled programs are shared (``--dist loadfile``)."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return nodeid if file.endswith(APART) else file

    return Files(config, log) if config.getvalue("dist") == "loadfile" else None
