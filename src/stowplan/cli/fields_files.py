"""What `stowplan fields` reads and writes: its tables, its report, and what it says at the end."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stowplan import __version__
from stowplan.cli.arguments import refuse_unwritable
from stowplan.errors import DataError
from stowplan.extras import import_extra
from stowplan.io.whole_files import whole_file
from stowplan.memory import resolve_budget, show_bytes
from stowplan.recipes import fields
from stowplan.recipes.fields import Profiles
from stowplan.recipes.fields_rings import RadialSums, ShellSums
from stowplan.recipes.fields_slope import Slope, fit_slope
from stowplan.recipes.fields_store import open_fields
from stowplan.recipes.fields_tail import Tail, fit_tail, tail_window
from stowplan.recipes.fields_targets import ONE_FILE
from stowplan.recipes.pictures import check_picture
from stowplan.runs.memory_trace import MemoryTrace
from stowplan.runs.places import find_places
from stowplan.stores.manifest import has_records

__all__ = [
    "Report",
    "fitted_tails",
    "leave_out_picture",
    "radial_columns",
    "slope_of",
    "spectrum_columns",
    "tail_columns",
    "write_table",
]

Columns = Mapping[str, Sequence[Any]]
SOLVE = "fields.solve"
TABLES = (".csv", ".parquet")
KINDS = {
    **dict.fromkeys(("field", "failure"), "string"),
    **dict.fromkeys(("shell", "bin", "modes", "cells", "points"), "int64"),
}
"""Of columns in Parquet; float64 otherwise."""
SCATTER = 0.3
"""A spectrum that lies farther from its fit, in log power, is no power law."""


@dataclass
class Report:
    """One call: its fields, where its picture goes, memory over time, and what it says."""

    store: Any
    shapes: list[tuple[int, ...]]
    dtype: np.dtype[Any]
    budget_bytes: int
    on_host: bool
    picture: Path | None
    unit: str
    bar: bool
    quiet: bool
    resumed: bool
    writes: bool
    metadata: dict[str, str]
    trace: MemoryTrace = field(default_factory=MemoryTrace)
    seconds: float = 0.0

    @classmethod
    def open(cls, arguments: argparse.Namespace, bar: bool) -> Self:
        """See what the fields are, and refuse outputs that cannot be written.

        Raises
        ------
        DataError
            For outputs that are there, or of a kind that is not written.
        """
        where = arguments.where
        picture = _picture(arguments)
        _check_outputs(where, arguments, picture)
        store = arguments.store[0] if len(arguments.store) == 1 else list(arguments.store)
        opened = open_fields(store, where)
        shapes = [tuple(one.shape) for one in opened.fields]
        dtype = opened.dtype
        opened.close()
        _, place = find_places(where, [], arguments.on, None)
        budget = resolve_budget(
            arguments.budget, lambda: place.free_bytes(where), where, device=str(place.device)
        )
        unit = arguments.spacing[1]
        parameters = {
            name: value for name, value in vars(arguments).items()
            if value is not None and name not in ("command", "where", "quiet")
        }  # fmt: skip
        fields.spectrum(np.zeros((2, 2, 2)), spacing=1.0, on=arguments.on)  # imports what runs do
        metadata = {
            "stowplan": __version__,
            "length_unit": unit,
            "parameters": json.dumps(parameters, default=str),
        }
        return cls(
            store, shapes, dtype, budget.bytes,
            place.adapter.kind_of(place.device) == "cpu", picture, unit, bar, arguments.quiet,
            arguments.resume is not None and has_records(arguments.resume),
            where == SOLVE, metadata,
        )  # fmt: skip

    @property
    def bytes(self) -> int:
        """Of all fields."""
        return sum(math.prod(shape) for shape in self.shapes) * self.dtype.itemsize

    @property
    def budget(self) -> int | None:
        """Budget of memory on the host; None where it is that of a GPU."""
        return self.budget_bytes if self.on_host else None

    @property
    def real(self) -> bool:
        """Whether the fields are real."""
        return self.dtype.kind == "f"

    @property
    def shown_unit(self) -> str | None:
        """Unit of length for people; None where none was given."""
        return None if self.unit == "units" else self.unit.replace("um", "µm")

    @property
    def described(self) -> str:
        """How many fields, of which shape and dtype."""
        count = len(self.shapes)
        shapes = sorted(set(self.shapes))
        shape = " x ".join(map(str, shapes[0])) if len(shapes) == 1 else f"{len(shapes)} shapes"
        return f"{count} field{'s' if count > 1 else ''}, {shape} {self.dtype}"

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Follow memory, and count seconds, of the computation alone."""
        with self.trace:
            yield
        self.seconds = float(self.trace.seconds[-1])

    def say(self, text: str) -> None:
        """Say something on standard error, unless it shall be quiet."""
        if not self.quiet:
            print(text, file=sys.stderr)

    def finish(self) -> None:
        """Say what was done."""
        rate = self.bytes / max(self.seconds, 1e-9) / 1e9
        written = " and as many written" if self.writes else ""
        resumed = ", with what was done before" if self.resumed else ""
        budget = f"a budget of {show_bytes(self.budget_bytes)}"
        limit = f"of {budget}" if self.on_host else f"on the host; the device has {budget}"
        self.say(
            f"{self.described}: {show_bytes(self.bytes)} read{written} in {self.seconds:.2f} s, "
            f"{rate:.3g} GB/s{resumed}\n"
            f"peak memory {show_bytes(self.trace.peak_bytes)} {limit}, above "
            f"{show_bytes(self.trace.start_bytes)} at the start"
        )
        if self.picture is not None:
            self.say(f"picture: {self.picture}")


