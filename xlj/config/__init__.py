"""Checked configs: what a user asked for, and what the data makes of it.

A config is an `ml_collections.ConfigDict`. Fields that are None are decided
here from facts about the data set, so that a resolved config has no open
field; it is saved with the run and in every checkpoint.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import difflib
import functools
import json
import math
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import data
from xlj.config import dual
from xlj.config import earlier
from xlj.config import encoders
from xlj.config import families
from xlj.config import fusion
from xlj.config import heads
from xlj.config import neighbours
from xlj.config import optim
from xlj.config import options
from xlj.config import remedies
from xlj.config import text
from xlj.config import training

VERSION = 4  # of what is saved; 1 was not said
FILE = "config.json"
_LATER = "data.effective_features"  # a fact that earlier versions did not know
# Fields that may differ between a run and its continuation: they do not
# change what is learned.
_FREE = (
  "data.dir",
  "data.cache_dir",
  "data.threads",
  "mesh.shape",
  "head.chunk_bytes",
  "predict.beam",
  "head.kernels",
  "train.precision",
  "train.log_every",
  "eval.ks",
  "eval.every",
  "checkpoint.every",
  "checkpoint.keep",
  "checkpoint.keep_every",
  "checkpoint.dir",
  "train.skip_nonfinite",
  "train.check_room",
  "data.verify",
  _LATER,  # what is made of it is compared
)
_LENGTH = ("train.epochs", "train.num_steps", "optim.from_step")


Config = checks.Config
ConfigError = checks.ConfigError
DataFacts = families.DataFacts
ORDERS = heads.ORDERS
num_epochs = training.num_epochs
reopened = training.reopened
Measured = data.Measured
family_reason = families.reason

# In the order in which open fields are decided.
PARTS = (
  *(data, text, encoders, dual, heads, remedies, optim, training),
  *(neighbours, fusion),
)
SWITCHES = sum((part.SWITCHES for part in PARTS), ())
CHOICES: dict[str, Sequence[str]] = {"family": families.FAMILIES}
RANGES: checks.Ranges = {"seed": checks.Range(0)}
for _part in PARTS:
  CHOICES |= _part.CHOICES
  RANGES |= _part.RANGES
_DECIDING = frozenset(switch.field for switch in SWITCHES)


def base() -> ml_collections.ConfigDict:
  """The default config: every field, with None for "decide from the data"."""
  fields: options.Fields = {
    "seed": 0,  # of all that is drawn: weights, order of examples, dropout
    # Whose rules fill open fields; see xlj.config.families
    "family": config_dict.placeholder(str),
  }
  for part in PARTS:
    fields |= part.fields()
  return ml_collections.ConfigDict(_nested(fields))


def parse_arg(
  arg: str | None,
  choices: Sequence[str],
  **defaults: str | int | float | tuple[str, ...],
) -> dict[str, Any]:
  """Parses what follows the colon in `--config=file.py:NAME,key=value`.

  Args:
    arg: The text, e.g. "bibtex,objective=psp"; may be empty.
    choices: Names that may come first.
    **defaults: Keys that may follow, and their values if they do not. A number
      is of the type that is wanted; of several texts, which are all that there
      are, the first is the default.

  Returns:
    `defaults` with the given values, and `name`, "" if there is none.

  Raises:
    ConfigError: On an unknown name, key or value.
  """
  found: dict[str, Any] = {"name": ""}
  for key, value in defaults.items():
    found[key] = value[0] if isinstance(value, tuple) else value
  for i, part in enumerate(filter(None, (arg or "").split(","))):
    key, equals, text = part.partition("=")
    if not equals and i == 0 and key in choices:
      found["name"] = key
    elif equals and key in defaults:
      found[key] = _parsed(key, text, defaults[key])
    else:
      raise ConfigError(
        f"{part!r} is not known here; names: {', '.join(choices) or 'none'};"
        f" keys: {', '.join(defaults) or 'none'}"
      )
  return found


def _parsed(key: str, text: str, default: Any) -> Any:
  """The value of a key, of the kind of its default."""
  if isinstance(default, tuple):
    if text not in default:
      known = [name for name in default if name]
      raise ConfigError(f"{key}={text}; use {' or '.join(known)}")
    return text
  if isinstance(default, str):
    return text
  try:
    value = type(default)(text)
  except ValueError:
    value = math.nan
  if not abs(value) < 2**62:
    kind = "whole number" if isinstance(default, int) else "number"
    raise ConfigError(f"{key}={text} is not a {kind}")
  return value


def num_ids(config: ml_collections.ConfigDict) -> int:
  """How many label ids the data of a resolved config have.

  Those of deleted and merged labels, which have no row, are among them (see
  `xlj.labels`).
  """
  return config.data.num_ids or config.data.num_labels


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
  """Fields that differ between two configs and matter to what is learned.

  Args:
    old: One config, nested.
    new: The other.

  Returns:
    Dotted field name to the two values; a missing one is None. Fields that
    neither reads are left out.
  """
  flat_old, flat_new = (
    dict(checks.flatten(old)),
    dict(checks.flatten(new)),
  )
  free = options.unread(SWITCHES, flat_old).keys()
  free &= options.unread(SWITCHES, flat_new).keys()
  return {
    name: (flat_old.get(name), flat_new.get(name))
    for name in sorted(flat_old.keys() | flat_new.keys())
    if flat_old.get(name) != flat_new.get(name)
    and name not in _FREE
    and name not in free
  }


def resolve(
  config: ml_collections.ConfigDict,
  facts: families.DataFacts,
  measure: data.Measure | None = None,
  begun: ml_collections.ConfigDict | None = None,
) -> ml_collections.ConfigDict:
  """Decides the open fields from the data and checks all of them.

  Args:
    config: A config with the fields of `base()`; None where open.
    facts: About the training split.
    measure: Reads the features, once all that does not depend on them is
      decided and checked; by default they are taken to have length 1.
    begun: The config of the run that goes on, if one does: what was decided
      there stays.

  Returns:
    A new config, whose only open fields are those that nothing reads.

  Raises:
    ConfigError: If a field cannot be used; the message names it.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  check_each(config)
  data.state_facts(config, facts)
  if begun is not None and _of_a_kind(begun, config):
    _fill(config, dict(_raw(begun)))
  if config.family is None:
    config.family = families.choose(
      facts, config.head.type, config.encoder.type
    )
  _decide(config, facts)
  check(config)  # before the data are read
  _fill(config, data.measured(config, facts, measure))
  for part in (encoders, heads, optim):
    _fill(config, part.measured(config))
  check(config)
  return config


