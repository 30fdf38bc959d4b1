"""The wheel, in an environment without the checkout and an empty directory."""

import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from tests import runs
import xlj
from xlj.data import csr
from xlj.data import writers

pytestmark = pytest.mark.slow
# Tells which files were imported.
_TELLS = """
import atexit, os, sys
@atexit.register
def tell():
  if out := os.environ.get("IMPORTED"):
    files = (getattr(m, "__file__", None) for m in [*sys.modules.values()])
    open(out, "w").write("\\n".join(filter(None, files)))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """Variables for a shell in which the wheel is installed."""
  pytest.importorskip("hatchling")
  root = tmp_path_factory.mktemp("environment")

  def call(*words):
    subprocess.run(
      [sys.executable, "-m", *map(str, words)],
      check=True,
      cwd=runs.ROOT,
      stdout=subprocess.DEVNULL,
    )

  call("hatchling", "build", "--target", "wheel", "--directory", root)
  call("venv", "--without-pip", root / "venv")
  (wheel,) = root.glob(f"xlj_jax-{xlj.__version__}-*.whl")
  python = root / "venv" / "bin" / "python"
  call("pip", "--python", python, "install", "-q", "--no-deps", wheel)
  (packages,) = (root / "venv").glob("lib/*/site-packages")
  # What the tests have, but for what is installed there as a link.
  others = [path for path in sys.path if path.endswith(packages.name)]
  (packages / "others.pth").write_text("\n".join(others))
  (packages / "sitecustomize.py").write_text(_TELLS)
  variables = dict(os.environ, PATH=f"{python.parent}:{os.environ['PATH']}")
  variables.pop("PYTHONPATH", None)
  return variables


@pytest.fixture
def called(environment, tmp_path):
  """Calls a command in an empty directory."""

  def call(*words, **variables):
    done = subprocess.run(
      words,
      env=environment | variables,
      cwd=tmp_path,
      capture_output=True,
      text=True,
    )
    return done.returncode, done.stdout, done.stderr

  return call


def test_it_says_what_there_is(called):
  assert called("xlj", "--version") == (0, f"xlj {xlj.__version__}\n", "")
  status, out, _ = called("xlj", "--help")
  assert status == 0 and "  train      Trains a model" in out
  status, _, err = called("xlj", "tarin")
  assert status == 2 and "did you mean xlj train?" in err


def test_it_trains_by_the_name_of_a_config(called, tmp_path):
  data, imported = tmp_path / "data", tmp_path / "imported"
  data.mkdir()
  rows = np.arange(64)
  labels = csr.Csr.from_rows([[i % 8] for i in rows], num_columns=8)
  features = csr.Csr.from_rows([[i % 8, 8 + i % 5] for i in rows], 13)
  for split in ("train", "test"):
    writers.write_one_file(data / f"{split}.txt", features, labels)
  words = "--config=xmc", "--config.data.dir=data", "--workdir=run"
  status, out, err = called(
    "xlj", "train", *words, "--config.train.epochs=1", IMPORTED=str(imported)
  )
  assert status == 0, err
  assert f"xlj evaluate --workdir={tmp_path}/run" in out + err
  files = [Path(line) for line in imported.read_text().split("\n")]
  assert any(path.name == "xmc.py" for path in files)
  ours = [path for path in files if path.is_relative_to(runs.ROOT)]
  assert not [path for path in ours if "site-packages" not in path.parts]
