"""What stays in memory: as few loads as can be, every byte within its budget, every item there."""

from __future__ import annotations

import itertools
import math
import pickle
import time
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp

NAMES = ("device", "host", "cache")

items = st.integers(0, 8)
steps_of_items = st.lists(st.lists(items, min_size=1, max_size=3, unique=True), max_size=40)
uniform = st.integers(3, 7)


def next_use(steps, after, item):
    return next((step for step in range(after, len(steps)) if item in steps[step]), math.inf)


def belady(steps, capacity):
    """Loads, by looking through all that comes at every eviction; items of a step are together."""
    held, loads = set(), 0
    for now, step in enumerate(steps):
        for item in step:
            if item not in held:
                loads += 1
                if len(held) == capacity:
                    others = held - set(step)
                    held.remove(max(others, key=lambda each: next_use(steps, now + 1, each)))
                held.add(item)
    return loads


def least_recently_used(steps, capacity):
    held, loads = OrderedDict(), 0
    for item in itertools.chain.from_iterable(steps):
        loads += item not in held
        held[item] = None
        held.move_to_end(item)
        if len(held) > capacity:
            held.popitem(last=False)
    return loads


def fewest(steps, capacity):
    """Loads of the best of all plans: every set that may be resident after every step."""
    costs = {frozenset(): 0}
    for step in steps:
        after = {}
        for held, cost in costs.items():
            spent = cost + len(set(step) - held)
            others = held - set(step)
            room = min(capacity - len(set(step)), len(others))
            for kept in itertools.combinations(sorted(others), room):
                state = frozenset(kept) | set(step)
                after[state] = min(after.get(state, math.inf), spent)
        costs = after
    return min(costs.values())


class Slow:
    """The rule of evictions over tiers, by sorting everything at every one."""

    def __init__(self, steps, sizes, limits, start, dirty):
        self.steps, self.sizes, self.limits = steps, sizes, limits
        self.where, self.unsaved = list(start), set(dirty)
        self.last = dict.fromkeys(range(len(sizes)), -1)
        self.moves = []
        for self.now, step in enumerate(steps):
            self.done = set()
            for item in step:
                self.done.add(item)
                if self.where[item] != 0:
                    self.make_room(0, item, lambda _: True)
                    source = self.where[item]
                    self.moves.append(("make" if source < 0 else "load", item, source, 0))
                    self.where[item] = 0
            self.last |= dict.fromkeys(step, self.now)

    def farness(self, item):
        used_now = item in self.steps[self.now] and self.last[item] != self.now
        due = self.now if used_now else next_use(self.steps, self.now + 1, item)
        return due, item not in self.unsaved, -self.last[item], -item

    def make_room(self, tier, item, may_go):
        """Evict for an item, or say that what may go is not enough."""
        there = [each for each, where in enumerate(self.where) if where == tier]
        excess = sum(self.sizes[each] for each in there) + self.sizes[item] - self.limits[tier]
        going = []
        for each in sorted(there, key=self.farness, reverse=True):
            if sum(self.sizes[one] for one in going) < excess and self.sizes[each] and may_go(each):
                going.append(each)
        if sum(self.sizes[one] for one in going) < excess:
            return False
        for each in going[::-1]:
            if sum(self.sizes[one] for one in going) - self.sizes[each] >= excess:
                going.remove(each)
        for each in going:
            self.send_down(each)
        return True

    def send_down(self, item):
        source, disk = self.where[item], len(self.limits)
        useless = self.farness(item)[0] == math.inf and item not in self.unsaved
        for tier in range(source + 1, disk):
            nearer = self.farness(item)
            if not useless and self.make_room(
                tier, item, lambda each, nearer=nearer: self.farness(each) > nearer
            ):
                self.moves.append(("evict", item, source, tier))
                self.where[item] = tier
                return
        if item in self.unsaved:
            self.moves.append(("write", item, source, disk))
            self.unsaved.remove(item)
        self.moves.append(("evict", item, source, disk))
        self.where[item] = disk


