"""What is decided from the data, once, and what a run that goes on keeps."""

import json

import pytest

from tests import runs
from xlj import config as config_lib
from xlj.training import preparation


def make_config(data_dir, **fields):
  return runs.make_config(
    data_dir, head__type="mhc", head__wide=False, **fields
  )


def test_a_run_that_goes_on_keeps_what_was_decided(data_dir, tmp_path):
  config, _ = preparation.prepare(make_config(data_dir), tmp_path)
  path = tmp_path / config_lib.FILE
  saved = json.loads(config_lib.to_json(config))
  saved["head"]["groups"] = [24]  # as an earlier rule would have it
  saved["data"]["feature_norm"] = saved["encoder"]["input_scale"] = 2.0
  path.write_text(json.dumps(saved))
  again, _ = preparation.prepare(make_config(data_dir), tmp_path)
  assert config.head.groups != again.head.groups == (24,)
  assert again.data.feature_norm == again.encoder.input_scale == 2.0
  config_lib.check_same_run(config_lib.load(path), again, tmp_path)
  # What is given counts, and another head is another run.
  given, _ = preparation.prepare(
    make_config(data_dir, head__groups=(32,)), tmp_path
  )
  assert given.head.groups == (32,)
  dense, _ = preparation.prepare(runs.make_config(data_dir), tmp_path)
  with pytest.raises(config_lib.ConfigError, match="head.type: 'mhc' there"):
    config_lib.check_same_run(config_lib.load(path), dense, tmp_path)


def test_a_config_is_checked_before_features_are_read(data_dir, monkeypatch):
  def measure(*_):
    raise AssertionError("features were read")

  monkeypatch.setattr(preparation, "_statistics", measure)
  config = make_config(data_dir, head__candidates=0)
  with pytest.raises(config_lib.ConfigError, match="head.candidates is 0"):
    preparation.prepare(config)


def test_what_was_measured_is_in_the_config(data_dir):
  config, data = preparation.prepare(make_config(data_dir))
  assert config.data.weighting == data.weighting.kind
  assert config.data.l2 == data.weighting.l2
  scale = config.data.features_per_row**0.5 / config.data.feature_norm
  assert config.encoder.input_scale == pytest.approx(scale)
