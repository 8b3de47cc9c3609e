import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import PlanError
from stowplan.planners import (
    Costs,
    Plan,
    assign_exact,
    assign_slots,
    predict_alternatives,
    predict_seconds,
    split_chunks,
)
from stowplan.planners.cost import row_ladder, rows_in_turn

LADDER = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]


def real_items(plan):
    return sorted(np.concatenate([b.items[: b.count] for b in plan.batches]).tolist())


@settings(max_examples=200)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 100), st.booleans())
def test_all_batches_of_a_slot_have_the_same_rows_and_padding_repeats_an_item(a, b, most, ladder):
    plan = assign_slots({"n": [1] * a + [5] * b}, [{"n": 2}, {"n": 6}])
    split = split_chunks(plan, max_rows=most, ladder=ladder)
    assert real_items(split) == list(range(a + b))
    for index, count in enumerate((a, b)):
        own = [batch for batch in split.batches if batch.slot == index]
        rows = split.slots[index]["rows"]
        assert {len(batch.items) for batch in own} == {rows}
        assert rows <= most
        assert rows in LADDER if ladder else rows <= count
        assert sum(batch.count for batch in own) == count
        assert len(own) * rows - count < rows
        if not ladder:
            assert len(own) * rows - count < len(own)
        for batch in own:
            assert set(batch.items[batch.count :]) <= set(batch.items[: batch.count])
    assert len(split.shapes) == 2
    assert split_chunks(split).shapes == split.shapes


def test_rows_are_even_instead_of_full_chunks_and_a_tail():
    plan = assign_slots({"n": [3] * 130}, [{}])
    split = split_chunks(plan, max_rows=128)
    assert [len(batch.items) for batch in split.batches] == [65, 65]
    assert len(split_chunks(plan).batches) == 1


def test_the_ladder_is_halves_and_thirds():
    assert row_ladder(128) == LADDER
    assert row_ladder(1) == [1]
    assert row_ladder(5) == [1, 2, 3, 4, 6]


def test_costs_decide_between_padding_and_launches():
    plan = assign_slots({"n": [1] * 3104}, [{}])
    launches = replace(plan, costs=Costs(1e-9, 1.0, 0.0))
    padding = replace(plan, costs=Costs(1.0, 1e-9, 0.0))
    assert split_chunks(launches, ladder=True).slots[0]["rows"] == 4096
    rows = split_chunks(padding, ladder=True).slots[0]["rows"]
    assert 3104 % rows == 0
    assert rows == 32
    assert (
        split_chunks(
            replace(assign_slots({"n": [1] * 5}, [{}]), costs=padding.costs), max_rows=4
        ).slots[0]["rows"]
        == 3
    )


def test_rows_by_hand_are_kept_but_for_slots_with_fewer_items():
    plan = assign_slots({"n": [1] * 10 + [5] * 3}, [{"n": 2}, {"n": 6}, {"n": 9}])
    assert [b.items.tolist() for b in split_chunks(plan, rows=8).batches] == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [8, 9, 9, 9, 9, 9, 9, 9],
        [10, 11, 12],
    ]
    assert split_chunks(plan, rows=8).rows == (8, 3, 8)
    split = split_chunks(plan, rows=[4, 8, 2])
    assert split.rows == (4, 8, 2)
    assert [batch.count for batch in split.batches] == [4, 4, 2, 3]
    assert split_chunks(split, rows=np.array([5, 1, 1])).rows == (5, 1, 1)
    assert split_chunks(plan, max_rows=[4, 2, 1]).rows == (4, 2, 0)


