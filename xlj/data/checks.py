"""Checks that every block of a sparse matrix passes on its way in.

Whatever the format, what leaves here is canonical: ids in range, ascending
and unique in a row, values finite in float32.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import os
from typing import NamedTuple

from absl import logging
import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import numbering

MAX_COLUMNS = 2**31 - 1
RENUMBER = "--config.data.renumber=True numbers ids that are large, but few"
# What becomes of an id that a row has twice; labels have no values to add up.
DUPLICATES = ("refuse", "sum", "first")


class Place(NamedTuple):
  """Where a block of rows is, for messages.

  Attributes:
    path: the file.
    first_line: line of the first row; None in a file without lines.
    first_row: number of the first row, given when there are no lines.
  """

  path: str | os.PathLike[str]
  first_line: int | None = None
  first_row: int = 0

  def error(
    self, row: int, found: str, expected: str, hint: str = ""
  ) -> errors.DataError:
    """Returns the error for a row of the block, counted from 0.

    Args:
      row: row of the block.
      found: what is there.
      expected: what should be.
      hint: what to do about it.

    Returns:
      The exception, to be raised.
    """
    if self.first_line is None:
      found = f"in row {self.first_row + row} (from 0) {found}"
      return errors.DataError(self.path, found, expected, hint=hint)
    line = self.first_line + row
    return errors.DataError(self.path, found, expected, line=line, hint=hint)


@dataclasses.dataclass
class Beyond:
  """Ids that a model does not know, in rows that it is to score.

  Attributes:
    widths: columns of the model, by "feature" and "label"; what is not there
      is not looked at.
    entries: how many entries there were beyond them.
    ids: which ids those had.
    stated: columns that the file states.
  """

  widths: dict[str, int]
  entries: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  ids: dict[str, set[int]] = dataclasses.field(default_factory=dict)
  stated: dict[str, int] = dataclasses.field(default_factory=dict)

  def see(self, what: str, ids: np.ndarray) -> None:
    """Counts the entries that are beyond."""
    found = ids[ids >= self.widths[what]]
    self.entries[what] += len(found)
    self.ids.setdefault(what, set()).update(np.unique(found).tolist())

  def notes(self, what: str) -> list[str]:
    """What there is to say of the features, or the labels, of a file."""
    found, width = [], self.widths.get(what, 0)
    if self.entries[what]:
      effect = {"feature": "for nothing", "label": "as missed"}[what]
      entries, ids = self.entries[what], len(self.ids[what])
      found.append(
        f"{entries:,} entries of {ids:,} {what}s that training has not; they"
        f" count {effect}"
      )
    if 0 < (stated := self.stated.get(what, 0)) != width and width:
      found.append(f"it states {stated:,} {what}s, and training has {width:,}")
    return found


@dataclasses.dataclass
class Columns:
  """The columns of one matrix that arrives in blocks.

  Attributes:
    what: "feature" or "label".
    limit: number of columns; None takes what the ids seen so far need.
    first_id: number of the first column as written, 0 or 1.
    duplicates: one of `DUPLICATES`.
    beyond: for rows that a model is to score: features that it does not know
      are left out, labels stay, and both are counted.
    numbers: of ids that are too large for columns, or of names; what the file
      states of its width says nothing then.
    names: of the columns of a table that are read, in their order.
    seen: columns that the ids seen so far need.
    told: whether a log line has said that labels have relevances.
  """

  what: str
  limit: int | None = None
  first_id: int = 0
  duplicates: str = "refuse"
  beyond: Beyond | None = None
  numbers: numbering.Numbers | numbering.Names | None = None
  names: Sequence[str] | None = None
  seen: int = 0
  told: bool = False

  def block(
    self,
    indptr: np.ndarray,
    ids: np.ndarray,
    values: np.ndarray | None,
    place: Place,
  ) -> csr_lib.Csr:
    """Checks a block of rows and puts it in order.

    Args:
      indptr: int64 [n + 1].
      ids: integer [entries], as written.
      values: [entries], or None for all 1. One of a label is its relevance:
        above 0 it counts as 1, and with 0 the label is left out.
      place: where the block is.

    Returns:
      The rows; without values if they are labels.

    Raises:
      DataError: at an entry that is not right.
    """
    if self.first_id:
      ids = ids - self.first_id
    self._check_ids(indptr, ids, place)
    if values is not None:
      values = self._check_values(indptr, ids, values, place)
    if self.numbers is not None:
      ids = self.numbers.of(ids)
    ids = ids.astype(np.int32)
    if self.what == "label" and values is not None:
      indptr, ids, values = _nonzero(indptr, ids, values)
    rows = self._in_order(indptr, ids, values, place)
    if self.beyond is None or self.what not in self.beyond.widths:
      return rows
    self.beyond.see(self.what, rows.indices)
    return rows.below(self.count) if self.what == "feature" else rows

  def each(
    self,
    indptr: np.ndarray,
    ids: np.ndarray,
    values: np.ndarray | None,
    place: Place,
  ) -> Iterator[csr_lib.Csr | errors.DataError]:
    """As `block`; in the place of a row that is not right is its error."""
    try:
      rows = self.block(indptr, ids, values, place)
    except errors.DataError as error:
      if len(indptr) == 2:
        yield error
        return
    else:
      yield rows
      return
    middle = (len(indptr) - 1) // 2
    for start, part in ((0, indptr[: middle + 1]), (middle, indptr[middle:])):
      entries = slice(part[0], part[-1])
      yield from self.each(
        part - part[0],
        ids[entries],
        None if values is None else values[entries],
        place._replace(first_row=place.first_row + start),
      )

  def state(self, width: int | None) -> None:
    """Notes the width that the file states, the limit if there is no other."""
    if self.numbers is not None:
      return
    if self.beyond is not None and width:
      self.beyond.stated[self.what] = width
    self.limit = self.limit or width

  @property
  def width(self) -> int | None:
    """Columns that a matrix without ids has to have; None for any number."""
    known = self.beyond and self.beyond.widths.get(self.what)
    return known or self.limit

  def set_width(self, path: str | os.PathLike[str], width: int) -> None:
    """Makes the width that a file states the limit.

    Args:
      path: the file.
      width: number of columns.

    Raises:
      DataError: when it is too large, or not the limit that there is.
    """
    if width > MAX_COLUMNS:
      raise errors.DataError(
        path, f"{width} {self.what}s", f"at most {MAX_COLUMNS}"
      )
    if self.limit is not None and self.limit != width:
      raise errors.DataError(
        path, f"{width} {self.what}s", f"{self.limit} as elsewhere"
      )
    self.state(width)

  @property
  def count(self) -> int:
    """Number of columns: the limit, or what the ids so far need."""
    count = self.seen if self.limit is None else self.limit
    if self.numbers is not None:
      count = len(self.numbers)
    known = self.beyond and self.beyond.widths.get(self.what)
    if not known:
      return count
    return known if self.what == "feature" else max(known, count)

  def _check_ids(
    self, indptr: np.ndarray, ids: np.ndarray, place: Place
  ) -> None:
    if not len(ids):
      return
    low, high = int(ids.min()), int(ids.max())
    bound = MAX_COLUMNS if self.limit is None else self.limit
    if self.numbers is not None:
      bound = numbering.MAX_ID
    if low < 0 or high >= bound:
      entry = int(np.argmax((ids < 0) | (ids >= bound)))
      raise place.error(
        _row_of(indptr, entry),
        f"{self.what} {int(ids[entry]) + self.first_id}",
        f"an id in [{self.first_id}, {bound - 1 + self.first_id}]"
        if bound
        else f"no {self.what}s",
        self._range_hint(int(ids[entry]), bound, place),
      )
    self.seen = max(self.seen, high + 1)

  def _written(self, column: int) -> int | str:
    """The id of a column, or its name, as the file has it."""
    if self.numbers is None:
      return int(column) + self.first_id
    found = self.numbers.ids()[column]
    return repr(found) if isinstance(found, str) else int(found) + self.first_id

  def _range_hint(self, found: int, bound: int, place: Place) -> str:
    if found >= bound == MAX_COLUMNS:
      return RENUMBER
    if found == bound and not self.first_id and self.what == "feature":
      return (
        "are the ids counted from 1? then train with"
        " --config.data.zero_based=False"
      )
    if found == -1 and self.first_id:
      return (
        "are the ids counted from 0? then train with"
        " --config.data.zero_based=True"
      )
    if found == bound and self.what == "label" and place.first_line:
      return (
        "are the labels counted from 1? then train with"
        " --config.data.renumber=True, which answers with the ids of the files"
      )
    return ""

  def _check_values(
    self, indptr: np.ndarray, ids: np.ndarray, values: np.ndarray, place: Place
  ) -> np.ndarray:
    with np.errstate(over="ignore"):
      single = values.astype(np.float32)
    good, expected = np.isfinite(single), "a finite number within float32"
    if self.what == "label":
      good, expected = good & (single >= 0), "a relevance, 0 (absent) or above"
    if not good.all():
      entry = int(np.argmin(good))
      raise place.error(
        _row_of(indptr, entry),
        f"value {values[entry]:g} of {self.what} {ids[entry] + self.first_id}",
        expected,
      )
    if self.what == "label" and not self.told:
      self._tell_relevance(single, place)
    return single

  def _tell_relevance(self, values: np.ndarray, place: Place) -> None:
    """Says, once, that relevances are no weights."""
    graded = values[(values != 0) & (values != 1)]
    if len(graded):
      self.told = True
      logging.info(
        "%s: labels have a relevance, such as %g: above 0 counts as 1, without"
        " weights, and 0 as no label.",
        *(place.path, graded[0]),
      )

  def _in_order(
    self,
    indptr: np.ndarray,
    ids: np.ndarray,
    values: np.ndarray | None,
    place: Place,
  ) -> csr_lib.Csr:
    if not _ascends(indptr, ids):
      rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
      order = np.lexsort((ids, rows))
      ids = ids[order]
      values = None if values is None else values[order]
      repeats = (np.diff(ids) == 0) & (np.diff(rows) == 0)
      if repeats.any():
        if self.duplicates == "refuse":
          entry = int(np.argmax(repeats))
          raise place.error(
            int(rows[entry]),
            f"{self.what} {self._written(ids[entry])} twice in a row",
            "each id once",
            "train with --config.data.duplicates=sum to add values up, or"
            " =first to keep the first",
          )
        return self._merged(indptr, ids, values, repeats, place)
    return csr_lib.Csr(indptr, ids, values, self.count)

  def _merged(
    self,
    indptr: np.ndarray,
    ids: np.ndarray,
    values: np.ndarray | None,
    repeats: np.ndarray,
    place: Place,
  ) -> csr_lib.Csr:
    """Entries in order, each id of a row once; `repeats` equal the next."""
    kept = np.flatnonzero(np.concatenate([[True], ~repeats]))
    indptr = np.searchsorted(kept, indptr).astype(np.int64)
    ids = ids[kept]
    if values is not None and self.duplicates == "sum":
      sums = np.add.reduceat(values, kept, dtype=np.float64)
      values = self._check_values(indptr, ids, sums, place)
    elif values is not None:
      values = values[kept]
    return csr_lib.Csr(indptr, ids, values, self.count)


def _row_of(indptr: np.ndarray, entry: int) -> int:
  return int(np.searchsorted(indptr, entry, side="right")) - 1


def _ascends(indptr: np.ndarray, ids: np.ndarray) -> bool:
  if len(ids) < 2:
    return True
  good = ids[1:] > ids[:-1]
  starts = indptr[1:-1]
  good[starts[(starts > 0) & (starts < len(ids))] - 1] = True
  return bool(good.all())


def _nonzero(
  indptr: np.ndarray, ids: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, None]:
  """Drops entries of value 0, and then the values."""
  keep = values != 0
  if keep.all():
    return indptr, ids, None
  kept = np.concatenate([[0], np.cumsum(keep)])
  return kept[indptr], ids[keep], None
