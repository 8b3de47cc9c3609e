"""Several items in one row: results equal those of a slow loop over items, whatever the company."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.kernels.ewald import real_energy
from stowplan.runs.columns import bind
from stowplan.special import segment_sum

SIZES = [3, 5, 1, 0, 4, 2, 6]
LIMITS = {"atoms": 8, "pairs": 40, "molecules": 3}


class Interaction(NamedTuple):
    """Outputs by name."""

    energy: Any
    forces: Any
    each: Any


@sp.kernel(
    "(atoms,3),(atoms),(pairs,2),(molecules,3,3),(molecules)->(molecules),(atoms,3),(pairs)",
    ragged=("atoms", "pairs", "molecules"),
    fill={"pairs": -1},
    index={"pairs": "atoms"},
    segments="molecules",
)
def pair_energy(positions, charges, pairs, cell, strength, *, mask, segments, power=1.0):
    """Pairs of charges at a distance measured in the molecule's own metric; forces by hand."""
    xp = array_namespace(positions, charges, cell, strength)
    molecule = segments["pairs"]
    listed = (molecule >= 0) & (pairs[..., 0] >= 0) & (pairs[..., 1] >= 0)

    def at(values, index, where):
        return xp.take_along_axis(values, xp.where(where, index, xp.zeros_like(index)), axis=-1)

    ends = pairs[..., 0], pairs[..., 1]
    apart = [
        at(positions[..., c], ends[0], listed) - at(positions[..., c], ends[1], listed)
        for c in range(3)
    ]
    turned = [
        sum(apart[a] * at(cell[..., a, b], molecule, molecule >= 0) for a in range(3))
        for b in range(3)
    ]
    square = turned[0] ** 2 + turned[1] ** 2 + turned[2] ** 2
    square = xp.where(listed, square, xp.ones_like(square))
    weight = at(charges, ends[0], listed) * at(charges, ends[1], listed)
    weight = weight * at(strength, molecule, molecule >= 0)
    each = xp.where(listed, weight * square ** (-power / 2), xp.zeros_like(square))
    pull = power * each / square
    forces = []
    for a in range(3):
        along = sum(turned[b] * at(cell[..., a, b], molecule, molecule >= 0) for b in range(3))
        atoms = positions.shape[-2]
        both = [segment_sum(pull * along, end, atoms) for end in ends]
        forces.append(both[0] - both[1])
    energy = segment_sum(each, molecule, mask["molecules"].shape[-1])
    return Interaction(energy, xp.stack(forces, axis=-1), each)


def molecules(sizes, seed=0):
    """Columns of ``pair_energy``: all pairs, in an order of their own, and an empty pair."""
    rng = np.random.default_rng(seed)
    pairs = []
    for n in sizes:
        every = [(i, j) if rng.random() < 0.5 else (j, i) for i in range(n) for j in range(i)]
        given = [*every, (-1, -1)] if n else []
        pairs.append(rng.permutation(np.array(given, np.int64).reshape(-1, 2)))
    return {
        "positions": sp.Ragged(3 * rng.normal(size=(sum(sizes), 3)), sizes),
        "charges": sp.Ragged(rng.normal(size=sum(sizes)), sizes),
        "pairs": sp.Ragged.from_list(pairs, tail=(2,), dtype=np.int64),
        "cell": np.eye(3) + 0.1 * rng.normal(size=(len(sizes), 3, 3)),
        "strength": rng.normal(size=len(sizes)),
    }


def slow(data, power=1.0):
    """Energies, forces and energies of pairs, one pair after the other."""
    energies, forces, parts = [], [], []
    for positions, charges, pairs, cell, strength in zip(*data.values(), strict=True):
        energy, force, each = 0.0, np.zeros(positions.shape), np.zeros(len(pairs))
        metric = cell @ cell.T
        for place, (i, j) in enumerate(pairs):
            if i >= 0:
                apart = positions[i] - positions[j]
                square = apart @ metric @ apart
                each[place] = strength * charges[i] * charges[j] / square ** (power / 2)
                force[i] += power * each[place] / square * (metric @ apart)
                force[j] -= power * each[place] / square * (metric @ apart)
        energies.append(each.sum() + energy)
        forces.append(force)
        parts.append(each)
    return np.array(energies), forces, parts


