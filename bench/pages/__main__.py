"""Tables and pictures of the documentation, from results: ``python -m bench.pages``.

Each ``results/NAME.json`` that is known here becomes ``docs/benchmarks/NAME.md``, with a picture
beside it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from bench.pages import library, machines, recipes
from bench.pages.page import Page, Report, markdown, read_report

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
TREE = re.compile(r"```\{toctree\}.*?```", re.DOTALL)
PAGES: dict[str, Callable[[Report], Page]] = {
    "predecessors": machines.predecessors,
    "ewald": recipes.ewald,
    "bragg": recipes.bragg,
    "overlay": recipes.overlay,
    "fields": recipes.fields,
    "transport": recipes.transport,
    "slots": library.slots,
    "overhead": library.overhead,
    "planning": library.planning,
    "gather": library.gather,
    "chunked_gradients": library.chunked_gradients,
    "recovery": library.recovery,
    "growth": machines.growth,
    "floors": machines.floors,
    "predictions": machines.predictions,
    "memory": machines.memory,
    "devices": machines.devices,
    "processes": machines.processes,
    "cuda_torch": machines.cuda,
    "cuda_jax": machines.cuda,
    "cuda_cupy": machines.cuda,
}


def write_pages(folder: Path) -> list[Path]:
    """Write all pages and pictures that results are there for."""
    folder.mkdir(exist_ok=True)
    written = []
    for name, make in PAGES.items():
        report = read_report(name)
        if report is None:
            continue
        page = make(report)
        written.append(folder / f"{name}.md")
        written[-1].write_text(markdown(name, page, report), encoding="utf-8")
        if page.picture is not None:
            (folder / f"{name}.svg").write_text(page.picture, encoding="utf-8")
    return written


def list_pages(index: Path, written: list[Path]) -> None:
    """Name the pages in the table of contents of the page above them."""
    text = index.read_text(encoding="utf-8")
    names = "\n".join(f"{page.parent.name}/{page.stem}" for page in written)
    tree = f"```{{toctree}}\n:maxdepth: 1\n\n{names}\n```"
    index.write_text(TREE.sub(lambda _: tree, text), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    written = write_pages(options.folder)
    for path in written:
        print(path)
    index = options.folder.with_suffix(".md")
    if index.exists():
        list_pages(index, written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
