"""Softmax cross-entropy with a part of the target spread over all labels."""

import dataclasses
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.losses import softmax
from xlj.ops import targets as targets_lib


class SmoothingStatistics(NamedTuple):
  """Running log-sum-exp, and the number of labels, `[N]` int32."""

  softmax: softmax.SoftmaxStatistics
  num_labels: jax.Array


@dataclasses.dataclass(frozen=True)
class LabelSmoothing:
  """Softmax cross-entropy with `(1 - e) * positives + e * uniform` as target.

  The positives share their part evenly; uniform is over all labels, positives
  included. An example without positives costs nothing. Source: Szegedy et al.
  2016, "Rethinking the Inception architecture", section 7.

  Attributes:
    smoothing: The part e that is spread, in [0, 1].
  """

  smoothing: float

  def init(
    self, num_examples: int, num_positives: int = 0
  ) -> SmoothingStatistics:
    """Statistics of no logits."""
    return SmoothingStatistics(
      softmax.Softmax().init(num_examples),
      jnp.zeros((num_examples,), jnp.int32),
    )

  def accumulate(
    self,
    stats: SmoothingStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> SmoothingStatistics:
    """Folds a chunk of logits `[N, c]` into the running statistics."""
    labels = ~jnp.isneginf(z)
    return SmoothingStatistics(
      softmax.Softmax().accumulate(stats.softmax, z, positives),
      stats.num_labels + labels.sum(positives.label_axis, dtype=jnp.int32),
    )

  def merge(
    self, stats: SmoothingStatistics, axes: tuple[str, ...]
  ) -> SmoothingStatistics:
    """Merges the statistics of all shards of the mesh axes `axes`."""
    return SmoothingStatistics(
      softmax.Softmax().merge(stats.softmax, axes),
      lax.psum(stats.num_labels, axes),  # N numbers
    )

  def value_and_grad(
    self,
    stats: SmoothingStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    has_positives = positives.count > 0
    num_labels = stats.num_labels.astype(z.dtype)
    spread = self.smoothing / positives.by_example(num_labels)
    # [N, c]: each label's part, 0 at padding labels.
    counts = positives.by_example(has_positives) & ~jnp.isneginf(z)
    spread = jnp.where(counts, spread, 0)
    target = (1 - self.smoothing) * targets_lib.shares(positives, z.dtype)
    at_positives = targets_lib.gather_columns(z, positives)
    value = (target * softmax.costs(stats.softmax, at_positives)).sum(1)
    largest, rest = map(positives.by_example, softmax.parts(stats.softmax))
    cost = jnp.where(spread > 0, spread * (largest - z + rest), 0)
    value += cost.sum(positives.label_axis)
    slope = has_positives.astype(z.dtype)
    grad = softmax.probabilities(stats.softmax, z, positives, slope) - spread
    return value, targets_lib.add_at_columns(grad, positives, -target)