@st.composite
def jobs(draw):
    """Steps, sizes, budgets that hold each step, where items begin, and what is dirty."""
    sizes = draw(st.lists(st.integers(0, 9), min_size=9, max_size=9))
    steps = draw(steps_of_items)
    tiers = draw(st.integers(1, 3))
    least = max([1, *(sum(sizes[item] for item in step) for step in steps)])
    limits = [least + draw(st.integers(0, 12))]
    limits += [draw(st.integers(1, 30)) for _ in range(tiers - 1)]
    dirty = draw(st.sets(items, max_size=4))
    start, free = [], list(limits)
    for item, size in enumerate(sizes):
        tier = draw(st.integers(0, tiers))
        if tier < tiers and size <= free[tier]:
            free[tier] -= size
        else:
            tier = -1 if item in dirty else tiers
        start.append(tier)
    return steps, sizes, limits, start, dirty


def planned(job, **options):
    steps, sizes, limits, start, dirty = job
    names = [*NAMES[: len(limits)], "disk", None]
    begin = [names[tier] for tier in start]
    return sp.keep_resident(
        steps, sizes, dict(zip(names, limits, strict=False)), start=begin, dirty=dirty, **options
    )


def moves(plan):
    names = {"prefetch": "load"}
    tiers = [*plan.tiers, None]
    return [
        (
            names.get(event.kind, event.kind),
            event.item,
            -1 if event.source is None else tiers.index(event.source),
            tiers.index(event.target),
        )
        for event in plan
    ]


@given(steps_of_items, uniform, st.integers(0, 3))
def test_one_tier_loads_as_often_as_a_slow_belady(steps, capacity, prefetch):
    plan = sp.keep_resident(steps, 5, {"device": 5 * capacity + 2}, prefetch=prefetch)
    assert plan.loads == plan.disk_loads == belady(steps, capacity)
    assert plan.moved_bytes == ({("disk", "device"): 5 * plan.loads} if steps else {})


@given(st.lists(items, max_size=150), st.integers(1, 7))
def test_items_used_one_at_a_time_load_as_often_as_a_slow_belady(trace, capacity):
    plan = sp.keep_resident(trace, 1, [capacity])
    assert plan.loads == belady([(item,) for item in trace], capacity)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.integers(0, 5), min_size=1, max_size=2, unique=True), min_size=1, max_size=12
    ),
    st.integers(2, 4),
)
def test_no_plan_of_all_loads_less(steps, capacity):
    assert sp.keep_resident(steps, 1, [capacity]).loads == fewest(steps, capacity)


@settings(deadline=None, max_examples=300)
@given(jobs(), st.integers(0, 4))
def test_every_move_over_tiers_follows_the_rule(job, prefetch):
    assert moves(planned(job, prefetch=prefetch)) == Slow(*job).moves


@given(steps_of_items, uniform, st.integers(1, 6))
def test_a_second_tier_saves_reads_of_the_disk_and_costs_the_first_none(steps, fast, slow):
    plan = sp.keep_resident(steps, 1, [fast, slow])
    assert plan.loads == belady(steps, fast)
    assert belady(steps, fast + slow) <= plan.disk_loads <= plan.loads


class Tiers:
    """What is where while a plan is carried out, from scratch."""

    def __init__(self, tiers, sizes, start, dirty):
        self.sizes = sizes
        self.held = {name: set() for name in tiers}
        for item, tier in enumerate(start):
            if tier >= 0:
                self.held[tiers[tier]].add(item)
        self.held["disk"] |= set(range(len(sizes))) - dirty
        self.sums, self.peaks, self.written = [self.taken()], self.taken(), []

    def taken(self):
        return [sum(self.sizes[item] for item in held) for held in self.held.values()]

    def carry_out(self, event):
        assert event.bytes == self.sizes[event.item]
        assert event.source is None or event.item in self.held[event.source]
        if event.kind == "write":
            self.written.append(event.item)
        if event.kind == "evict" and event.target == "disk":
            assert event.item in self.held["disk"]  # dropped, so it must be there
        self.held[event.target].add(event.item)
        self.peaks = list(map(max, self.peaks, self.taken()))  # while it moves it is on both
        if event.kind != "write" and event.source not in (None, "disk"):
            self.held[event.source].remove(event.item)
        self.sums.append(self.taken())


