"""Files that say which labels may be answers."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import lines
from xlj.model import label_choice

# In place of a file of rows: the labels that rows have already, and features
# that have the same ids as labels.
OF_ROWS = ("labels", "features")


@dataclasses.dataclass(frozen=True)
class Asked:
  """What `--exclude`, `--among`, `--exclude_rows` and `--among_rows` say.

  Attributes:
    exclude: File of labels that no row may have: in a line an id, or a name
      that is no number.
    among: File of labels of which no row may have others; likewise.
    exclude_rows: File with a line for each row: ids of labels that it may not
      have, with commas or blanks between them; or one of `OF_ROWS`.
    among_rows: Likewise of labels of which a row may have no others.
  """

  exclude: str | None = None
  among: str | None = None
  exclude_rows: str | None = None
  among_rows: str | None = None

  def __bool__(self) -> bool:
    """Whether it says anything."""
    return any(vars(self).values())


NOTHING = Asked()


class Choices:
  """The labels that may be answers, of rows that come block by block."""

  def __init__(self, asked: Asked, run: Any):
    """Reads the files.

    Args:
      asked: Which.
      run: Whose labels they are: what `xlj.load` gives.

    Raises:
      DataError: A file is not of labels of the run; it names the line.
    """
    self._num_ids, self._order = run.num_ids, run.order
    known = None
    if run.numbering is not None:
      known = {i: n for n, i in enumerate(run.numbering.labels.tolist())}
      if "features" in (asked.exclude_rows, asked.among_rows):
        raise ValueError(
          "features and labels are numbered apart with data.renumber; give a"
          " file with a line for each row instead of 'features'"
        )
    of_run = run.num_ids, known
    ids = {
      name: None if path is None else read(path, *of_run, run.label_names)
      for name, path in (("exclude", asked.exclude), ("among", asked.among))
    }
    if ids["among"] is not None and not len(ids["among"]):
      raise errors.DataError(asked.among or "", "no labels", "some to choose")
    self._all = label_choice.choose(run.num_ids, **ids, order=run.order)
    self._rows = {"exclude": asked.exclude_rows, "among": asked.among_rows}
    for name, path in self._rows.items():
      if path is not None and path not in OF_ROWS and not os.path.exists(path):
        raise ValueError(
          f"--{name}_rows is {path!r}, and there is no such file; give one with"
          f" a line for each row, or one of {OF_ROWS}"
        )
    self._read: dict[str, Any] = {
      name: read_rows(path, *of_run)
      for name, path in self._rows.items()
      if path is not None and path not in OF_ROWS
    }

  def of(
    self,
    start: int,
    features: Any,
    labels: csr_lib.Csr | None,
  ) -> label_choice.LabelChoice:
    """The choice of some rows.

    Args:
      start: Number of the first.
      features: Theirs, `[n, F]`.
      labels: Those that they have, `[n, L]`.

    Returns:
      The choice.

    Raises:
      DataError: There are more rows than a file has lines.
      ValueError: The rows have no labels, or no sparse features.
    """
    found: dict[str, Any] = {}
    for name, path in self._rows.items():
      if path is None:
        continue
      if name in self._read:
        rows, stop = self._read[name], start + features.shape[0]
        if rows.shape[0] < stop:
          raise errors.DataError(
            path, f"{rows.shape[0]} lines", "a line for each row of the input"
          )
        found[name] = rows[start:stop]
        continue
      named = labels if path == "labels" else features
      if not isinstance(named, csr_lib.Csr):
        raise ValueError(
          f"--{name}_rows={path}: the rows have no"
          f" {'labels' if path == 'labels' else 'sparse features'}; give a file"
          " with a line for each row"
        )
      found[name] = label_choice.within(named, self._num_ids)
    rows = label_choice.choose(self._num_ids, **found, order=self._order)
    return dataclasses.replace(rows, allowed=self._all.allowed)

  def check_end(self, num_rows: int) -> None:
    """Refuses files that have lines left."""
    for name, rows in self._read.items():
      if rows.shape[0] != num_rows:
        raise errors.DataError(
          self._rows[name] or "",
          f"{rows.shape[0]} lines",
          f"{num_rows}, one for each row of the input",
        )


def read(
  path: str,
  num_ids: int,
  known: Mapping[int, int] | None,
  names: Sequence[str] | None,
) -> np.ndarray:
  """Reads labels: in a line an id, or a name that is no number.

  Args:
    path: Text, plain or gzip.
    num_ids: How many label ids there are.
    known: Their numbers, with `data.renumber`.
    names: Theirs, if they are known.

  Returns:
    int64 ids, or their numbers; of a name that several have, all of them.

  Raises:
    DataError: A line is no label; it names the line.
  """
  by_name: dict[str, list[int]] = {}
  for i, name in enumerate(names or ()):
    by_name.setdefault(name, []).append(i)
  found = []
  for block in lines.blocks(path, keep_tabs=True):
    text = lines.decoded(block, path)
    for number, line in enumerate(text.split("\n")[:-1], block.first_line):
      labels = by_name.get(line, [-1])
      if line.isdecimal():
        labels = [_label(line, num_ids, known)]
      if labels[0] < 0:
        raise errors.DataError(
          path,
          repr(line),
          f"a label: an id {_which(num_ids, known)}"
          + (", or its name" if names else "; the run has no names"),
          line=number,
        )
      found += labels
  return np.asarray(found, np.int64)


def read_rows(path: str, num_ids: int, known: Mapping[int, int] | None) -> Any:
  """Reads a line of label ids for each row.

  Args:
    path: Text, plain or gzip.
    num_ids: How many label ids there are.
    known: Their numbers, with `data.renumber`.

  Returns:
    A sparse matrix `[n, num_ids]`.

  Raises:
    DataError: A line has something else; it names the line.
  """
  rows = []
  for block in lines.blocks(path):
    text = block.text.replace(b",", b" ").split(b"\n")[:-1]
    for number, line in enumerate(text, block.first_line):
      ids = []
      for label in line.split():
        ids.append(_label(label, num_ids, known))
        if ids[-1] < 0:
          raise errors.DataError(
            path,
            repr(label.decode("utf-8", "replace")),
            f"label ids {_which(num_ids, known)}, with commas or blanks between"
            " them",
            line=number,
          )
      rows.append(np.asarray(ids, np.int64))
  return label_choice.rows_of(rows, num_ids)


def _label(
  text: str | bytes, num_ids: int, known: Mapping[int, int] | None
) -> int:
  """The id that a text is, or its number; -1 if it is none of the run's."""
  found = int(text) if text.isdigit() and len(text) < 20 else -1
  found = found if known is None else known.get(found, -1)
  return found if found < num_ids else -1


def _which(num_ids: int, known: Mapping[int, int] | None) -> str:
  """Which ids there are, for messages."""
  return f"below {num_ids}" if known is None else "that training has"
