"""A run on sets of items, from a file of interactions to its answers."""

import json

import numpy as np
import pytest

from tests import runs
from xlj.config import splits
from xlj.evaluation import evaluate
from xlj.inference import predict
from xlj.inference import predictor
from xlj.serving import models
from xlj.serving import requests
from xlj.training import preparation
from xlj.training import train

KINDS, ITEMS = 4, 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Users who have items of one kind, and the item that all have."""
  rng = np.random.default_rng(0)
  lines = ["user,item\n"]
  for user in range(80):
    kind = rng.integers(KINDS)
    lines.append(f"u{user},all\n")
    lines += [
      f"u{user},{kind}_{item}\n" for item in rng.choice(ITEMS, 6, replace=False)
    ]
  directory = tmp_path_factory.mktemp("sets")
  (directory / "interactions.csv").write_text("".join(lines))
  return directory


def config_of(data, **fields):
  config = runs.config_file("gowalla").get_config()
  config.data.dir = str(data)
  config.head.blocks = 8
  config.eval.batch_size = 64
  config.eval.ks = (5,)
  config.eval.metric = "nDCG@5"
  config.update_from_flattened_dict(fields)
  return config


@pytest.mark.slow
def test_a_run_ranks_what_goes_together(data, tmp_path):
  config = config_of(data, **{"data.interactions.validation": 0.2})
  workdir = tmp_path / "run"
  assert train.train(config, workdir)
  # A user lacks 9 of its kind, and others have 36: chance finds 1 in 9.
  for split in ("test", "validation"):
    found = evaluate.evaluate(workdir, split=split)
    assert 0.3 < found["Recall@5"] <= 1
  run = predictor.load(workdir)
  rows = [{"items": ["2_0", "2_1", "new"]}, {"items": []}, {"2_0": 1, "2_1": 1}]
  scores, ids = run.topk(rows, k=5)
  names = [run.names(row) for row in ids]
  # Another item of the kind is first, and those of the row are none.
  assert names[0][0].startswith("2_") and not {*names[0]} & {"2_0", "2_1"}
  assert names[2] == names[0]
  # Without items, those that most users have.
  assert names[1][0] == "all" and not scores[1].any()
  path = tmp_path / "users.jsonl"
  path.write_text(
    '{"items": ["2_0", "2_1", "new"]}\n{"items": []}\n{"items": [[1]]}\n'
  )
  answers = tmp_path / "answers.jsonl"
  predict.predict(workdir, str(path), str(answers), k=5, on_error="skip")
  told = [json.loads(line) for line in answers.read_text().splitlines()]
  assert [row["names"] for row in told[:2]] == names[:2]
  assert not told[2]["labels"]
  model = models.Model("sets", workdir, run)
  asked = requests.read_rows([{"items": ["2_1", "2_0", "2_0"]}], model)
  found = run.topk(asked.features, k=5)[1]
  assert run.names(found[0]) == names[0]
  config.data.dir = "elsewhere"  # the names are in the run
  assert splits.feature_names(config, workdir) == run.feature_names


def test_rows_are_not_held_out(data):
  config = config_of(data, **{"data.validation": 0.1})
  with pytest.raises(preparation.config_lib.ConfigError, match="interactions"):
    preparation.prepare(config)
