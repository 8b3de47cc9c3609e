r"""Ewald sums of 1/r^p: a smooth part over a grid of k-vectors, a short part over neighbours.

Halved potentials, V_i = 1/2 sum_j q_j v(r_ij), and E = sum_i q_i V_i. Units are charge^2/length^p;
a unit system is one factor on all outputs. Lattice vectors are the rows of ``cell``.

The smooth part sums over k = m1 b1 ± m2 b2 ± m3 b3 in a real basis, T = sum_j q_j f g h with f,
g and h the cosine or sine of m1 b1.r_j, m2 b2.r_j and m3 b3.r_j: trigonometry for
(n1 + n2 + n3) atoms numbers only. Eight entries of T give S(k) at four sign choices, so that each
matrix product takes 4 flops per k-vector and atom, half of what complex phases take.

Source: P. P. Ewald, Ann. Phys. 369, 253 (1921); for 1/r^p, R. E. Jones and A. E. Ingham, Proc. R.
Soc. A 107, 636 (1925); for slabs, I.-C. Yeh and M. L. Berkowitz, J. Chem. Phys. 111, 3155 (1999),
and V. Ballenegger, A. Arnold and J. J. Cerda, J. Chem. Phys. 131, 094107 (2009).
"""

import math

from array_api_compat import array_namespace, device

from stowplan.declaration import kernel
from stowplan.special import cos_sin, expint, gammaincc

__all__ = ["kspace_energy", "kspace_field", "real_energy", "real_field"]

_KSPACE = {
    "ragged": ("n1", "n2", "n3", "atoms"),
    "derived": {"k": "n1 * (2 * n2 - 1) * (2 * n3 - 1)"},
    "work": "n1 * n2 * n3 * (2 * atoms + 250) + 120 * (n1 + n2 + n3) * atoms",  # ns on a CPU
    "memory": "10 * n1 * n2 * atoms + 48 * n1 * n2 * n3 + 10 * (n1 + n2 + n3) * atoms",
    "static": ("exponent",),
    "fill": {"charges": 0.0},
}
_REAL = {
    "ragged": ("atoms", "neighbours"),
    "work": "80 * atoms * neighbours",
    "memory": "20 * atoms * neighbours",
    "static": ("exponent",),
    "fill": {"charges": 0.0, "neighbours": -1},
    "index": {"neighbours": "atoms"},
}
_KSPACE_INPUTS = "(n1),(n2),(n3),(atoms,3),(atoms),(3,3),(),(3)"
_REAL_INPUTS = "(atoms,neighbours),(atoms,neighbours,3),(atoms,3),(atoms),(3,3),(),(3)"
_FIELD = "(),(atoms),(atoms,3),(3,3)"

# Real and imaginary part of S at (m2, m3), (m2, -m3), (-m2, m3), (-m2, -m3) from the products of
# cosines and sines along axes 1, 2 and 3: ccc, ccs, csc, css, scc, scs, ssc, sss.
_SIGNS = [
    row
    for a in (1, -1)
    for b in (1, -1)
    for row in ([1, 0, 0, -a * b, 0, -b, -a, 0], [0, b, a, 0, 1, 0, 0, -a * b])
]


@kernel(f"{_KSPACE_INPUTS}->()", **_KSPACE)
def kspace_energy(
    m1, m2, m3, positions, charges, cell, smearing, periodic, *, exponent=1, mask=None
):
    """Smooth part of the energy, ``(n1),(n2),(n3),(atoms,3),(atoms),(3,3),(),(3)->()``.

    With the self energy, the neutralising background and the slab correction; zero for a molecule.
    Parameters as in `kspace_field`. Returns (...) in charge^2/length^p.
    """
    xp = array_namespace(positions, charges, cell)
    lattice = _Lattice(xp, cell, smearing, periodic)
    grid = _Grid(xp, (m1, m2, m3), lattice, mask)
    waves = grid.waves(positions)
    factor = grid.structure_factor(_plane(xp, waves), charges[..., None] * waves[2])
    green, _ = grid.green(exponent)
    smooth = xp.sum(green * xp.sum(factor * factor, axis=-2), axis=(-2, -1))
    rest = _Corrections(xp, positions, charges, lattice, exponent)
    return smooth + rest.energy - rest.own * xp.sum(charges * charges, axis=-1)


