"""Real ionic compounds: prototype, published lattice constants and formal charges, with sources.

Lattice constants in Å at room temperature unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WYCKOFF = "R. W. G. Wyckoff, Crystal Structures, 2nd ed., Interscience"
CHAPTER_3 = f"{WYCKOFF}, vol. 1 (1963), chapter III, pp. 85-237"
CHAPTER_4 = f"{WYCKOFF}, vol. 1 (1963), chapter IV, pp. 239-444"
CHAPTER_7 = f"{WYCKOFF}, vol. 2 (1964), chapter VII"

# Madelung constants per formula unit and charge unit squared, with their length in units of a:
# Y. Sakamoto, J. Chem. Phys. 28, 164 (1958); Q. C. Johnson and D. H. Templeton, J. Chem. Phys. 34,
# 2004 (1961); I. J. Zucker, J. Phys. A 8, 1734 (1975). Digits past the printed ones by Ewald sums
# that two Gaussian widths agree on.
MADELUNG = {
    "rocksalt": (1.747564594633, 0.5),
    "caesium chloride": (2.035361509453, 1.0),
    "zincblende": (1.891463052043, 0.5),
    "wurtzite, ideal": (2.680266993904, 1.0),
    "fluorite": (11.636575227077, 1.0),
    "antifluorite": (11.636575227077, 1.0),
    "cuprite": (10.259457033075, 1.0),
}


@dataclass(frozen=True, eq=False)
class Prototype:
    """A structure type: sites of its primitive cell, in fractions of the conventional one."""

    species: tuple[int, ...]  # which ion of the compound each site holds
    sites: NDArray[np.float64]  # (sites, 3)
    centring: str = "P"
    slab: tuple[tuple[int, int, int], ...] | None = (
        None  # neutral surface: its cell, open axis last
    )


@dataclass(frozen=True)
class Compound:
    """One compound with its source."""

    formula: str
    prototype: str
    ions: tuple[tuple[str, int], ...]
    a: float
    source: str
    c: float | None = None  # cubic without
    free: tuple[float, ...] = ()  # free coordinates of the prototype


CUBE_FACE = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
CUBE_EDGE = ((0, 0, 1), (1, -1, 0), (1, 1, 0))  # (110): every plane is neutral
PRISM = (
    (0, 0, -1),
    (1, 0, 0),
    (-1, -2, 0),
)  # (10-10) of wurtzite; (0, 0, -1) keeps it right-handed

CENTRES = {
    "P": np.zeros((1, 3)),
    "F": np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
    "R": np.array([[0, 0, 0], [2, 1, 1], [1, 2, 2]]) / 3,
}
PRIMITIVE = {  # rows: lattice vectors in terms of the conventional ones
    "P": np.eye(3),
    "F": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3,
}


def prototype(compound: Compound) -> Prototype:
    """Give the structure type of a compound, with its free coordinates put in."""
    quarter = np.full(3, 0.25)
    origin = np.zeros(3)
    match compound.prototype:
        case "rocksalt":
            return Prototype((0, 1), np.array([origin, 2 * quarter]), "F", CUBE_FACE)
        case "caesium chloride":
            return Prototype((0, 1), np.array([origin, 2 * quarter]), "P", CUBE_EDGE)
        case "zincblende":
            return Prototype((0, 1), np.array([origin, quarter]), "F", CUBE_EDGE)
        case "fluorite" | "antifluorite":
            sites = np.array([origin, quarter, 3 * quarter])
            return Prototype((0, 1, 1), sites, "F", CUBE_EDGE)
        case "cuprite":
            metal = quarter + CENTRES["F"]
            return Prototype((0,) * 4 + (1,) * 2, np.vstack([metal, origin, 2 * quarter]))
        case "perovskite":
            sites = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) / 2
            return Prototype((0, 1, 2, 2, 2), sites, "P", CUBE_FACE)
        case "rutile":
            (u,) = compound.free
            pair = np.array([[u, u, 0], [-u, -u, 0]])
            turned = np.array([[0.5 + u, 0.5 - u, 0.5], [0.5 - u, 0.5 + u, 0.5]])
            sites = np.vstack([origin, 2 * quarter, pair, turned])
            return Prototype((0, 0, 1, 1, 1, 1), sites, "P", CUBE_FACE)
        case "wurtzite" | "wurtzite, ideal":
            (u,) = compound.free
            third, half = np.array([1 / 3, 2 / 3, 0]), np.array([0, 0, 0.5])
            metal = np.array([third, 1 - third + half - [0, 0, 1]])
            return Prototype((0, 0, 1, 1), np.vstack([metal, metal + [0, 0, u]]), "P", PRISM)
        case "corundum":
            z, x = compound.free
            up, half = np.array([0, 0, z]), np.array([0, 0, 0.5])
            metal = np.array([up, half - up, -up, half + up])
            ring = np.array([[x, 0, 0.25], [0, x, 0.25], [-x, -x, 0.25]])
            return Prototype((0,) * 4 + (1,) * 6, np.vstack([metal, ring, -ring]), "R")
    raise ValueError(f"{compound.prototype} is not a prototype of this set.")


def conventional_cell(compound: Compound) -> NDArray[np.float64]:
    """Lattice vectors of the conventional cell, rows, in Å."""
    a, c = compound.a, compound.c or compound.a
    if compound.prototype.startswith(("wurtzite", "corundum")):
        return np.array([[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, c]])
    return np.diag([a, a, c])


def _salt(cation: str, anion: str, a: float, charge: int = 1) -> Compound:
    ions = ((cation, charge), (anion, -charge))
    return Compound(cation + anion, "rocksalt", ions, a, CHAPTER_3)


def _layers(formula: str, ions: tuple[tuple[str, int], ...], a: float) -> Compound:
    return Compound(formula, "perovskite", ions, a, CHAPTER_7)


COMPOUNDS = (
    _salt("Li", "F", 4.0173),
    _salt("Li", "Cl", 5.12954),
    _salt("Na", "F", 4.620),
    _salt("Na", "Cl", 5.64056),
    _salt("Na", "Br", 5.97324),
    _salt("Na", "I", 6.4728),
    _salt("K", "F", 5.347),
    _salt("K", "Cl", 6.29294),
    _salt("K", "Br", 6.6000),
    _salt("K", "I", 7.06555),
    _salt("Rb", "Cl", 6.5810),
    _salt("Ag", "Cl", 5.547),
    _salt("Ag", "Br", 5.7745),
    _salt("Mg", "O", 4.2112, 2),
    _salt("Ca", "O", 4.8105, 2),
    _salt("Sr", "O", 5.1602, 2),
    _salt("Ba", "O", 5.523, 2),
    Compound("CsCl", "caesium chloride", (("Cs", 1), ("Cl", -1)), 4.123, CHAPTER_3),
    Compound("CsBr", "caesium chloride", (("Cs", 1), ("Br", -1)), 4.286, CHAPTER_3),
    Compound("CsI", "caesium chloride", (("Cs", 1), ("I", -1)), 4.5667, CHAPTER_3),
    Compound("TlCl", "caesium chloride", (("Tl", 1), ("Cl", -1)), 3.8340, CHAPTER_3),
    Compound(
        "ZnS",
        "zincblende",
        (("Zn", 2), ("S", -2)),
        5.4093,
        "B. J. Skinner, Am. Mineral. 46, 1399 (1961)",
    ),
    Compound("CuCl", "zincblende", (("Cu", 1), ("Cl", -1)), 5.4057, CHAPTER_3),
    Compound("ZnSe", "zincblende", (("Zn", 2), ("Se", -2)), 5.6676, CHAPTER_3),
    Compound(
        "ZnO",
        "wurtzite",
        (("Zn", 2), ("O", -2)),
        3.2494,
        "K. Kihara and G. Donnay, Can. Mineral. 23, 647 (1985)",
        c=5.2038,
        free=(0.3821,),
    ),
    Compound("BeO", "wurtzite", (("Be", 2), ("O", -2)), 2.698, CHAPTER_3, c=4.380, free=(0.378,)),
    Compound(
        "CdS",
        "wurtzite, ideal",
        (("Cd", 2), ("S", -2)),
        4.1348,
        f"{CHAPTER_3}; c and u idealised: c = sqrt(8/3) a (published 6.7490), u = 3/8",
        c=4.1348 * np.sqrt(8 / 3),
        free=(0.375,),
    ),
    Compound("CaF2", "fluorite", (("Ca", 2), ("F", -1)), 5.46295, CHAPTER_4),
    Compound("SrF2", "fluorite", (("Sr", 2), ("F", -1)), 5.7996, CHAPTER_4),
    Compound("BaF2", "fluorite", (("Ba", 2), ("F", -1)), 6.2001, CHAPTER_4),
    Compound("CeO2", "fluorite", (("Ce", 4), ("O", -2)), 5.4110, CHAPTER_4),
    Compound("ThO2", "fluorite", (("Th", 4), ("O", -2)), 5.5997, CHAPTER_4),
    Compound("Li2O", "antifluorite", (("O", -2), ("Li", 1)), 4.619, CHAPTER_4),
    Compound("Na2O", "antifluorite", (("O", -2), ("Na", 1)), 5.55, CHAPTER_4),
    Compound("Cu2O", "cuprite", (("Cu", 1), ("O", -2)), 4.2696, CHAPTER_4),
    Compound(
        "TiO2", "rutile", (("Ti", 4), ("O", -2)), 4.59373, CHAPTER_4, c=2.95812, free=(0.3053,)
    ),
    Compound(
        "SnO2", "rutile", (("Sn", 4), ("O", -2)), 4.73727, CHAPTER_4, c=3.186383, free=(0.307,)
    ),
    Compound("MgF2", "rutile", (("Mg", 2), ("F", -1)), 4.623, CHAPTER_4, c=3.052, free=(0.303,)),
    _layers("SrTiO3", (("Sr", 2), ("Ti", 4), ("O", -2)), 3.9051),
    Compound(
        "BaTiO3",
        "perovskite",
        (("Ba", 2), ("Ti", 4), ("O", -2)),
        4.0118,
        f"{CHAPTER_7}; the cubic phase, 201 degrees C",
    ),
    _layers("KNiF3", (("K", 1), ("Ni", 2), ("F", -1)), 4.012),
    Compound(
        "Al2O3",
        "corundum",
        (("Al", 3), ("O", -2)),
        4.7602,
        "J. Lewis, D. Schwarzenbach and H. D. Flack, Acta Cryst. A38, 733 (1982)",
        c=12.9933,
        free=(0.35216, 0.30624),
    ),
)
