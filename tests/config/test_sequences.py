"""What does not go with sequences is refused, with what to do."""

import pytest

from tests import runs
from xlj.config import checks

CAUSAL = {"encoder__type": "causal", "head__loss": "softmax"}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (CAUSAL, "data.sequences names no file of them; set it"),
    ({"data__sequences": "A", "data__validation": 0.1}, "data.validation 0.1"),
    ({"data__sequences": "A", "data__renumber": True}, "data.renumber True"),
    ({**CAUSAL, "data__sequences": "A", "data__l2": True}, "data.l2 True"),
    (
      {**CAUSAL, "data__sequences": "A", "encoder__dim": 10},
      "encoder.dim is 10 and encoder.heads 4",
    ),
    (
      {
        **CAUSAL,
        "data__sequences": "A",
        "encoder__tied": True,
        "head__dtype": "bfloat16",
      },
      "head.dtype is 'bfloat16'; set it to 'float32'",
    ),
    (
      {
        **CAUSAL,
        "data__sequences": "A",
        "encoder__tied": True,
        "head__sampled": 256,
        "head__loss": "bce",
      },
      "set head.loss=softmax, or head.sampled=0",
    ),
  ],
)
def test_refused(fields, message):
  with pytest.raises(checks.ConfigError) as raised:
    runs.resolved(**fields)
  assert message in str(raised.value)


def test_what_is_decided():
  config = runs.resolved(**CAUSAL, data__sequences="A")
  assert config.data.validation == 0
  assert config.data.weighting == "none" and not config.data.l2
  assert config.train.by_length
  assert config.encoder.sizes.positions == 50
