"""Names of labels: one on each line of a UTF-8 text, kept as they are."""

from __future__ import annotations

from collections.abc import Sequence
import os
import pathlib
import re

from xlj import files
from xlj.data import discover
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
FEATURE_FILES = ("Xf.txt", "feature_names.txt")  # of features, likewise
# A column where every entry looks like one of these numbers the labels.
_IDENTIFIER = re.compile(r"\S*\d\S*|-")
_SAMPLE = 1000
# What may end a line, by `str.splitlines`, besides a newline; as in JSON.
LINE_ENDS = {
  ord(c): f"\\u{ord(c):04x}" for c in "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
}
_ESCAPES = LINE_ENDS | str.maketrans(
  {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}
)


def label_names(
  data_dir: str | os.PathLike[str], num_labels: int | None = None
) -> list[str] | None:
  """Reads the names of a data set's labels, one per line.

  A line is a name, blanks at its ends and any tabs included. But where every
  line has a tab, the file is a table: the name is the first column that is not
  an identifier, or the first one if all are. A column is an identifier when
  each of its entries (of the first 1,000) is one word with a digit in it. So
  `00001740-n<tab>entity<tab>that which ...` is named `entity`.

  Args:
    data_dir: the directory of the data set.
    num_labels: how many names there have to be.

  Returns:
    The names, by label id; None when there is no file of names (see `FILES`).

  Raises:
    DataError: when the number of names is another one, or the text is damaged.
  """
  path = find(data_dir)
  return None if path is None else read_names(path, num_labels)


def find(
  data_dir: str | os.PathLike[str], names: Sequence[str] = FILES
) -> pathlib.Path | None:
  """The file of the names of a data set's labels; None if it has none."""
  root = pathlib.Path(data_dir)
  found = [
    path
    for place in (root, discover.place_of_labels(root))
    for name in names
    for path in (place / name, place / f"{name}.gz")
    if path.is_file()
  ]
  return found[0] if found else None


def read_names(
  path: str | os.PathLike[str],
  num_labels: int | None = None,
  *,
  table: bool = True,
) -> list[str]:
  """Reads a file of names, as `label_names` does.

  Args:
    path: plain or gzip text in UTF-8.
    num_labels: how many names there have to be.
    table: False takes every line as it is.

  Returns:
    The names, by label id.

  Raises:
    DataError: when the number of names is another one, or the text is damaged.
  """
  rows = _lines(path)
  if num_labels is not None:
    # A last line without text is an empty line, not a name.
    while len(rows) > num_labels and not rows[-1]:
      rows.pop()
    if len(rows) != num_labels:
      raise errors.DataError(
        path,
        f"{len(rows)} names",
        f"{num_labels}, one for each label",
        line=max(1, min(len(rows), num_labels + 1)),
        hint=_hint(rows, num_labels),
      )
  if not table or not all("\t" in row for row in rows):
    return rows
  columns = [row.split("\t") for row in rows]
  column = _name_column(columns[:_SAMPLE])
  return [row[min(column, len(row) - 1)] for row in columns]


def read_table(path: str | os.PathLike[str]) -> list[list[str]]:
  """Reads names, and what a table says besides.

  Args:
    path: plain or gzip text in UTF-8.

  Returns:
    By label id, the name and then what other columns hold, those to its right
    that are not identifiers; the name alone if the file is no table.

  Raises:
    DataError: when the text is damaged.
  """
  rows = _lines(path)
  if not all("\t" in row for row in rows):
    return [[row] for row in rows]
  columns = [row.split("\t") for row in rows]
  name = _name_column(columns[:_SAMPLE])
  rest = [
    column
    for column in range(name + 1, max(map(len, columns), default=0))
    if not all(
      _IDENTIFIER.fullmatch(row[column])
      for row in columns[:_SAMPLE]
      if column < len(row)
    )
  ]
  return [
    [row[min(name, len(row) - 1)]]
    + [row[column] for column in rest if column < len(row)]
    for row in columns
  ]


def write_names(path: str | os.PathLike[str], names: Sequence[str]) -> None:
  """Writes what `read_names` reads, with `table=False`, as it is.

  Args:
    path: of the file; a reader sees all of it, or what was there.
    names: none with a newline.
  """
  # A carriage return before a newline counts as a part of it.
  ends = ("\r\n" if name.endswith("\r") else "\n" for name in names)
  files.write_text(path, "".join(map("".join, zip(names, ends))))


def escaped(name: str) -> str:
  r"""A name for a cell of a table.

  Args:
    name: any text.

  Returns:
    The name with a backslash, tab, newline and carriage return written as
    `\\`, `\t`, `\n` and `\r`, and what else may end a line as `\u2028`: as in
    a JSON string.
  """
  return name.translate(_ESCAPES)


def _lines(path: str | os.PathLike[str]) -> list[str]:
  return [
    line
    for block in lines.blocks(path, keep_tabs=True)
    for line in lines.decoded(block, path).split("\n")[:-1]
  ]


def _hint(rows: list[str], num_labels: int) -> str:
  if len(rows) > num_labels:
    return (
      f"if labels from {num_labels} on have no example,"
      f" --config.data.num_labels={len(rows)}"
    )
  if any("\r" in row for row in rows):
    return "end lines with a newline, not with a carriage return alone"
  return "an empty line is a name too; without the file labels have ids alone"


def _name_column(rows: list[list[str]]) -> int:
  width = min(map(len, rows), default=1)
  for column in range(width):
    if not all(_IDENTIFIER.fullmatch(row[column]) for row in rows):
      return column
  return 0
