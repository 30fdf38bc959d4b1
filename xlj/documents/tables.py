"""CSV and TSV with named columns, as RFC 4180 has them.

The first row names the columns, which are the fields of `rows`. A cell in
quotation marks may hold commas, newlines and, doubled, quotation marks. Of the
labels, `label` is one name, and `labels` names between `|`, or a list in JSON,
where ids can be written: [3, 5]. An empty cell is no label.
"""

from __future__ import annotations

from collections.abc import Iterator
import os
from typing import Any

from xlj.data import cells as cells_lib
from xlj.data import errors
from xlj.documents import rows

DataError = errors.DataError
Path = str | os.PathLike[str]
DELIMITERS = cells_lib.DELIMITERS
_BLOCK_ROWS = 4096


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
  for line, cells in cells_lib.rows(path, delimiter):
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
      hint=cells_lib.HINT,
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
