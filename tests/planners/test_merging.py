from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.planners.merging import Merges
from stowplan.planners.sizes import Measure


@settings(max_examples=100)
@given(st.integers(1, 14), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_merging_equals_a_plain_greedy_loop(classes, dims, kinds, seed):
    rng = np.random.default_rng(seed)
    # Random large numbers, so that no two unions cost the same.
    lengths = rng.integers(1, 10**6, (classes, dims))
    counts = rng.integers(1, 1000, classes)
    groups = rng.integers(0, kinds, classes)
    merges = Merges(lengths, counts, groups, Measure.parse("abc"[:dims]))

    sets = [(int(n), row, g) for n, row, g in zip(counts, lengths, groups, strict=True)]
    work = [sum(n * row.astype(float).prod() for n, row, _ in sets)]
    left = {len(sets): sorted(row.tolist() for _, row, _ in sets)}
    while True:
        best = (np.inf, -1, -1)
        for i, j in combinations(range(len(sets)), 2):
            (n, a, g), (m, b, h) = sets[i], sets[j]
            if g == h:
                union = np.maximum(a, b).astype(float).prod()
                rise = (n + m) * union - n * a.astype(float).prod() - m * b.astype(float).prod()
                best = min(best, (rise, i, j))
        if not np.isfinite(best[0]):
            break
        (n, a, g), (m, b, _) = sets[best[1]], sets[best[2]]
        sets = [s for k, s in enumerate(sets) if k not in best[1:]]
        sets.append((n + m, np.maximum(a, b), g))
        work.append(work[-1] + best[0])
        left[len(sets)] = sorted(row.tolist() for _, row, _ in sets)

    assert merges.fewest == len(sets) == len(set(groups.tolist()))
    assert merges.work == pytest.approx(work, rel=1e-9)
    for count, rows in left.items():
        assert sorted(merges.slots(count).tolist()) == rows
