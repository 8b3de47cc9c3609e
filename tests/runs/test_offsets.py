"""Items in the middle of their padding, or anywhere: the results are those of the corner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp
from stowplan.runs.recovery import halve_batches

Put = Callable[..., Any]
Host = Callable[[Any], Any]

SHAPES = [(2, 5), (4, 3), (1, 1), (6, 2), (0, 3), (3, 4), (2, 0), (5, 5)]
SLOTS = [{"y": 4, "x": 7, "rows": 3}, {"y": 8, "x": 6, "rows": 2}]
WHERE = ["corner", "centre", "random", "far"]


@sp.kernel("(n)->(n),(m),(n,m)", ragged="n", out_sizes={"m": "2 * n"})
def steps(x):
    """An output dim of its own, alone and beside the one of the input."""
    xp = array_namespace(x)
    count = xp.arange(1, 2 * x.shape[-1] + 1, dtype=x.dtype)
    total = xp.sum(x, axis=-1)[..., None]
    return 2 * x, total * count, x[..., None] * count


@sp.kernel("(n),(items)->(items),(n)", ragged=("n", "items"), segments="items")
def weighted(x, weight, *, mask, segments):
    """The parts of each item of a row with its weight, and their sums."""
    xp = array_namespace(x, weight)
    ids = segments["n"]
    factor = xp.take_along_axis(weight, xp.where(ids >= 0, ids, 0), axis=-1)
    parts = xp.where(ids >= 0, x * factor, xp.zeros_like(x))
    numbers = xp.arange(weight.shape[-1])
    own = xp.astype(ids[..., None, :] == numbers[:, None], x.dtype)
    return xp.sum(own * parts[..., None, :], axis=-1), parts


def make_images(dtype: Any = np.float64) -> dict[str, Any]:
    """Columns of ``weigh`` as NumPy."""
    rng = np.random.default_rng(2)
    images = [rng.normal(size=shape).astype(dtype) for shape in SHAPES]
    weights = [rng.normal(size=shape[1]).astype(dtype) for shape in SHAPES]
    return {"image": sp.Ragged.from_list(images, ragged=2), "weights": sp.Ragged.from_list(weights)}


def loop_weigh(data: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """What ``weigh`` gives, one item after the other."""
    found = []
    for image, weights in zip(data["image"], data["weights"], strict=True):
        weighted = np.array(image) * np.array(weights)
        found.append((weighted, weighted.sum(0), weighted.mean() if weighted.size else 0.0))
    return found


def moved(plan: sp.Plan, where: str) -> sp.Plan:
    """The plan with its items elsewhere."""
    room = plan.capacities - plan.lengths
    offsets = {
        "corner": 0 * room,
        "centre": room // 2,
        "far": room,
        "random": np.random.default_rng(1).integers(0, room + 1),
    }[where]
    return replace(plan, offsets=offsets)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("slots", [SLOTS, 1])
def test_a_kernel_with_masks_gives_the_same_wherever_items_lie(
    kernels: SimpleNamespace, put: Put, host: Host, where: str, slots: Any
) -> None:
    data = make_images()
    plan = moved(sp.plan(kernels.weigh, data, slots=slots, order="cheapest"), where)
    weighted, sums, means = map(host, sp.run(kernels.weigh, put(data), plan))
    for item, expected in enumerate(loop_weigh(data)):
        np.testing.assert_allclose(weighted[item], expected[0], rtol=1e-12)
        np.testing.assert_allclose(sums[item], expected[1], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(means[item], expected[2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("where", WHERE)
def test_trailing_axes_and_columns_without_ragged_dims_are_kept(
    kernels: SimpleNamespace, put: Put, host: Host, where: str
) -> None:
    data = kernels.make_atoms([3, 0, 7, 2, 5, 1])
    plan = moved(sp.plan(kernels.pull, data, slots=2, rows=2), where)
    energies, forces = sp.run(kernels.pull, put(data), plan, scale=0.5)
    slow_energies, slow_forces = kernels.loop_pull(data, 0.5)
    np.testing.assert_allclose(host(energies), slow_energies, rtol=1e-12)
    for found, expected in zip(host(forces), slow_forces, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("where", WHERE)
def test_a_dim_of_an_output_that_no_input_has_begins_at_0(put: Put, host: Host, where: str) -> None:
    items = [np.arange(1.0, n + 1) for n in (3, 1, 4, 0, 2)]
    data = {"x": sp.Ragged.from_list(items)}
    plan = moved(sp.plan(steps, data, slots=[{"n": 2, "rows": 2}, {"n": 6, "rows": 2}]), where)
    twice, own, both = map(host, sp.run(steps, put(data), plan))
    for place, x in enumerate(items):
        count = np.arange(1.0, 2 * len(x) + 1)
        np.testing.assert_array_equal(twice[place], 2 * x)
        np.testing.assert_array_equal(own[place], x.sum() * count)
        np.testing.assert_array_equal(both[place], np.outer(x, count))


def test_sp_plan_takes_a_word_or_an_array(kernels: SimpleNamespace) -> None:
    data = make_images()

    def planned(offsets: Any) -> Any:
        return sp.plan(kernels.weigh, data, slots=[{"y": 7, "x": 8}], offsets=offsets)

    assert planned("corner").offsets is None
    shapes = np.array(SHAPES)
    assert (planned("centre").offsets == ([7, 8] - shapes) // 2).all()
    given = np.random.default_rng(3).integers(0, [7, 8] - shapes + 1)
    assert (planned(given).offsets == given).all()
    with pytest.raises(sp.PlanError, match=r"plan: 1 of 8 items reach beyond .*Item 3 has size"):
        planned(np.where(np.arange(8)[:, None] == 3, [2, 0], 0))
    with pytest.raises(sp.PlanError, match="plan: offsets='left'; allowed are"):
        planned("left")


def test_a_plan_of_fit_buckets_runs(kernels: SimpleNamespace, put: Put, host: Host) -> None:
    data = make_images()
    plan = sp.fit_buckets(data["image"].shapes, [(4, 7), (8, 6)])
    assert plan.offsets is not None
    found = host(sp.run(kernels.weigh, put(data), sp.split_chunks(plan, 2))[0])
    for image, (expected, _, _) in zip(found, loop_weigh(data), strict=True):
        np.testing.assert_allclose(image, expected, rtol=1e-12)


@pytest.mark.parametrize("rows", [3, 8])  # the last batch of 3 repeats an item
@pytest.mark.parametrize("where", ["centre", "random"])
@pytest.mark.parametrize("way", ["torch", "jax", "jax.jit"])
def test_gradients_do_not_depend_on_where_items_lie(
    kernels: SimpleNamespace,
    load_framework: Callable[[str], ModuleType],
    way: str,
    where: str,
    rows: int,
) -> None:
    load_framework(way.partition(".")[0])
    data = make_images()
    layouts = [data[name].layout for name in ("image", "weights")]
    rng = np.random.default_rng(7)
    by_pixel, by_sum = (rng.normal(size=len(data[name].values)) for name in ("image", "weights"))
    by_mean = rng.normal(size=len(SHAPES))
    plan = moved(sp.plan(kernels.weigh, data, slots=1, rows=rows), where)
    assert len(plan.batches) == -(-len(SHAPES) // rows)

    def loss(image: Any, weights: Any, put: Any) -> Any:
        values = zip(("image", "weights"), (image, weights), layouts, strict=True)
        columns = {name: sp.Ragged.from_layout(flat, layout) for name, flat, layout in values}
        weighted, sums, means = sp.run(kernels.weigh, columns, plan)
        total = (put(by_pixel) * weighted.values).sum() + (put(by_sum) * sums.values).sum()
        return total + (put(by_mean) * means).sum()

    values = [data[name].values for name in ("image", "weights")]
    if way == "torch":
        import torch

        leaves = [torch.tensor(one, requires_grad=True) for one in values]
        loss(*leaves, torch.from_numpy).backward()
        found = [leaf.grad.numpy() for leaf in leaves]
    else:
        import jax

        gradient = jax.grad(lambda *leaves: loss(*leaves, np.asarray), argnums=(0, 1))
        gradient = jax.jit(gradient) if way == "jax.jit" else gradient
        found = [np.asarray(part) for part in gradient(*map(jax.numpy.asarray, values))]
    by_pixels, by_sums = (
        sp.Ragged.from_layout(flat, layout).to_list()
        for flat, layout in zip((by_pixel, by_sum), layouts, strict=True)
    )
    by_image, by_weights = (
        sp.Ragged.from_layout(flat, layout) for flat, layout in zip(found, layouts, strict=True)
    )
    for item, (height, width) in enumerate(SHAPES):
        slope = by_pixels[item] + by_sums[item] + by_mean[item] / max(height * width, 1)
        image, weights = (np.array(data[name][item]) for name in ("image", "weights"))
        np.testing.assert_allclose(by_image[item], slope * weights, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(by_weights[item], (slope * image).sum(0), rtol=1e-11, atol=1e-13)


def test_a_traced_run_of_several_shapes_honours_offsets(
    load_framework: Callable[[str], ModuleType],
) -> None:
    load_framework("jax")
    import jax

    items = [np.arange(1.0, n + 1) for n in (3, 1, 4, 0, 2, 6, 5)]
    column = sp.Ragged.from_list(items)
    slots = [{"n": 3, "rows": 2}, {"n": 7, "rows": 2}]
    plan = moved(sp.plan(steps, {"x": column}, slots=slots), "random")
    assert len(plan.batches) == 4
    assert plan.offsets is not None

    @jax.jit
    def run(flat: Any) -> Any:
        return sp.run(steps, {"x": sp.Ragged.from_layout(flat, column.layout)}, plan)

    twice, own, both = run(jax.numpy.asarray(column.values))
    for place, x in enumerate(items):
        count = np.arange(1.0, 2 * len(x) + 1)
        np.testing.assert_array_equal(twice[place], 2 * x)
        np.testing.assert_array_equal(own[place], x.sum() * count)
        np.testing.assert_array_equal(both[place], np.outer(x, count))


def padded_at(array: np.ndarray, capacity: tuple[int, ...], begin: Any) -> np.ndarray:
    """One item from its offset on, by NumPy's own function."""
    room = [
        (b, c - n - b)
        for n, c, b in zip(array.shape[: len(capacity)], capacity, begin, strict=True)
    ]
    return np.pad(array, room + [(0, 0)] * (array.ndim - len(capacity)))


