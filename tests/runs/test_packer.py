"""Minibatches of one data set in fixed shapes, and the loop that consumes them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given
from hypothesis import strategies as st

import stowplan as sp
from stowplan.layout import Layout
from stowplan.runs.prefetching import ahead_of

Put = Callable[..., Any]
Host = Callable[[Any], Any]

SIZES = [3, 0, 7, 2, 5, 1, 3, 8, 2, 2]
SLOTS = [{"atoms": 3, "rows": 3}, {"atoms": 8, "rows": 2}]


def padded(data: dict[str, Any], name: str, item: int, capacity: int) -> np.ndarray:
    """One item, padded by NumPy's own function."""
    array = np.asarray(data[name][item])
    if name == "matrix":
        return array
    return np.pad(array, [(0, capacity - len(array))] + [(0, 0)] * (array.ndim - 1))


@pytest.mark.parametrize("items", [[2, 0, 4, 1], [3, 5, 8], [7], [], [0, 3, 5, 8, 9], [2, 7]])
def test_a_minibatch_is_its_items_padded(
    kernels: SimpleNamespace, put: Put, host: Host, items: list[int]
) -> None:
    data = kernels.make_atoms(SIZES)
    packer = sp.Packer(kernels.pull, put(data), SLOTS)
    batches = packer(items)
    seen = []
    for batch, slot in zip(batches, SLOTS, strict=True):
        assert batch.slot == slot
        own, real = host(batch.items), host(batch.row_mask)
        seen += own[real].tolist()
        for row, item in enumerate(own):
            for name, array in zip(data, batch.arrays, strict=True):
                expected = padded(data, name, int(item), slot["atoms"])
                assert np.array_equal(host(array)[row], expected)
            inside = np.arange(slot["atoms"]) < SIZES[item]
            assert np.array_equal(host(batch.mask["atoms"])[row], inside & real[row])
    assert sorted(seen) == sorted(items)


@given(items=st.lists(st.integers(0, len(SIZES) - 1), unique=True, max_size=5))
def test_results_come_back_in_the_order_of_the_items(
    kernels: SimpleNamespace, items: list[int]
) -> None:
    data = kernels.make_atoms(SIZES)
    packer = sp.Packer(kernels.pull, data, [{"atoms": 8, "rows": 2}, {"atoms": 8, "rows": 3}])
    outputs = [kernels.pull(*batch.arrays, scale=0.5) for batch in packer(items)]
    energies, forces = packer.unpack(outputs, items)
    slow_energies, slow_forces = kernels.loop_pull(data, 0.5)
    np.testing.assert_allclose(energies, slow_energies[items], rtol=1e-12)
    for force, item in zip(forces, items, strict=True):
        np.testing.assert_allclose(force, slow_forces[item], rtol=1e-12)


def test_two_ragged_dims_are_padded_alike(kernels: SimpleNamespace, host: Host, put: Put) -> None:
    rng = np.random.default_rng(2)
    shapes = [(2, 5), (4, 3), (1, 1), (6, 2), (0, 3)]
    images = [rng.normal(size=shape) for shape in shapes]
    weights = [rng.normal(size=shape[1]) for shape in shapes]
    data = put(
        {"image": sp.Ragged.from_list(images, ragged=2), "weights": sp.Ragged.from_list(weights)}
    )
    packer = sp.Packer(
        kernels.weigh, data, [{"y": 4, "x": 5, "rows": 3}, {"y": 6, "x": 5, "rows": 1}]
    )
    items = [4, 3, 0, 1]
    outputs = [kernels.weigh(*batch.arrays, mask=batch.mask) for batch in packer(items)]
    for batch in packer(items):
        inside = host(batch.mask["y"])[:, :, None] & host(batch.mask["x"])[:, None, :]
        real = host(batch.row_mask)
        assert not host(batch.arrays[0])[real][~inside[real]].any()
        assert not host(batch.arrays[1])[real][~host(batch.mask["x"])[real]].any()
    weighted, columns, _ = packer.unpack(outputs, items)
    for place, item in enumerate(items):
        np.testing.assert_allclose(host(weighted)[place], images[item] * weights[item])
        expected = (images[item] * weights[item]).sum(0)
        np.testing.assert_allclose(host(columns)[place], expected, rtol=1e-12)


def test_a_slot_too_small_for_every_item_is_filled(kernels: SimpleNamespace) -> None:
    packer = sp.Packer(kernels.pull, kernels.make_atoms([3, 4]), [{"atoms": 2, "rows": 2}, *SLOTS])
    tiny, _, _ = packer([0, 1])
    assert not tiny.arrays[0].any()
    assert not tiny.arrays[1].any()
    assert tiny.arrays[2].all()
    assert not tiny.row_mask.any()


