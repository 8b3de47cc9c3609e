"""The overlay kernel against a slow loop, finite differences and torch's Adam; stops, padding."""

from __future__ import annotations

import math

import numpy as np
import pytest

import stowplan as sp
from stowplan.kernels import overlay as kernels

ALPHA = 0.81
SHARED = {"alpha": ALPHA, "least_change": -1.0, "most_steps": 1000.0, "learning_rate": 0.1}


def molecule(n, seed, spread=2.0):
    """Atoms about their centre."""
    points = np.random.default_rng(seed).normal(size=(n, 3)) * spread
    return points - points.mean(axis=0)


def overlap(a, b):
    """Sum over all pairs of atoms, one by one."""
    total = 0.0
    for p in a:
        for q in b:
            total += math.exp(-0.5 * ALPHA * sum((p - q) ** 2))
    return (math.pi / (2 * ALPHA)) ** 1.5 * total


def rotation(q):
    """Matrix of a quaternion of any length."""
    w, x, y, z = np.asarray(q) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def score(a, b, pose):
    """Tanimoto index at a pose, by the slow loop."""
    moved = b @ rotation(pose[:4]).T + pose[4:]
    mutual = overlap(a, moved)
    return mutual / (overlap(a, a) + overlap(b, b) - mutual)


def some_pairs():
    """Pairs of several sizes, the larger first, and a pose for each."""
    pairs = [(9, 5), (7, 7), (4, 1), (12, 9), (1, 1)]
    molecules = [(molecule(n, 10 * n), molecule(m, m)) for n, m in pairs]
    poses = np.random.default_rng(5).normal(size=(len(pairs), 7))
    return [a for a, _ in molecules], [b for _, b in molecules], poses


def columns(xp, references, fits, poses):
    both = np.array([overlap(a, a) + overlap(b, b) for a, b in zip(references, fits, strict=True)])
    return {
        "reference": [xp.asarray(a) for a in references],
        "fit": [xp.asarray(b) for b in fits],
        "pose": xp.asarray(poses),
        "overlaps": xp.asarray(both),
    }


def climbed(xp, data, limit=kernels.EVERY, **how):
    """What is kept after some steps, as NumPy."""
    shared = {**SHARED, **{name: how.pop(name) for name in SHARED if name in how}}
    rounds = sp.Rounds(kernels.start, kernels.finished, kernels.EVERY, kernels.KEEP)
    made = sp.plan(kernels.step, data, rounds=rounds, **{"slots": 1, "rows": 3, **how}, **shared)
    found = sp.iterate(
        kernels.step, data, made, init=kernels.start, until=kernels.finished,
        every=kernels.EVERY, limit=limit, keep=kernels.KEEP, **shared,
    )  # fmt: skip
    return {name: np.asarray(part) for name, part in found.values.items()}, found


def test_self_overlap_is_the_sum_over_all_pairs_of_atoms(xp):
    molecules = [molecule(n, n) + 40 for n in (1, 2, 9, 4)]
    found = sp.run(kernels.self_overlap, [[xp.asarray(each) for each in molecules]], alpha=ALPHA)
    expected = [overlap(each, each) for each in molecules]
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12)


def test_the_score_at_the_start_is_that_of_the_slow_loop(xp):
    references, fits, poses = some_pairs()
    found, _ = climbed(xp, columns(xp, references, fits, poses), most_steps=1.0)
    expected = [score(*each) for each in zip(references, fits, poses, strict=True)]
    np.testing.assert_allclose(found["best_score"], expected, rtol=1e-11)
    np.testing.assert_array_equal(found["best_pose"], poses)
    assert found["steps"].tolist() == [1] * len(poses)


def test_the_slope_is_that_of_finite_differences(xp):
    references, fits, poses = some_pairs()
    for a, b, pose in zip(references, fits, poses, strict=True):
        both = xp.asarray(np.array([overlap(a, a) + overlap(b, b)]))
        given = [xp.asarray(each[None]) for each in (a, b, pose)]
        state = kernels.start(*given, alpha=ALPHA)
        age = xp.zeros((1,), dtype=xp.int64)
        state = kernels.step.function(*given, both, age=age, state=state, **SHARED)
        slope = np.asarray(state["mean"])[0] / 0.1
        h = 1e-5
        expected = [
            (score(a, b, pose + step) - score(a, b, pose - step)) / (2 * h)
            for step in h * np.eye(7)
        ]
        np.testing.assert_allclose(slope, expected, rtol=1e-7, atol=1e-9)


