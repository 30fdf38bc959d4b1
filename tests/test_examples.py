"""Each of examples/, and each notebook, runs and finds what it should."""

import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
# What the output says, and the least number that follows.
EXAMPLES = {
  "embeddings": ("P@1 of 1000 new rows", 0.8),
  "faces": ("verified by embeddings", 0.9),
  "images": ("right of 60 new images", 0.7),
  "new_labels": ("P@1 of new labels after", 0.8),
  "products": ("P@3 of 400 new products", 0.9),
  "texts": ("P@1 of 80 new texts", 0.9),
}
FOUND = {
  "from_one_device_to_many": ("ten more", 0.0),
  "label_layer_in_your_model": ("right", 90.0),
  "your_first_model": ("P@1", 80.0),
}
_CELL = re.compile(r"^```\{code-cell\}.*\n((?s:.*?))^```$", re.MULTILINE)


def run(path, directory):
  """Runs a script in a directory; returns what it prints."""
  env = os.environ | {
    "PYTHONPATH": str(ROOT),
    "TMPDIR": str(directory),
    "XLA_FLAGS": "",  # one device, unless it says otherwise
  }
  return subprocess.run(
    [sys.executable, path],
    cwd=directory,
    env=env,
    text=True,
    check=True,
    stdout=subprocess.PIPE,
  ).stdout


def script(notebook):
  """The code of a notebook, each cell at its own lines."""
  text, code = notebook.read_text(), ""
  for cell in _CELL.finditer(text):
    above = text.count("\n", 0, cell.start(1))
    code += "\n" * (above - code.count("\n")) + cell[1]
  return code


def assert_says(out, words, least):
  """The number that follows words is large enough."""
  found = re.search(rf"^{re.escape(words)}: ([\d.]+)", out, re.MULTILINE)
  assert found and float(found[1]) >= least, out


def test_all_are_run_and_listed():
  names = {path.stem for path in (ROOT / "examples").glob("*.py")}
  assert names == EXAMPLES.keys()
  page = (ROOT / "examples" / "README.md").read_text()
  assert set(re.findall(r"\]\((\w+)\.py\)", page)) == names
  assert {path.stem for path in NOTEBOOKS.glob("*.md")} == FOUND.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, tmp_path):
  assert_says(run(ROOT / "examples" / f"{name}.py", tmp_path), *EXAMPLES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_a_notebook_runs(name, tmp_path):
  path = tmp_path / f"{name}.py"
  path.write_text(script(NOTEBOOKS / f"{name}.md"))
  assert_says(run(path, tmp_path), *FOUND[name])
