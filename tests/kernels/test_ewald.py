"""Ewald kernels against literature, lattice sums, plain loops, differences and autodiff."""

from __future__ import annotations

import functools
import itertools

import array_api_compat.numpy as npx
import mpmath
import numpy as np
import pytest
from array_api_compat import is_jax_array

from stowplan.kernels.ewald import kspace_energy, kspace_field, real_energy, real_field

KSPACE = ("m1", "m2", "m3", "positions", "charges", "cell", "smearing", "periodic")
REAL = ("neighbours", "shifts", "positions", "charges", "cell", "smearing", "periodic")
ETA = 6.2  # exp(-ETA^2) = 2e-17: both sums are converged to rounding

FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
HEXAGONAL = np.array([[1, 0, 0], [-0.5, np.sqrt(3) / 2, 0], [0, 0, np.sqrt(8 / 3)]])
CUBE = np.eye(3)
# cell, fractional positions, charges, formula units, energy of one unit: E = -M
CRYSTALS = {
    "CsCl": (CUBE, [[0, 0, 0], [0.5] * 3], [1, -1], 1, 2.035361509453),
    "NaCl": (FCC, [[0, 0, 0], [0.5] * 3], [1, -1], 1, 1.747564594633),
    "zincblende": (FCC, [[0, 0, 0], [0.25] * 3], [1, -1], 1, 1.891463052043),
    "wurtzite": (
        HEXAGONAL,
        [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.375], [2 / 3, 1 / 3, 0.875]],
        [1, 1, -1, -1],
        2,
        2.680266993904,
    ),
    "fluorite": (FCC / 2, [[0.25] * 3, [0.75] * 3, [0, 0, 0]], [-1, -1, 2], 1, 11.636575227077),
    "cuprite": (
        CUBE,
        [
            [0, 0, 0],
            [0.5] * 3,
            *(np.array(p) / 4 for p in ([1, 1, 1], [3, 3, 1], [3, 1, 3], [1, 3, 3])),
        ],
        [-2, -2, 1, 1, 1, 1],
        2,
        10.259457033075,
    ),
    "Wigner sc": (CUBE, [[0, 0, 0]], [1], 1, 1.418648739740),
    "Wigner bcc": (CUBE, [[0, 0, 0], [0.5] * 3], [1, 1], 2, 1.819616724754),
    "Wigner fcc": (FCC / 2, [[0, 0, 0]], [1], 1, 2.292431037057),
}


def full_list(positions, cell, cutoff, periodic):
    """All pairs within the cutoff by trying every shift, padded with -1."""
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    spread = np.ptp(positions @ np.linalg.inv(cell), axis=0)
    reach = np.where(periodic, np.ceil(cutoff / heights + spread), 0).astype(int)
    shifts = np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))))
    pairs = [[] for _ in positions]
    for i, j in itertools.product(range(len(positions)), repeat=2):
        distance = np.linalg.norm(positions[j] - positions[i] + shifts @ cell, axis=1)
        inside = (distance > 0) & ((distance < cutoff) | (not np.any(periodic)))
        pairs[i] += [(j, shift) for shift in shifts[inside]]
    width = max(map(len, pairs))
    neighbours = np.full((len(positions), width), -1)
    table = np.zeros((len(positions), width, 3), int)
    for i, row in enumerate(pairs):
        for column, (j, shift) in enumerate(row):
            neighbours[i, column], table[i, column] = j, shift
    return neighbours, table


def columns(cell, positions, charges, smearing, periodic=(1, 1, 1), eta=ETA):
    """Columns of both kernels for one structure, NumPy."""
    cell, positions = np.asarray(cell, float), np.asarray(positions, float)
    largest = np.sqrt(2) * eta / smearing
    counts = [int(largest * np.linalg.norm(a) / (2 * np.pi)) + 1 for a in cell]
    if not np.any(periodic):
        counts = [1, 1, 1]
    neighbours, shifts = full_list(positions, cell, np.sqrt(2) * eta * smearing, np.array(periodic))
    return {
        **{f"m{a + 1}": np.arange(n) for a, n in enumerate(counts)},
        "positions": positions,
        "charges": np.asarray(charges, float),
        "cell": cell,
        "smearing": np.asarray(float(smearing)),
        "periodic": np.asarray(periodic, float),
        "neighbours": neighbours,
        "shifts": shifts,
    }


