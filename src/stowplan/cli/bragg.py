"""`stowplan bragg`: an experiment in, a diffraction image out."""

from __future__ import annotations

import argparse
import os
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stowplan.adapters import installed_frameworks
from stowplan.cli.arguments import (
    from_zero,
    natural,
    number,
    positive,
    refuse_unwritable,
    region,
    word,
)
from stowplan.errors import DataError

__all__ = ["add_command"]

CARDS = (8, 12, 24, 40, 80)  # GB of memory
SHARE = 0.8  # of a card, as `image` takes by default
EXAMPLE = """\
examples:
  stowplan bragg --cell 100 100 100 90 90 90 --wavelength 6.2 --pixels 1024 --out image.png
  stowplan bragg experiment.toml --mosaic-spread 0.3 --mosaic-domains 50 --estimate

EXPERIMENT.toml has tables [crystal], [detector] and [beam], with the names of the flags:
  [crystal]
  cell = [100, 100, 100, 90, 90, 90]
  table = "F.hkl"               # a path from the folder of the file
  [detector]
  pixels = [1024, 1024]
  [beam]
  wavelength = 6.2              # or sources = {directions = [...], wavelengths = [...]}
What is given on the command line counts instead. Without --out, standard output gets a line that
describes the image.
"""


@dataclass(frozen=True)
class _Option:
    """One number or word of an experiment: a flag, and a key of the file."""

    help: str
    read: Callable[[str], Any] = number
    count: int | str | None = None
    metavar: str | tuple[str, ...] = "X"
    switch: bool = False


_OPTIONS: dict[str, dict[str, _Option]] = {
    "crystal": {
        "cell": _Option(
            "unit cell in Å and degrees", count=6, metavar=("A", "B", "C", "AL", "BE", "GA")
        ),
        "cells": _Option("unit cells along a, b, c (5 5 5)", natural, 3, "N"),
        "misset": _Option("turns about x, y, z in degrees", count=3, metavar=("X", "Y", "Z")),
        "table": _Option("structure factors: lines h k l F, .mtz or .cif", str, metavar="FILE"),
        "table_default": _Option("structure factor of holes in the table", metavar="F"),
        "table_column": _Option("column of amplitudes in the table", str, metavar="NAME"),
        "default_factor": _Option("structure factor outside of the table (100)", metavar="F"),
        "mosaic_spread": _Option("width of the mosaic in degrees", metavar="DEG"),
        "mosaic_domains": _Option("mosaic domains", natural, metavar="N"),
        "seed": _Option("of the mosaic's random rotations (0)", from_zero, metavar="N"),
        "phi": _Option("start of the rotation in degrees", metavar="DEG"),
        "oscillation": _Option("width of the rotation in degrees", metavar="DEG"),
        "phi_steps": _Option("steps of the rotation (1)", natural, metavar="N"),
        "interpolation": _Option(
            "auto (default), nearest, tricubic or constant",
            word("auto", "nearest", "tricubic", "constant"), metavar="WORD",
        ),
        "shape": _Option("square (default) or round", word("square", "round"), metavar="WORD"),
        "fudge": _Option("scales the size of a round crystal's spots (1)"),
        "convention": _Option(
            "nanobragg (default) or exact", word("nanobragg", "exact"), metavar="WORD"
        ),
    },
    "detector": {
        "pixels": _Option("along the slow and the fast axis; one for both", natural, "+", "N"),
        "pixel_size": _Option("in mm (0.1)", positive, metavar="MM"),
        "distance": _Option("in mm (100)", positive, metavar="MM"),
        "rotation": _Option("turns about x, y, z in degrees", count=3, metavar=("X", "Y", "Z")),
        "two_theta": _Option("swing of the detector in degrees", metavar="DEG"),
        "beam_center": _Option(
            "Xbeam, Ybeam in mm (the middle)", count=2, metavar=("X", "Y")
        ),
        "oversample": _Option(
            "sub-pixels along each axis (1), or auto", word("auto", otherwise=natural), metavar="N"
        ),
        "point_pixel": _Option("solid angle 1/r^2", switch=True),
    },
    "beam": {
        "wavelength": _Option("in Å", positive, metavar="A"),
        "polarization": _Option(
            "Kahn's factor, -1 to 1 (0), or none", word("none", otherwise=number), metavar="K"
        ),
        "fluence": _Option("photons/m^2", positive),
        "dispersion": _Option("width of the spectrum in percent", metavar="PERCENT"),
        "dispersion_steps": _Option("wavelengths of the spectrum (1)", natural, metavar="N"),
    },
}  # fmt: skip


