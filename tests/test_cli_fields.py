"""`stowplan fields`: the numbers of NumPy, files where they belong, and what is told otherwise."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

from stowplan.cli import main
from stowplan.recipes import fields
from stowplan.runs.memory_trace import MemoryTrace
from stowplan.stores.run_folder import RunFolder

SPACING = 0.5
N = 12
COMMAND = [
    sys.executable, "-c", "import sys; from stowplan.cli import main; sys.exit(main())", "fields",
]  # fmt: skip


@pytest.fixture
def store(tmp_path):
    """Three real fields of 12 x 12 x 12 with 5 lines, without a mean."""
    rng = np.random.default_rng(0)
    for name in "abc":
        field = rng.normal(size=(N, N, N, 5))
        np.save(tmp_path / f"{name}.npy", field - field.mean(axis=(0, 1, 2)))
    return tmp_path


@pytest.fixture
def gaussians(tmp_path):
    """Two Gaussian sources of 2 and 3 cells on 48 x 48 x 48, without a mean."""
    r = (np.arange(48) - 24.0) ** 2
    for cells in (2, 3):
        source = np.exp(-(r[:, None, None] + r[:, None] + r) / (2 * cells**2))
        np.save(tmp_path / f"gauss{cells}.npy", source - source.mean())
    return tmp_path


def run(capsys, action, *arguments, status=0):
    """Rows of standard output, and standard error."""
    assert main(["fields", action, *map(str, arguments)]) == status
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if not out:
        return [], err
    header, *rows = (line.split("\t") for line in out.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows], err


def error_of(capsys, action, *arguments, status=1):
    """The one line of a call that fails."""
    rows, err = run(capsys, action, *arguments, status=status)
    assert rows == []
    assert status == 2 or len(err.splitlines()) == 1
    return err


def rows_of(path):
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    return parquet.read_table(path).to_pylist()


def column(rows, name):
    return np.array([np.nan if row[name] in (None, "") else float(row[name]) for row in rows])


def wave_number():
    k = 2 * np.pi * np.fft.fftfreq(N, SPACING)
    return np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)


def ring_sums(places, width, values):
    """Sums and counts of the ring of m widths nearest to each place, in a slow loop."""
    sums, counts = {}, {}
    for place, value in zip(places.ravel(), values.ravel(), strict=True):
        ring = int(np.floor(place / width + 0.5))
        sums[ring] = sums.get(ring, 0.0) + value
        counts[ring] = counts.get(ring, 0) + 1
    return sums, counts


# solve


@pytest.mark.parametrize("out", ["potentials.npy", "potentials.zarr", "p.h5::a", "made", "made/"])
@pytest.mark.parametrize("numbers", [{}, {"beta": 0.8, "mu": 2.0, "lam": 0.3}])
def test_potentials_are_those_of_numpy(store, tmp_path_factory, out, numbers, capsys):
    pytest.importorskip({"z": "zarr", "5": "h5py"}.get(out[11:12] or out[3:4], "numpy"))
    folder = tmp_path_factory.mktemp("out")
    options = [part for name, value in numbers.items() for part in (f"--{name}", value)]
    _, err = run(
        capsys, "solve", f"{store}/*.npy", "--spacing", SPACING, "--out", f"{folder}/{out}",
        "--no-picture", *options,
    )  # fmt: skip
    found = opened(f"{folder}/{out}")
    beta, mu, lam = (numbers.get(name, default) for name, default in
                     (("beta", 1.0), ("mu", 1.0), ("lam", 0.0)))  # fmt: skip
    symbol = mu * wave_number() ** (2 * beta) + lam
    symbol[0, 0, 0] = lam or np.inf
    for name, potential in zip("abc", found, strict=True):
        modes = np.fft.fftn(np.load(store / f"{name}.npy"), axes=(0, 1, 2))
        wanted = np.fft.ifftn(modes / symbol[..., None], axes=(0, 1, 2)).real
        np.testing.assert_allclose(potential, wanted, rtol=0, atol=1e-12)
    assert "3 fields, 12 x 12 x 12 x 5 float64: 202.5 KiB read and as many written in " in err
    assert " GB/s" in err
    assert "peak memory " in err


def opened(out):
    path, _, inner = out.partition("::")
    if path.endswith(".npy"):
        return np.load(path)
    if path.endswith(".zarr"):
        return pytest.importorskip("zarr").open_array(path, mode="r")[:]
    if path.endswith(".h5"):
        with pytest.importorskip("h5py").File(path) as file:
            return file[inner][:]
    return [np.load(Path(path, f"{name}.npy")) for name in "abc"]


def test_one_path_gives_one_array_several_give_a_stack(store, tmp_path, capsys):
    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    common = ["--spacing", SPACING, "--no-picture", "-q"]
    _, err = run(capsys, "solve", store / "a.npy", *common, "--out", one)
    assert err == ""
    run(capsys, "solve", store / "a.npy", store / "b.npy", *common, "--out", two)
    assert np.load(one).shape == (N, N, N, 5)
    np.testing.assert_allclose(np.load(two)[0], np.load(one), rtol=0, atol=1e-14)


def test_a_stack_is_solved_along_its_other_axes(store, tmp_path, capsys):
    stack = np.stack([np.load(store / f"{name}.npy") for name in "abc"])
    np.save(tmp_path / "stack.npy", stack)
    out = tmp_path / "solved.npy"
    run(capsys, "solve", tmp_path / "stack.npy", "--axes", "1,2,3", "--spacing", "0.5,0.5,0.5um",
        "--out", out, "--no-picture")  # fmt: skip
    wanted = fields.solve(stack[1], spacing=SPACING)
    np.testing.assert_allclose(np.load(out)[1], wanted, rtol=0, atol=1e-13)


# tables


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_spectra_are_those_of_a_slow_loop(store, tmp_path, suffix, capsys):
    path = tmp_path / f"spectrum.{suffix}"
    run(capsys, "spectrum", store, "--spacing", SPACING, "--out", path, "--no-picture")
    rows = rows_of(path)
    recipe = fields.spectrum(str(store), spacing=SPACING)
    width = 2 * np.pi / (N * SPACING)
    for name, sums in zip("abc", recipe.each, strict=True):
        own = [row for row in rows if row["field"] == str(store / f"{name}.npy")]
        assert [int(row["shell"]) for row in own] == list(range(len(sums.sums)))
        np.testing.assert_array_equal(column(own, "power"), sums.sums)
        modes = np.fft.fftn(np.load(store / f"{name}.npy"), axes=(0, 1, 2), norm="ortho")
        power, counts = ring_sums(wave_number(), width, (np.abs(modes) ** 2).sum(axis=3))
        for row in own:
            shell = int(row["shell"])
            assert int(row["modes"]) == 5 * counts.get(shell, 0)
            assert float(row["power"]) == pytest.approx(power.get(shell, 0), abs=1e-9)
            if shell in counts:
                assert float(row["mean"]) == pytest.approx(power[shell] / (5 * counts[shell]))
            else:
                assert row["mean"] in (None, "")
        field = np.load(store / f"{name}.npy")
        assert column(own, "power").sum() == pytest.approx((field**2).sum())  # Parseval


def test_a_parquet_table_says_what_it_is_of(store, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    path = tmp_path / "spectrum.parquet"
    run(capsys, "spectrum", store, "--spacing", "0.5um", "--width", 3, "--out", path, "-q",
        "--no-picture")  # fmt: skip
    metadata = parquet.read_schema(path).metadata
    assert metadata[b"length_unit"] == b"um"
    assert json.loads(metadata[b"parameters"])["width"] == 3
    assert str(parquet.read_schema(path).field("modes").type) == "int64"


def test_radial_means_are_those_of_a_slow_loop(store, capsys):
    field = np.load(store / "a.npy") + 1j * np.load(store / "b.npy")
    np.save(store / "complex.npy", field)
    rows, _ = run(
        capsys, "radial", store / "complex.npy", "--spacing", SPACING, "--centre", "3,4,11"
    )
    away = [np.minimum(np.abs(np.arange(N) - c), N - np.abs(np.arange(N) - c)) for c in (3, 4, 11)]
    x, y, z = away
    r = SPACING * np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2)
    sums, counts = ring_sums(r, SPACING, field.sum(axis=3))
    for row in rows:
        ring = int(row["bin"])
        assert int(row["cells"]) == 5 * counts.get(ring, 0)
        found = float(row["sum_real"]) + 1j * float(row["sum_imag"])
        assert found == pytest.approx(sums.get(ring, 0), abs=1e-7)
        if ring in counts:
            mean = float(row["mean_real"]) + 1j * float(row["mean_imag"])
            assert mean == pytest.approx(sums[ring] / (5 * counts[ring]), abs=1e-7)


def test_tails_are_those_of_another_least_squares(gaussians, tmp_path, capsys):
    from scipy.optimize import curve_fit

    run(capsys, "solve", f"{gaussians}/gauss*.npy", "--spacing", SPACING, "--out",
        tmp_path / "potentials", "--no-picture")  # fmt: skip
    path = tmp_path / "tails.csv"
    run(capsys, "tail", tmp_path / "potentials", "--spacing", SPACING, "--out", path,
        "--no-picture")  # fmt: skip
    rows = rows_of(path)
    assert [Path(row["field"]).name for row in rows] == ["gauss2.npy", "gauss3.npy"]
    means = fields.radial(str(tmp_path / "potentials"), spacing=SPACING)
    for row, sums in zip(rows, means.each, strict=True):
        low, high = float(row["window_low"]), float(row["window_high"])
        assert (low, high) == pytest.approx((4.0, 0.45 * 24))
        inside = (sums.radii > low) & (sums.radii < high)
        r, y = sums.radii[inside], sums.mean[inside]
        (c, p, b, d), covariance = curve_fit(
            lambda r, c, p, b, d: c * r**p + b + d * r**2, r, y,
            p0=[y[0] * r[0], -1, y[-1], 0], xtol=1e-14, ftol=1e-14, gtol=1e-14, maxfev=100000,
        )  # fmt: skip
        assert int(row["points"]) == len(r)
        assert float(row["power"]) == pytest.approx(p, rel=1e-4)
        assert float(row["amplitude"]) == pytest.approx(c, rel=1e-3)
        assert float(row["background"]) == pytest.approx(b, rel=1e-3)
        assert float(row["bend"]) == pytest.approx(d, rel=1e-2)
        half = 2.12 * np.sqrt(covariance[1, 1])  # Student's t of about 15 degrees of freedom
        assert float(row["power_high"]) - p == pytest.approx(half, rel=0.15)
        assert row["failure"] == ""
    assert -1.05 < float(rows[0]["power"]) < -0.95


def test_a_field_without_a_tail_is_named_and_the_others_are_written(gaussians, tmp_path, capsys):
    np.save(gaussians / "gauss9.npy", np.random.default_rng(0).normal(size=(48, 48, 48)) * 0)
    path = tmp_path / "tails.csv"
    run(capsys, "solve", gaussians / "gauss2.npy", "--spacing", 1, "--out", tmp_path / "p.npy",
        "--no-picture", "-q")  # fmt: skip
    _, err = run(
        capsys, "tail", tmp_path / "p.npy", gaussians / "gauss9.npy", "--spacing", 1, "--out",
        path, "--no-picture", "-q", status=1,
    )  # fmt: skip
    good, bad = rows_of(path)
    assert good["failure"] == ""
    assert -1.1 < float(good["power"]) < -0.9
    assert bad["power"] == ""
    assert "fit_tail" in bad["failure"]
    named, last = err.splitlines()
    assert named.startswith(f"stowplan: {gaussians / 'gauss9.npy'}: fit_tail: ")
    assert last == "stowplan: error: 1 of 2 fields without a tail, see above"


def test_the_slope_of_a_power_law_is_said(tmp_path, capsys):
    k = 2 * np.pi * np.fft.fftfreq(32, SPACING)
    size = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
    size[0, 0, 0] = np.inf
    noise = np.fft.fftn(np.random.default_rng(1).normal(size=(32, 32, 32)))
    np.save(tmp_path / "a.npy", np.fft.ifftn(noise * size ** (-11 / 6)).real)
    _, err = run(capsys, "spectrum", tmp_path / "a.npy", "--spacing", SPACING)
    words = err.split("slope of the mean power: ")[1].replace(",", "").split()
    low, high = float(words[4]), float(words[6])
    assert low < -11 / 3 < high
    assert float(words[0]) == pytest.approx(-11 / 3, abs=0.2)
    np.save(tmp_path / "b.npy", np.fft.ifftn(noise * np.exp(-(np.minimum(size, 9) ** 2) / 4)).real)
    _, err = run(capsys, "spectrum", tmp_path / "b.npy", "--spacing", SPACING)
    assert "no slope: log power scatters" in err


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_frameworks_give_the_same_and_keep_the_dtype(store, framework, tmp_path):
    pytest.importorskip(framework, reason=f"{framework} is not installed")
    out = tmp_path / "p.npy"
    call = ["--spacing", str(SPACING), "--on", framework, "--out", str(out), "--no-picture"]
    subprocess.run([*COMMAND, "solve", str(store / "a.npy"), *call, "-q"], check=True)
    found = np.load(out)
    assert found.dtype == np.float64
    wanted = fields.solve(np.load(store / "a.npy"), spacing=SPACING)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13)


# memory, pictures, resume


def test_what_is_held_is_said_against_the_budget(tmp_path):
    """In a process of its own, as people call it: a heap keeps what other tests have left in it."""
    field = np.random.default_rng(0).normal(size=(8, 8, 8, 4096)).astype(complex)
    np.save(tmp_path / "big.npy", field)  # 32 MiB
    call = ["spectrum", str(tmp_path / "big.npy"), "--spacing", "1", "--budget", "20MiB"]
    done = subprocess.run([*COMMAND, *call], capture_output=True, text=True, check=True)
    assert done.stdout
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("peak memory"))
    peak, unit = line.split()[2:4]
    assert unit == "MiB"
    assert 1 < float(peak) <= 20
    assert "of a budget of 20 MiB, above " in line


@pytest.mark.parametrize("action", ["solve", "spectrum", "radial", "tail"])
def test_a_picture_stands_beside_the_output(gaussians, tmp_path, action, capsys, monkeypatch):
    # what a process takes from its heap is no new memory: the budget would lie beyond the axis
    monkeypatch.setattr(MemoryTrace, "peak_bytes", property(lambda trace: 20_000_000))
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    folder = tmp_path / "made"
    folder.mkdir()
    store = gaussians / "gauss*.npy"
    if action == "tail":
        fields.solve(str(store), spacing=1.0, out=folder / "p.npy")
        run(capsys, "tail", folder / "p.npy", "--axes", "1,2,3", "--spacing", 1, "--out",
            folder / "t.csv", "--budget", "40MB")  # fmt: skip
        picture = folder / "t.png"
    else:
        name = "x.npy" if action == "solve" else "x.csv"
        _, err = run(capsys, action, store, "--spacing", "1um", "--out", folder / name,
                     "--budget", "40MB")  # fmt: skip
        picture = folder / "x.png"
        assert f"picture: {picture}" in err
    pixels = np.asarray(image.open(picture).convert("RGB")).astype(int)
    assert pixels.shape[1] == 1200
    for colour in ((0x0B, 0x3C, 0x5D), (0xD5, 0x5E, 0x00)):  # memory and mean, budget and fit
        assert (np.abs(pixels - colour).sum(axis=2) < 30).sum() > 300
    assert sorted(path.suffix for path in folder.iterdir() if path.suffix == ".part") == []


@pytest.mark.parametrize("action", ["solve", "spectrum"])
def test_an_interrupted_run_is_gone_on_with(store, tmp_path, action, capsys, monkeypatch):
    suffix = "npy" if action == "solve" else "csv"
    out, whole = tmp_path / "made" / f"x.{suffix}", tmp_path / "made" / f"whole.{suffix}"
    out.parent.mkdir()
    common = [action, f"{store}/*.npy", "--spacing", SPACING, "--budget", "400KiB", "--no-picture"]
    run(capsys, *common, "--out", whole)
    save, count = RunFolder.save, []

    def interrupted(self, number, *values):
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(number)
        return save(self, number, *values)

    monkeypatch.setattr(RunFolder, "save", interrupted)
    resumed = [*common, "--out", out, "--resume", tmp_path / "run"]
    _, err = run(capsys, *resumed, status=130)
    assert f"What is done is kept in {tmp_path / 'run'}: the same call goes on from there." in err
    assert not out.exists()

    def counted(self, number, *values):
        count.append(number)
        return save(self, number, *values)

    monkeypatch.setattr(RunFolder, "save", counted)
    _, err = run(capsys, *resumed)
    assert "with what was done before" in err
    assert len(set(count)) == len(count)  # nothing was computed twice
    assert out.read_bytes() == whole.read_bytes()


def test_a_killed_run_is_gone_on_with(tmp_path, capsys):
    rng = np.random.default_rng(0)
    source = rng.normal(size=(8, 8, 8, 200)).astype(complex)
    np.save(tmp_path / "a.npy", source)
    call = ["solve", str(tmp_path / "a.npy"), "--spacing", "1", "--lam", "1", "--budget", "512KiB",
            "--out", str(tmp_path / "x.npy"), "--no-picture",
            "--resume", str(tmp_path / "run")]  # fmt: skip
    process = subprocess.Popen([*COMMAND, *call], stderr=subprocess.DEVNULL)
    manifest = tmp_path / "run" / "manifest.jsonl"
    while process.poll() is None:
        if manifest.exists() and manifest.read_bytes().count(b"\n") > 3:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait()
    _, err = run(capsys, *call, *(["--overwrite"] if process.returncode == 0 else []))
    assert "with what was done before" in err
    wanted = fields.solve(source, spacing=1.0, lam=1.0)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), wanted, rtol=0, atol=1e-13)


def test_progress_is_shown_in_bytes_on_a_terminal(store):
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    call = ["radial", f"{store}/*.npy", "--spacing", str(SPACING), "--budget", "400KiB"]
    with subprocess.Popen([*COMMAND, *call], stderr=side, stdout=subprocess.DEVNULL) as process:
        os.close(side)
        shown = b""
        while True:
            try:
                part = os.read(terminal, 4096)
            except OSError:
                break
            if not part:
                break
            shown += part
    os.close(terminal)
    assert process.returncode == 0
    assert b"202k/202k" in shown.replace(b"203k", b"202k")
    assert b"B/s" in shown


# what cannot be done


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda a: a + 1, ["solve"], "or pass --lam above 0"),
        (lambda a: np.where(a == a.flat[7], np.nan, a), ["solve"], "--check names the first"),
        (lambda a: np.where(a == a.flat[7], np.nan, a), ["solve", "--check"],
         "changed.npy is nan at (0, 0, 1, 2)"),
        (lambda a: a.astype("f4"), ["solve"], "Convert them to one first"),
        (lambda a: a[:6], ["solve"], "Name a folder: --out results"),
        (lambda a: a, ["solve", "--budget", "100"], "Give --budget "),
        (lambda a: a, ["solve", "--budget", "much"], '--budget "much" is no budget'),
        (lambda a: a, ["solve", "--axes", "0,7"], "--axes 0,1,2"),
        (lambda a: a, ["solve", "--spacing", "1,2"], "--spacing 1.0,2.0; give one number, or 3"),
    ],
)  # fmt: skip
def test_bad_fields_and_numbers_are_told_with_the_cure(
    store, tmp_path, change, arguments, message, capsys
):
    np.save(store / "changed.npy", change(np.load(store / "a.npy")))
    (store / "folder").mkdir()
    action, *rest = arguments
    err = error_of(
        capsys, action, f"{store}/*.npy", "--spacing", 1, "--out", store / "folder" / "x.npy",
        "--no-picture", *rest,
    )  # fmt: skip
    assert message in err
    assert list((store / "folder").iterdir()) == []


def test_a_cure_without_a_value_is_an_option_too(store, capsys):
    np.save(store / "smaller.npy", np.load(store / "a.npy")[:6])
    err = error_of(capsys, "radial", f"{store}/*.npy", "--spacing", 1)
    assert "Give --centre, in cells." in err


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_spectra_that_no_picture_shows_are_written_and_that_is_said(store, tmp_path, value, capsys):
    np.save(store / "b.npy", np.full((N, N, N, 5), value))
    table = tmp_path / "made" / "x.csv"
    table.parent.mkdir()
    call = ["spectrum", f"{store}/[ab].npy", "--spacing", SPACING, "--out", table]
    _, err = run(capsys, *call, "--quiet")
    assert err.startswith("stowplan: no picture: ")
    assert "b.npy has no shell" in err
    assert len(err.splitlines()) <= 2  # and that there is no slope, unless it is quiet
    assert [path.name for path in table.parent.iterdir()] == ["x.csv"]
    assert {Path(row["field"]).stem for row in rows_of(table)} == {"a", "b"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["solve", "a.npy"], "Name one: --out potentials.zarr"),
        (["solve", "a.npy", "--out", "x.txt"], "or a folder: x.txt/"),
        (["solve", "none.npy", "--out", "x.npy"], "there is no such file"),
        (["solve", "none*.npy", "--out", "x.npy"], "Give another pattern"),
        (["solve", "whole.npy", "--out", "x.npy"], "Convert it"),
        (["solve", "a.npy", "--out", "."], "which is read. Name another output"),
        (["solve", "a.npy", "--out", "b.npy"], "or replace it: --overwrite."),
        (["spectrum", "a.npy", "--out", "x.txt"], "Name it x.csv or x.parquet"),
        (["spectrum", "a.npy", "--out", "no/x.csv"], "there is no folder no"),
        (["spectrum", "a.npy", "--out", "there.csv"], "another output, or pass --overwrite."),
        (["spectrum", "a.npy", "--width", "0.1"], "--width "),
        (["radial", "a.npy", "--centre", "1,2"], "give 3 numbers in cells, one for each of --axes"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_or_written_is_told_with_the_cure(
    store, arguments, message, capsys, monkeypatch
):
    monkeypatch.chdir(store)
    Path("there.csv").write_text("x\n")
    np.save("whole.npy", np.ones((4, 4, 4), int))
    before = sorted(path.name for path in store.iterdir())
    assert message in error_of(capsys, *arguments, "--spacing", 1, "--no-picture")
    assert sorted(path.name for path in store.iterdir()) == before


def test_outputs_are_replaced_on_request(store, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "x.csv"
    call = ["spectrum", store / "a.npy", "--spacing", 1, "--out", path]
    run(capsys, *call)
    first = path.read_bytes()
    assert "--overwrite" in error_of(capsys, *call)
    path.unlink()
    assert "Name another picture by --picture" in error_of(capsys, *call)
    run(capsys, *call, "--overwrite")
    assert path.read_bytes() == first


def test_a_corrupt_chunk_is_named(tmp_path, capsys):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    path = tmp_path / "a.zarr"
    array = zarr.create_array(str(path), shape=(N, N, N), chunks=(6, N, N), dtype="f8")
    array[:] = np.random.default_rng(0).normal(size=(N, N, N))
    chunk = path / "c" / "1" / "0" / "0"
    chunk.write_bytes(b"broken" + chunk.read_bytes()[6:])
    err = error_of(capsys, "solve", path, "--spacing", 1, "--lam", 1, "--out", tmp_path / "x.npy",
                   "--no-picture")  # fmt: skip
    assert "chunk (1, 0, 0)" in err
    assert not (tmp_path / "x.npy").exists()


def test_another_run_in_the_folder_is_told_with_what_differs(store, tmp_path, capsys):
    call = ["solve", store / "a.npy", "--spacing", 1, "--no-picture", "--resume", tmp_path / "run"]
    run(capsys, *call, "--lam", 1, "--out", tmp_path / "made.npy")
    err = error_of(capsys, *call, "--lam", 2, "--out", tmp_path / "made.npy", "--overwrite")
    assert "lam" in err
    assert "name a new folder" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_told(store, tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    err = error_of(capsys, "spectrum", store / "a.npy", "--spacing", 1, "--resume", locked / "run")
    assert str(locked / "run") in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--spacing", "0"], ["--spacing", "-1"], ["--spacing", "1,0,1"], ["--spacing", "1mile"],
        ["--spacing", "1um,2nm"], [], ["--spacing", "1", "--axes", "x"],
        ["--spacing", "1", "--window", "3,2"], ["--spacing", "1", "--window", "3"],
        ["--spacing", "1", "--rows", "0"], ["--spacing", "1", "--width", "-1"],
        ["--spacing", "1", "--picture", "a.png", "--no-picture"],
    ],
)  # fmt: skip
def test_a_wrong_call_has_status_2(store, arguments, capsys):
    error_of(capsys, "spectrum", store / "a.npy", *arguments, status=2)


@pytest.mark.parametrize(("module", "arguments", "extra"), [
    ("matplotlib.backends.backend_agg", ["--out", "x.csv"], "pictures"),
    ("pyarrow.parquet", ["--out", "x.parquet", "--no-picture"], "arrow"),
])  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(
    store, module, arguments, extra, capsys, monkeypatch
):
    monkeypatch.chdir(store)
    monkeypatch.setitem(sys.modules, module, None)
    err = error_of(capsys, "spectrum", "a.npy", "--spacing", 1, *arguments)
    assert f"pip install 'stowplan[{extra}]'" in err


@pytest.mark.parametrize("action", ["solve", "spectrum", "radial", "tail"])
def test_the_actions_explain_themselves(action, capsys):
    assert main(["fields", "--help"]) == 0
    assert action in capsys.readouterr().out
    assert main(["fields", action, "--help"]) == 0
    assert f'stowplan fields {action} "run/*.npy" --spacing 0.1 --out ' in capsys.readouterr().out