def test_views_of_one_length_may_lie_in_another_order(kernels: SimpleNamespace) -> None:
    pool = kernels.make_atoms([2, 5, 1])
    order = [2, 0, 1]
    data = {
        "positions": pool["positions"][order],
        "charges": pool["charges"][order].compact(),
        "matrix": pool["matrix"][order],
    }
    (batch,) = sp.Packer(kernels.pull, data, [{"atoms": 5, "rows": 3}])(range(3))
    for row, item in enumerate(order):
        assert np.array_equal(batch.arrays[0][row], padded(pool, "positions", item, 5))
        assert np.array_equal(batch.arrays[1][row], padded(pool, "charges", item, 5))


def test_views_with_shared_rows_are_packed_as_they_read(kernels: SimpleNamespace) -> None:
    pool = kernels.make_atoms([2, 5, 1])
    chosen = [1, 1, 0, 2, 1]
    data = {
        "positions": pool["positions"][chosen],
        "charges": pool["charges"][chosen].compact(),
        "matrix": pool["matrix"][chosen],
    }
    packer = sp.Packer(kernels.pull, data, [{"atoms": 5, "rows": 5}])
    (batch,) = packer(range(5))
    for row, item in enumerate(chosen):
        assert np.array_equal(batch.arrays[0][row], padded(pool, "positions", item, 5))
        assert np.array_equal(batch.arrays[1][row], padded(pool, "charges", item, 5))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_the_loop_gets_every_minibatch_of_the_sampler_in_order(
    kernels: SimpleNamespace, put: Put, host: Host, ahead: int
) -> None:
    data = kernels.make_atoms(SIZES * 6)
    packer = sp.Packer(kernels.pull, put(data), SLOTS)
    sampler = sp.MinibatchSampler(packer.sizes, SLOTS, seed=4)
    expected = list(sp.MinibatchSampler(packer.sizes, SLOTS, seed=4))
    for step, (batches, items) in enumerate(
        zip(packer.minibatches(sampler, ahead=ahead), expected, strict=True)
    ):
        assert sampler.step == step + 1
        alone = packer(items)
        for batch, other in zip(batches, alone, strict=True):
            for leaf, same in zip(batch.leaves(), other.leaves(), strict=True):
                assert np.array_equal(host(leaf), host(same))
    assert (sampler.epoch, sampler.step) == (1, 0)


def test_what_was_packed_ahead_does_not_count_as_consumed(kernels: SimpleNamespace) -> None:
    packer = sp.Packer(kernels.pull, kernels.make_atoms(SIZES * 6), SLOTS)
    sampler = sp.MinibatchSampler(packer.sizes, SLOTS, seed=4)
    minibatches = packer.minibatches(sampler, ahead=3)
    first = [next(minibatches) for _ in range(3)]
    time.sleep(0.05)
    state = sampler.state_dict()
    assert state["step"] == 3
    minibatches.close()
    again = sp.MinibatchSampler(packer.sizes, SLOTS, seed=4)
    again.load_state_dict(state)
    rest = list(packer.minibatches(again))
    items = sorted(
        int(item) for pack in [*first, *rest] for b in pack for item in b.items[b.row_mask]
    )
    assert items == list(range(len(SIZES) * 6))


def test_any_lists_of_items_are_packed_ahead(kernels: SimpleNamespace) -> None:
    packer = sp.Packer(kernels.pull, kernels.make_atoms(SIZES), SLOTS)
    given = [[2, 0], [], [7]]
    for batches, items in zip(packer.minibatches(given), given, strict=True):
        found = [int(item) for batch in batches for item in batch.items[batch.row_mask]]
        assert sorted(found) == sorted(items)


def test_nothing_is_packed_less_than_not_ahead(kernels: SimpleNamespace) -> None:
    packer = sp.Packer(kernels.pull, kernels.make_atoms(SIZES), SLOTS)
    with pytest.raises(sp.PlanError, match="minibatches: ahead must be at least 0, got -1"):
        next(packer.minibatches([[1]], ahead=-1))


@pytest.mark.parametrize("slots", [None, 3, "one", {"atoms": 8, "rows": 2}])
def test_what_is_no_list_of_slots_is_refused(kernels: SimpleNamespace, slots: Any) -> None:
    with pytest.raises(sp.PlanError, match=r"Packer: slots=.*give a list of slots with rows"):
        sp.Packer(kernels.pull, kernels.make_atoms(SIZES), slots)


def test_batches_and_packers_print_their_shapes(kernels: SimpleNamespace) -> None:
    packer = sp.Packer(kernels.pull, kernels.make_atoms(SIZES), SLOTS)
    assert repr(packer) == "<Packer of 10 items for pull: atoms=3, rows=3; atoms=8, rows=2>"
    assert repr(packer([1])[1]) == "<PackedBatch atoms=8, rows=2>"


