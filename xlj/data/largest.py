"""Where the largest id of a matrix stands, looked for when it is in the way.

Reading costs nothing more for it: a matrix has the row, and its file is
searched for the line then.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import lines

_CHUNK = 2**22  # entries looked at at a time
_COUNTED = 2**27  # entries of which the distinct ids are counted


class Largest(NamedTuple):
  """The largest id of a matrix.

  Attributes:
    id: As the columns are numbered.
    row: The first that has it, from 0.
    distinct: How many ids occur; None of too many entries to count them.
  """

  id: int
  row: int
  distinct: int | None


def find(matrix: csr_lib.Csr) -> Largest | None:
  """The largest id of a matrix of any size; None of one without entries."""
  best, at = -1, 0
  for start in range(0, matrix.nnz, _CHUNK):
    part = matrix.indices[start : start + _CHUNK]
    entry = int(np.argmax(part))
    if part[entry] > best:
      best, at = int(part[entry]), start + entry
  if best < 0:
    return None
  row = int(np.searchsorted(matrix.indptr, at, side="right")) - 1
  few = matrix.nnz <= _COUNTED
  distinct = len(np.unique(matrix.indices)) if few else None
  return Largest(best, row, distinct)


def place(files: discover.Files, what: str, written: int, row: int) -> str:
  """Where an id of a row stands.

  Args:
    files: Of the split.
    what: "feature" or "label".
    written: The id, as the file has it.
    row: The row, from 0.

  Returns:
    `file:line`, or the file and the row where it has no lines.
  """
  path = files.features if what == "feature" else files.labels or files.features
  if path.suffix not in discover.ARRAYS and not discover.is_table(path):
    # A pair ends with a colon; ids alone may not, beside features.
    end = rb":" if what == "feature" else rb"(?![\d.])"
    if what == "label" and path == files.features:
      end = rb"(?![\d.:])"
    line = _line(path, rb"(?<![\d.:])0*%d%s" % (written, end), row + 1)
    if line is not None:
      return f"{path}:{line}"
  return f"{path}, row {row} from 0"


def _line(
  path: str | os.PathLike[str], pattern: bytes, first: int
) -> int | None:
  """The first line, from a number on, that a pattern matches."""
  compiled = re.compile(pattern)
  for block in lines.blocks(path):
    if block.first_line + block.text.count(b"\n") <= first:
      continue
    for number, line in enumerate(block.text.split(b"\n"), block.first_line):
      if number >= first and compiled.search(line):
        return number
  return None