def crystal(name, smearing=None):
    cell, fractional, charges, units, madelung = CRYSTALS[name]
    if smearing is None:
        smearing = 0.3 * abs(np.linalg.det(cell)) ** (1 / 3)
    return columns(cell, np.asarray(fractional) @ cell, charges, smearing), units, madelung


def ionic(seed=0, atoms=6, charge=0.0):
    """A skewed cell of random ions, far from any symmetry."""
    rng = np.random.default_rng(seed)
    cell = np.diag([2.1, 2.6, 3.2]) + rng.normal(0, 0.25, (3, 3))
    grid = np.array(list(itertools.product(range(2), range(2), range(3))))[:atoms]
    positions = ((grid + rng.uniform(-0.15, 0.15, (atoms, 3))) / [2, 2, 3]) @ cell
    charges = rng.normal(0, 1, atoms)
    return cell, positions, charges - charges.mean() + charge / atoms


def convert(xp, data):
    return {
        name: xp.asarray(value if value.dtype.kind == "i" else value.astype(np.float64))
        for name, value in data.items()
    }


def compiled_in_jax(function):
    """Without options JAX compiles the whole, which costs less than operation by operation."""

    def call(data, **shared):
        if shared or not is_jax_array(data["positions"]):
            return function(data, **shared)
        import jax

        return jax.jit(function)(data)

    return call


@compiled_in_jax
def energy(data, **shared):
    smooth = kspace_energy(*(data[name] for name in KSPACE), **shared)
    return smooth + real_energy(*(data[name] for name in REAL), **shared)


@compiled_in_jax
def field(data, **shared):
    smooth = kspace_field(*(data[name] for name in KSPACE), **shared)
    short = real_field(*(data[name] for name in REAL), **shared)
    return tuple(a + b for a, b in zip(smooth, short, strict=True))


@functools.cache
def slow_ewald(exponent):
    """`ionic` by loops over k and pairs: complex phases, mpmath functions, no symmetry."""
    cell, positions, charges = ionic(charge=0.0 if exponent == 3 else 0.7)
    smearing = 0.55
    p, volume = exponent, abs(np.linalg.det(cell))
    basis = 2 * np.pi * np.linalg.inv(cell).T
    constant = np.pi**1.5 / float(mpmath.gamma(p / 2)) * (2 * smearing**2) ** ((3 - p) / 2)
    potentials = np.zeros(len(charges))
    reach = [int(np.sqrt(2) * 5 / smearing * np.linalg.norm(a) / (2 * np.pi)) for a in cell]
    for m in itertools.product(*(range(-n, n + 1) for n in reach)):
        if any(m):
            k = m @ basis
            x = smearing**2 * k @ k / 2
            s = (3 - p) / 2
            green = constant * float(mpmath.gammainc(s, x) * mpmath.mpf(x) ** -s)
            phases = np.exp(1j * positions @ k)
            potentials += green * (np.conj(charges @ phases) * phases).real / (2 * volume)
    neighbours, shifts = full_list(positions, cell, np.sqrt(2) * 5 * smearing, (1, 1, 1))
    for i, row in enumerate(neighbours):
        for j, shift in zip(row, shifts[i], strict=True):
            if j >= 0:
                r = np.linalg.norm(positions[j] - positions[i] + shift @ cell)
                share = mpmath.gammainc(p / 2, r**2 / (2 * smearing**2), regularized=True)
                potentials[i] += charges[j] * float(share) / r**p / 2
    own = 1 / (float(mpmath.gamma(p / 2 + 1)) * (2 * smearing**2) ** (p / 2))
    potentials -= own * charges / 2
    if p != 3:
        potentials += constant * 2 / (p - 3) * charges.sum() / (2 * volume)
    return potentials


