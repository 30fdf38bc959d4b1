"""Which data a config means."""

import numpy as np
import pytest

from tests import runs
from xlj import config as config_lib
from xlj.config import splits


def make_config(**fields):
  config = config_lib.base()
  config.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in fields.items()}
  )
  return config


def test_files(tmp_path):
  config = make_config(data__dir=str(runs.make_data(tmp_path / "data")))
  split = splits.open_split(config, "test")
  assert split.num_labels == runs.SPEC.num_labels
  assert split.num_rows == runs.SPEC.num_test
  other = make_config(data__dir="elsewhere")
  same = splits.open_split(other, "test", data_dir=config.data.dir)
  assert same.fingerprint == split.fingerprint
  config.data.num_labels = split.num_labels
  assert len(splits.label_names(config)) == split.num_labels


def test_text(tmp_path):
  (tmp_path / "tiny.train.txt").write_text("a b a\n<unk>\n")
  config = make_config(data__dir=str(tmp_path), data__context=2)
  split = splits.open_split(config)
  assert split.features.shape == (6, 8)
  names = splits.label_names(config)
  words = [names[i] for i in split.labels.indices]
  assert words == ["a", "b", "a", "<eos>", "<unk>", "<eos>"]


def test_generated_rows():
  config = make_config(
    data__generator__rows=100,
    data__generator__test_rows=9,
    data__generator__factors=(3, 4),
    data__generator__features=5,
  )
  split = splits.open_split(config)
  assert (split.num_rows, split.num_features, split.num_labels) == (100, 5, 12)
  assert splits.open_split(config, "test").features[:].shape == (9, 5)
  assert splits.label_names(config) is None
  again = splits.open_split(config)
  np.testing.assert_array_equal(again.features[:], split.features[:])


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"data__dir": "somewhere"}, "needs no directory .somewhere."),
    ({"data__context": 3}, "no data.context .3."),
    ({"data__generator__factors": ()}, "data.generator: .*positive"),
  ],
)
def test_contradictions_are_refused(fields, message):
  right = {"data__generator__rows": 9, "data__generator__factors": (2,)}
  config = make_config(**(right | fields))
  with pytest.raises(config_lib.ConfigError, match=message):
    splits.open_split(config)


def test_how_files_are_read(tmp_path):
  (tmp_path / "train.txt").write_text("1 2 3\n0 1:1 2:2 2:3\n")
  config = make_config(
    data__dir=str(tmp_path), data__zero_based=False, data__duplicates="sum"
  )
  split = splits.open_split(config)
  assert split.features.to_scipy().toarray().tolist() == [[1, 5]]
