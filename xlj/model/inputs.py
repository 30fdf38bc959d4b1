"""What a step reads: examples of a batch, and texts of labels.

Legend: N examples, K features of one (padded), F features, P positives of one,
M labels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xlj import sharding
from xlj.encoders import bag
from xlj.ops import feature_rows
from xlj.ops import targets as targets_lib

Array = jax.Array | np.ndarray


class Texts(NamedTuple):
  """Texts of labels: this process's as numpy, or all on the mesh by label.

  Attributes:
    feature_ids: `[M, K]` int32, None when the features are dense.
    feature_values: `[M, K]` float32, or dense features.
    label_ids: `[M]` int32, distinct, by the head's numbers; -1 for padding.
  """

  feature_ids: Array | None
  feature_values: Array
  label_ids: Array


class Dual(NamedTuple):
  """What a step of a dual encoder reads besides the examples.

  Attributes:
    candidates: Labels that examples are scored with.
    chosen: `[N]` int32 positive of each example, by the head's numbers; -1 for
      none.
    log_counts: `[M]` float32, logarithm of how often a candidate is expected to
      be one; 0 where that does not count.
    views: Twice the same labels, each time with other features; () without.
  """

  candidates: Texts
  chosen: Array
  log_counts: Array
  views: Sequence[Texts] = ()

  @property
  def texts(self) -> tuple[Texts, ...]:
    """All that is to be embedded."""
    return self.candidates, *self.views


class Inputs(NamedTuple):
  """A batch: this process's rows as numpy, or all on the mesh by example.

  Attributes:
    feature_ids: `[N, K]` int32, None when the features are dense.
    feature_values: `[N, K]` float32, or dense features `[N, F]`, also bytes.
    label_ids: `[N, P]` int32, -1 for padding; to train on each item of a
      sequence, `[N, K]`, the one that comes next.
    weights: `[N]` float32, 0 for padding examples.
    rows: `[N]` int32, rows of the split, -1 for padding; None where nothing is
      remembered of examples.
    dual: Texts of labels, for a dual encoder.
  """

  feature_ids: Array | None
  feature_values: Array
  label_ids: Array
  weights: Array
  rows: Array | None = None
  dual: Dual | None = None

  @property
  def targets(self) -> targets_lib.Targets:
    """Positives and example weights."""
    return targets_lib.Targets(self.label_ids, self.weights)


def next_items(inputs: Inputs) -> targets_lib.Targets:
  """Targets of all places of sequences, `[N K, 1]`, the weight 0 at padding."""

  def flat(ids: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    ids = ids.reshape(-1, 1)
    each = jnp.repeat(weights, len(ids) // len(weights))
    return ids, jnp.where(ids[:, 0] >= 0, each, 0)

  found = sharding.by_compiler(flat)(inputs.label_ids, inputs.weights)
  return targets_lib.Targets(*found)


def features(inputs: Inputs | Texts) -> bag.Features:
  """The features as an encoder reads them."""
  if inputs.feature_ids is None:
    return jnp.asarray(inputs.feature_values)
  make = sharding.by_compiler(feature_rows.sparse_rows)
  return make(inputs.feature_ids, inputs.feature_values)


def dropped(
  inputs: Inputs | Texts, rate: float, key: jax.Array
) -> bag.Features:
  """Features with a share of the values set to 0, the rest scaled up."""
  if not rate:
    return features(inputs)

  def drop(values, key):
    keep = jax.random.bernoulli(key, 1 - rate, values.shape)
    return jnp.where(keep, values / (1 - rate), 0)

  values = sharding.by_compiler(drop)(inputs.feature_values, key)
  return features(inputs._replace(feature_values=values))
