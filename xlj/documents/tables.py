"""CSV and TSV with named columns, as RFC 4180 has them.

The first row names the columns, which are the fields of `rows`. A cell in
quotation marks may hold commas, newlines and, doubled, quotation marks. Of the
labels, `label` is one name, and `labels` names between `|`, or a list in JSON,
where ids can be written: [3, 5]. An empty cell is no label.
"""

from __future__ import annotations

from collections.abc import Iterator
import csv
import os
from typing import Any

from xlj.data import errors
from xlj.data import lines
from xlj.documents import rows

DataError = errors.DataError
Path = str | os.PathLike[str]
DELIMITERS = {".csv": ",", ".tsv": "\t"}
_BLOCK_ROWS = 4096
_HINT = (
  "a cell with a comma, tab, newline or quotation mark stands in quotation"
  ' marks, and those in it are doubled: "like ""this"""'
)


def blocks(
  path: Path, delimiter: str
) -> Iterator[list[tuple[int, dict[str, Any] | DataError]]]:
  """Reads rows.

  Args:
    path: plain or gzip text in UTF-8; "-" is standard input.
    delimiter: between cells.

  Yields:
    First line and fields of each row, or the error in its place. Empty lines
    are no rows.

  Raises:
    DataError: when the header or the file itself is not right.
    OSError: when it cannot be read.
  """
  found: list[tuple[int, dict[str, Any] | DataError]] = []
  header: list[str] | None = None
  for line, cells in _cells(path, delimiter):
    if header is None:
      if isinstance(cells, DataError):
        raise cells
      header = _header(cells, path, line)
    elif isinstance(cells, DataError):
      found.append((line, cells))
    else:
      found.append((line, _fields(header, cells, path, line)))
    if len(found) == _BLOCK_ROWS:
      yield found
      found = []
  yield found


def _cells(
  path: Path, delimiter: str
) -> Iterator[tuple[int, list[str] | DataError]]:
  """First line and cells of each row that is not empty."""
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
  reason, hint = str(error), _HINT
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


def _header(cells: list[str], path: Path, line: int) -> list[str]:
  names = [cell.strip() for cell in cells]
  for name in names:
    if name and names.count(name) > 1:
      raise DataError(
        path, f"column {name!r} twice", "each name once", line=line
      )
  if not {"title", *rows.TEXT} & {*names}:
    raise DataError(
      path,
      f"columns {rows.shown(', '.join(names))}",
      "a first row that names the columns, one of them 'text'",
      line=line,
      hint="cells end with a comma in .csv, with a tab in .tsv",
    )
  return names


def _fields(
  header: list[str], cells: list[str], path: Path, line: int
) -> dict[str, Any] | DataError:
  if len(cells) != len(header):
    return DataError(
      path,
      f"{len(cells)} cells",
      f"{len(header)}, as many as columns are named",
      line=line,
      hint=_HINT,
    )
  fields: dict[str, Any] = dict(zip(header, cells))
  try:
    for name in rows.LABELS:
      if name in fields:
        fields[name] = rows.of_cell(fields[name])
  except rows.Refused as error:
    return error.at(path, line)
  for name in ("label", *rows.ID):
    if fields.get(name) == "":
      del fields[name]
      if name == "label":
        fields["labels"] = []
  return fields
