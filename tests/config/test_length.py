"""How long a run is, and that it may grow."""

import dataclasses

import ml_collections
import pytest

from tests import runs
from xlj import config as config_lib
from xlj.config import families
from xlj.config import optim

BEGUN = runs.resolved(train__epochs=2.0, train__batch_size=100)


def continued(own, **fields):
  """The config of a run that goes on, begun as `BEGUN` was."""
  if own:
    config = ml_collections.ConfigDict(BEGUN.to_dict())
  else:
    config = config_lib.base()
    config.train.batch_size, config.train.epochs = 100, 2.0
  for name, value in fields.items():
    config.train[name] = value
  config, begun = config_lib.reopened(config, BEGUN)
  return config_lib.resolve(config, runs.FACTS, begun=begun)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("asked", [{"epochs": 3.0}, {"num_steps": 600}])
def test_a_run_may_become_longer(own, asked):
  assert BEGUN.train.num_steps == 400
  config = continued(own, **asked)
  assert (config.train.num_steps, config_lib.num_epochs(config)) == (600, 3)
  if own or "epochs" in asked:
    assert config.train.epochs == 3
  config_lib.check_same_run(BEGUN, config, "x")


@pytest.mark.parametrize("own", [True, False])
def test_a_run_may_not_become_shorter(own):
  config_lib.check_same_run(BEGUN, continued(own), "x")
  with pytest.raises(config_lib.ConfigError, match="train.epochs: 2.0 there"):
    config_lib.check_same_run(BEGUN, continued(own, epochs=1.0), "x")


def test_nothing_else_may_change_when_it_grows():
  config = continued(True, epochs=3.0)
  config.head.blocks *= 2
  with pytest.raises(config_lib.ConfigError, match="head.blocks"):
    config_lib.check_same_run(BEGUN, config, "x")


def test_epochs_follow_from_steps():
  config = runs.resolved(train__num_steps=50, train__batch_size=100)
  assert config.train.epochs == config_lib.num_epochs(config) == 0.25


def test_the_schedule_begins_anew_where_a_run_goes_on():
  config = runs.resolved(
    train__num_steps=300,
    optim__warmup=0.1,
    optim__decay="linear",
    optim__decay_to=0.0,
  )
  part = config.optim.head
  part.learning_rate = 1.0
  config.optim.from_step = 200
  rate = optim.schedule_of(config, part)
  assert (rate(200), rate(205), rate(210), rate(300)) == (0, 0.5, 1, 0)


@pytest.mark.parametrize(
  "facts,arguments,family,why",
  [
    ({"num_labels": 9}, (), "network", "for 9 labels, which are no more than"),
    ({}, (), "linear", "more than 2,048, and sparse features: at most"),
    ({"dense": True}, (), "embedding", "and dense features"),
    ({}, ("mhc",), "embedding", "a head without linear weights, 'mhc'"),
    (
      {"num_rows": 10**9, "num_features": 10**6},
      (),
      "embedding",
      "too many for linear weights",
    ),
    ({}, ("dense", "vit"), "image", "for the encoder 'vit'"),
  ],
)
def test_a_family_is_chosen_for_a_reason(facts, arguments, family, why):
  facts = dataclasses.replace(runs.FACTS, **facts)
  assert families.choose(facts, *arguments) == family
  assert why in families.reason(family, facts, *arguments)
  other = "image" if family != "image" else "network"
  assert "the config asks" in families.reason(other, facts, *arguments)
