"""Out of memory in the middle of a run: what is done is kept, what is left goes on smaller."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
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
    planted_at[:] = [ITEMS, ITEMS]
    whole = host(sp.run(kernels.pull, data, plan, scale=0.5)[0])
    calls.clear()
    planted_at[:] = [5, 4]
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