def sizes_of(data):
    return {"atoms": data["positions"].shapes[:, 0], "pairs": data["pairs"].shapes[:, 0]}


def assert_equals(found, expected, tolerance=1e-12):
    energies, forces, parts = expected
    scale = max(np.abs(energies).max(initial=1.0), 1.0)
    np.testing.assert_allclose(found.energy, energies, rtol=0, atol=tolerance * scale)
    for given_, wanted in ((found.forces, forces), (found.each, parts)):
        assert len(given_) == len(wanted)
        for part, right in zip(given_, wanted, strict=True):
            assert part.shape == right.shape
            np.testing.assert_allclose(part, right, rtol=0, atol=tolerance * scale)


def compute(data, packing, **options):
    rows = sp.join_rows(pair_energy, data, packing)
    plan = sp.plan(pair_energy, rows, **options)
    return sp.split_rows(pair_energy, sp.run(pair_energy, rows, plan), packing)


@pytest.mark.parametrize("options", [{}, {"slots": [LIMITS]}, {"slots": "exact"}, {"rows": 2}])
def test_joined_rows_give_what_a_loop_over_items_gives(put, host, options):
    data = molecules(SIZES)
    packing = sp.pack_rows(sizes_of(data), LIMITS)
    assert len(packing) < len(SIZES)
    assert packing.counts.max() > 1
    found = compute(put(data), packing, **options)
    assert type(found) is Interaction
    assert_equals(Interaction(*map(host, found)), slow(data))


def test_by_run_and_by_hand_one_item_a_row_gives_the_same(put, host, xp):
    data = molecules(SIZES)
    expected = slow(data)
    found = sp.run(pair_energy, put(data))
    energies = np.concatenate(host(found.energy))
    assert_equals(Interaction(energies, host(found.forces), host(found.each)), expected)
    item = [column[4] for column in data.values()]
    by_hand = pair_energy(
        *map(xp.asarray, item[:3]), xp.asarray(item[3][None]), xp.asarray(item[4:])
    )
    np.testing.assert_allclose(host(by_hand.energy), expected[0][4:5], rtol=1e-12)
    np.testing.assert_allclose(host(by_hand.forces), expected[1][4], atol=1e-12)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    room=st.integers(6, 20),
    most=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_company_and_order_change_nothing(sizes, room, most, seed):
    data = molecules(sizes, seed)
    limits = {"molecules": most, "atoms": room, "pairs": 40}
    expected = slow(data)
    assert_equals(compute(data, sp.pack_rows(sizes_of(data), limits)), expected, 1e-11)
    order = np.random.default_rng(seed).permutation(len(sizes))
    other = {name: column[order] for name, column in data.items()}  # Ragged views
    moved = compute(other, sp.pack_rows(sizes_of(other), limits))
    energies, forces, parts = expected
    wanted = energies[order], [forces[item] for item in order], [parts[item] for item in order]
    assert_equals(moved, wanted, 1e-11)


@sp.kernel(
    "(n,2),(n),(m),(items,2)->(n,2),(n),(m),(items,2),(n),(items)",
    ragged=("n", "m", "items"),
    fill={"partner": -2},
    index={"partner": "n"},
    segments="items",
)
def echo(x, partner, z, w, *, segments, mask):
    """Gives back what it received."""
    xp = array_namespace(x)
    numbers = xp.arange(w.shape[-2], dtype=z.dtype)
    return x, partner, z, w, segments["n"], xp.broadcast_to(numbers, w.shape[:-1])


@st.composite
def echoed(draw):
    sizes = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=12))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    n, m = [size[0] for size in sizes], [size[1] for size in sizes]
    partner = [rng.integers(-1, size, size) if size else np.empty(0, int) for size in n]
    data = {
        "x": sp.Ragged(rng.normal(size=(sum(n), 2)), n),
        "partner": sp.Ragged.from_list([np.where(p < 0, -2, p) for p in partner], dtype=int),
        "z": sp.Ragged(rng.integers(0, 9, sum(m)), m),
        "w": rng.normal(size=(len(sizes), 2)),
    }
    limits = {"n": draw(st.integers(5, 12)), "m": draw(st.integers(4, 12))}
    if draw(st.booleans()):
        limits["items"] = draw(st.integers(1, 4))
    return data, sp.pack_rows({"n": n, "m": m}, limits)


