"""Options that fields such as `head.type` choose from, and what each reads.

A field that no chosen option reads cannot be set: it would be ignored.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
import dataclasses
from typing import Any, NamedTuple

import ml_collections

from xlj.config import families

Fields = dict[str, Any]  # by dotted name
Rules = Callable[[ml_collections.ConfigDict, families.DataFacts], Fields]


@dataclasses.dataclass(frozen=True)
class Option:
  """One of the values that a field may have; a table holds them by name.

  Attributes:
    make: Makes what it stands for; the table says of what.
    reads: Dotted names of the fields that it reads, of all that options of its
      table do.
    fields: Fields of its own, by dotted name.
    rules: Values for fields that are left open.
    only: Fields that have one possible value with it.
    losses: Of a head, the names of the losses that it knows.
    check: Refuses values that do not go with it.
  """

  make: Callable[..., Any]
  reads: tuple[str, ...] = ()
  fields: Callable[[], Fields] = dict
  rules: Rules = lambda *_: {}
  only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  losses: tuple[str, ...] = ()
  check: Callable[[ml_collections.ConfigDict], None] = lambda _: None


class Switch(NamedTuple):
  """A field whose value decides which other fields are read.

  Attributes:
    field: Its dotted name.
    governs: The fields that it decides about.
    reads: Those of them that are read with a value.
  """

  field: str
  governs: frozenset[str]
  reads: Callable[[Any], Collection[str]]


def by_table(field: str, table: Mapping[str, Option]) -> Switch:
  """A switch between options: each reads what it says."""
  return by_name(field, {name: o.reads for name, o in table.items()})


def by_name(field: str, reads: Mapping[str, Iterable[str]]) -> Switch:
  """A switch between names; an unknown one, refused elsewhere, reads all."""
  governs = frozenset().union(*reads.values())
  return Switch(field, governs, lambda name: tuple(reads.get(name, governs)))


def unless(field: str, off: Any, *governs: str) -> Switch:
  """A switch of a field with a value for "off", when nothing is read."""
  return Switch(
    field, frozenset(governs), lambda value: () if value == off else governs
  )


def unread(
  switches: Iterable[Switch], values: Mapping[str, Any]
) -> dict[str, str]:
  """The fields that nothing reads.

  Args:
    switches: What decides.
    values: The config by dotted name; open switches decide nothing yet.

  Returns:
    Dotted name to why: the field that decides, and its value.
  """
  found: dict[str, str] = {}
  for field, governs, reads in switches:
    value = values.get(field)
    if value is not None:
      for name in governs.difference(reads(value)):
        found.setdefault(name, f"{field}={value!r}")
  return found
