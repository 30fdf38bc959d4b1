"""How Sphinx makes the guide: `make docs`."""

import os
from pathlib import Path
import re
import sys

from sphinx import application

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import generated  # noqa: E402

import xlj  # noqa: E402

project = "xlj"
copyright = "the authors of xlj; Apache-2.0"
version = release = xlj.__version__

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
]
if os.environ.get("INTERSPHINX"):  # which reads their indexes over the network
  extensions.append("sphinx.ext.intersphinx")
  intersphinx_mapping = {
    "flax": ("https://flax.readthedocs.io/en/latest/", None),
    "jax": ("https://docs.jax.dev/en/latest/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "optax": ("https://optax.readthedocs.io/en/latest/", None),
  }
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_title = f"xlj {version}"
html_static_path = ["_static"]
html_css_files = ["guide.css"]
html_copy_source = False
html_theme_options = {
  "show_navbar_depth": 1,
  "navbar_persistent": [],  # the search is in the side bar
  "use_download_button": False,
}

highlight_language = "none"  # of commands
myst_enable_extensions = ["attrs_block"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run the notebooks

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 60
napoleon_use_ivar = True
smartquotes = False  # which would make dashes of flags
default_role = "literal"  # docstrings quote names as Markdown does


def setup(app: application.Sphinx) -> None:
  """Lets pages have what the code says."""
  app.connect("source-read", lambda app, page, text: _fill(text))
  app.connect("include-read", lambda app, path, page, text: _fill(text))


def _fill(source: list[str]) -> None:
  """Puts in what is generated, and keeps figures of a cell on one line."""
  text = generated.fill(source[0])
  text = re.sub(r"(?<=[\d*]) / (?=[\d*])", "\xa0/\xa0", text)
  # README.md is the first page of the guide.
  source[0] = text.replace("](../README.md)", "](index.md)")