def test_a_slot_that_carries_rows_keeps_them_and_surplus_is_another_batch():
    plan = assign_slots({"n": [1] * 10}, [{"n": 2, "rows": 4}])
    assert [b.items.tolist() for b in plan.batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    again = split_chunks(plan, ladder=True, max_rows=7)
    assert [b.items.tolist() for b in again.batches] == [b.items.tolist() for b in plan.batches]
    few = assign_slots({"n": [1]}, plan.slots)
    assert few.batches[0].items.tolist() == [0, 0, 0, 0]
    assert few.shapes == plan.shapes
    with pytest.raises(PlanError, match="slot 0 has rows=4, but max_rows=3"):
        split_chunks(plan, max_rows=3)


@pytest.mark.parametrize("rows", [0, -1, 1.5, True, "3", [1], [1, 2, 3], [1, 0]])
def test_rows_that_are_no_positive_integers_are_refused(rows):
    plan = assign_slots({"n": [1, 5]}, [{"n": 2}, {"n": 6}])
    for how in ({"rows": rows}, {"max_rows": rows}):
        with pytest.raises(PlanError, match=f"split_chunks: {next(iter(how))}"):
            split_chunks(plan, **how)


def test_a_batch_beyond_64_bits_is_refused_before_it_is_made():
    plan = assign_slots({"n": [2**62]}, [{}])
    with pytest.raises(PlanError, match=r"split_chunks: a batch of rows=2, n=4611686018427387904"):
        split_chunks(plan, rows=[2])
    assert split_chunks(plan).rows == (1,)


def test_predicted_seconds_are_work_launches_and_compiles():
    plan = assign_slots({"a": [1, 2, 9], "b": [5, 5, 5]}, [{"a": 2}, {"a": 10, "rows": 2}])
    costs = Costs(work_seconds=1.0, launch_seconds=100.0, compile_seconds=10_000.0)
    assert plan.padded_work() == 2 * 10 + 2 * 50
    assert predict_seconds(plan, costs) == 120 + 200 + 20_000
    assert replace(plan, costs=costs).predicted_seconds == 20_320
    assert predict_seconds(plan) == Costs().seconds(120, 2, 2)


def test_occupancy_takes_any_expression():
    plan = assign_slots({"a": [1, 3], "b": [4, 4]}, [{"a": 4, "rows": 4}], derived={"k": "a * b"})
    assert plan.occupancy() == 16 / 64
    assert plan.occupancy("k") == 16 / 64
    assert plan.occupancy("b") == plan.rows_occupancy == 0.5
    assert plan.occupancy("8 * (a + b)") == 12 / 32
    assert plan.occupancy("1") == 0.5
    with pytest.raises(PlanError, match="unknown name 'q'; known: a, b, k"):
        plan.occupancy("q")


def test_alternatives_are_one_at_a_time_one_slot_and_chosen():
    plan = assign_slots({"a": [1, 2, 9]}, [{"a": 2}, {"a": 9}])
    plan = replace(plan, costs=Costs(1.0, 0.5, 0.25))
    found = predict_alternatives(plan)
    assert found == {"one at a time": 14.25, "one slot": 27.75, "chosen": 14.25}
    assert list(predict_alternatives(plan, chosen=False)) == ["one at a time", "one slot"]
    single = predict_alternatives(plan, split=lambda p: split_chunks(p, rows=1))
    assert single["one slot"] == 27 + 3 * 0.5 + 0.25
    assert predict_alternatives(assign_slots({"a": []}, []))["chosen"] == 0.0


def test_the_table_shows_slots_occupancy_seconds_and_warnings():
    plan = assign_slots({"a": [1, 2, 9], "b": [5, 5, 5]}, [{"a": 10, "b": 5}, {"a": 2}, {"a": 3}])
    plan = replace(plan, costs=Costs(1.0, 0.5, 0.0), on="jax", item_bytes="8 * a", mode="chosen")
    lines = str(split_chunks(plan, rows=2)).splitlines()
    assert lines[0] == "plan (chosen on jax): 3 items, 3 slots, 2 batches, 1 shapes"
    assert lines[1].split() == ["slot", "a", "b", "rows", "batches", "items", "occupancy"]
    assert lines[2].split() == ["0", "10", "5", "2", "2", "3", "30.0", "%"]
    assert lines[3].split() == ["1", "2", "5", "2", "0", "0", "-"]
    assert lines[5] == "occupancy  30.0 % of work (a * b), 75.0 % of rows, 30.0 % of bytes"
    assert lines[6] == "predicted  3.35 min"
    assert lines[7].startswith("instead    one at a time 61.5 s, one slot ")
    assert lines[8].startswith("warning    assign_slots: slot 1 (a=2) loses 2 of the 2 items")
    assert "3 items, 3 slots" in repr(plan)
    assert json.loads(json.dumps(plan.summary()))["batches"] == 1


def test_a_long_table_is_cut_in_the_middle():
    lines = str(assign_exact({"a": np.arange(1, 101)})).splitlines()
    assert "... 84 more slots" in lines
    assert len(lines) < 30
    assert lines[2].split()[:2] == ["0", "1"]
    assert lines[18].split()[:2] == ["99", "100"]


def test_given_alternatives_are_printed():
    plan = replace(assign_slots({"a": [1]}, [{}]), alternatives={"by hand": 2e-5})
    assert "instead    by hand 20 µs" in str(plan)
    assert "predicted  0 µs" in str(replace(plan, costs=Costs(0, 0, 0)))


def assert_same(plan, other):
    for (
        name
    ) in "dims slots work derived mode exact on costs item_bytes alternatives warnings".split():
        assert getattr(plan, name) == getattr(other, name), name
    assert plan.lengths.dtype == other.lengths.dtype == np.int64
    assert plan.lengths.shape == other.lengths.shape
    assert (plan.lengths == other.lengths).all()
    assert len(plan.batches) == len(other.batches)
    for one, two in zip(plan.batches, other.batches, strict=True):
        assert one.items.dtype == two.items.dtype == np.intp
        assert one.items.tolist() == two.items.tolist()
        for name in ("count", "capacity", "slot", "device"):
            assert getattr(one, name) == getattr(two, name)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=30),
    st.integers(1, 7),
    st.floats(0, 1e3),
)
def test_a_saved_plan_comes_back_exactly(tmp_path, sizes, rows, seconds):
    columns = {"a": [a for a, _ in sizes], "b": [b for _, b in sizes]}
    plan = assign_slots(
        columns, [{"a": 10}, {"k": 500}], derived={"k": "a * b"}, overflow="extend", work="k + 1"
    )
    plan = replace(
        split_chunks(plan, max_rows=rows),
        costs=Costs(seconds, 0.1, 1 / 3),
        alternatives={"one slot": seconds},
        on="torch",
        item_bytes="8 * a",
    )
    plan.cache["index"] = 3
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert_same(plan, loaded)
    assert loaded.cache == {}
    assert str(loaded) == str(plan)