@settings(max_examples=150)
@given(echoed())
def test_join_then_split_is_the_identity(case):
    data, packing = case
    rows = sp.join_rows(echo, data, packing)
    places = np.concatenate([np.arange(count) for count in [*packing.counts, 0]])
    extra = rows.segments["n"], sp.Ragged(places, packing.counts)
    x, _, z, w, ids, place = sp.split_rows(echo, (*rows.values(), *extra), packing)
    for found, name in ((x, "x"), (z, "z")):
        assert found.layout == data[name].layout
        assert np.array_equal(found.values, data[name].values)
    assert np.array_equal(w, data["w"])
    for item, (own, number) in enumerate(zip(ids, place, strict=True)):
        assert (own == number).all()
        assert packing.rows[packing.row[item]][number] == item


@settings(max_examples=150)
@given(echoed())
def test_an_index_points_to_the_same_entry_in_its_row(case):
    data, packing = case
    rows = sp.join_rows(echo, data, packing)
    parts = sp.split_rows(echo, (*rows.values(), rows.segments["n"], rows["w"]), packing)[1]
    for item, (found, own) in enumerate(zip(parts, data["partner"], strict=True)):
        row = rows["x"][int(packing.row[item])]
        for pointed, local in zip(found, own, strict=True):
            assert (pointed == -2) == (local == -2)
            if local >= 0:
                assert np.array_equal(row[pointed], data["x"][item][local])


def test_running_the_identity_gives_the_identity(put, host):
    rng = np.random.default_rng(0)
    n, m = [2, 0, 3, 1], [1, 2, 0, 4]
    data = {
        "x": sp.Ragged(rng.normal(size=(6, 2)), n),
        "partner": sp.Ragged(np.array([1, -2, 2, 0, -2, 0]), n),
        "z": sp.Ragged(rng.integers(0, 9, 7), m),
        "w": rng.normal(size=(4, 2)),
    }
    packing = sp.pack_rows({"n": n, "m": m}, {"n": 4, "m": 5})
    rows = sp.join_rows(echo, put(data), packing)
    plan = sp.plan(echo, rows, slots=[{"n": 6, "m": 6, "items": 5}], rows=3)
    x, _, z, w, ids, place = sp.split_rows(echo, sp.run(echo, rows, plan), packing)
    assert [part.tolist() for part in host(x)] == [part.tolist() for part in data["x"]]
    assert [part.tolist() for part in host(z)] == [part.tolist() for part in data["z"]]
    assert host(w).tolist() == data["w"].tolist()
    within = [int(np.searchsorted(packing.rows[row], item)) for item, row in enumerate(packing.row)]
    assert host(place).tolist() == within
    for item, own in enumerate(host(ids)):
        assert own.tolist() == [within[item]] * n[item]
    assert z.values.dtype == put(data)["z"].values.dtype


def test_gradients_pass_through_join_and_split_in_jax():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    from jax.test_util import check_grads

    data = molecules(SIZES)
    packing = sp.pack_rows(sizes_of(data), LIMITS)
    weights = np.arange(1.0, 1 + len(SIZES))

    def with_positions(values):
        positions = data["positions"].map_values(lambda _: jax.numpy.asarray(values))
        columns = {
            name: column.map_values(jax.numpy.asarray)
            if isinstance(column, sp.Ragged)
            else jax.numpy.asarray(column)
            for name, column in data.items()
        }
        return {**columns, "positions": positions}

    def energy(values):
        return (weights * compute(with_positions(values), packing).energy).sum()

    def work(values):  # through an output along atoms
        return (compute(with_positions(values), packing).forces.values ** 2).sum()

    values = jax.numpy.asarray(data["positions"].values)
    forces = np.concatenate(slow(data)[1]) * np.repeat(weights, SIZES)[:, None]
    for gradient in (jax.grad(energy), jax.jit(jax.grad(energy))):
        np.testing.assert_allclose(gradient(values), -forces, rtol=1e-9, atol=1e-12)
    check_grads(work, (values,), order=1, modes=["rev"], rtol=1e-4)


