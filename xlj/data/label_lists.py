"""Text with the ids of a row's labels on each line, and no header.

0,2,3,11
0 5          commas or blanks
             a row without labels
3::0.5,7     with a relevance, see `checks.Columns`
red, dark red   names have commas alone between them
"""

from __future__ import annotations

from collections.abc import Iterator
import os
import re

from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import lines
from xlj.data import numbering
from xlj.data import text

Path = str | os.PathLike[str]

_AT_ENDS = re.compile(rb"(?<![^\n]) +| +(?=\n)")
_BETWEEN = re.compile(rb" *[, ] *")


def holds(path: Path) -> bool:
  """Whether a text has such lines: the split form has colons, or no label."""
  first = next(lines.blocks(path), None)
  if text.has_names(path):
    return True
  if first is None or b":" in first.text.replace(b"::", b""):
    return False
  head, *rest = first.text.split(b"\n")[:-1]
  sizes = head.split()
  empty = len(sizes) == 2 and not any(line.strip() for line in rest)
  return not (empty and sizes[0] == b"%d" % len(rest))


def _between_commas(line: str) -> tuple[list[str], str]:
  return ([name.strip(" ") for name in line.split(",")] if line else []), ""


def stream(path: Path, labels: checks.Columns) -> Iterator[csr_lib.Csr]:
  """Reads labels.

  Args:
    path: plain or gzip text.
    labels: checks the blocks.

  Yields:
    All rows in order, without values.

  Raises:
    DataError: at the first line that is not right.
    OSError: when the file cannot be read.
  """
  names = labels.numbers
  for block in lines.blocks(path):
    lines.check_no_nul(block, path)
    written = block.text
    if isinstance(names, numbering.Names):
      written = text.numbered(block, path, names, _between_commas)
    elif b" " in written:
      written = _BETWEEN.sub(b",", _AT_ENDS.sub(b"", written))
    parsed = text.rows(written, path, block.first_line)
    place = checks.Place(path, block.first_line)
    if len(parsed.ids):
      row = int((parsed.indptr > 0).argmax()) - 1
      raise place.error(row, "a colon", "the ids of its labels, l1,l2")
    yield labels.block(
      parsed.label_indptr, parsed.labels, parsed.relevances, place
    )
