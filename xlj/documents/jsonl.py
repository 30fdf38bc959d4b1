"""JSON objects, one on each line."""

from __future__ import annotations

from collections.abc import Iterator
import json
import os
from typing import Any

from xlj.data import errors
from xlj.data import lines

DataError = errors.DataError
Path = str | os.PathLike[str]
_ARRAY = "jq -c '.[]' FILE > NAME.jsonl writes its elements on lines"


def blocks(
  path: Path,
) -> Iterator[list[tuple[int, dict[str, Any] | DataError]]]:
  """Reads objects.

  Args:
    path: plain or gzip text in UTF-8; "-" is standard input.

  Yields:
    Line and fields of each row, or the error in its place. Empty lines are
    none.

  Raises:
    DataError: when the file itself is not right.
    OSError: when it cannot be read.
  """
  for block in lines.blocks(path, keep_tabs=True, keep_nul=True):
    yield list(_objects(block, path))


def _objects(
  block: lines.Block, path: Path
) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
  # Decoded by rows: of a block one emoji would make four bytes of each byte.
  rows = block.text.split(b"\n")
  rows.pop()
  for line, row in enumerate(rows, block.first_line):
    if not row or row.isspace():
      continue
    try:
      yield line, _object(row, path, line)
    except DataError as error:
      yield line, error


def _object(data: bytes, path: Path, line: int) -> dict[str, Any]:
  row = ""
  try:
    row = data.strip().decode()
    found, end = _DECODER.raw_decode(row)
    if end != len(row):
      _DECODER.decode(row)  # which says what is behind
  except UnicodeDecodeError:
    lines.decoded(lines.Block(data, line), path)  # which says what it is
    raise
  except RecursionError:
    raise DataError(
      path,
      "JSON that is nested too deeply",
      "an object of a few fields",
      line=line,
    ) from None
  except ValueError as error:
    raise _malformed(row, error, path, line) from None
  if type(found) is not dict:
    array = isinstance(found, list)
    raise DataError(
      path,
      f"JSON that is {'an array' if array else 'no object'}",
      'an object on each line, {"text": ..., "labels": [...]}',
      line=line,
      hint=_ARRAY if array else "",
    )
  return found


def _malformed(row: str, error: ValueError, path: Path, line: int) -> DataError:
  if "\0" in row:
    return DataError(path, "a NUL byte", "text", line=line)
  expected = 'an object on each line, {"text": ..., "labels": [...]}'
  if not isinstance(error, json.JSONDecodeError):
    return DataError(path, str(error), expected, line=line)
  hint = ""
  if row.strip() in ("[", "{", "[{"):
    hint = "jq -c . FILE > NAME.jsonl writes each object on a line"
    if row.strip() != "{":
      hint = _ARRAY
  column = error.pos + 1
  return DataError(
    path,
    f"no JSON ({error.msg}, column {column})",
    expected,
    line=line,
    hint=hint,
  )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object of which no field is twice."""
  out = dict(pairs)
  if len(out) != len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"field {twice!r} twice in an object")
  return out


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
