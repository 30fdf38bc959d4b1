"""What is decided from the data, once, and what a run that goes on keeps."""

import json

import numpy as np
import pytest

from tests import runs
from xlj import config as config_lib
from xlj.data import csr as csr_lib
from xlj.data import statistics
from xlj.data import store
from xlj.data import weighting
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

  monkeypatch.setattr(statistics, "load_or_compute", measure)
  config = make_config(data_dir, head__candidates=0)
  with pytest.raises(config_lib.ConfigError, match="head.candidates is 0"):
    preparation.prepare(config)


def test_what_was_measured_is_in_the_config(data_dir):
  config, data = preparation.prepare(make_config(data_dir))
  assert config.data.weighting == data.weighting.kind
  assert config.data.l2 == data.weighting.l2
  scale = config.data.features_per_row**0.5 / config.data.feature_norm
  assert config.encoder.input_scale == pytest.approx(scale)


@pytest.mark.parametrize("dense", [False, True])
def test_how_many_features_carry_a_row(dense):
  rng = np.random.default_rng(0)
  x = rng.gamma(1, size=(50, 20)) * (rng.random((50, 20)) < 0.3)
  x[3] = 0  # counts for nothing
  x[4] = np.eye(20)[7] * 3  # one feature
  x = x.astype(np.float32)
  columns = [np.flatnonzero(row) for row in x]
  sparse = csr_lib.Csr.from_rows(columns, 20, [row[row != 0] for row in x])
  split = store.Split(
    features=x if dense else sparse,
    labels=sparse,
    filter=None,
    name="",
    fingerprint="",
  )
  norm, per_row, effective = preparation._size(
    split, weighting.Weighting("none", l2=False)
  )
  squares = x.astype(np.float64) ** 2
  some = squares.any(1)
  carry = squares.sum(1)[some] ** 2 / (squares**2).sum(1)[some]
  assert effective == pytest.approx(np.prod(carry) ** (1 / 49))
  assert 1 < effective < per_row
  assert per_row == pytest.approx((x != 0).sum() / 50)
  assert norm == pytest.approx(squares.sum(1).mean() ** 0.5)
