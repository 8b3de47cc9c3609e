"""Sessions of the project: `python -m nox -l` lists them; what follows `--` goes on to the tool."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests"]

PROJECT = nox.project.load_toml("pyproject.toml")
FILES = (  # no frameworks
    "structures,arrow,zarr,hdf5,reflections,images,masks,pictures,report,molecules,executor"
)
BACKENDS = {  # extras and dependency groups that bring one framework each
    "array-api-strict": ([], ["strict"]),
    "numpy": ([], []),
    "torch": (["torch"], []),
    "jax": (["jax"], []),
    "cupy": (["cupy"], []),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Files stay in one process, where compiled programs are shared (tests/conftest.py); 3 GiB each.
OLDEST = (  # tests that call what dependencies changed, 10 minutes in one process
    "tests/planners", "tests/adapters", "tests/kernels", "tests/stores", "tests/test_ragged.py",
    "tests/test_gather.py", "tests/test_special.py", "tests/test_interpolation.py",
    "tests/test_fourier.py", "tests/runs/test_execution.py", "tests/runs/test_gradients.py",
    "tests/recipes/test_ewald.py",
)  # fmt: skip
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
TWO_AT_A_TIME = ("-n", "auto", "--maxprocesses", "2", "--dist", "loadfile")


def install(session: nox.Session, *groups: str, extras: str = "", editable: bool = False) -> None:
    """Install the package with its extras, and dependency groups, at the pinned versions."""
    wanted = nox.project.dependency_groups(PROJECT, *groups)
    package = f".[{extras}]" if extras else "."
    session.install("-c", "constraints.txt", *wanted, *(["-e"] if editable else []), package)


def built_wheel() -> str:
    """Give the wheel that the session `build` has left in dist/."""
    (wheel,) = Path("dist").glob("*.whl")
    return str(wheel.resolve())


def install_wheel(
    session: nox.Session, *groups: str, extras: str = "", versions: str = "constraints.txt"
) -> None:
    """Install what users install: the built wheel with extras, and dependency groups."""
    wanted = nox.project.dependency_groups(PROJECT, *groups)
    wheel = built_wheel()
    session.install("-c", versions, *wanted, f"{wheel}[{extras}]" if extras else wheel)
    # pip keeps a package whose version has not changed
    session.install("--no-deps", "--force-reinstall", wheel)


def pytest(session: nox.Session, *options: str) -> None:
    """Run the doctests of the installed package and all tests, or what the caller asks for."""
    chosen = session.posargs or ["--pyargs", "stowplan", "tests"]
    session.run("python", "-m", "pytest", *options, *chosen, env=ONE_THREAD)


def one_framework(backend: str) -> None:
    """Register the session that tests one backend."""

    def test(session: nox.Session) -> None:
        if backend == "cupy" and not shutil.which("nvidia-smi"):
            session.skip("CuPy needs a CUDA device, and this machine has no NVIDIA driver.")
        extras, groups = BACKENDS[backend]
        install_wheel(session, "test", *groups, extras=",".join([FILES, *extras]))
        pytest(session)

    test.__doc__ = f"Test {backend} with no other framework installed."
    nox.session(name=f"tests-{backend}", requires=["build"])(test)


@nox.session
def demo(session: nox.Session) -> None:
    """Evaluate the shipped structures on every framework: tables, times and a picture."""
    install(session, "demo", extras="all-cpu")
    session.run("python", "demo/run.py", *session.posargs, env=ONE_THREAD)


@nox.session
def examples(session: nox.Session) -> None:
    """Run all examples: short ones of the recipes at small size, and two loops of one's own."""
    install(session, "examples", extras="all-cpu")
    for script in sorted(Path("docs/examples").glob("*.py")):
        session.run("python", str(script), "--small", env=ONE_THREAD)
    for name in ("element_charges", "refine_crystal"):
        session.run("python", f"examples/{name}.py", *session.posargs, env=ONE_THREAD)


