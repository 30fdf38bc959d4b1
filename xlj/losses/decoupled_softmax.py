"""Decoupled softmax: positives compete with the negatives, not each other."""

import dataclasses
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.losses import softmax
from xlj.ops import targets as targets_lib


class DecoupledStatistics(NamedTuple):
  """Statistics of the negatives, and the logits of the positives `[N, P]`."""

  negatives: softmax.SoftmaxStatistics
  positives: jax.Array


@dataclasses.dataclass(frozen=True)
class DecoupledSoftmax:
  """`mean over positives of log(1 + sum_{l negative} exp(z_l - z_p))`.

  All other positives are left out of the denominator, so that fitting one
  positive does not push the others down. An example without positives costs
  nothing. Source: Gupta et al. 2024, "Dual-encoders for extreme multi-label
  classification" (DEXML), equation 5.

  The gradient of a negative depends on the logits of all positives, wherever
  they are: they are collected with the statistics, `[N, P]` numbers more to
  merge.
  """

  def init(self, num_examples: int, num_positives: int) -> DecoupledStatistics:
    """Statistics of no logits."""
    return DecoupledStatistics(
      softmax.Softmax().init(num_examples),
      jnp.zeros((num_examples, num_positives)),
    )

  def accumulate(
    self,
    stats: DecoupledStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> DecoupledStatistics:
    """Folds a chunk of logits `[N, c]` into the running statistics."""
    negatives = targets_lib.set_at_columns(z, positives, -jnp.inf)
    return DecoupledStatistics(
      softmax.Softmax().accumulate(stats.negatives, negatives, positives),
      stats.positives + targets_lib.gather_columns(z, positives),
    )

  def merge(
    self, stats: DecoupledStatistics, axes: tuple[str, ...]
  ) -> DecoupledStatistics:
    """Merges the statistics of all shards of the mesh axes `axes`."""
    return DecoupledStatistics(
      softmax.Softmax().merge(stats.negatives, axes),
      # Each positive is on one shard; the others hold 0. N P numbers.
      lax.psum(stats.positives, axes),
    )

  def value_and_grad(
    self,
    stats: DecoupledStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    excess = softmax.costs(stats.negatives, stats.positives)  # [N, P]
    target = targets_lib.shares(positives, z.dtype)
    value = (target * jax.nn.softplus(excess)).sum(1)
    # A positive's own probability against the negatives, over all chunks.
    count = positives.count.astype(z.dtype)[:, None]
    slope = jax.nn.sigmoid(excess) / jnp.maximum(count, 1)
    slope = jnp.where(positives.used, slope, 0)
    negatives = targets_lib.set_at_columns(z, positives, -jnp.inf)
    grad = softmax.probabilities(
      stats.negatives, negatives, positives, slope.sum(1)
    )
    return value, targets_lib.set_at_columns(
      grad, positives, -target * jax.nn.sigmoid(excess)
    )
