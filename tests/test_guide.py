"""The guide has all pages, and says of the code what the code says."""

import importlib.util
import json
from pathlib import Path
import re
import subprocess
import sys

import pytest

import xlj
from xlj import config as config_lib

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
  path.relative_to(DOCS).with_suffix("").as_posix(): path
  for pattern in ("*.md", "api/*.md", "notebooks/*.md", "notebooks/*.ipynb")
  for path in DOCS.glob(pattern)
}
_TOCTREE = re.compile(r"^```{toctree}\n(.*?)^```$", re.M | re.S)


def load(name):
  """A module of docs/, which is no package."""
  spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


generated = load("generated")


def test_every_page_is_in_one_table_of_contents():
  found = ["index"]
  for name, path in PAGES.items():
    folder = name.rpartition("/")[0]
    for tree in _TOCTREE.findall(path.read_text()):
      entries = re.findall(r"^(?!:)(?:.+<)?([\w/]+)>?$", tree, re.M)
      found += [f"{folder}/{entry}".lstrip("/") for entry in entries]
  missing = {*PAGES} - {*found}
  assert not missing, f"name {missing} in a toctree of docs/index.md"
  assert sorted(found) == sorted(PAGES)


def test_public_names_are_in_the_reference():
  page = PAGES["api/index"].read_text()
  for name in xlj.__all__:
    told = {f".. autofunction:: {name}\n", f"xlj.{name}`", f"xlj.{name}."}
    assert any(text in page for text in told), name


def test_every_field_says_what_it_does():
  page = generated.fill(PAGES["configs"].read_text())
  for name in config_lib.types():
    assert page.count(f"\n| `{name}` |") == 1, name


def test_fields_are_told_as_the_code_has_them():
  told = generated.fields("neighbours", "optim").splitlines()
  assert (
    "| `neighbours.temperature` | `0.05` | float > 0 | That cosines are divided"
    " by. Not with `neighbours.count=0` |"
  ) in told
  assert (
    "| `optim.wide.learning_rate` | decided | float ≥ 0 | Of the SGD of linear"
    " weights; a rate for the sum over the batch. Only with `head.type=dense`;"
    " only with `head.wide=True` |"
  ) in told


# That of commands defines flags, which other tests do too; see the last test.
@pytest.mark.parametrize("page", sorted({*PAGES} - {"commands"}))
def test_what_is_generated_is_there(page):
  text = generated.fill(PAGES[page].read_text())
  assert "<!-- generated" not in text


def test_each_loss_is_told_once():
  text = generated.fill(PAGES["losses"].read_text())
  for name in config_lib.losses.LOSSES:
    assert text.count(f"| `{name}` |") == 1
  links = re.findall(r"{class}`~xlj\.losses\.(\w+)`", text)
  assert "Spherical" not in links and {"Softmax", "ZLoss", "Margin"} <= {*links}


@pytest.mark.slow
def test_the_guide_is_built_without_warnings_and_can_be_searched(tmp_path):
  build = "-m sphinx --quiet --fail-on-warning --fresh-env".split()
  done = subprocess.run(
    [sys.executable, *build, DOCS, tmp_path], capture_output=True, text=True
  )
  assert not done.returncode and not done.stderr, done.stderr
  assert (tmp_path / "index.html").exists()
  text = (tmp_path / "searchindex.js").read_text()
  index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
  for stem, page in (
    ("resum", "running"),
    ("propens", "missing_wrong_rare_labels"),
    ("shard", "devices_and_hosts"),
  ):
    numbers = set()
    for words in index["terms"], index["titleterms"]:
      found = words.get(stem, [])
      numbers |= {*found} if isinstance(found, list) else {found}
    assert page in [index["docnames"][number] for number in numbers], stem
