"""Functions that a FieldBatch runs, and fields as they come: nothing is held, lost or misread."""

from __future__ import annotations

import gc
import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stowplan as sp
from stowplan.runs.field_batch import FieldBatch

SHAPE = (4, 4)
FRAMEWORKS = ["numpy", "torch"]


def put(values: np.ndarray, on: str) -> Any:
    return values if on == "numpy" else pytest.importorskip("torch").asarray(values)


def sums(stack: Any) -> Any:
    return stack.sum((1, 2))


class Large:
    """What a function encloses."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def times(self, stack: Any) -> Any:
        return self.factor * stack


@dataclass
class Scaled:
    """A function that has no hash."""

    factor: float

    def __call__(self, stack: Any) -> Any:
        return self.factor * stack


@pytest.mark.parametrize("disk", [False, True])
def test_fields_of_another_byte_order_are_the_same_numbers(tmp_path, disk):
    values = np.arange(4000.0)
    swapped = values.astype(values.dtype.newbyteorder("S"))
    np.save(tmp_path / "f.npy", swapped)
    budget = "200 kB" if disk else "100 MB"
    with FieldBatch([swapped] * 12, budget=budget, scratch=tmp_path) as batch:
        batch.add(values)
        batch.add(tmp_path / "f.npy")
        assert batch.usage().fields["disk"] > 1 or not disk
        found = np.asarray(batch.run(lambda stack: stack.sum(1)))
    assert found.tolist() == [3999 * 4000 / 2] * 14


@pytest.mark.parametrize("field", [np.ma.ones(SHAPE), np.ma.masked_less(np.eye(4), 1)])
def test_masked_fields_are_refused_with_the_cure(field):
    with FieldBatch([np.ones(SHAPE)]) as batch:
        with pytest.raises(sp.DataError, match=r"field 1 is a masked array.*\.filled\(0\)"):
            batch.add(field)
        assert len(batch) == 1


@pytest.mark.parametrize("first", [0, 2])
def test_masked_results_are_refused_with_the_cure(first):
    def positive(stack: np.ndarray) -> np.ndarray:
        return np.ma.masked_less(stack, 0) if (stack < 0).any() else stack

    fields = [np.full(SHAPE, -1.0 if number == first else 1.0) for number in range(3)]
    with (
        FieldBatch(fields) as batch,
        pytest.raises(sp.DataError, match=r"positive gave a masked array.*\.filled\(0\)"),
    ):
        batch.run(positive)


@pytest.mark.parametrize("on", FRAMEWORKS)
def test_what_a_function_encloses_is_let_go_of_with_the_next_one(on):
    held = Large(2.0)
    gone = weakref.ref(held)
    with FieldBatch([put(np.ones(SHAPE), on)] * 3) as batch:
        batch.run(lambda stack, held=held: sums(stack) * held.factor)
        del held
        batch.run(sums)
        gc.collect()
        assert gone() is None
        held = Large(2.0)
        gone = weakref.ref(held)
        batch.run(held.times)
        del held
        batch.clear()
        gc.collect()
        assert gone() is None


def test_a_function_that_is_run_again_is_not_probed_again():
    calls: list[int] = []

    class Counted:
        def total(self, stack: np.ndarray) -> np.ndarray:
            calls.append(len(stack))
            return sums(stack)

    counted = Counted()
    with FieldBatch([np.ones(SHAPE)] * 3, budget="1 MiB") as batch:
        batch.run(counted.total)
        first = len(calls)
        batch.run(counted.total)
        assert calls[first:] == [3]


def test_a_function_may_run_another_on_the_same_batch():
    with FieldBatch([np.full(SHAPE, float(n)) for n in range(4)]) as batch:

        def above_the_mean(stack: np.ndarray) -> np.ndarray:
            return sums(stack) - np.mean(np.asarray(batch.run(sums)))

        assert np.asarray(batch.run(above_the_mean)).tolist() == [-24.0, -8.0, 8.0, 24.0]


@pytest.mark.parametrize("on", FRAMEWORKS)
def test_functions_without_a_hash_are_run(on):
    with FieldBatch([put(np.ones(SHAPE), on)] * 3) as batch:
        for factor in (2.0, 3.0):
            found = np.asarray(batch.run(Scaled(factor)))
            np.testing.assert_array_equal(found, np.full((3, *SHAPE), factor))


@pytest.mark.parametrize("function", [sums, lambda stack: np.sqrt(stack) + 1])
@pytest.mark.parametrize("budget", [700, 1000])
def test_a_refusal_names_one_budget_and_that_is_enough(tmp_path, function, budget):
    def run(budget: int) -> np.ndarray:
        with FieldBatch([np.ones(SHAPE)] * 5, budget=budget, scratch=tmp_path) as batch:
            found = batch.run(function)
            return found.read(0, 5) if hasattr(found, "read") else found

    with pytest.raises(sp.BudgetError) as error:
        run(budget)
    (enough,) = re.findall(r"at least budget=(\d+)", str(error.value))
    assert str(error.value).count("the budget is") == 1
    assert int(enough) < 5000  # as much as a function takes that is traced for its coverage
    np.testing.assert_array_equal(run(int(enough)), function(np.ones((5, *SHAPE))))


def test_an_exception_says_which_function_met_which_field():
    def fails(stack: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    with FieldBatch([np.ones(SHAPE)]) as batch:
        with pytest.raises(ZeroDivisionError) as error:
            batch.run(fails)
        assert "FieldBatch.run: fails was called with field 0" in error.value.__notes__[0]
        with pytest.raises(TypeError, match="'a'") as missing:
            batch.run(lambda stack, *, a: stack)
        assert "FieldBatch.run: <lambda> was called" in missing.value.__notes__[0]


@pytest.mark.parametrize(
    ("function", "shared", "message"),
    [
        (lambda stack, *, a: a * stack, {"a": 3}, r"a= is given. Bind it, functools\.partial"),
        (lambda stack: stack, {"a": 3, "b": 1}, "a=, b= is given"),
        (lambda stack: (), {}, r"gave \(\) for a stack \(1, 4, 4\)"),
        (lambda stack: stack[:, :0], {}, r"array of shape \(1, 0, 4\) for a stack of 1 field"),
        (lambda stack: (stack, stack[:, 0, :0]), {}, r"array of shape \(1, 0\)"),
    ],
)
def test_what_no_plain_function_takes_or_gives_is_refused_by_name(function, shared, message):
    with (
        FieldBatch([np.ones(SHAPE)] * 3) as batch,
        pytest.raises(sp.DataError, match=f"FieldBatch.run: <lambda> .*{message}"),
    ):
        batch.run(function, **shared)


def test_a_batch_that_was_cleared_follows_its_new_first_field(tmp_path: Path):
    torch = pytest.importorskip("torch")
    with FieldBatch([np.ones(SHAPE)], scratch=tmp_path) as batch:
        assert isinstance(batch.run(sums), np.ndarray)
        batch.clear()
        assert sum(batch.usage().fields.values()) == 0  # which says nothing of the next ones
        batch.add(torch.ones(SHAPE, dtype=torch.float64))
        assert isinstance(batch.run(sums), torch.Tensor)
