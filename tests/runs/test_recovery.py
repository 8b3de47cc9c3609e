"""Out of memory in the middle of a run: what is done is kept, what is left goes on smaller."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import stowplan as sp
from stowplan.adapters import get_adapter

ITEMS, ROWS, SIZE = 64, 8, 4


def out_of_memory(framework: str) -> Exception:
    """The framework's own error."""
    if framework == "torch":
        import torch

        return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    if framework == "jax":
        import jax

        return jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 20 bytes")
    if framework == "cupy":
        import cupy

        return cupy.cuda.memory.OutOfMemoryError(20, 10, 0)
    return MemoryError("Unable to allocate 20 bytes")


@pytest.fixture
def calls(framework: str, monkeypatch: pytest.MonkeyPatch, host: Callable[[Any], Any]) -> list[Any]:
    """Arguments of every kernel call; a call of 8 rows fails from the fifth on."""
    adapter = get_adapter(framework)
    made = adapter.function
    seen: list[Any] = []

    def function(*args: Any, **how: Any) -> Any:
        call = made(*args, **how)

        def planted(arguments: Any, keywords: Any, shared: Any) -> Any:
            rows = arguments[0].shape[0]
            if len(seen) >= planted_at[0] and rows > planted_at[1]:
                raise out_of_memory(framework)
            seen.append(host(arguments[0]))
            return call(arguments, keywords, shared)

        return planted

    monkeypatch.setattr(adapter, "function", function)
    return seen


planted_at = [4, 4]  # calls that pass; rows that always fit


def make(kernels: SimpleNamespace, put: Callable[..., Any], rows: int = ROWS) -> Any:
    """Items of one size, so that every batch is full."""
    data = put(kernels.make_atoms([SIZE] * ITEMS))
    return data, sp.plan(kernels.pull, data, slots=1, rows=rows)


