"""Pages about benchmarks are what their results give, and say what was missed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import bench.pages.__main__ as pages

    yield pages
    for name in [name for name in sys.modules if name.partition(".")[0] == "bench"]:
        del sys.modules[name]


def test_every_result_has_its_page_and_every_page_its_result(pages):
    results = {path.stem for path in RESULTS.glob("*.json")}
    written = {path.stem for path in (ROOT / "docs" / "benchmarks").glob("*.md")}
    assert results == written
    assert results <= set(pages.PAGES)


def test_pages_are_up_to_date(pages, tmp_path):
    for page in pages.write_pages(tmp_path / "pages"):
        committed = ROOT / "docs" / "benchmarks" / page.name
        assert page.read_text("utf-8") == committed.read_text("utf-8"), f"run bench.pages: {page}"


def test_a_missed_target_and_a_missing_peer_are_shown(pages):
    from bench.pages.page import Page, markdown

    report = json.loads((RESULTS / "ewald.json").read_text("utf-8"))
    report["targets"] = [{"target": "as fast as light >= 1", "value": 0.25, "met": False}]
    report["not_run"] = {"jax-pme": "jax-pme: ModuleNotFoundError"}
    text = markdown("ewald", Page("Title", "Text."), report)
    assert "0 of 1 were met" in text
    assert "| as fast as light >= 1 | 0.25 | **no** |" in text
    assert "Not run: jax-pme: ModuleNotFoundError." in text


def test_pictures_are_the_same_for_the_same_results(pages, tmp_path):
    first, second = (tmp_path / name for name in ("first", "second"))
    pages.write_pages(first)
    pages.write_pages(second)
    for picture in first.glob("*.svg"):
        assert picture.read_bytes() == (second / picture.name).read_bytes()
