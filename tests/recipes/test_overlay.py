"""Overlays as users see them: frames, order, starts, degenerate molecules, screens, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.recipes import overlay
from stowplan.recipes.overlay_poses import (
    fibonacci_rotations,
    inverted,
    product,
    quaternions_of,
    rotations_of,
)

ALPHA = 0.81
SLOTS = [{"n": 14, "m": 14, "rows": 6}]  # a shape in which frameworks that compile run many tests


def molecule(n, seed, spread=2.0):
    return np.random.default_rng(seed).normal(size=(n, 3)) * [spread, 1.2, 0.7]


def turn(seed):
    """A random rotation."""
    return rotations_of(np.random.default_rng(seed).normal(size=4))


def overlap(a, b):
    """Sum over all pairs of atoms, one by one."""
    total = sum(math.exp(-0.5 * ALPHA * float(((p - q) ** 2).sum())) for p in a for q in b)
    return (math.pi / (2 * ALPHA)) ** 1.5 * total


def tanimoto(a, b):
    mutual = overlap(a, b)
    return mutual / (overlap(a, a) + overlap(b, b) - mutual)


def pool():
    return [molecule(n, n) + 10 * n for n in (6, 11, 9, 14, 3)]


PAIRS = [(0, 1), (3, 2), (4, 4), (1, 0), (2, 4)]


def test_the_score_is_that_of_the_aligned_points(framework):
    molecules = pool()
    found = overlay.align(molecules, pairs=PAIRS, starts=7, on=framework, slots=SLOTS)
    for pair, (i, j) in enumerate(PAIRS):
        moved = found.aligned[pair]
        np.testing.assert_allclose(found.score[pair], tanimoto(molecules[i], moved), rtol=1e-9)
        matrix = found.transform[pair]
        expected = molecules[j] @ matrix[:3, :3].T + matrix[:3, 3]
        np.testing.assert_allclose(moved, expected, atol=1e-9)
        np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
        assert matrix[3].tolist() == [0, 0, 0, 1]


def test_a_turned_and_moved_copy_is_found_again(framework):
    molecules = pool()
    copies = [m @ turn(k).T + 3 * k for k, m in enumerate(molecules)]
    found = overlay.align(molecules, copies, starts=5, on=framework, slots=SLOTS)
    np.testing.assert_allclose(found.score, 1, atol=1e-3)
    for k, (m, moved) in enumerate(zip(molecules, found.aligned, strict=True)):
        assert np.abs(moved - m).max() < 0.1, k
    assert found.best_start.min() >= 1  # the first start leaves the copy turned
    assert found.converged.all()


def test_the_order_of_a_pair_changes_no_score_and_inverts_the_transform():
    """Also of molecules with as many atoms, which their self-overlap puts in order."""
    molecules = [*pool(), molecule(11, 77)]
    pairs = np.array([(0, 1), (3, 2), (1, 5), (2, 4)])
    one = overlay.align(molecules, pairs=pairs, starts=9)
    other = overlay.align(molecules, pairs=pairs[:, ::-1], starts=9)
    np.testing.assert_array_equal(one.score, other.score)
    np.testing.assert_array_equal(one.best_start, other.best_start)
    both = one.transform @ other.transform
    np.testing.assert_allclose(both, np.broadcast_to(np.eye(4), both.shape), atol=1e-9)


def test_where_molecules_lie_changes_nothing():
    molecules = pool()
    near = overlay.align(molecules, pairs=PAIRS, starts=5)
    far = overlay.align([m + [66.0, -80, 120] for m in molecules], pairs=PAIRS, starts=5)
    np.testing.assert_allclose(far.score, near.score, atol=1e-9)


def test_in_single_precision_far_from_the_origin_nothing_is_lost():
    molecules = [m.astype(np.float32) for m in pool()]
    far = [(m + np.float32(64)).astype(np.float32) for m in molecules]  # exact to 4e-6
    near, away = (overlay.align(each, pairs=PAIRS, starts=5) for each in (molecules, far))
    np.testing.assert_allclose(away.score, near.score, atol=1e-3)
    np.testing.assert_allclose(away.aligned[0], near.aligned[0] + 64, atol=0.05)


def test_turning_a_molecule_changes_no_start_but_the_first():
    """Starts other than the identity turn with the principal frames."""
    a, b = molecule(12, 1), molecule(10, 2)
    starts = [overlay.align([a], [b @ turn(k).T], starts=25).score[0] for k in range(4)]
    np.testing.assert_allclose(starts, starts[0], atol=2e-4)


def test_more_starts_never_score_less():
    molecules = pool()
    scores = [
        overlay.align(molecules, pairs=PAIRS, starts=count, tolerance=None).score
        for count in (1, 2, 5)
    ]
    assert (scores[1] >= scores[0] - 1e-12).all()
    assert (scores[2] >= scores[1] - 1e-12).all()


def test_a_pair_knows_nothing_of_its_companions(framework):
    molecules = pool()
    options = {"starts": 5, "on": framework, "slots": SLOTS}
    whole = overlay.align(molecules, pairs=PAIRS, **options)
    for pair in (0, 3):
        alone = overlay.align(molecules, pairs=[PAIRS[pair]], **options)
        tolerance = 1e-9 if framework == "jax" else 0  # XLA rounds by the place in a batch
        np.testing.assert_allclose(alone.score[0], whole.score[pair], atol=tolerance)
        np.testing.assert_allclose(alone.transform[0], whole.transform[pair], atol=1e3 * tolerance)


def test_blocks_of_pairs_give_what_one_block_gives(monkeypatch):
    molecules = pool()
    whole = overlay.align(molecules, pairs=PAIRS, starts=5, slots=SLOTS)
    monkeypatch.setattr(overlay, "BLOCK", 8)  # one pair, as two have ten starts
    parts = overlay.align(molecules, pairs=PAIRS, starts=5, slots=SLOTS)
    np.testing.assert_array_equal(parts.score, whole.score)
    np.testing.assert_array_equal(parts.transform, whole.transform)
    np.testing.assert_array_equal(parts.all_steps, whole.all_steps)


def test_devices_share_the_starts():
    molecules = pool()
    one = overlay.align(molecules, pairs=PAIRS, starts=5, slots=SLOTS)
    two = overlay.align(molecules, pairs=PAIRS, starts=5, slots=SLOTS, devices=2)
    np.testing.assert_array_equal(one.score, two.score)
    assert len(two.plan.devices) == 2


def test_starts_of_ones_own_begin_where_they_say():
    """With one step the best pose is the first: turned about the centre, then moved."""
    a, b = molecule(9, 1) + 4, molecule(5, 2) - 7
    pose = np.array([0.5, 0.1, -0.3, 0.2, 11.5, 10.5, 11.0])
    expected = (b - b.mean(0)) @ rotations_of(pose[:4]).T + b.mean(0) + pose[4:]
    for poses in (pose[None], pose[None, None]):
        found = overlay.align([a], [b], starts=poses, steps=1)
        np.testing.assert_allclose(found.aligned[0], expected, atol=1e-12)
    large, small = molecule(5, 2) - 7, molecule(9, 1) + 4  # now the larger one is moved
    expected = (small - small.mean(0)) @ rotations_of(pose[:4]).T + small.mean(0) + pose[4:]
    found = overlay.align([large], [small], starts=pose[None], steps=1)
    np.testing.assert_allclose(found.aligned[0], expected, atol=1e-12)


@pytest.mark.parametrize("swap", [False, True])
def test_starts_at_atoms_put_the_centre_on_each_atom_of_the_reference(swap):
    a, b = molecule(5, 1) + 3, molecule(4, 2)
    if swap:
        a, b = b, a
    found = overlay.align([a], [b], starts="atoms", steps=1)
    centre = found.aligned[0].mean(axis=0)
    assert np.linalg.norm(a - centre, axis=1).min() < 1e-9
    assert found.all_steps[0] == 10 * len(a)
    everywhere = overlay.align([a], [b], starts="atoms")
    assert everywhere.score[0] >= overlay.align([a], [b], starts=1).score[0] - 1e-3


def test_steps_are_counted_and_limited():
    molecules = pool()
    found = overlay.align(molecules, pairs=PAIRS, starts=3, steps=30, tolerance=None)
    assert found.all_steps.tolist() == [90] * len(PAIRS)
    assert not found.converged.any()
    few = overlay.align(molecules, pairs=PAIRS, starts=3, steps=400)
    assert few.converged.all()
    assert (few.steps < 400).all()


LINE = np.array([[0.0, 0, 0], [1.5, 0, 0], [3, 0, 0], [4.5, 0, 0]])
PLANE = np.array([[0.0, 0, 0], [1.4, 0, 0], [0, 1.4, 0], [2.8, 0.3, 0], [1, 3, 0]])


@pytest.mark.parametrize("shape", [LINE[:1], LINE[:2], LINE, PLANE, np.zeros((3, 3))])
def test_atoms_on_a_point_a_line_or_a_plane_overlay_their_turned_copy(shape):
    turned = shape @ turn(3).T - 20
    found = overlay.align([shape], [turned], starts=12)
    assert found.score[0] == pytest.approx(1, abs=2e-3)
    assert not found.failed[0]
    one = overlay.align([shape], [molecule(6, 5)], starts=12)
    assert np.isfinite(one.transform).all()


def test_a_screen_ranks_as_align_does_chunk_by_chunk(framework):
    library = [molecule(n, seed) + seed for seed, n in enumerate((5, 9, 14, 2, 9, 7, 11))]
    query = library[4] @ turn(8).T
    options = {"starts": 5, "on": framework, "slots": SLOTS}
    whole = overlay.align([query] * len(library), library, **options)
    chunks = iter([library[:3], sp.Ragged.from_list(library[3:4]), [], library[4:]])
    found = overlay.screen(query, chunks, top=3, **options)
    np.testing.assert_allclose(found.scores, whole.score, atol=1e-8)
    order = np.argsort(-whole.score, kind="stable")[:3]
    assert found.index.tolist() == order.tolist()
    np.testing.assert_allclose(found.transform, whole.transform[order], atol=1e-5)
    for hit, index in zip(found.aligned, order, strict=True):
        np.testing.assert_allclose(hit, whole.aligned[int(index)], atol=1e-5)
    assert found.index[0] == 4
    everything = overlay.screen(query, library, top=100, **options)
    assert len(everything) == len(library)
    assert (np.diff(everything.score) <= 0).all()


def test_equal_hits_come_in_the_order_of_the_library():
    one, other = molecule(8, 1), molecule(6, 2)
    library = [other, one, other, one, one]
    for chunks in (library, iter([library[:2], library[2:4], library[4:]])):
        found = overlay.screen(one, chunks, top=4, starts=1)
        assert found.index.tolist() == [1, 3, 4, 0]


def test_later_chunks_with_larger_molecules_get_a_slot_more():
    small, large = [molecule(n, n) for n in (4, 5)], [molecule(30, 1), molecule(4, 2)]
    found = overlay.screen(molecule(6, 3), iter([small, large]), starts=2)
    alone = overlay.align([molecule(6, 3)], large[:1], starts=2)
    assert found.scores[2] == pytest.approx(alone.score[0], abs=1e-9)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_poses_invert_and_turns_multiply(first, second):
    p, q = (np.random.default_rng(seed).normal(size=4) for seed in (first, second))
    np.testing.assert_allclose(
        rotations_of(product(p, q)), rotations_of(p) @ rotations_of(q), atol=1e-12
    )
    back = quaternions_of(rotations_of(p))
    unit = p / np.linalg.norm(p)
    assert min(np.abs(back - unit).max(), np.abs(back + unit).max()) < 1e-12
    pose = np.concatenate([p, [1.0, -2, 3]])
    undone = inverted(pose)
    x = np.array([0.3, 0.4, -5])
    there = rotations_of(pose[:4]) @ x + pose[4:]
    np.testing.assert_allclose(rotations_of(undone[:4]) @ there + undone[4:], x, atol=1e-11)


@pytest.mark.parametrize("axis", range(3))
def test_half_turns_have_a_quaternion(axis):
    half = -np.eye(3)
    half[axis, axis] = 1
    expected = np.zeros(4)
    expected[1 + axis] = 1
    np.testing.assert_allclose(np.abs(quaternions_of(half)), expected, atol=1e-15)


def test_fibonacci_rotations_point_everywhere_evenly():
    """Each direction of space has one near: 45 points cover caps of 0.27 pi^1/2 at best."""
    for count in (1, 2, 10, 45):
        axes = rotations_of(fibonacci_rotations(count))[:, :, 0]
        np.testing.assert_allclose(np.linalg.norm(axes, axis=1), 1)
        i = np.arange(count)
        np.testing.assert_allclose(axes[:, 1], (2 * i + 1) / count - 1, atol=1e-12)
    directions = np.random.default_rng(0).normal(size=(2000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assert np.arccos(np.clip((directions @ axes.T).max(axis=1), -1, 1)).max() < 0.45


GOOD = [np.zeros((2, 3)), np.ones((3, 3))]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([np.zeros((2, 3)), np.zeros((0, 3))],), {"pairs": [(0, 1)]}, "molecule 1 has no atoms"),
        (([[[0, 0, 0]], [[0, np.nan, 0]]],), {"pairs": [(0, 1)]}, "atom 0 of molecule 1 is at"),
        (([np.zeros((2, 3)), np.zeros((2, 2))],), {"pairs": [(0, 1)]}, "molecule 1 has shape"),
        ((np.zeros((2, 3)),), {"pairs": [(0, 0)]}, "give a list of arrays"),
        (([],), {"pairs": [(0, 1)]}, "no molecules"),
        ((GOOD, GOOD[:1]), {}, "2 reference molecules, but 1 to fit"),
        ((GOOD,), {}, "give fit="),
        ((GOOD, GOOD), {"pairs": [(0, 1)]}, "leave out fit="),
        ((GOOD,), {"pairs": [(0, 2)]}, r"pair 0 is \(0, 2\); there are 2 molecules"),
        ((GOOD,), {"pairs": [0, 1]}, "pairs= is a list"),
        ((GOOD, GOOD), {"starts": 0}, "starts=0"),
        ((GOOD, GOOD), {"starts": "bonds"}, "starts='bonds'"),
        ((GOOD, GOOD), {"starts": np.zeros((1, 7))}, "its quaternion is 0"),
        ((GOOD, GOOD), {"starts": np.ones((3, 2, 7))}, "poses of 3 pairs; there are 2"),
        ((GOOD, GOOD), {"steps": 0}, "steps=0"),
        ((GOOD, GOOD), {"alpha": -1.0}, "alpha"),
        ((GOOD, GOOD), {"tolerance": -1.0}, "tolerance"),
        ((GOOD, GOOD), {"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_what_has_no_answer_is_refused(arguments, options, message):
    with pytest.raises(sp.DataError, match=message):
        overlay.align(*arguments, **options)


def test_a_screen_refuses_by_the_place_in_the_library():
    library = iter([[np.zeros((2, 3))], [np.zeros((2, 3)), np.full((2, 3), np.inf)]])
    with pytest.raises(sp.DataError, match="from molecule 1 on: atom 0 of molecule 1 is at"):
        overlay.screen(np.zeros((2, 3)), library, starts=1)
    with pytest.raises(sp.DataError, match="top=0"):
        overlay.screen(np.zeros((2, 3)), GOOD, top=0)
    with pytest.raises(sp.DataError, match="library has no molecules"):
        overlay.screen(np.zeros((2, 3)), iter([]))
