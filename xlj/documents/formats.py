"""Rows of texts, from a file of any form."""

from __future__ import annotations

from collections.abc import Iterator
import os

from xlj.data import errors
from xlj.data import lines
from xlj.documents import discover
from xlj.documents import jsonl
from xlj.documents import rows

DataError = errors.DataError
Block = rows.Block
Path = str | os.PathLike[str]


def stream(
  path: Path, *, duplicates: str = "refuse"
) -> Iterator[Block | DataError]:
  """Reads one file; a bad row costs no other.

  The ending decides. Memory is bounded by a block and the longest row; nothing
  is cached.

  Args:
    path: a file; "-" reads JSONL, plain or gzip, from standard input.
    duplicates: "refuse" labels that a row has twice, or keep the "first".

  Yields:
    Blocks of rows in order, and in the place of a row that is not right its
    error.

  Raises:
    DataError: when the file itself is not right.
    OSError: when it cannot be read.

  Example:
    for block in stream("new.jsonl"):
      if not isinstance(block, DataError):
        scores = predict(block.texts)
  """
  ending = discover.plain_ending(path)
  if os.fspath(path) != lines.STDIN and ending not in discover.ROWS:
    raise DataError(
      path,
      f"a name that ends with {ending!r}",
      f"one with {', '.join(discover.ROWS)} (or .gz)",
    )
  for found in jsonl.blocks(path):
    yield from rows.blocks(path, found, duplicates)
