"""`stowplan transport`: files in, the numbers of the recipe out, and what is told otherwise."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from stowplan.cli import main
from stowplan.recipes import transport

RUN = "import sys; from stowplan.cli import main; sys.exit(main())"
HEADER = "pair cost mass created destroyed dy dx iterations converged source target".split()
PIXELS = ["--pool", "2", "--padding", "4"]


def ellipse(cy, cx, height, width, bend=0.0):
    """A bent ellipse on a canvas of 40 x 56."""
    y, x = np.mgrid[:40, :56]
    return ((y - cy - bend * (x - cx) ** 2) / height) ** 2 + ((x - cx) / width) ** 2 <= 1


STACK = np.stack(
    [
        ellipse(20, 24, 6, 14),
        ellipse(18, 27, 6, 15, 0.02),
        ellipse(22, 30, 9, 10),
        ellipse(9, 9, 4, 4),
    ]
)
LABELS = np.zeros((3, 40, 56), np.uint8)  # 4 is in all frames, 1 goes after the second, 9 comes
for frame, (label, mask) in [
    (0, (4, ellipse(12, 12, 5, 8))), (0, (1, ellipse(28, 40, 6, 6))),
    (1, (4, ellipse(12, 15, 5, 8))), (1, (1, ellipse(30, 41, 6, 5))),
    (1, (9, ellipse(30, 12, 4, 4))),
    (2, (4, ellipse(14, 17, 5, 8))), (2, (9, ellipse(31, 14, 4, 5))),
]:  # fmt: skip
    LABELS[frame][mask] = label


@pytest.fixture
def stack(tmp_path):
    path = tmp_path / "stack.npy"
    np.save(path, STACK)
    return str(path)


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.npy"
    np.save(path, LABELS)
    return str(path)


@pytest.fixture
def out(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    return tmp_path / "made" / "results"


def solve(**options):
    return transport.solve(STACK, pairs="consecutive", pool=2, padding=4, **options)


def lines_of(capsys):
    """Standard output as rows of a table, and standard error."""
    out, err = capsys.readouterr()
    header, *rows = (line.split("\t") for line in out.splitlines())
    assert header == HEADER
    return [dict(zip(header, row, strict=True)) for row in rows], err


def error_of(capsys, arguments, status):
    """The message of a call that fails with nothing on standard output and no traceback."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def table_of(out):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    return parquet.read_table(out / "results.parquet")


def without(module, monkeypatch):
    """Make a module one that cannot be imported."""
    monkeypatch.setitem(sys.modules, module, None)


def test_lines_are_the_numbers_of_the_recipe(stack, capsys):
    assert main(["transport", stack, "--consecutive", *PIXELS]) == 0
    rows, err = lines_of(capsys)
    found = solve()
    for name, column in {
        "cost": found.cost, "mass": found.mass, "created": found.created_mass,
        "destroyed": found.destroyed_mass, "dy": found.mean_velocity[:, 0],
        "dx": found.mean_velocity[:, 1], "iterations": found.iterations,
    }.items():  # fmt: skip
        assert [float(row[name]) for row in rows] == pytest.approx(column.tolist(), rel=1e-8)
    assert [(row["pair"], row["converged"]) for row in rows] == [(n, "yes") for n in "012"]
    assert [(row["source"], row["target"]) for row in rows] == [
        (f"stack.npy frame {n}", f"stack.npy frame {n + 1}") for n in range(3)
    ]
    slots = len(found.plan.slots)
    assert err.startswith("3 pairs in ")
    assert f"; {slots} buckets, occupancy {found.plan.occupancy():.1%}\n" in err


def test_files_of_two_folders_are_paired_in_natural_order(tmp_path, stack, capsys):
    for side, frames in (("before", STACK[:-1]), ("after", STACK[1:])):
        (tmp_path / side).mkdir()
        for number, mask in zip((2, 9, 10), frames, strict=True):
            np.save(tmp_path / side / f"cell{number}.npy", mask)
    call = ["transport", str(tmp_path / "before"), str(tmp_path / "after" / "*.npy"), *PIXELS]
    assert main(call) == 0
    rows, _ = lines_of(capsys)
    assert [row["source"] for row in rows] == ["cell2.npy", "cell9.npy", "cell10.npy"]
    assert [float(row["cost"]) for row in rows] == pytest.approx(solve().cost.tolist(), rel=1e-8)


