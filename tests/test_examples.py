"""Each of examples/ runs as a user would run it, and finds what it should."""

import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[1]
# What a line of the output says, and the least number that follows.
EXAMPLES = {
  "embeddings": ("P@1 of 1000 new rows", 0.8),
  "faces": ("verified by embeddings", 0.9),
  "images": ("right of 60 new images", 0.7),
  "new_labels": ("P@1 of new labels after", 0.8),
  "products": ("P@3 of 400 new products", 0.9),
  "texts": ("P@1 of 80 new texts", 0.9),
}


def run(name, *args, directory):
  """Runs an example; returns what it prints."""
  env = os.environ | {
    "PYTHONPATH": str(ROOT),
    "TMPDIR": str(directory),
    "XLA_FLAGS": "",  # one device
  }
  return subprocess.run(
    [sys.executable, ROOT / "examples" / f"{name}.py", *args],
    cwd=directory,
    env=env,
    text=True,
    check=True,
    stdout=subprocess.PIPE,
  ).stdout


def figure(out, words):
  """The number that follows words in an output."""
  return float(re.search(re.escape(words) + r": ([\d.]+)", out)[1])


def test_all_are_run_and_listed():
  names = {path.stem for path in (ROOT / "examples").glob("*.py")}
  assert names == EXAMPLES.keys()
  page = (ROOT / "examples" / "README.md").read_text()
  assert set(re.findall(r"\]\((\w+)\.py\)", page)) == names


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, tmp_path):
  words, least = EXAMPLES[name]
  assert figure(run(name, directory=tmp_path), words) >= least
