"""Many items in one row: laws of `pack_rows`, against first fit, brute force and lower bounds."""

from __future__ import annotations

from fractions import Fraction
from operator import le

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.planners.row_bounds import least_rows


def fits(items, most, count):
    """Whether a row holds these items."""
    totals = [sum(column) for column in zip(*items, strict=True)]
    return len(items) <= count and all(map(le, totals, most))


def first_fit_decreasing(sizes, limits):
    """Each item into the first row with room, the largest share of a limit first."""
    items = list(zip(*sizes.values(), strict=True))
    most = [limits[dim] for dim in sizes]
    count = limits.get("items", len(items) + 1)

    def share(item):
        parts = [Fraction(int(n), limit) for n, limit in zip(items[item], most, strict=True)]
        return max([*parts, Fraction(1, count)] if "items" in limits else parts)

    rows = []
    for item in sorted(range(len(items)), key=share, reverse=True):
        for row in rows:
            together = [items[other] for other in (*row, item)]
            if fits(together, most, count):
                row.append(item)
                break
        else:
            rows.append([item])
    return len(rows)


def fewest_by_brute_force(sizes, limits):
    """Fewest rows over all partitions."""
    items = list(zip(*sizes.values(), strict=True))
    most = [limits[dim] for dim in sizes]
    count = limits.get("items", len(items) + 1)

    def rest(item, rows):
        if item == len(items):
            return len(rows)
        found = [rest(item + 1, [*rows, [items[item]]])]
        for number, row in enumerate(rows):
            together = [*row, items[item]]
            if fits(together, most, count):
                found.append(rest(item + 1, [*rows[:number], together, *rows[number + 1 :]]))
        return min(found)

    return rest(0, [])


@st.composite
def problems(draw, most_items):
    """Sizes along up to three dims, limits that hold each, and perhaps a limit on items."""
    items = draw(st.integers(1, most_items))
    sizes, limits = {}, {}
    for dim in ("atoms", "pairs", "k")[: draw(st.integers(1, 3))]:
        limits[dim] = draw(st.integers(1, 30))
        column = st.lists(st.integers(0, limits[dim]), min_size=items, max_size=items)
        sizes[dim] = draw(column)
    if draw(st.booleans()):
        limits["items"] = draw(st.integers(1, 5))
    return sizes, limits


@settings(max_examples=300)
@given(problems(25))
def test_every_item_is_in_one_row_and_no_limit_is_exceeded(problem):
    sizes, limits = problem
    packing = sp.pack_rows(sizes, limits, tries=50)
    items = len(packing.row)
    assert sorted(np.concatenate(packing.rows).tolist()) == list(range(items))
    assert packing.dims == tuple(limits)
    for number, row in enumerate(packing.rows):
        assert row.tolist() == sorted(row.tolist())
        assert all(packing.row[item] == number for item in row)
        assert packing.counts[number] == len(row) > 0
        for dim, limit in limits.items():
            total = len(row) if dim == "items" else sum(sizes[dim][item] for item in row)
            assert packing.sizes[dim][number] == total <= limit
    firsts = [row[0] for row in packing.rows]
    assert firsts == sorted(firsts)  # rows are numbered by their first item


@settings(max_examples=300)
@given(problems(25))
def test_never_more_rows_than_first_fit_nor_fewer_than_the_bound(problem):
    sizes, limits = problem
    for tries in (0, 30):
        packing = sp.pack_rows(sizes, limits, tries=tries)
        assert packing.lower_bound <= len(packing) <= first_fit_decreasing(sizes, limits)