@kernel(f"{_KSPACE_INPUTS}->{_FIELD}", **_KSPACE)
def kspace_field(
    m1, m2, m3, positions, charges, cell, smearing, periodic, *, exponent=1, mask=None
):
    """Smooth part with its derivatives,
    ``(n1),(n2),(n3),(atoms,3),(atoms),(3,3),(),(3)->(),(atoms),(atoms,3),(3,3)``.

    Parameters
    ----------
    m1, m2, m3 : array (..., n1), (..., n2), (..., n3)
        Grid indices 0, 1, 2, ... along each reciprocal vector, int or real. The kernel adds the
        signs: (m1, ±m2, ±m3), counted twice where m1 > 0. Weight 0 where padded, by `mask`.
    positions : array (..., atoms, 3)
        Cartesian; any padding.
    charges : array (..., atoms)
        Padding 0.
    cell : array (..., 3, 3)
        Lattice vectors as rows; for a molecule any regular matrix.
    smearing : array (...)
        Width sigma of the Gaussians, > 0.
    periodic : array (..., 3)
        Which axes are periodic, bool or 0 and 1: three for a crystal, two for a slab (the cell then
        holds the vacuum; the correction is for exponent 1), none for a molecule, whose smooth part
        is 0.
    exponent : int
        p of 1/r^p, 1 to 6. At p = 3 the total charge must be 0.

    Returns
    -------
    energy (...), potentials (..., atoms), forces (..., atoms, 3), stress (..., 3, 3)
        Stress is dE/d(strain), not divided by the volume.
    """
    xp = array_namespace(positions, charges, cell)
    lattice = _Lattice(xp, cell, smearing, periodic)
    grid = _Grid(xp, (m1, m2, m3), lattice, mask)
    waves = grid.waves(positions)
    plane = _plane(xp, waves)  # (..., atoms, 4 n1 n2)
    factor = grid.structure_factor(plane, charges[..., None] * waves[2])
    green, slope = grid.green(exponent)
    power = xp.sum(factor * factor, axis=-2)  # (..., 4, n1 n2 n3)
    smooth = xp.sum(green * power, axis=(-2, -1))
    adjoint = grid.adjoint(green[..., None, :] * factor)
    potentials, slopes = grid.derivatives(waves, plane, adjoint)
    rest = _Corrections(xp, positions, charges, lattice, exponent)
    potentials = potentials + rest.potentials(charges)
    forces = -2 * charges[..., None] * (slopes + rest.slopes())
    eye = xp.eye(3, dtype=cell.dtype, device=device(cell))
    stress = grid.second_moment(slope * power) + rest.stress()
    stress = stress - (smooth + rest.energy)[..., None, None] * eye
    return xp.sum(charges * potentials, axis=-1), potentials, forces, stress


@kernel(f"{_REAL_INPUTS}->()", **_REAL)
def real_energy(neighbours, shifts, positions, charges, cell, smearing, periodic, *, exponent=1):
    """Short part of the energy,
    ``(atoms,neighbours),(atoms,neighbours,3),(atoms,3),(atoms),(3,3),(),(3)->()``.

    Parameters as in `real_field`. Returns (...) in charge^2/length^p.
    """
    xp = array_namespace(positions, charges, cell)
    pairs = _Pairs(xp, neighbours, shifts, positions, charges, cell)
    value, _ = pairs.interaction(smearing, periodic, exponent)
    return xp.sum(charges * xp.sum(pairs.charges * value, axis=-1), axis=-1) / 2


@kernel(f"{_REAL_INPUTS}->{_FIELD}", **_REAL)
def real_field(neighbours, shifts, positions, charges, cell, smearing, periodic, *, exponent=1):
    """Short part with its derivatives,
    ``(atoms,neighbours),(atoms,neighbours,3),(atoms,3),(atoms),(3,3),(),(3)->
    (),(atoms),(atoms,3),(3,3)``.

    Parameters
    ----------
    neighbours : int array (..., atoms, neighbours)
        A full list (each pair from both sides), item-local; padding -1.
    shifts : array (..., atoms, neighbours, 3)
        Lattice vectors S to add, r = r_j - r_i + S cell; int or real, any padding.
    positions, charges, cell, smearing, periodic, exponent
        As in `kspace_field`. Without a periodic axis the interaction is the bare 1/r^p.

    Returns
    -------
    energy (...), potentials (..., atoms), forces (..., atoms, 3), stress (..., 3, 3)
    """
    xp = array_namespace(positions, charges, cell)
    pairs = _Pairs(xp, neighbours, shifts, positions, charges, cell)
    value, slope = pairs.interaction(smearing, periodic, exponent)
    potentials = xp.sum(pairs.charges * value, axis=-1) / 2
    pull = charges[..., None] * pairs.charges * slope
    pulls = pull * pairs.separations  # (3, ..., atoms, neighbours)
    forces = _put_axis(xp.sum(pulls, axis=-1), 0, -1)
    pulls, separations = (
        _put_axis(xp.reshape(a, (*a.shape[:-2], a.shape[-2] * a.shape[-1])), 0, -2)
        for a in (pulls, pairs.separations)
    )
    stress = xp.matmul(pulls, xp.matrix_transpose(separations)) / 2
    return xp.sum(charges * potentials, axis=-1), potentials, forces, stress


