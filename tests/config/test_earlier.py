"""Configs saved by earlier versions: read, and equal to those of now."""

import json
from pathlib import Path

import pytest

from tests import runs
from xlj import config as config_lib
from xlj.config import heads

# As the version before wrote them, by dotted name: fields of all, and others.
SAVED = json.loads(Path(__file__).with_name("version_1.json").read_text())
COMMON = SAVED.pop("common")
# What the user of each had set.
SMALL = {
  "family": None,
  "head__wide": False,
  "encoder__dim": 8,
  "train__batch_size": 32,
  "train__epochs": None,
  "train__num_steps": 8,
  "checkpoint__every": 4,
  "eval__every": 4,
}
SET = {
  "dense": {"head__wide": True},
  "linear": {
    "family": "linear",
    "encoder__dim": 0,
    "encoder__embedding_dropout": None,
    "head__loss": "bce",
    "head__wide": True,
  },
  "bfloat16_kahan": {
    "head__dtype": "bfloat16",
    "head__correction": "kahan",
    "head__loss": "bce",
  },
  "float8_adagrad": {
    "head__dtype": "float8",
    "optim__head__name": "rowwise_adagrad",
  },
  "prototypes": {"head__prototypes": 2},
  "mhc": {"head__type": "mhc"},
  "mhs": {"head__type": "mhs", "head__hard_groups": 1},
  "mhp": {
    "head__type": "mhp",
    "data__max_labels": 1,
    "predict__propensity_power": 0.0,
  },
  "oltr": {"head__type": "oltr", "head__cosine": True},
  "spherical": {"head__type": "spherical", "head__loss": "z_loss"},
  "elr": {"noisy__method": "elr"},
  "role": {
    "head__loss": "bce",
    "missing__method": "role",
    "missing__positives": 2.0,
  },
}
FACTS = config_lib.DataFacts(
  num_rows=256,
  num_features=64,
  num_labels=60,
  labels_per_row=2.0,
  features_per_row=11.0,
  dense=False,
  kind="counts",
  fingerprint=COMMON["data.fingerprint"],
)


def measure(config):
  """What was measured then."""
  del config
  names = ("weighting", "l2", "feature_norm", "features_per_row")
  found = {name: COMMON[f"data.{name}"] for name in names}
  return config_lib.Measured(**found, effective_features=8.0)


def load(fields, tmp_path):
  nested = {}
  for name, value in (COMMON | fields).items():
    section = nested
    *sections, field = name.split(".")
    for key in sections:
      section = section.setdefault(key, {})
    section[field] = value
  path = tmp_path / "config.json"
  path.write_text(json.dumps(nested))
  return config_lib.load(path)


@pytest.mark.parametrize("name", ["dense", "linear"])
def test_a_run_with_linear_weights_for_everything_is_refused(name, tmp_path):
  with pytest.raises(config_lib.ConfigError, match="train it again"):
    load(SAVED[name], tmp_path)


@pytest.mark.parametrize("name", sorted(SET.keys() - {"dense", "linear"}))
def test_a_run_of_the_version_before_goes_on(name, tmp_path):
  old = load(SAVED[name], tmp_path)
  config_lib.check(old)
  config = runs.make_config("data", **(SMALL | SET[name]))
  now = config_lib.resolve(config, FACTS, measure, begun=old)
  config_lib.check_same_run(old, now, tmp_path)
  # A file written now is read as it is.
  path = tmp_path / "now.json"
  path.write_text(config_lib.to_json(now))
  assert json.loads(path.read_text())["version"] == config_lib.VERSION
  assert config_lib.load(path).to_dict() == now.to_dict()
  assert str(heads.make(old))[:20] == str(heads.make(now))[:20]
  # It goes on without the flags, too.
  again = config_lib.resolve(old, FACTS, measure)
  assert not config_lib.differences(old, again)


def test_what_was_open_by_another_value_has_been_decided(tmp_path):
  fields = {"head.loss": "z_loss", "head.wide": False, "head.z_threshold": 0.0}
  config = load(fields, tmp_path)
  assert config.head.z_threshold > 0
  assert config.head.groups is None  # nothing reads it
  mhc = load(SAVED["mhc"] | {"head.beam": 3}, tmp_path)
  assert (mhc.predict.beam, mhc.head.groups) == (3, (8,))
  assert load(SAVED["mhc"], tmp_path).predict.beam == mhc.head.candidates
  mhp = load(SAVED["mhp"] | {"head.lengths": [4, 4, 4]}, tmp_path)
  assert (mhp.head.digits, mhp.head.lengths) == (3, (4, 4, 4))
  assert not load(SAVED["spherical"], tmp_path).head.use_bias
