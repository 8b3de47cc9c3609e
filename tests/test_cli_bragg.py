"""`stowplan bragg`: flags and files give the image of the recipe, and what is told otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from stowplan.cli import main
from stowplan.recipes.bragg import (
    Beam,
    Crystal,
    Detector,
    Sources,
    StructureFactors,
    image,
    mosaic_rotations,
)

CUBIC = ["--cell", "100", "100", "100", "90", "90", "90", "--wavelength", "6.2"]
SMALL = ["bragg", *CUBIC, "--pixels", "12", "9"]
FILE = """\
[crystal]
cell = [70, 80, 90, 75, 85, 95]
cells = [3, 2, 4]
misset = [15, 20.5, 30.25]
table = "F.hkl"
table_default = 7.5
default_factor = 50.0
mosaic_spread = 0.5
mosaic_domains = 3
seed = 4
phi = 2
oscillation = 3.0
phi_steps = 2
interpolation = "nearest"
shape = "round"
fudge = 1.5
convention = "exact"

[detector]
pixels = [8, 7]
pixel_size = 2.0
distance = 80
rotation = [1, 2, 3]
two_theta = 4.0
beam_center = [7, 8]
oversample = 2
point_pixel = true

[beam]
wavelength = 2.2
polarization = 0.5
fluence = 1e29
dispersion = 1.0
dispersion_steps = 2
"""
TABLE = np.arange(27.0).reshape(3, 3, 3)


@pytest.fixture
def experiment(tmp_path):
    """A file of every name, with a table beside it that lacks the last reflection but one."""
    path = tmp_path / "experiment.toml"
    path.write_text(FILE)
    lines = [
        f"{h - 1} {k - 1} {l - 1} {TABLE[h, k, l]}\n"
        for h, k, l in np.ndindex(3, 3, 3)  # noqa: E741 - as crystallographers say
        if (h, k, l) != (2, 2, 1)
    ]
    (tmp_path / "F.hkl").write_text("".join(lines))
    return path


def expected():
    """The image of FILE, by the recipe."""
    table = TABLE.copy()
    table[2, 2, 1] = 7.5
    crystal = Crystal(
        (70, 80, 90, 75, 85, 95), cells=(3, 2, 4), misset=(15, 20.5, 30.25),
        table=StructureFactors(table, (-1, -1, -1)), default_factor=50.0,
        mosaic=mosaic_rotations(0.5, 3, seed=4), phi=2.0, oscillation=3.0, phi_steps=2,
        interpolation="nearest", shape="round", fudge=1.5, convention="exact",
    )  # fmt: skip
    detector = Detector(
        (8, 7), pixel_size=2.0, distance=80.0, rotation=(1, 2, 3), two_theta=4.0,
        beam_center=(7, 8), oversample=2, point_pixel=True,
    )  # fmt: skip
    beam = Beam(2.2, polarization=0.5, fluence=1e29, dispersion=1.0, dispersion_steps=2)
    return crystal, detector, beam


def error_of(capsys, arguments, status):
    """The message of a call that fails with nothing on standard output and no traceback."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_flags_give_the_image_of_the_recipe(tmp_path, capsys):
    out = tmp_path / "image.npy"
    assert main([*SMALL, "--out", str(out)]) == 0
    cubic = Crystal((100, 100, 100, 90, 90, 90))
    np.testing.assert_array_equal(np.load(out), image(cubic, Detector((12, 9)), Beam(6.2)))
    stdout, err = capsys.readouterr()
    assert stdout == ""
    assert err.startswith("12 x 9 pixels in ")


