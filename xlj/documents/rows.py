"""What a row of texts is: its fields, checked, whatever file they are from.

  text      the text (`content` in files of the Extreme Classification
            Repository); `title`, where there is one, is put before it with a
            newline between. An empty one of the two adds nothing.
  labels    a list of names, or of ids counted from 0 (`target_ind`); or
  label     a single one
  id        of the row: a text or an integer (`uid`)

What else a row has is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
import itertools
import os
from typing import Any, NamedTuple

from xlj.data import cells
from xlj.data import checks
from xlj.data import errors

DataError = errors.DataError
Refused = errors.Refused
of_cell, shown = cells.of_cell, cells.shown
Path = str | os.PathLike[str]
Label = str | int
TEXT = ("text", "content")
LABELS = ("labels", "target_ind")
ID = ("id", "uid")
_FIRST = "train with --config.data.duplicates=first to keep one of them"


class Block(NamedTuple):
  """Consecutive rows of a file.

  Attributes:
    texts: of each row.
    labels: of each row: names or ids; None where it does not say.
    ids: of each row; None where it has none.
    lines: where each row begins, from 1; in Parquet rows are counted, from 0.
  """

  texts: Sequence[str]
  labels: Sequence[list[Label] | None]
  ids: Sequence[str | None]
  lines: Sequence[int]

  def only(self, kept: Sequence[bool]) -> Block:
    """The rows that are kept."""
    return Block(
      list(itertools.compress(self.texts, kept)),
      list(itertools.compress(self.labels, kept)),
      list(itertools.compress(self.ids, kept)),
      list(itertools.compress(self.lines, kept)),
    )


class Row(NamedTuple):
  """One row, as a block has it."""

  text: str
  labels: list[Label] | None
  id: str | None


def blocks(
  path: Path,
  items: Iterable[tuple[int, Mapping[str, Any] | DataError]],
  duplicates: str = "refuse",
) -> Iterator[Block | DataError]:
  """Checks the rows that a reader has found.

  Args:
    path: the file.
    items: line and fields of each row, or the error in its place.
    duplicates: "refuse" labels that a row has twice, or keep the "first".

  Yields:
    Rows in order; in the place of one that is not right its error.
  """
  found: list[Row] = []
  places: list[int] = []
  for line, fields in items:
    try:
      if isinstance(fields, DataError):
        raise fields
      found.append(parse(fields, duplicates))
      places.append(line)
    except (DataError, Refused) as error:
      if places:
        yield _block(found, places)
      found, places = [], []
      yield error.at(path, line) if isinstance(error, Refused) else error
  if places:
    yield _block(found, places)


def _block(found: list[Row], lines: list[int]) -> Block:
  texts = [row[0] for row in found]
  return Block(
    texts, [row[1] for row in found], [row[2] for row in found], lines
  )


def parse(fields: Mapping[str, Any], duplicates: str = "refuse") -> Row:
  """Checks the fields of a row.

  Args:
    fields: by name.
    duplicates: as of `blocks`.

  Returns:
    The row.

  Raises:
    Refused: when something is not right.
  """
  return Row(
    text_of(fields),
    _labels(fields, duplicates),
    _id(fields),
  )


def text_of(fields: Mapping[str, Any]) -> str:
  """The text of a row, its title before it.

  Args:
    fields: by name.

  Returns:
    The text.

  Raises:
    Refused: when there is none, or it is not text.
  """
  text, title = fields.get("text"), fields.get("title")
  if text is None:
    text = fields.get("content")
  if text is None and title is None:
    for name in TEXT:
      if name in fields:
        raise Refused(f"null as {name!r}", "a text")
    names = shown(", ".join(map(str, fields))) or "none"
    raise Refused(f"no text among the fields: {names}", "a field 'text'")
  if title is None:
    return checked(text, "text")
  if text is None:
    return checked(title, "title")
  parts = checked(title, "title"), checked(text, "text")
  return "\n".join(filter(None, parts))


def checked(text: Any, what: str) -> str:
  """A text that is one.

  Args:
    text: anything.
    what: what it is, for the message.

  Returns:
    The text.

  Raises:
    Refused: when it is something else, or no Unicode.
  """
  if not isinstance(text, str):
    raise Refused(f"{kind(text)} as {what}", "a text")
  if not text.isascii():
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise Refused(
        f"half a surrogate pair, {ascii(text[error.start])}, in {what}",
        "Unicode text",
        "write the whole character, or U+FFFD in its place",
      ) from None
  return text


def label_of(label: Any) -> Label:
  """A label that is a name or an id.

  Args:
    label: anything.

  Returns:
    The label.

  Raises:
    Refused: when it is something else.
  """
  if isinstance(label, str):
    if not label:
      raise Refused("an empty name of a label", "a name", "[] is no label")
    return checked(label, "the name of a label")
  if not isinstance(label, int) or isinstance(label, bool):
    raise Refused(f"{kind(label)} as a label", "a name, or an id from 0")
  if not 0 <= label < checks.MAX_COLUMNS:
    # Thousands of digits would not be printed.
    found = label if abs(label) < 2**64 else "of more than 64 bits"
    raise Refused(
      f"label {found}",
      f"an id in [0, {checks.MAX_COLUMNS - 1}]",
      "write large ids as names, in quotation marks",
    )
  return label


def kind(value: Any) -> str:
  """What a value is, in words for a message."""
  names = {
    "bool": "a bool",
    "int": "a number",
    "float": "a number",
    "str": "a text",
    "list": "a list",
    "dict": "an object",
    "NoneType": "null",
  }
  name = type(value).__name__
  return names.get(name, name)


def _id(fields: Mapping[str, Any]) -> str | None:
  found = fields.get("id")
  if found is None:
    found = fields.get("uid")
  if found is None:
    return None
  if isinstance(found, int) and not isinstance(found, bool):
    return str(found)
  return checked(found, "id")


def _labels(fields: Mapping[str, Any], duplicates: str) -> list[Label] | None:
  several = fields.get("labels")
  single = fields.get("label")
  if several is None:
    if single is not None:
      return [label_of(single)]
    several = fields.get("target_ind")
    if several is None:
      return None
  elif single is not None:
    raise Refused("both 'label' and 'labels'", "one of them")
  if not isinstance(several, list):
    raise Refused(
      f"{kind(several)} as 'labels'",
      'a list of names or of ids, ["a", "b"] or [3, 5]',
      "a single one may be called 'label'",
    )
  # Most are names that need no look at their characters.
  out = [
    x if type(x) is str and x and x.isascii() else label_of(x) for x in several
  ]
  if len(out) > 1 and len(set(out)) < len(out):
    if duplicates == "refuse":
      twice = next(label for label in out if out.count(label) > 1)
      raise Refused(
        f"label {shown(repr(twice))} twice in a row", "each once", _FIRST
      )
    out = list(dict.fromkeys(out))
  return out
