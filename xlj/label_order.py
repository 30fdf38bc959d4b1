"""How the data set numbers its labels, and how the head does.

The head may favour some numbers. A dense head computes what only pays for
frequent labels for the first ones; every device has its share of any range of
labels (see `xlj.ops.layout`). Heads with groups take the labels i, i + C, i +
2 C ... for group i of C.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os

import numpy as np

from xlj.data import errors
from xlj.data import lines


@dataclasses.dataclass(frozen=True, eq=False)
class LabelOrder:
  """A renumbering of labels, on the host.

  Attributes:
    data_ids: int32 `[num_labels]`, the data set's id of the head's labels;
      None where both number them alike, so that nothing is kept by label.
    head_ids: int32 `[num_labels]`, the head's number of the data set's ids;
      None likewise.
  """

  data_ids: np.ndarray | None = None
  head_ids: np.ndarray | None = None

  @classmethod
  def identity(cls) -> LabelOrder:
    """The data set's own order, for any number of labels."""
    return cls()

  @classmethod
  def by_frequency(cls, counts: np.ndarray) -> LabelOrder:
    """Most frequent first, ties by id.

    Args:
      counts: `[num_labels]` training examples of each label.

    Returns:
      The order.
    """
    return cls.of(np.argsort(-counts, kind="stable"))

  @classmethod
  def by_groups(
    cls, groups: np.ndarray, num_groups: int, counts: np.ndarray
  ) -> LabelOrder:
    """The order in which the head's blocks are given groups.

    The j-th label of group g gets the head id `j C + g`. Inside a group the
    most frequent come first, ties by id.

    Args:
      groups: `[num_labels]` group of each label, as of
        `xlj.data.clusters.balanced`.
      num_groups: C.
      counts: `[num_labels]` training examples of each label.

    Returns:
      The order.

    Raises:
      ValueError: If the sizes are not `num_labels / C`, rounded up for the
        first `num_labels mod C` groups and down for the others.
    """
    count = len(groups)
    sizes = np.bincount(groups, minlength=num_groups)
    wanted = (count + np.arange(num_groups)[::-1]) // num_groups
    if not np.array_equal(sizes, wanted):
      raise ValueError(
        f"{count} labels in {len(sizes)} groups of {sizes.min()} to"
        f" {sizes.max()}; {num_groups} of equal size are needed, the larger"
        " ones first"
      )
    ids = np.lexsort((-counts, groups))  # by group; stable
    group = groups[ids]
    place = np.arange(count) - (np.cumsum(sizes) - sizes)[group]
    data_ids = np.empty(count, np.int32)
    data_ids[place * num_groups + group] = ids
    return cls.of(data_ids)

  @classmethod
  def from_file(
    cls, path: str | os.PathLike[str], num_labels: int
  ) -> LabelOrder:
    """The order that a file gives.

    Args:
      path: Text, plain or gzip, with one label id of the data set per line,
        in the order of the head's labels.
      num_labels: How many there are.

    Returns:
      The order.

    Raises:
      DataError: If a line is not an id, or an id repeats or is missing; it
        names the file and the line.
      OSError: If the file cannot be read.
    """
    data_ids = np.empty(num_labels, np.int32)
    line_of = np.zeros(num_labels, np.int64)  # where an id was read; 0: not yet
    number = 0
    for block in lines.blocks(path):
      for number, text in enumerate(
        block.text.split(b"\n")[:-1], block.first_line
      ):
        label = _label_of(text, path, number, num_labels)
        if line_of[label]:
          raise errors.DataError(
            path,
            f"label {label} again",
            f"each label once; line {line_of[label]} has it",
            line=number,
          )
        line_of[label] = number
        data_ids[number - 1] = label
    if number < num_labels:
      raise errors.DataError(
        path,
        f"{number} labels, and not {int(np.argmin(line_of))}",
        f"all {num_labels}",
        line=max(number, 1),
      )
    return cls.of(data_ids)

  @classmethod
  def of(cls, data_ids: np.ndarray) -> LabelOrder:
    """The order with the given data ids of the head's labels."""
    data_ids = data_ids.astype(np.int32)
    head_ids = np.empty_like(data_ids)
    head_ids[data_ids] = np.arange(len(data_ids), dtype=np.int32)
    return cls(data_ids, head_ids)

  def fingerprint(self) -> str:
    """A text that two orders share only if they are the same."""
    if self.data_ids is None:
      return "identity"
    return hashlib.sha256(self.data_ids.tobytes()).hexdigest()

  def to_head(self, ids: np.ndarray) -> np.ndarray:
    """The head's numbers of data ids `[...]`; -1 stays."""
    return _looked_up(self.head_ids, ids)

  def by_data_id(self, values: np.ndarray) -> np.ndarray:
    """Values `[num_labels, ...]` of the head's labels, in the data's order."""
    return values if self.head_ids is None else values[self.head_ids]

  def by_head_id(self, values: np.ndarray) -> np.ndarray:
    """Values `[num_labels, ...]` of the data's labels, in the head's order."""
    return values if self.data_ids is None else values[self.data_ids]

  def to_data(self, ids: np.ndarray) -> np.ndarray:
    """The data ids of the head's numbers `[...]`; -1 stays."""
    return _looked_up(self.data_ids, ids)


def _looked_up(table: np.ndarray | None, ids: np.ndarray) -> np.ndarray:
  return ids if table is None else np.where(ids < 0, -1, table[ids])


def _label_of(
  text: bytes, path: str | os.PathLike[str], line: int, num_labels: int
) -> int:
  """The label id that a line consists of."""
  label = int(text) if text.strip().isdigit() else -1
  if not 0 <= label < num_labels:
    raise errors.DataError(
      path,
      repr(text.decode("utf-8", "replace")),
      f"a label id in [0, {num_labels - 1}] and nothing else",
      line=line,
    )
  return label
