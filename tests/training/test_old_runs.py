"""Runs that an older version wrote restore, go on, and come to the same."""

import json
from pathlib import Path
import tarfile

import numpy as np
import pytest

from tests import cases
from tests import runs
import xlj
from xlj import config as config_lib
from xlj.training import train

OLD = Path(__file__).parent / "old_runs"
EXPECTED = json.loads((OLD / "expected.json").read_text())
ROWS = [{3: 1.0, 17: 2.0}, {5: 1.0}, {60: 3.0, 1: 1.0, 2: 1.0}]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
  """The directory of old runs, which each test goes on with its own of."""
  directory = tmp_path_factory.mktemp("old")
  with tarfile.open(OLD / "runs.tar.xz") as archive:
    archive.extractall(directory, filter="data")
  return directory


@pytest.mark.parametrize("name", cases.some(sorted(EXPECTED), {"mhs"}))
def test_an_old_run_goes_on_as_it_would_have(old, name, optimized):
  workdir, expected = old / name, EXPECTED[name]
  config = config_lib.load(workdir / config_lib.FILE)
  config.data.dir = str(old / "data")
  assert train.train(config, workdir)
  # Bit for bit on the machine that wrote them; another one's products differ.
  close = {"rtol": 1e-4, "atol": 1e-5}
  np.testing.assert_allclose(runs.losses(workdir), expected["losses"], **close)
  scores, ids = xlj.load(workdir, which="last").topk(ROWS, 5)
  np.testing.assert_allclose(scores, expected["scores"], **close)
  assert (ids == expected["ids"]).mean() > 0.8  # near ties may change places
  for found, then in zip(runs.records(workdir, "eval"), expected["eval"]):
    assert found == pytest.approx(then, abs=1e-3)
