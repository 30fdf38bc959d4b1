"""Finds the texts of a split by the names that data sets have.

For the training split (P is `train` or `trn`; see `data.discover.PREFIXES`):

  rows      P.jsonl, P.json, P.ndjson, P.csv, P.tsv, P.parquet, or the parts of
            one, P-00000-of-00004.jsonl; in the directory, or in `data` below
  lines     P_text.txt, P_texts.txt, P_raw_texts.txt, P.raw.txt, P_X.txt or
            X.P.txt, in the directory, or in `raw` below; else P_ids.txt. With
            the labels in P_labels.txt (names), P_X_Y.txt, Y.P.npz and others
            that `data.discover` has, or in a file of features and labels
  labels    see `label_file`
  filter    filter_labels_P.txt (optional)

Text may end with .gz. Capitals do not matter. Two candidates are refused.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re

from xlj.data import discover
from xlj.data import errors
from xlj.documents import formats
from xlj.documents import label_file

DataError = errors.DataError
Path = str | os.PathLike[str]
SPLITS = discover.SPLITS
_GZ = r"(\.gz)?"


@dataclasses.dataclass(frozen=True)
class Files:
  """The files of one split.

  Attributes:
    rows: texts, one file or the parts of one in order.
    labels: of the rows, where `rows` is lines of text.
    features: whether `labels` has features too.
    label_file: what the labels are, or None.
    filter: pairs to leave out when scoring, or None.
  """

  rows: tuple[pathlib.Path, ...]
  labels: pathlib.Path | None = None
  features: bool = False
  label_file: pathlib.Path | None = None
  filter: pathlib.Path | None = None

  def all(self) -> list[pathlib.Path]:
    """Returns the files that there are."""
    others = (self.labels, self.label_file, self.filter)
    return [*self.rows, *(path for path in others if path is not None)]


def find(data_dir: Path, split: str) -> Files:
  """Finds the files of a split.

  Args:
    data_dir: the directory of the data set.
    split: one of `SPLITS`.

  Returns:
    Its files; none has been opened.

  Raises:
    DataError: when there is no such directory, no text for the split, more than
      one candidate, or no labels for its lines.
    ValueError: when there is no such split.
  """
  if split not in discover.PREFIXES:
    raise ValueError(f"split is {split!r}, expected one of {SPLITS}.")
  root = pathlib.Path(data_dir)
  if not root.is_dir():
    raise DataError(root, "no such directory", "a data set")
  found = _candidates(root, split)
  if not found:
    prefix = discover.PREFIXES[split][0]
    names = [path.name for path in _files(root)]
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    raise DataError(
      root,
      f"no texts of a {split} split among: {shown or 'no files'}",
      f"{prefix}.jsonl, {prefix}.csv, {prefix}.tsv, {prefix}.parquet, or"
      f" {prefix}_text.txt with labels beside it",
    )
  parts = _whole(root, found, split)
  names = label_file.find(root)
  pairs = discover.filter_file(root, split)
  if formats.ending(parts[0]) != formats.LINES:
    return Files(parts, None, False, names, pairs)
  labels, features = _labels(root, split, parts[0])
  return Files(parts, labels, features, names, pairs)


def has_documents(data_dir: Path, split: str) -> bool:
  """Tells whether a directory has any file of texts that could be the split.

  Args:
    data_dir: the directory of the data set.
    split: one of `SPLITS`.

  Returns:
    True also when `find` would refuse what is there, so that it is not
    overlooked.
  """
  return bool(_candidates(pathlib.Path(data_dir), split))


def _candidates(root: pathlib.Path, split: str) -> list[pathlib.Path]:
  prefix = f"({'|'.join(discover.PREFIXES[split])})"
  endings = "|".join(map(re.escape, formats.FIELDS))
  rows = rf"{prefix}(-\d+-of-\d+)?({endings}){_GZ}"
  text = (
    rf"({prefix}([._-]raw)?[._-]texts?|{prefix}\.raw|{prefix}_X|X\.{prefix})"
  )
  for pattern, below in (
    (rows, "data"),
    (rf"{text}\.txt{_GZ}", "raw"),
    (rf"{prefix}_ids\.txt{_GZ}", ""),
  ):
    for place in (root, root / below):
      if found := _matching(place, pattern):
        return found
  return []


def _files(root: pathlib.Path) -> list[pathlib.Path]:
  paths = root.iterdir() if root.is_dir() else ()
  return sorted(path for path in paths if path.is_file())


def _matching(root: pathlib.Path, pattern: str) -> list[pathlib.Path]:
  return [
    path
    for path in _files(root)
    if re.fullmatch(pattern, path.name, re.IGNORECASE)
  ]


def _whole(
  root: pathlib.Path, paths: list[pathlib.Path], split: str
) -> tuple[pathlib.Path, ...]:
  """One file, or all the parts of one."""
  names = ", ".join(path.name for path in paths[:5])
  if len({re.sub(r"-\d+-of-", "-of-", path.name) for path in paths}) > 1:
    raise DataError(
      root,
      f"several candidates for the {split} split: {names}",
      "one",
      hint="move the others out of the directory",
    )
  part = re.search(r"-\d+-of-(\d+)\.", paths[0].name)
  if part is not None and len(paths) != int(part[1]):
    raise DataError(
      root,
      f"{len(paths)} parts of the {split} split: {names}",
      f"{int(part[1])}, as their names say",
    )
  return tuple(paths)


def _labels(
  root: pathlib.Path, split: str, texts: pathlib.Path
) -> tuple[pathlib.Path, bool]:
  """The labels of lines of text, and whether they are beside features."""
  prefix = f"({'|'.join(discover.PREFIXES[split])})"
  found = _matching(root, rf"{prefix}([._-]raw)?[._-]labels\.txt{_GZ}")
  found = found or discover.label_files(root, split)
  if len(found) > 1:
    names = ", ".join(path.name for path in found)
    raise DataError(root, f"several files of labels: {names}", "one")
  if found:
    return found[0], False
  if discover.has_split(root, split):
    files = discover.find(root, split)
    if files.rows is None:
      return files.labels or files.features, files.labels is None
  first, *rest = discover.PREFIXES[split]
  short = rest[0] if rest else first
  raise DataError(
    texts,
    "texts without labels",
    f"labels beside them: {first}.txt (features and labels), {short}_X_Y.txt,"
    f" Y.{short}.npz, or names in {first}_labels.txt",
  )