def test_a_loop_that_ends_early_leaves_no_thread(kernels: SimpleNamespace) -> None:
    packer = sp.Packer(kernels.pull, kernels.make_atoms(SIZES * 6), SLOTS)
    sampler = sp.MinibatchSampler(packer.sizes, SLOTS)
    before = threading.active_count()
    for _ in packer.minibatches(sampler, ahead=1):
        break
    assert threading.active_count() == before


def test_what_a_thread_raises_reaches_the_loop() -> None:
    def work() -> Any:
        yield 1
        raise ValueError("item 2 is broken")

    with ahead_of(work(), 2) as results:
        assert next(results) == 1
        with pytest.raises(ValueError, match="item 2 is broken"):
            next(results)


def test_work_runs_ahead_and_no_further() -> None:
    made = []

    def work() -> Any:
        for number in range(10):
            made.append(number)
            yield number

    with ahead_of(work(), 2) as results:
        assert next(results) == 0
        time.sleep(0.2)
        assert made == [0, 1, 2, 3]  # one was taken, two wait, one is at the door


def test_an_item_larger_than_every_slot_is_named_at_once(kernels: SimpleNamespace) -> None:
    with pytest.raises(sp.PlanError, match=r"Packer: 1 of 3 items fit no slot. Item 1 has atoms=9"):
        sp.Packer(kernels.pull, kernels.make_atoms([3, 9, 2]), SLOTS)


def test_items_that_find_no_row_are_named(kernels: SimpleNamespace) -> None:
    packer = sp.Packer(kernels.pull, kernels.make_atoms(SIZES), SLOTS)
    with pytest.raises(sp.PlanError, match=r"Packer: 1 of 3 items.*Item 7 has atoms=8.*rows 3, 2"):
        packer([2, 4, 7])


@pytest.mark.parametrize(
    ("items", "message"),
    [([10], "item 10 of 10"), ([-1], "item -1 of 10"), ([0.5], "flat list"), ([[1]], "flat list")],
)
def test_what_is_no_item_is_named(kernels: SimpleNamespace, items: list[Any], message: str) -> None:
    packer = sp.Packer(kernels.pull, kernels.make_atoms(SIZES), SLOTS)
    with pytest.raises(sp.DataError, match=message):
        packer(items)


def test_an_index_out_of_range_is_named_at_construction(kernels: SimpleNamespace) -> None:
    data = {"charges": [np.ones(2)], "neighbours": [np.array([[1], [2]])]}
    with pytest.raises(sp.DataError, match=r"Packer: near.*Item 0 has atoms=2 and an index 2"):
        sp.Packer(kernels.near, data, [{"atoms": 2, "rows": 1}])


def test_nothing_to_pack_is_an_error(kernels: SimpleNamespace) -> None:
    with pytest.raises(sp.DataError, match="length has no ragged dims"):
        sp.Packer(kernels.length, {"vector": np.ones((2, 3)), "factor": np.ones(2)}, [{"rows": 2}])
    with pytest.raises(sp.DataError, match="pull has no items"):
        sp.Packer(kernels.pull, kernels.make_atoms([]), SLOTS)


