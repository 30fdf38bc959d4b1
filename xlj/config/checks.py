"""What checks of a config share: how fields are named, and refused."""

from collections.abc import Callable, Collection, Iterator, Mapping
import json
from typing import Any

import ml_collections

Config = ml_collections.ConfigDict | Mapping[str, Any]


class ConfigError(ValueError):
  """A config that cannot be run; the message names the field."""


def choices(config: Config, allowed: Mapping[str, Collection[Any]]) -> None:
  """Refuses values beside the given ones; open fields pass.

  Args:
    config: A config, nested.
    allowed: By dotted name of a field what it may be.

  Raises:
    ConfigError: Naming the field, its value and what it may be.
  """
  for name, known in allowed.items():
    value = value_of(config, name)
    if value is not None and value not in known:
      raise ConfigError(f"{name} is {value!r}; use one of {tuple(known)}")


def numbers(
  config: Config,
  is_right: Callable[[Any], bool],
  what: str,
  names: Collection[str],
) -> None:
  """Refuses numbers out of range; open fields, which nothing reads, pass.

  Args:
    config: A config, nested.
    is_right: Whether a number will do.
    what: What it must be, for the message.
    names: Dotted names of the fields.

  Raises:
    ConfigError: Naming the field, its value and what it must be.
  """
  for name in names:
    value = value_of(config, name)
    if value is not None and not is_right(value):
      raise ConfigError(f"{name} is {value}; it must be {what}")


def at_least(config: Config, least: int, *names: str) -> None:
  """Refuses numbers below `least`; see `numbers`."""
  numbers(config, lambda n: n >= least, f"at least {least}", names)


def rates(config: Config, *names: str) -> None:
  """Refuses numbers that are not in [0, 1); see `numbers`."""
  numbers(config, lambda rate: 0 <= rate < 1, "in [0, 1)", names)


def value_of(config: Config, name: str) -> Any:
  """The field of a dotted name."""
  value: Any = config
  for key in name.split("."):
    value = value[key]
  return value


def flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """The fields of a config with their dotted names."""
  for key, value in plain(config).items():
    if isinstance(value, dict):
      yield from flatten(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def plain(config: Any) -> Any:
  """ConfigDicts to dicts and tuples to lists, as JSON would."""
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  return json.loads(json.dumps(config))
