"""Data of hardly any rows, labels or features train and predict, or say why."""

import numpy as np
import pytest

from tests import runs
from xlj.data import errors
from xlj.inference import predictor
from xlj.training import preparation
from xlj.training import train

SHAPES = {
  "a row": "1 4 2\n0 0:1\n",
  "a row, label and feature": "1 1 1\n0 0:1\n",
  "two rows": "2 4 2\n0 0:1\n1 1:1\n",
  "rows without features": "3 4 2\n0\n1\n0,1\n",
  "a label": "4 4 1\n0 0:1\n0 1:1\n0 2:1\n0 3:1\n",
  "a label of five, in all rows": "4 4 5\n3 0:1\n3 1:1\n3 2:1\n3 3:1\n",
  "all labels in all rows": "3 4 2\n0,1 0:1\n0,1 1:1\n0,1 2:1\n",
  "a feature": "4 1 3\n0 0:1\n1 0:1\n2 0:1\n0 0:1\n",
  "values of zero": "3 3 2\n0 0:0\n1 1:0\n0 2:0\n",
}

FAMILIES = "network", "linear", "embedding"
CASES = [(shape, FAMILIES[i % 3]) for i, shape in enumerate(SHAPES)]
CASES += [("a row", "linear"), ("values of zero", "linear")]


@pytest.mark.parametrize("text", ["3 0 2\n0\n1\n0,1\n", "0\n1\n0,1\n"])
def test_data_without_features_are_refused(tmp_path, text):
  (tmp_path / "train.txt").write_text(text)
  with pytest.raises(errors.DataError, match="found rows without features"):
    preparation.prepare(runs.make_config(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "family"), CASES)
def test_small_data_train_and_predict(tmp_path, shape, family):
  (tmp_path / "train.txt").write_text(SHAPES[shape])
  config = runs.make_config(tmp_path, **runs.LINEAR)
  config.family, config.encoder.dim = family, None
  config.head.loss = None
  config.data.validation, config.train.num_steps = 0.0, 3
  assert train.train(config, tmp_path / "run")
  run = predictor.load(tmp_path / "run")
  scores, ids = run.topk([{}, {0: 1.0}], run.num_labels)
  assert np.isfinite(scores).all()
  assert (np.sort(ids) == np.arange(run.num_labels)).all()
