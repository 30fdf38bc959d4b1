"""A run on sequences, from the file to its figures."""

import json

import numpy as np
import pytest

from tests import runs
from xlj.evaluation import evaluate
from xlj.inference import predictor
from xlj.training import train

ITEMS = 20


@pytest.mark.slow
def test_a_run_learns_what_comes_next(tmp_path):
  """The next item is the one three further on; popularity knows nothing."""
  rng = np.random.default_rng(0)
  lines = []
  for user in range(200):
    items = (rng.integers(ITEMS) + 3 * np.arange(rng.integers(5, 9))) % ITEMS
    lines.append(" ".join(map(str, [user, *items])))
  (tmp_path / "Round.txt").write_text("\n".join(lines) + "\n")
  config = runs.config_file("sequences").get_config("Round")
  config.data.dir = str(tmp_path)
  config.encoder.dim = 16
  config.encoder.depth = 1
  config.encoder.hidden_dropout = 0.0
  config.optim.encoder.learning_rate = config.optim.head.learning_rate = 0.03
  config.train.batch_size = 50
  config.train.epochs = 15.0
  workdir = tmp_path / "run"
  assert train.train(config, workdir)
  held_out = runs.records(workdir, "eval")
  assert held_out[-1]["nDCG@10"] > held_out[0]["nDCG@10"]
  found = evaluate.evaluate(workdir)
  assert found["nDCG@10"] > 0.9
  both = json.loads((workdir / "evaluation.json").read_text())
  assert both["baselines"]["popularity"]["nDCG@10"] < 0.5
  run = predictor.load(workdir)
  split = evaluate.splits.open_split(config, "test")
  _, ids = run.topk(split.features.take([0]), 1)
  assert ids[0, 0] == split.labels.indices[0]
  _, ids = run.topk([{"items": [1, 4, 7]}, {"items": []}], 1)
  assert ids[0, 0] == 10