def test_finished_batches_are_kept_and_the_rest_goes_on_in_halves(
    kernels: SimpleNamespace,
    put: Callable[..., Any],
    host: Callable[[Any], Any],
    calls: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    data, plan = make(kernels, put)
    planted_at[:] = [4, 4]
    with caplog.at_level(logging.WARNING, "stowplan"):
        energies, forces = sp.run(kernels.pull, data, plan, scale=0.5)
    assert [len(rows) for rows in calls] == [8] * 4 + [4] * 8
    firsts = np.concatenate(calls)[:, 0, 0]
    assert len(np.unique(firsts)) == ITEMS  # no row was computed twice
    (record,) = caplog.records
    assert "out of memory with 8 rows of pull at atoms=4; going on with 4 rows" in record.message
    assert "4 of 8 batches are done and kept" in record.message
    slow_energies, slow_forces = kernels.loop_pull(kernels.make_atoms([SIZE] * ITEMS), 0.5)
    np.testing.assert_allclose(host(energies), slow_energies, rtol=1e-12)
    for found, expected in zip(host(forces), slow_forces, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_finished_rows_are_the_same_bit_for_bit(
    kernels: SimpleNamespace, put: Callable[..., Any], host: Callable[[Any], Any], calls: list[Any]
) -> None:
    data, plan = make(kernels, put)
    assert len(plan.batches) == 8
    planted_at[:] = [ITEMS, ITEMS]
    whole = host(sp.run(kernels.pull, data, plan, scale=0.5)[0])
    calls.clear()
    planted_at[:] = [4, 4]
    again = host(sp.run(kernels.pull, data, plan, scale=0.5)[0])
    done = [int(item) for batch in plan.batches[:4] for item in batch.items]
    assert np.array_equal(whole[done], again[done])
    np.testing.assert_allclose(again, whole, rtol=0, atol=4 * np.spacing(np.abs(whole).max()))


def test_it_halves_down_to_one_row_and_then_says_what_is_too_large(
    kernels: SimpleNamespace, put: Callable[..., Any], host: Callable[[Any], Any], calls: list[Any]
) -> None:
    data, plan = make(kernels, put)
    planted_at[:] = [2, 1]
    energies, _ = sp.run(kernels.pull, data, plan, scale=0.5)
    assert [len(rows) for rows in calls] == [8] * 2 + [1] * 48
    expected, _ = kernels.loop_pull(kernels.make_atoms([SIZE] * ITEMS), 0.5)
    np.testing.assert_allclose(host(energies), expected, rtol=1e-12)
    calls.clear()
    planted_at[:] = [2, 0]
    with pytest.raises(sp.BudgetError, match=r"one row of pull at atoms=4: .*llocat"):
        sp.run(kernels.pull, data, plan, scale=0.5)


def test_other_errors_are_no_reason_to_go_on(kernels: SimpleNamespace) -> None:
    @sp.kernel("(n)->()", ragged="n")
    def broken(x: Any) -> Any:
        raise RuntimeError("a fault of its own")

    with pytest.raises(RuntimeError, match="a fault of its own"):
        sp.run(broken, {"x": [[1.0], [2.0]]})


def test_other_slots_shrink_by_their_work(kernels: SimpleNamespace) -> None:
    from stowplan.runs.recovery import halve_batches

    data = kernels.make_atoms([4] * 16 + [8] * 8 + [1] * 4)
    slots = [{"atoms": 1, "rows": 4}, {"atoms": 4, "rows": 8}, {"atoms": 8, "rows": 4}]
    plan = sp.plan(kernels.pull, data, slots=slots)
    before = [batch.items.tolist() for batch in plan.batches]
    smaller = halve_batches("run", kernels.pull, plan, 2, "no memory")
    assert [batch.items.tolist() for batch in smaller.batches[:2]] == before[:2]
    assert [(batch.slot, len(batch.items)) for batch in smaller.batches[2:]] == [
        *[(1, 4)] * 2, *[(2, 2)] * 4,
    ]  # fmt: skip
    items = [int(i) for batch in smaller.batches for i in batch.items[: batch.count]]
    assert sorted(items) == list(range(28))


def test_an_empty_batch_without_memory_is_left_out_and_an_only_one_is_halved(
    kernels: SimpleNamespace,
) -> None:
    from stowplan.planners.batches import empty_batch
    from stowplan.runs.recovery import halve_batches

    slots = [{"atoms": 4, "rows": 8}, {"atoms": 900, "rows": 1}]
    plan = sp.plan(kernels.pull, kernels.make_atoms([SIZE] * 16), slots=slots)
    spare = empty_batch(plan.lengths, (900,), 1, 1)
    first, second = plan.batches
    with_spare = replace(plan, batches=(first, spare, second))
    assert halve_batches("run", kernels.pull, with_spare, 1, "").batches == plan.batches
    nobody = np.empty((0, 1), np.int64)
    alone = replace(plan, lengths=nobody, batches=(empty_batch(nobody, (4,), 0, 8),))
    (left,) = halve_batches("run", kernels.pull, alone, 0, "").batches
    assert (left.count, left.items.tolist()) == (0, [0] * 4)


WEIGHTS = np.random.default_rng(2).normal(size=ITEMS)
WANTED = ["positions", "charges", "matrix", "scale"]


def loop_slopes(kernels: SimpleNamespace, scale: float) -> dict[str, Any]:
    """Derivatives of the weighted energies of `pull`, one atom after the other."""
    found: dict[str, Any] = {"positions": [], "charges": [], "matrix": [], "scale": 0.0}
    items = zip(*kernels.make_atoms([SIZE] * ITEMS).values(), WEIGHTS, strict=True)
    for positions, charges, matrix, weight in items:
        by_matrix = np.zeros((3, 3))
        for position, charge in zip(positions, charges, strict=True):
            turned = position @ matrix
            by_matrix += 2 * weight * scale * charge * np.outer(position, turned)
            found["positions"].append(2 * weight * scale * charge * matrix @ turned)
            found["charges"].append(weight * scale * turned @ turned)
            found["scale"] += weight * charge * turned @ turned
        found["matrix"].append(by_matrix)
    return found


@pytest.fixture
def pulled_back(
    framework: str, monkeypatch: pytest.MonkeyPatch, host: Callable[[Any], Any]
) -> list[Any]:
    """Positions of every batch that was pulled back; large ones fail from the fifth on."""
    adapter = get_adapter(framework)
    made = adapter.pullback  # type: ignore[attr-defined]
    seen: list[Any] = []

    def pullback(*args: Any, **how: Any) -> Any:
        call = made(*args, **how)

        def planted(arguments: Any, *rest: Any) -> Any:
            if len(seen) >= planted_at[0] and arguments[0].shape[0] > planted_at[1]:
                raise out_of_memory(framework)
            slopes = call(arguments, *rest)
            seen.append(host(arguments[0]))
            return slopes

        return planted

    monkeypatch.setattr(adapter, "pullback", pullback)
    return seen


def differentiate(kernels: SimpleNamespace, put: Callable[..., Any], xp: ModuleType) -> Any:
    """Gradients of the weighted energies with respect to everything, and the plan's batches."""
    data, plan = make(kernels, put)
    weights = put(WEIGHTS)
    _, found = sp.value_and_grad(
        kernels.pull, data, plan, loss=lambda energies, _: weights * energies, wrt=WANTED,
        scale=xp.asarray(0.5, dtype=xp.float64),
    )  # fmt: skip
    return found, plan.batches


def assert_right(found: Any, kernels: SimpleNamespace, host: Callable[[Any], Any]) -> None:
    for name, expected in loop_slopes(kernels, 0.5).items():
        slopes = found[name].values if isinstance(found[name], sp.Ragged) else found[name]
        np.testing.assert_allclose(host(slopes), expected, rtol=1e-11, atol=1e-12, err_msg=name)


both = pytest.mark.parametrize("framework", ["torch", "jax"])


@both
def test_a_backward_pass_keeps_what_is_added_and_goes_on_in_halves(
    kernels: SimpleNamespace,
    put: Callable[..., Any],
    host: Callable[[Any], Any],
    xp: ModuleType,
    pulled_back: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    planted_at[:] = [4, 4]
    with caplog.at_level(logging.WARNING, "stowplan"):
        found, batches = differentiate(kernels, put, xp)
    assert len(batches) == 8
    assert [len(rows) for rows in pulled_back] == [8] * 4 + [4] * 8
    firsts = np.concatenate(pulled_back)[:, 0, 0]
    assert len(np.unique(firsts)) == ITEMS  # no row was pulled back twice
    (record,) = caplog.records
    assert record.message.startswith("run, backward pass: out of memory with 8 rows of pull")
    assert "going on with 4 rows. 4 of 8 batches are done" in record.message
    assert_right(found, kernels, host)


@both
def test_a_backward_pass_halves_down_to_one_row_and_then_says_what_is_too_large(
    kernels: SimpleNamespace,
    put: Callable[..., Any],
    host: Callable[[Any], Any],
    xp: ModuleType,
    pulled_back: list[Any],
) -> None:
    planted_at[:] = [2, 1]
    found, _ = differentiate(kernels, put, xp)
    assert [len(rows) for rows in pulled_back] == [8] * 2 + [1] * 48
    assert_right(found, kernels, host)
    planted_at[:] = [2, 0]
    row_bytes = 8 * (SIZE * 3 + SIZE + 9)
    message = (
        rf"backward pass: .* one row of pull at atoms=4: .*llocat.*columns take {row_bytes} B"
        rf" and by memory= it keeps {20 * SIZE + 20} numbers\. Use a device with more memory"
    )
    with pytest.raises(sp.BudgetError, match=message):
        differentiate(kernels, put, xp)


@both
@pytest.mark.parametrize("place", ["collect", "add_rows"])
def test_no_row_is_added_twice_wherever_memory_runs_out(
    kernels: SimpleNamespace,
    put: Callable[..., Any],
    host: Callable[[Any], Any],
    xp: ModuleType,
    framework: str,
    pulled_back: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    """The fifth batch fails once its first gradient may be added; adding, down to one row."""
    planted_at[:] = [ITEMS, ITEMS]
    adapter = get_adapter(framework)
    made = getattr(adapter, place)
    calls: list[int] = []

    def planted(*args: Any) -> Any:
        if len(pulled_back) == 5:
            calls.append(len(args[1]))
            if len(calls) == 2 if place == "collect" else len(calls) > 1 and len(args[1]) > 1:
                raise out_of_memory(framework)
        return made(*args)

    monkeypatch.setattr(adapter, place, planted)
    found, _ = differentiate(kernels, put, xp)
    again = [4] * 8 if place == "collect" else [8] * 3
    assert [len(rows) for rows in pulled_back] == [8] * 5 + again
    assert_right(found, kernels, host)


@both
def test_a_gradient_that_cannot_even_be_added_says_so(
    kernels: SimpleNamespace,
    put: Callable[..., Any],
    xp: ModuleType,
    framework: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def planted(*_: Any) -> Any:
        raise out_of_memory(framework)

    monkeypatch.setattr(get_adapter(framework), "add_rows", planted)
    with pytest.raises(sp.BudgetError, match="no memory to add the gradient of one row of pull"):
        differentiate(kernels, put, xp)