@settings(deadline=None, max_examples=300)
@given(jobs(), st.integers(0, 4))
def test_carried_out_every_step_finds_its_items_and_no_budget_is_passed(job, prefetch):
    steps, sizes, limits, start, dirty = job
    plan = planned(job, prefetch=prefetch)
    memory = Tiers(plan.tiers, sizes, start, dirty)
    for number, step in enumerate(steps):
        assert plan.needs(number) == step
        for event in plan.before(number):
            memory.carry_out(event)
        assert set(step) <= memory.held["device"]
        for event in plan.during(number):
            memory.carry_out(event)
            assert set(step) <= memory.held["device"]
    assert len(memory.sums) == len(plan.events) + 1
    assert len(memory.written) == len(set(memory.written)) == plan.writes
    assert set(memory.written) <= dirty
    assert all(peak <= limit for peak, limit in zip(memory.peaks, limits, strict=False))
    assert plan.resident_bytes.tolist() == memory.sums
    assert list(plan.peak_bytes.values()) == memory.peaks


@given(jobs(), st.integers(1, 4))
def test_prefetching_changes_when_and_nothing_else(job, prefetch):
    waiting, ahead = planned(job, prefetch=0), planned(job, prefetch=prefetch)
    assert (waiting.events["step"] == waiting.events["needed"]).all()
    assert waiting.prefetched == 0
    for name in ("needed", "item", "source", "target", "bytes"):
        assert (waiting.events[name] == ahead.events[name]).all()
    assert (waiting.resident_bytes == ahead.resident_bytes).all()
    assert all(event.step == event.needed for event in ahead if event.kind == "make")
    early = ahead.events["needed"] - ahead.events["step"]
    assert ((early >= 0) & (early <= prefetch)).all()


@given(jobs(), st.integers(1, 4))
def test_nothing_could_be_loaded_sooner_in_this_order(job, prefetch):
    steps = job[0]
    plan = planned(job, prefetch=prefetch)
    previous = 0
    for event in plan:
        if event.step > max(previous, event.needed - prefetch):
            leaves = event.kind in ("evict", "write") and event.source == "device"
            assert event.kind == "make" or (leaves and event.item in steps[event.step - 1])
        previous = event.step


def test_a_stream_through_two_buffers_is_loaded_ahead_but_for_the_first():
    plan = sp.keep_resident(range(9, -1, -1), 4, {"host": 8})
    assert (plan.loads, plan.prefetched) == (10, 9)
    assert [event.item for event in plan.during(0)] == [8]


def test_more_steps_ahead_fill_more_buffers():
    plan = sp.keep_resident(range(10), 1, {"host": 4}, prefetch=3)
    assert [event.item for event in plan.during(0)] == [1, 2, 3]


def test_published_loads_of_all_pairs_of_48_with_16_resident():
    row_major = list(itertools.combinations(range(48), 2))
    flat = [(item,) for pair in row_major for item in pair]
    assert least_recently_used(row_major, 16) == 1055
    assert belady(flat, 16) == sp.keep_resident(flat, 1, [16]).loads == 583
    # the two of a pair stay until both are used, which costs two loads
    assert belady(row_major, 16) == sp.keep_resident(row_major, 1, [16]).loads == 585
    tiled = sp.order_pairs(48, 16)
    loads = sp.keep_resident(tiled, 1, [16]).loads
    assert loads == belady(tiled.tolist(), 16) <= 102


def test_pairs_in_an_order_for_one_less_are_loaded_ahead():
    plan = sp.keep_resident(sp.order_pairs(48, 15), 1, [16])
    assert plan.loads <= 110
    assert plan.prefetched >= plan.loads - 2


