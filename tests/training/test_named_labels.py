"""A run on rows whose labels are names, from training to its answers."""

import json

import numpy as np
import pytest

from tests import runs
from xlj.config import splits
from xlj.evaluation import evaluate
from xlj.inference import predict
from xlj.training import train

COLOURS = ["red", "C#", "grün", "2012"]


def text(count, seed):
  """Rows whose one feature tells the label."""
  rng = np.random.default_rng(seed)
  which = rng.integers(0, len(COLOURS), count)
  return "".join(f"{COLOURS[i]} {i}:1 {i + 4}:0.5\n" for i in which)


@pytest.mark.slow
def test_names_come_back(tmp_path):
  data, run = tmp_path / "data", tmp_path / "run"
  data.mkdir()
  (data / "train.svm").write_text("red 0:1 4:0.5\n" + text(200, 0))
  test = "2012 3:1 7:0.5\nnew 0:1\n" + text(30, 1)
  (data / "test.svm").write_text(test)
  config = runs.make_config(data, data__validation=0.1)
  assert train.train(config, run)
  config.train.epochs = 3.0
  assert train.train(config, run)  # which goes on with it
  other = tmp_path / "other"
  other.mkdir()
  (data / "test.svm").rename(other / "test.svm")
  data.rename(tmp_path / "away")
  scores = evaluate.evaluate(run, data_dir=str(other))
  assert scores["P@1"] > 80
  answers = tmp_path / "out.jsonl"
  predict.predict(run, str(other / "test.svm"), str(answers), k=1)
  rows = [json.loads(line) for line in answers.read_text().splitlines()]
  right = [
    row["names"] == [line.split()[0]]
    for row, line in zip(rows, test.splitlines())
  ]
  assert len(rows) == 32 and sum(right) > 25
  found = json.loads((run / "config.json").read_text())
  assert found["data"]["named_labels"]
  names = (run / splits.NAMES_FILE).read_text().split()
  assert sorted(names) == sorted(COLOURS)
