"""Interactions: a user, an item and perhaps a rating and a time on each line.

    user item rating time     blanks, tabs or commas between them, or all of
    196  242  3      8812509  `::`; with such a first line or without

or the columns of a Parquet or Arrow table; or, where that is asked for, a user
and all its items on each line, as LightGCN has them (He et al. 2020).

Legend: E interactions, U users, I items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import os
import re

import numpy as np
import scipy.sparse

from xlj.data import arrow
from xlj.data import cells
from xlj.data import errors
from xlj.data import lines
from xlj.data import numbering

DataError = errors.DataError
Path = str | os.PathLike[str]
# What a first line calls the columns, in small letters without underscores.
_CALLED = {
  "user": ("user", "userid", "uid"),
  "item": ("item", "itemid", "iid", "movieid", "productid", "business"),
  "rating": ("rating", "ratings", "score", "stars", "weight", "count"),
  "time": ("time", "timestamp", "date", "unixreviewtime", "ts"),
}
_IN_ORDER = tuple(_CALLED)
_NUMBERS = _IN_ORDER[2:]


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
  """Who had to do with what, in the order of the file.

  Attributes:
    users: int64 [E], each below U.
    items: int64 [E], each below I.
    user_names: as the file has them, by number: in the order of appearance.
    item_names: likewise.
    ratings: float64 [E]; None if the file has none.
    times: float64 [E]; likewise.
  """

  users: np.ndarray
  items: np.ndarray
  user_names: list[str]
  item_names: list[str]
  ratings: np.ndarray | None
  times: np.ndarray | None

  def matrix(self) -> scipy.sparse.csr_array:
    """What each user has had to do with, float32 [U, I] of ones.

    `xlj.data.write(DIR, m, m, label_names=found.item_names)` makes a data set
    of it, whose rows are users and whose labels are items.
    """
    shape = len(self.user_names), len(self.item_names)
    ones = np.ones(len(self.users), np.float32)
    found = scipy.sparse.csr_array((ones, (self.users, self.items)), shape)
    found.data[:] = 1  # where one is there twice
    return found


def read(
  path: Path, *, lists: bool = False, item_names: Sequence[str] = ()
) -> Interactions:
  """Reads a file into memory.

  Args:
    path: plain or gzip text in UTF-8, or a table of Parquet or Arrow.
    lists: whether it has a line for each user, `user item item ...`.
    item_names: of items that have the first numbers, whether they appear or
      not.

  Returns:
    The interactions.

  Raises:
    DataError: at the first line that is not right.
    OSError: when it cannot be read.
  """
  if lists:
    return read_lists([path], item_names)[0]
  names = {"user": numbering.Names(), "item": numbering.Names(item_names)}
  found = _cells(path)
  line, first = next(found, (1, []))
  columns = _columns(first, path, line)
  named = bool(columns)
  columns = columns or dict(zip(_IN_ORDER, range(len(first))))
  numbers: dict[str, list[float]] = {what: [] for what in columns}
  width = len(first)
  for number, row in found if named else _after((line, first), found):
    if len(row) != width:
      raise DataError(
        path,
        f"{len(row)} columns",
        f"{width}, as in line {line}",
        line=number,
      )
    for what, column in columns.items():
      text = row[column]
      if what in names:
        if not text:
          raise errors.Refused(f"no {what}", f"a {what}").at(path, number)
        numbers[what].append(names[what].number(text))
      else:
        numbers[what].append(_number(text, what, path, number))
  if not numbers["user"]:
    raise DataError(
      path, "no interactions", "lines 'user item'", line=line or None
    )
  users, items = (np.array(numbers[what], np.int64) for what in names)
  rest = [np.array(numbers[w]) if w in columns else None for w in _NUMBERS]
  called = [names[what].ids().tolist() for what in names]
  return Interactions(users, items, *called, *rest)


def read_lists(
  paths: Sequence[Path], item_names: Sequence[str] = ()
) -> list[Interactions]:
  """Reads files with a line for each user, `user item item ...`.

  Args:
    paths: plain or gzip text in UTF-8.
    item_names: of items that have the first numbers.

  Returns:
    The interactions of each file, in which users and items have the same
    numbers.

  Raises:
    DataError: at the first line that is not right.
    OSError: when a file cannot be read.
  """
  names = {"user": numbering.Names(), "item": numbering.Names(item_names)}
  found = [_of_lists(path, names) for path in paths]
  users, items = (names[what].ids().tolist() for what in names)
  called = {"user_names": users, "item_names": items}
  return [dataclasses.replace(each, **called) for each in found]


def _of_lists(path: Path, names: dict[str, numbering.Names]) -> Interactions:
  """Reads a line for each user; of names as they are then."""
  users: list[int] = []
  items: list[int] = []
  line_of: dict[str, int] = {}
  for line, (user, *rest) in _cells(path):
    if user in line_of:
      raise DataError(
        path,
        f"user {cells.shown(user)} again",
        f"each user on one line; line {line_of[user]} has it",
        line=line,
      )
    line_of[user] = line
    number = names["user"].number(user)
    users += [number] * len(rest)
    items += map(names["item"].number, rest)
  if not users:
    raise DataError(path, "no interactions", "lines 'user item item'", line=1)
  return Interactions(
    users=np.array(users, np.int64),
    items=np.array(items, np.int64),
    user_names=names["user"].ids().tolist(),
    item_names=names["item"].ids().tolist(),
    ratings=None,
    times=None,
  )


def _after(
  first: tuple[int, list[str]], others: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
  yield first
  yield from others


def _columns(row: list[str], path: Path, line: int) -> dict[str, int]:
  """The places of the columns that a first line names; none if it has values.

  Raises:
    DataError: when it names some, but no user or no item, or has one column.
  """
  called = [
    re.sub("[^a-z]", "", cell.partition(":")[0].lower()) for cell in row
  ]
  found = {
    what: called.index(name)
    for what, known in reversed(_CALLED.items())
    for name in reversed(known)
    if name in called
  }
  if any(re.fullmatch(r"[-+.\d]+", cell) for cell in row):
    found = {}  # a user or an item may be called so
  right = {*_IN_ORDER[:2]} <= found.keys() if found else len(row) <= 4
  if len(row) < 2 or not right:
    raise DataError(
      path,
      cells.shown(" ".join(row)) or "an empty file",
      "'user item', 'user item rating' or 'user item rating time', or a line"
      " that names these columns",
      line=line or None,
    )
  return {what: found[what] for what in _IN_ORDER if what in found}


def _number(text: str, what: str, path: Path, line: int) -> float:
  try:
    value = float(text)
  except ValueError:
    value = np.nan
  if not np.isfinite(value):
    raise errors.Refused(
      f"{cells.shown(repr(text))} as a {what}",
      "a number" + ("; write times as seconds" if what == "time" else ""),
    ).at(path, line)
  return value


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
  """Line and columns of each row; empty lines are none."""
  if os.fspath(path).lower().endswith(arrow.ENDINGS):
    yield from _of_table(path)
    return
  mark = _mark(path)
  if mark in cells.DELIMITERS.values():
    for number, row in cells.rows(path, mark):
      if isinstance(row, DataError):
        raise row
      row = [cell.strip() for cell in row]
      if any(row):
        yield number, row
    return
  for block in lines.blocks(path):
    text = lines.decoded(block, path).split("\n")
    for number, line in enumerate(text, block.first_line):
      if line.strip():
        yield number, line.split() if mark == " " else line.strip().split(mark)


def _of_table(path: Path) -> Iterator[tuple[int, list[str]]]:
  """The names of the columns, and each row with its number from 0."""
  count = 0
  with arrow.opened(path) as table:
    yield 0, table.names
    for batch in table.batches(table.names):
      columns = [column.to_pylist() for column in batch.columns]
      for number, row in enumerate(zip(*columns), count):
        yield number, ["" if cell is None else str(cell) for cell in row]
      count += batch.num_rows


def _mark(path: Path) -> str:
  """What is between the columns of the first line that is not empty."""
  for block in lines.blocks(path, keep_tabs=True):
    for line in lines.decoded(block, path).split("\n"):
      if line.strip():
        return next((x for x in ("::", "\t", ",") if x in line.strip()), " ")
  return " "
