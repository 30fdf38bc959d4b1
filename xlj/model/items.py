"""Where the items of sequences lie among label rows.

An item is a feature and a label by the same id of the data set; the head has
labels in an order of its own.

Legend: N examples, K items of one (padded), F items, L label rows (padded).
"""

from typing import Any

import jax
import jax.numpy as jnp

from xlj import sharding
from xlj.ops import feature_rows
from xlj.ops import layout as layout_lib


def decayed(
  sequences: feature_rows.SparseRows, decay: float
) -> feature_rows.SparseRows:
  """Items that count the less the older they are.

  Args:
    sequences: Items, oldest first; values are 0 at padding.
    decay: What an item counts, over what the one after it does.

  Returns:
    The same items; the value of the newest is 1, that of padding 0.
  """
  decays = decay ** feature_rows.ages(sequences)
  values = jnp.where(sequences.values != 0, decays, 0)
  return sequences._replace(values=values)


def rows_of(
  layout: layout_lib.Layout,
  buffers: dict[str, Any],
  features: feature_rows.SparseRows,
) -> jax.Array:
  """The label row of each item.

  Args:
    layout: Of label rows.
    buffers: Those of a model, with its `label_ids` by row.
    features: Items by the ids of the data set; values are 0 at padding.

  Returns:
    `[N, K]` int32, split like examples; -1 at padding, and of an item that is
    no label.
  """

  def find(features, label_ids):
    if label_ids is None:  # The head numbers labels as the data set does.
      rows = layout.row_of_label(features.ids)
    else:
      count = layout.num_labels  # items are labels, by the same ids
      places = jnp.where(label_ids < 0, count, label_ids)
      numbers = jnp.arange(len(label_ids), dtype=jnp.int32)
      known = (
        jnp.full(count, -1, jnp.int32).at[places].set(numbers, mode="drop")
      )
      rows = known[features.ids]
    return jnp.where(features.values != 0, rows, -1)

  find = sharding.by_compiler(find)
  return find(features, buffers.get("label_ids"))
