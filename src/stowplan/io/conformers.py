"""One molecule by RDKit: parsed, one fragment of it, in three dimensions, or the reason why not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stowplan.extras import import_extra
from stowplan.io.molecule_files import MoleculeRecord

__all__ = [
    "Fragments",
    "coordinates",
    "count_heavy",
    "draw_structure",
    "embed",
    "has_coordinates",
    "parse",
    "silent",
]

Fragments = Literal["refuse", "largest", "all"]
TIME = re.compile(r"^\[\d\d:\d\d:\d\d\]\s*")
PREFIX = re.compile(r"^(ERROR:|SMILES Parse Error:)\s*")
LINE = re.compile(r"\bon line (\d+)|\bat line (\d+)")
NOISE = re.compile(r"\**|-*|.*[Vv]iolation|.*moving to the beginning of the next molecule")


class Refused(Exception):
    """A molecule that cannot be used; the message is the reason."""


def rdkit(module: str) -> Any:
    """Import a module of RDKit."""
    return import_extra("molecules", f"rdkit.{module}", "read_molecules")


@contextmanager
def silent() -> Iterator[None]:
    """Keep RDKit's own log off the terminal."""
    base = rdkit("rdBase")
    with base.BlockLogs(), base.CaptureErrorLog():
        yield


def parse(record: MoleculeRecord, fragments: Fragments) -> Any:
    """Give the molecule of a record, with the properties of an SDF; its hydrogens stay.

    Raises `Refused` for what RDKit cannot read (the reason is RDKit's, with lines of the file), for
    no heavy atoms, coordinates that are not finite, and several fragments unless they are wanted.
    """
    with rdkit("rdBase").CaptureErrorLog() as log:
        molecule = _block(record.text) if record.is_block else _smiles(record.text)
    if molecule is None:
        raise Refused(_reason(log.messages, record))
    if not molecule.GetNumHeavyAtoms():
        raise Refused("it has no heavy atoms")
    points = _points(molecule)
    wrong = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(wrong):
        place = int(wrong[0])
        raise Refused(f"atom {place + 1} is at {points[place].tolist()}, which is not finite")
    return _fragment(molecule, fragments)


def has_coordinates(molecule: Any, record: MoleculeRecord) -> bool:
    """Say whether the record has a place in space for every atom.

    Atoms in the plane z = 0 count where the block says 3D, as a planar molecule may lie so; a
    single heavy atom lies anywhere.
    """
    if not molecule.GetNumConformers():
        return False
    points = _points(molecule)
    if molecule.GetNumHeavyAtoms() == 1:
        return True
    said = record.text.splitlines()[1][20:22].upper() == "3D"
    return bool(np.ptp(points, axis=0).any() and (said or points[:, 2].any()))


def embed(molecule: Any, seed: int) -> Any:
    """Give the molecule with hydrogens and one conformer, by ETKDGv3; then from random coordinates.

    Raises `Refused` where neither finds one. Source: S. Wang et al., J. Chem. Inf. Model. 60, 2044
    (2020).
    """
    geometry = rdkit("Chem.rdDistGeom")
    whole = rdkit("Chem").AddHs(molecule)
    counts = np.zeros(len(geometry.EmbedFailureCauses.names), np.int64)
    for random in (False, True):
        parameters = geometry.ETKDGv3()
        parameters.randomSeed = seed
        parameters.useRandomCoords = random
        parameters.trackFailures = True
        try:
            if geometry.EmbedMolecule(whole, parameters) == 0:
                return whole
        except (RuntimeError, ValueError) as error:
            raise Refused(f"RDKit cannot embed it: {str(error).strip().splitlines()[0]}") from None
        counts += np.asarray(parameters.GetFailureCounts())[: len(counts)]
    reason = "RDKit cannot embed it: ETKDGv3 found no conformer"
    if counts.any():
        cause = geometry.EmbedFailureCauses.values[int(counts.argmax())]
        words = str(cause).rpartition(".")[2].lower().replace("_", " ")
        reason += f", {counts.sum()} attempts failed, mostly at {words}"
    raise Refused(reason)