@nox.session
def build(session: nox.Session) -> None:
    """Build the source archive, and from it the wheel that all tests install, into dist/."""
    session.install("-c", "constraints.txt", "build>=1.2")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", "dist")


@nox.session(requires=["build"])
def tests(session: nox.Session) -> None:
    """Test all backends that this machine can run, in one environment (the default)."""
    install_wheel(session, "test", "strict", "examples", "peers", "executors", extras="all-cpu")
    if not any(map(shutil.which, BROWSERS)):
        session.log("Reports are not tried in a browser: apt-get install -y chromium")
    if session.posargs:
        pytest(session)
        return
    pytest(session, *TWO_AT_A_TIME, "-m", "not timed", "--cov", "--cov-report=")
    session.run("coverage", "report", "--fail-under=95")
    pytest(session, "-m", "timed")


for name in BACKENDS:
    one_framework(name)


@nox.session(name="tests-oldest", requires=["build"])
def tests_oldest(session: nox.Session) -> None:
    """Test NumPy and JAX at the oldest versions that pyproject.toml allows."""
    # torch stays out: the wheels of 2.6 on PyPI bring CUDA with them, several GB
    install_wheel(
        session, "test", "strict", extras="jax,structures", versions="constraints-oldest.txt"
    )
    session.run(
        "python", "-m", "pytest", "-m", "not timed", *(session.posargs or OLDEST), env=ONE_THREAD
    )


@nox.session(reuse_venv=False, requires=["build"])
def wheel(session: nox.Session) -> None:
    """Run README's examples far from the source: with the wheel alone, then with an extra."""
    blocks = BLOCK.findall(Path("README.md").read_text(encoding="utf-8"))
    package, folder = built_wheel(), session.create_tmp()
    (Path(folder) / "first.py").write_text(blocks[0], encoding="utf-8")
    (Path(folder) / "all.py").write_text("\n".join(blocks), encoding="utf-8")
    session.install(package)
    session.chdir(folder)
    session.run("python", "-I", "first.py", env=ONE_THREAD)  # -I: no path but the environment's
    session.run("stowplan", "doctor")
    session.install(f"{package}[structures]")
    session.run("python", "-I", "all.py", env=ONE_THREAD)


@nox.session
def mutants(session: nox.Session) -> None:
    """Plant faults in a copy of the source, one by one: the tests must catch every one."""
    install(session, "test", "strict", extras=FILES)
    session.run("python", "tests/mutants.py", *session.posargs, env=ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """Check format, style, types and the arrows between modules; `-- --fix` repairs what it can."""
    install(session, "lint", editable=True)
    if "--fix" in session.posargs:
        session.run("ruff", "format")
        session.run("ruff", "check", "--fix")
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")
    session.run("mypy")
    session.run("lint-imports", "--no-cache")


@nox.session
def bench(session: nox.Session) -> None:
    """Time the library against its peers, on one thread, and write the pages about it."""
    install(session, "bench", extras="all-cpu")
    peers: list[tuple[str, ...]] = [
        (peer,) for peer in nox.project.dependency_groups(PROJECT, "timed-peers")
    ]
    # of what shepherd-score asks for, point clouds of surfaces alone need open3d, which is large
    peers.append(("--no-deps", "shepherd-score>=1.4", "pandas>=2"))
    for peer in peers:  # one that does not install is said to be missing, by the benchmark, too
        try:
            session.install("-c", "constraints.txt", *peer)
        except nox.command.CommandFailed:
            session.warn(f"{' '.join(peer)} does not install: it is not compared.")
    session.run("python", "-m", "bench", *session.posargs, env=ONE_THREAD)


@nox.session
def docs(session: nox.Session) -> None:
    """Run the pages of docs/ and build them into site/; a warning is an error."""
    install(session, "docs", "strict", extras="all-cpu")
    session.run(
        "sphinx-build", "-W", "--keep-going", *session.posargs, "docs", "site", env=ONE_THREAD
    )
