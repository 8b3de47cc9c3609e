"""The pages keep their word: every block of code in them runs, or says why it does not."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import stowplan

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WRITTEN = [
    page for page in sorted(DOCS.glob("**/*.md")) if not {"executed", "generated"} & {*page.parts}
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *WRITTEN]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
NEEDED = re.compile(
    r"^\s*(?:import|from) (torch|jax|cupy|ase|rdkit|distributed|matplotlib|zarr)\b", re.MULTILINE
)
NAMED = re.compile(r'on="(torch|jax|cupy)"')
READERS = {"stowplan.io.molecules": "rdkit", "stowplan.recipes import ewald": "ase"}
LANGUAGES = {"python", "sh", "py", "bash", "text"}


def _loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


executed = _loaded("executed")


def needed(code: str) -> set[str]:
    """Packages that the blocks of a page need beside stowplan."""
    found = {*NEEDED.findall(code), *NAMED.findall(code)}
    return found | {package for words, package in READERS.items() if words in code}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_of_a_page_runs_and_draws_its_pictures(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if not executed.blocks(text):
        pytest.skip(f"{page.name} has no block that runs")
    for name in needed(executed.program(text)):
        pytest.importorskip(name, reason=f"{name} is not installed")
    ran = executed.execute(text, tmp_path)
    assert len(ran.outputs) == len(executed.blocks(text))
    assert executed.missing_pictures(text, tmp_path) == []


@pytest.mark.parametrize("page", WRITTEN, ids=NAMES[2:])
def test_a_block_that_does_not_run_says_why(page: Path) -> None:
    assert executed.unexplained(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", WRITTEN, ids=NAMES[2:])
def test_every_block_is_of_a_language_that_is_run_or_explained(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    openings = {match[0].splitlines()[0].strip("`") for match in executed.FENCE.finditer(text)}
    assert {word for word in openings if not word.startswith("{")} <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_into_the_repository_leads_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {DOCS / "index.md"}
    for page in WRITTEN:
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / name).with_suffix(".md") for name in names}
    assert listed == set(WRITTEN)


def test_results_of_a_page_stand_below_their_blocks(tmp_path: Path) -> None:
    text = "```python\nprint(6 * 7)\n```\n\n```py\nx\n```\n\n```sh\necho from a shell\n```\n"
    found = executed.with_results(text, executed.execute(text, tmp_path), "/executed/page")
    assert re.findall(r":class: output\n\n(.*)\n", found) == ["42", "from a shell"]
    assert found.index("6 * 7") < found.index("42") < found.index("```py\n")


def test_a_block_that_fails_is_an_error_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(executed.PageError, match="ZeroDivisionError"):
        executed.execute("```python\n1 / 0\n```\n", tmp_path)


def test_a_block_without_a_reason_is_found() -> None:
    reason = "<!-- not run: the code of another library -->\n"
    assert executed.unexplained(f"{reason}```py\nx = 1\n```\n") == []
    assert executed.unexplained("```py\nx = 1\n```\n") == ["x = 1"]


def test_the_api_lists_every_public_name() -> None:
    listed = re.findall(r"^   (\w[\w.]*)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {name for name in listed if "." not in name} - _kernel_modules() == set(stowplan.__all__)
    for name in ("ewald", "bragg", "transport", "overlay", "fields"):
        recipe = importlib.import_module(f"stowplan.recipes.{name}")
        documented = {n.partition(".")[2] for n in listed if n.startswith(f"{name}.")}
        assert documented == set(recipe.__all__)


def _kernel_modules() -> set[str]:
    return {"ewald", "bragg", "transport", "transport_sums", "overlay", "fields"}


def test_the_readme_is_short_and_shows_code_early() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 80
    assert any(line.startswith("```python") for line in lines[:45])


def test_the_readme_names_both_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for session in ("demo", "tests"):
        assert f"python -m pip install nox && python -m nox -s {session}" in readme