def test_labels_are_paired_with_the_same_label_of_the_next_frame(labels, capsys):
    assert main(["transport", labels, "--consecutive", "--labels", "all", *PIXELS]) == 0
    rows, err = lines_of(capsys)
    pairs = [(0, 1, 1), (0, 4, 1), (1, 4, 2), (1, 9, 2)]
    assert [(row["source"], row["target"]) for row in rows] == [
        (f"labels.npy frame {frame} label {label}", f"labels.npy frame {after} label {label}")
        for frame, label, after in pairs
    ]
    found = transport.solve(
        [LABELS[frame] == label for frame, label, _ in pairs],
        [LABELS[after] == label for _, label, after in pairs],
        pool=2, padding=4,
    )  # fmt: skip
    assert [float(row["cost"]) for row in rows] == pytest.approx(found.cost.tolist(), rel=1e-8)
    alone = "labels.npy frame 1 label 1, labels.npy frame 1 label 9\n"
    assert f"stowplan: 2 labels lack a partner in another frame: {alone}" in err


def test_chosen_labels_of_two_files_are_paired(tmp_path, capsys):
    np.save(tmp_path / "before.npy", LABELS[0])
    np.save(tmp_path / "after.npy", LABELS[1])
    files = [str(tmp_path / "before.npy"), str(tmp_path / "after.npy")]
    assert main(["transport", *files, "--labels", "4,1", *PIXELS]) == 0
    rows, err = lines_of(capsys)
    assert [row["target"] for row in rows] == ["after.npy label 4", "after.npy label 1"]
    assert "lack" not in err


def test_grey_files_are_masks_above_a_number(tmp_path, capsys):
    np.save(tmp_path / "grey.npy", np.where(STACK, 90, 40).astype(np.uint8))
    call = ["transport", str(tmp_path / "grey.npy"), "--consecutive", *PIXELS]
    assert main([*call, "--grey", "60.5"]) == 0
    rows, _ = lines_of(capsys)
    assert [float(row["cost"]) for row in rows] == pytest.approx(solve().cost.tolist(), rel=1e-8)


def test_the_table_has_every_number_with_names_and_what_was_asked_for(stack, out):
    call = ["transport", stack, "--consecutive", *PIXELS, "--pixel-size", "0.5 µm", "--no-pictures"]
    assert main([*call, "--tau", "0.98", "--maps", "none", "--out", str(out), "-q"]) == 0
    table = table_of(out)
    expected = solve(pixel_size=0.5, tau=0.98).to_table()
    assert table.select(expected.column_names).equals(expected)
    assert table["pair"].to_pylist() == [0, 1, 2]
    assert table["source"].to_pylist() == table["target"].to_pylist() == [stack] * 3
    assert table["source_frame"].to_pylist() == [0, 1, 2]
    assert table["target_frame"].to_pylist() == [1, 2, 3]
    assert table["source_label"].to_pylist() == [None] * 3
    assert table.schema.metadata[b"length_unit"] == b"um"
    asked = json.loads(table.schema.metadata[b"parameters"])
    assert asked == {"pixel_size": 0.5, "tau": 0.98, "padding": 4, "pool": 2}
    assert [path.name for path in out.iterdir()] == ["results.parquet"]


def test_labels_stand_in_the_table(labels, out):
    call = ["transport", labels, "--consecutive", "--labels", "all", *PIXELS, "--no-pictures", "-q"]
    assert main([*call, "--out", str(out)]) == 0
    table = table_of(out)
    for side in ("source", "target"):
        assert table[f"{side}_label"].to_pylist() == [1, 4, 4, 9]