@settings(max_examples=300)
@given(problems(7))
def test_a_handful_of_items_takes_the_fewest_rows_there_are(problem):
    sizes, limits = problem
    packing = sp.pack_rows(sizes, limits, tries=0)
    fewest = fewest_by_brute_force(sizes, limits)
    assert len(packing) == fewest
    assert packing.lower_bound <= fewest
    for dim, bound in packing.bounds.items():
        assert bound <= fewest
        ones = [1] * len(packing.row)
        assert bound >= -(-sum(sizes.get(dim, ones)) // limits[dim])


@pytest.mark.parametrize(
    ("sizes", "limit", "rows"),
    [
        ([[6, 4, 4, 4, 3, 3]], 12, 2),  # first and best fit take 3
        ([[5, 7, 2, 9, 2, 3, 6, 6, 14]], 27, 2),  # first fit takes 3, best fit 2
        # best fit takes 5, as does first fit in the order of the sums
        ([[11, 3, 10, 5, 2, 3, 10, 5, 6, 6, 5], [12, 10, 11, 4, 6, 13, 6, 7, 2, 9, 3]], 22, 4),
    ],
)
def test_the_best_of_several_orders_and_rules_is_kept(sizes, limit, rows):
    named = dict(zip(("atoms", "pairs"), sizes, strict=False))
    packing = sp.pack_rows(named, dict.fromkeys(named, limit), tries=0)
    assert len(packing) == rows


@pytest.mark.parametrize(
    ("sizes", "limit", "rows"),
    [
        ([6, 6, 6], 10, 3),  # none shares: the sum asks for 2
        ([5, 5, 5, 5], 10, 2),  # half is not more than half
        ([8, 8, 3, 3, 3], 10, 3),  # k = 3: the 8s are alone, the 3s need another row
        ([7, 7, 7, 3, 3, 3], 10, 3),
        ([7, 7, 7, 4], 10, 4),
        ([5, 5, 5], 9, 3),  # an odd limit
        ([4, 4, 4], 9, 2),
        ([0, 0, 0], 10, 1),
        ([10], 10, 1),
        ([], 10, 0),
    ],
)
def test_the_lower_bound_sees_what_cannot_share_a_row(sizes, limit, rows):
    assert least_rows(np.array(sizes, np.int64), limit) == rows


def lognormal(median, sigma, seed, items=400):
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(np.log(median), sigma, items)
    return np.clip(np.round(sizes), 1, 500).astype(int)


@pytest.mark.parametrize(("median", "sigma"), [(20, 1.2), (40, 0.9), (80, 0.7), (120, 0.9)])
def test_lognormal_items_take_the_bound_or_one_row_more(median, sigma):
    for seed in range(15):
        packing = sp.pack_rows({"atoms": lognormal(median, sigma, seed)}, {"atoms": 500})
        assert len(packing) <= packing.lower_bound + 1


def test_correlated_limits_take_the_bound_or_one_row_more():
    for seed in range(15):
        atoms = lognormal(40, 0.9, seed)
        spread = np.random.default_rng(99 + seed).lognormal(np.log(14), 0.25, len(atoms))
        pairs = np.minimum(np.round(atoms * spread).astype(int), 8000)
        limits = {"atoms": 500, "pairs": 8000, "molecules": 64}
        packing = sp.pack_rows({"atoms": atoms, "pairs": pairs}, limits)
        assert len(packing) <= packing.lower_bound + 1


def test_exchanges_find_what_no_greedy_order_does():
    rng = np.random.default_rng(0)
    first = rng.integers(126, 240, 60)
    second = np.array([rng.integers(126, (500 - a) // 2 + 1) for a in first])
    sizes = {"atoms": np.concatenate([first, second, 500 - first - second])}  # 60 rows do
    greedy = sp.pack_rows(sizes, {"atoms": 500}, tries=0)
    packing = sp.pack_rows(sizes, {"atoms": 500})
    assert greedy.lower_bound == packing.lower_bound == 60
    assert len(greedy) - 60 > 2 * (len(packing) - 60)


def test_the_same_sizes_give_the_same_rows():
    sizes = {"atoms": np.random.default_rng(0).integers(100, 300, 200)}
    first, again = (sp.pack_rows(sizes, {"atoms": 500}) for _ in range(2))
    assert first.lower_bound < len(first)  # so that there was a search
    assert np.array_equal(first.row, again.row)


def test_many_items_are_packed_closely():
    sizes = {"atoms": lognormal(40, 0.9, 0, items=50_000)}
    packing = sp.pack_rows(sizes, {"atoms": 500, "molecules": 100})
    assert len(packing) <= 1.001 * packing.lower_bound
    assert packing.counts.max() <= 100


def test_items_of_size_zero_cost_a_place_among_the_items_only():
    packing = sp.pack_rows({"atoms": [0, 5, 0, 5, 0]}, {"atoms": 5})
    assert len(packing) == 2
    packing = sp.pack_rows({"atoms": [0, 0, 0]}, {"atoms": 5, "items": 2})
    assert [row.tolist() for row in packing.rows] == [[0, 1], [2]]
    packing = sp.pack_rows({"atoms": [0, 0, 0]}, {"atoms": 5})
    assert len(packing) == packing.lower_bound == 1
    assert packing.fill == {"atoms": 0.0}


def test_no_items_take_no_row():
    packing = sp.pack_rows({"atoms": []}, {"atoms": 5, "items": 2})
    assert len(packing) == packing.lower_bound == 0
    assert packing.rows == ()
    assert packing.row.shape == packing.order.shape == packing.counts.shape == (0,)
    assert packing.sizes["items"].shape == (0,)
    assert packing.fill == {"atoms": 1.0, "items": 1.0}
    assert str(packing).startswith("0 items in 0 rows; at least 0 are needed")


def test_what_counts_items_may_also_be_given_as_sizes():
    limits = {"atoms": 10, "molecules": 3}
    atoms = np.random.default_rng(2).integers(0, 6, 30)
    packing = sp.pack_rows({"atoms": atoms}, limits)
    same = sp.pack_rows({"molecules": np.ones(30, int), "atoms": atoms}, limits)
    assert np.array_equal(packing.row, same.row)
    assert packing.dims == same.dims == ("atoms", "molecules")


def test_a_packing_prints_rows_bound_and_filling():
    packing = sp.pack_rows({"atoms": [6, 6, 4, 3]}, {"atoms": 10, "items": 4})
    assert packing.fill == {"atoms": 19 / 20, "items": 4 / 8}
    assert str(packing).splitlines() == [
        "4 items in 2 rows; at least 2 are needed",
        "       limit  at least  filled",
        "atoms     10         2  95.0 %",
        "items      4         1  50.0 %",
    ]
    assert repr(packing) == "<RowPacking: 4 items in 2 rows>"


@pytest.mark.parametrize(
    ("sizes", "limits", "message"),
    [
        ({"n": [3, 12, 11]}, {"n": 10}, r"2 of 3 items .* Item 1 has n=12; a row holds n=10\. Ra"),
        ({"n": [3, 12]}, {"n": 10}, 'limits={"n": 12}, or compute such items by themselves'),
        ({"n": [3, 4], "m": [1, 9]}, {"n": 4, "m": 8}, r'Item 1 has m=9; .*{"n": 4, "m": 9}'),
        ({"n": [3], "m": [1]}, {"n": 4}, r"no limit for 'm'; limits names: n\. Give one"),
        ({"n": [3]}, {"atmos": 4}, "no limit for 'n'; limits names: atmos"),
        ({"n": [3]}, {"n": 4, "a": 2, "b": 2}, "names 'a' and 'b', which sizes does not"),
        ({"n": [3]}, {"n": 0}, r"limits\['n'\] must be at least 1, got 0"),
        ({"n": [3]}, {"n": 4.0}, r"limits\['n'\] must be an integer, got 4.0"),
        ({"n": [3]}, {"n": 4, "items": True}, r"limits\['items'\] must be an integer"),
        ({"n": [-1]}, {"n": 4}, "pack_rows: item 0 has n=-1; sizes are 0 or more"),
        ({"n": [1.5]}, {"n": 4}, r"sizes\['n'\] must be 64-bit integers"),
        ({"n": 3}, {"n": 4}, r"sizes\['n'\] must have one axis"),
        ({"n": [3], "m": [1, 2]}, {"n": 4, "m": 4}, "disagree on the number of items: n=1, m=2"),
        ({"n": [2**62, 2**62]}, {"n": 2**62}, "add up to more than a 64-bit integer counts"),
        ({}, {"n": 4}, r"sizes={} names no dim"),
        ({"n": [3]}, 500, r"limits=500 names no dim; write pack_rows\({'atoms': \[3, 5\]}"),
        ({"rows": [3]}, {"rows": 5}, "'rows' cannot name a dim"),
    ],
)  # fmt: skip
def test_what_cannot_be_packed_is_refused(sizes, limits, message):
    with pytest.raises(sp.PlanError, match=message):
        sp.pack_rows(sizes, limits)


def test_the_number_of_tries_is_checked():
    with pytest.raises(sp.PlanError, match="pack_rows: tries must be at least 0, got -1"):
        sp.pack_rows({"n": [3]}, {"n": 4}, tries=-1)
