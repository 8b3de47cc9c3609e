"""The Ewald recipe: what a user with a list of structures sees."""

from __future__ import annotations

import numpy as np
import pytest

import stowplan as sp

ase = pytest.importorskip("ase", reason="ase is not installed")
pytest.importorskip("vesin", reason="vesin is not installed")

from ase import Atoms  # noqa: E402  # optional
from ase.io import write  # noqa: E402

from stowplan.recipes import ewald  # noqa: E402

CHARGES = {"Na": 1, "Cl": -1, "Cs": 1, "O": -2, "Cu": 1}
FCC = [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
MADELUNG = {"NaCl": -1.747564594633, "CsCl": -2.035361509453, "Cu2O": -2 * 10.259457033075}


def crystals():
    """Reference crystals, in units in which their energies are minus the Madelung constants."""
    cuprite = [[0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0.25, 0.25], [0.75, 0.75, 0.25],
               [0.75, 0.25, 0.75], [0.25, 0.75, 0.75]]  # fmt: skip
    return {
        "NaCl": Atoms("NaCl", [[0, 0, 0], [1, 0, 0]], cell=FCC, pbc=True),
        "CsCl": Atoms("CsCl", [[0, 0, 0], [0.5, 0.5, 0.5]], cell=[1, 1, 1], pbc=True),
        "Cu2O": Atoms("O2Cu4", cuprite, cell=[1, 1, 1], pbc=True),
    }


def rattled(repeats, seed, kind="crystal"):
    """A strained and disturbed supercell of rock salt, in Å."""
    rng = np.random.default_rng(seed)
    cube = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    atoms = Atoms("NaClClNaClNaNaCl", 2.8 * cube, cell=[5.6] * 3, pbc=True).repeat(repeats)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(scale=0.03, size=(3, 3))), True)
    atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
    if kind == "slab":
        atoms.cell[2] *= 4
        atoms.pbc = (True, True, False)
    if kind == "molecule":
        atoms.pbc = False
    return atoms


@pytest.fixture(scope="module")
def mixed():
    return [
        rattled((1, 1, 1), 0), rattled((2, 1, 1), 1), rattled((1, 1, 1), 2, "slab"),
        rattled((1, 1, 1), 3, "molecule"), rattled((2, 2, 1), 4),
        rattled((2, 1, 1), 5, "molecule"),
    ]  # fmt: skip


def assert_same(result, expected, tolerance=1e-12):
    for name, column in expected.columns().items():
        found = result.columns()[name]
        left, right = (getattr(side, "values", side) for side in (found, column))
        scale = max(np.abs(right).max(), 1.0)
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * scale, err_msg=name)


def picked(result, order):
    return ewald.EwaldResults(
        result.energy[order],
        result.potentials[order].compact(),
        result.forces[order].compact(),
        result.stress[order],
        result.plans,
    )


def test_crystals_of_a_list_have_their_literature_energies(framework):
    found = ewald.compute(
        list(crystals().values()), charges=CHARGES, accuracy=1e-12, on=framework, slots=1
    )
    np.testing.assert_allclose(found.energy, list(MADELUNG.values()), rtol=1e-10)


@pytest.mark.parametrize("accuracy", [1e-3, 1e-5, 1e-7, 1e-9, 1e-11])
def test_errors_stay_below_the_accuracy_asked_for(mixed, accuracy):
    exact = ewald.compute(mixed, charges=CHARGES, accuracy=1e-14)
    found = ewald.compute(mixed, charges=CHARGES, accuracy=accuracy)
    for item, atoms in enumerate(mixed):
        length = 2.8  # the spacing of an atom: a^3 is its volume
        error = abs(found.energy[item] - exact.energy[item])
        assert error <= accuracy * len(atoms) / length
        assert np.abs(found.forces[item] - exact.forces[item]).max() <= accuracy / length**2