def test_maps_are_read_back_as_the_recipe_gives_them(stack, out):
    call = ["transport", stack, "--consecutive", *PIXELS, "--pixel-size", "2nm", "--no-pictures"]
    assert main([*call, "--out", str(out), "-q"]) == 0
    found = solve(pixel_size=2)
    names = sorted(path.name for path in out.iterdir())
    assert names == ["pair0000.npz", "pair0001.npz", "pair0002.npz", "results.parquet"]
    for pair in range(3):
        with np.load(out / f"pair{pair:04d}.npz") as held:
            for name, expected in found.maps(pair).items():
                np.testing.assert_array_equal(held[name], expected)
            assert held["box"].tolist() == found.boxes[pair].tolist()
            assert str(held["unit"]) == "nm"


def test_tiff_maps_have_four_channels_and_the_pixel_size(stack, out):
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    call = ["transport", stack, "--consecutive", *PIXELS, "--pixel-size", "0.5um", "--no-pictures"]
    assert main([*call, "--maps", "tiff", "--out", str(out), "-q"]) == 0
    found = solve(pixel_size=0.5)
    maps = found.maps(1)
    with tifffile.TiffFile(out / "pair0001.tif") as file:
        assert (file.series[0].axes, file.series[0].dtype) == ("CYX", np.float32)
        dy, dx, created, destroyed = file.asarray()
        described, resolution = file.imagej_metadata, file.pages[0].tags["XResolution"].value
    np.testing.assert_allclose(np.stack([dy, dx], axis=-1), maps["velocity"], rtol=1e-6)
    np.testing.assert_allclose(created, maps["created"], rtol=1e-6)
    np.testing.assert_allclose(destroyed, maps["destroyed"], rtol=1e-6)
    assert described["Labels"] == ["dy (um)", "dx (um)", "created", "destroyed"]
    assert described["unit"] == "um"
    assert described["box"] == " ".join(map(str, found.boxes[1].tolist()))
    assert resolution[0] / resolution[1] == 2


def test_every_pair_has_a_picture_with_both_colours(stack, out):
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert main(["transport", stack, "--consecutive", *PIXELS, "--out", str(out), "-q"]) == 0
    for pair in range(3):
        pixels = np.asarray(image.open(out / f"pair{pair:04d}.png").convert("RGB")).astype(int)
        assert pixels.shape[1] == 1200
        assert pixels.shape[0] > 500
        warm = (pixels[..., 0] > pixels[..., 2] + 60).mean()
        cold = (pixels[..., 2] > pixels[..., 0] + 60).mean()
        dark = (pixels.max(axis=-1) < 60).mean()
        assert min(warm, cold, dark) > 0.003
        assert (pixels == 255).all(axis=-1).mean() > 0.3
    names = {path.suffix for path in out.iterdir()}
    assert names == {".npz", ".parquet", ".png"}  # and no .part


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("--tau 0.95 --epsilon 0.001", {"tau": 0.95, "epsilon": 0.001}),
        ("--relative-epsilon 0.02", {"relative_epsilon": 0.02}),
        ("--reference counting", {"reference": "counting"}),
        ("--density distance --padding 0", {"density": "distance", "padding": 0}),
        ("--density boundary", {"density": "boundary"}),
        ("--density boundary:2.5", {"density": ("boundary", 2.5)}),
        ("--crop union --pool 3", {"crop": "union", "pool": 3}),
        ("--crop 2:39,0:56", {"crop": (2, 39, 0, 56)}),
        ("--crop 2:,:50", {"crop": (2, sys.maxsize, 0, 50)}),
        ("--threshold 1e-5 --max-iterations 900", {"threshold": 1e-5, "max_iterations": 900}),
        ("--buckets 2 --rows 1", {"buckets": 2, "rows": 1}),
        ("--buckets 16x32,32X64", {"buckets": [(16, 32), (32, 64)]}),
        ("--on numpy --budget 1GiB", {"on": "numpy", "budget": "1GiB"}),
    ],
)
def test_flags_are_the_arguments_of_the_recipe(flags, options, stack, capsys, monkeypatch):
    asked = {}
    whole = transport.solve
    monkeypatch.setattr(
        "stowplan.recipes.transport.solve",
        lambda *masks, **given: asked.update(given) or whole(*masks, **given),
    )
    assert main(["transport", stack, "--consecutive", *flags.split()]) == 0
    asked.pop("pairs")
    assert asked == {**options, "pixel_size": None, "progress": False}
    expected = whole(STACK, pairs="consecutive", **options)
    rows, _ = lines_of(capsys)
    assert [float(row["cost"]) for row in rows] == pytest.approx(expected.cost.tolist(), rel=1e-8)