class _Lattice:
    """Cofactors, volume and reciprocal rows of a cell, and what its periodic axes mean."""

    def __init__(self, xp, cell, smearing, periodic):
        doubled = xp.concat([cell, cell[..., :2, :]], axis=-2)
        doubled = xp.concat([doubled, doubled[..., :2]], axis=-1)  # (..., 5, 5), periodic
        areas = (
            doubled[..., 1:4, 1:4] * doubled[..., 2:5, 2:5]
            - doubled[..., 1:4, 2:5] * doubled[..., 2:5, 1:4]
        )
        determinant = xp.sum(cell[..., 0, :] * areas[..., 0, :], axis=-1)
        self.volume = xp.abs(determinant)
        self.reciprocal = (2 * math.pi) * areas / determinant[..., None, None]
        self.smearing = smearing
        flags = xp.astype(periodic, cell.dtype, copy=False)
        axes = xp.sum(flags, axis=-1)
        self.screened = xp.astype(axes > 0, cell.dtype)
        open_axis = xp.astype(axes == 2, cell.dtype)[..., None] * (1 - flags)
        open_axis = open_axis / xp.sqrt(xp.sum(areas * areas, axis=-1))
        self.normal = xp.sum(open_axis[..., None] * areas, axis=-2)  # 0 unless a slab
        self.height = xp.sum(open_axis, axis=-1) * self.volume

    def scale(self, exponent):
        """G(k) / E_s(sigma^2 k^2 / 2) over 2 V, with s = (p - 1)/2; 0 for a molecule."""
        constant = math.pi**1.5 / math.gamma(exponent / 2) / 2
        return (
            constant * (2 * self.smearing**2) ** ((3 - exponent) / 2) * self.screened / self.volume
        )


