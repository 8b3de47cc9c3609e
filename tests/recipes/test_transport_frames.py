"""From masks to work grids: crops, densities, canvases, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from stowplan.errors import DataError, FrameworkError, PlanError
from stowplan.recipes.transport import solve

CANVAS = (24, 36)


def disk(y, x, radius, canvas=CANVAS):
    rows, columns = np.mgrid[: canvas[0], : canvas[1]]
    return np.hypot(rows - y, columns - x) < radius


def few():
    return [disk(10, 11, 5.2), disk(9, 9, 4.0)], [disk(12, 19, 6.1), disk(12, 14, 6.0)]


def slow_depth(mask):
    """The distance of each pixel to the nearest one outside, also beyond the canvas."""
    framed = np.pad(mask, 1)
    outside = np.argwhere(~framed)
    found = np.zeros(mask.shape)
    for y, x in np.argwhere(mask):
        found[y, x] = np.sqrt(((outside - [y + 1, x + 1]) ** 2).sum(axis=1)).min()
    return found


# crops


@pytest.mark.parametrize("padding", [0, 3, 16])
def test_the_union_crop_holds_both_masks_and_the_padding_on_the_canvas(padding):
    found = solve(*few(), padding=padding)
    for pair, (source, target) in enumerate(zip(*few(), strict=True)):
        y, x = np.nonzero(source | target)
        expected = [
            max(y.min() - padding, 0), min(y.max() + 1 + padding, 24),
            max(x.min() - padding, 0), min(x.max() + 1 + padding, 36),
        ]  # fmt: skip
        assert found.boxes[pair].tolist() == expected


def test_padding_and_pixels_without_mass_change_nothing():
    expected = solve(*few(), pool=1, padding=0)
    found = solve(*few(), pool=1, padding=9)
    np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-12)
    np.testing.assert_allclose(found.primal, expected.primal, rtol=1e-12)


def test_a_fixed_crop_is_clamped_and_cuts_masks():
    crop = (4, 99, -5, 17)
    found = solve(*few(), crop=crop, pool=1)
    cut = [[mask[4:, :17] for mask in side] for side in few()]
    expected = solve(*cut, pool=1, coord_scale=1 / 36, crop=(0, 99, 0, 99))
    assert found.boxes.tolist() == [[4, 24, 0, 17]] * 2
    np.testing.assert_array_equal(found.cost, expected.cost)
    np.testing.assert_array_equal(found.created[1], expected.created[1])
    sums = [[mask.sum() for mask in side] for side in cut]
    np.testing.assert_array_equal(found.units[:, 0], np.max(sums, axis=0))


def test_lengths_scale_costs_and_velocities_as_they_should():
    plain = solve(*few(), coord_scale=1.0)
    default = solve(*few())
    np.testing.assert_allclose(default.cost * 36**2, plain.cost, rtol=1e-9)
    np.testing.assert_allclose(default.epsilon * 36**2, plain.epsilon, rtol=1e-12)
    np.testing.assert_allclose(default.mass, plain.mass, rtol=1e-9)
    scaled = solve(*few(), pixel_size=0.325)
    np.testing.assert_array_equal(scaled.cost, default.cost)
    np.testing.assert_allclose(scaled.velocity[0], 0.325 * default.velocity[0], rtol=1e-12)
    np.testing.assert_allclose(scaled.mean_velocity, 0.325 * default.mean_velocity, rtol=1e-12)


def test_the_default_epsilon_is_a_share_of_the_mean_cost():
    found = solve(*few(), pool=1, relative_epsilon=0.03)
    for pair, (source, target) in enumerate(zip(*few(), strict=True)):
        x, y = np.argwhere(source) / 36, np.argwhere(target) / 36
        mean = ((x[:, None] - y[None]) ** 2).sum(axis=2).mean()
        assert found.epsilon[pair] == pytest.approx(0.03 * mean, rel=1e-12)


# densities


@pytest.mark.parametrize(
    ("density", "weigh"),
    [
        ("uniform", lambda depth: depth > 0),
        ("boundary", lambda depth: (depth > 0) & (depth <= 4)),
        (("boundary", 2), lambda depth: (depth > 0) & (depth <= 2)),
        (("boundary", 1.5), lambda depth: (depth > 0) & (depth <= 1.5)),
        ("distance", lambda depth: depth),
    ],
)
@pytest.mark.parametrize("crop", ["union", (3, 20, 2, 30)])
@pytest.mark.parametrize("pool", [1, 3])
def test_densities_are_those_of_slow_loops(density, weigh, crop, pool):
    sources = [disk(10, 8, 9.5), disk(5, 30, 9) | disk(18, 20, 5)]  # two beyond the canvas
    targets = [disk(12, 14, 8), disk(11, 16, 10) & ~disk(11, 16, 3)]
    found = solve(sources, targets, density=density, crop=crop, pool=pool)
    for pair in range(2):
        y0, y1, x0, x1 = found.boxes[pair]
        sides = [weigh(slow_depth(side[pair])).astype(float) for side in (sources, targets)]
        parts = [side[y0:y1, x0:x1] for side in sides]
        unit = max(part.sum() for part in parts)
        assert found.units[pair] == pytest.approx([unit, unit], rel=1e-12)
        for name, part in zip(("source", "target"), parts, strict=True):
            height, width = part.shape
            framed = np.pad(part, ((0, -height % pool), (0, -width % pool)))
            for y, x in np.ndindex(found.work[name][pair].shape):
                block = framed[y * pool : (y + 1) * pool, x * pool : (x + 1) * pool]
                assert found.work[name][pair][y, x] == pytest.approx(block.sum() / unit, rel=1e-12)


def test_masks_as_given_densities_are_uniform_ones(framework, xp):
    expected = solve(*few(), pool=2, on=framework, buckets=1)
    given = [[xp.astype(xp.asarray(mask), xp.float64) for mask in side] for side in few()]
    found = solve(*given, density="given", pool=2, on=framework, buckets=1)
    np.testing.assert_array_equal(found.cost, expected.cost)
    counts = solve(*[[7 * mask.astype(int) for mask in side] for side in few()], density="given")
    np.testing.assert_allclose(counts.cost, solve(*few()).cost, rtol=1e-9)
    np.testing.assert_array_equal(counts.units, 7 * solve(*few()).units)


def test_solving_changes_no_array_that_was_given():
    given = [[mask.astype(float) for mask in side] for side in few()]
    solve(*given, density="given", pool=1, crop=(0, 24, 0, 36))
    for side, masks in zip(given, few(), strict=True):
        np.testing.assert_array_equal(side, masks)


# what is refused

EMPTY = np.zeros(CANVAS, np.bool_)
HOLED = disk(10, 11, 5).astype(float)
HOLED[3, 4] = np.nan
BELOW = -2.0 * disk(10, 11, 5)
GIVEN = {"density": "given"}


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        (None, [few()[1][0], EMPTY], {}, "the target of pair 1 is empty.*Leave the pair out"),
        ([EMPTY, EMPTY], None, {}, "the source of pair 0 is empty"),
        (None, [few()[1][0], EMPTY[:20]], {},
         r"pair 1: the source's canvas is \(24, 36\), the target's \(20, 36\).*one canvas"),
        ([few()[0][0].astype(int)] * 2, None, {},
         "the source of pair 0 is int64; a mask is bool.*mask > 0.*density=\"given\""),
        (None, [few()[1][0], few()[1][1][0]], {}, r"the target of pair 1 has shape \(36,\)"),
        ([HOLED] * 2, [HOLED > 0] * 2, GIVEN,
         r"the source of pair 0 has 1 densities .*nan at \(3, 4\)"),
        ([HOLED > 0] * 2, [HOLED > 0, BELOW], GIVEN,
         "the target of pair 1 has .* negative or not finite, first -2.0"),
        ([HOLED > 0], [1j * HOLED], GIVEN, "the target of pair 0 is complex128"),
        (None, None, {"crop": (0, 3, 0, 3)},
         "the source of pair 0 has mass 0 in its crop .*larger crop, or crop=\"union\""),
        (None, None, {"crop": (0, 24, 0, 9)}, "the target of pair 0 has mass 0 in its crop"),
        (None, None, {"crop": (30, 40, 0, 9)}, r"crop=\(30, 40, 0, 9\) holds no pixel .*pair 0"),
        (None, None, {"crop": (9, 3, 0, 9)}, "holds no pixel"),
        (None, None, {"crop": "tight"}, "crop='tight'; give \"union\" or a box"),
        (None, None, {"crop": (0, 3, 0)}, "a box is four pixels"),
        (None, None, {"crop": (0, 3.5, 0, 9)}, "a box is four pixels"),
        (None, None, {"tau": 0}, r"tau=0.*\(0, 1\]"),
        (None, None, {"tau": 1.1}, "tau=1.1; it must not be above 1"),
        (None, None, {"tau": "high"}, "tau='high'"),
        (None, None, {"tau": 1}, r"tau=1 .*pair 0 is 89 at the source and 121 .*mass=\"own\""),
        (None, None, {"epsilon": 0}, "epsilon=0.*above 0"),
        (None, None, {"epsilon": np.inf}, "epsilon=inf.*finite"),
        (None, None, {"relative_epsilon": -0.1}, "relative_epsilon=-0.1"),
        (None, None, {"epsilon": 0.1, "relative_epsilon": 0.1}, "exclude one another; leave one"),
        (None, None, {"threshold": 0}, "threshold=0"),
        (None, None, {"relaxation": 2}, "relaxation=2. .*from 1 to below 2"),
        (None, None, {"relaxation": 0.9}, "relaxation=0.9.*at least 1"),
        (None, None, {"reference": "lebesgue"}, "reference='lebesgue'; give \"product\""),
        (None, None, {"mass": "each"}, "mass='each'; give \"shared\" or \"own\""),
        (None, None, {"max_iterations": 9}, "max_iterations=9; .*max_iterations=10 or more"),
        (None, None, {"max_iterations": 20.0}, "max_iterations=20.0"),
        (None, None, {"density": "flat"}, "density='flat'; give \"uniform\""),
        (None, None, {"density": ("boundary", 0)}, r"density=\('boundary', 0\)"),
        (None, None, {"pool": 0}, "pool=0; it counts pixels, from 1"),
        (None, None, {"pool": 2.0}, "pool=2.0"),
        (None, None, {"padding": -1}, "padding=-1; it counts pixels, from 0"),
        (None, None, {"coord_scale": -1.0}, "coord_scale=-1.0.*above 0"),
        (None, None, {"pixel_size": 0}, "pixel_size=0.*above 0"),
        (few()[0][:1], None, {}, "1 sources, but 2 targets; give one target for each source"),
        (few()[0][0], few()[1][0], {}, r"an array of shape \(24, 36\); a stack .*\[mask\]"),
        ("masks.tif", None, {}, "the source is of type str; give a list.*io.masks.read"),
        (None, None, {"pairs": [(0, 1)]}, r"pairs= chooses from one stack.*pairs=\.\.\."),
    ],
)  # fmt: skip
def test_masks_and_parameters_without_an_answer_are_named(source, target, options, message):
    source = few()[0] if source is None else source
    target = few()[1] if target is None else target
    with pytest.raises(DataError, match=f"transport: .*{message}"):
        solve(source, target, **options)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (None, "there is no target.*pairs=\"consecutive\""),
        ("all", "pairs='all'; the only word it takes is \"consecutive\""),
        ([(0, 1), (1, 2)], r"pair 1 is \(1, 2\), but the stack holds masks 0 to 1"),
        ([(0, -1)], r"pair 0 is \(0, -1\)"),
        ([0, 1], r"give places of masks, \[\(0, 1\), \(1, 2\)\]"),
        ([(0, 1), (1,)], "give places of masks"),
        ([(0.0, 1.0)], "give places of masks"),
    ],
)  # fmt: skip
def test_pairs_that_a_stack_does_not_have_are_named(pairs, message):
    with pytest.raises(DataError, match=f"transport: .*{message}"):
        solve(np.stack(few()[0]), pairs=pairs)
    with pytest.raises(DataError, match="consecutive pairs need two masks, not 1"):
        solve(few()[0][:1], pairs="consecutive")


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ([(2, 3), (3, 2)],
         r"2 of 2 pairs .* Pair 0 has a work grid of \(6, 9\); the largest bucket is \(2, 3\)"),
        ([], r"buckets=\[\]; give how many .*buckets=\[\(32, 64\), \(64, 128\)\]"),
        (0, "buckets=0; give how many"),
        (True, "buckets=True"),
        ("many", "buckets='many'"),
        (2.5, "buckets=2.5"),
        ((32, 64), r"bucket 32 is no shape \(height, width\)"),
        ([(32, 64, 2)], r"bucket \(32, 64, 2\) is no shape"),
        ([("high", 64)], "bucket .*high.* is no shape"),
        ([(32, 64.5)], r"bucket \(32, 64.5\) is no shape"),
        ([(-32, 64)], r"bucket \(-32, 64\) is no shape"),
        ([{"y": 40}], "bucket {'y': 40} is no shape"),
        ([{"y": 40, "z": 40}], "bucket .*'z'.* is no shape"),
    ],
)  # fmt: skip
def test_buckets_that_hold_no_pair_or_are_no_shapes_are_named(buckets, message):
    with pytest.raises(PlanError, match=f"transport: {message}"):
        solve(*few(), buckets=buckets)


def test_frameworks_that_there_are_not_are_named():
    with pytest.raises(FrameworkError, match="on='tensorflow' is no framework; choose one of"):
        solve(*few(), on="tensorflow")
    with pytest.raises(PlanError, match="offsets='left'; allowed are"):
        solve(*few(), offsets="left")
