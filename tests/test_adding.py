"""What docs/adding_things.md says to do works, in a copy of the sources."""

import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

from tests import cases

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adding_things.md"
_BLOCK = re.compile(
  r"(?:In `(?P<path>[\w/.]+)`:\n\n)?"
  r"```(?P<kind>python|diff)\n(?P<code>.*?)```",
  re.DOTALL,
)
_DATA = """
import os, sys
import numpy as np
from xlj.data import csr, writers
rng = np.random.default_rng(0)
labels = csr.Csr.from_rows([[i % 30] for i in range(64)], num_columns=30)
features = csr.Csr.from_rows([[i % 30, 30 + i % 7] for i in range(64)], 40)
for split in ("train", "test"):
  writers.write_one_file(f"{split}.txt", features, labels)
"""
_TRAIN = (
  _DATA
  + """
from xlj import config as config_lib
from xlj.training import train
def run(workdir, **fields):
  config = config_lib.base()
  config.data.dir = "."
  config.data.validation = 0.0
  config.family = "network"
  config.encoder.dim = 8
  config.train.batch_size = 32
  config.train.epochs = 1.0
  config.update_from_flattened_dict(fields)
  train.train(config, workdir)
"""
)
# By heading of the page: what uses the thing that was added.
CHECKS = {
  "A loss": """
import numpy as np
import jax, jax.numpy as jnp
from xlj import config as config_lib
from xlj.config import families, losses
from xlj.losses import poly
from xlj.ops import label_pass, shards, targets as targets_lib
config = config_lib.base()
config.head.loss = "poly"
facts = families.DataFacts(
  num_rows=64, num_features=40, num_labels=30, labels_per_row=1.0,
  features_per_row=2.0, dense=False, kind="counts", fingerprint="x",
)
assert losses.make(config_lib.resolve(config, facts)) == poly.Poly()

rng = np.random.default_rng(0)
x, rows = (rng.normal(size=s).astype(np.float32) for s in ((6, 4), (37, 4)))
ids = np.array([[0, 3], [36, -1], [5, 6], [-1, -1], [9, 1], [2, 30]], "i4")
targets = targets_lib.Targets(ids, np.ones(6, np.float32))
hot = np.zeros((6, 37), np.float32)
for n, label in zip(*np.nonzero(ids >= 0)):
  hot[n, ids[n, label]] = 1

def expected(x, rows):
  z = x @ rows.T
  signed = jnp.where(hot, z, -z)
  each = jax.nn.softplus(-signed) + 0.7 * jax.nn.sigmoid(-signed)
  return each.sum(1).mean()

def got(x, rows):
  loss = poly.Poly(0.7)
  small = shards.Placement(chunk_size=10)
  return label_pass.label_loss(
    x, rows, None, targets, loss, placement=small
  )

jax.tree.map(
  lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
  jax.value_and_grad(got, (0, 1))(x, rows),
  jax.value_and_grad(expected, (0, 1))(x, rows),
)
""",
  "A head": _TRAIN
  + """
import jax
from xlj.inference import predictor
run("wd", **{"head.type": "fixed", "head.loss": "softmax"})
loaded = predictor.load("wd")
_, key = jax.random.split(jax.random.key(loaded.config.seed))
with jax.set_mesh(loaded.mesh):
  start = loaded.model.head.init(key)
jax.tree.map(
  lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
  loaded.state["head"],
  start,
)
assert loaded.step == 2
""",
  "An encoder": _TRAIN
  + """
from xlj.encoders import gated
from xlj.inference import predictor
run("wd", **{"encoder.type": "gated"})
assert predictor.load("wd").step == 2
""",
  "A format": _DATA
  + """
import gzip, json
from xlj.data import errors, store
os.mkdir("json")
with gzip.open("json/train.jsonl.gz", "wt") as file:
  for i in range(64):
    row = {"labels": [i % 30], "features": {str(i % 30): 1, str(30 + i % 7): 1}}
    file.write(json.dumps(row) + "\\n")
one, other = (
  store.open_split(d, num_features=40, num_labels=30) for d in (".", "json")
)
for name in ("features", "labels"):
  a, b = getattr(one, name), getattr(other, name)
  np.testing.assert_array_equal(a.indptr, b.indptr)
  np.testing.assert_array_equal(a.indices, b.indices)
os.mkdir("bad")
with open("bad/train.jsonl", "w") as file:
  file.write('{"labels": [0], "features": {}}\\n{"labels": 1}\\n')
try:
  store.open_split("bad", num_features=None, num_labels=None)
except errors.DataError as error:
  assert "train.jsonl:2: " in str(error), error
else:
  raise AssertionError("a bad row was read")
""",
  "A metric": _TRAIN
  + """
import contextlib, io, json
from xlj.evaluation import evaluate
run("wd")
with contextlib.redirect_stdout(io.StringIO()) as out:
  evaluate.evaluate("wd")
found = json.loads(out.getvalue().splitlines()[-1])
assert found["MAP@1"] == found["P@1"] <= found["MAP@3"] <= found["MAP@5"]
assert list(found).index("MAP@1") > list(found).index("Recall@5")
""",
}


def recipe(heading):
  """The new files and the changes that a section of the page names."""
  sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
  (section,) = [s for s in sections if s.startswith(heading + "\n")]
  new, changes, path = {}, {}, None
  for found in _BLOCK.finditer(section):
    path = found["path"] or path
    if found["kind"] == "python":
      new[path] = found["code"]
    else:
      changes.setdefault(path, []).append(found["code"].splitlines())
  return new, changes


def apply(text, hunk):
  """A file after a change, whose place its unmarked lines say."""
  before = [line[1:] for line in hunk if line[0] == " "]
  after = [line[1:] for line in hunk]
  assert text.count("\n".join(before) + "\n") == 1, before
  return text.replace("\n".join(before) + "\n", "\n".join(after) + "\n")


def headings():
  return re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE)


def test_all_of_them_are_tried():
  assert headings() == list(CHECKS)


@pytest.mark.parametrize("heading", headings())
def test_one_file_and_one_line_are_enough(heading):
  new, changes = recipe(heading)
  assert len(new) == len(changes) == 1
  (path,) = new
  assert not (ROOT / path).exists()
  lines = [
    line for hunks in changes.values() for hunk in hunks for line in hunk
  ]
  added = [line[1:] for line in lines if line[0] == "+"]
  assert not [line for line in lines if line[0] not in "+ "]
  module = path.removesuffix(".py").replace("/", ".")
  room, _, name = module.rpartition(".")
  imports = [line for line in added if line == f"from {room} import {name}"]
  assert len(added) - len(imports) == 1


@pytest.mark.parametrize("heading", cases.some(headings(), {"A loss"}))
def test_it_works(heading, tmp_path):
  copy = tmp_path / "copy"
  for name in ("xlj", "configs"):
    shutil.copytree(
      ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__")
    )
  new, changes = recipe(heading)
  for path, code in new.items():
    (copy / path).write_text(code)
  for path, hunks in changes.items():
    for hunk in hunks:
      text = (copy / path).read_text()
      (copy / path).write_text(apply(text, hunk))
  here = f"import xlj; assert xlj.__file__.startswith({str(copy)!r})\n"
  work = tmp_path / "work"
  work.mkdir()
  done = subprocess.run(
    [sys.executable, "-c", here + textwrap.dedent(CHECKS[heading])],
    cwd=work,
    # One device: there is less to compile.
    env=os.environ | {"PYTHONPATH": str(copy), "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
