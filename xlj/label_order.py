"""How the data set numbers its labels, and how the head does.

The head's label 0 is the most frequent one of the training split. So every
device has its share of the frequent labels (see `xlj.ops.layout`), and what
only pays for frequent labels can be limited to the first ones.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class LabelOrder:
  """A renumbering of labels, on the host.

  Attributes:
    data_ids: int32 `[num_labels]`, the data set's id of the head's labels.
    head_ids: int32 `[num_labels]`, the head's number of the data set's ids.
  """

  data_ids: np.ndarray
  head_ids: np.ndarray

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
  def of(cls, data_ids: np.ndarray) -> LabelOrder:
    """The order with the given data ids of the head's labels."""
    data_ids = data_ids.astype(np.int32)
    head_ids = np.empty_like(data_ids)
    head_ids[data_ids] = np.arange(len(data_ids), dtype=np.int32)
    return cls(data_ids, head_ids)

  def to_head(self, ids: np.ndarray) -> np.ndarray:
    """The head's numbers of data ids `[...]`; -1 stays."""
    return np.where(ids < 0, -1, self.head_ids[ids])

  def to_data(self, ids: np.ndarray) -> np.ndarray:
    """The data ids of the head's numbers `[...]`; -1 stays."""
    return np.where(ids < 0, -1, self.data_ids[ids])
