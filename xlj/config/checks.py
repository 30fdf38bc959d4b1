"""What checks of a config share: how fields are named, and refused."""

from collections.abc import Collection, Iterator, Mapping
import json
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

Config = ml_collections.ConfigDict | Mapping[str, Any]
MOST = 2**31 - 1  # ids and steps are of 32 bits
LARGEST = 1e30  # of factors, whose squares need not be
_TYPES = {
  bool: "True or False",
  int: "a whole number",
  float: "a number",
  str: "text",
  tuple: "whole numbers, such as 1,2",
}


class ConfigError(ValueError):
  """A config that cannot be run; the message names the field."""


class Range(NamedTuple):
  """What a number, or each number of a tuple, may be; never NaN or infinite.

  Attributes:
    low: The least.
    high: The greatest.
    above: Whether `low` itself is left out.
    below: Whether `high` itself is.
  """

  low: float = 0
  high: float = MOST
  above: bool = False
  below: bool = False

  def __contains__(self, number: object) -> bool:
    """Whether a number is in it."""
    assert isinstance(number, int | float)
    return (
      self.low <= number <= self.high
      and not (self.above and number == self.low)
      and not (self.below and number == self.high)
    )

  def wanted(self, number: float) -> str:
    """What a number that is not in it must be."""
    if self.high > 1 and not number > self.high:
      return f"{'above' if self.above else 'at least'} {self.low}"
    left, right = "[("[self.above], "])"[self.below]
    return f"in {left}{self.low}, {self.high}{right}"


Ranges = dict[str, Range]  # by dotted name of a field
SHARE = Range(0, 1)
RATE = Range(0, 1, below=True)


def each(
  values: Mapping[str, Any],
  types: Mapping[str, type],
  allowed: Mapping[str, Collection[Any]],
  ranges: Ranges,
) -> None:
  """Refuses values that a field cannot have, whatever the others are.

  Args:
    values: The config by dotted name; open fields (None) pass.
    types: Of its fields.
    allowed: What some of them may be.
    ranges: Of those that are numbers.

  Raises:
    ConfigError: Naming the field, its value and what it may be.
  """
  for name, value in values.items():
    if value is None:
      continue
    if not _is_of(types[name], value):
      raise ConfigError(
        f"{name} is {shown(value)}; it must be {_TYPES[types[name]]}"
      )
    if name in allowed and value not in allowed[name]:
      raise ConfigError(
        f"{name} is {value!r}; use one of {tuple(allowed[name])}"
      )
    if name in ranges:
      several = isinstance(value, tuple | list)
      for number in value if several else [value]:
        if number not in ranges[name]:
          raise ConfigError(
            f"{name} is {shown(value)}; {'each' if several else 'it'} must be"
            f" {ranges[name].wanted(number)}"
          )


def shown(value: Any) -> str:
  """A value for a message, cut where it is long."""
  try:
    text = repr(value)
  except ValueError:  # a whole number of thousands of digits
    return "a number of too many digits"
  return text if len(text) <= 80 else f"{text[:60]}..."


def _is_of(kind: type, value: Any) -> bool:
  """Whether a value has the type of a field."""
  if kind is tuple:
    return isinstance(value, tuple | list) and all(
      _is_of(int, number) for number in value
    )
  if kind is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  return isinstance(value, kind) and (
    kind is bool or value is not True and value is not False
  )


def read_json(path: str | Path) -> dict[str, Any]:
  """Reads a JSON object, whatever is in its place.

  Args:
    path: The file.

  Returns:
    The object.

  Raises:
    ConfigError: It is missing, cannot be read, or is something else.
  """

  def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
      if name in found:
        raise ConfigError(f"{path} has {shown(name)} twice")
      found[name] = value
    return found

  try:
    # Some editors begin with a mark.
    text = Path(path).read_text(encoding="utf-8-sig")
    found = json.loads(text, object_pairs_hook=once)
  except FileNotFoundError:
    raise ConfigError(
      f"{path} does not exist; is this the working directory of a run?"
    ) from None
  except OSError as error:
    raise ConfigError(f"{path} cannot be read ({error.strerror})") from None
  except ConfigError:
    raise
  except (ValueError, RecursionError) as error:
    raise ConfigError(f"{path} is not a JSON config: {error}") from None
  if not isinstance(found, dict):
    raise ConfigError(f"{path} is not a JSON config but {shown(found)}")
  return found


def fields_of(
  saved: Mapping[str, Any], known: Collection[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
  """The values in a saved config by dotted name, whatever they are.

  Args:
    saved: Sections and fields.
    known: The fields that there are.
    prefix: Of the names.

  Yields:
    Names and values; a section with something else in its place is a value.

  Raises:
    ConfigError: A name has a dot in it.
  """
  sections = tuple(known)
  for key, value in saved.items():
    name = prefix + key
    if "." in key:
      raise ConfigError(f"there is no section or field {shown(key)}")
    inside = any(field.startswith(f"{name}.") for field in sections)
    if inside and isinstance(value, dict):
      yield from fields_of(value, known, f"{name}.")
    else:
      yield name, value


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