@pytest.mark.parametrize("where", ["centre", "random"])
def test_a_packed_batch_holds_items_at_their_offsets_and_is_unpacked(
    kernels: SimpleNamespace, put: Put, host: Host, where: str
) -> None:
    data = make_images()
    slots = [{"y": 4, "x": 7, "rows": 6}, {"y": 8, "x": 6, "rows": 4}, {"y": 9, "x": 9, "rows": 2}]
    plan = moved(sp.plan(kernels.weigh, data, slots=slots), where)
    batches = plan.pack(put(data))
    assert not host(batches[2].row_mask).any()
    for batch, slot in zip(batches, slots, strict=True):
        for row in np.flatnonzero(host(batch.row_mask)):
            item = int(host(batch.items)[row])
            y, x = plan.offsets[item]
            image, weights = (host(array)[row] for array in batch.arrays)
            capacity = (slot["y"], slot["x"])
            expected = padded_at(np.array(data["image"][item]), capacity, (y, x))
            np.testing.assert_array_equal(image, expected)
            expected = padded_at(np.array(data["weights"][item]), capacity[1:], (x,))
            np.testing.assert_array_equal(weights, expected)
            for dim, begin, length in zip("yx", (y, x), SHAPES[item], strict=True):
                held = np.flatnonzero(host(batch.mask[dim])[row])
                assert held.tolist() == list(range(begin, begin + length))
    back = plan.unpack(batches)
    for name, column in data.items():
        for found, expected in zip(host(back[name]), column, strict=True):
            np.testing.assert_array_equal(found, expected)
    outputs = [kernels.weigh(*batch.arrays, mask=batch.mask) for batch in batches]
    for found, (expected, _, _) in zip(
        host(plan.unpack(outputs)[0]), loop_weigh(data), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("items", [[0, 3, 1], [7], [], [2, 4, 6, 5]])
def test_a_packer_centres_minibatches_and_unpacks_them(
    kernels: SimpleNamespace, put: Put, host: Host, items: list[int]
) -> None:
    data = make_images()
    slots = [{"y": 4, "x": 5, "rows": 3}, {"y": 8, "x": 7, "rows": 2}]
    packer = sp.Packer(kernels.weigh, put(data), slots, offsets="centre")
    batches = packer(items)
    for batch, slot in zip(batches, slots, strict=True):
        capacity = np.array([slot["y"], slot["x"]])
        for row in range(slot["rows"]):
            item, real = int(host(batch.items)[row]), host(batch.row_mask)[row]
            begin = (capacity - SHAPES[item]) // 2
            image, weights = (host(array)[row] for array in batch.arrays)
            expected = padded_at(np.array(data["image"][item]), tuple(capacity), begin)
            np.testing.assert_array_equal(image, expected)
            expected = padded_at(np.array(data["weights"][item]), (slot["x"],), begin[1:])
            np.testing.assert_array_equal(weights, expected)
            for dim, first, length in zip("yx", begin, SHAPES[item], strict=True):
                held = np.flatnonzero(host(batch.mask[dim])[row])
                assert held.tolist() == (list(range(first, first + length)) if real else [])
    outputs = [kernels.weigh(*batch.arrays, mask=batch.mask) for batch in batches]
    expected = loop_weigh(data)
    found = host(packer.unpack(outputs, items)[0])
    for image, item in zip(found, items, strict=True):
        np.testing.assert_allclose(image, expected[item][0], rtol=1e-12)


@pytest.mark.parametrize("offsets", ["left", [[0, 0]], None])
def test_a_packer_takes_one_of_two_words(kernels: SimpleNamespace, offsets: Any) -> None:
    with pytest.raises(sp.PlanError, match=r"Packer: offsets=.*; allowed are"):
        sp.Packer(kernels.weigh, make_images(), SLOTS, offsets=offsets)


def make_near() -> dict[str, Any]:
    """Columns of ``near``: two items, one neighbour for each atom."""
    charges = sp.Ragged(np.arange(1.0, 6.0), [3, 2])
    return {
        "charges": charges,
        "neighbours": sp.Ragged(np.array([[1], [2], [0], [1], [-1]]), [3, 2]),
    }


def test_offsets_along_a_dim_that_indices_count_are_refused(kernels: SimpleNamespace) -> None:
    data = make_near()
    reason = r": near: items have offsets along 'atoms', but column 'neighbours' holds indices"
    slots = [{"atoms": 4, "rows": 2}]
    with pytest.raises(sp.PlanError, match=f"plan{reason}"):
        sp.plan(kernels.near, data, slots=slots, offsets="centre")
    with pytest.raises(sp.PlanError, match=f"Packer{reason}"):
        sp.Packer(kernels.near, data, slots, offsets="centre")
    plan = sp.plan(kernels.near, data, slots=slots)
    shifted = replace(plan, offsets=np.array([[1], [0]]))
    for call in (
        lambda: sp.run(kernels.near, data, shifted),
        lambda: shifted.pack(data),
        lambda: sp.verify(kernels.near, data, shifted),
    ):
        with pytest.raises(sp.PlanError, match=reason):
            call()


def test_segments_lie_where_their_entries_do(put: Put, host: Host) -> None:
    data = {
        "x": sp.Ragged(np.arange(1.0, 9.0), [3, 1, 4]),
        "weight": np.array([2.0, -1.0, 0.5]),
    }
    plan = sp.plan(weighted, put(data), slots=[{"n": 7, "items": 1}], offsets="centre")
    assert plan.offsets[:, 0].tolist() == [2, 3, 1]
    sums, parts = sp.run(weighted, put(data), plan)
    assert np.concatenate(host(sums)).tolist() == [12.0, -4.0, 13.0]
    assert np.concatenate(host(parts)).tolist() == [2, 4, 6, -4, 2.5, 3, 3.5, 4]
    with pytest.raises(sp.PlanError, match="offsets along 'items', but segments count items"):
        sp.plan(weighted, data, slots=[{"n": 7, "items": 3}], offsets="centre")


def test_verify_passes_a_neutral_kernel_and_finds_what_reads_padding_in_front(
    kernels: SimpleNamespace, put: Put
) -> None:
    data = make_images()
    plan = moved(sp.plan(kernels.weigh, data, slots=1), "centre")
    assert sp.verify(kernels.weigh, put(data), plan).passed

    @sp.kernel("(n)->()", ragged="n")
    def first(x):
        return x[..., 0]

    column = {"x": put(sp.Ragged(np.arange(1.0, 10.0), [2, 3, 4]))}
    corner = sp.plan(first, column, slots=[{"n": 8}])
    assert sp.verify(first, column, corner).passed
    found = sp.verify(first, column, moved(corner, "centre"))
    assert not found.passed
    assert found.alone["output 0"] > 1
    assert found.padded["output 0"] == 0  # padding in front there, too
    assert found.fills["x"]["output 0"] > 1


def test_the_catch_all_and_slots_without_items_begin_in_the_corner(
    kernels: SimpleNamespace, put: Put, host: Host
) -> None:
    data = make_images()
    plan = sp.plan(kernels.weigh, data, slots=1, headroom=1.5, rows=3, offsets="centre")
    for _ in range(2):
        found = host(sp.run(kernels.weigh, put(data), plan)[0])
        for image, (expected, _, _) in zip(found, loop_weigh(data), strict=True):
            np.testing.assert_allclose(image, expected, rtol=1e-12)
    slots = [{"y": 7, "x": 7, "rows": 8}, {"y": 9, "x": 8, "rows": 1}]
    far = moved(sp.plan(kernels.weigh, data, slots=slots), "far")
    empty = far.pack(put(data))[1]
    assert far.offsets[0].tolist() == [5, 2]
    expected = padded_at(np.array(data["image"][0]), (9, 8), (0, 0))
    np.testing.assert_array_equal(host(empty.arrays[0])[0], expected)


def test_no_items_have_no_offsets(kernels: SimpleNamespace, put: Put) -> None:
    data = put({"image": sp.Ragged(np.zeros(0), np.zeros((0, 2), int)),
                "weights": sp.Ragged(np.zeros(0), np.zeros(0, int))})  # fmt: skip
    plan = sp.plan(kernels.weigh, data, offsets="centre")
    assert plan.offsets is None
    weighted, _, means = sp.run(kernels.weigh, data, plan)
    assert len(weighted) == 0
    assert means.shape == (0,)


def test_batches_that_memory_halves_keep_their_offsets(kernels: SimpleNamespace) -> None:
    data = make_images()
    plan = moved(sp.plan(kernels.weigh, data, slots=1, rows=4), "random")
    halved = halve_batches("run", kernels.weigh, plan, 1, "planted")
    assert [len(batch.items) for batch in halved.batches] == [4, 2, 2]
    assert (halved.offsets == plan.offsets).all()
    found = sp.run(kernels.weigh, data, halved)[0]
    for image, (expected, _, _) in zip(found, loop_weigh(data), strict=True):
        np.testing.assert_allclose(image, expected, rtol=1e-12)


def test_a_budget_and_probes_take_a_plan_with_offsets(kernels: SimpleNamespace) -> None:
    data = make_images()
    plan = sp.plan(kernels.weigh, data, slots=2, budget="1 GiB", offsets="centre")
    assert plan.offsets is not None
    (one, two) = sp.calibrate(kernels.weigh, data, plan)
    corner = sp.calibrate(kernels.weigh, data, replace(plan, offsets=None))
    assert [one.bytes_per_row, two.bytes_per_row] == [model.bytes_per_row for model in corner]


def test_a_saved_plan_runs_as_before(tmp_path: Any, kernels: SimpleNamespace) -> None:
    data = make_images()
    plan = moved(sp.plan(kernels.weigh, data, slots=2), "random")
    plan.save(tmp_path / "plan")
    loaded = sp.Plan.load(tmp_path / "plan")
    assert (loaded.offsets == plan.offsets).all()
    one, two = (sp.run(kernels.weigh, data, each) for each in (plan, loaded))
    for first, second in zip(one[0], two[0], strict=True):
        np.testing.assert_array_equal(first, second)
