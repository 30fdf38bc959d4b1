"""The open long-tailed head through two stages of training."""

import dataclasses

import numpy as np
import pytest

from tests import runs
from xlj import config as config_lib
from xlj.config import heads
from xlj.data import store
from xlj.inference import predictor
from xlj.open_world import open_set
from xlj.training import train


def resolved(facts=runs.FACTS, **fields):
  return runs.resolved(facts, head__type="oltr", **fields)


def test_open_fields_are_decided():
  head = heads.make(resolved())
  rows = head.labels.label_rows
  assert rows.cosine and not rows.use_bias
  assert 18 < head.scale < 20  # it grows with log L
  assert heads.make(resolved(oltr__scale=16.0)).scale == 16
  few = dataclasses.replace(runs.FACTS, num_labels=100, num_rows=5_000)
  for facts in (few, runs.FACTS):
    heads.make(resolved(facts, train__start_from="stage"))


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"head__loss": "bce"}, "head.loss is 'bce' and head.type is 'oltr'"),
    ({"head__cosine": False}, "head.cosine is False and head.type is 'oltr'"),
    ({"head__wide": True}, "head.type is 'oltr', which needs embeddings"),
    (
      {"oltr__tied": True, "head__dtype": "bfloat16"},
      "oltr.tied is True and head.dtype is 'bfloat16'",
    ),
    ({"oltr__centre_rate": 2.0}, "oltr.centre_rate is 2.0"),
    ({"oltr__margin": -1.0}, "oltr.margin is -1.0"),
    (
      {"oltr__tied": True, "oltr__recentre_every": 1.0},
      "oltr.recentre_every is 1.0, which would replace",
    ),
    ({"range__inter": -1.0}, "range.inter is -1.0"),
    ({"range__intra": 1.0, "range__farthest": 0}, "range.farthest is 0"),
  ],
)
def test_what_does_not_fit_is_refused_by_name(fields, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    resolved(**fields)


@pytest.mark.slow
def test_two_stages(data_dir, tmp_path, use_mesh):
  first, second = tmp_path / "first", tmp_path / "second"
  use_mesh((1, 1))
  fields = {"head__wide": False, "head__order": "frequency"}
  train.train(runs.make_config(data_dir, **fields), first)
  before = predictor.load(first, which="last")

  fields |= {"head__type": "oltr", "train__start_from": str(first)}
  fields |= {"tail__sampler": "class_aware", "checkpoint__every": 4}
  config = runs.make_config(data_dir, **fields)
  whole = tmp_path / "whole"
  use_mesh((2, 4))
  train.train(config, whole)
  runs.stop_after(5, config, second)
  use_mesh((1, 1))
  train.train(config, second)
  losses = [runs.losses(workdir) for workdir in (whole, second)]
  np.testing.assert_allclose(*losses, rtol=1e-3)
  assert np.mean(losses[0][-5:]) < np.mean(losses[0][:5])

  features = store.open_split(data_dir, "test").features.slice_rows(0, 16)
  run = predictor.load(second, which="last")
  _, ids = run.topk(features, 1)
  for by in run.model.head.confidences:
    sure = run.confidence(features, by)
    assert sure.shape == (16,) and np.isfinite(sure).all()
    kept = open_set.rejected(ids[:, 0], sure, np.median(sure))
    assert 0 < (kept < 0).sum() < 16
  assert run.confidence(features).max() <= 1
  assert before.confidence(features).max() <= 1
  with pytest.raises(ValueError, match="the head 'dense' knows"):
    before.confidence(features, "cosine")

  config.head.blocks = 16
  with pytest.raises(config_lib.ConfigError, match="whose head.blocks is 8"):
    train.train(config, tmp_path / "third")
  config.head.blocks, config.encoder.dim = 8, 24
  with pytest.raises(config_lib.ConfigError, match="encoder has other weights"):
    train.train(config, tmp_path / "fourth")