def test_gradients_pass_through_join_and_split_in_torch():
    torch = pytest.importorskip("torch")
    data = molecules(SIZES)
    packing = sp.pack_rows(sizes_of(data), LIMITS)
    columns = {
        name: column.map_values(torch.asarray)
        if isinstance(column, sp.Ragged)
        else torch.asarray(column)
        for name, column in data.items()
    }
    values = columns["positions"].values.requires_grad_()
    strength = columns["strength"].requires_grad_()
    found = compute(columns, packing)
    weights = torch.arange(1.0, 1 + len(SIZES), dtype=torch.float64)
    gradients = torch.autograd.grad((weights * found.energy).sum(), (values, strength))
    energies, forces, _ = slow(data)
    expected = -np.concatenate(forces) * np.repeat(weights.numpy(), SIZES)[:, None]
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        gradients[1], weights.numpy() * energies / data["strength"], rtol=1e-9
    )
    work = (compute(columns, packing).forces.values ** 2).sum()
    assert torch.isfinite(torch.autograd.grad(work, values)[0]).all()


def test_other_sets_in_the_slot_of_the_limits_compile_nothing():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    from stowplan.adapters.jax import adapter

    def traces(seed):
        data = molecules(SIZES, seed)
        packing = sp.pack_rows(sizes_of(data), LIMITS)
        before = adapter.traces["pair_energy"]
        rows = sp.join_rows(pair_energy, data, packing)
        plan = sp.plan(pair_energy, rows, slots=[packing.limits], rows=4, on="jax")
        sp.run(pair_energy, rows, plan, on="jax")
        return adapter.traces["pair_energy"] - before

    traces(0)
    assert [traces(seed) for seed in (1, 2)] == [0, 0]


def test_joining_other_jax_arrays_compiles_nothing():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    compiles = []

    def listen(event, seconds, **tags):
        if "backend_compile" in event:
            compiles.append(tags)

    jax.monitoring.register_event_duration_secs_listener(listen)

    def on_jax(value):
        if isinstance(value, sp.Ragged):
            return value.map_values(jax.device_put)
        return jax.device_put(value)

    def compiled(sizes):
        data = molecules(sizes)
        packing = sp.pack_rows(sizes_of(data), LIMITS)
        before = len(compiles)
        rows = sp.join_rows(pair_energy, {k: on_jax(v) for k, v in data.items()}, packing)
        plan = sp.plan(pair_energy, rows, slots=[packing.limits], rows=4)
        found = sp.split_rows(pair_energy, sp.run(pair_energy, rows, plan), packing)
        assert isinstance(found.energy, jax.Array)
        assert isinstance(found.forces.values, jax.Array)
        return len(compiles) - before

    compiled(SIZES)
    assert compiled(SIZES[1:]) == 0


def test_verify_compares_rows(put):
    data = put(molecules(SIZES))
    rows = sp.join_rows(pair_energy, data, sp.pack_rows(sizes_of(molecules(SIZES)), LIMITS))
    assert sp.verify(pair_energy, rows).passed


def test_no_items_are_joined_to_no_rows(put, host):
    data = put(molecules([]))
    packing = sp.pack_rows(sizes_of(molecules([])), LIMITS)
    rows = sp.join_rows(pair_energy, data, packing)
    assert len(rows.counts) == 0
    found = sp.split_rows(pair_energy, sp.run(pair_energy, rows), packing)
    assert host(found.energy).shape == (0,)
    assert len(found.forces) == 0
    assert found.forces.values.shape[1:] == (3,)


def test_a_list_is_joined_like_an_array():
    data = {"x": [[1.0, 2.0], [], [4.0]]}

    @sp.kernel("(n)->(items)", ragged=("n", "items"), segments="items")
    def total(x, *, mask, segments):
        return segment_sum(x, segments["n"], mask["items"].shape[-1])

    packing = sp.pack_rows({"n": [2, 0, 1]}, {"n": 3})
    rows = sp.join_rows(total, data, packing)
    assert rows.counts.tolist() == [3]
    assert rows["x"].values.tolist() == [1.0, 2.0, 4.0]
    assert list(rows) == ["x"]
    assert len(rows) == 1
    assert sp.split_rows(total, sp.run(total, rows), packing).tolist() == [3.0, 0.0, 4.0]


