"""Sequences of items that a model is to say the next one of, from a file."""

from collections.abc import Iterator
import json
import os
from typing import Any

import numpy as np

from xlj.data import checks
from xlj.data import errors
from xlj.data import formats
from xlj.data import sequences
from xlj.documents import formats as documents

_EXPECTED = '{"items": [...]}, whole numbers from 0 with the oldest first'
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


def _json(path: str) -> Iterator[list[list[int] | formats.DataError]]:
  for block in documents.fields(path):
    yield [_items(path, line, row) for line, row in block]


def _items(
  path: str, line: int, row: dict[str, Any] | formats.DataError
) -> list[int] | formats.DataError:
  """The items of a row, or what is wrong with it."""
  if isinstance(row, errors.DataError):
    return row
  items = row.get("items")
  if (
    row.keys() == {"items"}
    and isinstance(items, list)
    and all(type(item) is int and 0 <= item < 2**63 for item in items)
  ):
    return items
  found = json.dumps(row, ensure_ascii=False)
  if len(found) > _SHOWN:
    found = found[:_SHOWN] + " ..."
  return errors.DataError(os.fspath(path), found, _EXPECTED, line=line)


def _rows(rows: list[list[int]], beyond: checks.Beyond) -> formats.Rows:
  """Sequences of the items that the model knows."""
  num_items = beyond.widths["feature"]
  for row in rows:
    beyond.see("feature", np.array(row, np.int64))
  known = [[item for item in row if item < num_items] for row in rows]
  return formats.Rows(sequences.features(known, num_items), None)
