"""Splits as row numbers: one file of all rows, another of which are whose.

The second has a line for each row of the split, and a column for each of
several splits; rows are numbered from 1. It is read into memory, and so are the
rows that it names.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import os

import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import lines

Path = str | os.PathLike[str]
_HINT = "--config.data.split counts columns from 1"


def read(path: Path, column: int) -> np.ndarray:
  """Reads a column of row numbers.

  Args:
    path: plain or gzip text.
    column: which, from 1.

  Returns:
    int64 [N], counted from 0, in the order of the file.

  Raises:
    DataError: when there is no such column, or a number is no number of a row,
      or twice in it.
    OSError: when the file cannot be read.
  """
  found, width = [], 0
  for block in lines.blocks(path):
    lines.check_no_nul(block, path)
    for number, line in enumerate(
      block.text.split(b"\n")[:-1], block.first_line
    ):
      cells = line.replace(b",", b" ").split()
      if not cells:
        continue
      if len(cells) < column:
        raise errors.DataError(
          path,
          f"{len(cells)} columns",
          f"at least {column}, as data.split is {column}",
          line=number,
          hint=_HINT,
        )
      if len(cells) != (width := width or len(cells)):
        raise errors.DataError(
          path,
          f"{len(cells)} columns",
          f"{width} as in the lines before",
          line=number,
          hint="a file of row numbers has no header: remove it if this has one",
        )
      cell = cells[column - 1]
      if not cell.isdigit() or len(cell) > 10 or not int(cell):
        raise errors.DataError(
          path, f"{cell[:20].decode('latin-1')!r}", "a row from 1", line=number
        )
      found.append(int(cell) - 1)
  rows = np.array(found, np.int64)
  if not len(rows):
    raise errors.DataError(path, "an empty file", "numbers of rows")
  unique, counts = np.unique(rows, return_counts=True)
  if len(unique) < len(rows):
    twice = unique[np.argmax(counts > 1)] + 1
    raise errors.DataError(
      path, f"row {twice} twice in column {column}", "each row once", hint=_HINT
    )
  return rows


def take(
  stream: Iterable[csr_lib.Rows], rows: np.ndarray, path: Path
) -> csr_lib.Rows:
  """Takes some of the rows of a file.

  Args:
    stream: all rows, sparse.
    rows: int64 [N] from 0, all different.
    path: where they are from, for errors.

  Returns:
    The rows in the order of `rows`.

  Raises:
    DataError: when there are fewer.
  """
  order = np.argsort(rows)
  ascending = rows[order]
  parts, start = [], 0
  for block in stream:
    stop = start + block.features.shape[0]
    low, high = np.searchsorted(ascending, [start, stop])
    here = ascending[low:high] - start
    parts.append([matrix and matrix.take(here) for matrix in block])
    start = stop
  if ascending[-1] >= start:
    raise errors.DataError(
      path, f"row {ascending[-1] + 1}", f"a row in [1, {start}]"
    )
  back = np.argsort(order)
  features, labels = (_joined(list(blocks), back) for blocks in zip(*parts))
  assert features is not None
  return csr_lib.Rows(features, labels)


def _joined(
  parts: list[csr_lib.Csr | None], rows: np.ndarray
) -> csr_lib.Csr | None:
  """Rows of blocks, of the width that the last has; None if there are none."""
  known = [part for part in parts if part is not None]
  if not known:
    return None
  width = known[-1].num_columns
  blocks = [dataclasses.replace(part, num_columns=width) for part in known]
  return csr_lib.concatenate(blocks).take(rows)
