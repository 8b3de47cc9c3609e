import json
import time
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan import MinibatchSampler, PlanError, choose_slots
from stowplan.planners import Costs

SIZES = {"a": np.arange(40) % 7, "b": np.arange(40) % 3}
SLOTS = [{"a": 3, "b": 2, "rows": 3}, {"a": 6, "b": 2, "rows": 2}]


def fits(sizes, slots, items):
    """Whether rows hold all items at once: augmenting paths over single rows (Kuhn 1955)."""
    rows = [slot for slot in slots for _ in range(slot["rows"])]
    owner = {}

    def place(item, seen):
        for r, row in enumerate(rows):
            if r not in seen and all(row[dim] >= column[item] for dim, column in sizes.items()):
                seen.add(r)
                if r not in owner or place(owner[r], seen):
                    owner[r] = item
                    return True
        return False

    return all(place(item, set()) for item in items)


@st.composite
def cases(draw, most_world=5):
    """Sizes, slots that hold them, and options of a sampler; slots nested or not."""
    dims = "ab"[: draw(st.integers(1, 2))]
    items = draw(st.integers(1, 40))
    row = st.lists(st.integers(0, 4), min_size=items, max_size=items)
    sizes = {d: np.array(draw(row)) for d in dims}
    if draw(st.booleans()):
        slots = choose_slots(
            sizes,
            minibatch=draw(st.integers(1, 12)),
            overflow=draw(st.sampled_from(["carry", "error"])),
            costs=Costs(1.0, 0.1),
        )
    else:
        slot = st.fixed_dictionaries(
            {d: st.integers(1, 4) for d in dims} | {"rows": st.integers(1, 4)}
        )
        slots = draw(st.lists(slot, max_size=4))
        slots.append(dict.fromkeys(dims, 4) | {"rows": draw(st.integers(1, 4))})
    how = {
        "seed": draw(st.integers(0, 9)),
        "epoch": draw(st.integers(0, 9)),
        "world": draw(st.integers(1, min(items, most_world))),
        "shuffle": draw(st.booleans()),
    }
    return sizes, slots, how


def ranks_of(sizes, slots, how, **more):
    """The epoch of every rank, as lists of minibatches."""
    how = how | more
    return [list(MinibatchSampler(sizes, slots, rank=rank, **how)) for rank in range(how["world"])]


@settings(max_examples=150)
@given(cases())
def test_every_item_comes_once_in_an_epoch_over_all_ranks(case):
    sizes, slots, how = case
    for epoch in (how["epoch"], how["epoch"] + 1):
        ranks = ranks_of(sizes, slots, how, epoch=epoch)
        seen = sorted(chain(*chain(*ranks)))
        assert seen == list(range(len(sizes["a"])))


@settings(max_examples=150)
@given(cases(), st.booleans())
def test_every_rank_has_as_many_steps_and_says_so(case, drop_last):
    sizes, slots, how = case
    try:
        ranks = ranks_of(sizes, slots, how, drop_last=drop_last)
    except PlanError as error:
        assert drop_last and "drop_last" in str(error)  # noqa: PT017, PT018
        return
    assert len({len(minibatches) for minibatches in ranks}) == 1
    assert len(MinibatchSampler(sizes, slots, drop_last=drop_last, **how)) == len(ranks[0])


@settings(max_examples=150)
@given(cases())
def test_every_minibatch_fits_and_is_no_larger_than_asked(case):
    sizes, slots, how = case
    asked = getattr(slots, "minibatch", sum(slot["rows"] for slot in slots))
    for items in chain(*ranks_of(sizes, slots, how)):
        assert len(items) <= asked
        assert fits(sizes, slots, items)


@settings(max_examples=150)
@given(cases())
def test_no_rank_gets_nothing_unless_every_other_has_one_item_in_each_step(case):
    sizes, slots, how = case
    lengths = [len(items) for items in chain(*ranks_of(sizes, slots, how))]
    assert min(lengths) > 0 or max(lengths) == 1


@settings(max_examples=100)
@given(cases(), st.data())
def test_a_run_resumed_at_any_step_equals_one_that_never_stopped(case, data):
    sizes, slots, how = case
    rank = data.draw(st.integers(0, how["world"] - 1))
    sampler = MinibatchSampler(sizes, slots, rank=rank, **how)
    steps = len(sampler)
    whole = [[*sampler], [*sampler]]  # two epochs
    stop = data.draw(st.integers(0, steps))
    first = MinibatchSampler(sizes, slots, rank=(rank + 1) % how["world"], **how)  # any rank
    walk = iter(first)
    for _ in range(stop):
        next(walk)
    state = json.loads(json.dumps(first.state_dict()))
    again = MinibatchSampler(sizes, slots, rank=rank, **how | {"epoch": 77})
    again.load_state_dict(state)
    assert (again.epoch, again.step) == (how["epoch"], stop)
    assert [*again] == whole[0][stop:]
    assert (again.epoch, again.step) == (how["epoch"] + 1, 0)
    assert [*again] == whole[1]


