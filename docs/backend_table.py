"""Writes the table of backends from backends.toml, which tests/kernels/test_backends.py proves."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("backends.toml")
FRAMEWORKS = ("numpy", "array_api_strict", "torch", "jax", "cupy")
MODES = ("eager", "jit", "vmap", "grad", "compile")
MARK = "<!-- table of backends -->"


def capabilities() -> dict[str, dict[str, list[str]]]:
    """Give what each kernel does: by kernel and mode the frameworks."""
    declared = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    groups = declared["groups"]
    return {name: groups[group] for name, group in declared["kernels"].items()}


def as_markdown() -> str:
    """Give the table of the page."""
    lines = ["| kernel | " + " | ".join(MODES) + " |", "|---|" + "---|" * len(MODES)]
    for name, modes in capabilities().items():
        cells = [_words(modes[mode]) for mode in MODES]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _words(frameworks: list[str]) -> str:
    if set(frameworks) == set(FRAMEWORKS):
        return "all"
    words = {"numpy": "NumPy", "array_api_strict": "strict", "jax": "JAX", "cupy": "CuPy"}
    return ", ".join(words.get(name, name) for name in frameworks) or "none"


def setup(app: Any) -> dict[str, Any]:
    """Let Sphinx put the table where the mark is."""

    def read(app: Any, name: str, source: list[str]) -> None:
        app.env.note_dependency(str(TABLE))
        source[0] = source[0].replace(MARK, as_markdown())

    app.connect("source-read", read)
    return {"version": "1", "parallel_read_safe": True}
