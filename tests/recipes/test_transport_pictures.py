"""Pictures of transport: arrows to scale, colours where mass is lost and made, nothing global."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from stowplan.errors import DataError, MissingDependencyError
from stowplan.recipes.transport import solve
from stowplan.recipes.transport_pictures import draw

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

BEFORE, AFTER = np.zeros((2, 60, 90), bool)
BEFORE[20:40, 10:30] = AFTER[24:44, 46:66] = True


@pytest.fixture(scope="module")
def moved():
    """All mass goes 4 pixels down and 36 to the right; a pixel is half a unit."""
    return solve([BEFORE], [AFTER], tau=1, pool=2, pixel_size=0.5)


@pytest.fixture(scope="module")
def remade():
    """Mass is destroyed and created, since moving it costs more."""
    return solve([BEFORE], [AFTER], tau=0.2, pool=2)


@pytest.fixture
def calls(monkeypatch):
    """What the axes of the pictures are asked to draw."""
    axes = pytest.importorskip("matplotlib.axes").Axes
    seen = {}
    for name in ("quiver", "quiverkey", "imshow"):
        whole = getattr(axes, name)

        def spy(self, *arguments, _name=name, _whole=whole, **options):
            seen.setdefault(_name, []).append((self, arguments, options))
            return _whole(self, *arguments, **options)

        monkeypatch.setattr(axes, name, spy)
    return seen


def pixels_of(path):
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    return np.asarray(image.open(path).convert("RGB")).astype(int)


def test_arrows_go_from_the_source_to_where_its_mass_goes(moved, tmp_path, calls):
    draw(moved, 0, BEFORE, AFTER, tmp_path / "a.png")
    ((axes, (x, y, dx, dy), options),) = calls["quiver"]
    y0, _, x0, _ = moved.boxes[0].tolist()
    assert (y + y0 >= 20).all()
    assert (y + y0 < 40).all()
    assert (x + x0 >= 10).all()
    assert (x + x0 < 30).all()
    # Blur draws arrows together, about the mean step, which it leaves alone.
    assert np.mean(dx) == pytest.approx(36, abs=0.5)
    assert np.mean(dy) == pytest.approx(4, abs=0.5)
    assert np.abs(x + dx - 55.5 + x0).max() < 12
    inches = axes.get_window_extent().width / axes.figure.dpi / np.ptp(axes.get_xlim())
    assert options["scale"] == pytest.approx(1 / inches)


def test_the_key_of_the_arrows_has_the_unit_and_the_length_that_it_says(moved, tmp_path, calls):
    draw(moved, 0, BEFORE, AFTER, tmp_path / "a.png", unit="µm")
    ((_, (_, _, _, length, text), _),) = calls["quiverkey"]
    number, unit = text.split()
    assert unit == "µm"
    assert float(number) == length * 0.5


def test_short_arrows_are_drawn_longer_and_it_is_said(tmp_path, calls, monkeypatch):
    texts = []
    figure = pytest.importorskip("matplotlib.figure").Figure
    whole = figure.text
    monkeypatch.setattr(
        figure, "text", lambda self, *a, **o: texts.append(a[2]) or whole(self, *a, **o)
    )
    near = np.roll(BEFORE, 1, axis=1)
    found = solve([BEFORE], [near], tau=1, pool=2, epsilon=1e-4)
    draw(found, 0, BEFORE, near, tmp_path / "a.png")
    ((axes, (_, _, dx, dy), options),) = calls["quiver"]
    inches = axes.get_window_extent().width / axes.figure.dpi / np.ptp(axes.get_xlim())
    factor = 1 / inches / options["scale"]
    assert factor > 1
    assert f"Velocity (arrows drawn {factor:g} × as long)" in texts
    longest = factor * np.hypot(dx, dy).max()
    assert longest <= 0.05 * max(BEFORE.shape)


def test_destroyed_mass_is_vermilion_at_the_source_and_created_blue_at_the_target(
    remade, tmp_path, calls
):
    draw(remade, 0, BEFORE, AFTER, tmp_path / "a.png")
    picture = calls["imshow"][0][1][0]
    y0, y1, x0, x1 = remade.boxes[0].tolist()
    inside = [mask[y0:y1, x0:x1] for mask in (BEFORE, AFTER)]
    np.testing.assert_allclose(picture[~inside[0] & ~inside[1]], 1, atol=1e-12)
    maps = remade.maps(0)
    most = max(maps["destroyed"].max(), maps["created"].max())
    for mask, name, colour in (
        (inside[0], "destroyed", (213, 94, 0)), (inside[1], "created", (0, 114, 178))
    ):  # fmt: skip
        share = maps[name][mask][:, None] / most
        expected = 1 - share * (1 - np.array(colour) / 255)
        np.testing.assert_allclose(picture[mask], expected, atol=1e-9)


def test_where_as_much_is_destroyed_as_created_is_grey_and_a_small_share_is_pale(tmp_path, calls):
    found = solve([BEFORE], [BEFORE], pool=2)
    draw(found, 0, BEFORE, BEFORE, tmp_path / "a.png")
    picture = calls["imshow"][0][1][0]
    share = found.maps(0)["created"].max() * found.units[0, 1]
    assert 0.005 < share < 0.1
    y0, _, x0, _ = found.boxes[0].tolist()
    grey = (np.array([213, 94, 0]) + np.array([0, 114, 178])) / 2 / 255
    colours = picture[30 - y0, 20 - x0]
    lost = found.maps(0)["created"][30 - y0, 20 - x0] * found.units[0, 1]
    np.testing.assert_allclose(colours, 1 - lost / 0.1 * (1 - grey), atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (50, 50)])
def test_a_picture_of_any_crop_is_not_blank_and_1200_pixels_wide(shape, tmp_path):
    mask = np.ones(shape, bool)
    draw(solve([mask], [mask], pool=1), 0, mask, mask, tmp_path / "a.png")
    pixels = pixels_of(tmp_path / "a.png")
    assert pixels.shape[1] == 1200
    assert 150 < pixels.shape[0] < 1600
    assert (pixels.max(axis=-1) < 60).mean() > 0.002
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", ["svg", "PDF"])
def test_other_formats_follow_from_the_suffix(moved, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    draw(moved, -1, BEFORE, AFTER, path, title="$x_{a.png → 100 %")  # no formula
    assert path.read_bytes()[:5] in (b"<?xml", b"%PDF-")


def test_a_pair_that_failed_or_did_not_converge_says_so(moved, tmp_path, monkeypatch):
    texts = []
    figure = pytest.importorskip("matplotlib.figure").Figure
    whole = figure.text
    monkeypatch.setattr(
        figure, "text", lambda self, *a, **o: texts.append(a[2]) or whole(self, *a, **o)
    )
    none, all_of_it = np.array([False]), np.array([True])
    for flags in ({"converged": none}, {"converged": none, "failed": all_of_it}):
        draw(replace(moved, **flags), 0, BEFORE, AFTER, tmp_path / "a.png")
    assert any(text.startswith("not converged     100.0 % of the larger mass") for text in texts)
    assert "failed: there are no numbers" in texts


def test_masks_that_do_not_hold_the_crop_are_refused(moved, tmp_path):
    with pytest.raises(DataError, match=r"the target has shape \(50, 90\), but pair 0 was cropped"):
        draw(moved, 0, BEFORE, AFTER[:50], tmp_path / "a.png")


def test_a_format_that_is_no_picture_is_refused(moved, tmp_path):
    with pytest.raises(DataError, match=r"ends in '\.txt'; a picture is one of .*\.png"):
        draw(moved, 0, BEFORE, AFTER, tmp_path / "a.txt")


def test_without_matplotlib_the_extra_is_named(moved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"stowplan\[pictures\]"):
        draw(moved, 0, BEFORE, AFTER, tmp_path / "a.png")


def test_the_matplotlib_of_the_caller_stays_as_it_is(tmp_path):
    code = (
        "import sys, matplotlib, numpy as np; before = matplotlib.rcParams.copy()\n"
        "from stowplan.recipes.transport import solve\n"
        "from stowplan.recipes.transport_pictures import draw\n"
        "m = np.ones((8, 8), bool); draw(solve([m], [m]), 0, m, m, sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert dict.__eq__(matplotlib.rcParams, before)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, check=False
    )
    assert told.returncode == 0, told.stderr.decode()