def spectrum_columns(found: Profiles[ShellSums]) -> Columns:
    """Give a row for each field and shell."""
    numbers, names = _rings(found)
    return {
        "field": names,
        "shell": numbers,
        "k": _joined(sums.wave_numbers for sums in found.each),
        "power": _joined(sums.sums for sums in found.each),
        "modes": _joined(sums.counts for sums in found.each),
        "mean": _joined(sums.mean for sums in found.each),
    }


def radial_columns(found: Profiles[RadialSums]) -> Columns:
    """Give a row for each field and bin; two columns for each complex number."""
    numbers, names = _rings(found)
    sums, means = (_joined(getattr(one, name) for one in found.each) for name in ("sums", "mean"))
    columns: dict[str, Sequence[Any]] = {
        "field": names,
        "bin": numbers,
        "r": _joined(one.radii for one in found.each),
        "cells": _joined(one.counts for one in found.each),
    }
    if sums.dtype.kind == "f":
        return {**columns, "sum": sums, "mean": means}
    return {
        **columns, "sum_real": sums.real, "sum_imag": sums.imag,
        "mean_real": means.real, "mean_imag": means.imag,
    }  # fmt: skip


def tail_columns(
    names: Sequence[str], tails: Sequence[Tail | None], failures: Sequence[str | None]
) -> Columns:
    """Give a row for each field; one without a tail has the reason alone."""

    def column(read: Callable[[Tail], Any]) -> list[Any]:
        return [None if tail is None else read(tail) for tail in tails]

    return {
        "field": names,
        "power": column(lambda tail: tail.power),
        "power_low": column(lambda tail: tail.interval[0]),
        "power_high": column(lambda tail: tail.interval[1]),
        "amplitude": column(lambda tail: tail.amplitude),
        "background": column(lambda tail: tail.background),
        "bend": column(lambda tail: tail.bend),
        "window_low": column(lambda tail: tail.window[0]),
        "window_high": column(lambda tail: tail.window[1]),
        "points": column(lambda tail: len(tail.radii)),
        "rms": column(lambda tail: tail.rms),
        "failure": failures,
    }


def fitted_tails(
    found: Profiles[RadialSums], window: Sequence[float] | None
) -> tuple[list[Tail | None], list[str | None]]:
    """Fit each field; give its tail, or why it has none."""
    tails: list[Tail | None] = []
    failures: list[str | None] = []
    for sums in found.each:
        try:
            low, high = tail_window(sums) if window is None else window
            tails.append(fit_tail(sums.radii, sums.mean.real, (low, high)))
            failures.append(None)
        except DataError as error:
            tails.append(None)
            failures.append(str(error))
    return tails, failures


def slope_of(
    found: Profiles[ShellSums], window: Sequence[float] | None, say: Callable[[str], None]
) -> Slope | None:
    """Fit the mean spectrum and say so; a window by hand must have a slope."""
    try:
        slope = fit_slope(found.total, None if window is None else (window[0], window[1]))
    except DataError as error:
        if window is not None:
            raise
        say(f"no slope: {error}")
        return None
    place = f"{slope.window[0]:.4g} < |k| < {slope.window[1]:.4g}, {slope.shells} shells"
    if window is None and slope.scatter > SCATTER:
        say(
            f"no slope: log power scatters by {slope.scatter:.2g} about a power law in {place} "
            "(--window takes another)"
        )
        return None
    low, high = slope.interval
    say(f"slope of the mean power: {slope.power:.6g}, 95 % from {low:.6g} to {high:.6g}, {place}")
    return slope