class _Grid:
    """k-vectors of a grid at the four signs of m2 and m3, and transforms between them and atoms."""

    def __init__(self, xp, indices, lattice, mask):
        dtype = lattice.reciprocal.dtype
        self.xp, self.lattice = xp, lattice
        self.sizes = tuple(m.shape[-1] for m in indices)
        m1, m2, m3 = (xp.astype(m, dtype, copy=False) for m in indices)
        rows = lattice.reciprocal[..., None, :]
        k1, k2, k3 = (m[..., None] * rows[..., a, :, :] for a, m in enumerate((m1, m2, m3)))
        self.vectors = xp.concat([k1, k2, k3], axis=-2)  # (..., n1 + n2 + n3, 3)
        k1, k2, k3 = (xp.matrix_transpose(k) for k in (k1, k2, k3))
        k2, k3 = (xp.stack([k, -k], axis=-2) for k in (k2, k3))  # (..., 3, 2, n)
        k12 = k1[..., None, :, None] + k2[..., None, :]  # (..., 3, 2, n1, n2)
        k = k12[..., None, :, :, None] + k3[..., None, :, None, None, :]
        self.k = xp.reshape(k, (*k.shape[:-5], 4, math.prod(self.sizes)))  # (..., 3, 4, n1 n2 n3)
        w1, w2, w3 = (
            xp.astype(mask[dim], dtype) * (1 + xp.astype(m > 0, dtype))
            for dim, m in (("n1", m1), ("n2", m2), ("n3", m3))
        )
        w = (w1 / 4)[..., None, None] * w2[..., None, :, None] * w3[..., None, None, :]
        self.weights = xp.reshape(w, (*w.shape[:-3], 1, math.prod(self.sizes)))
        self.signs = xp.asarray(_SIGNS, dtype=dtype, device=device(m1))

    def waves(self, positions):
        """Cosines and sines of m b.r along each axis, three (..., atoms, 2 n)."""
        xp = self.xp
        angles = xp.matmul(positions, xp.matrix_transpose(self.vectors))
        cos, sin = cos_sin(angles)
        n1, n2, _ = self.sizes
        parts = (slice(n1), slice(n1, n1 + n2), slice(n1 + n2, None))
        return [xp.concat([cos[..., part], sin[..., part]], axis=-1) for part in parts]

    def structure_factor(self, plane, last):
        """Real and imaginary part of sum_j q_j exp(i k.r_j), (..., 4, 2, n1 n2 n3)."""
        xp = self.xp
        n1, n2, n3 = self.sizes
        table = xp.matmul(xp.matrix_transpose(plane), last)
        table = xp.reshape(table, (*table.shape[:-2], 2, n1, 2, n2, 2, n3))
        table = _permute(xp, table, (0, 2, 4, 1, 3, 5))
        table = xp.reshape(table, (*table.shape[:-6], 8, n1 * n2 * n3))
        factor = xp.matmul(self.signs, table)
        return xp.reshape(factor, (*factor.shape[:-2], 4, 2, n1 * n2 * n3))

    def adjoint(self, factor):
        """Transpose of the last steps of `structure_factor`, (..., 4 n1 n2, 2 n3)."""
        xp = self.xp
        n1, n2, n3 = self.sizes
        factor = xp.reshape(factor, (*factor.shape[:-3], 8, n1 * n2 * n3))
        table = xp.matmul(xp.matrix_transpose(self.signs), factor)
        table = xp.reshape(table, (*table.shape[:-2], 2, 2, 2, n1, n2, n3))
        table = _permute(xp, table, (0, 3, 1, 4, 2, 5))
        return xp.reshape(table, (*table.shape[:-6], 4 * n1 * n2, 2 * n3))

    def derivatives(self, waves, plane, adjoint):
        """Potentials (..., atoms) and their slopes in space (..., atoms, 3) at fixed S."""
        xp = self.xp
        f1, f2, f3 = waves
        by_last = xp.matmul(plane, adjoint)
        by_plane = xp.matmul(f3, xp.matrix_transpose(adjoint))
        by_plane = xp.reshape(by_plane, (*by_plane.shape[:-1], f1.shape[-1], f2.shape[-1]))
        by_first = xp.matmul(by_plane, f2[..., None])[..., 0]
        by_middle = xp.matmul(f1[..., None, :], by_plane)[..., 0, :]
        turns = []
        for n, wave, by in zip(self.sizes, waves, (by_first, by_middle, by_last), strict=True):
            turns.append(wave[..., :n] * by[..., n:] - wave[..., n:] * by[..., :n])
        slopes = xp.matmul(xp.concat(turns, axis=-1), self.vectors)
        return xp.sum(f3 * by_last, axis=-1), slopes

    def green(self, exponent):
        """G(k) and -2 dG/d(k^2), over 2 V and weighted, 0 at k = 0: (..., 4, n1 n2 n3)."""
        xp = self.xp
        half = (self.lattice.smearing**2 / 2)[..., None, None]
        x = half * xp.sum(self.k * self.k, axis=-3)
        valid = x > 0
        x = xp.where(valid, x, xp.ones_like(x))
        lower, upper = expint((exponent - 1) / 2, x)
        weight = self.lattice.scale(exponent)[..., None, None] * self.weights
        weight = xp.where(valid, weight, xp.zeros_like(x))
        return weight * upper, (2 * half) * weight * lower

    def second_moment(self, density):
        """Sum of density k k^T, (..., 3, 3)."""
        xp = self.xp
        size = 4 * math.prod(self.sizes)
        k = xp.reshape(self.k, (*self.k.shape[:-2], size))
        density = xp.reshape(density, (*density.shape[:-2], 1, size))
        return xp.matmul(density * k, xp.matrix_transpose(k))


class _Corrections:
    """Self energy, k = 0 term and slab correction; potentials a + b z + c z^2 - own q."""

    def __init__(self, xp, positions, charges, lattice, exponent):
        half = exponent / 2
        self.own = lattice.screened / (2 * math.gamma(half + 1) * (2 * lattice.smearing**2) ** half)
        total = xp.sum(charges, axis=-1)
        # at p = 3 the k = 0 term diverges unless the total charge is 0
        self.a = total * lattice.scale(exponent) * (0 if exponent == 3 else 2 / (exponent - 3))
        self.uniform = total * self.a
        self.slab = None
        if exponent == 1:
            self.normal = lattice.normal
            self.z = xp.matmul(positions, self.normal[..., None])[..., 0]  # 0 unless a slab
            moment = charges * self.z
            dipole, second = xp.sum(moment, axis=-1), xp.sum(moment * self.z, axis=-1)
            factor = 2 * math.pi / lattice.volume
            spread = total * lattice.height**2 / 12
            self.a = self.a - factor * (second / 2 + spread)
            self.b = (factor * dipole)[..., None]
            self.c = (factor * total / -2)[..., None]
            self.slab = factor * (dipole * dipole - total * (second + spread))
        self.energy = self.uniform if self.slab is None else self.uniform + self.slab

    def potentials(self, charges):
        """(..., atoms)."""
        flat = self.a[..., None] - self.own[..., None] * charges
        return flat if self.slab is None else flat + self.z * (self.b + self.c * self.z)

    def slopes(self):
        """Of the potentials, (..., atoms, 3) or 0."""
        if self.slab is None:
            return 0.0
        return (self.b + 2 * self.c * self.z)[..., None] * self.normal[..., None, :]

    def stress(self):
        """What is not isotropic, (..., 3, 3) or 0."""
        if self.slab is None:
            return 0.0
        outer = self.normal[..., :, None] * self.normal[..., None, :]
        return (2 * self.slab)[..., None, None] * outer


