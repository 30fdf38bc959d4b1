"""Files that say what the labels are: a name, and a text, of each.

  labels.jsonl   {"label": name, "text": ...}; without a text the name is it.
                 Or {"label": id, "text": ...} for each id, without names.
                 Also in the other forms of `formats.FIELDS`
  lbl.json       {"title": ..., "content": ...} of each label, by id: the title
                 is the name. The Extreme Classification Repository has it
  labels.txt     and others (`names.FILES`): a line of each label, by id; also
                 in `raw` below

A line of a table (see `names`) is a text: the name and what follows it, columns
of identifiers left out.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any

from xlj.data import errors
from xlj.data import names as names_lib
from xlj.documents import formats
from xlj.documents import rows

DataError = errors.DataError
Path = str | os.PathLike[str]
FILES = tuple(f"{x}{y}" for x in ("labels", "lbl") for y in formats.FIELDS)


@dataclasses.dataclass(frozen=True)
class LabelFile:
  """What a file says of the labels.

  Attributes:
    names: by id; None if it has ids alone.
    texts: by id; None if they are the names.
  """

  names: list[str] | None
  texts: list[str] | None

  @property
  def count(self) -> int:
    """How many labels there are."""
    found = self.names if self.texts is None else self.texts
    return len(found or ())


def find(data_dir: Path) -> pathlib.Path | None:
  """The file of a data set; None if it has none.

  Args:
    data_dir: directory of the data set.

  Returns:
    Its path.

  Raises:
    DataError: when there are several of `FILES`.
  """
  root = pathlib.Path(data_dir)
  found = [
    root / name
    for plain in FILES
    for name in (plain, f"{plain}.gz")
    if (root / name).is_file()
  ]
  if len(found) > 1:
    raise DataError(
      root,
      f"several files of labels: {', '.join(path.name for path in found)}",
      "one",
      hint="move the others out of the directory",
    )
  return found[0] if found else names_lib.find(root) or _raw(root)


def read(path: Path) -> LabelFile:
  """Reads a file of labels into memory.

  Args:
    path: one of those that `find` finds.

  Returns:
    What it says.

  Raises:
    DataError: at the first line that is not right.
    OSError: when it cannot be read.
  """
  if formats.ending(path) != formats.LINES:
    return _read_fields(path)
  table = names_lib.read_table(path)
  while table and table[-1] == [""]:
    table.pop()  # an empty line at the end
  names = [row[0] for row in table]
  texts = None
  if any(len(row) > 1 for row in table):
    texts = ["\n".join(filter(None, row)) for row in table]
  return LabelFile(names, texts)


def _raw(root: pathlib.Path) -> pathlib.Path | None:
  return names_lib.find(root / "raw") if (root / "raw").is_dir() else None


def _read_fields(path: Path) -> LabelFile:
  labels: list[Any] = []
  texts: list[str] = []
  places: dict[Any, int] = {}
  for block in formats.fields(path):
    for line, fields in block:
      if isinstance(fields, DataError):
        raise fields
      try:
        label, text = _label(fields)
        if labels and type(label) is not type(labels[-1]):
          raise rows.Refused(
            f"label {label!r}" if label is not None else "no 'label'",
            "a name on each line, or an id, or none",
          )
        if label in places:
          raise rows.Refused(
            f"label {rows.shown(repr(label))} again, as in line"
            f" {places[label]}",
            "each label once",
          )
      except rows.Refused as error:
        raise error.at(path, line) from None
      if label is not None:
        places[label] = line
      labels.append(label)
      texts.append(text)
  if not labels:
    raise DataError(path, "an empty file", "a line for each label")
  if labels[0] is None:
    return LabelFile([text.split("\n")[0] for text in texts], texts)
  if isinstance(labels[0], str):
    return LabelFile(labels, texts if texts != labels else None)
  return LabelFile(None, _by_id(labels, texts, path))


def _label(fields: Mapping[str, Any]) -> tuple[rows.Label | None, str]:
  """The label and the text of a line."""
  label = None
  if fields.get("label") is not None:
    label = rows.label_of(fields["label"])
  if isinstance(label, str) and not any(
    fields.get(name) is not None for name in ("title", *rows.TEXT)
  ):
    return label, label
  return label, rows.text_of(fields)


def _by_id(labels: list[int], texts: list[str], path: Path) -> list[str]:
  found = dict(zip(labels, texts))
  for i in range(len(labels)):
    if i not in found:
      raise DataError(
        path,
        f"{len(labels)} labels without one of id {i}",
        f"each id from 0 to {max(labels)}",
      )
  return [found[i] for i in range(len(labels))]
