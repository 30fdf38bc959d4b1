"""Finds the texts of a split by the names that data sets have.

For the training split (P is `train` or `trn`; see `data.discover.PREFIXES`):

  rows    P.jsonl, or in parts P-00000-of-00004.jsonl
  labels  labels.jsonl and others, see `label_file`
  filter  filter_labels_P.txt (optional)

Text may end with .gz. Capitals do not matter. Two candidates are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import os
import pathlib
import re

from xlj.data import discover
from xlj.data import errors
from xlj.documents import label_file

DataError = errors.DataError
Path = str | os.PathLike[str]
SPLITS = discover.SPLITS
# Files of rows, by their endings, each with the module that reads it.
ROWS = {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl"}
_PART = r"(-\d+-of-\d+)?"


@dataclasses.dataclass(frozen=True)
class Files:
  """The files of one split.

  Attributes:
    rows: texts and labels, one file or the parts of one in order.
    label_file: what the labels are, or None.
  """

  rows: tuple[pathlib.Path, ...]
  label_file: pathlib.Path | None = None

  def all(self) -> list[pathlib.Path]:
    """Returns the files that there are."""
    return [*self.rows, *([self.label_file] if self.label_file else [])]


def find(data_dir: Path, split: str) -> Files:
  """Finds the files of a split.

  Args:
    data_dir: the directory of the data set.
    split: one of `SPLITS`.

  Returns:
    Its files; none has been opened.

  Raises:
    DataError: when there is no such directory, no text for the split, or more
      than one candidate.
    ValueError: when there is no such split.
  """
  if split not in discover.PREFIXES:
    raise ValueError(f"split is {split!r}, expected one of {SPLITS}.")
  root = pathlib.Path(data_dir)
  if not root.is_dir():
    raise DataError(root, "no such directory", "a data set")
  found = _rows(root, split)
  if not found:
    prefix = discover.PREFIXES[split][0]
    names = [path.name for path in _files(root)]
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    raise DataError(
      root,
      f"no text of a {split} split among: {shown or 'no files'}",
      f"{prefix}.jsonl (or with .gz)",
    )
  return Files(_whole(root, found, split), label_file.find(root))


def has_documents(data_dir: Path, split: str) -> bool:
  """Tells whether a directory has any file of texts that could be the split.

  Args:
    data_dir: the directory of the data set.
    split: one of `SPLITS`.

  Returns:
    True also when `find` would refuse what is there, so that it is not
    overlooked.
  """
  return bool(_rows(pathlib.Path(data_dir), split))


def plain_ending(path: Path) -> str:
  """The ending of a name without .gz, in small letters."""
  name = os.fspath(path).lower().removesuffix(".gz")
  return pathlib.PurePath(name).suffix


def _rows(root: pathlib.Path, split: str) -> list[pathlib.Path]:
  prefix = "|".join(discover.PREFIXES[split])
  endings = "|".join(map(re.escape, ROWS))
  pattern = rf"({prefix}){_PART}({endings})(\.gz)?"
  return _matching(_files(root), pattern)


def _files(root: pathlib.Path) -> list[pathlib.Path]:
  paths = root.iterdir() if root.is_dir() else ()
  return sorted(path for path in paths if path.is_file())


def _matching(
  paths: Iterable[pathlib.Path], pattern: str
) -> list[pathlib.Path]:
  return [p for p in paths if re.fullmatch(pattern, p.name, re.IGNORECASE)]


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
