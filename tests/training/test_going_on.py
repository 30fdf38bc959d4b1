"""Runs that go on once they are complete, and what is said at the end."""

import json
import pathlib
import shlex
import shutil
import sys

from absl import logging
import numpy as np
import pytest

from tests import runs
import xlj
from xlj import config as config_lib
from xlj.config import splits
from xlj.training import closing
from xlj.training import successor
from xlj.training import train

FACTS = runs.FACTS


@pytest.fixture
def said(monkeypatch):
  """What is logged."""
  lines = []
  monkeypatch.setattr(
    logging, "info", lambda text, *values: lines.append(text % values)
  )
  return lines


@pytest.mark.slow
def test_a_complete_run_goes_on_for_longer(data_dir, tmp_path, said):
  config = runs.make_config(data_dir, train__epochs=1.0)
  train.train(config, tmp_path)
  (score,) = [line for line in said if ", held-out rows: P@1 " in line][-1:]
  assert score.startswith("Step 13, ")
  assert said[-1].startswith("The run is complete: 13 steps, ")
  said.clear()
  train.train(config, tmp_path)
  assert "It was complete already: there is nothing to train" in said
  assert said[-1].startswith("The run is complete: 13 steps, ")
  own = config_lib.load(tmp_path / "config.json")
  own.train.epochs = 2.0
  train.train(own, tmp_path)
  steps = [row["step"] for row in runs.records(tmp_path, "train")]
  assert steps == list(range(1, 28))
  found = config_lib.load(tmp_path / "config.json")
  assert (found.train.num_steps, found.optim.from_step) == (27, 13)
  losses = runs.losses(tmp_path)
  assert losses[-1] < losses[12]  # at rates that have fallen to 0 it is equal
  with pytest.raises(ValueError, match="train.epochs: 2.0 there, 1.0 now"):
    train.train(config, tmp_path)


def closed(workdir, *records, step=400, steps=400, **fields):
  config = runs.resolved(**fields)
  config.train.num_steps = steps
  lines = (json.dumps({"time": 0, **record}) + "\n" for record in records)
  (workdir / "metrics.jsonl").write_text("".join(lines))
  return closing.text(workdir, config, FACTS, step)


def test_the_end_says_the_score_and_the_next_commands(tmp_path, monkeypatch):
  workdir, data = tmp_path / "a run", tmp_path / "data"
  workdir.mkdir()
  data.mkdir()
  (data / "test.txt").write_text("1 1 1\n0 0:1\n")
  monkeypatch.setattr(sys, "argv", ["launch/train.py"])
  text = closed(
    workdir,
    {"step": 200, "kind": "eval", "P@1": 50.0},
    {"step": 400, "kind": "eval", "P@1": 40.0},
    {"step": 400, "kind": "train", "loss": 1.5},
    data__dir=str(data),
    train__batch_size=95,
  )
  assert "P@1 40.00 on held-out rows; the best checkpoint is that of" in text
  assert "step 200, with 50.00" in text
  assert f"{workdir}/report.html" in text
  commands = [
    shlex.split(line.split(":", 1)[1])
    for line in text.splitlines()
    if "python" in line
  ]
  assert commands == [
    ["python", "launch/evaluate.py", f"--workdir={workdir}"],
    [
      "python",
      "launch/predict.py",
      f"--workdir={workdir}",
      f"--input={data}/test.txt",
      f"--output={workdir}/predictions.tsv",
    ],
    [
      "python",
      "launch/train.py",
      f"--workdir={workdir}",
      "--config.train.epochs=3.8",
    ],
  ]


def test_without_held_out_rows_the_end_says_the_loss(tmp_path):
  text = closed(
    tmp_path,
    {"step": 400, "kind": "train", "loss": 1.5},
    data__dir=str(tmp_path),
    data__validation=0.0,
  )
  assert "loss 1.5, and no rows held out (data.validation=0)" in text
  assert "evaluate" not in text and "--input=FILE" in text


def test_a_run_without_steps_has_none_to_go_on_with(tmp_path):
  text = closed(tmp_path, step=0, steps=0, data__dir=str(tmp_path))
  assert "0 steps, 0 epochs" in text and "go on" not in text


