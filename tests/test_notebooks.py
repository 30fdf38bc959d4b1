"""The cells of the notebooks in docs/notebooks run, one after the other."""

import os
from pathlib import Path
import re

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.md"))
_CELL = re.compile(r"^```\{code-cell\}.*\n((?s:.*?))^```$", re.MULTILINE)


def cells(path):
  """The code of each cell, at its own lines of the file."""
  text = path.read_text()
  for cell in _CELL.finditer(text):
    above = text.count("\n", 0, cell.start(1))
    yield compile("\n" * above + cell[1], path, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # it may set others
  there = {"__name__": "__main__"}
  for cell in cells(path):
    exec(cell, there)
  for name, least in {"accuracy": 0.9, "precision": 0.5}.items():
    assert there.get(name, 1.0) >= least