def test_data_that_require_grad_are_refused(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    load_framework("torch")
    import torch

    data = kernels.make_atoms(SIZES)
    data["charges"] = data["charges"].map_values(
        lambda values: torch.from_numpy(values).requires_grad_()
    )
    data["positions"] = data["positions"].map_values(torch.from_numpy)
    data["matrix"] = torch.from_numpy(data["matrix"])
    with pytest.raises(sp.FrameworkError, match="column 'charges' requires grad"):
        sp.Packer(kernels.pull, data, SLOTS)


def test_digits_that_would_be_lost_are_refused_at_construction(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    load_framework("jax")
    import jax

    data = kernels.make_atoms(SIZES)
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(sp.FrameworkError, match="x64 is off"):
            sp.Packer(kernels.pull, data, SLOTS, on="jax")
        narrow = sp.Packer(kernels.pull, kernels.make_atoms(SIZES, "float32"), SLOTS, on="jax")
        (batch, _) = narrow([0])
        assert str(batch.arrays[0].dtype) == "float32"
    finally:
        jax.config.update("jax_enable_x64", True)


WORKERS = """
import numpy as np
import stowplan as sp
from torch.utils.data import DataLoader

@sp.kernel("(atoms),()->()", ragged="atoms")
def total(x, factor):
    return factor * x.sum(-1)

rng = np.random.default_rng(0)
data = {"x": [rng.normal(size=n) for n in [3, 0, 7, 2, 5, 1, 3, 8] * 6], "factor": np.arange(48.0)}
slots = [{"atoms": 3, "rows": 3}, {"atoms": 8, "rows": 2}]
packer = sp.Packer(total, data, slots, on="torch")
sampler = sp.MinibatchSampler(packer.sizes, slots, seed=4)
expected = [packer(items) for items in sampler]
sampler.set_epoch(0)
loader = DataLoader(range(48), batch_sampler=sampler, collate_fn=packer, num_workers=2)
for batches, others in zip(loader, expected, strict=True):
    for batch, other in zip(batches, others, strict=True):
        assert isinstance(batch, sp.PackedBatch)
        for leaf, same in zip(batch.leaves(), other.leaves(), strict=True):
            assert leaf.dtype == same.dtype and np.array_equal(leaf, same)
print(len(expected), "minibatches")
"""


def test_a_torch_loader_packs_in_its_workers(
    load_framework: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    load_framework("torch")
    script = tmp_path / "loader.py"  # a process of its own: JAX's threads do not survive a fork
    script.write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 10


@sp.kernel("(atoms),(k)->()", ragged=("atoms", "k"), work="atoms * k")
def strength(charges, waves, *, scale):
    """Cheap, but ragged as Ewald sums are."""
    xp = array_namespace(charges, waves)
    return xp.sum(charges * scale, axis=-1) ** 2 * xp.sum(waves, axis=-1)


@pytest.fixture(scope="module")
def structures() -> dict[str, Any]:
    """3200 structures of which 96 are large, as data that share one pool of numbers."""
    u, v = (np.arange(3104) + 0.5) / 3104, (np.arange(96) + 0.5) / 96
    k = np.concatenate(
        [np.floor(4096 * u ** (0.185 / 0.815)), np.floor(4097 * (32768 / 4097) ** v)]
    )
    small = np.clip(np.round(64 * (k[:3104] / 4096) ** 0.7), 2, 64)
    atoms = np.concatenate([small, np.minimum(np.round(64 + 128 * v), 192)])
    order = np.random.default_rng(0).permutation(3200)
    pool = np.random.default_rng(1).normal(size=32768)
    starts = np.zeros(3200, np.int64)
    return {
        name: sp.Ragged.from_layout(pool, Layout(sizes[order].astype(np.int64), starts))
        for name, sizes in (("charges", atoms), ("waves", k))
    }


HAND_SET = [{"atoms": 64, "k": 4096, "rows": 32}, {"atoms": 192, "k": 32768, "rows": 6}]


def shuffled_minibatches() -> list[np.ndarray]:
    """60 minibatches of 32, drawn as any loader draws them."""
    order = np.random.default_rng(5).permutation(3200)
    return list(order[: 60 * 32].reshape(60, 32))


def slow_strength(data: dict[str, Any], items: np.ndarray) -> float:
    """Sum over some items, one after the other."""
    return sum(data["charges"][int(i)].sum() ** 2 * data["waves"][int(i)].sum() for i in items)


def test_a_jitted_gradient_is_traced_once_for_minibatches_that_leave_slots_empty(
    structures: dict[str, Any], load_framework: Callable[[str], ModuleType]
) -> None:
    jnp = load_framework("jax")
    import jax

    packer = sp.Packer(strength, structures, HAND_SET)
    traces = []

    @jax.jit
    @jax.value_and_grad
    def step(scale: Any, batches: Any) -> Any:
        traces.append(1)
        each = [strength(*batch.arrays, scale=scale) for batch in batches]
        masks = [batch.row_mask for batch in batches]
        return sum(jnp.sum(jnp.where(mask, e, 0.0)) for mask, e in zip(masks, each, strict=True))

    empty = 0
    for items in shuffled_minibatches():
        batches = packer(items)
        empty += int(batches[1].count) == 0
        value, slope = step(0.7, batches)
        slow = 0.49 * slow_strength(structures, items)
        np.testing.assert_allclose(value, slow, rtol=1e-10)
        np.testing.assert_allclose(slope, 2 * slow / 0.7, rtol=1e-10)
    assert len(traces) == 1
    assert 15 <= empty <= 30  # 37 % of 60 are 22


def test_one_graph_serves_minibatches_that_leave_slots_empty_in_torch(
    structures: dict[str, Any], load_framework: Callable[[str], ModuleType]
) -> None:
    load_framework("torch")
    import torch

    graphs = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    packer = sp.Packer(strength, structures, HAND_SET, on="torch")
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    @torch.compile(backend=count, fullgraph=True, dynamic=False)
    def loss(batches: Any) -> Any:
        total = 0.0
        for batch in batches:
            each = strength(*batch.arrays, scale=scale)
            total = total + torch.sum(torch.where(batch.row_mask, each, 0.0))
        return total

    for items in shuffled_minibatches()[:20]:
        scale.grad = None
        value = loss(packer(items))
        value.backward()
        slow = 0.49 * slow_strength(structures, items)
        np.testing.assert_allclose(value.detach(), slow, rtol=1e-10)
        np.testing.assert_allclose(scale.grad, 2 * slow / 0.7, rtol=1e-10)
    assert len(graphs) == 1