def add_command(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "bragg",
        help="diffraction image of a crystal",
        description="Diffraction image of a small crystal, in chunks of pixels within a budget.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=evaluate)
    parser.add_argument("file", nargs="?", type=Path, metavar="EXPERIMENT.toml", help="see below")
    for table, options in _OPTIONS.items():
        group = parser.add_argument_group(table)
        for name, option in options.items():
            _add_option(group, name, option)
    add = parser.add_argument_group("image").add_argument
    add("--dmin", type=number, default=0.0, metavar="A", help="finest spacing that counts, in Å")
    add("--region", type=region, metavar="Y0:Y1,X0:X1", help="pixels that are wanted")
    add(
        "--on",
        choices=("numpy", "jax", "torch", "cupy"),
        help="framework (default: numpy; for --estimate torch, where it is installed)",
    )
    add("--device", metavar="NAME", help="device of the framework, such as cuda:0")
    add("--dtype", choices=("float32", "float64"), help="default: float64")
    add("--budget", metavar="BYTES", help='memory, such as "2 GiB", or a share of what is free')
    add("--rows", type=natural, metavar="N", help="detector rows of a chunk, instead of --budget")
    add("--compile", action="store_true", help="torch: one compiled graph for all chunks")
    add("--out", type=Path, metavar="FILE", help="image.npy, .tif, .cbf (counts) or .png (picture)")
    add("--progress", action="store_true", help="a progress bar also where no terminal shows it")
    add("-q", "--quiet", action="store_true", help="no progress bar and no summary")
    add(
        "--estimate",
        action="store_true",
        help="compute nothing; print memory, and chunks for cards of "
        f"{', '.join(map(str, CARDS[:-1]))} and {CARDS[-1]} GB",
    )


def _add_option(group: Any, name: str, option: _Option) -> None:
    flag = f"--{name.replace('_', '-')}"
    if option.switch:
        group.add_argument(flag, action="store_true", default=None, help=option.help)
        return
    group.add_argument(
        flag, type=option.read, nargs=option.count, metavar=option.metavar, help=option.help
    )


def evaluate(arguments: argparse.Namespace) -> None:
    """`stowplan bragg`: a diffraction image, or what it takes."""
    on = arguments.on
    if on is None:
        dry = arguments.estimate and "torch" in installed_frameworks()
        on = "torch" if dry else "numpy"
    if on == "jax" and arguments.dtype != "float32":
        os.environ.setdefault("JAX_ENABLE_X64", "1")
    from stowplan.io import images
    from stowplan.recipes import bragg

    if arguments.out is not None:
        refuse_unwritable(arguments.out)
        images.check_suffix(arguments.out)
    experiment = _experiment(arguments)
    options = {
        "on": on, "device": arguments.device, "dtype": arguments.dtype, "dmin": arguments.dmin,
        "region": arguments.region, "budget": arguments.budget,
    }  # fmt: skip
    if arguments.estimate:
        if arguments.budget is None:
            options["budget"] = {f"{size} GB card": int(SHARE * size * 2**30) for size in CARDS}
            if on == "torch" and arguments.device is None:
                options["device"] = "cuda"  # of a card, which need not be here
        print(bragg.estimate(*experiment, **options))
        return
    shown = arguments.progress or sys.stderr.isatty()
    start = time.perf_counter()
    photons = bragg.image(
        *experiment, **options, rows=arguments.rows, compile=arguments.compile,
        progress=shown and not arguments.quiet,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if arguments.out is not None:
        images.write(arguments.out, photons)
    else:
        _print_summary(photons)
    if not arguments.quiet:
        slow, fast = photons.shape
        print(f"{slow} x {fast} pixels in {seconds:.2f} s", file=sys.stderr)


def _print_summary(photons: Any) -> None:
    """Size, largest pixel, where it is and the sum of all."""
    slow, fast = photons.shape
    flat = photons.reshape(-1)
    place = int(flat.argmax())
    print("slow", "fast", "largest", "at_slow", "at_fast", "sum", sep="\t")
    values = (f"{float(flat[place]):.9g}", place // fast, place % fast, f"{float(flat.sum()):.9g}")
    print(slow, fast, *values, sep="\t")


def _experiment(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Crystal, detector and beam from the file and the flags."""
    from stowplan.recipes.bragg import Beam, Crystal, Detector

    given = _read(arguments.file) if arguments.file is not None else {}
    for table, options in _OPTIONS.items():
        values = given.setdefault(table, {})
        flags = {name: getattr(arguments, name) for name in options}
        values.update({name: value for name, value in flags.items() if value is not None})
    for table, name in (("crystal", "cell"), ("detector", "pixels"), ("beam", "wavelength")):
        if name not in given[table] and "sources" not in given[table]:
            raise DataError(
                f"bragg: {name} is missing. Give --{name}, or {name} in [{table}] of the file."
            )
    crystal, detector, beam = given["crystal"], given["detector"], given["beam"]
    _read_table(crystal)
    _make_mosaic(crystal)
    pixels = detector.pop("pixels")
    if len(pixels) > 2:
        raise DataError(f"bragg: pixels has {len(pixels)} numbers; give one or two, slow and fast.")
    detector["shape"] = (pixels[0], pixels[-1])
    if beam.get("polarization") == "none":
        beam["polarization"] = None
    return Crystal(**crystal), Detector(**detector), Beam(**beam)


def _read_table(crystal: dict[str, Any]) -> None:
    """Put structure factors in the place of a path and how it is read."""
    from stowplan.io import reflections

    default, column = (crystal.pop(f"table_{name}", None) for name in ("default", "column"))
    if "table" in crystal:
        crystal["table"] = reflections.read(crystal["table"], default=default, column=column)
    elif default is not None or column is not None:
        raise DataError("bragg: table_default and table_column need a table. Give --table FILE.")


def _make_mosaic(crystal: dict[str, Any]) -> None:
    """Put rotations in the place of the numbers that they are drawn by."""
    from stowplan.recipes.bragg import mosaic_rotations

    spread, domains = (crystal.pop(f"mosaic_{name}", None) for name in ("spread", "domains"))
    seed = crystal.pop("seed", None)
    if spread is None and domains is None and seed is None:
        return
    if spread is None or domains is None:
        raise DataError(
            "bragg: a mosaic takes both. Give --mosaic-spread DEG and --mosaic-domains N."
        )
    crystal["mosaic"] = mosaic_rotations(spread, domains, seed=seed or 0)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Read tables of a file, every value as its flag would be."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no TOML file: {error}") from None
    _refuse_unknown(f"{path}: table", found, _OPTIONS)
    tables: dict[str, dict[str, Any]] = {}
    for table, values in found.items():
        options = _OPTIONS[table]
        if not isinstance(values, Mapping):
            raise DataError(f"{path}: {table} is no table; write [{table}] above its names.")
        values = dict(values)
        sources = values.pop("sources", None) if table == "beam" else None
        _refuse_unknown(f"{path}: [{table}]: name", values, options)
        tables[table] = {
            name: _value(f"{path}: [{table}]: {name}", value, options[name])
            for name, value in values.items()
        }
        if sources is not None:
            tables[table]["sources"] = _sources(f"{path}: [{table}]: sources", sources)
    if "table" in tables.get("crystal", {}):
        tables["crystal"]["table"] = path.parent / tables["crystal"]["table"]
    return tables


def _sources(where: str, given: Any) -> Any:
    """Read beams of their own direction and wavelength."""
    from stowplan.recipes.bragg import Sources

    if not isinstance(given, Mapping) or not all(isinstance(x, list) for x in given.values()):
        raise DataError(f"{where}={given!r}; lists of directions and wavelengths are needed.")
    _refuse_unknown(f"{where}: name", given, dict.fromkeys(Sources._fields))
    for name in ("directions", "wavelengths"):
        if name not in given:
            raise DataError(f"{where}: {name} are missing.")
    return Sources(**given)


def _refuse_unknown(what: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in given:
        if name not in known:
            raise DataError(f"{what} {name!r} is unknown; allowed are {', '.join(known)}.")


def _value(where: str, value: Any, option: _Option) -> Any:
    """Give a value of the file as the flag reads it."""
    if option.switch:
        if not isinstance(value, bool):
            raise DataError(f"{where}={value!r}; write true or false.")
        return value
    several = option.count is not None
    if option.count == "+" and not isinstance(value, list):
        value = [value]
    right = isinstance(value, list) == several and (
        not isinstance(option.count, int) or len(value) == option.count
    )
    parts = value if isinstance(value, list) else [value]
    if not right or any(isinstance(part, bool | list | Mapping) for part in parts):
        wanted = f"a list of {option.count}" if isinstance(option.count, int) else "one value"
        raise DataError(f"{where}={value!r}; {wanted} is needed: {option.help}.")
    try:
        read = [option.read(str(part)) for part in parts]
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise DataError(f"{where}: {error}.") from None
    return read if several else read[0]
