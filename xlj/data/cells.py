"""Cells of CSV and TSV, as RFC 4180 has them.

A cell in quotation marks may hold commas, newlines and, doubled, quotation
marks.
"""

from __future__ import annotations

from collections.abc import Iterator
import csv
import json
import os
from typing import Any

from xlj.data import errors
from xlj.data import lines

DataError = errors.DataError
Path = str | os.PathLike[str]
DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST = 60  # of what a message shows
HINT = (
  "a cell with a comma, tab, newline or quotation mark stands in quotation"
  ' marks, and those in it are doubled: "like ""this"""'
)


def rows(
  path: Path, delimiter: str
) -> Iterator[tuple[int, list[str] | DataError]]:
  """Reads rows.

  Args:
    path: plain or gzip text in UTF-8; "-" is standard input.
    delimiter: between cells.

  Yields:
    First line and cells of each row that is not empty, or the error in its
    place.

  Raises:
    DataError: when the file itself is not right.
    OSError: when it cannot be read.
  """
  csv.field_size_limit(lines.MAX_LINE_BYTES)
  reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
  while True:
    line = reader.line_num + 1
    try:
      cells = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      yield line, _malformed(error, path, line)
      continue
    if cells:
      yield line, _decoded(cells, path, line)


def _lines(path: Path) -> Iterator[str]:
  """Lines with their ends; bytes that are not UTF-8 are escaped."""
  for block in lines.blocks(
    path, keep_tabs=True, keep_nul=True, keep_returns=True
  ):
    text = block.text.decode(errors="surrogateescape")
    start = 0
    while start < len(text):
      stop = text.index("\n", start) + 1
      yield text[start:stop]
      start = stop


def _decoded(cells: list[str], path: Path, line: int) -> list[str] | DataError:
  """The cells, or the error if they were no text."""
  for cell in cells:
    if "\0" in cell:
      return DataError(path, "a NUL byte", "text", line=line)
    if cell.isascii():
      continue
    try:
      cell.encode()
    except UnicodeEncodeError:
      data = cell.encode(errors="surrogateescape")
      try:
        lines.decoded(lines.Block(data, line), path)
      except DataError as error:
        return error
  return cells


def _malformed(error: csv.Error, path: Path, line: int) -> DataError:
  reason, hint = str(error), HINT
  if "new-line" in reason:
    reason = "a carriage return alone"
    hint = "end lines with a newline"
  elif "unexpected end" in reason:
    reason = "quotation marks that nothing closes"
  return DataError(
    path,
    f"no row of cells ({reason})",
    "cells as in RFC 4180",
    line=line,
    hint=hint,
  )


def of_cell(cell: str) -> list[Any]:
  """The labels in a cell of a table.

  Args:
    cell: names between `|`, or a list in JSON.

  Returns:
    The labels, to be checked.

  Raises:
    Refused: when the list is none, or names begin or end with a blank.
  """
  if cell.startswith("["):
    try:
      found = json.loads(cell)
    except (ValueError, RecursionError):
      found = None
    if not isinstance(found, list):
      raise errors.Refused(
        f"labels {shown(repr(cell))}",
        'a list in JSON, ["a", "b"] or [3, 5], as it begins with one',
        'a name that begins with [ is written ["[name"]',
      )
    return found
  names = cell.split("|") if cell else []
  for name in names:
    if name != name.strip():
      raise errors.Refused(
        f"label {shown(repr(name))} with a blank at an end",
        "names between |, without blanks: a|b",
        'a name that has such a blank is written in a list, ["a "]',
      )
  return [*names]


def shown(text: str) -> str:
  """A text short enough for a message."""
  return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
