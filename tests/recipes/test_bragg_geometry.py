"""Detector, beam and crystal: where they stand, on every framework, and what is refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given
from hypothesis import strategies as st

from stowplan.errors import DataError, FrameworkError
from stowplan.io.reflections import StructureFactors
from stowplan.kernels.bragg import intensity
from stowplan.recipes.bragg_experiment import Beam, Crystal, Detector, Sources
from stowplan.recipes.bragg_geometry import (
    auto_oversample,
    kernel_arguments,
    mosaic_rotations,
    pixel_columns,
)

CUBIC = (100.0, 100.0, 100.0, 90.0, 90.0, 90.0)
TRICLINIC = (70.0, 80.0, 90.0, 75.0, 85.0, 95.0)
TABLE = StructureFactors(np.ones((5, 6, 7)), (-2, -3, -3))
SMALL = Detector((4, 6))


def shared(detector=SMALL, beam=None, crystal=None, **options):
    return kernel_arguments(detector, beam or Beam(1.0), crystal or Crystal(CUBIC), **options)


def about(axis, degrees):
    """Rotation matrix about a coordinate axis, right-handed."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return np.roll(turn, axis, axis=(0, 1))


def angle(u, v):
    return math.degrees(math.acos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))


def test_the_beam_hits_the_given_spot_at_the_given_distance():
    for detector in (
        Detector((4, 6), distance=80.0, beam_center=(0.7, -0.4)),
        Detector(
            (4, 6), distance=80.0, beam_center=(0.7, -0.4), rotation=(9, -20, 30), two_theta=40
        ),
    ):
        frame = shared(detector)
        spot = (
            frame["origin"]
            + (0.7 + 0.05) * 1e-3 * frame["slow_axis"]
            + (-0.4 + 0.05) * 1e-3 * frame["fast_axis"]
        )
        np.testing.assert_allclose(spot, [0.08 * np.sign(spot[0]), 0, 0], atol=1e-15)


def test_a_flat_detector_stands_across_the_beam():
    frame = shared(Detector((4, 6), pixel_size=0.2, distance=50.0))
    np.testing.assert_allclose(frame["fast_axis"], [0, 0, 1], atol=1e-15)
    np.testing.assert_allclose(frame["slow_axis"], [0, -1, 0], atol=1e-15)
    # the middle of nanoBragg lies half a pixel past the centre along both axes
    np.testing.assert_allclose(frame["origin"], [0.05, 3 * 0.2e-3, -4 * 0.2e-3], atol=1e-15)
    assert frame["close_distance"] == pytest.approx(0.05)
    assert frame["pixel_size"] == pytest.approx(0.2e-3)


def test_rotations_come_in_order_x_y_z_and_then_two_theta():
    frame = shared(Detector((4, 6), rotation=(10, 20, 30), two_theta=15))
    turn = about(2, -15) @ about(2, 30) @ about(1, 20) @ about(0, 10)
    np.testing.assert_allclose(frame["fast_axis"], turn @ [0, 0, 1], atol=1e-15)
    np.testing.assert_allclose(frame["slow_axis"], turn @ [0, -1, 0], atol=1e-15)
    normal = np.cross(frame["slow_axis"], frame["fast_axis"]) * -1
    assert frame["close_distance"] == pytest.approx(frame["origin"] @ turn @ [1, 0, 0])
    np.testing.assert_allclose(normal, turn @ [1, 0, 0], atol=1e-15)
    tilted = shared(Detector((4, 6), rotation=(0, 20, 30)))
    cosine = math.cos(math.radians(20)) * math.cos(math.radians(30))
    assert tilted["close_distance"] == pytest.approx(0.1 * cosine)


lengths = st.floats(3.0, 300.0)


@given(st.tuples(lengths, lengths, lengths), st.tuples(*[st.floats(60, 115)] * 3))
def test_cell_vectors_have_the_lengths_and_angles_of_the_cell(sides, angles):
    cell = (*sides, *angles)
    rows = shared(crystal=Crystal(cell, convention="exact"))["lattices"][0]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), sides, rtol=1e-12)
    for n in range(3):
        assert angle(rows[(n + 1) % 3], rows[(n + 2) % 3]) == pytest.approx(angles[n], abs=1e-9)
    assert np.linalg.det(rows) > 0
    reciprocal = np.linalg.inv(rows).T
    scale = np.abs(reciprocal).max()
    np.testing.assert_allclose(reciprocal[0, 1:], 0, atol=1e-12 * scale)  # a* along x
    assert abs(reciprocal[1, 2]) < 1e-12 * scale  # b* in the xy plane