def test_a_kernel_that_would_mix_items_is_refused(kernels):
    packing = sp.pack_rows({"n": [1, 2]}, {"n": 3})
    message = r"total does not declare segments=, so rows with several items would mix them\. Name"
    for call in (sp.join_rows, sp.split_rows):
        with pytest.raises(sp.SignatureError, match=f"{call.__name__}: {message}"):
            call(kernels.total, {"x": [[1.0], [1.0, 2.0]]}, packing)
        with pytest.raises(sp.SignatureError, match=f"{call.__name__}: None is no kernel"):
            call(None, {}, packing)
        with pytest.raises(sp.PlanError, match=r"packing=\[\[0, 1\]\] is no packing. Make one"):
            call(echo, {}, [[0, 1]])
    with pytest.raises(sp.SignatureError, match="does not declare segments="):
        sp.join_rows(real_energy, {}, packing)


def segmented(signature, **options):
    """A kernel with this signature that keeps items apart."""
    count = signature.split("->")[0].count("(")
    names = ", ".join("xyz"[:count])
    scope: dict = {}
    exec(f"def made({names}, *, segments, mask): return x", scope)
    return sp.kernel(signature, segments="items", **options)(scope["made"])


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (
            "(n),(n,m)->(n)",
            r"argument 'y' of made has the core shape \(n,m\); items end to end along",
        ),
        (
            "(n),(n,m)->(n)",
            r"n and m at once are no block\. Declare a flat list, such as \(pairs,2\)",
        ),
        (
            "(n),(m),(3,3)->(n)",
            r"argument 'z' of made has the core shape \(3,3\), one for a row; a",
        ),
        ("(n),(m),(3,3)->(n)", r"row holds several items\. Declare one for each: \(items,3,3\)"),
        ("(n),(m),()->(n)", r"'z' of made has the core shape \(\), .*one for each: \(items\)"),
    ],
)
def test_an_argument_that_cannot_be_joined_is_refused(signature, message):
    made = segmented(signature, ragged=("n", "m", "items"))
    data = {"x": [np.ones(2)], "y": [np.ones((2, 1)) if "(n,m)" in signature else np.ones(1)]}
    if "z" in made.arguments:
        data["z"] = np.ones((1, 3, 3)) if "3" in signature else np.ones(1)
    with pytest.raises(sp.SignatureError, match=message):
        sp.join_rows(made, data, sp.pack_rows({"n": [2]}, {"n": 3}))


@pytest.mark.parametrize(
    ("signature", "options", "message"),
    [
        ("(n)->()", {}, r"output 0 of made has the core shape \(\), one for a.*each: \(items\)"),
        ("(n)->(n,n)", {}, r"output 0 of made has the core shape \(n,n\); items end to end"),
        ("(n)->(p)", {"out_sizes": {"p": "n + 1"}}, "out_sizes gives the length of 'p' for a row"),
    ],
)
def test_an_output_that_cannot_be_split_is_refused(signature, options, message):
    made = segmented(signature, ragged=("n", "items"), **options)
    with pytest.raises(sp.SignatureError, match=message):
        sp.split_rows(made, np.ones(1), sp.pack_rows({"n": [2]}, {"n": 3}))


def small():
    """Data of ``echo`` and their packing into rows (0, 2) and (1,)."""
    data = {
        "x": sp.Ragged(np.ones((6, 2)), [2, 3, 1]),
        "partner": sp.Ragged(np.array([1, 0, 2, 1, 0, -2]), [2, 3, 1]),
        "z": sp.Ragged(np.arange(3), [1, 1, 1]),
        "w": np.ones((3, 2)),
    }
    return data, sp.pack_rows({"n": [2, 3, 1], "m": [1, 1, 1]}, {"n": 3, "m": 3})


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ({"n": [2, 3]}, "packing is for 2 items, the data have 3. Pack these items"),
        ({"n": [2, 2, 3]}, r"2 of 3 items differ\. Item 1 has n=3 in the data and n=2 in the pac"),
        ({"n": [2, 3, 1], "m": [1, 1, 2]}, r"1 of 3 items differ\. Item 2 has m=1 in the data and"),
        ({"n": [2, 3, 1], "items": [1, 0, 1]}, "Item 1 has items=1 in the data and items=0 in th"),
    ],
)
def test_a_packing_of_other_items_is_refused(packed, message):
    data, _ = small()
    with pytest.raises(sp.DataError, match=message):
        sp.join_rows(echo, data, sp.pack_rows(packed, dict.fromkeys(packed, 9)))


