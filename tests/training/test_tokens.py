"""A transformer on tokens of texts: what is stopped repeats bit for bit."""

import time

import jax
import numpy as np
import pytest

from tests import processes
from tests import runs
from tests.training import test_dual
import xlj
from xlj.runs import directory
from xlj.training import train

FIELDS = {
  "data.text": "tokens",
  "data.validation": 0.1,
  "text.num_tokens": 400,
  "text.max_length": 16,
  "encoder.type": "transformer",
  "encoder.sizes.width": 16,
  "encoder.sizes.depth": 2,
  "encoder.sizes.heads": 2,
  "encoder.sizes.hidden": 32,
  "encoder.sizes.positions": 16,
  "encoder.hidden_dropout": 0.1,
  "encoder.layer_decay": 0.9,
  "head.blocks": 8,
  "train.batch_size": 32,
  "train.num_steps": 16,
  "train.log_every": 1,
  "checkpoint.every": 3,
}


@pytest.fixture(scope="module")
def texts_dir(tmp_path_factory):
  return test_dual.write_texts(tmp_path_factory.mktemp("texts"))


def make_config(texts_dir, **fields):
  config = runs.config_file("text").get_config()
  config.update_from_flattened_dict({"data.dir": str(texts_dir)} | FIELDS)
  return config


@pytest.mark.slow
def test_an_interrupted_run_repeats_bit_for_bit(texts_dir, tmp_path, use_mesh):
  use_mesh((2, 4))
  config = make_config(texts_dir)
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  train.train(config, whole)
  runs.stop_after(steps=7, config=config, workdir=parts)
  train.train(config, parts)
  assert runs.records(parts, "train") == runs.records(whole, "train")
  states = [
    directory.load(workdir, which="last", training=True).trees
    for workdir in (parts, whole)
  ]
  jax.tree.map(np.testing.assert_array_equal, *states)
  losses = runs.losses(whole)
  assert np.mean(losses[-4:]) < np.mean(losses[:4])
  run = xlj.load(whole)
  assert len(run.names(run.topk(["w1 w2", "w2 w1 w1"], k=3)[1])[0]) == 3
  # The order of tokens counts.
  embedded = run.embed(["w1 w2 w3", "w3 w2 w1"])
  assert np.abs(embedded[0] - embedded[1]).max() > 1e-4


@pytest.mark.slow
def test_two_processes_that_are_killed_repeat_bit_for_bit(texts_dir, tmp_path):
  arguments = [
    f"--config={runs.ROOT}/configs/text.py",
    f"--config.data.dir={texts_dir}",
    *(f"--config.{name}={value}" for name, value in FIELDS.items()),
  ]
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  processes.succeed(
    processes.launch("train", 2, *arguments, f"--workdir={whole}")
  )
  job = processes.launch(
    *("train", 2, *arguments, f"--workdir={parts}"), peer_timeout=5.0
  )
  for _ in range(1200):
    if (parts / "metrics.jsonl").exists() and len(runs.losses(parts)) > 4:
      break
    time.sleep(0.1)
  job[1].kill()
  statuses, _, _ = processes.finish(job)
  assert all(statuses)
  assert len(runs.losses(parts)) < 16
  processes.succeed(
    processes.launch("train", 2, *arguments, f"--workdir={parts}")
  )
  assert runs.losses(parts) == runs.losses(whole)