@given(st.integers(0, 25), st.integers(2, 8), st.booleans())
def test_all_pairs_come_once_and_take_the_loads_that_are_promised(n, resident, diagonal):
    pairs = sp.order_pairs(n, resident, diagonal=diagonal)
    every = itertools.combinations_with_replacement if diagonal else itertools.combinations
    assert sorted(map(tuple, pairs.tolist())) == list(every(range(n), 2))
    block = resident - 1
    later = range(1, n // block + 1) if n > resident else ()
    promised = n + sum(max(n - number * block - 1, 0) for number in later)
    loads = sp.keep_resident(pairs, 1, [resident]).loads
    assert (n if n > 1 or diagonal else 0) <= loads <= promised
    if n > resident:
        bound = resident + math.ceil((math.comb(n, 2) - math.comb(resident, 2)) / block)
        assert bound <= loads


@settings(deadline=None)
@given(st.integers(0, 14), st.integers(0, 14), st.integers(2, 7))
def test_all_products_come_once_and_take_the_loads_that_are_promised(n, m, resident):
    pairs = sp.order_products(n, m, resident)
    expected = list(itertools.product(range(n), range(n, n + m)))
    assert sorted(map(tuple, pairs.tolist())) == expected
    loads = sp.keep_resident(pairs, 1, [resident]).loads
    if n and m:
        held, passing = (n, m) if n <= m else (m, n)
        blocks = math.ceil(held / (resident - 1))
        kept = resident - math.ceil(held / blocks)
        assert n + m <= loads <= n + m + (blocks - 1) * max(passing - kept, 0)
        if n + m > resident:
            fresh = n * m - resident**2 // 4
            assert loads >= resident + math.ceil(fresh / (resident - 1))
    else:
        assert loads == 0


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=3),
    st.integers(0, 2),
    st.integers(1, 60),
)
def test_every_window_comes_once_with_all_its_neighbours(shape, reach, resident):
    spans = [min(2 * reach + 1, length) for length in shape]
    if all(shape) and math.prod(spans) > resident:
        with pytest.raises(sp.PlanError, match=f"{resident} fit into memory"):
            sp.order_windows(shape, reach, resident)
        return
    windows = sp.order_windows(shape, reach, resident)
    places = list(np.ndindex(*shape))
    assert sorted(window[0] for window in windows) == list(range(len(places)))
    for window in windows:
        near = np.abs(np.array(places) - places[window[0]]).max(axis=1) <= reach
        assert sorted(window) == np.flatnonzero(near).tolist()


def test_windows_in_strips_share_only_their_edges():
    strips = sp.order_windows((30, 40), 1, 36)  # 3 rows of 12: strips of 10 with their edges
    loads = sp.keep_resident(strips, 1, [36]).loads
    assert loads <= 1200 + 3 * 2 * 30  # 3 cuts, two columns each
    row_major = sp.order_windows((30, 40), 1, 1200)
    assert sp.keep_resident(row_major, 1, [36]).loads > 1.5 * loads
    assert sp.keep_resident(row_major, 1, [3 * 40]).loads == 1200
    assert [window[0] for window in sp.order_windows((2, 3), 0, 1)] == [0, 3, 4, 1, 2, 5]


def test_a_large_item_goes_and_small_ones_that_need_not_stay():
    # All are used again, 2 last; 1, 2 and 0 are farther than 3, and 0 alone makes the room.
    plan = sp.keep_resident([0, 1, 2, 3, 4, 3, 0, 1, 2], [9, 1, 1, 1, 9], [12])
    dropped = [event.item for event in plan.before(4) + plan.during(3) if event.kind == "evict"]
    assert dropped == [0]


def test_what_could_not_make_room_for_one_still_makes_room_for_another():
    # 0 is used last, but its 2 bytes are no room for the 10 of 2; for the 2 bytes of 3 they are.
    plan = sp.keep_resident(
        [3, 1, 2, 1, 3, 0], [2, 8, 10, 2], [10, 10], start=["host", "host", "device", "disk"]
    )
    moved = [event for event in plan if event.kind == "evict" and event.needed <= 2]
    ways = [(event.item, event.source, event.target) for event in moved]
    assert ways[0] == (2, "device", "disk")
    assert sorted(ways[1:]) == [
        (0, "host", "disk"), (1, "device", "host"), (3, "device", "host"),
    ]  # fmt: skip


