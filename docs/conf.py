"""How Sphinx builds these pages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the extensions beside this file

import stowplan

project = "stowplan"
author = "the stowplan developers"
copyright = f"2026, {author}"  # noqa: A001  (the name that Sphinx reads)
release = stowplan.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "executed",
    "backend_table",
]
templates_path = ["_templates"]
exclude_patterns = ["executed/**", "_templates/**"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"stowplan {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]

autosummary_generate = True
autodoc_typehints = "none"  # docstrings have shapes and units, which types do not
default_role = "autolink"  # what is in single backticks, where it is a name
numpydoc_show_class_members = False  # attributes stand in the docstring
numpydoc_use_plots = False

nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!stowplan\b).*")]  # other projects' names are not looked up


def _bars(app, what, name, obj, options, lines):
    """Keep the bars of |k| in the formulas of modules, which are substitutions to docutils."""
    if what == "module":
        lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app):
    """Connect what the pages need beside extensions."""
    app.connect("autodoc-process-docstring", _bars)