@pytest.mark.parametrize(
    "angles", [(90, 90, 90), (90, 90, 120), (90, 90, 97.0), (97.0, 90, 90), (90, 97.0, 90)]
)
def test_the_convention_of_nanobragg_is_exact_where_two_angles_are_right(angles):
    cell = (70.0, 80.0, 90.0, *angles)
    exact, other = (
        shared(crystal=Crystal(cell, convention=word))["lattices"]
        for word in ("exact", "nanobragg")
    )
    np.testing.assert_allclose(other, exact, atol=1e-12)


def test_the_convention_of_nanobragg_bends_other_cells():
    """Its c* is too low or too high: sin gamma over sin gamma* of what it should be."""
    exact, other = (
        np.linalg.inv(shared(crystal=Crystal(TRICLINIC, convention=word))["lattices"][0]).T
        for word in ("exact", "nanobragg")
    )
    alpha, beta, gamma = np.radians(TRICLINIC[3:])
    cosine = (np.cos(alpha) * np.cos(beta) - np.cos(gamma)) / (np.sin(alpha) * np.sin(beta))
    height = np.sin(gamma) / np.sqrt(1 - cosine**2)
    slopes = [star[2, 2] / star[2, 1] for star in (other, exact)]
    assert slopes[0] / slopes[1] == pytest.approx(height, rel=1e-12)
    assert abs(height - 1) > 1e-3


