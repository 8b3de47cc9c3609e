"""What a release promises: one version, documented names, bounds and sessions that are tested."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import stowplan

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = sorted((ROOT / "docs").glob("**/api*.md"))
# .. autofunction:: stowplan.run and the like, and the lines of an autosummary
DIRECTIVE = re.compile(r"auto(?:function|class|exception|data)\}?(?:::)? +(?:stowplan\.)?(\w+)\s*$")
SUMMARY = re.compile(r"autosummary\}?.*\n((?:[ \t]*:.*\n|[ \t]*\n|[ \t]*~?[\w.]+[ \t]*\n)+)")
PIN = re.compile(r"^([\w.-]+)==([\d.]+)$", re.MULTILINE)


def documented(text: str) -> list[str]:
    """The names of `stowplan` that a page of the API describes."""
    found = [match[1] for line in text.splitlines() if (match := DIRECTIVE.search(line))]
    for block in SUMMARY.findall(text + "\n"):
        lines = (line.strip().removeprefix("~") for line in block.splitlines())
        names = [line.removeprefix("stowplan.") for line in lines if line and line[0] != ":"]
        found += [name for name in names if "." not in name]
    return found


def test_the_names_of_a_page_are_read_from_directives_and_summaries():
    page = (
        "```{eval-rst}\n.. currentmodule:: stowplan\n\n.. autofunction:: stowplan.run\n"
        "   :noindex:\n\n.. autosummary::\n   :toctree: made\n\n   plan\n   ~stowplan.Plan\n"
        "   stowplan.recipes.ewald.compute\n\nprose\n```\n```{autoclass} Kernel\n```\n"
    )
    assert documented(page) == ["run", "Kernel", "plan", "Plan"]


@pytest.mark.skipif(not PAGES, reason="there is no page of the API")
def test_every_public_name_is_documented_once_and_no_other():
    found = [name for page in PAGES for name in documented(page.read_text(encoding="utf-8"))]
    assert sorted(found) == sorted(stowplan.__all__)


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == stowplan.__version__
    assert re.search(r"^cff-version: 1\.2\.0$", citation, re.MULTILINE)
    (author,) = PROJECT["project"]["authors"]
    assert f"  - name: {author['name']}\n" in citation


def test_the_changelog_has_an_unreleased_section_or_one_of_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    assert re.fullmatch(r"Unreleased|\[?(\d+\.){2}\d+\]? - \d{4}-\d{2}-\d{2}", titles[0])
    kinds = set(re.findall(r"^### (.*)$", changelog, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds():
    oldest = dict(PIN.findall((ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")))
    project = PROJECT["project"]
    groups = PROJECT["dependency-groups"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["jax"]]
    wanted += groups["strict"]
    for name, least in (line.split(">=") for line in wanted):
        assert oldest[name] == least or oldest[name].removesuffix(".0") == least


def test_the_workflow_calls_sessions_that_there_are():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    called = {
        name.strip()
        for names in re.findall(r"session: \[(.*)\]", workflow)
        for name in names.split(",")
    } | set(re.findall(r"session: ([\w-]+)", workflow))
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    there = {
        node.name.replace("_", "-")
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("nox.session" in ast.unparse(mark) for mark in node.decorator_list)
    }
    backends = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "BACKENDS"
    )
    there |= {f"tests-{key.value}" for key in backends.keys}
    assert {"lint", "docs", "wheel", "tests-oldest", "tests-numpy", "tests-jax"} <= called
    assert called <= there


def test_the_workflow_tests_every_python_that_the_package_allows():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    tested = re.search(r'python: \["3.11", "3.12", "3.13"\]', workflow)
    assert tested
    assert PROJECT["project"]["requires-python"] == ">=3.11"