def test_a_file_gives_every_number(experiment, tmp_path, capsys):
    out = tmp_path / "image.npy"
    assert main(["bragg", str(experiment), "--out", str(out), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    np.testing.assert_array_equal(np.load(out), image(*expected()))


def test_every_name_of_a_file_is_a_flag_of_the_same_name(experiment, tmp_path):
    flags = []
    for line in FILE.splitlines():
        name, equals, value = (part.strip() for part in line.partition("="))
        if equals:
            value = value.strip('"').strip("[]").replace(",", " ")
            value = str(tmp_path / value) if name == "table" else value
            words = [] if value == "true" else value.split()
            flags += [f"--{name.replace('_', '-')}", *words]
    out = tmp_path / "image.npy"
    assert main(["bragg", *flags, "--out", str(out), "-q"]) == 0
    np.testing.assert_array_equal(np.load(out), image(*expected()))


def test_flags_count_before_the_file(experiment, tmp_path):
    out = tmp_path / "image.npy"
    call = ["bragg", str(experiment), "--pixels", "5", "--polarization", "none", "--dmin", "25"]
    assert main([*call, "--out", str(out), "-q"]) == 0
    crystal, detector, beam = expected()
    detector = Detector(**{**vars(detector), "shape": (5, 5)})
    beam = Beam(**{**vars(beam), "polarization": None})
    photons = image(crystal, detector, beam, dmin=25.0)
    np.testing.assert_array_equal(np.load(out), photons)
    assert 0 < np.count_nonzero(photons) < photons.size  # the others scatter beyond


def test_sources_stand_in_the_file(tmp_path):
    path, out = tmp_path / "beam.toml", tmp_path / "image.npy"
    path.write_text(
        "[beam.sources]\ndirections = [[1, 0.02, 0], [2, 0, 0.1]]\nwavelengths = [6.2, 5.8]\n"
    )
    cell = ["--cell", "100", "100", "100", "90", "90", "90"]
    assert main(["bragg", str(path), *cell, "--pixels", "6", "--out", str(out), "-q"]) == 0
    beam = Beam(sources=Sources([[1, 0.02, 0], [2, 0, 0.1]], [6.2, 5.8]))
    crystal = Crystal((100, 100, 100, 90, 90, 90))
    np.testing.assert_array_equal(np.load(out), image(crystal, Detector((6, 6)), beam))


def test_the_command_runs_on_every_framework(framework, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")  # the command sets it
    if framework == "array_api_strict":
        pytest.skip("array_api_strict is no framework of the command")
    out = tmp_path / "image.npy"
    call = [*SMALL, "--out", str(out), "-q", "--on", framework, "--rows", "5"]
    assert main([*call, "--region", "2:,:-1"]) == 0
    whole = image(Crystal((100, 100, 100, 90, 90, 90)), Detector((12, 9)), Beam(6.2))
    found = np.load(out)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found[2:, :-1], whole[2:, :-1], rtol=1e-10, atol=1e-12)
    assert not found[:2].any()
    assert not found[:, -1].any()


@pytest.mark.parametrize("extra", [["--rows", "2"], ["--budget", "1 GiB"], ["--dtype", "float64"]])
def test_chunks_change_no_photon(extra, tmp_path):
    images = []
    for name, options in (("a", []), ("b", extra)):
        out = tmp_path / f"{name}.npy"
        assert main([*SMALL, "--out", str(out), "-q", *options]) == 0
        images.append(np.load(out))
    np.testing.assert_allclose(*images, rtol=0, atol=4 * np.spacing(images[0].max()))


def test_progress_is_shown_on_request(tmp_path, capsys):
    assert main([*SMALL, "--rows", "3", "--progress", "--out", str(tmp_path / "a.npy")]) == 0
    assert "4/4" in capsys.readouterr().err


def test_without_a_file_a_line_describes_the_image(capsys):
    assert main(["bragg", *CUBIC, "--pixels", "30", "20", "--rotation", "0", "0", "40", "-q"]) == 0
    header, line = (text.split("\t") for text in capsys.readouterr().out.splitlines())
    found = dict(zip(header, map(float, line), strict=True))
    detector = Detector((30, 20), rotation=(0.0, 0.0, 40.0))
    photons = image(Crystal((100, 100, 100, 90, 90, 90)), detector, Beam(6.2))
    assert found["largest"] == pytest.approx(photons.max(), rel=1e-8)
    assert found["sum"] == pytest.approx(photons.sum(), rel=1e-8)
    assert photons[int(found["at_slow"]), int(found["at_fast"])] == photons.max()
    assert (found["slow"], found["fast"]) == photons.shape


def test_an_estimate_has_a_line_for_each_card(load_framework, capsys):
    load_framework("torch")
    call = ["bragg", *CUBIC, "--pixels", "1024", "--mosaic-spread", "0.3", "--mosaic-domains"]
    call += ["100", "--estimate"]
    assert main(call) == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, _, _, _, *cards = out.splitlines()
    assert first == "1024 x 1024 pixels, 100 terms each, torch float64"
    sizes = (8, 12, 24, 40, 80)
    assert [line.split("  ")[0] for line in cards] == [f"{size} GB card" for size in sizes]
    counts = np.array([[int(line.split()[n]) for n in (3, 8)] for line in cards])
    assert (np.diff(counts, axis=0) <= 0).all()
    assert main([*call, "--device", "cuda", "--budget", "64 GiB"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[2] == str(counts[-1, 0])
    assert main([*call, "--device", "cpu"]) == 0  # whose cache holds less
    assert int(capsys.readouterr().out.splitlines()[-1].split()[3]) > 10 * counts[-1, 0]


def test_an_estimate_takes_one_budget_and_needs_no_torch(capsys):
    assert main([*SMALL, "--estimate", "--on", "numpy", "--budget", "1GiB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12 x 9 pixels, 1 term each, numpy float64"
    assert lines[-1].startswith("1 GiB")
    assert "gradient" not in lines[1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--cell", "1", "2"], "expected 6 arguments"),
        (["--wavelength", "0"], "'0' is not positive"),
        (["--pixels", "0"], "'0' is no whole number from 1"),
        (["--oversample", "none"], "'none' is no whole number"),
        (["--shape", "gauss"], "'gauss' is none of square, round"),
        (["--polarization", "full"], "'full' is no finite number"),
        (["--region", "1:2"], "'1:2' is not of the form Y0:Y1,X0:X1"),
        (["--region", "1,2"], "'1,2' is not of the form"),
        (["--on", "excel"], "invalid choice"),
        (["--rows", "0"], "'0' is no whole number from 1"),
    ],
)
def test_a_wrong_call_exits_with_2_and_says_why(arguments, reason, capsys):
    err = error_of(capsys, ["bragg", *arguments], 2)
    assert err.startswith("usage: stowplan bragg")
    assert reason in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["bragg"], "cell is missing. Give --cell"),
        (["bragg", *CUBIC], "pixels is missing. Give --pixels"),
        (["bragg", *CUBIC, "--pixels", "1", "2", "3"], "pixels has 3 numbers"),
        ([*SMALL, "--out", "image.jpg"], "one of .npy, .tif, .tiff, .cbf, .png"),
        ([*SMALL, "--out", "/nowhere/image.npy"], "there is no folder /nowhere"),
        ([*SMALL, "--budget", "10 B"], "Give at least budget="),
        ([*SMALL, "--budget", "much"], "budget"),
        ([*SMALL, "--region", ":13,:"], "reaches to 13"),
        ([*SMALL, "--mosaic-spread", "1"], "Give --mosaic-spread DEG and --mosaic-domains N"),
        ([*SMALL, "--table-default", "1"], "Give --table FILE"),
        ([*SMALL, "--table", "nowhere.hkl"], "nowhere.hkl' is no file"),
        ([*SMALL, "--interpolation", "nearest"], "needs structure factors"),
        ([*SMALL, "--device", "cuda:9"], "device='cuda:9' is no device"),
        ([*SMALL, "--compile"], "compile=True needs torch or JAX"),
        (["bragg", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_an_experiment_that_cannot_be_exits_with_1_and_one_message(arguments, reason, capsys):
    err = error_of(capsys, arguments, 1)
    assert err.startswith("stowplan: error: ")
    assert err.count("\n") == 1
    assert reason in err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[crystal\n", "is no TOML file"),
        ("[laser]\n", "table 'laser' is unknown; allowed are crystal, detector, beam"),
        ("beam = 3\n", "beam is no table"),
        ("[beam]\nlambda = 1.0\n", "[beam]: name 'lambda' is unknown; allowed are wavelength"),
        ("[beam]\nwavelength = -1\n", "[beam]: wavelength: '-1' is not positive"),
        ("[beam]\nwavelength = [1.0]\n", "wavelength=[1.0]; one value is needed"),
        ("[beam]\nwavelength = true\n", "wavelength=True; one value is needed"),
        ("[beam]\nsources = 1\n", "lists of directions and wavelengths"),
        ("[beam.sources]\nwavelengths = [1.0]\n", "directions are missing"),
        ("[beam.sources]\ncolours = [1.0]\n", "'colours' is unknown; allowed are directions"),
        ("[crystal]\ncell = [1, 2]\n", "cell=[1, 2]; a list of 6 is needed"),
        ("[crystal]\nphi_steps = 1.5\n", "phi_steps: '1.5' is no whole number"),
        ("[crystal]\nseed = -1\n", "[crystal]: seed: '-1' is no whole number"),
        ("[detector]\npoint_pixel = 1\n", "point_pixel=1; write true or false"),
    ],
)
def test_a_file_that_is_none_is_told_the_place_and_what_is_allowed(text, reason, tmp_path, capsys):
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    err = error_of(capsys, ["bragg", str(path), *SMALL[1:]], 1)
    assert "experiment.toml" in err
    assert reason in err


def test_a_picture_is_written(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    out = tmp_path / "image.png"
    assert main([*SMALL, "--out", str(out), "-q"]) == 0
    assert pillow.open(out).size == (9, 12)


@pytest.mark.parametrize("name", ["image.jpg", "nowhere/image.npy"])
def test_a_file_that_cannot_be_written_is_refused_before_the_image(
    name, tmp_path, capsys, monkeypatch
):
    def compute(*experiment, **options):
        raise KeyboardInterrupt  # too late

    monkeypatch.setattr("stowplan.recipes.bragg.image", compute)
    error_of(capsys, [*SMALL, "--out", str(tmp_path / name)], 1)


def test_help_goes_to_standard_output(capsys):
    assert main(["bragg", "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "examples:" in out