@pytest.mark.parametrize(
    ("text", "size", "unit"),
    [
        ("10um", 10, "um"), ("0.5 mm", 0.5, "mm"), ("2nm", 2, "nm"), ("1e-3m", 1e-3, "m"),
        (".5\N{MICRO SIGN}m", 0.5, "um"),
        ("5.\N{GREEK SMALL LETTER MU}m", 5, "um"), ("3", 3, "units"),
    ],
)  # fmt: skip
def test_a_pixel_size_scales_velocities_and_keeps_its_unit(text, size, unit, stack, out):
    call = ["transport", stack, "--consecutive", *PIXELS, "--pixel-size", text, "--maps", "none"]
    assert main([*call, "--no-pictures", "-q", "--out", str(out)]) == 0
    table = table_of(out)
    assert table.schema.metadata[b"length_unit"].decode() == unit
    np.testing.assert_allclose(
        table["mean_velocity"].to_pylist(), size * solve().mean_velocity, rtol=1e-12
    )


def test_the_help_tells_the_defaults_of_the_recipe(capsys):
    assert main(["transport", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "example:" in told
    defaults = {
        name: value.default for name, value in inspect.signature(transport.solve).parameters.items()
    }
    for text in (
        f"destroyed (default: {defaults['tau']})",
        f"mean cost (default: {defaults['relative_epsilon']})",
        f"union (default: {defaults['padding']})", f"work grid ({defaults['pool']})",
        f"marginals (default: {defaults['threshold']:.0e})".replace("e-04", "e-4"),
        f"N default: {defaults['max_iterations']}", f"default: {defaults['reference']}",
        f"(default: {defaults['density']};", f"(default: {defaults['crop']},",
    ):  # fmt: skip
        assert text in told


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a.npy"], "give SOURCE and TARGET, or one STACK and --consecutive"),
        (["a.npy", "b.npy", "--consecutive"], "give SOURCE and TARGET, or one STACK"),
        (["a.npy", "b.npy", "--maps", "npz"], "--maps and --no-pictures need --out"),
        (["a.npy", "b.npy", "--no-pictures"], "--maps and --no-pictures need --out"),
        (["a.npy", "b.npy", "--labels", "3,0"], "'0' is no whole number from 1"),
        (["a.npy", "b.npy", "--labels", "all", "--grey", "3"], "not allowed with"),
        (["a.npy", "b.npy", "--epsilon", "1", "--relative-epsilon", "1"], "not allowed with"),
        (["a.npy", "b.npy", "--tau", "1.5"], "'1.5' is above 1"),
        (
            ["a.npy", "b.npy", "--pixel-size", "3ft"],
            "'ft' is no unit of length here; allowed are nm",
        ),
        (["a.npy", "b.npy", "--pixel-size", "um"], "'um' is no length such as 0.65um"),
        (["a.npy", "b.npy", "--pixel-size", "0um"], "'0' is not positive"),
        (["a.npy", "b.npy", "--buckets", "32x64,64"], "'64' is not of the form HxW"),
        (["a.npy", "b.npy", "--buckets", "0"], "'0' is no whole number from 1"),
        (["a.npy", "b.npy", "--crop", "onion"], "'onion' is not of the form Y0:Y1,X0:X1"),
        (["a.npy", "b.npy", "--density", "edge"], "'edge' is none of uniform, boundary[:PX]"),
        (["a.npy", "b.npy", "--density", "boundary:-1"], "'-1' is not positive"),
        (["a.npy", "b.npy", "--padding", "-1"], "'-1' is no whole number from 0"),
        (["a.npy", "b.npy", "--on", "excel"], "invalid choice"),
    ],
)
def test_a_wrong_call_exits_with_2_and_says_why(arguments, reason, capsys):
    err = error_of(capsys, ["transport", *arguments], 2)
    assert err.startswith("usage: stowplan transport SOURCE TARGET | STACK --consecutive")
    assert reason in err


