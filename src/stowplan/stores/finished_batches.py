"""Results of batches in a folder, so that a run that was cut off goes on where it stopped."""

from __future__ import annotations

import json
import logging
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stowplan.errors import PlanError
from stowplan.ragged import Ragged

__all__ = ["FinishedBatches"]

_log = logging.getLogger("stowplan")

FORMAT = "stowplan finished batches"
VERSION = 1
MANIFEST = "manifest.json"


class FinishedBatches:
    """A folder with one file for each batch that is done, and a manifest that says of which run.

    Files are written beside their place and moved there when they are whole; the checksums in them
    are those of zip. Nothing is pickled.

    Parameters
    ----------
    folder
        Made if it is not there.
    identity : mapping of str to str
        What the results depend on, part by part, such as ``{"plan": "5f2c..."}``.
    where
        The caller, for messages.

    Raises
    ------
    PlanError
        For a folder that holds batches of another run, naming the parts that differ, or no batches
        but other files.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     batches = FinishedBatches(folder, {"plan": "5f2c"}, "run")
    ...     batches.save(3, [np.arange(2.0)])
    ...     again = FinishedBatches(folder, {"plan": "5f2c"}, "run")
    ...     sorted(again.numbers()), again.load(3)
    ([3], [array([0., 1.])])
    """

    def __init__(
        self, folder: str | os.PathLike[str], identity: Mapping[str, str], where: str
    ) -> None:
        self.folder = Path(folder)
        self.where = where
        manifest = self.folder / MANIFEST
        if manifest.is_file():
            self._refuse_others(manifest, identity)
            return
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise PlanError(
                f"{where}: resume={str(folder)!r} is no folder of a run and none can be made "
                f"there: {error}."
            ) from error
        strangers = [path.name for path in self.folder.iterdir() if path.suffix == ".npz"]
        if strangers:
            raise PlanError(
                f"{where}: resume={str(folder)!r} has no {MANIFEST}, but files that are none of a "
                f"run's, {strangers[0]} for one. Name the folder of a run, or a new one."
            )
        header = {"format": FORMAT, "version": VERSION, "identity": dict(identity)}
        part = manifest.with_name(MANIFEST + ".part")
        part.write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
        part.replace(manifest)

    def numbers(self) -> set[int]:
        """Give the batches that are done."""
        names = (path.stem.partition("-")[2] for path in self.folder.glob("batch-*.npz"))
        return {int(name) for name in names if name.isdecimal()}

    def save(self, number: int, outputs: Sequence[Any], kind: Sequence[str] | None = None) -> None:
        """Keep the outputs of a batch, of NumPy, and a word on their kind."""
        arrays: dict[str, Any] = {}
        dtypes = []
        for position, output in enumerate(outputs):
            ragged = isinstance(output, Ragged)
            packed = output.compact() if ragged else output
            values = np.asarray(packed.values if ragged else packed)
            arrays[f"values{position}"] = values
            dtypes.append(values.dtype.name)
            if ragged:
                arrays[f"shapes{position}"] = packed.shapes
        note = json.dumps({"dtypes": dtypes, "kind": kind})
        path = self._path(number)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, note=np.array(note), **arrays)
            file.flush()
            os.fsync(file.fileno())  # or else a name may outlive its content
        part.replace(path)

    def load(self, number: int) -> list[Any]:
        """Give the outputs of a batch back."""
        return self.read(number)[0]

    def read(self, number: int) -> tuple[list[Any], list[str] | None]:
        """Give the outputs of a batch, and the word on their kind.

        Raises
        ------
        OSError, ValueError
            Where the file is damaged.
        """
        try:
            with np.load(self._path(number), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            note = json.loads(str(arrays["note"]))
            outputs = [
                self._output(arrays, position, dtype)
                for position, dtype in enumerate(note["dtypes"])
            ]
        except (KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self._path(number)} is damaged: {error}") from None
        return outputs, note["kind"]

    def readable(self) -> dict[int, tuple[list[Any], list[str] | None]]:
        """Give all batches that are whole; what is damaged is told, and counts as not done."""
        found = {}
        for number in sorted(self.numbers()):
            try:
                found[number] = self.read(number)
            except (OSError, ValueError) as error:
                _log.warning("%s: batch %d is computed again: %s", self.where, number, error)
        return found

    def _path(self, number: int) -> Path:
        return self.folder / f"batch-{number:06d}.npz"

    @staticmethod
    def _output(arrays: Mapping[str, Any], position: int, dtype: str) -> Any:
        values = arrays[f"values{position}"]
        if values.dtype.kind == "V":  # bfloat16 and its kin, which NumPy knows by another package
            values = values.view(np.dtype(dtype))
        shapes = arrays.get(f"shapes{position}")
        return values if shapes is None else Ragged(values, shapes)

    def _refuse_others(self, manifest: Path, identity: Mapping[str, str]) -> None:
        try:
            header = json.loads(manifest.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise PlanError(f"{self.where}: {manifest} is no manifest: {error}") from None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise PlanError(f'{self.where}: {manifest}: "format" is not {FORMAT!r}.')
        if header.get("version") != VERSION:
            raise PlanError(
                f"{self.where}: {manifest} has version {header.get('version')!r}; this stowplan "
                f"reads version {VERSION}. Name a new folder, or install the stowplan that wrote "
                "it."
            )
        saved = header["identity"]
        names = dict.fromkeys([*identity, *saved])
        others = [name for name in names if identity.get(name) != saved.get(name)]
        if others:
            raise PlanError(
                f"{self.where}: resume={str(self.folder)!r} holds batches of another run: "
                f"{', '.join(others)} differ{'s' if len(others) == 1 else ''}. Give what that run "
                "had, or name a new folder."
            )
