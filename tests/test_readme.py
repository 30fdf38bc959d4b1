"""What README.md and docs/ say exists, and their code does what they say."""

import ast
import importlib
from pathlib import Path
import re
import shlex

import jax
from ml_collections import config_dict
import numpy as np
import pytest

from benchmarks import render_tables
from xlj import config as config_lib
from xlj import shell

ROOT = Path(__file__).parents[1]
PAGES = [
  path.relative_to(ROOT).as_posix()
  for path in (*render_tables.pages(), *sorted(ROOT.glob("docs/*/*.md")))
]
_SCRIPT = r"python launch/\1.py"  # the same as `xlj NAME`


def text_of(page):
  return (ROOT / page).read_text()


def blocks(page, language):
  """The code blocks of a page in a language; "" for commands."""
  found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.M | re.S)
  return [code for name, code in found if name == language]


def commands(page):
  """The commands that a page shows, as lists of words."""
  shown = "\n".join(blocks(page, "")).replace("\\\n", " ")
  shown = re.sub(r" -- +(?=python|xlj)", "\n", shown)
  quoted = re.findall(r"`([^`\n]+)`", text_of(page))
  for line in [*shown.split("\n"), *quoted]:
    line = re.sub(rf"\bxlj ({'|'.join(shell.NAMES)})\b", _SCRIPT, line)
    found = re.search(r"python ((launch|benchmarks)/\w+\.py.*)", line)
    if found:
      yield shlex.split(found[1].split(";")[0])


def source_of(script):
  """The file that defines the flags of a command."""
  return (ROOT / re.sub("^launch/", "xlj/commands/", script)).read_text()


def fields(config, prefix=""):
  """Full names of the fields of a config."""
  for name, value in config.items():
    if isinstance(value, config_dict.ConfigDict):
      yield from fields(value, f"{prefix}{name}.")
    yield prefix + name


FIELDS = set(fields(config_lib.base()))


def test_the_readme_is_a_front_door():
  readme = text_of("README.md")
  assert len(readme.splitlines()) <= 180
  assert len(readme.encode()) <= 9 * 1024


def anchors(path):
  """What links to the headings of a page end with."""
  for heading in re.findall(r"^#+ (.+)$", path.read_text(), re.M):
    yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
  for link in re.findall(r"\]\(([^)]+)\)", text_of(page)):
    if link.startswith("http"):
      continue
    name, _, anchor = link.partition("#")
    path = (ROOT / page).parent / name if name else ROOT / page
    assert path.exists(), link
    assert not anchor or anchor in anchors(path), link


# Those of docs/adding_things.md are tried in test_adding.
@pytest.mark.parametrize(
  "page", [page for page in PAGES if page != "docs/adding_things.md"]
)
def test_python_compiles_and_its_modules_exist(page):
  for code in blocks(page, "python"):
    for node in ast.walk(ast.parse(code)):
      if isinstance(node, ast.Import):
        for alias in node.names:
          importlib.import_module(alias.name)
      elif isinstance(node, ast.ImportFrom):
        module = importlib.import_module(node.module)
        for alias in node.names:
          if not hasattr(module, alias.name):
            importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("page", PAGES)
def test_named_modules_and_files_exist(page):
  added = re.findall(r"^In `(.*)`:$", text_of(page), re.M)  # see test_adding
  quoted = re.findall(r"`([^`\n]+)`", text_of(page))
  for name in set(quoted) - set(added):
    path = re.match(r"(xlj|launch|configs|benchmarks|tests)/[\w/.]*", name)
    if path:
      assert (ROOT / path[0]).exists(), name
    parts = re.fullmatch(r"xlj(\.\w+)+", name)
    if parts:
      head, _, last = name.rpartition(".")
      try:
        importlib.import_module(name)
      except ModuleNotFoundError:
        assert hasattr(importlib.import_module(head), last), name


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_files_flags_and_fields_that_exist(page):
  for script, *words in commands(page):
    source = source_of(script)
    for word in words:
      flag = re.match(r"--([\w.]+)", word)
      if not flag:
        continue
      if flag[1].startswith("config."):
        assert flag[1].removeprefix("config.") in FIELDS, word
      elif flag[1] == "config":
        file = word.partition("=")[2].split(":")[0]
        known = ROOT / file, ROOT / "configs" / f"{file}.py"
        assert any(path.is_file() for path in known), word
      else:
        assert re.search(rf"""["'](--)?{flag[1]}["']""", source), (script, word)


@pytest.mark.parametrize("page", PAGES)
def test_named_fields_exist(page):
  sections = {name.split(".")[0] for name in FIELDS if "." in name}
  quoted = " ".join(re.findall(r"`([^`\n]+)`", text_of(page)))
  for name in re.findall(
    r"(?<![\w.])(?:config\.)?([a-z_]+(?:\.[a-z_]+)+)=", quoted
  ):
    if name.split(".")[0] in sections:
      assert name in FIELDS, name


def test_the_label_layer_does_what_the_page_says():
  page = "docs/label_layer.md"
  first, second = blocks(page, "python")
  assert first in blocks("README.md", "python")
  names = {
    "ids": np.array([[0, 69_999], [3, -1]], np.int32),
    "weights": np.ones(2, np.float32),
    "x": np.ones((2, 4), np.float32),
    "rows": np.zeros((70_000, 4), np.float32),
    "bias": np.zeros(70_000, np.float32),
    "key": jax.random.key(0),
    "num_rows": 70_000,
  }
  exec(compile(first, page, "exec"), names)
  assert names["loss"] == pytest.approx(np.log(70_000), rel=1e-5)
  assert names["scores"].shape == names["ids"].shape == (2, 10)
  exec(compile(second, page, "exec"), names)
  assert names["loss"] == pytest.approx(np.log(70_000), rel=1e-2)
