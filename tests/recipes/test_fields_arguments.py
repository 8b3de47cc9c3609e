"""What the recipe of fields refuses: each error names the function, the item and the cure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import stowplan as sp
from stowplan.recipes import fields

ONES = np.ones((8, 8, 8))


@pytest.mark.parametrize("dtype", ["f2", np.longdouble, np.clongdouble])
def test_other_precisions_are_refused(dtype):
    if np.dtype(dtype).itemsize in (8, 16) and np.dtype(dtype) in (np.float64, np.complex128):
        pytest.skip("double precision here")
    for function in (fields.solve, fields.spectrum, fields.radial):
        with pytest.raises(sp.DataError, match=r"field 0 .*single or double.*astype\('"):
            function(ONES.astype(dtype), spacing=1.0)
    with pytest.raises(sp.DataError, match=r"single or double.*astype\('"):
        fields.estimate((8, 8, 8), dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_other_precisions_of_frameworks_are_refused(framework, dtype):
    module = pytest.importorskip(framework)
    module = module.numpy if framework == "jax" else module
    field = module.ones((8, 8, 8), dtype=getattr(module, dtype))
    with pytest.raises(sp.DataError, match=r"fields.solve: field 0.*Convert it"):
        fields.solve(field, spacing=1.0, lam=1.0)


def test_masked_arrays_are_refused():
    field = np.ma.masked_less(np.random.default_rng(0).normal(size=(8, 8, 8)), 0)
    for store, number in ((field, 0), ([ONES, field], 1)):
        with pytest.raises(sp.DataError, match=rf"field {number} is a masked.*\.filled\("):
            fields.spectrum(store, spacing=1.0)


def test_the_cure_of_a_mean_names_the_axes_of_the_call():
    field = np.ones((5, 8, 8, 8))
    with pytest.raises(sp.DataError, match=r"mean\(axis=\(1, 2, 3\), keepdims=True\)"):
        fields.solve(field, axes=(1, 2, 3), spacing=1.0)
    with pytest.raises(sp.DataError, match=r"mean\(axis=\(2, 0\), keepdims=True\)"):
        fields.solve(field, axes=(2, 0), spacing=1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tail_that_is_not_fitted_names_its_field_and_why(value):
    r = np.abs(np.fft.fftfreq(48, 1 / 48))
    away = np.sqrt(r[:, None, None] ** 2 + r[:, None] ** 2 + r**2) + 1
    fine = np.roll(1 / away, (24, 24, 24), (0, 1, 2))
    broken = fine.copy()
    broken[24, 24, 34] = value
    with pytest.raises(sp.DataError, match=r"^fields.tail: field 1: .*not finite.*check=True"):
        fields.tail([fine, broken], spacing=1.0)
    with pytest.raises(sp.DataError, match=r"^fields.tail: field 1: the "):
        fields.tail([fine, fine * 0], spacing=1.0)
    (one,) = fields.tail(fine, spacing=1.0, window=np.array([8, 18]))
    assert one.window == (8.0, 18.0)


@pytest.mark.parametrize("window", [(), (8,), (8, 18, 20), "ab", 8, ("a", 18)])
def test_a_window_is_two_distances(window):
    with pytest.raises(sp.DataError, match=r"fields.tail: window=.*two distances"):
        fields.tail(ONES, spacing=1.0, window=window)


@pytest.mark.parametrize("name", ["beta", "mu", "lam"])
@pytest.mark.parametrize("value", ["1", None, (1.0, 2.0), 1j])
def test_numbers_of_a_solve_are_numbers(name, value):
    with pytest.raises(sp.DataError, match=rf"fields.solve: {name}=.* is not a number"):
        fields.solve(ONES, spacing=1.0, **{name: value})


@pytest.mark.parametrize("axes", [None, 0, "012", (0.5, 1), (), (0, 1, 2, 0)])
def test_axes_are_one_to_three_whole_numbers(axes):
    for function in (fields.solve, fields.spectrum, fields.radial, fields.tail):
        with pytest.raises(sp.DataError, match=r": axes=.*one to three"):
            function(ONES, spacing=1.0, axes=axes)
    with pytest.raises(sp.DataError, match=r"fields.estimate: axes=.*one to three"):
        fields.estimate((8, 8, 8), "f8", axes=axes)


@pytest.mark.parametrize("centre", [("a", 1, 1), (1, 1), 3, "abc", (1, [2], 3), (1j, 0, 0)])
def test_a_centre_is_a_number_for_each_axis(centre):
    with pytest.raises(sp.DataError, match=r"fields.radial: centre=.*3 numbers"):
        fields.radial(ONES, spacing=1.0, centre=centre)


@pytest.mark.parametrize("function", [fields.spectrum, fields.radial])
@pytest.mark.parametrize("width", ["a", (1.0, 2.0), 1j])
def test_a_width_is_a_number(function, width):
    with pytest.raises(sp.DataError, match=f"fields.{function.__name__}: width=.* not a number"):
        function(ONES, spacing=1.0, width=width)


@pytest.mark.parametrize("spacing", [[1, [2], 3], "1", None, ("a", 1, 1), 1j])
def test_a_spacing_is_one_number_or_three(spacing):
    for function in (fields.solve, fields.spectrum, fields.radial):
        with pytest.raises(sp.DataError, match=rf"fields.{function.__name__}: spacing "):
            function(ONES, spacing=spacing)


@pytest.mark.parametrize(("shape", "count"), [(64, 1), ((64, 64.5), 1), ((64,), 1.5), ("ab", 1)])
def test_an_estimate_counts_in_whole_numbers(shape, count):
    with pytest.raises(sp.DataError, match=r"fields.estimate: fields=.*whole numbers"):
        fields.estimate(shape, "f8", fields=count)


def test_a_field_in_memory_goes_to_the_folder_of_the_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "field 0").mkdir()
    found = fields.solve(ONES, spacing=1.0, lam=2.0, out=".")
    np.testing.assert_allclose(found.read(0, 8), 0.5)
    with pytest.raises(sp.DataError, match="is read"):
        fields.solve(tmp_path / "field-0.npy", spacing=1.0, lam=2.0, out=".", overwrite=True)


@pytest.mark.parametrize("out", ["z.npy::a", "folder::a", "x.txt", "x.npz", "x.txt::a"])
def test_an_output_that_is_no_array_or_folder_is_refused(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sp.DataError, match=r"fields.solve: out="):
        fields.solve(ONES, spacing=1.0, lam=1.0, out=out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["run-0.5", "run.final", "x.old/", "plain"])
def test_names_of_folders_may_have_dots(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    fields.solve(ONES, spacing=1.0, lam=1.0, out=Path(out))
    assert (tmp_path / out / "field-0.npy").exists()


def test_a_folder_of_outputs_needs_one_that_it_lies_in(tmp_path):
    with pytest.raises(sp.DataError, match=r"no.such is no folder. Make it first"):
        fields.solve(ONES, spacing=1.0, lam=1.0, out=tmp_path / "no" / "such" / "folder")


@pytest.mark.parametrize("check", [True, False])
def test_a_refused_field_of_a_run_to_be_resumed_asks_for_another_folder(tmp_path, check):
    field = ONES.copy()
    field[1, 2, 3] = np.nan
    with pytest.raises(sp.DataError, match=r"[Mm]end .* other data.*another folder, resume="):
        fields.solve(
            field, spacing=1.0, out=tmp_path / "o.npy", resume=tmp_path / "run", check=check
        )
    with pytest.raises(sp.DataError, match=r"[Mm]end ") as refused:
        fields.solve(field, spacing=1.0, check=check)
    assert "resume=" not in str(refused.value)
