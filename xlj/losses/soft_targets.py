"""Softmax cross-entropy against weighted positives: sparse distillation."""

import dataclasses

import jax
import jax.numpy as jnp

from xlj.losses import softmax
from xlj.ops import targets as targets_lib


@dataclasses.dataclass(frozen=True)
class SoftTargets:
  """`T^2 * sum over positives of t_p (logsumexp(z / T) - z_p / T)`.

  The weights t are `Targets.values`, as of a teacher's most probable labels.
  They need not add up to 1: what is missing just counts less. Source: Hinton et
  al. 2015, "Distilling the knowledge in a neural network", section 2, where
  the factor T^2 keeps gradients comparable between temperatures.

  Attributes:
    temperature: T; the teacher's weights are up to the caller.
  """

  temperature: float = 1.0

  def init(
    self, num_examples: int, num_positives: int = 0
  ) -> softmax.SoftmaxStatistics:
    """Statistics of no logits."""
    return softmax.Softmax().init(num_examples)

  def accumulate(
    self,
    stats: softmax.SoftmaxStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> softmax.SoftmaxStatistics:
    """Folds a chunk of logits `[N, c]` into the running statistics."""
    return softmax.Softmax().accumulate(stats, z / self.temperature, positives)

  def merge(
    self, stats: softmax.SoftmaxStatistics, axes: tuple[str, ...]
  ) -> softmax.SoftmaxStatistics:
    """Merges the statistics of all shards of the mesh axes `axes`."""
    return softmax.Softmax().merge(stats, axes)

  def value_and_grad(
    self,
    stats: softmax.SoftmaxStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient.

    Raises:
      ValueError: The targets have no weights.
    """
    if positives.values is None:
      raise ValueError("soft targets need weights of positives: Targets.values")
    z = z / self.temperature
    weights = positives.values.astype(z.dtype)
    target = jnp.where(positives.inside, weights, 0)
    at_positives = targets_lib.gather_columns(z, positives)
    value = (target * softmax.costs(stats, at_positives)).sum(1)
    grad = softmax.probabilities(stats, z, positives, weights.sum(1))
    grad = targets_lib.add_at_columns(grad, positives, -target)
    return self.temperature**2 * value, self.temperature * grad