@pytest.mark.parametrize("name", CRYSTALS)
def test_the_energy_of_a_crystal_is_its_literature_value(xp, name):
    data, units, madelung = crystal(name)
    data = convert(xp, data)
    assert float(energy(data)) / units == pytest.approx(-madelung, abs=1e-10)
    assert float(field(data)[0]) / units == pytest.approx(-madelung, abs=1e-10)


@functools.cache
def alternating_sum(s):
    """sum' (-1)^(i+j+k) r^-2s, the Mellin transform of theta_4^3 - 1."""
    low = mpmath.quad(
        lambda t: (
            t ** (s - 2.5)
            * (mpmath.pi**0.5 * mpmath.jtheta(2, 0, mpmath.exp(-(mpmath.pi**2) / t))) ** 3
        ),
        [0.01, 0.2, 1],
    )
    high = mpmath.quad(
        lambda t: t ** (s - 1) * (mpmath.jtheta(4, 0, mpmath.exp(-t)) ** 3 - 1), [1, 3, 10, 45]
    )
    return (low - 1 / s + high) / mpmath.gamma(s)


@pytest.mark.parametrize("exponent", range(1, 7))
def test_alternating_lattice_sums_are_their_theta_integrals(xp, exponent):
    s = mpmath.mpf(exponent) / 2
    exact = alternating_sum(s)
    data = convert(xp, crystal("NaCl")[0])
    for total in (energy(data, exponent=exponent), field(data, exponent=exponent)[0]):
        assert float(total) == pytest.approx(float(exact), abs=1e-10)


@pytest.mark.parametrize("exponent", [1, 2, 4, 5, 6])
def test_charged_cells_are_the_continued_epstein_zeta_function(xp, exponent):
    data = convert(xp, crystal("Wigner sc")[0])
    assert float(energy(data, exponent=exponent)) == pytest.approx(
        epstein_zeta(exponent) / 2, abs=1e-10
    )


@functools.cache
def epstein_zeta(exponent):
    s = mpmath.mpf(exponent) / 2
    tail = mpmath.quad(
        lambda t: (
            (t ** (s - 1) + t ** (0.5 - s))
            * (mpmath.jtheta(3, 0, mpmath.exp(-mpmath.pi * t)) ** 3 - 1)
        ),
        [1, 2, 4, 14],
    )
    return float((tail - 1 / s - 1 / (1.5 - s)) * mpmath.pi**s / mpmath.gamma(s))


@pytest.mark.parametrize("exponent", range(1, 7))
def test_potentials_of_a_skewed_cell_are_those_of_a_slow_loop(xp, exponent):
    cell, positions, charges = ionic(charge=0.0 if exponent == 3 else 0.7)
    slow = slow_ewald(exponent)
    data = convert(xp, columns(cell, positions, charges, 0.5))
    total, potentials, _, _ = field(data, exponent=exponent)
    np.testing.assert_allclose(np.asarray(potentials), slow, rtol=0, atol=3e-10)
    assert float(total) == pytest.approx(float(charges @ slow), abs=1e-9)
    assert float(energy(data, exponent=exponent)) == pytest.approx(float(total), abs=1e-12)


@pytest.mark.parametrize("exponent", range(1, 7))
def test_results_do_not_depend_on_the_smearing(xp, exponent):
    cell, positions, charges = ionic(1, charge=0.0 if exponent == 3 else 0.7)
    one, other = (
        field(convert(xp, columns(cell, positions, charges, width)), exponent=exponent)
        for width in (0.4, 0.6)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-10)


def systems():
    """A charged crystal, a charged slab whose open axis is the second, a molecule."""
    cell, positions, charges = ionic(2, charge=0.5)
    yield "crystal", columns(cell, positions, charges, 0.5)
    slab = cell.copy()
    slab[1] *= 4
    yield "slab", columns(slab, positions, charges, 0.5, (1, 0, 1))
    yield "molecule", columns(CUBE, positions, charges, 1.0, (0, 0, 0))


SYSTEMS = dict(systems())


