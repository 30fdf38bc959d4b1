"""Rows of texts, from a file of any form."""

from __future__ import annotations

from collections.abc import Iterator
import os
import pathlib
from typing import Any

from xlj.data import arrow
from xlj.data import errors
from xlj.data import lines
from xlj.documents import jsonl
from xlj.documents import paired
from xlj.documents import parquet
from xlj.documents import rows
from xlj.documents import tables

DataError = errors.DataError
Block = rows.Block
Path = str | os.PathLike[str]
# Endings of files whose rows have fields.
JSON = (".jsonl", ".json", ".ndjson")
FIELDS = (*JSON, *tables.DELIMITERS, *arrow.ENDINGS)
LINES = ".txt"  # of files with a text on each line


def stream(
  path: Path, *, duplicates: str = "refuse"
) -> Iterator[Block | DataError]:
  """Reads one file; a bad row costs no other.

  The ending decides: `FIELDS`, any but Parquet and Arrow with .gz too, or
  `LINES`. Memory is bounded by a block and the longest row; nothing is cached.

  Args:
    path: a file; "-" reads JSONL, plain or gzip, from standard input.
    duplicates: "refuse" labels that a row has twice, or keep the "first".

  Yields:
    Blocks of rows in order, and in the place of a row that is not right its
    error.

  Raises:
    DataError: when the file itself is not right.
    ImportError: for Parquet and Arrow, without pyarrow.
    OSError: when it cannot be read.

  Example:
    for block in stream("new.jsonl"):
      if not isinstance(block, DataError):
        scores = predict(block.texts)
  """
  if os.fspath(path) != lines.STDIN and ending(path) == LINES:
    yield from paired.stream(path)
    return
  for found in fields(path):
    yield from rows.blocks(path, found, duplicates)


def fields(
  path: Path,
) -> Iterator[list[tuple[int, dict[str, Any] | DataError]]]:
  """Reads the fields of rows, whatever they are.

  Args:
    path: one of `FIELDS`, or "-".

  Yields:
    Line and fields of each row, or the error in its place.

  Raises:
    DataError: when the file itself is not right.
    ImportError: for Parquet and Arrow, without pyarrow.
    OSError: when it cannot be read.
  """
  found = JSON[0] if os.fspath(path) == lines.STDIN else ending(path)
  if found in JSON:
    return jsonl.blocks(path)
  if found in tables.DELIMITERS:
    return tables.blocks(path, tables.DELIMITERS[found])
  if found in arrow.ENDINGS:
    return parquet.blocks(path)
  raise DataError(
    path,
    f"a name that ends with {found!r}" if found else "a name without an ending",
    f"texts in {', '.join((*FIELDS, LINES))}, with .gz or without",
  )


def ending(path: Path) -> str:
  """The ending of a name, without .gz, in small letters."""
  name = os.fspath(path).lower().removesuffix(".gz")
  return pathlib.PurePath(name).suffix
