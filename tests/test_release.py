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
DIRECTIVE = re.compile(r"\.\. (\w+)::\s*([\w.]*)$")
PIN = re.compile(r"^([\w.-]+)==([\d.]+)$", re.MULTILINE)


def documented(text: str) -> list[str]:
    """The names of `stowplan` that a page describes, one by one or in summaries."""
    found, module, in_summary = [], "stowplan", False
    for line in text.splitlines():
        if match := DIRECTIVE.fullmatch(line):
            directive, argument = match.groups()
            in_summary = directive == "autosummary"
            if directive == "currentmodule":
                module = argument
            elif directive.startswith("auto") and not in_summary:
                found.append(argument if "." in argument else f"{module}.{argument}")
        elif in_summary and line.strip() and not line.strip().startswith(":"):
            in_summary = line.startswith(" ")
            if in_summary:
                found.append(f"{module}.{line.strip().removeprefix('~')}")
    return [name.removeprefix("stowplan.") for name in found if name.count(".") == 1]


def test_the_names_of_a_page_are_read_from_directives_and_summaries():
    page = (
        "```{eval-rst}\n.. currentmodule:: stowplan\n\n.. autofunction:: stowplan.run\n"
        "   :noindex:\n\n.. autosummary::\n   :toctree: made\n\n   plan\n   ~Plan\n"
        "   recipes.ewald.compute\n\nprose\n\n.. autoclass:: Kernel\n"
        ".. currentmodule:: stowplan.io\n\n.. autosummary::\n\n   masks\n```\n"
    )
    assert documented(page) == ["run", "plan", "Plan", "Kernel"]


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
