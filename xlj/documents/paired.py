"""Texts on the lines of a file, with their labels in another.

The labels of a row are on the same line of a file of names between blanks
(`train_labels.txt`), or what a file of `xlj.data` has of it: labels alone, or
features with labels. In `NAME_ids.txt` a line is a table, the last column the
text, the first the id.
"""

from __future__ import annotations

from collections.abc import Iterator
import itertools
import os
import pathlib
import re

from xlj.data import errors
from xlj.data import formats
from xlj.data import lines
from xlj.documents import rows

DataError = errors.DataError
Path = str | os.PathLike[str]
_IDS = re.compile(r"(.*[._-])?ids\.txt(\.gz)?", re.IGNORECASE)
_NAMES = re.compile(r"(.*[._-])?labels\.txt(\.gz)?", re.IGNORECASE)


class Pairs:
  """Texts and labels of two files, read together.

  Attributes:
    num_labels: how many labels the second file says that there are, when all
      has been read; 0 if it does not say.
  """

  def __init__(
    self,
    texts: Path,
    labels: pathlib.Path,
    *,
    features: bool,
    duplicates: str = "refuse",
  ):
    """Opens nothing yet.

    Args:
      texts: a line for each row.
      labels: of the rows.
      features: whether the second file has features too.
      duplicates: as of `formats.stream_each`.
    """
    self._texts, self._path = texts, labels
    self._features, self._duplicates = features, duplicates
    self.num_labels = 0

  def blocks(self) -> Iterator[rows.Block | DataError]:
    """Yields all rows in order.

    Raises:
      DataError: at the first thing that is not right in the labels; or when
        there are more or fewer of them than texts.
      OSError: when a file cannot be read.
    """
    labels, count = self._labels(), 0
    for block in stream(self._texts):
      if isinstance(block, DataError):
        raise block
      count += len(block.texts)
      found = list(itertools.islice(labels, len(block.texts)))
      if len(found) < len(block.texts):
        count += len(found) - len(block.texts)
        raise DataError(
          self._texts,
          "more lines",
          f"{count}, as many as rows in {self._path.name}",
          line=count + 1,
        )
      yield block._replace(labels=found)
    if more := sum(1 for _ in labels):
      raise DataError(
        self._texts,
        f"{count} lines",
        f"{count + more}, as many as rows in {self._path.name}",
        hint="a text is one line; newlines in it are no part of this form",
      )

  def _labels(self) -> Iterator[list[rows.Label]]:
    if not self._features and _NAMES.fullmatch(self._path.name):
      for block in stream(self._path):
        if isinstance(block, DataError):
          raise block
        for names, line in zip(block.texts, block.lines):
          yield self._names(names, line)
      return
    if self._features:
      found = formats.stream_rows(self._path, duplicates=self._duplicates)
      blocks = (block.labels for block in found)
    else:
      blocks = formats.stream_labels(self._path, duplicates=self._duplicates)
    for labels in blocks:
      if labels is None:
        raise DataError(self._path, "features without labels", "labels")
      self.num_labels = labels.num_columns
      ends, ids = labels.indptr.tolist(), labels.indices.tolist()
      for start, stop in itertools.pairwise(ends):
        yield ids[start:stop]

  def _names(self, text: str, line: int) -> list[rows.Label]:
    fields = {"text": "", "labels": text.split()}
    try:
      return rows.parse(fields, self._duplicates).labels or []
    except rows.Refused as error:
      raise error.at(self._path, line) from None


def stream(path: Path) -> Iterator[rows.Block | DataError]:
  """Reads a file of a text on each line.

  Args:
    path: plain or gzip text in UTF-8.

  Yields:
    Blocks of rows without labels, and in the place of a line that is not right
    its error.

  Raises:
    DataError: when the file itself is not right.
    OSError: when it cannot be read.
  """
  table = bool(_IDS.fullmatch(os.path.basename(path)))
  for block in lines.blocks(path, keep_tabs=True, keep_nul=True):
    try:
      lines.check_no_nul(block, path)
      yield _block(block, path, table)
    except DataError:
      for i, line in enumerate(block.text.split(b"\n")[:-1]):
        one = lines.Block(line + b"\n", block.first_line + i)
        try:
          lines.check_no_nul(one, path)
          yield _block(one, path, table)
        except DataError as error:
          yield error


def _block(block: lines.Block, path: Path, table: bool) -> rows.Block:
  texts = lines.decoded(block, path).split("\n")
  texts.pop()
  count = len(texts)
  ids: list[str | None] = [None] * count
  if table:
    cells = [text.split("\t") for text in texts]
    for i, row in enumerate(cells):
      if len(row) < 2:
        raise DataError(
          path,
          "a line without a tab",
          "a table of ids whose last column is the text",
          line=block.first_line + i,
        )
    texts = [row[-1] for row in cells]
    ids[:] = [row[0] for row in cells]
  first = block.first_line
  return rows.Block(
    texts,
    [None] * count,
    ids,
    range(first, first + count),
  )
