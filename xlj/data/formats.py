"""Every format of features and labels, told apart by name and content.

`stream_rows` reads one file, whatever it is, as a stream of checked blocks;
`stream_labels` and `stream_pairs` read the files that hold nothing but labels.
The formats themselves are in `text` and in the modules that `discover.ARRAYS`,
`discover.ONE_FILE` and `discover.TABLES` name; the writers in `writers`. Such a
module has

  stream_rows(path, features, labels) -> Iterator[csr.Rows]

and for files of labels alone `stream_labels(path, labels)`, which yields
`csr.Csr` without values. Both are `checks.Columns`, which the blocks pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import importlib
import os
import pathlib
from typing import Any

import numpy as np

from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import errors
from xlj.data import label_lists
from xlj.data import lines
from xlj.data import numbering
from xlj.data import parse
from xlj.data import strict
from xlj.data import text

DataError = errors.DataError
Rows = csr_lib.Rows
STDIN = lines.STDIN
Path = str | os.PathLike[str]
# By "feature" and "label".
Numbers = Mapping[str, numbering.Numbers | numbering.Names]


def stream_rows(path: Path, **how: Any) -> Iterator[Rows]:
  """Reads one file of features, with labels if it has them.

  Args:
    path: as of `stream_each`.
    **how: its other arguments.

  Yields:
    Blocks of rows in order, as there.

  Raises:
    DataError: at the first thing that is not right, with its line.
    OSError: when the file cannot be read.

  Example:
    for features, labels in stream_rows("test.txt", num_features=1836):
      scores = predict(features)
  """
  yield from _all_right(stream_each(path, **how))


def stream_each(
  path: Path,
  *,
  num_features: int | None = None,
  num_labels: int | None = None,
  zero_based: bool = True,
  duplicates: str = "refuse",
  beyond: checks.Beyond | None = None,
  numbers: Numbers | None = None,
  feature_names: Sequence[str] | None = None,
  kind: text.Kind | None = None,
) -> Iterator[Rows | DataError]:
  """Reads one file as `stream_rows` does; a bad row costs no other.

  The ending decides: `.npz` is a SciPy CSR matrix, `.npy` a dense one, and what
  has no other reader is text, whose first line tells the one-file format, the
  split form and svmlight apart (see `text`). Memory is bounded by a block and
  the longest row (and, of `.npz`, the row pointers); nothing is cached.

  Args:
    path: the file; "-" reads text, plain or gzip, from standard input.
    num_features: the width that the features have to have; None takes what
      the file says or, without a header, what the ids up to each block need.
    num_labels: likewise for labels.
    zero_based: False if text numbers features from 1. Labels always count
      from 0.
    duplicates: what becomes of ids that a row has twice (`checks.DUPLICATES`).
    beyond: of rows that a model is to score: counts the ids that it does not
      know, of which features are left out. Instead of the two widths.
    numbers: of ids that are too large for columns, by "feature" and "label", or
      of names of labels.
    feature_names: of the columns of a table that are features, in their order.
    kind: refuses text of any other kind.

  Yields:
    Blocks of rows in order, and in the place of a row that is not right its
    error. `labels` are None for files that cannot hold any, and empty rows for
    text that could.

  Raises:
    DataError: when the file itself is not right.
    OSError: when the file cannot be read.
  """
  # Arrays have columns, which have no numbers.
  is_array = pathlib.PurePath(path).suffix in discover.ARRAYS
  first_id = int(not zero_based and not is_array)
  of = (numbers or {}).get
  features = checks.Columns(
    *("feature", num_features, first_id, duplicates, beyond, of("feature")),
    names=feature_names,
  )
  labels = checks.Columns(
    "label", num_labels, 0, duplicates, beyond, of("label")
  )
  reader = _reader(path)
  if reader is not None:
    yield from reader.stream_rows(path, features, labels)
  else:
    yield from text.stream(path, features, labels, kind)


def stream_labels(
  path: Path,
  *,
  num_labels: int | None = None,
  duplicates: str = "refuse",
  beyond: checks.Beyond | None = None,
  numbers: Numbers | None = None,
) -> Iterator[csr_lib.Csr]:
  """Reads a file of labels alone.

  That is `trn_X_Y.txt`, a line of ids for each row (see `label_lists`), a
  SciPy matrix, or an array in `.npy` (see `npy.stream_labels`).

  Args:
    path: the file.
    num_labels: the width that it has to have; None takes what the file says.
    duplicates: as in `stream_each`.
    beyond: likewise.
    numbers: likewise.

  Yields:
    Blocks of rows in order, without values; an entry of value 0 is no label,
    and one above 0 is one.

  Raises:
    DataError: at the first thing that is not right.
    OSError: when the file cannot be read.
  """
  labels = checks.Columns(
    "label", num_labels, 0, duplicates, beyond, (numbers or {}).get("label")
  )
  reader = _reader(path)
  named = isinstance(labels.numbers, numbering.Names)
  if reader is not None and (not named or hasattr(reader, "has_names")):
    yield from reader.stream_labels(path, labels)
    return
  if reader is None and label_lists.holds(path):
    yield from label_lists.stream(path, labels)
    return
  if named:
    raise errors.DataError(
      path,
      "a matrix, whose labels are ids",
      "names, as labels of the training split are (data.named_labels)",
      hint="write them as lines of names, Y.trn.txt",
    )
  none = checks.Columns("label")
  for rows in _all_right(text.stream(path, labels, none, text.Kind.MATRIX)):
    assert isinstance(rows.features, csr_lib.Csr)
    yield rows.features


def has_names(path: Path) -> bool:
  """Whether the labels in a file are names: whether the first one is."""
  reader = _reader(path)
  if reader is None:
    return text.has_names(path)
  return hasattr(reader, "has_names") and reader.has_names(path)


def read_pairs(
  path: Path,
  num_rows: int,
  num_labels: int,
  known: np.ndarray | None = None,
) -> csr_lib.Csr:
  """Reads lines `row label`, such as `filter_labels_test.txt`.

  Args:
    path: plain or gzip text; may be empty. Order is free, and a pair may
      repeat.
    num_rows: rows that there are, N.
    num_labels: labels that there are, L.
    known: ids of the labels by their numbers, ascending; others are left out.
      None if they are their numbers.

  Returns:
    [N, L] without values, in memory: 16 bytes a pair while reading.

  Raises:
    DataError: at the first line that is not right.
    OSError: when the file cannot be read.
  """
  blocks = []
  for block in lines.blocks(path):
    found = parse.pairs(block.text)
    if found is None:
      found = strict.pairs(block.text, path, block.first_line)
    if known is not None:
      found[:, 1] = numbering.find(known, found[:, 1])
    _check_pairs(found, (num_rows, num_labels), path, block.first_line)
    blocks.append(found)
  pairs = np.concatenate(blocks) if blocks else np.zeros((0, 2), np.int64)
  pairs = pairs[pairs[:, 1] >= 0]
  # np.unique hashes, which takes seven times as long as sorting here.
  keys = np.sort(pairs[:, 0] * num_labels + pairs[:, 1])
  keys = keys[np.diff(keys, prepend=-1) > 0]
  indptr = np.searchsorted(keys, np.arange(num_rows + 1) * num_labels)
  indices = (keys % max(num_labels, 1)).astype(np.int32)
  return csr_lib.Csr(indptr.astype(np.int64), indices, None, num_labels)


def _all_right(stream: Iterator[Rows | DataError]) -> Iterator[Rows]:
  """The same; raises the first error in it."""
  for rows in stream:
    if isinstance(rows, DataError):
      raise rows
    yield rows


def _reader(path: Path) -> Any:
  """The module that reads a file; None for text."""
  name = pathlib.PurePath(path)
  module = discover.ARRAYS.get(name.suffix)
  if module is None:
    plain = name.with_suffix("") if name.suffix == ".gz" else name
    known = discover.ONE_FILE | discover.TABLES
    module = known.get(plain.suffix.lower(), "text")
  if module == "text":
    return None
  return importlib.import_module(f"xlj.data.{module}")


def _check_pairs(
  pairs: np.ndarray, bounds: tuple[int, int], path: Path, first_line: int
) -> None:
  outside = pairs >= bounds
  if outside.any():
    line, column = np.argwhere(outside)[0].tolist()
    what = ("row", "label")[column]
    raise errors.DataError(
      path,
      f"{what} {pairs[line, column]}",
      f"a {what} in [0, {bounds[column] - 1}]",
      line=first_line + line,
    )