def test_rows_are_not_joined_again():
    data, packing = small()
    rows = sp.join_rows(echo, data, packing)
    with pytest.raises(sp.DataError, match="echo: the data are rows already; give the items"):
        sp.join_rows(echo, rows, packing)


def test_an_index_into_the_neighbour_in_the_row_is_refused(put):
    data, packing = small()
    data["partner"] = sp.Ragged(np.array([1, 2, 2, 1, 0, -2]), [2, 3, 1])
    with pytest.raises(
        sp.DataError, match=r"'partner': 1 indices .* Item 0 has n=2 and an index 2"
    ):
        sp.join_rows(echo, put(data), packing)


def test_indices_that_the_row_outgrows_are_refused():
    sizes = [100, 100]
    data = {
        "x": sp.Ragged(np.ones((200, 2)), sizes),
        "partner": sp.Ragged(np.tile(np.arange(100, dtype=np.int8), 2), sizes),
        "z": sp.Ragged(np.arange(2), [1, 1]),
        "w": np.ones((2, 2)),
    }
    alone = sp.join_rows(echo, data, sp.pack_rows({"n": sizes}, {"n": 128}))
    assert alone["partner"].values.dtype == np.int8
    last = {**data, "x": sp.Ragged(np.ones((128, 2)), [100, 28])}
    last["partner"] = sp.Ragged(np.array([*range(100), *range(28)], np.int8), [100, 28])
    full = sp.join_rows(echo, last, sp.pack_rows({"n": [100, 28]}, {"n": 128}))
    assert full["partner"].values.tolist() == list(range(128))
    with pytest.raises(sp.DataError, match=r"dtype int8, which counts to 127; .*has 200 n\. Conv"):
        sp.join_rows(echo, data, sp.pack_rows({"n": sizes}, {"n": 200}))


def outputs_of(data, packing):
    rows = sp.join_rows(echo, data, packing)
    return list(sp.run(echo, rows))


def test_outputs_that_are_not_of_these_rows_are_refused():
    data, packing = small()
    right = outputs_of(data, packing)

    def split(*outputs, of=packing):
        return sp.split_rows(echo, outputs, of)

    assert len(split(*right)) == 6
    with pytest.raises(sp.DataError, match=r"2 outputs, but echo has 6; give all that run gave"):
        split(*right[:2])
    with pytest.raises(sp.DataError, match=r"output 1: expected a Ragged of 2 rows along 'n', got"):
        split(right[0], right[1].values, *right[2:])
    with pytest.raises(sp.DataError, match="output 0: expected a Ragged of 2 rows along 'n'"):
        split(right[0][:1], *right[1:])
    with pytest.raises(sp.DataError, match=r"output 2: row 0 has m=1, in the packing it has m=2"):
        split(*right[:2], right[2][[1, 0]], *right[3:])
    with pytest.raises(sp.DataError, match=r"output 2 is along 'm', of which the packing says no"):
        split(*right, of=sp.pack_rows({"n": [2, 3, 1]}, {"n": 3}))


def test_views_are_joined_and_split_like_their_copies():
    data, packing = small()
    expected = outputs_of(data, packing)
    views = {
        name: column[[1, 0, 2]][[1, 0, 2]] if isinstance(column, sp.Ragged) else column
        for name, column in data.items()
    }
    found = outputs_of(views, packing)
    for part, right in zip(found, expected, strict=True):
        assert np.array_equal(part.values, right.values)
    shuffled = [  # the second row is stored first
        sp.Ragged(np.concatenate([part[1], part[0]]), part.shapes[::-1])[[1, 0]] for part in found
    ]
    for part, right in zip(
        sp.split_rows(echo, tuple(shuffled), packing),
        sp.split_rows(echo, tuple(expected), packing),
        strict=True,
    ):
        assert np.array_equal(getattr(part, "values", part), getattr(right, "values", right))


def test_the_items_of_joined_rows_are_bound_as_rows():
    data, packing = small()
    columns = bind("test", echo, sp.join_rows(echo, data, packing))
    assert columns.items == 2
    assert columns.lengths["items"].tolist() == [2, 1]
    assert columns.segments["n"].values.tolist() == [0, 0, 1, 0, 0, 0]
