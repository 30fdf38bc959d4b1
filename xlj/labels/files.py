"""Files that say which labels to append, delete, merge or rename.

A label is given by its id, or by its name if that is not a number; a name with
a tab as `xlj labels --list` prints it. Lines without text count as none.
"""

from collections.abc import Callable, Iterator
import os

from xlj import config as config_lib
from xlj.config import splits
from xlj.data import errors
from xlj.data import lines
from xlj.data import names as names_lib
from xlj.data import store
from xlj.labels import runs
from xlj.runs import directory
from xlj.text import features

Path = str | os.PathLike[str]


def read_examples(path: Path, run: directory.Run) -> store.Split:
  """Examples that may have new labels, as `append.append` takes them.

  Args:
    path: In any format of the data; texts if the run reads texts.
    run: The run.

  Returns:
    The examples, with the features of the run.

  Raises:
    DataError: The file cannot be read, or has other features.
  """
  if run.encoding is not None:
    return features.read_file(path, run.encoding)
  num_features = run.config.data.num_features
  reading = splits.reading(run.config)
  return store.open_file(path, num_features=num_features, **reading)


def read_ids(path: Path, run: directory.Run) -> list[int]:
  """The ids of labels, one on each line.

  Args:
    path: Text, plain or gzip.
    run: The run that has them.

  Returns:
    Label ids, in order.

  Raises:
    DataError: A line is no label that has a row, or one again; it names the
      line.
  """
  label_of, found = _finder(path, run), {}
  for number, columns in _rows(path, 1, "one label: its id or its name"):
    _put(path, found, label_of(columns[0], number), number)
  return list(found)


def read_merges(path: Path, run: directory.Run) -> dict[int, int]:
  """Which labels go into which: `gone<TAB>kept` on each line.

  Args:
    path: Text, plain or gzip.
    run: The run that has them.

  Returns:
    Label id to label id.

  Raises:
    DataError: A line is not of two labels that have a row, or it merges one
      that is merged already; it names the line.
  """
  label_of, found, merged = _finder(path, run), {}, {}
  for number, columns in _rows(path, 2, "a label, a tab, the one that stays"):
    gone, kept = (label_of(text, number) for text in columns)
    _put(path, found, gone, number)
    merged[gone] = kept
  return merged


def read_renames(path: Path, run: directory.Run) -> dict[int, str]:
  """New names: `label<TAB>name` on each line.

  Args:
    path: Text, plain or gzip.
    run: The run that has the labels.

  Returns:
    Label id to name.

  Raises:
    DataError: A line is not of a label that has a row and a name, or names one
      again; it names the line.
  """
  label_of, found, names = _finder(path, run), {}, {}
  for number, columns in _rows(path, 2, "a label, a tab, its new name"):
    label = label_of(columns[0], number)
    _put(path, found, label, number)
    names[label] = columns[1]
  return names


def _rows(
  path: Path, width: int, expected: str
) -> Iterator[tuple[int, list[str]]]:
  """Line numbers and columns of the lines with text."""
  some = False
  for block in lines.blocks(path, keep_tabs=True):
    texts = lines.decoded(block, path).split("\n")[:-1]
    for number, text in enumerate(texts, block.first_line):
      if not text.strip():
        continue
      some = True
      columns = text.split("\t")
      if len(columns) != width or not all(map(str.strip, columns)):
        raise errors.DataError(path, repr(text), expected, line=number)
      yield number, columns
  if not some:
    raise errors.DataError(path, "no line with text", expected)


def _finder(path: Path, run: directory.Run) -> Callable[[str, int], int]:
  """What finds the id of a label that has a row, given a text and its line."""
  exact: dict[str, list[int]] = {}
  loose: dict[str, list[int]] = {}  # as an editor or `--list` may have them
  for label, name in enumerate(run.names or ()):
    if run.head_ids[label] >= 0 and run.data_ids[run.head_ids[label]] == label:
      exact.setdefault(name, []).append(label)
      for text in {name.strip(), names_lib.escaped(name)}:
        loose.setdefault(text, []).append(label)

  def find(text: str, number: int) -> int:
    if text.isascii() and text.strip().isdigit():
      label = int(text)
    else:
      same = exact.get(text) or loose.get(text) or loose.get(text.strip(), [])
      if len(same) != 1:
        found = f"the name of labels {same[:3]}" if same else "no label's name"
        raise errors.DataError(
          path, f"{text!r}, {found}", "an id, or a name of one", line=number
        )
      (label,) = same
    try:
      runs.heads_of(run, [label])
    except config_lib.ConfigError as error:
      raise errors.DataError(
        path, str(error), "a label that has a row", line=number
      ) from None
    return label

  return find


def _put(path: Path, found: dict[int, int], label: int, line: int) -> None:
  """Notes where a label was read, unless it was before."""
  if label in found:
    raise errors.DataError(
      path,
      f"label {label} again",
      f"each once; line {found[label]} has it",
      line=line,
    )
  found[label] = line