def coordinates(molecule: Any, heavy_only: bool) -> NDArray[np.float64]:
    """Give the places of atoms (n, 3), of dummies and, if ``heavy_only``, hydrogens none."""
    return _points(molecule)[_matching(molecule, "[!#0;!#1]" if heavy_only else "[!#0]")]


def count_heavy(molecule: Any) -> int:
    """Give the number of atoms that `coordinates` has places of, without hydrogens."""
    return int(_heavy(molecule).sum())


def _smiles(text: str) -> Any:
    return rdkit("Chem").MolFromSmiles(text)


def _block(text: str) -> Any:
    supplier = rdkit("Chem").SDMolSupplier()
    supplier.SetData(text, removeHs=False)
    return supplier[0] if len(supplier) else None


def _reason(messages: str, record: MoleculeRecord) -> str:
    """Give what RDKit said, with lines of the file instead of the block."""
    found = (PREFIX.sub("", TIME.sub("", line.strip())) for line in messages.splitlines())
    said = [line for line in found if not NOISE.fullmatch(line)]
    if not said:
        return "RDKit cannot read it" if record.text.strip() else "the record is empty"
    reason = said[0].rstrip(".")
    if len(said) > 1 and said[1].startswith("check for mistakes"):
        reason += f" ({said[1].rstrip(':')})"
    if not record.is_block:
        return reason
    return LINE.sub(lambda found: f"on line {int(found[1] or found[2]) + record.line - 1}", reason)


def _fragment(molecule: Any, fragments: Fragments) -> Any:
    """Give what is asked for of a molecule that may have several parts."""
    chem = rdkit("Chem")
    parts = chem.GetMolFrags(molecule)
    heavy = _heavy(molecule)
    if len(parts) > 1:
        parts = [part for part in parts if heavy[list(part)].any()]
    if fragments == "all" or len(parts) == 1:
        return molecule
    if fragments == "refuse":
        sizes = ", ".join(str(int(heavy[list(part)].sum())) for part in parts)
        raise Refused(
            f"it has {len(parts)} fragments, of {sizes} heavy atoms; take the largest one by "
            "fragments='largest', or all"
        )
    pieces = chem.GetMolFrags(molecule, asMols=True)
    return max(pieces, key=lambda piece: int(_heavy(piece).sum()))  # the first of equal ones


def _heavy(molecule: Any) -> NDArray[np.bool_]:
    """Which atoms are no hydrogens and no dummies."""
    return _matching(molecule, "[!#0;!#1]")


def _matching(molecule: Any, pattern: str) -> NDArray[np.bool_]:
    """Which atoms are such, by a query: a loop over atoms in Python takes ten times as long."""
    count = molecule.GetNumAtoms()
    found = np.zeros(count, np.bool_)
    query = rdkit("Chem").MolFromSmarts(pattern)
    matches = molecule.GetSubstructMatches(query, maxMatches=max(count, 1))
    found[[atom for (atom,) in matches]] = True
    return found


def _points(molecule: Any) -> NDArray[np.float64]:
    if not molecule.GetNumConformers():
        return np.zeros((molecule.GetNumAtoms(), 3))
    points: NDArray[np.float64] = molecule.GetConformer().GetPositions()
    return points


def draw_structure(molecule: Any, width: int, height: int) -> bytes:
    """Draw the formula of a molecule, without hydrogens: a PNG of so many pixels."""
    chem = rdkit("Chem")
    drawing = import_extra("molecules", "rdkit.Chem.Draw.rdMolDraw2D", "draw_structure")
    with silent():
        flat = chem.RemoveHs(molecule)
        flat.RemoveAllConformers()
        chem.rdDepictor.Compute2DCoords(flat)
        drawer = drawing.MolDraw2DCairo(width, height)
        options = drawer.drawOptions()
        options.padding = 0.03
        options.fixedBondLength = 0.16 * min(width, height)
        options.bondLineWidth = 3
        options.minFontSize = 20
        drawing.PrepareAndDrawMolecule(drawer, flat)
        drawer.FinishDrawing()
    picture: bytes = drawer.GetDrawingText()
    return picture
