"""Fields slab by slab: axes in any order, any amplitudes, within the budget, in linear time."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np
import pytest

import stowplan as sp
from stowplan.adapters.eager_memory import traced_peak
from stowplan.recipes import fields, fields_large
from stowplan.recipes.fields_job import passes_by_slabs
from stowplan.recipes.fields_rings import bins, shells

STEPS = (0.5, 1.0, 2.0)
AXES = [
    ((16, 17, 16), (2, 1, 0), "200 kB"),
    ((16, 17, 16), (1, 2, 0), "60 kB"),
    ((16, 17, 16), (-1, 0, -2), "200 kB"),
    ((14, 3, 12), (2, 0), "10 kB"),
    ((12, 14), (-1, -2), "8 kB"),
    ((3, 10, 12, 14), (3, 1, 2), "100 kB"),
    ((2, 15, 9, 3, 8), (4, 1, 2), "80 kB"),
]


def made(shape: tuple[int, ...], dtype: Any = "f8") -> np.ndarray:
    rng = np.random.default_rng(0)
    found = rng.normal(size=shape)
    if np.dtype(dtype).kind == "c":
        found = found + 1j * rng.normal(size=shape)
    return found.astype(dtype)


def squared_waves(shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """Give |k|^2 of each mode, with length 1 along other axes: the spacings go with the axes."""
    square = np.zeros((1,) * len(shape))
    for axis, step in zip(axes, STEPS, strict=False):
        along = [1] * len(shape)
        along[axis] = -1
        wave = 2 * np.pi * np.fft.fftfreq(shape[axis], step)
        square = square + (wave**2).reshape(along)
    return square


def is_large(field: np.ndarray, axes: tuple[int, ...], budget: str) -> bool:
    place = math.prod(field.shape[axis] for axis in axes) * field.itemsize
    return passes_by_slabs(place, int(budget.removesuffix(" kB")) * 1000)


@pytest.mark.parametrize("dtype", ["f8", "c16"])
@pytest.mark.parametrize(("shape", "axes", "budget"), AXES)
def test_a_spacing_goes_with_its_axis_in_any_order(shape, axes, budget, dtype):
    field = made(shape, dtype)
    assert is_large(field, axes, budget)
    found = fields.solve(field, spacing=STEPS[: len(axes)], axes=axes, lam=0.3, budget=budget)
    modes = np.fft.fftn(field, axes=axes) / (squared_waves(shape, axes) + 0.3)
    expected = np.fft.ifftn(modes, axes=axes)
    expected = expected if field.dtype.kind == "c" else expected.real
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize(("shape", "axes", "budget"), AXES)
def test_shells_and_bins_go_with_their_axes_in_any_order(shape, axes, budget):
    field = made(shape)
    how: dict[str, Any] = {"spacing": STEPS[: len(axes)], "axes": axes, "budget": budget}
    assert is_large(field, axes, budget)
    found = fields.spectrum(field, **how)[0]
    power = np.abs(np.fft.fftn(field, axes=axes, norm="ortho")) ** 2
    waves = np.sqrt(np.broadcast_to(squared_waves(shape, axes), shape))
    number = np.floor(waves / found.rings.width * (1 - 4e-7) + 0.5).astype(int)
    expected = [power[number == ring].sum() for ring in range(len(found.sums))]
    np.testing.assert_allclose(found.sums, expected, rtol=1e-12)
    radial = fields.radial(field, **how)[0]
    sums = np.zeros(len(radial.sums))
    for place in itertools.product(*map(range, shape)):
        square = 0.0
        for axis, step in zip(axes, STEPS, strict=False):
            away = abs(place[axis] - shape[axis] // 2)
            square += (min(away, shape[axis] - away) * step) ** 2
        sums[int(math.sqrt(square) / radial.rings.width * (1 - 4e-7) + 0.5)] += field[place]
    np.testing.assert_allclose(radial.sums, sums, rtol=0, atol=1e-11)


def test_a_run_goes_on_with_the_same_pairs_of_axes_and_spacings(tmp_path):
    field = made((16, 17, 16))
    how: dict[str, Any] = {"lam": 0.3, "budget": "200 kB", "resume": tmp_path / "run"}
    out = tmp_path / "o.npy"
    fields.solve(field, spacing=STEPS, axes=(2, 1, 0), out=out, **how)
    with pytest.raises(sp.PlanError, match="the numbers"):
        fields.solve(field, spacing=STEPS, axes=(0, 1, 2), out=tmp_path / "p.npy", **how)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("f4", 1e-23), ("f4", 1e-26), ("f4", 1e20), ("c8", 1e-26), ("c8", 1e20), ("f8", 1e-200),
     ("f8", 1e200), ("f8", 1e306)],
)  # fmt: skip
def test_a_mean_is_judged_by_the_size_of_the_field(dtype, scale):
    field = made((16, 16, 16), "c16" if dtype == "c8" else "f8")
    without = field - field.mean()
    how: dict[str, Any] = {"spacing": 1.0, "budget": "60 kB"}
    fields.solve((without * scale).astype(dtype), **how)
    with pytest.raises(sp.DataError, match="has the mean"):
        fields.solve(((without + 0.01) * scale).astype(dtype), **how)


def test_a_peak_in_the_last_slab_counts_for_all_of_a_field():
    field = made((32, 16, 16)) * 1e-30
    field[-1] *= 1e60
    field[-1] -= field[-1].mean()
    fields.solve(field, spacing=1.0, budget="60 kB")
    field[:-1] += 1e28
    with pytest.raises(sp.DataError, match=r"has the mean 9.6875e\+27"):
        fields.solve(field, spacing=1.0, budget="60 kB")


@pytest.mark.parametrize(
    ("shape", "axes", "place"),
    [((3, 16, 16, 16), (3, 1, 2), (2,)), ((16, 16, 16, 5), (0, 1, 2), (4,)),
     ((2, 16, 3, 16, 16), (1, 3, 4), (1, 0))],
)  # fmt: skip
def test_a_mean_at_one_place_of_the_other_axes_is_named(shape, axes, place):
    field = made(shape)
    field -= field.mean(axis=axes, keepdims=True)
    fields.solve(field, spacing=1.0, axes=axes, budget="60 kB")
    others = [axis for axis in range(len(shape)) if axis not in axes]
    index = [slice(None)] * len(shape)
    for axis, at in zip(others, place, strict=True):
        index[axis] = slice(at, at + 1)
    field[tuple(index)] += 0.25
    found = ", ".join(map(str, place))
    with pytest.raises(sp.DataError, match=rf"has the mean 0.25 at \({found},?\) of its other"):
        fields.solve(field, spacing=1.0, axes=axes, budget="60 kB")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_mean_that_is_not_finite_is_refused(value):
    field = made((16, 16, 16))
    field[3, 4, 5] = value
    with pytest.raises(sp.DataError, match="not finite"):
        fields.solve(field, spacing=1.0, budget="60 kB")


@pytest.mark.parametrize("scale", [1e-26, 1e20])
@pytest.mark.parametrize("dtype", ["f4", "c8"])
def test_power_is_summed_in_float64(dtype, scale):
    field = (made((16, 16, 16), "c16" if dtype == "c8" else "f8") * scale).astype(dtype)
    found = fields.spectrum(field, spacing=1.0, budget="60 kB")[0]
    wide = fields.spectrum(field.astype(np.result_type(dtype, "f8")), spacing=1.0, budget="1 GB")[0]
    np.testing.assert_allclose(found.sums, wide.sums, rtol=1e-5)
    total = (np.abs(field.astype(np.result_type(dtype, "f8"))) ** 2).sum()  # Parseval
    assert found.sums.sum() == pytest.approx(total, rel=1e-6, abs=0)


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize(
    ("shape", "dtype", "axes"),
    [
        ((1, 80, 80, 80), "f8", (1, 2, 3)),
        ((2, 800, 800), "f4", (1, 2)),
        ((80, 80, 80), "f8", (0, 1, 2)),
        ((80, 80, 80), "f4", (0, 1, 2)),
        ((1, 1, 400_000), "f8", (0, 1, 2)),
    ],
)  # fmt: skip
def test_a_solve_stays_within_its_budget_whichever_axis_leads(tmp_path, shape, dtype, axes, lam):
    field = made(shape)
    field = (field - field.mean(axis=axes, keepdims=True)).astype(dtype)
    np.save(tmp_path / "a.npy", field)
    budget = 16 << 20 if shape[-1] == 400_000 else 4 << 20
    how: dict[str, Any] = {"spacing": 1.0, "axes": axes, "lam": lam, "budget": budget}

    def solve() -> None:
        fields.solve(tmp_path / "a.npy", out=tmp_path / "o.npy", overwrite=True, **how)

    solve()  # imports
    assert traced_peak(solve)[0] <= budget


@pytest.mark.parametrize("dtype", ["f4", "c8", "f8", "c16"])
@pytest.mark.parametrize("function", [fields.radial, fields.spectrum])
def test_sums_of_one_field_stay_within_the_budget(tmp_path, function, dtype):
    np.save(tmp_path / "a.npy", made((100, 100, 100), dtype))
    budget = 6 << 20

    def summed() -> None:
        function(tmp_path / "a.npy", spacing=1.0, budget=budget)

    summed()
    assert traced_peak(summed)[0] <= budget


@pytest.mark.parametrize("shape", [(7, 1, 1), (40, 3, 1), (3, 40, 2), (1, 5, 30), (9, 8, 7)])
def test_rings_are_counted_as_point_by_point(shape):
    found = bins(shape, spacing=STEPS, centre=(1.0, 0.5, 0.0))
    counts, sums = np.zeros(len(found.counts), int), np.zeros(len(found.counts))
    for place in itertools.product(*map(range, shape)):
        square = 0.0
        for n, i, middle, step in zip(shape, place, (1.0, 0.5, 0.0), STEPS, strict=True):
            away = abs(i - middle) if n > 1 else 0.0
            square += (min(away, n - away) * step) ** 2
        distance = math.sqrt(square)
        ring = int(distance / found.width * (1 - 4e-7) + 0.5)
        counts[ring] += 1
        sums[ring] += distance
    assert found.counts.tolist() == counts.tolist()
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found.places, sums / counts, rtol=1e-13)


@pytest.mark.parametrize("shape", [(600_001, 1, 1), (1, 600_001, 1), (1, 2, 300_001)])
def test_rings_of_a_long_line_are_counted_in_linear_time(shape):
    begin = time.perf_counter()
    found = shells(shape, spacing=1.0)
    assert time.perf_counter() - begin < 5  # plane by plane: minutes
    assert found.counts.sum() == math.prod(shape)


def test_a_folder_to_resume_that_cannot_be_made_is_refused_as_for_small_fields(tmp_path):
    field = made((16, 16, 16))
    for budget in ("60 kB", "1 GB"):
        with pytest.raises(sp.PlanError, match=r"is no folder of a run and none can be made"):
            fields.solve(
                field, spacing=1.0, lam=1.0, out=tmp_path / "o.npy", budget=budget,
                resume=tmp_path / "no" / "rl",
            )  # fmt: skip


@pytest.mark.parametrize("sums", [fields.spectrum, fields.radial])
def test_sums_of_large_fields_go_on_where_they_were_cut_off(tmp_path, monkeypatch, sums):
    """Those of the first field are kept; the second one is summed again."""
    for number in range(2):
        values = np.random.default_rng(number).normal(size=(24, 24, 24))
        np.save(tmp_path / f"{number}.npy", values)
    how = {"spacing": 0.5, "budget": "100 kB"}
    wanted = [one.sums for one in sums(str(tmp_path / "*.npy"), **how).each]
    own, calls = fields_large._summed, []

    def cut_off(job: Any, *args: Any) -> Any:
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(job, *args)

    monkeypatch.setattr(fields_large, "_summed", cut_off)
    how["resume"] = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sums(str(tmp_path / "*.npy"), **how)
    found = [one.sums for one in sums(str(tmp_path / "*.npy"), **how).each]
    assert len(calls) == 3
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(sp.PlanError, match="the numbers differ"):
        sums(str(tmp_path / "*.npy"), **{**how, "spacing": 0.25})


def test_a_folder_that_was_made_for_outputs_goes_with_them(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((8, 8, 8)))
    np.save(tmp_path / "b.npy", np.ones((8, 8, 8)))
    with pytest.raises(sp.DataError, match="has the mean"):
        fields.solve(str(tmp_path / "?.npy"), spacing=1.0, out=tmp_path / "made")
    assert not (tmp_path / "made").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(sp.DataError, match="has the mean"):
        fields.solve(str(tmp_path / "?.npy"), spacing=1.0, out=tmp_path / "there")
    assert (tmp_path / "there").is_dir()
