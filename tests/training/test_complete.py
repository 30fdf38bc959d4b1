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


def test_names_of_features_stay_with_the_run(data, tmp_path, caplog):
  names = [" a", "b\tc", "d", "e", "f", "g"]
  (data / "Xf.txt").write_text("".join(f"{name}\n" for name in names))
  config, _ = begin(runs.make_config(data), tmp_path / "run")
  (data / "Xf.txt").unlink()
  assert splits.feature_names(config, tmp_path / "run") == names
  assert splits.feature_names(config) is None
  (data / "Xf.txt").write_text("a\n")
  begin(runs.make_config(data), tmp_path / "other")
  assert "Names of features are left out: " in caplog.text
  assert not (tmp_path / "other" / splits.FEATURES_FILE).exists()


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


def refused(data, tmp_path, **fields):
  """The message of the refusal, before there is a run."""
  with pytest.raises(store.DataError) as caught:
    begin(runs.make_config(data, **fields), tmp_path / "run")
  assert not (tmp_path / "run").exists()
  return str(caught.value)


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("test.svm", "0 1:1\n1 2:x\n", "test.svm:2: found"),
    ("validation.svm", "0 1:nan\n", "validation.svm:1: found"),
    ("filter_labels_test.txt", "0 1\n3 9\n", "filter_labels_test.txt:2: found"),
    ("filter_labels_train.txt", "99 1\n", "filter_labels_train.txt:1: found"),
    ("tst.svm", "0 1:1\n", "several candidates for the test split"),
  ],
)
def test_every_file_is_looked_at_before_training(
  name, text, message, data, tmp_path
):
  (data / name).write_text(text)
  found = refused(data, tmp_path)
  assert message in found
  if "train" not in name:
    assert "split is looked at before training starts: mend it" in found
    assert f"move it out of {data}" in found


def test_a_wider_test_split_is_told_before_training(data, tmp_path, caplog):
  (data / "test.svm").write_text("0,5 1:1 9:1\n4,5 2:1\n")
  begin(runs.make_config(data), tmp_path / "run")
  assert (
    "test.svm: 1 entries of 1 features that training has not" in caplog.text
  )
  assert "test.svm: 3 entries of 2 labels that training has not" in caplog.text
  (data / "test.svm").unlink()
  begin(runs.make_config(data), tmp_path / "other")  # there need be none


def test_stated_sizes_are_kept(data, tmp_path):
  names = [*NAMES, "new", "newer"]
  (data / "labels.txt").write_text("".join(f"{name}\n" for name in names))
  (data / "test.svm").write_text("0,5 1:1 8:1\n")
  plain = runs.make_config(data)
  wide = runs.make_config(data, data__num_features=9, data__num_labels=6)
  assert "found 6 names, expected 4" in refused(data, tmp_path)
  for workdir in ("run", "run"):  # anew, and going on
    config, found = begin(wide, tmp_path / workdir)
    assert (config.data.num_features, config.data.num_labels) == (9, 6)
    assert (found.split.num_features, found.split.num_labels) == (9, 6)
    assert found.names == names
    assert found.stats.label_counts.tolist() == [5, 5, 5, 5, 0, 0]
    assert len(found.stats.document_frequency) == 9
  again, _ = preparation.prepare(directory.load_config(tmp_path / "run"))
  assert again.data.fingerprint == config.data.fingerprint
  (data / "labels.txt").unlink()
  config, found = begin(plain, tmp_path / "plain")
  assert config.data.num_labels == len(found.stats.label_counts) == 4


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"data__num_labels": 3}, "train.svm:4: found label 3, expected an id in"
     " [0, 2]"),
    ({"data__num_features": 5}, "train.svm:5: found feature 5, expected an id"
     " in [0, 4]"),
  ],
)  # fmt: skip
def test_stated_sizes_that_are_too_small_are_refused(
  fields, message, data, tmp_path
):
  found = refused(data, tmp_path, **fields)
  assert message in found
  ((field, value),) = fields.items()
  field = field.replace("__", ".")
  assert f"{field} is {value}: leave it out, or give" in found
  assert f"--config.{field}={value + 1}" in found
