"""Sphinx settings: Markdown pages through MyST, the furo theme."""

project = "grokscape"
author = "The grokscape developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "grokscape"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
