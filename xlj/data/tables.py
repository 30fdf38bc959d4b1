"""Tables of features and labels: CSV, TSV, Parquet, Arrow.

  labels            a list of names, or of ids; in a cell of CSV names between
                    `|`, or a list in JSON
  label             a single one; an empty cell, or none, is no label
  indices, values   lists, of sparse features; or
  the others        numbers, or a list of them in each row: dense features.
                    `id` and `uid` are left out

The training split says which columns are features: those of other tables are
found by their names, where they are no lists. A table with a column `text`,
`title` or `content` is one of texts (see `xlj.documents`).

Legend: n rows of a block, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from xlj.data import arrow
from xlj.data import cells
from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import numbering

DataError = errors.DataError
Refused = errors.Refused
Path = str | os.PathLike[str]
TEXTS = ("text", "title", "content")
LABELS = ("labels", "label")
SPARSE = ("indices", "values")
_IDS = ("id", "uid")
_BLOCK_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class _Columns:
  """Which column is what.

  Attributes:
    path: of the table.
    names: all of them.
    label: that of the labels, or None.
    features: those of features; `SPARSE` if they have ids.
  """

  path: Path
  names: list[str]
  label: str | None
  features: list[str]


@dataclasses.dataclass(frozen=True)
class _Part:
  """Consecutive rows of a table, as it has them.

  Attributes:
    place: of the first.
    count: how many.
    labels: of each row; None where the table has none.
    features: values by row for each of `_Columns.features`, texts or of Arrow.
  """

  place: checks.Place
  count: int
  labels: list[Any] | None
  features: list[Any]

  def some(self, start: int, stop: int) -> _Part:
    """Some of the rows."""
    place = self.place
    if place.first_line is None:
      place = place._replace(first_row=place.first_row + start)
    else:
      place = place._replace(first_line=place.first_line + start)
    labels = None if self.labels is None else self.labels[start:stop]
    features = [column[start:stop] for column in self.features]
    return _Part(place, stop - start, labels, features)


def has_texts(path: Path) -> bool:
  """Whether a table is one of texts, as the names of its columns say."""
  return bool({*_names(path)} & {*TEXTS})


def has_names(path: Path) -> bool:
  """Whether labels are names: whether the first one is."""
  columns = _columns(path, None)
  for part in _parts(columns):
    for found in getattr(part, "labels", None) or ():
      try:
        labels = _labels_of(found, columns.label)
      except Refused:  # which reading tells
        return False
      if labels:
        return isinstance(labels[0], str)
  return False


def feature_names(path: Path) -> list[str] | None:
  """The names of the columns of features; None where these are lists."""
  columns = _columns(path, None)
  for part in _parts(columns):
    if isinstance(part, _Part):
      lists = any(hasattr(x, "value_lengths") for x in part.features)
      return None if lists else columns.features
  return None


def stream_rows(
  path: Path, features: checks.Columns, labels: checks.Columns
) -> Iterator[csr_lib.Rows | DataError]:
  """Reads rows, and in the place of one that is not right its error.

  Args:
    path: of the table.
    features: checks them; `features.names` are those of the columns.
    labels: checks them.

  Yields:
    Blocks of rows, without labels where the table has none.

  Raises:
    DataError: when the table itself is not right.
    ImportError: without pyarrow, with what to install.
    OSError: when it cannot be read.
  """
  columns = _columns(path, features.names)
  for part in _parts(columns):
    if isinstance(part, DataError):
      yield part
    else:
      yield from _each(part, columns, features, labels)


def _each(
  part: _Part,
  columns: _Columns,
  features: checks.Columns,
  labels: checks.Columns,
) -> Iterator[csr_lib.Rows | DataError]:
  """Rows of a part, in halves of it where one of them is wrong."""
  try:
    yield _rows(part, columns, features, labels)
  except DataError as error:
    if part.count == 1:
      yield error
      return
    for start, stop in ((0, part.count // 2), (part.count // 2, part.count)):
      half = part.some(start, stop)
      yield from _each(half, columns, features, labels)


def _rows(
  part: _Part,
  columns: _Columns,
  features: checks.Columns,
  labels: checks.Columns,
) -> csr_lib.Rows:
  found: csr_lib.Csr | np.ndarray
  if columns.features == [*SPARSE]:
    ends, ids = _lists(part, 0, columns)
    others, values = _lists(part, 1, columns)
    if (wrong := np.diff(ends) != np.diff(others)).any():
      row = int(np.argmax(wrong))
      raise part.place.error(
        row,
        f"{np.diff(ends)[row]} indices and {np.diff(others)[row]} values",
        "as many of both",
      )
    if ids.dtype.kind not in "iu":
      raise part.place.error(0, f"indices of {ids.dtype}", "whole numbers")
    found = features.block(ends, ids.astype(np.int64), values, part.place)
  else:
    found = _dense(part, columns)
    count = features.width or features.seen or found.shape[1]
    if count != found.shape[1]:
      others = "training has" if features.width else "rows before have"
      raise part.place.error(
        0, f"{found.shape[1]} features", f"{count}, as {others}"
      )
    features.seen = count
  if part.labels is None:
    return csr_lib.Rows(found, None)
  of_rows = [
    _numbered(row, i, columns, part, labels.numbers)
    for i, row in enumerate(part.labels)
  ]
  indptr = np.cumsum([0, *map(len, of_rows)], dtype=np.int64)
  flat = np.array([i for row in of_rows for i in row], np.int64)
  return csr_lib.Rows(found, labels.block(indptr, flat, None, part.place))


# --- labels ------------------------------------------------------------------


def _labels_of(found: Any, column: str | None) -> list[Any]:
  """The labels in a cell."""
  if isinstance(found, str):
    if column == LABELS[0]:
      return cells.of_cell(found)
    return [found] if found else []
  if isinstance(found, list):
    return found
  return [] if found is None or found == -1 else [found]


def _numbered(
  found: Any,
  row: int,
  columns: _Columns,
  part: _Part,
  names: numbering.Numbers | numbering.Names | None,
) -> list[int]:
  """The ids of the labels of a row."""
  try:
    out = []
    for label in _labels_of(found, columns.label):
      is_id = type(label) is int
      if isinstance(names, numbering.Names):
        if not (isinstance(label, str) and label):
          raise Refused(f"label {label!r}", "a name, as the first label is one")
        out.append(names.number(label))
        if out[-1] < 0:
          raise Refused(f"label {label!r}, a name of several labels", "of one")
      elif not is_id:
        raise Refused(
          f"label {cells.shown(repr(label))}",
          "an id from 0, as the first label of the training split is one",
          "if names can be numbers, --config.data.named_labels=True",
        )
      else:
        out.append(label)
    return out
  except Refused as error:
    found = error.found
    raise part.place.error(row, found, error.expected, error.hint) from None


# --- features ----------------------------------------------------------------


def _dense(part: _Part, columns: _Columns) -> np.ndarray:
  """Columns side by side, float32 [n, F]."""
  found = []
  for i, name in enumerate(columns.features):
    values = part.features[i]
    if hasattr(values, "value_lengths"):
      ends, flat = _lists(part, i, columns)
      lengths = np.diff(ends)
      if (other := lengths != lengths[0]).any():
        row = int(np.argmax(other))
        raise part.place.error(
          row,
          f"{lengths[row]} numbers in column {name!r}",
          f"{lengths[0]}, as in the row before",
          "lists that have ids are columns 'indices' and 'values'",
        )
      matrix = flat.reshape(part.count, -1)
    else:
      matrix = _numbers(part, i, columns)[:, None]
    with np.errstate(over="ignore"):
      matrix = matrix.astype(np.float32)
    if not (finite := np.isfinite(matrix).all(axis=1)).all():
      row = int(np.argmin(finite))
      raise part.place.error(
        row,
        f"a missing or infinite value in column {name!r}",
        "a finite number within float32",
        "fill it, or leave the row out",
      )
    found.append(matrix)
  return np.concatenate(found, axis=1)


def _numbers(part: _Part, column: int, columns: _Columns) -> np.ndarray:
  """One number of each row; NaN where it is missing."""
  values = part.features[column]
  try:
    if hasattr(values, "to_numpy"):
      found = values.to_numpy(zero_copy_only=False)
      if found.dtype.kind in "biuf":
        return found
      return np.array(found.tolist(), np.float64)
    return np.array([v or "nan" for v in values]).astype(np.float64)
  except (TypeError, ValueError):
    if part.count > 1:  # halves of it say which
      raise part.place.error(0, "no number", "numbers") from None
  raise part.place.error(
    0,
    f"{_value(values)} in column {columns.features[column]!r}",
    "a number, as all columns but 'labels', 'label', 'id' and 'uid' have",
    "leave the column out, or call it 'text' if it has the texts",
  )


def _value(values: Any) -> str:
  """The first value of a column."""
  found = values[0]
  return cells.shown(repr(found.as_py() if hasattr(found, "as_py") else found))


def _lists(
  part: _Part, column: int, columns: _Columns
) -> tuple[np.ndarray, np.ndarray]:
  """Where the list of each row ends, int64 [n + 1], and all of their values."""
  values, name = part.features[column], columns.features[column]
  if not hasattr(values, "value_lengths"):
    raise part.place.error(0, f"no lists in column {name!r}", "lists")
  if values.null_count:
    row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
    raise part.place.error(row, f"nothing in column {name!r}", "a list")
  lengths = values.value_lengths().to_numpy(zero_copy_only=False)
  flat = values.flatten().to_numpy(zero_copy_only=False)
  if flat.dtype.kind not in "biuf":
    raise part.place.error(
      0, f"lists of {flat.dtype} in column {name!r}", "lists of numbers"
    )
  return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), flat


# --- reading -----------------------------------------------------------------


def _is_arrow(path: Path) -> bool:
  return os.fspath(path).lower().endswith(arrow.ENDINGS)


def _delimiter(path: Path) -> str:
  name = os.fspath(path).lower().removesuffix(".gz")
  return cells.DELIMITERS[os.path.splitext(name)[1]]


def _names(path: Path) -> list[str]:
  """The names of the columns."""
  if _is_arrow(path):
    with arrow.opened(path) as table:
      return table.names
  line, found = next(cells.rows(path, _delimiter(path)), (1, []))
  if isinstance(found, DataError):
    raise found
  if not found:
    raise DataError(path, "an empty file", "a row that names the columns")
  return [name.strip() for name in found]


def _columns(path: Path, wanted: Sequence[str] | None) -> _Columns:
  """Tells columns apart.

  Args:
    path: of the table.
    wanted: columns of features in their order, if training says which.

  Returns:
    The columns.

  Raises:
    DataError: when one is missing, or twice.
  """
  line = None if _is_arrow(path) else 1
  names = _names(path)
  labels = [name for name in LABELS if name in names]
  twice = [name for name in names if names.count(name) > 1]
  if twice or len(labels) > 1:
    found = f"column {twice[0]!r} twice" if twice else "'labels' and 'label'"
    raise DataError(path, found, "one of them", line=line)
  features = [name for name in names if name not in (*LABELS, *_IDS)]
  if wanted is not None:
    if missing := [name for name in wanted if name not in names]:
      raise DataError(
        path,
        f"columns {cells.shown(', '.join(names))}",
        f"a column {missing[0]!r}, as training has",
        line=line,
      )
    features = list(wanted)
  elif line is None and {*SPARSE} <= {*names}:
    features = [*SPARSE]
  if not features:
    raise DataError(
      path,
      f"columns {cells.shown(', '.join(names))}",
      "columns of features, or 'text'",
      line=line,
    )
  return _Columns(path, names, (labels or [None])[0], features)


def _parts(columns: _Columns) -> Iterator[_Part | DataError]:
  """All rows, in order."""
  if _is_arrow(columns.path):
    yield from _of_arrow(columns)
    return
  rows: list[list[str]] = []
  first = 0
  lines = cells.rows(columns.path, _delimiter(columns.path))
  next(lines)  # the names
  for line, found in lines:
    if isinstance(found, list) and len(found) != len(columns.names):
      found = DataError(
        columns.path,
        f"{len(found)} cells",
        f"{len(columns.names)}, as many as columns are named",
        line=line,
        hint=cells.HINT,
      )
    failed = isinstance(found, DataError)
    # Lines of a part are counted from its first.
    ends = failed or line != first + len(rows) or len(rows) == _BLOCK_ROWS
    if rows and ends:
      yield _of_cells(rows, first, columns)
      rows = []
    if isinstance(found, DataError):
      yield found
      continue
    first = first if rows else line
    rows.append(found)
  if rows:
    yield _of_cells(rows, first, columns)


def _of_cells(rows: list[list[str]], first: int, columns: _Columns) -> _Part:
  by_name = dict(zip(columns.names, zip(*rows)))
  labels = None if columns.label is None else list(by_name[columns.label])
  features = [by_name[name] for name in columns.features]
  return _Part(checks.Place(columns.path, first), len(rows), labels, features)


def _of_arrow(columns: _Columns) -> Iterator[_Part]:
  names = [*columns.features]
  if columns.label is not None:
    names.append(columns.label)
  row = 0
  with arrow.opened(columns.path) as table:
    for batch in table.batches(names):
      if not batch.num_rows:
        continue
      labels = None
      if columns.label is not None:
        labels = batch.column(columns.label).to_pylist()
      features = [batch.column(name) for name in columns.features]
      place = checks.Place(columns.path, first_row=row)
      yield _Part(place, batch.num_rows, labels, features)
      row += batch.num_rows
