"""Textbook losses on full logits: short, dense, unsharded; for tests.

Legend: N examples, L labels.
"""

import jax
import jax.numpy as jnp


def multi_hot(ids: jax.Array, num_labels: int) -> jax.Array:
  """`[N, P]` ids with -1 padding to a dense `[N, L]` 0/1 matrix."""
  return jax.nn.one_hot(ids, num_labels).sum(1)


def softmax_loss(logits: jax.Array, hot: jax.Array) -> jax.Array:
  """Mean over positives of the softmax cross-entropy, `[N]`."""
  target = hot / jnp.maximum(hot.sum(1, keepdims=True), 1)
  return -(target * jax.nn.log_softmax(logits)).sum(1)


def bce_loss(logits: jax.Array, hot: jax.Array) -> jax.Array:
  """Binary cross-entropy summed over labels, `[N]`."""
  return (
    -hot * jax.nn.log_sigmoid(logits) - (1 - hot) * jax.nn.log_sigmoid(-logits)
  ).sum(1)


def weighted_mean(losses: jax.Array, weights: jax.Array) -> jax.Array:
  """`sum(w * loss) / sum(w)`; 0 when all weights are 0."""
  total = weights.sum()
  return (losses * weights).sum() / jnp.where(total > 0, total, 1)