@pytest.mark.parametrize("exponent", range(1, 7))
@pytest.mark.parametrize("system", SYSTEMS)
def test_forces_are_central_differences_of_the_energy(xp, system, exponent):
    data = SYSTEMS[system]
    if exponent == 3:
        data = {**data, "charges": data["charges"] - data["charges"].mean()}
    converted = convert(xp, data)
    forces = np.asarray(field(converted, exponent=exponent)[2])
    step = 1e-4
    for atom, axis in ((0, 0), (1, 1), (5, 2)):
        values = {}
        for sign in (-2, -1, 1, 2):
            moved = data["positions"].copy()
            moved[atom, axis] += sign * step
            values[sign] = float(
                energy({**converted, "positions": xp.asarray(moved)}, exponent=exponent)
            )
        slope = (8 * (values[1] - values[-1]) - values[2] + values[-2]) / (12 * step)
        assert forces[atom, axis] == pytest.approx(-slope, abs=1e-8)


@pytest.mark.parametrize("exponent", range(1, 7))
@pytest.mark.parametrize("system", SYSTEMS)
def test_stress_is_the_derivative_by_strain(xp, system, exponent):
    data = SYSTEMS[system]
    if exponent == 3:
        data = {**data, "charges": data["charges"] - data["charges"].mean()}
    converted = convert(xp, data)
    stress = np.asarray(field(converted, exponent=exponent)[3])
    np.testing.assert_allclose(stress, stress.T, rtol=0, atol=1e-11)
    step = 1e-4
    for row, column in ((0, 0), (1, 1), (2, 0), (1, 2)):
        values = {}
        for sign in (-2, -1, 1, 2):
            strain = np.eye(3)
            strain[row, column] += sign * step
            strained = {name: xp.asarray(data[name] @ strain) for name in ("positions", "cell")}
            values[sign] = float(energy({**converted, **strained}, exponent=exponent))
        slope = (8 * (values[1] - values[-1]) - values[2] + values[-2]) / (12 * step)
        assert stress[row, column] == pytest.approx(slope, abs=1e-8)


def derivatives(framework, data, exponent):
    """dE/dr, dE/dq and dE/d(strain) at zero strain by the framework's own differentiation."""

    def strained(positions, charges, strain, matmul):
        moved = {"positions": matmul(positions, strain), "cell": matmul(data["cell"], strain)}
        return energy({**data, **moved, "charges": charges}, exponent=exponent)

    if framework == "jax":
        import jax

        def loss(positions, charges, strain):
            return strained(positions, charges, strain, jax.numpy.matmul)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(
            data["positions"], data["charges"], jax.numpy.eye(3, dtype=data["cell"].dtype)
        )
    import torch

    leaves = [
        data["positions"].clone(),
        data["charges"].clone(),
        torch.eye(3, dtype=data["cell"].dtype),
    ]
    for leaf in leaves:
        leaf.requires_grad_()
    return torch.autograd.grad(strained(*leaves, torch.matmul), leaves)


@pytest.mark.parametrize(
    ("system", "exponent"),
    [*(("crystal", p) for p in range(1, 7)), ("slab", 1), ("molecule", 1), ("molecule", 6)],
)
def test_autodiff_equals_the_analytic_derivatives(xp, framework, system, exponent):
    if framework not in ("jax", "torch"):
        pytest.skip(f"{framework} does not differentiate")
    data = SYSTEMS[system]
    if exponent == 3:
        data = {**data, "charges": data["charges"] - data["charges"].mean()}
    data = convert(xp, padded(data))
    slopes = derivatives(framework, data, exponent)
    _, potentials, forces, stress = (np.asarray(part) for part in field(data, exponent=exponent))
    for found, analytic in zip(slopes, (-forces, 2 * potentials, stress), strict=True):
        np.testing.assert_allclose(np.asarray(found), analytic, rtol=0, atol=1e-10)


def padded(data, atoms=2, width=3):
    """The same structure with padded atoms and neighbours."""
    grown = dict(data)
    grown["positions"] = np.pad(data["positions"], ((0, atoms), (0, 0)))
    grown["charges"] = np.pad(data["charges"], (0, atoms))
    grown["neighbours"] = np.pad(data["neighbours"], ((0, atoms), (0, width)), constant_values=-1)
    grown["shifts"] = np.pad(data["shifts"], ((0, atoms), (0, width), (0, 0)))
    return grown