def test_clean_items_are_dropped_and_dirty_ones_written_once():
    trace = [0, 1, 2, 0, 1, 2, 0, 1, 2]
    plan = sp.keep_resident(trace, 8, [8], dirty=[1])
    assert plan.moved_bytes == {("disk", "device"): 8 * 8, ("device", "disk"): 8}
    made = [event for event in plan if event.kind == "make"]
    assert [(event.step, event.item, event.source) for event in made] == [(1, 1, None)]
    assert sp.keep_resident(trace, 8, [24], dirty=[0, 1, 2]).moved_bytes == {}


def test_items_may_begin_in_memory():
    plan = sp.keep_resident([0, 1, 2], 4, {"device": 4, "host": 8}, start=["device", "host", None])
    assert plan.resident_bytes[0].tolist() == [4, 4, 12]
    assert (plan.loads, plan.disk_loads) == (2, 1)
    assert sp.keep_resident([0, 1], 4, {"host": 8}, start="host").loads == 0


def test_no_steps_need_nothing():
    plan = sp.keep_resident([], [3, 4], {"device": "1 GiB"})
    assert (len(plan), plan.loads, plan.peak_bytes) == (0, 0, {"device": 0, "disk": 7})
    assert "0 loads" in str(plan)
    assert sp.keep_resident([(), 0], 3, [3]).loads == 1
    assert len(sp.order_pairs(0, 2)) == len(sp.order_products(0, 3, 2)) == 0
    assert sp.order_windows((0, 3), 1, 2) == []


def test_the_plan_is_frozen_and_pickled():
    plan = sp.keep_resident(sp.order_pairs(6, 3), 4, {"device": 12})
    again = pickle.loads(pickle.dumps(plan))
    assert (again.events == plan.events).all()
    assert str(again) == str(plan)
    with pytest.raises(ValueError, match="read-only"):
        plan.events["step"] = 0
    with pytest.raises(AttributeError):
        plan.tiers = ()
    with pytest.raises(sp.PlanError, match="step 15 is none of its 15"):
        plan.before(15)


