"""Finds the files of a split by the names that data sets are published under.

For the training split (P is `train` or `trn`; see `PREFIXES` for the others):

  one file     P.txt P.svm ... (`ONE_FILE`), or failing all below, one file
               NAME_P.txt, P_NAME.txt ... that is not raw text, ids or names
  split form   P_X_Xf.txt with P_X_Y.txt
  arrays       X.P.npz, X.P.npy, P_X.npz or P_X.npy, with Y.P.npz, P_Y.npz,
               or either as .npy (one label of each row) or .txt
  filter       filter_labels_P.txt (optional)

A next-word set (see `tokens`) has text as its one file.

Text may end with .gz. Capitals do not matter. Two candidates are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import os
import pathlib
import re

from xlj.data import errors

PREFIXES = {
  "train": ("train", "trn"),
  "test": ("test", "tst"),
  "validation": ("validation", "valid", "val", "dev"),
}
SPLITS = tuple(PREFIXES)

# Formats by their endings, each with the module of `xlj.data` that reads it,
# imported when it is needed (see `formats`). Features and labels in two files:
ARRAYS = {".npy": "npy", ".npz": "arrays"}
# Both in one file, whose name may go on with .gz.
ONE_FILE = {
  ".txt": "text",
  ".svm": "text",
  ".svmlight": "text",
  ".libsvm": "text",
}

# Files that come with data sets and hold no rows of numbers.
_NOT_ROWS = re.compile(
  r"(^|[._])(text|texts|raw|ids?|users?|items?|names?|map|labels?|filter)([._]|$)"
)


@dataclasses.dataclass(frozen=True)
class Files:
  """The files of one split.

  Attributes:
    features: the features, and the labels too if `labels` is None.
    labels: a file of labels alone, or None.
    filter: pairs to leave out when scoring, or None.
    vocabulary: of a next-word set: the tokens of the training split.
  """

  features: pathlib.Path
  labels: pathlib.Path | None = None
  filter: pathlib.Path | None = None
  vocabulary: pathlib.Path | None = None

  def all(self) -> list[pathlib.Path]:
    """Returns the files that there are."""
    paths = (self.features, self.labels, self.filter, self.vocabulary)
    return [path for path in paths if path is not None]


def find(data_dir: str | os.PathLike[str], split: str) -> Files:
  """Finds the files of a split.

  Args:
    data_dir: the directory of the data set.
    split: one of `SPLITS`.

  Returns:
    Its files; none has been opened.

  Raises:
    DataError: when there is no such directory, no file for the split, more than
      one candidate, or half of a pair. It lists what was looked for.
    ValueError: when there is no such split.
  """
  if split not in PREFIXES:
    raise ValueError(f"split is {split!r}, expected one of {SPLITS}.")
  root = pathlib.Path(data_dir)
  if not root.is_dir():
    raise errors.DataError(root, "no such directory", "a data set")
  names = sorted(path.name for path in root.iterdir() if path.is_file())
  prefix = f"({'|'.join(PREFIXES[split])})"
  found = _exact(names, prefix) or _loose(names, prefix)
  if len(found) != 1:
    raise _refusal(root, split, names, found)
  ((features, pattern),) = found.items()
  labels = None
  if pattern:
    labels = root / _one(root, _matching(names, pattern), _partner(split))
  filters = _matching(names, rf"filter_labels_{prefix}\.txt(\.gz)?")
  filter_path = root / _one(root, filters, "one filter") if filters else None
  return Files(root / features, labels, filter_path)


def find_tokens(data_dir: str | os.PathLike[str], split: str) -> Files:
  """Finds the files of a split of a next-word set.

  Args:
    data_dir: the directory of the data set.
    split: one of `SPLITS`.

  Returns:
    The split's tokens, and those of the training split as the vocabulary.

  Raises:
    DataError: as `find`, and when what it finds is not one file of text.
    ValueError: when there is no such split.
  """
  found = {name: find(data_dir, name) for name in (split, "train")}
  for files in found.values():
    if files.labels is not None:
      raise errors.DataError(
        files.features,
        "features that have a file of labels",
        "one file of text",
        hint="a next-word set is asked for (data.context > 0)",
      )
  tokens, vocabulary = (found[name].features for name in (split, "train"))
  return Files(tokens, vocabulary=vocabulary)


def has_split(data_dir: str | os.PathLike[str], split: str) -> bool:
  """Tells whether a directory has any file that could be the split.

  Args:
    data_dir: the directory of the data set.
    split: one of `SPLITS`.

  Returns:
    True also when `find` would refuse what is there, so that it is not
    overlooked.
  """
  names = sorted(os.listdir(data_dir))
  prefix = f"({'|'.join(PREFIXES[split])})"
  return bool(_exact(names, prefix) or _loose(names, prefix))


def _exact(names: list[str], prefix: str) -> dict[str, str]:
  """Feature files -> pattern of the label file ("" if it is the same file)."""
  arrays = _any_of(ARRAYS)
  labels = rf"(Y\.{prefix}|{prefix}_Y|{prefix}_X_Y)({arrays}|\.txt|\.txt\.gz)"
  kinds = (
    (rf"{prefix}{_one_file()}", ""),
    (rf"{prefix}_X_Xf\.txt(\.gz)?", labels),
    (rf"(X\.{prefix}|{prefix}_X|{prefix}_X_Xf)({arrays})", labels),
  )
  return {
    name: partner
    for pattern, partner in kinds
    for name in _matching(names, pattern)
  }


def _loose(names: list[str], prefix: str) -> dict[str, str]:
  """Feature files whose names only contain the name of the split."""
  pattern = rf"(.+[._-])?{prefix}([._-].+)?{_one_file()}"
  return {
    name: ""
    for name in _matching(names, pattern)
    if not _NOT_ROWS.search(name.lower())
    and not re.search(r"_X_|_[XY]\.|^[XY]\.", name)
  }


def _one_file() -> str:
  return rf"({_any_of(ONE_FILE)})(\.gz)?"


def _any_of(endings: Iterable[str]) -> str:
  return "|".join(map(re.escape, endings))


def _matching(names: list[str], pattern: str) -> list[str]:
  return [name for name in names if re.fullmatch(pattern, name, re.IGNORECASE)]


def _one(root: pathlib.Path, names: list[str], expected: str) -> str:
  if len(names) != 1:
    found = ", ".join(names) or "no file of labels"
    raise errors.DataError(root, found, expected)
  return names[0]


def _partner(split: str) -> str:
  first, *rest = PREFIXES[split]
  short = rest[0] if rest else first
  return (
    f"one label file beside the features: {short}_X_Y.txt, Y.{short}.npz or "
    f"{short}_Y.npz"
  )


def _refusal(
  root: pathlib.Path, split: str, names: list[str], found: dict[str, str]
) -> errors.DataError:
  if found:
    return errors.DataError(
      root,
      f"several candidates for the {split} split: {', '.join(sorted(found))}",
      "one",
      hint="move the others out of the directory",
    )
  looked = [
    wanted
    for p in PREFIXES[split][:2]
    for wanted in (
      f"{p}.txt",
      f"{p}.svm",
      f"NAME_{p}.txt",
      f"{p}_X_Xf.txt with {p}_X_Y.txt",
      f"X.{p}.npz or X.{p}.npy with Y.{p}.npz",
    )
  ]
  shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
  return errors.DataError(
    root,
    f"no {split} split among: {shown or 'no files'}",
    f"one of {'; '.join(looked)} (text may end with .gz)",
  )
