"""What the labels of near training rows gain, as a program computes it.

`xlj.model.neighbours` says what it is, and does it on the host.

Legend: R rows that are answered at a time, K features of one (padded),
F features, M training rows, P labels of one (padded), Z their features' values.
"""

import jax
from jax import lax
import jax.numpy as jnp
import ml_collections
import numpy as np

from xlj.data import label_order
from xlj.model import neighbours
from xlj.ops import feature_rows
from xlj.ops.pairs import label_pairs

_NAME = "neighbours."


def arrays(
  kept: neighbours.Neighbours, order: label_order.LabelOrder
) -> dict[str, np.ndarray]:
  """The training rows of a run.

  Args:
    kept: They.
    order: The head's numbers of labels.

  Returns:
    By name: `starts [1, F + 1]`, `rows [1, Z]` and `values [1, Z]` of rows of
    length 1, by feature; `labels [M, P]`, by the head's numbers, -1 for
    padding.
  """
  by_feature, rows = kept.by_feature, kept.labels.num_rows
  longest = int(kept.labels.row_lengths.max(initial=1))
  labels = order.to_head(kept.labels.pad(longest).ids)
  found = {
    "starts": by_feature.indptr[None].astype(np.int32),
    "rows": by_feature.indices[None].astype(label_pairs.column_dtype(rows)),
    "values": by_feature.data[None].astype(np.float32),
    "labels": labels.astype(np.int32),
  }
  return {_NAME + name: array for name, array in found.items()}


def gains(
  config: ml_collections.ConfigDict,
  weights: dict[str, jax.Array],
  ids: jax.Array,
  values: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """What labels gain; see `xlj.ops.Choice.extra`.

  Args:
    config: Of the run.
    weights: With those of `arrays`.
    ids: `[R, K]` features.
    values: `[R, K]`, weighted.

  Returns:
    int32 `[R, E]` labels, -1 for none, and float32 `[R, E]`.
  """
  how = config.neighbours
  labels = weights[_NAME + "labels"]
  pairs = (weights[_NAME + name] for name in ("starts", "rows", "values"))
  examples = feature_rows.sparse_rows(ids, values)
  cosines = label_pairs.logits(
    label_pairs.LabelPairs(*pairs), examples, len(labels)
  )
  length = jnp.sqrt(jnp.square(values).sum(1, keepdims=True))
  cosines = jnp.where(length > 0, cosines / length, 0)
  best, near = lax.top_k(cosines, min(how.count, len(labels)))
  top = best[:, :1]
  shares = jnp.exp((best - top) / how.temperature)
  shares = shares * (top > 0) / shares.sum(1, keepdims=True)
  named = labels[near]  # [R, count, P]
  shares = jnp.where(named < 0, 0, shares[..., None])
  return _summed(named, shares, how.weight)


def _summed(
  named: jax.Array, shares: jax.Array, weight: float
) -> tuple[jax.Array, jax.Array]:
  """Each label of `[R, count, P]` once, with what all of its shares bring."""
  size = len(named)
  named, shares = lax.sort(
    (named.reshape(size, -1), shares.reshape(size, -1)), num_keys=1
  )
  is_new = jnp.diff(named, axis=1, prepend=named[:, :1]) != 0
  place = jnp.arange(size)[:, None], jnp.cumsum(is_new, 1)
  totals = jnp.zeros_like(shares).at[place].add(shares)
  labels = jnp.full_like(named, -1).at[place].max(named)
  return labels, weight * jnp.log1p(totals / neighbours.SMALL)