def test_a_run_that_is_stopped_says_how_to_go_on(tmp_path):
  text = closed(tmp_path, step=7)
  assert text.startswith("Stopped: step 7 of 400 is saved; the same command")


# --- from another run --------------------------------------------------------


@pytest.fixture(scope="module")
def complete(data_dir, tmp_path_factory):
  """A run with its checkpoints elsewhere."""
  workdir, place = map(tmp_path_factory.mktemp, ("complete", "checkpoints"))
  fields = {"train__epochs": 1.0, "checkpoint__dir": str(place)}
  train.train(runs.make_config(data_dir, **fields), workdir)
  return workdir


@pytest.fixture(scope="module")
def other_data(data_dir, tmp_path_factory):
  """Half of the training rows, with the same labels and features."""
  directory = tmp_path_factory.mktemp("other")
  for name in ("test.txt", "labels.txt"):
    shutil.copy(data_dir / name, directory)
  header, *rows = (data_dir / "train.txt").read_text().splitlines(True)
  _, *sizes = header.split()
  rows = rows[: len(rows) // 2]
  text = f"{len(rows)} {' '.join(sizes)}\n{''.join(rows)}"
  (directory / "train.txt").write_text(text)
  return directory


def own_config(workdir, data_dir):
  config = config_lib.load(workdir / "config.json")
  config.data.dir, config.train.epochs = str(data_dir), 2.0
  return config


@pytest.mark.slow
def test_a_run_goes_on_from_another_one_on_other_data(
  complete, other_data, tmp_path
):
  for own in (complete, tmp_path):  # The same command again goes on, too.
    config = own_config(own, other_data)
    config = successor.begin(config, complete, tmp_path)
    train.train(config, tmp_path)
  steps = [row["step"] for row in runs.records(tmp_path, "train")]
  assert steps == list(range(14, 27))  # 428 rows in batches of 64, twice
  assert runs.losses(tmp_path)[0] < 0.95 * runs.losses(complete)[0]
  found = config_lib.load(tmp_path / "config.json")
  assert config_lib.num_epochs(found) == 2
  rows = [{3: 2.0, 40: 1.0}]
  old, new = (xlj.load(d).topk(rows)[0] for d in (complete, tmp_path))
  assert not np.allclose(old, new)
  place = pathlib.Path(config_lib.load(complete / "config.json").checkpoint.dir)
  assert not (place / "26").exists()  # which is the other run's alone
  assert (tmp_path / "checkpoints" / "26").is_dir()


@pytest.mark.slow
def test_near_rows_weigh_what_the_run_has_learned(
  complete, other_data, tmp_path
):
  config = own_config(complete, other_data)
  config.data.validation = 0.0
  config.train.epochs = 0.1
  config = successor.begin(config, complete, tmp_path)
  train.train(config, tmp_path)
  run = xlj.load(tmp_path)
  wanted = run.weighting(splits.open_split(config).features)
  np.testing.assert_allclose(run.neighbours.features.values, wanted.values)


@pytest.mark.slow
def test_what_does_not_go_with_the_other_run_is_refused(
  complete, other_data, tmp_path
):
  output = tmp_path / "run"
  wider = own_config(complete, other_data)
  wider.encoder.dim = 32
  with pytest.raises(ValueError, match="encoder.dim is 16 there and 32 here"):
    successor.begin(wider, complete, output)
  data = tmp_path / "data"
  shutil.copytree(other_data, data)
  names = (data / "labels.txt").read_text().splitlines()
  names[3] = "another"
  (data / "labels.txt").write_text("\n".join(names) + "\n")
  with pytest.raises(ValueError, match="label 3 is .* there and 'another' in"):
    successor.begin(own_config(complete, data), complete, output)
  (data / "train.txt").write_text("2 501 700\n1 3:1\n2 500:1\n")
  with pytest.raises(ValueError, match="501 features, expected 500"):
    successor.begin(own_config(complete, data), complete, output)
  (data / "train.txt").write_text("2 500 701\n1 3:1\n700 5:1\n")
  with pytest.raises(ValueError, match="701 label ids, expected at most 700"):
    successor.begin(own_config(complete, data), complete, output)
  assert not output.exists()
