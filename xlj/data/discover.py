"""Finds the files of a split by the names that data sets are published under.

For the training split (P is `train` or `trn`; see `PREFIXES` for the others):

  table        P.csv, P.tsv, P.parquet, P.arrow or P.feather, without texts
  one file     P.txt P.svm ... (`ONE_FILE`), or failing all below, one file
               NAME_P.txt, P_NAME.txt ... that is not raw text, ids or names
  split form   P_X_Xf.txt with P_X_Y.txt
  arrays       X.P.npz, X.P.npy, P_X.npz or P_X.npy, with Y.P.npz, P_Y.npz,
               or either as .npy (one label of each row) or .txt
  rows of one  NAME_data.txt with NAME_trSplit.txt, NAME_tstSplit.txt: columns
               of row numbers from 1, as the Extreme Classification Repository
               has them
  below        Y.P.npz, and X.P.npz in the only directory below that has one, as
               PECOS has them; or in that directory, with Y.P.npz above it
  filter       filter_labels_P.txt (optional)

A file interactions.csv (.tsv, .txt, .parquet, .arrow) has all splits, or
train.txt and test.txt have a line for each user, see `user_items`. A next-word
set (see `tokens`) has text as its one file, and one of sequences (see
`sequences`) all splits in the file that is asked for, NAME.txt.

Text may end with .gz. Capitals do not matter. Two candidates are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import importlib
import os
import pathlib
import re

from xlj.data import arrow
from xlj.data import cells
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

# Both in the columns of a table, if none of them has texts.
TABLES = dict.fromkeys((*cells.DELIMITERS, *arrow.ENDINGS), "tables")

# Files that say which rows of one file a split has.
_ROWS = {
  "train": "trn?|train",
  "test": "te|ts|tst|test",
  "validation": "va|val|valid|validation|dev",
}
_RAW = r"([._-]raw)?([._-]texts?)?(\.jsonl?|\.txt)(\.gz)?"
_IMAGES = (
  "a folder of images becomes a data set by xlj images"
  " --input=FOLDER --output_dir=DIR"
)
_INTERACTIONS = (
  r"interactions(((\.csv|\.tsv|\.txt)(\.gz)?)|\.parquet|\.arrow|\.feather)"
)
# Files that come with data sets and hold no rows of numbers.
_NOT_ROWS = re.compile(
  r"(^|[._])(text|texts|raw|ids?|users?|items?|names?|map|labels?|filter|splits?)([._]|$)"
)


@dataclasses.dataclass(frozen=True)
class Files:
  """The files of one split.

  Attributes:
    features: the features, and the labels too if `labels` is None.
    labels: a file of labels alone, or None.
    filter: pairs to leave out when scoring, or None.
    vocabulary: of a next-word set: the tokens of the training split.
    rows: which rows of the features are the split's, or None for all.
  """

  features: pathlib.Path
  labels: pathlib.Path | None = None
  filter: pathlib.Path | None = None
  vocabulary: pathlib.Path | None = None
  rows: pathlib.Path | None = None

  def all(self) -> list[pathlib.Path]:
    """Returns the files that there are."""
    paths = dataclasses.astuple(self)
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
  names = _names(root)
  found = _candidates(root, names, split)
  if len(found) != 1:
    raise _refusal(root, split, names, found)
  ((features, pattern),) = found.items()
  labels = rows = None
  if split_files := _split_files(names, split):
    rows = root / _one(root, split_files, f"one file of the {split} rows")
  elif pattern:
    place = _place_of(root, pattern)
    there = _matching(_names(place), pattern)
    labels = place / _one(place, there, _partner(split))
  return Files(root / features, labels, filter_file(root, split), rows=rows)


def has_interactions(
  data_dir: str | os.PathLike[str], lists: bool = False
) -> bool:
  """Tells whether a directory has interactions; see `find_interactions`.

  Args:
    data_dir: the directory of the data set.
    lists: whether files have a line for each user.
  """
  names = _names(pathlib.Path(data_dir))
  return bool(
    _matching(names, _INTERACTIONS)
    or (lists and all(_lists(names, split) for split in ("train", "test")))
  )


def find_interactions(data_dir: str | os.PathLike[str], split: str) -> Files:
  """Finds the interactions of a directory that has some.

  Args:
    data_dir: the directory of the data set.
    split: one of `SPLITS`.

  Returns:
    The file interactions.csv or the like, or train.txt, with test.txt as the
    labels.

  Raises:
    DataError: when there is more than one candidate.
  """
  root = pathlib.Path(data_dir)
  names = _names(root)
  if _matching(names, _INTERACTIONS):
    return find(data_dir, split)
  train, test = (
    root / _one(root, _lists(names, name), f"one file of the {name} rows")
    for name in ("train", "test")
  )
  return Files(train, test)


def _lists(names: list[str], split: str) -> list[str]:
  """Files with a line for each user, whose items are those of a split."""
  return _matching(names, rf"{_prefix(split)}\.txt(\.gz)?")


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


def find_sequences(data_dir: str | os.PathLike[str], name: str) -> Files:
  """Finds the file of a set of sequences.

  Args:
    data_dir: the directory of the data set.
    name: of the file, without its ending.

  Returns:
    The file, which has all splits.

  Raises:
    DataError: when there is none.
  """
  root = pathlib.Path(data_dir)
  found = _matching(_names(root), rf"{re.escape(name)}\.txt(\.gz)?")
  if not found:
    raise errors.DataError(
      root,
      f"no {name}.txt",
      "one, with a line `user item item ...` for each user",
      hint="--config.data.sequences=NAME says which file it is",
    )
  return Files(root / _one(root, found, "one of them"))


def has_split(data_dir: str | os.PathLike[str], split: str) -> bool:
  """Tells whether a directory has any file that could be the split.

  Args:
    data_dir: the directory of the data set.
    split: one of `SPLITS`.

  Returns:
    True also when `find` would refuse what is there, so that it is not
    overlooked.
  """
  root = pathlib.Path(data_dir)
  return bool(_candidates(root, _names(root), split))


def label_files(
  data_dir: str | os.PathLike[str], split: str
) -> list[pathlib.Path]:
  """The files of a directory that hold labels of a split and nothing else."""
  root = pathlib.Path(data_dir)
  return [
    root / name for name in _matching(_names(root), _labels(_prefix(split)))
  ]


def filter_file(
  data_dir: str | os.PathLike[str], split: str
) -> pathlib.Path | None:
  """The file of the labels to leave out, or None.

  Raises:
    DataError: when there are several.
  """
  root = pathlib.Path(data_dir)
  pattern = rf"filter_labels_{_prefix(split)}\.txt(\.gz)?"
  found = _matching(_names(root), pattern)
  return root / _one(root, found, "one filter") if found else None


def place_of_labels(data_dir: str | os.PathLike[str]) -> pathlib.Path:
  """Tells where the labels of a data set are: in its directory, or above it."""
  return _place_of(pathlib.Path(data_dir), _labels(_prefix("train")))


def _place_of(root: pathlib.Path, pattern: str) -> pathlib.Path:
  """The directory above if it has the labels, and this one has them not."""
  above = root.absolute().parent
  if _matching(_names(root), pattern) or not _matching(_names(above), pattern):
    return root
  return above


def _prefix(split: str) -> str:
  return f"({'|'.join(PREFIXES[split])})"


def _names(root: pathlib.Path) -> list[str]:
  paths = root.iterdir() if root.is_dir() else ()
  return sorted(path.name for path in paths if path.is_file())


def _candidates(
  root: pathlib.Path, names: list[str], split: str
) -> dict[str, str]:
  """Feature files of a split -> pattern of the label file; see `_exact`."""
  prefix = _prefix(split)
  found = _exact(names, prefix)
  for name in [n for n in found if is_table(n) and _has_texts(root / n)]:
    del found[name]
  found = found or _loose(names, prefix)
  if not found and _split_files(names, split):
    data = _matching(names, rf"(.*[._-])?data{_one_file()}")
    found = dict.fromkeys(data, "")
  if not found and _matching(names, _labels(prefix)):
    below = (d for d in root.iterdir() if d.is_dir() and d.name[0] != ".")
    found = {
      f"{directory.name}/{name}": pattern
      for directory in sorted(below)
      for name, pattern in _exact(_names(directory), prefix).items()
      if pattern
    }
  return found | dict.fromkeys(_matching(names, _INTERACTIONS), "")


def is_table(path: str | os.PathLike[str]) -> bool:
  """Whether a file has columns with names, by its own."""
  name = os.fspath(path).lower().removesuffix(".gz")
  return name.endswith((*TABLES,))


def _has_texts(path: pathlib.Path) -> bool:
  return importlib.import_module("xlj.data.tables").has_texts(path)


def _split_files(names: list[str], split: str) -> list[str]:
  pattern = rf"(.*[._-])?({_ROWS[split]})[._-]?split\.txt(\.gz)?"
  return _matching(names, pattern)


def _exact(names: list[str], prefix: str) -> dict[str, str]:
  """Feature files -> pattern of the label file ("" if it is the same file)."""
  arrays, labels = _any_of(ARRAYS), _labels(prefix)
  kinds = (
    (rf"{prefix}{_one_file()}", ""),
    (rf"{prefix}({_any_of(TABLES)})(\.gz)?", ""),
    (rf"{prefix}_X_Xf\.txt(\.gz)?", labels),
    (rf"(X\.{prefix}|{prefix}_X|{prefix}_X_Xf)({arrays})", labels),
  )
  return {
    name: partner
    for pattern, partner in kinds
    for name in _matching(names, pattern)
  }


def _labels(prefix: str) -> str:
  endings = rf"({_any_of(ARRAYS)}|\.txt|\.txt\.gz)"
  return rf"(Y\.{prefix}|{prefix}_Y|{prefix}_X_Y){endings}"


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
    hint = "move the others out of the directory"
    if any("/" in name for name in found):
      hint = f"give the directory that has it, --config.data.dir={root}/..."
    return errors.DataError(
      root,
      f"several candidates for the {split} split: {', '.join(sorted(found))}",
      "one",
      hint=hint,
    )
  prefix = _prefix(split)
  if raw := _matching(names, rf"(X\.)?{prefix}{_RAW}"):
    return errors.DataError(
      root / raw[0],
      "text of documents",
      f"their features as numbers, such as {PREFIXES[split][0]}.txt, or"
      f" X.{PREFIXES[split][-1]}.npz with Y.{PREFIXES[split][-1]}.npz",
      hint="take the bag-of-words features that such sets also come with, or"
      " make some (scikit-learn's TfidfVectorizer, scipy.sparse.save_npz)",
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
    hint=_IMAGES if not names and any(root.glob("*/*")) else "",
  )
