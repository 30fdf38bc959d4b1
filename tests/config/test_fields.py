"""Which fields are read: what is set is used, or refused by name."""

import contextlib
import dataclasses

from absl import flags
from ml_collections import config_flags
import pytest

from tests import runs
from xlj import config as config_lib
from xlj.config import checks
from xlj.config import heads
from xlj.config import options

FIELDS = config_lib.field_names(config_lib.base())
DEFAULT = dict(checks.flatten(config_lib.base()))
# Facts, and what says where the data are.
FACTS = (
  *("data.num_", "data.dense", "data.fingerprint", "data.single_label"),
  "data.named_labels",
)


def other(name):
  """A value of a field that is not its default."""
  section = config_lib.base()
  *sections, field = name.split(".")
  for key in sections:
    section = section[key]
  allowed = config_lib.CHOICES
  if name in allowed:
    return next(v for v in allowed[name] if v != section[field])
  kind, value = section.get_type(field), section[field]
  if kind is tuple:
    return (8,)
  if kind is str:
    return "x"
  if kind is bool:
    return not value
  near = kind((value or 0) + 1)
  return near if near in config_lib.RANGES[name] else 0.5


@pytest.mark.parametrize("head", heads.HEADS)
def test_a_field_that_a_head_does_not_read_cannot_be_set(head):
  facts = dataclasses.replace(runs.FACTS, num_labels=3_000)
  fields = {"head.type": head, "predict.propensity_power": 0.0}
  fields["encoder.dim"] = 8
  config = config_lib.base()
  config.update_from_flattened_dict(fields)
  resolved = config_lib.resolve(config, facts)
  values = dict(checks.flatten(resolved))
  unread = options.unread(config_lib.SWITCHES, values)
  assert len(unread) > 30
  for name in unread:
    assert values[name] == DEFAULT[name]  # no rule fills it
    config = config_lib.base()
    config.update_from_flattened_dict(fields | {name: other(name)})
    with pytest.raises(config_lib.ConfigError) as refusal:
      config_lib.resolve(config, facts)
    assert str(refusal.value).startswith(f"{name} is ")
    assert "does not read; leave it out" in str(refusal.value)
  for name in set(FIELDS) - unread.keys() - fields.keys() - {"family"}:
    if name.startswith(FACTS):
      continue
    assert values[name] is not None, name
    config = config_lib.base()
    value = other(name)
    config.update_from_flattened_dict(fields | {name: value})
    with contextlib.suppress(config_lib.ConfigError):  # it is not ignored
      kept = dict(checks.flatten(config_lib.resolve(config, facts)))[name]
      assert kept == checks.plain(value), name


