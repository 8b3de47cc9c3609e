"""Molecules from SMILES and SDF as points in space, and overlays of them back into an SDF."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stowplan.errors import DataError
from stowplan.io import conformers
from stowplan.io.conformers import Fragments, Refused
from stowplan.io.molecule_files import MoleculeRecord, iter_records
from stowplan.io.whole_files import whole_file
from stowplan.ragged import Ragged

__all__ = [
    "FailedMolecule",
    "Molecules",
    "count_atoms",
    "iter_molecules",
    "read_molecules",
    "write_overlays",
]

SEED = 0xF00D
STRAIGHT = 1e-3  # of a rotation in float32
SHOWN = 8  # failures that a message lists
OURS = ("name", "rank", "score")  # properties of a hit


class FailedMolecule(NamedTuple):
    """A molecule that could not be used."""

    line: int  # of the file, where its record begins
    name: str
    reason: str

    def __str__(self) -> str:
        where = f"line {self.line}"
        named = "" if self.name == where else f", {self.name}"
        return f"{where}{named}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Molecules:
    """Molecules of a file, in its order.

    Attributes
    ----------
    names : tuple of str
        Of the file; what has none is called by its line, ``"line 12"``.
    points : Ragged (atoms, 3)
        Places of heavy atoms in Å, in the frame of the file (embedded ones in their own).
    smiles : tuple of str
        Canonical SMILES of what the points are of, without hydrogens.
    lines : (molecules,) int
        Line of the file where the record begins, from 1.
    embedded : (molecules,) bool
        Whether the coordinates were made here.
    failed : tuple of FailedMolecule
        What was left out.
    mols : tuple of rdkit.Chem.Mol, or None
        With all atoms, coordinates and properties, where they were asked for.
    """

    names: tuple[str, ...]
    points: Ragged
    smiles: tuple[str, ...]
    lines: NDArray[np.int64]
    embedded: NDArray[np.bool_]
    failed: tuple[FailedMolecule, ...] = ()
    mols: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: slice | ArrayLike) -> Molecules:
        """Give some of them, in the order of the index; failures stay with the whole."""
        chosen = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index)]
        places = np.atleast_1d(chosen).tolist()
        return Molecules(
            tuple(self.names[place] for place in places), self.points[places],
            tuple(self.smiles[place] for place in places), self.lines[places],
            self.embedded[places],
            mols=None if self.mols is None else tuple(self.mols[place] for place in places),
        )  # fmt: skip


def read_molecules(
    path: str | os.PathLike[str],
    *,
    lines: Iterable[int] | None = None,
    fragments: Fragments = "refuse",
    heavy_only: bool = True,
    seed: int = SEED,
    dtype: str = "float32",
    keep_mols: bool = False,
    skip_failed: bool = False,
    workers: int = 1,
) -> Molecules:
    r"""Read every molecule of a file.

    SMILES get one conformer by ETKDGv3, from a seed that is the same for each: a molecule has the
    same points whatever stands beside it. A structure keeps its coordinates; one that has none in
    space (all atoms in the plane z = 0 of a block that does not say 3D, or all at one point) is
    embedded as SMILES are.

    Parameters
    ----------
    path
        SMILES with names, or an SDF or mol file, packed or not; see `iter_records`.
    lines
        Only the records that begin in these lines.
    fragments
        Of a salt or a mixture: "refuse" makes it a failure, "largest" takes the one with most heavy
        atoms (the first of equals), "all" takes them as they lie, which is of use for structures
        only: embedded fragments lie anywhere.
    heavy_only
        False: points of hydrogens, too, as far as a structure has them. Dummy atoms never count.
    seed
        Of the conformers, from 0.
    dtype
        Of the points, "float32" or "float64".
    keep_mols
        Keep RDKit's molecules, which `write_overlays` needs.
    skip_failed
        Leave out what cannot be used, and list it in ``failed``.
    workers
        Threads that embed.

    Returns
    -------
    Molecules

    Raises
    ------
    DataError
        For molecules that cannot be used, unless they are skipped: what RDKit cannot read, what has
        no heavy atoms or coordinates that are not finite, what it cannot embed, with their lines.
        Also for a file without molecules, and lines where none begins.
    MissingDependencyError
        Without RDKit.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.smi").write_text("CCO ethanol\nc1ccccc1 benzene\nCC( broken\n")
    ...     found = read_molecules(Path(folder, "a.smi"), skip_failed=True)
    >>> found.names, found.points.shapes[:, 0].tolist()
    (('ethanol', 'benzene'), [3, 6])
    >>> found.failed[0].line, found.failed[0].name
    (3, 'broken')
    """
    options = _options(fragments, heavy_only, seed, dtype, keep_mols, skip_failed, workers)
    chosen = None if lines is None else {int(line) for line in lines}
    records = [record for record in iter_records(path) if chosen is None or record.line in chosen]
    missing = sorted((chosen or set()) - {record.line for record in records})
    if missing:
        raise DataError(
            f"read_molecules: no molecule of {os.fspath(path)!r} begins in {_listed(missing)}."
        )
    if not records and chosen is None:
        raise DataError(f"read_molecules: {os.fspath(path)!r} holds no molecules.")
    return _molecules(path, records, options)


def iter_molecules(
    path: str | os.PathLike[str],
    chunk: int = 1000,
    *,
    fragments: Fragments = "refuse",
    heavy_only: bool = True,
    seed: int = SEED,
    dtype: str = "float32",
    keep_mols: bool = False,
    skip_failed: bool = False,
    workers: int = 1,
) -> Iterator[Molecules]:
    r"""Read a file of any length in chunks, as `read_molecules` reads all of it.

    Unless ``skip_failed`` is set, the whole file is parsed before the first chunk, so that a broken
    line is told of before hours of computing; what cannot be embedded is told of with its chunk.

    Parameters
    ----------
    path, fragments, heavy_only, seed, dtype, keep_mols, skip_failed, workers
        As in `read_molecules`.
    chunk
        Records of a chunk; a chunk has fewer molecules where some are left out, or none.

    Yields
    ------
    Molecules

    Raises
    ------
    DataError, MissingDependencyError
        As `read_molecules`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.smi").write_text("CCO ethanol\nCC ethane\nC methane\n")
    ...     for molecules in iter_molecules(Path(folder, "a.smi"), chunk=2):
    ...         print(molecules.names, molecules.lines)
    ('ethanol', 'ethane') [1 2]
    ('methane',) [3]
    """
    options = _options(fragments, heavy_only, seed, dtype, keep_mols, skip_failed, workers)
    _refuse_count("iter_molecules", "chunk", chunk)
    if not skip_failed:
        _refuse_broken(path, options)
    return _chunks(path, chunk, options)


def count_atoms(
    path: str | os.PathLike[str], *, fragments: Fragments = "refuse", skip_failed: bool = False
) -> tuple[list[str], NDArray[np.int64]]:
    r"""Count the heavy atoms of every molecule of a file; no coordinates are made.

    Parameters as in `read_molecules`; names and numbers come back in the order of the file.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.smi").write_text("CCO ethanol\nc1ccccc1 benzene\n")
    ...     count_atoms(Path(folder, "a.smi"))
    (['ethanol', 'benzene'], array([3, 6]))
    """
    names, atoms, failed = list[str](), list[int](), list[FailedMolecule]()
    with conformers.silent():
        for record in iter_records(path):
            found = _attempt(record, conformers.parse, record, fragments)
            if isinstance(found, FailedMolecule):
                failed.append(found)
                continue
            names.append(record.name)
            atoms.append(conformers.count_heavy(found))
    if not skip_failed:
        _refuse(path, failed, len(names) + len(failed))
    if not names:
        raise DataError(f"read_molecules: {os.fspath(path)!r} holds no molecules.")
    return names, np.array(atoms, np.int64)


def write_overlays(
    path: str | os.PathLike[str],
    molecules: Molecules,
    transforms: ArrayLike,
    scores: ArrayLike,
    ranks: ArrayLike | None = None,
    *,
    query: Molecules | None = None,
) -> None:
    """Write molecules in the frame of the query that they were laid over, as an SDF.

    Parameters
    ----------
    path
        ``.sdf``, or ``.sdf.gz``; it is written whole or not at all.
    molecules
        Hits, read with ``keep_mols=True``; all their atoms are written.
    transforms : (molecules, 4, 4)
        x' = M[:3, :3] x + M[:3, 3], as recipes give them.
    scores : (molecules,)
        Property ``score``; ``rank`` and ``name`` stand beside it. A property of the input that is
        called so becomes ``library_score``, and so on; all others are kept.
    ranks : (molecules,), optional
        1, 2, ... by default.
    query
        One molecule, which becomes the first record, as it lies, with rank 0.

    Raises
    ------
    DataError
        For molecules without ``mols``, numbers that do not match them, and matrices that do not
        turn and shift alone.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.smi").write_text("CCO ethanol")
    ...     hits = read_molecules(Path(folder, "a.smi"), keep_mols=True)
    ...     write_overlays(Path(folder, "hits.sdf"), hits, [np.eye(4)], [1.0])
    ...     again = read_molecules(Path(folder, "hits.sdf"))
    >>> again.names, bool(np.allclose(again.points.values, hits.points.values, atol=1e-4))
    (('ethanol',), True)
    """
    path = Path(path)
    if not path.name.lower().endswith((".sdf", ".sdf.gz")):
        raise DataError(
            f"write_overlays: {os.fspath(path)!r} does not end in .sdf or .sdf.gz, which viewers "
            "open."
        )
    count = len(molecules)
    matrices = np.asarray(transforms, np.float64)
    numbers = np.asarray(scores, np.float64)
    places = np.arange(1, count + 1) if ranks is None else np.asarray(ranks)
    for name, values, shape in (
        ("transforms", matrices, (count, 4, 4)),
        ("scores", numbers, (count,)),
        ("ranks", places, (count,)),
    ):
        if values.shape != shape:
            raise DataError(
                f"write_overlays: {name} has shape {values.shape}, but {count} molecules need "
                f"{shape}."
            )
    _refuse_bent(molecules, matrices)
    hits = [
        _placed(*hit)
        for hit in zip(
            _mols(molecules), molecules.names, matrices, numbers.tolist(), places.tolist(),
            strict=True,
        )
    ]  # fmt: skip
    if query is not None:
        if len(query) != 1:
            raise DataError(f"write_overlays: query holds {len(query)} molecules; give one.")
        hits.insert(0, _placed(_mols(query)[0], query.names[0], np.eye(4), None, 0))
    with whole_file(path) as part:
        if path.suffix.lower() == ".gz":
            with gzip.open(part, "wt", encoding="utf-8") as file:
                _write(hits, cast("TextIO", file))
        else:
            with part.open("w", encoding="utf-8") as file:
                _write(hits, file)


class _Options(NamedTuple):
    fragments: Fragments
    heavy_only: bool
    seed: int
    dtype: np.dtype[Any]
    keep_mols: bool
    skip_failed: bool
    workers: int


def _options(
    fragments: Any, heavy_only: bool, seed: Any, dtype: Any, keep_mols: bool, skip_failed: bool,
    workers: Any,
) -> _Options:  # fmt: skip
    if fragments not in ("refuse", "largest", "all"):
        raise DataError(
            f"read_molecules: fragments={fragments!r}; 'refuse', 'largest' or 'all' is allowed."
        )
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise DataError(
            f"read_molecules: seed={seed!r}; a whole number from 0 to 2**31 - 1 is needed, so that "
            "conformers come out the same again."
        )
    if str(np.dtype(dtype)) not in ("float32", "float64"):
        raise DataError(f"read_molecules: dtype={dtype!r}; 'float32' or 'float64' is allowed.")
    _refuse_count("read_molecules", "workers", workers)
    conformers.rdkit("Chem")
    return _Options(fragments, heavy_only, seed, np.dtype(dtype), keep_mols, skip_failed, workers)


def _refuse_count(function: str, name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DataError(f"{function}: {name}={value!r}; a whole number from 1 is needed.")


def _chunks(path: str | os.PathLike[str], chunk: int, options: _Options) -> Iterator[Molecules]:
    records = iter_records(path)
    seen = False
    while batch := list(islice(records, chunk)):
        seen = True
        yield _molecules(path, batch, options)
    if not seen:
        raise DataError(f"read_molecules: {os.fspath(path)!r} holds no molecules.")


def _refuse_broken(path: str | os.PathLike[str], options: _Options) -> None:
    """Parse everything, keep nothing."""
    count, failed = 0, list[FailedMolecule]()
    with conformers.silent():
        for count, record in enumerate(iter_records(path), 1):  # noqa: B007 - used after the loop
            found = _attempt(record, conformers.parse, record, options.fragments)
            failed += [found] if isinstance(found, FailedMolecule) else []
    _refuse(path, failed, count)


def _molecules(
    path: str | os.PathLike[str], records: Sequence[MoleculeRecord], options: _Options
) -> Molecules:
    """Parse all, then embed what needs it: a broken line is told of first."""
    with conformers.silent():
        found = [
            _attempt(record, conformers.parse, record, options.fragments) for record in records
        ]
        _refuse_unless_skipped(path, found, options)
        flat = [
            place
            for place, (record, molecule) in enumerate(zip(records, found, strict=True))
            if not isinstance(molecule, FailedMolecule)
            and not conformers.has_coordinates(molecule, record)
        ]

        def embed(place: int) -> Any:
            return _attempt(records[place], conformers.embed, found[place], options.seed)

        with ThreadPoolExecutor(options.workers) as pool:  # RDKit lets go of the interpreter
            for place, molecule in zip(flat, pool.map(embed, flat), strict=True):
                found[place] = molecule
        _refuse_unless_skipped(path, found, options)
    return _collect(records, found, set(flat), options)


def _collect(
    records: Sequence[MoleculeRecord], found: list[Any], embedded: set[int], options: _Options
) -> Molecules:
    whole = [place for place, it in enumerate(found) if not isinstance(it, FailedMolecule)]
    chem = conformers.rdkit("Chem")
    with conformers.silent():
        smiles = tuple(chem.MolToSmiles(chem.RemoveHs(found[place])) for place in whole)
    points = [
        conformers.coordinates(found[place], options.heavy_only).astype(options.dtype)
        for place in whole
    ]
    return Molecules(
        tuple(records[place].name for place in whole),
        Ragged.from_list(points, tail=(3,), dtype=options.dtype),
        smiles,
        np.array([records[place].line for place in whole], np.int64),
        np.array([place in embedded for place in whole], np.bool_),
        tuple(it for it in found if isinstance(it, FailedMolecule)),
        tuple(found[place] for place in whole) if options.keep_mols else None,
    )


def _attempt(record: MoleculeRecord, call: Callable[..., Any], *arguments: Any) -> Any:
    """Give a molecule, or the failure."""
    try:
        return call(*arguments)
    except Refused as refused:
        return FailedMolecule(record.line, record.name, str(refused))


def _refuse_unless_skipped(
    path: str | os.PathLike[str], found: list[Any], options: _Options
) -> None:
    if not options.skip_failed:
        _refuse(path, [it for it in found if isinstance(it, FailedMolecule)], len(found))


def _refuse(path: str | os.PathLike[str], failed: list[FailedMolecule], count: int) -> None:
    if not failed:
        return
    told = "; ".join(str(molecule) for molecule in failed[:SHOWN])
    more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
    raise DataError(
        f"read_molecules: {len(failed)} of {count} molecules of {os.fspath(path)!r} cannot be "
        f"used. {told}{more}. Correct them, or leave them out: skip_failed=True."
    )


def _listed(lines: Sequence[int]) -> str:
    text = ", ".join(str(line) for line in lines[:SHOWN])
    return f"line{'s' * (len(lines) > 1)} {text}{', ...' * (len(lines) > SHOWN)}"


def _refuse_bent(molecules: Molecules, matrices: NDArray[np.float64]) -> None:
    """Raise for a matrix that is no rotation and shift: it would bend a molecule, or mirror it."""
    finite = np.isfinite(matrices)
    turns = np.where(finite, matrices, 0.0)[:, :3, :3]
    straight = np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2)) < STRAIGHT
    proper = np.linalg.det(turns) > 0
    affine = (matrices[:, 3] == (0, 0, 0, 1)).all(axis=1) & finite.all(axis=(1, 2))
    wrong = np.flatnonzero(~(straight & proper & affine))
    if len(wrong):
        place = int(wrong[0])
        raise DataError(
            f"write_overlays: {len(wrong)} of {len(matrices)} transforms do not turn and shift "
            f"alone. That of {molecules.names[place]} is {matrices[place].tolist()}; a rotation, a "
            "shift in the last column and the row 0, 0, 0, 1 are needed."
        )


def _mols(molecules: Molecules) -> tuple[Any, ...]:
    if molecules.mols is None:
        raise DataError(
            "write_overlays: the molecules hold points alone. Read them with keep_mols=True."
        )
    return molecules.mols


def _placed(
    molecule: Any, name: str, matrix: NDArray[np.float64], score: float | None, rank: int
) -> Any:
    """Give a copy that lies where the matrix puts it, with its properties."""
    placed = conformers.rdkit("Chem").Mol(molecule)
    conformer = placed.GetConformer()
    conformer.SetPositions(conformer.GetPositions() @ matrix[:3, :3].T + matrix[:3, 3])
    conformer.Set3D(True)
    for own in OURS:
        if placed.HasProp(own):
            placed.SetProp(f"library_{own}", placed.GetProp(own))
            placed.ClearProp(own)
    placed.SetProp("_Name", name)
    placed.SetProp("name", name)
    placed.SetProp("rank", str(rank))
    if score is not None:
        placed.SetProp("score", f"{score:.6f}")
    return placed


def _write(molecules: Sequence[Any], file: TextIO) -> None:
    with conformers.silent(), conformers.rdkit("Chem").SDWriter(file) as writer:
        for molecule in molecules:
            writer.write(molecule)