@pytest.mark.parametrize(
    ("masks", "arguments", "reason"),
    [
        (STACK, ["--crop", "0:5,0:5"], "the source of pair 0 has mass 0 in its crop"),
        (STACK, ["--buckets", "8x8"], "3 of 3 pairs fit no bucket"),
        (STACK, ["--tau", "1"], "tau=1 transports all mass"),
        (STACK[0], [], "there is no pair: there is one frame in "),
        (STACK * 9, [], "2 values (0, 9)"),
        (np.stack([STACK[0], ~STACK[0] * 2]), ["--labels", "all"], "no label is in two frames"),
        (
            STACK & np.array([1, 0, 1, 0], bool)[:, None, None], [],
            "transport: masks.npy frame 1, masks.npy frame 3. Leave",
        ),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_exits_with_1_and_one_line(
    masks, arguments, reason, tmp_path, capsys
):
    np.save(tmp_path / "masks.npy", masks)
    call = ["transport", str(tmp_path / "masks.npy"), "--consecutive", *arguments]
    err = error_of(capsys, call, 1)
    assert err.splitlines()[-1].startswith("stowplan: error: ")
    assert err.count("stowplan: error: ") == err.count("\n") - err.count("labels lack") == 1
    assert reason in err


def test_folders_of_different_length_are_no_pairs(stack, tmp_path, capsys):
    np.save(tmp_path / "one.npy", STACK[0])
    err = error_of(capsys, ["transport", stack, str(tmp_path / "one.npy")], 1)
    assert "stack.npy' has 4 frames, but " in err
    assert "one.npy' has 1; give one target for each source." in err


def test_a_missing_file_exits_with_1_and_names_it(tmp_path, capsys):
    err = error_of(capsys, ["transport", str(tmp_path / "no.npy"), "--consecutive"], 1)
    assert "no.npy" in err


def test_a_pair_that_did_not_converge_is_named_and_all_are_written(stack, out, capsys):
    few = ["--max-iterations", str(int(solve().iterations.min()))]
    call = ["transport", stack, "--consecutive", *PIXELS, *few, "--no-pictures"]
    assert main([*call, "--out", str(out)]) == 1
    told, err = capsys.readouterr()
    assert told == ""
    converged = table_of(out)["converged"].to_pylist()
    assert sorted(set(converged)) == [False, True]
    assert len(list(out.glob("*.npz"))) == 3
    for pair, fine in enumerate(converged):
        named = f"pair {pair}, stack.npy frame {pair} → stack.npy frame {pair + 1}: not converged"
        assert err.count(named) == (not fine)
    last = err.splitlines()[-1]
    wrong = converged.count(False)
    assert last == f"stowplan: error: {wrong} of 3 pairs failed or did not converge, see above"


def test_what_the_command_tells_is_not_logged_too(stack, capsys):
    told = subprocess.run(
        [sys.executable, "-c", RUN, "transport", stack, "--consecutive", "--max-iterations", "10"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 1
    assert told.stderr.count("pair 0") == 1


def test_a_failed_pair_is_written_as_nan_beside_the_others(stack, out, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    whole = transport.solve

    def fail(*masks, **options):
        bad = np.array([False, True, False])
        found = whole(*masks, **options)
        return replace(found, failed=bad, converged=~bad, cost=np.where(bad, np.nan, found.cost))

    monkeypatch.setattr("stowplan.recipes.transport.solve", fail)
    assert main(["transport", stack, "--consecutive", *PIXELS, "--out", str(out)]) == 1
    assert "pair 1, stack.npy frame 1 → stack.npy frame 2: failed after" in capsys.readouterr().err
    finite = [np.isfinite(np.load(out / f"pair{n:04d}.npz")["velocity"]).all() for n in range(3)]
    assert finite == [True, False, True]
    assert len(list(out.glob("*.png"))) == 3


def test_the_command_runs_on_every_framework(stack, framework, capsys, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")  # the command sets it
    if framework == "array_api_strict":
        pytest.skip("array_api_strict is no framework of the command")
    assert main(["transport", stack, "--consecutive", *PIXELS, "--on", framework]) == 0
    rows, _ = lines_of(capsys)
    assert [float(row["cost"]) for row in rows] == pytest.approx(solve().cost.tolist(), rel=1e-8)


def test_jax_computes_in_float64(stack):
    pytest.importorskip("jax", reason="jax is not installed")
    told = subprocess.run(
        [sys.executable, "-c", RUN, "transport", stack, "--consecutive", *PIXELS, "--on", "jax"],
        capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"},
    )  # fmt: skip
    costs = [float(line.split("\t")[1]) for line in told.stdout.splitlines()[1:]]
    assert costs == pytest.approx(solve().cost.tolist(), rel=1e-8)


@pytest.mark.parametrize(
    ("module", "arguments", "told"),
    [
        ("pyarrow", ["--no-pictures"], "pip install 'stowplan[arrow]'"),
        ("matplotlib.figure", [], "(leave out by --no-pictures) needs matplotlib"),
        ("matplotlib.figure", [], "pip install 'stowplan[pictures]'"),
        ("tifffile", ["--no-pictures", "--maps", "tiff"], "pip install 'stowplan[masks]'"),
    ],
)
def test_a_missing_package_is_told_before_anything_is_computed(
    module, arguments, told, stack, out, capsys, monkeypatch
):
    without(module, monkeypatch)
    monkeypatch.setattr("stowplan.recipes.transport.solve", None)
    call = ["transport", stack, "--consecutive", *arguments, "--out", str(out)]
    assert told in error_of(capsys, call, 1)
    assert not out.exists()


def test_lines_need_neither_pyarrow_nor_matplotlib(stack, capsys, monkeypatch):
    for module in ("pyarrow", "matplotlib", "matplotlib.figure"):
        without(module, monkeypatch)
    assert main(["transport", stack, "--consecutive", *PIXELS]) == 0


def test_files_of_another_run_are_refused_and_those_of_the_same_replaced(stack, out, capsys):
    call = ["transport", stack, "--consecutive", *PIXELS, "--no-pictures", "-q", "--out", str(out)]
    assert main(call) == 0
    (out / "notes.txt").touch()
    assert main([*call, "--tau", "0.9"]) == 0
    costs = table_of(out)["cost"].to_pylist()
    assert costs == solve(tau=0.9).cost.tolist()
    np.testing.assert_array_equal(
        np.load(out / "pair0002.npz")["created"], solve(tau=0.9).maps(2)["created"]
    )
    (out / "pair0003.png").touch()
    assert "holds 1 files of another run, such as pair0003.png" in error_of(capsys, call, 1)


def test_a_file_in_the_place_of_the_folder_is_kept(stack, out, capsys):
    out.parent.mkdir()
    out.write_text("mine")
    call = ["transport", stack, "--consecutive", "--out", str(out), "--no-pictures"]
    assert "is a file; --out needs a folder" in error_of(capsys, call, 1)
    assert out.read_text() == "mine"


def test_a_file_that_cannot_be_written_whole_is_not_there(stack, out, capsys, monkeypatch):
    def half(file, **_):
        file.write(b"PK")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", half)
    call = ["transport", stack, "--consecutive", *PIXELS, "--no-pictures", "--out", str(out)]
    assert "no space left" in error_of(capsys, call, 1)
    assert [path.name for path in out.iterdir()] == ["results.parquet"]


def test_a_quiet_run_says_nothing(stack, out, capsys):
    call = ["transport", stack, "--consecutive", *PIXELS, "--no-pictures", "--out", str(out)]
    assert main([*call, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
