"""Names of labels."""

from __future__ import annotations

import os
import pathlib
import re

from xlj.data import errors
from xlj.data import lines

# In order of preference; any may end with .gz.
FILES = (
  "labels.txt",
  "label_names.txt",
  "label_map.txt",
  "Y.txt",
  "Yf.txt",
  "lbl.txt",
  "lbl.raw.txt",
  "Y.raw.txt",
  "labels.raw.txt",
  "output-items.txt",
)
# A column where every entry looks like one of these numbers the labels.
_IDENTIFIER = re.compile(r"\S*\d\S*|-")
_SAMPLE = 1000


def label_names(
  data_dir: str | os.PathLike[str], num_labels: int | None = None
) -> list[str] | None:
  """Reads the names of a data set's labels, one per line.

  A line without tabs is a name. Of a line with tabs, the name is the first
  column that is not an identifier, or the first one if all are: a column is
  an identifier when each of its entries (of the first 1,000) is one word with a
  digit in it. So `00001740-n<tab>entity<tab>that which ...` is named `entity`.

  Args:
    data_dir: the directory of the data set.
    num_labels: how many names there have to be.

  Returns:
    The names, by label id; None when there is no file of names (see `FILES`).

  Raises:
    DataError: when the number of names is another one, or the text is damaged.
  """
  path = _find(pathlib.Path(data_dir))
  if path is None:
    return None
  return read_names(path, num_labels)


def read_names(
  path: str | os.PathLike[str], num_labels: int | None = None
) -> list[str]:
  """Reads a file of names, as `label_names` does.

  Args:
    path: plain or gzip text in UTF-8; other bytes are replaced.
    num_labels: how many names there have to be.

  Returns:
    The names, by label id.

  Raises:
    DataError: when the number of names is another one, or the text is damaged.
  """
  rows = [
    line.split("\t")
    for block in lines.blocks(path, keep_tabs=True)
    for line in block.text.decode("utf-8", "replace").split("\n")[:-1]
  ]
  if num_labels is not None:
    # A last line without text is an empty line, not a name.
    while len(rows) > num_labels and rows[-1] == [""]:
      rows.pop()
    if len(rows) != num_labels:
      raise errors.DataError(
        path,
        f"{len(rows)} names",
        f"{num_labels}, one for each label",
        line=min(len(rows), num_labels + 1),
      )
  column = _name_column(rows[:_SAMPLE])
  return [row[min(column, len(row) - 1)] for row in rows]


def _find(root: pathlib.Path) -> pathlib.Path | None:
  for name in FILES:
    for path in (root / name, root / f"{name}.gz"):
      if path.is_file():
        return path
  return None


def _name_column(rows: list[list[str]]) -> int:
  width = min(map(len, rows), default=1)
  for column in range(width):
    if not all(_IDENTIFIER.fullmatch(row[column]) for row in rows):
      return column
  return 0
