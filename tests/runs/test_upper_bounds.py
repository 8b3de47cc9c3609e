"""What is told at once of a run is never less than what is counted."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.runs import budgeting
from stowplan.runs.columns import bind
from stowplan.runs.footprint import measure_footprint
from stowplan.runs.upper_bounds import largest_batch_bytes, most_held_bytes


@sp.kernel("(n)->(n)", ragged="n")
def same(x, *, mask):
    """As many bytes out as in."""
    return x


SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=30)


def cases(kernels, sizes):
    """Kernels of every kind of dims, with columns of these sizes."""
    count, total = len(sizes), sum(sizes)
    x = sp.Ragged(np.ones(total), sizes)
    table = sp.Ragged(np.full((total, 2), -1, np.int8), sizes)
    squares = sp.Ragged(np.ones(sum(n * n for n in sizes), np.float32), [(n, n) for n in sizes])
    return [
        (same, {"x": x.map_values(np.int8)}),
        (kernels.pull, kernels.make_atoms(sizes)),
        (kernels.weigh, {"image": squares, "weights": x}),
        (kernels.length, {"vector": np.ones((count, 3), np.float32), "factor": np.ones(count)}),
        (kernels.phase, {"angle": x}),
        (kernels.near, {"charges": x.map_values(np.float32), "neighbours": table}),
        (kernels.spread, {"x": x}),
        (kernels.spectrum, {"x": x}),
    ]


@settings(max_examples=30)
@given(SIZES, st.integers(1, 3), st.one_of(st.none(), st.integers(1, 9)))
def test_no_footprint_is_larger_than_its_bound(kernels, sizes, slots, rows):
    for kernel, data in cases(kernels, sizes):
        columns = bind("test", kernel, data)
        plan = sp.plan(kernel, data, slots="exact" if kernel.exact else slots, rows=rows)
        traced = {"scale": np.ones(10**5)} if "scale" in kernel.shared else {}
        every = (tuple(True for _ in kernel.arguments), dict.fromkeys(traced, True))
        width = 1 if kernel is same else 8
        widths = (width,) * len(kernel.signature.outputs)
        largest, together = largest_batch_bytes(kernel, columns, plan, width)
        most = most_held_bytes(columns, traced, together)
        for moved in (False, True):
            for wanted in (None, every):
                found = measure_footprint(
                    kernel, columns, plan, moved=moved, wanted=wanted, traced=traced, widths=widths
                )
                assert found.held_bytes(4) <= most, kernel.name
        exact = [
            n * (i + o)
            for n, i, o in zip(plan.rows, found.row_inputs, found.row_outputs, strict=True)
        ]
        assert largest == max(exact), kernel.name


def test_a_small_set_counts_no_footprint_and_a_limit_that_is_conceivable_does(kernels, monkeypatch):
    data = kernels.make_atoms([3, 9, 4] * 20)
    counted = []
    count = budgeting.measure_footprint

    def counting(*args, **options):
        counted.append(args)
        return count(*args, **options)

    monkeypatch.setattr(budgeting, "measure_footprint", counting)
    small = sp.plan(kernels.pull, data, scale=1.0)
    assert not counted
    assert "not probed: inputs and outputs of a batch take" in str(small)
    monkeypatch.setenv("STOWPLAN_BUDGET", "1 MB")
    near = sp.plan(kernels.pull, data, scale=1.0)
    assert counted
    assert near.memory.peak_bytes <= 1e6
