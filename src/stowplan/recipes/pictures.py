"""What all pictures have in common: colours, width, and the formats that matplotlib writes."""

from __future__ import annotations

import os
from pathlib import Path

from stowplan.errors import DataError
from stowplan.extras import import_extra

__all__ = ["DPI", "WIDTH", "check_picture"]

WIDTH, DPI = 8.0, 150  # inches, 1200 pixels


def check_picture(path: Path, what: str) -> None:
    """Raise, with the cure, where matplotlib is missing or does not write such a file."""
    agg = import_extra("pictures", "matplotlib.backends.backend_agg", what)
    formats = agg.FigureCanvasAgg.filetypes
    if path.suffix[1:].lower() not in formats:
        raise DataError(
            f"draw: {os.fspath(path)!r} ends in {path.suffix or 'no suffix'!r}; a picture is one "
            f"of {', '.join(f'.{name}' for name in formats)}."
        )
