"""What a loss, an update or a ranking knows of each label: from its counts.

Legend: L label rows (padded).
"""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from xlj import sharding
from xlj.losses import weighted_bce
from xlj.ops import layout as layout_lib
from xlj.ops import targets as targets_lib

_SMALL = 1e-12


def of(
  config: ml_collections.ConfigDict, label_counts: jax.Array | None
) -> targets_lib.LabelValues | None:
  """What the loss weighs or shifts labels by, or an update their rates.

  Args:
    config: A resolved config.
    label_counts: `[L]` int32, training examples of each label; None if there
      are no counts, when nothing needs them.

  Returns:
    `[L]` float32 by name; None if nothing is needed.
  """
  tail, data = config.tail, config.data
  by_example = config.head.by_example
  if tail.weights == "none" and not tail.adjustment and not by_example:
    return None
  assert label_counts is not None  # The config says so.
  counts = label_counts.astype(jnp.float32)
  values = {}
  if by_example:
    values["rate"] = jnp.maximum(counts, 2) ** -config.optim.wide.count_power
  if tail.weights == "propensity":
    values["positive"] = 1 + _odds_of_missing(config, counts)
  elif tail.weights == "class_balanced":
    weights = weighted_bce.class_balanced_weights(counts, tail.beta)
    # 1 for the positive of an example on average.
    values["positive"] = weights * counts.sum() / (weights * counts).sum()
  if tail.adjustment:
    share = (counts + 1) / (counts.sum() + data.num_labels)
    values["log_prior"] = jnp.log(share)
  return values


def offset(
  config: ml_collections.ConfigDict, label_counts: jax.Array | None
) -> jax.Array | None:
  """What is added to scores before labels are ranked by them.

  Args:
    config: A resolved config.
    label_counts: As for `of`.

  Returns:
    `power * log(1 / propensity)` of each label row `[L]`; of sequences what
    ranks items by popularity where nothing else does, for a user without any;
    None for nothing.
  """
  if label_counts is None:
    return None
  counts = label_counts.astype(jnp.float32)
  if power := config.predict.propensity_power:
    return power * jnp.log1p(_odds_of_missing(config, counts))
  # Less than what float32 tells apart of scores that are not 0 all.
  return _SMALL * jnp.log1p(counts) if config.data.sequences else None


def _odds_of_missing(
  config: ml_collections.ConfigDict, counts: jax.Array
) -> jax.Array:
  """`1 / propensity - 1` of each label row, `[L]` (Jain et al. 2016)."""
  data = config.data
  # See `xlj.data.statistics.propensities`, also of the maximum.
  scale = jnp.maximum(jnp.log(data.num_rows) - 1, 0) * (
    data.propensity_b + 1
  ) ** (data.propensity_a)
  decay = jnp.exp(-data.propensity_a * jnp.log(counts + data.propensity_b))
  return scale * decay


def by_row(
  layout: layout_lib.Layout, values: np.ndarray, fill: int
) -> jax.Array:
  """Puts values of labels onto the mesh in context; see `Model.by_row`."""

  def part(rows: np.ndarray) -> np.ndarray:
    labels = layout.label_of_row(rows)
    found = values[np.minimum(labels, layout.num_labels - 1)]
    found = np.where(labels < layout.num_labels, found, fill)
    return found.astype(values.dtype)

  return sharding.put_rows(layout.num_rows, part)