def check_each(config: ml_collections.ConfigDict) -> None:
  """Refuses values that a field can never have.

  Args:
    config: Resolved or not: open fields pass.

  Raises:
    ConfigError: Naming the field, its value and what it may be.
  """
  checks.each(dict(_raw(config)), types(), CHOICES, RANGES)


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses values that cannot be used.

  Args:
    config: A resolved config.

  Raises:
    ConfigError: Naming the field, its value and what it may be.
  """
  check_each(config)
  values, default = dict(_raw(config)), dict(_raw(base()))
  for name, why in options.unread(SWITCHES, values).items():
    if values[name] != default[name]:
      raise ConfigError(
        f"{name} is {values[name]!r}, which {why} does not read; leave it out"
      )
  for part in (data, text, encoders, dual, heads, remedies, training):
    part.check(config)
  neighbours.check(config)
  fusion.check(config)


def with_predict(
  config: ml_collections.ConfigDict, fields: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """A resolved config that predicts in another way.

  Args:
    config: The config.
    fields: Fields of its section `predict`; None for what it says.

  Returns:
    A new config.

  Raises:
    ConfigError: A field does not exist or cannot be used.
  """
  if not isinstance(fields, Mapping | ml_collections.ConfigDict):
    raise ConfigError(
      f"predict is {fields!r}; give a dict of its fields, such as"
      ' {"propensity_power": 0.0}'
    )
  before = config.predict
  config = ml_collections.ConfigDict(config.to_dict())
  for name, value in fields.items():
    field = f"predict.{name}"
    if field not in types():
      raise ConfigError(unknown(field, [f"predict.{n}" for n in before]))
    checks.each({field: value}, types(), CHOICES, RANGES)
    if value is not None:
      config.predict[name] = value
  if config.predict != before:
    check(config)
  return config


def is_longer(old: Config, new: Config) -> bool:
  """Whether a run goes on for more steps than it was begun for."""
  before, now = (checks.value_of(c, "train.num_steps") for c in (old, new))
  return now > before


def check_same_run(
  old: ml_collections.ConfigDict,
  new: ml_collections.ConfigDict,
  workdir: str | Path,
) -> None:
  """Refuses to continue a run with another config.

  Args:
    old: The config of the run.
    new: The config asked for, resolved.
    workdir: Directory of the run, for the message.

  Raises:
    ConfigError: Listing the fields that differ.
  """
  found = differences(old, new)
  if is_longer(old, new):
    for name in _LENGTH:
      found.pop(name, None)
  if found:
    lines = [
      f"{name}: {a!r} there, {b!r} now" for name, (a, b) in found.items()
    ]
    raise ConfigError(
      f"{workdir} holds a run with another config ({'; '.join(lines)});"
      " use another --workdir, or the same config to continue it, for which"
      " --config can be left out; only train.epochs may grow"
    )


def field_names(config: ml_collections.ConfigDict) -> list[str]:
  """Dotted names of all fields, those of open ones included."""
  return [name for name, _ in checks.flatten(config)]


def to_json(config: ml_collections.ConfigDict) -> str:
  """The config as indented JSON."""
  saved = {"version": VERSION, **checks.plain(config)}
  return json.dumps(saved, indent=2) + "\n"


def load(path: str | Path) -> ml_collections.ConfigDict:
  """Reads the config of a run, written by this version or an earlier one.

  Args:
    path: The JSON file.

  Returns:
    The config; fields that did not exist when it was written are as in `base`.

  Raises:
    ConfigError: If the file is missing, or does not hold a config that can be
      used; the message names it and the field.
  """
  saved = checks.read_json(path)
  try:
    return _of_saved(saved)
  except ConfigError as error:
    raise ConfigError(f"{path}: {error}") from None


def _of_saved(saved: dict[str, Any]) -> ml_collections.ConfigDict:
  """The config of what `to_json` wrote of a resolved one."""
  version = saved.pop("version", 1)
  if type(version) is not int or not 1 <= version <= VERSION:
    raise ConfigError(
      f"version is {checks.shown(version)}; this xlj reads 1 to {VERSION}"
    )
  values = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in checks.fields_of(saved, types())
  }
  if version < 4 and values.get("encoder.type") == "causal":
    raise ConfigError(
      "it is of a run whose encoder 'causal' knew positions, not distances, as"
      " in earlier versions; train it again"
    )
  if version < 3:
    if values.get("head.wide"):
      raise ConfigError(
        "it is of a run with linear weights for every feature and label, as"
        " earlier versions had them; train it again"
      )
    values = earlier.renamed(values, version)
  config = base()
  default = dict(_raw(config))
  for name, value in values.items():
    if name not in default:
      raise ConfigError(unknown(name, default))
    if value is None and default[name] is not None:
      raise ConfigError(f"{name} is null; it must have a value")
  checks.each(values, types(), CHOICES, RANGES)
  with config.ignore_type():  # 1 is a number
    _set(config, earlier.WITHOUT | values)
  if version == 1 and config.family is not None:
    _as_decided_now(config)
  _check_whole(config)
  check(config)
  return config


def _check_whole(config: ml_collections.ConfigDict) -> None:
  """Refuses a config without a fact or a decision that something reads."""
  values = dict(_raw(config))
  free = options.unread(SWITCHES, values).keys() | {_LATER}
  for name in sorted(values.keys() - free):
    if values[name] is None:
      raise ConfigError(f"{name} has no value; the file is not whole")


def unknown(name: str, known: Collection[str]) -> str:
  """Says that a field does not exist, and which one does.

  Args:
    name: Its dotted name.
    known: Those that there are.

  Returns:
    The message.
  """
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
  return f"there is no config field {name!r}; did you mean {near[0]!r}?"


def _as_decided_now(config: ml_collections.ConfigDict) -> None:
  """Gives a resolved config of version 1 what is decided in it now."""
  facts = config.data
  default = dict(_raw(base()))
  _set(config, heads.HEADS[config.head.type].only)
  unread = options.unread(SWITCHES, dict(_raw(config)))
  _set(config, {name: default[name] for name in unread})
  _decide(
    config,
    families.DataFacts(
      num_rows=facts.num_rows,
      num_features=facts.num_features,
      num_labels=facts.num_labels,
      labels_per_row=1.0 if facts.single_label else 2.0,
      features_per_row=facts.features_per_row,
      dense=facts.dense,
      kind="dense" if facts.dense else "normalised",
      fingerprint=facts.fingerprint,
    ),
  )


def _of_a_kind(a: ml_collections.ConfigDict, b: Any) -> bool:
  """Whether what one config decides means the same in the other."""
  return a.head.type == b.head.type and a.encoder.type == b.encoder.type


@functools.cache
def types() -> dict[str, type]:
  """The type of each field, by dotted name."""
  return dict(_types(base()))


def _types(config: Any, prefix: str = "") -> Iterator[tuple[str, type]]:
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _types(value, f"{prefix}{name}.")
    else:
      yield prefix + name, config.get_type(name)


def _decide(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> None:
  """Fills what is open by the rules, but for what is measured."""
  for part in PARTS:
    _fill(config, part.rules(config, facts))


def _fill(config: ml_collections.ConfigDict, values: options.Fields) -> None:
  """Gives open fields a value, if they are read."""
  # Those that decide what is read come first.
  for deciding in (True, False):
    found = dict(_raw(config))
    unread = options.unread(SWITCHES, found)
    for name, value in values.items():
      if (name in _DECIDING) == deciding and name not in unread:
        if found[name] is None:
          _set(config, {name: value})


def _set(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
  """Writes fields of dotted names."""
  for name, value in values.items():
    section: Any = config
    *sections, field = name.split(".")
    for key in sections:
      section = section[key]
    section[field] = value


def _raw(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """The fields of a config with their dotted names, tuples as they are."""
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _raw(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


def _nested(fields: options.Fields) -> dict[str, Any]:
  """Sections of fields of dotted names."""
  nested: dict[str, Any] = {}
  for name, value in fields.items():
    section = nested
    *sections, field = name.split(".")
    for key in sections:
      section = section.setdefault(key, {})
    section[field] = value
  return nested
