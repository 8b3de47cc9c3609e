"""The page: complete, self-contained, and what it refuses."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

import stowplan as sp
from stowplan.errors import DataError, PlanError

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("jinja2", reason="Jinja2 is not installed")

EMPTY = {"meta", "link", "input", "br"}  # elements without an end


class Outline(HTMLParser):
    """Elements that are opened and closed in turn, ids, and the text of cells."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.cells, self.tags = [], Counter(), [], Counter()

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        if tag not in EMPTY:
            self.open.append(tag)
        self.ids.update(value for name, value in attributes if name == "id")
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag, attributes):
        self.ids.update(value for name, value in attributes if name == "id")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    names = [f"structure-{item:04d}" for item in range(3200)]
    assert sp.report(finished, path, names=names) == path
    return path.read_text(encoding="utf-8")


def test_every_element_is_closed_and_every_id_is_given_once(page):
    outline = Outline()
    outline.feed(page)
    assert not outline.open
    assert set(outline.ids.values()) == {1}
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert used <= set(outline.ids)


def test_nothing_is_loaded_from_elsewhere(page):
    addresses = set(re.findall(r"https?://[^\"'\s<)]+", page))
    assert all(address.startswith("http://www.w3.org/") for address in addresses)  # names of SVG
    assert not re.search(r"<(script|img|link|iframe)[^>]*(src|href)=\"(?!data:,)", page)
    assert "@import" not in page
    assert len(page.encode()) < 2e6


def test_all_figures_are_drawn_in_the_colours_of_the_page(page):
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(figures) == 10
    for figure in figures:
        ElementTree.fromstring(figure)
        colours = set(re.findall(r"#[0-9a-fA-F]{6}", figure))
        assert colours <= {"#000000", "#ffffff"}
        assert "var(--ink)" in figure
    for name in set(re.findall(r"var\(--(\w+)\)", page)):
        assert len(re.findall(rf"--{name}:", page)) == 2, name  # light and dark


def test_what_was_measured_stands_beside_what_was_predicted(page):
    for text in ("14.3 s", "650 MiB", "720 MiB", "Predicted and measured", "structure-0971"):
        assert text in page


def test_the_report_of_the_slot_example_has_the_published_numbers(sizes, tmp_path):
    slots = [{"atoms": 64, "k": 4096}, {"atoms": 192, "k": 32768}]
    plans = {"one": sp.assign_slots(sizes, slots[1:]), "two": sp.assign_slots(sizes, slots)}
    text = sp.report(plans, tmp_path / "r.html").read_text(encoding="utf-8").replace("\xa0", " ")
    assert "<li>3.9 % of the work of 3 200 items in 1 slot and 1 batch is useful.</li>" in text
    assert "<li>55.3 % of the work of 3 200 items in 2 slots and 2 batches is useful.</li>" in text
    outline = Outline()
    outline.feed(text)
    assert outline.cells[:5] == ["one", "3200", "1", "1", "3.9 %"]
    useful = (sizes["atoms"] * sizes["k"])[sizes["k"] <= 4096].sum() / (3104 * 64 * 4096)
    assert f"{100 * useful:.1f} %" in outline.cells


@pytest.mark.timed
def test_the_report_of_the_slot_example_takes_less_than_5_s(sizes, tmp_path):
    plan = sp.assign_slots(sizes, [{"atoms": 64, "k": 4096}, {"atoms": 192, "k": 32768}])
    start = time.process_time()  # other programs do not count
    sp.report(plan, tmp_path / "r.html")
    assert time.process_time() - start < 5


def test_a_million_items_are_counted_in_bins(tmp_path):
    random = np.random.default_rng(0)
    atoms = np.clip(random.lognormal(3.5, 0.7, 10**6).astype(int), 1, 400)
    k = np.clip((atoms**1.4 * random.lognormal(1, 0.4, 10**6)).astype(int), 1, None)
    slots = [{"atoms": n, "k": 80 * n} for n in (50, 100, 400)]
    plan = sp.assign_slots({"atoms": atoms, "k": k}, slots, overflow="extend")
    plan = sp.split_chunks(plan, max_rows=1000)
    start = time.process_time()
    path = sp.report(plan, tmp_path / "million.html")
    assert time.process_time() - start < 30
    assert path.stat().st_size < 2e6


def test_names_are_text_and_never_a_script(tmp_path):
    plan = sp.assign_slots({"n": [1, 2]}, [{"n": 3}])
    bad = '<script>alert("x")</script>'
    path = sp.report({bad: plan, "b": plan}, tmp_path / "r.html", names=[bad, "&"], title=bad)
    text = path.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;") >= 4


