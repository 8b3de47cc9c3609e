"""Loads that are computed at once: what they give, what they take, and when there is one alone."""

import math
import threading
import time

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp
from stowplan.adapters import get_adapter
from stowplan.layout import Layout
from stowplan.runs import load_budgets, loads, pace
from stowplan.runs.load_budgets import loose_bytes
from stowplan.runs.loads import most_together
from stowplan.runs.places import Place
from stowplan.stores.arrays import open_array

ITEMS, WIDTH = 24, 64
SIZES = 200 + 100 * (np.arange(ITEMS) % 3)
BAD = 1e100


class Watch:
    """What the kernel does beside its sums, while a test looks at it."""

    def __init__(self):
        self.pause = 0.0
        self.changed = 0
        self.lock, self.inside, self.most = threading.Lock(), 0, 0

    def enter(self, threads):
        """Count threads that compute at once."""
        with self.lock:
            self.inside += threads
            self.most = max(self.most, self.inside)


watch = Watch()


@sp.kernel("(n,64)->(64)", ragged="n", fill={"x": 0})
def square_sums(x):
    """Sum squares over rows, ``(n,64)->(64)``."""
    xp = array_namespace(x)
    before = xp.sum(x * x, axis=-2)
    watch.enter(1)
    if watch.pause:
        time.sleep(watch.pause)
        watch.changed += bool(xp.any(xp.sum(x * x, axis=-2) != before))
    watch.enter(-1)
    if bool(xp.any(x == BAD)):
        raise ValueError("a bad number")
    return before


@pytest.fixture(autouse=True)
def _nobody_watches():
    yield
    watch.__init__()


@pytest.fixture
def given():
    rng = np.random.default_rng(3)
    return [rng.normal(size=(size, WIDTH)) for size in SIZES.tolist()]


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Give a function: items into one file, and a plan to compute so many loads of it at once."""

    def plan(items, together, budget="6 MiB"):
        monkeypatch.setattr(load_budgets, "most_together", lambda *_: together)
        monkeypatch.setattr(load_budgets, "MOST_READ", 1)  # each item by itself
        np.save(tmp_path / "x.npy", np.concatenate(items))
        rows = open_array(tmp_path / "x.npy", "test")
        data = {"x": sp.Ragged.from_layout(rows, Layout(SIZES[:, None]))}
        return data, sp.plan(square_sums, data, on="numpy", budget=budget, rows=1)

    return plan


def without_objects(plan):
    """The predicted peak beside what threads and the plan itself take."""
    memory = plan.memory
    return memory.peak_bytes - loose_bytes(memory.budget.bytes, memory.together, len(plan.batches))


@pytest.mark.parametrize("together", [1, 2, 3])
def test_results_are_those_of_each_item_alone(given, planned, together):
    data, plan = planned(given, together)
    assert plan.memory.together == together
    found = sp.run(square_sums, data, plan, on="numpy")
    for item, sums in zip(given, found, strict=True):
        np.testing.assert_array_equal(sums, np.sum(item * item, axis=0))


@pytest.mark.parametrize("together", [2, 3])
def test_slow_loads_are_computed_at_once_as_many_as_planned(given, planned, together):
    data, plan = planned(given, together)
    watch.pause = 0.05
    sp.run(square_sums, data, plan, on="numpy")
    assert watch.most == together


@pytest.mark.parametrize(("cores", "most"), [(1, 1), (2, 1), (3, 2), (4, 3), (8, 3)])
def test_loads_that_are_not_slow_leave_the_reader_a_core(given, planned, monkeypatch, cores, most):
    data, plan = planned(given, 3)
    monkeypatch.setattr(pace, "usable_cores", lambda: cores)
    monkeypatch.setattr(pace, "SLOWER", math.inf)  # none is
    watch.pause = 0.03
    sp.run(square_sums, data, plan, on="numpy")
    assert watch.most == most


def test_threads_follow_what_the_last_loads_took(monkeypatch):
    monkeypatch.setattr(pace, "usable_cores", lambda: 2)
    threads = pace.Pace(4)
    assert threads.at_once == 1  # nothing is known
    threads.read(time.sleep, 0.01)
    threads.compute(time.sleep, 0.05)
    assert threads.at_once == 4
    assert threads.read(lambda *, seconds: time.sleep(seconds) or "read", seconds=0.05) == "read"
    assert threads.at_once == 1


@pytest.mark.parametrize("together", [1, 2, 3])
def test_no_load_is_overwritten_while_it_is_computed(given, planned, together):
    data, plan = planned(given, together)
    watch.pause = 0.01
    sp.run(square_sums, data, plan, on="numpy")
    assert watch.changed == 0


def test_each_load_at_once_is_a_batch_and_a_buffer_more(given, planned):
    _, one = planned(given, 1)
    _, three = planned(given, 3)
    (batch,) = {*one.memory.batch_bytes} & {*three.memory.batch_bytes}
    more = without_objects(three) - without_objects(one)
    item = max(x.nbytes for x in given)
    assert 2 * (batch + item) <= more <= 1.05 * 2 * (batch + item)


def test_a_budget_without_room_for_several_takes_one(given, planned):
    _, two = planned(given, 2)
    _, one = planned(given, 1)
    most = two.memory.peak_bytes
    assert planned(given, 2, f"{6 * most // 5} B")[1].memory.together == 2
    most = without_objects(two)
    most = most * 64 // (64 - 5)  # a small budget leaves a part in 64 to each thread, and to plans
    tight = planned(given, 2, f"{most - most // 50} B")[1]
    assert tight.memory.together == 1
    assert without_objects(tight) == without_objects(one)


def test_frameworks_with_threads_of_their_own_compute_one_load_at_a_time(monkeypatch):
    torch = pytest.importorskip("torch")
    host = get_adapter("numpy")
    assert most_together(Place(get_adapter("torch"), torch.device("cpu")), np.inf) == 1
    assert 1 <= most_together(Place(host, host.devices()[0]), np.inf) <= 4
    for module in (loads, pace):
        monkeypatch.setattr(module, "usable_cores", lambda: 3)
    slow, quick = (most_together(Place(host, host.devices()[0]), factor) for factor in (3, 1.5))
    assert (slow, quick) == (3, 2)


@pytest.mark.parametrize("together", [1, 2, 3])
def test_a_load_that_fails_is_named_and_those_before_it_are_kept(
    given, planned, tmp_path, together
):
    given[13][5, 5] = BAD
    data, plan = planned(given, together)
    with pytest.raises(ValueError, match="a bad number") as caught:
        sp.run(square_sums, data, plan, on="numpy", resume=tmp_path / "run")
    number = [batch.items[0] for batch in plan.batches].index(13)
    (note,) = caught.value.__notes__
    assert f"part {number} of {ITEMS} (items 13 to 13)" in note
    assert f"{number} parts were" in note


def test_settings_of_numpy_hold_in_the_threads(given, planned):
    given[3][0, 0] = 1e200  # its square overflows
    data, plan = planned(given, 2)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        sp.run(square_sums, data, plan, on="numpy")