def test_a_state_is_the_same_on_every_rank_and_counts_what_was_really_consumed():
    states = []
    for rank in range(3):
        sampler = MinibatchSampler(SIZES, SLOTS, rank=rank, world=3)
        walk = iter(sampler)
        next(walk)
        states.append(sampler.state_dict())
        next(walk)  # a worker runs ahead
        states.append(sampler.state_dict(step=1))
        assert sampler.state_dict()["step"] == 2
        list(walk)  # even into the next epoch
        states.append(sampler.state_dict(step=1, epoch=0))
    assert all(state == states[0] for state in states)


@settings(max_examples=60)
@given(cases())
def test_plain_loops_go_on_through_the_epochs(case):
    sizes, slots, how = case
    sampler = MinibatchSampler(sizes, slots, **how)
    for epoch in range(how["epoch"], how["epoch"] + 3):
        assert sampler.epoch == epoch
        assert [*sampler] == [*MinibatchSampler(sizes, slots, **how | {"epoch": epoch})]
        assert sampler.step == 0


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(**how):
        return [*MinibatchSampler(SIZES, SLOTS, **how)]

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    others = [order(seed=s, epoch=e) for s in range(4) for e in range(4)]
    assert len({str(other) for other in others}) == 16


def test_items_are_shuffled_all_over_the_set():
    sizes = {"a": np.ones(1000, int)}
    firsts = [
        next(iter(MinibatchSampler(sizes, [{"a": 1, "rows": 50}], seed=s))) for s in range(40)
    ]
    drawn = np.concatenate(firsts)
    assert abs(drawn.mean() - 499.5) < 4 * 288.7 / np.sqrt(2000)
    assert np.unique(drawn).size > 800


@pytest.mark.parametrize("overflow", ["carry", "error"])
def test_without_overflow_minibatches_are_parts_of_the_order(overflow):
    sizes = {"a": np.tile([1, 5], 50)}
    slots = choose_slots(sizes, minibatch=10, overflow=overflow, work="a * 1e6")
    plain = [list(range(start, min(start + 10, 100))) for start in range(0, 100, 10)]
    assert [*MinibatchSampler(sizes, slots, shuffle=False)] == plain


def test_what_finds_no_row_comes_first_in_the_next_minibatch():
    sizes = {"a": [9, 9, 1, 9, 1, 1, 1, 1]}
    slots = [{"a": 1, "rows": 2}, {"a": 9, "rows": 1}]
    drawn = [*MinibatchSampler(sizes, slots, shuffle=False)]
    assert drawn == [[0, 2, 4], [1, 5, 6], [3, 7]]


def test_no_more_items_wait_than_a_minibatch_has():
    sizes = {"a": [9] * 10 + [1] * 10}
    slots = [{"a": 1, "rows": 3}, {"a": 9, "rows": 1}]
    drawn = [*MinibatchSampler(sizes, slots, shuffle=False)]
    # Four of the large wait, so that no small one is drawn before six large ones have gone.
    assert [len(items) for items in drawn[:7]] == [1] * 6 + [4]
    assert sorted(chain(*drawn)) == list(range(20))
    assert [item for item in chain(*drawn) if item < 10] == list(range(10))  # first come first


def test_most_minibatches_have_as_many_items_as_asked():
    rng = np.random.default_rng(0)
    sizes = {"a": rng.lognormal(3, 1, 4000).astype(int) + 1}
    slots = choose_slots(sizes, 4, minibatch=32, work="a * a")
    lengths = [len(items) for items in MinibatchSampler(sizes, slots)]
    assert np.mean(np.array(lengths) == 32) > 0.7
    assert len(lengths) < 1.1 * 4000 / 32


@settings(max_examples=150)
@given(cases())
def test_with_drop_last_only_minibatches_made_short_by_the_end_are_missing(case):
    sizes, slots, how = case
    asked = getattr(slots, "minibatch", sum(slot["rows"] for slot in slots))
    try:
        ranks = ranks_of(sizes, slots, how, drop_last=True)
    except PlanError:
        assert len(sizes["a"]) < (how["world"] + 2) * asked
        return
    items = list(chain(*chain(*ranks)))
    assert len(set(items)) == len(items)
    assert len(sizes["a"]) - len(items) < (how["world"] + 1) * asked  # at most so many are left
    alone = ranks_of(sizes, slots, how, world=1)[0]
    kept = [minibatch for step in zip(*ranks, strict=True) for minibatch in step]
    assert all(minibatch in alone for minibatch in kept)  # whole ones, none halved
    if how["world"] == 1:
        missing = [minibatch for minibatch in alone if minibatch not in kept]
        assert all(len(minibatch) < asked for minibatch in missing)
        assert all(len(m) == asked for m in kept[alone.index((missing or [alone[-1]])[0]) :])


