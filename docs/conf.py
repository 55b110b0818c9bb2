"""Configuration of the documentation build."""

import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "zomopi"
author = "The zomopi developers"
copyright = author
version = release = installed_version("zomopi")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "public_names"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
nitpicky = True

# Docstrings give shapes and units, which annotations do not.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
# "array of shape (r, n)" is prose, not the name of a class to link to.
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]
default_role = "code"

public_packages = ["zomopi_core", "zomopi_adapters"]

html_theme = "furo"
html_title = f"zomopi {release}"
html_copy_source = False


def escape_stars(app, what, name, obj, options, lines):
    """Keep the star of a type such as (N, *shape) from being read as the start of emphasis."""
    typed = re.compile(r"\w+(, \w+)* : ")
    lines[:] = [re.sub(r"\*(?=\w)", r"\\*", s) if typed.match(s) else s for s in lines]


def setup(app):
    app.connect("autodoc-process-docstring", escape_stars, priority=400)  # before napoleon
