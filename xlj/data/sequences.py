"""Sequences: rows are users, and the label is the item that came next.

A file has a line for each user, `user item item ...`, in the order of time, as
S3-Rec has them (Zhou et al. 2020, "S3-Rec"). Items are numbers from 0, the same
as features and as labels. Splits leave one out: the last item of a user is the
label of "test", the one before it that of "validation", and the one before that
the last label of "train". The features of a row are all items before its label,
oldest first; the value of each is its place, from 1, so that those that are cut
of a long row are the oldest. A split lacks users who have no item before the
label.

Legend: N rows, L items.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import itertools
import os
import pathlib
from typing import Any

import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import errors
from xlj.data import ingest as ingest_lib
from xlj.data import lines

# How many items from the end the label of a split is.
_FROM_END = {"train": 3, "validation": 2, "test": 1}
_EXPECTED = "a user, and items that are numbers from 0, apart by blanks"
_DIGITS = 10  # of the largest number of an item


@dataclasses.dataclass(frozen=True)
class Options:
  """How files of sequences are read.

  Attributes:
    split: "train", "validation" or "test".
    num_items: L, where that is known; None takes what the ids need.
  """

  split: str
  num_items: int | None = None


def ingest(
  files: discover.Files, options: Options, directory: pathlib.Path
) -> dict[str, Any]:
  """Writes the arrays of a split.

  Args:
    files: the sequences as features.
    options: how to read them.
    directory: where the arrays go.

  Returns:
    The description of what was written: sizes, and each array's checksum.

  Raises:
    DataError: when a line is not right, or no user has enough items.
    OSError: when a file cannot be read or written.
  """
  from_end = _FROM_END[options.split]
  rows, most = [], -1
  for items in _sequences(files.features, options.num_items):
    most = max(most, *items)
    if len(items) > from_end:
      rows.append(items[: len(items) - from_end + 1])
  if not rows:
    raise errors.DataError(
      files.features,
      f"no user with {from_end + 1} items",
      f"some, for the split {options.split!r}",
    )
  width = options.num_items or most + 1
  before = [row[:-1] for row in rows]
  labels = [row[-1:] for row in rows]
  with contextlib.ExitStack() as stack:
    out = ingest_lib.Writers(directory, stack)
    out.add_csr("features", features(before, width))
    out.add_csr("labels", csr_lib.Csr.from_rows(labels, width))
    if options.split != "train":
      seen = [sorted(set(row)) for row in before]
      out.add_csr("filter", csr_lib.Csr.from_rows(seen, width))
    arrays = out.close()
  return {
    "dense": None,
    "sequential": True,
    "num_rows": len(rows),
    "num_features": width,
    "num_labels": width,
    "arrays": arrays,
  }


def features(rows: list[list[int]], num_items: int) -> csr_lib.Csr:
  """Sequences as features of rows.

  Args:
    rows: Items of each, oldest first.
    num_items: L.

  Returns:
    `[n, L]`, in order; the value of an item is its place, from 1.
  """
  places = itertools.chain.from_iterable(range(1, len(r) + 1) for r in rows)
  return csr_lib.Csr(
    np.cumsum([0, *map(len, rows)], dtype=np.int64),
    np.fromiter(itertools.chain.from_iterable(rows), np.int32),
    np.fromiter(places, np.float32),
    num_items,
  )


def blocks(
  path: str | os.PathLike[str],
) -> Iterator[list[list[int] | errors.DataError]]:
  """Reads lines `user item item ...`, of which one alone may be wrong.

  Args:
    path: A file, plain or gzip.

  Yields:
    The items of lines in order, or the error in the place of a line.

  Raises:
    DataError: When the file itself is not right.
    OSError: When it cannot be read.
  """
  for block in lines.blocks(path):
    found: list[list[int] | errors.DataError] = []
    for number, text in _lines(block):
      try:
        found.append(_parsed(path, number, text)[1])
      except errors.DataError as error:
        found.append(error)
    yield found


def _sequences(
  path: str | os.PathLike[str], num_items: int | None
) -> Iterator[list[int]]:
  """Yields the items of each user, in order."""
  most = np.iinfo(np.int32).max if num_items is None else num_items
  line_of: dict[bytes, int] = {}
  for block in lines.blocks(path):
    for number, text in _lines(block):
      user, items = _parsed(path, number, text)
      if (largest := max(items)) >= most:
        found, wanted = f"item {largest}", f"items below {most}"
        raise errors.DataError(path, found, wanted, line=number)
      if user in line_of:
        raise errors.DataError(
          path,
          f"user {user.decode('utf-8', 'replace')} again",
          f"each user on one line; line {line_of[user]} has it",
          line=number,
        )
      line_of[user] = number
      yield items


def _lines(block: lines.Block) -> Iterator[tuple[int, bytes]]:
  return enumerate(block.text.split(b"\n")[:-1], block.first_line)


def _parsed(
  path: str | os.PathLike[str], number: int, text: bytes
) -> tuple[bytes, list[int]]:
  """The user and the items of a line."""
  user, *words = text.split() or [b""]
  wrong = [word for word in words if not _is_number(word)]
  if wrong or not words:
    found = repr((wrong or [text])[0].decode("utf-8", "replace"))
    raise errors.DataError(path, found, _EXPECTED, line=number)
  return user, [*map(int, words)]


def _is_number(word: bytes) -> bool:
  return word.isdigit() and len(word) <= _DIGITS