def test_drop_last_keeps_full_minibatches_and_says_where_none_is_left():
    sizes, slots = {"a": [1] * 64}, [{"a": 1, "rows": 32}]
    assert len(MinibatchSampler(sizes, slots, world=2, drop_last=True)) == 1
    assert len(MinibatchSampler({"a": [1] * 99}, slots, world=3, drop_last=True)) == 1
    assert len(MinibatchSampler({"a": [1] * 99}, slots, world=2, drop_last=True)) == 1
    few = MinibatchSampler({"a": [1] * 40}, slots, world=2, drop_last=True)
    with pytest.raises(PlanError, match=r"no minibatch of 32 items for each of 2 ranks.*=False"):
        len(few)


def test_the_largest_minibatches_are_halved_where_ranks_do_not_come_out_even():
    sizes, slots = {"a": [1] * 10}, [{"a": 1, "rows": 4}]
    ranks = ranks_of(sizes, slots, {"world": 5, "shuffle": False})
    assert ranks == [[[0, 1]], [[4, 5]], [[8, 9]], [[2, 3]], [[6, 7]]]
    ranks = ranks_of({"a": [1] * 4}, [{"a": 1, "rows": 1}], {"world": 3, "shuffle": False})
    assert ranks == [[[0], [3]], [[1], []], [[2], []]]


def test_a_loader_may_look_ahead_and_count_what_it_consumed():
    sampler = MinibatchSampler(SIZES, SLOTS)
    whole = [*MinibatchSampler(SIZES, SLOTS)]
    assert [*sampler.minibatches()] == whole
    assert sampler.step == 0
    sampler.advance()
    sampler.advance()
    assert [*sampler.minibatches()] == whole[2:]
    assert next(iter(sampler)) == whole[2]
    while sampler.step < len(sampler):
        sampler.advance()
    with pytest.raises(PlanError, match=r"all \d+ steps of epoch 0 .*set_epoch\(1\)"):
        sampler.advance()
    assert [*sampler] == []
    assert sampler.epoch == 1


def test_set_epoch_starts_another_epoch_and_leaves_the_current_one_where_it_is():
    sampler = MinibatchSampler(SIZES, SLOTS)
    whole = [*MinibatchSampler(SIZES, SLOTS)]
    next(iter(sampler))
    sampler.set_epoch(0)
    assert [*sampler] == whole[1:]
    sampler.set_epoch(0)
    assert [*sampler] == whole


def test_a_loop_ends_where_the_epoch_is_changed_within_it():
    sampler = MinibatchSampler(SIZES, SLOTS)
    seen = []
    for items in sampler:
        seen.append(items)
        sampler.set_epoch(5)
    assert len(seen) == 1
    assert (sampler.epoch, sampler.step) == (5, 0)


def test_two_loops_at_once_share_one_epoch():
    sampler = MinibatchSampler(SIZES, SLOTS)
    pairs = [*zip(sampler, sampler, strict=False)]
    seen = list(chain(*chain(*pairs)))
    assert len(seen) == len(set(seen))


def other(**how):
    sizes, slots = how.pop("sizes", SIZES), how.pop("slots", SLOTS)
    return MinibatchSampler(sizes, slots, **{"seed": 3, "world": 2} | how)


@pytest.mark.parametrize(
    ("sampler", "names"),
    [
        (other(seed=4), ["seed=3, here 4", "Pass seed=3"]),
        (other(world=3), ["world=2, here 3", "pass world=2"]),
        (other(drop_last=True), ["drop_last=False, here True", "Pass drop_last=False"]),
        (other(shuffle=False), ["shuffle=True, here False", "Pass shuffle=True"]),
        (other(sizes={"a": SIZES["a"][::-1], "b": SIZES["b"]}), ["sizes=", "same items"]),
        (other(sizes={"b": SIZES["b"], "a": SIZES["a"]}), ["sizes=", "same items"]),
        (
            other(
                sizes={"a": SIZES["a"], "c": SIZES["b"]},
                slots=[{"a": 6, "c": 2, "rows": 5}],
            ),
            ["sizes=", "slots="],
        ),
        (other(slots=[SLOTS[0], SLOTS[1] | {"rows": 3}]), ["slots=", "same slots|Give the slots"]),
        (other(seed=1, world=1), ["seed=3, here 1", "world=2, here 1"]),
    ],
)
def test_a_state_of_another_sampler_is_refused_naming_what_differs(sampler, names):
    state = other().state_dict()
    for name in names:
        with pytest.raises(PlanError, match=f"(?s)load_state_dict: the state is of .*{name}"):
            sampler.load_state_dict(state)
    assert (sampler.epoch, sampler.step) == (0, 0)


