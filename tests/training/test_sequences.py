"""A run on sequences, from the file to its figures and its answers."""

import json

import numpy as np
import pytest

from tests import processes
from tests import runs
import xlj
from xlj.config import splits
from xlj.data import errors
from xlj.evaluation import evaluate
from xlj.export import export
from xlj.inference import predict
from xlj.inference import predictor
from xlj.serving import models
from xlj.serving import requests
from xlj.training import train

pytestmark = pytest.mark.slow
ITEMS = 20


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """The next item is the one three further on; popularity knows nothing."""
  directory = tmp_path_factory.mktemp("sequences")
  rng = np.random.default_rng(0)
  lines = []
  for user in range(200):
    items = (rng.integers(ITEMS) + 3 * np.arange(rng.integers(5, 9))) % ITEMS
    lines.append(" ".join(map(str, [user, *items])))
  (directory / "Round.txt").write_text("\n".join(lines) + "\n")
  config = runs.config_file("sequences").get_config("Round")
  config.data.dir = str(directory)
  config.encoder.dim = 16
  config.encoder.depth = 1
  config.encoder.hidden_dropout = 0.0
  config.encoder.tied = True
  config.optim.encoder.learning_rate = config.optim.head.learning_rate = 0.03
  config.train.batch_size = 50
  config.train.epochs = 15.0
  assert train.train(config, directory / "run")
  return directory / "run"


def test_a_run_learns_what_comes_next(workdir):
  held_out = runs.records(workdir, "eval")
  assert held_out[-1]["nDCG@10"] > 0.9
  found = evaluate.evaluate(workdir)
  assert found["nDCG@10"] > 0.9
  both = json.loads((workdir / "evaluation.json").read_text())
  assert both["baselines"]["popularity"]["nDCG@10"] < 0.5
  run = predictor.load(workdir)
  split = splits.open_split(run.config, "test")
  _, ids = run.topk(split.features.take([0]), 1)
  assert ids[0, 0] == split.labels.indices[0]


def test_two_processes_train_as_one_does(workdir, tmp_path):
  """A network tied to label rows, and counts of what came after an item."""
  config = (
    "--config=sequences:Round",
    f"--config.data.dir={workdir.parent}",
    "--config.encoder.dim=16",
    "--config.encoder.hidden_dropout=0",
    "--config.optim.encoder.learning_rate=0.03",
    "--config.optim.head.learning_rate=0.03",
    "--config.train.batch_size=50",
    "--config.train.epochs=15",
  )
  both = tmp_path / "run"
  processes.succeed(
    processes.launch("train", 2, *config, f"--workdir={both}", devices=2)
  )
  for kind, name in (("train", "loss"), ("eval", "nDCG@10")):
    found, wanted = (
      [row[name] for row in runs.records(run, kind)] for run in (both, workdir)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
  scores, wanted = (
    predictor.load(run).topk([{"items": [1, 4]}], 5) for run in (both, workdir)
  )
  np.testing.assert_array_equal(scores[1], wanted[1])
  np.testing.assert_allclose(scores[0], wanted[0], rtol=1e-3)


def test_answers_to_sequences(workdir, tmp_path):
  """From Python, a file of each form and a request; nothing seen again."""
  run = predictor.load(workdir)
  rows = [{"items": [1, 4, 7]}, {"items": []}]
  scores, ids = run.topk(rows, 6)
  assert ids[0, 0] == 10 and not {1, 4, 7} & {*ids[0].tolist()}
  # Who has no item gets the most popular ones.
  counts = run.label_counts()
  assert counts[ids[1]].tolist() == sorted(counts, reverse=True)[:6]
  np.testing.assert_allclose(scores[1], 0, atol=1e-9)

  model = models.Model("m", workdir, run)
  asked = requests.read_rows(rows, model)
  np.testing.assert_array_equal(run.topk(asked.features, 6)[1], ids)
  for row, message in (
    ({"items": [20]}, "has the item 20; the model reads sequences"),
    ({"items": 3.0}, "is no sequence"),
    ({"items": [1], "user": "a"}, "is no sequence"),
    ([1.0, 2.0], "is no sequence"),
    ("a text", "is a text"),
  ):
    with pytest.raises(requests.Refused, match=f"row 0 {message}"):
      requests.read_rows([row], model)

  # An item that the model does not know is left out.
  lines = ['{"items": [1, 99, 4, 7]}', '{"items": []}']
  for name, text in (
    ("a.jsonl", "\n".join(lines)),
    ("b.txt", "u 1 99 4 7\nv 99\n"),
  ):
    (tmp_path / name).write_text(text)
    output = tmp_path / "out.jsonl"
    assert predict.predict(workdir, str(tmp_path / name), str(output), k=6) == 2
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["labels"] for answer in found] == ids.tolist()

  # The command says what the run does, unless it is told otherwise.
  for more, sees in (((), False), (("--predict.exclude_seen=false",), True)):
    output = tmp_path / "told.jsonl"
    status, _, err = runs.launch_to_end(
      "predict",
      f"--workdir={workdir}",
      f"--input={tmp_path / 'a.jsonl'}",
      f"--output={output}",
      f"--k={ITEMS}",
      *more,
    )
    assert status == 0, err
    first = json.loads(output.read_text().splitlines()[0])
    assert ({1, 4, 7} <= {*first["labels"]}) == sees


def test_an_exported_model_answers_as_the_run(workdir, tmp_path):
  """Also to sequences that are longer than what is read, and to none."""
  export.export(workdir, tmp_path / "exported", k=ITEMS)
  rng = np.random.default_rng(0)
  rows = [
    {"items": rng.integers(0, ITEMS - 3, n).tolist()} for n in (1, 4, 70, 0)
  ]
  found, wanted = (
    xlj.load(d).topk(rows, 3) for d in (tmp_path / "exported", workdir)
  )
  np.testing.assert_array_equal(found[1], wanted[1])
  np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("a.jsonl", '{"items": [1]}\n{"items": [1, -2]}\n'),
    ("b.jsonl", '{"items": [1]}\n{"items": [1.5]}\n'),
    ("c.jsonl", '{"items": [1]}\n{"item": [1]}\n'),
    ("d.jsonl", '{"items": [1]}\n[1, 2]\n'),
    ("e.txt", "u 1 2\nv 1 x\n"),
  ],
)
def test_a_row_that_is_none_is_named(workdir, tmp_path, name, text):
  (tmp_path / name).write_text(text)
  output = tmp_path / "out.jsonl"
  with pytest.raises(errors.DataError, match=f"{name}:2: found"):
    predict.predict(workdir, str(tmp_path / name), str(output))
  found = predict.predict(
    workdir, str(tmp_path / name), str(output), on_error="skip"
  )
  assert found == 2
