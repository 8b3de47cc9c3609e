"""The small table that notebooks show of a plan."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import stowplan as sp


class Cells(HTMLParser):
    """Texts of cells, and whether elements close in turn."""

    def __init__(self):
        super().__init__()
        self.open, self.texts = [], []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag in ("td", "th"):
            self.texts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.texts[-1] += data


def cells(text):
    parser = Cells()
    parser.feed(text)
    assert not parser.open
    return parser.texts


def test_each_slot_has_a_row_with_its_occupancy():
    plan = sp.assign_slots({"atoms": [1, 3, 9]}, [{"atoms": 4}, {"atoms": 9}, {"atoms": 20}])
    found = cells(plan._repr_html_())
    assert found == [
        "slot", "atoms", "rows", "batches", "items", "occupancy",
        "0", "4", "2", "1", "2", "50.0 %", "1", "9", "1", "1", "1", "100.0 %",
        "2", "20", "0", "0", "0", "-",
    ]  # fmt: skip


def test_what_the_plan_takes_stands_below(finished):
    text = finished.plan._repr_html_()
    assert "720 MiB at its peak of 1 GiB" in text
    for share in (finished.plan.occupancy(), finished.plan.occupancy("24 * atoms + 12 * k")):
        assert f"{100 * share:.1f} % of" in text


def test_many_slots_are_cut_and_warnings_are_text():
    plan = sp.assign_slots({"n": range(1, 41)}, [{"n": n} for n in range(1, 41)])
    plan = replace(plan, warnings=("a < b",))
    text = plan._repr_html_()
    assert "24 more slots" in text
    assert "a &lt; b" in text
    assert len(text) < 10_000


def test_it_is_shown_at_once_where_no_other_plan_is_tried(monkeypatch):
    from stowplan.planners import alternatives

    monkeypatch.setattr(alternatives, "predict_alternatives", None)
    assert "1 items" in sp.assign_slots({"n": [3]}, [{"n": 4}])._repr_html_()
