"""Runs on what Python has in memory."""

import logging

import numpy as np
import pandas
import pytest

import xlj
from xlj import config as config_lib
from xlj.training import in_memory

TAGS = [["red"], ["blue", "red"], ["blue"]]


def frame(count=60, seed=0):
  """Texts that name their tags."""
  which = np.random.default_rng(seed).integers(0, len(TAGS), count)
  tags = [TAGS[i] for i in which]
  titles = [f"{' and '.join(t)} number {i}" for i, t in enumerate(tags)]
  return pandas.DataFrame({"title": titles, "tags": tags})


@pytest.mark.slow
def test_a_run_on_a_table(tmp_path, caplog):
  config = config_lib.base()
  config.train.epochs = 3.0
  columns = {"labels": "tags", "text": "title"}
  test = frame(20, seed=1)
  run = xlj.train(config, frame(), workdir=tmp_path, test=test, **columns)
  _, ids = run.topk(["blue number 7"], k=1)
  assert run.names(ids) == [["blue"]]
  assert not config.data.dir  # It is the caller's.
  with caplog.at_level(logging.INFO):
    again = xlj.train(config, frame(), workdir=tmp_path, test=test, **columns)
  assert again.step == run.step and "complete" in caplog.text
  with pytest.raises(config_lib.ConfigError, match="has other data, train.js"):
    xlj.train(config, frame(seed=2), workdir=tmp_path, test=test, **columns)
  with pytest.raises(config_lib.ConfigError, match="has other data, test.json"):
    xlj.train(config, frame(), workdir=tmp_path, **columns)
  config.seed = 5
  with pytest.raises(config_lib.ConfigError, match="seed"):
    xlj.train(config, frame(), workdir=tmp_path, test=test, **columns)
  assert {p.name for p in (tmp_path / in_memory.DATA).iterdir()} == {
    "train.jsonl",
    "test.jsonl",
    ".xlj_cache",
  }


def test_a_config_is_named():
  with pytest.raises(config_lib.ConfigError, match="xmcc"):
    xlj.train("xmcc", [{0: 1.0}], ["a"])