def _put_axis(a, source, target):
    """As moveaxis, which torch's vmap does not know."""
    order = list(range(a.ndim))
    axis = order.pop(source)
    order.insert(target % a.ndim, axis)
    return array_namespace(a).permute_dims(a, tuple(order))


class _Pairs:
    """Separations (3, ..., atoms, neighbours), squares and charges of neighbours."""

    def __init__(self, xp, neighbours, shifts, positions, charges, cell):
        self.xp = xp
        atoms, width = neighbours.shape[-2:]
        listed = neighbours >= 0
        own = xp.arange(atoms, dtype=neighbours.dtype, device=device(neighbours))
        index = xp.where(listed, neighbours, own[:, None])
        columns = _put_axis(positions, -1, 0)
        leading = _broadcast(index.shape[:-2], positions.shape[:-2], charges.shape[:-1])
        if leading:  # one flat gather: several times faster than one along an axis
            first = atoms * xp.arange(math.prod(leading), dtype=index.dtype, device=device(index))
            index = index + xp.reshape(first, (*leading, 1, 1))
            columns = xp.broadcast_to(columns, (3, *leading, atoms))
            charges = xp.broadcast_to(charges, (*leading, atoms))
        table = xp.concat([columns, charges[None, ...]], axis=0)
        found = xp.take(xp.reshape(table, (4, -1)), xp.reshape(index, (-1,)), axis=1)
        found = xp.reshape(found, (4, *index.shape))
        shifts = xp.astype(shifts, cell.dtype, copy=False)
        offsets = xp.matmul(xp.reshape(shifts, (*shifts.shape[:-3], atoms * width, 3)), cell)
        offsets = xp.reshape(offsets, (*offsets.shape[:-2], atoms, width, 3))
        self.separations = found[:3, ...] - columns[..., None] + _put_axis(offsets, -1, 0)
        square = xp.sum(self.separations * self.separations, axis=0)
        self.square = xp.where(listed, square, xp.ones_like(square))
        self.charges = xp.where(listed, found[3, ...], xp.zeros_like(square))

    def interaction(self, smearing, periodic, exponent):
        """v(r) and v'(r)/r of the short part, finite for padding."""
        xp, half = self.xp, exponent / 2
        smearing = smearing[..., None, None]
        y = self.square / (2 * smearing**2)
        share = gammaincc(half, y)
        edge = xp.exp(-y) * (2 / math.gamma(half) / (2 * smearing**2) ** half)
        axes = xp.sum(xp.astype(periodic, y.dtype, copy=False), axis=-1)
        bare = (axes == 0)[..., None, None]
        share = xp.where(bare, xp.ones_like(y), share)
        edge = xp.where(bare, xp.zeros_like(y), edge)
        value = share * _inverse_power(xp, self.square, exponent)
        return value, -(exponent * value + edge) / self.square


def _plane(xp, waves):
    """Products of the waves along axes 1 and 2, (..., atoms, 4 n1 n2)."""
    first, middle, _ = waves
    plane = first[..., :, None] * middle[..., None, :]
    return xp.reshape(plane, (*plane.shape[:-2], first.shape[-1] * middle.shape[-1]))


def _permute(xp, table, order):
    """Permute trailing dims."""
    leading = table.ndim - len(order)
    return xp.permute_dims(table, (*range(leading), *(leading + axis for axis in order)))


def _inverse_power(xp, square, exponent):
    """r^-p from r^2."""
    if exponent % 2:
        return 1 / (xp.sqrt(square) * square ** (exponent // 2))
    return 1 / square ** (exponent // 2)


def _broadcast(*shapes):
    """Give the shape that leading shapes broadcast to."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(max(lengths) if 0 not in lengths else 0 for lengths in zip(*padded, strict=True))
