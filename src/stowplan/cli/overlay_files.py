"""Files of `stowplan overlay`: the library, chunk by chunk, and the table of all scores."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.cli.arguments import refuse_unwritable
from stowplan.errors import DataError
from stowplan.extras import import_extra
from stowplan.io.molecule_files import iter_records
from stowplan.io.molecules import FailedMolecule, Molecules, iter_molecules
from stowplan.io.whole_files import whole_file
from stowplan.ragged import Ragged

__all__ = ["Library", "check_outputs", "write_scores"]


def check_outputs(out: Path | None, scores: Path | None, picture: Path | None) -> None:
    """Raise before anything is computed for what cannot be written, or needs a missing package."""
    given = [path for path in (out, scores, picture) if path is not None]
    for path in given:
        refuse_unwritable(path)
    if len(set(given)) < len(given):
        raise DataError("overlay: two of --out, --scores and --picture are one file.")
    if out is not None and not out.name.lower().endswith((".sdf", ".sdf.gz")):
        raise DataError(f"overlay: --out {out} does not end in .sdf or .sdf.gz.")
    if scores is not None:
        if scores.suffix.lower() not in (".csv", ".parquet"):
            raise DataError(f"overlay: --scores {scores} does not end in .parquet or .csv.")
        if scores.suffix.lower() == ".parquet":
            import_extra("arrow", "pyarrow.parquet", "--scores table.parquet (or table.csv)")
    if picture is not None:
        from stowplan.recipes.overlay_pictures import check_picture

        check_picture(picture)


class Library:
    """Gives points of a library, chunk by chunk, and keeps what the table says of each molecule."""

    def __init__(self, path: Path, chunk: int, progress: bool, **options: Any) -> None:
        self.path = path
        self.chunk = chunk
        self.progress = progress
        self.options = options
        self.names: list[str] = []
        self.smiles: list[str] = []
        self.failed: list[FailedMolecule] = []
        self.seconds = 0.0  # spent reading
        self._columns: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]] = []

    def __iter__(self) -> Iterator[Ragged]:
        from tqdm import tqdm

        start = time.perf_counter()
        total = sum(1 for _ in iter_records(self.path)) if self.progress else None
        chunks = iter_molecules(self.path, self.chunk, **self.options)
        with tqdm(total=total, unit="molecules", disable=not self.progress) as bar:
            for molecules in chunks:
                self._keep(molecules)
                self.seconds += time.perf_counter() - start
                yield molecules.points
                start = time.perf_counter()
                bar.update(len(molecules) + len(molecules.failed))
        self.seconds += time.perf_counter() - start
        if not self.names:
            raise DataError(
                f"overlay: none of {len(self.failed)} molecules of {self.path} can be used. The "
                f"first failure: {self.failed[0]}."
            )

    def _keep(self, molecules: Molecules) -> None:
        self.names += molecules.names
        self.smiles += molecules.smiles
        self.failed += molecules.failed
        atoms = molecules.points.shapes[:, 0]
        self._columns.append((molecules.lines, atoms, molecules.embedded))

    @property
    def lines(self) -> NDArray[np.int64]:
        """Line of each molecule that is used."""
        return np.concatenate([lines for lines, _, _ in self._columns])

    @property
    def atoms(self) -> NDArray[np.int64]:
        """Heavy atoms of each."""
        return np.concatenate([atoms for _, atoms, _ in self._columns])

    @property
    def embedded(self) -> NDArray[np.bool_]:
        """Whether the coordinates of each were made here."""
        return np.concatenate([embedded for _, _, embedded in self._columns])


def write_scores(path: Path, library: Library, scores: NDArray[np.float64]) -> None:
    """Write a row for every molecule of the library, in its order; failed ones have a reason."""
    ranks = np.empty(len(scores), np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    used = zip(
        library.lines.tolist(), library.names, library.smiles, library.atoms.tolist(),
        library.embedded.tolist(), scores.tolist(), ranks.tolist(), [None] * len(scores),
        strict=True,
    )  # fmt: skip
    failed = ((line, name, *[None] * 5, reason) for line, name, reason in library.failed)
    rows = sorted([*used, *failed], key=lambda row: row[0])
    header = ("line", "name", "smiles", "atoms", "embedded", "score", "rank", "failure")
    with whole_file(path) as part:
        if path.suffix.lower() == ".csv":
            with part.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([header, *rows])
            return
        pyarrow = import_extra("arrow", "pyarrow", "--scores table.parquet")
        parquet = import_extra("arrow", "pyarrow.parquet", "--scores table.parquet")
        kinds = "int64 string string int64 bool_ float64 int64 string".split()
        columns = zip(*rows, strict=True)
        table = {
            name: pyarrow.array(column, getattr(pyarrow, kind)())
            for name, kind, column in zip(header, kinds, columns, strict=True)
        }
        parquet.write_table(pyarrow.table(table), part)