def test_misset_phi_and_mosaic_turn_the_crystal_in_this_order():
    rows = shared(crystal=Crystal(TRICLINIC))["lattices"][0]
    domains = np.stack([about(0, 1.0), about(1, -2.0)])
    crystal = Crystal(
        TRICLINIC, misset=(15, 20.5, 30.25), phi=7.0, oscillation=9.0, phi_steps=3, mosaic=domains
    )
    found = shared(crystal=crystal)["lattices"]
    assert found.shape == (6, 3, 3)
    misset = about(2, 30.25) @ about(1, 20.5) @ about(0, 15)
    expected = [
        rows @ (domain @ about(2, 7.0 + 3.0 * step) @ misset).T
        for step in range(3)
        for domain in domains
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_spectrum_is_symmetric_and_its_width_is_the_dispersion():
    beam = shared(beam=Beam(2.0, dispersion=5.0, dispersion_steps=5))
    np.testing.assert_allclose(beam["wavelengths"], [1.95, 1.975, 2.0, 2.025, 2.05])
    np.testing.assert_allclose(beam["shares"], 0.2)
    np.testing.assert_allclose(beam["directions"], np.tile([1.0, 0, 0], (5, 1)))
    assert shared(beam=Beam(2.0))["wavelengths"].tolist() == [2.0]


def test_sources_are_unit_vectors_that_share_the_fluence():
    sources = Sources([[2.0, 0, 0], [3.0, 4.0, 0.0]], [1.0, 1.1], [1.0, 3.0])
    beam = shared(beam=Beam(sources=sources))
    np.testing.assert_allclose(beam["directions"], [[1, 0, 0], [0.6, 0.8, 0]])
    np.testing.assert_allclose(beam["shares"], [0.25, 0.75])
    alike = shared(beam=Beam(sources=sources[:2]))
    np.testing.assert_allclose(alike["shares"], [0.5, 0.5])


def test_statics_say_which_code_runs():
    crystal = Crystal(CUBIC, table=TABLE, shape="round")
    given = shared(
        Detector((4, 6), oversample=3, point_pixel=True), Beam(1.0, polarization=None), crystal
    )
    assert given["oversample"] == 3
    assert given["point_pixel"] is True
    assert given["polarized"] is False
    assert given["shape"] == "round"
    assert given["minima"] == (-2, -3, -3)
    assert hash(tuple(given[name] for name in ("oversample", "interpolation", "minima", "shape")))
    assert intensity.terms(given) == 9
    crystal = replace(crystal, mosaic=mosaic_rotations(1.0, 4), phi_steps=5)
    beam = Beam(1.0, dispersion=1.0, dispersion_steps=2)
    assert intensity.terms(shared(Detector((4, 6), oversample=3), beam, crystal)) == 9 * 2 * 5 * 4


@pytest.mark.parametrize(
    ("table", "cells", "word"),
    [
        (None, (5, 5, 5), "constant"),
        (None, (1, 1, 1), "constant"),
        (TABLE, (5, 5, 5), "nearest"),
        (TABLE, (3, 3, 3), "nearest"),
        (TABLE, (5, 2, 5), "tricubic"),
    ],
)
def test_automatic_interpolation_is_tricubic_where_reflections_are_broad(table, cells, word):
    crystal = Crystal(CUBIC, table=table, cells=cells)
    given = shared(crystal=crystal)
    assert given["interpolation"] == word
    assert (given["table"] is None) == (word == "constant")
    constant = replace(crystal, interpolation="constant")
    assert shared(crystal=constant)["table"] is None


def test_automatic_oversampling_takes_three_samples_per_peak():
    crystal = Crystal((100, 100, 400, 90, 90, 90), cells=(50, 20, 30))
    beam = Beam(1.0, dispersion=10.0, dispersion_steps=2)
    detector = Detector((4, 6), distance=120.0, oversample="auto")
    expected = math.ceil(3 * 12000 / (0.95 * 1200))
    assert auto_oversample(detector, beam, crystal) == expected
    assert shared(detector, beam, crystal)["oversample"] == expected
    assert auto_oversample(SMALL, Beam(6.2), Crystal(CUBIC)) == 1


def test_columns_hold_the_pixels_of_a_mask_row_after_row():
    mask = np.array([[False, True, True], [True, False, False]])
    columns = pixel_columns(Detector((2, 3)), mask)
    assert columns["slow"].tolist() == [0, 0, 1]
    assert columns["fast"].tolist() == [1, 2, 0]
    assert len(pixel_columns(Detector((7, 5)))["slow"]) == 35


def test_every_framework_gives_the_same_arguments(xp, framework):
    crystal = Crystal(
        TRICLINIC, misset=(1, 2, 3), table=TABLE, phi=3, oscillation=4, phi_steps=2,
        mosaic=mosaic_rotations(0.4, 3, seed=1),
    )  # fmt: skip
    detector = Detector((4, 6), rotation=(1, 2, 3), two_theta=4)
    plain = shared(detector, crystal=crystal)
    crystal = replace(
        crystal, cell=xp.asarray(TRICLINIC, dtype=xp.float64), phi=xp.asarray(3.0, dtype=xp.float64)
    )
    found = shared(detector, crystal=crystal)
    for name, value in plain.items():
        if isinstance(value, np.ndarray):
            assert array_namespace(found[name]) is array_namespace(crystal.cell), name
            np.testing.assert_allclose(np.asarray(found[name]), value, rtol=1e-13, atol=1e-13)
        else:
            assert found[name] == value


def test_results_are_beside_the_array_that_they_shall_be_like(xp):
    crystal = Crystal(xp.asarray(CUBIC, dtype=xp.float64), table=TABLE)
    given = shared(like=xp.zeros((), dtype=xp.float32), crystal=crystal)
    for name, value in given.items():
        if hasattr(value, "dtype"):
            assert value.dtype == xp.float32, name
    np.testing.assert_allclose(np.asarray(given["lattices"])[0], 100 * np.eye(3), atol=1e-5)


def test_two_frameworks_in_one_call_are_refused(load_framework):
    load_framework("torch")
    load_framework("jax")
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    mixed = Crystal(torch.tensor(CUBIC), misset=jax.numpy.zeros(3))
    with pytest.raises(FrameworkError, match="arrays of one framework"):
        shared(crystal=mixed)
    with pytest.raises(FrameworkError, match="arrays of one framework"):
        shared(crystal=Crystal(torch.tensor(CUBIC)), like=jax.numpy.zeros(()))


def compiled(call):
    """Programs that XLA compiles in a call."""
    import jax

    found = []

    def listen(event, seconds, **tags):
        if "backend_compile" in event:
            found.append(tags)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        call()
        return len(found)
    finally:
        found.append(None)
        jax.monitoring.unregister_event_duration_listener(listen)


def test_geometry_compiles_nothing_where_jax_follows_no_number(load_framework):
    load_framework("jax")
    import jax

    def experiment(cell, spread, wavelength, rotation, like=None):
        crystal = Crystal(
            cell, misset=(1, 2, 3), phi=4, oscillation=5, phi_steps=3,
            mosaic=mosaic_rotations(spread, 7),
        )  # fmt: skip
        return shared(Detector((4, 6), rotation=rotation), Beam(wavelength), crystal, like=like)

    like = jax.device_put(np.zeros(()))
    array_namespace(like)  # compiles two programs of its own, once
    weights = np.arange(1.0, 4.0)
    plain = (TRICLINIC, 0.3, 1.0, (1.0, 2.0, 3.0))
    arrays = tuple(jax.device_put(np.asarray(value, np.float64)) for value in plain)
    found = []
    assert compiled(lambda: found.append(experiment(*plain, like))) == 0
    assert compiled(lambda: found.append(experiment(*arrays, like))) == 0
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)

    def summed(*numbers):
        arrays = experiment(*numbers)
        return (arrays["lattices"] @ weights).sum() + (
            1e3 * (arrays["origin"] + arrays["slow_axis"]) @ weights + arrays["wavelengths"].sum()
        )

    def pulled(*numbers):
        return jax.vjp(summed, *numbers)[1](1.0)

    slopes = []
    assert compiled(lambda: slopes.append(pulled(*arrays))) <= 30
    again = tuple(jax.device_put(1.01 * np.asarray(value)) for value in arrays)
    assert compiled(lambda: pulled(*again)) == 0
    for place, slope in enumerate(slopes[0]):
        value = np.asarray(plain[place])
        for n, part in enumerate(np.eye(value.size).reshape(-1, *value.shape)):
            low, high = (
                summed(*plain[:place], value + step * part, *plain[place + 1 :])
                for step in (-1e-4, 1e-4)
            )
            assert np.ravel(slope)[n] == pytest.approx((high - low) / 2e-4, rel=1e-5, abs=1e-6)
        assert np.abs(slope).max() > 1e-3


