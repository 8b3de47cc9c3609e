"""Batches of fixed shape: packing, unpacking, and what they promise to a training loop."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp

Put = Callable[..., Any]
Host = Callable[[Any], Any]

SIZES = [3, 0, 7, 2, 5]
SLOTS = [{"atoms": 3, "rows": 4}, {"atoms": 8, "rows": 3}]


@pytest.fixture
def packed(kernels: SimpleNamespace, put: Put) -> SimpleNamespace:
    """Five items of `pull`, their plan and their packed batches."""
    host = kernels.make_atoms(SIZES)
    data = put(host)
    plan = sp.plan(kernels.pull, data, slots=SLOTS)
    return SimpleNamespace(host=host, data=data, plan=plan, batches=plan.pack(data))


def test_every_slot_gives_one_batch_of_its_shape(packed: SimpleNamespace, host: Host) -> None:
    small, large = packed.batches
    assert [tuple(array.shape) for array in small.arrays] == [(4, 3, 3), (4, 3), (4, 3, 3)]
    assert [tuple(array.shape) for array in large.arrays] == [(3, 8, 3), (3, 8), (3, 3, 3)]
    assert small.slot == {"atoms": 3, "rows": 4}
    assert large.slot == {"atoms": 8, "rows": 3}
    assert int(small.count) == 3
    assert int(large.count) == 2
    assert host(small.items)[:3].tolist() == [0, 1, 3]
    assert host(large.items)[:2].tolist() == [2, 4]


def test_rows_hold_the_items_and_the_fill_and_nothing_else(
    packed: SimpleNamespace, host: Host
) -> None:
    for batch in packed.batches:
        positions, charges, matrices = (host(array) for array in batch.arrays)
        for row, item in enumerate(host(batch.items)):
            size = SIZES[item]
            assert np.array_equal(positions[row, :size], packed.host["positions"][int(item)])
            assert np.array_equal(charges[row, :size], packed.host["charges"][int(item)])
            assert np.array_equal(matrices[row], packed.host["matrix"][item])
            assert not positions[row, size:].any()
            assert not charges[row, size:].any()


@pytest.mark.parametrize("number", [0.0, 2.0])
def test_a_column_of_one_number_that_takes_no_memory_is_packed(kernels, number):
    data = kernels.make_atoms(SIZES)
    layout = data["charges"].layout
    charges = np.broadcast_to(number, (sum(SIZES),))
    data = {**data, "charges": sp.Ragged.from_layout(charges, layout)}
    for batch in sp.plan(kernels.pull, data, slots=SLOTS).pack(data):
        for row, item in enumerate(batch.items[: int(batch.count)]):
            assert (batch.arrays[1][row, : SIZES[item]] == number).all()
            assert not batch.arrays[1][row, SIZES[item] :].any()


def test_a_row_without_item_is_masked_everywhere(packed: SimpleNamespace, host: Host) -> None:
    for batch in packed.batches:
        rows, mask = host(batch.row_mask), host(batch.mask["atoms"])
        sizes = np.array(SIZES)[host(batch.items)]
        expected = (np.arange(mask.shape[1]) < sizes[:, None]) & rows[:, None]
        assert np.array_equal(mask, expected)
        assert rows.tolist() == sorted(rows.tolist(), reverse=True)


def test_unpacked_outputs_are_those_of_a_run(
    packed: SimpleNamespace, kernels: SimpleNamespace, host: Host
) -> None:
    outputs = [kernels.pull(*batch.arrays, scale=0.5) for batch in packed.batches]
    energies, forces = packed.plan.unpack(outputs)
    loop_energies, loop_forces = kernels.loop_pull(packed.host, 0.5)
    np.testing.assert_allclose(host(energies), loop_energies, rtol=1e-12)
    for force, expected in zip(host(forces), loop_forces, strict=True):
        np.testing.assert_allclose(force, expected, rtol=1e-12)


def test_two_ragged_dims_and_masks_reach_the_kernel(
    kernels: SimpleNamespace, put: Put, host: Host
) -> None:
    rng = np.random.default_rng(1)
    shapes = [(2, 5), (4, 3), (1, 1), (6, 2)]
    images = [rng.normal(size=shape) for shape in shapes]
    weights = [rng.normal(size=shape[1]) for shape in shapes]
    data = put(
        {"image": sp.Ragged.from_list(images, ragged=2), "weights": sp.Ragged.from_list(weights)}
    )
    plan = sp.plan(kernels.weigh, data, slots=[{"y": 6, "x": 5, "rows": 5}])
    (batch,) = plan.pack(data)
    weighted, columns, mean = plan.unpack([kernels.weigh(*batch.arrays, mask=batch.mask)])
    for item, (image, weight) in enumerate(zip(images, weights, strict=True)):
        np.testing.assert_allclose(host(weighted)[item], image * weight, rtol=1e-14)
        np.testing.assert_allclose(host(columns)[item], (image * weight).sum(0), rtol=1e-12)
        np.testing.assert_allclose(host(mean)[item], (image * weight).mean(), rtol=1e-12)


def test_packed_batches_unpack_to_the_columns(packed: SimpleNamespace, host: Host) -> None:
    columns = packed.plan.unpack(packed.batches)
    assert list(columns) == ["positions", "charges", "matrix"]
    for name, column in columns.items():
        given = packed.host[name]
        for item in range(len(SIZES)):
            assert np.array_equal(host(column)[item], given[item])


@settings(max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=12),
    more=st.integers(0, 3),
    empty=st.booleans(),
)
def test_unpacking_inverts_packing(
    kernels: SimpleNamespace, sizes: list[tuple[int, int]], more: int, empty: bool
) -> None:
    rng = np.random.default_rng(len(sizes))
    data = {
        "image": sp.Ragged.from_list(
            [rng.normal(size=shape) for shape in sizes], ragged=2, dtype=np.float64
        ),
        "weights": sp.Ragged.from_list(
            [rng.normal(size=shape[1]) for shape in sizes], dtype=np.float64
        ),
    }
    slots = [
        {"y": 3, "x": 4, "rows": len(sizes) + more + 1},
        {"y": 6, "x": 5, "rows": len(sizes) + 1},
    ]
    if empty:
        slots.append({"y": 1, "x": 1, "rows": 2})
    plan = sp.plan(kernels.weigh, data, slots=slots)
    columns = plan.unpack(plan.pack(data))
    for name, column in columns.items():
        for item, array in enumerate(data[name]):
            assert np.array_equal(column[item], array)


def test_an_empty_slot_is_a_batch_without_items(
    kernels: SimpleNamespace, put: Put, host: Host
) -> None:
    data = put(kernels.make_atoms([2, 3]))
    plan = sp.plan(kernels.pull, data, slots=[*SLOTS, {"atoms": 2, "rows": 2}])
    assert [batch.slot for batch in plan.batches] == [0]  # a run has nothing to do for the others
    _, large, tiny = plan.pack(data)
    for batch in (large, tiny):
        assert int(batch.count) == 0
        assert not host(batch.row_mask).any()
        assert not host(batch.mask["atoms"]).any()
        assert set(host(batch.items).tolist()) == {0}
    energies, _ = plan.unpack([kernels.pull(*batch.arrays, scale=1.0) for batch in plan.pack(data)])
    np.testing.assert_allclose(
        host(energies), kernels.loop_pull(kernels.make_atoms([2, 3]), 1.0)[0], rtol=1e-12
    )


def test_rows_of_an_empty_slot_repeat_an_item_that_fits(
    kernels: SimpleNamespace, put: Put, host: Host
) -> None:
    data = put(kernels.make_atoms([7, 2]))
    plan = sp.plan(kernels.pull, data, slots=[{"atoms": 8, "rows": 2}, {"atoms": 3, "rows": 2}])
    _, small = plan.pack(data)
    assert host(small.items).tolist() == [1, 1]
    assert np.array_equal(host(small.arrays[1])[0, :2], host(data["charges"])[1])


def test_an_empty_slot_that_no_item_fits_is_filled(
    kernels: SimpleNamespace, put: Put, host: Host
) -> None:
    data = put(kernels.make_atoms([5, 7]))
    plan = sp.plan(kernels.pull, data, slots=SLOTS)
    small, _ = plan.pack(data)
    positions, charges, matrices = (host(array) for array in small.arrays)
    assert not positions.any()
    assert not charges.any()
    assert np.array_equal(matrices, host(data["matrix"])[[0, 0, 0, 0]])  # no matrix of zeros


def test_shapes_depend_on_slots_alone(kernels: SimpleNamespace, put: Put) -> None:
    first = put(kernels.make_atoms(SIZES))
    plan = sp.plan(kernels.pull, first, slots=SLOTS)
    expected = [[tuple(a.shape) for a in batch.arrays] for batch in plan.pack(first)]
    for sizes in ([1], [8, 8, 8], [], [3, 3, 3, 3, 4]):
        other = put(kernels.make_atoms(sizes))
        again = sp.plan(kernels.pull, other, slots=plan.slots)
        assert [[tuple(a.shape) for a in batch.arrays] for batch in again.pack(other)] == expected


def test_a_first_plan_packs_with_rows_for_all(kernels: SimpleNamespace, put: Put) -> None:
    data = put(kernels.make_atoms(SIZES))
    plan = sp.plan(kernels.pull, data, slots=2, rows=len(SIZES))
    assert sum(int(batch.count) for batch in plan.pack(data)) == len(SIZES)


def test_rows_for_all_items_but_one_are_too_few(kernels: SimpleNamespace) -> None:
    data = kernels.make_atoms([3, 2, 1, 3])
    assert len(sp.plan(kernels.pull, data, slots=SLOTS).pack(data)) == 2
    more = kernels.make_atoms([3, 2, 1, 3, 3])
    with pytest.raises(sp.PlanError, match="holds 5 items, but its batch has 4 rows"):
        sp.plan(kernels.pull, more, slots=SLOTS).pack(more)


def test_more_items_than_rows_name_the_slot(kernels: SimpleNamespace) -> None:
    data = kernels.make_atoms([8, 3, 2, 1, 3, 3, 2])
    plan = sp.plan(kernels.pull, data, slots=SLOTS)
    with pytest.raises(
        sp.PlanError, match=r"slot 0 \(atoms=3\) holds 6 items, but its batch has 4 rows.*rows=6"
    ):
        plan.pack(data)


def test_a_plan_without_a_kernel_says_how_to_get_one(
    kernels: SimpleNamespace, tmp_path: Any
) -> None:
    data = kernels.make_atoms(SIZES)
    plan = sp.plan(kernels.pull, data, slots=SLOTS)
    plan.save(tmp_path / "plan")
    for other in (sp.Plan.load(tmp_path / "plan"), sp.assign_slots({"atoms": SIZES}, SLOTS)):
        with pytest.raises(sp.PlanError, match=r"sp.plan\(kernel, data, slots=plan.slots\)"):
            other.pack(data)
        with pytest.raises(sp.PlanError, match="no kernel to unpack for"):
            other.unpack([])


def test_data_of_other_sizes_are_refused(kernels: SimpleNamespace) -> None:
    plan = sp.plan(kernels.pull, kernels.make_atoms(SIZES), slots=SLOTS)
    with pytest.raises(sp.PlanError, match="other sizes: 1 of 5"):
        plan.pack(kernels.make_atoms([3, 0, 7, 2, 4]))


def test_results_that_fit_no_slot_are_refused(kernels: SimpleNamespace) -> None:
    data = kernels.make_atoms(SIZES)
    plan = sp.plan(kernels.pull, data, slots=SLOTS)
    outputs = [kernels.pull(*batch.arrays, scale=1.0) for batch in plan.pack(data)]
    with pytest.raises(sp.DataError, match="1 results for 2 slots"):
        plan.unpack(outputs[:1])
    with pytest.raises(sp.DataError, match=r"output 0 of slot 0 has shape \(3,\).*\(4,\)"):
        plan.unpack(outputs[::-1])
    with pytest.raises(sp.DataError, match="1 parts, pull has 2 outputs"):
        plan.unpack([energies for energies, _ in outputs])
    with pytest.raises(sp.DataError, match=r"like='speed' is no argument.*positions, charges"):
        plan.unpack(outputs, like="speed")


def test_index_columns_stay_valid(kernels: SimpleNamespace, put: Put, host: Host) -> None:
    charges = [np.array([1.0, 2.0, 4.0]), np.array([8.0, 16.0])]
    neighbours = [np.array([[1, 2], [0, -1], [-1, -1]]), np.array([[1, -1], [0, 0]])]
    data = put(
        {"charges": sp.Ragged.from_list(charges), "neighbours": sp.Ragged.from_list(neighbours)}
    )
    plan = sp.plan(kernels.near, data, slots=[{"atoms": 5, "rows": 3}])
    found = plan.unpack([kernels.near(*batch.arrays) for batch in plan.pack(data)])
    assert [part.tolist() for part in host(found)] == [[6, 1, 0], [16, 16]]


@pytest.mark.parametrize("wrong", [3, -2])
def test_an_index_out_of_range_is_named(kernels: SimpleNamespace, put: Put, wrong: int) -> None:
    charges = [np.ones(2), np.ones(3)]
    neighbours = [np.array([[1], [0]]), np.array([[1], [wrong], [-1]])]
    data = put(
        {"charges": sp.Ragged.from_list(charges), "neighbours": sp.Ragged.from_list(neighbours)}
    )
    plan = sp.plan(kernels.near, data, slots=[{"atoms": 5, "rows": 2}])
    with pytest.raises(sp.DataError, match=rf"pack: near.*Item 1 has atoms=3 and an index {wrong}"):
        plan.pack(data)


def test_batches_are_moved_where_asked(kernels: SimpleNamespace, framework: str, xp: Any) -> None:
    data = kernels.make_atoms(SIZES)
    plan = sp.plan(kernels.pull, data, slots=SLOTS)
    for batch in plan.pack(data, on=framework):
        for leaf in (*batch.arrays, batch.mask["atoms"], batch.row_mask, batch.items):
            assert type(leaf) is type(xp.asarray(np.zeros(1)))


def misfit(xp: Any, energies: Any, forces: Any, batch: Any) -> Any:
    """Sum over items of energy^2 and of the mean square force."""
    atoms = xp.sum(xp.where(batch.mask["atoms"], 1.0, 0.0), axis=-1)
    inside = xp.where(batch.mask["atoms"][..., None], forces, 0.0 * forces)
    square = xp.sum(inside**2, axis=(-2, -1)) / xp.where(atoms > 0, atoms, 1.0)
    return xp.sum(xp.where(batch.row_mask, energies**2, 0.0 * energies) + square)


def slow_gradients(data: dict[str, Any], scale: float) -> tuple[float, list[np.ndarray]]:
    """Derivatives of the misfit with respect to scale and charges, one item after the other."""
    by_scale, by_charges = 0.0, []
    for positions, charges, matrix in zip(*data.values(), strict=True):
        turned = positions @ matrix
        squares = (turned**2).sum(1)
        energy = scale * (charges * squares).sum()
        by_scale += 2 * energy**2 / scale
        gradient = 2 * energy * scale * squares
        if len(charges):
            by_scale += 2 * scale * (charges**2 * squares).sum() / len(charges)
            gradient = gradient + 2 * scale**2 * charges * squares / len(charges)
        by_charges.append(gradient)
    return by_scale, by_charges


def test_gradients_through_packed_batches_are_those_of_a_loop_over_items(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType], host: Host
) -> None:
    jnp = load_framework("jax")
    import jax

    data = kernels.make_atoms([2, 3, 1])  # leaves the large slot empty
    plan = sp.plan(kernels.pull, data, slots=SLOTS)

    def loss(scale: Any, charges: Any, batches: Any) -> Any:
        total = 0.0
        for own, batch in zip(charges, batches, strict=True):
            energies, forces = kernels.pull(batch.arrays[0], own, batch.arrays[2], scale=scale)
            total += misfit(jnp, energies, forces, batch)
        return total

    batches = plan.pack(data, on="jax")
    charges = [batch.arrays[1] for batch in batches]
    by_scale, by_charges = jax.jit(jax.grad(loss, argnums=(0, 1)))(0.7, charges, batches)
    scale, expected = slow_gradients(data, 0.7)
    np.testing.assert_allclose(by_scale, scale, rtol=1e-12)
    assert all(np.isfinite(part).all() for part in by_charges)
    for found, slow in zip(host(plan.unpack(by_charges, like="charges")), expected, strict=True):
        np.testing.assert_allclose(found, slow, rtol=1e-12)


def test_torch_gradients_reach_the_data_through_pack(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType], put: Put, host: Host
) -> None:
    load_framework("torch")
    import torch

    data = kernels.make_atoms([2, 3, 0, 1])
    flat = torch.from_numpy(data["charges"].values).requires_grad_()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    columns = {
        "positions": data["positions"].map_values(torch.from_numpy),
        "charges": data["charges"].map_values(lambda _: flat),
        "matrix": torch.from_numpy(data["matrix"]),
    }
    plan = sp.plan(kernels.pull, columns, slots=SLOTS)
    total = sum(
        misfit(torch, *kernels.pull(*batch.arrays, scale=scale), batch)
        for batch in plan.pack(columns)
    )
    total.backward()
    by_scale, by_charges = slow_gradients(data, 0.7)
    np.testing.assert_allclose(scale.grad, by_scale, rtol=1e-12)
    np.testing.assert_allclose(flat.grad, np.concatenate(by_charges), rtol=1e-12)


def test_packed_batches_are_pytrees(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    load_framework("jax")
    import jax

    data = kernels.make_atoms(SIZES)
    batches = sp.plan(kernels.pull, data, slots=SLOTS).pack(data)
    doubled = jax.tree.map(lambda leaf: leaf + leaf, batches)
    assert isinstance(doubled[0], sp.PackedBatch)
    assert np.array_equal(doubled[0].arrays[1], 2 * batches[0].arrays[1])
    seen = []
    jax.jit(lambda batch: seen.append(batch.slot) or batch.count)(batches[1])
    assert seen == [{"atoms": 8, "rows": 3}]  # static under a trace


def test_a_step_is_traced_once_for_60_shuffled_minibatches(
    kernels: SimpleNamespace, load_framework: Callable[[str], ModuleType]
) -> None:
    load_framework("jax")
    import jax

    rng = np.random.default_rng(0)
    traces = []

    @jax.jit
    def step(scale: Any, batches: Any) -> Any:
        traces.append(1)

        def loss(scale: Any) -> Any:
            return sum(misfit(jax.numpy, *kernels.pull(*b.arrays, scale=scale), b) for b in batches)

        return jax.value_and_grad(loss)(scale)

    slots = None
    empty = 0
    for number in range(60):
        sizes = rng.integers(1, 4, 8).tolist() + ([7] if number % 3 else [])
        data = kernels.make_atoms(rng.permutation(sizes).tolist(), seed=number)
        limits = slots or [{"atoms": 3, "rows": 10}, {"atoms": 8, "rows": 2}]
        plan = sp.plan(kernels.pull, data, slots=limits)
        slots = plan.slots
        batches = plan.pack(data)
        empty += int(batches[1].count) == 0
        value, _ = step(0.7, batches)
        slow = 0.0
        for energy, force in zip(*kernels.loop_pull(data, 0.7), strict=True):
            slow += energy**2 + (force**2).sum() / len(force)
        np.testing.assert_allclose(value, slow, rtol=1e-11)
    assert empty == 20
    assert len(traces) == 1


@pytest.mark.parametrize("on", ["jax", "torch"])
@pytest.mark.parametrize("part", ["kspace", "real"])
def test_ewald_gradients_are_finite_in_empty_slots(
    load_framework: Callable[[str], ModuleType], on: str, part: str
) -> None:
    atoms = pytest.importorskip("ase").Atoms
    pytest.importorskip("vesin")
    xp = load_framework(on)
    from stowplan.kernels import ewald as kernels
    from stowplan.recipes import ewald

    cell = [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    salt = atoms("NaCl", [[0, 0, 0], [1, 0, 0]], cell=cell, pbc=True)
    dimer = atoms("NaCl", [[0, 0, 0], [0, 0, 2.0]])
    columns = ewald.columns([salt, dimer], charges={"Na": 1, "Cl": -1})
    data = dict(zip(("kspace", "real"), columns, strict=True))[part]
    kernel = getattr(kernels, f"{part}_energy")
    plan = sp.plan(kernel, data, slots=1, rows=2)
    (slot,) = plan.slots
    tiny, large = dict.fromkeys(slot, 1), {dim: 2 * size for dim, size in slot.items()}
    plan = sp.plan(kernel, data, slots=[{**tiny, "rows": 3}, slot, {**large, "rows": 1}])
    place = kernel.arguments.index("positions")

    def energies(positions: Any, batch: Any) -> Any:
        arrays = [*batch.arrays[:place], positions, *batch.arrays[place + 1 :]]
        mask = {"mask": batch.mask} if kernel.takes_mask else {}
        each = kernel(*arrays, **mask)
        return xp.sum(xp.where(batch.row_mask, each, 0.0 * each))

    batches = plan.pack(data, on=on)
    assert [int(batch.count) for batch in batches] == [0, 2, 0]
    for batch in batches:
        positions = batch.arrays[place]
        if on == "jax":
            import jax

            slope = np.asarray(jax.jit(jax.grad(energies))(positions, batch))
        else:
            positions = positions.detach().requires_grad_()
            energies(positions, batch).backward()
            slope = positions.grad.numpy()
        assert np.isfinite(slope).all()
        assert not slope[~np.asarray(batch.row_mask)].any()