def test_a_state_whose_minibatches_are_drawn_otherwise_is_refused():
    state = other().state_dict()
    with pytest.raises(PlanError, match=r"order=.*release of stowplan or NumPy"):
        other().load_state_dict(state | {"order": state["order"] + 1})


@pytest.mark.parametrize("state", [{}, {"epoch": 1, "step": 0}, None, [1]])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(PlanError, match="expected what state_dict"):
        other().load_state_dict(state)


def test_a_step_beyond_the_epoch_is_refused():
    sampler = other()
    with pytest.raises(PlanError, match=rf"step=99, but epoch 0 has {len(sampler)} steps"):
        sampler.state_dict(step=99)
    with pytest.raises(PlanError, match=rf"step=99, but epoch 0 has {len(sampler)} steps"):
        sampler.load_state_dict(sampler.state_dict() | {"step": 99})
    with pytest.raises(PlanError, match="step must be at least 0"):
        sampler.state_dict(step=-1)


@pytest.mark.parametrize(
    ("sizes", "slots", "how", "message"),
    [
        ({"a": [1, 9]}, [{"a": 4, "rows": 2}], {}, r"1 of 2 items fit no slot. Item 1 has a=9"),
        ({"a": [1]}, [{"a": 4}], {}, r"slot 0 \(a=4\) carries no rows.*minibatch="),
        ({"a": []}, [{"a": 4, "rows": 2}], {}, "no items"),
        ({}, [{"rows": 2}], {}, "no items"),
        ({"a": [1, 1]}, [{"a": 4, "rows": 2}], {"world": 3}, r"3 ranks for 2 items.*world=2"),
        ({"a": [1, 1]}, [{"a": 4, "rows": 2}], {"rank": 1}, r"rank=1 of world=1; ranks are 0 to 0"),
        ({"a": [1, 1]}, [{"a": 4, "rows": 2}], {"rank": -1}, "rank must be at least 0"),
        ({"a": [1, 1]}, [{"a": 4, "rows": 2}], {"world": 0}, "world must be at least 1"),
        ({"a": [1, 1]}, [{"a": 4, "rows": 2}], {"seed": -1}, "seed must be at least 0"),
        ({"a": [1, 1]}, [{"a": 4, "rows": 2}], {"seed": 1.5}, "seed must be an integer"),
        ({"a": [1, 1]}, [{"a": 4, "rows": 2}], {"epoch": -1}, "epoch must be at least 0"),
        ({"a": [1, 1], "b": [1]}, [{"a": 4, "rows": 2}], {}, "sizes disagree"),
    ],
)
def test_bad_input_is_refused_at_construction(sizes, slots, how, message):
    with pytest.raises(PlanError, match=f"MinibatchSampler: .*{message}"):
        MinibatchSampler(sizes, slots, **how)


def test_items_larger_than_the_exact_slots_are_named():
    with pytest.raises(PlanError, match="Item 1 has a=2, b=1"):
        MinibatchSampler({"a": [1, 2], "b": [1, 1]}, [{"a": 1, "b": 4, "rows": 1}], exact=["a"])


@pytest.mark.timed
def test_an_epoch_of_many_items_is_made_once_and_soon():
    rng = np.random.default_rng(0)
    sizes = {"a": rng.lognormal(3, 1, 200_000).astype(int) + 1}
    slots = choose_slots(sizes, 4, minibatch=32)
    sampler = MinibatchSampler(sizes, slots)
    start = time.process_time()
    len(sampler)
    made = time.process_time() - start
    assert made < 1.0
    start = time.process_time()
    walk = iter(sampler)
    for _ in range(100):
        next(walk)
        len(sampler)
    assert time.process_time() - start < max(0.2 * made, 0.02)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_torch_loader_takes_it_as_its_batch_sampler_and_resumes(workers):
    data = pytest.importorskip("torch.utils.data")
    whole = [*MinibatchSampler(SIZES, SLOTS), *MinibatchSampler(SIZES, SLOTS, epoch=1)]
    sampler = MinibatchSampler(SIZES, SLOTS)

    def loader(sampler):
        return data.DataLoader(
            range(40),
            batch_sampler=sampler,
            collate_fn=list,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,  # JAX's threads survive no fork
        )

    assert len(loader(sampler)) == len(sampler)
    seen = []
    for items in loader(sampler):
        seen.append(items)
        if len(seen) == 3:
            state = sampler.state_dict(step=3, epoch=0)
            break
    again = MinibatchSampler(SIZES, SLOTS)
    again.load_state_dict(state)
    for _ in range(2):
        seen += loader(again)
    assert seen == whole
