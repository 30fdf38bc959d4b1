"""Parquet and Arrow tables, as pyarrow and Hugging Face `datasets` write them.

Columns are the fields of `rows`. Labels are lists of texts or of integers, or a
cell as `tables` has it; `label` is one of them. Where the table names the
classes of its numbers (`ClassLabel`), they are those names, and -1 is no label.
"""

from __future__ import annotations

from collections.abc import Iterator
import json
import os
from typing import Any

from xlj.data import arrow
from xlj.data import errors
from xlj.documents import rows

DataError = errors.DataError
Path = str | os.PathLike[str]


def blocks(
  path: Path,
) -> Iterator[list[tuple[int, dict[str, Any] | DataError]]]:
  """Reads rows.

  Args:
    path: the table.

  Yields:
    Number, from 0, and fields of each row, or the error in its place.

  Raises:
    DataError: when the file is no such table.
    ImportError: without pyarrow, with what to install.
    OSError: when it cannot be read.
  """
  with arrow.opened(path) as table:
    names = [
      name
      for name in table.names
      if name in ("title", "label", *rows.TEXT, *rows.LABELS, *rows.ID)
    ]
    if not {"title", *rows.TEXT} & {*names}:
      found = rows.shown(", ".join(table.names))
      raise DataError(path, f"columns {found}", "one of them 'text'")
    classes = _classes(table.schema.metadata)
    row = 0
    for batch in table.batches(names):
      yield list(_rows(batch, row, classes, path))
      row += batch.num_rows


def _rows(
  batch: Any, first: int, classes: dict[str, list[str]], path: Path
) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
  try:
    found = batch.to_pylist()
  except UnicodeDecodeError:
    found = [None] * batch.num_rows  # of which one is
  for i, fields in enumerate(found):
    try:
      if fields is None:
        (fields,) = batch.slice(i, 1).to_pylist()
      for name in rows.LABELS:
        if isinstance(fields.get(name), str):
          fields[name] = rows.of_cell(fields[name])
      for name, texts in classes.items():
        _named(fields, name, texts)
      yield first + i, fields
    except UnicodeDecodeError:
      refused = rows.Refused("bytes that are not UTF-8", "text in UTF-8")
      yield first + i, refused.at(path, first + i)
    except rows.Refused as error:
      yield first + i, error.at(path, first + i)


def _classes(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
  """Names of classes by column, where `datasets` has written them."""
  try:
    said = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
  except (KeyError, ValueError, TypeError):
    return {}
  found = {}
  for name in ("label", *rows.LABELS):
    feature = said.get(name)
    # Of lists it is {"feature": {"names": ...}} or [{"names": ...}].
    if isinstance(feature, list) and feature:
      feature = feature[0]
    elif isinstance(feature, dict):
      feature = feature.get("feature", feature)
    if isinstance(feature, dict) and feature.get("names"):
      found[name] = feature["names"]
  return found


def _named(fields: dict[str, Any], column: str, names: list[str]) -> None:
  """Puts names in the place of the numbers of classes."""
  value = fields.get(column)
  if value is None:
    return
  numbers = value if isinstance(value, list) else [value]
  for number in numbers:
    if not isinstance(number, int) or not -1 <= number < len(names):
      raise rows.Refused(
        f"{number!r} as a class",
        f"one of {len(names)} that the table names, or -1 for none",
      )
  found = [names[number] for number in numbers if number >= 0]
  del fields[column]
  fields["labels"] = found