@pytest.mark.parametrize("fill", [0, 1, 7])
@pytest.mark.parametrize("exponent", [1, 6])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_padded_structure_equals_the_structure_alone(xp, system, exponent, fill):
    data = SYSTEMS[system]
    alone = field(convert(xp, data), exponent=exponent)
    grown = padded(data)
    n = len(data["charges"])
    grown["positions"][n:] = fill
    grown["shifts"][grown["neighbours"] < 0] = fill
    mask = {}
    for name, extra in (("m1", 2), ("m2", 1), ("m3", 3)):
        size = len(data[name])
        grown[name] = np.pad(data[name], (0, extra), constant_values=fill)
        mask["n" + name[1]] = xp.asarray(np.arange(size + extra) < size)
    grown = convert(xp, grown)
    smooth = kspace_field(*(grown[name] for name in KSPACE), exponent=exponent, mask=mask)
    short = real_field(*(grown[name] for name in REAL), exponent=exponent)
    for one, a, b in zip(alone, smooth, short, strict=True):
        both = np.asarray(a + b)
        both = both[:n] if both.shape[:1] == (n + 2,) else both
        np.testing.assert_allclose(both, np.asarray(one), rtol=0, atol=1e-12)
    total = kspace_energy(*(grown[name] for name in KSPACE), exponent=exponent, mask=mask)
    total = total + real_energy(*(grown[name] for name in REAL), exponent=exponent)
    assert float(total) == pytest.approx(float(alone[0]), abs=1e-12)


def test_a_batch_equals_its_items_one_at_a_time(xp, framework):
    rng = np.random.default_rng(3)
    items = []
    for index in range(6):
        item = dict(SYSTEMS["crystal" if index < 3 else "slab"])
        item.update({name: SYSTEMS["slab"][name] for name in ("m1", "m2", "m3")})
        item["positions"] = item["positions"] + rng.normal(0, 0.01, item["positions"].shape)
        item["neighbours"], item["shifts"] = full_list(
            item["positions"], item["cell"], 2.5, item["periodic"]
        )
        items.append(item)
    width = max(item["neighbours"].shape[1] for item in items)
    for item in items:
        short = width - item["neighbours"].shape[1]
        item["neighbours"] = np.pad(item["neighbours"], ((0, 0), (0, short)), constant_values=-1)
        item["shifts"] = np.pad(item["shifts"], ((0, 0), (0, short), (0, 0)))
    alone = [field(convert(xp, item)) for item in items]
    stacked = {name: np.stack([item[name] for item in items]) for name in items[0]}
    stacked = {name: value.reshape(2, 3, *value.shape[1:]) for name, value in stacked.items()}
    batch = field(convert(xp, stacked))
    totals = energy(convert(xp, stacked))
    for part, parts in zip(batch, zip(*alone, strict=True), strict=True):
        together = np.asarray(part).reshape(6, *part.shape[2:])
        np.testing.assert_allclose(
            together, np.stack([np.asarray(p) for p in parts]), rtol=0, atol=1e-12
        )
    np.testing.assert_allclose(np.asarray(totals), np.asarray(batch[0]), rtol=0, atol=1e-12)
    if framework == "jax":
        import jax

        flat = convert(
            xp, {name: value.reshape(6, *value.shape[2:]) for name, value in stacked.items()}
        )
        mapped = jax.jit(jax.vmap(field))(flat)
        for part, other in zip(batch, mapped, strict=True):
            np.testing.assert_allclose(
                np.asarray(other), np.asarray(part).reshape(other.shape), rtol=0, atol=1e-12
            )


@pytest.mark.parametrize("system", SYSTEMS)
def test_moving_everything_changes_nothing_and_forces_sum_to_zero(xp, system):
    data = SYSTEMS[system]
    before = field(convert(xp, data))
    after = field(convert(xp, {**data, "positions": data["positions"] + [0.7, -1.3, 2.1]}))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-11)
    np.testing.assert_allclose(np.asarray(before[2]).sum(axis=0), 0, atol=1e-12)


