"""Figures as SVG inside a page, in the colours of the page."""

from __future__ import annotations

import io
import re
from typing import Any

from stowplan.extras import import_extra
from stowplan.reports.axes import COLOURS

__all__ = ["inline_svg"]

_FONT = re.compile(r"font: ((?:\d+ )?[\d.]+px)[^;\"]*")
_IDS = re.compile(r'(\bid="|url\(#|xlink:href="#|\bhref="#)')
_TAG = re.compile(r"<[^>]*>")
_DIGITS = re.compile(r"(\d\.\d\d)\d+")
_COLOUR = re.compile("|".join(COLOURS), re.IGNORECASE)
_FIXED = {"text.usetex": False, "svg.fonttype": "none", "svg.hashsalt": "stowplan"}


def inline_svg(figure: Any, name: str, title: str) -> str:
    """Give a figure as an ``<svg>`` element whose colours follow the style of the page.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    name : str
        Begins every id, so that several figures can stand in one page.
    title : str
        For those who cannot see it.
    """
    matplotlib = import_extra("report", "matplotlib", "report")
    text = io.StringIO()
    with matplotlib.rc_context(_FIXED):
        figure.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg ([^>]*?)(?:width|height)="[^"]*"', r"<svg \1", svg)
    svg = re.sub(r'^<svg ([^>]*?)(?:width|height)="[^"]*"', r"<svg \1", svg)
    svg = _TAG.sub(lambda tag: _DIGITS.sub(r"\1", tag[0]), svg)  # hundredths of a point
    svg = _FONT.sub(r"font-size: \1; font-family: inherit", svg)
    svg = _IDS.sub(rf"\g<1>{name}-", svg)
    svg = _COLOUR.sub(lambda found: f"var(--{COLOURS[found[0].lower()]})", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