def test_the_timeline_names_what_happens_and_shortens_what_is_long():
    text = str(sp.keep_resident([1, 0, 1], 1024, {"device": 1024, "host": 1024}, dirty=[1]))
    lines = text.splitlines()
    assert lines[1:4] == [
        "step 0 uses 1; first make 1",
        "step 1 uses 0; first move 1 from device to host, load 0 from disk",
        "step 2 uses 1; first drop 0 from device, load 1 from host",
    ]
    assert "2 loads (1 from disk, 0 ahead), 2 evictions, 0 writes" in lines[-1]
    assert "device -> host 1 KiB" in lines[-1]
    assert "peak: device 1 KiB of 1 KiB, host 1 KiB of 1 KiB" in lines[-1]
    written = str(sp.keep_resident([0, 1], 1, [1], dirty=[0]))
    assert "step 1 uses 1; first write 0 from device to disk, drop 0 from device" in written
    long = sp.keep_resident([tuple(range(9)), *range(9, 100)], 1, [9])
    lines = str(long).splitlines()
    assert lines[1].startswith("step 0 uses 0 1 2 3 4 5 ... (9 items); first load 0 1 2")
    assert "... 68 steps: 68 loads, 68 evictions" in lines
    assert len(lines) == 1 + 18 + 1 + 6 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accesses": [0, (1, 2)]},
         r"step 1 needs 2 items together, 12 bytes .*item 1 of 6 bytes.*device is 10 bytes"),
        ({"start": "device"}, "begin on device take 8 bytes more than its budget of 10 bytes"),
        ({"budgets": {"device": 10, "disk": 10}}, "begin on disk take 8 bytes more"),
        ({"budgets": {"device": 10, "disk": 13}, "accesses": [1, 0, 2], "dirty": [1]},
         "at step 1 item 1 leaves memory .* 6 bytes, where disk has 1 bytes left"),
        ({"budgets": {"device": "many"}}, "no number of bytes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_while_planning(options, message):
    given = {"accesses": [0, 1], "sizes": [6, 6, 6], "budgets": {"device": 10}, **options}
    with pytest.raises(sp.BudgetError, match=message):
        sp.keep_resident(**given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [6, -1, 6]}, "item 1 has -1 bytes"),
        ({"sizes": -1}, "item 0 has -1 bytes"),
        ({"sizes": [6.0, 6.0]}, "sizes must be integers"),
        ({"sizes": [[6]]}, "sizes must be integers"),
        ({"sizes": [2**62, 2**62], "budgets": [2**63]}, "64-bit"),
        ({"accesses": [0, 3]}, "item 3 is used, and sizes has 3 items"),
        ({"accesses": [0, -1]}, "an item of step 1 must be at least 0, got -1"),
        ({"accesses": [0, 0.5]}, "an item of step 1 must be an integer"),
        ({"accesses": ["01"]}, "an item of step 0 must be an integer"),
        ({"accesses": [[(0, 1)]]}, "an item of step 0 must be an integer"),
        ({"accesses": np.zeros((2, 2, 2), int)}, r"shape \(2, 2, 2\)"),
        ({"budgets": {}}, "no tier of memory"),
        ({"budgets": []}, "no tier of memory"),
        ({"budgets": "1 GiB"}, "names no tiers"),
        ({"budgets": 4096}, "names no tiers"),
        ({"budgets": [10, 10, 10]}, "3 budgets without names"),
        ({"budgets": {"disk": 10, "device": 10}}, "the disk comes last"),
        ({"prefetch": -1}, "prefetch must be at least 0"),
        ({"dirty": [3]}, "dirty names item 3 of 3 items"),
        ({"start": ["disk"]}, "start has 1 tiers, sizes 3 items"),
        ({"budgets": [0]}, "budgets: the tier device has 0: .*={'device': '1 GiB'}"),
        ({"budgets": {"device": 9, "host": 0}}, "keep_resident: budgets: the tier host has 0"),
        ({"budgets": [("device", 9), ("disk", "0 B")]}, "the tier disk has '0 B'"),
        ({"budgets": {"device": "much"}}, "tier device has 'much': .* is no number of bytes"),
        ({"start": 3}, "keep_resident: start=3; give a tier .* device, disk: start='device'"),
        ({"dirty": 0}, r"keep_resident: dirty=0; give .*: dirty=\[0, 3\]"),
        ({"accesses": 3}, r"keep_resident: accesses=3; give steps in order, .*: \[0, \(0, 3\)\]"),
        ({"accesses": np.array(3)}, r"keep_resident: accesses=array\(3\); give steps"),
        ({"accesses": [0, 2**40], "sizes": 1}, f"item {2**40}, .*sizes=1 .*unique"),
        ({"start": "tape"}, "item 0 begins on 'tape'; tiers: device, disk"),
        ({"start": ["disk", None, None], "dirty": [0]}, "item 0 begins on disk and is dirty"),
    ],
)
def test_bad_input_is_named(options, message):
    given = {"accesses": [0, 1], "sizes": [6, 6, 6], "budgets": {"device": 12}, **options}
    with pytest.raises(sp.PlanError, match=message):
        sp.keep_resident(**given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sp.order_pairs(4, 1), "order_pairs: resident .* at least 2, got 1"),
        (lambda: sp.order_pairs(-1, 2), "order_pairs: n must be at least 0"),
        (lambda: sp.order_products(2, -1, 2), "order_products: m must be at least 0"),
        (lambda: sp.order_windows((4, 4), 1, 8), "3 x 3 = 9 items, and 8 fit"),
        (lambda: sp.order_windows((4, 4), (1, 1, 1), 99), "one number for each axis"),
        (lambda: sp.order_windows((), 1, 99), "one number for each axis"),
    ],
)
def test_orders_that_cannot_be_are_refused(make, message):
    with pytest.raises(sp.PlanError, match=message):
        make()


def test_budgets_may_be_pairs():
    pairs = sp.keep_resident([0, 1, 0], 4, [("host", 4), ("disk", 99)])
    assert pairs.tiers == ("host", "disk")
    assert pairs.budgets == (4, 99)


@pytest.mark.timed
def test_a_hundred_thousand_accesses_are_planned_in_a_second_or_two():
    accesses = np.random.default_rng(0).integers(0, 10_000, 100_000)
    begin = time.process_time()
    sp.keep_resident(accesses, 1, [1000, 3000])
    assert time.process_time() - begin < 3
