"""What training looks at before it starts, and what of it the run keeps."""

import shutil

import numpy as np
import pytest

from tests import runs
from xlj.config import splits
from xlj.data import store
from xlj.runs import directory
from xlj.training import preparation

F, L, N = 6, 4, 20
NAMES = ["  blank ", "ta\tb", "twice", "twice"]


def write_data(path):
  """A directory of svmlight rows; every label and every feature has some."""
  path.mkdir()
  rows = [f"{i % L} {i % F}:1 {(i + 1) % F}:0.5\n" for i in range(N)]
  for split in ("train", "test"):
    (path / f"{split}.svm").write_text("".join(rows))
  (path / "labels.txt").write_text("".join(f"{name}\n" for name in NAMES))
  return path


@pytest.fixture
def data(tmp_path):
  return write_data(tmp_path / "data")


def begin(config, workdir):
  """What training does before its first step."""
  config, data = preparation.prepare(config, workdir)
  directory.claim(workdir, config, data.order, data.names)
  return config, data


def test_names_and_order_stay_with_the_run(data, tmp_path, caplog):
  order = tmp_path / "order.txt"
  order.write_text("2\n0\n3\n1\n")
  config = runs.make_config(data, head__order=str(order))
  saved, found = begin(config, tmp_path / "run")
  assert "several labels have: 1, such as 'twice' of 2 and 3;" in caplog.text
  assert found.names == NAMES
  order.write_text("0\n1\n2\n3\n")  # another one, or none at all
  (data / "labels.txt").unlink()
  again, same = begin(config, tmp_path / "run")
  np.testing.assert_array_equal(same.order.data_ids, found.order.data_ids)
  assert same.names == NAMES
  order.unlink()
  shutil.rmtree(data)
  (tmp_path / "run").rename(tmp_path / "copy")
  assert splits.label_names(saved, tmp_path / "copy") == NAMES
  assert splits.label_names(saved) is None


def test_earlier_runs_have_the_names_of_their_data(data, tmp_path):
  config, _ = begin(runs.make_config(data), tmp_path / "run")
  (tmp_path / "run" / splits.NAMES_FILE).unlink()
  assert splits.label_names(config, tmp_path / "run") == NAMES


def test_a_run_in_the_directory_of_its_data_leaves_their_names(data):
  text = "".join(f"id{i}\tname {i}\n" for i in range(L))
  (data / "labels.txt").write_text(text)
  config, found = begin(runs.make_config(data), data)
  assert found.names == [f"name {i}" for i in range(L)]
  assert (data / "labels.txt").read_text() == text
  assert splits.label_names(config, data) == found.names


def test_wrong_names_are_refused_before_training(data, tmp_path):
  (data / "labels.txt").write_text("a\nb\nc\n")
  with pytest.raises(store.DataError, match="labels.txt:3: found 3 names"):
    begin(runs.make_config(data), tmp_path / "run")
  assert not (tmp_path / "run").exists()