@pytest.mark.parametrize(
  "fields, message",
  [
    (
      {"head.type": "mhp", "head.dtype": "bfloat16"},
      "head.dtype is 'bfloat16', which head.type='mhp' does not read; leave",
    ),
    (
      {"head.type": "mhp", "head.prior_bias": True},
      "head.prior_bias is True, which head.type='mhp'",
    ),
    (
      {"head.use_bias": False, "head.prior_bias": True},
      "head.prior_bias is True, which head.use_bias=False",
    ),
    (
      {"head.correction": "kahan"},
      "head.correction is 'kahan', which head.dtype='float32'",
    ),
    (
      {"head.dtype": "float8", "head.kahan_labels": 9},
      "head.kahan_labels is 9, which head.correction='none'",
    ),
    (
      {"head.gramian_weight": 2.0},
      "head.gramian_weight is 2.0, which head.loss='softmax'",
    ),
    ({"oltr.tied": True}, "oltr.tied is True, which head.type='dense'"),
    (
      {"head.type": "oltr", "oltr.tied": True, "oltr.centre_rate": 0.1},
      "oltr.centre_rate is 0.1, which oltr.tied=True",
    ),
    ({"encoder.stages": 2}, "encoder.stages is 2, which encoder.type='bag'"),
    (
      {"family": "linear", "encoder.scale": 3.0},
      "encoder.scale is 3.0, which encoder.dim=0",
    ),
    (
      {"missing.smoothing": 0.2},
      "missing.smoothing is 0.2, which missing.method='an'",
    ),
    ({"tail.beta": 0.5}, "tail.beta is 0.5, which tail.weights='none'"),
    ({"range.margin": 2.0}, "range.margin is 2.0, which range.inter=0.0"),
    (
      {"optim.head.name": "sgd", "optim.head.b1": 0.5},
      "optim.head.b1 is 0.5, which optim.head.name='sgd'",
    ),
    (
      {"data.generator.factors": (3, 4)},
      r"data.generator.factors is \(3, 4\), which data.generator.rows=0",
    ),
    # 0 and () are values; what is open is None.
    ({"head.type": "mhc", "head.groups": ()}, r"head.groups is \(\); give"),
    (
      {"head.type": "mhc", "head.candidates": 0},
      "head.candidates is 0; it must be at least 1",
    ),
    (
      {"head.type": "mhc", "predict.beam": 0},
      "predict.beam is 0; it must be at least 1",
    ),
    (
      {"head.type": "mhs", "head.sample_groups": 0},
      "head.sample_groups is 0; it must be at least 1",
    ),
    ({"head.type": "oltr", "oltr.scale": 0.0}, "oltr.scale is 0.0; it must"),
    (
      {"head.prototypes": 2, "head.prototype_labels": 0},
      "head.prototype_labels is 0; it must be at least 1",
    ),
    (
      {
        "missing.method": "role",
        "head.loss": "bce",
        "missing.positives": 2.0,
        "missing.remembered": 0,
      },
      "missing.remembered is 0; it must be at least 1",
    ),
    # What does not go with a head.
    (
      {"head.type": "mhs", "head.loss": "bce"},
      "head.loss is 'bce'; use one of",
    ),
    (
      {"head.type": "mhs", "head.hard_groups": 999},
      "head.hard_groups is 999; it must be at least 0 and at most",
    ),
    (
      {"head.type": "mhc", "head.dtype": "float8", "head.correction": "kahan"},
      "head.correction is 'kahan', which head.type='mhc' does not have",
    ),
    (
      {"head.type": "mhp", "head.components": 2, "head.loss": "bce"},
      "head.components is 2, and head.loss 'bce'",
    ),
    (
      {"head.type": "mhp", "head.lengths": (200, 200), "head.digits": 3},
      "head.digits 3; set one of them",
    ),
  ],
)
def test_what_nothing_reads_is_refused(fields, message):
  config = config_lib.base()
  base = {"family": "embedding", "predict.propensity_power": 0.0}
  config.update_from_flattened_dict(base | fields)
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.resolve(config, runs.FACTS)


def test_values_that_were_taken_for_open_are_kept():
  z = runs.resolved(head__loss="z_loss", head__z_threshold=0.0)
  assert z.head.z_threshold == 0
  with pytest.raises(
    config_lib.ConfigError, match=r"encoder.image is \(\) and"
  ):
    facts = dataclasses.replace(
      runs.FACTS, dense=True, kind="dense", num_features=12, image=(2, 2, 3)
    )
    runs.resolved(facts, encoder__type="vit", encoder__image=())


@pytest.mark.parametrize(
  "text, value",
  [("64,4096", (64, 4096)), ("(64,)", (64,)), ("1024", (1024,)), ("()", ())],
)
def test_open_tuples_can_be_given_as_flags(text, value, monkeypatch):
  values = flags.FlagValues()
  argv = ["program", f"--config.head.groups={text}"]
  monkeypatch.setattr("sys.argv", argv)  # where overrides are looked for
  config_flags.DEFINE_config_dict(
    "config", config_lib.base(), flag_values=values
  )
  values(argv)
  assert values.config.head.groups == value
  assert values.config.head.lengths is None


def test_predictions_can_be_changed():
  config = runs.resolved(head__type="mhc")
  changed = config_lib.with_predict(
    config, {"propensity_power": 0.0, "beam": None}
  )
  assert changed.predict.propensity_power == 0
  assert changed.predict.beam == config.predict.beam
  assert config.predict.propensity_power == 0.5
  for fields, message in (
    ({"power": 1.0}, "no config field 'predict.power'; did you mean"),
    ({"beam": 0}, "predict.beam is 0; it must be at least 1"),
    ("beam", "predict is 'beam'; give a dict of its fields"),
  ):
    with pytest.raises(config_lib.ConfigError, match=message):
      config_lib.with_predict(config, fields)
  dense = runs.resolved()
  with pytest.raises(config_lib.ConfigError, match="predict.beam is 3, which"):
    config_lib.with_predict(dense, {"beam": 3})
