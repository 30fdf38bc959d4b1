"""How the data set numbers its labels, and how the head does.

The head may favour some numbers. A dense head computes what only pays for
frequent labels for the first ones; every device has its share of any range of
labels (see `xlj.ops.layout`). Heads with groups take the labels i, i + C, i +
2 C ... for group i of C.

Where labels have been deleted or merged (see `xlj.labels`) the data set has
more ids than the head has labels: some have none, some share one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os

import numpy as np

from xlj import files
from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import lines


@dataclasses.dataclass(frozen=True, eq=False)
class LabelOrder:
  """A renumbering of labels, on the host.

  Attributes:
    data_ids: int32 `[num_labels]`, the data set's id of the head's labels;
      None where both number them alike, so that nothing is kept by label.
    head_ids: int32 `[num_ids]`, the head's number of the data set's ids, -1
      for those without a row; None likewise.
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
    cls,
    path: str | os.PathLike[str],
    num_ids: int,
    num_labels: int | None = None,
  ) -> LabelOrder:
    """The order that a file gives.

    Args:
      path: Text, plain or gzip, with a line for each of the head's labels: the
        data set's id of it, and any others that mean the same label.
      num_ids: How many ids the data set has.
      num_labels: How many labels the head has, where some ids have no row; None
        if all ids have to be there.

    Returns:
      The order.

    Raises:
      DataError: If a line is not of ids, or an id repeats or is missing; it
        names the file and the line.
      OSError: If the file cannot be read.
    """
    head_ids = np.full(num_ids, -1, np.int32)
    line_of = np.zeros(num_ids, np.int64)  # where an id was read; 0: not yet
    data_ids: list[int] = []
    for block in lines.blocks(path):
      for number, text in enumerate(
        block.text.split(b"\n")[:-1], block.first_line
      ):
        labels = _labels_of(
          text, path, number, num_ids, several=num_labels is not None
        )

        for label in labels:
          if line_of[label]:
            raise errors.DataError(
              path,
              f"label {label} again",
              f"each label once; line {line_of[label]} has it",
              line=number,
            )
          line_of[label] = number
          head_ids[label] = len(data_ids)
        data_ids.append(labels[0])
    wanted = num_ids if num_labels is None else num_labels
    if len(data_ids) != wanted:
      missing = np.flatnonzero(head_ids < 0)
      which = f", and not {missing[0]}" if num_labels is None else ""
      raise errors.DataError(
        path,
        f"{len(data_ids)} labels{which}",
        f"all {wanted}",
        line=max(len(data_ids), 1),
      )
    return cls(np.asarray(data_ids, np.int32), head_ids)

  @classmethod
  def of(cls, data_ids: np.ndarray) -> LabelOrder:
    """The order with the given data ids of the head's labels."""
    data_ids = data_ids.astype(np.int32)
    head_ids = np.empty_like(data_ids)
    head_ids[data_ids] = np.arange(len(data_ids), dtype=np.int32)
    return cls(data_ids, head_ids)

  def to_file(self, path: str | os.PathLike[str]) -> None:
    """Writes what `from_file` reads; not for an order that keeps nothing."""
    assert self.data_ids is not None and self.head_ids is not None
    same: dict[int, list[int]] = {}  # labels with several ids alone
    first = np.full_like(self.head_ids, -1)
    first[self.data_ids] = self.data_ids
    for label in np.flatnonzero((self.head_ids >= 0) & (first < 0)).tolist():
      same.setdefault(int(self.head_ids[label]), []).append(label)
    text = [
      " ".join(map(str, [label, *same.get(number, ())])) + "\n"
      for number, label in enumerate(self.data_ids.tolist())
    ]
    files.write_text(path, "".join(text))

  def fingerprint(self) -> str:
    """A text that two orders share only if they are the same."""
    if self.data_ids is None:
      return "identity"
    assert self.head_ids is not None
    both = self.data_ids.tobytes() + self.head_ids.tobytes()
    return hashlib.sha256(both).hexdigest()

  def to_head(self, ids: np.ndarray) -> np.ndarray:
    """The head's numbers of data ids `[...]`; -1 stays."""
    return _looked_up(self.head_ids, ids)

  def by_data_id(self, values: np.ndarray) -> np.ndarray:
    """Values `[num_labels, ...]` of the head's labels as `[num_ids, ...]`.

    They are 0 for ids without a row; of ids that share one, the first has them.
    """
    if self.data_ids is None or self.head_ids is None:
      return values
    found = np.zeros((len(self.head_ids), *values.shape[1:]), values.dtype)
    found[self.data_ids] = values
    return found

  def by_head_id(self, values: np.ndarray) -> np.ndarray:
    """Values `[num_labels, ...]` of the data's labels, in the head's order."""
    return values if self.data_ids is None else values[self.data_ids]

  def to_data(self, ids: np.ndarray) -> np.ndarray:
    """The data ids of the head's numbers `[...]`; -1 stays."""
    return _looked_up(self.data_ids, ids)

  def first(self, ids: np.ndarray) -> np.ndarray:
    """The first of the data ids that share a row with each of `[...]`.

    Args:
      ids: Below `num_ids`; -1 stays.

    Returns:
      As many; -1 for those without a row.
    """
    return self.to_data(self.to_head(ids)) if self.is_edited else ids

  @property
  def is_edited(self) -> bool:
    """Whether some ids have no row, or share one."""
    if self.data_ids is None or self.head_ids is None:
      return False
    return len(self.data_ids) != len(self.head_ids)

  def known(self, labels: csr_lib.Csr) -> csr_lib.Csr:
    """Labels `[N, num_ids]` as the head knows them, by the data's ids.

    Args:
      labels: A matrix without values.

    Returns:
      The same without ids that have no row; of ids that share one, the first.
      What is beyond `num_ids`, which no model knows, stays.
    """
    if not self.is_edited or self.head_ids is None:
      return labels
    ids = np.asarray(labels.indices)
    inside = ids < len(self.head_ids)
    ids = np.where(inside, self.first(ids * inside), ids)
    rows = np.split(ids, labels.indptr[1:-1])
    return csr_lib.Csr.from_rows(
      [np.unique(row[row >= 0]).tolist() for row in rows], labels.num_columns
    )


def _looked_up(table: np.ndarray | None, ids: np.ndarray) -> np.ndarray:
  return ids if table is None else np.where(ids < 0, -1, table[ids])


def _labels_of(
  text: bytes,
  path: str | os.PathLike[str],
  line: int,
  num_ids: int,
  *,
  several: bool,
) -> list[int]:
  """The label ids that a line consists of, at least one."""
  words = text.split()
  labels = [
    int(word) if word.isdigit() and len(word) < 20 else -1 for word in words
  ] or [-1]
  one = several or len(labels) == 1
  if not one or not all(0 <= label < num_ids for label in labels):
    raise errors.DataError(
      path,
      repr(text.decode("utf-8", "replace")),
      f"a label id in [0, {num_ids - 1}] and nothing else",
      line=line,
    )
  return labels