@pytest.mark.parametrize(
    "plan",
    [
        sp.assign_slots({"n": []}, [{"n": 3}]),
        sp.assign_slots({}, [{}], items=7),
        sp.assign_slots({"n": [0]}, [{"n": 1}]),
        sp.assign_slots({"n": [5, 5, 5]}, [{"n": 5}]),
        sp.assign_slots({"n": [1, 10**12]}, [{"n": 10}, {"n": 10**12}]),
        sp.assign_slots({"n": range(1, 250)}, [{"n": n} for n in range(1, 250)]),
        sp.assign_slots(
            {"n1": [2, 3], "n2": [2, 3], "n3": [3, 3]}, [{}], exact=["n1", "n3"],
            derived={"k": "n1 * n2 * n3"}, work="k + 1",
        ),
        sp.assign_slots({"n": [3, 4]}, [{"n": 9}, {"n": 4}]),
        sp.assign_slots({"n": [3, 4]}, [{"n": 4}], work="0 * n"),
        sp.share_devices(sp.assign_slots({"n": [3, 4]}, [{"n": 4}]), 40, "rows"),
    ],
    ids=[
        "no items", "no dims", "size 0", "equal", "far apart", "many slots", "exact", "starved",
        "no work", "40 devices",
    ],
)  # fmt: skip
def test_any_plan_has_a_report(plan, tmp_path):
    text = sp.report(plan, tmp_path / "r.html").read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(text)
    assert not outline.open
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+", "", text.lower())
    assert len(text) < 2e6


def test_four_plans_of_many_dims_slots_and_batches_stay_below_2_mb(tmp_path):
    random = np.random.default_rng(1)
    sizes = {dim: random.integers(1, 1001, 5000) for dim in "abcdef"}
    plan = sp.assign_slots(sizes, [dict.fromkeys(sizes, 25 * n) for n in range(1, 41)])
    plan = sp.split_chunks(replace(plan, item_bytes="8 * a"), rows=5)
    names = [f"item with a name of some length {item}" for item in range(5000)]
    path = sp.report(sp.share_devices(plan, 8), tmp_path / "r.html", names=names, max_slots=2)
    assert 4 * path.stat().st_size < 2e6


def test_a_page_is_written_whole_and_in_no_missing_folder(tmp_path):
    plan = sp.assign_slots({"n": [1]}, [{"n": 1}])
    with pytest.raises(DataError, match=r"no folder '.*nowhere'.*mkdir -p"):
        sp.report(plan, tmp_path / "nowhere" / "r.html")
    with pytest.raises(DataError, match="is a folder; give a file in it"):
        sp.report(plan, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_no_plan_is_refused(tmp_path):
    plan = sp.assign_slots({"n": [1, 2]}, [{"n": 2}])
    with pytest.raises(PlanError, match=r"report: plan 2 is a str; give what sp\.plan"):
        sp.report([plan, "plan.json"], tmp_path / "r.html")
    with pytest.raises(PlanError, match="report: plan is a int"):
        sp.report(3, tmp_path / "r.html")
    with pytest.raises(PlanError, match="5 plans; a page holds 1 to 4"):
        sp.report([plan] * 5, tmp_path / "r.html")
    with pytest.raises(PlanError, match="0 plans"):
        sp.report([], tmp_path / "r.html")


def test_names_have_to_be_one_for_each_item(tmp_path):
    plan = sp.assign_slots({"n": [1, 2]}, [{"n": 2}])
    with pytest.raises(DataError, match=r"3 names for the 2 items of plan.*one for each item"):
        sp.report(plan, tmp_path / "r.html", names=["a", "b", "c"])
    other = sp.assign_slots({"n": [1]}, [{"n": 2}])
    with pytest.raises(DataError, match=r"2 names for the 1 items of b.*names=\{'b': \[\.\.\.\]\}"):
        sp.report({"a": plan, "b": other}, tmp_path / "r.html", names=["x", "y"])
    names = {"a": ["x", "y"], "b": ["only"]}
    text = sp.report({"a": plan, "b": other}, tmp_path / "r.html", names=names).read_text()
    assert ">only<" in text


def test_figures_are_written_as_pictures_one_by_one(finished, tmp_path):
    from stowplan.reports.figures import draw_figures

    pictures = draw_figures(finished)
    assert list(pictures) == [
        "sizes: atoms", "sizes: k", "scatter: atoms, k", "occupancy", "measures", "curve",
        "seconds", "memory", "timeline", "run",
    ]  # fmt: skip
    pictures["curve"].figure.savefig(tmp_path / "curve.png")
    pictures["curve"].figure.savefig(tmp_path / "curve.svg")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_plans_of_a_real_run_are_set_against_what_it_took(tmp_path):
    @sp.kernel("(points)->()", ragged="points", fill={"x": 0.0})
    def total(x):
        return x.sum(axis=-1)

    data = {"x": [np.ones(length) for length in range(1, 40)]}
    plan = sp.plan(total, data, budget="10 MB", slots=3)
    with sp.record(plan) as run:
        run.wait(sp.run(total, data, plan))
    text = sp.report(run, tmp_path / "r.html").read_text(encoding="utf-8").replace("\xa0", " ")
    for title in ("Predicted and measured", "Memory of each batch", "Bytes used"):
        assert title in text
    assert f"{100 * plan.occupancy():.1f} %" in text
    assert "of its budget of 9.537 MiB" in text


def test_the_same_plan_gives_the_same_page(tmp_path):
    finished = sp.assign_slots({"n": [1, 2, 3]}, [{"n": 2}, {"n": 3}])
    one, two = (sp.report(finished, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert one == two


@pytest.mark.parametrize("package", ["jinja2", "matplotlib.figure"])
def test_what_is_not_installed_is_named_with_its_extra(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    plan = sp.assign_slots({"n": [1, 2]}, [{"n": 2}])
    with pytest.raises(sp.MissingDependencyError, match=r"pip install 'stowplan\[report\]'"):
        sp.report(plan, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())
