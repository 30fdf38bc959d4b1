"""What each field may be: stated for all of them, and refused beyond."""

import contextlib
import math

import pytest

from tests import runs
from xlj import config as config_lib
from xlj.config import checks

TYPES = config_lib.types()
RANGES = config_lib.RANGES
# Text of any kind: where something is, what data are, and what depends on
# other fields.
FREE = {
  "checkpoint.dir",
  "data.cache_dir",
  "data.dir",
  "data.fingerprint",
  "data.sequences",
  "encoder.pretrained",
  "eval.metric",
  "head.loss",
  "head.order",
  "text.pretrained",
  "train.start_from",
}
WRONG = {
  bool: (1, "yes", math.nan),
  int: (1.5, True, "3", (1,), math.nan),
  float: (True, "0.5", (0.5,), 1j),
  str: (3, math.nan, ("relu",)),
  tuple: ((1.5,), (True,), ("1",), ((1,),), 3, "3"),
}


def refusal(name, value):
  """What is said about a value; None if it will do."""
  try:
    checks.each({name: value}, TYPES, config_lib.CHOICES, RANGES)
  except config_lib.ConfigError as error:
    return str(error)
  return None


def test_every_number_has_a_range_and_every_text_choices():
  numbers = {n for n, kind in TYPES.items() if kind in (int, float, tuple)}
  assert RANGES.keys() == numbers
  texts = {name for name, kind in TYPES.items() if kind is str}
  assert texts - config_lib.CHOICES.keys() == FREE
  assert all(map(math.isfinite, (x for r in RANGES.values() for x in r[:2])))


@pytest.mark.parametrize("name", TYPES)
def test_what_is_out_of_bounds_is_refused_by_name(name):
  kind = TYPES[name]
  for value in WRONG[kind]:
    assert (refusal(name, value) or "").startswith(f"{name} is "), value
  if name in config_lib.CHOICES:
    assert f"{name} is 'swoosh'; use one of" in refusal(name, "swoosh")
  if name not in RANGES:
    return
  low, high, above, below = RANGES[name]
  beyond = [low - 1, high + 1 if high < 2**53 else 2 * high, 10**400]
  beyond += [low] if above else []
  beyond += [high] if below else []
  if kind is float:
    beyond += [math.nan, math.inf, -math.inf]
  for value in beyond:
    value = (1, value) if kind is tuple else value
    found = refusal(name, value) or ""
    assert found.startswith(f"{name} is "), value
    assert "must be" in found and len(found) < 200


@pytest.mark.parametrize("name", RANGES)
def test_bounds_resolve_or_are_refused_in_fields(name):
  kind, (low, high, *_) = TYPES[name], RANGES[name]
  values = (low, high, 0, -1, 1, 2**31, 10**30)
  for value in values if kind is not tuple else [(), *zip(values), (1,) * 4]:
    for head in ("dense", "mhc", "mhp"):
      config = config_lib.base()
      config.head.type = head
      with contextlib.suppress(TypeError):  # of ConfigDict, by name
        config.update_from_flattened_dict({name: value})
        with contextlib.suppress(config_lib.ConfigError):
          config_lib.resolve(config, runs.FACTS)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"head.blocks": 40_000}, "head.blocks is 40000 for 30000 labels; give at"),
    ({"train.batch_size": 20_001}, "train.batch_size is 20001 for 20000 rows"),
    ({"eval.ks": (1, 30_001)}, r"eval.ks is \(1, 30001\) for 30000 labels"),
    ({"data.validation": 0.99999}, "data.validation is 0.99999, which leaves"),
    ({"mesh.shape": (2,)}, r"mesh.shape is \(2,\); give two numbers, or none"),
    ({"mesh.shape": (0,)}, r"mesh.shape is \(0,\); each must be at least 1"),
    ({"optim.head.b1": 1.5}, r"optim.head.b1 is 1.5; it must be in \[0, 1\)"),
    ({"train.epochs": math.inf}, "train.epochs is inf; it must be in"),
    ({"train.epochs": -3.0}, "train.epochs is -3.0; it must be at least 0"),
    ({"eval.ks": (1.5,)}, r"eval.ks is \(1.5,\); it must be whole numbers"),
    ({"encoder.activation": "swoosh"}, "encoder.activation is 'swoosh'; use"),
  ],
)
def test_what_is_refused_when_a_config_is_resolved(fields, message):
  config = config_lib.base()
  config.update_from_flattened_dict(fields)
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.resolve(config, runs.FACTS)
