"""Labels of rows, names or ids, become numbers."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.documents import rows

Path = str | os.PathLike[str]
_SHOWN = 3  # of the labels that training has not


@dataclasses.dataclass(frozen=True)
class Known:
  """The labels that are known before any row is read.

  Attributes:
    names: by id; None if labels have ids alone.
    count: how many there are; None if the rows decide.
    by_id: whether rows may have ids: False where names have no order that
      whoever wrote the rows could know.
    source: where they are from, for messages.
  """

  names: Sequence[str] | None
  count: int | None
  by_id: bool
  source: str


class Numbers:
  """Numbers the labels of rows."""

  def __init__(self, known: Known, beyond: checks.Beyond | None):
    """Begins with those that are known.

    Args:
      known: what they are.
      beyond: counts labels that are not known; without it, they are names of
        new labels.
    """
    self._known, self._beyond = known, beyond
    self._numbers: dict[str, int] = {}
    self._repeated: set[str] = set()
    for i, name in enumerate(known.names or ()):
      if self._numbers.setdefault(name, i) != i:
        self._repeated.add(name)
    self._count = known.count or 0
    self._kind: type | None = None
    self._first_new: list[str] = []

  @property
  def count(self) -> int:
    """How many labels there are, those that are not known included."""
    return self._count

  @property
  def new(self) -> list[str]:
    """Names of the new labels, by number; none that are beyond."""
    if self._beyond is not None:
      return []
    return list(self._numbers)[len(self._known.names or ()) :]

  @property
  def named(self) -> bool:
    """Whether labels have names."""
    return self._kind is str or self._known.names is not None

  def state(self, count: int, path: Path) -> None:
    """Notes how many labels a file says that there are.

    Args:
      count: how many.
      path: the file.

    Raises:
      DataError: when there are more than the file of labels has.
    """
    if self._beyond is not None:
      return
    known = self._known.count
    if known is not None and count > known:
      raise errors.DataError(
        path,
        f"{count} labels beside it",
        f"{known}, as {self._known.source} has",
      )
    self._count = max(self._count, count)

  def block(self, block: rows.Block, path: Path) -> csr_lib.Csr:
    """Numbers the labels of a block of rows.

    Args:
      block: the rows; one that has no labels is an error.
      path: the file.

    Returns:
      [n, count] without values.

    Raises:
      DataError: at a label that can be none of those there are.
    """
    found: list[list[int]] = []
    number_of: Any = self._numbers.get
    for labels, line in zip(block.labels, block.lines):
      if labels and self._kind is str and not self._repeated:
        numbers: list[Any] = list(map(number_of, labels))
        if None not in numbers:  # names that have been seen
          numbers.sort()
          found.append(numbers)
          continue
      if labels is None:
        raise errors.DataError(
          path,
          "a row without 'labels' or 'label'",
          "the labels of each row",
          line=line,
          hint="a row that has none says so: []",
        )
      try:
        found.append(sorted(self._number(x, path, line) for x in labels))
      except rows.Refused as error:
        raise error.at(path, line) from None
    indptr = np.cumsum([0, *map(len, found)], dtype=np.int64)
    flat = np.array([x for row in found for x in row], np.int32)
    if self._beyond is not None:
      self._beyond.see("label", flat)
    return csr_lib.Csr(indptr, flat, None, self._count)

  def notes(self) -> list[str]:
    """What there is to say of the labels that were not known."""
    first = "; ".join(self._first_new)
    if self._beyond is not None:
      return [f"{note}: {first}" for note in self._beyond.notes("label")]
    new = self._count - (self._known.count or 0)
    if not new or self._known.names is None:
      return []
    return [f"{new:,} labels that {self._known.source} has not: {first}"]

  def _number(self, label: rows.Label, path: Path, line: int) -> int:
    if type(label) is not self._kind:
      self._check_kind(label)
    if isinstance(label, int):
      if label >= self._count:
        self._see_id(label, path, line)
      return label
    number = self._numbers.get(label)
    if number is None:
      return self._see_name(label, path, line)
    if label in self._repeated:
      raise rows.Refused(
        f"label {rows.shown(repr(label))}, the name of several labels of"
        f" {self._known.source}",
        "one label",
        "write their ids",
      )
    return number

  def _check_kind(self, label: rows.Label) -> None:
    """Refuses ids after names, names after ids, and what nobody knows."""
    what = rows.shown(repr(label))
    if self._kind is not None:
      others = {str: "names", int: "ids"}[self._kind]
      raise rows.Refused(
        f"label {what} where rows before have {others}",
        f"{others} alone",
        "an id is a number, a name is in quotation marks",
      )
    known = self._known
    if isinstance(label, str) and known.names is None and known.count:
      raise rows.Refused(
        f"label {what}",
        f"an id in [0, {known.count - 1}]: labels of {known.source} have no"
        " names",
      )
    if isinstance(label, int) and known.names is not None and not known.by_id:
      raise rows.Refused(
        f"label {what}", "a name, as training has them", "or bring labels.txt"
      )
    self._kind = type(label)

  def _see_id(self, label: int, path: Path, line: int) -> None:
    if self._beyond is not None:
      self._tell(label, path, line)
    elif self._known.count is not None:
      raise rows.Refused(
        f"label {label}",
        f"an id in [0, {self._known.count - 1}], as {self._known.source} has"
        f" {self._known.count} labels",
      )
    self._count = label + 1

  def _see_name(self, label: str, path: Path, line: int) -> int:
    known = self._known
    if known.by_id and known.names and label.isascii() and label.isdigit():
      if int(label[:20]) < len(known.names):
        raise rows.Refused(
          f"label {label!r}",
          f"a name of {known.source}",
          f"an id is written without quotation marks, as [{label}]",
        )
    self._tell(label, path, line)
    number = self._numbers[label] = self._count
    self._count += 1
    return number

  def _tell(self, label: Any, path: Path, line: int) -> None:
    if len(self._first_new) < _SHOWN:
      name = rows.shown(repr(label))
      self._first_new.append(f"{name} ({os.path.basename(path)}:{line})")
