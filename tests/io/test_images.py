"""Images on disk: what each kind of file holds, what is refused, and nothing half written."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from stowplan.errors import DataError, MissingDependencyError
from stowplan.io.images import check_suffix, greyscale, write

IMAGE = np.array([[0.0, 0.4, 2.6], [1e-3, 7.5, 250.2]])
KINDS = {".npy": None, ".tif": "tifffile", ".tiff": "tifffile", ".cbf": "fabio", ".png": "PIL"}


def need(suffix):
    if KINDS[suffix] is not None:
        pytest.importorskip(KINDS[suffix])


def read(path):
    """The file, by the reader of its kind."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix in (".tif", ".tiff"):
        import tifffile

        return tifffile.imread(path)
    if path.suffix == ".cbf":
        import fabio

        return fabio.open(path).data
    from PIL import Image

    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    ("suffix", "held"),
    [
        (".npy", IMAGE),
        (".tif", IMAGE.astype(np.float32)),
        (".tiff", IMAGE.astype(np.float32)),
        (".cbf", np.array([[0, 0, 3], [0, 8, 250]], np.int32)),
    ],
)
def test_a_file_holds_the_image_of_any_framework(xp, suffix, held, tmp_path):
    need(suffix)
    path = tmp_path / f"image{suffix}"
    write(path, xp.asarray(IMAGE))
    found = read(path)
    assert found.dtype == held.dtype
    np.testing.assert_array_equal(found, held)
    assert list(tmp_path.iterdir()) == [path]


def test_a_suffix_may_be_in_capitals(tmp_path):
    write(tmp_path / "IMAGE.NPY", IMAGE)
    np.testing.assert_array_equal(np.load(tmp_path / "IMAGE.NPY"), IMAGE)


def test_a_picture_has_the_first_row_on_top_and_the_most_photons_black(tmp_path):
    need(".png")
    path = tmp_path / "image.png"
    write(path, IMAGE)
    found = read(path)
    assert found.shape == IMAGE.shape
    assert found.dtype == np.uint8
    assert (found[1, 2], found[0, 0]) == (0, 255)


def test_darkness_grows_with_the_photons_and_spans_the_scale():
    picture = greyscale(np.geomspace(1e-8, 1e6, 400).reshape(20, 20)).reshape(-1).astype(int)
    assert (np.diff(picture) <= 0).all()
    assert (picture[0], picture[-1]) == (255, 0)
    assert len(np.unique(picture)) > 50


def test_a_decade_of_photons_is_a_fixed_step_of_grey():
    picture = greyscale(np.array([[0.0, 0.0, 0.0, 0.0, 10.0, 100.0, 1000.0]]))[0].astype(int)
    assert np.diff(picture)[-2:] == pytest.approx([-255 / 4, -255 / 4], abs=1.5)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_the_picture_does_not_depend_on_the_unit(scale):
    image = np.random.default_rng(0).lognormal(sigma=3.0, size=(9, 8))
    np.testing.assert_array_equal(greyscale(image * scale), greyscale(image))


def test_an_image_without_photons_is_white():
    assert (greyscale(np.zeros((3, 4))) == 255).all()
    assert (greyscale(-np.ones((3, 4))) == 255).all()


@pytest.mark.parametrize("suffix", KINDS)
def test_an_image_without_photons_is_written(suffix, tmp_path):
    need(suffix)
    path = tmp_path / f"image{suffix}"
    write(path, np.zeros((3, 4)))
    found = read(path)
    assert found.shape == (3, 4)
    assert (found == (255 if suffix == ".png" else 0)).all()


@pytest.mark.parametrize("name", ["image", "image.jpg", "image.npy.gz", ".png"])
def test_an_unknown_suffix_is_told_those_that_are_known(name, tmp_path):
    with pytest.raises(DataError, match=r"\.npy, \.tif, \.tiff, \.cbf, \.png"):
        write(tmp_path / name, IMAGE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "image", [np.zeros(4), np.zeros((2, 3, 4)), np.zeros((0, 3)), np.zeros((2, 2), complex)]
)
def test_what_is_no_image_is_named_by_shape_and_dtype(image, tmp_path):
    with pytest.raises(DataError, match=rf"shape \({image.shape[0]},.*dtype {image.dtype}"):
        write(tmp_path / "image.npy", image)


@pytest.mark.parametrize("suffix", [".cbf", ".png"])
def test_pixels_that_are_not_finite_are_counted_and_the_first_is_named(suffix, tmp_path):
    need(suffix)
    image = IMAGE.copy()
    image[1, 1:] = np.nan, np.inf
    with pytest.raises(DataError, match=r"2 of 6 pixels are not finite, first \(1, 1\).*nan_to_nu"):
        write(tmp_path / f"image{suffix}", image)
    assert list(tmp_path.iterdir()) == []


def test_counts_beyond_32_bits_are_refused(tmp_path):
    need(".cbf")
    with pytest.raises(DataError, match=r"3e\+09.*2147483647"):
        write(tmp_path / "image.cbf", IMAGE * 0 + 3e9)


@pytest.mark.parametrize("suffix", [".tif", ".cbf", ".png"])
def test_a_missing_package_is_told_the_extra(suffix, tmp_path, monkeypatch):
    for name in ("tifffile", "fabio", "fabio.cbfimage", "PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda path: write(path, IMAGE), check_suffix):
        with pytest.raises(MissingDependencyError, match=r"pip install 'stowplan\[images\]'"):
            call(tmp_path / f"image{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "image.npy"
    write(path, IMAGE)

    def fail(file, image):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("stowplan.io.images.np.save", fail)
    with pytest.raises(OSError, match="disk full"):
        write(path, 2 * IMAGE)
    monkeypatch.undo()
    np.testing.assert_array_equal(np.load(path), IMAGE)
    assert list(tmp_path.iterdir()) == [path]
