"""The section `dual`: what does not go together is refused by name."""

import dataclasses

import pytest

from tests import runs
from xlj import config as config_lib

TEXTS = dataclasses.replace(runs.FACTS, text="words")
FIELDS = {"family": "embedding", "data__text": "words"}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"data__text": ""}, "data are no texts"),
    ({"family": "linear"}, "there is no encoder"),
    ({"dual__least_margin": 0.4}, "at most dual.margin, 0.3"),
    ({"dual__head": False, "head__type": "oltr"}, "head.type='dense'"),
    ({"dual__loss": "softmax", "dual__hardest": 3}, "does not read"),
    ({"dual__refresh": 5}, "dual.negatives=0 does not read"),
  ],
)
def test_what_does_not_go_together(fields, message):
  fields = FIELDS | {"dual__loss": "triplet"} | fields
  facts = TEXTS if fields["data__text"] else runs.FACTS
  with pytest.raises(config_lib.ConfigError, match=message):
    runs.resolved(facts, **fields)


def test_scores_are_cosines_where_the_head_does_not_learn():
  fields = FIELDS | {"family": "network", "dual__loss": "softmax"}
  learned = runs.resolved(TEXTS, **fields)
  config = runs.resolved(TEXTS, **fields, dual__head=False)
  for found in (learned, config):
    assert found.head.init == "label_text"
    assert found.dual.temperature == 0.05
  assert learned.head.prior_bias and learned.predict.propensity_power
  assert not config.head.prior_bias and not config.predict.propensity_power
  assert not config.neighbours.count