@pytest.fixture(scope="module")
def torch_path():
    """Best scores and poses of all pairs by autograd and Adam of torch, 60 steps."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    references, fits, poses = some_pairs()
    found = []
    for a, b, pose in zip(references, fits, poses, strict=True):
        p = torch.tensor(pose, requires_grad=True)
        adam = torch.optim.Adam([p], lr=0.1, maximize=True)
        a, b = torch.tensor(a), torch.tensor(b)
        unit = (math.pi / (2 * ALPHA)) ** 1.5

        def mutual(x, y, unit=unit):
            return unit * torch.exp(-0.5 * ALPHA * torch.cdist(x, y) ** 2).sum()

        both = mutual(a, a) + mutual(b, b)
        best = (-1.0, None)
        for _ in range(60):
            adam.zero_grad()
            w, x, y, z = p[:4] / p[:4].norm()
            r = torch.stack([
                1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
                2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
                2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
            ]).reshape(3, 3)  # fmt: skip
            o = mutual(b @ r.T + p[4:], a)
            s = o / (both - o)
            if float(s.detach()) > best[0]:
                best = float(s.detach()), p.detach().numpy().copy()
            s.backward()
            adam.step()
        found.append(best)
    return found


def test_the_climb_is_that_of_torch_autograd_and_its_adam(xp, torch_path):
    references, fits, poses = some_pairs()
    found, _ = climbed(xp, columns(xp, references, fits, poses), limit=60)
    np.testing.assert_allclose(found["best_score"], [s for s, _ in torch_path], rtol=1e-7)
    # where a component has no slope, Adam makes steps of what rounding leaves: single atoms turn
    turning = [len(b) > 1 for b in fits]
    expected = np.array([pose for _, pose in torch_path])
    np.testing.assert_allclose(found["best_pose"][turning], expected[turning], atol=1e-5)


def test_a_row_stops_after_more_than_ten_steps_without_a_change(xp):
    atom, other = np.zeros((1, 3)), molecule(6, 1)
    still = np.array([1.0, 0, 0, 0, 0, 0, 0])  # at the maximum: the slope of one atom is exactly 0
    climbing = np.array([1.0, 0, 0, 0, 1.5, 0, 0])
    data = columns(xp, [atom, other], [atom, other], np.stack([still, climbing]))
    found, iterated = climbed(xp, data, limit=400, least_change=1e-5, most_steps=400.0)
    assert found["steps"][0] == kernels.PATIENCE + 2  # the first step has nothing to compare with
    assert kernels.PATIENCE + 2 < found["steps"][1] < 400
    assert iterated.converged.all()
    assert not iterated.failed.any()
    np.testing.assert_allclose(found["best_score"], 1, atol=1e-3)


def test_steps_that_are_no_whole_rounds_are_taken_as_they_are(xp):
    references, fits, poses = some_pairs()
    data = columns(xp, references, fits, poses)
    for most in (1, 19, 21, 33):
        rounds = -(-most // kernels.EVERY) * kernels.EVERY
        found, _ = climbed(xp, data, limit=rounds, most_steps=float(most))
        assert found["steps"].tolist() == [most] * len(poses)


def test_a_row_that_has_stopped_stands_still(xp):
    """However long its companions go on, in the same round and after it."""
    references, fits, poses = some_pairs()
    data = columns(xp, references, fits, poses)
    one, _ = climbed(xp, data, limit=20, most_steps=7.0)
    more, _ = climbed(xp, data, limit=200, most_steps=7.0)
    for name in kernels.KEEP:
        np.testing.assert_array_equal(one[name], more[name])


def test_padding_changes_nothing_but_rounding(xp):
    references, fits, poses = some_pairs()
    data = columns(xp, references, fits, poses)
    tight, _ = climbed(xp, data, slots="exact", rows=1)
    wide, _ = climbed(xp, data, slots=[{"n": 40, "m": 33}])
    np.testing.assert_allclose(wide["best_score"], tight["best_score"], rtol=1e-10)


def test_a_score_that_is_not_finite_fails_alone(xp):
    references, fits, poses = some_pairs()
    data = columns(xp, references, fits, poses)
    broken = np.asarray(poses).copy()
    broken[1, :4] = 0  # no rotation
    data["pose"] = xp.asarray(broken)
    with np.errstate(all="ignore"):
        found, iterated = climbed(xp, data, limit=40)
    fine, _ = climbed(xp, columns(xp, references, fits, poses), limit=40)
    assert iterated.failed.tolist() == [False, True, False, False, False]
    rest = [0, 2, 3, 4]
    np.testing.assert_allclose(found["best_score"][rest], fine["best_score"][rest], rtol=1e-10)


def test_single_precision_gives_the_same_scores(xp):
    references, fits, poses = some_pairs()
    wide, _ = climbed(xp, columns(xp, references, fits, poses), limit=100)
    data = columns(xp, references, fits, poses)
    narrow = {
        name: [xp.astype(x, xp.float32) for x in part] if isinstance(part, list)
        else xp.astype(part, xp.float32)
        for name, part in data.items()
    }  # fmt: skip
    found, _ = climbed(xp, narrow, limit=100)
    assert found["best_score"].dtype == np.float32
    np.testing.assert_allclose(found["best_score"], wide["best_score"], atol=2e-4)