@pytest.mark.parametrize("exponent", [1, 2, 4, 6])
def test_the_accuracy_holds_for_other_exponents(exponent):
    structures = [rattled((1, 1, 1), 0), rattled((2, 1, 1), 1)]
    exact, found = (
        ewald.compute(structures, charges=CHARGES, accuracy=accuracy, exponent=exponent)
        for accuracy in (1e-13, 1e-6)
    )
    for item, atoms in enumerate(structures):
        error = abs(found.energy[item] - exact.energy[item])
        assert error <= 1e-6 * len(atoms) / 2.8**exponent


def test_a_looser_accuracy_takes_fewer_waves_and_neighbours(mixed):
    loose, tight = (
        ewald.compute(mixed, charges=CHARGES, accuracy=accuracy).plans for accuracy in (1e-3, 1e-9)
    )
    for name in ("kspace", "real"):
        assert loose[name].lengths.prod(axis=1).sum() < tight[name].lengths.prod(axis=1).sum()


def test_order_and_company_change_nothing(framework, mixed):
    expected = ewald.compute(mixed, charges=CHARGES, on=framework, slots=2)
    order = [3, 1, 5, 0, 4, 2]
    shuffled = ewald.compute([mixed[i] for i in order], charges=CHARGES, on=framework, slots=2)
    assert_same(shuffled, picked(expected, order))
    alone = ewald.compute([mixed[2]], charges=CHARGES, on=framework, slots=1)
    assert_same(alone, picked(expected, [2]))


@pytest.mark.parametrize(
    "steering",
    [
        {"slots": "exact", "rows": 1},
        {"slots": 1},
        {"slots": 3, "rows": 2},
        {"slots": [{"atoms": 16, "k": 4000}, {"atoms": 32, "k": 40000}]},
        {"slots": {"kspace": 2, "real": 3}},
        {"budget": "24 MB"},
    ],
)
def test_slots_rows_and_budgets_change_nothing(mixed, steering):
    expected = ewald.compute(mixed, charges=CHARGES)
    assert_same(ewald.compute(mixed, charges=CHARGES, **steering), expected)


def test_slots_by_derived_k_decide_which_structures_enter(mixed):
    slots = [{"atoms": 16, "k": 4000}, {"atoms": 32, "k": 40000}]
    plan = ewald.compute(mixed, charges=CHARGES, slots=slots).plans["kspace"]
    for batch in plan.batches:
        n1, n2, n3, atoms = plan.lengths[batch.items].T
        limit = slots[batch.slot]
        assert (n1 * (2 * n2 - 1) * (2 * n3 - 1) <= limit["k"]).all()
        assert (atoms <= limit["atoms"]).all()
    assert all(set(slot) == {"n1", "n2", "n3", "atoms", "rows"} for slot in plan.slots)


def test_a_budget_is_kept_by_smaller_batches(mixed):
    many = mixed * 8
    free = ewald.compute(many, charges=CHARGES, slots=1).plans["kspace"]
    tight = ewald.compute(many, charges=CHARGES, slots=1, budget="8 MB").plans["kspace"]
    assert max(tight.rows) < max(free.rows)
    with pytest.raises(sp.BudgetError, match=r"one row of kspace_field .* needs"):
        ewald.compute(many, charges=CHARGES, budget="1 kB")


def test_forces_are_central_differences_of_the_energy(mixed):
    step = 1e-4
    for item in (1, 2, 3):
        moved = []
        for sign in (1, -1):
            atoms = mixed[item].copy()
            atoms.positions[3, 1] += sign * step
            moved.append(atoms)
        up, down = ewald.compute(moved, charges=CHARGES, accuracy=1e-12, slots=1).energy
        force = ewald.compute([mixed[item]], charges=CHARGES, accuracy=1e-12).forces[0][3, 1]
        assert force == pytest.approx((down - up) / (2 * step), abs=1e-8)


