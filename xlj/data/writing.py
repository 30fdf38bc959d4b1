"""Data sets from what Python has in memory: arrays, texts, lists, tables.

    DIR/X.trn.npz, X.trn.npy   features, sparse or dense
    DIR/Y.trn.npz              labels beside them
    DIR/train.jsonl            texts with their labels
    DIR/labels.txt             names of labels, where matrices have ids alone
    DIR/feature_names.txt      names of features, likewise

Other splits are `tst` or `test`, and `valid` or `validation`.

Legend: N rows, F features, L labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import json
import numbers
import os
import pathlib
from typing import Any

from absl import logging
import numpy as np
import scipy.sparse

from xlj import files
from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import frames
from xlj.data import names as names_lib
from xlj.data import writers

Path = str | os.PathLike[str]
LABELS = names_lib.FILES[0]
FEATURES = names_lib.FEATURE_FILES[1]
_SHOWN = 3  # of the names that training has not


def write(
  directory: Path,
  X: Any,
  Y: Any = None,
  split: str = "train",
  *,
  labels: str | None = None,
  text: str | None = None,
  features: str | Sequence[str] | None = None,
  label_names: Sequence[str] | None = None,
) -> pathlib.Path:
  """Writes a split of a data set; `--config.data.dir` names its directory.

  The training split is written first: it decides which labels there are, and
  names have the order in which they appear in it. Names that only another split
  has count as missed, as the log says.

  Args:
    directory: of the data set; made if it is missing.
    X: N rows. A SciPy matrix or an array [N, F]; images uint8 [N, H, W, C]; a
      list of texts; a list of dicts from feature, an id or a name, to value; or
      a table of pandas, polars, PyArrow or `datasets`.
    Y: their labels. A list, array or column with a label, or a list of labels,
      for each row: names, or ids from 0; or a matrix [N, L] of 0 and 1, dense
      or sparse. A label -1 is none, and so is an empty list.
    split: "train", "test" or "validation".
    labels: column of a table that has the labels, in place of `Y`.
    text: column of a table that has the texts; by default "text", if there is
      such a column and no `features`.
    features: columns of a table that have numbers, or one that has a list of
      them; by default all of those, or those that the training split has.
    label_names: names of ids, L of them: kept with the training split.

  Returns:
    The directory.

  Raises:
    ValueError: when something cannot be written so that it is read back; it
      says in which row, from 0.
    OSError: when a file cannot be written.

  Example:
    xlj.data.write("DIR", frame, labels="tags", text="title")
    xlj.data.write("DIR", [{3: 1.0}, {0: 0.5}], [["a", "b"], ["c"]], "test")
  """
  if split not in discover.PREFIXES:
    raise ValueError(f"split is {split!r}, expected one of {discover.SPLITS}.")
  root, columns = pathlib.Path(directory), None
  if frames.is_frame(X):
    known = split != "train" and (root / FEATURES).exists()
    if known and text is None and features is None:
      features = names_lib.read_names(root / FEATURES, table=False)
    X, Y, columns = _of_frame(X, Y, labels, text, features)
  elif not labels == text == features:  # None
    raise ValueError(
      "labels=, text= and features= name columns, and X is no table; give the"
      " labels as Y"
    )
  if Y is None:
    raise ValueError("there are no labels; give Y, or of a table labels=COLUMN")
  examples = _examples(X)
  found: Any = _labels(Y)
  counts = [
    x.num_rows if isinstance(x, csr_lib.Csr) else len(x)
    for x in (examples, found)
  ]
  if not counts[0] or counts[0] != counts[1]:
    raise ValueError(
      f"there are {counts[0]} rows of X, and {counts[1]} of labels; give as"
      " many, and at least one"
    )
  path = root / _file(examples, split)
  for example in ("", {}, np.zeros(1)):  # of each form
    other = root / _file([example], split)
    if other != path and other.exists():
      raise ValueError(
        f"{other} is the {split} split already, in another form; remove it, or"
        " write to another directory"
      )
  names = None if label_names is None else _given(label_names)
  if not _are(str, examples):
    found, names = _matrix(found, names, root / LABELS, split)
  names = names and _kept(names, "labels")
  root.mkdir(parents=True, exist_ok=True)
  if split == "train" and columns is not None:
    names_lib.write_names(root / FEATURES, _kept(columns, "features"))
  if split == "train" and names is not None:
    names_lib.write_names(root / LABELS, names)
  if not _are(str, examples):
    _write_array(root / f"Y.{discover.PREFIXES[split][1]}.npz", found)
    if _are(Mapping, examples):
      examples = _of_dicts(examples, root / FEATURES, split)
    _write_array(path, examples)
  else:
    _write_texts(path, examples, found)
  return root


def _file(examples: Any, split: str) -> str:
  """The name of the file that examples go to."""
  whole, short = discover.PREFIXES[split][:2]
  if _are(str, examples):
    return f"{whole}.jsonl"
  sparse = isinstance(examples, csr_lib.Csr) or _are(Mapping, examples)
  return f"X.{short}.{'npz' if sparse else 'npy'}"


def _are(kind: type, examples: Any) -> bool:
  return isinstance(examples, list) and isinstance(examples[0], kind)


def _write_array(path: pathlib.Path, array: csr_lib.Csr | np.ndarray) -> None:
  if isinstance(array, csr_lib.Csr):
    writers.write_npz(path, array)
    return
  with files.replacing(path) as partial, partial.open("wb") as file:
    np.save(file, array)


def _write_texts(path: pathlib.Path, texts: list[str], found: Any) -> None:
  """Writes a line of JSON for each text."""
  if isinstance(found, csr_lib.Csr):
    ends, ids = found.indptr.tolist(), found.indices.tolist()
    found = [ids[a:b] for a, b in zip(ends, ends[1:])]
  with files.replacing(path) as partial, partial.open("wb") as file:
    for i, (text, of_row) in enumerate(zip(texts, found)):
      row = {"text": text, "labels": of_row}
      try:
        file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
      except UnicodeEncodeError:
        raise ValueError(
          f"row {i} (from 0) has half a surrogate pair, which is no Unicode;"
          " write the whole character"
        ) from None


def _kept(names: Iterable[str], what: str) -> list[str]:
  """Names that a file keeps with a name on each line."""
  for name in names:
    if not name or "\n" in name or "\t" in name:
      raise ValueError(
        f"the name {name!r} of {what} is empty, or has a tab or a newline;"
        " replace it"
      )
  return [*names]


# --- examples ----------------------------------------------------------------


def _of_frame(
  frame: Any,
  given: Any,
  labels: str | None,
  text: str | None,
  features: str | Sequence[str] | None,
) -> tuple[Any, Any, list[str] | None]:
  """Examples and labels of a table, and the name of each feature."""
  if (given is None) == (labels is None):
    raise ValueError(
      "the labels of a table are a column, labels=COLUMN, or Y: give one of the"
      f" two; the columns are {', '.join(map(str, frames.names(frame)))}"
    )
  if labels is not None:
    given = frames.column(frame, labels)
  if text is None and features is None and frames.TEXT in frames.names(frame):
    text = frames.TEXT
  if text is not None:
    if features is not None:
      raise ValueError("text= and features= are given; give one of the two")
    return frames.texts(frame, text), given, None
  if features is None:
    features = frames.numeric(frame, labels)
  elif isinstance(features, str):
    features = [features]
  found = frames.matrix(frame, features)
  named = all(isinstance(name, str) for name in features)
  one_each = len(features) == found.shape[1]  # or some are lists
  return found, given, [*features] if named and one_each else None


def _examples(given: Any) -> Any:
  """Csr, float32 or bytes in an array, a list of texts or one of dicts."""
  if scipy.sparse.issparse(given):
    return csr_lib.Csr.from_scipy(given)
  if isinstance(given, csr_lib.Csr):
    return given
  if isinstance(given, str):
    raise ValueError("X is one text; give a list of them: [text]")
  if getattr(given, "ndim", 1) != 1:
    return _dense(np.asarray(given))
  rows = frames.as_list(given)
  for kind, what in ((str, "texts"), (Mapping, "dicts")):
    if rows and isinstance(rows[0], kind):
      for i, row in enumerate(rows):
        if not isinstance(row, kind):
          raise ValueError(
            f"row {i} (from 0) of X is {type(row).__name__}; give {what} alone,"
            " as row 0 is"
          )
      return rows
  try:
    array = np.asarray(rows)
  except ValueError as error:  # of rows of other lengths
    raise ValueError(
      f"X is no matrix ({error}); give one, [rows, features], or a list of"
      " texts, or of dicts from feature to value"
    ) from None
  return _dense(array)


def _dense(array: np.ndarray) -> np.ndarray:
  if array.ndim not in (2, 4) or array.dtype.kind not in "fiub":
    raise ValueError(
      f"X is {array.dtype} {list(array.shape)}; give numbers [rows, features],"
      " or images [rows, height, width, channels]"
    )
  if array.dtype != np.uint8:
    array = array.astype(np.float32, copy=False)
    if not (finite := np.isfinite(array)).all():
      row, *_ = np.argwhere(~finite)[0].tolist()
      raise ValueError(
        f"row {row} (from 0) of X has a value that is not finite"
      )
  return np.ascontiguousarray(array)


def _of_dicts(
  rows: list[Mapping[Any, float]], path: pathlib.Path, split: str
) -> csr_lib.Csr:
  """Dicts as rows; names of features are numbered as training has them."""
  named = any(isinstance(key, str) for row in rows for key in row)
  number: dict[Any, int] = {}
  if named and split != "train":
    number = {name: i for i, name in enumerate(_of_training(path))}
  known = len(number)
  for i, row in enumerate(rows):
    for key in row:
      right = isinstance(key, str) if named else _is_id(key) and key >= 0
      if not right:
        raise ValueError(
          f"row {i} (from 0) of X has a feature {key!r}; give names of features"
          " in all rows, or ids from 0"
        )
      number.setdefault(key, len(number) if named else int(key))
  width = 1 + max(number.values(), default=-1)
  if named and split == "train":
    names_lib.write_names(path, _kept(number, "features"))
  elif named and width > known:
    logging.warning(
      "The %s split has %d features that training has not, such as %r; they"
      " count for nothing",
      *(split, width - known, [*number][known]),
    )
  found = scipy.sparse.csr_array(
    (
      np.array([v for row in rows for v in row.values()], np.float32),
      np.array([number[key] for row in rows for key in row], np.int64),
      np.cumsum([0, *map(len, rows)]),
    ),
    shape=(len(rows), width),
  )
  out = csr_lib.Csr.from_scipy(found)
  return out.below(known) if named and split != "train" else out


# --- labels ------------------------------------------------------------------


def _labels(given: Any) -> csr_lib.Csr | list[list[str]]:
  """A matrix of ids, or names of each row."""
  if isinstance(given, csr_lib.Csr):
    given = given.to_scipy()
  if scipy.sparse.issparse(given):
    return _where(scipy.sparse.csr_array(given))
  if isinstance(given, str):
    raise ValueError("Y is one label; give those of each row in a list")
  if getattr(given, "ndim", 1) == 2:
    array = np.asarray(given)
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
      raise ValueError(
        f"Y is {array.dtype} {list(array.shape)}; give 0 and 1 for each row and"
        " label, or a list of the labels of each row"
      )
    return _where(scipy.sparse.csr_array(array))
  rows = [_of_row(row, i) for i, row in enumerate(frames.as_list(given))]
  first = {
    isinstance(label, str): i
    for i, row in reversed([*enumerate(rows)])
    for label in row
  }
  if len(first) > 1:
    raise ValueError(
      f"row {first[True]} (from 0) of Y has a name, and row {first[False]} an"
      " id; give names alone, or ids alone"
    )
  if True in first:
    return rows
  width = 1 + max((label for row in rows for label in row), default=-1)
  return csr_lib.Csr.from_rows([sorted(row) for row in rows], width)


def _where(matrix: Any) -> csr_lib.Csr:
  """The entries of a matrix that are above 0."""
  found = csr_lib.Csr.from_scipy(matrix > 0, values=False)
  if (matrix.data < 0).any() or (matrix.data != matrix.data).any():
    raise ValueError("Y has entries below 0, or not finite; give 1 for a label")
  return found


def _of_row(row: Any, i: int) -> list[Any]:
  """The labels of a row, whatever holds them."""
  single = isinstance(row, str) or _is_id(row) or not isinstance(row, Iterable)
  found = [
    int(label) if _is_id(label) else label
    for label in ([row] if single else row)
  ]
  if single and found == [-1]:
    return []
  for label in found:
    named = isinstance(label, str) and label
    if not (named or type(label) is int and 0 <= label < checks.MAX_COLUMNS):
      raise ValueError(
        f"row {i} (from 0) of Y has a label {label!r}; give a name, an id from"
        " 0, or a list of them, which is empty for none"
      )
  if len(set(found)) < len(found):
    twice = next(label for label in found if found.count(label) > 1)
    raise ValueError(f"row {i} (from 0) of Y has label {twice!r} twice")
  return found


def _matrix(
  found: csr_lib.Csr | list[list[str]],
  given: list[str] | None,
  path: pathlib.Path,
  split: str,
) -> tuple[csr_lib.Csr, list[str] | None]:
  """The labels as ids, and their names by id, if they have names.

  Args:
    found: ids or names of each row.
    given: names of all labels.
    path: the file of names of the training split.
    split: which one it is.

  Returns:
    [N, L], or more columns for labels that training has not; and the names.
  """
  if isinstance(found, csr_lib.Csr):
    if given is not None and len(given) < found.num_columns:
      raise ValueError(
        f"label_names has {len(given)} names, and Y labels up to id"
        f" {found.num_columns - 1}; give a name for each id"
      )
    return found if given is None else found.below(len(given)), given
  known = given
  if known is None:
    known = [] if split == "train" else _of_training(path)
  number = {name: i for i, name in enumerate(known)}
  ids = [
    sorted(number.setdefault(name, len(number)) for name in row)
    for row in found
  ]
  names = [*number]
  if new := names[len(known) :]:
    if given is not None:
      raise ValueError(f"label {new[0]!r} of Y is not among label_names")
    if split != "train":
      logging.warning(
        "The %s split has %d labels that training has not; they count as"
        " missed: %s",
        *(split, len(new), "; ".join(map(repr, new[:_SHOWN]))),
      )
  return csr_lib.Csr.from_rows(ids, len(names)), names


def _given(names: Any) -> list[str]:
  """The names that a caller gives."""
  found = [str(name) for name in frames.as_list(names)]
  if len(set(found)) < len(found):
    raise ValueError("label_names has a name twice; make them different")
  return found


def _of_training(path: pathlib.Path) -> list[str]:
  """The names that the training split has written."""
  if not path.exists():
    raise ValueError(
      f"{path} is missing, which has the names that training has; write the"
      " training split first, with names"
    )
  return names_lib.read_names(path, table=False)


def _is_id(label: Any) -> bool:
  return isinstance(label, numbers.Integral) and not isinstance(label, bool)
