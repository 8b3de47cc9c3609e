"""How Sphinx builds these pages."""

import stowplan

project = "stowplan"
author = "the stowplan developers"
copyright = f"2026, {author}"  # noqa: A001  (the name that Sphinx reads)
release = stowplan.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"stowplan {release}"