def test_a_gradient_flows_from_single_numbers_in_a_tuple(load_framework):
    torch = load_framework("torch")
    a = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)
    angles = torch.tensor([90.0, 91.0, 92.0], dtype=torch.float64, requires_grad=True)
    given = shared(crystal=Crystal((a, 100.0, 90.0, *angles)))
    given["lattices"].sum().backward()
    assert a.grad is not None
    assert float(a.grad) == pytest.approx(1.0, rel=0.1)
    assert (angles.grad != 0).all()


def test_traced_numbers_pass_where_known_ones_are_checked(load_framework):
    load_framework("jax")
    jax = pytest.importorskip("jax")

    @jax.jit
    def lattices(cell, wavelength, rotation, spread):
        detector = Detector((4, 6), rotation=rotation)
        crystal = Crystal(cell, mosaic=mosaic_rotations(spread, 2))
        return kernel_arguments(detector, Beam(wavelength), crystal)["lattices"]

    found = lattices(jax.numpy.asarray(TRICLINIC), 1.0, jax.numpy.zeros(3), 0.0)
    plain = shared(crystal=Crystal(TRICLINIC))["lattices"]
    np.testing.assert_allclose(found, np.tile(plain, (2, 1, 1)), atol=1e-12)


def test_automatic_choices_refuse_traced_numbers(load_framework):
    load_framework("jax")
    jax = pytest.importorskip("jax")

    def sampled(wavelength):
        return auto_oversample(SMALL, Beam(wavelength), Crystal(CUBIC))

    def chosen(cells):
        return Crystal(CUBIC, cells=cells, table=TABLE).resolved_interpolation()

    with pytest.raises(DataError, match=r"traced: wavelength.*oversample=2"):
        jax.jit(sampled)(1.0)
    with pytest.raises(DataError, match=r"cells= are traced.*interpolation='nearest'"):
        jax.jit(chosen)(jax.numpy.ones(3))


