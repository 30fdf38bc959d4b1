"""The benchmark beside PECOS and napkinXC: what it writes and refuses."""

import json
import os
from pathlib import Path
import sys

import numpy as np
import pytest
import scipy.sparse

from tests import runs
from xlj import config as config_lib
from xlj.data import store

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONFIG = runs.ROOT / "configs" / "xmc.py"


@pytest.fixture
def one_vs_all(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  import one_vs_all

  return one_vs_all


@pytest.mark.parametrize(
  "flags, said",
  [
    (
      ["--systems=xlj,parabel"],
      "xlj, pecos, napkinxc; got parabel",
    ),
    (["--config=no_such.py"], "no_such.py"),
    (["--", "--config.train.epoch=2"], 'mean "epochs"'),
    (["--", "train.epochs=2"], "unexpected arguments: train.epochs=2"),
    ([], "no_such_directory"),
  ],
)
def test_refuses(one_vs_all, monkeypatch, capsys, flags, said):
  argv = ["", "--data_dir=no_such_directory", f"--config={CONFIG}", *flags]
  monkeypatch.setattr(sys, "argv", argv)
  with pytest.raises(SystemExit) as error:
    one_vs_all.main()
  assert said in str(error.value.code) + capsys.readouterr().err


def test_dense_features_are_refused(one_vs_all, tmp_path):
  np.save(tmp_path / "X.train.npy", np.ones((3, 2), np.float32))
  scipy.sparse.save_npz(
    tmp_path / "Y.train.npz", scipy.sparse.csr_array([[1]] * 3)
  )
  config = config_lib.base()
  config.data.dir = str(tmp_path)
  with pytest.raises(ValueError, match="has dense features"):
    one_vs_all.write_data(config, tmp_path)


def test_peers_get_the_rows_of_xlj_with_norm_1(one_vs_all, data_dir, tmp_path):
  config = config_lib.base()
  config.data.dir = str(data_dir)
  test, propensities = one_vs_all.write_data(config, tmp_path)
  train = store.open_split(data_dir)
  assert propensities.shape == (train.num_labels,)
  for split, name in ((train, "train"), (test, "test")):
    features = scipy.sparse.load_npz(tmp_path / f"{name}_features.npz")
    labels = scipy.sparse.load_npz(tmp_path / f"{name}_labels.npz")
    assert features.dtype == np.float32 and features.indices.dtype == np.int32
    np.testing.assert_array_equal(features.indices, split.features.indices)
    norms = scipy.sparse.linalg.norm(features, axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    np.testing.assert_array_equal(labels.indices, split.labels.indices)
    assert labels.shape == split.labels.shape
  # They belong to the training that is timed.
  assert not list(tmp_path.rglob("statistics.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("system", ["xlj", "pecos", "napkinxc"])
def test_a_row(one_vs_all, data_dir, tmp_path, system):
  peer = one_vs_all.SYSTEMS[system]
  if peer and not one_vs_all.environments.path(peer).exists():
    pytest.skip(f"{peer.name} is installed by benchmarks/one_vs_all.py")
  file = tmp_path / "out.json"
  job = runs.launch(
    *(BENCHMARKS / "one_vs_all.py", f"--json={file}"),
    *(f"--data_dir={data_dir}", f"--config={CONFIG}", f"--systems={system}"),
    *("--", "--config.train.epochs=1", "--config.encoder.dim=16"),
  )
  status, out, err = runs.finish(job, timeout=None)
  assert not status, err
  record = json.loads(file.read_text())
  assert {"machine", "cores", "commit", "date"} <= record["origin"].keys()
  (row,) = record["rows"]
  assert row["system"] == system and row["version"] in out
  assert row["xlj_takes"] == (1 if system == "xlj" else None)
  for name in ("train_s", "model_bytes", "batch_ms", "row_p50_ms"):
    assert row[name] > 0
  assert 0 < row["P@5"] <= row["P@1"] <= 100
  assert 0 < row["PSP@1"] <= 100
  if sys.platform == "linux":
    assert row["peak_bytes"] > 2**25
    assert row["others"] < os.cpu_count()
