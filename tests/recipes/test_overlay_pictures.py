"""Pictures of screens: every score in a bin, hits in their colour, names that fit."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan.errors import DataError, MissingDependencyError
from stowplan.io.molecules import read_molecules
from stowplan.recipes.overlay import screen
from stowplan.recipes.overlay_pictures import HIT, REST, _shortened, bin_edges, draw

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
RDConfig = pytest.importorskip("rdkit.RDConfig", reason="rdkit is not installed")
CMET = Path(RDConfig.RDContribDir, "FreeWilson/data/cmet_ligands.sdf")


@pytest.fixture(scope="module")
def found():
    """Results, hits and query."""
    molecules = read_molecules(CMET, keep_mols=True)
    results = screen(molecules.points[0], molecules.points, top=5, starts=1, steps=20)
    return results, molecules[results.index], molecules[[0]]


@pytest.fixture
def calls(monkeypatch):
    """Bars and texts of the picture."""
    axes = pytest.importorskip("matplotlib.axes").Axes
    figures = pytest.importorskip("matplotlib.figure").Figure
    seen = {"bar": [], "text": [], "imshow": []}
    for holder, name in ((axes, "bar"), (figures, "text"), (axes, "imshow")):
        whole = getattr(holder, name)

        def spy(self, *arguments, _name=name, _whole=whole, **options):
            seen[_name].append((arguments, options))
            return _whole(self, *arguments, **options)

        monkeypatch.setattr(holder, name, spy)
    return seen


def heights_of(calls):
    """Upright bars by colour; those that lie come without places in order."""
    return {options["color"]: arguments[1] for arguments, options in calls["bar"] if arguments}


def test_bars_count_all_molecules_and_among_them_the_hits(found, tmp_path, calls):
    results, hits, query = found
    draw(results, tmp_path / "a.png", hits=hits, query=query)
    heights = heights_of(calls)
    assert heights[REST].sum() == 24
    assert heights[HIT].sum() == 5
    assert (heights[HIT] <= heights[REST]).all()
    assert len(calls["imshow"]) == 5  # the query and four hits
    texts = [arguments[2] for arguments, _ in calls["text"]]
    assert "24 molecules, 5 hits" in texts
    assert [text for text in texts if text in {"1", "2", "3", "4", "5", "6"}] == list("12345")


def test_pictures_have_the_size_that_is_said(found, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    results, hits, query = found
    draw(results, tmp_path / "a.png", hits=hits, query=query)
    draw(results, tmp_path / "b.png", hits=replace(hits, mols=None), query=query)
    whole, bare = (image.open(tmp_path / name) for name in ("a.png", "b.png"))
    assert whole.width == bare.width == 1200
    assert bare.height < whole.height  # no structures below
    draw(results, tmp_path / "c.svg", hits=hits, query=query)
    assert "<svg" in (tmp_path / "c.svg").read_text()
    assert not list(tmp_path.glob("*.part"))


def test_a_score_that_is_not_finite_is_in_no_bar(found, tmp_path, calls):
    results, hits, query = found
    scores = results.scores.copy()
    scores[-1] = np.nan
    draw(replace(results, scores=scores), tmp_path / "a.png", hits=hits, query=query)
    heights = heights_of(calls)
    assert heights[REST].sum() == 23


def test_hits_of_another_screen_are_refused(found, tmp_path):
    results, hits, query = found
    with pytest.raises(DataError, match="4 hits and 1 queries for a screen with 5 hits"):
        draw(results, tmp_path / "a.png", hits=hits[:4], query=query)
    with pytest.raises(DataError, match="5 hits and 5 queries"):
        draw(results, tmp_path / "a.png", hits=hits, query=hits)
    with pytest.raises(DataError, match=r"ends in '.doc'; a picture is one of"):
        draw(results, tmp_path / "a.doc", hits=hits, query=query)


def test_a_screen_without_scores_is_refused(found, tmp_path):
    results, hits, query = found
    none = replace(results, scores=np.full(24, np.nan), score=np.full(5, np.nan))
    with pytest.raises(DataError, match="none of 24 molecules has a score"):
        draw(none, tmp_path / "a.png", hits=hits, query=query)


def test_without_matplotlib_the_extra_is_named(found, tmp_path, monkeypatch):
    results, hits, query = found
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stowplan\[pictures\]'"):
        draw(results, tmp_path / "a.png", hits=hits, query=query)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=300))
def test_every_score_is_in_a_bin_and_bins_are_few_and_even(scores):
    scores = np.array(scores)
    edges = bin_edges(scores)
    assert np.histogram(scores, edges)[0].sum() == len(scores)
    assert 2 <= len(edges) <= 43
    np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0])


def test_names_are_cut_in_the_middle_until_they_fit():
    assert _shortened("aspirin", 1.3, 9) == "aspirin"
    cut = _shortened("CHEMBL3402753_200 redocked twice", 1.3, 9)
    front, back = cut.split("…")
    assert cut != "CHEMBL3402753_200 redocked twice"
    assert "CHEMBL3402753_200 redocked twice".startswith(front)
    assert "CHEMBL3402753_200 redocked twice".endswith(back)
    assert abs(len(front) - len(back)) <= 1