def test_mosaic_domains_are_rotations_by_normal_angles_about_even_axes():
    found = mosaic_rotations(0.3, 4000, seed=7)
    np.testing.assert_array_equal(found[0], np.eye(3))
    np.testing.assert_allclose(
        found @ np.swapaxes(found, 1, 2), np.broadcast_to(np.eye(3), found.shape), atol=1e-14
    )
    axes = np.stack([found[:, 2, 1] - found[:, 1, 2], found[:, 0, 2] - found[:, 2, 0],
                     found[:, 1, 0] - found[:, 0, 1]], axis=1) / 2  # fmt: skip
    angles = np.degrees(np.arcsin(np.linalg.norm(axes, axis=1)))
    assert np.sqrt((angles**2).mean()) == pytest.approx(0.3, rel=0.05)
    assert (angles**4).mean() / (angles**2).mean() ** 2 == pytest.approx(3.0, rel=0.15)  # normal
    axes = axes[1:] / np.linalg.norm(axes[1:], axis=1, keepdims=True)
    np.testing.assert_allclose(axes.T @ axes / len(axes), np.eye(3) / 3, atol=0.03)


def test_mosaic_domains_depend_on_seed_and_spread_alone(xp):
    plain = mosaic_rotations(0.7, 5, seed=3)
    spread = xp.asarray(0.7, dtype=xp.float64)
    np.testing.assert_allclose(np.asarray(mosaic_rotations(spread, 5, seed=3)), plain, atol=1e-15)
    assert not np.allclose(mosaic_rotations(0.7, 5, seed=4), plain, atol=1e-6)
    np.testing.assert_array_equal(mosaic_rotations(0.0, 2), np.tile(np.eye(3), (2, 1, 1)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Detector((0, 5)), "shape=(0, 5); two positive integers"),
        (lambda: Detector((5,)), "shape=(5,); two positive integers"),
        (lambda: Detector((5, 5), pixel_size=0.0), "pixel_size=0.0; it must be finite and above 0"),
        (lambda: Detector((5, 5), distance=-1.0), "distance=-1.0; it must be finite and above 0"),
        (lambda: Detector((5, 5), distance=math.nan), "distance=nan"),
        (lambda: Detector((5, 5), distance="far"), "distance='far' is no number"),
        (lambda: Detector((5, 5), rotation=(1, (2, 3), 4)), "is no number or array of them"),
        (lambda: Beam(wavelength=object()), "is no number"),
        (lambda: Detector((5, 5), rotation=(1, 2)), "rotation has shape (2,); (3,) is needed"),
        (lambda: Detector((5, 5), beam_center=(1,)), "beam_center has shape (1,)"),
        (lambda: Detector((5, 5), oversample=0), "oversample=0; it must be an integer of 1"),
        (lambda: Detector((5, 5), oversample=1.5), "oversample=1.5"),
        (lambda: Detector((5, 5), two_theta=90.0), "the beam runs along the detector"),
        (lambda: Detector((5, 5), rotation=(0, 90, 0)), "the beam runs along the detector"),
        (lambda: Detector((5, 5), two_theta=130.0), "or hits its back"),
        (lambda: Beam(0.0), "wavelength=0.0; it must be finite and above 0"),
        (Beam, "exactly one of them is needed"),
        (lambda: Beam(1.0, sources=Sources([[1, 0, 0]], [1.0])), "exactly one of them is needed"),
        (lambda: Beam(1.0, fluence=0.0), "fluence=0.0"),
        (lambda: Beam(1.0, polarization=1.5), "polarization=1.5; Kahn's factor is from -1 to 1"),
        (lambda: Beam(1.0, dispersion=1.0), "dispersion=1 percent, but dispersion_steps=1"),
        (lambda: Beam(1.0, dispersion=200.0, dispersion_steps=3), "from 0 to below 200"),
        (lambda: Beam(1.0, dispersion_steps=0), "dispersion_steps=0"),
        (lambda: Beam(sources=Sources([[1, 0, 0]], [1.0, 2.0])), "directions has shape (1, 3)"),
        (lambda: Beam(sources=Sources([[0, 0, 0]], [1.0])), "none may be 0"),
        (lambda: Beam(sources=Sources([[0, 0, 1]], [1.0])), "not along the polarisation axis"),
        (lambda: Beam(sources=Sources([[1, 0, 0]], [-1.0])), "wavelengths=[-1.0]"),
        (lambda: Beam(sources=Sources([[1, 0, 0]], [1.0], [0.0])), "weights are all 0"),
        (lambda: Beam(sources=Sources([[1, 0, 0]], [1.0], [-1.0])), "weights=[-1.0]"),
        (lambda: Beam(sources=Sources([[1, 0, 0]], [1.0]), dispersion=1.0), "sources= have no"),
        (lambda: Crystal((1, 1, 1, 90, 90)), "cell has shape (5,); (6,) is needed"),
        (lambda: Crystal((0, 1, 1, 90, 90, 90)), "it must be finite and above 0"),
        (lambda: Crystal((9, 9, 9, 30, 40, 80)), "has no volume"),
        (lambda: Crystal((9, 9, 9, 120, 120, 120)), "has no volume"),
        (lambda: Crystal((9, 9, 9, 90, 90, 270)), "has no volume"),
        (lambda: Crystal(CUBIC, cells=(0, 1, 1)), "cells=[0.0, 1.0, 1.0]; it must be finite and"),
        (lambda: Crystal(CUBIC, cells=(1.5, 1, 1)), "unit cells are whole numbers"),
        (lambda: Crystal(CUBIC, interpolation="linear"), "interpolation='linear'; it must be one"),
        (lambda: Crystal(CUBIC, shape="gauss"), "shape='gauss'; it must be one of"),
        (lambda: Crystal(CUBIC, convention="mosflm"), "convention='mosflm'; it must be one of"),
        (lambda: Crystal(CUBIC, interpolation="nearest"), "needs structure factors"),
        (lambda: Crystal(CUBIC, fudge=0.0), "fudge=0.0"),
        (lambda: Crystal(CUBIC, phi_steps=0), "phi_steps=0"),
        (lambda: Crystal(CUBIC, mosaic=np.eye(3)), "mosaic has shape (3, 3)"),
        (lambda: Crystal(CUBIC, mosaic=np.zeros((0, 3, 3))), "mosaic has no domain"),
        (lambda: Crystal(CUBIC, table=(np.ones((2, 2)), (0, 0))), "the table has shape (2, 2)"),
        (lambda: Crystal(CUBIC, table=(np.ones((2, 2, 2)), (0, 0.5, 0))), "three integers"),
        (
            lambda: shared(
                crystal=Crystal(CUBIC, cells=(1, 5, 5), table=(np.ones((3, 9, 9)), (0, 0, 0)))
            ),
            "a table of (3, 9, 9) reflections is too small",
        ),
        (lambda: shared(dmin=-1.0), "dmin=-1.0; it must be finite and at least 0"),
        (lambda: mosaic_rotations(1.0, 0), "domains=0; it must be a positive integer"),
        (lambda: mosaic_rotations(-1.0, 2), "spread=-1.0"),
        (lambda: pixel_columns(SMALL, np.ones((6, 4), bool)), "shape (6, 4) and dtype bool"),
        (lambda: pixel_columns(SMALL, np.ones((4, 6))), "dtype float64"),
    ],
)  # fmt: skip
def test_what_has_no_image_is_refused_with_its_value(make, words):
    with pytest.raises(DataError, match=re.escape(words)):
        make()


def test_two_theta_may_undo_a_turn_but_not_add_to_it_beyond_a_right_angle():
    assert shared(Detector((4, 6), rotation=(0, 0, 60), two_theta=60))["close_distance"] > 0
    with pytest.raises(DataError, match="or hits its back"):
        Detector((4, 6), rotation=(0, 0, 60), two_theta=-40)


def test_numbers_of_every_framework_are_checked(xp):
    with pytest.raises(DataError, match=r"wavelength=-1\.0"):
        Beam(xp.asarray(-1.0))
    with pytest.raises(DataError, match="has no volume"):
        Crystal(xp.asarray([9.0, 9, 9, 30, 40, 80]))


def test_a_hole_in_a_table_is_named_by_its_reflection(xp):
    values = np.ones((5, 6, 7))
    values[3, 1, 6] = np.nan
    with pytest.raises(
        DataError, match=r"1 of 210 structure factors .* first that of \(1, -2, 3\)"
    ):
        Crystal(CUBIC, table=StructureFactors(xp.asarray(values), (-2, -3, -3)))