def test_a_prefactor_multiplies_every_result(mixed):
    plain = ewald.compute(mixed, charges=CHARGES)
    scaled = ewald.compute(mixed, charges=CHARGES, prefactor=14.0)
    for name, column in plain.columns().items():
        left, right = (getattr(c, "values", c) for c in (scaled.columns()[name], column))
        np.testing.assert_allclose(left, 14.0 * right, rtol=1e-13)


def test_parameters_by_hand_agree_with_those_from_the_accuracy(mixed):
    expected = ewald.compute(mixed[:2], charges=CHARGES, accuracy=1e-10)
    by_hand = ewald.compute(
        mixed[:2], charges=CHARGES, cutoff=7.0, smearing=1.0, wavelength=0.45, accuracy=1e-10
    )
    assert_same(by_hand, expected, 1e-8)


def test_a_second_set_with_the_same_slots_compiles_nothing(mixed):
    pytest.importorskip("jax").config.update("jax_enable_x64", True)
    from stowplan.adapters.jax import adapter

    first = ewald.compute(mixed, charges=CHARGES, on="jax", slots={"kspace": 2, "real": 2})
    traces = adapter.traces.total()
    slots = {name: plan.slots for name, plan in first.plans.items()}
    again = ewald.compute([*mixed[1:], mixed[0], mixed[3]], charges=CHARGES, on="jax", slots=slots)
    assert adapter.traces.total() == traces
    assert_same(picked(again, [5, 0, 1, 2, 3, 4]), first)


def test_results_are_a_sequence_and_a_table(mixed):
    result = ewald.compute(mixed, charges=CHARGES)
    assert len(result) == len(list(result)) == 6
    assert result[-1]["energy"] == result.energy[5]
    np.testing.assert_array_equal(result[4]["forces"], result.forces[4])
    with pytest.raises(IndexError, match="6 of 6"):
        result[6]
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = result.to_table()
    assert table.num_rows == 6
    assert np.array(table["forces"][4].as_py()).shape == (32, 3)
    assert np.array(table["stress"][0].as_py()).shape == (3, 3)


def test_an_empty_list_gives_empty_results_of_the_right_shapes(framework):
    result = ewald.compute([], on=framework)
    assert result.energy.shape == (0,)
    assert result.stress.shape == (0, 3, 3)
    assert result.forces.values.shape == (0, 3)
    assert result.potentials.values.shape == (0,)
    assert {column.dtype for column in result.columns().values()} == {np.dtype(np.float64)}
    assert len(result) == len(result.forces) == 0


def test_a_path_is_read_with_its_charges(tmp_path, mixed):
    marked = []
    for atoms in mixed[:3]:
        atoms = atoms.copy()
        atoms.set_initial_charges([CHARGES[symbol] for symbol in atoms.symbols])
        marked.append(atoms)
    write(tmp_path / "set.extxyz", marked)
    found = ewald.compute(tmp_path / "set.extxyz")
    assert_same(found, ewald.compute(mixed[:3], charges=CHARGES), 1e-6)  # the file has 8 digits


def test_the_energy_of_arrays_can_be_jitted_and_differentiated(mixed):
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    result = ewald.compute([mixed[2]], charges=CHARGES)
    inputs = ewald.prepare(mixed[2], charges=CHARGES)
    arrays = [jax.numpy.asarray(array) for array in inputs]
    energy, slope = jax.jit(jax.value_and_grad(ewald.energy))(*arrays)
    assert float(energy) == pytest.approx(result.energy[0], rel=1e-12)
    np.testing.assert_allclose(-slope, result.forces[0], atol=1e-10)


