"""Items of users, from a file: sequences, or sets that have no order."""

from collections.abc import Callable, Iterator, Sequence
import json
import os
from typing import Any

import numpy as np

from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import formats
from xlj.data import sequences
from xlj.documents import formats as documents

_SET = '{"items": [...]}, names of items or whole numbers from 0'
_SEQUENCE = '{"items": [...]}, whole numbers from 0 with the oldest first'
_SHOWN = 60  # characters of a row that is none


def stream(
  path: str, beyond: checks.Beyond
) -> Iterator[formats.Rows | formats.DataError]:
  """Reads one file; a bad row costs no other.

  Args:
    path: `{"items": [...]}` on each line, by its ending or "-", otherwise
      `user item item ...` as training has them, of which all items are read.
    beyond: Counts the items that a model does not know. They are left out of
      the sequences.

  Yields:
    Blocks of rows in order, and in the place of a row that is not right its
    error.

  Raises:
    DataError: When the file itself is not right.
    OSError: When it cannot be read.
  """
  is_json = path == formats.STDIN or documents.ending(path) in documents.JSON
  for block in _json(path) if is_json else sequences.blocks(path):
    good: list[list[int]] = []
    for row in block:
      if isinstance(row, errors.DataError):
        if good:
          yield _rows(good, beyond)
        good = []
        yield row
      else:
        good.append(row)
    if good:
      yield _rows(good, beyond)


def stream_sets(
  path: str, beyond: checks.Beyond, names: Sequence[str] | None
) -> Iterator[formats.Rows | formats.DataError]:
  """Reads sets as `stream` reads sequences.

  Args:
    path: `{"items": [...]}` on each line.
    beyond: Counts the items that a model does not know, which are left out.
    names: Of items; None where they have numbers alone.

  Yields:
    As there; an item that is there twice counts once.

  Raises:
    DataError: When the file itself is not right.
    OSError: When it cannot be read.
  """
  width = beyond.widths["feature"]
  number = {name: i for i, name in enumerate(names or ())}
  for block in documents.fields(path):
    for line, row in block:
      items = _items(path, line, row, _is_name_or_number, _SET)
      if isinstance(items, errors.DataError):
        yield items
        continue
      ids = [number.get(i, width) if isinstance(i, str) else i for i in items]
      beyond.see("feature", np.array(ids, np.int64))
      known = sorted({i for i in ids if i < width})
      yield formats.Rows(
        csr_lib.Csr(
          np.array([0, len(known)], np.int64),
          np.array(known, np.int32),
          np.ones(len(known), np.float32),
          width,
        ),
        None,
      )


def _items(
  path: str,
  line: int,
  row: dict[str, Any] | formats.DataError,
  is_item: Callable[[Any], bool],
  expected: str,
) -> list[Any] | formats.DataError:
  """The items of a row, or what is wrong with it."""
  if isinstance(row, errors.DataError):
    return row
  items = row.get("items")
  if (
    row.keys() == {"items"}
    and isinstance(items, list)
    and all(map(is_item, items))
  ):
    return items
  found = json.dumps(row, ensure_ascii=False)
  if len(found) > _SHOWN:
    found = found[:_SHOWN] + " ..."
  return errors.DataError(os.fspath(path), found, expected, line=line)


def _is_number(item: Any) -> bool:
  return type(item) is int and 0 <= item < 2**63


def _is_name_or_number(item: Any) -> bool:
  return isinstance(item, str) or _is_number(item)


def _json(path: str) -> Iterator[list[list[int] | formats.DataError]]:
  for block in documents.fields(path):
    yield [
      _items(path, line, row, _is_number, _SEQUENCE) for line, row in block
    ]


def _rows(rows: list[list[int]], beyond: checks.Beyond) -> formats.Rows:
  """Sequences of the items that the model knows."""
  num_items = beyond.widths["feature"]
  for row in rows:
    beyond.see("feature", np.array(row, np.int64))
  known = [[item for item in row if item < num_items] for row in rows]
  return formats.Rows(sequences.features(known, num_items), None)