@pytest.mark.parametrize("name", ["plan", "plan.json", "plan.npz", "plan.v2"])
def test_a_plan_is_found_by_either_file_and_overwritten(tmp_path, name):
    plan = assign_slots({"a": [1, 2, 3]}, [{"rows": 2}], exact=())
    assign_slots({"a": [7]}, [{}]).save(tmp_path / name)
    plan.save(tmp_path / name)
    assert_same(plan, Plan.load(tmp_path / name))
    assert len(list(tmp_path.iterdir())) == 2
    other = assign_slots({}, [{}], items=4)
    other.save(str(tmp_path / "other"))
    assert_same(other, Plan.load(str(tmp_path / "other.npz")))


def test_what_is_no_plan_is_refused_by_name(tmp_path):
    plan = assign_slots({"a": [1, 2, 3]}, [{}])
    path = tmp_path / "p.json"
    with pytest.raises(FileNotFoundError):
        Plan.load(path)
    plan.save(path)
    header = json.loads(path.read_text())

    def refused(text, reason):
        path.write_bytes(text if isinstance(text, bytes) else json.dumps(text).encode())
        with pytest.raises(PlanError, match=reason) as caught:
            Plan.load(path)
        assert str(path) in str(caught.value)

    refused(b"\xff\xfe", "is no saved plan")
    refused(b"a,b\n1,2\n", "is no saved plan")
    refused([1], "is no saved plan")
    refused({"format": "other"}, "is no saved plan")
    refused({**header, "version": 2}, r"has version 2; this stowplan reads version 1")
    refused({**header, "costs": {"speed": 1}}, "is no complete plan")
    refused({n: v for n, v in header.items() if n != "slots"}, "is no complete plan")
    path.write_text(json.dumps({**header, "checksum": 0}))
    with pytest.raises(PlanError, match=r"p\.npz is damaged, or not the twin of p\.json"):
        Plan.load(path)
    path.write_text(json.dumps(header))
    for junk in (b"", b"junk", (tmp_path / "p.npz").read_bytes()[:300]):
        (tmp_path / "p.npz").write_bytes(junk)
        with pytest.raises(PlanError, match=r"p\.npz holds no arrays of a plan"):
            Plan.load(path)


def test_pickled_arrays_are_refused(tmp_path):
    assign_slots({"a": [1]}, [{}]).save(tmp_path / "p")
    np.savez(tmp_path / "p.npz", lengths=np.array([{}], dtype=object))
    with pytest.raises(PlanError, match="holds no arrays of a plan"):
        Plan.load(tmp_path / "p")


def test_plans_never_share_a_cache():
    plan = assign_slots({"a": [1]}, [{}])
    plan.cache["x"] = 1
    assert replace(plan, mode="chosen").cache == {}


@given(st.integers(1, 10**6), st.floats(1e-7, 1.0), st.floats(1e-6, 1e-2))
def test_rows_that_take_turns_cost_little_more_than_the_best(count, item_seconds, launch_seconds):
    """(count / r + 1) m launches and count + r rows of work, by trying every r of the ladder."""

    def seconds(rows):
        return (count / rows + 1) * 5 * launch_seconds + (count + rows) * item_seconds

    rows = rows_in_turn(count, item_seconds, launch_seconds)
    allowed = [r for r in row_ladder(max(count, 32)) if r >= 32]
    assert rows in allowed
    assert seconds(rows) <= 1.1 * min(map(seconds, allowed))


def test_a_measured_iteration_has_a_tail_in_each_shape():
    plan = split_chunks(assign_slots({"n": [3, 4, 4, 2]}, [{"n": 4}]), 2)  # 2 batches of 8
    costs = Costs(work_seconds=1.0, launch_seconds=10.0)
    assert predict_seconds(plan, costs) == 16 + 2 * 10
    assert predict_seconds(plan, replace(costs, rounds=5.0)) == 16 + 3 * 10
    compiled = replace(costs, rounds=5.0, compile_seconds=100.0)
    assert predict_seconds(plan, compiled) == 16 + 8 + 3 * 10 + 100  # rows of the tail, computed


def test_rows_of_an_iteration_follow_the_rounds_of_its_items():
    assert rows_in_turn(10**4, 1e-4, 5e-4) == rows_in_turn(10**4, 1e-4, 5e-4, 5)
    few, many = (rows_in_turn(10**4, 1e-4, 5e-4, rounds) for rounds in (2, 32))
    assert 3 * few <= many <= 5 * few