def test_a_set_can_be_trained_through_in_torch(mixed):
    torch = pytest.importorskip("torch")
    from stowplan.kernels.ewald import kspace_energy, real_energy

    result = ewald.compute(mixed, charges=CHARGES)
    kspace, real = ewald.columns(mixed, charges=CHARGES)

    def tensor(column):
        move = torch.asarray
        return column.map_values(move) if isinstance(column, sp.Ragged) else move(column)

    kspace, real = ({k: tensor(v) for k, v in part.items()} for part in (kspace, real))
    charges = real["charges"].map_values(lambda q: q.clone().requires_grad_())
    kspace["charges"] = real["charges"] = charges
    energy = sp.run(kspace_energy, kspace) + sp.run(real_energy, real)
    energy.sum().backward()
    potentials = charges.values.grad.numpy() / 2  # dE/dq_i = 2 V_i
    np.testing.assert_allclose(potentials, result.potentials.values, atol=1e-10)


def broken(change):
    atoms = crystals()["NaCl"]
    change(atoms)
    return [crystals()["NaCl"], atoms]


def set_nan(atoms):
    atoms.positions[1, 2] = np.nan


@pytest.mark.parametrize(
    ("structures", "options", "message"),
    [
        ([Atoms()], {}, "Item 0 has no atoms"),
        (broken(lambda a: setattr(a, "pbc", (True, False, False))), {}, "Item 1 .*one periodic"),
        (broken(lambda a: a.set_cell([[1, 0, 0], [2, 0, 0], [0, 0, 1]])), {}, "Item 1 .*singular"),
        (broken(set_nan), {}, "Item 1 .*atom 1 has .*nan"),
        (broken(lambda a: None), {"charges": {"Na": 1}}, "Item 0 holds Cl"),
        (broken(lambda a: None), {"charges": None}, "no charges.*charges="),
        (broken(lambda a: None), {"accuracy": 2.0}, "accuracy=2.0"),
        (broken(lambda a: None), {"cutoff": -1.0}, "cutoff=-1.0.*positive"),
        (broken(lambda a: None), {"exponent": 7}, "exponent=7"),
        (broken(lambda a: None), {"prefactor": float("nan")}, "prefactor=nan.*finite"),
        (broken(lambda a: setattr(a, "pbc", (True, True, False))), {"exponent": 6}, "item 1"),
        (broken(lambda a: None), {"slots": {"k": 3}}, "key 'k'.*kspace"),
        ("no such file.xyz", {}, "no such file.xyz"),
    ],
)
def test_bad_structures_and_parameters_are_named(structures, options, message):
    with pytest.raises(sp.DataError, match=f"(?i){message}"):
        ewald.compute(structures, **{"charges": CHARGES, **options})


def test_unknown_dims_and_small_slots_are_named(mixed):
    with pytest.raises(sp.PlanError, match=r"'waves'.*n1, n2, n3, atoms.*k"):
        ewald.compute(mixed, charges=CHARGES, slots=[{"waves": 3}])
    with pytest.raises(sp.PlanError, match=r"(?s)fit no slot. Item 0 has .*k=726.*overflow"):
        ewald.compute(mixed, charges=CHARGES, slots=[{"atoms": 100, "k": 10}])
    extended = ewald.compute(
        mixed, charges=CHARGES, slots=[{"atoms": 100, "k": 10}], overflow="extend"
    )
    assert "added" in extended.plans["kspace"].warnings[0]


@pytest.mark.parametrize("unit", [1e-10, 1e10])
def test_energies_scale_with_the_unit_of_length(unit):
    atoms = crystals()["NaCl"]
    atoms.set_cell(atoms.cell.array * unit, scale_atoms=True)
    (energy,) = ewald.compute([atoms], charges=CHARGES, accuracy=1e-12).energy
    assert energy * unit == pytest.approx(MADELUNG["NaCl"], abs=1e-10)


@pytest.mark.parametrize("given", [{"cutoff": 1e-6}, {"wavelength": 1e-13}])
def test_more_k_vectors_than_memory_are_refused_before_they_are_listed(given):
    with pytest.raises(sp.DataError, match=r"item 0 needs .* k-vectors at wavelength .*Raise the"):
        ewald.compute([crystals()["NaCl"]], charges=CHARGES, **given)
