"""A run on ids that are large, but few, is that on their numbers."""

import json

import numpy as np
import pytest
import scipy.sparse

from tests import runs
from xlj import config as config_lib
from xlj.evaluation import evaluate
from xlj.inference import label_files
from xlj.inference import predict
from xlj.inference import predictor
from xlj.training import preparation
from xlj.training import train

FEATURES = 10**10 + 7 * np.arange(9)
LABELS = np.array([2, 5, 40, 10**11, 10**12])


def write(directory, features, labels, more=""):
  """Twelve rows of a training and a test split; `more` rows of the latter."""
  directory.mkdir()
  rows = [
    f"{labels[i % 5]} {features[i % 9]}:1 {features[(i + 4) % 9]}:0.5"
    for i in range(12)
  ]
  text = "".join(f"{row}\n" for row in rows)
  (directory / "train.svm").write_text(text)
  (directory / "test.svm").write_text(text + more)
  return directory


def config_of(directory, **fields):
  config = runs.make_config(directory, **runs.LINEAR, **fields)
  config.data.validation, config.train.num_steps = 0.0, 4
  return config


@pytest.mark.slow
def test_predictions_come_back_with_the_ids(tmp_path):
  more = f"{LABELS[1]},77 {FEATURES[3]}:1 123:4\n"
  large = write(tmp_path / "large", FEATURES, LABELS, more)
  plain = write(tmp_path / "plain", range(9), range(5))
  train.train(config_of(large, data__renumber=True), tmp_path / "run")
  train.train(config_of(plain), tmp_path / "same")
  run = predictor.load(tmp_path / "run")
  same = predictor.load(tmp_path / "same")
  scores, ids = run.topk([{int(FEATURES[2]): 1.0, 123: 4.0}, {}], 5)
  expected, numbers = same.topk([{2: 1.0}, {}], 5)
  np.testing.assert_allclose(scores, expected, atol=1e-6)
  assert ids.dtype == np.int64
  np.testing.assert_array_equal(ids, LABELS[numbers])
  without = run.topk([{int(FEATURES[2]): 1.0}], 2, exclude=[ids[0, 0]])[1]
  np.testing.assert_array_equal(without[0], ids[0, 1:3])
  with pytest.raises(ValueError, match="label id 3, which training has not"):
    run.topk([{}], 1, among=[3])
  # A matrix has ids for columns; nothing but the run is needed.
  (large / "train.svm").unlink()
  matrix = scipy.sparse.coo_array(
    (np.ones(1), (np.zeros(1, np.int64), FEATURES[2:3])), (1, 2 * 10**10)
  )
  np.testing.assert_allclose(run.topk(matrix, 5)[0], scores[:1], atol=1e-6)
  output = tmp_path / "out.jsonl"
  predict.predict(tmp_path / "run", str(large / "test.svm"), str(output))
  found = [json.loads(row)["labels"] for row in output.read_text().splitlines()]
  assert len(found) == 13 and set(found[0]) == {*LABELS.tolist()}
  (tmp_path / "not.txt").write_text(f"{found[0][0]}\n")
  predict.predict(
    tmp_path / "run",
    str(large / "test.svm"),
    str(output),
    asked=label_files.Asked(str(tmp_path / "not.txt"), exclude_rows="labels"),
  )
  fewer = [json.loads(row)["labels"] for row in output.read_text().splitlines()]
  own = {found[0][0], int(LABELS[0])}  # labels of the first row
  assert set(fewer[0]) == {*found[0]} - own
  figures = evaluate.evaluate(tmp_path / "run")
  before = evaluate.evaluate(tmp_path / "same")["P@1"]
  hit = run.topk([{int(FEATURES[3]): 1.0}], 1)[1][0, 0] == LABELS[1]
  assert figures["P@1"] == pytest.approx((12 * before + 100 * hit) / 13)


def test_names_are_those_of_ids(tmp_path):
  labels = [2, 5, 9, 11, 30]
  data = write(tmp_path / "data", FEATURES, labels)
  names = [f"name {i}" for i in range(31)]
  (data / "labels.txt").write_text("\n".join(names) + "\n")
  _, found = preparation.prepare(config_of(data, data__renumber=True))
  assert found.names == [f"name {i}" for i in labels]
  (data / "labels.txt").write_text("\n".join(names[:30]) + "\n")
  with pytest.raises(ValueError, match="one for each label id up to 30"):
    preparation.prepare(config_of(data, data__renumber=True))


def test_generated_rows_have_no_ids():
  config = runs.make_config("", data__renumber=True)
  config.data.generator.rows, config.data.generator.factors = 20, (3, 4)
  with pytest.raises(config_lib.ConfigError, match="data.renumber is True"):
    preparation.prepare(config)