def leave_out_picture(report: Report, found: Profiles[ShellSums]) -> None:
    """Draw no spectra, and say so, where a field has none that log axes could show."""
    if report.picture is None:
        return
    for name, sums in zip(found.names, found.each, strict=True):
        k, power = sums.wave_numbers, sums.mean.real
        if not (np.isfinite(k) & (k > 0) & np.isfinite(power) & (power > 0)).any():
            print(
                f"stowplan: no picture: {name} has no shell beyond k = 0 with a finite power above "
                "0, as a constant field has none",
                file=sys.stderr,
            )
            report.picture = None
            return


def write_table(path: str | None, columns: Columns, metadata: Mapping[str, str]) -> None:
    """Write columns to CSV or Parquet; to standard output, tab-separated, without a path."""
    plain = {name: [_plain(value) for value in column] for name, column in columns.items()}
    rows = zip(*plain.values(), strict=True)
    if path is None:
        print(*columns, sep="\t")
        for row in rows:
            print(*("" if value is None else _short(value) for value in row), sep="\t")
        return
    with whole_file(path) as part:
        if Path(path).suffix.lower() == ".csv":
            with part.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([list(columns), *rows])
            return
        pyarrow = import_extra("arrow", "pyarrow", "--out table.parquet")
        parquet = import_extra("arrow", "pyarrow.parquet", "--out table.parquet")
        arrays = {
            name: pyarrow.array(values, getattr(pyarrow, KINDS.get(name, "float64"))())
            for name, values in plain.items()
        }
        parquet.write_table(pyarrow.table(arrays).replace_schema_metadata(dict(metadata)), part)


def _rings(found: Profiles[Any]) -> tuple[list[int], list[str]]:
    """Give the number of each ring, and the field it belongs to."""
    counts = [len(sums.sums) for sums in found.each]
    numbers = [number for count in counts for number in range(count)]
    return numbers, [name for name, n in zip(found.names, counts, strict=True) for _ in range(n)]


def _joined(arrays: Iterable[NDArray[Any]]) -> Any:
    return np.concatenate(list(arrays))


def _plain(value: Any) -> Any:
    """Give a number of Python; None for NaN, of an empty ring."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _short(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else " ".join(str(value).split())


def _picture(arguments: argparse.Namespace) -> Path | None:
    """Give the file of the picture: as named, else beside the output."""
    if arguments.picture is not None:
        named: Path = arguments.picture
        return named
    if arguments.out is None or arguments.no_picture:
        return None
    return Path(arguments.out.partition("::")[0]).with_suffix(".png")


def _check_outputs(where: str, arguments: argparse.Namespace, picture: Path | None) -> None:
    table = None
    if where == SOLVE:
        _refuse_file(where, arguments.out)
    elif arguments.out is not None:
        table = Path(arguments.out)
        if table.suffix.lower() not in TABLES:
            raise DataError(
                f"{where}: --out {table} is no table that is written. Name it {table.stem}.csv or "
                f"{table.stem}.parquet."
            )
        if table.suffix.lower() == ".parquet":
            import_extra("arrow", "pyarrow.parquet", "--out table.parquet (or table.csv)")
    if picture is not None:
        check_picture(picture, "a picture of fields (leave out by --no-picture)")
    for path, cure in ((table, "output"), (picture, "picture by --picture")):
        if path is None:
            continue
        refuse_unwritable(path)
        if path.exists() and not arguments.overwrite:
            raise DataError(f"{where}: {path} exists. Name another {cure}, or pass --overwrite.")


def _refuse_file(where: str, out: str) -> None:
    """Refuse a folder with the name of a file, which somebody has mistyped."""
    path = Path(out.partition("::")[0])
    suffix = path.suffix.lower()
    folder = path.is_dir() or out.endswith("/") or not suffix[1:].isalpha()
    if suffix not in ONE_FILE and not folder:
        raise DataError(
            f"{where}: --out {out} is no array that is written. Name it {path.stem}.zarr, "
            f"{path.stem}.npy or {path.stem}.h5::dataset, or a folder: {out}/."
        )
