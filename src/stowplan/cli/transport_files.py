"""The folder of `stowplan transport`: a table, and maps and a picture of each pair."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stowplan import __version__
from stowplan.cli.mask_pairs import MaskPairs
from stowplan.errors import DataError
from stowplan.extras import import_extra
from stowplan.io.whole_files import whole_file
from stowplan.recipes import transport_pictures
from stowplan.recipes.transport_results import TransportResults

__all__ = ["Maps", "check_packages", "open_folder", "write_pairs", "write_table"]

Maps = Literal["npz", "tiff", "none"]
SUFFIXES = {"npz": ".npz", "tiff": ".tif", "none": ""}
OF_A_PAIR = re.compile(r"pair\d{4,}\.(npz|tif|png)")


def check_packages(maps: Maps, pictures: bool) -> None:
    """Raise before anything is computed for a package that is missing."""
    import_extra("arrow", "pyarrow", "results.parquet (without --out lines are printed)")
    if maps == "tiff":
        import_extra("masks", "tifffile", "--maps tiff")
    if pictures:
        transport_pictures.check_matplotlib("a picture of each pair (leave out by --no-pictures)")


def open_folder(folder: Path, count: int, maps: Maps, pictures: bool) -> None:
    """Make the folder, and refuse one with maps or pictures that this run would not replace."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; --out needs a folder")
    folder.mkdir(parents=True, exist_ok=True)
    ours = {
        _file(folder, pair, suffix).name
        for pair in range(count)
        for suffix in (SUFFIXES[maps], ".png" * pictures)
        if suffix
    }
    others = sorted(
        path.name
        for path in folder.iterdir()
        if OF_A_PAIR.fullmatch(path.name) and path.name not in ours
    )
    if others:
        raise DataError(
            f"{folder} holds {len(others)} files of another run, such as {others[0]}, that would "
            "stand beside these results. Remove them, or give another folder."
        )


def write_table(
    folder: Path,
    results: TransportResults,
    masks: MaskPairs,
    unit: str,
    parameters: Mapping[str, Any],
) -> None:
    """Write the numbers of every pair, and what was asked for as metadata."""
    pyarrow = import_extra("arrow", "pyarrow", "results.parquet")
    parquet = import_extra("arrow", "pyarrow.parquet", "results.parquet")
    names: dict[str, Any] = {"pair": list(range(len(masks)))}
    for side, chosen in zip(("source", "target"), zip(*masks.pairs, strict=True), strict=True):
        files, frames, labels = zip(*(masks.places[place] for place in chosen), strict=True)
        names |= {side: list(map(str, files)), f"{side}_frame": frames}
        names[f"{side}_label"] = pyarrow.array(labels, pyarrow.int64())
    numbers = results.to_table()
    columns = {**names, **dict(zip(numbers.column_names, numbers.columns, strict=True))}
    metadata = {
        "stowplan": __version__,
        "length_unit": unit,
        "parameters": json.dumps(dict(parameters), default=str),
    }
    table = pyarrow.table(columns).replace_schema_metadata(metadata)
    with whole_file(folder / "results.parquet") as part:
        parquet.write_table(table, part)


def write_pairs(
    folder: Path,
    results: TransportResults,
    masks: MaskPairs,
    unit: str,
    maps: Maps,
    pictures: bool,
) -> Iterator[int]:
    """Write the files of one pair after the other, and give its number."""
    for pair, (source, target) in enumerate(masks.pairs):
        if maps != "none":
            with whole_file(_file(folder, pair, SUFFIXES[maps])) as part:
                _WRITERS[maps](part, results, pair, unit)
        if pictures:
            transport_pictures.draw(
                results, pair, masks.masks[source], masks.masks[target],
                _file(folder, pair, ".png"), unit=unit.replace("um", "µm"), title=masks.name(pair),
            )  # fmt: skip
        yield pair


def _file(folder: Path, pair: int, suffix: str) -> Path:
    return folder / f"pair{pair:04d}{suffix}"


def _write_npz(path: Path, results: TransportResults, pair: int, unit: str) -> None:
    held: dict[str, Any] = {**results.maps(pair), "box": results.boxes[pair], "unit": unit}
    with path.open("wb") as file:
        np.savez_compressed(file, **held)


def _write_tiff(path: Path, results: TransportResults, pair: int, unit: str) -> None:
    """Four channels that ImageJ names: dy, dx, created, destroyed."""
    tifffile = import_extra("masks", "tifffile", "--maps tiff")
    maps = results.maps(pair)
    channels = [*np.moveaxis(maps["velocity"], 2, 0), maps["created"], maps["destroyed"]]
    described = {
        "axes": "CYX",
        "Labels": [f"dy ({unit})", f"dx ({unit})", "created", "destroyed"],
        "box": " ".join(map(str, results.boxes[pair].tolist())),
        "unit": "pixel" if unit == "px" else unit,
    }
    per_unit = 1 / results.pixel_size
    tifffile.imwrite(
        path, np.stack(channels).astype(np.float32), imagej=True, metadata=described,
        resolution=(per_unit, per_unit),
    )  # fmt: skip


_WRITERS = {"npz": _write_npz, "tiff": _write_tiff}