def test_permuting_the_axes_of_the_cell_changes_nothing(xp):
    data = SYSTEMS["slab"]
    before = field(convert(xp, data))
    order = [2, 0, 1]
    permuted = {**data, **{f"m{a + 1}": data[f"m{b + 1}"] for a, b in enumerate(order)}}
    permuted.update(cell=data["cell"][order], periodic=data["periodic"][order])
    permuted["shifts"] = data["shifts"][..., order]
    for a, b in zip(before, field(convert(xp, permuted)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-12)


@pytest.mark.parametrize("charge", [0.0, 0.8])
def test_the_energy_of_a_slab_does_not_depend_on_its_vacuum(xp, charge):
    cell, positions, charges = ionic(4, charge=charge)
    cell[2] = np.cross(cell[0], cell[1])
    results = []
    for height in (14.0, 20.0):
        # height of the whole cell; images decay as exp(-2 pi gap / spacing)
        cell[2] *= height / np.linalg.norm(cell[2])
        tilted = cell + np.outer([0, 0, 1], 0.4 * cell[0])
        results.append(field(convert(xp, columns(tilted, positions, charges, 0.6, (1, 1, 0)))))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-10)


def test_a_dipole_layer_shifts_the_potential_by_four_pi_sigma_d(xp):
    """Two opposite square layers: far away from both, V jumps by 4 pi (charge / area) d."""
    d, far = 1.0, 4.0
    positions = np.array([[0, 0, 0], [0, 0, d], [0.5, 0.5, -far], [0.5, 0.5, d + far]])
    cell = np.diag([1.0, 1.0, 30.0])
    data = convert(xp, columns(cell, positions, [1, -1, 0, 0], 0.35, (1, 1, 0)))
    potentials = np.asarray(field(data)[1])
    assert 2 * (potentials[2] - potentials[3]) == pytest.approx(4 * np.pi * d, abs=1e-9)


@pytest.mark.parametrize("exponent", range(1, 7))
def test_a_dimer_has_the_bare_interaction(xp, exponent):
    data = convert(xp, columns(CUBE, [[0, 0, 0], [0, 0, 1]], [1, -1], 1.0, (0, 0, 0)))
    total, potentials, forces, stress = (np.asarray(a) for a in field(data, exponent=exponent))
    assert float(total) == pytest.approx(-1, abs=1e-14)
    np.testing.assert_allclose(potentials, [-0.5, 0.5], atol=1e-14)
    np.testing.assert_allclose(forces, [[0, 0, exponent], [0, 0, -exponent]], atol=1e-14)
    np.testing.assert_allclose(stress, np.diag([0, 0, exponent]), atol=1e-14)


def test_an_atom_without_neighbours_has_no_short_part(xp):
    data = columns(CUBE, [[0.1, 0.2, 0.3]], [2.0], 1.0, (0, 0, 0))
    data["neighbours"], data["shifts"] = np.full((1, 1), -1), np.zeros((1, 1, 3), int)
    for part in field(convert(xp, data)):
        np.testing.assert_array_equal(np.asarray(part), 0)


def test_single_precision_stays_single(xp):
    data, units, madelung = crystal("CsCl")
    single = {
        name: xp.asarray(value if value.dtype.kind == "i" else value.astype(np.float32))
        for name, value in data.items()
    }
    for part in (energy(single), *field(single)):
        assert part.dtype == xp.float32
    assert float(energy(single)) / units == pytest.approx(-madelung, rel=3e-6)


def test_the_reference_notices_a_wrong_background():
    cell, positions, charges = ionic(charge=0.7)
    slow = slow_ewald(1)
    broken = slow + np.pi * 0.55**2 * charges.sum() / abs(np.linalg.det(cell)) / 2
    data = convert(npx, columns(cell, positions, charges, 0.5))
    assert np.abs(field(data)[1] - broken).max() > 1e-3
