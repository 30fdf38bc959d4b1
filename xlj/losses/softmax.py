"""Softmax cross-entropy with any number of positives per example."""

import dataclasses
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import targets as targets_lib


class SoftmaxStatistics(NamedTuple):
  """Running log-sum-exp: `max` and `total = sum exp(z - max)`, both `[N]`."""

  max: jax.Array
  total: jax.Array


@dataclasses.dataclass(frozen=True)
class Softmax:
  """`mean over positives of (logsumexp(z) - z_p)`.

  The target distribution is uniform over the positives of the example; an
  example without positives costs nothing. With one positive this is the
  ordinary softmax cross-entropy. The log-sum-exp is exact over all shards:
  maxima are merged by `pmax`, sums by `psum`.

  Attributes:
    z_loss: Adds `z_loss * logsumexp(z)^2`, which keeps the logits from drifting
      (Chowdhery et al. 2022, PaLM, section 5; 1e-4 there).
  """

  z_loss: float = 0.0

  def init(
    self, num_examples: int, num_positives: int = 0
  ) -> SoftmaxStatistics:
    """Statistics of no logits."""
    return SoftmaxStatistics(
      jnp.full((num_examples,), -jnp.inf), jnp.zeros((num_examples,))
    )

  def accumulate(
    self,
    stats: SoftmaxStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> SoftmaxStatistics:
    """Folds a chunk of logits `[N, c]` into the running statistics."""
    axis = positives.label_axis
    new_max = jnp.maximum(stats.max, z.max(axis))
    safe = _finite(new_max)
    total = stats.total * jnp.exp(stats.max - safe)
    total += jnp.exp(z - positives.by_example(safe)).sum(axis)
    return SoftmaxStatistics(new_max, total)

  def merge(
    self, stats: SoftmaxStatistics, axes: tuple[str, ...]
  ) -> SoftmaxStatistics:
    """Merges the statistics of all shards of the mesh axes `axes`."""
    new_max = lax.pmax(stats.max, axes)
    total = lax.psum(stats.total * jnp.exp(stats.max - _finite(new_max)), axes)
    return SoftmaxStatistics(new_max, total)

  def value_and_grad(
    self,
    stats: SoftmaxStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    lse = log_sum_exp(stats)
    target = targets_lib.shares(positives, z.dtype)
    excess = costs(stats, targets_lib.gather_columns(z, positives))
    value = (target * (excess + self.z_loss * lse[:, None] ** 2)).sum(1)
    slope = 1 + 2 * self.z_loss * lse
    slope = jnp.where(positives.count > 0, slope, 0)
    grad = probabilities(stats, z, positives, slope)
    return value, targets_lib.add_at_columns(grad, positives, -target)


def log_sum_exp(stats: SoftmaxStatistics) -> jax.Array:
  """`log sum exp` of the logits that the statistics are of, `[N]`."""
  largest, rest = parts(stats)
  return largest + rest


def parts(stats: SoftmaxStatistics) -> tuple[jax.Array, jax.Array]:
  """The maximum of the logits, and the log-sum-exp of them minus it; `[N]`.

  Their sum loses digits where logits are large: subtract one, then the other.
  """
  return _finite(stats.max), jnp.log(stats.total)


def costs(stats: SoftmaxStatistics, z: jax.Array) -> jax.Array:
  """`log_sum_exp - z` of some logits `[N, P]`, by `parts`."""
  largest, rest = parts(stats)
  return largest[:, None] - z + rest[:, None]


def probabilities(
  stats: SoftmaxStatistics,
  z: jax.Array,
  positives: targets_lib.Positives,
  factor: jax.Array,
) -> jax.Array:
  """`factor exp(z - log_sum_exp)` of a chunk, by `parts`.

  Args:
    stats: Merged statistics; of no logits, all probabilities are 0.
    z: `[N, c]` logits of the chunk.
    positives: How the chunk lies.
    factor: `[N]`.

  Returns:
    `[N, c]`.
  """
  factor = factor / jnp.where(stats.total > 0, stats.total, 1)
  above = jnp.exp(z - positives.by_example(_finite(stats.max)))
  return above * positives.by_example(factor)


def _finite(maximum: jax.Array) -> jax.Array:
  """Replaces the -inf of a shard that holds padding rows alone by 0."""
  return jnp.where(jnp.isneginf(maximum), 0.0, maximum)
